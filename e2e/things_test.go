//go:build e2e

package e2e_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"keystead/client"
)

// newThing makes a thing, whose keys no log may have.
func (s *server) newThing(n client.NewThing) client.Thing {
	s.t.Helper()
	if n.Type == "" {
		n.Type = "sensor"
	}
	made, err := s.admin().CreateThing(s.t.Context(), n)
	if err != nil {
		s.t.Fatal(err)
	}
	s.secret(made.Key)
	s.secret(made.ExternalKey)
	return made
}

// from returns a client of plain requests from one address of loopback.
func (s *server) from(address string) *http.Client {
	s.t.Helper()
	d := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(address)}, Timeout: patience}
	t := &http.Transport{TLSClientConfig: s.tls(), DialContext: d.DialContext}
	s.t.Cleanup(t.CloseIdleConnections)
	return &http.Client{Transport: t, Timeout: patience}
}

// ask sends a request with an Authorization header, and returns the status.
func (s *server) ask(c *http.Client, method, path, authorization, body string) int {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.t.Context(), method, s.url(path), strings.NewReader(body))
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set("Authorization", authorization)
	if body != "" {
		req.Header.Set("Content-Type", "application/json")
	}
	res, err := c.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer res.Body.Close()
	if _, err := io.Copy(io.Discard, res.Body); err != nil {
		s.t.Fatal(err)
	}
	return res.StatusCode
}

