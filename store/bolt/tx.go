package bolt

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"iter"

	"go.etcd.io/bbolt"

	"keystead/fault"
	"keystead/store"
)

// source is what a layer of writes lies over.
type source interface {
	get(key []byte) ([]byte, error)
	scan(prefix, after []byte) iter.Seq2[store.Entry, error]
}

// reader reads the entries of one transaction of the file.
type reader struct {
	ctx    context.Context // of the one call the reader lives in; nil in a batch, which has many
	bucket *bbolt.Bucket   // nil when the transaction has ended
	point  *bbolt.Cursor   // of get
	view   view            // for the watchdog, if it is of a View
}

// data returns the bucket of the entries.
func data(tx *bbolt.Tx) (b *bbolt.Bucket, err error) {
	defer caught(&err)
	if b = tx.Bucket(dataBucket); b == nil {
		return nil, fmt.Errorf("%w: the entries cannot be found", store.ErrCorrupt)
	}
	return b, nil
}

func (r *reader) end() { r.bucket = nil }

var errEnded = fmt.Errorf("%w: the transaction has ended", store.ErrClosed)

func (r *reader) get(key []byte) (value []byte, err error) {
	if r.bucket == nil {
		return nil, errEnded
	}
	defer caught(&err)
	found, stored := r.point.Seek(key)
	if found == nil || !bytes.Equal(found, key) {
		return nil, nil
	}
	if stored, err = verified(key, stored); err != nil {
		return nil, err
	}
	return append(make([]byte, 0, len(stored)), stored...), nil
}

// checkEvery is how many entries a scan yields between looks at its context.
const checkEvery = 64

func (r *reader) scan(prefix, after []byte) iter.Seq2[store.Entry, error] {
	return func(yield func(store.Entry, error) bool) {
		if r.bucket == nil {
			yield(store.Entry{}, errEnded)
			return
		}
		c := cursor{r.bucket.Cursor()}
		k, v, err := c.seek(prefix, after)
		for n := 1; err == nil && k != nil; n++ {
			if n%checkEvery == 0 && r.ctx != nil && r.ctx.Err() != nil {
				err = context.Cause(r.ctx)
				break
			}
			e, ok, bad := entry(prefix, k, v)
			if bad == nil && !ok {
				return
			}
			if !yield(e, bad) || bad != nil {
				return
			}
			if r.bucket == nil {
				err = errEnded
				break
			}
			k, v, err = c.next()
		}
		if err != nil {
			yield(store.Entry{}, err)
		}
	}
}

// entry copies an entry out of the file, if its key has prefix.
func entry(prefix, k, v []byte) (e store.Entry, ok bool, err error) {
	defer caught(&err) // the slices may lead out of a damaged page
	if !bytes.HasPrefix(k, prefix) {
		return e, false, nil
	}
	value, err := verified(k, v)
	if err != nil {
		return e, true, err
	}
	b := make([]byte, len(k)+len(value))
	n := copy(b, k)
	copy(b[n:], value)
	return store.Entry{Key: b[:n:n], Value: b[n:]}, true, nil
}

type cursor struct{ c *bbolt.Cursor }

// seek goes to the first key that has prefix and is after the key after, or to
// one without prefix if there is none.
func (c cursor) seek(prefix, after []byte) (k, v []byte, err error) {
	defer caught(&err)
	from, skip := start(prefix, after)
	k, v = c.c.Seek(from)
	if skip && bytes.Equal(k, from) {
		k, v = c.c.Next()
	}
	return k, v, nil
}

func (c cursor) next() (k, v []byte, err error) {
	defer caught(&err)
	k, v = c.c.Next()
	return k, v, nil
}

// start returns where a scan begins, and whether that key itself is left out.
func start(prefix, after []byte) (from []byte, skip bool) {
	if after == nil || bytes.Compare(after, prefix) < 0 {
		return prefix, false
	}
	return after, true
}

// viewTx is the transaction of a View.
type viewTx struct{ *reader }

func (t viewTx) Get(key []byte) ([]byte, error) { return t.get(key) }

func (t viewTx) Scan(prefix, after []byte) iter.Seq2[store.Entry, error] {
	return t.scan(prefix, after)
}

func (viewTx) Put([]byte, []byte) error { return store.ErrReadOnly }
func (viewTx) Delete([]byte) error      { return store.ErrReadOnly }
func (viewTx) OnCommit(func())          {}

// updateTx is the transaction of an Update: a layer over those before it in its
// batch.
type updateTx struct {
	ctx   context.Context // of the one call the transaction lives in
	layer layer
	hooks []func()
	ended bool
}

func (t *updateTx) Get(key []byte) ([]byte, error) {
	if t.ended {
		return nil, errEnded
	}
	return t.layer.get(key)
}

func (t *updateTx) Put(key, value []byte) error {
	switch {
	case t.ended:
		return errEnded
	case len(key) == 0:
		return fault.New(fault.Invalid, "a name or key is empty")
	case len(key) > store.MaxKey:
		return fault.New(fault.TooLarge, "a name or key is longer than the store takes")
	case len(value) > store.MaxValue:
		return fault.New(fault.TooLarge, "the record is larger than %d bytes", store.MaxValue)
	}
	if value == nil {
		value = []byte{}
	}
	t.layer.set(string(key), value)
	return nil
}

func (t *updateTx) Delete(key []byte) error {
	if t.ended {
		return errEnded
	}
	if len(key) > 0 && len(key) <= store.MaxKey {
		t.layer.set(string(key), nil)
	}
	return nil
}

func (t *updateTx) Scan(prefix, after []byte) iter.Seq2[store.Entry, error] {
	return func(yield func(store.Entry, error) bool) {
		if t.ended {
			yield(store.Entry{}, errEnded)
			return
		}
		n := 0
		for e, err := range t.layer.scan(prefix, after) {
			if n++; err == nil && n%checkEvery == 0 && t.ctx.Err() != nil {
				err = context.Cause(t.ctx)
			}
			if !yield(e, err) || err != nil {
				return
			}
		}
	}
}

func (t *updateTx) OnCommit(fn func()) { t.hooks = append(t.hooks, fn) }

// A value is kept with the CRC-32C of its key and itself behind it.

const sumSize = 4

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func sum(key, value []byte) uint32 {
	return crc32.Update(crc32.Checksum(key, castagnoli), castagnoli, value)
}

func summed(key, value []byte) []byte {
	b := append(make([]byte, 0, len(value)+sumSize), value...)
	return binary.LittleEndian.AppendUint32(b, sum(key, value))
}

// verified returns the value of what is kept under key.
func verified(key, kept []byte) ([]byte, error) {
	n := len(kept) - sumSize
	if n < 0 || binary.LittleEndian.Uint32(kept[n:]) != sum(key, kept[:n]) {
		return nil, fmt.Errorf("%w: %q is not what was written", store.ErrCorrupt, key)
	}
	return kept[:n], nil
}
