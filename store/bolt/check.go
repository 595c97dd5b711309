package bolt

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"go.etcd.io/bbolt"

	"keystead/store"
)

// maxBad is how many damaged records a report lists.
const maxBad = 1000

// Report is what a check found.
type Report struct {
	Entries int   // that were read
	Bytes   int64 // of their keys and values
	Damaged int   // entries that are not what was written
	Bad     []Bad // the first of them
}

// Bad is a damaged entry.
type Bad struct {
	Key []byte
	Err error
}

// Err returns nil if nothing is damaged.
func (r *Report) Err() error {
	if r.Damaged == 0 {
		return nil
	}
	return fmt.Errorf("%w: %d of %d records are not what was written, the first is %q", store.ErrCorrupt, r.Damaged, r.Entries, r.Bad[0].Key)
}

// Check reads every entry and compares it with its checksum, a thousand at a
// time, so that it disturbs nobody. Its error is of what keeps it from going on,
// such as a page that cannot be read; damaged entries are in the report. What
// holds the pages together is looked at by [CheckFile] alone.
func (e *Engine) Check(ctx context.Context) (*Report, error) {
	r := &Report{}
	var after []byte
	for more := true; more; {
		if ctx.Err() != nil {
			return r, context.Cause(ctx)
		}
		if err := e.view(func(tx *bbolt.Tx) (err error) {
			after, more, err = r.read(tx, after)
			return err
		}); err != nil {
			return r, err
		}
	}
	return r, nil
}

// read looks at the next entries after a key, and returns the last of them.
func (r *Report) read(tx *bbolt.Tx, after []byte) (last []byte, more bool, err error) {
	bucket, err := data(tx)
	if err != nil {
		return nil, false, err
	}
	c := cursor{bucket.Cursor()}
	k, v, err := c.seek(nil, after)
	for n := 0; err == nil && k != nil; n++ {
		if n == store.MaxScan {
			return last, true, nil
		}
		if last, err = r.look(k, v, last); err != nil {
			break
		}
		k, v, err = c.next()
	}
	return last, false, err
}

func (r *Report) look(k, v, before []byte) (key []byte, err error) {
	defer caught(&err)
	key = bytes.Clone(k)
	if before != nil && bytes.Compare(key, before) <= 0 {
		return key, fmt.Errorf("%w: the key %q is out of order", store.ErrCorrupt, key)
	}
	r.Entries++
	r.Bytes += int64(len(k) + len(v))
	if _, bad := verified(k, v); bad != nil {
		if r.Damaged++; len(r.Bad) < maxBad {
			r.Bad = append(r.Bad, Bad{key, bad})
		}
	}
	return key, nil
}

// CheckFile looks at a file that no server uses, such as a backup: what [Engine.Check]
// looks at, and whether every page is used once.
func CheckFile(ctx context.Context, path string) (*Report, error) {
	db, err := open(path, bbolt.Options{Timeout: lockWait, ReadOnly: true, PreLoadFreelist: true})
	if err != nil {
		return nil, err
	}
	e := &Engine{db: db, path: path}
	defer db.Close()
	r, err := e.Check(ctx)
	if err != nil {
		return r, err
	}
	// All pages were reached and read: bbolt's own check, which runs where faults
	// cannot be caught, has nothing to stumble over.
	return r, e.view(func(tx *bbolt.Tx) error {
		var first error
		for err := range tx.Check() {
			if first == nil {
				first = fmt.Errorf("%w: %w", store.ErrCorrupt, err)
			}
		}
		return first
	})
}

// Snapshot copies the state after the last commit to a new file at path while
// the engine goes on. The file is there whole, and on the disk, or not at all.
func (e *Engine) Snapshot(ctx context.Context, path string) (err error) {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, filepath.Base(path)+".part-*") // mode 0600
	if err != nil {
		return fmt.Errorf("bolt: snapshot: %w", err)
	}
	defer os.Remove(f.Name()) // gone already if all went well
	defer f.Close()
	err = e.view(func(tx *bbolt.Tx) error {
		_, err := tx.WriteTo(&paced{ctx: ctx, f: f})
		return err
	})
	if ctx.Err() != nil {
		return context.Cause(ctx) // bbolt keeps only the text of it
	}
	if err != nil {
		return fmt.Errorf("bolt: snapshot: %w", err)
	}
	if err := errors.Join(f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("bolt: snapshot: %w", err)
	}
	if err := os.Rename(f.Name(), path); err != nil {
		return fmt.Errorf("bolt: snapshot: %w", err)
	}
	return syncDir(dir)
}

// paceBytes is how much of a snapshot is written at a time: then it waits for
// the disk, and for as long again, so that commits find the disk idle half of
// the time. What a snapshot leaves to the kernel all at once, every commit's
// fsync waits for.
const paceBytes = 4 << 20

// paced writes to a file at half of the disk's speed, and stops when its context
// does.
type paced struct {
	ctx   context.Context // of the one call the writer lives in
	f     *os.File
	begun time.Time // of the present piece
	n     int       // bytes of it
}

func (w *paced) Write(p []byte) (int, error) {
	if w.ctx.Err() != nil {
		return 0, context.Cause(w.ctx)
	}
	if w.n == 0 {
		w.begun = time.Now() //nolint:forbidigo // a duration
	}
	n, err := w.f.Write(p)
	if w.n += n; err != nil || w.n < paceBytes {
		return n, err
	}
	w.n = 0
	if err := w.f.Sync(); err != nil {
		return n, err
	}
	select {
	case <-w.ctx.Done():
		return n, context.Cause(w.ctx)
	case <-time.After(time.Since(w.begun)):
		return n, nil
	}
}
