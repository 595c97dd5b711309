package accounts

import (
	"context"
	"crypto/sha256"
	"strings"
	"sync"
	"time"

	"keystead/fault"
	"keystead/identity"
	"keystead/seal"
	"keystead/store"
)

// Resolve is the [identity.Method] of everything a user shows: API keys, login
// keys, OAuth access tokens (all as Bearer) and browser sessions (as Session).
//
// The actor acts in the organisation the credential is limited to; else in the
// one the proof asks for, of which it must be a member; else in its home. A
// platform administrator acts in any. An organisation that is none of these is
// NotFound, whether it exists or not.
func (s *Service) Resolve(ctx context.Context, p identity.Proof) (identity.Actor, error) {
	if p.Scheme != "Bearer" && p.Scheme != "Session" {
		return identity.Actor{}, identity.ErrNotMine
	}
	slot := sha256.Sum256([]byte(p.Scheme + "\x00" + p.Org + "\x00" + p.Value))
	v, ok := s.cache.get(slot, s.Epoch())
	if !ok {
		// The epoch from before the look at the records: whatever changes while
		// we look makes what we remember stale.
		epoch := s.Epoch()
		var err error
		if v, err = s.verify(ctx, p); err != nil {
			return identity.Actor{}, err
		}
		v.epoch = epoch
		s.cache.put(slot, v)
	}
	return s.admit(v, p)
}

// admit checks what changes without anybody changing it: the time and the place.
func (s *Service) admit(v principal, p identity.Proof) (identity.Actor, error) {
	if exp := v.actor.Credential.ExpiresAt; !exp.IsZero() && !s.Now().Before(exp) {
		return identity.Actor{}, fault.New(fault.Unauthenticated, "the credential has expired; get a new one")
	}
	if v.key != nil {
		if !v.key.allowedFrom(p.Remote.Addr()) {
			return identity.Actor{}, fault.New(fault.Forbidden, "the API key may not be used from this address")
		}
		s.markUsed(v.key.ID, p.Remote.Addr())
	}
	return v.actor, nil
}

// verify looks at the records.
func (s *Service) verify(ctx context.Context, p identity.Proof) (v principal, err error) {
	switch t, ok := seal.ParseTicket(p.Value); {
	case ok && p.Scheme == "Bearer" && t.Kind == apiKeyKind:
		err = s.DB.View(ctx, func(tx store.Tx) error {
			v, err = s.verifyKey(tx, t, p.Org)
			return err
		})
	case ok && p.Scheme == "Session" && t.Kind == sessionKind:
		err = s.DB.View(ctx, func(tx store.Tx) error {
			v, err = s.verifySession(tx, t, p.Org)
			return err
		})
	case p.Scheme == "Session", ok && ownKinds[t.Kind], strings.HasPrefix(p.Value, "keystead_"+apiKeyKind+"_"):
		err = ErrUnauthenticated
	case !ok && s.Tokens != nil:
		v, err = s.verifyToken(ctx, p)
	default:
		err = identity.ErrNotMine
	}
	return v, err
}

// ownKinds are the kinds of tickets of this package that are no good as a bearer.
var ownKinds = map[string]bool{
	recoveryKind: true, setupKind: true, inviteKind: true, verifyKind: true, sessionKind: true,
	clientKind: true, codeKind: true, refreshKind: true,
}

// verifyToken verifies a signed token.
func (s *Service) verifyToken(ctx context.Context, p identity.Proof) (v principal, err error) {
	t, err := s.Tokens.Verify(p.Value)
	if err != nil {
		return v, err
	}
	err = s.DB.View(ctx, func(tx store.Tx) error {
		if t.Kind == AccessToken {
			v, err = s.verifyAccess(tx, t, p.Org)
		} else {
			v, err = s.verifyLogin(tx, t, p.Org)
		}
		return err
	})
	return v, err
}

func (s *Service) verifyKey(tx store.Tx, t seal.Ticket, org string) (principal, error) {
	k, err := keyTable.Get(tx, t.ID)
	if fault.Is(err, fault.NotFound) || err == nil && !t.Matches(k.Hash) {
		return principal{}, ErrUnauthenticated
	}
	if err != nil {
		return principal{}, err
	}
	u, err := s.alive(tx, k.User)
	if err != nil {
		return principal{}, err
	}
	a, err := s.actor(tx, u, k.Org, org)
	a.Scopes = k.Scopes
	a.Credential = identity.Credential{Kind: identity.APIKey, ID: k.ID, ExpiresAt: k.ExpiresAt}
	return principal{actor: a, key: &k}, err
}

