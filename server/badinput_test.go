package server_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi3"

	"keystead/server"
	"keystead/store"
)

// badBodies are bodies that are right for no operation.
var badBodies = map[string]string{
	"empty":              "",
	"no JSON":            "hello",
	"cut off":            `{"name":`,
	"null":               "null",
	"number":             "42",
	"text":               `"text"`,
	"two values":         "{}{}",
	"unknown field":      `{"no_such_field_anywhere":1}`,
	"field twice":        `{"name":"a","name":"b"}`,
	"not UTF-8":          "{\"name\":\"\xff\xfe\"}",
	"NUL":                "\x00",
	"10,000 lists deep":  strings.Repeat("[", 10_000) + strings.Repeat("]", 10_000),
	"10,000 objects":     strings.Repeat(`{"name":`, 10_000) + "1" + strings.Repeat("}", 10_000),
	"longer than may be": `{"name":"` + strings.Repeat("x", 2<<20) + `"}`,
}

// badParts stand in for the parameters of a path.
var badParts = []string{
	"nope", "%ff%fe", "%00", "..%2f..%2fetc", "%0d%0aX-Evil:%201", strings.Repeat("x", 5000), strings.Repeat("y", 1500), "00000000-0000-7000-8000-000000000000", "*", "-1", "'%22%3C",
}

var badQueries = []string{
	"limit=abc", "limit=0", "limit=-1", "limit=99999999999999999999", "cursor=!", "cursor=" + strings.Repeat("A", 3000), "cursor=AAAA", "x=%ff", "state=nope", "label=", "label=%00", "since=x",
}

var pathParameter = regexp.MustCompile(`:\w+|\*`)

// fine are inputs that an operation takes all the same, as the published API it
// comes from does.
var fine = map[string][]string{
	// What is not there is gone.
	"DELETE /keys/:id": {"path"},
	// Every field is optional, and newer ones may come.
	"POST /identities/psk":                           {"body empty", "body unknown field"},
	"POST /accesskeys":                               {"body unknown field"},
	"POST /orgs/search":                              {"body empty"},
	"POST /api/management/v2/devauth/devices/search": {"body unknown field"},
	"POST /things/search":                            {"body empty"},
	"POST /users/search":                             {"body empty"},
	"POST /identities/certificates":                  {"body empty", "body unknown field"},
	// Who logs in with a passkey alone has nothing to say before it is asked for it.
	"POST /tokens/passkey/begin": {"body empty"},
}

// patient is a recorder that takes the limits on time that streams set.
type patient struct{ *httptest.ResponseRecorder }

func (patient) SetReadDeadline(time.Time) error  { return nil }
func (patient) SetWriteDeadline(time.Time) error { return nil }

// TestBadInput sends to every operation there is what no operation wants: it is
// answered with a 4xx that says what to do, nothing fails inside, and nothing is
// stored.
func TestBadInput(t *testing.T) {
	s := start(t)
	s.Log = slog.New(slog.DiscardHandler)
	h := s.Handler()
	doc, err := contract()
	if err != nil {
		t.Fatal(err)
	}
	sent := 0
	for _, name := range operations(s.Server) {
		method, path, _ := strings.Cut(name, " ")
		takesBody := method != http.MethodGet && method != http.MethodDelete && method != http.MethodHead
		before := digest(t, s.DB)
		check := func(what string, req *http.Request, mustFail bool) {
			t.Helper()
			req.Header.Set("Authorization", "Bearer "+s.admin)
			w := httptest.NewRecorder()
			ctx, cancel := req.Context(), func() {}
			if strings.HasSuffix(path, "/live") { // goes on as long as somebody listens
				ctx, cancel = context.WithTimeout(ctx, time.Millisecond)
			}
			h.ServeHTTP(patient{w}, req.WithContext(ctx))
			cancel()
			sent++
			taken := slices.ContainsFunc(fine[name], func(p string) bool { return strings.HasPrefix(what, p) })
			switch body := w.Body.String(); {
			case w.Code == http.StatusServiceUnavailable && strings.HasSuffix(path, "/health"): // the server of this test was not run
			case w.Code < 400 && taken:
				before = digest(t, s.DB)
			case w.Code >= 500, w.Code < 200:
				t.Errorf("%s, %s: got %d %.300s", name, what, w.Code, body)
			case w.Code < 400 && mustFail:
				t.Errorf("%s, %s: got %d, want a 4xx", name, what, w.Code)
			case w.Code == http.StatusNotFound && strings.HasPrefix(path, "/api/management/") && w.Body.Len() == 0: // as Mender answers
			case w.Code >= 400 && method != http.MethodHead && !saysWhat(w):
				t.Errorf("%s, %s: got %d %.300q, which does not say what is wrong", name, what, w.Code, body)
			}
		}
		for _, part := range badParts {
			at := pathParameter.ReplaceAllLiteralString(path, part)
			if at == path {
				continue
			}
			check(fmt.Sprintf("path with %.20q", part), request(t, method, at, "application/json", "{}"), method != http.MethodGet)
		}
		at := pathParameter.ReplaceAllLiteralString(path, "nope")
		if method == http.MethodGet {
			for _, q := range badQueries {
				check("query "+q, request(t, method, at+"?"+q, "", ""), strings.Contains(q, "%"))
			}
		}
		if takesBody {
			for what, body := range badBodies {
				check("body "+what, request(t, method, at, "application/json", body), true)
			}
			check("body of another type", request(t, method, at, "application/octet-stream", "\x00\x01"), true)
			for what, body := range wrongFields(doc, method, path) {
				check(what, request(t, method, at, "application/json", body), true)
			}
		}
		if after := digest(t, s.DB); after != before {
			t.Errorf("%s: something was stored", name)
		}
	}
	if t.Failed() {
		return
	}
	t.Logf("bad input: %d requests to %d operations: none failed inside, nothing was stored", sent, len(operations(s.Server)))
	if sent < 1000 {
		t.Errorf("only %d requests were sent", sent)
	}
}

