//go:build e2e

package e2e_test

import (
	"fmt"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"
)

// Passwords are hashed in a process of their own, which gives way to the server. Where
// it is lost the server does it itself.
func TestPasswordsAreHashedElsewhere(t *testing.T) {
	t.Parallel()
	s := start(t, fast...)
	s.excuse("hashed in the server's own process")
	c := s.https()
	s.must2xx(c, http.MethodPost, "/users", s.key, fmt.Sprintf(`{"email":"ann@example.org","password":%q}`, firstPassword), nil)
	s.logIn(c, "ann@example.org", firstPassword)
	pids := s.children()
	if len(pids) == 0 {
		t.Fatal("no process hashes passwords")
	}
	for _, pid := range pids {
		if line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid)); err != nil || !strings.HasSuffix(string(line), "\x00hash\x00") {
			t.Errorf("the process runs %q, %v", line, err)
		}
		its, err := syscall.Getpriority(syscall.PRIO_PROCESS, pid)
		own, err2 := syscall.Getpriority(syscall.PRIO_PROCESS, s.cmd.Process.Pid)
		if err != nil || err2 != nil || its >= own { // the system call counts backwards
			t.Errorf("the process has the priority %d, the server %d; want less (%v, %v)", its, own, err, err2)
		}
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	s.logIn(c, "ann@example.org", firstPassword)
	if code, _ := s.exchange(c, http.MethodPost, "/tokens", "", "", fmt.Sprintf(`{"email":"ann@example.org","password":%q}`, nextPassword)); code != http.StatusUnauthorized {
		t.Errorf("a wrong password: %d, want 401", code)
	}
	pids = s.children()
	s.stop()
	for _, pid := range pids {
		if syscall.Kill(pid, 0) == nil {
			t.Errorf("process %d outlives the server", pid)
		}
	}
}
