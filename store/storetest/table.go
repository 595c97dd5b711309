package storetest

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"pgregory.net/rapid"

	"keystead/fault"
	"keystead/page"
	"keystead/store"
)

// thing is a record with an index of each sort.
type thing struct {
	Key    string            `cbor:"key"`
	Owner  string            `cbor:"owner,omitempty"`
	Serial string            `cbor:"serial,omitempty"`
	Tags   []string          `cbor:"tags,omitempty"`
	Extra  map[string]string `cbor:"extra,omitempty"`
}

var things = store.NewTable("thing",
	store.Index[thing]{Name: "owner", Counted: true, Terms: func(v thing) []store.Term { return store.Terms(v.Owner) }},
	store.Index[thing]{Name: "size", Counted: true, Only: true, Terms: func(v thing) []store.Term {
		return store.Terms(v.Owner, strconv.Itoa(len(v.Tags)))
	}},
	store.Index[thing]{Name: "serial", Unique: true, Terms: func(v thing) []store.Term {
		if v.Serial == "" {
			return nil
		}
		return store.Terms(v.Serial)
	}},
	store.Index[thing]{Name: "tag", Terms: func(v thing) []store.Term {
		terms := make([]store.Term, len(v.Tags))
		for i, tag := range v.Tags {
			terms[i] = store.TermOf(v.Owner, tag)
		}
		return terms
	}},
)

func insert(t *testing.T, e store.Engine, list ...thing) {
	t.Helper()
	update(t, e, func(tx store.Tx) error {
		for _, v := range list {
			if err := things.Insert(tx, v.Key, v); err != nil {
				return err
			}
		}
		return nil
	})
}

func keysOf(list []thing) []string {
	keys := make([]string, len(list))
	for i, v := range list {
		keys[i] = v.Key
	}
	return keys
}

func testTable(t *testing.T, e store.Engine) {
	v := thing{Key: "a", Owner: "o", Serial: "1", Tags: []string{"x"}, Extra: map[string]string{"k": "v"}}
	insert(t, e, v)
	update(t, e, func(tx store.Tx) error {
		if got, err := things.Get(tx, "a"); err != nil || got.Serial != "1" || got.Extra["k"] != "v" || !slices.Equal(got.Tags, v.Tags) {
			t.Errorf("Get = %+v, %v, want %+v", got, err, v)
		}
		if err := things.Insert(tx, "a", v); !fault.Is(err, fault.Conflict) {
			t.Errorf("Insert of a key that is there = %v, want Conflict", err)
		}
		if _, err := things.Get(tx, "b"); !fault.Is(err, fault.NotFound) {
			t.Errorf("Get of none = %v, want NotFound", err)
		}
		if _, err := things.GetBy(tx, "serial", store.TermOf("2")); !fault.Is(err, fault.NotFound) {
			t.Errorf("GetBy of none = %v, want NotFound", err)
		}
		if _, err := things.Delete(tx, "b"); !fault.Is(err, fault.NotFound) {
			t.Errorf("Delete of none = %v, want NotFound", err)
		}
		if _, err := things.Update(tx, "b", func(*thing) error { t.Error("ran"); return nil }); !fault.Is(err, fault.NotFound) {
			t.Errorf("Update of none = %v, want NotFound", err)
		}
		if err := things.Set(tx, "a", thing{Key: "a", Owner: "p"}); err != nil { // replaces
			return err
		}
		if err := things.Set(tx, "b", thing{Key: "b", Owner: "p", Serial: "1"}); err != nil { // adds; the serial is free again
			return err
		}
		has, err := things.Has(tx, "b")
		if !has {
			t.Error("Has(b) = false after Set")
		}
		return err
	})
	update(t, e, func(tx store.Tx) error {
		got, err := things.Delete(tx, "b")
		if got.Serial != "1" {
			t.Errorf("Delete returned %+v, want the record that was there", got)
		}
		_, err2 := things.Delete(tx, "a")
		return errors.Join(err, err2)
	})
	if got := scan(t, e, "", ""); got != nil {
		t.Errorf("entries left when every record is deleted: %q", got)
	}
}

