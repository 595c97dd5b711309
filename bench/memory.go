package main

import (
	"context"
	"errors"
	"iter"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/tidwall/btree"

	"keystead/fault"
	"keystead/store"
)

// memoryEngine is a [store.Engine] that keeps nothing: what a server would do
// without a disk, as a yardstick for what the disk costs.
type memoryEngine struct {
	writing sync.Mutex // held by the one update that runs

	mu     sync.Mutex
	tree   *btree.Map[string, []byte]
	views  int // that read tree
	closed bool
}

func newMemory() *memoryEngine { return &memoryEngine{tree: new(btree.Map[string, []byte])} }

func (e *memoryEngine) View(ctx context.Context, fn func(store.Tx) error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		return store.ErrClosed
	}
	tree := e.tree
	e.views++
	e.mu.Unlock()
	defer func() {
		e.mu.Lock()
		e.views--
		e.mu.Unlock()
	}()
	tx := &memoryTx{ctx: ctx, tree: tree, readOnly: true}
	defer func() { tx.tree = nil }()
	return fn(tx)
}

func (e *memoryEngine) Update(ctx context.Context, fn func(store.Tx) error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	tx, err := e.update(ctx, fn)
	if err != nil {
		return err
	}
	for _, hook := range tx.hooks {
		hook()
	}
	return nil
}

func (e *memoryEngine) update(ctx context.Context, fn func(store.Tx) error) (*memoryTx, error) {
	e.writing.Lock()
	defer e.writing.Unlock()
	e.mu.Lock()
	tx := &memoryTx{ctx: ctx, tree: e.tree, writes: map[string][]byte{}}
	closed := e.closed
	e.mu.Unlock()
	if closed {
		return nil, store.ErrClosed
	}
	defer func() { tx.tree = nil }()
	if err := fn(tx); err != nil {
		return nil, err
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.views > 0 {
		e.tree = e.tree.Copy() // that they go on to see what they saw
	}
	for k, v := range tx.writes {
		if v == nil {
			e.tree.Delete(k)
		} else {
			e.tree.Set(k, v)
		}
	}
	return tx, nil
}

func (e *memoryEngine) Close() error {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.closed = true
	return nil
}

// memoryTx is a transaction: the tree as it was, and what is written over it.
type memoryTx struct {
	ctx      context.Context // of the one call the transaction lives in
	tree     *btree.Map[string, []byte]
	writes   map[string][]byte // nil: deleted
	readOnly bool
	hooks    []func()
}

var errMemoryEnded = errors.Join(store.ErrClosed, errors.New("the transaction has ended"))

func (t *memoryTx) Get(key []byte) ([]byte, error) {
	if t.tree == nil {
		return nil, errMemoryEnded
	}
	if v, ok := t.writes[string(key)]; ok {
		return v, nil
	}
	v, _ := t.tree.Get(string(key))
	return v, nil
}

func (t *memoryTx) Put(key, value []byte) error {
	switch {
	case t.tree == nil:
		return errMemoryEnded
	case t.readOnly:
		return store.ErrReadOnly
	case len(key) == 0:
		return fault.New(fault.Invalid, "a name or key is empty")
	case len(key) > store.MaxKey || len(value) > store.MaxValue:
		return fault.New(fault.TooLarge, "larger than the store takes")
	}
	if value == nil {
		value = []byte{}
	}
	t.writes[string(key)] = value
	return nil
}

func (t *memoryTx) Delete(key []byte) error {
	switch {
	case t.tree == nil:
		return errMemoryEnded
	case t.readOnly:
		return store.ErrReadOnly
	}
	t.writes[string(key)] = nil
	return nil
}

func (t *memoryTx) Scan(prefix, after []byte) iter.Seq2[store.Entry, error] {
	return func(yield func(store.Entry, error) bool) {
		if t.tree == nil {
			yield(store.Entry{}, errMemoryEnded)
			return
		}
		from := string(prefix)
		inside := func(k string) bool {
			return strings.HasPrefix(k, string(prefix)) && (after == nil || k > string(after))
		}
		if string(after) > from {
			from = string(after)
		}
		var own []string
		for k := range t.writes {
			if inside(k) {
				own = append(own, k)
			}
		}
		slices.Sort(own)
		n, stopped := 0, false
		emit := func(k string, v []byte) bool {
			var err error
			if n++; n%64 == 0 && t.ctx.Err() != nil {
				err = context.Cause(t.ctx)
			}
			stopped = !yield(store.Entry{Key: []byte(k), Value: v}, err) || err != nil
			return !stopped
		}
		written := func(upTo string, all bool) bool {
			for len(own) > 0 && (all || own[0] < upTo) {
				k := own[0]
				own = own[1:]
				if v := t.writes[k]; v != nil && !emit(k, v) {
					return false
				}
			}
			return true
		}
		t.tree.Ascend(from, func(k string, v []byte) bool {
			if !strings.HasPrefix(k, string(prefix)) {
				return k < string(prefix)
			}
			if !inside(k) {
				return true
			}
			if !written(k, false) {
				return false
			}
			if _, mine := t.writes[k]; mine {
				return true // it comes from writes, or is deleted
			}
			return emit(k, v)
		})
		if !stopped {
			written("", true)
		}
	}
}

func (t *memoryTx) OnCommit(fn func()) {
	if !t.readOnly {
		t.hooks = append(t.hooks, fn)
	}
}

// clone fills a memory engine with what another engine holds.
func clone(ctx context.Context, from store.Engine) (*memoryEngine, error) {
	e := newMemory()
	var after []byte
	for {
		batch := map[string][]byte{}
		err := from.View(ctx, func(tx store.Tx) error {
			for entry, err := range tx.Scan(nil, after) {
				if err != nil {
					return err
				}
				batch[string(entry.Key)] = entry.Value
				if after = entry.Key; len(batch) == store.MaxScan {
					return nil
				}
			}
			return nil
		})
		if err != nil {
			return nil, err
		}
		for _, k := range slices.Sorted(maps.Keys(batch)) {
			e.tree.Set(k, batch[k])
		}
		if len(batch) < store.MaxScan {
			return e, nil
		}
	}
}
