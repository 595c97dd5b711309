package coapgw_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"log/slog"
	"math/big"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pion/dtls/v3"
	"go.uber.org/goleak"

	"keystead/coap"
	"keystead/coapgw"
	"keystead/devices"
	"keystead/fault"
	"keystead/identity"
	"keystead/seal"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m,
		// go-coap, which is a client of the tests, starts these when it is
		// loaded and never ends them.
		goleak.IgnoreAnyFunction("github.com/plgd-dev/go-coap/v3/udp/client.init.init.func1.NewCommon[...].func6.1"),
		goleak.IgnoreAnyFunction("github.com/plgd-dev/go-coap/v3/tcp/client.init.init.func1.NewCommon[...].func6.1"),
		goleak.IgnoreAnyFunction("github.com/plgd-dev/go-coap/v3/options/config.NewCommon[...].func1.1"),
	)
}

// ledger is whom the tests' credentials belong to.
type ledger struct {
	mu      sync.Mutex
	psks    map[string]string         // identity to key
	actors  map[string]identity.Actor // by PSK identity, certificate's CN, or thing key
	refused map[string]error
	epoch   atomic.Uint64
	lookups atomic.Int64
}

func newLedger() *ledger {
	return &ledger{psks: map[string]string{}, actors: map[string]identity.Actor{}, refused: map[string]error{}}
}

func device(id string, kind identity.CredentialKind, credential string) identity.Actor {
	return identity.Actor{Kind: identity.Device, ID: id, Org: "org1", Name: "the " + id, Credential: identity.Credential{Kind: kind, ID: credential}}
}

func (l *ledger) addPSK(name, key, deviceID string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.psks[name] = key
	l.actors[name] = device(deviceID, identity.PSK, name)
}

func (l *ledger) add(name string, a identity.Actor) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.actors[name] = a
}

// refuse has the credential of a name fail from now on, as if its device were suspended.
func (l *ledger) refuse(name string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.refused[name] = fault.New(fault.Unauthenticated, "the device is suspended")
	l.epoch.Add(1)
}

func (l *ledger) secret(_ context.Context, name string) (seal.Secret, identity.Actor, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lookups.Add(1)
	key, ok := l.psks[name]
	switch {
	case !ok:
		return nil, identity.Actor{}, fault.New(fault.NotFound, "no such psk")
	case l.refused[name] != nil: // revoked since, says the resolver
		return seal.Secret(key), identity.Actor{}, nil
	}
	return seal.Secret(key), l.actors[name], nil
}

func (l *ledger) by(name string) (identity.Actor, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := l.refused[name]; err != nil {
		return identity.Actor{}, err
	}
	a, ok := l.actors[name]
	if !ok {
		return a, identity.ErrNotMine
	}
	return a, nil
}

func (l *ledger) resolver() identity.Resolver {
	return identity.Resolver{
		identity.MethodFunc(func(_ context.Context, p identity.Proof) (identity.Actor, error) {
			if p.PSK == "" {
				return identity.Actor{}, identity.ErrNotMine
			}
			return l.by(p.PSK)
		}),
		identity.MethodFunc(func(_ context.Context, p identity.Proof) (identity.Actor, error) {
			if len(p.Chain) == 0 {
				return identity.Actor{}, identity.ErrNotMine
			}
			return l.by(p.Chain[0].Subject.CommonName)
		}),
		identity.MethodFunc(func(_ context.Context, p identity.Proof) (identity.Actor, error) {
			if p.Scheme == "" {
				return identity.Actor{}, identity.ErrNotMine
			}
			a, err := l.by(p.Scheme + " " + p.Value)
			if err != nil {
				return a, fault.New(fault.Unauthenticated, "the key is not known")
			}
			return a, nil
		}),
	}
}

// authority issues the tests' certificates.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t testing.TB) *authority {
	t.Helper()
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test root"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der := must(x509.CreateCertificate(rand.Reader, template, template, key.Public(), key))
	return &authority{must(x509.ParseCertificate(der)), key}
}

