package server

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"keystead/audit"
	"keystead/devices"
	"keystead/fault"
	"keystead/identity"
	"keystead/seal"
	"keystead/store"
)

// journalFile is the list of what was taken from devices, beside the database:
// a line each, on the disk before the one who did it is answered. A backup that
// is put back knows nothing of what was taken after it was made; the journal does.
const journalFile = "devices.log"

// journal writes and reads that file.
type journal struct {
	path string
	key  seal.Secret
	log  *slog.Logger

	mu        sync.Mutex
	file      *os.File
	replaying bool // what is done is in the file already
}

// taken is one line: what happened to a device or one of its credentials. Resumes
// are in it too, so that what is done again ends as it was.
type taken struct {
	N          uint64                  `json:"n"` // counted in the database, in the transaction of the change
	At         time.Time               `json:"at"`
	What       devices.What            `json:"what"`
	Org        string                  `json:"org"`
	Device     string                  `json:"device"`
	Kind       identity.CredentialKind `json:"kind,omitempty"`
	Credential string                  `json:"credential,omitempty"`
	MAC        []byte                  `json:"mac,omitempty"`
}

// position is how many lines the database knows to have been written.
type position struct {
	N uint64 `cbor:"n"`
}

// restored is in a database that was just put back, until its first start, and
// then says since when tokens count.
type restored struct {
	From     string    `cbor:"from"`    // the name of the backup
	Pending  bool      `cbor:"pending"` // the start after it has yet to come
	At       time.Time `cbor:"at"`      // of that start
	AuditSeq uint64    `cbor:"audit"`   // the last record of the trail in the backup
}

var (
	positions = store.NewTable[position]("journal position")
	restores  = store.NewTable[restored]("restore")
)

const theOne = "one"

func (j *journal) mac(t taken) ([]byte, error) {
	t.MAC = nil
	b, err := json.Marshal(t)
	if err != nil {
		return nil, err
	}
	m := hmac.New(sha256.New, j.key)
	m.Write(b)
	return m.Sum(nil), nil
}

// observe counts a change in its transaction, and has it written once that is
// durable.
func (j *journal) observe(_ context.Context, tx store.Tx, c devices.Change) error {
	switch c.What {
	case devices.SuspendedNow, devices.Resumed, devices.DecommissionedNow, devices.CredentialRevokedNow:
	default:
		return nil
	}
	if j.replaying {
		return nil
	}
	at, err := positions.Get(tx, theOne)
	if err != nil && !fault.Is(err, fault.NotFound) {
		return err
	}
	at.N++
	t := taken{N: at.N, At: c.Device.UpdatedAt, What: c.What, Org: c.Device.Org, Device: c.Device.ID}
	if c.Credential != nil {
		t.Kind, t.Credential = c.Credential.Kind, c.Credential.ID
	}
	tx.OnCommit(func() {
		if err := j.append(t); err != nil {
			j.log.Error("a revocation is in the database, but not in the journal beside it: a backup put back later could miss it",
				slog.String("device", t.Device), slog.Any("error", err))
		}
	})
	return positions.Set(tx, theOne, at)
}

