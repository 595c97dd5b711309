//go:build e2e

package e2e_test

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

// browser is a Chromium without a window, driven through WebDriver (W3C, with the
// commands of Web Authentication, 11, for a virtual authenticator, and those of
// chromedriver for what a browser logs).
type browser struct {
	t      *testing.T
	http   *http.Client
	driver string // the session's URL
	name   string // of the server, as the browser knows it
}

// publicName is what the server is called where browsers are: they give passkeys to names only.
const publicName = "id.keystead.test"

// named is the configuration of a server that is called publicName.
var named = []string{"public_url=https://" + publicName, "tls.names=" + publicName + ",localhost,127.0.0.1"}

// browse starts a browser with an empty profile, in which publicName is the server,
// whose certificate it trusts. Neighbours are there as well, at ports of the same name
// (nextTo). There is no other network.
func (s *server) browse(neighbours ...*httptest.Server) *browser {
	s.t.Helper()
	rules, pins := []string{"MAP " + publicName + ":443 " + s.at.HTTPS}, []string{s.pin()}
	for _, n := range neighbours {
		at := n.Listener.Addr().String()
		rules = append(rules, "MAP "+strings.TrimPrefix(nextTo(n), "https://")+" "+at)
		pins = append(pins, pinOf(n.Certificate()))
	}
	b := &browser{t: s.t, http: &http.Client{Transport: &http.Transport{}, Timeout: 2 * patience}, name: "https://" + publicName}
	s.t.Cleanup(b.http.CloseIdleConnections)
	cmd := exec.Command("chromedriver", "--port=0")
	cmd.Env = append(os.Environ(), "HOME="+s.t.TempDir())
	out, err := cmd.StdoutPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	started := regexp.MustCompile(`successfully on port (\d+)`)
	port := ""
	for lines := bufio.NewScanner(out); port == "" && lines.Scan(); {
		if m := started.FindStringSubmatch(lines.Text()); m != nil {
			port = m[1]
		}
	}
	if port == "" {
		s.t.Fatal("chromedriver did not say where it listens")
	}
	go func() { _, _ = io.Copy(io.Discard, out) }() // until it is killed
	b.driver = "http://127.0.0.1:" + port + "/session"
	var made struct {
		SessionID string `json:"sessionId"`
	}
	b.call("POST", "", map[string]any{"capabilities": map[string]any{"alwaysMatch": map[string]any{
		"browserName": "chrome",
		"goog:chromeOptions": map[string]any{"args": []string{
			"--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
			"--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--window-size=900,1000",
			"--user-data-dir=" + s.t.TempDir(),
			"--host-resolver-rules=" + strings.Join(rules, ", ") + ", MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
			"--ignore-certificate-errors-spki-list=" + strings.Join(pins, ","),
		}, "perfLoggingPrefs": map[string]any{"enableNetwork": true, "enablePage": false}},
		"goog:loggingPrefs": map[string]any{"browser": "ALL", "performance": "ALL"},
	}}}, &made)
	b.driver += "/" + made.SessionID
	s.t.Cleanup(func() {
		if s.t.Failed() {
			s.t.Logf("the browser is at %s and shows:\n%s", b.at(), b.text("body"))
			s.t.Logf("its console: %q", b.log())
		}
		_ = b.try("DELETE", "", nil, nil) // the driver's end is the browser's all the same
	})
	b.call("POST", "/url", map[string]string{"url": "about:blank"}, nil)
	_ = b.requests() // of the page that browsers begin with
	return b
}

// pin is the hash of the public key that the server's certificate has.
func (s *server) pin() string {
	s.t.Helper()
	conn, err := tls.Dial("tcp", s.at.HTTPS, s.tls())
	if err != nil {
		s.t.Fatal(err)
	}
	defer conn.Close()
	return pinOf(conn.ConnectionState().PeerCertificates[0])
}

func pinOf(c *x509.Certificate) string {
	sum := sha256.Sum256(c.RawSubjectPublicKeyInfo)
	return base64.StdEncoding.EncodeToString(sum[:])
}

// nextTo is where a browser finds a neighbour: another port of publicName, which is
// another origin of the same site.
func nextTo(n *httptest.Server) string {
	_, port, _ := strings.Cut(n.Listener.Addr().String(), ":")
	return "https://" + publicName + ":" + port
}

