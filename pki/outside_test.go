package pki_test

import (
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"math/big"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"

	"keystead/fault"
	"keystead/pki"
)

// abroad is a CA of somebody else, reached by what a certificate of its says.
type abroad struct {
	*house
	ca    pki.CA
	asked map[string]int // by what: "ocsp", "crl"

	ocsp func(request []byte) ([]byte, error) // in place of the CA's own answer
	crl  func() ([]byte, error)
}

var errDown = errors.New("nobody there")

func down([]byte) ([]byte, error) { return nil, errDown }
func noCRL() ([]byte, error)      { return nil, errDown }

// withAbroad has h recognise what another CA issues.
func withAbroad(t *testing.T, h *house, check pki.RevocationCheck) *abroad {
	t.Helper()
	o := &abroad{house: open(t), asked: map[string]int{}}
	o.clock.Store(h.clock.Load())
	issuing, err := o.DefaultCA(o.ctx)
	if err != nil {
		t.Fatal(err)
	}
	path, err := o.Path(o.ctx, issuing.ID)
	if err != nil {
		t.Fatal(err)
	}
	if o.ca, err = h.ImportCA(h.ctx, pki.Import{Name: "abroad", Certificate: path[len(path)-1], Check: check}); err != nil {
		t.Fatal(err)
	}
	h.Outside = &pki.Outside{Now: h.now, MaxAge: 10 * time.Minute, Fetch: o.fetch}
	return o
}

func (o *abroad) fetch(ctx context.Context, url, media string, body []byte, most int64) ([]byte, error) {
	path, ok := strings.CutPrefix(url, "http://pki.example:8080/")
	switch {
	case !ok:
		return nil, errors.New("another server: " + url)
	case path == "ocsp" && media == "application/ocsp-request":
		o.asked["ocsp"]++
		if o.ocsp != nil {
			return o.ocsp(body)
		}
		return o.OCSP(ctx, body).DER, nil
	case strings.HasPrefix(path, "crl/") && body == nil:
		o.asked["crl"]++
		if o.crl != nil {
			return o.crl()
		}
		ca, file, _ := strings.Cut(strings.TrimPrefix(path, "crl/"), "/")
		shard, err := pki.CRLPath(strings.TrimSuffix(file, ".crl"))
		if err != nil {
			return nil, err
		}
		crl, err := o.CRL(ctx, pki.CAID(ca), shard)
		return crl.DER, err
	}
	return nil, errors.New("nothing at " + url)
}

// validate is what EST does with a certificate of the CA abroad.
func (o *abroad) validate(t testing.TB, h *house, chain []*x509.Certificate) error {
	t.Helper()
	_, err := h.Validate(t.Context(), org, chain, pki.Validation{CAs: []pki.CAID{o.ca.ID}})
	return err
}

