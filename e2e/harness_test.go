//go:build e2e

package e2e_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"keystead/client"
)

// bin is the program under test: made by TestMain, or the one KEYSTEAD_BIN names.
var bin string

// needed are the programs of other people that the tests drive.
var needed = []string{"chromedriver", "chromium", "coap-client-gnutls", "coap-client-openssl", "curl", "ip", "jq", "mender", "mosquitto", "mosquitto_sub", "nginx", "openssl", "pki", "strace", "unshare", "xmllint"}

func TestMain(m *testing.M) {
	var missing []string
	for _, name := range needed {
		if _, err := exec.LookPath(name); err != nil {
			missing = append(missing, name)
		}
	}
	if missing != nil {
		fmt.Fprintf(os.Stderr, "e2e: not found: %s; make test, as root, installs them\n", strings.Join(missing, ", "))
		os.Exit(1)
	}
	code, err := built(m.Run)
	if err != nil {
		fmt.Fprintf(os.Stderr, "e2e: %v\n", err)
		code = 1
	}
	os.Exit(code)
}

// built runs the tests with bin built.
func built(run func() int) (int, error) {
	if bin = os.Getenv("KEYSTEAD_BIN"); bin != "" {
		return run(), nil
	}
	dir, err := os.MkdirTemp("", "keystead-e2e-")
	if err != nil {
		return 1, err
	}
	defer os.RemoveAll(dir)
	bin = filepath.Join(dir, "keystead")
	build := exec.Command("go", "build", "-buildvcs=false", "-trimpath", "-o", bin, "keystead")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return 1, fmt.Errorf("build: %w\n%s", err, out)
	}
	return run(), nil
}

// patience is how long a test waits for what has to happen; it is never how
// fast it has to happen.
const patience = 60 * time.Second

// server is one data directory, and the process that serves it.
type server struct {
	t    *testing.T
	dir  string // of the test: files of clients, and data below it
	data string
	args []string

	at  addresses
	key string // the administrator's

	asAdmin *client.Client

	cmd    *exec.Cmd
	exited chan struct{}
	logs   *buffer
	out    *buffer

	mu      sync.Mutex
	secrets [][]byte
	excuses []*regexp.Regexp
}

// addresses is <data>/endpoints.json.
type addresses struct {
	HTTPS   string `json:"https"`
	HTTP    string `json:"http"`
	CoAPUDP string `json:"coap_udp"`
	CoAPTCP string `json:"coap_tcp"`
	LwM2M   string `json:"lwm2m_udp"`
	Ops     string `json:"ops"`
}

// start makes an empty directory and starts a server in it, on free ports of
// loopback; set is more configuration, "key=value".
func start(t *testing.T, set ...string) *server {
	t.Helper()
	s := prepare(t, set...)
	s.start()
	return s
}

// prepare is start without starting.
func prepare(t *testing.T, set ...string) *server {
	t.Helper()
	dir := t.TempDir()
	s := &server{t: t, dir: dir, data: filepath.Join(dir, "data"), logs: &buffer{}, out: &buffer{}}
	for _, kv := range append([]string{
		"https.listen=127.0.0.1:0", "http.listen=127.0.0.1:0", "ops.listen=127.0.0.1:0",
		"coap.udp=127.0.0.1:0", "coap.tcp=127.0.0.1:0",
	}, set...) {
		s.args = append(s.args, "--set", kv)
	}
	t.Cleanup(s.end)
	return s
}

// fast is configuration for tests that load the server from one address.
var fast = []string{
	"limits.per_address.per_second=0", "limits.per_credential.per_second=0", "limits.failures.per_second=0",
	"limits.connections_per_address=10000",
}

// start starts the server and waits until it is ready.
func (s *server) start() {
	s.t.Helper()
	s.launch(bin, append([]string{"serve", "--data", s.data}, s.args...)...)
	s.ready()
}

