// Package storetest is the suite every store engine passes.
package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"keystead/fault"
	"keystead/store"
)

// Run runs the suite. open returns an empty engine; Run closes it.
func Run(t *testing.T, open func(t *testing.T) store.Engine) {
	for _, test := range []struct {
		name string
		run  func(*testing.T, store.Engine)
	}{
		{"GetPutDelete", testGetPutDelete},
		{"WhatGetReturnsStays", testKept},
		{"ScanOrder", testScanOrder},
		{"ScanOfMany", testScanOfMany},
		{"ScanStopsEarly", testScanStops},
		{"ScanSeesOwnWrites", testScanSeesOwnWrites},
		{"ReadsOwnWrites", testReadsOwnWrites},
		{"FailedUpdateLeavesNothing", testRollback},
		{"FailedUpdateDoesNotHurtOthers", testFailuresAmongOthers},
		{"PanicLeavesNothing", testPanic},
		{"WriteInViewFails", testWriteInView},
		{"Limits", testLimits},
		{"ViewIsASnapshot", testSnapshot},
		{"ConcurrentIncrementsAllCount", testIncrements},
		{"TransfersKeepTheSum", testTransfers},
		{"CancelledUpdateDoesNotCommit", testCancelled},
		{"CancelledBeforeItBegins", testCancelledBefore},
		{"OnCommit", testOnCommit},
		{"OnCommitSeesTheCommit", testOnCommitSees},
		{"EndedTransactionRefuses", testEnded},
		{"ClosedEngineRefuses", testClosed},
		{"UpdateThatWritesNothing", testEmptyUpdate},

		{"TableGetInsertSetDelete", testTable},
		{"TableUpdate", testTableUpdate},
		{"OneWinnerPerUniqueTerm", testUniqueRace},
		{"UniqueTermMovesAndIsFreed", testUniqueMoves},
		{"UniqueTermTwiceInOneRecord", testUniqueTwice},
		{"IndexFollowsTheRecord", testIndex},
		{"CountsAreOfWhatIsThere", testCounts},
		{"CountsAreTalliedByTerm", testTally},
		{"PagesMeetWithoutGapOrOverlap", testPages},
		{"PagesWhileRecordsComeAndGo", testPagesMoving},
		{"PageIfStopsLooking", testPageIf},
		{"TermsWithSeparators", testTerms},
		{"PrefixOfATermIsItsParts", testTermPrefix},
		{"ForgedCursorStaysInside", testForgedCursor},
		{"AllCrossesTransactions", testAll},
		{"AllMayWrite", testAllWrites},
		{"DamagedRecord", testDamagedRecord},
	} {
		t.Run(test.name, func(t *testing.T) {
			e := open(t)
			t.Cleanup(func() {
				if err := e.Close(); err != nil {
					t.Error(err)
				}
			})
			test.run(t, e)
		})
	}
}

func update(t *testing.T, e store.Engine, fn func(store.Tx) error) {
	t.Helper()
	if err := e.Update(t.Context(), fn); err != nil {
		t.Fatal(err)
	}
}

func view(t *testing.T, e store.Engine, fn func(store.Tx) error) {
	t.Helper()
	if err := e.View(t.Context(), fn); err != nil {
		t.Fatal(err)
	}
}

func put(t *testing.T, e store.Engine, pairs ...string) {
	t.Helper()
	update(t, e, func(tx store.Tx) error {
		for i := 0; i < len(pairs); i += 2 {
			if err := tx.Put([]byte(pairs[i]), []byte(pairs[i+1])); err != nil {
				return err
			}
		}
		return nil
	})
}

// collect returns the keys of a scan, "key=value" where there is a value.
func collect(tx store.Tx, prefix, after string) (got []string, err error) {
	var from []byte
	if after != "" {
		from = []byte(after)
	}
	for entry, err := range tx.Scan([]byte(prefix), from) {
		if err != nil {
			return got, err
		}
		s := string(entry.Key)
		if len(entry.Value) > 0 {
			s += "=" + string(entry.Value)
		}
		got = append(got, s)
	}
	return got, nil
}