func (a *authority) issue(cn string) tls.Certificate {
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	template := &x509.Certificate{
		SerialNumber: must(rand.Int(rand.Reader, big.NewInt(1<<62))), Subject: pkix.Name{CommonName: cn},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der := must(x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key))
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: must(x509.ParseCertificate(der))}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// world is a gateway that runs, and all that is around it.
type world struct {
	t      testing.TB
	gw     *coapgw.Gateway
	ledger *ledger
	ca     *authority
	udp    netip.AddrPort
	tcp    netip.AddrPort
}

const testKey = "sesame-sesame-16"

// newWorld runs a gateway with a device "d1" that has the PSK "dev1", the
// certificate "cert1" and the thing key "thing1". set changes the gateway before it starts.
func newWorld(t testing.TB, set ...func(*coapgw.Gateway)) *world {
	t.Helper()
	w := listeningWorld(t, set...)
	w.run()
	return w
}

// listeningWorld is newWorld with a gateway that does not run yet.
func listeningWorld(t testing.TB, set ...func(*coapgw.Gateway)) *world {
	t.Helper()
	w := &world{t: t, ledger: newLedger(), ca: newAuthority(t)}
	w.ledger.addPSK("dev1", testKey, "d1")
	w.ledger.add("cert1", device("d1", identity.Certificate, "c1"))
	w.ledger.add("Thing thing1", device("d1", identity.ThingKey, "t1"))
	w.ledger.add("Key thing1", device("d1", identity.ThingKey, "t1")) // of a kind that is not said
	w.ledger.addPSK("dev2", "another-key-of-2", "d2")
	server := w.ca.issue("localhost")
	conf := coapgw.DefaultConfig()
	conf.UDP, conf.TCP = "127.0.0.1:0", "127.0.0.1:0"
	conf.MaxHalfOpenSource, conf.RequestRate = 1000, 0
	w.gw = &coapgw.Gateway{
		Config: conf, Resolver: w.ledger.resolver().Resolve, Secret: w.ledger.secret, DecoyKey: seal.NewSecret(32),
		Certificate: func(identity.Transport, string) (*tls.Certificate, error) { return &server, nil },
		Epoch:       w.ledger.epoch.Load, Log: slog.New(slog.DiscardHandler), Now: time.Now,
	}
	for _, fn := range set {
		fn(w.gw)
	}
	if err := w.gw.Validate(); err != nil {
		t.Fatal(err)
	}
	if err := w.gw.Listen(context.Background()); err != nil {
		t.Fatal(err)
	}
	w.udp, w.tcp = w.gw.Addrs()
	return w
}

// run runs the gateway until the test ends.
func (w *world) run() {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- w.gw.Run(ctx) }()
	w.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			w.t.Errorf("the gateway ended with %v", err)
		}
	})
}

// dial opens a DTLS session as a client of pion's.
func (w *world) dial(opts ...dtls.ClientOption) (*client, error) {
	socket, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return nil, err
	}
	return w.dialFrom(socket, opts...)
}

func (w *world) dialFrom(socket net.PacketConn, opts ...dtls.ClientOption) (*client, error) {
	pool := x509.NewCertPool()
	pool.AddCert(w.ca.cert)
	opts = append([]dtls.ClientOption{dtls.WithRootCAs(pool), dtls.WithServerName("localhost"), dtls.WithFlightInterval(300 * time.Millisecond)}, opts...)
	conn, err := dtls.ClientWithOptions(socket, net.UDPAddrFromAddrPort(w.udp), opts...)
	if err == nil {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		err = conn.HandshakeContext(ctx)
	}
	if err != nil {
		socket.Close()
		return nil, err
	}
	return &client{t: w.t, conn: conn, dtls: conn, socket: socket}, nil
}

