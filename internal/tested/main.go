// Command tested reads what "go test -json" writes and prints what a person
// wants to know: a line per package, everything of what failed, the slowest
// tests, and as the last line how many passed and failed. It ends with 1 if
// anything failed, or nothing ran.
//
// With -again, a few tests that failed are run once more, each alone: what
// passes then is named as unsteady, since a machine that is busy with all the
// others can make real clients give up, and what fails again has failed.
package main

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"time"
)

// event is one line of "go test -json"; see go doc test2json.
type event struct {
	Action     string
	Package    string
	ImportPath string // of output and failures of the compiler
	Test       string
	Elapsed    float64
	Output     string
}

type name struct{ pkg, test string }

// top is the test that a subtest is of: what -run can name.
func (n name) top() name {
	n.test, _, _ = strings.Cut(n.test, "/")
	return n
}

type took struct {
	name
	seconds float64
}

// summary is what is known so far.
type summary struct {
	out                     io.Writer
	passed, failed, skipped int
	failures                map[name]int // by test, its subtests counted
	broken                  int          // packages that failed with no test failing in them
	said                    map[name][]string
	slow                    []took
	figures                 []figure
}

// figure is what a test reports of what it tried, and what came of it.
type figure struct {
	name
	text string
}

const (
	listed  = 10 // of the slowest tests are named
	forgive = 3  // tests are run again at most: where more fail, it is not chance
)

func main() {
	table := flag.Bool("faults", false, "end with a table of what the tests say they tried, and whether anything was lost")
	again := flag.Bool("again", false, "run a few failed tests once more, alone")
	flag.Parse()
	s := newSummary(os.Stdout)
	if err := s.read(os.Stdin); err != nil {
		fmt.Fprintf(os.Stderr, "tested: %v\n", err)
		os.Exit(1)
	}
	if *again {
		s.again(run)
	}
	if *table {
		s.table()
	}
	os.Exit(s.end())
}

func newSummary(out io.Writer) *summary {
	return &summary{out: out, failures: map[name]int{}, said: map[name][]string{}}
}

// run runs one test alone and reports whether it passed: that it was found and ran, too.
func run(n name, out io.Writer) bool {
	cmd := exec.CommandContext(context.Background(), "go", "test", "-v", "-count=1", "-tags", "e2e,pkcs11", "-timeout", "5m", "-run", "^"+regexp.QuoteMeta(n.test)+"$", n.pkg) //nolint:gosec // G204: what go test itself has named
	cmd.Env = append(os.Environ(), "CGO_ENABLED=1")                                                                                                                            // as the tests of keys in tokens need it
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = io.MultiWriter(out, &said), out
	return cmd.Run() == nil && strings.Contains(said.String(), "--- PASS: "+n.test)
}

// again gives the tests that failed a second chance.
func (s *summary) again(run func(name, io.Writer) bool) {
	if len(s.failures) > forgive {
		return
	}
	for _, n := range slices.SortedFunc(maps.Keys(s.failures), func(a, b name) int {
		return cmp.Or(strings.Compare(a.pkg, b.pkg), strings.Compare(a.test, b.test))
	}) {
		fmt.Fprintf(s.out, "again, alone: %s %s\n", n.pkg, n.test)
		if !run(n, s.out) {
			continue
		}
		fmt.Fprintf(s.out, "unsteady: %s %s failed among the others and passed alone\n", n.pkg, n.test)
		s.passed += s.failures[n]
		s.failed -= s.failures[n]
	}
}

func (s *summary) read(r io.Reader) error {
	lines := bufio.NewReader(r)
	for {
		line, err := lines.ReadBytes('\n')
		var e event
		if len(line) > 0 && json.Unmarshal(line, &e) == nil {
			s.add(e)
		} else if len(line) > 0 { // go itself, such as about a module
			fmt.Fprint(s.out, string(line))
		}
		if err == io.EOF {
			return nil
		} else if err != nil {
			return err
		}
	}
}

