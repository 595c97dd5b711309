package pki

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"keystead/audit"
	"keystead/fault"
	"keystead/id"
	"keystead/page"
	"keystead/store"
)

// CA is a certificate authority of an organisation.
type CA struct {
	ID           CAID            `cbor:"id"`
	Org          string          `cbor:"org"`
	Name         string          `cbor:"name"`
	Kind         CAKind          `cbor:"kind"`
	State        CAState         `cbor:"state"`
	Parent       CAID            `cbor:"parent,omitempty"` // "" for roots and for what an outside CA signed
	Certificate  []byte          `cbor:"cert,omitempty"`   // DER; none while pending
	Chain        [][]byte        `cbor:"chain,omitempty"`  // certificates of outside CAs above it, the nearest first
	Cross        [][]byte        `cbor:"cross,omitempty"`  // of a root that replaced another: new with old, old with new
	Request      []byte          `cbor:"csr,omitempty"`    // while pending: what the outside CA is to sign
	SubjectKeyID string          `cbor:"ski,omitempty"`    // hex
	Key          string          `cbor:"key,omitempty"`    // in the key store; none of a CA that only validates
	Algorithm    Algorithm       `cbor:"alg,omitempty"`
	Shards       int             `cbor:"shards,omitempty"`
	Predecessor  CAID            `cbor:"before,omitempty"`
	Successor    CAID            `cbor:"after,omitempty"`
	Imported     bool            `cbor:"imported,omitempty"`
	Check        RevocationCheck `cbor:"check,omitempty"` // of certificates that were not issued here
	NotBefore    time.Time       `cbor:"nb,omitzero"`
	NotAfter     time.Time       `cbor:"na,omitzero"`
	CreatedAt    time.Time       `cbor:"created"`
	RevokedAt    time.Time       `cbor:"revoked,omitzero"`
	Reason       Reason          `cbor:"reason,omitempty"`
	Metadata     json.RawMessage `cbor:"meta,omitempty"` // what people note of it: a JSON object
}

// CAKind is what a CA is for.
type CAKind string

// The kinds of CAs.
const (
	Root         CAKind = "root"
	Intermediate CAKind = "intermediate"
	Validating   CAKind = "validation" // its certificates are recognised, it issues nothing here
)

// CAState is what a CA may do.
type CAState string

// The states of a CA. Expired is shown for one whose time is over.
const (
	CAPending  CAState = "pending"  // waits for its certificate from an outside CA
	CAActive   CAState = "active"   // issues
	CARetiring CAState = "retiring" // issues no more; what it issued is good
	CAExpired  CAState = "expired"
	CARevoked  CAState = "revoked" // nothing it issued is good
)

// Limits on CAs.
const (
	defaultShards = 128
	maxShards     = 4096
	rootYears     = 20
	issuingYears  = 10
	maxChain      = 4 // CAs above a leaf
	maxCertBytes  = 64 << 10
)

var cas = store.NewTable("ca",
	store.Index[CA]{Name: "org", Counted: true, Terms: func(c CA) []store.Term { return store.Terms(c.Org) }},
	store.Index[CA]{Name: "ski", Terms: func(c CA) []store.Term {
		if c.SubjectKeyID == "" {
			return nil
		}
		return store.Terms(c.SubjectKeyID)
	}},
	store.Index[CA]{Name: "parent", Counted: true, Terms: func(c CA) []store.Term {
		if c.Parent == "" {
			return nil
		}
		return store.Terms(string(c.Parent))
	}},
).Watched()

// defaults is which CA an organisation issues from where nothing else is said.
type defaults struct {
	Issuing CAID `cbor:"issuing"`
}

var orgDefaults = store.NewTable[defaults]("pki default").Watched()

// StateAt is the state of the CA at now.
func (c *CA) StateAt(now time.Time) CAState {
	if (c.State == CAActive || c.State == CARetiring) && now.After(c.NotAfter) {
		return CAExpired
	}
	return c.State
}

// authority is a CA with its certificate parsed.
type authority struct {
	CA
	cert *x509.Certificate
}

// NewCA is what a CA is made from.
type NewCA struct {
	Name      string // of the CA; its common name too, where Subject has none
	Subject   Subject
	Parent    CAID // "" makes a root
	Algorithm Algorithm
	Validity  Validity // zero for the usual years
	Shards    int      // of its CRL; 0 for the usual number
	PathLen   int      // of an intermediate: how many CAs may be below it
	Permitted []string // DNS names its certificates must be within; none for no limit
	Outside   bool     // make a request for an outside CA to sign, instead of a certificate
	keep      func(tx store.Tx, ca CA) error
}

