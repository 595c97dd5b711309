package server_test

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"io"
	"math/big"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"keystead/config"
	"keystead/est"
	"keystead/pki"
	"keystead/server"
)

// passedOnIn has the server of a test stand behind a proxy at 127.0.0.1, which
// passes certificates on in a header.
func passedOnIn(header string, proxies ...string) func(*config.Config) {
	return func(c *config.Config) {
		c.TrustedProxies, c.ForwardedCertificates = proxies, header
	}
}

// ask makes a request with headers and returns the status and the body.
func (r *running) ask(t *testing.T, method, path string, body []byte, header http.Header) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, r.url+path, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header = header.Clone()
	if body != nil {
		req.Header.Set("Content-Type", "application/pkcs10")
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

func newECKey(t *testing.T) *ecdsa.PrivateKey {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func csrOf(t *testing.T, key *ecdsa.PrivateKey, cn string) []byte {
	t.Helper()
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: cn}}, key)
	if err != nil {
		t.Fatal(err)
	}
	return []byte(base64.StdEncoding.EncodeToString(der))
}

// enrolled is a device with a certificate, from the default DMS.
func (r *running) enrolled(t *testing.T, cn string) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	return r.enrolledBy(t, est.DefaultDMS, cn)
}

func (r *running) enrolledBy(t *testing.T, dms, cn string) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	var token struct{ Token string }
	r.call(t, r.admin, http.MethodPost, "/api/v1/enrolment-tokens", map[string]any{"dms": dms}, http.StatusCreated, &token)
	key := newECKey(t)
	status, text := r.ask(t, http.MethodPost, "/.well-known/est/simpleenroll", csrOf(t, key, cn), http.Header{"Authorization": {"Bearer " + token.Token}})
	if status != http.StatusOK {
		t.Fatalf("enrolling %s: got %d %s", cn, status, text)
	}
	return onlyCertificate(t, text), key
}

func onlyCertificate(t *testing.T, text string) *x509.Certificate {
	t.Helper()
	der, err := base64.StdEncoding.DecodeString(text)
	if err != nil {
		t.Fatal(err)
	}
	certs, err := pki.ParseCertsOnly(der)
	if err != nil || len(certs) != 1 {
		t.Fatalf("got %d certificates, %v", len(certs), err)
	}
	return certs[0]
}

func escaped(certs ...*x509.Certificate) string {
	var text strings.Builder
	for _, c := range certs {
		text.Write(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))
	}
	return strings.ReplaceAll(url.PathEscape(text.String()), "%2B", "+")
}

func sequence(c *x509.Certificate) string {
	return ":" + base64.StdEncoding.EncodeToString(c.Raw) + ":"
}

// written is how a proxy writes a certificate in each of the headers.
var written = map[string]func(...*x509.Certificate) http.Header{
	config.EnvoyCertificate: func(c ...*x509.Certificate) http.Header {
		return http.Header{"X-Forwarded-Client-Cert": {`By=spiffe://proxy;Hash=0011;Subject="CN=a;b, \"c\"";URI=;Cert="` + escaped(c[0]) + `";Chain="` + escaped(c...) + `"`}}
	},
	config.NginxCertificate: func(c ...*x509.Certificate) http.Header { return http.Header{"Ssl-Client-Cert": {escaped(c...)}} },
	config.NginxOtherCertificate: func(c ...*x509.Certificate) http.Header {
		return http.Header{"X-Ssl-Client-Cert": {escaped(c...)}}
	},
	config.AmazonCertificate: func(c ...*x509.Certificate) http.Header {
		return http.Header{"X-Amzn-Mtls-Clientcert": {escaped(c...)}}
	},
	config.StandardCertificate: func(c ...*x509.Certificate) http.Header {
		h := http.Header{"Client-Cert": {sequence(c[0])}}
		for _, above := range c[1:] {
			h.Add("Client-Cert-Chain", sequence(above))
		}
		return h
	},
}

// selfSigned says that it is whom it likes.
func selfSigned(t *testing.T, cn string) *x509.Certificate {
	t.Helper()
	key := newECKey(t)
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: cn}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

