// Package psk owns the pre-shared keys that devices open DTLS sessions with: it
// makes and imports them, gives them to a handshake, and ends them.
//
// A key is bound to one device. Whether it is good is the device's to say: a
// handshake gets the secret only while devices.Prove holds, and the record is
// erased in the transaction that revokes it or ends the device.
package psk

import (
	"context"
	"time"
	"unicode"
	"unicode/utf8"

	"keystead/audit"
	"keystead/devices"
	"keystead/fault"
	"keystead/identity"
	"keystead/page"
	"keystead/seal"
	"keystead/store"
)

// Limits on a key, in bytes. RFC 4279, 5.3 and 5.4, has implementations take
// identities of at least 128 and keys of at least 64.
const (
	MaxIdentity = 128
	MinSecret   = 16
	MaxSecret   = 64
)

// Batch is how many keys one call of CreateMany makes at most: as many as one
// transaction should write.
const Batch = 1000

// secretSize is the length of a secret made here.
const secretSize = 32

// Key is a pre-shared key without its secret.
type Key struct {
	Identity  Identity  `cbor:"identity"`
	Org       string    `cbor:"org"`
	Device    string    `cbor:"device"`
	Sealed    []byte    `cbor:"sealed"` // the secret, bound to the identity
	CreatedAt time.Time `cbor:"created"`
}

// Lists follow the "device" index: device ids sort by when they were made.
var table = store.NewTable("psk",
	store.Index[Key]{Name: "org", Counted: true, Terms: func(k Key) []store.Term { return store.Terms(k.Org) }},
	store.Index[Key]{Name: "device", Terms: func(k Key) []store.Term { return store.Terms(k.Org, k.Device) }},
)

// Service issues, finds and revokes keys. Call Observe once before serving.
type Service struct {
	DB      store.Engine
	Devices *devices.Service
	Audit   *audit.Log
	Box     *seal.Box
	Now     func() time.Time
}

// New is what a key is made from. The zero New makes a random key for a new device.
type New struct {
	Identity Identity    // of a key made elsewhere, or chosen; random if empty
	Secret   seal.Secret // of a key made elsewhere; random if empty
	Text     bool        // the secret is to be typed: printable ASCII only
	// Device is the id or an alias of the device the key is for. If it is
	// empty, that is the one whose alias the identity is, or else a new one,
	// which gets the identity as endpoint name, and Labels.
	Device string
	Labels map[string]string
	State  devices.CredentialState // active if empty
}

// Create makes or imports a key for the actor's organisation and returns it
// with its secret, which is not given out again. It is Invalid for a value over
// the limits, NotFound for an unknown Device, Conflict for an identity in use.
func (s *Service) Create(ctx context.Context, n New) (k Key, secret seal.Secret, err error) {
	err = s.DB.Update(ctx, func(tx store.Tx) error {
		k, secret, err = s.CreateIn(ctx, tx, n)
		return err
	})
	return k, secret, err
}

// Made is a new key and its secret.
type Made struct {
	Key    Key
	Secret seal.Secret
}

// CreateMany makes count keys like n, at most [Batch], each for a new device,
// in one transaction.
func (s *Service) CreateMany(ctx context.Context, count int, n New) (made []Made, err error) {
	if count < 1 || count > Batch {
		return nil, fault.New(fault.Invalid, "ask for 1 to %d keys at a time", Batch)
	}
	if n.Identity != "" || n.Secret != nil || n.Device != "" {
		return nil, fault.New(fault.Invalid, "keys made many at a time are random, each for a device of its own")
	}
	err = s.DB.Update(ctx, func(tx store.Tx) error {
		made = make([]Made, 0, count)
		for range count {
			k, secret, err := s.CreateIn(ctx, tx, n)
			if err != nil {
				return err
			}
			made = append(made, Made{k, secret})
		}
		return nil
	})
	return made, err
}

// CreateIn is Create as part of tx.
func (s *Service) CreateIn(ctx context.Context, tx store.Tx, n New) (Key, seal.Secret, error) {
	n.fill()
	if err := n.check(); err != nil {
		return Key{}, nil, err
	}
	taken, err := table.Has(tx, string(n.Identity))
	if err != nil {
		return Key{}, nil, err
	}
	if taken {
		return Key{}, nil, fault.New(fault.Conflict, "the identity is in use; choose another")
	}
	now := s.Now().UTC()
	d, err := s.device(ctx, tx, n, devices.Credential{Kind: identity.PSK, ID: string(n.Identity), State: n.State, CreatedAt: now})
	if err != nil {
		return Key{}, nil, err
	}
	k := Key{
		Identity: n.Identity, Org: d.Org, Device: d.ID, CreatedAt: now,
		Sealed: s.Box.Seal(place(n.Identity), n.Secret),
	}
	if err := table.Insert(tx, string(k.Identity), k); err != nil {
		return Key{}, nil, err
	}
	e := audit.Entry{Action: "psk.create", Target: string(k.Identity), Device: d.ID, Org: d.Org}
	return k, n.Secret, s.Audit.Append(ctx, tx, e)
}

