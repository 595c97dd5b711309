//go:build e2e

package e2e_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	cryptorand "crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pion/dtls/v3"

	"keystead/coap"
	"keystead/outbound"
)

// lwm2mClientAt is lwm2mClient at another port.
func (s *server) lwm2mClientAt(at, version string, opts ...dtls.ClientOption) *lwm2mClient {
	s.t.Helper()
	socket, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		s.t.Fatal(err)
	}
	c, err := s.dialAt(s.t.Context(), at, socket, opts...)
	if err != nil {
		s.t.Fatalf("handshake with %s: %v", at, err)
	}
	return lwm2mClientOn(c, version)
}

// whole is ask for an answer that may come in blocks.
func (c *lwm2mClient) whole(m coap.Message) coap.Message {
	c.s.t.Helper()
	var body []byte
	for n := uint32(0); ; n++ {
		block := m
		if n > 0 {
			block.Options = append(coap.Options(nil), m.Options...).AddUint(coap.Block2, n<<4|6)
		}
		got, err := c.ask(block)
		if err != nil {
			c.s.t.Fatalf("%v %s: %v", m.Code, m.Options.Path(), err)
		}
		body = append(body, got.Payload...)
		v, ok := got.Options.Get(coap.Block2)
		if b, valid := coap.ParseBlock(v); !ok || !valid || !b.More {
			got.Payload = body
			return got
		}
	}
}

// TestEnrolmentInABootstrap is security mode 4: a device with a key is told to
// enrol, makes its own key, gets a certificate for it on the session it
// bootstrapped on, and registers with that. The bootstrap is at the port that is
// for it alone.
func TestEnrolmentInABootstrap(t *testing.T) {
	t.Parallel()
	s := start(t, "lwm2m.udp=127.0.0.1:0")
	s.cli("server", "add", "here", "coaps://"+s.at.CoAPUDP, "--short-id", "101", "--trust-anchor", s.ca(), "--sni", "localhost")
	s.cli("policy", "add", "all", "--credential", "est")

	var where struct{ URL string }
	s.decode(s.rest("GET", "/configuration/bootstrap", "", 200), &where)
	if _, port, _ := net.SplitHostPort(s.at.LwM2M); !strings.HasSuffix(where.URL, ":"+port+"/") || s.at.LwM2M == s.at.CoAPUDP {
		t.Errorf("devices are told to bootstrap at %s, want port %s", where.URL, port)
	}
	k := s.textPSK()
	c := s.lwm2mClientAt(s.at.LwM2M, "1.1", withPSK(k, k.text(t))...)
	for _, path := range []string{"/rd", "/whoami"} {
		if got, err := c.ask(coap.Message{Code: coap.POST, Options: coap.Options{}.AddPath(path)}); err != nil || got.Code != coap.NotFound {
			t.Errorf("POST %s at the bootstrap port = %v, %v; want 4.04", path, got.Code, err)
		}
	}
	c.bootstrap("ep=" + k.Identity)
	if v := s.lastBootstrap(1); v.Outcome != "SUCCESS" {
		t.Fatalf("recorded %+v", v)
	}
	security := c.written["/0/1"]
	root, err := os.ReadFile(s.ca())
	if err != nil {
		t.Fatal(err)
	}
	anchor, _ := pem.Decode(root)
	if got, _ := security.Resource(4).([]byte); security.Resource(2) != int64(4) || security.Resource(15) != int64(2) || !slices.Equal(got, anchor.Bytes) {
		t.Errorf("/0/1 has mode %v, usage %v, and %d bytes to know the server by; want mode 4 with the CA", security.Resource(2), security.Resource(15), len(got))
	}
	if security.Resource(3) != nil || security.Resource(5) != nil {
		t.Error("/0/1 has a credential, which the device is to make itself")
	}

	crts := c.whole(coap.Message{Code: coap.GET, Options: coap.Options{}.AddPath("/est/crts").AddUint(coap.Accept, uint32(coap.PKCS7Certs))})
	if crts.Code != coap.Content || len(crts.Payload) < 100 {
		t.Fatalf("GET /est/crts = %v, %d bytes", crts.Code, len(crts.Payload))
	}
	private, err := ecdsa.GenerateKey(elliptic.P256(), cryptorand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := x509.CreateCertificateRequest(cryptorand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: k.Identity}}, private)
	if err != nil {
		t.Fatal(err)
	}
	sen := c.whole(coap.Message{
		Code:    coap.POST,
		Options: coap.Options{}.AddPath("/est/sen").AddUint(coap.ContentFormat, uint32(coap.PKCS10)).AddUint(coap.Accept, uint32(coap.PKIXCert)),
		Payload: csr,
	})
	if sen.Code != coap.Changed {
		t.Fatalf("POST /est/sen = %v %s", sen.Code, sen.Payload)
	}
	cert, err := x509.ParseCertificate(sen.Payload)
	if err != nil || !private.PublicKey.Equal(cert.PublicKey) {
		t.Fatalf("enrolled: %v; want a certificate of the device's own key", err)
	}
	target := s.lwm2mClient("1.1", dtls.WithCertificates(tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: private}))
	w, err := target.whoami()
	if err != nil {
		t.Fatal(err)
	}
	w.isDevice(s, k.Device, "certificate")
	target.register()
	if out := s.cli("device", "show", k.Identity); !strings.Contains(out, "as "+k.Identity+" from 127.0.0.1:") || !strings.Contains(out, "by certificate ") {
		t.Errorf("keystead device show printed\n%s\nwant how it is registered", out)
	}
}

