package est

import (
	"context"
	"strings"
	"time"

	"keystead/audit"
	"keystead/fault"
	"keystead/id"
	"keystead/identity"
	"keystead/page"
	"keystead/seal"
	"keystead/store"
)

// Token lets its holder enrol through one DMS, a number of times, for a while.
type Token struct {
	ID         string    `cbor:"id"`
	Org        string    `cbor:"org"`
	DMS        string    `cbor:"dms"`
	Device     string    `cbor:"device,omitempty"` // the only device it enrols
	CommonName string    `cbor:"cn,omitempty"`     // the only common name it enrols; a * at its end stands for anything
	Comment    string    `cbor:"comment,omitempty"`
	Hash       []byte    `cbor:"hash"`
	MaxUses    int       `cbor:"max"` // 0 is without limit
	Uses       int       `cbor:"uses"`
	CreatedAt  time.Time `cbor:"created"`
	CreatedBy  string    `cbor:"by,omitempty"`
	ExpiresAt  time.Time `cbor:"expires,omitzero"`
	RevokedAt  time.Time `cbor:"revoked,omitzero"`
	LastUsedAt time.Time `cbor:"used,omitzero"`
}

const tokenKind = "enrol"

// Limits on tokens.
const (
	DefaultTokenTTL = 24 * time.Hour
	maxTokenTTL     = 10 * 365 * 24 * time.Hour
	maxTokenUses    = 1_000_000
)

var tokens = store.NewTable("enrolment token",
	store.Index[Token]{Name: "org", Terms: func(t Token) []store.Term { return store.Terms(t.Org) }})

// TokenState is what a token is worth.
type TokenState string

// The states.
const (
	TokenActive  TokenState = "active"
	TokenUsedUp  TokenState = "used_up"
	TokenExpired TokenState = "expired"
	TokenRevoked TokenState = "revoked"
)

// StateAt is the state of the token at now.
func (t *Token) StateAt(now time.Time) TokenState {
	switch {
	case !t.RevokedAt.IsZero():
		return TokenRevoked
	case !t.ExpiresAt.IsZero() && !now.Before(t.ExpiresAt):
		return TokenExpired
	case t.MaxUses > 0 && t.Uses >= t.MaxUses:
		return TokenUsedUp
	}
	return TokenActive
}

// NewToken is what a token is made from.
type NewToken struct {
	DMS        string        // "" for the default one
	Device     string        // id or alias; "" for any
	CommonName string        // "" for any
	MaxUses    int           // 0 for one
	Unlimited  bool          // as often as one likes
	TTL        time.Duration // 0 for a day
	Comment    string
}

// CreateToken makes a token and returns it with its text, which nobody can be
// shown again. It is NotFound if the DMS or the device is.
func (s *Service) CreateToken(ctx context.Context, n NewToken) (t Token, text seal.Secret, err error) {
	if err := n.check(); err != nil {
		return t, nil, err
	}
	now := s.Now().UTC()
	ticket := seal.NewTicket(tokenKind, id.New(now))
	err = s.DB.Update(ctx, func(tx store.Tx) error {
		d, err := dmsIn(ctx, tx, n.DMS)
		if err != nil {
			return err
		}
		t = Token{
			ID: ticket.ID, Org: d.Org, DMS: d.ID, CommonName: n.CommonName, Comment: n.Comment, Hash: ticket.Hash(), MaxUses: n.MaxUses,
			CreatedAt: now, CreatedBy: identity.FromContext(ctx).ID, ExpiresAt: now.Add(n.TTL),
		}
		if n.Device != "" {
			device, err := s.Devices.FindIn(ctx, tx, d.Org, n.Device)
			if err != nil {
				return err
			}
			t.Device = device.ID
		}
		if err := tokens.Insert(tx, t.ID, t); err != nil {
			return err
		}
		return s.Audit.Append(ctx, tx, audit.Entry{
			Action: "enrolment_token.create", Target: t.ID, Device: t.Device, Org: t.Org, Detail: map[string]string{"dms": t.DMS},
		})
	})
	return t, ticket.Text(), err
}

