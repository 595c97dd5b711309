package coap_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"reflect"
	"strings"
	"testing"

	"keystead/coap"
)

func TestMessageOnTheWire(t *testing.T) {
	for _, c := range []struct {
		name, datagram, stream string
		m                      coap.Message
	}{
		{"the first example of RFC 7252, appendix A", "40017d34bb74656d7065726174757265", "c001bb74656d7065726174757265", coap.Message{
			Code: coap.GET, ID: 0x7d34, Options: coap.Options{{coap.URIPath, []byte("temperature")}},
		}},
		{"its answer", "60457d34ff32322e332043", "7045ff32322e332043", coap.Message{
			Type: coap.Acknowledgement, Code: coap.Content, ID: 0x7d34, Payload: []byte("22.3 C"),
		}},
		{"a token, and an option beyond 268", "5102000101e00111ff41", "510201e00111ff41", coap.Message{
			Type: coap.NonConfirmable, Code: coap.POST, ID: 1, Token: []byte{1}, Options: coap.Options{{542, nil}}, Payload: []byte("A"),
		}},
		{"an empty acknowledgement", "60000007", "0000", coap.Message{Type: coap.Acknowledgement, ID: 7}},
	} {
		if got := hex.EncodeToString(c.m.Append(nil)); got != c.datagram {
			t.Errorf("%s: datagram %s, want %s", c.name, got, c.datagram)
		}
		if got := hex.EncodeToString(c.m.AppendStream(nil)); got != c.stream {
			t.Errorf("%s: stream %s, want %s", c.name, got, c.stream)
		}
		raw, _ := hex.DecodeString(c.datagram)
		got, err := coap.Parse(raw)
		if err != nil || !same(got, c.m) {
			t.Errorf("%s: parsed %+v, %v, want %+v", c.name, got, err, c.m)
		}
		raw, _ = hex.DecodeString(c.stream + "00") // the next message begins
		got, n, err := coap.ParseStream(raw, 1<<16)
		got.Type, got.ID = c.m.Type, c.m.ID
		if err != nil || n != len(raw)-1 || !same(got, c.m) {
			t.Errorf("%s: parsed %+v of %d bytes, %v, want %+v of %d", c.name, got, n, err, c.m, len(raw)-1)
		}
	}
}

func same(a, b coap.Message) bool {
	return a.Type == b.Type && a.ID == b.ID && a.Code == b.Code && bytes.Equal(a.Token, b.Token) && bytes.Equal(a.Payload, b.Payload) &&
		len(a.Options) == len(b.Options) && reflect.DeepEqual(normal(a.Options), normal(b.Options))
}

func normal(o coap.Options) (n []string) {
	for _, opt := range o {
		n = append(n, opt.ID.String()+":"+hex.EncodeToString(opt.Value))
	}
	return n
}

func TestMalformedMessagesAreRefused(t *testing.T) {
	for name, raw := range map[string]string{
		"empty":                             "",
		"too short":                         "400100",
		"another version":                   "80010001",
		"a token of nine bytes":             "49010001010203040506070809",
		"a token cut off":                   "4401000101",
		"an empty message with a payload":   "40000001ff41",
		"a marker without a payload":        "40010001ff",
		"an option cut off":                 "40010001b5aa",
		"a reserved delta":                  "40010001f0",
		"a reserved length":                 "400100010f",
		"an extended delta cut off":         "40010001d0",
		"an extended length cut off":        "400100010e00",
		"option numbers beyond 65535":       "40010001e0ffffe0ffff",
		"more options than anyone can mean": "40010001" + strings.Repeat("00", 65),
	} {
		b, err := hex.DecodeString(raw)
		if err != nil {
			t.Fatal(err)
		}
		if m, err := coap.Parse(b); !errors.Is(err, coap.ErrFormat) {
			t.Errorf("%s: parsed %+v, %v, want ErrFormat", name, m, err)
		}
	}
}

func TestStreamsWaitForTheRestAndRefuseTooMuch(t *testing.T) {
	m := coap.Message{Code: coap.POST, Token: []byte{1, 2}, Payload: bytes.Repeat([]byte{'x'}, 70000)}
	raw := m.AppendStream(nil)
	for _, n := range []int{0, 1, 3, 6, len(raw) - 1} {
		if _, got, err := coap.ParseStream(raw[:n], 1<<20); got != 0 || err != nil {
			t.Errorf("%d of %d bytes: %d, %v, want 0 and no error", n, len(raw), got, err)
		}
	}
	if _, got, err := coap.ParseStream(raw, 1<<20); got != len(raw) || err != nil {
		t.Errorf("all bytes: %d, %v, want %d", got, err, len(raw))
	}
	if _, _, err := coap.ParseStream(raw[:8], 1<<16); !errors.Is(err, coap.ErrFormat) {
		t.Errorf("a message beyond the limit: %v, want ErrFormat before it is buffered", err)
	}
}

