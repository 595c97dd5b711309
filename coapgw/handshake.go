package coapgw

import (
	"bytes"
	"container/list"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/gob"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/pion/dtls/v3"
	"github.com/pion/dtls/v3/pkg/protocol/extension"
	dtlshandshake "github.com/pion/dtls/v3/pkg/protocol/handshake"

	"keystead/fault"
	"keystead/identity"
)

// handshake is one DTLS handshake. pion does it, over the net.PacketConn that a
// handshake is; what the session needs is collected on the way. When it is
// done, pion's connection is muted, its keys and counters are handed to a
// [dgram], and it is closed.
//
// That the hand-over is safe rests on this: from the moment it is muted
// nothing of pion's reaches the socket, the session goes on after the highest
// record number that did, and a handshake is handed over once.
type handshake struct {
	u      *udp
	addr   netip.AddrPort
	born   time.Time
	cookie cookie
	record uint64               // the number of the record of the client's hello
	suites []dtls.CipherSuiteID // that the client and we have
	conn   *dtls.Conn

	in   chan []byte
	done chan struct{}
	stop func()
	deep bool // the stack of the goroutine that reads has grown; used by it alone

	// Guarded by u.mu.
	silent      *list.Element // nil once the client has answered our hello
	certificate bool
	cid         *cid

	mu       sync.Mutex
	muted    bool
	count    int      // datagrams that came
	early    [][]byte // those with protected records: they may hold requests
	heir     *dgram   // the session it has become
	next     uint64   // the number of our next record of epoch 1
	flight   []byte   // the datagram with our Finished
	slot     bool     // it holds one of u.cpu
	computed bool     // and needs none any more
	resigned bool     // it is not to be answered any more
	final    bool     // our Finished ends it, and is sent

	// Set by pion's callbacks, which run one after the other.
	keyLog       bytes.Buffer
	serverRandom [32]byte
	sessionID    []byte
	ems          bool
	offered      []byte  // the session the client asked to resume
	tried        *string // the identity whose key was asked for
	proven       proven  // whom that key proves
	state        peer
}

// peer is what a handshake has shown of the other side.
type peer struct {
	suite dtls.CipherSuiteID
	psk   string
	chain [][]byte
	tls13 bool
	found
}

// found is whom the credential of a session was found to prove.
type found struct {
	actor  identity.Actor
	known  bool   // there is such an actor
	enrols bool   // there is none, and the certificate is good to enrol one
	epoch  uint64 // in which that was found
}

// proven is whom a key was found to prove, and in which epoch.
type proven struct {
	psk   string
	actor identity.Actor
	epoch uint64
}

const (
	maxHandshakeDatagrams = 40 // that one handshake may take: a client that does not agree with us repeats itself for ever
	maxEarly              = 8
	maxPSKIdentity        = 128 // bytes (RFC 4279, 5.3)
)

func newHandshake(u *udp, from netip.AddrPort, hello *hello, now time.Time) *handshake {
	h := &handshake{
		u: u, addr: from, born: now, cookie: cookie(hello.cookie), record: hello.record, suites: hello.suites(u.suites),
		in: make(chan []byte, 16), done: make(chan struct{}),
	}
	h.stop = sync.OnceFunc(func() { close(h.done) })
	return h
}

// run does the handshake and hands it over.
func (h *handshake) run() {
	deepen(0)
	stats := &h.u.gw.stats
	ctx, cancel := context.WithCancel(h.u.gw.ctx)
	defer cancel()
	defer time.AfterFunc(h.u.gw.HandshakeTimeout, func() { h.expire(cancel) }).Stop()
	conn, err := h.establish(ctx)
	h.rest()
	if err != nil {
		stats.HandshakesFailed.Add(1)
		if h.tried != nil && !h.isResigned() {
			h.u.storms.failed(h.u.gw.Now(), *h.tried, prefix(h.addr.Addr()))
		}
		h.u.gw.Log.Debug("dtls handshake failed", slog.String("remote", h.addr.String()), slog.Any("error", err))
	} else if err = h.handOver(conn); err != nil {
		stats.HandshakesFailed.Add(1)
		h.u.gw.Log.Warn("dtls session not taken over", slog.String("remote", h.addr.String()), slog.Any("error", err))
	} else {
		stats.Handshakes.Add(1)
	}
	h.mute()
	h.u.mu.Lock()
	h.u.forget(h)
	h.u.mu.Unlock()
	h.stop() // which ends pion's goroutines: that its connection was closed it would tell nobody
	clear(h.keyLog.Bytes())
}

