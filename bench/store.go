package main

import (
	"crypto/rand"
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"go.etcd.io/bbolt"

	"keystead/id"
	"keystead/store"
	"keystead/store/bolt"
)

// entry is what one update of the benchmark writes.
type entry struct{ record, value, unique, state []byte }

func newEntry() entry {
	b := make([]byte, 632)
	rand.Read(b)
	key := id.New(time.Now())
	return entry{[]byte("r/" + key), b[32:], fmt.Appendf(nil, "u/%s", b[:32]), []byte("s/active/" + key)}
}

// storeBench measures durable updates a second.
func storeBench(r *run) error {
	engine, err := bolt.Open(filepath.Join(r.dir, "engine.db"))
	if err != nil {
		return err
	}
	defer engine.Close()
	bare, err := bbolt.Open(filepath.Join(r.dir, "bare.db"), 0o600, &bbolt.Options{FreelistType: bbolt.FreelistArrayType})
	if err != nil {
		return err
	}
	defer bare.Close()
	bucket := []byte("b")
	if err := bare.Update(func(tx *bbolt.Tx) error { _, err := tx.CreateBucketIfNotExists(bucket); return err }); err != nil {
		return err
	}
	put := func(tx *bbolt.Tx, e entry) error {
		b := tx.Bucket(bucket)
		for _, kv := range [][2][]byte{{e.record, e.value}, {e.unique, e.record}, {e.state, nil}} {
			if err := b.Put(kv[0], kv[1]); err != nil {
				return err
			}
		}
		return nil
	}
	ours := func() error {
		e := newEntry()
		return engine.Update(r.ctx, func(tx store.Tx) error {
			for _, kv := range [][2][]byte{{e.record, e.value}, {e.unique, e.record}, {e.state, nil}} {
				if err := tx.Put(kv[0], kv[1]); err != nil {
					return err
				}
			}
			return nil
		})
	}
	update := func() error { e := newEntry(); return bare.Update(func(tx *bbolt.Tx) error { return put(tx, e) }) }
	batch := func() error { e := newEntry(); return bare.Batch(func(tx *bbolt.Tx) error { return put(tx, e) }) }

	rows := [][]string{{"writers", "store", "p50, p99", "bbolt Update", "bbolt Batch", "of Update", "of Batch", "goals"}}
	for _, writers := range []int{1, 16, 64} {
		var latencies []time.Duration
		got, err := r.inTurns(
			contender{"store", func() (float64, error) { v, l, err := r.rate(writers, ours); latencies = l; return v, err }},
			contender{"Update", func() (float64, error) { v, _, err := r.rate(writers, update); return v, err }},
			contender{"Batch", func() (float64, error) { v, _, err := r.rate(writers, batch); return v, err }},
		)
		if err != nil {
			return err
		}
		ofUpdate, ofBatch := ratio(got[0], got[1]), ratio(got[0], got[2])
		var goals string
		switch writers {
		case 1:
			goals = r.verdict(ofUpdate, atLeast(0.83, " of Update"))
		case 64:
			goals = r.verdict(ofUpdate, atLeast(4, " of Update")) + "; " + r.verdict(ofBatch, atLeast(2, " of Batch"))
		}
		rows = append(rows, []string{
			strconv.Itoa(writers), got[0].text("/s"), fmt.Sprintf("%v, %v", quantile(latencies, 0.5), quantile(latencies, 0.99)),
			got[1].text("/s"), got[2].text("/s"), figure(ofUpdate), figure(ofBatch), goals,
		})
	}
	r.table(rows...)
	return nil
}

// rate runs do in so many goroutines for the time of a measurement, and returns
// how often it was done a second and how long each took, in order.
func (r *run) rate(goroutines int, do func() error) (float64, []time.Duration, error) {
	var mu sync.Mutex
	var all []time.Duration
	var first error
	var wg sync.WaitGroup
	started := time.Now()
	for range goroutines {
		wg.Go(func() {
			var took []time.Duration
			for time.Since(started) < r.time {
				t := time.Now()
				if err := do(); err != nil {
					mu.Lock()
					first = err
					mu.Unlock()
					return
				}
				took = append(took, time.Since(t))
			}
			mu.Lock()
			all = append(all, took...)
			mu.Unlock()
		})
	}
	wg.Wait()
	slices.Sort(all)
	return float64(len(all)) / time.Since(started).Seconds(), all, first
}

// quantile returns the value that the part q of sorted durations is below.
func quantile(sorted []time.Duration, q float64) time.Duration {
	if len(sorted) == 0 {
		return 0
	}
	d := sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]
	if d > time.Millisecond {
		return d.Round(10 * time.Microsecond)
	}
	return d.Round(100 * time.Nanosecond)
}
