package server_test

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"keystead/fault"
	"keystead/server"
)

type sample struct {
	Name   string            `json:"name"`
	Count  int               `json:"count"`
	List   []sample          `json:"list"`
	Labels map[string]string `json:"labels"`
}

func TestStrictJSON(t *testing.T) {
	for _, test := range []struct{ name, text, err string }{
		{"plain", `{"name":"a","count":1,"list":[{"name":"b"}],"labels":{"A":"1","a":"2"}}`, ""},
		{"white space", " {\n} \n", ""},
		{"as deep as may be", strings.Repeat(`{"list":[`, 15) + strings.Repeat(`]}`, 15), ""},
		{"empty", "", "is empty"},
		{"not JSON", "hello", "is not JSON"},
		{"cut off", `{"name":"a`, "ends too early"},
		{"null", "null", "is null"},
		{"a list", "[]", "must be an object"},
		{"two values", "{}{}", "after its JSON value"},
		{"wrong type", `{"count":"1"}`, "count"},
		{"too large for its type", `{"count":1e400}`, "count"},
		{"unknown field", `{"nmea":"a"}`, `"nmea"`},
		{"field twice", `{"name":"a","name":"b"}`, `the field "name" twice`},
		{"field twice, inside", `{"list":[{"count":1,"count":1}]}`, `the field "count" twice`},
		{"label twice", `{"labels":{"x":"1","x":"2"}}`, `the field "x" twice`},
		{"the same name in two objects", `{"list":[{"count":1},{"count":1}],"count":1}`, ""},
		{"too deep", strings.Repeat(`{"list":[`, 17) + strings.Repeat(`]}`, 17), "deeper than 32"},
		{"10,000 deep", strings.Repeat("[", 10_000), "deeper than 32"},
		{"10,000 deep in an unknown field", `{"x":` + strings.Repeat(`{"x":`, 10_000), "deeper than 32"},
		{"not UTF-8", "{\"name\":\"\xff\"}", "not UTF-8"},
		{"long string", `{"name":"` + strings.Repeat("x", 70_000) + `"}`, "longer than"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var v sample
			err := server.StrictJSON([]byte(test.text), &v)
			if test.err == "" {
				if err != nil {
					t.Errorf("got %v, want no error", err)
				}
				return
			}
			if !fault.Is(err, fault.Invalid) || !strings.Contains(fault.Message(err), test.err) {
				t.Errorf("got %v, want an invalid input with %q", err, test.err)
			}
		})
	}
}

// What is accepted is what any JSON reader takes it for, and means one thing.
func FuzzStrictJSON(f *testing.F) {
	for _, text := range []string{`{"name":"a"}`, `{"list":[{"labels":{"a":"b"}}]}`, `[[[[`, `{"a":1,"a":2}`, "null", "\xff"} {
		f.Add([]byte(text))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		var v sample
		if err := server.StrictJSON(text, &v); err != nil {
			if !fault.Is(err, fault.Invalid) {
				t.Errorf("got %v of another kind", err)
			}
			return
		}
		if !json.Valid(text) {
			t.Errorf("%q was accepted and is not JSON", text)
		}
		again, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		var w sample
		if err := server.StrictJSON(again, &w); err != nil {
			t.Errorf("%q was accepted, what was read of it, %q, is not: %v", text, again, err)
		}
		if last, err := json.Marshal(w); err != nil || !bytes.Equal(last, again) {
			t.Errorf("got %q, %v, want %q", last, err, again)
		}
	})
}
