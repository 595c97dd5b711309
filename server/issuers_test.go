package server_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/golang-jwt/jwt/v5"
)

// outsider is an issuer of others: its key set, and a token it made.
func outsider(t *testing.T) (set json.RawMessage, text string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	set, err = json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public(), KeyID: "k", Use: "sig"}}})
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	text, err = jwt.NewWithClaims(jwt.SigningMethodES256, jwt.MapClaims{
		"iss": "https://idp.test", "aud": "keystead", "sub": "alice", "groups": []string{"operators"}, "iat": now.Unix(), "exp": now.Add(time.Hour).Unix(),
	}).SignedString(key)
	if err != nil {
		t.Fatal(err)
	}
	return set, text
}

func TestTokenOfAnOutsideIssuerAtTheAPI(t *testing.T) {
	s := start(t)
	set, text := outsider(t)
	s.call(t, text, "GET", "/api/v1/devices", nil, http.StatusUnauthorized, nil)

	var made struct{ ID string }
	s.call(t, s.admin, "POST", "/api/v1/issuers", map[string]any{
		"name": "ours", "issuer": "https://idp.test", "audiences": []string{"keystead"}, "keys": set,
		"mapping": map[string]any{"role": "groups", "roles": map[string]string{"operators": "viewer"}},
	}, http.StatusCreated, &made)
	s.call(t, text, "GET", "/api/v1/devices", nil, http.StatusOK, nil)
	s.call(t, text, "POST", "/api/v1/devices", map[string]any{}, http.StatusForbidden, nil)
	var who struct{ Organisation, Name, Role string }
	s.call(t, text, "GET", "/api/v1/whoami", nil, http.StatusOK, &who)
	if who.Organisation != s.org || who.Name != "alice" || who.Role != "viewer" {
		t.Errorf("whoami = %+v", who)
	}
	s.call(t, s.admin, "DELETE", "/api/v1/issuers/"+made.ID, nil, http.StatusNoContent, nil)
	s.call(t, text, "GET", "/api/v1/devices", nil, http.StatusUnauthorized, nil)
}

// A DMS that enrols by JWT takes the token of an outside issuer the organisation
// trusts, for the device it names, and no other.
func TestTokenOfAnOutsideIssuerEnrols(t *testing.T) {
	s := start(t)
	set, text := outsider(t)
	s.call(t, s.admin, "POST", "/api/v1/dms", json.RawMessage(`{"id":"sso","name":"sso","settings":{"enrollment_settings":{
		"registration_mode":"JITP","est_rfc7030_settings":{"auth_mode":"JWT"}}}}`), http.StatusCreated, nil)
	s.call(t, s.admin, "POST", "/api/v1/issuers", map[string]any{
		"issuer": "https://idp.test", "audiences": []string{"keystead"}, "keys": set, "mapping": map[string]any{"device": "sub"},
	}, http.StatusCreated, nil)
	for name, want := range map[string]int{"alice": http.StatusOK, "bob": http.StatusForbidden} {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: name}}, key)
		if err != nil {
			t.Fatal(err)
		}
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.url+"/.well-known/est/sso/simpleenroll", strings.NewReader(base64.StdEncoding.EncodeToString(csr)))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+text)
		req.Header.Set("Content-Type", "application/pkcs10")
		a, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		a.Body.Close()
		if a.StatusCode != want {
			t.Errorf("a request for %s: %d, want %d", name, a.StatusCode, want)
		}
	}
}
