package pki_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"log/slog"
	"math/big"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"keystead/audit"
	"keystead/devices"
	"keystead/fault"
	"keystead/identity"
	"keystead/pki"
	"keystead/seal"
	"keystead/store"
	"keystead/store/bolt"
)

// house is a service of the test's own, with a clock the test moves.
type house struct {
	*pki.Service
	ctx   context.Context
	path  string
	clock atomic.Int64
	box   *seal.Box
}

const org = "acme"

func open(t testing.TB) *house {
	t.Helper()
	h := &house{path: filepath.Join(t.TempDir(), "db")}
	h.clock.Store(time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC).Unix())
	box, err := seal.NewBox(make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	h.box = box
	h.ctx = identity.NewContext(t.Context(), identity.Actor{Kind: identity.User, ID: "admin", Org: org, Role: identity.Admin})
	h.reopen(t)
	if _, err := h.EnsureOrg(h.ctx, org, "Acme"); err != nil {
		t.Fatal(err)
	}
	return h
}

// reopen starts the service on the database as it is, as a restart does.
func (h *house) reopen(t testing.TB) {
	t.Helper()
	if h.Service != nil {
		if err := h.DB.Close(); err != nil {
			t.Fatal(err)
		}
	}
	db, err := bolt.Open(h.path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	log := &audit.Log{DB: db, Key: make(seal.Secret, 32), Now: h.now}
	h.Service = &pki.Service{
		DB: db, Audit: log, Devices: &devices.Service{DB: db, Audit: log, Now: h.now}, Log: slog.New(slog.DiscardHandler), Now: h.now,
		Keys: &pki.SealedKeys{DB: db, Box: h.box}, PublicHTTP: "http://pki.example:8080",
	}
	if err := h.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func (h *house) now() time.Time           { return time.Unix(h.clock.Load(), 0) }
func (h *house) advance(by time.Duration) { h.clock.Add(int64(by / time.Second)) }

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func newCSR(t testing.TB, key crypto.Signer, r x509.CertificateRequest) *x509.CertificateRequest {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &r, key)
	if err != nil {
		t.Fatal(err)
	}
	csr, err := pki.ParseCSR(der)
	if err != nil {
		t.Fatal(err)
	}
	return csr
}

func named(cn string) x509.CertificateRequest {
	return x509.CertificateRequest{Subject: pkix.Name{CommonName: cn}}
}

func (h *house) profile(t testing.TB, name string) pki.Profile {
	t.Helper()
	p, err := h.Profile(h.ctx, name)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// enrol issues a certificate for key to a new device named cn.
func (h *house) enrol(t testing.TB, key crypto.Signer, cn string) (pki.Certificate, devices.Device) {
	t.Helper()
	var d devices.Device
	c, err := h.issue(pki.Request{Org: org, Profile: h.profile(t, pki.DeviceProfile), CSR: newCSR(t, key, named(cn))},
		func(ctx context.Context, tx store.Tx, c *pki.Certificate) (err error) {
			if d, err = h.Devices.CreateIn(ctx, tx, devices.New{Org: org, Name: cn}); err != nil {
				return err
			}
			return h.Attach(ctx, tx, d.ID, c)
		})
	if err != nil {
		t.Fatal(err)
	}
	return c, d
}

func (h *house) issue(r pki.Request, bind func(context.Context, store.Tx, *pki.Certificate) error) (pki.Certificate, error) {
	p, err := h.Prepare(h.ctx, r)
	if err != nil {
		return pki.Certificate{}, err
	}
	return h.Issue(h.ctx, p, bind)
}

func (h *house) chain(t testing.TB, c pki.Certificate) []*x509.Certificate {
	t.Helper()
	leaf, err := c.Parse()
	if err != nil {
		t.Fatal(err)
	}
	path, err := h.Path(h.ctx, c.CA)
	if err != nil {
		t.Fatal(err)
	}
	return append([]*x509.Certificate{leaf}, path...)
}

// resolve is what a listener does with a certificate.
func (h *house) resolve(t testing.TB, c pki.Certificate) (identity.Actor, error) {
	t.Helper()
	return h.Resolve(t.Context(), identity.Proof{Chain: h.chain(t, c)[:1]})
}

// files writes certificates as PEM, one file each, and returns their paths.
func files(t testing.TB, certs ...*x509.Certificate) []string {
	t.Helper()
	var paths []string
	for _, c := range certs {
		path := filepath.Join(t.TempDir(), "c.pem")
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}), 0o600); err != nil {
			t.Fatal(err)
		}
		paths = append(paths, path)
	}
	return paths
}

