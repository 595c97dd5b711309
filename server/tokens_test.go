package server_test

import (
	"net/http"
	"testing"
)

func TestSigningKeysRotateInSight(t *testing.T) {
	s := start(t)
	type keys struct {
		Items []struct{ ID, State string }
	}
	var before, after keys
	s.call(t, s.admin, "GET", "/api/v1/signing-keys", nil, http.StatusOK, &before)
	s.call(t, s.admin, "POST", "/api/v1/signing-keys/rotate", map[string]any{}, http.StatusConflict, nil)
	s.call(t, s.admin, "POST", "/api/v1/signing-keys/rotate", map[string]any{"algorithm": "HS256", "now": true}, http.StatusBadRequest, nil)
	s.call(t, s.admin, "POST", "/api/v1/signing-keys/rotate", map[string]any{"algorithm": "ES256", "now": true}, http.StatusOK, &after)
	if len(before.Items) != 2 || len(after.Items) != 3 {
		t.Fatalf("%d keys before, %d after; want 2 and 3", len(before.Items), len(after.Items))
	}
	var set struct{ Keys []map[string]string }
	s.call(t, "", "GET", "/.well-known/jwks.json", nil, http.StatusOK, &set)
	for _, k := range set.Keys {
		if k["d"] != "" || k["kid"] == "" || k["use"] != "sig" {
			t.Errorf("JWK = %v", k)
		}
	}
	if len(set.Keys) != 3 {
		t.Errorf("%d keys in the set, want all 3", len(set.Keys))
	}
}