func testTableUpdate(t *testing.T, e store.Engine) {
	insert(t, e, thing{Key: "a", Owner: "o", Tags: []string{"x", "y"}, Extra: map[string]string{"k": "1"}}, thing{Key: "b", Serial: "taken"})
	boom := errors.New("boom")
	update(t, e, func(tx store.Tx) error {
		if _, err := things.Update(tx, "a", func(v *thing) error { v.Owner = "changed"; return boom }); !errors.Is(err, boom) {
			t.Errorf("Update = %v, want the error of change", err)
		}
		return nil
	})
	if err := e.Update(t.Context(), func(tx store.Tx) error {
		_, err := things.Update(tx, "a", func(v *thing) error { v.Serial = "taken"; return nil })
		return err
	}); !fault.Is(err, fault.Conflict) {
		t.Errorf("Update to a serial that is taken = %v, want Conflict", err)
	}
	// What is changed in place, maps and slices too, is found by the new terms alone.
	update(t, e, func(tx store.Tx) error {
		v, err := things.Update(tx, "a", func(v *thing) error { v.Tags[0], v.Extra["k"] = "z", "2"; return nil })
		if v.Tags[0] != "z" || v.Owner != "o" {
			t.Errorf("Update returned %+v", v)
		}
		return err
	})
	view(t, e, func(tx store.Tx) error {
		for tag, want := range map[string]int{"x": 0, "y": 1, "z": 1} {
			if p, err := things.PageBy(tx, "tag", store.TermOf("o", tag), page.Request{}); err != nil || len(p.Items) != want {
				t.Errorf("tag %s finds %d records, %v, want %d", tag, len(p.Items), err, want)
			}
		}
		return nil
	})
}

func testUniqueRace(t *testing.T, e store.Engine) {
	const n = 20
	errs := make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			key := strconv.Itoa(i)
			errs[i] = e.Update(t.Context(), func(tx store.Tx) error {
				return things.Insert(tx, key, thing{Key: key, Owner: "o", Serial: "same"})
			})
		})
	}
	wg.Wait()
	won := 0
	for _, err := range errs {
		switch {
		case err == nil:
			won++
		case !fault.Is(err, fault.Conflict):
			t.Errorf("loser got %v, want Conflict", err)
		}
	}
	if won != 1 {
		t.Errorf("%d inserts of one serial succeeded", won)
	}
	view(t, e, func(tx store.Tx) error {
		n, err := things.Count(tx, "owner", store.TermOf("o"))
		if n != 1 {
			t.Errorf("Count = %d, want 1", n)
		}
		return err
	})
}

func testUniqueMoves(t *testing.T, e store.Engine) {
	insert(t, e, thing{Key: "a", Serial: "1"}, thing{Key: "b", Serial: "2"})
	move := func(key, serial string) error {
		return e.Update(t.Context(), func(tx store.Tx) error {
			_, err := things.Update(tx, key, func(v *thing) error { v.Serial = serial; return nil })
			return err
		})
	}
	for _, step := range []struct {
		key, serial string
		conflict    bool
	}{
		{"a", "2", true}, {"a", "1", false}, {"a", "3", false}, {"b", "1", false}, {"a", "1", true}, {"b", "", false}, {"a", "1", false},
	} {
		err := move(step.key, step.serial)
		if got := fault.Is(err, fault.Conflict); got != step.conflict || !got && err != nil {
			t.Errorf("moving %s to %q = %v, want a conflict: %t", step.key, step.serial, err, step.conflict)
		}
	}
	// Two records swap their serials by way of none, in one transaction.
	insert(t, e, thing{Key: "c", Serial: "9"})
	update(t, e, func(tx store.Tx) error {
		set := func(key, serial string) error {
			_, err := things.Update(tx, key, func(v *thing) error { v.Serial = serial; return nil })
			return err
		}
		return errors.Join(set("a", ""), set("c", "1"), set("a", "9"))
	})
	view(t, e, func(tx store.Tx) error {
		for serial, want := range map[string]string{"1": "c", "9": "a"} {
			if v, err := things.GetBy(tx, "serial", store.TermOf(serial)); err != nil || v.Key != want {
				t.Errorf("serial %s finds %q, %v, want %q", serial, v.Key, err, want)
			}
		}
		return nil
	})
}

