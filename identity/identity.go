// Package identity says who is calling: the actor of a request, the proof a
// transport saw, and the resolver that leads from one to the other.
package identity

import (
	"context"
	"slices"
	"time"
)

// Kind is what an actor is.
type Kind string

// The kinds of actors.
const (
	User   Kind = "user"   // a person, or a script with a person's or an organisation's key
	Device Kind = "device" // one device, proven by one of its credentials
	System Kind = "system" // the server itself: sweeps, first start, offline commands
)

// Actor is who a request is made by.
type Actor struct {
	Kind       Kind
	ID         string
	Org        string     // the organisation the request acts in
	Name       string     // for people to read; proves nothing
	Role       Role       // of a user in Org
	Scopes     []Need     // what a limited credential may do, of what Role may; nil for all of it
	Credential Credential // what proved it
}

// Credential names what proved an actor.
type Credential struct {
	Kind      CredentialKind
	ID        string    // of the credential within its kind; never a secret
	ExpiresAt time.Time // zero if it does not expire

	SecondFactor time.Time // when its holder last gave a second factor; zero: not with this credential
}

// CredentialKind is a kind of credential, as whoami and the device record show it.
type CredentialKind string

// The kinds of credentials.
const (
	Certificate    CredentialKind = "certificate"
	PSK            CredentialKind = "psk"
	ThingKey       CredentialKind = "thing_key"
	ExternalKey    CredentialKind = "external_key"
	AuthSet        CredentialKind = "auth_set"
	DeviceToken    CredentialKind = "device_token"
	APIKey         CredentialKind = "api_key"
	LoginKey       CredentialKind = "login_key"
	RecoveryKey    CredentialKind = "recovery_key"
	AccessKey      CredentialKind = "access_key"
	OAuthToken     CredentialKind = "oauth_token"
	EnrolmentToken CredentialKind = "enrolment_token"
	Session        CredentialKind = "session"
)

// Is reports whether a and b are the same actor, whatever proved each.
func (a Actor) Is(b Actor) bool { return a.Kind == b.Kind && a.ID == b.ID && a.Org == b.Org }

// May reports whether a may do what need asks for, in its own organisation.
func (a Actor) May(need Need) bool {
	if a.Kind == System {
		return true
	}
	return a.Kind == User && a.Role.allows(need) && (a.Scopes == nil || slices.Contains(a.Scopes, need))
}

type actorKey struct{}

// NewContext returns ctx with the actor a transport has authenticated.
func NewContext(ctx context.Context, a Actor) context.Context {
	return context.WithValue(ctx, actorKey{}, a)
}

// FromContext returns the actor of ctx, the system if no transport set one.
func FromContext(ctx context.Context) Actor {
	a, ok := ctx.Value(actorKey{}).(Actor)
	if !ok {
		return Actor{Kind: System}
	}
	return a
}

// OrgOf returns the organisation that ctx's actor acts in.
func OrgOf(ctx context.Context) string { return FromContext(ctx).Org }

type requestKey struct{}

// WithRequestID returns ctx with the id a transport gave the request.
func WithRequestID(ctx context.Context, id string) context.Context {
	return context.WithValue(ctx, requestKey{}, id)
}

// RequestID returns the id of the request ctx belongs to, "" if there is none.
func RequestID(ctx context.Context) string {
	id, _ := ctx.Value(requestKey{}).(string)
	return id
}
