package coapgw

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"slices"

	"github.com/pion/dtls/v3"
	"github.com/pion/dtls/v3/pkg/crypto/ccm"
	"github.com/pion/dtls/v3/pkg/crypto/ciphersuite"
	"github.com/pion/dtls/v3/pkg/protocol"
	"github.com/pion/dtls/v3/pkg/protocol/recordlayer"
	"golang.org/x/crypto/chacha20poly1305"
)

// The record layer of DTLS 1.2 (RFC 6347, 4.1; RFC 9146, 4) for sessions whose handshake is
// over. pion does the handshake and then gives the session up; what is left is
// protecting records, which needs no goroutine and no buffer of its own.

// Content types of records.
const (
	typeChangeCipherSpec = 20
	typeAlert            = 21
	typeHandshake        = 22
	typeData             = 23
	typeCID              = 25
)

const (
	recordHeader = 13 // bytes of a header without a connection id
	cidLength    = 8  // bytes of every connection id we give
	maxSequence  = 1<<48 - 1
	explicitIV   = 8 // bytes of a nonce that stand in the record, with GCM and CCM
)

type cid [cidLength]byte

// record is one record of a datagram, as it came.
type record struct {
	kind  byte
	epoch uint16
	seq   uint64
	cid   []byte // of kind typeCID
	raw   []byte // header and body
	body  []byte
}

// nextRecord splits the first record off a datagram. It is not ok if there is
// none that is well-formed; the rest of the datagram is then of no use either
// (RFC 6347, 4.1.2.7).
func nextRecord(b []byte) (r record, rest []byte, ok bool) {
	if len(b) < recordHeader || b[1] != 0xfe || (b[2] != 0xfd && b[2] != 0xff) {
		return r, nil, false
	}
	r.kind = b[0]
	r.epoch = binary.BigEndian.Uint16(b[3:])
	r.seq = binary.BigEndian.Uint64(b[3:]) & maxSequence
	head := recordHeader
	if r.kind == typeCID {
		if head += cidLength; len(b) < head {
			return r, nil, false
		}
		r.cid = b[11 : 11+cidLength]
	}
	n := int(binary.BigEndian.Uint16(b[head-2:]))
	if len(b) < head+n {
		return r, nil, false
	}
	r.raw, r.body = b[:head+n], b[head:head+n]
	return r, b[head+n:], true
}

// suite is what a cipher suite asks of the record layer.
type suite struct {
	psk          bool // authenticates by pre-shared key, else by certificate
	kind         suiteKind
	key, iv, mac int // bytes
	tag          int
	hash         func() hash.Hash
}

type suiteKind uint8

const (
	gcm suiteKind = iota
	aesCCM
	chacha
	cbc
)

// suites are those that can be served. The CBC ones are off unless asked for.
var suites = map[dtls.CipherSuiteID]suite{
	dtls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256:       {kind: gcm, key: 16, iv: 4, tag: 16, hash: sha256.New},
	dtls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384:       {kind: gcm, key: 32, iv: 4, tag: 16, hash: sha512.New384},
	dtls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256: {kind: chacha, key: 32, iv: 12, tag: 16, hash: sha256.New},
	dtls.TLS_ECDHE_ECDSA_WITH_AES_128_CCM:              {kind: aesCCM, key: 16, iv: 4, tag: 16, hash: sha256.New},
	dtls.TLS_ECDHE_ECDSA_WITH_AES_128_CCM_8:            {kind: aesCCM, key: 16, iv: 4, tag: 8, hash: sha256.New},

	dtls.TLS_ECDHE_PSK_WITH_CHACHA20_POLY1305_SHA256: {psk: true, kind: chacha, key: 32, iv: 12, tag: 16, hash: sha256.New},
	dtls.TLS_ECDHE_PSK_WITH_AES_128_CBC_SHA256:       {psk: true, kind: cbc, key: 16, iv: 16, mac: 32, hash: sha256.New},
	dtls.TLS_PSK_WITH_AES_128_GCM_SHA256:             {psk: true, kind: gcm, key: 16, iv: 4, tag: 16, hash: sha256.New},
	dtls.TLS_PSK_WITH_CHACHA20_POLY1305_SHA256:       {psk: true, kind: chacha, key: 32, iv: 12, tag: 16, hash: sha256.New},
	dtls.TLS_PSK_WITH_AES_128_CCM:                    {psk: true, kind: aesCCM, key: 16, iv: 4, tag: 16, hash: sha256.New},
	dtls.TLS_PSK_WITH_AES_128_CCM_8:                  {psk: true, kind: aesCCM, key: 16, iv: 4, tag: 8, hash: sha256.New},
	dtls.TLS_PSK_WITH_AES_256_CCM_8:                  {psk: true, kind: aesCCM, key: 32, iv: 4, tag: 8, hash: sha256.New},
	dtls.TLS_PSK_WITH_AES_128_CBC_SHA256:             {psk: true, kind: cbc, key: 16, iv: 16, mac: 32, hash: sha256.New},
}

