// Package page is how every list in the product is cut into pages.
package page

import (
	"encoding/base64"

	"keystead/fault"
)

// Limits on how many items one page holds.
const (
	DefaultLimit = 50
	MaxLimit     = 500
)

// maxCursor is the longest cursor looked at, in bytes.
const maxCursor = 1024

// Cursor marks where a page starts. The zero Cursor is the beginning.
type Cursor string

// Request asks for one page.
type Request struct {
	Limit int    // 0 means DefaultLimit; more than MaxLimit is cut to it
	After Cursor // the Next of the page before
}

// Page is one page of items, and the cursor of the one after, "" at the end.
type Page[T any] struct {
	Items []T
	Next  Cursor
}

// Size is the number of items to return for r.
func (r Request) Size() int {
	if r.Limit <= 0 {
		return DefaultLimit
	}
	return min(r.Limit, MaxLimit)
}

// At returns the cursor for the page after key.
func At(key string) Cursor { return Cursor(base64.RawURLEncoding.EncodeToString([]byte(key))) }

// Key returns the key c was made from, or an Invalid fault.
func (c Cursor) Key() (string, error) {
	b, err := base64.RawURLEncoding.Strict().DecodeString(string(c))
	if err != nil || len(c) > maxCursor {
		return "", fault.New(fault.Invalid, "the cursor is not one this server gave out; start again without it")
	}
	return string(b), nil
}

// Map returns p with each item turned into its view.
func Map[T, V any](p Page[T], view func(T) V) Page[V] {
	out := Page[V]{Items: make([]V, len(p.Items)), Next: p.Next}
	for i, item := range p.Items {
		out.Items[i] = view(item)
	}
	return out
}
