//go:build e2e

package e2e_test

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pion/dtls/v3"

	"keystead/coap"
)

// keepAlive is a TLS connection of a device that stays open between requests.
type keepAlive struct {
	s    *server
	conn *tls.Conn
	in   *bufio.Reader
}

// connect opens a TLS connection; cache, if it is not nil, has sessions to resume.
func (s *server) connect(cert certificate, cache tls.ClientSessionCache) (*keepAlive, error) {
	s.t.Helper()
	conf := s.tls()
	conf.Certificates, conf.ClientSessionCache, conf.ServerName = []tls.Certificate{cert.pair}, cache, "localhost"
	conn, err := tls.DialWithDialer(&net.Dialer{Timeout: patience}, "tcp", s.at.HTTPS, conf)
	if err != nil {
		return nil, err
	}
	s.t.Cleanup(func() { conn.Close() })
	return &keepAlive{s, conn, bufio.NewReader(conn)}, nil
}

// whoami makes a request on the connection.
func (k *keepAlive) whoami() (who, error) {
	_ = k.conn.SetDeadline(time.Now().Add(patience))
	if _, err := io.WriteString(k.conn, "GET /api/v1/whoami HTTP/1.1\r\nHost: localhost\r\n\r\n"); err != nil {
		return who{}, err
	}
	res, err := http.ReadResponse(k.in, nil)
	if err != nil {
		return who{}, err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		return who{}, err
	}
	if res.StatusCode != http.StatusOK {
		return who{}, fmt.Errorf("%s: %s", res.Status, b)
	}
	return k.s.whoami(string(b)), nil
}

// ended waits until the server has closed the connection, and says when.
func (k *keepAlive) ended() time.Time {
	_ = k.conn.SetReadDeadline(time.Now().Add(patience))
	if _, err := io.Copy(io.Discard, k.in); err != nil {
		if timeout := net.Error(nil); errors.As(err, &timeout) && timeout.Timeout() {
			k.s.t.Error("the TLS connection was not closed")
		}
	}
	return time.Now()
}

// The way out: whatever ends a device, or takes its credentials away, has it
// refused at the next use on every protocol, and closes what is open.
func TestSuspendedEverywhereAtOnce(t *testing.T) {
	t.Parallel()
	s := start(t, fast...)
	k := s.textPSK()
	cert := s.enrol(k.Device, "device")
	bystander := s.textPSK()

	open := func() (closed []func() time.Time) {
		psk, dtls := s.mustDial(withPSK(k, k.text(t))...), s.mustDial(withCertificate(cert)...)
		for name, c := range map[string]*session{"psk": psk, "certificate": dtls} {
			w, err := c.whoami()
			if err != nil {
				t.Fatalf("DTLS with %s: %v", name, err)
			}
			w.isDevice(s, k.Device, name)
			closed = append(closed, c.ended)
		}
		tlsConn, err := s.connect(cert, nil)
		if err != nil {
			t.Fatal(err)
		}
		w, err := tlsConn.whoami()
		if err != nil {
			t.Fatal(err)
		}
		w.isDevice(s, k.Device, "certificate")
		return append(closed, tlsConn.ended)
	}
	// A TLS session that can be resumed, which would skip the handshake's look at
	// the certificate.
	cache := tls.NewLRUClientSessionCache(1)
	resumable := func() (*keepAlive, error) {
		c, err := s.connect(cert, cache)
		if err != nil {
			return nil, err
		}
		if _, err := c.whoami(); err != nil {
			return nil, err
		}
		return c, c.conn.Close()
	}
	if _, err := resumable(); err != nil {
		t.Fatal(err)
	}
	if c, err := resumable(); err != nil {
		t.Fatal(err)
	} else if !c.conn.ConnectionState().DidResume {
		t.Log("the server resumes no TLS sessions of devices")
	}

	other := s.mustDial(withPSK(bystander, bystander.text(t))...)
	closed := open()
	ends := make(chan time.Time, len(closed))
	for _, wait := range closed {
		go func() { ends <- wait() }()
	}
	if _, err := s.admin().SuspendDevice(t.Context(), k.Device); err != nil {
		t.Fatal(err)
	}
	answered, last := time.Now(), time.Time{}
	for range closed {
		if at := <-ends; at.After(last) {
			last = at
		}
	}
	when := "after"
	if last.Before(answered) {
		when = "before"
	}
	figure(t, "suspended: the last of %d open sessions (DTLS with PSK and certificate, TLS keep-alive) closed %v %s the administrator had the answer",
		len(closed), last.Sub(answered).Abs().Round(10*time.Microsecond), when)

	s.refused(k, cert)
	if _, err := resumable(); err == nil {
		t.Error("a TLS session was resumed")
	}
	if w, err := other.whoami(); err != nil || w.Device != bystander.Device {
		t.Errorf("another device: %+v, %v", w, err)
	}

	if out := s.cli("device", "resume", k.Device); !strings.Contains(out, "active") {
		t.Errorf("got %q, want the device to be active", out)
	}
	open()
	if _, err := resumable(); err != nil {
		t.Errorf("after the suspension: %v", err)
	}

	s.cli("device", "delete", k.Device)
	s.refused(k, cert)
}

