package coapgw

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"sync"
	"time"

	"keystead/coap"
	"keystead/identity"
)

// stream is the link of a session over TLS (RFC 8323). One goroutine reads it.
type stream struct {
	gw      *Gateway
	conn    *tls.Conn
	session *session
	at      netip.AddrPort
	slots   chan struct{} // of requests being served

	mu      sync.Mutex
	peerMax int // the largest message the peer takes
	closed  bool
}

const (
	maxStreamMessage = 64 << 10 // the largest message taken, which is told in the CSM
	baseMessageSize  = 1152     // the largest until the peer tells (RFC 8323, 5.3.1)
	streamOverhead   = 128      // bytes of a message that are not body
	streamWrite      = 10 * time.Second
	releaseWrite     = 20 * time.Millisecond // a goodbye is not worth waiting for
	maxTCPSource     = 64                    // connections of one address whose handshake is under way

	csmMaxMessageSize = 2
	csmBlockwise      = 4
	pingCustody       = 2
)

// tcp accepts connections for streams.
type tcp struct {
	gw     *Gateway
	socket net.Listener
	config *tls.Config

	mu      sync.Mutex
	open    map[net.Conn]struct{}
	pending map[netip.Addr]int
	closed  bool
}

func listenTCP(gw *Gateway, addr string) (*tcp, error) {
	socket, err := (&net.ListenConfig{}).Listen(gw.ctx, "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("tcp: %w", err)
	}
	t := &tcp{gw: gw, socket: socket, open: map[net.Conn]struct{}{}, pending: map[netip.Addr]int{}}
	t.config = &tls.Config{
		MinVersion: tls.VersionTLS12,
		NextProtos: []string{"coap"},
		ClientAuth: tls.RequestClientCert, // who may do what is for the resolver to say
		Time:       gw.Now,
		GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			return gw.Certificate(identity.CoAPTCP, hello.ServerName)
		},
		// Full and resumed handshakes alike come by here. All share this
		// configuration, and with it the keys of the tickets.
		VerifyConnection: func(state tls.ConnectionState) error {
			_, err := t.resolve(state, netip.AddrPort{})
			return err
		},
	}
	return t, nil
}

func (t *tcp) accept() {
	for {
		conn, err := t.socket.Accept()
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil:
			t.gw.Log.Warn("coap connection not accepted", slog.Any("error", err))
			time.Sleep(50 * time.Millisecond) // out of files, most likely
			continue
		}
		if !t.enter(conn) {
			t.gw.stats.HandshakesShed.Add(1)
			conn.Close()
			continue
		}
		t.gw.spawn("stream", func() {
			defer t.leave(conn)
			t.serve(conn)
		})
	}
}

func (t *tcp) enter(conn net.Conn) bool {
	from := addrOf(conn).Addr()
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed || t.pending[from] >= maxTCPSource || len(t.open) >= t.gw.MaxSessions {
		return false
	}
	t.open[conn] = struct{}{}
	t.pending[from]++
	return true
}

func (t *tcp) established(conn net.Conn) {
	from := addrOf(conn).Addr()
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.pending[from]--; t.pending[from] <= 0 {
		delete(t.pending, from)
	}
}

func (t *tcp) leave(conn net.Conn) {
	conn.Close()
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.open, conn)
}

// close ends every connection, politely where there is a session.
func (t *tcp) close() {
	t.socket.Close()
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	for conn := range t.open {
		conn.Close()
	}
}

func addrOf(conn net.Conn) netip.AddrPort {
	if a, ok := conn.RemoteAddr().(*net.TCPAddr); ok {
		ap := a.AddrPort()
		return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
	}
	return netip.AddrPort{}
}

