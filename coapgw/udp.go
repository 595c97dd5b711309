package coapgw

import (
	"container/list"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/pion/dtls/v3"
)

// udp is the demultiplexer: it deals the datagrams of one socket out to
// handshakes under way and to sessions. Readers of the socket run here, and
// nothing they do waits for anything but a lock.
type udp struct {
	gw      *Gateway
	router  *router
	socket  *net.UDPConn
	common  []dtls.ServerOption // of every handshake
	suites  []dtls.CipherSuiteID
	cookies *cookies
	decoys  *macs // the keys of unknown identities
	resume  *resumptions
	rate    buckets
	storms  storms
	cpu     chan struct{} // held while a handshake with certificates computes

	mu      sync.Mutex
	byAddr  map[netip.AddrPort]*dgram
	byCID   map[cid]owner
	pending map[netip.AddrPort]*handshake
	silent  *list.List // of handshakes whose client has not answered our hello yet, oldest first
	sources map[netip.Addr]int
	certs   int // pending ones with certificates
	closed  bool
}

// owner is what a connection id leads to: a handshake, and then its session.
type owner struct {
	handshake *handshake
	session   *dgram
}

// maxDatagram is the most bytes of a datagram that are read: pion reads no
// more either.
const maxDatagram = 8192

// evictAfter is how long a client may leave our hello unanswered before a new
// handshake takes its place when all places are taken.
const evictAfter = 5 * time.Second

func listenUDP(gw *Gateway, addr string, router *router) (*udp, error) {
	at, err := net.ResolveUDPAddr("udp", addr)
	if err != nil {
		return nil, fmt.Errorf("udp: %w", err)
	}
	socket, err := net.ListenUDP("udp", at)
	if err != nil {
		return nil, fmt.Errorf("udp: %w", err)
	}
	// A burst of datagrams waits here; the kernel gives what it allows.
	_ = socket.SetReadBuffer(4 << 20)
	_ = socket.SetWriteBuffer(1 << 20)
	cookies, err := newCookies()
	if err != nil {
		socket.Close()
		return nil, err
	}
	u := &udp{
		gw: gw, router: router, socket: socket, suites: offered(gw.LegacyCBC),
		cookies: cookies, decoys: newMACs(gw.DecoyKey),
		resume:  newResumptions(gw),
		rate:    buckets{rate: gw.HandshakeRate, burst: gw.HandshakeBurst},
		cpu:     make(chan struct{}, cores()),
		byAddr:  map[netip.AddrPort]*dgram{},
		byCID:   map[cid]owner{},
		pending: map[netip.AddrPort]*handshake{},
		silent:  list.New(),
		sources: map[netip.Addr]int{},
	}
	u.common = u.options()
	return u, nil
}

// addr is where u is bound; the zero value for a port that is off.
func (u *udp) addr() netip.AddrPort {
	if u == nil {
		return netip.AddrPort{}
	}
	a, ok := u.socket.LocalAddr().(*net.UDPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	return a.AddrPort()
}

// read deals out datagrams until the socket is closed.
func (u *udp) read() {
	buf := make([]byte, maxDatagram)
	for {
		n, from, err := u.socket.ReadFromUDPAddrPort(buf)
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil: // an ICMP error of an earlier send, at most
			continue
		}
		from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
		u.gw.guard("udp", func() { u.route(from, buf[:n]) })
		clear(buf[:n]) // records are opened in place, and may hold keys
	}
}

// route gives a datagram to whom it is for. The bytes are the reader's, and
// hold until route returns.
func (u *udp) route(from netip.AddrPort, b []byte) {
	if len(b) < recordHeader {
		return
	}
	if b[0] == typeCID {
		u.routeCID(from, b)
		return
	}
	if isHello(b) {
		u.hello(from, b)
		return
	}
	u.mu.Lock()
	session, handshake := u.byAddr[from], u.pending[from]
	if handshake != nil {
		u.answered(handshake)
	}
	u.mu.Unlock()
	if handshake != nil {
		handshake.push(b)
		if b[3] == 0 && b[4] == 0 {
			return
		}
		// A session at the same address keeps getting what may be its own. What
		// it cannot open it ignores.
	}
	if session != nil {
		session.datagram(from, b)
	}
}

