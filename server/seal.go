package server

import (
	"context"
	"fmt"

	"keystead/fault"
	"keystead/seal"
	"keystead/store"
)

// keyring is the one record of the data keys, which only the master key opens.
type keyring struct {
	Record []byte `cbor:"record"`
}

var keyrings = store.NewTable[keyring]("keyring")

const theKeyring = "keyring"

// buildSeal opens the data keys that secrets at rest are sealed under, with the
// master key. Both are made at first start; after that a master key that is
// missing, or is another, is an error and changes nothing.
func (s *Server) buildSeal(ctx context.Context) error {
	var kept keyring
	err := s.DB.View(ctx, func(tx store.Tx) (err error) {
		kept, err = keyrings.Get(tx, theKeyring)
		return err
	})
	first := fault.Is(err, fault.NotFound)
	if err != nil && !first {
		return err
	}
	master, err := s.Config.MasterKey.Master(seal.Place{Dir: s.Config.Data, Create: first})
	if err != nil {
		return fmt.Errorf("master_key: %w", err)
	}
	if first {
		if s.keys, err = seal.NewKeyring(master, s.Now()); err != nil {
			return err
		}
		fresh, err := s.keys.Record()
		if err != nil {
			return err
		}
		if err := s.keepKeyring(ctx)(fresh); err != nil {
			return err
		}
	} else if s.keys, err = seal.OpenKeyring(master, kept.Record); err != nil {
		return fmt.Errorf("master_key: %w", err)
	}
	s.box = s.keys.Box("server secret")
	return nil
}

// hasKeyring reports whether the database is that of a server that was started before.
func (s *Server) hasKeyring(ctx context.Context) (has bool, err error) {
	err = s.DB.View(ctx, func(tx store.Tx) error {
		has, err = keyrings.Has(tx, theKeyring)
		return err
	})
	return has, err
}

func (s *Server) keepKeyring(ctx context.Context) func([]byte) error {
	return func(record []byte) error {
		return s.DB.Update(ctx, func(tx store.Tx) error {
			return keyrings.Set(tx, theKeyring, keyring{Record: record})
		})
	}
}
