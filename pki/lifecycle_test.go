package pki_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"

	"keystead/audit"
	"keystead/fault"
	"keystead/identity"
	"keystead/pki"
	"keystead/store"
)

// ask asks the service's OCSP about a certificate, as a client does.
func (h *house) ask(t testing.TB, leaf, issuer *x509.Certificate, hash crypto.Hash) *ocsp.Response {
	t.Helper()
	request, err := ocsp.CreateRequest(leaf, issuer, &ocsp.RequestOptions{Hash: hash})
	if err != nil {
		t.Fatal(err)
	}
	answer, err := ocsp.ParseResponseForCert(h.OCSP(t.Context(), request).DER, leaf, issuer)
	if err != nil {
		t.Fatalf("OCSP: %v", err)
	}
	return answer
}

func TestOCSP(t *testing.T) {
	h := open(t)
	c, _ := h.enrol(t, newKey(t), "pump")
	chain := h.chain(t, c)
	for _, hash := range []crypto.Hash{crypto.SHA1, crypto.SHA256} {
		if a := h.ask(t, chain[0], chain[1], hash); a.Status != ocsp.Good || a.Certificate == nil {
			t.Errorf("%v: got %+v, want good, by a delegate", hash, a.Status)
		} else if found, err := pki.Lint(a.Certificate.Raw); err != nil || len(found) > 0 {
			t.Errorf("OCSP signer: zlint found %v, %v", found, err)
		}
	}
	if a := h.ask(t, chain[1], chain[2], crypto.SHA1); a.Status != ocsp.Good {
		t.Errorf("the issuing CA: got %v, want good", a.Status)
	}
	if _, err := h.Revoke(h.ctx, string(c.Serial), pki.KeyCompromise); err != nil {
		t.Fatal(err)
	}
	if a := h.ask(t, chain[0], chain[1], crypto.SHA1); a.Status != ocsp.Revoked || a.RevocationReason != ocsp.KeyCompromise || !a.RevokedAt.Equal(h.now()) {
		t.Errorf("revoked: got %v, %v, %v", a.Status, a.RevocationReason, a.RevokedAt)
	}
	stranger := *chain[0]
	stranger.SerialNumber = big.NewInt(4711)
	if a := h.ask(t, &stranger, chain[1], crypto.SHA1); a.Status != ocsp.Unknown {
		t.Errorf("not issued here: got %v, want unknown", a.Status)
	}
	other := open(t)
	foreign, _ := other.enrol(t, newKey(t), "x")
	request, err := ocsp.CreateRequest(other.chain(t, foreign)[0], other.chain(t, foreign)[1], nil)
	if err != nil {
		t.Fatal(err)
	}
	for name, der := range map[string][]byte{"another CA": request, "rubbish": []byte("hello"), "nothing": nil} {
		want := ocsp.Malformed
		if name == "another CA" {
			want = ocsp.Unauthorized
		}
		_, err := ocsp.ParseResponse(h.OCSP(t.Context(), der).DER, nil)
		if e, ok := err.(ocsp.ResponseError); !ok || e.Status != want { //nolint:errorlint // the parser's own
			t.Errorf("%s: got %v, want %v", name, err, want)
		}
	}
}

// opensslOCSP has openssl verify an answer of ours, nonce and all.
func TestOpenSSLAcceptsCRLAndOCSP(t *testing.T) {
	h := open(t)
	good, _ := h.enrol(t, newKey(t), "good")
	bad, _ := h.enrol(t, newKey(t), "bad")
	if _, err := h.Revoke(h.ctx, string(bad.Serial), pki.Superseded); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	at := strconv.FormatInt(h.now().Unix(), 10)
	for _, test := range []struct {
		c    pki.Certificate
		want string
	}{{good, "good"}, {bad, "revoked"}} {
		f := files(t, h.chain(t, test.c)...)
		request, answer := filepath.Join(dir, "req"), filepath.Join(dir, "resp")
		if out, err := openssl(t, "ocsp", "-issuer", f[1], "-cert", f[0], "-reqout", request); err != nil {
			t.Fatal(out)
		}
		der, err := os.ReadFile(request)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(answer, h.OCSP(t.Context(), der).DER, 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := openssl(t, "ocsp", "-issuer", f[1], "-cert", f[0], "-reqin", request, "-no_nonce", "-respin", answer, "-CAfile", f[2], "-verify_other", f[1], "-attime", at, "-validity_period", "999999999")
		if err != nil || !strings.Contains(out, "Response verify OK") || !strings.Contains(out, ": "+test.want) || strings.Contains(out, "WARNING") {
			t.Errorf("%s: %v\n%s", test.want, err, out)
		}
		crl, err := h.CRL(t.Context(), test.c.CA, test.c.Shard)
		if err != nil {
			t.Fatal(err)
		}
		path := filepath.Join(dir, "crl.pem")
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: crl.DER}), 0o600); err != nil {
			t.Fatal(err)
		}
		out, err = openssl(t, "verify", "-crl_check", "-CRLfile", path, "-CAfile", f[2], "-untrusted", f[1], "-attime", at, f[0])
		if (err == nil) != (test.want == "good") || err != nil && !strings.Contains(out, "certificate revoked") {
			t.Errorf("openssl verify -crl_check of %s: %v\n%s", test.want, err, out)
		}
	}
}

