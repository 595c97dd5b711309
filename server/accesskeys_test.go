package server_test

import (
	"encoding/json"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

type tokenAnswer struct {
	AccessToken  string `json:"access_token"`
	TokenType    string `json:"token_type"`
	ExpiresIn    int    `json:"expires_in"`
	RefreshToken string `json:"refresh_token"`
}

// login exchanges a grant, given as name, value, …, and wants it to succeed.
func (r *running) login(t *testing.T, grant ...string) tokenAnswer {
	t.Helper()
	resp, body := r.grant(t, grant...)
	var tokens tokenAnswer
	if err := json.Unmarshal([]byte(body), &tokens); err != nil || resp.StatusCode != http.StatusCreated {
		t.Fatalf("%s = %d %s", grant[1], resp.StatusCode, body)
	}
	return tokens
}

func (r *running) grant(t *testing.T, grant ...string) (answer, string) {
	t.Helper()
	form := url.Values{}
	for i := 0; i < len(grant); i += 2 {
		form.Add(grant[i], grant[i+1])
	}
	return r.exchange(t, "POST", "/oauth/token", form.Encode(), map[string]string{"Content-Type": "application/x-www-form-urlencoded"})
}

type accessKeyAnswer struct {
	Name, Key, Secret string
	Links             []creatorLink
}

// platform returns the platform's own access key, as the first start wrote it.
func (r *running) platform(t *testing.T) (key, secret string) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(r.Config.Data, "admin.json"))
	if err != nil {
		t.Fatal(err)
	}
	var admin struct {
		AccessKey struct{ Key, Secret string } `json:"access_key"`
	}
	if err := json.Unmarshal(b, &admin); err != nil {
		t.Fatal(err)
	}
	return admin.AccessKey.Key, admin.AccessKey.Secret
}

// newOrg makes an organisation with the platform's key and returns a token of it
// and its access key.
func (r *running) newOrg(t *testing.T, name string) (token string, k accessKeyAnswer) {
	t.Helper()
	key, secret := r.platform(t)
	tokens := r.login(t, "grant_type", "Password", "username", key, "password", secret)
	resp, body := r.exchange(t, "POST", "/accesskeys", `{"Name":"`+name+`","Key":"mine","Secret":"mine"}`, bearer(tokens.AccessToken, "Content-Type", "application/json"))
	if err := json.Unmarshal([]byte(body), &k); err != nil || resp.StatusCode != http.StatusCreated {
		t.Fatalf("POST /accesskeys = %d %s", resp.StatusCode, body)
	}
	if len(k.Key) != 86 || len(k.Secret) != 86 {
		t.Fatalf("the key is %+v, want one the server chose", k)
	}
	return r.login(t, "grant_type", "password", "username", k.Key, "password", k.Secret).AccessToken, k
}

