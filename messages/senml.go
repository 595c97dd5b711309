package messages

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"strings"
	"unicode/utf8"

	"github.com/fxamacker/cbor/v2"

	"keystead/fault"
)

// Limits on a SenML pack.
const (
	MaxBody    = 64 << 10 // bytes
	MaxRecords = 1000
	maxName    = 512 // bytes of base name and name together
)

// Format is how a SenML pack is written.
type Format string

// The formats (RFC 8428, 12.3).
const (
	JSON Format = "application/senml+json"
	CBOR Format = "application/senml+cbor"
)

// supported is the highest SenML version that is understood (RFC 8428, 4.4).
const supported = 10

// labels are the integer labels of the fields in CBOR (RFC 8428, 6).
var labels = map[int64]string{
	-1: "bver", -2: "bn", -3: "bt", -4: "bu", -5: "bv", -6: "bs",
	0: "n", 1: "u", 2: "v", 3: "vs", 4: "vb", 5: "s", 6: "t", 7: "ut", 8: "vd",
}

// isText and isNumber say what the fields that this door knows must be.
var (
	isText   = map[string]bool{"bn": true, "bu": true, "n": true, "u": true, "vs": true, "vd": true}
	isNumber = map[string]bool{"bver": true, "bt": true, "bv": true, "bs": true, "v": true, "s": true, "t": true, "ut": true}
)

// Pack checks a SenML pack (RFC 8428) and returns it as JSON, numbers as they
// were written. What is wrong with it is Invalid or TooLarge, and says which
// record it is in.
func Pack(format Format, body []byte) (json.RawMessage, error) {
	if len(body) > MaxBody {
		return nil, fault.New(fault.TooLarge, "a message has at most %d bytes; send it in parts", MaxBody)
	}
	var records []map[string]any
	var err error
	switch format {
	case JSON:
		records, err = fromJSON(body)
	case CBOR:
		records, err = fromCBOR(body)
	default:
		return nil, fault.New(fault.Unsupported, "send the message as %s or %s", JSON, CBOR)
	}
	if err != nil {
		return nil, err
	}
	if err := check(records); err != nil {
		return nil, err
	}
	out, err := json.Marshal(records)
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "the message holds a value that JSON cannot write")
	}
	return out, nil
}

func fromJSON(body []byte) (records []map[string]any, err error) {
	if !utf8.Valid(body) {
		return nil, fault.New(fault.Invalid, "the message is not UTF-8")
	}
	d := json.NewDecoder(bytes.NewReader(body))
	d.UseNumber()
	if err := d.Decode(&records); err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "the message is not a JSON array of SenML records")
	}
	if d.More() {
		return nil, fault.New(fault.Invalid, "something follows the array of records")
	}
	return records, nil
}

// packs reads CBOR within bounds that no SenML pack needs to leave.
var packs = func() cbor.DecMode {
	m, err := cbor.DecOptions{
		DupMapKey: cbor.DupMapKeyEnforcedAPF, MaxNestedLevels: 4, MaxArrayElements: MaxRecords + 1, MaxMapPairs: 32, TagsMd: cbor.TagsForbidden,
	}.DecMode()
	if err != nil {
		panic(err) // the options are constants
	}
	return m
}()

func fromCBOR(body []byte) ([]map[string]any, error) {
	var raw []map[any]any
	if err := packs.Unmarshal(body, &raw); err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "the message is not a CBOR array of SenML records")
	}
	records := make([]map[string]any, len(raw))
	for i, r := range raw {
		records[i] = make(map[string]any, len(r))
		for k, v := range r {
			name, err := label(k)
			if err != nil {
				return nil, inRecord(i, "%s", err.Error())
			}
			if records[i][name], err = plain(name, v); err != nil {
				return nil, inRecord(i, "%s", err.Error())
			}
		}
	}
	return records, nil
}

func label(k any) (string, error) {
	switch k := k.(type) {
	case string:
		return k, nil
	case uint64:
		if name, ok := labels[int64(k)]; ok && k < 16 { //nolint:gosec // G115: labels are small; larger ones are not found
			return name, nil
		}
	case int64:
		if name, ok := labels[k]; ok {
			return name, nil
		}
	}
	return "", fmt.Errorf("has a label this server does not know: %v", k)
}

