//go:build e2e

package e2e_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"time"

	"github.com/pion/dtls/v3"

	"keystead/coap"
)

// session is a DTLS session of a device that stays open, as libcoap's client
// cannot hold one.
type session struct {
	s      *server
	conn   *dtls.Conn
	socket net.PacketConn
	mid    uint16
	acks   int // empty acknowledgements that came
}

// withPSK has a session prove itself with a pre-shared key.
func withPSK(k key, secret string) []dtls.ClientOption {
	return []dtls.ClientOption{
		dtls.WithPSK(func([]byte) ([]byte, error) { return []byte(secret), nil }),
		dtls.WithPSKIdentityHint([]byte(k.Identity)), dtls.WithCipherSuites(dtls.TLS_PSK_WITH_AES_128_CCM_8),
	}
}

// roots are the CA certificates that clients trust.
func (s *server) roots() *x509.CertPool {
	s.t.Helper()
	pem, err := os.ReadFile(s.ca())
	if err != nil {
		s.t.Fatal(err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		s.t.Fatalf("%s has no certificate", s.ca())
	}
	return pool
}

// tls is what clients of the HTTPS listener start from.
func (s *server) tls() *tls.Config {
	s.t.Helper()
	return &tls.Config{RootCAs: s.roots(), MinVersion: tls.VersionTLS12}
}

// dial opens a session from a port of its own.
func (s *server) dial(opts ...dtls.ClientOption) (*session, error) {
	s.t.Helper()
	socket, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		s.t.Fatal(err)
	}
	return s.dialFrom(socket, 20*time.Second, opts...)
}

// dialWithin is dial that gives up when ctx is done.
func (s *server) dialWithin(ctx context.Context, opts ...dtls.ClientOption) (*session, error) {
	s.t.Helper()
	socket, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		s.t.Fatal(err)
	}
	return s.dialContext(ctx, socket, opts...)
}

// dialFrom opens a session from a socket, which is closed if there comes to be none.
func (s *server) dialFrom(socket net.PacketConn, within time.Duration, opts ...dtls.ClientOption) (*session, error) {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), within)
	defer cancel()
	return s.dialContext(ctx, socket, opts...)
}

func (s *server) dialContext(ctx context.Context, socket net.PacketConn, opts ...dtls.ClientOption) (*session, error) {
	s.t.Helper()
	return s.dialAt(ctx, s.at.CoAPUDP, socket, opts...)
}

// dialAt opens a session with another port than that of the gateway.
func (s *server) dialAt(ctx context.Context, at string, socket net.PacketConn, opts ...dtls.ClientOption) (*session, error) {
	s.t.Helper()
	to, err := net.ResolveUDPAddr("udp", at)
	if err != nil {
		s.t.Fatal(err)
	}
	opts = append([]dtls.ClientOption{dtls.WithRootCAs(s.roots()), dtls.WithServerName("localhost"), dtls.WithFlightInterval(300 * time.Millisecond)}, opts...)
	conn, err := dtls.ClientWithOptions(socket, to, opts...)
	if err == nil {
		err = conn.HandshakeContext(ctx)
	}
	if err != nil {
		socket.Close()
		return nil, err
	}
	c := &session{s: s, conn: conn, socket: socket}
	s.t.Cleanup(c.close)
	return c, nil
}

// mustDial is dial for a session that has to come to be.
func (s *server) mustDial(opts ...dtls.ClientOption) *session {
	s.t.Helper()
	c, err := s.dial(opts...)
	if err != nil {
		s.t.Fatalf("handshake: %v", err)
	}
	return c
}

func (c *session) close() {
	c.conn.Close()
	c.socket.Close()
}

// get makes a request and returns the answer, or an error when the session has
// ended or nothing comes. query is "name=value".
func (c *session) get(path string, query ...string) (coap.Message, error) {
	c.mid++
	m := coap.Message{Code: coap.GET, ID: c.mid, Token: []byte{byte(c.mid >> 8), byte(c.mid)}}
	m.Options = coap.Options{}.AddPath(path).AddUint(coap.Accept, uint32(coap.JSON))
	for _, q := range query {
		m.Options = m.Options.Add(coap.URIQuery, []byte(q))
	}
	buf := make([]byte, 8192)
	for range 5 { // UDP loses datagrams, on loopback too
		if _, err := c.conn.Write(m.Append(nil)); err != nil {
			return coap.Message{}, err
		}
		for {
			_ = c.conn.SetReadDeadline(time.Now().Add(2 * time.Second))
			n, err := c.conn.Read(buf)
			if timeout := net.Error(nil); errors.As(err, &timeout) && timeout.Timeout() {
				break
			} else if err != nil {
				return coap.Message{}, err
			}
			if got, err := coap.Parse(bytes.Clone(buf[:n])); err == nil && bytes.Equal(got.Token, m.Token) && got.Code != coap.Empty {
				return got, nil
			}
		}
	}
	return coap.Message{}, fmt.Errorf("no answer to GET %s", path)
}

// whoami asks who the session belongs to.
func (c *session) whoami() (who, error) {
	m, err := c.get("/whoami")
	if err != nil {
		return who{}, err
	}
	if m.Code != coap.Content {
		return who{}, fmt.Errorf("%v %s", m.Code, m.Payload)
	}
	return c.s.whoami(string(m.Payload)), nil
}

// ended waits until the server has closed the session, and says when.
func (c *session) ended() time.Time {
	_ = c.conn.SetReadDeadline(time.Now().Add(patience))
	buf := make([]byte, 8192)
	for {
		if _, err := c.conn.Read(buf); err != nil {
			if timeout := net.Error(nil); errors.As(err, &timeout) && timeout.Timeout() {
				c.s.t.Error("the session was not closed")
			}
			return time.Now()
		}
	}
}

// isDevice fails the test if w is not the device with this id, proven by a
// credential of this kind.
func (w who) isDevice(s *server, device, kind string) {
	s.t.Helper()
	if w.Device != device || w.Credential.Kind != kind {
		s.t.Errorf("got %+v, want device %s proven by its %s", w, device, kind)
	}
}

// refusedOverCoAP fails the test if what one of libcoap's clients printed is an
// answer with content.
func refusedOverCoAP(s *server, r result) {
	s.t.Helper()
	if strings.Contains(r.all(), "organisation") {
		s.t.Errorf("got %q, want it refused", r.all())
	}
}
