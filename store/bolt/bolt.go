// Package bolt keeps the store in one bbolt file.
//
// Updates that wait at the same time share one transaction of the file and one
// fsync; see [Engine.Update]. Each value carries a checksum over itself and its
// key, since bbolt has none over its pages. A damaged file makes errors, never a
// crash.
package bolt

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"

	"keystead/store"
)

// What is in the file: a bucket that says what it is, and one of the entries.
var (
	metaBucket = []byte("keystead")
	dataBucket = []byte("kv")
	schemaKey  = []byte("schema")
)

const (
	// lockWait is how long Open waits for another process to let go of the file:
	// enough for one that is stopping.
	lockWait = time.Second

	// fill is how full a page is when it is split. Keys of a table come mostly in
	// ascending order (time-ordered ids), so pages are left full behind them.
	fill = 0.9

	// minSize is the size of a database without an entry: four pages.
	minSize = 4 * 4096

	// growth is by how much the file grows at a time, in bytes; each costs an fsync.
	growth = 4 << 20
)

// Engine is a [store.Engine] over one file, which belongs to it alone.
type Engine struct {
	db   *bbolt.DB
	path string
	log  *slog.Logger

	mu     sync.Mutex // guards queue and closed
	queue  []*call
	closed bool
	wake   chan struct{} // holds a token while there is something in queue

	batches []*batch      // that the committer, whose they are, has not ended
	wrote   int           // by the last update, a guess at what the next writes; the committer's
	commits time.Duration // how long the last took; the committer's
	stuck   bool          // bbolt's write lock is lost; set by the committer
	idle    chan struct{} // closed when the committer has ended

	failure atomic.Pointer[error] // why no more writes are taken
	failed  chan struct{}         // closed when failure is set

	reads reads
	views views
	stats counters
}

type options struct {
	log     *slog.Logger
	maxSize int64
	noSync  bool
}

// Option changes how a file is opened.
type Option func(*options)

// Log has the engine tell l of reads that take too long and of failed commits.
func Log(l *slog.Logger) Option { return func(o *options) { o.log = l } }

// MaxSize keeps the file from growing beyond n bytes; 0 is without limit.
// Updates that would need more fail with a Full fault.
func MaxSize(n int64) Option { return func(o *options) { o.maxSize = n } }

// UnsafeNoSync has commits not wait for the disk: what was acknowledged is lost
// if the machine stops, and the file may be damaged. It is for files that can be
// made again, and to show that the tests of durability can fail.
func UnsafeNoSync() Option { return func(o *options) { o.noSync = true } }

// Open opens the file at path, making it if there is none. A file that is open
// elsewhere, damaged, of another program or of a newer version is an error that
// says what to do.
func Open(path string, opts ...Option) (*Engine, error) {
	o := options{log: slog.New(slog.DiscardHandler)}
	for _, set := range opts {
		set(&o)
	}
	if err := create(path); err != nil {
		return nil, fmt.Errorf("bolt: create %s: %w", path, err)
	}
	db, err := open(path, bbolt.Options{
		Timeout: lockWait,
		// The array serves a fragmented file several times faster than the hash map,
		// and a free list kept on disk saves a scan of the whole file at start.
		FreelistType: bbolt.FreelistArrayType,
		// Address space for the largest file expected: a file that outgrows its map
		// makes the writer wait for every reader.
		InitialMmapSize: mapSize(),
		MaxSize:         int(o.maxSize),
		NoSync:          o.noSync,
	})
	if err != nil {
		return nil, err
	}
	db.AllocSize = growth
	if err := count(db); err != nil {
		_ = db.Close()
		return nil, opening(path, err)
	}
	e := &Engine{
		db: db, path: path, log: o.log,
		wake: make(chan struct{}, 1), idle: make(chan struct{}), failed: make(chan struct{}),
	}
	e.views.log = o.log
	go e.serve()
	return e, nil
}

// count has bbolt count its free pages, which it does at the end of a write only.
func count(db *bbolt.DB) error {
	return guarded(func() error {
		tx, err := db.Begin(true)
		if err != nil {
			return err
		}
		return tx.Rollback()
	})
}

func mapSize() int {
	if strconv.IntSize == 32 {
		return 0
	}
	gib := 1 << 30
	return 16 * gib
}

// create makes a database at path if there is nothing. It appears there whole or
// not at all: one half made, by a power failure, could not be opened again.
func create(path string) error {
	if _, err := os.Lstat(path); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, filepath.Base(path)+".new-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name())
	if err := f.Close(); err != nil {
		return err
	}
	db, err := bbolt.Open(f.Name(), 0o600, nil)
	if err != nil {
		return err
	}
	if err := errors.Join(db.Update(initialise), db.Close()); err != nil {
		return err
	}
	// A link, unlike a rename, does not replace what another process put there.
	switch err := os.Link(f.Name(), path); {
	case errors.Is(err, os.ErrExist):
		return nil
	case err != nil: // a file system without links
		if err := os.Rename(f.Name(), path); err != nil {
			return err
		}
	}
	return syncDir(dir)
}

func initialise(tx *bbolt.Tx) error {
	meta, err := tx.CreateBucketIfNotExists(metaBucket)
	if err != nil {
		return err
	}
	if _, err := tx.CreateBucketIfNotExists(dataBucket); err != nil {
		return err
	}
	return meta.Put(schemaKey, []byte(strconv.Itoa(store.Schema)))
}

