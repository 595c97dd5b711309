package server

import (
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"regexp"
	"runtime/debug"
	"strings"
	"time"

	"github.com/labstack/echo/v4"

	"keystead/fault"
	"keystead/id"
	"keystead/identity"
)

// requestIDHeader carries the id of a request. Names of headers that every request asks for are written
// as the library keeps them: others it writes anew each time.
const requestIDHeader = "X-Request-Id"

// requestIDForm is what a client may choose as the id of its request.
var requestIDForm = regexp.MustCompile(`^[A-Za-z0-9._-]{1,64}$`)

// requestID gives each request an id, the client's own where it is a plain
// word, and sends it back.
func (s *Server) requestID(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		rid := c.Request().Header.Get(requestIDHeader)
		if !requestIDForm.MatchString(rid) {
			rid = id.New(s.Now())
		}
		c.Response().Header().Set(requestIDHeader, rid)
		c.SetRequest(c.Request().WithContext(identity.WithRequestID(c.Request().Context(), rid)))
		return next(c)
	}
}

// recovered turns a panic of a handler into an internal error.
func (s *Server) recovered(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) (err error) {
		defer func() {
			if r := recover(); r != nil {
				if r == http.ErrAbortHandler { //nolint:errorlint // a panic value, not an error in a tree
					panic(r)
				}
				s.metrics.panics.WithLabelValues("http").Inc()
				err = fmt.Errorf("panic: %v\n%s", r, debug.Stack())
			}
		}()
		return next(c)
	}
}

// logged writes one line a request, without its query, which may hold secrets.
func (s *Server) logged(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		start := s.Now()
		if err := next(c); err != nil {
			c.Error(err) // answers, so that the line below has the status
		}
		r := c.Request()
		if !s.Log.Enabled(r.Context(), slog.LevelInfo) {
			return nil
		}
		actor := identity.FromContext(r.Context())
		s.Log.LogAttrs(r.Context(), slog.LevelInfo, "http request",
			slog.String("method", r.Method), slog.String("path", loggedPath(r)), slog.Int("status", c.Response().Status),
			slog.Duration("took", s.Now().Sub(start)), slog.String("remote", c.RealIP()),
			slog.String("actor", actorName(actor)), slog.String("request_id", identity.RequestID(r.Context())))
		return nil
	}
}

// loggedPath is the path of a request without what in it is a key.
func loggedPath(r *http.Request) string {
	if strings.HasPrefix(r.URL.Path, invitePath) {
		return invitePath + ":invite"
	}
	return r.URL.Path
}

// invitePath is what comes before the key of an invite.
const invitePath = "/register/invite/"

func actorName(a identity.Actor) string {
	if a.Kind == identity.System {
		return "-"
	}
	return string(a.Kind) + ":" + a.ID
}

// limited keeps a request's body within the route's limit, and its time within
// the listener's unless the route streams.
func (s *Server) limited(r route) echo.MiddlewareFunc {
	most := r.body
	if most == 0 {
		most = int64(s.Config.Limits.Body)
	}
	return func(next echo.HandlerFunc) echo.HandlerFunc {
		return func(c echo.Context) error {
			req := c.Request()
			if req.ContentLength > most {
				return tooLarge(most)
			}
			req.Body = http.MaxBytesReader(c.Response(), req.Body, most)
			if r.stream {
				ctl := http.NewResponseController(c.Response())
				if err := errors.Join(ctl.SetReadDeadline(time.Time{}), ctl.SetWriteDeadline(time.Time{})); err != nil {
					return fmt.Errorf("server: lift time limits: %w", err)
				}
			}
			return next(c)
		}
	}
}

func tooLarge(most int64) error {
	return fault.New(fault.TooLarge, "the body is larger than the %d bytes allowed here; send less", most)
}

// authenticated resolves the caller where the route needs to know it.
func (s *Server) authenticated(r route) echo.MiddlewareFunc {
	return func(next echo.HandlerFunc) echo.HandlerFunc {
		if r.need == identity.Public {
			return next
		}
		return func(c echo.Context) error {
			if err := s.proveIn(c, r.org); err != nil {
				return err
			}
			return next(c)
		}
	}
}

// prove resolves the caller of c and puts the actor in the request's context.
// Handlers of public routes that have rules of their own call it when they need it.
func (s *Server) prove(c echo.Context) error { return s.proveIn(c, "") }

