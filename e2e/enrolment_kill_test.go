//go:build e2e

package e2e_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	cryptorand "crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"keystead/client"
)

// newcomer is a device that enrols, and what it knows of that.
type newcomer struct {
	name  string
	token string
	key   *ecdsa.PrivateKey
	cert  *x509.Certificate // that it was handed out
}

// enrol asks for a certificate and reports whether there was an answer.
func (n *newcomer) enrol(s *server) bool {
	s.t.Helper()
	csr, err := x509.CreateCertificateRequest(cryptorand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: n.name}}, n.key)
	if err != nil {
		s.t.Fatal(err)
	}
	req, err := http.NewRequestWithContext(s.t.Context(), http.MethodPost, s.url("/.well-known/est/simpleenroll"), strings.NewReader(base64.StdEncoding.EncodeToString(csr)))
	if err != nil {
		s.t.Fatal(err)
	}
	req.SetBasicAuth("enrol", n.token)
	req.Header.Set("Content-Type", "application/pkcs10")
	req.Header.Set("Accept", "application/x-pem-file")
	res, err := s.https().Do(req)
	if err != nil {
		return false
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return false
	}
	if res.StatusCode != http.StatusOK {
		s.t.Fatalf("%s: got %d %s", n.name, res.StatusCode, body)
	}
	block, _ := pem.Decode(body)
	if block == nil {
		s.t.Fatalf("%s: got %q, want a certificate", n.name, body)
	}
	if n.cert, err = x509.ParseCertificate(block.Bytes); err != nil {
		s.t.Fatal(err)
	}
	return true
}

// proves reports whether the certificate is good for what it was handed out for.
func (n *newcomer) proves(s *server) {
	s.t.Helper()
	conf := s.tls()
	conf.Certificates = []tls.Certificate{{Certificate: [][]byte{n.cert.Raw}, PrivateKey: n.key}}
	transport := &http.Transport{TLSClientConfig: conf}
	defer transport.CloseIdleConnections()
	var w who
	s.must2xx(&http.Client{Transport: transport, Timeout: patience}, http.MethodGet, "/api/v1/whoami", "", "", &w)
	if w.Credential.Kind != "certificate" || w.Name != n.name {
		s.t.Errorf("%s: got %+v", n.name, w)
	}
}

// recorded are the serial numbers that the inventory has for a name, "" for any.
func (s *server) recorded(name string) []string {
	s.t.Helper()
	narrow := url.Values{"dms": {"default"}}
	if name != "" {
		narrow.Set("common_name", name)
	}
	var serials []string
	for c, err := range s.admin().Certificates(s.t.Context(), narrow) {
		if err != nil {
			s.t.Fatal(err)
		}
		serials = append(serials, c.Serial)
	}
	return serials
}

// swept are the serial numbers whose issuing was not finished, as the trail has them.
func (s *server) swept() map[string]bool {
	s.t.Helper()
	list := map[string]bool{}
	for e, err := range client.List[struct{ Action, Target string }](s.t.Context(), s.admin(), "/api/v1/audit", url.Values{"action": {"certificate.abandon"}}) {
		if err != nil {
			s.t.Fatal(err)
		}
		list[e.Target] = true
	}
	return list
}

// An enrolment is killed after each single write and fsync that it makes, one
// after the other until one comes through: the signature, the record and the answer
// are all in between. Whatever it is, the next start has the certificate that was
// recorded, or nothing; what was handed out is there; and the device comes in by
// the same request. Intents are only of CAs whose key is elsewhere: none is swept.
func TestEnrolmentKilledBetweenAnyTwoSteps(t *testing.T) {
	t.Parallel()
	s, d := onDisk(t, nil)
	t.Cleanup(func() {
		if err := d.Unmount(); err != nil {
			t.Error(err)
		}
	})
	s.start()
	t.Cleanup(s.end) // before the disk goes
	var nothing, unanswered, step int
	handed := map[string]bool{}
	for done := false; !done; {
		step++
		if step > 100 {
			t.Fatal("an enrolment has more than 100 steps")
		}
		key, err := ecdsa.GenerateKey(elliptic.P256(), cryptorand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		n := &newcomer{name: fmt.Sprintf("device-%d", step), key: key}
		n.token = s.token(fmt.Sprintf(`{"common_name":%q}`, n.name))
		process := s.cmd.Process
		d.After(step, func() { _ = process.Kill() })
		if done = n.enrol(s); done {
			d.After(0, nil) // it made fewer steps
			if nothing == 0 || unanswered == 0 {
				t.Errorf("of %d enrolments that were killed %d left nothing and %d a certificate; want some of each", step-1, nothing, unanswered)
			}
		} else {
			s.exit()
			s.start()
		}
		serials := s.recorded(n.name)
		if swept := s.swept(); len(swept) > 0 {
			t.Fatalf("step %d: intents were swept: %v", step, swept)
		}
		switch {
		case len(serials) > 1 || done && len(serials) != 1:
			t.Errorf("step %d: got %d certificates recorded", step, len(serials))
		case done:
		case len(serials) == 1:
			unanswered++
		default:
			nothing++
		}
		if n.cert == nil && !n.enrol(s) {
			t.Fatalf("step %d: the device does not come in by the same request", step)
		}
		if serial := hex.EncodeToString(n.cert.SerialNumber.Bytes()); len(serials) == 1 && serials[0] != serial {
			t.Errorf("step %d: recorded is %s, handed out %s", step, serials[0], serial)
		} else {
			handed[serial] = true
		}
		n.proves(s)
	}
	all := s.recorded("")
	for _, serial := range all {
		if !handed[serial] {
			t.Errorf("%s is recorded, and was handed out to nobody", serial)
		}
	}
	if len(all) != len(handed) {
		t.Errorf("%d certificates are recorded, %d were handed out", len(all), len(handed))
	}
	s.cli("audit", "verify")
	figure(t, "an enrolment was killed after each of its %d writes and fsyncs: %d left nothing, %d a certificate that was recorded and is in use",
		step-1, nothing, unanswered)
}
