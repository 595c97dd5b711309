package accounts_test

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"keystead/accounts"
	"keystead/fault"
	"keystead/identity"
)

const (
	verifier = "a verifier of at least forty-three characters"
	redirect = "https://app.example/back"
)

func challenge() string {
	sum := sha256.Sum256([]byte(verifier))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}

// app is a confidential client and somebody who uses it.
type app struct {
	*world
	client accounts.Client
	proof  accounts.ClientProof
	user   accounts.User
	in     context.Context // the user, logged in
}

func newApp(t *testing.T, n accounts.NewClient) *app {
	t.Helper()
	w := newWorld(t, withTokens)
	a := &app{world: w, user: w.ann(t)}
	if err := w.AddMembers(w.admin(t), w.first.Org.ID, []accounts.Grant{{Email: a.user.Email, Role: identity.Editor}}); err != nil {
		t.Fatal(err)
	}
	a.in = w.as(t, a.user.ID, w.first.Org.ID, identity.Editor)
	n.Name, n.Redirects = "app", []string{redirect}
	c, secret, err := w.CreateClient(w.admin(t), n)
	if err != nil {
		t.Fatal(err)
	}
	a.client, a.proof = c, accounts.ClientProof{ID: c.ID, Secret: string(secret), From: netip.MustParseAddr("192.0.2.7")}
	return a
}

func (a *app) request() accounts.Authorization {
	return accounts.Authorization{
		Client: a.client.ID, Redirect: redirect, Type: "code", Scope: "openid devices:read", State: "s",
		Challenge: challenge(), Method: "S256", Nonce: "n",
	}
}

func (a *app) approve(t *testing.T, r accounts.Authorization) string {
	t.Helper()
	code, err := a.Approve(a.in, r)
	if err != nil {
		t.Fatal(err)
	}
	return string(code)
}

func wantOAuth(t *testing.T, what string, err error, code string) {
	t.Helper()
	if e, ok := errors.AsType[*accounts.OAuthError](err); !ok || e.Code != code {
		t.Errorf("%s: error = %v, want %s", what, err, code)
	}
}

func TestAuthorizationCode(t *testing.T) {
	a := newApp(t, accounts.NewClient{})
	set, err := a.Exchange(t.Context(), a.proof, a.approve(t, a.request()), redirect, verifier)
	if err != nil {
		t.Fatal(err)
	}
	if set.ExpiresIn != time.Hour || set.Refresh == nil || set.ID == "" || set.User != a.user.ID {
		t.Errorf("tokens = %+v, want an hour's access, a refresh and an ID token", set)
	}
	actor, err := a.bearer(t.Context(), set.Access, "")
	if err != nil || actor.ID != a.user.ID || actor.Role != identity.Editor || !actor.May(identity.DevicesRead) || actor.May(identity.DevicesWrite) {
		t.Errorf("the access token resolves to %+v, %v; want ann, limited to devices:read", actor, err)
	}
	wantKind(t, "the ID token as a bearer", second(a.bearer(t.Context(), set.ID, "")), fault.Unauthenticated)
	wantKind(t, "the refresh token as a bearer", second(a.bearer(t.Context(), string(set.Refresh), "")), fault.Unauthenticated)
	wantKind(t, "in another organisation", second(a.bearer(t.Context(), set.Access, "elsewhere")), fault.NotFound)
	_, _, err = a.CreateAPIKey(identity.NewContext(t.Context(), actor), accounts.NewAPIKey{})
	wantKind(t, "an access token that makes an API key", err, fault.Forbidden)
}

func TestWrongExchanges(t *testing.T) {
	a := newApp(t, accounts.NewClient{})
	other, secret, err := a.CreateClient(a.admin(t), accounts.NewClient{Name: "other", Redirects: []string{redirect}})
	if err != nil {
		t.Fatal(err)
	}
	stranger := accounts.ClientProof{ID: other.ID, Secret: string(secret), From: a.proof.From}
	bad := a.proof
	bad.Secret = string(secret)
	none := a.proof
	none.Secret = ""
	for _, test := range []struct {
		name               string
		proof              accounts.ClientProof
		redirect, verifier string
		late               time.Duration
		want               string
	}{
		{"another client", stranger, redirect, verifier, 0, "invalid_grant"},
		{"another's secret", bad, redirect, verifier, 0, "invalid_client"},
		{"no secret", none, redirect, verifier, 0, "invalid_client"},
		{"another redirect URI", a.proof, redirect + "/", verifier, 0, "invalid_grant"},
		{"another verifier", a.proof, redirect, verifier + "x", 0, "invalid_grant"},
		{"no verifier", a.proof, redirect, "", 0, "invalid_grant"},
		{"too late", a.proof, redirect, verifier, time.Minute, "invalid_grant"},
	} {
		code := a.approve(t, a.request())
		a.pass(test.late)
		_, err := a.Exchange(t.Context(), test.proof, code, test.redirect, test.verifier)
		wantOAuth(t, test.name, err, test.want)
	}
	_, err = a.Exchange(t.Context(), a.proof, "garbage", redirect, verifier)
	wantOAuth(t, "garbage", err, "invalid_grant")
}