// launch starts a command that is, or becomes, the server.
func (s *server) launch(name string, args ...string) {
	s.t.Helper()
	_ = os.Remove(filepath.Join(s.data, "endpoints.json")) // of one that was killed
	cmd := exec.Command(name, args...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = s.dir, s.out, s.logs
	cmd.Env = append(os.Environ(), "GOTRACEBACK=all")
	if err := cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	exited := make(chan struct{})
	go func() { _ = cmd.Wait(); close(exited) }() // ended by stop, kill or end
	s.cmd, s.exited = cmd, exited
}

// ready waits until the server says where it is, and answers there.
func (s *server) ready() {
	s.t.Helper()
	file := filepath.Join(s.data, "endpoints.json")
	s.eventually("the server to be ready", func() bool {
		select {
		case <-s.exited:
			s.t.Fatalf("the server ended at once: %v\n%s", s.cmd.ProcessState, s.logs)
		default:
		}
		b, err := os.ReadFile(file)
		return err == nil && json.Unmarshal(b, &s.at) == nil && s.metricsAnswer()
	})
	var admin struct {
		URL    string `json:"url"`
		APIKey string `json:"api_key"`
		Access struct {
			Key    string `json:"key"`
			Secret string `json:"secret"`
		} `json:"access_key"`
	}
	b, err := os.ReadFile(filepath.Join(s.data, "admin.json"))
	if err == nil {
		err = json.Unmarshal(b, &admin)
	}
	if err != nil {
		s.t.Fatalf("admin.json: %v", err)
	}
	s.secret(admin.APIKey)
	s.secret(admin.Access.Secret)
	s.key, s.asAdmin = admin.APIKey, nil
}

func (s *server) metricsAnswer() bool {
	res, err := http.Get("http://" + s.at.Ops + "/readyz")
	if err != nil {
		return false
	}
	res.Body.Close()
	return res.StatusCode == http.StatusOK
}

// admin returns a client of the administrator, in the default organisation; the
// same one as long as the server runs.
func (s *server) admin() *client.Client {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.asAdmin == nil {
		s.asAdmin = s.clientOf(s.key, "")
	}
	return s.asAdmin
}

// clientOf returns a client with an API key, and the organisation to act in, ""
// for the key's own.
func (s *server) clientOf(key, org string) *client.Client {
	s.t.Helper()
	c, err := client.New(client.Config{URL: "https://" + s.at.HTTPS, CAFile: s.ca(), APIKey: key, Org: org})
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(c.Close)
	return c
}

// ca is the file with the CA certificates that clients trust.
func (s *server) ca() string { return filepath.Join(s.data, "ca.pem") }

// url is where path is on the HTTPS listener.
func (s *server) url(path string) string { return "https://" + s.at.HTTPS + path }

// coaps is where path is on the DTLS listener.
func (s *server) coaps(path string) string { return "coaps://" + s.at.CoAPUDP + path }

// path is a file of the test's directory.
func (s *server) path(name string) string { return filepath.Join(s.dir, name) }

// stop ends the server as a supervisor does, and waits until it has.
func (s *server) stop() {
	s.t.Helper()
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		s.t.Fatalf("stop: %v\n%s", err, s.logs)
	}
	if code := s.exit(); code != 0 {
		s.t.Fatalf("got exit code %d from SIGTERM, want 0\n%s", code, s.logs)
	}
}

// kill ends the server as a power switch does.
func (s *server) kill() {
	s.t.Helper()
	_ = s.cmd.Process.Kill() // it may just have ended by itself
	s.exit()
}

// exit waits until the server has ended and returns its exit code, -1 for a signal.
func (s *server) exit() int {
	s.t.Helper()
	select {
	case <-s.exited:
		return s.cmd.ProcessState.ExitCode()
	case <-time.After(patience):
		_ = s.cmd.Process.Kill()
		s.t.Fatalf("the server did not end\n%s", s.logs)
		return 0
	}
}

// end stops the server, if it runs, and looks at what it has written.
func (s *server) end() {
	if s.cmd == nil {
		return
	}
	select {
	case <-s.exited:
	default:
		s.stop()
	}
	s.scan("its log", []byte(s.logs.String()))
	s.scan("its output", []byte(s.out.String()))
	s.mu.Lock()
	defer s.mu.Unlock()
	for line := range strings.Lines(s.logs.String()) {
		if !strings.Contains(line, "panic") && !strings.Contains(line, "internal error") && !strings.Contains(line, "goroutine ") {
			continue
		}
		excused := false
		for _, e := range s.excuses {
			excused = excused || e.MatchString(line)
		}
		if !excused {
			s.t.Errorf("the server's log has: %s", line)
		}
	}
	if s.t.Failed() {
		s.t.Logf("the server's log, its end:\n%s", tail(s.logs.String(), 6000))
	}
}

