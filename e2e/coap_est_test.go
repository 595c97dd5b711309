//go:build e2e

package e2e_test

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/asn1"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"
	"github.com/pion/dtls/v3"

	"keystead/coap"
)

// est makes a request of EST over CoAP and returns the whole answer: accept 0 asks for no
// format.
func (c *session) est(method coap.Code, path string, accept coap.Format, format coap.Format, body []byte) coap.Message {
	c.s.t.Helper()
	options := coap.Options{}.AddPath(path)
	if accept != 0 {
		options = options.AddUint(coap.Accept, uint32(accept))
	}
	if format != 0 {
		options = options.AddUint(coap.ContentFormat, uint32(format))
	}
	var whole []byte
	for n := uint32(0); ; n++ {
		o := options
		if n > 0 {
			o = options.Add(coap.Block2, coap.Block{Num: n, SZX: 6}.Value())
			body = nil
		}
		m, err := c.ask(method, o, body)
		if err != nil {
			c.s.t.Fatalf("%v %s: %v", method, path, err)
		}
		whole = append(whole, m.Payload...)
		b, ok := m.Options.Get(coap.Block2)
		if block, valid := coap.ParseBlock(b); !ok || !valid || !block.More {
			m.Payload = whole
			return m
		}
	}
}

// ask makes one confirmable request, and acknowledges an answer that comes by itself.
func (c *session) ask(method coap.Code, options coap.Options, body []byte) (coap.Message, error) {
	c.mid++
	m := coap.Message{Code: method, ID: c.mid, Token: []byte{byte(c.mid >> 8), byte(c.mid)}, Options: options, Payload: body}
	buf := make([]byte, 8192)
	for range 5 {
		if _, err := c.conn.Write(m.Append(nil)); err != nil {
			return coap.Message{}, err
		}
		for until := time.Now().Add(10 * time.Second); ; {
			_ = c.conn.SetReadDeadline(until)
			n, err := c.conn.Read(buf)
			if err != nil {
				break
			}
			got, err := coap.Parse(bytes.Clone(buf[:n]))
			switch {
			case err != nil:
				return got, err
			case got.Code == coap.Empty && got.Type == coap.Acknowledgement && got.ID == m.ID:
				c.acks++
			case bytes.Equal(got.Token, m.Token):
				if got.Type == coap.Confirmable {
					ack := coap.Message{Type: coap.Acknowledgement, ID: got.ID}
					_, err = c.conn.Write(ack.Append(nil))
				}
				return got, err
			}
		}
	}
	return coap.Message{}, fmt.Errorf("no answer to %v %s", method, options.Path())
}

// isOf fails the test if m is not an answer with a code and a format.
func isOf(t *testing.T, what string, m coap.Message, code coap.Code, format coap.Format) {
	t.Helper()
	if f, ok := m.Options.Uint(coap.ContentFormat); m.Code != code || !ok || f != uint32(format) {
		t.Errorf("%s: got %v in format %d (%q), want %v in %d", what, m.Code, f, m.Payload, code, format)
	}
}

// onlyOne is the one certificate in an answer of either format.
func (s *server) onlyOne(m coap.Message) *x509.Certificate {
	s.t.Helper()
	der := m.Payload
	if f, _ := m.Options.Uint(coap.ContentFormat); f == uint32(coap.PKCS7Certs) {
		der = s.pkcs7(m.Payload, 1)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		s.t.Fatalf("the answer holds no certificate: %v", err)
	}
	return cert
}

// pkcs7 has openssl read a certs-only message of n certificates and returns the first.
func (s *server) pkcs7(der []byte, n int) []byte {
	s.t.Helper()
	writeText(s.t, s.path("bag.p7"), string(der))
	text := s.must("openssl", "pkcs7", "-inform", "DER", "-in", "bag.p7", "-print_certs")
	if got := strings.Count(text, "BEGIN CERTIFICATE"); got < n || n == 1 && got != 1 {
		s.t.Errorf("got %d certificates, want %d", got, n)
	}
	block, _ := pem.Decode([]byte(text[max(0, strings.Index(text, "-----BEGIN")):]))
	if block == nil {
		s.t.Fatalf("openssl printed no certificate: %s", text)
	}
	return block.Bytes
}

