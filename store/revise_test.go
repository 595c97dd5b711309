package store_test

import (
	"errors"
	"fmt"
	"path/filepath"
	"strconv"
	"testing"

	"keystead/store"
	"keystead/store/bolt"
)

type thing struct {
	Name string `cbor:"name"`
	N    int    `cbor:"n"`
}

func TestRevise(t *testing.T) {
	db, err := bolt.Open(filepath.Join(t.TempDir(), "x.db"), bolt.UnsafeNoSync())
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	table := store.NewTable("thing", store.Index[thing]{Name: "n", Unique: true, Terms: func(v thing) []store.Term { return store.Terms(strconv.Itoa(v.N)) }})
	key := func(i int) string { return fmt.Sprintf("\x00key\x01%04d", i) } // bytes that are escaped in keys
	const all = 1050                                                       // more than some transactions look at
	if err := db.Update(t.Context(), func(tx store.Tx) error {
		for i := range all {
			if err := table.Insert(tx, key(i), thing{key(i), i}); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	seen := 0
	n, err := table.Revise(t.Context(), db, func(k string, v *thing) (bool, error) {
		if seen++; k != v.Name {
			t.Errorf("got key %q, want %q", k, v.Name)
		}
		if v.N%3 != 0 {
			return false, nil
		}
		v.N += 10_000
		return true, nil
	})
	if err != nil || n != all/3 || seen != all {
		t.Errorf("got %d changed of %d, %v, want %d of %d", n, seen, err, all/3, all)
	}
	if err := db.View(t.Context(), func(tx store.Tx) error {
		for i := range all {
			want := i
			if i%3 == 0 {
				want += 10_000
			}
			if v, err := table.GetBy(tx, "n", store.TermOf(strconv.Itoa(want))); err != nil || v.Name != key(i) {
				t.Errorf("%d: got %+v, %v", i, v, err)
			}
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	sorry := errors.New("sorry")
	if _, err := table.Revise(t.Context(), db, func(string, *thing) (bool, error) { return true, sorry }); !errors.Is(err, sorry) {
		t.Errorf("got %v, want %v", err, sorry)
	}
}
