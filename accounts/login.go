package accounts

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"net/netip"
	"slices"
	"time"

	"keystead/fault"
	"keystead/id"
	"keystead/identity"
	"keystead/seal"
	"keystead/store"
	"keystead/throttle"
)

// logins limits attempts to guess.
type logins struct {
	pair    throttle.Buckets // failures of one account from one address
	address throttle.Buckets // failures from one address
	account throttle.Buckets // failures of one account, from where it never logged in before
	factor  throttle.Buckets // failures of an account's second factor
	mail    throttle.Buckets // mails to one address
	secret  throttle.Buckets // failures from one address, for tokens that cannot be guessed
}

func (l *logins) start(now func() time.Time) {
	for b, limit := range map[*throttle.Buckets]struct {
		burst  int
		refill time.Duration
	}{
		&l.pair:    {10, time.Minute},
		&l.address: {100, 6 * time.Second},
		&l.account: {100, 36 * time.Second},
		&l.factor:  {5, time.Minute},
		&l.mail:    {3, 5 * time.Minute},
		&l.secret:  {20, 3 * time.Second},
	} {
		b.Burst, b.Refill, b.Now = limit.burst, limit.refill, now
	}
}

func tooMany(wait time.Duration) error {
	return fault.Later(fault.TooMany, wait, "too many failed attempts; wait and try again")
}

// Attempt is what somebody offers to log in with.
type Attempt struct {
	Email    string
	Password string
	Code     string // of an authenticator app, or a recovery code; where a second factor is set up
	From     netip.Addr
}

// ErrSecondFactor says that the password was right and a second factor is due.
var ErrSecondFactor = fault.New(fault.Unauthenticated, "a second factor is needed: send the code of your authenticator app, or a recovery code, as \"code\"; or a passkey, see /tokens/passkey/begin")

// LogIn checks a password, and a second factor where one is set up. Whatever is
// wrong with the account or the password, the answer is the same and takes as
// long. Failures are counted per account and address; an account that is being
// guessed at from everywhere still opens from where it was opened before. With
// [ErrSecondFactor] comes the user, who has not logged in yet; see [Service.BeginConfirm].
func (s *Service) LogIn(ctx context.Context, a Attempt) (User, time.Time, error) {
	u, pair, err := s.checkPasswordOf(ctx, a)
	if err != nil {
		return User{}, time.Time{}, err
	}
	var factor time.Time
	if u.Factors {
		if err := s.checkCode(ctx, u, a.Code); err != nil {
			return u, time.Time{}, err
		}
		factor = s.Now()
	}
	s.logins.pair.Forget(pair)
	return u, factor, s.loggedIn(ctx, u, throttle.Prefix(a.From))
}

// checkPasswordOf is the first half of LogIn. It returns the user and what its
// failures are counted by.
func (s *Service) checkPasswordOf(ctx context.Context, a Attempt) (u User, pair string, err error) {
	from := throttle.Prefix(a.From)
	pair = canonical(a.Email) + "\x00" + from
	if wait := max(s.logins.pair.Wait(pair), s.logins.address.Wait(from)); wait > 0 {
		return User{}, "", tooMany(wait)
	}
	u, err = s.userByEmail(ctx, a.Email)
	if err != nil && !fault.Is(err, fault.NotFound) {
		return User{}, "", err
	}
	known := slices.Contains(u.KnownFrom, placeMark(u.ID, from))
	if wait := s.logins.account.Wait(canonical(a.Email)); wait > 0 && !known {
		return User{}, "", tooMany(wait)
	}
	ok, err := s.hashes.matches(ctx, a.Password, u.Password)
	if err != nil {
		return User{}, "", err
	}
	if !ok || u.Status != Enabled {
		s.logins.pair.Spend(pair)
		s.logins.address.Spend(from)
		if !known {
			s.logins.account.Spend(canonical(a.Email))
		}
		return User{}, "", ErrUnauthenticated
	}
	return u, pair, nil
}

// placeMark is how an account remembers an address without keeping it.
func placeMark(user, from string) string {
	h := sha256.Sum256([]byte(user + "\x00" + from))
	return hex.EncodeToString(h[:12])
}

// keepPlaces is how many places an account remembers.
const keepPlaces = 8