func TestCRLNumbersGrowAndOnlyChangedShardsAreMadeAgain(t *testing.T) {
	h := open(t)
	a, _ := h.enrol(t, newKey(t), "a")
	b, _ := h.enrol(t, newKey(t), "b")
	for a.Shard == b.Shard {
		b, _ = h.enrol(t, newKey(t), "b"+string(b.Serial[:4]))
	}
	crl := func(c pki.Certificate) pki.CRL {
		l, err := h.CRL(t.Context(), c.CA, c.Shard)
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	beforeA, beforeB := crl(a), crl(b)
	if _, err := h.Revoke(h.ctx, string(a.Serial), pki.CertificateHold); err != nil {
		t.Fatal(err)
	}
	afterA := crl(a)
	if afterA.Number <= beforeA.Number || afterA.Entries != 1 {
		t.Errorf("got number %d after %d with %d entries, want it to grow, with one", afterA.Number, beforeA.Number, afterA.Entries)
	}
	if afterB := crl(b); !bytes.Equal(afterB.DER, beforeB.DER) {
		t.Error("the other shard was made again")
	}
	if _, err := h.Revoke(h.ctx, string(a.Serial), pki.RemoveFromCRL); err != nil {
		t.Fatal(err)
	}
	if released := crl(a); released.Entries != 0 || released.Number <= afterA.Number {
		t.Errorf("after the release: got %d entries and number %d, want none and more than %d", released.Entries, released.Number, afterA.Number)
	}
	if _, err := h.resolve(t, a); err != nil {
		t.Errorf("after the release: %v", err)
	}
	h.reopen(t)
	if again := crl(a); again.Number < afterA.Number {
		t.Errorf("after a restart: got number %d, want at least %d", again.Number, afterA.Number)
	}
	h.advance(7 * 24 * time.Hour)
	if later := crl(b); later.Number <= beforeB.Number || !later.Expires.After(h.now()) {
		t.Errorf("near its end: got number %d, want a new one", later.Number)
	}
}

func TestRestoredBackupTakesNoRevocationBack(t *testing.T) {
	h := open(t)
	journal := func() *pki.Journal {
		j, err := pki.OpenJournal(h.path+".log", make([]byte, 32))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { j.Close() })
		return j
	}
	h.Journal = journal()
	early, _ := h.enrol(t, newKey(t), "early")
	if err := h.DB.Close(); err != nil {
		t.Fatal(err)
	}
	backup, err := os.ReadFile(h.path)
	if err != nil {
		t.Fatal(err)
	}
	h.reopen(t)
	h.Journal = journal()
	late, _ := h.enrol(t, newKey(t), "late") // after the backup
	for _, c := range []pki.Certificate{early, late} {
		if _, err := h.Revoke(h.ctx, string(c.Serial), pki.KeyCompromise); err != nil {
			t.Fatal(err)
		}
	}
	number := uint64(0)
	if crl, err := h.CRL(t.Context(), early.CA, early.Shard); err == nil {
		number = crl.Number
	}
	if err := h.DB.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(h.path, backup, 0o600); err != nil { // the restore
		t.Fatal(err)
	}
	h.advance(time.Second)
	h.reopen(t)
	if _, err := h.resolve(t, early); err != nil {
		t.Fatalf("without the journal the test shows nothing: %v", err)
	}
	h.Journal = journal()
	if err := h.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := h.resolve(t, early); !fault.Is(err, fault.Unauthenticated) {
		t.Errorf("revoked before the restore: got %v, want Unauthenticated", err)
	}
	if !h.listed(t, early) || !h.listed(t, late) {
		t.Error("a revocation is gone from the CRL")
	}
	if crl, err := h.CRL(t.Context(), early.CA, early.Shard); err != nil || crl.Number <= number {
		t.Errorf("CRL number went from %d to %d, %v", number, crl.Number, err)
	}
}