func (s *summary) add(e event) {
	n := name{cmp.Or(e.Package, e.ImportPath), e.Test}
	switch e.Action {
	case "output", "build-output":
		s.said[n] = append(s.said[n], e.Output)
		// What a test reports as a figure is worth seeing when it passes, too.
		if _, text, ok := strings.Cut(e.Output, "figure: "); ok {
			fmt.Fprint(s.out, e.Output)
			s.figures = append(s.figures, figure{n, strings.TrimSpace(text)})
		}
	case "pass", "fail", "skip":
		if e.Test == "" {
			s.endPackage(n, e)
		} else {
			s.endTest(n, e)
		}
	}
}

func (s *summary) endTest(n name, e event) {
	switch e.Action {
	case "pass":
		s.passed++
	case "skip":
		s.skipped++
		fmt.Fprintf(s.out, "skipped %s %s: %s\n", n.pkg, n.test, strings.TrimSpace(last(s.said[n])))
	case "fail":
		s.failed++
		s.failures[n.top()]++
		fmt.Fprint(s.out, strings.Join(s.said[n], ""))
	}
	delete(s.said, n)
	if !strings.Contains(n.test, "/") {
		s.slow = append(s.slow, took{n, e.Elapsed})
	}
}

// last is the line before the one that says how the test ended.
func last(said []string) string {
	if len(said) < 2 {
		return ""
	}
	return said[len(said)-2]
}

func (s *summary) endPackage(n name, e event) {
	if e.Action == "fail" {
		if !s.anyFailedIn(n.pkg) {
			s.broken++
		}
		for other, said := range s.said { // of tests that a crash kept from ending, and of the compiler
			if other.pkg == n.pkg || strings.HasPrefix(other.pkg, n.pkg+" ") {
				fmt.Fprint(s.out, strings.Join(said, ""))
			}
		}
	}
	if e.Action != "skip" { // a package without tests
		fmt.Fprintf(s.out, "%-4s %6.1fs %s\n", e.Action, e.Elapsed, n.pkg)
	}
	for other := range s.said {
		if other.pkg == n.pkg {
			delete(s.said, other)
		}
	}
}

// anyFailedIn tells a package in which a test failed from one that did not
// build, or crashed outside a test.
func (s *summary) anyFailedIn(pkg string) bool {
	for n := range s.failures {
		if n.pkg == pkg {
			return true
		}
	}
	return false
}

// table prints a line for each figure. A test that fails has lost something, or may
// have: what it said stands above.
func (s *summary) table() {
	fmt.Fprintf(s.out, "\n%-44s %-8s %s\n", "tried", "lost", "what was done and survived")
	for _, f := range s.figures {
		lost := "nothing"
		if s.failures[f.top()] > 0 {
			lost = "FAILED"
		}
		fmt.Fprintf(s.out, "%-44s %-8s %s\n", strings.TrimPrefix(f.top().test, "Test"), lost, f.text)
	}
	for _, n := range slices.SortedFunc(maps.Keys(s.failures), func(a, b name) int { return strings.Compare(a.test, b.test) }) {
		fmt.Fprintf(s.out, "%-44s %-8s what it said stands above\n", strings.TrimPrefix(n.test, "Test"), "FAILED")
	}
	fmt.Fprintln(s.out)
}

func (s *summary) end() int {
	slices.SortFunc(s.slow, func(a, b took) int { return cmp.Compare(b.seconds, a.seconds) })
	fmt.Fprintln(s.out, "slowest:")
	for _, t := range s.slow[:min(listed, len(s.slow))] {
		fmt.Fprintf(s.out, "  %8s %s %s\n", time.Duration(t.seconds*float64(time.Second)).Round(100*time.Millisecond), t.pkg, t.test)
	}
	s.failed += s.broken
	if s.skipped > 0 {
		fmt.Fprintf(s.out, "%d skipped\n", s.skipped)
	}
	fmt.Fprintf(s.out, "%d passed, %d failed\n", s.passed, s.failed)
	if s.failed > 0 || s.passed == 0 {
		return 1
	}
	return 0
}
