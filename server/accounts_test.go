package server_test

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"keystead/identity"
)

const goodPassword = "seventeen quiet otters"

// setUp gives the first administrator an address and a password by the link in
// the data directory, and returns a login key.
func (r *running) setUp(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(r.Config.Data, "setup-link"))
	if err != nil {
		t.Fatal(err)
	}
	_, key, _ := strings.Cut(strings.TrimSpace(string(b)), "#")
	r.call(t, "", "POST", "/setup", map[string]string{"token": key, "email": "root@example.com", "password": goodPassword}, http.StatusCreated, nil)
	return r.logIn(t, "root@example.com", goodPassword)
}

func (r *running) logIn(t *testing.T, email, password string) string {
	t.Helper()
	var out struct{ Token string }
	r.call(t, "", "POST", "/tokens", map[string]string{"email": email, "password": password}, http.StatusCreated, &out)
	return out.Token
}

// user makes a user with a role in an organisation and returns its login key.
func (r *running) user(t *testing.T, email, org string, role identity.Role) string {
	t.Helper()
	r.call(t, r.admin, "POST", "/users", map[string]string{"email": email, "password": goodPassword}, http.StatusCreated, nil)
	if role != identity.NoRole {
		grant := map[string]any{"org_memberships": []map[string]any{{"email": email, "role": role}}}
		r.call(t, r.admin, "POST", "/orgs/"+org+"/memberships", grant, http.StatusOK, nil)
	}
	return r.logIn(t, email, goodPassword)
}

// status makes a request with a bearer and returns the status of the answer.
func (r *running) status(t *testing.T, method, path, bearer, body string) (int, string) {
	t.Helper()
	header := map[string]string{"Authorization": "Bearer " + bearer}
	if body != "" {
		header["Content-Type"] = "application/json"
	}
	a, text := r.exchange(t, method, path, body, header)
	return a.StatusCode, text
}

// TestSupportedOperationsPerKeyType is the table of what each kind of key may do as
// a bearer, on a server of its own for each kind.
func TestSupportedOperationsPerKeyType(t *testing.T) {
	type cells struct{ login, api, recovery int }
	for _, test := range []struct {
		name, method, path, body string
		want                     cells
	}{
		{"ordinary: list things", "GET", "/things", "", cells{200, 200, 401}},
		{"ordinary: make a thing", "POST", "/things", `{"name":"x","type":"sensor"}`, cells{201, 201, 401}},
		{"ordinary: list devices", "GET", "/api/v1/devices", "", cells{200, 200, 401}},
		{"own profile", "GET", "/users/profile", "", cells{200, 200, 401}},
		{"own metadata", "PUT", "/users", `{"metadata":{"a":1}}`, cells{200, 200, 401}},
		{"organisations", "GET", "/orgs", "", cells{200, 200, 401}},
		{"make an organisation", "POST", "/orgs", `{"name":"o"}`, cells{201, 201, 401}},
		{"create an API key", "POST", "/keys", `{"type":2}`, cells{201, 403, 401}},
		{"create a login key as a key", "POST", "/keys", `{"type":0}`, cells{400, 400, 401}},
		{"create a recovery key as a key", "POST", "/keys", `{"type":1}`, cells{400, 400, 401}},
		{"a key of negative life", "POST", "/keys", `{"type":2,"duration":-1}`, cells{400, 400, 401}},
		{"list API keys", "GET", "/keys", "", cells{200, 200, 401}},
		{"view an API key", "GET", "/keys/KEY", "", cells{200, 200, 401}},
		{"view what is no API key", "GET", "/keys/01890a5d-ac96-774b-bcce-b302099a8057", "", cells{404, 404, 401}},
		{"change the own password", "PATCH", "/password", `{"password":"another long one of mine","old_password":"` + goodPassword + `"}`, cells{201, 403, 401}},
		{"revoke an API key", "DELETE", "/keys/KEY", "", cells{204, 204, 401}},
		{"reset the password", "PUT", "/password/reset", `{"token":"BEARER","password":"a lamp beneath the river","confirm_password":"a lamp beneath the river"}`, cells{401, 401, 201}},
		{"reset it again", "PUT", "/password/reset", `{"token":"BEARER","password":"a lamp beneath the river","confirm_password":"a lamp beneath the river"}`, cells{401, 401, 401}},
	} {
		t.Run(test.name, func(t *testing.T) {
			r := start(t)
			login := r.user(t, "ann@example.com", r.org, identity.Editor)
			var api, spare struct{ ID, Value string }
			r.call(t, login, "POST", "/keys", map[string]any{"type": 2}, http.StatusCreated, &api)
			r.call(t, login, "POST", "/keys", map[string]any{"type": 2}, http.StatusCreated, &spare)
			var me struct{ ID string }
			r.call(t, login, "GET", "/users/profile", nil, http.StatusOK, &me)
			for kind, want := range map[string]int{"login": test.want.login, "api": test.want.api, "recovery": test.want.recovery} {
				bearer := map[string]string{"login": login, "api": api.Value}[kind]
				if kind == "recovery" {
					var out struct{ Value string }
					r.call(t, r.admin, "POST", "/users/"+me.ID+"/recovery-key", nil, http.StatusCreated, &out)
					bearer = out.Value
				}
				if kind != "login" && test.path == "/password" {
					login = r.logInAny(t, "ann@example.com", goodPassword, "another long one of mine")
				}
				path := strings.ReplaceAll(test.path, "KEY", spare.ID)
				body := strings.ReplaceAll(test.body, "BEARER", bearer)
				if strings.HasSuffix(test.name, "again") && kind == "recovery" {
					r.status(t, test.method, path, bearer, body)
				}
				if got, text := r.status(t, test.method, path, bearer, body); got != want {
					t.Errorf("%s key: %d %s, want %d", kind, got, text, want)
				}
			}
		})
	}
}

