//go:build e2e

package e2e_test

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"
)

// estProgram is how one EST client, which no Debian package has, is known to write its
// requests and what it needs of answers. strongSwan and curl are run themselves.
type estProgram struct {
	name, agent string
	tls         uint16 // the highest version it speaks
	width       int    // of its lines of base64
	eol         string
	encoding    string // what it says of them in Content-Transfer-Encoding
	chunked     bool
	asks        bool // sends its password only when it is asked for one
	wrapped     bool // needs the lines of answers to be of 64
	rsaOnly     bool // takes no shorter key from the server
}

var estPrograms = []estProgram{
	{name: "libest", agent: "libest 3.2.0p", tls: tls.VersionTLS12, width: 64, eol: "\n", asks: true, wrapped: true, rsaOnly: true},
	{name: "globalsign", agent: "GlobalSign EST Client github.com/globalsign/est", tls: tls.VersionTLS13, width: 76, eol: "\r\n", encoding: "base64", chunked: true},
	{name: "cest", agent: "", tls: tls.VersionTLS13, width: 64, eol: "\n", encoding: "base64", asks: true},
}

// estWire is a connection of an EST client that shows every byte of the answers.
type estWire struct {
	s       *server
	program estProgram
	conn    *tls.Conn
	in      *bufio.Reader
	records *recordCount
}

// recordCount counts the records of application data that come in.
type recordCount struct {
	net.Conn
	header  []byte
	skip, n int
}

func (c *recordCount) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	for _, x := range b[:n] {
		if c.skip > 0 {
			c.skip--
			continue
		}
		if c.header = append(c.header, x); len(c.header) == 5 {
			if c.header[0] == 23 {
				c.n++
			}
			c.skip, c.header = int(c.header[3])<<8|int(c.header[4]), c.header[:0]
		}
	}
	return n, err
}

