package pki

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"iter"
	"slices"
	"time"

	"keystead/fault"
	"keystead/page"
	"keystead/store"
)

// Certificate is one certificate in the inventory.
type Certificate struct {
	Serial      Serial           `cbor:"serial"` // of one issued here; names the record
	CA          CAID             `cbor:"ca"`
	Org         string           `cbor:"org"`
	Device      string           `cbor:"device,omitempty"`
	Profile     string           `cbor:"profile,omitempty"`
	DMS         string           `cbor:"dms,omitempty"`
	State       CertificateState `cbor:"state"`
	DER         []byte           `cbor:"der"`
	Subject     string           `cbor:"subject"`
	CommonName  string           `cbor:"cn,omitempty"`
	Fingerprint string           `cbor:"fp"`   // SHA-256 of the whole, hex
	KeyHash     string           `cbor:"spki"` // SHA-256 of its SubjectPublicKeyInfo, hex
	Algorithm   Algorithm        `cbor:"alg"`
	Shard       int              `cbor:"shard"`
	NotBefore   time.Time        `cbor:"nb"`
	NotAfter    time.Time        `cbor:"na"`
	IssuedAt    time.Time        `cbor:"issued"`
	RevokedAt   time.Time        `cbor:"revoked,omitzero"`
	Reason      Reason           `cbor:"reason,omitempty"`
	Shared      bool             `cbor:"shared,omitempty"`     // its profile lets devices share a key
	Flags       []string         `cbor:"flags,omitempty"`      // what an administrator may want to know of how it came about
	Supersedes  []Serial         `cbor:"supersedes,omitempty"` // to be revoked when this one is first used
	Replaces    Serial           `cbor:"replaces,omitempty"`   // the one it renews
	Request     []byte           `cbor:"request,omitempty"`    // recognises the request it answers, if that is repeated
	RenewFrom   time.Time        `cbor:"renew,omitzero"`       // when it is to be renewed; see Remind
	CriticalAt  time.Time        `cbor:"critical,omitzero"`    // when that becomes urgent
	Renewal     Renewal          `cbor:"renewal,omitempty"`    // which of them Sweep has seen pass
	Metadata    json.RawMessage  `cbor:"meta,omitempty"`       // what people note of it: a JSON object

	parsed *x509.Certificate // what was just signed
}

// CertificateState is what a certificate is worth, apart from its time.
type CertificateState string

// The states. Expired is shown for one whose time is over.
const (
	CertActive  CertificateState = "active"
	CertHold    CertificateState = "hold"
	CertRevoked CertificateState = "revoked"
	CertExpired CertificateState = "expired"
)

var certificates = store.NewTable("certificate",
	store.Index[Certificate]{Name: "org", Terms: func(c Certificate) []store.Term { return store.Terms(c.Org) }},
	store.Index[Certificate]{Name: "device", Terms: func(c Certificate) []store.Term {
		if c.Device == "" {
			return nil
		}
		return store.Terms(c.Org, c.Device)
	}},
	store.Index[Certificate]{Name: "ca", Counted: true, Terms: func(c Certificate) []store.Term { return store.Terms(string(c.CA)) }},
	store.Index[Certificate]{Name: "fingerprint", Unique: true, Terms: func(c Certificate) []store.Term { return store.Terms(c.Fingerprint) }},
	store.Index[Certificate]{Name: "key", Terms: func(c Certificate) []store.Term { return store.Terms(c.Org, c.KeyHash) }},
	store.Index[Certificate]{Name: "expiry", Terms: func(c Certificate) []store.Term { return store.Terms(c.Org, expiryKey(c.NotAfter)) }},
	// How many end in which hour, for Expiry.
	store.Index[Certificate]{Name: "hour", Counted: true, Only: true, Terms: func(c Certificate) []store.Term {
		if c.State == CertRevoked {
			return nil
		}
		return store.Terms(c.Org, hourKey(c.NotAfter))
	}},
	store.Index[Certificate]{Name: "due", Terms: func(c Certificate) []store.Term {
		if at, _ := c.due(); !at.IsZero() {
			return store.Terms(allDue, expiryKey(at))
		}
		return nil
	}},
	store.Index[Certificate]{Name: "renewal", Counted: true, Terms: func(c Certificate) []store.Term {
		if r := c.StandingRenewal(); r != "" {
			return []store.Term{store.TermOf(c.Org, string(r)), store.TermOf(everyOrg, string(r))}
		}
		return nil
	}},
)

