//go:build e2e

package e2e_test

import (
	"bufio"
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha1" // what authenticator apps compute (RFC 6238)
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base32"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"keystead/client"
	"keystead/internal/passkeytest"
)

// handedOut is every secret that was handed out or taken in, by what it is.
type handedOut struct {
	t    *testing.T
	list []handed
}

type handed struct {
	what  string
	forms [][]byte
}

// keep notes a secret in each form it could be written in.
func (h *handedOut) keep(what string, secret []byte) {
	h.t.Helper()
	if len(secret) < 8 {
		h.t.Fatalf("%s is too short to be looked for: %d bytes", what, len(secret))
	}
	forms := [][]byte{
		bytes.Clone(secret), []byte(hex.EncodeToString(secret)), []byte(strings.ToUpper(hex.EncodeToString(secret))),
		[]byte(base64.RawStdEncoding.EncodeToString(secret)), []byte(base64.RawURLEncoding.EncodeToString(secret)),
	}
	h.list = append(h.list, handed{what, forms})
}

func (h *handedOut) text(what, secret string) string {
	h.t.Helper()
	h.keep(what, []byte(secret))
	return secret
}

// in returns what of the secrets is in b, each once. It goes over b once, since
// there is much of it: at most places two bytes say that nothing begins there.
func (h *handedOut) in(b []byte) (found []string) {
	begins := map[uint16][]string{} // what a form that begins so is, and the form
	for _, s := range h.list {
		for i, form := range s.forms {
			what := s.what + " as " + []string{"it is", "hex", "HEX", "base64", "base64url"}[i]
			begins[binary.LittleEndian.Uint16(form)] = append(begins[binary.LittleEndian.Uint16(form)], what, string(form))
		}
	}
	var may [1 << 16]bool
	for two := range begins {
		may[two] = true
	}
	for i := range len(b) - 1 {
		two := binary.LittleEndian.Uint16(b[i:])
		if !may[two] {
			continue
		}
		for list := begins[two]; len(list) > 0; list = list[2:] {
			if what, form := list[0], list[1]; len(b)-i >= len(form) && string(b[i:i+len(form)]) == form && !slices.Contains(found, what) {
				found = append(found, what)
			}
		}
	}
	return found
}

// inUse are the secrets that the memory of a server cannot be without while it
// serves, and why; SECURITY.md lists them.
var inUse = map[string]string{
	"the private key of a CA":                      "the CA is in service and signs with it",
	"the master key, decoded":                      "what is sealed is opened with what it wraps",
	"what posts to a message sink are signed with": "the sink is in service",
	"the password for a broker of messages":        "the sink is in service",
}

// totp is the code of a secret now (RFC 6238).
func totp(t *testing.T, secret string, now time.Time) string {
	t.Helper()
	key, err := base32.StdEncoding.WithPadding(base32.NoPadding).DecodeString(secret)
	if err != nil {
		t.Fatal(err)
	}
	m := hmac.New(sha1.New, key)
	_ = binary.Write(m, binary.BigEndian, now.Unix()/30)
	sum := m.Sum(nil)
	at := sum[len(sum)-1] & 15
	return fmt.Sprintf("%06d", binary.BigEndian.Uint32(sum[at:])&0x7fffffff%1_000_000)
}

