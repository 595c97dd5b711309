package coapgw_test

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pion/dtls/v3"

	"keystead/coap"
	"keystead/coapgw"
)

// withCID has a client use connection ids: it is reached at its address, and reaches us by ours.
func withCID(opts []dtls.ClientOption) []dtls.ClientOption {
	return append(opts, dtls.WithConnectionIDGenerator(dtls.OnlySendCIDGenerator()))
}

// nat is a client's socket behind a router that gives it another port now and then.
type nat struct {
	mu      sync.Mutex
	current *net.UDPConn
	changed chan struct{}
}

func newNAT(t testing.TB) *nat {
	n := &nat{changed: make(chan struct{})}
	n.move(t)
	t.Cleanup(func() { n.current.Close() })
	return n
}

// move has what follows leave from another port.
func (n *nat) move(t testing.TB) {
	fresh, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.current != nil {
		n.current.Close()
	}
	n.current = fresh
}

func (n *nat) socket() *net.UDPConn {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.current
}

func (n *nat) ReadFrom(b []byte) (int, net.Addr, error) {
	for {
		s := n.socket()
		k, a, err := s.ReadFrom(b)
		if err != nil && s != n.socket() {
			continue // it moved
		}
		return k, a, err
	}
}

func (n *nat) WriteTo(b []byte, a net.Addr) (int, error) { return n.socket().WriteTo(b, a) }
func (n *nat) Close() error                              { return n.socket().Close() }
func (n *nat) LocalAddr() net.Addr                       { return n.socket().LocalAddr() }
func (n *nat) SetDeadline(t time.Time) error             { return n.socket().SetDeadline(t) }
func (n *nat) SetReadDeadline(t time.Time) error         { return n.socket().SetReadDeadline(t) }
func (n *nat) SetWriteDeadline(t time.Time) error        { return n.socket().SetWriteDeadline(t) }

func TestASessionWithAConnectionIDRoams(t *testing.T) {
	f := &fixtures{}
	w := newWorld(t, f.mount)
	n := newNAT(t)
	c, err := w.dialFrom(n, withCID(psk("dev1", testKey))...)
	if err != nil {
		t.Fatal(err)
	}
	c.do(coap.GET, "/whoami", nil, nil)
	id := w.gw.Sessions()[0].ID()
	for i := range 5 {
		if i%2 == 1 { // parked meanwhile
			w.gw.Sweep(time.Now().Add(15 * time.Second))
			if w.gw.Gauges().Parked != 1 {
				t.Error("the idle session is not parked")
			}
		}
		n.move(t)
		if got := c.do(coap.GET, "/whoami", nil, nil); got.Code != coap.Content {
			t.Errorf("from another port: %v", got.Code)
		}
		s := w.gw.Sessions()
		if len(s) != 1 || s[0].ID() != id || s[0].Remote().Port() != n.LocalAddr().(*net.UDPAddr).AddrPort().Port() {
			t.Errorf("sessions %v at %v, want the one at the new port", len(s), s[0].Remote())
		}
	}
	if got := w.gw.Stats().Roams.Load(); got != 5 {
		t.Errorf("it roamed %d times, want 5", got)
	}
}

func TestLittleIsSentToAnAddressThatIsNotConfirmed(t *testing.T) {
	f := &fixtures{}
	w := newWorld(t, f.mount)
	n := newNAT(t)
	c, err := w.dialFrom(n, withCID(psk("dev1", testKey))...)
	if err != nil {
		t.Fatal(err)
	}
	c.do(coap.GET, "/whoami", nil, nil)
	n.move(t)
	received, sent := 0, 0
	for num := range uint32(6) { // answers of a kilobyte each, and nothing that confirms the address
		m := c.request(coap.GET, "/big", coap.Options{}.Add(coap.Block2, coap.Block{Num: num, SZX: 6}.Value()), nil)
		c.write(m)
		sent += 100
		for {
			got := c.read(100 * time.Millisecond)
			if got == nil {
				break
			}
			received += len(got.Payload)
		}
	}
	if received > 1280+3*sent {
		t.Errorf("%d bytes were sent to an address nothing confirms, for %d from there", received, sent)
	}
	m := c.request(coap.GET, "/whoami", nil, nil)
	n.move(t)
	c.write(m)
	var ping *coap.Message
	for ping == nil {
		got := c.read(time.Second)
		if got == nil {
			t.Fatal("the gateway does not ask the new address whether it is right")
		}
		if got.Code == coap.Empty && got.Type == coap.Confirmable {
			ping = got
		}
	}
	c.write(&coap.Message{Type: coap.Reset, ID: ping.ID})
	whole := 0
	for num := range uint32(6) {
		got := c.do(coap.GET, "/big", coap.Options{}.Add(coap.Block2, coap.Block{Num: num, SZX: 6}.Value()), nil)
		whole += len(got.Payload)
	}
	if whole < 6000 {
		t.Errorf("%d bytes once the address is confirmed, want all", whole)
	}
}

