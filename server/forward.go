package server

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/labstack/echo/v4"

	"keystead/fault"
	"keystead/identity"
)

// Paths of the device API of a Mender server: what is under ownDevices is answered here, and
// the rest by what is behind this server, if anything is.
const (
	devicesAPI = "/api/devices/"
	ownDevices = devicesAPI + "v1/authentication/"
)

// forwardRoutes are open to the router: whether there is anything behind them is for the
// handler to say before it asks who is calling.
func (s *Server) forwardRoutes() []route {
	var all []route
	for _, method := range []string{http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete} {
		all = append(all, route{
			method: method, path: devicesAPI + "*", need: identity.Public, handle: s.forwardRequest, body: int64(s.Config.Forward.MaxBody), stream: true,
		})
	}
	return all
}

// forward is what is behind this server.
type forward struct {
	target    *url.URL
	transport *http.Transport
	stopping  context.Context // done when the server stops
}

// buildForward readies the way to what is behind this server. Where that is, its operator
// has chosen, so that it may be next door.
func (s *Server) buildForward(context.Context) error {
	f := s.Config.Forward
	if f.Upstream == "" {
		return nil
	}
	target, err := url.Parse(f.Upstream)
	if err != nil {
		return fmt.Errorf("forward.upstream: %w", err)
	}
	conf := &tls.Config{MinVersion: tls.VersionTLS12}
	if f.CAFile != "" {
		pem, err := os.ReadFile(s.Config.Path(f.CAFile))
		if err != nil {
			return fmt.Errorf("forward.ca_file: %w", err)
		}
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM(pem) {
			return fmt.Errorf("forward.ca_file: %s holds no PEM certificate", f.CAFile)
		}
	}
	stopping, stop := context.WithCancel(context.Background())
	s.forward = &forward{target: target, stopping: stopping, transport: &http.Transport{
		// HTTP/1.1 alone: there is no upgrade of a connection that others share.
		Proxy: nil, DialContext: (&net.Dialer{Timeout: 5 * time.Second}).DialContext, TLSClientConfig: conf, TLSHandshakeTimeout: 5 * time.Second,
		ResponseHeaderTimeout: f.Timeout, MaxResponseHeaderBytes: 64 << 10, MaxIdleConnsPerHost: 64, IdleConnTimeout: time.Minute, DisableCompression: true,
	}}
	s.closers = append(s.closers, func() error {
		stop()
		s.forward.transport.CloseIdleConnections()
		return nil
	})
	return nil
}

// forwardRequest passes a request of a proven device on, and the answer back. Who it is stands
// in headers that no client can set; the device's credential stays here.
func (s *Server) forwardRequest(c echo.Context) error {
	r := c.Request()
	switch {
	case r.URL.Path == ownDevices+"auth_requests":
		c.Response().Header().Set("Allow", "POST, OPTIONS")
		return echo.ErrMethodNotAllowed
	case s.forward == nil, r.URL.Path+"/" == ownDevices, strings.HasPrefix(r.URL.Path, ownDevices):
		return echo.ErrNotFound
	}
	epoch := s.Devices.Epoch() // before the proof: what is revoked from here on ends the exchange
	if err := s.prove(c); err != nil {
		return err
	}
	r = c.Request() // which knows who it is of
	if err := allow(identity.FromContext(r.Context()), identity.DeviceOnly); err != nil {
		return err
	}
	if !plainPath(r.URL) {
		return fault.New(fault.Invalid, "the path can be read in more than one way; write it without escaped slashes, dots and empty parts")
	}
	upgrade, err := s.upgrade(r)
	if err != nil {
		return err
	}
	return s.pass(c, r, upgrade, epoch)
}

// plainPath reports whether everybody who reads a path finds the same in it: a device must
// not reach, by what another server makes of its path, what is outside of devicesAPI.
func plainPath(u *url.URL) bool {
	raw := strings.ToLower(u.EscapedPath())
	if strings.Contains(raw, "%2f") || strings.Contains(raw, "%5c") || strings.ContainsAny(u.Path, "\\%") ||
		strings.ContainsFunc(u.Path, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		return false
	}
	for part := range strings.SplitSeq(strings.Trim(u.Path, "/"), "/") {
		name, _, _ := strings.Cut(part, ";") // some read parameters after it
		if name == "" || name == "." || name == ".." {
			return false
		}
	}
	return !strings.Contains(u.Path, "//")
}

// upgrade reports whether a request asks for a WebSocket. It may not ask for anything else:
// h2c would carry requests that nobody here sees.
func (s *Server) upgrade(r *http.Request) (bool, error) {
	asked := r.Header.Values("Upgrade")
	switch {
	case len(asked) == 0:
		return false, nil
	case len(asked) > 1 || !strings.EqualFold(asked[0], "websocket"):
		return false, fault.New(fault.Invalid, "a connection is upgraded to a WebSocket or not at all")
	case !s.Config.Forward.WebSockets:
		return false, fault.New(fault.Forbidden, "WebSockets are not passed on here; forward.websockets allows them")
	}
	return true, nil
}

// answerGrace is how long a client has, when an exchange took too long, to read that it did.
const answerGrace = 5 * time.Second

