// Package coap is the vocabulary of CoAP (RFC 7252, 7641, 7959, 8323): codes,
// options, content formats, messages on datagrams and on streams, and the
// handlers and routes that answer requests. It does no input or output; package
// coapgw serves it over DTLS and TLS.
//
// # Mounting resources
//
// A room that answers CoAP requests exports its routes and knows nothing of
// sockets:
//
//	func (h *Handler) Routes() []coap.Route {
//		return []coap.Route{
//			{Method: coap.POST, Path: "/.well-known/est/{label}/sen", Need: identity.Public, Handle: h.enroll, MaxBody: 16 << 10},
//			{Method: coap.GET, Path: "/whoami", Need: identity.Proven, Handle: h.whoami, Observable: true},
//		}
//	}
//
// server.Build collects them in coapgw.Gateway.Routes. A handler gets the whole
// body, whatever number of blocks it came in, and may answer with one of any
// size. It may take its time: a request that is not answered within a second or so is
// acknowledged, and answered by a message of its own. To call back the device
// on the session of a request, use [Session.Do].
//
// An error a handler returns becomes a response code by its fault kind, or by
// the code of an [*Error], and its message the diagnostic payload.
package coap

import (
	"fmt"
	"strconv"
)

// Code is a request method or a response code (RFC 7252, 12.1).
type Code uint8

// The methods.
const (
	Empty  Code = 0
	GET    Code = 1
	POST   Code = 2
	PUT    Code = 3
	DELETE Code = 4
)

// The response codes.
const (
	Created  Code = 2<<5 | 1
	Deleted  Code = 2<<5 | 2
	Valid    Code = 2<<5 | 3
	Changed  Code = 2<<5 | 4
	Content  Code = 2<<5 | 5
	Continue Code = 2<<5 | 31

	BadRequest               Code = 4 << 5
	Unauthorized             Code = 4<<5 | 1
	BadOption                Code = 4<<5 | 2
	Forbidden                Code = 4<<5 | 3
	NotFound                 Code = 4<<5 | 4
	MethodNotAllowed         Code = 4<<5 | 5
	NotAcceptable            Code = 4<<5 | 6
	RequestEntityIncomplete  Code = 4<<5 | 8
	Conflict                 Code = 4<<5 | 9
	PreconditionFailed       Code = 4<<5 | 12
	RequestEntityTooLarge    Code = 4<<5 | 13
	UnsupportedContentFormat Code = 4<<5 | 15
	TooManyRequests          Code = 4<<5 | 29

	InternalServerError  Code = 5 << 5
	NotImplemented       Code = 5<<5 | 1
	BadGateway           Code = 5<<5 | 2
	ServiceUnavailable   Code = 5<<5 | 3
	GatewayTimeout       Code = 5<<5 | 4
	ProxyingNotSupported Code = 5<<5 | 5
)

// The signalling codes of CoAP over TCP (RFC 8323, 5).
const (
	CSM     Code = 7<<5 | 1
	Ping    Code = 7<<5 | 2
	Pong    Code = 7<<5 | 3
	Release Code = 7<<5 | 4
	Abort   Code = 7<<5 | 5
)

// Class returns the first digit of the code.
func (c Code) Class() int { return int(c >> 5) }

// IsRequest reports whether c is a method, known here or not.
func (c Code) IsRequest() bool { return c != Empty && c.Class() == 0 }

// IsResponse reports whether c is a response code.
func (c Code) IsResponse() bool { return c.Class() >= 2 && c.Class() <= 5 }

// IsError reports whether c is a client or server error.
func (c Code) IsError() bool { return c.Class() == 4 || c.Class() == 5 }

// String returns the name of a method, or the code as it is written: "4.04".
func (c Code) String() string {
	if c.IsRequest() && int(c) < len(methods) {
		return methods[c]
	}
	return fmt.Sprintf("%d.%02d", c>>5, c&0x1f)
}

var methods = [...]string{Empty: "0.00", GET: "GET", POST: "POST", PUT: "PUT", DELETE: "DELETE"}

// Format is a content format (RFC 7252, 12.3).
type Format uint16

// The content formats spoken here.
const (
	TextPlain      Format = 0
	LinkFormat     Format = 40
	OctetStream    Format = 42
	JSON           Format = 50
	CBOR           Format = 60
	Multipart      Format = 62
	SenMLJSON      Format = 110
	SenMLCBOR      Format = 112
	PKCS7ServerKey Format = 280 // application/pkcs7-mime; smime-type=server-generated-key
	PKCS7Certs     Format = 281 // application/pkcs7-mime; smime-type=certs-only
	PKCS8          Format = 284
	CSRAttrs       Format = 285
	PKCS10         Format = 286
	PKIXCert       Format = 287
	OCFCBOR        Format = 10000 // application/vnd.ocf+cbor
	LwM2MTLV       Format = 11542
	LwM2MJSON      Format = 11543
	LwM2MCBOR      Format = 11544
)

// String returns the number of the format.
func (f Format) String() string { return strconv.Itoa(int(f)) }
