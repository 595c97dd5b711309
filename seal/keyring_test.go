package seal_test

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"keystead/seal"
)

var now = time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)

// master returns the master key in an environment variable.
func master(t *testing.T, key string) *seal.Master {
	t.Helper()
	m, err := seal.Source{Kind: seal.FromEnv, Variable: "K"}.Master(seal.Place{Getenv: func(string) string { return key }})
	if err != nil {
		t.Fatal(err)
	}
	return m
}

var (
	keyA = strings.Repeat("a1", 32)
	keyB = strings.Repeat("b2", 32)
)

func newRing(t *testing.T) *seal.Keyring {
	t.Helper()
	k, err := seal.NewKeyring(master(t, keyA), now)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func record(t *testing.T, k *seal.Keyring) []byte {
	t.Helper()
	r, err := k.Record()
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func mustOpen(t *testing.T, b *seal.Box, sealed []byte) {
	t.Helper()
	if got, err := b.Open("p", sealed); err != nil || string(got) != "x" {
		t.Errorf("got %q, %v, want x", []byte(got), err)
	}
}

func keep(into *[]byte) func([]byte) error {
	return func(r []byte) error { *into = r; return nil }
}

func TestRingOpensWhatItSealedBeforeARestart(t *testing.T) {
	k := newRing(t)
	sealed := k.Box("psk").Seal("p", []byte("x"))
	again, err := seal.OpenKeyring(master(t, keyA), record(t, k))
	if err != nil {
		t.Fatal(err)
	}
	mustOpen(t, again.Box("psk"), sealed)
	if _, err := again.Box("ca").Open("p", sealed); !errors.Is(err, seal.ErrOpen) {
		t.Errorf("another class: got %v, want %v", err, seal.ErrOpen)
	}
}

func TestOldKeysStayReadable(t *testing.T) {
	k := newRing(t)
	b := k.Box("psk")
	var kept []byte
	var values [][]byte
	for range 5 {
		values = append(values, b.Seal("p", []byte("x")))
		if err := k.Rotate(now, keep(&kept)); err != nil {
			t.Fatal(err)
		}
	}
	again, err := seal.OpenKeyring(master(t, keyA), kept)
	if err != nil {
		t.Fatal(err)
	}
	for i, sealed := range values {
		if id, ok := seal.KeyID(sealed); !ok || id != uint32(i+1) {
			t.Errorf("value %d: got key %d, want %d", i, id, i+1)
		}
		mustOpen(t, b, sealed)
		mustOpen(t, again.Box("psk"), sealed)
	}
	if got := again.Keys(); len(got) != 6 || got[5].ID != 6 {
		t.Errorf("got keys %v, want 1 to 6", got)
	}
}

func TestResealMovesToTheNewestKey(t *testing.T) {
	k := newRing(t)
	b := k.Box("psk")
	old := b.Seal("p", []byte("x"))
	if _, changed, err := b.Reseal("p", old); changed || err != nil {
		t.Errorf("the newest key already: got changed %t, %v", changed, err)
	}
	var kept []byte
	if err := k.Rotate(now, keep(&kept)); err != nil {
		t.Fatal(err)
	}
	fresh, changed, err := b.Reseal("p", old)
	if err != nil || !changed {
		t.Fatalf("got changed %t, %v, want a change", changed, err)
	}
	if id, _ := seal.KeyID(fresh); id != 2 {
		t.Errorf("got key %d, want 2", id)
	}
	if _, _, err := b.Reseal("q", old); !errors.Is(err, seal.ErrOpen) {
		t.Errorf("another place: got %v, want %v", err, seal.ErrOpen)
	}
	if err := k.Forget(keep(&kept)); err != nil {
		t.Fatal(err)
	}
	mustOpen(t, b, fresh)
	if _, err := b.Open("p", old); !errors.Is(err, seal.ErrOpen) {
		t.Errorf("a forgotten key: got %v, want %v", err, seal.ErrOpen)
	}
}

// What could not be kept must not be sealed with: it would be lost at the next start.
func TestKeyThatWasNotKeptIsNotUsed(t *testing.T) {
	k := newRing(t)
	full := errors.New("disk full")
	fail := func([]byte) error { return full }
	for what, err := range map[string]error{
		"rotate": k.Rotate(now, fail), "forget": k.Forget(fail), "master": k.ChangeMaster(master(t, keyB), fail),
	} {
		if !errors.Is(err, full) {
			t.Errorf("%s: got %v, want %v", what, err, full)
		}
	}
	if id, _ := seal.KeyID(k.Box("psk").Seal("p", nil)); id != 1 {
		t.Errorf("got key %d, want 1", id)
	}
	if _, err := seal.OpenKeyring(master(t, keyA), record(t, k)); err != nil {
		t.Errorf("the old master key: %v", err)
	}
}

func TestWrongMasterKeyIsRefused(t *testing.T) {
	k := newRing(t)
	_, err := seal.OpenKeyring(master(t, keyB), record(t, k))
	if !errors.Is(err, seal.ErrMaster) || !strings.Contains(err.Error(), k.Master()) {
		t.Errorf("got %v, want %v and the fingerprint %s", err, seal.ErrMaster, k.Master())
	}
	sealed := k.Box("psk").Seal("p", []byte("x"))
	var kept []byte
	if err := k.ChangeMaster(master(t, keyB), keep(&kept)); err != nil {
		t.Fatal(err)
	}
	if _, err := seal.OpenKeyring(master(t, keyA), kept); !errors.Is(err, seal.ErrMaster) {
		t.Errorf("the old one after a change: got %v, want %v", err, seal.ErrMaster)
	}
	again, err := seal.OpenKeyring(master(t, keyB), kept)
	if err != nil {
		t.Fatal(err)
	}
	mustOpen(t, again.Box("psk"), sealed)
}

func TestDamagedRecordIsRefused(t *testing.T) {
	kept := record(t, newRing(t))
	for i := range kept {
		bad := bytes.Clone(kept)
		bad[i] ^= 1
		if k, err := seal.OpenKeyring(master(t, keyA), bad); err == nil && len(k.Keys()) != 1 {
			t.Errorf("byte %d turned: opened with keys %v", i, k.Keys())
		}
	}
	var fields map[string]any
	if err := json.Unmarshal(kept, &fields); err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string]any{
		"format": 2, "sealed": "AAAA", "kdf": map[string]any{"name": "argon2id", "salt": "AAAAAAAAAAA=", "time": 1 << 30, "memory": 1 << 30, "threads": 1},
	} {
		bad := maps.Clone(fields)
		bad[name] = value
		text, err := json.Marshal(bad)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := seal.OpenKeyring(master(t, keyA), text); err == nil {
			t.Errorf("%s replaced: opened", name)
		}
	}
}

func TestRecordTellsNoKey(t *testing.T) {
	k := newRing(t)
	text := string(record(t, k))
	raw, _ := hex.DecodeString(keyA)
	for _, leak := range []string{keyA, string(raw), base64.StdEncoding.EncodeToString(raw)} {
		if strings.Contains(text, leak) {
			t.Error("the record holds the master key")
		}
	}
}

func TestDue(t *testing.T) {
	k := newRing(t)
	if k.Due(now.Add(364 * 24 * time.Hour)) {
		t.Error("due after 364 days")
	}
	if !k.Due(now.Add(365 * 24 * time.Hour)) {
		t.Error("not due after 365 days")
	}
}

func TestRotateWhileOthersSeal(t *testing.T) {
	k := newRing(t)
	b := k.Box("psk")
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 200 {
				if got, err := b.Open("p", b.Seal("p", []byte("x"))); err != nil || string(got) != "x" {
					t.Errorf("got %q, %v", []byte(got), err)
				}
			}
		})
	}
	var kept []byte
	for range 20 {
		if err := k.Rotate(now, keep(&kept)); err != nil {
			t.Error(err)
		}
	}
	wg.Wait()
}

