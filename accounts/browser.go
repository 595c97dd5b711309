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
)

// OpenKeySession returns the value of a cookie for a browser that somebody has shown an
// API key in, so that the browser need not keep the key. The session may do what the key
// may, from where the key may do it, and ends with the key.
func (s *Service) OpenKeySession(ctx context.Context, text string, from netip.AddrPort) (seal.Secret, time.Time, error) {
	a, err := s.Resolve(ctx, identity.Proof{Scheme: "Bearer", Value: text, Remote: from})
	if err != nil {
		return nil, time.Time{}, err
	}
	if a.Credential.Kind != identity.APIKey {
		return nil, time.Time{}, ErrUnauthenticated
	}
	now := s.Now().UTC()
	t := seal.NewTicket(sessionKind, id.New(now))
	x := session{ID: t.ID, User: a.ID, Key: a.Credential.ID, Hash: t.Hash(), Created: now, Expires: now.Add(sessionTTL)}
	if end := a.Credential.ExpiresAt; !end.IsZero() && end.Before(x.Expires) {
		x.Expires = end
	}
	err = s.DB.Update(identity.NewContext(ctx, a), func(tx store.Tx) error {
		u, err := s.alive(tx, x.User)
		if err != nil {
			return err
		}
		x.Epoch = u.Epoch
		if err := s.beginSession(tx, x); err != nil {
			return err
		}
		return s.note(identity.NewContext(ctx, a), tx, a.Org, "key.login", x.Key, map[string]string{"user": a.ID})
	})
	return t.Text(), x.Expires, err
}

// keyPrincipal is who a session that rests on an API key stands for: the key's user, with
// what the key may do as it is now. It counts as the key, not as somebody who has logged in.
func (s *Service) keyPrincipal(tx store.Tx, u User, x session, org string) (principal, error) {
	k, err := keyTable.Get(tx, x.Key)
	if fault.Is(err, fault.NotFound) || err == nil && k.User != x.User {
		return principal{}, ErrUnauthenticated
	}
	if err != nil {
		return principal{}, err
	}
	a, err := s.actor(tx, u, k.Org, org)
	a.Scopes = k.Scopes
	a.Credential = identity.Credential{Kind: identity.APIKey, ID: k.ID, ExpiresAt: x.Expires}
	return principal{actor: a, key: &k}, err
}

// EndSession ends the session that a cookie has the value of. One that is not there, or
// has ended, is no error.
func (s *Service) EndSession(ctx context.Context, text string) error {
	t, ok := seal.ParseTicket(text)
	if !ok || t.Kind != sessionKind {
		return nil
	}
	return s.DB.Update(ctx, func(tx store.Tx) error {
		x, err := sessionTable.Get(tx, t.ID)
		if fault.Is(err, fault.NotFound) || err == nil && !t.Matches(x.Hash) {
			return nil
		}
		if err != nil {
			return err
		}
		s.moved(tx)
		_, err = sessionTable.Delete(tx, t.ID)
		return err
	})
}