// hello takes a ClientHello. One without a cookie is asked for it, and forgotten; with a
// cookie of ours its source is what it says, and a handshake begins.
func (u *udp) hello(from netip.AddrPort, b []byte) {
	h, ok := parseHello(b)
	now := u.gw.Now()
	switch {
	case !ok:
		u.gw.stats.DatagramsDropped.Add(1)
		return
	case len(h.cookie) == 0 && h.message == 0:
		_, _ = u.socket.WriteToUDPAddrPort(h.request(u.cookies.of(from, &h, now)), from)
		return
	case h.message != 1 || h.record == 0 || h.record >= maxHelloRecord || !u.cookies.valid(from, &h, now):
		u.gw.stats.DatagramsDropped.Add(1)
		return
	}
	shown := cookie(h.cookie)
	u.mu.Lock()
	session, handshake := u.byAddr[from], u.pending[from]
	switch {
	case handshake != nil && handshake.cookie == shown: // again: our answer was lost, or is on its way
		u.mu.Unlock()
		handshake.push(b)
		return
	case session != nil && session.cookie == shown: // a copy that comes late
		u.mu.Unlock()
		return
	case handshake != nil: // the device began anew
		u.forget(handshake)
	}
	handshake = u.admit(from, &h)
	u.mu.Unlock()
	if handshake != nil {
		handshake.push(h.bare())
		handshake.push(b)
		u.gw.spawn("handshake", handshake.run)
	}
}

// maxHelloRecord leaves numbers for what follows a hello.
const maxHelloRecord = 1 << 32

func (u *udp) routeCID(from netip.AddrPort, b []byte) {
	if len(b) < recordHeader+cidLength {
		return
	}
	u.mu.Lock()
	to := u.byCID[cid(b[11:11+cidLength])]
	u.mu.Unlock()
	switch {
	case to.session != nil:
		to.session.datagram(from, b)
	case to.handshake != nil && to.handshake.addr == from:
		to.handshake.push(b)
	}
}

// admit begins a handshake if there is room for one. A device that lost its
// state may do it from the address of a session that is still open (RFC 6347,
// 4.2.8); the session stays until the new one is proven. u.mu is held.
func (u *udp) admit(from netip.AddrPort, hello *hello) *handshake {
	now := u.gw.Now()
	stats := &u.gw.stats
	switch {
	case u.closed:
		return nil
	case u.sources[from.Addr()] >= u.gw.MaxHalfOpenSource,
		!from.Addr().IsLoopback() && !u.rate.take(now, prefix(from.Addr())):
		stats.HandshakesShed.Add(1)
		return nil
	case len(u.pending) >= u.gw.MaxHalfOpen && !u.evict(now):
		stats.HandshakesShed.Add(1)
		return nil
	}
	h := newHandshake(u, from, hello, now)
	u.pending[from] = h
	h.silent = u.silent.PushBack(h)
	u.sources[from.Addr()]++
	return h
}

// evict ends the oldest handshake whose client has not answered, if it had its
// time. u.mu is held.
func (u *udp) evict(now time.Time) bool {
	oldest := u.silent.Front()
	if oldest == nil {
		return false
	}
	h, ok := oldest.Value.(*handshake)
	if !ok || now.Sub(h.born) < evictAfter {
		return false
	}
	u.gw.stats.HandshakesEvicted.Add(1)
	u.forget(h)
	return true
}

// forget takes a handshake out of the maps and ends it. u.mu is held.
func (u *udp) forget(h *handshake) {
	if u.pending[h.addr] != h {
		return
	}
	delete(u.pending, h.addr)
	u.answered(h)
	if u.sources[h.addr.Addr()]--; u.sources[h.addr.Addr()] <= 0 {
		delete(u.sources, h.addr.Addr())
	}
	if h.certificate {
		u.certs--
	}
	if h.cid != nil && u.byCID[*h.cid].handshake == h {
		delete(u.byCID, *h.cid)
	}
	h.stop()
}

// answered takes note that the client of h goes on with it. u.mu is held.
func (u *udp) answered(h *handshake) {
	if h.silent != nil {
		u.silent.Remove(h.silent)
		h.silent = nil
	}
}

// establish replaces a handshake by its session and returns the datagrams that
// came for it meanwhile. It is not ok if the gateway is closed.
func (u *udp) establish(h *handshake, d *dgram) (old *dgram, ok bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.closed || u.pending[h.addr] != h {
		return nil, false
	}
	if d.cid != nil {
		u.byCID[*d.cid] = owner{session: d}
	}
	old = u.byAddr[h.addr]
	u.byAddr[h.addr] = d
	h.cid = nil // it is the session's now
	u.forget(h)
	return old, true
}

// moved notes that a session is reached at another address now, if no other
// is there.
func (u *udp) moved(d *dgram, from, to netip.AddrPort) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.byAddr[from] == d {
		delete(u.byAddr, from)
	}
	if u.byAddr[to] == nil {
		u.byAddr[to] = d
	}
}

// remove takes a session out of the maps.
func (u *udp) remove(d *dgram, at netip.AddrPort) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.byAddr[at] == d {
		delete(u.byAddr, at)
	}
	if d.cid != nil && u.byCID[*d.cid].session == d {
		delete(u.byCID, *d.cid)
	}
}

// close ends what is under way and the socket; the readers then return.
func (u *udp) close() {
	u.mu.Lock()
	u.closed = true
	for _, h := range u.pending {
		u.forget(h)
	}
	u.mu.Unlock()
	u.socket.Close()
}

func (u *udp) halfOpen() int {
	u.mu.Lock()
	defer u.mu.Unlock()
	return len(u.pending)
}
