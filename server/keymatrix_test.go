package server_test

import (
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"keystead/config"
	"keystead/id"
	"keystead/identity"
	"keystead/messages/sink"
)

// presented is a key, or whatever else a caller may show, and what it stands for by the
// rules: nothing here is asked of the server.
type presented struct {
	name   string
	header string // the Authorization header; "" for none
	client *http.Client
	org    string

	proven bool
	device bool
	thing  bool // the device is one
	member bool // of org
	role   identity.Role
	scopes []identity.Need // nil for all
	person bool            // somebody who has logged in is behind it
	user   bool            // it is of an account, which has a profile and keys
}

// roleFor is the least role that holds a permission: viewers look, editors make
// and change, administrators delete, see secrets, and look after members and
// authorities, owners end the organisation, the platform is its administrators'. What is
// one's own needs no role.
var roleFor = map[identity.Need]identity.Role{
	identity.AccountRead: identity.NoRole, identity.AccountWrite: identity.NoRole,
	identity.DevicesRead: identity.Viewer, identity.CredentialsRead: identity.Viewer, identity.PKIRead: identity.Viewer,
	identity.BootstrapRead: identity.Viewer, identity.SessionsRead: identity.Viewer, identity.TokensVerify: identity.Viewer, identity.OrgRead: identity.Viewer,
	identity.DevicesWrite: identity.Editor, identity.CredentialsWrite: identity.Editor, identity.BootstrapWrite: identity.Editor, identity.SessionsWrite: identity.Editor,
	identity.DevicesEnd: identity.Admin, identity.CredentialsReveal: identity.Admin, identity.PKIWrite: identity.Admin, identity.TokensAdmin: identity.Admin,
	identity.AuditRead: identity.Admin, identity.OrgAdmin: identity.Admin, identity.OrgOwn: identity.Owner, identity.Platform: identity.Operator,
}

// none is the organisation of who is of none.
const none = "none"

// forPeople are the operations that take somebody who has logged in: an API key
// makes no other, changes no password, and sets up no second factor.
var forPeople = []string{
	"POST /keys", "PATCH /password", "POST /users/totp", "POST /users/totp/confirm", "DELETE /users/:user/totp",
	"POST /users/passkeys/begin", "POST /users/passkeys", "PUT /users/:user/passkeys/:id", "DELETE /users/:user/passkeys/:id",
	"DELETE /users/:user/second-factor",
}

// forAccounts are those of a user's own account, which keys that are no user's do not have.
var forAccounts = []string{
	"GET /users/profile", "PUT /users", "GET /keys", "GET /oauth/userinfo", "DELETE /keys/:id", "POST /users/passkeys/begin", "POST /users/totp",
	"POST /invites/:invite/accept", "POST /invites/:invite/decline",
}

// ownRules are public routes that look at what a caller shows by rules of their own,
// which tests of their own hold them to.
var ownRules = []string{
	"GET /", "POST /oauth/introspect", "GET /api/internal/v1/devauth/tokens/verify", "POST /api/internal/v1/devauth/tokens/verify",
}

func hasOwnRules(route string) bool {
	return slices.Contains(ownRules, route) || strings.Contains(route, "/.well-known/est") // enrolment proves who asks in its own ways
}

// want is the status that the rules give a cell. reference is what the platform's
// administrator, who may do everything, gets there, and public what nobody gets.
func (k presented) want(route string, need identity.Need, reference, public int) int {
	switch {
	case need == identity.Public:
		return public
	case !k.proven:
		return http.StatusUnauthorized
	case route == "POST /http/messages" && k.device:
		return http.StatusUnsupportedMediaType // application/json is no SenML
	case need == identity.Proven:
		return reference
	case need == identity.DeviceOnly && k.thing:
		return http.StatusOK
	case need == identity.DeviceOnly && k.device:
		return http.StatusNotFound // only things have what it asks for
	case need == identity.DeviceOnly:
		return http.StatusForbidden
	case !k.device && !k.member && strings.Contains(route, "/:org"):
		return http.StatusNotFound // who is no member cannot tell that it exists
	case k.device, k.scopes != nil && !slices.Contains(k.scopes, need), !k.role.AtLeast(roleFor[need]):
		return http.StatusForbidden
	case !k.person && slices.Contains(forPeople, route):
		return http.StatusForbidden
	}
	return reference
}

