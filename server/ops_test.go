package server_test

import (
	"encoding/json"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	"keystead/config"
)

func opsGet(t *testing.T, h http.Handler, path string) (int, string) {
	t.Helper()
	w := httptest.NewRecorder()
	h.ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil))
	body, err := io.ReadAll(w.Body)
	if err != nil {
		t.Fatal(err)
	}
	return w.Code, string(body)
}

func TestReadinessSaysWhy(t *testing.T) {
	s := start(t)
	ops := s.OpsHandler()
	if status, body := opsGet(t, ops, "/livez"); status != http.StatusOK || body != "ok\n" {
		t.Errorf("livez: got %d %q", status, body)
	}
	status, body := opsGet(t, ops, "/readyz?verbose")
	var out struct {
		State  string `json:"state"`
		Checks []struct {
			Name, State, Note string
		} `json:"checks"`
	}
	if err := json.Unmarshal([]byte(body), &out); err != nil {
		t.Fatal(err)
	}
	if status != http.StatusServiceUnavailable || out.State != "failed" || len(out.Checks) < 4 || !strings.Contains(out.Checks[0].Note, "starting") {
		t.Errorf("before it runs: got %d %s", status, body)
	}
	for _, c := range out.Checks[1:3] {
		if c.State != "ok" {
			t.Errorf("got %+v, want ok", c)
		}
	}
}

func TestMetricsCountByRouteAndNameNobody(t *testing.T) {
	s := start(t)
	s.call(t, s.admin, http.MethodPost, "/api/v1/devices", map[string]string{"name": "canary-name"}, http.StatusCreated, nil)
	s.call(t, s.admin, http.MethodGet, "/api/v1/devices/nobody-has-this-id", nil, http.StatusNotFound, nil)
	s.get(t, "/no/such/path/canary-path")
	s.get(t, "/api/v1/whoami", "Authorization: Bearer canary-token")
	status, body := opsGet(t, s.OpsHandler(), "/metrics")
	if status != http.StatusOK {
		t.Fatalf("got %d", status)
	}
	for _, want := range []string{
		`keystead_http_requests_total{code="201",method="POST",route="/api/v1/devices"} 1`,
		`keystead_http_requests_total{code="404",method="GET",route="/api/v1/devices/:id"} 1`,
		`keystead_http_requests_total{code="404",method="GET",route="none"} 1`,
		`keystead_http_request_duration_seconds_count{route="/api/v1/devices"} 1`,
		`keystead_auth_failures_total{reason="bearer",surface="https"} 1`,
		`keystead_build_info{`, `keystead_store_size_bytes`, `keystead_store_updates_total`, `keystead_audit_records_total`,
		`keystead_dtls_handshakes_total{result="ok"} 0`, `keystead_dtls_connections 0`, `keystead_sealed 0`, `go_goroutines`, `process_resident_memory_bytes`,
	} {
		if !strings.Contains(body, want) {
			t.Errorf("the metrics have no %s", want)
		}
	}
	for _, leak := range []string{"canary", "nobody-has-this-id", s.admin, s.org} {
		if strings.Contains(body, leak) {
			t.Errorf("the metrics have %q in them", leak)
		}
	}
}

// The service manager hears that the server is ready, and that it stops.
func TestServiceManagerIsTold(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer manager.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	t.Run("server", func(t *testing.T) {
		s := start(t, func(c *config.Config) {
			c.HTTPS.Listen, c.HTTP.Listen, c.Ops.Listen, c.CoAP.UDP, c.CoAP.TCP = "", "", "127.0.0.1:0", "", ""
		})
		if err := s.Listen(t.Context()); err != nil {
			t.Fatal(err)
		}
		serve(t, s.Server)
		hears(t, manager, "READY=1")
	})
	hears(t, manager, "STOPPING=1")
}

func hears(t *testing.T, c *net.UnixConn, want string) {
	t.Helper()
	b := make([]byte, 4096)
	n, err := c.Read(b)
	if err != nil || !strings.HasPrefix(string(b[:n]), want) {
		t.Errorf("got %q, %v, want %s", b[:n], err, want)
	}
}
