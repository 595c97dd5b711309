package accounts_test

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha1"
	"crypto/sha256"
	"encoding/base32"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"keystead/accounts"
	"keystead/fault"
	"keystead/identity"
	"keystead/store"
)

// macs is the Tokens of these tests: what a token says, and a MAC.
type macs struct{ now func() time.Time }

func (m macs) Issue(t accounts.Token) (string, accounts.Token, error) {
	if t.ID == "" {
		t.ID = rand.Text()
	}
	t.ExpiresAt = m.now().Add(t.TTL)
	b, err := json.Marshal(t)
	body := base64.RawURLEncoding.EncodeToString(b)
	return body + "." + m.mac(body), t, err
}

func (m macs) mac(body string) string {
	h := hmac.New(sha256.New, []byte("test"))
	h.Write([]byte(body))
	return base64.RawURLEncoding.EncodeToString(h.Sum(nil))
}

func (m macs) Verify(text string) (t accounts.Token, err error) {
	body, mac, ok := strings.Cut(text, ".")
	if !ok {
		return t, identity.ErrNotMine
	}
	bad := fault.New(fault.Unauthenticated, "bad token")
	if mac != m.mac(body) {
		return t, bad
	}
	b, err := base64.RawURLEncoding.DecodeString(body)
	if err == nil {
		err = json.Unmarshal(b, &t)
	}
	if err == nil && (!m.now().Before(t.ExpiresAt) || t.Kind == accounts.IDToken) {
		err = bad
	}
	return t, err
}

// mails is the Mailer of these tests.
type mails struct {
	mu     sync.Mutex
	sent   []string // "to: text"
	queued int      // decoys among them
}

func (m *mails) Queue(tx store.Tx, mail accounts.Mail) error {
	tx.OnCommit(func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		m.queued++
		if !mail.Decoy {
			m.sent = append(m.sent, mail.To+": "+mail.Text)
		}
	})
	return nil
}

// link returns what follows # in the last mail to an address, "" if there is none.
func (m *mails) link(to string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, mail := range slices.Backward(m.sent) {
		if rest, ok := strings.CutPrefix(mail, to+": "); ok {
			_, rest, _ = strings.Cut(rest, "#")
			key, _, _ := strings.Cut(rest, "\n")
			return key
		}
	}
	return ""
}

const (
	annsPassword = "seventeen quiet otters"
	newPassword  = "a lamp beneath the river"
)

