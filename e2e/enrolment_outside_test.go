//go:build e2e

package e2e_test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync/atomic"
	"testing"
)

const makerConf = `[ca]
default_ca = maker
[maker]
database = index.txt
new_certs_dir = .
rand_serial = yes
default_md = sha256
policy = any
default_days = 30
default_crl_days = 7
certificate = maker.pem
private_key = maker.key
x509_extensions = leaf
[any]
commonName = supplied
[leaf]
basicConstraints = critical,CA:FALSE
keyUsage = critical,digitalSignature
extendedKeyUsage = clientAuth
authorityInfoAccess = OCSP;URI:URL/ocsp
crlDistributionPoints = URI:URL/maker.crl
`

// maker is the CA of a manufacturer, kept by openssl.
type maker struct {
	*server
	url          string
	ocsp, crl    atomic.Bool // whether there is an answer
	asked, lists atomic.Int64
}

func newMaker(s *server) *maker {
	m := &maker{server: s}
	m.ocsp.Store(true)
	m.crl.Store(true)
	web := httptest.NewServer(m)
	s.t.Cleanup(web.Close)
	m.url = web.URL
	writeText(s.t, s.path("maker.conf"), strings.ReplaceAll(makerConf, "URL", m.url))
	writeText(s.t, s.path("index.txt"), "")
	s.must("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", "maker.key", "-out", "maker.pem", "-subj", "/CN=Maker", "-days", "30")
	return m
}

// ServeHTTP answers as openssl does.
func (m *maker) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.URL.Path == "/ocsp" && m.ocsp.Load():
		m.asked.Add(1)
		request, err := io.ReadAll(r.Body)
		if err != nil || os.WriteFile(m.path("ocsp.req"), request, 0o600) != nil {
			w.WriteHeader(http.StatusInternalServerError)
			return
		}
		m.must("openssl", "ocsp", "-index", "index.txt", "-CA", "maker.pem", "-rsigner", "maker.pem", "-rkey", "maker.key", "-reqin", "ocsp.req", "-respout", "ocsp.resp", "-ndays", "1")
		http.ServeFile(w, r, m.path("ocsp.resp"))
	case r.URL.Path == "/maker.crl" && m.crl.Load():
		m.lists.Add(1)
		m.must("openssl", "ca", "-config", "maker.conf", "-gencrl", "-out", "crl.pem")
		m.must("openssl", "crl", "-in", "crl.pem", "-outform", "DER", "-out", "maker.crl")
		http.ServeFile(w, r, m.path("maker.crl"))
	default:
		w.WriteHeader(http.StatusServiceUnavailable)
	}
}

// issue makes a device with a certificate of the maker's, in NAME.pem and NAME.key.
func (m *maker) issue(name string) {
	m.t.Helper()
	m.request(name, "/CN="+name)
	m.must("openssl", "req", "-inform", "DER", "-in", name+".csr", "-out", name+".req")
	m.must("openssl", "ca", "-batch", "-config", "maker.conf", "-in", name+".req", "-out", name+".pem", "-notext")
}

// A manufacturer takes a certificate back, and the device that has it enrols no
// more: over HTTPS and over DTLS, by what its OCSP responder says, and by its CRL
// where that does not answer. Both are openssl's.
func TestManufacturerRevokes(t *testing.T) {
	s := start(t, "webhook.allow_cidrs=127.0.0.0/8", "pki.outside.max_age=0s")
	m := newMaker(s)
	ca := strings.TrimSpace(s.sh(`"$KEYSTEAD" --data "$DATA" ca import maker.pem --revocation-check hard -o json | jq -r .id`))
	s.dms(fmt.Sprintf(`{"id":"plant","name":"plant","settings":{"enrollment_settings":{"enable_replaceable_enrollment":true,
		"est_rfc7030_settings":{"auth_mode":"CLIENT_CERTIFICATE","client_certificate_settings":{"validation_cas":[%q]}}}}}`, ca))
	https := func(name string) (string, int) {
		return s.est(wellKnown+"plant/simpleenroll", name, "--cert", s.path(name+".pem"), "--key", s.path(name+".key"))
	}
	dtls := func(name string) string {
		return s.run("coap-client-openssl", "-B", "20", "-m", "post", "-c", s.path(name+".pem"), "-j", s.path(name+".key"), "-C", s.ca(),
			"-t", "286", "-A", "287", "-f", s.path(name+".csr"), "-o", s.path(name+".der"), s.coaps("/est/plant/sen")).all()
	}
	m.issue("pump")
	if body, code := https("pump"); code != http.StatusOK {
		t.Fatalf("good, over HTTPS: got %d %s", code, body)
	}
	m.issue("valve")
	said := dtls("valve")
	if r := s.run("openssl", "x509", "-inform", "DER", "-in", "valve.der", "-noout", "-issuer"); r.code != 0 {
		t.Errorf("good, over DTLS: got no certificate: %s", said)
	}
	if m.asked.Load() < 2 || m.lists.Load() != 0 {
		t.Errorf("OCSP was asked %d times and the CRL %d times", m.asked.Load(), m.lists.Load())
	}
	for _, name := range []string{"pump", "valve"} {
		s.must("openssl", "ca", "-config", "maker.conf", "-revoke", name+".pem", "-crl_reason", "keyCompromise")
	}
	for _, by := range []string{"OCSP", "CRL"} {
		if body, code := https("pump"); code != http.StatusUnauthorized || !strings.Contains(body, "revoked by its CA (keyCompromise)") {
			t.Errorf("revoked, over HTTPS, by %s: got %d %s", by, code, body)
		}
		s.must("rm", "-f", "valve.der")
		said := dtls("valve")
		if _, err := os.Stat(s.path("valve.der")); err == nil || !strings.Contains(said, "bad certificate") {
			t.Errorf("revoked, over DTLS, by %s: got %s, want no session", by, said)
		}
		m.ocsp.Store(false)
	}
	if m.lists.Load() == 0 {
		t.Error("the CRL was never asked for")
	}
	m.crl.Store(false)
	m.issue("late")
	if body, code := https("late"); code != http.StatusServiceUnavailable || !strings.Contains(body, "cannot be asked now") {
		t.Errorf("hard, and nobody answers: got %d %s, want 503", code, body)
	}
	s.cli("ca", "revocation-check", ca, "soft")
	if body, code := https("late"); code != http.StatusOK {
		t.Errorf("soft, and nobody answers: got %d %s", code, body)
	}
}