func TestRollOver(t *testing.T) {
	for _, alg := range []pki.Algorithm{pki.P256, pki.P384, pki.Ed25519, pki.RSA2048} {
		t.Run(string(alg), func(t *testing.T) {
			h := open(t)
			oldRoot, err := h.CreateCA(h.ctx, pki.NewCA{Name: "Root", Algorithm: alg})
			if err != nil {
				t.Fatal(err)
			}
			oldSub, err := h.CreateCA(h.ctx, pki.NewCA{Name: "Sub", Parent: oldRoot.ID, Algorithm: alg})
			if err != nil {
				t.Fatal(err)
			}
			if err := h.SetDefaultCA(h.ctx, oldSub.ID); err != nil {
				t.Fatal(err)
			}
			before, _ := h.enrol(t, newKey(t), "before")
			h.advance(24 * time.Hour)
			newRoot, err := h.RollOver(h.ctx, oldRoot.ID)
			if err != nil {
				t.Fatal(err)
			}
			newSub, err := h.RollOver(h.ctx, oldSub.ID)
			if err != nil {
				t.Fatal(err)
			}
			if newSub.Parent != newRoot.ID {
				t.Errorf("the new issuing CA is below %s, want the new root", newSub.Parent)
			}
			after, _ := h.enrol(t, newKey(t), "after")
			if after.CA != newSub.ID {
				t.Errorf("issued by %s, want the new CA", after.CA)
			}
			for _, c := range []pki.Certificate{before, after} {
				if _, err := h.resolve(t, c); err != nil {
					t.Errorf("%s: %v", c.CommonName, err)
				}
			}
			if len(newRoot.Cross) != 2 {
				t.Fatalf("got %d links, want new-with-old and old-with-new", len(newRoot.Cross))
			}
			der := func(b []byte) *x509.Certificate {
				c, err := x509.ParseCertificate(b)
				if err != nil {
					t.Fatal(err)
				}
				if found, err := pki.Lint(b); err != nil || len(found) > 0 {
					t.Errorf("zlint found %v, %v", found, err)
				}
				return c
			}
			f := files(t, der(oldRoot.Certificate), der(newRoot.Certificate), der(newRoot.Cross[0]), der(newRoot.Cross[1]),
				der(oldSub.Certificate), der(newSub.Certificate), h.chain(t, before)[0], h.chain(t, after)[0])
			at := strconv.FormatInt(h.now().Unix(), 10)
			for _, test := range []struct {
				name, root, link, sub, leaf string
			}{
				{"old leaf, old root", f[0], f[4], f[4], f[6]},
				{"new leaf, new root", f[1], f[5], f[5], f[7]},
				{"new leaf, old root, by new-with-old", f[0], f[2], f[5], f[7]},
				{"old leaf, new root, by old-with-new", f[1], f[3], f[4], f[6]},
			} {
				if out, err := openssl(t, "verify", "-CAfile", test.root, "-untrusted", test.link, "-untrusted", test.sub, "-attime", at, test.leaf); err != nil {
					t.Errorf("%s: %s", test.name, out)
				}
			}
			handed, err := h.Distribution(h.ctx, newSub.ID)
			if err != nil || len(handed) != 5 {
				t.Errorf("clients get %d certificates, %v; want both roots, the two links and the issuing CA", len(handed), err)
			}
		})
	}
}

