package coapgw

import (
	"bytes"
	"context"
	"sync"
	"time"

	"github.com/pion/dtls/v3"
)

// resumptions keeps what an abbreviated handshake needs of the latest full ones, for sessions by
// pre-shared key and by certificate alike. Resuming proves nothing by itself: who the
// session belongs to is resolved again in every handshake, so what is kept here never
// outlives a revocation. It is in memory only, in few objects: the garbage collector
// looks at all of them, again and again.
type resumptions struct {
	gw *Gateway

	mu   sync.Mutex
	byID map[resumeID]*kept
	age  []aged // oldest first; it may name some that are gone
}

// resumeID is the id of a session that can be resumed: those we give have 32 bytes.
type resumeID [32]byte

// kept is a dtls.Session without its id.
type kept struct {
	until  int64 // unix nanoseconds
	secret [48]byte
	psk    [32]byte // a hash of the key
	suite  dtls.CipherSuiteID
	ems    bool
	hint   []byte
	chain  [][]byte
}

type aged struct {
	id    resumeID
	until int64
}

const (
	resumptionLifetime = 24 * time.Hour
	maxResumptions     = 20_000
)

func newResumptions(gw *Gateway) *resumptions {
	return &resumptions{gw: gw, byID: map[resumeID]*kept{}}
}

// keep keeps the session of a handshake with certificates. pion keeps those by
// pre-shared key itself; it leaves the others to whoever verifies the
// certificate again, as [handshake.verify] does.
func (rs *resumptions) keep(h *handshake, master []byte) {
	if h.state.psk != "" || len(h.state.chain) == 0 {
		return
	}
	rs.put(dtls.Session{
		ID: h.sessionID, Secret: master, CipherSuiteID: h.state.suite,
		ExtendedMasterSecret: h.ems, PeerCertificates: h.state.chain,
	})
}

// put keeps a session of the server's, but for its secret, which is copied.
func (rs *resumptions) put(s dtls.Session) {
	var id resumeID
	k := &kept{psk: s.PSKHash, suite: s.CipherSuiteID, ems: s.ExtendedMasterSecret, hint: s.IdentityHint, chain: s.PeerCertificates}
	if len(s.ID) != len(id) || len(s.Secret) != len(k.secret) {
		return
	}
	copy(id[:], s.ID)
	copy(k.secret[:], s.Secret)
	k.until = rs.gw.Now().Add(resumptionLifetime).UnixNano()
	rs.mu.Lock()
	defer rs.mu.Unlock()
	rs.remove(id)
	for len(rs.age) >= maxResumptions {
		rs.removeOldest()
	}
	rs.byID[id] = k
	rs.age = append(rs.age, aged{id, k.until})
}

func (rs *resumptions) get(sessionID []byte) dtls.Session {
	var id resumeID
	if len(sessionID) != len(id) {
		return dtls.Session{}
	}
	copy(id[:], sessionID)
	rs.mu.Lock()
	defer rs.mu.Unlock()
	k := rs.byID[id]
	if k == nil || rs.gw.Now().UnixNano() > k.until {
		return dtls.Session{}
	}
	return dtls.Session{
		ID: id[:], Secret: bytes.Clone(k.secret[:]), // the original is wiped when it is removed
		Version: 1, CipherSuiteID: k.suite, ExtendedMasterSecret: k.ems,
		PeerCertificates: k.chain, IdentityHint: k.hint, PSKHash: k.psk,
	}
}

// expire drops the sessions that are too old to be resumed.
func (rs *resumptions) expire(now time.Time) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	for len(rs.age) > 0 && now.UnixNano() >= rs.age[0].until {
		rs.removeOldest()
	}
}

func (rs *resumptions) removeOldest() {
	oldest := rs.age[0]
	rs.age = rs.age[1:]
	if len(rs.age) == 0 {
		rs.age = nil
	}
	if k := rs.byID[oldest.id]; k != nil && k.until == oldest.until {
		rs.remove(oldest.id)
	}
}

func (rs *resumptions) remove(id resumeID) {
	if k := rs.byID[id]; k != nil {
		delete(rs.byID, id)
		clear(k.secret[:])
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
	r.put(s)
	clear(s.Secret) // pion gives a copy away
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
func (r *resumption) Del(sessionID []byte) error {
	var id resumeID
	copy(id[:], sessionID)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.remove(id)
	return nil
}
