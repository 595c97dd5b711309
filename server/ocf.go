package server

import (
	"context"
	"crypto/x509"
	"fmt"
	"maps"

	"keystead/accounts"
	"keystead/coapgw"
	"keystead/devices"
	"keystead/fault"
	"keystead/identity"
	"keystead/page"
	"keystead/pki"
	"keystead/store"
)

// ocfAccounts is what the OCF cloud resources rest on: the OAuth grants of this
// server or of an outside authority, and the device records.
type ocfAccounts struct {
	s       *Server
	outside *ocfAuthority // nil where the tokens are this server's
}

// ocfOwner is the metadata of a device that says whose it is in OCF's terms.
const ocfOwner = "ocf_owner"

// Exchange implements coapgw.OCFAccounts.
func (o *ocfAccounts) Exchange(ctx context.Context, p coapgw.OCFProvider, code string) (coapgw.OCFTokens, error) {
	if o.outside != nil {
		return o.outside.exchange(ctx, p, code)
	}
	return o.tokens(o.s.Accounts.ExchangeDevice(ctx, code))
}

// Refresh implements coapgw.OCFAccounts.
func (o *ocfAccounts) Refresh(ctx context.Context, p coapgw.OCFProvider, token string) (coapgw.OCFTokens, error) {
	if o.outside != nil {
		return o.outside.refresh(ctx, p, token)
	}
	if !accounts.OwnsRefresh(token) {
		return coapgw.OCFTokens{}, fault.New(fault.Unauthenticated, "the refresh token is not of this server")
	}
	return o.tokens(o.s.Accounts.RefreshDevice(ctx, token))
}

func (o *ocfAccounts) tokens(set accounts.TokenSet, err error) (coapgw.OCFTokens, error) {
	if err != nil {
		return coapgw.OCFTokens{}, err
	}
	return coapgw.OCFTokens{Access: set.Access, Refresh: string(set.Refresh), Expiry: o.s.Now().Add(set.ExpiresIn)}, nil
}

// Verify implements coapgw.OCFAccounts.
func (o *ocfAccounts) Verify(ctx context.Context, token string) (coapgw.OCFClaims, error) {
	if o.outside != nil {
		return o.verifyOutside(ctx, token)
	}
	t, err := o.s.Accounts.VerifyDevice(ctx, token)
	if err != nil {
		return coapgw.OCFClaims{}, err
	}
	claims := map[string]any{"sub": t.User, "org": t.Org, "device_id": t.Device}
	if !t.ExpiresAt.IsZero() {
		claims["exp"] = t.ExpiresAt.Unix()
	}
	return coapgw.OCFClaims{All: claims, Org: t.Org}, nil
}

func (o *ocfAccounts) verifyOutside(ctx context.Context, token string) (coapgw.OCFClaims, error) {
	claims, err := o.outside.verify(ctx, token)
	if err != nil {
		return coapgw.OCFClaims{}, err
	}
	org := o.outside.org
	if org == "" {
		org, err = o.s.Accounts.DefaultOrganisation(ctx)
	}
	return coapgw.OCFClaims{All: claims, Org: org}, err
}

// Trusted implements coapgw.OCFAccounts.
func (o *ocfAccounts) Trusted(ctx context.Context, org string, chain []*x509.Certificate) error {
	ctx = o.as(ctx, org, "")
	var ids []pki.CAID
	for r := (page.Request{Limit: page.MaxLimit}); ; {
		p, err := o.s.PKI.CAs(ctx, r)
		if err != nil {
			return err
		}
		for _, ca := range p.Items {
			ids = append(ids, ca.ID)
		}
		if p.Next == "" {
			break
		}
		r.After = p.Next
	}
	_, err := o.s.PKI.Validate(ctx, org, chain, pki.Validation{CAs: ids, AnyUsage: true})
	return err
}

// as returns ctx for what is done in an organisation, for a user if one is named.
func (o *ocfAccounts) as(ctx context.Context, org, user string) context.Context {
	a := identity.Actor{Kind: identity.User, ID: user, Org: org, Role: identity.Editor}
	if user == "" {
		a.Kind = identity.System
	}
	return identity.NewContext(ctx, a)
}

