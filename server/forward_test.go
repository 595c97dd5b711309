package server_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"keystead/config"
	"keystead/identity"
)

// behind is what devices are passed on to: it keeps what it was asked.
type behind struct {
	url   string
	mu    sync.Mutex
	asked []*http.Request
	sums  []string // of their bodies
}

func newBehind(t *testing.T) *behind {
	t.Helper()
	b := &behind{}
	front := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Upgrade") != "" {
			b.webSocket(t, w, r)
			return
		}
		if r.URL.Path == "/base/api/devices/v1/slow" {
			<-r.Context().Done()
			return
		}
		sum := sha256.New()
		_, _ = io.Copy(sum, r.Body)
		b.mu.Lock()
		b.asked, b.sums = append(b.asked, r), append(b.sums, hex.EncodeToString(sum.Sum(nil)))
		b.mu.Unlock()
		w.Header().Set("X-Behind", "yes")
		w.Header().Set("Set-Cookie", "__Host-keystead=evil")
		w.WriteHeader(http.StatusAccepted)
		fmt.Fprint(w, "answer")
	}))
	t.Cleanup(front.Close)
	b.url = front.URL + "/base"
	return b
}

// webSocket changes protocols and sends back what it gets, in capitals.
func (b *behind) webSocket(t *testing.T, w http.ResponseWriter, r *http.Request) {
	conn, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		t.Error(err)
		return
	}
	defer conn.Close()
	b.mu.Lock()
	b.asked = append(b.asked, r)
	b.mu.Unlock()
	fmt.Fprintf(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
	for {
		line, err := rw.ReadString('\n')
		if err != nil {
			return
		}
		fmt.Fprint(conn, strings.ToUpper(line))
	}
}

// last is the last request, and how many there were.
func (b *behind) last() (*http.Request, int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.asked) == 0 {
		return nil, 0
	}
	return b.asked[len(b.asked)-1], len(b.asked)
}

// forwarding is a server that passes requests on.
func (b *behind) forwarding(t *testing.T, change ...func(*config.Config)) *running {
	t.Helper()
	return start(t, append([]func(*config.Config){func(c *config.Config) { c.Forward.Upstream = b.url }}, change...)...)
}

// raw sends bytes as they are and returns the status of the first answer and all that came.
func (r *running) raw(t *testing.T, text string) (status int, all string) {
	t.Helper()
	conn, err := net.Dial("tcp", strings.TrimPrefix(r.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	if _, err := io.WriteString(conn, text); err != nil {
		t.Fatal(err)
	}
	b, _ := io.ReadAll(conn)
	_, _ = fmt.Sscanf(string(b), "HTTP/1.1 %d", &status)
	return status, string(b)
}

const inventory = "/api/devices/v1/inventory/device/attributes"

func TestForward(t *testing.T) {
	t.Parallel()
	b := newBehind(t)
	s := b.forwarding(t)
	_, id, token := s.accepted(t, "1")
	body := bytes.Repeat([]byte("0123456789abcdef"), 5<<20/16)
	for name, reader := range map[string]io.Reader{"with a length": bytes.NewReader(body), "in chunks": io.MultiReader(bytes.NewReader(body))} {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, s.url+inventory+"?a=1&b=%2F", reader)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+token)
		req.Header.Set("Content-Type", "application/json")
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		text, _ := io.ReadAll(res.Body)
		res.Body.Close()
		if res.StatusCode != http.StatusAccepted || string(text) != "answer" || res.Header.Get("X-Behind") != "yes" || res.Header.Get("Set-Cookie") != "" || len(res.Header.Values("X-Request-Id")) != 1 {
			t.Errorf("%s: got %d %s %v", name, res.StatusCode, text, res.Header)
		}
		got, n := b.last()
		if got == nil {
			t.Fatalf("%s: nothing was passed on", name)
		}
		want := sha256.Sum256(body)
		if got.URL.Path != "/base"+inventory || got.URL.RawQuery != "a=1&b=%2F" || got.Method != http.MethodPut || b.sums[n-1] != hex.EncodeToString(want[:]) {
			t.Errorf("%s: got %s %s", name, got.Method, got.URL)
		}
		for header, want := range map[string]string{
			"X-Keystead-Device": id, "X-Keystead-Org": s.org, "X-Keystead-Credential": "device_token", "Authorization": "", "Content-Type": "application/json", "X-Forwarded-For": "127.0.0.1",
		} {
			if v := strings.Join(got.Header.Values(header), " "); v != want {
				t.Errorf("%s: %s is %q, want %q", name, header, v, want)
			}
		}
	}
}

