package tokens

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"slices"

	"keystead/devices"
	"keystead/fault"
	"keystead/identity"
	"keystead/page"
	"keystead/store"
)

// Finder finds devices by id or alias; devices.Service is one.
type Finder interface {
	FindIn(ctx context.Context, tx store.Tx, org, name string) (devices.Device, error)
}

// errOutside says that the issuer is trusted, and who shows the token is not known.
var errOutside = fault.New(fault.Unauthenticated, "the token is good, but names no device or role that is known here")

// Method returns the [identity.Method] of outside tokens (Bearer): a token of a
// trusted issuer proves the device its mapping names, or a user with the role
// that its claims map to.
func (s *Issuers) Method(find Finder) identity.Method {
	return identity.MethodFunc(func(ctx context.Context, p identity.Proof) (identity.Actor, error) {
		if p.Scheme != "Bearer" || !Looks(p.Value) || s.Own != nil && s.Own(p.Value) {
			return identity.Actor{}, identity.ErrNotMine
		}
		_, said, err := peek(p.Value)
		if err != nil {
			return identity.Actor{}, identity.ErrNotMine
		}
		iss, _ := said["iss"].(string)
		org, err := s.orgOf(ctx, iss, p.Org)
		if err != nil {
			return identity.Actor{}, err
		}
		i, claims, _, err := s.Verify(ctx, org, p.Value)
		if err != nil {
			return identity.Actor{}, err
		}
		return s.actor(ctx, find, i, claims, p.Value)
	})
}

// orgOf returns which organisation trusts an issuer: the one asked for, or the
// only one.
func (s *Issuers) orgOf(ctx context.Context, iss, asked string) (string, error) {
	var trusting []string
	err := s.DB.View(ctx, func(tx store.Tx) error {
		p, err := issuers.PageBy(tx, "trusting", store.TermOf(iss), page.Request{Limit: page.MaxLimit})
		for _, i := range p.Items {
			trusting = append(trusting, i.Org)
		}
		return err
	})
	switch {
	case err != nil:
		return "", err
	case len(trusting) == 0:
		return "", identity.ErrNotMine
	case asked != "" && !slices.Contains(trusting, asked):
		return "", errToken(errors.New("the organisation asked for does not trust its issuer"))
	case asked != "":
		return asked, nil
	case len(trusting) > 1:
		return "", fault.New(fault.Unauthenticated, "several organisations trust the token's issuer; name one in the header X-Org-ID")
	}
	return trusting[0], nil
}

func (s *Issuers) actor(ctx context.Context, find Finder, i Issuer, claims map[string]any, text string) (a identity.Actor, err error) {
	sum := sha256.Sum256([]byte(text))
	credential := identity.Credential{Kind: identity.OAuthToken, ID: i.ID + "/" + hex.EncodeToString(sum[:8])}
	if exp, ok := claims["exp"].(float64); ok {
		credential.ExpiresAt = unix(exp)
	}
	if name := Text(claims, i.Mapping.Device); i.Mapping.Device != "" && name != "" {
		err := s.DB.View(ctx, func(tx store.Tx) error {
			d, err := find.FindIn(ctx, tx, i.Org, name)
			switch {
			case fault.Is(err, fault.NotFound):
				return errOutside
			case err != nil:
				return err
			case d.State == devices.Suspended:
				return fault.New(fault.Unauthenticated, "the device is suspended")
			case d.State != devices.Active:
				return fault.New(fault.Unauthenticated, "the device is decommissioned")
			}
			a = d.Actor(devices.Credential{})
			a.Credential = credential
			return nil
		})
		return a, err
	}
	role := i.Mapping.RoleOf(claims)
	subject := Text(claims, "sub")
	if role == identity.NoRole || subject == "" {
		return a, errOutside
	}
	return identity.Actor{Kind: identity.User, ID: i.ID + "/" + subject, Org: i.Org, Name: subject, Role: role, Credential: credential}, nil
}