// logInAny logs in with the first password that works.
func (r *running) logInAny(t *testing.T, email string, passwords ...string) string {
	t.Helper()
	for _, p := range passwords {
		body, _ := json.Marshal(map[string]string{"email": email, "password": p})
		if status, text := r.status(t, "POST", "/tokens", "", string(body)); status == http.StatusCreated {
			var out struct{ Token string }
			if err := json.Unmarshal([]byte(text), &out); err != nil {
				t.Fatal(err)
			}
			return out.Token
		}
	}
	t.Fatalf("no password of %s works", email)
	return ""
}

// TestAnotherOrganisationIsNotThere walks the whole route table as people who have
// nothing to do with an organisation, and as members with too small a role,
// with the ids of things that exist in it.
func TestAnotherOrganisationIsNotThere(t *testing.T) {
	r := start(t)
	var victim struct{ ID string }
	r.call(t, r.admin, "POST", "/orgs", map[string]string{"name": "victim"}, http.StatusCreated, &victim)
	in := func(method, path string, body any, into any) {
		t.Helper()
		b, err := json.Marshal(body)
		if err != nil {
			t.Fatal(err)
		}
		a, text := r.exchange(t, method, path, string(b), map[string]string{
			"Authorization": "Bearer " + r.admin, "X-Org-ID": victim.ID, "Content-Type": "application/json",
		})
		if a.StatusCode >= 300 {
			t.Fatalf("%s %s = %d %s", method, path, a.StatusCode, text)
		}
		if into != nil {
			if err := json.Unmarshal([]byte(text), into); err != nil {
				t.Fatal(err)
			}
		}
	}
	var made struct{ Things []struct{ ID, Key string } }
	in("POST", "/things", map[string]any{"name": "secret thing", "type": "sensor", "external_key": "known-serial"}, &made)
	thing := made.Things[0].ID
	var client struct{ ID string }
	in("POST", "/oauth/clients", map[string]any{"name": "secret client", "redirect_uris": []string{"https://a.example/"}}, &client)
	owner := r.user(t, "owner@example.com", victim.ID, identity.Owner)
	var key, me struct{ ID string }
	r.call(t, owner, "POST", "/keys", map[string]any{"type": 2}, http.StatusCreated, &key)
	r.call(t, owner, "GET", "/users/profile", nil, http.StatusOK, &me)
	var invite struct{ ID string }
	r.call(t, owner, "POST", "/orgs/"+victim.ID+"/invites", map[string]any{"email": "new@example.com", "role": "viewer"}, http.StatusCreated, &invite)

	callers := map[string]string{
		"stranger": r.user(t, "stranger@example.com", "", identity.NoRole),
		"viewer":   r.user(t, "viewer@example.com", r.org, identity.Viewer),
		"editor":   r.user(t, "editor@example.com", r.org, identity.Editor),
		"admin":    r.user(t, "admin@example.com", r.org, identity.Admin),
	}
	secrets := []string{"secret thing", "secret client", made.Things[0].Key, "known-serial", "owner@example.com", "new@example.com"}
	ids := map[string]string{":org": victim.ID, ":user": me.ID, ":member": me.ID, ":invite": invite.ID}
	cells := 0
	for _, name := range slices.Sorted(func(yield func(string) bool) {
		for route := range r.Routes() {
			if !yield(route) {
				return
			}
		}
	}) {
		need := r.Routes()[name]
		method, path, _ := strings.Cut(name, " ")
		if need == identity.Public || need == identity.DeviceOnly {
			continue
		}
		for param, value := range ids {
			path = strings.ReplaceAll(path, param, value)
		}
		switch {
		case strings.HasPrefix(path, "/keys/"):
			path = strings.ReplaceAll(path, ":id", key.ID)
		case strings.HasPrefix(path, "/oauth/clients"):
			path = strings.ReplaceAll(path, ":id", client.ID)
		default:
			path = strings.ReplaceAll(path, ":id", thing)
		}
		names := strings.Contains(path, thing) || strings.Contains(path, victim.ID) || strings.Contains(path, client.ID) || strings.Contains(path, invite.ID) ||
			strings.Contains(path, key.ID) && method != http.MethodDelete
		if strings.HasSuffix(path, "/live") {
			continue // it answers for as long as the client stays
		}
		for caller, bearer := range callers {
			for _, header := range []string{"", victim.ID} {
				h := map[string]string{"Authorization": "Bearer " + bearer, "Content-Type": "application/json"}
				if header != "" {
					h["X-Org-ID"] = header
				}
				req, err := http.NewRequestWithContext(t.Context(), method, r.url+path, strings.NewReader(`{}`))
				if err != nil {
					t.Fatal(err)
				}
				for k, v := range h {
					req.Header.Set(k, v)
				}
				resp, err := http.DefaultClient.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				var body []byte
				if resp.Header.Get("Content-Type") == "text/event-stream" {
					body, err = firstOf(resp.Body) // it goes on for ever
				} else {
					body, err = io.ReadAll(io.LimitReader(resp.Body, 1<<20))
				}
				resp.Body.Close()
				if err != nil {
					t.Fatal(err)
				}
				cells++
				switch {
				case (header != "" || names) && resp.StatusCode < 300:
					t.Errorf("%s %s as %s (X-Org-ID %.8q) = %d %s; want 404 or 403", method, path, caller, header, resp.StatusCode, body)
				case header != "" && resp.StatusCode != http.StatusNotFound && resp.StatusCode != http.StatusForbidden && resp.StatusCode != http.StatusBadRequest:
					t.Errorf("%s %s as %s in the foreign organisation = %d %s; want 404", method, path, caller, resp.StatusCode, body)
				}
				for _, s := range secrets {
					if strings.Contains(string(body), s) {
						t.Errorf("%s %s as %s tells %q", method, path, caller, s)
					}
				}
			}
		}
	}
	t.Logf("%d cells", cells)
	if cells < 500 {
		t.Errorf("only %d cells were tried: is the route table whole?", cells)
	}

	// A clash does not say whose key it was.
	status, text := r.status(t, "POST", "/things", callers["admin"], `{"name":"x","type":"sensor","external_key":"known-serial"}`)
	if status != http.StatusConflict || !strings.Contains(text, "entity already exists") {
		t.Errorf("a key of another organisation's thing: %d %s", status, text)
	}
	// And the thing is still there, as it was.
	a, text := r.exchange(t, "GET", "/things/"+thing, "", map[string]string{"Authorization": "Bearer " + owner})
	if a.StatusCode != http.StatusOK || !strings.Contains(text, "secret thing") {
		t.Errorf("afterwards its owner gets %d %s", a.StatusCode, text)
	}
}

