// Package accesskeys owns the access keys of the CreatorDev API: pairs of a key
// and a secret that belong to an organisation, and the tokens they are exchanged
// for.
//
// The platform's own key belongs to no organisation: each key it makes begins a
// new one. Tokens are random and stored as hashes, so that what is revoked is
// refused on the next request. A refresh token is good once; one that comes back
// ends the whole session, for one of its two holders has stolen it.
package accesskeys

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"keystead/audit"
	"keystead/fault"
	"keystead/id"
	"keystead/identity"
	"keystead/seal"
	"keystead/store"
)

// Key is an access key without its secret.
type Key struct {
	ID        string    `cbor:"id"`  // what the trail and actors call it
	Key       string    `cbor:"key"` // what it is used by
	Hash      []byte    `cbor:"hash"`
	Org       string    `cbor:"org"` // "" for the platform's own
	Name      string    `cbor:"name"`
	CreatedAt time.Time `cbor:"created"`
}

// keySize is the number of random bytes in a key and in a secret: 86 characters.
const keySize = 64

var table = store.NewTable("access key",
	store.Index[Key]{Name: "org", Counted: true, Terms: func(k Key) []store.Term { return store.Terms(k.Org) }},
	store.Index[Key]{Name: "made", Terms: func(k Key) []store.Term { return store.Terms(k.Org, k.ID) }},
)

// Service keeps access keys and their tokens.
type Service struct {
	DB    store.Engine
	Audit *audit.Log
	Now   func() time.Time

	// NewOrg makes the organisation a key of the platform's begins.
	NewOrg func(ctx context.Context, tx store.Tx, name string) (org string, err error)
	// Alive is an error if the organisation is not there or not in use.
	Alive func(tx store.Tx, org string) error
}

// Create makes a key and returns it with its secret, which is not given out
// again: for a new organisation if the actor is of none, else for the actor's.
func (s *Service) Create(ctx context.Context, name string) (Key, seal.Secret, error) {
	if err := checkName(name); err != nil {
		return Key{}, nil, err
	}
	k, secret := s.generate(name)
	err := s.DB.Update(ctx, func(tx store.Tx) (err error) {
		if k.Org = identity.OrgOf(ctx); k.Org == "" {
			if k.Org, err = s.NewOrg(ctx, tx, name); err != nil {
				return err
			}
		}
		return s.insert(ctx, tx, k)
	})
	return k, secret, err
}

// ReplacePlatform makes the platform's own key, in place of the ones it had.
func (s *Service) ReplacePlatform(ctx context.Context) (Key, seal.Secret, error) {
	k, secret := s.generate("admin")
	var old []Key
	for o, err := range table.All(ctx, s.DB, "made", store.TermOf("")) {
		if err != nil {
			return k, nil, err
		}
		old = append(old, o)
	}
	err := s.DB.Update(ctx, func(tx store.Tx) error {
		for _, o := range old {
			if err := s.deleteIn(ctx, tx, o); err != nil {
				return err
			}
		}
		return s.insert(ctx, tx, k)
	})
	return k, secret, err
}

func (s *Service) generate(name string) (Key, seal.Secret) {
	now := s.Now().UTC()
	secret := random()
	return Key{ID: id.New(now), Key: string(random()), Hash: hash(secret), Name: name, CreatedAt: now}, secret
}

func random() seal.Secret {
	raw := seal.NewSecret(keySize)
	return base64.RawURLEncoding.AppendEncode(nil, raw)
}

// hash is what is kept of a secret. A fast one is enough for 512 random bits.
func hash(secret []byte) []byte {
	h := sha256.Sum256(secret)
	return h[:]
}

func (s *Service) insert(ctx context.Context, tx store.Tx, k Key) error {
	if err := table.Insert(tx, k.Key, k); err != nil {
		return err
	}
	return s.note(ctx, tx, "accesskey.create", k)
}

func (s *Service) note(ctx context.Context, tx store.Tx, action string, k Key) error {
	return s.Audit.Append(ctx, tx, audit.Entry{Action: action, Target: k.ID, Org: k.Org, Detail: map[string]string{"name": k.Name}})
}

func checkName(name string) error {
	if n := len(name); n < 1 || n > 254 || !utf8.ValidString(name) || strings.ContainsFunc(name, unicode.IsControl) {
		return fault.InvalidFields(fault.Field{Name: "Name", Message: "must have 1 to 254 bytes of text, without control characters"})
	}
	return nil
}

// Get returns a key of the actor's organisation, or a NotFound fault.
func (s *Service) Get(ctx context.Context, key string) (k Key, err error) {
	err = s.DB.View(ctx, func(tx store.Tx) error {
		k, err = own(ctx, tx, key)
		return err
	})
	return k, err
}

// own returns a key of the actor's organisation. That of another reads as if it
// were not there.
func own(ctx context.Context, tx store.Tx, key string) (Key, error) {
	k, err := table.Get(tx, bounded(key))
	if err == nil && k.Org != identity.OrgOf(ctx) {
		err = fault.New(fault.NotFound, "no such access key")
	}
	return k, err
}

// bounded keeps what is no key from being looked up.
func bounded(key string) string {
	if len(key) > 2*keySize {
		return ""
	}
	return key
}

// List returns up to size keys of the actor's organisation from the start-th on,
// in the order they were made, and how many there are in all.
func (s *Service) List(ctx context.Context, start, size int) (keys []Key, total int, err error) {
	org := store.TermOf(identity.OrgOf(ctx))
	err = s.DB.View(ctx, func(tx store.Tx) error {
		total, err = table.Count(tx, "org", org)
		return err
	})
	if err != nil || start >= total {
		return nil, total, err
	}
	keys, err = table.From(ctx, s.DB, "made", org, start, size)
	return keys, total, err
}

// Rename changes the name of a key.
func (s *Service) Rename(ctx context.Context, key, name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	return s.DB.Update(ctx, func(tx store.Tx) error {
		if _, err := own(ctx, tx, key); err != nil {
			return err
		}
		k, err := table.Update(tx, key, func(k *Key) error {
			k.Name = name
			return nil
		})
		if err != nil {
			return err
		}
		return s.note(ctx, tx, "accesskey.update", k)
	})
}

// Delete ends a key and every token it was exchanged for.
func (s *Service) Delete(ctx context.Context, key string) error {
	k, err := s.Get(ctx, key)
	if err != nil {
		return err
	}
	// Tokens are refused without their key, so those of a busy key may go
	// afterwards, a transaction's worth at a time.
	if err := s.DB.Update(ctx, func(tx store.Tx) error { return s.deleteIn(ctx, tx, k) }); err != nil {
		return err
	}
	return s.sweep(ctx, "key", store.TermOf(key), func(session) bool { return true })
}

func (s *Service) deleteIn(ctx context.Context, tx store.Tx, k Key) error {
	if _, err := table.Delete(tx, k.Key); err != nil {
		return err
	}
	return s.note(ctx, tx, "accesskey.delete", k)
}

// check returns the key whose secret is given. An unknown key and a wrong secret
// are the same Unauthenticated fault, after the same work.
func check(tx store.Tx, key, secret string) (Key, error) {
	k, err := table.Get(tx, bounded(key))
	if err != nil && !fault.Is(err, fault.NotFound) {
		return k, err
	}
	kept := k.Hash
	if err != nil {
		kept = make([]byte, sha256.Size)
	}
	if subtle.ConstantTimeCompare(hash([]byte(secret)), kept) != 1 || err != nil {
		return Key{}, fault.New(fault.Unauthenticated, "no such access key, or the wrong secret")
	}
	return k, nil
}
