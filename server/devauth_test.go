package server_test

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
)

// authDevice is a device that speaks Mender's protocol.
type authDevice struct {
	key ed25519.PrivateKey
	id  string
}

func newAuthDevice(t testing.TB, mac string) authDevice {
	t.Helper()
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return authDevice{key, `{"mac":"` + mac + `"}`}
}

func (d authDevice) pem() string {
	der, err := x509.MarshalPKIXPublicKey(d.key.Public())
	if err != nil {
		panic(err)
	}
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
}

func (d authDevice) body() []byte {
	b, err := json.Marshal(map[string]string{"id_data": d.id, "pubkey": d.pem(), "tenant_token": "dummy"})
	if err != nil {
		panic(err)
	}
	return append(b, '\n')
}

const authRequests = "/api/devices/v1/authentication/auth_requests"

// reply is an answer without its body.
type reply struct {
	StatusCode int
	Header     http.Header
}

// ask sends an auth request as the client does, and returns the answer and its body.
func (d authDevice) ask(t testing.TB, r *running, change ...func(*http.Request)) (reply, string) {
	t.Helper()
	body := d.body()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, r.url+authRequests, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", "Bearer dummy-tenant-token")
	req.Header.Set("X-MEN-Signature", base64.StdEncoding.EncodeToString(ed25519.Sign(d.key, body)))
	for _, c := range change {
		c(req)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	if tt, ok := t.(*testing.T); ok {
		checkContract(tt, req, res, b)
	}
	return reply{res.StatusCode, res.Header}, string(b)
}

type authDeviceAnswer struct {
	ID          string          `json:"id"`
	Identity    json.RawMessage `json:"identity_data"`
	Status      string          `json:"status"`
	CheckInTime string          `json:"check_in_time"`
	AuthSets    []struct {
		ID     string `json:"id"`
		PubKey string `json:"pubkey"`
		Status string `json:"status"`
	} `json:"auth_sets"`
}

const devauth = "/api/management/v2/devauth"

func TestMenderDevice(t *testing.T) {
	t.Parallel()
	s := start(t)
	d := newAuthDevice(t, "de:ad:be:ef:00:01")
	res, body := d.ask(t, s, func(r *http.Request) { r.Header.Set("X-MEN-RequestID", "req-1") })
	if res.StatusCode != http.StatusUnauthorized || body != `{"error":"dev auth: unauthorized","request_id":"req-1"}` ||
		res.Header.Get("X-MEN-RequestID") != "req-1" || res.Header.Get("Content-Type") != "application/json; charset=utf-8" {
		t.Fatalf("pending: got %d %q %v", res.StatusCode, body, res.Header)
	}
	var list []authDeviceAnswer
	s.call(t, s.admin, "GET", devauth+"/devices?status=pending", nil, 200, &list)
	if len(list) != 1 || list[0].Status != "pending" || list[0].AuthSets[0].PubKey != d.pem() || string(list[0].Identity) != d.id {
		t.Fatalf("got %+v", list)
	}
	one := devauth + "/devices/" + list[0].ID
	set := one + "/auth/" + list[0].AuthSets[0].ID
	s.call(t, s.admin, "PUT", set+"/status", map[string]string{"status": "accepted"}, 204, nil)
	res, token := d.ask(t, s)
	if res.StatusCode != http.StatusOK || res.Header.Get("Content-Type") != "application/jwt" || strings.Count(token, ".") != 2 || strings.ContainsAny(token, "\r\n ") {
		t.Fatalf("accepted: got %d %q %v", res.StatusCode, token, res.Header)
	}
	var who struct {
		Device     string `json:"device"`
		Credential struct {
			Kind string `json:"kind"`
		} `json:"credential"`
	}
	s.call(t, token, "GET", "/api/v1/whoami", nil, 200, &who)
	if who.Device != list[0].ID || who.Credential.Kind != "device_token" {
		t.Errorf("got %+v", who)
	}
	var claims map[string]any
	raw, _ := base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[1])
	if err := json.Unmarshal(raw, &claims); err != nil || claims["mender.device"] != true || claims["sub"] != list[0].ID {
		t.Errorf("got claims %v, %v", claims, err)
	}
	jti, _ := claims["jti"].(string)
	s.call(t, s.admin, "DELETE", devauth+"/tokens/"+jti, nil, 204, nil)
	s.call(t, token, "GET", "/api/v1/whoami", nil, 401, nil)
	if res, token = d.ask(t, s); res.StatusCode != http.StatusOK {
		t.Fatalf("after the revocation: got %d", res.StatusCode)
	}
	s.call(t, token, "GET", "/api/v1/whoami", nil, 200, nil)
	s.call(t, s.admin, "GET", one, nil, 200, &list[0])
	if list[0].CheckInTime == "" || list[0].Status != "accepted" {
		t.Errorf("got %+v", list[0])
	}
	s.call(t, s.admin, "PUT", set+"/status", map[string]string{"status": "rejected"}, 204, nil)
	s.call(t, token, "GET", "/api/v1/whoami", nil, 401, nil)
	if res, _ = d.ask(t, s); res.StatusCode != http.StatusUnauthorized {
		t.Errorf("rejected: got %d", res.StatusCode)
	}
	s.call(t, s.admin, "DELETE", one, nil, 204, nil)
	s.call(t, s.admin, "GET", one, nil, 404, nil)
	s.call(t, s.admin, "DELETE", one, nil, 404, nil)
}

