package pki

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"math/big"

	"keystead/fault"
)

// Limits on RSA keys. Longer ones make every verification a burden on whoever
// does it, shorter ones can be factored.
const (
	minRSA = 2048
	maxRSA = 4096
)

// GoodKey refuses public keys that are weak or not supported, with an Invalid
// fault that says why.
func GoodKey(public any) error {
	switch k := public.(type) {
	case *ecdsa.PublicKey:
		return goodCurve(k)
	case ed25519.PublicKey:
		return nil
	case *rsa.PublicKey:
		return goodRSA(k)
	}
	return fault.New(fault.Invalid, "the key is of a kind that is not supported; use ECDSA P-256, RSA 2048 or Ed25519")
}

func goodCurve(k *ecdsa.PublicKey) error {
	switch k.Curve {
	case elliptic.P256(), elliptic.P384(), elliptic.P521():
		if _, err := k.ECDH(); err != nil { // checks that the point is on the curve
			return fault.New(fault.Invalid, "the public key is not a point of its curve")
		}
		return nil
	}
	return fault.New(fault.Invalid, "the curve %s is too weak or not supported; use P-256, P-384 or P-521", k.Curve.Params().Name)
}

func goodRSA(k *rsa.PublicKey) error {
	switch bits := k.N.BitLen(); {
	case bits < minRSA:
		return fault.New(fault.Invalid, "the RSA key has %d bits, which is too weak; use at least %d", bits, minRSA)
	case bits > maxRSA:
		return fault.New(fault.Invalid, "the RSA key has %d bits; use at most %d", bits, maxRSA)
	case k.E < 65537 || k.E%2 == 0:
		return fault.New(fault.Invalid, "the RSA key has the public exponent %d; use 65537", k.E)
	case hasSmallFactor(k.N):
		return fault.New(fault.Invalid, "the RSA key has a small factor; make a new one")
	case isROCA(k.N):
		return fault.New(fault.Invalid, "the RSA key was made by a flawed chip (CVE-2017-15361, ROCA); make a new one elsewhere")
	case closePrimes(k.N):
		return fault.New(fault.Invalid, "the RSA key's primes are too close to one another; make a new one")
	}
	return nil
}

var smallPrimes = []uint64{
	3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47, 53, 59, 61, 67, 71, 73, 79, 83, 89, 97, 101, 103, 107, 109, 113,
	127, 131, 137, 139, 149, 151, 157, 163, 167, 173, 179, 181, 191, 193, 197, 199, 211, 223, 227, 229, 233, 239, 241, 251,
}

func residue(n *big.Int, p uint64) uint64 {
	return new(big.Int).Mod(n, new(big.Int).SetUint64(p)).Uint64()
}

func hasSmallFactor(n *big.Int) bool {
	if n.Bit(0) == 0 {
		return true
	}
	for _, p := range smallPrimes {
		if residue(n, p) == 0 {
			return true
		}
	}
	return false
}

// rocaPrimes is how many of smallPrimes the fingerprint of ROCA goes over: 3 to 167.
const rocaPrimes = 38

// isROCA reports whether n is a product of primes of the form k*M + 65537^a mod
// M with M a primorial: then n is a power of 65537 modulo each small prime, which
// is so for one in 2^27 of all other moduli (Nemec et al., 2017).
func isROCA(n *big.Int) bool {
	for _, p := range smallPrimes[:rocaPrimes] {
		want, power, found := residue(n, p), uint64(1), false
		for range p {
			if power == want {
				found = true
				break
			}
			power = power * (65537 % p) % p
		}
		if !found {
			return false
		}
	}
	return true
}

// fermatRounds is how many steps of Fermat's factorisation a key must withstand.
const fermatRounds = 100

func closePrimes(n *big.Int) bool {
	a := new(big.Int).Sqrt(n)
	if new(big.Int).Mul(a, a).Cmp(n) < 0 {
		a.Add(a, big.NewInt(1))
	}
	for range fermatRounds {
		b2 := new(big.Int).Mul(a, a)
		b2.Sub(b2, n)
		b := new(big.Int).Sqrt(b2)
		if new(big.Int).Mul(b, b).Cmp(b2) == 0 {
			return true
		}
		a.Add(a, big.NewInt(1))
	}
	return false
}
