package bolt

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"

	"keystead/fault"
	"keystead/store"
)

// maxBatch is how many updates share a commit at most.
const maxBatch = 1024

// maxRoom is for how many writes there is room before there are any.
const maxRoom = 1 << 15

// call is an update on its way.
type call struct {
	ctx   context.Context // of the caller, who waits
	fn    func(store.Tx) error
	state atomic.Int32
	done  chan struct{} // closed when what is below is final

	err     error
	panicky *panicked
	hooks   []func()
}

// States of a call: whoever moves it on from waiting decides what becomes of it.
const (
	waiting int32 = iota
	taken         // by the committer
	left          // by the caller
)

// panicked is what a function given to Update panicked with.
type panicked struct {
	value any
	stack []byte
}

// Update runs fn and commits what it wrote. Updates that wait when a commit
// ends are run one after another, each seeing those before it, and are committed
// together. One that fails leaves nothing and changes nothing for the others; fn
// runs again only if the batch did not fit on the disk.
//
// fn runs on another goroutine than its caller's. What it panics with, Update
// panics with.
func (e *Engine) Update(ctx context.Context, fn func(store.Tx) error) error {
	c := &call{ctx: ctx, fn: fn, done: make(chan struct{})}
	if err := e.submit(c); err != nil {
		return err
	}
	select {
	case <-c.done:
	case <-ctx.Done():
		if c.state.CompareAndSwap(waiting, left) {
			return context.Cause(ctx)
		}
		<-c.done // it has begun: only its end tells whether it was committed
	}
	if c.panicky != nil {
		panic(fmt.Sprintf("%v\n\nin an update of the store:\n%s", c.panicky.value, c.panicky.stack))
	}
	if c.err != nil {
		return c.err
	}
	for _, hook := range c.hooks {
		hook()
	}
	return nil
}

func (e *Engine) submit(c *call) error {
	if c.ctx.Err() != nil {
		return context.Cause(c.ctx)
	}
	e.mu.Lock()
	if e.closed {
		e.mu.Unlock()
		return store.ErrClosed
	}
	e.queue = append(e.queue, c)
	e.mu.Unlock()
	e.signal()
	return nil
}

func (e *Engine) signal() {
	select {
	case e.wake <- struct{}{}:
	default: // there is a token already
	}
}

// serve is the committer.
func (e *Engine) serve() {
	ended := false
	defer func() {
		if !ended { // by a function that ended its goroutine, as t.FailNow does
			go e.serve()
		}
	}()
	faultsPanic()
	for {
		if len(e.batches) == 0 {
			calls, open := e.take()
			if !open {
				break
			}
			e.batches = []*batch{{e: e, calls: calls}}
		}
		again := e.batches[0].run()
		e.batches = append(again, e.batches[1:]...)
	}
	ended = true
	close(e.idle)
}

// take waits for updates, and returns those that wait. It reports false when the
// engine is closed and none is left.
func (e *Engine) take() ([]*call, bool) {
	for {
		<-e.wake
		e.gather()
		e.mu.Lock()
		calls, closed := e.queue, e.closed
		e.queue = nil
		if len(calls) > maxBatch {
			e.queue = append(e.queue, calls[maxBatch:]...)
			calls = calls[:maxBatch]
		}
		more := len(e.queue) > 0
		e.mu.Unlock()
		if more || closed {
			e.signal()
		}
		if len(calls) > 0 {
			return calls, true
		}
		if closed {
			return nil, false
		}
	}
}

// gather lets whoever was answered by the last commit, or was about to ask, come along: without
// it, on one core, batches are of one. It yields as long as that brings more updates, and for no
// longer than a part of what a commit takes: where updates take long to make, it is better that
// some are made while others are committed.
func (e *Engine) gather() {
	started := time.Now() //nolint:forbidigo // a duration
	for before := 0; ; {
		runtime.Gosched()
		e.mu.Lock()
		now := len(e.queue)
		e.mu.Unlock()
		if now <= before || now >= maxBatch || time.Since(started) > e.commits/gatherPart {
			return
		}
		before = now
	}
}

// gatherPart is which part of a commit's time waiting for more updates may take.
const gatherPart = 8

// batch is updates that share a commit.
type batch struct {
	e     *Engine
	calls []*call
	next  int     // the first of calls that has not run
	ran   []*call // that wait for the commit
	tx    *bbolt.Tx
	read  *reader
	layer layer
}

// run runs what of the batch has not run, and commits it. It returns the batches
// to run instead if that could not be done for all together.
func (b *batch) run() (again []*batch) {
	if b.tx == nil {
		if err := b.begin(); err != nil {
			for _, c := range b.calls {
				if c.claim() {
					c.end(err)
				}
			}
			return nil
		}
	}
	for b.next < len(b.calls) {
		c := b.calls[b.next]
		b.next++
		if c.claim() {
			b.call(c)
		}
	}
	b.read.end()
	err := b.commit()
	b.e.reads.resume()
	if err != nil && len(b.ran) > 1 && b.e.Err() == nil {
		// Nothing was written. Alone, a small update may find room on a full disk, and
		// one that needs no damaged page succeeds.
		for _, c := range b.ran {
			again = append(again, &batch{e: b.e, calls: []*call{c}})
		}
		return again
	}
	for _, c := range b.ran {
		c.end(err)
	}
	return nil
}

