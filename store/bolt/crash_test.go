package bolt_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"keystead/store/storetest/disk"
)

// TestKilled kills a process that changes a database, at random moments and at
// every nth write, fsync and truncation of its file: whatever was acknowledged is
// there, nothing is torn.
func TestKilled(t *testing.T) {
	t.Parallel()
	total := rounds(t, 500)
	_, err := exec.LookPath("strace")
	if err != nil {
		t.Log("strace is not installed: all kills are at random moments, none at a chosen system call")
	}
	r := rand.New(rand.NewPCG(1, 2))
	calls := []string{"pwrite64", "fdatasync", "ftruncate", "linkat", "fsync"}
	dir := t.TempDir()
	path := filepath.Join(dir, "test.db")
	var from acked
	acks, atCall := 0, 0
	for round := range total {
		if round%20 == 0 { // the first start, too, may be killed at any moment
			os.RemoveAll(path)
			from = acked{}
		}
		var p *process
		if err == nil && round%2 == 0 {
			call := calls[0]
			switch n := round / 2; {
			case n%20 == 0:
				call = calls[2+n/20%3]
			case n%3 == 0:
				call = calls[1]
			}
			when := 1 + round/4%60
			if call != "pwrite64" && call != "fdatasync" {
				when = 1 + round%3
			}
			p = start(t, path, "", from, "strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace="+call, "-e", fmt.Sprintf("inject=%s:signal=SIGKILL:when=%d", call, when))
			select {
			case <-p.ended:
				atCall++
			case <-time.After(400 * time.Millisecond): // the call does not come so often
			}
		} else {
			p = start(t, path, "", from)
			time.Sleep(time.Duration(r.IntN(60_000)) * time.Microsecond)
		}
		p.kill()
		if p.stderr.Len() > 0 {
			t.Errorf("round %d: %s", round, p.stderr.String())
		}
		acks += p.acks
		if _, err := os.Stat(path); os.IsNotExist(err) && p.acked == (acked{}) {
			continue // killed before there was a database
		}
		var bad error
		if from, bad = verify(t.Context(), path, p.acked); bad != nil {
			t.Fatalf("round %d, after kill -9: %v", round, bad)
		}
	}
	leftovers(t, dir)
	t.Logf("figure: kill -9: %d times, %d of them at a chosen system call, %d updates acknowledged: 0 lost, 0 torn", total, atCall, acks)
}

// leftovers looks what killed first starts left behind: only what can be told
// apart from a database.
func leftovers(t *testing.T, dir string) {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if ok, _ := filepath.Match("test.db.new-*", filepath.Base(name)); !ok && filepath.Base(name) != "test.db" {
			t.Errorf("found %s", name)
		}
	}
}

// TestPowerCut cuts the power of a disk while a process changes a database on
// it, and looks at many of the states the disk may be found in. The negative
// control does the same without fsync: it must be found damaged.
func TestPowerCut(t *testing.T) {
	t.Parallel()
	d, err := disk.Mount(nil)
	if err != nil {
		t.Skip("power cuts were not tested:", err)
	}
	if err := d.Unmount(); err != nil {
		t.Fatal(err)
	}
	const each = 8
	images, bad, acks, unsynced := powerCuts(t, "", (rounds(t, 1000)+each-1)/each, each)
	t.Logf("figure: power cut: %d images of %d cuts, %d cuts with unsynced writes, %d updates acknowledged: %d bad", images, images/each, unsynced, acks, bad)
	if bad > 0 {
		t.Errorf("%d of %d images are bad, want none", bad, images)
	}
	images, bad, _, _ = powerCuts(t, "nosync", 5, each)
	t.Logf("figure: power cut without fsync, the negative control: %d of %d images bad", bad, images)
	if bad < images*9/10 {
		t.Errorf("without fsync only %d of %d images are bad: the test does not see what it should", bad, images)
	}
}