func scan(t *testing.T, e store.Engine, prefix, after string) (got []string) {
	t.Helper()
	view(t, e, func(tx store.Tx) (err error) {
		got, err = collect(tx, prefix, after)
		return err
	})
	return got
}

func get(t *testing.T, e store.Engine, key string) (value []byte) {
	t.Helper()
	view(t, e, func(tx store.Tx) (err error) {
		value, err = tx.Get([]byte(key))
		return err
	})
	return value
}

func testGetPutDelete(t *testing.T, e store.Engine) {
	put(t, e, "a", "1", "a", "2", "b", "3")
	if got := get(t, e, "a"); string(got) != "2" {
		t.Errorf("Get(a) = %q, want the value put last", got)
	}
	update(t, e, func(tx store.Tx) error {
		return errors.Join(tx.Delete([]byte("a")), tx.Delete([]byte("never was")), tx.Put([]byte("empty"), nil))
	})
	if got := get(t, e, "a"); got != nil {
		t.Errorf("Get(a) = %q after Delete, want nil", got)
	}
	if got := get(t, e, "empty"); got == nil || len(got) != 0 {
		t.Errorf("Get(empty) = %#v, want an empty value, not a missing one", got)
	}
	if got := get(t, e, ""); got != nil {
		t.Errorf("Get of the empty key = %q, want nil", got)
	}
	update(t, e, func(tx store.Tx) error {
		return errors.Join(tx.Delete([]byte("b")), tx.Put([]byte("b"), []byte("4")), tx.Put([]byte("c"), nil), tx.Delete([]byte("c")))
	})
	if got, want := scan(t, e, "", ""), []string{"b=4", "empty"}; !slices.Equal(got, want) {
		t.Errorf("entries %q, want %q", got, want)
	}
}

func testKept(t *testing.T, e store.Engine) {
	put(t, e, "k", "first", "l", strings.Repeat("x", 5000))
	var value []byte
	var entries []store.Entry
	view(t, e, func(tx store.Tx) (err error) {
		value, err = tx.Get([]byte("k"))
		for entry, err := range tx.Scan(nil, nil) {
			if err != nil {
				return err
			}
			entries = append(entries, entry)
		}
		return err
	})
	for i := range 50 { // whatever pages the entries stood on are used again
		put(t, e, "k", strconv.Itoa(i), "l", strings.Repeat("y", 100*i), fmt.Sprint("m", i), "z")
	}
	if string(value) != "first" || len(entries) != 2 || string(entries[0].Key) != "k" || string(entries[0].Value) != "first" ||
		string(entries[1].Value) != strings.Repeat("x", 5000) {
		t.Errorf("what a transaction returned changed after it ended: %q, %.60q", value, entries)
	}
	// Appending to what was returned must not reach into the engine's memory.
	_ = append(entries[0].Key, "overwritten"...)
	if string(entries[0].Value) != "first" {
		t.Errorf("the value changed to %q with an append to the key", entries[0].Value)
	}
}

func testScanOrder(t *testing.T, e store.Engine) {
	// Order is that of bytes, whatever a backend's collation makes of them.
	put(t, e, "p|b", "", "p|B", "", "p|\xff", "", "p|\x00", "", "p|", "", "p}", "", "o", "", "p|ß", "", "p|a\x00", "", "p|a", "")
	all := []string{"p|", "p|\x00", "p|B", "p|a", "p|a\x00", "p|b", "p|ß", "p|\xff"}
	for _, test := range []struct {
		prefix, after string
		want          []string
	}{
		{"p|", "", all},
		{"p|", "p|", all[1:]}, // what is after is left out
		{"p|", "p|B", all[3:]},
		{"p|", "p|C", all[3:]}, // it needs not exist
		{"p|", "p|\xff", nil},
		{"p|", "p}", nil}, // it may be behind the prefix
		{"p|", "a", all},  // or before
		{"p|", "p", all},  // or a part of it
		{"p|a", "", all[3:5]},
		{"p|\xff", "", all[7:]},
		{"", "p|ß", []string{"p|\xff", "p}"}},
		{"q", "", nil},
		{"\xff", "", nil},
		{"", "", slices.Concat([]string{"o"}, all, []string{"p}"})},
	} {
		if got := scan(t, e, test.prefix, test.after); !slices.Equal(got, test.want) {
			t.Errorf("Scan(%q, %q) in a View = %q, want %q", test.prefix, test.after, got, test.want)
		}
		update(t, e, func(tx store.Tx) error {
			got, err := collect(tx, test.prefix, test.after)
			if !slices.Equal(got, test.want) {
				t.Errorf("Scan(%q, %q) in an Update = %q, want %q", test.prefix, test.after, got, test.want)
			}
			return err
		})
	}
}

