package client_test

import (
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"keystead/client"
)

// dial returns a client of a server that answers with handle.
func dial(t *testing.T, handle http.HandlerFunc) *client.Client {
	t.Helper()
	s := httptest.NewTLSServer(handle)
	t.Cleanup(s.Close)
	c, err := client.New(client.Config{URL: s.URL, CAFile: caFile(t, s), APIKey: "the-key", Org: "the-org"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func caFile(t *testing.T, s *httptest.Server) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestEveryRequestCarriesTheCredential(t *testing.T) {
	c := dial(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer the-key" || r.Header.Get("X-Org-ID") != "the-org" || r.Header.Get("Accept") != "application/json" {
			t.Errorf("got %v", r.Header)
		}
		fmt.Fprint(w, `{"user":"u1","organisation":"o1"}`)
	})
	who, err := c.Whoami(t.Context())
	if err != nil || who.User != "u1" || who.Organisation != "o1" {
		t.Errorf("got %+v, %v", who, err)
	}
}

func TestAListGoesThroughItsPages(t *testing.T) {
	var cursors []string
	c := dial(t, func(w http.ResponseWriter, r *http.Request) {
		q := r.URL.Query()
		cursors = append(cursors, q.Get("cursor"))
		if q.Get("state") != "active" || q.Get("limit") != "500" {
			t.Errorf("got query %s", r.URL.RawQuery)
		}
		switch q.Get("cursor") {
		case "":
			fmt.Fprint(w, `{"items":[{"id":"a"},{"id":"b"}],"next":"two"}`)
		case "two":
			fmt.Fprint(w, `{"items":[{"id":"c"}],"next":"three"}`)
		default:
			fmt.Fprint(w, `{"items":[]}`)
		}
	})
	var got []string
	for d, err := range c.Devices(t.Context(), client.DeviceFilter{State: "active"}) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, d.ID)
	}
	if strings.Join(got, " ") != "a b c" || strings.Join(cursors, " ") != " two three" {
		t.Errorf("got %q over the pages %q", got, cursors)
	}

	cursors = nil
	for range c.Devices(t.Context(), client.DeviceFilter{State: "active"}) {
		break
	}
	if len(cursors) != 1 {
		t.Errorf("got %d pages for one item, want 1", len(cursors))
	}
}

func TestAListEndsAtItsFirstError(t *testing.T) {
	c := dial(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("cursor") != "" {
			w.WriteHeader(http.StatusServiceUnavailable)
			return
		}
		fmt.Fprint(w, `{"items":[{"id":"a"}],"next":"two"}`)
	})
	items, failures := 0, 0
	for _, err := range c.Devices(t.Context(), client.DeviceFilter{}) {
		if err != nil {
			failures++
		} else {
			items++
		}
	}
	if items != 1 || failures != 1 {
		t.Errorf("got %d items and %d errors, want one of each", items, failures)
	}
}

