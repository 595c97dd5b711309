package messages_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"
	"go.uber.org/goleak"

	"keystead/fault"
	"keystead/identity"
	"keystead/messages"
	"keystead/store/bolt"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// memory is a sink of the test's own, which fails while broken is set.
type memory struct {
	name string
	mu   sync.Mutex
	got  []messages.Message
	fail error
}

func (s *memory) Name() string { return s.name }
func (s *memory) Close() error { return nil }
func (s *memory) Deliver(_ context.Context, m messages.Message) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail != nil {
		return s.fail
	}
	s.got = append(s.got, m)
	return nil
}

func (s *memory) broken(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fail = err
}

func (s *memory) wait(t *testing.T, n int) []messages.Message {
	t.Helper()
	for range 1000 {
		s.mu.Lock()
		got := append([]messages.Message{}, s.got...)
		s.mu.Unlock()
		if len(got) >= n {
			return got
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Fatalf("sink %s did not get %d messages", s.name, n)
	return nil
}

func door(t *testing.T, sinks ...messages.Sink) *messages.Service {
	t.Helper()
	db, err := bolt.Open(filepath.Join(t.TempDir(), "test.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	return &messages.Service{
		DB: db, Now: time.Now, Sinks: sinks, MaxWaiting: 1000,
		Allow: func(string) (time.Duration, bool) { return 0, true },
	}
}

func run(t *testing.T, s *messages.Service) {
	t.Helper()
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx, slog.New(slog.DiscardHandler)) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
}

var pump = identity.Actor{
	Kind: identity.Device, ID: "d1", Org: "acme", Name: "pump", Credential: identity.Credential{Kind: identity.ThingKey, ID: "k1"},
}

const pack = `[{"bn":"some-base-name:","bt":1.276020076001e+09, "bu":"A","bver":5, "n":"voltage","u":"V","v":120.1}, {"n":"current","t":-5,"v":1.2}, {"n":"current","t":-4,"v":1.3}]`

func TestEachSinkGetsItOnceWithWhoSentIt(t *testing.T) {
	a, b := &memory{name: "a"}, &memory{name: "b"}
	s := door(t, a, b)
	sent, err := s.Accept(t.Context(), pump, identity.HTTPS, messages.JSON, []byte(pack))
	if err != nil {
		t.Fatal(err)
	}
	run(t, s)
	for _, sink := range []*memory{a, b} {
		got := sink.wait(t, 1)
		m := got[0]
		if len(got) != 1 || m.ID != sent.ID || m.Device != "d1" || m.Organisation != "acme" || m.Credential != identity.ThingKey || m.Transport != identity.HTTPS {
			t.Errorf("sink %s got %+v", sink.name, got)
		}
		if !strings.Contains(string(m.SenML), "120.1") || !strings.Contains(string(m.SenML), "1.276020076001e+09") {
			t.Errorf("numbers are not as they were written: %s", m.SenML)
		}
	}
}

func TestASinkThatIsAwayHoldsUpNoOther(t *testing.T) {
	a, b := &memory{name: "a"}, &memory{name: "b"}
	a.broken(errors.New("connection refused"))
	s := door(t, a, b)
	run(t, s)
	for i := range 3 {
		if _, err := s.Accept(t.Context(), pump, identity.HTTPS, messages.JSON, fmt.Appendf(nil, `[{"n":"i","v":%d}]`, i)); err != nil {
			t.Fatal(err)
		}
	}
	b.wait(t, 3)
	if n, err := s.Waiting(t.Context()); err != nil || n["a"] != 3 {
		t.Errorf("waiting = %v, %v; want 3 for a", n, err)
	}
	a.broken(nil)
	for i, m := range a.wait(t, 3) {
		if want := fmt.Sprintf(`[{"n":"i","v":%d}]`, i); string(m.SenML) != want {
			t.Errorf("message %d = %s, want %s", i, m.SenML, want)
		}
	}
}

func TestDoorClosesBehindTooManyWaiting(t *testing.T) {
	a := &memory{name: "a"}
	s := door(t, a)
	s.MaxWaiting = 2
	var err error
	for range 3 {
		_, err = s.Accept(t.Context(), pump, identity.HTTPS, messages.JSON, []byte(`[{"n":"x","v":1}]`))
	}
	if !fault.Is(err, fault.Unavailable) {
		t.Errorf("the third: %v, want Unavailable", err)
	}
}

func TestWhoMaySend(t *testing.T) {
	s := door(t, &memory{name: "a"})
	user := identity.Actor{Kind: identity.User, ID: "u", Role: identity.Operator}
	if _, err := s.Accept(t.Context(), user, identity.HTTPS, messages.JSON, []byte(pack)); !fault.Is(err, fault.Forbidden) {
		t.Errorf("a user: %v, want Forbidden", err)
	}
	s.Allow = func(string) (time.Duration, bool) { return time.Second, false }
	if _, err := s.Accept(t.Context(), pump, identity.HTTPS, messages.JSON, []byte(pack)); !fault.Is(err, fault.TooMany) {
		t.Errorf("over its rate: %v, want TooMany", err)
	}
	none := door(t)
	if _, err := none.Accept(t.Context(), pump, identity.HTTPS, messages.JSON, []byte(pack)); !fault.Is(err, fault.Unavailable) {
		t.Errorf("without a sink: %v, want Unavailable", err)
	}
}

func TestPack(t *testing.T) {
	many := strings.Repeat(`{"n":"x","v":1},`, messages.MaxRecords)
	for _, test := range []struct {
		name, body string
		kind       fault.Kind // Internal stands for accepted
		says       string
	}{
		{"the example of RFC 8428, 5.1.1", `[{"n":"urn:dev:ow:10e2073a01080063","u":"Cel","v":23.1}]`, 0, ""},
		{"bases and several records", pack, 0, ""},
		{"bases alone, then a value", `[{"bn":"a:","bver":10},{"n":"x","vb":true}]`, 0, ""},
		{"a sum without a value", `[{"n":"x","s":1}]`, 0, ""},
		{"an unknown field", `[{"n":"x","v":1,"colour":"red"}]`, 0, ""},
		{"empty", ``, fault.Invalid, "JSON array"},
		{"no records", `[]`, fault.Invalid, "no records"},
		{"an object", `{"n":"x","v":1}`, fault.Invalid, "JSON array"},
		{"null record", `[null]`, fault.Invalid, "record 1 is null"},
		{"no name", `[{"v":1}]`, fault.Invalid, "no name"},
		{"no value", `[{"n":"x"}]`, fault.Invalid, "neither a value nor a sum"},
		{"two values", `[{"n":"x","v":1,"vs":"a"}]`, fault.Invalid, "more than one value"},
		{"a value of the wrong type", `[{"n":"x","v":"1"}]`, fault.Invalid, "v that is not a number"},
		{"a name that is no text", `[{"n":7,"v":1}]`, fault.Invalid, "n that is not text"},
		{"a name with a space", `[{"n":"a b","v":1}]`, fault.Invalid, "not allowed"},
		{"a name that begins with a slash", `[{"n":"/a","v":1}]`, fault.Invalid, "not allowed"},
		{"a name too long", `[{"n":"` + strings.Repeat("a", 600) + `","v":1}]`, fault.Invalid, "512"},
		{"a later version", `[{"bver":11,"n":"x","v":1}]`, fault.Invalid, "version"},
		{"two versions", `[{"bver":5,"n":"x","v":1},{"bver":10,"n":"x","v":1}]`, fault.Invalid, "another version"},
		{"a field that must be understood", `[{"n":"x","v":1,"pos_":"3"}]`, fault.Invalid, "must be understood"},
		{"something after", `[{"n":"x","v":1}] [1]`, fault.Invalid, "follows"},
		{"not UTF-8", "[{\"n\":\"x\xff\",\"v\":1}]", fault.Invalid, "UTF-8"},
		{"too many records", `[` + many + `{"n":"x","v":1}]`, fault.TooLarge, "1000 records"},
		{"too large", `[{"n":"x","vs":"` + strings.Repeat("a", messages.MaxBody) + `"}]`, fault.TooLarge, "bytes"},
		{"nested 10,000 deep", strings.Repeat("[", 10_000) + strings.Repeat("]", 10_000), fault.Invalid, ""},
	} {
		_, err := messages.Pack(messages.JSON, []byte(test.body))
		if test.kind == fault.Internal {
			if err != nil {
				t.Errorf("%s: %v, want it accepted", test.name, err)
			}
			continue
		}
		if !fault.Is(err, test.kind) || !strings.Contains(fault.Message(err), test.says) {
			t.Errorf("%s: %v, want %v that says %q", test.name, err, test.kind, test.says)
		}
	}
	if _, err := messages.Pack("text/plain", []byte(pack)); !fault.Is(err, fault.Unsupported) {
		t.Errorf("text: %v, want Unsupported", err)
	}
}

func TestPackFromCBOR(t *testing.T) {
	body, err := cbor.Marshal([]map[int]any{{-2: "urn:dev:1:", -3: 1.5, 0: "temp", 2: 21.5}, {0: "raw", 8: []byte{1, 2, 250}}})
	if err != nil {
		t.Fatal(err)
	}
	got, err := messages.Pack(messages.CBOR, body)
	if err != nil {
		t.Fatal(err)
	}
	var records []map[string]any
	if err := json.Unmarshal(got, &records); err != nil || records[0]["bn"] != "urn:dev:1:" || records[0]["v"] != 21.5 || records[1]["vd"] != "AQL6" {
		t.Errorf("Pack = %s, %v", got, err)
	}
	for name, bad := range map[string]any{
		"label":   []map[int]any{{0: "x", 99: 1}},
		"array":   map[int]any{0: "x"},
		"nesting": []map[int]any{{0: "x", 2: []any{1}}},
		"bytes":   []map[int]any{{0: []byte("x"), 2: 1}},
	} {
		body, err := cbor.Marshal(bad)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := messages.Pack(messages.CBOR, body); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v, want Invalid", name, err)
		}
	}
}

func FuzzPack(f *testing.F) {
	f.Add(true, []byte(pack))
	f.Add(false, []byte("\x81\xa2\x00axx\x02\x01"))
	f.Fuzz(func(t *testing.T, isJSON bool, body []byte) {
		format := messages.CBOR
		if isJSON {
			format = messages.JSON
		}
		out, err := messages.Pack(format, body)
		if err != nil {
			if fault.Is(err, fault.Internal) {
				t.Errorf("an internal error: %v", err)
			}
			return
		}
		if again, err := messages.Pack(messages.JSON, out); err != nil && len(out) <= messages.MaxBody || err == nil && string(again) != string(out) {
			t.Errorf("%s is accepted, and what it became is not: %s, %v", body, out, err)
		}
	})
}
