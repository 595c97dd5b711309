//go:build e2e

package e2e_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"
	"github.com/golang-jwt/jwt/v5"
	"github.com/pion/dtls/v3"
	godtls "github.com/plgd-dev/go-coap/v3/dtls"
	gomessage "github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/plgd-dev/go-coap/v3/message/pool"
	"github.com/plgd-dev/go-coap/v3/options"
	gotcp "github.com/plgd-dev/go-coap/v3/tcp"
)

// goClient is a client of go-coap's, over either transport.
type goClient interface {
	Post(ctx context.Context, path string, format gomessage.MediaType, body io.ReadSeeker, opts ...gomessage.Option) (*pool.Message, error)
	Delete(ctx context.Context, path string, opts ...gomessage.Option) (*pool.Message, error)
	Get(ctx context.Context, path string, opts ...gomessage.Option) (*pool.Message, error)
	Done() <-chan struct{}
	Close() error
}

// oauth is an OAuth server of the test's own: a code or refresh token says what its access
// tokens say of the device.
type oauth struct {
	*httptest.Server
	key *ecdsa.PrivateKey
}

func newOAuth(t *testing.T) *oauth {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	point, err := key.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	o := &oauth{key: key}
	answer := func(w http.ResponseWriter, v any) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(v)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		at := o.URL
		answer(w, map[string]any{"issuer": at, "authorization_endpoint": at + "/authorize", "token_endpoint": at + "/token", "jwks_uri": at + "/keys"})
	})
	mux.HandleFunc("/keys", func(w http.ResponseWriter, _ *http.Request) {
		enc := base64.RawURLEncoding.EncodeToString
		answer(w, map[string]any{"keys": []map[string]string{{"kty": "EC", "crv": "P-256", "alg": "ES256", "kid": "1", "x": enc(point[1:33]), "y": enc(point[33:])}}})
	})
	mux.HandleFunc("/token", func(w http.ResponseWriter, r *http.Request) {
		code := r.FormValue("code") + r.FormValue("refresh_token")
		answer(w, map[string]any{"access_token": o.access(t, code), "token_type": "Bearer", "refresh_token": code, "expires_in": 3600})
	})
	o.Server = httptest.NewTLSServer(mux)
	t.Cleanup(o.Close)
	return o
}

// access is an access token of ann's: the code is the device it names, unless it is one of the
// words that say that it names none.
func (o *oauth) access(t *testing.T, code string) string {
	claims := jwt.MapClaims{
		"iss": o.URL, "aud": "cloud", "sub": "ann", "iat": time.Now().Unix(), "exp": time.Now().Add(time.Hour).Unix(), "jti": rand.Text(),
		"device": code, "nested": map[string]string{"device": code},
	}
	switch code {
	case "number":
		claims["device"] = 7
	case "empty":
		claims["device"] = ""
	case "none":
		delete(claims, "device")
	}
	token := jwt.NewWithClaims(jwt.SigningMethodES256, claims)
	token.Header["kid"] = "1"
	access, err := token.SignedString(o.key)
	if err != nil {
		t.Error(err)
	}
	return access
}

// cloud starts a server that is an OCF cloud whose tokens are of an OAuth server, and trusts a
// maker's CA; settings are more of coap.ocf.
func (o *oauth) cloud(t *testing.T, by *ocfMaker, settings string) *server {
	t.Helper()
	dir := t.TempDir()
	write(t, dir+"/oauth.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: o.Certificate().Raw}))
	write(t, dir+"/secret", []byte("s3cret"))
	write(t, dir+"/keystead.yaml", []byte(`
webhook: {ca_file: `+dir+`/oauth.pem, allow_cidrs: [127.0.0.0/8]}
coap:
  ocf:
    enabled: true
    providers: [{name: cloud, authority: "`+o.URL+`", client_id: gateway, client_secret_file: `+dir+`/secret, audience: cloud}]
`+settings))
	s := prepare(t, fast...)
	s.args = append(s.args, "--config", dir+"/keystead.yaml")
	s.start()
	write(t, s.path("maker.pem"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: by.cert.Raw}))
	s.cli("ca", "import", s.path("maker.pem"))
	return s
}