// expiryKey sorts by time.
func expiryKey(t time.Time) string { return t.UTC().Format("2006-01-02T15:04:05") }

// StateAt is the state of the certificate at now.
func (c *Certificate) StateAt(now time.Time) CertificateState {
	if c.State == CertActive && now.After(c.NotAfter) {
		return CertExpired
	}
	return c.State
}

// Parse returns the certificate itself.
func (c *Certificate) Parse() (*x509.Certificate, error) {
	if c.parsed != nil {
		return c.parsed, nil
	}
	return x509.ParseCertificate(c.DER)
}

// Fingerprint is the SHA-256 of a certificate in hex.
func Fingerprint(der []byte) string {
	sum := sha256.Sum256(der)
	return hex.EncodeToString(sum[:])
}

func keyHash(spki []byte) string {
	sum := sha256.Sum256(spki)
	return hex.EncodeToString(sum[:])
}

// describe is the record of a certificate.
func describe(cert *x509.Certificate) Certificate {
	return Certificate{
		Serial: SerialOf(cert.SerialNumber), State: CertActive, DER: cert.Raw, Subject: cert.Subject.String(), CommonName: cert.Subject.CommonName,
		Fingerprint: Fingerprint(cert.Raw), KeyHash: keyHash(cert.RawSubjectPublicKeyInfo), Algorithm: AlgorithmOf(cert.PublicKey),
		NotBefore: cert.NotBefore, NotAfter: cert.NotAfter, parsed: cert,
	}
}

// Certificate returns a certificate of the actor's organisation by its serial
// number or its SHA-256 fingerprint, or a NotFound fault.
func (s *Service) Certificate(ctx context.Context, name string) (c Certificate, err error) {
	err = s.DB.View(ctx, func(tx store.Tx) error {
		c, err = s.certificateIn(ctx, tx, name)
		return err
	})
	return c, err
}

func (s *Service) certificateIn(ctx context.Context, tx store.Tx, name string) (c Certificate, err error) {
	if len(name) == 2*sha256.Size {
		c, err = certificates.GetBy(tx, "fingerprint", store.TermOf(name))
	} else {
		var serial Serial
		if serial, err = ParseSerial(name); err == nil {
			c, err = certificates.Get(tx, string(serial))
		}
	}
	if err == nil && !sees(ctx, c.Org) {
		return Certificate{}, notFound("certificate")
	}
	return c, err
}

// CertificateIn is Certificate as part of tx.
func (s *Service) CertificateIn(ctx context.Context, tx store.Tx, name string) (Certificate, error) {
	return s.certificateIn(ctx, tx, name)
}

// Filter says which certificates a list holds. Of Device, Renewal, CA and the expiry
// window one narrows by index, in this order; the rest are looked at one by one.
type Filter struct {
	Device        string
	CA            CAID
	State         CertificateState
	DMS           string
	CommonName    string
	Renewal       Renewal
	ExpiresAfter  time.Time
	ExpiresBefore time.Time
}

func (f *Filter) keep(now time.Time) func(Certificate) bool {
	return func(c Certificate) bool {
		return (f.Device == "" || c.Device == f.Device) && (f.CA == "" || c.CA == f.CA) &&
			(f.State == "" || c.StateAt(now) == f.State) && (f.DMS == "" || c.DMS == f.DMS) &&
			(f.CommonName == "" || c.CommonName == f.CommonName) && (f.Renewal == "" || c.StandingRenewal() == f.Renewal) &&
			(f.ExpiresAfter.IsZero() || !c.NotAfter.Before(f.ExpiresAfter)) && (f.ExpiresBefore.IsZero() || c.NotAfter.Before(f.ExpiresBefore))
	}
}

func (f *Filter) index(org string) (string, store.Term) {
	switch {
	case f.Device != "":
		return "device", store.TermOf(org, f.Device)
	case f.Renewal != "":
		return "renewal", store.TermOf(org, string(f.Renewal))
	case f.CA != "":
		return "ca", store.TermOf(string(f.CA))
	case !f.ExpiresAfter.IsZero() || !f.ExpiresBefore.IsZero():
		return "expiry", store.TermOf(org)
	}
	return "org", store.TermOf(org)
}