// call makes a request to the driver, which has to succeed.
func (b *browser) call(method, path string, in, out any) {
	b.t.Helper()
	if err := b.try(method, path, in, out); err != nil {
		b.t.Fatalf("webdriver: %s %s: %v", method, path, err)
	}
}

func (b *browser) try(method, path string, in, out any) error {
	var body io.Reader
	if method == "POST" {
		if in == nil {
			in = struct{}{}
		}
		text, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(text)
	}
	req, err := http.NewRequest(method, b.driver+path, body)
	if err != nil {
		return err
	}
	res, err := b.http.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	var answer struct{ Value json.RawMessage }
	if err := json.NewDecoder(res.Body).Decode(&answer); err != nil {
		return err
	}
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("%.600s", answer.Value)
	}
	if out == nil {
		return nil
	}
	return json.Unmarshal(answer.Value, out)
}

// open goes to a path of the server.
func (b *browser) open(path string) {
	b.t.Helper()
	b.call("POST", "/url", map[string]string{"url": b.name + path}, nil)
}

// at is the path the browser is at.
func (b *browser) at() string {
	var url string
	if err := b.try("GET", "/url", nil, &url); err != nil {
		return err.Error()
	}
	return strings.TrimPrefix(url, b.name)
}

// find returns the element that a CSS selector finds first, "" for none.
func (b *browser) find(selector string) string {
	var e map[string]string
	if b.try("POST", "/element", map[string]string{"using": "css selector", "value": selector}, &e) != nil {
		return ""
	}
	for _, id := range e {
		return id
	}
	return ""
}

// element waits for an element that is shown.
func (b *browser) element(selector string) string {
	b.t.Helper()
	id := ""
	b.eventually(selector, func() bool {
		id = b.find(selector)
		shown := false
		return id != "" && b.try("GET", "/element/"+id+"/displayed", nil, &shown) == nil && shown
	})
	return id
}

func (b *browser) eventually(what string, ok func() bool) {
	b.t.Helper()
	for deadline := time.Now().Add(patience); !ok(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			b.t.Fatalf("waited in vain for %s in the browser, at %s:\n%s", what, b.at(), b.text("body"))
		}
	}
}

func (b *browser) click(selector string) {
	b.t.Helper()
	b.call("POST", "/element/"+b.element(selector)+"/click", nil, nil)
}

func (b *browser) write(selector, text string) {
	b.t.Helper()
	b.call("POST", "/element/"+b.element(selector)+"/value", map[string]string{"text": text}, nil)
}

// text is what an element shows, "" if there is none.
func (b *browser) text(selector string) string {
	var text string
	if id := b.find(selector); id == "" || b.try("GET", "/element/"+id+"/text", nil, &text) != nil {
		return ""
	}
	return text
}

// shows waits until the page shows text.
func (b *browser) shows(text string) {
	b.t.Helper()
	b.eventually(fmt.Sprintf("%q", text), func() bool { return strings.Contains(b.text("body"), text) })
}

// eval is the value of an expression, as text; a promise is waited for.
func (b *browser) eval(expression string) string {
	b.t.Helper()
	var out string
	b.call("POST", "/execute/sync", script("return Promise.resolve("+expression+").then(String)"), &out)
	return out
}

func script(text string) map[string]any { return map[string]any{"script": text, "args": []any{}} }

// run has the page do something.
func (b *browser) run(statement string) {
	b.t.Helper()
	b.call("POST", "/execute/sync", script(statement), nil)
}

// until waits for an expression to be true.
func (b *browser) until(expression string) {
	b.t.Helper()
	b.eventually(expression, func() bool {
		yes := false
		return b.try("POST", "/execute/sync", script("return Boolean("+expression+")"), &yes) == nil && yes // between two pages there is none
	})
}

// press clicks the button, in what is over everything else if anything is, that says word.
func (b *browser) press(word string) {
	b.t.Helper()
	find := `[...(document.querySelector("dialog") ?? document).querySelectorAll("button")].find(e => e.textContent.trim() === ` + quoted(word) + `)`
	b.until(find)
	b.run(find + `.click()`)
}

func quoted(text string) string {
	b, err := json.Marshal(text)
	if err != nil {
		return `""` // no string fails to encode
	}
	return string(b)
}

// log is what the console has got since it was last read, without what is no fault.
func (b *browser) log() []string {
	var out []string
	for _, l := range b.lines("browser") {
		if l.Level == "SEVERE" || l.Level == "WARNING" {
			out = append(out, l.Message)
		}
	}
	return out
}