// EnsureOrg gives an organisation a root and an issuing CA, if it has none yet,
// and returns the issuing one.
func (s *Service) EnsureOrg(ctx context.Context, org, name string) (CA, error) {
	if ca, err := s.defaultCA(ctx, org); !fault.Is(err, fault.NotFound) {
		return ca, err
	}
	root, err := s.createCA(ctx, org, NewCA{Name: name + " root CA"})
	if err != nil {
		return CA{}, err
	}
	return s.createCA(ctx, org, NewCA{Name: name + " issuing CA", Parent: root.ID, keep: func(tx store.Tx, ca CA) error {
		return orgDefaults.Set(tx, org, defaults{Issuing: ca.ID})
	}})
}

// DefaultCA returns the CA the actor's organisation issues from where nothing
// else is said, or a NotFound fault.
func (s *Service) DefaultCA(ctx context.Context) (CA, error) { return s.defaultCA(ctx, orgOf(ctx)) }

func (s *Service) defaultCA(ctx context.Context, org string) (ca CA, err error) {
	d, err := s.defaults.Latest(ctx, s.DB, orgDefaults, org)
	if fault.Is(err, fault.NotFound) {
		return ca, fault.New(fault.NotFound, "the organisation has no issuing CA yet; create one")
	}
	if err != nil {
		return ca, err
	}
	return s.records.Latest(ctx, s.DB, cas, string(d.Issuing))
}

// SetDefaultCA has the actor's organisation issue from ca where nothing else is said.
func (s *Service) SetDefaultCA(ctx context.Context, ca CAID) error {
	return s.DB.Update(ctx, func(tx store.Tx) error {
		record, err := s.caIn(ctx, tx, ca)
		if err != nil {
			return err
		}
		if record.Key == "" || record.State != CAActive {
			return fault.New(fault.Conflict, "the CA does not issue; it must be active and have its key here")
		}
		if err := orgDefaults.Set(tx, record.Org, defaults{Issuing: ca}); err != nil {
			return err
		}
		return s.Audit.Append(ctx, tx, audit.Entry{Action: "ca.default", Target: string(ca), Org: record.Org})
	})
}

// CreateCA makes a CA in the actor's organisation: a root, or an intermediate
// below one of its CAs, or the request for an outside CA to sign.
func (s *Service) CreateCA(ctx context.Context, n NewCA) (CA, error) {
	return s.createCA(ctx, orgOf(ctx), n)
}

func (n *NewCA) check() error {
	var bad []fault.Field
	if n.Name == "" || len(n.Name) > 64 {
		bad = append(bad, fault.Field{Name: "name", Message: "must have 1 to 64 characters"})
	}
	if n.Algorithm == "" {
		n.Algorithm = P256
	}
	if !algorithmOfCA(n.Algorithm) {
		bad = append(bad, fault.Field{Name: "algorithm", Message: "must be ecdsa-p256, ecdsa-p384, ed25519, rsa-2048, rsa-3072 or rsa-4096"})
	}
	if n.Shards == 0 {
		n.Shards = defaultShards
	}
	if n.Shards < 1 || n.Shards > maxShards {
		bad = append(bad, fault.Field{Name: "shards", Message: "must be 1 to 4096"})
	}
	if n.PathLen < 0 || n.PathLen >= maxChain {
		bad = append(bad, fault.Field{Name: "path_length", Message: "must be 0 to 3"})
	}
	if n.Subject.CommonName == "" {
		n.Subject.CommonName = n.Name
	}
	return fault.InvalidFields(bad...)
}

func algorithmOfCA(alg Algorithm) bool { return slices.Contains(CAAlgorithms, alg) }

