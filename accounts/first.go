package accounts

import (
	"context"

	"keystead/fault"
	"keystead/id"
	"keystead/identity"
	"keystead/seal"
	"keystead/store"
)

// First is what the first start made.
type First struct {
	Org    Organisation
	User   User        // the first platform administrator; it has no address and no password yet
	APIKey seal.Secret // its API key, shown this once
}

// first remembers what the first start made.
type first struct {
	Org  string `cbor:"org"`
	User string `cbor:"user"`
}

var firsts = store.NewTable[first]("first start")

// EnsureFirst makes the default organisation, the first platform administrator
// and an API key for it, if no start before has. keep puts what was made where
// its owner finds it, before it is stored: a key that is in the database is in
// somebody's hands. keep is not called on later starts.
func (s *Service) EnsureFirst(ctx context.Context, keep func(First) error) error {
	done := false
	err := s.DB.View(ctx, func(tx store.Tx) (err error) {
		done, err = firsts.Has(tx, "first")
		return err
	})
	if done || err != nil {
		return err
	}
	now := s.Now().UTC()
	user := User{ID: id.New(now), Name: "administrator", Status: Enabled, Platform: true, CreatedAt: now, UpdatedAt: now}
	ticket := seal.NewTicket(apiKeyKind, id.New(now))
	key := APIKey{ID: ticket.ID, User: user.ID, Name: "first start", Hash: ticket.Hash(), IssuedAt: now}
	org := Organisation{ID: id.New(now), Number: 1, Name: "default", OwnerID: user.ID, CreatedAt: now, UpdatedAt: now}
	user.HomeOrg = org.ID
	if err := keep(First{Org: org, User: user, APIKey: ticket.Text()}); err != nil {
		return err
	}
	return s.DB.Update(ctx, func(tx store.Tx) error {
		if err := orgTable.Insert(tx, org.ID, org); err != nil {
			return err
		}
		if err := counters.Set(tx, "organisation", org.Number); err != nil {
			return err
		}
		if err := s.note(ctx, tx, org.ID, "organisation.create", org.ID, map[string]string{"name": org.Name}); err != nil {
			return err
		}
		if err := s.insertUser(ctx, tx, user); err != nil {
			return err
		}
		if err := s.join(ctx, tx, org.ID, user.ID, identity.Owner); err != nil {
			return err
		}
		if err := keyTable.Insert(tx, key.ID, key); err != nil {
			return err
		}
		if err := s.note(ctx, tx, org.ID, "key.create", key.ID, map[string]string{"name": key.Name, "user": user.ID}); err != nil {
			return err
		}
		return firsts.Insert(tx, "first", first{Org: org.ID, User: user.ID})
	})
}

// DefaultOrganisation returns the id of the organisation the first start made,
// where whoever names none ends up. It is Unavailable before the first start is done.
func (s *Service) DefaultOrganisation(ctx context.Context) (org string, err error) {
	if known := s.firstOrg.Load(); known != nil {
		return *known, nil
	}
	err = s.DB.View(ctx, func(tx store.Tx) error {
		f, err := firsts.Get(tx, "first")
		if fault.Is(err, fault.NotFound) {
			return fault.New(fault.Unavailable, "the server has not finished its first start")
		}
		org = f.Org
		return err
	})
	if err == nil {
		s.firstOrg.Store(&org)
	}
	return org, err
}
