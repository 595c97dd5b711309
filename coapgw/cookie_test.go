package coapgw_test

import (
	"bytes"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"keystead/coap"
	"keystead/coapgw"
)

// rawHello returns a ClientHello: its record and message number, one byte that makes its random, and a cookie.
func rawHello(record, message, random byte, cookie []byte) []byte {
	body := append([]byte{0xfe, 0xfd}, bytes.Repeat([]byte{random}, 32)...)
	body = append(body, 0, byte(len(cookie)))
	body = append(body, cookie...)
	body = append(body, 0, 4, 0xc0, 0xa8, 0x00, 0xff, 1, 0, 0, 4, 0, 0x17, 0, 0)
	n := byte(len(body))
	hs := append([]byte{1, 0, 0, n, 0, message, 0, 0, 0, 0, 0, n}, body...)
	return append([]byte{22, 0xfe, 0xfd, 0, 0, 0, 0, 0, 0, 0, record, 0, byte(len(hs))}, hs...)
}

// source is a socket that sends what it likes.
type source struct {
	t  *testing.T
	to netip.AddrPort
	*net.UDPConn
}

func (w *world) source(t *testing.T) *source {
	s := must(net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)}))
	t.Cleanup(func() { s.Close() })
	return &source{t, w.udp, s}
}

// ask sends a datagram and returns what comes back, nil if nothing does.
func (s *source) ask(b []byte, within time.Duration) []byte {
	s.t.Helper()
	if _, err := s.WriteToUDPAddrPort(b, s.to); err != nil {
		s.t.Fatal(err)
	}
	buf := make([]byte, 2048)
	_ = s.SetReadDeadline(time.Now().Add(within))
	n, _, err := s.ReadFromUDPAddrPort(buf)
	if err != nil {
		return nil
	}
	return buf[:n]
}

// cookieOf has a hello answered by a request for its cookie.
func (s *source) cookieOf(hello []byte) []byte {
	s.t.Helper()
	got := s.ask(hello, 5*time.Second)
	if len(got) < 48 || got[0] != 22 || got[13] != 3 {
		s.t.Fatalf("a hello was answered %x, want a HelloVerifyRequest", got)
	}
	if got[10] != hello[10] {
		s.t.Errorf("the answer has record number %d, want that of the hello, %d", got[10], hello[10])
	}
	if len(got) > len(hello) {
		s.t.Errorf("%d bytes answer %d: more than came", len(got), len(hello))
	}
	return got[28:48]
}

func TestNothingIsKeptOfAHelloBeforeItsCookie(t *testing.T) {
	w := newWorld(t)
	quiet := func(what string) {
		t.Helper()
		if n := w.gw.Gauges().HalfOpen; n != 0 {
			t.Errorf("%s: %d handshakes under way, want none", what, n)
		}
	}
	s, other := w.source(t), w.source(t)
	cookie := s.cookieOf(rawHello(0, 0, 7, nil))
	quiet("a hello without a cookie")
	if again := s.cookieOf(rawHello(1, 0, 7, nil)); !bytes.Equal(again[1:], cookie[1:]) && again[0] == cookie[0] {
		t.Error("the same hello has another cookie")
	}
	wrong := append([]byte(nil), cookie...)
	wrong[10] ^= 1
	for name, tc := range map[string]struct {
		from  *source
		hello []byte
	}{
		"a cookie that is not ours":    {s, rawHello(2, 1, 7, wrong)},
		"a cookie of another address":  {other, rawHello(2, 1, 7, cookie)},
		"a cookie of another hello":    {s, rawHello(2, 1, 8, cookie)},
		"a cookie cut short":           {s, rawHello(2, 1, 7, cookie[:19])},
		"a cookie in the first hello":  {s, rawHello(2, 0, 7, cookie)},
		"a cookie in a third hello":    {s, rawHello(2, 2, 7, cookie)},
		"a hello in several fragments": {s, fragmented(rawHello(2, 1, 7, cookie))},
	} {
		if got := tc.from.ask(tc.hello, 100*time.Millisecond); got != nil {
			t.Errorf("%s is answered: %x", name, got)
		}
		quiet(name)
	}
	got := s.ask(rawHello(5, 1, 7, cookie), 5*time.Second)
	if len(got) < 30 || got[13] != 2 || got[18] != 1 || got[10] != 5 {
		t.Fatalf("the hello with its cookie is answered %x, want a ServerHello, message 1 in record 5", got)
	}
	s.ask(rawHello(6, 1, 7, cookie), 100*time.Millisecond)
	if n := w.gw.Gauges().HalfOpen; n != 1 {
		t.Errorf("the same hello again: %d handshakes, want one", n)
	}
	fresh := s.cookieOf(rawHello(0, 0, 9, nil)) // the power fails, and it begins anew
	if got := s.ask(rawHello(1, 1, 9, fresh), 5*time.Second); len(got) < 30 || got[13] != 2 {
		t.Errorf("after a reboot within the handshake it is answered %x, want a ServerHello", got)
	}
	if n := w.gw.Gauges().HalfOpen; n != 1 {
		t.Errorf("after a reboot within the handshake: %d handshakes, want the later one", n)
	}
}

