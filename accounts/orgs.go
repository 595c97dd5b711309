package accounts

import (
	"context"
	"encoding/json"
	"strconv"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"keystead/fault"
	"keystead/id"
	"keystead/identity"
	"keystead/store"
)

// Organisation owns devices, credentials, CAs and keys.
type Organisation struct {
	ID          string          `cbor:"id"`
	Number      uint32          `cbor:"num"` // its short name where a protocol needs a number; never 0
	Name        string          `cbor:"name"`
	Description string          `cbor:"desc,omitempty"`
	Metadata    json.RawMessage `cbor:"meta,omitempty"`
	OwnerID     string          `cbor:"owner,omitempty"` // who made it
	Limits      Limits          `cbor:"limits"`
	CreatedAt   time.Time       `cbor:"created"`
	UpdatedAt   time.Time       `cbor:"updated"`
}

// Limits bound what an organisation holds. 0 is no limit.
type Limits struct {
	Devices     int `cbor:"devices" json:"devices"`
	APIKeys     int `cbor:"keys" json:"api_keys"`
	Members     int `cbor:"members" json:"members"`
	PendingSets int `cbor:"pending" json:"pending_auth_sets"`
}

// Member is a user's role in an organisation.
type Member struct {
	Org       string        `cbor:"org"`
	User      string        `cbor:"user"`
	Role      identity.Role `cbor:"role"`
	CreatedAt time.Time     `cbor:"created"`
	UpdatedAt time.Time     `cbor:"updated"`
}

var (
	orgTable = store.NewTable("organisation",
		store.Index[Organisation]{Name: "number", Unique: true, Terms: func(o Organisation) []store.Term {
			return store.Terms(strconv.FormatUint(uint64(o.Number), 10))
		}},
		store.Index[Organisation]{Name: "all", Counted: true, Terms: func(Organisation) []store.Term { return store.Terms("") }},
	)
	memberTable = store.NewTable("membership",
		store.Index[Member]{Name: "org", Counted: true, Terms: func(m Member) []store.Term { return store.Terms(m.Org) }},
		store.Index[Member]{Name: "user", Counted: true, Terms: func(m Member) []store.Term { return store.Terms(m.User) }},
		store.Index[Member]{Name: "owners", Counted: true, Terms: func(m Member) []store.Term {
			if m.Role != identity.Owner {
				return nil
			}
			return store.Terms(m.Org)
		}},
	)
	counters = store.NewTable[uint32]("account counter")
)

func memberKey(org, user string) string { return org + "/" + user }

// maxMetadata is the most bytes of the JSON that users and organisations carry.
const maxMetadata = 16 << 10

// NewOrganisation is what an organisation is made from.
type NewOrganisation struct {
	Name        string
	Description string
	Metadata    json.RawMessage
}

// CreateOrganisation adds an organisation whose owner is the acting user.
func (s *Service) CreateOrganisation(ctx context.Context, n NewOrganisation) (o Organisation, err error) {
	a := identity.FromContext(ctx)
	err = s.DB.Update(ctx, func(tx store.Tx) error {
		if o, err = s.CreateOrganisationIn(ctx, tx, n); err != nil || a.Kind != identity.User {
			return err
		}
		return s.join(ctx, tx, o.ID, a.ID, identity.Owner)
	})
	return o, err
}

// CreateOrganisationIn adds an organisation without members as part of tx.
func (s *Service) CreateOrganisationIn(ctx context.Context, tx store.Tx, n NewOrganisation) (Organisation, error) {
	now := s.Now().UTC()
	o := Organisation{ID: id.New(now), Name: n.Name, Description: n.Description, Metadata: n.Metadata, CreatedAt: now, UpdatedAt: now}
	if a := identity.FromContext(ctx); a.Kind == identity.User {
		o.OwnerID = a.ID
	}
	if err := o.check(); err != nil {
		return o, err
	}
	number, err := nextNumber(tx)
	if err != nil {
		return o, err
	}
	o.Number = number
	if err := orgTable.Insert(tx, o.ID, o); err != nil {
		return o, err
	}
	if s.OrganisationCreated != nil {
		tx.OnCommit(func() { s.OrganisationCreated(o) })
	}
	return o, s.note(ctx, tx, o.ID, "organisation.create", o.ID, map[string]string{"name": o.Name})
}

