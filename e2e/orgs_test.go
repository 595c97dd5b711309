//go:build e2e

package e2e_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"

	"keystead/client"
)

// exchange makes a request with an API key and the organisation to act in, and
// returns the status and the body of the answer.
func (s *server) exchange(c *http.Client, method, path, key, org, body string) (int, string) {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), method, s.url(path), strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+key)
	if org != "" {
		req.Header.Set("X-Org-ID", org)
	}
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := c.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return res.StatusCode, string(b)
}

// must2xx is exchange for what has to succeed; it reads the answer into out.
func (s *server) must2xx(c *http.Client, method, path, key, body string, out any) {
	s.t.Helper()
	code, answer := s.exchange(c, method, path, key, "", body)
	if code/100 != 2 {
		s.t.Fatalf("%s %s: %d %s", method, path, code, answer)
	}
	if out != nil {
		if err := json.Unmarshal([]byte(answer), out); err != nil {
			s.t.Fatalf("%s %s: %v: %s", method, path, err, answer)
		}
	}
}

// stranger makes a user with an organisation of its own and returns the key and
// who it is. It may do everything there, and nothing elsewhere.
func (s *server) stranger(c *http.Client, name string) (key string, self who) {
	s.t.Helper()
	password := "correct horse battery " + name
	s.secret(password)
	s.must2xx(c, http.MethodPost, "/users", s.key, fmt.Sprintf(`{"email":"%s@example.org","password":"%s"}`, name, password), nil)
	var login struct{ Token string }
	s.must2xx(c, http.MethodPost, "/tokens", "", fmt.Sprintf(`{"email":"%s@example.org","password":"%s"}`, name, password), &login)
	s.secret(login.Token)
	s.must2xx(c, http.MethodPost, "/orgs", login.Token, fmt.Sprintf(`{"name":"%s"}`, name), nil)
	var orgs struct {
		Orgs []struct{ ID, Name string } `json:"orgs"`
	}
	s.must2xx(c, http.MethodGet, "/orgs", login.Token, "", &orgs)
	for _, o := range orgs.Orgs {
		if o.Name == name {
			self.Organisation = o.ID
		}
	}
	var made struct{ Value string }
	s.must2xx(c, http.MethodPost, "/keys", login.Token, fmt.Sprintf(`{"type":2,"name":"attack","org_id":"%s"}`, self.Organisation), &made)
	s.secret(made.Value)
	s.must2xx(c, http.MethodGet, "/api/v1/whoami", made.Value, "", &self)
	return made.Value, self
}

// own are the operations that act on the caller itself, or on nothing that
// belongs to an organisation: there is nothing of others to reach there.
var own = regexp.MustCompile(`^/(api/v1/whoami|keys.*|tokens|password.*|register.*|setup|invites.*|users/(profile|totp.*)|orgs(/search)?|oauth/token|openapi\.yaml|versions|\.well-known/.*|identify)?$`)