// fragmented has a hello say that it goes on elsewhere.
func fragmented(hello []byte) []byte {
	hello[16]++ // the length of the message, not that of the fragment
	return hello
}

// late has the datagram that shows the cookie leave late, once.
type late struct {
	net.PacketConn
	by   time.Duration
	done atomic.Bool
}

func (l *late) WriteTo(b []byte, a net.Addr) (int, error) {
	if len(b) > 61 && b[13] == 1 && b[60] > 0 && l.done.CompareAndSwap(false, true) {
		time.Sleep(l.by)
	}
	return l.PacketConn.WriteTo(b, a)
}

func TestADeviceThatShowsItsCookieLateIsServedInAFlood(t *testing.T) {
	w := newWorld(t, func(g *coapgw.Gateway) { g.MaxHalfOpen = 2 })
	done := make(chan struct{})
	go func() {
		defer close(done)
		flood(t, w.udp, 4000)
	}()
	slow := &late{PacketConn: must(net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})), by: 400 * time.Millisecond}
	c, err := w.dialFrom(slow, psk("dev1", testKey)...)
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	if !slow.done.Load() {
		t.Error("the cookie was not late: the test tests nothing")
	}
	if got := c.do(coap.GET, "/whoami", nil, nil); got.Code != coap.Content {
		t.Errorf("whoami: %v", got.Code)
	}
	<-done
	if n := w.gw.Stats().HandshakesEvicted.Load() + w.gw.Stats().HandshakesShed.Load(); n != 0 {
		t.Errorf("%d handshakes were evicted or shed for hellos without a cookie", n)
	}
}

// deaf does not hear the first datagrams.
type deaf struct {
	net.PacketConn
	left int
}

func (d *deaf) ReadFrom(b []byte) (int, net.Addr, error) {
	for {
		n, a, err := d.PacketConn.ReadFrom(b)
		if err == nil && d.left > 0 {
			d.left--
			continue
		}
		return n, a, err
	}
}

func TestRequestsForACookieMayBeLost(t *testing.T) {
	w := newWorld(t)
	c, err := w.dialFrom(&deaf{must(net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})), 3}, psk("dev1", testKey)...)
	if err != nil {
		t.Fatalf("three answers were lost: %v", err)
	}
	defer c.close()
	if got := c.do(coap.GET, "/whoami", nil, nil); got.Code != coap.Content {
		t.Errorf("whoami: %v", got.Code)
	}
}

// hellos remembers the hello that showed a cookie.
type hellos struct {
	net.PacketConn
	kept []byte
}

func (h *hellos) WriteTo(b []byte, a net.Addr) (int, error) {
	if len(b) > 61 && b[13] == 1 && b[60] > 0 {
		h.kept = bytes.Clone(b)
	}
	return h.PacketConn.WriteTo(b, a)
}

func TestALateCopyOfAHelloBeginsNothing(t *testing.T) {
	w := newWorld(t)
	tap := &hellos{PacketConn: must(net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)}))}
	c, err := w.dialFrom(tap, psk("dev1", testKey)...)
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	c.do(coap.GET, "/whoami", nil, nil)
	for range 3 {
		if _, err := tap.PacketConn.WriteTo(tap.kept, net.UDPAddrFromAddrPort(w.udp)); err != nil {
			t.Fatal(err)
		}
	}
	if got := c.do(coap.GET, "/whoami", nil, nil); got.Code != coap.Content {
		t.Errorf("whoami: %v", got.Code)
	}
	if g := w.gw.Gauges(); g.HalfOpen != 0 || g.Sessions != 1 {
		t.Errorf("%d handshakes and %d sessions, want the session alone", g.HalfOpen, g.Sessions)
	}
}