// TestForwardHeaders: whatever a client writes, who it is says the server alone.
func TestForwardHeaders(t *testing.T) {
	t.Parallel()
	b := newBehind(t)
	s := b.forwarding(t)
	_, id, token := s.accepted(t, "1")
	for _, headers := range []string{
		"X-Keystead-Device: evil",
		"x-keystead-device: evil",
		"X-KEYSTEAD-DEVICE: evil\r\nX-Keystead-Device: evil",
		"X_Keystead_Device: evil",
		"X-Keystead_Device: evil\r\nX_KEYSTEAD-ORG: evil",
		"X-Keystead-Org: evil",
		"X-Keystead-Credential: evil",
		"X-Keystead-Anything: evil",
		"Connection: X-Keystead-Device",
		"Connection: close, x-keystead-org, X-Keystead-Credential",
		"Connection: X-Keystead-Device\r\nX-Keystead-Device: evil",
		"Connection: keep-alive, Authorization",
		"Keep-Alive: X-Keystead-Device\r\nProxy-Connection: X-Keystead-Device",
		"X-Forwarded-For: evil\r\nX-Forwarded-Host: evil\r\nX-Forwarded-Proto: evil\r\nX-Forwarded-User: evil",
		"Forwarded: for=evil\r\nX-Real-IP: evil\r\nTrue-Client-IP: evil\r\nX-Client-IP: evil",
		"X_Forwarded_For: evil\r\nX_Real_IP: evil",
		"X-Gateway-Key: evil\r\nCookie: __Host-keystead=evil",
		"X-Original-URL: /evil\r\nX-Rewrite-URL: /evil",
		"Host: evil",
		"TE: trailers\r\nTrailer: X-Keystead-Device\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nX-Keystead-Device: evil",
		" X-Keystead-Device: evil",
		"X-Keystead-Device : evil",
		"X-A: b\r\n X-Keystead-Device: evil",
		"X-A: b\n\rX-Keystead-Device: evil",
		"X-A: b\rX-Keystead-Device: evil",
		"X-A\x00: X-Keystead-Device: evil",
		"Authorization: Bearer " + token,
		"X-Org-ID: evil",
	} {
		_, before := b.last()
		host := "Host: here\r\n"
		if strings.HasPrefix(headers, "Host") {
			host = ""
		}
		status, all := s.raw(t, "POST "+inventory+" HTTP/1.1\r\n"+host+"Authorization: Bearer "+token+"\r\n"+headers+"\r\nConnection: close\r\n\r\n")
		got, n := b.last()
		if n == before {
			if status < 400 || status > 499 {
				t.Errorf("%q: got %d %s", headers, status, all)
			}
			continue // refused is as good
		}
		if n != before+1 || status != 202 {
			t.Errorf("%q: got %d, and %d requests passed on", headers, status, n-before)
		}
		for name, values := range got.Header {
			switch text := strings.Join(values, "|"); strings.ReplaceAll(strings.ToLower(name), "_", "-") {
			case "x-keystead-device":
				if text != id {
					t.Errorf("%q: %s is %q", headers, name, text)
				}
			case "x-keystead-org":
				if text != s.org {
					t.Errorf("%q: %s is %q", headers, name, text)
				}
			case "x-keystead-credential":
				if text != "device_token" {
					t.Errorf("%q: %s is %q", headers, name, text)
				}
			case "x-forwarded-host": // what it asked for
			default:
				if strings.Contains(text, "evil") && name != "X-A" {
					t.Errorf("%q: %s: %s was passed on", headers, name, text)
				}
			}
		}
		if got.Header.Get("X-Keystead-Device") != id || got.Header.Get("Authorization") != "" || got.Host == "evil" || len(got.Trailer) != 0 {
			t.Errorf("%q: passed on as %v, trailer %v", headers, got.Header, got.Trailer)
		}
	}
}

