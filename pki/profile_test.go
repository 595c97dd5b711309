package pki_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"math/big"
	"strings"
	"testing"
	"time"

	"keystead/devices"
	"keystead/fault"
	"keystead/page"
	"keystead/pki"
)

var pageAll = page.Request{Limit: page.MaxLimit}

func deviceNamed(name string) devices.New { return devices.New{Org: org, Name: name} }

func TestBuiltinProfilesIssueWhatTheNormsSay(t *testing.T) {
	h := open(t)
	for _, p := range pki.BuiltinProfiles() {
		for _, alg := range []pki.Algorithm{pki.P256, pki.P384, pki.P521, pki.Ed25519, pki.RSA2048} {
			t.Run(p.Name+"/"+string(alg), func(t *testing.T) {
				key, err := pki.GenerateKey(alg)
				if err != nil {
					t.Fatal(err)
				}
				csr := newCSR(t, key, x509.CertificateRequest{
					Subject: pkix.Name{CommonName: "pump", SerialNumber: "SN-1", Organization: []string{"Acme"}}, DNSNames: []string{"pump.example.org"},
				})
				c, err := h.issue(pki.Request{Org: org, Profile: p, CSR: csr}, nil)
				if err != nil {
					t.Fatal(err)
				}
				if found, err := pki.Lint(c.DER); err != nil || len(found) > 0 {
					t.Errorf("zlint found %v, %v", found, err)
				}
				f := files(t, h.chain(t, c)...)
				at := big.NewInt(h.now().Unix()).String()
				if out, err := openssl(t, "verify", "-x509_strict", "-CAfile", f[2], "-untrusted", f[1], "-attime", at, f[0]); err != nil {
					t.Errorf("openssl verify: %s", out)
				}
				leaf := h.chain(t, c)[0]
				switch p.Kind {
				case pki.IDevID:
					if !leaf.NotAfter.Equal(pki.Indefinite) || leaf.Subject.SerialNumber != "SN-1" || len(leaf.ExtKeyUsage) != 0 {
						t.Errorf("IDevID: got %v, %v, %v", leaf.NotAfter, leaf.Subject, leaf.ExtKeyUsage)
					}
				default:
					if leaf.NotAfter.After(h.chain(t, c)[1].NotAfter) {
						t.Errorf("ends at %v, after its issuer", leaf.NotAfter)
					}
				}
				if pointers := len(leaf.CRLDistributionPoints) > 0; pointers == p.NoRevocation {
					t.Errorf("has pointers to CRLs: %v, want %v", pointers, !p.NoRevocation)
				}
			})
		}
	}
}