func testScanOfMany(t *testing.T, e store.Engine) {
	const n = 3000
	update(t, e, func(tx store.Tx) error {
		for i := range n {
			if err := tx.Put(fmt.Appendf(nil, "k%04d", i*7919%n), bytes.Repeat([]byte("v"), i%200)); err != nil {
				return err
			}
		}
		return nil
	})
	var got []string
	after := ""
	for {
		var some []string
		view(t, e, func(tx store.Tx) error {
			for entry, err := range tx.Scan([]byte("k"), []byte(after)) {
				if err != nil {
					return err
				}
				if some = append(some, string(entry.Key)); len(some) == store.MaxScan {
					return nil
				}
			}
			return nil
		})
		if len(some) == 0 {
			break
		}
		got = append(got, some...)
		after = some[len(some)-1]
	}
	if len(got) != n || !slices.IsSorted(got) || got[0] != "k0000" || got[n-1] != fmt.Sprintf("k%04d", n-1) {
		t.Errorf("scans of %d saw %d keys of %d, in order: %t", store.MaxScan, len(got), n, slices.IsSorted(got))
	}
}

func testScanStops(t *testing.T, e store.Engine) {
	put(t, e, "a", "", "b", "", "c", "")
	update(t, e, func(tx store.Tx) error {
		if err := tx.Put([]byte("aa"), nil); err != nil {
			return err
		}
		for range 2 { // a scan that was left can be had again
			n := 0
			for _, err := range tx.Scan(nil, nil) {
				if err != nil {
					return err
				}
				if n++; n == 2 {
					break
				}
			}
			if n != 2 {
				t.Errorf("the loop ran %d times, want 2", n)
			}
		}
		return nil
	})
}

func testScanSeesOwnWrites(t *testing.T, e store.Engine) {
	put(t, e, "b", "1", "d", "1", "f", "1")
	check := func(tx store.Tx, prefix, after string, want ...string) {
		t.Helper()
		got, err := collect(tx, prefix, after)
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("Scan(%q, %q) = %q, %v, want %q", prefix, after, got, err, want)
		}
	}
	update(t, e, func(tx store.Tx) error {
		if err := errors.Join(tx.Put([]byte("a"), nil), tx.Put([]byte("d"), []byte("2")), tx.Delete([]byte("f")), tx.Put([]byte("g"), nil), tx.Put([]byte("c"), nil), tx.Delete([]byte("c"))); err != nil {
			return err
		}
		check(tx, "", "", "a", "b=1", "d=2", "g")
		check(tx, "", "a", "b=1", "d=2", "g")
		check(tx, "d", "", "d=2")
		check(tx, "f", "")
		check(tx, "", "d", "g")
		// And again with more, since the first scan may have sorted what there was.
		if err := errors.Join(tx.Put([]byte("f"), []byte("3")), tx.Put([]byte("bb"), nil), tx.Delete([]byte("a"))); err != nil {
			return err
		}
		check(tx, "", "", "b=1", "bb", "d=2", "f=3", "g")
		check(tx, "b", "", "b=1", "bb")
		check(tx, "b", "b", "bb")
		return nil
	})
	if got, want := scan(t, e, "", ""), []string{"b=1", "bb", "d=2", "f=3", "g"}; !slices.Equal(got, want) {
		t.Errorf("after the commit: %q, want %q", got, want)
	}
}

