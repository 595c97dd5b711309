package pki

import (
	"bytes"
	"context"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"strings"
	"time"

	"keystead/audit"
	"keystead/fault"
	"keystead/id"
	"keystead/store"
)

// Latest follows a CA to the one that has replaced it, if it issues no more.
func (s *Service) Latest(ctx context.Context, ca CAID) (CAID, error) {
	for range 64 {
		a, err := s.authority(ctx, ca)
		if err != nil {
			return "", err
		}
		if a.Successor == "" || a.State == CAActive {
			return ca, nil
		}
		ca = a.Successor
	}
	return "", fmt.Errorf("pki: the successors of %s make a circle", ca)
}

// Distribution returns what clients of a CA are to know: it and those above it
// up to the root, and the certificates that link the root with the one before it.
func (s *Service) Distribution(ctx context.Context, ca CAID) ([]*x509.Certificate, error) {
	path, err := s.Path(ctx, ca)
	if err != nil {
		return nil, err
	}
	for range maxChain + 1 {
		a, err := s.authority(ctx, ca)
		if err != nil {
			return nil, err
		}
		if a.Parent != "" {
			ca = a.Parent
			continue
		}
		for _, der := range a.Cross {
			cross, err := x509.ParseCertificate(der)
			if err != nil {
				return nil, fmt.Errorf("pki: links of CA %s: %w", ca, err)
			}
			path = append(path, cross)
		}
		if a.Predecessor != "" {
			old, err := s.authority(ctx, a.Predecessor)
			if err != nil && !fault.Is(err, fault.NotFound) {
				return nil, err
			}
			if err == nil && old.cert != nil && old.State != CARevoked {
				path = append(path, old.cert)
			}
		}
		return path, nil
	}
	return path, nil
}

// RollOver replaces a CA by one with the same name and settings and a new key. The
// old one retires: it issues no more, and what it issued stays good. A root comes
// with the certificates that let clients who know either root accept what is below the
// other (RFC 4210, 4.4; RFC 7030, 4.1.3).
func (s *Service) RollOver(ctx context.Context, ca CAID) (CA, error) {
	old, err := s.issuer(ctx, orgOf(ctx), ca)
	if err != nil {
		return CA{}, err
	}
	if old.Parent == "" && !isSelfSigned(old.cert) {
		return CA{}, fault.New(fault.Conflict, "an outside CA has signed this one; make a new request for it instead")
	}
	now := s.Now().UTC()
	next := CA{
		ID: CAID(id.New(now)), Org: old.Org, Name: old.Name, Kind: old.Kind, State: CAActive, Parent: old.Parent, Algorithm: old.Algorithm,
		Shards: old.Shards, CreatedAt: now, Predecessor: old.ID,
	}
	next.Key = string(next.ID)
	key, err := s.Keys.Create(ctx, next.Key, next.Algorithm)
	if err != nil {
		return CA{}, err
	}
	if err := s.succeed(ctx, &next, old, key); err != nil {
		return CA{}, errors.Join(err, s.Keys.Delete(ctx, next.Key))
	}
	return next, s.DB.Update(ctx, func(tx store.Tx) error {
		if err := s.insertCA(ctx, tx, next, "ca.roll_over"); err != nil {
			return err
		}
		if _, err := cas.Update(tx, string(old.ID), func(c *CA) error {
			if c.State != CAActive {
				return fault.New(fault.Conflict, "the CA is %s", c.State)
			}
			c.State, c.Successor = CARetiring, next.ID
			return nil
		}); err != nil {
			return err
		}
		s.changedCA(tx, old.ID)
		d, err := orgDefaults.Get(tx, old.Org)
		if fault.Is(err, fault.NotFound) || err == nil && d.Issuing != old.ID {
			return nil
		}
		if err != nil {
			return err
		}
		return orgDefaults.Set(tx, old.Org, defaults{Issuing: next.ID})
	})
}

