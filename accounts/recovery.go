package accounts

import (
	"context"
	"net/netip"
	"time"

	"keystead/fault"
	"keystead/id"
	"keystead/identity"
	"keystead/seal"
	"keystead/store"
	"keystead/throttle"
)

// recovery is the one live recovery key of a user.
type recovery struct {
	Hash    []byte    `cbor:"hash"`
	Expires time.Time `cbor:"expires"`
}

var recoveryTable = store.NewTable[recovery]("recovery key") // by user

const recoveryKind = "recovery"

// nobody stands for the user of an address that has no account: the work done
// for it is the same.
const nobody = "00000000-0000-7000-8000-000000000000"

// RequestRecovery mails a recovery key to the account with an address. Whether
// there is one does not show: not in the answer, nor in how long it takes.
func (s *Service) RequestRecovery(ctx context.Context, email string, from netip.Addr) error {
	if err := checkEmail(email); err != nil {
		return err
	}
	if wait, ok := s.logins.secret.Take("recover\x00" + throttle.Prefix(from)); !ok {
		return tooMany(wait)
	}
	_, mayMail := s.logins.mail.Take(canonical(email))
	u, err := s.userByEmail(ctx, email)
	if err != nil && !fault.Is(err, fault.NotFound) {
		return err
	}
	good := err == nil && u.Status == Enabled && mayMail && s.Mail != nil
	if !good {
		u.ID, u.Email = nobody, email
	}
	_, err = s.newRecovery(ctx, u.ID, func(tx store.Tx, key seal.Secret) error {
		return s.queue(tx, Mail{
			To: u.Email, Subject: "Reset your password", Decoy: !good, Until: s.Now().UTC().Add(s.Config.RecoveryTTL),
			Text: "Somebody, probably you, asked for a new password for your account.\n\n" +
				s.PublicURL + "/reset#" + string(key) + "\n\nThe link works once, for " + s.Config.RecoveryTTL.String() + ". If it was not you, there is nothing to do.\n",
		})
	})
	return err
}

// IssueRecovery returns a recovery key of a user, for an administrator to hand
// over; it ends the one before.
func (s *Service) IssueRecovery(ctx context.Context, userID string) (seal.Secret, time.Time, error) {
	if _, err := s.User(ctx, userID); err != nil {
		return nil, time.Time{}, err
	}
	if err := s.fresh(ctx); err != nil {
		return nil, time.Time{}, err
	}
	text, err := s.newRecovery(ctx, userID, nil)
	return text, s.Now().UTC().Add(s.Config.RecoveryTTL), err
}

// newRecovery makes a recovery key, and has tell, unless nil, tell of it in the same transaction.
func (s *Service) newRecovery(ctx context.Context, userID string, tell func(store.Tx, seal.Secret) error) (seal.Secret, error) {
	t := seal.NewTicket(recoveryKind, userID)
	r := recovery{Hash: t.Hash(), Expires: s.Now().UTC().Add(s.Config.RecoveryTTL)}
	err := s.DB.Update(ctx, func(tx store.Tx) error {
		if err := recoveryTable.Set(tx, userID, r); err != nil {
			return err
		}
		if tell != nil {
			if err := tell(tx, t.Text()); err != nil {
				return err
			}
		}
		return s.note(ctx, tx, "", "recovery.issue", userID, nil)
	})
	return t.Text(), err
}