func openssl(t testing.TB, args ...string) (string, error) {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "openssl", args...).CombinedOutput()
	return string(out), err
}

func TestIssuedCertificateIsGoodAndRecorded(t *testing.T) {
	h := open(t)
	c, d := h.enrol(t, newKey(t), "pump-1")

	chain := h.chain(t, c)
	f := files(t, chain...)
	at := []string{"-attime", big.NewInt(h.now().Unix()).String()}
	args := append([]string{"verify", "-x509_strict", "-purpose", "sslclient", "-CAfile", f[2], "-untrusted", f[1]}, append(at, f[0])...)
	if out, err := openssl(t, args...); err != nil {
		t.Errorf("openssl verify: %s", out)
	}
	for i, cert := range chain {
		if found, err := pki.Lint(cert.Raw); err != nil || len(found) > 0 {
			t.Errorf("certificate %d: zlint found %v, %v", i, found, err)
		}
	}
	leaf := chain[0]
	switch {
	case leaf.Subject.CommonName != "pump-1":
		t.Errorf("got common name %q", leaf.Subject.CommonName)
	case len(leaf.SerialNumber.Bytes()) != 17 || leaf.SerialNumber.Sign() <= 0:
		t.Errorf("got serial %x, want 17 bytes, positive", leaf.SerialNumber)
	case len(leaf.ExtKeyUsage) != 1 || leaf.ExtKeyUsage[0] != x509.ExtKeyUsageClientAuth:
		t.Errorf("got extended key usages %v, want clientAuth alone", leaf.ExtKeyUsage)
	case !leaf.NotBefore.Equal(h.now().Add(-time.Minute).UTC()):
		t.Errorf("got not before %v, want a minute before %v", leaf.NotBefore, h.now())
	case len(leaf.CRLDistributionPoints) != 1 || len(leaf.OCSPServer) != 1:
		t.Errorf("got CRL %v and OCSP %v, want one each", leaf.CRLDistributionPoints, leaf.OCSPServer)
	}
	got, err := h.Certificate(h.ctx, string(c.Serial))
	if err != nil || got.Device != d.ID || got.State != pki.CertActive {
		t.Errorf("inventory has %+v, %v; want it active and of %s", got, err, d.ID)
	}
	a, err := h.resolve(t, c)
	if err != nil || a.ID != d.ID || a.Credential.ID != string(c.Serial) {
		t.Errorf("resolved to %+v, %v; want %s", a, err, d.ID)
	}
}

func TestRevokedIsRefusedAtOnce(t *testing.T) {
	h := open(t)
	for name, end := range map[string]func(c pki.Certificate, d devices.Device) error{
		"certificate revoked": func(c pki.Certificate, _ devices.Device) error {
			_, err := h.Revoke(h.ctx, string(c.Serial), pki.KeyCompromise)
			return err
		},
		"certificate held": func(c pki.Certificate, _ devices.Device) error {
			_, err := h.Revoke(h.ctx, string(c.Serial), pki.CertificateHold)
			return err
		},
		"device's certificates revoked": func(_ pki.Certificate, d devices.Device) error {
			_, err := h.RevokeDevice(h.ctx, d.ID, pki.Superseded)
			return err
		},
		"credential revoked on the device": func(c pki.Certificate, d devices.Device) error {
			return h.Devices.RevokeCredential(h.ctx, d.ID, identity.Certificate, string(c.Serial))
		},
		"device suspended": func(_ pki.Certificate, d devices.Device) error { _, err := h.Devices.Suspend(h.ctx, d.ID); return err },
		"device decommissioned": func(_ pki.Certificate, d devices.Device) error {
			_, err := h.Devices.Decommission(h.ctx, d.ID)
			return err
		},
		"expired": func(pki.Certificate, devices.Device) error { h.advance(366 * 24 * time.Hour); return nil },
	} {
		t.Run(name, func(t *testing.T) {
			c, d := h.enrol(t, newKey(t), "pump")
			if _, err := h.resolve(t, c); err != nil {
				t.Fatalf("before: %v", err)
			}
			epoch := h.Devices.Epoch()
			if err := end(c, d); err != nil {
				t.Fatal(err)
			}
			if _, err := h.resolve(t, c); !fault.Is(err, fault.Unauthenticated) {
				t.Errorf("after: got %v, want Unauthenticated", err)
			}
			if name != "expired" && h.Devices.Epoch() == epoch {
				t.Error("the epoch did not move: open sessions would go on")
			}
			if strings.Contains(name, "revoked") || strings.Contains(name, "decommissioned") {
				if got, err := h.Certificate(h.ctx, string(c.Serial)); err != nil || got.State != pki.CertRevoked {
					t.Errorf("inventory says %v, %v; want revoked", got.State, err)
				}
				if listed := h.listed(t, c); !listed {
					t.Error("the CRL does not list it")
				}
			}
		})
	}
}

