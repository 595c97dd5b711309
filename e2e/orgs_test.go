//go:build e2e

package e2e_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/getkin/kin-openapi/openapi3"
)

// exchange makes a request with an API key, or what else an Authorization header
// may hold, and the organisation to act in, and returns the status and the body of the answer.
func (s *server) exchange(c *http.Client, method, path, key, org, body string) (int, string) {
	s.t.Helper()
	code, _, answer := s.exchangeAll(c, method, path, key, org, body)
	return code, answer
}

// exchangeAll is exchange with the header of the answer.
func (s *server) exchangeAll(c *http.Client, method, path, key, org, body string) (int, http.Header, string) {
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
		return res.StatusCode, res.Header, "" // it has no end
	}
	b, err := io.ReadAll(res.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return res.StatusCode, res.Header, string(b)
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

// isolated are the operations that name nothing of an organisation, or answer
// for what is another's otherwise than that it is not there, and why.
var isolated = []struct {
	operations *regexp.Regexp // of "METHOD /path"
	status     int            // 0: not asked; 403 is before anything is looked up
	why        string
}{
	{regexp.MustCompile(`/\.well-known/est/`), 0, "an enrolment proves who asks in its own ways; TestCurlIsToldWhatIsWrong"},
	{regexp.MustCompile(`^GET /users/oauth/|^GET /console/|^(GET|POST) /account`), 0, "pages, for anybody or of the browser's own session"},
	{regexp.MustCompile(`^POST /register/invite/`), 0, "for who holds the key of an invite"},
	{regexp.MustCompile(` /api/management/v2/devauth/limits/`), 0, "names a limit, of the caller's organisation"},
	{regexp.MustCompile(`^DELETE /keys/`), http.StatusNoContent, "a user ends keys of its own; one it has not is ended already, as Mainflux has it"},
	{regexp.MustCompile(`^(PUT|DELETE|POST) /api/v1/lwm2m/servers/`), http.StatusForbidden, "servers are the platform's to change"},
	{regexp.MustCompile(`^(GET|DELETE) /users/\{user\}/keys|^DELETE /users/\{user\}$|^POST /users/\{user\}/(enable|disable|recovery-key)|^(PUT|DELETE) /users/\{user\}/platform|^DELETE /users/\{user\}/second-factor|^DELETE /invites/`), http.StatusForbidden, "for administrators of the platform"},
}

// forPeople are the operations that take a login: an API key is refused them.
var forPeople = regexp.MustCompile(`^DELETE /users/\{user\}/totp$|^(PUT|DELETE) /users/\{user\}/passkeys/`)

// Whoever is everything in one organisation is nobody in another: to each
// operation of the API, with the names of each thing the other has, the answer is
// that there is no such thing, which is what it is for what nobody has, to the
// byte; and nothing changes.
func TestOrganisationsCannotReachEachOther(t *testing.T) {
	t.Parallel()
	s := start(t, append(fast, "webhook.allow_cidrs=127.0.0.1/32")...)
	c := s.https()
	key, self := s.stranger(c, "mallory")
	attackers := map[string]string{"an API key": key, "a login": s.logIn(c, "mallory@example.org", "correct horse battery mallory")}
	e := s.estate()
	doc := s.document(c)

	// What the names name is there, for who it belongs to.
	for path, item := range doc.Paths.Map() {
		at, _ := e.at(path)
		for _, at := range at {
			if item.Get == nil || strings.HasSuffix(path, "/live") {
				continue
			}
			if code, answer := s.exchange(c, http.MethodGet, at, s.key, "", ""); code != http.StatusOK {
				t.Errorf("GET %s by who it belongs to: %d %.200s, want 200", at, code, answer)
			}
		}
	}
	before := s.everything(c, doc)
	asked, named := 0, 0
	for path, item := range doc.Paths.Map() {
		if !strings.Contains(path, "{") {
			continue
		}
		paths, values := e.at(path)
		for method, op := range item.Operations() {
			status, skip := http.StatusNotFound, false
			for _, x := range isolated {
				if x.operations.MatchString(method + " " + path) {
					status, skip = x.status, x.status == 0
				}
			}
			if skip {
				continue
			}
			if len(paths) == 0 {
				t.Errorf("%s %s: nothing of the other's is asked for; add one to the estate, or say why not", method, path)
			}
			named++
			body, ok := e.bodies[method+" "+path]
			if !ok {
				body = example(op)
			}
			for i, at := range paths {
				for who, key := range attackers {
					for _, org := range []string{"", self.Organisation, e.org} {
						if org == self.Organisation && strings.HasPrefix(path, "/orgs/{org}") {
							continue // a header that names another than the path is a contradiction, and 400
						}
						want := status
						switch {
						case org == e.org:
							want = http.StatusNotFound // there is no such organisation, whatever is asked of it
						case who == "an API key" && forPeople.MatchString(method+" "+path):
							want = http.StatusForbidden // before anything is looked up
						}
						got := s.seen(c, method, at, key, org, body, values[i])
						unknown := make([]string, len(values[i]))
						for j, v := range values[i] {
							unknown[j] = decoy(v)
						}
						if strings.HasPrefix(path, "/orgs/{org}") && org != "" {
							org = unknown[0]
						}
						other := body
						for j, v := range values[i] {
							other = strings.ReplaceAll(other, `"`+v+`"`, `"`+unknown[j]+`"`)
						}
						none := s.seen(c, method, inserted(path, unknown), key, org, other, unknown)
						asked++
						if got.status != want {
							t.Errorf("%s %s in %q with %s: got %d %.200s, want %d", method, at, org, who, got.status, got.body, want)
						}
						if got != none {
							t.Errorf("%s %s in %q with %s: got %+v, and %+v for what nobody has", method, at, org, who, got, none)
						}
						if leak := e.leak(got.body); leak != "" && !strings.Contains(body, leak) {
							t.Errorf("%s %s in %q: the answer names %s: %.200s", method, at, org, leak, got.body)
						}
					}
				}
			}
		}
	}
	s.lists(c, doc, e, key)
	after := s.everything(c, doc)
	for path, was := range before {
		if after[path] != was {
			t.Errorf("%s: got %s after the attack, %s before", path, after[path], was)
		}
	}
	figure(t, "%d requests, to %d operations that name things, for another organisation's: nothing there, nothing changed", asked, named)
}

// lists asks for each list of the API, as a stranger in its own organisation, in
// the other's, and of the other's things: nothing of the other's is in any.
func (s *server) lists(c *http.Client, doc *openapi3.T, e *estate, key string) {
	s.t.Helper()
	open := map[string]*openapi3.Operation{}
	for path, item := range doc.Paths.Map() {
		if item.Get == nil || strings.Contains(path, "{") || public(item.Get) || strings.HasSuffix(path, "/live") {
			continue
		}
		if code, answer := s.exchange(c, http.MethodGet, path, key, e.org, ""); !own.MatchString(path) && code != http.StatusNotFound || e.leak(answer) != "" {
			s.t.Errorf("GET %s in the other's organisation: %d %.200s, want 404", path, code, answer)
		}
		code, answer := s.exchange(c, http.MethodGet, path, key, "", "")
		if leak := e.leak(answer); leak != "" || code >= 500 {
			s.t.Errorf("GET %s: %d, and it names %s: %.300s", path, code, leak, answer)
		}
		if code == http.StatusOK {
			open[path] = item.Get
		}
	}
	for path, op := range open { // after the lists were seen: the trail has what was asked for
		for _, p := range op.Parameters {
			for _, name := range []string{e.device, "SN-victim", e.org} {
				if p.Value.In != "query" {
					continue
				}
				at := path + "?" + p.Value.Name + "="
				got := s.seen(c, http.MethodGet, at+name, key, "", "", []string{name})
				none := s.seen(c, http.MethodGet, at+decoy(name), key, "", "", []string{decoy(name)})
				if got != none || e.leak(got.body) != "" {
					s.t.Errorf("GET %s%s: %+v, and %+v for what nobody has", at, name, got, none)
				}
				if p.Value.Name == "device" && got.status != http.StatusNotFound && strings.Contains(got.body, `"id"`) {
					s.t.Errorf("GET %s%s: %d %.200s, want an empty list, or 404", at, name, got.status, got.body)
				}
			}
		}
	}
}

// seen is an answer as far as it may tell one thing that is not there from
// another: without the names that were asked for, and the id of the request.
type seen struct {
	status  int
	headers string
	body    string
}

var requestIDs = regexp.MustCompile(`("request_id":")[^"]+|(ID )[0-9a-f-]{36}`)

func (s *server) seen(c *http.Client, method, path, key, org, body string, names []string) seen {
	s.t.Helper()
	code, header, answer := s.exchangeAll(c, method, path, key, org, body)
	for _, v := range names {
		answer = strings.ReplaceAll(answer, v, "NAME")
	}
	header.Del("Date")
	header.Del("X-Request-Id")
	header.Del("X-Men-Requestid")
	header.Del("Content-Length") // of the request's id, where it is the server's
	headers := fmt.Sprint(header)
	for _, v := range names {
		headers = strings.ReplaceAll(headers, v, "NAME")
	}
	return seen{code, headers, requestIDs.ReplaceAllString(answer, "$1$2")}
}

// decoy is a name of the same form that nobody has.
func decoy(name string) string {
	if len(name) < 4 {
		return name
	}
	b := []byte(name)
	i := len(b) - 3
	for strings.IndexByte("-_:.", b[i]) >= 0 {
		i--
	}
	switch b[i] {
	case 'f', 'z', 'F', 'Z', '9':
		b[i]--
	default:
		b[i]++
	}
	return string(b)
}

// leak returns a name of the estate that is in text, "" for none.
func (e *estate) leak(text string) string {
	for name := range e.all {
		if len(name) > 6 && strings.Contains(text, name) {
			return name
		}
	}
	return ""
}

// own are the operations that act on the caller itself, or on nothing that
// belongs to an organisation: there is nothing of others to reach there.
var own = regexp.MustCompile(`^/(api/v1/whoami|api/v1/session|console.*|keys.*|tokens|password.*|register.*|setup|invites.*|users/(profile|totp.*)|orgs(/search)?|oauth/token|openapi\.yaml|versions|\.well-known/.*|identify)?$`)

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
