package accounts

import (
	"context"
	"crypto/rand"
	"crypto/subtle"
	_ "embed"
	"encoding/base64"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync/atomic"
	"time"
	"unicode/utf8"

	"golang.org/x/crypto/argon2"
	"golang.org/x/text/unicode/norm"

	"keystead/fault"
)

// Parameters of new password hashes: what OWASP asks for at least.
const (
	argonMemory  = 19 * 1024 // KiB
	argonTime    = 2
	argonThreads = 1
	argonSalt    = 16
	argonTag     = 32
)

// maxPassword is the longest password taken, in bytes.
const maxPassword = 1024

// commonPasswords are those that anybody guesses first, of the length allowed.
//
//go:embed common.txt
var commonPasswords string

// checkPassword says what is wrong with a new password (NIST SP 800-63B-4,
// 3.1.1.2): its length, and that it must not be one anybody guesses first.
func (s *Service) checkPassword(password, email string) error {
	bad := func(format string, args ...any) error {
		return fault.InvalidFields(fault.Field{Name: "password", Message: "password does not meet the requirements: " + fmt.Sprintf(format, args...)})
	}
	p := norm.NFKC.String(password)
	switch {
	case !utf8.ValidString(password):
		return bad("it is not UTF-8")
	case utf8.RuneCountInString(p) < s.Config.MinPassword:
		return bad("use at least %d characters", s.Config.MinPassword)
	case len(p) > maxPassword:
		return bad("use at most %d bytes", maxPassword)
	case guessable(strings.ToLower(p), canonical(email)):
		return bad("it is one of those tried first; use several unrelated words")
	}
	return nil
}

// guessable reports whether p is on the list, is made of a few characters or
// of a sequence, or is little more than the address or the product's name.
func guessable(p, email string) bool {
	for common := range strings.Lines(commonPasswords) {
		if strings.TrimSpace(common) == p {
			return true
		}
	}
	kinds, steps := map[rune]bool{}, map[rune]int{}
	var last rune
	for _, r := range p {
		kinds[r] = true
		steps[r-last]++
		last = r
	}
	n := utf8.RuneCountInString(p)
	if len(kinds) <= 4 || steps[1] >= n*3/4 || steps[-1] >= n*3/4 {
		return true
	}
	local, _, _ := strings.Cut(email, "@")
	for _, word := range []string{email, local, "keystead"} {
		if len(word) >= 4 && strings.Contains(p, word) && n-utf8.RuneCountInString(word) < 6 {
			return true
		}
	}
	return false
}

// hashing computes argon2id for as many at once as the machine can bear.
type hashing struct {
	slots   chan struct{}
	waiting atomic.Int32
	dummy   string // of no password, for accounts that have none
	idKey   IDKey
}

// IDKey computes argon2id as [argon2.IDKey] does.
type IDKey func(password, salt []byte, passes, memory uint32, threads uint8, length uint32) []byte

// HashWith has passwords hashed by f, and not in this process. Call it before the
// service is used.
func (s *Service) HashWith(f IDKey) { s.hashes.idKey = f }

// maxWaiting is how many may wait for a slot; more are turned away.
const maxWaiting = 20

func (h *hashing) start(atOnce int) {
	if atOnce <= 0 {
		atOnce = max(1, runtime.NumCPU()/2) // the rest is for everybody who has logged in already
	}
	h.slots = make(chan struct{}, atOnce)
	h.idKey = argon2.IDKey
	h.dummy = h.phc(rand.Text())
}

// enter waits for a slot.
func (h *hashing) enter(ctx context.Context) error {
	if h.waiting.Add(1) > maxWaiting {
		h.waiting.Add(-1)
		return fault.Later(fault.TooMany, 2*time.Second, "too many logins at the moment; try again")
	}
	defer h.waiting.Add(-1)
	select {
	case h.slots <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fault.Later(fault.TooMany, 2*time.Second, "too many logins at the moment; try again")
	}
}

func (h *hashing) leave() { <-h.slots }

// make returns the PHC string of a new hash.
func (h *hashing) make(ctx context.Context, password string) (string, error) {
	if err := h.enter(ctx); err != nil {
		return "", err
	}
	defer h.leave()
	return h.phc(password), nil
}

// matches reports whether password is the one of a PHC string. With "" for the
// string it takes as long and is false.
func (h *hashing) matches(ctx context.Context, password, want string) (bool, error) {
	if len(password) > maxPassword {
		return false, nil
	}
	if err := h.enter(ctx); err != nil {
		return false, err
	}
	defer h.leave()
	known := want != ""
	if !known {
		want = h.dummy
	}
	var memory, passes uint32
	var threads uint8
	parts := strings.Split(want, "$")
	if len(parts) != 6 || parts[1] != "argon2id" || parts[2] != "v=19" {
		return false, errors.New("accounts: a password hash of an unknown form")
	}
	if _, err := fmt.Sscanf(parts[3], "m=%d,t=%d,p=%d", &memory, &passes, &threads); err != nil {
		return false, fmt.Errorf("accounts: parameters of a password hash: %w", err)
	}
	salt, err := base64.RawStdEncoding.DecodeString(parts[4])
	if err != nil {
		return false, fmt.Errorf("accounts: salt of a password hash: %w", err)
	}
	tag, err := base64.RawStdEncoding.DecodeString(parts[5])
	if err != nil || len(tag) != argonTag {
		return false, fmt.Errorf("accounts: tag of a password hash: %w", err)
	}
	got := h.idKey([]byte(norm.NFKC.String(password)), salt, passes, memory, threads, argonTag)
	return subtle.ConstantTimeCompare(got, tag) == 1 && known, nil
}

func (h *hashing) phc(password string) string {
	salt := make([]byte, argonSalt)
	rand.Read(salt) // never fails, never short
	tag := h.idKey([]byte(norm.NFKC.String(password)), salt, argonTime, argonMemory, argonThreads, argonTag)
	enc := base64.RawStdEncoding
	return fmt.Sprintf("$argon2id$v=19$m=%d,t=%d,p=%d$%s$%s", argonMemory, argonTime, argonThreads, enc.EncodeToString(salt), enc.EncodeToString(tag))
}
