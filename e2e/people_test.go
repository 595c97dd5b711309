//go:build e2e

package e2e_test

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/cookiejar"
	netmail "net/mail"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/emersion/go-smtp"
	"github.com/fxamacker/cbor/v2"
	"github.com/golang-jwt/jwt/v5"

	"keystead/coap"
	"keystead/internal/openidtest"
)

const (
	firstPassword = "correct horse battery one"
	nextPassword  = "correct horse battery two"
)

// postOffice is a mail server that keeps what it takes, with STARTTLS.
type postOffice struct {
	mu    sync.Mutex
	mails map[string][]string // texts, by who they are to
}

func (p *postOffice) NewSession(*smtp.Conn) (smtp.Session, error) { return &letter{office: p}, nil }

type letter struct {
	office *postOffice
	to     string
}

func (l *letter) Reset()        { l.to = "" }
func (l *letter) Logout() error { return nil }

func (l *letter) Mail(string, *smtp.MailOptions) error { return nil }

func (l *letter) Rcpt(to string, _ *smtp.RcptOptions) error {
	l.to = to
	return nil
}

func (l *letter) Data(r io.Reader) error {
	m, err := netmail.ReadMessage(r)
	if err != nil {
		return err
	}
	text, err := io.ReadAll(m.Body)
	if err != nil {
		return err
	}
	l.office.mu.Lock()
	defer l.office.mu.Unlock()
	l.office.mails[l.to] = append(l.office.mails[l.to], strings.ReplaceAll(strings.ReplaceAll(string(text), "=\r\n", ""), "=3D", "="))
	return nil
}

// key waits for a mail to an address that has a link to a page, and returns what
// follows the # in it.
func (p *postOffice) key(s *server, to, page string) string {
	s.t.Helper()
	link := regexp.MustCompile(`/` + page + `#(\S+)`)
	key := ""
	s.eventually("a mail to "+to, func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		for _, text := range p.mails[to] {
			if m := link.FindStringSubmatch(text); m != nil {
				key = m[1]
			}
		}
		return key != ""
	})
	s.secret(key)
	return key
}

func (p *postOffice) count(to string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.mails[to])
}

// openOffice starts a mail server and returns it with the configuration that uses it.
func openOffice(t *testing.T) (*postOffice, []string) {
	t.Helper()
	dir := t.TempDir()
	s := &server{t: t, dir: dir}
	s.must("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1", "-subj", "/CN=localhost",
		"-addext", "subjectAltName=DNS:localhost", "-keyout", "mail.key", "-out", "mail.pem")
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "mail.pem"), filepath.Join(dir, "mail.key"))
	if err != nil {
		t.Fatal(err)
	}
	p := &postOffice{mails: map[string][]string{}}
	m := smtp.NewServer(p)
	m.Domain, m.TLSConfig = "localhost", &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	go m.Serve(l)
	t.Cleanup(func() { m.Close() })
	_, port, _ := net.SplitHostPort(l.Addr().String())
	return p, []string{"mail.server=localhost:" + port, "mail.from=Keystead <keystead@example.org>", "mail.ca_file=" + filepath.Join(dir, "mail.pem")}
}

// logIn returns a login key.
func (s *server) logIn(c *http.Client, email, password string) string {
	s.t.Helper()
	s.secret(password)
	var login struct{ Token string }
	s.must2xx(c, http.MethodPost, "/tokens", "", fmt.Sprintf(`{"email":%q,"password":%q}`, email, password), &login)
	s.secret(login.Token)
	return login.Token
}

