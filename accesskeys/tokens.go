package accesskeys

import (
	"context"
	"crypto/subtle"
	"time"

	"keystead/audit"
	"keystead/fault"
	"keystead/id"
	"keystead/identity"
	"keystead/seal"
	"keystead/store"
)

// How long tokens live. A session ends a week after its last refresh.
const (
	AccessTTL  = time.Hour
	RefreshTTL = 7 * 24 * time.Hour
)

// The kinds of tickets that tokens are. An access token is no refresh token, nor
// the other way round.
const (
	accessKind  = "access"
	refreshKind = "refresh"
)

// Bounds on what a session keeps: access tokens that are good at the same time,
// and refresh tokens that would be recognised if they came back.
const (
	maxAccess = 4
	maxUsed   = 64
)

// session is what one exchange of a key began, through all its refreshes.
type session struct {
	ID        string    `cbor:"id"`
	Key       string    `cbor:"key"`
	Access    []access  `cbor:"access"`
	Refresh   []byte    `cbor:"refresh"` // the hash of the one that is good
	Used      [][]byte  `cbor:"used,omitempty"`
	ExpiresAt time.Time `cbor:"expires"`
}

type access struct {
	Hash      []byte    `cbor:"hash"`
	ExpiresAt time.Time `cbor:"expires"`
}

var sessions = store.NewTable("access key session",
	store.Index[session]{Name: "key", Terms: func(s session) []store.Term { return store.Terms(s.Key) }},
)

// Tokens is what a key, or a refresh token, is exchanged for.
type Tokens struct {
	Access, Refresh seal.Secret
	ExpiresIn       time.Duration // of Access
}

// ErrNoRefreshToken is the Invalid fault for what is no refresh token of ours,
// not good any more, or of a session that has ended.
var ErrNoRefreshToken = fault.New(fault.Invalid, "the refresh token is not good, or was used before; exchange the access key again")

// Exchange returns tokens for a key and its secret. It is Unauthenticated for
// an unknown key or a wrong secret.
func (s *Service) Exchange(ctx context.Context, key, secret string) (t Tokens, err error) {
	err = s.DB.Update(ctx, func(tx store.Tx) error {
		k, err := check(tx, key, secret)
		if err != nil {
			return err
		}
		if err := s.alive(tx, k); err != nil {
			return err
		}
		n := session{ID: id.New(s.Now()), Key: k.Key}
		t = s.issue(&n)
		if err := sessions.Insert(tx, n.ID, n); err != nil {
			return err
		}
		return s.note(identity.NewContext(ctx, k.actor()), tx, "accesskey.login", k)
	})
	return t, err
}

func (s *Service) alive(tx store.Tx, k Key) error {
	if k.Org == "" {
		return nil
	}
	if err := s.Alive(tx, k.Org); err != nil {
		return fault.Wrap(fault.Unauthenticated, err, "the organisation of the access key is not in use")
	}
	return nil
}

// issue gives a session new tokens.
func (s *Service) issue(n *session) Tokens {
	now := s.Now().UTC()
	a, r := seal.NewTicket(accessKind, n.ID), seal.NewTicket(refreshKind, n.ID)
	kept := []access{{Hash: a.Hash(), ExpiresAt: now.Add(AccessTTL)}}
	for _, old := range n.Access {
		if now.Before(old.ExpiresAt) && len(kept) < maxAccess {
			kept = append(kept, old)
		}
	}
	n.Access = kept
	if n.Refresh != nil {
		n.Used = append([][]byte{n.Refresh}, n.Used[:min(len(n.Used), maxUsed-1)]...)
	}
	n.Refresh, n.ExpiresAt = r.Hash(), now.Add(RefreshTTL)
	return Tokens{Access: a.Text(), Refresh: r.Text(), ExpiresIn: AccessTTL}
}

// IsRefreshToken reports whether token has the form of a refresh token of this
// package, for those that take refresh tokens of several kinds.
func IsRefreshToken(token string) bool {
	t, ok := seal.ParseTicket(token)
	return ok && t.Kind == refreshKind
}