// fill sets what is to be random.
func (n *New) fill() {
	if n.Identity == "" {
		n.Identity = newIdentity()
	}
	switch {
	case len(n.Secret) > 0:
	case n.Text:
		n.Secret = printable(secretSize)
	default:
		n.Secret = seal.NewSecret(secretSize)
	}
}

func (n *New) check() error {
	var bad []fault.Field
	note := func(field, message string) { bad = append(bad, fault.Field{Name: field, Message: message}) }
	switch {
	case len(n.Identity) > MaxIdentity:
		note("Identity", "has at most 128 bytes")
	case !n.Identity.printable():
		note("Identity", "must be UTF-8 without control characters")
	}
	switch {
	case len(n.Secret) < MinSecret || len(n.Secret) > MaxSecret:
		note("Secret", "has 16 to 64 bytes, 32 to 128 hexadecimal digits")
	case n.Text && !isText(n.Secret):
		note("Secret", "is to be text and holds bytes that are not printable ASCII")
	}
	return fault.InvalidFields(bad...)
}

// device gives a new key to the device it is for, and returns that. The trail has it in
// the record of the key.
func (s *Service) device(ctx context.Context, tx store.Tx, n New, c devices.Credential) (devices.Device, error) {
	org := identity.OrgOf(ctx)
	if org == "" {
		return devices.Device{}, fault.New(fault.Forbidden, "device identities belong to an organisation; use a key of one")
	}
	name := n.Device
	if name == "" {
		name = string(n.Identity)
	}
	d, err := s.Devices.FindIn(ctx, tx, org, name)
	switch {
	case err == nil:
		return s.Devices.AttachTold(ctx, tx, d.ID, c)
	case n.Device != "" || !fault.Is(err, fault.NotFound):
		return d, err
	}
	return s.Devices.CreateIn(ctx, tx, devices.New{
		Org: org, Labels: n.Labels, Aliases: []devices.Alias{{Kind: devices.Endpoint, Value: name}}, Credential: &c,
	})
}

// Secret returns the secret of a key for a handshake. It is NotFound if there
// is no such key or its device or the key itself is not good now: the three
// are the same to whoever asks.
func (s *Service) Secret(ctx context.Context, i Identity) (secret seal.Secret, err error) {
	secret, _, err = s.Open(ctx, i)
	return secret, err
}

// Open is Secret with whom the key proves: one look-up where both are needed.
func (s *Service) Open(ctx context.Context, i Identity) (secret seal.Secret, a identity.Actor, err error) {
	h, a, err := s.prove(ctx, i)
	if fault.Is(err, fault.Unauthenticated) {
		return nil, identity.Actor{}, fault.Wrap(fault.NotFound, err, "no such psk")
	}
	if err != nil {
		return nil, identity.Actor{}, err
	}
	secret, err = s.Box.Open(place(i), h.Sealed)
	return secret, a, err
}

// Reveal returns the secret of a key of the actor's organisation, whatever its
// state, and records that it was asked for.
func (s *Service) Reveal(ctx context.Context, i Identity) (secret seal.Secret, err error) {
	err = s.DB.Update(ctx, func(tx store.Tx) error {
		k, err := s.GetIn(ctx, tx, i)
		if err != nil {
			return err
		}
		if secret, err = s.open(k); err != nil {
			return err
		}
		return s.Audit.Append(ctx, tx, audit.Entry{Action: "psk.reveal", Target: string(i), Device: k.Device, Org: k.Org})
	})
	return secret, err
}

// SecretIn returns the secret of a key as part of tx, for those who hand it to
// the device it belongs to. Callers decide who may have it.
func (s *Service) SecretIn(tx store.Tx, i Identity) (seal.Secret, error) {
	k, err := table.Get(tx, string(i))
	if err != nil {
		return nil, err
	}
	return s.open(k)
}

func (s *Service) open(k Key) (seal.Secret, error) {
	return s.Box.Open(place(k.Identity), k.Sealed)
}

// Resolve implements identity.Method for DTLS sessions opened with a key.
func (s *Service) Resolve(ctx context.Context, p identity.Proof) (identity.Actor, error) {
	if p.PSK == "" {
		return identity.Actor{}, identity.ErrNotMine
	}
	_, a, err := s.prove(ctx, Identity(p.PSK))
	if fault.Is(err, fault.NotFound) {
		return a, fault.New(fault.Unauthenticated, "the credential is revoked")
	}
	return a, err
}

// held is what of a key a handshake needs, read without decoding the rest.
type held struct {
	Device string
	Sealed []byte
}

// UnmarshalCBOR implements [store.Unmarshaler]: it reads the record of a [Key].
func (h *held) UnmarshalCBOR(b []byte) error {
	r := store.Read(b)
	for n := r.Map(); n > 0; n-- {
		switch string(r.Text()) {
		case "device":
			h.Device = string(r.Text())
		case "sealed":
			h.Sealed = r.Bytes()
		default:
			r.Skip()
		}
	}
	return r.Err()
}

