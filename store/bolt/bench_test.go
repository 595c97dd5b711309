package bolt_test

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"testing"

	"keystead/store"
	"keystead/store/bolt"
)

// BenchmarkView reads two entries of a hundred thousand in a transaction, as a look-up of
// whose a key is does.
func BenchmarkView(b *testing.B) {
	db, err := bolt.Open(filepath.Join(b.TempDir(), "db"), bolt.UnsafeNoSync())
	if err != nil {
		b.Fatal(err)
	}
	defer db.Close()
	const entries = 100_000
	key := func(n int) []byte { return fmt.Appendf(nil, "device\x00r\x00%024d", n) }
	value := make([]byte, 600)
	for n := 0; n < entries; {
		if err := db.Update(b.Context(), func(tx store.Tx) error {
			for range 1000 {
				if err := tx.Put(key(n), value); err != nil {
					return err
				}
				n++
			}
			return nil
		}); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportAllocs()
	for b.Loop() {
		if err := db.View(b.Context(), func(tx store.Tx) error {
			for range 2 {
				if v, err := tx.Get(key(rand.IntN(entries))); err != nil || v == nil {
					return fmt.Errorf("no value: %w", err)
				}
			}
			return nil
		}); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkUpdate has 64 writers make updates of three entries, one of them at a random place.
func BenchmarkUpdate(b *testing.B) {
	db, err := bolt.Open(filepath.Join(b.TempDir(), "db"))
	if err != nil {
		b.Fatal(err)
	}
	defer db.Close()
	var n atomic.Int64
	value := make([]byte, 600)
	b.ReportAllocs()
	b.SetParallelism(64 / runtime.GOMAXPROCS(0))
	b.RunParallel(func(p *testing.PB) {
		for p.Next() {
			n := n.Add(1)
			if err := db.Update(b.Context(), func(tx store.Tx) error {
				record := fmt.Appendf(nil, "r/%024d", n)
				return errors.Join(tx.Put(record, value), tx.Put(fmt.Appendf(nil, "u/%016x%016x", rand.Uint64(), rand.Uint64()), record), tx.Put(fmt.Appendf(nil, "s/active/%024d", n), nil))
			}); err != nil {
				b.Error(err)
			}
		}
	})
	stats := db.Stats()
	b.ReportMetric(float64(stats.Updates)/float64(stats.Commits), "updates/commit")
}