func TestOutsideCertificatesAreLookedUp(t *testing.T) {
	revoke := func(o *abroad, c pki.Certificate) error {
		_, err := o.Revoke(o.ctx, string(c.Serial), pki.KeyCompromise)
		return err
	}
	h := open(t)
	o := withAbroad(t, h, "")
	for _, test := range []struct {
		name   string
		change func(o *abroad, c pki.Certificate) error
		want   map[pki.RevocationCheck]fault.Kind // of those that refuse
		says   string
	}{
		{"good", func(*abroad, pki.Certificate) error { return nil }, nil, ""},
		{"revoked", revoke, map[pki.RevocationCheck]fault.Kind{pki.CheckSoft: fault.Unauthenticated, pki.CheckHard: fault.Unauthenticated, "": fault.Unauthenticated}, "revoked by its CA (keyCompromise)"},
		{"on hold", func(o *abroad, c pki.Certificate) error {
			_, err := o.Revoke(o.ctx, string(c.Serial), pki.CertificateHold)
			return err
		}, map[pki.RevocationCheck]fault.Kind{pki.CheckSoft: fault.Unauthenticated, pki.CheckHard: fault.Unauthenticated, "": fault.Unauthenticated}, "certificateHold"},
		{"good, by the CRL", func(o *abroad, _ pki.Certificate) error { o.ocsp = down; return nil }, nil, ""},
		{
			"revoked, by the CRL", func(o *abroad, c pki.Certificate) error { o.ocsp = down; return revoke(o, c) },
			map[pki.RevocationCheck]fault.Kind{pki.CheckSoft: fault.Unauthenticated, pki.CheckHard: fault.Unauthenticated, "": fault.Unauthenticated},
			"keyCompromise",
		},
		{
			"nobody answers", func(o *abroad, _ pki.Certificate) error { o.ocsp, o.crl = down, noCRL; return nil },
			map[pki.RevocationCheck]fault.Kind{pki.CheckHard: fault.Unavailable},
			"try again later",
		},
		{"rubbish", func(o *abroad, _ pki.Certificate) error {
			o.ocsp, o.crl = func([]byte) ([]byte, error) { return []byte("hello"), nil }, func() ([]byte, error) { return []byte("hello"), nil }
			return nil
		}, map[pki.RevocationCheck]fault.Kind{pki.CheckHard: fault.Unavailable}, "try again later"},
		{"the issuing CA is revoked by its root", func(o *abroad, c pki.Certificate) error {
			_, err := o.RevokeCA(o.ctx, c.CA, pki.CACompromise)
			return err
		}, map[pki.RevocationCheck]fault.Kind{pki.CheckSoft: fault.Unauthenticated, pki.CheckHard: fault.Unauthenticated, "": fault.Unauthenticated}, "revoked by its CA"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c, _ := o.enrol(t, newKey(t), "pump")
			chain := o.chain(t, c)[:2]
			o.ocsp, o.crl = nil, nil
			if err := test.change(o, c); err != nil {
				t.Fatal(err)
			}
			for _, check := range []pki.RevocationCheck{"", pki.CheckOff, pki.CheckSoft, pki.CheckHard} {
				clear(o.asked)
				h.Outside = &pki.Outside{Now: h.now, MaxAge: time.Minute, Fetch: o.fetch}
				_, err := h.Validate(t.Context(), org, chain, pki.Validation{CAs: []pki.CAID{o.ca.ID}, Check: check})
				want, refused := test.want[check]
				if refused != (err != nil) || refused && (!fault.Is(err, want) || !strings.Contains(fault.Message(err), test.says)) {
					t.Errorf("%q: got %v, want %v (refused: %v)", check, err, want, refused)
				}
				if (len(o.asked) == 0) != (check == pki.CheckOff) {
					t.Errorf("%q: asked %v", check, o.asked)
				}
			}
		})
	}
}

// Where a DMS has a word of its own it counts, and the configuration's where a CA has none.
// A device whose certificate is revoked must not be able to have the look-up fail by
// hanging up, and come in, while the failure is remembered, past a check that is soft.
func TestHangingUpDoesNotHideThatACertificateIsRevoked(t *testing.T) {
	h := open(t)
	o := withAbroad(t, h, pki.CheckSoft)
	c, _ := o.enrol(t, newKey(t), "pump")
	chain := o.chain(t, c)[:2]
	if _, err := o.Revoke(o.ctx, string(c.Serial), pki.KeyCompromise); err != nil {
		t.Fatal(err)
	}
	ctx, hangUp := context.WithCancel(t.Context())
	h.Outside.Fetch = func(ctx context.Context, url, media string, body []byte, most int64) ([]byte, error) {
		hangUp()
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		return o.fetch(ctx, url, media, body, most)
	}
	_, _ = h.Validate(ctx, org, chain, pki.Validation{CAs: []pki.CAID{o.ca.ID}}) // nobody is there to be answered
	if err := o.validate(t, h, chain); !fault.Is(err, fault.Unauthenticated) {
		t.Errorf("after it hung up and came again: got %v, want it to be refused", err)
	}
}

