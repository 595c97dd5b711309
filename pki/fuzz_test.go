package pki_test

import (
	"crypto/x509"
	"encoding/base64"
	"testing"

	"golang.org/x/crypto/ocsp"

	"keystead/pki"
)

func FuzzCSR(f *testing.F) {
	h := open(f)
	f.Add(newCSR(f, newKey(f), named("pump")).Raw)
	f.Add(newCSR(f, newKey(f), x509.CertificateRequest{DNSNames: []string{"a.example"}}).Raw)
	profile := h.profile(f, pki.DeviceProfile)
	profile.HonorEKU, profile.HonorKeyUsage = true, true
	f.Fuzz(func(t *testing.T, der []byte) {
		csr, err := pki.ParseCSR(der)
		if err != nil {
			return
		}
		pki.Challenge(csr)
		pki.CSRAttributes(csr)
		if _, err := h.Prepare(h.ctx, pki.Request{Org: org, Profile: profile, CSR: csr}); err != nil {
			return
		}
		for _, e := range csr.Extensions {
			pki.HardwareModules(e.Value)
		}
	})
}

func FuzzPKCS7(f *testing.F) {
	h := open(f)
	c, _ := h.enrol(f, newKey(f), "pump")
	f.Add(pki.CertsOnly(h.chain(f, c)...))
	f.Add(pki.CertsOnly())
	f.Fuzz(func(t *testing.T, der []byte) {
		certs, err := pki.ParseCertsOnly(der)
		if (err == nil) == (len(certs) == 0) {
			t.Fatalf("got %d certificates and %v", len(certs), err)
		}
		if err != nil {
			return
		}
		again, err := pki.ParseCertsOnly(pki.CertsOnly(certs...))
		if err != nil || len(again) != len(certs) {
			t.Errorf("written again: got %d certificates of %d, %v", len(again), len(certs), err)
		}
	})
}

func FuzzOCSPRequest(f *testing.F) {
	h := open(f)
	c, _ := h.enrol(f, newKey(f), "pump")
	chain := h.chain(f, c)
	request, err := ocsp.CreateRequest(chain[0], chain[1], nil)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(request)
	nonce, err := base64.StdEncoding.DecodeString("MG4wbDBFMEMwQTAJBgUrDgMCGgUABBQAAAAAAAAAAAAAAAAAAAAAAAAAAAQUAAAAAAAAAAAAAAAAAAAAAAAAAAACCAEjRWeJq83voiMwITAfBgkrBgEFBQcwAQIEEgQQAAECAwQFBgcICQoLDA0ODw==")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(nonce)
	f.Fuzz(func(t *testing.T, der []byte) {
		answer := h.OCSP(t.Context(), der)
		if len(answer.DER) == 0 || answer.DER[0] != 0x30 {
			t.Errorf("answered %x", answer.DER)
		}
	})
}

func FuzzCertificates(f *testing.F) {
	f.Add([]byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if certs, err := pki.ParseCertificates(b); (err == nil) == (len(certs) == 0) {
			t.Errorf("got %d certificates and %v", len(certs), err)
		}
		if _, err := pki.ParseKey(b); err == nil && len(b) < 16 {
			t.Errorf("a key in %x", b)
		}
	})
}
