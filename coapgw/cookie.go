package coapgw

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"hash"
	"net/netip"
	"reflect"
	"sync"
	"time"
	"unsafe"

	"github.com/pion/dtls/v3"
)

// The cookie exchange of RFC 6347, 4.2.1. It is done here, before pion: nothing
// is kept of a ClientHello until its source has shown that it is where it says.
//
// pion makes up a cookie for each handshake, so it would have to begin one for
// every hello. Instead it gets the hello twice once the cookie has come back: at first
// without the cookie, for which pion's answer goes nowhere, and then as it came. Only
// the second counts in the handshake's hash, and only its extensions are looked
// at. In between pion is told which cookie to expect.

// cookie is what a client has to send back: which key it is made with, and the start of a MAC.
type cookie [cookieLength]byte

const (
	cookieLength = 20
	cookiePeriod = time.Minute // a cookie holds for one to two of these
)

// cookies makes and checks cookies.
type cookies struct {
	macs   *macs   // with a key of this process
	offset uintptr // of pion's cookie in its connection
}

func newCookies() (*cookies, error) {
	at, err := cookieOffset()
	if err != nil {
		return nil, err
	}
	key := make([]byte, 32)
	rand.Read(key)
	return &cookies{offset: at, macs: newMACs(key)}, nil
}

// macs makes HMACs with SHA-256 under one key.
type macs struct{ pool sync.Pool } // of hash.Hash

func newMACs(key []byte) *macs {
	return &macs{sync.Pool{New: func() any { return hmac.New(sha256.New, key) }}}
}

func (m *macs) of(parts ...[]byte) (sum [sha256.Size]byte) {
	mac, ok := m.pool.Get().(hash.Hash)
	if !ok {
		panic("coapgw: not a hash") // nothing else is in the pool
	}
	defer m.pool.Put(mac)
	mac.Reset()
	for _, b := range parts {
		mac.Write(b)
	}
	mac.Sum(sum[:0])
	return sum
}

// of returns the cookie for a hello from a source in the period of a time.
func (c *cookies) of(from netip.AddrPort, h *hello, at time.Time) cookie {
	return c.in(period(at), from, h)
}

// period numbers the periods of time, big-endian.
func period(at time.Time) (p [8]byte) {
	binary.BigEndian.PutUint64(p[:], uint64(at.UnixNano()/int64(cookiePeriod)))
	return p
}

func (c *cookies) in(period [8]byte, from netip.AddrPort, h *hello) (k cookie) {
	var head [26]byte
	copy(head[:], period[:])
	addr := from.Addr().As16()
	copy(head[8:], addr[:])
	binary.BigEndian.PutUint16(head[24:], from.Port())
	sum := c.macs.of(head[:], h.before, h.after) // each of the latter two tells its own length
	k[0] = period[7]
	copy(k[1:], sum[:])
	return k
}

// valid reports whether the cookie of a hello is one we gave to its source, for
// that hello, not long ago.
func (c *cookies) valid(from netip.AddrPort, h *hello, now time.Time) bool {
	if len(h.cookie) != cookieLength {
		return false
	}
	then := period(now)
	if then[7] != h.cookie[0] {
		then = period(now.Add(-cookiePeriod))
	}
	want := c.in(then, from, h)
	return hmac.Equal(want[:], h.cookie)
}

// expect has pion expect a cookie of ours from the client of conn. It must be called
// by the goroutine that sends pion's own request for one.
func (c *cookies) expect(conn *dtls.Conn, k cookie) {
	*(*[]byte)(unsafe.Add(unsafe.Pointer(conn), c.offset)) = k[:] //nolint:gosec // G103: the offset is checked by cookieOffset
}

// cookieOffset says where pion keeps the cookie of a connection, for which it has no option.
func cookieOffset() (uintptr, error) {
	state, ok := reflect.TypeFor[dtls.Conn]().FieldByName("state")
	if ok && len(state.Index) == 1 && state.Type == reflect.TypeFor[dtls.State]() {
		kept, ok := state.Type.FieldByName("cookie")
		if ok && len(kept.Index) == 1 && kept.Type == reflect.TypeFor[[]byte]() { // not those of a struct within
			return state.Offset + kept.Offset, nil
		}
	}
	return 0, errors.New("coapgw: this version of pion/dtls keeps its cookie elsewhere; see docs/decisions/0023")
}

// hello is a ClientHello that came whole, in one record at the beginning of a datagram. Its
// slices are of the reader's buffer.
type hello struct {
	record  uint64 // the number of its record
	message uint16 // and its own
	before  []byte // the body up to the cookie: version, random, session id
	cookie  []byte
	after   []byte // cipher suites and compression methods
	rest    []byte // the extensions
}

const (
	handshakeHeader = 12 // type(1) length(3) message_seq(2) fragment_offset(3) fragment_length(3)

	clientHello        = 1
	serverHello        = 2
	helloVerifyRequest = 3
)

// isHello reports whether a datagram begins with a ClientHello, or a part of one.
func isHello(b []byte) bool { return isHandshake(b, clientHello) }