func write(t *testing.T, name, text string, mode os.FileMode) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestSources(t *testing.T) {
	raw, _ := hex.DecodeString(keyA)
	dir := filepath.Dir(write(t, "cred", keyA, 0o440))
	env := func(vars map[string]string) func(string) string { return func(n string) string { return vars[n] } }
	for _, test := range []struct {
		name   string
		source seal.Source
		env    map[string]string
		err    string
	}{
		{name: "file in hex", source: seal.Source{Kind: seal.FromFile, File: write(t, "k", keyA+"\n", 0o600)}},
		{name: "file in base64", source: seal.Source{Kind: seal.FromFile, File: write(t, "k", base64.StdEncoding.EncodeToString(raw), 0o400)}},
		{name: "file of bytes", source: seal.Source{Kind: seal.FromFile, File: write(t, "k", string(raw), 0o600)}},
		{name: "file the group may read", source: seal.Source{Kind: seal.FromFile, File: write(t, "k", keyA, 0o640)}, err: "chmod 600"},
		{name: "file all may read", source: seal.Source{Kind: seal.FromFile, File: write(t, "k", keyA, 0o604)}, err: "chmod 600"},
		{name: "file too short", source: seal.Source{Kind: seal.FromFile, File: write(t, "k", keyA[2:], 0o600)}, err: "is not a key"},
		{name: "empty file", source: seal.Source{Kind: seal.FromFile, File: write(t, "k", "", 0o600)}, err: "is not a key"},
		{name: "large file", source: seal.Source{Kind: seal.FromFile, File: write(t, "k", strings.Repeat("a", 5000), 0o600)}, err: "too large"},
		{name: "directory", source: seal.Source{Kind: seal.FromFile, File: t.TempDir()}, err: "is not a file"},
		{name: "no file", source: seal.Source{Kind: seal.FromFile, File: "/nonexistent/k"}, err: "is missing; put back"},
		{name: "environment", source: seal.Source{Kind: seal.FromEnv, Variable: "X"}, env: map[string]string{"X": keyA}},
		{name: "environment without it", source: seal.Source{Kind: seal.FromEnv, Variable: "X"}, err: "X is not set"},
		{name: "credential", source: seal.Source{Kind: seal.FromCredential, Credential: "cred"}, env: map[string]string{"CREDENTIALS_DIRECTORY": dir}},
		{name: "credential without systemd", source: seal.Source{Kind: seal.FromCredential, Credential: "cred"}, err: "LoadCredential"},
		{name: "no such credential", source: seal.Source{Kind: seal.FromCredential, Credential: "other"}, env: map[string]string{"CREDENTIALS_DIRECTORY": dir}, err: "no credential other"},
		{name: "credential elsewhere", source: seal.Source{Kind: seal.FromCredential, Credential: "../cred"}, env: map[string]string{"CREDENTIALS_DIRECTORY": dir}, err: "not the name"},
		{name: "no passphrase", source: seal.Source{Kind: seal.FromPassphrase}, err: "no passphrase"},
		{name: "short passphrase", source: seal.Source{Kind: seal.FromPassphrase}, env: map[string]string{"KEYSTEAD_PASSPHRASE": "12345678901"}, err: "shorter"},
		{name: "unknown", source: seal.Source{Kind: "stone"}, err: "is not one of"},
	} {
		t.Run(test.name, func(t *testing.T) {
			m, err := test.source.Master(seal.Place{Getenv: env(test.env)})
			if test.err != "" {
				if err == nil || !strings.Contains(err.Error(), test.err) {
					t.Errorf("got %v, want %q in it", err, test.err)
				}
				if err != nil && strings.Contains(err.Error(), keyA[:16]) {
					t.Errorf("the error tells the key: %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if _, err := seal.OpenKeyring(m, record(t, newRing(t))); err != nil {
				t.Errorf("not the same key: %v", err)
			}
		})
	}
}

func TestPassphrase(t *testing.T) {
	from := func(phrase string) *seal.Master {
		m, err := seal.Source{Kind: seal.FromPassphrase, PassphraseFile: write(t, "p", phrase+"\n", 0o600)}.Master(seal.Place{})
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
	k, err := seal.NewKeyring(from("correct horse battery"), now)
	if err != nil {
		t.Fatal(err)
	}
	sealed, kept := k.Box("psk").Seal("p", []byte("x")), record(t, k)
	again, err := seal.OpenKeyring(from("correct horse battery"), kept)
	if err != nil {
		t.Fatal(err)
	}
	mustOpen(t, again.Box("psk"), sealed)
	if _, err := seal.OpenKeyring(from("correct horse batterz"), kept); !errors.Is(err, seal.ErrMaster) {
		t.Errorf("another passphrase: got %v, want %v", err, seal.ErrMaster)
	}
	if _, err := seal.OpenKeyring(master(t, keyA), kept); !errors.Is(err, seal.ErrMaster) || !strings.Contains(err.Error(), "passphrase") {
		t.Errorf("a key for a passphrase: got %v", err)
	}
	if _, err := seal.OpenKeyring(from("correct horse battery"), record(t, newRing(t))); !errors.Is(err, seal.ErrMaster) {
		t.Errorf("a passphrase for a key: got %v", err)
	}
}

func TestFirstStartMakesAFileOnlyItsOwnerReads(t *testing.T) {
	dir := t.TempDir()
	at := seal.Place{Dir: dir, Create: true}
	s := seal.DefaultSource()
	first, err := s.Master(at)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(filepath.Join(dir, s.File))
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("got %v, %v, want mode 0600", info.Mode(), err)
	}
	k, err := seal.NewKeyring(first, now)
	if err != nil {
		t.Fatal(err)
	}
	second, err := s.Master(at)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := seal.OpenKeyring(second, record(t, k)); err != nil {
		t.Errorf("a second start made another key: %v", err)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, "*.new-*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func FuzzOpenKeyring(f *testing.F) {
	m, err := seal.Source{Kind: seal.FromEnv, Variable: "K"}.Master(seal.Place{Getenv: func(string) string { return keyA }})
	if err != nil {
		f.Fatal(err)
	}
	k, err := seal.NewKeyring(m, now)
	if err != nil {
		f.Fatal(err)
	}
	kept, err := k.Record()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(kept)
	f.Add([]byte(`{"format":1,"kdf":{}}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		if k, err := seal.OpenKeyring(m, text); err == nil && len(k.Keys()) != 1 {
			t.Errorf("%q opened with keys %v", text, k.Keys())
		}
	})
}
