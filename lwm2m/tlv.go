package lwm2m

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
)

// ErrFormat is in the tree of every error of a decoder.
var ErrFormat = errors.New("lwm2m: format error")

// The kinds of TLV entries, the upper two bits of the type byte (LwM2M 1.0, 6.4.3).
const (
	tlvInstance = 0 << 6 // an object instance, its value the resources
	tlvElement  = 1 << 6 // one value of a multiple resource
	tlvMultiple = 2 << 6 // a multiple resource, its value the elements
	tlvResource = 3 << 6 // a resource with a value
)

// AppendTLV appends the resources of one instance, as an instance is written.
func AppendTLV(b []byte, resources []Resource) []byte {
	for _, r := range resources {
		if r.Values == nil {
			b = appendEntry(b, tlvResource, r.ID, tlvValue(r.Value))
			continue
		}
		var elements []byte
		for _, e := range r.Values {
			elements = appendEntry(elements, tlvElement, e.ID, tlvValue(e.Value))
		}
		b = appendEntry(b, tlvMultiple, r.ID, elements)
	}
	return b
}

// AppendObjectTLV appends instances of one object, as an object is written.
func AppendObjectTLV(b []byte, list []Instance) []byte {
	for _, i := range list {
		b = appendEntry(b, tlvInstance, i.ID, AppendTLV(nil, i.Resources))
	}
	return b
}

// appendEntry appends one entry; what is longer than 24 bits can say is never built here.
func appendEntry(b []byte, kind byte, id uint16, value []byte) []byte {
	n := len(value)
	if id > 0xff {
		kind |= 1 << 5
	}
	switch {
	case n < 8:
		kind |= byte(n)
	case n < 1<<8:
		kind |= 1 << 3
	case n < 1<<16:
		kind |= 2 << 3
	default:
		kind |= 3 << 3
	}
	b = append(b, kind)
	if id > 0xff {
		b = append(b, byte(id>>8))
	}
	b = append(b, byte(id)) //nolint:gosec // G115: the lower half
	switch {
	case n < 8:
	case n < 1<<8:
		b = append(b, byte(n))
	case n < 1<<16:
		b = append(b, byte(n>>8), byte(n)) //nolint:gosec // G115: below 1<<16
	default:
		b = append(b, byte(n>>16), byte(n>>8), byte(n)) //nolint:gosec // G115: three bytes of it
	}
	return append(b, value...)
}

func tlvValue(v Value) []byte {
	switch v := v.(type) {
	case int64:
		return shortest(v)
	case float64:
		return binary.BigEndian.AppendUint64(nil, math.Float64bits(v))
	case bool:
		if v {
			return []byte{1}
		}
		return []byte{0}
	case string:
		return []byte(v)
	case []byte:
		return v
	case Link:
		return binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(nil, v.Object), v.Instance)
	}
	return nil
}

// shortest is v in the fewest of 1, 2, 4 and 8 bytes.
func shortest(v int64) []byte {
	switch {
	case v == int64(int8(v)): //nolint:gosec // G115: that it may overflow is the question
		return []byte{byte(v)} //nolint:gosec // G115: two's complement
	case v == int64(int16(v)): //nolint:gosec // G115: as above
		return binary.BigEndian.AppendUint16(nil, uint16(v)) //nolint:gosec // G115: as above
	case v == int64(int32(v)): //nolint:gosec // G115: as above
		return binary.BigEndian.AppendUint32(nil, uint32(v)) //nolint:gosec // G115: as above
	}
	return binary.BigEndian.AppendUint64(nil, uint64(v)) //nolint:gosec // G115: as above
}

// entry is one TLV entry as it was read.
type entry struct {
	kind  byte
	id    uint16
	value []byte
}

