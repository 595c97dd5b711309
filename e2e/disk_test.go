//go:build e2e

package e2e_test

import (
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"keystead/client"
	"keystead/store/storetest/disk"
)

// onDisk prepares a server whose data directory is a disk in memory that holds
// files.
func onDisk(t *testing.T, files map[string][]byte) (*server, *disk.Disk) {
	t.Helper()
	d, err := disk.Mount(files)
	if err != nil {
		t.Skip("not tested:", err)
	}
	s := prepare(t, fast...)
	s.data = d.Dir
	return s, d
}

// enrol makes keys in several goroutines until the server is gone, and returns
// those it acknowledged.
func enrol(s *server, workers int) func() []client.PSK {
	var mu sync.Mutex
	var made []client.PSK
	var working sync.WaitGroup
	for range workers {
		admin := s.admin()
		working.Go(func() {
			for {
				k, err := admin.CreatePSK(context.Background(), client.NewPSK{})
				if err != nil {
					return
				}
				mu.Lock()
				made = append(made, k)
				mu.Unlock()
			}
		})
	}
	return func() []client.PSK { working.Wait(); return made }
}

// A server whose machine loses its power has, on whatever its disk kept, all that
// it acknowledged: from the first start on, and every file it needs.
func TestPowerCutOfTheServer(t *testing.T) {
	t.Parallel()
	const cuts, each = 5, 4
	r := rand.New(rand.NewPCG(1, 2))
	var files map[string][]byte
	var all []client.PSK // acknowledged so far
	images := 0
	for cut := range cuts {
		s, d := onDisk(t, files)
		s.start()
		made := enrol(s, 8)
		time.Sleep(time.Duration(r.IntN(400)) * time.Millisecond)
		left := d.Cut()
		s.kill()
		acknowledged := append(slices.Clip(all), made()...)
		if err := d.Unmount(); err != nil {
			t.Fatal(err)
		}
		for i := range each {
			images++
			image := left.Image(i, r)
			after := prepare(t, fast...)
			if err := os.Mkdir(after.data, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := disk.Write(after.data, image); err != nil {
				t.Fatal(err)
			}
			after.start()
			found := map[string]bool{}
			for k, err := range after.admin().PSKs(t.Context(), "") {
				if err != nil {
					t.Fatal(err)
				}
				found[k.Identity] = true
			}
			for _, k := range acknowledged {
				if !found[k.Identity] {
					t.Errorf("cut %d, image %d: the key %s was acknowledged and is lost", cut, i, k.Identity)
				}
			}
			after.cli("audit", "verify")
			after.stop()
			files = image
		}
		all = acknowledged
	}
	figure(t, "%d power cuts under load, %d images of the disk: the server started on each, and had all of %d keys acknowledged", cuts, images, len(all))
}

// An fsync that fails ends the server: it must not go on from a state that may
// not be on the disk. A new start has all that was acknowledged.
func TestFsyncErrorEndsTheServer(t *testing.T) {
	t.Parallel()
	s, d := onDisk(t, nil)
	s.start()
	made := enrol(s, 8)
	s.excuse(`the outcome of the commit is unknown`) // those who asked are told of an internal error
	s.eventually("keys", func() bool { return d.Fsyncs() > 60 })
	d.FailSync(1)
	if code := s.exit(); code != 74 {
		t.Errorf("got exit code %d after an fsync error, want 74 (EX_IOERR)\n%s", code, s.logs)
	}
	acknowledged := made()
	left := d.Cut() // what the kernel still holds in memory is not to be relied on
	if err := d.Unmount(); err != nil {
		t.Fatal(err)
	}
	after := prepare(t, fast...)
	image := left.Image(0, nil)
	if err := errors.Join(os.Mkdir(after.data, 0o700), disk.Write(after.data, image)); err != nil {
		t.Fatal(err)
	}
	after.start()
	lost := 0
	for _, k := range acknowledged {
		if _, err := after.admin().Device(t.Context(), k.Device); err != nil {
			lost++
		}
	}
	if lost > 0 {
		t.Errorf("%d of %d acknowledged keys are lost", lost, len(acknowledged))
	}
	if _, err := os.Stat(filepath.Join(after.data, "admin.json")); err != nil {
		t.Error(err)
	}
	figure(t, "fsync error: the server ended with 74, and all of %d keys acknowledged were there at the next start", len(acknowledged))
}