func (n *NewToken) check() error {
	var bad []fault.Field
	note := func(field, message string) { bad = append(bad, fault.Field{Name: field, Message: message}) }
	if n.DMS == "" {
		n.DMS = DefaultDMS
	}
	if n.TTL == 0 {
		n.TTL = DefaultTokenTTL
	}
	if n.TTL < time.Second || n.TTL > maxTokenTTL {
		note("expires_in", "must be from 1s to 10 years")
	}
	if n.MaxUses < 0 || n.MaxUses > maxTokenUses {
		note("max_uses", "must be from 1 to 1000000")
	}
	if n.MaxUses == 0 && !n.Unlimited {
		n.MaxUses = 1
	}
	if len(n.Comment) > 1024 {
		note("comment", "is too long")
	}
	if len(n.CommonName) > 64 {
		note("common_name", "is longer than 64 characters")
	}
	return fault.InvalidFields(bad...)
}

// Token returns a token of the actor's organisation, or a NotFound fault.
func (s *Service) Token(ctx context.Context, token string) (t Token, err error) {
	err = s.DB.View(ctx, func(tx store.Tx) error {
		t, err = tokenIn(ctx, tx, token)
		return err
	})
	return t, err
}

func tokenIn(ctx context.Context, tx store.Tx, token string) (Token, error) {
	t, err := tokens.Get(tx, token)
	if err == nil && t.Org != identity.OrgOf(ctx) {
		return Token{}, fault.New(fault.NotFound, "no such enrolment token")
	}
	return t, err
}

// Tokens lists the tokens of the actor's organisation.
func (s *Service) Tokens(ctx context.Context, r page.Request) (p page.Page[Token], err error) {
	err = s.DB.View(ctx, func(tx store.Tx) error {
		p, err = tokens.PageBy(tx, "org", store.TermOf(identity.OrgOf(ctx)), r)
		return err
	})
	return p, err
}

// RevokeToken ends a token. What was enrolled with it stays.
func (s *Service) RevokeToken(ctx context.Context, token string) error {
	return s.DB.Update(ctx, func(tx store.Tx) error {
		t, err := tokenIn(ctx, tx, token)
		if err != nil || !t.RevokedAt.IsZero() {
			return err
		}
		if _, err := tokens.Update(tx, token, func(t *Token) error {
			t.RevokedAt = s.Now().UTC()
			return nil
		}); err != nil {
			return err
		}
		return s.Audit.Append(ctx, tx, audit.Entry{Action: "enrolment_token.revoke", Target: t.ID, Org: t.Org})
	})
}

// ticketOf finds an enrolment token in what a request shows: as Bearer, or in
// HTTP Basic as the password or, with no password, the user.
func ticketOf(scheme, value string) (seal.Ticket, bool) {
	switch scheme {
	case "Bearer":
		t, ok := seal.ParseTicket(value)
		return t, ok && t.Kind == tokenKind
	case "Basic":
		user, password, _ := strings.Cut(value, ":")
		for _, text := range []string{password, user} {
			if t, ok := seal.ParseTicket(text); ok && t.Kind == tokenKind {
				return t, true
			}
		}
	}
	return seal.Ticket{}, false
}

// admitToken returns the token a ticket is for, if it can be used.
func (s *Service) admitToken(tx store.Tx, ticket seal.Ticket) (Token, error) {
	t, err := tokens.Get(tx, ticket.ID)
	if fault.Is(err, fault.NotFound) || err == nil && !ticket.Matches(t.Hash) {
		return Token{}, fault.New(fault.Unauthenticated, "the enrolment token is not known")
	}
	if err != nil {
		return t, err
	}
	switch t.StateAt(s.Now()) {
	case TokenRevoked:
		return t, fault.New(fault.Unauthenticated, "the enrolment token is revoked")
	case TokenExpired:
		return t, fault.New(fault.Unauthenticated, "the enrolment token expired on %s", t.ExpiresAt.Format(time.RFC3339))
	case TokenUsedUp:
		return t, fault.New(fault.Unauthenticated, "the enrolment token is used up")
	default:
		return t, nil
	}
}

// spend counts one use, as part of the transaction that enrols.
func (s *Service) spend(tx store.Tx, token string) error {
	_, err := tokens.Update(tx, token, func(t *Token) error {
		if state := t.StateAt(s.Now()); state != TokenActive {
			return fault.New(fault.Unauthenticated, "the enrolment token is %s", strings.ReplaceAll(string(state), "_", " "))
		}
		t.Uses++
		t.LastUsedAt = s.Now().UTC()
		return nil
	})
	return err
}

// allowsName says whether a token enrols a common name.
func (t *Token) allowsName(cn string) bool {
	if t.CommonName == "" {
		return true
	}
	if prefix, ok := strings.CutSuffix(t.CommonName, "*"); ok {
		return strings.HasPrefix(cn, prefix)
	}
	return cn == t.CommonName
}
