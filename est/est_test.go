package est_test

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"io"
	"log/slog"
	"math/big"
	"mime"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"keystead/audit"
	"keystead/devices"
	"keystead/est"
	"keystead/fault"
	"keystead/identity"
	"keystead/outbound"
	"keystead/page"
	"keystead/pki"
	"keystead/seal"
	"keystead/store/bolt"
)

const org = "acme"

// field is an EST server of the test's own, over TLS.
type field struct {
	*est.Service
	ctx   context.Context
	url   string
	roots *x509.CertPool
	clock atomic.Int64
	start time.Time
}

func open(t testing.TB) *field {
	t.Helper()
	f := &field{}
	f.start = time.Now()
	f.clock.Store(f.start.Unix())
	db, err := bolt.Open(filepath.Join(t.TempDir(), "db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	box, err := seal.NewBox(make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	log := &audit.Log{DB: db, Key: make(seal.Secret, 32), Now: f.now}
	quiet := slog.New(slog.DiscardHandler)
	ds := &devices.Service{DB: db, Audit: log, Now: f.now}
	ca := &pki.Service{DB: db, Audit: log, Devices: ds, Keys: &pki.SealedKeys{DB: db, Box: box}, Log: quiet, Now: f.now, PublicHTTP: "http://pki.example"}
	f.Service = &est.Service{
		DB: db, Audit: log, Devices: ds, PKI: ca, Log: quiet, Now: f.now, Config: est.DefaultConfig(), Box: box, DefaultOrg: org,
		Guard: outbound.Guard{Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}},
	}
	f.Config.AllowInsecureNoAuth = true
	f.ctx = identity.NewContext(t.Context(), identity.Actor{Kind: identity.User, ID: "admin", Org: org, Role: identity.Admin})
	for _, err := range []error{ca.Start(t.Context()), second(ca.EnsureOrg(f.ctx, org, "Acme")), f.EnsureDefault(t.Context(), org)} {
		if err != nil {
			t.Fatal(err)
		}
	}
	own, err := ca.ServerCertificate(t.Context(), org, []string{"127.0.0.1"})
	if err != nil {
		t.Fatal(err)
	}
	path, err := ca.Path(t.Context(), must(ca.DefaultCA(f.ctx)).ID)
	if err != nil {
		t.Fatal(err)
	}
	f.roots = x509.NewCertPool()
	f.roots.AddCert(path[len(path)-1])
	h := &est.Handler{
		Service: f.Service, Label: func(r *http.Request) string { return r.PathValue("label") },
		Remote: func(*http.Request) netip.Addr { return netip.MustParseAddr("192.0.2.1") },
	}
	mux := http.NewServeMux()
	serve := func(w http.ResponseWriter, r *http.Request) { h.ServeOperation(w, r, r.PathValue("op")) }
	mux.HandleFunc("/.well-known/est/{op}", serve)
	mux.HandleFunc("/.well-known/est/{label}/{op}", serve)
	ts := httptest.NewUnstartedServer(mux)
	ts.TLS = &tls.Config{Certificates: []tls.Certificate{*own}, ClientAuth: tls.RequestClientCert, MinVersion: tls.VersionTLS12}
	ts.StartTLS()
	t.Cleanup(ts.Close)
	f.url = ts.URL + "/.well-known/est/"
	return f
}

// began is the time of clients, whose view of the server's certificate is not what
// the tests are about.
func (f *field) began() time.Time         { return f.start }
func (f *field) now() time.Time           { return time.Unix(f.clock.Load(), 0) }
func (f *field) advance(by time.Duration) { f.clock.Add(int64(by / time.Second)) }
func second[T any](_ T, err error) error  { return err }
func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func newKey(t testing.TB) *ecdsa.PrivateKey {
	t.Helper()
	return must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
}

func request(t testing.TB, key crypto.Signer, cn string, change ...func(*x509.CertificateRequest)) []byte {
	t.Helper()
	r := &x509.CertificateRequest{Subject: pkix.Name{CommonName: cn}}
	for _, c := range change {
		c(r)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, r, key)
	if err != nil {
		t.Fatal(err)
	}
	return der
}

// exchange is one request and what is unusual about it.
type exchange struct {
	method  string
	path    string
	body    []byte
	media   string
	auth    string // "user:password" for Basic, else the header
	header  map[string]string
	chain   []*x509.Certificate
	key     crypto.Signer
	version uint16
}

type answer struct {
	status int
	header http.Header
	body   string
}

func (f *field) do(t testing.TB, x exchange) answer {
	t.Helper()
	conf := &tls.Config{RootCAs: f.roots, MaxVersion: x.version, Time: f.began}
	if x.chain != nil {
		pair := tls.Certificate{PrivateKey: x.key}
		for _, c := range x.chain {
			pair.Certificate = append(pair.Certificate, c.Raw)
		}
		conf.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &pair, nil }
	}
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: conf, DisableKeepAlives: true}}
	if x.method == "" {
		x.method = http.MethodPost
	}
	req, err := http.NewRequestWithContext(t.Context(), x.method, f.url+x.path, bytes.NewReader(x.body))
	if err != nil {
		t.Fatal(err)
	}
	if x.media == "" {
		x.media = "application/pkcs10"
	}
	req.Header.Set("Content-Type", x.media)
	if user, password, ok := strings.Cut(x.auth, ":"); ok {
		req.SetBasicAuth(user, password)
	} else if x.auth != "" {
		req.Header.Set("Authorization", x.auth)
	}
	for k, v := range x.header {
		req.Header.Set(k, v)
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{resp.StatusCode, resp.Header, string(body)}
}

func b64(der []byte) []byte { return []byte(base64.StdEncoding.EncodeToString(der)) }

