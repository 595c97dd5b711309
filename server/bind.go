package server

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/labstack/echo/v4"

	"keystead/fault"
	"keystead/page"
)

// bind reads the JSON body of a request into v. Whatever is wrong with it is
// Invalid (or Unsupported, TooLarge) with what to do.
func bind(c echo.Context, v any) error {
	if kind, _, err := mime.ParseMediaType(c.Request().Header.Get("Content-Type")); err != nil || kind != "application/json" {
		return fault.New(fault.Unsupported, "send the body as Content-Type: application/json")
	}
	text, err := io.ReadAll(c.Request().Body)
	if err != nil {
		return badJSON(err)
	}
	return strictJSON(text, v)
}

func badJSON(err error) error {
	if e, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return tooLarge(e.Limit)
	}
	if e, ok := errors.AsType[*json.UnmarshalTypeError](err); ok {
		if e.Field == "" {
			return fault.New(fault.Invalid, "the body must be %s, not %s", jsonWord(e.Type), e.Value)
		}
		return fault.InvalidFields(fault.Field{Name: e.Field, Message: "must be " + jsonWord(e.Type) + ", not " + e.Value})
	}
	if e, ok := errors.AsType[*json.SyntaxError](err); ok {
		return fault.New(fault.Invalid, "the body is not JSON: %v at byte %d", e, e.Offset)
	}
	if field, ok := strings.CutPrefix(err.Error(), "json: unknown field "); ok {
		return fault.New(fault.Invalid, "the body has a field this server does not know: %s", field)
	}
	if _, ok := errors.AsType[*time.ParseError](err); ok {
		return fault.New(fault.Invalid, "the body has a time that is not written as RFC 3339 has it, such as 2026-01-02T15:04:05Z")
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fault.New(fault.Invalid, "the body is empty or ends too early; send a JSON object")
	}
	return fault.Wrap(fault.Invalid, err, "the body could not be read")
}

// jsonWord says how a value of type t is written in JSON.
func jsonWord(t reflect.Type) string {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch t.Kind() { //nolint:exhaustive // the rest is numbers
	case reflect.String:
		return "a string"
	case reflect.Bool:
		return "true or false"
	case reflect.Slice, reflect.Array:
		return "a list"
	case reflect.Struct, reflect.Map:
		return "an object"
	}
	return "a number in range"
}

// pageRequest reads ?limit= and ?cursor=.
func pageRequest(c echo.Context) (page.Request, error) {
	r := page.Request{After: page.Cursor(c.QueryParam("cursor"))}
	if text := c.QueryParam("limit"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 1 || n > page.MaxLimit {
			return r, fault.New(fault.Invalid, "limit must be a number from 1 to %d", page.MaxLimit)
		}
		r.Limit = n
	}
	return r, nil
}

// deviceParam returns the id of the device that ?device= names, by its id or an
// alias; "" if it names none.
func (s *Server) deviceParam(c echo.Context) (string, error) {
	name := c.QueryParam("device")
	if name == "" {
		return "", nil
	}
	d, err := s.Devices.Find(c.Request().Context(), name)
	return d.ID, err
}

// list is the wire form of a page.
type list[V any] struct {
	Items []V         `json:"items"`
	Next  page.Cursor `json:"next,omitempty"`
}

// writePage answers with a page of views, and where the next one is.
func writePage[T, V any](c echo.Context, p page.Page[T], view func(T) V) error {
	if p.Next != "" {
		next := *c.Request().URL
		q := next.Query()
		q.Set("cursor", string(p.Next))
		next.RawQuery = q.Encode()
		c.Response().Header().Set("Link", fmt.Sprintf(`<%s>; rel="next"`, (&url.URL{Path: next.Path, RawQuery: next.RawQuery}).String()))
	}
	out := page.Map(p, view)
	return c.JSON(http.StatusOK, list[V]{Items: out.Items, Next: out.Next})
}

func orEmpty[T any](s []T) []T {
	if s == nil {
		return []T{}
	}
	return s
}

func orEmptyMap(m map[string]string) map[string]string {
	if m == nil {
		return map[string]string{}
	}
	return m
}
