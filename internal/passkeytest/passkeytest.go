// Package passkeytest is a software authenticator for tests: it keeps one passkey and answers
// the questions of Web Authentication, with lies where it is told to.
package passkeytest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"slices"
	"testing"

	"github.com/fxamacker/cbor/v2"
)

// Authenticator has one key. What it says of itself may be changed.
type Authenticator struct {
	Key    *ecdsa.PrivateKey
	ID     []byte
	Handle []byte
	Count  uint32
	Origin string
	RP     string
	Flags  byte
}

// Flags of an authenticator's data (Web Authentication, 6.1).
const (
	Present  = 1
	Verified = 4
	attested = 64
)

var b64 = base64.RawURLEncoding

// New returns an authenticator whose user is at the relying party of a name.
func New(t testing.TB, rp string) *Authenticator {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return &Authenticator{Key: key, ID: []byte(rand.Text()), Origin: "https://" + rp, RP: rp, Flags: Present | Verified}
}

// Asked is the part of a question that an authenticator looks at.
type Asked struct {
	PublicKey struct {
		Challenge string `json:"challenge"`
		RPID      string `json:"rpId"`
		User      struct {
			ID string `json:"id"`
		} `json:"user"`
		UserVerification string `json:"userVerification"`
		Allow            []struct {
			ID string `json:"id"`
		} `json:"allowCredentials"`
	} `json:"publicKey"`
}

// Read reads a question.
func Read(t testing.TB, options []byte) (a Asked) {
	t.Helper()
	if err := json.Unmarshal(options, &a); err != nil {
		t.Fatal(err)
	}
	return a
}

func (a *Authenticator) clientData(kind, challenge string) []byte {
	b, _ := json.Marshal(map[string]any{"type": kind, "challenge": challenge, "origin": a.Origin, "crossOrigin": false})
	return b
}

func (a *Authenticator) data(flags byte) []byte {
	rp := sha256.Sum256([]byte(a.RP))
	return binary.BigEndian.AppendUint32(append(rp[:], flags), a.Count)
}

// Create answers the question for a new key.
func (a *Authenticator) Create(t testing.TB, options []byte) []byte {
	t.Helper()
	q := Read(t, options)
	a.Handle, _ = b64.DecodeString(q.PublicKey.User.ID)
	x, y := make([]byte, 32), make([]byte, 32)
	a.Key.X.FillBytes(x)
	a.Key.Y.FillBytes(y)
	mode, _ := cbor.CTAP2EncOptions().EncMode()
	cose, err := mode.Marshal(map[int]any{1: 2, 3: -7, -1: 1, -2: x, -3: y})
	if err != nil {
		t.Fatal(err)
	}
	data := a.data(a.Flags | attested)
	data = append(data, make([]byte, 16)...)
	data = binary.BigEndian.AppendUint16(data, uint16(len(a.ID))) //nolint:gosec // G115: the length of an id a test made
	data = append(append(data, a.ID...), cose...)
	object, err := mode.Marshal(map[string]any{"fmt": "none", "attStmt": map[string]any{}, "authData": data})
	if err != nil {
		t.Fatal(err)
	}
	return a.answer(map[string]any{
		"clientDataJSON": b64.EncodeToString(a.clientData("webauthn.create", q.PublicKey.Challenge)), "attestationObject": b64.EncodeToString(object),
		"transports": []string{"internal"},
	})
}

func (a *Authenticator) answer(response map[string]any) []byte {
	b, _ := json.Marshal(map[string]any{
		"id": b64.EncodeToString(a.ID), "rawId": b64.EncodeToString(a.ID), "type": "public-key", "response": response, "clientExtensionResults": map[string]any{},
	})
	return b
}

// Get answers the question for a signature.
func (a *Authenticator) Get(t testing.TB, options []byte) []byte {
	t.Helper()
	return a.Sign(t, Read(t, options).PublicKey.Challenge)
}

// Sign answers a challenge.
func (a *Authenticator) Sign(t testing.TB, challenge string) []byte {
	t.Helper()
	a.Count++
	data, client := a.data(a.Flags), a.clientData("webauthn.get", challenge)
	hash := sha256.Sum256(client)
	digest := sha256.Sum256(slices.Concat(data, hash[:]))
	sig, err := ecdsa.SignASN1(rand.Reader, a.Key, digest[:])
	if err != nil {
		t.Fatal(err)
	}
	return a.answer(map[string]any{
		"clientDataJSON": b64.EncodeToString(client), "authenticatorData": b64.EncodeToString(data), "signature": b64.EncodeToString(sig),
		"userHandle": b64.EncodeToString(a.Handle),
	})
}