// TestForwardSmuggling: a request within a request is none, or one that has to prove itself.
func TestForwardSmuggling(t *testing.T) {
	t.Parallel()
	b := newBehind(t)
	s := b.forwarding(t)
	_, _, token := s.accepted(t, "1")
	const inner = "GET /api/devices/v1/smuggled HTTP/1.1\r\nHost: here\r\n\r\n"
	for name, text := range map[string]string{
		"CL.TE":             "Content-Length: " + strconv.Itoa(len("0\r\n\r\n"+inner)) + "\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n" + inner,
		"TE.CL":             "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n" + fmt.Sprintf("%x\r\n%s\r\n0\r\n\r\n", len(inner), inner),
		"TE.TE":             "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n" + inner,
		"TE with a tab":     "Transfer-Encoding:\tchunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n" + inner,
		"TE of its own":     "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n" + inner,
		"two lengths":       "Content-Length: 0\r\nContent-Length: " + strconv.Itoa(len(inner)) + "\r\n\r\n" + inner,
		"a signed length":   "Content-Length: +0\r\n\r\n" + inner,
		"after the body":    "Content-Length: 0\r\n\r\n" + inner,
		"chunk with a sign": "Transfer-Encoding: chunked\r\n\r\n-1\r\n" + inner,
	} {
		status, all := s.raw(t, "POST "+inventory+" HTTP/1.1\r\nHost: here\r\nAuthorization: Bearer "+token+"\r\n"+text+"GET /api/v1/version HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n")
		b.mu.Lock()
		for _, got := range b.asked {
			if strings.Contains(got.URL.Path, "smuggled") {
				t.Errorf("%s: the inner request was passed on; the first got %d %s", name, status, all)
			}
		}
		b.mu.Unlock()
	}
}

func TestForwardNeedsADeviceThatMayIn(t *testing.T) {
	t.Parallel()
	b := newBehind(t)
	s := b.forwarding(t)
	_, revoked, revokedToken := s.accepted(t, "1")
	_, suspended, suspendedToken := s.accepted(t, "2")
	_, rejected, rejectedToken := s.accepted(t, "3")
	ask := func(token string) int {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.url+inventory, nil)
		if err != nil {
			t.Fatal(err)
		}
		if token != "" {
			req.Header.Set("Authorization", "Bearer "+token)
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		return res.StatusCode
	}
	for _, token := range []string{revokedToken, suspendedToken, rejectedToken} {
		if got := ask(token); got != 202 {
			t.Fatalf("got %d, want 202", got)
		}
	}
	set := func(id string) string { return s.authDevice(t, id).AuthSets[0].ID }
	s.call(t, s.admin, "DELETE", devauth+"/tokens/"+set(revoked), nil, 204, nil)
	s.call(t, s.admin, "POST", "/api/v1/devices/"+suspended+"/suspend", nil, 200, nil)
	s.call(t, s.admin, "PUT", devauth+"/devices/"+rejected+"/auth/"+set(rejected)+"/status", map[string]any{"status": "rejected"}, 204, nil)
	_, before := b.last()
	for name, test := range map[string]struct {
		token string
		want  int
	}{
		"revoked": {revokedToken, 401}, "suspended": {suspendedToken, 401}, "rejected": {rejectedToken, 401},
		"nothing": {"", 401}, "nonsense": {"x", 401}, "a user's key": {s.admin, 403},
	} {
		if got := ask(test.token); got != test.want {
			t.Errorf("%s: got %d, want %d", name, got, test.want)
		}
	}
	if _, after := b.last(); after != before {
		t.Errorf("%d requests were passed on", after-before)
	}
}

