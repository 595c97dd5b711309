//go:build e2e

package e2e_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"io"
	"maps"
	"math/big"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"keystead/client"
)

// menderDevice is a directory with all that Debian's mender client keeps and reads. The
// client looks for its identity script and artifact_info where only root may write, so it
// runs in a mount namespace of its own that has them there.
type menderDevice struct {
	s   *server
	dir string
	mac string
}

// menderConf is the client's mender.conf.
type menderConf map[string]any

// mender makes a device that speaks to the server at url.
func (s *server) mender(mac, url, ca string, more menderConf) *menderDevice {
	s.t.Helper()
	d := &menderDevice{s, filepath.Join(s.dir, "mender-"+mac), mac}
	conf := menderConf{
		"ServerURL": url, "ServerCertificate": ca, "InventoryPollIntervalSeconds": 1, "UpdatePollIntervalSeconds": 1, "RetryPollIntervalSeconds": 1,
		"DBus": map[string]any{"Enabled": false},
	}
	maps.Copy(conf, more)
	b, err := json.Marshal(conf)
	if err != nil {
		s.t.Fatal(err)
	}
	for name, text := range map[string]string{
		"identity/mender-device-identity": "#!/bin/sh\necho mac=" + mac + "\necho serial=SN-" + mac + "\n",
		"etc/artifact_info":               "artifact_name=release-1\n",
		"data/device_type":                "device_type=scratch\n",
		"mender.conf":                     string(b),
	} {
		file := filepath.Join(d.dir, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			s.t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o755); err != nil {
			s.t.Fatal(err)
		}
	}
	return d
}

// args is how the client is run.
func (d *menderDevice) args(args ...string) []string {
	return append([]string{
		"--map-root-user", "--mount", "sh", "-ec", `mount --bind "$1/identity" /usr/share/mender/identity; mount --bind "$1/etc" /etc/mender; d=$1; shift
		exec mender --no-syslog --config "$d/mender.conf" --fallback-config /nonexistent --data "$d/data" "$@"`, "sh", d.dir,
	}, args...)
}

// bootstrap has the client ask once; in says whether it has to be let in.
func (d *menderDevice) bootstrap(in bool) string {
	d.s.t.Helper()
	r := d.s.run("unshare", d.args("bootstrap")...)
	if want := map[bool]int{true: 0, false: 1}[in]; r.code != want {
		d.s.t.Fatalf("mender bootstrap: got exit code %d, want %d\n%s", r.code, want, r.all())
	}
	return r.all()
}

// daemon has the client run until the test ends.
func (d *menderDevice) daemon() {
	d.s.t.Helper()
	cmd := exec.Command("unshare", d.args("daemon")...)
	cmd.Dir = d.s.dir
	out := &buffer{}
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		d.s.t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }() // it is ended below
	d.s.t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGKILL)
		<-ended
		if d.s.t.Failed() {
			d.s.t.Logf("mender:\n%s", tail(out.String(), 3000))
		}
	})
}

// record is the device as the server has it.
func (d *menderDevice) record() client.AuthDevice {
	d.s.t.Helper()
	for dev, err := range d.s.admin().AuthDevices(d.s.t.Context(), "") {
		if err != nil {
			d.s.t.Fatal(err)
		}
		if strings.Contains(string(dev.Identity), `"`+d.mac+`"`) {
			return dev
		}
	}
	d.s.t.Fatalf("the server knows no device %s", d.mac)
	return client.AuthDevice{}
}

// wire is what goes between the client and the server: a proxy that keeps the tokens, and
// answers for the parts of a Mender server that are not ours, if the token is good here.
type wire struct {
	s    *server
	url  string
	ca   string
	mu   sync.Mutex
	seen []string // tokens, in the order they were given out
	used []int    // statuses that uses of tokens got
}

func (s *server) wire() *wire {
	s.t.Helper()
	target, err := url.Parse("https://" + s.at.HTTPS)
	if err != nil {
		s.t.Fatal(err)
	}
	pool := x509.NewCertPool()
	roots, err := os.ReadFile(s.ca())
	if err != nil {
		s.t.Fatal(err)
	}
	pool.AppendCertsFromPEM(roots)
	w := &wire{s: s}
	to := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}}
	s.t.Cleanup(to.CloseIdleConnections)
	proxy := &httputil.ReverseProxy{
		Transport: to,
		Rewrite:   func(r *httputil.ProxyRequest) { r.SetURL(target) },
		ModifyResponse: func(res *http.Response) error {
			b, err := io.ReadAll(res.Body)
			res.Body = io.NopCloser(bytes.NewReader(b))
			if res.StatusCode == http.StatusOK {
				w.mu.Lock()
				w.seen = append(w.seen, string(b))
				w.mu.Unlock()
			}
			return err
		},
	}
	front := httptest.NewUnstartedServer(http.HandlerFunc(func(out http.ResponseWriter, r *http.Request) {
		if strings.HasSuffix(r.URL.Path, "/auth_requests") {
			proxy.ServeHTTP(out, r)
			return
		}
		status := w.whoami(to, r.Header.Get("Authorization"))
		w.mu.Lock()
		w.used = append(w.used, status)
		w.mu.Unlock()
		if status == http.StatusOK {
			status = http.StatusNoContent
			if strings.Contains(r.URL.Path, "inventory") {
				status = http.StatusOK
			}
		}
		out.WriteHeader(status)
	}))
	front.StartTLS()
	s.t.Cleanup(front.Close)
	w.url, w.ca = front.URL, s.path("wire.pem")
	if err := os.WriteFile(w.ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: front.Certificate().Raw}), 0o600); err != nil {
		s.t.Fatal(err)
	}
	return w
}

