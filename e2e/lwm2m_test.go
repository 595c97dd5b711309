//go:build e2e

package e2e_test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/csv"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pion/dtls/v3"

	"keystead/coap"
	"keystead/lwm2m"
)

// lwm2mClient is an LwM2M client at the other end of a DTLS session: it asks, it
// answers what the bootstrap server asks of it, and it keeps what it is written.
// How it is at fault, it is told by the fields.
type lwm2mClient struct {
	*session
	version string // "1.0", "1.1" or "1.2"
	pct     string // the format it asks to be written in; none if empty

	refuses  map[string]coap.Code // method and path, or a prefix of both, to the answer
	tlvOnly  bool                 // answers 4.15 to every other format
	silent   bool                 // answers nothing
	again    func()               // called once, at the first request of the server
	at       func(what string)    // called before it answers a request, "PUT /1/0"
	account  uint16               // where its bootstrap account is
	written  map[string]lwm2m.Instance
	blocks   []byte
	asked    []string
	finished bool
	mids     map[uint16][]byte // answers, for what comes twice
}

func (s *server) lwm2mClient(version string, opts ...dtls.ClientOption) *lwm2mClient {
	s.t.Helper()
	return lwm2mClientOn(s.mustDial(opts...), version)
}

func lwm2mClientOn(c *session, version string) *lwm2mClient {
	pct := map[string]string{"1.1": "112", "1.2": "11544"}[version]
	return &lwm2mClient{session: c, version: version, pct: pct, written: map[string]lwm2m.Instance{}, mids: map[uint16][]byte{}}
}

// ask makes a request, and goes on serving the server's until the answer is there.
func (c *lwm2mClient) ask(m coap.Message) (coap.Message, error) {
	c.mid++
	m.ID, m.Token = c.mid, []byte{0xaa, byte(c.mid >> 8), byte(c.mid)}
	for range 5 {
		if _, err := c.conn.Write(m.Append(nil)); err != nil {
			return m, err
		}
		for until := time.Now().Add(2 * time.Second); ; {
			got, err := c.next(until)
			if errors.Is(err, errQuiet) {
				break
			}
			if err != nil {
				return m, err
			}
			if got != nil && bytes.Equal(got.Token, m.Token) {
				return *got, nil
			}
		}
	}
	return m, errors.New("no answer")
}

var errQuiet = errors.New("nothing comes")

// next reads one datagram until a time. A request it serves; a response it returns.
func (c *lwm2mClient) next(until time.Time) (*coap.Message, error) {
	_ = c.conn.SetReadDeadline(until)
	buf := make([]byte, 8192)
	n, err := c.conn.Read(buf)
	if timeout := net.Error(nil); errors.As(err, &timeout) && timeout.Timeout() {
		return nil, errQuiet
	}
	if err != nil {
		return nil, err
	}
	m, err := coap.Parse(bytes.Clone(buf[:n]))
	if err != nil || m.Code == coap.Empty {
		return nil, nil //nolint:nilerr // an empty message says nothing
	}
	if m.Code.IsRequest() {
		return nil, c.serve(&m)
	}
	return &m, nil
}

// serve answers a request of the server.
func (c *lwm2mClient) serve(m *coap.Message) error {
	if c.silent {
		return nil
	}
	if before, ok := c.mids[m.ID]; ok {
		_, err := c.conn.Write(before)
		return err
	}
	if again := c.again; again != nil {
		c.again = nil
		again()
	}
	answer := c.answer(m)
	answer.Type, answer.ID, answer.Token = coap.Acknowledgement, m.ID, m.Token
	b := answer.Append(nil)
	c.mids[m.ID] = b
	_, err := c.conn.Write(b)
	return err
}

func (c *lwm2mClient) answer(m *coap.Message) coap.Message {
	path := m.Options.Path()
	what := m.Code.String() + " " + path
	if c.at != nil {
		c.at(what)
	}
	for prefix, code := range c.refuses {
		if strings.HasPrefix(what, prefix) {
			return coap.Message{Code: code}
		}
	}
	switch m.Code {
	case coap.GET:
		c.asked = append(c.asked, what)
		body := fmt.Sprintf(`</>;lwm2m=%s,</0>,</0/%d>;uri="coaps://%s",</1>,</3/0>`, c.version, c.account, c.conn.RemoteAddr())
		if c.version == "1.0" {
			body = fmt.Sprintf(`lwm2m="1.0",</0>,</0/%d>,</1>,</3/0>`, c.account)
		}
		return coap.Message{Code: coap.Content, Options: coap.Options{}.AddUint(coap.ContentFormat, uint32(coap.LinkFormat)), Payload: []byte(body)}
	case coap.DELETE:
		c.asked = append(c.asked, what)
		maps.DeleteFunc(c.written, func(at string, _ lwm2m.Instance) bool { // its bootstrap account stays, whatever is deleted
			return at != fmt.Sprintf("/0/%d", c.account)
		})
		return coap.Message{Code: coap.Deleted}
	case coap.PUT:
		return c.put(m, path)
	default:
	}
	c.asked = append(c.asked, what)
	c.finished = true
	return coap.Message{Code: coap.Changed}
}

