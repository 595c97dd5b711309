package server

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/labstack/echo/v4"

	"keystead/audit"
	"keystead/config"
	"keystead/fault"
	"keystead/identity"
	"keystead/seal"
	"keystead/store"
	"keystead/store/bolt"
)

// databaseFile is the database in the data directory.
const databaseFile = "keystead.db"

// Backup says what a copy of the database holds. It is kept beside the copy, as
// NAME.db.json.
type Backup struct {
	Format    int       `json:"format"`
	Name      string    `json:"name"`
	CreatedAt time.Time `json:"created_at"`
	Size      int64     `json:"size"`
	SHA256    string    `json:"sha256"`
	Schema    int       `json:"schema"`
	AuditSeq  uint64    `json:"audit_seq"`  // the audit trail reaches at least this record
	MasterKey string    `json:"master_key"` // the fingerprint of the one that opens it
	DataKeys  []uint32  `json:"data_keys"`
}

const backupFormat = 1

func backupDir(cfg config.Config) string {
	if cfg.Backup.Dir == "" {
		return cfg.Path("backups")
	}
	return cfg.Path(cfg.Backup.Dir)
}

// buildBackups has the server make copies by itself, if it is to.
func (s *Server) buildBackups(context.Context) error {
	if last, err := s.backups(); err == nil && len(last) > 0 {
		s.lastBackup.Store(last[len(last)-1].CreatedAt.Unix())
	}
	s.every("data keys", time.Hour, s.rotateWhenDue)
	if every := s.Config.Backup.Every; every > 0 {
		s.every("backup", min(every, time.Minute), func(ctx context.Context, now time.Time) error {
			if now.Sub(time.Unix(s.lastBackup.Load(), 0)) < every {
				return nil
			}
			_, err := s.Backup(ctx)
			return err
		})
	}
	return nil
}

// Backup copies the database while it is in use, and drops the oldest copies
// beyond those that are kept. The master key is not in it.
func (s *Server) Backup(ctx context.Context) (Backup, error) {
	s.backingUp.Lock()
	defer s.backingUp.Unlock()
	dir := backupDir(s.Config)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return Backup{}, fault.Wrap(fault.Unavailable, err, "the directory of the backups cannot be made; look at backup.dir and its disk")
	}
	now := s.Now().UTC()
	b := Backup{
		Format: backupFormat, Name: "keystead-" + now.Format("20060102T150405.000Z") + ".db", CreatedAt: now,
		Schema: store.Schema, AuditSeq: s.Audit.Written(), MasterKey: s.keys.Master(),
	}
	for _, k := range s.keys.Keys() {
		b.DataKeys = append(b.DataKeys, k.ID)
	}
	path := filepath.Join(dir, b.Name)
	if err := s.bolt.Snapshot(ctx, path); err != nil {
		return Backup{}, fault.Wrap(fault.Unavailable, err, "the backup cannot be written; look at backup.dir and its disk")
	}
	var err error
	if b.SHA256, b.Size, err = digestFile(path); err != nil {
		return Backup{}, err
	}
	if err := writeJSON(path+".json", b, 0o600); err != nil {
		return Backup{}, err
	}
	s.lastBackup.Store(now.Unix())
	s.Log.Info("backup", slog.String("file", path), slog.Int64("bytes", b.Size))
	if err := s.dropBackups(); err != nil {
		s.Log.Error("old backups are left", slog.Any("error", err))
	}
	return b, s.DB.Update(ctx, func(tx store.Tx) error {
		return s.Audit.Append(ctx, tx, audit.Entry{Action: "store.backup", Target: b.Name, Detail: map[string]string{"sha256": b.SHA256}})
	})
}

func (s *Server) dropBackups() error {
	all, err := s.backups()
	if err != nil {
		return err
	}
	var faults []error
	for len(all) > s.Config.Backup.Keep {
		path := filepath.Join(backupDir(s.Config), all[0].Name)
		faults = append(faults, os.Remove(path), os.Remove(path+".json"))
		all = all[1:]
	}
	return errors.Join(faults...)
}

// backups lists the copies that are there, oldest first.
func (s *Server) backups() ([]Backup, error) {
	dir := backupDir(s.Config)
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var all []Backup
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".db.json") {
			continue
		}
		b, err := readManifest(filepath.Join(dir, strings.TrimSuffix(e.Name(), ".json")))
		if err == nil && b.Name+".json" == e.Name() {
			all = append(all, b)
		}
	}
	slices.SortFunc(all, func(a, b Backup) int { return a.CreatedAt.Compare(b.CreatedAt) })
	return all, nil
}

func readManifest(path string) (Backup, error) {
	text, err := os.ReadFile(path + ".json")
	if err != nil {
		return Backup{}, err
	}
	var b Backup
	if err := json.Unmarshal(text, &b); err != nil {
		return Backup{}, fmt.Errorf("%s.json is not about a backup: %w", path, err)
	}
	if b.Format != backupFormat {
		return Backup{}, fmt.Errorf("%s.json has format %d, this program knows %d", path, b.Format, backupFormat)
	}
	return b, nil
}

