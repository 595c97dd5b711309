package est_test

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"

	"keystead/est"
	"keystead/outbound"
	"keystead/pki"
	"keystead/seal"
)

// hook is an operator's service that is asked who may enrol.
type hook struct {
	*httptest.Server
	answer func(w http.ResponseWriter, r *http.Request, body map[string]any)

	mu   sync.Mutex
	list []question
}

// question is what the hook was asked.
type question struct {
	body   map[string]any
	raw    string
	header http.Header
}

// asked returns all the hook was asked.
func (h *hook) asked() []question {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.list)
}

// answers has the hook answer by fn from now on.
func (h *hook) answers(fn func(http.ResponseWriter, *http.Request, map[string]any)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.answer = fn
}

func newHook(t *testing.T) *hook {
	t.Helper()
	h := &hook{}
	mux := http.NewServeMux()
	mux.HandleFunc("/hook", func(w http.ResponseWriter, r *http.Request) {
		raw := must(io.ReadAll(r.Body))
		var body map[string]any
		if err := json.Unmarshal(raw, &body); err != nil {
			t.Errorf("the hook was sent %s", raw)
		}
		h.mu.Lock()
		h.list = append(h.list, question{body, string(raw), r.Header.Clone()})
		answer := h.answer
		h.mu.Unlock()
		answer(w, r, body)
	})
	mux.HandleFunc("/well-known", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, `{"token_endpoint":%q}`, h.URL+"/token")
	})
	mux.HandleFunc("/token", func(w http.ResponseWriter, r *http.Request) {
		user, password, _ := r.BasicAuth()
		if user != "keystead" || password != "s3cret" || r.FormValue("grant_type") != "client_credentials" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		fmt.Fprint(w, `{"access_token":"tok","token_type":"Bearer"}`)
	})
	h.Server = httptest.NewServer(mux)
	t.Cleanup(h.Close)
	return h
}

func says(text string) func(http.ResponseWriter, *http.Request, map[string]any) {
	return func(w http.ResponseWriter, _ *http.Request, _ map[string]any) { io.WriteString(w, text) }
}

