package coapgw //nolint:testpackage // it goes under the front door: what it feeds no datagram reaches unsealed

import (
	"bytes"
	"encoding/hex"
	"log/slog"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/pion/dtls/v3"

	"keystead/coap"
)

// FuzzRecords has the demultiplexer and a session's record layer take anything
// that may come in a datagram.
func FuzzRecords(f *testing.F) {
	hello, _ := hex.DecodeString("16fefd000000000000000000460100003a000000000000003afefd" + strings.Repeat("07", 32) + "00000004c0a800ff01000004001700" + "00")
	f.Add(hello)
	for _, seed := range []string{
		"17fefd0001000000000001001000010000000000018c2f7a5a6a1b2c3d",
		"19fefd00010000000000010102030405060708000c000100000000000111223344",
		"14fefd0000000000000000000101" + "16fefd00010000000000000004aabbccdd",
	} {
		b, _ := hex.DecodeString(seed)
		f.Add(b)
	}
	g := &Gateway{Config: DefaultConfig(), Log: slog.New(slog.DiscardHandler), Now: time.Now}
	k, err := deriveKeys(dtls.TLS_PSK_WITH_AES_128_CCM_8, make([]byte, 48), make([]byte, 32), make([]byte, 32))
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if h, ok := parseHello(b); ok {
			h.record = max(h.record, 1) // one that shows a cookie is not the first
			again, ok := parseHello(h.bare())
			if !ok || len(again.cookie) != 0 || !bytes.Equal(again.before, h.before) || !bytes.Equal(again.after, h.after) || len(again.rest) != 0 {
				t.Fatalf("%x: without the cookie it is %x", b, h.bare())
			}
			if n := len(h.request(cookie{})); n > len(b) {
				t.Fatalf("%x: %d bytes answer %d", b, n, len(b))
			}
			_ = h.suites(offered(true))
		}
		moved := bytes.Clone(b)
		renumber(moved, 3)
		seen := 0
		protected(b, cidLength, func(uint64) { seen++ })
		rest, records := b, 0
		for {
			r, more, ok := nextRecord(rest)
			if !ok {
				break
			}
			if len(r.raw)+len(more) != len(rest) || len(r.body) > len(r.raw) || r.seq > maxSequence {
				t.Fatalf("%x: record %+v of %d bytes leaves %d", b, r, len(rest), len(more))
			}
			rest = more
			records++
		}
		if records > len(b)/recordHeader {
			t.Fatalf("%x: %d records", b, records)
		}
		d := &dgram{u: &udp{gw: g}, keys: k, session: &session{gw: g}}
		d.datagram(netip.AddrPort{}, bytes.Clone(b)) // nothing of it opens
		if n := d.session.received.Load(); n != 0 {
			t.Fatalf("%x: a record of nobody's opens: %d bytes", b, n)
		}
	})
}

// FuzzSealed has records that were sealed come back as they were, and not when
// anything in them was changed.
func FuzzSealed(f *testing.F) {
	f.Add([]byte("hello"), uint64(7), []byte{}, uint16(0))
	f.Add([]byte{}, uint64(1<<40), []byte("12345678"), uint16(3))
	f.Fuzz(func(t *testing.T, content []byte, seq uint64, peer []byte, flip uint16) {
		if len(content) > 4000 || seq > maxSequence || len(peer) != cidLength {
			peer = nil
		}
		if len(content) > 4000 || seq > maxSequence {
			return
		}
		for id := range suites {
			k, err := deriveKeys(id, make([]byte, 48), make([]byte, 32), []byte(strings.Repeat("s", 32)))
			if err != nil {
				t.Fatal(err)
			}
			p, err := k.protection()
			if err != nil {
				t.Fatal(err)
			}
			b, err := p.seal(nil, typeData, seq, peer, bytes.Clone(content))
			if err != nil {
				t.Fatalf("%v: %v", id, err)
			}
			other, err := mirrored(k)
			if err != nil {
				t.Fatal(err)
			}
			changed := bytes.Clone(b)
			r, rest, ok := nextRecord(b)
			if !ok || len(rest) != 0 || r.seq != seq || r.epoch != 1 {
				t.Fatalf("%v: sealed as %x, which reads as %+v", id, b, r)
			}
			kind, got, err := other.open(r)
			if err != nil || kind != typeData || !bytes.Equal(got, content) {
				t.Fatalf("%v: sealed %x, opened %d %x, %v", id, content, kind, got, err)
			}
			changed[int(flip)%len(changed)] ^= 1
			if r, _, ok := nextRecord(changed); ok && r.epoch == 1 {
				if _, got, err := other.open(r); err == nil {
					t.Fatalf("%v: with byte %d changed it opens as %x", id, int(flip)%len(changed), got)
				}
			}
		}
	})
}

// mirrored returns the protection of the peer.
func mirrored(k keys) (*protection, error) {
	s := suites[k.suite]
	block := make([]byte, 0, len(k.block))
	at := 0
	for _, n := range []int{s.mac, s.key, s.iv} {
		client, server := k.part(at, n)
		block = append(append(block, server...), client...)
		at += 2 * n
	}
	return keys{suite: k.suite, block: block}.protection()
}

// FuzzBlocks has the block layer take any sequence of blocks: it never keeps
// more than it may, and a body that is whole is what was sent.
func FuzzBlocks(f *testing.F) {
	f.Add([]byte{0x0e, 1, 0x1e, 2, 0x26, 3})
	f.Add([]byte{0x08, 0x18, 0x10, 0xff, 0x00})
	g := &Gateway{Config: DefaultConfig(), Log: slog.New(slog.DiscardHandler), Now: time.Now}
	g.ctx = f.Context()
	f.Fuzz(func(t *testing.T, script []byte) {
		g.buffered.Store(0)
		s := &session{gw: g, link: &dgram{u: &udp{gw: g}}}
		for i := 0; i+1 < len(script) && i < 64; i += 2 {
			b := coap.Block{Num: uint32(script[i] >> 4), More: script[i]&8 != 0, SZX: script[i] & 7}
			body := bytes.Repeat([]byte{script[i+1]}, min(int(script[i+1])*8, 1024))
			m := &coap.Message{Code: coap.POST, Options: coap.Options{}.Add(coap.Block1, b.Value()), Payload: body}
			if b.SZX == coap.BERT || len(body) > b.Size() {
				continue // refused before
			}
			whole, done, err := s.append(m, b)
			if done && (err != nil || len(whole) < len(body)) {
				t.Fatalf("block %+v: %d bytes, %v", b, len(whole), err)
			}
		}
		kept := int64(0)
		if s.more != nil {
			for _, u := range s.more.transfers.up {
				kept += int64(len(u.body))
			}
		}
		if g.buffered.Load() != kept {
			t.Fatalf("%d bytes are accounted for, %d are kept", g.buffered.Load(), kept)
		}
	})
}

// FuzzAccount has the bodies of the OCF resources be anything.
func FuzzAccount(f *testing.F) {
	for _, seed := range []string{"a1626469", "bf62646961316375696461756c61636365737374f5ff", "a0", "9f9f9f9f9f9f9f9f9f9f", "a1656c6f67696ef5"} {
		b, _ := hex.DecodeString(seed)
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		a, err := decodeAccount(b)
		if err != nil && coap.Failure(err).Code != coap.BadRequest {
			t.Fatalf("%x: %v, want 4.00", b, err)
		}
		if err != nil && a.Login && len(b) == 0 {
			t.Fatalf("%x: %+v out of nothing", b, a)
		}
	})
}
