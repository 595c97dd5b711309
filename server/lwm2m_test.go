package server_test

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"encoding/xml"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"keystead/identity"
)

type lwm2mServer struct {
	ID, State string
	Sink      struct{ Kind, URL, Secret string }
}

func TestLwM2MServersAndPolicies(t *testing.T) {
	s := start(t)
	for i, id := range []string{"eu-1", "eu-2"} {
		var made lwm2mServer
		s.call(t, s.admin, "POST", "/api/v1/lwm2m/servers", map[string]any{
			"id": id, "name": id, "url": "coaps://" + id + ".example:5684", "short_id": i + 1, "labels": map[string]string{"tier": id},
			"sink": map[string]any{"kind": "webhook", "url": "https://sink.example", "secret": "webhook secret"},
		}, http.StatusCreated, &made)
		if made.State != "active" || made.Sink.Kind != "webhook" || made.Sink.Secret != "" {
			t.Errorf("made %+v, want it active and its secret kept", made)
		}
	}
	s.call(t, s.admin, "POST", "/api/v1/lwm2m/servers", map[string]any{"id": "eu-3", "url": "coaps://x:1", "short_id": 1}, http.StatusConflict, nil)
	s.call(t, s.admin, "POST", "/api/v1/lwm2m/servers", map[string]any{"id": "eu-3", "url": "coap://x:1", "short_id": 0}, http.StatusBadRequest, nil)
	var policy struct{ ID string }
	s.call(t, s.admin, "POST", "/api/v1/lwm2m/policies", map[string]any{
		"name": "pumps", "match": map[string]any{"endpoint": "pump-*"}, "select": map[string]any{"labels": map[string]string{"tier": "eu-2"}}, "credential": "rotate-psk",
	}, http.StatusCreated, &policy)
	var decision struct {
		Policy  struct{ ID string }
		Servers []string
		Reasons []struct {
			Server, Reason string
			Chosen         bool
		}
	}
	s.call(t, s.admin, "POST", "/api/v1/lwm2m/policies/evaluate", map[string]any{"endpoint": "pump-1", "source": "192.0.2.1"}, http.StatusOK, &decision)
	if decision.Policy.ID != policy.ID || !slices.Equal(decision.Servers, []string{"eu-2"}) || len(decision.Reasons) != 2 {
		t.Errorf("a pump goes to %+v", decision)
	}
	var made struct{ Device string }
	s.call(t, s.admin, "POST", "/api/v1/psk", map[string]any{"identity": "pump-7"}, http.StatusCreated, &made)
	device := "/api/v1/lwm2m/devices/pump-7"
	var plan struct {
		Servers  []string
		Accounts []struct{ Server, Mode, Credential, Secret string }
	}
	s.call(t, s.admin, "GET", device+"/plan", nil, http.StatusOK, &plan)
	if len(plan.Accounts) != 1 || plan.Accounts[0].Secret != "[secret]" || plan.Accounts[0].Credential != "rotate-psk" {
		t.Errorf("plan = %+v", plan)
	}
	s.call(t, s.admin, "GET", device+"/assignment", nil, http.StatusNotFound, nil)
	s.call(t, s.admin, "PUT", device+"/assignment", map[string]any{"servers": []string{"eu-1"}}, http.StatusOK, nil)
	s.call(t, s.admin, "GET", device+"/plan", nil, http.StatusOK, &plan)
	if !slices.Equal(plan.Servers, []string{"eu-1"}) {
		t.Errorf("pinned to eu-1, the plan is %+v", plan)
	}
	s.call(t, s.admin, "DELETE", device+"/assignment", nil, http.StatusNoContent, nil)
	s.call(t, s.admin, "GET", device+"/bootstrap", nil, http.StatusNotFound, nil)
	s.call(t, s.admin, "PUT", device+"/bootstrap", map[string]any{"credential": "key"}, http.StatusBadRequest, nil)
	s.call(t, s.admin, "PUT", device+"/bootstrap", map[string]any{"mode": "reuse"}, http.StatusBadRequest, nil)
	s.call(t, s.admin, "PUT", device+"/bootstrap", map[string]any{"credential": "issue-cert", "deletes": []string{}, "access": []any{}}, http.StatusOK, nil)
	var override struct {
		Credential string
		Deletes    []string
		Format     *int
	}
	s.call(t, s.admin, "GET", device+"/bootstrap", nil, http.StatusOK, &override)
	if override.Credential != "issue-cert" || override.Deletes == nil || override.Format != nil {
		t.Errorf("override = %+v, want what was put and nothing else", override)
	}
	s.call(t, s.admin, "GET", device+"/plan", nil, http.StatusOK, &plan)
	if len(plan.Accounts) != 1 || plan.Accounts[0].Credential != "issue-cert" {
		t.Errorf("with another credential for the device, the plan is %+v", plan)
	}
	s.call(t, s.admin, "DELETE", device+"/bootstrap", nil, http.StatusNoContent, nil)
	s.call(t, s.admin, "GET", device+"/registration", nil, http.StatusNotFound, nil)
	s.call(t, s.admin, "POST", "/api/v1/lwm2m/servers/eu-2/drain", nil, http.StatusOK, nil)
	s.call(t, s.admin, "POST", "/api/v1/lwm2m/policies/evaluate", map[string]any{"device": "pump-7"}, http.StatusOK, &decision)
	if len(decision.Servers) != 0 {
		t.Errorf("with its server draining a pump goes to %v, want nowhere", decision.Servers)
	}
	s.call(t, s.admin, "DELETE", "/api/v1/lwm2m/policies/"+policy.ID, nil, http.StatusNoContent, nil)
	s.call(t, s.admin, "DELETE", "/api/v1/lwm2m/servers/eu-2", nil, http.StatusNoContent, nil)
	s.call(t, s.admin, "GET", "/api/v1/lwm2m/sessions", nil, http.StatusOK, nil)
	s.call(t, s.admin, "GET", "/api/v1/lwm2m/sessions/none", nil, http.StatusNotFound, nil)

	token, _ := s.newOrg(t, "acme")
	s.call(t, token, "POST", "/api/v1/lwm2m/servers", map[string]any{"id": "mine"}, http.StatusForbidden, nil)
	s.call(t, token, "POST", "/api/v1/lwm2m/policies", map[string]any{"name": "all", "global": true}, http.StatusForbidden, nil)
	s.call(t, token, "GET", device+"/plan", nil, http.StatusNotFound, nil)
	s.call(t, token, "PUT", device+"/assignment", map[string]any{"servers": []string{"eu-1"}}, http.StatusNotFound, nil)
	s.call(t, token, "PUT", device+"/bootstrap", map[string]any{"credential": "reuse"}, http.StatusNotFound, nil)
}