func digestFile(path string) (sum string, size int64, err error) {
	f, err := os.Open(path)
	if err != nil {
		return "", 0, err
	}
	defer f.Close()
	h := sha256.New()
	size, err = io.Copy(h, f)
	return hex.EncodeToString(h.Sum(nil)), size, err
}

// Verified is what VerifyBackup found right.
type Verified struct {
	Backup  *Backup `json:"backup"` // nil if there is no manifest beside the file
	Records int     `json:"records"`
	Bytes   int64   `json:"bytes"`
}

// VerifyBackup reads a copy of the database from end to end: each value is what
// was written, each page is used once, and all of it is what the manifest says.
func VerifyBackup(ctx context.Context, path string) (Verified, error) {
	var v Verified
	b, err := readManifest(path)
	switch {
	case err == nil:
		sum, _, err := digestFile(path)
		if err != nil {
			return v, err
		}
		if sum != b.SHA256 {
			return v, fmt.Errorf("%w: %s is not the file that %[2]s.json is about", store.ErrCorrupt, path)
		}
		v.Backup = &b
	case !errors.Is(err, fs.ErrNotExist):
		return v, err
	}
	r, err := bolt.CheckFile(ctx, path)
	if err != nil {
		return v, err
	}
	v.Records, v.Bytes = r.Entries, r.Bytes
	return v, r.Err()
}

// Restored says where things are after Restore.
type Restored struct {
	From     string `json:"from"`
	Database string `json:"database"`
	Before   string `json:"before"` // what was there before; "" if nothing was
	Records  int    `json:"records"`
}

// Restore puts a copy of the database in place of that of a stopped server. The
// next start does again what was revoked since the copy was made.
func Restore(ctx context.Context, cfg config.Config, path string, now time.Time) (out Restored, err error) {
	out.From, out.Database = path, cfg.Path(databaseFile)
	free, err := unused(out.Database)
	if err != nil {
		return out, err
	}
	defer free()
	v, err := VerifyBackup(ctx, path)
	if err != nil {
		return out, err
	}
	out.Records = v.Records
	if err := os.MkdirAll(cfg.Data, 0o700); err != nil {
		return out, err
	}
	fresh := out.Database + ".restore"
	defer os.Remove(fresh) // gone already if all went well
	if err := copyFile(path, fresh); err != nil {
		return out, err
	}
	if err := mark(ctx, cfg, fresh, filepath.Base(path)); err != nil {
		return out, err
	}
	if _, err := os.Stat(out.Database); err == nil {
		out.Before = out.Database + ".before-" + now.UTC().Format("20060102T150405Z")
		if err := os.Rename(out.Database, out.Before); err != nil {
			return out, err
		}
	}
	if err := os.Rename(fresh, out.Database); err != nil {
		return out, err
	}
	return out, syncDir(cfg.Data)
}

// unused makes sure that no server has the database open, and keeps it so until
// the returned function is called. A damaged one is what a restore is for.
func unused(path string) (func(), error) {
	if _, err := os.Stat(path); errors.Is(err, fs.ErrNotExist) {
		return func() {}, nil
	}
	db, err := bolt.Open(path)
	if errors.Is(err, store.ErrInUse) {
		return nil, err
	}
	if err != nil {
		return func() {}, nil //nolint:nilerr // it is to be replaced
	}
	return func() { _ = db.Close() }, nil // what was in it is not to be kept
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Sync(), out.Close())
}

// mark looks whether the master key opens the database at path, and notes in it
// that it was put back.
func mark(ctx context.Context, cfg config.Config, path, from string) (err error) {
	db, err := bolt.Open(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	return db.Update(ctx, func(tx store.Tx) error {
		kept, err := keyrings.Get(tx, theKeyring)
		if err != nil {
			return fmt.Errorf("%s is not a backup of a server: %w", from, err)
		}
		master, err := cfg.MasterKey.Master(seal.Place{Dir: cfg.Data})
		if err != nil {
			return fmt.Errorf("master_key: %w", err)
		}
		if _, err := seal.OpenKeyring(master, kept.Record); err != nil {
			return fmt.Errorf("master_key: %w", err)
		}
		return restores.Set(tx, theOne, restored{From: from, Pending: true})
	})
}

func (s *Server) backupRoutes() []route {
	return []route{
		{method: http.MethodGet, path: "/api/v1/backups", need: identity.Platform, handle: s.listBackups},
		{method: http.MethodPost, path: "/api/v1/backups", need: identity.Platform, handle: s.createBackup, stream: true},
	}
}

func (s *Server) listBackups(c echo.Context) error {
	all, err := s.backups()
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, list[Backup]{Items: orEmpty(all)})
}

func (s *Server) createBackup(c echo.Context) error {
	var in struct{}
	if err := bind(c, &in); err != nil {
		return err
	}
	b, err := s.Backup(c.Request().Context())
	if err != nil {
		return err
	}
	return c.JSON(http.StatusCreated, b)
}