// Refresh returns new tokens for a refresh token, which is then used up. One
// that was used before ends its session. Its faults are Invalid.
func (s *Service) Refresh(ctx context.Context, token string) (t Tokens, err error) {
	ticket, ok := seal.ParseTicket(token)
	if !ok || ticket.Kind != refreshKind {
		return t, ErrNoRefreshToken
	}
	reused := false
	err = s.DB.Update(ctx, func(tx store.Tx) error {
		n, k, err := s.session(tx, ticket.ID)
		switch {
		case fault.Is(err, fault.NotFound), fault.Is(err, fault.Unauthenticated):
			return ErrNoRefreshToken
		case err != nil:
			return err
		}
		if !ticket.Matches(n.Refresh) {
			if reused = n.used(ticket); !reused {
				return ErrNoRefreshToken
			}
			if _, err := sessions.Delete(tx, n.ID); err != nil {
				return err
			}
			return s.Audit.Append(identity.NewContext(ctx, k.actor()), tx, audit.Entry{
				Action: "accesskey.reuse", Target: k.ID, Org: k.Org, Detail: map[string]string{"session": n.ID},
			})
		}
		t = s.issue(&n)
		return sessions.Set(tx, n.ID, n)
	})
	if err == nil && reused {
		return Tokens{}, ErrNoRefreshToken
	}
	return t, err
}

// used reports whether t was n's refresh token before.
func (n session) used(t seal.Ticket) bool {
	h, found := t.Hash(), 0
	for _, u := range n.Used {
		found |= subtle.ConstantTimeCompare(h, u)
	}
	return found == 1
}

// session returns a session that has not ended and the key it is of.
func (s *Service) session(tx store.Tx, sessionID string) (session, Key, error) {
	n, err := sessions.Get(tx, sessionID)
	if err != nil {
		return n, Key{}, err
	}
	if !s.Now().Before(n.ExpiresAt) {
		return n, Key{}, fault.New(fault.NotFound, "the session has expired")
	}
	k, err := table.Get(tx, n.Key)
	if err != nil {
		return n, k, err
	}
	return n, k, s.alive(tx, k)
}

// Resolve implements identity.Method for access tokens.
func (s *Service) Resolve(ctx context.Context, p identity.Proof) (identity.Actor, error) {
	ticket, ok := seal.ParseTicket(p.Value)
	switch {
	case p.Scheme != "Bearer" || !ok:
		return identity.Actor{}, identity.ErrNotMine
	case ticket.Kind == refreshKind:
		return identity.Actor{}, fault.New(fault.Unauthenticated, "this is a refresh token; exchange it for an access token at /oauth/token")
	case ticket.Kind != accessKind:
		return identity.Actor{}, identity.ErrNotMine
	}
	var a identity.Actor
	err := s.DB.View(ctx, func(tx store.Tx) error {
		n, k, err := s.session(tx, ticket.ID)
		if fault.Is(err, fault.NotFound) {
			return errNoToken
		}
		if err != nil {
			return err
		}
		for _, held := range n.Access {
			if ticket.Matches(held.Hash) && s.Now().Before(held.ExpiresAt) {
				a = k.actor()
				a.Credential = identity.Credential{Kind: identity.OAuthToken, ID: n.ID, ExpiresAt: held.ExpiresAt}
				return nil
			}
		}
		return errNoToken
	})
	if err == nil && p.Org != "" && p.Org != a.Org {
		return identity.Actor{}, fault.New(fault.NotFound, "no such organisation")
	}
	return a, err
}

var errNoToken = fault.New(fault.Unauthenticated, "the access token has expired or was revoked; get a new one at /oauth/token")

// actor is who whoever holds k acts as. The platform's own key makes
// organisations and sees nothing within them.
func (k Key) actor() identity.Actor {
	a := identity.Actor{
		Kind: identity.User, ID: k.ID, Org: k.Org, Name: k.Name, Role: identity.Admin,
		Credential: identity.Credential{Kind: identity.AccessKey, ID: k.ID},
	}
	if k.Org == "" {
		a.Scopes = []identity.Need{identity.OrgAdmin, identity.OrgRead}
	}
	return a
}

// Sweep forgets sessions that have ended.
func (s *Service) Sweep(ctx context.Context, now time.Time) error {
	return s.sweep(ctx, "", "", func(n session) bool { return !now.Before(n.ExpiresAt) })
}

// sweep deletes the sessions that done picks, of those with term in the index.
func (s *Service) sweep(ctx context.Context, index string, term store.Term, done func(session) bool) error {
	var batch []string
	flush := func() error {
		err := s.DB.Update(ctx, func(tx store.Tx) error {
			for _, sessionID := range batch {
				if _, err := sessions.Delete(tx, sessionID); err != nil && !fault.Is(err, fault.NotFound) {
					return err
				}
			}
			return nil
		})
		batch = batch[:0]
		return err
	}
	for n, err := range sessions.All(ctx, s.DB, index, term) {
		if err != nil {
			return err
		}
		if done(n) {
			batch = append(batch, n.ID)
		}
		if len(batch) == store.MaxScan {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	if len(batch) == 0 {
		return nil
	}
	return flush()
}