func TestWebhookDecides(t *testing.T) {
	f := open(t)
	h := newHook(t)
	settings := func(config string) string {
		return `{"enrollment_settings":{"est_rfc7030_settings":{"auth_mode":"EXTERNAL_WEBHOOK","external_webhook_settings":{"name":"h","url":"` + h.URL + `/hook","method":"POST","config":{` + config + `}}}}}`
	}
	f.dms(t, "plain", settings(`"call_timeout":"1s","hmac_secret":"sixteen bytes ok"`))
	f.dms(t, "key", settings(`"auth_mode":"apikey","apikey":{"header":"X-Key","key":"k3y"}`))
	f.dms(t, "oidc", settings(`"auth_mode":"jwt","oidc":{"client_id":"keystead","client_secret":"s3cret","well_known":"`+h.URL+`/well-known"}`))
	ask := func(dms, cn string, header map[string]string) answer {
		return f.do(t, exchange{path: dms + "/simpleenroll", body: b64(request(t, newKey(t), cn)), header: header})
	}
	for _, test := range []struct {
		name   string
		answer func(http.ResponseWriter, *http.Request, map[string]any)
		status int
		says   string
	}{
		{"yes", says(`{"authorized":true,"device_metadata":{"owner":"jo"}}`), 200, ""},
		{"no", says(`{"authorized":false}`), 403, "external webhook denied enrollment"},
		{"no, with a reason", says(`{"authorized":false,"reason":"stolen\nlast week"}`), 403, "denied enrollment: stolen last week"},
		{"nothing", says(``), 502, "webhook"},
		{"no JSON", says(`yes`), 502, "webhook"},
		{"JSON that says nothing", says(`{}`), 502, "webhook"},
		{"the wrong type", says(`{"authorized":"true"}`), 502, "webhook"},
		{"too much", says(`{"authorized":true,"reason":"` + strings.Repeat("x", 100<<10) + `"}`), 502, "webhook"},
		{"401", func(w http.ResponseWriter, _ *http.Request, _ map[string]any) { w.WriteHeader(http.StatusUnauthorized) }, 502, "webhook"},
		{"a redirect", func(w http.ResponseWriter, r *http.Request, _ map[string]any) {
			http.Redirect(w, r, "/elsewhere", http.StatusFound)
		}, 502, "webhook"},
		{"too late", func(_ http.ResponseWriter, r *http.Request, _ map[string]any) { <-r.Context().Done() }, 504, "timed out"},
	} {
		h.answers(test.answer)
		cn := "dev-" + strings.ReplaceAll(strings.ReplaceAll(test.name, " ", "-"), ",", "")
		a := ask("plain", cn, map[string]string{"X-Site": "7", "Cookie": "c=1"})
		if a.status != test.status || !strings.Contains(a.body, test.says) {
			t.Errorf("%s: got %d %q, want %d and %q", test.name, a.status, a.body, test.status, test.says)
		}
		if _, err := f.Devices.Find(f.ctx, cn); (err == nil) != (test.status == 200) {
			t.Errorf("%s: is there a device: %v", test.name, err)
		}
	}
	if d := must(f.Devices.Find(f.ctx, "dev-yes")); d.Metadata["owner"] != "jo" {
		t.Errorf("got metadata %v, want what the webhook says", d.Metadata)
	}
	question := h.asked()[0]
	first := question.body
	der, _ := pem.Decode(must(base64.StdEncoding.DecodeString(first["csr"].(string))))
	if csr := must(pki.ParseCSR(der.Bytes)); csr.Subject.CommonName != "dev-yes" || first["device_cn"] != "dev-yes" || first["aps"] != "plain" || first["operation"] != "simpleenroll" {
		t.Errorf("the hook was sent %v", first)
	}
	sent := first["http_request"].(map[string]any)["headers"].(map[string]any)
	if sent["X-Site"] != "7" || sent["Cookie"] != nil || question.header.Get("Content-Type") != "application/json" {
		t.Errorf("the hook was sent headers %v as %s", sent, question.header.Get("Content-Type"))
	}
	if got, want := question.header.Get(outbound.SignatureHeader), outbound.Sign(seal.Secret("sixteen bytes ok"), []byte(question.raw), f.now()); got != want {
		t.Errorf("signature: got %q, want %q", got, want)
	}
	h.answers(func(w http.ResponseWriter, r *http.Request, _ map[string]any) {
		fmt.Fprintf(w, `{"authorized":%v}`, r.Header.Get("X-Key") == "k3y" || r.Header.Get("Authorization") == "Bearer tok")
	})
	ask("key", "by-key", nil).issued(t)
	ask("oidc", "by-oidc", nil).issued(t)
	out := must(f.TestWebhook(f.ctx, "key", est.SimpleEnroll, must(pki.ParseCSR(request(t, newKey(t), "trial")))))
	if !out.Authorized || out.Status != 200 || !strings.Contains(string(out.Sent), `"trial"`) {
		t.Errorf("trial: got %+v", out)
	}
	if _, err := f.Devices.Find(f.ctx, "trial"); err == nil {
		t.Error("a trial has enrolled a device")
	}
}

func TestWebhookReachesNoPrivateAddress(t *testing.T) {
	f := open(t)
	h := newHook(t)
	h.answers(says(`{"authorized":true}`))
	f.Guard = outbound.Guard{}
	f.dms(t, "in", `{"enrollment_settings":{"est_rfc7030_settings":{"auth_mode":"EXTERNAL_WEBHOOK","external_webhook_settings":{"url":"`+h.URL+`/hook","config":{}}}}}`)
	a := f.do(t, exchange{path: "in/simpleenroll", body: b64(request(t, newKey(t), "x"))})
	if a.status != 502 || len(h.asked()) != 0 {
		t.Errorf("got %d, and the hook was asked %d times; want 502 and never", a.status, len(h.asked()))
	}
}