// offered lists the suites to negotiate. Their order says nothing: pion takes the first of the client's.
func offered(withCBC bool) []dtls.CipherSuiteID {
	var ids []dtls.CipherSuiteID
	for id, s := range suites {
		if s.kind != cbc || withCBC {
			ids = append(ids, id)
		}
	}
	return ids
}

// keys are the keys of one session, in one piece of memory: of the client's
// records, then of ours.
type keys struct {
	suite dtls.CipherSuiteID
	block []byte
}

// deriveKeys computes the key block (RFC 5246, 6.3).
func deriveKeys(id dtls.CipherSuiteID, master, clientRandom, serverRandom []byte) (keys, error) {
	s, ok := suites[id]
	if !ok {
		return keys{}, fmt.Errorf("coapgw: cipher suite %v cannot be served", id)
	}
	seed := append(append([]byte("key expansion"), serverRandom...), clientRandom...)
	return keys{suite: id, block: expand(master, seed, 2*(s.mac+s.key+s.iv), s.hash)}, nil
}

// expand is P_hash (RFC 5246, 5). pion's makes an HMAC anew for each of its steps.
func expand(secret, seed []byte, n int, h func() hash.Hash) []byte {
	mac := hmac.New(h, secret)
	of := func(parts ...[]byte) []byte {
		mac.Reset()
		for _, b := range parts {
			mac.Write(b)
		}
		return mac.Sum(nil)
	}
	block := make([]byte, 0, n+mac.Size())
	for a := of(seed); len(block) < n; a = of(a) {
		block = append(block, of(a, seed)...)
	}
	clear(block[n:cap(block)])
	return block[:n:n]
}

// part returns the client's and the server's part of n bytes each at offset at.
func (k keys) part(at, n int) (client, server []byte) {
	return k.block[at : at+n], k.block[at+n : at+2*n]
}

// wipe overwrites the keys.
func (k keys) wipe() { clear(k.block) }

// protection seals and opens records. It is made of keys when it is needed and
// dropped when a session falls idle: key schedules are most of what an idle
// session would weigh.
type protection struct {
	suite           suite
	read, write     cipher.AEAD
	readIV, writeIV []byte
	cbc             *ciphersuite.CBC
}

func (k keys) protection() (*protection, error) {
	s := suites[k.suite]
	readMAC, writeMAC := k.part(0, s.mac)
	readKey, writeKey := k.part(2*s.mac, s.key)
	p := &protection{suite: s}
	p.readIV, p.writeIV = k.part(2*(s.mac+s.key), s.iv)
	var err error
	if s.kind == cbc {
		p.cbc, err = ciphersuite.NewCBC(writeKey, p.writeIV, writeMAC, readKey, p.readIV, readMAC, s.hash)
		return p, err
	}
	if p.read, err = s.aead(readKey); err != nil {
		return nil, err
	}
	p.write, err = s.aead(writeKey)
	return p, err
}