// issued reads the one certificate of an answer.
func (a answer) issued(t testing.TB) *x509.Certificate {
	t.Helper()
	if a.status != http.StatusOK {
		t.Fatalf("got %d %s, want 200", a.status, a.body)
	}
	der, err := base64.StdEncoding.DecodeString(a.body)
	if err != nil {
		t.Fatalf("the body is not base64 on one line: %v", err)
	}
	certs, err := pki.ParseCertsOnly(der)
	if err != nil || len(certs) != 1 {
		t.Fatalf("got %d certificates, %v; want one", len(certs), err)
	}
	return certs[0]
}

func (f *field) token(t testing.TB, n est.NewToken) string {
	t.Helper()
	_, text, err := f.CreateToken(f.ctx, n)
	if err != nil {
		t.Fatal(err)
	}
	return "u:" + string(text)
}

// device enrols a device through the default DMS.
func (f *field) device(t testing.TB, cn string) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key := newKey(t)
	return f.do(t, exchange{path: "simpleenroll", body: b64(request(t, key, cn)), auth: f.token(t, est.NewToken{})}).issued(t), key
}

// outside makes a CA that is not of the server.
func outside(t testing.TB, now time.Time, name string) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key := newKey(t)
	return sign(t, now, name, key.Public(), nil, key, func(c *x509.Certificate) {
		c.IsCA, c.KeyUsage, c.ExtKeyUsage = true, x509.KeyUsageCertSign, nil
	}), key
}

