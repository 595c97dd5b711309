package bolt

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"go.etcd.io/bbolt"
)

// compactBytes is how much of a compacted copy is written in a transaction.
const compactBytes = 8 << 20

// Compact writes what is in the file to a new one at path, without the pages that are free:
// bbolt gives none back to the disk, and writes the list of them with every commit. Each value
// is verified on the way; a damaged one ends it. The new file is there whole, and on the
// disk, or not at all. tell, if not nil, is told now and then how many of how many bytes are done.
//
// What is changed meanwhile is not in the copy: the caller has the file to itself.
func (e *Engine) Compact(ctx context.Context, path string, tell func(done, total int64)) (err error) {
	part := path + ".part"
	if err := os.Remove(part); err != nil && !errors.Is(err, os.ErrNotExist) { // of a try before
		return fmt.Errorf("bolt: compact: %w", err)
	}
	defer os.Remove(part) // gone already if all went well
	to, err := bbolt.Open(part, 0o600, &bbolt.Options{FreelistType: bbolt.FreelistArrayType, NoSync: true, InitialMmapSize: mapSize()})
	if err != nil {
		return fmt.Errorf("bolt: compact: %w", err)
	}
	to.AllocSize = growth
	if tell == nil {
		tell = func(int64, int64) {}
	}
	c := copying{ctx: ctx, to: to, tell: tell}
	err = e.view(func(tx *bbolt.Tx) error { return guarded(func() error { return c.all(tx) }) })
	if err = errors.Join(err, to.Sync(), to.Close()); err != nil {
		return fmt.Errorf("bolt: compact: %w", err)
	}
	if err := os.Rename(part, path); err != nil {
		return fmt.Errorf("bolt: compact: %w", err)
	}
	return syncDir(filepath.Dir(path))
}

// copying is a copy that is being made.
type copying struct {
	ctx  context.Context // of the one call it lives in
	to   *bbolt.DB
	tell func(done, total int64)
	done int64
}

func (c *copying) all(from *bbolt.Tx) error {
	total := from.Size() - int64(from.DB().Stats().FreeAlloc)
	for _, name := range [][]byte{metaBucket, dataBucket} {
		cursor := from.Bucket(name).Cursor()
		for k, v := cursor.First(); k != nil; {
			if c.ctx.Err() != nil {
				return context.Cause(c.ctx)
			}
			err := c.to.Update(func(tx *bbolt.Tx) (err error) {
				k, v, err = c.some(tx, name, cursor, k, v)
				return err
			})
			if err != nil {
				return err
			}
			c.tell(min(c.done, total), total)
		}
	}
	c.tell(total, total) // entries leave some room in their pages
	return nil
}

// some copies entries of a bucket from k on, as many as one transaction takes, and returns the one
// behind them.
func (c *copying) some(tx *bbolt.Tx, name []byte, from *bbolt.Cursor, k, v []byte) (_, _ []byte, err error) {
	b, err := tx.CreateBucketIfNotExists(name)
	if err != nil {
		return nil, nil, err
	}
	b.FillPercent = fill // they come in order
	for n := 0; k != nil && n < compactBytes; k, v = from.Next() {
		if string(name) == string(dataBucket) {
			if _, err := verified(k, v); err != nil {
				return nil, nil, err
			}
		}
		if err := b.Put(k, v); err != nil {
			return nil, nil, err
		}
		n += len(k) + len(v)
		c.done += int64(len(k) + len(v))
	}
	return k, v, nil
}
