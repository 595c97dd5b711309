// Package seal encrypts the secrets that have to be read back, and keeps
// secrets in memory from being printed.
//
// A value is sealed under a key derived, per class, from a versioned data key;
// the data keys are wrapped by the master key, which is never in the database.
// What is sealed is bound to its place: it opens only where it was put.
package seal

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
)

// Box seals and opens the secrets of one class, such as "psk" or "ca".
type Box struct{ aead cipher.AEAD }

// NewBox returns a Box for a 32-byte key.
func NewBox(key []byte) (*Box, error) {
	if len(key) != 32 {
		return nil, errors.New("seal: a key has 32 bytes")
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	aead, err := cipher.NewGCMWithRandomNonce(block)
	if err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	return &Box{aead}, nil
}

// Seal encrypts secret and binds it to place, which names the record (and the
// field, if it has several) it is kept in: Open fails for any other place.
func (b *Box) Seal(place string, secret []byte) []byte {
	return b.aead.Seal(nil, nil, secret, []byte(place)) //nolint:gosec // G407: this AEAD draws its own nonce
}

// ErrOpen is the error of Open for a wrong key, or a value that was moved or changed.
var ErrOpen = errors.New("seal: wrong key, or a record that was moved or changed")

// Open decrypts what Seal made for place.
func (b *Box) Open(place string, sealed []byte) (Secret, error) {
	secret, err := b.aead.Open(nil, nil, sealed, []byte(place))
	if err != nil {
		return nil, ErrOpen
	}
	return secret, nil
}

// Secret is a credential in the clear. It prints as "[secret]" everywhere but
// where its bytes are asked for.
type Secret []byte

// NewSecret returns n random bytes.
func NewSecret(n int) Secret {
	s := make(Secret, n)
	rand.Read(s) // never fails, never short
	return s
}

// Wipe overwrites s with zeros.
func (s Secret) Wipe() { clear(s) }

// Format implements fmt.Formatter, for every verb.
func (Secret) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, redacted) }

// MarshalText implements encoding.TextMarshaler, which slog and JSON go by.
func (Secret) MarshalText() ([]byte, error) { return []byte(redacted), nil }

const redacted = "[secret]"
