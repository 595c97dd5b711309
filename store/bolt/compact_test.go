package bolt_test

import (
	"bytes"
	"context"
	"errors"
	"path/filepath"
	"testing"

	"keystead/store"
	"keystead/store/bolt"
)

func TestCompact(t *testing.T) {
	file, entries := sample(t)
	dir := t.TempDir()
	compact := filepath.Join(dir, "compact.db")
	e := openFile(t, dir, file)
	for n := range 10 { // what makes pages free: a value that is written, and gone
		put(t, e, "gone", string(make([]byte, 1<<20)))
		if err := e.Update(t.Context(), func(tx store.Tx) error { return tx.Delete([]byte("gone")) }); err != nil {
			t.Fatal(n, err)
		}
	}
	var last, of int64
	if err := e.Compact(t.Context(), compact, func(done, total int64) {
		if done < last || done > total {
			t.Errorf("%d of %d bytes are done, after %d", done, total, last)
		}
		last, of = done, total
	}); err != nil {
		t.Fatal(err)
	}
	if last == 0 || last != of {
		t.Errorf("the last told was %d of %d bytes", last, of)
	}
	if report, err := bolt.CheckFile(t.Context(), compact); err != nil || report.Err() != nil {
		t.Errorf("the copy: %v, %v", err, report)
	}
	c, err := bolt.Open(compact)
	if err != nil {
		t.Fatal(err)
	}
	if before, after := e.Stats(), c.Stats(); before.FreeBytes == 0 || after.FreeBytes > before.FreeBytes/10 || after.Size >= before.Size {
		t.Errorf("%d bytes of %d were free, and %d of %d are", before.FreeBytes, before.Size, after.FreeBytes, after.Size)
	}
	got := map[string]string{}
	if err := c.View(t.Context(), func(tx store.Tx) error {
		for e, err := range tx.Scan(nil, nil) {
			if err != nil {
				return err
			}
			got[string(e.Key)] = string(e.Value)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	if len(got) != len(entries) {
		t.Errorf("%d entries of %d are in the copy", len(got), len(entries))
	}
	for k, v := range entries {
		if got[k] != v {
			t.Errorf("%q is not what it was", k)
		}
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if err := e.Compact(cancelled, filepath.Join(dir, "none.db"), nil); !errors.Is(err, context.Canceled) {
		t.Errorf("Compact = %v, want the context's error", err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*")); len(left) != 2 {
		t.Errorf("found %q, want the database and its copy", left)
	}
}

// TestCompactOfADamagedFile makes no copy of what is not what was written.
func TestCompactOfADamagedFile(t *testing.T) {
	file, _ := sample(t)
	file = bytes.ReplaceAll(file, []byte("bigbigbig"), []byte("bigBigbig"))
	dir := t.TempDir()
	e := openFile(t, dir, file)
	if err := e.Compact(t.Context(), filepath.Join(dir, "compact.db"), nil); !errors.Is(err, store.ErrCorrupt) {
		t.Errorf("Compact = %v, want that it is damaged", err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*")); len(left) != 1 {
		t.Errorf("found %q, want the database only", left)
	}
}
