package coapgw

import (
	"context"
	"crypto/sha256"
	"errors"
	"log/slog"
	"math"
	"runtime/debug"
	"strings"
	"time"
	"unicode/utf8"

	"keystead/coap"
	"keystead/fault"
	"keystead/id"
	"keystead/identity"
)

// maxRequests is how many requests are served at once, of all sessions.
const maxRequests = 4096

// outcome is how a request ends: an answer to send, and what becomes of the session.
type outcome struct {
	coap.Response
	message *coap.Message // the answer as it is to be sent, instead of Response
	block1  []byte        // the Block1 option of the answer
	silent  bool          // nothing is to be sent
	reason  string        // why the session ends, if Close or End says so
}

// serve answers one message that is a request: a whole one, or a block of one.
// send is called once, with nil if there is no answer.
func (s *session) serve(m *coap.Message, send func(*coap.Message)) {
	ctx, cancel := context.WithTimeout(s.context(), s.gw.RequestTimeout)
	defer cancel()
	var out outcome
	if !s.gw.guard("request", func() { out = s.handle(ctx, m) }) {
		out = outcome{Response: coap.Response{Code: coap.InternalServerError, Body: []byte("internal error")}}
	}
	if out.message != nil {
		out.Code = out.message.Code
	}
	s.gw.stats.count(out.Code)
	if out.End {
		s.end(out.reason, true)
		return
	}
	if out.silent || suppressed(m, out.Code) {
		send(nil)
	} else {
		send(s.encode(m, &out))
	}
	if out.Sent != nil {
		s.gw.guard("after the answer", out.Sent)
	}
	if out.Close {
		s.closeSoon(out.reason)
	}
}

// suppressed reports whether the client wants no answer of this class (RFC 7967).
func suppressed(m *coap.Message, c coap.Code) bool {
	v, ok := m.Options.Uint(coap.NoResponse)
	return ok && c.Class() > 0 && v>>(c.Class()-1)&1 == 1
}

// handle is the way of a request: limits, options, route, identity, blocks,
// handler.
func (s *session) handle(ctx context.Context, m *coap.Message) outcome {
	if wait, ok := s.allowed(m); !ok {
		return failure(fault.Later(fault.TooMany, wait, "too many requests; slow down"))
	}
	if err := checkOptions(m); err != nil {
		return failure(err)
	}
	path, err := pathOf(m.Options)
	if err != nil {
		return failure(err)
	}
	res, vars := s.router().find(path)
	route, known := coap.Route{}, false
	if res != nil {
		route, known = res.methods[m.Code]
	}
	actor, err := s.authorise(ctx, m, route, known)
	switch {
	case err != nil:
		out := failure(err)
		out.reason = "refused: " + fault.Message(err)
		return out
	case res == nil:
		return failure(coap.Errorf(coap.NotFound, "unknown path %s", path))
	case !known:
		return failure(coap.Errorf(coap.MethodNotAllowed, "%v is not a method of %s", m.Code, path))
	}
	ctx = identity.NewContext(identity.WithRequestID(ctx, id.New(s.gw.Now())), actor)
	r := (&coap.Request{Session: s, Actor: actor, Method: m.Code, Path: path, Options: m.Options, Body: m.Payload}).WithVars(vars...)
	return s.blockwise(ctx, m, route, r)
}

// router is that of the port the session came in by.
func (s *session) router() *router {
	if d, ok := s.link.(*dgram); ok {
		return d.u.router
	}
	return s.gw.router
}

