package server_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/json"
	"net/http"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/golang-jwt/jwt/v5"
)

func TestTokenOfAnOutsideIssuerAtTheAPI(t *testing.T) {
	s := start(t)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	set, err := json.Marshal(jose.JSONWebKeySet{Keys: []jose.JSONWebKey{{Key: key.Public(), KeyID: "k", Use: "sig"}}})
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now()
	text, err := jwt.NewWithClaims(jwt.SigningMethodES256, jwt.MapClaims{
		"iss": "https://idp.test", "aud": "keystead", "sub": "alice", "groups": []string{"operators"}, "iat": now.Unix(), "exp": now.Add(time.Hour).Unix(),
	}).SignedString(key)
	if err != nil {
		t.Fatal(err)
	}
	s.call(t, text, "GET", "/api/v1/devices", nil, http.StatusUnauthorized, nil)

	var made struct{ ID string }
	s.call(t, s.admin, "POST", "/api/v1/issuers", map[string]any{
		"name": "ours", "issuer": "https://idp.test", "audiences": []string{"keystead"}, "keys": json.RawMessage(set),
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