// TestTheBootstrapAccountIsRotated has the key a device bootstraps with replaced in
// the bootstrap: both are good until the new one is used, and then it alone.
func TestTheBootstrapAccountIsRotated(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.cli("server", "add", "here", "coaps://"+s.at.CoAPUDP, "--short-id", "101")
	s.cli("policy", "add", "all", "--credential", "rotate-psk", "--bootstrap-account", "rotate")
	k := s.textPSK()
	c := s.lwm2mClient("1.1", withPSK(k, k.text(t))...)
	c.account = 3
	c.bootstrap("ep=" + k.Identity)
	if v := s.lastBootstrap(1); v.Outcome != "SUCCESS" {
		t.Fatalf("recorded %+v", v)
	}
	if last := c.asked[len(c.asked)-2]; last != "PUT /0/3" {
		t.Errorf("the server asked %v; want the bootstrap account last, before Finish", c.asked)
	}
	next, nextSecret := c.bootstrapKey()
	if next == k.Identity || c.written["/0/3"].Resource(0) != "coaps://"+s.at.CoAPUDP {
		t.Fatalf("/0/3 is %v at %v, want a new key at the same place", next, c.written["/0/3"].Resource(0))
	}
	c.target().register() // another account: it ends nothing of this one
	old, err := s.dial(withPSK(k, k.text(t))...)
	if err != nil {
		t.Fatalf("with the old key, before the new one was used: %v", err)
	}
	again := s.lwm2mClient("1.1", withPSK(key{Identity: next}, nextSecret)...)
	again.account = 3
	again.bootstrap("ep=" + k.Identity)
	if v := s.lastBootstrap(2); v.Outcome != "SUCCESS" {
		t.Fatalf("with the new key: %+v", v)
	}
	old.ended()
	if _, err := s.dial(withPSK(k, k.text(t))...); err == nil {
		t.Error("the old key is good after the new one was used")
	}
}

// bootstrapKey is what was written to the bootstrap account.
func (c *lwm2mClient) bootstrapKey() (identity, secret string) {
	c.s.t.Helper()
	for _, i := range c.written {
		if i.Object == 0 && i.Resource(1) == true {
			name, _ := i.Resource(3).([]byte)
			key, _ := i.Resource(5).([]byte)
			c.s.secret(hex.EncodeToString(key))
			return string(name), string(key)
		}
	}
	c.s.t.Fatalf("no bootstrap account was written: %v", c.asked)
	return "", ""
}