func testUniqueTwice(t *testing.T, e store.Engine) {
	type named struct {
		Names []string `cbor:"names"`
	}
	table := store.NewTable("named", store.Index[named]{Name: "name", Unique: true, Counted: true, Terms: func(v named) []store.Term {
		terms := make([]store.Term, len(v.Names))
		for i, n := range v.Names {
			terms[i] = store.TermOf(n)
		}
		return terms
	}})
	count := func(want int) {
		t.Helper()
		view(t, e, func(tx store.Tx) error {
			n, err := table.Count(tx, "name", store.TermOf("x"))
			if n != want {
				t.Errorf("Count = %d, want %d", n, want)
			}
			return err
		})
	}
	update(t, e, func(tx store.Tx) error { return table.Insert(tx, "a", named{[]string{"x", "y", "x"}}) })
	count(1)
	update(t, e, func(tx store.Tx) error { return table.Set(tx, "a", named{[]string{"x", "x", "x"}}) })
	count(1)
	update(t, e, func(tx store.Tx) error { _, err := table.Delete(tx, "a"); return err })
	count(0)
	if got := scan(t, e, "", ""); got != nil {
		t.Errorf("entries left: %q", got)
	}
}

func testIndex(t *testing.T, e store.Engine) {
	insert(t, e, thing{Key: "a", Owner: "o", Serial: "1", Tags: []string{"x"}})
	steps := []struct {
		name  string
		write func(store.Tx) error
		want  thing
	}{
		{"Update", func(tx store.Tx) error {
			_, err := things.Update(tx, "a", func(v *thing) error { v.Owner, v.Serial = "p", "2"; return nil })
			return err
		}, thing{Owner: "p", Serial: "2", Tags: []string{"x"}}},
		{"Set", func(tx store.Tx) error {
			return things.Set(tx, "a", thing{Key: "a", Owner: "q", Serial: "3", Tags: []string{"x", "y"}})
		}, thing{Owner: "q", Serial: "3", Tags: []string{"x", "y"}}},
		{"Set to less", func(tx store.Tx) error { return things.Set(tx, "a", thing{Key: "a", Owner: "q"}) }, thing{Owner: "q"}},
	}
	for _, step := range steps {
		update(t, e, step.write)
		view(t, e, func(tx store.Tx) error {
			for _, serial := range []string{"1", "2", "3"} {
				_, err := things.GetBy(tx, "serial", store.TermOf(serial))
				if found := err == nil; found != (serial == step.want.Serial) {
					t.Errorf("after %s serial %s finds the record: %t", step.name, serial, found)
				}
			}
			for _, owner := range []string{"o", "p", "q"} {
				p, err := things.PageBy(tx, "owner", store.TermOf(owner), page.Request{})
				if found := len(p.Items) == 1; err != nil || found != (owner == step.want.Owner) {
					t.Errorf("after %s owner %s finds the record: %t, %v", step.name, owner, found, err)
				}
				for _, tag := range []string{"x", "y"} {
					p, err := things.PageBy(tx, "tag", store.TermOf(owner, tag), page.Request{})
					if found := len(p.Items) == 1; err != nil || found != (owner == step.want.Owner && slices.Contains(step.want.Tags, tag)) {
						t.Errorf("after %s tag %s of %s finds the record: %t, %v", step.name, tag, owner, found, err)
					}
				}
			}
			return nil
		})
	}
	update(t, e, func(tx store.Tx) error { _, err := things.Delete(tx, "a"); return err })
	if got := scan(t, e, "", ""); got != nil {
		t.Errorf("entries left after Delete: %q", got)
	}
}