type logLine struct{ Level, Message string }

func (b *browser) lines(log string) (lines []logLine) {
	if err := b.try("POST", "/se/log", map[string]string{"type": log}, &lines); err != nil {
		return []logLine{{"SEVERE", err.Error()}}
	}
	return lines
}

// requests is where the browser has sent requests since this was last read.
func (b *browser) requests() []string {
	b.t.Helper()
	var out []string
	for _, l := range b.lines("performance") {
		var event struct {
			Message struct {
				Method string
				Params struct{ Request struct{ URL string } }
			}
		}
		if err := json.Unmarshal([]byte(l.Message), &event); err != nil {
			b.t.Fatalf("the browser's log: %v: %s", err, l.Message)
		}
		if event.Message.Method == "Network.requestWillBeSent" {
			out = append(out, event.Message.Params.Request.URL)
		}
	}
	return out
}

// within are the schemes of what does not leave the browser: its own icons and pages, and
// the files that a page makes.
var within = map[string]bool{"data": true, "chrome": true, "chrome-untrusted": true, "blob": true}

// clean fails the test for what the browser complained of, and for requests that left the server.
func (b *browser) clean() {
	b.t.Helper()
	for _, fault := range b.log() {
		b.t.Errorf("the browser's console has: %s", fault)
	}
	asked := b.requests()
	for _, at := range asked {
		u, err := url.Parse(at)
		if err != nil || u.Scheme+"://"+u.Host != b.name && !within[u.Scheme] {
			b.t.Errorf("a request left the server, for %s", at)
		}
	}
	if len(asked) == 0 {
		b.t.Error("no request was seen at all")
	}
}

// picture keeps a picture of the page where KEYSTEAD_PICTURES says, for people to look at.
func (b *browser) picture(name string) {
	b.t.Helper()
	dir := os.Getenv("KEYSTEAD_PICTURES")
	if dir == "" {
		return
	}
	var text string
	b.call("GET", "/screenshot", nil, &text)
	png, err := base64.StdEncoding.DecodeString(text)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, name+".png"), png, 0o600)
	}
	if err != nil {
		b.t.Fatal(err)
	}
}

// pictures keeps one on a wide screen, and one on a phone in the dark.
func (b *browser) pictures(name string) {
	b.t.Helper()
	if os.Getenv("KEYSTEAD_PICTURES") == "" {
		return
	}
	for _, look := range []struct {
		name          string
		width, height int
		scheme        string
	}{{"wide", 1600, 1000, "light"}, {"phone", 380, 800, "dark"}, {"", 900, 1000, ""}} {
		b.devtools("Emulation.setDeviceMetricsOverride", map[string]any{"width": look.width, "height": look.height, "deviceScaleFactor": 1, "mobile": look.width < 500})
		b.devtools("Emulation.setEmulatedMedia", map[string]any{"features": []map[string]string{{"name": "prefers-color-scheme", "value": look.scheme}}})
		if look.name != "" {
			b.picture(name + "-" + look.name)
		}
	}
}

// devtools gives the browser a command of its own protocol.
func (b *browser) devtools(command string, params map[string]any) {
	b.t.Helper()
	b.call("POST", "/goog/cdp/execute", map[string]any{"cmd": command, "params": params}, nil)
}

// authenticator adds a virtual authenticator that keeps passkeys and verifies its
// user, as a phone does, and returns its id.
func (b *browser) authenticator() string {
	b.t.Helper()
	var id string
	b.call("POST", "/webauthn/authenticator", map[string]any{
		"protocol": "ctap2", "transport": "internal", "hasResidentKey": true, "hasUserVerification": true, "isUserVerified": true, "isUserConsenting": true,
	}, &id)
	return id
}

// verifies says whether the authenticator recognises its user from now on.
func (b *browser) verifies(authenticator string, yes bool) {
	b.t.Helper()
	b.call("POST", "/webauthn/authenticator/"+authenticator+"/uv", map[string]any{"isUserVerified": yes}, nil)
}

// passkeys are the ids of what an authenticator keeps.
func (b *browser) passkeys(authenticator string) []string {
	b.t.Helper()
	var list []struct {
		ID string `json:"credentialId"`
	}
	b.call("GET", "/webauthn/authenticator/"+authenticator+"/credentials", nil, &list)
	var ids []string
	for _, c := range list {
		ids = append(ids, c.ID)
	}
	return ids
}