// TestNoSecretIsLeftAnywhere has a server make and take every kind of secret there
// is, and then looks for each in all that it has written, and in its memory.
func TestNoSecretIsLeftAnywhere(t *testing.T) {
	t.Parallel()
	s := prepare(t, append(append([]string{"log.level=debug", "coap.anonymous=true"}, named...), fast...)...)
	h := &handedOut{t: t}
	s.secretSinks(h)
	// As deploy/keystead.service and the image have it: what is let go of is overwritten.
	s.launch("env", append([]string{"GODEBUG=clobberfree=1", bin, "serve", "--data", s.data}, s.args...)...)
	s.ready()
	c := s.https()
	s.useAccounts(h, c)
	for _, pid := range s.children() { // which hash passwords
		s.eventually("the memory of a process that hashes to have no secret", func() bool { return s.inMemory(h, pid) == nil })
	}
	s.usePasskeys(h, c)
	s.useOAuth(h, c)
	s.useDevices(h, c)
	s.useBootstrap(h)
	c.CloseIdleConnections()
	s.admin().Close()

	// What it has written.
	backup := s.cli("backup", "create", "-o", "json")
	if !strings.Contains(backup, "{") {
		t.Fatalf("backup: %s", backup)
	}
	files := 0
	err := filepath.WalkDir(s.data, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() || d.Name() == "admin.json" || d.Name() == "master.key" { // which are there to hold secrets
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		files++
		if found := h.in(b); found != nil {
			t.Errorf("%s has: %s", path, strings.Join(found, ", "))
		}
		return nil
	})
	if err != nil || files < 4 {
		t.Errorf("%d files of the data directory were looked at, %v", files, err)
	}
	written := map[string]string{"the log": s.logs.String(), "standard output": s.out.String(), "the export of the trail": s.cli("audit", "export")}
	for name, path := range map[string]string{"the metrics": "/metrics", "readyz": "/readyz"} {
		res, err := http.Get("http://" + s.at.Ops + path)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(res.Body)
		res.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		written[name] = string(b)
	}
	for name, text := range written {
		if len(text) == 0 && name != "standard output" {
			t.Errorf("%s is empty", name)
		}
		if found := h.in([]byte(text)); found != nil {
			t.Errorf("%s has: %s", name, strings.Join(found, ", "))
		}
	}

	// Its memory, when what it let go of has been collected: what a connection used that
	// was closed only now is garbage later.
	collections := func() float64 { return s.metric("go_gc_duration_seconds_count") }
	var left []string
	for range 5 {
		from := collections()
		s.eventually("three collections of garbage", func() bool { return collections() >= from+3 })
		left = slices.DeleteFunc(s.inMemory(h, s.cmd.Process.Pid), func(f string) bool {
			what, _, _ := strings.Cut(f, " as ")
			return inUse[what] != ""
		})
		if len(left) == 0 {
			return
		}
	}
	t.Errorf("its memory has %s", strings.Join(left, ", "))
}

// inMemory returns which secrets are in the writable memory of a process, which is
// what a core has that the files have not.
func (s *server) inMemory(h *handedOut, pid int) (found []string) {
	s.t.Helper()
	proc := fmt.Sprintf("/proc/%d/", pid)
	maps, err := os.Open(proc + "maps")
	if err != nil {
		s.t.Fatal(err)
	}
	defer maps.Close()
	mem, err := os.Open(proc + "mem")
	if err != nil {
		s.t.Fatal(err)
	}
	defer mem.Close()
	looked := 0
	for lines := bufio.NewScanner(maps); lines.Scan(); {
		var from, to int64
		var mode string
		if _, err := fmt.Sscanf(lines.Text(), "%x-%x %s", &from, &to, &mode); err != nil || !strings.HasPrefix(mode, "rw") {
			continue
		}
		b := make([]byte, to-from)
		n, _ := mem.ReadAt(b, from) // some mappings of the kernel cannot be read
		looked += n
		for _, f := range h.in(b[:n]) {
			if !slices.Contains(found, f) {
				found = append(found, f)
			}
		}
	}
	if looked < 1<<20 {
		s.t.Fatalf("only %d bytes of memory were read", looked)
	}
	return found
}

