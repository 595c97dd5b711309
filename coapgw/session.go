package coapgw

import (
	"context"
	"crypto/x509"
	"errors"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"keystead/coap"
	"keystead/devices"
	"keystead/fault"
	"keystead/id"
	"keystead/identity"
)

// link is what carries the messages of a session: a [dgram] or a [stream].
type link interface {
	remote() netip.AddrPort
	// notify sends a message that answers no request of the moment, and calls
	// done with what became of it; done may be nil.
	notify(m *coap.Message, done func(error)) error
	// close ends the link, telling the peer if tell says so.
	close(tell bool)
}

// session is one association with a peer: the same for every transport, and
// what a handler sees of it. It implements [coap.Session].
type session struct {
	gw        *Gateway
	link      link
	id        string
	transport identity.Transport
	since     int64 // unix nanoseconds
	psk       string
	chain     [][]byte // DER, leaf first
	tls13     bool

	seen     atomic.Int64 // unix nanoseconds
	received atomic.Uint64
	sent     atomic.Uint64
	active   atomic.Int32 // requests being served
	closeAt  atomic.Int64 // unix nanoseconds; set when the session is to end
	over     atomic.Bool
	leaving  atomic.Bool // it is ending its own device, and stays for the answer

	next *session // of the same device; guarded by gw.sessions.mu
	key  string   // the device it is listed under; guarded by gw.sessions.mu

	mu      sync.Mutex
	found           // whom the session's own credential proves
	changes uint32  // of that device's record since the session began
	signed  *signIn // nil if it is not signed in
	bucket  bucket
	refused int // credentials of requests
	more    *more
}

// more is what most sessions have none of at most times.
type more struct {
	ctx          context.Context //nolint:containedctx // of the session's requests: it ends with the session
	cancel       context.CancelFunc
	transfers    transfers
	calls        map[string]chan *coap.Message // by token
	observations map[string]*observation       // by token
	values       map[any]any
	onEnd        []func()
}

const maxActive = 8 // requests of one session that are served at once

var errEnded = errors.New("coapgw: the session has ended")

func newSession(gw *Gateway, l link, transport identity.Transport, p peer) *session {
	now := gw.Now()
	s := &session{
		gw: gw, link: l, id: id.New(now), transport: transport, since: now.UnixNano(),
		psk: p.psk, chain: p.chain, tls13: p.tls13, found: p.found,
	}
	s.seen.Store(now.UnixNano())
	return s
}

// admitted looks again at a session that has just been entered in the table:
// what was revoked before it could be found there ends it now.
func (s *session) admitted() {
	if s.epochSeen() != s.gw.Epoch() {
		if _, _, err := s.resolve(s.gw.ctx); fault.Is(err, fault.Unauthenticated) || fault.Is(err, fault.Forbidden) {
			s.end("its credential is good no more", true)
		}
	}
}

func (s *session) epochSeen() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.epoch
}

// heard and told keep account of the session's traffic.
func (s *session) heard(n int) {
	s.seen.Store(s.gw.Now().UnixNano())
	s.received.Add(uint64(n)) //nolint:gosec // G115: a len
}

func (s *session) told(n int) { s.sent.Add(uint64(n)) } //nolint:gosec // G115: a len

// begin admits a request to be served, until finish.
func (s *session) begin() bool {
	if s.active.Add(1) > maxActive {
		s.active.Add(-1)
		s.gw.stats.RequestsShed.Add(1)
		return false
	}
	if s.gw.active.Add(1) > maxRequests {
		s.gw.active.Add(-1)
		s.active.Add(-1)
		s.gw.stats.RequestsShed.Add(1)
		return false
	}
	return true
}

func (s *session) finish() {
	s.gw.active.Add(-1)
	s.active.Add(-1)
}

// extra returns the session's rarer state. s.mu is held.
func (s *session) extra() *more {
	if s.more == nil {
		ctx, cancel := context.WithCancel(s.gw.ctx)
		s.more = &more{ctx: ctx, cancel: cancel}
	}
	return s.more
}