// TestDeviceTokenIsNoAPIKey: with a device's token nobody administers.
func TestDeviceTokenIsNoAPIKey(t *testing.T) {
	t.Parallel()
	s := start(t)
	d := newAuthDevice(t, "1")
	s.call(t, s.admin, "POST", devauth+"/devices", map[string]any{"identity_data": json.RawMessage(d.id), "pubkey": d.pem()}, 201, nil)
	res, token := d.ask(t, s)
	if res.StatusCode != http.StatusOK {
		t.Fatalf("got %d %s", res.StatusCode, token)
	}
	for _, path := range []string{"/api/v1/devices", devauth + "/devices", "/api/v1/signing-keys", "/api/v1/audit"} {
		s.call(t, token, "GET", path, nil, 403, nil)
	}
}

func TestDevauthManagement(t *testing.T) {
	t.Parallel()
	s := start(t)
	a, b := newAuthDevice(t, "1"), newAuthDevice(t, "2")
	preauth := func(d authDevice, force bool) map[string]any {
		return map[string]any{"identity_data": json.RawMessage(d.id), "pubkey": d.pem(), "force": force}
	}
	s.call(t, s.admin, "POST", devauth+"/devices", preauth(a, false), 201, nil)
	var conflict authDeviceAnswer
	s.call(t, s.admin, "POST", devauth+"/devices", preauth(a, false), 409, &conflict)
	if conflict.Status != "preauthorized" || len(conflict.AuthSets) != 1 {
		t.Errorf("got %+v, want the device that is in the way", conflict)
	}
	s.call(t, s.admin, "PUT", devauth+"/devices/"+conflict.ID+"/auth/"+conflict.AuthSets[0].ID+"/status", map[string]string{"status": "accepted"}, 400, nil)
	b.ask(t, s)
	for _, row := range []struct {
		method, path string
		in           any
		status       int
		text         string
	}{
		{"GET", "/devices?status=foo", nil, 400, "filter status must be one of: accepted, pending, rejected, preauthorized or noauth"},
		{"GET", "/devices?status=", nil, 400, "filter status must be one of"},
		{"GET", "/devices?page=x", nil, 400, `invalid page query: \"x\"`},
		{"GET", "/devices?per_page=0", nil, 400, "invalid per_page query: value must be a non-zero positive integer"},
		{"GET", "/devices?per_page=501", nil, 400, `parameter \"per_page\" above limit (max: 500)`},
		{"GET", "/devices?page=7", nil, 200, "[]"},
		{"GET", "/devices?id=nobody", nil, 200, "[]"},
		{"GET", "/devices/nobody", nil, 404, "device not found"},
		{"GET", "/devices/search", nil, 404, "device not found"},
		{"POST", "/devices/search", map[string]any{"status": "foo"}, 400, "filter status must be one of"},
		{"POST", "/devices/search", map[string]any{"status": []string{"pending"}, "id": nil}, 200, `"status":"pending"`},
		{"GET", "/devices/count", nil, 200, `{"count":2}`},
		{"GET", "/devices/count?status=pending", nil, 200, `{"count":1}`},
		{"GET", "/devices/count?status=foo", nil, 400, "status must be one of: pending, accepted, rejected, preauthorized, noauth"},
		{"POST", "/devices", map[string]any{"pubkey": a.pem()}, 400, "identity_data: cannot be blank."},
		{"POST", "/devices", map[string]any{"identity_data": map[string]any{}, "pubkey": a.pem()}, 400, "identity_data: cannot be blank."},
		{"POST", "/devices", map[string]any{"identity_data": map[string]any{"a": 1}}, 400, "pubkey: cannot be blank."},
		{"POST", "/devices", map[string]any{"identity_data": map[string]any{"a": 1}, "pubkey": "x"}, 400, "cannot decode public key"},
		{"GET", "/limits/max_devices", nil, 200, `{"limit":-1}`},
		{"GET", "/limits/foo", nil, 400, "unsupported limit foo"},
		{"PUT", "/limits/max_devices", map[string]any{}, 400, "limit must be"},
		{"PUT", "/limits/max_devices", map[string]any{"limit": -5}, 400, "limit must be"},
		{"DELETE", "/tokens/nobody", nil, 404, ""},
	} {
		var got json.RawMessage
		into := any(&got)
		if row.text == "" {
			into = nil
		}
		s.call(t, s.admin, row.method, devauth+row.path, row.in, row.status, into)
		if !strings.Contains(string(got), row.text) {
			t.Errorf("%s %s: got %s, want %s", row.method, row.path, got, row.text)
		}
	}
	s.call(t, s.admin, "PUT", devauth+"/limits/max_devices", map[string]any{"limit": 0}, 204, nil)
	var list []authDeviceAnswer
	s.call(t, s.admin, "GET", devauth+"/devices?status=pending", nil, 200, &list)
	at := devauth + "/devices/" + list[0].ID + "/auth/" + list[0].AuthSets[0].ID + "/status"
	s.call(t, s.admin, "PUT", at, map[string]string{"status": "accepted"}, 422, nil)
	s.call(t, s.admin, "GET", devauth+"/devices/"+conflict.ID+"/auth/"+list[0].AuthSets[0].ID+"/status", nil, 404, nil)
	s.call(t, s.admin, "PUT", devauth+"/devices/"+conflict.ID+"/auth/"+list[0].AuthSets[0].ID+"/status", map[string]string{"status": "rejected"}, 400, nil)
}

