package psk

import (
	"encoding/base64"
	"encoding/hex"

	"keystead/seal"
)

// Identity is the name a device sends in the handshake (RFC 4279, 2). One made
// here is a random GUID in 22 characters: base64url, without padding, of its
// bytes in the order .NET keeps them, the first three fields little-endian.
type Identity string

// IdentityOf returns the identity a GUID, written in lower case with dashes, is
// the name of; "" if it is not written so.
func IdentityOf(guid string) Identity {
	if len(guid) != 36 || guid[8] != '-' || guid[13] != '-' || guid[18] != '-' || guid[23] != '-' {
		return ""
	}
	b, err := hex.DecodeString(guid[:8] + guid[9:13] + guid[14:18] + guid[19:23] + guid[24:])
	if err != nil {
		return ""
	}
	swap((*[16]byte)(b))
	return Identity(base64.RawURLEncoding.EncodeToString(b))
}

// GUID returns the GUID that i is the 22-character form of, in lower case with
// dashes, and false if i is not of that form.
func (i Identity) GUID() (string, bool) {
	b, err := base64.RawURLEncoding.Strict().DecodeString(string(i))
	if err != nil || len(b) != 16 {
		return "", false
	}
	swap((*[16]byte)(b))
	s := hex.EncodeToString(b)
	return s[:8] + "-" + s[8:12] + "-" + s[12:16] + "-" + s[16:20] + "-" + s[20:], true
}

// swap turns a GUID from the order it is written in to that of .NET, or back.
func swap(b *[16]byte) {
	b[0], b[1], b[2], b[3] = b[3], b[2], b[1], b[0]
	b[4], b[5] = b[5], b[4]
	b[6], b[7] = b[7], b[6]
}

// newIdentity returns a random GUID of version 4 as an identity. None begins
// with "-", which command lines of clients take for an option.
func newIdentity() Identity {
	for {
		b := (*[16]byte)(seal.NewSecret(16))
		b[6] = b[6]&0x0f | 0x40
		b[8] = b[8]&0x3f | 0x80
		swap(b)
		if text := base64.RawURLEncoding.EncodeToString(b[:]); text[0] != '-' {
			return Identity(text)
		}
	}
}

// letters leaves out those that are mistaken for each other when typed. Being
// 32, they divide a random byte evenly.
const letters = "abcdefghijkmnpqrstuvwxyz23456789"

// printable returns n random characters, five bits each.
func printable(n int) seal.Secret {
	s := seal.NewSecret(n)
	for i, b := range s {
		s[i] = letters[b%32]
	}
	return s
}

// isText reports whether s can be typed.
func isText(s seal.Secret) bool {
	for _, b := range s {
		if b < 0x20 || b > 0x7e {
			return false
		}
	}
	return true
}
