package pki

import (
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"errors"
	"math/big"

	"filippo.io/bigmod"
	"golang.org/x/crypto/cryptobyte"
	tags "golang.org/x/crypto/cryptobyte/asn1"
)

// signedBy reports whether signature is one of digest by key, as [ecdsa.VerifyASN1] does
// with the public key: for what was just signed with a key that is in this process.
//
// A signature (r, s) is right if r is the abscissa of e/s·G + r/s·Q modulo the order n of
// the curve, e being the digest (FIPS 186-5, 6.4.2). Q is d·G, so that point is
// (e + r·d)/s·G: one multiple of the base point, instead of that and one of any point, which
// takes four times as long. The factor is the nonce the signature was made with, as secret as d:
// what is done with either takes the same time whatever they are.
func signedBy(key *ecdsa.PrivateKey, digest, signature []byte) bool {
	r, s, ok := numbersOf(signature, key.Params().N)
	if !ok {
		return false
	}
	curve := curveOf(key.Curve)
	d, err := key.Bytes()
	if err != nil || curve == nil {
		return false
	}
	defer clear(d)
	nonce, err := factorOf(d, digest, r, s, key.Params().N)
	if err != nil {
		return false
	}
	defer clear(nonce)
	point, err := curve.NewPrivateKey(nonce)
	if err != nil {
		return false // zero: the point at infinity
	}
	b := point.PublicKey().Bytes()[1:] // both coordinates
	x := new(big.Int).SetBytes(b[:len(b)/2])
	return x.Mod(x, key.Params().N).Cmp(r) == 0
}

func curveOf(c elliptic.Curve) ecdh.Curve {
	switch c {
	case elliptic.P256():
		return ecdh.P256()
	case elliptic.P384():
		return ecdh.P384()
	case elliptic.P521():
		return ecdh.P521()
	}
	return nil
}

// factorOf returns (e + r·d)/s modulo n.
func factorOf(d, digest []byte, r, s, n *big.Int) ([]byte, error) {
	order, err := bigmod.NewModulus(n.Bytes())
	if err != nil {
		return nil, err
	}
	if len(digest) > order.Size() {
		return nil, errors.New("pki: a digest longer than the order of the curve")
	}
	number := func(b []byte) *bigmod.Nat {
		v, bad := bigmod.NewNat().SetOverflowingBytes(b, order)
		err = errors.Join(err, bad)
		return v
	}
	secret, e := number(d), number(digest)
	// r and s are about to be published.
	first, inverse := number(r.FillBytes(make([]byte, order.Size()))), number(new(big.Int).ModInverse(s, n).FillBytes(make([]byte, order.Size())))
	if err != nil {
		return nil, err
	}
	return secret.Mul(first, order).Add(e, order).Mul(inverse, order).Bytes(order), nil
}

// numbersOf returns the two numbers of a signature, if they are what they may be.
func numbersOf(signature []byte, n *big.Int) (r, s *big.Int, ok bool) {
	r, s = new(big.Int), new(big.Int)
	var inner cryptobyte.String
	whole := cryptobyte.String(signature)
	if !whole.ReadASN1(&inner, tags.SEQUENCE) || !whole.Empty() || !inner.ReadASN1Integer(r) || !inner.ReadASN1Integer(s) || !inner.Empty() {
		return nil, nil, false
	}
	fits := func(v *big.Int) bool { return v.Sign() > 0 && v.Cmp(n) < 0 }
	return r, s, fits(r) && fits(s)
}
