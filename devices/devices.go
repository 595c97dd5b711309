// Package devices owns the one record every credential of a device leads to: its
// names, its state and the list of what it may prove itself with.
//
// It is also where a proof ends: [Service.Prove] says whether a credential is
// good now. Whoever revokes does it here, in the transaction of the change; the
// epoch then moves, and those who listen close what is still open.
package devices

import (
	"slices"
	"time"

	"keystead/identity"
	"keystead/store"
)

// State is what a device may do.
type State string

// The states of a device.
const (
	Active         State = "active"
	Suspended      State = "suspended"      // refused everywhere until it is resumed
	Decommissioned State = "decommissioned" // refused for ever; the record stays as a tombstone, its names are free again
)

// Device is one thing in the world.
type Device struct {
	ID          string            `cbor:"id"`
	Org         string            `cbor:"org"`
	Name        string            `cbor:"name"`
	State       State             `cbor:"state"`
	Aliases     []Alias           `cbor:"aliases,omitempty"`
	Labels      map[string]string `cbor:"labels,omitempty"`
	Comment     string            `cbor:"comment,omitempty"`
	Metadata    map[string]string `cbor:"metadata,omitempty"`
	Profile     string            `cbor:"profile,omitempty"` // the enrolment profile (DMS) it came in by
	Credentials []Credential      `cbor:"creds,omitempty"`
	CreatedAt   time.Time         `cbor:"created"`
	UpdatedAt   time.Time         `cbor:"updated"`
}

// Alias is another name of a device, unique within its organisation whatever
// its kind.
type Alias struct {
	Kind  AliasKind `cbor:"kind" json:"kind"`
	Value string    `cbor:"value" json:"value"`
}

// AliasKind says where an alias comes from.
type AliasKind string

// The kinds of aliases.
const (
	Endpoint     AliasKind = "endpoint"      // LwM2M endpoint client name
	OCFUUID      AliasKind = "ocf_uuid"      // OCF device id (di)
	CommonName   AliasKind = "common_name"   // CN of a certificate
	SerialNumber AliasKind = "serial_number" // serialNumber of a subject, or what is printed on the case
	External     AliasKind = "external"      // an id of another system
)

// CredentialState is what a credential may do.
type CredentialState string

// The states of a credential. Pending ones prove nothing yet; retiring ones
// still prove, until ExpiresAt.
const (
	CredentialPending  CredentialState = "pending"
	CredentialActive   CredentialState = "active"
	CredentialRetiring CredentialState = "retiring"
	CredentialRevoked  CredentialState = "revoked"
)

// Credential is one entry of the list of what a device proves itself with. The
// secret, key or certificate is kept by the package of its kind, under ID.
type Credential struct {
	Kind      identity.CredentialKind `cbor:"kind"`
	ID        string                  `cbor:"id"`
	State     CredentialState         `cbor:"state"`
	CreatedAt time.Time               `cbor:"created"`
	ExpiresAt time.Time               `cbor:"expires,omitzero"` // zero: does not expire
	// Renewal says how near its end it is: "renewal_pending" or "expiring_soon", as the package
	// of the kind has it; see SetRenewal.
	Renewal string `cbor:"renewal,omitempty"`
}

// keepRevoked is how many revoked credentials a record lists, the latest; the
// packages of the kinds and the audit trail know the rest.
const keepRevoked = 16

var table = store.NewTable("device",
	store.Index[Device]{Name: "org", Terms: func(d Device) []store.Term { return store.Terms(d.Org) }},
	store.Index[Device]{Name: "state", Counted: true, Terms: func(d Device) []store.Term { return store.Terms(d.Org, string(d.State)) }},
	store.Index[Device]{Name: "alias", Unique: true, Terms: aliasTerms},
	store.Index[Device]{Name: "label", Terms: labelTerms},
	store.Index[Device]{Name: "renewal", Counted: true, Terms: func(d Device) []store.Term {
		if r := d.Renewal(); r != "" {
			return store.Terms(d.Org, r)
		}
		return nil
	}},
)

func aliasTerms(d Device) []store.Term {
	terms := make([]store.Term, len(d.Aliases))
	for i, a := range d.Aliases {
		terms[i] = store.TermOf(d.Org, a.Value)
	}
	return terms
}

func labelTerms(d Device) []store.Term {
	terms := make([]store.Term, 0, len(d.Labels))
	for k, v := range d.Labels {
		terms = append(terms, store.TermOf(d.Org, k, v))
	}
	return terms
}

// Credential returns the entry of the given kind and id.
func (d *Device) Credential(kind identity.CredentialKind, id string) (Credential, bool) {
	if i := d.index(kind, id); i >= 0 {
		return d.Credentials[i], true
	}
	return Credential{}, false
}

// CredentialsOf returns the entries of one kind that are not revoked.
func (d *Device) CredentialsOf(kind identity.CredentialKind) []Credential {
	var list []Credential
	for _, c := range d.Credentials {
		if c.Kind == kind && c.State != CredentialRevoked {
			list = append(list, c)
		}
	}
	return list
}

// Renewal says how near its end the certificate is that the device has for longest, "" if it
// is not near or there is none.
func (d *Device) Renewal() string {
	var last Credential
	for _, c := range d.Credentials {
		if c.Kind == identity.Certificate && (c.State == CredentialActive || c.State == CredentialRetiring) && !c.ExpiresAt.Before(last.ExpiresAt) {
			last = c
		}
	}
	if d.State == Decommissioned {
		return ""
	}
	return last.Renewal
}

// Alias returns the device's first alias of a kind, "" if it has none.
func (d *Device) Alias(kind AliasKind) string {
	for _, a := range d.Aliases {
		if a.Kind == kind {
			return a.Value
		}
	}
	return ""
}

// Actor returns the actor that c proves.
func (d *Device) Actor(c Credential) identity.Actor {
	return identity.Actor{
		Kind: identity.Device, ID: d.ID, Org: d.Org, Name: d.Name,
		Credential: identity.Credential{Kind: c.Kind, ID: c.ID, ExpiresAt: c.ExpiresAt},
	}
}

func (d *Device) index(kind identity.CredentialKind, id string) int {
	return slices.IndexFunc(d.Credentials, func(c Credential) bool { return c.Kind == kind && c.ID == id })
}

// usable says whether c proves anything at now.
func (c Credential) usable(now time.Time) bool {
	return (c.State == CredentialActive || c.State == CredentialRetiring) && (c.ExpiresAt.IsZero() || now.Before(c.ExpiresAt))
}