func testReadsOwnWrites(t *testing.T, e store.Engine) {
	put(t, e, "a", "1")
	update(t, e, func(tx store.Tx) error {
		for _, step := range []struct {
			write func() error
			want  string
			there bool
		}{
			{func() error { return tx.Put([]byte("a"), []byte("2")) }, "2", true},
			{func() error { return tx.Delete([]byte("a")) }, "", false},
			{func() error { return tx.Put([]byte("a"), nil) }, "", true},
			{func() error { return tx.Put([]byte("a"), []byte("3")) }, "3", true},
		} {
			if err := step.write(); err != nil {
				return err
			}
			if got, err := tx.Get([]byte("a")); err != nil || string(got) != step.want || (got != nil) != step.there {
				t.Errorf("Get = %q, %v, want %q (there: %t)", got, err, step.want, step.there)
			}
		}
		return nil
	})
}

func testRollback(t *testing.T, e store.Engine) {
	put(t, e, "a", "before", "c", "")
	boom := errors.New("boom")
	err := e.Update(t.Context(), func(tx store.Tx) error {
		return errors.Join(tx.Put([]byte("a"), []byte("after")), tx.Put([]byte("b"), nil), tx.Delete([]byte("c")), boom)
	})
	if !errors.Is(err, boom) {
		t.Errorf("Update = %v, want the error of its function", err)
	}
	if got, want := scan(t, e, "", ""), []string{"a=before", "c"}; !slices.Equal(got, want) {
		t.Errorf("entries after a failed Update: %q, want %q", got, want)
	}
}

// testFailuresAmongOthers has updates fail among many that wait together: the
// others must be committed, and run once.
func testFailuresAmongOthers(t *testing.T, e store.Engine) {
	const n = 200
	boom := errors.New("boom")
	var runs atomic.Int64
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			err := e.Update(t.Context(), func(tx store.Tx) error {
				runs.Add(1)
				if err := tx.Put(fmt.Appendf(nil, "%03d", i), nil); err != nil {
					return err
				}
				if i%3 == 0 {
					return boom
				}
				return nil
			})
			if want := i%3 == 0; errors.Is(err, boom) != want || !want && err != nil {
				t.Errorf("update %d: %v, want it to fail: %t", i, err, want)
			}
		})
	}
	wg.Wait()
	got := scan(t, e, "", "")
	if len(got) != n-67 {
		t.Errorf("%d updates were committed, want %d", len(got), n-67)
	}
	for _, key := range got {
		if i, _ := strconv.Atoi(key); i%3 == 0 {
			t.Errorf("what the failed update %d wrote is there", i)
		}
	}
	if runs := runs.Load(); runs < n {
		t.Errorf("functions ran %d times, want %d or more", runs, n)
	}
}

func testPanic(t *testing.T, e store.Engine) {
	func() {
		defer func() {
			if p := recover(); p == nil || !strings.Contains(fmt.Sprint(p), "at the disco") {
				t.Errorf("Update panicked with %v, want what its function panicked with", p)
			}
		}()
		_ = e.Update(t.Context(), func(tx store.Tx) error {
			if err := tx.Put([]byte("a"), nil); err != nil {
				return err
			}
			panic("at the disco")
		})
	}()
	func() {
		defer func() { _ = recover() }()
		_ = e.View(t.Context(), func(store.Tx) error { panic("in a view") })
	}()
	put(t, e, "b", "") // the engine goes on
	if got, want := scan(t, e, "", ""), []string{"b"}; !slices.Equal(got, want) {
		t.Errorf("entries %q, want %q", got, want)
	}
}

func testWriteInView(t *testing.T, e store.Engine) {
	put(t, e, "a", "1")
	view(t, e, func(tx store.Tx) error {
		if err := tx.Put([]byte("a"), nil); !errors.Is(err, store.ErrReadOnly) {
			t.Errorf("Put in a View = %v, want ErrReadOnly", err)
		}
		if err := tx.Delete([]byte("a")); !errors.Is(err, store.ErrReadOnly) {
			t.Errorf("Delete in a View = %v, want ErrReadOnly", err)
		}
		return nil
	})
	if got := get(t, e, "a"); string(got) != "1" {
		t.Errorf("Get = %q after writes in a View, want what was there", got)
	}
}