func TestWhoseRevocationCheckCounts(t *testing.T) {
	h := open(t)
	o := withAbroad(t, h, pki.CheckOff)
	c, _ := o.enrol(t, newKey(t), "pump")
	chain := o.chain(t, c)[:2]
	o.ocsp, o.crl = down, noCRL
	if err := o.validate(t, h, chain); err != nil {
		t.Errorf("the CA says off: %v", err)
	}
	if _, err := h.Validate(t.Context(), org, chain, pki.Validation{CAs: []pki.CAID{o.ca.ID}, Check: pki.CheckHard}); !fault.Is(err, fault.Unavailable) {
		t.Errorf("the DMS says hard: got %v, want Unavailable", err)
	}
	if ca, err := h.SetRevocationCheck(h.ctx, o.ca.ID, ""); err != nil || ca.Check != "" {
		t.Fatalf("got %q, %v", ca.Check, err)
	}
	h.Outside.Check = pki.CheckHard
	if err := o.validate(t, h, chain); !fault.Is(err, fault.Unavailable) {
		t.Errorf("the configuration says hard: got %v, want Unavailable", err)
	}
	if err := h.PathNotRevoked(t.Context(), o.chain(t, c)); !fault.Is(err, fault.Unavailable) {
		t.Errorf("of a path that was verified elsewhere: got %v, want Unavailable", err)
	}
	if _, err := h.SetRevocationCheck(h.ctx, o.ca.ID, "maybe"); !fault.Is(err, fault.Invalid) {
		t.Errorf("maybe: got %v, want Invalid", err)
	}
	h.Outside = nil
	if err := o.validate(t, h, chain); err != nil {
		t.Errorf("nobody to ask, soft: %v", err)
	}
	// A certificate that names nobody to ask is refused for good where it must be looked up.
	root, key := outsideCA(t, h, "mute")
	mute, err := h.ImportCA(h.ctx, pki.Import{Certificate: root, Check: pki.CheckHard})
	if err != nil {
		t.Fatal(err)
	}
	leaf := sign(t, h, pkix.Name{CommonName: "pump"}, newKey(t).Public(), root, key, false)
	if _, err := h.Validate(t.Context(), org, []*x509.Certificate{leaf}, pki.Validation{CAs: []pki.CAID{mute.ID}}); !fault.Is(err, fault.Unauthenticated) {
		t.Errorf("no pointers, hard: got %v, want Unauthenticated", err)
	}
	if _, err := h.Validate(t.Context(), org, []*x509.Certificate{leaf}, pki.Validation{CAs: []pki.CAID{mute.ID}, Check: pki.CheckSoft}); err != nil {
		t.Errorf("no pointers, soft: got %v", err)
	}
}

// What was said is believed for a while, and a failure is not tried again at once.
func TestOutsideAnswersAreKeptAsLongAsTheyHold(t *testing.T) {
	h := open(t)
	o := withAbroad(t, h, pki.CheckHard)
	c, _ := o.enrol(t, newKey(t), "pump")
	chain := o.chain(t, c)[:2]
	for range 5 {
		if err := o.validate(t, h, chain); err != nil {
			t.Fatal(err)
		}
	}
	if o.asked["ocsp"] != 2 || o.asked["crl"] != 0 {
		t.Errorf("asked %v, want OCSP once for the leaf and once for its issuer", o.asked)
	}
	if _, err := o.Revoke(o.ctx, string(c.Serial), pki.Superseded); err != nil {
		t.Fatal(err)
	}
	h.advance(11 * time.Minute)
	o.clock.Store(h.clock.Load())
	if err := o.validate(t, h, chain); !fault.Is(err, fault.Unauthenticated) {
		t.Errorf("revoked, when the answer was over: got %v, want Unauthenticated", err)
	}
	o.ocsp, o.crl = down, noCRL
	h.advance(11 * time.Minute)
	clear(o.asked)
	for range 3 {
		if err := o.validate(t, h, chain); !fault.Is(err, fault.Unavailable) {
			t.Errorf("down: got %v, want Unavailable", err)
		}
	}
	if o.asked["ocsp"] != 1 || o.asked["crl"] != 1 {
		t.Errorf("down: asked %v, want each once", o.asked)
	}
	o.ocsp = nil
	h.advance(2 * time.Minute)
	o.clock.Store(h.clock.Load())
	if err := o.validate(t, h, chain); !fault.Is(err, fault.Unauthenticated) {
		t.Errorf("up again: got %v, want Unauthenticated", err)
	}
}

