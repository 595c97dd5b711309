// Package thingkeys owns the keys that things prove themselves with: one internal
// key, made or given, and one external key, which the thing had before it came
// here, such as the address of its radio.
//
// A thing is a device: the device record says whether it may do anything, and
// what is said of it as a thing (its type and metadata) is kept here. A key is
// found by its HMAC and never stored in clear; it is sealed where it may be
// shown again.
package thingkeys

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/json"
	"hash"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"unicode"
	"unicode/utf8"

	"keystead/audit"
	"keystead/devices"
	"keystead/fault"
	"keystead/id"
	"keystead/identity"
	"keystead/seal"
	"keystead/store"
	"keystead/throttle"
)

// Service keeps things and their keys. Call Start once before serving.
type Service struct {
	DB      store.Engine
	Devices *devices.Service
	Audit   *audit.Log
	Box     *seal.Box   // for keys that may be shown again
	Index   seal.Secret // of the HMAC that keys are found by
	Now     func() time.Time

	// Forget has keys not sealed either: they are shown when they are made, and
	// never again.
	Forget bool

	failures throttle.Buckets // wrong keys, by address
	proven   provenKeys
	hashes   sync.Pool     // of hashers under Index
	renamed  atomic.Uint64 // moves whenever a thing's name may have
}

// Kind is a kind of key. The two are different name spaces: a key of one is
// never found as the other.
type Kind string

// The kinds of keys.
const (
	Internal Kind = "internal"
	External Kind = "external"
)

// credential is what the device record calls a key of kind k.
func (k Kind) credential() identity.CredentialKind {
	if k == External {
		return identity.ExternalKey
	}
	return identity.ThingKey
}

// Limits on keys, in bytes.
const (
	MinExternal = 5
	MaxExternal = 1024
	MinInternal = 16
	MaxInternal = 1024

	internalRandom = 40 // base62 digits of a key made here, 238 bits; with the prefix it fits a common name
	internalPrefix = "tk_"
)

// Thing is what is said of a device as a thing.
type Thing struct {
	ID        string          `cbor:"id"` // of the device
	Org       string          `cbor:"org"`
	Name      string          `cbor:"name"`
	Type      Type            `cbor:"type"`
	Group     string          `cbor:"group,omitempty"`
	Metadata  json.RawMessage `cbor:"meta,omitempty"`
	CreatedAt time.Time       `cbor:"created"`
	UpdatedAt time.Time       `cbor:"updated"`
}

// Type is what sort of thing it is.
type Type string

// Types are the types there are.
var Types = []Type{"device", "sensor", "actuator", "controller", "gateway"}

// key is one key of a thing.
type key struct {
	ID        string    `cbor:"id"`
	Thing     string    `cbor:"thing"`
	Kind      Kind      `cbor:"kind"`
	MAC       []byte    `cbor:"mac"`
	Sealed    []byte    `cbor:"sealed,omitempty"`
	CreatedAt time.Time `cbor:"created"`
}

var (
	thingTable = store.NewTable("thing",
		store.Index[Thing]{Name: "org", Counted: true, Terms: func(t Thing) []store.Term { return store.Terms(t.Org) }},
	)
	keyTable = store.NewTable("thing key",
		store.Index[key]{Name: "mac", Unique: true, Terms: func(k key) []store.Term { return store.Terms(string(k.MAC)) }},
		store.Index[key]{Name: "thing", Terms: func(k key) []store.Term { return store.Terms(k.Thing) }},
	)
)

// errTaken says no more than that something clashes: whose key it is, and of
// which organisation, is not the caller's to know.
var errTaken = fault.New(fault.Conflict, "entity already exists")

// Start readies the service, and has keys and things erased in the transaction
// that ends them in the device record.
func (s *Service) Start() {
	s.failures = throttle.Buckets{Burst: 30, Refill: 2 * time.Second, Now: s.Now}
	s.Devices.Observe(s.observe)
	s.Devices.Listen(func(c devices.Change) {
		if c.What == devices.Updated && len(c.Device.CredentialsOf(identity.ThingKey)) > 0 {
			s.renamed.Add(1)
		}
	})
}

func (s *Service) observe(_ context.Context, tx store.Tx, c devices.Change) error {
	switch c.What {
	case devices.CredentialRevokedNow:
		if c.Credential.Kind == identity.ThingKey || c.Credential.Kind == identity.ExternalKey {
			return erase(tx, c.Credential.ID)
		}
	case devices.DecommissionedNow:
		for _, kind := range []Kind{Internal, External} {
			for _, cred := range c.Device.CredentialsOf(kind.credential()) {
				if err := erase(tx, cred.ID); err != nil {
					return err
				}
			}
		}
		if _, err := thingTable.Delete(tx, c.Device.ID); err != nil && !fault.Is(err, fault.NotFound) {
			return err
		}
	case devices.Updated:
		_, err := thingTable.Update(tx, c.Device.ID, func(t *Thing) error {
			t.Name, t.UpdatedAt = c.Device.Name, c.Device.UpdatedAt
			return nil
		})
		if err != nil && !fault.Is(err, fault.NotFound) {
			return err
		}
	default:
	}
	return nil
}