func TestOldKeysAreDeadOnTheNextRequest(t *testing.T) {
	r := start(t)
	var made struct{ Things []struct{ ID, Key string } }
	r.call(t, r.admin, "POST", "/things", []map[string]any{{"name": "a", "type": "sensor", "external_key": "serial-1", "metadata": map[string]int{"floor": 2}}}, http.StatusCreated, &made)
	thing := made.Things[0]
	own := func(scheme, value string) int {
		t.Helper()
		a, _ := r.exchange(t, "GET", "/metadata", "", map[string]string{"Authorization": scheme + " " + value})
		return a.StatusCode
	}
	basic := base64.StdEncoding.EncodeToString([]byte(thing.ID + ":" + thing.Key))
	for scheme, value := range map[string]string{"Thing": thing.Key, "thing": thing.Key, "External": "serial-1", "Basic": basic} {
		if got := own(scheme, value); got != http.StatusOK {
			t.Errorf("%s: %d, want 200", scheme, got)
		}
	}
	if got := own("Bearer", thing.Key); got != http.StatusUnauthorized {
		t.Errorf("as a bearer: %d, want 401", got)
	}
	var shown map[string]any
	r.call(t, r.admin, "GET", "/things/"+thing.ID, nil, http.StatusOK, &shown)
	if shown["key"] != nil || shown["external_key"] != nil {
		t.Errorf("reading a thing shows its keys: %v", shown)
	}
	var rotated struct{ Key string }
	r.call(t, r.admin, "POST", "/things/"+thing.ID+"/key/rotate", nil, http.StatusOK, &rotated)
	if got := own("Thing", thing.Key); got != http.StatusUnauthorized {
		t.Errorf("the old key after a rotation: %d, want 401", got)
	}
	if got := own("Thing", rotated.Key); got != http.StatusOK {
		t.Errorf("the new key: %d, want 200", got)
	}
	r.call(t, r.admin, "PATCH", "/things/"+thing.ID+"/external-key", map[string]string{"key": "serial-2"}, http.StatusCreated, nil)
	if got := own("External", "serial-1"); got != http.StatusUnauthorized {
		t.Errorf("the old external key: %d, want 401", got)
	}
	if own("External", "serial-2") != http.StatusOK || own("Thing", rotated.Key) != http.StatusOK {
		t.Error("changing the external key touched another")
	}
	var who struct{ ID string }
	r.call(t, "", "POST", "/identify", map[string]string{"key": "serial-2", "type": "external"}, http.StatusOK, &who)
	if who.ID != thing.ID {
		t.Errorf("identify = %q, want the thing", who.ID)
	}
	r.call(t, r.admin, "POST", "/api/v1/devices/"+thing.ID+"/suspend", nil, http.StatusOK, nil)
	if got := own("Thing", rotated.Key); got != http.StatusUnauthorized {
		t.Errorf("of a suspended device: %d, want 401", got)
	}
	r.call(t, r.admin, "POST", "/api/v1/devices/"+thing.ID+"/resume", nil, http.StatusOK, nil)
	r.call(t, r.admin, "DELETE", "/things/"+thing.ID, nil, http.StatusNoContent, nil)
	if got := own("External", "serial-2"); got != http.StatusUnauthorized {
		t.Errorf("of a deleted thing: %d, want 401", got)
	}
}

