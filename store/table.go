package store

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"iter"
	"math"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/fxamacker/cbor/v2"

	"keystead/fault"
	"keystead/page"
)

// Table is a set of records of one type, by string key, stored as CBOR (field
// names from `cbor` or `json` tags).
//
// Keys in the engine: "name\x00r\x00key" for a record; "name\x00index\x00term\x00key"
// for an entry of an index, which has no value; "name\x00index\x00term" for one of a
// unique index, whose value is the record's key; "name\x00#index\x00term" for the
// number of records with a term in a counted index.
type Table[T any] struct {
	name    string
	indexes []Index[T]
	watched bool
	changes atomic.Uint64 // of a watched table: how often one of its records was changed
}

// Index finds records by terms other than their key.
type Index[T any] struct {
	Name    string
	Unique  bool           // at most one record has a term
	Counted bool           // keep the number of records with each term, for Count and Tally
	Only    bool           // keep that number only: the index finds no records
	Terms   func(T) []Term // all of the same number of parts; none leaves the record out
}

// Term is what an index is searched by: one or more parts, made by [TermOf].
type Term string

// TermOf returns the term of the given parts. Whatever bytes they hold, two
// different lists of parts never make the same term, nor one a prefix of the
// other unless the parts are.
func TermOf(parts ...string) Term {
	for i, p := range parts {
		parts[i] = escape(p)
	}
	return Term(strings.Join(parts, "\x00"))
}

// Terms returns the one term of the given parts, as an index wants it.
func Terms(parts ...string) []Term { return []Term{TermOf(parts...)} }

// escape keeps byte order and removes the separator from s.
func escape(s string) string {
	if strings.IndexByte(s, 0) < 0 && strings.IndexByte(s, 1) < 0 {
		return s
	}
	b := make([]byte, 0, len(s)+8)
	for i := range len(s) {
		if c := s[i]; c <= 1 {
			b = append(b, 1, c+1)
		} else {
			b = append(b, c)
		}
	}
	return string(b)
}

// NewTable describes a table. The name is part of every key: it never changes.
func NewTable[T any](name string, indexes ...Index[T]) *Table[T] {
	return &Table[T]{name: name, indexes: indexes}
}

// Watched has the changes of the table counted, for [Memo.Latest]: for tables that
// are seldom written.
func (t *Table[T]) Watched() *Table[T] {
	t.watched = true
	return t
}

// Name is what errors and audit call a record of the table.
func (t *Table[T]) Name() string { return t.name }

func (t *Table[T]) key(parts ...string) []byte {
	n := len(t.name) + len(parts)
	for _, p := range parts {
		n += len(p)
	}
	b := append(make([]byte, 0, n), t.name...)
	for _, p := range parts {
		b = append(append(b, 0), p...)
	}
	return b
}

func (t *Table[T]) record(key string) []byte { return t.key("r", escape(key)) }

func (t *Table[T]) entry(i Index[T], term Term, key string) []byte {
	if i.Unique {
		return t.key(i.Name, string(term))
	}
	return t.key(i.Name, string(term), escape(key))
}

// Get returns the record under key, or a NotFound fault.
func (t *Table[T]) Get(tx Tx, key string) (T, error) {
	return t.load(tx, t.record(key))
}

func (t *Table[T]) load(tx Tx, key []byte) (v T, err error) {
	b, err := tx.Get(key)
	if err != nil {
		return v, err
	}
	if b == nil {
		return v, t.missing()
	}
	return t.decode(key, b)
}

func (t *Table[T]) missing() error { return fault.New(fault.NotFound, "no such %s", t.name) }

func (t *Table[T]) decode(key, b []byte) (v T, err error) {
	if u, ok := any(&v).(Unmarshaler); ok {
		err = u.UnmarshalCBOR(b)
	} else {
		err = decoding.Unmarshal(b, &v)
	}
	if err != nil {
		return v, fmt.Errorf("%w: %s %q: %w", ErrCorrupt, t.name, key, err)
	}
	return v, nil
}

// Has reports whether there is a record under key.
func (t *Table[T]) Has(tx Tx, key string) (bool, error) {
	b, err := tx.Get(t.record(key))
	return b != nil, err
}

