package bolt

import (
	"errors"
	"fmt"
	"sync"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"

	"keystead/store"
)

// maxKept is how many transactions are kept for the next reads.
const maxKept = 64

// reads keeps read-only transactions of the file while nothing is committed, since all that
// begin meanwhile see the same: beginning one, and finding the bucket of the entries, costs as
// much as a look-up. None is kept while there is a batch, which would wait for it, and
// could not use the pages again that it sees.
type reads struct {
	mu    sync.Mutex
	idle  []*reading
	batch bool   // there is one
	round uint64 // of batches
}

// reading is a read-only transaction of the file, for one read at a time.
type reading struct {
	tx     *bbolt.Tx
	bucket *bbolt.Bucket // of the entries
	point  *bbolt.Cursor // of single look-ups: one allocates its stack once, Bucket.Get each time
	round  uint64        // it was begun in
	keep   bool          // it was begun while there was no batch
}

// take returns a transaction that sees the last commit.
func (l *reads) take(db *bbolt.DB) (r *reading, err error) {
	l.mu.Lock()
	if n := len(l.idle); n > 0 {
		r, l.idle = l.idle[n-1], l.idle[:n-1]
		l.mu.Unlock()
		return r, nil
	}
	r = &reading{round: l.round, keep: !l.batch}
	l.mu.Unlock()
	if r.tx, err = db.Begin(false); errors.Is(err, berrors.ErrDatabaseNotOpen) {
		return nil, store.ErrClosed
	}
	if err != nil {
		return nil, fmt.Errorf("bolt: %w", err)
	}
	if r.bucket, err = data(r.tx); err != nil {
		r.end()
		return nil, err
	}
	r.point = r.bucket.Cursor()
	return r, nil
}

// put keeps a transaction, unless something was committed since it was begun, or is about to be.
func (l *reads) put(r *reading) {
	l.mu.Lock()
	keep := r.keep && !l.batch && r.round == l.round && len(l.idle) < maxKept
	if keep {
		l.idle = append(l.idle, r)
	}
	l.mu.Unlock()
	if !keep {
		r.end()
	}
}

// halt ends the transactions that are kept, and has none kept until resume is called.
func (l *reads) halt() {
	l.mu.Lock()
	ended := l.idle
	l.idle, l.batch = nil, true
	l.round++
	l.mu.Unlock()
	for _, r := range ended {
		r.end()
	}
}

func (l *reads) resume() {
	l.mu.Lock()
	l.batch = false
	l.mu.Unlock()
}

func (l *reads) kept() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.idle)
}

func (r *reading) end() { _ = r.tx.Rollback() } // ending a read cannot fail