// whoami is the status the server has for a device's credential.
func (w *wire) whoami(via http.RoundTripper, authorization string) int {
	req, err := http.NewRequest(http.MethodGet, w.s.url("/api/v1/whoami"), nil)
	if err != nil {
		return 0
	}
	req.Header.Set("Authorization", authorization)
	res, err := via.RoundTrip(req)
	if err != nil {
		return http.StatusBadGateway
	}
	res.Body.Close()
	return res.StatusCode
}

// tokens are those that were given out so far.
func (w *wire) tokens() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return append([]string{}, w.seen...)
}

// uses is how often a use of a token got a status.
func (w *wire) uses(status int) (n int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, s := range w.used {
		if s == status {
			n++
		}
	}
	return n
}

// good is whether the server lets in with a token, by curl.
func (s *server) good(token string) bool {
	s.t.Helper()
	s.secret(token)
	_, code := s.curl("-H", "Authorization: Bearer "+token, s.url("/api/v1/whoami"))
	if code != 200 && code != 401 {
		s.t.Errorf("whoami: got %d", code)
	}
	return code == 200
}

func TestMenderClient(t *testing.T) {
	t.Parallel()
	s := start(t)
	w := s.wire()
	d := s.mender("de:ad:be:ef:00:01", w.url, w.ca, menderConf{"TenantToken": "dummy-tenant-token"})
	if out := d.bootstrap(false); !strings.Contains(out, "dev auth: unauthorized") {
		t.Errorf("pending: the client does not say why: %s", out)
	}
	rec := d.record()
	if rec.Status != "pending" || len(rec.AuthSets) != 1 {
		t.Fatalf("got %+v, want one pending set", rec)
	}
	s.cli("authset", "accept", rec.ID)
	d.bootstrap(true)
	if got := w.tokens(); len(got) != 1 || !s.good(got[0]) {
		t.Fatalf("got tokens %q, want one that is good", got)
	}
	d.bootstrap(true)
	s.cli("authset", "reject", rec.ID)
	for _, token := range w.tokens() {
		if s.good(token) {
			t.Error("a token of a rejected device is good")
		}
	}
	d.bootstrap(false)
	s.cli("authset", "accept", rec.ID, rec.AuthSets[0].ID)
	for _, token := range w.tokens() {
		if s.good(token) {
			t.Error("accepting the device again revives a token")
		}
	}
	d.bootstrap(true)
}

// TestMenderDaemonGetsANewToken: a daemon whose token is revoked asks for another by itself.
func TestMenderDaemonGetsANewToken(t *testing.T) {
	t.Parallel()
	s := start(t)
	w := s.wire()
	d := s.mender("de:ad:be:ef:00:02", w.url, w.ca, nil)
	d.bootstrap(false)
	rec := d.record()
	s.cli("authset", "accept", rec.ID)
	d.daemon()
	s.eventually("the daemon to use a token", func() bool { return w.uses(200) > 0 })
	had := len(w.tokens())
	s.cli("token", "revoke", rec.AuthSets[0].ID)
	s.eventually("the daemon to be refused, and to come with a new token", func() bool {
		return w.uses(401) > 0 && len(w.tokens()) > had
	})
	all := w.tokens()
	for i, token := range all[:had] {
		if s.good(token) {
			t.Errorf("the revoked token %d is good", i)
		}
	}
	if !s.good(all[len(all)-1]) {
		t.Error("the new token is not good")
	}
}

