package server_test

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"keystead/config"
	"keystead/server"
)

// build is server.Build in a data directory that outlives the server.
func build(t *testing.T, data string) (*server.Server, error) {
	t.Helper()
	cfg := config.Default()
	cfg.Data = data
	return server.Build(t.Context(), cfg, slog.New(slog.NewTextHandler(t.Output(), nil)))
}

func TestMasterKeyThatDoesNotFitIsRefused(t *testing.T) {
	data := t.TempDir()
	s, err := build(t, data)
	if err != nil {
		t.Fatal(err)
	}
	s.Close()
	path := filepath.Join(data, "master.key")
	right, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		change func() error
		want   string
	}{
		"another":         {func() error { return os.WriteFile(path, []byte(strings.Repeat("00", 32)), 0o600) }, "wrong master key"},
		"not a key":       {func() error { return os.WriteFile(path, []byte("hello"), 0o600) }, "is not a key"},
		"none":            {func() error { return os.Remove(path) }, "is missing; put back"},
		"readable to all": {func() error { return os.Chmod(path, 0o644) }, "chmod 600"},
	} {
		if err := test.change(); err != nil {
			t.Fatal(err)
		}
		if s, err := build(t, data); err == nil {
			s.Close()
			t.Errorf("%s: the server started", name)
		} else if !strings.Contains(err.Error(), test.want) {
			t.Errorf("%s: got %v, want %q in it", name, err, test.want)
		}
		if err := os.WriteFile(path, right, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := build(t, data) // nothing was overwritten
		if err != nil {
			t.Fatalf("%s: with the right one again: %v", name, err)
		}
		s.Close()
	}
}

// A key of a device is nowhere in what the server keeps, in whatever writing.
func TestNoSecretInTheDataDirectory(t *testing.T) {
	data := t.TempDir()
	s := start(t, func(c *config.Config) { c.Data = data })
	secret := []byte("canary-0123456789abcdef")
	s.call(t, s.admin, http.MethodPost, "/identities/psk", map[string]string{"Identity": "urn:canary", "Secret": hex.EncodeToString(secret)}, http.StatusCreated, nil)
	forms := [][]byte{
		secret, []byte(hex.EncodeToString(secret)), []byte(strings.ToUpper(hex.EncodeToString(secret))),
		[]byte(base64.StdEncoding.EncodeToString(secret)[:28]), []byte(base64.RawURLEncoding.EncodeToString(secret)[:28]),
	}
	seen := 0
	err := filepath.WalkDir(data, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if bytes.Contains(text, []byte("urn:canary")) {
			seen++
		}
		for _, form := range forms {
			if bytes.Contains(text, form) {
				t.Errorf("%s holds the key as %q", path, form)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if seen == 0 {
		t.Error("the identity is in no file: this test looked in the wrong place")
	}
}
