package lwm2m_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"reflect"
	"strings"
	"testing"

	"keystead/coap"
	"keystead/lwm2m"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// The accounts that real clients have accepted, as the vectors below have them.
var (
	security = lwm2m.Instance{Object: 0, ID: 0, Resources: []lwm2m.Resource{
		{ID: 0, Value: "coaps://127.0.0.1:15685"},
		{ID: 1, Value: false},
		{ID: 2, Value: int64(0)},
		{ID: 3, Value: []byte("dev1-dm")},
		{ID: 5, Value: []byte{0xff, 0xee, 0xdd, 0xcc, 0xbb, 0xaa, 0x99, 0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 0x00}},
		{ID: 10, Value: int64(101)},
	}}
	account = lwm2m.Instance{Object: 1, ID: 0, Resources: []lwm2m.Resource{
		{ID: 0, Value: int64(101)},
		{ID: 1, Value: int64(60)},
		{ID: 6, Value: true},
		{ID: 7, Value: "U"},
	}}
)

func TestGoldenVectors(t *testing.T) {
	for name, c := range map[string]struct {
		format coap.Format
		in     lwm2m.Instance
		want   string
	}{
		"TLV /0/0":        {coap.LwM2MTLV, security, "c80017636f6170733a2f2f3132372e302e302e313a3135363835 c10100 c10200 c703646576312d646d c80510ffeeddccbbaa99887766554433221100 c10a65"},
		"TLV /1/0":        {coap.LwM2MTLV, account, "c10065 c1013c c10601 c10755"},
		"old TLV /1/0":    {lwm2m.FormatOldTLV, account, "c10065 c1013c c10601 c10755"},
		"SenML CBOR":      {coap.SenMLCBOR, account, "84 a3 21652f312f302f 006130 021865 a2 006131 02183c a2 006136 04f5 a2 006137 036155"},
		"SenML JSON":      {coap.SenMLJSON, account, hex.EncodeToString([]byte(`[{"bn":"/1/0/","n":"0","v":101},{"n":"1","v":60},{"n":"6","vb":true},{"n":"7","vs":"U"}]`))},
		"LwM2M CBOR /1/0": {coap.LwM2MCBOR, account, "a101 a100 a4 00 1865 01 183c 06 f5 07 6155"},
		"LwM2M CBOR /0/0": {coap.LwM2MCBOR, security, "a100a100a60077636f6170733a2f2f3132372e302e302e313a313536383501f402000347646576312d646d0550ffeeddccbbaa998877665544332211000a1865"},
	} {
		got, err := lwm2m.Encode(c.format, c.in)
		if want := unhex(t, c.want); err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s: %x, %v; want %x", name, got, err, want)
		}
		back, err := lwm2m.Decode(c.format, c.in.Path(), got)
		if err != nil || !reflect.DeepEqual(back, []lwm2m.Instance{c.in}) {
			t.Errorf("%s: decoded %+v, %v; want what was encoded", name, back, err)
		}
	}
	if _, err := lwm2m.Encode(coap.CBOR, account); err == nil {
		t.Error("Encode in CBOR, which is none of LwM2M's formats, is no error")
	}
}

func TestGoldenObjectLevelTLV(t *testing.T) {
	one := account
	one.ID = 1
	got, want := lwm2m.AppendObjectTLV(nil, []lwm2m.Instance{one}), unhex(t, "08 01 0c c10065c1013cc10601c10755")
	if !bytes.Equal(got, want) {
		t.Errorf("= %x, want %x", got, want)
	}
	if back, err := lwm2m.Decode(coap.LwM2MTLV, "/1", got); err != nil || !reflect.DeepEqual(back, []lwm2m.Instance{one}) {
		t.Errorf("decoded %+v, %v", back, err)
	}
}

func TestTLVLengths(t *testing.T) {
	for size, head := range map[int]string{7: "c703", 8: "c80308", 255: "c803ff", 256: "d0030100", 449: "d00301c1", 65536: "d803010000"} {
		in := lwm2m.Instance{Object: 0, ID: 0, Resources: []lwm2m.Resource{{ID: 3, Value: bytes.Repeat([]byte{7}, size)}}}
		got, err := lwm2m.Encode(coap.LwM2MTLV, in)
		if err != nil || !bytes.HasPrefix(got, unhex(t, head)) {
			t.Errorf("%d bytes begin %x, want %s", size, got[:6], head)
		}
		if back, err := lwm2m.Decode(coap.LwM2MTLV, "/0/0", got); err != nil || !reflect.DeepEqual(back[0], in) {
			t.Errorf("%d bytes do not come back: %v", size, err)
		}
	}
	for v, want := range map[int64]string{0: "00", -1: "ff", 127: "7f", 128: "0080", -129: "ff7f", 40000: "00009c40", 1 << 40: "0000010000000000"} {
		got := lwm2m.AppendTLV(nil, []lwm2m.Resource{{ID: 1, Value: v}})
		if hex.EncodeToString(got[2:]) != want && hex.EncodeToString(got[3:]) != want {
			t.Errorf("%d is %x, want it to end in %s", v, got, want)
		}
	}
}