func TestCertificateAndWebhookMustBothPass(t *testing.T) {
	f := open(t)
	h := newHook(t)
	root, rootKey := outside(t, f.now(), "Maker")
	other, otherKey := outside(t, f.now(), "Stranger")
	maker := must(f.PKI.ImportCA(f.ctx, pki.Import{Certificate: root}))
	f.dms(t, "both", `{"enrollment_settings":{"identity_binding":"cn_prefix","est_rfc7030_settings":{"auth_mode":"CLIENT_CERTIFICATE_AND_EXTERNAL_WEBHOOK","client_certificate_settings":{"validation_cas":["PLACE"]},
		"external_webhook_settings":{"url":"`+h.URL+`/hook","config":{}}}}}`, string(maker.ID))
	boot := newKey(t)
	good := exchange{chain: chainOf(sign(t, f.now(), "dev", boot.Public(), root, rootKey)), key: boot}
	bad := exchange{chain: chainOf(sign(t, f.now(), "dev", boot.Public(), other, otherKey)), key: boot}
	ask := func(x exchange, cn string) answer {
		x.path, x.body = "both/simpleenroll", b64(request(t, newKey(t), cn))
		return f.do(t, x)
	}
	h.answers(says(`{"authorized":true}`))
	ask(good, "dev-1").issued(t)
	if len(h.asked()) != 1 || h.asked()[0].body["client_certificate"].(map[string]any)["subject"] != "CN=dev" {
		t.Errorf("the hook was asked %v", h.asked())
	}
	if a := ask(bad, "dev-2"); a.status != 401 {
		t.Errorf("a bad certificate: got %d %s", a.status, a.body)
	}
	if a := ask(exchange{}, "dev-2"); a.status != 401 {
		t.Errorf("no certificate: got %d %s", a.status, a.body)
	}
	if len(h.asked()) != 1 {
		t.Error("the hook was asked about a bad certificate")
	}
	h.answers(says(`{"authorized":false}`))
	if a := ask(good, "dev-3"); a.status != 403 {
		t.Errorf("the hook says no: got %d %s", a.status, a.body)
	}
	h.answers(says(`{"authorized":true}`))
	if a := ask(good, "lathe"); a.status != 403 || !strings.Contains(a.body, "may not enrol") {
		t.Errorf("a name the certificate does not stand for: got %d %s", a.status, a.body)
	}
}

func TestNoAuthIsLoudAndMustBeAllowed(t *testing.T) {
	f := open(t)
	const settings = `{"enrollment_settings":{"est_rfc7030_settings":{"auth_mode":"NO_AUTH"}}}`
	f.dms(t, "open", settings)
	cert := f.do(t, exchange{path: "open/simpleenroll", body: b64(request(t, newKey(t), "anyone"))}).issued(t)
	if c := must(f.PKI.Certificate(f.ctx, string(pki.SerialOf(cert.SerialNumber)))); len(c.Flags) != 1 || f.Figures().NoAuth != 1 {
		t.Errorf("got flags %v and %d counted", c.Flags, f.Figures().NoAuth)
	}
	f.Config.AllowInsecureNoAuth = false
	if a := f.do(t, exchange{path: "open/simpleenroll", body: b64(request(t, newKey(t), "more"))}); a.status != 401 {
		t.Errorf("after the configuration took it back: got %d %s", a.status, a.body)
	}
	var d est.DMS
	if err := json.Unmarshal([]byte(settings), &d.Settings); err != nil {
		t.Fatal(err)
	}
	d.ID, d.Name = "open2", "open2"
	if _, err := f.CreateDMS(f.ctx, d); err == nil {
		t.Error("a DMS without authentication was made although the configuration does not allow it")
	}
}

func TestJWT(t *testing.T) {
	f := open(t)
	f.dms(t, "sso", `{"enrollment_settings":{"est_rfc7030_settings":{"auth_mode":"JWT","jwt_settings":{"device_claim":"device.id","require":{"role":"installer"},"labels":{"site":"site"}}}}}`)
	claims := map[string]any{"role": "installer", "site": "north", "device": map[string]any{"id": "pump-7"}}
	f.JWT = func(_ ctx, inOrg, token string) (map[string]any, error) {
		if inOrg != org || token != "good" {
			return nil, errToken
		}
		return claims, nil
	}
	ask := func(token, cn string) answer {
		return f.do(t, exchange{path: "sso/simpleenroll", body: b64(request(t, newKey(t), cn)), auth: "Bearer " + token})
	}
	if a := ask("bad", "pump-7"); a.status != 401 || strings.Contains(a.body, "bad") && !strings.Contains(a.body, "token") {
		t.Errorf("a bad token: got %d %s", a.status, a.body)
	}
	ask("good", "pump-7").issued(t)
	if d := must(f.Devices.Find(f.ctx, "pump-7")); d.Labels["site"] != "north" {
		t.Errorf("got labels %v", d.Labels)
	}
	claims["role"] = "guest"
	if a := ask("good", "pump-8"); a.status != 403 {
		t.Errorf("without the role: got %d %s", a.status, a.body)
	}
}