// A certificate that a trusted proxy passes on is what one of a handshake is, in
// the REST API and in EST, in every form; and is verified as that is.
func TestCertificateOfATrustedProxy(t *testing.T) {
	for name, write := range written {
		t.Run(name, func(t *testing.T) {
			s := start(t, passedOnIn(name, "127.0.0.1"))
			cert, key := s.enrolled(t, "pump")
			status, text := s.ask(t, http.MethodGet, "/api/v1/whoami", nil, write(cert))
			var who struct{ Device string }
			if err := json.Unmarshal([]byte(text), &who); status != http.StatusOK || err != nil || who.Device == "" {
				t.Fatalf("whoami: got %d %s, want the device", status, text)
			}
			status, text = s.ask(t, http.MethodPost, "/.well-known/est/simplereenroll", csrOf(t, key, "pump"), write(cert))
			if status != http.StatusOK {
				t.Fatalf("renewing: got %d %s", status, text)
			}
			renewed := onlyCertificate(t, text)
			if status, text = s.ask(t, http.MethodGet, "/api/v1/whoami", nil, write(renewed)); status != http.StatusOK || !strings.Contains(text, who.Device) {
				t.Errorf("renewed: got %d %s", status, text)
			}
			for what, header := range map[string]http.Header{
				"the replaced one":     write(cert),
				"one of no CA":         write(selfSigned(t, "pump")),
				"one of no CA, chain":  write(selfSigned(t, "pump"), renewed),
				"no certificate":       {},
				"an empty header":      {http.CanonicalHeaderKey(name): {""}},
				"what is in no header": {"X-Client-Cert": {escaped(renewed)}},
			} {
				if status, text := s.ask(t, http.MethodGet, "/api/v1/whoami", nil, header); status != http.StatusUnauthorized {
					t.Errorf("%s: got %d %s, want 401", what, status, text)
				}
				if status, text := s.ask(t, http.MethodPost, "/.well-known/est/simplereenroll", csrOf(t, key, "pump"), header); status != http.StatusUnauthorized {
					t.Errorf("%s, renewing: got %d %s, want 401", what, status, text)
				}
			}
			// The same connection, the next request.
			s.call(t, s.admin, http.MethodPost, "/api/v1/devices/"+who.Device+"/suspend", nil, http.StatusOK, nil)
			if status, text := s.ask(t, http.MethodGet, "/api/v1/whoami", nil, write(renewed)); status != http.StatusUnauthorized {
				t.Errorf("suspended: got %d %s, want 401", status, text)
			}
		})
	}
}

// From anybody else, in another header than the proxy writes, or where nothing is
// set up, what a client writes is nothing: not even to a webhook.
func TestCertificatesInHeadersAreNotBelieved(t *testing.T) {
	for name, change := range map[string]func(*config.Config){
		"off by default":           func(*config.Config) {},
		"a proxy, but no header":   passedOnIn("", "127.0.0.1"),
		"the peer is no proxy":     passedOnIn(config.NginxCertificate, "10.0.0.0/8"),
		"what the peer says it is": passedOnIn(config.NginxCertificate, "192.0.2.1"),
	} {
		t.Run(name, func(t *testing.T) {
			s := start(t, change)
			cert, key := s.enrolled(t, "pump")
			for form, write := range written {
				header := write(cert)
				header.Set("X-Forwarded-For", "192.0.2.1")
				if status, text := s.ask(t, http.MethodGet, "/api/v1/whoami", nil, header); status != http.StatusUnauthorized {
					t.Errorf("%s: got %d %s, want 401", form, status, text)
				}
				if status, text := s.ask(t, http.MethodPost, "/.well-known/est/simplereenroll", csrOf(t, key, "pump"), header); status != http.StatusUnauthorized {
					t.Errorf("%s, renewing: got %d %s, want 401", form, status, text)
				}
			}
		})
	}
	t.Run("another header than that of the proxy", func(t *testing.T) {
		s := start(t, passedOnIn(config.StandardCertificate, "127.0.0.1"))
		cert, _ := s.enrolled(t, "pump")
		for form, write := range written {
			if form == config.StandardCertificate {
				continue
			}
			if status, text := s.ask(t, http.MethodGet, "/api/v1/whoami", nil, write(cert)); status != http.StatusUnauthorized {
				t.Errorf("%s: got %d %s, want 401", form, status, text)
			}
		}
	})
}