// becomes shows that who has a certificate and its key is the device.
func (s *server) becomes(cert *x509.Certificate, key crypto.PrivateKey, device string) {
	s.t.Helper()
	c := s.mustDial(dtls.WithCertificates(tls.Certificate{Certificate: [][]byte{cert.Raw}, PrivateKey: key}))
	defer c.close()
	w, err := c.whoami()
	if err != nil {
		s.t.Fatal(err)
	}
	w.isDevice(s, device, "certificate")
}

// verified has openssl verify a certificate for a client.
func (s *server) verified(cert *x509.Certificate) {
	s.t.Helper()
	writeText(s.t, s.path("one.pem"), string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.Raw})))
	s.must("openssl", "verify", "-CAfile", s.ca(), "-untrusted", s.handedOut(""), "-purpose", "sslclient", "one.pem")
}

// Every function of RFC 9148, by its short and its long path, for the default DMS and with
// the label of another, in each of its content formats.
func TestESTOverCoAP(t *testing.T) {
	t.Parallel()
	const pskSettings = `{"enrollment_settings":{"est_rfc7030_settings":{"auth_mode":"PSK"}%s},"reenrollment_settings":{"est_rfc7030_settings":{"auth_mode":"PSK"}},
		"ca_distribution_settings":{"include_enrollment_ca":true}%s}`
	slow := make(chan struct{}, 4)
	hook := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		slow <- struct{}{}
		time.Sleep(1500 * time.Millisecond)
		fmt.Fprint(w, `{"authorized":true}`)
	}))
	defer hook.Close()
	s := start(t, "webhook.allow_cidrs=127.0.0.0/8")
	s.dms(`{"id":"plant","name":"plant","settings":` + fmt.Sprintf(pskSettings, "", `,"server_keygen_settings":{"enabled":true}`) + `}`)
	s.dms(`{"id":"byhand","name":"by hand","settings":` + fmt.Sprintf(pskSettings, `,"manual_approval":true`, "") + `}`)
	s.dms(`{"id":"linked","name":"linked","settings":{"enrollment_settings":{"est_rfc7030_settings":{"auth_mode":"PSK","channel_binding":"required"}}}}`)
	s.dms(`{"id":"asked","name":"asked","settings":{"enrollment_settings":{"enable_replaceable_enrollment":true,"est_rfc7030_settings":{"auth_mode":"EXTERNAL_WEBHOOK",
		"external_webhook_settings":{"url":"` + hook.URL + `","config":{"auth_mode":"noauth"}}}}}}`)
	s.dms(`{"id":"tokens","name":"tokens","settings":` + tokenSettings + `}`)
	k := s.textPSK()
	s.request("d", "/CN=device-1")
	csr := []byte(readText(t, s.path("d.csr")))
	block, _ := pem.Decode([]byte(s.must("openssl", "pkcs8", "-topk8", "-nocrypt", "-in", "d.key")))
	key, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	var mine, made *x509.Certificate
	c := s.mustDial(withPSK(k, k.text(t))...)

	for _, base := range []string{"/est/", "/.well-known/est/", "/est/plant/", "/.well-known/est/plant/"} {
		for _, name := range []string{"crts", "cacerts"} {
			m := c.est(coap.GET, base+name, 0, 0, nil)
			isOf(t, base+name, m, coap.Content, 281)
			s.pkcs7(m.Payload, 2)
		}
		for _, name := range []string{"att", "csrattrs"} {
			m := c.est(coap.GET, base+name, 0, 0, nil)
			isOf(t, base+name, m, coap.Content, 285)
			var attributes []asn1.RawValue
			if rest, err := asn1.Unmarshal(m.Payload, &attributes); err != nil || len(rest) > 0 {
				t.Errorf("%s: got %x, %v, want a sequence of attributes", base+name, m.Payload, err)
			}
		}
		for _, by := range []struct {
			name           string
			renews         bool
			accept, answer coap.Format
		}{{"sen", false, 0, 281}, {"simpleenroll", false, 281, 281}, {"sren", true, 287, 287}, {"simplereenroll", true, 0, 281}} {
			d := c
			if by.renews && !strings.Contains(base, "plant") { // where nothing else is set, a certificate is renewed with itself
				d = s.mustDial(dtls.WithCertificates(tls.Certificate{Certificate: [][]byte{mine.Raw}, PrivateKey: key}))
			}
			m := d.est(coap.POST, base+by.name, by.accept, 286, csr)
			isOf(t, base+by.name, m, coap.Changed, by.answer)
			mine = s.onlyOne(m)
			s.becomes(mine, key, k.Device)
		}
		for name, format := range map[string]coap.Format{"skg": 281, "serverkeygen": 281, "skc": 287} {
			m := c.est(coap.POST, base+name, 0, 286, csr)
			isOf(t, base+name, m, coap.Changed, 62)
			var parts []any
			if err := cbor.Unmarshal(m.Payload, &parts); err != nil || len(parts) != 4 || parts[0] != uint64(284) || parts[2] != uint64(format) {
				t.Fatalf("%s: got %x, %v, want an array of 284, a key, %d and a certificate", base+name, m.Payload, err, format)
			}
			key, err := x509.ParsePKCS8PrivateKey(parts[1].([]byte))
			if err != nil {
				t.Fatalf("%s: %v", base+name, err)
			}
			cert := s.onlyOne(coap.Message{Options: coap.Options{}.AddUint(coap.ContentFormat, uint32(format)), Payload: parts[3].([]byte)})
			if private, ok := key.(*ecdsa.PrivateKey); !ok || !private.PublicKey.Equal(cert.PublicKey) {
				t.Errorf("%s: the key is not that of the certificate", base+name)
			}
			s.becomes(cert, key, k.Device)
			made = cert
		}
	}
	s.verified(mine)
	s.verified(made)

	// Who asks for the new key to be encrypted to its own gets format 280, which openssl opens.
	writeText(t, s.path("wrapped.cnf"), "[req]\nprompt=no\ndistinguished_name=dn\nattributes=attributes\n[dn]\nCN=device-1\n[attributes]\n1.2.840.113549.1.9.16.2.54=mine\n")
	for name, make := range map[string][]string{"P-256": {"genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256"}, "RSA": {"genpkey", "-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"}} {
		s.must("openssl", append(make, "-out", "holder.key")...)
		s.must("openssl", "req", "-new", "-key", "holder.key", "-config", "wrapped.cnf", "-outform", "DER", "-out", "holder.csr")
		wanted := []byte(readText(t, s.path("holder.csr")))
		for function, format := range map[string]coap.Format{"skg": 281, "skc": 287} {
			m := c.est(coap.POST, "/est/plant/"+function, 62, 286, wanted)
			isOf(t, function+" to a key of "+name, m, coap.Changed, 62)
			var parts []any
			if err := cbor.Unmarshal(m.Payload, &parts); err != nil || len(parts) != 4 || parts[0] != uint64(280) || parts[2] != uint64(format) {
				t.Fatalf("%s to a key of %s: got %x, %v, want an array of 280, a CMS message, %d and a certificate", function, name, m.Payload, err, format)
			}
			writeText(t, s.path("wrapped.cms"), string(parts[1].([]byte)))
			s.must("openssl", "cms", "-decrypt", "-binary", "-inform", "DER", "-in", "wrapped.cms", "-inkey", "holder.key", "-out", "opened.der")
			opened, err := x509.ParsePKCS8PrivateKey([]byte(readText(t, s.path("opened.der"))))
			if err != nil {
				t.Fatalf("%s to a key of %s: %v", function, name, err)
			}
			s.becomes(s.onlyOne(coap.Message{Options: coap.Options{}.AddUint(coap.ContentFormat, uint32(format)), Payload: parts[3].([]byte)}), opened, k.Device)
		}
	}
	// One CA is handed out as a certificate to who asks for that.
	var cas struct{ Items []struct{ ID, Parent string } }
	s.decode(s.rest(http.MethodGet, "/api/v1/cas", "", http.StatusOK), &cas)
	for _, ca := range cas.Items {
		if ca.Parent == "" {
			s.dms(`{"id":"rooted","name":"rooted","settings":{"enrollment_settings":{"est_rfc7030_settings":{"auth_mode":"ENROLMENT_TOKEN"}},
				"reenrollment_settings":{"est_rfc7030_settings":{"auth_mode":"ENROLMENT_TOKEN"}},"ca_distribution_settings":{"managed_cas":["` + ca.ID + `"]}}}`)
			break
		}
	}
	one := c.est(coap.GET, "/est/rooted/crts", 287, 0, nil)
	isOf(t, "one CA", one, coap.Content, 287)
	if ca := s.onlyOne(one); !ca.IsCA {
		t.Errorf("format 287: got the certificate of %s, which is no CA", ca.Subject)
	}

	for _, wrong := range []struct {
		what   string
		method coap.Code
		path   string
		accept coap.Format
		format coap.Format
		body   []byte
		code   coap.Code
		tells  string
	}{
		{"a format that is not answered", coap.GET, "/est/crts", 60, 0, nil, coap.NotAcceptable, "281"},
		{"more than one certificate as one", coap.GET, "/est/crts", 287, 0, nil, coap.NotAcceptable, "accept 281"},
		{"attributes as something else", coap.GET, "/est/att", 281, 0, nil, coap.NotAcceptable, "285"},
		{"a key as something else", coap.POST, "/est/skg", 281, 286, csr, coap.NotAcceptable, "62"},
		{"a request of another format", coap.POST, "/est/sen", 0, 60, csr, coap.UnsupportedContentFormat, "286"},
		{"no request at all", coap.POST, "/est/sen", 0, 286, []byte("hello"), coap.BadRequest, ""},
		{"a method that is not there", coap.POST, "/est/crts", 0, 0, nil, coap.MethodNotAllowed, ""},
		{"a DMS that is not there", coap.POST, "/est/nowhere/sen", 0, 286, csr, coap.Unauthorized, ""},
		{"a DMS that takes no pre-shared keys", coap.POST, "/est/tokens/sen", 0, 286, csr, coap.Unauthorized, ""},
	} {
		d := s.mustDial(withPSK(k, k.text(t))...) // some of it ends the session
		m := d.est(wrong.method, wrong.path, wrong.accept, wrong.format, wrong.body)
		if m.Code != wrong.code || !strings.Contains(string(m.Payload), wrong.tells) {
			t.Errorf("%s: got %v %q, want %v with %q", wrong.what, m.Code, m.Payload, wrong.code, wrong.tells)
		}
		d.close()
	}

	// What has to be linked to a TLS connection cannot be here.
	if m := c.est(coap.POST, "/est/linked/sen", 0, 286, csr); m.Code != coap.Forbidden || !strings.Contains(string(m.Payload), "HTTPS") {
		t.Errorf("where linking is required: got %v %q, want 4.03", m.Code, m.Payload)
	}

	// Who has to be approved of is told to come again, and does so with the same request.
	m := c.est(coap.POST, "/est/byhand/sen", 0, 286, csr)
	if age, ok := m.Options.Uint(coap.MaxAge); m.Code != coap.ServiceUnavailable || !ok || age == 0 {
		t.Errorf("waiting for approval: got %v %q, Max-Age %d, want 5.03", m.Code, m.Payload, age)
	}
	var waiting struct{ Items []struct{ ID string } }
	if err := json.Unmarshal([]byte(s.rest(http.MethodGet, "/api/v1/enrolments", "", http.StatusOK)), &waiting); err != nil || len(waiting.Items) != 1 {
		t.Fatalf("waiting: %+v, %v", waiting, err)
	}
	s.rest(http.MethodPost, "/api/v1/enrolments/"+waiting.Items[0].ID+"/approve", "{}", http.StatusOK)
	m = c.est(coap.POST, "/est/byhand/sen", 0, 286, csr)
	isOf(t, "approved", m, coap.Changed, 281)
	s.becomes(s.onlyOne(m), key, k.Device)

	// What takes longer than a second is acknowledged, and answered by itself.
	other := s.textPSK()
	late := s.mustDial(withPSK(other, other.text(t))...)
	s.request("late", "/CN=device-2")
	m = late.est(coap.POST, "/est/asked/sen", 287, 286, []byte(readText(t, s.path("late.csr"))))
	isOf(t, "a slow webhook", m, coap.Changed, 287)
	if m.Type != coap.Confirmable || late.acks == 0 || len(slow) != 1 {
		t.Errorf("a slow webhook: got a message of type %v after %d empty acknowledgements and %d calls, want one that is confirmable after one", m.Type, late.acks, len(slow))
	}

	links := c.est(coap.GET, "/.well-known/core", 0, 0, nil)
	for _, want := range []string{`</est/crts>;rt="ace.est.crts";ct="281 287"`, `</est/sen>;rt="ace.est.sen"`, `</est/sren>;rt="ace.est.sren"`, `</est/skg>;rt="ace.est.skg";ct=62`, `</est/skc>;rt="ace.est.skc";ct=62`, `</est/att>;rt="ace.est.att";ct=285`} {
		if !strings.Contains(string(links.Payload), want) {
			t.Errorf("/.well-known/core: got %s, want %s in it", links.Payload, want)
		}
	}
}
