package accounts

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"keystead/fault"
	"keystead/id"
	"keystead/identity"
	"keystead/store"
	"keystead/throttle"
)

// Provider is an outside OpenID provider that people may log in with.
type Provider struct {
	Name             string      `mapstructure:"name"`   // in addresses, and on the login page
	Issuer           string      `mapstructure:"issuer"` // exactly as it names itself
	ClientID         string      `mapstructure:"client_id"`
	ClientSecretFile string      `mapstructure:"client_secret_file"`
	Scopes           []string    `mapstructure:"scopes"`       // besides openid, profile and email
	GroupsClaim      string      `mapstructure:"groups_claim"` // of the ID token; "groups" if empty
	Roles            []GroupRole `mapstructure:"roles"`
	Create           bool        `mapstructure:"create"`      // who is not known gets an account
	TrustEmail       bool        `mapstructure:"trust_email"` // an address it has verified is that of the account here
}

// GroupRole gives the members of a group at the provider a role here.
type GroupRole struct {
	Group string        `mapstructure:"group"`
	Org   string        `mapstructure:"organisation"`
	Role  identity.Role `mapstructure:"role"`
}

// validate reports what is wrong with p.
func (p Provider) validate() error {
	var errs []error
	if p.Name == "" || strings.Trim(p.Name, "abcdefghijklmnopqrstuvwxyz0123456789-") != "" {
		errs = append(errs, fmt.Errorf("oidc: %q: the name must be of a to z, digits and -", p.Name))
	}
	u, err := url.Parse(p.Issuer)
	loopback := err == nil && isLoopback(u.Hostname())
	if err != nil || u.Host == "" || u.Scheme != "https" && (u.Scheme != "http" || !loopback) {
		errs = append(errs, fmt.Errorf("oidc: %s: issuer must be an https URL", p.Name))
	}
	if p.ClientID == "" {
		errs = append(errs, fmt.Errorf("oidc: %s: client_id must be set", p.Name))
	}
	for _, r := range p.Roles {
		if !slices.Contains([]identity.Role{identity.Viewer, identity.Editor, identity.Admin, identity.Owner}, r.Role) || r.Group == "" || r.Org == "" {
			errs = append(errs, fmt.Errorf("oidc: %s: a role needs a group, an organisation, and viewer, editor, admin or owner", p.Name))
		}
	}
	return errors.Join(errs...)
}

func isLoopback(host string) bool {
	a, err := netip.ParseAddr(host)
	return err == nil && a.IsLoopback()
}

// External is who an outside provider says somebody is, its token verified.
type External struct {
	Issuer        string
	Subject       string
	Email         string
	EmailVerified bool
	Name          string
	Groups        []string
	From          netip.Addr
}

// link ties the account at a provider to one here.
type link struct {
	Issuer  string `cbor:"iss"`
	Subject string `cbor:"sub"`
	User    string `cbor:"user"`
}

var linkTable = store.NewTable("outside identity",
	store.Index[link]{Name: "user", Terms: func(l link) []store.Term { return store.Terms(l.User) }},
)

func linkKey(issuer, subject string) string { return string(store.TermOf(issuer, subject)) }

// ErrNoAccount refuses somebody who has no account here.
var ErrNoAccount = fault.New(fault.Forbidden, "you have no account here; ask an administrator for an invite")

// LogInExternal returns the user that somebody who logged in at p is. Who it is
// goes by issuer and subject. An address makes no connection with an account that is
// there, unless the provider has verified it and the operator trusts its word.
func (s *Service) LogInExternal(ctx context.Context, p Provider, e External) (u User, err error) {
	if e.Subject == "" || e.Issuer != p.Issuer || len(e.Subject) > 255 {
		return u, ErrUnauthenticated
	}
	now := s.Now().UTC()
	fresh := User{ID: id.New(now), Name: e.Name, Status: Enabled, CreatedAt: now, UpdatedAt: now}
	if len(fresh.Name) > 256 || !plain(fresh.Name) {
		fresh.Name = ""
	}
	ctx = identity.NewContext(ctx, identity.Actor{Kind: identity.System})
	err = s.DB.Update(ctx, func(tx store.Tx) error {
		if u, err = s.linked(ctx, tx, p, e, fresh); err != nil {
			return err
		}
		if u.Status != Enabled {
			return ErrUnauthenticated
		}
		return s.mapRoles(ctx, tx, p, e, u)
	})
	if err != nil {
		return u, err
	}
	if err := s.loggedIn(ctx, u, throttle.Prefix(e.From)); err != nil {
		return u, err
	}
	return s.User(ctx, u.ID)
}

// linked returns the account of e, linked or made now.
func (s *Service) linked(ctx context.Context, tx store.Tx, p Provider, e External, fresh User) (User, error) {
	l, err := linkTable.Get(tx, linkKey(e.Issuer, e.Subject))
	if err == nil {
		u, err := userTable.Get(tx, l.User)
		if !fault.Is(err, fault.NotFound) {
			return u, err
		}
	} else if !fault.Is(err, fault.NotFound) {
		return User{}, err
	}
	u := fresh
	if e.EmailVerified && checkEmail(e.Email) == nil {
		known, err := userTable.GetBy(tx, "email", store.TermOf(canonical(e.Email)))
		switch {
		case fault.Is(err, fault.NotFound):
			u.Email, u.Verified = e.Email, true
		case err != nil:
			return u, err
		case p.TrustEmail && known.Verified:
			u = known
		default:
			return u, ErrNoAccount
		}
	}
	if u.ID == fresh.ID {
		if !p.Create {
			return u, ErrNoAccount
		}
		if err := s.insertUser(ctx, tx, u); err != nil {
			return u, err
		}
	}
	if err := linkTable.Set(tx, linkKey(e.Issuer, e.Subject), link{e.Issuer, e.Subject, u.ID}); err != nil {
		return u, err
	}
	return u, s.note(ctx, tx, "", "user.link", u.ID, map[string]string{"provider": p.Name})
}

// mapRoles gives u the roles that its groups have in the organisations that the
// provider's configuration names, and takes away those it has no group for any more. Of
// several roles in one organisation the highest counts.
func (s *Service) mapRoles(ctx context.Context, tx store.Tx, p Provider, e External, u User) error {
	want := map[string]identity.Role{}
	for _, r := range p.Roles {
		if _, named := want[r.Org]; !named {
			want[r.Org] = identity.NoRole
		}
		if slices.Contains(e.Groups, r.Group) && r.Role.AtLeast(want[r.Org]) {
			want[r.Org] = r.Role
		}
	}
	for org, role := range want {
		m, err := memberTable.Get(tx, memberKey(org, u.ID))
		switch {
		case fault.Is(err, fault.NotFound) && role == identity.NoRole:
		case fault.Is(err, fault.NotFound):
			err = s.join(ctx, tx, org, u.ID, role)
			if err != nil {
				return err
			}
		case err != nil:
			return err
		case role == identity.NoRole:
			if err := s.leave(ctx, tx, m); err != nil {
				return err
			}
		case role != m.Role:
			m.Role, m.UpdatedAt = role, s.Now().UTC()
			if err := memberTable.Set(tx, memberKey(org, u.ID), m); err != nil {
				return err
			}
			s.moved(tx)
			if err := s.note(ctx, tx, org, "membership.update", u.ID, map[string]string{"role": string(role), "provider": p.Name}); err != nil {
				return err
			}
		}
	}
	return nil
}