func (s *Service) createCA(ctx context.Context, org string, n NewCA) (CA, error) {
	if err := n.check(); err != nil {
		return CA{}, err
	}
	subject, err := n.Subject.der()
	if err != nil {
		return CA{}, err
	}
	if err := s.NoSecret(ctx, subject); err != nil {
		return CA{}, err
	}
	now := s.Now().UTC()
	ca := CA{ID: CAID(id.New(now)), Org: org, Name: n.Name, Kind: Root, State: CAActive, Parent: n.Parent, Algorithm: n.Algorithm, Shards: n.Shards, CreatedAt: now}
	ca.Key = string(ca.ID)
	var parent *authority
	if n.Parent != "" {
		p, err := s.issuer(ctx, org, n.Parent)
		if err != nil {
			return CA{}, err
		}
		parent, ca.Kind = p, Intermediate
	}
	key, err := s.Keys.Create(ctx, ca.Key, n.Algorithm)
	if err != nil {
		return CA{}, err
	}
	if err := s.certifyCA(ctx, &ca, n, parent, key); err != nil {
		return CA{}, errors.Join(err, s.Keys.Delete(ctx, ca.Key))
	}
	return ca, s.DB.Update(ctx, func(tx store.Tx) error {
		if err := s.insertCA(ctx, tx, ca, "ca.create"); err != nil {
			return err
		}
		if n.keep != nil {
			return n.keep(tx, ca)
		}
		return nil
	})
}

func (s *Service) insertCA(ctx context.Context, tx store.Tx, ca CA, action string) error {
	if err := cas.Insert(tx, string(ca.ID), ca); err != nil {
		return err
	}
	return s.Audit.Append(ctx, tx, audit.Entry{Action: action, Target: string(ca.ID), Org: ca.Org, Detail: map[string]string{
		"name": ca.Name, "kind": string(ca.Kind), "algorithm": string(ca.Algorithm),
	}})
}

// certifyCA gives a new CA its certificate, or the request for one.
func (s *Service) certifyCA(ctx context.Context, ca *CA, n NewCA, parent *authority, key crypto.Signer) error {
	if n.Outside {
		der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: n.Subject.name()}, key)
		if err != nil {
			return fmt.Errorf("pki: request of CA: %w", err)
		}
		ca.Kind, ca.State, ca.Request = Intermediate, CAPending, der
		ca.SubjectKeyID = hex.EncodeToString(keyID(key.Public()))
		return nil
	}
	t, err := s.caTemplate(ca, n, parent, key.Public())
	if err != nil {
		return err
	}
	signer := key
	if parent != nil {
		if signer, err = s.Keys.Signer(ctx, parent.Key); err != nil {
			return err
		}
	}
	cert, err := t.sign(signer)
	if err != nil {
		return err
	}
	ca.take(cert)
	return nil
}

// take notes in the record what the certificate says.
func (c *CA) take(cert *x509.Certificate) {
	c.Certificate, c.Request = cert.Raw, nil
	c.NotBefore, c.NotAfter = cert.NotBefore, cert.NotAfter
	c.SubjectKeyID = hex.EncodeToString(subjectKeyID(cert))
	c.Algorithm = AlgorithmOf(cert.PublicKey)
}

func (s *Service) caTemplate(ca *CA, n NewCA, parent *authority, public any) (*template, error) {
	now := s.Now().UTC()
	years, limit, pathLen := rootYears, Indefinite, -1
	if parent != nil {
		years, limit, pathLen = issuingYears, parent.NotAfter, n.PathLen
		if parent.cert.MaxPathLenZero || parent.cert.MaxPathLen > 0 && n.PathLen >= parent.cert.MaxPathLen {
			return nil, fault.New(fault.Conflict, "the parent may not have that many CAs below it (path length)")
		}
	}
	p := Profile{Validity: n.Validity}
	if p.Validity.Type == "" {
		p.Validity = Validity{Type: "Time", Time: now.AddDate(years, 0, 0)}
	}
	notAfter, err := p.notAfter(now, limit)
	if err != nil {
		return nil, err
	}
	t := &template{serial: newSerial(now), notBefore: now.Add(-backdate).Truncate(time.Second), notAfter: notAfter, public: public}
	if t.subject, err = n.Subject.der(); err != nil {
		return nil, err
	}
	t.issuer, t.authorityKeyID = t.subject, keyID(public)
	t.algorithm = ca.Algorithm
	if parent != nil {
		t.issuer, t.authorityKeyID, t.algorithm = parent.cert.RawSubject, subjectKeyID(parent.cert), parent.Algorithm
		t.addPointers(s.PublicHTTP, &parent.CA, 0)
	}
	t.addCA(public, pathLen, n.Permitted)
	return t, nil
}

