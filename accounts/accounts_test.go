package accounts_test

import (
	"context"
	"net/netip"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"keystead/accounts"
	"keystead/audit"
	"keystead/fault"
	"keystead/identity"
	"keystead/seal"
	"keystead/store/bolt"
)

// world is a service over a fresh store, with a clock of its own.
type world struct {
	*accounts.Service

	first accounts.First

	mu  sync.Mutex
	now time.Time
}

func (w *world) clock() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.now
}

func (w *world) pass(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.now = w.now.Add(d)
}

func newWorld(t testing.TB, configure ...func(*accounts.Service)) *world {
	t.Helper()
	db, err := bolt.Open(filepath.Join(t.TempDir(), "accounts.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	box, err := seal.NewBox(make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	w := &world{now: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)}
	w.Service = &accounts.Service{
		DB: db, Now: w.clock, Box: box, Config: accounts.DefaultConfig(),
		Audit: &audit.Log{DB: db, Key: seal.NewSecret(32), Now: w.clock},
	}
	for _, c := range configure {
		c(w.Service)
	}
	w.Start()
	if err := w.EnsureFirst(t.Context(), func(f accounts.First) error { w.first = f; return nil }); err != nil {
		t.Fatal(err)
	}
	return w
}

var here = netip.MustParseAddrPort("192.0.2.7:40000")

// bearer resolves a bearer credential, asking for an organisation unless org is empty.
func (w *world) bearer(ctx context.Context, value, org string) (identity.Actor, error) {
	return w.Resolve(ctx, identity.Proof{Scheme: "Bearer", Value: value, Org: org, Remote: here, Transport: identity.HTTPS})
}

// as returns ctx with the actor of a user who has logged in.
func (w *world) as(t testing.TB, userID, org string, role identity.Role) context.Context {
	t.Helper()
	return identity.NewContext(t.Context(), identity.Actor{
		Kind: identity.User, ID: userID, Org: org, Role: role,
		Credential: identity.Credential{Kind: identity.LoginKey},
	})
}

func (w *world) admin(t testing.TB) context.Context {
	return w.as(t, w.first.User.ID, w.first.Org.ID, identity.Operator)
}

func wantKind(t testing.TB, what string, err error, want fault.Kind) {
	t.Helper()
	if !fault.Is(err, want) {
		t.Errorf("%s: error = %v, want kind %v", what, err, want)
	}
}

func TestFirstStartMakesOneAdministratorWithOneKey(t *testing.T) {
	w := newWorld(t, func(s *accounts.Service) {
		_, err := s.DefaultOrganisation(t.Context())
		wantKind(t, "the default organisation before the first start", err, fault.Unavailable)
	})
	a, err := w.bearer(t.Context(), string(w.first.APIKey), "")
	if err != nil || a.Kind != identity.User || a.ID != w.first.User.ID || a.Org != w.first.Org.ID || a.Role != identity.Operator {
		t.Fatalf("the first key resolves to %+v, %v; want the first administrator in the default organisation", a, err)
	}
	for range 2 { // it is remembered
		if org, err := w.DefaultOrganisation(t.Context()); err != nil || org != w.first.Org.ID {
			t.Errorf("DefaultOrganisation = %q, %v; want %q", org, err, w.first.Org.ID)
		}
	}
	err = w.EnsureFirst(t.Context(), func(accounts.First) error {
		t.Error("a second start makes another first administrator")
		return nil
	})
	if err != nil {
		t.Errorf("EnsureFirst on a later start: %v", err)
	}
}

func TestAPlatformAdministratorActsInAnyOrganisation(t *testing.T) {
	w := newWorld(t)
	o, err := w.CreateOrganisation(w.admin(t), accounts.NewOrganisation{Name: "acme"})
	if err != nil {
		t.Fatal(err)
	}
	if o.Number != 2 {
		t.Errorf("the second organisation has number %d, want 2", o.Number)
	}
	key := string(w.first.APIKey)
	if a, err := w.bearer(t.Context(), key, o.ID); err != nil || a.Org != o.ID || a.Role != identity.Operator {
		t.Errorf("in another organisation: %+v, %v; want role platform in %s", a, err, o.ID)
	}
	_, err = w.bearer(t.Context(), key, "01890a5d-ac96-774b-bcce-b302099a8057")
	wantKind(t, "an organisation that does not exist", err, fault.NotFound)
}

func TestAPIKeyOfAMember(t *testing.T) {
	w := newWorld(t)
	u, err := w.CreateUser(w.admin(t), accounts.NewUser{Email: "ann@example.com"})
	if err != nil {
		t.Fatal(err)
	}
	me := w.as(t, u.ID, "", identity.NoRole)
	mine, err := w.CreateOrganisation(me, accounts.NewOrganisation{Name: "mine"})
	if err != nil {
		t.Fatal(err)
	}
	second, err := w.CreateOrganisation(me, accounts.NewOrganisation{Name: "second"})
	if err != nil {
		t.Fatal(err)
	}
	make1 := func(n accounts.NewAPIKey) string {
		t.Helper()
		_, text, err := w.CreateAPIKey(me, n)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	full := make1(accounts.NewAPIKey{Name: "full"})
	scoped := make1(accounts.NewAPIKey{Scopes: []identity.Need{identity.DevicesRead}})
	limited := make1(accounts.NewAPIKey{Org: second.ID})
	far := make1(accounts.NewAPIKey{CIDRs: []string{"198.51.100.0/24"}})
	near := make1(accounts.NewAPIKey{CIDRs: []string{"198.51.100.0/24", "192.0.2.7"}})
	short := make1(accounts.NewAPIKey{TTL: time.Hour})
	for _, test := range []struct {
		name, key, asks string
		org             string // "" means refused
		kind            fault.Kind
	}{
		{"at home", full, "", mine.ID, 0},
		{"where it asks", full, second.ID, second.ID, 0},
		{"not where it is no member", full, w.first.Org.ID, "", fault.NotFound},
		{"not where nothing is", full, "nowhere", "", fault.NotFound},
		{"scoped", scoped, "", mine.ID, 0},
		{"limited to one", limited, "", second.ID, 0},
		{"limited to another", limited, mine.ID, "", fault.NotFound},
		{"from elsewhere", far, "", "", fault.Forbidden},
		{"from here", near, "", mine.ID, 0},
		{"short", short, "", mine.ID, 0},
		{"secret of another key", full[:40] + scoped[40:], "", "", fault.Unauthenticated},
		{"garbage", "keystead_api_garbage", "", "", fault.Unauthenticated},
	} {
		a, err := w.bearer(t.Context(), test.key, test.asks)
		if test.org == "" {
			wantKind(t, test.name, err, test.kind)
			continue
		}
		if err != nil || a.Org != test.org || a.Role != identity.Owner || a.ID != u.ID {
			t.Errorf("%s: %+v, %v; want owner in %s", test.name, a, err, test.org)
		}
	}
	if a, err := w.bearer(t.Context(), scoped, ""); err != nil || !a.May(identity.DevicesRead) || a.May(identity.DevicesWrite) {
		t.Errorf("scoped to %s: %+v, %v", identity.DevicesRead, a, err)
	}
	w.pass(time.Hour)
	_, err = w.bearer(t.Context(), short, "")
	wantKind(t, "past its time", err, fault.Unauthenticated)
}

func TestAVerifiedKeyIsNotRememberedPastItsRevocation(t *testing.T) {
	w := newWorld(t)
	admin := w.admin(t)
	k, text, err := w.CreateAPIKey(admin, accounts.NewAPIKey{Name: "script"})
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if _, err := w.bearer(t.Context(), string(text), ""); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := w.APIKey(admin, w.first.User.ID, k.ID); err != nil || got.LastUsedFrom != "192.0.2.7" || !got.LastUsedAt.Equal(w.clock()) {
		t.Errorf("last use = %v from %q, %v; want now, from 192.0.2.7", got.LastUsedAt, got.LastUsedFrom, err)
	}
	if err := w.RevokeAPIKey(admin, w.first.User.ID, k.ID); err != nil {
		t.Fatal(err)
	}
	_, err = w.bearer(t.Context(), string(text), "")
	wantKind(t, "after its revocation", err, fault.Unauthenticated)
	_, err = w.APIKey(admin, w.first.User.ID, k.ID)
	wantKind(t, "view after its revocation", err, fault.NotFound)
}

func TestAnAPIKeyMakesNoAPIKey(t *testing.T) {
	w := newWorld(t)
	a, err := w.bearer(t.Context(), string(w.first.APIKey), "")
	if err != nil {
		t.Fatal(err)
	}
	_, _, err = w.CreateAPIKey(identity.NewContext(t.Context(), a), accounts.NewAPIKey{})
	wantKind(t, "an API key that makes a key", err, fault.Forbidden)
}

func TestOnlyItsOwnerSeesAKey(t *testing.T) {
	w := newWorld(t)
	k, text, err := w.CreateAPIKey(w.admin(t), accounts.NewAPIKey{})
	if err != nil {
		t.Fatal(err)
	}
	u, err := w.CreateUser(w.admin(t), accounts.NewUser{Email: "ann@example.com"})
	if err != nil {
		t.Fatal(err)
	}
	stranger := w.as(t, u.ID, "", identity.NoRole)
	_, err = w.APIKey(stranger, u.ID, k.ID)
	wantKind(t, "as its own", err, fault.NotFound)
	_, err = w.APIKeys(stranger, w.first.User.ID)
	wantKind(t, "another's list", err, fault.NotFound)
	wantKind(t, "revoking another's", w.RevokeAPIKey(stranger, w.first.User.ID, k.ID), fault.NotFound)
	if err := w.RevokeAPIKey(stranger, u.ID, k.ID); err != nil {
		t.Errorf("revoking what is not there: %v, want nothing", err)
	}
	if _, err := w.bearer(t.Context(), string(text), ""); err != nil {
		t.Errorf("after a stranger tried to revoke it: %v", err)
	}
}
