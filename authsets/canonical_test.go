package authsets_test

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"keystead/authsets"
)

func TestCanonical(t *testing.T) {
	t.Parallel()
	for _, row := range []struct{ in, want, sum string }{
		{`{"mac":"de:ad:be:ef:00:01","serial":"SN-0001"}`, "", "8dc99631487a0f74a4c09e8495e6183cdd9f405a58bd6ccd7955aaa1424d4bf3"},
		{` { "serial" : "SN-0001", "mac":"de:ad:be:ef:00:01" } `, `{"mac":"de:ad:be:ef:00:01","serial":"SN-0001"}`, ""},
		{`{"b":1.0,"a":1e2,"c":0.0000001,"d":1e21}`, `{"a":100,"b":1,"c":1e-7,"d":1e+21}`, "bccf722182aec61306d296a349439dabaefd39e53bc62fb2b3d4e307220c24ba"},
		{`{"o":{"z":1,"y":null},"l":["b","a"]}`, `{"l":["b","a"],"o":{"y":null,"z":1}}`, "ce18c0684e6ee901fa0ea5e60e49235550856ffe6b99f756812c85f4192cffb6"},
		{`{"n":12345678901234567890}`, `{"n":12345678901234567890}`, ""},
		{`{"n":12345678901234567891}`, `{"n":12345678901234567891}`, ""},
		{`{"n":1234567890123456789.1}`, `{"n":1.2345678901234567891e+18}`, ""},
		{`{"n":0.1234567890123456789}`, `{"n":1.234567890123456789e-1}`, ""},
		{`{"n":1e400}`, `{"n":1e+400}`, ""},
		{`{"n":0.0}`, `{"n":0}`, ""},
		{`{"n":100e-2}`, `{"n":1}`, ""},
		{`{"a":1,"a":2}`, `{"a":2}`, ""},
		{`{"a":"<&>"}`, `{"a":"\u003c\u0026\u003e"}`, ""},
		{`{"a":"\u0041"}`, `{"a":"A"}`, ""},
	} {
		got, err := authsets.Canonicalise([]byte(row.in))
		if want := row.want; err != nil || want != "" && string(got) != want || want == "" && string(got) != row.in {
			t.Errorf("%s: got %s, %v; want %s", row.in, got, err, row.want)
		}
		if sum := sha256.Sum256([]byte(got)); row.sum != "" && hex.EncodeToString(sum[:]) != row.sum {
			t.Errorf("%s: got hash %x, want %s", row.in, sum, row.sum)
		}
	}
}

// TestCanonicalAsItStands holds identities that look canonical, and are taken as they stand if they
// are, against what they become when they are decoded, which a blank behind them sees to.
func TestCanonicalAsItStands(t *testing.T) {
	t.Parallel()
	many := make([]string, 65)
	for i := range many {
		many[i] = fmt.Sprintf(`"a%02d":"1"`, i)
	}
	for _, in := range []string{
		`{"a":"1"}`, `{"":""}`, `{"":"","a":"b"}`, `{"a":"","b":"","ba":"","c":"~ !"}`,
		`{"b":"1","a":"2"}`, `{"a":"1","a":"2"}`, `{"a":"1","":"2"}`, `{"a":"<"}`, `{"a":">"}`, `{"a":"&"}`, `{"a":"\u0041"}`, `{"a":"\""}`,
		"{\"a\":\"\x7f\"}", "{\"a\":\"\t\"}", "{\"a\":\"é\"}", `{"a": "1"}`, `{ "a":"1"}`, `{"a":"1",}`, `{"a":"1"}}`, `{"a":"1"},`, `{"a":"1"`, `{"a":"1`, `{"a":`, `{"a"`, `{`,
		`{"a":"1":"2"}`, `{"a","b"}`, `{"a"}`, `{"a":1}`, `{"a":{"b":"c"}}`,
		"{" + strings.Join(many[:64], ",") + "}", "{" + strings.Join(many, ",") + "}",
	} {
		got, err := authsets.Canonicalise([]byte(in))
		want, wantErr := authsets.Canonicalise([]byte(in + " "))
		if got != want || (err == nil) != (wantErr == nil) {
			t.Errorf("%s: got %s, %v; and with a blank behind it %s, %v", in, got, err, want, wantErr)
		}
	}
}

func TestNoIdentity(t *testing.T) {
	t.Parallel()
	many := make([]string, 65)
	for i := range many {
		many[i] = fmt.Sprintf(`"a%d":1`, i)
	}
	for name, in := range map[string]string{
		"nothing": "", "null": "null", "empty": "{}", "list": `["a"]`, "text": `"a"`, "something after": `{"a":1}{}`,
		"cut": `{"a":`, "too long": `{"a":"` + strings.Repeat("x", 4<<10) + `"}`, "too many": "{" + strings.Join(many, ",") + "}",
		"nested too deep": strings.Repeat(`{"a":`, 20) + "1" + strings.Repeat("}", 20), "half a surrogate": `{"a":"\ud800"}`,
		"no UTF-8": "{\"a\":\"\xff\"}", "no number": `{"a":1e999999999}`,
	} {
		if got, err := authsets.Canonicalise([]byte(in)); err == nil {
			t.Errorf("%s: got %s", name, got)
		}
	}
}

func FuzzCanonical(f *testing.F) {
	f.Add(`{"b":1.0,"a":1e2,"c":0.0000001,"d":1e21}`, `{"n":12345678901234567890}`)
	f.Add(`{"n":12345678901234567890}`, `{"n":12345678901234567891}`)
	f.Add(`{"a":"x"}`, `{"a":["x"]}`)
	f.Add(`{"a":"x","b":"~ "}`, `{"a":"x","a":"y"}`)
	f.Add(`{"b":"x","a":"y"}`, `{"":"","a":"<"}`)
	f.Fuzz(func(t *testing.T, a, b string) {
		one, err := authsets.Canonicalise([]byte(a))
		if err != nil {
			return
		}
		if slow, err := authsets.Canonicalise([]byte(a + " ")); slow != one && err == nil {
			t.Errorf("%q becomes %q, and with a blank behind it %q", a, one, slow)
		}
		if !json.Valid([]byte(one)) {
			t.Errorf("%q becomes %q, which is no JSON", a, one)
		}
		if again, err := authsets.Canonicalise([]byte(one)); err != nil || again != one {
			t.Errorf("%q becomes %q, and that %q, %v", a, one, again, err)
		}
		if two, err := authsets.Canonicalise([]byte(b)); err == nil && one == two && !same(t, a, b) {
			t.Errorf("%q and %q are both %q", a, b, one)
		}
	})
}

// same compares what two texts say, their numbers as text or as float64.
func same(t *testing.T, a, b string) bool {
	t.Helper()
	var x, y any
	if json.Unmarshal([]byte(a), &x) != nil || json.Unmarshal([]byte(b), &y) != nil {
		return true // numbers beyond float64: nothing to compare with
	}
	return fmt.Sprint(x) == fmt.Sprint(y)
}
