package tokens_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/golang-jwt/jwt/v5"

	"keystead/audit"
	"keystead/devices"
	"keystead/fault"
	"keystead/identity"
	"keystead/tokens"
)

// idp is an issuer of others: its documents, and whether it is away.
type idp struct {
	kid     string
	key     crypto.Signer
	alg     string
	away    error
	fetched []string
	lies    string // what discovery says the issuer is
	set     []byte // instead of its key set
}

const iss = "https://idp.test/realm"

func (p *idp) fetch(_ context.Context, url string) ([]byte, error) {
	p.fetched = append(p.fetched, url)
	switch {
	case p.away != nil:
		return nil, p.away
	case strings.HasSuffix(url, "/openid-configuration"):
		who := iss
		if p.lies != "" {
			who = p.lies
		}
		return json.Marshal(map[string]string{"issuer": who, "jwks_uri": "https://idp.test/keys"})
	case p.set != nil:
		return p.set, nil
	}
	return json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: p.key.Public(), KeyID: p.kid, Use: "sig"}}})
}

func (p *idp) token(t *testing.T, change func(h map[string]any, c jwt.MapClaims), now time.Time) string {
	t.Helper()
	token := jwt.NewWithClaims(jwt.GetSigningMethod(p.alg), jwt.MapClaims{
		"iss": iss, "aud": []string{"other", "keystead"}, "sub": "alice", "iat": now.Unix(), "exp": now.Add(time.Hour).Unix(),
		"realm_access": map[string]any{"roles": []string{"offline", "fleet-editor"}},
	})
	token.Header["kid"] = p.kid
	if change != nil {
		change(token.Header, token.Claims.(jwt.MapClaims))
	}
	text, err := token.SignedString(p.key)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func outside(t *testing.T) (*world, *tokens.Issuers, *idp, identity.Method) {
	t.Helper()
	w := start(t)
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	p := &idp{kid: "k1", key: key, alg: "RS256"}
	s := &tokens.Issuers{
		DB: w.DB, Audit: w.Audit, Now: w.Now, Log: slog.New(slog.DiscardHandler), Fetch: p.fetch,
		CheckURL: func(url string) error {
			if !strings.HasPrefix(url, "https://") {
				return fault.New(fault.Invalid, "url: must begin with https://")
			}
			return nil
		},
	}
	devs := &devices.Service{DB: w.DB, Now: w.Now, Audit: &audit.Log{DB: w.DB, Key: w.Audit.Key, Now: w.Now}}
	if _, err := devs.Create(as("acme"), devices.New{Name: "pump", Aliases: []devices.Alias{{Kind: devices.SerialNumber, Value: "SN-1"}}}); err != nil {
		t.Fatal(err)
	}
	return w, s, p, s.Method(devs)
}

func as(org string) context.Context {
	return identity.NewContext(context.Background(), identity.Actor{Kind: identity.User, ID: "u", Org: org, Role: identity.Owner})
}

func trust(t *testing.T, s *tokens.Issuers, org string, change func(*tokens.NewIssuer)) tokens.Issuer {
	t.Helper()
	n := tokens.NewIssuer{
		Name: "realm", Issuer: iss, Audiences: []string{"keystead"},
		Mapping: tokens.Mapping{Device: "device_serial", Role: "realm_access.roles", Roles: map[string]string{"fleet-editor": "editor"}},
	}
	if change != nil {
		change(&n)
	}
	i, err := s.Create(as(org), n)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func bearer(text string) identity.Proof { return identity.Proof{Scheme: "Bearer", Value: text} }

func TestOutsideTokenProvesAUserOrADevice(t *testing.T) {
	w, s, p, m := outside(t)
	trust(t, s, "acme", nil)
	a, err := m.Resolve(t.Context(), bearer(p.token(t, nil, w.now)))
	if err != nil || a.Kind != identity.User || a.Org != "acme" || a.Role != identity.Editor || a.Name != "alice" {
		t.Errorf("a user: %+v, %v", a, err)
	}
	a, err = m.Resolve(t.Context(), bearer(p.token(t, func(_ map[string]any, c jwt.MapClaims) { c["device_serial"] = "SN-1" }, w.now)))
	if err != nil || a.Kind != identity.Device || a.Name != "pump" || a.Credential.Kind != identity.OAuthToken {
		t.Errorf("a device: %+v, %v", a, err)
	}
	for name, change := range map[string]func(map[string]any, jwt.MapClaims){
		"no role":        func(_ map[string]any, c jwt.MapClaims) { delete(c, "realm_access") },
		"another role":   func(_ map[string]any, c jwt.MapClaims) { c["realm_access"] = map[string]any{"roles": "owner"} },
		"unknown device": func(_ map[string]any, c jwt.MapClaims) { c["device_serial"] = "SN-2" },
	} {
		if a, err := m.Resolve(t.Context(), bearer(p.token(t, change, w.now))); !fault.Is(err, fault.Unauthenticated) {
			t.Errorf("%s: %+v, %v; want Unauthenticated", name, a, err)
		}
	}
}

func TestOutsideTokenOfNobodyIsAnothersMatter(t *testing.T) {
	w, _, p, m := outside(t)
	for name, proof := range map[string]identity.Proof{
		"an issuer nobody trusts": bearer(p.token(t, nil, w.now)),
		"a key":                   bearer("keystead_api_x_y_z"),
		"a thing":                 {Scheme: "Thing", Value: p.token(t, nil, w.now)},
		"garbage":                 bearer("ey.ey.ey"),
	} {
		if _, err := m.Resolve(t.Context(), proof); !errors.Is(err, identity.ErrNotMine) {
			t.Errorf("%s: %v, want ErrNotMine", name, err)
		}
	}
}

func TestOutsideTokensThatAttack(t *testing.T) {
	w, s, p, m := outside(t)
	trust(t, s, "acme", nil)
	other, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	good := p.token(t, nil, w.now)
	parts := strings.Split(good, ".")
	b64 := func(v string) string { return base64.RawURLEncoding.EncodeToString([]byte(v)) }
	pub, err := json.Marshal(jose.JSONWebKey{Key: p.key.Public()})
	if err != nil {
		t.Fatal(err)
	}
	confused := func(head string) string {
		text := b64(head) + "." + parts[1]
		mac := hmac.New(sha256.New, pub)
		mac.Write([]byte(text))
		return text + "." + base64.RawURLEncoding.EncodeToString(mac.Sum(nil))
	}
	claim := func(name string, v any) string {
		return p.token(t, func(_ map[string]any, c jwt.MapClaims) { c[name] = v }, w.now)
	}
	header := func(name string, v any) string {
		return p.token(t, func(h map[string]any, _ jwt.MapClaims) { h[name] = v }, w.now)
	}
	forged := func() string {
		q := *p
		q.key = other
		return q.token(t, nil, w.now)
	}
	for name, text := range map[string]string{
		"none":                     b64(`{"alg":"none","kid":"k1"}`) + "." + parts[1] + ".",
		"nOnE":                     b64(`{"alg":"nOnE","kid":"k1"}`) + "." + parts[1] + ".",
		"HS256 with the key":       confused(`{"alg":"HS256","kid":"k1"}`),
		"another algorithm":        b64(`{"alg":"PS256","kid":"k1"}`) + "." + parts[1] + "." + parts[2],
		"forged":                   forged(),
		"no signature":             parts[0] + "." + parts[1] + ".",
		"its own key":              header("jwk", map[string]string{"kty": "RSA"}),
		"where its key is":         header("jku", "https://evil.test/keys"),
		"its own chain":            header("x5c", []string{"MIIB"}),
		"where its chain is":       header("x5u", "https://evil.test/x"),
		"crit":                     header("crit", []string{"exp"}),
		"an unencoded payload":     header("b64", false),
		"an unknown key":           header("kid", "k2"),
		"a path as key":            header("kid", "../../etc/passwd"),
		"another audience":         claim("aud", "other"),
		"no audience":              claim("aud", nil),
		"expired":                  claim("exp", w.now.Add(-time.Hour).Unix()),
		"no end":                   claim("exp", nil),
		"an end that is text":      claim("exp", "tomorrow"),
		"not yet":                  claim("nbf", w.now.Add(time.Hour).Unix()),
		"a claim changed":          parts[0] + "." + b64(`{"iss":"`+iss+`","aud":"keystead","sub":"root","exp":99999999999}`) + "." + parts[2],
		"a claim twice":            parts[0] + "." + b64(`{"iss":"`+iss+`","iss":"https://evil.test"}`) + "." + parts[2],
		"padding":                  parts[0] + "=." + parts[1] + "." + parts[2],
		"four parts":               good + ".x",
		"a megabyte":               b64(`{"alg":"RS256","x":"`+strings.Repeat("a", 1<<20)+`"}`) + "." + parts[1] + "." + parts[2],
		"nested ten thousand deep": parts[0] + "." + b64(strings.Repeat(`{"a":`, 10000)+"1"+strings.Repeat("}", 10000)) + "." + parts[2],
	} {
		a, err := m.Resolve(t.Context(), bearer(text))
		if err == nil || a.ID != "" || !errors.Is(err, identity.ErrNotMine) && !fault.Is(err, fault.Unauthenticated) {
			t.Errorf("%s: %+v, %v; want it refused", name, a, err)
		}
	}
	if _, err := m.Resolve(t.Context(), bearer(good)); err != nil {
		t.Errorf("the good one, after all those: %v", err)
	}
}

func TestKeySetIsFetchedSeldomAndOutlivesItsIssuer(t *testing.T) {
	w, s, p, m := outside(t)
	trust(t, s, "acme", nil)
	text := p.token(t, nil, w.now)
	for range 5 {
		if _, err := m.Resolve(t.Context(), bearer(text)); err != nil {
			t.Fatal(err)
		}
	}
	if len(p.fetched) != 2 { // discovery, keys
		t.Errorf("fetched %v, want it once", p.fetched)
	}
	p.away = errors.New("connection refused")
	w.pass(30 * time.Minute)
	if _, err := m.Resolve(t.Context(), bearer(text)); err != nil {
		t.Errorf("while the issuer is away: %v", err)
	}
	again := &tokens.Issuers{DB: s.DB, Audit: s.Audit, Now: s.Now, Log: s.Log, Fetch: s.Fetch, CheckURL: s.CheckURL}
	if _, err := again.Claims(t.Context(), "acme", text); err != nil {
		t.Errorf("after a restart, while the issuer is away: %v", err)
	}

	// The issuer is back with a new key: found at the first token it signs.
	p.away, p.kid = nil, "k2"
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p.key, p.alg = key, "ES256"
	w.pass(time.Minute)
	if _, err := m.Resolve(t.Context(), bearer(p.token(t, nil, w.now))); err != nil {
		t.Errorf("after it changed its key: %v", err)
	}
	p.fetched = nil
	for range 20 {
		p.kid = "unknown"
		if _, err := m.Resolve(t.Context(), bearer(p.token(t, nil, w.now))); err == nil {
			t.Error("a key it does not publish verifies")
		}
	}
	if len(p.fetched) > 2 {
		t.Errorf("unknown keys had the key set fetched %d times within the half minute", len(p.fetched))
	}
}

func TestIssuerThatCannotBeHad(t *testing.T) {
	w, s, p, m := outside(t)
	trust(t, s, "acme", nil)
	for name, breakIt := range map[string]func(){
		"away":                   func() { p.away = errors.New("connection refused") },
		"discovery of another":   func() { p.lies = "https://evil.test" },
		"fifty megabytes":        func() { p.set = make([]byte, 50<<20) },
		"a key set without keys": func() { p.set = []byte(`{"keys":[]}`) },
	} {
		*p = idp{kid: "k1", key: p.key, alg: "RS256"}
		breakIt()
		w.pass(time.Minute)
		if _, err := m.Resolve(t.Context(), bearer(p.token(t, nil, w.now))); !fault.Is(err, fault.Unavailable) {
			t.Errorf("%s: %v, want Unavailable", name, err)
		}
	}
}

func TestIssuerOfTwoOrganisations(t *testing.T) {
	w, s, p, m := outside(t)
	first := trust(t, s, "acme", nil)
	trust(t, s, "rival", nil)
	text := p.token(t, nil, w.now)
	if _, err := m.Resolve(t.Context(), bearer(text)); !fault.Is(err, fault.Unauthenticated) || !strings.Contains(fault.Message(err), "X-Org-ID") {
		t.Errorf("without naming one: %v", err)
	}
	proof := bearer(text)
	proof.Org = "rival"
	if a, err := m.Resolve(t.Context(), proof); err != nil || a.Org != "rival" {
		t.Errorf("naming one: %+v, %v", a, err)
	}
	proof.Org = "third"
	if a, err := m.Resolve(t.Context(), proof); err == nil {
		t.Errorf("naming one that does not trust it: %+v", a)
	}
	if err := s.Delete(as("rival"), first.ID); !fault.Is(err, fault.NotFound) {
		t.Errorf("deleting another's: %v, want NotFound", err)
	}
	if err := s.Delete(as("acme"), first.ID); err != nil {
		t.Fatal(err)
	}
	if a, err := m.Resolve(t.Context(), bearer(text)); err != nil || a.Org != "rival" {
		t.Errorf("after one is deleted: %+v, %v", a, err)
	}
}

func TestGivenKeysNeedNoFetching(t *testing.T) {
	w, s, p, m := outside(t)
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p.key, p.alg = private, "EdDSA"
	set, err := p.fetch(t.Context(), "keys")
	if err != nil {
		t.Fatal(err)
	}
	p.fetched, p.away = nil, errors.New("there is no network")
	trust(t, s, "acme", func(n *tokens.NewIssuer) { n.Keys, n.Algorithms = set, []string{"EdDSA"} })
	if _, err := m.Resolve(t.Context(), bearer(p.token(t, nil, w.now))); err != nil || len(p.fetched) != 0 {
		t.Errorf("%v, fetched %v", err, p.fetched)
	}
}

func TestBadIssuers(t *testing.T) {
	_, s, _, _ := outside(t)
	for name, change := range map[string]func(*tokens.NewIssuer){
		"no issuer":    func(n *tokens.NewIssuer) { n.Issuer = "" },
		"no audience":  func(n *tokens.NewIssuer) { n.Audiences = nil },
		"symmetric":    func(n *tokens.NewIssuer) { n.Algorithms = []string{"HS256"} },
		"none":         func(n *tokens.NewIssuer) { n.Algorithms = []string{"none"} },
		"plain http":   func(n *tokens.NewIssuer) { n.KeysURL = "http://idp.test/keys" },
		"no discovery": func(n *tokens.NewIssuer) { n.Issuer = "urn:idp" },
		"both": func(n *tokens.NewIssuer) {
			n.KeysURL, n.Keys = "https://idp.test/keys", json.RawMessage(`{"keys":[{}]}`)
		},
		"no keys":    func(n *tokens.NewIssuer) { n.Keys = json.RawMessage(`{}`) },
		"owner":      func(n *tokens.NewIssuer) { n.Mapping.Roles = map[string]string{"x": "owner"} },
		"no mapping": func(n *tokens.NewIssuer) { n.Mapping = tokens.Mapping{} },
	} {
		n := tokens.NewIssuer{Issuer: iss, Audiences: []string{"keystead"}, Mapping: tokens.Mapping{Device: "sub"}}
		change(&n)
		if _, err := s.Create(as("acme"), n); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v, want Invalid", name, err)
		}
	}
}
