package accounts_test

import (
	"net/url"
	"strings"
	"testing"

	"keystead/accounts"
	"keystead/identity"
)

// FuzzResolve has anything be shown as a credential: nobody is let in by it, and
// nothing falls over.
func FuzzResolve(f *testing.F) {
	w := newWorld(f, withTokens, withName)
	u := w.ann(f)
	login := w.mustLogIn(f, annsPassword)
	_, api, err := w.CreateAPIKey(w.as(f, u.ID, "", identity.NoRole), accounts.NewAPIKey{})
	if err != nil {
		f.Fatal(err)
	}
	good := map[string]bool{login: true, string(api): true, string(w.first.APIKey): true}
	for _, seed := range []string{"", "pat", "pat_", "a.b.c", "keystead_api_", "keystead_api_x_y", login[:len(login)-1], string(api) + "x", strings.ToUpper(string(api)), "keystead_recovery_" + string(api)} {
		f.Add("Bearer", seed, "")
		f.Add("Session", seed, u.ID)
	}
	f.Fuzz(func(t *testing.T, scheme, value, org string) {
		a, err := w.Resolve(t.Context(), identity.Proof{Scheme: scheme, Value: value, Org: org, Remote: here})
		if err == nil && (!good[value] || scheme != "Bearer") {
			t.Errorf("%q %q is let in as %+v", scheme, value, a)
		}
		if err != nil && (a.ID != "" || a.Role != identity.NoRole) {
			t.Errorf("%q %q: an error, and yet %+v", scheme, value, a)
		}
	})
}

// FuzzAuthorization has an authorization request be anything: whatever it asks
// for, a code goes nowhere but where the client said.
func FuzzAuthorization(f *testing.F) {
	w := newWorld(f, withTokens)
	client, _, err := w.CreateClient(w.admin(f), accounts.NewClient{Name: "app", Public: true, Redirects: []string{"https://app.example/back", "http://127.0.0.1/back"}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add("https://app.example/back", "openid devices:read", "x", "S256", "")
	f.Add("https://app.example/back#x", "openid", "", "plain", "d")
	f.Add("http://127.0.0.1:99/back", "platform:admin", "x", "S256", "")
	f.Add("https://app.example@evil.example/back", " ", "x", "S256", "")
	f.Fuzz(func(t *testing.T, redirect, scope, challenge, method, device string) {
		_, err := w.CheckAuthorization(t.Context(), accounts.Authorization{
			Client: client.ID, Redirect: redirect, Type: "code", Scope: scope, Challenge: challenge, Method: method, Device: device,
		})
		to, bad := url.Parse(redirect)
		if err == nil && redirect != "https://app.example/back" && (bad != nil || to.Scheme != "http" || to.Hostname() != "127.0.0.1" || to.User != nil || to.Path != "/back") {
			t.Errorf("a redirect to %q is let through", redirect)
		}
	})
}
