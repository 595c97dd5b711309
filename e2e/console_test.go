//go:build e2e

package e2e_test

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"keystead/client"
)

// goTo opens a view of the console and waits until it is there, under its title.
func (b *browser) goTo(hash, title string) {
	b.t.Helper()
	b.run(`location.hash = ` + quoted(hash))
	b.until(`document.querySelector("#main h1")?.textContent === ` + quoted(title) + ` && !document.querySelector("#main .loading")`)
	if failed := b.eval(`document.querySelector("#main .failure")?.innerText ?? ""`); failed != "" {
		b.t.Errorf("%s shows a failure: %s", hash, failed)
	}
}

// signIn opens the console and goes one of its ways in, with what its fields have.
func (b *browser) signIn(way string, fields map[string]string) {
	b.t.Helper()
	b.open("/console/")
	b.click("#tab-" + way)
	for name, value := range fields {
		b.write("#way [name="+name+"]", value)
	}
	b.click("#way [type=submit]")
}

// isIn waits for the first view of the console.
func (b *browser) isIn() {
	b.t.Helper()
	b.until(`document.querySelector("#main h1")?.textContent === "Overview"`)
}

func (b *browser) signOut() {
	b.t.Helper()
	b.until(`document.querySelector(".who")`)
	b.run(`document.querySelector(".who").open = true`)
	b.press("Sign out")
	b.element(".signin")
}

// markup is a name that a stranger gives a thing of theirs.
const markup = `<img src=x onerror="window.pwned=1"><script>window.pwned=2</script>`

// People sign in, look at their fleet, and shut a device out; and what strangers call their
// devices stays text, what other pages send is refused, and nothing leaves the server.
func TestConsole(t *testing.T) {
	t.Parallel()
	s := start(t, append(append(named, fast...), "est.allow_insecure_noauth=true")...)
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

	other := attacker(t, "https://"+publicName+"/api/v1/devices/"+k.Device+"/suspend")
	b := s.browse(other)
	b.signIn("key", map[string]string{"api_key": s.key})
	b.isIn()
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
	b.pictures("live")
	b.press("Close")
	b.press("Close it")
	session.ended()
	b.until(`document.querySelector("#main").innerText.includes("No session is open")`)
	again := s.mustDial(withPSK(k, k.text(t))...)
	defer again.close()
	if _, err := again.whoami(); err != nil {
		t.Fatal(err)
	}
	b.goTo("#/devices/"+k.Device, "pump 7")
	b.press("Suspend")
	b.until(`document.querySelector("dialog[open]") !== null`)
	b.press("Suspend")
	b.until(`document.querySelector("#main .title .badge").textContent === "suspended"`)
	again.ended()
	if _, err := s.dial(withPSK(k, k.text(t))...); err == nil {
		t.Error("the device that was suspended came in again")
	}
	b.press("Resume")
	b.until(`document.querySelector("#main .title .badge").textContent === "active"`)

	// Of two that wait, one is accepted and one is not.
	asks := map[string]*asker{"Accept": s.asker(`{"mac":"02:00:00:00:00:01"}`), "Reject": s.asker(`{"mac":"02:00:00:00:00:02"}`)}
	for _, a := range asks {
		if status, text := a.ask(); status != http.StatusUnauthorized {
			t.Fatalf("the first auth request: %d %s", status, text)
		}
	}
	b.goTo("#/pending", "Pending")
	b.pictures("waiting")
	for verb, a := range asks {
		row := `[...document.querySelectorAll("#main tr")].find(r => r.innerText.includes(JSON.parse(` + quoted(a.id) + `).mac))`
		b.until(row)
		b.run(`[...` + row + `.querySelectorAll("button")].find(e => e.textContent.trim() === ` + quoted(verb) + `).click()`)
		b.until(`!` + row)
	}
	asks["Accept"].token()
	if status, text := asks["Reject"].ask(); status != http.StatusUnauthorized {
		t.Errorf("the device that was rejected gets %d %s, want 401", status, text)
	}

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
		b.pictures(strings.NewReplacer("#", "view", "/", "-", "?", "-").Replace(view.hash))
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

	s.attack(b, other, k)

	// A viewer, who signs in with an account, is offered to look; more is refused all the same.
	b.open("/console/")
	b.signOut()
	b.signIn("account", map[string]string{"email": "viewer@example.org", "password": password})
	b.isIn()
	b.goTo("#/devices/"+k.Device, "pump 7")
	if got := b.eval(`[...document.querySelectorAll("#main button")].map(e => e.innerText.trim()).filter(w => ["Suspend", "Delete", "Revoke"].includes(w)).length + " " + (document.querySelector("#nav").innerText.includes("Audit"))`); got != "0 false" {
		t.Errorf("a viewer is offered: %s, want nothing that changes, and no audit trail", got)
	}
	if status := b.eval(`fetch("/api/v1/devices/` + k.Device + `/suspend", {method: "POST"}).then(r => r.status)`); status != "403" {
		t.Errorf("a viewer who suspends all the same gets %s, want 403", status)
	}
}

// attacker is a page of another origin, to which the browser sends the cookie because it
// is the same site, that tries what the one who is signed in may do.
func attacker(t *testing.T, target string) *httptest.Server {
	page := fmt.Sprintf(`<!doctype html><title>trying</title><form method="post" action="%s" target="f"></form><iframe name="f"></iframe><script>
		fetch(%q, {method: "POST", mode: "no-cors", credentials: "include"}).catch(() => {}).finally(() => { document.forms[0].submit(); document.title = "tried"; });
	</script>`, target, target)
	other := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		fmt.Fprint(w, page)
	}))
	t.Cleanup(other.Close)
	return other
}

// attack has the browser show an attacker's page.
func (s *server) attack(b *browser, other *httptest.Server, k key) {
	s.t.Helper()
	b.call("POST", "/url", map[string]string{"url": nextTo(other)}, nil)
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
