package pki

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"slices"
	"strconv"
	"sync"
	"time"

	"keystead/fault"
	"keystead/identity"
	"keystead/page"
	"keystead/store"
)

// maxVerified is how many certificates are remembered as verified.
const maxVerified = 100_000

// maxPresented is how many certificates of a chain a client sent are looked at.
const maxPresented = 8

// verifiedCache remembers which certificates lead to which CA. It says nothing
// of revocation or time, which are looked at on every use, and is emptied
// whenever a CA changes.
type verifiedCache struct {
	mu      sync.RWMutex
	changes uint64 // how often a CA changed
	was     map[[sha256.Size]byte]CAID
	chains  map[[sha256.Size]byte]validated
}

// validated is a chain that was verified against certain CAs: which of them it leads to, and
// between which times all of it is valid.
type validated struct {
	ca          *authority
	path        []*x509.Certificate // to it, the leaf first
	here        []bool              // of each of path but the last: whether it was issued here, see issuedHere
	from, until time.Time
}

// maxChains is how many chains are remembered as validated.
const maxChains = 10_000

func (v *verifiedCache) chain(sum [sha256.Size]byte, at time.Time) (validated, bool) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	was, ok := v.chains[sum]
	return was, ok && !at.Before(was.from) && !at.After(was.until)
}

// now is what a verification that begins gives to put: what was read of CAs before
// one of them changed is not to be remembered after.
func (v *verifiedCache) now() uint64 {
	v.mu.RLock()
	defer v.mu.RUnlock()
	return v.changes
}

func (v *verifiedCache) putChain(since uint64, sum [sha256.Size]byte, was validated) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.changes != since {
		return
	}
	if v.chains == nil || len(v.chains) >= maxChains {
		v.chains = map[[sha256.Size]byte]validated{}
	}
	v.chains[sum] = was
}

func (v *verifiedCache) get(sum [sha256.Size]byte) (CAID, bool) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	ca, ok := v.was[sum]
	return ca, ok
}

func (v *verifiedCache) put(since uint64, sum [sha256.Size]byte, ca CAID) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.changes != since {
		return
	}
	if v.was == nil || len(v.was) >= maxVerified {
		v.was = map[[sha256.Size]byte]CAID{}
	}
	v.was[sum] = ca
}

func (v *verifiedCache) clear() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.was, v.chains = nil, nil
	v.changes++
}

// Resolve recognises a device by its certificate; it makes the service an
// identity.Method. The chain is verified once, and the certificate's state, its
// time and the device's on every use.
func (s *Service) Resolve(ctx context.Context, p identity.Proof) (identity.Actor, error) {
	if len(p.Chain) == 0 {
		return identity.Actor{}, identity.ErrNotMine
	}
	leaf := p.Chain[0]
	sum := sha256.Sum256(leaf.Raw)
	if err := inTime(leaf, s.Now()); err != nil {
		return identity.Actor{}, err
	}
	if _, err := s.recognised(ctx, p.Chain, sum); err != nil {
		return identity.Actor{}, err
	}
	var actor identity.Actor
	var supersedes bool
	err := s.DB.View(ctx, func(tx store.Tx) error {
		c, err := certificates.GetBy(tx, "fingerprint", store.TermOf(hex.EncodeToString(sum[:])))
		if fault.Is(err, fault.NotFound) {
			return fault.New(fault.Unauthenticated, "the certificate is not of a device known here; enrol it first")
		}
		if err != nil {
			return err
		}
		if err := c.good(); err != nil {
			return err
		}
		if c.Device == "" {
			return fault.New(fault.Unauthenticated, "the certificate is of no device")
		}
		d, credential, err := s.Devices.Prove(tx, c.Device, identity.Certificate, string(c.Serial))
		if err != nil {
			return err
		}
		actor, supersedes = d.Actor(credential), len(c.Supersedes) > 0
		return nil
	})
	if err == nil && supersedes {
		err = s.firstUse(ctx, actor.Credential.ID)
	}
	return actor, err
}

