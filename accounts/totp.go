package accounts

import (
	"context"
	"crypto/hmac"
	"crypto/sha1" //nolint:gosec // G505: authenticator apps know no other hash (RFC 6238, 1.2)
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base32"
	"encoding/binary"
	"fmt"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"keystead/fault"
	"keystead/identity"
	"keystead/seal"
	"keystead/store"
)

// factor is the second factors of a user.
type factor struct {
	Sealed   []byte    `cbor:"totp,omitempty"` // the secret shared with the authenticator app
	Active   bool      `cbor:"active"`         // a first code has shown that the app has it
	LastStep int64     `cbor:"step"`           // of the last code taken: none is taken twice
	Codes    [][]byte  `cbor:"codes,omitempty"`
	Since    time.Time `cbor:"since"`
}

var factorTable = store.NewTable[factor]("second factor") // by user

const (
	totpStep   = 30 // seconds
	totpBytes  = 20
	codeCount  = 10
	codeDigits = 16
)

func totpPlace(userID string) string { return factorTable.Name() + "/" + userID }

// TOTP is what an authenticator app is given.
type TOTP struct {
	Secret seal.Secret // in base32
	URI    seal.Secret // the same as an otpauth link
}

// BeginTOTP makes a secret for the acting user's authenticator app. It counts
// once ConfirmTOTP was given a code of it.
func (s *Service) BeginTOTP(ctx context.Context) (TOTP, error) {
	u, err := s.selfInteractive(ctx)
	if err != nil {
		return TOTP{}, err
	}
	secret := seal.NewSecret(totpBytes)
	sealed := s.Box.Seal(totpPlace(u.ID), secret)
	err = s.DB.Update(ctx, func(tx store.Tx) error {
		old, err := factorTable.Get(tx, u.ID)
		if err != nil && !fault.Is(err, fault.NotFound) {
			return err
		}
		if old.Active {
			return fault.New(fault.Conflict, "an authenticator app is set up already; remove it first")
		}
		// Codes that stand in for passkeys stay.
		return factorTable.Set(tx, u.ID, factor{Sealed: sealed, Codes: old.Codes, Since: s.Now().UTC()})
	})
	text := base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(secret)
	v := url.Values{"secret": {text}, "issuer": {"Keystead"}, "period": {"30"}, "digits": {"6"}, "algorithm": {"SHA1"}}
	uri := url.URL{Scheme: "otpauth", Host: "totp", Path: "/Keystead:" + u.title(), RawQuery: v.Encode()}
	return TOTP{Secret: seal.Secret(text), URI: seal.Secret(uri.String())}, err
}

// selfInteractive returns the acting user, who has logged in, with a fresh
// second factor if it has one.
func (s *Service) selfInteractive(ctx context.Context) (User, error) {
	a, err := self(ctx)
	if err != nil {
		return User{}, err
	}
	if err := interactive(a); err != nil {
		return User{}, err
	}
	if err := s.fresh(ctx); err != nil {
		return User{}, err
	}
	return s.User(ctx, a.ID)
}

// ConfirmTOTP switches the authenticator app on, and returns recovery codes, each
// of which works once in place of a second factor; they replace those before. All
// login keys and sessions end.
func (s *Service) ConfirmTOTP(ctx context.Context, code string) ([]string, error) {
	u, err := s.selfInteractive(ctx)
	if err != nil {
		return nil, err
	}
	if wait, ok := s.logins.factor.Take(u.ID); !ok {
		return nil, tooMany(wait)
	}
	codes, hashes := newCodes()
	err = s.DB.Update(ctx, func(tx store.Tx) error {
		f, err := factorTable.Get(tx, u.ID)
		if err != nil || f.Active || f.Sealed == nil {
			return fault.New(fault.Conflict, "begin to set up an authenticator app first")
		}
		step, err := s.totpStepOf(u.ID, f, code)
		if err != nil {
			return err
		}
		if step == 0 {
			return fault.New(fault.Invalid, "the code is not the one the app should show now; check its clock")
		}
		f.Active, f.LastStep, f.Codes = true, step, hashes
		if err := factorTable.Set(tx, u.ID, f); err != nil {
			return err
		}
		return s.setFactors(ctx, tx, u.ID, true)
	})
	if err != nil {
		return nil, err
	}
	s.logins.factor.Forget(u.ID)
	return codes, nil
}

// HasTOTP reports whether a user has an authenticator app set up.
func (s *Service) HasTOTP(ctx context.Context, userID string) (on bool, err error) {
	if _, err := s.User(ctx, userID); err != nil {
		return false, err
	}
	err = s.DB.View(ctx, func(tx store.Tx) error {
		f, err := factorTable.Get(tx, userID)
		on = err == nil && f.Active
		if fault.Is(err, fault.NotFound) {
			return nil
		}
		return err
	})
	return on, err
}

