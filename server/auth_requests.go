package server

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/labstack/echo/v4"

	"keystead/accounts"
	"keystead/authsets"
	"keystead/events"
	"keystead/fault"
	"keystead/identity"
	"keystead/store"
	"keystead/tokens"
)

func (s *Server) authRequestRoutes() []route {
	return []route{
		// Who may in is for the signature in the request to say.
		{method: http.MethodPost, path: "/api/devices/v1/authentication/auth_requests", need: identity.Public, handle: mender(s.authRequest)},
	}
}

// buildAuthSets opens the auth sets, and has their tokens signed.
func (s *Server) buildAuthSets(context.Context) error {
	s.AuthSets = &authsets.Service{
		DB: s.DB, Devices: s.Devices, Audit: s.Audit, Now: s.Now, Log: s.Log, Config: s.Config.AuthSets,
		Issue: s.issueDeviceToken, Verify: s.verifyDeviceToken, Tenant: s.tenant, Changed: s.emitAuthSet, CertRevoked: s.certRevoked,
	}
	s.AuthSets.Start()
	s.tasks = append(s.tasks, task{"auth sets", s.AuthSets.Run})
	return nil
}

func (s *Server) issueDeviceToken(t authsets.Token) (string, error) {
	text, _, err := s.Tokens.Issue(tokens.Device, tokens.New{
		ID: t.ID, Subject: t.Device, Org: t.Org, Epoch: t.Epoch, TTL: s.Config.AuthSets.TokenTTL,
		Extra: map[string]any{"mender.device": true}, // what Mender's other servers look for
	})
	return text, err
}

func (s *Server) verifyDeviceToken(text string) (authsets.Token, error) {
	t, err := s.Tokens.VerifyAs(tokens.Device, text)
	if errors.Is(err, tokens.ErrOtherKind) {
		return authsets.Token{}, identity.ErrNotMine
	}
	return authsets.Token{ID: t.ID, Device: t.Subject, Org: t.Org, Epoch: t.Epoch, ExpiresAt: t.ExpiresAt}, err
}

// tenant is the organisation a tenant token names by its id, else the default one: devices
// keep the tokens of other servers when they are moved to this one.
func (s *Server) tenant(ctx context.Context, token string) (string, error) {
	if token != "" {
		var org accounts.Organisation
		err := s.DB.View(ctx, func(tx store.Tx) (err error) {
			org, err = s.Accounts.OrganisationIn(tx, token)
			return err
		})
		if !fault.Is(err, fault.NotFound) {
			return org.ID, err
		}
	}
	return s.Accounts.DefaultOrganisation(ctx)
}

// emitAuthSet puts a change of a device's status into the outbox, as Mender's servers
// write it.
func (s *Server) emitAuthSet(ctx context.Context, tx store.Tx, what authsets.What, d authsets.Device) error {
	if wanted, err := s.Events.Wanted(tx, d.Org); !wanted || err != nil {
		return err
	}
	data := map[string]any{"id": d.ID}
	if what != authsets.Decommissioned {
		data["status"] = d.Status
	}
	if what == authsets.Provisioned {
		v := viewAuthDevice(d, nil)
		data["auth_sets"], data["created_ts"] = v.AuthSets, v.CreatedTS
	}
	b, err := json.Marshal(data)
	if err != nil {
		return fmt.Errorf("server: %w", err)
	}
	return s.Events.Emit(ctx, tx, events.Event{Org: d.Org, Type: string(what), Subj: d.ID, Data: b})
}

// certificate is the method of client certificates. Those of CAs that are registered to speak for
// auth sets prove no device by themselves, and do not stand in the way of its token.
func (s *Server) certificate(ctx context.Context, p identity.Proof) (identity.Actor, error) {
	a, err := s.PKI.Resolve(ctx, p)
	if !fault.Is(err, fault.Unauthenticated) || s.PKI.NotRevoked(ctx, p.Chain[0]) != nil {
		return a, err
	}
	registered, look := s.AuthSets.Registered(ctx, p.Chain)
	switch {
	case look != nil:
		return a, look
	case registered:
		return a, identity.ErrNotMine
	case s.Config.MTLS.CNThingKey:
		named, refused := s.keyInName(ctx, p, err)
		if !fault.Is(refused, fault.Unauthenticated) {
			return named, refused
		}
		err = refused
	}
	return a, s.mayEnrol(ctx, p, err)
}

// mayEnrol lets a device begin a session over CoAP that has a certificate of an outside
// CA its organisation knows, such as its manufacturer's, and is not known itself. The
// session reaches EST only, which decides what the certificate is good for. Others are
// refused, certificates that were issued here for no device among them.
func (s *Server) mayEnrol(ctx context.Context, p identity.Proof, refused error) error {
	if p.Transport == identity.HTTPS {
		return refused
	}
	outside, err := s.PKI.FromOutside(ctx, p.Chain)
	switch {
	case err == nil && outside:
		return identity.ErrMayEnrol
	case err == nil, fault.Is(err, fault.Unauthenticated):
		return refused
	}
	return err
}

