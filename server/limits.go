package server

import (
	linked "container/list"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/labstack/echo/v4"
	"golang.org/x/time/rate"

	"keystead/audit"
	"keystead/config"
	"keystead/fault"
	"keystead/identity"
)

// buckets limits how often each of many keys may do something. It watches a
// bounded number of keys: the one not seen for longest makes room, and begins
// anew with a full bucket if it comes back.
type buckets[K comparable] struct {
	rate config.Rate
	most int

	mu    sync.Mutex
	byKey map[K]*linked.Element
	order *linked.List // of *bucket[K], the one seen last in front
}

type bucket[K comparable] struct {
	key     K
	limiter *rate.Limiter
}

func newBuckets[K comparable](r config.Rate, most int) *buckets[K] {
	return &buckets[K]{rate: r, most: most, byKey: map[K]*linked.Element{}, order: linked.New()}
}

func (b *buckets[K]) of(key K) *rate.Limiter {
	b.mu.Lock()
	defer b.mu.Unlock()
	if e, ok := b.byKey[key]; ok {
		b.order.MoveToFront(e)
		return e.Value.(*bucket[K]).limiter //nolint:errcheck // nothing else is in it
	}
	if b.order.Len() >= b.most {
		oldest := b.order.Back()
		b.order.Remove(oldest)
		delete(b.byKey, oldest.Value.(*bucket[K]).key) //nolint:errcheck // nothing else is in it
	}
	l := rate.NewLimiter(rate.Limit(b.rate.PerSecond), b.rate.Burst)
	b.byKey[key] = b.order.PushFront(&bucket[K]{key, l})
	return l
}

// take counts one more, or returns how long to wait until it may.
func (b *buckets[K]) take(key K, now time.Time) (wait time.Duration) {
	if b == nil || b.rate.PerSecond == 0 {
		return 0
	}
	r := b.of(key).ReserveN(now, 1)
	if wait = r.DelayFrom(now); wait > 0 {
		r.CancelAt(now)
	}
	return wait
}

// spent returns how long to wait until one more would be let through, without
// counting it.
func (b *buckets[K]) spent(key K, now time.Time) (wait time.Duration) {
	if b == nil || b.rate.PerSecond == 0 {
		return 0
	}
	if missing := 1 - b.of(key).TokensAt(now); missing > 0 {
		return time.Duration(missing / b.rate.PerSecond * float64(time.Second))
	}
	return 0
}

// limits are the buckets of the HTTP listeners.
type limits struct {
	address    *buckets[netip.Addr]
	credential *buckets[caller]
	failures   *buckets[attempt]
}

// caller is an actor, whichever credential it showed.
type caller struct {
	kind identity.Kind
	id   string
}

// attempt is where an identity is being proven from, and in which of the ways.
type attempt struct {
	from netip.Addr
	how  string
}

func (s *Server) buildLimits() {
	l := s.Config.Limits
	s.limits = limits{
		address:    newBuckets[netip.Addr](l.PerAddress, l.Tracked),
		credential: newBuckets[caller](l.PerCredential, l.Tracked),
		failures:   newBuckets[attempt](l.Failures, l.Tracked),
	}
	s.ClientAddr = clientAddr(s.Config.Proxies())
}

// source is what of an address counts as one client: of IPv6 the network, in
// which one host has as many addresses as it likes.
func source(a netip.Addr) netip.Addr {
	if a.Is6() {
		if p, err := a.Prefix(64); err == nil {
			return p.Addr()
		}
	}
	return a
}

func (s *Server) tooMany(limit string, wait time.Duration) error {
	s.metrics.limited.WithLabelValues(limit).Inc()
	return fault.Later(fault.TooMany, wait, "too many requests; wait as long as Retry-After says, and a little longer each time")
}

// throttled limits the requests of one address, whatever they ask for, and
// refuses those that are written in no way anything here is.
func (s *Server) throttled(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		if wait := s.limits.address.take(source(s.ClientAddr(c.Request())), s.Now()); wait > 0 {
			return s.tooMany("address", wait)
		}
		if u := c.Request().URL; !plain(u.Path) || !utf8.ValidString(u.RawQuery) {
			return fault.New(fault.Invalid, "the path and the query must be UTF-8 without control characters, and each part of the path no longer than %d bytes", maxSegment)
		}
		if c.Request().URL.RawQuery == "" {
			return next(c)
		}
		for _, values := range c.QueryParams() {
			if slices.ContainsFunc(values, func(v string) bool { return !plain(v) }) {
				return fault.New(fault.Invalid, "the query must be UTF-8 without control characters, and each value no longer than %d bytes", maxSegment)
			}
		}
		return next(c)
	}
}

// maxSegment is the longest part of a path, or value of a query. Names, ids and
// tokens are shorter.
const maxSegment = 2048

func plain(text string) bool {
	ascii, part := true, 0
	for _, c := range []byte(text) {
		if part++; c == '/' {
			part = 0
		}
		if c < 0x20 || c == 0x7f || part > maxSegment {
			return false
		}
		ascii = ascii && c < utf8.RuneSelf
	}
	return ascii || utf8.ValidString(text)
}