func TestFromThePlatformKeyToADeviceIdentity(t *testing.T) {
	s := start(t)
	token, key := s.newOrg(t, "acme")
	var rels []string
	for _, l := range key.Links {
		rels = append(rels, l.Rel)
	}
	if got := strings.Join(rels, " "); got != "self update remove" {
		t.Errorf("links of a key: %s, want self update remove", got)
	}
	if resp, body := s.exchange(t, "POST", "/identities/psk", "", bearer(token)); resp.StatusCode != http.StatusCreated {
		t.Errorf("an organisation's key makes an identity: %d %s, want 201", resp.StatusCode, body)
	}
	name, secret := s.platform(t)
	platform := s.login(t, "grant_type", "password", "username", name, "password", secret).AccessToken
	if resp, body := s.exchange(t, "POST", "/identities/psk", "", bearer(platform)); resp.StatusCode != http.StatusForbidden || !strings.Contains(body, "access key of one") {
		t.Errorf("the platform's key makes an identity: %d %s, want 403 that says which key does", resp.StatusCode, body)
	}
	resp, body := s.exchange(t, "POST", "/accesskeys", `<AccessKey><Name>second</Name></AccessKey>`, bearer(token, "Content-Type", "application/vnd.imgtec.accesskey+xml"))
	if resp.StatusCode != http.StatusCreated {
		t.Fatalf("a further key: %d %s", resp.StatusCode, body)
	}
	_, body = s.exchange(t, "GET", "/accesskeys", "", bearer(token))
	var list struct {
		PageInfo struct{ TotalCount int }
		Items    []accessKeyAnswer
	}
	if err := json.Unmarshal([]byte(body), &list); err != nil || list.PageInfo.TotalCount != 2 || list.Items[0].Name != "acme" || list.Items[1].Secret != "" {
		t.Errorf("list = %s, %v; want both keys without secrets", body, err)
	}
	one := "/accesskeys/" + list.Items[1].Key
	if resp, body := s.exchange(t, "PUT", one, `{"Name":"renamed"}`, bearer(token, "Content-Type", "application/json")); resp.StatusCode != http.StatusNoContent {
		t.Errorf("PUT = %d %s, want 204", resp.StatusCode, body)
	}
	if _, body := s.exchange(t, "GET", one, "", bearer(token)); !strings.HasPrefix(body, `{"Name":"renamed","Key":"`) {
		t.Errorf("renamed to %s", body)
	}
	for _, call := range [][2]string{{"POST", "/accesskeys"}, {"PUT", one}} {
		if resp, body := s.exchange(t, call[0], call[1], "", bearer(token)); resp.StatusCode != http.StatusBadRequest {
			t.Errorf("%s without a body = %d %s, want 400", call[0], resp.StatusCode, body)
		}
	}
	if resp, _ := s.exchange(t, "DELETE", "/accesskeys/"+key.Key, "", bearer(token)); resp.StatusCode != http.StatusNoContent {
		t.Errorf("DELETE = %d, want 204", resp.StatusCode)
	}
	if resp, _ := s.exchange(t, "GET", "/accesskeys", "", bearer(token)); resp.StatusCode != http.StatusUnauthorized || resp.Header.Get("WWW-Authenticate") == "" {
		t.Errorf("a token of the deleted key: %d, want 401", resp.StatusCode)
	}
}

func TestTokens(t *testing.T) {
	s := start(t)
	key, secret := s.platform(t)
	first := s.login(t, "grant_type", "password", "username", key, "password", secret)
	if first.TokenType != "Bearer" || first.ExpiresIn != 3600 {
		t.Errorf("tokens = %+v", first)
	}
	second := s.login(t, "grant_type", "refresh_token", "refresh_token", first.RefreshToken)
	if second.AccessToken == first.AccessToken || second.RefreshToken == first.RefreshToken {
		t.Error("a refresh gives the same tokens again")
	}
	for name, c := range map[string]struct {
		status int
		grant  []string
	}{
		"wrong secret":          {401, []string{"grant_type", "password", "username", key, "password", "x"}},
		"unknown key":           {401, []string{"grant_type", "password", "username", "x", "password", secret}},
		"nothing":               {400, []string{"grant_type", "password", "username", key, "username", key}},
		"no grant":              {400, []string{"username", key}},
		"unknown grant":         {400, []string{"grant_type", "magic"}},
		"malformed refresh":     {400, []string{"grant_type", "refresh_token", "refresh_token", "x"}},
		"no refresh token":      {400, []string{"grant_type", "refresh_token"}},
		"access for refresh":    {400, []string{"grant_type", "refresh_token", "refresh_token", second.AccessToken}},
		"used refresh, at last": {400, []string{"grant_type", "refresh_token", "refresh_token", first.RefreshToken}},
	} {
		if resp, body := s.grant(t, c.grant...); resp.StatusCode != c.status {
			t.Errorf("%s: %d %s, want %d", name, resp.StatusCode, body, c.status)
		}
	}
	if resp, body := s.grant(t, "grant_type", "refresh_token", "refresh_token", second.RefreshToken); resp.StatusCode != http.StatusBadRequest {
		t.Errorf("after a reuse the good one: %d %s, want 400", resp.StatusCode, body)
	}
	if resp, _ := s.exchange(t, "POST", "/oauth/token", `{"grant_type":"password"}`, map[string]string{"Content-Type": "application/json"}); resp.StatusCode != http.StatusBadRequest {
		t.Errorf("as JSON: %d, want 400", resp.StatusCode)
	}
	if resp, body := s.exchange(t, "GET", "/accesskeys", "", bearer(first.RefreshToken)); resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("a refresh token as bearer: %d %s, want 401", resp.StatusCode, body)
	}
}