func sign(t testing.TB, now time.Time, cn string, public any, parent *x509.Certificate, key crypto.Signer, change ...func(*x509.Certificate)) *x509.Certificate {
	t.Helper()
	c := &x509.Certificate{
		SerialNumber: must(rand.Int(rand.Reader, big.NewInt(1<<62))), Subject: pkix.Name{CommonName: cn}, NotBefore: now.Add(-time.Hour),
		NotAfter: now.Add(10000 * time.Hour), BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	for _, f := range change {
		f(c)
	}
	if parent == nil {
		parent = c
	}
	return must(x509.ParseCertificate(must(x509.CreateCertificate(rand.Reader, c, parent, public, key))))
}

// dms makes a DMS from settings in JSON; PLACE in it stands for a CA's id.
func (f *field) dms(t testing.TB, id, settings string, ca ...string) {
	t.Helper()
	for _, c := range ca {
		settings = strings.Replace(settings, "PLACE", c, 1)
	}
	var d est.DMS
	if err := json.Unmarshal([]byte(settings), &d.Settings); err != nil {
		t.Fatal(err)
	}
	d.ID, d.Name = id, id
	if _, err := f.CreateDMS(f.ctx, d); err != nil {
		t.Fatal(err)
	}
}

const byCertificate = `{"enrollment_settings":{"est_rfc7030_settings":{"auth_mode":"CLIENT_CERTIFICATE","client_certificate_settings":{"validation_cas":["PLACE"],"chain_level_validation":-1}}},
	"ca_distribution_settings":{"include_enrollment_ca":true}}`

// TestWhatIsWrongIsSaid is the list of what goes wrong in the field: each with the
// status and the reason a technician gets.
func TestWhatIsWrongIsSaid(t *testing.T) {
	f := open(t)
	now := f.now()
	root, rootKey := outside(t, now, "Maker")
	sub := newKey(t)
	between := sign(t, now, "Maker's plant", sub.Public(), root, rootKey, func(c *x509.Certificate) { c.IsCA, c.KeyUsage, c.ExtKeyUsage = true, x509.KeyUsageCertSign, nil })
	maker := must(f.PKI.ImportCA(f.ctx, pki.Import{Certificate: root}))
	f.dms(t, "plant", byCertificate, string(maker.ID))
	other, otherKey := outside(t, now, "Stranger")
	boot := newKey(t)
	leaf := func(parent *x509.Certificate, key crypto.Signer, change ...func(*x509.Certificate)) *x509.Certificate {
		return sign(t, now, "boot", boot.Public(), parent, key, change...)
	}
	key := newKey(t)
	csr := request(t, key, "dev")
	token := f.token(t, est.NewToken{Unlimited: true})
	used := f.token(t, est.NewToken{})
	f.do(t, exchange{path: "simpleenroll", body: b64(request(t, newKey(t), "once")), auth: used}).issued(t)
	revoked := newRevoked(t, f)

	tampered := bytes.Clone(csr)
	tampered[len(tampered)-1] ^= 1
	weak := must(rsa.GenerateKey(rand.Reader, 1024))
	url64 := []byte(base64.URLEncoding.EncodeToString(append(csr, 0xff, 0xfe)))

	for _, test := range []struct {
		name   string
		x      exchange
		status int
		says   string
	}{
		{"nothing shown", exchange{path: "plant/simpleenroll"}, 401, "client certificate"},
		{"untrusted CA", exchange{path: "plant/simpleenroll", chain: []*x509.Certificate{leaf(other, otherKey)}, key: boot}, 401, "not a trusted CA"},
		{"untrusted CA, with its chain", exchange{path: "plant/simpleenroll", chain: []*x509.Certificate{leaf(other, otherKey), other}, key: boot}, 401, `leads to "CN=Stranger"`},
		{"self-signed", exchange{path: "plant/simpleenroll", chain: []*x509.Certificate{leaf(nil, boot)}, key: boot}, 401, "not a trusted CA"},
		{"incomplete chain", exchange{path: "plant/simpleenroll", chain: []*x509.Certificate{leaf(between, sub)}, key: boot}, 401, "incomplete chain"},
		{"expired", exchange{path: "plant/simpleenroll", chain: []*x509.Certificate{leaf(root, rootKey, func(c *x509.Certificate) { c.NotAfter = now.Add(-time.Minute) })}, key: boot}, 401, "expired on"},
		{"not yet valid", exchange{path: "plant/simpleenroll", chain: []*x509.Certificate{leaf(root, rootKey, func(c *x509.Certificate) { c.NotBefore = now.Add(time.Minute) })}, key: boot}, 401, "not valid before"},
		{"wrong EKU", exchange{path: "plant/simpleenroll", chain: []*x509.Certificate{leaf(root, rootKey, func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} })}, key: boot}, 401, "clientAuth"},
		{"revoked", exchange{path: "simplereenroll", chain: []*x509.Certificate{revoked.cert}, key: revoked.key, body: b64(request(t, revoked.key, "gone"))}, 401, "revoked"},
		{"not ours to renew", exchange{path: "simplereenroll", chain: []*x509.Certificate{leaf(other, otherKey)}, key: boot}, 401, "not a trusted CA"},
		{"renewal without certificate", exchange{path: "simplereenroll"}, 401, "no client certificate"},
		{"unknown DMS", exchange{path: "nowhere/simpleenroll", auth: token}, 401, "no DMS"},
		{"unknown DMS, renewing", exchange{path: "nowhere/simplereenroll", chain: []*x509.Certificate{leaf(other, otherKey)}, key: boot}, 401, "no DMS"},
		{"no token", exchange{path: "simpleenroll"}, 401, "enrolment token"},
		{"a password", exchange{path: "simpleenroll", auth: "user:secret"}, 401, "enrolment token"},
		{"a token made up", exchange{path: "simpleenroll", auth: "Bearer " + string(seal.NewTicket("enrol", "01a20b79-fb50-7000-b624-6044823868b5").Text())}, 401, "not known"},
		{"a token used up", exchange{path: "simpleenroll", auth: used}, 401, "used up"},
		{"a token of another DMS", exchange{path: "plant/simpleenroll", auth: token}, 401, "show a client certificate"},
		{"two kinds of words", exchange{path: "simpleenroll", auth: "Digest x"}, 401, "neither"},
		{"PEM", exchange{path: "simpleenroll", auth: token, body: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr})}, 400, "PEM"},
		{"PEM in base64", exchange{path: "simpleenroll", auth: token, body: b64(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr}))}, 400, "PKCS#10"},
		{"bare DER", exchange{path: "simpleenroll", auth: token, body: csr}, 400, "without base64"},
		{"base64 for URLs", exchange{path: "simpleenroll", auth: token, body: url64}, 400, "for URLs"},
		{"base64 cut off", exchange{path: "simpleenroll", auth: token, body: b64(csr)[:101]}, 400, "cut off"},
		{"not base64", exchange{path: "simpleenroll", auth: token, body: []byte("%%%%")}, 400, "not base64"},
		{"nothing", exchange{path: "simpleenroll", auth: token, body: []byte{}}, 400, "empty"},
		{"only white space", exchange{path: "simpleenroll", auth: token, body: []byte(" \r\n")}, 400, "empty"},
		{"not a request", exchange{path: "simpleenroll", auth: token, body: b64([]byte("hello"))}, 400, "PKCS#10"},
		{"something after the request", exchange{path: "simpleenroll", auth: token, body: b64(append(bytes.Clone(csr), 0))}, 400, "PKCS#10"},
		{"a bad signature", exchange{path: "simpleenroll", auth: token, body: b64(tampered)}, 400, "signature"},
		{"a weak key", exchange{path: "simpleenroll", auth: token, body: b64(request(t, weak, "dev"))}, 400, "too weak"},
		{"SHA-1", exchange{path: "simpleenroll", auth: token, body: b64(sha1Request)}, 400, "SHA1"},
		{"no name", exchange{path: "simpleenroll", auth: token, body: b64(request(t, key, ""))}, 400, "CommonName"},
		{"wrong content type", exchange{path: "simpleenroll", auth: token, media: "application/x-x509"}, 400, "application/pkcs10"},
		{"wrong method", exchange{path: "simpleenroll", method: http.MethodGet}, 405, "POST"},
		{"wrong method for cacerts", exchange{path: "cacerts"}, 405, "GET"},
		{"too large", exchange{path: "simpleenroll", auth: token, body: bytes.Repeat([]byte("A"), 200<<10)}, 413, "larger"},
		{"full CMC", exchange{path: "fullcmc"}, 501, "not implemented"},
		{"no such operation", exchange{path: "fly"}, 404, "no such"},
		{"cacerts of no DMS", exchange{path: "nowhere/cacerts", method: http.MethodGet}, 404, "no such DMS"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if test.x.body == nil {
				test.x.body = b64(csr)
			}
			for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
				test.x.version = version
				a := f.do(t, test.x)
				if a.status != test.status || !strings.Contains(a.body, test.says) {
					t.Errorf("got %d %q, want %d and %q", a.status, a.body, test.status, test.says)
				}
				if kind := a.header.Get("Content-Type"); kind != "text/plain; charset=utf-8" || strings.Count(a.body, "\n") != 1 {
					t.Errorf("got %s of %q, want one line of text", kind, a.body)
				}
				if has := a.header.Get("WWW-Authenticate") != ""; has != (test.status == 401) {
					t.Errorf("WWW-Authenticate: %v with %d", has, a.status)
				}
				if test.status == 405 && a.header.Get("Allow") == "" {
					t.Error("no Allow header")
				}
			}
		})
	}
	list := must(f.PKI.Certificates(f.ctx, pki.Filter{CommonName: "dev"}, page.Request{}))
	if len(list.Items) != 0 {
		t.Errorf("%d certificates were issued to what was refused", len(list.Items))
	}
}