// later is a clock that can be put forward.
type later struct{ by atomic.Int64 }

func (l *later) now() time.Time { return time.Now().Add(time.Duration(l.by.Load())) }

// wait puts the clock forward, and waits until the gateway has looked at it.
func (l *later) wait(d time.Duration) {
	l.by.Add(int64(d))
	time.Sleep(250 * time.Millisecond)
}

// mutable is a socket that hears nothing while it is told so.
type mutable struct {
	net.PacketConn
	deaf atomic.Bool
}

func (d *mutable) ReadFrom(b []byte) (int, net.Addr, error) {
	for {
		if n, a, err := d.PacketConn.ReadFrom(b); err != nil || !d.deaf.Load() {
			return n, a, err
		}
	}
}

// An address whose first ping was lost is pinged again, or large answers would
// never be had there; and so is one that has answered none, when it is heard from.
func TestANewAddressIsPingedUntilItAnswers(t *testing.T) {
	f, clock := &fixtures{}, &later{}
	w := newWorld(t, f.mount, func(g *coapgw.Gateway) { g.Now = clock.now })
	n := newNAT(t)
	c, err := w.dialFrom(n, withCID(psk("dev1", testKey))...)
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	c.do(coap.GET, "/whoami", nil, nil)
	n.move(t)
	c.write(c.request(coap.GET, "/whoami", nil, nil))
	ping := func(what string) (mid uint16) {
		for {
			got := c.read(2 * time.Second)
			if got == nil {
				t.Fatalf("%s: no ping", what)
			}
			if got.Code == coap.Empty && got.Type == coap.Confirmable {
				return got.ID
			}
		}
	}
	first := ping("the new address")
	for range 4 {
		clock.wait(50 * time.Second)
		if mid := ping("no answer"); mid != first {
			t.Errorf("another ping %d after %d, want it again", mid, first)
		}
	}
	clock.wait(100 * time.Second) // that was the last of it
	c.write(c.request(coap.GET, "/whoami", nil, nil))
	again := ping("heard from there")
	if again == first {
		t.Error("a ping that was given up is sent again, want another")
	}
	c.write(&coap.Message{Type: coap.Reset, ID: again})
	whole := 0
	for num := range uint32(6) {
		whole += len(c.do(coap.GET, "/big", coap.Options{}.Add(coap.Block2, coap.Block{Num: num, SZX: 6}.Value()), nil).Payload)
	}
	if whole < 6000 {
		t.Errorf("%d bytes once the address is confirmed, want all", whole)
	}
}

// An answer that came by itself, and was lost as often as it was sent, is given to a
// client that asks again.
func TestAnAnswerByItselfIsNotLostForGood(t *testing.T) {
	f, clock := &fixtures{}, &later{}
	w := newWorld(t, f.mount, func(g *coapgw.Gateway) { g.Now = clock.now })
	socket := &mutable{PacketConn: must(net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)}))}
	c, err := w.dialFrom(socket, psk("dev1", testKey)...)
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	m := c.request(coap.GET, "/slow", nil, nil)
	c.write(m)
	if got := c.read(5 * time.Second); got == nil || got.Code != coap.Empty || got.ID != m.ID {
		t.Fatalf("first %+v, want an empty acknowledgement", got)
	}
	socket.deaf.Store(true)
	time.Sleep(time.Second) // it is answered
	for range 5 {           // and sent again four times, and given up
		clock.wait(45 * time.Second)
	}
	socket.deaf.Store(false)
	c.write(m)
	if got := c.listen(m.Token, 5*time.Second); got == nil || string(got.Payload) != "at last" {
		t.Fatalf("asked again %+v, want the answer", got)
	}
}

