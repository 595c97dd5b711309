//go:build e2e

package e2e_test

import (
	"bytes"
	"encoding/json"
	"encoding/pem"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

const senml = `[{"bn":"some-base-name:","bt":1.276020076001e+09, "bu":"A","bver":5, "n":"voltage","u":"V","v":120.1}, {"n":"current","t":-5,"v":1.2}, {"n":"current","t":-4,"v":1.3}]`

// refusal is how libcoap's clients print an answer that is an error.
var refusal = regexp.MustCompile(`(?m)^[45]\.\d\d`)

// sinks are the three places messages go to in these tests.
type sinks struct {
	t      *testing.T
	file   string
	mqtt   *buffer // what mosquitto_sub printed
	hooked *buffer
}

// message is what a sink gets of one.
type message struct {
	ID, Device, Name, Credential, Transport string
	SenML                                   json.RawMessage
}

func read(t *testing.T, text string) (all []message) {
	t.Helper()
	d := json.NewDecoder(strings.NewReader(text))
	for {
		var m message
		if err := d.Decode(&m); err == io.EOF {
			return all
		} else if err != nil {
			t.Fatalf("a sink has %q: %v", text, err)
		}
		all = append(all, m)
	}
}

func (k sinks) all() map[string]string {
	file, err := os.ReadFile(k.file)
	if err != nil && !os.IsNotExist(err) {
		k.t.Fatal(err)
	}
	return map[string]string{"file": string(file), "mqtt": k.mqtt.String(), "webhook": k.hooked.String()}
}

// startWithSinks starts a broker, a webhook and a server that hands messages to
// them and to a file.
func startWithSinks(t *testing.T) (*server, sinks) {
	t.Helper()
	dir := t.TempDir()
	k := sinks{t: t, file: filepath.Join(dir, "messages.jsonl"), mqtt: &buffer{}, hooked: &buffer{}}

	var mu sync.Mutex
	seen := map[string]bool{}
	hook := httptest.NewTLSServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		mu.Lock()
		defer mu.Unlock()
		if id := r.Header.Get("X-Keystead-Delivery"); err == nil && !seen[id] {
			seen[id] = true
			k.hooked.Write(append(body, '\n'))
		}
	}))
	t.Cleanup(hook.Close)
	write(t, filepath.Join(dir, "hook.pem"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: hook.Certificate().Raw}))

	port := freePort(t)
	write(t, filepath.Join(dir, "broker.conf"), []byte("listener "+port+" 127.0.0.1\nallow_anonymous true\n"))
	background(t, nil, "mosquitto", "-c", filepath.Join(dir, "broker.conf"))
	wait(t, "the broker", func() bool {
		c, err := net.Dial("tcp", "127.0.0.1:"+port)
		if err == nil {
			c.Close()
		}
		return err == nil
	})
	background(t, k.mqtt, "mosquitto_sub", "-h", "127.0.0.1", "-p", port, "-t", "fleet/#", "-q", "1", "-i", "watcher")
	// The subscription is there once a message of its own arrives.
	wait(t, "the subscription", func() bool {
		_ = exec.Command("mosquitto_pub", "-h", "127.0.0.1", "-p", port, "-t", "fleet/hello", "-m", "{}").Run()
		return strings.Contains(k.mqtt.String(), "{}")
	})

	write(t, filepath.Join(dir, "keystead.yaml"), []byte(`
webhook:
  ca_file: `+filepath.Join(dir, "hook.pem")+`
  allow_cidrs: [127.0.0.0/8]
messages:
  sinks:
    - {name: log, type: file, path: `+k.file+`}
    - {name: hook, type: webhook, url: "`+hook.URL+`"}
    - {name: broker, type: mqtt, url: "mqtt://127.0.0.1:`+port+`", topic: "fleet/{organisation}/{device}", client_id: keystead}
`))
	s := prepare(t)
	s.args = append(s.args, "--config", filepath.Join(dir, "keystead.yaml"))
	s.start()
	return s, k
}