// alive returns the user, if its account may be used.
func (s *Service) alive(tx store.Tx, userID string) (User, error) {
	u, err := userTable.Get(tx, userID)
	if fault.Is(err, fault.NotFound) || err == nil && u.Status != Enabled {
		return u, ErrUnauthenticated
	}
	return u, err
}

// actor returns u as it acts in the organisation it is limited to, asks for, or
// is at home in.
func (s *Service) actor(tx store.Tx, u User, limit, asked string) (identity.Actor, error) {
	a := identity.Actor{Kind: identity.User, ID: u.ID, Name: u.title(), Org: asked}
	switch {
	case limit != "" && asked != "" && asked != limit:
		return a, errNoOrg
	case limit != "":
		a.Org = limit
	case asked == "":
		home, err := homeOf(tx, u)
		if err != nil {
			return a, err
		}
		a.Org = home
	}
	if a.Org == "" {
		return a, nil // of no organisation: it may look after its own account
	}
	role, err := roleIn(tx, u, a.Org)
	if err != nil {
		return a, err
	}
	if role == identity.NoRole && asked == "" && limit == "" {
		a.Org = "" // its home is gone
		return a, nil
	}
	if role == identity.NoRole {
		return a, errNoOrg
	}
	a.Role = role
	return a, nil
}

// homeOf is where u acts unless it says otherwise, "" for nowhere. Platform
// administrators act in every organisation, so one that is of none, or of one that is gone, is
// at home in the first.
func homeOf(tx store.Tx, u User) (string, error) {
	if !u.Platform {
		return u.HomeOrg, nil
	}
	if u.HomeOrg != "" {
		if exists, err := orgTable.Has(tx, u.HomeOrg); err != nil || exists {
			return u.HomeOrg, err
		}
	}
	f, err := firsts.Get(tx, "first")
	if fault.Is(err, fault.NotFound) {
		return "", nil
	}
	return f.Org, err
}

var errNoOrg = fault.New(fault.NotFound, "no such organisation")

// roleIn is what u may do in an organisation, NoRole if it is no member or the
// organisation does not exist.
func roleIn(tx store.Tx, u User, org string) (identity.Role, error) {
	if u.Platform {
		exists, err := orgTable.Has(tx, org)
		if err != nil || !exists {
			return identity.NoRole, err
		}
		return identity.Operator, nil
	}
	m, err := memberTable.Get(tx, memberKey(org, u.ID))
	if fault.Is(err, fault.NotFound) {
		return identity.NoRole, nil
	}
	return m.Role, err
}

// title is what people call u.
func (u *User) title() string {
	switch {
	case u.Name != "":
		return u.Name
	case u.Email != "":
		return u.Email
	default:
		return u.ID
	}
}

// principal is a credential that was verified.
type principal struct {
	epoch uint64
	actor identity.Actor
	key   *APIKey // if it is one
}

// verified remembers principals by the hash of what proved them.
type verified struct {
	mu sync.Mutex
	by map[[sha256.Size]byte]principal
}

// maxVerified bounds the memory of a verified, to some 10 MB.
const maxVerified = 20_000

func (c *verified) get(slot [sha256.Size]byte, epoch uint64) (principal, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	v, ok := c.by[slot]
	return v, ok && v.epoch == epoch
}

func (c *verified) put(slot [sha256.Size]byte, v principal) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.by == nil || len(c.by) >= maxVerified {
		c.by = map[[sha256.Size]byte]principal{} // those in use are back after one look each
	}
	c.by[slot] = v
}

// flushEvery is how often the last uses of API keys are written down.
const flushEvery = time.Minute

// Run does what has to be done from time to time, until ctx is done.
func (s *Service) Run(ctx context.Context) error {
	tick := time.NewTicker(flushEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return s.flushUses(context.WithoutCancel(ctx))
		case <-tick.C:
			if err := s.sweep(ctx); err != nil {
				s.Log.ErrorContext(ctx, "accounts: sweep", "error", err)
			}
		}
	}
}
