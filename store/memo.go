package store

import (
	"bytes"
	"context"
	"sync"
)

// maxMemo is how many records a Memo remembers.
const maxMemo = 1024

// Memo spares the decoding of records that are read over and over. It is shared, and
// what it returns must not be changed. The zero Memo is ready to use.
type Memo[T any] struct {
	mu  sync.RWMutex
	was map[string]decoded[T]
}

type decoded[T any] struct {
	bytes []byte
	value T
	asOf  uint64 // the changes of the table before it was read by Latest, and one; 0 if by Get
}

// Get is t.Get. The record is read at every use, and decoded again if it is not the same
// bytes: what Get returns is never older than the transaction.
func (m *Memo[T]) Get(tx Tx, t *Table[T], key string) (T, error) {
	d, known, err := m.read(tx, t, key)
	if err == nil && !known {
		m.remember(key, d)
	}
	return d.value, err
}

// Put is t.Put, of a record that is read again soon.
func (m *Memo[T]) Put(tx Tx, t *Table[T], key string, v T) error {
	b, err := t.put(tx, key, v)
	if err == nil {
		m.remember(key, decoded[T]{bytes: b, value: v})
	}
	return err
}

// Latest is t.Get as of the last commit, for a table that is Watched: as long as none of
// its records is changed it reads nothing. What an Update changed it returns once that has
// returned, if not before.
func (m *Memo[T]) Latest(ctx context.Context, db Engine, t *Table[T], key string) (T, error) {
	now := t.changes.Load() + 1
	m.mu.RLock()
	d, ok := m.was[key]
	m.mu.RUnlock()
	if ok && t.watched && d.asOf == now {
		return d.value, nil
	}
	err := db.View(ctx, func(tx Tx) (err error) {
		d, _, err = m.read(tx, t, key)
		return err
	})
	if err == nil {
		d.asOf = now
		m.remember(key, d)
	}
	return d.value, err
}

// read reads a record. It decodes it if it is not known as it is.
func (m *Memo[T]) read(tx Tx, t *Table[T], key string) (d decoded[T], known bool, err error) {
	at := t.record(key)
	b, err := tx.Get(at)
	if err != nil {
		return d, false, err
	}
	if b == nil {
		return d, false, t.missing()
	}
	m.mu.RLock()
	was, ok := m.was[key]
	m.mu.RUnlock()
	if ok && bytes.Equal(was.bytes, b) {
		return was, true, nil
	}
	v, err := t.decode(at, b)
	return decoded[T]{bytes: b, value: v}, false, err
}

func (m *Memo[T]) remember(key string, d decoded[T]) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.was == nil || len(m.was) >= maxMemo {
		m.was = map[string]decoded[T]{}
	}
	m.was[key] = d
}
