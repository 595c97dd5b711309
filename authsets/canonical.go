package authsets

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Limits on an identity.
const (
	maxIdentity   = 4 << 10 // bytes, as sent and in canonical form
	maxAttributes = 64      // names, at all levels together
	maxNesting    = 8
)

// Canonical is an identity in its one form: JSON with names sorted, without blanks,
// the last of names that come twice, and numbers as encoding/json writes them where that
// is exact, else with all their digits: two identities have the same form only
// if they say the same.
type Canonical string

// Canonicalise returns the canonical form of an identity, a JSON object with at least
// one attribute.
func Canonicalise(text []byte) (Canonical, error) {
	if len(text) > maxIdentity {
		return "", fmt.Errorf("the identity has more than %d bytes", maxIdentity)
	}
	if plainly(text) {
		return Canonical(text), nil
	}
	if !utf8.Valid(text) {
		return "", errors.New("the identity is not UTF-8")
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	var v any
	if err := d.Decode(&v); err != nil {
		return "", err
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return "", errors.New("something follows the object")
	}
	attributes, ok := v.(map[string]any)
	if !ok {
		return "", errors.New("the identity is not a JSON object")
	}
	if len(attributes) == 0 {
		return "", errors.New("the identity has no attributes")
	}
	w := writer{}
	if err := w.value(attributes, 0); err != nil {
		return "", err
	}
	if w.b.Len() > maxIdentity {
		return "", fmt.Errorf("the identity has more than %d bytes", maxIdentity)
	}
	return Canonical(w.b.String()), nil
}

// plainly reports whether text is in canonical form as it stands, for the form that the identities
// of most devices have: an object of plain strings. It spares them being decoded and written anew.
func plainly(text []byte) bool {
	rest, ok := bytes.CutPrefix(text, []byte{'{'})
	if !ok {
		return false
	}
	var name, last []byte
	for n := range maxAttributes {
		if name, rest, ok = plainString(rest, ':'); !ok || n > 0 && bytes.Compare(last, name) >= 0 {
			return false
		}
		if _, rest, ok = plainString(rest, ','); ok {
			last = name
			continue
		}
		_, rest, ok = plainString(rest, '}')
		return ok && len(rest) == 0
	}
	return false
}

// plainString takes a JSON string of printable ASCII, in which nothing is or should be escaped,
// and the byte after it off text.
func plainString(text []byte, after byte) (content, rest []byte, ok bool) {
	if len(text) == 0 || text[0] != '"' {
		return nil, text, false
	}
	for i, c := range text[1:] {
		switch {
		case c == '"':
			at := i + 2
			if at == len(text) || text[at] != after {
				return nil, text, false
			}
			return text[1 : i+1], text[at+1:], true
		case c < ' ' || c > '~' || c == '\\' || c == '<' || c == '>' || c == '&':
			return nil, text, false
		}
	}
	return nil, text, false
}

// hash is what an identity is found by.
func (c Canonical) hash() string {
	sum := sha256.Sum256([]byte(c))
	return string(sum[:])
}

// Attributes returns the attributes that are strings or numbers, as text.
func (c Canonical) Attributes() map[string]string {
	d := json.NewDecoder(strings.NewReader(string(c)))
	d.UseNumber()
	var all map[string]any
	_ = d.Decode(&all) // it is JSON
	texts := map[string]string{}
	for name, v := range all {
		switch v := v.(type) {
		case string:
			texts[name] = v
		case json.Number:
			texts[name] = v.String()
		}
	}
	return texts
}

// name is what people see of an identity.
func (c Canonical) name() string {
	const most = 128
	all := c.Attributes()
	parts := make([]string, 0, len(all))
	for _, k := range slices.Sorted(maps.Keys(all)) {
		parts = append(parts, k+"="+all[k])
	}
	name := strings.Join(parts, ",")
	name = strings.Map(func(r rune) rune {
		if r < ' ' || 0x7f <= r && r <= 0x9f {
			return ' '
		}
		return r
	}, name)
	for len(name) > most {
		_, size := utf8.DecodeLastRuneInString(name)
		name = name[:len(name)-size]
	}
	return name
}

// writer writes canonical JSON.
type writer struct {
	b     strings.Builder
	names int
}

func (w *writer) value(v any, depth int) error {
	if depth > maxNesting {
		return errors.New("the identity is nested too deep")
	}
	switch v := v.(type) {
	case map[string]any:
		return w.object(v, depth)
	case []any:
		w.b.WriteByte('[')
		for i, item := range v {
			if i > 0 {
				w.b.WriteByte(',')
			}
			if err := w.value(item, depth+1); err != nil {
				return err
			}
		}
		w.b.WriteByte(']')
	case json.Number:
		n, err := number(v.String())
		w.b.WriteString(n)
		return err
	case string:
		return w.text(v)
	case bool:
		w.b.WriteString(strconv.FormatBool(v))
	case nil:
		w.b.WriteString("null")
	}
	return nil
}

func (w *writer) object(v map[string]any, depth int) error {
	if w.names += len(v); w.names > maxAttributes {
		return fmt.Errorf("the identity has more than %d attributes", maxAttributes)
	}
	w.b.WriteByte('{')
	for i, name := range slices.Sorted(maps.Keys(v)) {
		if i > 0 {
			w.b.WriteByte(',')
		}
		if err := w.text(name); err != nil {
			return err
		}
		w.b.WriteByte(':')
		if err := w.value(v[name], depth+1); err != nil {
			return err
		}
	}
	w.b.WriteByte('}')
	return nil
}

// text refuses the character that decoders put in the place of what is no Unicode:
// different identities would look the same.
func (w *writer) text(s string) error {
	if strings.ContainsRune(s, utf8.RuneError) {
		return errors.New("the identity holds text that is no Unicode")
	}
	b, err := json.Marshal(s)
	w.b.Write(b)
	return err
}

// number returns the one way a number is written. That is the way of encoding/json
// for what a float64 holds exactly, in decimal: 1.0 is 1, 1e2 is 100.
func number(literal string) (string, error) {
	exact, err := parseDecimal(literal)
	if err != nil {
		return "", err
	}
	if f, err := strconv.ParseFloat(literal, 64); err == nil {
		b, err := json.Marshal(f)
		if err != nil {
			return "", err
		}
		if near, err := parseDecimal(string(b)); err == nil && near == exact {
			return string(b), nil
		}
	}
	return exact.String(), nil
}

// decimal is ±0.digits × 10^exp, with no zeros at either end of digits; zero has none.
type decimal struct {
	negative bool
	digits   string
	exp      int
}

// maxExponent bounds the exponent of a number, which nobody needs.
const maxExponent = 100_000

func parseDecimal(literal string) (d decimal, err error) {
	mantissa, exponent, _ := strings.Cut(strings.ToLower(literal), "e")
	if exponent != "" {
		if d.exp, err = strconv.Atoi(exponent); err != nil || d.exp > maxExponent || d.exp < -maxExponent {
			return d, errors.New("the identity has a number beyond all measure")
		}
	}
	mantissa, d.negative = strings.CutPrefix(mantissa, "-")
	whole, fraction, _ := strings.Cut(mantissa, ".")
	d.digits = whole + fraction
	d.exp += len(whole)
	trimmed := strings.TrimLeft(d.digits, "0")
	d.exp -= len(d.digits) - len(trimmed)
	d.digits = strings.TrimRight(trimmed, "0")
	if d.digits == "" {
		d.exp = 0
	}
	return d, nil
}

// String writes d in scientific notation, which no number that encoding/json
// writes and is equal to it has: it has too many digits for one.
func (d decimal) String() string {
	sign := ""
	if d.negative {
		sign = "-"
	}
	if d.exp >= len(d.digits) && d.exp <= 40 {
		return sign + d.digits + strings.Repeat("0", d.exp-len(d.digits))
	}
	rest := ""
	if len(d.digits) > 1 {
		rest = "." + d.digits[1:]
	}
	return fmt.Sprintf("%s%s%se%+d", sign, d.digits[:1], rest, d.exp-1)
}
