package authsets_test

import (
	"math"
	"reflect"
	"testing"
	"time"

	"keystead/authsets"
	"keystead/store"
)

// TestRequestsReadWhatIsStored holds what a request reads of a record against the record, with
// every field set and with none.
func TestRequestsReadWhatIsStored(t *testing.T) {
	f := start(t)
	now := f.clock.Now()
	for _, want := range []authsets.Device{
		{
			ID: "d1", Org: org, Identity: `{"id":"sets"}`, Status: authsets.Accepted, Comment: "sets", Linked: true, CreatedAt: now, UpdatedAt: now.Add(time.Nanosecond),
			Labels: map[string]string{"sets": "none", "id": "not this one"},
			Sets: []authsets.Set{
				{ID: "s1", Key: []byte{0, 1}, Status: authsets.Rejected, Epoch: math.MaxUint64, Reason: "epoch", By: "rule/1", CreatedAt: now},
				{ID: "s2", Key: []byte{0, 1, 2}, Status: authsets.Accepted, Epoch: 23, Cert: "key", CreatedAt: now},
				{ID: "s3", Key: newKey(t).der(), Status: authsets.Pending, Epoch: 24},
				{ID: "s4", Key: make([]byte, 70_000), Status: authsets.Preauthorized},
			},
		},
		{ID: "d2", Org: org, Identity: `{"id":"none"}`},
	} {
		if err := f.db.Update(t.Context(), func(tx store.Tx) error { return authsets.Put(tx, want) }); err != nil {
			t.Fatal(err)
		}
		if err := f.db.View(t.Context(), func(tx store.Tx) error {
			got, byID, err := authsets.Asked(tx, want)
			if got.ID != want.ID || got.Org != want.Org || !reflect.DeepEqual(got.Sets, byID) || len(byID) != len(want.Sets) {
				t.Errorf("read %+v and %+v of %+v", got, byID, want)
			}
			for i, set := range byID {
				if w := want.Sets[i]; !reflect.DeepEqual(set, authsets.Set{ID: w.ID, Key: w.Key, Status: w.Status, Epoch: w.Epoch}) {
					t.Errorf("read %+v of %+v", set, w)
				}
			}
			return err
		}); err != nil {
			t.Fatal(err)
		}
	}
}