// errEnded says why an exchange was cut off.
var errEnded = fault.New(fault.Unauthenticated, "the device or its credential was revoked meanwhile")

// pass is the exchange itself. It ends in time, a WebSocket when the credential expires, and
// both as soon as the credential is good no more; epoch is from before it was proven.
func (s *Server) pass(c echo.Context, r *http.Request, upgrade bool, epoch uint64) error {
	actor := identity.FromContext(r.Context())
	ctx, end := context.WithCancelCause(r.Context())
	if !upgrade {
		by := s.Now().Add(s.Config.Forward.Timeout + answerGrace)
		ctl := http.NewResponseController(c.Response())
		if err := errors.Join(ctl.SetReadDeadline(by), ctl.SetWriteDeadline(by)); err != nil {
			end(nil)
			return fmt.Errorf("server: limit the time of an exchange: %w", err)
		}
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, s.Config.Forward.Timeout)
		defer cancel()
	}
	var watching sync.WaitGroup
	watching.Go(func() { s.watch(ctx, r, actor, epoch, end) })
	defer watching.Wait()
	defer end(nil)

	var failed error
	proxy := httputil.ReverseProxy{
		Transport: s.forward.transport, FlushInterval: -1, ErrorLog: slog.NewLogLogger(s.Log.Handler(), slog.LevelDebug),
		Rewrite: func(p *httputil.ProxyRequest) { s.rewrite(p, actor) },
		ModifyResponse: func(res *http.Response) error {
			for _, name := range []string{requestIDHeader, "Set-Cookie", "Strict-Transport-Security"} {
				res.Header.Del(name) // they would be of this server
			}
			if res.StatusCode == http.StatusSwitchingProtocols {
				c.Response().Status = res.StatusCode // for the log; the rest is no longer HTTP
			}
			return nil
		},
		ErrorHandler: func(_ http.ResponseWriter, _ *http.Request, err error) { failed = err },
	}
	proxy.ServeHTTP(c.Response(), r.WithContext(ctx))
	_, large := errors.AsType[*http.MaxBytesError](failed)
	switch {
	case failed == nil || large:
		return failed
	case errors.Is(context.Cause(ctx), errEnded):
		return errEnded
	}
	return fault.Wrap(fault.Unavailable, failed, "what answers this path cannot be reached or does not answer; try again later")
}

// rewrite makes the request that is passed on: to the other server, and as of actor.
func (s *Server) rewrite(p *httputil.ProxyRequest, actor identity.Actor) {
	p.SetURL(s.forward.target)
	p.Out.Trailer = nil
	pass := s.Config.Forward.PassAuthorization && actor.Credential.Kind == identity.DeviceToken
	for name := range p.Out.Header {
		if withheld(name) || strings.EqualFold(name, "Authorization") && !pass {
			delete(p.Out.Header, name)
		}
	}
	h := p.Out.Header
	h.Set(deviceHeader, actor.ID)
	h.Set(orgHeader, actor.Org)
	h.Set(credentialHeader, string(actor.Credential.Kind))
	h.Set(requestIDHeader, identity.RequestID(p.In.Context()))
	h.Set("X-Forwarded-For", s.ClientAddr(p.In).String())
	h.Set("X-Forwarded-Host", p.In.Host)
	h.Set("X-Forwarded-Proto", "https")
}

// credentialHeader says by which kind of credential a device came, besides the headers that
// say which it is.
const credentialHeader = "X-Keystead-Credential"

// withheld reports whether a header of a client is not passed on: those that say who it is
// or where it comes from, which are for this server to say; what is meant for this server;
// and every one with an underscore, which some take for a dash (CGI does).
func withheld(name string) bool {
	name = strings.ToLower(name)
	return strings.Contains(name, "_") || strings.HasPrefix(name, "x-keystead-") || strings.HasPrefix(name, "x-forwarded-") ||
		slices.Contains([]string{"forwarded", "x-real-ip", "x-client-ip", "true-client-ip", "x-org-id", "x-gateway-key", "x-request-id", "cookie", "x-original-url", "x-rewrite-url"}, name)
}

// watchEvery is how often an exchange that is under way looks whether anything was revoked:
// one atomic load.
const watchEvery = 100 * time.Millisecond

// watch ends an exchange when the actor's credential is good no more, or the server stops.
func (s *Server) watch(ctx context.Context, r *http.Request, actor identity.Actor, epoch uint64, end context.CancelCauseFunc) {
	tick := time.NewTicker(watchEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.forward.stopping.Done():
			end(nil)
			return
		case <-tick.C:
		}
		if exp := actor.Credential.ExpiresAt; !exp.IsZero() && !s.Now().Before(exp) {
			end(errEnded)
			return
		}
		now := s.Devices.Epoch()
		if now == epoch {
			continue
		}
		epoch = now
		proof, err := s.proof(r)
		if err == nil {
			var again identity.Actor
			if again, err = s.Resolver.Resolve(ctx, proof); err == nil && again.ID != actor.ID {
				err = errEnded
			}
		}
		if err != nil {
			end(errEnded)
			return
		}
	}
}