type identified struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newRevoked(t testing.TB, f *field) identified {
	t.Helper()
	cert, key := f.device(t, "gone")
	if _, err := f.PKI.Revoke(f.ctx, string(pki.SerialOf(cert.SerialNumber)), pki.KeyCompromise); err != nil {
		t.Fatal(err)
	}
	return identified{cert, key}
}

// sha1Request is a request signed with ECDSA and SHA-1, made by openssl.
var sha1Request = must(base64.StdEncoding.DecodeString(sha1Base64))

func TestEncodings(t *testing.T) {
	f := open(t)
	token := f.token(t, est.NewToken{Unlimited: true})
	lines := func(der []byte, width int, end string) []byte {
		text := base64.StdEncoding.EncodeToString(der)
		var b strings.Builder
		for len(text) > width {
			b.WriteString(text[:width] + end)
			text = text[width:]
		}
		return []byte(b.String() + text + end)
	}
	for name, body := range map[string]func([]byte) []byte{
		"one line": b64, "64 with LF": func(d []byte) []byte { return lines(d, 64, "\n") }, "76 with CRLF": func(d []byte) []byte { return lines(d, 76, "\r\n") },
		"tabs and spaces": func(d []byte) []byte { return lines(d, 10, " \t") },
	} {
		a := f.do(t, exchange{path: "simpleenroll", auth: token, body: body(request(t, newKey(t), "enc-"+strings.ReplaceAll(name, " ", ""))), header: map[string]string{"Content-Transfer-Encoding": "binary"}})
		a.issued(t)
		if got := a.header.Get("Content-Type"); got != "application/pkcs7-mime; smime-type=certs-only" {
			t.Errorf("%s: got type %q", name, got)
		}
		if a.header.Get("Content-Length") == "" || len(a.header) > 16 {
			t.Errorf("%s: got headers %v", name, a.header)
		}
	}
	wrapped := f.do(t, exchange{path: "cacerts", method: http.MethodGet, header: map[string]string{"User-Agent": "libest 3.2.0p"}})
	for line := range strings.Lines(wrapped.body) {
		if len(line) > 65 || !strings.HasSuffix(line, "\n") {
			t.Errorf("for libest: got the line %q", line)
		}
	}
	if plain := f.do(t, exchange{path: "cacerts", method: http.MethodGet}); strings.ContainsAny(plain.body, "\r\n") {
		t.Error("for others the answer has line ends")
	}
	asPEM := f.do(t, exchange{path: "cacerts", method: http.MethodGet, header: map[string]string{"Accept": "application/x-pem-file"}})
	if certs, err := pki.ParseCertificates([]byte(asPEM.body)); err != nil || len(certs) != 2 || asPEM.header.Get("Content-Type") != "application/x-pem-file" {
		t.Errorf("PEM: got %d certificates of %s, %v", len(certs), asPEM.header.Get("Content-Type"), err)
	}
	asJSON := f.do(t, exchange{path: "simpleenroll", body: []byte("x"), header: map[string]string{"Accept": "application/json"}})
	if asJSON.status != 401 && asJSON.status != 400 || !strings.HasPrefix(asJSON.body, `{"err":`) {
		t.Errorf("JSON: got %d %s", asJSON.status, asJSON.body)
	}
}

func TestRenewal(t *testing.T) {
	f := open(t)
	cert, key := f.device(t, "pump")
	actor := func(c *x509.Certificate) (identity.Actor, error) {
		return f.PKI.Resolve(t.Context(), identity.Proof{Chain: []*x509.Certificate{c}})
	}
	before := must(actor(cert))
	with := func(c *x509.Certificate, k crypto.Signer, body []byte) answer {
		return f.do(t, exchange{path: "simplereenroll", chain: []*x509.Certificate{c}, key: k, body: b64(body)})
	}
	if a := with(cert, key, request(t, key, "other")); a.status != 400 || !strings.Contains(a.body, "subject") {
		t.Errorf("another subject: got %d %s", a.status, a.body)
	}
	if a := with(cert, key, request(t, key, "pump", func(r *x509.CertificateRequest) { r.DNSNames = []string{"x"} })); a.status != 400 {
		t.Errorf("another alternative name: got %d %s", a.status, a.body)
	}
	rekey := newKey(t)
	renewed := with(cert, key, request(t, rekey, "pump")).issued(t)
	if _, err := actor(cert); err != nil {
		t.Errorf("the old one, before the new one was used: %v", err)
	}
	if after := must(actor(renewed)); after.ID != before.ID {
		t.Errorf("renewed to device %s, was %s", after.ID, before.ID)
	}
	if _, err := actor(cert); err == nil {
		t.Error("the old one is good after the new one was used")
	}
	if a := with(cert, key, request(t, key, "pump")); a.status != 401 || !strings.Contains(a.body, "revoked") {
		t.Errorf("renewing with the old one: got %d %s", a.status, a.body)
	}
	f.advance(366 * 24 * time.Hour)
	if a := with(renewed, rekey, request(t, rekey, "pump")); a.status != 401 || !strings.Contains(a.body, "expired") {
		t.Errorf("expired: got %d %s", a.status, a.body)
	}
}