// scheme names how a proof is given, in a word of a small set; "" if there is
// nothing in it that could be wrong.
func scheme(p identity.Proof) string {
	switch {
	case p.Scheme == "Bearer", p.Scheme == "Basic", p.Scheme == "Thing", p.Scheme == "External", p.Scheme == sessionScheme:
		return strings.ToLower(p.Scheme)
	case p.Value != "":
		return "other"
	case p.Chain != nil:
		return "certificate"
	}
	return ""
}

// mayProve refuses an address whose attempts to prove an identity in one way
// fail too often.
func (s *Server) mayProve(p identity.Proof) error {
	if how := scheme(p); how != "" {
		if wait := s.limits.failures.spent(attempt{source(p.Remote.Addr()), how}, s.Now()); wait > 0 {
			return s.tooMany("failures", wait)
		}
	}
	return nil
}

// proved counts what came of an attempt: those that fail by their address, and
// what a proven actor asks for by the actor.
func (s *Server) proved(p identity.Proof, a identity.Actor, requestID string, err error) error {
	now := s.Now()
	if err == nil {
		if wait := s.limits.credential.take(caller{a.Kind, a.ID}, now); wait > 0 {
			return s.tooMany("credential", wait)
		}
		return nil
	}
	how := scheme(p)
	if how == "" || !fault.Is(err, fault.Unauthenticated) {
		return err
	}
	s.limits.failures.take(attempt{source(p.Remote.Addr()), how}, now)
	s.metrics.failures.WithLabelValues("https", how).Inc()
	if s.Audit != nil {
		s.Audit.Fail(audit.Failure{Surface: "https", Reason: how, Remote: p.Remote.Addr().String(), Request: requestID})
	}
	return err
}

// maxHops is how many forwarding proxies one after another are looked at.
const maxHops = 32

// clientAddr says where a request comes from. What X-Forwarded-For says counts
// as far as the proxies that say it are trusted: from the peer backwards, the
// first address that is not one of theirs.
func clientAddr(trusted []netip.Prefix) func(*http.Request) netip.Addr {
	ours := func(a netip.Addr) bool {
		return slices.ContainsFunc(trusted, func(p netip.Prefix) bool { return p.Contains(a) })
	}
	return func(r *http.Request) netip.Addr {
		peer := directAddr(r)
		if len(trusted) == 0 || !ours(peer) {
			return peer
		}
		hops := strings.Split(strings.Join(r.Header.Values("X-Forwarded-For"), ","), ",")
		at := peer
		for n, hop := range slices.Backward(hops) {
			a, err := netip.ParseAddr(strings.TrimSpace(hop))
			if err != nil || len(hops)-n > maxHops {
				break // who wrote this is not to be believed
			}
			if at = a.Unmap().WithZone(""); !ours(at) {
				break
			}
		}
		return at
	}
}

// directAddr is the address of the peer itself.
func directAddr(r *http.Request) netip.Addr {
	ap, err := netip.ParseAddrPort(r.RemoteAddr)
	if err != nil {
		return netip.Addr{}
	}
	return ap.Addr().Unmap().WithZone("")
}

// boundedListener accepts no more connections than it may, in all and from one
// address. What is too much is closed at once.
type boundedListener struct {
	net.Listener
	most, each int
	exempt     []netip.Prefix // proxies, who speak for many
	refused    func()

	mu     sync.Mutex
	open   int
	byAddr map[netip.Addr]int
}

// Accept implements net.Listener.
func (l *boundedListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if bounded, ok := l.admit(c); ok {
			return bounded, nil
		}
		l.refused()
		c.Close()
	}
}

func (l *boundedListener) admit(c net.Conn) (net.Conn, bool) {
	var key netip.Addr // of nobody
	if ap, err := netip.ParseAddrPort(c.RemoteAddr().String()); err == nil {
		a := ap.Addr().Unmap().WithZone("")
		if !slices.ContainsFunc(l.exempt, func(p netip.Prefix) bool { return p.Contains(a) }) {
			key = source(a)
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.open >= l.most || key.IsValid() && l.byAddr[key] >= l.each {
		return nil, false
	}
	if l.byAddr == nil {
		l.byAddr = map[netip.Addr]int{}
	}
	l.open++
	if key.IsValid() {
		l.byAddr[key]++
	}
	return &boundedConn{Conn: c, done: sync.OnceFunc(func() { l.leave(key) })}, true
}

func (l *boundedListener) leave(key netip.Addr) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.open--
	if !key.IsValid() {
		return
	}
	if l.byAddr[key]--; l.byAddr[key] == 0 {
		delete(l.byAddr, key)
	}
}

type boundedConn struct {
	net.Conn
	done func()
}

// Close implements net.Conn.
func (c *boundedConn) Close() error {
	defer c.done()
	return c.Conn.Close()
}
