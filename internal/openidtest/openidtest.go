// Package openidtest is a small OpenID provider for tests: it has keys that change, ID
// tokens that say what the test wants, and it can hang.
package openidtest

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"maps"
	"net/http"
	"net/http/httptest"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
)

// Provider is the provider. Its client is "keystead", its code "good", its subject
// "subject-1", Ann Outside.
type Provider struct {
	*httptest.Server

	mu     sync.Mutex
	key    *ecdsa.PrivateKey
	kid    int
	nonce  string
	claims jwt.MapClaims
	method jwt.SigningMethod
	hang   <-chan struct{}
	silent <-chan struct{}
	asked  int
}

// New starts a provider that ends with the test.
func New(t *testing.T) *Provider {
	t.Helper()
	p := &Provider{method: jwt.SigningMethodES256}
	p.Rotate(t)
	mux := http.NewServeMux()
	mux.HandleFunc("/.well-known/openid-configuration", func(w http.ResponseWriter, r *http.Request) {
		p.mu.Lock()
		silent := p.silent
		p.asked++
		p.mu.Unlock()
		if silent != nil {
			select {
			case <-silent:
			case <-r.Context().Done():
				return
			}
		}
		answer(w, map[string]string{"issuer": p.URL, "authorization_endpoint": p.URL + "/authorize", "token_endpoint": p.URL + "/token", "jwks_uri": p.URL + "/keys"})
	})
	mux.HandleFunc("/keys", func(w http.ResponseWriter, _ *http.Request) { answer(w, p.keys()) })
	mux.HandleFunc("/token", p.token)
	p.Server = httptest.NewServer(mux)
	t.Cleanup(p.Close)
	return p
}

// Rotate gives the provider a new key in place of the old.
func (p *Provider) Rotate(t *testing.T) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.key = key
	p.kid++
}

// Claim has ID tokens say these claims over the usual ones, signed by method.
func (p *Provider) Claim(method jwt.SigningMethod, claims jwt.MapClaims) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.method, p.claims = method, claims
}

// Expect has ID tokens carry the nonce of a login that has begun.
func (p *Provider) Expect(nonce string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.nonce = nonce
}

// Hang has the token endpoint answer nothing until the channel is closed; nil ends it.
func (p *Provider) Hang(until <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.hang = until
}

// Silent has the provider not say who it is until the channel is closed.
func (p *Provider) Silent(until <-chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.silent = until
}

// Asked is how often the provider was asked who it is.
func (p *Provider) Asked() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.asked
}

func (p *Provider) keys() any {
	p.mu.Lock()
	defer p.mu.Unlock()
	x, y := make([]byte, 32), make([]byte, 32)
	p.key.X.FillBytes(x)
	p.key.Y.FillBytes(y)
	enc := base64.RawURLEncoding.EncodeToString
	return map[string]any{"keys": []map[string]string{
		{"kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": strconv.Itoa(p.kid), "x": enc(x), "y": enc(y)},
	}}
}

func (p *Provider) token(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	hang := p.hang
	p.mu.Unlock()
	if hang != nil {
		select {
		case <-hang:
		case <-r.Context().Done():
		}
		return
	}
	if r.FormValue("code") != "good" || len(r.FormValue("code_verifier")) < 43 {
		http.Error(w, `{"error":"invalid_grant"}`, http.StatusBadRequest)
		return
	}
	text, err := p.idToken()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	answer(w, map[string]string{"access_token": "a", "token_type": "Bearer", "id_token": text})
}

func (p *Provider) idToken() (string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	claims := jwt.MapClaims{
		"iss": p.URL, "aud": "keystead", "sub": "subject-1", "nonce": p.nonce, "name": "Ann Outside", "email": "ann@example.com",
		"iat": time.Now().Unix(), "exp": time.Now().Add(time.Minute).Unix(),
	}
	maps.Copy(claims, p.claims)
	token := jwt.NewWithClaims(p.method, claims)
	token.Header["kid"] = strconv.Itoa(p.kid)
	switch p.method.Alg() {
	case "HS256":
		return token.SignedString([]byte("secret"))
	case "none":
		return token.SignedString(jwt.UnsafeAllowNoneSignatureType)
	}
	return token.SignedString(p.key)
}

func answer(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v)
}