// Certificates lists certificates of the actor's organisation. With an expiry
// window they come in the order in which they expire.
func (s *Service) Certificates(ctx context.Context, f Filter, r page.Request) (p page.Page[Certificate], err error) {
	index, term := f.index(orgOf(ctx))
	keep := f.keep(s.Now())
	if f.CA != "" {
		if _, err := s.CA(ctx, f.CA); err != nil {
			return page.Page[Certificate]{Items: []Certificate{}}, err
		}
	}
	if index == "expiry" && r.After == "" && !f.ExpiresAfter.IsZero() {
		r.After = page.At(expiryKey(f.ExpiresAfter.Add(-time.Second)))
	}
	err = s.DB.View(ctx, func(tx store.Tx) error {
		p, err = certificates.PageIf(tx, index, term, r, keep)
		return err
	})
	// In order of expiry nothing after the window is in it.
	if n := len(p.Items); index == "expiry" && err == nil && !f.ExpiresBefore.IsZero() && n < r.Size() {
		p.Next = f.cut(p)
	}
	return p, err
}

// cut ends a list in order of expiry once its cursor is past the window.
func (f *Filter) cut(p page.Page[Certificate]) page.Cursor {
	at, err := p.Next.Key()
	if err != nil || len(at) < 19 || at[:19] >= expiryKey(f.ExpiresBefore) {
		return ""
	}
	return p.Next
}

// Export yields every certificate of the actor's organisation that f keeps. It
// reads in short transactions and holds nobody up.
func (s *Service) Export(ctx context.Context, f Filter) iter.Seq2[Certificate, error] {
	index, term := f.index(orgOf(ctx))
	keep := f.keep(s.Now())
	return func(yield func(Certificate, error) bool) {
		for c, err := range certificates.All(ctx, s.DB, index, term) {
			if err == nil && (c.Org != orgOf(ctx) || !keep(c)) {
				continue
			}
			if !yield(c, err) || err != nil {
				return
			}
		}
	}
}

// KeyHolders returns the devices that have a certificate, not revoked, for the
// key of the one given.
func keyHolders(tx store.Tx, org, hash string) (holders []string, compromised bool, err error) {
	p, err := certificates.PageBy(tx, "key", store.TermOf(org, hash), page.Request{Limit: page.MaxLimit})
	for _, c := range p.Items {
		if c.State == CertRevoked && c.Reason == KeyCompromise {
			compromised = true
		}
		if c.State != CertRevoked && c.Device != "" && !slices.Contains(holders, c.Device) {
			holders = append(holders, c.Device)
		}
	}
	return holders, compromised, err
}

// Answering returns the latest certificate of an organisation that answers a request for
// the key with the given hash, or a NotFound fault.
func (s *Service) Answering(tx store.Tx, org, keyHash string, request []byte) (found Certificate, err error) {
	p, err := certificates.PageBy(tx, "key", store.TermOf(org, keyHash), page.Request{Limit: page.MaxLimit})
	if err != nil {
		return found, err
	}
	for _, c := range p.Items {
		if bytes.Equal(c.Request, request) && !c.IssuedAt.Before(found.IssuedAt) {
			found = c
		}
	}
	if found.Serial == "" {
		return found, notFound("certificate")
	}
	return found, nil
}

// keyFree refuses a key that is known to be compromised, or that another device
// is known by, unless the profile lets devices share one: that is flagged.
func (c *Certificate) keyFree(tx store.Tx) error {
	holders, compromised, err := keyHolders(tx, c.Org, c.KeyHash)
	switch {
	case err != nil:
		return err
	case compromised:
		return fault.New(fault.Invalid, "this key is known to be compromised; make a new one")
	}
	for _, holder := range holders {
		if holder == c.Device {
			continue
		}
		if !c.Shared {
			return fault.New(fault.Conflict, "another device has a certificate for this key; every device needs a key of its own")
		}
		c.Flags = append(c.Flags, "shares its key with device "+holder)
		break
	}
	return nil
}