func (s suite) aead(key []byte) (cipher.AEAD, error) {
	if s.kind == chacha {
		return chacha20poly1305.New(key)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	if s.kind == aesCCM {
		return ccm.NewCCM(block, s.tag, 12)
	}
	return cipher.NewGCM(block)
}

var errRecord = errors.New("coapgw: record does not open")

// open decrypts a record of epoch 1 in place and returns its content and what
// kind that is.
func (p *protection) open(r record) (kind byte, content []byte, err error) {
	if p.cbc != nil {
		content, err = p.openCBC(r)
	} else {
		content, err = p.openAEAD(r)
	}
	if err != nil || r.kind != typeCID {
		return r.kind, content, err
	}
	for i, b := range slices.Backward(content) { // the kind is the last byte that is not padding
		if b != 0 {
			return b, content[:i], nil
		}
	}
	return 0, nil, errRecord
}

func (p *protection) openAEAD(r record) ([]byte, error) {
	sealed := r.body
	var nonce [12]byte
	copy(nonce[:], p.readIV)
	if p.suite.kind == chacha {
		xorSequence(&nonce, r.epoch, r.seq)
	} else {
		if len(sealed) < explicitIV {
			return nil, errRecord
		}
		copy(nonce[4:], sealed)
		sealed = sealed[explicitIV:]
	}
	if len(sealed) < p.suite.tag {
		return nil, errRecord
	}
	var ad [additionalMax]byte
	content, err := p.read.Open(sealed[:0], nonce[:], sealed, additional(ad[:0], r.kind, r.epoch, r.seq, r.cid, len(sealed)-p.suite.tag))
	if err != nil {
		return nil, errRecord
	}
	return content, nil
}

func (p *protection) openCBC(r record) ([]byte, error) {
	header := recordlayer.Header{}
	head := recordHeader
	if r.kind == typeCID {
		header.ConnectionID = make([]byte, cidLength)
		head += cidLength
	}
	raw, err := p.cbc.Decrypt(header, r.raw)
	if err != nil || len(raw) < head {
		return nil, errRecord
	}
	return raw[head:], nil
}

// seal appends content as a record of the given kind, in epoch 1, to b. With a
// connection id of the peer the kind is wrapped (RFC 9146, 4).
func (p *protection) seal(b []byte, kind byte, seq uint64, peer, content []byte) ([]byte, error) {
	if seq > maxSequence {
		return b, errors.New("coapgw: sequence numbers are used up")
	}
	if len(peer) > 0 {
		content = append(slices.Clip(content), kind)
		kind = typeCID
	}
	if p.cbc != nil {
		return p.sealCBC(b, kind, seq, peer, content)
	}
	b = append(b, kind, 0xfe, 0xfd)
	b = binary.BigEndian.AppendUint64(b, 1<<48|seq)
	b = append(b, peer...)
	length := len(content) + p.suite.tag
	var nonce [12]byte
	copy(nonce[:], p.writeIV)
	if p.suite.kind == chacha {
		xorSequence(&nonce, 1, seq)
	} else {
		// The sequence number never repeats, so neither does the nonce (RFC 9325, 7.2.1).
		binary.BigEndian.PutUint64(nonce[4:], 1<<48|seq)
		length += explicitIV
	}
	b = binary.BigEndian.AppendUint16(b, uint16(length)) //nolint:gosec // G115: a record is far below 65536 bytes
	if p.suite.kind != chacha {
		b = append(b, nonce[4:]...)
	}
	var ad [additionalMax]byte
	return p.write.Seal(b, nonce[:], content, additional(ad[:0], kind, 1, seq, peer, len(content))), nil
}

func (p *protection) sealCBC(b []byte, kind byte, seq uint64, peer, content []byte) ([]byte, error) {
	header := recordlayer.Header{
		ContentType: protocol.ContentType(kind), Version: protocol.Version1_2, Epoch: 1, SequenceNumber: seq, ConnectionID: peer,
		ContentLen: uint16(len(content)), //nolint:gosec // G115: a record is far below 65536 bytes
	}
	raw, err := header.Marshal()
	if err != nil {
		return b, fmt.Errorf("coapgw: record header: %w", err)
	}
	sealed, err := p.cbc.Encrypt(&recordlayer.RecordLayer{Header: header}, append(raw, content...))
	return append(b, sealed...), err
}

func xorSequence(nonce *[12]byte, epoch uint16, seq uint64) {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], uint64(epoch)<<48|seq)
	for i := range b {
		nonce[4+i] ^= b[i]
	}
}

// additionalMax is room for the additional data of a record with the longest connection id a peer can give.
const additionalMax = 23 + 255

// additional appends the additional data of a record (RFC 5246, 6.2.3.3; RFC 9146, 5.3).
func additional(b []byte, kind byte, epoch uint16, seq uint64, cid []byte, length int) []byte {
	if kind == typeCID {
		b = append(b, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, typeCID, byte(len(cid)), typeCID, 0xfe, 0xfd) //nolint:gosec // G115: a connection id has at most 255 bytes
		b = binary.BigEndian.AppendUint64(b, uint64(epoch)<<48|seq)
		b = append(b, cid...)
	} else {
		b = binary.BigEndian.AppendUint64(b, uint64(epoch)<<48|seq)
		b = append(b, kind, 0xfe, 0xfd)
	}
	return binary.BigEndian.AppendUint16(b, uint16(length)) //nolint:gosec // G115: a record is far below 65536 bytes
}

// window rejects records that were seen before (RFC 6347, 4.1.2.6).
type window struct {
	next uint64 // one more than the highest number seen; 0 if none was
	seen uint64 // bit i: number next-1-i was seen
}

// fresh reports whether seq is in the window and was not seen.
func (w *window) fresh(seq uint64) bool {
	if seq >= w.next {
		return true
	}
	age := w.next - 1 - seq
	return age < 64 && w.seen>>age&1 == 0
}

// mark notes that seq was seen, and reports whether it is the newest.
func (w *window) mark(seq uint64) bool {
	if seq >= w.next {
		shift := seq + 1 - w.next
		if w.seen <<= shift; shift >= 64 {
			w.seen = 0
		}
		w.seen |= 1
		w.next = seq + 1
		return true
	}
	w.seen |= 1 << (w.next - 1 - seq)
	return false
}
