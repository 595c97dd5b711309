package audit_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"keystead/audit"
	"keystead/fault"
	"keystead/identity"
	"keystead/page"
	"keystead/store"
	"keystead/store/bolt"
)

// world is a trail over a store of its own, with a clock the test moves.
type world struct {
	*audit.Log
	now time.Time
}

func newWorld(t testing.TB) *world {
	t.Helper()
	// Nothing here is about losing power.
	db, err := bolt.Open(filepath.Join(t.TempDir(), "audit.db"), bolt.UnsafeNoSync())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	w := &world{now: time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)}
	w.Log = &audit.Log{DB: db, Key: bytes.Repeat([]byte{5}, 32), Now: func() time.Time { return w.now }}
	return w
}

// as is a context of an administrator of org.
func as(t testing.TB, org string) context.Context {
	t.Helper()
	return identity.NewContext(t.Context(), identity.Actor{Kind: identity.User, ID: "admin", Org: org, Credential: identity.Credential{Kind: identity.APIKey}})
}

func (w *world) append(ctx context.Context, t testing.TB, entries ...audit.Entry) {
	t.Helper()
	err := w.DB.Update(ctx, func(tx store.Tx) error {
		for _, e := range entries {
			if err := w.Append(ctx, tx, e); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// fill writes n records, every second one of the same device.
func (w *world) fill(t testing.TB, n int) {
	t.Helper()
	entries := make([]audit.Entry, n)
	for i := range entries {
		entries[i] = audit.Entry{Action: "psk.create", Target: fmt.Sprint("key ", i), Detail: map[string]string{"a": "1", "b": "2"}}
		if i%2 == 0 {
			entries[i].Device = "device"
		}
	}
	w.append(as(t, "org"), t, entries...)
}

// raw returns every key and value of the store that begins with prefix.
func (w *world) raw(t testing.TB, prefix string) []store.Entry {
	t.Helper()
	var all []store.Entry
	err := w.DB.View(t.Context(), func(tx store.Tx) error {
		for e, err := range tx.Scan([]byte(prefix), nil) {
			if err != nil {
				return err
			}
			all = append(all, store.Entry{Key: bytes.Clone(e.Key), Value: bytes.Clone(e.Value)})
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// tamper changes the store behind the trail's back; an entry without a value is
// removed.
func (w *world) tamper(t testing.TB, entries ...store.Entry) {
	t.Helper()
	err := w.DB.Update(t.Context(), func(tx store.Tx) error {
		for _, e := range entries {
			err := tx.Delete(e.Key)
			if e.Value != nil {
				err = tx.Put(e.Key, e.Value)
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// putBack makes the whole trail what it was.
func (w *world) putBack(t testing.TB, old []store.Entry) {
	t.Helper()
	gone := w.raw(t, "audit ")
	for i := range gone {
		gone[i].Value = nil
	}
	w.tamper(t, append(gone, old...)...)
}

const (
	recordKeys = "audit record\x00r\x00"
	endKeys    = "audit end\x00r\x00"
)

func (w *world) found(t testing.TB, what string, against ...audit.Checkpoint) {
	t.Helper()
	if _, err := w.Verify(t.Context(), against...); !errors.Is(err, audit.ErrTampered) {
		t.Errorf("%s: got %v, want %v", what, err, audit.ErrTampered)
	}
}

func (w *world) sound(t testing.TB, what string, against ...audit.Checkpoint) audit.Report {
	t.Helper()
	r, err := w.Verify(t.Context(), against...)
	if err != nil {
		t.Errorf("%s: %v", what, err)
	}
	return r
}

func (w *world) checkpoint(t testing.TB) audit.Checkpoint {
	t.Helper()
	c, ok, err := w.Checkpoint(t.Context())
	if err != nil || !ok {
		t.Fatalf("got %t, %v, want a checkpoint", ok, err)
	}
	return c
}

// Each record of a trail of 300 is changed, removed, swapped with the next,
// and made the last: every time, Verify says so.
func TestTamperingIsFound(t *testing.T) {
	n := 300
	if testing.Short() {
		n = 100
	}
	w := newWorld(t)
	w.fill(t, n)
	all := w.raw(t, recordKeys)
	if len(all) != n {
		t.Fatalf("got %d records in the store, want %d", len(all), n)
	}
	if r := w.sound(t, "untouched"); r.Records != uint64(n) {
		t.Fatalf("got %+v, want %d records", r, n)
	}
	counts := map[string]int{}
	try := func(what string, change, back []store.Entry) {
		w.tamper(t, change...)
		w.found(t, what)
		w.tamper(t, back...)
		counts[strings.Fields(what)[0]]++
	}
	for i, e := range all {
		flipped := store.Entry{Key: e.Key, Value: bytes.Clone(e.Value)}
		flipped.Value[(i*7)%len(e.Value)] ^= 1 << (i % 8)
		try(fmt.Sprint("flipped ", i), []store.Entry{flipped}, all[i:i+1])
		try(fmt.Sprint("removed ", i), []store.Entry{{Key: e.Key}}, all[i:i+1])
		if i+1 < len(all) {
			next := all[i+1]
			try(fmt.Sprint("swapped ", i), []store.Entry{{Key: e.Key, Value: next.Value}, {Key: next.Key, Value: e.Value}}, all[i:i+2])
		}
	}
	for i, e := range slices.Backward(all) {
		w.tamper(t, store.Entry{Key: e.Key})
		w.found(t, fmt.Sprint("cut after ", i))
		counts["cut"]++
	}
	w.tamper(t, all...)
	w.sound(t, "put back")
	t.Logf("found: %v", counts)
	for _, what := range []string{"flipped", "removed", "cut"} {
		if counts[what] != n {
			t.Errorf("%s: tried %d, want %d", what, counts[what], n)
		}
	}
}

// Every bit of one record counts: the stored form has no slack to hide in.
func TestEveryBitOfARecordCounts(t *testing.T) {
	w := newWorld(t)
	w.fill(t, 2)
	all := w.raw(t, recordKeys)
	for i := range len(all[0].Value) * 8 {
		flipped := store.Entry{Key: all[0].Key, Value: bytes.Clone(all[0].Value)}
		flipped.Value[i/8] ^= 1 << (i % 8)
		w.tamper(t, flipped)
		w.found(t, fmt.Sprint("bit ", i))
	}
}

func TestEndCannotBeMoved(t *testing.T) {
	w := newWorld(t)
	w.fill(t, 5)
	five := w.raw(t, endKeys)
	w.fill(t, 5)
	all, ten := w.raw(t, recordKeys), w.raw(t, endKeys)
	if len(five) != 1 || len(ten) != 1 {
		t.Fatalf("got ends %v and %v, want one each", five, ten)
	}

	w.tamper(t, store.Entry{Key: ten[0].Key})
	w.found(t, "end removed")
	w.tamper(t, five...)
	w.found(t, "end put back, records left")
	for i := range len(ten[0].Value) * 8 {
		flipped := store.Entry{Key: ten[0].Key, Value: bytes.Clone(ten[0].Value)}
		flipped.Value[i/8] ^= 1 << (i % 8)
		w.tamper(t, flipped)
		if _, err := w.Verify(t.Context()); err == nil {
			t.Errorf("bit %d of the end: not found", i)
		}
	}
	// An end with the number and MAC of a record, which is what there is to see.
	w.tamper(t, ten...)
	w.sound(t, "put back")
	w.tamper(t, store.Entry{Key: five[0].Key, Value: ten[0].Value}, store.Entry{Key: all[9].Key})
	w.found(t, "last record cut")
}

// Who puts back the whole trail as it was leaves one that is sound in itself.
// Only a checkpoint kept elsewhere tells.
func TestRollbackIsFoundByCheckpoint(t *testing.T) {
	w := newWorld(t)
	w.fill(t, 5)
	old := w.raw(t, "audit ")
	early := w.checkpoint(t)
	w.fill(t, 5)
	late := w.checkpoint(t)
	w.sound(t, "before", early, late)

	w.putBack(t, old)
	w.sound(t, "without a checkpoint") // it cannot know
	w.sound(t, "against a checkpoint from before", early)
	w.found(t, "against the checkpoint from after", early, late)
	if err := w.Resume(t.Context(), late); !errors.Is(err, audit.ErrTampered) {
		t.Errorf("resume: got %v, want %v", err, audit.ErrTampered)
	}

	// Written on, with other records under the old numbers.
	w.now = w.now.Add(time.Hour)
	w.append(as(t, "other"), t, slices.Repeat([]audit.Entry{{Action: "x"}}, 7)...)
	w.found(t, "written on", late)
	if err := w.Resume(t.Context(), late); !errors.Is(err, audit.ErrTampered) {
		t.Errorf("resume, written on: got %v, want %v", err, audit.ErrTampered)
	}
}

// A restore says in the trail that there was one: what fell away then is no
// tampering.
func TestRestoreExplainsItself(t *testing.T) {
	w := newWorld(t)
	w.fill(t, 5)
	old := w.raw(t, "audit ")
	w.fill(t, 5)
	late := w.checkpoint(t)
	w.putBack(t, old)
	w.now = w.now.Add(time.Minute)
	w.append(t.Context(), t, audit.Entry{Action: audit.Restored})
	w.sound(t, "restored", late)
	if err := w.Resume(t.Context(), late); err != nil {
		t.Errorf("resume: %v", err)
	}
	// What was written after it is held to again.
	w.fill(t, 20)
	after := w.checkpoint(t)
	w.putBack(t, old)
	w.found(t, "rolled back after the restore", after)
}

func TestForgedCheckpointIsRefused(t *testing.T) {
	w := newWorld(t)
	w.fill(t, 3)
	good := w.checkpoint(t)
	key, err := w.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	if !good.Valid(key) {
		t.Fatal("a checkpoint of the trail's own is not valid")
	}
	for what, change := range map[string]func(*audit.Checkpoint){
		"number":    func(c *audit.Checkpoint) { c.Seq++ },
		"MAC":       func(c *audit.Checkpoint) { c.MAC = bytes.Repeat([]byte{1}, 32) },
		"time":      func(c *audit.Checkpoint) { c.At = c.At.Add(time.Second) },
		"signature": func(c *audit.Checkpoint) { c.Signature = bytes.Repeat([]byte{1}, 64) },
		"none":      func(c *audit.Checkpoint) { c.Signature = nil },
	} {
		bad := good
		change(&bad)
		if bad.Valid(key) {
			t.Errorf("%s changed: valid", what)
		}
		w.found(t, what, bad)
	}
}

// A record that lists do not show is in the chain, and its absence is noticed.
func TestHiddenRecordIsFound(t *testing.T) {
	w := newWorld(t)
	w.fill(t, 5)
	index := w.raw(t, "audit record\x00org\x00")
	w.tamper(t, store.Entry{Key: index[2].Key})
	w.found(t, "hidden")
}

func TestNothingWithoutItsChange(t *testing.T) {
	w := newWorld(t)
	sorry := errors.New("sorry")
	err := w.DB.Update(as(t, "org"), func(tx store.Tx) error {
		if err := w.Append(as(t, "org"), tx, audit.Entry{Action: "x"}); err != nil {
			return err
		}
		return sorry
	})
	if !errors.Is(err, sorry) {
		t.Fatalf("got %v, want %v", err, sorry)
	}
	if r := w.sound(t, "after a failed change"); r.Records != 0 {
		t.Errorf("got %d records, want 0", r.Records)
	}
}

func TestRecordSaysWhoAndWhere(t *testing.T) {
	w := newWorld(t)
	ctx := identity.WithRequestID(as(t, "org"), "request-1")
	w.append(ctx, t, audit.Entry{Action: "psk.create", Target: "k", Device: "d", Detail: map[string]string{
		"name": "bad \xff utf-8", "long": strings.Repeat("x", 10_000),
	}})
	p, err := w.List(ctx, "d", page.Request{})
	if err != nil || len(p.Items) != 1 {
		t.Fatalf("got %v, %v, want one record", p.Items, err)
	}
	r := p.Items[0]
	want := audit.Actor{Kind: identity.User, ID: "admin", Credential: identity.APIKey}
	if r.Actor != want || r.Org != "org" || r.RequestID != "request-1" || !r.At.Equal(w.now) || r.Target != "k" {
		t.Errorf("got %+v", r)
	}
	if r.Detail["name"] != "bad \uFFFD utf-8" || len(r.Detail["long"]) > 600 {
		t.Errorf("got details %q of %d bytes, want text, and cut", r.Detail["name"], len(r.Detail["long"]))
	}
	w.sound(t, "with text that was not")
}

func TestSearch(t *testing.T) {
	w := newWorld(t)
	start := w.now
	for i := range 30 {
		w.now = start.Add(time.Duration(i) * time.Minute)
		org, action := "a", "psk.create"
		if i%3 == 0 {
			org = "b"
		}
		if i%5 == 0 {
			action = "device.suspend"
		}
		w.append(as(t, org), t, audit.Entry{Action: action, Device: fmt.Sprint("d", i%2)})
	}
	w.append(t.Context(), t, audit.Entry{Action: "server.start"}) // of no organisation
	count := func(keep func(i int) bool) (want []uint64) {
		for i := range 30 {
			if keep(i) {
				want = append(want, uint64(i+1))
			}
		}
		return want
	}
	inA := func(i int) bool { return i%3 != 0 }
	for _, test := range []struct {
		name string
		f    audit.Filter
		want []uint64
	}{
		{"own organisation", audit.Filter{}, count(inA)},
		{"device", audit.Filter{Device: "d1"}, count(func(i int) bool { return inA(i) && i%2 == 1 })},
		{"action", audit.Filter{Action: "device.suspend"}, count(func(i int) bool { return inA(i) && i%5 == 0 })},
		{"kind of action", audit.Filter{Action: "device"}, count(func(i int) bool { return inA(i) && i%5 == 0 })},
		{"part of a word", audit.Filter{Action: "dev"}, nil},
		{"actor", audit.Filter{Actor: "nobody"}, nil},
		{"since", audit.Filter{Since: start.Add(20 * time.Minute)}, count(func(i int) bool { return inA(i) && i >= 20 })},
		{"until", audit.Filter{Until: start.Add(10 * time.Minute)}, count(func(i int) bool { return inA(i) && i < 10 })},
		{"everyone", audit.Filter{Everyone: true}, append(count(func(int) bool { return true }), 31)},
	} {
		for _, newest := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/newest=%t", test.name, newest), func(t *testing.T) {
				want := slices.Clone(test.want)
				if test.f.Newest = newest; newest {
					slices.Reverse(want)
				}
				var got []uint64
				r := page.Request{Limit: 4}
				for {
					p, err := w.Search(as(t, "a"), test.f, r)
					if err != nil {
						t.Fatal(err)
					}
					for _, record := range p.Items {
						got = append(got, record.Seq)
					}
					if p.Next == "" {
						break
					}
					r.After = p.Next
				}
				if !slices.Equal(got, want) {
					t.Errorf("got %v, want %v", got, want)
				}
			})
		}
	}
	for _, cursor := range []page.Cursor{"!", page.At("zz")} {
		if _, err := w.Search(as(t, "a"), audit.Filter{Newest: true}, page.Request{After: cursor}); !fault.Is(err, fault.Invalid) {
			t.Errorf("cursor %q: got %v, want invalid", cursor, err)
		}
	}
}

func TestCheckpointsComeInTime(t *testing.T) {
	w := newWorld(t)
	var published []uint64
	w.Publish = func(c audit.Checkpoint) error { published = append(published, c.Seq); return nil }
	w.Config = audit.Config{Every: 10, Interval: time.Hour}
	tick := func(after time.Duration) {
		t.Helper()
		w.now = w.now.Add(after)
		if err := w.Tick(t.Context(), w.now); err != nil {
			t.Fatal(err)
		}
	}
	tick(0) // nothing to state
	w.fill(t, 1)
	tick(time.Second) // the first at once: no checkpoint covers it
	w.fill(t, 9)
	tick(time.Second) // 9 since
	w.fill(t, 1)
	tick(time.Second) // 10 since
	w.fill(t, 1)
	tick(59 * time.Minute)
	tick(2 * time.Minute) // an hour
	tick(3 * time.Hour)   // nothing since
	w.fill(t, 1)
	if err := w.Finish(t.Context()); err != nil {
		t.Fatal(err)
	}
	if want := []uint64{1, 11, 12, 13}; !slices.Equal(published, want) {
		t.Errorf("got checkpoints %v, want %v", published, want)
	}
	full := errors.New("disk full")
	w.Publish = func(audit.Checkpoint) error { return full }
	w.fill(t, 10)
	if err := w.Tick(t.Context(), w.now); !errors.Is(err, full) {
		t.Errorf("got %v, want %v", err, full)
	}
	if got := w.Published().Seq; got != 13 {
		t.Errorf("what could not be published counts: got %d, want 13", got)
	}
}

func TestRetention(t *testing.T) {
	w := newWorld(t)
	w.Config.Keep = 48 * time.Hour
	w.fill(t, 1200)
	early := w.checkpoint(t)
	w.now = w.now.Add(24 * time.Hour)
	w.fill(t, 10)
	late := w.checkpoint(t)
	w.now = w.now.Add(30 * time.Hour)
	if err := w.Tick(t.Context(), w.now); err != nil {
		t.Fatal(err)
	}
	// 1,200 in transactions of 500, each of which says so.
	if r := w.sound(t, "after", early, late); r.First != 1201 || r.Records != 13 {
		t.Errorf("got %+v, want 13 records from 1201 on", r)
	}
	all := w.raw(t, recordKeys)
	w.tamper(t, store.Entry{Key: all[0].Key})
	w.found(t, "first removed")
	w.tamper(t, all[0])
	tail := w.raw(t, endKeys+"tail")
	w.tamper(t, store.Entry{Key: tail[0].Key})
	w.found(t, "tail removed")
	w.tamper(t, tail...)
	w.now = w.now.Add(1000 * time.Hour)
	if err := w.Tick(t.Context(), w.now); err != nil {
		t.Fatal(err)
	}
	if r := w.sound(t, "all of it old"); r.Records == 0 {
		t.Error("the trail is empty: that could not be told from one taken away")
	}
}

func TestFailuresAreBounded(t *testing.T) {
	w := newWorld(t)
	w.Config.PerMinute = 5
	const minutes, each = 10, 10_000
	long := strings.Repeat("x", 100_000)
	for range minutes {
		for i := range each {
			w.Fail(audit.Failure{Surface: "https", Reason: fmt.Sprint("r", i%3), Remote: fmt.Sprint("10.0.0.", i%256), Claimed: long})
		}
		w.now = w.now.Add(time.Minute)
		if err := w.Tick(t.Context(), w.now); err != nil {
			t.Fatal(err)
		}
	}
	var single, suppressed int
	for r, err := range w.All(t.Context(), audit.Filter{Everyone: true}) {
		if err != nil {
			t.Fatal(err)
		}
		switch r.Action {
		case "auth.failure":
			single++
		case "auth.failures":
			var n int
			if _, err := fmt.Sscan(r.Detail["suppressed"], &n); err != nil {
				t.Fatal(err)
			}
			suppressed += n
		}
	}
	if single != 5*minutes || single+suppressed != minutes*each {
		t.Errorf("got %d one by one and %d counted, want %d and %d in all", single, suppressed, 5*minutes, minutes*each)
	}
	if r := w.sound(t, "after"); r.Records > minutes*(5+3) {
		t.Errorf("%d failures made %d records", minutes*each, r.Records)
	}
}

func TestKindsOfFailuresAreBounded(t *testing.T) {
	w := newWorld(t)
	w.Config.PerMinute = 1
	for i := range 10_000 {
		w.Fail(audit.Failure{Surface: "https", Reason: strconv.Itoa(i)})
	}
	w.now = w.now.Add(time.Hour)
	if err := w.Tick(t.Context(), w.now); err != nil {
		t.Fatal(err)
	}
	if r := w.sound(t, "after"); r.Records > 70 {
		t.Errorf("got %d records, want no more than 66", r.Records)
	}
}

func BenchmarkAppend(b *testing.B) {
	w := newWorld(b)
	ctx := identity.NewContext(b.Context(), identity.Actor{Kind: identity.User, ID: "admin", Org: "org"})
	for b.Loop() {
		w.append(ctx, b, audit.Entry{Action: "psk.create", Target: "t", Device: "d"})
	}
}