// isHandshake reports whether a datagram begins with an unprotected handshake
// message of a type.
func isHandshake(b []byte, kind byte) bool {
	return len(b) >= recordHeader+handshakeHeader && b[0] == typeHandshake && b[3] == 0 && b[4] == 0 && b[recordHeader] == kind
}

// parseHello reads a ClientHello. One in several fragments is not taken: it would have to be
// kept before its source is known (RFC 6347, 4.2.1).
func parseHello(b []byte) (h hello, ok bool) {
	if !isHello(b) || b[1] != 0xfe {
		return h, false
	}
	h.record = binary.BigEndian.Uint64(b[3:]) & maxSequence
	n := int(binary.BigEndian.Uint16(b[recordHeader-2:]))
	m := b[recordHeader:]
	if n < handshakeHeader || len(m) < n {
		return h, false
	}
	h.message = binary.BigEndian.Uint16(m[4:])
	length, offset, fragment := uint24(m[1:]), uint24(m[6:]), uint24(m[9:])
	body := m[handshakeHeader:n]
	if offset != 0 || fragment != length || length != len(body) {
		return h, false
	}
	h.before, h.rest, ok = cut(body, 34, 1) // version, random; session id
	if !ok {
		return h, false
	}
	if h.cookie, h.rest, ok = cut(h.rest, 0, 1); !ok {
		return h, false
	}
	h.cookie = h.cookie[1:]
	suites, rest, ok := cut(h.rest, 0, 2)
	if !ok {
		return h, false
	}
	compression, rest, ok := cut(rest, 0, 1)
	if !ok {
		return h, false
	}
	h.after, h.rest = h.rest[:len(suites)+len(compression)], rest
	return h, true
}

// cut splits off the first skip bytes of b and a vector that begins with its
// length, of so many bytes.
func cut(b []byte, skip, size int) (first, rest []byte, ok bool) {
	if len(b) < skip+size {
		return nil, nil, false
	}
	n := skip + size + int(b[skip])
	if size == 2 {
		n = skip + size + int(binary.BigEndian.Uint16(b[skip:]))
	}
	if len(b) < n {
		return nil, nil, false
	}
	return b[:n], b[n:], true
}

func uint24(b []byte) int { return int(b[0])<<16 | int(b[1])<<8 | int(b[2]) }

// suites returns the cipher suites of a hello that we have, in the client's
// order; all of ours if there are none, for pion to refuse it by.
func (h *hello) suites(ours []dtls.CipherSuiteID) []dtls.CipherSuiteID {
	n := int(binary.BigEndian.Uint16(h.after))
	var both []dtls.CipherSuiteID
	for list := h.after[2 : 2+n&^1]; len(list) > 0; list = list[2:] {
		id := dtls.CipherSuiteID(binary.BigEndian.Uint16(list))
		for _, our := range ours {
			if our == id && len(both) < len(ours) {
				both = append(both, id)
			}
		}
	}
	if both == nil {
		return ours
	}
	return both
}

// bare returns the hello without the cookie, and without the extensions: those
// may differ from one to the other, and take pion long to read.
func (h *hello) bare() []byte {
	length := len(h.before) + 1 + len(h.after)
	b := make([]byte, 0, recordHeader+handshakeHeader+length)
	b = appendHandshake(b, clientHello, h.record-1, uint16(length)) //nolint:gosec // G115: it came in a record
	b = append(b, h.before...)
	b = append(b, 0)
	return append(b, h.after...)
}

// request returns the HelloVerifyRequest that asks for a cookie. It is shorter
// than any hello, has the number of the record that it answers, and the version that pion has there.
func (h *hello) request(k cookie) []byte {
	const length = 2 + 1 + cookieLength
	b := appendHandshake(make([]byte, 0, recordHeader+handshakeHeader+length), helloVerifyRequest, h.record, length)
	b = append(b, 0xfe, 0xfd, cookieLength)
	return append(b, k[:]...)
}

// appendHandshake appends the headers of the first handshake message of either
// side, alone in its record.
func appendHandshake(b []byte, kind byte, record uint64, length uint16) []byte {
	b = append(b, typeHandshake, 0xfe, 0xfd)
	b = binary.BigEndian.AppendUint64(b, record) // epoch 0
	b = binary.BigEndian.AppendUint16(b, handshakeHeader+length)
	b = binary.BigEndian.AppendUint16(append(b, kind, 0), length)
	b = append(b, 0, 0, 0, 0, 0, 0) // message 0, all of it
	return binary.BigEndian.AppendUint16(b, length)
}

// renumber adds to the numbers of the records of epoch 0 in a datagram: those of pion
// begin at 0, and a client that was asked for its cookie twice has seen
// numbers beyond.
func renumber(b []byte, by uint64) {
	for len(b) >= recordHeader && b[3] == 0 && b[4] == 0 {
		n := recordHeader + int(binary.BigEndian.Uint16(b[recordHeader-2:]))
		binary.BigEndian.PutUint64(b[3:], binary.BigEndian.Uint64(b[3:])+by) // epoch 0 and the number
		if len(b) < n {
			return
		}
		b = b[n:]
	}
}