func TestErrors(t *testing.T) {
	for name, tc := range map[string]struct {
		status int
		header string
		body   string
		want   client.Error
		text   string
	}{
		"the server's own": {
			status: 409, body: `{"error":"it is there already","code":"conflict","request_id":"r1"}`,
			want: client.Error{Status: 409, Message: "it is there already", Code: "conflict", RequestID: "r1"}, text: "it is there already",
		},
		"with fields": {
			status: 400, body: `{"error":"name: too long","code":"invalid","request_id":"r2","fields":[{"field":"name","message":"too long"},{"field":"label","message":"too many"}]}`,
			want: client.Error{Status: 400, Message: "name: too long", Code: "invalid", RequestID: "r2"}, text: "name: too long; label: too many",
		},
		"of a proxy between": {
			status: 502, body: "<html>bad gateway</html>",
			want: client.Error{Status: 502, Message: "the server answered 502 Bad Gateway: <html>bad gateway</html>"}, text: "the server answered 502 Bad Gateway: <html>bad gateway</html>",
		},
		"without a body, to come back later": {
			status: 503, header: "7",
			want: client.Error{Status: 503, Message: "the server answered 503 Service Unavailable", RetryAfter: 7 * time.Second}, text: "the server answered 503 Service Unavailable",
		},
		"a redirect, which is not followed": {
			status: 302, want: client.Error{Status: 302, Message: "the server answered 302 Found"}, text: "the server answered 302 Found",
		},
	} {
		c := dial(t, func(w http.ResponseWriter, _ *http.Request) {
			if tc.header != "" {
				w.Header().Set("Retry-After", tc.header)
			}
			w.Header().Set("Location", "https://elsewhere.example/")
			w.WriteHeader(tc.status)
			fmt.Fprint(w, tc.body)
		})
		_, err := c.Device(t.Context(), "d1")
		got, ok := errors.AsType[*client.Error](err)
		if !ok {
			t.Errorf("%s: got %v, want a *client.Error", name, err)
			continue
		}
		if got.Status != tc.want.Status || got.Message != tc.want.Message || got.Code != tc.want.Code || got.RequestID != tc.want.RequestID || got.RetryAfter != tc.want.RetryAfter {
			t.Errorf("%s: got %+v, want %+v", name, got, tc.want)
		}
		if got.Error() != tc.text || !client.IsStatus(err, tc.status) {
			t.Errorf("%s: got %q, want %q", name, got.Error(), tc.text)
		}
	}
}

func TestWhatIsNoJSONIsAnError(t *testing.T) {
	c := dial(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "hello") })
	if _, err := c.Whoami(t.Context()); err == nil || !strings.Contains(err.Error(), "something else than expected") {
		t.Errorf("got %v", err)
	}
}

func TestPathsAreEscaped(t *testing.T) {
	c := dial(t, func(w http.ResponseWriter, r *http.Request) {
		if want := "/api/v1/devices/a%2F..%2F%3Fb"; r.URL.EscapedPath() != want {
			t.Errorf("got %s, want %s", r.URL.EscapedPath(), want)
		}
		w.WriteHeader(http.StatusNoContent)
	})
	if err := c.DeleteDevice(t.Context(), "a/../?b"); err != nil {
		t.Error(err)
	}
}

func TestTheCertificateIsChecked(t *testing.T) {
	s := httptest.NewTLSServer(http.NotFoundHandler())
	t.Cleanup(s.Close)
	for name, conf := range map[string]client.Config{
		"by the system's CAs": {URL: s.URL},
		"for the name":        {URL: "https://another.test", CAFile: caFile(t, s), Dial: strings.TrimPrefix(s.URL, "https://")},
	} {
		c, err := client.New(conf)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Whoami(t.Context()); err == nil || client.IsStatus(err, http.StatusNotFound) {
			t.Errorf("%s: got %v, want it refused", name, err)
		}
		c.Close()
	}
}

// A server on this machine is reached where it is bound, under the name of its
// public URL.
func TestDialAnotherAddress(t *testing.T) {
	s := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if host, _, _ := net.SplitHostPort(r.Host); host != "example.com" { // a name of httptest's certificate
			t.Errorf("got Host %s", r.Host)
		}
		fmt.Fprint(w, `{}`)
	}))
	t.Cleanup(s.Close)
	c, err := client.New(client.Config{URL: "https://example.com:8443", CAFile: caFile(t, s), Dial: strings.TrimPrefix(s.URL, "https://")})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	if _, err := c.Whoami(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestConfigurationsThatCannotWork(t *testing.T) {
	empty := filepath.Join(t.TempDir(), "empty.pem")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, conf := range map[string]client.Config{
		"no URL":                    {},
		"plain HTTP":                {URL: "http://localhost:8443"},
		"no host":                   {URL: "https://"},
		"a CA file that is not":     {URL: "https://localhost", CAFile: filepath.Join(t.TempDir(), "none")},
		"a CA file without a CA":    {URL: "https://localhost", CAFile: empty},
		"a URL that is none at all": {URL: "https://local host"},
	} {
		if _, err := client.New(conf); err == nil {
			t.Errorf("%s: got no error", name)
		}
	}
}