// People come in by mails alone: an invite, a registration that is verified, a
// forgotten password.
func TestPeopleAndTheirMails(t *testing.T) {
	t.Parallel()
	office, conf := openOffice(t)
	s := start(t, append(append(conf, "accounts.self_registration=true"), fast...)...)
	c := s.https()
	s.must2xx(c, http.MethodPost, "/invites", s.key, `{"email":"ann@example.org"}`, nil)
	invite := office.key(s, "ann@example.org", "invite")
	s.must2xx(c, http.MethodPost, "/register/invite/"+invite, "", fmt.Sprintf(`{"user":{"email":"ann@example.org","password":%q}}`, firstPassword), nil)
	login := s.logIn(c, "ann@example.org", firstPassword)

	s.must2xx(c, http.MethodPost, "/register", "", fmt.Sprintf(`{"user":{"email":"bob@example.org","password":%q}}`, firstPassword), nil)
	if code, answer := s.exchange(c, http.MethodPost, "/tokens", "", "", fmt.Sprintf(`{"email":"bob@example.org","password":%q}`, firstPassword)); code != http.StatusUnauthorized {
		t.Errorf("a login before the address is verified: %d %s", code, answer)
	}
	s.must2xx(c, http.MethodPost, "/register/verify?token="+office.key(s, "bob@example.org", "verify"), "", "", nil)
	s.logIn(c, "bob@example.org", firstPassword)

	// A forgotten password. Whether there is an account does not show.
	var api struct{ Value string }
	s.must2xx(c, http.MethodPost, "/keys", login, `{"type":2}`, &api)
	s.secret(api.Value)
	var answers [2]string
	for i, email := range []string{"ann@example.org", "nobody@example.org"} {
		code, answer := s.exchange(c, http.MethodPost, "/password/reset-request", "", "", fmt.Sprintf(`{"email":%q,"redirect_path":".evil.example/x"}`, email))
		answers[i] = fmt.Sprint(code, answer)
	}
	if answers[0] != answers[1] || !strings.HasPrefix(answers[0], "201") {
		t.Errorf("a known address is answered %s, an unknown one %s", answers[0], answers[1])
	}
	recovery := office.key(s, "ann@example.org", "reset")
	if n := office.count("nobody@example.org"); n != 0 {
		t.Errorf("an address without an account got %d mails", n)
	}
	if code, _ := s.exchange(c, http.MethodGet, "/users/profile", recovery, "", ""); code != http.StatusUnauthorized {
		t.Errorf("a recovery key as a bearer: %d, want 401", code)
	}
	var worked sync.Map
	var group sync.WaitGroup
	for i := range 20 {
		group.Go(func() {
			body := fmt.Sprintf(`{"token":%q,"password":%q,"confirm_password":%q}`, recovery, nextPassword, nextPassword)
			req, err := http.NewRequestWithContext(t.Context(), http.MethodPut, s.url("/password/reset"), strings.NewReader(body))
			if err != nil {
				t.Error(err)
				return
			}
			req.Header.Set("Content-Type", "application/json")
			res, err := c.Do(req)
			if err != nil {
				t.Logf("a try that a busy machine did not come to: %v", err)
				return
			}
			res.Body.Close()
			switch res.StatusCode {
			case http.StatusCreated:
				worked.Store(i, true)
			case http.StatusUnauthorized, http.StatusTooManyRequests:
			default:
				t.Errorf("a recovery key under 20 tries: %d", res.StatusCode)
			}
		})
	}
	group.Wait()
	n := 0
	worked.Range(func(any, any) bool { n++; return true })
	if n != 1 {
		t.Errorf("a recovery key worked %d times under 20 tries, want once", n)
	}
	if code, _ := s.exchange(c, http.MethodGet, "/users/profile", login, "", ""); code != http.StatusUnauthorized {
		t.Errorf("a login key from before the reset: %d, want 401", code)
	}
	login = s.logIn(c, "ann@example.org", nextPassword)
	s.eventually("the mail that says so", func() bool { return office.count("ann@example.org") >= 3 })

	// A disabled user's every key is dead on the next request; the last administrator stays.
	var me, root struct{ ID string }
	s.must2xx(c, http.MethodGet, "/users/profile", login, "", &me)
	s.must2xx(c, http.MethodGet, "/users/profile", api.Value, "", nil)
	s.must2xx(c, http.MethodPost, "/users/"+me.ID+"/disable", s.key, "", nil)
	for name, key := range map[string]string{"login": login, "API": api.Value} {
		if code, _ := s.exchange(c, http.MethodGet, "/users/profile", key, "", ""); code != http.StatusUnauthorized {
			t.Errorf("the %s key of a disabled user: %d, want 401", name, code)
		}
	}
	if code, _ := s.exchange(c, http.MethodPost, "/tokens", "", "", fmt.Sprintf(`{"email":"ann@example.org","password":%q}`, nextPassword)); code != http.StatusUnauthorized {
		t.Errorf("a disabled user logs in: %d, want 401", code)
	}
	s.must2xx(c, http.MethodGet, "/users/profile", s.key, "", &root)
	for _, op := range []string{"POST /users/" + root.ID + "/disable", "DELETE /users/" + root.ID + "/platform", "DELETE /users/" + root.ID} {
		method, path, _ := strings.Cut(op, " ")
		if code, answer := s.exchange(c, method, path, s.key, "", ""); code != http.StatusConflict {
			t.Errorf("%s of the last administrator: %d %s, want 409", op, code, answer)
		}
	}
	s.must2xx(c, http.MethodGet, "/users/profile", s.key, "", nil)
	s.stop()
	b, err := os.ReadFile(filepath.Join(s.data, "keystead.db"))
	if err != nil {
		t.Fatal(err)
	}
	s.scan("the database", b)
}

