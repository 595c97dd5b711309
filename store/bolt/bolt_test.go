package bolt_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"keystead/fault"
	"keystead/store"
	"keystead/store/bolt"
	"keystead/store/storetest"
)

func TestMain(m *testing.M) {
	if path := os.Getenv(childEnv); path != "" {
		os.Exit(child(path))
	}
	goleak.VerifyTestMain(m)
}

func open(t *testing.T, opts ...bolt.Option) *bolt.Engine {
	t.Helper()
	e, err := bolt.Open(filepath.Join(t.TempDir(), "test.db"), opts...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return e
}

func TestEngine(t *testing.T) {
	storetest.Run(t, func(t *testing.T) store.Engine { return open(t) })
}

func TestTableAgainstAModel(t *testing.T) { storetest.Model(t, open(t, bolt.UnsafeNoSync())) }

func put(t *testing.T, e *bolt.Engine, key, value string) {
	t.Helper()
	if err := e.Update(t.Context(), func(tx store.Tx) error { return tx.Put([]byte(key), []byte(value)) }); err != nil {
		t.Fatal(err)
	}
}

func TestInUse(t *testing.T) {
	e := open(t)
	_, err := bolt.Open(e.Path())
	if !errors.Is(err, store.ErrInUse) || !strings.Contains(err.Error(), "stop the other process first") {
		t.Errorf("the second Open = %v, want ErrInUse and what to do", err)
	}
	if _, err := bolt.CheckFile(t.Context(), e.Path()); !errors.Is(err, store.ErrInUse) {
		t.Errorf("CheckFile = %v, want ErrInUse", err)
	}
	put(t, e, "a", "1") // the first is not disturbed
}

func TestWhatIsWrittenIsThereAfterwards(t *testing.T) {
	e := open(t)
	put(t, e, "a", "1")
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(e.Path())
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the file's mode is %v, %v, want 0600", info.Mode(), err)
	}
	again, err := bolt.Open(e.Path())
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if err := again.View(t.Context(), func(tx store.Tx) error {
		if v, err := tx.Get([]byte("a")); err != nil || string(v) != "1" {
			t.Errorf("Get = %q, %v after the file was opened again, want 1", v, err)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

// TestUpdatesShareCommits has many writers and looks at how many commits there
// were, and how often functions ran.
func TestUpdatesShareCommits(t *testing.T) {
	e := open(t)
	const n, each = 64, 20
	var runs atomic.Int64
	var wg sync.WaitGroup
	for w := range n {
		wg.Go(func() {
			for i := range each {
				err := e.Update(t.Context(), func(tx store.Tx) error {
					runs.Add(1)
					if err := tx.Put(fmt.Appendf(nil, "%d/%d", w, i), nil); err != nil {
						return err
					}
					if i%4 == 0 {
						return errMeant
					}
					return nil
				})
				if (i%4 == 0) != errors.Is(err, errMeant) {
					t.Errorf("update %d of writer %d: %v", i, w, err)
				}
			}
		})
	}
	wg.Wait()
	if got := runs.Load(); got != n*each {
		t.Errorf("functions ran %d times, want %d: a failed update made others run again", got, n*each)
	}
	s := e.Stats()
	t.Logf("%d updates of %d writers in %d commits", s.Updates, n, s.Commits)
	if s.Commits*4 > n*each {
		t.Errorf("%d updates took %d commits, want them to share", n*each, s.Commits)
	}
}

func TestFunctionThatEndsItsGoroutine(t *testing.T) {
	e := open(t)
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			err := e.Update(t.Context(), func(tx store.Tx) error {
				if err := tx.Put(fmt.Append(nil, i), nil); err != nil {
					return err
				}
				if i%2 == 0 {
					runtime.Goexit() // as t.FailNow does
				}
				return nil
			})
			if (err != nil) != (i%2 == 0) {
				t.Errorf("update %d: %v", i, err)
			}
		})
	}
	wg.Wait()
	report, err := e.Check(t.Context())
	if err != nil || report.Entries != 10 {
		t.Errorf("%d entries, %v, want those of the 10 others", report.Entries, err)
	}
}

// TestMaxSize fills a database to its size: large updates fail, small ones and
// deletions in the same batch may succeed, and room that is made can be used.
func TestMaxSize(t *testing.T) {
	e := open(t, bolt.MaxSize(6<<20))
	big := make([]byte, 64<<10)
	full := 0
	written := 0
	for i := 0; full < 3; i++ {
		err := e.Update(t.Context(), func(tx store.Tx) error { return tx.Put(fmt.Appendf(nil, "big%03d", i), big) })
		switch {
		case fault.Is(err, fault.Full):
			full++
		case err != nil:
			t.Fatal(err)
		default:
			written++
		}
		if i > 200 {
			t.Fatal("the limit is not kept")
		}
	}
	if s := e.Stats(); s.Size > 6<<20 || s.MaxSize != 6<<20 || s.FailedCommits == 0 {
		t.Errorf("Stats = %+v, want a size of 6 MiB at most, and failed commits", s)
	}
	// Together with one that does not fit, others must not fail.
	var wg sync.WaitGroup
	var small, large atomic.Int64
	for i := range 20 {
		wg.Go(func() {
			if err := e.Update(t.Context(), func(tx store.Tx) error { return tx.Put(fmt.Append(nil, "small", i), nil) }); err == nil {
				small.Add(1)
			}
		})
		wg.Go(func() {
			err := e.Update(t.Context(), func(tx store.Tx) error { return tx.Put(fmt.Append(nil, "large", i), make([]byte, 3<<20)) })
			if fault.Is(err, fault.Full) {
				large.Add(1)
			}
		})
	}
	wg.Wait()
	if small.Load() != 20 || large.Load() != 20 {
		t.Errorf("%d of 20 small updates succeeded, %d of 20 large ones were refused as Full", small.Load(), large.Load())
	}
	select {
	case <-e.Failed():
		t.Errorf("a full database stopped all writing: %v", e.Err())
	default:
	}
	if err := e.Update(t.Context(), func(tx store.Tx) error {
		for i := range written {
			if err := tx.Delete(fmt.Appendf(nil, "big%03d", i)); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		t.Errorf("deleting from a full database: %v", err)
	}
	put(t, e, "made room", "")
	put(t, e, "after", string(make([]byte, 1<<20)))
	if _, err := e.Check(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestSnapshot(t *testing.T) {
	e := open(t)
	pair := func(tx store.Tx, i int) error {
		return errors.Join(tx.Put([]byte("a"), fmt.Append(nil, i)), tx.Put([]byte("b"), fmt.Append(nil, i)), tx.Put(fmt.Append(nil, "k", i), make([]byte, 500)))
	}
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				if err := e.Update(t.Context(), func(tx store.Tx) error { return pair(tx, i*4+w) }); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	dir := t.TempDir()
	for i := range 10 {
		path := filepath.Join(dir, "backup.db") // the one before is replaced
		if err := e.Snapshot(t.Context(), path); err != nil {
			t.Fatal(err)
		}
		if report, err := bolt.CheckFile(t.Context(), path); err != nil || report.Err() != nil {
			t.Errorf("snapshot %d: %v, %v", i, err, report)
		}
		copied, err := bolt.Open(path)
		if err != nil {
			t.Fatal(err)
		}
		if err := copied.View(t.Context(), func(tx store.Tx) error {
			a, err := tx.Get([]byte("a"))
			b, err2 := tx.Get([]byte("b"))
			if string(a) != string(b) {
				t.Errorf("snapshot %d is of no moment: a = %q, b = %q", i, a, b)
			}
			return errors.Join(err, err2)
		}); err != nil {
			t.Error(err)
		}
		if err := copied.Close(); err != nil {
			t.Error(err)
		}
	}
	stop()
	wg.Wait()
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if err := e.Snapshot(cancelled, filepath.Join(dir, "none.db")); !errors.Is(err, context.Canceled) {
		t.Errorf("Snapshot = %v, want the context's error", err)
	}
	if err := e.Snapshot(t.Context(), filepath.Join(dir, "none", "x.db")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("Snapshot into no directory = %v", err)
	}
	left, _ := filepath.Glob(filepath.Join(dir, "*"))
	if len(left) != 1 {
		t.Errorf("found %q, want the one backup", left)
	}
}

func TestLongReadIsTold(t *testing.T) {
	path := filepath.Join(t.TempDir(), "test.db")
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		e, err := bolt.Open(path, bolt.Log(slog.New(slog.NewTextHandler(&log, nil))))
		if err != nil {
			t.Fatal(err)
		}
		wait := func(d time.Duration) {
			if err := e.View(t.Context(), func(store.Tx) error { time.Sleep(d); return nil }); err != nil {
				t.Error(err)
			}
		}
		wait(500 * time.Millisecond)
		if log.Len() > 0 {
			t.Errorf("a read of half a second is told of: %s", log.String())
		}
		wait(3 * time.Second)
		if got := strings.Count(log.String(), "level=WARN"); got != 2 {
			t.Errorf("a read of three seconds is told of %d times, want at its first second and its end:\n%s", got, log.String())
		}
		if got := e.Stats(); got.LongestView < 3*time.Second || got.Views != 2 || got.OldestView != 0 {
			t.Errorf("Stats = %+v, want the longest read of 3 s, of 2", got)
		}
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
}

func TestStats(t *testing.T) {
	e := open(t)
	put(t, e, "a", "1")
	put(t, e, "a", "2")
	if err := e.View(t.Context(), func(store.Tx) error {
		if s := e.Stats(); s.OpenViews != 1 || s.OldestView <= 0 {
			t.Errorf("Stats in a View = %+v, want it counted", s)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	s := e.Stats()
	if s.Commits != 2 || s.Updates != 2 || s.CommitTime <= 0 || s.LongestCommit <= 0 || s.LongestCommit > s.CommitTime || s.Size <= 0 || s.FreeBytes <= 0 || s.FailedCommits != 0 {
		t.Errorf("Stats = %+v after two commits", s)
	}
}