func TestHardwareModuleName(t *testing.T) {
	h := open(t)
	// As of a TPM: type 2.23.133.1.2 and a serial number.
	module := []byte{0x30, 0x1c, 0xa0, 0x1a, 0x06, 0x08, 0x2b, 6, 1, 5, 5, 7, 8, 4, 0xa0, 0x0e, 0x30, 0x0c, 0x06, 0x05, 0x67, 0x81, 0x05, 0x01, 0x02, 0x04, 0x03, 1, 2, 3}
	csr := newCSR(t, newKey(t), x509.CertificateRequest{
		Subject:         pkix.Name{SerialNumber: "SN-7"},
		ExtraExtensions: []pkix.Extension{{Id: asn1.ObjectIdentifier{2, 5, 29, 17}, Value: module}},
	})
	c, err := h.issue(pki.Request{Org: org, Profile: h.profile(t, pki.IDevIDProfile), CSR: csr}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range h.chain(t, c)[0].Extensions {
		if e.Id.String() == "2.5.29.17" {
			if m := pki.HardwareModules(e.Value); len(m) != 1 || m[0].Type.String() != "2.23.133.1.2" || string(m[0].Serial) != "\x01\x02\x03" {
				t.Errorf("got %v", m)
			}
			return
		}
	}
	t.Error("the certificate has no alternative name")
}

// TestRequestGivesNothingAway: what a request asks for beyond its profile is not issued.
func TestRequestGivesNothingAway(t *testing.T) {
	h := open(t)
	evil := x509.CertificateRequest{
		Subject: pkix.Name{CommonName: "evil"},
		ExtraExtensions: []pkix.Extension{
			{Id: asn1.ObjectIdentifier{2, 5, 29, 19}, Critical: true, Value: []byte{0x30, 3, 1, 1, 0xff}}, // CA:TRUE
			{Id: asn1.ObjectIdentifier{2, 5, 29, 15}, Critical: true, Value: []byte{3, 2, 1, 6}},          // keyCertSign, cRLSign
			{Id: asn1.ObjectIdentifier{2, 5, 29, 37}, Value: []byte{0x30, 6, 6, 4, 0x55, 0x1d, 0x25, 0}},  // any
			{Id: asn1.ObjectIdentifier{2, 5, 29, 30}, Critical: true, Value: []byte{0x30, 0}},             // name constraints
			{Id: asn1.ObjectIdentifier{1, 2, 3, 4}, Critical: true, Value: []byte{5, 0}},                  // unknown
		},
	}
	p := h.profile(t, pki.DeviceProfile)
	p.HonorKeyUsage, p.HonorEKU = true, true
	c, err := h.issue(pki.Request{Org: org, Profile: p, CSR: newCSR(t, newKey(t), evil)}, nil)
	if err != nil {
		t.Fatal(err)
	}
	leaf := h.chain(t, c)[0]
	if leaf.IsCA || leaf.KeyUsage != x509.KeyUsageDigitalSignature || len(leaf.ExtKeyUsage) != 1 || leaf.ExtKeyUsage[0] != x509.ExtKeyUsageClientAuth {
		t.Errorf("got CA %v, usage %b, extended %v", leaf.IsCA, leaf.KeyUsage, leaf.ExtKeyUsage)
	}
	for _, e := range leaf.Extensions {
		if id := e.Id.String(); id == "1.2.3.4" || id == "2.5.29.30" {
			t.Errorf("extension %s was copied", id)
		}
	}
}

func TestWeakKeysAreRefused(t *testing.T) {
	prime := func(bits int) *big.Int {
		p, err := rand.Prime(rand.Reader, bits)
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	p := prime(1024)
	near := new(big.Int).Add(p, big.NewInt(2))
	for !near.ProbablyPrime(20) {
		near.Add(near, big.NewInt(2))
	}
	good := new(big.Int).Mul(prime(1024), prime(1024))
	// A product of primes of the form k*M + 65537^a mod M, as the flawed library made them.
	roca, ok := new(big.Int).SetString(rocaModulus(), 10)
	if !ok {
		t.Fatal("modulus")
	}
	for _, test := range []struct {
		name string
		key  crypto.PublicKey
		want string
	}{
		{"RSA 2048", &rsa.PublicKey{N: good, E: 65537}, ""},
		{"RSA 1024", &rsa.PublicKey{N: new(big.Int).Mul(prime(512), prime(512)), E: 65537}, "too weak"},
		{"RSA 8192", &rsa.PublicKey{N: new(big.Int).Lsh(good, 6144), E: 65537}, "at most"},
		{"exponent 3", &rsa.PublicKey{N: good, E: 3}, "exponent"},
		{"small factor", &rsa.PublicKey{N: new(big.Int).Mul(big.NewInt(3), new(big.Int).Rsh(good, 1)), E: 65537}, "small factor"},
		{"close primes", &rsa.PublicKey{N: new(big.Int).Mul(p, near), E: 65537}, "too close"},
		{"ROCA", &rsa.PublicKey{N: roca, E: 65537}, "ROCA"},
		{"P-224", p224(t), "too weak"},
		{"P-256", newKey(t).Public(), ""},
	} {
		err := pki.GoodKey(test.key)
		if (err == nil) != (test.want == "") || err != nil && (!fault.Is(err, fault.Invalid) || !strings.Contains(err.Error(), test.want)) {
			t.Errorf("%s: got %v, want %q", test.name, err, test.want)
		}
	}
}

func p224(t *testing.T) crypto.PublicKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P224(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key.Public()
}

// rocaModulus makes a modulus with the fingerprint of ROCA: 65537^a mod M for the
// product M of the small odd primes, plus a multiple of M that makes it long enough.
func rocaModulus() string {
	m := big.NewInt(1)
	for i := int64(3); i <= 167; i += 2 {
		if big.NewInt(i).ProbablyPrime(10) {
			m.Mul(m, big.NewInt(i))
		}
	}
	n := new(big.Int).Exp(big.NewInt(65537), big.NewInt(123457), m)
	k := new(big.Int).Lsh(big.NewInt(1), 2047)
	k.Sub(k, new(big.Int).Mod(k, m)).Add(k, m)
	n.Add(n, k)
	for n.Bit(0) == 0 || n.BitLen() != 2048 || divisible(n) {
		n.Add(n, m)
	}
	return n.String()
}

func divisible(n *big.Int) bool {
	for i := int64(3); i < 256; i += 2 {
		if new(big.Int).Mod(n, big.NewInt(i)).Sign() == 0 {
			return true
		}
	}
	return false
}

func TestProfileChecks(t *testing.T) {
	h := open(t)
	for name, change := range map[string]func(*pki.Profile){
		"no name":             func(p *pki.Profile) { p.Name = "" },
		"no validity":         func(p *pki.Profile) { p.Validity = pki.Validity{} },
		"too short":           func(p *pki.Profile) { p.Validity.Duration = 1 },
		"unknown usage":       func(p *pki.Profile) { p.KeyUsage = pki.KeyUsages{"Fly"} },
		"usage of CAs":        func(p *pki.Profile) { p.KeyUsage = pki.KeyUsages{"CertSign"} },
		"unknown EKU":         func(p *pki.Profile) { p.ExtendedKeyUsage = pki.EKUs{"fly"} },
		"bad policy":          func(p *pki.Profile) { p.Policies = []string{"9.9"} },
		"bad SAN":             func(p *pki.Profile) { p.SANs = []string{"x"} },
		"unknown kind":        func(p *pki.Profile) { p.Kind = "x" },
		"no key at all":       func(p *pki.Profile) { p.Crypto = pki.CryptoEnforcement{Enabled: true} },
		"the server's own":    func(p *pki.Profile) { p.Kind = pki.OCSP },
		"subject over length": func(p *pki.Profile) { p.Subject.Organization = strings.Repeat("x", 65) },
	} {
		p := pki.Profile{Name: "mine", Validity: pki.Validity{Type: "duration", Duration: pki.Duration(time.Hour)}}
		change(&p)
		if _, err := h.CreateProfile(h.ctx, p); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: got %v, want Invalid", name, err)
		}
	}
	p, err := h.CreateProfile(h.ctx, pki.Profile{
		Name: "mine", Validity: pki.Validity{Type: "Duration", Duration: pki.Duration(time.Hour)}, KeyUsage: pki.KeyUsages{"digitalsignature"},
		ExtendedKeyUsage: pki.EKUs{"clientauth", "1.3.6.1.4.1.44924.1.6"}, Subject: pki.Subject{Organization: "Acme"}, Policies: []string{"1.3.6.1.4.1.1"},
		SANs: []string{"URI:urn:device:{cn}"}, Crypto: pki.CryptoEnforcement{Enabled: true, AllowECDSA: true, ECDSASizes: []int{256}},
	})
	if err != nil {
		t.Fatal(err)
	}
	c, err := h.issue(pki.Request{Org: org, Profile: p, CSR: newCSR(t, newKey(t), named("pump"))}, nil)
	if err != nil {
		t.Fatal(err)
	}
	leaf := h.chain(t, c)[0]
	if leaf.Subject.String() != "CN=pump,O=Acme" || len(leaf.URIs) != 1 || leaf.URIs[0].String() != "urn:device:pump" || len(leaf.UnknownExtKeyUsage) != 1 {
		t.Errorf("got %v, %v, %v", leaf.Subject, leaf.URIs, leaf.UnknownExtKeyUsage)
	}
	for _, alg := range []pki.Algorithm{pki.RSA2048, pki.P384, pki.Ed25519} {
		key, err := pki.GenerateKey(alg)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := h.issue(pki.Request{Org: org, Profile: p, CSR: newCSR(t, key, named("x"))}, nil); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: got %v, want Invalid", alg, err)
		}
	}
}

func TestDuration(t *testing.T) {
	for text, want := range map[string]string{
		"1y2w3d": "1y2w3d", "90m": "1h30m", "365d": "1y1d", "0": "0s", "100d": "14w2d", "1.5h": "1h30m", "-5s": "-5s", "10us": "10us", "": "!", "5": "!", "h": "!",
		"99999999y": "!", "1x": "!", "1h-": "!",
	} {
		d, err := pki.ParseDuration(text)
		got := d.String()
		if err != nil {
			got = "!"
		}
		if got != want {
			t.Errorf("%q: got %q, want %q", text, got, want)
		}
	}
	if d, err := pki.ParseDuration("1y"); err != nil || time.Duration(d) != 8736*time.Hour {
		t.Errorf("a year: got %v, %v; want 52 weeks", d, err)
	}
}