func write(t *testing.T, path string, b []byte) {
	t.Helper()
	if err := os.WriteFile(path, b, 0o600); err != nil {
		t.Fatal(err)
	}
}

func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	_, port, err := net.SplitHostPort(l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	return port
}

// background runs a program until the test ends.
func background(t *testing.T, out io.Writer, name string, args ...string) {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Stdout = out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
	})
}

func wait(t *testing.T, what string, ok func() bool) {
	t.Helper()
	(&server{t: t, logs: &buffer{}}).eventually(what, ok)
}

// seedCommand is the command of the seed as it is written there; only the host,
// the port and the names of the files are of this server. It prints the status.
const seedCommand = `curl -s -S -i --cacert docker/ssl/certs/ca.crt --cert docker/ssl/certs/meter.crt --key docker/ssl/certs/meter.key -X POST -H "Content-Type: application/senml+json" https://localhost/http/messages -d '` + senml + `'`

// seed runs the seed's command with the certificate and key of the named files,
// and returns the status of the answer.
func (s *server) seed(name string) string {
	s.t.Helper()
	_, port, err := net.SplitHostPort(s.at.HTTPS)
	if err != nil {
		s.t.Fatal(err)
	}
	command := strings.NewReplacer("docker/ssl/certs/ca.crt", s.ca(), "docker/ssl/certs/meter", s.path(name), "https://localhost/", "https://localhost:"+port+"/").Replace(seedCommand)
	return strings.TrimSpace(strings.SplitN(s.sh(command), "\n", 2)[0])
}

// The command of the seed, with a certificate made by our command, and the same
// with each key header: the message reaches each sink once, with who sent it.
func TestMessagesReachEverySinkOnce(t *testing.T) {
	s, k := startWithSinks(t)
	s.sh(`
		curl -sS --fail-with-body --cacert "$CA" -H "Authorization: Bearer $(jq -r .api_key "$DATA/admin.json")" -H 'Content-Type: application/json' \
			"$URL/things" -d '{"name":"meter","type":"sensor","external_key":"aa:bb:cc:dd"}' > thing.json
		"$KEYSTEAD" --data "$DATA" cert issue --thing "$(jq -r .things[0].id thing.json)" --name thing
	`)
	var made struct{ Things []struct{ ID, Key string } }
	b, err := os.ReadFile(s.path("thing.json"))
	if err != nil || json.Unmarshal(b, &made) != nil || len(made.Things) != 1 {
		t.Fatalf("thing.json: %s, %v", b, err)
	}
	thing := made.Things[0]
	s.secret(thing.Key)

	post := func(args ...string) (string, int) {
		return s.curl(append([]string{"-X", "POST", "-H", "Content-Type: application/senml+json", s.url("/http/messages"), "-d", senml}, args...)...)
	}
	certificate := []string{"--cert", s.path("thing.crt"), "--key", s.path("thing.key")}
	if status := s.seed("thing"); status != "HTTP/2 202" {
		t.Errorf("the seed's command: %s, want 202", status)
	}
	for name, args := range map[string][]string{
		"certificate":                      certificate,
		"id and internal key":              {"-u", thing.ID + ":" + thing.Key},
		"internal key":                     {"-H", "Authorization: Thing " + thing.Key},
		"external key":                     {"-H", "Authorization: External aa:bb:cc:dd"},
		"certificate and key of one thing": append([]string{"-H", "Authorization: Thing " + thing.Key}, certificate...),
	} {
		if body, code := post(args...); code != http.StatusAccepted {
			t.Errorf("by %s: %d %s, want 202", name, code, body)
		}
	}
	psk := s.textPSK(thing.ID)
	write(t, s.path("pack.json"), []byte(senml))
	for _, coap := range coapClients {
		if r := s.coap(coap, "-m", "post", "-t", "110", "-f", s.path("pack.json"), "-u", psk.Identity, "-k", psk.text(t), s.coaps("/messages")); refusal.MatchString(r.all()) {
			t.Errorf("by %s: %s", coap, r.all())
		}
	}

	const want = 8
	s.eventually("the sinks", func() bool {
		for _, text := range k.all() {
			if strings.Count(text, `"some-base-name:"`) < want {
				return false
			}
		}
		return true
	})
	for name, text := range k.all() {
		text = strings.ReplaceAll(text, "{}\n", "") // the subscription's own
		got := read(t, text)
		ids, by := map[string]bool{}, map[string]int{}
		for _, m := range got {
			ids[m.ID] = true
			by[m.Credential+" "+m.Transport]++
			if m.Device != thing.ID || !bytes.Contains(m.SenML, []byte("1.276020076001e+09")) {
				t.Errorf("%s: a message of %q with %s, want it of %q as it was sent", name, m.Device, m.SenML, thing.ID)
			}
		}
		if len(got) != want || len(ids) != want || by["psk coap+dtls"] != 2 || by["certificate https"] != 3 || by["thing_key https"] != 2 || by["external_key https"] != 1 {
			t.Errorf("%s: got %d messages, %d different, %v; want %d, each once", name, len(got), len(ids), by, want)
		}
	}
}

