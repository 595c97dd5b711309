package pki_test

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"net/url"
	"strings"
	"testing"

	"keystead/fault"
	"keystead/pki"
)

// Of a shape only the first and every 64th are linted: this lints all of them.
func TestWhatIsOfAKnownShapeIsWithoutFault(t *testing.T) {
	h := open(t)
	names := []string{"a", "0", "pump-7", "urn:dev:ops:32473-pump", "a.example.org", ".", "-", ":", strings.Repeat("x", 64), "127.0.0.1", "1234567890"}
	for _, p := range pki.BuiltinProfiles() {
		for _, alg := range []pki.Algorithm{pki.P256, pki.P384, pki.Ed25519} {
			for i, name := range names {
				key, err := pki.GenerateKey(alg)
				if err != nil {
					t.Fatal(err)
				}
				csr := newCSR(t, key, x509.CertificateRequest{Subject: pkix.Name{
					CommonName: name, SerialNumber: names[len(names)-1-i], Organization: []string{name}, OrganizationalUnit: []string{name},
				}})
				c, err := h.issue(pki.Request{Org: org, Profile: p, CSR: csr}, nil)
				if err != nil {
					t.Fatalf("%s, %s, %q: %v", p.Name, alg, name, err)
				}
				if found, err := pki.Lint(c.DER); err != nil || len(found) > 0 {
					t.Errorf("%s, %s, %q: zlint found %v, %v", p.Name, alg, name, found, err)
				}
			}
		}
	}
}

// A request that lints find fault with is refused after however many good ones of
// the same profile.
func TestAKnownShapeHidesNoFault(t *testing.T) {
	h := open(t)
	p := h.profile(t, pki.DeviceProfile)
	for i := range 3 {
		if _, err := h.issue(pki.Request{Org: org, Profile: p, CSR: newCSR(t, newKey(t), named(fmt.Sprintf("pump-%d", i)))}, nil); err != nil {
			t.Fatal(err)
		}
	}
	relative, err := url.Parse("pumps/7")
	if err != nil {
		t.Fatal(err)
	}
	for name, csr := range map[string]x509.CertificateRequest{
		"a URI that leads nowhere": {Subject: pkix.Name{CommonName: "pump-7"}, URIs: []*url.URL{relative}},
	} {
		if _, err := h.issue(pki.Request{Org: org, Profile: p, CSR: newCSR(t, newKey(t), csr)}, nil); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: got %v, want Invalid", name, err)
		}
	}
}
