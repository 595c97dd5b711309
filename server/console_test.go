package server_test

import (
	"context"
	"io"
	"net/http"
	"strings"
	"testing"

	"keystead/config"
	"keystead/console"
	"keystead/identity"
)

// browse makes a request as a browser does, with the cookie of a session ("" for none), and
// headers "Name: value"; it follows no redirect.
func (r *running) browse(t *testing.T, method, path, cookie, body string, headers ...string) (shown, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, r.url+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if cookie != "" {
		req.Header.Set("Cookie", "__Host-keystead-console="+cookie)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		req.Header.Set(name, value)
	}
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	checkContract(t, req, resp, b)
	return shown{resp.StatusCode, resp.Header, resp.Cookies()}, string(b)
}

// shown is an answer without its body.
type shown struct {
	StatusCode int
	Header     http.Header
	Cookies    []*http.Cookie
}

// gone says whether the answer takes the cookie away.
func (r shown) gone() bool {
	return len(r.Cookies) == 1 && r.Cookies[0].Value == "" && r.Cookies[0].Expires.Year() < 2000
}

const same = "Sec-Fetch-Site: same-origin"

// signIn opens a session and returns its cookie.
func (r *running) signIn(t *testing.T, body string) string {
	t.Helper()
	resp, text := r.browse(t, "POST", "/api/v1/session", "", body, same)
	if resp.StatusCode != http.StatusCreated {
		t.Fatalf("sign in = %d %s", resp.StatusCode, text)
	}
	c := resp.Cookies[0]
	if !c.HttpOnly || !c.Secure || c.SameSite != http.SameSiteStrictMode || c.Path != "/" || c.Domain != "" || !strings.HasPrefix(c.Name, "__Host-") {
		t.Errorf("the cookie is %v, want it out of the reach of scripts and of other sites", c)
	}
	if strings.Contains(text, c.Value) || resp.Header.Get("Cache-Control") != "no-store" {
		t.Errorf("the answer %q, Cache-Control %q, must not hold the session, and must not be kept", text, resp.Header.Get("Cache-Control"))
	}
	return c.Value
}

