package argon_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/argon2"

	"keystead/argon"
)

// newPool returns a pool of processes of this program, and what it logs.
func newPool(t *testing.T, idle time.Duration, command ...string) (*argon.Pool, *bytes.Buffer) {
	t.Helper()
	if command == nil {
		command = []string{os.Args[0], "serve"}
	}
	var log bytes.Buffer
	p := &argon.Pool{Command: command, Idle: idle, Log: slog.New(slog.NewTextHandler(&log, nil))}
	t.Cleanup(func() { p.Close() })
	return p, &log
}

func hashes(t *testing.T, p *argon.Pool, password string) {
	t.Helper()
	got := p.IDKey([]byte(password), []byte("salt of tests"), 1, 64, 1, 32)
	if want := argon2.IDKey([]byte(password), []byte("salt of tests"), 1, 64, 1, 32); !bytes.Equal(got, want) {
		t.Errorf("IDKey(%q): got %x, want %x", password, got, want)
	}
}

// children are the processes this one has started.
func children(t *testing.T) []int {
	t.Helper()
	tasks, err := filepath.Glob("/proc/self/task/*/children")
	if err != nil {
		t.Fatal(err)
	}
	var pids []int
	for _, path := range tasks {
		b, _ := os.ReadFile(path) // a thread may have ended
		for f := range strings.FieldsSeq(string(b)) {
			pid, err := strconv.Atoi(f)
			if err != nil {
				t.Fatal(err)
			}
			pids = append(pids, pid)
		}
	}
	return pids
}

func TestHashIsThatOfTheLibrary(t *testing.T) {
	p, log := newPool(t, time.Minute)
	for _, password := range []string{"correct horse", "", "\x00\xff", strings.Repeat("long", 250)} {
		hashes(t, p, password)
	}
	if pids := children(t); len(pids) != 1 {
		t.Errorf("got %d processes for hashes one after another, want 1", len(pids))
	}
	if log.Len() > 0 {
		t.Errorf("logged: %s", log)
	}
}

func TestProcessGivesWay(t *testing.T) {
	p, _ := newPool(t, time.Minute)
	hashes(t, p, "correct horse")
	pids := children(t)
	if len(pids) != 1 {
		t.Fatalf("got %d processes, want 1", len(pids))
	}
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/stat", pids[0]))
	if err != nil || len(threads) == 0 {
		t.Fatalf("threads of the process: %v, %v", threads, err)
	}
	for _, path := range threads {
		if got, own := niceness(t, path), niceness(t, "/proc/self/stat"); got <= own {
			t.Errorf("%s: niceness %d, want more than this process's %d", path, got, own)
		}
	}
}

// niceness is the 19th field of a stat file.
func niceness(t *testing.T, path string) int {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	n, err := strconv.Atoi(strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))[16])
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestHashesAtOnceHaveAProcessEach(t *testing.T) {
	p, log := newPool(t, time.Minute)
	var all sync.WaitGroup
	for n := range 8 {
		all.Go(func() {
			for range 5 {
				hashes(t, p, "password "+strconv.Itoa(n))
			}
		})
	}
	all.Wait()
	if n := len(children(t)); n < 1 || n > 8 {
		t.Errorf("got %d processes for 8 hashes at once", n)
	}
	if log.Len() > 0 {
		t.Errorf("logged: %s", log)
	}
}

func TestDeadProcessIsReplaced(t *testing.T) {
	p, log := newPool(t, time.Minute)
	hashes(t, p, "correct horse")
	for _, pid := range children(t) {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	hashes(t, p, "correct horse") // here
	if !strings.Contains(log.String(), "own process") {
		t.Errorf("logged %q, want that it was hashed here", log)
	}
	if strings.Contains(log.String(), "horse") {
		t.Errorf("logged the password: %s", log)
	}
	log.Reset()
	hashes(t, p, "correct horse")
	if n := len(children(t)); n != 1 || log.Len() > 0 {
		t.Errorf("got %d processes, logged %q; want one and nothing", n, log)
	}
}

func TestWithoutAProcessItIsHashedHere(t *testing.T) {
	for _, command := range []string{"/nonexistent/keystead", "/bin/true"} {
		t.Run(command, func(t *testing.T) {
			p, log := newPool(t, time.Minute, command)
			hashes(t, p, "correct horse")
			if log.Len() == 0 {
				t.Error("nothing was logged")
			}
			if n := len(children(t)); n != 0 {
				t.Errorf("%d processes are left", n)
			}
		})
	}
}

func TestIdleProcessEnds(t *testing.T) {
	p, log := newPool(t, time.Millisecond)
	for range 20 { // between the end of one and the start of the next
		hashes(t, p, "correct horse")
		time.Sleep(time.Millisecond)
	}
	for deadline := time.Now().Add(20 * time.Second); len(children(t)) > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the process still runs")
		}
	}
	if log.Len() > 0 {
		t.Errorf("logged: %s", log)
	}
}

func TestCloseEndsProcesses(t *testing.T) {
	p, _ := newPool(t, time.Minute)
	hashes(t, p, "correct horse")
	if err := p.Close(); err != nil {
		t.Fatal(err)
	}
	if n := len(children(t)); n != 0 {
		t.Errorf("%d processes are left", n)
	}
}

func TestProcessSeesNothingOfTheEnvironment(t *testing.T) {
	t.Setenv("KEYSTEAD_MASTER_KEY", "a secret")
	p, _ := newPool(t, time.Minute)
	hashes(t, p, "correct horse")
	for _, pid := range children(t) {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(b, []byte("a secret")) {
			t.Errorf("the environment of a process has the master key: %q", b)
		}
	}
}
