// Package coapgw is the CoAP side of the server: one UDP port for DTLS with
// pre-shared keys and certificates, one TCP port for TLS, and the sessions of both
// in one table.
//
// A datagram goes to the demultiplexer ([udp]), which knows handshakes under way
// and sessions. pion does the handshake; then the session is ours: records,
// messages and blocks are handled by whichever goroutine read the datagram, and
// an idle session has none and holds little more than its keys. A whole request
// passes limits, route and identity and comes to its handler; see package coap
// for how those are written.
package coapgw

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2" //nolint:depguard // for jitter
	"net"
	"net/netip"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pion/dtls/v3"
	"github.com/pion/dtls/v3/pkg/crypto/elliptic"

	"keystead/coap"
	"keystead/fault"
	"keystead/identity"
	"keystead/seal"
)

// Gateway serves CoAP. The exported fields are set before Listen.
type Gateway struct {
	Config

	// Routes are what is served besides the gateway's own resources.
	Routes []coap.Route
	// Side is a second port for DTLS that serves its own routes and no others.
	// Its sessions are in the same table, under the same limits.
	Side Side
	// Resolver says who a proof belongs to; identity.ErrNoCredential if it
	// knows of none.
	Resolver func(context.Context, identity.Proof) (identity.Actor, error)
	// Secret returns the key of a PSK identity and whom it proves, a NotFound fault if there is none.
	Secret func(ctx context.Context, pskIdentity string) (seal.Secret, identity.Actor, error)
	// DecoyKey is what the keys of unknown identities are made from: 32 bytes,
	// the same in every run.
	DecoyKey seal.Secret
	// Certificate returns the server's certificate for a transport and the name a client
	// asks for, "" if for none. Over DTLS it cannot be one with RSA.
	Certificate func(over identity.Transport, serverName string) (*tls.Certificate, error)
	// Epoch is devices.Service.Epoch.
	Epoch func() uint64
	// Accounts are behind the OCF cloud resources; needed if those are enabled.
	Accounts OCFAccounts

	Log *slog.Logger
	Now func() time.Time

	ctx      context.Context //nolint:containedctx // of everything that runs between Run and its end
	cancel   context.CancelFunc
	work     sync.WaitGroup
	router   *router
	sessions sessions
	udp      *udp
	side     *udp
	tcp      *tcp
	stats    Stats
	active   atomic.Int64 // requests being served
	buffered atomic.Int64 // bytes of bodies under way in blocks

	busyMu sync.Mutex
	busy   map[*dgram]struct{} // those with something due
	wake   chan struct{}
}

// Side is a port besides the main one.
type Side struct {
	UDP    string // the address; empty for none
	Routes []coap.Route
}

// Listen binds the ports; a port that is taken is an error here and not later.
// Run must follow, or Close.
func (g *Gateway) Listen(ctx context.Context) error {
	routes := append(g.ownRoutes(), g.Routes...)
	router, err := newRouter(routes)
	if err != nil {
		return err
	}
	g.router = router
	g.ctx, g.cancel = context.WithCancel(context.WithoutCancel(ctx))
	g.sessions = sessions{max: g.MaxSessions, byID: map[string]*session{}, byDevice: map[string]*session{}}
	g.busy, g.wake = map[*dgram]struct{}{}, make(chan struct{}, 1)
	if g.UDP != "" {
		if g.udp, err = listenUDP(g, g.UDP, router); err != nil {
			return fmt.Errorf("coap.%w", err)
		}
	}
	if g.Side.UDP != "" {
		if err := g.listenSide(); err != nil {
			g.Close()
			return err
		}
	}
	if g.TCP != "" {
		if g.tcp, err = listenTCP(g, g.TCP); err != nil {
			g.Close()
			return fmt.Errorf("coap.%w", err)
		}
	}
	return nil
}

// listenSide binds the second port.
func (g *Gateway) listenSide() error {
	router, err := newRouter(append(g.commonRoutes(), g.Side.Routes...))
	if err != nil {
		return err
	}
	if g.side, err = listenUDP(g, g.Side.UDP, router); err != nil {
		return fmt.Errorf("the second port: %w", err)
	}
	return nil
}

// ports returns the sockets for DTLS.
func (g *Gateway) ports() []*udp {
	all := make([]*udp, 0, 2)
	for _, u := range []*udp{g.udp, g.side} {
		if u != nil {
			all = append(all, u)
		}
	}
	return all
}