func TestDevauthPages(t *testing.T) {
	t.Parallel()
	s := start(t)
	for _, mac := range []string{"1", "2", "3"} {
		newAuthDevice(t, mac).ask(t, s)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.url+devauth+"/devices?per_page=1&page=2&status=pending", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+s.admin)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	const at = "<" + devauth + "/devices?page="
	want := []string{
		at + `1&per_page=1&status=pending>; rel="first"`, at + `1&per_page=1&status=pending>; rel="prev"`, at + `3&per_page=1&status=pending>; rel="next"`,
	}
	if got := res.Header.Values("Link"); strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got links %q, want %q", got, want)
	}
}

func TestAuthRequestForm(t *testing.T) {
	t.Parallel()
	s := start(t)
	d := newAuthDevice(t, "1")
	for name, row := range map[string]struct {
		change func(*http.Request)
		status int
		text   string
	}{
		"no media type":      {func(r *http.Request) { r.Header.Del("Content-Type") }, 400, "Invalid value for Content-Type header: mime: no media type"},
		"another media type": {func(r *http.Request) { r.Header.Set("Content-Type", "text/plain") }, 415, "Bad Content-Type, expected 'application/json'"},
		"a charset":          {func(r *http.Request) { r.Header.Set("Content-Type", "application/json; charset=utf-8") }, 401, "dev auth: unauthorized"},
		"no signature":       {func(r *http.Request) { r.Header.Del("X-MEN-Signature") }, 400, "missing request signature header"},
		"a bare Bearer":      {func(r *http.Request) { r.Header.Set("Authorization", "Bearer") }, 401, "dev auth: unauthorized"},
		"API_KEY":            {func(r *http.Request) { r.Header.Set("Authorization", "API_KEY") }, 401, "dev auth: unauthorized"},
		"two Authorizations": {func(r *http.Request) { r.Header.Add("Authorization", "Basic %%%") }, 401, "dev auth: unauthorized"},
		"too large": {func(r *http.Request) {
			r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(make([]byte, 1<<20+1))), 1<<20+1
		}, 413, "http: request body too large"},
		"too large, of no length": {func(r *http.Request) {
			r.Body, r.ContentLength = io.NopCloser(bytes.NewReader(make([]byte, 1<<20+1))), -1
		}, 413, "http: request body too large"},
	} {
		res, body := d.ask(t, s, row.change)
		if res.StatusCode != row.status || !strings.Contains(body, row.text) {
			t.Errorf("%s: got %d %s, want %d %s", name, res.StatusCode, body, row.status, row.text)
		}
	}
}

