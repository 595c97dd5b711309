package tokens

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"keystead/audit"
	"keystead/fault"
	"keystead/store"
)

// Algorithm is how tokens are signed (RFC 7518, 3.1; RFC 8037).
type Algorithm string

// The algorithms.
const (
	EdDSA Algorithm = "EdDSA" // Ed25519
	ES256 Algorithm = "ES256"
	RS256 Algorithm = "RS256" // RSA-2048; thirty times the cost, for verifiers that know nothing else
)

func (a Algorithm) method() jwt.SigningMethod { return jwt.GetSigningMethod(string(a)) }

// Valid reports whether a is one of the algorithms.
func (a Algorithm) Valid() bool { return a == EdDSA || a == ES256 || a == RS256 }

// KeyState is where a signing key stands in its life.
type KeyState string

// The states of a key, in the order it goes through them.
const (
	Next     KeyState = "next"     // published, so that verifiers know it before it signs
	Active   KeyState = "active"   // signs; there is exactly one
	Retiring KeyState = "retiring" // signs no more, verifies until RetiredAt
)

// publishBefore is how long a key is published before it may sign: verifiers
// fetch the key set at least that often.
const publishBefore = time.Hour

// Key is a signing key.
type Key struct {
	ID        string    `cbor:"id"` // RFC 7638 thumbprint, the "kid"
	Alg       Algorithm `cbor:"alg"`
	State     KeyState  `cbor:"state"`
	Sealed    []byte    `cbor:"sealed"` // PKCS #8
	Public    []byte    `cbor:"public"` // PKIX
	CreatedAt time.Time `cbor:"created"`
	ActiveAt  time.Time `cbor:"active,omitzero"`
	RetiredAt time.Time `cbor:"retired,omitzero"` // verifies nothing from then on

	private crypto.Signer
	public  crypto.PublicKey
}

var keys = store.NewTable[Key]("signing key")

// ring is the keys as they are used: one immutable value, replaced whole.
type ring struct {
	active Key
	byID   map[string]Key
	list   []Key // in the order they were made
}

// Keys returns the signing keys, the oldest first.
func (s *Service) Keys() []Key { return s.ring.Load().list }

func (s *Service) ensure(ctx context.Context) error {
	active, err := s.generate(s.Config.Algorithm)
	if err != nil {
		return err
	}
	next, err := s.generate(s.Config.Algorithm)
	if err != nil {
		return err
	}
	active.State, active.ActiveAt = Active, active.CreatedAt
	return s.DB.Update(ctx, func(tx store.Tx) error {
		for e, err := range tx.Scan([]byte(keys.Name()+"\x00r\x00"), nil) {
			if err != nil || e.Key != nil {
				return err // there are keys
			}
		}
		for _, k := range []Key{active, next} {
			if err := keys.Insert(tx, k.ID, k); err != nil {
				return err
			}
			if err := s.Audit.Append(ctx, tx, audit.Entry{Action: "signing_key.create", Target: k.ID, Detail: map[string]string{"algorithm": string(k.Alg)}}); err != nil {
				return err
			}
		}
		return nil
	})
}

// Rotate makes the next key the active one, has the active one retire, and
// makes a new next key of the given algorithm, "" for the configured one. It is
// a Conflict while the next key was published less than an hour ago, unless now
// is set: verifiers that keep the key set would refuse its tokens.
func (s *Service) Rotate(ctx context.Context, alg Algorithm, now bool) error {
	if alg == "" {
		alg = s.Config.Algorithm
	}
	if !alg.Valid() {
		return fault.New(fault.Invalid, "algorithm must be EdDSA, ES256 or RS256")
	}
	fresh, err := s.generate(alg)
	if err != nil {
		return err
	}
	at := s.Now().UTC()
	err = s.DB.Update(ctx, func(tx store.Tx) error {
		for _, k := range s.Keys() {
			state := k.State
			switch state {
			case Next:
				if wait := publishBefore - at.Sub(k.CreatedAt); wait > 0 && !now {
					return fault.New(fault.Conflict, "the next key was published less than an hour ago; wait %s, or rotate now and accept that verifiers may not know it yet", wait.Round(time.Minute))
				}
				k.State, k.ActiveAt = Active, at
			case Active:
				k.State, k.RetiredAt = Retiring, at.Add(s.Config.MaxTTL+leeway)
			case Retiring:
				continue
			}
			if _, err := keys.Update(tx, k.ID, func(kept *Key) error {
				if kept.State != state {
					return fault.New(fault.Conflict, "another rotation was quicker; nothing was changed")
				}
				kept.State, kept.ActiveAt, kept.RetiredAt = k.State, k.ActiveAt, k.RetiredAt
				return nil
			}); err != nil {
				return err
			}
		}
		if err := keys.Insert(tx, fresh.ID, fresh); err != nil {
			return err
		}
		return s.Audit.Append(ctx, tx, audit.Entry{Action: "signing_key.rotate", Target: fresh.ID, Detail: map[string]string{"algorithm": string(alg)}})
	})
	if err != nil {
		return err
	}
	return s.reload(ctx)
}