// nextNumber never gives out a number again, not even that of a deleted organisation.
func nextNumber(tx store.Tx) (uint32, error) {
	n, err := counters.Get(tx, "organisation")
	if err != nil && !fault.Is(err, fault.NotFound) {
		return 0, err
	}
	return n + 1, counters.Set(tx, "organisation", n+1)
}

func (o *Organisation) check() error {
	var bad []fault.Field
	if n := utf8.RuneCountInString(o.Name); n < 1 || n > 254 || !plain(o.Name) {
		bad = append(bad, fault.Field{Name: "name", Message: "invalid name size: 1 to 254 characters, none of control"})
	}
	if len(o.Description) > 1024 || !plain(o.Description) {
		bad = append(bad, fault.Field{Name: "description", Message: "at most 1024 bytes of text"})
	}
	return fault.InvalidFields(append(bad, checkMetadata(o.Metadata)...)...)
}

func checkMetadata(m json.RawMessage) []fault.Field {
	if len(m) > maxMetadata || len(m) > 0 && (m[0] != '{' || !json.Valid(m)) {
		return []fault.Field{{Name: "metadata", Message: "must be a JSON object of at most 16 KiB"}}
	}
	return nil
}

// plain reports whether s is text a terminal or a header can be shown.
func plain(s string) bool {
	return utf8.ValidString(s) && !strings.ContainsFunc(s, unicode.IsControl)
}

// Organisation returns an organisation by id, or a NotFound fault.
func (s *Service) Organisation(ctx context.Context, org string) (o Organisation, err error) {
	err = s.DB.View(ctx, func(tx store.Tx) error {
		o, err = orgTable.Get(tx, org)
		return err
	})
	return o, err
}

// OrganisationByNumber returns an organisation by its number as part of tx, or a NotFound fault.
func (s *Service) OrganisationByNumber(tx store.Tx, number uint32) (Organisation, error) {
	return orgTable.GetBy(tx, "number", store.TermOf(strconv.FormatUint(uint64(number), 10)))
}

// OrganisationIn returns an organisation by id as part of tx, or a NotFound fault.
func (s *Service) OrganisationIn(tx store.Tx, org string) (Organisation, error) {
	return s.orgs.Get(tx, orgTable, org)
}

// OrganisationEdit is a change; nil leaves a value as it is.
type OrganisationEdit struct {
	Name        *string
	Description *string
	Metadata    *json.RawMessage
	Limits      *Limits // platform administrators only
}

// UpdateOrganisation changes an organisation.
func (s *Service) UpdateOrganisation(ctx context.Context, org string, e OrganisationEdit) (o Organisation, err error) {
	if e.Limits != nil && !identity.FromContext(ctx).May(identity.Platform) {
		return o, fault.New(fault.Forbidden, "only a platform administrator sets the limits of an organisation")
	}
	err = s.DB.Update(ctx, func(tx store.Tx) error {
		o, err = orgTable.Update(tx, org, func(o *Organisation) error {
			set(&o.Name, e.Name)
			set(&o.Description, e.Description)
			set(&o.Metadata, e.Metadata)
			set(&o.Limits, e.Limits)
			o.UpdatedAt = s.Now().UTC()
			return o.check()
		})
		if err != nil {
			return err
		}
		return s.note(ctx, tx, org, "organisation.update", org, nil)
	})
	return o, err
}

func set[T any](v, to *T) {
	if to != nil {
		*v = *to
	}
}

// join makes a user a member as part of tx; it is a Conflict if it is one.
func (s *Service) join(ctx context.Context, tx store.Tx, org, user string, role identity.Role) error {
	o, err := orgTable.Get(tx, org)
	if err != nil {
		return err
	}
	if n, err := memberTable.Count(tx, "org", store.TermOf(org)); err != nil {
		return err
	} else if o.Limits.Members > 0 && n >= o.Limits.Members {
		return fault.New(fault.TooLarge, "the organisation has the %d members it may have", n)
	}
	now := s.Now().UTC()
	m := Member{Org: org, User: user, Role: role, CreatedAt: now, UpdatedAt: now}
	if err := memberTable.Insert(tx, memberKey(org, user), m); err != nil {
		return err
	}
	u, err := userTable.Update(tx, user, func(u *User) error {
		if u.HomeOrg == "" {
			u.HomeOrg = org
		}
		return nil
	})
	if err != nil {
		return err
	}
	s.moved(tx)
	return s.note(ctx, tx, org, "membership.create", user, map[string]string{"role": string(role), "email": u.Email})
}