// testTally counts by terms that no entry is kept for, over more than one transaction.
func testTally(t *testing.T, e store.Engine) {
	tally := func(owner string) map[string]int {
		t.Helper()
		got, last := map[string]int{}, ""
		err := things.Tally(t.Context(), e, "size", store.TermOf(owner), func(rest store.Term, n int) {
			if got[string(rest)] = n; string(rest) <= last {
				t.Errorf("%q comes after %q", rest, last)
			}
			last = string(rest)
		})
		if err != nil {
			t.Fatal(err)
		}
		return got
	}
	insert(t, e, thing{Key: "a", Owner: "o"}, thing{Key: "b", Owner: "o"}, thing{Key: "c", Owner: "o", Tags: []string{"x"}}, thing{Key: "d", Owner: "op"})
	if got := tally("o"); !maps.Equal(got, map[string]int{"0": 2, "1": 1}) {
		t.Errorf("got %v", got)
	}
	update(t, e, func(tx store.Tx) error {
		_, err := things.Delete(tx, "c")
		if err == nil {
			_, err = things.Update(tx, "b", func(v *thing) error { v.Tags = []string{"x", "y"}; return nil })
		}
		return err
	})
	if got := tally("o"); !maps.Equal(got, map[string]int{"0": 1, "2": 1}) {
		t.Errorf("after a change and a removal: got %v", got)
	}
	view(t, e, func(tx store.Tx) error {
		p, err := things.PageBy(tx, "size", store.TermOf("o"), page.Request{})
		if err != nil || len(p.Items) != 0 {
			t.Errorf("an index of counts only has %d entries, %v", len(p.Items), err)
		}
		return nil
	})
	var want int
	for n := range store.MaxScan/500 + 1 { // each term its own
		update(t, e, func(tx store.Tx) error {
			for i := range 500 {
				key := fmt.Sprintf("%d-%d", n, i)
				if err := wide.Insert(tx, key, thing{Key: key}); err != nil {
					return err
				}
			}
			return nil
		})
		want += 500
	}
	got := 0
	if err := wide.Tally(t.Context(), e, "key", store.TermOf("all"), func(_ store.Term, n int) { got += n }); err != nil || got != want {
		t.Errorf("got %d, %v, want %d", got, err, want)
	}
}

var wide = store.NewTable("wide", store.Index[thing]{Name: "key", Counted: true, Only: true, Terms: func(v thing) []store.Term { return store.Terms("all", v.Key) }})

func testCounts(t *testing.T, e store.Engine) {
	counts := func(want map[string]int) {
		t.Helper()
		view(t, e, func(tx store.Tx) error {
			for owner, want := range want {
				if n, err := things.Count(tx, "owner", store.TermOf(owner)); err != nil || n != want {
					t.Errorf("Count(%s) = %d, %v, want %d", owner, n, err, want)
				}
			}
			return nil
		})
	}
	for i := range 300 { // more than one byte of a count
		insert(t, e, thing{Key: strconv.Itoa(i), Owner: "o"})
	}
	counts(map[string]int{"o": 300, "p": 0})
	for i := range 10 {
		update(t, e, func(tx store.Tx) error {
			_, err := things.Update(tx, strconv.Itoa(i), func(v *thing) error { v.Owner = "p"; return nil })
			return err
		})
	}
	counts(map[string]int{"o": 290, "p": 10})
	boom := errors.New("boom")
	_ = e.Update(t.Context(), func(tx store.Tx) error {
		_, err := things.Delete(tx, "0")
		return errors.Join(err, boom)
	})
	update(t, e, func(tx store.Tx) error { _, err := things.Delete(tx, "1"); return err })
	update(t, e, func(tx store.Tx) error { return things.Set(tx, "2", thing{Key: "2", Owner: "p", Serial: "s"}) })
	counts(map[string]int{"o": 290, "p": 9})
}

func pages(t *testing.T, next func(page.Request) (page.Page[thing], error), size int) []string {
	t.Helper()
	var got []string
	r := page.Request{Limit: size}
	for range 1000 {
		p, err := next(r)
		if err != nil {
			t.Fatal(err)
		}
		if len(p.Items) > size {
			t.Fatalf("a page of %d has %d items", size, len(p.Items))
		}
		got = append(got, keysOf(p.Items)...)
		if p.Next == "" {
			return got
		}
		r.After = p.Next
	}
	t.Fatal("the pages do not end")
	return nil
}

func testPages(t *testing.T, e store.Engine) {
	const n = 23
	var want []string
	for i := range n {
		key := fmt.Sprintf("k%02d", i)
		want = append(want, key)
		insert(t, e, thing{Key: key, Owner: "o", Tags: []string{"x"}}, thing{Key: "p" + key, Owner: "p"}, thing{Key: "n" + key, Owner: "o\x00"})
	}
	for size := 1; size <= n+1; size++ {
		for name, read := range map[string]func(store.Tx, page.Request) (page.Page[thing], error){
			"by index": func(tx store.Tx, r page.Request) (page.Page[thing], error) {
				return things.PageBy(tx, "owner", store.TermOf("o"), r)
			},
			"by two parts": func(tx store.Tx, r page.Request) (page.Page[thing], error) {
				return things.PageBy(tx, "tag", store.TermOf("o", "x"), r)
			},
			"by the first part": func(tx store.Tx, r page.Request) (page.Page[thing], error) {
				return things.PageBy(tx, "tag", store.TermOf("o"), r)
			},
			"with a condition": func(tx store.Tx, r page.Request) (page.Page[thing], error) {
				return things.PageIf(tx, "owner", store.TermOf("o"), r, func(v thing) bool { return v.Owner == "o" })
			},
		} {
			got := pages(t, func(r page.Request) (p page.Page[thing], err error) {
				view(t, e, func(tx store.Tx) error {
					p, err = read(tx, r)
					return nil
				})
				return p, err
			}, size)
			if !slices.Equal(got, want) {
				t.Errorf("pages of %d %s: %q, want %q", size, name, got, want)
			}
		}
		got := pages(t, func(r page.Request) (p page.Page[thing], err error) {
			view(t, e, func(tx store.Tx) error {
				p, err = things.Page(tx, r)
				return nil
			})
			return p, err
		}, size)
		if len(got) != 3*n || !slices.IsSorted(got) {
			t.Errorf("pages of %d of the table: %d records, want %d", size, len(got), 3*n)
		}
	}
}