// Sweep rotates when it is time to, and forgets keys that verify nothing more.
func (s *Service) Sweep(ctx context.Context, now time.Time) error {
	gone := 0
	for _, k := range s.Keys() {
		if k.State != Retiring || now.Before(k.RetiredAt) {
			continue
		}
		if err := s.DB.Update(ctx, func(tx store.Tx) error {
			if _, err := keys.Delete(tx, k.ID); err != nil {
				return err
			}
			return s.Audit.Append(ctx, tx, audit.Entry{Action: "signing_key.delete", Target: k.ID})
		}); err != nil {
			return err
		}
		gone++
	}
	if gone > 0 {
		if err := s.reload(ctx); err != nil {
			return err
		}
	}
	if due := s.Config.RotateEvery; due > 0 && now.Sub(s.ring.Load().active.ActiveAt) >= due {
		return s.Rotate(ctx, "", false)
	}
	return nil
}

// reload puts the keys of the store in use. What was verified by the ring before is
// verified again: the key that did may be gone.
func (s *Service) reload(ctx context.Context) error {
	r := &ring{byID: map[string]Key{}}
	for k, err := range keys.All(ctx, s.DB, "", "") {
		if err != nil {
			return err
		}
		if err := s.open(&k); err != nil {
			return err
		}
		r.byID[k.ID] = k
		r.list = append(r.list, k)
		if k.State == Active {
			r.active = k
		}
	}
	if r.active.private == nil {
		return fmt.Errorf("tokens: there are %d signing keys and none is active", len(r.list))
	}
	sortKeys(r.list)
	s.ring.Store(r)
	return nil
}

func (s *Service) open(k *Key) error {
	der, err := s.Box.Open("signing key/"+k.ID, k.Sealed)
	if err != nil {
		return fmt.Errorf("tokens: key %s: %w", k.ID, err)
	}
	defer der.Wipe()
	private, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return fmt.Errorf("tokens: key %s: %w", k.ID, err)
	}
	signer, ok := private.(crypto.Signer)
	if !ok {
		return fmt.Errorf("tokens: key %s does not sign", k.ID)
	}
	k.private, k.public = signer, signer.Public()
	return nil
}

func (s *Service) generate(alg Algorithm) (Key, error) {
	var private crypto.Signer
	var err error
	switch alg {
	case EdDSA:
		_, private, err = ed25519.GenerateKey(rand.Reader)
	case ES256:
		private, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case RS256:
		private, err = rsa.GenerateKey(rand.Reader, 2048)
	default:
		err = fmt.Errorf("tokens: algorithm %q", alg)
	}
	if err != nil {
		return Key{}, err
	}
	k := Key{Alg: alg, State: Next, CreatedAt: s.Now().UTC(), private: private, public: private.Public()}
	if k.ID, err = thumbprint(k.public); err != nil {
		return k, err
	}
	if k.Public, err = x509.MarshalPKIXPublicKey(k.public); err != nil {
		return k, fmt.Errorf("tokens: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		return k, fmt.Errorf("tokens: %w", err)
	}
	defer clear(der)
	k.Sealed = s.Box.Seal("signing key/"+k.ID, der)
	return k, nil
}

// JWK is a public key as RFC 7517 writes it. The fields of its own kind stand
// first and in this order, which is that of a thumbprint (RFC 7638, 3.3).
type JWK struct {
	Curve    string `json:"crv,omitempty"`
	Exponent string `json:"e,omitempty"`
	Type     string `json:"kty"`
	Modulus  string `json:"n,omitempty"`
	X        string `json:"x,omitempty"`
	Y        string `json:"y,omitempty"`

	ID  string    `json:"kid,omitempty"`
	Use string    `json:"use,omitempty"`
	Alg Algorithm `json:"alg,omitempty"`
}

// JWKS returns the public keys that tokens are, or will soon be, verified with.
func (s *Service) JWKS() []JWK {
	var set []JWK
	for _, k := range s.Keys() {
		j, err := jwk(k.public)
		if err != nil {
			continue // keys of other kinds are not made
		}
		j.ID, j.Use, j.Alg = k.ID, "sig", k.Alg
		set = append(set, j)
	}
	return set
}

func jwk(public crypto.PublicKey) (JWK, error) {
	b64 := base64.RawURLEncoding.EncodeToString
	switch k := public.(type) {
	case ed25519.PublicKey:
		return JWK{Type: "OKP", Curve: "Ed25519", X: b64(k)}, nil
	case *ecdsa.PublicKey:
		point, err := k.Bytes() // 4, X, Y
		if err != nil || k.Curve != elliptic.P256() {
			return JWK{}, fmt.Errorf("tokens: not a key on P-256: %w", err)
		}
		return JWK{Type: "EC", Curve: "P-256", X: b64(point[1:33]), Y: b64(point[33:])}, nil
	case *rsa.PublicKey:
		return JWK{Type: "RSA", Modulus: b64(k.N.Bytes()), Exponent: b64(bigEndian(k.E))}, nil
	}
	return JWK{}, fmt.Errorf("tokens: a key of type %T", public)
}

func bigEndian(e int) []byte {
	var b []byte
	for ; e > 0; e >>= 8 {
		b = append([]byte{byte(e)}, b...)
	}
	return b
}

// thumbprint is by RFC 7638.
func thumbprint(public crypto.PublicKey) (string, error) {
	j, err := jwk(public)
	if err != nil {
		return "", err
	}
	b, err := json.Marshal(j)
	if err != nil {
		return "", fmt.Errorf("tokens: %w", err)
	}
	sum := sha256.Sum256(b)
	return base64.RawURLEncoding.EncodeToString(sum[:]), nil
}
