package server_test

import (
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
)

// accepted is a device that was preauthorised and its token.
func (r *running) accepted(t *testing.T, mac string) (d authDevice, id, token string) {
	t.Helper()
	d = newAuthDevice(t, mac)
	r.call(t, r.admin, "POST", devauth+"/devices", map[string]any{"identity_data": json.RawMessage(d.id), "pubkey": d.pem()}, 201, nil)
	res, token := d.ask(t, r)
	if res.StatusCode != http.StatusOK {
		t.Fatalf("got %d %s", res.StatusCode, token)
	}
	var who struct {
		Device string `json:"device"`
	}
	r.call(t, token, "GET", "/api/v1/whoami", nil, 200, &who)
	return d, who.Device, token
}

func TestIntrospectDeviceToken(t *testing.T) {
	t.Parallel()
	s := start(t)
	_, id, token := s.accepted(t, "1")
	introspect := func(key, token string) (int, map[string]any) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.url+"/oauth/introspect", strings.NewReader(url.Values{"token": {token}}.Encode()))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		req.Header.Set("Authorization", "Bearer "+key)
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		var v map[string]any
		_ = json.Unmarshal(b, &v)
		return res.StatusCode, v
	}
	if status, v := introspect(s.admin, token); status != 200 || v["active"] != true || v["sub"] != id || v["kind"] != "device" || v["org"] != s.org {
		t.Errorf("got %d %v", status, v)
	}
	for name, bad := range map[string]string{"a word": "x", "cut": token[:len(token)-2], "none": strings.Join(strings.Split(token, ".")[:2], ".") + "."} {
		if status, v := introspect(s.admin, bad); status != 200 || v["active"] != false || len(v) != 1 {
			t.Errorf("%s: got %d %v, want no more than that it is not active", name, status, v)
		}
	}
	if status, _ := introspect(token, token); status != 403 {
		t.Errorf("by the device: got %d, want 403", status)
	}
	if status, _ := introspect("nobody", token); status != 401 {
		t.Errorf("by nobody: got %d, want 401", status)
	}
	s.call(t, s.admin, "POST", "/api/v1/devices/"+id+"/suspend", nil, 200, nil)
	if status, v := introspect(s.admin, token); status != 200 || v["active"] != false {
		t.Errorf("of a suspended device: got %d %v", status, v)
	}
}

func TestVerifyForGateways(t *testing.T) {
	t.Parallel()
	s := start(t)
	d, id, token := s.accepted(t, "1")
	verify := func(method, gateway, authorization string) (int, http.Header) {
		req, err := http.NewRequestWithContext(t.Context(), method, s.url+"/api/internal/v1/devauth/tokens/verify", nil)
		if err != nil {
			t.Fatal(err)
		}
		if gateway != "" {
			req.Header.Set("X-Gateway-Key", gateway)
		}
		if authorization != "" {
			req.Header.Set("Authorization", authorization)
		}
		req.Header.Set("X-Keystead-Device", "forged")
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		return res.StatusCode, res.Header
	}
	for _, method := range []string{http.MethodGet, http.MethodPost} {
		if status, h := verify(method, s.admin, "bearer "+token); status != 200 || h.Get("X-Keystead-Device") != id || h.Get("X-Keystead-Org") != s.org {
			t.Errorf("%s: got %d %v", method, status, h)
		}
	}
	for name, row := range map[string]struct {
		gateway, authorization string
		want                   int
	}{
		"no key of the gateway":       {"", "Bearer " + token, 403},
		"the device as the gateway":   {token, "Bearer " + token, 403},
		"no token":                    {s.admin, "", 401},
		"another scheme":              {s.admin, "Basic " + token, 401},
		"an API key as the token":     {s.admin, "Bearer " + s.admin, 401},
		"a token that was cut":        {s.admin, "Bearer " + token[:len(token)-1], 401},
		"a token without a signature": {s.admin, "Bearer " + strings.Join(strings.Split(token, ".")[:2], ".") + ".", 401},
	} {
		if status, _ := verify(http.MethodGet, row.gateway, row.authorization); status != row.want {
			t.Errorf("%s: got %d, want %d", name, status, row.want)
		}
	}
	var dev authDeviceAnswer
	s.call(t, s.admin, "GET", devauth+"/devices/"+id, nil, 200, &dev)
	s.call(t, s.admin, "PUT", devauth+"/devices/"+id+"/auth/"+dev.AuthSets[0].ID+"/status", map[string]string{"status": "rejected"}, 204, nil)
	if status, _ := verify(http.MethodGet, s.admin, "Bearer "+token); status != 401 {
		t.Errorf("of a rejected device: got %d, want 401, never 403: clients come again only after that", status)
	}
	if res, _ := d.ask(t, s); res.StatusCode != http.StatusUnauthorized {
		t.Errorf("got %d", res.StatusCode)
	}
}

func TestMenderWebhook(t *testing.T) {
	t.Parallel()
	s := start(t)
	var hook struct {
		ID string `json:"id"`
	}
	s.call(t, s.admin, "POST", "/api/v1/webhooks", map[string]any{"url": "https://hooks.example/x", "format": "mender", "types": []string{"device-*"}}, 201, &hook)
	_, id, _ := s.accepted(t, "1")
	s.call(t, s.admin, "DELETE", devauth+"/devices/"+id, nil, 204, nil)
	var waiting struct {
		Items []struct {
			Type    string `json:"type"`
			Subject string `json:"subject"`
		} `json:"items"`
	}
	s.call(t, s.admin, "GET", "/api/v1/webhooks/"+hook.ID+"/deliveries", nil, 200, &waiting)
	var types []string
	for _, d := range waiting.Items {
		if d.Subject != id {
			t.Errorf("got an event of %s", d.Subject)
		}
		types = append(types, d.Type)
	}
	want := "device-status-changed device-provisioned device-status-changed device-decommissioned"
	if got := strings.Join(types, " "); got != want {
		t.Errorf("got events %s, want %s", got, want)
	}
}