// A handshake is not given up once the client may know that it succeeded.
func TestAHandshakeDoesNotExpireForTheServerAlone(t *testing.T) {
	var done, late atomic.Int64
	for _, limit := range []int{2, 3, 4, 5, 6, 8, 10, 12} {
		w := listeningWorld(t)
		w.gw.HandshakeTimeout = time.Duration(limit) * time.Millisecond // less than the configuration may say
		w.run()
		var wg sync.WaitGroup
		for worker := range 4 {
			wg.Go(func() {
				for i := range 20 {
					name := fmt.Sprint(worker, "-", i) // one that fails too often is blocked
					w.ledger.addPSK(name, testKey, "d1")
					c, err := w.dialFor(200*time.Millisecond, psk(name, testKey)...)
					if err != nil {
						late.Add(1)
						continue
					}
					done.Add(1)
					if got := c.insist(c.request(coap.GET, "/whoami", nil, nil)); got == nil || got.Code != coap.Content {
						t.Errorf("the client has a session, the server has none: %+v", got)
					}
					c.close()
				}
			})
		}
		wg.Wait()
	}
	t.Logf("%d handshakes in time, %d not", done.Load(), late.Load())
	if done.Load() == 0 {
		t.Error("no handshake in time")
	}
}

func TestWithoutAConnectionIDASessionStaysWhereItIs(t *testing.T) {
	w := newWorld(t)
	n := newNAT(t)
	c, err := w.dialFrom(n, psk("dev1", testKey)...)
	if err != nil {
		t.Fatal(err)
	}
	c.do(coap.GET, "/whoami", nil, nil)
	n.move(t)
	c.write(c.request(coap.GET, "/whoami", nil, nil))
	if got := c.read(300 * time.Millisecond); got != nil {
		t.Errorf("%+v from another address, want silence", got)
	}
}

func TestReplaysAndForgeriesAreIgnored(t *testing.T) {
	f := &fixtures{}
	w := newWorld(t, f.mount)
	tap := &tap{PacketConn: must(net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)}))}
	c, err := w.dialFrom(tap, psk("dev1", testKey)...)
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	c.do(coap.POST, "/sum", nil, []byte("x"))
	last := tap.last()
	for range 3 {
		if _, err := tap.PacketConn.WriteTo(last, net.UDPAddrFromAddrPort(w.udp)); err != nil {
			t.Fatal(err)
		}
	}
	for i := range last { // one bit of every byte
		forged := append([]byte(nil), last...)
		forged[i] ^= 1
		_, _ = tap.PacketConn.WriteTo(forged, net.UDPAddrFromAddrPort(w.udp))
	}
	if got := c.read(200 * time.Millisecond); got != nil {
		t.Errorf("%+v to a replay or a forgery", got)
	}
	if n := f.runs.Load(); n != 1 {
		t.Errorf("the request ran %d times, want once", n)
	}
	if got := c.do(coap.GET, "/whoami", nil, nil); got.Code != coap.Content {
		t.Errorf("afterwards: %v", got.Code)
	}
}

// tap remembers what is sent.
type tap struct {
	net.PacketConn
	mu   sync.Mutex
	sent []byte
}

func (p *tap) WriteTo(b []byte, a net.Addr) (int, error) {
	p.mu.Lock()
	p.sent = append([]byte(nil), b...)
	p.mu.Unlock()
	return p.PacketConn.WriteTo(b, a)
}

func (p *tap) last() []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.sent
}

// clientSessions is the memory of a client that resumes.
type clientSessions struct {
	mu  sync.Mutex
	all map[string]dtls.Session
}

func (s *clientSessions) Set(key []byte, v dtls.Session) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all[string(key)] = v
	return nil
}

func (s *clientSessions) Get(key []byte) (dtls.Session, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.all[string(key)], nil
}

func (s *clientSessions) Del(key []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.all, string(key))
	return nil
}

func TestResumptionNeverOutlivesARevocation(t *testing.T) {
	w := newWorld(t)
	cert := w.ca.issue("cert1")
	for name, tc := range map[string]struct {
		opts   []dtls.ClientOption
		revoke string
	}{
		"psk":         {psk("dev1", testKey, dtls.TLS_PSK_WITH_AES_128_CCM_8), "dev1"},
		"certificate": {certificate(cert, dtls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256), "cert1"},
	} {
		store := &clientSessions{all: map[string]dtls.Session{}}
		opts := append(tc.opts, dtls.WithSessionStore(store))
		var ids []string
		for range 3 {
			c, err := w.dial(opts...)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			if got := c.do(coap.GET, "/whoami", coap.Options{}.AddUint(coap.Accept, 50), nil); !strings.Contains(string(got.Payload), `"d1"`) {
				t.Errorf("%s: %v %s", name, got.Code, got.Payload)
			}
			state, _ := c.dtls.ConnectionState()
			ids = append(ids, string(state.SessionID))
			c.close()
		}
		if ids[0] == "" || ids[0] != ids[1] || ids[1] != ids[2] {
			t.Errorf("%s: the sessions are %x, want one that is resumed", name, ids)
		}
		w.ledger.refuse(tc.revoke)
		if _, err := w.dial(opts...); err == nil {
			t.Errorf("%s: a session was resumed after the revocation", name)
		}
	}
}

