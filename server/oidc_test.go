package server_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"keystead/accounts"
	"keystead/config"
	"keystead/identity"
)

// provider is a small OpenID provider of the tests' own.
type provider struct {
	*httptest.Server

	mu     sync.Mutex
	key    *ecdsa.PrivateKey
	kid    int
	claims jwt.MapClaims // of the next ID token, over the usual ones
	method jwt.SigningMethod
	nonce  string
}

func newProvider(t *testing.T) *provider {
	t.Helper()
	p := &provider{method: jwt.SigningMethodES256}
	p.rotate(t)
	mux := http.NewServeMux()
	mux.HandleFunc("/.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		json.NewEncoder(w).Encode(map[string]any{
			"issuer": p.URL, "authorization_endpoint": p.URL + "/authorize", "token_endpoint": p.URL + "/token", "jwks_uri": p.URL + "/keys",
		})
	})
	mux.HandleFunc("/keys", func(w http.ResponseWriter, _ *http.Request) {
		p.mu.Lock()
		defer p.mu.Unlock()
		x, y := make([]byte, 32), make([]byte, 32)
		p.key.X.FillBytes(x)
		p.key.Y.FillBytes(y)
		enc := base64.RawURLEncoding.EncodeToString
		json.NewEncoder(w).Encode(map[string]any{"keys": []map[string]string{
			{"kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": strconv.Itoa(p.kid), "x": enc(x), "y": enc(y)},
		}})
	})
	mux.HandleFunc("/token", func(w http.ResponseWriter, r *http.Request) {
		if r.FormValue("code") != "good" || len(r.FormValue("code_verifier")) < 43 {
			http.Error(w, `{"error":"invalid_grant"}`, http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(map[string]any{"access_token": "a", "token_type": "Bearer", "id_token": p.idToken(t)})
	})
	p.Server = httptest.NewServer(mux)
	t.Cleanup(p.Close)
	return p
}

func (p *provider) rotate(t *testing.T) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.key = key
	p.kid++
}

func (p *provider) idToken(t *testing.T) string {
	p.mu.Lock()
	defer p.mu.Unlock()
	claims := jwt.MapClaims{
		"iss": p.URL, "aud": "keystead", "sub": "subject-1", "nonce": p.nonce, "name": "Ann Outside", "email": "ann@example.com",
		"iat": time.Now().Unix(), "exp": time.Now().Add(time.Minute).Unix(),
	}
	maps.Copy(claims, p.claims)
	token := jwt.NewWithClaims(p.method, claims)
	token.Header["kid"] = strconv.Itoa(p.kid)
	var key any = p.key
	switch p.method.Alg() {
	case "HS256":
		key = []byte("secret")
	case "none":
		key = jwt.UnsafeAllowNoneSignatureType
	}
	text, err := token.SignedString(key)
	if err != nil {
		t.Error(err)
	}
	return text
}

// logInOutside goes the way of a browser, and returns the answer of the callback.
func (r *running) logInOutside(t *testing.T, p *provider, change func(callback url.Values)) (answer, string) {
	t.Helper()
	noRedirect := *http.DefaultClient
	noRedirect.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	get := func(path, cookie string) answer {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, r.url+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if cookie != "" {
			req.Header.Set("Cookie", cookie)
		}
		resp, err := noRedirect.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return answer{resp.StatusCode, resp.Header}
	}
	begun := get("/users/oauth/corp", "")
	to, err := url.Parse(begun.Header.Get("Location"))
	if err != nil || begun.StatusCode != http.StatusSeeOther || !strings.HasPrefix(to.String(), p.URL+"/authorize?") || to.Query().Get("code_challenge_method") != "S256" {
		t.Fatalf("begin = %d to %s", begun.StatusCode, to)
	}
	cookie, _, _ := strings.Cut(begun.Header.Get("Set-Cookie"), ";")
	p.mu.Lock()
	p.nonce = to.Query().Get("nonce")
	p.mu.Unlock()
	q := url.Values{"code": {"good"}, "state": {to.Query().Get("state")}}
	if change != nil {
		change(q)
	}
	if q.Has("nocookie") {
		cookie = ""
	}
	end := get("/users/oauth/corp/callback?"+q.Encode(), cookie)
	session := ""
	for _, c := range end.Header.Values("Set-Cookie") {
		if value, ok := strings.CutPrefix(c, "__Host-keystead="); ok {
			session, _, _ = strings.Cut(value, ";")
		}
	}
	return end, session
}