func erase(tx store.Tx, keyID string) error {
	if _, err := keyTable.Delete(tx, keyID); err != nil && !fault.Is(err, fault.NotFound) {
		return err
	}
	return nil
}

// mac is what a key is found by.
func (s *Service) mac(kind Kind, text string) []byte {
	m, ok := s.hashes.Get().(*hasher)
	if !ok {
		m = &hasher{hmac: hmac.New(sha256.New, s.Index)}
	}
	defer s.hashes.Put(m)
	m.hmac.Reset() // which goes back to where the key is taken in already
	m.text = append(append(append(m.text[:0], kind...), 0), text...)
	m.hmac.Write(m.text)
	clear(m.text) // no key stays
	return m.hmac.Sum(nil)
}

// hasher makes HMACs, one at a time.
type hasher struct {
	hmac hash.Hash
	text []byte
}

func place(keyID string) string { return keyTable.Name() + "/" + keyID }

// newKey makes the record of a key, nothing stored yet.
func (s *Service) newKey(thing string, kind Kind, text seal.Secret) key {
	now := s.Now().UTC()
	k := key{ID: id.New(now), Thing: thing, Kind: kind, MAC: s.mac(kind, string(text)), CreatedAt: now}
	if !s.Forget {
		k.Sealed = s.Box.Seal(place(k.ID), text)
	}
	return k
}

func randomKey() seal.Secret {
	return append(seal.Secret(internalPrefix), seal.Random62(internalRandom)...)
}

// checkKey says what is wrong with a key that was given.
func checkKey(kind Kind, text seal.Secret, field string) []fault.Field {
	least, most := MinInternal, MaxInternal
	if kind == External {
		least, most = MinExternal, MaxExternal
	}
	s := string(text)
	var message string
	switch {
	case len(s) < least || len(s) > most:
		message = "must have 16 to 1024 bytes"
		if kind == External {
			message = "must have 5 to 1024 bytes"
		}
	case !utf8.ValidString(s) || strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) || strings.TrimSpace(s) != s:
		message = "must be printable, without spaces around it"
	default:
		return nil
	}
	return []fault.Field{{Name: field, Message: message}}
}

// attach stores a key and puts it on the device's list.
func (s *Service) attach(ctx context.Context, tx store.Tx, k key) error {
	err := keyTable.Insert(tx, k.ID, k)
	if fault.Is(err, fault.Conflict) {
		return errTaken
	}
	if err != nil {
		return err
	}
	_, err = s.Devices.Attach(ctx, tx, k.Thing, devices.Credential{Kind: k.Kind.credential(), ID: k.ID, CreatedAt: k.CreatedAt})
	return err
}

// Resolve is the [identity.Method] of thing keys: of the schemes Thing and
// External, of Key, which is either, and of Basic with the thing's id as user.
// Wrong keys are counted by address.
func (s *Service) Resolve(ctx context.Context, p identity.Proof) (identity.Actor, error) {
	kinds, stated, text := presented(p)
	if kinds == nil {
		return identity.Actor{}, identity.ErrNotMine
	}
	from := throttle.Prefix(p.Remote.Addr())
	if wait := s.failures.Wait(from); wait > 0 {
		return identity.Actor{}, tooMany(wait)
	}
	if text == "" || len(text) > MaxExternal {
		s.failures.Spend(from)
		return identity.Actor{}, errUnknown
	}
	a, err := s.prove(ctx, kinds, text)
	if err == nil && stated != "" && stated != a.ID {
		err = errUnknown
	}
	if fault.Is(err, fault.Unauthenticated) {
		s.failures.Spend(from)
	}
	if err != nil {
		return identity.Actor{}, err
	}
	return a, nil
}

// Holds reports whether text is an internal key of a thing, whatever state the
// thing is in.
func (s *Service) Holds(ctx context.Context, text string) (held bool, err error) {
	if len(text) < MinInternal || len(text) > MaxInternal {
		return false, nil
	}
	err = s.DB.View(ctx, func(tx store.Tx) error {
		switch _, err := helds.GetBy(tx, "mac", store.TermOf(string(s.mac(Internal, text)))); {
		case err == nil:
			held = true
		case !fault.Is(err, fault.NotFound):
			return err
		}
		return nil
	})
	return held, err
}

