package coapgw

import (
	"sync/atomic"

	"github.com/pion/logging"

	"keystead/coap"
)

// Stats counts what the gateway does, from its start on.
type Stats struct {
	Handshakes        atomic.Uint64 // that made a session
	HandshakesFailed  atomic.Uint64
	HandshakesShed    atomic.Uint64 // refused before they began, for lack of room
	HandshakesEvicted atomic.Uint64 // ended before the source had shown its cookie
	SessionsEnded     atomic.Uint64
	SessionsRevoked   atomic.Uint64    // ended because a device or credential was
	RevocationNanos   atomic.Int64     // how long the latest revocation took to close its sessions
	Requests          [6]atomic.Uint64 // by the class of the answer
	RequestsShed      atomic.Uint64
	Duplicates        atomic.Uint64
	DatagramsDropped  atomic.Uint64
	RecordsDropped    atomic.Uint64 // that do not open, or were seen before
	MessagesMalformed atomic.Uint64
	Roams             atomic.Uint64
	Parks             atomic.Uint64
	Wakes             atomic.Uint64
	Panics            atomic.Uint64
}

func (s *Stats) count(c coap.Code) {
	if class := c.Class(); class < len(s.Requests) {
		s.Requests[class].Add(1)
	}
}

// Stats returns the counters, which go on counting.
func (g *Gateway) Stats() *Stats { return &g.stats }

// Gauges are what is true of the gateway at one moment.
type Gauges struct {
	Sessions int
	Parked   int // of them, without their key schedules
	HalfOpen int // handshakes under way over DTLS
	Buffered int64
}

// Gauges returns what is true now.
func (g *Gateway) Gauges() Gauges {
	v := Gauges{Buffered: g.buffered.Load()}
	for _, s := range g.sessions.all() {
		v.Sessions++
		if d, ok := s.link.(*dgram); ok && d.parked() {
			v.Parked++
		}
	}
	for _, u := range g.ports() {
		v.HalfOpen += u.halfOpen()
	}
	return v
}

// quiet keeps pion from logging: what matters of a handshake is its error.
type quiet struct{}

// NewLogger implements logging.LoggerFactory.
func (quiet) NewLogger(string) logging.LeveledLogger { return silence{} }

type silence struct{}

func (silence) Trace(string)          {}
func (silence) Tracef(string, ...any) {}
func (silence) Debug(string)          {}
func (silence) Debugf(string, ...any) {}
func (silence) Info(string)           {}
func (silence) Infof(string, ...any)  {}
func (silence) Warn(string)           {}
func (silence) Warnf(string, ...any)  {}
func (silence) Error(string)          {}
func (silence) Errorf(string, ...any) {}