func TestConsoleFiles(t *testing.T) {
	s := start(t)
	page, html := s.browse(t, "GET", "/console/", "", "")
	if page.StatusCode != http.StatusOK || !strings.Contains(html, console.Version()+"/app.js") {
		t.Fatalf("the page = %d %.200q", page.StatusCode, html)
	}
	for name, want := range map[string]string{
		"Content-Security-Policy": console.Policy, "X-Content-Type-Options": "nosniff", "X-Frame-Options": "DENY", "Referrer-Policy": "no-referrer",
		"Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Resource-Policy": "same-origin", "Cache-Control": "no-cache",
	} {
		if got := page.Header.Get(name); got != want {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
	for _, directive := range []string{"default-src 'none'", "script-src 'self'", "style-src 'self'", "connect-src 'self'", "base-uri 'none'", "form-action 'none'", "frame-ancestors 'none'", "require-trusted-types-for 'script'"} {
		if !strings.Contains(console.Policy, directive) {
			t.Errorf("the policy lacks %s", directive)
		}
	}
	if strings.Contains(console.Policy, "unsafe") || strings.Contains(html, "<script>") || strings.Contains(html, "style=") || strings.Contains(html, "onload") {
		t.Errorf("there is something inline in %s", html)
	}
	if again, _ := s.browse(t, "GET", "/console/", "", "", "If-None-Match: "+page.Header.Get("ETag")); again.StatusCode != http.StatusNotModified {
		t.Errorf("with the ETag = %d, want 304", again.StatusCode)
	}
	for file, kind := range map[string]string{"app.js": "text/javascript; charset=utf-8", "style.css": "text/css; charset=utf-8", "icon.svg": "image/svg+xml"} {
		resp, _ := s.browse(t, "GET", "/console/"+console.Version()+"/"+file, "", "")
		if resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != kind || !strings.Contains(resp.Header.Get("Cache-Control"), "immutable") || resp.Header.Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%s = %d %v", file, resp.StatusCode, resp.Header)
		}
	}
	for _, path := range []string{
		"/console/0000000000000000/app.js", "/console/" + console.Version() + "/index.html", "/console/" + console.Version() + "/..%2f..%2fconsole.go",
		"/console/" + console.Version() + "/../../openapi.yaml", "/console/" + console.Version() + "/", "/console/web/app.js", "/console/..%2f..%2fetc/passwd",
		"/console/" + console.Version() + "/%2e%2e/%2e%2e/master.key", "/console/" + console.Version() + "/..\\..\\app.js",
	} {
		if resp, text := s.browse(t, "GET", path, "", ""); resp.StatusCode != http.StatusNotFound && resp.StatusCode != http.StatusBadRequest {
			t.Errorf("%s = %d %.80q, want it not found", path, resp.StatusCode, text)
		}
	}
	const browser = "Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
	if resp, _ := s.browse(t, "GET", "/", "", "", browser); resp.StatusCode != http.StatusSeeOther || resp.Header.Get("Location") != "/console/" || !strings.Contains(resp.Header.Get("Vary"), "Accept") {
		t.Errorf("a browser at / gets %d %v", resp.StatusCode, resp.Header)
	}
	if resp, _ := s.browse(t, "GET", "/", "", "", "Accept: application/json"); resp.StatusCode != http.StatusOK {
		t.Errorf("a client of the API at / gets %d", resp.StatusCode)
	}
	if resp, _ := s.browse(t, "GET", "/console", "", ""); resp.Header.Get("Location") != "/console/" {
		t.Errorf("without its slash the console leads to %q", resp.Header.Get("Location"))
	}
}

func TestConsoleSwitchedOff(t *testing.T) {
	s := start(t, func(c *config.Config) { c.Console.Enabled = false })
	for _, path := range []string{"/console/", "/console/" + console.Version() + "/app.js"} {
		if resp, _ := s.browse(t, "GET", path, "", ""); resp.StatusCode != http.StatusNotFound {
			t.Errorf("%s = %d, want 404", path, resp.StatusCode)
		}
	}
	if resp, _ := s.browse(t, "GET", "/", "", "", "Accept: text/html"); resp.StatusCode != http.StatusOK {
		t.Errorf("/ = %d, want what it is without a console", resp.StatusCode)
	}
	if resp, _ := s.browse(t, "POST", "/api/v1/session", "", `{"api_key":"`+s.admin+`"}`, same); resp.StatusCode != http.StatusNotFound {
		t.Errorf("signing in = %d, want 404", resp.StatusCode)
	}
}

func TestBrowserSession(t *testing.T) {
	s := start(t)
	cookie := s.signIn(t, `{"api_key":"`+s.admin+`"}`)
	resp, text := s.browse(t, "GET", "/api/v1/whoami", cookie, "", same)
	if resp.StatusCode != http.StatusOK || !strings.Contains(text, `"kind":"api_key"`) || !strings.Contains(text, `"platform:admin"`) || resp.Header.Get("Cache-Control") != "no-store" {
		t.Errorf("whoami = %d %s %v; a session of a key counts as the key", resp.StatusCode, text, resp.Header)
	}
	if resp, text := s.browse(t, "POST", "/api/v1/devices", cookie, `{"name":"by cookie"}`, same); resp.StatusCode != http.StatusCreated {
		t.Errorf("a change = %d %s", resp.StatusCode, text)
	}
	if resp, text := s.browse(t, "POST", "/keys", cookie, `{"type":2}`, same); resp.StatusCode != http.StatusForbidden {
		t.Errorf("making a key with the session of a key = %d %s, want 403: nobody has logged in", resp.StatusCode, text)
	}
	if resp, _ := s.browse(t, "GET", "/api/v1/whoami", "", "", "Authorization: Session "+cookie); resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("the session in a header = %d, want 401", resp.StatusCode)
	}
	for name, cookie := range map[string]string{"the key itself": s.admin, "nonsense": "x", "another": cookie[:len(cookie)-1] + string(cookie[len(cookie)-1]^1)} {
		if resp, _ := s.browse(t, "GET", "/api/v1/whoami", cookie, "", same); resp.StatusCode != http.StatusUnauthorized {
			t.Errorf("%s as a cookie = %d, want 401", name, resp.StatusCode)
		}
	}
	if resp, _ := s.browse(t, "GET", "/api/v1/session", "x", ""); resp.StatusCode != http.StatusNoContent || !resp.gone() {
		t.Errorf("asking with a cookie that is no good = %d %v, want 204, and the cookie gone", resp.StatusCode, resp.Cookies)
	}
	if resp, _ := s.browse(t, "DELETE", "/api/v1/session", cookie, "", same); resp.StatusCode != http.StatusNoContent || !resp.gone() {
		t.Errorf("signing out = %d %v", resp.StatusCode, resp.Cookies)
	}
	if resp, _ := s.browse(t, "GET", "/api/v1/whoami", cookie, "", same); resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("after signing out = %d, want 401", resp.StatusCode)
	}
	if resp, _ := s.browse(t, "DELETE", "/api/v1/session", "", ""); resp.StatusCode != http.StatusNoContent {
		t.Errorf("signing out again = %d", resp.StatusCode)
	}
	for name, body := range map[string]string{
		"a wrong key": `{"api_key":"keystead_api_wrong"}`, "a wrong password": `{"email":"a@example.org","password":"wrong"}`, "a session": `{"api_key":"` + cookie + `"}`, "nothing": `{}`,
		"an answer to no question": `{"state":"AAAA","credential":{"id":"AAAA"}}`, "an answer as second factor": `{"state":"AAAA","second_factor":true,"credential":{"id":"AAAA"}}`,
	} {
		if resp, text := s.browse(t, "POST", "/api/v1/session", "", body, same); resp.StatusCode != http.StatusUnauthorized || len(resp.Cookies) != 0 {
			t.Errorf("%s = %d %s, want 401 and no cookie", name, resp.StatusCode, text)
		}
	}
}