// TestEveryKeyOnEveryRoute is the table of supported operations by type of key: each
// kind of key there is, on each route there is. A route that is added is walked by itself.
func TestEveryKeyOnEveryRoute(t *testing.T) {
	t.Parallel()
	r := start(t, func(c *config.Config) {
		c.TrustedProxies = []string{"127.0.0.1/32"}
		c.Messages.Sinks = []sink.Config{{Name: "file", Type: "file", Path: filepath.Join(t.TempDir(), "messages")}}
	})
	secure := httptest.NewUnstartedServer(r.Handler())
	secure.TLS = &tls.Config{ClientAuth: tls.RequestClientCert, MinVersion: tls.VersionTLS12}
	secure.StartTLS()
	t.Cleanup(secure.Close)
	plain := secure.Client()

	keys := r.everyKey(t, secure)
	cells := 0
	at := netip.MustParseAddr("198.18.0.1")
	send := func(k presented, method, path, body string) (int, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, secure.URL+path, strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		at = at.Next() // attempts that fail are few for one address
		req.Header.Set("X-Forwarded-For", at.String())
		req.Header.Set("Content-Type", "application/json")
		if strings.HasPrefix(path, "/oauth/") && !strings.HasPrefix(path, "/oauth/clients") || strings.HasPrefix(path, "/account") {
			req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		}
		if k.header != "" {
			req.Header.Set("Authorization", k.header)
		}
		c := *plain
		if k.client != nil {
			c = *k.client
		}
		c.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
		resp, err := c.Do(req)
		if err != nil {
			t.Fatalf("%s %s: %v", method, path, err)
		}
		defer resp.Body.Close()
		if resp.Header.Get("Content-Type") == "text/event-stream" {
			return resp.StatusCode, ""
		}
		b, err := io.ReadAll(io.LimitReader(resp.Body, 4<<20))
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, string(b)
	}
	nothing := id.New(r.Now())
	routes := r.Routes()
	var names []string
	for name := range routes {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, route := range names {
		need := routes[route]
		if _, known := roleFor[need]; !known && need != identity.Public && need != identity.Proven && need != identity.DeviceOnly {
			t.Errorf("%s needs %q, of which this test knows no rule", route, need)
			continue
		}
		method, pattern, _ := strings.Cut(route, " ")
		body := map[string]string{
			"POST /keys": `{"type":2}`, "PATCH /password": `{"password":"a lamp beneath the river","old_password":"not it"}`,
		}[route]
		if body == "" && method != http.MethodGet && method != http.MethodHead && method != http.MethodDelete {
			body = "{}"
		}
		path := func(k presented) string {
			segments := strings.Split(pattern, "/")
			for i, s := range segments {
				switch {
				case s == ":org":
					segments[i] = k.org
				case strings.HasPrefix(s, ":"), s == "*":
					segments[i] = nothing
				}
			}
			return strings.Join(segments, "/")
		}
		ref, _ := send(keys[0], method, path(keys[0]), body)
		public := 0
		if need == identity.Public {
			public, _ = send(presented{}, method, path(keys[0]), body)
		}
		for _, k := range keys {
			cells++
			got, text := send(k, method, path(k), body)
			if got >= 500 && route != "GET /api/internal/v1/devauth/health" { // which says that the server of this test was not run
				t.Errorf("%s with %s: %d %.200s", route, k.name, got, text)
			}
			if hasOwnRules(route) {
				continue
			}
			want := k.want(route, need, ref, public)
			if route == "POST /api/v1/enrolment-tokens" && k.org != r.org && want == ref {
				want = http.StatusNotFound // that organisation has no profile to enrol by
			}
			if want == ref && k.proven && !k.user && slices.Contains(forAccounts, route) && need != identity.Public {
				if got == http.StatusUnauthorized || got == http.StatusOK && strings.HasPrefix(route, "GET /users") {
					t.Errorf("%s with %s, which has no account: %d %.200s", route, k.name, got, text)
				}
				continue
			}
			if got != want {
				t.Errorf("%s (needs %s) with %s: %d %.200s, want %d", route, need, k.name, got, text, want)
			}
			if got == http.StatusUnauthorized && need != identity.Public && !strings.Contains(text, "error") && !strings.Contains(text, "Error") {
				t.Errorf("%s with %s: 401 that does not say why: %.200s", route, k.name, text)
			}
		}
	}
	t.Logf("figure: %d cells, %d kinds of keys on %d routes", cells, len(keys), len(names))
}

// everyKey makes one of each; the first is the platform administrator's login.
func (r *running) everyKey(t *testing.T, secure *httptest.Server) []presented {
	t.Helper()
	root := r.setUp(t)
	bearer := func(name, text string, k presented) presented {
		k.name, k.header, k.proven = name, "Bearer "+text, true
		k.member = k.role != identity.NoRole && k.org != none
		if k.org == "" || k.org == none {
			k.org = r.org
		}
		return k
	}
	apiKey := func(login string, scopes ...identity.Need) string {
		t.Helper()
		var made struct{ Value string }
		r.call(t, login, "POST", "/keys", map[string]any{"type": 2, "scopes": scopes}, http.StatusCreated, &made)
		return made.Value
	}
	keys := []presented{bearer("a login key of the platform's administrator", root, presented{role: identity.Operator, person: true, user: true})}
	keys = append(keys, bearer("an API key of the platform's administrator", apiKey(root), presented{role: identity.Operator, user: true}))
	for _, role := range []identity.Role{identity.NoRole, identity.Viewer, identity.Editor, identity.Admin, identity.Owner} {
		email := "r" + string(role) + "@example.com"
		login := r.user(t, email, r.org, role)
		named := fmt.Sprintf("of a user with the role %q", role)
		keys = append(keys, bearer("a login key "+named, login, presented{role: role, person: true, user: true}))
		keys = append(keys, bearer("an API key "+named, apiKey(login), presented{role: role, user: true}))
		if role != identity.Owner {
			continue
		}
		scopes := []identity.Need{identity.DevicesRead, identity.PKIWrite}
		keys = append(keys, bearer("an API key with scopes "+named, apiKey(login, scopes...), presented{role: role, scopes: scopes, user: true}))
	}

	// Recovery keys, and what is no key at all.
	r.user(t, "forgetful@example.com", r.org, identity.Owner)
	var list struct{ Users []struct{ ID, Email string } }
	r.call(t, r.admin, "GET", "/users?email=forgetful", nil, http.StatusOK, &list)
	var recovery struct{ Value string }
	r.call(t, r.admin, "POST", "/users/"+list.Users[0].ID+"/recovery-key", nil, http.StatusCreated, &recovery)
	for name, header := range map[string]string{
		"nothing": "", "a recovery key": "Bearer " + recovery.Value, "garbage": "Bearer garbage", "an API key that was changed": "Bearer " + apiKey(root) + "x",
		"a scheme that is none": "Pat", "a token of three dots": "Bearer a.b.c",
	} {
		keys = append(keys, presented{name: name, header: header, org: r.org})
	}

	// Access keys: an organisation's administrates it, the platform's makes organisations.
	token, _ := r.newOrg(t, "acme")
	var who struct{ Organisation string }
	r.call(t, token, "GET", "/api/v1/whoami", nil, http.StatusOK, &who)
	keys = append(keys, bearer("an access key of an organisation", token, presented{role: identity.Admin, person: false, org: who.Organisation}))
	key, secret := r.platform(t)
	platform := r.login(t, "grant_type", "password", "username", key, "password", secret).AccessToken
	keys = append(keys, bearer("the platform's access key", platform, presented{role: identity.Admin, org: none, scopes: []identity.Need{identity.OrgAdmin, identity.OrgRead}}))

	// Devices.
	var made struct{ Things []struct{ ID, Key string } }
	r.call(t, r.admin, "POST", "/things", []map[string]any{{"name": "a", "type": "sensor", "external_key": "serial-1"}}, http.StatusCreated, &made)
	thing := made.Things[0]
	_, _, jwt := r.accepted(t, "de:ad:be:ef:00:02")
	for name, header := range map[string]string{
		"a thing key": "Thing " + thing.Key, "an external key": "External serial-1", "a thing key as Basic": "Basic " + base64.StdEncoding.EncodeToString([]byte(thing.ID+":"+thing.Key)),
	} {
		keys = append(keys, presented{name: name, header: header, proven: true, device: true, thing: true, org: r.org})
	}
	keys = append(keys, presented{name: "a device token", header: "Bearer " + jwt, proven: true, device: true, org: r.org})
	resp, body := r.exchange(t, "POST", "/identities/certificates", "", map[string]string{"Authorization": "Bearer " + token})
	var cert struct{ RawCertificate string }
	if err := json.Unmarshal([]byte(body), &cert); err != nil || resp.StatusCode != http.StatusCreated {
		t.Fatalf("a certificate: %d %s", resp.StatusCode, body)
	}
	pair, err := tls.X509KeyPair([]byte(cert.RawCertificate), []byte(cert.RawCertificate))
	if err != nil {
		t.Fatal(err)
	}
	transport, ok := secure.Client().Transport.(*http.Transport)
	if !ok {
		t.Fatal("the client has no transport")
	}
	transport = transport.Clone()
	transport.TLSClientConfig.Certificates = []tls.Certificate{pair}
	t.Cleanup(transport.CloseIdleConnections)
	return append(keys, presented{name: "a client certificate", client: &http.Client{Transport: transport}, proven: true, device: true, org: r.org})
}

// TestRulesKnowEveryPermission keeps the rules above whole.
func TestRulesKnowEveryPermission(t *testing.T) {
	for _, need := range identity.Permissions() {
		if _, ok := roleFor[need]; !ok {
			t.Errorf("there is no rule for the permission %s", need)
		}
	}
}