// listed reports whether the CRL of a certificate's shard lists it.
func (h *house) listed(t testing.TB, c pki.Certificate) bool {
	t.Helper()
	crl, err := h.CRL(t.Context(), c.CA, c.Shard)
	if err != nil {
		t.Fatal(err)
	}
	list, err := x509.ParseRevocationList(crl.DER)
	if err != nil {
		t.Fatal(err)
	}
	if err := list.CheckSignatureFrom(h.chain(t, c)[1]); err != nil {
		t.Errorf("CRL: %v", err)
	}
	for _, e := range list.RevokedCertificateEntries {
		if pki.SerialOf(e.SerialNumber) == c.Serial {
			return true
		}
	}
	return false
}

// A million serial numbers are a million, and one that is taken all the same, by a
// certificate or by somebody who is issuing just now, is not used again.
func TestNoSerialTwice(t *testing.T) {
	const million = 1_000_000
	seen := make(map[string]struct{}, million)
	for range million {
		serial := pki.NewSerialForTest()
		if _, twice := seen[serial]; twice || len(serial) != 17 {
			t.Fatalf("drew %x, twice: %v", serial, twice)
		}
		seen[serial] = struct{}{}
	}
	h := open(t)
	r := pki.Request{Org: org, Profile: h.profile(t, pki.DeviceProfile), CSR: newCSR(t, newKey(t), named("pump"))}
	first, err := h.issue(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	colliding := func() *pki.Prepared {
		p, err := h.Prepare(h.ctx, r)
		if err != nil {
			t.Fatal(err)
		}
		if err := p.SetSerialForTest(first.Serial); err != nil {
			t.Fatal(err)
		}
		return p
	}
	second, err := h.Issue(h.ctx, colliding(), nil)
	if err != nil || second.Serial == first.Serial {
		t.Fatalf("a serial that is taken: got %s again, %v", second.Serial, err)
	}
	if cert, err := second.Parse(); err != nil || pki.SerialOf(cert.SerialNumber) != second.Serial {
		t.Errorf("recorded as %s, signed as %v, %v", second.Serial, cert.SerialNumber, err)
	}
	// Many that all draw the same one, at once: each gets one of its own.
	const at = 16
	same := make([]*pki.Prepared, at)
	for i := range same {
		if same[i], err = h.Prepare(h.ctx, r); err != nil {
			t.Fatal(err)
		}
		if err := same[i].SetSerialForTest("4f0000000000000000000000000000002a"); err != nil {
			t.Fatal(err)
		}
	}
	got := make([]pki.Certificate, at)
	var working sync.WaitGroup
	for i := range same {
		working.Go(func() {
			c, err := h.Issue(h.ctx, same[i], nil)
			if err != nil {
				t.Error(err)
			}
			got[i] = c
		})
	}
	working.Wait()
	used := map[pki.Serial]bool{first.Serial: true, second.Serial: true}
	for _, c := range got {
		if used[c.Serial] {
			t.Errorf("the serial number %s was used twice", c.Serial)
		}
		used[c.Serial] = true
	}
}