// testPagesMoving changes the table between pages: what is there all the time
// must be seen once.
func testPagesMoving(t *testing.T, e store.Engine) {
	for i := range 20 {
		insert(t, e, thing{Key: fmt.Sprintf("k%02d", i*2), Owner: "o"})
	}
	step := 0
	got := pages(t, func(r page.Request) (p page.Page[thing], err error) {
		update(t, e, func(tx store.Tx) error {
			if step > 0 && step < 19 { // delete what was just returned, add before and after
				if _, err := things.Delete(tx, fmt.Sprintf("k%02d", (step-1)*2)); err != nil {
					return err
				}
				if err := things.Insert(tx, fmt.Sprintf("a%02d", step), thing{Key: fmt.Sprintf("a%02d", step), Owner: "o"}); err != nil {
					return err
				}
			}
			step++
			p, err = things.PageBy(tx, "owner", store.TermOf("o"), r)
			return nil
		})
		return p, err
	}, 1)
	var want []string
	for i := range 20 {
		want = append(want, fmt.Sprintf("k%02d", i*2))
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func testPageIf(t *testing.T, e store.Engine) {
	const n = store.MaxScan + 50
	update(t, e, func(tx store.Tx) error {
		for i := range n {
			key := fmt.Sprintf("k%04d", i)
			if err := things.Insert(tx, key, thing{Key: key, Owner: "o"}); err != nil {
				return err
			}
		}
		return nil
	})
	looked := 0
	last := func(v thing) bool { looked++; return v.Key == fmt.Sprintf("k%04d", n-1) }
	var p page.Page[thing]
	view(t, e, func(tx store.Tx) (err error) {
		p, err = things.PageIf(tx, "owner", store.TermOf("o"), page.Request{}, last)
		return err
	})
	if looked != store.MaxScan || len(p.Items) != 0 || p.Next == "" {
		t.Errorf("looked at %d records, %d items, next %q; want %d, none, and a next page", looked, len(p.Items), p.Next, store.MaxScan)
	}
	view(t, e, func(tx store.Tx) (err error) {
		p, err = things.PageIf(tx, "owner", store.TermOf("o"), page.Request{After: p.Next}, last)
		return err
	})
	if len(p.Items) != 1 || p.Next != "" {
		t.Errorf("the second page has %d items and next %q, want the last record and no more", len(p.Items), p.Next)
	}
}

func testTerms(t *testing.T, e store.Engine) {
	odd := []string{"", "\x00", "\x01", "a", "a\x00", "a\x00b", "a\x01", "a\x01\x01", "a\x01\x02", "b", "\xff", "a\x00\x01", "r", "#owner", "é\x00"}
	for _, owner := range odd {
		key := "key of " + owner // the key has the odd bytes, too
		insert(t, e, thing{Key: key, Owner: owner, Serial: owner, Tags: odd})
	}
	view(t, e, func(tx store.Tx) error {
		for _, owner := range odd {
			p, err := things.PageBy(tx, "owner", store.TermOf(owner), page.Request{})
			if got, want := keysOf(p.Items), []string{"key of " + owner}; err != nil || !slices.Equal(got, want) {
				t.Errorf("owner %q finds %q, %v, want %q", owner, got, err, want)
			}
			if n, err := things.Count(tx, "owner", store.TermOf(owner)); err != nil || n != 1 {
				t.Errorf("Count(%q) = %d, %v, want 1", owner, n, err)
			}
			if owner != "" {
				if v, err := things.GetBy(tx, "serial", store.TermOf(owner)); err != nil || v.Owner != owner {
					t.Errorf("serial %q finds %q, %v", owner, v.Key, err)
				}
			}
			for _, tag := range odd {
				p, err := things.PageBy(tx, "tag", store.TermOf(owner, tag), page.Request{})
				if err != nil || len(p.Items) != 1 || p.Items[0].Owner != owner {
					t.Errorf("tag %q of %q finds %q, %v", tag, owner, keysOf(p.Items), err)
				}
			}
		}
		return nil
	})
	if got := pages(t, func(r page.Request) (p page.Page[thing], err error) {
		view(t, e, func(tx store.Tx) error { p, err = things.Page(tx, r); return nil })
		return p, err
	}, 2); len(got) != len(odd) {
		t.Errorf("pages of the table have %d records, want %d", len(got), len(odd))
	}
}

func testTermPrefix(t *testing.T, e store.Engine) {
	insert(t, e, thing{Key: "1", Owner: "o", Tags: []string{"x", "xy"}}, thing{Key: "2", Owner: "ox", Tags: []string{"x"}})
	view(t, e, func(tx store.Tx) error {
		for _, test := range []struct {
			term store.Term
			want []string
		}{
			{store.TermOf("o"), []string{"1", "1"}}, // once for each tag
			{store.TermOf("o", "x"), []string{"1"}},
			{store.TermOf("o", "xy"), []string{"1"}},
			{store.TermOf("ox"), []string{"2"}},
			{store.TermOf(""), []string{}},
		} {
			p, err := things.PageBy(tx, "tag", test.term, page.Request{})
			if got := keysOf(p.Items); err != nil || !slices.Equal(got, test.want) {
				t.Errorf("the term %q finds %q, %v, want %q", test.term, got, err, test.want)
			}
		}
		return nil
	})
}

func testForgedCursor(t *testing.T, e store.Engine) {
	insert(t, e, thing{Key: "1", Owner: "mine"}, thing{Key: "2", Owner: "mine"}, thing{Key: "3", Owner: "theirs"}, thing{Key: "0", Owner: "a"})
	for _, test := range []struct {
		name   string
		cursor page.Cursor
		want   []string
		kind   fault.Kind
	}{
		{"of the beginning", page.At(""), []string{"1", "2"}, 0},
		{"of a key before all", page.At("\x00"), []string{"1", "2"}, 0},
		{"of a key between", page.At("1\x00"), []string{"2"}, 0},
		{"of a key that leads out", page.At("\xff\xff"), []string{}, 0},
		{"of another term", page.At("\x00thing\x00owner\x00theirs"), []string{"1", "2"}, 0},
		{"a very long one", page.At(strings.Repeat("x", 5000)), nil, fault.Invalid},
		{"that is not base64", "!!!", nil, fault.Invalid},
	} {
		view(t, e, func(tx store.Tx) error {
			p, err := things.PageBy(tx, "owner", store.TermOf("mine"), page.Request{After: test.cursor})
			if test.want == nil {
				if !fault.Is(err, test.kind) {
					t.Errorf("a cursor %s: %v, want the kind %v", test.name, err, test.kind)
				}
				return nil
			}
			if got := keysOf(p.Items); err != nil || !slices.Equal(got, test.want) {
				t.Errorf("a cursor %s: %q, %v, want %q", test.name, got, err, test.want)
			}
			return nil
		})
	}
}

func testAll(t *testing.T, e store.Engine) {
	const n = 2*store.MaxScan + 1
	update(t, e, func(tx store.Tx) error {
		for i := range n {
			key := fmt.Sprintf("k%04d", i)
			if err := things.Insert(tx, key, thing{Key: key, Owner: strconv.Itoa(i % 2)}); err != nil {
				return err
			}
		}
		return nil
	})
	for _, test := range []struct {
		index string
		term  store.Term
		want  int
	}{{"", "", n}, {"owner", store.TermOf("0"), store.MaxScan + 1}, {"owner", store.TermOf("1"), store.MaxScan}, {"owner", store.TermOf("2"), 0}} {
		var got []string
		for v, err := range things.All(t.Context(), e, test.index, test.term) {
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, v.Key)
		}
		if len(got) != test.want || !slices.IsSorted(got) || len(slices.Compact(got)) != test.want {
			t.Errorf("All(%q, %q) yields %d records, want %d, each once and in order", test.index, test.term, len(got), test.want)
		}
	}
}

func testAllWrites(t *testing.T, e store.Engine) {
	const n = store.MaxScan + 10
	update(t, e, func(tx store.Tx) error {
		for i := range n {
			key := fmt.Sprintf("k%04d", i)
			if err := things.Insert(tx, key, thing{Key: key, Owner: "o"}); err != nil {
				return err
			}
		}
		return nil
	})
	seen := 0
	for v, err := range things.All(t.Context(), e, "owner", store.TermOf("o")) {
		if err != nil {
			t.Fatal(err)
		}
		if seen++; seen%100 != 0 && seen != store.MaxScan {
			continue
		}
		update(t, e, func(tx store.Tx) error { _, err := things.Delete(tx, v.Key); return err })
	}
	if seen != n {
		t.Errorf("All yields %d records while some are deleted behind it, want %d", seen, n)
	}
}

func testDamagedRecord(t *testing.T, e store.Engine) {
	insert(t, e, thing{Key: "a", Owner: "o"}, thing{Key: "b", Owner: "o"})
	put(t, e, "thing\x00r\x00a", "\xff not CBOR")
	view(t, e, func(tx store.Tx) error {
		if _, err := things.Get(tx, "a"); !errors.Is(err, store.ErrCorrupt) {
			t.Errorf("Get of a record that cannot be read = %v, want ErrCorrupt", err)
		}
		if _, err := things.Get(tx, "b"); err != nil {
			t.Errorf("Get of another one = %v", err)
		}
		if _, err := things.Page(tx, page.Request{}); !errors.Is(err, store.ErrCorrupt) {
			t.Errorf("Page = %v, want ErrCorrupt", err)
		}
		return nil
	})
}

// Model does random things to a table on e, which needs not be durable, and to a
// map, and compares them.
func Model(t *testing.T, e store.Engine) {
	ctx := t.Context()
	round := 0
	rapid.Check(t, func(t *rapid.T) {
		round++
		table := store.NewTable("model "+strconv.Itoa(round),
			store.Index[thing]{Name: "owner", Counted: true, Terms: func(v thing) []store.Term { return store.Terms(v.Owner) }},
			store.Index[thing]{Name: "serial", Unique: true, Terms: func(v thing) []store.Term {
				if v.Serial == "" {
					return nil
				}
				return store.Terms(v.Serial)
			}},
			store.Index[thing]{Name: "tag", Counted: true, Terms: func(v thing) []store.Term {
				terms := make([]store.Term, len(v.Tags))
				for i, tag := range v.Tags {
					terms[i] = store.TermOf(v.Owner, tag)
				}
				return terms
			}},
		)
		small := rapid.SampledFrom([]string{"", "a", "b", "a\x00", "\x01", "c"})
		key := rapid.SampledFrom([]string{"1", "2", "3", "4\x00", "4"})
		record := rapid.Custom(func(t *rapid.T) thing {
			return thing{Owner: small.Draw(t, "owner"), Serial: small.Draw(t, "serial"), Tags: rapid.SliceOfN(small, 0, 3).Draw(t, "tags")}
		})
		model := map[string]thing{}
		serialTaken := func(key string, v thing) bool {
			for k, other := range model {
				if k != key && v.Serial != "" && other.Serial == v.Serial {
					return true
				}
			}
			return false
		}
		// write runs fn in a transaction that may be given up, and says what should
		// come of it and what the model is then.
		write := func(t *rapid.T, want fault.Kind, after func(), fn func(store.Tx) error) {
			boom := errors.New("given up")
			abort := rapid.Bool().Draw(t, "abort")
			err := e.Update(ctx, func(tx store.Tx) error {
				if err := fn(tx); err != nil {
					return err
				}
				if abort {
					return boom
				}
				return nil
			})
			switch {
			case want != fault.Internal && !fault.Is(err, want):
				t.Fatalf("got %v, want the kind %v", err, want)
			case want == fault.Internal && abort && !errors.Is(err, boom), want == fault.Internal && !abort && err != nil:
				t.Fatalf("got %v, want success", err)
			case err == nil:
				after()
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"Insert": func(t *rapid.T) {
				k, v := key.Draw(t, "key"), record.Draw(t, "record")
				v.Key = k
				want := fault.Internal
				if _, there := model[k]; there || serialTaken(k, v) {
					want = fault.Conflict
				}
				write(t, want, func() { model[k] = v }, func(tx store.Tx) error { return table.Insert(tx, k, v) })
			},
			"Set": func(t *rapid.T) {
				k, v := key.Draw(t, "key"), record.Draw(t, "record")
				v.Key = k
				want := fault.Internal
				if serialTaken(k, v) {
					want = fault.Conflict
				}
				write(t, want, func() { model[k] = v }, func(tx store.Tx) error { return table.Set(tx, k, v) })
			},
			"Update": func(t *rapid.T) {
				k, v := key.Draw(t, "key"), record.Draw(t, "record")
				v.Key = k
				want := fault.Internal
				if _, there := model[k]; !there {
					want = fault.NotFound
				} else if serialTaken(k, v) {
					want = fault.Conflict
				}
				write(t, want, func() { model[k] = v }, func(tx store.Tx) error {
					_, err := table.Update(tx, k, func(to *thing) error { *to = v; return nil })
					return err
				})
			},
			"Delete": func(t *rapid.T) {
				k := key.Draw(t, "key")
				want := fault.Internal
				if _, there := model[k]; !there {
					want = fault.NotFound
				}
				write(t, want, func() { delete(model, k) }, func(tx store.Tx) error { _, err := table.Delete(tx, k); return err })
			},
			"": func(t *rapid.T) { compare(ctx, t, e, table, model) },
		})
	})
}

// compare looks at a table in every way there is.
func compare(ctx context.Context, t *rapid.T, e store.Engine, table *store.Table[thing], model map[string]thing) {
	values := []string{"", "a", "b", "a\x00", "\x01", "c"}
	find := func(keep func(thing) int) []string {
		keys := []string{}
		for k, v := range model {
			for range keep(v) {
				keys = append(keys, k)
			}
		}
		slices.Sort(keys)
		return keys
	}
	err := e.View(ctx, func(tx store.Tx) error {
		p, err := table.Page(tx, page.Request{})
		if got, want := keysOf(p.Items), slices.Sorted(maps.Keys(model)); err != nil || !slices.Equal(got, want) {
			t.Fatalf("the table holds %q, %v, want %q", got, err, want)
		}
		for k, want := range model {
			if got, err := table.Get(tx, k); err != nil || got.Owner != want.Owner || got.Serial != want.Serial || !slices.Equal(got.Tags, want.Tags) {
				t.Fatalf("Get(%q) = %+v, %v, want %+v", k, got, err, want)
			}
		}
		for _, value := range values {
			by := func(index string, term store.Term, want []string) {
				p, err := table.PageBy(tx, index, term, page.Request{})
				got := keysOf(p.Items)
				slices.Sort(got)
				if err != nil || !slices.Equal(got, want) {
					t.Fatalf("%s %q finds %q, %v, want %q", index, term, got, err, want)
				}
			}
			owned := find(func(v thing) int { return count(v.Owner == value) })
			by("owner", store.TermOf(value), owned)
			if n, err := table.Count(tx, "owner", store.TermOf(value)); err != nil || n != len(owned) {
				t.Fatalf("Count(%q) = %d, %v, want %d", value, n, err, len(owned))
			}
			for _, tag := range values {
				tagged := find(func(v thing) int { return count(v.Owner == value && slices.Contains(v.Tags, tag)) })
				by("tag", store.TermOf(value, tag), tagged)
				if n, err := table.Count(tx, "tag", store.TermOf(value, tag)); err != nil || n != len(tagged) {
					t.Fatalf("Count(%q, %q) = %d, %v, want %d", value, tag, n, err, len(tagged))
				}
			}
			got, err := table.GetBy(tx, "serial", store.TermOf(value))
			want := find(func(v thing) int { return count(value != "" && v.Serial == value) })
			if found := err == nil; found != (len(want) == 1) || found && got.Key != want[0] {
				t.Fatalf("serial %q finds %q, %v, want %q", value, got.Key, err, want)
			}
		}
		if len(model) == 0 {
			if left, err := collect(tx, table.Name()+"\x00", ""); err != nil || len(left) > 0 {
				t.Fatalf("entries left in an empty table: %q, %v", left, err)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

func count(one bool) int {
	if one {
		return 1
	}
	return 0
}
