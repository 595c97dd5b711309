package server

import (
	"crypto/tls"
	"errors"
	"sync/atomic"
)

// tlsIdentity is the server's own certificate, the same on every listener. It
// is swapped whole: a handshake sees the old one or the new one, and open
// connections keep what they have.
type tlsIdentity struct {
	current atomic.Pointer[tls.Certificate]
}

func (t *tlsIdentity) set(c *tls.Certificate) { t.current.Store(c) }

// get is a tls.Config's GetCertificate.
func (t *tlsIdentity) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	if c := t.current.Load(); c != nil {
		return c, nil
	}
	return nil, errors.New("server: no certificate yet")
}

// config is what the HTTPS listener speaks. Clients are asked for a certificate
// and may come without, or with one nobody here has signed: each request
// resolves its caller, resumed sessions included, and EST has its own rules for
// certificates of manufacturers and expired ones.
func (t *tlsIdentity) config() *tls.Config {
	return &tls.Config{
		MinVersion:     tls.VersionTLS12,
		GetCertificate: t.get,
		ClientAuth:     tls.RequestClientCert,
		// An EST answer in one record: some clients are lost on several.
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
