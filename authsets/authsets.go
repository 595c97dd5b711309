// Package authsets owns the auth sets of devices, the way of Mender: identity
// attributes plus one public key, which a person, a rule or a certificate accepts,
// and which from then on gets tokens.
//
// All sets of one identity are one record, and at most one of them is accepted. An
// accepted set is a credential of its device (package devices), attached and
// revoked in the transaction of the change; a token names the set and the epoch it
// was issued in, which moves whenever the set ceases to be accepted or its tokens are
// revoked, so that a token once dead stays dead.
package authsets

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"log/slog"
	"time"

	"keystead/audit"
	"keystead/devices"
	"keystead/fault"
	"keystead/identity"
	"keystead/store"
)

// Status is where a set stands, and a device by its sets.
type Status string

// The statuses. Preauthorized sets were made by an administrator and are accepted when
// the device shows up; a device with no sets is NoAuth.
const (
	Accepted      Status = "accepted"
	Preauthorized Status = "preauthorized"
	Pending       Status = "pending"
	Rejected      Status = "rejected"
	NoAuth        Status = "noauth"
)

// Statuses lists the statuses of a device, in the order of its lists.
var Statuses = []Status{Accepted, NoAuth, Pending, Preauthorized, Rejected}

// rank says which status of its sets a device has: the highest.
var rank = map[Status]int{Rejected: 1, Pending: 2, Preauthorized: 3, Accepted: 4}

// Device is one identity and its sets.
type Device struct {
	ID        string            `cbor:"id"` // of the device record too, once Linked
	Org       string            `cbor:"org"`
	Identity  Canonical         `cbor:"identity"`
	Status    Status            `cbor:"status"`
	Sets      []Set             `cbor:"sets"`
	Comment   string            `cbor:"comment,omitempty"`
	Labels    map[string]string `cbor:"labels,omitempty"`
	Linked    bool              `cbor:"linked,omitempty"` // there is a record of it in devices
	CreatedAt time.Time         `cbor:"created"`
	UpdatedAt time.Time         `cbor:"updated"`
}

// Set is one public key that claims an identity.
type Set struct {
	ID        string    `cbor:"id"`
	Key       []byte    `cbor:"key"` // PKIX, as encoded here
	Status    Status    `cbor:"status"`
	Epoch     uint64    `cbor:"epoch"`            // of its tokens
	By        string    `cbor:"by,omitempty"`     // what accepted it where no person did: "rule/…", "mtls/…"
	Cert      string    `cbor:"cert,omitempty"`   // the client certificate it was accepted by, see certName
	Reason    string    `cbor:"reason,omitempty"` // why it is pending although something of it is known
	CreatedAt time.Time `cbor:"created"`
}

// Fingerprint is a name of the set's key: the SHA-256 of its PKIX form, in hexadecimal.
func (s *Set) Fingerprint() string {
	sum := sha256.Sum256(s.Key)
	return hex.EncodeToString(sum[:])
}

// PEM returns the set's public key as the API writes it.
func (s *Set) PEM() string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: s.Key}))
}

// Devices are found by identity, listed by status, and evicted by age.
var table = store.NewTable("auth device",
	store.Index[Device]{Name: "identity", Unique: true, Terms: func(d Device) []store.Term { return store.Terms(d.Org, d.Identity.hash()) }},
	store.Index[Device]{Name: "status", Counted: true, Terms: func(d Device) []store.Term { return store.Terms(d.Org, string(d.Status)) }},
	// Of a device with a record, that has them: see listLabelled.
	store.Index[Device]{Name: "label", Terms: func(d Device) []store.Term {
		terms := make([]store.Term, 0, len(d.Labels))
		for key, value := range d.Labels {
			terms = append(terms, store.TermOf(d.Org, key, value))
		}
		return terms
	}},
	store.Index[Device]{Name: "set", Unique: true, Terms: func(d Device) []store.Term {
		terms := make([]store.Term, len(d.Sets))
		for i, s := range d.Sets {
			terms[i] = store.TermOf(s.ID)
		}
		return terms
	}},
	store.Index[Device]{Name: "junk", Counted: true, Terms: func(d Device) []store.Term {
		if !d.junk() {
			return nil
		}
		return store.Terms(d.Org)
	}},
	store.Index[Device]{Name: "age", Terms: func(d Device) []store.Term {
		if !d.junk() {
			return nil
		}
		return store.Terms("junk")
	}},
)

