package seal

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base32"
	"encoding/hex"
	"hash/crc32"
	"strings"
)

// Ticket is a random credential that names its own record, so that it is found
// by id and compared once:
//
//	keystead_<kind>_<26 characters of id>_<43 of secret>_<6 of checksum>
//
// The fixed beginning lets scanners find one that leaked, the checksum tells a
// mistyped one from a wrong one without a look into the store, and there is
// nothing in it that ends a word or needs quoting.
type Ticket struct {
	Kind   string // 1 to 12 of a to z
	ID     string // of the record: a UUID
	secret Secret // 43 base62 digits, 256 bits
}

const (
	ticketPrefix = "keystead_"
	ticketTail   = 1 + ticketID + 1 + ticketSecret + 1 + ticketSum
	ticketID     = 26
	ticketSecret = 43
	ticketSum    = 6
	ticketKind   = 12 // the longest kind
	base62       = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
)

var ticketIDs = base32.NewEncoding("0123456789abcdefghjkmnpqrstvwxyz").WithPadding(base32.NoPadding)

// NewTicket returns a ticket with a new secret for the record with the given id.
func NewTicket(kind, id string) Ticket {
	return Ticket{Kind: kind, ID: id, secret: Random62(ticketSecret)}
}

// Random62 returns n random base62 digits, 5.95 bits each.
func Random62(n int) Secret {
	out := make(Secret, 0, n)
	var b [64]byte
	for len(out) < n {
		rand.Read(b[:]) // never fails, never short
		for _, x := range b {
			if x &= 63; x < 62 && len(out) < n { // drawing again keeps the digits even
				out = append(out, base62[x])
			}
		}
	}
	return out
}

// ParseTicket reads a ticket. It is false for text that is none, or was changed.
func ParseTicket(text string) (Ticket, bool) {
	if len(text) > len(ticketPrefix)+ticketKind+ticketTail {
		return Ticket{}, false
	}
	rest, ok := strings.CutPrefix(text, ticketPrefix)
	kind := len(rest) - ticketTail
	if !ok || kind < 1 || strings.Trim(rest[:kind], "abcdefghijklmnopqrstuvwxyz") != "" {
		return Ticket{}, false
	}
	body, sum := text[:len(text)-ticketSum-1], text[len(text)-ticketSum-1:]
	id, secret := rest[kind:kind+1+ticketID], rest[kind+1+ticketID:kind+2+ticketID+ticketSecret]
	if sum != "_"+checksum(body) || id[0] != '_' || secret[0] != '_' || strings.Trim(secret[1:], base62) != "" {
		return Ticket{}, false
	}
	raw, err := ticketIDs.DecodeString(id[1:])
	if err != nil || ticketIDs.EncodeToString(raw) != id[1:] {
		return Ticket{}, false
	}
	h := hex.EncodeToString(raw)
	uuid := h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
	return Ticket{Kind: rest[:kind], ID: uuid, secret: Secret(secret[1:])}, true
}

// Text is the whole of t, for the one it is given to.
func (t Ticket) Text() Secret {
	raw, err := hex.DecodeString(strings.ReplaceAll(t.ID, "-", ""))
	if err != nil {
		return nil // not made for a record with a UUID
	}
	body := ticketPrefix + t.Kind + "_" + ticketIDs.EncodeToString(raw) + "_" + string(t.secret)
	return Secret(body + "_" + checksum(body))
}

// Hash is what the record keeps of t. A fast hash is enough: the secret has 256
// bits, there is nothing to guess.
func (t Ticket) Hash() []byte {
	h := sha256.Sum256(t.secret)
	return h[:]
}

// Matches reports, in constant time, whether hash is t's.
func (t Ticket) Matches(hash []byte) bool {
	return subtle.ConstantTimeCompare(t.Hash(), hash) == 1
}

func checksum(s string) string {
	n := crc32.ChecksumIEEE([]byte(s))
	var out [ticketSum]byte
	for i := range out {
		out[ticketSum-1-i] = base62[n%62]
		n /= 62
	}
	return string(out[:])
}