// secret has the log searched for value when the test ends.
func (s *server) secret(value string) {
	if value != "" {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.secrets = append(s.secrets, []byte(value))
	}
}

// excuse has lines of the log that match pattern not count as faults.
func (s *server) excuse(pattern string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.excuses = append(s.excuses, regexp.MustCompile(pattern))
}

// scan fails the test for each secret that is in b.
func (s *server) scan(what string, b []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, secret := range s.secrets {
		if bytes.Contains(b, secret) {
			s.t.Errorf("%s has the secret %.12s…", what, secret)
		}
	}
}

// eventually waits until ok.
func (s *server) eventually(what string, ok func() bool) {
	s.t.Helper()
	deadline := time.Now().Add(patience)
	for pause := time.Millisecond; !ok(); pause = min(2*pause, 50*time.Millisecond) {
		if time.Now().After(deadline) {
			s.t.Fatalf("waited in vain for %s\n%s", what, tail(s.logs.String(), 4000))
		}
		time.Sleep(pause)
	}
}

// result is what a program printed, and how it ended.
type result struct {
	out  string // standard output
	err  string // standard error
	code int
}

func (r result) all() string { return r.out + r.err }

// run runs a program in the test's directory, with a bound on its time.
func (s *server) run(name string, args ...string) result {
	s.t.Helper()
	return s.runWith(nil, name, args...)
}

// runWith is run with standard input.
func (s *server) runWith(stdin io.Reader, name string, args ...string) result {
	s.t.Helper()
	ctx, cancel := context.WithTimeout(s.t.Context(), 2*patience)
	defer cancel()
	var out, errs bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir, cmd.Stdin, cmd.Stdout, cmd.Stderr = s.dir, stdin, &out, &errs
	cmd.WaitDelay = time.Second
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); err != nil && !errors.As(err, &exit) {
		s.t.Fatalf("%s: %v", name, err)
	}
	return result{out.String(), errs.String(), cmd.ProcessState.ExitCode()}
}

// must is run of a program that has to end well; it returns what it printed.
func (s *server) must(name string, args ...string) string {
	s.t.Helper()
	r := s.run(name, args...)
	if r.code != 0 {
		s.t.Fatalf("%s %s: exit code %d\n%s%s", name, strings.Join(args, " "), r.code, r.out, r.err)
	}
	return r.out
}

// sh runs a script of bash that has to end well, in the test's directory, with
// $URL, $CA, $COAP, $DATA and $KEYSTEAD set.
func (s *server) sh(script string) string {
	s.t.Helper()
	return s.must("env", "URL=https://"+s.at.HTTPS, "HTTP=http://"+s.at.HTTP, "COAP="+s.at.CoAPUDP, "COAPTCP="+s.at.CoAPTCP,
		"CA="+s.ca(), "DATA="+s.data, "KEYSTEAD="+bin, "bash", "-euo", "pipefail", "-c", script)
}

// cli runs a command of the command line that has to succeed.
func (s *server) cli(args ...string) string {
	s.t.Helper()
	return s.must(bin, append([]string{"--data", s.data}, args...)...)
}

// cliFails runs a command of the command line that has to end with code.
func (s *server) cliFails(code int, args ...string) result {
	s.t.Helper()
	r := s.run(bin, append([]string{"--data", s.data}, args...)...)
	if r.code != code {
		s.t.Fatalf("keystead %s: got exit code %d, want %d\n%s", strings.Join(args, " "), r.code, code, r.all())
	}
	return r
}

// curl runs curl, which trusts the server's CA and prints the answer's body;
// code is the HTTP status, 0 if there was no answer.
func (s *server) curl(args ...string) (body string, code int) {
	s.t.Helper()
	r := s.run("curl", append([]string{"-sS", "--cacert", s.ca(), "--max-time", "30", "-w", "\n%{http_code}"}, args...)...)
	i := strings.LastIndexByte(r.out, '\n')
	if i < 0 {
		return r.all(), 0
	}
	code, err := strconv.Atoi(r.out[i+1:])
	if err != nil {
		s.t.Fatalf("curl printed %q", r.out)
	}
	return r.out[:i] + r.err, code
}

// coapClients are libcoap's client over each TLS library it is made for.
var coapClients = []string{"coap-client-openssl", "coap-client-gnutls"}