// Nameless returns the organisation of the CA that a presented chain leads to, if
// the certificate is good now and is of no device in the inventory: it was issued
// elsewhere, or here for no device. It is for those who know such devices by
// another name, and Unauthenticated for every other chain.
func (s *Service) Nameless(ctx context.Context, chain []*x509.Certificate) (org string, err error) {
	org, _, err = s.nameless(ctx, chain)
	return org, err
}

// FromOutside reports whether a presented chain is what [Service.Nameless] is for, and its
// certificate was issued elsewhere.
func (s *Service) FromOutside(ctx context.Context, chain []*x509.Certificate) (bool, error) {
	_, outside, err := s.nameless(ctx, chain)
	return outside && err == nil, err
}

func (s *Service) nameless(ctx context.Context, chain []*x509.Certificate) (org string, outside bool, err error) {
	leaf := chain[0]
	sum := sha256.Sum256(leaf.Raw)
	if err := inTime(leaf, s.Now()); err != nil {
		return "", false, err
	}
	ca, err := s.recognised(ctx, chain, sum)
	if err != nil {
		return "", false, err
	}
	a, err := s.authority(ctx, ca)
	if err != nil {
		return "", false, err
	}
	err = s.DB.View(ctx, func(tx store.Tx) error {
		c, err := certificates.GetBy(tx, "fingerprint", store.TermOf(hex.EncodeToString(sum[:])))
		switch {
		case fault.Is(err, fault.NotFound):
			outside = true
			return nil
		case err != nil:
			return err
		case c.Device != "":
			return fault.New(fault.Unauthenticated, "the certificate is of a device in the inventory")
		}
		return c.good()
	})
	check := cmp.Or(a.Check, s.outsideCheck())
	if err != nil || !outside || check == CheckOff {
		return a.Org, outside, err
	}
	found, err := s.verify(ctx, chain, a, s.Now(), clientAuth)
	if err != nil {
		return "", false, err
	}
	return a.Org, true, s.outsideGood(ctx, found.path, check, s.hereOn(ctx, found.path))
}

func (c *Certificate) good() error {
	switch c.State {
	case CertRevoked:
		return fault.New(fault.Unauthenticated, "the certificate is revoked (%s)", c.Reason)
	case CertHold:
		return fault.New(fault.Unauthenticated, "the certificate is on hold")
	default:
		return nil
	}
}

// firstUse revokes what a certificate was to replace once it is used.
func (s *Service) firstUse(ctx context.Context, serial string) error {
	return s.DB.Update(ctx, func(tx store.Tx) error {
		var old []Serial
		_, err := certificates.Update(tx, serial, func(c *Certificate) error {
			old, c.Supersedes = c.Supersedes, nil
			return nil
		})
		if err != nil {
			return err
		}
		for _, o := range old {
			if err := s.endOf(ctx, tx, string(o), Superseded); err != nil {
				return err
			}
		}
		return nil
	})
}

// recognised returns which of our CAs, or of those that organisations registered
// for validation, a chain leads to. It is verified once.
func (s *Service) recognised(ctx context.Context, chain []*x509.Certificate, sum [sha256.Size]byte) (CAID, error) {
	if ca, ok := s.verified.get(sum); ok {
		return ca, nil
	}
	since := s.verified.now()
	candidates, err := s.above(ctx, chain)
	if err != nil {
		return "", err
	}
	found, err := s.verifyAny(ctx, chain, candidates, time.Time{}, clientAuth)
	if err != nil {
		return "", err
	}
	s.verified.put(since, sum, found.ca.ID)
	return found.ca.ID, nil
}

