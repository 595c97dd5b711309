package sink_test

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"keystead/messages"
	"keystead/messages/sink"
)

func ids(t *testing.T, path string) (all []string) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for line := range bytes.Lines(b) {
		var m messages.Message
		if err := json.Unmarshal(line, &m); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		all = append(all, m.ID)
	}
	return all
}

func deliver(t *testing.T, s messages.Sink, all ...string) {
	t.Helper()
	for _, id := range all {
		if err := s.Deliver(t.Context(), messages.Message{ID: id, SenML: json.RawMessage(`[]`)}); err != nil {
			t.Fatal(err)
		}
	}
}

func TestFileTakesUpWhereACrashLeftIt(t *testing.T) {
	path := filepath.Join(t.TempDir(), "logs", "messages.jsonl")
	first := sink.NewFile("log", path)
	deliver(t, first, "1", "2", "3")
	if err := first.Close(); err != nil {
		t.Fatal(err)
	}
	half, err := os.OpenFile(path, os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	half.WriteString(`{"id":"4","se`) // the crash
	half.Close()

	second := sink.NewFile("log", path)
	deliver(t, second, "2", "3", "4", "5") // the queue gives again what it had not removed
	second.Close()
	if got := ids(t, path); len(got) != 5 || got[3] != "4" || got[4] != "5" {
		t.Errorf("the file holds %v, want 1 to 5, each once", got)
	}
}

func TestFileIsMadeAgainWhenItWasMovedAway(t *testing.T) {
	path := filepath.Join(t.TempDir(), "messages.jsonl")
	s := sink.NewFile("log", path)
	defer s.Close()
	deliver(t, s, "1")
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	deliver(t, s, "2")
	if got := ids(t, path); len(got) != 1 || got[0] != "2" {
		t.Errorf("the new file holds %v, want 2 alone", got)
	}
}

func TestConfig(t *testing.T) {
	good := sink.Config{Name: "broker", Type: "mqtt", URL: "mqtts://broker:8883", Topic: "keystead/{organisation}/{device}"}
	if err := good.Validate(); err != nil {
		t.Error(err)
	}
	for name, change := range map[string]func(*sink.Config){
		"name":         func(c *sink.Config) { c.Name = "Über" },
		"type":         func(c *sink.Config) { c.Type = "kafka" },
		"url":          func(c *sink.Config) { c.URL = "tcp://broker" },
		"topic":        func(c *sink.Config) { c.Topic = "a/#" },
		"key":          func(c *sink.Config) { c.Key = "x.key" },
		"plain":        func(c *sink.Config) { c.Type, c.URL = "webhook", "http://x" },
		"nameless":     func(c *sink.Config) { c.Name = "" },
		"file of none": func(c *sink.Config) { c.Type = "file" },
	} {
		c := good
		change(&c)
		if c.Validate() == nil {
			t.Errorf("%s: %+v is accepted", name, c)
		}
	}
}
