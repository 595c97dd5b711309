package est

import (
	"bytes"
	"encoding/base64"

	"keystead/fault"
)

// howTo is how a request is written right.
const howTo = "; send base64 of DER, such as from: openssl req -outform DER | base64 -w 0"

// DecodeBody decodes the body of a request: base64 of DER, in which white space
// may stand anywhere (RFC 8951, 3.1). What people send instead is told apart.
func DecodeBody(body []byte) ([]byte, error) {
	switch {
	case len(body) == 0:
		return nil, fault.New(fault.Invalid, "the body is empty"+howTo)
	case bytes.Contains(body, []byte("-----BEGIN")):
		return nil, fault.New(fault.Invalid, "the body is PEM"+howTo)
	case body[0] == 0x30 && len(body) > 1 && body[1] >= 0x80:
		return nil, fault.New(fault.Invalid, "the body is DER without base64"+howTo)
	}
	clean := make([]byte, 0, len(body))
	for _, c := range body {
		switch c {
		case '\r', '\n', ' ', '\t':
		default:
			clean = append(clean, c)
		}
	}
	der := make([]byte, base64.StdEncoding.DecodedLen(len(clean)))
	n, err := base64.StdEncoding.Strict().Decode(der, clean)
	switch {
	case err == nil && n > 0:
		return der[:n], nil
	case err == nil:
		return nil, fault.New(fault.Invalid, "the body is empty"+howTo)
	case bytes.ContainsAny(clean, "-_") && !bytes.ContainsAny(clean, "+/"):
		return nil, fault.New(fault.Invalid, "the body is base64 for URLs, not the standard one"+howTo)
	case len(clean)%4 != 0:
		return nil, fault.New(fault.Invalid, "the body's base64 is cut off or lacks its padding"+howTo)
	}
	return nil, fault.New(fault.Invalid, "the body is not base64"+howTo)
}

// lineLength is how long lines of base64 are for clients that must have some.
const lineLength = 64

// encodeBody encodes an answer: on one line without an end, as strongSwan needs
// it, or in lines of 64, as libest's client does.
func encodeBody(der []byte, lines bool) []byte {
	text := base64.StdEncoding.AppendEncode(nil, der)
	if !lines {
		return text
	}
	var b bytes.Buffer
	for len(text) > lineLength {
		b.Write(text[:lineLength])
		b.WriteByte('\n')
		text = text[lineLength:]
	}
	b.Write(text)
	b.WriteByte('\n')
	return b.Bytes()
}