func (c *lwm2mClient) put(m *coap.Message, path string) coap.Message {
	format, _ := m.Options.Uint(coap.ContentFormat)
	if c.tlvOnly && coap.Format(format) != coap.LwM2MTLV {
		return coap.Message{Code: coap.UnsupportedContentFormat}
	}
	var options coap.Options
	if v, ok := m.Options.Get(coap.Block1); ok {
		block, _ := coap.ParseBlock(v)
		if block.Num == 0 {
			c.blocks = nil
		}
		c.blocks = append(c.blocks, m.Payload...)
		options = options.Add(coap.Block1, v)
		if block.More {
			return coap.Message{Code: coap.Continue, Options: options}
		}
		m.Payload, c.blocks = c.blocks, nil
	}
	c.asked = append(c.asked, m.Code.String()+" "+path)
	list, err := lwm2m.Decode(coap.Format(format), path, m.Payload)
	if err != nil || len(list) != 1 {
		return coap.Message{Code: coap.BadRequest, Options: options, Payload: fmt.Append(nil, err)}
	}
	c.written[path] = list[0]
	return coap.Message{Code: coap.Changed, Options: options}
}

// request asks for a bootstrap and returns the answer.
func (c *lwm2mClient) request(query ...string) coap.Message {
	c.s.t.Helper()
	m := coap.Message{Code: coap.POST, Options: coap.Options{}.AddPath("/bs")}
	if c.pct != "" {
		query = append(query, "pct="+c.pct)
	}
	for _, q := range query {
		m.Options = m.Options.Add(coap.URIQuery, []byte(q))
	}
	got, err := c.ask(m)
	if err != nil {
		c.s.t.Fatalf("POST /bs: %v", err)
	}
	return got
}

// bootstrap asks for a bootstrap and serves until it is finished.
func (c *lwm2mClient) bootstrap(query ...string) {
	c.s.t.Helper()
	if got := c.request(query...); got.Code != coap.Changed {
		c.s.t.Fatalf("POST /bs = %v %s", got.Code, got.Payload)
	}
	for until := time.Now().Add(patience); !c.finished; {
		if _, err := c.next(until); err != nil {
			c.s.t.Fatalf("before the bootstrap was finished: %v; the server asked %v", err, c.asked)
		}
	}
}

// pack fetches a Bootstrap-Pack in a format and takes what is in it.
func (c *lwm2mClient) pack(format coap.Format) {
	c.s.t.Helper()
	got, err := c.ask(coap.Message{Code: coap.GET, Options: coap.Options{}.AddPath("/bspack").AddUint(coap.Accept, uint32(format))})
	if err != nil || got.Code != coap.Content {
		c.s.t.Fatalf("GET /bspack = %v %s, %v", got.Code, got.Payload, err)
	}
	list, err := lwm2m.Decode(format, "/0", got.Payload)
	if err != nil {
		c.s.t.Fatalf("the pack %x: %v", got.Payload, err)
	}
	for _, i := range list {
		c.written[i.Path()] = i
	}
	c.finished = true
}

// target opens a session with what was written, as the device does next.
func (c *lwm2mClient) target() *lwm2mClient {
	s := c.s
	s.t.Helper()
	var security, account *lwm2m.Instance
	for path, i := range c.written {
		switch {
		case strings.HasPrefix(path, "/0/") && i.Resource(1) == false:
			security = &i
		case strings.HasPrefix(path, "/1/"):
			account = &i
		}
	}
	if security == nil || account == nil || security.Resource(10) != account.Resource(0) {
		s.t.Fatalf("written were %+v, want an account of one server", c.written)
	}
	if at, err := url.Parse(security.Resource(0).(string)); err != nil || at.Host != s.at.CoAPUDP {
		s.t.Fatalf("sent to %v, want %s", security.Resource(0), s.at.CoAPUDP)
	}
	name, _ := security.Resource(3).([]byte)
	secret, _ := security.Resource(5).([]byte)
	s.secret(hex.EncodeToString(secret))
	if security.Resource(2) == int64(0) {
		return s.lwm2mClient(c.version, withPSK(key{Identity: string(name)}, string(secret))...)
	}
	private, err := x509.ParsePKCS8PrivateKey(secret)
	if err != nil {
		s.t.Fatalf("/0/x/5 is no key: %v", err)
	}
	return s.lwm2mClient(c.version, dtls.WithCertificates(tls.Certificate{Certificate: [][]byte{name}, PrivateKey: private}))
}

