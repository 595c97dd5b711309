// Command tested reads what "go test -json" writes and prints what a person
// wants to know: a line per package, everything of what failed, the slowest
// tests, and as the last line how many passed and failed. It ends with 1 if
// anything failed, or nothing ran.
package main

import (
	"bufio"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"os"
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

type took struct {
	name
	seconds float64
}

// summary is what is known so far.
type summary struct {
	out                     io.Writer
	passed, failed, skipped int
	packages                int // that failed
	said                    map[name][]string
	slow                    []took
}

// listed is how many of the slowest tests are named.
const listed = 10

func main() {
	s := &summary{out: os.Stdout, said: map[name][]string{}}
	if err := s.read(os.Stdin); err != nil {
		fmt.Fprintf(os.Stderr, "tested: %v\n", err)
		os.Exit(1)
	}
	os.Exit(s.end())
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
		if strings.Contains(e.Output, "figure: ") {
			fmt.Fprint(s.out, e.Output)
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
		s.packages++
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

func (s *summary) end() int {
	slices.SortFunc(s.slow, func(a, b took) int { return cmp.Compare(b.seconds, a.seconds) })
	fmt.Fprintln(s.out, "slowest:")
	for _, t := range s.slow[:min(listed, len(s.slow))] {
		fmt.Fprintf(s.out, "  %8s %s %s\n", time.Duration(t.seconds*float64(time.Second)).Round(100*time.Millisecond), t.pkg, t.test)
	}
	if s.packages > 0 && s.failed == 0 { // it did not build, or crashed outside a test
		s.failed = s.packages
	}
	if s.skipped > 0 {
		fmt.Fprintf(s.out, "%d skipped\n", s.skipped)
	}
	fmt.Fprintf(s.out, "%d passed, %d failed\n", s.passed, s.failed)
	if s.failed > 0 || s.passed == 0 {
		return 1
	}
	return 0
}
