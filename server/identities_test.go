package server_test

import (
	"encoding/hex"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"testing"
)

// exchange makes a request with headers of its own and returns the answer and
// its body. The exchange is checked against openapi.yaml.
func (r *running) exchange(t *testing.T, method, path, body string, header map[string]string) (answer, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, r.url+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for k, v := range header {
		req.Header.Set(k, v)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	checkContract(t, req, resp, b)
	return answer{resp.StatusCode, resp.Header}, string(b)
}

// answer is what an exchange got besides a body.
type answer struct {
	StatusCode int
	Header     http.Header
}

// bearer returns the headers of a request with a bearer token.
func bearer(token string, more ...string) map[string]string {
	h := map[string]string{"Authorization": "Bearer " + token}
	for i := 0; i+1 < len(more); i += 2 {
		h[more[i]] = more[i+1]
	}
	return h
}

type creatorLink struct{ Rel, Href, Type string }

type pskAnswer struct {
	Identity, Secret string
	Links            []creatorLink
}

func TestPSKIdentity(t *testing.T) {
	s := start(t)
	host := strings.TrimPrefix(s.url, "http://")
	resp, body := s.exchange(t, "POST", "/identities/psk", "", bearer(s.admin))
	var made pskAnswer
	if err := json.Unmarshal([]byte(body), &made); err != nil || resp.StatusCode != http.StatusCreated {
		t.Fatalf("POST /identities/psk = %d %s", resp.StatusCode, body)
	}
	if got, want := resp.Header.Get("Content-Type"), "application/vnd.imgtec.pskidentity+json"; got != want {
		t.Errorf("Content-Type = %s, want %s", got, want)
	}
	href := "https://" + host + "/identities/psk/" + made.Identity
	want := `{"Identity":"` + made.Identity + `","Secret":"` + made.Secret + `","Links":[{"rel":"self","href":"` + href + `"},{"rel":"remove","href":"` + href + `"}]}`
	if body != want {
		t.Errorf("created\n%s, want\n%s", body, want)
	}
	if b, err := hex.DecodeString(made.Secret); err != nil || len(b) != 32 || strings.ToUpper(made.Secret) != made.Secret {
		t.Errorf("the secret is %q, want 64 hexadecimal digits in upper case", made.Secret)
	}

	resp, body = s.exchange(t, "GET", "/identities/psk/"+made.Identity, "", bearer(s.admin, "Accept", "application/vnd.imgtec.pskidentity+xml"))
	wantXML := `<?xml version="1.0" encoding="utf-8"?><PSKIdentity><Links><Link rel="self" href="` + href + `"/><Link rel="remove" href="` + href + `"/></Links><Identity>` + made.Identity + `</Identity></PSKIdentity>`
	if body != wantXML || resp.Header.Get("Content-Type") != "application/vnd.imgtec.pskidentity+xml" {
		t.Errorf("as XML\n%s %s, want\n%s", resp.Header.Get("Content-Type"), body, wantXML)
	}

	if resp, body = s.exchange(t, "DELETE", "/identities/psk/"+made.Identity, "", bearer(s.admin)); resp.StatusCode != http.StatusNoContent || body != "" {
		t.Errorf("DELETE = %d %s, want 204", resp.StatusCode, body)
	}
	resp, body = s.exchange(t, "GET", "/identities/psk/"+made.Identity, "", bearer(s.admin))
	if want := `{"ErrorCode":"NotFound","ErrorMessage":"no such psk"}`; resp.StatusCode != http.StatusNotFound || body != want {
		t.Errorf("GET after DELETE = %d %s, want 404 %s", resp.StatusCode, body, want)
	}
}

func TestIdentitiesLinksFollowAccept(t *testing.T) {
	s := start(t)
	host := strings.TrimPrefix(s.url, "http://")
	for accept, want := range map[string][2]string{
		"":                     {"application/vnd.imgtec.identities+json", "application/vnd.imgtec.pskidentities+json"},
		"*/*":                  {"application/json", "application/json"},
		"text/html, */*;q=0.1": {"application/json", "application/json"},
		"application/json":     {"application/vnd.imgtec.identities+json", "application/vnd.imgtec.pskidentities+json"},
		"text/html;q=1,application/foo+JSON,a/xml": {"application/vnd.imgtec.identities+json", "application/vnd.imgtec.pskidentities+json"},
		"application/vnd.imgtec.identities+xml":    {"application/vnd.imgtec.identities+xml", "application/vnd.imgtec.pskidentities+xml"},
		"image/png":                                {"application/vnd.imgtec.identities+json", "application/vnd.imgtec.pskidentities+json"},
	} {
		resp, body := s.exchange(t, "GET", "/identities", "", bearer(s.admin, "Accept", accept))
		if got := resp.Header.Get("Content-Type"); got != want[0] {
			t.Errorf("Accept %q: Content-Type %s, want %s", accept, got, want[0])
		}
		if !strings.Contains(body, want[1]) || !strings.Contains(body, "https://"+host+"/identities/psk") {
			t.Errorf("Accept %q: %s, want a link of type %s", accept, body, want[1])
		}
	}
}

func TestPSKImport(t *testing.T) {
	s := start(t)
	for name, c := range map[string]struct {
		kind, body, identity, secret string
		status                       int
	}{
		"JSON":         {"application/json", `{"Identity":"dev-1","Secret":"30313233343536373839616263646566","SecretFormat":"text","Unknown":1}`, "dev-1", "30313233343536373839616263646566", 201},
		"XML":          {"application/vnd.imgtec.pskidentity+xml", `<PSKIdentity><Identity>dev-2</Identity><Secret>ffeeddccbbaa99887766554433221100</Secret></PSKIdentity>`, "dev-2", "FFEEDDCCBBAA99887766554433221100", 201},
		"a path in it": {"APPLICATION/JSON; charset=utf-8", `{"Identity":"urn:dev/3?x"}`, "urn:dev/3?x", "", 201},
		"taken":        {"application/json", `{"Identity":"taken"}`, "", "", 409},
		"not hex":      {"application/json", `{"Secret":"xyz"}`, "", "", 400},
		"too short":    {"application/json", `{"Secret":"00ff"}`, "", "", 400},
		"a format":     {"application/json", `{"SecretFormat":"base64"}`, "", "", 400},
		"no device":    {"application/json", `{"Device":"nobody"}`, "", "", 404},
		"wrong type":   {"application/json", `{"Identity":7}`, "", "", 400},
		"not UTF-8":    {"application/json", "{\"Identity\":\"\xff\"}", "", "", 400},
		"nested":       {"application/json", strings.Repeat(`{"a":`, 20000), "", "", 400},
		"nested XML":   {"application/xml", strings.Repeat(`<a>`, 20000), "", "", 400},
		"half":         {"application/json", `{"Identity":`, "", "", 400},
		"a form":       {"application/x-www-form-urlencoded", `Identity=x`, "", "", 415},
		"too large":    {"application/json", `{"Identity":"` + strings.Repeat("x", 2<<20) + `"}`, "", "", 413},
	} {
		t.Run(name, func(t *testing.T) {
			if c.status == http.StatusConflict {
				s.exchange(t, "POST", "/identities/psk", c.body, bearer(s.admin, "Content-Type", c.kind))
			}
			resp, body := s.exchange(t, "POST", "/identities/psk", c.body, bearer(s.admin, "Content-Type", c.kind))
			if resp.StatusCode != c.status {
				t.Fatalf("= %d %s, want %d", resp.StatusCode, body, c.status)
			}
			if c.status != http.StatusCreated {
				if !strings.HasPrefix(resp.Header.Get("Content-Type"), "application/vnd.imgtec.error+json") || !strings.Contains(body, "ErrorMessage") {
					t.Errorf("error is %s %s", resp.Header.Get("Content-Type"), body)
				}
				return
			}
			var made pskAnswer
			if err := json.Unmarshal([]byte(body), &made); err != nil {
				t.Fatal(err)
			}
			if made.Identity != c.identity || c.secret != "" && made.Secret != c.secret {
				t.Errorf("imported as %s %s, want %s %s", made.Identity, made.Secret, c.identity, c.secret)
			}
			if resp, body := s.exchange(t, "DELETE", "/identities/psk/"+url.PathEscape(c.identity), "", bearer(s.admin)); resp.StatusCode != http.StatusNoContent {
				t.Errorf("DELETE = %d %s, want 204", resp.StatusCode, body)
			}
		})
	}
}

func TestPSKPages(t *testing.T) {
	s := start(t)
	var bulk struct {
		Items []struct{ Identity, Secret, Device string }
	}
	s.call(t, s.admin, "POST", "/api/v1/psk/bulk", map[string]any{"count": 45, "secret_format": "text"}, http.StatusCreated, &bulk)
	if len(bulk.Items) != 45 {
		t.Fatalf("made %d, want 45", len(bulk.Items))
	}
	for _, c := range []struct {
		query                   string
		count, start            int
		first, prev, next, last string
	}{
		{"", 20, 0, "", "", "startIndex=20", "startIndex=25"},
		{"?startIndex=20", 20, 20, "startIndex=0", "startIndex=0", "startIndex=40", "startIndex=25"},
		{"?startIndex=40", 5, 40, "startIndex=0", "startIndex=20", "", ""},
		{"?startIndex=45", 0, 45, "startIndex=0", "startIndex=25", "", ""},
		{"?startIndex=99", 0, 99, "startIndex=0", "startIndex=79", "", ""},
		{"?pageSize=45", 45, 0, "", "", "", ""},
		{"?pageSize=30&x=1&session_token=s&referrerUrl=r", 30, 0, "", "", "pageSize=30&startIndex=30&x=1", "pageSize=30&startIndex=15&x=1"},
		{"?startIndex=x&pageSize=y", 20, 0, "", "", "startIndex=20", "startIndex=25"},
		{"?pageSize=0", 0, 0, "", "", "pageSize=0&startIndex=0", "pageSize=0&startIndex=45"},
	} {
		_, body := s.exchange(t, "GET", "/identities/psk"+c.query, "", bearer(s.admin))
		var page struct {
			PageInfo struct {
				TotalCount, ItemsCount, StartIndex int
				Links                              []creatorLink
			}
			Items []pskAnswer
			Links []creatorLink
		}
		if err := json.Unmarshal([]byte(body), &page); err != nil {
			t.Fatal(err)
		}
		if p := page.PageInfo; p.TotalCount != 45 || p.ItemsCount != c.count || p.StartIndex != c.start || len(page.Items) != c.count {
			t.Errorf("%s: %+v with %d items, want %d of 45 from %d", c.query, p, len(page.Items), c.count, c.start)
		}
		if c.count == 0 && strings.Contains(body, `"Items"`) {
			t.Errorf("%s: an empty list has Items: %s", c.query, body)
		}
		got := map[string]string{}
		for _, l := range page.PageInfo.Links {
			_, got[l.Rel], _ = strings.Cut(l.Href, "?")
		}
		for rel, want := range map[string]string{"first": c.first, "prev": c.prev, "next": c.next, "last": c.last} {
			if got[rel] != want {
				t.Errorf("%s: link %s is %q, want %q", c.query, rel, got[rel], want)
			}
		}
		for i, item := range page.Items {
			if item.Secret != "" || item.Identity != bulk.Items[c.start+i].Identity {
				t.Errorf("%s: item %d is %+v, want %s without its secret", c.query, i, item, bulk.Items[c.start+i].Identity)
			}
		}
	}
	if resp, body := s.exchange(t, "GET", "/identities/psk?startIndex=-1", "", bearer(s.admin)); resp.StatusCode != http.StatusBadRequest {
		t.Errorf("a negative startIndex = %d %s, want 400", resp.StatusCode, body)
	}
	for _, count := range []int{0, -1, 1001} {
		s.call(t, s.admin, "POST", "/api/v1/psk/bulk", map[string]any{"count": count}, http.StatusBadRequest, nil)
	}
	s.call(t, s.admin, "POST", "/api/v1/psk/bulk", map[string]any{"count": 1, "secret_format": strconv.Itoa(1)}, http.StatusBadRequest, nil)
}

func TestPSKOfThisServersOwnAPI(t *testing.T) {
	s := start(t)
	type key struct{ Identity, Secret, Device string }
	var made, revealed key
	s.call(t, s.admin, "POST", "/api/v1/psk", map[string]any{"identity": "a/b", "secret_format": "text", "labels": map[string]string{"x": "y"}}, http.StatusCreated, &made)
	if made.Identity != "a/b" || len(made.Secret) != 64 {
		t.Errorf("made %+v", made)
	}
	s.call(t, s.admin, "POST", "/api/v1/psk", map[string]any{"device": made.Device}, http.StatusCreated, nil)
	s.call(t, s.admin, "POST", "/api/v1/psk", map[string]any{}, http.StatusCreated, nil)
	var page struct{ Items []key }
	s.call(t, s.admin, "GET", "/api/v1/psk", nil, http.StatusOK, &page)
	if len(page.Items) != 3 || page.Items[0].Secret != "" {
		t.Errorf("list = %+v, want 3 without secrets", page.Items)
	}
	s.call(t, s.admin, "GET", "/api/v1/psk?device=a/b", nil, http.StatusOK, &page)
	if len(page.Items) != 2 {
		t.Errorf("of the device = %+v, want 2", page.Items)
	}
	s.call(t, s.admin, "POST", "/api/v1/psk/a%2Fb/reveal", nil, http.StatusOK, &revealed)
	if revealed.Secret != made.Secret {
		t.Errorf("revealed %q, want %q", revealed.Secret, made.Secret)
	}
	s.call(t, s.admin, "POST", "/api/v1/psk/nobody/reveal", nil, http.StatusNotFound, nil)
}