func (h *handshake) establish(ctx context.Context) (*dtls.Conn, error) {
	options := append(slices.Clip(h.u.common),
		dtls.WithCipherSuites(h.suites...), // pion takes the client's first that is among them; fewer cost less
		dtls.WithVerifyConnection(func(s *dtls.State) error { return h.verify(ctx, s) }),
		dtls.WithKeyLogWriter(&h.keyLog), // in memory, and read below: it is how pion gives the master secret away
		dtls.WithServerHelloMessageHook(h.serverHello),
		dtls.WithConnectionIDGenerator(h.connectionID),
		dtls.WithSessionStore(&resumption{h.u.resume, h, ctx}),
	)
	isPSK := func(id dtls.CipherSuiteID) bool { return suites[id].psk }
	if slices.ContainsFunc(h.suites, isPSK) { // pion wants suites for what it is given
		options = append(options, dtls.WithPSK(func(hint []byte) ([]byte, error) { return h.secret(ctx, hint) }))
	}
	if slices.ContainsFunc(h.suites, func(id dtls.CipherSuiteID) bool { return !isPSK(id) }) {
		options = append(options, dtls.WithGetCertificate(h.certificateFor))
	}
	conn, err := dtls.ServerWithOptions(h, net.UDPAddrFromAddrPort(h.addr), options...)
	if err != nil {
		return nil, fmt.Errorf("coapgw: dtls: %w", err)
	}
	h.conn = conn
	return conn, conn.HandshakeContext(ctx)
}

// certificateFor is pion's GetCertificate, which it asks as soon as it is
// clear that the handshake needs one.
func (h *handshake) certificateFor(hello *dtls.ClientHelloInfo) (*tls.Certificate, error) {
	if !h.takeCertificatePlace() {
		h.u.gw.stats.HandshakesShed.Add(1)
		h.resign()
		return nil, errors.New("coapgw: too many handshakes with certificates")
	}
	return h.u.gw.Certificate(identity.CoAPUDP, hello.ServerName)
}

// takeCertificatePlace keeps half of the places for handshakes by pre-shared key, which cost a
// fraction. One that finds no place is not answered.
func (h *handshake) takeCertificatePlace() bool {
	h.u.mu.Lock()
	defer h.u.mu.Unlock()
	switch {
	case h.certificate:
		return true
	case h.u.certs >= max(1, h.u.gw.MaxHalfOpen/2) || h.u.pending[h.addr] != h:
		return false
	}
	h.certificate = true
	h.u.certs++
	return true
}

// secret is pion's PSK callback. An unknown identity gets a key too, which
// nobody knows and which is the same each time: so it fails as a wrong key does, in silence,
// and tells nothing (RFC 4279, 2).
func (h *handshake) secret(ctx context.Context, hint []byte) ([]byte, error) {
	gw := h.u.gw
	made := h.u.decoys.of(hint) // always: whether an identity is known must not show in the time it takes
	decoy := made[:]
	id := string(hint)
	if gw.Secret == nil || len(hint) > maxPSKIdentity {
		return decoy, nil
	}
	h.tried = &id
	if h.u.storms.blocked(gw.Now(), id, prefix(h.addr.Addr())) {
		h.resign()
		return nil, errors.New("coapgw: failed too often")
	}
	epoch := gw.Epoch() // before: what is revoked meanwhile is found in verify
	secret, actor, err := gw.Secret(ctx, id)
	if err != nil {
		if k := fault.KindOf(err); k == fault.Internal || k == fault.Unavailable {
			gw.Log.Error("psk not read", slog.Any("error", err))
		}
		return decoy, nil
	}
	h.proven = proven{id, actor, epoch}
	return secret, nil
}

// lookupTimeout bounds the search for whom a handshake proves: a certificate may have to be
// asked for elsewhere.
const lookupTimeout = 5 * time.Second

// verify is pion's VerifyConnection: the one place that full and resumed
// handshakes of every kind pass. A session of a device that is suspended, or by
// a credential that is revoked, does not come to be.
func (h *handshake) verify(ctx context.Context, state *dtls.State) error {
	return h.resolve(ctx, state.CipherSuiteID, state.IdentityHint, state.PeerCertificates)
}

func (h *handshake) resolve(ctx context.Context, id dtls.CipherSuiteID, hint []byte, chain [][]byte) error {
	h.state = peer{suite: id}
	if suites[id].psk { // a certificate in a PSK handshake proves nothing
		h.state.psk = string(hint)
	} else {
		h.state.chain = chain
	}
	if p := h.proven; p.actor.Kind != "" && p.psk == h.state.psk && p.epoch == h.u.gw.Epoch() {
		h.state.actor, h.state.known, h.state.epoch = p.actor, true, p.epoch // as its key was looked up for this handshake
		return nil
	}
	proof, err := h.u.gw.proof(identity.CoAPUDP, h.addr, h.state.psk, h.state.chain)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	h.state.found, err = h.u.gw.resolve(ctx, proof)
	return err
}

