package bolt

import (
	"iter"
	"slices"
	"strings"

	"keystead/store"
)

// layer holds writes that are not yet in what it lies over.
type layer struct {
	under  source
	writes map[string][]byte // nil: deleted
	room   int               // for how many writes there is to be room at first
	runs   [][]string        // keys of writes, each run in order and less than half of the one before
	fresh  []string          // the rest of the keys, as they came
}

func (l *layer) get(key []byte) ([]byte, error) {
	if v, ok := l.writes[string(key)]; ok {
		return v, nil
	}
	return l.under.get(key)
}

// set takes value over; nil deletes.
func (l *layer) set(key string, value []byte) {
	if l.writes == nil {
		l.writes = make(map[string][]byte, l.room)
	}
	if _, ok := l.writes[key]; !ok {
		l.fresh = append(l.fresh, key)
	}
	l.writes[key] = value
}

// take adds the writes of a layer that lies over l, and is not used any more.
func (l *layer) take(over *layer) {
	if len(l.writes) == 0 {
		l.writes, l.runs, l.fresh = over.writes, over.runs, over.fresh
		return
	}
	for k, v := range over.writes {
		l.set(k, v)
	}
}

// order makes a run of the fresh keys. Runs are merged as they grow, each key a
// few times: a scan after every write of a large batch must not sort all of it.
func (l *layer) order() {
	if len(l.fresh) == 0 {
		return
	}
	slices.Sort(l.fresh)
	l.runs, l.fresh = append(l.runs, l.fresh), nil
	for n := len(l.runs); n > 1 && 2*len(l.runs[n-1]) >= len(l.runs[n-2]); n-- {
		l.runs = append(l.runs[:n-2], merged(l.runs[n-2], l.runs[n-1]))
	}
}

// merged returns the keys of two runs, in order.
func merged(a, b []string) []string {
	all := make([]string, 0, len(a)+len(b))
	for len(a) > 0 && len(b) > 0 {
		if a[0] < b[0] {
			all, a = append(all, a[0]), a[1:]
		} else {
			all, b = append(all, b[0]), b[1:]
		}
	}
	return append(append(all, a...), b...)
}

// keys returns the keys of the writes, in order.
func (l *layer) keys() []string {
	l.order()
	var all []string
	for _, run := range slices.Backward(l.runs) {
		all = merged(all, run)
	}
	return all
}

// between returns the keys of the writes that have prefix and are after the key
// after.
func (l *layer) between(prefix, after []byte) []string {
	l.order()
	from, skip := start(prefix, after)
	var found []string
	for _, run := range l.runs {
		i, there := slices.BinarySearch(run, string(from))
		if there && skip {
			i++
		}
		n := i
		for n < len(run) && strings.HasPrefix(run[n], string(prefix)) {
			n++
		}
		if n > i {
			found = merged(found, run[i:n])
		}
	}
	return found
}

// scan yields what is under l, with the writes in their places.
func (l *layer) scan(prefix, after []byte) iter.Seq2[store.Entry, error] {
	return func(yield func(store.Entry, error) bool) {
		own := l.between(prefix, after)
		next := func() bool {
			k := own[0]
			own = own[1:]
			v := l.writes[k]
			return v == nil || yield(store.Entry{Key: []byte(k), Value: v}, nil)
		}
		for e, err := range l.under.scan(prefix, after) {
			if err != nil {
				yield(e, err)
				return
			}
			for len(own) > 0 && own[0] < string(e.Key) {
				if !next() {
					return
				}
			}
			if len(own) > 0 && own[0] == string(e.Key) {
				if !next() {
					return
				}
				continue
			}
			if !yield(e, nil) {
				return
			}
		}
		for len(own) > 0 {
			if !next() {
				return
			}
		}
	}
}
