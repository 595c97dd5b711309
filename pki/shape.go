package pki

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/sha256"
	"encoding/binary"
	"slices"
	"sync"

	"golang.org/x/crypto/cryptobyte"
	tags "golang.org/x/crypto/cryptobyte/asn1"
)

// shape is a hash of all that a lint can tell of a template: everything but what
// is of each certificate alone, and of that, what kind it is.
type shape [sha256.Size]byte

// maxShapes is how many shapes are remembered. A CA and a profile make one for each
// shard of the CA and kind of key, and for each set of alternative names.
const maxShapes = 4096

// relint is of how many templates of a known shape one is linted all the same.
const relint = 64

// shapes are those whose first template was linted, without a finding.
type shapes struct {
	mu   sync.Mutex
	seen map[shape]int
}

func (s *shapes) known(sh shape) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	n, ok := s.seen[sh]
	if ok {
		s.seen[sh] = n + 1
	}
	return ok && n%relint != 0
}

func (s *shapes) add(sh shape) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.seen == nil || len(s.seen) >= maxShapes {
		s.seen = map[shape]int{}
	}
	if _, ok := s.seen[sh]; !ok {
		s.seen[sh] = 1
	}
}

// shape returns the template's. It is not regular if what is of it alone is of a
// kind that lints look into: an RSA key, a subject with more than plain text.
//
// Left out are the digits of the serial number, which is made here and always as
// long; the key, which is a point that was checked to be on its curve; the
// key identifier that follows from it; the times, but for the form they are written
// in; and of a subject's common name, serial number, organisation and unit the text,
// if it is short and of letters, digits and the like. What is left is hashed as it is.
func (t *template) shape() (sh shape, regular bool) {
	b := make([]byte, 0, 1024)
	note := func(part []byte) { b = append(binary.AppendUvarint(b, uint64(len(part))), part...) }
	switch k := t.public.(type) {
	case *ecdsa.PublicKey:
		if k.Curve != elliptic.P256() && k.Curve != elliptic.P384() {
			return sh, false
		}
		note([]byte(k.Curve.Params().Name))
	case ed25519.PublicKey:
		note([]byte("Ed25519"))
	default:
		return sh, false
	}
	if t.serial.Sign() <= 0 || !t.notBefore.Before(t.notAfter) || !plainSubject(note, t.subject) {
		return sh, false
	}
	note([]byte(t.algorithm))
	b = binary.AppendUvarint(b, uint64(t.serial.BitLen())) //nolint:gosec // G115: not negative
	// Lints begin at dates: two certificates of one year may be of different rules, so
	// the day counts. Of the end, only how it is written.
	b = t.notBefore.UTC().AppendFormat(b, "2006-01-02")
	b = append(b, bit(t.notAfter.UTC().Year() >= 2050))
	note(t.issuer)
	note(t.authorityKeyID)
	own := octets(t.keyID)
	for _, e := range t.extensions {
		note([]byte(e.Id.String()))
		b = append(b, bit(e.Critical))
		if e.Id.Equal(oidSubjectKeyID) && string(e.Value) == string(own) && len(t.keyID) == 20 {
			continue
		}
		note(e.Value)
	}
	return sha256.Sum256(b), true
}

func bit(is bool) byte {
	if is {
		return 1
	}
	return 0
}

// attributes whose text, if it is plain, no lint tells from another's, in DER.
var plainAttributes = [][]byte{{0x55, 4, 3}, {0x55, 4, 5}, {0x55, 4, 10}, {0x55, 4, 11}} // common name, serial number, organisation and unit

// plainSubject notes the subject's parts without their text. It reports false if one
// of them is not plain.
func plainSubject(note func([]byte), name []byte) bool {
	var parts cryptobyte.String
	if whole := cryptobyte.String(name); !whole.ReadASN1(&parts, tags.SEQUENCE) || !whole.Empty() {
		return false
	}
	for !parts.Empty() {
		var part, attribute, kind, text cryptobyte.String
		var tag tags.Tag
		if !parts.ReadASN1(&part, tags.SET) || !part.ReadASN1(&attribute, tags.SEQUENCE) || !part.Empty() ||
			!attribute.ReadASN1(&kind, tags.OBJECT_IDENTIFIER) || !attribute.ReadAnyASN1(&text, &tag) || !attribute.Empty() {
			return false
		}
		known := slices.ContainsFunc(plainAttributes, func(a []byte) bool { return bytes.Equal(a, kind) })
		if !known || tag != tags.PrintableString && tag != tags.UTF8String || !plain(text) {
			return false
		}
		note(kind)
		note([]byte{byte(tag)})
	}
	note(nil) // the end of them
	return true
}

// plain reports whether text is what every string of a subject may hold: 1 to 64
// letters, digits, dots, colons and dashes, and nothing that could be a domain name
// in another script.
func plain(text []byte) bool {
	if len(text) == 0 || len(text) > 64 || bytes.Contains(text, []byte("--")) {
		return false
	}
	for _, c := range text {
		letter := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z'
		if !letter && (c < '0' || c > '9') && c != '.' && c != '-' && c != ':' {
			return false
		}
	}
	return true
}