// nextEntry reads the first entry of b and returns what follows it.
func nextEntry(b []byte) (e entry, rest []byte, err error) {
	short := fmt.Errorf("%w: TLV ends within an entry", ErrFormat)
	head := b[0]
	e.kind = head & 0xc0
	b = b[1:]
	width := 1
	if head&(1<<5) != 0 {
		width = 2
	}
	if len(b) < width {
		return e, nil, short
	}
	for range width {
		e.id = e.id<<8 | uint16(b[0])
		b = b[1:]
	}
	n, width := int(head&7), int(head>>3&3)
	if width > 0 {
		n = 0
	}
	if len(b) < width {
		return e, nil, short
	}
	for range width {
		n = n<<8 | int(b[0])
		b = b[1:]
	}
	if len(b) < n {
		return e, nil, short
	}
	e.value = b[:n]
	return e, b[n:], nil
}

// decodeTLV reads what was written to an object, or to an instance: resources
// alone, or wrapped in their instance.
func decodeTLV(path []uint16, b []byte) ([]Instance, error) {
	var list []Instance
	own := -1 // where the instance of the path is in list
	for len(b) > 0 {
		e, rest, err := nextEntry(b)
		if err != nil {
			return nil, err
		}
		b = rest
		switch {
		case e.kind == tlvInstance:
			if len(path) == 2 && e.id != path[1] {
				return nil, fmt.Errorf("%w: instance %d in a write to instance %d", ErrFormat, e.id, path[1])
			}
			i := Instance{Object: path[0], ID: e.id}
			if i.Resources, err = tlvResources(path[0], e.value); err != nil {
				return nil, err
			}
			list = append(list, i)
		case len(path) != 2:
			return nil, fmt.Errorf("%w: a resource outside an instance", ErrFormat)
		default:
			if own < 0 {
				own = len(list)
				list = append(list, Instance{Object: path[0], ID: path[1]})
			}
			r, err := tlvToResource(path[0], e)
			if err != nil {
				return nil, err
			}
			list[own].Resources = append(list[own].Resources, r)
		}
	}
	return list, nil
}

func tlvResources(object uint16, b []byte) ([]Resource, error) {
	var list []Resource
	for len(b) > 0 {
		e, rest, err := nextEntry(b)
		if err != nil {
			return nil, err
		}
		b = rest
		r, err := tlvToResource(object, e)
		if err != nil {
			return nil, err
		}
		list = append(list, r)
	}
	return list, nil
}

func tlvToResource(object uint16, e entry) (r Resource, err error) {
	r.ID = e.id
	switch e.kind {
	case tlvResource:
		r.Value, err = tlvTyped(TypeOf(object, e.id), e.value)
		return r, err
	case tlvMultiple:
		r.Values = []Element{}
		for b := e.value; len(b) > 0; {
			inner, rest, err := nextEntry(b)
			if err != nil {
				return r, err
			}
			if b = rest; inner.kind != tlvElement {
				return r, fmt.Errorf("%w: a multiple resource of something else than values", ErrFormat)
			}
			v, err := tlvTyped(TypeOf(object, e.id), inner.value)
			if err != nil {
				return r, err
			}
			r.Values = append(r.Values, Element{inner.id, v})
		}
		return r, nil
	}
	return r, fmt.Errorf("%w: an entry of kind %d among resources", ErrFormat, e.kind>>6)
}

func tlvTyped(t Type, b []byte) (Value, error) {
	switch t {
	case String:
		return string(b), nil
	case Integer:
		switch len(b) {
		case 1:
			return int64(int8(b[0])), nil //nolint:gosec // G115: two's complement
		case 2:
			return int64(int16(binary.BigEndian.Uint16(b))), nil //nolint:gosec // G115: as above
		case 4:
			return int64(int32(binary.BigEndian.Uint32(b))), nil //nolint:gosec // G115: as above
		case 8:
			return int64(binary.BigEndian.Uint64(b)), nil //nolint:gosec // G115: as above
		}
	case Boolean:
		if len(b) == 1 && b[0] <= 1 {
			return b[0] == 1, nil
		}
	case Float:
		switch len(b) {
		case 4:
			return float64(math.Float32frombits(binary.BigEndian.Uint32(b))), nil
		case 8:
			return math.Float64frombits(binary.BigEndian.Uint64(b)), nil
		}
	case ObjectLink:
		if len(b) == 4 {
			return Link{binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])}, nil
		}
	case Opaque:
		return b, nil
	}
	return nil, fmt.Errorf("%w: a value of %d bytes", ErrFormat, len(b))
}