func testLimits(t *testing.T, e store.Engine) {
	key := func(n int) []byte { return bytes.Repeat([]byte("k"), n) }
	value := func(n int) []byte { return bytes.Repeat([]byte("v"), n) }
	for _, test := range []struct {
		name       string
		key, value []byte
		kind       fault.Kind
		ok         bool
	}{
		{"the longest key", key(store.MaxKey), nil, 0, true},
		{"a longer key", key(store.MaxKey + 1), nil, fault.TooLarge, false},
		{"the largest value", []byte("large"), value(store.MaxValue), 0, true},
		{"a larger value", []byte("larger"), value(store.MaxValue + 1), fault.TooLarge, false},
		{"an empty key", nil, nil, fault.Invalid, false},
	} {
		err := e.Update(t.Context(), func(tx store.Tx) error { return tx.Put(test.key, test.value) })
		if ok := err == nil; ok != test.ok || !ok && !fault.Is(err, test.kind) {
			t.Errorf("%s: Put = %v, want success: %t, else the kind %v", test.name, err, test.ok, test.kind)
		}
	}
	if got := get(t, e, "large"); !bytes.Equal(got, value(store.MaxValue)) {
		t.Errorf("the largest value came back with %d bytes", len(got))
	}
	if got := scan(t, e, "k", ""); len(got) != 1 || len(got[0]) != store.MaxKey {
		t.Errorf("a scan finds %d keys, want the longest", len(got))
	}
	// No key is so long that asking for it, or removing it, is an error.
	update(t, e, func(tx store.Tx) error {
		v, err := tx.Get(key(store.MaxKey + 1))
		if v != nil {
			t.Errorf("Get of a key too long to be there = %q", v)
		}
		return errors.Join(err, tx.Delete(key(store.MaxKey+1)), tx.Delete(nil))
	})
}

func testSnapshot(t *testing.T, e store.Engine) {
	put(t, e, "a", "1")
	view(t, e, func(tx store.Tx) error {
		if err := e.Update(t.Context(), func(tx store.Tx) error {
			return errors.Join(tx.Put([]byte("a"), []byte("2")), tx.Put([]byte("b"), nil))
		}); err != nil {
			return err
		}
		got, err := collect(tx, "", "")
		if want := []string{"a=1"}; !slices.Equal(got, want) {
			t.Errorf("a View sees %q after a commit that came later, want %q", got, want)
		}
		return err
	})
	update(t, e, func(tx store.Tx) error {
		if err := tx.Put([]byte("a"), []byte("3")); err != nil {
			return err
		}
		return e.View(t.Context(), func(tx store.Tx) error {
			if v, err := tx.Get([]byte("a")); err != nil || string(v) != "2" {
				t.Errorf("a View sees %q, %v of an Update that has not ended", v, err)
			}
			return nil
		})
	})
}

