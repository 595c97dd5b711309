//go:build e2e

package e2e_test

import (
	"encoding/json"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
)

// request makes a key and a request of the given subject with openssl, in
// NAME.key, NAME.csr (DER) and NAME.b64.
func (s *server) request(name, subject string) {
	s.t.Helper()
	s.must("openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", name+".key")
	s.must("openssl", "req", "-new", "-key", name+".key", "-subj", subject, "-outform", "DER", "-out", name+".csr")
	s.sh("base64 -w0 " + name + ".csr > " + name + ".b64")
}

// token makes an enrolment token by the REST API.
func (s *server) token(body string) string {
	s.t.Helper()
	answer := s.rest(http.MethodPost, "/api/v1/enrolment-tokens", body, http.StatusCreated)
	var t struct{ Token string }
	if err := json.Unmarshal([]byte(answer), &t); err != nil {
		s.t.Fatal(err)
	}
	s.secret(t.Token)
	return t.Token
}

// rest makes a request of the administrator's.
func (s *server) rest(method, path, body string, want int) string {
	s.t.Helper()
	args := []string{"-X", method, "-H", "Authorization: Bearer " + s.key, s.url(path)}
	if body != "" {
		args = append(args, "-H", "Content-Type: application/json", "--data-binary", body)
	}
	answer, code := s.curl(args...)
	if code != want {
		s.t.Fatalf("%s %s: got %d %s, want %d", method, path, code, answer, want)
	}
	return answer
}

// est posts NAME.b64 with curl and returns the answer and the status.
func (s *server) est(path, name string, args ...string) (string, int) {
	s.t.Helper()
	return s.curl(append([]string{"-H", "Content-Type: application/pkcs10", "--data-binary", "@" + s.path(name+".b64"), s.url(path)}, args...)...)
}

// enrolAt is est of a request that has to be answered with a certificate, which is
// put in NAME.pem.
func (s *server) enrolAt(path, name string, args ...string) {
	s.t.Helper()
	body, code := s.est(path, name, args...)
	if code != http.StatusOK {
		s.t.Fatalf("%s of %s: got %d %s, want 200", path, name, code, body)
	}
	if strings.ContainsAny(body, "\r\n") {
		s.t.Errorf("%s: the answer has line ends: %q", path, body)
	}
	writeText(s.t, s.path(name+".p7"), body)
	s.sh("base64 -d " + name + ".p7 | openssl pkcs7 -inform DER -print_certs -out " + name + ".pem")
	if n := strings.Count(readText(s.t, s.path(name+".pem")), "BEGIN CERTIFICATE"); n != 1 {
		s.t.Errorf("%s: got %d certificates, want the issued one alone", path, n)
	}
}

