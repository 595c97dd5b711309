package server

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"keystead/fault"
	"keystead/identity"
	"keystead/seal"
)

// signer signs the tokens of users with Ed25519. It is [accounts.Tokens].
type signer struct {
	key ed25519.PrivateKey
	id  string
}

// newSigner returns the signer with the key that comes from a secret of 32 bytes.
func newSigner(secret seal.Secret) *signer {
	key := ed25519.NewKeyFromSeed(secret)
	x, _ := key.Public().(ed25519.PublicKey)
	thumb := sha256.Sum256([]byte(`{"crv":"Ed25519","kty":"OKP","x":"` + base64.RawURLEncoding.EncodeToString(x) + `"}`)) // RFC 7638
	return &signer{key, base64.RawURLEncoding.EncodeToString(thumb[:])}
}

type jwsHeader struct {
	Type      string   `json:"typ"` // first, so that tokens of one type begin alike
	Algorithm string   `json:"alg"`
	Key       string   `json:"kid"`
	Critical  []string `json:"crit,omitempty"`
}

// maxToken is the longest token looked at.
const maxToken = 8 << 10

// Sign implements [accounts.Tokens].
func (s *signer) Sign(_ context.Context, typ string, claims []byte) (string, error) {
	h, err := json.Marshal(jwsHeader{Type: typ, Algorithm: "EdDSA", Key: s.id})
	if err != nil {
		return "", fmt.Errorf("server: sign: %w", err)
	}
	enc := base64.RawURLEncoding
	text := enc.EncodeToString(h) + "." + enc.EncodeToString(claims)
	return text + "." + enc.EncodeToString(ed25519.Sign(s.key, []byte(text))), nil
}

// Verify implements [accounts.Tokens].
func (s *signer) Verify(_ context.Context, token string, types ...string) (string, []byte, error) {
	parts := strings.Split(token, ".")
	if len(token) > maxToken || len(parts) != 3 {
		return "", nil, identity.ErrNotMine
	}
	enc := base64.RawURLEncoding.Strict()
	var h jwsHeader
	raw, err := enc.DecodeString(parts[0])
	if err != nil || json.Unmarshal(raw, &h) != nil || !slices.Contains(types, h.Type) {
		return "", nil, identity.ErrNotMine
	}
	claims, err := enc.DecodeString(parts[1])
	sig, err2 := enc.DecodeString(parts[2])
	public, _ := s.key.Public().(ed25519.PublicKey)
	if err != nil || err2 != nil || h.Algorithm != "EdDSA" || h.Key != s.id || h.Critical != nil ||
		!ed25519.Verify(public, []byte(parts[0]+"."+parts[1]), sig) {
		return "", nil, fault.New(fault.Unauthenticated, "the token is not signed by this server")
	}
	return h.Type, claims, nil
}