// estWire opens a connection, with NAME's certificate if there is a name.
func (s *server) estWire(p estProgram, name string) *estWire {
	s.t.Helper()
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM([]byte(readText(s.t, s.ca()))) {
		s.t.Fatal("no CA")
	}
	c := &tls.Config{RootCAs: roots, ServerName: "localhost", MinVersion: tls.VersionTLS12, MaxVersion: p.tls}
	if name != "" {
		pair, err := tls.LoadX509KeyPair(s.path(name+".pem"), s.path(name+".key"))
		if err != nil {
			s.t.Fatal(err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	raw, err := net.Dial("tcp", s.at.HTTPS)
	if err != nil {
		s.t.Fatal(err)
	}
	records := &recordCount{Conn: raw}
	conn := tls.Client(records, c)
	s.t.Cleanup(func() { conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(patience))
	if err := conn.Handshake(); err != nil {
		s.t.Fatal(err)
	}
	if got := conn.ConnectionState().Version; got != p.tls {
		s.t.Errorf("%s: got TLS %x, want %x", p.name, got, p.tls)
	}
	return &estWire{s, p, conn, bufio.NewReader(conn), records}
}

// written is an answer as it is on the wire.
type written struct {
	status  int
	headers []string
	body    string
}

// header is the value of a header that is written exactly so.
func (a written) header(name string) string {
	for _, h := range a.headers {
		if value, ok := strings.CutPrefix(h, name+": "); ok {
			return value
		}
	}
	return ""
}

// get and post make a request as the program does.
func (w *estWire) get(path string) written {
	w.s.t.Helper()
	return w.send("GET " + path + " HTTP/1.1\r\nHost: localhost\r\nUser-Agent: " + w.program.agent + "\r\nAccept: */*\r\n\r\n")
}

func (w *estWire) post(path, name, password string) written {
	w.s.t.Helper()
	text, err := base64.StdEncoding.DecodeString(readText(w.s.t, w.s.path(name+".b64")))
	if err != nil {
		w.s.t.Fatal(err)
	}
	var body strings.Builder
	for rest := base64.StdEncoding.EncodeToString(text); rest != ""; {
		n := min(w.program.width, len(rest))
		body.WriteString(rest[:n] + w.program.eol)
		rest = rest[n:]
	}
	head := "POST " + path + " HTTP/1.1\r\nHost: localhost\r\nUser-Agent: " + w.program.agent + "\r\nContent-Type: application/pkcs10\r\n"
	if w.program.encoding != "" {
		head += "Content-Transfer-Encoding: " + w.program.encoding + "\r\n"
	}
	if w.program.chunked {
		head, text = head+"Transfer-Encoding: chunked\r\n", fmt.Appendf(nil, "%x\r\n%s\r\n0\r\n\r\n", body.Len(), body.String())
	} else {
		head, text = head+"Content-Length: "+strconv.Itoa(body.Len())+"\r\n", []byte(body.String())
	}
	if password == "" {
		return w.send(head + "\r\n" + string(text))
	}
	if w.program.asks { // on the connection on which it was asked
		asked := w.send(head + "\r\n" + string(text))
		if got := asked.header("WWW-Authenticate"); asked.status != http.StatusUnauthorized || !strings.HasPrefix(got, "Basic ") {
			w.s.t.Errorf("%s: asked with %d %q, want 401 and Basic in a header written as it looks for it", w.program.name, asked.status, asked.headers)
		}
	}
	return w.send(head + "Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte("estuser:"+password)) + "\r\n\r\n" + string(text))
}

// send sends a request and reads the answer, which has to be as small clients read it: of
// a known length, with few headers, and in one record.
func (w *estWire) send(request string) written {
	t := w.s.t
	t.Helper()
	before := w.records.n
	if _, err := io.WriteString(w.conn, request); err != nil {
		t.Fatal(err)
	}
	var a written
	line := func() string {
		text, err := w.in.ReadString('\n')
		if err != nil {
			t.Fatalf("%s: %v after %q", w.program.name, err, a.headers)
		}
		return strings.TrimRight(text, "\r\n")
	}
	status := line()
	if _, err := fmt.Sscanf(status, "HTTP/1.1 %d", &a.status); err != nil {
		t.Fatalf("%s: got the status line %q", w.program.name, status)
	}
	for h := line(); h != ""; h = line() {
		a.headers = append(a.headers, h)
	}
	if len(a.headers) > 16 || a.header("Transfer-Encoding") != "" {
		t.Errorf("%s: got %d headers %q, want at most 16 and none of chunks", w.program.name, len(a.headers), a.headers)
	}
	if a.status != http.StatusNoContent {
		n, err := strconv.Atoi(a.header("Content-Length"))
		if err != nil {
			t.Fatalf("%s: got the headers %q, want Content-Length", w.program.name, a.headers)
		}
		body := make([]byte, n)
		if _, err := io.ReadFull(w.in, body); err != nil {
			t.Fatal(err)
		}
		a.body = string(body)
	}
	if got := w.records.n - before; got > 1 && w.program.tls == tls.VersionTLS12 { // those of TLS 1.3 have tickets among them
		t.Errorf("%s: got the answer in %d records, want one", w.program.name, got)
	}
	return a
}

// ok is an answer of 200, base64 in the lines the program needs, as DER.
func (w *estWire) ok(what string, a written) []byte {
	t := w.s.t
	t.Helper()
	if a.status != http.StatusOK {
		t.Fatalf("%s, %s: got %d %s", w.program.name, what, a.status, a.body)
	}
	lines := strings.Split(a.body, "\n")
	if !w.program.wrapped && len(lines) != 1 {
		t.Errorf("%s, %s: got %d lines, want one without an end", w.program.name, what, len(lines))
	}
	for i, l := range lines[:len(lines)-1] {
		if len(l) > 64 || len(l) < 64 && i < len(lines)-2 || strings.ContainsRune(l, '\r') {
			t.Errorf("%s, %s: got the line %q, want 64 characters and LF", w.program.name, what, l)
		}
	}
	if w.program.wrapped && len(lines) < 3 && len(a.body) > 64 {
		t.Errorf("%s, %s: got %d lines, want lines of 64", w.program.name, what, len(lines))
	}
	der, err := base64.StdEncoding.DecodeString(strings.ReplaceAll(a.body, "\n", ""))
	if err != nil {
		t.Fatalf("%s, %s: %v", w.program.name, what, err)
	}
	return der
}

// issued is ok of an answer with one certificate and no other, which is put in NAME.pem.
func (w *estWire) issued(name string, a written) {
	w.s.t.Helper()
	if got := a.header("Content-Type"); a.status == http.StatusOK && got != "application/pkcs7-mime; smime-type=certs-only" {
		w.s.t.Errorf("%s: got the type %q", w.program.name, got)
	}
	der := w.s.pkcs7(w.ok(name, a), 1)
	writeText(w.s.t, w.s.path(name+".der"), string(der))
	w.s.must("openssl", "x509", "-inform", "DER", "-in", name+".der", "-out", w.s.path(name+".pem"))
}

// csr is request without a program, for a test that makes many.
func (s *server) csr(name string) {
	s.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		s.t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: name}}, key)
	if err != nil {
		s.t.Fatal(err)
	}
	plain, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		s.t.Fatal(err)
	}
	writeText(s.t, s.path(name+".key"), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: plain})))
	writeText(s.t, s.path(name+".b64"), base64.StdEncoding.EncodeToString(der))
}

