// Package fault is the error vocabulary shared by every package: a small set of
// kinds a caller can act on, a message safe to show to a client, and the cause
// kept for the log.
package fault

import (
	"errors"
	"fmt"
	"time"
)

// Kind is what a caller can do about an error. Transports map kinds to their
// own codes (HTTP statuses, CoAP response codes); nothing below them does.
type Kind uint8

// The kinds.
const (
	Internal        Kind = iota // a bug or a broken dependency; the zero value, so unknown errors land here
	Invalid                     // the request can never succeed as sent
	Unauthenticated             // no credential, or one we cannot verify
	Forbidden                   // verified, but not allowed
	NotFound                    // no such thing, or none the caller may know of
	Conflict                    // clashes with the present state
	TooLarge                    // more than a limit on size or number allows
	Unsupported                 // a format or media type that is not spoken here
	TooMany                     // over a rate limit; see RetryAfter
	Unavailable                 // try again later
	Full                        // the disk, or a configured size, is used up; reads go on
)

var words = [...]string{
	"internal", "invalid", "unauthenticated", "forbidden", "not_found", "conflict",
	"too_large", "unsupported", "too_many", "unavailable", "storage_full",
}

// String returns the machine word of the kind, as it stands in error answers.
func (k Kind) String() string { return words[k] }

// Error is an error with a kind. Message and Fields are for the client; Err is
// for the log.
type Error struct {
	Kind       Kind
	Message    string
	Fields     []Field       // for Invalid: what is wrong with which input
	RetryAfter time.Duration // for TooMany and Unavailable; 0 if unknown
	Err        error
}

// Field says what is wrong with one input of a request.
type Field struct {
	Name    string `json:"field"`
	Message string `json:"message"`
}

// Error returns the message with the cause, for logs; clients get [Message].
func (e *Error) Error() string {
	if e.Err == nil {
		return e.Message
	}
	return e.Message + ": " + e.Err.Error()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// New returns an error of kind k whose message the client may read.
func New(k Kind, format string, args ...any) error {
	return &Error{Kind: k, Message: fmt.Sprintf(format, args...)}
}

// Wrap returns err as kind k, with a message for the client.
func Wrap(k Kind, err error, format string, args ...any) error {
	return &Error{Kind: k, Message: fmt.Sprintf(format, args...), Err: err}
}

// InvalidFields returns an Invalid error that lists each faulty input, nil if
// there is none.
func InvalidFields(fields ...Field) error {
	if len(fields) == 0 {
		return nil
	}
	return &Error{Kind: Invalid, Message: fields[0].Name + ": " + fields[0].Message, Fields: fields}
}

// Later returns an error of kind k, TooMany or Unavailable, that tells the
// client how long to wait.
func Later(k Kind, wait time.Duration, format string, args ...any) error {
	return &Error{Kind: k, Message: fmt.Sprintf(format, args...), RetryAfter: wait}
}

// KindOf returns the kind of the outermost *Error in err's tree, Internal if
// there is none.
func KindOf(err error) Kind {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Kind
	}
	return Internal
}

// Is reports whether err is of kind k. It is false for a nil err.
func Is(err error, k Kind) bool { return err != nil && KindOf(err) == k }

// Message returns the text a client may read. Errors that carry none, and all
// internal ones, say only that.
func Message(err error) string {
	if e, ok := errors.AsType[*Error](err); ok && e.Kind != Internal {
		return e.Message
	}
	return "internal error"
}
