//go:build e2e

package e2e_test

import (
	"encoding/base64"
	"encoding/json"
	"net/http"
	"strings"
)

// estate is one of everything that an organisation can have, and what its parts
// are called in the paths of the API.
type estate struct {
	org    string // whose it is
	device string
	names  map[string][][]string // by the beginning of a path of the document: values of its parameters, in their order
	bodies map[string]string     // by operation: what it takes, where the example of the document would not do for itself
	all    map[string]bool       // every name
}

// at returns the paths of the API that name parts of the estate by a path of the
// document, and the values they have; none for one that names nothing of it.
func (e *estate) at(path string) (paths []string, values [][]string) {
	longest := ""
	for prefix := range e.names {
		if strings.HasPrefix(path, prefix) && len(prefix) > len(longest) {
			longest = prefix
		}
	}
	for _, v := range e.names[longest] {
		if len(v) < len(parameter.FindAllString(path, -1)) {
			continue
		}
		paths, values = append(paths, inserted(path, v)), append(values, v)
	}
	return paths, values
}

// inserted is a path of the document with the values of its parameters.
func inserted(path string, values []string) string {
	n := -1
	return parameter.ReplaceAllStringFunc(path, func(string) string { n++; return values[n] })
}

// estate makes one of everything for the administrator's organisation.
func (s *server) estate() *estate {
	s.t.Helper()
	e := &estate{names: map[string][][]string{}, bodies: map[string]string{}, all: map[string]bool{}}
	c := s.https()
	made := func(path, body, field string) string {
		s.t.Helper()
		var v map[string]any
		s.must2xx(c, http.MethodPost, path, s.key, body, &v)
		for _, secret := range []string{"Secret", "secret", "token", "RawCertificate"} {
			if text, ok := v[secret].(string); ok {
				s.secret(text)
			}
		}
		id, _ := v[field].(string)
		return id
	}
	first := func(path, field string) string {
		s.t.Helper()
		var page struct{ Items []map[string]any }
		s.must2xx(c, http.MethodGet, path, s.key, "", &page)
		if len(page.Items) == 0 {
			s.t.Fatalf("%s: there is nothing", path)
		}
		id, _ := page.Items[0][field].(string)
		return id
	}
	is := func(prefix string, values ...string) {
		s.t.Helper()
		for _, v := range values {
			if v == "" {
				s.t.Fatalf("%s has no name", prefix)
			}
			e.all[v] = true
		}
		e.names[prefix] = append(e.names[prefix], values)
	}

	// A device with a key, which bootstrapped, is registered, and pinned.
	var me who
	s.must2xx(c, http.MethodGet, "/api/v1/whoami", s.key, "", &me)
	s.cli("server", "add", "victims-dm", "coaps://"+s.at.CoAPUDP, "--short-id", "101", "--for", me.Organisation)
	k := s.textPSK()
	e.org, e.device = me.Organisation, k.Device
	s.must2xx(c, http.MethodPatch, "/api/v1/devices/"+k.Device, s.key, `{"aliases":[{"kind":"endpoint","value":"`+k.Identity+`"},{"kind":"serial_number","value":"SN-victim"}]}`, nil)
	dev := s.lwm2mClient("1.1", withPSK(k, k.text(s.t))...)
	dev.bootstrap()
	dev.register()
	s.lastBootstrap(1)
	s.must2xx(c, http.MethodPut, "/api/v1/lwm2m/devices/"+k.Device+"/assignment", s.key, `{"servers":["victims-dm"]}`, nil)
	s.must2xx(c, http.MethodPut, "/api/v1/lwm2m/devices/"+k.Device+"/bootstrap", s.key, `{"region":"eu"}`, nil)
	for _, name := range []string{k.Device, "SN-victim", k.Identity} {
		is("/api/v1/devices/{id}", name, "psk", k.Identity)
		is("/api/v1/lwm2m/devices/{id}", name)
	}
	is("/api/v1/sessions/{id}", first("/api/v1/sessions", "id"))
	is("/api/v1/lwm2m/sessions/{session}", first("/api/v1/lwm2m/sessions", "id"))
	is("/api/v1/lwm2m/servers/{server}", "victims-dm")
	is("/api/v1/lwm2m/policies/{policy}", made("/api/v1/lwm2m/policies", `{"name":"all"}`, "id"))
	is("/clients/{client}", k.Identity)
	is("/identities/psk/{identity}", k.Identity)
	is("/api/v1/psk/{identity}", k.Identity)
	e.bodies["PUT /api/v1/lwm2m/devices/{id}/bootstrap"] = `{"region":"us"}`
	e.bodies["PUT /api/v1/lwm2m/devices/{id}/assignment"] = `{"servers":["victims-dm"]}`

	// A thing, and a device that came with a key of its own and has a token.
	thing, _ := s.thing("victim")
	is("/things/{id}", thing)
	is("/api/v1/devices/{id}", thing)
	e.bodies["PUT /things/{id}"] = `{"name":"stolen","type":"sensor"}`
	e.bodies["PUT /things/{id}/external-key"] = `{"key":"stolen stolen stolen"}`
	a := s.asker(`{"mac":"victim"}`)
	if code, answer := a.ask(); code != http.StatusUnauthorized {
		s.t.Fatalf("auth request: %d %s", code, answer)
	}
	s.cli("authset", "accept", "--all")
	token := a.token()
	payload, err := base64.RawURLEncoding.DecodeString(strings.Split(token, ".")[1])
	var claims struct{ JTI string }
	if err != nil || json.Unmarshal(payload, &claims) != nil {
		s.t.Fatalf("the token %s: %v", token, err)
	}
	d := s.onlyDevice()
	is("/api/management/v2/devauth/devices/{id}", d.ID, d.AuthSets[0].ID)
	is("/api/management/v2/devauth/tokens/{jti}", claims.JTI)
	is("/api/v1/accept-rules/{id}", made("/api/v1/accept-rules", `{"name":"model","attribute":"model","equals":"m1"}`, "id"))
	e.bodies["PUT /api/management/v2/devauth/devices/{id}/auth/{aid}/status"] = `{"status":"rejected"}`

	// Certificates and what they come from; one that waits for approval.
	is("/api/v1/cas/{id}", first("/api/v1/cas", "id"))
	_, profile := s.exchange(c, http.MethodGet, "/api/v1/profiles/device", s.key, "", "")
	is("/api/v1/profiles/{id}", made("/api/v1/profiles", strings.NewReplacer(`"id":"device"`, `"id":"victims"`, `"name":"device"`, `"name":"victims"`).Replace(profile), "id"))
	made("/identities/certificates", "", "")
	is("/api/v1/certificates/{serial}", first("/api/v1/certificates", "serial"))
	is("/identities/certificates/{serial}", first("/identities/certificates", "SerialNumber"))
	s.dms(`{"id":"slow","name":"by hand","settings":` + strings.Replace(tokenSettings, `"enrollment_settings":{`, `"enrollment_settings":{"manual_approval":true,`, 1) + `}`)
	is("/api/v1/dms/{id}", "slow")
	var token2 struct{ ID, Token string }
	s.must2xx(c, http.MethodPost, "/api/v1/enrolment-tokens", s.key, `{"dms":"slow"}`, &token2)
	s.secret(token2.Token)
	is("/api/v1/enrolment-tokens/{id}", token2.ID)
	s.request("late", "/CN=late")
	if answer, code := s.est("/.well-known/est/slow/simpleenroll", "late", "-u", "u:"+token2.Token); code != http.StatusAccepted {
		s.t.Fatalf("an enrolment by hand: %d %s", code, answer)
	}
	is("/api/v1/enrolments/{id}", first("/api/v1/enrolments", "id"))
	s.sh(`openssl req -in late.csr -inform DER -out late.pem; openssl req -x509 -newkey ed25519 -nodes -keyout factory.key -out factory.pem -subj /CN=factory -addext keyUsage=critical,keyCertSign 2>/dev/null`)
	csr := jsonText(readText(s.t, s.path("late.pem")))
	e.bodies["POST /api/v1/cas/{id}/sign"] = `{"csr":` + csr + `}`
	e.bodies["POST /api/v1/dms/{id}/webhook-test"] = `{"csr":` + csr + `}`
	e.bodies["POST /api/v1/dms/{id}/diagnose"] = `{"csr":` + csr + `}`
	for _, path := range []string{"/api/v1/cas/{id}", "/api/v1/dms/{id}", "/api/v1/certificates/{serial}"} {
		for _, method := range []string{"PATCH ", "PUT "} {
			e.bodies[method+path+"/metadata"] = `{"patches":[{"op":"add","path":"/taken","value":true}]}`
		}
	}
	e.bodies["POST /api/v1/cas/{id}/revoke"] = `{"reason":"keyCompromise"}`
	e.bodies["POST /api/v1/certificates/{serial}/revoke"] = `{"reason":"keyCompromise"}`
	for _, path := range []string{"/api/v1/profiles/{id}", "/api/v1/dms/{id}"} {
		at, _ := e.at(path)
		code, answer := s.exchange(c, http.MethodGet, at[0], s.key, "", "")
		if code != http.StatusOK {
			s.t.Fatalf("%s: %d %s", at[0], code, answer)
		}
		e.bodies["PUT "+path] = answer
	}
	ca := made("/api/v1/mtls-cas", `{"name":"factory","certificate":`+jsonText(readText(s.t, s.path("factory.pem")))+`}`, "id")
	s.must2xx(c, http.MethodPut, "/api/v1/mtls-cas/"+ca+"/denied/0a1b", s.key, "", nil)
	is("/api/v1/mtls-cas/{id}", ca, "0a1b")

	// People, keys, and who else is told.
	is("/users/{user}", me.User)
	keys := s.userKeys()
	is("/users/{user}/keys", me.User, keys)
	is("/users/{user}/passkeys", me.User, keys)
	is("/keys/{id}", keys)
	is("/orgs/{org}", me.Organisation)
	is("/orgs/{org}/members/{member}", me.Organisation, me.User)
	s.must2xx(c, http.MethodPost, "/orgs/"+me.Organisation+"/invites", s.key, `{"email":"guest@example.org","role":"viewer"}`, nil)
	var invites map[string][]struct{ ID string }
	s.must2xx(c, http.MethodGet, "/orgs/"+me.Organisation+"/invites", s.key, "", &invites)
	for _, list := range invites {
		for _, i := range list {
			is("/orgs/{org}/invites/{invite}", me.Organisation, i.ID)
			is("/invites/{invite}", i.ID)
		}
	}
	e.bodies["POST /orgs/{org}/memberships"] = `{"org_memberships":[{"email":"mallory@example.org","role":"owner"}]}`
	e.bodies["PUT /orgs/{org}/memberships"] = `{"org_memberships":[{"email":"mallory@example.org","role":"owner"}]}`
	e.bodies["PATCH /orgs/{org}/memberships"] = `{"member_ids":["` + me.User + `"]}`
	e.bodies["POST /orgs/{org}/invites"] = `{"email":"mallory@example.org","role":"owner"}`
	is("/accesskeys/{key}", made("/accesskeys", `{"Name":"victim"}`, "Key"))
	is("/oauth/clients/{id}", made("/oauth/clients", `{"name":"victim","redirect_uris":["https://app.example/cb"]}`, "id"))
	is("/api/v1/issuers/{id}", made("/api/v1/issuers", `{"name":"victims","issuer":"https://issuer.example","audiences":["keystead"],"algorithms":["EdDSA"],"keys":{"keys":[{"kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo","kid":"k"}]},"mapping":{"device":"sub"}}`, "id"))
	hook := made("/api/v1/webhooks", `{"url":"https://hook.invalid/","types":["device.*"]}`, "id")
	s.thing("told")
	s.eventually("a delivery that failed", func() bool {
		_, answer := s.exchange(c, http.MethodGet, "/api/v1/webhooks/"+hook+"/deliveries", s.key, "", "")
		return strings.Contains(answer, `"id"`)
	})
	is("/api/v1/webhooks/{id}", hook, first("/api/v1/webhooks/"+hook+"/deliveries", "id"))
	is("/subscriptions/{subscription}", made("/subscriptions", `{"SubscriptionType":"IdentityRevoked","Url":"https://hook.invalid/"}`, "ID"))
	e.bodies["POST /api/v1/webhooks/{id}/sync"] = `{}`
	e.bodies["PUT /subscriptions/{subscription}"] = `{"SubscriptionType":"IdentityRevoked","Url":"https://thief.invalid/"}`
	e.bodies["POST /clients/{client}/subscriptions"] = `{"SubscriptionType":"ClientConnected","Url":"https://thief.invalid/"}`
	delete(e.all, "psk")
	delete(e.all, "slow")
	return e
}

// userKeys returns the id of a key of the administrator's.
func (s *server) userKeys() string {
	s.t.Helper()
	var list map[string]json.RawMessage
	s.must2xx(s.https(), http.MethodGet, "/keys", s.key, "", &list)
	var keys []struct{ ID string }
	for _, v := range list {
		if json.Unmarshal(v, &keys) == nil && len(keys) > 0 {
			return keys[0].ID
		}
	}
	s.t.Fatalf("no key of the administrator's: %s", list)
	return ""
}

// jsonText is text as a string of JSON.
func jsonText(text string) string {
	b, err := json.Marshal(text)
	if err != nil {
		return ""
	}
	return string(b)
}