// The first administrator comes in by the link of the data directory, once, and
// others by command.
func TestTheFirstAdministrator(t *testing.T) {
	t.Parallel()
	s := start(t, fast...)
	c := s.https()
	file := filepath.Join(s.data, "setup-link")
	info, err := os.Stat(file)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("the link's file: %v %v, want it for its owner alone", info, err)
	}
	link, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	_, key, _ := strings.Cut(strings.TrimSpace(string(link)), "#")
	s.secret(key)
	var worked, refused int
	var mu sync.Mutex
	var group sync.WaitGroup
	for i := range 5 {
		group.Go(func() {
			code, _ := s.exchange(c, http.MethodPost, "/setup", "", "", fmt.Sprintf(`{"token":%q,"email":"root%d@example.org","password":%q}`, key, i, firstPassword))
			mu.Lock()
			defer mu.Unlock()
			if code == http.StatusCreated {
				worked++
			} else {
				refused++
			}
		})
	}
	group.Wait()
	if worked != 1 || refused != 4 {
		t.Errorf("the link worked %d times under 5 tries, want once", worked)
	}
	var root struct{ Email, Role string }
	s.must2xx(c, http.MethodGet, "/users/profile", s.key, "", &root)
	if root.Role != "root" {
		t.Errorf("the first administrator is %+v", root)
	}
	s.logIn(c, root.Email, firstPassword)
	if code, _ := s.exchange(c, http.MethodPost, "/setup", "", "", fmt.Sprintf(`{"token":%q,"email":"eve@example.org","password":%q}`, key, firstPassword)); code != http.StatusNotFound {
		t.Errorf("the link again: %d, want 404", code)
	}
	if err := os.WriteFile(s.path("password"), []byte(nextPassword+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.cli("user", "create", "second@example.org", "--platform", "--password-file", s.path("password"))
	second := s.logIn(c, "second@example.org", nextPassword)
	s.must2xx(c, http.MethodGet, "/users", second, "", nil)
	if out := s.cli("user", "recover", "second@example.org"); !strings.Contains(out, "/reset#keystead_recovery_") {
		t.Errorf("user recover prints %s, want a link", out)
	}
	s.stop()
	s.start()
	if _, err := os.Stat(file); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after a restart of a server that is set up: %v, want no link", err)
	}
}