func TestMessagesAreRefusedFromWhoIsNotProven(t *testing.T) {
	s, k := startWithSinks(t)
	create := func(name string) (id, key string) {
		body, code := s.curl("-H", "Authorization: Bearer "+s.key, "-H", "Content-Type: application/json", s.url("/things"), "-d", `{"name":"`+name+`","type":"sensor"}`)
		var made struct{ Things []struct{ ID, Key string } }
		if code != http.StatusCreated || json.Unmarshal([]byte(body), &made) != nil {
			t.Fatalf("create: %d %s", code, body)
		}
		return made.Things[0].ID, made.Things[0].Key
	}
	id, mine := create("a")
	otherID, other := create("b")
	s.cli("cert", "issue", "--thing", id, "--name", "mine")
	s.cli("cert", "issue", "--thing", id, "--name", "revoked")
	s.cli("cert", "issue", "--thing", otherID, "--name", "other")
	soon, err := json.Marshal(map[string]any{"name": "soon over", "extended_key_usages": []string{"ClientAuth"}, "key_usage": []string{"DigitalSignature"}, "honor_subject": true, "validity": map[string]any{"type": "Time", "time": time.Now().Add(3 * time.Second)}})
	if err != nil {
		t.Fatal(err)
	}
	write(t, s.path("soon.json"), soon)
	s.sh(`
		"$KEYSTEAD" --data "$DATA" profile create soon.json 2> profile
		"$KEYSTEAD" --data "$DATA" cert issue --thing ` + id + ` --name expired --profile "$(cat profile)"
		"$KEYSTEAD" --data "$DATA" cert revoke "0$(openssl x509 -in revoked.crt -noout -serial | cut -d= -f2 | tr A-F a-f)" ||
		"$KEYSTEAD" --data "$DATA" cert revoke "$(openssl x509 -in revoked.crt -noout -serial | cut -d= -f2 | tr A-F a-f)"
		openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout foreign.key -out foreign.crt -days 30 -subj /CN=` + id + ` -addext extendedKeyUsage=clientAuth
	`)
	by := func(name string) []string {
		return []string{"--cert", s.path(name + ".crt"), "--key", s.path(name + ".key")}
	}
	good := []string{"-X", "POST", "-H", "Content-Type: application/senml+json", "-d", senml, s.url("/http/messages")}
	for _, test := range []struct {
		name string
		args []string
		want int
	}{
		{"nothing", nil, http.StatusUnauthorized},
		{"a wrong key", []string{"-H", "Authorization: Thing " + mine + "x"}, http.StatusUnauthorized},
		{"an internal key as an external one", []string{"-H", "Authorization: External " + mine}, http.StatusUnauthorized},
		{"two keys", []string{"-H", "Authorization: Thing " + mine, "-H", "Authorization: Thing " + other}, http.StatusBadRequest},
		{"an administrator", []string{"-H", "Authorization: Bearer " + s.key}, http.StatusForbidden},
		{"text", []string{"-H", "Authorization: Thing " + mine, "-H", "Content-Type: text/plain"}, http.StatusUnsupportedMediaType},
		{"a revoked certificate", by("revoked"), http.StatusUnauthorized},
		{"a foreign certificate in the thing's name", by("foreign"), http.StatusUnauthorized},
		{"a foreign certificate and a good key", append(by("foreign"), "-H", "Authorization: Thing "+mine), http.StatusUnauthorized},
		{"a certificate and another thing's key", append(by("mine"), "-H", "Authorization: Thing "+other), http.StatusUnauthorized},
		{"a certificate and a wrong key", append(by("mine"), "-H", "Authorization: Thing "+mine+"x"), http.StatusUnauthorized},
		{"another thing's id and a key", []string{"-u", otherID + ":" + mine}, http.StatusUnauthorized},
	} {
		args := append([]string{}, good...)
		if test.name == "text" {
			args = []string{"-X", "POST", "-d", senml, s.url("/http/messages")}
		}
		if body, code := s.curl(append(args, test.args...)...); code != test.want {
			t.Errorf("%s: %d %s, want %d", test.name, code, body, test.want)
		}
	}
	s.eventually("the certificate to expire", func() bool {
		return s.run("openssl", "x509", "-in", s.path("expired.crt"), "-noout", "-checkend", "0").code != 0
	})
	if body, code := s.curl(append(append([]string{}, good...), by("expired")...)...); code != http.StatusUnauthorized || !strings.Contains(body, "the certificate expired") {
		t.Errorf("an expired certificate: %d %s, want 401", code, body)
	}
	s.cli("device", "suspend", id)
	for _, args := range [][]string{by("mine"), {"-u", id + ":" + mine}} {
		if body, code := s.curl(append(append([]string{}, good...), args...)...); code != http.StatusUnauthorized {
			t.Errorf("suspended: %d %s, want 401", code, body)
		}
	}
	if body, code := s.curl(append(good, "-H", "Authorization: Thing "+mine)...); code != http.StatusUnauthorized {
		t.Errorf("suspended: %d %s, want 401", code, body)
	}
	for name, text := range k.all() {
		if n := strings.Count(text, "some-base-name"); n > 0 {
			t.Errorf("%s got %s, want nothing", name, text)
		}
	}
}