func TestACodeWorksOnce(t *testing.T) {
	a := newApp(t, accounts.NewClient{})
	code := a.approve(t, a.request())
	var worked atomic.Int32
	var access atomic.Value
	var group sync.WaitGroup
	for range 20 {
		group.Go(func() {
			if set, err := a.Exchange(t.Context(), a.proof, code, redirect, verifier); err == nil {
				worked.Add(1)
				access.Store(set.Access)
			}
		})
	}
	group.Wait()
	if worked.Load() != 1 {
		t.Fatalf("the code worked %d times, want once", worked.Load())
	}
	text, _ := access.Load().(string)
	wantKind(t, "what the first one got, after the others", second(a.bearer(t.Context(), text, "")), fault.Unauthenticated)
}

func TestRefreshRotatesAndReuseEndsTheGrant(t *testing.T) {
	a := newApp(t, accounts.NewClient{})
	first, err := a.Exchange(t.Context(), a.proof, a.approve(t, a.request()), redirect, verifier)
	if err != nil {
		t.Fatal(err)
	}
	next, err := a.Refresh(t.Context(), a.proof, string(first.Refresh))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := a.bearer(t.Context(), next.Access, ""); err != nil {
		t.Fatal(err)
	}
	_, err = a.Refresh(t.Context(), a.proof, string(first.Refresh))
	wantOAuth(t, "the one that was used", err, "invalid_grant")
	wantKind(t, "an access token after that", second(a.bearer(t.Context(), next.Access, "")), fault.Unauthenticated)
	_, err = a.Refresh(t.Context(), a.proof, string(next.Refresh))
	wantOAuth(t, "the newest one after that", err, "invalid_grant")
}

func TestWhatEndsAccessTokens(t *testing.T) {
	for name, end := range map[string]func(*app, accounts.TokenSet) error{
		"revoking the refresh token": func(a *app, set accounts.TokenSet) error {
			return a.RevokeToken(context.Background(), a.proof, string(set.Refresh))
		},
		"revoking the access token": func(a *app, set accounts.TokenSet) error {
			return a.RevokeToken(context.Background(), a.proof, set.Access)
		},
		"deleting the client": func(a *app, _ accounts.TokenSet) error {
			return a.DeleteClient(identity.NewContext(context.Background(), identity.Actor{Kind: identity.User, Org: a.first.Org.ID}), a.client.ID)
		},
		"disabling the user": func(a *app, _ accounts.TokenSet) error {
			return a.SetStatus(context.Background(), a.user.ID, accounts.Disabled)
		},
		"removing the user from the organisation": func(a *app, _ accounts.TokenSet) error {
			return a.RemoveMembers(identity.NewContext(context.Background(), identity.Actor{Kind: identity.System}), a.first.Org.ID, []string{a.user.ID})
		},
	} {
		t.Run(name, func(t *testing.T) {
			a := newApp(t, accounts.NewClient{})
			set, err := a.Exchange(t.Context(), a.proof, a.approve(t, a.request()), redirect, verifier)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := a.bearer(t.Context(), set.Access, ""); err != nil {
				t.Fatal(err)
			}
			if i, err := a.Introspect(t.Context(), a.proof, set.Access); err != nil || !i.Active || i.Client != a.client.ID || i.Scope != "devices:read" {
				t.Errorf("introspection before = %+v, %v", i, err)
			}
			if err := end(a, set); err != nil {
				t.Fatal(err)
			}
			wantKind(t, "the access token", second(a.bearer(t.Context(), set.Access, "")), fault.Unauthenticated)
			if i, _ := a.Introspect(t.Context(), a.proof, set.Access); i.Active {
				t.Error("introspection says it is active")
			}
		})
	}
}

func TestClientCredentials(t *testing.T) {
	a := newApp(t, accounts.NewClient{Role: identity.Viewer})
	set, err := a.ClientCredentials(t.Context(), a.proof, "")
	if err != nil {
		t.Fatal(err)
	}
	actor, err := a.bearer(t.Context(), set.Access, "")
	if err != nil || actor.ID != a.client.ID || actor.Role != identity.Viewer || actor.Org != a.first.Org.ID {
		t.Errorf("the token resolves to %+v, %v; want the client, a viewer", actor, err)
	}
	b := newApp(t, accounts.NewClient{})
	_, err = b.ClientCredentials(t.Context(), b.proof, "")
	wantOAuth(t, "a client without a role", err, "unauthorized_client")
}

