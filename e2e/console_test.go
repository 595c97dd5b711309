//go:build e2e

package e2e_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"

	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"

	"keystead/client"
)

// chrome is Debian's Chromium, and what it has said of the pages.
type chrome struct {
	s   *server
	ctx context.Context

	mu     sync.Mutex
	asked  []string // where it sent requests
	faults []string // what it wrote to its console
}

// chrome starts a Chromium with an empty profile.
func (s *server) chrome() *chrome {
	s.t.Helper()
	alloc, cancel := chromedp.NewExecAllocator(s.t.Context(),
		chromedp.ExecPath("chromium"), chromedp.Headless, chromedp.NoSandbox, chromedp.DisableGPU, chromedp.NoFirstRun, chromedp.UserDataDir(s.t.TempDir()),
		chromedp.Flag("disable-quic", true), chromedp.Flag("disable-background-networking", true), chromedp.Flag("disable-component-update", true),
		chromedp.Flag("disable-sync", true), chromedp.Flag("ignore-certificate-errors", true), chromedp.WSURLReadTimeout(patience))
	s.t.Cleanup(cancel)
	ctx, cancel := chromedp.NewContext(alloc, chromedp.WithErrorf(func(string, ...any) {})) // of events newer than the library
	s.t.Cleanup(cancel)
	ctx, cancel = context.WithTimeout(ctx, 4*patience)
	s.t.Cleanup(cancel)
	b := &chrome{s: s, ctx: ctx}
	chromedp.ListenTarget(ctx, b.hear)
	b.do(network.Enable(), log.Enable(), runtime.Enable())
	return b
}

// hear keeps what the browser asks for, and what it complains of.
func (b *chrome) hear(event any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch e := event.(type) {
	case *network.EventRequestWillBeSent:
		b.asked = append(b.asked, e.Request.URL)
	case *runtime.EventExceptionThrown:
		b.faults = append(b.faults, e.ExceptionDetails.Error())
	case *runtime.EventConsoleAPICalled:
		if e.Type == runtime.APITypeError || e.Type == runtime.APITypeWarning {
			b.faults = append(b.faults, fmt.Sprint(e.Args))
		}
	case *log.EventEntryAdded:
		if e.Entry.Level == log.LevelError || e.Entry.Level == log.LevelWarning {
			b.faults = append(b.faults, e.Entry.Text+" "+e.Entry.URL)
		}
	}
}

func (b *chrome) do(actions ...chromedp.Action) {
	b.s.t.Helper()
	if err := chromedp.Run(b.ctx, actions...); err != nil {
		var text string
		_ = chromedp.Run(b.ctx, chromedp.Evaluate(`document.body ? document.body.innerText : ""`, &text)) // for the message only
		b.s.t.Fatalf("the browser: %v\nfaults: %q\nit shows: %.1500s", err, b.faults, text)
	}
}

// eval is the value of an expression, as text.
func (b *chrome) eval(expression string) string {
	b.s.t.Helper()
	var out string
	b.do(chromedp.Evaluate(`String(`+expression+`)`, &out))
	return out
}

// until waits for an expression to be true.
func (b *chrome) until(expression string) {
	b.s.t.Helper()
	b.do(chromedp.Poll(expression, nil, chromedp.WithPollingTimeout(patience)))
}

// goTo opens a view and waits until it is there, under its title.
func (b *chrome) goTo(hash, title string) {
	b.s.t.Helper()
	b.do(chromedp.Evaluate(`location.hash = `+quoted(hash), nil))
	b.until(`document.querySelector("#main h1")?.textContent === ` + quoted(title) + ` && !document.querySelector("#main .loading")`)
	if failed := b.eval(`document.querySelector("#main .failure")?.innerText ?? ""`); failed != "" {
		b.s.t.Errorf("%s shows a failure: %s", hash, failed)
	}
}

// press clicks the button, in what is over everything else if anything is, that says word.
func (b *chrome) press(word string) {
	b.s.t.Helper()
	find := `[...(document.querySelector("dialog") ?? document).querySelectorAll("button")].find(e => e.textContent.trim() === ` + quoted(word) + `)`
	b.until(find + ` !== undefined`)
	b.do(chromedp.Evaluate(find+`.click()`, nil))
}

func quoted(text string) string {
	b, err := json.Marshal(text)
	if err != nil {
		return `""` // no string fails to encode
	}
	return string(b)
}

// open shows the way in, and signIn goes it with what fields have.
func (b *chrome) signIn(fields map[string]string) {
	b.s.t.Helper()
	b.do(chromedp.Navigate(b.s.url("/")), chromedp.WaitVisible(`.signin input`))
	if _, byKey := fields["api_key"]; byKey {
		b.do(chromedp.Click(`#tab-key`), chromedp.WaitVisible(`[name=api_key]`))
	}
	for name, value := range fields {
		b.do(chromedp.SendKeys(`[name=`+name+`]`, value))
	}
	b.press("Sign in")
	b.until(`document.querySelector("#main h1")?.textContent === "Overview"`)
}

