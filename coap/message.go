package coap

import (
	"encoding/binary"
	"errors"
)

// Type is what a message on datagrams is (RFC 7252, 3).
type Type uint8

// The types.
const (
	Confirmable     Type = 0
	NonConfirmable  Type = 1
	Acknowledgement Type = 2
	Reset           Type = 3
)

// MaxToken is the longest token, in bytes.
const MaxToken = 8

// maxOptions is how many options a message may have: enough for any request
// that is meant, too few to make work of.
const maxOptions = 64

// Message is one CoAP message. What Parse returns refers to the bytes it was given.
type Message struct {
	Type    Type   // on datagrams only
	ID      uint16 // on datagrams only
	Code    Code
	Token   []byte
	Options Options
	Payload []byte
}

// ErrFormat is the error of a message that is not well-formed. A receiver
// ignores such a message, or rejects it with a Reset.
var ErrFormat = errors.New("coap: message format error")

// Parse parses a datagram. If it is ErrFormat, the header that is in the message is returned
// all the same where it could be read, so that a confirmable message can be rejected.
func Parse(b []byte) (Message, error) {
	if len(b) < 4 || b[0]>>6 != 1 {
		return Message{}, ErrFormat
	}
	m := Message{Type: Type(b[0] >> 4 & 3), Code: Code(b[1]), ID: binary.BigEndian.Uint16(b[2:])}
	n := int(b[0] & 15)
	if n > MaxToken || len(b) < 4+n || (m.Code == Empty && len(b) != 4) {
		return m, ErrFormat
	}
	m.Token = b[4 : 4+n]
	return m, m.parseRest(b[4+n:])
}

// Append appends the message as a datagram.
func (m *Message) Append(b []byte) []byte {
	b = append(b, 1<<6|byte(m.Type&3)<<4|byte(len(m.Token)), byte(m.Code), byte(m.ID>>8), byte(m.ID)) //nolint:gosec // G115: a token has at most eight bytes
	b = append(b, m.Token...)
	return m.appendRest(b)
}

// ParseStream parses the message at the beginning of a stream (RFC 8323, 3.2) and
// returns its length in bytes, 0 if b does not hold the whole of it yet. A
// message longer than limit is ErrFormat.
func ParseStream(b []byte, limit int) (m Message, n int, err error) {
	if len(b) < 1 {
		return m, 0, nil
	}
	token := int(b[0] & 15)
	length, extra := extended(b[0]>>4, b[1:])
	switch {
	case token > MaxToken:
		return m, 0, ErrFormat
	case extra < 0:
		return m, 0, nil
	}
	head := 1 + extra + 1 + token
	if length > limit-head {
		return m, 0, ErrFormat
	}
	if len(b) < head+length {
		return m, 0, nil
	}
	m.Code = Code(b[1+extra])
	m.Token = b[2+extra : head]
	return m, head + length, m.parseRest(b[head : head+length])
}

// AppendStream appends the message as it stands on a stream.
func (m *Message) AppendStream(b []byte) []byte {
	rest := m.appendRest(nil)
	nibble, ext := extend(len(rest))
	b = append(b, nibble<<4|byte(len(m.Token))) //nolint:gosec // G115: a token has at most eight bytes
	b = append(b, ext...)
	b = append(b, byte(m.Code))
	b = append(b, m.Token...)
	return append(b, rest...)
}

// extended reads the extension of a length nibble of CoAP over TCP: the length,
// and how many bytes of b it took, -1 if b is too short.
func extended(nibble byte, b []byte) (length, took int) {
	switch {
	case nibble < 13:
		return int(nibble), 0
	case nibble == 13 && len(b) >= 1:
		return int(b[0]) + 13, 1
	case nibble == 14 && len(b) >= 2:
		return int(binary.BigEndian.Uint16(b)) + 269, 2
	case nibble == 15 && len(b) >= 4:
		return int(binary.BigEndian.Uint32(b)) + 65805, 4
	}
	return 0, -1
}

func extend(length int) (nibble byte, ext []byte) {
	switch {
	case length < 13:
		return byte(length), nil //nolint:gosec // G115: not negative, it is a len
	case length < 269:
		return 13, []byte{byte(length - 13)}
	case length < 65805:
		return 14, binary.BigEndian.AppendUint16(nil, uint16(length-269))
	}
	return 15, binary.BigEndian.AppendUint32(nil, uint32(length-65805)) //nolint:gosec // G115: messages are far below 4 GB
}

// parseRest parses options and payload (RFC 7252, 3.1).
func (m *Message) parseRest(b []byte) error {
	id := 0
	for len(b) > 0 {
		if b[0] == 0xff {
			if len(b) == 1 { // a marker without a payload
				return ErrFormat
			}
			m.Payload = b[1:]
			return nil
		}
		delta, length := int(b[0]>>4), int(b[0]&15)
		b = b[1:]
		var ok bool
		if delta, b, ok = optionExtended(delta, b); !ok {
			return ErrFormat
		}
		if length, b, ok = optionExtended(length, b); !ok || length > len(b) {
			return ErrFormat
		}
		if id += delta; id > 0xffff || len(m.Options) == maxOptions {
			return ErrFormat
		}
		m.Options = append(m.Options, Option{OptionID(id), b[:length:length]}) //nolint:gosec // G115: checked above
		b = b[length:]
	}
	return nil
}

func optionExtended(nibble int, b []byte) (v int, rest []byte, ok bool) {
	switch {
	case nibble < 13:
		return nibble, b, true
	case nibble == 13 && len(b) >= 1:
		return int(b[0]) + 13, b[1:], true
	case nibble == 14 && len(b) >= 2:
		return int(binary.BigEndian.Uint16(b)) + 269, b[2:], true
	}
	return 0, b, false
}

func (m *Message) appendRest(b []byte) []byte {
	options := m.Options
	if !options.sorted() {
		options = nil
		for _, o := range m.Options {
			options = options.Add(o.ID, o.Value)
		}
	}
	last := OptionID(0)
	for _, o := range options {
		delta, deltaExt := optionExtend(int(o.ID - last))
		length, lengthExt := optionExtend(len(o.Value))
		b = append(b, delta<<4|length)
		b = append(b, deltaExt...)
		b = append(b, lengthExt...)
		b = append(b, o.Value...)
		last = o.ID
	}
	if len(m.Payload) > 0 {
		b = append(b, 0xff)
		b = append(b, m.Payload...)
	}
	return b
}

func optionExtend(v int) (nibble byte, ext []byte) {
	switch {
	case v < 13:
		return byte(v), nil //nolint:gosec // G115: not negative, options are in order
	case v < 269:
		return 13, []byte{byte(v - 13)}
	}
	return 14, binary.BigEndian.AppendUint16(nil, uint16(v-269)) //nolint:gosec // G115: option numbers and values are below 65805
}