// TestWhenToRenew has the deltas of a DMS in the certificates it enrols and renews; what was
// renewed is not to be renewed any more.
func TestWhenToRenew(t *testing.T) {
	f := open(t)
	f.dms(t, "watched", `{"enrollment_settings":{"est_rfc7030_settings":{"auth_mode":"ENROLMENT_TOKEN"}},
		"reenrollment_settings":{"preventive_delta":"31d","critical_delta":"7d"}}`)
	key := newKey(t)
	cert := f.do(t, exchange{path: "watched/simpleenroll", body: b64(request(t, key, "pump")), auth: f.token(t, est.NewToken{DMS: "watched"})}).issued(t)
	stands := func(cert *x509.Certificate) pki.Renewal {
		t.Helper()
		if err := f.PKI.Sweep(t.Context(), f.now()); err != nil {
			t.Fatal(err)
		}
		c := must(f.PKI.Certificate(f.ctx, pki.Fingerprint(cert.Raw)))
		if want := cert.NotAfter.Add(-31 * 24 * time.Hour); !c.RenewFrom.Equal(want) {
			t.Errorf("to be renewed from %v, want %v", c.RenewFrom, want)
		}
		return c.StandingRenewal()
	}
	if got := stands(cert); got != "" {
		t.Errorf("when issued: got %s", got)
	}
	f.advance(360 * 24 * time.Hour)
	if got := stands(cert); got != pki.ExpiringSoon {
		t.Errorf("near its end: got %q, want expiring_soon", got)
	}
	next := f.do(t, exchange{path: "watched/simplereenroll", body: b64(request(t, key, "pump")), chain: chainOf(cert), key: key}).issued(t)
	if old, got := stands(cert), stands(next); old != "" || got != "" {
		t.Errorf("renewed: got %q and %q for the old and the new", old, got)
	}
}

func TestRenewalRules(t *testing.T) {
	f := open(t)
	enrolIn := func(dms, cn string) (*x509.Certificate, *ecdsa.PrivateKey) {
		key := newKey(t)
		return f.do(t, exchange{path: dms + "/simpleenroll", body: b64(request(t, key, cn)), auth: f.token(t, est.NewToken{DMS: dms})}).issued(t), key
	}
	const settings = `{"enrollment_settings":{"est_rfc7030_settings":{"auth_mode":"ENROLMENT_TOKEN"}},"reenrollment_settings":{"est_rfc7030_settings":{"auth_mode":"CLIENT_CERTIFICATE"},%}}`
	f.dms(t, "window", strings.Replace(settings, "%", `"reenrollment_delta":"10d"`, 1))
	f.dms(t, "grace", strings.Replace(settings, "%", `"enable_expired_renewal":true,"expired_renewal_grace":"7d"`, 1))
	f.dms(t, "now", strings.Replace(settings, "%", `"revoke_on_reenrollment":true`, 1))
	f.dms(t, "never", strings.Replace(settings, "%", `"revoke_previous":"never"`, 1))
	renew := func(c *x509.Certificate, k *ecdsa.PrivateKey, cn string) answer {
		return f.do(t, exchange{path: "simplereenroll", chain: []*x509.Certificate{c}, key: k, body: b64(request(t, k, cn))}) // finds its DMS by itself
	}
	good := func(c *x509.Certificate) bool {
		_, err := f.PKI.Resolve(t.Context(), identity.Proof{Chain: []*x509.Certificate{c}})
		return err == nil
	}
	c, k := enrolIn("window", "w")
	if a := renew(c, k, "w"); a.status != 403 || !strings.Contains(a.body, "window") {
		t.Errorf("too early: got %d %s", a.status, a.body)
	}
	oldNow, kn := enrolIn("now", "n")
	renew(oldNow, kn, "n").issued(t)
	if good(oldNow) {
		t.Error("revoke_on_reenrollment: the old one is good")
	}
	oldNever, kv := enrolIn("never", "v")
	if fresh := renew(oldNever, kv, "v").issued(t); !good(fresh) || !good(oldNever) {
		t.Error("never: one of them is no good")
	}
	late, kl := enrolIn("grace", "g")
	tooLate, kt := enrolIn("grace", "t")
	f.advance(356 * 24 * time.Hour)
	renew(c, k, "w").issued(t)
	f.advance(12 * 24 * time.Hour) // three days over
	renew(late, kl, "g").issued(t)
	f.advance(7 * 24 * time.Hour)
	if a := renew(tooLate, kt, "t"); a.status != 401 || !strings.Contains(a.body, "grace") {
		t.Errorf("after the grace: got %d %s", a.status, a.body)
	}
}