// clean fails the test for what the browser complained of, and for requests that left the server.
func (b *chrome) clean() {
	b.s.t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, fault := range b.faults {
		b.s.t.Errorf("the browser's console has: %s", fault)
	}
	for _, at := range b.asked {
		if u, err := url.Parse(at); err != nil || u.Host != b.s.at.HTTPS && u.Scheme != "blob" && u.Scheme != "data" { // data: is the browser's own icons
			b.s.t.Errorf("a request left the server, for %s", at)
		}
	}
	if len(b.asked) == 0 {
		b.s.t.Error("no request was seen at all")
	}
}

// markup is a name that a stranger gives a thing of theirs.
const markup = `<img src=x onerror="window.pwned=1"><script>window.pwned=2</script>`

// People sign in, look at their fleet, and shut a device out; and what strangers call their
// devices stays text, what other pages send is refused, and nothing leaves the server.
func TestConsole(t *testing.T) {
	t.Parallel()
	s := start(t, append(fast, "est.allow_insecure_noauth=true")...)
	c := s.https()
	k := s.textPSK()
	name := "pump 7"
	if _, err := s.admin().EditDevice(t.Context(), k.Device, client.DeviceEdit{Name: &name, Labels: &map[string]string{"site": "north"}}); err != nil {
		t.Fatal(err)
	}
	s.must2xx(c, http.MethodPost, "/api/v1/devices", s.key, `{"name":`+quoted(markup)+`,"comment":`+quoted(markup)+`,"labels":{"note":`+quoted(markup)+`},"aliases":[{"kind":"external","value":`+quoted(markup)+`}]}`, nil)
	s.must2xx(c, http.MethodPost, "/api/v1/dms", s.key, `{"id":"open","name":`+quoted(markup)+`,"settings":{"enrollment_settings":{"est_rfc7030_settings":{"auth_mode":"NO_AUTH"}}}}`, nil)
	s.must2xx(c, http.MethodPost, "/orgs", s.key, `{"name":`+quoted(markup)+`}`, nil)
	s.sh(`openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout evil.key -utf8 -subj '/CN=<svg onload=window.pwned=3>' |
		curl -sS --fail-with-body --cacert "$CA" -H 'Content-Type: application/pkcs10' --data-binary @<(cat | openssl req -outform DER | openssl base64 -A) "$URL/.well-known/est/open/simpleenroll" >/dev/null`)
	password := "correct horse battery viewer"
	s.secret(password)
	var me who
	s.must2xx(c, http.MethodGet, "/api/v1/whoami", s.key, "", &me)
	s.must2xx(c, http.MethodPost, "/users", s.key, fmt.Sprintf(`{"email":"viewer@example.org","password":%q}`, password), nil)
	s.must2xx(c, http.MethodPost, "/orgs/"+me.Organisation+"/memberships", s.key, `{"org_memberships":[{"email":"viewer@example.org","role":"viewer"}]}`, nil)
	session := s.mustDial(withPSK(k, k.text(t))...)
	defer session.close()
	if _, err := session.whoami(); err != nil {
		t.Fatal(err)
	}

	b := s.chrome()
	b.signIn(map[string]string{"api_key": s.key})
	if kept := b.eval(`localStorage.length + sessionStorage.length + document.cookie.length`); kept != "0" {
		t.Errorf("scripts can read %s things the browser keeps, want none", kept)
	}

	// The first device is there, with what it has; suspending it ends its session.
	b.goTo("#/devices?q=PUMP", "Devices")
	if rows := b.eval(`[...document.querySelectorAll("tbody tr")].map(r => r.innerText).join("|")`); !strings.Contains(rows, "pump 7") || !strings.Contains(rows, "pre-shared key") || strings.Contains(rows, "|") {
		t.Errorf("the search for a part of the name shows %q", rows)
	}
	b.goTo("#/sessions", "Live sessions")
	b.until(`document.querySelector("#main tbody")?.innerText.includes("pump 7")`)
	b.goTo("#/devices/"+k.Device, "pump 7")
	b.press("Suspend")
	b.until(`document.querySelector("dialog[open]") !== null`)
	b.press("Suspend")
	b.until(`document.querySelector("#main .title .badge").textContent === "suspended"`)
	session.ended()
	if _, err := s.dial(withPSK(k, k.text(t))...); err == nil {
		t.Error("the device that was suspended came in again")
	}
	b.press("Resume")
	b.until(`document.querySelector("#main .title .badge").textContent === "active"`)

	// Every view, and the markup in each is text.
	var evil struct{ Items []struct{ ID string } }
	s.must2xx(c, http.MethodGet, "/api/v1/devices?name=%3Cimg", s.key, "", &evil)
	var certificates struct{ Items []struct{ Serial string } }
	s.must2xx(c, http.MethodGet, "/api/v1/certificates?dms=open", s.key, "", &certificates)
	for _, view := range []struct{ hash, title string }{
		{"#/", "Overview"},
		{"#/devices", "Devices"},
		{"#/devices/" + evil.Items[0].ID, markup},
		{"#/pending", "Pending"},
		{"#/enrolment", "Enrolment"},
		{"#/certificates", "Certificates"},
		{"#/certificates/" + certificates.Items[0].Serial, "<svg onload=window.pwned=3>"},
		{"#/cas", "Certificate authorities"},
		{"#/sessions", "Live sessions"},
		{"#/bootstraps", "LwM2M bootstraps"},
		{"#/audit", "Audit trail"},
		{"#/people", "People and keys"},
		{"#/webhooks", "Webhooks"},
	} {
		b.goTo(view.hash, view.title)
		if got := b.eval(`document.querySelectorAll("#app img, #app script, #app svg[onload], #app [onerror]").length + " " + window.pwned`); got != "0 undefined" {
			t.Errorf("%s: markup and what it has done: %s, want none", view.hash, got)
		}
	}
	b.goTo("#/devices", "Devices")
	if got := b.eval(`document.querySelector("#main").textContent.includes(` + quoted(markup) + `) && document.querySelector(".org select").textContent.includes(` + quoted(markup) + `)`); got != "true" {
		t.Error("the names with markup are not shown as they are written")
	}
	b.goTo("#/", "Overview")
	if got := b.eval(`document.querySelector(".worries").innerText`); !strings.Contains(got, "enrols whoever asks") || !strings.Contains(got, "There is no backup") {
		t.Errorf("what needs attention is %q, want the open profile and the backup that is missing", got)
	}

	// A token is shown once.
	b.goTo("#/enrolment", "Enrolment")
	b.press("New token")
	b.until(`document.querySelector("dialog[open] [name=comment]") !== null`)
	b.press("Make it")
	b.until(`document.querySelector("dialog .secret") !== null`)
	token := b.eval(`document.querySelector("dialog .secret").textContent`)
	s.secret(token)
	b.press("I have it")
	b.until(`document.querySelector("dialog") === null && document.querySelector("#main").innerText.includes("0 of 1")`)
	if !strings.HasPrefix(token, "keystead_") || b.eval(`document.documentElement.textContent.includes(`+quoted(token)+`)`) != "false" {
		t.Errorf("the token was %.12q…, and must be gone from the page", token)
	}
	b.clean()

	s.attack(b, k)

	// A viewer, who signs in with an account, is offered to look; more is refused all the same.
	b.do(chromedp.Navigate(s.url("/console/")))
	b.until(`document.querySelector("#main h1") !== null`)
	b.do(chromedp.Evaluate(`document.querySelector(".who").open = true`, nil))
	b.press("Sign out")
	b.until(`document.querySelector(".signin") !== null`)
	b.signIn(map[string]string{"email": "viewer@example.org", "password": password})
	b.goTo("#/devices/"+k.Device, "pump 7")
	if got := b.eval(`[...document.querySelectorAll("#main button")].map(e => e.innerText.trim()).filter(w => ["Suspend", "Delete", "Revoke"].includes(w)).length + " " + (document.querySelector("#nav").innerText.includes("Audit"))`); got != "0 false" {
		t.Errorf("a viewer is offered: %s, want nothing that changes, and no audit trail", got)
	}
	var status int
	b.do(chromedp.Evaluate(`fetch("/api/v1/devices/`+k.Device+`/suspend", {method: "POST"}).then(r => r.status)`, &status, awaited))
	if status != http.StatusForbidden {
		t.Errorf("a viewer who suspends all the same gets %d, want 403", status)
	}
}