func testIncrements(t *testing.T, e store.Engine) {
	const workers, each = 16, 20
	var wg sync.WaitGroup
	for range workers {
		wg.Go(func() {
			for range each {
				if err := e.Update(t.Context(), func(tx store.Tx) error {
					v, err := tx.Get([]byte("n"))
					if err != nil {
						return err
					}
					n, _ := strconv.Atoi(string(v))
					return tx.Put([]byte("n"), strconv.AppendInt(nil, int64(n+1), 10))
				}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if got, want := string(get(t, e, "n")), strconv.Itoa(workers*each); got != want {
		t.Errorf("%s of %s increments survived", got, want)
	}
}

// testTransfers moves amounts between accounts while others add them up.
func testTransfers(t *testing.T, e store.Engine) {
	const accounts, movers, each, total = 10, 8, 25, 1000
	balance := func(tx store.Tx, key []byte) (int, error) {
		v, err := tx.Get(key)
		n, _ := strconv.Atoi(string(v))
		return n, err
	}
	for i := range accounts {
		put(t, e, fmt.Sprint("acc", i), strconv.Itoa(total/accounts))
	}
	sum := func() {
		var sum int
		view(t, e, func(tx store.Tx) error {
			sum = 0
			for entry, err := range tx.Scan([]byte("acc"), nil) {
				if err != nil {
					return err
				}
				n, _ := strconv.Atoi(string(entry.Value))
				sum += n
			}
			return nil
		})
		if sum != total {
			t.Errorf("the accounts hold %d together, want %d", sum, total)
		}
	}
	var wg sync.WaitGroup
	for m := range movers {
		wg.Go(func() {
			for i := range each {
				from, to := fmt.Appendf(nil, "acc%d", (m+i)%accounts), fmt.Appendf(nil, "acc%d", (m*3+i*7+1)%accounts)
				if bytes.Equal(from, to) {
					continue
				}
				if err := e.Update(t.Context(), func(tx store.Tx) error {
					a, err := balance(tx, from)
					if err != nil {
						return err
					}
					b, err := balance(tx, to)
					if err != nil {
						return err
					}
					return errors.Join(tx.Put(from, strconv.AppendInt(nil, int64(a-i), 10)), tx.Put(to, strconv.AppendInt(nil, int64(b+i), 10)))
				}); err != nil {
					t.Error(err)
				}
				if i%5 == 0 {
					sum()
				}
			}
		})
	}
	wg.Wait()
	sum()
}

func testCancelled(t *testing.T, e store.Engine) {
	why := errors.New("gave up")
	ctx, cancel := context.WithCancelCause(t.Context())
	err := e.Update(ctx, func(tx store.Tx) error {
		err := tx.Put([]byte("a"), nil)
		cancel(why)
		return err
	})
	if !errors.Is(err, why) {
		t.Errorf("Update with a cancelled context = %v, want the cause", err)
	}
	if got := scan(t, e, "", ""); got != nil {
		t.Errorf("entries after a cancelled Update: %q", got)
	}
	// Many, cancelled at any moment: what is reported committed is, the rest is not.
	const n = 100
	var committed [n]bool
	var wg sync.WaitGroup
	for i := range n {
		ctx, cancel := context.WithCancel(t.Context())
		wg.Go(func() {
			committed[i] = e.Update(ctx, func(tx store.Tx) error { return tx.Put(fmt.Appendf(nil, "%03d", i), nil) }) == nil
		})
		wg.Go(cancel)
	}
	wg.Wait()
	got := scan(t, e, "", "")
	for i := range n {
		if there := slices.Contains(got, fmt.Sprintf("%03d", i)); there != committed[i] {
			t.Errorf("update %d was reported committed: %t, is there: %t", i, committed[i], there)
		}
	}
}

func testCancelledBefore(t *testing.T, e store.Engine) {
	why := errors.New("gave up")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(why)
	ran := func(store.Tx) error { t.Error("the function ran"); return nil }
	if err := e.Update(ctx, ran); !errors.Is(err, why) {
		t.Errorf("Update = %v, want the cause", err)
	}
	if err := e.View(ctx, ran); !errors.Is(err, why) {
		t.Errorf("View = %v, want the cause", err)
	}
	// A scan ends soon after its context does.
	update(t, e, func(tx store.Tx) error {
		for i := range 1000 {
			if err := tx.Put(fmt.Appendf(nil, "s%04d", i), nil); err != nil {
				return err
			}
		}
		return nil
	})
	ctx, cancel = context.WithCancelCause(t.Context())
	n := 0
	err := e.View(ctx, func(tx store.Tx) error {
		for _, err := range tx.Scan([]byte("s"), nil) {
			if err != nil {
				return err
			}
			n++
			cancel(why)
		}
		return nil
	})
	if !errors.Is(err, why) || n > 500 {
		t.Errorf("a scan of 1000 whose context ended at once = %v after %d entries", err, n)
	}
}

func testOnCommit(t *testing.T, e store.Engine) {
	var ran []string
	update(t, e, func(tx store.Tx) error {
		ran = nil // fn may run again
		tx.OnCommit(func() { ran = append(ran, "first") })
		tx.OnCommit(func() { ran = append(ran, "second") })
		return tx.Put([]byte("a"), nil)
	})
	if want := []string{"first", "second"}; !slices.Equal(ran, want) {
		t.Errorf("ran %q when Update returned, want %q", ran, want)
	}
	boom := errors.New("boom")
	_ = e.Update(t.Context(), func(tx store.Tx) error {
		tx.OnCommit(func() { t.Error("ran for an update that failed") })
		return boom
	})
	ctx, cancel := context.WithCancel(t.Context())
	_ = e.Update(ctx, func(tx store.Tx) error {
		tx.OnCommit(func() { t.Error("ran for an update that was cancelled") })
		cancel()
		return nil
	})
	nothing := false
	update(t, e, func(tx store.Tx) error {
		tx.OnCommit(func() { nothing = true })
		return nil
	})
	if !nothing {
		t.Error("did not run for an update that wrote nothing")
	}
}

func testOnCommitSees(t *testing.T, e store.Engine) {
	const n = 50
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			key := strconv.Itoa(i)
			if err := e.Update(t.Context(), func(tx store.Tx) error {
				tx.OnCommit(func() {
					if get(t, e, key) == nil {
						t.Errorf("%s is not there when OnCommit runs", key)
					}
					// It may start another update: the first one has ended.
					put(t, e, key+"'", "")
				})
				return tx.Put([]byte(key), nil)
			}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if got := len(scan(t, e, "", "")); got != 2*n {
		t.Errorf("%d entries, want %d", got, 2*n)
	}
}

func testEnded(t *testing.T, e store.Engine) {
	put(t, e, "a", "")
	var txs []store.Tx
	view(t, e, func(tx store.Tx) error { txs = append(txs, tx); return nil })
	update(t, e, func(tx store.Tx) error { txs = append(txs, tx); return nil })
	for _, tx := range txs {
		if _, err := tx.Get([]byte("a")); err == nil {
			t.Errorf("%T.Get works after the transaction", tx)
		}
		if err := tx.Put([]byte("b"), nil); err == nil {
			t.Errorf("%T.Put works after the transaction", tx)
		}
		if err := tx.Delete([]byte("a")); err == nil {
			t.Errorf("%T.Delete works after the transaction", tx)
		}
		if _, err := collect(tx, "", ""); err == nil {
			t.Errorf("%T.Scan works after the transaction", tx)
		}
	}
}

func testClosed(t *testing.T, e store.Engine) {
	put(t, e, "a", "")
	// Updates on their way when the engine is closed are committed or refused.
	var wg sync.WaitGroup
	for i := range 20 {
		wg.Go(func() {
			err := e.Update(t.Context(), func(tx store.Tx) error { return tx.Put(fmt.Append(nil, i), nil) })
			if err != nil && !errors.Is(err, store.ErrClosed) {
				t.Errorf("Update while closing = %v, want success or ErrClosed", err)
			}
		})
	}
	wg.Go(func() {
		if err := e.Close(); err != nil {
			t.Errorf("Close = %v", err)
		}
	})
	wg.Wait()
	nothing := func(store.Tx) error { t.Error("the function ran"); return nil }
	if err := e.View(t.Context(), nothing); !errors.Is(err, store.ErrClosed) {
		t.Errorf("View on a closed engine = %v, want ErrClosed", err)
	}
	if err := e.Update(t.Context(), nothing); !errors.Is(err, store.ErrClosed) {
		t.Errorf("Update on a closed engine = %v, want ErrClosed", err)
	}
	if err := e.Close(); err != nil {
		t.Errorf("the second Close = %v, want nil", err)
	}
}

func testEmptyUpdate(t *testing.T, e store.Engine) {
	put(t, e, "a", "1")
	var got []byte
	update(t, e, func(tx store.Tx) (err error) {
		got, err = tx.Get([]byte("a"))
		return err
	})
	if string(got) != "1" {
		t.Errorf("Get = %q, want 1", got)
	}
}
