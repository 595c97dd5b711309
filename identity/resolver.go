package identity

import (
	"context"
	"crypto/x509"
	"errors"
	"net/netip"

	"keystead/fault"
)

// Proof is everything a transport saw that could say who is calling. Nothing in
// it is believed yet, save that a handshake proved possession of the key of
// Chain, or of the secret of PSK.
type Proof struct {
	Chain     []*x509.Certificate // what the client sent, leaf first, unverified; nil without mutual TLS
	PSK       string              // the identity of a DTLS-PSK session
	Scheme    string              // of the credential in the request: "Bearer", "Thing", "External", "Basic"
	Value     string              // that credential
	Stated    string              // a device id the request merely states
	Transport Transport           // how it came
	TLS13     bool                // the handshake was TLS 1.3
	Remote    netip.AddrPort      // the client's address, behind trusted proxies too
	Org       string              // the organisation asked for by X-Org-ID; a method decides if it may
}

// Transport is how a request came in.
type Transport string

// The transports.
const (
	HTTPS   Transport = "https"
	CoAPUDP Transport = "coap+dtls"
	CoAPTCP Transport = "coap+tls"
)

// ErrNotMine is what a Method returns for a proof with no credential of its kind.
var ErrNotMine = errors.New("identity: no credential of this kind")

// Method recognises one kind of credential. It returns ErrNotMine if the proof
// has none; any other error says there is one and it is no good, which ends the
// search: a caller with a bad certificate is not let in on a token.
type Method interface {
	Resolve(ctx context.Context, p Proof) (Actor, error)
}

// MethodFunc is a Method that is one function.
type MethodFunc func(ctx context.Context, p Proof) (Actor, error)

// Resolve calls f.
func (f MethodFunc) Resolve(ctx context.Context, p Proof) (Actor, error) { return f(ctx, p) }

// ErrMayEnrol is the Unauthenticated fault for a certificate of no known device that
// comes from a CA its organisation knows: it may be shown to EST, and is good for nothing
// else.
var ErrMayEnrol = fault.New(fault.Unauthenticated, "the certificate is not of a device known here; it may enrol one and is good for nothing else")

// Resolver says who is calling. All listeners share its methods.
type Resolver []Method

// FirstOf is methods that read the same credential, of which at most one can know
// it: the first that does is believed, and the rest are not asked.
type FirstOf []Method

// Resolve implements Method.
func (f FirstOf) Resolve(ctx context.Context, p Proof) (Actor, error) {
	for _, m := range f {
		if a, err := m.Resolve(ctx, p); !errors.Is(err, ErrNotMine) {
			return a, err
		}
	}
	return Actor{}, ErrNotMine
}

// ErrNoCredential is the Unauthenticated fault for a proof without any credential.
var ErrNoCredential = fault.New(fault.Unauthenticated, "no credential; present a certificate, a key or a token")

// ErrMismatch is the Unauthenticated fault for credentials of different actors.
var ErrMismatch = fault.New(fault.Unauthenticated, "the credentials presented belong to different devices or users")

// Resolve asks every method. All credentials a caller shows must name the same
// actor: a token issued to one device is refused from the session of another
// (as plgd has it). The first that recognises the caller is the one the
// actor is said to be proven by.
func (r Resolver) Resolve(ctx context.Context, p Proof) (Actor, error) {
	var found Actor // by value: a pointer would put every actor on the heap
	known := false
	for _, m := range r {
		a, err := m.Resolve(ctx, p)
		switch {
		case errors.Is(err, ErrNotMine):
		case err != nil:
			return Actor{}, err
		case !known:
			found, known = a, true
		case !found.Is(a):
			return Actor{}, ErrMismatch
		}
	}
	if !known {
		return Actor{}, ErrNoCredential
	}
	return found, nil
}