// above returns the CAs known here that a presented certificate names as its issuer.
func (s *Service) above(ctx context.Context, chain []*x509.Certificate) ([]*authority, error) {
	var found []*authority
	err := s.DB.View(ctx, func(tx store.Tx) error {
		for _, cert := range chain[:min(len(chain), maxPresented)] {
			if len(cert.AuthorityKeyId) == 0 {
				continue
			}
			same, err := s.byKeyID(tx, hex.EncodeToString(cert.AuthorityKeyId))
			if err != nil {
				return err
			}
			for _, ca := range same {
				if ca.Certificate == nil {
					continue
				}
				a, err := parseAuthority(ca)
				if err != nil {
					return err
				}
				found = append(found, a)
			}
		}
		return nil
	})
	return found, err
}

var clientAuth = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}

// inTime refuses a certificate before its beginning and after its end.
func inTime(cert *x509.Certificate, now time.Time) error {
	switch {
	case now.Before(cert.NotBefore):
		return fault.New(fault.Unauthenticated, "the certificate is not valid before %s", cert.NotBefore.UTC().Format(time.RFC3339))
	case now.After(cert.NotAfter):
		return fault.New(fault.Unauthenticated, "the certificate expired on %s", cert.NotAfter.UTC().Format(time.RFC3339))
	}
	return nil
}

// Validation says how a presented chain is to be validated.
type Validation struct {
	CAs          []CAID          // any of which it must lead to
	Level        int             // look at so many certificates of the chain only; 0 or less for all
	AllowExpired bool            // of the leaf
	AnyUsage     bool            // do not ask for the extended key usage of a client
	Check        RevocationCheck // overrules that of the CA it leads to
}

// Validate verifies a presented chain against CAs of an organisation, and says
// which of them it leads to. Faults are Unauthenticated with a reason a
// technician can act on. Revocation is looked at too: of what was issued here, and
// of what outside CAs have issued as the CA's RevocationCheck says.
func (s *Service) Validate(ctx context.Context, org string, chain []*x509.Certificate, v Validation) (CAID, error) {
	if len(chain) == 0 {
		return "", fault.New(fault.Unauthenticated, "no client certificate was presented")
	}
	if v.Level > 0 && len(chain) > v.Level {
		chain = chain[:v.Level]
	}
	now := s.Now()
	leaf := chain[0]
	if now.Before(leaf.NotBefore) || !v.AllowExpired {
		if err := inTime(leaf, now); err != nil {
			return "", err
		}
	}
	at := now
	if now.After(leaf.NotAfter) {
		at = leaf.NotBefore.Add(time.Second)
	}
	key := v.key(org, chain)
	found, known := s.verified.chain(key, at)
	if !known {
		since := s.verified.now()
		var err error
		if found, err = s.validate(ctx, org, chain, v, at); err != nil {
			return "", err
		}
		s.verified.putChain(since, key, found)
	}
	record, err := s.recordOf(ctx, leaf)
	if err == nil {
		err = record.good()
	}
	if err != nil {
		return "", err
	}
	check := cmp.Or(v.Check, found.ca.Check, s.outsideCheck())
	return found.ca.ID, s.outsideGood(ctx, found.path, check, func(i int) (bool, error) {
		return found.here[i] || i == 0 && record.Serial != "", nil
	})
}

// key is of a chain and all that it is verified by, save time and what CAs are.
func (v *Validation) key(org string, chain []*x509.Certificate) [sha256.Size]byte {
	b := make([]byte, 0, 2048)
	note := func(part string) { b = append(binary.AppendUvarint(b, uint64(len(part))), part...) }
	note(org)
	for _, ca := range v.CAs {
		note(string(ca))
	}
	note("") // the end of them
	b = append(b, bit(v.AnyUsage))
	for _, cert := range chain {
		note(string(cert.Raw))
	}
	return sha256.Sum256(b)
}

