package lwm2m

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"strconv"
)

// senML is one SenML record (RFC 8428) as LwM2M uses them.
type senML struct {
	Base  string // bn
	Name  string // n
	Value Value
}

// senMLRecords returns a record for each value of the instances, their names
// relative to base, which the first record carries.
func senMLRecords(base string, list []Instance) []senML {
	var records []senML
	for _, i := range list {
		prefix := ""
		if base == "" {
			prefix = i.Path() + "/"
		}
		for _, r := range i.Resources {
			name := prefix + strconv.Itoa(int(r.ID))
			if r.Values == nil {
				records = append(records, senML{Name: name, Value: r.Value})
			}
			for _, e := range r.Values {
				records = append(records, senML{Name: name + "/" + strconv.Itoa(int(e.ID)), Value: e.Value})
			}
		}
	}
	if len(records) > 0 {
		records[0].Base = base
	}
	return records
}

// senMLJSON writes records as JSON, the members in a fixed order.
func senMLJSON(records []senML) ([]byte, error) {
	b := []byte{'['}
	for i, r := range records {
		if i > 0 {
			b = append(b, ',')
		}
		b = append(b, '{')
		if r.Base != "" {
			b = append(append(append(b, `"bn":`...), jsonString(r.Base)...), ',')
		}
		b = append(append(b, `"n":`...), jsonString(r.Name)...)
		switch v := r.Value.(type) {
		case int64:
			b = strconv.AppendInt(append(b, `,"v":`...), v, 10)
		case float64:
			if math.IsNaN(v) || math.IsInf(v, 0) {
				return nil, fmt.Errorf("lwm2m: %s: JSON has no %v", r.Name, v)
			}
			b = strconv.AppendFloat(append(b, `,"v":`...), v, 'g', -1, 64)
		case bool:
			b = strconv.AppendBool(append(b, `,"vb":`...), v)
		case string:
			b = append(append(b, `,"vs":`...), jsonString(v)...)
		case []byte:
			b = append(b, `,"vd":"`...)
			b = append(base64.RawURLEncoding.AppendEncode(b, v), '"')
		case Link:
			b = append(append(b, `,"vlo":`...), jsonString(v.String())...)
		}
		b = append(b, '}')
	}
	return append(b, ']'), nil
}

func jsonString(s string) []byte {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(s); err != nil {
		return []byte(`""`) // no string fails to encode
	}
	return bytes.TrimRight(b.Bytes(), "\n")
}

// The labels of SenML in CBOR (RFC 8428, 6).
const (
	labelBaseName = -2
	labelName     = 0
	labelValue    = 2
	labelString   = 3
	labelBool     = 4
	labelData     = 8
)

// senMLCBOR writes records as CBOR, the members in a fixed order.
func senMLCBOR(records []senML) []byte {
	b := cborHead(nil, cborArray, uint64(len(records)))
	for _, r := range records {
		n := uint64(1)
		if r.Base != "" {
			n++
		}
		if r.Value != nil {
			n++
		}
		b = cborHead(b, cborMap, n)
		if r.Base != "" {
			b = cborText(cborInt(b, labelBaseName), r.Base)
		}
		b = cborText(cborInt(b, labelName), r.Name)
		switch v := r.Value.(type) {
		case int64, float64:
			b = cborInt(b, labelValue)
		case bool:
			b = cborInt(b, labelBool)
		case string:
			b = cborInt(b, labelString)
		case []byte:
			b = cborInt(b, labelData)
		case Link:
			b = cborText(cborText(b, "vlo"), v.String())
			continue
		}
		b = cborValue(b, r.Value)
	}
	return b
}

// senMLFields is a record as it is read; what is not of LwM2M is refused.
type senMLFields struct {
	BaseName *string      `json:"bn"`
	Name     *string      `json:"n"`
	Value    *json.Number `json:"v"`
	String   *string      `json:"vs"`
	Bool     *bool        `json:"vb"`
	Data     *string      `json:"vd"`
	Link     *string      `json:"vlo"`
	BaseTime *json.Number `json:"bt"`
	Time     *json.Number `json:"t"`
}