// proveIn is prove for a request that acts in the organisation that the named
// parameter of its path says, if param is not empty.
func (s *Server) proveIn(c echo.Context, param string) error {
	p, err := s.proof(c.Request())
	if err != nil {
		return err
	}
	if param != "" {
		if p.Org != "" && p.Org != c.Param(param) {
			return fault.New(fault.Invalid, "X-Org-ID names another organisation than the path; leave it out")
		}
		p.Org = c.Param(param)
	}
	ctx := c.Request().Context()
	if err := s.mayProve(p); err != nil {
		return err
	}
	actor, err := s.Resolver.Resolve(ctx, p)
	if err := s.proved(p, actor, identity.RequestID(ctx), err); err != nil {
		return err
	}
	if p.Scheme == sessionScheme {
		c.Response().Header().Set("Cache-Control", "no-store") // a browser keeps nothing of it
		c.Response().Header().Set("X-Content-Type-Options", "nosniff")
	}
	if _, proxied, _ := clientChain(c.Request()); p.Chain != nil && !proxied && actor.Kind == identity.Device {
		s.conns.bind(ctx, actor.ID) // a proxy's connection is of many; the next request on it is refused
	}
	c.SetRequest(c.Request().WithContext(identity.NewContext(ctx, actor)))
	return nil
}

// proof is what the request shows of its caller.
func (s *Server) proof(r *http.Request) (identity.Proof, error) {
	p := identity.Proof{
		Transport: identity.HTTPS,
		Remote:    netip.AddrPortFrom(s.ClientAddr(r), 0),
		Org:       r.Header.Get("X-Org-Id"),
	}
	chain, proxied, err := clientChain(r)
	if err != nil {
		return p, err
	}
	// How the certificate came to a proxy is not known here.
	p.Chain, p.TLS13 = chain, r.TLS != nil && !proxied && r.TLS.Version >= tlsVersion13
	if len(r.Header.Values("Authorization")) > 1 {
		return p, fault.New(fault.Invalid, "send one Authorization header, not several")
	}
	scheme, value, _ := strings.Cut(strings.TrimSpace(r.Header.Get("Authorization")), " ")
	p.Scheme, p.Value = scheme, strings.TrimSpace(value)
	for _, known := range []string{"Bearer", "Basic", "Thing", "External"} {
		if strings.EqualFold(scheme, known) {
			p.Scheme = known
		}
	}
	if p.Scheme == "Basic" {
		plain, err := base64.StdEncoding.DecodeString(p.Value)
		if err != nil {
			return p, fault.New(fault.Unauthenticated, "the Basic credential is not base64 of user:password")
		}
		p.Value = string(plain)
	}
	if p.Scheme == sessionScheme {
		return p, fault.New(fault.Unauthenticated, "a session is shown by the cookie of a browser, not by this header")
	}
	if r.Header.Get("Authorization") == "" {
		return p, cookieProof(r, &p)
	}
	return p, nil
}

// authorised lets only callers through who may do what the route needs.
func (s *Server) authorised(r route) echo.MiddlewareFunc {
	return func(next echo.HandlerFunc) echo.HandlerFunc {
		return func(c echo.Context) error {
			if err := allow(identity.FromContext(c.Request().Context()), r.need); err != nil {
				return err
			}
			return next(c)
		}
	}
}

func allow(a identity.Actor, need identity.Need) error {
	switch need {
	case identity.Public, identity.Proven:
		return nil
	case identity.DeviceOnly:
		if a.Kind != identity.Device {
			return fault.New(fault.Forbidden, "only a device may do this; use one of its credentials")
		}
		return nil
	case identity.UserOnly:
		if a.Kind != identity.User {
			return fault.New(fault.Forbidden, "only a user may do this")
		}
		return nil
	case identity.Platform, identity.OrgAdmin, identity.OrgRead, // the needs that reach beyond one organisation,
		identity.AccountRead, identity.AccountWrite: // and those of who belongs to none yet
	default:
		if a.Kind == identity.User && a.Org == "" {
			return fault.New(fault.Forbidden, "this is done within an organisation; use an access key of one")
		}
	}
	if a.Kind != identity.User || !a.May(need) {
		return fault.New(fault.Forbidden, "this needs the permission %s, which the credential does not have", need)
	}
	return nil
}