// refused fails the test for each way a device can still get in.
func (s *server) refused(k key, cert certificate) {
	s.t.Helper()
	var tries sync.WaitGroup
	for _, opts := range [][]dtls.ClientOption{withPSK(k, k.text(s.t)), withCertificate(cert)} {
		socket, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			s.t.Fatal(err)
		}
		tries.Go(func() {
			c, err := s.dialFrom(socket, 4*time.Second, opts...)
			if err != nil {
				return
			}
			if w, err := c.whoami(); err == nil { // a handshake may end well before the certificate is looked at
				s.t.Errorf("got %+v over DTLS, want it refused", w)
			}
		})
	}
	for _, name := range coapClients {
		tries.Go(func() {
			refusedOverCoAP(s, s.coap(name, "-A", "50", "-C", s.ca(), "-c", cert.cert, "-j", cert.key, s.coaps("/whoami")))
		})
		tries.Go(func() {
			refusedOverCoAP(s, s.coap(name, "-A", "50", "-u", k.Identity, "-k", k.text(s.t), s.coaps("/whoami")))
		})
	}
	if body, code := s.curl("--cert", cert.cert, "--key", cert.key, s.url("/api/v1/whoami")); code != http.StatusUnauthorized {
		s.t.Errorf("got %d %s over HTTPS, want 401", code, body)
	}
	tries.Wait()
}

// One credential is revoked: what rests on it ends, the others of the device go on.
func TestOneCredentialRevoked(t *testing.T) {
	t.Parallel()
	s := start(t, fast...)
	k := s.textPSK()
	cert := s.enrol(k.Device, "device")
	psk, dtls := s.mustDial(withPSK(k, k.text(t))...), s.mustDial(withCertificate(cert)...)
	for _, c := range []*session{psk, dtls} {
		if _, err := c.whoami(); err != nil {
			t.Fatal(err)
		}
	}
	d, err := s.admin().Device(t.Context(), k.Device)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range d.Credentials {
		if c.Kind == "certificate" {
			s.cli("device", "revoke", "--", d.ID, c.Kind, c.ID)
		}
	}
	dtls.ended()
	if body, code := s.curl("--cert", cert.cert, "--key", cert.key, s.url("/api/v1/whoami")); code != http.StatusUnauthorized {
		t.Errorf("the certificate: got %d %s, want 401", code, body)
	}
	if w, err := psk.whoami(); err != nil || w.Device != k.Device {
		t.Errorf("the pre-shared key: %+v, %v", w, err)
	}
	s.cli("psk", "delete", "--", k.Identity) // it may begin with a dash
	psk.ended()
	if _, err := s.admin().Device(t.Context(), k.Device); err != nil {
		t.Errorf("the device itself: %v", err)
	}
}