// Insert adds a record. It is a Conflict if key, or a unique term, is taken.
func (t *Table[T]) Insert(tx Tx, key string, v T) error {
	taken, err := t.Has(tx, key)
	if err != nil {
		return err
	}
	if taken {
		return fault.New(fault.Conflict, "the %s exists already", t.name)
	}
	return t.write(tx, key, nil, v)
}

// Set adds a record or replaces the one under key. It is a Conflict if a unique
// term belongs to another record.
func (t *Table[T]) Set(tx Tx, key string, v T) error {
	old, err := t.Get(tx, key)
	switch {
	case fault.Is(err, fault.NotFound):
		return t.write(tx, key, nil, v)
	case err != nil:
		return err
	}
	return t.write(tx, key, t.terms(old), v)
}

// Put adds a record or replaces the one under key, without a look at it: it is for
// tables without an index.
func (t *Table[T]) Put(tx Tx, key string, v T) error { return t.write(tx, key, nil, v) }

// Update changes the record under key in place and returns what it became, or
// a NotFound fault. An error of change leaves the record as it was.
func (t *Table[T]) Update(tx Tx, key string, change func(*T) error) (T, error) {
	b, err := tx.Get(t.record(key))
	if err != nil {
		var zero T
		return zero, err
	}
	if b == nil {
		var zero T
		return zero, t.missing()
	}
	v, err := t.decode(t.record(key), b)
	if err != nil {
		return v, err
	}
	before := t.terms(v)
	if err := change(&v); err != nil {
		return v, err
	}
	return v, t.write(tx, key, before, v)
}

// Delete removes the record under key and returns it, or a NotFound fault.
func (t *Table[T]) Delete(tx Tx, key string) (T, error) {
	v, err := t.Get(tx, key)
	if err != nil {
		return v, err
	}
	for _, i := range t.indexes {
		if err := t.reindex(tx, i, key, i.Terms(v), nil); err != nil {
			return v, err
		}
	}
	t.changed(tx)
	return v, tx.Delete(t.record(key))
}

// changed counts a change once it is durable, and before Update returns.
func (t *Table[T]) changed(tx Tx) {
	if t.watched {
		tx.OnCommit(func() { t.changes.Add(1) })
	}
}

// GetBy returns the record with term in the named unique index, or a NotFound
// fault.
func (t *Table[T]) GetBy(tx Tx, index string, term Term) (v T, err error) {
	key, err := tx.Get(t.key(index, string(term)))
	if err != nil {
		return v, err
	}
	if key == nil {
		return v, t.missing()
	}
	return t.Get(tx, string(key))
}

// Count returns how many records have term in the named counted index.
func (t *Table[T]) Count(tx Tx, index string, term Term) (int, error) {
	b, err := tx.Get(t.key("#"+index, string(term)))
	if err != nil {
		return 0, err
	}
	n, _ := binary.Uvarint(b)
	return int(n), nil //nolint:gosec // G115: a count of records in memory's range
}