// helds reads the records of table, and never writes them.
var helds = store.NewTable[held](table.Name())

// prove returns a key and the actor it proves, if its device says it is good.
func (s *Service) prove(ctx context.Context, i Identity) (h held, a identity.Actor, err error) {
	if len(i) > MaxIdentity {
		return h, a, fault.New(fault.NotFound, "no such psk")
	}
	err = s.DB.View(ctx, func(tx store.Tx) error {
		if h, err = helds.Get(tx, string(i)); err != nil {
			return err
		}
		d, c, err := s.Devices.Prove(tx, h.Device, identity.PSK, string(i))
		if err != nil {
			return err
		}
		a = d.Actor(c)
		return nil
	})
	return h, a, err
}

// Get returns a key of the actor's organisation, or a NotFound fault.
func (s *Service) Get(ctx context.Context, i Identity) (k Key, err error) {
	err = s.DB.View(ctx, func(tx store.Tx) error {
		k, err = s.GetIn(ctx, tx, i)
		return err
	})
	return k, err
}

// GetIn is Get as part of tx.
func (s *Service) GetIn(ctx context.Context, tx store.Tx, i Identity) (Key, error) {
	k, err := table.Get(tx, string(i))
	if err != nil {
		return Key{}, err
	}
	if a := identity.FromContext(ctx); a.Kind != identity.System && a.Org != k.Org {
		return Key{}, fault.New(fault.NotFound, "no such psk")
	}
	return k, nil
}

// List returns a page of the keys of the actor's organisation, the oldest
// devices' first; of one device if device is not empty.
func (s *Service) List(ctx context.Context, device string, r page.Request) (p page.Page[Key], err error) {
	term := store.TermOf(identity.OrgOf(ctx))
	if device != "" {
		term = store.TermOf(identity.OrgOf(ctx), device)
	}
	err = s.DB.View(ctx, func(tx store.Tx) error {
		p, err = table.PageBy(tx, "device", term, r)
		return err
	})
	return p, err
}

// ListFrom returns up to size keys of the actor's organisation from the start-th
// on, in the order of List, and how many there are in all.
func (s *Service) ListFrom(ctx context.Context, start, size int) (keys []Key, total int, err error) {
	org := identity.OrgOf(ctx)
	err = s.DB.View(ctx, func(tx store.Tx) error {
		total, err = table.Count(tx, "org", store.TermOf(org))
		return err
	})
	if err != nil || start >= total {
		return nil, total, err
	}
	keys, err = table.From(ctx, s.DB, "device", store.TermOf(org), start, size)
	return keys, total, err
}

// Delete ends a key: the next handshake with it fails, and sessions it opened
// are closed. A key of another organisation is NotFound, as if it did not exist.
func (s *Service) Delete(ctx context.Context, i Identity) error {
	return s.DB.Update(ctx, func(tx store.Tx) error {
		k, err := s.GetIn(ctx, tx, i)
		if err != nil {
			return err
		}
		if err := s.Devices.Revoke(ctx, tx, k.Device, identity.PSK, string(i)); err != nil {
			return err
		}
		return s.erase(ctx, tx, k.Org, k.Device, i) // for a key its device does not list, which nobody heard of
	})
}

// Observe has keys erased in the transaction that revokes them or ends their device.
func (s *Service) Observe() { s.Devices.Observe(s.observe) }

func (s *Service) observe(ctx context.Context, tx store.Tx, c devices.Change) error {
	switch c.What {
	case devices.CredentialRevokedNow:
		if c.Credential.Kind == identity.PSK {
			return s.erase(ctx, tx, c.Device.Org, c.Device.ID, Identity(c.Credential.ID))
		}
	case devices.DecommissionedNow:
		for _, cred := range c.Device.CredentialsOf(identity.PSK) {
			if err := s.erase(ctx, tx, c.Device.Org, c.Device.ID, Identity(cred.ID)); err != nil {
				return err
			}
		}
	default:
	}
	return nil
}

// erase removes a key of a device, secret and all. Erasing what is not there is
// no error, and an identity that now belongs to another device is left alone.
func (s *Service) erase(ctx context.Context, tx store.Tx, org, device string, i Identity) error {
	k, err := table.Get(tx, string(i))
	if fault.Is(err, fault.NotFound) || err == nil && k.Device != device {
		return nil
	}
	if err != nil {
		return err
	}
	if _, err := table.Delete(tx, string(i)); err != nil {
		return err
	}
	return s.Audit.Append(ctx, tx, audit.Entry{Action: "psk.delete", Target: string(i), Device: device, Org: org})
}

// place is where a secret is sealed for.
func place(i Identity) string { return "psk/" + string(i) }

func (i Identity) printable() bool {
	if !utf8.ValidString(string(i)) {
		return false
	}
	for _, r := range string(i) {
		if unicode.IsControl(r) {
			return false
		}
	}
	return true
}
