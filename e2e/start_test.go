//go:build e2e

package e2e_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestFirstStart(t *testing.T) {
	t.Parallel()
	s := start(t)
	for name, mode := range map[string]os.FileMode{"admin.json": 0o600, "keystead.db": 0o600, ".": 0o700} {
		info, err := os.Stat(filepath.Join(s.data, name))
		if err != nil {
			t.Fatal(err)
		}
		if got := info.Mode().Perm(); got != mode {
			t.Errorf("%s: got mode %v, want %v", name, got, mode)
		}
	}
	if !strings.Contains(s.out.String(), s.at.HTTPS) || !strings.Contains(s.out.String(), "admin.json") {
		t.Errorf("got %q, want it to say where things are", s.out)
	}
	s.stop()
	if _, err := os.Stat(filepath.Join(s.data, "endpoints.json")); !os.IsNotExist(err) {
		t.Errorf("endpoints.json is still there: %v", err)
	}
}

func TestASecondServerOnTheSameDataIsRefused(t *testing.T) {
	t.Parallel()
	s := start(t)
	r := s.cliFails(1, append([]string{"serve"}, s.args...)...)
	if !strings.Contains(r.err, "in use by another process") || !strings.Contains(r.err, "hint: ") {
		t.Errorf("got %q", r.err)
	}
}