// issuer returns a CA of org that may issue now.
func (s *Service) issuer(ctx context.Context, org string, ca CAID) (*authority, error) {
	a, err := s.authority(ctx, ca)
	if err != nil {
		return nil, err
	}
	switch {
	case a.Org != org:
		return nil, notFound("ca")
	case a.Key == "":
		return nil, fault.New(fault.Conflict, "the CA only validates; its key is not here")
	case a.StateAt(s.Now()) != CAActive:
		return nil, fault.New(fault.Conflict, "the CA is %s and issues nothing", a.StateAt(s.Now()))
	}
	return a, nil
}

// authority returns a CA with its certificate, from memory where it can.
func (s *Service) authority(ctx context.Context, ca CAID) (*authority, error) {
	if a, ok := s.loaded.Load(ca); ok {
		return a.(*authority), nil //nolint:errcheck,forcetypeassert // only these are stored
	}
	since := s.verified.now()
	var record CA
	err := s.DB.View(ctx, func(tx store.Tx) (err error) {
		record, err = cas.Get(tx, string(ca))
		return err
	})
	if err != nil {
		return nil, err
	}
	a, err := parseAuthority(record)
	if err != nil {
		return nil, err
	}
	s.loaded.Store(ca, a)
	if s.verified.now() != since { // it may be what a change has replaced meanwhile
		s.loaded.Delete(ca)
	}
	return a, nil
}

func parseAuthority(record CA) (*authority, error) {
	a := &authority{CA: record}
	if record.Certificate == nil {
		return a, nil
	}
	cert, err := x509.ParseCertificate(record.Certificate)
	if err != nil {
		return nil, fmt.Errorf("pki: certificate of CA %s: %w", record.ID, err)
	}
	a.cert = cert
	return a, nil
}

// changedCA forgets what is in memory of a CA once tx is durable. Whatever was
// verified before is verified anew, and open connections resolve again.
func (s *Service) changedCA(tx store.Tx, ca CAID) {
	tx.OnCommit(func() {
		s.verified.clear()
		s.loaded.Delete(ca)
		s.Devices.MoveEpoch()
	})
}

// CA returns a CA of the actor's organisation, or a NotFound fault.
func (s *Service) CA(ctx context.Context, ca CAID) (record CA, err error) {
	err = s.DB.View(ctx, func(tx store.Tx) error {
		record, err = s.caIn(ctx, tx, ca)
		return err
	})
	return record, err
}

func (s *Service) caIn(ctx context.Context, tx store.Tx, ca CAID) (CA, error) {
	record, err := cas.Get(tx, string(ca))
	if err == nil && !sees(ctx, record.Org) {
		return CA{}, notFound("ca")
	}
	return record, err
}

// CAs lists the CAs of the actor's organisation.
func (s *Service) CAs(ctx context.Context, r page.Request) (p page.Page[CA], err error) {
	err = s.DB.View(ctx, func(tx store.Tx) error {
		p, err = cas.PageBy(tx, "org", store.TermOf(orgOf(ctx)), r)
		return err
	})
	return p, err
}

// Path returns the certificates from a CA up to its root, the CA's own first.
func (s *Service) Path(ctx context.Context, ca CAID) ([]*x509.Certificate, error) {
	var path []*x509.Certificate
	for range maxChain + 1 {
		a, err := s.authority(ctx, ca)
		if err != nil {
			return nil, err
		}
		if a.cert == nil {
			return nil, fault.New(fault.Conflict, "the CA has no certificate yet")
		}
		path = append(path, a.cert)
		if a.Parent == "" {
			for _, der := range a.Chain {
				above, err := x509.ParseCertificate(der)
				if err != nil {
					return nil, fmt.Errorf("pki: chain of CA %s: %w", a.ID, err)
				}
				path = append(path, above)
			}
			return path, nil
		}
		ca = a.Parent
	}
	return nil, fmt.Errorf("pki: the CAs above %s make a circle", ca)
}

// ByKeyID returns the CAs of any organisation with a subject key id, in hex.
func (s *Service) byKeyID(tx store.Tx, ski string) ([]CA, error) {
	p, err := cas.PageBy(tx, "ski", store.TermOf(strings.ToLower(ski)), page.Request{Limit: page.MaxLimit})
	return p.Items, err
}

func isSelfSigned(cert *x509.Certificate) bool {
	return bytes.Equal(cert.RawSubject, cert.RawIssuer) && cert.CheckSignatureFrom(cert) == nil
}