// Tally gives each the terms of the named counted index that begin with the parts of
// term, without those parts, in order, and how many records have them. It reads in
// transactions of [MaxScan] terms.
func (t *Table[T]) Tally(ctx context.Context, db Engine, index string, term Term, each func(rest Term, n int)) error {
	prefix := t.key("#"+index, string(term), "")
	type counted struct {
		rest Term
		n    int
	}
	var after []byte
	for {
		var batch []counted
		err := db.View(ctx, func(tx Tx) error {
			for e, err := range tx.Scan(prefix, after) {
				if err != nil {
					return err
				}
				n, _ := binary.Uvarint(e.Value)
				batch, after = append(batch, counted{Term(e.Key[len(prefix):]), int(n)}), e.Key //nolint:gosec // G115: a count of records in memory's range
				if len(batch) == MaxScan {
					break
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
		for _, c := range batch {
			each(c.rest, c.n)
		}
		if len(batch) < MaxScan {
			return nil
		}
	}
}

// Page returns one page of the table, in the order of keys.
func (t *Table[T]) Page(tx Tx, r page.Request) (page.Page[T], error) {
	return t.collect(tx, t.key("r", ""), r, nil)
}

// PageBy returns one page of the records whose term in the named index, not a
// unique one, is term or begins with its parts.
func (t *Table[T]) PageBy(tx Tx, index string, term Term, r page.Request) (page.Page[T], error) {
	return t.collect(tx, t.key(index, string(term), ""), r, nil)
}

// PageIf is PageBy with only the records keep accepts. It looks at [MaxScan]
// records at most: a page may be short and still have a next one.
func (t *Table[T]) PageIf(tx Tx, index string, term Term, r page.Request, keep func(T) bool) (page.Page[T], error) {
	return t.collect(tx, t.key(index, string(term), ""), r, keep)
}

func (t *Table[T]) collect(tx Tx, prefix []byte, r page.Request, keep func(T) bool) (page.Page[T], error) {
	p := page.Page[T]{Items: []T{}}
	after, err := start(prefix, r.After)
	if err != nil {
		return p, err
	}
	var last string
	seen := 0
	for row, err := range t.rows(tx, prefix, after) {
		if err != nil {
			return p, err
		}
		if len(p.Items) == r.Size() || seen == MaxScan {
			p.Next = page.At(last)
			break
		}
		seen++
		last = string(row.at[len(prefix):])
		if keep == nil || keep(row.value) {
			p.Items = append(p.Items, row.value)
		}
	}
	return p, nil
}

func start(prefix []byte, c page.Cursor) ([]byte, error) {
	if c == "" {
		return nil, nil
	}
	key, err := c.Key()
	return append(slices.Clip(prefix), key...), err
}

// row is a record and where the scan that found it stands.
type row[T any] struct {
	at    []byte
	value T
}

// rows yields the records of the entries with prefix: the table's own, or those
// an index points to.
func (t *Table[T]) rows(tx Tx, prefix, after []byte) iter.Seq2[row[T], error] {
	direct := strings.HasPrefix(string(prefix), t.name+"\x00r\x00")
	return func(yield func(row[T], error) bool) {
		for e, err := range tx.Scan(prefix, after) {
			var v T
			switch {
			case err != nil:
			case direct:
				v, err = t.decode(e.Key, e.Value)
			default: // behind the last separator is the record's key, as it stands in that
				key := e.Key[bytes.LastIndexByte(e.Key, 0)+1:]
				v, err = t.load(tx, t.key("r", string(key)))
			}
			if !yield(row[T]{e.Key, v}, err) || err != nil {
				return
			}
		}
	}
}

// From returns up to size records whose term in the named index, not a unique
// one, is term or begins with its parts, from the start-th on: for lists that
// outside clients page by number. It steps over the entries before in
// transactions of [MaxScan].
func (t *Table[T]) From(ctx context.Context, db Engine, index string, term Term, start, size int) ([]T, error) {
	prefix := t.key(index, string(term), "")
	var after []byte
	for start > 0 {
		skipped := 0
		err := db.View(ctx, func(tx Tx) error {
			for e, err := range tx.Scan(prefix, after) {
				if err != nil {
					return err
				}
				after = e.Key
				if skipped++; skipped == start || skipped == MaxScan {
					break
				}
			}
			return nil
		})
		if err != nil || skipped == 0 {
			return nil, err
		}
		start -= skipped
	}
	var list []T
	err := db.View(ctx, func(tx Tx) error {
		for row, err := range t.rows(tx, prefix, after) {
			if err != nil {
				return err
			}
			if len(list) == min(size, MaxScan) {
				break
			}
			list = append(list, row.value)
		}
		return nil
	})
	return list, err
}

// All yields every record whose term in the named index is term or begins with
// its parts; index "" stands for the table itself. It reads in transactions of
// [MaxScan] records, so it sees changes made meanwhile, and the loop may write.
func (t *Table[T]) All(ctx context.Context, db Engine, index string, term Term) iter.Seq2[T, error] {
	prefix := t.key("r", "")
	if index != "" {
		prefix = t.key(index, string(term), "")
	}
	return func(yield func(T, error) bool) {
		var after []byte
		for {
			batch, err := t.batch(ctx, db, prefix, after)
			for _, row := range batch {
				if !yield(row.value, nil) {
					return
				}
			}
			if err != nil {
				var zero T
				yield(zero, err)
				return
			}
			if len(batch) < MaxScan {
				return
			}
			after = batch[len(batch)-1].at
		}
	}
}

func (t *Table[T]) batch(ctx context.Context, db Engine, prefix, after []byte) (batch []row[T], err error) {
	err = db.View(ctx, func(tx Tx) error {
		for row, err := range t.rows(tx, prefix, after) {
			if err != nil {
				return err
			}
			if batch = append(batch, row); len(batch) == MaxScan {
				return nil
			}
		}
		return nil
	})
	return batch, err
}

// terms returns what v is found by, index by index.
func (t *Table[T]) terms(v T) [][]Term {
	if len(t.indexes) == 0 {
		return nil
	}
	all := make([][]Term, len(t.indexes))
	for n, i := range t.indexes {
		all[n] = i.Terms(v)
	}
	return all
}

// write stores v under key and brings the indexes from the terms the record had, if
// there was one, to those of v.
func (t *Table[T]) write(tx Tx, key string, before [][]Term, v T) error {
	for n, i := range t.indexes {
		var old []Term
		if before != nil {
			old = before[n]
		}
		if err := t.reindex(tx, i, key, old, i.Terms(v)); err != nil {
			return err
		}
	}
	_, err := t.put(tx, key, v)
	return err
}

// put stores v under key, and returns it as it is stored.
func (t *Table[T]) put(tx Tx, key string, v T) ([]byte, error) {
	b, err := encoding.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("store: %s %q: %w", t.name, key, err)
	}
	t.changed(tx)
	return b, tx.Put(t.record(key), b)
}

// reindex brings an index from the terms a record had to those it has. A term
// counts once, however often a record names it.
func (t *Table[T]) reindex(tx Tx, i Index[T], key string, before, after []Term) error {
	for n, term := range before {
		if !slices.Contains(after, term) && !slices.Contains(before[:n], term) {
			if err := t.drop(tx, i, term, key); err != nil {
				return err
			}
		}
	}
	for n, term := range after {
		if !slices.Contains(before, term) && !slices.Contains(after[:n], term) {
			if err := t.add(tx, i, term, key); err != nil {
				return err
			}
		}
	}
	return nil
}

func (t *Table[T]) add(tx Tx, i Index[T], term Term, key string) error {
	if i.Only {
		return t.count(tx, i, term, +1)
	}
	k := t.entry(i, term, key)
	var value []byte
	if i.Unique {
		taken, err := tx.Get(k)
		if err != nil {
			return err
		}
		if taken != nil {
			return fault.New(fault.Conflict, "a %s with this %s exists already", t.name, i.Name)
		}
		value = []byte(key)
	}
	if err := tx.Put(k, value); err != nil {
		return err
	}
	return t.count(tx, i, term, +1)
}

func (t *Table[T]) drop(tx Tx, i Index[T], term Term, key string) error {
	if i.Only {
		return t.count(tx, i, term, -1)
	}
	if err := tx.Delete(t.entry(i, term, key)); err != nil {
		return err
	}
	return t.count(tx, i, term, -1)
}

func (t *Table[T]) count(tx Tx, i Index[T], term Term, by int) error {
	if !i.Counted {
		return nil
	}
	n, err := t.Count(tx, i.Name, term)
	if err != nil {
		return err
	}
	k := t.key("#"+i.Name, string(term))
	if n+by <= 0 {
		return tx.Delete(k)
	}
	return tx.Put(k, binary.AppendUvarint(nil, uint64(n+by))) //nolint:gosec // G115: positive, checked above
}

// encoding writes times to the nanosecond, in UTC.
var encoding = func() cbor.EncMode {
	m, err := cbor.EncOptions{Sort: cbor.SortNone, Time: cbor.TimeRFC3339NanoUTC}.EncMode()
	if err != nil {
		panic(err) // the options are constants
	}
	return m
}()

// decoding reads whatever encoding writes: strings need not be UTF-8, since names
// come from devices, and there is no limit but on the size of a value. Names of
// fields are what they are: one written otherwise is another field.
var decoding = func() cbor.DecMode {
	m, err := cbor.DecOptions{UTF8: cbor.UTF8DecodeInvalid, FieldNameMatching: cbor.FieldNameMatchingCaseSensitive, MaxArrayElements: math.MaxInt32, MaxMapPairs: math.MaxInt32}.DecMode()
	if err != nil {
		panic(err) // the options are constants
	}
	return m
}()