// succeed certifies the CA that takes old's place.
func (s *Service) succeed(ctx context.Context, next *CA, old *authority, key crypto.Signer) error {
	oldKey, err := s.Keys.Signer(ctx, old.Key)
	if err != nil {
		return err
	}
	pathLen := -1
	if old.cert.MaxPathLen > 0 || old.cert.MaxPathLenZero {
		pathLen = old.cert.MaxPathLen
	}
	if old.Parent != "" {
		parent, err := s.issuer(ctx, old.Org, old.Parent)
		if fault.Is(err, fault.Conflict) { // the parent was rolled over itself
			latest, lerr := s.Latest(ctx, old.Parent)
			if lerr != nil {
				return lerr
			}
			next.Parent = latest
			parent, err = s.issuer(ctx, old.Org, latest)
		}
		if err != nil {
			return err
		}
		parentKey, err := s.Keys.Signer(ctx, parent.Key)
		if err != nil {
			return err
		}
		cert, err := s.sameCA(old, parent.cert, parent.Algorithm, key.Public(), pathLen, parent.NotAfter).sign(parentKey)
		if err != nil {
			return err
		}
		next.take(cert)
		return nil
	}
	end := s.Now().UTC().AddDate(rootYears, 0, 0)
	cert, err := s.sameCA(old, nil, old.Algorithm, key.Public(), pathLen, end).sign(key)
	if err != nil {
		return err
	}
	next.take(cert)
	newWithOld, err := s.sameCA(old, old.cert, old.Algorithm, key.Public(), pathLen, old.NotAfter).sign(oldKey)
	if err != nil {
		return err
	}
	oldWithNew, err := s.sameCA(old, cert, old.Algorithm, oldKey.Public(), pathLen, old.NotAfter).sign(key)
	if err != nil {
		return err
	}
	next.Cross = [][]byte{newWithOld.Raw, oldWithNew.Raw}
	return nil
}

// sameCA is a certificate with the name and constraints of a CA and the given
// key, to be signed by issuer, or by itself if that is nil.
func (s *Service) sameCA(ca *authority, issuer *x509.Certificate, alg Algorithm, public any, pathLen int, notAfter time.Time) *template {
	t := &template{
		serial: newSerial(s.Now()), subject: ca.cert.RawSubject, issuer: ca.cert.RawSubject, notBefore: s.Now().UTC().Add(-backdate).Truncate(time.Second),
		notAfter: notAfter.Truncate(time.Second), public: public, algorithm: alg, authorityKeyID: keyID(public),
	}
	if issuer != nil {
		t.issuer, t.authorityKeyID = issuer.RawSubject, subjectKeyID(issuer)
	}
	t.addCA(public, pathLen, ca.cert.PermittedDNSDomains)
	return t
}

// Retire has a CA issue no more; what it issued stays good.
func (s *Service) Retire(ctx context.Context, ca CAID) (CA, error) {
	return s.moveCA(ctx, ca, CAActive, CARetiring, "ca.retire")
}

// Reactivate lets a retired CA issue again.
func (s *Service) Reactivate(ctx context.Context, ca CAID) (CA, error) {
	return s.moveCA(ctx, ca, CARetiring, CAActive, "ca.activate")
}

func (s *Service) moveCA(ctx context.Context, ca CAID, from, to CAState, action string) (record CA, err error) {
	err = s.DB.Update(ctx, func(tx store.Tx) error {
		record, err = s.caIn(ctx, tx, ca)
		if err != nil || record.State == to {
			return err
		}
		if record.State != from {
			return fault.New(fault.Conflict, "the CA is %s, which cannot change to %s", record.State, to)
		}
		if record, err = cas.Update(tx, string(ca), func(c *CA) error { c.State = to; return nil }); err != nil {
			return err
		}
		s.changedCA(tx, ca)
		return s.Audit.Append(ctx, tx, audit.Entry{Action: action, Target: string(ca), Org: record.Org})
	})
	return record, err
}

// DeleteCA removes a CA, and its key for ever. It is a Conflict while anything hangs
// on it: certificates it has issued that are not over, CAs below it, the
// organisation's choice of what to issue from.
func (s *Service) DeleteCA(ctx context.Context, ca CAID) error {
	var record CA
	err := s.DB.Update(ctx, func(tx store.Tx) (err error) {
		if record, err = s.caIn(ctx, tx, ca); err != nil {
			return err
		}
		if err := s.deletable(tx, record); err != nil {
			return err
		}
		if _, err := cas.Delete(tx, string(ca)); err != nil {
			return err
		}
		s.changedCA(tx, ca)
		return s.Audit.Append(ctx, tx, audit.Entry{Action: "ca.delete", Target: string(ca), Org: record.Org, Detail: map[string]string{"name": record.Name}})
	})
	if err != nil || record.Key == "" {
		return err
	}
	return s.Keys.Delete(ctx, record.Key)
}