func TestOfflineRoot(t *testing.T) {
	h := open(t)
	pending, err := h.CreateCA(h.ctx, pki.NewCA{Name: "Signed elsewhere", Outside: true})
	if err != nil {
		t.Fatal(err)
	}
	if pending.State != pki.CAPending {
		t.Errorf("got state %s, want pending", pending.State)
	}
	csr, err := x509.ParseCertificateRequest(pending.Request)
	if err != nil {
		t.Fatal(err)
	}
	root, key := outsideCA(t, h, "Offline root")
	signed := sign(t, h, csr.Subject, csr.PublicKey, root, key, true)
	ca, err := h.ImportCA(h.ctx, pki.Import{Pending: pending.ID, Certificate: signed, Chain: []*x509.Certificate{root}})
	if err != nil {
		t.Fatal(err)
	}
	if err := h.SetDefaultCA(h.ctx, ca.ID); err != nil {
		t.Fatal(err)
	}
	c, _ := h.enrol(t, newKey(t), "pump")
	chain := h.chain(t, c)
	if len(chain) != 3 || !chain[2].Equal(root) {
		t.Fatalf("got a chain of %d, want it to end at the offline root", len(chain))
	}
	f := files(t, chain...)
	if out, err := openssl(t, "verify", "-CAfile", f[2], "-untrusted", f[1], "-attime", strconv.FormatInt(h.now().Unix(), 10), f[0]); err != nil {
		t.Error(out)
	}
	if _, err := h.resolve(t, c); err != nil {
		t.Error(err)
	}
	wrong := sign(t, h, csr.Subject, newKey(t).Public(), root, key, true)
	if _, err := h.ImportCA(h.ctx, pki.Import{Pending: pending.ID, Certificate: wrong, Chain: []*x509.Certificate{root}}); err == nil {
		t.Error("a second certificate, for another key, was taken")
	}
}

func TestImport(t *testing.T) {
	h := open(t)
	root, key := outsideCA(t, h, "Vendor")
	for name, in := range map[string]pki.Import{
		"a leaf":          {Certificate: sign(t, h, pkix.Name{CommonName: "x"}, newKey(t).Public(), root, key, false)},
		"another's key":   {Certificate: root, Key: newKey(t)},
		"a foreign chain": {Certificate: root, Chain: h.chain(t, first(h.enrol(t, newKey(t), "y")))[2:]},
		"nothing":         {},
	} {
		if _, err := h.ImportCA(h.ctx, in); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: got %v, want Invalid", name, err)
		}
	}
	only, err := h.ImportCA(h.ctx, pki.Import{Certificate: root})
	if err != nil || only.Kind != pki.Validating {
		t.Fatalf("got %+v, %v", only, err)
	}
	if _, err := h.ImportCA(h.ctx, pki.Import{Certificate: root}); !fault.Is(err, fault.Conflict) {
		t.Errorf("twice: got %v, want Conflict", err)
	}
	if err := h.SetDefaultCA(h.ctx, only.ID); !fault.Is(err, fault.Conflict) {
		t.Errorf("issuing without a key: got %v, want Conflict", err)
	}
	if err := h.DeleteCA(h.ctx, only.ID); err != nil {
		t.Error(err)
	}
	issuing, err := h.ImportCA(h.ctx, pki.Import{Certificate: root, Key: key})
	if err != nil {
		t.Fatal(err)
	}
	if err := h.SetDefaultCA(h.ctx, issuing.ID); err != nil {
		t.Fatal(err)
	}
	c, _ := h.enrol(t, newKey(t), "pump")
	if _, err := h.resolve(t, c); err != nil {
		t.Error(err)
	}
	if err := h.DeleteCA(h.ctx, issuing.ID); !fault.Is(err, fault.Conflict) {
		t.Errorf("deleting a CA in use: got %v, want Conflict", err)
	}
}

func first[T, U any](v T, _ U) T { return v }

// outsideCA is a root that is not of the service.
func outsideCA(t testing.TB, h *house, name string) (*x509.Certificate, crypto.Signer) {
	t.Helper()
	key := newKey(t)
	return sign(t, h, pkix.Name{CommonName: name}, key.Public(), nil, key, true), key
}