// loggedIn writes the trail, and remembers the place.
func (s *Service) loggedIn(ctx context.Context, u User, from string) error {
	actor := identity.Actor{Kind: identity.User, ID: u.ID, Org: u.HomeOrg}
	ctx = identity.NewContext(ctx, actor)
	return s.DB.Update(ctx, func(tx store.Tx) error {
		mark := placeMark(u.ID, from)
		if !slices.Contains(u.KnownFrom, mark) {
			_, err := userTable.Update(tx, u.ID, func(u *User) error {
				u.KnownFrom = append(slices.Clone(u.KnownFrom), mark)
				u.KnownFrom = u.KnownFrom[max(0, len(u.KnownFrom)-keepPlaces):]
				return nil
			})
			if err != nil {
				return err
			}
		}
		return s.note(ctx, tx, u.HomeOrg, "user.login", u.ID, map[string]string{"from": from})
	})
}

func (s *Service) userByEmail(ctx context.Context, email string) (u User, err error) {
	err = s.DB.View(ctx, func(tx store.Tx) error {
		u, err = userTable.GetBy(tx, "email", store.TermOf(canonical(email)))
		if fault.Is(err, fault.NotFound) { // whose record is read all the same: an unknown address costs what a known one does
			if _, e := userTable.Get(tx, nobody); e != nil && !fault.Is(e, fault.NotFound) {
				return e
			}
		}
		return err
	})
	return u, err
}

// Numbers of the kinds of keys on the wire.
const loginKeyType = 0

// LoginKey returns a new login key of a user who has just logged in.
func (s *Service) LoginKey(u User, factor time.Time) (text string, expires time.Time, err error) {
	// The user's id stands in issuer_id again, and the kind of key in type, for
	// clients that look there.
	t := Token{
		Kind: LoginToken, Subject: u.ID, Epoch: u.Epoch, TTL: s.Config.LoginTTL,
		Extra: map[string]any{"issuer_id": u.ID, "type": loginKeyType},
	}
	if u.Email != "" {
		t.Extra["email"] = u.Email
	}
	if !factor.IsZero() {
		t.Extra[factorClaim] = factor.Unix()
	}
	text, t, err = s.Tokens.Issue(t)
	return text, t.ExpiresAt, err
}

// TokenClaims are the claims, beside those of every token, that say something here.
var TokenClaims = []string{factorClaim, clientClaim, scopeClaim, deviceClaim, grantClaim}

// Claims of access tokens.
const (
	clientClaim = "client_id"
	scopeClaim  = "scope"
	deviceClaim = "device_id" // the device an authorization was asked for
	grantClaim  = "grant"     // the record the token rests on
)

// factorClaim is when a second factor was given.
const factorClaim = "mfa_time"

// verifyLogin returns the principal of a login key.
func (s *Service) verifyLogin(tx store.Tx, t Token, org string) (principal, error) {
	u, err := s.alive(tx, t.Subject)
	if err != nil {
		return principal{}, err
	}
	if u.Epoch != t.Epoch {
		return principal{}, fault.New(fault.Unauthenticated, "the login key was ended; log in again")
	}
	a, err := s.actor(tx, u, "", org)
	a.Credential = identity.Credential{Kind: identity.LoginKey, ID: t.ID, ExpiresAt: t.ExpiresAt, SecondFactor: t.time(factorClaim)}
	return principal{actor: a}, err
}

// session is a browser that somebody has logged in with.
type session struct {
	ID      string    `cbor:"id"`
	User    string    `cbor:"user"`
	Key     string    `cbor:"key,omitempty"` // the API key it rests on; "" for one that somebody logged in for
	Hash    []byte    `cbor:"hash"`
	Epoch   uint64    `cbor:"epoch"` // of the user when it began
	Factor  time.Time `cbor:"factor,omitzero"`
	Created time.Time `cbor:"created"`
	Expires time.Time `cbor:"expires"`
}

var sessionTable = store.NewTable("session",
	store.Index[session]{Name: "user", Terms: func(x session) []store.Term { return store.Terms(x.User) }},
	store.Index[session]{Name: "expires", Terms: func(x session) []store.Term { return store.Terms("", x.Expires.UTC().Format(time.RFC3339)) }},
)

const (
	sessionKind = "session"
	sessionTTL  = 12 * time.Hour
	maxSessions = 32 // of a user; the oldest ends for one more
)

// OpenSession returns the value of a cookie for a user who has just logged in.
func (s *Service) OpenSession(ctx context.Context, u User, factor time.Time) (seal.Secret, time.Time, error) {
	now := s.Now().UTC()
	t := seal.NewTicket(sessionKind, id.New(now))
	x := session{ID: t.ID, User: u.ID, Hash: t.Hash(), Epoch: u.Epoch, Factor: factor, Created: now, Expires: now.Add(sessionTTL)}
	err := s.DB.Update(ctx, func(tx store.Tx) error { return s.beginSession(tx, x) })
	return t.Text(), x.Expires, err
}

