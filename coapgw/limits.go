package coapgw

import (
	"net/netip"
	"sync"
	"time"
)

// prefix is what a source is counted by: who has one address of it may have
// them all.
func prefix(a netip.Addr) netip.Prefix {
	bits := 24
	if a.Is6() && !a.Is4In6() {
		bits = 56
	}
	p, err := a.Unmap().WithZone("").Prefix(bits)
	if err != nil {
		return netip.Prefix{}
	}
	return p
}

// bucket is a token bucket in one number: the time at which it is full again
// (GCRA). The zero bucket is full.
type bucket int64

// take takes a token at now from a bucket of the given rate a second and burst,
// and reports whether there was one, or else how long until there is.
func (b *bucket) take(now time.Time, rate float64, burst int) (wait time.Duration, ok bool) {
	if rate <= 0 {
		return 0, true
	}
	each := time.Duration(float64(time.Second) / rate)
	t := now.UnixNano()
	full := max(int64(*b), t)
	if wait = time.Duration(full-t) - each*time.Duration(burst-1); wait > 0 {
		return wait, false
	}
	*b = bucket(full + int64(each))
	return 0, true
}

// buckets holds a bucket for each source. It is bounded: when it is full of
// sources that are all active, newcomers are let through, since other limits
// hold them.
type buckets struct {
	rate  float64
	burst int

	mu    sync.Mutex
	full  map[netip.Prefix]bucket
	swept time.Time
}

const maxBuckets = 100_000

func (bs *buckets) take(now time.Time, from netip.Prefix) bool {
	bs.mu.Lock()
	defer bs.mu.Unlock()
	if bs.full == nil {
		bs.full = map[netip.Prefix]bucket{}
	}
	b, known := bs.full[from]
	if !known && len(bs.full) >= maxBuckets && !bs.sweep(now) {
		return true
	}
	_, ok := b.take(now, bs.rate, bs.burst)
	bs.full[from] = b
	return ok
}

// sweep forgets the buckets that are full again, at most once a second, and
// reports whether there is room now.
func (bs *buckets) sweep(now time.Time) bool {
	if now.Sub(bs.swept) < time.Second {
		return false
	}
	bs.swept = now
	for from, b := range bs.full {
		if int64(b) <= now.UnixNano() {
			delete(bs.full, from)
		}
	}
	return len(bs.full) < maxBuckets
}

// storms notices who fails to prove a pre-shared key again and again, and has
// it ignored for a while. An identity is never ignored by itself, or anyone
// could switch a device off: it is the identity from a source.
type storms struct {
	mu sync.Mutex
	of map[storm]failures
}

type storm struct {
	identity string
	from     netip.Prefix
}

type failures struct {
	count   int
	penalty time.Duration // of the last block
	since   time.Time     // the first failure that counts
	until   time.Time     // blocked until
}

const (
	stormFailures = 3
	stormWindow   = time.Minute
	stormPenalty  = time.Minute
	stormMax      = 15 * time.Minute
	maxStorms     = 10_000
)

// blocked reports whether identity from a source is ignored at now.
func (st *storms) blocked(now time.Time, identity string, from netip.Prefix) bool {
	st.mu.Lock()
	defer st.mu.Unlock()
	return now.Before(st.of[storm{identity, from}].until)
}

// failed counts a failure.
func (st *storms) failed(now time.Time, identity string, from netip.Prefix) {
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.of == nil {
		st.of = map[storm]failures{}
	}
	key := storm{identity, from}
	f, known := st.of[key]
	if !known && len(st.of) >= maxStorms {
		for k, old := range st.of {
			if now.After(old.until) && now.Sub(old.since) > stormMax {
				delete(st.of, k)
			}
		}
		if len(st.of) >= maxStorms {
			return
		}
	}
	if now.Sub(f.since) > stormWindow {
		f.count, f.since = 0, now
	}
	if f.count++; f.count >= stormFailures {
		f.penalty = min(max(2*f.penalty, stormPenalty), stormMax)
		f.count, f.until = 0, now.Add(f.penalty)
	}
	st.of[key] = f
}

// proven forgets the failures of who has proven the key after all.
func (st *storms) proven(identity string, from netip.Prefix) {
	st.mu.Lock()
	defer st.mu.Unlock()
	delete(st.of, storm{identity, from})
}