// ResetPassword sets the password of the user whose recovery key it is given.
// The key is used up, the user's login keys and sessions end, and so do the API
// keys where the configuration says so. A second factor stays.
func (s *Service) ResetPassword(ctx context.Context, key, password string, from netip.Addr) error {
	prefix := throttle.Prefix(from)
	if wait := s.logins.secret.Wait(prefix); wait > 0 {
		return tooMany(wait)
	}
	t, ok := seal.ParseTicket(key)
	if !ok || t.Kind != recoveryKind {
		s.logins.secret.Spend(prefix)
		return ErrUnauthenticated
	}
	var u User
	err := s.DB.View(ctx, func(tx store.Tx) (err error) {
		u, err = s.recoverable(tx, t)
		return err
	})
	if err != nil {
		s.logins.secret.Spend(prefix)
		return err
	}
	if err := s.checkPassword(password, u.Email); err != nil {
		return err
	}
	hash, err := s.hashes.make(ctx, password)
	if err != nil {
		return err
	}
	ctx = identity.NewContext(ctx, identity.Actor{
		Kind: identity.User, ID: u.ID, Org: u.HomeOrg, Credential: identity.Credential{Kind: identity.RecoveryKey, ID: u.ID},
	})
	return s.DB.Update(ctx, func(tx store.Tx) error {
		u, err := s.recoverable(tx, t) // again: only one of many that come together finds it here
		if err != nil {
			return err
		}
		if _, err := recoveryTable.Delete(tx, u.ID); err != nil {
			return err
		}
		if err := s.setPassword(ctx, tx, u.ID, hash, "recovery.use"); err != nil || !s.Config.ResetRevokesKeys {
			return err
		}
		return s.dropKeysOf(ctx, tx, u.ID)
	})
}

// recoverable returns the user a recovery key is good for.
func (s *Service) recoverable(tx store.Tx, t seal.Ticket) (User, error) {
	r, err := recoveryTable.Get(tx, t.ID)
	if fault.Is(err, fault.NotFound) || err == nil && (!t.Matches(r.Hash) || !s.Now().Before(r.Expires)) {
		return User{}, ErrUnauthenticated
	}
	if err != nil {
		return User{}, err
	}
	return s.alive(tx, t.ID)
}

// setPassword replaces a password and ends whatever rests on the one before. Its
// owner is told by mail.
func (s *Service) setPassword(ctx context.Context, tx store.Tx, userID, hash, action string) error {
	u, err := userTable.Update(tx, userID, func(u *User) error {
		u.Password, u.UpdatedAt = hash, s.Now().UTC()
		u.Epoch++
		return nil
	})
	if err != nil {
		return err
	}
	s.moved(tx)
	if u.Email != "" {
		now := s.Now().UTC()
		err := s.queue(tx, Mail{
			To: u.Email, Subject: "Your password was changed", Until: now.Add(24 * time.Hour),
			Text: "The password of your account was changed at " + now.Format(time.RFC1123) + ", and whoever was logged in with it no longer is.\n\n" +
				"If it was not you, ask an administrator to disable the account.\n",
		})
		if err != nil {
			return err
		}
	}
	return s.note(ctx, tx, "", action, userID, nil)
}

func (s *Service) dropKeysOf(ctx context.Context, tx store.Tx, userID string) error {
	keys, err := all(tx, keyTable, "user", store.TermOf(userID))
	if err != nil {
		return err
	}
	for _, k := range keys {
		if err := s.dropKey(ctx, tx, k); err != nil {
			return err
		}
	}
	return nil
}

// ChangePassword replaces the acting user's password, given the one before.
func (s *Service) ChangePassword(ctx context.Context, old, password string, from netip.Addr) error {
	a, err := self(ctx)
	if err != nil {
		return err
	}
	if err := interactive(a); err != nil && (a.Credential.Kind != identity.APIKey || !s.Config.KeysChangePassword) {
		return err
	}
	u, err := s.User(ctx, a.ID)
	if err != nil {
		return err
	}
	pair := a.ID + "\x00" + throttle.Prefix(from)
	if wait := s.logins.pair.Wait(pair); wait > 0 {
		return tooMany(wait)
	}
	ok, err := s.hashes.matches(ctx, old, u.Password)
	if err != nil {
		return err
	}
	if !ok {
		s.logins.pair.Spend(pair)
		return fault.New(fault.Invalid, "invalid current password")
	}
	return s.replacePassword(ctx, u, password)
}

