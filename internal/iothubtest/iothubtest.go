// Package iothubtest is the registry of an Azure IoT Hub for tests: it checks signatures and
// preconditions as Azure documents them.
package iothubtest

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
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

// Hub stands in for the registry of an Azure IoT Hub: it speaks its service API over
// TLS and checks what it is asked as Azure documents it.
type Hub struct {
	URL string
	CA  string // a file with its certificate

	// Devices are the identities it has, Asked the methods and ids of its requests in order, Fail
	// statuses to answer the next changes with, which are done nevertheless. Tests use them while
	// nobody asks.
	Devices map[string]map[string]any
	Asked   []string
	Fail    []int

	t       *testing.T
	host    string
	key     []byte
	mu      sync.Mutex
	changes map[string][]string
	version int
}

// Policy is the name of its shared access policy.
const Policy = "registryReadWrite"

// New starts a hub that ends with the test.
func New(t *testing.T) *Hub {
	t.Helper()
	h := &Hub{t: t, key: []byte("0123456789abcdef+/=?0123456789ab"), Devices: map[string]map[string]any{}, changes: map[string][]string{}}
	front := httptest.NewTLSServer(h)
	t.Cleanup(front.Close)
	h.URL, h.host = front.URL, strings.TrimPrefix(front.URL, "https://")
	h.CA = filepath.Join(t.TempDir(), "hub.pem")
	if err := os.WriteFile(h.CA, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: front.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	return h
}

// Connection is the connection string of the hub.
func (h *Hub) Connection() string {
	return "HostName=" + h.host + ";SharedAccessKeyName=" + Policy + ";SharedAccessKey=" + base64.StdEncoding.EncodeToString(h.key)
}

// signed checks a shared access signature byte by byte: its four parts, in any order, each
// once, and the signature over the encoded name of the hub, a line end and the expiry.
func (h *Hub) signed(header string) error {
	rest, ok := strings.CutPrefix(header, "SharedAccessSignature ")
	if !ok {
		return fmt.Errorf("it is signed by %q", header)
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
	if len(parts) != 4 || parts["sr"] != escaped || parts["skn"] != Policy {
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
func (h *Hub) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h.mu.Lock()
	defer h.mu.Unlock()
	body, _ := io.ReadAll(r.Body)
	id := strings.TrimPrefix(r.URL.Path, "/devices/")
	h.Asked = append(h.Asked, r.Method+" "+id)
	if err := h.signed(r.Header.Get("Authorization")); err != nil {
		h.t.Logf("hub: %v", err)
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	if r.URL.RawQuery != "api-version=2021-04-12" {
		h.t.Errorf("hub: query %q", r.URL.RawQuery)
	}
	if r.URL.Path == "/statistics/devices" && r.Method == http.MethodGet {
		_ = json.NewEncoder(w).Encode(map[string]int{"totalDeviceCount": len(h.Devices)})
		return
	}
	status := h.serve(w, r, id, body)
	if r.Method != http.MethodGet && len(h.Fail) > 0 {
		status, h.Fail = h.Fail[0], h.Fail[1:]
	}
	w.WriteHeader(status)
	if status == http.StatusOK {
		_ = json.NewEncoder(w).Encode(h.Devices[id])
	}
}

func (h *Hub) serve(_ http.ResponseWriter, r *http.Request, id string, body []byte) int {
	has, there := h.Devices[id]
	match := r.Header.Get("If-Match")
	switch {
	case r.Method == http.MethodPut && !there && match != "", r.Method != http.MethodPut && !there:
		return http.StatusNotFound
	case r.Method == http.MethodPut && there && match == "":
		return http.StatusConflict // DeviceAlreadyExists
	case r.Method == http.MethodDelete && match == "":
		return http.StatusBadRequest
	case match != "" && match != "*" && match != strconv.Quote(fmt.Sprint(has["etag"])):
		return http.StatusPreconditionFailed
	case r.Method == http.MethodGet:
		return http.StatusOK
	case r.Method == http.MethodDelete:
		delete(h.Devices, id)
		h.changes[id] = append(h.changes[id], "delete")
		return http.StatusNoContent
	}
	var in map[string]any
	if err := json.Unmarshal(body, &in); err != nil || in["deviceId"] != id || r.Header.Get("Content-Type") != "application/json" {
		h.t.Errorf("hub: body %s", body)
		return http.StatusBadRequest
	}
	auth, ok := in["authentication"].(map[string]any)
	if !ok {
		h.t.Errorf("hub: body %s", body)
		return http.StatusBadRequest
	}
	if auth["type"] == "sas" && auth["symmetricKey"] == nil {
		auth["symmetricKey"] = map[string]any{"primaryKey": "made by the hub for " + id}
	}
	change := "create"
	if there {
		change = fmt.Sprint(in["status"])
	}
	h.changes[id] = append(h.changes[id], change)
	h.version++
	in["etag"] = fmt.Sprintf("MQ%d=", h.version)
	h.Devices[id] = in
	return http.StatusOK
}

// Status is how a device stands at the hub, "" if it is not there.
func (h *Hub) Status(id string) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	s, _ := h.Devices[id]["status"].(string)
	return s
}

// Changes are what was done to a device at the hub, in order: create, enabled, disabled, delete.
func (h *Hub) Changes(id string) []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.changes[id])
}
