package server

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync/atomic"
	"time"

	"keystead/config"
)

// tlsIdentity is what the server proves itself with, the same on every listener: a
// certificate of its own CA, and one from elsewhere if there is one. Each is swapped
// whole: a handshake sees the old one or the new one, and open connections keep
// what they have.
type tlsIdentity struct {
	own     atomic.Pointer[tls.Certificate]
	outside atomic.Pointer[tls.Certificate]
}

// get is a tls.Config's GetCertificate. A client that connects to an address sends no name,
// and is shown what stands for the address it has reached.
func (t *tlsIdentity) get(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	name := hello.ServerName
	if name == "" && hello.Conn != nil {
		name, _, _ = net.SplitHostPort(hello.Conn.LocalAddr().String()) // none is none
	}
	return t.named(name)
}

// named returns the certificate for the name a client asks for (RFC 6066, 3), "" if it asks for
// none. The one from elsewhere stands for all names but those that only the own one has: devices
// inside trust the server's CA and know it by another name than the world does.
func (t *tlsIdentity) named(name string) (*tls.Certificate, error) {
	own, outside := t.own.Load(), t.outside.Load()
	switch {
	case outside == nil && own == nil:
		return nil, errors.New("server: no certificate yet")
	case outside == nil:
		return own, nil
	case own != nil && name != "" && fits(own, name) && !fits(outside, name):
		return own, nil
	}
	return outside, nil
}

func fits(c *tls.Certificate, name string) bool { return c.Leaf.VerifyHostname(name) == nil }

// datagrams is named for DTLS, whose suites here take ECDSA and no RSA.
func (t *tlsIdentity) datagrams(name string) (*tls.Certificate, error) {
	c, err := t.named(name)
	if own := t.own.Load(); err == nil && own != nil && c.Leaf.PublicKeyAlgorithm == x509.RSA {
		return own, nil
	}
	return c, err
}

// first returns the certificate that ends first, nil if there is none.
func (t *tlsIdentity) first() *tls.Certificate {
	own, outside := t.own.Load(), t.outside.Load()
	if own == nil || outside != nil && outside.Leaf.NotAfter.Before(own.Leaf.NotAfter) {
		return outside
	}
	return own
}

// config is what the HTTPS listener speaks. Clients are asked for a certificate
// and may come without, or with one nobody here has signed: each request
// resolves its caller, resumed sessions included, and EST has its own rules for
// certificates of manufacturers and expired ones.
func (t *tlsIdentity) config(c config.TLS) *tls.Config {
	least := uint16(tls.VersionTLS12)
	if c.MinVersion == "1.3" {
		least = tls.VersionTLS13
	}
	return &tls.Config{
		MinVersion:     least,
		GetCertificate: t.get,
		ClientAuth:     tls.RequestClientCert,
		// strongSwan's EST client fails now and then on an answer that comes in two records.
		DynamicRecordSizingDisabled: true,
		NextProtos:                  []string{"h2", "http/1.1"},
		CipherSuites: []uint16{ // of TLS 1.2: forward secret and authenticated only
			tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
			tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
			tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
			tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
			tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
			tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
		},
	}
}

// fileCheck is how often the files of a certificate from elsewhere are looked at.
const fileCheck = 10 * time.Second

// certificateFiles is a certificate from elsewhere: two files that somebody else
// renews.
type certificateFiles struct {
	certificate, key string
	seen             []byte // what was in them when they were taken
}

// load returns what is in the files, nil if that has not changed.
func (f *certificateFiles) load() (*tls.Certificate, error) {
	certificate, err := os.ReadFile(f.certificate)
	if err != nil {
		return nil, fmt.Errorf("tls.certificate: %w", err)
	}
	key, err := os.ReadFile(f.key)
	if err != nil {
		return nil, fmt.Errorf("tls.key: %w", err)
	}
	seen := append(append(bytes.Clone(certificate), 0), key...)
	if bytes.Equal(seen, f.seen) {
		return nil, nil
	}
	pair, err := tls.X509KeyPair(certificate, key) // whose halves belong together
	if err != nil {
		return nil, fmt.Errorf("tls.certificate and tls.key: %w", err)
	}
	if pair.Leaf == nil {
		if pair.Leaf, err = x509.ParseCertificate(pair.Certificate[0]); err != nil {
			return nil, fmt.Errorf("tls.certificate: %w", err)
		}
	}
	f.seen = seen
	return &pair, nil
}

// buildTLS takes the certificate from elsewhere, if there is one. It is an error
// at the start if it cannot be; later the one that was there is kept.
func (s *Server) buildTLS(context.Context) error {
	c := s.Config.TLS
	if c.Certificate == "" {
		return nil
	}
	files := &certificateFiles{certificate: s.Config.Path(c.Certificate), key: s.Config.Path(c.Key)}
	pair, err := files.load()
	if err != nil {
		return err
	}
	s.tls.outside.Store(pair)
	s.swapTLS = func() error {
		pair, err := files.load()
		if err != nil || pair == nil {
			return err
		}
		s.tls.outside.Store(pair)
		s.Log.Info("the server's certificate was changed", slog.Time("not_after", pair.Leaf.NotAfter))
		return nil
	}
	s.every("certificate files", fileCheck, func(context.Context, time.Time) error { return s.swapTLS() })
	return nil
}