func TestWhichDeviceIsEnrolled(t *testing.T) {
	f := open(t)
	announced := must(f.Devices.Create(f.ctx, devices.New{Name: "announced", Aliases: []devices.Alias{{Kind: devices.CommonName, Value: "announced"}}}))
	f.dms(t, "listed", `{"enrollment_settings":{"registration_mode":"PRE_REGISTRATION","est_rfc7030_settings":{"auth_mode":"ENROLMENT_TOKEN"}}}`)
	f.dms(t, "again", `{"enrollment_settings":{"enable_replaceable_enrollment":true,"est_rfc7030_settings":{"auth_mode":"ENROLMENT_TOKEN"},
		"device_provisioning_profile":{"tags":["iot"],"metadata":{"site":7},"labels":{"line":"a"}}},"identity_mapping":{"aliases":["serial_number"],"labels":{"unit":"organizational_unit"}}}`)
	in := func(dms, cn string, n est.NewToken, change ...func(*x509.CertificateRequest)) answer {
		n.DMS = dms
		return f.do(t, exchange{path: dms + "/simpleenroll", body: b64(request(t, newKey(t), cn, change...)), auth: f.token(t, n)})
	}
	device := func(c *x509.Certificate) devices.Device {
		a := must(f.PKI.Resolve(t.Context(), identity.Proof{Chain: []*x509.Certificate{c}}))
		return must(f.Devices.Get(f.ctx, a.ID))
	}
	if a := in("listed", "stranger", est.NewToken{}); a.status != 403 || !strings.Contains(a.body, "not preregistered") {
		t.Errorf("not announced: got %d %s", a.status, a.body)
	}
	if d := device(in("listed", "announced", est.NewToken{}).issued(t)); d.ID != announced.ID {
		t.Errorf("announced: got device %s, want %s", d.ID, announced.ID)
	}
	if a := in("listed", "announced", est.NewToken{}); a.status != 403 || !strings.Contains(a.body, "forbiddenNewEnrollment") {
		t.Errorf("enrolled already: got %d %s", a.status, a.body)
	}
	if d := device(in("listed", "announced", est.NewToken{Device: announced.ID}).issued(t)); d.ID != announced.ID || len(d.Credentials) != 2 {
		t.Errorf("by a token bound to it: got %s with %d credentials, want a second one", d.ID, len(d.Credentials))
	}
	if a := in("again", "announced", est.NewToken{DMS: "again"}); a.status != 403 {
		t.Errorf("of another DMS, though: got %d %s", a.status, a.body)
	}
	first := in("again", "new", est.NewToken{}, func(r *x509.CertificateRequest) {
		r.Subject.SerialNumber, r.Subject.OrganizationalUnit = "SN-9", []string{"pumps"}
	}).issued(t)
	d := device(first)
	if d.Labels["line"] != "a" || d.Labels["unit"] != "pumps" || d.Metadata["site"] != "7" || d.Alias(devices.SerialNumber) != "SN-9" || d.Profile != "again" {
		t.Errorf("provisioned: got %+v", d)
	}
	if _, tagged := d.Labels["iot"]; !tagged {
		t.Errorf("got labels %v, want the tag iot", d.Labels)
	}
	if next := device(in("again", "new", est.NewToken{}).issued(t)); next.ID != d.ID {
		t.Errorf("replaced: got device %s, want %s", next.ID, d.ID)
	}
	if _, err := f.PKI.Resolve(t.Context(), identity.Proof{Chain: []*x509.Certificate{first}}); err == nil {
		t.Error("what was replaced is good")
	}
	if a := in("default", "announced", est.NewToken{Device: d.ID}); a.status != 403 || !strings.Contains(a.body, "another device") {
		t.Errorf("a bound token under another's name: got %d %s", a.status, a.body)
	}
	if a := in("default", "lathe-7", est.NewToken{CommonName: "pump-*"}); a.status != 403 {
		t.Errorf("a token for other names: got %d %s", a.status, a.body)
	}
	if _, err := f.Devices.Suspend(f.ctx, d.ID); err != nil {
		t.Fatal(err)
	}
	if a := in("again", "new", est.NewToken{}); a.status != 403 || !strings.Contains(a.body, "suspended") {
		t.Errorf("suspended: got %d %s", a.status, a.body)
	}
	if _, err := f.Devices.Decommission(f.ctx, announced.ID); err != nil {
		t.Fatal(err)
	}
	if fresh := device(in("default", "announced", est.NewToken{}).issued(t)); fresh.ID == announced.ID {
		t.Error("a decommissioned device came back")
	}
}

func TestLostAnswerIsGivenAgain(t *testing.T) {
	f := open(t)
	key, token := newKey(t), f.token(t, est.NewToken{})
	x := exchange{path: "simpleenroll", body: b64(request(t, key, "pump")), auth: token}
	first := f.do(t, x).issued(t)
	x.body = b64(request(t, key, "pump")) // signed anew, as on every connection
	if again := f.do(t, x).issued(t); !again.Equal(first) {
		t.Error("got another certificate")
	}
	f.advance(time.Hour)
	if a := f.do(t, x); a.status != 401 {
		t.Errorf("an hour later: got %d, want 401: the token is used up", a.status)
	}
}

func TestManualApproval(t *testing.T) {
	f := open(t)
	f.dms(t, "slow", `{"enrollment_settings":{"manual_approval":true,"est_rfc7030_settings":{"auth_mode":"ENROLMENT_TOKEN"}}}`)
	ask := func(key crypto.Signer, cn, token, path string) answer {
		return f.do(t, exchange{path: path, body: b64(request(t, key, cn)), auth: token})
	}
	key, token := newKey(t), f.token(t, est.NewToken{DMS: "slow"})
	a := ask(key, "pump", token, "slow/simpleenroll")
	if a.status != 202 || a.header.Get("Retry-After") == "" {
		t.Fatalf("got %d %v, want 202 with Retry-After", a.status, a.header)
	}
	if b := ask(key, "pump", f.token(t, est.NewToken{DMS: "slow"}), "slow/simpleenroll"); b.status != 403 {
		t.Errorf("the same request of another client: got %d %s", b.status, b.body)
	}
	waiting := must(f.Waitings(f.ctx, page.Request{})).Items
	if len(waiting) != 1 || waiting[0].Name != "pump" {
		t.Fatalf("got %+v waiting, want pump alone", waiting)
	}
	if b := ask(key, "pump", token, "simpleenroll"); b.status != 202 {
		t.Errorf("repeated without the label: got %d %s, want 202", b.status, b.body)
	}
	must(f.Decide(f.ctx, waiting[0].ID, true))
	ask(key, "pump", token, "simpleenroll").issued(t)
	if left := must(f.Waitings(f.ctx, page.Request{})).Items; len(left) != 0 {
		t.Errorf("%d wait still", len(left))
	}
	no, noToken := newKey(t), f.token(t, est.NewToken{DMS: "slow"})
	ask(no, "lathe", noToken, "slow/simpleenroll")
	must(f.Decide(f.ctx, must(f.Waitings(f.ctx, page.Request{})).Items[0].ID, false))
	if b := ask(no, "lathe", noToken, "slow/simpleenroll"); b.status != 403 || !strings.Contains(b.body, "denied") {
		t.Errorf("denied: got %d %s", b.status, b.body)
	}
}

