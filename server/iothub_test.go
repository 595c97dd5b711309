package server_test

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"keystead/config"
)

// iotHub stands in for the registry of an Azure IoT Hub: it speaks its service API over
// TLS and checks what it is asked as Azure documents it.
type iotHub struct {
	t       *testing.T
	url     string
	host    string
	ca      string // a file
	key     []byte
	mu      sync.Mutex
	devices map[string]map[string]any
	asked   []string // method and id, in order
	version int
	fail    []int // statuses to answer the next changes with; they are done nevertheless
}

const hubPolicy = "registryReadWrite"

func newIoTHub(t *testing.T) *iotHub {
	t.Helper()
	h := &iotHub{t: t, key: []byte("0123456789abcdef+/=?0123456789ab"), devices: map[string]map[string]any{}}
	front := httptest.NewTLSServer(h)
	t.Cleanup(front.Close)
	h.url, h.host = front.URL, strings.TrimPrefix(front.URL, "https://")
	h.ca = filepath.Join(t.TempDir(), "hub.pem")
	if err := os.WriteFile(h.ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: front.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	return h
}

// connection is the connection string of the hub.
func (h *iotHub) connection() string {
	return "HostName=" + h.host + ";SharedAccessKeyName=" + hubPolicy + ";SharedAccessKey=" + base64.StdEncoding.EncodeToString(h.key)
}

// signed checks a shared access signature byte by byte: its four parts, in any order, each
// once, and the signature over the encoded name of the hub, a line end and the expiry.
func (h *iotHub) signed(header string) error {
	rest, ok := strings.CutPrefix(header, "SharedAccessSignature ")
	if !ok {
		return fmt.Errorf("Authorization is %q", header)
	}
	parts := map[string]string{}
	for part := range strings.SplitSeq(rest, "&") {
		name, value, _ := strings.Cut(part, "=")
		if _, twice := parts[name]; twice {
			return fmt.Errorf("%s is there twice", name)
		}
		parts[name] = value
	}
	escaped := strings.ReplaceAll(h.host, ":", "%3A")
	if len(parts) != 4 || parts["sr"] != escaped || parts["skn"] != hubPolicy {
		return fmt.Errorf("sr or skn of %q", header)
	}
	end, err := strconv.ParseInt(parts["se"], 10, 64)
	if left := time.Until(time.Unix(end, 0)); err != nil || left <= 0 || left > time.Hour {
		return fmt.Errorf("se of %q", header)
	}
	m := hmac.New(sha256.New, h.key)
	m.Write([]byte(escaped + "\n" + parts["se"]))
	want := base64.StdEncoding.EncodeToString(m.Sum(nil))
	want = strings.NewReplacer("+", "%2B", "/", "%2F", "=", "%3D").Replace(want)
	if parts["sig"] != want {
		return fmt.Errorf("sig is %s, want %s", parts["sig"], want)
	}
	return nil
}

// ServeHTTP implements http.Handler.
func (h *iotHub) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h.mu.Lock()
	defer h.mu.Unlock()
	body, _ := io.ReadAll(r.Body)
	id := strings.TrimPrefix(r.URL.Path, "/devices/")
	h.asked = append(h.asked, r.Method+" "+id)
	if err := h.signed(r.Header.Get("Authorization")); err != nil {
		h.t.Logf("hub: %v", err)
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	if r.URL.RawQuery != "api-version=2021-04-12" {
		h.t.Errorf("hub: query %q", r.URL.RawQuery)
	}
	if r.URL.Path == "/statistics/devices" && r.Method == http.MethodGet {
		_ = json.NewEncoder(w).Encode(map[string]int{"totalDeviceCount": len(h.devices)})
		return
	}
	status := h.serve(w, r, id, body)
	if r.Method != http.MethodGet && len(h.fail) > 0 {
		status, h.fail = h.fail[0], h.fail[1:]
	}
	w.WriteHeader(status)
	if status == http.StatusOK {
		_ = json.NewEncoder(w).Encode(h.devices[id])
	}
}

func (h *iotHub) serve(_ http.ResponseWriter, r *http.Request, id string, body []byte) int {
	has, there := h.devices[id]
	match := r.Header.Get("If-Match")
	switch {
	case r.Method == http.MethodPut && !there && match != "", r.Method != http.MethodPut && !there:
		return http.StatusNotFound
	case r.Method == http.MethodPut && there && match == "":
		return http.StatusConflict // DeviceAlreadyExists
	case r.Method == http.MethodDelete && match == "":
		return http.StatusBadRequest
	case match != "" && match != "*" && match != strconv.Quote(has["etag"].(string)):
		return http.StatusPreconditionFailed
	case r.Method == http.MethodGet:
		return http.StatusOK
	case r.Method == http.MethodDelete:
		delete(h.devices, id)
		return http.StatusNoContent
	}
	var in map[string]any
	if err := json.Unmarshal(body, &in); err != nil || in["deviceId"] != id || r.Header.Get("Content-Type") != "application/json" {
		h.t.Errorf("hub: body %s", body)
		return http.StatusBadRequest
	}
	auth := in["authentication"].(map[string]any)
	if auth["type"] == "sas" && auth["symmetricKey"] == nil {
		auth["symmetricKey"] = map[string]any{"primaryKey": "made by the hub for " + id}
	}
	h.version++
	in["etag"] = fmt.Sprintf("MQ%d=", h.version)
	h.devices[id] = in
	return http.StatusOK
}

// status is how a device stands at the hub, "" if it is not there.
func (h *iotHub) status(id string) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	s, _ := h.devices[id]["status"].(string)
	return s
}