func TestCreatorCertificates(t *testing.T) {
	s := start(t)
	token, _ := s.newOrg(t, "acme")
	resp, body := s.exchange(t, "POST", "/identities/certificates", "", bearer(token))
	var made struct{ CertificateFormat, RawCertificate string }
	if err := json.Unmarshal([]byte(body), &made); err != nil || resp.StatusCode != http.StatusCreated || made.CertificateFormat != "PEM" {
		t.Fatalf("POST = %d %s", resp.StatusCode, body)
	}
	var kinds []string
	var cert *x509.Certificate
	for rest := []byte(made.RawCertificate); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		kinds = append(kinds, block.Type)
		if block.Type == "CERTIFICATE" {
			var err error
			if cert, err = x509.ParseCertificate(block.Bytes); err != nil {
				t.Fatal(err)
			}
		}
	}
	if want := []string{"EC PRIVATE KEY", "PUBLIC KEY", "CERTIFICATE"}; !slices.Equal(kinds, want) {
		t.Fatalf("the answer has %v, want %v", kinds, want)
	}
	guid := regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`)
	if !guid.MatchString(cert.Subject.CommonName) || !slices.Equal(cert.Subject.Organization, []string{"2"}) {
		t.Errorf("subject %v, want a GUID and the number of the organisation, 2", cert.Subject)
	}
	if years := cert.NotAfter.Sub(cert.NotBefore).Hours() / 24 / 365; years < 2.99 || years > 3.01 || cert.IsCA {
		t.Errorf("valid for %.2f years, CA %t; want three, and none", years, cert.IsCA)
	}
	if want := []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}; !slices.Equal(cert.ExtKeyUsage, want) {
		t.Errorf("extended key usage %v, want %v", cert.ExtKeyUsage, want)
	}
	a, err := s.Resolver.Resolve(t.Context(), identity.Proof{Chain: []*x509.Certificate{cert}, Transport: identity.HTTPS})
	if err != nil || a.Kind != identity.Device {
		t.Errorf("the certificate resolves to %+v, %v; want its device", a, err)
	}

	one := strings.TrimPrefix(resp.Header.Get("Location"), "https://"+strings.TrimPrefix(s.url, "http://"))
	if resp, body := s.exchange(t, "GET", one, "", bearer(token)); resp.StatusCode != http.StatusOK || strings.Contains(body, "PRIVATE") {
		t.Errorf("GET %s = %d %s, want it without the key", one, resp.StatusCode, body)
	}
	if _, body := s.exchange(t, "GET", "/identities/certificates", "", bearer(token)); !strings.Contains(body, `"TotalCount":1`) {
		t.Errorf("list = %s, want one", body)
	}
	stranger, _ := s.newOrg(t, "stranger")
	for _, method := range []string{"GET", "DELETE"} {
		if resp, body := s.exchange(t, method, one, "", bearer(stranger)); resp.StatusCode != http.StatusNotFound {
			t.Errorf("%s by a stranger = %d %s, want 404", method, resp.StatusCode, body)
		}
	}
	if resp, body := s.exchange(t, "DELETE", one, "", bearer(token)); resp.StatusCode != http.StatusNoContent {
		t.Errorf("DELETE = %d %s", resp.StatusCode, body)
	}
	if _, err := s.Resolver.Resolve(t.Context(), identity.Proof{Chain: []*x509.Certificate{cert}, Transport: identity.HTTPS}); err == nil {
		t.Error("the certificate still proves its device after DELETE")
	}
	if _, body := s.exchange(t, "GET", "/identities/certificates", "", bearer(token)); !regexp.MustCompile(`^\{"Links":\[\{"rel":"add","href":"[^"]+/identities/certificates"\}\]\}$`).MatchString(body) {
		t.Errorf("an empty list = %s, want the add link alone", body)
	}

	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "whatever"}}, key)
	if err != nil {
		t.Fatal(err)
	}
	request, err := json.Marshal(map[string]string{"CertificateRequest": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}))})
	if err != nil {
		t.Fatal(err)
	}
	resp, body = s.exchange(t, "POST", "/identities/certificates", string(request), bearer(token, "Content-Type", "application/json"))
	if resp.StatusCode != http.StatusCreated || strings.Contains(body, "PRIVATE") || !strings.Contains(body, "BEGIN CERTIFICATE") {
		t.Errorf("with a request: %d %s, want a certificate alone", resp.StatusCode, body)
	}
	for name, body := range map[string]string{
		"no PEM": `{"CertificateRequest":"x"}`, "no request": `{"CertificateRequest":"-----BEGIN X-----\nAAAA\n-----END X-----\n"}`, "no device": `{"Device":"x"}`,
	} {
		want := map[string]int{"no device": http.StatusNotFound}[name]
		if resp, body := s.exchange(t, "POST", "/identities/certificates", body, bearer(token, "Content-Type", "application/json")); resp.StatusCode != max(want, http.StatusBadRequest) {
			t.Errorf("%s: %d %s", name, resp.StatusCode, body)
		}
	}
}

