package lwm2m

import (
	"encoding/binary"
	"fmt"
	"math"
	"unicode/utf8"
)

// The major types of CBOR (RFC 8949, 3.1).
const (
	cborUnsigned = 0 << 5
	cborNegative = 1 << 5
	cborBytes    = 2 << 5
	cborString   = 3 << 5
	cborArray    = 4 << 5
	cborMap      = 5 << 5
)

// cborHead appends the head of an item, in the fewest bytes.
func cborHead(b []byte, major byte, n uint64) []byte {
	switch {
	case n < 24:
		return append(b, major|byte(n))
	case n < 1<<8:
		return append(b, major|24, byte(n))
	case n < 1<<16:
		return binary.BigEndian.AppendUint16(append(b, major|25), uint16(n))
	case n < 1<<32:
		return binary.BigEndian.AppendUint32(append(b, major|26), uint32(n))
	}
	return binary.BigEndian.AppendUint64(append(b, major|27), n)
}

func cborInt(b []byte, v int64) []byte {
	if v < 0 {
		return cborHead(b, cborNegative, uint64(-1-v))
	}
	return cborHead(b, cborUnsigned, uint64(v))
}

func cborText(b []byte, s string) []byte {
	return append(cborHead(b, cborString, uint64(len(s))), s...)
}

func cborValue(b []byte, v Value) []byte {
	switch v := v.(type) {
	case int64:
		return cborInt(b, v)
	case float64:
		return binary.BigEndian.AppendUint64(append(b, 0xfb), math.Float64bits(v))
	case bool:
		if v {
			return append(b, 0xf5)
		}
		return append(b, 0xf4)
	case string:
		return cborText(b, v)
	case []byte:
		return append(cborHead(b, cborBytes, uint64(len(v))), v...)
	case Link:
		return cborText(b, v.String())
	}
	return b
}

// cborPairs is a CBOR map as it was read, in its order. Keys may be arrays, as
// LwM2M CBOR has them.
type cborPairs []cborPair

type cborPair struct{ key, value any }

// maxDepth is how deep items may be nested: an object, an instance, a resource
// and its elements, and a key that is an array.
const maxDepth = 6

// parseCBOR reads the one item b consists of: int64, float64, bool, string,
// []byte, []any or cborPairs. What LwM2M does not use (tags, null, lengths that
// are not given, integers over 63 bits) is refused.
func parseCBOR(b []byte) (any, error) {
	item, rest, err := cborItem(b, maxDepth)
	if err == nil && len(rest) > 0 {
		err = fmt.Errorf("%w: something after the CBOR item", ErrFormat)
	}
	return item, err
}

func cborItem(b []byte, depth int) (item any, rest []byte, err error) {
	major, info, n, b, err := cborOpen(b)
	if err != nil {
		return nil, nil, err
	}
	if depth == 0 {
		return nil, nil, fmt.Errorf("%w: CBOR nested too deeply", ErrFormat)
	}
	switch major {
	case cborUnsigned:
		if n <= math.MaxInt64 {
			return int64(n), b, nil
		}
	case cborNegative:
		if n <= math.MaxInt64 {
			return -1 - int64(n), b, nil
		}
	case cborBytes, cborString:
		if n > uint64(len(b)) {
			return nil, nil, errCBORShort
		}
		if value := b[:n]; major == cborBytes {
			return value, b[n:], nil
		} else if utf8.Valid(value) {
			return string(value), b[n:], nil
		}
	case cborArray:
		if n > uint64(len(b)) { // each element has a byte at least
			return nil, nil, errCBORShort
		}
		list := []any{}
		for range n {
			if item, b, err = cborItem(b, depth-1); err != nil {
				return nil, nil, err
			}
			list = append(list, item)
		}
		return list, b, nil
	case cborMap:
		if n > uint64(len(b))/2 {
			return nil, nil, errCBORShort
		}
		pairs := cborPairs{}
		for range n {
			var p cborPair
			if p.key, b, err = cborItem(b, depth-1); err != nil {
				return nil, nil, err
			}
			if p.value, b, err = cborItem(b, depth-1); err != nil {
				return nil, nil, err
			}
			pairs = append(pairs, p)
		}
		return pairs, b, nil
	case cborSimple:
		switch info {
		case 20, 21:
			return info == 21, b, nil
		case 26:
			return float64(math.Float32frombits(uint32(n))), b, nil //nolint:gosec // G115: four bytes were read
		case 27:
			return math.Float64frombits(n), b, nil
		}
	}
	return nil, nil, fmt.Errorf("%w: CBOR of major type %d with %d", ErrFormat, major>>5, n)
}

// cborSimple is the major type of booleans and floats.
const cborSimple = 7 << 5

var errCBORShort = fmt.Errorf("%w: CBOR ends within an item", ErrFormat)

// cborOpen reads the head of an item: its type, the lower bits of its first
// byte, and the number they stand for.
func cborOpen(b []byte) (major, info byte, n uint64, rest []byte, err error) {
	if len(b) == 0 {
		return 0, 0, 0, nil, errCBORShort
	}
	major, info = b[0]&0xe0, b[0]&0x1f
	b = b[1:]
	if info < 24 {
		return major, info, uint64(info), b, nil
	}
	width := 1 << (info - 24)
	if info > 27 {
		return 0, 0, 0, nil, fmt.Errorf("%w: CBOR of a length that is not given", ErrFormat)
	}
	if len(b) < width {
		return 0, 0, 0, nil, errCBORShort
	}
	var full [8]byte
	copy(full[8-width:], b)
	return major, info, binary.BigEndian.Uint64(full[:]), b[width:], nil
}