// The only administrator has lost the second factor, the recovery codes and every key but
// the password: whoever runs the machine lets it in again, on the stopped server only,
// after a look at what that would do, and the trail tells.
func TestTheOnlyAdministratorLosesTheSecondFactor(t *testing.T) {
	t.Parallel()
	s := start(t, fast...)
	c := s.https()
	s.secret(firstPassword)
	_, key, _ := strings.Cut(strings.TrimSpace(readText(t, filepath.Join(s.data, "setup-link"))), "#")
	s.must2xx(c, http.MethodPost, "/setup", "", fmt.Sprintf(`{"token":%q,"email":"root@example.org","password":%q}`, key, firstPassword), nil)
	login := s.logIn(c, "root@example.org", firstPassword)
	var app struct{ Secret string }
	s.must2xx(c, http.MethodPost, "/users/totp", login, "", &app)
	s.must2xx(c, http.MethodPost, "/users/totp/confirm", login, `{"code":"`+totp(t, app.Secret, time.Now())+`"}`, nil)
	attempt := fmt.Sprintf(`{"email":"root@example.org","password":%q}`, firstPassword)
	refused := func(when string) {
		t.Helper()
		if code, body := s.exchange(c, http.MethodPost, "/tokens", "", "", attempt); code != http.StatusUnauthorized || !strings.Contains(body, "second factor") {
			t.Errorf("%s: the password alone: %d %s, want to be asked for a second factor", when, code, body)
		}
	}
	refused("set up")
	reset := []string{"user", "reset-second-factor", "root@example.org", "--stopped"}
	if r := s.cliFails(1, append(reset, "--yes")...); !strings.Contains(r.err, "stop the server") {
		t.Errorf("while it runs: %s", r.all())
	}
	s.cliFails(2, "user", "reset-second-factor", "root@example.org", "--yes")
	s.stop()
	if r := s.run(bin, append([]string{"--data", s.data}, reset...)...); r.code != 0 || !strings.Contains(r.all(), "10 recovery codes; --yes takes them away") {
		t.Errorf("a dry run: %d %s", r.code, r.all())
	}
	s.cliFails(5, "user", "reset-second-factor", "nobody@example.org", "--stopped", "--yes")
	if r := s.run(bin, append([]string{"--data", s.path("nothing")}, reset...)...); r.code != 5 {
		t.Errorf("without a database: %d %s, want 5", r.code, r.all())
	}
	if _, err := os.Stat(s.path("nothing")); err == nil {
		t.Error("it made a data directory")
	}
	s.start()
	c = s.https()
	refused("after a dry run")
	s.stop()
	s.cli(append(reset, "--yes")...)
	s.cliFails(6, append(reset, "--yes")...)
	s.start()
	c = s.https()
	if code, _ := s.exchange(c, http.MethodGet, "/users/profile", login, "", ""); code != http.StatusUnauthorized {
		t.Errorf("the login of before: %d, want 401", code)
	}
	s.logIn(c, "root@example.org", firstPassword)
	if trail := s.cli("audit", "export"); !strings.Contains(trail, "second_factor.reset") || !strings.Contains(trail, "a command on the stopped server") {
		t.Error("the trail does not say that the second factor was reset, and how")
	}
	s.cli("audit", "verify")
}

// surfer is a browser's part of HTTP: cookies, and no redirects followed.
func (s *server) surfer() *http.Client {
	s.t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		s.t.Fatal(err)
	}
	c := s.https()
	c.Jar = jar
	c.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return c
}

