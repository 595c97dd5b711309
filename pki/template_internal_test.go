package pki

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"testing"
)

// TestWrittenAsOurs has a key that is taken over be what would be written.
func TestWrittenAsOurs(t *testing.T) {
	for _, curve := range []elliptic.Curve{elliptic.P256(), elliptic.P384(), elliptic.P224()} {
		key, err := ecdsa.GenerateKey(curve, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		spki, err := x509.MarshalPKIXPublicKey(&key.PublicKey)
		if err != nil {
			t.Fatal(err)
		}
		if got, want := writtenAsOurs(spki), curve == elliptic.P256(); got != want {
			t.Errorf("%s: %t, want %t", curve.Params().Name, got, want)
		}
		if curve != elliptic.P256() {
			continue
		}
		for i := range headP256 { // any other form is written anew
			changed := bytes.Clone(spki)
			changed[i] ^= 1
			if writtenAsOurs(changed) {
				t.Errorf("taken over with its byte %d changed", i)
			}
		}
		if writtenAsOurs(spki[:len(spki)-1]) || writtenAsOurs(append(bytes.Clone(spki), 0)) {
			t.Error("taken over at another length")
		}
	}
}
