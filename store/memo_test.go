package store_test

import (
	"errors"
	"path/filepath"
	"strconv"
	"sync"
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

// Latest sees every commit once its Update has returned, and never what an update has
// written that is not committed.
func TestLatestIsAsOfTheLastCommit(t *testing.T) {
	db, err := bolt.Open(filepath.Join(t.TempDir(), "test.db"), bolt.UnsafeNoSync())
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	table := store.NewTable[note]("note").Watched()
	var memo store.Memo[note]
	check := func(when, want string) {
		t.Helper()
		for range 2 {
			switch n, err := memo.Latest(t.Context(), db, table, "n"); {
			case want == "" && !fault.Is(err, fault.NotFound):
				t.Errorf("%s: got %q, %v, want NotFound", when, n.Text, err)
			case want != "" && (err != nil || n.Text != want):
				t.Errorf("%s: got %q, %v, want %q", when, n.Text, err, want)
			}
		}
	}
	check("at first", "")
	was := ""
	for _, want := range []string{"first", "second", "first"} {
		undone := errors.New("undone")
		err := db.Update(t.Context(), func(tx store.Tx) error {
			if err := table.Put(tx, "n", note{"uncommitted"}); err != nil {
				return err
			}
			if n, err := memo.Get(tx, table, "n"); err != nil || n.Text != "uncommitted" {
				t.Errorf("in an update: got %q, %v", n.Text, err)
			}
			check("beside an update", was)
			return undone
		})
		if !errors.Is(err, undone) {
			t.Fatal(err)
		}
		check("after an update that failed", was)
		if err := db.Update(t.Context(), func(tx store.Tx) error { return table.Put(tx, "n", note{want}) }); err != nil {
			t.Fatal(err)
		}
		check("after an update", want)
		was = want
	}
	if err := db.Update(t.Context(), func(tx store.Tx) error { _, err := table.Delete(tx, "n"); return err }); err != nil {
		t.Fatal(err)
	}
	check("deleted", "")
}

// Many that read while others write see what was committed last, or before.
func TestLatestWhileOthersWrite(t *testing.T) {
	db, err := bolt.Open(filepath.Join(t.TempDir(), "test.db"), bolt.UnsafeNoSync())
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	table := store.NewTable[note]("note").Watched()
	var memo store.Memo[note]
	var working sync.WaitGroup
	const writers, each = 4, 50
	for w := range writers {
		key := strconv.Itoa(w)
		working.Go(func() {
			for i := range each {
				want := strconv.Itoa(i)
				if err := db.Update(t.Context(), func(tx store.Tx) error { return table.Put(tx, key, note{want}) }); err != nil {
					t.Error(err)
				}
				if n, err := memo.Latest(t.Context(), db, table, key); err != nil || n.Text != want {
					t.Errorf("got %q, %v, want %q", n.Text, err, want)
				}
			}
		})
		working.Go(func() {
			for range 4 * each {
				if n, err := memo.Latest(t.Context(), db, table, key); err != nil && !fault.Is(err, fault.NotFound) {
					t.Errorf("got %q, %v", n.Text, err)
				}
			}
		})
	}
	working.Wait()
}
