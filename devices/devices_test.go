package devices_test

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"keystead/audit"
	"keystead/devices"
	"keystead/fault"
	"keystead/identity"
	"keystead/page"
	"keystead/seal"
	"keystead/store"
	"keystead/store/bolt"
)

// world is a service on a store of its own, at a time the test sets.
type world struct {
	*devices.Service
	now time.Time
}

func start(t *testing.T) *world {
	t.Helper()
	db, err := bolt.Open(filepath.Join(t.TempDir(), "test.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	w := &world{now: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)}
	now := func() time.Time { return w.now }
	w.Service = &devices.Service{DB: db, Now: now, Audit: &audit.Log{DB: db, Key: seal.NewSecret(32), Now: now}}
	return w
}

func as(org string) context.Context {
	return identity.NewContext(context.Background(), identity.Actor{Kind: identity.User, ID: "u", Org: org, Role: identity.Owner})
}

func (w *world) create(t *testing.T, org string, aliases ...string) devices.Device {
	t.Helper()
	n := devices.New{}
	for _, a := range aliases {
		n.Aliases = append(n.Aliases, devices.Alias{Kind: devices.Endpoint, Value: a})
	}
	d, err := w.Create(as(org), n)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func (w *world) attach(t *testing.T, d devices.Device, c devices.Credential) {
	t.Helper()
	if err := w.DB.Update(t.Context(), func(tx store.Tx) error {
		_, err := w.Attach(t.Context(), tx, d.ID, c)
		return err
	}); err != nil {
		t.Fatal(err)
	}
}

func (w *world) prove(d devices.Device, kind identity.CredentialKind, id string) (err error) {
	return errors.Join(err, w.DB.View(context.Background(), func(tx store.Tx) error {
		_, _, err := w.Prove(tx, d.ID, kind, id)
		return err
	}))
}

func TestAliasNamesOneDeviceOfAnOrganisation(t *testing.T) {
	w := start(t)
	d := w.create(t, "acme", "urn:dev:1")
	other := w.create(t, "rival", "urn:dev:1") // names are per organisation

	for _, test := range []struct {
		name, org, by, want string
	}{
		{"by alias", "acme", "urn:dev:1", d.ID},
		{"by id", "acme", d.ID, d.ID},
		{"the same alias elsewhere", "rival", "urn:dev:1", other.ID},
		{"another organisation's id", "rival", d.ID, ""},
		{"nobody's", "acme", "urn:dev:2", ""},
	} {
		got, err := w.Find(as(test.org), test.by)
		if test.want == "" {
			if !fault.Is(err, fault.NotFound) {
				t.Errorf("%s: Find(%q) = %v, %v; want NotFound", test.name, test.by, got.ID, err)
			}
			continue
		}
		if err != nil || got.ID != test.want {
			t.Errorf("%s: Find(%q) = %v, %v; want %s", test.name, test.by, got.ID, err, test.want)
		}
	}

	taken := []devices.Alias{{Kind: devices.CommonName, Value: "urn:dev:1"}}
	if _, err := w.Create(as("acme"), devices.New{Aliases: taken}); !fault.Is(err, fault.Conflict) {
		t.Errorf("a second device with the alias: got %v, want Conflict", err)
	}
	stolen := []devices.Alias{{Kind: devices.External, Value: d.ID}}
	if _, err := w.Create(as("acme"), devices.New{Aliases: stolen}); !fault.Is(err, fault.Conflict) {
		t.Errorf("an alias that is another device's id: got %v, want Conflict", err)
	}
}

func TestAnotherOrganisationCannotTellItExists(t *testing.T) {
	w := start(t)
	d := w.create(t, "acme", "urn:dev:1")
	stranger, name := as("rival"), "mine now"
	for what, do := range map[string]func() error{
		"get":          func() error { _, err := w.Get(stranger, d.ID); return err },
		"update":       func() error { _, err := w.Update(stranger, d.ID, devices.Edit{Name: &name}); return err },
		"suspend":      func() error { _, err := w.Suspend(stranger, d.ID); return err },
		"resume":       func() error { _, err := w.Resume(stranger, d.ID); return err },
		"decommission": func() error { _, err := w.Decommission(stranger, d.ID); return err },
		"revoke":       func() error { return w.RevokeCredential(stranger, d.ID, identity.PSK, "p") },
	} {
		if err := do(); !fault.Is(err, fault.NotFound) {
			t.Errorf("%s: got %v, want NotFound", what, err)
		}
	}
	if p, err := w.List(stranger, devices.Filter{}, page.Request{}); err != nil || len(p.Items) != 0 {
		t.Errorf("list: got %v, %v; want nothing", p.Items, err)
	}
	if got, _ := w.Get(as("acme"), d.ID); got.State != devices.Active || got.Name != d.Name {
		t.Errorf("after all that the device is %+v, want it unchanged", got)
	}
}

func TestProve(t *testing.T) {
	w := start(t)
	d := w.create(t, "acme")
	soon := w.now.Add(time.Hour)
	w.attach(t, d, devices.Credential{Kind: identity.PSK, ID: "p"})
	w.attach(t, d, devices.Credential{Kind: identity.Certificate, ID: "c", ExpiresAt: soon})
	w.attach(t, d, devices.Credential{Kind: identity.Certificate, ID: "next", State: devices.CredentialPending})

	check := func(when string, kind identity.CredentialKind, id, want string) {
		t.Helper()
		err := w.prove(d, kind, id)
		if want == "" && err != nil || want != "" && (!fault.Is(err, fault.Unauthenticated) || !strings.Contains(fault.Message(err), want)) {
			t.Errorf("%s: Prove(%s %s) = %v, want %q", when, kind, id, err, want)
		}
	}
	check("at first", identity.PSK, "p", "")
	check("at first", identity.Certificate, "c", "")
	check("at first", identity.Certificate, "next", "not active yet")
	check("at first", identity.Certificate, "p", "revoked") // ids are per kind
	check("at first", identity.PSK, "unknown", "revoked")

	if _, err := w.Suspend(as("acme"), d.ID); err != nil {
		t.Fatal(err)
	}
	check("suspended", identity.PSK, "p", "suspended")
	if _, err := w.Resume(as("acme"), d.ID); err != nil {
		t.Fatal(err)
	}
	check("resumed", identity.PSK, "p", "")

	w.now = soon
	check("an hour later", identity.Certificate, "c", "expired")
	check("an hour later", identity.PSK, "p", "")

	if err := w.RevokeCredential(as("acme"), d.ID, identity.PSK, "p"); err != nil {
		t.Fatal(err)
	}
	check("revoked", identity.PSK, "p", "revoked")

	if _, err := w.Decommission(as("acme"), d.ID); err != nil {
		t.Fatal(err)
	}
	check("decommissioned", identity.Certificate, "c", "decommissioned")
	if _, err := w.Resume(as("acme"), d.ID); !fault.Is(err, fault.Conflict) {
		t.Errorf("resume of a decommissioned device: got %v, want Conflict", err)
	}
}

func TestEpochMovesAndListenersHearBeforeTheAnswer(t *testing.T) {
	w := start(t)
	d := w.create(t, "acme")
	w.attach(t, d, devices.Credential{Kind: identity.PSK, ID: "p"})
	var heard []devices.What
	var seen []uint64
	w.Listen(func(c devices.Change) {
		heard = append(heard, c.What)
		seen = append(seen, w.Epoch())
	})
	before := w.Epoch()
	for _, step := range []struct {
		what devices.What
		do   func() error
		ends bool
	}{
		{devices.SuspendedNow, func() error { _, err := w.Suspend(as("acme"), d.ID); return err }, true},
		{devices.Resumed, func() error { _, err := w.Resume(as("acme"), d.ID); return err }, false},
		{devices.CredentialRevokedNow, func() error { return w.RevokeCredential(as("acme"), d.ID, identity.PSK, "p") }, true},
		{devices.DecommissionedNow, func() error { _, err := w.Decommission(as("acme"), d.ID); return err }, true},
	} {
		heard, seen = nil, nil
		if err := step.do(); err != nil {
			t.Fatal(err)
		}
		if len(heard) != 1 || heard[0] != step.what {
			t.Errorf("%s: heard %v before the answer, want it once", step.what, heard)
			continue
		}
		if moved := seen[0] > before; moved != step.ends {
			t.Errorf("%s: the epoch moved: %v, want %v", step.what, moved, step.ends)
		}
		before = w.Epoch()
	}
}

// A key that another replaces goes on until its end: sessions look again, and stay.
func TestRetiringCredentialStillProves(t *testing.T) {
	w := start(t)
	d := w.create(t, "acme")
	w.attach(t, d, devices.Credential{Kind: identity.PSK, ID: "p"})
	before := w.Epoch()
	w.Listen(func(c devices.Change) {
		if c.Ends() {
			t.Errorf("%s ends something", c.What)
		}
	})
	if err := w.DB.Update(t.Context(), func(tx store.Tx) error {
		_, err := w.SetCredential(t.Context(), tx, d.ID, devices.Credential{
			Kind: identity.PSK, ID: "p", State: devices.CredentialRetiring, ExpiresAt: w.now.Add(time.Hour),
		})
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if w.Epoch() == before {
		t.Error("the epoch did not move: nobody learns of the nearer end")
	}
	if err := w.prove(d, identity.PSK, "p"); err != nil {
		t.Errorf("retiring: %v", err)
	}
	w.now = w.now.Add(time.Hour)
	if err := w.prove(d, identity.PSK, "p"); err == nil {
		t.Error("it proves past its end")
	}
}

func TestObserverThatFailsStopsTheChange(t *testing.T) {
	w := start(t)
	d := w.create(t, "acme")
	broken := errors.New("the outbox is full")
	w.Observe(func(context.Context, store.Tx, devices.Change) error { return broken })
	w.Listen(func(c devices.Change) { t.Errorf("heard of %s, which was not committed", c.What) })
	if _, err := w.Suspend(as("acme"), d.ID); !errors.Is(err, broken) {
		t.Fatalf("got %v, want the observer's error", err)
	}
	if got, _ := w.Get(as("acme"), d.ID); got.State != devices.Active {
		t.Errorf("state = %s, want active", got.State)
	}
	if n, err := w.Audit.Verify(t.Context()); n.Records != 1 || err != nil { // the creation
		t.Errorf("the trail has %d records, %v; want 1", n, err)
	}
}

func TestDecommissionErasesAndFreesNames(t *testing.T) {
	w := start(t)
	d := w.create(t, "acme", "urn:dev:1")
	if _, err := w.Decommission(as("acme"), d.ID); err != nil {
		t.Fatal(err)
	}
	got, err := w.Get(as("acme"), d.ID)
	if err != nil || got.State != devices.Decommissioned || len(got.Aliases) != 0 {
		t.Errorf("tombstone = %+v, %v; want it decommissioned, without aliases", got, err)
	}
	w.create(t, "acme", "urn:dev:1")
	counts, err := w.Counts(as("acme"))
	if err != nil || counts[devices.Active] != 1 || counts[devices.Decommissioned] != 1 {
		t.Errorf("counts = %v, %v; want one active, one decommissioned", counts, err)
	}
}

func TestListNarrows(t *testing.T) {
	w := start(t)
	for i := range 5 {
		d, err := w.Create(as("acme"), devices.New{Labels: map[string]string{"site": []string{"north", "south"}[i%2]}})
		if err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			if _, err := w.Suspend(as("acme"), d.ID); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, test := range []struct {
		name   string
		filter devices.Filter
		want   int
	}{
		{"all", devices.Filter{}, 5},
		{"by state", devices.Filter{State: devices.Suspended}, 1},
		{"by label", devices.Filter{Label: [2]string{"site", "north"}}, 3},
		{"by label and state", devices.Filter{Label: [2]string{"site", "north"}, State: devices.Active}, 2},
		{"by a label nobody has", devices.Filter{Label: [2]string{"site", "nort"}}, 0},
	} {
		p, err := w.List(as("acme"), test.filter, page.Request{})
		if err != nil || len(p.Items) != test.want {
			t.Errorf("%s: got %d devices, %v; want %d", test.name, len(p.Items), err, test.want)
		}
	}
}

func TestLimits(t *testing.T) {
	w := start(t)
	long := strings.Repeat("x", 2000)
	for name, n := range map[string]devices.New{
		"long name":      {Name: long},
		"not UTF-8":      {Name: "\xff"},
		"control":        {Name: "a\x1b[31m"},
		"long alias":     {Aliases: []devices.Alias{{Kind: devices.Endpoint, Value: long}}},
		"empty alias":    {Aliases: []devices.Alias{{Kind: devices.Endpoint}}},
		"kind of alias":  {Aliases: []devices.Alias{{Kind: "nickname", Value: "x"}}},
		"many aliases":   {Aliases: make([]devices.Alias, devices.MaxAliases+1)},
		"long label":     {Labels: map[string]string{"k": long}},
		"nameless label": {Labels: map[string]string{"": "v"}},
	} {
		if _, err := w.Create(as("acme"), n); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: got %v, want Invalid", name, err)
		}
	}
	if counts, err := w.Counts(as("acme")); err != nil || counts[devices.Active] != 0 {
		t.Errorf("counts = %v, %v; want nothing stored", counts, err)
	}
}
