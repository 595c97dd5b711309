package coapgw

import (
	"context"
	"encoding/hex"
	"net/netip"
	"slices"
	"strings"
	"time"

	"keystead/fault"
	"keystead/identity"
	"keystead/page"
)

// Session is what an administrator may know of a session.
type Session struct {
	ID           string
	Transport    identity.Transport
	Remote       netip.AddrPort
	ConnectionID string // in hexadecimal; "" without one
	Actor        identity.Actor
	Known        bool // Actor is somebody; else no device is known by what the session shows
	SignedIn     bool // by a request, not by the session's own credential
	Since        time.Time
	Seen         time.Time
	Received     uint64 // bytes of messages
	Sent         uint64
}

// visible says whether the actor of ctx may know of a session: those of its
// organisation, and a platform administrator also of those that are nobody's.
func visible(ctx context.Context, v Session) bool {
	a := identity.FromContext(ctx)
	switch {
	case a.Kind == identity.System:
		return true
	case v.Known:
		return v.Actor.Org == a.Org
	}
	return a.Role.AtLeast(identity.Operator)
}

// List returns a page of the sessions, of all transports, in the order they
// began; those of one device if device is not empty.
func (g *Gateway) List(ctx context.Context, device string, r page.Request) (p page.Page[Session], err error) {
	after, err := r.After.Key()
	if err != nil {
		return p, err
	}
	all := g.sessions.all()
	if device != "" {
		all = g.sessions.of(device)
	}
	slices.SortFunc(all, func(a, b *session) int { return strings.Compare(a.id, b.id) })
	for _, s := range all {
		if s.id <= after {
			continue
		}
		v := s.view()
		if !visible(ctx, v) {
			continue
		}
		if len(p.Items) == r.Size() {
			p.Next = page.At(p.Items[len(p.Items)-1].ID)
			break
		}
		p.Items = append(p.Items, v)
	}
	return p, nil
}

// End closes a session. It is NotFound for one of another organisation.
func (g *Gateway) End(ctx context.Context, sessionID string) error {
	g.sessions.mu.RLock()
	s := g.sessions.byID[sessionID]
	g.sessions.mu.RUnlock()
	if s == nil || !visible(ctx, s.view()) {
		return fault.New(fault.NotFound, "no such session")
	}
	s.end("closed by an administrator", true)
	return nil
}

func (s *session) view() Session {
	v := Session{
		ID: s.id, Transport: s.transport, Remote: s.link.remote(), Since: time.Unix(0, s.since).UTC(), Seen: time.Unix(0, s.seen.Load()).UTC(),
		Received: s.received.Load(), Sent: s.sent.Load(),
	}
	if d, ok := s.link.(*dgram); ok && d.cid != nil {
		v.ConnectionID = hex.EncodeToString(d.cid[:])
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	v.Actor, v.Known = s.actorNow(s.gw.Now())
	v.SignedIn = s.signed != nil
	return v
}