func (s *server) useAccounts(h *handedOut, c *http.Client) {
	t := s.t
	var admin struct {
		Access struct{ Key, Secret string } `json:"access_key"`
	}
	b, err := os.ReadFile(filepath.Join(s.data, "admin.json"))
	if err != nil || json.Unmarshal(b, &admin) != nil {
		t.Fatalf("admin.json: %v", err)
	}
	h.text("the first API key", s.key)
	h.text("the platform's access key", admin.Access.Secret)

	first, second := "correct horse battery staple nine", "seventeen quiet otters swim"
	h.text("a password", first)
	h.text("a password after recovery", second)
	s.must2xx(c, "POST", "/users", s.key, `{"email":"ann@example.org","password":"`+first+`"}`, nil)
	var users struct{ Users []struct{ ID, Email string } }
	s.must2xx(c, "GET", "/users?email=ann@example.org", s.key, "", &users)
	if len(users.Users) != 1 {
		t.Fatalf("users: %v", users)
	}
	var recovery struct{ Value string }
	s.must2xx(c, "POST", "/users/"+users.Users[0].ID+"/recovery-key", s.key, "", &recovery)
	h.text("a recovery key", recovery.Value)
	s.must2xx(c, "PUT", "/password/reset", "", fmt.Sprintf(`{"token":%q,"password":%q,"confirm_password":%q}`, recovery.Value, second, second), nil)
	var login struct{ Token string }
	s.must2xx(c, "POST", "/tokens", "", fmt.Sprintf(`{"email":"ann@example.org","password":%q}`, second), &login)
	h.text("a login key", login.Token)
	s.must2xx(c, "GET", "/users/profile", login.Token, "", nil)
	if code, _ := s.exchange(c, "POST", "/tokens", "", "", `{"email":"ann@example.org","password":"`+h.text("a wrong password", "not the otters at all")+`"}`); code != 401 {
		t.Errorf("a wrong password: %d", code)
	}
	var api struct{ Value string }
	s.must2xx(c, "POST", "/keys", login.Token, `{"type":2,"name":"script"}`, &api)
	h.text("an API key", api.Value)
	s.must2xx(c, "GET", "/keys", api.Value, "", nil)
	var begun struct{ Secret string }
	s.must2xx(c, "POST", "/users/totp", login.Token, "", &begun)
	h.text("a TOTP secret", begun.Secret)
	var codes struct {
		Codes []string `json:"recovery_codes"`
	}
	s.must2xx(c, "POST", "/users/totp/confirm", login.Token, `{"code":"`+totp(t, begun.Secret, time.Now())+`"}`, &codes)
	for _, code := range codes.Codes {
		h.text("a recovery code of TOTP", code)
	}
	s.must2xx(c, "POST", "/tokens", "", fmt.Sprintf(`{"email":"ann@example.org","password":%q,"code":%q}`, second, codes.Codes[0]), &login)
	h.text("a login key with a second factor", login.Token)
	var invite struct{ Link string }
	s.must2xx(c, "POST", "/invites", s.key, `{"email":"bob@example.org"}`, &invite)
	_, key, _ := strings.Cut(invite.Link, "#")
	h.text("an invite", key)
	s.must2xx(c, "POST", "/orgs", login.Token, `{"name":"acme"}`, nil)
}