// register registers and returns where.
func (c *lwm2mClient) register() string {
	c.s.t.Helper()
	m := coap.Message{Code: coap.POST, Options: coap.Options{}.AddPath("/rd").AddUint(coap.ContentFormat, uint32(coap.LinkFormat)), Payload: []byte("</1/0>,</3/0>")}
	for _, q := range []string{"lt=300", "lwm2m=" + c.version, "b=U"} {
		m.Options = m.Options.Add(coap.URIQuery, []byte(q))
	}
	got, err := c.ask(m)
	if err != nil || got.Code != coap.Created {
		c.s.t.Fatalf("POST /rd = %v %s, %v", got.Code, got.Payload, err)
	}
	return strings.Join(got.Options.Strings(coap.LocationPath), "/")
}

// bootstrapServer registers the server itself as the one devices are sent to,
// with a policy that gives this credential.
func (s *server) bootstrapServer(credential string) {
	s.t.Helper()
	s.cli("server", "add", "here", "coaps://"+s.at.CoAPUDP, "--short-id", "101")
	s.cli("policy", "add", "all", "--credential", credential)
}

// lastBootstrap waits for the n-th bootstrap and returns it.
func (s *server) lastBootstrap(n int) (v struct {
	Outcome, Detail, Endpoint, Version string
	Steps                              []struct{ Method, Path, Code string }
},
) {
	s.t.Helper()
	s.eventually(fmt.Sprintf("bootstrap %d to be recorded", n), func() bool {
		var p struct{ Items []json.RawMessage }
		s.decode(s.rest("GET", "/api/v1/lwm2m/sessions", "", 200), &p)
		if len(p.Items) < n {
			return false
		}
		s.decode(string(p.Items[n-1]), &v)
		return true
	})
	return v
}

func TestLwM2MBootstrapThenRegister(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.bootstrapServer("rotate-psk")
	n := 0
	for _, way := range []struct {
		version, pct string
		pack         coap.Format // fetched in place of a bootstrap
	}{
		{version: "1.0"},
		{version: "1.1", pct: "11542"},
		{version: "1.1", pct: "112"},
		{version: "1.1", pct: "110"},
		{version: "1.2", pct: "11544"},
		{version: "1.2", pct: "112"},
		{version: "1.2", pack: coap.SenMLCBOR},
		{version: "1.2", pack: coap.SenMLJSON},
		{version: "1.2", pack: coap.LwM2MCBOR},
	} {
		k := s.textPSK()
		version, want := way.version, "SUCCESS"
		c := s.lwm2mClient(version, withPSK(k, k.text(t))...)
		c.account, c.pct = 1, way.pct
		if way.pack != 0 {
			want = "DELIVERED"
			c.pack(way.pack)
		} else {
			c.bootstrap("ep=" + k.Identity)
		}
		n++
		if v := s.lastBootstrap(n); v.Outcome != want || v.Endpoint != k.Identity {
			t.Errorf("%s: recorded %+v, want %s of %s", version, v, want, k.Identity)
		}
		if _, overwritten := c.written["/0/1"]; overwritten && way.pack == 0 {
			t.Errorf("%s: the bootstrap account was written over", version)
		}
		target := c.target()
		w, err := target.whoami()
		if err != nil {
			t.Fatalf("%s: at the target: %v", version, err)
		}
		w.isDevice(s, k.Device, "psk")
		if w.Credential.ID != k.Identity+".1" {
			t.Errorf("%s: proven by %s, want the new key", version, w.Credential.ID)
		}
		if at := target.register(); at != "rd/"+k.Identity {
			t.Errorf("%s: registered at %s", version, at)
		}
	}
	var clients struct {
		PageInfo struct{ TotalCount int }
		Items    []struct{ Name string }
	}
	s.decode(s.rest("GET", "/clients", "", 200), &clients)
	if clients.PageInfo.TotalCount != n {
		t.Errorf("clients: %+v, want all %d", clients, n)
	}
	if out := s.cli("bootstrap", "sessions", "list"); strings.Count(out, "SUCCESS") != 6 || strings.Count(out, "DELIVERED") != 3 {
		t.Errorf("keystead bootstrap sessions list printed\n%s", out)
	}
}

