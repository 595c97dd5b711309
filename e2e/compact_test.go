//go:build e2e

package e2e_test

import (
	"os"
	"path/filepath"
	"testing"
)

// A stopped server's database is written anew without what is free in it, and nothing
// else changes.
func TestCompact(t *testing.T) {
	t.Parallel()
	s := start(t)
	k := s.textPSK()
	s.cli("psk", "create", "-n", "2000", "-o", "csv")
	s.cli("backup", "create")
	for range 20 {
		s.textPSK()
	}
	s.cliFails(1, "compact") // while it runs
	s.stop()
	file := filepath.Join(s.data, "keystead.db")
	before := size(t, file)
	var looked, made struct{ Before, Free, After int64 }
	s.decode(s.cli("compact", "--dry-run", "-o", "json"), &looked)
	if looked.Free <= 0 || looked.Before != before || looked.After != 0 || size(t, file) != before {
		t.Errorf("the dry run said %+v of a file of %d bytes, which has %d now", looked, before, size(t, file))
	}
	s.decode(s.cli("compact", "-o", "json"), &made)
	if made.Before != before || made.After != size(t, file) || made.After >= before {
		t.Errorf("got %+v, and the file has %d bytes after %d", made, size(t, file), before)
	}
	s.start()
	s.cli("audit", "verify")
	c, err := s.dial(withPSK(k, k.text(t))...)
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	if w, err := c.whoami(); err != nil || w.Device != k.Device {
		t.Errorf("the device is %q, %v after, and was %q", w.Device, err, k.Device)
	}
}

func size(t *testing.T, path string) int64 {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}