// ParseSenMLJSON reads a write or a pack in SenML JSON. Opaque values may be in
// either alphabet of base64.
func ParseSenMLJSON(b []byte) ([]Instance, error) {
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	d.DisallowUnknownFields()
	var records []senMLFields
	if err := d.Decode(&records); err != nil {
		return nil, fmt.Errorf("%w: SenML: %w", ErrFormat, err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%w: something after the SenML", ErrFormat)
	}
	var t tree
	base := ""
	for _, r := range records {
		if r.BaseName != nil {
			base = *r.BaseName
		}
		v, err := r.value()
		if err != nil {
			return nil, err
		}
		if err := t.record(base, r.Name, v); err != nil {
			return nil, err
		}
	}
	return t.list, nil
}

func (r senMLFields) value() (v Value, err error) {
	found := 0
	if r.Value != nil {
		found++
		if n, err := r.Value.Int64(); err == nil {
			v = n
		} else if f, err := r.Value.Float64(); err == nil {
			v = f
		} else {
			return nil, fmt.Errorf("%w: %s is no number", ErrFormat, r.Value)
		}
	}
	if r.String != nil {
		found++
		v = *r.String
	}
	if r.Bool != nil {
		found++
		v = *r.Bool
	}
	if r.Data != nil {
		found++
		if v, err = anyBase64(*r.Data); err != nil {
			return nil, err
		}
	}
	if r.Link != nil {
		found++
		if v, err = parseLink(*r.Link); err != nil {
			return nil, err
		}
	}
	if found > 1 {
		return nil, fmt.Errorf("%w: a record with %d values", ErrFormat, found)
	}
	return v, nil
}

func anyBase64(s string) ([]byte, error) {
	for _, alphabet := range []*base64.Encoding{base64.RawURLEncoding, base64.URLEncoding, base64.RawStdEncoding, base64.StdEncoding} {
		if b, err := alphabet.DecodeString(s); err == nil {
			return b, nil
		}
	}
	return nil, fmt.Errorf("%w: a value is not base64", ErrFormat)
}

// record adds one record to the tree. A record without a value says nothing.
func (t *tree) record(base string, name *string, v Value) error {
	path := base
	if name != nil {
		path += *name
	}
	if v == nil {
		return nil
	}
	ids, err := splitPath(path)
	if err != nil {
		return err
	}
	return t.add(ids, v)
}

// ParseSenMLCBOR reads a write or a pack in SenML CBOR.
func ParseSenMLCBOR(b []byte) ([]Instance, error) {
	item, err := parseCBOR(b)
	if err != nil {
		return nil, err
	}
	records, ok := item.([]any)
	if !ok {
		return nil, fmt.Errorf("%w: SenML is an array, not a %T", ErrFormat, item)
	}
	var t tree
	base := ""
	for _, r := range records {
		fields, ok := r.(cborPairs)
		if !ok {
			return nil, fmt.Errorf("%w: a SenML record is a map, not a %T", ErrFormat, r)
		}
		var name *string
		var v Value
		for _, f := range fields {
			s, isText := f.value.(string)
			switch {
			case f.key == any("vlo") && isText && v == nil:
				if v, err = parseLink(s); err != nil {
					return nil, err
				}
			case f.key == any(int64(labelBaseName)) && isText:
				base = s
			case f.key == any(int64(labelName)) && isText:
				name = &s
			case v == nil && fits(f.key, f.value):
				v = f.value
			default:
				return nil, fmt.Errorf("%w: a %T under label %v, or a second value", ErrFormat, f.value, f.key)
			}
		}
		if err := t.record(base, name, v); err != nil {
			return nil, err
		}
	}
	return t.list, nil
}

// fits reports whether a value is of the type its label says.
func fits(label any, v Value) bool {
	switch v.(type) {
	case int64, float64:
		return label == any(int64(labelValue))
	case string:
		return label == any(int64(labelString))
	case bool:
		return label == any(int64(labelBool))
	case []byte:
		return label == any(int64(labelData))
	}
	return false
}