func TestADisabledUsersKeysAreDeadAndTheLastAdministratorStays(t *testing.T) {
	r := start(t)
	login := r.user(t, "ann@example.com", r.org, identity.Editor)
	var api struct{ Value string }
	r.call(t, login, "POST", "/keys", map[string]any{"type": 2}, http.StatusCreated, &api)
	var me, root struct{ ID string }
	r.call(t, login, "GET", "/users/profile", nil, http.StatusOK, &me)
	r.call(t, r.admin, "GET", "/users/profile", nil, http.StatusOK, &root)
	if status, _ := r.status(t, "POST", "/users/"+root.ID+"/disable", login, ""); status != http.StatusForbidden {
		t.Errorf("a plain user disables the administrator: %d, want 403", status)
	}
	r.call(t, r.admin, "POST", "/users/"+root.ID+"/disable", nil, http.StatusConflict, nil)
	r.call(t, r.admin, "POST", "/users/"+me.ID+"/disable", nil, http.StatusNoContent, nil)
	for kind, bearer := range map[string]string{"login": login, "API": api.Value} {
		if status, _ := r.status(t, "GET", "/things", bearer, ""); status != http.StatusUnauthorized {
			t.Errorf("the disabled user's %s key: %d, want 401", kind, status)
		}
	}
	body := `{"email":"ann@example.com","password":"` + goodPassword + `"}`
	if status, _ := r.status(t, "POST", "/tokens", "", body); status != http.StatusUnauthorized {
		t.Errorf("its login: %d, want 401", status)
	}
}