func (s *server) useOAuth(h *handedOut, c *http.Client) {
	t := s.t
	form := func(path, basic string, v url.Values, out any) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.url(path), strings.NewReader(v.Encode()))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		if user, password, ok := strings.Cut(basic, ":"); ok {
			req.SetBasicAuth(user, password)
		}
		res, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		if err != nil || res.StatusCode/100 != 2 || json.Unmarshal(b, out) != nil {
			t.Fatalf("%s: %d %s, %v", path, res.StatusCode, b, err)
		}
	}
	type tokens struct {
		Access  string `json:"access_token"`
		Refresh string `json:"refresh_token"`
	}
	var app struct{ ID, Secret string }
	s.must2xx(c, "POST", "/oauth/clients", s.key, `{"name":"app","redirect_uris":["https://app.example/back"],"role":"viewer"}`, &app)
	h.text("the secret of an OAuth client", app.Secret)
	var got tokens
	form("/oauth/token", app.ID+":"+app.Secret, url.Values{"grant_type": {"client_credentials"}}, &got)
	h.text("an access token of a client", got.Access)

	password := h.text("the password of a browser's login", "nine careful badgers dig")
	s.must2xx(c, "POST", "/users", s.key, `{"email":"eve@example.org","password":"`+password+`"}`, nil)
	if err := s.admin().SetMember(t.Context(), s.whoami(s.cli("whoami", "-o", "json")).Organisation, "eve@example.org", "viewer", true); err != nil {
		t.Fatal(err)
	}
	var login struct{ Token string }
	s.must2xx(c, "POST", "/tokens", "", `{"email":"eve@example.org","password":"`+password+`"}`, &login)
	h.text("another login key", login.Token)
	verifier := h.text("a PKCE verifier", "a verifier of at least forty-three characters")
	sum := sha256.Sum256([]byte(verifier))
	q := url.Values{
		"client_id": {app.ID}, "redirect_uri": {"https://app.example/back"}, "response_type": {"code"}, "state": {"xyz"}, "scope": {"openid"},
		"code_challenge": {base64.RawURLEncoding.EncodeToString(sum[:])}, "code_challenge_method": {"S256"},
	}
	browser := &http.Client{Transport: c.Transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	page := func(path string, v url.Values, cookie string) http.Header {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.url(path), strings.NewReader(v.Encode()))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		req.Header.Set("Cookie", cookie)
		res, err := browser.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		if res.StatusCode != http.StatusSeeOther {
			b, _ := io.ReadAll(res.Body)
			t.Fatalf("%s: %d %s", path, res.StatusCode, b)
		}
		return res.Header
	}
	set := page("/oauth/login", url.Values{"email": {"eve@example.org"}, "password": {password}, "next": {q.Encode()}}, "").Get("Set-Cookie")
	cookie, _, _ := strings.Cut(set, ";")
	_, session, _ := strings.Cut(cookie, "=")
	h.text("a browser's session", session)
	back, err := url.Parse(page("/oauth/authorize", url.Values{"decision": {"allow"}, "query": {q.Encode()}}, cookie).Get("Location"))
	if err != nil || back.Query().Get("code") == "" {
		t.Fatalf("no code: %v, %v", back, err)
	}
	code := h.text("an authorization code", back.Query().Get("code"))
	form("/oauth/token", app.ID+":"+app.Secret, url.Values{"grant_type": {"authorization_code"}, "code": {code}, "redirect_uri": {"https://app.example/back"}, "code_verifier": {verifier}}, &got)
	h.text("an access token", got.Access)
	s.must2xx(c, "GET", "/oauth/userinfo", got.Access, "", nil)
	if got.Refresh != "" {
		h.text("a refresh token", got.Refresh)
	}

	// CreatorDev's way.
	var key struct{ Key, Secret string }
	s.must2xx(c, "POST", "/accesskeys", s.key, `{"Name":"fleet"}`, &key)
	h.text("an access key's secret", key.Secret)
	form("/oauth/token", "", url.Values{"grant_type": {"password"}, "username": {key.Key}, "password": {key.Secret}}, &got)
	h.text("an access token of CreatorDev's", got.Access)
	h.text("a refresh token of CreatorDev's", got.Refresh)
	s.must2xx(c, "GET", "/clients", got.Access, "", nil)
}

