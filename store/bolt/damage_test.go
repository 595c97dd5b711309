package bolt_test

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.etcd.io/bbolt"

	"keystead/store"
	"keystead/store/bolt"
)

// sample makes a database and returns what its file and its entries are.
func sample(t *testing.T) (file []byte, entries map[string]string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "test.db")
	e, err := bolt.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	entries = map[string]string{}
	r := rand.New(rand.NewPCG(7, 8))
	for range 20 {
		if err := e.Update(t.Context(), func(tx store.Tx) error {
			for range 100 {
				k, v := fmt.Sprintf("table\x00r\x00%06d", r.IntN(100_000)), strings.Repeat(string(rune('a'+r.IntN(26))), r.IntN(300))
				entries[k] = v
				if err := tx.Put([]byte(k), []byte(v)); err != nil {
					return err
				}
			}
			big := strings.Repeat("big", 5000)
			entries["table\x00big"] = big
			return tx.Put([]byte("table\x00big"), []byte(big))
		}); err != nil {
			t.Fatal(err)
		}
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	file, err = os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return file, entries
}

// openFile opens a database that is file, test.db of dir.
func openFile(t *testing.T, dir string, file []byte) *bolt.Engine {
	t.Helper()
	path := filepath.Join(dir, "test.db")
	if err := os.WriteFile(path, file, 0o600); err != nil {
		t.Fatal(err)
	}
	e, err := bolt.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { e.Close() })
	return e
}

// TestDamagedFile opens files damaged in every way there is. None may end the
// process, none may make it return what was not written, and where a check finds
// nothing all must be there.
func TestDamagedFile(t *testing.T) {
	t.Parallel()
	whole, entries := sample(t)
	path := filepath.Join(memory(t), "test.db")
	r := rand.New(rand.NewPCG(9, 10))
	last := len(bytes.TrimRight(whole, "\x00"))

	tried, refused, found, harmless := 0, 0, 0, 0
	try := func(name string, file []byte, meta bool) {
		tried++
		if err := os.WriteFile(path, file, 0o600); err != nil {
			t.Fatal(err)
		}
		got, err := use(t, path, entries)
		if err != nil {
			refused++
			polite(t, name, path, err)
			return
		}
		report, err := bolt.CheckFile(t.Context(), path)
		if err == nil {
			err = report.Err()
		}
		if err != nil {
			found++
			return
		}
		harmless++
		if !meta && !maps.Equal(got, entries) { // an older header is a whole state, too
			t.Errorf("%s: a check finds nothing, but %d of %d entries are there", name, len(got), len(entries))
		}
	}

	flips := rounds(t, 400)
	for i := range flips {
		file := bytes.Clone(whole)
		at := r.IntN(last - 8)
		switch i % 4 {
		case 0: // in the head of a page, where it hurts
			at = at/4096*4096 + r.IntN(32)
		case 1: // in the headers of the file
			at = r.IntN(2 * 4096)
		}
		for n := range 8 {
			file[at+n] ^= byte(1 + r.IntN(255))
		}
		try(fmt.Sprintf("8 bytes at %d", at), file, at < 2*4096)
	}
	for i := range flips / 4 {
		file := bytes.Clone(whole)
		page := r.IntN(last / 4096)
		name := "zeros"
		part := file[page*4096 : (page+1)*4096]
		if i%2 == 0 {
			clear(part)
		} else {
			name = "another page"
			other := r.IntN(last / 4096)
			copy(part, whole[other*4096:])
		}
		try(fmt.Sprintf("%s over page %d", name, page), file, page < 2)
	}
	for _, size := range []int{1, 100, 4095, 4096, 4097, 8192, 8193, 12288, 16384, 16385, 32768, last / 2, last - 4096, last - 1} {
		try(fmt.Sprintf("cut to %d bytes", size), whole[:size], false)
	}
	for _, metas := range [][]int{{0}, {1}, {0, 1}} {
		file := bytes.Clone(whole)
		for _, m := range metas {
			clear(file[m*4096 : (m+1)*4096])
		}
		try(fmt.Sprintf("headers %v are zeros", metas), file, true)
	}
	random := make([]byte, 100_000)
	for i := range random {
		random[i] = byte(r.Uint32())
	}
	try("random bytes", random, false)
	try("an empty file", nil, false)
	try("a text", bytes.Repeat([]byte("Lorem ipsum dolor sit amet. "), 2000), false)
	t.Logf("figure: damaged file: %d kinds, %d refused at open, %d found by the check, %d without effect: no crash, no wrong value", tried, refused, found, harmless)
}