var uuid = regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}`)

// Whoever is everything in one organisation is nobody in another: with each
// operation of the API, and every id of the other's things, it reaches nothing
// and changes nothing.
func TestOrganisationsCannotReachEachOther(t *testing.T) {
	t.Parallel()
	s := start(t, fast...)
	c := s.https()
	attacker, self := s.stranger(c, "mallory")

	// What the victim, the default organisation, has.
	var me who
	s.must2xx(c, http.MethodGet, "/api/v1/whoami", s.key, "", &me)
	k := s.textPSK()
	device, err := s.admin().EditDevice(t.Context(), k.Device, client.DeviceEdit{Aliases: &[]client.Alias{{Kind: "serial_number", Value: "SN-victim"}}})
	if err != nil {
		t.Fatal(err)
	}
	s.mustDial(withPSK(k, k.text(t))...)
	for path, body := range map[string]string{
		"/api/v1/webhooks": `{"url":"https://example.org/hook","types":["device.suspended"]}`,
		"/things":          `[{"name":"victim","type":"sensor"}]`,
	} {
		s.must2xx(c, http.MethodPost, path, s.key, body, nil)
	}

	doc := s.document(c)
	before := s.everything(c, doc)
	ids := map[string]bool{me.Organisation: true, me.User: true, device.ID: true, "SN-victim": true, k.Identity: true}
	for _, answer := range before {
		for _, id := range uuid.FindAllString(answer, -1) {
			ids[id] = true
		}
	}
	delete(ids, self.Organisation)
	delete(ids, self.User)
	victims := slices.Sorted(maps.Keys(ids))

	tried := 0
	for _, path := range doc.Paths.InMatchingOrder() {
		for method, op := range doc.Paths.Find(path).Operations() {
			if own.MatchString(path) {
				continue
			}
			body := example(op)
			attempts := map[string]bool{} // path to try
			if names := parameter.FindAllString(path, -1); len(names) == 0 {
				attempts[path] = true
			} else {
				for _, id := range victims {
					attempts[parameter.ReplaceAllStringFunc(path, func(name string) string {
						switch name {
						case "{kind}":
							return "psk"
						case "{credential}":
							return k.Identity
						case "{org}":
							if len(names) > 1 {
								return me.Organisation
							}
						}
						return id
					})] = true
				}
			}
			for at := range attempts {
				for _, org := range []string{"", self.Organisation, me.Organisation} {
					if at == path && org != me.Organisation {
						continue // its own lists
					}
					code, answer := s.exchange(c, method, at, attacker, org, body)
					tried++
					if code/100 == 2 && !public(op) {
						t.Errorf("%s %s in %q: got %d %.200s, want it refused", method, at, org, code, answer)
					}
					if code >= 500 {
						t.Errorf("%s %s in %q: got %d %.200s", method, at, org, code, answer)
					}
					if strings.Contains(answer, "SN-victim") && !strings.Contains(at, "SN-victim") {
						t.Errorf("%s %s in %q: the answer tells of the other's device: %.200s", method, at, org, answer)
					}
				}
			}
		}
	}
	after := s.everything(c, doc)
	for path, was := range before {
		if after[path] != was {
			t.Errorf("%s: got %s after the attack, %s before", path, after[path], was)
		}
	}
	figure(t, "%d requests to another organisation's things: none answered, nothing changed", tried)
}

var parameter = regexp.MustCompile(`\{\w+\}`)

// https is a bare client that trusts the server.
func (s *server) https() *http.Client {
	s.t.Helper()
	transport := &http.Transport{TLSClientConfig: s.tls(), ForceAttemptHTTP2: true}
	s.t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: patience}
}

// document is the server's own description of its API.
func (s *server) document(c *http.Client) *openapi3.T {
	s.t.Helper()
	code, text := s.exchange(c, http.MethodGet, "/openapi.yaml", "", "", "")
	doc, err := openapi3.NewLoader().LoadFromData([]byte(text))
	if code != http.StatusOK || err != nil {
		s.t.Fatalf("openapi.yaml: %d %v", code, err)
	}
	return doc
}

func public(op *openapi3.Operation) bool { return op.Security != nil && len(*op.Security) == 0 }

// unstable are lists that change by themselves, and by being looked at.
var unstable = regexp.MustCompile(`^/(api/v1/(audit.*|sessions|signing-keys.*|metrics.*|backups.*)|keys|metrics)$`)

// everything is what each list of the API shows its administrator.
func (s *server) everything(c *http.Client, doc *openapi3.T) map[string]string {
	s.t.Helper()
	all := map[string]string{}
	for path, item := range doc.Paths.Map() {
		if item.Get == nil || strings.Contains(path, "{") || unstable.MatchString(path) {
			continue
		}
		if code, answer := s.exchange(c, http.MethodGet, path, s.key, "", ""); code == http.StatusOK {
			all[path] = answer
		}
	}
	return all
}

// example is a body that an operation takes, as far as its schema says.
func example(op *openapi3.Operation) string {
	if op.RequestBody == nil || op.RequestBody.Value.Content["application/json"] == nil {
		return ""
	}
	var b bytes.Buffer
	if err := json.NewEncoder(&b).Encode(value(op.RequestBody.Value.Content["application/json"].Schema, 0)); err != nil {
		return "{}"
	}
	return b.String()
}

func value(ref *openapi3.SchemaRef, depth int) any {
	if ref == nil || ref.Value == nil || depth > 6 {
		return nil
	}
	v := ref.Value
	switch {
	case len(v.Enum) > 0:
		return v.Enum[0]
	case len(v.AllOf) > 0:
		return value(v.AllOf[0], depth+1)
	case len(v.OneOf) > 0:
		return value(v.OneOf[0], depth+1)
	case len(v.AnyOf) > 0:
		return value(v.AnyOf[0], depth+1)
	case v.Type.Includes("object"):
		o := map[string]any{}
		for name, property := range v.Properties {
			if len(v.Required) == 0 || slices.Contains(v.Required, name) {
				o[name] = value(property, depth+1)
			}
		}
		return o
	case v.Type.Includes("array"):
		return []any{value(v.Items, depth+1)}
	case v.Type.Includes("integer"), v.Type.Includes("number"):
		return 1
	case v.Type.Includes("boolean"):
		return true
	}
	return "stolen"
}
