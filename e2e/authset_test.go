//go:build e2e

package e2e_test

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"keystead/client"
)

// asker is a device that speaks Mender's protocol by itself, where a test needs more than one
// real client would do.
type asker struct {
	s    *server
	http *http.Client
	key  crypto.Signer
	id   string // JSON
}

func (s *server) asker(id string) *asker {
	s.t.Helper()
	pool := x509.NewCertPool()
	roots, err := os.ReadFile(s.ca())
	if err != nil || !pool.AppendCertsFromPEM(roots) {
		s.t.Fatalf("ca.pem: %v", err)
	}
	to := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}}
	s.t.Cleanup(to.CloseIdleConnections)
	return &asker{s, &http.Client{Transport: to, Timeout: patience}, edKey(s.t), id}
}

// with is the same device with another key.
func (a *asker) with(key crypto.Signer) *asker { return &asker{a.s, a.http, key, a.id} }

// ask sends an auth request and returns the status and the body.
func (a *asker) ask() (int, string) {
	a.s.t.Helper()
	der, err := x509.MarshalPKIXPublicKey(a.key.Public())
	if err != nil {
		a.s.t.Fatal(err)
	}
	body, err := json.Marshal(map[string]string{"id_data": a.id, "pubkey": string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))})
	if err != nil {
		a.s.t.Fatal(err)
	}
	sig, err := a.key.Sign(rand.Reader, body, crypto.Hash(0))
	if err != nil {
		a.s.t.Fatal(err)
	}
	return a.do(http.MethodPost, "/api/devices/v1/authentication/auth_requests", bytes.NewReader(body), "X-MEN-Signature", base64.StdEncoding.EncodeToString(sig), "Content-Type", "application/json")
}

func (a *asker) do(method, path string, body io.Reader, headers ...string) (int, string) {
	req, err := http.NewRequest(method, a.s.url(path), body)
	if err != nil {
		return 0, err.Error()
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	res, err := a.http.Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		return 0, err.Error()
	}
	return res.StatusCode, string(b)
}

// uses is the status of a use of a token.
func (a *asker) uses(token string) int {
	status, _ := a.do(http.MethodGet, "/api/v1/whoami", nil, "Authorization", "Bearer "+token)
	return status
}

// token has the device let in.
func (a *asker) token() string {
	a.s.t.Helper()
	status, token := a.ask()
	if status != http.StatusOK {
		a.s.t.Fatalf("auth request: got %d %s", status, token)
	}
	a.s.secret(token)
	return token
}

// onlyDevice is the one device that there is.
func (s *server) onlyDevice() (found client.AuthDevice) {
	s.t.Helper()
	n := 0
	for d, err := range s.admin().AuthDevices(s.t.Context(), "") {
		if err != nil {
			s.t.Fatal(err)
		}
		found = d
		n++
	}
	if n != 1 {
		s.t.Fatalf("there are %d devices, want one", n)
	}
	return found
}

// setOf is the id of the set that has a key.
func setOf(t *testing.T, d client.AuthDevice, key crypto.Signer) string {
	t.Helper()
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		t.Fatal(err)
	}
	text := string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	for _, set := range d.AuthSets {
		if set.PubKey == text {
			return set.ID
		}
	}
	t.Fatalf("no set of the key in %+v", d)
	return ""
}

// TestTokenOnceDeadStaysDead: the token of one key ends when another is accepted, on the very
// next request, and is dead for good.
func TestTokenOnceDeadStaysDead(t *testing.T) {
	t.Parallel()
	s := start(t, fast...)
	first := s.asker(`{"serial":"1"}`)
	second := first.with(edKey(t))
	first.ask()
	d := s.onlyDevice()
	s.cli("authset", "accept", d.ID)
	tokens := map[string]bool{}
	for range 20 { // many of them within one second
		tokens[first.token()] = true
	}
	if len(tokens) != 20 {
		t.Errorf("20 requests gave %d different tokens", len(tokens))
	}
	for token := range tokens {
		if got := first.uses(token); got != 200 {
			t.Errorf("before: got %d, want 200", got)
		}
	}
	second.ask()
	d = s.onlyDevice()
	s.cli("authset", "accept", d.ID, setOf(t, d, second.key))
	fresh := second.token()
	s.cli("authset", "accept", d.ID, setOf(t, d, first.key))
	again := first.token()
	for token := range tokens {
		if got := first.uses(token); got != 401 {
			t.Errorf("an old token after its key is accepted again: got %d, want 401", got)
		}
	}
	if old, now := first.uses(fresh), first.uses(again); old != 401 || now != 200 {
		t.Errorf("the second key's token: got %d, want 401; the new one of the first: got %d, want 200", old, now)
	}
}