// serve does the handshake and then reads messages until the end.
func (t *tcp) serve(raw net.Conn) {
	st, err := t.handshake(raw)
	t.established(raw)
	if err != nil {
		t.gw.stats.HandshakesFailed.Add(1)
		t.gw.Log.Debug("coap tls handshake failed", slog.String("remote", raw.RemoteAddr().String()), slog.Any("error", err))
		return
	}
	t.gw.stats.Handshakes.Add(1)
	reason := "closed by the device"
	if err := st.read(); err != nil {
		reason = err.Error()
	}
	st.session.end(reason, true)
}

func (t *tcp) handshake(raw net.Conn) (*stream, error) {
	at := addrOf(raw)
	conn := tls.Server(raw, t.config)
	ctx, cancel := context.WithTimeout(t.gw.ctx, t.gw.HandshakeTimeout)
	defer cancel()
	if err := conn.HandshakeContext(ctx); err != nil {
		return nil, fmt.Errorf("coapgw: tls: %w", err)
	}
	p, err := t.resolve(conn.ConnectionState(), at)
	if err != nil {
		return nil, err
	}
	st := &stream{gw: t.gw, conn: conn, at: at, slots: make(chan struct{}, maxActive), peerMax: baseMessageSize}
	st.session = newSession(t.gw, st, identity.CoAPTCP, p)
	if !t.gw.sessions.add(st.session) {
		return nil, errors.New("coapgw: no room for another session")
	}
	st.session.admitted()
	csm := coap.Message{Code: coap.CSM}
	csm.Options = csm.Options.AddUint(csmMaxMessageSize, maxStreamMessage).Add(csmBlockwise, nil)
	return st, st.send(&csm)
}

// resolve says who is at the other end of a connection.
func (t *tcp) resolve(state tls.ConnectionState, from netip.AddrPort) (p peer, err error) {
	for _, c := range state.PeerCertificates {
		p.chain = append(p.chain, c.Raw)
	}
	proof, err := t.gw.proof(identity.CoAPTCP, from, "", p.chain)
	if err != nil {
		return p, err
	}
	proof.TLS13 = state.Version >= tls.VersionTLS13
	ctx, cancel := context.WithTimeout(t.gw.ctx, lookupTimeout)
	defer cancel()
	p.tls13 = proof.TLS13
	p.found, err = t.gw.resolve(ctx, proof)
	return p, err
}

// read takes messages until the peer ends, or breaks the rules.
func (st *stream) read() error {
	buf := make([]byte, 0, 2048)
	for {
		m, n, err := coap.ParseStream(buf, maxStreamMessage)
		if err != nil {
			st.gw.stats.MessagesMalformed.Add(1)
			st.abort("the message is not well-formed, or too large")
			st.drain()
			return err
		}
		if n > 0 {
			st.session.heard(n)
			if !st.message(&m) {
				return nil
			}
			buf = buf[:copy(buf, buf[n:])]
			continue
		}
		if len(buf) == cap(buf) {
			buf = append(buf, make([]byte, min(cap(buf), maxStreamMessage))...)[:len(buf)]
		}
		k, err := st.conn.Read(buf[len(buf):cap(buf)])
		if k == 0 && err != nil {
			return fmt.Errorf("coapgw: %w", err)
		}
		buf = buf[:len(buf)+k]
	}
}

// message takes a message of the peer, and reports whether the stream goes on.
func (st *stream) message(m *coap.Message) bool {
	switch {
	case m.Code == coap.Empty: // to keep the connection alive, means nothing
	case m.Code.IsRequest():
		st.request(cloneStream(m))
	case m.Code.IsResponse():
		st.session.response(cloneStream(m))
	case m.Code == coap.CSM:
		return st.settings(m)
	case m.Code == coap.Ping:
		return st.ping(m)
	case m.Code == coap.Release, m.Code == coap.Abort:
		return false
	}
	return true
}

func cloneStream(m *coap.Message) *coap.Message {
	again, _, err := coap.ParseStream(m.AppendStream(nil), maxStreamMessage+streamOverhead)
	if err != nil {
		return &coap.Message{}
	}
	return &again
}