// context returns the context of the session's requests.
func (s *session) context() context.Context {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over.Load() {
		ctx, cancel := context.WithCancel(s.gw.ctx)
		cancel()
		return ctx
	}
	return s.extra().ctx
}

// slim drops the rarer state of an idle session if it holds nothing.
func (s *session) slim(now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := s.more
	if m == nil {
		return
	}
	m.transfers.expire(s.gw, now)
	if s.active.Load() == 0 && m.transfers.empty() && len(m.calls)+len(m.observations)+len(m.values)+len(m.onEnd) == 0 {
		m.cancel()
		s.more = nil
	}
}

// ID implements coap.Session.
func (s *session) ID() string { return s.id }

// Remote implements coap.Session.
func (s *session) Remote() netip.AddrPort { return s.link.remote() }

// Transport implements coap.Session.
func (s *session) Transport() identity.Transport { return s.transport }

// PSK implements coap.Session.
func (s *session) PSK() string { return s.psk }

// Chain implements coap.Session.
func (s *session) Chain() []*x509.Certificate {
	chain, err := parseChain(s.chain)
	if err != nil {
		return nil // it was parsed in the handshake
	}
	return chain
}

// Proof implements coap.Session.
func (s *session) Proof() identity.Proof {
	return identity.Proof{Chain: s.Chain(), PSK: s.psk, Transport: s.transport, TLS13: s.tls13, Remote: s.link.remote()}
}

// Actor implements coap.Session.
func (s *session) Actor() (identity.Actor, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.actorNow(s.gw.Now())
}

// actorNow returns who the session acts as: whom it is signed in as, or else
// whom its own credential proves. s.mu is held.
func (s *session) actorNow(now time.Time) (identity.Actor, bool) {
	if s.signed != nil && (s.signed.until.IsZero() || now.Before(s.signed.until)) {
		return s.signed.actor, true
	}
	return s.actor, s.known
}

// signIn is as whom a session is signed in by a request, besides what its own
// credential proves.
type signIn struct {
	actor identity.Actor
	until time.Time                   // zero: not limited
	check func(context.Context) error // whether it still holds
}

// signInAs has the session act as in.actor, or no more if in is nil.
func (s *session) signInAs(in *signIn) {
	s.mu.Lock()
	s.signed = in
	s.mu.Unlock()
	s.gw.sessions.index(s)
}

// Value implements coap.Session.
func (s *session) Value(key any) any {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.more == nil {
		return nil
	}
	return s.more.values[key]
}

// SetValue implements coap.Session.
func (s *session) SetValue(key, value any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	m := s.extra()
	switch {
	case value == nil:
		delete(m.values, key)
	case m.values == nil:
		m.values = map[any]any{key: value}
	default:
		m.values[key] = value
	}
}

// OnEnd implements coap.Session.
func (s *session) OnEnd(fn func()) {
	s.mu.Lock()
	if !s.over.Load() {
		m := s.extra()
		m.onEnd = append(m.onEnd, fn)
		s.mu.Unlock()
		return
	}
	s.mu.Unlock()
	fn()
}

// Close implements coap.Session.
func (s *session) Close(reason string) { s.end(reason, true) }

// closing reports whether the session is about to end: it takes no new requests.
func (s *session) closing() bool { return s.closeAt.Load() != 0 || s.over.Load() }

// How long a session stays when it is to end with an answer: over datagrams
// that may be lost and asked for again, over a stream it must only be read.
const (
	closeDelay       = 1500 * time.Millisecond
	closeDelayStream = 250 * time.Millisecond
)

// closeSoon ends the session once its last answer had time to arrive.
func (s *session) closeSoon(reason string) {
	d, ok := s.link.(*dgram)
	if ok {
		s.closeAt.CompareAndSwap(0, s.gw.Now().Add(closeDelay).UnixNano())
		s.gw.attend(d)
		return
	}
	if s.closeAt.CompareAndSwap(0, s.gw.Now().Add(closeDelayStream).UnixNano()) {
		s.gw.spawn("close", func() {
			select {
			case <-time.After(closeDelayStream):
			case <-s.context().Done():
			}
			s.end(reason, true)
		})
	}
}

