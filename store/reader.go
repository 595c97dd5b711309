package store

import (
	"encoding/binary"
	"fmt"
	"time"
)

// Reader reads the CBOR of a record item by item, in the order it is written: for the
// records that every request reads, where decoding by reflection is most of the cost. What
// it returns lies in the record's bytes. It reads what this package writes, which has no
// items of indefinite length; whatever else there is makes it fail, and once it has, it
// returns zero values until Err says so.
//
//	for n := r.Map(); n > 0; n-- {
//		switch string(r.Text()) {
//		case "id":
//			d.ID = string(r.Text())
//		default:
//			r.Skip()
//		}
//	}
//	return r.Err()
type Reader struct {
	rest []byte
	bad  bool
}

// Read returns a Reader of b.
func Read(b []byte) Reader { return Reader{rest: b} }

// Unmarshaler is a record that decodes itself, with a Reader. A table decodes records by
// reflection if they do not.
type Unmarshaler interface{ UnmarshalCBOR(b []byte) error }

// The major types of RFC 8949, 3.1.
const (
	cborUint byte = iota
	cborNegative
	cborBytes
	cborText
	cborArray
	cborMap
	cborTag
	cborSimple
)

const cborNull = 22 // of the simple values

// maxNesting is how deep arrays and maps lie in each other at most.
const maxNesting = 16

// Err is an ErrCorrupt if what was read was not what was asked for.
func (r *Reader) Err() error {
	if r.bad {
		return fmt.Errorf("%w: it is not the CBOR of a record", ErrCorrupt)
	}
	return nil
}

// Map returns how many pairs the map has that begins here: none if there is null.
func (r *Reader) Map() int { return r.list(cborMap) }

// Array returns how many items the array has that begins here: none if there is null.
func (r *Reader) Array() int { return r.list(cborArray) }

func (r *Reader) list(want byte) int {
	major, n := r.head()
	switch {
	case major == cborSimple && n == cborNull:
		return 0
	case major == want && n <= uint64(len(r.rest)): // an item takes a byte at least
		return int(n) //nolint:gosec // G115: no more than the bytes there are
	}
	r.fail()
	return 0
}

// Uint returns a number that is not negative, 0 for null.
func (r *Reader) Uint() uint64 {
	major, n := r.head()
	if major == cborUint {
		return n
	}
	if major != cborSimple || n != cborNull {
		r.fail()
	}
	return 0
}

// Text returns a string, nil for null.
func (r *Reader) Text() []byte { return r.string(cborText) }

// Bytes returns a byte string, nil for null.
func (r *Reader) Bytes() []byte { return r.string(cborBytes) }

func (r *Reader) string(want byte) []byte {
	major, n := r.head()
	switch {
	case major == cborSimple && n == cborNull:
		return nil
	case major == want && n <= uint64(len(r.rest)):
		s := r.rest[:n:n]
		r.rest = r.rest[n:]
		return s
	}
	r.fail()
	return nil
}

// Time returns the time that Text returned the text of, the zero time for null or nothing.
func (r *Reader) Time(text []byte) time.Time {
	if text == nil {
		return time.Time{}
	}
	t, err := time.Parse(time.RFC3339Nano, string(text))
	if err != nil {
		r.fail()
	}
	return t.UTC()
}

// Item returns the bytes of the item that begins here, and goes behind it.
func (r *Reader) Item() []byte {
	from := r.rest
	r.Skip()
	return from[: len(from)-len(r.rest) : len(from)-len(r.rest)]
}

// Skip goes behind the item that begins here.
func (r *Reader) Skip() { r.skip(maxNesting) }

func (r *Reader) skip(depth int) {
	major, n := r.head()
	switch {
	case r.bad:
	case major == cborBytes || major == cborText:
		if n > uint64(len(r.rest)) {
			r.fail()
			return
		}
		r.rest = r.rest[n:]
	case major == cborArray || major == cborMap || major == cborTag:
		if depth == 0 || n > uint64(len(r.rest)) && major != cborTag {
			r.fail()
			return
		}
		switch major {
		case cborMap:
			n *= 2
		case cborTag:
			n = 1
		}
		for ; n > 0 && !r.bad; n-- {
			r.skip(depth - 1)
		}
	}
}

// head reads the head of an item: its major type, and its argument.
func (r *Reader) head() (major byte, n uint64) {
	if len(r.rest) == 0 {
		r.fail()
		return 0, 0
	}
	first := r.rest[0]
	major, r.rest = first>>5, r.rest[1:]
	info := first & 0x1f
	if info < 24 {
		return major, uint64(info)
	}
	size := 1 << (info - 24)
	if info > 27 || len(r.rest) < size {
		r.fail()
		return 0, 0
	}
	var long [8]byte
	copy(long[8-size:], r.rest)
	r.rest = r.rest[size:]
	return major, binary.BigEndian.Uint64(long[:])
}

func (r *Reader) fail() { r.bad, r.rest = true, nil }
