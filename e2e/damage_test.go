//go:build e2e

package e2e_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"keystead/client"
)

// A database that is not what it was is refused in a line that says what to do.
func TestADamagedDatabaseIsRefused(t *testing.T) {
	t.Parallel()
	s := start(t)
	for range 20 {
		s.textPSK()
	}
	s.stop()
	file := filepath.Join(s.data, "keystead.db")
	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for name, damage := range map[string]func([]byte) []byte{
		"empty":               func([]byte) []byte { return nil },
		"cut to one page":     func(b []byte) []byte { return b[:4096] },
		"cut to four pages":   func(b []byte) []byte { return b[:4*4096] },
		"cut in a page":       func(b []byte) []byte { return b[:5*4096+100] },
		"both headers zeroed": func(b []byte) []byte { clear(b[:2*4096]); return b },
		"of another program":  func(b []byte) []byte { copy(b, "SQLite format 3\x00"); clear(b[16 : 2*4096]); return b },
		"overwritten": func(b []byte) []byte {
			for i := 2 * 4096; i < len(b); i++ {
				b[i] = 0xa5
			}
			return b
		},
	} {
		if err := os.WriteFile(file, damage(append([]byte(nil), whole...)), 0o600); err != nil {
			t.Fatal(err)
		}
		r := s.run(bin, append([]string{"serve", "--data", s.data}, s.args...)...)
		if r.code != 65 {
			t.Errorf("%s: got exit code %d, want 65", name, r.code)
		}
		first, _, _ := strings.Cut(r.err, "\n")
		if !strings.HasPrefix(first, "keystead: ") || !strings.Contains(first, "restore") || !strings.Contains(first, file) || strings.Count(r.err, "\n") > 1 {
			t.Errorf("%s: got %q, want one line that names the file and what to do", name, r.err)
		}
	}
	if err := os.WriteFile(file, whole, 0o600); err != nil {
		t.Fatal(err)
	}
	s.start() // and whole again it is served
}

// When the disk is full changes are refused, everything else goes on, and when
// there is space again changes are taken, without a restart.
func TestAFullDisk(t *testing.T) {
	t.Parallel()
	namespaced(t, "--mount")
	s := prepare(t, fast...)
	data := s.data
	if err := os.Mkdir(data, 0o700); err != nil {
		t.Fatal(err)
	}
	// A disk of its own, of 20 MB, in a mount namespace of its own: the server is
	// the process that unshare becomes.
	s.launch("unshare", append([]string{
		"--map-root-user", "--mount", "sh", "-c",
		`mount -t tmpfs -o size=20m,mode=700 tmpfs "$0" && head -c 9m /dev/zero >"$0/ballast" && exec "$@"`,
		data, bin, "serve", "--data", data,
	}, s.args...)...)
	s.data = fmt.Sprintf("/proc/%d/root%s", s.cmd.Process.Pid, data)
	s.ready()
	k := s.textPSK()

	comment := strings.Repeat("x", 1000)
	made, full := 0, error(nil)
	for full == nil && made < 100_000 {
		if _, full = s.admin().CreateDevice(t.Context(), client.NewDevice{Name: fmt.Sprintf("device %d", made), Comment: comment}); full == nil {
			made++
		}
	}
	if !client.IsStatus(full, 507) || !strings.Contains(full.Error(), "make room") {
		t.Fatalf("after %d devices: got %v, want 507 and that the disk is full", made, full)
	}
	count := func() (n int) {
		for _, err := range s.admin().Devices(t.Context(), client.DeviceFilter{}) {
			if err != nil {
				t.Fatalf("reading while the disk is full: %v", err)
			}
			n++
		}
		return n
	}
	if got, want := count(), made+1; got != want {
		t.Errorf("got %d devices while the disk is full, want %d", got, want)
	}
	c := s.mustDial(withPSK(k, k.text(t))...)
	w, err := c.whoami()
	if err != nil {
		t.Fatalf("a device while the disk is full: %v", err)
	}
	w.isDevice(s, k.Device, "psk")

	if err := os.Remove(filepath.Join(s.data, "ballast")); err != nil {
		t.Fatal(err)
	}
	s.eventually("changes to be taken again", func() bool {
		_, err := s.admin().CreateDevice(t.Context(), client.NewDevice{Name: "after"})
		return err == nil
	})
	if got, want := count(), made+2; got != want {
		t.Errorf("got %d devices after the disk was full, want %d", got, want)
	}
	figure(t, "full disk: %d devices fit, then 507; served again without a restart once there was space", made)
}
