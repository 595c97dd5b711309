package server

import (
	"context"
	"crypto/x509"
	"net/http"
	"net/netip"
	"time"

	"github.com/labstack/echo/v4"

	"keystead/est"
	"keystead/fault"
	"keystead/identity"
	"keystead/outbound"
)

// buildEST opens enrolment.
func (s *Server) buildEST(context.Context) error {
	s.EST = &est.Service{
		DB: s.DB, Audit: s.Audit, Devices: s.Devices, PKI: s.PKI, Log: s.Log, Now: s.Now, Config: s.Config.EST, Box: s.keys.Box("dms"),
		Guard: outbound.Guard{Allow: s.Config.Webhook.Prefixes(), Deny: s.isOwn}, SystemCA: s.systemCA, JWT: s.bearerClaims,
	}
	s.every("enrolment", time.Hour, s.EST.Sweep)
	return nil
}

// systemCA is what the server's own certificate leads to.
func (s *Server) systemCA(ctx context.Context) ([]*x509.Certificate, error) {
	org, err := s.Accounts.DefaultOrganisation(ctx)
	if err != nil {
		return nil, err
	}
	ca, err := s.PKI.DefaultCA(identity.NewContext(ctx, identity.Actor{Kind: identity.System, Org: org}))
	if err != nil {
		return nil, err
	}
	path, err := s.PKI.Path(ctx, ca.ID)
	if err != nil {
		return nil, err
	}
	return path[len(path)-1:], nil
}

// estRoutes are EST's paths (RFC 7030, 3.2.2), and where clients that can only
// put something before them look: strongSwan, and those made for Lamassu's gateway.
func (s *Server) estRoutes() []route {
	var all []route
	for _, path := range []string{
		"/.well-known/est/:operation", "/.well-known/est/:label/:operation", "/:label/.well-known/est/:operation",
		"/api/dmsmanager/.well-known/est/:label/:operation",
	} {
		for _, method := range []string{http.MethodGet, http.MethodPost} {
			all = append(all, route{method: method, path: path, need: identity.Public, handle: s.est, wire: estWire})
		}
	}
	return all
}

// est hands a request to EST, which knows who may make it.
func (s *Server) est(c echo.Context) error {
	h := est.Handler{
		Service: s.EST, Label: func(*http.Request) string { return c.Param("label") },
		Remote: func(r *http.Request) netip.Addr { return s.ClientAddr(r) }, Chain: clientChain,
	}
	h.ServeOperation(c.Response(), c.Request(), c.Param("operation"))
	return nil
}

// estWire answers with what goes wrong before EST is reached.
func estWire(c echo.Context, status int, p problem) error {
	h := est.Handler{}
	h.Fail(c.Response(), c.Request(), status, fault.New(fault.Invalid, "%s", p.Error))
	return nil
}
