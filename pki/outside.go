package pki

import (
	"bytes"
	"cmp"
	"container/list"
	"context"
	"crypto/sha1" //nolint:gosec // G505: RFC 6960 names CAs by it; it protects nothing
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/ocsp"

	"keystead/audit"
	"keystead/fault"
	"keystead/store"
)

// RevocationCheck says whether certificates of outside CAs are looked up where
// their issuer says: in OCSP first, then in CRLs.
type RevocationCheck string

// The checks. An empty one is that of the CA, and of the configuration after that.
const (
	CheckOff  RevocationCheck = "off"
	CheckSoft RevocationCheck = "soft" // refuses what is known to be revoked
	CheckHard RevocationCheck = "hard" // refuses all but what is known not to be
)

// Validate reports what is wrong with c.
func (c RevocationCheck) Validate() error {
	switch c {
	case "", CheckOff, CheckSoft, CheckHard:
		return nil
	}
	return fmt.Errorf("%q is not off, soft or hard", string(c))
}

// MaxCRL is the largest CRL of an outside CA that is read, in bytes.
const MaxCRL = 10 << 20

// Limits on looking outside.
const (
	maxStatusURLs   = 3           // of each kind, of one certificate
	maxOutsideOCSP  = 64 << 10    // bytes of an OCSP answer
	maxOutsideKept  = 10_000      // answers
	maxOutsideBytes = 64 << 20    // of all of them
	outsideFailure  = time.Minute // that nothing is asked of a URL that failed
	outsideSkew     = 5 * time.Minute
	outsideUndated  = 24 * time.Hour // an OCSP answer that does not say until when it holds
)

// Outside looks up whether certificates of CAs that are not here are revoked.
// What it is told is kept, at most as long as it holds and for MaxAge. The zero
// Outside has nobody to ask.
type Outside struct {
	// Fetch sends a request, with a body of a media type or without any, and returns
	// at most so many bytes. It keeps requests within bounds of time, and away from
	// where the server itself must not connect to.
	Fetch  func(ctx context.Context, url, media string, body []byte, most int64) ([]byte, error)
	Now    func() time.Time
	MaxAge time.Duration
	// Check is for CAs that have no word of their own.
	Check RevocationCheck

	mu    sync.Mutex
	kept  map[string]*list.Element
	order *list.List // of *outsideAnswer, the one used last in front
	bytes int
}

// outsideAnswer is what one URL said: for all of a CA's certificates, or for one.
type outsideAnswer struct {
	key     string
	counted int // bytes, under the mutex of Outside

	mu    sync.Mutex // held while it is being asked
	until time.Time
	size  int
	err   error
	crl   *outsideList
	one   *ocsp.Response
}

// outsideList is a CRL of which the signature was verified.
type outsideList struct {
	entries map[string]int // reason, by serial number
	point   issuingPoint
	partial bool // its point is for some certificates only
}

// issuingPoint is the IssuingDistributionPoint of a CRL (RFC 5280, 5.2.5).
type issuingPoint struct {
	Name        fullName       `asn1:"optional,tag:0"`
	UserOnly    bool           `asn1:"optional,tag:1"`
	CAOnly      bool           `asn1:"optional,tag:2"`
	SomeReasons asn1.BitString `asn1:"optional,tag:3"`
	Indirect    bool           `asn1:"optional,tag:4"`
	AttrOnly    bool           `asn1:"optional,tag:5"`
}

type fullName struct {
	Full     []asn1.RawValue `asn1:"optional,tag:0"`
	Relative asn1.RawValue   `asn1:"optional,tag:1"`
}

// warnings are what was warned of lately, so that a device that comes each minute
// fills no log.
type warnings struct {
	mu   sync.Mutex
	last map[string]time.Time
}

const (
	warnEvery   = time.Hour
	maxWarnings = 1000 // things remembered as warned of
)

// now reports whether it is time to warn of something.
func (w *warnings) now(of string, now time.Time) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if last, warned := w.last[of]; warned && now.Sub(last) < warnEvery {
		return false
	}
	if w.last == nil || len(w.last) >= maxWarnings {
		w.last = map[string]time.Time{}
	}
	w.last[of] = now
	return true
}

