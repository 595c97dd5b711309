package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"math/big"
	"testing"

	"golang.org/x/crypto/cryptobyte"
	tags "golang.org/x/crypto/cryptobyte/asn1"
)

func signatureOfNumbers(r, s *big.Int) []byte {
	var b cryptobyte.Builder
	b.AddASN1(tags.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1BigInt(r)
		b.AddASN1BigInt(s)
	})
	return b.BytesOrPanic()
}

// TestSignedBy has the check by the private key agree with the one by the public key, on good
// signatures and on whatever is near one.
func TestSignedBy(t *testing.T) {
	digest256, digest384, digest512 := sha256.Sum256([]byte("a certificate")), sha512.Sum384([]byte("a certificate")), sha512.Sum512([]byte("a certificate"))
	for _, c := range []struct {
		curve  elliptic.Curve
		digest []byte
	}{{elliptic.P256(), digest256[:]}, {elliptic.P384(), digest384[:]}, {elliptic.P521(), digest512[:]}, {elliptic.P384(), digest256[:]}, {elliptic.P256(), make([]byte, 32)}} {
		for range 20 {
			key, err := ecdsa.GenerateKey(c.curve, rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			other, err := ecdsa.GenerateKey(c.curve, rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			good, err := ecdsa.SignASN1(rand.Reader, key, c.digest)
			if err != nil {
				t.Fatal(err)
			}
			n, one := c.curve.Params().N, big.NewInt(1)
			r, s, ok := numbersOf(good, n)
			if !ok {
				t.Fatalf("a good signature has no numbers: %x", good)
			}
			changed := append([]byte{}, c.digest...)
			changed[len(changed)-1] ^= 1
			for name, try := range map[string]struct {
				key       *ecdsa.PrivateKey
				digest    []byte
				signature []byte
				good      bool
			}{
				"good":                  {key, c.digest, good, true},
				"the other root":        {key, c.digest, signatureOfNumbers(r, new(big.Int).Sub(n, s)), true},
				"another key":           {other, c.digest, good, false},
				"another digest":        {key, changed, good, false},
				"another r":             {key, c.digest, signatureOfNumbers(new(big.Int).Xor(r, one), s), false},
				"another s":             {key, c.digest, signatureOfNumbers(r, new(big.Int).Xor(s, one)), false},
				"exchanged":             {key, c.digest, signatureOfNumbers(s, r), false},
				"r zero":                {key, c.digest, signatureOfNumbers(new(big.Int), s), false},
				"s zero":                {key, c.digest, signatureOfNumbers(r, new(big.Int)), false},
				"r too large":           {key, c.digest, signatureOfNumbers(new(big.Int).Add(r, n), s), false},
				"s too large":           {key, c.digest, signatureOfNumbers(r, new(big.Int).Add(s, n)), false},
				"negative":              {key, c.digest, signatureOfNumbers(new(big.Int).Neg(r), s), false},
				"the order":             {key, c.digest, signatureOfNumbers(n, n), false},
				"cut off":               {key, c.digest, good[:len(good)-1], false},
				"with something after":  {key, c.digest, append(append([]byte{}, good...), 0), false},
				"with something within": {key, c.digest, append([]byte{0x30, 3}, good[:3]...), false},
				"nothing":               {key, c.digest, nil, false},
			} {
				if got, public := signedBy(try.key, try.digest, try.signature), ecdsa.VerifyASN1(&try.key.PublicKey, try.digest, try.signature); got != try.good || public != try.good {
					t.Errorf("%s, %s: signedBy = %t, VerifyASN1 = %t, want %t", c.curve.Params().Name, name, got, public, try.good)
				}
			}
		}
	}
}

func BenchmarkSignedBy(b *testing.B) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		b.Fatal(err)
	}
	digest := sha256.Sum256([]byte("a certificate"))
	signature, err := ecdsa.SignASN1(rand.Reader, key, digest[:])
	if err != nil {
		b.Fatal(err)
	}
	b.Run("private", func(b *testing.B) {
		for b.Loop() {
			if !signedBy(key, digest[:], signature) {
				b.Fatal("refused")
			}
		}
	})
	b.Run("public", func(b *testing.B) {
		for b.Loop() {
			if !ecdsa.VerifyASN1(&key.PublicKey, digest[:], signature) {
				b.Fatal("refused")
			}
		}
	})
}
