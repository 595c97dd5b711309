package devices_test

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"keystead/devices"
	"keystead/identity"
	"keystead/store"
)

// TestProofsReadWhatIsStored holds what a proof reads of a record against the record, with
// every field set.
func TestProofsReadWhatIsStored(t *testing.T) {
	w := start(t)
	d, err := w.Create(as("acme"), devices.New{
		Name: strings.Repeat("näme", 50), Labels: map[string]string{"site": "a", "id": "not this one"}, Metadata: map[string]string{"creds": "nor this"}, Comment: "state",
		Aliases: []devices.Alias{{Kind: devices.Endpoint, Value: "urn:dev:1"}, {Kind: devices.External, Value: "x"}},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []devices.Credential{
		{Kind: identity.PSK, ID: "one"},
		{Kind: identity.Certificate, ID: "one", ExpiresAt: w.now.Add(time.Hour + time.Nanosecond)},
		{Kind: identity.ThingKey, ID: "two", State: devices.CredentialRetiring, ExpiresAt: w.now.Add(time.Minute)},
	} {
		w.attach(t, d, c)
	}
	if err := w.DB.Update(t.Context(), func(tx store.Tx) error {
		return w.SetRenewal(t.Context(), tx, d.ID, identity.Certificate, "one", "expiring_soon")
	}); err != nil {
		t.Fatal(err)
	}
	if d, err = w.Get(as("acme"), d.ID); err != nil {
		t.Fatal(err)
	}
	if err := w.DB.View(t.Context(), func(tx store.Tx) error {
		for _, want := range d.Credentials {
			p, got, err := w.Prove(tx, d.ID, want.Kind, want.ID)
			if err != nil {
				return err
			}
			want.Renewal = "" // proves nothing
			if got != want {
				t.Errorf("the credential is read as %+v, and is %+v", got, want)
			}
			if !reflect.DeepEqual(p.Actor(got), d.Actor(want)) || p.State != d.State {
				t.Errorf("the device is read as %+v, and is %+v", p, d)
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}
