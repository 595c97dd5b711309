package store_test

import (
	"path/filepath"
	"testing"

	"keystead/fault"
	"keystead/store"
	"keystead/store/bolt"
)

type note struct {
	Text string `cbor:"text"`
}

func TestMemoIsNeverOlderThanTheTransaction(t *testing.T) {
	db, err := bolt.Open(filepath.Join(t.TempDir(), "test.db"), bolt.UnsafeNoSync())
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	table := store.NewTable[note]("note")
	var memo store.Memo[note]
	read := func(tx store.Tx) string {
		t.Helper()
		n, err := memo.Get(tx, table, "n")
		if err != nil && !fault.Is(err, fault.NotFound) {
			t.Fatal(err)
		}
		return n.Text
	}
	for _, want := range []string{"first", "second", "first"} {
		err := db.Update(t.Context(), func(tx store.Tx) error {
			if err := table.Put(tx, "n", note{want}); err != nil {
				return err
			}
			if got := read(tx); got != want {
				t.Errorf("in the update: got %q, want %q", got, want)
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if err := db.View(t.Context(), func(tx store.Tx) error {
				if got := read(tx); got != want {
					t.Errorf("afterwards: got %q, want %q", got, want)
				}
				return nil
			}); err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := db.Update(t.Context(), func(tx store.Tx) error { _, err := table.Delete(tx, "n"); return err }); err != nil {
		t.Fatal(err)
	}
	if err := db.View(t.Context(), func(tx store.Tx) error {
		if _, err := memo.Get(tx, table, "n"); !fault.Is(err, fault.NotFound) {
			t.Errorf("deleted: got %v, want NotFound", err)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}