func TestPackIsOneArrayOfAbsoluteNames(t *testing.T) {
	got, err := lwm2m.EncodePack(coap.SenMLCBOR, []lwm2m.Instance{security, account})
	if err != nil {
		t.Fatal(err)
	}
	// With the empty /0/0/4 of the vector it is 162 bytes.
	if want := unhex(t, "8a a2 00 66 2f302f302f30 03 77 636f6170733a2f2f3132372e302e302e313a3135363835 a2 00 66 2f302f302f31 04 f4"); !bytes.HasPrefix(got, want) {
		t.Errorf("pack begins %x, want %x", got[:len(want)], want)
	}
	for _, format := range []coap.Format{coap.SenMLCBOR, coap.SenMLJSON, coap.LwM2MCBOR} {
		b, err := lwm2m.EncodePack(format, []lwm2m.Instance{security, account})
		if err != nil {
			t.Fatal(err)
		}
		back, err := lwm2m.Decode(format, "/0", b)
		if err != nil {
			t.Fatalf("format %d: %v", format, err)
		}
		if format == coap.SenMLJSON { // JSON has the identity as base64, and so has it back
			if got := back[0].Resource(3); !reflect.DeepEqual(got, []byte("dev1-dm")) {
				t.Errorf("identity in JSON comes back as %v", got)
			}
		}
		if !reflect.DeepEqual(back, []lwm2m.Instance{security, account}) {
			t.Errorf("format %d: %+v, want what was packed", format, back)
		}
	}
	if _, err := lwm2m.EncodePack(coap.LwM2MTLV, nil); err == nil {
		t.Error("a pack in TLV is no error")
	}
}

func TestMultipleResourcesAndLinks(t *testing.T) {
	in := lwm2m.Instance{Object: 0, ID: 3, Resources: []lwm2m.Resource{
		{ID: 16, Values: []lwm2m.Element{{ID: 0, Value: int64(49320)}, {ID: 1, Value: int64(300)}}},
		{ID: 17, Value: lwm2m.Link{Object: 21, Instance: 2}},
	}}
	for _, format := range []coap.Format{coap.LwM2MTLV, coap.SenMLCBOR, coap.SenMLJSON, coap.LwM2MCBOR} {
		b, err := lwm2m.Encode(format, in)
		if err != nil {
			t.Fatal(err)
		}
		back, err := lwm2m.Decode(format, "/0/3", b)
		if err != nil || !reflect.DeepEqual(back, []lwm2m.Instance{in}) {
			t.Errorf("format %d: %+v, %v; want %+v", format, back, err, in)
		}
	}
	withArrayKeys := unhex(t, "a1 82 01 00 a2 00 1865 07 6155")
	if back, err := lwm2m.ParseCBOR(withArrayKeys); err != nil || back[0].Object != 1 || back[0].Resource(0) != int64(101) {
		t.Errorf("with an array as key: %+v, %v", back, err)
	}
}

func TestBadEncodingsAreErrors(t *testing.T) {
	for name, c := range map[string]struct {
		format coap.Format
		path   string
		in     []byte
	}{
		"TLV cut in the id":             {coap.LwM2MTLV, "/1/0", unhex(t, "e100")},
		"TLV cut in the length":         {coap.LwM2MTLV, "/1/0", unhex(t, "d00301")},
		"TLV cut in the value":          {coap.LwM2MTLV, "/1/0", unhex(t, "c200 01")},
		"a resource outside":            {coap.LwM2MTLV, "/1", unhex(t, "c10065")},
		"another instance":              {coap.LwM2MTLV, "/1/0", unhex(t, "0801 03 c10065")},
		"an integer of three bytes":     {coap.LwM2MTLV, "/1/0", unhex(t, "c300 010203")},
		"a boolean of 2":                {coap.LwM2MTLV, "/1/0", unhex(t, "c10602")},
		"an element outside":            {coap.LwM2MTLV, "/1/0", unhex(t, "410001")},
		"SenML that is a map":           {coap.SenMLCBOR, "/1", unhex(t, "a0")},
		"SenML of a nested array":       {coap.SenMLCBOR, "/1", unhex(t, "8181818181818100")},
		"two values":                    {coap.SenMLCBOR, "/1", unhex(t, "81a3 00662f312f302f30 0201 04f5")},
		"text under v":                  {coap.SenMLCBOR, "/1", unhex(t, "81a2 00662f312f302f30 026155")},
		"the same twice":                {coap.SenMLCBOR, "/1", unhex(t, "82 a2 00662f312f302f30 0201 a2 00662f312f302f30 0202")},
		"an array longer than the text": {coap.SenMLCBOR, "/1", unhex(t, "9bffffffffffffffff")},
		"text that is not UTF-8":        {coap.SenMLCBOR, "/1", unhex(t, "81a1 0061ff")},
		"a tag":                         {coap.SenMLCBOR, "/1", unhex(t, "c180")},
		"something after":               {coap.SenMLCBOR, "/1", unhex(t, "8000")},
		"JSON with another member":      {coap.SenMLJSON, "/1", []byte(`[{"n":"/1/0/0","u":"kg"}]`)},
		"JSON of a wrong path":          {coap.SenMLJSON, "/1", []byte(`[{"n":"/1/x/0","v":1}]`)},
		"JSON of a path of one number":  {coap.SenMLJSON, "/1", []byte(`[{"n":"/1","v":1}]`)},
		"a wrong link":                  {coap.SenMLJSON, "/1", []byte(`[{"n":"/1/0/10","vlo":"x"}]`)},
		"LwM2M CBOR of text keys":       {coap.LwM2MCBOR, "/1", unhex(t, "a16131a0")},
		"a negative id":                 {coap.LwM2MCBOR, "/1", unhex(t, "a120a0")},
		"a value at the top":            {coap.LwM2MCBOR, "/1", unhex(t, "a10101")},
	} {
		if got, err := lwm2m.Decode(c.format, c.path, c.in); !errors.Is(err, lwm2m.ErrFormat) {
			t.Errorf("%s: %+v, %v; want ErrFormat", name, got, err)
		}
	}
}