// tokenFor is token without a program.
func (s *server) tokenFor(body string) string {
	s.t.Helper()
	var made struct{ Token string }
	s.must2xx(s.https(), http.MethodPost, "/api/v1/enrolment-tokens", s.key, body, &made)
	s.secret(made.Token)
	return made.Token
}

// linked makes a request in NAME.b64 whose challengePassword says which connection it is of.
func (s *server) linked(name, challenge string) {
	s.t.Helper()
	writeText(s.t, s.path("linked.conf"), "[req]\nprompt=no\ndistinguished_name=dn\nattributes=at\nstring_mask=utf8only\n[dn]\nCN="+name+"\n[at]\nchallengePassword="+challenge+"\n")
	if _, err := os.Stat(s.path(name + ".key")); err != nil {
		s.must("openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", name+".key")
	}
	s.sh("openssl req -new -key " + name + ".key -config linked.conf -outform DER | base64 -w0 > " + name + ".b64")
}

// interopServer is one server whose enrolment profiles are what the clients of the matrix ask for.
func interopServer(t *testing.T) *server {
	s := start(t)
	settings := func(more string) string {
		return strings.Replace(tokenSettings, `"auth_mode":"ENROLMENT_TOKEN"`, more, 1)
	}
	keygen := func(key string) string {
		return strings.Replace(tokenSettings, `{`, `{"server_keygen_settings":{"enabled":true,"key":`+key+`},`, 1)
	}
	s.dms(`{"id":"fleet","name":"fleet","settings":` + keygen(`{"type":"RSA","bits":2048}`) + `}`)
	s.dms(`{"id":"curve","name":"curve","settings":` + keygen(`{"type":"ECDSA","bits":256}`) + `}`)
	s.dms(`{"id":"linked","name":"linked","settings":` + settings(`"auth_mode":"ENROLMENT_TOKEN","channel_binding":"required"`) + `}`)
	s.dms(`{"id":"present","name":"present","settings":` + settings(`"auth_mode":"ENROLMENT_TOKEN","channel_binding":"if_present"`) + `}`)
	s.dms(`{"id":"slow","name":"slow","settings":` + strings.Replace(tokenSettings, `"enrollment_settings":{`, `"enrollment_settings":{"manual_approval":true,`, 1) + `}`)
	return s
}

// What libest's client, GlobalSign's and Harkins' cest need of a server, all of one
// server and at the same time with what strongSwan and curl need: each writes its
// requests its own way, and is answered so that it can read it.
func TestESTClientsThatNoPackageHas(t *testing.T) {
	t.Parallel()
	s := interopServer(t)
	s.must("openssl", "x509", "-in", s.ca(), "-outform", "DER", "-out", s.path("root.der"))
	for _, p := range estPrograms {
		t.Run(p.name, func(t *testing.T) {
			for path, label := range map[string]string{"default": "", "fleet": "fleet/"} {
				cacerts := s.estWire(p, "").get(wellKnown + label + "cacerts")
				if s.pkcs7(s.estWire(p, "").ok("cacerts of "+path, cacerts), 2); !strings.HasPrefix(cacerts.header("Content-Type"), "application/pkcs7-mime") {
					t.Errorf("cacerts: got %q", cacerts.headers)
				}
			}
			enrolls(t, s, p)
			waits(t, s, p)
			getsAKey(t, s, p)
			links(t, s, p)
		})
		// The others are served as before at the same moment.
		if r := s.strongswan("", "--estca", "--url", "https://localhost:"+port(s.at.HTTPS)+"/fleet", "--cacert", "root.der", "--caout", "swan.pem", "--outform", "pem", "--force"); r.code != 0 {
			t.Errorf("strongSwan beside %s: %s", p.name, r.all())
		}
	}
	// A connection is closed where the client says so.
	w := s.estWire(estPrograms[0], "")
	w.send("GET " + wellKnown + "cacerts HTTP/1.1\r\nHost: localhost\r\nUser-Agent: libest 3.2.0p\r\nConnection: close\r\n\r\n")
	if _, err := w.in.ReadByte(); err != io.EOF {
		t.Errorf("after Connection: close: got %v, want the end", err)
	}
}

