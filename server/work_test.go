package server_test

import (
	"context"
	"encoding/json"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"keystead/config"
	"keystead/identity"
	"keystead/internal/storecount"
	"keystead/server"
	"keystead/store"
	"keystead/store/bolt"
)

// startCounted is start with what is done to the store counted.
func startCounted(t *testing.T) (*running, *storecount.Engine) {
	t.Helper()
	counted := &storecount.Engine{}
	return startBy(t, func(ctx context.Context, cfg config.Config, log *slog.Logger) (*server.Server, error) {
		return server.BuildOver(ctx, cfg, log, func(db *bolt.Engine) store.Engine {
			counted.Engine = db
			return counted
		})
	}), counted
}

// A name of another organisation's and one that nobody has are answered alike, and the
// same is read for both: neither the answer nor the work behind it tells which it was.
func TestForeignNamesCostWhatUnknownOnesDo(t *testing.T) {
	r, counted := startCounted(t)
	var victim struct{ ID string }
	r.call(t, r.admin, "POST", "/orgs", map[string]string{"name": "victim"}, http.StatusCreated, &victim)
	in := func(method, path, body string, into any) {
		t.Helper()
		a, text := r.exchange(t, method, path, body, map[string]string{"Authorization": "Bearer " + r.admin, "X-Org-ID": victim.ID, "Content-Type": "application/json"})
		if a.StatusCode >= 300 {
			t.Fatalf("%s %s = %d %s", method, path, a.StatusCode, text)
		}
		if err := json.Unmarshal([]byte(text), into); err != nil {
			t.Fatal(err)
		}
	}
	var things struct{ Things []struct{ ID string } }
	in("POST", "/things", `{"name":"thing","type":"sensor"}`, &things)
	var device, ca, hook, app, owner struct{ ID string }
	in("POST", "/api/v1/devices", `{"name":"device","aliases":[{"kind":"serial_number","value":"serial-7"}]}`, &device)
	in("POST", "/api/v1/cas", `{"name":"ca","subject":{"common_name":"ca"}}`, &ca)
	in("POST", "/api/v1/dms", `{"id":"dms-7","name":"dms","settings":{"enrollment_settings":{"est_rfc7030_settings":{"auth_mode":"ENROLMENT_TOKEN"}}}}`, &struct{}{})
	in("POST", "/api/v1/webhooks", `{"url":"https://hook.example/"}`, &hook)
	in("POST", "/oauth/clients", `{"name":"app","redirect_uris":["https://a.example/"]}`, &app)
	r.call(t, r.user(t, "owner@example.com", victim.ID, identity.Owner), "GET", "/users/profile", nil, http.StatusOK, &owner)

	stranger := r.user(t, "admin@example.com", r.org, identity.Admin)
	const nobody = "01a22eda-2aae-7000-9382-1e48222f9674"
	type cost struct {
		status int
		body   string
		work   storecount.Work
	}
	ask := func(method, path, name string) (c cost) {
		w := httptest.NewRecorder()
		req := httptest.NewRequestWithContext(t.Context(), method, strings.ReplaceAll(path, "NAME", name), strings.NewReader("{}"))
		req.Header.Set("Authorization", "Bearer "+stranger)
		req.Header.Set("Content-Type", "application/json")
		c.work = counted.Of(func() { r.Handler().ServeHTTP(w, req) })
		c.status = w.Code
		var fields map[string]any
		_ = json.Unmarshal(w.Body.Bytes(), &fields) // what is no JSON is compared as it is
		if fields == nil {
			c.body = strings.ReplaceAll(w.Body.String(), name, "NAME")
			return c
		}
		delete(fields, "request_id")
		b, err := json.Marshal(fields)
		if err != nil {
			t.Fatal(err)
		}
		c.body = strings.ReplaceAll(string(b), name, "NAME")
		return c
	}
	looked := 0 // some are refused before anything is read
	for _, test := range []struct{ path, foreign, unknown string }{
		{"/api/v1/devices/NAME", device.ID, nobody},
		{"/api/v1/devices/NAME", "serial-7", "serial-8"},
		{"/things/NAME", things.Things[0].ID, nobody},
		{"/api/management/v2/devauth/devices/NAME", device.ID, nobody},
		{"/api/v1/cas/NAME", ca.ID, nobody},
		{"/api/v1/dms/NAME", "dms-7", "dms-8"},
		{"/api/v1/webhooks/NAME", hook.ID, nobody},
		{"/oauth/clients/NAME", app.ID, nobody},
		{"/orgs/NAME", victim.ID, nobody},
		{"/users/NAME", owner.ID, nobody},
	} {
		for _, method := range []string{http.MethodGet, http.MethodDelete} {
			ask(method, test.path, test.unknown) // what the first finds out is remembered
			foreign, unknown := ask(method, test.path, test.foreign), ask(method, test.path, test.unknown)
			if foreign != unknown {
				t.Errorf("%s %s: a foreign name costs %+v,\nan unknown one %+v", method, test.path, foreign, unknown)
			}
			if foreign.status < 400 {
				t.Errorf("%s %s of a foreign name: got %+v", method, test.path, foreign)
			}
			if foreign.work.Gets > 0 {
				looked++
			}
		}
	}
	if looked < 14 {
		t.Errorf("only %d of the names were looked at", looked)
	}
}