// TestSigningKeysRotateUnderLoad: tokens that were given out are good whatever key signed them.
func TestSigningKeysRotateUnderLoad(t *testing.T) {
	t.Parallel()
	s := start(t, fast...)
	a := s.asker(`{"serial":"1"}`)
	a.ask()
	s.cli("authset", "accept", s.onlyDevice().ID)
	var mu sync.Mutex
	tokens := []string{a.token()}
	var uses atomic.Int64
	stop := make(chan struct{})
	var load sync.WaitGroup
	for w := range 4 {
		load.Go(func() {
			for i := w; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				mu.Lock()
				token := tokens[i%len(tokens)]
				mu.Unlock()
				if status := a.uses(token); status != 200 {
					t.Errorf("a good token: got %d, want 200", status)
					return
				}
				uses.Add(1)
				status, token := a.ask()
				if status != 200 {
					t.Errorf("auth request: got %d %s", status, token)
					return
				}
				mu.Lock()
				tokens = append(tokens, token)
				mu.Unlock()
			}
		})
	}
	const rotations = 12
	for i := range rotations {
		s.cli("token", "rotate", "--now", "--algorithm", []string{"EdDSA", "ES256", "RS256"}[i%3])
	}
	close(stop)
	load.Wait()
	for _, token := range []string{tokens[0], tokens[len(tokens)-1]} {
		if got := a.uses(token); got != 200 {
			t.Errorf("at the end: got %d, want 200", got)
		}
	}
	figure(t, "%d rotations of the signing key while %d tokens were given out and %d uses were all good", rotations, len(tokens), uses.Load())
}

func TestAcceptRules(t *testing.T) {
	t.Parallel()
	s := start(t, fast...)
	vouching := edKey(t)
	der, err := x509.MarshalPKIXPublicKey(vouching.Public())
	if err != nil {
		t.Fatal(err)
	}
	voucherKey := string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	sig, err := vouching.Sign(rand.Reader, []byte(`{"vouched":"1"}`), crypto.Hash(0))
	if err != nil {
		t.Fatal(err)
	}
	for name, rule := range map[string]map[string]any{
		"equals":  {"attribute": "model", "equals": "m1"},
		"matches": {"attribute": "serial", "matches": "SN-[0-9]+"},
		"network": {"attribute": "near", "equals": "yes", "cidrs": []string{"127.0.0.0/8"}},
		"far":     {"attribute": "far", "equals": "yes", "cidrs": []string{"192.0.2.0/24"}},
		"over":    {"attribute": "late", "equals": "yes", "until": time.Now().Add(-time.Hour)},
		"open":    {"attribute": "early", "equals": "yes", "until": time.Now().Add(time.Hour)},
		"most":    {"attribute": "few", "equals": "yes", "most": 1},
		"signed":  {"pubkey": voucherKey},
	} {
		rule["name"] = name
		b, err := json.Marshal(rule)
		if err != nil {
			t.Fatal(err)
		}
		if out, code := s.curl("-H", "Authorization: Bearer "+s.key, "-H", "Content-Type: application/json", "-d", string(b), s.url("/api/v1/accept-rules")); code != 201 {
			t.Fatalf("%s: got %d %s", name, code, out)
		}
	}
	for _, test := range []struct {
		id   string
		want int
	}{
		{`{"model":"m1"}`, 200},
		{`{"model":"m11"}`, 401},
		{`{"serial":"SN-17"}`, 200},
		{`{"serial":"xSN-17"}`, 401},
		{`{"near":"yes"}`, 200},
		{`{"far":"yes"}`, 401},
		{`{"late":"yes"}`, 401},
		{`{"early":"yes"}`, 200},
		{`{"few":"yes","n":"1"}`, 200},
		{`{"few":"yes","n":"2"}`, 401},
		{`{"vouched":"1","voucher":"` + base64.StdEncoding.EncodeToString(sig) + `"}`, 200},
		{`{"vouched":"2","voucher":"` + base64.StdEncoding.EncodeToString(sig) + `"}`, 401},
		{`{"vouched":"1"}`, 401},
	} {
		if got, body := s.asker(test.id).ask(); got != test.want {
			t.Errorf("%s: got %d %s, want %d", test.id, got, body, test.want)
		}
	}
}

