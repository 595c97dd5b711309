package server

import (
	"context"
	"errors"
	"net/http"
	"net/netip"
	"strings"

	"github.com/labstack/echo/v4"

	"keystead/fault"
	"keystead/identity"
)

func (s *Server) introspectRoutes() []route {
	const verify = "/api/internal/v1/devauth/tokens/verify"
	return []route{
		// The Authorization header is that of the request a gateway asks about; its own key comes
		// in gatewayHeader and is asked for permission by the handler.
		{method: http.MethodGet, path: verify, need: identity.Public, handle: mender(s.verifyToken)},
		{method: http.MethodPost, path: verify, need: identity.Public, handle: mender(s.verifyToken)},
		{method: http.MethodGet, path: "/api/internal/v1/devauth/alive", need: identity.Public, handle: mender(menderAlive)},
		{method: http.MethodGet, path: "/api/internal/v1/devauth/health", need: identity.Public, handle: mender(s.menderHealth)},
	}
}

// menderAlive says that the process serves at all.
func menderAlive(c echo.Context) error { return c.NoContent(http.StatusNoContent) }

// menderHealth says whether requests should come here, as readyz does on the
// listener for operations, which says why.
func (s *Server) menderHealth(c echo.Context) error {
	for _, f := range s.examine(c.Request().Context()) {
		if f.State == failed {
			return fault.New(fault.Unavailable, "the server is not ready")
		}
	}
	return c.NoContent(http.StatusNoContent)
}

// introspection is an answer by RFC 7662, 2.2. Of a token that is not active it says
// nothing else.
type introspection struct {
	Active    bool   `json:"active"`
	TokenType string `json:"token_type,omitempty"`
	Kind      string `json:"kind,omitempty"`
	Subject   string `json:"sub,omitempty"`
	Username  string `json:"username,omitempty"`
	Org       string `json:"org,omitempty"`
	ID        string `json:"jti,omitempty"`
	Issuer    string `json:"iss,omitempty"`
	ExpiresAt int64  `json:"exp,omitempty"`
}

// introspectBy says whether a token, of a device or a user of the caller's organisation, is
// good now (RFC 7662), to who shows an API key with the permission tokens:verify.
func (s *Server) introspectBy(c echo.Context, token string) error {
	if err := s.prove(c); err != nil {
		return err
	}
	if err := allow(identity.FromContext(c.Request().Context()), identity.TokensVerify); err != nil {
		return err
	}
	c.Response().Header().Set("Cache-Control", "no-store")
	ctx := c.Request().Context()
	a, err := s.Resolver.Resolve(ctx, identity.Proof{Scheme: "Bearer", Value: token, Transport: identity.HTTPS})
	if err != nil && !fault.Is(err, fault.Unauthenticated) && !fault.Is(err, fault.Forbidden) && !fault.Is(err, fault.NotFound) {
		return err
	}
	if err != nil || a.Org != identity.OrgOf(ctx) {
		return c.JSON(http.StatusOK, introspection{})
	}
	v := introspection{
		Active: true, TokenType: "Bearer", Kind: string(a.Kind), Subject: a.ID, Username: a.Name, Org: a.Org, ID: a.Credential.ID, Issuer: s.Tokens.Config.Issuer,
	}
	if exp := a.Credential.ExpiresAt; !exp.IsZero() {
		v.ExpiresAt = exp.Unix()
	}
	return c.JSON(http.StatusOK, v)
}

// gatewayHeader carries the API key of a gateway that asks about the Authorization
// header of somebody else.
const gatewayHeader = "X-Gateway-Key"

// verifyToken answers 200 if the request has the token of a device that may in, as
// forward authentication of gateways has it, and says which device in headers.
func (s *Server) verifyToken(c echo.Context) error {
	ctx := c.Request().Context()
	gateway, err := s.gateway(ctx, c.Request())
	if err != nil {
		return err
	}
	scheme, value, _ := strings.Cut(c.Request().Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Bearer") {
		return fault.New(fault.Unauthenticated, "the request has no device token")
	}
	a, err := s.AuthSets.Resolve(ctx, identity.Proof{Scheme: "Bearer", Value: strings.TrimSpace(value)})
	switch {
	case errors.Is(err, identity.ErrNotMine), err == nil && a.Org != gateway.Org:
		return fault.New(fault.Unauthenticated, "the token is not good here")
	case err != nil:
		return err
	}
	h := c.Response().Header()
	h.Set(deviceHeader, a.ID)
	h.Set(orgHeader, a.Org)
	return c.NoContent(http.StatusOK)
}

// Headers that name the device a request is of, to what is behind a gateway.
const (
	deviceHeader = "X-Keystead-Device"
	orgHeader    = "X-Keystead-Org"
)

// gateway is who has the key in gatewayHeader, which needs the permission tokens:verify.
func (s *Server) gateway(ctx context.Context, r *http.Request) (identity.Actor, error) {
	a, err := s.Resolver.Resolve(ctx, identity.Proof{
		Scheme: "Bearer", Value: r.Header.Get(gatewayHeader), Transport: identity.HTTPS, Org: r.Header.Get("X-Org-Id"),
		Remote: netip.AddrPortFrom(s.ClientAddr(r), 0),
	})
	if fault.Is(err, fault.Unauthenticated) {
		return a, fault.Wrap(fault.Forbidden, err, "the gateway needs a key of its own in %s", gatewayHeader)
	}
	if err != nil {
		return a, err
	}
	return a, allow(a, identity.TokensVerify)
}
