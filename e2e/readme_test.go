//go:build e2e

package e2e_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// commands are the blocks of README that a reader is to type.
var commands = regexp.MustCompile("(?ms)^```sh\n(.*?)^```$")

// A newcomer who follows README word for word, from a fresh copy of the
// repository, with the ports it names, gets what it says. A network namespace
// keeps those ports from everybody else's.
func TestReadme(t *testing.T) {
	t.Parallel()
	namespaced(t, "--net")
	readme, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	var typed strings.Builder
	for _, block := range commands.FindAllStringSubmatch(string(readme), -1) {
		typed.WriteString(block[1])
	}
	dir := t.TempDir()
	copied := exec.Command("bash", "-euo", "pipefail", "-c", `git ls-files -z --cached --others --exclude-standard | xargs -0 sh -c 'for f; do [ ! -e "$f" ] || printf "%s\0" "$f"; done' sh | tar --null -T - -c | tar -x -C "$0"`, dir)
	copied.Dir = ".."
	if out, err := copied.CombinedOutput(); err != nil {
		t.Fatalf("copy: %v\n%s", err, out)
	}
	script := `
		ip link set lo up
		make run >run.out 2>run.log &
		server=$!
		until [ -e data/endpoints.json ]; do kill -0 $server || { cat run.out run.log; exit 1; }; sleep 0.05; done
		cat run.out
		` + typed.String() + `
		kill $server; wait $server || true
		cat run.log >&2`
	cmd := exec.Command("unshare", "--map-root-user", "--net", "--pid", "--fork", "--kill-child", "bash", "-euo", "pipefail", "-c", script)
	cmd.Dir = dir
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Fatalf("%v\n%s\n%s", err, out.String(), tail(errs.String(), 4000))
	}
	if t.Failed() {
		return
	}
	csv, err := os.ReadFile(filepath.Join(dir, "device.csv"))
	if err != nil {
		t.Fatal(err)
	}
	words := strings.Split(strings.TrimSpace(string(csv)), ",")
	device := words[len(words)-1]
	for what, want := range map[string]int{
		`"device":"` + device + `"`: 6, // two clients with the key; curl, DTLS, TLS, and curl again with the certificate
		`the device is suspended`:   1,
		`"kind":"psk"`:              2,
		`"kind":"certificate"`:      4,
		`"kind":"thing_key"`:        1,
		`"kind":"api_key"`:          1,
		"https://localhost:8443":    1,
	} {
		if got := strings.Count(out.String(), what); got < want {
			t.Errorf("got %s %d times, want %d", what, got, want)
		}
	}
	if strings.Contains(errs.String(), "internal error") || strings.Contains(errs.String(), "panic") {
		t.Errorf("the server's log has a fault")
	}
	if t.Failed() {
		t.Logf("%s\n%s", out.String(), tail(errs.String(), 4000))
	}
}

// namespaced skips the test where the kernel gives it no namespaces of its own,
// as in some containers.
func namespaced(t *testing.T, kinds ...string) {
	t.Helper()
	if out, err := exec.Command("unshare", append(append([]string{"--map-root-user"}, kinds...), "true")...).CombinedOutput(); err != nil {
		t.Skipf("no namespaces here: %s", out)
	}
}
