package pki_test

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"strings"
	"testing"

	"keystead/fault"
	"keystead/pki"
)

func TestMetadataIsPatchedAsLamassuDoes(t *testing.T) {
	for _, test := range []struct{ name, doc, patches, want string }{
		{"add to nothing", ``, `[{"op":"add","path":"/site","value":"north"}]`, `{"site":"north"}`},
		{"add makes parents", `{}`, `[{"op":"add","path":"/a/b/c","value":1}]`, `{"a":{"b":{"c":1}}}`},
		{"add to a list", `{"l":[1]}`, `[{"op":"add","path":"/l/-","value":2}]`, `{"l":[1,2]}`},
		{"replace", `{"a":1}`, `[{"op":"replace","path":"/a","value":{"x":null}}]`, `{"a":{"x":null}}`},
		{"remove", `{"a":1,"b":2}`, `[{"op":"remove","path":"/a"}]`, `{"b":2}`},
		{"remove what is not there", `{"a":1}`, `[{"op":"remove","path":"/x"}]`, `{"a":1}`},
		{"move and copy", `{"a":1}`, `[{"op":"copy","from":"/a","path":"/b"},{"op":"move","from":"/a","path":"/c"}]`, `{"b":1,"c":1}`},
		{"a test that holds", `{"a":1}`, `[{"op":"test","path":"/a","value":1},{"op":"remove","path":"/a"}]`, `{}`},
		{"a name with a slash", `{}`, `[{"op":"add","path":"/lamassu.io~1ra~1x","value":true}]`, `{"lamassu.io/ra/x":true}`},
	} {
		got, err := pki.PatchMetadata(json.RawMessage(test.doc), patches(t, test.patches))
		if err != nil || string(got) != test.want {
			t.Errorf("%s: got %s, %v, want %s", test.name, got, err, test.want)
		}
	}
	for _, test := range []struct{ name, doc, patches string }{
		{"none", `{}`, `[]`},
		{"another op", `{}`, `[{"op":"merge","path":"/a","value":1}]`},
		{"no path", `{}`, `[{"op":"add","path":"","value":1}]`},
		{"a path that is none", `{}`, `[{"op":"add","path":"a","value":1}]`},
		{"null", `{}`, `[{"op":"add","path":"/a","value":null}]`},
		{"no value", `{"a":1}`, `[{"op":"replace","path":"/a"}]`},
		{"replace what is not there", `{}`, `[{"op":"replace","path":"/a","value":1}]`},
		{"a test that fails, after a change", `{"a":1}`, `[{"op":"remove","path":"/a"},{"op":"test","path":"/a","value":1}]`},
		{"move from nowhere", `{}`, `[{"op":"move","path":"/a"}]`},
		{"a list as long as it likes", `{}`, `[{"op":"add","path":"/a/4000000000","value":1}]`},
		{"too deep", `{}`, `[{"op":"add","path":"` + strings.Repeat("/a", 17) + `","value":1}]`},
		{"too long", `{}`, `[{"op":"add","path":"/a","value":"` + strings.Repeat("x", 17<<10) + `"}]`},
		{"copies that grow", `{"a":"` + strings.Repeat("x", 4<<10) + `"}`, `[` + strings.Repeat(`{"op":"copy","from":"/a","path":"/b"},`, 8) + `{"op":"copy","from":"","path":"/c"}]`},
	} {
		if got, err := pki.PatchMetadata(json.RawMessage(test.doc), patches(t, test.patches)); !fault.Is(err, fault.Invalid) || got != nil {
			t.Errorf("%s: got %s, %v, want it refused", test.name, got, err)
		}
	}
}

func patches(t testing.TB, text string) []pki.Patch {
	t.Helper()
	var list []pki.Patch
	if err := json.Unmarshal([]byte(text), &list); err != nil {
		t.Fatal(err)
	}
	return list
}

func FuzzPatchMetadata(f *testing.F) {
	f.Add(`{"a":{"b":[1,2]}}`, `[{"op":"add","path":"/a/b/-","value":3},{"op":"copy","from":"/a","path":"/c"},{"op":"test","path":"/c/b/0","value":1}]`)
	f.Add(`{}`, `[{"op":"add","path":"/a~0b/~1/0","value":{"x":1}},{"op":"move","from":"/a~0b","path":"/z"},{"op":"remove","path":"/z/q"},{"op":"replace","path":"/z","value":2}]`)
	f.Fuzz(func(t *testing.T, doc, text string) {
		var object map[string]any
		var list []pki.Patch
		if json.Unmarshal([]byte(doc), &object) != nil || object == nil || json.Unmarshal([]byte(text), &list) != nil {
			return
		}
		out, err := pki.PatchMetadata(json.RawMessage(doc), list)
		if err == nil && (len(out) > 16<<10 || json.Unmarshal(out, &object) != nil) {
			t.Errorf("made %d bytes: %.100s", len(out), out)
		}
	})
}

// TestWhatIsNoRequestIsNamed tells people what they have sent in place of a request.
func TestWhatIsNoRequestIsNamed(t *testing.T) {
	h := open(t)
	key := newKey(t)
	csr := newCSR(t, key, named("pump")).Raw
	c, _ := h.enrol(t, newKey(t), "pump")
	private, public := must(t)(x509.MarshalPKCS8PrivateKey(key)), must(t)(x509.MarshalPKIXPublicKey(key.Public()))
	for _, test := range []struct {
		name string
		der  []byte
		says string
	}{
		{"cut off", csr[:len(csr)-7], "cut off"},
		{"more behind it", append(bytes.Clone(csr), 1, 2), "2 bytes come after its end"},
		{"text", []byte("hello, world"), "not DER at all"},
		{"a certificate", c.DER, "it is a certificate"},
		{"a private key", private, "it is a private key"},
		{"a public key", public, "it is a public key alone"},
		{"another sequence", []byte{0x30, 3, 2, 1, 5}, "its parts are not those of a request"},
	} {
		_, err := pki.ParseCSR(test.der)
		if !fault.Is(err, fault.Invalid) || !strings.Contains(fault.Message(err), test.says) || strings.Contains(fault.Message(err), "asn1") {
			t.Errorf("%s: got %v, want %q", test.name, err, test.says)
		}
	}
}

func must(t testing.TB) func([]byte, error) []byte {
	return func(b []byte, err error) []byte {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return b
	}
}
