//go:build e2e

package e2e_test

import (
	"encoding/json"
	"encoding/pem"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestCreatorDevXML has xmllint hold the XML of every resource against a schema.
func TestCreatorDevXML(t *testing.T) {
	t.Parallel()
	posted := make(chan string, 8)
	hook := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil || r.Header.Get("Content-Type") != "application/vnd.imgtec.notification+xml" {
			t.Errorf("posted as %q, %v", r.Header.Get("Content-Type"), err)
		}
		posted <- string(body)
		w.WriteHeader(http.StatusCreated)
	}))
	t.Cleanup(hook.Close)
	hookCA := filepath.Join(t.TempDir(), "hook.pem")
	if err := os.WriteFile(hookCA, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: hook.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	s := start(t, "webhook.ca_file="+hookCA, "webhook.allow_cidrs=127.0.0.1/32")
	schema, err := filepath.Abs("testdata/creatordev.xsd")
	if err != nil {
		t.Fatal(err)
	}
	var admin struct {
		Access struct{ Key, Secret string } `json:"access_key"`
	}
	b, err := os.ReadFile(filepath.Join(s.data, "admin.json"))
	if err == nil {
		err = json.Unmarshal(b, &admin)
	}
	if err != nil {
		t.Fatal(err)
	}
	checked := 0
	check := func(body, root string) {
		t.Helper()
		if !strings.Contains(body, "<"+root+">") {
			t.Errorf("got %s, want a %s", body, root)
		}
		if r := s.runWith(strings.NewReader(body), "xmllint", "--noout", "--schema", schema, "-"); r.code != 0 {
			t.Errorf("%s breaks the schema: %s\n%s", root, r.all(), body)
		}
		checked++
	}
	// login exchanges a key for an access token.
	login := func(key, secret string) string {
		t.Helper()
		body, code := s.curl("-H", "Accept: application/xml", "--data-urlencode", "grant_type=password", "--data-urlencode", "username="+key, "--data-urlencode", "password="+secret, s.url("/oauth/token"))
		if code != 201 {
			t.Fatalf("POST /oauth/token = %d %s", code, body)
		}
		check(body, "OAuthToken")
		_, rest, _ := strings.Cut(body, "<access_token>")
		token, _, _ := strings.Cut(rest, "<")
		s.secret(token)
		return token
	}
	call := func(token, method, path, body, root string, want int) string {
		t.Helper()
		args := []string{"-X", method, "-H", "Accept: application/xml", "-H", "Authorization: Bearer " + token, s.url(path)}
		if body != "" {
			args = append(args, "-H", "Content-Type: application/xml", "--data-binary", body)
		}
		answer, code := s.curl(args...)
		if code != want {
			t.Fatalf("%s %s = %d %s, want %d", method, path, code, answer, want)
		}
		check(answer, root)
		return answer
	}
	platform := login(admin.Access.Key, admin.Access.Secret)
	key := call(platform, "POST", "/accesskeys", "<AccessKey><Name>a &amp; &lt;b&gt;</Name></AccessKey>", "AccessKey", 201)
	part := func(element string) string {
		_, rest, _ := strings.Cut(key, "<"+element+">")
		value, _, _ := strings.Cut(rest, "<")
		return value
	}
	s.secret(part("Secret"))
	token := login(part("Key"), part("Secret"))
	call(platform, "POST", "/identities/psk", "", "Error", 403)
	made := call(token, "POST", "/identities/psk", "<PSKIdentity><Identity>dev-1</Identity></PSKIdentity>", "PSKIdentity", 201)
	if !strings.Contains(made, "<Identity>dev-1</Identity><Secret>") {
		t.Errorf("made %s", made)
	}
	call(token, "POST", "/identities/certificates", "", "Certificate", 201)
	subscription := func(kind, at string) string {
		return "<Subscription><SubscriptionType>" + kind + "</SubscriptionType><Url>" + at + "</Url><AcceptContentType>application/vnd.imgtec.notification+xml</AcceptContentType></Subscription>"
	}
	subscribed := call(token, "POST", "/subscriptions", subscription("IdentityRevoked", hook.URL+"/Hook"), "ResourceCreated", 201)
	call(token, "POST", "/subscriptions", subscription("IdentityRevoked", strings.ToUpper(hook.URL[:8])+hook.URL[8:]+"/hook"), "Error", 409)
	call(token, "POST", "/subscriptions", subscription("Observation", hook.URL), "Error", 400)
	call(token, "POST", "/subscriptions", "<Subscription><SubscriptionType>ClientConnected</SubscriptionType></Subscription>", "Error", 400)
	call(token, "GET", "/subscriptions/x", "", "Error", 400)
	_, id, _ := strings.Cut(subscribed, "<ID>")
	id, _, _ = strings.Cut(id, "<")
	if _, code := s.curl("-X", "DELETE", "-H", "Authorization: Bearer "+token, s.url("/identities/psk/dev-1")); code != 204 {
		t.Errorf("DELETE /identities/psk/dev-1 = %d", code)
	}
	select {
	case body := <-posted:
		check(body, "Notifications")
		if !strings.Contains(body, `href="/subscriptions/`+id+`"`) || !strings.Contains(body, "<SubscriptionType>IdentityRevoked<") {
			t.Errorf("posted %s", body)
		}
	case <-time.After(patience):
		t.Error("nothing was posted to the subscription")
	}
	call(token, "POST", "/identities/psk", "<PSKIdentity><Identity>dev-1</Identity></PSKIdentity>", "PSKIdentity", 201)
	for path, root := range map[string]string{
		"/": "APIEntryPoint", "/versions": "Versions", "/accesskeys": "AccessKeys", "/accesskeys/" + part("Key"): "AccessKey", "/identities": "Identities",
		"/identities/psk?pageSize=1": "PSKIdentities", "/identities/psk/dev-1": "PSKIdentity", "/identities/certificates": "Certificates",
		"/configuration": "Configuration", "/configuration/bootstrap": "Bootstrap", "/clients": "Clients", "/subscriptions": "Subscriptions", "/subscriptions/" + id: "Subscription",
	} {
		call(token, "GET", path, "", root, 200)
	}
	call(token, "GET", "/clients/nobody", "", "Error", 404)
	if checked < 26 {
		t.Errorf("checked %d answers", checked)
	}
}