// What was accepted survives a crash, and waits for a sink that is away.
func TestMessagesWaitForASinkThroughACrash(t *testing.T) {
	dir := t.TempDir()
	away := filepath.Join(dir, "away")
	write(t, filepath.Join(dir, "keystead.yaml"), []byte("messages: {sinks: [{name: log, type: file, path: "+filepath.Join(away, "messages.jsonl")+"}]}\n"))
	write(t, away, nil) // a file where the directory should be
	s := prepare(t)
	s.args = append(s.args, "--config", filepath.Join(dir, "keystead.yaml"))
	s.start()
	body, code := s.curl("-H", "Authorization: Bearer "+s.key, "-H", "Content-Type: application/json", s.url("/things"), "-d", `{"name":"a","type":"sensor"}`)
	var made struct{ Things []struct{ ID, Key string } }
	if code != http.StatusCreated || json.Unmarshal([]byte(body), &made) != nil {
		t.Fatalf("create: %d %s", code, body)
	}
	for range 5 {
		if body, code := s.curl("-X", "POST", "-H", "Content-Type: application/senml+json", "-d", senml, "-H", "Authorization: Thing "+made.Things[0].Key, s.url("/http/messages")); code != http.StatusAccepted {
			t.Fatalf("%d %s", code, body)
		}
	}
	s.kill()
	if err := os.Remove(away); err != nil {
		t.Fatal(err)
	}
	s.start()
	s.eventually("the five messages", func() bool {
		b, _ := os.ReadFile(filepath.Join(away, "messages.jsonl"))
		return bytes.Count(b, []byte("\n")) == 5
	})
}
