// Package throttle counts attempts per key (an address, an account and an
// address, a device) and says when there were too many. It forgets by itself
// and holds a bounded number of keys.
package throttle

import (
	"net/netip"
	"sync"
	"time"
)

// maxKeys bounds the memory of one Buckets: about 10 MB.
const maxKeys = 100_000

// Buckets gives each key a bucket of Burst tokens, one of which comes back
// every Refill. Fill in the fields before use.
type Buckets struct {
	Burst  int
	Refill time.Duration
	Now    func() time.Time

	mu sync.Mutex
	by map[string]bucket
}

// bucket is empty-by-time: it lacks one token for every Refill that full is ahead.
type bucket struct{ full time.Time }

// Take takes a token from key's bucket. If there is none it returns how long
// until there is, and false.
func (b *Buckets) Take(key string) (wait time.Duration, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := b.Now()
	if wait = b.waitLocked(key, now); wait > 0 {
		return wait, false
	}
	b.takeLocked(key, now)
	return 0, true
}

// Wait returns how long until key's bucket has a token, 0 if it has one. With
// Spend it makes a budget of failures: look before the attempt, spend after it failed.
func (b *Buckets) Wait(key string) time.Duration {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.waitLocked(key, b.Now())
}

// Spend takes a token from key's bucket, if it has one.
func (b *Buckets) Spend(key string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if now := b.Now(); b.waitLocked(key, now) == 0 {
		b.takeLocked(key, now)
	}
}

// Forget fills key's bucket.
func (b *Buckets) Forget(key string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.by, key)
}

func (b *Buckets) waitLocked(key string, now time.Time) time.Duration {
	full, ok := b.by[key]
	if !ok {
		return 0
	}
	return max(0, full.full.Sub(now)-time.Duration(b.Burst-1)*b.Refill)
}

func (b *Buckets) takeLocked(key string, now time.Time) {
	if b.by == nil {
		b.by = map[string]bucket{}
	}
	if _, known := b.by[key]; !known && len(b.by) >= maxKeys {
		b.sweepLocked(now)
	}
	from := b.by[key].full
	if from.Before(now) {
		from = now
	}
	b.by[key] = bucket{from.Add(b.Refill)}
}

// sweepLocked drops full buckets and, where that is not enough, a tenth of the
// rest as the map yields them: memory stays bounded whoever sends what.
func (b *Buckets) sweepLocked(now time.Time) {
	for key, k := range b.by {
		if !k.full.After(now) {
			delete(b.by, key)
		}
	}
	for key := range b.by {
		if len(b.by) < maxKeys*9/10 {
			return
		}
		delete(b.by, key)
	}
}

// Prefix is what counts as one address: an IPv4 address, or the /64 of an IPv6
// one, all of which belong to one customer.
func Prefix(a netip.Addr) string {
	a = a.Unmap()
	if a.Is6() {
		if p, err := a.WithZone("").Prefix(64); err == nil {
			return p.String()
		}
	}
	return a.String()
}