func (s *server) useDevices(h *handedOut, c *http.Client) {
	t := s.t
	thing := s.newThing(client.NewThing{Name: "meter", ExternalKey: "aa:bb:cc:dd:ee:ff"})
	h.text("a thing key", thing.Key)
	h.text("an external key", thing.ExternalKey)
	for _, proof := range []string{"Thing " + thing.Key, "External " + thing.ExternalKey, "Basic " + base64.StdEncoding.EncodeToString([]byte(thing.ID+":"+thing.Key)), "Thing " + h.text("a wrong key", "tk_00000000000000000000000000000wrong")} {
		_, _ = s.exchange(c, "GET", "/api/v1/whoami", proof, "", "")
	}
	next, err := s.admin().RotateThing(t.Context(), thing.ID, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	h.text("a thing key after rotation", next.Key)
	if shown, err := s.admin().RevealThing(t.Context(), thing.ID); err != nil || shown.Key != next.Key {
		t.Fatalf("reveal: %v", err)
	}
	s.must2xx(c, "POST", "/identify", "", fmt.Sprintf(`{"type":"internal","key":%q}`, next.Key), nil)

	psk := s.textPSK(thing.ID)
	h.text("a pre-shared key in hex", psk.Secret)
	h.text("a pre-shared key", psk.text(t))
	for _, name := range coapClients {
		s.must(name, "-B", "5", "-A", "50", "-u", psk.Identity, "-k", psk.text(t), s.coaps("/whoami?auth="+next.Key+"&type=internal"))
	}
	token, err := s.admin().CreateEnrolmentToken(t.Context(), client.NewEnrolmentToken{Device: thing.ID})
	if err != nil {
		t.Fatal(err)
	}
	h.text("an enrolment token", token.Token)
	s.must("env", "TOKEN="+token.Token, "URL=https://"+s.at.HTTPS, "CA="+s.ca(), "bash", "-euo", "pipefail", "-c", `
		openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout est.key -subj /CN=meter -outform DER | base64 > est.csr
		curl -sS --fail-with-body --cacert "$CA" -u "any:$TOKEN" -H 'Content-Type: application/pkcs10' -H 'Content-Transfer-Encoding: base64' \
			--data-binary @est.csr "$URL/.well-known/est/simpleenroll" > est.p7`)

	made, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	public, err := x509.MarshalPKIXPublicKey(made.Public())
	if err != nil {
		t.Fatal(err)
	}
	device, err := s.admin().Preauthorise(t.Context(), client.Preauth{Identity: json.RawMessage(`{"mac":"02:00"}`), PubKey: string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public}))})
	if err != nil {
		t.Fatal(err)
	}
	h.text("a device's token", s.deviceToken(c, made, device))

	hook, err := s.admin().CreateWebhook(t.Context(), client.NewWebhook{URL: "https://hook.example/in", Secret: hex.EncodeToString([]byte("the secret of a webhook, 32 bytes"))})
	if err != nil {
		t.Fatal(err)
	}
	_ = hook
	h.text("a webhook's secret", "the secret of a webhook, 32 bytes")

	ca, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(7), Subject: pkix.Name{CommonName: "from outside"}, NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().AddDate(1, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, ca.Public(), ca)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(ca)
	if err != nil {
		t.Fatal(err)
	}
	scalar, err := ca.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.admin().ImportCA(t.Context(), client.CAImport{
		Name: "outside", Certificate: string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert})), PrivateKey: string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})),
	}); err != nil {
		t.Fatal(err)
	}
	h.keep("the private key of a CA", scalar)
	h.keep("the private key of a CA in PKCS #8", der)

	b, err := os.ReadFile(filepath.Join(s.data, "master.key"))
	if err != nil {
		t.Fatal(err)
	}
	text := h.text("the master key", string(bytes.TrimSpace(b)))
	decoded, err := hex.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	h.keep("the master key, decoded", decoded)
}

// secretSinks configures sinks of messages that have secrets.
func (s *server) secretSinks(h *handedOut) {
	s.t.Helper()
	for file, text := range map[string]string{
		"hook.secret":   h.text("what posts to a message sink are signed with", "what the sink of messages checks"),
		"broker.secret": h.text("the password for a broker of messages", "seven brokers nap at noon"),
	} {
		if err := os.WriteFile(s.path(file), []byte(text), 0o600); err != nil {
			s.t.Fatal(err)
		}
	}
	s.configure(`
messages:
  sinks:
    - {name: hook, type: webhook, url: "https://hook.invalid/in", secret_file: "` + s.path("hook.secret") + `"}
    - {name: broker, type: mqtt, url: "mqtts://broker.invalid:8883", topic: "fleet/{device}", client_id: keystead, username: keystead, password_file: "` + s.path("broker.secret") + `"}
`)
}