// beginSession records a session. A user who has as many as there may be loses the
// oldest: whoever can log in cannot fill the store, and is not locked out.
func (s *Service) beginSession(tx store.Tx, x session) error {
	list, err := all(tx, sessionTable, "user", store.TermOf(x.User))
	if err != nil {
		return err
	}
	slices.SortFunc(list, func(a, b session) int { return cmp.Or(a.Created.Compare(b.Created), cmp.Compare(a.ID, b.ID)) })
	for _, old := range list[:max(0, len(list)-(maxSessions-1))] {
		if _, err := sessionTable.Delete(tx, old.ID); err != nil {
			return err
		}
		s.moved(tx)
	}
	return sessionTable.Insert(tx, x.ID, x)
}

// CloseSession ends the session the actor came by.
func (s *Service) CloseSession(ctx context.Context) error {
	a := identity.FromContext(ctx)
	if a.Credential.Kind != identity.Session {
		return nil
	}
	return s.DB.Update(ctx, func(tx store.Tx) error {
		s.moved(tx)
		_, err := sessionTable.Delete(tx, a.Credential.ID)
		if fault.Is(err, fault.NotFound) {
			return nil
		}
		return err
	})
}

func (s *Service) verifySession(tx store.Tx, t seal.Ticket, org string) (principal, error) {
	x, err := sessionTable.Get(tx, t.ID)
	if fault.Is(err, fault.NotFound) || err == nil && !t.Matches(x.Hash) {
		return principal{}, ErrUnauthenticated
	}
	if err != nil {
		return principal{}, err
	}
	u, err := s.alive(tx, x.User)
	if err != nil {
		return principal{}, err
	}
	if u.Epoch != x.Epoch {
		return principal{}, ErrUnauthenticated
	}
	if x.Key != "" {
		return s.keyPrincipal(tx, u, x, org)
	}
	a, err := s.actor(tx, u, "", org)
	a.Credential = identity.Credential{Kind: identity.Session, ID: x.ID, ExpiresAt: x.Expires, SecondFactor: x.Factor}
	return principal{actor: a}, err
}

// freshFor is how long a second factor counts as fresh.
const freshFor = 10 * time.Minute

// ErrStale asks for a second factor again.
var ErrStale = fault.New(fault.Forbidden, "this needs a fresh second factor: log in again with one and repeat within ten minutes")

// fresh refuses an actor that has a second factor and has not given it lately.
func (s *Service) fresh(ctx context.Context) error {
	a := identity.FromContext(ctx)
	if a.Kind != identity.User {
		return nil
	}
	return s.DB.View(ctx, func(tx store.Tx) error {
		u, err := userTable.Get(tx, a.ID)
		if fault.Is(err, fault.NotFound) {
			return nil // an OAuth client, which has no second factor
		}
		if err != nil {
			return err
		}
		if u.Factors && s.Now().Sub(a.Credential.SecondFactor) > freshFor {
			return ErrStale
		}
		return nil
	})
}

// sweep does what has to be done from time to time.
func (s *Service) sweep(ctx context.Context) error {
	if err := s.flushUses(ctx); err != nil {
		return err
	}
	now := s.Now().UTC()
	if err := sweepTable(ctx, s.DB, sessionTable, now, func(x session) (string, time.Time) { return x.ID, x.Expires }); err != nil {
		return err
	}
	if err := sweepTable(ctx, s.DB, challengeTable, now, func(c challenge) (string, time.Time) { return c.ID, c.Expires }); err != nil {
		return err
	}
	return sweepTable(ctx, s.DB, consentTable, now, func(g consent) (string, time.Time) { return g.ID, g.Expires })
}

// sweepTable removes the records that are past their time.
func sweepTable[T any](ctx context.Context, db store.Engine, t *store.Table[T], now time.Time, of func(T) (string, time.Time)) error {
	var over []string
	for x, err := range t.All(ctx, db, "expires", store.TermOf("")) {
		if err != nil {
			return err
		}
		key, expires := of(x)
		if expires.After(now) {
			break
		}
		over = append(over, key)
	}
	for batch := range slices.Chunk(over, store.MaxScan) {
		err := db.Update(ctx, func(tx store.Tx) error {
			for _, key := range batch {
				if _, err := t.Delete(tx, key); err != nil && !fault.Is(err, fault.NotFound) {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}