// open is bbolt's, for a file that is there, with its panics and memory faults
// over a damaged one turned into errors.
func open(path string, o bbolt.Options) (db *bbolt.DB, err error) {
	if err := plausible(path); err != nil {
		return nil, err
	}
	var file *os.File
	o.OpenFile = func(name string, flag int, mode os.FileMode) (f *os.File, err error) {
		file, err = os.OpenFile(name, flag&^os.O_CREATE, mode)
		return file, err
	}
	if err := guarded(func() error {
		db, err = bbolt.Open(path, 0o600, &o)
		return err
	}); err != nil {
		if file != nil {
			unlock(file) // where bbolt did not get to do it
			_ = file.Close()
		}
		return nil, opening(path, err)
	}
	if err := recognise(db, path); err != nil {
		_ = db.Close()
		return nil, err
	}
	return db, nil
}

// plausible refuses what bbolt would take for a new file, or cannot open.
func plausible(path string) error {
	info, err := os.Stat(path)
	switch {
	case err != nil:
		return fmt.Errorf("bolt: %w", err)
	case !info.Mode().IsRegular():
		return fmt.Errorf("bolt: %s is not a file: set the data directory to one of the server's own", path)
	case info.Size() == 0:
		return damaged(path, errors.New("it is empty"))
	case info.Size() < minSize:
		return damaged(path, fmt.Errorf("it was cut to %d bytes", info.Size()))
	}
	return nil
}

// opening says what to do about an error of bbolt's Open.
func opening(path string, err error) error {
	switch {
	case errors.Is(err, berrors.ErrTimeout):
		return fmt.Errorf("bolt: %s: %w: stop the other process first", path, store.ErrInUse)
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("bolt: %w: run as the user who owns the file", err)
	case errors.Is(err, berrors.ErrVersionMismatch), errors.Is(err, berrors.ErrChecksum), errors.Is(err, berrors.ErrInvalid):
		return damaged(path, errors.New("its header is not that of a database"))
	case errors.Is(err, store.ErrCorrupt):
		return damaged(path, err)
	}
	return fmt.Errorf("bolt: open %s: %w", path, err)
}

func damaged(path string, err error) error {
	if !errors.Is(err, store.ErrCorrupt) {
		err = fmt.Errorf("%w: %w", store.ErrCorrupt, err)
	}
	return fmt.Errorf("bolt: %s cannot be used: %w; keep it aside and put back a backup (keystead restore FILE)", path, err)
}

var errForeign = errors.New("not ours")

// recognise looks whether the file is ours, whole in length, and of a schema
// this program knows.
func recognise(db *bbolt.DB, path string) error {
	var size int64
	var schema string
	err := guarded(func() error {
		return db.View(func(tx *bbolt.Tx) error {
			size = tx.Size()
			meta, data := tx.Bucket(metaBucket), tx.Bucket(dataBucket)
			if meta == nil || data == nil {
				return errForeign
			}
			schema = string(meta.Get(schemaKey))
			return nil
		})
	})
	info, statErr := os.Stat(path)
	if statErr != nil {
		return fmt.Errorf("bolt: %w", statErr)
	}
	if size > info.Size() {
		return damaged(path, fmt.Errorf("it was cut to %d of %d bytes", info.Size(), size))
	}
	if errors.Is(err, errForeign) {
		return fmt.Errorf("bolt: %s is the database of another program: set the data directory to one of the server's own", path)
	}
	if err != nil {
		return damaged(path, err)
	}
	switch n, err := strconv.Atoi(schema); {
	case err != nil:
		return damaged(path, fmt.Errorf("its schema is %q", schema))
	case n > store.Schema:
		return fmt.Errorf("bolt: %s: %w (its schema is %d, this program knows up to %d): run that version, or put back a backup from before the upgrade (keystead restore FILE)",
			path, store.ErrNewer, n, store.Schema)
	}
	return nil
}

// View runs fn on the state after the last commit.
func (e *Engine) View(ctx context.Context, fn func(store.Tx) error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	r := reader{ctx: ctx}
	e.views.start(&r.view)
	defer e.views.end(&r.view)
	defer faultsPanic()()
	of, err := e.reads.take(e.db)
	if err != nil {
		return err
	}
	whole := false
	defer func() {
		r.end()
		if whole {
			e.reads.put(of)
		} else {
			of.end()
		}
	}()
	r.bucket, r.point = of.bucket, of.point
	err = fn(viewTx{&r})
	whole = true // it did not panic
	return err
}

// view runs fn in a read-only transaction of the file. Memory faults in fn
// panic, and do not end the process.
func (e *Engine) view(fn func(*bbolt.Tx) error) error {
	tx, err := e.db.Begin(false)
	if errors.Is(err, berrors.ErrDatabaseNotOpen) {
		return store.ErrClosed
	}
	if err != nil {
		return fmt.Errorf("bolt: %w", err)
	}
	defer tx.Rollback() //nolint:errcheck // ending a read cannot fail
	defer faultsPanic()()
	return fn(tx)
}

// Close runs the updates that wait, lets reads end, and closes the file. What
// comes later fails with [store.ErrClosed].
func (e *Engine) Close() error {
	e.mu.Lock()
	e.closed = true
	e.mu.Unlock()
	e.signal()
	<-e.idle
	e.views.stop()
	e.reads.halt()
	if e.stuck {
		return nil // bbolt would wait for its write lock, which is lost
	}
	return e.db.Close()
}

// Failed is closed when a commit failed so that its outcome is unknown. The
// engine takes no more writes then: the process should end with an error, and be
// started again.
func (e *Engine) Failed() <-chan struct{} { return e.failed }

// Err returns why the engine takes no more writes, nil while it does.
func (e *Engine) Err() error {
	if err := e.failure.Load(); err != nil {
		return *err
	}
	return nil
}

// Path returns where the file is.
func (e *Engine) Path() string { return e.path }

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil && !errors.Is(err, syscall.EINVAL) { // some file systems sync no directories
		return err
	}
	return nil
}