// use does with a database what a server does, and returns what it holds.
func use(t *testing.T, path string, want map[string]string) (map[string]string, error) {
	t.Helper()
	before, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	e, err := bolt.Open(path)
	if err != nil {
		return nil, err
	}
	defer e.Close()
	got := map[string]string{}
	_ = e.View(t.Context(), func(tx store.Tx) error {
		for entry, err := range tx.Scan(nil, nil) {
			if err != nil {
				return err // what is behind a damaged page cannot be reached by a scan
			}
			got[string(entry.Key)] = string(entry.Value)
		}
		return nil
	})
	for k := range want {
		_ = e.View(t.Context(), func(tx store.Tx) error {
			if v, err := tx.Get([]byte(k)); err == nil && v != nil {
				got[k] = string(v)
			}
			return nil
		})
	}
	for k, v := range got {
		// The sample writes some keys twice: an older header may lead to the value
		// before. All values are of one letter repeated, which damage would break.
		if w, ok := want[k]; !ok || v != w && strings.Trim(v, v[:min(1, len(v))]) != "" {
			t.Errorf("%s: a value that was not written: %q = %.40q", path, k, v)
		}
	}
	_, _ = e.Check(t.Context())
	for i := range 3 { // errors of writes are fine, crashes are not
		_ = e.Update(t.Context(), func(tx store.Tx) error {
			return errors.Join(tx.Put(fmt.Appendf(nil, "table\x00r\x00%06d", i*33_333), make([]byte, 300)), tx.Delete([]byte("table\x00big")))
		})
	}
	if err := e.Close(); err != nil {
		t.Errorf("Close: %v", err)
	}
	return got, os.WriteFile(path, before, 0o600) // for the check, as it was
}

// polite looks whether an error tells what it is about and what to do, in one
// line.
func polite(t *testing.T, name, path string, err error) {
	t.Helper()
	msg := err.Error()
	if !errors.Is(err, store.ErrCorrupt) || !strings.Contains(msg, path) || !strings.Contains(msg, "keystead restore") ||
		strings.Contains(msg, "\n") || strings.Contains(msg, "goroutine") || len(msg) > 400 {
		t.Errorf("%s: the error is %q; want one line with the file and what to do, of the kind ErrCorrupt", name, msg)
	}
}

// TestDamagedRecord flips a bit of one value: it is an error to read, everything
// else goes on, writes too, and the check names it.
func TestDamagedRecord(t *testing.T) {
	file, _ := sample(t)
	at := bytes.LastIndex(file, []byte("bigbigbig"))
	file[at] ^= 1
	e := openFile(t, t.TempDir(), file)
	key := []byte("table\x00big")
	read := func(tx store.Tx) error { _, err := tx.Get(key); return err }
	if err := e.View(t.Context(), read); !errors.Is(err, store.ErrCorrupt) {
		t.Errorf("Get in a View = %v, want ErrCorrupt", err)
	}
	if err := e.Update(t.Context(), read); !errors.Is(err, store.ErrCorrupt) {
		t.Errorf("Get in an Update = %v, want ErrCorrupt", err)
	}
	n := 0
	if err := e.View(t.Context(), func(tx store.Tx) error {
		for _, err := range tx.Scan([]byte("table\x00r\x00"), nil) {
			if err != nil {
				return err
			}
			n++
		}
		return nil
	}); err != nil || n == 0 {
		t.Errorf("a scan of the others sees %d entries, %v", n, err)
	}
	report, err := e.Check(t.Context())
	if err != nil || report.Damaged != 1 || len(report.Bad) != 1 || !bytes.Equal(report.Bad[0].Key, key) || !errors.Is(report.Err(), store.ErrCorrupt) {
		t.Errorf("Check = %+v, %v, want the one damaged entry", report, err)
	}
	// Writing it anew mends it.
	if err := e.Update(t.Context(), func(tx store.Tx) error { return tx.Put(key, []byte("new")) }); err != nil {
		t.Errorf("Put over a damaged entry = %v", err)
	}
	if report, err := e.Check(t.Context()); err != nil || report.Err() != nil {
		t.Errorf("Check after it was written anew = %v, %v", err, report.Err())
	}
}

func TestForeignFiles(t *testing.T) {
	dir := t.TempDir()
	make := func(name string, fill func(*bbolt.Tx) error) string {
		path := filepath.Join(dir, name)
		db, err := bbolt.Open(path, 0o600, nil)
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(db.Update(fill), db.Close()); err != nil {
			t.Fatal(err)
		}
		return path
	}
	bucket := func(name string, pairs ...string) func(*bbolt.Tx) error {
		return func(tx *bbolt.Tx) error {
			b, err := tx.CreateBucketIfNotExists([]byte(name))
			for i := 0; err == nil && i < len(pairs); i += 2 {
				err = b.Put([]byte(pairs[i]), []byte(pairs[i+1]))
			}
			return err
		}
	}
	ours := func(schema string) func(*bbolt.Tx) error {
		return func(tx *bbolt.Tx) error {
			return errors.Join(bucket("kv")(tx), bucket("keystead", "schema", schema)(tx))
		}
	}
	for _, test := range []struct {
		name, path, want string
		is               error
	}{
		{"another program's", make("other.db", bucket("x509_certs", "serial", "cert")), "of another program", nil},
		{"one with a bucket of the same name", make("kv.db", bucket("kv", "a", "b")), "of another program", nil},
		{"one of a newer version", make("newer.db", ours("99")), "run that version", store.ErrNewer},
		{"one without a schema", make("none.db", ours("")), "keystead restore", store.ErrCorrupt},
		{"a directory", dir, "is not a file", nil},
		{"one in no directory", filepath.Join(dir, "none", "test.db"), "no such file or directory", os.ErrNotExist},
	} {
		before, _ := os.ReadFile(test.path)
		_, err := bolt.Open(test.path)
		if err == nil || !strings.Contains(err.Error(), test.want) || test.is != nil && !errors.Is(err, test.is) {
			t.Errorf("%s: Open = %v, want an error with %q, in its tree %v", test.name, err, test.want, test.is)
		}
		if after, _ := os.ReadFile(test.path); !bytes.Equal(before, after) {
			t.Errorf("%s was changed", test.name)
		}
	}
}
