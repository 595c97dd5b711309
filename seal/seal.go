// Package seal encrypts the secrets that have to be read back, and keeps
// secrets in memory from being printed.
//
// A value is sealed under a key derived, per class, from a versioned data key;
// the data keys are in a [Keyring], wrapped by the master key, which is never in
// the database. What is sealed is bound to its place: it opens only where it was
// put.
package seal

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
)

// A sealed value is the format, the number of the data key, the nonce, the
// ciphertext and the tag. The first two are authenticated with the place.
const (
	format     = 1
	headerSize = 1 + 4
	nonceSize  = 12
	tagSize    = 16
)

// Box seals and opens the secrets of one class, such as "psk" or "ca".
type Box struct{ keys classKeys }

// classKeys gives the keys of one class.
type classKeys interface {
	newest() (id uint32, key cipher.AEAD)
	numbered(id uint32) (cipher.AEAD, bool)
}

// NewBox returns a Box for a 32-byte key that never changes.
func NewBox(key []byte) (*Box, error) {
	aead, err := newAEAD(key)
	if err != nil {
		return nil, err
	}
	return &Box{oneKey{aead}}, nil
}

type oneKey struct{ aead cipher.AEAD }

func (k oneKey) newest() (uint32, cipher.AEAD) { return 1, k.aead }

func (k oneKey) numbered(id uint32) (cipher.AEAD, bool) { return k.aead, id == 1 }

func newAEAD(key []byte) (cipher.AEAD, error) {
	if len(key) != keySize {
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
	return aead, nil
}

// Seal encrypts secret and binds it to place, which names the record (and the
// field, if it has several) it is kept in: Open fails for any other place.
func (b *Box) Seal(place string, secret []byte) []byte {
	id, aead := b.keys.newest()
	header := binary.BigEndian.AppendUint32([]byte{format}, id)
	out := slices.Grow(header, nonceSize+len(secret)+tagSize)
	return append(out, aead.Seal(nil, nil, secret, bound(header, place))...) //nolint:gosec // G407: this AEAD draws its own nonce
}

// ErrOpen is the error of Open for a wrong key, or a value that was moved or changed.
var ErrOpen = errors.New("seal: wrong key, or a record that was moved or changed")

// Open decrypts what Seal made for place, under whichever key of the ring it was.
func (b *Box) Open(place string, sealed []byte) (Secret, error) {
	id, ok := KeyID(sealed)
	if !ok {
		return nil, ErrOpen
	}
	aead, ok := b.keys.numbered(id)
	if !ok {
		return nil, fmt.Errorf("%w: there is no data key %d", ErrOpen, id)
	}
	secret, err := aead.Open(nil, nil, sealed[headerSize:], bound(sealed[:headerSize], place))
	if err != nil {
		return nil, ErrOpen
	}
	return secret, nil
}

// Reseal returns sealed under the newest key, and whether that is a change.
func (b *Box) Reseal(place string, sealed []byte) ([]byte, bool, error) {
	newest, _ := b.keys.newest()
	if id, ok := KeyID(sealed); ok && id == newest {
		return sealed, false, nil
	}
	secret, err := b.Open(place, sealed)
	if err != nil {
		return nil, false, err
	}
	defer secret.Wipe()
	return b.Seal(place, secret), true, nil
}

// KeyID returns the number of the data key that sealed is under. It is false
// for what is no sealed value.
func KeyID(sealed []byte) (uint32, bool) {
	if len(sealed) < headerSize+nonceSize+tagSize || sealed[0] != format {
		return 0, false
	}
	return binary.BigEndian.Uint32(sealed[1:headerSize]), true
}

func bound(header []byte, place string) []byte {
	return append(slices.Clip(header), place...)
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