// Whoever gets a browser to send a request from somewhere else gets nothing done.
func TestSessionIsTakenFromOwnPagesOnly(t *testing.T) {
	s := start(t)
	cookie := s.signIn(t, `{"api_key":"`+s.admin+`"}`)
	host := strings.TrimPrefix(s.url, "http://")
	for _, test := range []struct {
		name    string
		headers []string
		get     int
		post    int
	}{
		{"the own page", []string{same}, http.StatusOK, http.StatusCreated},
		{"the own page, in an old browser", []string{"Origin: http://" + host}, http.StatusOK, http.StatusCreated},
		{"another site", []string{"Sec-Fetch-Site: cross-site", "Origin: https://evil.example"}, http.StatusForbidden, http.StatusForbidden},
		{"another port of this host", []string{"Sec-Fetch-Site: same-site", "Origin: http://127.0.0.1:1"}, http.StatusForbidden, http.StatusForbidden},
		{"another origin, in an old browser", []string{"Origin: https://evil.example"}, http.StatusOK, http.StatusForbidden},
		{"a frame without an origin", []string{"Origin: null"}, http.StatusOK, http.StatusForbidden},
		{"nothing that says where it comes from", nil, http.StatusOK, http.StatusForbidden},
	} {
		if resp, text := s.browse(t, "GET", "/api/v1/whoami", cookie, "", test.headers...); resp.StatusCode != test.get {
			t.Errorf("%s: GET = %d %s, want %d", test.name, resp.StatusCode, text, test.get)
		}
		if resp, text := s.browse(t, "POST", "/api/v1/devices", cookie, `{}`, test.headers...); resp.StatusCode != test.post {
			t.Errorf("%s: POST = %d %s, want %d", test.name, resp.StatusCode, text, test.post)
		}
	}
	if resp, _ := s.browse(t, "POST", "/api/v1/session", "", `{"api_key":"`+s.admin+`"}`, "Sec-Fetch-Site: cross-site"); resp.StatusCode != http.StatusForbidden {
		t.Errorf("being signed in by another site = %d, want 403", resp.StatusCode)
	}
	if resp, _ := s.browse(t, "DELETE", "/api/v1/session", cookie, "", "Sec-Fetch-Site: cross-site"); resp.StatusCode != http.StatusForbidden {
		t.Errorf("being signed out by another site = %d, want 403", resp.StatusCode)
	}
	// What authenticates otherwise is held to nothing.
	if resp, _ := s.browse(t, "POST", "/api/v1/devices", "", `{}`, "Authorization: Bearer "+s.admin); resp.StatusCode != http.StatusCreated {
		t.Errorf("a script with a key = %d, want 201", resp.StatusCode)
	}
}

