package authsets

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/hex"
	"slices"
	"time"

	"keystead/audit"
	"keystead/fault"
	"keystead/id"
	"keystead/identity"
	"keystead/page"
	"keystead/store"
)

// ClientCA is a CA whose client certificates speak for auth sets of an organisation: a set
// with the key of a certificate that chains to it is accepted at once.
type ClientCA struct {
	ID   string `cbor:"id"`
	Org  string `cbor:"org"`
	Name string `cbor:"name"`
	Cert []byte `cbor:"cert"` // DER
	// Attributes names identity attributes that must be what the certificate says: the
	// common_name or serial_number of its subject, or one of its dns or uri names. With
	// none, whoever holds a certificate may claim any identity.
	Attributes map[string]string `cbor:"attributes,omitempty"`
	CreatedAt  time.Time         `cbor:"created"`
}

// Denied is a certificate that speaks for nothing any more.
type Denied struct {
	CA     string    `cbor:"ca"`
	Org    string    `cbor:"org"`
	Serial string    `cbor:"serial"` // hexadecimal, in lower case
	At     time.Time `cbor:"at"`
}

var (
	clientCAs = store.NewTable("mtls ca",
		store.Index[ClientCA]{Name: "org", Counted: true, Terms: func(c ClientCA) []store.Term { return store.Terms(c.Org) }})
	denials = store.NewTable("denied certificate",
		store.Index[Denied]{Name: "ca", Terms: func(d Denied) []store.Term { return store.Terms(d.CA) }})
)

// maxClientCAs is how many CAs an organisation registers.
const maxClientCAs = 100

// voucher is a client certificate that speaks for the request it came with.
type voucher struct {
	ca     ClientCA
	serial string
}

// name is how a set remembers the certificate, "" for none.
func (v *voucher) name() string {
	if v == nil {
		return ""
	}
	return v.ca.ID + "/" + v.serial
}

// fits are the parts of a certificate that an attribute may have to equal.
var fits = map[string]func(*x509.Certificate, string) bool{
	"common_name":   func(c *x509.Certificate, v string) bool { return c.Subject.CommonName == v },
	"serial_number": func(c *x509.Certificate, v string) bool { return c.Subject.SerialNumber == v },
	"dns":           func(c *x509.Certificate, v string) bool { return slices.Contains(c.DNSNames, v) },
	"uri": func(c *x509.Certificate, v string) bool {
		for _, u := range c.URIs {
			if u.String() == v {
				return true
			}
		}
		return false
	},
}

// vouched returns what the client's certificate says for the request, nil if nothing: there
// is none, it is for another key, of no registered CA, denied, or of another identity.
func (s *Service) vouched(ctx context.Context, org string, r Request, c claim) (*voucher, error) {
	if len(r.Chain) == 0 {
		return nil, nil //nolint:nilnil // nothing speaks for it
	}
	leaf := r.Chain[0]
	if key, err := x509.MarshalPKIXPublicKey(leaf.PublicKey); err != nil || !bytes.Equal(key, c.key) {
		return nil, nil //nolint:nilnil,nilerr // a certificate of another key
	}
	serial := hex.EncodeToString(leaf.SerialNumber.Bytes())
	var found *voucher
	var path []*x509.Certificate
	err := s.DB.View(ctx, func(tx store.Tx) error {
		p, err := clientCAs.PageBy(tx, "org", store.TermOf(org), page.Request{Limit: maxClientCAs})
		if err != nil {
			return err
		}
		for _, ca := range p.Items {
			verified := ca.issued(r.Chain, s.Now())
			if verified == nil || !ca.fits(leaf, c.identity) {
				continue
			}
			denied, err := denials.Has(tx, ca.ID+"/"+serial)
			if err != nil {
				return err
			}
			if denied {
				found = nil
				return nil
			}
			found, path = &voucher{ca, serial}, verified
		}
		return nil
	})
	if found != nil && s.CertRevoked != nil {
		if revoked, err := s.CertRevoked(ctx, path); revoked || err != nil {
			return nil, err
		}
	}
	return found, err
}

// Registered reports whether a client's chain leads to a CA that any organisation has registered,
// and the certificate is not denied. It proves no device; its key may.
func (s *Service) Registered(ctx context.Context, chain []*x509.Certificate) (bool, error) {
	for ca, err := range clientCAs.All(ctx, s.DB, "", "") {
		if err != nil {
			return false, err
		}
		if ca.issued(chain, s.Now()) == nil {
			continue
		}
		denied := false
		err := s.DB.View(ctx, func(tx store.Tx) (err error) {
			denied, err = denials.Has(tx, ca.ID+"/"+hex.EncodeToString(chain[0].SerialNumber.Bytes()))
			return err
		})
		return !denied, err
	}
	return false, nil
}

// issued returns the path by which chain leads to the CA, as a client's; nil if it does not.
func (c *ClientCA) issued(chain []*x509.Certificate, now time.Time) []*x509.Certificate {
	root, err := x509.ParseCertificate(c.Cert)
	if err != nil {
		return nil
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(root)
	for _, cert := range chain[1:] {
		between.AddCert(cert)
	}
	paths, err := chain[0].Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: between, CurrentTime: now, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		return nil
	}
	return paths[0]
}

func (c *ClientCA) fits(leaf *x509.Certificate, id Canonical) bool {
	if len(c.Attributes) == 0 {
		return true
	}
	has := id.Attributes()
	for name, part := range c.Attributes {
		v, ok := has[name]
		if !ok || v == "" || !fits[part](leaf, v) {
			return false
		}
	}
	return true
}

