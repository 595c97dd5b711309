package main

import (
	"bytes"
	"io"
	"strings"
	"testing"
)

const (
	passes   = `{"Action":"pass","Package":"p","Test":"TestA"}` + "\n"
	fails    = `{"Action":"fail","Package":"p","Test":"TestB/sub"}` + "\n" + `{"Action":"fail","Package":"p","Test":"TestB"}` + "\n" + `{"Action":"fail","Package":"p"}` + "\n"
	noBuild  = `{"Action":"fail","Package":"q"}` + "\n"
	manyFail = fails + `{"Action":"fail","Package":"r","Test":"TestC"}` + "\n" + `{"Action":"fail","Package":"r","Test":"TestD"}` + "\n" + `{"Action":"fail","Package":"r","Test":"TestE"}` + "\n"
)

func TestWhatFailsTwiceHasFailed(t *testing.T) {
	for _, c := range []struct {
		name, events string
		passesAlone  bool
		ran          int
		end          int
		last         string
	}{
		{"all pass", passes, true, 0, 0, "1 passed, 0 failed"},
		{"nothing ran", "", true, 0, 1, "0 passed, 0 failed"},
		{"a test that passes alone", passes + fails, true, 1, 0, "3 passed, 0 failed"},
		{"a test that fails again", passes + fails, false, 1, 1, "1 passed, 2 failed"},
		{"a package that does not build", passes + noBuild, true, 0, 1, "1 passed, 1 failed"},
		{"a package that does not build, and a test that passes alone", passes + fails + noBuild, true, 1, 1, "3 passed, 1 failed"},
		{"more than chance", passes + manyFail, true, 0, 1, "1 passed, 5 failed"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out bytes.Buffer
			s := newSummary(&out)
			if err := s.read(strings.NewReader(c.events)); err != nil {
				t.Fatal(err)
			}
			ran := 0
			s.again(func(name, io.Writer) bool { ran++; return c.passesAlone })
			end := s.end()
			if lines := strings.Split(strings.TrimSpace(out.String()), "\n"); end != c.end || ran != c.ran || lines[len(lines)-1] != c.last {
				t.Errorf("got %d after %d runs and %q, want %d after %d and %q", end, ran, lines[len(lines)-1], c.end, c.ran, c.last)
			}
		})
	}
}

func TestFaultsAreATable(t *testing.T) {
	var out bytes.Buffer
	s := newSummary(&out)
	events := `{"Action":"output","Package":"keystead/e2e","Test":"TestKilled","Output":"    kill_test.go:59: figure: 9 times killed: nothing lost\n"}` + "\n" + passes + fails
	if err := s.read(strings.NewReader(events)); err != nil {
		t.Fatal(err)
	}
	out.Reset()
	s.table()
	for _, want := range []string{"Killed  ", "nothing  9 times killed: nothing lost", "B  ", "FAILED"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("got\n%s\nwithout %q", out.String(), want)
		}
	}
}