// Credentials of two devices in one request, or in one session, are refused,
// and the session is closed.
func TestCredentialsOfTwoDevices(t *testing.T) {
	t.Parallel()
	s := start(t, fast...)
	a := s.textPSK()
	certA := s.enrol(a.Device, "a")
	b, thing := s.thing("b")

	// The certificate of A with a key of B, over HTTPS.
	if body, code := s.curl("--cert", certA.cert, "--key", certA.key, "-H", "Authorization: Thing "+thing, s.url("/api/v1/whoami")); code != http.StatusUnauthorized || strings.Contains(body, b) {
		t.Errorf("got %d %s, want 401", code, body)
	}
	// Sessions of A with a key of B, over CoAP.
	for name, c := range map[string]*session{"psk": s.mustDial(withPSK(a, a.text(t))...), "certificate": s.mustDial(withCertificate(certA)...)} {
		if w, err := c.whoami(); err != nil || w.Device != a.Device {
			t.Fatalf("%s: %+v, %v", name, w, err)
		}
		got, err := c.get("/whoami", "auth="+thing)
		if err == nil && got.Code != coap.Unauthorized {
			t.Errorf("%s: got %v %s, want 4.01", name, got.Code, got.Payload)
		}
		c.ended()
	}
}

// thing makes a device with a thing key.
func (s *server) thing(name string) (device, secret string) {
	s.t.Helper()
	var made struct{ Things []struct{ ID, Key string } }
	code, body := s.exchange(s.https(), http.MethodPost, "/things", s.key, "", fmt.Sprintf(`[{"name":%q,"type":"sensor"}]`, name))
	if code/100 != 2 {
		s.t.Fatalf("POST /things: %d %s", code, body)
	}
	s.decode(body, &made)
	s.secret(made.Things[0].Key)
	return made.Things[0].ID, made.Things[0].Key
}

// A certificate that ends while its connections are open is refused at the next
// request of each, and on a TLS session that is resumed; and renews nothing.
func TestExpiredOnOpenConnections(t *testing.T) {
	t.Parallel()
	s := start(t, fast...)
	var made struct{ Things []struct{ ID string } }
	s.must2xx(s.https(), http.MethodPost, "/things", s.key, `{"name":"pump","type":"sensor"}`, &made)
	thing := made.Things[0].ID
	end := time.Now().Add(15 * time.Second).Truncate(time.Second) // for all that is opened first
	write(t, s.path("soon.json"), fmt.Appendf(nil, `{"name":"soon over","honor_subject":true,"key_usage":["DigitalSignature"],"extended_key_usages":["ClientAuth"],"validity":{"type":"Time","time":%q}}`, end.Format(time.RFC3339)))
	s.sh(`
		"$KEYSTEAD" --data "$DATA" profile create soon.json 2> profile
		"$KEYSTEAD" --data "$DATA" cert issue --thing ` + thing + ` --name soon --profile "$(cat profile)"`)
	cert := s.certificate("soon")

	cache := tls.NewLRUClientSessionCache(1)
	before, err := s.connect(cert, cache)
	if err != nil {
		t.Fatal(err)
	}
	open, err := s.connect(cert, nil)
	if err != nil {
		t.Fatal(err)
	}
	overDTLS := s.mustDial(withCertificate(cert)...)
	for name, ask := range map[string]func() (who, error){"TLS to be resumed": before.whoami, "TLS": open.whoami, "DTLS": overDTLS.whoami} {
		w, err := ask()
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		w.isDevice(s, thing, "certificate")
	}
	before.conn.Close()
	if !time.Now().Before(end) {
		t.Fatal("the certificate ended before everything was open")
	}
	time.Sleep(time.Until(end.Add(time.Second)))

	if w, err := open.whoami(); err == nil {
		t.Errorf("on the open TLS connection: %+v, want it refused", w)
	}
	if w, err := overDTLS.whoami(); err == nil {
		t.Errorf("in the open DTLS session: %+v, want it refused", w)
	}
	if after, err := s.connect(cert, cache); err == nil {
		if w, err := after.whoami(); err == nil {
			t.Errorf("on a TLS connection (resumed: %v): %+v, want it refused", after.conn.ConnectionState().DidResume, w)
		}
	}
	s.sh(`openssl req -new -key soon.key -subj "/CN=` + thing + `" -outform DER | openssl base64 -A > soon.csr`)
	if body, code := s.curl("--cert", cert.cert, "--key", cert.key, "-H", "Content-Type: application/pkcs10", "--data-binary", "@"+s.path("soon.csr"), s.url("/.well-known/est/simplereenroll")); code != http.StatusUnauthorized {
		t.Errorf("renewal: %d %s, want 401", code, body)
	}
}
