package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"sync"

	"github.com/pion/dtls/v3"
	dtlsnet "github.com/pion/dtls/v3/pkg/net"
	"github.com/pion/logging"

	"keystead/lwm2m"
	"keystead/outbound"
)

// probeLwM2M asks an LwM2M server whether it is well. It connects only where the
// server's other requests may.
func (s *Server) probeLwM2M(ctx context.Context, v lwm2m.Server) error {
	if v.Health.Kind == lwm2m.HealthHTTP {
		return s.getHealth(ctx, v.Health.URL)
	}
	u, err := url.Parse(v.URL)
	if err != nil {
		return err
	}
	port := u.Port()
	if port == "" {
		port = "5684" // of coaps and of coaps+tcp (RFC 7252, 12.8; RFC 8323, 11.2)
	}
	hosts, err := net.DefaultResolver.LookupNetIP(ctx, "ip", u.Hostname())
	if err != nil {
		return errors.New("the host name does not resolve")
	}
	for _, host := range hosts {
		at, err := netip.ParseAddrPort(net.JoinHostPort(host.Unmap().String(), port))
		if err == nil && s.isOwn(at) {
			return nil // who asks is who would answer
		}
	}
	network := map[string]string{"coaps": "udp", "coaps+tcp": "tcp"}[u.Scheme]
	conn, err := s.guard().Dialer().DialContext(ctx, network, net.JoinHostPort(u.Hostname(), port))
	if err != nil {
		return err
	}
	defer conn.Close()
	if network == "tcp" {
		return tlsPing(ctx, conn)
	}
	return dtlsPing(ctx, conn)
}

func (s *Server) getHealth(ctx context.Context, at string) error {
	client := s.lwm2mClient()
	defer client.Close()
	answer, err := client.Do(ctx, outbound.Request{Method: http.MethodGet, URL: at})
	if err == nil && !answer.OK() {
		err = fmt.Errorf("the health check answered %d", answer.Status)
	}
	return err
}

// tlsPing reports whether somebody speaks TLS at the other end. Who that is does
// not matter: nothing is said to them.
func tlsPing(ctx context.Context, conn net.Conn) error {
	err := tls.Client(conn, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12}).HandshakeContext(ctx) //nolint:gosec // G402: as above
	if _, alerted := errors.AsType[tls.AlertError](err); alerted {
		return nil
	}
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "remote error" {
		return nil // an alert is an answer, too
	}
	return err
}

// dtlsPing sends the first message of a handshake and reports whether anything
// of DTLS comes back, which a server says to anybody. It goes no further.
func dtlsPing(ctx context.Context, conn net.Conn) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	listening := &attentive{Conn: conn, heard: make(chan struct{})}
	client, err := dtls.ClientWithOptions(dtlsnet.PacketConnFromConn(listening), conn.RemoteAddr(),
		dtls.WithPSK(func([]byte) ([]byte, error) { return []byte("nobody's"), nil }),
		dtls.WithPSKIdentityHint([]byte("health")),
		dtls.WithCipherSuites(dtls.TLS_PSK_WITH_AES_128_CCM_8, dtls.TLS_PSK_WITH_AES_128_GCM_SHA256),
		dtls.WithLoggerFactory(&logging.DefaultLoggerFactory{Writer: io.Discard, DefaultLogLevel: logging.LogLevelDisabled}),
	)
	if err != nil {
		return err
	}
	ended := make(chan struct{})
	var failed error
	go func() {
		defer close(ended)
		failed = client.HandshakeContext(ctx)
	}()
	select {
	case <-listening.heard:
		cancel()
	case <-ended:
	}
	<-ended
	select {
	case <-listening.heard:
		return nil
	default:
		return fmt.Errorf("no answer to the first message of a handshake: %w", failed)
	}
}

// attentive notes that something of DTLS was heard.
type attentive struct {
	net.Conn

	once  sync.Once
	heard chan struct{}
}

func (a *attentive) Read(b []byte) (int, error) {
	n, err := a.Conn.Read(b)
	if n >= 13 && b[0] >= 20 && b[0] <= 25 && b[1] == 0xfe { // the head of a record (RFC 6347, 4.1)
		a.once.Do(func() { close(a.heard) })
	}
	return n, err
}
