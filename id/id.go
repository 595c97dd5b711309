// Package id makes the identifiers of records: UUIDs of version 7 (RFC 9562,
// section 5.7). They sort in the order they were made, which keeps the store's
// pages full and lists stable.
package id

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"sync"
	"time"
)

// Length is the number of characters of an id.
const Length = 36

// Generator makes ids that never repeat and, within one Generator, always sort
// after the ones before, even if the clock stands still or goes back.
// The zero Generator is ready to use.
type Generator struct {
	mu   sync.Mutex
	last uint64 // 48 bits of milliseconds and 12 of sequence
}

var shared Generator

// New returns a new id for a record made at now.
func New(now time.Time) string { return shared.New(now) }

// Random returns a UUID of version 4 (RFC 9562, 5.4): for names that are to tell
// nothing, not even when they were made.
func Random() string {
	var b [16]byte
	rand.Read(b[:]) // never fails, never short
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return text(b)
}

// New returns a new id for a record made at now.
func (g *Generator) New(now time.Time) string {
	tick := g.tick(uint64(now.UnixMilli()) & (1<<48 - 1))
	var b [16]byte
	rand.Read(b[8:]) // never fails, never short
	binary.BigEndian.PutUint64(b[:8], tick>>12<<16|0x7000|tick&0xfff)
	b[8] = b[8]&0x3f | 0x80
	return text(b)
}

// tick returns the next value of the clock and sequence.
func (g *Generator) tick(ms uint64) uint64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.last = max(g.last+1, ms<<12)
	return g.last
}

// Valid reports whether s is written as a UUID in lower case, of any version.
func Valid(s string) bool {
	if len(s) != Length {
		return false
	}
	for i, c := range []byte(s) {
		dash := i == 8 || i == 13 || i == 18 || i == 23
		digit := '0' <= c && c <= '9' || 'a' <= c && c <= 'f'
		if dash != (c == '-') || !dash && !digit {
			return false
		}
	}
	return true
}

func text(b [16]byte) string {
	var s [Length]byte
	hex.Encode(s[0:8], b[0:4])
	hex.Encode(s[9:13], b[4:6])
	hex.Encode(s[14:18], b[6:8])
	hex.Encode(s[19:23], b[8:10])
	hex.Encode(s[24:36], b[10:16])
	s[8], s[13], s[18], s[23] = '-', '-', '-', '-'
	return string(s[:])
}
