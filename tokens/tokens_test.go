package tokens_test

import (
	"crypto/x509"
	"errors"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"keystead/audit"
	"keystead/fault"
	"keystead/seal"
	"keystead/store/bolt"
	"keystead/tokens"
)

// world is a service on a store of its own, at a time the test sets.
type world struct {
	*tokens.Service
	mu  sync.Mutex
	now time.Time
}

func (w *world) pass(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.now = w.now.Add(d)
}

func start(t testing.TB, change ...func(*tokens.Config)) *world {
	t.Helper()
	db, err := bolt.Open(filepath.Join(t.TempDir(), "test.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	box, err := seal.NewBox(seal.NewSecret(32))
	if err != nil {
		t.Fatal(err)
	}
	w := &world{now: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)}
	now := func() time.Time {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.now
	}
	cfg := tokens.DefaultConfig()
	cfg.Issuer = "https://keystead.test"
	for _, c := range change {
		c(&cfg)
	}
	w.Service = &tokens.Service{DB: db, Box: box, Now: now, Config: cfg, Audit: &audit.Log{DB: db, Key: seal.NewSecret(32), Now: now}}
	if err := w.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *world) issue(t testing.TB, k tokens.Kind, n tokens.New) string {
	t.Helper()
	if n.Subject == "" {
		n.Subject = "d1"
	}
	if n.TTL == 0 {
		n.TTL = time.Hour
	}
	text, _, err := w.Issue(k, n)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func TestTokenSaysWhatItWasMadeFrom(t *testing.T) {
	for _, alg := range []tokens.Algorithm{tokens.EdDSA, tokens.ES256, tokens.RS256} {
		w := start(t, func(c *tokens.Config) { c.Algorithm = alg })
		text := w.issue(t, tokens.Device, tokens.New{Subject: "d1", Org: "acme", Epoch: 7, Extra: map[string]any{"mender.device": true}})
		for range 2 { // checked, then remembered
			got, err := w.Verify(text, tokens.Device)
			if err != nil || got.Subject != "d1" || got.Org != "acme" || got.Epoch != 7 || got.ID == "" || got.Claim("mender.device") != true {
				t.Errorf("%s: Verify = %+v, %v", alg, got, err)
			}
			if !got.ExpiresAt.Equal(w.now.Add(time.Hour)) {
				t.Errorf("%s: expires at %v", alg, got.ExpiresAt)
			}
		}
		if other := w.issue(t, tokens.Device, tokens.New{}); other == text {
			t.Errorf("%s: two tokens of one second are the same", alg)
		}
	}
}

// TestTokensAreReadByTheLibrary holds what is written here against another reader of it.
func TestTokensAreReadByTheLibrary(t *testing.T) {
	for _, alg := range []tokens.Algorithm{tokens.EdDSA, tokens.ES256, tokens.RS256} {
		w := start(t, func(c *tokens.Config) { c.Algorithm = alg })
		text := w.issue(t, tokens.Access, tokens.New{
			ID: "one", Subject: `"s" <&>`, Org: "acme", Epoch: 7,
			Extra: map[string]any{"scope": "a b", "n": 1, "sub": "not this one", "exp": 1, "ep": 9, "iss": "nor this"},
		})
		claims := jwt.MapClaims{}
		token, err := jwt.ParseWithClaims(text, claims, func(k *jwt.Token) (any, error) {
			for _, key := range w.Keys() {
				if key.ID == k.Header["kid"] {
					return x509.ParsePKIXPublicKey(key.Public)
				}
			}
			return nil, errors.New("no such key")
		}, jwt.WithTimeFunc(func() time.Time { return w.now }), jwt.WithValidMethods([]string{string(alg)}))
		if err != nil || token.Header["typ"] != "at+jwt" || len(token.Header) != 3 {
			t.Fatalf("%s: %v, %v", alg, token, err)
		}
		at := float64(w.now.Unix())
		want := jwt.MapClaims{
			"iss": "https://keystead.test", "aud": "api", "sub": `"s" <&>`, "jti": "one", "org": "acme", "ep": 7.0,
			"iat": at, "nbf": at, "exp": at + 3600, "scope": "a b", "n": 1.0,
		}
		if !reflect.DeepEqual(claims, want) {
			t.Errorf("%s: %v, want %v", alg, claims, want)
		}
	}
}

func TestNoKindPassesForAnother(t *testing.T) {
	w := start(t)
	kinds := []tokens.Kind{tokens.Device, tokens.Login, tokens.Recovery, tokens.Access}
	for _, made := range kinds {
		text := w.issue(t, made, tokens.New{})
		for _, wanted := range kinds {
			if _, err := w.Verify(text, wanted); (err == nil) != (made == wanted) {
				t.Errorf("a %s where a %s is wanted: %v", made.Type, wanted.Type, err)
			}
		}
	}
}

// TestVerifyAsLeavesOtherKindsAlone has tokens asked for by one kind, before and after they are
// known: another kind is somebody else's, and the kind is refused for what Verify refuses.
func TestVerifyAsLeavesOtherKindsAlone(t *testing.T) {
	w := start(t)
	device, login := w.issue(t, tokens.Device, tokens.New{Org: "acme", TTL: time.Minute}), w.issue(t, tokens.Login, tokens.New{})
	forged := device[:len(device)-4] + "AAAA"
	for range 2 {
		if got, err := w.VerifyAs(tokens.Device, device); err != nil || got.Org != "acme" {
			t.Errorf("a token of the kind: %+v, %v", got, err)
		}
		for _, other := range []string{login, "", "x", "ey.ey.ey", "keystead_api_1_2"} {
			if got, err := w.VerifyAs(tokens.Device, other); !errors.Is(err, tokens.ErrOtherKind) || got.Subject != "" {
				t.Errorf("%q: %+v, %v", other, got, err)
			}
		}
		if _, err := w.Verify(login, tokens.Login); err != nil { // it is known from now on
			t.Fatal(err)
		}
		if got, err := w.VerifyAs(tokens.Device, forged); !fault.Is(err, fault.Unauthenticated) || got.Subject != "" {
			t.Errorf("a forged token: %+v, %v", got, err)
		}
	}
	w.pass(time.Minute)
	if _, err := w.VerifyAs(tokens.Device, device); !fault.Is(err, fault.Unauthenticated) {
		t.Errorf("a token after its time: %v", err)
	}
	w.pass(-2 * time.Minute)
	if _, err := w.VerifyAs(tokens.Device, device); !fault.Is(err, fault.Unauthenticated) {
		t.Errorf("a token before its time: %v", err)
	}
	w.pass(time.Minute)
	w.RejectBefore(w.now.Add(time.Second))
	if _, err := w.VerifyAs(tokens.Device, device); !fault.Is(err, fault.Unauthenticated) {
		t.Errorf("a token from before a backup was put back: %v", err)
	}
}

func TestTokenEndsInTime(t *testing.T) {
	w := start(t)
	text := w.issue(t, tokens.Device, tokens.New{TTL: time.Minute})
	w.pass(time.Minute - time.Second)
	if _, err := w.Verify(text, tokens.Device); err != nil {
		t.Errorf("a second before its end: %v", err)
	}
	w.pass(time.Second)
	if _, err := w.Verify(text, tokens.Device); !fault.Is(err, fault.Unauthenticated) {
		t.Errorf("at its end: %v, want Unauthenticated though it is remembered", err)
	}
	long := w.issue(t, tokens.Device, tokens.New{TTL: 1000 * time.Hour})
	w.pass(w.Config.MaxTTL)
	if _, err := w.Verify(long, tokens.Device); err == nil {
		t.Error("a token outlives the longest life")
	}
}

func TestRotation(t *testing.T) {
	w := start(t)
	first := w.issue(t, tokens.Device, tokens.New{TTL: 24 * time.Hour})
	if err := w.Rotate(t.Context(), "", false); !fault.Is(err, fault.Conflict) {
		t.Errorf("rotation within the hour: %v, want Conflict", err)
	}
	w.pass(time.Hour)
	published := map[string]bool{}
	for _, k := range w.JWKS() {
		published[k.ID] = true
	}
	if err := w.Rotate(t.Context(), tokens.ES256, false); err != nil {
		t.Fatal(err)
	}
	second := w.issue(t, tokens.Device, tokens.New{TTL: 24 * time.Hour})
	states := map[tokens.KeyState]int{}
	for _, k := range w.Keys() {
		states[k.State]++
		if k.State == tokens.Active && !published[k.ID] {
			t.Error("the active key was not published before")
		}
	}
	if states[tokens.Active] != 1 || states[tokens.Next] != 1 || states[tokens.Retiring] != 1 {
		t.Errorf("states = %v, want one of each", states)
	}
	for name, text := range map[string]string{"of the old key": first, "of the new key": second} {
		if _, err := w.Verify(text, tokens.Device); err != nil {
			t.Errorf("token %s: %v", name, err)
		}
	}
	w.pass(w.Config.MaxTTL + time.Minute)
	if err := w.Sweep(t.Context(), w.Now()); err != nil {
		t.Fatal(err)
	}
	if len(w.Keys()) != 2 {
		t.Errorf("%d keys after the sweep, want the retired one gone", len(w.Keys()))
	}
	again := &tokens.Service{DB: w.DB, Box: w.Box, Now: w.Now, Config: w.Config, Audit: w.Audit}
	if err := again.Start(t.Context()); err != nil || len(again.Keys()) != 2 {
		t.Errorf("after a restart: %d keys, %v; want the same two", len(again.Keys()), err)
	}
}

func TestRotationUnderLoadRefusesNoValidToken(t *testing.T) {
	w := start(t)
	stop := make(chan struct{})
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				text, _, err := w.Issue(tokens.Device, tokens.New{Subject: "d1", TTL: time.Hour})
				if err == nil {
					_, err = w.Verify(text, tokens.Device)
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for range 50 {
		if err := w.Rotate(t.Context(), "", true); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	group.Wait()
}

func TestPrivateKeysAreNotInTheKeySet(t *testing.T) {
	w := start(t, func(c *tokens.Config) { c.Algorithm = tokens.RS256 })
	for _, k := range w.JWKS() {
		if k.Type != "RSA" || k.Modulus == "" || k.Exponent != "AQAB" || k.Use != "sig" || strings.Contains(k.ID, "=") {
			t.Errorf("JWK = %+v", k)
		}
	}
}
