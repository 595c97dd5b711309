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
	sorted []string          // keys of writes, in order; replaced, never changed in place
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
		l.writes = map[string][]byte{}
	}
	if _, ok := l.writes[key]; !ok {
		l.fresh = append(l.fresh, key)
	}
	l.writes[key] = value
}

// take adds the writes of a layer that lies over l, and is not used any more.
func (l *layer) take(over *layer) {
	if len(l.writes) == 0 {
		l.writes, l.sorted, l.fresh = over.writes, over.sorted, over.fresh
		return
	}
	for k, v := range over.writes {
		l.set(k, v)
	}
}

// keys returns the keys of the writes, in order.
func (l *layer) keys() []string {
	if len(l.fresh) == 0 {
		return l.sorted
	}
	slices.Sort(l.fresh)
	all := make([]string, 0, len(l.sorted)+len(l.fresh))
	a, b := l.sorted, l.fresh
	for len(a) > 0 && len(b) > 0 {
		if a[0] < b[0] {
			all, a = append(all, a[0]), a[1:]
		} else {
			all, b = append(all, b[0]), b[1:]
		}
	}
	l.sorted, l.fresh = append(append(all, a...), b...), nil
	return l.sorted
}

// between returns the keys of the writes that have prefix and are after the key
// after.
func (l *layer) between(prefix, after []byte) []string {
	from, skip := start(prefix, after)
	keys := l.keys()
	i, there := slices.BinarySearch(keys, string(from))
	if there && skip {
		i++
	}
	keys = keys[i:]
	for i, k := range keys {
		if !strings.HasPrefix(k, string(prefix)) {
			return keys[:i]
		}
	}
	return keys
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
