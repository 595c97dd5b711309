package pki_test

import (
	"context"
	"crypto/x509"
	"fmt"
	"testing"
	"time"

	"golang.org/x/crypto/ocsp"

	"keystead/identity"
	"keystead/pki"
	"keystead/store"
)

// BenchmarkPrepare is what an issuing costs without its signature and the store:
// checking the request, building the certificate, linting it.
func BenchmarkPrepare(b *testing.B) {
	h := open(b)
	csr := newCSR(b, newKey(b), named("pump"))
	r := pki.Request{Org: org, Profile: h.profile(b, pki.DeviceProfile), CSR: csr}
	for b.Loop() {
		if _, err := h.Prepare(h.ctx, r); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkIssue is a whole issuing by a lone client: one durable commit.
func BenchmarkIssue(b *testing.B) {
	h := open(b)
	r := pki.Request{Org: org, Profile: h.profile(b, pki.DeviceProfile), CSR: newCSR(b, newKey(b), named("pump"))}
	for b.Loop() {
		if _, err := h.issue(r, nil); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkResolve is recognising a device by its certificate on a connection
// that stays open.
func BenchmarkResolve(b *testing.B) {
	h := open(b)
	c, _ := h.enrol(b, newKey(b), "pump")
	p := identity.Proof{Chain: h.chain(b, c)[:1]}
	for b.Loop() {
		if _, err := h.Resolve(b.Context(), p); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkOCSP is one answer with a nonce, which is signed anew.
func BenchmarkOCSP(b *testing.B) {
	h := open(b)
	c, _ := h.enrol(b, newKey(b), "pump")
	chain := h.chain(b, c)
	request, err := ocsp.CreateRequest(chain[0], chain[1], nil)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		if a := h.OCSP(b.Context(), request); len(a.DER) < 100 {
			b.Fatalf("got %x", a.DER)
		}
	}
}

// BenchmarkCRLAfterOneMore is the list that a client gets after one more
// revocation, in a CA with 100,000.
func BenchmarkCRLAfterOneMore(b *testing.B) {
	h := open(b)
	ca, err := h.DefaultCA(h.ctx)
	if err != nil {
		b.Fatal(err)
	}
	const revoked, batch = 100_000, 1000
	for done := 0; done < revoked; done += batch {
		if err := h.DB.Update(h.ctx, func(tx store.Tx) error {
			for i := range batch {
				if err := h.RevokedForTest(tx, ca, fmt.Sprintf("40%032x", done+i), ca.NotAfter); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			b.Fatal(err)
		}
	}
	var spent time.Duration
	n := 0
	for b.Loop() {
		b.StopTimer()
		c, _ := h.enrol(b, newKey(b), fmt.Sprintf("pump-%d", n))
		n++
		if _, err := h.Revoke(h.ctx, string(c.Serial), pki.Superseded); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		start := time.Now()
		crl, err := h.CRL(context.Background(), c.CA, c.Shard)
		spent += time.Since(start)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := x509.ParseRevocationList(crl.DER); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(spent.Microseconds())/float64(n)/1000, "ms/rebuild")
}