// useBootstrap has the server make keys for devices, and write them to them.
func (s *server) useBootstrap(h *handedOut) {
	t := s.t
	t.Helper()
	thing := s.newThing(client.NewThing{Name: "talker"})
	h.text("the key of a thing that sends messages", thing.Key)
	if body, code := s.curl("-H", "Authorization: Thing "+thing.Key, "-H", "Content-Type: application/senml+json", "-d", `[{"n":"t","v":1}]`, s.url("/http/messages")); code/100 != 2 {
		t.Fatalf("a message: %d %s", code, body)
	}

	// A key made over EST.
	token, err := s.admin().CreateEnrolmentToken(t.Context(), client.NewEnrolmentToken{Device: thing.ID})
	if err != nil {
		t.Fatal(err)
	}
	h.text("an enrolment token for a key", token.Token)
	s.request("asks", "/CN=talker")
	body, code := s.est("/.well-known/est/serverkeygen", "asks", "-u", "u:"+token.Token)
	if code != http.StatusOK {
		t.Fatalf("serverkeygen: %d %s", code, body)
	}
	_, part, _ := strings.Cut(body, "application/pkcs8")
	_, part, _ = strings.Cut(part, "\r\n\r\n")
	part, _, _ = strings.Cut(part, "\r\n--")
	der, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(part), ""))
	if err != nil {
		t.Fatalf("serverkeygen: %v: %s", err, body)
	}
	s.keepKey(h, "a key made over EST", der)

	// Keys written in bootstraps.
	sink := h.text("what posts to an LwM2M server are signed with", "what the server of devices checks")
	s.cli("server", "add", "elsewhere", "coaps://dm.example:5684", "--short-id", "7", "--weight", "0", "--sink", "webhook", "--sink-url", "https://hook.invalid/", "--sink-secret", sink)
	s.bootstrapServer("reuse")
	for credential, what := range map[string]string{"rotate-psk": "a key written in a bootstrap", "issue-cert": "the key of a certificate written in a bootstrap"} {
		k := s.textPSK()
		h.text("a key to bootstrap with", k.text(t))
		s.cli("policy", "override", "set", k.Device, "--credential", credential, "--bootstrap-account", "rotate")
		dev := s.lwm2mClient("1.1", withPSK(k, k.text(t))...)
		dev.account = 1
		dev.bootstrap()
		made, _ := dev.written["/0/0"].Resource(5).([]byte)
		if account, _ := dev.written["/0/1"].Resource(5).([]byte); len(account) == 0 {
			t.Fatal("the bootstrap account was not rotated")
		} else {
			h.keep("the new key of a bootstrap account", account)
		}
		if credential == "issue-cert" {
			s.keepKey(h, what, made)
		} else {
			h.keep(what, made)
		}
		dev.conn.Close()
	}
}