func TestOptions(t *testing.T) {
	o := coap.Options{}.AddPath("/a/b c").AddUint(coap.ContentFormat, 60).AddUint(coap.MaxAge, 0).Add(coap.URIQuery, []byte("x=1"))
	o = o.Add(coap.URIHost, []byte("h"))
	if got := o.Path(); got != "/a/b c" {
		t.Errorf("path %q, want /a/b c", got)
	}
	if v, ok := o.Uint(coap.ContentFormat); !ok || v != 60 {
		t.Errorf("content format %d, %v, want 60", v, ok)
	}
	if v, ok := o.Uint(coap.MaxAge); !ok || v != 0 {
		t.Errorf("max age %d, %v, want 0 and there", v, ok)
	}
	if _, ok := o.Uint(coap.URIPath); ok {
		if v, _ := o.Get(coap.URIPath); len(v) > 4 {
			t.Error("an integer of more than four bytes was read")
		}
	}
	if o[0].ID != coap.URIHost || o[len(o)-1].ID != coap.URIQuery {
		t.Errorf("options in order %v, want ascending", normal(o))
	}
	if got := o.Without(coap.URIPath, coap.URIQuery); len(got) != 3 || len(o) != 6 {
		t.Errorf("without: %v of %v", normal(got), normal(o))
	}
	if (coap.Options{}).Path() != "/" {
		t.Error("the path of no option is not /")
	}
}

func TestBlockValues(t *testing.T) {
	for _, c := range []struct {
		value string
		b     coap.Block
	}{
		{"", coap.Block{}},
		{"06", coap.Block{SZX: 6}},
		{"0e", coap.Block{SZX: 6, More: true}},
		{"1e", coap.Block{Num: 1, SZX: 6, More: true}},
		{"fffffa", coap.Block{Num: 1<<20 - 1, SZX: 2, More: true}},
	} {
		if got := hex.EncodeToString(c.b.Value()); got != c.value {
			t.Errorf("%+v: %s, want %s", c.b, got, c.value)
		}
		raw, _ := hex.DecodeString(c.value)
		if got, ok := coap.ParseBlock(raw); !ok || got != c.b {
			t.Errorf("%s: %+v, %v, want %+v", c.value, got, ok, c.b)
		}
	}
	if _, ok := coap.ParseBlock(make([]byte, 4)); ok {
		t.Error("a block option of four bytes was taken")
	}
}

func FuzzParse(f *testing.F) {
	for _, seed := range []string{"40017d34bb74656d7065726174757265", "60457d34ff32322e332043", "5102000101e00111ff41", "60000007"} {
		raw, _ := hex.DecodeString(seed)
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		m, err := coap.Parse(raw)
		if err != nil {
			return
		}
		again, err := coap.Parse(m.Append(nil))
		if err != nil || !same(m, again) {
			t.Fatalf("%x: parsed %+v, which reads back as %+v, %v", raw, m, again, err)
		}
		stream := m.AppendStream(nil)
		again, n, err := coap.ParseStream(append(stream, 0), 1<<20)
		again.Type, again.ID = m.Type, m.ID
		if err != nil || n != len(stream) || !same(m, again) {
			t.Fatalf("%x: parsed %+v, which reads back from a stream as %+v, %v", raw, m, again, err)
		}
	})
}

func FuzzParseStream(f *testing.F) {
	f.Add([]byte{0xc0, 1, 0xbb, 't', 'e', 'm', 'p', 'e', 'r', 'a', 't', 'u', 'r', 'e'})
	f.Add([]byte{0xd1, 0, 2, 1, 0xff})
	f.Fuzz(func(t *testing.T, raw []byte) {
		m, n, err := coap.ParseStream(raw, 4096)
		if n < 0 || n > len(raw) || n > 4096 || (err != nil && n > len(raw)) {
			t.Fatalf("%x: %d bytes of %d, %v", raw, n, len(raw), err)
		}
		if err == nil && n > 0 && len(m.Payload) > n {
			t.Fatalf("%x: a payload of %d bytes in a message of %d", raw, len(m.Payload), n)
		}
	})
}
