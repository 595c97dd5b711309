package server_test

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"keystead/config"
	"keystead/internal/iothubtest"
)

// follows lets a server reach a hub.
func follows(hub *iothubtest.Hub) func(*config.Config) {
	return func(c *config.Config) { c.Webhook.CAFile, c.Webhook.AllowCIDRs = hub.CA, []string{"127.0.0.0/8"} }
}

// round delivers what is due.
func (r *running) round(t *testing.T) {
	t.Helper()
	if _, err := r.Events.Round(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestIoTHubFollowsTheDevices(t *testing.T) {
	t.Parallel()
	hub := iothubtest.New(t)
	s := start(t, follows(hub))
	_, early, _ := s.accepted(t, "early")
	var made map[string]any
	s.call(t, s.admin, "POST", "/api/v1/webhooks", map[string]any{"format": "azure-iot-hub", "connection_string": hub.Connection()}, 201, &made)
	one := "/api/v1/webhooks/" + made["id"].(string)
	var shown map[string]any
	s.call(t, s.admin, "GET", one, nil, 200, &shown)
	for _, answer := range []map[string]any{made, shown} {
		if answer["secret"] != nil || answer["url"] != hub.URL || answer["policy"] != iothubtest.Policy || strings.Contains(fmt.Sprint(answer), "MDEyMzQ1Njc4") {
			t.Errorf("got %v, want the hub without its key", answer)
		}
	}
	d, id, _ := s.accepted(t, "late")
	s.round(t)
	if got := hub.Status(id); got != "enabled" {
		t.Fatalf("accepted: the hub has %q", got)
	}
	key := hub.Devices[id]["authentication"]
	for _, step := range []struct{ method, path, want string }{
		{"POST", "/api/v1/devices/" + id + "/suspend", "disabled"},
		{"POST", "/api/v1/devices/" + id + "/resume", "enabled"},
	} {
		s.call(t, s.admin, step.method, step.path, nil, 200, nil)
		s.round(t)
		if got := hub.Status(id); got != step.want {
			t.Errorf("%s: the hub has %q, want %q", step.path, got, step.want)
		}
	}
	set := s.authDevice(t, id).AuthSets[0].ID
	for _, status := range []string{"rejected", "accepted"} {
		s.call(t, s.admin, "PUT", devauth+"/devices/"+id+"/auth/"+set+"/status", map[string]any{"status": status}, 204, nil)
		s.round(t)
		if got, want := hub.Status(id), map[string]string{"rejected": "disabled", "accepted": "enabled"}[status]; got != want {
			t.Errorf("%s: the hub has %q, want %q", status, got, want)
		}
	}
	if fmt.Sprint(hub.Devices[id]["authentication"]) != fmt.Sprint(key) {
		t.Error("the keys that the hub made are not what they were")
	}
	if got := hub.Status(early); got != "" {
		t.Errorf("before it is brought up to date the hub has %q", got)
	}
	s.call(t, s.admin, "POST", one+"/sync", map[string]any{}, 200, nil)
	s.round(t)
	if hub.Status(early) != "enabled" || hub.Status(id) != "enabled" {
		t.Errorf("brought up to date: the hub has %v", hub.Devices)
	}
	s.call(t, s.admin, "DELETE", devauth+"/devices/"+id, nil, 204, nil)
	s.round(t)
	if got := hub.Status(id); got != "" {
		t.Errorf("decommissioned: the hub has %q", got)
	}
	if res, _ := d.ask(t, s); res.StatusCode != http.StatusUnauthorized {
		t.Errorf("got %d", res.StatusCode)
	}
}

func (r *running) authDevice(t *testing.T, id string) (d authDeviceAnswer) {
	t.Helper()
	r.call(t, r.admin, "GET", devauth+"/devices/"+id, nil, 200, &d)
	return d
}

// TestIoTHubComesTwice: what was done and not noted is done again and changes nothing, and what
// others do in the hub at the same time is not undone.
func TestIoTHubComesTwice(t *testing.T) {
	t.Parallel()
	hub := iothubtest.New(t)
	s := start(t, follows(hub))
	later := time.Duration(0)
	now := s.Events.Now
	s.Events.Now = func() time.Time { return now().Add(later) }
	var made struct{ ID string }
	s.call(t, s.admin, "POST", "/api/v1/webhooks", map[string]any{"format": "azure-iot-hub", "connection_string": hub.Connection()}, 201, &made)
	_, id, _ := s.accepted(t, "1")
	for _, status := range []int{500, 429} { // each is done, and answered as if it was not
		hub.Fail = []int{status}
		hub.Asked = nil
		s.round(t)
		later += 5 * time.Second
	}
	hub.Fail = nil
	s.round(t)
	if got := hub.Status(id); got != "enabled" {
		t.Errorf("the hub has %q", got)
	}
	var waiting struct{ Items []any }
	s.call(t, s.admin, "GET", "/api/v1/webhooks/"+made.ID+"/deliveries", nil, 200, &waiting)
	if len(waiting.Items) != 0 {
		t.Errorf("got %v waiting, want nothing", waiting.Items)
	}
	// 409: the identity was made between the look and the creation. 412: it was changed.
	for _, status := range []int{409, 412} {
		s.call(t, s.admin, "POST", "/api/v1/devices/"+id+"/suspend", nil, 200, nil)
		hub.Fail, hub.Asked = []int{status}, nil
		s.round(t)
		if got := hub.Status(id); got != "disabled" || len(hub.Asked) != 3 {
			t.Errorf("%d: the hub has %q after %v, want it looked at again at once", status, got, hub.Asked)
		}
		s.call(t, s.admin, "POST", "/api/v1/devices/"+id+"/resume", nil, 200, nil)
		s.round(t)
	}
	// Somebody deleted it there.
	delete(hub.Devices, id)
	s.call(t, s.admin, "DELETE", devauth+"/devices/"+id, nil, 204, nil)
	s.round(t)
	s.call(t, s.admin, "GET", "/api/v1/webhooks/"+made.ID+"/deliveries", nil, 200, &waiting)
	if len(waiting.Items) != 0 {
		t.Errorf("got %v waiting, want nothing", waiting.Items)
	}
}

func TestIoTHubIsTested(t *testing.T) {
	t.Parallel()
	hub := iothubtest.New(t)
	s := start(t, follows(hub))
	create := func(connection string) string {
		var made struct{ ID string }
		s.call(t, s.admin, "POST", "/api/v1/webhooks", map[string]any{"format": "azure-iot-hub", "connection_string": connection, "authentication": "certificateAuthority"}, 201, &made)
		return "/api/v1/webhooks/" + made.ID
	}
	good, bad := create(hub.Connection()), create(strings.ReplaceAll(hub.Connection(), "MDEy", "MTEy"))
	_, id, _ := s.accepted(t, "1")
	type report struct {
		OK            bool
		Status        int
		Error, Action string
	}
	for _, test := range []struct {
		hub    string
		device string
		want   report
	}{
		{good, "", report{OK: true, Status: 200}},
		{good, id, report{OK: true, Status: 200, Action: "create"}},
		{good, "no-such-device", report{OK: true, Status: 200, Action: "nothing"}},
		{bad, "", report{Status: 401, Error: "the receiver answered with status 401"}},
	} {
		var got report
		s.call(t, s.admin, "POST", test.hub+"/test", map[string]string{"device": test.device}, 200, &got)
		if got != test.want {
			t.Errorf("device %q: got %+v, want %+v", test.device, got, test.want)
		}
	}
	if len(hub.Devices) != 0 {
		t.Errorf("a test changed the hub: %v", hub.Devices)
	}
	s.round(t)
	if auth := fmt.Sprint(hub.Devices[id]["authentication"]); auth != "map[type:certificateAuthority]" {
		t.Errorf("the identity proves itself by %s", auth)
	}
}

func TestIoTHubConnectionStrings(t *testing.T) {
	t.Parallel()
	s := start(t)
	const key = ";SharedAccessKey=MDEyMzQ1Njc4OWFiY2RlZg=="
	for name, in := range map[string]map[string]any{
		"nothing":             {},
		"no key":              {"connection_string": "HostName=hub.azure-devices.net;SharedAccessKeyName=x"},
		"no policy":           {"connection_string": "HostName=hub.azure-devices.net" + key},
		"no host":             {"connection_string": "SharedAccessKeyName=x" + key},
		"a path in the host":  {"connection_string": "HostName=hub.example/x;SharedAccessKeyName=x" + key},
		"a user in the host":  {"connection_string": "HostName=me@hub.example;SharedAccessKeyName=x" + key},
		"no base64":           {"connection_string": "HostName=hub.example;SharedAccessKeyName=x;SharedAccessKey=!"},
		"a short key":         {"connection_string": "HostName=hub.example;SharedAccessKeyName=x;SharedAccessKey=MDEy"},
		"a URL as well":       {"connection_string": "HostName=hub.example;SharedAccessKeyName=x" + key, "url": "https://x.example"},
		"types as well":       {"connection_string": "HostName=hub.example;SharedAccessKeyName=x" + key, "types": []string{"device.*"}},
		"some authentication": {"connection_string": "HostName=hub.example;SharedAccessKeyName=x" + key, "authentication": "selfSigned"},
	} {
		in["format"] = "azure-iot-hub"
		var got struct{ Error string }
		s.call(t, s.admin, "POST", "/api/v1/webhooks", in, 400, &got)
		if strings.Contains(got.Error, "MDEy") {
			t.Errorf("%s: the error repeats the key", name)
		}
	}
	s.call(t, s.admin, "POST", "/api/v1/webhooks", map[string]any{"url": "https://x.example", "connection_string": "x"}, 400, nil)
	var hook struct{ ID string }
	s.call(t, s.admin, "POST", "/api/v1/webhooks", map[string]any{"url": "https://x.example"}, 201, &hook)
	s.call(t, s.admin, "POST", "/api/v1/webhooks/"+hook.ID+"/sync", map[string]any{}, 409, nil)
	s.call(t, s.admin, "POST", "/api/v1/webhooks/"+hook.ID+"/test", map[string]any{"device": "x"}, 400, nil)
}
