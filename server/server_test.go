package server_test

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"testing"

	"keystead/config"
	"keystead/identity"
	"keystead/server"
)

// running is a whole server of the test's own, its HTTPS surface served by
// httptest.
type running struct {
	*server.Server
	url   string
	admin string // the API key of the first administrator
	org   string // the default organisation
}

// start builds a server in an empty directory. Changes to the configuration are
// made by the given functions.
func start(t testing.TB, change ...func(*config.Config)) *running {
	t.Helper()
	return startBy(t, server.Build, change...)
}

// startBy is start for a server that build makes.
func startBy(t testing.TB, build func(context.Context, config.Config, *slog.Logger) (*server.Server, error), change ...func(*config.Config)) *running {
	t.Helper()
	cfg := config.Default()
	cfg.Data = t.TempDir()
	cfg.Limits.PerAddress.PerSecond, cfg.Limits.PerCredential.PerSecond, cfg.Limits.Failures.PerSecond = 0, 0, 0 // they have tests of their own
	for _, c := range change {
		c(&cfg)
	}
	s, err := build(t.Context(), cfg, slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	ts := httptest.NewServer(s.Handler())
	t.Cleanup(ts.Close)
	b, err := os.ReadFile(filepath.Join(cfg.Data, "admin.json"))
	if err != nil {
		t.Fatal(err)
	}
	var admin struct {
		APIKey string `json:"api_key"`
		Org    string `json:"org"`
	}
	if err := json.Unmarshal(b, &admin); err != nil {
		t.Fatal(err)
	}
	return &running{Server: s, url: ts.URL, admin: admin.APIKey, org: admin.Org}
}

// call makes a request with a bearer token ("" for none) and a JSON body (nil
// for none), checks the exchange against openapi.yaml and the status, and
// decodes the answer into into, if that is not nil.
func (r *running) call(t *testing.T, token, method, path string, in any, status int, into any) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, r.url+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			t.Fatal(err)
		}
		req.Body = io.NopCloser(bytes.NewReader(b))
		req.Header.Set("Content-Type", "application/json")
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	if resp.StatusCode != status {
		t.Fatalf("%s %s = %d %s, want %d", method, path, resp.StatusCode, body, status)
	}
	checkContract(t, req, resp, body)
	if into != nil {
		if err := json.Unmarshal(body, into); err != nil {
			t.Fatalf("%s %s: %v in %s", method, path, err, body)
		}
	}
}

func TestWithoutCredential(t *testing.T) {
	s := start(t)
	for route, need := range s.Routes() {
		method, path, _ := bytes.Cut([]byte(route), []byte(" "))
		if need == identity.Public {
			continue
		}
		s.call(t, "", string(method), string(path), nil, http.StatusUnauthorized, nil)
	}
}