// ocfMaker is a maker of OCF devices: a CA.
type ocfMaker struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newOCFMaker(t *testing.T) *ocfMaker {
	t.Helper()
	m := &ocfMaker{t: t}
	root := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "OCF maker"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(48 * time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	m.key = key
	der, err := x509.CreateCertificate(rand.Reader, root, root, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	if m.cert, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	return m
}

// usages are those of an OCF identity certificate, besides the one for that.
var usages = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}

// issue makes a certificate for a device: an OCF identity certificate if identity says so.
func (m *ocfMaker) issue(cn string, identity bool, usages ...x509.ExtKeyUsage) tls.Certificate {
	m.t.Helper()
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<62))
	if err != nil {
		m.t.Fatal(err)
	}
	leaf := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: cn}, NotBefore: m.cert.NotBefore, NotAfter: m.cert.NotBefore.Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: usages,
	}
	if identity {
		leaf.UnknownExtKeyUsage = []asn1.ObjectIdentifier{{1, 3, 6, 1, 4, 1, 44924, 1, 6}}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		m.t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, leaf, m.cert, key.Public(), m.key)
	if err != nil {
		m.t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// goCoAP opens a session as go-coap does, over "TCP" or "DTLS".
func (s *server) goCoAP(over string, certs ...tls.Certificate) (goClient, error) {
	var c goClient
	if over == "TCP" {
		conf := s.tls()
		conf.ServerName, conf.Certificates = "localhost", certs
		conn, err := gotcp.Dial(s.at.CoAPTCP, options.WithTLS(conf))
		if err != nil {
			return nil, err
		}
		c = conn
	} else {
		var opts []dtls.ClientOption
		if len(certs) > 0 {
			opts = append(opts, dtls.WithCertificates(certs...))
		}
		d, err := s.dial(opts...)
		if err != nil {
			return nil, err
		}
		c = godtls.Client(d.conn)
	}
	s.t.Cleanup(func() { c.Close() })
	return c, nil
}

// post sends a map in CBOR, and returns the map and the text of the answer.
func post(ctx context.Context, c goClient, path string, body map[string]any) (code codes.Code, v map[string]any, text string, err error) {
	b, err := cbor.Marshal(body)
	if err != nil {
		return 0, nil, "", err
	}
	resp, err := c.Post(ctx, path, gomessage.AppOcfCbor, bytes.NewReader(b))
	if err != nil {
		return 0, nil, "", err
	}
	raw, err := resp.ReadBody()
	if resp.Code() < codes.BadRequest && len(raw) > 0 {
		_ = cbor.Unmarshal(raw, &v)
	}
	return resp.Code(), v, string(raw), err
}

const ocfDevice, ocfOther = "b5a2a42e-b285-42f1-a36b-034c8fc8efd5", "c5a2a42e-b285-42f1-a36b-034c8fc8efd5"

// A client of go-coap's with an OCF identity certificate of a CA that was imported, and a token of
// an outside OAuth server, is served as by an OCF cloud.
func TestOCFCloud(t *testing.T) {
	t.Parallel()
	by := newOCFMaker(t)
	s := newOAuth(t).cloud(t, by, "    device_id_claim: device\n")
	for _, over := range []string{"TCP", "DTLS"} {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		c, err := s.goCoAP(over, by.issue("uuid:"+ocfDevice, true, usages...))
		if err != nil {
			t.Fatal(err)
		}
		must := func(path string, body map[string]any) map[string]any {
			t.Helper()
			code, v, text, err := post(ctx, c, path, body)
			if err != nil || code != codes.Changed {
				t.Fatalf("%s: POST %s: %v %s, %v", over, path, code, text, err)
			}
			return v
		}
		up := must("/oic/sec/account", map[string]any{"di": "x", "accesstoken": ocfDevice, "authprovider": "cloud"})
		in := map[string]any{"di": "x", "uid": "ann", "accesstoken": up["accesstoken"], "login": true}
		must("/oic/sec/session", in)
		if resp, err := c.Get(ctx, "/whoami"); err != nil || resp.Code() != codes.Content {
			t.Errorf("%s: whoami: %v, %v", over, resp, err)
		}
		refreshed := must("/oic/sec/tokenrefresh", map[string]any{"di": "x", "uid": "ann", "refreshtoken": up["refreshtoken"]})
		must("/oic/sec/session", map[string]any{"login": false})
		in["accesstoken"] = refreshed["accesstoken"]
		must("/oic/sec/session", in)
		if resp, err := c.Delete(ctx, "/oic/sec/account"); err != nil || resp.Code() != codes.Deleted {
			t.Errorf("%s: sign off: %v, %v", over, resp, err)
		}
	}
	if list := s.rest(http.MethodGet, "/api/v1/devices?state=decommissioned", "", http.StatusOK); strings.Count(list, `"decommissioned"`) < 2 {
		t.Errorf("the devices that signed off: %s", list)
	}
}

// ocfCase is a case of the table by which an OCF cloud tells which device a session is of.
type ocfCase struct {
	name   string
	code   string // what the token says: see oauth.access
	cn     string // of the certificate; "" for none
	plain  bool   // the certificate is no OCF identity certificate
	usages []x509.ExtKeyUsage
	device string // that it is; "" for 4.01 and the end of the session
	says   string
}

// Each rule of that table holds for signing up, in and out and for refreshing, over TCP and over
// DTLS; and who is let in signs off as the device that it is.
func TestOCFDeviceIDRules(t *testing.T) {
	t.Parallel()
	const missing = "access token doesn't contain the required device id claim('"
	const nobody = "certificate of device doesn't contain device id"
	web, by := newOAuth(t), newOCFMaker(t)
	for settings, cases := range map[string][]ocfCase{
		"    client_certificate_required: false": {
			{name: "neither: what is stated", code: "none", device: "stated"},
		},
		"    client_certificate_required: false\n    device_id_claim: device": {
			{name: "a claim that is no text", code: "number", says: "is not a text"},
			{name: "a claim that is missing", code: "none", says: missing + "device')"},
			{name: "a claim that is empty", code: "empty", says: missing + "device')"},
			{name: "a claim, and another is stated", code: ocfDevice, device: ocfDevice},
		},
		"    client_certificate_required: false\n    device_id_claim: nested.device": {
			{name: "a claim is not read as a path", code: ocfDevice, says: missing + "nested.device')"},
		},
		"    client_certificate_required: true": {
			{name: "a certificate, and another is stated", code: "none", cn: "uuid:" + ocfDevice, usages: usages, device: ocfDevice},
			{name: "a certificate in capitals and braces", code: "none", cn: "UUID:{" + strings.ToUpper(ocfOther) + "}", usages: usages, device: ocfOther},
			{name: "a certificate without an identity", code: "none", cn: "uuid:" + ocfDevice, plain: true, usages: usages, says: nobody},
			{name: "a certificate of another subject", code: "none", cn: "pump 1", usages: usages, says: nobody},
			{name: "a certificate with half an id", code: "none", cn: "uuid:b5a2a42e", usages: usages, says: nobody},
			{name: "a certificate for clients only", code: "none", cn: "uuid:" + ocfDevice, usages: usages[:1], says: nobody},
		},
		"    client_certificate_required: true\n    device_id_claim: device": {
			{name: "both, and they agree", code: ocfDevice, cn: "uuid:" + ocfDevice, usages: usages, device: ocfDevice},
			{name: "both, and they differ", code: ocfOther, cn: "uuid:" + ocfDevice, usages: usages, says: "access token issued to the device ('" + ocfOther + "') used by the different device ('" + ocfDevice + "')"},
			{name: "both, and the claim is in capitals", code: strings.ToUpper(ocfDevice), cn: "uuid:" + ocfDevice, usages: usages, says: "used by the different device"},
			{name: "both are to be there, and the claim is not", code: "none", cn: "uuid:" + ocfDevice, usages: usages, says: missing + "device')"},
		},
	} {
		s := web.cloud(t, by, settings)
		var wg sync.WaitGroup
		for _, c := range cases {
			wg.Go(func() {
				for _, over := range []string{"TCP", "DTLS"} { // one after the other: who signs off ends its other sessions
					c.run(t, web, s, by, over)
				}
			})
		}
		wg.Wait()
		s.stop()
	}
}

// run goes through the operations: those of a device that is told by one session, and each that is
// refused by one of its own, which must end.
func (o ocfCase) run(t *testing.T, web *oauth, s *server, by *ocfMaker, over string) {
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	stated := "stated over " + over // by this device and no other, so that it can sign up
	device := strings.Replace(o.device, "stated", stated, 1)
	access := web.access(t, o.code)
	operations := []struct {
		what, path string
		body       map[string]any // nil for DELETE
		want       codes.Code
	}{
		{"sign up", "/oic/sec/account", map[string]any{"di": stated, "accesstoken": o.code, "authprovider": "cloud"}, codes.Changed},
		{"sign in", "/oic/sec/session", map[string]any{"di": stated, "uid": "ann", "accesstoken": access, "login": true}, codes.Changed},
		{"refresh token", "/oic/sec/tokenrefresh", map[string]any{"di": stated, "uid": "ann", "refreshtoken": o.code}, codes.Changed},
		{"sign out", "/oic/sec/session", map[string]any{"di": stated, "uid": "ann", "accesstoken": access}, codes.Changed},
		{"sign in again", "/oic/sec/session", map[string]any{"di": stated, "uid": "ann", "accesstoken": access, "login": true}, codes.Changed},
		{"sign off", "/oic/sec/account", nil, codes.Deleted},
	}
	var certs []tls.Certificate
	if o.cn != "" {
		certs = append(certs, by.issue(o.cn, !o.plain, o.usages...))
	}
	dial := func() goClient {
		c, err := s.goCoAP(over, certs...)
		if err != nil {
			t.Errorf("%s over %s: %v", o.name, over, err)
			return nil
		}
		return c
	}
	do := func(c goClient, path string, body map[string]any) (codes.Code, string, error) {
		if body != nil {
			code, _, text, err := post(ctx, c, path, body)
			return code, text, err
		}
		resp, err := c.Delete(ctx, path) // a token of an OAuth server is longer than an option may be: it is that of the session
		if err != nil {
			return 0, "", err
		}
		raw, err := resp.ReadBody()
		return resp.Code(), string(raw), err
	}
	if o.device != "" {
		c := dial()
		if c == nil {
			return
		}
		for _, op := range operations {
			if code, text, err := do(c, op.path, op.body); err != nil || code != op.want {
				t.Errorf("%s over %s, %s: %v %s, %v, want %v", o.name, over, op.what, code, text, err, op.want)
			}
			if op.what != "sign in" {
				continue
			}
			resp, err := c.Get(ctx, "/whoami")
			if err != nil {
				t.Errorf("%s over %s: %v", o.name, over, err)
				return
			}
			if raw, err := resp.ReadBody(); err != nil || !strings.Contains(string(raw), "ocf:"+device) {
				t.Errorf("%s over %s: signed in as %q, %v, want %s", o.name, over, raw, err, device)
			}
		}
		return
	}
	var wg sync.WaitGroup
	for _, op := range operations[:4] { // nobody signs off who was not let in
		wg.Go(func() {
			c := dial()
			if c == nil {
				return
			}
			code, text, err := do(c, op.path, op.body)
			for n := 0; n < 3 && err != nil; n++ { // go-coap, if it is slow to run, takes the end of the session for that of the request
				if c = dial(); c == nil {
					return
				}
				code, text, err = do(c, op.path, op.body)
			}
			if err != nil || code != codes.Unauthorized || !strings.Contains(text, o.says) || !strings.Contains(text, "cannot handle "+op.what+": ") {
				t.Errorf("%s over %s, %s: %v %s, %v, want 4.01 with %q", o.name, over, op.what, code, text, err, o.says)
			}
			select {
			case <-c.Done():
			case <-time.After(patience):
				t.Errorf("%s over %s, %s: the session is not closed", o.name, over, op.what)
			}
		})
	}
	wg.Wait()
}