// validate verifies a chain against the CAs of v that are the organisation's.
func (s *Service) validate(ctx context.Context, org string, chain []*x509.Certificate, v Validation, at time.Time) (validated, error) {
	trusted := make([]*authority, 0, len(v.CAs))
	for _, ca := range v.CAs {
		a, err := s.authority(ctx, ca)
		if fault.Is(err, fault.NotFound) || err == nil && (a.Org != org || a.cert == nil) {
			continue
		}
		if err != nil {
			return validated{}, err
		}
		trusted = append(trusted, a)
	}
	usage := clientAuth
	if v.AnyUsage {
		usage = []x509.ExtKeyUsage{x509.ExtKeyUsageAny}
	}
	found, err := s.verifyAny(ctx, chain, trusted, at, usage)
	if err != nil {
		return found, err
	}
	found.here = make([]bool, len(found.path)-1)
	for i := range found.here {
		if found.here[i], err = s.issuedHere(ctx, found.path[i], found.path[i+1]); err != nil {
			return found, err
		}
	}
	return found, nil
}

// NotRevoked refuses, as Unauthenticated, a certificate the inventory knows as revoked.
func (s *Service) NotRevoked(ctx context.Context, leaf *x509.Certificate) error {
	c, err := s.recordOf(ctx, leaf)
	if err != nil {
		return err
	}
	return c.good()
}

// recordOf is what the inventory has of a certificate, the zero one if it is not in it.
func (s *Service) recordOf(ctx context.Context, cert *x509.Certificate) (c Certificate, err error) {
	err = s.DB.View(ctx, func(tx store.Tx) error {
		c, err = certificates.GetBy(tx, "fingerprint", store.TermOf(Fingerprint(cert.Raw)))
		if fault.Is(err, fault.NotFound) {
			return nil
		}
		return err
	})
	return c, err
}

// verifyAny verifies a chain against each of the CAs; the zero time is now.
func (s *Service) verifyAny(ctx context.Context, chain []*x509.Certificate, trusted []*authority, at time.Time, usage []x509.ExtKeyUsage) (validated, error) {
	leaf := chain[0]
	if at.IsZero() {
		at = s.Now()
	}
	if weak(leaf.SignatureAlgorithm) {
		return validated{}, fault.New(fault.Unauthenticated, "the certificate is signed with %s, which proves nothing any more", leaf.SignatureAlgorithm)
	}
	if err := GoodKey(leaf.PublicKey); err != nil {
		return validated{}, fault.New(fault.Unauthenticated, "the certificate's key is no good: %s", fault.Message(err))
	}
	var worst error
	for _, a := range trusted {
		found, err := s.verify(ctx, chain, a, at, usage)
		if err == nil {
			return found, nil
		}
		if worst == nil || fault.KindOf(worst) == fault.Internal {
			worst = err
		}
	}
	if worst != nil {
		return validated{}, worst
	}
	return validated{}, untrusted(chain, trusted)
}

func weak(alg x509.SignatureAlgorithm) bool {
	return slices.Contains([]x509.SignatureAlgorithm{x509.SHA1WithRSA, x509.ECDSAWithSHA1, x509.MD5WithRSA, x509.MD2WithRSA, x509.DSAWithSHA1, x509.DSAWithSHA256}, alg)
}

// untrusted says whether the chain breaks off or leads elsewhere.
func untrusted(chain []*x509.Certificate, _ []*authority) error {
	top := chain[min(len(chain), maxPresented)-1]
	if bytes.Equal(top.RawSubject, top.RawIssuer) {
		return fault.New(fault.Unauthenticated, "the certificate leads to %s, which is not a trusted CA", quotedName(top.Subject))
	}
	return fault.New(fault.Unauthenticated, "the certificate's chain ends at %s, issued by %s, which is not a trusted CA; if a trusted CA is above it, send the certificates in between too (incomplete chain)",
		quotedName(top.Subject), quotedName(top.Issuer))
}

// maxQuoted is how much of a name that somebody shows is said back, in characters.
const maxQuoted = 120

// quotedName is a name of a certificate that nobody here has made, as an answer, a log and
// a terminal may have it: what cannot be printed is written as Go would, and it ends.
func quotedName(name pkix.Name) string {
	return strconv.Quote(ended(name.String()))
}