func TestForwardPaths(t *testing.T) {
	t.Parallel()
	b := newBehind(t)
	s := b.forwarding(t)
	_, _, token := s.accepted(t, "1")
	for path, want := range map[string]int{
		"/api/devices/v2/deployments/device/deployments/next": 202,
		"/api/devices/v1/a%20b":                               202,
		"/api/devices/v1/../../management/v1/x":               400,
		"/api/devices/v1/%2e%2e/%2E%2e/management":            400,
		"/api/devices/v1/..%2f..%2fmanagement":                400,
		"/api/devices/v1/..%5cmanagement":                     400,
		"/api/devices/v1/%252e%252e/management":               400,
		"/api/devices/v1/..;x=1/management":                   400,
		"/api/devices/./v1":                                   400,
		"/api/devices//v1":                                    400,
		"/api/devices/v1/%00":                                 400,
		"/api/devices/v1/%0d%0aX:y":                           400,
		"/api/devices/":                                       202,
		"/api/devices/v1/authentication/auth_requests":        405,
		"/api/devices/v1/authentication/else":                 404,
		"/api/devices/v1/%61uthentication/auth_requests":      405,
		"/api/devices":                                        404,
	} {
		_, before := b.last()
		status, all := s.raw(t, "GET "+path+" HTTP/1.1\r\nHost: here\r\nAuthorization: Bearer "+token+"\r\nConnection: close\r\n\r\n")
		if _, after := b.last(); status != want || (after > before) != (want == 202) {
			t.Errorf("%s: got %d, want %d, %d passed on\n%s", path, status, want, after-before, all)
		}
	}
}

func TestForwardIsOffUnlessConfigured(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.call(t, "", "GET", inventory, nil, 404, nil)
	_, _, token := s.accepted(t, "1")
	s.call(t, token, "PUT", inventory, nil, 404, nil)
}

func TestForwardLimits(t *testing.T) {
	t.Parallel()
	b := newBehind(t)
	s := b.forwarding(t, func(c *config.Config) { c.Forward.MaxBody, c.Forward.Timeout = 1<<20, 300*time.Millisecond })
	_, _, token := s.accepted(t, "1")
	ask := func(path string, body io.Reader) (int, string) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, s.url+path, body)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+token)
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		text, _ := io.ReadAll(res.Body)
		return res.StatusCode, string(text)
	}
	large := make([]byte, 1<<20+1)
	if got, text := ask(inventory, bytes.NewReader(large)); got != 413 {
		t.Errorf("too large by its length: got %d %s", got, text)
	}
	if got, text := ask(inventory, io.MultiReader(bytes.NewReader(large))); got != 413 {
		t.Errorf("too large in chunks: got %d %s", got, text)
	}
	if got, text := ask("/api/devices/v1/slow", nil); got != 503 || !strings.Contains(text, "does not answer") {
		t.Errorf("slow: got %d %s", got, text)
	}
	away := start(t, func(c *config.Config) { c.Forward.Upstream = "http://127.0.0.1:1" })
	_, _, token = away.accepted(t, "1")
	s = away
	if got, text := ask(inventory, nil); got != 503 || !strings.Contains(text, "cannot be reached") || strings.Contains(text, "127.0.0.1") {
		t.Errorf("away: got %d %s", got, text)
	}
}

func TestForwardPassesTheTokenWhereConfigured(t *testing.T) {
	t.Parallel()
	b := newBehind(t)
	s := b.forwarding(t, func(c *config.Config) { c.Forward.PassAuthorization = true })
	_, id, token := s.accepted(t, "1")
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.url+inventory, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if got, _ := b.last(); got == nil || got.Header.Get("Authorization") != "Bearer "+token || got.Header.Get("X-Keystead-Device") != id {
		t.Errorf("got %+v", got)
	}
}