func (h *iotHub) opened(c *config.Config) {
	c.Webhook.CAFile, c.Webhook.AllowCIDRs = h.ca, []string{"127.0.0.0/8"}
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
	hub := newIoTHub(t)
	s := start(t, hub.opened)
	_, early, _ := s.accepted(t, "early")
	var made map[string]any
	s.call(t, s.admin, "POST", "/api/v1/webhooks", map[string]any{"format": "azure-iot-hub", "connection_string": hub.connection()}, 201, &made)
	one := "/api/v1/webhooks/" + made["id"].(string)
	var shown map[string]any
	s.call(t, s.admin, "GET", one, nil, 200, &shown)
	for _, answer := range []map[string]any{made, shown} {
		if answer["secret"] != nil || answer["url"] != hub.url || answer["policy"] != hubPolicy || strings.Contains(fmt.Sprint(answer), "MDEyMzQ1Njc4") {
			t.Errorf("got %v, want the hub without its key", answer)
		}
	}
	d, id, _ := s.accepted(t, "late")
	s.round(t)
	if got := hub.status(id); got != "enabled" {
		t.Fatalf("accepted: the hub has %q", got)
	}
	key := hub.devices[id]["authentication"]
	for _, step := range []struct{ method, path, want string }{
		{"POST", "/api/v1/devices/" + id + "/suspend", "disabled"},
		{"POST", "/api/v1/devices/" + id + "/resume", "enabled"},
	} {
		s.call(t, s.admin, step.method, step.path, nil, 200, nil)
		s.round(t)
		if got := hub.status(id); got != step.want {
			t.Errorf("%s: the hub has %q, want %q", step.path, got, step.want)
		}
	}
	set := s.authDevice(t, id).AuthSets[0].ID
	for _, status := range []string{"rejected", "accepted"} {
		s.call(t, s.admin, "PUT", devauth+"/devices/"+id+"/auth/"+set+"/status", map[string]any{"status": status}, 204, nil)
		s.round(t)
		if got, want := hub.status(id), map[string]string{"rejected": "disabled", "accepted": "enabled"}[status]; got != want {
			t.Errorf("%s: the hub has %q, want %q", status, got, want)
		}
	}
	if fmt.Sprint(hub.devices[id]["authentication"]) != fmt.Sprint(key) {
		t.Error("the keys that the hub made are not what they were")
	}
	if got := hub.status(early); got != "" {
		t.Errorf("before it is brought up to date the hub has %q", got)
	}
	s.call(t, s.admin, "POST", one+"/sync", map[string]any{}, 200, nil)
	s.round(t)
	if hub.status(early) != "enabled" || hub.status(id) != "enabled" {
		t.Errorf("brought up to date: the hub has %v", hub.devices)
	}
	s.call(t, s.admin, "DELETE", devauth+"/devices/"+id, nil, 204, nil)
	s.round(t)
	if got := hub.status(id); got != "" {
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
	hub := newIoTHub(t)
	s := start(t, hub.opened)
	later := time.Duration(0)
	now := s.Events.Now
	s.Events.Now = func() time.Time { return now().Add(later) }
	var made struct{ ID string }
	s.call(t, s.admin, "POST", "/api/v1/webhooks", map[string]any{"format": "azure-iot-hub", "connection_string": hub.connection()}, 201, &made)
	_, id, _ := s.accepted(t, "1")
	for _, status := range []int{500, 429} { // each is done, and answered as if it was not
		hub.fail = []int{status}
		hub.asked = nil
		s.round(t)
		later += 5 * time.Second
	}
	hub.fail = nil
	s.round(t)
	if got := hub.status(id); got != "enabled" {
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
		hub.fail, hub.asked = []int{status}, nil
		s.round(t)
		if got := hub.status(id); got != "disabled" || len(hub.asked) != 3 {
			t.Errorf("%d: the hub has %q after %v, want it looked at again at once", status, got, hub.asked)
		}
		s.call(t, s.admin, "POST", "/api/v1/devices/"+id+"/resume", nil, 200, nil)
		s.round(t)
	}
	// Somebody deleted it there.
	delete(hub.devices, id)
	s.call(t, s.admin, "DELETE", devauth+"/devices/"+id, nil, 204, nil)
	s.round(t)
	s.call(t, s.admin, "GET", "/api/v1/webhooks/"+made.ID+"/deliveries", nil, 200, &waiting)
	if len(waiting.Items) != 0 {
		t.Errorf("got %v waiting, want nothing", waiting.Items)
	}
}

func TestIoTHubIsTested(t *testing.T) {
	t.Parallel()
	hub := newIoTHub(t)
	s := start(t, hub.opened)
	create := func(connection string) string {
		var made struct{ ID string }
		s.call(t, s.admin, "POST", "/api/v1/webhooks", map[string]any{"format": "azure-iot-hub", "connection_string": connection, "authentication": "certificateAuthority"}, 201, &made)
		return "/api/v1/webhooks/" + made.ID
	}
	good, bad := create(hub.connection()), create(strings.ReplaceAll(hub.connection(), "MDEy", "MTEy"))
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
	if len(hub.devices) != 0 {
		t.Errorf("a test changed the hub: %v", hub.devices)
	}
	s.round(t)
	if auth := fmt.Sprint(hub.devices[id]["authentication"]); auth != "map[type:certificateAuthority]" {
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