func TestLwM2MBootstrapWithCertificates(t *testing.T) {
	t.Parallel()
	s := start(t)
	s.bootstrapServer("issue-cert")
	var made struct{ RawCertificate string }
	s.decode(s.rest("POST", "/identities/certificates", "", 201), &made)
	pair, err := tls.X509KeyPair([]byte(made.RawCertificate), []byte(made.RawCertificate))
	if err != nil {
		t.Fatal(err)
	}
	c := s.lwm2mClient("1.1", dtls.WithCertificates(pair))
	w, err := c.whoami()
	if err != nil {
		t.Fatal(err)
	}
	c.bootstrap()
	if v := s.lastBootstrap(1); v.Outcome != "SUCCESS" || v.Version != "1.1" {
		t.Errorf("recorded %+v", v)
	}
	target := c.target()
	now, err := target.whoami()
	if err != nil {
		t.Fatal(err)
	}
	now.isDevice(s, w.Device, "certificate")
	if now.Credential.ID == w.Credential.ID {
		t.Error("at the target it has its old certificate, want the new one")
	}
	target.register()
}

// TestMisbehavingLwM2MClients has each end as it should, and the device keep what
// it had.
func TestMisbehavingLwM2MClients(t *testing.T) {
	t.Parallel()
	s := start(t, "lwm2m.step_timeout=2s", "lwm2m.session_timeout=10s")
	s.bootstrapServer("rotate-psk")
	before := s.goroutines()
	n := 0
	for _, bad := range []struct {
		name    string
		make    func(c *lwm2mClient)
		query   string
		answer  coap.Code
		outcome string
	}{
		{"refuses Discover", func(c *lwm2mClient) { c.refuses = map[string]coap.Code{"GET /": coap.BadRequest} }, "", coap.Changed, "SUCCESS"},
		{"refuses Delete", func(c *lwm2mClient) { c.refuses = map[string]coap.Code{"DELETE /": coap.BadRequest} }, "", coap.Changed, "SUCCESS"},
		{"knows TLV only", func(c *lwm2mClient) { c.tlvOnly = true }, "", coap.Changed, "SUCCESS"},
		{"refuses a write", func(c *lwm2mClient) { c.refuses = map[string]coap.Code{"PUT /1": coap.BadRequest} }, "", coap.Changed, "REQUEST_FAILED"},
		{"refuses to finish", func(c *lwm2mClient) { c.refuses = map[string]coap.Code{"POST /bs": coap.NotAcceptable} }, "", coap.Changed, "FINISH_FAILED"},
		{"is silent", func(c *lwm2mClient) { c.silent = true }, "", coap.Changed, "TIMEOUT"},
		{"goes away", func(c *lwm2mClient) { c.again = func() { c.conn.Close() } }, "", coap.Changed, "CLIENT_GONE"},
		{"goes by another name", func(*lwm2mClient) {}, "ep=somebody-else", coap.BadRequest, "UNAUTHORIZED"},
	} {
		k := s.textPSK()
		c := s.lwm2mClient("1.1", withPSK(k, k.text(t))...)
		bad.make(c)
		var query []string
		if bad.query != "" {
			query = []string{bad.query}
		}
		if got := c.request(query...); got.Code != bad.answer {
			t.Errorf("%s: POST /bs = %v %s, want %v", bad.name, got.Code, got.Payload, bad.answer)
		}
		ended := make(chan struct{})
		go func() { // serves until the session ends, or nothing comes for long
			defer close(ended)
			for {
				if _, err := c.next(time.Now().Add(3 * time.Second)); err != nil {
					return
				}
			}
		}()
		n++
		v := s.lastBootstrap(n)
		if v.Outcome != bad.outcome {
			t.Errorf("%s: ended %s (%s), want %s; steps %+v", bad.name, v.Outcome, v.Detail, bad.outcome, v.Steps)
		}
		c.close()
		<-ended
		var d struct {
			Credentials []struct{ Kind, ID, State string }
		}
		s.decode(s.rest("GET", "/api/v1/devices/"+k.Device, "", 200), &d)
		for _, cred := range d.Credentials {
			switch want := "revoked"; {
			case cred.ID == k.Identity && cred.State != "active":
				t.Errorf("%s: its own key is %s", bad.name, cred.State)
			case cred.ID != k.Identity && bad.outcome == "SUCCESS" && cred.State != "active",
				cred.ID != k.Identity && bad.outcome != "SUCCESS" && cred.State != want:
				t.Errorf("%s: the new key %s is %s", bad.name, cred.ID, cred.State)
			}
		}
	}
	k := s.textPSK()
	c := s.lwm2mClient("1.1", withPSK(k, k.text(t))...)
	c.again = func() { // a second request, in the middle of the first
		m := coap.Message{Code: coap.POST, ID: 0x7777, Token: []byte{7}, Options: coap.Options{}.AddPath("/bs")}
		if _, err := c.conn.Write(m.Append(nil)); err != nil {
			t.Error(err)
		}
		c.silent = true
	}
	if got := c.request(); got.Code != coap.Changed {
		t.Fatalf("POST /bs = %v", got.Code)
	}
	for range 20 {
		if got, err := c.next(time.Now().Add(patience)); err != nil {
			t.Fatal(err)
		} else if got != nil && got.ID == 0x7777 {
			break
		}
	}
	c.silent = false
	for until := time.Now().Add(patience); !c.finished; {
		if _, err := c.next(until); err != nil {
			t.Fatalf("the second request is not served: %v", err)
		}
	}
	outcomes := []string{s.lastBootstrap(n + 1).Outcome, s.lastBootstrap(n + 2).Outcome}
	if slices.Sort(outcomes); !slices.Equal(outcomes, []string{"CANCELLED", "SUCCESS"}) {
		t.Errorf("the two ended %v, want one CANCELLED and one SUCCESS", outcomes)
	}
	c.close()
	s.eventually("goroutines to be as before", func() bool { return s.goroutines() <= before+10 })
}