func TestDMSSettingsAreChecked(t *testing.T) {
	f := open(t)
	for name, settings := range map[string]string{
		"no mode":            `{}`,
		"unknown mode":       `{"enrollment_settings":{"est_rfc7030_settings":{"auth_mode":"MAGIC"}}}`,
		"unknown CA":         strings.Replace(byCertificate, "PLACE", "nope", 1),
		"another protocol":   `{"enrollment_settings":{"protocol":"CMP","est_rfc7030_settings":{"auth_mode":"JWT"}}}`,
		"registration":       `{"enrollment_settings":{"registration_mode":"X","est_rfc7030_settings":{"auth_mode":"JWT"}}}`,
		"no URL":             `{"enrollment_settings":{"est_rfc7030_settings":{"auth_mode":"EXTERNAL_WEBHOOK"}}}`,
		"a file":             `{"enrollment_settings":{"est_rfc7030_settings":{"auth_mode":"EXTERNAL_WEBHOOK","external_webhook_settings":{"url":"file:///etc/passwd"}}}}`,
		"unknown profile":    `{"issuance_profile_id":"nope","enrollment_settings":{"est_rfc7030_settings":{"auth_mode":"JWT"}}}`,
		"a profile of a CA":  `{"issuance_profile":{"name":"x","validity":{"type":"x"}},"enrollment_settings":{"est_rfc7030_settings":{"auth_mode":"JWT"}}}`,
		"a key nobody makes": `{"server_keygen_settings":{"enabled":true,"key":{"type":"DSA","bits":1024}},"enrollment_settings":{"est_rfc7030_settings":{"auth_mode":"JWT"}}}`,
		"linked to a token":  `{"enrollment_settings":{"est_rfc7030_settings":{"auth_mode":"ENROLMENT_TOKEN","challenge_password":"enrolment_token","channel_binding":"required"}}}`,
		"linked and ignored": `{"reenrollment_settings":{"est_rfc7030_settings":{"auth_mode":"CLIENT_CERTIFICATE","challenge_password":"ignore","channel_binding":"required"}},"enrollment_settings":{"est_rfc7030_settings":{"auth_mode":"JWT"}}}`,
		"unknown source":     `{"identity_mapping":{"device":"shoe_size"},"enrollment_settings":{"est_rfc7030_settings":{"auth_mode":"JWT"}}}`,
	} {
		var d est.DMS
		if err := json.Unmarshal([]byte(settings), &d.Settings); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		d.ID, d.Name = "x", "x"
		if got, err := f.CreateDMS(f.ctx, d); err == nil {
			t.Errorf("%s: made %+v", name, got)
		}
	}
	for _, id := range []string{"cacerts", "SimpleEnroll", "sen", "a/b", "", "..", "-x"} {
		var d est.DMS
		must(0, json.Unmarshal([]byte(tokenOnly), &d.Settings))
		d.ID, d.Name = id, "x"
		if got, err := f.CreateDMS(f.ctx, d); err == nil && id != "" {
			t.Errorf("id %q: made %s", id, got.ID)
		}
	}
}

const tokenOnly = `{"enrollment_settings":{"est_rfc7030_settings":{"auth_mode":"ENROLMENT_TOKEN"}}}`

func TestSecretsOfADMSAreNotShown(t *testing.T) {
	f := open(t)
	f.dms(t, "hooked", `{"enrollment_settings":{"est_rfc7030_settings":{"auth_mode":"EXTERNAL_WEBHOOK","external_webhook_settings":{"url":"https://hook.example/","config":{"auth_mode":"apikey","apikey":{"header":"K","key":"canary-1"},"hmac_secret":"canary-2"}}}}}`)
	d := must(f.DMS(f.ctx, "hooked"))
	if text := string(must(json.Marshal(d))); strings.Contains(text, "canary") || !strings.Contains(text, est.Kept) {
		t.Errorf("got %s", text)
	}
	if strings.Contains(fmt.Sprintf("%+v", d), "canary") {
		t.Error("a secret prints")
	}
	h := newHook(t)
	h.answers(func(w http.ResponseWriter, r *http.Request, _ map[string]any) {
		fmt.Fprintf(w, `{"authorized":%v}`, r.Header.Get("K") == "canary-1")
	})
	d.Settings.Enrollment.EST.Webhook.URL = h.URL + "/hook"
	must(f.UpdateDMS(f.ctx, d)) // with the secrets as they were shown
	f.do(t, exchange{path: "hooked/simpleenroll", body: b64(request(t, newKey(t), "x"))}).issued(t)
}