// junk says that nobody has decided anything about d: it may be anybody's invention, and
// is what is evicted. Ids sort by age.
func (d *Device) junk() bool {
	if d.Linked || d.Comment != "" || len(d.Labels) > 0 {
		return false
	}
	for _, s := range d.Sets {
		if s.Status != Pending {
			return false
		}
	}
	return true
}

func (d *Device) set(setID string) int {
	for i := range d.Sets {
		if d.Sets[i].ID == setID {
			return i
		}
	}
	return -1
}

func (d *Device) withKey(key []byte) int {
	for i := range d.Sets {
		if bytes.Equal(d.Sets[i].Key, key) {
			return i
		}
	}
	return -1
}

func (d *Device) accepted() int {
	for i := range d.Sets {
		if d.Sets[i].Status == Accepted {
			return i
		}
	}
	return -1
}

// aggregate is the status of d by its sets.
func (d *Device) aggregate() Status {
	status := NoAuth
	for _, s := range d.Sets {
		if rank[s.Status] > rank[status] {
			status = s.Status
		}
	}
	return status
}

// What happened to a device.
type What string

// What can happen to a device, as Mender's webhooks call it.
const (
	Provisioned    What = "device-provisioned" // accepted for the first time
	StatusChanged  What = "device-status-changed"
	Decommissioned What = "device-decommissioned"
)

// Token is what a device's token says.
type Token struct {
	ID     string // jti: the set's id, a dot, and what makes it unique
	Device string
	Org    string
	Epoch  uint64

	ExpiresAt time.Time // of one that was verified
}

// Service decides about auth sets and gives out tokens. Fill in the exported
// fields, then call Start.
type Service struct {
	DB      store.Engine
	Devices *devices.Service
	Audit   *audit.Log
	Now     func() time.Time
	Log     *slog.Logger
	Config  Config

	// Issue signs a device's token.
	Issue func(t Token) (string, error)
	// Verify returns what a token says whose signature, kind and time are good. For
	// text that is no token of a device it returns [identity.ErrNotMine].
	Verify func(text string) (Token, error)
	// Tenant returns the organisation that a tenant token, "" for none, stands for.
	Tenant func(ctx context.Context, token string) (org string, err error)
	// CertRevoked reports whether a certificate is revoked, here or by its outside CA. It is
	// given the path that was verified, from the certificate to the CA. Nil where none are.
	CertRevoked func(ctx context.Context, path []*x509.Certificate) (bool, error)
	// Changed is told, in its transaction, of each change of a device's status. Nil
	// where nobody wants to know.
	Changed func(ctx context.Context, tx store.Tx, what What, d Device) error

	requests requests
	proven   proven
	seen     seen
}

// Start readies the service: it hears of what is revoked elsewhere. Call it once.
func (s *Service) Start() {
	if s.Log == nil {
		s.Log = slog.New(slog.DiscardHandler)
	}
	s.Devices.Observe(s.observe)
}

// errNotFound is for devices that are not there, or are another organisation's.
var errNotFound = fault.New(fault.NotFound, "device not found")

// ErrNoSet is NotFound, for a set that its device does not have.
var ErrNoSet = fault.New(fault.NotFound, "authorization set not found")

// ErrExists is a Conflict, with a device of the same identity.
var ErrExists = fault.New(fault.Conflict, "device already exists")

// ErrLimit refuses to accept one device more than the limit allows.
var ErrLimit = fault.New(fault.Forbidden, "maximum number of accepted devices reached")

// own returns a device of the actor's organisation.
func (s *Service) own(ctx context.Context, tx store.Tx, deviceID string) (Device, error) {
	d, err := table.Get(tx, deviceID)
	if fault.Is(err, fault.NotFound) {
		return d, errNotFound
	}
	if a := identity.FromContext(ctx); err == nil && a.Kind != identity.System && a.Org != d.Org {
		return Device{}, errNotFound
	}
	return d, err
}