func sign(t testing.TB, h *house, subject pkix.Name, public any, parent *x509.Certificate, key crypto.Signer, ca bool) *x509.Certificate {
	t.Helper()
	n, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: n, Subject: subject, NotBefore: h.now().Add(-time.Hour), NotAfter: h.now().Add(1000 * time.Hour), IsCA: ca, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	if ca {
		c.KeyUsage, c.ExtKeyUsage = x509.KeyUsageCertSign|x509.KeyUsageCRLSign, nil
	}
	if parent == nil {
		parent = c
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, public, key)
	if err != nil {
		t.Fatal(err)
	}
	out, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestRevokedCAEndsAllItIssued(t *testing.T) {
	h := open(t)
	c, _ := h.enrol(t, newKey(t), "pump")
	if _, err := h.resolve(t, c); err != nil {
		t.Fatal(err)
	}
	issuing, err := h.CA(h.ctx, c.CA)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := h.RevokeCA(h.ctx, issuing.Parent, pki.CACompromise); err != nil {
		t.Fatal(err)
	}
	if _, err := h.resolve(t, c); !fault.Is(err, fault.Unauthenticated) {
		t.Errorf("got %v, want Unauthenticated", err)
	}
	if got, err := h.CA(h.ctx, c.CA); err != nil || got.State != pki.CARevoked {
		t.Errorf("the issuing CA is %v, %v; want revoked", got.State, err)
	}
	if !h.listed(t, c) {
		t.Error("the certificate is not on the CRL")
	}
	if _, err := h.issue(pki.Request{Org: org, Profile: h.profile(t, pki.DeviceProfile), CSR: newCSR(t, newKey(t), named("x"))}, nil); !fault.Is(err, fault.Conflict) {
		t.Errorf("issuing: got %v, want Conflict", err)
	}
}

// TestCrashWhileIssuing ends the store under an issuing, at one of its steps, and
// looks at what a start on the same file finds: nothing where the CA's key is in
// this process, the intent where it signs elsewhere.
func TestCrashWhileIssuing(t *testing.T) {
	for _, c := range []struct {
		step    string
		outside bool
		swept   int
	}{
		{"before all", false, 0},
		{"before all", true, 0},
		{"before signing", true, 1},
		{"after signing", true, 1},
		{"when what is bound fails", false, 0},
		{"when what is bound fails", true, 0},
	} {
		t.Run(fmt.Sprintf("%s, outside %t", c.step, c.outside), func(t *testing.T) {
			h := open(t)
			p, err := h.Prepare(h.ctx, pki.Request{Org: org, Profile: h.profile(t, pki.DeviceProfile), CSR: newCSR(t, newKey(t), named("pump"))})
			if err != nil {
				t.Fatal(err)
			}
			if c.outside {
				h.Keys = elsewhere{KeyStore: h.Keys, at: map[string]func(){c.step: func() { h.DB.Close() }}}
			}
			if c.step == "before all" {
				h.DB.Close()
			}
			_, err = h.Issue(h.ctx, p, func(context.Context, store.Tx, *pki.Certificate) error { return fault.New(fault.Conflict, "no") })
			if err == nil {
				t.Fatal("issued all the same")
			}
			if _, err := h.Issue(h.ctx, p, nil); err == nil {
				t.Error("what was prepared once was issued twice")
			}
			h.DB.Close()
			h.Service = nil
			h.reopen(t)
			list, err := h.Certificates(h.ctx, pki.Filter{CommonName: "pump"}, pageAll)
			if err != nil || len(list.Items) != 0 {
				t.Errorf("after the crash: got %d certificates, %v; want none", len(list.Items), err)
			}
			trail, err := h.Audit.Search(h.ctx, audit.Filter{Action: "certificate.abandon"}, pageAll)
			if err != nil || len(trail.Items) != c.swept {
				t.Errorf("swept %d intents, %v; want %d", len(trail.Items), err, c.swept)
			}
			if _, d := h.enrol(t, newKey(t), "pump"); d.ID == "" {
				t.Error("the device cannot be enrolled after the crash")
			}
		})
	}
}

// A key that signs in another place than this process has its intents recorded, and
// leaves none when all goes well.
func TestIssuingWithAKeyElsewhere(t *testing.T) {
	h := open(t)
	h.Keys = elsewhere{KeyStore: h.Keys}
	r := pki.Request{Org: org, Profile: h.profile(t, pki.DeviceProfile), CSR: newCSR(t, newKey(t), named("pump"))}
	first, err := h.issue(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	taken, err := h.Prepare(h.ctx, r)
	if err != nil {
		t.Fatal(err)
	}
	if err := taken.SetSerialForTest(first.Serial); err != nil {
		t.Fatal(err)
	}
	if c, err := h.Issue(h.ctx, taken, nil); err != nil || c.Serial == first.Serial {
		t.Errorf("a serial that is taken: got %s again, %v", c.Serial, err)
	}
	together := make([]*pki.Prepared, 3)
	for i := range together {
		if together[i], err = h.Prepare(h.ctx, r); err != nil {
			t.Fatal(err)
		}
	}
	records, err := h.IssueAll(h.ctx, together, func(context.Context, store.Tx, int, *pki.Certificate) error { return nil })
	if err != nil || len(records) != len(together) {
		t.Errorf("issued %d together, %v", len(records), err)
	}
	h.DB.Close()
	h.Service = nil
	h.reopen(t)
	list, err := h.Certificates(h.ctx, pki.Filter{CommonName: "pump"}, pageAll)
	if err != nil || len(list.Items) != 5 {
		t.Errorf("got %d certificates, %v", len(list.Items), err)
	}
	if trail, err := h.Audit.Search(h.ctx, audit.Filter{Action: "certificate.abandon"}, pageAll); err != nil || len(trail.Items) != 0 {
		t.Errorf("swept %d intents of what was issued, %v", len(trail.Items), err)
	}
}

// elsewhere makes keys that look as if they signed in another place than this
// process, and does what is named at a step of that.
type elsewhere struct {
	pki.KeyStore
	at map[string]func()
}

func (k elsewhere) Signer(ctx context.Context, id string) (crypto.Signer, error) {
	key, err := k.KeyStore.Signer(ctx, id)
	return elsewhereKey{key, k.at}, err
}

type elsewhereKey struct {
	crypto.Signer
	at map[string]func()
}

func (k elsewhereKey) Sign(rand io.Reader, digest []byte, opts crypto.SignerOpts) ([]byte, error) {
	if crash := k.at["before signing"]; crash != nil {
		crash()
		return nil, errors.New("crash")
	}
	signature, err := k.Signer.Sign(rand, digest, opts)
	if crash := k.at["after signing"]; crash != nil {
		crash()
	}
	return signature, err
}

func TestTwoDevicesWithOneKey(t *testing.T) {
	h := open(t)
	key := newKey(t)
	h.enrol(t, key, "one")
	bind := func(name string) func(context.Context, store.Tx, *pki.Certificate) error {
		return func(ctx context.Context, tx store.Tx, c *pki.Certificate) error {
			d, err := h.Devices.CreateIn(ctx, tx, deviceNamed(name))
			if err != nil {
				return err
			}
			return h.Attach(ctx, tx, d.ID, c)
		}
	}
	r := pki.Request{Org: org, Profile: h.profile(t, pki.DeviceProfile), CSR: newCSR(t, key, named("two"))}
	if _, err := h.issue(r, bind("two")); !fault.Is(err, fault.Conflict) {
		t.Errorf("got %v, want Conflict", err)
	}
	r.Profile.AllowSharedKey = true
	if c, err := h.issue(r, bind("two")); err != nil || len(c.Flags) != 1 {
		t.Errorf("where the profile allows it: got flags %v, %v; want one", c.Flags, err)
	}
	lost := newKey(t)
	c, _ := h.enrol(t, lost, "lost")
	if _, err := h.Revoke(h.ctx, string(c.Serial), pki.KeyCompromise); err != nil {
		t.Fatal(err)
	}
	r.CSR = newCSR(t, lost, named("again"))
	if _, err := h.issue(r, bind("again")); !fault.Is(err, fault.Invalid) {
		t.Errorf("a compromised key: got %v, want Invalid", err)
	}
	root, err := h.DefaultCA(h.ctx)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := h.Keys.Signer(t.Context(), root.Key)
	if err != nil {
		t.Fatal(err)
	}
	r.CSR = newCSR(t, signer, named("ca"))
	if _, err := h.issue(r, bind("ca")); !fault.Is(err, fault.Invalid) {
		t.Errorf("a CA's key: got %v, want Invalid", err)
	}
}

func TestAnotherOrganisationSeesNothing(t *testing.T) {
	h := open(t)
	c, _ := h.enrol(t, newKey(t), "pump")
	ctx := identity.NewContext(t.Context(), identity.Actor{Kind: identity.User, ID: "eve", Org: "other", Role: identity.Owner})
	for name, err := range map[string]error{
		"certificate": second(h.Certificate(ctx, string(c.Serial))),
		"fingerprint": second(h.Certificate(ctx, c.Fingerprint)),
		"revoke":      second(h.Revoke(ctx, string(c.Serial), pki.Superseded)),
		"ca":          second(h.CA(ctx, c.CA)),
		"revoke ca":   second(h.RevokeCA(ctx, c.CA, pki.Superseded)),
		"roll over":   second(h.RollOver(ctx, c.CA)),
		"below ca":    second(h.CreateCA(ctx, pki.NewCA{Name: "x", Parent: c.CA})),
		"list of ca":  second(h.Certificates(ctx, pki.Filter{CA: c.CA}, pageAll)),
	} {
		if !fault.Is(err, fault.NotFound) {
			t.Errorf("%s: got %v, want NotFound", name, err)
		}
	}
}

func second[T any](_ T, err error) error { return err }
