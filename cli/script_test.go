package cli_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
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
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"go.uber.org/goleak"

	"keystead/cli"
)

func TestMain(m *testing.M) {
	testscript.Main(leakless{m}, map[string]func(){
		"keystead": func() {
			os.Exit(cli.Main(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr, os.Getenv))
		},
	})
}

// leakless are tests that fail if they leave goroutines behind.
type leakless struct{ *testing.M }

// Run implements [testscript.TestingM].
func (l leakless) Run() int {
	code := l.M.Run()
	if err := goleak.Find(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return code
}

// TestScripts runs testdata/script: commands with what they print and how they
// end. A script that says "serve" has a server of its own, in $WORK/data, where
// commands look by themselves.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:                 "testdata/script",
		RequireExplicitExec: true,
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"exits":   exits,
			"serve":   serve,
			"capture": capture,
			"find":    find,
			"ask":     ask,
		},
	})
}

// exits runs a command that has to end with the exit code that comes first:
// "exits 4 keystead device list".
func exits(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 2 {
		ts.Fatalf("usage: exits CODE COMMAND...")
	}
	err, code := ts.Exec(args[1], args[2:]...), 0
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		code = exit.ExitCode()
	} else if err != nil {
		ts.Fatalf("%v", err)
	}
	if got := strconv.Itoa(code); got != args[0] {
		ts.Fatalf("got exit code %s, want %s", got, args[0])
	}
}

// capture puts the words of the last line a command printed, separated by
// commas, into variables: "capture ID _ DEVICE".
func capture(ts *testscript.TestScript, neg bool, args []string) {
	lines := strings.Split(strings.TrimSpace(ts.ReadFile("stdout")), "\n")
	words := strings.Split(lines[len(lines)-1], ",")
	if neg || len(words) < len(args) {
		ts.Fatalf("the last line has %d words, not %d: %s", len(words), len(args), lines[len(lines)-1])
	}
	for i, name := range args {
		ts.Setenv(name, words[i])
	}
}

// serve runs a server, in this process, as long as the script; what follows are
// arguments of keystead serve.
func serve(ts *testscript.TestScript, _ bool, args []string) {
	data := ts.MkAbs("data")
	args = append([]string{
		"serve", "--data", data, "--set", "https.listen=127.0.0.1:0", "--set", "http.listen=127.0.0.1:0",
		"--set", "ops.listen=127.0.0.1:0", "--set", "coap.udp=127.0.0.1:0", "--set", "coap.tcp=127.0.0.1:0",
	}, args...)
	ctx, cancel := context.WithCancel(context.Background())
	var out, logs bytes.Buffer
	done := make(chan int, 1)
	go func() {
		done <- cli.Main(ctx, args, strings.NewReader(""), &out, &logs, func(string) string { return "" })
	}()
	ts.Defer(func() {
		cancel()
		if code := <-done; code != 0 {
			_, _ = io.Copy(os.Stderr, &logs)
			ts.Fatalf("the server ended with %d", code)
		}
	})
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(5 * time.Millisecond) {
		if _, err := os.Stat(filepath.Join(data, "endpoints.json")); err == nil {
			return
		}
		if time.Now().After(deadline) {
			ts.Fatalf("the server is not ready after a minute")
		}
	}
}

// find puts what the first group of an expression matches in what a command printed into a
// variable: "find NAME EXPRESSION".
func find(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: find NAME EXPRESSION")
	}
	found := regexp.MustCompile(args[1]).FindStringSubmatch(ts.ReadFile("stdout"))
	if len(found) != 2 {
		ts.Fatalf("no %s in %s", args[1], ts.ReadFile("stdout"))
	}
	ts.Setenv(args[0], found[1])
}

// ask has the server of the script asked to let in a device with a MAC address, whose key
// follows from it, and expects a status: "ask 401 aa".
func ask(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 2 {
		ts.Fatalf("usage: ask STATUS MAC")
	}
	seed := sha256.Sum256([]byte(args[1]))
	key := ed25519.NewKeyFromSeed(seed[:])
	der, err := x509.MarshalPKIXPublicKey(key.Public())
	ts.Check(err)
	body, err := json.Marshal(map[string]string{
		"id_data": `{"mac":"` + args[1] + `"}`, "pubkey": string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})),
	})
	ts.Check(err)
	var at struct{ HTTPS string }
	ts.Check(json.Unmarshal([]byte(ts.ReadFile("data/endpoints.json")), &at))
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(ts.ReadFile("data/ca.pem")))
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequest(http.MethodPost, "https://"+at.HTTPS+"/api/devices/v1/authentication/auth_requests", bytes.NewReader(body))
	ts.Check(err)
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("X-MEN-Signature", base64.StdEncoding.EncodeToString(ed25519.Sign(key, body)))
	res, err := (&http.Client{Transport: transport, Timeout: time.Minute}).Do(req)
	ts.Check(err)
	defer res.Body.Close()
	if strconv.Itoa(res.StatusCode) != args[0] {
		ts.Fatalf("got status %d, want %s", res.StatusCode, args[0])
	}
}