// A session may do what its key or account may, no longer than that lasts.
func TestSessionEndsWithWhatOpenedIt(t *testing.T) {
	s := start(t)
	login := s.user(t, "ada@example.com", s.org, identity.Editor)
	var key, viewing struct{ ID, Value string }
	s.call(t, login, "POST", "/keys", map[string]any{"type": 2, "org_id": s.org}, http.StatusCreated, &key)
	s.call(t, login, "POST", "/keys", map[string]any{"type": 2, "scopes": []string{"devices:read", "account:read"}}, http.StatusCreated, &viewing)

	byKey, scoped := s.signIn(t, `{"api_key":"`+key.Value+`"}`), s.signIn(t, `{"api_key":"`+viewing.Value+`"}`)
	if resp, _ := s.browse(t, "POST", "/api/v1/devices", byKey, `{}`, same); resp.StatusCode != http.StatusCreated {
		t.Errorf("an editor's session = %d", resp.StatusCode)
	}
	if resp, _ := s.browse(t, "POST", "/api/v1/devices", scoped, `{}`, same); resp.StatusCode != http.StatusForbidden {
		t.Errorf("the session of a key that may only read = %d, want 403", resp.StatusCode)
	}
	if resp, text := s.browse(t, "GET", "/api/v1/whoami", scoped, "", same); strings.Contains(text, "devices:write") || !strings.Contains(text, `"permissions":["account:read","devices:read"]`) {
		t.Errorf("whoami = %d %s, want what the key may", resp.StatusCode, text)
	}
	if resp, _ := s.browse(t, "GET", "/api/v1/devices", byKey, "", same, "X-Org-ID: 00000000-0000-7000-8000-000000000000"); resp.StatusCode != http.StatusNotFound {
		t.Errorf("in another organisation = %d, want 404", resp.StatusCode)
	}
	s.call(t, login, "DELETE", "/keys/"+key.ID, nil, http.StatusNoContent, nil)
	if resp, _ := s.browse(t, "GET", "/api/v1/whoami", byKey, "", same); resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("the session of a revoked key = %d, want 401", resp.StatusCode)
	}
	if resp, _ := s.browse(t, "GET", "/api/v1/whoami", scoped, "", same); resp.StatusCode != http.StatusOK {
		t.Errorf("the session of another key = %d, want it to go on", resp.StatusCode)
	}

	byPassword := s.signIn(t, `{"email":"ada@example.com","password":"`+goodPassword+`"}`)
	if resp, text := s.browse(t, "GET", "/api/v1/whoami", byPassword, "", same); !strings.Contains(text, `"kind":"session"`) {
		t.Errorf("whoami = %d %s", resp.StatusCode, text)
	}
	var me struct{ ID string }
	s.call(t, login, "GET", "/users/profile", nil, http.StatusOK, &me)
	s.call(t, s.admin, "POST", "/users/"+me.ID+"/sign-out", nil, http.StatusNoContent, nil)
	for name, cookie := range map[string]string{"of the account": byPassword, "of its key": scoped} {
		if resp, _ := s.browse(t, "GET", "/api/v1/whoami", cookie, "", same); resp.StatusCode != http.StatusUnauthorized {
			t.Errorf("after the user was signed out the session %s = %d, want 401", name, resp.StatusCode)
		}
	}
	if _, err := s.Accounts.Resolve(context.Background(), identity.Proof{Scheme: "Bearer", Value: byPassword}); err == nil {
		t.Error("a session passes as a bearer token")
	}
}

func TestDevicesAreFoundByName(t *testing.T) {
	s := start(t)
	for _, name := range []string{"Pump 1", "pump 2", "Valve 1"} {
		s.call(t, s.admin, "POST", "/api/v1/devices", map[string]any{"name": name, "aliases": []map[string]string{{"kind": "external", "value": "AB-" + name}}, "labels": map[string]string{"site": "north"}}, http.StatusCreated, nil)
	}
	for query, want := range map[string]int{"name=PUMP": 2, "name=ab-": 3, "name=1&state=active": 2, "name=pump&label=site%3Dnorth": 2, "name=pump&state=suspended": 0, "name=none": 0} {
		var page struct{ Items []device }
		s.call(t, s.admin, "GET", "/api/v1/devices?"+query, nil, http.StatusOK, &page)
		if len(page.Items) != want {
			t.Errorf("%s finds %d, want %d: %+v", query, len(page.Items), want, page.Items)
		}
	}
}

// The session the console opens with an API key may do what the key may. On the pages of the
// account, which ask for no scope, it is nobody's.
func TestTheSessionOfAKeyIsNoneOnThePagesOfTheAccount(t *testing.T) {
	s := start(t)
	session := s.signIn(t, `{"api_key":"`+s.admin+`"}`)
	for path, method := range map[string]string{"/account": "GET", "/account/sign-out": "POST"} {
		req, err := http.NewRequestWithContext(t.Context(), method, s.url+path, strings.NewReader("everywhere=1"))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Cookie", "__Host-keystead="+session)
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		resp, err := http.DefaultTransport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode != http.StatusSeeOther || resp.Header.Get("Location") != "/login" {
			t.Errorf("%s %s: got %d to %q, want the login", method, path, resp.StatusCode, resp.Header.Get("Location"))
		}
	}
	if resp, _ := s.browse(t, "GET", "/api/v1/session", session, "", same); resp.StatusCode != http.StatusOK {
		t.Errorf("the session in the console: got %d, want it to go on", resp.StatusCode)
	}
}