// outsideCheck is the check of CAs that have no word of their own.
func (s *Service) outsideCheck() RevocationCheck {
	if s.Outside == nil {
		return CheckSoft
	}
	return cmp.Or(s.Outside.Check, CheckSoft)
}

// errNowhere is the error of a certificate that does not say where to look.
var errNowhere = errors.New("the certificate names neither a CRL nor an OCSP responder that can be asked")

// outsideGood refuses, as Unauthenticated, a path of which an outside CA has
// revoked a certificate. Certificates that here says were issued here are not looked
// at: the inventory knows them. Where the check is hard and nobody can say, it refuses
// too, as Unavailable if somebody may be able to later.
func (s *Service) outsideGood(ctx context.Context, path []*x509.Certificate, check RevocationCheck, here func(i int) (bool, error)) error {
	if check == CheckOff {
		return nil
	}
	for i, cert := range path[:len(path)-1] {
		ours, err := here(i)
		if err != nil {
			return err
		}
		if ours {
			continue
		}
		reason, revoked, err := s.Outside.status(ctx, cert, path[i+1])
		switch {
		case err != nil && check != CheckHard:
			if !s.Log.Enabled(ctx, slog.LevelWarn) || !s.warned.now(string(path[i+1].Raw), s.Now()) {
				continue
			}
			s.Log.WarnContext(ctx, "whether a certificate of an outside CA is revoked could not be found out; it is let through, as others of its CA may be in the next hour",
				slog.String("certificate", unnamed(cert)), slog.Any("error", err))
		case errors.Is(err, errNowhere):
			return fault.New(fault.Unauthenticated, "the revocation of certificate %s must be looked up and cannot be: it names no CRL or OCSP responder", unnamed(cert))
		case err != nil:
			return &fault.Error{
				Kind: fault.Unavailable, RetryAfter: outsideFailure, Err: err,
				Message: fmt.Sprintf("whether certificate %s is revoked could not be found out, its CA cannot be asked now; try again later", unnamed(cert)),
			}
		case revoked:
			return fault.New(fault.Unauthenticated, "certificate %s is revoked by its CA (%s)", unnamed(cert), reason)
		}
	}
	return nil
}

// unnamed says which certificate is meant without its subject, which may be the key of a thing
// (see mtls.cn_thing_key): reasons are logged.
func unnamed(cert *x509.Certificate) string {
	return fmt.Sprintf("%s of %s", SerialOf(cert.SerialNumber), quotedName(cert.Issuer))
}

// PathNotRevoked refuses, as Unauthenticated, a verified path whose first certificate the
// inventory knows as revoked, or of which an outside CA has revoked one, as the
// configuration says.
func (s *Service) PathNotRevoked(ctx context.Context, path []*x509.Certificate) error {
	if err := s.NotRevoked(ctx, path[0]); err != nil {
		return err
	}
	return s.outsideGood(ctx, path, s.outsideCheck(), s.hereOn(ctx, path))
}

// hereOn looks up whether a certificate of a path was issued here.
func (s *Service) hereOn(ctx context.Context, path []*x509.Certificate) func(i int) (bool, error) {
	return func(i int) (bool, error) { return s.issuedHere(ctx, path[i], path[i+1]) }
}

// issuedHere reports whether the inventory, or the record of a CA, says what there is to know
// of a certificate: it was issued here, or by a CA whose only key is here.
func (s *Service) issuedHere(ctx context.Context, cert, issuer *x509.Certificate) (ours bool, err error) {
	err = s.DB.View(ctx, func(tx store.Tx) error {
		_, err := certificates.GetBy(tx, "fingerprint", store.TermOf(Fingerprint(cert.Raw)))
		if ours = err == nil; ours || !fault.Is(err, fault.NotFound) {
			return err
		}
		same, err := s.byKeyID(tx, hex.EncodeToString(subjectKeyID(issuer)))
		for _, ca := range same {
			ours = ours || ca.Key != "" && !ca.Imported && bytes.Equal(ca.Certificate, issuer.Raw)
		}
		return err
	})
	return ours, err
}