func TestOpenSSLResumes(t *testing.T) {
	bin, err := exec.LookPath("openssl")
	if err != nil {
		t.Fatal("openssl is not installed; it is in Debian's openssl")
	}
	w := newWorld(t)
	file := t.TempDir() + "/session"
	for kind, args := range map[string][]string{
		"psk":         {"-psk_identity", "dev1", "-psk", "736573616d652d736573616d652d3136", "-cipher", "PSK-AES128-GCM-SHA256"},
		"certificate": fix(w.files("cert1")),
	} {
		run := func(more ...string) string {
			ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
			defer cancel()
			cmd := exec.CommandContext(ctx, bin, append(append([]string{"s_client", "-dtls1_2", "-connect", w.udp.String()}, args...), more...)...)
			stdin, err := cmd.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			defer stdin.Close()
			stdout, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			var out strings.Builder
			for lines := bufio.NewScanner(stdout); lines.Scan(); { // it does not end by itself
				out.WriteString(lines.Text() + "\n")
				if strings.Contains(lines.Text(), "Verify return code") {
					break
				}
			}
			cancel()
			_ = cmd.Wait()
			return out.String()
		}
		if out := run("-sess_out", file); !strings.Contains(out, "New, ") {
			t.Errorf("%s: %s", kind, out)
		}
		if out := run("-sess_in", file); !strings.Contains(out, "Reused, ") {
			t.Errorf("%s: the session is not resumed: %s", kind, out)
		}
	}
}

// fix makes the arguments of libcoap's client those of openssl.
func fix(args []string) []string {
	names := map[string]string{"-c": "-cert", "-j": "-key", "-C": "-CAfile"}
	fixed := append([]string(nil), args...)
	for i, a := range fixed {
		if names[a] != "" {
			fixed[i] = names[a]
		}
	}
	return fixed
}

func TestTLSResumptionNeverOutlivesARevocation(t *testing.T) {
	w := newWorld(t)
	cert := w.ca.issue("cert1")
	cache := tls.NewLRUClientSessionCache(4)
	dial := func() (*tls.Conn, error) {
		return tls.Dial("tcp", w.tcp.String(), &tls.Config{InsecureSkipVerify: true, ServerName: "localhost", Certificates: []tls.Certificate{cert}, ClientSessionCache: cache})
	}
	for i := range 2 {
		conn, err := dial()
		if err != nil {
			t.Fatal(err)
		}
		_ = conn.SetReadDeadline(time.Now().Add(time.Second))
		if _, err := conn.Read(make([]byte, 100)); err != nil { // the CSM, and the ticket before it
			t.Fatal(err)
		}
		if resumed := conn.ConnectionState().DidResume; resumed != (i == 1) {
			t.Errorf("connection %d: resumed %v", i, resumed)
		}
		conn.Close()
	}
	w.ledger.refuse("cert1")
	conn, err := dial()
	if err == nil {
		defer conn.Close()
		_ = conn.SetReadDeadline(time.Now().Add(time.Second))
		if n, err := conn.Read(make([]byte, 100)); err == nil {
			t.Errorf("a connection was resumed after the revocation: %d bytes", n)
		}
	}
}

func TestTheFinalFlightIsRepeated(t *testing.T) {
	w := newWorld(t)
	drop := &dropFirst{PacketConn: must(net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)}))}
	c, err := w.dialFrom(drop, psk("dev1", testKey)...)
	if err != nil {
		t.Fatalf("the server's last flight was lost once: %v", err)
	}
	defer c.close()
	if drop.dropped == 0 {
		t.Fatal("nothing was dropped")
	}
	if got := c.do(coap.GET, "/whoami", nil, nil); got.Code != coap.Content {
		t.Errorf("whoami: %v", got.Code)
	}
}

// dropFirst loses the first datagram in which the server changes cipher.
type dropFirst struct {
	net.PacketConn
	dropped int
}

func (d *dropFirst) ReadFrom(b []byte) (int, net.Addr, error) {
	for {
		n, a, err := d.PacketConn.ReadFrom(b)
		if err == nil && n > 0 && b[0] == 20 && d.dropped == 0 {
			d.dropped++
			continue
		}
		return n, a, err
	}
}