func TestServerKeygen(t *testing.T) {
	f := open(t)
	f.dms(t, "rsa", `{"server_keygen_settings":{"enabled":true,"key":{"type":"RSA","bits":2048}},"enrollment_settings":{"est_rfc7030_settings":{"auth_mode":"ENROLMENT_TOKEN"}}}`)
	f.dms(t, "off", `{"enrollment_settings":{"est_rfc7030_settings":{"auth_mode":"ENROLMENT_TOKEN"}}}`)
	parts := func(a answer) (key any, cert *x509.Certificate, enveloped []byte) {
		if a.status != 200 {
			t.Fatalf("got %d %s", a.status, a.body)
		}
		_, params, err := mime.ParseMediaType(a.header.Get("Content-Type"))
		if err != nil {
			t.Fatal(err)
		}
		r := multipart.NewReader(strings.NewReader(a.body), params["boundary"])
		for {
			p, err := r.NextRawPart()
			if err == io.EOF {
				return key, cert, enveloped
			}
			if err != nil {
				t.Fatal(err)
			}
			if p.Header.Get("Content-Transfer-Encoding") != "base64" {
				t.Error("a part without Content-Transfer-Encoding: base64")
			}
			der := must(base64.StdEncoding.DecodeString(string(must(io.ReadAll(p)))))
			switch kind := p.Header.Get("Content-Type"); kind {
			case "application/pkcs8":
				key = must(x509.ParsePKCS8PrivateKey(der))
			case "application/pkcs7-mime; smime-type=certs-only":
				cert = must(pki.ParseCertsOnly(der))[0]
			case "application/pkcs7-mime; smime-type=server-generated-key":
				enveloped = der
			default:
				t.Errorf("a part of type %s", kind)
			}
		}
	}
	tampered := request(t, newKey(t), "ec")
	tampered[len(tampered)-1] ^= 1 // neither signature nor key count
	key, cert, _ := parts(f.do(t, exchange{path: "serverkeygen", body: b64(tampered), auth: f.token(t, est.NewToken{})}))
	if k, ok := key.(*ecdsa.PrivateKey); !ok || !k.PublicKey.Equal(cert.PublicKey) || cert.Subject.CommonName != "ec" {
		t.Errorf("got %T for %v", key, cert.Subject)
	}
	key, cert, _ = parts(f.do(t, exchange{path: "rsa/serverkeygen", body: b64(request(t, newKey(t), "rsa")), auth: f.token(t, est.NewToken{DMS: "rsa"})}))
	if k, ok := key.(*rsa.PrivateKey); !ok || !k.PublicKey.Equal(cert.PublicKey) || k.N.BitLen() != 2048 {
		t.Errorf("got %T", key)
	}
	if a := f.do(t, exchange{path: "off/serverkeygen", body: b64(request(t, newKey(t), "x")), auth: f.token(t, est.NewToken{DMS: "off"})}); a.status != 403 {
		t.Errorf("not enabled: got %d %s", a.status, a.body)
	}
	plain := newKey(t)
	symmetric := withAttribute(t, plain, request(t, plain, "sym"), asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 16, 2, 37}, []byte("k"))
	if a := f.do(t, exchange{path: "serverkeygen", body: b64(symmetric), auth: f.token(t, est.NewToken{})}); a.status != 400 || strings.Contains(a.body, "PRIVATE") {
		t.Errorf("a key is wanted encrypted in a way that is not supported: got %d %s, want 400", a.status, a.body)
	}
	wanted := asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 16, 2, 54}
	for name, holder := range map[string]crypto.Signer{
		"rsa": must(rsa.GenerateKey(rand.Reader, 2048)), "p256": newKey(t),
		"p384": must(ecdsa.GenerateKey(elliptic.P384(), rand.Reader)), "p521": must(ecdsa.GenerateKey(elliptic.P521(), rand.Reader)),
	} {
		asked := withAttribute(t, holder, request(t, holder, "enc-"+name), wanted, []byte("k"))
		key, cert, enveloped := parts(f.do(t, exchange{path: "serverkeygen", body: b64(asked), auth: f.token(t, est.NewToken{})}))
		if key != nil || enveloped == nil {
			t.Fatalf("to a key of %s: the new key was not encrypted", name)
		}
		opened := decryptCMS(t, enveloped, holder)
		if k, ok := opened.(*ecdsa.PrivateKey); !ok || !k.PublicKey.Equal(cert.PublicKey) {
			t.Errorf("to a key of %s: openssl decrypted a %T, want the key of the certificate", name, opened)
		}
	}
	_, signs := must2(ed25519.GenerateKey(rand.Reader))
	asked := withAttribute(t, signs, request(t, signs, "ed"), wanted, []byte("k"))
	if a := f.do(t, exchange{path: "serverkeygen", body: b64(asked), auth: f.token(t, est.NewToken{})}); a.status != 400 || !strings.Contains(a.body, "RSA or ECDSA") {
		t.Errorf("to an Ed25519 key: got %d %s, want 400", a.status, a.body)
	}
}

func must2[T, U any](v T, w U, err error) (T, U) {
	if err != nil {
		panic(err)
	}
	return v, w
}