// SideAddr returns where the second port is bound, the zero value if it is off.
func (g *Gateway) SideAddr() netip.AddrPort { return g.side.addr() }

// Addrs returns where the gateway is bound: the zero value for what is switched off.
func (g *Gateway) Addrs() (udp, tcp netip.AddrPort) {
	udp = g.udp.addr()
	if g.tcp != nil {
		if a, ok := g.tcp.socket.Addr().(*net.TCPAddr); ok {
			tcp = a.AddrPort()
		}
	}
	return udp, tcp
}

// Run serves until ctx is cancelled, then ends every session and returns when
// all that ran has ended.
func (g *Gateway) Run(ctx context.Context) error {
	for _, u := range g.ports() {
		for range cores() {
			g.work.Go(u.read)
		}
	}
	if g.tcp != nil {
		g.work.Go(g.tcp.accept)
	}
	g.work.Go(g.tend)
	g.work.Go(g.sweepEvery)
	<-ctx.Done()
	for _, s := range g.sessions.all() {
		s.end("the server stops", true)
	}
	g.Close()
	g.work.Wait()
	return nil
}

// Close releases what Listen bound. It is for a gateway that does not run.
func (g *Gateway) Close() {
	if g.cancel != nil {
		g.cancel()
	}
	for _, u := range g.ports() {
		u.close()
	}
	if g.tcp != nil {
		g.tcp.close()
	}
}

// Sessions returns the sessions there are.
func (g *Gateway) Sessions() []coap.Session {
	all := g.sessions.all()
	list := make([]coap.Session, len(all))
	for i, s := range all {
		list[i] = s
	}
	return list
}

// spawn runs fn on a goroutine of its own, which Run waits for.
func (g *Gateway) spawn(where string, fn func()) {
	g.work.Go(func() { g.guard(where, fn) })
}

// attend has the messages of a session tended to until none is due.
func (g *Gateway) attend(d *dgram) {
	g.busyMu.Lock()
	g.busy[d] = struct{}{}
	first := len(g.busy) == 1
	g.busyMu.Unlock()
	if first {
		select {
		case g.wake <- struct{}{}:
		default:
		}
	}
}

// tendEvery is how exactly retransmissions are timed.
const tendEvery = 100 * time.Millisecond

// tend looks after acknowledgements and retransmissions, and sessions that are
// about to end. It sleeps while there are none.
func (g *Gateway) tend() {
	tick := time.NewTicker(tendEvery)
	defer tick.Stop()
	for {
		select {
		case <-g.ctx.Done():
			return
		case <-g.wake:
			tick.Reset(tendEvery)
		case <-tick.C:
		}
		g.busyMu.Lock()
		list := make([]*dgram, 0, len(g.busy))
		for d := range g.busy {
			list = append(list, d)
		}
		clear(g.busy)
		g.busyMu.Unlock()
		if len(list) == 0 {
			tick.Stop()
			continue
		}
		now := g.Now()
		for _, d := range list {
			at := d.session.closeAt.Load()
			if at != 0 && now.UnixNano() >= at {
				d.session.end("closed after the answer", true)
				continue
			}
			if d.tend(now) || at != 0 {
				g.busyMu.Lock()
				g.busy[d] = struct{}{}
				g.busyMu.Unlock()
			}
		}
	}
}

// sweepInterval is how often all sessions are looked at.
const sweepInterval = 5 * time.Second

func (g *Gateway) sweepEvery() {
	tick := time.NewTicker(sweepInterval)
	defer tick.Stop()
	for {
		select {
		case <-g.ctx.Done():
			return
		case <-tick.C:
			g.Sweep(g.Now())
		}
	}
}

// Sweep ends the sessions that were idle for too long, or whose credential has
// expired, and drops what idle ones need not.
func (g *Gateway) Sweep(now time.Time) {
	for _, u := range g.ports() {
		u.resume.expire(now)
	}
	for _, s := range g.sessions.all() {
		idle := now.Sub(time.Unix(0, s.seen.Load()))
		limit := g.IdleTimeout
		d, overUDP := s.link.(*dgram)
		if overUDP && d.cid != nil {
			limit = g.IdleTimeoutCID
		}
		if s.enrolsOnly() { // it has no device whose sleep it could outlive
			limit = g.IdleTimeout
		}
		switch {
		case idle >= limit:
			s.end("idle", true)
			continue
		case s.enrolsOnly() && now.Sub(time.Unix(0, s.since)) >= maxEnrolling:
			s.end("it was there to enrol, for long enough", true)
			continue
		case g.CloseOnExpiry && s.expired(now):
			s.end("its credential has expired", true)
			continue
		}
		s.slim(now)
		if overUDP {
			d.park(now, idle)
		}
	}
}

