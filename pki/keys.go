package pki

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"errors"
	"fmt"
	"sync"

	"keystead/fault"
	"keystead/seal"
	"keystead/store"
)

// Algorithm is a kind and size of key.
type Algorithm string

// The algorithms.
const (
	P256    Algorithm = "ecdsa-p256"
	P384    Algorithm = "ecdsa-p384"
	P521    Algorithm = "ecdsa-p521" // of devices; no CA has one
	Ed25519 Algorithm = "ed25519"
	RSA2048 Algorithm = "rsa-2048"
	RSA3072 Algorithm = "rsa-3072"
	RSA4096 Algorithm = "rsa-4096"
)

// CAAlgorithms are those a CA's key may have.
var CAAlgorithms = []Algorithm{P256, P384, Ed25519, RSA2048, RSA3072, RSA4096}

// KeyStore keeps the private keys of CAs. A key is named by its id, which is
// chosen by the caller and never used twice.
type KeyStore interface {
	// Create makes and keeps a key.
	Create(ctx context.Context, id string, alg Algorithm) (crypto.Signer, error)
	// Import keeps a key made elsewhere. It is Unsupported by stores whose keys
	// never come from outside.
	Import(ctx context.Context, id string, key crypto.Signer) error
	// Signer returns a key, or a NotFound fault; Unavailable if the store cannot
	// be reached at present.
	Signer(ctx context.Context, id string) (crypto.Signer, error)
	// Delete destroys a key. Deleting one that is not there is no error.
	Delete(ctx context.Context, id string) error
}

// GenerateKey makes a key.
func GenerateKey(alg Algorithm) (crypto.Signer, error) {
	switch alg {
	case P256:
		return ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case P384:
		return ecdsa.GenerateKey(elliptic.P384(), rand.Reader)
	case P521:
		return ecdsa.GenerateKey(elliptic.P521(), rand.Reader)
	case Ed25519:
		_, key, err := ed25519.GenerateKey(rand.Reader)
		return key, err
	case RSA2048:
		return rsa.GenerateKey(rand.Reader, 2048)
	case RSA3072:
		return rsa.GenerateKey(rand.Reader, 3072)
	case RSA4096:
		return rsa.GenerateKey(rand.Reader, 4096)
	}
	return nil, fault.InvalidFields(fault.Field{Name: "algorithm", Message: "must be ecdsa-p256, ecdsa-p384, ed25519, rsa-2048, rsa-3072 or rsa-4096"})
}

// AlgorithmOf names the kind and size of a public key; RSA of an odd size is
// named by its bits, an unknown kind "".
func AlgorithmOf(public any) Algorithm {
	switch k := public.(type) {
	case *ecdsa.PublicKey:
		return Algorithm(fmt.Sprintf("ecdsa-p%d", k.Curve.Params().BitSize))
	case ed25519.PublicKey:
		return Ed25519
	case *rsa.PublicKey:
		return Algorithm(fmt.Sprintf("rsa-%d", k.N.BitLen()))
	}
	return ""
}

// Box seals keys; seal.Box is one.
type Box interface {
	Seal(place string, secret []byte) []byte
	Open(place string, sealed []byte) (seal.Secret, error)
	Reseal(place string, sealed []byte) ([]byte, bool, error)
}

// SealedKeys is the KeyStore that keeps keys sealed in the store itself.
type SealedKeys struct {
	DB  store.Engine
	Box Box

	open sync.Map // id → crypto.Signer
}

type sealedKey struct {
	Sealed []byte `cbor:"sealed"`
}

var sealedKeys = store.NewTable[sealedKey]("ca key")

func keyPlace(id string) string { return sealedKeys.Name() + "/" + id }

// Create makes and keeps a key.
func (k *SealedKeys) Create(ctx context.Context, id string, alg Algorithm) (crypto.Signer, error) {
	key, err := GenerateKey(alg)
	if err != nil {
		return nil, err
	}
	return key, k.Import(ctx, id, key)
}

// Import keeps a key made elsewhere.
func (k *SealedKeys) Import(ctx context.Context, id string, key crypto.Signer) error {
	plain, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return fault.Wrap(fault.Invalid, err, "the private key is of a kind that is not supported")
	}
	defer clear(plain)
	record := sealedKey{Sealed: k.Box.Seal(keyPlace(id), plain)}
	if err := k.DB.Update(ctx, func(tx store.Tx) error { return sealedKeys.Insert(tx, id, record) }); err != nil {
		return err
	}
	k.open.Store(id, key)
	return nil
}

// Signer returns a key.
func (k *SealedKeys) Signer(ctx context.Context, id string) (crypto.Signer, error) {
	if key, ok := k.open.Load(id); ok {
		return key.(crypto.Signer), nil //nolint:errcheck,forcetypeassert // only signers are stored
	}
	var record sealedKey
	err := k.DB.View(ctx, func(tx store.Tx) (err error) {
		record, err = sealedKeys.Get(tx, id)
		return err
	})
	if err != nil {
		return nil, err
	}
	plain, err := k.Box.Open(keyPlace(id), record.Sealed)
	if err != nil {
		return nil, fmt.Errorf("pki: key %s: %w", id, err)
	}
	defer plain.Wipe()
	key, err := parseKey(plain)
	if err != nil {
		return nil, fmt.Errorf("pki: key %s: %w", id, err)
	}
	k.open.Store(id, key)
	return key, nil
}

// Delete destroys a key.
func (k *SealedKeys) Delete(ctx context.Context, id string) error {
	k.open.Delete(id)
	err := k.DB.Update(ctx, func(tx store.Tx) error {
		_, err := sealedKeys.Delete(tx, id)
		return err
	})
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	return err
}

// parseKey parses a private key in DER: PKCS#8, SEC 1 or PKCS#1.
func parseKey(der []byte) (crypto.Signer, error) {
	if key, err := x509.ParsePKCS8PrivateKey(der); err == nil {
		if signer, ok := key.(crypto.Signer); ok {
			return signer, nil
		}
		return nil, errors.New("the private key cannot sign")
	}
	if key, err := x509.ParseECPrivateKey(der); err == nil {
		return key, nil
	}
	if key, err := x509.ParsePKCS1PrivateKey(der); err == nil {
		return key, nil
	}
	return nil, errors.New("not a private key in PKCS#8, SEC 1 or PKCS#1")
}
