package server

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http"
	"strconv"
	"time"

	"github.com/labstack/echo/v4"

	"keystead/fault"
	"keystead/identity"
)

const tlsVersion13 = tls.VersionTLS13

// statuses is where kinds of faults become HTTP statuses, for every route.
var statuses = [...]int{
	fault.Internal:        http.StatusInternalServerError,
	fault.Invalid:         http.StatusBadRequest,
	fault.Unauthenticated: http.StatusUnauthorized,
	fault.Forbidden:       http.StatusForbidden,
	fault.NotFound:        http.StatusNotFound,
	fault.Conflict:        http.StatusConflict,
	fault.TooLarge:        http.StatusRequestEntityTooLarge,
	fault.Unsupported:     http.StatusUnsupportedMediaType,
	fault.TooMany:         http.StatusTooManyRequests,
	fault.Unavailable:     http.StatusServiceUnavailable,
	fault.Full:            http.StatusInsufficientStorage,
}

// problem is the body of every error answer of the REST API.
type problem struct {
	Error     string        `json:"error"`
	Code      string        `json:"code"`
	RequestID string        `json:"request_id"`
	Fields    []fault.Field `json:"fields,omitempty"`
}

// fail is the one place where an error of the REST API becomes an answer, and
// where internal ones are logged.
func (s *Server) fail(err error, c echo.Context) {
	ctx := c.Request().Context()
	status, p := s.problem(err)
	p.RequestID = identity.RequestID(ctx)
	if status == http.StatusInternalServerError && !errors.Is(err, context.Canceled) { // the client that went away
		s.Log.LogAttrs(ctx, slog.LevelError, "internal error", slog.String("error", err.Error()),
			slog.String("path", loggedPath(c.Request())), slog.String("request_id", p.RequestID))
	}
	if c.Response().Committed {
		return
	}
	h := c.Response().Header()
	switch status {
	case http.StatusUnauthorized:
		if h.Get("Www-Authenticate") == "" { // a handler may ask for another scheme
			h.Set("Www-Authenticate", `Bearer realm="keystead"`)
		}
	case http.StatusTooManyRequests, http.StatusServiceUnavailable:
		h.Set("Retry-After", retryAfter(err))
	}
	if c.Request().Method == http.MethodHead {
		_ = c.NoContent(status)
		return
	}
	if wire, ok := c.Get(wireKey).(func(echo.Context, int, problem) error); ok && wire != nil {
		_ = wire(c, status, p)
		return
	}
	if forMender(c.Request()) {
		_ = menderProblem(c, status, p)
		return
	}
	body, err := json.Marshal(p)
	if err != nil {
		body = []byte(`{"error":"internal error","code":"internal"}`)
	}
	_ = c.JSONBlob(status, body)
}

// wireKey is where a request's context holds the form of its route's errors.
const wireKey = "wire"

// worded has errors of a route answered in the form its API has for them.
func (s *Server) worded(r route) echo.MiddlewareFunc {
	return func(next echo.HandlerFunc) echo.HandlerFunc {
		if r.wire == nil {
			return next
		}
		return func(c echo.Context) error {
			c.Set(wireKey, r.wire)
			return next(c)
		}
	}
}

// The codes of what the router itself refuses.
const (
	codeNoRoute  = "no_route"
	codeNoMethod = "method_not_allowed"
)

// problem maps err to a status and what the client reads.
func (s *Server) problem(err error) (int, problem) {
	if e, ok := errors.AsType[*http.MaxBytesError](err); ok {
		err = tooLarge(e.Limit)
	}
	if e, ok := errors.AsType[*fault.Error](err); ok {
		return statuses[e.Kind], problem{Error: fault.Message(e), Code: e.Kind.String(), Fields: e.Fields}
	}
	if e, ok := errors.AsType[*oauthError](err); ok {
		return e.status, problem{Error: e.description, Code: e.code}
	}
	if e, ok := errors.AsType[*echo.HTTPError](err); ok { // the router's own
		switch e.Code {
		case http.StatusNotFound:
			return e.Code, problem{Error: "there is nothing at this path; /openapi.yaml lists what there is", Code: codeNoRoute}
		case http.StatusMethodNotAllowed:
			return e.Code, problem{Error: "this path does not know this method; the Allow header lists those it does", Code: codeNoMethod}
		}
	}
	return http.StatusInternalServerError, problem{Error: "internal error", Code: fault.Internal.String()}
}

// retryAfter is the wait that err names, in whole seconds, at least one.
func retryAfter(err error) string {
	wait := time.Second
	if e, ok := errors.AsType[*fault.Error](err); ok && e.RetryAfter > wait {
		wait = e.RetryAfter
	}
	return strconv.Itoa(int((wait + time.Second - 1) / time.Second))
}