func (j *journal) append(t taken) error {
	var err error
	if t.MAC, err = j.mac(t); err != nil {
		return err
	}
	line, err := json.Marshal(t)
	if err != nil {
		return err
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if _, err := j.file.Write(append(append([]byte("\n"), line...), '\n')); err != nil { // the line before may be torn
		return err
	}
	return j.file.Sync()
}

// read returns the lines that come after the first n, in order, and how many
// lines are torn or not of this installation.
func (j *journal) read(n uint64) (after []taken, bad int, err error) {
	text, err := os.ReadFile(j.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, 0, nil
	}
	if err != nil {
		return nil, 0, err
	}
	for line := range bytes.Lines(text) {
		if line = bytes.TrimSpace(line); len(line) == 0 {
			continue
		}
		var t taken
		if json.Unmarshal(line, &t) != nil {
			bad++
			continue
		}
		want, err := j.mac(t)
		if err != nil {
			return nil, bad, err
		}
		switch {
		case !hmac.Equal(t.MAC, want):
			bad++
		case t.N > n:
			after = append(after, t)
		}
	}
	slices.SortStableFunc(after, func(a, b taken) int { return int(a.N) - int(b.N) }) //nolint:gosec // G115: counts lines of a file
	return after, bad, nil
}

// buildJournal opens the journal and, if the database is older than it, does
// again what the database does not know. It is the last of what is built: every
// kind of credential hears of it.
func (s *Server) buildJournal(ctx context.Context) error {
	key, err := secretNamed(ctx, s.DB, s.box, takenSecret)
	if err != nil {
		return err
	}
	j := &journal{path: filepath.Join(s.Config.Data, journalFile), key: key, log: s.Log}
	if j.file, err = os.OpenFile(j.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600); err != nil {
		return err
	}
	s.closers = append(s.closers, j.file.Close)
	s.Devices.Observe(j.observe)
	j.replaying = true
	if err := s.catchUp(ctx, j); err != nil {
		return fmt.Errorf("journal: %w", err)
	}
	j.replaying = false
	return s.resumeAudit(ctx)
}

// catchUp makes a database that was put back safe to serve from: what was taken
// from devices since is taken again, and tokens from before are no good.
func (s *Server) catchUp(ctx context.Context, j *journal) error {
	var at position
	var put restored
	err := s.DB.View(ctx, func(tx store.Tx) (err error) {
		if at, err = positions.Get(tx, theOne); err != nil && !fault.Is(err, fault.NotFound) {
			return err
		}
		if put, err = restores.Get(tx, theOne); err != nil && !fault.Is(err, fault.NotFound) {
			return err
		}
		return nil
	})
	if err != nil {
		return err
	}
	lines, bad, err := j.read(at.N)
	if err != nil {
		return err
	}
	if bad > 0 {
		s.Log.Warn("the journal of revocations has lines that are torn or not of this installation", slog.Int("lines", bad), slog.String("file", j.path))
	}
	if len(lines) == 0 && !put.Pending {
		s.Tokens.RejectBefore(put.At)
		return nil
	}
	for _, t := range lines {
		if err := s.again(ctx, t); err != nil {
			return err
		}
		at.N = t.N
	}
	entry := audit.Entry{Action: audit.Restored, Target: put.From, Detail: map[string]string{
		"again": strconv.Itoa(len(lines)), "audit_seq": strconv.FormatUint(put.AuditSeq, 10),
	}}
	if !put.Pending { // somebody copied an old file into place
		entry.Action = "store.rollback"
		s.Log.Error("the database is older than the journal of revocations beside it; keystead restore is the way to put back a backup", slog.Int("done_again", len(lines)))
	}
	put.Pending, put.At = false, s.Now().UTC()
	s.Tokens.RejectBefore(put.At)
	s.Log.Warn("the database was put back", slog.String("from", put.From), slog.Int("revocations_done_again", len(lines)))
	return s.DB.Update(ctx, func(tx store.Tx) error {
		if err := s.Audit.Append(ctx, tx, entry); err != nil {
			return err
		}
		if err := restores.Set(tx, theOne, put); err != nil {
			return err
		}
		return positions.Set(tx, theOne, at)
	})
}

// again does to a device what a line says. What is not there is not in need of it.
func (s *Server) again(ctx context.Context, t taken) error {
	ctx = identity.NewContext(ctx, identity.Actor{Kind: identity.System, Org: t.Org})
	var err error
	switch t.What {
	case devices.SuspendedNow:
		_, err = s.Devices.Suspend(ctx, t.Device)
	case devices.Resumed:
		_, err = s.Devices.Resume(ctx, t.Device)
	case devices.DecommissionedNow:
		_, err = s.Devices.Decommission(ctx, t.Device)
	case devices.CredentialRevokedNow:
		err = s.Devices.RevokeCredential(ctx, t.Device, t.Kind, t.Credential)
	default:
		return fmt.Errorf("%s of %s is not known to this version", t.What, t.Device)
	}
	switch fault.KindOf(err) { //nolint:exhaustive // the rest ends the start
	case fault.NotFound, fault.Conflict:
		if err != nil {
			s.Log.Info("nothing to do again", slog.String("what", string(t.What)), slog.String("device", t.Device), slog.Any("reason", err))
			return nil
		}
	}
	return err
}
