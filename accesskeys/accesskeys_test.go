package accesskeys_test

import (
	"context"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"keystead/accesskeys"
	"keystead/audit"
	"keystead/fault"
	"keystead/identity"
	"keystead/page"
	"keystead/store"
	"keystead/store/bolt"
)

type fixture struct {
	*accesskeys.Service
	now  time.Time
	orgs map[string]bool
}

func newService(t *testing.T) *fixture {
	t.Helper()
	db, err := bolt.Open(filepath.Join(t.TempDir(), "test.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	f := &fixture{now: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), orgs: map[string]bool{}}
	now := func() time.Time { return f.now }
	f.Service = &accesskeys.Service{
		DB: db, Now: now, Audit: &audit.Log{DB: db, Key: make([]byte, 32), Now: now},
		NewOrg: func(_ context.Context, _ store.Tx, name string) (string, error) {
			f.orgs["org of "+name] = true
			return "org of " + name, nil
		},
		Alive: func(_ store.Tx, org string) error {
			if !f.orgs[org] {
				return fault.New(fault.NotFound, "no such organisation")
			}
			return nil
		},
	}
	return f
}

func (f *fixture) resolve(t *testing.T, token string) (identity.Actor, error) {
	t.Helper()
	return f.Resolve(t.Context(), identity.Proof{Scheme: "Bearer", Value: token})
}

// login makes a key for a new organisation and exchanges it.
func (f *fixture) login(t *testing.T, name string) (accesskeys.Key, accesskeys.Tokens) {
	t.Helper()
	k, secret, err := f.Create(identity.NewContext(t.Context(), identity.Actor{Kind: identity.User, ID: "p"}), name)
	if err != nil {
		t.Fatal(err)
	}
	tokens, err := f.Exchange(t.Context(), k.Key, string(secret))
	if err != nil {
		t.Fatal(err)
	}
	return k, tokens
}

func TestThePlatformKeyBeginsOrganisations(t *testing.T) {
	f := newService(t)
	lost, lostSecret, err := f.ReplacePlatform(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	k, secret, err := f.ReplacePlatform(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if len(k.Key) != 86 || len(secret) != 86 {
		t.Errorf("key and secret have %d and %d characters, want 86", len(k.Key), len(secret))
	}
	if _, err := f.Exchange(t.Context(), lost.Key, string(lostSecret)); !fault.Is(err, fault.Unauthenticated) {
		t.Errorf("the replaced key: %v, want Unauthenticated", err)
	}
	tokens, err := f.Exchange(t.Context(), k.Key, string(secret))
	if err != nil {
		t.Fatal(err)
	}
	a, err := f.resolve(t, string(tokens.Access))
	if err != nil || a.Org != "" || a.May(identity.CredentialsWrite) || !a.May(identity.OrgAdmin) {
		t.Errorf("the platform key acts as %+v, %v; want one that makes organisations only", a, err)
	}
	first, _, err := f.Create(identity.NewContext(t.Context(), a), "acme")
	if err != nil || first.Org != "org of acme" {
		t.Fatalf("its key is of %q, %v; want a new organisation", first.Org, err)
	}
	second, _, err := f.Create(identity.NewContext(t.Context(), identity.Actor{Kind: identity.User, Org: first.Org}), "acme 2")
	if err != nil || second.Org != first.Org || len(f.orgs) != 1 {
		t.Errorf("a further key is of %q, %v; want %q", second.Org, err, first.Org)
	}
}

func TestKeysOfAnotherOrganisationAreNotThere(t *testing.T) {
	f := newService(t)
	k, _ := f.login(t, "a")
	other := identity.NewContext(t.Context(), identity.Actor{Kind: identity.User, Org: "org of b"})
	own := identity.NewContext(t.Context(), identity.Actor{Kind: identity.User, Org: "org of a"})
	for name, err := range map[string]error{
		"Get":    func() error { _, err := f.Get(other, k.Key); return err }(),
		"Rename": f.Rename(other, k.Key, "x"),
		"Delete": f.Delete(other, k.Key),
	} {
		if !fault.Is(err, fault.NotFound) {
			t.Errorf("%s = %v, want NotFound", name, err)
		}
	}
	if keys, total, err := f.List(other, 0, 20); err != nil || total != 0 || len(keys) != 0 {
		t.Errorf("List = %v of %d, %v; want none", keys, total, err)
	}
	if err := f.Rename(own, k.Key, "renamed"); err != nil {
		t.Fatal(err)
	}
	if keys, total, err := f.List(own, 0, 20); err != nil || total != 1 || keys[0].Name != "renamed" {
		t.Errorf("List = %v of %d, %v; want the renamed one", keys, total, err)
	}
	for _, name := range []string{"", strings.Repeat("x", 255), "a\x00", "a\xff"} {
		if err := f.Rename(own, k.Key, name); !fault.Is(err, fault.Invalid) {
			t.Errorf("Rename to %q = %v, want Invalid", name, err)
		}
	}
}

func TestExchange(t *testing.T) {
	f := newService(t)
	k, tokens := f.login(t, "a")
	for name, c := range map[string][2]string{
		"an unknown key": {"nobody", "x"},
		"no secret":      {k.Key, ""},
		"a wrong secret": {k.Key, strings.Repeat("x", 86)},
		"a long key":     {strings.Repeat("x", 1<<20), "x"},
	} {
		if _, err := f.Exchange(t.Context(), c[0], c[1]); !fault.Is(err, fault.Unauthenticated) {
			t.Errorf("%s: %v, want Unauthenticated", name, err)
		}
	}
	a, err := f.resolve(t, string(tokens.Access))
	if err != nil || a.Org != "org of a" || a.Role != identity.Admin || !a.Credential.ExpiresAt.Equal(f.now.Add(time.Hour)) {
		t.Errorf("the access token resolves to %+v, %v", a, err)
	}
	if _, err := f.Resolve(t.Context(), identity.Proof{Scheme: "Bearer", Value: string(tokens.Access), Org: "org of b"}); !fault.Is(err, fault.NotFound) {
		t.Errorf("in another organisation: %v, want NotFound", err)
	}
	if _, err := f.resolve(t, string(tokens.Refresh)); !fault.Is(err, fault.Unauthenticated) {
		t.Errorf("a refresh token as access token: %v, want Unauthenticated", err)
	}
	if _, err := f.Refresh(t.Context(), string(tokens.Access)); !fault.Is(err, fault.Invalid) {
		t.Errorf("an access token as refresh token: %v, want Invalid", err)
	}
	if _, err := f.resolve(t, "something else"); err != identity.ErrNotMine { //nolint:errorlint // the resolver compares it too
		t.Errorf("something else: %v, want ErrNotMine", err)
	}
	f.now = f.now.Add(time.Hour)
	if _, err := f.resolve(t, string(tokens.Access)); !fault.Is(err, fault.Unauthenticated) {
		t.Errorf("after an hour: %v, want Unauthenticated", err)
	}
	delete(f.orgs, "org of a")
	if _, err := f.Refresh(t.Context(), string(tokens.Refresh)); !fault.Is(err, fault.Invalid) {
		t.Errorf("after the organisation has gone: %v, want Invalid", err)
	}
}

func TestRefreshTokensAreGoodOnce(t *testing.T) {
	f := newService(t)
	_, first := f.login(t, "a")
	second, err := f.Refresh(t.Context(), string(first.Refresh))
	if err != nil {
		t.Fatal(err)
	}
	for name, token := range map[string]string{"the old": string(first.Access), "the new": string(second.Access)} {
		if _, err := f.resolve(t, token); err != nil {
			t.Errorf("%s access token after a refresh: %v", name, err)
		}
	}
	forged := string(second.Refresh[:len(second.Refresh)-1]) + "!"
	if _, err := f.Refresh(t.Context(), forged); !fault.Is(err, fault.Invalid) {
		t.Errorf("a forged refresh token: %v, want Invalid", err)
	}
	if _, err := f.Refresh(t.Context(), string(first.Refresh)); !fault.Is(err, fault.Invalid) {
		t.Errorf("a used refresh token: %v, want Invalid", err)
	}
	if _, err := f.Refresh(t.Context(), string(second.Refresh)); !fault.Is(err, fault.Invalid) {
		t.Errorf("the good refresh token after the reuse: %v, want Invalid: the session is over", err)
	}
	if _, err := f.resolve(t, string(second.Access)); !fault.Is(err, fault.Unauthenticated) {
		t.Errorf("the access token after the reuse: %v, want Unauthenticated", err)
	}
	p, err := f.Audit.List(identity.NewContext(t.Context(), identity.Actor{Kind: identity.User, Org: "org of a"}), "", page.Request{})
	if err != nil || p.Items[len(p.Items)-1].Action != "accesskey.reuse" {
		t.Errorf("the trail ends with %+v, %v; want accesskey.reuse", p.Items[len(p.Items)-1], err)
	}
}

func TestSessionsEnd(t *testing.T) {
	f := newService(t)
	_, tokens := f.login(t, "a")
	f.now = f.now.Add(6 * 24 * time.Hour)
	if tokens, err := f.Refresh(t.Context(), string(tokens.Refresh)); err != nil {
		t.Errorf("within a week: %v", err)
	} else {
		f.now = f.now.Add(7 * 24 * time.Hour)
		if _, err := f.Refresh(t.Context(), string(tokens.Refresh)); !fault.Is(err, fault.Invalid) {
			t.Errorf("after a week: %v, want Invalid", err)
		}
	}
	if err := f.Sweep(t.Context(), f.now); err != nil {
		t.Fatal(err)
	}
	k, tokens := f.login(t, "b")
	if err := f.Delete(identity.NewContext(t.Context(), identity.Actor{Kind: identity.User, Org: "org of b"}), k.Key); err != nil {
		t.Fatal(err)
	}
	if _, err := f.resolve(t, string(tokens.Access)); !fault.Is(err, fault.Unauthenticated) {
		t.Errorf("after its key has gone: %v, want Unauthenticated", err)
	}
}
