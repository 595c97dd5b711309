package server_test

import (
	"encoding/base64"
	"encoding/csv"
	"encoding/json"
	"encoding/pem"
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

// A certificate that is urgently to be renewed from the first is found and counted as such,
// and webhooks hear of it once.
func TestCertificatesThatAreToBeRenewedAreTold(t *testing.T) {
	s := start(t)
	var hook struct{ ID string }
	s.call(t, s.admin, http.MethodPost, "/api/v1/webhooks", map[string]any{"url": "https://hooks.example/x", "types": []string{"certificate.*"}}, http.StatusCreated, &hook)
	s.call(t, s.admin, http.MethodPost, "/api/v1/dms", map[string]any{"id": "urgent", "name": "Urgent", "settings": map[string]any{
		"enrollment_settings":   map[string]any{"est_rfc7030_settings": map[string]any{"auth_mode": "ENROLMENT_TOKEN"}},
		"reenrollment_settings": map[string]any{"preventive_delta": "500d", "critical_delta": "400d"},
	}}, http.StatusCreated, nil)
	s.call(t, s.admin, http.MethodPost, "/api/v1/dms", map[string]any{"id": "askew", "name": "Askew", "settings": map[string]any{
		"enrollment_settings":   map[string]any{"est_rfc7030_settings": map[string]any{"auth_mode": "ENROLMENT_TOKEN"}},
		"reenrollment_settings": map[string]any{"preventive_delta": "7d", "critical_delta": "31d"},
	}}, http.StatusBadRequest, nil)
	cert, _ := s.enrolledBy(t, "urgent", "pump-urgent")
	serial := string(pki.SerialOf(cert.SerialNumber))
	for range 2 {
		if err := s.PKI.Sweep(t.Context(), s.Now()); err != nil {
			t.Fatal(err)
		}
	}
	var queued struct {
		Items []struct{ Type, Subject string }
	}
	s.call(t, s.admin, http.MethodGet, "/api/v1/webhooks/"+hook.ID+"/deliveries", nil, http.StatusOK, &queued)
	var types []string
	for _, d := range queued.Items {
		types = append(types, d.Type)
	}
	if got := strings.Join(types, " "); got != "certificate.renewal_pending certificate.expiring_soon" {
		t.Errorf("webhooks hear of %s", got)
	}
	if _, metrics := opsGet(t, s.OpsHandler(), "/metrics"); !strings.Contains(metrics, `keystead_certificates_renewal{state="expiring_soon"} 1`) {
		t.Error("the metrics do not count it")
	}
	type page struct {
		Items []struct{ ID, Serial, Name, Renewal string }
	}
	for _, test := range []struct {
		path string
		want int
	}{
		{"/api/v1/certificates?renewal=expiring_soon", 1},
		{"/api/v1/certificates?renewal=renewal_pending", 0},
		{"/api/v1/devices?renewal=expiring_soon", 1},
		{"/api/v1/devices?renewal=renewal_pending", 0},
	} {
		var p page
		s.call(t, s.admin, http.MethodGet, test.path, nil, http.StatusOK, &p)
		if len(p.Items) != test.want || test.want > 0 && (p.Items[0].Renewal != "expiring_soon" || p.Items[0].Serial != serial && p.Items[0].Name != "pump-urgent") {
			t.Errorf("%s: got %+v, want %d", test.path, p.Items, test.want)
		}
	}
	for _, path := range []string{"/api/v1/certificates?renewal=soon", "/api/v1/devices?renewal=soon"} {
		s.call(t, s.admin, http.MethodGet, path, nil, http.StatusBadRequest, nil)
	}
	var o pki.ExpiryOverview
	s.call(t, s.admin, http.MethodGet, "/api/v1/certificates/expiry", nil, http.StatusOK, &o)
	if o.ExpiringSoon != 1 || o.RenewalPending != 0 {
		t.Errorf("expiry: got %+v", o)
	}
}

// What people note of a DMS, a CA and a certificate is changed by JSON Patch; requests are diagnosed, and
// certificates bound, as the routes say.
func TestMetadataDiagnosisAndBinding(t *testing.T) {
	s := start(t)
	cert, _ := s.enrolled(t, "pump")
	var cas struct {
		Items []struct {
			ID      string
			Default bool
		}
	}
	s.call(t, s.admin, http.MethodGet, "/api/v1/cas", nil, http.StatusOK, &cas)
	ca := cas.Items[0].ID
	for _, one := range cas.Items {
		if one.Default {
			ca = one.ID
		}
	}
	patch := func(op, path string, value any) map[string]any {
		return map[string]any{"patches": []map[string]any{{"op": op, "path": path, "value": value}}}
	}
	for _, path := range []string{"/api/v1/dms/default", "/api/v1/cas/" + ca, "/api/v1/certificates/" + string(pki.SerialOf(cert.SerialNumber))} {
		for _, method := range []string{http.MethodPatch, http.MethodPut} {
			s.call(t, s.admin, method, path+"/metadata", patch("add", "/site/floor", 7), http.StatusOK, nil)
		}
		s.call(t, s.admin, http.MethodPatch, path+"/metadata", patch("replace", "/nowhere", 7), http.StatusBadRequest, nil)
		s.call(t, s.admin, http.MethodPatch, path+"/metadata", patch("add", "/site", nil), http.StatusBadRequest, nil)
		s.call(t, s.admin, http.MethodPatch, path[:strings.LastIndex(path, "/")]+"/0a0b/metadata", patch("add", "/site", 1), http.StatusNotFound, nil)
		var got struct {
			Metadata struct{ Site struct{ Floor int } }
		}
		s.call(t, s.admin, http.MethodGet, path, nil, http.StatusOK, &got)
		if got.Metadata.Site.Floor != 7 {
			t.Errorf("%s: got %+v", path, got)
		}
	}
	csr := string(pemRequest(t, "valve"))
	var said struct {
		Accepted bool
		Status   int
		Reason   string
	}
	s.call(t, s.admin, http.MethodPost, "/api/v1/dms/default/diagnose", map[string]any{"csr": csr}, http.StatusOK, &said)
	if said.Accepted || said.Status != http.StatusUnauthorized || !strings.Contains(said.Reason, "enrolment token") {
		t.Errorf("diagnosis: got %+v", said)
	}
	for _, bad := range []map[string]any{{}, {"csr": "x"}, {"certificate": "x"}, {"csr": csr, "operation": "fullcmc"}} {
		s.call(t, s.admin, http.MethodPost, "/api/v1/dms/default/diagnose", bad, http.StatusBadRequest, nil)
	}
	s.call(t, s.admin, http.MethodPost, "/api/v1/dms/nowhere/diagnose", map[string]any{"csr": csr}, http.StatusNotFound, nil)

	var made struct{ ID, Serial string }
	s.call(t, s.admin, http.MethodPost, "/api/v1/devices", map[string]any{"name": "valve"}, http.StatusCreated, &made)
	device := made.ID
	s.call(t, s.admin, http.MethodPost, "/api/v1/cas/"+ca+"/sign", map[string]any{"csr": csr}, http.StatusCreated, &made)
	binding := map[string]any{"bind_mode": "PROVISIONED", "device_id": device, "certificate_serial_number": made.Serial}
	var bound struct {
		Certificate struct{ Device string }
		DMS         *struct{}
	}
	s.call(t, s.admin, http.MethodPost, "/api/v1/dms/bind-identity", binding, http.StatusOK, &bound)
	if bound.Certificate.Device != device || bound.DMS != nil {
		t.Errorf("bound: got %+v", bound)
	}
	s.call(t, s.admin, http.MethodPost, "/api/v1/dms/bind-identity", binding, http.StatusConflict, nil)
}

func pemRequest(t *testing.T, cn string) []byte {
	t.Helper()
	der, err := base64.StdEncoding.DecodeString(string(csrOf(t, newECKey(t), cn)))
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
}
