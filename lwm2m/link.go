package lwm2m

import (
	"fmt"
	"strconv"
	"strings"
)

// Discovered is what a client says of itself in answer to Bootstrap-Discover.
type Discovered struct {
	Version string // "1.0", "1.1", …; "" if it does not say
	Found   []Found
}

// Found is one object or object instance a client has.
type Found struct {
	Object, Instance uint16
	IsObject         bool   // the object itself, without an instance
	SSID             uint16 // short server id; 0 if none is given
	URI              string
}

// ParseDiscover reads the link format (RFC 6690) of a Bootstrap-Discover. Values
// may be quoted or not. The version stands as an attribute of "</>", or, with
// 1.0 clients, as a link of its own: `lwm2m="1.0"`.
func ParseDiscover(b []byte) (Discovered, error) {
	var d Discovered
	for _, text := range splitLinks(string(b), ',') {
		parts := splitLinks(text, ';')
		head := strings.TrimSpace(parts[0])
		target, isLink := strings.CutPrefix(head, "<")
		target, closed := strings.CutSuffix(target, ">")
		attrs := parts[1:]
		if !isLink {
			attrs, target = parts, "/"
		} else if !closed {
			return d, fmt.Errorf("%w: link %q is not closed", ErrFormat, head)
		}
		f, ok := foundAt(target)
		for _, attr := range attrs {
			name, value, _ := strings.Cut(strings.TrimSpace(attr), "=")
			value = unquote(value)
			switch name {
			case "lwm2m":
				d.Version = value
			case "uri":
				f.URI = value
			case "ssid":
				n, err := strconv.ParseUint(value, 10, 16)
				if err != nil {
					return d, fmt.Errorf("%w: ssid %q", ErrFormat, value)
				}
				f.SSID = uint16(n)
			}
		}
		if ok {
			d.Found = append(d.Found, f)
		}
	}
	return d, nil
}

// foundAt reads a target such as "/0/1". Others, such as "/" and alternate
// paths, are left aside.
func foundAt(target string) (f Found, ok bool) {
	ids, err := splitPath(target)
	switch {
	case err != nil || len(ids) > 2:
		return f, false
	case len(ids) == 1:
		return Found{Object: ids[0], IsObject: true}, true
	}
	return Found{Object: ids[0], Instance: ids[1]}, true
}

// splitLinks splits at sep, outside of quotes and of angle brackets.
func splitLinks(s string, sep byte) []string {
	var parts []string
	start, quoted, target := 0, false, false
	for i := range len(s) {
		switch c := s[i]; {
		case quoted:
			quoted = c != '"'
		case c == '"':
			quoted = true
		case c == '<':
			target = true
		case c == '>':
			target = false
		case c == sep && !target:
			parts = append(parts, s[start:i])
			start = i + 1
		}
	}
	return append(parts, s[start:])
}

func unquote(s string) string {
	if inner, ok := strings.CutPrefix(s, `"`); ok {
		return strings.TrimSuffix(inner, `"`)
	}
	return s
}

// URI returns where a Security instance leads, "" if the client does not say.
func (d Discovered) URI(instance uint16) string {
	for _, f := range d.Found {
		if !f.IsObject && f.Object == objectSecurity && f.Instance == instance {
			return f.URI
		}
	}
	return ""
}

// BootstrapAccount returns the Security instance that is the client's account
// with its bootstrap server: the one without a short server id. If several have
// none, the one whose URI is among ours. It is false if there is none.
func (d Discovered) BootstrapAccount(ours func(uri string) bool) (uint16, bool) {
	var account *Found
	for i, f := range d.Found {
		if f.IsObject || f.Object != objectSecurity || f.SSID != 0 {
			continue
		}
		if account == nil || ours(f.URI) && !ours(account.URI) {
			account = &d.Found[i]
		}
	}
	if account == nil {
		return 0, false
	}
	return account.Instance, true
}