// ann makes a user with a password.
func (w *world) ann(t testing.TB) accounts.User {
	t.Helper()
	u, err := w.CreateUser(w.admin(t), accounts.NewUser{Email: "ann@example.com", Password: annsPassword})
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func (w *world) logIn(ctx context.Context, email, password, code, from string) (string, error) {
	u, factor, err := w.LogIn(ctx, accounts.Attempt{Email: email, Password: password, Code: code, From: netip.MustParseAddr(from)})
	if err != nil {
		return "", err
	}
	text, _, err := w.LoginKey(u, factor)
	return text, err
}

func (w *world) mustLogIn(t testing.TB, password string) string {
	t.Helper()
	key, err := w.logIn(t.Context(), "ann@example.com", password, "", "192.0.2.7")
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func withTokens(s *accounts.Service) { s.Tokens = macs{s.Now} }

func TestLoginKey(t *testing.T) {
	w := newWorld(t, withTokens)
	u := w.ann(t)
	for _, email := range []string{"ann@example.com", " ANN@Example.com "} {
		key, err := w.logIn(t.Context(), email, annsPassword, "", "192.0.2.7")
		if err != nil {
			t.Fatalf("login as %q: %v", email, err)
		}
		a, err := w.bearer(t.Context(), key, "")
		if err != nil || a.ID != u.ID || a.Credential.Kind != identity.LoginKey || !a.Credential.ExpiresAt.Equal(w.clock().Add(time.Hour)) {
			t.Errorf("login key resolves to %+v, %v; want ann for an hour", a, err)
		}
	}
	for _, test := range []struct{ name, email, password string }{
		{"wrong password", "ann@example.com", newPassword},
		{"no such user", "bob@example.com", annsPassword},
		{"empty password", "ann@example.com", ""},
		{"too long", "ann@example.com", strings.Repeat("x", 1<<20)},
	} {
		if _, err := w.logIn(t.Context(), test.email, test.password, "", "192.0.2.7"); err == nil || err.Error() != accounts.ErrUnauthenticated.Error() {
			t.Errorf("%s: error = %v, want the same as for any other failure", test.name, err)
		}
	}
	key := w.mustLogIn(t, annsPassword)
	if _, err := w.bearer(t.Context(), key, ""); err != nil {
		t.Fatal(err)
	}
	_, err := w.bearer(t.Context(), key[:len(key)-2]+"xx", "")
	wantKind(t, "a key that was changed", err, fault.Unauthenticated)
	w.pass(time.Hour)
	_, err = w.bearer(t.Context(), key, "")
	wantKind(t, "a key past its time", err, fault.Unauthenticated)
}

func TestWhatEndsAUsersKeys(t *testing.T) {
	for _, test := range []struct {
		name     string
		do       func(*world, context.Context, accounts.User) error
		apiKeyOK bool
	}{
		{"disabling", func(w *world, admin context.Context, u accounts.User) error {
			return w.SetStatus(admin, u.ID, accounts.Disabled)
		}, false},
		{"signing out everywhere", func(w *world, admin context.Context, u accounts.User) error {
			return w.EndSessions(admin, u.ID)
		}, true},
		{"a new password", func(w *world, admin context.Context, u accounts.User) error {
			return w.SetPassword(admin, u.Email, newPassword)
		}, true},
		{"deleting", func(w *world, admin context.Context, u accounts.User) error { return w.DeleteUser(admin, u.ID) }, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t, withTokens)
			u := w.ann(t)
			login := w.mustLogIn(t, annsPassword)
			_, api, err := w.CreateAPIKey(w.as(t, u.ID, "", identity.NoRole), accounts.NewAPIKey{})
			if err != nil {
				t.Fatal(err)
			}
			session, _, err := w.OpenSession(t.Context(), u, time.Time{})
			if err != nil {
				t.Fatal(err)
			}
			browser := identity.Proof{Scheme: "Session", Value: string(session)}
			for range 2 {
				for what, err := range map[string]error{
					"login": second(w.bearer(t.Context(), login, "")), "api": second(w.bearer(t.Context(), string(api), "")),
					"session": second(w.Resolve(t.Context(), browser)),
				} {
					if err != nil {
						t.Fatalf("%s before: %v", what, err)
					}
				}
			}
			if err := test.do(w, w.admin(t), u); err != nil {
				t.Fatal(err)
			}
			wantKind(t, "login key", second(w.bearer(t.Context(), login, "")), fault.Unauthenticated)
			wantKind(t, "session", second(w.Resolve(t.Context(), browser)), fault.Unauthenticated)
			if err := second(w.bearer(t.Context(), string(api), "")); (err == nil) != test.apiKeyOK {
				t.Errorf("API key: error = %v, want it to work: %v", err, test.apiKeyOK)
			}
		})
	}
}

func second[T any](_ T, err error) error { return err }

func TestADisabledUserComesBackWithoutItsOldLoginKeys(t *testing.T) {
	w := newWorld(t, withTokens)
	u := w.ann(t)
	login := w.mustLogIn(t, annsPassword)
	for _, status := range []accounts.Status{accounts.Disabled, accounts.Enabled} {
		if err := w.SetStatus(w.admin(t), u.ID, status); err != nil {
			t.Fatal(err)
		}
	}
	wantKind(t, "the old login key", second(w.bearer(t.Context(), login, "")), fault.Unauthenticated)
	w.mustLogIn(t, annsPassword)
}