// psk is a client with a pre-shared key; suites are those it offers, CCM_8 if none is given.
func psk(name, key string, suites ...dtls.CipherSuiteID) []dtls.ClientOption {
	if len(suites) == 0 {
		suites = []dtls.CipherSuiteID{dtls.TLS_PSK_WITH_AES_128_CCM_8}
	}
	return []dtls.ClientOption{
		dtls.WithPSK(func([]byte) ([]byte, error) { return []byte(key), nil }),
		dtls.WithPSKIdentityHint([]byte(name)), dtls.WithCipherSuites(suites...),
	}
}

func certificate(cert tls.Certificate, suites ...dtls.CipherSuiteID) []dtls.ClientOption {
	opts := []dtls.ClientOption{dtls.WithCertificates(cert)}
	if len(suites) > 0 {
		opts = append(opts, dtls.WithCipherSuites(suites...))
	}
	return opts
}

// mustDial is dial for a session that must come to be, and is closed with the test.
func (w *world) mustDial(opts ...dtls.ClientOption) *client {
	w.t.Helper()
	c, err := w.dial(opts...)
	if err != nil {
		w.t.Fatalf("handshake: %v", err)
	}
	w.t.Cleanup(c.close)
	return c
}

// client is a CoAP client on datagrams, as bare as can be.
type client struct {
	t      testing.TB
	conn   net.Conn
	dtls   *dtls.Conn
	socket net.PacketConn
	mid    uint16
	token  byte
}

func (c *client) close() {
	c.conn.Close()
	if c.socket != nil {
		c.socket.Close()
	}
}

func (c *client) write(m *coap.Message) {
	if _, err := c.conn.Write(m.Append(nil)); err != nil {
		c.t.Errorf("write: %v", err)
	}
}

// read returns the next message, nil if there is none in time.
func (c *client) read(within time.Duration) *coap.Message {
	buf := make([]byte, 8192)
	_ = c.conn.SetReadDeadline(time.Now().Add(within))
	n, err := c.conn.Read(buf)
	if err != nil {
		return nil
	}
	m, err := coap.Parse(buf[:n])
	if err != nil {
		c.t.Errorf("the gateway sent %x: %v", buf[:n], err)
	}
	return &m
}

// request fills in what a confirmable request needs.
func (c *client) request(method coap.Code, path string, options coap.Options, payload []byte) *coap.Message {
	c.mid++
	c.token++
	return &coap.Message{Code: method, ID: c.mid, Token: []byte{0xc0, c.token}, Options: append(coap.Options(nil), options...).AddPath(path), Payload: payload}
}

// do makes a confirmable request and returns the answer; it sends it again when nothing comes.
func (c *client) do(method coap.Code, path string, options coap.Options, payload []byte) *coap.Message {
	c.t.Helper()
	return c.exchange(c.request(method, path, options, payload))
}

func (c *client) exchange(m *coap.Message) *coap.Message {
	c.t.Helper()
	for range 5 {
		c.write(m)
		until := time.Now().Add(2 * time.Second)
		for time.Now().Before(until) {
			got := c.read(time.Until(until))
			if got == nil {
				break
			}
			if bytes.Equal(got.Token, m.Token) && got.Code != coap.Empty {
				if got.Type == coap.Confirmable {
					c.write(&coap.Message{Type: coap.Acknowledgement, ID: got.ID})
				}
				return got
			}
		}
	}
	c.t.Fatalf("no answer to %v %s", m.Code, m.Options.Path())
	return nil
}

// libcoap runs one of Debian's CoAP clients and returns what it prints. The one
// over GnuTLS now and then gives its handshake up on a machine that is busy; it
// is run again then, as a device would try again.
func (w *world) libcoap(flavour string, args ...string) string {
	w.t.Helper()
	for range 2 {
		out := w.libcoapOnce(flavour, args...)
		if !strings.Contains(out, "cannot send CoAP pdu") {
			return out
		}
		w.t.Logf("coap-client-%s %s is run again: %s", flavour, strings.Join(args, " "), out)
	}
	return w.libcoapOnce(flavour, args...)
}