// TestKilledInTheHandOver kills the server at each step of a bootstrap. However far
// it came, the device bootstraps again when the server is back: with the key it had
// or, if its bootstrap account was being written, with the one in there.
func TestKilledInTheHandOver(t *testing.T) {
	t.Parallel()
	s := start(t, "coap.udp="+freeUDP(t))
	s.cli("server", "add", "here", "coaps://"+s.at.CoAPUDP, "--short-id", "101")
	s.cli("policy", "add", "all", "--credential", "rotate-psk", "--bootstrap-account", "rotate")
	for _, step := range []string{"GET /", "DELETE /1", "PUT /0/1", "PUT /1/0", "PUT /0/0", "POST /bs"} {
		k := s.textPSK()
		c := s.lwm2mClient("1.1", withPSK(k, k.text(t))...)
		killed := false
		c.at = func(what string) {
			if what == step && !killed {
				killed = true
				s.kill()
			}
		}
		if got := c.request("ep=" + k.Identity); got.Code != coap.Changed {
			t.Fatalf("%s: POST /bs = %v", step, got.Code)
		}
		for until := time.Now().Add(patience); !killed; {
			if _, err := c.next(until); err != nil {
				t.Fatalf("before %s: %v; asked %v", step, err, c.asked)
			}
		}
		s.start()
		c.close()
		hasNew := step == "PUT /0/0" || step == "POST /bs"
		keys := []key{k}
		if hasNew { // the device answered with 2.04, which nobody heard
			name, secret := c.bootstrapKey()
			keys = append(keys, key{Identity: name, Secret: hex.EncodeToString([]byte(secret))})
		}
		for _, with := range keys {
			var again *session
			s.eventually("a handshake after "+step, func() (ok bool) {
				var err error
				again, err = s.dial(withPSK(with, with.text(t))...)
				return err == nil
			})
			again.close()
		}
		last := keys[len(keys)-1]
		after := s.lwm2mClient("1.1", withPSK(last, last.text(t))...)
		after.bootstrap("ep=" + k.Identity)
		after.target().register()
		s.eventually("the keys of the bootstrap that was cut off to end", func() bool {
			var d struct {
				Credentials []struct{ ID, State string }
			}
			s.decode(s.rest("GET", "/api/v1/devices/"+k.Device, "", 200), &d)
			good := 0
			for _, c := range d.Credentials {
				if c.State == "pending" {
					return false
				}
				if c.State != "revoked" {
					good++
				}
			}
			// the one registered with, the bootstrap account's new one, and the one it replaces
			return good == 3
		})
	}
	s.cli("audit", "verify")
}

// freeUDP is an address nobody has at the moment, for a server that has to come
// back at the same.
func freeUDP(t *testing.T) string {
	t.Helper()
	socket, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	return socket.LocalAddr().String()
}

// TestServersThatDoNotAnswerTakeNoDevices watches real listeners come and go.
func TestServersThatDoNotAnswerTakeNoDevices(t *testing.T) {
	t.Parallel()
	var well atomic.Bool
	well.Store(true)
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if !well.Load() {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	t.Cleanup(web.Close)
	inside := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		t.Error("a request reached what the server may not connect to")
	}))
	t.Cleanup(inside.Close)
	at := freeUDP(t)
	listen := func() func() {
		addr, err := net.ResolveUDPAddr("udp", at)
		if err != nil {
			t.Fatal(err)
		}
		l, err := dtls.ListenWithOptions("udp", addr, dtls.WithPSK(func([]byte) ([]byte, error) { return []byte("a key of another"), nil }), dtls.WithCipherSuites(dtls.TLS_PSK_WITH_AES_128_CCM_8))
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
		var serving sync.WaitGroup
		serving.Go(func() {
			for {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				serving.Go(func() {
					if c, ok := conn.(*dtls.Conn); ok {
						_ = c.HandshakeContext(ctx) // which nobody carries on with
					}
					conn.Close()
				})
			}
		})
		return func() { cancel(); l.Close(); serving.Wait() }
	}
	closeDTLS := listen()
	s := start(t, "lwm2m.health_every=1s", "webhook.allow_cidrs=127.0.0.1/32")
	s.cli("server", "add", "dtls", "coaps://"+at, "--short-id", "1", "--health", "ping")
	s.cli("server", "add", "web", "coaps://127.0.0.1:1", "--short-id", "2", "--health", "http", "--health-url", web.URL)
	s.cli("server", "add", "self", "coaps://"+s.at.CoAPUDP, "--short-id", "3", "--health", "ping")
	_, port, _ := net.SplitHostPort(strings.TrimPrefix(inside.URL, "http://"))
	s.cli("server", "add", "inside", "coaps://127.0.0.1:1", "--short-id", "4", "--health", "http", "--health-url", "http://127.0.0.2:"+port)
	s.cli("server", "add", "clouds", "coaps://127.0.0.1:1", "--short-id", "5", "--health", "http", "--health-url", "http://169.254.169.254/latest")
	s.cli("server", "add", "silent", "coaps://"+freeUDP(t), "--short-id", "6", "--health", "ping")
	fit := func() (ids []string) {
		var d struct {
			Reasons []struct{ Server, Reason string }
		}
		s.decode(s.rest("POST", "/api/v1/lwm2m/policies/evaluate", `{"endpoint":"x"}`, 200), &d)
		for _, r := range d.Reasons {
			if r.Reason != "the server is not healthy" {
				ids = append(ids, r.Server)
			}
		}
		slices.Sort(ids)
		return ids
	}
	are := func(want ...string) {
		t.Helper()
		s.eventually("the servers that take devices to be "+strings.Join(want, ", "), func() bool { return slices.Equal(fit(), want) })
	}
	are("dtls", "self", "web")
	var v struct {
		Healthy bool
		Health  struct{ Detail string }
	}
	s.decode(s.rest("GET", "/api/v1/lwm2m/servers/inside", "", 200), &v)
	if v.Healthy || !strings.Contains(v.Health.Detail, "private address") {
		t.Errorf("inside is %+v, want it not healthy, for its address is none to connect to", v)
	}
	closeDTLS()
	well.Store(false)
	are("self")
	t.Cleanup(listen())
	well.Store(true)
	are("dtls", "self", "web")
	if out := s.cli("server", "list"); !strings.Contains(out, "active, not healthy") {
		t.Errorf("keystead server list printed\n%s", out)
	}
}