// serverHello is pion's hook on the ServerHello: it changes nothing, and reads
// what the session needs.
func (h *handshake) serverHello(m dtlshandshake.MessageServerHello) dtlshandshake.Message {
	h.serverRandom = m.Random.MarshalFixed()
	h.sessionID = m.SessionID
	for _, e := range m.Extensions {
		if _, ok := e.(*extension.UseExtendedMasterSecret); ok {
			h.ems = true
		}
	}
	return &m
}

func (h *handshake) connectionID() []byte {
	id := new(cid)
	rand.Read(id[:])
	h.u.mu.Lock()
	defer h.u.mu.Unlock()
	if h.u.pending[h.addr] == h {
		if h.cid != nil {
			delete(h.u.byCID, *h.cid)
		}
		h.cid = id
		h.u.byCID[*id] = owner{handshake: h}
	}
	return id[:]
}

// handOver makes a session of what the handshake has established.
func (h *handshake) handOver(conn *dtls.Conn) error {
	h.mute()
	gw := h.u.gw
	secrets, err := h.secrets(conn)
	if err != nil {
		return err
	}
	defer clear(secrets.MasterSecret)
	d := &dgram{u: h.u, at: h.addr, cid: h.cidNow(), peerCID: secrets.RemoteConnectionID, cookie: h.cookie, final: h.flight, seq: h.next}
	if d.keys, err = deriveKeys(h.state.suite, secrets.MasterSecret, secrets.RemoteRandom[:], secrets.LocalRandom[:]); err != nil {
		return err
	}
	if h.tried != nil {
		h.u.storms.proven(*h.tried, prefix(h.addr.Addr()))
	}
	h.u.resume.keep(h, secrets.MasterSecret)
	d.mid = randomMID()
	d.session = newSession(gw, d, identity.CoAPUDP, h.state)
	if !gw.sessions.add(d.session) {
		d.close(true)
		return errors.New("coapgw: no room for another session")
	}
	old, ok := h.u.establish(h, d)
	if !ok {
		d.session.end("the handshake was given up", true)
		return errors.New("coapgw: the handshake was given up")
	}
	if old != nil && old.remote() == h.addr {
		old.session.end("replaced by a new session from the same address", false)
	}
	d.session.admitted()
	for _, b := range h.inherit(d) {
		d.datagram(h.addr, b)
	}
	return nil
}

// secrets returns what the keys are derived from. A full handshake logs it. A
// resumed one logs no client's random, and nothing tells the connection id of
// the peer: for these pion exports its state, which costs more.
func (h *handshake) secrets(conn *dtls.Conn) (e exported, err error) {
	if h.cidNow() != nil || h.resumes() {
		return export(conn)
	}
	fields := bytes.Fields(h.keyLog.Bytes())
	if len(fields) != 3 || len(fields[1]) != 64 {
		return e, errors.New("coapgw: the handshake left no keys")
	}
	e.LocalRandom = h.serverRandom
	e.MasterSecret = make([]byte, hex.DecodedLen(len(fields[2])))
	_, err1 := hex.Decode(e.RemoteRandom[:], fields[1])
	_, err2 := hex.Decode(e.MasterSecret, fields[2])
	return e, errors.Join(err1, err2)
}

// resumes reports whether the handshake is an abbreviated one.
func (h *handshake) resumes() bool { return h.offered != nil && bytes.Equal(h.offered, h.sessionID) }

// isResigned, resign and mute: see push, WriteTo and handOver.
func (h *handshake) isResigned() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.resigned
}

// resign has nothing more sent: refused without a word.
func (h *handshake) resign() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.resigned, h.muted = true, true
}

// expire ends a handshake whose time is up, unless our Finished ended it: the client has a session
// then, and would speak to nobody.
func (h *handshake) expire(cancel func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.final {
		h.muted = true
		cancel()
	}
}

func (h *handshake) mute() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.muted = true
}

// push takes a datagram for the handshake. One too many is dropped, as by a
// full socket.
func (h *handshake) push(b []byte) {
	h.mu.Lock()
	if heir := h.heir; heir != nil {
		h.mu.Unlock()
		heir.datagram(h.addr, b)
		return
	}
	if h.count++; h.count > maxHandshakeDatagrams {
		h.resigned, h.muted = true, true
		h.mu.Unlock()
		h.stop()
		return
	}
	b = bytes.Clone(b)
	holds := false
	protected(b, cidLength, func(uint64) { holds = true })
	if holds {
		if len(h.early) == maxEarly {
			h.mu.Unlock()
			return
		}
		h.early = append(h.early, bytes.Clone(b)) // pion decrypts in place
	}
	h.mu.Unlock()
	select {
	case h.in <- b:
	default:
		h.u.gw.stats.DatagramsDropped.Add(1)
	}
}