func TestTheLastAdministratorStays(t *testing.T) {
	w := newWorld(t)
	me := w.first.User.ID
	for what, do := range map[string]func() error{
		"disable": func() error { return w.SetStatus(w.admin(t), me, accounts.Disabled) },
		"demote":  func() error { return w.SetPlatform(w.admin(t), me, false) },
		"delete":  func() error { return w.DeleteUser(w.admin(t), me) },
	} {
		wantKind(t, what+" the last administrator", do(), fault.Conflict)
		if _, err := w.bearer(t.Context(), string(w.first.APIKey), ""); err != nil {
			t.Errorf("after trying to %s it: %v", what, err)
		}
	}
	u := w.ann(t)
	if err := w.SetPlatform(w.admin(t), u.ID, true); err != nil {
		t.Fatal(err)
	}
	if err := w.SetStatus(w.admin(t), me, accounts.Disabled); err != nil {
		t.Errorf("disable one of two: %v", err)
	}
}

func TestRecoveryKeyWorksOnceHoweverManyTry(t *testing.T) {
	m := &mails{}
	w := newWorld(t, withTokens, func(s *accounts.Service) { s.Mail = m })
	w.ann(t)
	login := w.mustLogIn(t, annsPassword)
	from := netip.MustParseAddr("192.0.2.7")
	if err := w.RequestRecovery(t.Context(), "ANN@example.com", from); err != nil {
		t.Fatal(err)
	}
	key := m.link("ann@example.com")
	wantKind(t, "a recovery key as a bearer", second(w.bearer(t.Context(), key, "")), fault.Unauthenticated)
	wantKind(t, "a login key as a recovery key", w.ResetPassword(t.Context(), login, newPassword, from), fault.Unauthenticated)
	wantKind(t, "a weak password", w.ResetPassword(t.Context(), key, "short", from), fault.Invalid)

	var worked atomic.Int32
	var group sync.WaitGroup
	for i := range 20 {
		group.Go(func() {
			at := netip.AddrFrom4([4]byte{198, 51, 100, byte(i)})
			switch err := w.ResetPassword(t.Context(), key, newPassword, at); {
			case err == nil:
				worked.Add(1)
			case !fault.Is(err, fault.Unauthenticated) && !fault.Is(err, fault.TooMany):
				t.Errorf("try %d: %v", i, err)
			}
		})
	}
	group.Wait()
	if worked.Load() != 1 {
		t.Errorf("the key worked %d times under 20 tries, want once", worked.Load())
	}
	wantKind(t, "the login key from before", second(w.bearer(t.Context(), login, "")), fault.Unauthenticated)
	wantKind(t, "the key again", w.ResetPassword(t.Context(), key, annsPassword, from), fault.Unauthenticated)
	if _, err := w.logIn(t.Context(), "ann@example.com", annsPassword, "", "192.0.2.7"); err == nil {
		t.Error("the old password still works")
	}
	w.mustLogIn(t, newPassword)
}

func TestRecoveryKeyExpiresAndIsSuperseded(t *testing.T) {
	m := &mails{}
	w := newWorld(t, withTokens, func(s *accounts.Service) { s.Mail = m })
	w.ann(t)
	from := netip.MustParseAddr("192.0.2.7")
	request := func() string {
		t.Helper()
		if err := w.RequestRecovery(t.Context(), "ann@example.com", from); err != nil {
			t.Fatal(err)
		}
		return m.link("ann@example.com")
	}
	first := request()
	second := request()
	wantKind(t, "the one before", w.ResetPassword(t.Context(), first, newPassword, from), fault.Unauthenticated)
	w.pass(15 * time.Minute)
	wantKind(t, "one past its time", w.ResetPassword(t.Context(), second, newPassword, from), fault.Unauthenticated)
}

func TestAnUnknownAddressLooksLikeAKnownOne(t *testing.T) {
	m := &mails{}
	w := newWorld(t, withTokens, func(s *accounts.Service) { s.Mail = m })
	u := w.ann(t)
	from := netip.MustParseAddr("192.0.2.7")
	for _, email := range []string{"ann@example.com", "nobody@example.com"} {
		if err := w.RequestRecovery(t.Context(), email, from); err != nil {
			t.Errorf("%s: %v, want nothing", email, err)
		}
	}
	if m.queued != 2 {
		t.Errorf("%d mails are queued, want as many for an address without an account", m.queued)
	}
	if m.link("nobody@example.com") != "" {
		t.Error("an address without an account was mailed a key")
	}
	if err := w.SetStatus(w.admin(t), u.ID, accounts.Disabled); err != nil {
		t.Fatal(err)
	}
	sent := len(m.sent)
	if err := w.RequestRecovery(t.Context(), "ann@example.com", from); err != nil || len(m.sent) != sent {
		t.Errorf("a disabled user: %v and %d mails, want nothing and none", err, len(m.sent)-sent)
	}
}

