package server

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"unicode/utf8"

	"keystead/fault"
)

// Limits on what a JSON body may hold, beyond its size.
const (
	maxDepth  = 32
	maxString = 64 << 10
)

// strictJSON reads one JSON value into v. Beyond what the language asks for, the
// text must be UTF-8, no object may name a field twice, and none may name one
// that v does not have: what the sender meant is never a guess.
func strictJSON(text []byte, v any) error {
	if !utf8.Valid(text) {
		return fault.New(fault.Invalid, "the body is not UTF-8")
	}
	if err := unambiguous(text); err != nil {
		return err
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return badJSON(err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return fault.New(fault.Invalid, "the body has something after its JSON value")
	}
	return nil
}

// looseJSON is strictJSON that leaves fields alone that v does not have: clients
// of a newer version of a published API may send them.
func looseJSON(text []byte, v any) error {
	if !utf8.Valid(text) {
		return fault.New(fault.Invalid, "the body is not UTF-8")
	}
	if err := unambiguous(text); err != nil {
		return err
	}
	if err := json.Unmarshal(text, v); err != nil {
		return badJSON(err)
	}
	return nil
}

// level is an object or an array that the walk is in.
type level struct {
	keys map[string]bool // of an object; nil in an array
	name bool            // the next string names a field
}

// unambiguous refuses text that is nested too deep, or has a field twice or a
// string that is too long. It stops where the text is not JSON: the decoder says
// so better.
func unambiguous(text []byte) error {
	d := json.NewDecoder(bytes.NewReader(text))
	d.UseNumber()
	var path []level
	for {
		token, err := d.Token()
		if err != nil {
			return nil //nolint:nilerr // the decoder finds it again
		}
		if len(path) == 0 {
			if token == nil {
				return fault.New(fault.Invalid, "the body is null; send a JSON object")
			}
		} else if in := &path[len(path)-1]; in.keys != nil {
			name, isText := token.(string)
			if in.name && isText {
				if in.keys[name] {
					return fault.New(fault.Invalid, "the body has the field %q twice", short(name))
				}
				in.keys[name], in.name = true, false
				continue
			}
			in.name = true
		}
		switch t := token.(type) {
		case json.Delim:
			switch t {
			case '{':
				path = append(path, level{keys: map[string]bool{}, name: true})
			case '[':
				path = append(path, level{})
			default:
				path = path[:len(path)-1]
				if len(path) == 0 {
					return nil
				}
			}
			if len(path) > maxDepth {
				return fault.New(fault.Invalid, "the body is nested deeper than %d levels", maxDepth)
			}
		case string:
			if len(t) > maxString {
				return fault.New(fault.Invalid, "the body has a string longer than %d bytes", maxString)
			}
		}
		if len(path) == 0 {
			return nil
		}
	}
}

func short(name string) string {
	if len(name) > 64 {
		return fmt.Sprintf("%.64s…", name)
	}
	return name
}