func powerCuts(t *testing.T, mode string, cuts, each int) (images, bad, acks, unsynced int) {
	t.Helper()
	r := rand.New(rand.NewPCG(3, 4))
	dir := memory(t)
	var files map[string][]byte
	var from acked
	for cut := range cuts {
		if cut%10 == 0 {
			files, from = nil, acked{}
		}
		d, err := disk.Mount(files)
		if err != nil {
			t.Fatal(err)
		}
		p := start(t, filepath.Join(d.Dir, "test.db"), mode, from)
		if mode != "" { // what is never synced is lost once there is enough of it
			p.until(func() bool { return p.acks > 20 })
		} else {
			time.Sleep(time.Duration(5_000+r.IntN(80_000)) * time.Microsecond)
		}
		left := d.Cut()
		p.kill() // what it acknowledges until then rests on an fsync from before the cut
		if err := d.Unmount(); err != nil {
			t.Fatal(err)
		}
		acks += p.acks
		if left.Pending > 0 {
			unsynced++
		}
		for i := range each {
			if mode != "" && i == 1 {
				continue // of everything written nothing is missing, fsync or not
			}
			image := left.Image(i, r)
			images++
			got, err := inspect(t, dir, image, p.acked)
			if err != nil {
				bad++
				if mode == "" {
					t.Errorf("cut %d, image %d, %d operations pending: %v", cut, i, left.Pending, err)
				}
				continue
			}
			if i == 0 || r.IntN(each) == 0 { // the next cut goes on from one of the images
				files, from = image, got
			}
		}
	}
	return images, bad, acks, unsynced
}

// inspect verifies the database among the files of an image. There may be none
// while nothing was acknowledged.
func inspect(t *testing.T, dir string, files map[string][]byte, want acked) (acked, error) {
	t.Helper()
	path := filepath.Join(dir, "test.db")
	os.Remove(path)
	b, there := files["test.db"]
	if !there && want == (acked{}) {
		return want, nil
	}
	if !there {
		return want, errors.New("the database is gone")
	}
	if err := disk.Write(dir, map[string][]byte{"test.db": b}); err != nil {
		t.Fatal(err)
	}
	return verify(t.Context(), path, want)
}

// memory returns a directory on a file system in memory, if there is one: what
// is verified there needs no disk.
func memory(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "keystead-*") //nolint:usetesting // t.TempDir is on a disk
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

// TestDiskFull fills the disk: updates fail and say so, reads go on, nothing is
// lost, and once there is room again updates succeed without a restart.
func TestDiskFull(t *testing.T) {
	t.Parallel()
	d, err := disk.Mount(nil)
	if err != nil {
		t.Skip("a full disk was not tested:", err)
	}
	d.SetLimit(400 << 10)
	p := start(t, filepath.Join(d.Dir, "test.db"), "through", acked{})
	if !p.until(func() bool { return p.full >= 40 }) {
		t.Fatalf("the process ended on a full disk: %s", p.stderr.String())
	}
	p.mu.Lock()
	before, full := p.acks, p.full
	p.mu.Unlock()
	d.SetLimit(0)
	if !p.until(func() bool { return p.acks >= before+40 }) {
		t.Fatalf("the process ended when there was room again: %s", p.stderr.String())
	}
	p.kill()
	files := d.Files()
	if err := d.Unmount(); err != nil {
		t.Fatal(err)
	}
	if _, err := inspect(t, memory(t), files, p.acked); err != nil {
		t.Errorf("after a full disk: %v", err)
	}
	t.Logf("figure: disk full: %d updates refused, reads went on, %d accepted before and %d after there was room, without a restart: 0 lost, file intact", full, before, p.acks-before)
}

// TestFsyncFails has each fsync in turn fail: the process must report that the
// outcome is unknown and stop writing, and what was acknowledged must be on the
// platter.
func TestFsyncFails(t *testing.T) {
	t.Parallel()
	dir := memory(t)
	r := rand.New(rand.NewPCG(5, 6))
	tried, images := 0, 0
	for n := 1; n <= rounds(t, 30); n++ {
		d, err := disk.Mount(nil)
		if err != nil {
			t.Skip("failing fsyncs were not tested:", err)
		}
		p := start(t, filepath.Join(d.Dir, "test.db"), "", acked{})
		if !p.until(func() bool { return p.acks >= 10 }) {
			t.Fatalf("the process ended: %s", p.stderr.String())
		}
		d.FailSync(n)
		<-p.ended // by itself, once every writer was refused
		tried++
		if p.unknown == 0 {
			t.Errorf("fsync %d: no writer was told that the outcome is unknown: %s", n, p.stderr.String())
		}
		cut := d.Cut()
		if err := d.Unmount(); err != nil {
			t.Fatal(err)
		}
		for i := range 4 {
			images++
			if _, err := inspect(t, dir, cut.Image(i, r), p.acked); err != nil {
				t.Errorf("fsync %d failed, image %d: %v", n, i, err)
			}
		}
	}
	t.Logf("figure: fsync error: %d times, each time writing stopped; %d images after it: 0 acknowledged updates lost", tried, images)
}
