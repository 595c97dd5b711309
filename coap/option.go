package coap

import (
	"cmp"
	"encoding/binary"
	"slices"
	"strconv"
	"strings"
)

// OptionID is the number of an option. Odd ones are critical: who does not know
// one must refuse the message (RFC 7252, 5.4.1).
type OptionID uint16

// The options known here.
const (
	IfMatch       OptionID = 1
	URIHost       OptionID = 3
	ETag          OptionID = 4
	IfNoneMatch   OptionID = 5
	Observe       OptionID = 6
	URIPort       OptionID = 7
	LocationPath  OptionID = 8
	OSCORE        OptionID = 9
	URIPath       OptionID = 11
	ContentFormat OptionID = 12
	MaxAge        OptionID = 14
	URIQuery      OptionID = 15
	Accept        OptionID = 17
	LocationQuery OptionID = 20
	Block2        OptionID = 23
	Block1        OptionID = 27
	Size2         OptionID = 28
	ProxyURI      OptionID = 35
	ProxyScheme   OptionID = 39
	Size1         OptionID = 60
	Echo          OptionID = 252
	NoResponse    OptionID = 258
	RequestTag    OptionID = 292

	OCFAccept        OptionID = 2049 // OCF-Accept-Content-Format-Version
	OCFContentFormat OptionID = 2053 // OCF-Content-Format-Version
)

// Critical reports whether a receiver that does not know the option must refuse
// the message.
func (id OptionID) Critical() bool { return id&1 == 1 }

// CacheKey reports whether the option is part of what makes two requests the same.
func (id OptionID) CacheKey() bool { return id&0x1e != 0x1c }

// Option is one option of a message.
type Option struct {
	ID    OptionID
	Value []byte
}

// Options are the options of a message, in ascending order of their numbers;
// those of one number keep their order.
type Options []Option

// Get returns the value of the first option with the given number.
func (o Options) Get(id OptionID) ([]byte, bool) {
	for _, opt := range o {
		if opt.ID == id {
			return opt.Value, true
		}
	}
	return nil, false
}

// Uint returns the value of the first option with the given number as an
// unsigned integer (RFC 7252, 3.2); ok is false if there is none, or it is
// longer than four bytes.
func (o Options) Uint(id OptionID) (v uint32, ok bool) {
	b, ok := o.Get(id)
	if !ok || len(b) > 4 {
		return 0, false
	}
	return DecodeUint(b), true
}

// Strings returns the values of every option with the given number.
func (o Options) Strings(id OptionID) []string {
	var all []string
	for _, opt := range o {
		if opt.ID == id {
			all = append(all, string(opt.Value))
		}
	}
	return all
}

// Path returns the path the Uri-Path options make, "/" if there is none.
func (o Options) Path() string {
	var path strings.Builder
	for _, opt := range o {
		if opt.ID == URIPath {
			path.WriteByte('/')
			path.Write(opt.Value)
		}
	}
	if path.Len() == 0 {
		return "/"
	}
	return path.String()
}

// Add returns o with one more option, after those of the same number.
func (o Options) Add(id OptionID, value []byte) Options {
	at, _ := slices.BinarySearchFunc(o, id, func(opt Option, id OptionID) int {
		if opt.ID <= id {
			return -1
		}
		return 1
	})
	return slices.Insert(o, at, Option{id, value})
}

// AddUint returns o with one more option whose value is an unsigned integer.
func (o Options) AddUint(id OptionID, v uint32) Options { return o.Add(id, EncodeUint(v)) }

// AddPath returns o with a Uri-Path option for each segment of path.
func (o Options) AddPath(path string) Options {
	for segment := range strings.SplitSeq(strings.TrimPrefix(path, "/"), "/") {
		if segment != "" {
			o = o.Add(URIPath, []byte(segment))
		}
	}
	return o
}

// Without returns o without the options of the given numbers.
func (o Options) Without(ids ...OptionID) Options {
	return slices.DeleteFunc(slices.Clone(o), func(opt Option) bool { return slices.Contains(ids, opt.ID) })
}

// sorted says whether the options may be encoded as they stand.
func (o Options) sorted() bool {
	return slices.IsSortedFunc(o, func(a, b Option) int { return cmp.Compare(a.ID, b.ID) })
}

// EncodeUint returns v in as few bytes as it needs, none for 0.
func EncodeUint(v uint32) []byte {
	var b [4]byte
	binary.BigEndian.PutUint32(b[:], v)
	for i := range b {
		if b[i] != 0 {
			return b[i:]
		}
	}
	return nil
}

// DecodeUint is the inverse of EncodeUint; b has at most four bytes.
func DecodeUint(b []byte) (v uint32) {
	for _, octet := range b {
		v = v<<8 | uint32(octet)
	}
	return v
}

// Block is the value of a Block1 or Block2 option (RFC 7959, 2.2).
type Block struct {
	Num  uint32 // of the block, from 0
	More bool   // blocks follow
	SZX  uint8  // the size exponent: 0 for 16 bytes to 6 for 1024; 7 is BERT (RFC 8323, 6)
}

// MaxSZX is the exponent of the largest block, 1024 bytes; BERT that of CoAP
// over TCP, where a message carries several of them.
const (
	MaxSZX = 6
	BERT   = 7
)

// maxBlockNum is the largest number of a block: 20 bits.
const maxBlockNum = 1<<20 - 1

// ParseBlock parses the value of a block option. It is not ok if the value is
// longer than three bytes.
func ParseBlock(b []byte) (_ Block, ok bool) {
	if len(b) > 3 {
		return Block{}, false
	}
	v := DecodeUint(b)
	return Block{Num: v >> 4, More: v&8 != 0, SZX: uint8(v & 7)}, true
}

// Value returns b as the value of an option.
func (b Block) Value() []byte {
	v := b.Num<<4 | uint32(b.SZX&7)
	if b.More {
		v |= 8
	}
	return EncodeUint(v)
}

// Size returns the bytes of a block, of one of those in a message for BERT.
func (b Block) Size() int { return 16 << min(b.SZX, MaxSZX) }

// Offset returns where the block begins in the body.
func (b Block) Offset() int { return int(b.Num) * b.Size() }

// Valid reports whether the number of the block is one an option can hold.
func (b Block) Valid() bool { return b.Num <= maxBlockNum }

// String returns the number of the option.
func (id OptionID) String() string { return strconv.Itoa(int(id)) }
