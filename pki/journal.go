package pki

import (
	"bufio"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"strings"
	"sync"

	"keystead/audit"
	"keystead/fault"
	"keystead/seal"
	"keystead/store"
)

// Journal is the list of revocations outside the store: one line each, in the
// order they were made, synced before the one who revoked is answered. A store
// that was restored from a backup takes up from it what it does not know.
type Journal struct {
	key  seal.Secret
	mu   sync.Mutex
	file *os.File
}

// OpenJournal opens the journal at path, or makes it. The key authenticates
// its lines.
func OpenJournal(path string, key seal.Secret) (*Journal, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("pki: revocation journal: %w", err)
	}
	return &Journal{key: key, file: f}, nil
}

// Close closes the journal.
func (j *Journal) Close() error { return j.file.Close() }

type journalLine struct {
	Entry json.RawMessage `json:"e"`
	MAC   string          `json:"m"`
}

func (j *Journal) mac(entry []byte) string {
	m := hmac.New(sha256.New, j.key)
	m.Write(entry)
	return base64.RawStdEncoding.EncodeToString(m.Sum(nil))
}

func (j *Journal) append(r revocation) error {
	entry, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("pki: revocation journal: %w", err)
	}
	line, err := json.Marshal(journalLine{entry, j.mac(entry)})
	if err != nil {
		return fmt.Errorf("pki: revocation journal: %w", err)
	}
	j.mu.Lock()
	defer j.mu.Unlock()
	if _, err := j.file.Write(append(line, '\n')); err != nil {
		return fmt.Errorf("pki: revocation journal: %w", err)
	}
	return j.file.Sync()
}

// read returns the lines that are whole and authentic; torn is how many are not.
func (j *Journal) read() (entries []revocation, torn int, err error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if _, err := j.file.Seek(0, io.SeekStart); err != nil {
		return nil, 0, fmt.Errorf("pki: revocation journal: %w", err)
	}
	lines := bufio.NewReader(j.file)
	for {
		text, err := lines.ReadString('\n')
		if text = strings.TrimSpace(text); text != "" {
			var line journalLine
			var r revocation
			if json.Unmarshal([]byte(text), &line) != nil || !hmac.Equal([]byte(line.MAC), []byte(j.mac(line.Entry))) || json.Unmarshal(line.Entry, &r) != nil {
				torn++
			} else {
				entries = append(entries, r)
			}
		}
		if errors.Is(err, io.EOF) {
			return entries, torn, nil
		}
		if err != nil {
			return entries, torn, fmt.Errorf("pki: revocation journal: %w", err)
		}
	}
}

// journal has r written to the journal once tx is durable, before the one who
// revoked is answered.
func (s *Service) journal(tx store.Tx, r revocation) {
	if s.Journal == nil {
		return
	}
	tx.OnCommit(func() {
		if err := s.Journal.append(r); err != nil {
			s.Log.Error("a revocation is in the store but not in its journal; a backup restored later could miss it",
				slog.String("serial", string(r.Serial)), slog.Any("error", err))
		}
	})
}

// replay takes up what the journal knows and the store does not: after a backup
// was restored, revocations made since it was taken.
func (s *Service) replay(ctx context.Context) error {
	if s.Journal == nil {
		return nil
	}
	entries, torn, err := s.Journal.read()
	if err != nil {
		return err
	}
	if torn > 0 {
		s.Log.WarnContext(ctx, "the revocation journal has lines that are torn or not of this installation", slog.Int("lines", torn))
	}
	latest := map[string]revocation{}
	var order []string
	for _, r := range entries {
		k := revocationKey(r.CA, r.Serial)
		if _, seen := latest[k]; !seen {
			order = append(order, k)
		}
		latest[k] = r
	}
	for _, k := range order {
		if r := latest[k]; r.Reason != RemoveFromCRL {
			if err := s.DB.Update(ctx, func(tx store.Tx) error { return s.again(ctx, tx, r) }); err != nil {
				return err
			}
		}
	}
	return nil
}

// again makes sure that r is in the store, also where the certificate it is of
// is not: it was issued after the backup was taken.
func (s *Service) again(ctx context.Context, tx store.Tx, r revocation) error {
	known, err := revocations.Has(tx, revocationKey(r.CA, r.Serial))
	if err != nil || known || s.Now().After(r.NotAfter.Add(crlGrace)) {
		return err
	}
	c, err := certificates.Get(tx, string(r.Serial))
	switch {
	case fault.Is(err, fault.NotFound):
		if err := revocations.Set(tx, revocationKey(r.CA, r.Serial), r); err != nil {
			return err
		}
		if err := s.dirty(tx, r.CA, r.Shard); err != nil {
			return err
		}
		return s.Audit.Append(ctx, tx, audit.Entry{Action: "certificate.revoke", Target: string(r.Serial), Detail: map[string]string{"from": "journal"}})
	case err != nil:
		return err
	}
	_, err = s.end(ctx, tx, c, r.Reason)
	return err
}