func TestForwardWebSocket(t *testing.T) {
	t.Parallel()
	b := newBehind(t)
	s := b.forwarding(t, func(c *config.Config) { c.Forward.WebSockets = true })
	_, id, token := s.accepted(t, "1")
	const path = "/api/devices/v1/deviceconnect/connect"
	conn, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: here\r\nAuthorization: Bearer %s\r\nConnection: Upgrade, X-Keystead-Device\r\nUpgrade: websocket\r\nX-Keystead-Device: evil\r\n\r\n", path, token)
	in := bufio.NewReader(conn)
	res, err := http.ReadResponse(in, nil)
	if err != nil || res.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("got %+v, %v", res, err)
	}
	defer res.Body.Close()
	fmt.Fprintln(conn, "hello")
	if line, err := in.ReadString('\n'); err != nil || line != "HELLO\n" {
		t.Errorf("got %q, %v", line, err)
	}
	if got, _ := b.last(); got.Header.Get("X-Keystead-Device") != id {
		t.Errorf("it is of %q", got.Header.Get("X-Keystead-Device"))
	}
	s.call(t, s.admin, "DELETE", devauth+"/tokens/"+s.authDevice(t, id).AuthSets[0].ID, nil, 204, nil)
	if line, err := in.ReadString('\n'); err == nil {
		t.Errorf("after the token is revoked: got %q, want the end", line)
	}
	_, _, token = s.accepted(t, "2")
	for upgrade, want := range map[string]int{"h2c": 400, "TLS/1.0": 400, "websocket, h2c": 400, "websocket\r\nUpgrade: h2c": 400} {
		status, all := s.raw(t, "GET "+path+" HTTP/1.1\r\nHost: here\r\nAuthorization: Bearer "+token+"\r\nConnection: Upgrade, close\r\nUpgrade: "+upgrade+"\r\n\r\n")
		if status != want {
			t.Errorf("%q: got %d %s", upgrade, status, all)
		}
	}
	off := b.forwarding(t)
	_, _, token = off.accepted(t, "1")
	status, all := off.raw(t, "GET "+path+" HTTP/1.1\r\nHost: here\r\nAuthorization: Bearer "+token+"\r\nConnection: Upgrade, close\r\nUpgrade: websocket\r\n\r\n")
	if status != 403 || !strings.Contains(all, "forward.websockets") {
		t.Errorf("off: got %d %s", status, all)
	}
}

// What is revoked after a device has proven who it is, and before its exchange is under
// way, ends the exchange too.
func TestForwardEndsWhatIsRevokedWhileItBegins(t *testing.T) {
	t.Parallel()
	b := newBehind(t)
	s := b.forwarding(t, func(c *config.Config) { c.Forward.WebSockets = true })
	_, id, token := s.accepted(t, "1")
	set := s.authDevice(t, id).AuthSets[0].ID
	resolve, once := s.Resolver.Resolve, sync.Once{}
	s.Resolver = identity.Resolver{identity.MethodFunc(func(ctx context.Context, p identity.Proof) (identity.Actor, error) {
		a, err := resolve(ctx, p)
		if a.Kind == identity.Device {
			once.Do(func() { s.call(t, s.admin, "DELETE", devauth+"/tokens/"+set, nil, 204, nil) })
		}
		return a, err
	})}
	conn, err := net.Dial("tcp", strings.TrimPrefix(s.url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
	fmt.Fprintf(conn, "GET /api/devices/v1/deviceconnect/connect HTTP/1.1\r\nHost: here\r\nAuthorization: Bearer %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", token)
	_, err = io.ReadAll(conn)
	if e, ok := errors.AsType[net.Error](err); ok && e.Timeout() {
		t.Error("the WebSocket of a device that was revoked while it began goes on")
	}
}