// enrolls enrols with a token and renews with the certificate, with and without label.
func enrolls(t *testing.T, s *server, p estProgram) {
	t.Helper()
	for _, label := range []string{"", "fleet/"} {
		name := p.name + "-" + strings.TrimSuffix(label, "/") + "1"
		s.csr(name)
		dms := strings.TrimSuffix(label, "/")
		if dms == "" {
			dms = "default"
		}
		w := s.estWire(p, "")
		w.issued(name, w.post(wellKnown+label+"simpleenroll", name, s.tokenFor(`{"dms":"`+dms+`"}`)))
		first := s.identified(name)
		w = s.estWire(p, name)
		w.issued(name, w.post(wellKnown+label+"simplereenroll", name, ""))
		if again := s.identified(name); again.Device != first.Device || again.Credential.ID == first.Credential.ID {
			t.Errorf("renewed: got %+v, want device %s and a new certificate", again, first.Device)
		}
	}
}

// waits is told to come again, in seconds, and how long it takes is the administrator's.
func waits(t *testing.T, s *server, p estProgram) {
	t.Helper()
	name := p.name + "-late"
	s.csr(name)
	w, token := s.estWire(p, ""), s.tokenFor(`{"dms":"slow"}`)
	a := w.post(wellKnown+"slow/simpleenroll", name, token)
	if seconds, err := strconv.Atoi(a.header("Retry-After")); a.status != http.StatusAccepted || err != nil || seconds < 1 {
		t.Fatalf("got %d %q, want 202 and Retry-After in seconds", a.status, a.headers)
	}
	var waiting struct {
		Items []struct{ ID, Name, State string }
	}
	s.decode(s.rest(http.MethodGet, "/api/v1/enrolments", "", http.StatusOK), &waiting)
	for _, e := range waiting.Items {
		if e.Name == name {
			s.rest(http.MethodPost, "/api/v1/enrolments/"+e.ID+"/approve", "{}", http.StatusOK)
		}
	}
	w.issued(name, s.estWire(p, "").post(wellKnown+"slow/simpleenroll", name, token))
}

// getsAKey has the server make a key: first the key, then the certificate, each said to
// be base64.
func getsAKey(t *testing.T, s *server, p estProgram) {
	t.Helper()
	labels := []string{"fleet", "curve"}
	if p.rsaOnly {
		labels = labels[:1]
	}
	for _, label := range labels {
		name := p.name + "-made-" + label
		s.csr(name)
		a := s.estWire(p, "").post(wellKnown+label+"/serverkeygen", name, s.tokenFor(`{"dms":"`+label+`"}`))
		boundary, ok := strings.CutPrefix(a.header("Content-Type"), "multipart/mixed; boundary=")
		parts := strings.Split(a.body, "--"+boundary)
		if a.status != http.StatusOK || !ok || len(parts) != 4 {
			t.Fatalf("serverkeygen: got %d %q", a.status, a.headers)
		}
		var found [2][]byte
		for i, media := range []string{"application/pkcs8", "application/pkcs7-mime; smime-type=certs-only"} {
			head, body, _ := strings.Cut(parts[i+1], "\r\n\r\n")
			if !strings.Contains(head+"\r\n", "\r\nContent-Type: "+media+"\r\n") || !strings.Contains(head+"\r\n", "\r\nContent-Transfer-Encoding: base64\r\n") {
				t.Errorf("part %d: got %q", i+1, head)
			}
			var err error
			if found[i], err = base64.StdEncoding.DecodeString(strings.TrimSpace(body)); err != nil {
				t.Fatal(err)
			}
			if p.rsaOnly && i == 0 && len(strings.TrimSpace(body)) < 256 {
				t.Errorf("the key has %d characters, which libest takes for none", len(body))
			}
		}
		key, err := x509.ParsePKCS8PrivateKey(found[0])
		if err != nil {
			t.Fatal(err)
		}
		cert, err := x509.ParseCertificate(s.pkcs7(found[1], 1))
		if err != nil {
			t.Fatal(err)
		}
		if own, is := key.(interface{ Public() any }); is && fmt.Sprint(own.Public()) != fmt.Sprint(cert.PublicKey) {
			t.Errorf("%s: the certificate is of another key", label)
		}
	}
}

