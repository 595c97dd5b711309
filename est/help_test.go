package est_test

import (
	"context"
	"crypto"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"encoding/pem"
	stdnet "net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"keystead/fault"
)

const sha1Base64 = "MIHHMHACAQAwDjEMMAoGA1UEAwwDZGV2MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE+Oo4whn6JT6itsDuKl66y9eAbrElh237JyUz47oYLNVOQ7LL9hXfCE+bfCehMty7OzkhbG/Ton8//EgurdLPLKAAMAkGByqGSM49BAEDSAAwRQIhAO4BArkifSW0O/UCuwrUzPRn4VdBVXlKj0TYuXNba6uAAiBKWTTO4tphdEm8R5CVSj1bYRkAghJuHpr1c834zZDqEg=="

type net = stdnet.Conn

func hexOf(b []byte) string { return hex.EncodeToString(b) }

// withAttribute returns a request like der with one more attribute, signed anew:
// the standard library writes no attribute with a plain value.
func withAttribute(t testing.TB, key crypto.Signer, der []byte, oid asn1.ObjectIdentifier, value any) []byte {
	t.Helper()
	csr := must(x509.ParseCertificateRequest(der))
	var tbs struct {
		Version    int
		Subject    asn1.RawValue
		PublicKey  asn1.RawValue
		Attributes []asn1.RawValue `asn1:"tag:0,set"`
	}
	if _, err := asn1.Unmarshal(csr.RawTBSCertificateRequest, &tbs); err != nil {
		t.Fatal(err)
	}
	attribute := must(asn1.Marshal(struct {
		Type   asn1.ObjectIdentifier
		Values []asn1.RawValue `asn1:"set"`
	}{oid, []asn1.RawValue{{FullBytes: must(asn1.Marshal(value))}}}))
	tbs.Attributes = append(tbs.Attributes, asn1.RawValue{FullBytes: attribute})
	raw := must(asn1.Marshal(tbs))
	digest := sha256.Sum256(raw)
	signed, opts := digest[:], crypto.SHA256
	algorithm := pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}}
	switch key.(type) {
	case *rsa.PrivateKey:
		algorithm = pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 11}, Parameters: asn1.NullRawValue}
	case ed25519.PrivateKey:
		algorithm = pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 3, 101, 112}}
		signed, opts = raw, 0
	}
	signature := must(key.Sign(rand.Reader, signed, opts))
	return must(asn1.Marshal(struct {
		TBS       asn1.RawValue
		Algorithm pkix.AlgorithmIdentifier
		Signature asn1.BitString
	}{asn1.RawValue{FullBytes: raw}, algorithm, asn1.BitString{Bytes: signature, BitLength: 8 * len(signature)}}))
}

var oidChallenge = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 7}

// decryptCMS has openssl open what was encrypted to a key.
func decryptCMS(t testing.TB, enveloped []byte, key crypto.Signer) any {
	t.Helper()
	dir := t.TempDir()
	in, k, out := filepath.Join(dir, "in"), filepath.Join(dir, "key"), filepath.Join(dir, "out")
	if err := os.WriteFile(in, enveloped, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(k, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: must(x509.MarshalPKCS8PrivateKey(key))}), 0o600); err != nil {
		t.Fatal(err)
	}
	if b, err := exec.CommandContext(t.Context(), "openssl", "cms", "-decrypt", "-inform", "DER", "-in", in, "-inkey", k, "-out", out, "-binary").CombinedOutput(); err != nil {
		t.Fatalf("openssl cms: %s", b)
	}
	return must(x509.ParsePKCS8PrivateKey(must(os.ReadFile(out))))
}

type ctx = context.Context

var errToken = fault.New(fault.Unauthenticated, "the token is no good")

func chainOf(certs ...*x509.Certificate) []*x509.Certificate { return certs }