func TestThrottlingSparesTheOwner(t *testing.T) {
	w := newWorld(t, withTokens)
	w.ann(t)
	w.mustLogIn(t, annsPassword) // from 192.0.2.7, which the account knows now
	for range 10 {
		if _, err := w.logIn(t.Context(), "ann@example.com", "wrong", "", "203.0.113.9"); !fault.Is(err, fault.Unauthenticated) {
			t.Fatalf("a first failure: %v", err)
		}
	}
	_, err := w.logIn(t.Context(), "ann@example.com", annsPassword, "", "203.0.113.9")
	wantKind(t, "even the right password after ten failures from there", err, fault.TooMany)
	for i := range 110 { // from everywhere
		w.logIn(t.Context(), "ann@example.com", "wrong", "", netip.AddrFrom4([4]byte{198, 51, byte(i), 1}).String())
	}
	_, err = w.logIn(t.Context(), "ann@example.com", "wrong", "", "198.18.0.1")
	wantKind(t, "a stranger while everybody guesses", err, fault.TooMany)
	w.mustLogIn(t, annsPassword)
	w.pass(time.Hour)
	if _, err := w.logIn(t.Context(), "ann@example.com", annsPassword, "", "203.0.113.9"); err != nil {
		t.Errorf("an hour later: %v", err)
	}
}

func TestPasswordRules(t *testing.T) {
	w := newWorld(t)
	for password, good := range map[string]bool{
		annsPassword: true,
		"пятнадцать тихих выдр":           true,
		strings.Repeat("long words ", 60): true,
		"elevenchars":                     false,
		"password1234":                    false,
		"PASSWORD1234":                    false,
		"aaaaaaaaaaaaaaaa":                false,
		"abcdefghijklmnop":                false,
		"zyxwvutsrqponm":                  false,
		"bob.builder@example.com":         false,
		"keystead12345":                   false,
		"invalid \xff utf-8 text":         false,
		strings.Repeat("x1y2z3 ", 200):    false,
	} {
		_, err := w.CreateUser(w.admin(t), accounts.NewUser{Email: "bob.builder@example.com", Password: password})
		if good != (err == nil) && !fault.Is(err, fault.Conflict) {
			t.Errorf("password %.30q: %v, want it accepted: %v", password, err, good)
		}
	}
}

// totp is what an authenticator app shows.
func totp(t *testing.T, secret string, at time.Time) string {
	t.Helper()
	key, err := base32.StdEncoding.WithPadding(base32.NoPadding).DecodeString(secret)
	if err != nil {
		t.Fatal(err)
	}
	m := hmac.New(sha1.New, key)
	binary.Write(m, binary.BigEndian, uint64(at.Unix()/30))
	sum := m.Sum(nil)
	o := sum[19] & 15
	return fmt.Sprintf("%06d", binary.BigEndian.Uint32(sum[o:])&0x7fffffff%1000000)
}