// usePasskeys has somebody add a passkey and log in with it: in place of the password,
// after it, and on the pages.
func (s *server) usePasskeys(h *handedOut, c *http.Client) {
	t := s.t
	t.Helper()
	a := passkeytest.New(t, publicName)
	begin := func(what, path, key, body string) (state string, options json.RawMessage) {
		t.Helper()
		var q struct {
			State   string
			Options json.RawMessage
		}
		s.must2xx(c, http.MethodPost, path, key, body, &q)
		challenge, err := base64.RawURLEncoding.DecodeString(passkeytest.Read(t, q.Options).PublicKey.Challenge)
		if err != nil {
			t.Fatal(err)
		}
		h.keep("the challenge of "+what, challenge)
		return h.text("the state of "+what, q.State), q.Options
	}
	password := h.text("the password of who has a passkey", "eleven shy herons wade")
	s.must2xx(c, http.MethodPost, "/users", s.key, `{"email":"fay@example.org","password":"`+password+`"}`, nil)
	attempt := `{"email":"fay@example.org","password":"` + password + `"}`
	var login struct{ Token string }
	s.must2xx(c, http.MethodPost, "/tokens", "", attempt, &login)
	h.text("a login key before the passkey", login.Token)
	state, options := begin("a new passkey", "/users/passkeys/begin", login.Token, "")
	var made struct {
		Codes []string `json:"recovery_codes"`
	}
	s.must2xx(c, http.MethodPost, "/users/passkeys", login.Token, `{"name":"blue","state":`+jsonText(state)+`,"credential":`+string(a.Create(t, options))+`}`, &made)
	if len(made.Codes) == 0 {
		t.Error("no recovery codes came with the passkey")
	}
	for _, code := range made.Codes {
		h.text("a recovery code of a passkey", code)
	}
	for what, body := range map[string]string{"a login by passkey": "", "a passkey after the password": attempt} {
		state, options := begin(what, "/tokens/passkey/begin", "", body)
		answer := a.Get(t, options)
		second := ""
		if body != "" {
			second = `,"second_factor":true`
		}
		s.must2xx(c, http.MethodPost, "/tokens/passkey", "", `{"state":`+jsonText(state)+`,"credential":`+string(answer)+second+`}`, &login)
		h.text("a login key by "+what, login.Token)
		s.must2xx(c, http.MethodGet, "/users/profile", login.Token, "", nil)
	}

	// On the pages, where a browser's session comes of it.
	state, options = begin("a passkey on a page", "/tokens/passkey/begin", "", "")
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.url("/oauth/login/passkey"),
		strings.NewReader(url.Values{"state": {state}, "credential": {string(a.Get(t, options))}}.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	res, err := (&http.Client{Transport: c.Transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}).Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	cookie, _, _ := strings.Cut(res.Header.Get("Set-Cookie"), ";")
	_, session, _ := strings.Cut(cookie, "=")
	if res.StatusCode != http.StatusSeeOther {
		b, _ := io.ReadAll(res.Body)
		t.Fatalf("on the page: %d %s", res.StatusCode, b)
	}
	h.text("a browser's session by passkey", session)

	// One that is answered with nothing good.
	state, _ = begin("a passkey that is not shown", "/tokens/passkey/begin", "", "")
	if code, answer := s.exchange(c, http.MethodPost, "/tokens/passkey", "", "", `{"state":`+jsonText(state)+`,"credential":{"id":"AAAA","rawId":"AAAA","type":"public-key","response":{}}}`); code/100 != 4 {
		t.Errorf("an answer that is none: %d %s", code, answer)
	}
}

// keepKey notes a private key in PKCS #8, as it is and by its scalar.
func (s *server) keepKey(h *handedOut, what string, der []byte) {
	s.t.Helper()
	parsed, err := x509.ParsePKCS8PrivateKey(der)
	key, ok := parsed.(*ecdsa.PrivateKey)
	if err != nil || !ok {
		s.t.Fatalf("%s: %T, %v", what, parsed, err)
	}
	scalar, err := key.Bytes()
	if err != nil {
		s.t.Fatal(err)
	}
	h.keep(what, scalar)
	h.keep(what+" in PKCS #8", der)
}

// deviceToken has a device with an accepted auth set ask for its token.
func (s *server) deviceToken(c *http.Client, key *ecdsa.PrivateKey, device string) string {
	t := s.t
	t.Helper()
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	body, err := json.Marshal(map[string]string{"id_data": `{"mac":"02:00"}`, "pubkey": string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public}))})
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(body)
	signature, err := ecdsa.SignASN1(rand.Reader, key, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.url("/api/devices/v1/authentication/auth_requests"), bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("X-MEN-Signature", base64.StdEncoding.EncodeToString(signature))
	res, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	token, err := io.ReadAll(res.Body)
	if err != nil || res.StatusCode != http.StatusOK {
		t.Fatalf("auth request: %d %s, %v", res.StatusCode, token, err)
	}
	if code, answer := s.exchange(c, "GET", "/api/v1/whoami", string(token), "", ""); code != http.StatusOK || s.whoami(answer).Device != device {
		t.Fatalf("whoami by the token: %d %s, want %s", code, answer, device)
	}
	return string(token)
}
