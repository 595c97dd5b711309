// Package accounts owns the people and scripts that administer: organisations,
// users and their roles, passwords and second factors, API keys, login and
// recovery keys, and the grants of OAuth clients.
//
// Whatever a caller shows leads to one actor with one role in one organisation;
// see [Service.Methods]. Every check is of the record as it is now: a verified
// credential is remembered by its hash, never past the next change of any account.
package accounts

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"keystead/audit"
	"keystead/fault"
	"keystead/identity"
	"keystead/seal"
	"keystead/store"
)

// Service keeps the accounts. Fill in the exported fields, then call Start.
type Service struct {
	DB     store.Engine
	Audit  *audit.Log
	Now    func() time.Time
	Log    *slog.Logger
	Box    *seal.Box // for TOTP secrets, which must be read back
	Tokens Tokens    // signs and verifies login keys and OAuth tokens
	Mail   Mailer    // nil where no mail is sent

	// InUse says, in the transaction that would delete an organisation, what it
	// still has, "" if nothing.
	InUse func(tx store.Tx, org string) (string, error)

	Config Config
	// OrganisationCreated is told of each new organisation, once it is durable and
	// before who made it is answered; nil if nobody needs to know.
	OrganisationCreated func(Organisation)

	PublicURL string // where links in mails lead

	orgs   store.Memo[Organisation]
	epoch  atomic.Uint64
	cache  verified
	hashes hashing
	logins logins

	firstOrg atomic.Pointer[string] // written down once, and never changed; nil until it was read

	usedMu sync.Mutex
	used   map[string]use // API keys used since the last flush
}

// Config is what an operator may choose.
type Config struct {
	LoginTTL           time.Duration `mapstructure:"login_ttl"`            // of login keys
	RecoveryTTL        time.Duration `mapstructure:"recovery_ttl"`         // of recovery keys
	InviteTTL          time.Duration `mapstructure:"invite_ttl"`           // of invites
	VerifyTTL          time.Duration `mapstructure:"verify_ttl"`           // of links that verify an address
	MaxAPIKeyTTL       time.Duration `mapstructure:"max_api_key_ttl"`      // longest life of an API key; 0 for no limit
	MaxKeysPerUser     int           `mapstructure:"max_keys_per_user"`    // API keys
	SelfRegistration   bool          `mapstructure:"self_registration"`    // anybody may make an account
	VerifyEmail        bool          `mapstructure:"verify_email"`         // registration waits for the link in the mail
	MinPassword        int           `mapstructure:"min_password"`         // characters
	HashesAtOnce       int           `mapstructure:"hashes_at_once"`       // argon2id computations at the same time; 0 is half the processors
	ResetRevokesKeys   bool          `mapstructure:"reset_revokes_keys"`   // a password reset also revokes the user's API keys
	KeysChangePassword bool          `mapstructure:"keys_change_password"` // API keys may change the password, given the old one
	OIDC               []Provider    `mapstructure:"oidc"`                 // outside OpenID providers
}

// DefaultConfig is what an empty configuration gives.
func DefaultConfig() Config {
	return Config{
		LoginTTL: time.Hour, RecoveryTTL: 15 * time.Minute, InviteTTL: 7 * 24 * time.Hour, VerifyTTL: 24 * time.Hour,
		MaxKeysPerUser: 50, MinPassword: 12, VerifyEmail: true, OIDC: []Provider{},
	}
}

// Validate reports what is wrong with c.
func (c Config) Validate() error {
	var errs []error
	for key, bad := range map[string]bool{
		"login_ttl: must be from 1m to 24h":         c.LoginTTL < time.Minute || c.LoginTTL > 24*time.Hour,
		"recovery_ttl: must be from 1m to 24h":      c.RecoveryTTL < time.Minute || c.RecoveryTTL > 24*time.Hour,
		"invite_ttl: must be from 1m to 8760h":      c.InviteTTL < time.Minute || c.InviteTTL > 8760*time.Hour,
		"verify_ttl: must be from 1m to 8760h":      c.VerifyTTL < time.Minute || c.VerifyTTL > 8760*time.Hour,
		"max_api_key_ttl: must not be negative":     c.MaxAPIKeyTTL < 0,
		"max_keys_per_user: must be from 1 to 1000": c.MaxKeysPerUser < 1 || c.MaxKeysPerUser > 1000,
		"min_password: must be from 8 to 128":       c.MinPassword < 8 || c.MinPassword > 128,
		"hashes_at_once: must be from 0 to 64":      c.HashesAtOnce < 0 || c.HashesAtOnce > 64,
	} {
		if bad {
			errs = append(errs, errors.New(key))
		}
	}
	names := map[string]bool{}
	for _, p := range c.OIDC {
		if err := p.validate(); err != nil {
			errs = append(errs, err)
		}
		if names[p.Name] {
			errs = append(errs, errors.New("oidc: two providers have the name "+p.Name))
		}
		names[p.Name] = true
	}
	return errors.Join(errs...)
}