func operations(s *server.Server) []string {
	var all []string
	for name := range s.Routes() {
		all = append(all, name)
	}
	slices.Sort(all)
	return all
}

func request(t *testing.T, method, target, kind, body string) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, "http://server"+target, io.NopCloser(strings.NewReader(body)))
	if err != nil {
		t.Fatalf("%s %.100s: %v", method, target, err)
	}
	req.ContentLength, req.RemoteAddr = int64(len(body)), "192.0.2.1:1234"
	if kind != "" {
		req.Header.Set("Content-Type", kind)
	}
	return req
}

// saysWhat reports whether an answer tells a reader what is wrong.
func saysWhat(w *httptest.ResponseRecorder) bool {
	text := strings.TrimSpace(w.Body.String())
	if !strings.HasPrefix(w.Header().Get("Content-Type"), "application/json") {
		return text != ""
	}
	var any map[string]any
	if json.Unmarshal([]byte(text), &any) != nil {
		return false
	}
	for _, field := range []string{"error", "ErrorMessage", "error_description", "reason"} {
		if said, ok := any[field].(string); ok && said != "" {
			return true
		}
	}
	return false
}

// digest is of all that is stored but the audit trail, in which failures are
// recorded.
func digest(t *testing.T, db store.Engine) string {
	t.Helper()
	sum := sha256.New()
	err := db.View(t.Context(), func(tx store.Tx) error {
		for e, err := range tx.Scan(nil, nil) {
			if err != nil {
				return err
			}
			if !bytes.HasPrefix(e.Key, []byte("audit ")) {
				fmt.Fprintf(sum, "%x %x\n", e.Key, e.Value)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return string(sum.Sum(nil))
}

// wrongFields makes bodies of which one field, of those that openapi.yaml
// documents, has a value of another type, or a text that is far too long.
func wrongFields(doc *openapi3.T, method, path string) map[string]string {
	item := doc.Paths.Find(regexp.MustCompile(`:(\w+)`).ReplaceAllString(strings.TrimSuffix(path, "*"), "{$1}"))
	if item == nil {
		return nil
	}
	op := item.GetOperation(method)
	if op == nil || op.RequestBody == nil || op.RequestBody.Value == nil {
		return nil
	}
	media := op.RequestBody.Value.Content["application/json"]
	if media == nil || media.Schema == nil {
		return nil
	}
	bodies := map[string]string{}
	for name, schema := range media.Schema.Value.Properties {
		for what, value := range wrongValues(schema.Value) {
			bodies[fmt.Sprintf("field %s as %s", name, what)] = fmt.Sprintf(`{%q:%s}`, name, value)
		}
	}
	return bodies
}

func wrongValues(s *openapi3.Schema) map[string]string {
	all := map[string]string{
		"number": "42.5", "truth": "true", "text": `"text"`, "list": "[[]]", "object": `{"no_such_field_anywhere":{}}`, "long text": `"` + strings.Repeat("x", 100_000) + `"`,
	}
	switch {
	case s.Type.Is("string"):
		delete(all, "text")
	case s.Type.Is("boolean"):
		delete(all, "truth")
	case s.Type.Is("object") && s.AdditionalProperties.Has == nil && s.Properties == nil:
		delete(all, "object") // of any members
	case s.Type == nil:
		return nil
	}
	return all
}
