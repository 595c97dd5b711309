//go:build e2e

package e2e_test

import (
	"bufio"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"fmt"
	"os"
	"os/exec"
	"testing"
	"time"
)

// TestImportSurvivesKill: a factory's list is preauthorised, the server is killed in the middle,
// and the same command does the rest: no device is lost, none is there twice.
func TestImportSurvivesKill(t *testing.T) {
	s := start(t, fast...)
	const devices = 100_000
	file := s.path("factory.csv")
	writeFactory(t, file, devices)
	cmd := exec.Command(bin, "--data", s.data, "authset", "import", file)
	cmd.Dir = s.dir
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	count := func() int {
		n, err := s.admin().CountAuthDevices(t.Context(), "preauthorized")
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	s.eventually("a fifth of the devices to be there", func() bool { return count() > devices/5 })
	s.kill()
	if err := cmd.Wait(); err == nil {
		t.Fatal("the import did not notice that the server was killed")
	}
	s.start()
	had := count()
	if had == 0 || had == devices {
		t.Fatalf("%d devices were there after the kill: it came at the wrong time", had)
	}
	begin := time.Now()
	s.cli("authset", "import", file)
	took := time.Since(begin)
	if got := count(); got != devices {
		t.Errorf("got %d devices, want %d", got, devices)
	}
	s.cli("authset", "import", file) // all of it is there
	if got := count(); got != devices {
		t.Errorf("got %d devices after importing them again, want %d", got, devices)
	}
	figure(t, "%d of %d devices were there after kill -9; the rest took %s", had, devices, took.Round(100*time.Millisecond))
}

// TestImportOfAHundredThousand prints how long it takes; there is a bar on a terminal.
func TestImportOfAHundredThousand(t *testing.T) {
	s := start(t, fast...)
	const devices = 100_000
	file := s.path("factory.csv")
	writeFactory(t, file, devices)
	begin := time.Now()
	s.cli("authset", "import", file)
	figure(t, "preauthorising %d devices from CSV took %s", devices, time.Since(begin).Round(100*time.Millisecond))
	if n, err := s.admin().CountAuthDevices(t.Context(), "preauthorized"); n != devices || err != nil {
		t.Errorf("got %d devices, %v", n, err)
	}
}

// writeFactory writes a list of devices, each with a key of its own.
func writeFactory(t *testing.T, file string, devices int) {
	t.Helper()
	f, err := os.Create(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := bufio.NewWriter(f)
	fmt.Fprintln(w, "serial,mac,pubkey")
	for n := range devices {
		public, _, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		der, err := x509.MarshalPKIXPublicKey(public)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(w, "SN-%06d,02:00:00:%02x:%02x:%02x,%s\n", n, n>>16, n>>8&0xff, n&0xff, base64.StdEncoding.EncodeToString(der))
	}
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
}