func TestSecondFactor(t *testing.T) {
	w := newWorld(t, withTokens)
	u := w.ann(t)
	resolved := func(key string) context.Context {
		t.Helper()
		a, err := w.bearer(t.Context(), key, "")
		if err != nil {
			t.Fatal(err)
		}
		return identity.NewContext(t.Context(), a)
	}
	me := resolved(w.mustLogIn(t, annsPassword))
	begun, err := w.BeginTOTP(me)
	if err != nil {
		t.Fatal(err)
	}
	secret := string(begun.Secret)
	_, err = w.ConfirmTOTP(me, "000000")
	wantKind(t, "a wrong first code", err, fault.Invalid)
	codes, err := w.ConfirmTOTP(me, totp(t, secret, w.clock()))
	if err != nil || len(codes) != 10 {
		t.Fatalf("ConfirmTOTP = %d codes, %v; want 10", len(codes), err)
	}
	in := func(code string) (string, error) {
		return w.logIn(t.Context(), "ann@example.com", annsPassword, code, "192.0.2.7")
	}
	_, err = in("")
	wantKind(t, "without a code", err, fault.Unauthenticated)
	_, err = in(totp(t, secret, w.clock()))
	wantKind(t, "with the code that was used to confirm", err, fault.Unauthenticated)
	w.pass(30 * time.Second)
	key, err := in(totp(t, secret, w.clock()))
	if err != nil {
		t.Fatalf("with a code: %v", err)
	}
	_, err = in(totp(t, secret, w.clock()))
	wantKind(t, "with the same code again", err, fault.Unauthenticated)
	if _, err := in(strings.ToUpper(codes[3])); err != nil {
		t.Errorf("with a recovery code: %v", err)
	}
	_, err = in(codes[3])
	wantKind(t, "with the recovery code again", err, fault.Unauthenticated)

	if _, _, err := w.CreateAPIKey(resolved(key), accounts.NewAPIKey{}); err != nil {
		t.Errorf("an API key with a fresh second factor: %v", err)
	}
	w.pass(11 * time.Minute)
	_, _, err = w.CreateAPIKey(resolved(key), accounts.NewAPIKey{})
	wantKind(t, "an API key with a stale one", err, fault.Forbidden)

	for range 6 {
		_, err = in("111111")
	}
	wantKind(t, "guessing codes", err, fault.TooMany)
	wantKind(t, "an API key's holder who removes it", w.RemoveTOTP(w.as(t, u.ID, "", identity.NoRole), u.ID), fault.Forbidden)
}

func TestSetUpLinkWorksOnce(t *testing.T) {
	w := newWorld(t, withTokens)
	from := netip.MustParseAddr("192.0.2.7")
	key, err := w.OfferSetup(t.Context())
	if err != nil || key == nil {
		t.Fatalf("OfferSetup on a fresh server = %v, %v; want a key", key, err)
	}
	_, err = w.SetUp(t.Context(), "keystead_setup_x", "root@example.com", annsPassword, from)
	wantKind(t, "a wrong key", err, fault.Unauthenticated)
	u, err := w.SetUp(t.Context(), string(key), "root@example.com", annsPassword, from)
	if err != nil || u.ID != w.first.User.ID {
		t.Fatalf("SetUp = %s, %v; want the first administrator", u.ID, err)
	}
	if _, err := w.logIn(t.Context(), "root@example.com", annsPassword, "", "192.0.2.7"); err != nil {
		t.Errorf("login after set-up: %v", err)
	}
	_, err = w.SetUp(t.Context(), string(key), "evil@example.com", annsPassword, from)
	wantKind(t, "the key again", err, fault.NotFound)
	if again, err := w.OfferSetup(t.Context()); err != nil || again != nil {
		t.Errorf("OfferSetup once set up: a key, %v; want none", err)
	}
}

func TestRegistration(t *testing.T) {
	m := &mails{}
	w := newWorld(t, withTokens)
	from := netip.MustParseAddr("192.0.2.7")
	n := accounts.NewUser{Email: "cy@example.com", Password: annsPassword, Platform: true}
	wantKind(t, "by default", w.Register(t.Context(), n, from), fault.Forbidden)

	w = newWorld(t, withTokens, func(s *accounts.Service) {
		s.Mail, s.Config.SelfRegistration, s.Config.VerifyEmail = m, true, true
	})
	if err := w.Register(t.Context(), n, from); err != nil {
		t.Fatal(err)
	}
	_, err := w.logIn(t.Context(), "cy@example.com", annsPassword, "", "192.0.2.7")
	wantKind(t, "before the address is verified", err, fault.Unauthenticated)
	u, err := w.VerifyEmail(t.Context(), m.link("cy@example.com"), from)
	if err != nil || u.Platform {
		t.Fatalf("VerifyEmail = %+v, %v; want a plain user", u, err)
	}
	_, err = w.VerifyEmail(t.Context(), m.link("cy@example.com"), from)
	wantKind(t, "the link again", err, fault.Unauthenticated)
	if _, err := w.logIn(t.Context(), "cy@example.com", annsPassword, "", "192.0.2.7"); err != nil {
		t.Errorf("after: %v", err)
	}
	if err := w.Register(t.Context(), n, from); err != nil {
		t.Errorf("registering a known address: %v, want the answer of an unknown one", err)
	}
}