func TestAuthorizationRequests(t *testing.T) {
	a := newApp(t, accounts.NewClient{Scopes: []identity.Need{identity.DevicesRead}})
	for name, test := range map[string]struct {
		change func(*accounts.Authorization)
		want   string // "": an error that is not sent to the client
	}{
		"unknown client":    {func(r *accounts.Authorization) { r.Client = "x" }, ""},
		"foreign redirect":  {func(r *accounts.Authorization) { r.Redirect = "https://evil.example/" }, ""},
		"redirect extended": {func(r *accounts.Authorization) { r.Redirect += "/more" }, ""},
		"no redirect":       {func(r *accounts.Authorization) { r.Redirect = "" }, ""},
		"token response":    {func(r *accounts.Authorization) { r.Type = "token" }, "unsupported_response_type"},
		"no proof key":      {func(r *accounts.Authorization) { r.Challenge, r.Method = "", "" }, "invalid_request"},
		"plain proof key":   {func(r *accounts.Authorization) { r.Method = "plain" }, "invalid_request"},
		"too much":          {func(r *accounts.Authorization) { r.Scope = "devices:write" }, "invalid_scope"},
		"unknown scope":     {func(r *accounts.Authorization) { r.Scope = "everything" }, "invalid_scope"},
		"a device":          {func(r *accounts.Authorization) { r.Device = "d" }, "invalid_request"},
		"a state of 1 MB":   {func(r *accounts.Authorization) { r.State = strings.Repeat("x", 1<<20) }, "invalid_request"},
	} {
		r := a.request()
		test.change(&r)
		_, err := a.Approve(a.in, r)
		if test.want == "" {
			wantKind(t, name, err, fault.Invalid)
		} else {
			wantOAuth(t, name, err, test.want)
		}
	}
	key := identity.NewContext(t.Context(), identity.Actor{Kind: identity.User, ID: a.user.ID, Credential: identity.Credential{Kind: identity.APIKey}})
	_, err := a.Approve(key, a.request())
	wantKind(t, "an API key that approves", err, fault.Forbidden)
	outside, err := a.CreateUser(a.admin(t), accounts.NewUser{Email: "out@example.com"})
	if err != nil {
		t.Fatal(err)
	}
	_, err = a.Approve(a.as(t, outside.ID, "", identity.NoRole), a.request())
	wantOAuth(t, "somebody of no organisation", err, "access_denied")
}

func TestRedirects(t *testing.T) {
	w := newWorld(t, withTokens)
	for uri, good := range map[string]bool{
		"https://app.example/back":      true,
		"http://127.0.0.1/back":         true,
		"http://[::1]:7000/back":        true,
		"com.example.app:/back":         true,
		"http://app.example/back":       false,
		"http://localhost/back":         false,
		"https://u@app.example/back":    false,
		"https://app.example/back#frag": false,
		"javascript:alert(1)":           false,
		"data:text/html,x":              false,
		"/back":                         false,
		"":                              false,
	} {
		_, _, err := w.CreateClient(w.admin(t), accounts.NewClient{Name: "c", Redirects: []string{uri}})
		if good != (err == nil) {
			t.Errorf("redirect %q: %v, want it accepted: %v", uri, err, good)
		}
	}
	c, _, err := w.CreateClient(w.admin(t), accounts.NewClient{Name: "cli", Public: true, Redirects: []string{"http://127.0.0.1/back"}})
	if err != nil {
		t.Fatal(err)
	}
	r := accounts.Authorization{Client: c.ID, Redirect: "http://127.0.0.1:53211/back", Type: "code", Challenge: challenge(), Method: "S256"}
	if _, err := w.CheckAuthorization(t.Context(), r); err != nil {
		t.Errorf("another port on loopback: %v", err)
	}
}

func TestADevicesCodeNamesItsDevice(t *testing.T) {
	a := newApp(t, accounts.NewClient{Devices: true})
	r := a.request()
	r.Device, r.Challenge, r.Method, r.Scope = "00112233-4455-6677-8899-aabbccddeeff", "", "", ""
	code := a.approve(t, r)
	a.pass(5 * time.Minute) // somebody types it in
	set, err := a.ExchangeDevice(t.Context(), code)
	if err != nil || set.Device != r.Device {
		t.Fatalf("ExchangeDevice = %+v, %v; want the device's token", set, err)
	}
	got, err := a.VerifyDevice(t.Context(), set.Access)
	if err != nil || got.Device != r.Device || got.User != a.user.ID || got.Org != a.first.Org.ID {
		t.Errorf("VerifyDevice = %+v, %v", got, err)
	}
	next, err := a.RefreshDevice(t.Context(), string(set.Refresh))
	if err != nil || next.Device != r.Device {
		t.Errorf("RefreshDevice = %+v, %v", next, err)
	}
	plainCode := a.approve(t, a.request())
	_, err = a.ExchangeDevice(t.Context(), plainCode)
	wantOAuth(t, "a code for no device at the gateway", err, "invalid_grant")
	set, err = a.Exchange(t.Context(), a.proof, a.approve(t, a.request()), redirect, verifier)
	if err != nil {
		t.Fatal(err)
	}
	_, err = a.VerifyDevice(t.Context(), set.Access)
	wantKind(t, "a token of no device", err, fault.Unauthenticated)
}

func TestRunSweepsAndStops(t *testing.T) {
	a := newApp(t, accounts.NewClient{})
	a.approve(t, a.request())
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	stop()
	if err := <-ended; err != nil {
		t.Errorf("Run = %v", err)
	}
}