// allowed takes a request out of the session's rate.
func (s *session) allowed(m *coap.Message) (time.Duration, bool) {
	if s.continues(m) {
		return 0, true
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.bucket.take(s.gw.Now(), s.gw.RequestRate, s.gw.RequestBurst)
}

// checkOptions refuses what is not understood (RFC 7252, 5.4.1 and 5.7.2).
func checkOptions(m *coap.Message) error {
	seen := coap.OptionID(0)
	for _, o := range m.Options {
		switch o.ID {
		case coap.ProxyURI, coap.ProxyScheme:
			return coap.Errorf(coap.ProxyingNotSupported, "this is not a proxy")
		case coap.URIPath, coap.URIQuery, coap.ETag, coap.IfMatch:
			if len(o.Value) > 255 {
				return coap.Errorf(coap.BadOption, "option %d is longer than 255 bytes", o.ID)
			}
			continue
		case coap.URIHost, coap.URIPort, coap.Accept, coap.Block1, coap.Block2, coap.OCFAccept, coap.OCFContentFormat:
			// known, and at most once
		default:
			if o.ID.Critical() {
				return coap.Errorf(coap.BadOption, "option %d is critical and not known here", o.ID)
			}
			continue
		}
		if o.ID == seen {
			return coap.Errorf(coap.BadOption, "option %d is there twice", o.ID)
		}
		seen = o.ID
	}
	return nil
}

// pathOf returns the path of a request. A segment that is not text, or would
// read as several, is refused.
func pathOf(o coap.Options) (string, error) {
	for _, opt := range o {
		if opt.ID != coap.URIPath {
			continue
		}
		if v := string(opt.Value); strings.Contains(v, "/") || v == "." || v == ".." || !utf8.ValidString(v) {
			return "", coap.Errorf(coap.BadRequest, "a path segment must be text without a slash")
		}
	}
	return o.Path(), nil
}

// authorise says who makes the request and whether they may. Who shows no
// credential at all learns nothing of what is there.
func (s *session) authorise(ctx context.Context, m *coap.Message, route coap.Route, known bool) (identity.Actor, error) {
	actor, proven, ends, err := s.identify(ctx, shown(m.Options))
	if s.enrolsOnly() && (err == nil || !ends) && (!known || !route.Enrols) {
		return identity.Actor{}, identity.ErrMayEnrol // whatever the request shows: it is let in on no token
	}
	if err != nil {
		// On a public route a credential that does not count is no obstacle,
		// unless it is another's.
		k := fault.KindOf(err)
		if known && route.Need == identity.Public && (!ends || errors.Is(err, errLapsed)) && (k == fault.Unauthenticated || k == fault.Forbidden) {
			return identity.Actor{}, nil
		}
		if ends || (!s.hasActor() && k == fault.Unauthenticated) {
			return actor, closing(err)
		}
		return actor, err
	}
	switch {
	case known && route.Need == identity.Public:
		return actor, nil
	case !proven && known && (s.psk != "" || len(s.chain) > 0):
		return actor, fault.New(fault.Unauthenticated, "no device is known by this credential; enrol first")
	case !proven:
		return actor, closing(identity.ErrNoCredential)
	case !known:
		return actor, nil
	case route.Need == identity.Proven,
		route.Need == identity.DeviceOnly && actor.Kind == identity.Device,
		route.Need == identity.UserOnly && actor.Kind == identity.User,
		actor.May(route.Need):
		return actor, nil
	}
	return actor, fault.New(fault.Forbidden, "this needs %s", route.Need)
}

func (s *session) hasActor() bool {
	_, ok := s.Actor()
	return ok
}

// closing has the session end with the answer to err.
func closing(err error) error {
	r := coap.Failure(err)
	return &coap.Error{Code: r.Code, Message: string(r.Body), Close: true, Err: err}
}

// shown returns the credential in the query of a request: "auth", the key of a
// thing, and "type", whether it is "internal" or "external"; without, it is either.
func shown(o coap.Options) credential {
	var c credential
	scheme := "Key" // either
	for _, opt := range o {
		if opt.ID != coap.URIQuery {
			continue
		}
		switch name, value, _ := strings.Cut(string(opt.Value), "="); name {
		case "auth":
			c.value = value
		case "type":
			switch value {
			case "internal":
				scheme = "Thing"
			case "external":
				scheme = "External"
			}
		}
	}
	if c.value != "" {
		c.scheme = scheme
	}
	return c
}

// failure is the outcome of an error.
func failure(err error) outcome {
	r := coap.Failure(err)
	return outcome{Response: r, reason: string(r.Body)}
}

// call runs the handler of a route on a whole request.
func (s *session) call(ctx context.Context, route coap.Route, r *coap.Request) outcome {
	var response coap.Response
	var err error
	began := s.gw.Now()
	if !s.gw.guard("handler", func() { response, err = route.Handle(ctx, r) }) {
		err = errors.New("coapgw: the handler panicked")
	}
	level := slog.LevelDebug
	if err != nil {
		out := failure(err)
		_, meant := errors.AsType[*coap.Error](err) // such as a wait for approval
		if out.Code.Class() == 5 && fault.KindOf(err) == fault.Internal && !meant {
			level = slog.LevelError
		}
		s.gw.Log.Log(ctx, level, "coap request", slog.String("method", r.Method.String()), slog.String("path", route.Path), slog.String("code", out.Code.String()),
			slog.String("session", s.id), slog.String("request_id", identity.RequestID(ctx)), slog.Any("error", err))
		return out
	}
	if s.gw.Log.Enabled(ctx, level) {
		s.gw.Log.Log(ctx, level, "coap request", slog.String("method", r.Method.String()), slog.String("path", route.Path), slog.String("code", response.Code.String()),
			slog.String("session", s.id), slog.String("request_id", identity.RequestID(ctx)), slog.Duration("took", s.gw.Now().Sub(began)))
	}
	return outcome{Response: response, reason: "closed after the answer"}
}

// encode makes the message of an outcome, and cuts its body into blocks if it is
// larger than one, or than the client wants.
func (s *session) encode(m *coap.Message, out *outcome) *coap.Message {
	if out.message != nil {
		out.message.Token = m.Token
		return out.message
	}
	answer := &coap.Message{Code: out.Code, Token: m.Token, Options: out.headers(), Payload: out.Body}
	if out.block1 != nil {
		answer.Options = answer.Options.Add(coap.Block1, out.block1)
	}
	return s.firstBlock(m, answer)
}

// headers returns the options that follow from the fields of a response.
func (out *outcome) headers() coap.Options {
	options := append(coap.Options(nil), out.Options...)
	if len(out.Body) > 0 && (!out.Code.IsError() || out.Format != coap.TextPlain) {
		options = options.AddUint(coap.ContentFormat, uint32(out.Format))
	}
	if out.MaxAge > 0 {
		options = options.AddUint(coap.MaxAge, uint32(min(math.Ceil(out.MaxAge.Seconds()), math.MaxUint32)))
	}
	return options
}

// etagOf returns an entity tag for a body.
func etagOf(body []byte) []byte {
	sum := sha256.Sum256(body)
	return sum[:8]
}

// guard runs fn and reports whether it came to its end: a panic is counted and
// logged, and goes no further.
func (g *Gateway) guard(where string, fn func()) (ok bool) {
	defer func() {
		if p := recover(); p != nil {
			g.stats.Panics.Add(1)
			g.Log.Error("panic", slog.String("where", where), slog.Any("panic", p), slog.String("stack", string(debug.Stack())))
		}
	}()
	fn()
	return true
}