// inherit returns the datagrams with protected records that came during the
// handshake, and has d get those that still find their way here. pion has seen
// them too, but what it read of them went nowhere.
func (h *handshake) inherit(d *dgram) [][]byte {
	h.mu.Lock()
	defer h.mu.Unlock()
	held := slices.DeleteFunc(h.early, finishes)
	h.early, h.heir = nil, d
	return held
}

// finishes reports whether all that a datagram holds is of the handshake: the
// client's Finished, which pion has seen to.
func finishes(b []byte) bool {
	for {
		r, rest, ok := nextRecord(b)
		if !ok {
			return true
		}
		if r.kind != typeHandshake && r.kind != typeChangeCipherSpec {
			return false
		}
		b = rest
	}
}

func (h *handshake) cidNow() *cid {
	h.u.mu.Lock()
	defer h.u.mu.Unlock()
	return h.cid
}

// What follows makes a handshake the net.PacketConn that pion does it over.

// ReadFrom gives pion the next datagram. A handshake with certificates computes
// between one call and the next, and takes its turn with the others for that.
func (h *handshake) ReadFrom(p []byte) (int, net.Addr, error) {
	if !h.deep {
		h.deep = true
		deepen(0)
	}
	h.release()
	select {
	case b := <-h.in:
		h.acquire()
		return copy(p, b), net.UDPAddrFromAddrPort(h.addr), nil
	case <-h.done:
		return 0, nil, io.EOF
	}
}

func (h *handshake) acquire() {
	h.u.mu.Lock()
	wanted := h.certificate
	h.u.mu.Unlock()
	h.mu.Lock()
	wanted = wanted && !h.computed
	h.mu.Unlock()
	if !wanted {
		return
	}
	select {
	case h.u.cpu <- struct{}{}:
		h.mu.Lock()
		if h.slot = !h.computed; !h.slot {
			<-h.u.cpu
		}
		h.mu.Unlock()
	case <-h.done:
	}
}

// rest ends the turns of a handshake that is over, whatever pion still reads.
func (h *handshake) rest() {
	h.mu.Lock()
	h.computed = true
	h.mu.Unlock()
	h.release()
}

func (h *handshake) release() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.slot {
		h.slot = false
		<-h.u.cpu
	}
}

// deepen has the stack of the goroutine it is called on grow now, while there is little on it to
// move: it would grow three times on the way down to a look-up in the store.
//
//go:noinline
func deepen(i byte) byte {
	var room [10 << 10]byte
	return room[i]
}

// WriteTo sends what pion sends, and takes note of it.
func (h *handshake) WriteTo(p []byte, _ net.Addr) (int, error) {
	if isHandshake(p, helloVerifyRequest) { // it is answered already
		deepen(0) // by the goroutine that does the handshake, which begins with this
		h.u.cookies.expect(h.conn, h.cookie)
		return len(p), nil
	}
	if h.record > 1 {
		p = bytes.Clone(p)
		renumber(p, h.record-1) // our hello has the number of the client's (RFC 6347, 4.2.1)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.muted {
		return len(p), nil
	}
	protected(p, 0, func(seq uint64) {
		h.next = max(h.next, seq+1)
		h.flight = bytes.Clone(p)
		h.final = !h.resumes() // or else the client's does
	})
	return h.u.socket.WriteToUDPAddrPort(p, h.addr)
}

// Close implements net.PacketConn.
func (h *handshake) Close() error {
	h.stop()
	return nil
}

// LocalAddr implements net.PacketConn.
func (h *handshake) LocalAddr() net.Addr { return h.u.socket.LocalAddr() }

// SetDeadline implements net.PacketConn.
func (h *handshake) SetDeadline(t time.Time) error { return h.SetReadDeadline(t) }

// SetReadDeadline implements net.PacketConn. pion sets one, long past, when the
// context that it reads in is over, and never reads again.
func (h *handshake) SetReadDeadline(t time.Time) error {
	if !t.IsZero() {
		h.stop()
	}
	return nil
}

// SetWriteDeadline implements net.PacketConn: writes never wait.
func (h *handshake) SetWriteDeadline(time.Time) error { return nil }

// exported is the state pion exports, as far as it is of use here; gob goes by the names.
type exported struct {
	MasterSecret       []byte
	LocalRandom        [32]byte
	RemoteRandom       [32]byte
	RemoteConnectionID []byte
}

func export(conn *dtls.Conn) (e exported, err error) {
	state, ok := conn.ConnectionState()
	if !ok {
		return e, errors.New("coapgw: the handshake left no state")
	}
	b, err := state.MarshalBinary()
	if err != nil {
		return e, fmt.Errorf("coapgw: export: %w", err)
	}
	defer clear(b)
	if err := gob.NewDecoder(bytes.NewReader(b)).Decode(&e); err != nil {
		return e, fmt.Errorf("coapgw: export: %w", err)
	}
	return e, nil
}