// end ends the session, once.
func (s *session) end(reason string, tell bool) {
	if !s.over.CompareAndSwap(false, true) {
		return
	}
	s.gw.sessions.remove(s)
	s.link.close(tell)
	s.mu.Lock()
	m := s.more
	s.more = nil
	s.mu.Unlock()
	s.gw.stats.SessionsEnded.Add(1)
	s.gw.Log.Debug("coap session ended", slog.String("session", s.id), slog.String("reason", reason))
	if m == nil {
		return
	}
	m.cancel()
	m.transfers.drop(s.gw)
	for _, fn := range m.onEnd {
		s.gw.guard("session end", fn)
	}
}

// credential is what a request shows besides the session.
type credential struct{ scheme, value string }

// disown has the session belong to nobody, after its device was ended by it.
func (s *session) disown() {
	s.mu.Lock()
	s.actor, s.known, s.signed = identity.Actor{}, false, nil
	s.mu.Unlock()
	s.gw.sessions.index(s)
}

// errLapsed says that a sign-in is over in time.
var errLapsed = fault.New(fault.Unauthenticated, "the sign-in has expired; sign in again")

// identify says who makes a request: whom the session belongs to, as long as
// that holds, and whom a credential in the request proves, which must be the
// same. A fault ends the session if it says that the two differ, or that the
// session's own credential is good no more.
func (s *session) identify(ctx context.Context, shown credential) (a identity.Actor, known, ends bool, err error) {
	now := s.gw.Now()
	s.mu.Lock()
	a, known = s.actorNow(now)
	fresh := s.epoch == s.gw.Epoch() && (known || s.anonymous())
	lapsed := s.signed != nil && !s.signed.until.IsZero() && !now.Before(s.signed.until)
	s.mu.Unlock()
	if lapsed {
		return a, false, true, errLapsed
	}
	if !fresh {
		if a, known, err = s.resolve(ctx); err != nil {
			k := fault.KindOf(err)
			return a, false, k == fault.Unauthenticated || k == fault.Forbidden, err
		}
	}
	if expires := a.Credential.ExpiresAt; known && !expires.IsZero() && !now.Before(expires) {
		return a, false, true, fault.New(fault.Unauthenticated, "the credential has expired")
	}
	if shown == (credential{}) {
		return a, known, false, nil
	}
	proof := s.Proof()
	proof.Scheme, proof.Value = shown.scheme, shown.value
	b, err := s.gw.Resolver(ctx, proof)
	switch {
	case err != nil:
		s.mu.Lock()
		s.refused++
		tooMany := s.refused >= maxRefused
		s.mu.Unlock()
		return a, false, tooMany || errors.Is(err, identity.ErrMismatch), err
	case known && !a.Is(b):
		return a, false, true, identity.ErrMismatch
	}
	return b, true, false, nil
}

// anonymous reports whether the session itself shows no credential at all.
func (s *session) anonymous() bool { return s.psk == "" && len(s.chain) == 0 }

// enrolsOnly reports whether the session is of nobody, by a certificate that is good
// to enrol a device and for nothing else: not if it is signed in.
func (s *session) enrolsOnly() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.enrols && s.signed == nil
}

// maxRefused is how many wrong credentials the requests of a session may show.
const maxRefused = 10