func TestXMLAnswersAreWellFormed(t *testing.T) {
	s := start(t)
	token, _ := s.newOrg(t, "a <b> & \\\"c\\\"")
	s.exchange(t, "POST", "/identities/psk", "", bearer(token))
	s.exchange(t, "POST", "/identities/certificates", "", bearer(token))
	for path, want := range map[string][]string{ // the root and what is below it, in order
		"/":                        {"APIEntryPoint", "Links"},
		"/versions":                {"Versions", "BuildNumber", "Components"},
		"/accesskeys":              {"AccessKeys", "Links", "PageInfo", "Items"},
		"/identities":              {"Identities", "Links"},
		"/identities/psk":          {"PSKIdentities", "Links", "PageInfo", "Items"},
		"/identities/certificates": {"Certificates", "Links", "PageInfo", "Items"},
		"/configuration":           {"Configuration", "Links"},
		"/configuration/bootstrap": {"Error", "ErrorCode", "ErrorMessage"}, // the test has no CoAP listener
		"/clients":                 {"Clients", "PageInfo"},
		"/clients/none":            {"Error", "ErrorCode", "ErrorMessage"},
		"/metrics":                 {"Metrics", "PageInfo"},
	} {
		resp, body := s.exchange(t, "GET", path, "", bearer(token, "Accept", "application/xml"))
		if !strings.HasSuffix(resp.Header.Get("Content-Type"), "+xml") {
			t.Errorf("%s is %s", path, resp.Header.Get("Content-Type"))
		}
		var got []string
		depth := 0
		for d := xml.NewDecoder(strings.NewReader(body)); ; {
			token, err := d.Token()
			if token == nil {
				break
			}
			if err != nil {
				t.Fatalf("%s: %v in %s", path, err, body)
			}
			switch e := token.(type) {
			case xml.StartElement:
				if depth < 2 {
					got = append(got, e.Name.Local)
				}
				depth++
			case xml.EndElement:
				depth--
			}
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s has %v, want %v", path, got, want)
		}
	}
}

func TestTheTailOfBootstrapsIsAStream(t *testing.T) {
	s := start(t)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, s.url+"/api/v1/lwm2m/sessions/live", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+s.admin)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if got := resp.Header.Get("Content-Type"); resp.StatusCode != http.StatusOK || got != "text/event-stream" {
		t.Fatalf("GET = %d %s", resp.StatusCode, got)
	}
	done, stop := context.WithCancel(context.WithoutCancel(t.Context()))
	stop()
	_ = s.LwM2M.Run(done) // the service stops, and with it the stream
	if bufio.NewScanner(resp.Body).Scan() {
		t.Error("the stream has something in it, and goes on after the service has stopped")
	}
}