// denyCertificates ends the certificates that d's sets were accepted by.
func (s *Service) denyCertificates(_ context.Context, tx store.Tx, d Device) error {
	for _, set := range d.Sets {
		if len(set.Cert) <= id.Length {
			continue
		}
		n := Denied{CA: set.Cert[:id.Length], Org: d.Org, Serial: set.Cert[id.Length+1:], At: s.Now().UTC()}
		if err := denials.Set(tx, set.Cert, n); err != nil {
			return err
		}
	}
	return nil
}

// AddClientCA registers a CA for the actor's organisation.
func (s *Service) AddClientCA(ctx context.Context, name string, cert *x509.Certificate, attributes map[string]string) (c ClientCA, err error) {
	now := s.Now().UTC()
	c = ClientCA{ID: id.New(now), Org: identity.OrgOf(ctx), Name: name, Cert: cert.Raw, Attributes: attributes, CreatedAt: now}
	var bad []fault.Field
	if name == "" || len(name) > 128 {
		bad = append(bad, fault.Field{Name: "name", Message: "has 1 to 128 bytes"})
	}
	if !cert.IsCA || !cert.BasicConstraintsValid {
		bad = append(bad, fault.Field{Name: "certificate", Message: "is not that of a CA"})
	}
	for _, part := range attributes {
		if fits[part] == nil {
			bad = append(bad, fault.Field{Name: "attributes", Message: "an attribute equals common_name, serial_number, dns or uri"})
		}
	}
	if err := fault.InvalidFields(bad...); err != nil {
		return c, err
	}
	return c, s.DB.Update(ctx, func(tx store.Tx) error {
		p, err := clientCAs.PageBy(tx, "org", store.TermOf(c.Org), page.Request{Limit: maxClientCAs})
		if err != nil {
			return err
		}
		for _, has := range p.Items {
			if bytes.Equal(has.Cert, c.Cert) {
				return fault.New(fault.Conflict, "the CA is registered already, as %s", has.ID)
			}
		}
		if len(p.Items) >= maxClientCAs {
			return fault.New(fault.TooLarge, "the organisation has %d CAs registered; remove one first", len(p.Items))
		}
		if err := clientCAs.Insert(tx, c.ID, c); err != nil {
			return err
		}
		return s.Audit.Append(ctx, tx, audit.Entry{Action: "mtls_ca.create", Target: c.ID})
	})
}

// ClientCAs lists the CAs that are registered for the actor's organisation.
func (s *Service) ClientCAs(ctx context.Context, r page.Request) (p page.Page[ClientCA], err error) {
	err = s.DB.View(ctx, func(tx store.Tx) error {
		p, err = clientCAs.PageBy(tx, "org", store.TermOf(identity.OrgOf(ctx)), r)
		return err
	})
	return p, err
}

// ClientCA returns a registered CA, or a NotFound fault.
func (s *Service) ClientCA(ctx context.Context, caID string) (c ClientCA, err error) {
	err = s.DB.View(ctx, func(tx store.Tx) error {
		c, err = s.ownCA(ctx, tx, caID)
		return err
	})
	return c, err
}

func (s *Service) ownCA(ctx context.Context, tx store.Tx, caID string) (ClientCA, error) {
	c, err := clientCAs.Get(tx, caID)
	if err == nil && c.Org != identity.OrgOf(ctx) {
		return ClientCA{}, fault.New(fault.NotFound, "no such mtls ca")
	}
	return c, err
}

// RemoveClientCA ends what a CA's certificates say. Sets that were accepted by them stay
// accepted.
func (s *Service) RemoveClientCA(ctx context.Context, caID string) error {
	return s.DB.Update(ctx, func(tx store.Tx) error {
		if _, err := s.ownCA(ctx, tx, caID); err != nil {
			return err
		}
		if _, err := clientCAs.Delete(tx, caID); err != nil {
			return err
		}
		return s.Audit.Append(ctx, tx, audit.Entry{Action: "mtls_ca.delete", Target: caID})
	})
}

// Deny ends what one certificate of a registered CA says, or with deny false lets it
// speak again. Sets that were accepted by it stay accepted.
func (s *Service) Deny(ctx context.Context, caID, serial string, deny bool) error {
	raw, err := hex.DecodeString(serial)
	if err != nil || len(raw) == 0 || len(raw) > 20 {
		return fault.InvalidFields(fault.Field{Name: "serial", Message: "is 1 to 20 bytes in hexadecimal"})
	}
	serial = hex.EncodeToString(raw)
	return s.DB.Update(ctx, func(tx store.Tx) error {
		ca, err := s.ownCA(ctx, tx, caID)
		if err != nil {
			return err
		}
		action := "mtls_ca.deny"
		if deny {
			err = denials.Set(tx, caID+"/"+serial, Denied{CA: caID, Org: ca.Org, Serial: serial, At: s.Now().UTC()})
		} else {
			action = "mtls_ca.allow"
			_, err = denials.Delete(tx, caID+"/"+serial)
		}
		if err != nil {
			return err
		}
		return s.Audit.Append(ctx, tx, audit.Entry{Action: action, Target: caID, Detail: map[string]string{"serial": serial}})
	})
}

// Denials lists the certificates of a registered CA that are denied.
func (s *Service) Denials(ctx context.Context, caID string, r page.Request) (p page.Page[Denied], err error) {
	err = s.DB.View(ctx, func(tx store.Tx) error {
		if _, err := s.ownCA(ctx, tx, caID); err != nil {
			return err
		}
		p, err = denials.PageBy(tx, "ca", store.TermOf(caID), r)
		return err
	})
	return p, err
}