// signedCRL is a CRL that somebody made.
func signedCRL(t testing.TB, now time.Time, issuer *x509.Certificate, key crypto.Signer, change func(*x509.RevocationList)) []byte {
	t.Helper()
	list := &x509.RevocationList{Number: big.NewInt(1), ThisUpdate: now.Add(-time.Minute), NextUpdate: now.Add(time.Hour)}
	if change != nil {
		change(list)
	}
	der, err := x509.CreateRevocationList(rand.Reader, list, issuer, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// extension is one of a CRL, of the issuing distribution point unless it has another id.
func extension(t testing.TB, id asn1.ObjectIdentifier, value any) []pkix.Extension {
	t.Helper()
	der, err := asn1.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	return []pkix.Extension{{Id: id, Critical: true, Value: der}}
}

// What an attacker on the way could answer, and what is not for this certificate, says nothing:
// the hard check refuses, whatever is in it.
func TestOutsideAnswersMustBeTheIssuers(t *testing.T) {
	h := open(t)
	o := withAbroad(t, h, pki.CheckHard)
	root, key := outsideCA(t, h, "Outside")
	ca, err := h.ImportCA(h.ctx, pki.Import{Certificate: root, Check: pki.CheckHard})
	if err != nil {
		t.Fatal(err)
	}
	stranger, strangerKey := outsideCA(t, h, "Outside") // of the same name
	device := newKey(t)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(4711), Subject: pkix.Name{CommonName: "pump"}, NotBefore: h.now().Add(-time.Hour), NotAfter: h.now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}, OCSPServer: []string{"ldap://x", "http://pki.example:8080/ocsp"},
		CRLDistributionPoints: []string{"http://pki.example:8080/crl/outside/0.crl"},
	}
	issue := func(change func(*x509.Certificate)) *x509.Certificate {
		c := *template
		if change != nil {
			change(&c)
		}
		der, err := x509.CreateCertificate(rand.Reader, &c, root, device.Public(), key)
		if err != nil {
			t.Fatal(err)
		}
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return cert
	}
	leaf := issue(nil)
	responder := func(usage ...x509.ExtKeyUsage) (*x509.Certificate, crypto.Signer) {
		key2 := newKey(t)
		c := &x509.Certificate{
			SerialNumber: big.NewInt(99), Subject: pkix.Name{CommonName: "responder"}, NotBefore: h.now().Add(-time.Hour), NotAfter: h.now().Add(time.Hour), ExtKeyUsage: usage,
		}
		der, err := x509.CreateCertificate(rand.Reader, c, root, key2.Public(), key)
		if err != nil {
			t.Fatal(err)
		}
		cert, err := x509.ParseCertificate(der)
		if err != nil {
			t.Fatal(err)
		}
		return cert, key2
	}
	answer := func(about *x509.Certificate, by *x509.Certificate, key crypto.Signer, embed bool, change func(*ocsp.Response)) func([]byte) ([]byte, error) {
		r := ocsp.Response{Status: ocsp.Good, SerialNumber: big.NewInt(4711), ThisUpdate: h.now(), NextUpdate: h.now().Add(time.Hour)}
		if embed {
			r.Certificate = by
		}
		if change != nil {
			change(&r)
		}
		return func([]byte) ([]byte, error) { return ocsp.CreateResponse(about, by, r, key) }
	}
	delegate, delegateKey := responder(x509.ExtKeyUsageOCSPSigning)
	impostor, impostorKey := responder(x509.ExtKeyUsageClientAuth)
	otherRoot, _ := outsideCA(t, h, "Another")
	revoked := func(r *ocsp.Response) { r.Status, r.RevokedAt = ocsp.Revoked, h.now() }
	for _, test := range []struct {
		name string
		ocsp func([]byte) ([]byte, error)
		want fault.Kind // Internal for good
	}{
		{"the issuer", answer(root, root, key, false, nil), fault.Internal},
		{"the issuer: revoked", answer(root, root, key, false, revoked), fault.Unauthenticated},
		{"a delegate", answer(root, delegate, delegateKey, true, nil), fault.Internal},
		{"a delegate: revoked", answer(root, delegate, delegateKey, true, revoked), fault.Unauthenticated},
		{"a certificate of the issuer that is no delegate", answer(root, impostor, impostorKey, true, nil), fault.Unavailable},
		{"a delegate, about another CA's certificate of this number", answer(otherRoot, delegate, delegateKey, true, nil), fault.Unavailable},
		{"a CA of the same name", answer(stranger, stranger, strangerKey, false, nil), fault.Unavailable},
		{"out of date", answer(root, root, key, false, func(r *ocsp.Response) { r.NextUpdate = h.now().Add(-time.Minute) }), fault.Unavailable},
		{"of the future", answer(root, root, key, false, func(r *ocsp.Response) { r.ThisUpdate = h.now().Add(time.Hour) }), fault.Unavailable},
		{"about another certificate", answer(root, root, key, false, func(r *ocsp.Response) { r.SerialNumber = big.NewInt(1) }), fault.Unavailable},
		{"unknown", answer(root, root, key, false, func(r *ocsp.Response) { r.Status = ocsp.Unknown }), fault.Unavailable},
		{"try later", func([]byte) ([]byte, error) { return ocsp.TryLaterErrorResponse, nil }, fault.Unavailable},
	} {
		h.Outside = &pki.Outside{Now: h.now, MaxAge: time.Minute, Fetch: o.fetch}
		o.ocsp, o.crl = test.ocsp, noCRL
		_, err := h.Validate(t.Context(), org, []*x509.Certificate{leaf}, pki.Validation{CAs: []pki.CAID{ca.ID}})
		if test.want == fault.Internal && err != nil || test.want != fault.Internal && !fault.Is(err, test.want) {
			t.Errorf("OCSP, %s: got %v, want %v", test.name, err, test.want)
		}
	}
	o.ocsp = down
	point := asn1.ObjectIdentifier{2, 5, 29, 28}
	type flags struct {
		UserOnly bool `asn1:"optional,tag:1"`
		CAOnly   bool `asn1:"optional,tag:2"`
		Indirect bool `asn1:"optional,tag:4"`
		AttrOnly bool `asn1:"optional,tag:5"`
	}
	type name struct {
		Full []asn1.RawValue `asn1:"optional,tag:0"`
	}
	type named struct {
		Name name `asn1:"optional,tag:0"`
	}
	at := func(url string) named {
		return named{name{[]asn1.RawValue{{Class: asn1.ClassContextSpecific, Tag: 6, Bytes: []byte(url)}}}}
	}
	gone := func(r *x509.RevocationList) {
		r.RevokedCertificateEntries = []x509.RevocationListEntry{{SerialNumber: big.NewInt(4711), RevocationTime: h.now()}}
	}
	with := func(value any) func(*x509.RevocationList) {
		return func(r *x509.RevocationList) { r.ExtraExtensions = extension(t, point, value) }
	}
	for _, test := range []struct {
		name string
		der  []byte
		want fault.Kind
	}{
		{"empty", signedCRL(t, h.now(), root, key, nil), fault.Internal},
		{"revoked", signedCRL(t, h.now(), root, key, gone), fault.Unauthenticated},
		{"a CA of the same name", signedCRL(t, h.now(), stranger, strangerKey, nil), fault.Unavailable},
		{"out of date", signedCRL(t, h.now(), root, key, func(r *x509.RevocationList) { r.NextUpdate = h.now().Add(-time.Second) }), fault.Unavailable},
		{"of the future", signedCRL(t, h.now(), root, key, func(r *x509.RevocationList) { r.ThisUpdate = h.now().Add(time.Hour - time.Minute) }), fault.Unavailable},
		{"this shard", signedCRL(t, h.now(), root, key, with(at("http://pki.example:8080/crl/outside/0.crl"))), fault.Internal},
		{"another shard", signedCRL(t, h.now(), root, key, with(at("http://pki.example:8080/crl/outside/1.crl"))), fault.Unavailable},
		{"of leaves", signedCRL(t, h.now(), root, key, with(flags{UserOnly: true})), fault.Internal},
		{"of CAs", signedCRL(t, h.now(), root, key, with(flags{CAOnly: true})), fault.Unavailable},
		{"indirect", signedCRL(t, h.now(), root, key, with(flags{Indirect: true})), fault.Unavailable},
		{"of attribute certificates", signedCRL(t, h.now(), root, key, with(flags{AttrOnly: true})), fault.Unavailable},
		{"a delta", signedCRL(t, h.now(), root, key, func(r *x509.RevocationList) { r.ExtraExtensions = extension(t, asn1.ObjectIdentifier{2, 5, 29, 27}, 1) }), fault.Unavailable},
		{"an entry of another issuer", signedCRL(t, h.now(), root, key, func(r *x509.RevocationList) {
			gone(r)
			r.RevokedCertificateEntries[0].ExtraExtensions = extension(t, asn1.ObjectIdentifier{2, 5, 29, 29}, 1)
		}), fault.Unavailable},
	} {
		h.Outside = &pki.Outside{Now: h.now, MaxAge: time.Minute, Fetch: o.fetch}
		o.crl = func() ([]byte, error) { return test.der, nil }
		_, err := h.Validate(t.Context(), org, []*x509.Certificate{leaf}, pki.Validation{CAs: []pki.CAID{ca.ID}})
		if test.want == fault.Internal && err != nil || test.want != fault.Internal && !fault.Is(err, test.want) {
			t.Errorf("CRL, %s: got %v, want %v", test.name, err, test.want)
		}
	}
}