// status says whether issuer has revoked cert, and why. An error says that it could not be
// found out.
func (o *Outside) status(ctx context.Context, cert, issuer *x509.Certificate) (reason Reason, revoked bool, err error) {
	if o == nil || o.Fetch == nil {
		return 0, false, errNowhere
	}
	var failures []error
	for _, url := range statusURLs(cert.OCSPServer) {
		a, err := o.ask(ctx, url, cert, issuer)
		switch {
		case err != nil:
			failures = append(failures, err)
		case a.Status == ocsp.Good:
			return 0, false, nil
		case a.Status == ocsp.Revoked:
			return Reason(a.RevocationReason), true, nil
		default:
			failures = append(failures, fmt.Errorf("pki: %s does not know the certificate", url))
		}
	}
	for _, url := range statusURLs(cert.CRLDistributionPoints) {
		crl, err := o.list(ctx, url, issuer)
		if err == nil {
			err = crl.covers(cert)
		}
		if err != nil {
			failures = append(failures, err)
			continue
		}
		reason, revoked := crl.entries[string(cert.SerialNumber.Bytes())]
		return Reason(reason), revoked, nil
	}
	if len(failures) == 0 {
		return 0, false, errNowhere
	}
	return 0, false, errors.Join(failures...)
}

// statusURLs are those of a certificate's URLs that can be asked.
func statusURLs(all []string) []string {
	var urls []string
	for _, url := range all {
		if strings.HasPrefix(url, "http://") || strings.HasPrefix(url, "https://") {
			urls = append(urls, url)
		}
	}
	return urls[:min(len(urls), maxStatusURLs)]
}

