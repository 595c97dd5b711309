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
	"keystead/psk"
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

// A new data key seals from then on; what the old ones sealed opens all the same,
// and after a rewrap none of it is left under them.
func TestDataKeysRotateWhileEverythingOpens(t *testing.T) {
	data := t.TempDir()
	s := start(t, in(data))
	f := newFleet(t, s, "a", "b", "c")
	secret := func(name string) string {
		t.Helper()
		k, err := s.PSK.Secret(t.Context(), psk.Identity(f.psk[name]))
		if err != nil {
			t.Fatal(err)
		}
		return string(k)
	}
	before := secret("a")
	var keys struct {
		Items []struct {
			ID      int  `json:"id"`
			Current bool `json:"current"`
		} `json:"items"`
	}
	for range 2 {
		s.call(t, s.admin, http.MethodPost, "/api/v1/data-keys/rotate", struct{}{}, http.StatusOK, &keys)
	}
	if len(keys.Items) != 3 || !keys.Items[2].Current || keys.Items[0].Current {
		t.Fatalf("got %+v, want 3 keys, the last of them current", keys)
	}
	if got := secret("a"); got != before {
		t.Error("what an old key sealed opens to something else")
	}
	var out struct {
		Resealed map[string]int `json:"resealed"`
	}
	s.call(t, s.admin, http.MethodPost, "/api/v1/data-keys/rewrap", struct{}{}, http.StatusOK, &out)
	if out.Resealed["psk"] != 3 || out.Resealed["server_secret"] < 4 || out.Resealed["ca_key"] < 2 || out.Resealed["signing_key"] < 1 {
		t.Errorf("got %v, want every kind of secret", out.Resealed)
	}
	if got := secret("a"); got != before {
		t.Error("what was sealed again opens to something else")
	}
	s.call(t, s.admin, http.MethodPost, "/api/v1/data-keys/rewrap", struct{}{}, http.StatusOK, &out)
	for kind, n := range out.Resealed {
		if n != 0 {
			t.Errorf("%s: %d values were left under an old key", kind, n)
		}
	}
	s.Close()
	s = start(t, in(data)) // everything the server itself needs opens
	if got := secret("a"); got != before {
		t.Error("after a restart it opens to something else")
	}
}