func TestInvites(t *testing.T) {
	w := newWorld(t, withTokens)
	from := netip.MustParseAddr("192.0.2.7")
	org := w.first.Org.ID
	_, key, err := w.CreateInvite(w.admin(t), "dora@example.com", org, identity.Editor)
	if err != nil {
		t.Fatal(err)
	}
	_, err = w.RegisterInvited(t.Context(), string(key), accounts.NewUser{Email: "eve@example.com", Password: annsPassword}, from)
	wantKind(t, "at another address", err, fault.Forbidden)
	dora, err := w.RegisterInvited(t.Context(), string(key), accounts.NewUser{Email: "dora@example.com", Password: annsPassword, Platform: true}, from)
	if err != nil || dora.Platform {
		t.Fatalf("RegisterInvited = %+v, %v; want a plain user", dora, err)
	}
	m, err := w.MemberOf(w.admin(t), org, dora.ID)
	if err != nil || m.Role != identity.Editor {
		t.Errorf("membership = %+v, %v; want editor", m, err)
	}
	_, err = w.RegisterInvited(t.Context(), string(key), accounts.NewUser{Email: "dora@example.com", Password: annsPassword}, from)
	wantKind(t, "again", err, fault.Forbidden)

	ann := w.ann(t)
	i, _, err := w.CreateInvite(w.admin(t), ann.Email, org, identity.Viewer)
	if err != nil {
		t.Fatal(err)
	}
	wantKind(t, "answered by another", w.AnswerInvite(w.as(t, dora.ID, "", identity.NoRole), i.ID, accounts.InviteAccepted), fault.NotFound)
	if err := w.AnswerInvite(w.as(t, ann.ID, "", identity.NoRole), i.ID, accounts.InviteAccepted); err != nil {
		t.Errorf("accepting: %v", err)
	}
	_, _, err = w.CreateInvite(w.as(t, dora.ID, org, identity.Admin), "x@example.com", org, identity.Owner)
	wantKind(t, "an admin who invites an owner", err, fault.Forbidden)
}

