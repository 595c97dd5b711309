package accounts_test

import (
	"context"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"keystead/accounts"
	"keystead/audit"
	"keystead/fault"
	"keystead/identity"
	"keystead/internal/passkeytest"
	"keystead/page"
)

// authenticator is a software one, which lies where it is told to.
type authenticator = passkeytest.Authenticator

const (
	present  = passkeytest.Present
	verified = passkeytest.Verified
)

func newAuthenticator(t testing.TB) *authenticator {
	t.Helper()
	return passkeytest.New(t, "id.example.com")
}

func read(t testing.TB, c accounts.Ceremony) passkeytest.Asked {
	t.Helper()
	return passkeytest.Read(t, c.Options)
}

func withName(s *accounts.Service) { s.PublicURL = "https://id.example.com" }

var fromHere = netip.MustParseAddr("192.0.2.7")

// me is the context of ann's newest login.
func (w *world) me(t testing.TB, key string) context.Context {
	t.Helper()
	a, err := w.bearer(t.Context(), key, "")
	if err != nil {
		t.Fatal(err)
	}
	return identity.NewContext(t.Context(), a)
}

// keyOf makes a login key of who has just logged in.
func (w *world) keyOf(t testing.TB, u accounts.User, factor time.Time) string {
	t.Helper()
	text, _, err := w.LoginKey(u, factor)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// addPasskey registers a as a passkey of who acts in ctx.
func (w *world) addPasskey(t testing.TB, ctx context.Context, a *authenticator) (accounts.Passkey, []string) { //nolint:revive // t comes first in tests
	t.Helper()
	c, err := w.BeginPasskey(ctx)
	if err != nil {
		t.Fatal(err)
	}
	p, codes, err := w.FinishPasskey(ctx, c.State, "my key", a.Create(t, c.Options))
	if err != nil {
		t.Fatal(err)
	}
	return p, codes
}

func TestPasskey(t *testing.T) {
	w := newWorld(t, withTokens, withName)
	u := w.ann(t)
	login := w.mustLogIn(t, annsPassword)
	a := newAuthenticator(t)
	p, codes := w.addPasskey(t, w.me(t, login), a)
	if len(codes) != 10 || p.Name != "my key" || p.User != u.ID {
		t.Fatalf("FinishPasskey = %+v, %d codes; want my key and 10", p, len(codes))
	}
	wantKind(t, "the login key from before the first second factor", second(w.bearer(t.Context(), login, "")), fault.Unauthenticated)
	_, err := w.logIn(t.Context(), u.Email, annsPassword, "", "192.0.2.7")
	if err == nil || err.Error() != accounts.ErrSecondFactor.Error() {
		t.Fatalf("the password alone: %v, want the question for a second factor", err)
	}

	// Without a password.
	c, err := w.BeginLogIn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if q := read(t, c); q.PublicKey.UserVerification != "required" || len(q.PublicKey.Allow) != 0 {
		t.Errorf("the question to anybody = %s; want user verification, and no keys named", c.Options)
	}
	got, factor, err := w.LogInPasskey(t.Context(), c.State, a.Get(t, c.Options), fromHere)
	if err != nil || got.ID != u.ID {
		t.Fatalf("LogInPasskey = %s, %v; want ann", got.ID, err)
	}
	me := w.me(t, w.keyOf(t, got, factor))
	if _, _, err := w.CreateAPIKey(me, accounts.NewAPIKey{}); err != nil {
		t.Errorf("an API key with a fresh passkey: %v", err)
	}

	// After a password.
	c, err = w.BeginSecond(t.Context(), accounts.Attempt{Email: u.Email, Password: annsPassword, From: fromHere})
	if err != nil {
		t.Fatal(err)
	}
	if q := read(t, c); len(q.PublicKey.Allow) != 1 {
		t.Errorf("the question after the password = %s; want the one key named", c.Options)
	}
	got, factor, err = w.LogInSecond(t.Context(), accounts.Second{State: c.State, Answer: a.Get(t, c.Options), From: fromHere})
	if err != nil || got.ID != u.ID {
		t.Fatalf("LogInSecond = %s, %v; want ann", got.ID, err)
	}
	key := w.keyOf(t, got, factor)
	w.pass(11 * time.Minute)
	_, _, err = w.CreateAPIKey(w.me(t, key), accounts.NewAPIKey{})
	wantKind(t, "an API key with a stale passkey", err, fault.Forbidden)
	_, err = w.BeginPasskey(w.me(t, key))
	wantKind(t, "another passkey with a stale one", err, fault.Forbidden)

	// A recovery code stands in for it, at the login and after the password.
	if _, err := w.logIn(t.Context(), u.Email, annsPassword, codes[0], "192.0.2.7"); err != nil {
		t.Errorf("with a recovery code: %v", err)
	}
	if c, err = w.BeginSecond(t.Context(), accounts.Attempt{Email: u.Email, Password: annsPassword, From: fromHere}); err != nil {
		t.Fatal(err)
	}
	_, _, err = w.LogInSecond(t.Context(), accounts.Second{State: c.State, Code: codes[0], From: fromHere})
	wantKind(t, "a recovery code that was used", err, fault.Unauthenticated)
	got, factor, err = w.LogInSecond(t.Context(), accounts.Second{State: c.State, Code: codes[1], From: fromHere})
	if err != nil {
		t.Fatalf("another recovery code: %v", err)
	}
	me = w.me(t, w.keyOf(t, got, factor))

	list, err := w.Passkeys(me, u.ID)
	if err != nil || len(list) != 1 || list[0].LastUsedAt.IsZero() {
		t.Errorf("Passkeys = %+v, %v; want one that was used", list, err)
	}
	if p, err := w.RenamePasskey(me, u.ID, p.ID, "the blue one"); err != nil || p.Name != "the blue one" {
		t.Errorf("RenamePasskey = %q, %v", p.Name, err)
	}
	_, err = w.RenamePasskey(me, u.ID, p.ID, "bell \a")
	wantKind(t, "a name that rings", err, fault.Invalid)
	if err := w.RemovePasskey(me, u.ID, p.ID); err != nil {
		t.Fatal(err)
	}
	if c, err = w.BeginLogIn(t.Context()); err != nil {
		t.Fatal(err)
	}
	_, _, err = w.LogInPasskey(t.Context(), c.State, a.Get(t, c.Options), fromHere)
	wantKind(t, "a passkey that was deleted", err, fault.Unauthenticated)
	w.mustLogIn(t, annsPassword) // there is no second factor any more
}

// TestAnswersThatDoNotFit has the authenticator, or whoever stands between, answer
// something else than what was asked.
func TestAnswersThatDoNotFit(t *testing.T) {
	w := newWorld(t, withTokens, withName)
	u := w.ann(t)
	bob, err := w.CreateUser(w.admin(t), accounts.NewUser{Email: "bob@example.com", Password: annsPassword})
	if err != nil {
		t.Fatal(err)
	}
	mine, his := newAuthenticator(t), newAuthenticator(t)
	w.addPasskey(t, w.me(t, w.mustLogIn(t, annsPassword)), mine)
	w.addPasskey(t, w.as(t, bob.ID, "", identity.NoRole), his)
	begin := func() accounts.Ceremony {
		t.Helper()
		c, err := w.BeginLogIn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	second := func() accounts.Ceremony {
		t.Helper()
		c, err := w.BeginSecond(t.Context(), accounts.Attempt{Email: u.Email, Password: annsPassword, From: fromHere})
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	at := byte(0)
	logIn := func(state string, answer []byte) error {
		at++ // failures of one address are few
		_, _, err := w.LogInPasskey(t.Context(), state, answer, netip.AddrFrom4([4]byte{198, 51, 100, at}))
		return err
	}
	confirm := func(state string, answer []byte) error {
		at++
		_, _, err := w.LogInSecond(t.Context(), accounts.Second{State: state, Answer: answer, From: netip.AddrFrom4([4]byte{198, 51, 100, at})})
		return err
	}
	lie := func(change func(*authenticator)) *authenticator {
		b := *mine
		change(&b)
		return &b
	}
	for name, b := range map[string]*authenticator{
		"another origin":         lie(func(a *authenticator) { a.Origin = "https://evil.example.com" }),
		"another scheme":         lie(func(a *authenticator) { a.Origin = "http://id.example.com" }),
		"another port":           lie(func(a *authenticator) { a.Origin = "https://id.example.com:444" }),
		"another RP id":          lie(func(a *authenticator) { a.RP = "evil.example.com" }),
		"nobody verified":        lie(func(a *authenticator) { a.Flags = present }),
		"nobody present":         lie(func(a *authenticator) { a.Flags = verified }),
		"another's user handle":  lie(func(a *authenticator) { a.Handle = []byte(bob.ID) }),
		"no user handle":         lie(func(a *authenticator) { a.Handle = nil }),
		"a handle of nobody":     lie(func(a *authenticator) { a.Handle = []byte("00000000-0000-7000-8000-000000000000") }),
		"another's key under it": lie(func(a *authenticator) { a.Key = his.Key }),
		"another's id":           lie(func(a *authenticator) { a.ID = his.ID }),
	} {
		c := begin()
		b.Count = 1000
		wantKind(t, name, logIn(c.State, b.Get(t, c.Options)), fault.Unauthenticated)
	}
	c := begin()
	wantKind(t, "an answer to another challenge", logIn(c.State, mine.Get(t, begin().Options)), fault.Unauthenticated)
	wantKind(t, "a question that was changed", logIn(c.State[:len(c.State)-4]+"AAAA", mine.Get(t, c.Options)), fault.Unauthenticated)
	wantKind(t, "no question", logIn("", mine.Get(t, c.Options)), fault.Unauthenticated)
	wantKind(t, "the question of a second factor", logIn(second().State, mine.Get(t, c.Options)), fault.Unauthenticated)
	wantKind(t, "the question of a login as a second factor", confirm(c.State, mine.Get(t, c.Options)), fault.Unauthenticated)
	wantKind(t, "no JSON", logIn(c.State, []byte("{")), fault.Invalid)
	wantKind(t, "a huge answer", logIn(c.State, []byte(`{"id":"`+strings.Repeat("A", 1<<20)+`"}`)), fault.Invalid)

	s := second()
	wantKind(t, "another user's passkey after a password", confirm(s.State, his.Get(t, s.Options)), fault.Unauthenticated)
	unverified := lie(func(a *authenticator) { a.Flags = present })
	if err := confirm(s.State, unverified.Get(t, s.Options)); err != nil {
		t.Errorf("after a password the key alone: %v", err)
	}
	mine.Count = unverified.Count
	late := begin()
	answer := mine.Get(t, late.Options)
	w.pass(5 * time.Minute)
	wantKind(t, "an answer after five minutes", logIn(late.State, answer), fault.Unauthenticated)

	// A question answered once is answered.
	c = begin()
	answer = mine.Get(t, c.Options)
	var worked atomic.Int32
	var group sync.WaitGroup
	for range 10 {
		group.Go(func() {
			if _, _, err := w.LogInPasskey(t.Context(), c.State, answer, fromHere); err == nil {
				worked.Add(1)
			}
		})
	}
	group.Wait()
	if worked.Load() != 1 {
		t.Errorf("one answer logged in %d times, want once", worked.Load())
	}
	wantKind(t, "another answer to it", logIn(c.State, mine.Get(t, c.Options)), fault.Unauthenticated)

	// A counter that goes back is that of a copy.
	copied := *mine
	c = begin()
	if err := logIn(c.State, mine.Get(t, c.Options)); err != nil {
		t.Fatal(err)
	}
	c = begin()
	wantKind(t, "a copy", logIn(c.State, copied.Get(t, c.Options)), fault.Unauthenticated)
	c = begin()
	if err := logIn(c.State, mine.Get(t, c.Options)); err != nil {
		t.Errorf("the key itself after its copy was refused: %v", err)
	}

	// What was asked of a user is of no use once its sessions were ended, or it was disabled.
	s, c = second(), begin()
	if err := w.EndSessions(w.admin(t), u.ID); err != nil {
		t.Fatal(err)
	}
	wantKind(t, "after signing out everywhere", confirm(s.State, mine.Get(t, s.Options)), fault.Unauthenticated)
	if err := w.SetStatus(w.admin(t), u.ID, accounts.Disabled); err != nil {
		t.Fatal(err)
	}
	wantKind(t, "of a disabled user", logIn(c.State, mine.Get(t, c.Options)), fault.Unauthenticated)
}

func TestRegistrationsOfPasskeysThatDoNotFit(t *testing.T) {
	w := newWorld(t, withTokens, withName)
	u := w.ann(t)
	bob, err := w.CreateUser(w.admin(t), accounts.NewUser{Email: "bob@example.com", Password: annsPassword})
	if err != nil {
		t.Fatal(err)
	}
	me, him := w.as(t, u.ID, "", identity.NoRole), w.as(t, bob.ID, "", identity.NoRole)
	begin := func(ctx context.Context) accounts.Ceremony {
		t.Helper()
		c, err := w.BeginPasskey(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	script := identity.NewContext(t.Context(), identity.Actor{Kind: identity.User, ID: u.ID, Credential: identity.Credential{Kind: identity.APIKey}})
	_, err = w.BeginPasskey(script)
	wantKind(t, "an API key that registers a passkey", err, fault.Forbidden)

	a := newAuthenticator(t)
	c := begin(me)
	_, _, err = w.FinishPasskey(him, c.State, "", a.Create(t, c.Options))
	wantKind(t, "the question asked of another user", err, fault.Unauthenticated)
	a.Origin = "https://evil.example.com"
	_, _, err = w.FinishPasskey(me, c.State, "", a.Create(t, c.Options))
	wantKind(t, "from another site", err, fault.Invalid)
	a.Origin, a.RP = "https://id.example.com", "example.com"
	_, _, err = w.FinishPasskey(me, c.State, "", a.Create(t, c.Options))
	wantKind(t, "for another RP id", err, fault.Invalid)
	a.RP = "id.example.com"
	_, _, err = w.FinishPasskey(me, c.State, "", a.Create(t, begin(me).Options))
	wantKind(t, "an answer to another challenge", err, fault.Invalid)
	_, _, err = w.FinishPasskey(me, c.State, "", []byte(`{"id":1}`))
	wantKind(t, "what is no answer", err, fault.Invalid)
	answer := a.Create(t, c.Options)
	if _, _, err := w.FinishPasskey(me, c.State, "", answer); err != nil {
		t.Fatal(err)
	}
	again := identity.FromContext(me)
	again.Credential.SecondFactor = w.clock()
	_, _, err = w.FinishPasskey(identity.NewContext(t.Context(), again), c.State, "", answer)
	wantKind(t, "the answer again", err, fault.Unauthenticated)

	// One key is of one user.
	c = begin(him)
	_, _, err = w.FinishPasskey(him, c.State, "", a.Create(t, c.Options))
	wantKind(t, "a key of another user", err, fault.Conflict)
	if list, err := w.Passkeys(him, bob.ID); err != nil || len(list) != 0 {
		t.Errorf("bob has %d passkeys, %v; want none", len(list), err)
	}
	_, err = w.Passkeys(him, u.ID)
	wantKind(t, "bob looks at ann's", err, fault.NotFound)
	list, err := w.Passkeys(w.admin(t), u.ID)
	if err != nil || len(list) != 1 {
		t.Fatalf("an administrator sees %d of ann's, %v; want one", len(list), err)
	}
	wantKind(t, "bob deletes ann's", w.RemovePasskey(him, u.ID, list[0].ID), fault.NotFound)
	wantKind(t, "bob deletes ann's as his", w.RemovePasskey(him, bob.ID, list[0].ID), fault.NotFound)
	_, err = w.RenamePasskey(him, bob.ID, list[0].ID, "mine")
	wantKind(t, "bob renames ann's", err, fault.NotFound)
	if err := w.RemovePasskey(w.admin(t), u.ID, list[0].ID); err != nil {
		t.Errorf("an administrator deletes ann's: %v", err)
	}
	w.PublicURL = "https://192.0.2.1:8443"
	_, err = w.BeginPasskey(him)
	wantKind(t, "a server without a name", err, fault.Conflict)
}

// TestAPasskeyAndAnApp has a user with both; either does, and each can go.
func TestAPasskeyAndAnApp(t *testing.T) {
	w := newWorld(t, withTokens, withName)
	u := w.ann(t)
	a := newAuthenticator(t)
	p, codes := w.addPasskey(t, w.me(t, w.mustLogIn(t, annsPassword)), a)
	in := func() context.Context {
		t.Helper()
		c, err := w.BeginLogIn(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		got, factor, err := w.LogInPasskey(t.Context(), c.State, a.Get(t, c.Options), fromHere)
		if err != nil {
			t.Fatal(err)
		}
		return w.me(t, w.keyOf(t, got, factor))
	}
	me := in()
	begun, err := w.BeginTOTP(me)
	if err != nil {
		t.Fatal(err)
	}
	secret := string(begun.Secret)
	_, err = w.logIn(t.Context(), u.Email, annsPassword, totp(t, secret, w.clock()), "192.0.2.7")
	wantKind(t, "a code of an app that was not confirmed", err, fault.Unauthenticated)
	if _, err := w.logIn(t.Context(), u.Email, annsPassword, codes[0], "192.0.2.7"); err != nil {
		t.Errorf("a recovery code while an app is being set up: %v", err)
	}
	fresh, err := w.ConfirmTOTP(me, totp(t, secret, w.clock()))
	if err != nil {
		t.Fatal(err)
	}
	w.pass(time.Minute)
	if _, err := w.logIn(t.Context(), u.Email, annsPassword, totp(t, secret, w.clock()), "192.0.2.7"); err != nil {
		t.Errorf("a code of the app: %v", err)
	}
	_, err = w.logIn(t.Context(), u.Email, annsPassword, codes[1], "192.0.2.7")
	wantKind(t, "a recovery code from before", err, fault.Unauthenticated)
	if err := w.RemoveTOTP(in(), u.ID); err != nil {
		t.Fatal(err)
	}
	_, err = w.logIn(t.Context(), u.Email, annsPassword, "", "192.0.2.7")
	wantKind(t, "the password alone while there is a passkey", err, fault.Unauthenticated)
	if _, err := w.logIn(t.Context(), u.Email, annsPassword, fresh[0], "192.0.2.7"); err != nil {
		t.Errorf("a recovery code without the app: %v", err)
	}
	if err := w.RemovePasskey(in(), u.ID, p.ID); err != nil {
		t.Fatal(err)
	}
	w.mustLogIn(t, annsPassword)
}

// An administrator lets somebody in again who has lost everything but the password.
func TestALostSecondFactorIsReset(t *testing.T) {
	w := newWorld(t, withTokens, withName)
	u := w.ann(t)
	a := newAuthenticator(t)
	w.addPasskey(t, w.me(t, w.mustLogIn(t, annsPassword)), a)
	c, err := w.BeginLogIn(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	got, factor, err := w.LogInPasskey(t.Context(), c.State, a.Get(t, c.Options), fromHere)
	if err != nil {
		t.Fatal(err)
	}
	hers := w.keyOf(t, got, factor)
	begun, err := w.BeginTOTP(w.me(t, hers))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.ConfirmTOTP(w.me(t, hers), totp(t, string(begun.Secret), w.clock())); err != nil {
		t.Fatal(err)
	}

	wantKind(t, "by herself", w.ResetFactors(w.as(t, u.ID, "", identity.NoRole), u.ID), fault.Forbidden)
	key, err := w.bearer(t.Context(), string(w.first.APIKey), "")
	if err != nil {
		t.Fatal(err)
	}
	wantKind(t, "by an administrator's API key", w.ResetFactors(identity.NewContext(t.Context(), key), u.ID), fault.Forbidden)
	wantKind(t, "of nobody", w.ResetFactors(w.admin(t), "01890a5d-ac96-774b-bcce-b302099a8057"), fault.NotFound)
	wantKind(t, "of who has none", w.ResetFactors(w.admin(t), w.first.User.ID), fault.Conflict)
	if err := w.ResetFactors(w.admin(t), u.ID); err != nil {
		t.Fatal(err)
	}
	login := w.mustLogIn(t, annsPassword)
	if list, err := w.Passkeys(w.me(t, login), u.ID); err != nil || len(list) != 0 {
		t.Errorf("afterwards there are the passkeys %+v, %v", list, err)
	}
	wantKind(t, "a login from before", second(w.bearer(t.Context(), hers, "")), fault.Unauthenticated)
	if c, err = w.BeginLogIn(t.Context()); err != nil {
		t.Fatal(err)
	}
	_, _, err = w.LogInPasskey(t.Context(), c.State, a.Get(t, c.Options), fromHere)
	wantKind(t, "the passkey that was lost", err, fault.Unauthenticated)
	p, err := w.Audit.Search(w.admin(t), audit.Filter{Action: "second_factor.reset", Everyone: true}, page.Request{})
	if err != nil || len(p.Items) != 1 || p.Items[0].Target != u.ID || p.Items[0].Actor.ID != w.first.User.ID {
		t.Errorf("the trail has %+v, %v; want who reset whose", p.Items, err)
	}
}

// A browser after the other: the oldest session ends for the one too many, and no
// other user's.
func TestAUserHasOnlySoManySessions(t *testing.T) {
	w := newWorld(t, withTokens)
	u := w.ann(t)
	admin, _, err := w.OpenSession(t.Context(), w.first.User, time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	const most = 32
	var cookies []string
	for range most + 2 {
		c, _, err := w.OpenSession(t.Context(), u, time.Time{})
		if err != nil {
			t.Fatal(err)
		}
		cookies = append(cookies, string(c))
		w.pass(time.Second)
	}
	in := func(cookie string) error {
		_, err := w.Resolve(t.Context(), identity.Proof{Scheme: "Session", Value: cookie, Remote: here, Transport: identity.HTTPS})
		return err
	}
	for i, c := range cookies {
		if got, want := in(c) == nil, i >= 2; got != want {
			t.Errorf("session %d of %d is good: %v, want %v", i+1, len(cookies), got, want)
		}
	}
	if err := in(string(admin)); err != nil {
		t.Errorf("the session of another user: %v", err)
	}
}

func FuzzAuthenticatorAnswers(f *testing.F) {
	w := newWorld(f, withTokens, withName)
	u := w.ann(f)
	me := w.as(f, u.ID, "", identity.NoRole)
	a := newAuthenticator(f)
	c, err := w.BeginPasskey(me)
	if err != nil {
		f.Fatal(err)
	}
	q, err := w.BeginLogIn(f.Context())
	if err != nil {
		f.Fatal(err)
	}
	f.Add(c.State, a.Create(f, c.Options))
	b := newAuthenticator(f) // which nobody has registered
	b.Handle = []byte(u.ID)
	f.Add(q.State, b.Get(f, q.Options))
	f.Add("", []byte(`{"id":"","response":{"attestationObject":"o2NmbXQ"}}`))
	f.Fuzz(func(t *testing.T, state string, answer []byte) {
		if _, _, err := w.LogInPasskey(t.Context(), state, answer, netip.Addr{}); err == nil {
			t.Error("an answer of nobody's key logged in")
		}
		w.FinishPasskey(me, state, "", answer)
	})
}
