// Package storecount counts what is done to a store, for tests of what an answer's time can
// tell: the same work for both is what can be shown without a clock.
package storecount

import (
	"context"
	"fmt"
	"iter"
	"sync"

	"keystead/store"
)

// Engine counts what is done to another.
type Engine struct {
	store.Engine

	mu   sync.Mutex
	done Work
}

// Work is how often something was done.
type Work struct{ Views, Updates, Gets, Puts, Deletes, Scans int }

// String implements [fmt.Stringer].
func (w Work) String() string {
	return fmt.Sprintf("%d views, %d updates, %d gets, %d puts, %d deletes, %d scans", w.Views, w.Updates, w.Gets, w.Puts, w.Deletes, w.Scans)
}

// Of returns what fn has done.
func (e *Engine) Of(fn func()) Work {
	e.mu.Lock()
	e.done = Work{}
	e.mu.Unlock()
	fn()
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.done
}

func (e *Engine) note(what func(*Work)) {
	e.mu.Lock()
	defer e.mu.Unlock()
	what(&e.done)
}

// View implements [store.Engine].
func (e *Engine) View(ctx context.Context, fn func(store.Tx) error) error {
	e.note(func(w *Work) { w.Views++ })
	return e.Engine.View(ctx, func(t store.Tx) error { return fn(tx{t, e}) })
}

// Update implements [store.Engine].
func (e *Engine) Update(ctx context.Context, fn func(store.Tx) error) error {
	e.note(func(w *Work) { w.Updates++ })
	return e.Engine.Update(ctx, func(t store.Tx) error { return fn(tx{t, e}) })
}

type tx struct {
	store.Tx

	e *Engine
}

func (t tx) Get(key []byte) ([]byte, error) {
	t.e.note(func(w *Work) { w.Gets++ })
	return t.Tx.Get(key)
}

func (t tx) Put(key, value []byte) error {
	t.e.note(func(w *Work) { w.Puts++ })
	return t.Tx.Put(key, value)
}

func (t tx) Delete(key []byte) error {
	t.e.note(func(w *Work) { w.Deletes++ })
	return t.Tx.Delete(key)
}

func (t tx) Scan(prefix, after []byte) iter.Seq2[store.Entry, error] {
	t.e.note(func(w *Work) { w.Scans++ })
	return t.Tx.Scan(prefix, after)
}