func TestRoles(t *testing.T) {
	w := newWorld(t, withTokens)
	ann := w.ann(t)
	bob, err := w.CreateUser(w.admin(t), accounts.NewUser{Email: "bob@example.com", Password: annsPassword})
	if err != nil {
		t.Fatal(err)
	}
	o, err := w.CreateOrganisation(w.as(t, ann.ID, "", identity.NoRole), accounts.NewOrganisation{Name: "acme"})
	if err != nil {
		t.Fatal(err)
	}
	owner := w.as(t, ann.ID, o.ID, identity.Owner)
	admin := w.as(t, bob.ID, o.ID, identity.Admin)
	key := func(role identity.Role) error {
		return w.SetRoles(owner, o.ID, []accounts.Grant{{Email: bob.Email, Role: role}})
	}

	if err := w.AddMembers(owner, o.ID, []accounts.Grant{{Email: "BOB@example.com", Role: identity.Admin}}); err != nil {
		t.Fatal(err)
	}
	wantKind(t, "twice a member", w.AddMembers(owner, o.ID, []accounts.Grant{{Email: bob.Email, Role: identity.Viewer}}), fault.Conflict)
	wantKind(t, "a stranger", w.AddMembers(owner, o.ID, []accounts.Grant{{Email: "no@example.com", Role: identity.Viewer}}), fault.NotFound)
	wantKind(t, "a role that is none", key("king"), fault.Invalid)
	wantKind(t, "platform as a role", key(identity.Operator), fault.Invalid)
	wantKind(t, "an admin who makes an owner", w.SetRoles(admin, o.ID, []accounts.Grant{{Email: bob.Email, Role: identity.Owner}}), fault.Forbidden)
	wantKind(t, "an admin who demotes the owner", w.SetRoles(admin, o.ID, []accounts.Grant{{Email: ann.Email, Role: identity.Viewer}}), fault.Forbidden)
	wantKind(t, "an admin who removes the owner", w.RemoveMembers(admin, o.ID, []string{ann.ID}), fault.Forbidden)
	wantKind(t, "the last owner leaves", w.RemoveMembers(owner, o.ID, []string{ann.ID}), fault.Conflict)

	login, err := w.logIn(t.Context(), bob.Email, annsPassword, "", "192.0.2.7")
	if err != nil {
		t.Fatal(err)
	}
	if a, err := w.bearer(t.Context(), login, o.ID); err != nil || a.Role != identity.Admin {
		t.Errorf("bob is %q, %v; want admin", a.Role, err)
	}
	if err := key(identity.Viewer); err != nil {
		t.Fatal(err)
	}
	if a, err := w.bearer(t.Context(), login, o.ID); err != nil || a.Role != identity.Viewer {
		t.Errorf("on the request after he was made a viewer bob is %q, %v", a.Role, err)
	}
	if err := w.RemoveMembers(owner, o.ID, []string{bob.ID}); err != nil {
		t.Fatal(err)
	}
	wantKind(t, "the request after he was removed", second(w.bearer(t.Context(), login, o.ID)), fault.NotFound)
	if err := w.DeleteOrganisation(owner, o.ID); err != nil {
		t.Errorf("delete: %v", err)
	}
	wantKind(t, "delete the default one", w.DeleteOrganisation(w.admin(t), w.first.Org.ID), fault.Conflict)
}

func TestLists(t *testing.T) {
	w := newWorld(t)
	for i := range 25 {
		if _, err := w.CreateUser(w.admin(t), accounts.NewUser{Email: fmt.Sprintf("u%02d@example.com", i)}); err != nil {
			t.Fatal(err)
		}
	}
	list, total, err := w.Users(w.admin(t), accounts.UserFilter{Email: "U1"}, accounts.List{Offset: 2, Limit: 3, Order: "email", Ascending: true})
	if err != nil || total != 10 || len(list) != 3 || list[0].Email != "u12@example.com" {
		t.Errorf("Users = %v, %d, %v; want u12 to u14 of 10", list, total, err)
	}
	_, _, err = w.Users(w.admin(t), accounts.UserFilter{}, accounts.List{Limit: 3, Order: "shoe size"})
	wantKind(t, "an order that is none", err, fault.Invalid)
	if list, total, err := w.Users(w.admin(t), accounts.UserFilter{}, accounts.List{Offset: 99, Limit: 3, Order: "id"}); err != nil || len(list) != 0 || total != 26 {
		t.Errorf("past the end: %d of %d, %v; want none of 26", len(list), total, err)
	}
}

func TestAPlatformAdministratorOfNoOrganisationIsAtHomeInTheFirst(t *testing.T) {
	w := newWorld(t, withTokens)
	u, err := w.CreateUser(w.admin(t), accounts.NewUser{Email: "ann@example.com", Password: annsPassword, Platform: true})
	if err != nil {
		t.Fatal(err)
	}
	a, err := w.bearer(t.Context(), w.mustLogIn(t, annsPassword), "")
	if err != nil || a.Org != w.first.Org.ID || !a.May(identity.Platform) {
		t.Errorf("it is %+v, %v; want it to administer the platform from the first organisation", a, err)
	}
	if err := w.SetPlatform(w.admin(t), u.ID, false); err != nil {
		t.Fatal(err)
	}
	if a, err = w.bearer(t.Context(), w.mustLogIn(t, annsPassword), ""); err != nil || a.Org != "" || a.Role != identity.NoRole {
		t.Errorf("once it is none any more it is %+v, %v; want it in no organisation", a, err)
	}
}
