package coap

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"keystead/fault"
	"keystead/identity"
)

// Handler answers one request. ctx carries the actor and the request id, and
// ends with the session or the time a request may take. Handlers run
// concurrently, also those of one session.
type Handler func(ctx context.Context, r *Request) (Response, error)

// Route is one method of one resource.
type Route struct {
	Method Code
	// Path is the resource: "/whoami". A segment in braces, "{label}",
	// matches any one segment; Request.Var returns it. Literal segments win
	// over those in braces.
	Path string
	// Need says who may call: identity.Public anybody, a session without any
	// credential included; identity.Proven any actor; identity.DeviceOnly a device.
	// There is no default.
	Need   identity.Need
	Handle Handler

	// Enrols marks what a session may use whose certificate is of no known device
	// and only good to enrol one: identity.ErrMayEnrol. It reaches nothing else,
	// whatever its requests show besides, before it is signed in as by OCF.
	Enrols bool

	MaxBody    int    // the largest request body in bytes; 0 for the gateway's default
	Observable bool   // GET may be observed; see Session.Notify
	Link       string // attributes in /.well-known/core, such as `rt="ace.est.sen";ct="281 287"`
	Listed     bool   // stands in /.well-known/core
}

// Request is one request, its body whole.
type Request struct {
	Session Session
	Actor   identity.Actor // who is calling; the zero Actor if that is not known, on a Public route only
	Method  Code
	Path    string // "/" and the segments
	Options Options
	Body    []byte

	vars []string // alternating names and values
}

// WithVars returns r with the given variables of its route, alternating names
// and values: for routers and tests.
func (r *Request) WithVars(vars ...string) *Request {
	r.vars = vars
	return r
}

// Var returns the segment that the braces of the given name matched.
func (r *Request) Var(name string) string {
	for i := 0; i+1 < len(r.vars); i += 2 {
		if r.vars[i] == name {
			return r.vars[i+1]
		}
	}
	return ""
}

// Query returns the value of a query parameter: of the first Uri-Query option
// "name=value". It is taken as it stands, without unescaping.
func (r *Request) Query(name string) (string, bool) {
	for _, o := range r.Options {
		if o.ID == URIQuery {
			if key, value, _ := strings.Cut(string(o.Value), "="); key == name {
				return value, true
			}
		}
	}
	return "", false
}

// FormQuery parses every Uri-Query option as an HTML form encodes them, as OCF
// clouds do: several parameters may stand in one option, "+" is a space.
func (r *Request) FormQuery() (url.Values, error) {
	return url.ParseQuery(strings.Join(r.Options.Strings(URIQuery), "&"))
}

// ContentFormat returns the format of the body.
func (r *Request) ContentFormat() (Format, bool) { return r.Options.format(ContentFormat) }

// Accept returns the format asked for.
func (r *Request) Accept() (Format, bool) { return r.Options.format(Accept) }

func (o Options) format(id OptionID) (Format, bool) {
	v, ok := o.Uint(id)
	if !ok || v > 0xffff {
		return 0, false
	}
	return Format(v), true
}

// Response is the answer to a request.
type Response struct {
	Code Code
	// Format is that of the body. It is not sent without a body, nor, if it is
	// TextPlain, with an error: the body of an error is a diagnostic payload.
	Format Format
	Body   []byte
	// MaxAge is how long the answer may be kept, or when to ask again after an
	// error; 0 leaves the option out.
	MaxAge time.Duration
	// Options are sent besides those that follow from the fields above.
	Options Options
	// Close ends the session once the answer is sent.
	Close bool
	// End ends the session at once and sends no answer.
	End bool
	// Sent, if not nil, is called once the answer was given to the transport: the
	// place to begin calling the peer, which expects the answer first.
	Sent func()
}

// Session is the association a request came on: a DTLS session or a TLS
// connection. It lasts for many requests.
type Session interface {
	// ID is unique among the sessions of all time.
	ID() string
	// Remote is where the peer is now; it may move.
	Remote() netip.AddrPort
	Transport() identity.Transport

	// Proof returns what the handshake showed, without any credential of a request.
	Proof() identity.Proof
	// Chain returns the certificates of the peer, leaf first, of which the
	// handshake proved the key and nothing else is verified; nil if it showed none.
	Chain() []*x509.Certificate
	// PSK returns the identity of a session by pre-shared key, "" for others.
	PSK() string
	// Actor returns who the session itself is resolved to at present.
	Actor() (identity.Actor, bool)

	// Do makes a request to the peer and waits for its answer, sending and
	// fetching bodies in blocks as needed. The context bounds it.
	Do(ctx context.Context, c Call) (Reply, error)
	// Notify runs the handler of each observation of path on this session
	// again and sends the peer what it answers.
	Notify(path string)

	// Close ends the session, telling the peer.
	Close(reason string)
	// OnEnd has fn called once the session has ended, at once if it has.
	OnEnd(fn func())

	// Value and SetValue keep a value of a room with the session, under a key
	// of a type of that room.
	Value(key any) any
	SetValue(key, value any)
}

// Call is a request to a device.
type Call struct {
	Method  Code
	Path    string // "/" and the segments, none of which holds a "/"
	Options Options
	Format  Format // of Body, sent if there is one
	Body    []byte
}

// Reply is what a device answered.
type Reply struct {
	Code    Code
	Options Options
	Body    []byte
}

// ContentFormat returns the format of the body.
func (r Reply) ContentFormat() (Format, bool) { return r.Options.format(ContentFormat) }

// Error is an error with a response code of its own, for protocols whose codes
// do not follow from fault kinds.
type Error struct {
	Code    Code
	Message string
	MaxAge  time.Duration
	Options Options
	Close   bool // the session ends with the answer
	Err     error
}

// Errorf returns an *Error.
func Errorf(code Code, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...)}
}

// Error returns the message with the cause, for logs.
func (e *Error) Error() string {
	if e.Err == nil {
		return e.Code.String() + " " + e.Message
	}
	return e.Code.String() + " " + e.Message + ": " + e.Err.Error()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Closing returns e, and has the session end with the answer.
func (e *Error) Closing() *Error {
	e.Close = true
	return e
}

// Failure returns the response for an error: by its own code if it is an
// [*Error], else by its fault kind.
func Failure(err error) Response {
	if e, ok := errors.AsType[*Error](err); ok {
		return Response{Code: e.Code, Body: []byte(e.Message), MaxAge: e.MaxAge, Options: e.Options, Close: e.Close}
	}
	r := Response{Code: codes[fault.KindOf(err)], Body: []byte(fault.Message(err))}
	if e, ok := errors.AsType[*fault.Error](err); ok {
		r.MaxAge = e.RetryAfter
	}
	return r
}

// codes says which code a fault of each kind is answered with.
var codes = map[fault.Kind]Code{
	fault.Internal:        InternalServerError,
	fault.Invalid:         BadRequest,
	fault.Unauthenticated: Unauthorized,
	fault.Forbidden:       Forbidden,
	fault.NotFound:        NotFound,
	fault.Conflict:        Conflict,
	fault.TooLarge:        RequestEntityTooLarge,
	fault.Unsupported:     UnsupportedContentFormat,
	fault.TooMany:         TooManyRequests,
	fault.Unavailable:     ServiceUnavailable,
	fault.Full:            ServiceUnavailable,
}