// What cannot be what a well-kept proxy writes is refused, whoever else proves who.
func TestCertificatesThatAProxyDoesNotWrite(t *testing.T) {
	cert := selfSigned(t, "pump")
	for name, bad := range map[string]map[string]http.Header{
		config.EnvoyCertificate: {
			"what a client sent, and the proxy's": {"X-Forwarded-Client-Cert": {`Cert="` + escaped(cert) + `",Cert="` + escaped(cert) + `"`}},
			"two headers":                         {"X-Forwarded-Client-Cert": {`Cert="` + escaped(cert) + `"`, `Cert="` + escaped(cert) + `"`}},
			"two certificates":                    {"X-Forwarded-Client-Cert": {`Cert="` + escaped(cert) + `";Cert="` + escaped(cert) + `"`}},
			"no certificate":                      {"X-Forwarded-Client-Cert": {`Hash=00;Subject="CN=pump"`}},
			"a quote that does not end":           {"X-Forwarded-Client-Cert": {`Cert="` + escaped(cert)}},
			"rubbish":                             {"X-Forwarded-Client-Cert": {"rubbish"}},
			"rubbish after a quote":               {"X-Forwarded-Client-Cert": {`By="a"b;Cert="x"`}},
		},
		config.NginxCertificate: {
			"two headers":       {"Ssl-Client-Cert": {escaped(cert), escaped(cert)}},
			"no PEM":            {"Ssl-Client-Cert": {"rubbish"}},
			"another PEM":       {"Ssl-Client-Cert": {url.PathEscape("-----BEGIN X-----\nAAAA\n-----END X-----\n")}},
			"no certificate":    {"Ssl-Client-Cert": {url.PathEscape("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")}},
			"half an escape":    {"Ssl-Client-Cert": {"%2"}},
			"something after":   {"Ssl-Client-Cert": {escaped(cert) + "x"}},
			"more than a chain": {"Ssl-Client-Cert": {escaped(cert, cert, cert, cert, cert, cert, cert, cert, cert)}},
		},
		config.StandardCertificate: {
			"two headers":      {"Client-Cert": {sequence(cert), sequence(cert)}},
			"a list":           {"Client-Cert": {sequence(cert) + ", " + sequence(cert)}},
			"no colons":        {"Client-Cert": {base64.StdEncoding.EncodeToString(cert.Raw)}},
			"no base64":        {"Client-Cert": {":!:"}},
			"no certificate":   {"Client-Cert": {":AAAA:"}},
			"rubbish above it": {"Client-Cert": {sequence(cert)}, "Client-Cert-Chain": {"rubbish"}},
		},
	} {
		s := start(t, passedOnIn(name, "127.0.0.1"))
		for what, header := range bad {
			header.Set("Authorization", "Bearer "+s.admin)
			if status, text := s.ask(t, http.MethodGet, "/api/v1/whoami", nil, header); status != http.StatusBadRequest || !strings.Contains(text, name) {
				t.Errorf("%s, %s: got %d %s, want 400 that names the header", name, what, status, text)
			}
			header.Del("Authorization")
			if status, text := s.ask(t, http.MethodPost, "/.well-known/est/simpleenroll", []byte("AAAA"), header); status != http.StatusBadRequest || !strings.Contains(text, name) {
				t.Errorf("%s, %s, enrolling: got %d %s, want 400 that names the header", name, what, status, text)
			}
		}
	}
}

// A request that is bound to the client's TLS channel cannot be checked behind a
// proxy, so a DMS that requires it issues nothing there.
func TestChannelBindingBehindAProxy(t *testing.T) {
	s := start(t, passedOnIn(config.NginxCertificate, "127.0.0.1"))
	s.call(t, s.admin, http.MethodPost, "/api/v1/dms", json.RawMessage(`{"id":"linked","name":"linked","settings":{"enrollment_settings":{
		"est_rfc7030_settings":{"auth_mode":"ENROLMENT_TOKEN","channel_binding":"required"}}}}`), http.StatusCreated, nil)
	var token struct{ Token string }
	s.call(t, s.admin, http.MethodPost, "/api/v1/enrolment-tokens", map[string]any{"dms": "linked"}, http.StatusCreated, &token)
	status, text := s.ask(t, http.MethodPost, "/.well-known/est/linked/simpleenroll", csrOf(t, newECKey(t), "pump"), http.Header{"Authorization": {"Bearer " + token.Token}})
	if status != http.StatusBadRequest || !strings.Contains(text, "linking") {
		t.Errorf("got %d %s, want it refused", status, text)
	}
}

func FuzzForwardedCertificate(f *testing.F) {
	f.Add(config.EnvoyCertificate, `By=a;Cert="-----BEGIN%20CERTIFICATE-----";Chain=`, "")
	f.Add(config.NginxCertificate, "-----BEGIN%20CERTIFICATE-----%0AAAAA%0A-----END%20CERTIFICATE-----%0A", "")
	f.Add(config.StandardCertificate, ":AAAA:", ":AAAA:, :AAAA:")
	f.Fuzz(func(t *testing.T, name, value, above string) {
		chain, err := server.ForwardedForTest(name, http.Header{http.CanonicalHeaderKey(name): {value}, "Client-Cert-Chain": {above}})
		if err != nil && chain != nil || len(chain) > 8 {
			t.Errorf("got %d certificates and %v", len(chain), err)
		}
	})
}