// plain turns a value as CBOR has it into what JSON would have: numbers that
// json.Marshal writes, data in base64url (RFC 8428, 6).
func plain(name string, v any) (any, error) {
	switch v := v.(type) {
	case []byte:
		if name != "vd" {
			return nil, fmt.Errorf("has bytes in %s, which is not vd", name)
		}
		return base64url(v), nil
	case float64:
		if math.IsNaN(v) || math.IsInf(v, 0) {
			return nil, fmt.Errorf("has a %s that is no number", name)
		}
		return v, nil
	case uint64, int64, string, bool:
		return v, nil
	}
	return nil, fmt.Errorf("has a %s of a type SenML does not know", name)
}

// check holds records to RFC 8428, sections 4 and 5.
func check(records []map[string]any) error {
	if len(records) == 0 {
		return fault.New(fault.Invalid, "the message has no records")
	}
	if len(records) > MaxRecords {
		return fault.New(fault.TooLarge, "a message has at most %d records; send it in parts", MaxRecords)
	}
	base := ""
	var version any
	for i, r := range records {
		if r == nil {
			return inRecord(i, "is null")
		}
		for name, v := range r {
			if err := checkField(i, name, v); err != nil {
				return err
			}
		}
		if b, ok := r["bn"].(string); ok {
			base = b
		}
		if v, ok := r["bver"]; ok {
			if n, ok := number(v); !ok || n < 1 || n > supported || n != math.Trunc(n) {
				return inRecord(i, "is of a version that is not understood; the highest is %d", supported)
			}
			if version != nil && fmt.Sprint(version) != fmt.Sprint(v) {
				return inRecord(i, "is of another version than those before (RFC 8428, 4.4)")
			}
			version = v
		}
		if err := checkRecord(i, base, r); err != nil {
			return err
		}
	}
	return nil
}

func checkField(i int, name string, v any) error {
	switch {
	case isText[name]:
		if _, ok := v.(string); !ok {
			return inRecord(i, "has a %s that is not text", name)
		}
	case isNumber[name]:
		if _, ok := number(v); !ok {
			return inRecord(i, "has a %s that is not a number", name)
		}
	case name == "vb":
		if _, ok := v.(bool); !ok {
			return inRecord(i, "has a vb that is neither true nor false")
		}
	case strings.HasSuffix(name, "_"):
		return inRecord(i, "has the field %q, which must be understood and is not (RFC 8428, 4.4)", name)
	}
	return nil
}

// checkRecord holds one record to having a name, and at most one value.
func checkRecord(i int, base string, r map[string]any) error {
	values := 0
	for _, name := range []string{"v", "vs", "vb", "vd"} {
		if _, ok := r[name]; ok {
			values++
		}
	}
	if values > 1 {
		return inRecord(i, "has more than one value")
	}
	_, sum := r["s"]
	if values == 0 && !sum {
		for name := range r {
			if strings.HasPrefix(name, "b") {
				return nil // it sets bases for those after it
			}
		}
		return inRecord(i, "has neither a value nor a sum")
	}
	n, _ := r["n"].(string)
	return checkName(i, base+n)
}

// checkName is by RFC 8428, 4.5.1.
func checkName(i int, name string) error {
	if name == "" {
		return inRecord(i, "has no name: neither bn nor n")
	}
	if len(name) > maxName {
		return inRecord(i, "has a name of more than %d bytes", maxName)
	}
	for at, c := range []byte(name) {
		word := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
		if !word && (at == 0 || !strings.ContainsRune("-:./_", rune(c))) {
			return inRecord(i, "has a name with a character that is not allowed there: %q (RFC 8428, 4.5.1)", c)
		}
	}
	return nil
}

func number(v any) (float64, bool) {
	switch v := v.(type) {
	case json.Number:
		f, err := v.Float64()
		return f, err == nil
	case float64:
		return v, true
	case uint64:
		return float64(v), true
	case int64:
		return float64(v), true
	}
	return 0, false
}

func inRecord(i int, format string, args ...any) error {
	return fault.New(fault.Invalid, "record %d %s", i+1, fmt.Sprintf(format, args...))
}
