// Package pki owns the certificate authorities of every organisation, what they
// issue, and what they take back: profiles, issuing, the inventory, revocation,
// CRLs and OCSP answers.
//
// A certificate comes about in one order only: the request is checked and the
// certificate built and linted ([Service.Prepare]), it is signed, what was signed is
// checked, and it is recorded together with whatever it is bound to ([Service.Issue]),
// before anybody sees it. A crash between any two steps leaves a recorded certificate or
// nothing; where the CA's key signs outside of this process, an intent that was
// recorded before, which the next start sweeps.
package pki

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"keystead/audit"
	"keystead/devices"
	"keystead/fault"
	"keystead/identity"
	"keystead/store"
)

// CAID is the id of a CA.
type CAID string

// Serial is the serial number of a certificate in lower-case hex of even length.
// Those of our own certificates are unique over all of our CAs, and so name them.
type Serial string

// Service is the public key infrastructure of all organisations.
type Service struct {
	DB      store.Engine
	Audit   *audit.Log
	Devices *devices.Service
	Keys    KeyStore
	Log     *slog.Logger
	Now     func() time.Time

	// PublicHTTP is the base URL, without a slash at its end, under which clients
	// reach CRLs, OCSP and CA certificates. Empty leaves the pointers out of
	// what is issued.
	PublicHTTP string

	// IsSecret reports whether a name is one that a device proves itself with, which
	// a certificate would make public; nil where there are none.
	IsSecret func(ctx context.Context, name string) (bool, error)

	// Outside looks up certificates of CAs that are not here; nil asks nobody.
	Outside *Outside

	// Journal keeps revocations outside the store, so that a restored backup
	// takes none back; nil for none.
	Journal *Journal

	// Crossed is told, in the transaction of it, that a certificate is to be renewed or expires
	// soon, once of each; nil tells nobody.
	Crossed func(ctx context.Context, tx store.Tx, c Certificate) error

	loaded   sync.Map // CAID → *authority
	records  store.Memo[CA]
	defaults store.Memo[defaults]
	shapes   shapes
	verified verifiedCache
	crls     crlCache
	issued   atomic.Uint64

	ocspNames   sync.Map // hash of a CA's key → CAID
	ocspMu      sync.Mutex
	warned      warnings // of certificates whose revocation could not be found out
	ocspSigners map[CAID]ocspSigning
}

// Issued is how many certificates were issued since the start.
func (s *Service) Issued() uint64 { return s.issued.Load() }

// Start brings the service to where it can be used: it sweeps what a crash left
// half done, takes up what the journal knows and the store does not, and has
// the service told when a device or one of its certificates is ended elsewhere.
// Call it once, before serving.
func (s *Service) Start(ctx context.Context) error {
	s.Devices.Observe(s.observe)
	if err := s.SweepIntents(ctx); err != nil {
		return err
	}
	return s.replay(ctx)
}

// orgOf is the organisation a call acts in; the system must name one.
func orgOf(ctx context.Context) string { return identity.OrgOf(ctx) }

// sees says whether ctx's actor may know of what belongs to org.
func sees(ctx context.Context, org string) bool {
	a := identity.FromContext(ctx)
	return a.Kind == identity.System && a.Org == "" || a.Org == org
}

func notFound(what string) error { return fault.New(fault.NotFound, "no such %s", what) }