func FuzzDecodeBody(f *testing.F) {
	f.Add([]byte("MIIB"))
	f.Add([]byte("-----BEGIN CERTIFICATE REQUEST-----"))
	f.Add([]byte(" \r\nAA=="))
	f.Fuzz(func(t *testing.T, body []byte) {
		der, err := est.DecodeBody(body)
		if (err == nil) == (len(der) == 0) {
			t.Errorf("got %d bytes and %v", len(der), err)
		}
		if err == nil {
			again, err := est.DecodeBody(b64(der))
			if err != nil || string(again) != string(der) {
				t.Errorf("what was decoded does not decode again: %v", err)
			}
		}
	})
}

func FuzzHookAnswer(f *testing.F) {
	f.Add([]byte(`{"authorized":true,"reason":"x","device_metadata":{"a":1}}`))
	f.Add([]byte(`{"authorized":null}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		a, err := est.ParseHookAnswer(body)
		if err != nil && a.Authorized {
			t.Error("let in on an answer that is none")
		}
		if strings.ContainsAny(a.Reason, "\r\n\x00") || len([]rune(a.Reason)) > 200 {
			t.Errorf("a reason that is not one line: %q", a.Reason)
		}
	})
}

func FuzzDMSSettings(f *testing.F) {
	f.Add([]byte(byCertificate))
	f.Add([]byte(tokenOnly))
	f.Add([]byte(`{"reenrollment_settings":{"reenrollment_delta":"1y2w","critical_delta":"0"}}`))
	s := open(f)
	f.Fuzz(func(t *testing.T, settings []byte) {
		var d est.DMS
		if json.Unmarshal(settings, &d.Settings) != nil {
			return
		}
		d.ID, d.Name = "fuzzed", "fuzzed"
		made, err := s.CreateDMS(s.ctx, d)
		if err != nil {
			return
		}
		if err := s.DeleteDMS(s.ctx, made.ID, true); err != nil {
			t.Error(err)
		}
		if made.Settings.Enrollment.EST.AuthMode == "" {
			t.Error("a DMS without a mode was made")
		}
	})
}

// What serverkeygen answers is read as it was meant by whoever reads multipart/mixed,
// whatever bytes a key has, and has the key in clear only if nobody asked otherwise.
func FuzzMultipart(f *testing.F) {
	f.Add([]byte("key"), []byte("certificate"), false)
	f.Add([]byte("\r\n--estServerKeysteadBoundary--\r\n"), []byte{}, true)
	f.Fuzz(func(t *testing.T, key, certificate []byte, encrypted bool) {
		secret := []byte("in clear: " + string(key))
		var enveloped []byte
		media := "application/pkcs8"
		want := secret
		if encrypted {
			enveloped, media = append([]byte{}, key...), "application/pkcs7-mime; smime-type=server-generated-key"
			want = enveloped
		}
		body, boundary := est.KeyParts(secret, enveloped, certificate)
		r := multipart.NewReader(bytes.NewReader(body), boundary)
		for _, part := range []struct {
			media string
			der   []byte
		}{{media, want}, {"application/pkcs7-mime; smime-type=certs-only", certificate}} {
			p, err := r.NextRawPart()
			if err != nil {
				t.Fatal(err)
			}
			text, err := io.ReadAll(p)
			if err != nil {
				t.Fatal(err)
			}
			der, err := base64.StdEncoding.DecodeString(string(text))
			if err != nil || !bytes.Equal(der, part.der) || p.Header.Get("Content-Type") != part.media || p.Header.Get("Content-Transfer-Encoding") != "base64" {
				t.Errorf("got %q of %v, %v; want %x of %s", text, p.Header, err, part.der, part.media)
			}
		}
		if p, err := r.NextRawPart(); err != io.EOF {
			t.Errorf("after the two parts: %v, %v", p, err)
		}
		if encrypted && bytes.Contains(body, []byte(base64.StdEncoding.EncodeToString(secret))) {
			t.Error("the key is in clear too")
		}
	})
}