// SetPassword replaces another user's password; for platform administrators.
func (s *Service) SetPassword(ctx context.Context, email, password string) error {
	if !identity.FromContext(ctx).May(identity.Platform) {
		return fault.New(fault.Forbidden, "failed to perform authorization over the entity")
	}
	if err := s.fresh(ctx); err != nil {
		return err
	}
	u, err := s.userByEmail(ctx, email)
	if err != nil {
		return err
	}
	return s.replacePassword(ctx, u, password)
}

func (s *Service) replacePassword(ctx context.Context, u User, password string) error {
	if err := s.checkPassword(password, u.Email); err != nil {
		return err
	}
	hash, err := s.hashes.make(ctx, password)
	if err != nil {
		return err
	}
	return s.DB.Update(ctx, func(tx store.Tx) error { return s.setPassword(ctx, tx, u.ID, hash, "password.change") })
}

// setup is the one live set-up link.
type setup struct {
	Hash    []byte    `cbor:"hash"`
	Expires time.Time `cbor:"expires"`
	User    string    `cbor:"user"`
}

var setupTable = store.NewTable[setup]("set-up link")

const (
	setupKind = "setup"
	setupTTL  = 30 * time.Minute
)

// OfferSetup returns a one-time set-up key by which the first administrator
// gets an address and a password, as long as no platform administrator can log
// in; nil otherwise. It ends the one before.
func (s *Service) OfferSetup(ctx context.Context) (seal.Secret, error) {
	now := s.Now().UTC()
	t := seal.NewTicket(setupKind, id.New(now))
	offered := false
	err := s.DB.Update(ctx, func(tx store.Tx) error {
		offered = false
		f, err := firsts.Get(tx, "first")
		if err != nil {
			return err
		}
		admins, err := all(tx, userTable, "administrators", store.TermOf(""))
		if err != nil {
			return err
		}
		for _, u := range admins {
			if u.Password != "" {
				return nil
			}
		}
		offered = true
		return setupTable.Set(tx, "setup", setup{Hash: t.Hash(), Expires: now.Add(setupTTL), User: f.User})
	})
	if err != nil || !offered {
		return nil, err
	}
	return t.Text(), nil
}

// SetUp gives the first administrator its address and password, for whoever
// holds the set-up key. It is NotFound once that has happened.
func (s *Service) SetUp(ctx context.Context, key, email, password string, from netip.Addr) (User, error) {
	prefix := throttle.Prefix(from)
	if wait := s.logins.secret.Wait(prefix); wait > 0 {
		return User{}, tooMany(wait)
	}
	if err := s.setupOpen(ctx); err != nil {
		return User{}, err
	}
	t, ok := seal.ParseTicket(key)
	if !ok || t.Kind != setupKind {
		s.logins.secret.Spend(prefix)
		return User{}, ErrUnauthenticated
	}
	if err := checkEmail(email); err != nil {
		return User{}, err
	}
	if err := s.checkPassword(password, email); err != nil {
		return User{}, err
	}
	hash, err := s.hashes.make(ctx, password)
	if err != nil {
		return User{}, err
	}
	var u User
	err = s.DB.Update(ctx, func(tx store.Tx) error {
		x, err := setupTable.Get(tx, "setup")
		if fault.Is(err, fault.NotFound) || err == nil && (!t.Matches(x.Hash) || !s.Now().Before(x.Expires)) {
			return ErrUnauthenticated
		}
		if err != nil {
			return err
		}
		if _, err := setupTable.Delete(tx, "setup"); err != nil {
			return err
		}
		u, err = userTable.Update(tx, x.User, func(u *User) error {
			u.Email, u.Verified = email, true
			return nil
		})
		if err != nil {
			return err
		}
		return s.setPassword(ctx, tx, x.User, hash, "setup.use")
	})
	if err != nil {
		s.logins.secret.Spend(prefix)
	}
	return u, err
}

func (s *Service) setupOpen(ctx context.Context) error {
	return s.DB.View(ctx, func(tx store.Tx) error {
		open, err := setupTable.Has(tx, "setup")
		if err == nil && !open {
			err = fault.New(fault.NotFound, "the server is set up already")
		}
		return err
	})
}