// ocfCredential names what an OCF device proves itself with: the tokens of its owner's grant.
func ocfCredential(deviceID string) devices.Credential {
	return devices.Credential{Kind: identity.OAuthToken, ID: "ocf:" + deviceID}
}

// Register implements coapgw.OCFAccounts.
func (o *ocfAccounts) Register(ctx context.Context, org, deviceID, owner string, who *identity.Actor) (a identity.Actor, err error) {
	ctx = o.as(ctx, org, owner)
	err = o.s.DB.Update(ctx, func(tx store.Tx) error {
		d, err := o.s.Devices.FindIn(ctx, tx, org, deviceID)
		switch {
		case fault.Is(err, fault.NotFound) && who != nil && who.Org == org:
			d, err = o.s.Devices.AddAliasIn(ctx, tx, who.ID, devices.Alias{Kind: devices.OCFUUID, Value: deviceID})
		case fault.Is(err, fault.NotFound):
			d, err = o.s.Devices.CreateIn(ctx, tx, devices.New{Org: org, Aliases: []devices.Alias{{Kind: devices.OCFUUID, Value: deviceID}}})
		}
		if err != nil {
			return err
		}
		switch d.Metadata[ocfOwner] {
		case owner:
		case "":
			metadata := map[string]string{ocfOwner: owner}
			maps.Copy(metadata, d.Metadata)
			if d, err = o.s.Devices.UpdateIn(ctx, tx, d.ID, devices.Edit{Metadata: &metadata}); err != nil {
				return err
			}
		default:
			return fault.New(fault.Unauthenticated, "the device is owned by another user")
		}
		c := ocfCredential(deviceID)
		if had, ok := d.Credential(c.Kind, c.ID); !ok || had.State == devices.CredentialRevoked {
			if d, err = o.s.Devices.Attach(ctx, tx, d.ID, c); err != nil {
				return err
			}
		}
		a, err = o.prove(tx, d.ID, deviceID)
		return err
	})
	return a, err
}

func (o *ocfAccounts) prove(tx store.Tx, id, deviceID string) (identity.Actor, error) {
	c := ocfCredential(deviceID)
	d, proven, err := o.s.Devices.Prove(tx, id, c.Kind, c.ID)
	if err != nil {
		return identity.Actor{}, err
	}
	return d.Actor(proven), nil
}

// Registered implements coapgw.OCFAccounts.
func (o *ocfAccounts) Registered(ctx context.Context, org, deviceID, owner string) (a identity.Actor, err error) {
	err = o.s.DB.View(ctx, func(tx store.Tx) error {
		d, err := o.s.Devices.FindIn(ctx, tx, org, deviceID)
		if err != nil {
			return err
		}
		if d.Metadata[ocfOwner] != owner {
			return fault.New(fault.NotFound, "no such device")
		}
		a, err = o.prove(tx, d.ID, deviceID)
		return err
	})
	return a, err
}

// Unregister implements coapgw.OCFAccounts: the device is ended, with every
// credential it has.
func (o *ocfAccounts) Unregister(ctx context.Context, org, deviceID, owner string) error {
	a, err := o.Registered(ctx, org, deviceID, owner)
	if err != nil {
		return err
	}
	_, err = o.s.Devices.Decommission(o.as(ctx, org, owner), a.ID)
	return err
}

// buildOCF gives the gateway what the OCF resources rest on, if they are on.
func (s *Server) buildOCF(ctx context.Context) error {
	if !s.Config.CoAP.OCF.Enabled {
		return nil
	}
	outside, err := s.newOCFAuthority(s.Config.CoAP.OCF)
	if err != nil {
		return err
	}
	if outside != nil && outside.org != "" {
		if _, err := s.Accounts.Organisation(ctx, outside.org); err != nil {
			return fmt.Errorf("coap.ocf.providers: organisation: %q: %w", outside.org, err)
		}
	}
	s.CoAP.Accounts = &ocfAccounts{s, outside}
	return nil
}
