// Package store keeps the product's records in an ordered key-value engine.
//
// An [Engine] is small on purpose: a few operations under a transaction, so a
// new backend is one package and the suite in storetest. Everything a record
// needs beyond bytes under a key (encoding, uniqueness, secondary indexes,
// counts, pages) is written once, in [Table], and works alike on every engine.
package store

import (
	"context"
	"errors"
	"iter"
)

// Limits on what an engine takes, in bytes. A Put beyond them is an error.
const (
	MaxKey   = 1024
	MaxValue = 4 << 20
)

// MaxScan is how many entries one transaction should read in a row before it
// ends and a new one goes on: a long read keeps the engine from reusing space.
const MaxScan = 1000

// Engine is an ordered key-value store with serializable transactions.
type Engine interface {
	// View runs fn on a read-only snapshot. fn must be short: no network, no
	// waiting, at most [MaxScan] entries.
	View(ctx context.Context, fn func(Tx) error) error

	// Update runs fn in a read-write transaction, commits it durably if fn
	// returns nil, and then runs what fn gave to OnCommit. fn may run again, so
	// it must have no effect outside tx: prepare keys and certificates before,
	// publish after. A transaction whose fn fails leaves nothing behind.
	//
	// ErrUnknownOutcome says that a commit failed in a way that may or may not
	// have reached the disk; the engine takes no more writes after it.
	Update(ctx context.Context, fn func(Tx) error) error

	Close() error
}

// Tx is one transaction. It is valid only until fn returns, and belongs to the
// goroutine fn runs on. Slices it returns may be kept but not written to;
// slices given to it must not be changed afterwards.
type Tx interface {
	// Get returns the value of key, nil if there is none.
	Get(key []byte) ([]byte, error)
	// Put sets the value of key, which is not empty.
	Put(key, value []byte) error
	// Delete removes key. Removing a key that is not there is no error.
	Delete(key []byte) error
	// Scan yields, in ascending order of key bytes, the entries whose key has
	// prefix and sorts after the key after; a nil after starts at the beginning.
	// It must not be used while the loop writes to tx.
	Scan(prefix, after []byte) iter.Seq2[Entry, error]
	// OnCommit has fn run once the transaction is durable and before Update
	// returns. It is dropped if the transaction is not committed. Functions of
	// different updates run in any order, and at once: let them say that something
	// changed rather than what it became.
	OnCommit(fn func())
}

// Entry is one key and its value.
type Entry struct{ Key, Value []byte }

// Errors of every engine.
var (
	// ErrReadOnly is what a write in a View returns.
	ErrReadOnly = errors.New("store: write in a read-only transaction")
	// ErrUnknownOutcome is in the tree of an error of Update that may have
	// been committed all the same.
	ErrUnknownOutcome = errors.New("store: the outcome of the commit is unknown")
	// ErrCorrupt is in the tree of the error for a value that is not what was written.
	ErrCorrupt = errors.New("damaged data")
	// ErrClosed is what a transaction on a closed engine returns.
	ErrClosed = errors.New("store: closed")
	// ErrInUse says that another process has the store open.
	ErrInUse = errors.New("in use by another process")
	// ErrNewer says that a newer version of the program wrote the store.
	ErrNewer = errors.New("written by a newer version")
)

// Schema is the version of how records are laid out. An engine keeps it with
// the records, and does not open what has a higher one.
const Schema = 1