// keyInName is the method of certificates whose common name is the internal key of
// a thing. The key has to be of the organisation whose CA the certificate leads to.
// Everything else ends with refused, the error there was without this method.
func (s *Server) keyInName(ctx context.Context, p identity.Proof, refused error) (identity.Actor, error) {
	org, err := s.PKI.Nameless(ctx, p.Chain)
	if fault.Is(err, fault.Unauthenticated) {
		return identity.Actor{}, refused
	}
	if err != nil {
		return identity.Actor{}, err
	}
	if !p.TLS13 && (p.Transport != identity.CoAPUDP || !s.Config.MTLS.CNThingKeyDTLS) {
		return identity.Actor{}, fault.New(fault.Unauthenticated, "a certificate that is named for a thing's key is taken over TLS 1.3 only, which does not send it in clear")
	}
	a, err := s.Things.Resolve(ctx, identity.Proof{Scheme: "Thing", Value: p.Chain[0].Subject.CommonName, Transport: p.Transport, Remote: p.Remote})
	switch {
	case fault.Is(err, fault.Unauthenticated), err == nil && a.Org != org:
		return identity.Actor{}, refused
	case err != nil:
		return identity.Actor{}, err
	}
	return a, nil
}

// certRevoked says whether a client certificate is revoked, here or by its CA.
func (s *Server) certRevoked(ctx context.Context, path []*x509.Certificate) (bool, error) {
	err := s.PKI.PathNotRevoked(ctx, path)
	if fault.Is(err, fault.Unauthenticated) {
		return true, nil
	}
	return false, err
}

// signatureHeader carries the signature of an auth request.
const signatureHeader = "X-Men-Signature"

// authRequest answers a device with a token, or with why it gets none.
func (s *Server) authRequest(c echo.Context) error {
	r := c.Request()
	if err := menderType(r); err != nil {
		return err
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return badJSON(err)
	}
	// The Authorization header, in which old clients send their tenant token, is not looked at.
	in := authsets.Request{Body: body, Signature: r.Header.Get(signatureHeader), Remote: s.ClientAddr(r)}
	if in.Chain, _, err = clientChain(r); err != nil {
		return err
	}
	token, err := s.AuthSets.Authenticate(r.Context(), in)
	if err != nil {
		return err
	}
	return c.Blob(http.StatusOK, "application/jwt", []byte(token))
}

// menderType checks the media type of a body as Mender's servers do: of one whose
// length is known and not zero.
func menderType(r *http.Request) error {
	if r.ContentLength <= 0 {
		return nil
	}
	text := r.Header.Get("Content-Type")
	if text == "application/json" {
		return nil
	}
	kind, _, err := mime.ParseMediaType(text)
	if err != nil {
		return fault.New(fault.Invalid, "Invalid value for Content-Type header: %v", err)
	}
	if kind != "application/json" {
		return fault.New(fault.Unsupported, "Bad Content-Type, expected 'application/json'")
	}
	return nil
}

const menderRequestID = "X-Men-Requestid"

// mender has a route answer with the request id where Mender's clients look for it.
func mender(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		menderID(c)
		return next(c)
	}
}

// menderPaths begin the paths of Mender's API that are this server's to answer. Errors under them,
// whether there is a route or not, are written as Mender's servers do.
var menderPaths = []string{"/api/devices/v1/authentication/", "/api/management/v2/devauth/", "/api/internal/v1/devauth/"}

// asMender has what is not there, or not by that method, answered as Mender's
// servers do; OPTIONS says what a path knows, to anybody, and a slash too many at
// its end is no other path.
func (s *Server) asMender(next echo.HandlerFunc) echo.HandlerFunc {
	return func(c echo.Context) error {
		r := c.Request()
		if !forMender(r) {
			return next(c)
		}
		if allowed, known := c.Get(echo.ContextKeyHeaderAllow).(string); known && r.Method == http.MethodOptions {
			for method := range strings.SplitSeq(allowed, ", ") {
				c.Response().Header().Add(echo.HeaderAllow, method)
			}
			menderID(c)
			return c.NoContent(http.StatusOK)
		}
		err := next(c)
		if e, ok := errors.AsType[*echo.HTTPError](err); ok && e.Code == http.StatusNotFound && strings.HasSuffix(r.URL.Path, "/") && !slices.Contains(menderPaths, r.URL.Path) {
			u := url.URL{Path: strings.TrimRight(r.URL.Path, "/"), RawQuery: r.URL.RawQuery}
			return c.Redirect(http.StatusMovedPermanently, u.String())
		}
		return err
	}
}

func forMender(r *http.Request) bool {
	for _, p := range menderPaths {
		if strings.HasPrefix(r.URL.Path, p) {
			return true
		}
	}
	return false
}

func menderID(c echo.Context) string {
	rid := c.Request().Header.Get(menderRequestID)
	if !requestIDForm.MatchString(rid) {
		rid = identity.RequestID(c.Request().Context())
	}
	c.Response().Header().Set(menderRequestID, rid)
	return rid
}

// menderProblem writes an error as Mender's servers do.
func menderProblem(c echo.Context, status int, p problem) error {
	if status == http.StatusRequestEntityTooLarge {
		p.Error = "http: request body too large"
	}
	if status == http.StatusServiceUnavailable {
		p.Error = "service unavailable"
	}
	switch p.Code {
	case codeNoRoute:
		p.Error = "not found"
	case codeNoMethod:
		p.Error = "method not allowed"
	}
	b, err := json.Marshal(struct {
		Error     string `json:"error"`
		RequestID string `json:"request_id"`
	}{p.Error, menderID(c)})
	if err != nil {
		return err
	}
	return c.Blob(status, "application/json; charset=utf-8", b)
}

// menderBody reads a JSON body as Mender's servers do: fields that are not known are left
// alone, since newer clients have more.
func menderBody(c echo.Context, what string, v any) error {
	if err := menderType(c.Request()); err != nil {
		return err
	}
	text, err := io.ReadAll(c.Request().Body)
	if err != nil {
		return badJSON(err)
	}
	if err := looseJSON(text, v); err != nil {
		return fault.New(fault.Invalid, "failed to decode %s: %v", what, err)
	}
	return nil
}
