package pki

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"slices"
	"strings"
	"time"

	"keystead/fault"
	"keystead/id"
	"keystead/store"
)

// serverCertificate is the server's own certificate and where its key is.
type serverCertificate struct {
	Serial Serial   `cbor:"serial"`
	Key    string   `cbor:"key"`
	Names  []string `cbor:"names"`
}

var serverCertificates = store.NewTable[serverCertificate]("server certificate")

// ServerCertificate returns the certificate the server shows on every listener,
// for DNS names and addresses, with its chain. One that is kept is taken if it is for
// those names and has a third of its time left, else one is issued by the CA
// the organisation issues from: call it now and then, and swap what it returns.
func (s *Service) ServerCertificate(ctx context.Context, org string, names []string) (*tls.Certificate, error) {
	names = slices.Clone(names)
	slices.Sort(names)
	names = slices.Compact(names)
	var kept serverCertificate
	var c Certificate
	err := s.DB.View(ctx, func(tx store.Tx) (err error) {
		if kept, err = serverCertificates.Get(tx, org); err != nil {
			return err
		}
		c, err = certificates.Get(tx, string(kept.Serial))
		return err
	})
	if err != nil && !fault.Is(err, fault.NotFound) {
		return nil, err
	}
	if err == nil && slices.Equal(kept.Names, names) && c.State == CertActive && s.lasts(&c) {
		if ca, err := s.authority(ctx, c.CA); err == nil && ca.State == CAActive {
			return s.withKey(ctx, c, kept.Key)
		}
	}
	return s.newServerCertificate(ctx, org, names, kept.Key)
}

// lasts reports whether a third of a certificate's time is left.
func (s *Service) lasts(c *Certificate) bool {
	return c.NotAfter.Sub(s.Now()) > c.NotAfter.Sub(c.NotBefore)/3
}

func (s *Service) newServerCertificate(ctx context.Context, org string, names []string, oldKey string) (*tls.Certificate, error) {
	profile, _ := builtinNamed(ServerProfile)
	keyName := id.New(s.Now())
	key, err := s.Keys.Create(ctx, keyName, P256)
	if err != nil {
		return nil, err
	}
	subject := Subject{CommonName: "Keystead"}
	if len(names) > 0 && len(names[0]) <= maxCommonNa {
		subject.CommonName = names[0]
	}
	request := Request{Org: org, Profile: profile, Public: key.Public(), Subject: &subject}
	for _, name := range names {
		request.SANs = append(request.SANs, sanOf(name))
	}
	p, err := s.Prepare(ctx, request)
	if err != nil {
		return nil, err
	}
	c, err := s.Issue(ctx, p, func(_ context.Context, tx store.Tx, c *Certificate) error {
		return serverCertificates.Set(tx, org, serverCertificate{Serial: c.Serial, Key: keyName, Names: names})
	})
	if err != nil {
		return nil, err
	}
	if oldKey != "" {
		if err := s.Keys.Delete(ctx, oldKey); err != nil {
			return nil, err
		}
	}
	return s.withKey(ctx, c, keyName)
}

func sanOf(name string) string {
	if strings.ContainsFunc(name, func(r rune) bool { return (r < '0' || r > '9') && r != '.' }) && !strings.Contains(name, ":") {
		return "DNS:" + name
	}
	return "IP:" + name
}

// withKey is a certificate with its chain, without the root, and its key.
func (s *Service) withKey(ctx context.Context, c Certificate, keyName string) (*tls.Certificate, error) {
	key, err := s.Keys.Signer(ctx, keyName)
	if err != nil {
		return nil, err
	}
	leaf, err := c.Parse()
	if err != nil {
		return nil, fmt.Errorf("pki: server certificate: %w", err)
	}
	out := &tls.Certificate{Certificate: [][]byte{c.DER}, PrivateKey: key, Leaf: leaf}
	path, err := s.Path(ctx, c.CA)
	if err != nil {
		return nil, err
	}
	for _, above := range path {
		if !isSelfSigned(above) {
			out.Certificate = append(out.Certificate, above.Raw)
		}
	}
	return out, nil
}

// RenewAt is when ServerCertificate would issue a new one in place of cert.
func RenewAt(cert *x509.Certificate) time.Time {
	return cert.NotAfter.Add(-cert.NotAfter.Sub(cert.NotBefore) / 3)
}