// TestMenderKeyRotation: a new key for an accepted device, with nobody at the device.
func TestMenderKeyRotation(t *testing.T) {
	t.Parallel()
	s := start(t)
	w := s.wire()
	d := s.mender("de:ad:be:ef:00:03", w.url, w.ca, nil)
	d.bootstrap(false)
	s.cli("authset", "accept", d.record().ID)
	d.bootstrap(true)
	old := w.tokens()[0]
	// What the device will show up with: made by the client itself, under another name.
	twin := s.mender("de:ad:be:ef:00:33", w.url, w.ca, nil)
	twin.bootstrap(false)
	fresh := filepath.Join(d.dir, "fresh.pem")
	if err := os.WriteFile(fresh, []byte(twin.record().AuthSets[0].PubKey), 0o600); err != nil {
		t.Fatal(err)
	}
	args := []string{"authset", "preauthorize", "--attribute", "mac=" + d.mac, "--attribute", "serial=SN-" + d.mac, "--key", fresh}
	if r := s.cliFails(6, args...); !strings.Contains(r.err, "--force") {
		t.Errorf("without --force: got %q", r.err)
	}
	s.cli(append(args, "--force")...)
	if !s.good(old) {
		t.Error("the old token ended before the new key showed up")
	}
	key, err := os.ReadFile(filepath.Join(twin.dir, "data/mender-agent.pem"))
	if err == nil {
		err = os.WriteFile(filepath.Join(d.dir, "data/mender-agent.pem"), key, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	d.bootstrap(true)
	all := w.tokens()
	if s.good(old) || !s.good(all[len(all)-1]) {
		t.Error("the old token lives, or the new one does not")
	}
	if rec := d.record(); rec.Status != "accepted" || len(rec.AuthSets) != 2 {
		t.Errorf("got %+v, want the same device with two sets", rec)
	}
}

// writeKey writes a private key in PKCS #8.
func writeKey(t *testing.T, file string, key crypto.Signer) {
	t.Helper()
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err == nil {
		err = os.MkdirAll(filepath.Dir(file), 0o755)
	}
	if err == nil {
		err = os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func ecKey(t *testing.T, c elliptic.Curve) crypto.Signer {
	t.Helper()
	k, err := ecdsa.GenerateKey(c, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func edKey(t *testing.T) crypto.Signer {
	t.Helper()
	_, k, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// TestMenderKeyKinds: RSA is what the client makes by itself, in the tests above.
func TestMenderKeyKinds(t *testing.T) {
	t.Parallel()
	s := start(t)
	for name, key := range map[string]crypto.Signer{"P-256": ecKey(t, elliptic.P256()), "P-384": ecKey(t, elliptic.P384()), "Ed25519": edKey(t)} {
		file := s.path(name + ".pem")
		writeKey(t, file, key)
		d := s.mender(name, "https://"+s.at.HTTPS, s.ca(), menderConf{"Security": map[string]any{"AuthPrivateKey": file}})
		d.bootstrap(false)
		s.cli("authset", "accept", d.record().ID)
		d.bootstrap(true)
	}
}

// TestMenderMTLS: a client certificate of a registered CA lets its key in with nobody asked.
func TestMenderMTLS(t *testing.T) {
	t.Parallel()
	s := start(t)
	caKey := ecKey(t, elliptic.P256())
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "factory"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
	}
	issue := func(cert *x509.Certificate, public any, file string) {
		der, err := x509.CreateCertificate(rand.Reader, cert, ca, public, caKey)
		if err == nil {
			err = os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	issue(ca, caKey.Public(), s.path("factory.pem"))
	device := func(serial int64, mac, cn string) *menderDevice {
		key := ecKey(t, elliptic.P256())
		name := s.path(fmt.Sprint("device-", serial))
		writeKey(t, name+".key", key)
		issue(&x509.Certificate{
			SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: cn}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
			NotBefore: ca.NotBefore, NotAfter: ca.NotAfter,
		}, key.Public(), name+".pem")
		return s.mender(mac, "https://"+s.at.HTTPS, s.ca(), menderConf{"HttpsClient": map[string]any{"Certificate": name + ".pem", "Key": name + ".key"}})
	}
	one := device(16, "m1", "SN-m1")
	one.bootstrap(false) // nobody knows the CA
	s.cli("mtls-ca", "register", "factory", s.path("factory.pem"), "--attribute", "serial=common_name")
	one.bootstrap(true) // although it was pending
	if rec := one.record(); rec.Status != "accepted" || !strings.HasPrefix(rec.AuthSets[0].AcceptedBy, "mtls/") {
		t.Errorf("got %+v, want it accepted by its certificate", rec)
	}
	// The certificate does not stand in the way of the token.
	token := strings.TrimSpace(s.cli("token", "issue", one.record().ID))
	s.secret(token)
	out, code := s.curl("--cert", s.path("device-16.pem"), "--key", s.path("device-16.key"), "-H", "Authorization: Bearer "+token, s.url("/api/v1/whoami"))
	if code != 200 || s.whoami(out).Device != one.record().ID {
		t.Errorf("certificate and token together: got %d %s", code, out)
	}
	device(17, "m2", "SN-somebody-else").bootstrap(false)
	denied := device(18, "m3", "SN-m3")
	for registered, err := range s.admin().MTLSCAs(t.Context()) {
		if err != nil {
			t.Fatal(err)
		}
		s.cli("mtls-ca", "deny", registered.ID, "12")
	}
	denied.bootstrap(false)
	if err := s.admin().DecommissionAuthDevice(t.Context(), one.record().ID); err != nil {
		t.Fatal(err)
	}
	one.bootstrap(false) // its certificate has ended with it
}