func (s *Service) deletable(tx store.Tx, record CA) error {
	d, err := orgDefaults.Get(tx, record.Org)
	if err != nil && !fault.Is(err, fault.NotFound) {
		return err
	}
	if d.Issuing == record.ID {
		return fault.New(fault.Conflict, "the organisation issues from this CA; choose another one first")
	}
	below, err := cas.Count(tx, "parent", store.TermOf(string(record.ID)))
	if err != nil {
		return err
	}
	if below > 0 {
		return fault.New(fault.Conflict, "there are %d CAs below this one", below)
	}
	issued, err := certificates.Count(tx, "ca", store.TermOf(string(record.ID)))
	if err != nil {
		return err
	}
	if over := record.State == CARevoked || s.Now().After(record.NotAfter); issued > 0 && !over {
		return fault.New(fault.Conflict, "the CA has issued %d certificates; retire or revoke it instead", issued)
	}
	return nil
}

// Import is a CA that comes from outside.
type Import struct {
	Name        string
	Certificate *x509.Certificate
	Chain       []*x509.Certificate // those above it
	Key         crypto.Signer       // nil for a CA that only validates
	Pending     CAID                // the CA here whose request was signed
	Check       RevocationCheck     // how to look up certificates that were not issued here
}

// ImportCA takes in a CA from outside: with its key, to issue from; without, to
// recognise certificates of its; or as the answer to the request of a pending one.
func (s *Service) ImportCA(ctx context.Context, in Import) (CA, error) {
	if err := in.check(s.Now()); err != nil {
		return CA{}, err
	}
	if in.Pending != "" {
		return s.complete(ctx, in)
	}
	now := s.Now().UTC()
	ca := CA{ID: CAID(id.New(now)), Org: orgOf(ctx), Name: in.Name, Kind: Validating, State: CAActive, CreatedAt: now, Imported: true, Check: in.Check}
	if ca.Name == "" {
		ca.Name = cut(in.Certificate.Subject.CommonName, 64)
	}
	ca.take(in.Certificate)
	if err := s.placed(ctx, &ca, in.Chain); err != nil {
		return CA{}, err
	}
	if in.Key != nil {
		ca.Kind, ca.Key, ca.Shards = Intermediate, string(ca.ID), defaultShards
		if isSelfSigned(in.Certificate) {
			ca.Kind = Root
		}
		if err := s.Keys.Import(ctx, ca.Key, in.Key); err != nil {
			return CA{}, err
		}
	}
	return ca, s.DB.Update(ctx, func(tx store.Tx) error {
		if err := s.notThere(tx, &ca); err != nil {
			return err
		}
		s.changedCA(tx, ca.ID)
		return s.insertCA(ctx, tx, ca, "ca.import")
	})
}

func (in *Import) check(now time.Time) error {
	c := in.Certificate
	note := func(field, message string) error {
		return fault.InvalidFields(fault.Field{Name: field, Message: message})
	}
	switch {
	case c == nil:
		return note("certificate", "must be a certificate in PEM")
	case !c.IsCA || !c.BasicConstraintsValid:
		return note("certificate", "is not of a CA: its basic constraints do not say so")
	case c.KeyUsage != 0 && c.KeyUsage&x509.KeyUsageCertSign == 0:
		return note("certificate", "is of a CA that may not sign certificates (key usage)")
	case now.After(c.NotAfter):
		return note("certificate", "has expired")
	case in.Check.Validate() != nil:
		return note("revocation_check", "must be off, soft or hard")
	case len(c.Raw) > maxCertBytes || len(in.Chain) > maxChain:
		return note("chain", "is too long")
	case in.Key != nil && !samePublic(in.Key.Public(), c.PublicKey):
		return note("private_key", "CA and the provided key don't match")
	case in.Key != nil && !algorithmOfCA(AlgorithmOf(c.PublicKey)):
		return note("private_key", "is of a kind that CAs here do not have; use ECDSA P-256 or P-384, Ed25519 or RSA 2048 to 4096")
	}
	if err := GoodKey(c.PublicKey); err != nil {
		return note("certificate", fault.Message(err))
	}
	below := c
	for _, above := range in.Chain {
		if err := below.CheckSignatureFrom(above); err != nil {
			return note("chain", "must have the CA's issuer first, then the issuer's, and so on")
		}
		below = above
	}
	return nil
}

func samePublic(a, b any) bool {
	k, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && k.Equal(b)
}

