package pki

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/sha256"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"hash"
	"sync"
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
	h := sha256.New()
	note := func(part []byte) {
		fmt.Fprintf(h, "%d:", len(part))
		h.Write(part)
	}
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
	if t.serial.Sign() <= 0 || !t.notBefore.Before(t.notAfter) || !plainSubject(h, t.subject) {
		return sh, false
	}
	fmt.Fprintf(h, "%d %t %t %q", t.serial.BitLen(), t.notBefore.UTC().Year() < 2050, t.notAfter.UTC().Year() < 2050, t.algorithm)
	// Lints begin at dates: two certificates of one year may be of different rules, so
	// the day counts.
	note([]byte(t.notBefore.UTC().Format("2006-01-02")))
	note(t.issuer)
	note(t.authorityKeyID)
	own := mustMarshal(t.keyID)
	for _, e := range t.extensions {
		fmt.Fprintf(h, "%v %t", e.Id, e.Critical)
		if e.Id.Equal(oidSubjectKeyID) && string(e.Value) == string(own) && len(t.keyID) == 20 {
			continue
		}
		note(e.Value)
	}
	h.Sum(sh[:0])
	return sh, true
}

// attributes whose text, if it is plain, no lint tells from another's.
var plainAttributes = []asn1.ObjectIdentifier{oidAttrCommonName, oidAttrSerialNumber, {2, 5, 4, 10}, {2, 5, 4, 11}}

// plainSubject hashes the subject's parts without their text. It reports false if one
// of them is not plain.
func plainSubject(h hash.Hash, der []byte) bool {
	var rdns pkix.RDNSequence
	if rest, err := asn1.Unmarshal(der, &rdns); err != nil || len(rest) > 0 {
		return false
	}
	var raw []asn1.RawValue // the same, with the kinds of strings
	if _, err := asn1.Unmarshal(der, &raw); err != nil || len(raw) != len(rdns) {
		return false
	}
	for i, rdn := range rdns {
		if len(rdn) != 1 {
			return false
		}
		var set struct {
			Type  asn1.ObjectIdentifier
			Value asn1.RawValue
		}
		if rest, err := asn1.Unmarshal(raw[i].Bytes, &set); err != nil || len(rest) > 0 {
			return false
		}
		tag := set.Value.Tag
		if set.Value.Class != asn1.ClassUniversal || tag != asn1.TagPrintableString && tag != asn1.TagUTF8String || !plain(set.Value.Bytes) {
			return false
		}
		known := false
		for _, oid := range plainAttributes {
			known = known || oid.Equal(set.Type)
		}
		if !known {
			return false
		}
		fmt.Fprintf(h, "%v %d/", set.Type, tag)
	}
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