// ask returns what an OCSP responder says of a certificate.
func (o *Outside) ask(ctx context.Context, url string, cert, issuer *x509.Certificate) (*ocsp.Response, error) {
	key := "ocsp " + url + " " + Fingerprint(issuer.Raw) + " " + Fingerprint(cert.Raw)
	a, err := o.answer(key, func(a *outsideAnswer) error {
		request, err := ocsp.CreateRequest(cert, issuer, nil)
		if err != nil {
			return fmt.Errorf("pki: OCSP request: %w", err)
		}
		der, err := o.fetch(ctx, url, "application/ocsp-request", request, maxOutsideOCSP)
		if err != nil {
			return fmt.Errorf("pki: %s: %w", url, err)
		}
		if a.one, a.until, err = o.readOCSP(der, cert, issuer); err != nil {
			return fmt.Errorf("pki: answer of %s: %w", url, err)
		}
		a.size = len(der)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return a.one, nil
}

// readOCSP verifies an answer: that it is of the certificate and of its issuer, signed
// by that or by somebody it lets answer (RFC 6960, 4.2.2.2), and of now.
func (o *Outside) readOCSP(der []byte, cert, issuer *x509.Certificate) (*ocsp.Response, time.Time, error) {
	now := o.Now()
	a, err := ocsp.ParseResponseForCert(der, cert, issuer)
	if err != nil {
		return nil, now, err
	}
	if !namesIssuer(a, cert, issuer) {
		return nil, now, errors.New("it is about a certificate of another CA")
	}
	if by := a.Certificate; by != nil && !bytes.Equal(by.Raw, issuer.Raw) {
		if !slices.Contains(by.ExtKeyUsage, x509.ExtKeyUsageOCSPSigning) || now.Before(by.NotBefore) || now.After(by.NotAfter) {
			return nil, now, errors.New("it is signed by somebody who may not")
		}
	}
	until := a.NextUpdate
	if until.IsZero() {
		until = a.ThisUpdate.Add(outsideUndated)
	}
	if now.Add(outsideSkew).Before(a.ThisUpdate) || now.After(until) {
		return nil, now, errors.New("it is out of date")
	}
	return a, until, nil
}

// namesIssuer reports whether an answer is about cert as a certificate of issuer: one that
// answers for several CAs has the same serial numbers several times.
func namesIssuer(a *ocsp.Response, cert, issuer *x509.Certificate) bool {
	var data struct {
		Version    int `asn1:"explicit,optional,default:0,tag:0"`
		Responder  asn1.RawValue
		ProducedAt time.Time `asn1:"generalized"`
		Responses  []struct{ ID certID }
	}
	var key struct {
		Algorithm pkix.AlgorithmIdentifier
		Bits      asn1.BitString
	}
	if _, err := asn1.Unmarshal(a.TBSResponseData, &data); err != nil {
		return false
	}
	if _, err := asn1.Unmarshal(issuer.RawSubjectPublicKeyInfo, &key); err != nil {
		return false
	}
	for _, one := range data.Responses {
		if one.ID.Serial == nil || one.ID.Serial.Cmp(cert.SerialNumber) != 0 {
			continue
		}
		// The first with this serial number is the one that was read.
		var name, bits []byte
		switch {
		case one.ID.Hash.Algorithm.Equal(oidSHA1):
			n, b := sha1.Sum(issuer.RawSubject), sha1.Sum(key.Bits.RightAlign()) //nolint:gosec // G401: as above
			name, bits = n[:], b[:]
		case one.ID.Hash.Algorithm.Equal(oidSHA256):
			n, b := sha256.Sum256(issuer.RawSubject), sha256.Sum256(key.Bits.RightAlign())
			name, bits = n[:], b[:]
		}
		return name != nil && bytes.Equal(one.ID.Name, name) && bytes.Equal(one.ID.Key, bits)
	}
	return false
}

// list returns the CRL at a URL, if issuer has signed it.
func (o *Outside) list(ctx context.Context, url string, issuer *x509.Certificate) (*outsideList, error) {
	a, err := o.answer("crl "+url+" "+Fingerprint(issuer.Raw), func(a *outsideAnswer) error {
		der, err := o.fetch(ctx, url, "", nil, MaxCRL)
		if err != nil {
			return fmt.Errorf("pki: %s: %w", url, err)
		}
		if a.crl, a.until, err = readOutsideCRL(der, issuer, o.Now()); err != nil {
			return fmt.Errorf("pki: CRL at %s: %w", url, err)
		}
		a.size = len(der)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return a.crl, nil
}

// readOutsideCRL verifies a complete list of all reasons (RFC 5280, 6.3.3). Deltas, indirect
// lists and what is critical and not known here say nothing.
func readOutsideCRL(der []byte, issuer *x509.Certificate, now time.Time) (*outsideList, time.Time, error) {
	crl, err := x509.ParseRevocationList(der)
	if err != nil {
		return nil, now, err
	}
	switch {
	case !bytes.Equal(crl.RawIssuer, issuer.RawSubject):
		return nil, now, errors.New("it is of another CA")
	case now.Add(outsideSkew).Before(crl.ThisUpdate), crl.NextUpdate.IsZero(), now.After(crl.NextUpdate):
		return nil, now, errors.New("it is out of date")
	}
	if err := crl.CheckSignatureFrom(issuer); err != nil {
		return nil, now, err
	}
	out := &outsideList{entries: make(map[string]int, len(crl.RevokedCertificateEntries))}
	for _, e := range crl.Extensions {
		switch {
		case e.Id.Equal(oidIssuingPoint):
			if rest, err := asn1.Unmarshal(e.Value, &out.point); err != nil || len(rest) > 0 {
				return nil, now, errors.New("its issuing distribution point cannot be read")
			}
			out.partial = true
		case e.Critical:
			return nil, now, fmt.Errorf("it has the critical extension %s, which is not known here", e.Id)
		}
	}
	if p := &out.point; p.Indirect || p.SomeReasons.BitLength > 0 || p.Name.Relative.FullBytes != nil {
		return nil, now, errors.New("it is indirect, or for some reasons only")
	}
	for _, e := range crl.RevokedCertificateEntries {
		for _, x := range e.Extensions {
			if x.Critical {
				return nil, now, fmt.Errorf("an entry has the critical extension %s, which is not known here", x.Id)
			}
		}
		out.entries[string(e.SerialNumber.Bytes())] = e.ReasonCode
	}
	return out, crl.NextUpdate, nil
}

// covers is nil if what the list does not have is not revoked: a list of a shard, of CAs or of
// leaves is not for every certificate (RFC 5280, 6.3.3 (b)(2)).
func (l *outsideList) covers(cert *x509.Certificate) error {
	p := &l.point
	if !l.partial {
		return nil
	}
	if p.AttrOnly || p.UserOnly && cert.IsCA || p.CAOnly && !cert.IsCA {
		return errors.New("pki: the CRL is for certificates of another kind")
	}
	if len(p.Name.Full) == 0 {
		return nil
	}
	for _, name := range p.Name.Full {
		if name.Class == asn1.ClassContextSpecific && name.Tag == 6 && slices.Contains(cert.CRLDistributionPoints, string(name.Bytes)) {
			return nil
		}
	}
	return errors.New("pki: the CRL is for other certificates of the CA")
}

// fetch is Fetch to its end, whether or not the one who caused it waits: what comes of it
// is kept for everybody, and a client must not be able to make a look-up fail, and then
// be let through by a soft check, by hanging up.
func (o *Outside) fetch(ctx context.Context, url, media string, body []byte, most int64) ([]byte, error) {
	return o.Fetch(context.WithoutCancel(ctx), url, media, body, most)
}

// answer returns what is kept under key, or has it asked: once for all who wait, and
// not again for a while if it fails.
func (o *Outside) answer(key string, ask func(*outsideAnswer) error) (*outsideAnswer, error) {
	a := o.entry(key)
	a.mu.Lock()
	defer a.mu.Unlock()
	now := o.Now()
	if !a.until.IsZero() && now.Before(a.until) {
		return a, a.err
	}
	a.crl, a.one, a.err = nil, nil, nil
	a.size = 0
	if a.err = ask(a); a.err != nil {
		a.until = now.Add(outsideFailure)
	} else if most := now.Add(o.MaxAge); a.until.After(most) {
		a.until = most
	}
	o.count(key, a)
	return a, a.err
}

// count notes how large an answer is, if it is kept still.
func (o *Outside) count(key string, a *outsideAnswer) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if e, ok := o.kept[key]; ok && e.Value == a {
		o.bytes += a.size - a.counted
		a.counted = a.size
	}
}

// entry is what is kept under key, something new if nothing is. What was not used for
// longest goes if there is too much.
func (o *Outside) entry(key string) *outsideAnswer {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.kept == nil {
		o.kept, o.order = map[string]*list.Element{}, list.New()
	}
	if e, ok := o.kept[key]; ok {
		o.order.MoveToFront(e)
		return e.Value.(*outsideAnswer) //nolint:errcheck // nothing else is in it
	}
	for o.order.Len() > 0 && (o.order.Len() >= maxOutsideKept || o.bytes > maxOutsideBytes) {
		oldest := o.order.Remove(o.order.Back()).(*outsideAnswer) //nolint:errcheck // nothing else is in it
		o.bytes -= oldest.counted
		delete(o.kept, oldest.key)
	}
	a := &outsideAnswer{key: key}
	o.kept[key] = o.order.PushFront(a)
	return a
}

// SetRevocationCheck says how certificates of a CA are looked up that were not issued here.
func (s *Service) SetRevocationCheck(ctx context.Context, ca CAID, check RevocationCheck) (record CA, err error) {
	if err := check.Validate(); err != nil {
		return CA{}, fault.InvalidFields(fault.Field{Name: "revocation_check", Message: "must be off, soft or hard, or empty for what the configuration says"})
	}
	err = s.DB.Update(ctx, func(tx store.Tx) error {
		if record, err = s.caIn(ctx, tx, ca); err != nil {
			return err
		}
		if record, err = cas.Update(tx, string(ca), func(c *CA) error { c.Check = check; return nil }); err != nil {
			return err
		}
		s.changedCA(tx, ca)
		return s.Audit.Append(ctx, tx, audit.Entry{Action: "ca.revocation_check", Target: string(ca), Org: record.Org, Detail: map[string]string{"check": string(check)}})
	})
	return record, err
}