func writeText(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func readText(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

const wellKnown = "/.well-known/est/"

// identified asks whoami over HTTPS with NAME's certificate.
func (s *server) identified(name string) who {
	s.t.Helper()
	body, code := s.curl("--cert", s.path(name+".pem"), "--key", s.path(name+".key"), s.url("/api/v1/whoami"))
	if code != http.StatusOK {
		s.t.Fatalf("whoami of %s: got %d %s", name, code, body)
	}
	return s.whoami(body)
}

func TestOneDeviceByPSKAndCertificate(t *testing.T) {
	s := start(t)
	k := s.textPSK()
	over := s.whoami(s.must("coap-client-openssl", "-B", "5", "-A", "50", "-m", "get", "-u", k.Identity, "-k", k.text(t), s.coaps("/whoami")))
	token := s.token(`{"device":"` + over.Device + `"}`)
	s.request("pump", "/CN=pump-1")
	s.enrolAt(wellKnown+"simpleenroll", "pump", "-u", "anybody:"+token)
	if got := s.identified("pump"); got.Device != over.Device || got.Credential.Kind != "certificate" {
		t.Errorf("over HTTPS by certificate: got %+v, want device %s", got, over.Device)
	}
	for _, client := range coapClients {
		got := s.whoami(s.must(client, "-B", "5", "-A", "50", "-m", "get", "-c", s.path("pump.pem"), "-j", s.path("pump.key"), "-C", s.ca(), s.coaps("/whoami")))
		if got.Device != over.Device || got.Credential.Kind != "certificate" {
			t.Errorf("%s by certificate: got %+v, want device %s", client, got, over.Device)
		}
	}
	if _, code := s.est(wellKnown+"simpleenroll", "pump", "-u", "x:"+token); code != http.StatusOK {
		t.Errorf("the same request again, as after a lost answer: got %d, want the same certificate", code)
	}
	s.request("other", "/CN=other")
	if body, code := s.est(wellKnown+"simpleenroll", "other", "-u", "x:"+token); code != http.StatusUnauthorized {
		t.Errorf("a token that is used up: got %d %s, want 401", code, body)
	}
	// The certificate renews by itself, and is the same device.
	before := s.identified("pump").Credential.ID
	s.enrolAt(wellKnown+"simplereenroll", "pump", "--cert", s.path("pump.pem"), "--key", s.path("pump.key"))
	if after := s.identified("pump"); after.Device != over.Device || after.Credential.ID == before {
		t.Errorf("after renewal: got %+v, want device %s and another certificate than %s", after, over.Device, before)
	}
	s.must("openssl", "verify", "-CAfile", s.ca(), "-untrusted", s.handedOut(""), "-purpose", "sslclient", s.path("pump.pem"))
}

// handedOut fetches /cacerts and returns the path of its certificates.
func (s *server) handedOut(label string) string {
	s.t.Helper()
	if label != "" {
		label += "/"
	}
	s.sh("curl -sS --cacert $CA $URL" + wellKnown + label + "cacerts | base64 -d | openssl pkcs7 -inform DER -print_certs -out cacerts.pem")
	return s.path("cacerts.pem")
}

// strongswan runs strongSwan's pki with the plugins it needs.
func (s *server) strongswan(env string, args ...string) result {
	s.t.Helper()
	writeText(s.t, s.path("strongswan.conf"), "libtls { "+env+" }\npki { load = random pem x509 pkcs1 pkcs7 pkcs8 pubkey openssl curl nonce revocation constraints sha1 sha2 hmac kdf gcm aes drbg }\n")
	return s.run("env", append([]string{"STRONGSWAN_CONF=" + s.path("strongswan.conf"), "pki"}, args...)...)
}

func TestStrongSwan(t *testing.T) {
	s := start(t)
	s.dms(`{"id":"dms1","name":"fleet","settings":` + tokenSettings + `}`)
	s.must("openssl", "x509", "-in", s.ca(), "-outform", "DER", "-out", s.path("root.der"))
	url := "https://localhost:" + port(s.at.HTTPS)
	for _, at := range []struct{ name, url, dms, tls string }{
		{"default DMS", url, "default", ""},
		{"default DMS, TLS 1.3", url, "default", "version_max = 1.3"},
		{"with label", url + "/dms1", "dms1", ""},
	} {
		t.Run(at.name, func(t *testing.T) {
			r := s.strongswan(at.tls, "--estca", "--url", at.url, "--cacert", "root.der", "--caout", "ca.pem", "--outform", "pem", "--force")
			if r.code != 0 {
				t.Fatalf("--estca: %s", r.all())
			}
			s.sh(`for f in ca*.pem; do openssl x509 -in $f -outform DER -out ${f%.pem}.der; done`)
			cas := []string{}
			for f := range strings.FieldsSeq(s.sh("ls ca.der ca-*.der")) {
				cas = append(cas, "--cacert", f)
			}
			name := "swan" + strconv.Itoa(len(at.name))
			s.request(name, "/CN="+name)
			token := s.token(`{"dms":"` + at.dms + `"}`)
			r = s.strongswan(at.tls, append([]string{"--est", "--url", at.url, "--in", name + ".csr", "--userpass", "u:" + token, "--outform", "pem"}, cas...)...)
			if r.code != 0 {
				t.Fatalf("--est with a token: %s", r.all())
			}
			writeText(t, s.path(name+".pem"), r.out)
			first := s.identified(name)
			r = s.strongswan(at.tls, append([]string{"--est", "--url", at.url, "--in", name + ".csr", "--cert", name + ".pem", "--key", name + ".key", "--outform", "pem"}, cas...)...)
			if r.code != 0 {
				t.Fatalf("--est with a certificate: %s", r.all())
			}
			writeText(t, s.path(name+".pem"), r.out)
			if again := s.identified(name); again.Device != first.Device || again.Credential.ID == first.Credential.ID {
				t.Errorf("renewed: got %+v, want device %s and a new certificate", again, first.Device)
			}
		})
	}
}

const tokenSettings = `{"enrollment_settings":{"est_rfc7030_settings":{"auth_mode":"ENROLMENT_TOKEN"}},
	"reenrollment_settings":{"est_rfc7030_settings":{"auth_mode":"CLIENT_CERTIFICATE"}},"ca_distribution_settings":{"include_enrollment_ca":true}}`

func (s *server) dms(body string) {
	s.t.Helper()
	s.rest(http.MethodPost, "/api/v1/dms", body, http.StatusCreated)
}

func TestStrongSwanWaitsForApproval(t *testing.T) {
	s := start(t)
	s.dms(`{"id":"slow","name":"by hand","settings":` + strings.Replace(tokenSettings, `"enrollment_settings":{`, `"enrollment_settings":{"manual_approval":true,`, 1) + `}`)
	s.must("openssl", "x509", "-in", s.ca(), "-outform", "DER", "-out", s.path("root.der"))
	s.sh(`curl -sS --cacert $CA $URL` + wellKnown + `cacerts | base64 -d | openssl pkcs7 -inform DER -print_certs | awk '/BEGIN/{n++} n{print > "c" n ".pem"}'; for i in 1 2; do openssl x509 -in c$i.pem -outform DER -out c$i.der; done`)
	s.request("late", "/CN=late")
	token := s.token(`{"dms":"slow"}`)
	done := make(chan result, 1)
	go func() {
		done <- s.strongswan("", "--est", "--url", "https://localhost:"+port(s.at.HTTPS)+"/slow", "--in", "late.csr", "--userpass", "u:"+token,
			"--cacert", "root.der", "--cacert", "c1.der", "--cacert", "c2.der", "--interval", "1", "--maxpolltime", "60", "--outform", "pem")
	}()
	var waiting struct {
		Items []struct{ ID, Name, State string }
	}
	s.eventually("an enrolment that waits", func() bool {
		if err := json.Unmarshal([]byte(s.rest(http.MethodGet, "/api/v1/enrolments", "", http.StatusOK)), &waiting); err != nil {
			t.Fatal(err)
		}
		return len(waiting.Items) == 1
	})
	s.rest(http.MethodPost, "/api/v1/enrolments/"+waiting.Items[0].ID+"/approve", "{}", http.StatusOK)
	r := <-done
	if r.code != 0 {
		t.Fatalf("--est: %s", r.all())
	}
	writeText(t, s.path("late.pem"), r.out)
	if got := s.identified("late"); got.Name != "late" {
		t.Errorf("got %+v, want the device late", got)
	}
}

// A device born with a pre-shared key gets itself a certificate over CoAP, and is
// the same device with it; it renews over CoAP too.
func TestPSKDeviceUpgradesToACertificateOverCoAP(t *testing.T) {
	s := start(t)
	k := s.textPSK()
	s.request("sensor", "/CN=sensor-1")
	for i, path := range []string{"/est/sen", "/.well-known/est/simpleenroll", "/est/default/sen"} {
		r := s.run("coap-client-openssl", "-B", "10", "-m", "post", "-u", k.Identity, "-k", k.text(t), "-t", "286", "-A", "287", "-f", s.path("sensor.csr"), "-o", s.path("sensor.der"), s.coaps(path))
		if r.code != 0 {
			t.Fatalf("%s: %s", path, r.all())
		}
		s.must("openssl", "x509", "-inform", "DER", "-in", "sensor.der", "-out", "sensor.pem")
		got := s.identified("sensor")
		if got.Device != k.Device || got.Credential.Kind != "certificate" {
			t.Errorf("%d: got %+v, want device %s", i, got, k.Device)
		}
	}
	s.must("openssl", "verify", "-CAfile", s.ca(), "-untrusted", s.handedOut(""), "-purpose", "sslclient", s.path("sensor.pem"))
	before := s.identified("sensor").Credential.ID
	r := s.run("coap-client-openssl", "-B", "10", "-m", "post", "-c", s.path("sensor.pem"), "-j", s.path("sensor.key"), "-C", s.ca(),
		"-t", "286", "-A", "287", "-f", s.path("sensor.csr"), "-o", s.path("renewed.der"), s.coaps("/est/sren"))
	if r.code != 0 {
		t.Fatalf("/est/sren: %s", r.all())
	}
	s.must("openssl", "x509", "-inform", "DER", "-in", "renewed.der", "-out", "sensor.pem")
	if got := s.identified("sensor"); got.Device != k.Device || got.Credential.ID == before {
		t.Errorf("renewed: got %+v, want device %s and another certificate than %s", got, k.Device, before)
	}
	s.must("coap-client-openssl", "-B", "10", "-m", "get", "-u", k.Identity, "-k", k.text(t), "-o", s.path("crts.der"), s.coaps("/est/crts"))
	if certs := s.must("openssl", "pkcs7", "-inform", "DER", "-in", "crts.der", "-print_certs"); strings.Count(certs, "BEGIN") < 2 {
		t.Errorf("/est/crts: got %s", certs)
	}
	for _, path := range []string{"/est/skg", "/est/skc"} {
		s.must("coap-client-openssl", "-B", "10", "-m", "post", "-u", k.Identity, "-k", k.text(t), "-t", "286", "-A", "62", "-f", s.path("sensor.csr"), "-o", s.path("skg.cbor"), s.coaps(path))
		if b := readText(t, s.path("skg.cbor")); len(b) < 300 || b[0] != 0x84 {
			t.Errorf("%s: got %x, want an array of four", path, b)
		}
	}
}

// What is wrong with an enrolment shows to curl as it does to our own tests: by
// the status and a line of text, and not by a handshake that fails.
func TestCurlIsToldWhatIsWrong(t *testing.T) {
	s := start(t)
	s.dms(`{"id":"plant","name":"plant","settings":{"enrollment_settings":{"est_rfc7030_settings":{"auth_mode":"CLIENT_CERTIFICATE"}}}}`)
	s.request("dev", "/CN=dev")
	s.must("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", "self.key", "-out", "self.pem", "-subj", "/CN=self", "-days", "1")
	self := []string{"--cert", s.path("self.pem"), "--key", s.path("self.key")}
	token := s.token(`{"max_uses":0}`)
	writeText(t, s.path("pem.b64"), s.must("openssl", "req", "-inform", "DER", "-in", "dev.csr"))
	writeText(t, s.path("rubbish.b64"), "!!!!")
	s.enrolAt(wellKnown+"simpleenroll", "dev", "-u", "u:"+token)
	serial := s.identified("dev").Credential.ID
	// Of one keep-alive connection: the second request of the two is after the revocation.
	s.rest(http.MethodPost, "/api/v1/certificates/"+serial+"/revoke", `{"reason":"keyCompromise"}`, http.StatusOK)
	mine := []string{"--cert", s.path("dev.pem"), "--key", s.path("dev.key")}
	for _, test := range []struct {
		name, path, body string
		args             []string
		code             int
		says             string
	}{
		{"no certificate", "plant/simpleenroll", "dev", nil, 401, "client certificate"},
		{"an untrusted one", "plant/simpleenroll", "dev", self, 401, "not a trusted CA"},
		{"a revoked one", "plant/simpleenroll", "dev", mine, 401, "revoked"},
		{"a revoked one, renewing", "simplereenroll", "dev", mine, 401, "revoked"},
		{"no such DMS", "nowhere/simpleenroll", "dev", []string{"-u", "u:" + token}, 401, "no DMS"},
		{"PEM", "simpleenroll", "pem", []string{"-u", "u:" + token}, 400, "openssl req -outform DER"},
		{"not base64", "simpleenroll", "rubbish", []string{"-u", "u:" + token}, 400, "base64"},
		{"GET", "simpleenroll", "dev", []string{"-X", "GET"}, 405, "POST"},
		{"HTTP/1.1", "simpleenroll", "dev", []string{"--http1.1", "-i"}, 401, "WWW-Authenticate: Basic"},
	} {
		body, code := s.est(wellKnown+test.path, test.body, test.args...)
		if code != test.code || !strings.Contains(body, test.says) {
			t.Errorf("%s: got %d %q, want %d and %q", test.name, code, body, test.code, test.says)
		}
	}
	if body, code := s.curl(append(mine, s.url("/api/v1/whoami"))...); code != http.StatusUnauthorized {
		t.Errorf("whoami with the revoked certificate: got %d %s", code, body)
	}
	crl := s.sh("curl -sS $HTTP/crl/$(curl -sS --cacert $CA -H 'Authorization: Bearer " + s.key + "' $URL/api/v1/certificates/" + serial + " | jq -r .ca)/0.crl | openssl crl -inform DER -noout -crlnumber -issuer")
	if !strings.Contains(crl, "crlNumber") {
		t.Errorf("CRL over plain HTTP: got %s", crl)
	}
	s.sh(`curl -sS --cacert $CA $URL` + wellKnown + `cacerts | base64 -d | openssl pkcs7 -inform DER -print_certs | awk '/BEGIN/{n++} n{print > "k" n ".pem"}'`)
	for _, issuer := range []string{"k1.pem", "k2.pem"} {
		out := s.run("openssl", "ocsp", "-issuer", issuer, "-cert", "dev.pem", "-url", "http://"+s.at.HTTP+"/ocsp", "-CAfile", s.ca(), "-verify_other", issuer)
		if strings.Contains(out.all(), "revoked") {
			if !strings.Contains(out.all(), "Response verify OK") {
				t.Errorf("OCSP: %s", out.all())
			}
			return
		}
	}
	t.Error("OCSP does not say that the certificate is revoked")
}

const nginxConf = `daemon off; master_process off; pid DIR/nginx.pid; error_log stderr;
events {}
http {
	access_log off;
	client_body_temp_path DIR/body; proxy_temp_path DIR/proxy; fastcgi_temp_path DIR/f; uwsgi_temp_path DIR/u; scgi_temp_path DIR/s;
	server {
		listen LISTEN ssl;
		ssl_certificate DIR/self.pem; ssl_certificate_key DIR/self.key;
		ssl_verify_client optional_no_ca;
		location / {
			proxy_pass https://SERVER;
			proxy_bind 127.0.0.2;
			proxy_set_header SSL-Client-Cert $ssl_client_escaped_cert;
			proxy_set_header X-Forwarded-For $remote_addr;
		}
	}
}
`

// nginx ends TLS before the server and passes the certificates of devices on: they
// are who they are, and nobody becomes one of them by writing the header himself.
func TestCertificatesThroughNginx(t *testing.T) {
	s := start(t, "trusted_proxies=127.0.0.2", "forwarded_certificates=SSL-Client-Cert")
	s.must("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-keyout", "self.key", "-out", "self.pem",
		"-subj", "/CN=proxy", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "1")
	listen := s.nginx()
	through := func(path string, args ...string) (string, int) {
		return s.curl(append([]string{"--cacert", s.path("self.pem"), "https://" + listen + path}, args...)...)
	}
	s.request("pump", "/CN=pump")
	s.enrolAt(wellKnown+"simpleenroll", "pump", "-u", "u:"+s.token(`{}`))
	device := s.identified("pump").Device
	mine := []string{"--cert", s.path("pump.pem"), "--key", s.path("pump.key")}
	body, code := through("/api/v1/whoami", mine...)
	if code != http.StatusOK || s.whoami(body).Device != device {
		t.Fatalf("whoami through nginx: got %d %s, want device %s", code, body, device)
	}
	renew := append(mine, "-H", "Content-Type: application/pkcs10", "--data-binary", "@"+s.path("pump.b64"))
	if body, code := through(wellKnown+"simplereenroll", renew...); code != http.StatusOK {
		t.Errorf("renewing through nginx: got %d %s", code, body)
	}
	made := "SSL-Client-Cert: " + strings.TrimSpace(s.sh(`jq -sRr @uri <pump.pem`))
	for _, at := range []struct {
		name string
		ask  func(path string, args ...string) (string, int)
		args []string
	}{
		{"through nginx, without", through, nil},
		{"through nginx, with one made up", through, []string{"-H", made}},
		{"past nginx", func(path string, args ...string) (string, int) { return s.curl(append(args, s.url(path))...) }, []string{"-H", made}},
		{"past nginx, from where it says", func(path string, args ...string) (string, int) { return s.curl(append(args, s.url(path))...) }, []string{"-H", made, "-H", "X-Forwarded-For: 127.0.0.2"}},
		{"a certificate of nobody", through, []string{"--cert", s.path("self.pem"), "--key", s.path("self.key")}},
	} {
		if body, code := at.ask("/api/v1/whoami", at.args...); code != http.StatusUnauthorized {
			t.Errorf("%s: got %d %s, want 401", at.name, code, body)
		}
	}
	s.rest(http.MethodPost, "/api/v1/devices/"+device+"/suspend", "", http.StatusOK)
	if body, code := through("/api/v1/whoami", mine...); code != http.StatusUnauthorized {
		t.Errorf("suspended, through nginx: got %d %s, want 401", code, body)
	}
}

// nginx starts nginx before the server and returns where it listens.
func (s *server) nginx() string {
	s.t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		s.t.Fatal(err)
	}
	listen := l.Addr().String()
	l.Close()
	writeText(s.t, s.path("nginx.conf"), strings.NewReplacer("DIR", s.dir, "LISTEN", listen, "SERVER", s.at.HTTPS).Replace(nginxConf))
	logs := &buffer{}
	cmd := exec.Command("nginx", "-p", s.dir, "-c", s.path("nginx.conf"))
	cmd.Stdout, cmd.Stderr = logs, logs
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended by itself
		_ = cmd.Wait()
		if s.t.Failed() {
			s.t.Logf("nginx: %s", logs)
		}
	})
	s.eventually("nginx to listen", func() bool {
		c, err := net.Dial("tcp", listen)
		if err != nil {
			return false
		}
		c.Close()
		return true
	})
	return listen
}