// What is not there is answered as Mender's servers do, whose clients look at it.
func TestMenderPathsThatAreNotThere(t *testing.T) {
	t.Parallel()
	s := start(t)
	client := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	const devauth, internal = "/api/management/v2/devauth", "/api/internal/v1/devauth"
	for _, c := range []struct {
		method, path string
		status       int
		body         string
		allow        string // sorted, one value a method
	}{
		{"GET", devauth + "/nothing", 404, "not found", ""},
		{"GET", internal + "/nothing", 404, "not found", ""},
		{"POST", "/api/devices/v1/authentication/nothing", 404, "not found", ""},
		{"GET", authRequests, 405, "method not allowed", "OPTIONS POST"},
		{"HEAD", authRequests, 405, "", "OPTIONS POST"},
		{"PUT", devauth + "/devices", 405, "method not allowed", "GET OPTIONS POST"},
		{"OPTIONS", authRequests, 200, "", "OPTIONS POST"},
		{"OPTIONS", devauth + "/devices/x/auth/y/status", 200, "", "GET OPTIONS PUT"},
		{"OPTIONS", devauth + "/nothing", 404, "not found", ""},
		{"POST", authRequests + "/", 301, "", ""},
		{"GET", internal + "/alive", 204, "", ""},
		{"GET", internal + "/health", 503, "service unavailable", ""}, // the server of this test says of itself that it has not begun
	} {
		req, err := http.NewRequestWithContext(t.Context(), c.method, s.url+c.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("X-MEN-RequestID", "of-the-client")
		res, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(res.Body)
		res.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		var allowed []string
		for _, values := range res.Header.Values("Allow") {
			allowed = append(allowed, strings.Split(values, ", ")...)
		}
		slices.Sort(allowed)
		if res.StatusCode != c.status || strings.Join(allowed, " ") != c.allow {
			t.Errorf("%s %s: got %d %s, allowing %q; want %d and %q", c.method, c.path, res.StatusCode, b, allowed, c.status, c.allow)
		}
		want := ""
		if c.body != "" {
			want = `{"error":"` + c.body + `","request_id":"of-the-client"}`
		}
		if string(b) != want {
			t.Errorf("%s %s: got the body %s, want %s", c.method, c.path, b, want)
		}
		if c.method == "OPTIONS" && c.status == 200 && len(res.Header.Values("Allow")) != len(allowed) {
			t.Errorf("OPTIONS %s: allows %q, want a header for each", c.path, res.Header.Values("Allow"))
		}
		if got := res.Header.Get("X-MEN-RequestID"); (got == "of-the-client") != (c.status != 301 && c.method != "HEAD") {
			t.Errorf("%s %s: the id of the request is %q", c.method, c.path, got)
		}
		if c.status == 301 && res.Header.Get("Location") != authRequests {
			t.Errorf("%s %s: sent on to %s", c.method, c.path, res.Header.Get("Location"))
		}
	}
}
