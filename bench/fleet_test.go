package main

import (
	"io"
	"os"
	"path/filepath"
	"testing"
)

// Whoever measures on a fleet relies on what is in it.
func TestFleetHasEveryCredential(t *testing.T) {
	dir := t.TempDir()
	r := &run{settings: settings{devices: 60}, ctx: t.Context(), dir: dir, fleets: map[int]*fleet{}, out: io.Discard}
	f, err := r.fleetOf(60)
	if err != nil {
		t.Fatal(err)
	}
	if len(f.some) != 60 || f.spent == 0 {
		t.Fatalf("got %d members, built in %v of CPU; want 60, and some", len(f.some), f.spent)
	}
	if _, err := os.Stat(filepath.Join(f.dir, "keystead.db")); err != nil {
		t.Fatal(err)
	}
	s, err := f.open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	for _, kind := range credentialKinds {
		proof, err := kind.proof(f.context(t.Context()), s, f.some[7])
		if err != nil {
			t.Fatalf("%s: %v", kind.name, err)
		}
		a, err := s.Resolver.Resolve(t.Context(), proof)
		if err != nil || a.ID != f.some[7].device {
			t.Errorf("%s: got %v, %v; want the device %s", kind.name, a, err, f.some[7].device)
		}
	}
}