// links is told by csrattrs that a request has to say which connection it is of. libest
// and cest say it; a value that is another connection's is refused, where it can be known
// to be: cest makes one of TLS 1.3's messages, which is taken where it is not required.
func links(t *testing.T, s *server, p estProgram) {
	t.Helper()
	w := s.estWire(p, "")
	attrs := w.ok("csrattrs", w.get(wellKnown+"linked/csrattrs"))
	writeText(t, s.path("attrs.der"), string(attrs))
	if text := s.must("openssl", "asn1parse", "-inform", "DER", "-in", "attrs.der"); !strings.Contains(text, "challengePassword") {
		t.Errorf("csrattrs: got %s", text)
	}
	if !p.asks { // GlobalSign's has no linking
		return
	}
	right := func(w *estWire) string {
		state := w.conn.ConnectionState()
		if p.tls == tls.VersionTLS12 {
			return base64.StdEncoding.EncodeToString(state.TLSUnique)
		}
		value, err := state.ExportKeyingMaterial("EXPORTER-Channel-Binding", nil, 32)
		if err != nil {
			t.Fatal(err)
		}
		return base64.StdEncoding.EncodeToString(value)
	}
	wrong := base64.StdEncoding.EncodeToString([]byte("of another one"))
	present := http.StatusUnauthorized
	if p.tls == tls.VersionTLS13 {
		present = http.StatusOK
	}
	for i, c := range []struct {
		dms, value string
		want       int
	}{
		{"linked", "", http.StatusOK},
		{"linked", wrong, http.StatusUnauthorized},
		{"present", "", http.StatusOK},
		{"present", wrong, present},
	} {
		name, w := fmt.Sprintf("%s-linked%d", p.name, i), s.estWire(p, "")
		value := c.value
		if value == "" {
			value = right(w)
		}
		s.linked(name, value)
		if a := w.post(wellKnown+c.dms+"/simpleenroll", name, s.tokenFor(`{"dms":"`+c.dms+`"}`)); a.status != c.want {
			t.Errorf("%s with %q: got %d %s, want %d", c.dms, c.value, a.status, a.body, c.want)
		}
	}
	name := p.name + "-unlinked"
	s.csr(name)
	if a := s.estWire(p, "").post(wellKnown+"linked/simpleenroll", name, s.tokenFor(`{"dms":"linked"}`)); a.status != http.StatusBadRequest {
		t.Errorf("unlinked where it is required: got %d %s, want 400", a.status, a.body)
	}
}

// The commands of the documentation, as they stand there: curl, GNU base64 and openssl,
// which takes base64 on one line only.
func TestESTWithCurlAndOpenssl(t *testing.T) {
	t.Parallel()
	s := interopServer(t)
	s.request("pump", "/CN=pump")
	token, other := s.tokenFor(`{"dms":"fleet"}`), s.tokenFor(`{"dms":"fleet"}`)
	s.sh(`
		B=$URL/.well-known/est/fleet
		curl -sS --cacert $CA $B/cacerts | base64 -d | openssl pkcs7 -inform DER -print_certs -out one.pem
		curl -sS --cacert $CA $B/cacerts | openssl base64 -d -A | openssl pkcs7 -inform DER -print_certs -out two.pem
		curl -sS --cacert $CA -H 'Accept: application/x-pem-file' $B/cacerts >three.pem
		cmp one.pem two.pem
		test $(grep -c BEGIN three.pem) = $(grep -c BEGIN one.pem)
		curl -sS --fail --cacert $CA --anyauth -u u:` + token + ` -H 'Content-Type: application/pkcs10' --data-binary @pump.b64 $B/simpleenroll | base64 -d | openssl pkcs7 -inform DER -print_certs -out pump.pem
		curl -sS --fail --cacert $CA --cert pump.pem --key pump.key -H 'Content-Type: application/pkcs10' --data-binary @pump.b64 $B/simplereenroll | openssl base64 -d -A | openssl pkcs7 -inform DER -print_certs -out again.pem
		curl -sS --fail --cacert $CA $URL/.well-known/est/linked/csrattrs | base64 -d | openssl asn1parse -inform DER -i >attrs.txt
		grep -q challengePassword attrs.txt
		openssl s_client -connect ${URL#https://} -cert pump.pem -key pump.key -CAfile $CA </dev/null >client.txt 2>&1
		grep -q 'Verify return code: 0' client.txt`)
	s.request("made", "/CN=made")
	body, code := s.est(wellKnown+"fleet/serverkeygen", "made", "-u", "u:"+other)
	_, part, _ := strings.Cut(body, "\r\n\r\n")
	part, _, _ = strings.Cut(part, "\r\n--")
	writeText(t, s.path("made.key64"), part)
	if text := s.sh(`base64 -d made.key64 | openssl pkey -inform DER -noout -text | head -1`); code != http.StatusOK || !strings.Contains(text, "2048") {
		t.Errorf("serverkeygen: got %d and a key %s", code, text)
	}
	writeText(t, s.path("again.key"), readText(t, s.path("pump.key")))
	if first, again := s.identified("pump"), s.identified("again"); first.Device != again.Device || first.Credential.ID == again.Credential.ID {
		t.Errorf("renewed: got %+v, want device %s and a new certificate", again, first.Device)
	}
}
