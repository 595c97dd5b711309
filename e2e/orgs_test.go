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

// exchange makes a request with an API key, or what else an Authorization header
// may hold, and the organisation to act in, and returns the status and the body of the answer.
func (s *server) exchange(c *http.Client, method, path, key, org, body string) (int, string) {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), method, s.url(path), strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	if !strings.Contains(key, " ") {
		key = "Bearer " + key
	}
	req.Header.Set("Authorization", key)
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
	if strings.HasPrefix(res.Header.Get("Content-Type"), "text/event-stream") {
		return res.StatusCode, "" // it has no end
	}
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
var own = regexp.MustCompile(`^/(api/v1/whoami|api/v1/session|console.*|keys.*|tokens|password.*|register.*|setup|invites.*|users/(profile|totp.*)|orgs(/search)?|oauth/token|openapi\.yaml|versions|\.well-known/.*|identify)?$`)

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
	s.raid(doc, victims, me.Organisation, k.Identity, func(method, at, path string, op *openapi3.Operation, body string) {
		if own.MatchString(path) {
			return
		}
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
	})
	after := s.everything(c, doc)
	for path, was := range before {
		if after[path] != was {
			t.Errorf("%s: got %s after the attack, %s before", path, after[path], was)
		}
	}
	figure(t, "%d requests to another organisation's things: none answered, nothing changed", tried)
}

// raid calls try for each operation of the API, with each of the ids in its path.
func (s *server) raid(doc *openapi3.T, ids []string, org, credential string, try func(method, at, path string, op *openapi3.Operation, body string)) {
	for _, path := range doc.Paths.InMatchingOrder() {
		at := map[string]bool{}
		names := parameter.FindAllString(path, -1)
		if len(names) == 0 {
			at[path] = true
		} else {
			for _, id := range ids {
				at[parameter.ReplaceAllStringFunc(path, func(name string) string {
					switch {
					case name == "{kind}":
						return "psk"
					case name == "{credential}":
						return credential
					case name == "{org}" && len(names) > 1:
						return org
					}
					return id
				})] = true
			}
		}
		for method, op := range doc.Paths.Find(path).Operations() {
			for at := range at {
				try(method, at, path, op, example(op))
			}
		}
	}
}

// allowed are the operations that are a device's to call, or anybody's.
var allowed = regexp.MustCompile(`^/(api/v1/(whoami|session)|api/devices/.*|metadata|http/messages|versions|oauth/token|.*\.well-known/est/.*)?$`)

// A device is who it is, and administers nothing, itself included.
func TestADeviceAdministersNothing(t *testing.T) {
	t.Parallel()
	s := start(t, fast...)
	c := s.https()
	device, key := s.thing("eve")
	k := s.textPSK()
	var me who
	s.must2xx(c, http.MethodGet, "/api/v1/whoami", s.key, "", &me)
	doc := s.document(c)
	before := s.everything(c, doc)
	tried := 0
	s.raid(doc, []string{device, k.Device, k.Identity, me.User, me.Organisation}, me.Organisation, k.Identity, func(method, at, path string, op *openapi3.Operation, body string) {
		if public(op) || allowed.MatchString(path) {
			return
		}
		tried++
		if code, answer := s.exchange(c, method, at, "Thing "+key, "", body); code != http.StatusForbidden && code != http.StatusUnauthorized {
			t.Errorf("%s %s: got %d %.200s, want 403 or 401", method, at, code, answer)
		}
	})
	after := s.everything(c, doc)
	for path, was := range before {
		if after[path] != was {
			t.Errorf("%s: got %s after the attack, %s before", path, after[path], was)
		}
	}
	figure(t, "%d requests of a device to administer: all refused", tried)
}

// searches are operations that change nothing, although they are no GET.
var searches = regexp.MustCompile(`/(search|verify|introspect)$`)