func (b *batch) begin() error {
	if err := b.e.Err(); err != nil {
		return fault.Wrap(fault.Unavailable, err, "the store takes no more changes since one failed; the server must be started again")
	}
	b.e.reads.halt()
	var bucket *bbolt.Bucket
	if err := guarded(func() (err error) {
		if b.tx, err = b.e.db.Begin(true); err == nil {
			bucket, err = data(b.tx)
		}
		return err
	}); err != nil {
		return b.e.fail(fmt.Errorf("bolt: begin: %w", err))
	}
	b.read = &reader{bucket: bucket, point: bucket.Cursor()}
	b.layer.under = b.read
	return nil
}

// call runs one update over what the batch has written so far.
func (b *batch) call(c *call) {
	tx := &updateTx{ctx: c.ctx, layer: layer{under: &b.layer, room: b.e.wrote}}
	if len(b.layer.writes) == 0 { // the layer becomes the batch's
		tx.layer.room = min(b.e.wrote*len(b.calls), maxRoom)
	}
	c.err, c.panicky, c.hooks = errGone, nil, nil
	defer func() {
		tx.ended = true
		if p := recover(); p != nil {
			c.panicky = &panicked{p, debug.Stack()}
		}
		if c.err != nil && len(b.layer.writes) == 0 {
			c.end(nil) // it saw only what is durable: its error stands whatever becomes of the others
			return
		}
		b.ran = append(b.ran, c)
	}()
	c.err = c.fn(tx)
	if c.err == nil && c.ctx.Err() != nil {
		c.err = context.Cause(c.ctx) // a caller who gave up gets no commit
	}
	if c.err == nil {
		b.e.wrote = len(tx.layer.writes)
		b.layer.take(&tx.layer)
		c.hooks = tx.hooks
	}
}

var errGone = errors.New("store: the function of an update did not return")

// claim reports whether the call is to be run, or answered.
func (c *call) claim() bool {
	return c.state.CompareAndSwap(waiting, taken) || c.state.Load() == taken
}

// end answers the call: with err, if the commit failed.
func (c *call) end(err error) {
	if err != nil {
		c.err = err
	}
	close(c.done)
}

// commit writes the batch to the disk.
func (b *batch) commit() error {
	if len(b.layer.writes) == 0 {
		return b.rollback()
	}
	started := time.Now() //nolint:forbidigo // a duration, for the metrics
	id := b.tx.ID()
	if err := guarded(b.apply); err != nil {
		return errors.Join(err, b.rollback())
	}
	err := guarded(b.tx.Commit)
	b.e.commits = time.Since(started)
	b.e.stats.commit(b.e.commits, len(b.ran), err)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, store.ErrCorrupt): // a panic: what bbolt has in memory is not to be built on
		_ = b.rollback()
	case isFull(err) && !b.e.visible(id):
		return fault.Wrap(fault.Full, err, "the disk, or the size the database may have, is used up and nothing was changed; make room and try again")
	}
	return b.e.fail(fmt.Errorf("%w: %w", store.ErrUnknownOutcome, err))
}

// apply puts the writes into the pages of the file, in the order of keys.
func (b *batch) apply() error {
	bucket, err := data(b.tx)
	if err != nil {
		return err
	}
	bucket.FillPercent = fill
	for _, k := range b.layer.keys() {
		key, value := []byte(k), b.layer.writes[k]
		if value == nil {
			if err := bucket.Delete(key); err != nil {
				return fmt.Errorf("bolt: delete: %w", err)
			}
			continue
		}
		if err := bucket.Put(key, summed(key, value)); err != nil {
			return fmt.Errorf("bolt: put: %w", err)
		}
	}
	return nil
}

// rollback ends a transaction that was not committed.
func (b *batch) rollback() error {
	err := guarded(b.tx.Rollback)
	if err == nil || errors.Is(err, berrors.ErrTxClosed) { // by the commit that failed
		return nil
	}
	b.e.stuck = true
	return b.e.fail(fmt.Errorf("bolt: roll back: %w", err))
}

// visible reports whether readers see the transaction with the given id.
func (e *Engine) visible(id int) bool {
	seen := true
	err := e.view(func(tx *bbolt.Tx) error {
		seen = tx.ID() >= id
		return nil
	})
	return seen || err != nil
}

// fail has the engine take no more writes, and returns err.
func (e *Engine) fail(err error) error {
	if e.failure.CompareAndSwap(nil, &err) {
		e.log.Error("the store takes no more changes", "file", e.path, "error", err)
		close(e.failed)
	}
	return err
}

// isFull reports whether err says that there is no room, on the disk or in what
// the file may have of it.
func isFull(err error) bool {
	for _, full := range []error{berrors.ErrMaxSizeReached, syscall.ENOSPC, syscall.EDQUOT, syscall.EFBIG} {
		// The text, too: bbolt keeps no more of an error of growing the file.
		if errors.Is(err, full) || strings.Contains(err.Error(), full.Error()) {
			return true
		}
	}
	return false
}