// placed puts an imported CA below one that is here, if that has issued it, else
// keeps the chain it came with.
func (s *Service) placed(ctx context.Context, ca *CA, chain []*x509.Certificate) error {
	cert, err := x509.ParseCertificate(ca.Certificate)
	if err != nil {
		return fmt.Errorf("pki: %w", err)
	}
	for record, err := range cas.All(ctx, s.DB, "org", store.TermOf(ca.Org)) {
		if err != nil {
			return err
		}
		if record.Certificate == nil || record.ID == ca.ID {
			continue
		}
		above, err := parseAuthority(record)
		if err != nil {
			return err
		}
		if bytes.Equal(above.cert.RawSubject, cert.RawIssuer) && !isSelfSigned(cert) && cert.CheckSignatureFrom(above.cert) == nil {
			ca.Parent = record.ID
			return nil
		}
	}
	for _, above := range chain {
		ca.Chain = append(ca.Chain, above.Raw)
	}
	return nil
}

func (s *Service) notThere(tx store.Tx, ca *CA) error {
	same, err := s.byKeyID(tx, ca.SubjectKeyID)
	if err != nil {
		return err
	}
	for _, has := range same {
		if has.Org == ca.Org && bytes.Equal(has.Certificate, ca.Certificate) {
			return fault.New(fault.Conflict, "CA already exists: %s", has.ID)
		}
	}
	return nil
}

// complete gives a pending CA the certificate an outside CA has made for it.
func (s *Service) complete(ctx context.Context, in Import) (CA, error) {
	pending, err := s.CA(ctx, in.Pending)
	if err != nil {
		return CA{}, err
	}
	if pending.State != CAPending {
		return CA{}, fault.New(fault.Conflict, "the CA does not wait for a certificate")
	}
	csr, err := x509.ParseCertificateRequest(pending.Request)
	if err != nil {
		return CA{}, fmt.Errorf("pki: request of CA %s: %w", pending.ID, err)
	}
	if !samePublic(csr.PublicKey, in.Certificate.PublicKey) {
		return CA{}, fault.InvalidFields(fault.Field{Name: "certificate", Message: "is for another key than that of the request"})
	}
	ca := pending
	ca.State = CAActive
	ca.take(in.Certificate)
	if err := s.placed(ctx, &ca, in.Chain); err != nil {
		return CA{}, err
	}
	return ca, s.DB.Update(ctx, func(tx store.Tx) error {
		now, err := s.caIn(ctx, tx, ca.ID)
		if err != nil {
			return err
		}
		if now.State != CAPending {
			return fault.New(fault.Conflict, "the CA does not wait for a certificate")
		}
		if err := cas.Set(tx, string(ca.ID), ca); err != nil {
			return err
		}
		s.changedCA(tx, ca.ID)
		return s.Audit.Append(ctx, tx, audit.Entry{Action: "ca.complete", Target: string(ca.ID), Org: ca.Org})
	})
}

// ParseCertificates reads certificates from PEM, DER or a PKCS#7 bundle of either.
func ParseCertificates(b []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	rest := b
	for {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		switch block.Type {
		case "CERTIFICATE":
			c, err := x509.ParseCertificate(block.Bytes)
			if err != nil {
				return nil, fault.New(fault.Invalid, "a certificate cannot be read: %s", cause(err))
			}
			certs = append(certs, c)
		case "PKCS7", "CMS":
			more, err := ParseCertsOnly(block.Bytes)
			if err != nil {
				return nil, err
			}
			certs = append(certs, more...)
		}
		if len(certs) > maxBundle {
			return nil, fault.New(fault.TooLarge, "there are more than %d certificates", maxBundle)
		}
	}
	if len(certs) > 0 {
		return certs, nil
	}
	if c, err := x509.ParseCertificate(b); err == nil {
		return []*x509.Certificate{c}, nil
	}
	if more, err := ParseCertsOnly(b); err == nil {
		return more, nil
	}
	return nil, fault.New(fault.Invalid, "there is no certificate in this; send PEM")
}

// ParseKey reads a private key, not encrypted, from PEM or DER.
func ParseKey(b []byte) (crypto.Signer, error) {
	for rest := b; ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if strings.HasSuffix(block.Type, "PRIVATE KEY") {
			if strings.Contains(block.Type, "ENCRYPTED") || block.Headers["DEK-Info"] != "" {
				return nil, fault.New(fault.Invalid, "the private key is encrypted; decrypt it first, with openssl pkey")
			}
			b = block.Bytes
			break
		}
	}
	key, err := parseKey(b)
	if err != nil {
		return nil, fault.New(fault.Invalid, "%s", err.Error())
	}
	return key, nil
}
