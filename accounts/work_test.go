package accounts_test

import (
	"fmt"
	"net/netip"
	"testing"

	"golang.org/x/crypto/argon2"

	"keystead/accounts"
	"keystead/internal/storecount"
)

// What an answer costs tells nothing of whether there is an account: the same is read and
// written, and the same hashes are made, for an address that is known and for one that is
// not, and for an account that is disabled.
func TestUnknownAddressesCostWhatKnownOnesDo(t *testing.T) {
	var counted *storecount.Engine
	post := &mails{}
	w := newWorld(t, withTokens, func(s *accounts.Service) {
		counted = &storecount.Engine{Engine: s.DB}
		s.DB, s.Mail, s.PublicURL = counted, post, "https://id.example.com"
	})
	var hashes []string
	w.HashWith(func(password, salt []byte, passes, memory uint32, threads uint8, length uint32) []byte {
		hashes = append(hashes, fmt.Sprint(passes, memory, threads, length))
		return argon2.IDKey(password, salt, 1, 8, 1, length) // what is asked for counts, not what it takes
	})
	w.ann(t)
	gone, err := w.CreateUser(w.admin(t), accounts.NewUser{Email: "gone@example.com", Password: annsPassword})
	if err != nil {
		t.Fatal(err)
	}
	if err := w.SetStatus(w.admin(t), gone.ID, accounts.Disabled); err != nil {
		t.Fatal(err)
	}
	for name, ask := range map[string]func(email, from string) error{
		"login": func(email, from string) error {
			_, err := w.logIn(t.Context(), email, newPassword, "", from)
			return err
		},
		"passkey after a password": func(email, from string) error {
			_, err := w.BeginSecond(t.Context(), accounts.Attempt{Email: email, Password: newPassword, From: netip.MustParseAddr(from)})
			return err
		},
		"recovery": func(email, from string) error {
			return w.RequestRecovery(t.Context(), email, netip.MustParseAddr(from))
		},
	} {
		type cost struct {
			work   storecount.Work
			hashes string
			answer string
		}
		of := func(email string, n int) (c cost) {
			hashes = nil
			var err error
			c.work = counted.Of(func() { err = ask(email, fmt.Sprintf("192.0.2.%d", n)) })
			c.hashes, c.answer = fmt.Sprint(hashes), fmt.Sprint(err)
			return c
		}
		// Once before: what the first of all finds out is remembered for the others.
		of("ann@example.com", 1)
		of("nobody@example.com", 2)
		known, unknown, disabled := of("ann@example.com", 3), of("nobody@example.com", 4), of("gone@example.com", 5)
		if known != unknown || known != disabled {
			t.Errorf("%s: a known address costs %+v,\nan unknown one %+v,\none that is disabled %+v", name, known, unknown, disabled)
		}
		if name != "recovery" && known.hashes == "[]" || known.work.Gets == 0 {
			t.Errorf("%s: %+v, want it to be looked at", name, known)
		}
	}
}