func (st *stream) settings(m *coap.Message) bool {
	for _, o := range m.Options {
		if o.ID.Critical() {
			st.abort("a critical option of the CSM is not known")
			return false
		}
	}
	if v, ok := m.Options.Uint(csmMaxMessageSize); ok {
		st.mu.Lock()
		st.peerMax = int(max(v, streamOverhead+16))
		st.mu.Unlock()
	}
	return true
}

func (st *stream) ping(m *coap.Message) bool {
	pong := coap.Message{Code: coap.Pong, Token: m.Token}
	for _, o := range m.Options {
		if o.ID.Critical() {
			st.abort("a critical option of the Ping is not known")
			return false
		}
	}
	if _, ok := m.Options.Get(pingCustody); ok {
		pong.Options = pong.Options.Add(pingCustody, nil)
	}
	return st.send(&pong) == nil
}

func (st *stream) abort(why string) {
	_ = st.send(&coap.Message{Code: coap.Abort, Payload: []byte(why)})
}

// drain takes what a peer that broke the rules is still sending, within bounds:
// a connection closed with something unread is reset, and the abort lost with it.
func (st *stream) drain() {
	_ = st.conn.SetReadDeadline(st.gw.Now().Add(lingerTime))
	_, _ = io.CopyN(io.Discard, st.conn, lingerBytes)
}

// How long, and for how much, an aborted connection lingers.
const (
	lingerTime  = 500 * time.Millisecond
	lingerBytes = 256 << 10
)

// request serves a request. When as many are being served as may be, nothing
// more is read until one is done.
func (st *stream) request(m *coap.Message) {
	if st.session.closing() {
		return
	}
	select {
	case st.slots <- struct{}{}:
	case <-st.session.context().Done():
		return
	}
	done := func() { <-st.slots }
	if !st.session.begin() {
		done()
		_ = st.send(&coap.Message{Code: coap.ServiceUnavailable, Token: m.Token, Payload: []byte("too many requests are under way")})
		return
	}
	st.gw.spawn("request", func() {
		defer done()
		defer st.session.finish()
		st.session.serve(m, func(answer *coap.Message) {
			if answer != nil {
				_ = st.send(answer)
			}
		})
	})
}

// send writes a message. A peer that does not read is given up.
func (st *stream) send(m *coap.Message) error {
	b := m.AppendStream(nil)
	st.mu.Lock()
	defer st.mu.Unlock()
	if st.closed {
		return errEnded
	}
	st.session.told(len(b))
	_ = st.conn.SetWriteDeadline(time.Now().Add(streamWrite)) //nolint:forbidigo // a deadline of the system's clock
	if _, err := st.conn.Write(b); err != nil {
		st.closed = true
		st.conn.NetConn().Close()
		return fmt.Errorf("coapgw: %w", err)
	}
	return nil
}

func (st *stream) maxPayload() int {
	st.mu.Lock()
	defer st.mu.Unlock()
	n := min(st.peerMax, maxStreamMessage) - streamOverhead
	if n >= 1024 {
		return n &^ 1023
	}
	size := 16
	for 2*size <= n {
		size *= 2
	}
	return size
}

func (st *stream) remote() netip.AddrPort { return st.at }

func (st *stream) notify(m *coap.Message, done func(error)) error {
	err := st.send(m)
	if err == nil && done != nil {
		done(nil)
	}
	return err
}

func (st *stream) close(tell bool) {
	if st.mu.TryLock() { // else somebody waits for a peer that does not read: no last words
		if tell && !st.closed {
			release := coap.Message{Code: coap.Release}
			_ = st.conn.SetWriteDeadline(time.Now().Add(releaseWrite)) //nolint:forbidigo // a deadline of the system's clock
			_, _ = st.conn.Write(release.AppendStream(nil))
			_ = st.conn.CloseWrite()
		}
		st.closed = true
		st.mu.Unlock()
	}
	st.conn.NetConn().Close()
}