// coap runs one of libcoap's clients for a request that is answered, or not,
// within a few seconds.
func (s *server) coap(name string, args ...string) result {
	s.t.Helper()
	return s.run(name, append([]string{"-B", "5"}, args...)...)
}

// who is the answer of whoami.
type who struct {
	Device       string `json:"device"`
	User         string `json:"user"`
	Organisation string `json:"organisation"`
	Name         string `json:"name"`
	Credential   struct {
		Kind string `json:"kind"`
		ID   string `json:"id"`
	} `json:"credential"`
}

// whoami reads an answer of whoami from what a client printed.
func (s *server) whoami(printed string) who {
	s.t.Helper()
	var w who
	if i, j := strings.IndexByte(printed, '{'), strings.LastIndexByte(printed, '}'); i < 0 || j < i {
		s.t.Fatalf("got %q, want an answer of whoami", printed)
	} else if err := json.Unmarshal([]byte(printed[i:j+1]), &w); err != nil {
		s.t.Fatalf("got %q, want an answer of whoami: %v", printed, err)
	}
	return w
}

// decode reads JSON.
func (s *server) decode(text string, out any) {
	s.t.Helper()
	if err := json.Unmarshal([]byte(text), out); err != nil {
		s.t.Fatalf("%v: %s", err, text)
	}
}

// status reads a number of /proc/PID/status: VmRSS in KiB, Threads.
func (s *server) status(key string) int {
	s.t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid))
	if err != nil {
		s.t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, key+":"); ok {
			n, err := strconv.Atoi(strings.Fields(rest)[0])
			if err != nil {
				s.t.Fatal(err)
			}
			return n
		}
	}
	s.t.Fatalf("/proc has no %s", key)
	return 0
}

// rss is the resident memory of the server, in bytes.
func (s *server) rss() int { s.t.Helper(); return s.status("VmRSS") * 1024 }

// children are the processes the server has started.
func (s *server) children() (pids []int) {
	s.t.Helper()
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", s.cmd.Process.Pid))
	if err != nil {
		s.t.Fatal(err)
	}
	for _, path := range threads {
		b, _ := os.ReadFile(path) // a thread may have ended
		for word := range strings.FieldsSeq(string(b)) {
			pid, err := strconv.Atoi(word)
			if err != nil {
				s.t.Fatal(err)
			}
			pids = append(pids, pid)
		}
	}
	return pids
}

// metric reads a value of /metrics; name has the labels, if any, as they stand there.
func (s *server) metric(name string) float64 {
	s.t.Helper()
	res, err := http.Get("http://" + s.at.Ops + "/metrics")
	if err != nil {
		s.t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, name+" "); ok {
			v, err := strconv.ParseFloat(strings.TrimSpace(rest), 64)
			if err != nil {
				s.t.Fatal(err)
			}
			return v
		}
	}
	s.t.Fatalf("/metrics has no %s", name)
	return 0
}

// goroutines is how many goroutines the server has.
func (s *server) goroutines() int { s.t.Helper(); return int(s.metric("go_goroutines")) }

// figure prints a number a test has found, whether it passes or not.
func figure(t *testing.T, format string, args ...any) {
	t.Helper()
	t.Logf("figure: "+format, args...)
}

// key is a pre-shared key and the device it belongs to.
type key struct{ Identity, Secret, Device string }

// textPSK makes a pre-shared key that can be typed, of a device by its id, or of
// a new one.
func (s *server) textPSK(device ...string) key {
	s.t.Helper()
	made, err := s.admin().CreatePSK(s.t.Context(), client.NewPSK{SecretFormat: "text", Device: strings.Join(device, "")})
	if err != nil {
		s.t.Fatalf("create a psk: %v", err)
	}
	k := key{made.Identity, made.Secret, made.Device}
	s.secret(k.Secret)
	s.secret(k.text(s.t))
	return k
}

// text is the secret as it is typed.
func (k key) text(t *testing.T) string {
	t.Helper()
	b, err := hex.DecodeString(k.Secret)
	if err != nil {
		t.Fatalf("the secret is not in hexadecimal: %v", err)
	}
	return string(b)
}

// buffer is a bytes.Buffer that a process may write while a test reads it.
type buffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *buffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *buffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

func tail(s string, n int) string {
	if len(s) <= n {
		return s
	}
	return "…" + s[len(s)-n:]
}
