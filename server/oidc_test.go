package server_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"keystead/accounts"
	"keystead/config"
	"keystead/identity"
	"keystead/internal/openidtest"
)

// logInOutside goes the way of a browser, and returns the answer of the callback.
func (r *running) logInOutside(t *testing.T, p *openidtest.Provider, change func(callback url.Values)) (answer, string) {
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
	p.Expect(to.Query().Get("nonce"))
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
	p := openidtest.New(t)
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

	p.Rotate(t) // the key set is fetched again for a key that is not known
	if _, session = r.logInOutside(t, p, nil); session == "" || who(session).ID != first.ID {
		t.Error("after the provider's keys were rotated the same person is not let in as the same user")
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
		p.Claim(test.method, test.claims)
		if end, session := r.logInOutside(t, p, test.change); end.StatusCode != test.want || session != "" {
			t.Errorf("%s: %d, session %v; want %d and none", name, end.StatusCode, session != "", test.want)
		}
	}

	// An account with the address is there; the provider's word does not open it.
	r.user(t, "root2@example.com", r.org, identity.Admin)
	for _, verified := range []bool{false, true} {
		p.Claim(jwt.SigningMethodES256, jwt.MapClaims{"sub": fmt.Sprint("thief", verified), "email": "root2@example.com", "email_verified": verified})
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
	p := openidtest.New(t)
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
	p := openidtest.New(t)
	p.Close()
	r := start(t, func(c *config.Config) {
		c.Accounts.OIDC = []accounts.Provider{{Name: "corp", Issuer: p.URL, ClientID: "keystead"}}
	})
	r.call(t, "", "GET", "/users/oauth/corp", nil, http.StatusServiceUnavailable, nil)
	r.call(t, "", "GET", "/users/oauth/other", nil, http.StatusNotFound, nil)
	r.call(t, r.admin, "GET", "/things", nil, http.StatusOK, nil)
}

// While a provider hangs one login asks it, whoever gives up waits no longer, those who
// wait get in when it answers, and nobody else is held up.
func TestAProviderThatHangsHoldsUpNobody(t *testing.T) {
	p, other := openidtest.New(t), openidtest.New(t)
	answers := make(chan struct{})
	p.Silent(answers)
	r := start(t, func(c *config.Config) {
		for name, at := range map[string]string{"corp": p.URL, "other": other.URL} {
			c.Accounts.OIDC = append(c.Accounts.OIDC, accounts.Provider{Name: name, Issuer: at, ClientID: "keystead"})
		}
	})
	begin := func(ctx context.Context, provider string) int {
		w := httptest.NewRecorder()
		r.Handler().ServeHTTP(w, httptest.NewRequestWithContext(ctx, http.MethodGet, "/users/oauth/"+provider, nil))
		return w.Code
	}
	first, giveUp := context.WithCancel(t.Context())
	gone := make(chan int, 1)
	go func() { gone <- begin(first, "corp") }()
	for p.Asked() == 0 {
		time.Sleep(time.Millisecond)
	}
	const people = 8
	waiting := make(chan int, people)
	for range people {
		go func() { waiting <- begin(t.Context(), "corp") }()
	}
	giveUp()
	if code := <-gone; code != http.StatusServiceUnavailable {
		t.Errorf("who gave up: got %d, want 503", code)
	}
	if code := begin(t.Context(), "other"); code != http.StatusSeeOther {
		t.Errorf("at another provider meanwhile: got %d, want 303", code)
	}
	r.call(t, r.admin, "GET", "/things", nil, http.StatusOK, nil)
	close(answers)
	for range people {
		if code := <-waiting; code != http.StatusSeeOther {
			t.Errorf("who waited: got %d, want 303", code)
		}
	}
	if n := p.Asked(); n != 1 {
		t.Errorf("the provider was asked %d times, want once", n)
	}
}
