package store

import (
	"bytes"
	"sync"
)

// maxMemo is how many records a Memo remembers.
const maxMemo = 1024

// Memo spares the decoding of records that are read over and over. The record is
// read at every use, and decoded again if it is not the same bytes: what a Memo
// returns is never older than the transaction. It is shared, and must not be changed.
// The zero Memo is ready to use.
type Memo[T any] struct {
	mu  sync.RWMutex
	was map[string]decoded[T]
}

type decoded[T any] struct {
	bytes []byte
	value T
}

// Get is t.Get.
func (m *Memo[T]) Get(tx Tx, t *Table[T], key string) (v T, err error) {
	at := t.record(key)
	b, err := tx.Get(at)
	if err != nil {
		return v, err
	}
	if b == nil {
		return v, t.missing()
	}
	m.mu.RLock()
	was, ok := m.was[key]
	m.mu.RUnlock()
	if ok && bytes.Equal(was.bytes, b) {
		return was.value, nil
	}
	if v, err = t.decode(at, b); err != nil {
		return v, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.was == nil || len(m.was) >= maxMemo {
		m.was = map[string]decoded[T]{}
	}
	m.was[key] = decoded[T]{b, v}
	return v, nil
}