// Mailer sends the few mails there are, once the transaction that queues them is durable.
type Mailer interface {
	Queue(tx store.Tx, m Mail) error
}

// Mail is one to send.
type Mail struct {
	To      string
	Subject string
	Text    string
	Until   time.Time // it is of no use after this
	Decoy   bool      // it costs what a mail costs, and goes nowhere
}

// queue queues a mail as part of tx, where mail is sent at all.
func (s *Service) queue(tx store.Tx, m Mail) error {
	if s.Mail == nil {
		return nil
	}
	return s.Mail.Queue(tx, m)
}

// Tokens makes and reads the signed tokens of users.
type Tokens interface {
	// Issue makes a token of what t says; its times are set.
	Issue(t Token) (text string, made Token, err error)
	// Verify returns what a login or access token says that was made here and is in its
	// time. For text that is neither it returns [identity.ErrNotMine]; for one that does not
	// verify, Unauthenticated.
	Verify(text string) (Token, error)
}

// TokenKind is a kind of signed token; none passes for another.
type TokenKind string

// The kinds of signed tokens of users.
const (
	LoginToken  TokenKind = "login"
	AccessToken TokenKind = "access" // of an OAuth client
	IDToken     TokenKind = "id"     // of OpenID Connect; nobody logs in with it here
)

// Token is what a signed token says.
type Token struct {
	Kind      TokenKind
	ID        string
	Subject   string
	Audience  string // of an ID token
	Org       string
	Epoch     uint64
	TTL       time.Duration
	ExpiresAt time.Time
	Extra     map[string]any
}

// text returns a claim that is a text, "" if it is not there or something else.
func (t Token) text(claim string) string {
	v, _ := t.Extra[claim].(string)
	return v
}

// time returns a claim that is a time, zero if it is not there or something else.
func (t Token) time(claim string) time.Time {
	if v, ok := t.Extra[claim].(float64); ok && v > 0 {
		return time.Unix(int64(v), 0).UTC()
	}
	return time.Time{}
}

// Start readies the service. Call it once, after the fields are filled in.
func (s *Service) Start() {
	if s.Log == nil {
		s.Log = slog.New(slog.DiscardHandler)
	}
	s.used = map[string]use{}
	s.hashes.start(s.Config.HashesAtOnce)
	s.logins.start(s.Now)
}

// Epoch moves whenever anything changed that a verified credential rests on,
// before the one who changed it is answered.
func (s *Service) Epoch() uint64 { return s.epoch.Load() }

// moved has the epoch move once tx is durable.
func (s *Service) moved(tx store.Tx) { tx.OnCommit(func() { s.epoch.Add(1) }) }

// note appends to the audit trail in tx. Nothing in detail is secret.
func (s *Service) note(ctx context.Context, tx store.Tx, org, action, target string, detail map[string]string) error {
	return s.Audit.Append(ctx, tx, audit.Entry{Action: action, Target: target, Org: org, Detail: detail})
}

// self returns the user that ctx's actor is, or a Forbidden fault.
func self(ctx context.Context) (identity.Actor, error) {
	a := identity.FromContext(ctx)
	if a.Kind != identity.User {
		return a, fault.New(fault.Forbidden, "only a user may do this")
	}
	return a, nil
}

// interactive refuses credentials that no person is behind at the moment.
func interactive(a identity.Actor) error {
	switch a.Credential.Kind {
	case identity.LoginKey, identity.Session:
		return nil
	default:
		return ErrNotInteractive
	}
}

// ErrNotInteractive refuses to a key what only a person who has logged in may do.
var ErrNotInteractive = fault.New(fault.Forbidden,
	"failed to perform authorization over the entity: log in for this; an API key or token may not do it")

// ErrUnauthenticated is what every credential that proves nothing gets.
var ErrUnauthenticated = fault.New(fault.Unauthenticated, "failed to perform authentication over the entity")