// TestAuthorizationCodeThroughThePages goes the way of a browser.
func TestAuthorizationCodeThroughThePages(t *testing.T) {
	r := start(t)
	r.setUp(t)
	var client struct{ ID, Secret string }
	r.call(t, r.admin, "POST", "/oauth/clients", map[string]any{"name": "Dashboard <b>", "redirect_uris": []string{"https://app.example/back"}}, http.StatusCreated, &client)
	const verifier = "a verifier of at least forty-three characters"
	sum := sha256.Sum256([]byte(verifier))
	q := url.Values{
		"client_id": {client.ID}, "redirect_uri": {"https://app.example/back"}, "response_type": {"code"}, "state": {"xyz"}, "nonce": {"n"},
		"scope": {"openid devices:read"}, "code_challenge": {base64.RawURLEncoding.EncodeToString(sum[:])}, "code_challenge_method": {"S256"},
	}
	browser := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	cookie := ""
	send := func(method, path string, form url.Values, header ...string) (answer, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, r.url+path, strings.NewReader(form.Encode()))
		if err != nil {
			t.Fatal(err)
		}
		if form != nil {
			req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		}
		if cookie != "" {
			req.Header.Set("Cookie", cookie)
		}
		for i := 0; i < len(header); i += 2 {
			req.Header.Set(header[i], header[i+1])
		}
		resp, err := browser.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return answer{resp.StatusCode, resp.Header}, string(b)
	}
	resp, body := send("GET", "/oauth/authorize?"+q.Encode(), nil)
	csp := resp.Header.Get("Content-Security-Policy")
	if resp.StatusCode != http.StatusOK || !strings.Contains(body, `name="password"`) || !strings.Contains(csp, "frame-ancestors 'none'") || strings.Contains(csp, "unsafe") {
		t.Fatalf("without a session: %d, CSP %q, want the login page", resp.StatusCode, csp)
	}
	in := url.Values{"email": {"root@example.com"}, "password": {goodPassword}, "next": {q.Encode()}}
	if resp, _ := send("POST", "/oauth/login", in, "Sec-Fetch-Site", "cross-site"); resp.StatusCode != http.StatusForbidden {
		t.Errorf("a login form of another site: %d, want 403", resp.StatusCode)
	}
	resp, _ = send("POST", "/oauth/login", in)
	set := resp.Header.Get("Set-Cookie")
	if resp.StatusCode != http.StatusSeeOther || !strings.HasPrefix(set, "__Host-keystead=") || !strings.Contains(set, "HttpOnly") || !strings.Contains(set, "Secure") || !strings.Contains(set, "SameSite=Lax") {
		t.Fatalf("login = %d with cookie attributes %q", resp.StatusCode, set[strings.IndexByte(set+";", ';'):])
	}
	cookie, _, _ = strings.Cut(set, ";")
	_, body = send("GET", "/oauth/authorize?"+q.Encode(), nil)
	if !strings.Contains(body, "devices:read") || strings.Contains(body, "<b>") || !strings.Contains(body, "Dashboard &lt;b&gt;") {
		t.Fatalf("the consent page does not name the client or what it asks for:\n%s", body)
	}
	decision := url.Values{"decision": {"allow"}, "query": {q.Encode()}}
	if resp, _ := send("POST", "/oauth/authorize", decision, "Sec-Fetch-Site", "cross-site"); resp.StatusCode != http.StatusForbidden {
		t.Errorf("a decision of another site: %d, want 403", resp.StatusCode)
	}
	resp, _ = send("POST", "/oauth/authorize", decision)
	back, err := url.Parse(resp.Header.Get("Location"))
	if err != nil || back.Host != "app.example" || back.Query().Get("state") != "xyz" || back.Query().Get("iss") == "" || back.Query().Get("code") == "" {
		t.Fatalf("allowed = %d to %s", resp.StatusCode, back)
	}
	deny := url.Values{"decision": {"deny"}, "query": {q.Encode()}}
	resp, _ = send("POST", "/oauth/authorize", deny)
	if !strings.Contains(resp.Header.Get("Location"), "error=access_denied") {
		t.Errorf("denied = %s", resp.Header.Get("Location"))
	}
	basic := "Basic " + base64.StdEncoding.EncodeToString([]byte(client.ID+":"+client.Secret))
	grant := url.Values{
		"grant_type": {"authorization_code"}, "code": {back.Query().Get("code")}, "redirect_uri": {"https://app.example/back"}, "code_verifier": {verifier},
	}
	resp, body = send("POST", "/oauth/token", grant, "Authorization", basic)
	var tokens struct {
		Access  string `json:"access_token"`
		Refresh string `json:"refresh_token"`
		ID      string `json:"id_token"`
	}
	if err := json.Unmarshal([]byte(body), &tokens); err != nil || resp.StatusCode != http.StatusOK || tokens.Access == "" || tokens.Refresh == "" || tokens.ID == "" {
		t.Fatalf("token = %d %s", resp.StatusCode, body)
	}
	r.call(t, tokens.Access, "GET", "/api/v1/devices", nil, http.StatusOK, nil)
	r.call(t, tokens.Access, "POST", "/api/v1/devices", map[string]any{}, http.StatusForbidden, nil)
	resp, body = send("POST", "/oauth/introspect", url.Values{"token": {tokens.Access}}, "Authorization", basic)
	if !strings.Contains(body, `"active":true`) || !strings.Contains(body, client.ID) {
		t.Errorf("introspection = %d %s", resp.StatusCode, body)
	}
	resp, body = send("POST", "/oauth/token", url.Values{"grant_type": {"refresh_token"}, "refresh_token": {tokens.Refresh}}, "Authorization", basic)
	if resp.StatusCode != http.StatusOK {
		t.Errorf("refresh = %d %s", resp.StatusCode, body)
	}
	if resp, _ := send("POST", "/oauth/revoke", url.Values{"token": {tokens.Access}}, "Authorization", basic); resp.StatusCode != http.StatusOK {
		t.Errorf("revoke = %d", resp.StatusCode)
	}
	r.call(t, tokens.Access, "GET", "/api/v1/devices", nil, http.StatusUnauthorized, nil)
	bad := "Basic " + base64.StdEncoding.EncodeToString([]byte(client.ID+":wrong"))
	resp, body = send("POST", "/oauth/token", grant, "Authorization", bad)
	if resp.StatusCode != http.StatusUnauthorized || !strings.Contains(body, "invalid_client") || !strings.HasPrefix(resp.Header.Get("WWW-Authenticate"), "Basic") {
		t.Errorf("a wrong secret = %d %s", resp.StatusCode, body)
	}
	q.Set("redirect_uri", "https://evil.example/")
	if resp, _ := send("GET", "/oauth/authorize?"+q.Encode(), nil); resp.StatusCode != http.StatusBadRequest || resp.Header.Get("Location") != "" {
		t.Errorf("a foreign redirect URI = %d to %q, want 400 and nowhere", resp.StatusCode, resp.Header.Get("Location"))
	}
}