func (s *Service) setFactors(ctx context.Context, tx store.Tx, userID string, on bool) error {
	_, err := userTable.Update(tx, userID, func(u *User) error {
		u.Factors = on
		u.Epoch++
		return nil
	})
	if err != nil {
		return err
	}
	s.moved(tx)
	return s.note(ctx, tx, "", "second_factor.change", userID, map[string]string{"on": strconv.FormatBool(on)})
}

// RemoveTOTP takes a user's authenticator app away: its own with a fresh second
// factor, anybody's for a platform administrator. Passkeys stay, and with them the
// recovery codes.
func (s *Service) RemoveTOTP(ctx context.Context, userID string) error {
	if err := interactive(identity.FromContext(ctx)); err != nil {
		return err
	}
	if _, err := s.User(ctx, userID); err != nil {
		return err
	}
	if err := s.fresh(ctx); err != nil {
		return err
	}
	return s.DB.Update(ctx, func(tx store.Tx) error {
		f, err := factorTable.Get(tx, userID)
		if err != nil && !fault.Is(err, fault.NotFound) {
			return err
		}
		n, err := passkeyTable.Count(tx, "user", store.TermOf(userID))
		if err != nil {
			return err
		}
		if n > 0 {
			if err := factorTable.Set(tx, userID, factor{Codes: f.Codes, Since: f.Since}); err != nil {
				return err
			}
		} else if _, err := factorTable.Delete(tx, userID); err != nil && !fault.Is(err, fault.NotFound) {
			return err
		}
		return s.setFactors(ctx, tx, userID, n > 0)
	})
}

// checkCode takes a code of the app, or a recovery code, once.
func (s *Service) checkCode(ctx context.Context, u User, code string) error {
	if code == "" {
		return ErrSecondFactor
	}
	if wait, ok := s.logins.factor.Take(u.ID); !ok {
		return tooMany(wait)
	}
	err := s.DB.Update(ctx, func(tx store.Tx) error {
		f, err := factorTable.Get(tx, u.ID)
		if err != nil {
			return err
		}
		var step int64
		if f.Active {
			if step, err = s.totpStepOf(u.ID, f, code); err != nil {
				return err
			}
		}
		if step > f.LastStep {
			f.LastStep = step
			return factorTable.Set(tx, u.ID, f)
		}
		hash := codeHash(code)
		i := slices.IndexFunc(f.Codes, func(h []byte) bool { return subtle.ConstantTimeCompare(h, hash) == 1 })
		if i < 0 {
			return fault.New(fault.Unauthenticated, "the second factor is not right, or was used before")
		}
		f.Codes = slices.Delete(slices.Clone(f.Codes), i, i+1)
		if err := factorTable.Set(tx, u.ID, f); err != nil {
			return err
		}
		return s.note(ctx, tx, "", "recovery_code.use", u.ID, map[string]string{"left": strconv.Itoa(len(f.Codes))})
	})
	if err == nil {
		s.logins.factor.Forget(u.ID)
	}
	return err
}

// totpStepOf returns the time step that code belongs to, one before or after
// the present one at most, 0 if it belongs to none.
func (s *Service) totpStepOf(userID string, f factor, code string) (int64, error) {
	secret, err := s.Box.Open(totpPlace(userID), f.Sealed)
	if err != nil {
		return 0, err
	}
	now := s.Now().Unix() / totpStep
	var found int64
	for step := now - 1; step <= now+1; step++ {
		if subtle.ConstantTimeCompare([]byte(totpAt(secret, step)), []byte(code)) == 1 {
			found = step
		}
	}
	return found, nil
}

// totpAt is the code of a time step (RFC 4226, 5.3).
func totpAt(secret []byte, step int64) string {
	m := hmac.New(sha1.New, secret)
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], uint64(step)) //nolint:gosec // G115: a time after 1970
	m.Write(b[:])
	sum := m.Sum(nil)
	at := sum[len(sum)-1] & 15
	return fmt.Sprintf("%06d", binary.BigEndian.Uint32(sum[at:])&0x7fffffff%1_000_000)
}

func newCodes() (codes []string, hashes [][]byte) {
	for range codeCount {
		c := strings.ToLower(string(seal.Random62(codeDigits)))
		codes, hashes = append(codes, c[:4]+"-"+c[4:8]+"-"+c[8:12]+"-"+c[12:]), append(hashes, codeHash(c))
	}
	return codes, hashes
}

// codeHash is of a recovery code however it is typed.
func codeHash(code string) []byte {
	h := sha256.Sum256([]byte(strings.ToLower(strings.NewReplacer("-", "", " ", "").Replace(code))))
	return h[:]
}