// form sends a form and returns the answer's status, where it leads, and its body.
func (s *server) form(c *http.Client, path string, v url.Values) (int, string, string) {
	s.t.Helper()
	var res *http.Response
	var err error
	if v == nil {
		res, err = c.Get(s.url(path))
	} else {
		res, err = c.PostForm(s.url(path), v)
	}
	if err != nil {
		s.t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return res.StatusCode, res.Header.Get("Location"), string(b)
}

// A user lets an application enrol a device: the code goes from the consent page
// to the device, which signs up with it over CoAP, and its session is that device's.
func TestAnOAuthCodeSignsADeviceUp(t *testing.T) {
	t.Parallel()
	const di, redirect = "b5a2a42e-b285-42f1-a36b-034c8fc8efd5", "https://app.example/back"
	s := prepare(t, append([]string{"coap.ocf.enabled=true", "coap.ocf.client_certificate_required=false", "coap.ocf.device_id_claim=device_id"}, fast...)...)
	s.configure("coap:\n  ocf:\n    providers: [{name: keystead}]\n")
	s.start()
	c := s.https()
	s.secret(firstPassword)
	s.must2xx(c, http.MethodPost, "/users", s.key, fmt.Sprintf(`{"email":"ann@example.org","password":%q}`, firstPassword), nil)
	var me who
	s.must2xx(c, http.MethodGet, "/api/v1/whoami", s.key, "", &me)
	s.must2xx(c, http.MethodPost, "/orgs/"+me.Organisation+"/memberships", s.key, `{"org_memberships":[{"email":"ann@example.org","role":"editor"}]}`, nil)
	var app struct{ ID, Secret string }
	s.must2xx(c, http.MethodPost, "/oauth/clients", s.key, `{"name":"phone","public":true,"devices":true,"redirect_uris":["`+redirect+`"]}`, &app)

	verifier := strings.Repeat("verifier-of-the-app.", 3)
	sum := sha256.Sum256([]byte(verifier))
	q := url.Values{
		"client_id": {app.ID}, "redirect_uri": {redirect}, "response_type": {"code"}, "state": {"s"}, "device_id": {di},
		"code_challenge": {base64.RawURLEncoding.EncodeToString(sum[:])}, "code_challenge_method": {"S256"},
	}
	b := s.surfer()
	authorize := func(q url.Values) string {
		t.Helper()
		code, to, page := s.form(b, "/oauth/authorize", url.Values{"decision": {"allow"}, "query": {q.Encode()}})
		back, err := url.Parse(to)
		if err != nil || code != http.StatusSeeOther || back.Query().Get("code") == "" {
			t.Fatalf("allowed: %d to %s: %s", code, to, page)
		}
		return back.Query().Get("code")
	}
	if code, to, page := s.form(b, "/oauth/login", url.Values{"email": {"ann@example.org"}, "password": {firstPassword}, "next": {q.Encode()}}); code != http.StatusSeeOther {
		t.Fatalf("login: %d to %s: %s", code, to, page)
	}
	if _, _, page := s.form(b, "/oauth/authorize?"+q.Encode(), nil); !strings.Contains(page, di) || !strings.Contains(page, "phone") {
		t.Errorf("the consent page names neither device nor application: %s", page)
	}
	code := authorize(q)
	s.secret(code)

	conn, err := tls.Dial("tcp", s.at.CoAPTCP, s.tls())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	up := s.ocf(conn, coap.POST, "/oic/sec/account", map[string]any{"di": di, "accesstoken": code, "authprovider": "keystead"}, coap.Changed)
	access, _ := up["accesstoken"].(string)
	s.secret(access)
	s.ocf(conn, coap.POST, "/oic/sec/session", map[string]any{"di": di, "uid": up["uid"], "accesstoken": access, "login": true}, coap.Changed)
	var device struct{ ID string }
	s.must2xx(c, http.MethodGet, "/api/v1/devices/"+di, s.key, "", &device)
	if device.ID == "" {
		t.Fatal("the device has no record")
	}
	if got := s.ocf(conn, coap.GET, "/whoami", nil, coap.Content); got["device"] != device.ID {
		t.Errorf("the session is %v's, want the device's of the claim, %s", got, device.ID)
	}
	var sessions struct {
		Items []struct {
			Device   string
			SignedIn bool `json:"signed_in"`
		}
	}
	s.must2xx(c, http.MethodGet, "/api/v1/sessions", s.key, "", &sessions)
	if len(sessions.Items) != 1 || sessions.Items[0].Device != device.ID || !sessions.Items[0].SignedIn {
		t.Errorf("the sessions are %+v, want one, signed in as the device", sessions.Items)
	}

	// The code works once. A code for this device signs up no other: whatever the
	// device says it is, it becomes the device of the claim.
	other, err := tls.Dial("tcp", s.at.CoAPTCP, s.tls())
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	const liar = "11111111-b285-42f1-a36b-034c8fc8efd5"
	up = s.ocf(other, coap.POST, "/oic/sec/account", map[string]any{"di": liar, "accesstoken": authorize(q), "authprovider": "keystead"}, coap.Changed)
	s.ocf(other, coap.POST, "/oic/sec/session", map[string]any{"di": liar, "uid": up["uid"], "accesstoken": up["accesstoken"], "login": true}, coap.Changed)
	if got := s.ocf(other, coap.GET, "/whoami", nil, coap.Content); got["device"] != device.ID {
		t.Errorf("a device that claims to be another is %v, want the device of the claim, %s", got, device.ID)
	}
	if code, answer := s.exchange(c, http.MethodGet, "/api/v1/devices/"+liar, s.key, "", ""); code != http.StatusNotFound {
		t.Errorf("the device it claimed to be: %d %s, want none", code, answer)
	}
	again, err := tls.Dial("tcp", s.at.CoAPTCP, s.tls())
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	s.ocf(again, coap.POST, "/oic/sec/account", map[string]any{"di": di, "accesstoken": code, "authprovider": "keystead"}, coap.ServiceUnavailable)
}

// configure gives the server a configuration file.
func (s *server) configure(text string) {
	s.t.Helper()
	if err := os.WriteFile(s.path("keystead.yaml"), []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
	s.args = append(s.args, "--config", s.path("keystead.yaml"))
}

// ocf sends one request with a body of CBOR, and reads the answer's.
func (s *server) ocf(conn *tls.Conn, method coap.Code, path string, body map[string]any, want coap.Code) (v map[string]any) {
	s.t.Helper()
	m := coap.Message{Code: method, Token: []byte{1}, Options: coap.Options{}.AddPath(path)}
	if body != nil {
		var err error
		if m.Payload, err = cbor.Marshal(body); err != nil {
			s.t.Fatal(err)
		}
	}
	if _, err := conn.Write(m.AppendStream(nil)); err != nil {
		s.t.Fatal(err)
	}
	_ = conn.SetReadDeadline(time.Now().Add(patience))
	var buf []byte
	for {
		got, n, err := coap.ParseStream(buf, 1<<16)
		if err != nil {
			s.t.Fatal(err)
		}
		if n == 0 {
			more := make([]byte, 4096)
			k, err := conn.Read(more)
			if err != nil {
				s.t.Fatalf("%v %s: %v", method, path, err)
			}
			buf = append(buf, more[:k]...)
			continue
		}
		if buf = buf[n:]; !got.Code.IsResponse() {
			continue
		}
		if got.Code != want {
			s.t.Fatalf("%v %s: got %v %s, want %v", method, path, got.Code, got.Payload, want)
		}
		if want.Class() == 2 && len(got.Payload) > 0 {
			if err := cbor.Unmarshal(got.Payload, &v); err != nil {
				s.t.Fatal(err)
			}
		}
		return v
	}
}

// People log in through an outside OpenID provider, which changes its keys, names another
// audience, and hangs.
func TestLoginThroughAnOutsideProvider(t *testing.T) {
	t.Parallel()
	p := openidtest.New(t)
	s := prepare(t, fast...)
	s.configure("accounts:\n  oidc: [{name: corp, issuer: \"" + p.URL + "\", client_id: keystead, create: true}]\n")
	s.start()
	logIn := func() (int, string) {
		t.Helper()
		b := s.surfer()
		b.Timeout = patience
		code, to, page := s.form(b, "/users/oauth/corp", nil)
		at, err := url.Parse(to)
		if err != nil || code != http.StatusSeeOther || at.Query().Get("code_challenge_method") != "S256" {
			t.Fatalf("begin: %d to %s: %s", code, to, page)
		}
		p.Expect(at.Query().Get("nonce"))
		code, _, _ = s.form(b, "/users/oauth/corp/callback?code=good&state="+at.Query().Get("state"), nil)
		if code != http.StatusSeeOther {
			return code, ""
		}
		_, _, page = s.form(b, "/account", nil)
		return code, page
	}
	if code, page := logIn(); code != http.StatusSeeOther || !strings.Contains(page, "Ann Outside") {
		t.Fatalf("login: %d, and the account is %s", code, page)
	}
	p.Rotate(t)
	if code, page := logIn(); code != http.StatusSeeOther || !strings.Contains(page, "Ann Outside") {
		t.Errorf("login after the provider changed its keys: %d", code)
	}
	p.Claim(jwt.SigningMethodES256, jwt.MapClaims{"aud": "another"})
	if code, _ := logIn(); code != http.StatusUnauthorized {
		t.Errorf("login with a token for another audience: %d, want 401", code)
	}
	hang := make(chan struct{})
	p.Claim(jwt.SigningMethodES256, nil)
	p.Hang(hang)
	done := make(chan int, 1)
	go func() {
		code, _ := logIn()
		done <- code
	}()
	s.must2xx(s.https(), http.MethodGet, "/users/profile", s.key, "", nil) // everybody else is served
	if code := <-done; code != http.StatusServiceUnavailable {
		t.Errorf("login while the provider hangs: %d, want 503", code)
	}
	close(hang)
	p.Hang(nil)
	if code, _ := logIn(); code != http.StatusSeeOther {
		t.Errorf("login after the provider hung: %d", code)
	}
	if bytes.Contains([]byte(s.logs.String()), []byte(p.URL+"/token?")) {
		t.Error("the log has a query of the provider's")
	}
}