// prove returns the thing that a key of one of the kinds proves now: from memory, if
// it was looked up since anything was last taken away from any device.
func (s *Service) prove(ctx context.Context, kinds []Kind, text string) (a identity.Actor, err error) {
	// From before the look at the records: what changes meanwhile makes what
	// is remembered stale.
	at := moment{s.Devices.Epoch(), s.renamed.Load()}
	macs := make([]string, len(kinds))
	for i, kind := range kinds {
		macs[i] = string(s.mac(kind, text))
		if a, ok := s.proven.get(macs[i], at); ok && (a.Credential.ExpiresAt.IsZero() || s.Now().Before(a.Credential.ExpiresAt)) {
			return a, nil
		}
	}
	err = s.DB.View(ctx, func(tx store.Tx) error {
		k, mac, err := findMAC(tx, macs)
		if err != nil {
			return err
		}
		d, cred, err := s.Devices.Prove(tx, k.Thing, k.Kind.credential(), k.ID)
		a = d.Actor(cred)
		if err == nil {
			s.proven.put(mac, at, a)
		}
		return err
	})
	return a, err
}

// moment is when a key was looked up: what was looked up at another says nothing.
type moment struct{ epoch, renamed uint64 }

// provenKeys remembers what keys prove, by their HMAC: never the keys.
type provenKeys struct {
	mu sync.RWMutex
	by map[string]proven
}

type proven struct {
	at    moment
	actor identity.Actor
}

// maxProven bounds the memory of a provenKeys, to some 30 MB.
const maxProven = 50_000

func (p *provenKeys) get(mac string, at moment) (identity.Actor, bool) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	k, ok := p.by[mac]
	return k.actor, ok && k.at == at
}

func (p *provenKeys) put(mac string, at moment, a identity.Actor) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, there := p.by[mac]; p.by == nil || !there && len(p.by) >= maxProven {
		p.by = map[string]proven{} // those in use are back after one look each
	}
	p.by[mac] = proven{at, a}
}

// presented returns the kinds a proof's key may be of, the thing it must be of
// ("" for any), and the key; no kinds if the proof has none.
func presented(p identity.Proof) (kinds []Kind, stated, text string) {
	switch p.Scheme {
	case "Thing":
		return []Kind{Internal}, "", p.Value
	case "External":
		return []Kind{External}, "", p.Value
	case "Key":
		return []Kind{Internal, External}, "", p.Value
	case "Basic":
		if user, password, ok := strings.Cut(p.Value, ":"); ok && id.Valid(user) {
			return []Kind{Internal}, user, password
		}
	}
	return nil, "", ""
}

var errUnknown = fault.New(fault.Unauthenticated, "failed to perform authentication over the entity")

func tooMany(wait time.Duration) error {
	return fault.Later(fault.TooMany, wait, "too many wrong keys from this address; wait and try again")
}

// held is what of a key a proof needs, read without decoding the rest.
type held struct {
	ID    string
	Thing string
	Kind  Kind
}

// helds reads the records of keyTable, and never writes them.
var helds = store.NewTable("thing key", store.Index[held]{Name: "mac", Unique: true})

// UnmarshalCBOR implements [store.Unmarshaler]: it reads the record of a key.
func (h *held) UnmarshalCBOR(b []byte) error {
	r := store.Read(b)
	for n := r.Map(); n > 0; n-- {
		switch string(r.Text()) {
		case "id":
			h.ID = string(r.Text())
		case "thing":
			h.Thing = string(r.Text())
		case "kind":
			h.Kind = Kind(r.Text())
		default:
			r.Skip()
		}
	}
	return r.Err()
}

// findMAC returns the key that one of the HMACs is of, and that HMAC.
func findMAC(tx store.Tx, macs []string) (held, string, error) {
	for _, mac := range macs {
		k, err := helds.GetBy(tx, "mac", store.TermOf(mac))
		if err == nil || !fault.Is(err, fault.NotFound) {
			return k, mac, err
		}
	}
	return held{}, "", errUnknown
}

// Identify returns the id of the thing a key belongs to, if it proves it now;
// NotFound else. Failures are counted by address.
func (s *Service) Identify(ctx context.Context, kind Kind, text string, from netip.Addr) (string, error) {
	scheme := "Thing"
	if kind == External {
		scheme = "External"
	}
	a, err := s.Resolve(ctx, identity.Proof{Scheme: scheme, Value: text, Remote: netip.AddrPortFrom(from, 0)})
	if fault.Is(err, fault.Unauthenticated) {
		return "", fault.New(fault.NotFound, "entity not found")
	}
	return a.ID, err
}

// Count returns how many things the actor's organisation has.
func (s *Service) Count(ctx context.Context) (n int, err error) {
	err = s.DB.View(ctx, func(tx store.Tx) error {
		n, err = thingTable.Count(tx, "org", store.TermOf(identity.OrgOf(ctx)))
		return err
	})
	return n, err
}

func validType(t Type) bool { return slices.Contains(Types, t) }
