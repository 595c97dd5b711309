package store_test

import (
	"bytes"
	"errors"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"

	"keystead/store"
)

type inner struct {
	N    int64     `cbor:"n"`
	When time.Time `cbor:"when"`
}

type outer struct {
	Name  string            `cbor:"name"`
	Bytes []byte            `cbor:"bytes"`
	List  []inner           `cbor:"list"`
	Map   map[string]string `cbor:"map"`
	Ratio float64           `cbor:"ratio"`
	Flag  bool              `cbor:"flag"`
	Big   uint64            `cbor:"big"`
	Last  string            `cbor:"last"`
}

// TestReaderReadsWhatTablesWrite reads fields around values of every type by a Reader.
func TestReaderReadsWhatTablesWrite(t *testing.T) {
	now := time.Date(2026, 11, 30, 12, 0, 0, 123456789, time.UTC)
	long := string(bytes.Repeat([]byte("long "), 100_000))
	want := outer{
		Name: "name", Bytes: []byte{0, 1, 2}, List: []inner{{-1, now}, {math.MaxInt64, time.Time{}}},
		Map: map[string]string{"a": "b"}, Ratio: 0.5, Flag: true, Big: math.MaxUint64, Last: long,
	}
	b := encode(t, want)
	r := store.Read(b)
	var got outer
	var whens []time.Time
	for n := r.Map(); n > 0; n-- {
		switch string(r.Text()) {
		case "name":
			got.Name = string(r.Text())
		case "bytes":
			got.Bytes = r.Bytes()
		case "list":
			list := store.Read(r.Item())
			for n := list.Array(); n > 0; n-- {
				for n := list.Map(); n > 0; n-- {
					if string(list.Text()) == "when" {
						whens = append(whens, list.Time(list.Text()))
					} else {
						list.Skip()
					}
				}
			}
			if err := list.Err(); err != nil {
				t.Error(err)
			}
		case "big":
			got.Big = r.Uint()
		case "last":
			got.Last = string(r.Text())
		default:
			r.Skip()
		}
	}
	if err := r.Err(); err != nil {
		t.Fatal(err)
	}
	if got.Name != want.Name || !bytes.Equal(got.Bytes, want.Bytes) || got.Last != want.Last || got.Big != want.Big {
		t.Errorf("read %q, %x, %d and %d bytes", got.Name, got.Bytes, got.Big, len(got.Last))
	}
	if len(whens) != 2 || !whens[0].Equal(now) || !whens[1].IsZero() {
		t.Errorf("times: %v", whens)
	}
	for n := range b[:200] {
		if r := store.Read(b[:n]); true {
			r.Skip()
			if !errors.Is(r.Err(), store.ErrCorrupt) {
				t.Errorf("a record cut after %d bytes is read: %v", n, r.Err())
			}
		}
	}
}

func TestReaderRefusesOtherNumbers(t *testing.T) {
	for _, b := range []string{"", "\x20", "\x3b\x00\x00\x00\x00\x00\x00\x00\x00", "\x61a", "\xf9\x3c\x00", "\xf5", "\xc1\x01"} {
		r := store.Read([]byte(b))
		if n := r.Uint(); n != 0 || !errors.Is(r.Err(), store.ErrCorrupt) {
			t.Errorf("%x is read as %d, %v", b, n, r.Err())
		}
	}
}

// TestTermsEscapeAsEver holds terms to the form that they have in the files there are.
func TestTermsEscapeAsEver(t *testing.T) {
	ever := strings.NewReplacer("\x00", "\x01\x01", "\x01", "\x01\x02")
	for _, part := range []string{"", "\x00", "\x01", "a\x00\x01\x02b\x00\x00", "plain", "\xff\x01\xfe\x00"} {
		if got := store.TermOf("a", part); string(got) != "a\x00"+ever.Replace(part) {
			t.Errorf("the term of %q is %q", part, got)
		}
	}
}

func encode(t *testing.T, v any) []byte {
	t.Helper()
	m, err := cbor.EncOptions{Time: cbor.TimeRFC3339NanoUTC}.EncMode()
	if err != nil {
		t.Fatal(err)
	}
	b, err := m.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// FuzzReader holds Skip against the library: what it takes for an item, without items of
// indefinite length, is one, and Skip goes to its end.
func FuzzReader(f *testing.F) {
	for _, seed := range []string{"\xa1\x61a\x01", "\x9f\xff", "\x1b\xff\xff\xff\xff\xff\xff\xff\xff", "\xc1\x61a", "\xf6", "\x5b\x80\x00\x00\x00\x00\x00\x00\x00", "\x81\x81\x81\x80"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r := store.Read(b)
		item := r.Item()
		if r.Err() != nil {
			return
		}
		var raw cbor.RawMessage
		rest, err := cbor.UnmarshalFirst(b, &raw)
		if err == nil && !bytes.Equal(raw, item) {
			t.Errorf("%x: the item is %x, and %x was left of it by the library, not %x", b, item, rest, raw)
		}
	})
}