func TestEntryPoint(t *testing.T) {
	s := start(t)
	base := "https://" + strings.TrimPrefix(s.url, "http://")
	_, body := s.exchange(t, "GET", "/", "", nil)
	want := `{"Links":[{"rel":"authenticate","href":"` + base + `/oauth/token","type":"application/vnd.imgtec.oauthtoken+json"},{"rel":"versions","href":"` + base + `/versions","type":"application/vnd.imgtec.versions+json"}]}`
	if body != want {
		t.Errorf("anonymous:\n%s, want\n%s", body, want)
	}
	_, body = s.exchange(t, "GET", "/", "", bearer(s.admin))
	var entry struct{ Links []creatorLink }
	if err := json.Unmarshal([]byte(body), &entry); err != nil {
		t.Fatal(err)
	}
	var rels []string
	for _, l := range entry.Links {
		rels = append(rels, l.Rel)
		if l.Rel == "authenticate" {
			continue
		}
		path := strings.TrimPrefix(l.Href, base)
		if resp, body := s.exchange(t, "GET", path, "", bearer(s.admin)); resp.StatusCode != http.StatusOK || resp.Header.Get("Content-Type") != l.Type {
			t.Errorf("GET %s = %d %s %s, want 200 %s", path, resp.StatusCode, resp.Header.Get("Content-Type"), body, l.Type)
		}
	}
	if got, want := strings.Join(rels, " "), "authenticate accesskeys configuration clients identities objectdefinitions subscriptions metrics versions"; got != want {
		t.Errorf("links: %s, want %s", got, want)
	}
	if resp, _ := s.exchange(t, "GET", "/", "", bearer("nonsense")); resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("with a bad token: %d, want 401", resp.StatusCode)
	}
}

// TestAForeignOrganisationSeesNothing walks every CreatorDev route that names a
// resource, with a token of another organisation.
func TestAForeignOrganisationSeesNothing(t *testing.T) {
	s := start(t)
	mine, key := s.newOrg(t, "mine")
	theirs, _ := s.newOrg(t, "theirs")
	var made pskAnswer
	_, body := s.exchange(t, "POST", "/identities/psk", "", bearer(mine))
	if err := json.Unmarshal([]byte(body), &made); err != nil {
		t.Fatal(err)
	}
	names := map[string]string{":identity": made.Identity, ":key": key.Key}
	walked := 0
	for r := range s.Routes() {
		method, path, _ := strings.Cut(r, " ")
		for name, value := range names {
			if !strings.Contains(path, name) {
				continue
			}
			walked++
			resp, body := s.exchange(t, method, strings.ReplaceAll(path, name, value), `{"Name":"x"}`, bearer(theirs, "Content-Type", "application/json"))
			if resp.StatusCode != http.StatusNotFound {
				t.Errorf("%s as a stranger = %d %s, want 404", r, resp.StatusCode, body)
			}
		}
	}
	if walked < 6 {
		t.Errorf("walked %d routes, want at least those of keys and identities", walked)
	}
	if _, body := s.exchange(t, "GET", "/identities/psk", "", bearer(theirs)); !strings.Contains(body, `"TotalCount":0`) {
		t.Errorf("a stranger's list: %s, want it empty", body)
	}
	if resp, body := s.exchange(t, "GET", "/identities/psk/"+made.Identity, "", bearer(mine)); resp.StatusCode != http.StatusOK {
		t.Errorf("the owner after the walk: %d %s, want it untouched", resp.StatusCode, body)
	}
}
