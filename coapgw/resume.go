package coapgw

import (
	"container/list"
	"context"
	"sync"
	"time"

	"github.com/pion/dtls/v3"
)

// resumptions keeps what an abbreviated handshake needs, for sessions by
// pre-shared key and by certificate alike. Resuming proves nothing by itself: who the
// session belongs to is resolved again in every handshake, so what is kept here never
// outlives a revocation. It is in memory only.
type resumptions struct {
	gw *Gateway

	mu   sync.Mutex
	byID map[string]*list.Element
	age  *list.List // of *kept, oldest first
}

type kept struct {
	id      string
	session dtls.Session
	until   time.Time
}

const (
	resumptionLifetime = 24 * time.Hour
	maxResumptions     = 20_000
)

func newResumptions(gw *Gateway) *resumptions {
	return &resumptions{gw: gw, byID: map[string]*list.Element{}, age: list.New()}
}

// keep keeps the session of a handshake with certificates. pion keeps those by
// pre-shared key itself; it leaves the others to whoever verifies the
// certificate again, as [handshake.verify] does.
func (rs *resumptions) keep(h *handshake, master []byte) {
	if h.state.psk != "" || len(h.state.chain) == 0 || len(h.sessionID) == 0 {
		return
	}
	rs.put(dtls.Session{
		ID: h.sessionID, Secret: append([]byte(nil), master...), Version: 1, CipherSuiteID: h.state.suite,
		ExtendedMasterSecret: h.ems, PeerCertificates: h.state.chain,
	})
}

func (rs *resumptions) put(s dtls.Session) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	rs.remove(string(s.ID))
	for rs.age.Len() >= maxResumptions {
		rs.removeElement(rs.age.Front())
	}
	k := &kept{string(s.ID), s, rs.gw.Now().Add(resumptionLifetime)}
	rs.byID[k.id] = rs.age.PushBack(k)
}

func (rs *resumptions) get(id []byte) dtls.Session {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	e := rs.byID[string(id)]
	if e == nil {
		return dtls.Session{}
	}
	k, ok := e.Value.(*kept)
	if !ok || rs.gw.Now().After(k.until) {
		rs.removeElement(e)
		return dtls.Session{}
	}
	s := k.session
	s.Secret = append([]byte(nil), s.Secret...) // the original is wiped when it is removed
	return s
}

// expire drops the sessions that are too old to be resumed.
func (rs *resumptions) expire(now time.Time) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	for e := rs.age.Front(); e != nil; e = rs.age.Front() {
		if k, ok := e.Value.(*kept); !ok || now.Before(k.until) {
			return
		}
		rs.removeElement(e)
	}
}

func (rs *resumptions) remove(id string) {
	if e := rs.byID[id]; e != nil {
		rs.removeElement(e)
	}
}

func (rs *resumptions) removeElement(e *list.Element) {
	if k, ok := rs.age.Remove(e).(*kept); ok {
		delete(rs.byID, k.id)
		clear(k.session.Secret)
	}
}

// resumption is the dtls.SessionStore of one handshake.
type resumption struct {
	*resumptions
	h   *handshake
	ctx context.Context //nolint:containedctx // of the handshake
}

// Set implements dtls.SessionStore.
func (r *resumption) Set(_ []byte, s dtls.Session) error {
	r.put(s) // pion gives a copy away
	return nil
}

// Get implements dtls.SessionStore. No session is the zero session.
func (r *resumption) Get(id []byte) (dtls.Session, error) {
	s := r.get(id)
	if len(s.ID) == 0 {
		return s, nil
	}
	// An abbreviated handshake is over for the client before it is for us.
	// Who is refused had better know: it gets a full one.
	if err := r.h.resolve(r.ctx, s.CipherSuiteID, s.IdentityHint, s.PeerCertificates); err != nil {
		return dtls.Session{}, r.Del(id)
	}
	r.h.offered = s.ID
	return s, nil
}

// Del implements dtls.SessionStore.
func (r *resumption) Del(id []byte) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.remove(string(id))
	return nil
}
