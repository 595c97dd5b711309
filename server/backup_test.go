package server_test

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"keystead/config"
	"keystead/fault"
	"keystead/identity"
	"keystead/seal"
	"keystead/server"
	"keystead/store"
	"keystead/tokens"
)

type fleet struct {
	device map[string]string // id by name
	psk    map[string]string // identity by name
}

// newFleet makes devices with a pre-shared key each.
func newFleet(t *testing.T, s *running, names ...string) fleet {
	t.Helper()
	f := fleet{map[string]string{}, map[string]string{}}
	for _, name := range names {
		var k struct {
			Identity string `json:"identity"`
			Device   string `json:"device"`
		}
		s.call(t, s.admin, http.MethodPost, "/api/v1/psk", map[string]string{"identity": "urn:" + name}, http.StatusCreated, &k)
		f.device[name], f.psk[name] = k.Device, k.Identity
	}
	return f
}

// known reports whether a device is let in with its pre-shared key.
func (r *running) known(t *testing.T, psk string) bool {
	t.Helper()
	_, err := r.Resolver.Resolve(t.Context(), identity.Proof{PSK: psk, Transport: identity.CoAPUDP})
	if err != nil && !fault.Is(err, fault.Unauthenticated) {
		t.Fatal(err)
	}
	return err == nil
}

func backupOf(t *testing.T, s *running) (string, server.Backup) {
	t.Helper()
	var b server.Backup
	s.call(t, s.admin, http.MethodPost, "/api/v1/backups", struct{}{}, http.StatusCreated, &b)
	return filepath.Join(s.Config.Data, "backups", b.Name), b
}

func in(data string) func(*config.Config) { return func(c *config.Config) { c.Data = data } }

// endSome takes from the fleet what its names say.
func endSome(t *testing.T, s *running, f fleet) {
	t.Helper()
	s.call(t, s.admin, http.MethodPost, "/api/v1/devices/"+f.device["suspended"]+"/suspend", nil, http.StatusOK, nil)
	s.call(t, s.admin, http.MethodPost, "/api/v1/devices/"+f.device["resumed"]+"/suspend", nil, http.StatusOK, nil)
	s.call(t, s.admin, http.MethodPost, "/api/v1/devices/"+f.device["resumed"]+"/resume", nil, http.StatusOK, nil)
	s.call(t, s.admin, http.MethodDelete, "/api/v1/devices/"+f.device["deleted"], nil, http.StatusNoContent, nil)
	s.call(t, s.admin, http.MethodDelete, "/api/v1/devices/"+f.device["revoked"]+"/credentials/psk/"+f.psk["revoked"], nil, http.StatusNoContent, nil)
}

func checkEnded(t *testing.T, s *running, f fleet) {
	t.Helper()
	for name, want := range map[string]bool{"kept": true, "resumed": true, "suspended": false, "deleted": false, "revoked": false} {
		if got := s.known(t, f.psk[name]); got != want {
			t.Errorf("%s: let in %t, want %t", name, got, want)
		}
	}
}

var everyName = []string{"kept", "suspended", "resumed", "deleted", "revoked"}