// What is kept of outside is bounded, however many certificates there are.
func TestOutsideAnswersAreBounded(t *testing.T) {
	h := open(t)
	o := withAbroad(t, h, pki.CheckSoft)
	c, _ := o.enrol(t, newKey(t), "pump")
	chain := o.chain(t, c)[:2]
	for i := range 12_000 {
		h.Outside.KeepForTest("certificate "+string(rune(i)), 8<<10)
	}
	if n, size := h.Outside.KeptForTest(); n > 10_000 || size > 80<<20 {
		t.Errorf("kept %d answers of %d bytes", n, size)
	}
	if err := o.validate(t, h, chain); err != nil {
		t.Error(err)
	}
}

func FuzzOutside(f *testing.F) {
	h := open(f)
	root, key := outsideCA(f, h, "Outside")
	leaf := sign(f, h, pkix.Name{CommonName: "pump"}, newKey(f).Public(), root, key, false)
	f.Add(signedCRL(f, h.now(), root, key, nil))
	good, err := ocsp.CreateResponse(root, root, ocsp.Response{SerialNumber: leaf.SerialNumber, ThisUpdate: h.now(), NextUpdate: h.now().Add(time.Hour)}, key)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(good)
	o := &pki.Outside{Now: h.now}
	f.Fuzz(func(t *testing.T, der []byte) {
		if _, err := o.ReadForTest(der, leaf, root); err == nil && len(der) < 100 {
			t.Errorf("took %x", der)
		}
	})
}