func TestCSRAttrs(t *testing.T) {
	f := open(t)
	const by = `"enrollment_settings":{"est_rfc7030_settings":{"auth_mode":"ENROLMENT_TOKEN"CB}}`
	profile := func(crypto string) string {
		return `,"issuance_profile":{"name":"p","validity":{"type":"Duration","duration":"1d"},"crypto_enforcement":{"enabled":true,` + crypto + `}}}`
	}
	f.dms(t, "p384", "{"+strings.Replace(by, "CB", `,"channel_binding":"required"`, 1)+profile(`"allow_ecdsa_keys":true,"allowed_ecdsa_key_sizes":[384]`))
	f.dms(t, "rsa", "{"+strings.Replace(by, "CB", "", 1)+profile(`"allow_rsa_keys":true,"allowed_rsa_key_sizes":[4096]`))
	get := func(path string) answer { return f.do(t, exchange{path: path, method: http.MethodGet}) }
	if a := get("csrattrs"); a.status != 204 {
		t.Errorf("nothing to say: got %d, want 204", a.status)
	}
	for path, want := range map[string][]string{
		"p384/csrattrs": {"06092a864886f70d010907", "301206072a8648ce3d020131070605" + "2b81040022", "060b2a864886f70d010910023d"},
		"rsa/csrattrs":  {"301106092a864886f70d01010131040202" + "1000"},
	} {
		a := get(path)
		if a.status != 200 || a.header.Get("Content-Type") != "application/csrattrs" {
			t.Errorf("%s: got %d %s", path, a.status, a.header.Get("Content-Type"))
			continue
		}
		der := must(base64.StdEncoding.DecodeString(a.body))
		for _, part := range want {
			if !strings.Contains(hexOf(der), part) {
				t.Errorf("%s: got %x, want %s in it", path, der, part)
			}
		}
	}
}

func TestChannelBinding(t *testing.T) {
	f := open(t)
	f.dms(t, "linked", `{"enrollment_settings":{"est_rfc7030_settings":{"auth_mode":"ENROLMENT_TOKEN","channel_binding":"required"}}}`)
	conf := func(version uint16) *tls.Config {
		return &tls.Config{RootCAs: f.roots, MinVersion: version, MaxVersion: version, Time: f.now}
	}
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		for _, test := range []struct {
			dms  string
			with func(tls.ConnectionState) string
			want int
		}{
			{"linked", nil, 400},
			{"linked", right, 200},
			{"linked", func(tls.ConnectionState) string { return "d3Jvbmc=" }, 401},
			{"default", nil, 200},
			{"default", right, 200},
			{"default", func(tls.ConnectionState) string { return "d3Jvbmc=" }, map[uint16]int{tls.VersionTLS12: 401, tls.VersionTLS13: 200}[version]},
		} {
			host := strings.TrimSuffix(strings.TrimPrefix(f.url, "https://"), "/.well-known/est/")
			conn, err := (&tls.Dialer{Config: conf(version)}).DialContext(t.Context(), "tcp", host)
			if err != nil {
				t.Fatal(err)
			}
			key := newKey(t)
			var der []byte
			if test.with == nil {
				der = request(t, key, "linked")
			} else {
				der = withAttribute(t, key, request(t, key, "linked"), oidChallenge, test.with(conn.(*tls.Conn).ConnectionState()))
			}
			req := must(http.NewRequestWithContext(t.Context(), http.MethodPost, f.url+test.dms+"/simpleenroll", bytes.NewReader(b64(der))))
			req.Header.Set("Content-Type", "application/pkcs10")
			user, password, _ := strings.Cut(f.token(t, est.NewToken{DMS: test.dms, CommonName: "linked"}), ":")
			req.SetBasicAuth(user, password)
			one := &http.Client{Transport: &http.Transport{DialTLSContext: func(context.Context, string, string) (net, error) { return conn, nil }}}
			resp, err := one.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			body := must(io.ReadAll(resp.Body))
			resp.Body.Close()
			conn.Close()
			if resp.StatusCode != test.want {
				t.Errorf("TLS %x, %s: got %d %s, want %d", version, test.dms, resp.StatusCode, body, test.want)
			}
			if d, err := f.Devices.Find(f.ctx, "linked"); err == nil {
				must(f.Devices.Decommission(f.ctx, d.ID))
			}
		}
	}
}

// Over CoAP there is no TLS connection to link to: where it is required nothing enrols, whatever
// stands in the challengePassword.
func TestRequiredLinkingIsNotHadOverCoAP(t *testing.T) {
	f := open(t)
	f.dms(t, "linked", `{"enrollment_settings":{"est_rfc7030_settings":{"auth_mode":"ENROLMENT_TOKEN","channel_binding":"required"}}}`)
	f.dms(t, "open", tokenOnly)
	key := newKey(t)
	plain := request(t, key, "far")
	for name, der := range map[string][]byte{"nothing": plain, "anything": withAttribute(t, key, plain, oidChallenge, "d3Jvbmc=")} {
		for dms, want := range map[string]fault.Kind{"linked": fault.Forbidden, "open": 0} {
			_, token, _ := strings.Cut(f.token(t, est.NewToken{DMS: dms, CommonName: "far"}), ":")
			call := &est.Call{Label: dms, Operation: est.SimpleEnroll, Transport: identity.CoAPUDP, Scheme: "Bearer", Value: token}
			_, err := f.Enroll(t.Context(), call, der)
			if want == 0 && err != nil || want != 0 && !fault.Is(err, want) {
				t.Errorf("%s in the challengePassword, %s: %v", name, dms, err)
			}
			if d, err := f.Devices.Find(f.ctx, "far"); (err == nil) != (want == 0) {
				t.Errorf("%s, %s: is there a device: %v", name, dms, err)
			} else if err == nil {
				must(f.Devices.Decommission(f.ctx, d.ID))
			}
		}
	}
}

func right(state tls.ConnectionState) string {
	if len(state.TLSUnique) > 0 {
		return base64.StdEncoding.EncodeToString(state.TLSUnique)
	}
	return base64.StdEncoding.EncodeToString(must(state.ExportKeyingMaterial("EXPORTER-Channel-Binding", nil, 32)))
}