func TestThingKeysComeAndGo(t *testing.T) {
	t.Parallel()
	s := start(t, fast...)
	c := s.from("127.0.0.1")
	thing := s.newThing(client.NewThing{Name: "meter", ExternalKey: "aa:bb:cc:dd:ee"})
	who := func(scheme, key string) int { return s.ask(c, "GET", "/api/v1/whoami", scheme+" "+key, "") }
	want := func(what string, got, want int) {
		t.Helper()
		if got != want {
			t.Errorf("%s: %d, want %d", what, got, want)
		}
	}

	// A connection that is open makes no difference: the next request on it is refused.
	want("the key", who("Thing", thing.Key), 200)
	next, err := s.admin().RotateThing(t.Context(), thing.ID, 0)
	if err != nil {
		t.Fatal(err)
	}
	s.secret(next.Key)
	want("the old key after rotation", who("Thing", thing.Key), 401)
	want("the new key", who("Thing", next.Key), 200)

	last, err := s.admin().RotateThing(t.Context(), thing.ID, 3*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	s.secret(last.Key)
	want("the newest key in the overlap", who("Thing", last.Key), 200)
	want("the key before in the overlap", who("Thing", next.Key), 200)
	s.eventually("the overlap to end", func() bool { return who("Thing", next.Key) == 401 })
	want("the newest key after the overlap", who("Thing", last.Key), 200)

	// The external key changes and goes; the internal stays.
	want("the external key", who("External", "aa:bb:cc:dd:ee"), 200)
	if err := s.admin().SetExternalKey(t.Context(), thing.ID, "11:22:33:44:55"); err != nil {
		t.Fatal(err)
	}
	want("the external key before", who("External", "aa:bb:cc:dd:ee"), 401)
	want("the external key now", who("External", "11:22:33:44:55"), 200)
	want("the internal key", who("Thing", last.Key), 200)
	if err := s.admin().SetExternalKey(t.Context(), thing.ID, ""); err != nil {
		t.Fatal(err)
	}
	want("the external key that was taken away", who("External", "11:22:33:44:55"), 401)
	want("the internal key still", who("Thing", last.Key), 200)

	// A key is shown where it is asked for, and that is on record; nowhere else.
	for _, path := range []string{"/things", "/things/" + thing.ID, "/api/v1/devices/" + thing.ID, "/api/v1/audit?limit=500"} {
		body, code := s.curl("-H", "Authorization: Bearer "+s.key, s.url(path))
		if code != 200 || strings.Contains(body, last.Key) {
			t.Errorf("%s: %d, and has the key: %v", path, code, strings.Contains(body, last.Key))
		}
	}
	shown, err := s.admin().RevealThing(t.Context(), thing.ID)
	if err != nil || shown.Key != last.Key {
		t.Errorf("reveal = %v, %v; want the key", shown.ID, err)
	}
	if trail := s.cli("audit", "list", "-o", "csv"); !strings.Contains(trail, "thing_key.reveal") {
		t.Errorf("the trail has no thing_key.reveal:\n%s", trail)
	}

	// All or nothing: the last of the array clashes, and none is there.
	if got := s.ask(c, "POST", "/things", "Bearer "+s.key, `[{"name":"half-1","type":"sensor"},{"name":"half-2","type":"sensor","id":"`+thing.ID+`"}]`); got != 409 {
		t.Errorf("an array with a taken id: %d, want 409", got)
	}
	if list := s.cli("thing", "list", "-o", "csv"); strings.Contains(list, "half-") {
		t.Errorf("half an array was made:\n%s", list)
	}
}

// Wrong keys from one address use up what it has of failures; others are served.
func TestWrongKeysAreThrottledByAddress(t *testing.T) {
	t.Parallel()
	s := start(t)
	thing := s.newThing(client.NewThing{Name: "meter"})
	attacker, other, third := s.from("127.0.0.2"), s.from("127.0.0.3"), s.from("127.0.0.4")
	const tries = 1000
	count := map[int]int{}
	for i := range tries {
		count[s.ask(attacker, "GET", "/api/v1/whoami", fmt.Sprintf("Thing tk_wrong_%d_aaaaaaaaaaaaaaaaaaaaaaaaaaaa", i), "")]++
	}
	if count[401]+count[429] != tries || count[401] == 0 || count[401] > 100 {
		t.Errorf("wrong keys from one address: %v, want a few 401 and else 429", count)
	}
	// Right or wrong, nothing more can be learned from there for now.
	if got := s.ask(attacker, "GET", "/api/v1/whoami", "Thing "+thing.Key, ""); got != 429 {
		t.Errorf("the right key from the address that is throttled: %d, want 429", got)
	}
	if got := s.ask(other, "GET", "/api/v1/whoami", "Thing "+thing.Key, ""); got != 200 {
		t.Errorf("the right key from another address: %d, want 200", got)
	}

	identify := func(c *http.Client, key string) int {
		return s.ask(c, "POST", "/identify", "", `{"type":"internal","key":"`+key+`"}`)
	}
	count = map[int]int{}
	for i := range tries {
		count[identify(third, fmt.Sprintf("tk_wrong_%d_aaaaaaaaaaaaaaaaaaaaaaaaaaaa", i))]++
	}
	if count[404]+count[429] != tries || count[404] == 0 || count[404] > 100 {
		t.Errorf("/identify with wrong keys from one address: %v, want a few 404 and else 429", count)
	}
	if got := identify(other, thing.Key); got != 200 {
		t.Errorf("/identify from another address: %d, want 200", got)
	}
}

// certificateNamedFor has openssl make a certificate of a CA of the operator's own,
// which Mainflux's make thing_cert named for the thing's key.
func (s *server) certificateNamedFor(key, file string) {
	s.t.Helper()
	s.must("env", "CN="+key, "FILE="+file, "bash", "-euo", "pipefail", "-c", `
		[ -e own.crt ] || openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout own.key -out own.crt -days 30 -subj /CN=own \
			-addext basicConstraints=critical,CA:TRUE -addext keyUsage=critical,keyCertSign
		openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout $FILE.key -out $FILE.csr -subj "/CN=$CN"
		openssl x509 -req -in $FILE.csr -CA own.crt -CAkey own.key -days 30 -out $FILE.crt \
			-extfile <(printf 'extendedKeyUsage=clientAuth\nauthorityKeyIdentifier=keyid\n')
	`)
}

func TestCommonNameThatIsAThingsKey(t *testing.T) {
	t.Parallel()
	s := start(t, fast...)
	thing, other := s.newThing(client.NewThing{Name: "meter"}), s.newThing(client.NewThing{Name: "other"})
	s.certificateNamedFor(thing.Key, "named")
	s.certificateNamedFor("tk_0000000000000000000000000000000000000000", "wrong")
	s.cli("ca", "import", s.path("own.crt"))

	// None is made here: it would publish the key.
	s.request("asks", "/CN="+thing.Key)
	if body, code := s.est("/.well-known/est/simpleenroll", "asks", "-u", "u:"+s.token(`{}`)); code != 400 || !strings.Contains(body, "name the thing by its id") {
		t.Errorf("enrolled with a thing's key for a name: %d %s, want 400", code, body)
	}
	s.sh("openssl req -in asks.csr -inform DER -out asks.pem")
	sign, _ := json.Marshal(map[string]string{"csr": readText(t, s.path("asks.pem"))}) //nolint:errchkjson // of strings
	var cas struct{ Items []struct{ ID string } }
	s.decode(s.rest("GET", "/api/v1/cas", "", 200), &cas)
	s.rest("POST", "/api/v1/cas/"+cas.Items[0].ID+"/sign", string(sign), 400)
	s.cliFails(1, "cert", "issue", "--server", thing.Key)

	// Nor where it stands in an alternative name.
	s.sh(`openssl req -new -key asks.key -subj /CN=asks -addext "subjectAltName=DNS:` + thing.Key + `,URI:urn:x:` + thing.Key + `" -outform DER -out alt.csr; base64 -w0 alt.csr >alt.b64; openssl req -in alt.csr -inform DER -out alt.pem`)
	for _, operation := range []string{"simpleenroll", "serverkeygen"} {
		if body, code := s.est("/.well-known/est/"+operation, "alt", "-u", "u:"+s.token(`{}`)); code != 400 || !strings.Contains(body, "alternative names") {
			t.Errorf("%s with a thing's key for an alternative name: %d %s, want 400", operation, code, body)
		}
	}
	k := s.textPSK()
	if r := s.coap("coap-client-openssl", "-m", "post", "-u", k.Identity, "-k", k.text(t), "-t", "286", "-A", "287", "-f", s.path("alt.csr"), s.coaps("/est/sen")); !strings.Contains(r.all(), "4.00") {
		t.Errorf("over CoAP: %s, want 4.00", r.all())
	}
	sign, _ = json.Marshal(map[string]any{"csr": readText(t, s.path("alt.pem")), "profile": "server"}) //nolint:errchkjson // of strings
	s.rest("POST", "/api/v1/cas/"+cas.Items[0].ID+"/sign", string(sign), 400)
	s.cliFails(1, "cert", "issue", "--server", "ok.example,"+thing.Key+".example")

	who := func(args ...string) (string, int) {
		return s.curl(append([]string{"--cert", s.path("named.crt"), "--key", s.path("named.key"), s.url("/api/v1/whoami")}, args...)...)
	}
	if body, code := who("--tlsv1.3"); code != 401 {
		t.Errorf("as it comes: %d %s, want 401", code, body)
	}
	s.stop()
	s.args = append(s.args, "--set", "mtls.cn_thing_key=true")
	s.start()

	body, code := who("--tlsv1.3")
	if code != 200 || s.whoami(body).Device != thing.ID || s.whoami(body).Credential.Kind != "thing_key" {
		t.Errorf("over TLS 1.3: %d %s, want the thing by its key", code, body)
	}
	if body, code := who("--tlsv1.3", "-H", "Authorization: Thing "+thing.Key); code != 200 {
		t.Errorf("with the key beside it: %d %s, want 200", code, body)
	}
	for name, args := range map[string][]string{
		"TLS 1.2, which sends it in clear": {"--tls-max", "1.2"},
		"another thing's key beside it":    {"--tlsv1.3", "-H", "Authorization: Thing " + other.Key},
		"a name that is no key":            {"--tlsv1.3", "--cert", s.path("wrong.crt"), "--key", s.path("wrong.key")},
	} {
		if body, code := who(args...); code != 401 {
			t.Errorf("%s: %d %s, want 401", name, code, body)
		}
	}
	refusedOverCoAP(s, s.coap("coap-client-openssl", "-A", "50", "-C", s.ca(), "-c", s.path("named.crt"), "-j", s.path("named.key"), s.coaps("/whoami")))

	// The CA is of one organisation, and says nothing of the things of others.
	org, err := s.admin().CreateOrganisation(t.Context(), "acme", "")
	if err != nil {
		t.Fatal(err)
	}
	foreign, err := s.clientOf(s.key, org.ID).CreateThing(t.Context(), client.NewThing{Name: "foreign", Type: "sensor"})
	if err != nil {
		t.Fatal(err)
	}
	s.secret(foreign.Key)
	s.certificateNamedFor(foreign.Key, "foreign")
	if body, code := who("--tlsv1.3", "--cert", s.path("foreign.crt"), "--key", s.path("foreign.key")); code != 401 {
		t.Errorf("the key of another organisation's thing: %d %s, want 401", code, body)
	}

	if _, err := s.admin().RotateThing(t.Context(), thing.ID, 0); err != nil {
		t.Fatal(err)
	}
	if body, code := who("--tlsv1.3"); code != 401 {
		t.Errorf("after the key was rotated: %d %s, want 401", code, body)
	}
}

// The message door over CoAP, with each credential a device may have, through
// libcoap's clients.
func TestMessagesOverCoAPByAnyCredential(t *testing.T) {
	t.Parallel()
	file := t.TempDir() + "/messages.jsonl"
	conf := t.TempDir() + "/keystead.yaml"
	write(t, conf, []byte("messages: {sinks: [{name: log, type: file, path: "+file+"}], rate: {per_second: 0.001, burst: 9}}\n"))
	s := prepare(t, append([]string{"coap.anonymous=true"}, fast...)...)
	s.args = append(s.args, "--config", conf)
	s.start()
	thing := s.newThing(client.NewThing{Name: "meter", ExternalKey: "aa:bb:cc:dd:ee"})
	other := s.newThing(client.NewThing{Name: "other"})
	psk := s.textPSK(thing.ID)
	s.cli("cert", "issue", "--thing", thing.ID, "--name", "meter")
	write(t, s.path("pack.json"), []byte(senml))
	write(t, s.path("bad.json"), []byte(`[{"n":"x"}]`))

	byPSK := []string{"-u", psk.Identity, "-k", psk.text(t)}
	byCert := []string{"-C", s.ca(), "-c", s.path("meter.crt"), "-j", s.path("meter.key")}
	byNothing := []string{"-R", s.ca()}
	post := func(name, pack, query string, by []string) string {
		args := append([]string{"-m", "post", "-t", "110", "-f", s.path(pack)}, by...)
		return s.coap(name, append(args, s.coaps("/messages"+query))...).all()
	}
	for _, name := range coapClients {
		for what, try := range map[string]func() string{
			"pre-shared key":                  func() string { return post(name, "pack.json", "", byPSK) },
			"certificate":                     func() string { return post(name, "pack.json", "", byCert) },
			"pre-shared and thing key":        func() string { return post(name, "pack.json", "?auth="+thing.Key+"&type=internal", byPSK) },
			"external key beside the session": func() string { return post(name, "pack.json", "?auth=aa:bb:cc:dd:ee&type=external", byCert) },
		} {
			if got := try(); refusal.MatchString(got) {
				t.Errorf("%s by %s: %s", name, what, got)
			}
		}
	}
	if got := post("coap-client-openssl", "pack.json", "?auth="+thing.Key+"&type=internal", byNothing); refusal.MatchString(got) {
		t.Errorf("by a thing key alone: %s", got)
	}
	const accepted = 9
	s.eventually("the messages", func() bool {
		b, _ := os.ReadFile(file)
		return bytes.Count(b, []byte("\n")) >= accepted
	})
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	by := map[string]int{}
	for _, m := range read(t, string(b)) {
		if m.Device != thing.ID {
			t.Errorf("a message of %s, want them of %s", m.Device, thing.ID)
		}
		by[m.Credential]++
	}
	if by["psk"] != 4 || by["certificate"] != 4 || by["thing_key"] != 1 {
		t.Errorf("messages by %v, want 4 by psk, 4 by certificate, 1 by thing_key", by)
	}
	for what, test := range map[string]struct{ got, want string }{
		"over the device's rate":      {post("coap-client-openssl", "pack.json", "", byPSK), "4.29"},
		"another thing's key":         {post("coap-client-openssl", "pack.json", "?auth="+other.Key+"&type=internal", byPSK), "4.01"},
		"a wrong key":                 {post("coap-client-openssl", "pack.json", "?auth="+thing.Key+"x&type=internal", byNothing), "4.01"},
		"an internal key as external": {post("coap-client-openssl", "pack.json", "?auth="+other.Key+"&type=external", byNothing), "4.01"},
		"nothing":                     {post("coap-client-openssl", "pack.json", "", byNothing), "4.01"},
		"no SenML":                    {post("coap-client-openssl", "bad.json", "?auth="+other.Key+"&type=internal", byNothing), "4.00"},
	} {
		if !strings.Contains(test.got, test.want) {
			t.Errorf("%s: %q, want %s", what, test.got, test.want)
		}
	}
	var problem struct{ Code string }
	body, code := s.curl("-X", "POST", "-H", "Content-Type: application/senml+json", "-H", "Authorization: Thing "+thing.Key, s.url("/http/messages"), "-d", senml)
	if code != http.StatusTooManyRequests || json.Unmarshal([]byte(body), &problem) != nil || problem.Code != "too_many" {
		t.Errorf("the rate is of the device, whatever it speaks: %d %s, want 429", code, body)
	}
	big := `[{"n":"x","vs":"` + strings.Repeat("a", 64<<10) + `"}]`
	write(t, s.path("big.json"), []byte(big))
	if body, code := s.curl("-X", "POST", "-H", "Content-Type: application/senml+json", "-H", "Authorization: Thing "+other.Key, s.url("/http/messages"), "--data-binary", "@"+s.path("big.json")); code != http.StatusRequestEntityTooLarge {
		t.Errorf("too large a pack: %d %s, want 413", code, body)
	}
}
