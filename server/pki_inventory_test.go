package server_test

import (
	"encoding/csv"
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"keystead/pki"
)

// The inventory comes whole as CSV and as lines of JSON, narrowed as lists are, and is counted by
// when its certificates expire.
func TestInventoryIsExportedAndCounted(t *testing.T) {
	s := start(t)
	var serials []string
	for _, name := range []string{"pump", "valve", `comma, "quote"`} {
		cert, _ := s.enrolled(t, name)
		serials = append(serials, string(pki.SerialOf(cert.SerialNumber)))
	}
	s.call(t, s.admin, http.MethodPost, "/api/v1/certificates/"+serials[1]+"/revoke", map[string]string{"reason": "superseded"}, http.StatusOK, nil)
	admin := http.Header{"Authorization": {"Bearer " + s.admin}}
	status, text := s.ask(t, http.MethodGet, "/api/v1/certificates/export?dms=default", nil, admin)
	rows, err := csv.NewReader(strings.NewReader(text)).ReadAll()
	if status != http.StatusOK || err != nil || len(rows) != 4 {
		t.Fatalf("CSV: got %d, %d rows, %v: %s", status, len(rows), err, text)
	}
	byName := map[string]string{} // of the third, which may be in any row
	for i, column := range rows[0] {
		for _, row := range rows[1:] {
			if row[0] == serials[2] {
				byName[column] = row[i]
			}
		}
	}
	if byName["serial"] != serials[2] || byName["subject"] != `CN=comma\, \"quote\"` || byName["state"] != "active" || byName["dms"] != "default" {
		t.Errorf("CSV: got %v", byName)
	}
	status, text = s.ask(t, http.MethodGet, "/api/v1/certificates/export?format=json&state=revoked", nil, admin)
	var one struct{ Serial, State, Reason string }
	if err := json.Unmarshal([]byte(text), &one); status != http.StatusOK || err != nil || one.Serial != serials[1] || one.State != "revoked" || one.Reason != "superseded" {
		t.Errorf("JSON: got %d %s, %v", status, text, err)
	}
	if status, text := s.ask(t, http.MethodGet, "/api/v1/certificates/export?format=xml", nil, admin); status != http.StatusBadRequest {
		t.Errorf("XML: got %d %s", status, text)
	}
	if status, text := s.ask(t, http.MethodGet, "/api/v1/certificates/export", nil, http.Header{}); status != http.StatusUnauthorized {
		t.Errorf("nobody: got %d %s", status, text)
	}
	var o pki.ExpiryOverview
	s.call(t, s.admin, http.MethodGet, "/api/v1/certificates/expiry", nil, http.StatusOK, &o)
	if o.Later < 2 || o.Expired != 0 || o.Day != 0 {
		t.Errorf("expiry: got %+v, want the two that are not revoked", o)
	}
}
