//go:build e2e

package e2e_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const pagePassword = "seventeen quiet otters"

// A person sets the server up in a browser, adds a passkey, and logs in with it:
// in place of the password, and after it.
func TestPasskeysInABrowser(t *testing.T) {
	t.Parallel()
	s := start(t, append(named, fast...)...)
	s.secret(pagePassword)
	b := s.browse()
	link, err := os.ReadFile(filepath.Join(s.data, "setup-link"))
	if err != nil {
		t.Fatal(err)
	}
	s.secret(strings.TrimSpace(string(link[strings.IndexByte(string(link), '#')+1:])))
	b.open(strings.TrimPrefix(strings.TrimSpace(string(link)), b.name))
	b.picture("setup")
	b.write("[name=email]", "root@example.com")
	b.write("[name=password]", pagePassword)
	b.write("[name=confirm_password]", pagePassword)
	b.click("button")
	b.shows("Done. You can log in now.")
	b.picture("setup-done")
	b.click("#onwards a")

	b.element("[name=password]")
	b.picture("login")
	b.write("[name=email]", "root@example.com")
	b.write("[name=password]", "not the password")
	b.click("form button")
	b.shows("is not right")
	b.picture("login-wrong")
	b.write("[name=email]", "root@example.com")
	b.write("[name=password]", pagePassword)
	b.click("form button")
	b.shows("Your account")
	b.picture("account-new")

	a := b.authenticator()
	b.write("[data-passkey=create] [name=name]", "the blue one")
	b.click("#passkey")
	b.shows("Keep these recovery codes")
	b.picture("codes")
	codes := strings.Fields(b.text(".codes"))
	if len(codes) != 10 {
		t.Fatalf("got %d recovery codes, want 10: %q", len(codes), codes)
	}
	for _, code := range codes {
		s.secret(code)
	}
	if keys := b.passkeys(a); len(keys) != 1 {
		t.Fatalf("the authenticator keeps %d passkeys, want one", len(keys))
	}

	// In place of the password.
	b.click("main a")
	b.click("#passkey")
	b.shows("the blue one")
	b.picture("account")

	// Not by whom the authenticator does not recognise.
	b.click("[action='/account/sign-out'] button")
	b.verifies(a, false)
	b.click("#passkey")
	b.shows("No passkey was used")
	b.picture("login-refused")
	b.verifies(a, true)

	// As second factor.
	b.write("[name=email]", "root@example.com")
	b.write("[name=password]", pagePassword)
	b.click("form button")
	b.shows("Confirm with your passkey")
	b.picture("second")
	b.click("#passkey")
	b.shows("the blue one")

	// A recovery code in place of it, without script.
	b.click("[action='/account/sign-out'] button")
	b.write("[name=email]", "root@example.com")
	b.write("[name=password]", pagePassword)
	b.click("form button")
	b.write("[name=code]", codes[0])
	b.click("form:not([data-passkey]) button")
	b.shows("the blue one")

	// The console takes it as well: alone, and as second factor, which may be a code.
	b.open("/console/")
	b.pictures("console-sign-in")
	b.verifies(a, false)
	b.signIn("passkey", nil)
	b.shows("No passkey was used")
	b.verifies(a, true)
	b.pictures("console-passkey")
	b.click("#way [type=submit]")
	b.isIn()
	b.signOut()
	account := map[string]string{"email": "root@example.com", "password": pagePassword}
	b.signIn("account", account)
	b.element("#way [name=code]")
	b.pictures("console-second")
	b.press("Use your passkey")
	b.isIn()
	b.signOut()
	b.signIn("account", account)
	b.write("#way [name=code]", codes[1])
	b.click("#way [type=submit]")
	b.isIn()
	b.signOut()
	b.open("/account")
	b.shows("the blue one")

	// An authenticator app beside it.
	b.click("[action='/account/totp'] button")
	b.shows("Scan this")
	b.picture("totp")
	s.secret(strings.ReplaceAll(b.text(".secret"), " ", ""))
	b.click("main a")

	b.write("[action$='/rename'] [name=name]", "er")
	b.click("[action$='/rename'] button")
	b.shows("Your account")
	if got := b.text(".list strong"); got != "the blue oneer" {
		t.Errorf("renamed, the passkey is called %q", got)
	}
	if out := s.cli("user", "passkey", "list", "root@example.com"); !strings.Contains(out, "the blue oneer") {
		t.Errorf("keystead user passkey list printed %s", out)
	}
	b.click("[action$='/delete'] button")
	b.element("[name=password]") // the last second factor is gone, and with it what rested on it
	for _, fault := range b.log() {
		if strings.Contains(fault, "Content Security Policy") || strings.Contains(fault, "TrustedScript") {
			t.Errorf("a page breaks its own policy: %s", fault)
		}
	}
}