func TestRestoreRevokesAgainWhatWasRevoked(t *testing.T) {
	data := t.TempDir()
	s := start(t, in(data))
	f := newFleet(t, s, everyName...)
	path, _ := backupOf(t, s)
	endSome(t, s, f)
	newFleet(t, s, "later") // is not in the backup
	old, _, err := s.Tokens.Issue(tokens.Device, tokens.New{Subject: "x", Org: s.org, TTL: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	checkEnded(t, s, f)
	if err := s.Audit.Finish(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := server.Restore(t.Context(), s.Config, path, time.Now()); !errors.Is(err, store.ErrInUse) {
		t.Fatalf("under a running server: got %v, want %v", err, store.ErrInUse)
	}
	s.Close()

	time.Sleep(time.Until(time.Now().Truncate(time.Second).Add(time.Second))) // tokens count in seconds
	out, err := server.Restore(t.Context(), s.Config, path, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(out.Before); err != nil {
		t.Errorf("what was there before is gone: %v", err)
	}
	s = start(t, in(data))
	checkEnded(t, s, f)
	if s.known(t, "urn:later") {
		t.Error("a device that the backup does not know is let in")
	}
	if _, err := s.Tokens.Verify(old, tokens.Device); !fault.Is(err, fault.Unauthenticated) {
		t.Errorf("a token from before: got %v, want it refused", err)
	}
	if fresh, _, err := s.Tokens.Issue(tokens.Device, tokens.New{Subject: "x", Org: s.org, TTL: time.Hour}); err != nil {
		t.Error(err)
	} else if _, err := s.Tokens.Verify(fresh, tokens.Device); err != nil {
		t.Errorf("a token of now: %v", err)
	}
	var v struct {
		Sound bool   `json:"sound"`
		Fault string `json:"fault"`
	}
	s.call(t, s.admin, http.MethodPost, "/api/v1/audit/verify", struct{}{}, http.StatusOK, &v)
	if !v.Sound {
		t.Errorf("the trail does not tell of the restore: %s", v.Fault)
	}
	var p auditPage
	s.call(t, s.admin, http.MethodGet, "/api/v1/audit?all=true&action=store.restore", nil, http.StatusOK, &p)
	if len(p.Items) != 1 {
		t.Errorf("got %d records of a restore, want 1", len(p.Items))
	}

	// What is revoked from then on is kept in mind as well, over another restore.
	s.call(t, s.admin, http.MethodPost, "/api/v1/devices/"+f.device["kept"]+"/suspend", nil, http.StatusOK, nil)
	s.Close()
	if _, err := server.Restore(t.Context(), s.Config, path, time.Now().Add(time.Second)); err != nil {
		t.Fatal(err)
	}
	s = start(t, in(data))
	if s.known(t, f.psk["kept"]) {
		t.Error("a device suspended after the first restore is let in after the second")
	}
}

// A file that is simply copied into place, without the command, is no way round.
func TestCopiedDatabaseRevokesAgainToo(t *testing.T) {
	data := t.TempDir()
	s := start(t, in(data))
	f := newFleet(t, s, everyName...)
	path, _ := backupOf(t, s)
	endSome(t, s, f)
	s.Close()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(data, "keystead.db"), text, 0o600); err != nil {
		t.Fatal(err)
	}
	s = start(t, in(data))
	checkEnded(t, s, f)
	var p auditPage
	s.call(t, s.admin, http.MethodGet, "/api/v1/audit?all=true&action=store.rollback", nil, http.StatusOK, &p)
	if len(p.Items) != 1 {
		t.Errorf("got %d records of it, want 1", len(p.Items))
	}
}

func TestJournalWithTornAndForgedLines(t *testing.T) {
	data := t.TempDir()
	s := start(t, in(data))
	f := newFleet(t, s, everyName...)
	path, _ := backupOf(t, s)
	endSome(t, s, f)
	s.Close()
	j, err := os.OpenFile(filepath.Join(data, "devices.log"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	forged := `{"n":99,"at":"2026-11-24T00:00:00Z","what":"suspend","org":"` + s.org + `","device":"` + f.device["kept"] + `","mac":"AAAA"}`
	if _, err := io.WriteString(j, forged+"\n"+`{"n":100,"what":"susp`); err != nil {
		t.Fatal(err)
	}
	j.Close()
	if _, err := server.Restore(t.Context(), s.Config, path, time.Now()); err != nil {
		t.Fatal(err)
	}
	checkEnded(t, start(t, in(data)), f)
}

func TestRestoreRefusesWhatIsNoGood(t *testing.T) {
	data := t.TempDir()
	s := start(t, in(data))
	newFleet(t, s, "a")
	path, _ := backupOf(t, s)
	s.Close()
	cfg := s.Config
	good, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	database := filepath.Join(data, "keystead.db")
	before, err := os.ReadFile(database)
	if err != nil {
		t.Fatal(err)
	}
	other := filepath.Join(t.TempDir(), "other.key")
	if err := os.WriteFile(other, []byte(strings.Repeat("11", 32)), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		text   []byte
		change func(*config.Config)
		want   error
	}{
		"one bit turned":     {text: flip(good, len(good)/2), want: store.ErrCorrupt},
		"cut":                {text: good[:len(good)/2], want: store.ErrCorrupt},
		"another master key": {text: good, change: func(c *config.Config) { c.MasterKey.File = other }, want: seal.ErrMaster},
		"no master key":      {text: good, change: func(c *config.Config) { c.MasterKey.File = "none.key" }, want: seal.ErrNoMaster},
	} {
		if err := os.WriteFile(path, test.text, 0o600); err != nil {
			t.Fatal(err)
		}
		c := cfg
		if test.change != nil {
			test.change(&c)
		}
		if _, err := server.Restore(t.Context(), c, path, time.Now()); !errors.Is(err, test.want) {
			t.Errorf("%s: got %v, want %v", name, err, test.want)
		}
		after, err := os.ReadFile(database)
		if err != nil || !bytes.Equal(after, before) {
			t.Fatalf("%s: the database was touched (%v)", name, err)
		}
		if left, _ := filepath.Glob(filepath.Join(data, "*.restore")); len(left) > 0 {
			t.Errorf("%s: left behind %v", name, left)
		}
	}
	if _, err := os.Stat(filepath.Join(data, "none.key")); err == nil {
		t.Error("a restore made a master key")
	}
}

func flip(b []byte, at int) []byte {
	b = bytes.Clone(b)
	b[at] ^= 1
	return b
}

func TestBackupsAreVerifiedListedAndDropped(t *testing.T) {
	s := start(t, func(c *config.Config) { c.Backup.Keep = 2 })
	newFleet(t, s, "a")
	var last server.Backup
	for range 4 {
		path, b := backupOf(t, s)
		v, err := server.VerifyBackup(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		if v.Backup == nil || v.Backup.SHA256 != b.SHA256 || v.Records == 0 || b.MasterKey == "" || len(b.DataKeys) != 1 || b.AuditSeq == 0 {
			t.Errorf("got %+v of %+v", v, b)
		}
		last = b
	}
	var out struct {
		Items []server.Backup `json:"items"`
	}
	s.call(t, s.admin, http.MethodGet, "/api/v1/backups", nil, http.StatusOK, &out)
	if len(out.Items) != 2 || out.Items[1].Name != last.Name {
		t.Errorf("got %+v, want the last two", out.Items)
	}
	files, err := os.ReadDir(filepath.Join(s.Config.Data, "backups"))
	if err != nil || len(files) != 4 {
		t.Errorf("got %d files, %v, want 2 copies and what is about them", len(files), err)
	}
	key, err := os.ReadFile(filepath.Join(s.Config.Data, "master.key"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		text, err := os.ReadFile(filepath.Join(s.Config.Data, "backups", f.Name()))
		if err != nil || bytes.Contains(text, bytes.TrimSpace(key)) {
			t.Errorf("%s holds the master key, or %v", f.Name(), err)
		}
	}
}