// TestMenderBehindForwarding: Debian's daemon with this server in front of what answers the
// rest of its API, which hears of proven devices alone.
func TestMenderBehindForwarding(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	heard := map[string]int{} // requests of each device
	behind := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if r.Header.Get("Authorization") != "" || !strings.HasPrefix(r.URL.Path, "/mender/api/devices/") {
			t.Errorf("%s was passed on with %v", r.URL, r.Header)
		}
		heard[r.Header.Get("X-Keystead-Device")]++
		if strings.Contains(r.URL.Path, "/deployments/") {
			w.WriteHeader(http.StatusNoContent)
		}
	}))
	t.Cleanup(behind.Close)
	s := start(t, "forward.upstream="+behind.URL+"/mender")
	d := s.mender("de:ad:be:ef:00:07", "https://"+s.at.HTTPS, s.ca(), nil)
	d.bootstrap(false)
	rec := d.record()
	s.cli("authset", "accept", rec.ID)
	d.daemon()
	of := func() int {
		mu.Lock()
		defer mu.Unlock()
		return heard[rec.ID]
	}
	s.eventually("the daemon to reach what is behind", func() bool { return of() > 1 })
	s.cli("token", "revoke", rec.AuthSets[0].ID)
	had := of()
	s.eventually("the daemon to come with a new token", func() bool { return of() > had })
	s.cli("device", "suspend", rec.ID)
	time.Sleep(500 * time.Millisecond) // what was under way has ended
	had = of()
	time.Sleep(3 * time.Second) // three rounds of the daemon's
	mu.Lock()
	defer mu.Unlock()
	if heard[rec.ID] > had || len(heard) != 1 {
		t.Errorf("after the device is suspended: got %v, want %d", heard, had)
	}
}

// TestEventSurvivesKill: what was committed and not delivered is delivered by the next process.
func TestEventSurvivesKill(t *testing.T) {
	t.Parallel()
	var away atomic.Bool
	away.Store(true)
	got := make(chan string, 64)
	hook := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if away.Load() {
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		var e struct{ Type string }
		_ = json.NewDecoder(r.Body).Decode(&e)
		got <- e.Type
	}))
	t.Cleanup(hook.Close)
	s := prepare(t, "webhook.allow_cidrs=127.0.0.0/8")
	s.args = append(s.args, "--set", "webhook.ca_file="+s.path("hook.pem"))
	if err := os.WriteFile(s.path("hook.pem"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: hook.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	s.start()
	s.cli("webhook", "create", hook.URL, "--format", "mender", "--type", "device-provisioned")
	a := s.asker(`{"serial":"1"}`)
	a.ask()
	s.cli("authset", "accept", s.onlyDevice().ID)
	s.kill() // at once: the acceptance is durable, its delivery is not done
	away.Store(false)
	s.start()
	select {
	case kind := <-got:
		if kind != "device-provisioned" {
			t.Errorf("got %q", kind)
		}
	case <-time.After(patience):
		t.Error("the event was lost")
	}
}

// TestImportShowsProgress on a terminal, which script(1) is.
func TestImportShowsProgress(t *testing.T) {
	t.Parallel()
	s := start(t, fast...)
	const devices = 3000
	file := s.path("factory.csv")
	writeFactory(t, file, devices)
	out := s.must("script", "-qec", fmt.Sprintf("%s --data %s authset import %s", bin, s.data, file), "/dev/null")
	for _, want := range []string{"  0% 0/3000 devices", " 33% 1000/3000 devices", "100% 3000/3000 devices", "3000 preauthorized"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in %q", want, out)
		}
	}
}
