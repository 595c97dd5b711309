//go:build e2e

package e2e_test

import (
	"crypto/tls"
	"fmt"
	"net/http"
	"strings"
	"testing"

	"github.com/pion/dtls/v3"
)

// certificate is a certificate of a device, with its key, as files and in memory.
type certificate struct {
	cert, key string
	pair      tls.Certificate
}

// enrolmentToken makes a token that enrols one device.
func (s *server) enrolmentToken(device string) string {
	s.t.Helper()
	var made struct{ Token string }
	s.must2xx(s.https(), http.MethodPost, "/api/v1/enrolment-tokens", s.key, fmt.Sprintf(`{"device":%q}`, device), &made)
	s.secret(made.Token)
	return made.Token
}

// enrol gives a device a certificate over EST, with openssl and curl only.
func (s *server) enrol(device, name string) certificate {
	s.t.Helper()
	token := s.enrolmentToken(device)
	s.sh(fmt.Sprintf(`
		openssl ecparam -name prime256v1 -genkey -noout -out %[1]s.key
		openssl req -new -key %[1]s.key -subj "/CN=%[2]s" -outform DER | openssl base64 -A |
		  curl -sS --fail-with-body --cacert "$CA" -u "enrol:%[3]s" -H "Content-Type: application/pkcs10" --data-binary @- "$URL/.well-known/est/simpleenroll" >%[1]s.p7
		openssl base64 -d -A -in %[1]s.p7 | openssl pkcs7 -inform DER -print_certs -out %[1]s.crt`, name, device, token))
	return s.certificate(name)
}

// certificate reads name.crt and name.key.
func (s *server) certificate(name string) certificate {
	s.t.Helper()
	c := certificate{cert: s.path(name + ".crt"), key: s.path(name + ".key")}
	var err error
	if c.pair, err = tls.LoadX509KeyPair(c.cert, c.key); err != nil {
		s.t.Fatal(err)
	}
	return c
}

// withCertificate has a session prove itself with a certificate.
func withCertificate(c certificate) []dtls.ClientOption {
	return []dtls.ClientOption{dtls.WithCertificates(c.pair)}
}

// The main job, with the programs of other people only: the same device proves
// itself with a pre-shared key over DTLS, with a certificate over HTTPS, and with
// the certificate over DTLS, and is one device all three times.
func TestOneDeviceOnEveryTransport(t *testing.T) {
	t.Parallel()
	s := start(t)
	k := s.textPSK()
	cert := s.enrol(k.Device, "device")
	for _, client := range coapClients {
		r := s.coap(client, "-A", "50", "-u", k.Identity, "-k", k.text(t), s.coaps("/whoami"))
		s.whoami(r.out).isDevice(s, k.Device, "psk")
		r = s.coap(client, "-A", "50", "-C", s.ca(), "-c", cert.cert, "-j", cert.key, s.coaps("/whoami"))
		s.whoami(r.out).isDevice(s, k.Device, "certificate")
		r = s.coap(client, "-A", "50", "-C", s.ca(), "-c", cert.cert, "-j", cert.key, "coaps+tcp://"+s.at.CoAPTCP+"/whoami")
		s.whoami(r.out).isDevice(s, k.Device, "certificate")
	}
	body, code := s.curl("--cert", cert.cert, "--key", cert.key, s.url("/api/v1/whoami"))
	if code != http.StatusOK {
		t.Fatalf("got %d %s", code, body)
	}
	s.whoami(body).isDevice(s, k.Device, "certificate")
	s.must("openssl", "verify", "-CAfile", s.ca(), "-untrusted", s.chain(), cert.cert)
}

// chain is a file with the CAs that EST gives out.
func (s *server) chain() string {
	s.t.Helper()
	s.sh(`curl -sS --fail --cacert "$CA" "$URL/.well-known/est/cacerts" | openssl base64 -d -A | openssl pkcs7 -inform DER -print_certs -out chain.pem`)
	return s.path("chain.pem")
}

// strongSwan's EST client enrols with a token, and again with the certificate.
func TestStrongSwanEnrols(t *testing.T) {
	t.Parallel()
	s := start(t)
	device := s.textPSK().Device
	s.must("env", "TOKEN="+s.enrolmentToken(device), "URL=https://localhost:"+port(s.at.HTTPS), "CA="+s.ca(), "bash", "-euo", "pipefail", "-c", `
		pki --gen --type ecdsa --size 256 --outform pem >swan.key
		pki --req --in swan.key --type ecdsa --dn "CN=`+device+`" >swan.csr
		pki --est --url "$URL" --in swan.csr --cacert "$CA" --userpass "enrol:$TOKEN" --outform pem >swan.crt
		pki --req --in swan.key --type ecdsa --dn "CN=`+device+`" >again.csr
		pki --est --url "$URL" --in again.csr --cacert "$CA" --cert swan.crt --key swan.key --outform pem >again.crt
		cp swan.key again.key`)
	for _, name := range []string{"swan", "again"} {
		c := s.certificate(name)
		body, code := s.curl("--cert", c.cert, "--key", c.key, s.url("/api/v1/whoami"))
		if code != http.StatusOK {
			t.Fatalf("%s: got %d %s", name, code, body)
		}
		s.whoami(body).isDevice(s, device, "certificate")
	}
}

func port(addr string) string { return addr[strings.LastIndexByte(addr, ':')+1:] }

// A token enrols the device it was made for, as often as it was made for, and
// nobody else.
func TestATokenEnrolsItsDeviceOnly(t *testing.T) {
	t.Parallel()
	s := start(t)
	mine, other := s.textPSK().Device, s.textPSK().Device
	token := s.enrolmentToken(mine)
	request := func(cn, token string) int {
		csr := s.sh(`openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout x.key -subj "/CN=` + cn + `" -outform DER 2>/dev/null | openssl base64 -A`)
		_, code := s.curl("-u", "enrol:"+token, "-H", "Content-Type: application/pkcs10", "--data-binary", csr, s.url("/.well-known/est/simpleenroll"))
		return code
	}
	for _, c := range []struct {
		name, cn, token string
		want            int
	}{
		{"another device", other, token, http.StatusForbidden},
		{"no token", mine, "nothing", http.StatusUnauthorized},
		{"its device", mine, token, http.StatusOK},
		{"once more", mine, token, http.StatusUnauthorized},
	} {
		if got := request(c.cn, c.token); got != c.want {
			t.Errorf("%s: got %d, want %d", c.name, got, c.want)
		}
	}
}
