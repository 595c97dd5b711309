package accounts

import (
	"context"
	"encoding/json"
	"net/mail"
	"strings"
	"time"

	"golang.org/x/text/unicode/norm"

	"keystead/fault"
	"keystead/id"
	"keystead/identity"
	"keystead/store"
)

// User is a person, or a script that acts as one.
type User struct {
	ID        string          `cbor:"id"`
	Email     string          `cbor:"email,omitempty"` // as it was given; "" for an account without one
	Name      string          `cbor:"name,omitempty"`
	Metadata  json.RawMessage `cbor:"meta,omitempty"`
	Status    Status          `cbor:"status"`
	Platform  bool            `cbor:"platform,omitempty"` // a platform administrator
	HomeOrg   string          `cbor:"home,omitempty"`     // where it acts unless it says otherwise
	Password  string          `cbor:"pw,omitempty"`       // PHC string of argon2id; "" for no login by password
	Verified  bool            `cbor:"verified,omitempty"` // the address was shown to be the user's
	Epoch     uint64          `cbor:"epoch"`              // of its login keys and tokens: those of an earlier one are dead
	Factors   bool            `cbor:"2fa,omitempty"`      // a second factor is set up
	KnownFrom []string        `cbor:"from,omitempty"`     // where it has logged in from, hashed, latest last
	CreatedAt time.Time       `cbor:"created"`
	UpdatedAt time.Time       `cbor:"updated"`
}

// Status is whether an account may be used.
type Status string

// The states of an account.
const (
	Enabled    Status = "enabled"
	Disabled   Status = "disabled"
	Unverified Status = "unverified" // registered; its address is not verified yet
)

var userTable = store.NewTable("user",
	store.Index[User]{Name: "email", Unique: true, Terms: func(u User) []store.Term {
		if u.Email == "" {
			return nil
		}
		return store.Terms(canonical(u.Email))
	}},
	store.Index[User]{Name: "status", Counted: true, Terms: func(u User) []store.Term { return store.Terms(string(u.Status)) }},
	store.Index[User]{Name: "administrators", Counted: true, Terms: func(u User) []store.Term {
		if !u.Platform || u.Status != Enabled {
			return nil
		}
		return store.Terms("")
	}},
)

// canonical is the form of an e-mail address that is compared.
func canonical(email string) string {
	return norm.NFKC.String(strings.ToLower(strings.TrimSpace(email)))
}

func checkEmail(email string) error {
	bad := fault.InvalidFields(fault.Field{Name: "email", Message: "must be an e-mail address"})
	a, err := mail.ParseAddress(email)
	if err != nil || a.Address != email || len(email) > 254 || !plain(email) {
		return bad
	}
	return nil
}

// NewUser is what an account is made from. Without a password it logs in by a
// recovery key, or through an outside provider.
type NewUser struct {
	Email    string
	Password string
	Name     string
	Metadata json.RawMessage
	Status   Status
	Platform bool
}

// CreateUser adds an account; for platform administrators.
func (s *Service) CreateUser(ctx context.Context, n NewUser) (u User, err error) {
	if n.Platform {
		if err := s.fresh(ctx); err != nil {
			return u, err
		}
	}
	u, err = s.newUser(ctx, n)
	if err != nil {
		return u, err
	}
	err = s.DB.Update(ctx, func(tx store.Tx) error { return s.insertUser(ctx, tx, u) })
	return u, err
}

// newUser checks n and hashes its password; nothing is stored yet.
func (s *Service) newUser(ctx context.Context, n NewUser) (User, error) {
	now := s.Now().UTC()
	n.Email = strings.TrimSpace(n.Email)
	u := User{
		ID: id.New(now), Email: n.Email, Name: n.Name, Metadata: n.Metadata, Status: n.Status,
		Platform: n.Platform, CreatedAt: now, UpdatedAt: now,
	}
	if u.Status == "" {
		u.Status = Enabled
	}
	if err := checkEmail(u.Email); err != nil {
		return u, err
	}
	if err := fault.InvalidFields(u.faults()...); err != nil {
		return u, err
	}
	if n.Password == "" {
		return u, nil
	}
	if err := s.checkPassword(n.Password, u.Email); err != nil {
		return u, err
	}
	hash, err := s.hashes.make(ctx, n.Password)
	u.Password = hash
	return u, err
}

func (u *User) faults() []fault.Field {
	bad := checkMetadata(u.Metadata)
	if len(u.Name) > 256 || !plain(u.Name) {
		bad = append(bad, fault.Field{Name: "name", Message: "at most 256 bytes of text"})
	}
	switch u.Status {
	case Enabled, Disabled, Unverified:
	default:
		bad = append(bad, fault.Field{Name: "status", Message: "must be enabled or disabled"})
	}
	return bad
}

// insertUser stores a new account. Accounts are of no organisation, and the trail
// is of the one the actor acts in: it gets the id, not the address.
func (s *Service) insertUser(ctx context.Context, tx store.Tx, u User) error {
	if err := userTable.Insert(tx, u.ID, u); err != nil {
		return err
	}
	return s.note(ctx, tx, "", "user.create", u.ID, map[string]string{"status": string(u.Status)})
}

// User returns the account with the given id: the actor's own, or any for a
// platform administrator; NotFound else.
func (s *Service) User(ctx context.Context, userID string) (u User, err error) {
	a := identity.FromContext(ctx)
	if a.Kind == identity.User && a.ID != userID && !a.May(identity.Platform) {
		return u, fault.New(fault.NotFound, "no such user")
	}
	err = s.DB.View(ctx, func(tx store.Tx) error {
		u, err = userTable.Get(tx, userID)
		return err
	})
	return u, err
}