func TestOrganisationsAreLimited(t *testing.T) {
	r := start(t)
	r.call(t, r.admin, "PUT", "/orgs/"+r.org+"/limits", map[string]int{"devices": 2}, http.StatusOK, nil)
	for i := range 2 {
		r.call(t, r.admin, "POST", "/things", map[string]any{"name": strconv.Itoa(i), "type": "sensor"}, http.StatusCreated, nil)
	}
	r.call(t, r.admin, "POST", "/things", map[string]any{"name": "3", "type": "sensor"}, http.StatusRequestEntityTooLarge, nil)
	r.call(t, r.admin, "POST", "/api/v1/devices", map[string]any{"name": "3"}, http.StatusRequestEntityTooLarge, nil)
	r.call(t, r.admin, "DELETE", "/orgs/"+r.org, nil, http.StatusConflict, nil)
}

// firstOf reads what a stream has to say in its first moments.
func firstOf(stream io.ReadCloser) ([]byte, error) {
	stop := time.AfterFunc(100*time.Millisecond, func() { stream.Close() })
	defer stop.Stop()
	var all []byte
	buffer := make([]byte, 4096)
	for {
		n, err := stream.Read(buffer)
		if all = append(all, buffer[:n]...); err != nil {
			return all, nil // it was ended, by us
		}
	}
}
