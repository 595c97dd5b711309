//go:build pkcs11

package pki

import (
	"context"
	"crypto"
	"crypto/elliptic"
	"fmt"

	"github.com/ThalesGroup/crypto11"

	"keystead/fault"
)

// tokenKeys is the KeyStore whose keys are made in a PKCS#11 token and never
// leave it.
type tokenKeys struct{ token *crypto11.Context }

// OpenPKCS11 opens the token a configuration names; close it with the returned function.
func OpenPKCS11(c PKCS11) (KeyStore, func() error, error) {
	token, err := crypto11.Configure(&crypto11.Config{Path: c.Module, TokenLabel: c.Token, Pin: string(c.pin)})
	if err != nil {
		return nil, nil, fmt.Errorf("pki: pkcs11: %w", err)
	}
	return &tokenKeys{token}, token.Close, nil
}

// Create makes a key in the token.
func (k *tokenKeys) Create(_ context.Context, id string, alg Algorithm) (crypto.Signer, error) {
	name := []byte(id)
	var key crypto.Signer
	var err error
	switch alg { //nolint:exhaustive // what tokens have
	case P256:
		key, err = k.token.GenerateECDSAKeyPairWithLabel(name, name, elliptic.P256())
	case P384:
		key, err = k.token.GenerateECDSAKeyPairWithLabel(name, name, elliptic.P384())
	case RSA2048:
		key, err = k.token.GenerateRSAKeyPairWithLabel(name, name, 2048)
	case RSA3072:
		key, err = k.token.GenerateRSAKeyPairWithLabel(name, name, 3072)
	case RSA4096:
		key, err = k.token.GenerateRSAKeyPairWithLabel(name, name, 4096)
	default:
		return nil, fault.New(fault.Invalid, "the PKCS#11 token makes no %s keys; use ecdsa-p256, ecdsa-p384 or RSA", alg)
	}
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "the PKCS#11 token made no key")
	}
	return key, nil
}

// Import refuses: keys of a token do not come from outside.
func (k *tokenKeys) Import(context.Context, string, crypto.Signer) error {
	return fault.New(fault.Unsupported, "keys are kept in a PKCS#11 token and are not imported")
}

// Signer finds a key in the token.
func (k *tokenKeys) Signer(_ context.Context, id string) (crypto.Signer, error) {
	key, err := k.token.FindKeyPair([]byte(id), nil)
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "the PKCS#11 token cannot be reached; try again later")
	}
	if key == nil {
		return nil, fault.New(fault.NotFound, "no such key in the token")
	}
	return key, nil
}

// Delete destroys a key in the token.
func (k *tokenKeys) Delete(_ context.Context, id string) error {
	key, err := k.token.FindKeyPair([]byte(id), nil)
	if err != nil {
		return fault.Wrap(fault.Unavailable, err, "the PKCS#11 token cannot be reached")
	}
	if key == nil {
		return nil
	}
	if err := key.Delete(); err != nil {
		return fmt.Errorf("pki: pkcs11: %w", err)
	}
	return nil
}