func (w *world) libcoapOnce(flavour string, args ...string) string {
	w.t.Helper()
	bin, err := exec.LookPath("coap-client-" + flavour)
	if err != nil {
		w.t.Fatalf("coap-client-%s is not installed; it is in Debian's libcoap3-bin", flavour)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, bin, args...).CombinedOutput()
	if err != nil {
		w.t.Logf("coap-client-%s %s: %v\n%s", flavour, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// files writes what a libcoap client needs to show a certificate: -c, -j and -C.
func (w *world) files(cn string) []string {
	dir := w.t.TempDir()
	cert := w.ca.issue(cn)
	write := func(name, kind string, der []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
			w.t.Fatal(err)
		}
		return path
	}
	return []string{
		"-c", write("client.crt", "CERTIFICATE", cert.Certificate[0]),
		"-j", write("client.key", "EC PRIVATE KEY", must(x509.MarshalECPrivateKey(cert.PrivateKey.(*ecdsa.PrivateKey)))),
		"-C", write("ca.crt", "CERTIFICATE", w.ca.cert.Raw),
	}
}

// alertOf tries a handshake that must fail and returns what alert the client got, "" for none.
func (w *world) alertOf(opts []dtls.ClientOption) string {
	w.t.Helper()
	socket, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		w.t.Fatal(err)
	}
	defer socket.Close()
	conn, err := dtls.ClientWithOptions(socket, net.UDPAddrFromAddrPort(w.udp), opts...)
	if err != nil {
		w.t.Fatal(err)
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 700*time.Millisecond)
	defer cancel()
	err = conn.HandshakeContext(ctx)
	switch {
	case err == nil:
		return "a session"
	case ctx.Err() != nil:
		return ""
	}
	return err.Error()
}

// dialTCP opens a TLS connection with at most one certificate.
func (w *world) dialTCP(certs ...tls.Certificate) (*client, error) {
	pool := x509.NewCertPool()
	pool.AddCert(w.ca.cert)
	conn, err := tls.Dial("tcp", w.tcp.String(), &tls.Config{RootCAs: pool, ServerName: "localhost", Certificates: certs, NextProtos: []string{"coap"}})
	if err != nil {
		return nil, err
	}
	c := &client{t: w.t, conn: &framed{Conn: conn}, socket: nil}
	return c, nil
}

func (w *world) mustDialTCP(certs ...tls.Certificate) *client {
	w.t.Helper()
	c, err := w.dialTCP(certs...)
	if err != nil {
		w.t.Fatalf("handshake: %v", err)
	}
	w.t.Cleanup(c.close)
	return c
}

// framed makes datagrams of a stream of messages, so that one client does for both.
type framed struct {
	net.Conn
	buf []byte
}

func (f *framed) Write(b []byte) (int, error) {
	m, err := coap.Parse(b)
	if err != nil {
		return 0, err
	}
	return f.Conn.Write(m.AppendStream(nil))
}

func (f *framed) Read(b []byte) (int, error) {
	for {
		m, n, err := coap.ParseStream(f.buf, 1<<20)
		if err != nil {
			return 0, err
		}
		if n > 0 {
			k := copy(b, m.Append(nil))
			f.buf = f.buf[n:]
			return k, nil
		}
		more := make([]byte, 4096)
		k, err := f.Conn.Read(more)
		if k == 0 && err != nil {
			return 0, err
		}
		f.buf = append(f.buf, more[:k]...)
	}
}

// isClosed reports whether the gateway closes the session within some seconds.
func (c *client) isClosed() bool {
	buf := make([]byte, 8192)
	_ = c.conn.SetReadDeadline(time.Now().Add(4 * time.Second))
	for {
		_, err := c.conn.Read(buf)
		if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
			return false
		}
		if err != nil {
			return true
		}
	}
}

// suspend has a device suspended, with the credential of a name, as devices tells of it.
func (w *world) suspend(deviceID, name string) {
	w.ledger.refuse(name)
	w.gw.Changed(devices.Change{What: devices.SuspendedNow, Device: devices.Device{ID: deviceID}})
}