func awaited(p *runtime.EvaluateParams) *runtime.EvaluateParams { return p.WithAwaitPromise(true) }

// attack has a page of another origin, to which the browser sends the cookie because it
// is the same site, try what the one who is signed in may do.
func (s *server) attack(b *chrome, k key) {
	s.t.Helper()
	target := s.url("/api/v1/devices/" + k.Device + "/suspend")
	page := fmt.Sprintf(`<!doctype html><title>trying</title><form method="post" action="%s" target="f"></form><iframe name="f"></iframe><script>
		fetch(%q, {method: "POST", mode: "no-cors", credentials: "include"}).catch(() => {}).finally(() => { document.forms[0].submit(); document.title = "tried"; });
	</script>`, target, target)
	other := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		fmt.Fprint(w, page)
	}))
	defer other.Close()
	b.do(chromedp.Navigate(other.URL))
	b.until(`document.title === "tried"`)
	s.eventually("the server to refuse both", func() bool {
		refused := 0
		for line := range strings.Lines(s.logs.String()) {
			if strings.Contains(line, k.Device+"/suspend") && strings.Contains(line, `"status":403`) {
				refused++
			}
		}
		return refused >= 2
	})
	d, err := s.admin().Device(s.t.Context(), k.Device)
	if err != nil || d.State != "active" {
		s.t.Errorf("after the attack the device is %q, %v; want it active", d.State, err)
	}
}
