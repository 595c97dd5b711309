package main

import (
	"crypto/rand"
	"encoding/binary"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"time"

	"go.etcd.io/bbolt"

	"keystead/psk"
)

// shape is the sizes of the entries that the last import made, a device's worth
// of them on average: the bare yardstick writes the same.
var shape struct {
	entries int // of all devices
	key     int // bytes of keys
	value   int
}

// content counts what is in the database of a data directory.
func content(dir string) (bytes int, err error) {
	db, err := bbolt.Open(filepath.Join(dir, "keystead.db"), 0o600, &bbolt.Options{ReadOnly: true})
	if err != nil {
		return 0, err
	}
	defer db.Close()
	shape.entries, shape.key, shape.value = 0, 0, 0
	err = db.View(func(tx *bbolt.Tx) error {
		return tx.Bucket([]byte("kv")).ForEach(func(k, v []byte) error {
			shape.entries++
			shape.key += len(k)
			shape.value += len(v)
			return nil
		})
	})
	return shape.key + shape.value, err
}

// bareImport has bbolt take entries of the same number and sizes as an import of
// n devices made, a quarter of their keys random and the rest ascending, sorted
// within each transaction.
func bareImport(r *run, n int) (float64, error) {
	path := filepath.Join(r.dir, "raw.db")
	defer os.Remove(path)
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{FreelistType: bbolt.FreelistArrayType, InitialMmapSize: 1 << 30})
	if err != nil {
		return 0, err
	}
	defer db.Close()
	each := shape.entries / n
	keySize, valueSize := shape.key/shape.entries, shape.value/shape.entries
	started := time.Now()
	seq := uint64(0)
	for made := 0; made < n; made += psk.Batch {
		keys := make([][]byte, 0, psk.Batch*each)
		for i := range psk.Batch * each {
			key := make([]byte, max(keySize, 17))
			place := byte(i % each) // each index is somewhere else
			key[0] = place
			if int(place) < each/4 {
				rand.Read(key[1:17])
			} else {
				seq++
				binary.BigEndian.PutUint64(key[1:], seq)
			}
			keys = append(keys, key)
		}
		slices.SortFunc(keys, func(a, b []byte) int { return slices.Compare(a, b) })
		if err := db.Update(func(tx *bbolt.Tx) error {
			b, err := tx.CreateBucketIfNotExists([]byte("b"))
			if err != nil {
				return err
			}
			b.FillPercent = 0.9
			for _, k := range keys {
				if err := b.Put(k, make([]byte, valueSize)); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			return 0, err
		}
	}
	return float64(n) / time.Since(started).Seconds(), nil
}

// allocations returns how many, and how many bytes, one of n calls allocates.
func allocations(n int, do func(i int) error) (allocs, bytes uint64) {
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for i := range n {
		_ = do(i)
	}
	runtime.ReadMemStats(&after)
	return (after.Mallocs - before.Mallocs) / uint64(n), (after.TotalAlloc - before.TotalAlloc) / uint64(n)
}