// ended is text, or its beginning.
func ended(text string) string {
	runes := []rune(text)
	if len(runes) <= maxQuoted {
		return text
	}
	return string(runes[:maxQuoted]) + "…"
}

func (s *Service) verify(ctx context.Context, chain []*x509.Certificate, a *authority, at time.Time, usage []x509.ExtKeyUsage) (validated, error) {
	if err := s.standing(ctx, a); err != nil {
		return validated{}, err
	}
	roots, between := x509.NewCertPool(), x509.NewCertPool()
	roots.AddCert(a.cert)
	for _, cert := range chain[1:min(len(chain), maxPresented)] {
		between.AddCert(cert)
	}
	if err := s.addBelow(ctx, between, a.ID); err != nil {
		return validated{}, err
	}
	paths, err := chain[0].Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: at, KeyUsages: usage})
	if err == nil {
		found := validated{ca: a, path: paths[0], from: chain[0].NotBefore, until: chain[0].NotAfter}
		for _, cert := range paths[0] {
			if cert.NotBefore.After(found.from) {
				found.from = cert.NotBefore
			}
			if cert.NotAfter.Before(found.until) {
				found.until = cert.NotAfter
			}
		}
		return found, nil
	}
	return validated{}, unverified(chain, err)
}

// unverified says what the standard library finds wrong with a chain.
func unverified(chain []*x509.Certificate, err error) error {
	if e, ok := errors.AsType[x509.CertificateInvalidError](err); ok {
		switch e.Reason {
		case x509.Expired:
			return fault.New(fault.Unauthenticated, "a CA certificate in the chain is not valid at this time: %s", quotedName(e.Cert.Subject))
		case x509.IncompatibleUsage:
			return fault.New(fault.Unauthenticated, "the certificate is not for clients: its extended key usage lacks clientAuth")
		case x509.TooManyIntermediates:
			return fault.New(fault.Unauthenticated, "the chain is longer than a CA in it allows (path length)")
		case x509.CANotAuthorizedForThisName:
			return fault.New(fault.Unauthenticated, "a CA in the chain may not issue for these names (name constraints)")
		default:
			return fault.New(fault.Unauthenticated, "the chain is not valid: %s", cause(err))
		}
	}
	if _, ok := errors.AsType[x509.UnhandledCriticalExtension](err); ok {
		return fault.New(fault.Unauthenticated, "the certificate has a critical extension that is not known here")
	}
	return untrusted(chain, nil)
}

// standing refuses a CA that is revoked, or below one that is.
func (s *Service) standing(ctx context.Context, a *authority) error {
	for range maxChain + 1 {
		switch a.State {
		case CARevoked:
			return fault.New(fault.Unauthenticated, "the certificate's CA %q is revoked", a.Name)
		case CAPending:
			return fault.New(fault.Unauthenticated, "the certificate's CA %q is not in service", a.Name)
		default:
		}
		if a.Parent == "" {
			return nil
		}
		parent, err := s.authority(ctx, a.Parent)
		if err != nil {
			return err
		}
		a = parent
	}
	return nil
}

// addBelow adds the CAs below one of ours, which clients need not send.
func (s *Service) addBelow(ctx context.Context, pool *x509.CertPool, ca CAID) error {
	return s.DB.View(ctx, func(tx store.Tx) error { return addBelow(tx, pool, ca, maxChain) })
}

func addBelow(tx store.Tx, pool *x509.CertPool, ca CAID, depth int) error {
	if depth == 0 {
		return nil
	}
	below, err := cas.PageBy(tx, "parent", store.TermOf(string(ca)), page.Request{Limit: page.MaxLimit})
	if err != nil {
		return err
	}
	for _, child := range below.Items {
		if child.Certificate == nil || child.State == CARevoked {
			continue
		}
		cert, err := x509.ParseCertificate(child.Certificate)
		if err != nil {
			return err
		}
		pool.AddCert(cert)
		if err := addBelow(tx, pool, child.ID, depth-1); err != nil {
			return err
		}
	}
	return nil
}