// maxEnrolling is how long a session lasts that can only enrol, however much it says.
const maxEnrolling = time.Hour

// expired reports whether what the session rests on has expired.
func (s *session) expired(now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.signed != nil && !s.signed.until.IsZero() && !now.Before(s.signed.until) {
		return true
	}
	at := s.actor.Credential.ExpiresAt
	return s.known && !at.IsZero() && !now.Before(at)
}

// proof is what a handshake has shown. A client that shows nothing is refused
// unless the gateway takes anonymous ones.
func (g *Gateway) proof(transport identity.Transport, from netip.AddrPort, psk string, der [][]byte) (identity.Proof, error) {
	chain, err := parseChain(der)
	switch {
	case err != nil:
		return identity.Proof{}, err
	case psk == "" && len(chain) == 0 && !g.takesAnonymous():
		return identity.Proof{}, identity.ErrNoCredential
	}
	return identity.Proof{Chain: chain, PSK: psk, Transport: transport, Remote: from}, nil
}

// takesAnonymous reports whether a session may begin without any credential: OCF
// devices that sign in with a token have none to show, unless a certificate is
// demanded of them.
func (g *Gateway) takesAnonymous() bool {
	return g.Anonymous || (g.OCF.Enabled && !g.OCF.ClientCertificateRequired)
}

// resolve says whom a proof belongs to, and in which epoch that was so. A
// certificate that is not known is no error: its owner may be about to enrol.
func (g *Gateway) resolve(ctx context.Context, p identity.Proof) (found, error) {
	f := found{epoch: g.Epoch()} // before: what is revoked meanwhile is found next time
	if p.PSK == "" && len(p.Chain) == 0 {
		return f, nil
	}
	a, err := g.Resolver(ctx, p)
	switch {
	case err == nil:
		f.actor, f.known = a, true
		return f, nil
	case errors.Is(err, identity.ErrMayEnrol) && p.PSK == "":
		f.enrols = true
		return f, nil
	case errors.Is(err, identity.ErrNoCredential) && p.PSK == "":
		return f, nil
	}
	return f, err
}

const (
	maxChain      = 8
	maxChainBytes = 32 << 10
)

func parseChain(der [][]byte) ([]*x509.Certificate, error) {
	if len(der) == 0 {
		return nil, nil
	}
	size := 0
	for _, c := range der {
		size += len(c)
	}
	if len(der) > maxChain || size > maxChainBytes {
		return nil, fault.New(fault.Unauthenticated, "the certificate chain is too long")
	}
	chain := make([]*x509.Certificate, len(der))
	for i, c := range der {
		var err error
		if chain[i], err = x509.ParseCertificate(c); err != nil {
			return nil, fault.Wrap(fault.Unauthenticated, err, "the certificate cannot be read")
		}
	}
	return chain, nil
}

// options are what all handshakes have in common.
func (u *udp) options() []dtls.ServerOption {
	return []dtls.ServerOption{
		dtls.WithClientAuth(dtls.RequestClientCert), // who may do what is for the resolver to say
		dtls.WithEllipticCurves(elliptic.X25519, elliptic.P256, elliptic.P384),
		dtls.WithLoggerFactory(quiet{}),
	}
}

// cores is how much is worth doing at once.
func cores() int { return max(2, runtime.GOMAXPROCS(0)) }

// jitter returns a number from 0 to 1.
func jitter() float64 { return rand.Float64() } //nolint:gosec // G404: it spreads retransmissions

// buffers for records on their way out.
var buffers = sync.Pool{New: func() any { return new([]byte) }}

func getBuffer() *[]byte {
	b, ok := buffers.Get().(*[]byte)
	if !ok {
		return new([]byte)
	}
	return b
}

func putBuffer(b *[]byte) {
	if cap(*b) <= maxDatagram {
		buffers.Put(b)
	}
}