// TestSinksHearOfCredentialsFirst has a webhook and a file told of a new key before
// the device has it, and a bootstrap end where they cannot be.
func TestSinksHearOfCredentialsFirst(t *testing.T) {
	t.Parallel()
	type pushed struct {
		Server, Device, Endpoint, Kind, ID, Secret string
	}
	const secret = "the key of the webhook"
	got := make(chan pushed, 4)
	var broken atomic.Bool
	hook := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil || !signed(r.Header.Get(outbound.SignatureHeader), secret, body) {
			t.Errorf("a push with the signature %q, %v", r.Header.Get(outbound.SignatureHeader), err)
		}
		if broken.Load() {
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		var p pushed
		if err := json.Unmarshal(body, &p); err != nil {
			t.Error(err)
		}
		got <- p
	}))
	t.Cleanup(hook.Close)
	s := start(t, "webhook.allow_cidrs=127.0.0.1/32")
	s.secret(secret)
	s.cli("server", "add", "hooked", "coaps://"+s.at.CoAPUDP, "--short-id", "1", "--sink", "webhook", "--sink-url", hook.URL, "--sink-secret", secret)
	s.cli("server", "add", "filed", "coaps://"+s.at.CoAPUDP, "--short-id", "2", "--sink", "file", "--sink-file", "filed.jsonl")
	s.cli("policy", "add", "all", "--credential", "rotate-psk")
	k := s.textPSK()
	bootstrap := func(to string) (*lwm2mClient, pushed) {
		s.cli("policy", "pin", k.Device, to)
		c := s.lwm2mClient("1.1", withPSK(k, k.text(t))...)
		var before pushed
		c.again = func() { // the first the device hears
			if to == "hooked" {
				select {
				case before = <-got:
				default:
					t.Error("the device is asked something before its server knows the key")
				}
				return
			}
			b, err := os.ReadFile(filepath.Join(s.data, "sinks", "filed.jsonl"))
			if err == nil {
				err = json.Unmarshal(b, &before)
			}
			if err != nil {
				t.Errorf("the file: %v", err)
			}
		}
		c.bootstrap()
		return c, before
	}
	for _, to := range []string{"hooked", "filed"} {
		c, told := bootstrap(to)
		security := c.written["/0/1"]
		name, _ := security.Resource(3).([]byte)
		key, _ := security.Resource(5).([]byte)
		if told.Server != to || told.Device != k.Device || told.Kind != "psk" || told.ID != string(name) || told.Secret != hex.EncodeToString(key) || told.Secret == "" {
			t.Errorf("%s was told %+v, want the key the device has, %s", to, told, name)
		}
		s.secret(told.Secret)
		if to == "filed" {
			if info, err := os.Stat(filepath.Join(s.data, "sinks", "filed.jsonl")); err != nil || info.Mode().Perm() != 0o600 {
				t.Errorf("the file is %v, %v; want it for its owner alone", info, err)
			}
		}
	}
	broken.Store(true)
	s.cli("policy", "pin", k.Device, "hooked")
	c := s.lwm2mClient("1.1", withPSK(k, k.text(t))...)
	c.request()
	if v := s.lastBootstrap(3); v.Outcome != "CREDENTIAL_PUSH_FAILED" || len(v.Steps) != 0 {
		t.Errorf("with a webhook that is broken: %+v, want no request to the device", v)
	}
}

// signed checks a signature as docs/protocols/webhooks.md tells receivers to.
func signed(header, secret string, body []byte) bool {
	stamp, _, _ := strings.Cut(strings.TrimPrefix(header, "t="), ",")
	seconds, err := time.Parse(time.DateTime, "1970-01-01 00:00:00")
	if err != nil {
		return false
	}
	d, err := time.ParseDuration(stamp + "s")
	return err == nil && header == outbound.Sign([]byte(secret), body, seconds.Add(d))
}