// resolve finds out again whom the session belongs to.
func (s *session) resolve(ctx context.Context) (identity.Actor, bool, error) {
	s.mu.Lock()
	before := s.changes
	s.mu.Unlock()
	f, err := s.gw.resolve(ctx, s.Proof())
	s.mu.Lock()
	was, wasKnown := s.actor, s.known
	signed := s.signed
	s.mu.Unlock()
	if err == nil && wasKnown && (!f.known || !f.actor.Is(was)) {
		err = fault.New(fault.Unauthenticated, "the credential of the session is good no more")
	}
	if err == nil && signed != nil {
		err = signed.check(ctx)
	}
	if err != nil {
		return f.actor, false, err
	}
	s.mu.Lock()
	if s.found = f; s.changes != before {
		s.epoch = stale // what was found may be of before the change
	}
	a, known := s.actorNow(s.gw.Now())
	s.mu.Unlock()
	if known != wasKnown {
		s.gw.sessions.index(s)
	}
	return a, known, nil
}

// stale is an epoch that never is: what was found in it is looked for again.
const stale = ^uint64(0)

// changed takes note that the record of the session's device is another now: the next request
// finds what it says.
func (s *session) changed(d devices.Device) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.changes++
	s.epoch = stale
	if s.signed != nil && s.signed.actor.ID == d.ID {
		renamed := *s.signed
		renamed.actor.Name = d.Name
		s.signed = &renamed
	}
}

// sessions is the table of all sessions, over all transports.
type sessions struct {
	max int

	mu       sync.RWMutex
	byID     map[string]*session
	byDevice map[string]*session // the head of a list
}

func (t *sessions) add(s *session) bool {
	t.mu.Lock()
	if len(t.byID) >= t.max {
		t.mu.Unlock()
		return false
	}
	t.byID[s.id] = s
	t.mu.Unlock()
	t.index(s)
	return true
}

// index lists s under the device it acts as now.
func (t *sessions) index(s *session) {
	device := ""
	if a, ok := s.Actor(); ok && a.Kind == identity.Device {
		device = a.ID
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.byID[s.id] != s || s.key == device {
		return
	}
	t.unlist(s)
	if device != "" {
		s.key, s.next = device, t.byDevice[device]
		t.byDevice[device] = s
	}
}

func (t *sessions) unlist(s *session) {
	if s.key == "" {
		return
	}
	for at := t.byDevice[s.key]; at != nil; at = at.next {
		if at == s {
			t.byDevice[s.key] = s.next
			break
		}
		if at.next == s {
			at.next = s.next
			break
		}
	}
	if t.byDevice[s.key] == nil {
		delete(t.byDevice, s.key)
	}
	s.key, s.next = "", nil
}

func (t *sessions) remove(s *session) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.byID[s.id] == s {
		delete(t.byID, s.id)
		t.unlist(s)
	}
}

// of returns the sessions of a device.
func (t *sessions) of(device string) []*session {
	t.mu.RLock()
	defer t.mu.RUnlock()
	var list []*session
	for s := t.byDevice[device]; s != nil; s = s.next {
		list = append(list, s)
	}
	return list
}

func (t *sessions) all() []*session {
	t.mu.RLock()
	defer t.mu.RUnlock()
	list := make([]*session, 0, len(t.byID))
	for _, s := range t.byID {
		list = append(list, s)
	}
	return list
}

// Changed is what the gateway does when a device changes, before whoever
// changed it is answered: if something was taken away, it closes the sessions that rest on it; it
// has observers of whoami told of the rest. Register it as a listener of devices.
func (g *Gateway) Changed(c devices.Change) {
	began := time.Now() //nolint:forbidigo // a duration is measured
	for _, s := range g.sessions.of(c.Device.ID) {
		if !c.Ends() {
			s.changed(c.Device)
			s.Notify("/whoami")
			continue
		}
		if s.leaving.Load() {
			continue
		}
		if c.Credential == nil || s.restsOn(c.Credential.Kind, c.Credential.ID) {
			s.end("revoked", true)
			g.stats.SessionsRevoked.Add(1)
		}
	}
	if c.Ends() {
		g.stats.RevocationNanos.Store(int64(time.Since(began)))
	}
}

func (s *session) restsOn(kind identity.CredentialKind, credentialID string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	is := func(a identity.Actor) bool { return a.Credential.Kind == kind && a.Credential.ID == credentialID }
	return is(s.actor) || (s.signed != nil && is(s.signed.actor))
}