func TestDiscover(t *testing.T) {
	for name, c := range map[string]struct {
		in      string
		version string
		account uint16
		found   bool
		count   int
	}{
		"Anjay 1.0":   {`lwm2m="1.0",</0>,</0/1>,</1>,</3/0>`, "1.0", 1, true, 4},
		"Anjay 1.1":   {`</>;lwm2m=1.1,</0>,</0/1>;uri="coaps://a,b;c:5684",</0/2>;ssid=101;uri="coaps://x",</1/0>;ssid=101`, "1.1", 1, true, 4},
		"wakaama":     {`</>;lwm2m=1.1,</0/0>,</1>;ver=1.1,</1/0>;ssid=123,</3/0>`, "1.1", 0, true, 4},
		"two without": {`</>;lwm2m="1.2",</0/0>;uri="coaps://other",</0/7>;uri="coaps://ours"`, "1.2", 7, true, 2},
		"nothing":     {``, "", 0, false, 0},
		"none":        {`</0/3>;ssid=1`, "", 0, false, 1},
	} {
		d, err := lwm2m.ParseDiscover([]byte(c.in))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		account, found := d.BootstrapAccount(func(uri string) bool { return uri == "coaps://ours" })
		if d.Version != c.version || account != c.account || found != c.found || len(d.Found) != c.count {
			t.Errorf("%s: version %q, account %d %t among %d; want %q, %d %t among %d", name, d.Version, account, found, len(d.Found), c.version, c.account, c.found, c.count)
		}
	}
	for _, bad := range []string{`</0/1`, `</0/1>;ssid=x`, `</0/1>;ssid=99999`} {
		if _, err := lwm2m.ParseDiscover([]byte(bad)); !errors.Is(err, lwm2m.ErrFormat) {
			t.Errorf("%s: %v, want ErrFormat", bad, err)
		}
	}
}

func FuzzDecode(f *testing.F) {
	formats := []coap.Format{coap.LwM2MTLV, coap.SenMLJSON, coap.SenMLCBOR, coap.LwM2MCBOR}
	for n, format := range formats {
		for _, i := range []lwm2m.Instance{security, account} {
			b, err := lwm2m.Encode(format, i)
			if err != nil {
				f.Fatal(err)
			}
			f.Add(uint8(n), b)
		}
	}
	f.Fuzz(func(t *testing.T, n uint8, b []byte) {
		format := formats[int(n)%len(formats)]
		for _, path := range []string{"/0/0", "/1"} {
			list, err := lwm2m.Decode(format, path, b)
			if err != nil {
				if !errors.Is(err, lwm2m.ErrFormat) {
					t.Fatalf("%v is not ErrFormat", err)
				}
				continue
			}
			for _, i := range list { // what was understood can be said again
				if len(i.Resources) == 0 {
					continue
				}
				again, err := lwm2m.Encode(format, i)
				if err != nil {
					continue // JSON has no NaN
				}
				back, err := lwm2m.Decode(format, i.Path(), again)
				if err != nil {
					t.Fatalf("%x was understood as %+v, and that written as %x was not: %v", b, i, again, err)
				}
				if len(back) != 1 || len(back[0].Resources) != len(i.Resources) {
					t.Fatalf("%+v came back as %+v", i, back)
				}
			}
		}
	})
}

func FuzzParseDiscover(f *testing.F) {
	f.Add([]byte(`</>;lwm2m=1.1,</0>,</0/1>;uri="coaps://a,b",</1/0>;ssid=101`))
	f.Add([]byte(`lwm2m="1.0",</0>`))
	f.Fuzz(func(_ *testing.T, b []byte) {
		if d, err := lwm2m.ParseDiscover(b); err == nil {
			d.BootstrapAccount(func(string) bool { return false })
		}
	})
}