func TestLibcoapTriggersABootstrap(t *testing.T) {
	t.Parallel()
	s := start(t, "lwm2m.step_timeout=2s")
	s.bootstrapServer("reuse")
	for _, program := range coapClients {
		k := s.textPSK()
		r := s.coap(program, "-m", "post", "-u", k.Identity, "-k", k.text(t), "-v", "6", s.coaps("/bs?ep="+k.Identity))
		if !strings.Contains(r.all(), "2.04") {
			t.Errorf("%s: POST /bs printed %s, want 2.04", program, r.all())
		}
		r = s.coap(program, "-A", "110", "-u", k.Identity, "-k", k.text(t), s.coaps("/bspack?ep="+k.Identity))
		var pack []struct{ N, Vs string }
		if j := strings.Index(r.out, "[{"); j < 0 || json.Unmarshal([]byte(r.out[j:]), &pack) != nil || pack[0].Vs != "coaps://"+s.at.CoAPUDP {
			t.Errorf("%s: GET /bspack printed %s, want a pack", program, r.all())
		}
		r = s.coap(program, "-m", "post", "-u", k.Identity, "-k", k.text(t), "-v", "6", s.coaps("/bs?ep=other"))
		if !strings.Contains(r.all(), "4.00") {
			t.Errorf("%s: POST /bs under another name printed %s, want 4.00", program, r.all())
		}
	}
}

func TestTenThousandKeysFromTheCommandLine(t *testing.T) {
	t.Parallel()
	s := start(t, fast...)
	begun := time.Now()
	out := s.cli("psk", "create", "-n", "10000", "-o", "csv")
	took := time.Since(begun)
	rows, err := csv.NewReader(strings.NewReader(out)).ReadAll()
	if err != nil || len(rows) != 10001 {
		t.Fatalf("printed %d rows, %v; want a head and 10,000", len(rows), err)
	}
	seen := map[string]bool{}
	for _, row := range rows[1:] {
		if seen[row[0]] || len(row[0]) != 22 || len(row[1]) != 64 {
			t.Fatalf("row %v", row)
		}
		seen[row[0]] = true
	}
	fmt.Printf("keystead psk create -n 10000 -o csv took %.1f s\n", took.Seconds())
	last := rows[10000]
	s.secret(last[1])
	secret, err := hex.DecodeString(last[1])
	if err != nil {
		t.Fatal(err)
	}
	k := key{Identity: last[0], Secret: last[1], Device: last[2]}
	c := s.mustDial(withPSK(k, string(secret))...)
	w, err := c.whoami()
	if err != nil {
		t.Fatal(err)
	}
	w.isDevice(s, k.Device, "psk")
	shown := s.run("script", "-qec", bin+" --data "+s.data+" psk create -n 2000 -o csv > /dev/null", "/dev/null")
	if !strings.Contains(shown.out, "100% 2000/2000 keys") {
		t.Errorf("on a terminal it showed %q, want a bar up to 2000", shown.out)
	}

	s.cli("psk", "delete", k.Identity)
	c.ended()
	if _, err := s.dial(withPSK(k, string(secret))...); err == nil {
		t.Error("a handshake with the deleted key succeeded")
	}
}
