package server

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"time"

	"keystead/accounts"
	"keystead/config"
	"keystead/store/bolt"
)

// ResetSecondFactor takes all second factors from a user of a server that is stopped, or
// with dry says which there are: for the administrator who has lost them, and whom
// nobody else can let in. Who may read the database and the master key may do it; the
// trail has it. It is [store.ErrInUse] while a server runs.
func ResetSecondFactor(ctx context.Context, cfg config.Config, user string, dry bool) (f accounts.Factors, err error) {
	path := cfg.Path(databaseFile)
	if _, err := os.Stat(path); err != nil { // opening it would make one
		return f, err
	}
	db, err := bolt.Open(path)
	if err != nil {
		return f, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	s := &Server{Config: cfg, Log: slog.New(slog.DiscardHandler), Now: time.Now, DB: db, bolt: db} //nolint:forbidigo // as Build does
	kept, err := s.hasKeyring(ctx)
	switch {
	case err != nil:
		return f, err
	case !kept:
		return f, fmt.Errorf("%s is not the database of a server: %w", path, fs.ErrNotExist)
	}
	for _, build := range []func(context.Context) error{s.buildSeal, s.buildDevices} {
		if err := build(ctx); err != nil {
			return f, err
		}
	}
	rooms := &accounts.Service{DB: db, Audit: s.Audit, Now: s.Now}
	return rooms.ResetStopped(ctx, user, dry)
}
