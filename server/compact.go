package server

import (
	"context"
	"errors"
	"os"

	"keystead/config"
	"keystead/store/bolt"
)

// Compacted says what became of a database.
type Compacted struct {
	Database string `json:"database"`
	Before   int64  `json:"before"` // its size, in bytes
	Free     int64  `json:"free"`   // how much of that was in pages that nothing was in
	After    int64  `json:"after"`  // its size now; 0 if it was only looked at
}

// Compact writes the database of a stopped server anew, without what is free in it, and puts
// that in place of the old; with dry it only says how much is. tell is told how far it is.
// On an error the database is as it was.
func Compact(ctx context.Context, cfg config.Config, dry bool, tell func(done, total int64)) (out Compacted, err error) {
	out.Database = cfg.Path(databaseFile)
	if _, err := os.Stat(out.Database); err != nil {
		return out, err
	}
	db, err := bolt.Open(out.Database)
	if err != nil {
		return out, err
	}
	defer func() { err = errors.Join(err, db.Close()) }() // the lock on the old file lasts until the new one is there
	s := db.Stats()
	out.Before, out.Free = s.Size, s.FreeBytes
	if dry {
		return out, nil
	}
	if err := db.Compact(ctx, out.Database+".compact", tell); err != nil {
		return out, err
	}
	if err := os.Rename(out.Database+".compact", out.Database); err != nil {
		return out, err
	}
	info, err := os.Stat(out.Database)
	if err != nil {
		return out, err
	}
	out.After = info.Size()
	return out, syncDir(cfg.Data)
}
