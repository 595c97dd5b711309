package devices

import (
	"strings"
	"unicode"
	"unicode/utf8"

	"keystead/fault"
)

// Limits on what a device record holds.
const (
	MaxName    = 256  // bytes of a name, an alias, a label's key
	MaxValue   = 1024 // bytes of a label's or metadata's value, and of a comment
	MaxAliases = 16
	MaxLabels  = 64 // labels, and metadata entries
)

func (d *Device) check() error {
	var bad []fault.Field
	note := func(field, message string) { bad = append(bad, fault.Field{Name: field, Message: message}) }
	checkText(d.Name, 1, MaxName, "name", note)
	checkText(d.Comment, 0, MaxValue, "comment", note)
	if len(d.Aliases) > MaxAliases {
		note("aliases", "a device has at most 16 aliases")
	}
	for _, a := range d.Aliases {
		checkText(a.Value, 1, MaxName, "aliases", note)
		if !a.Kind.valid() {
			note("aliases", "kind must be endpoint, ocf_uuid, common_name, serial_number or external")
		}
	}
	checkMap(d.Labels, "labels", note)
	checkMap(d.Metadata, "metadata", note)
	return fault.InvalidFields(bad...)
}

// CheckNotes reports what is wrong with a comment and labels, for rooms that keep them until
// there is a device to have them.
func CheckNotes(comment string, labels map[string]string) error {
	d := Device{Name: "-", Comment: comment, Labels: labels}
	return d.check()
}

func (k AliasKind) valid() bool {
	switch k {
	case Endpoint, OCFUUID, CommonName, SerialNumber, External:
		return true
	}
	return false
}

func checkMap(m map[string]string, field string, note func(field, message string)) {
	if len(m) > MaxLabels {
		note(field, "at most 64 entries")
	}
	for k, v := range m {
		checkText(k, 1, MaxName, field, note)
		checkText(v, 0, MaxValue, field, note)
	}
}

func checkText(s string, shortest, longest int, field string, note func(field, message string)) {
	switch {
	case len(s) < shortest:
		note(field, "must not be empty")
	case len(s) > longest:
		note(field, "is too long")
	case !utf8.ValidString(s):
		note(field, "must be UTF-8")
	case strings.ContainsFunc(s, unicode.IsControl):
		note(field, "must not hold control characters")
	}
}
