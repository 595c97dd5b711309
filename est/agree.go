package est

import (
	"crypto/aes"
	"crypto/ecdh"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
)

// Key agreement with an elliptic curve key in CMS (RFC 5753): an ephemeral key and
// the recipient's agree on a secret, from which comes the key that wraps the content's.

var (
	oidAES256Wrap = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 1, 45}
	// dhSinglePass-stdDH with a key derivation by SHA-256, -384 and -512 (RFC 5753, 7.1.4).
	oidAgreeSHA256 = asn1.ObjectIdentifier{1, 3, 132, 1, 11, 1}
	oidAgreeSHA384 = asn1.ObjectIdentifier{1, 3, 132, 1, 11, 2}
	oidAgreeSHA512 = asn1.ObjectIdentifier{1, 3, 132, 1, 11, 3}
)

// keyAgreement is a KeyAgreeRecipientInfo (RFC 5652, 6.2.2).
type keyAgreement struct {
	Version    int
	Originator asn1.RawValue // of a public key that is used once
	Algorithm  pkix.AlgorithmIdentifier
	Recipients []agreedKey
}

type originatorKey struct {
	Algorithm struct{ ID asn1.ObjectIdentifier } // without parameters: the curve is the recipient's (RFC 5753, 3.1.1)
	Key       asn1.BitString
}

type agreedKey struct {
	ID      recipientKeyID `asn1:"tag:0"`
	Wrapped []byte
}

type recipientKeyID struct{ SubjectKeyID []byte }

// sharedInfo is what the derived key is bound to (RFC 5753, 7.2).
type sharedInfo struct {
	Wrap       struct{ ID asn1.ObjectIdentifier }
	SuppPubInf []byte `asn1:"explicit,tag:2"` // its length in bits
}

// agreement is how one curve agrees on keys: with a hash as strong as it is.
type agreement struct {
	id   asn1.ObjectIdentifier
	hash func() hash.Hash
}

func agreementOf(curve elliptic.Curve) (agreement, error) {
	switch curve {
	case elliptic.P256():
		return agreement{oidAgreeSHA256, sha256.New}, nil
	case elliptic.P384():
		return agreement{oidAgreeSHA384, sha512.New384}, nil
	case elliptic.P521():
		return agreement{oidAgreeSHA512, sha512.New}, nil
	}
	return agreement{}, errors.New("est: no key agreement on this curve")
}

// agreeKey returns the RecipientInfo that takes key to the holder of to.
func agreeKey(to *ecdsa.PublicKey, keyID, key []byte) ([]byte, error) {
	how, err := agreementOf(to.Curve)
	if err != nil {
		return nil, err
	}
	theirs, err := to.ECDH()
	if err != nil {
		return nil, fmt.Errorf("est: %w", err)
	}
	ours, err := theirs.Curve().GenerateKey(rand.Reader)
	if err != nil {
		return nil, fmt.Errorf("est: %w", err)
	}
	wrapping, err := how.derive(ours, theirs)
	if err != nil {
		return nil, err
	}
	defer clear(wrapping)
	wrapped, err := wrapKey(wrapping, key)
	if err != nil {
		return nil, err
	}
	return how.info(ours.PublicKey(), keyID, wrapped)
}

// derive returns the key of 256 bits that two keys agree on.
func (a agreement) derive(ours *ecdh.PrivateKey, theirs *ecdh.PublicKey) ([]byte, error) {
	secret, err := ours.ECDH(theirs)
	if err != nil {
		return nil, fmt.Errorf("est: %w", err)
	}
	defer clear(secret)
	info := sharedInfo{SuppPubInf: binary.BigEndian.AppendUint32(nil, 256)}
	info.Wrap.ID = oidAES256Wrap
	der, err := asn1.Marshal(info)
	if err != nil {
		return nil, fmt.Errorf("est: %w", err)
	}
	return deriveKey(a.hash, secret, der, 32), nil
}

func (a agreement) info(ours *ecdh.PublicKey, keyID, wrapped []byte) ([]byte, error) {
	point := ours.Bytes()
	public := originatorKey{Key: asn1.BitString{Bytes: point, BitLength: 8 * len(point)}}
	public.Algorithm.ID = oidECPublicKey
	originator, err := asn1.MarshalWithParams(public, "tag:1")
	if err != nil {
		return nil, fmt.Errorf("est: %w", err)
	}
	wrap, err := asn1.Marshal(struct{ ID asn1.ObjectIdentifier }{oidAES256Wrap})
	if err != nil {
		return nil, fmt.Errorf("est: %w", err)
	}
	return asn1.MarshalWithParams(keyAgreement{
		Version:    3,
		Originator: asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 0, IsCompound: true, Bytes: originator},
		Algorithm:  pkix.AlgorithmIdentifier{Algorithm: a.id, Parameters: asn1.RawValue{FullBytes: wrap}},
		Recipients: []agreedKey{{recipientKeyID{keyID}, wrapped}},
	}, "tag:1")
}

// deriveKey is the key derivation function of ANSI X9.63 (SEC 1, 3.6.1).
func deriveKey(newHash func() hash.Hash, secret, info []byte, size int) []byte {
	var out []byte
	for counter := uint32(1); len(out) < size; counter++ {
		h := newHash()
		h.Write(secret)
		h.Write(binary.BigEndian.AppendUint32(nil, counter))
		h.Write(info)
		out = h.Sum(out)
	}
	return out[:size]
}

// wrapKey is the AES key wrap of RFC 3394 for keys of whole blocks of 64 bits.
func wrapKey(wrapping, key []byte) ([]byte, error) {
	if len(key) < 16 || len(key)%8 != 0 {
		return nil, errors.New("est: keys are wrapped in blocks of 8 bytes, two at least")
	}
	block, err := aes.NewCipher(wrapping)
	if err != nil {
		return nil, fmt.Errorf("est: %w", err)
	}
	n := len(key) / 8
	out := make([]byte, 8+len(key))
	copy(out[8:], key)
	work := [aes.BlockSize]byte{0xa6, 0xa6, 0xa6, 0xa6, 0xa6, 0xa6, 0xa6, 0xa6} // what unwrapping checks (2.2.3.1)
	for j := range 6 {
		for i := 1; i <= n; i++ {
			copy(work[8:], out[8*i:])
			block.Encrypt(work[:], work[:])
			copy(out[8*i:8*i+8], work[8:])
			step := uint64(n*j + i)
			binary.BigEndian.PutUint64(work[:8], binary.BigEndian.Uint64(work[:8])^step)
		}
	}
	copy(out, work[:8])
	return out, nil
}