func TestOpenIDLogin(t *testing.T) {
	p := newProvider(t)
	conf := accounts.Provider{Name: "corp", Issuer: p.URL, ClientID: "keystead", Create: true}
	r := start(t, func(c *config.Config) { c.Accounts.OIDC = []accounts.Provider{conf} })
	who := func(session string) identity.Actor {
		t.Helper()
		a, err := r.Accounts.Resolve(t.Context(), identity.Proof{Scheme: "Session", Value: session})
		if err != nil {
			t.Fatalf("the session: %v", err)
		}
		return a
	}
	end, session := r.logInOutside(t, p, nil)
	if end.StatusCode != http.StatusSeeOther || end.Header.Get("Location") != "/account" || session == "" {
		t.Fatalf("login = %d, want a session", end.StatusCode)
	}
	first := who(session)

	p.rotate(t) // the key set is fetched again for a key that is not known
	if _, session = r.logInOutside(t, p, nil); session == "" || who(session).ID != first.ID {
		t.Error("after the provider's keys were rotated the same person is not let in as the same user")
	}

	set := func(method jwt.SigningMethod, claims jwt.MapClaims) {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.method, p.claims = method, claims
	}
	for name, test := range map[string]struct {
		method jwt.SigningMethod
		claims jwt.MapClaims
		change func(url.Values)
		want   int
	}{
		"wrong audience":  {claims: jwt.MapClaims{"aud": "another"}, want: 401},
		"wrong issuer":    {claims: jwt.MapClaims{"iss": "https://evil.example"}, want: 401},
		"expired":         {claims: jwt.MapClaims{"exp": time.Now().Add(-time.Hour).Unix()}, want: 401},
		"another nonce":   {claims: jwt.MapClaims{"nonce": "x"}, want: 401},
		"no signature":    {method: jwt.SigningMethodNone, want: 401},
		"symmetric":       {method: jwt.SigningMethodHS256, want: 401},
		"wrong code":      {change: func(q url.Values) { q.Set("code", "bad") }, want: 401},
		"wrong state":     {change: func(q url.Values) { q.Set("state", "x") }, want: 400},
		"no state":        {change: func(q url.Values) { q.Del("state") }, want: 400},
		"another browser": {change: func(q url.Values) { q.Set("nocookie", "") }, want: 400},
	} {
		if test.method == nil {
			test.method = jwt.SigningMethodES256
		}
		set(test.method, test.claims)
		if end, session := r.logInOutside(t, p, test.change); end.StatusCode != test.want || session != "" {
			t.Errorf("%s: %d, session %v; want %d and none", name, end.StatusCode, session != "", test.want)
		}
	}

	// An account with the address is there; the provider's word does not open it.
	r.user(t, "root2@example.com", r.org, identity.Admin)
	for _, verified := range []bool{false, true} {
		set(jwt.SigningMethodES256, jwt.MapClaims{"sub": fmt.Sprint("thief", verified), "email": "root2@example.com", "email_verified": verified})
		_, session := r.logInOutside(t, p, nil)
		if session == "" {
			continue
		}
		if a := who(session); a.Role != identity.NoRole {
			t.Errorf("somebody with the address of another (verified: %v) got in as %+v", verified, a)
		}
	}
}

func TestOpenIDRoles(t *testing.T) {
	p := newProvider(t)
	r := start(t)
	org := r.org
	conf := accounts.Provider{Name: "corp", Issuer: p.URL, ClientID: "keystead", Create: true, Roles: []accounts.GroupRole{
		{Group: "ops", Org: org, Role: identity.Editor}, {Group: "all", Org: org, Role: identity.Viewer},
	}}
	login := func(groups ...string) identity.Role {
		t.Helper()
		u, err := r.Accounts.LogInExternal(t.Context(), conf, accounts.External{Issuer: p.URL, Subject: "s", Groups: groups})
		if err != nil {
			t.Fatal(err)
		}
		text, _, err := r.Accounts.OpenSession(t.Context(), u, time.Time{})
		if err != nil {
			t.Fatal(err)
		}
		a, err := r.Accounts.Resolve(t.Context(), identity.Proof{Scheme: "Session", Value: string(text)})
		if err != nil {
			t.Fatal(err)
		}
		return a.Role
	}
	for _, test := range []struct {
		groups []string
		want   identity.Role
	}{
		{nil, identity.NoRole},
		{[]string{"all"}, identity.Viewer},
		{[]string{"all", "ops"}, identity.Editor},
		{[]string{"all", "others"}, identity.Viewer},
		{[]string{"others"}, identity.NoRole},
	} {
		if got := login(test.groups...); got != test.want {
			t.Errorf("with the groups %v: %q, want %q", test.groups, got, test.want)
		}
	}
	conf.Create = false
	if _, err := r.Accounts.LogInExternal(t.Context(), conf, accounts.External{Issuer: p.URL, Subject: "nobody"}); err == nil {
		t.Error("somebody unknown got an account although none are made")
	}
	if _, err := r.Accounts.LogInExternal(t.Context(), conf, accounts.External{Issuer: "https://other.example", Subject: "s"}); err == nil {
		t.Error("the subject of another issuer was let in")
	}
}

func TestAProviderThatIsAwayDoesNotStopTheServer(t *testing.T) {
	p := newProvider(t)
	p.Close()
	r := start(t, func(c *config.Config) {
		c.Accounts.OIDC = []accounts.Provider{{Name: "corp", Issuer: p.URL, ClientID: "keystead"}}
	})
	r.call(t, "", "GET", "/users/oauth/corp", nil, http.StatusServiceUnavailable, nil)
	r.call(t, "", "GET", "/users/oauth/other", nil, http.StatusNotFound, nil)
	r.call(t, r.admin, "GET", "/things", nil, http.StatusOK, nil)
}
