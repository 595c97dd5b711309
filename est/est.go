// Package est enrols devices: Enrollment over Secure Transport over HTTPS (RFC
// 7030, 8951, 9908) and over CoAP (RFC 9148), with the same operations behind
// both.
//
// Who may enrol, how they prove it, what they are issued and what device comes of
// it is said by enrolment profiles, [DMS]; the label in a request's path names one.
package est

import (
	"context"
	"crypto/x509"
	"log/slog"
	"net/netip"
	"time"

	"keystead/audit"
	"keystead/devices"
	"keystead/fault"
	"keystead/identity"
	"keystead/outbound"
	"keystead/pki"
	"keystead/store"
)

// Service is the EST server of all organisations.
type Service struct {
	DB      store.Engine
	Audit   *audit.Log
	Devices *devices.Service
	PKI     *pki.Service
	Log     *slog.Logger
	Now     func() time.Time
	Config  Config
	Box     pki.Box // seals the secrets of webhooks

	// Guard says where webhooks may lead.
	Guard outbound.Guard
	// SystemCA returns the certificates that the server's own leads to.
	SystemCA func(ctx context.Context) ([]*x509.Certificate, error)
	// JWT verifies a bearer token for an organisation and returns its claims;
	// nil if no issuer is known. Faults are Unauthenticated.
	JWT func(ctx context.Context, org, token string) (map[string]any, error)
	// DefaultOrg is the organisation whose default DMS answers where no label
	// is given.
	DefaultOrg string

	counters counters
	profiles store.Memo[DMS]
}

// Operation is one of EST's operations.
type Operation string

// The operations that issue.
const (
	SimpleEnroll   Operation = "simpleenroll"
	SimpleReenroll Operation = "simplereenroll"
	ServerKeygen   Operation = "serverkeygen"
)

// Call is what a transport saw of a request.
type Call struct {
	Label     string
	Operation Operation
	Transport identity.Transport
	Chain     []*x509.Certificate // of the client, unverified; the handshake proved the key of the first
	Device    string              // that the session itself proved by a pre-shared key
	Scheme    string              // of the Authorization: "Basic" or "Bearer"
	Value     string              // "user:password", or the token
	URL       string              // as it was asked for
	Header    map[string]string
	Remote    netip.Addr
	Binding   func() ([][]byte, bool) // channel binding values a client may have sent; whether a mismatch is provable

	trial bool // it is only to be told what would come of it: nobody is asked, nothing is counted
}

// Issued is the answer to an enrolment.
type Issued struct {
	Certificate *x509.Certificate
	Record      pki.Certificate
	Key         []byte // PKCS#8, of server key generation
	EncryptedTo []byte // CMS with the key, where the client asked for that
	Base64      string // how its DMS wants answers written
}

// PendingError is the error of an enrolment that waits for an administrator.
type PendingError struct {
	ID         string
	RetryAfter time.Duration
}

// Error says that somebody has to approve.
func (p *PendingError) Error() string {
	return "the enrolment waits for approval; repeat the request later"
}

// RetryAfter is how long a client waits between asking whether it was approved.
const retryAfter = 10 * time.Second

// CACerts returns the certificates a client of a DMS is to know: of the CA it is
// enrolled by up to the root, those that link old and new roots, and what else
// the DMS hands out.
func (s *Service) CACerts(ctx context.Context, label string) ([]*x509.Certificate, error) {
	d, err := s.labelled(ctx, label)
	if err != nil {
		return nil, err
	}
	var all certSet
	settings := d.Settings.CADistribution
	if settings.IncludeSystemCA && s.SystemCA != nil {
		own, err := s.SystemCA(ctx)
		if err != nil {
			return nil, err
		}
		all.add(own...)
	}
	for _, ca := range settings.ManagedCAs {
		path, err := s.PKI.Distribution(ctx, pki.CAID(ca))
		if fault.Is(err, fault.NotFound) {
			continue
		}
		if err != nil {
			return nil, err
		}
		all.add(path...)
	}
	if settings.IncludeEnrollmentCA || len(all) == 0 {
		ca, err := s.enrolmentCA(ctx, &d)
		if err != nil {
			return nil, err
		}
		path, err := s.PKI.Distribution(ctx, ca)
		if err != nil {
			return nil, err
		}
		all.add(path...)
	}
	return all, nil
}

type certSet []*x509.Certificate

func (set *certSet) add(certs ...*x509.Certificate) {
	for _, c := range certs {
		known := false
		for _, has := range *set {
			known = known || has.Equal(c)
		}
		if !known {
			*set = append(*set, c)
		}
	}
}

// enrolmentCA is the CA a DMS issues from: its own, or its organisation's.
func (s *Service) enrolmentCA(ctx context.Context, d *DMS) (pki.CAID, error) {
	if ca := d.Settings.Enrollment.EnrollmentCA; ca != "" {
		return s.PKI.Latest(ctx, pki.CAID(ca))
	}
	ca, err := s.PKI.DefaultCA(systemIn(ctx, d.Org))
	return ca.ID, err
}

// systemIn is ctx with the server itself as the actor, in an organisation.
func systemIn(ctx context.Context, org string) context.Context {
	return identity.NewContext(ctx, identity.Actor{Kind: identity.System, ID: "est", Org: org})
}