// move brings the set at index i of d, which is as it is stored, to a status, with all
// that follows from it: another accepted set is rejected, credentials are attached and revoked,
// the record of a device that is accepted for the first time is made.
func (s *Service) move(ctx context.Context, tx store.Tx, d *Device, i int, to Status) error {
	was := d.Status
	if to == Accepted && was != Accepted {
		switch full, err := s.full(tx, *d); {
		case err != nil:
			return err
		case full:
			return ErrLimit
		}
	}
	var ended []string
	leave := func(set *Set, to Status) {
		if set.Status == Accepted {
			set.Epoch++
			ended = append(ended, set.ID)
		}
		set.Status, set.By, set.Reason = to, "", ""
	}
	if a := d.accepted(); a >= 0 && a != i && to == Accepted {
		leave(&d.Sets[a], Rejected)
	}
	leave(&d.Sets[i], to)
	set := d.Sets[i]
	if err := s.save(ctx, tx, d); err != nil {
		return err
	}
	// What follows is told to observe as well, which finds it done.
	for _, id := range ended {
		if err := s.Devices.Revoke(ctx, tx, d.ID, identity.AuthSet, id); err != nil {
			return err
		}
	}
	if to == Accepted {
		if err := s.attach(ctx, tx, d, set); err != nil {
			return err
		}
	}
	if err := s.note(ctx, tx, *d, "auth_set."+string(to), set.ID); err != nil {
		return err
	}
	return s.tell(ctx, tx, *d, was)
}

// attach makes set a credential of its device, whose record it makes if there is none.
func (s *Service) attach(ctx context.Context, tx store.Tx, d *Device, set Set) error {
	if !d.Linked {
		_, err := s.Devices.CreateIn(ctx, tx, devices.New{
			ID: d.ID, Org: d.Org, Name: d.Identity.name(), Comment: d.Comment, Labels: d.Labels,
		})
		if err != nil {
			return err
		}
		d.Linked, d.Comment, d.Labels = true, "", nil // they are the record's now
		if err := table.Set(tx, d.ID, *d); err != nil {
			return err
		}
		if s.Changed != nil {
			if err := s.Changed(ctx, tx, Provisioned, *d); err != nil {
				return err
			}
		}
	}
	_, err := s.Devices.Attach(ctx, tx, d.ID, devices.Credential{Kind: identity.AuthSet, ID: set.ID, CreatedAt: set.CreatedAt})
	return err
}

// save stores d with the status that its sets give it.
func (s *Service) save(_ context.Context, tx store.Tx, d *Device) error {
	d.Status, d.UpdatedAt = d.aggregate(), s.Now().UTC()
	return table.Set(tx, d.ID, *d)
}

func (s *Service) note(ctx context.Context, tx store.Tx, d Device, action, target string) error {
	return s.Audit.Append(ctx, tx, audit.Entry{Action: action, Target: target, Device: d.ID, Org: d.Org})
}

func (s *Service) tell(ctx context.Context, tx store.Tx, d Device, was Status) error {
	if s.Changed == nil || d.Status == was {
		return nil
	}
	return s.Changed(ctx, tx, StatusChanged, d)
}

// observe keeps up with what is revoked through the device: a set whose credential ends is
// rejected, and the sets of a device that is decommissioned are gone.
func (s *Service) observe(ctx context.Context, tx store.Tx, c devices.Change) error {
	switch c.What {
	case devices.CredentialRevokedNow:
		if c.Credential.Kind != identity.AuthSet {
			return nil
		}
	case devices.DecommissionedNow:
	default:
		return nil
	}
	d, err := table.Get(tx, c.Device.ID)
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	was := d.Status
	if c.What == devices.DecommissionedNow {
		return s.remove(ctx, tx, d)
	}
	i := d.set(c.Credential.ID)
	if i < 0 || d.Sets[i].Status != Accepted {
		return nil
	}
	d.Sets[i].Status = Rejected
	d.Sets[i].Epoch++
	if err := s.save(ctx, tx, &d); err != nil {
		return err
	}
	return s.tell(ctx, tx, d, was)
}

// remove erases d with all its sets.
func (s *Service) remove(ctx context.Context, tx store.Tx, d Device) error {
	if err := s.denyCertificates(ctx, tx, d); err != nil {
		return err
	}
	if _, err := table.Delete(tx, d.ID); err != nil {
		return err
	}
	tx.OnCommit(func() { s.seen.forget(d.ID) })
	if err := s.note(ctx, tx, d, "auth_device.delete", d.ID); err != nil || s.Changed == nil {
		return err
	}
	return s.Changed(ctx, tx, Decommissioned, d)
}