// A viewer of an organisation looks and changes nothing; the owner of one does
// not become an administrator of the platform, whatever it calls.
func TestRolesHold(t *testing.T) {
	t.Parallel()
	s := start(t, fast...)
	c := s.https()
	viewer, self := s.stranger(c, "victor")
	owner, other := s.stranger(c, "olga")
	var me who
	s.must2xx(c, http.MethodGet, "/api/v1/whoami", s.key, "", &me)
	s.must2xx(c, http.MethodPost, "/orgs/"+me.Organisation+"/memberships", s.key, `{"org_memberships":[{"email":"victor@example.org","role":"viewer"}]}`, nil)
	k := s.textPSK()
	thing, _ := s.thing("pump")

	// The key of the viewer is bound to its own organisation: it needs one of the other.
	var login, made struct{ Token, Value string }
	s.must2xx(c, http.MethodPost, "/tokens", "", `{"email":"victor@example.org","password":"correct horse battery victor"}`, &login)
	s.secret(login.Token)
	s.must2xx(c, http.MethodPost, "/keys", login.Token, fmt.Sprintf(`{"type":2,"name":"look","org_id":%q}`, me.Organisation), &made)
	s.secret(made.Value)
	if code, answer := s.exchange(c, http.MethodGet, "/api/v1/devices/"+k.Device, made.Value, "", ""); code != http.StatusOK {
		t.Fatalf("the viewer cannot look: %d %s", code, answer)
	}
	if code, _ := s.exchange(c, http.MethodGet, "/api/v1/devices/"+k.Device, viewer, me.Organisation, ""); code/100 == 2 {
		t.Error("a key that is bound to one organisation acts in another")
	}

	doc := s.document(c)
	before := s.everything(c, doc)
	tried := 0
	s.raid(doc, []string{k.Device, k.Identity, thing, me.User, me.Organisation}, me.Organisation, k.Identity, func(method, at, path string, op *openapi3.Operation, body string) {
		if method == http.MethodGet || method == http.MethodHead || public(op) || own.MatchString(path) || path == "/users" || searches.MatchString(path) || allowed.MatchString(path) {
			return
		}
		tried++
		if code, answer := s.exchange(c, method, at, made.Value, "", body); code/100 == 2 {
			t.Errorf("%s %s as a viewer: got %d %.200s, want it refused", method, at, code, answer)
		}
	})
	// The owner, with all its own ids: some of this succeeds, as it should; it must not lead further up.
	s.raid(doc, []string{other.User, other.Organisation}, other.Organisation, k.Identity, func(method, at, path string, op *openapi3.Operation, body string) {
		if strings.HasPrefix(path, "/users/{user}/totp") || strings.HasPrefix(path, "/users/{user}/sign-out") {
			return
		}
		tried++
		if code, answer := s.exchange(c, method, at, owner, "", body); code >= 500 {
			t.Errorf("%s %s as an owner: got %d %.200s", method, at, code, answer)
		}
	})
	after := s.everything(c, doc)
	for path, was := range before {
		if path != "/orgs" && path != "/users" && path != "/keys" && after[path] != was {
			t.Errorf("%s: got %s after the attack, %s before", path, after[path], was)
		}
	}
	var users struct {
		Users []struct{ ID, Role string }
	}
	s.must2xx(c, http.MethodGet, "/users", s.key, "", &users)
	for _, u := range users.Users {
		if (u.ID == other.User || u.ID == self.User) && u.Role != "" {
			t.Errorf("user %s has become %q", u.ID, u.Role)
		}
	}
	figure(t, "%d requests beyond a role: nothing changed, nobody rose", tried)
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

// unstable are lists that change by themselves, and by being looked at, and pages
// that ask a fresh question each time.
var unstable = regexp.MustCompile(`^/(api/v1/(audit.*|sessions|signing-keys.*|metrics.*|backups.*)|keys|metrics|login|account)$`)

// everything is what each list of the API shows its administrator.
func (s *server) everything(c *http.Client, doc *openapi3.T) map[string]string {
	s.t.Helper()
	all := map[string]string{}
	for path, item := range doc.Paths.Map() {
		if item.Get == nil || strings.Contains(path, "{") || unstable.MatchString(path) || strings.HasSuffix(path, "/live") {
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
