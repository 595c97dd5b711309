package server

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/labstack/echo/v4"

	"keystead/fault"
	"keystead/identity"
	"keystead/outbound"
	"keystead/tokens"
)

func (s *Server) issuerRoutes() []route {
	return []route{
		{method: http.MethodGet, path: "/api/v1/issuers", need: identity.OrgRead, handle: s.listIssuers},
		{method: http.MethodPost, path: "/api/v1/issuers", need: identity.OrgAdmin, handle: s.createIssuer},
		{method: http.MethodGet, path: "/api/v1/issuers/:id", need: identity.OrgRead, handle: s.showIssuer},
		{method: http.MethodDelete, path: "/api/v1/issuers/:id", need: identity.OrgAdmin, handle: s.deleteIssuer},
	}
}

// buildIssuers opens the outside issuers, whose key sets are fetched as every
// request of the server's own is sent.
func (s *Server) buildIssuers(context.Context) error {
	client, err := s.outbound()
	if err != nil {
		return err
	}
	s.Issuers = &tokens.Issuers{
		DB: s.DB, Audit: s.Audit, Now: s.Now, Log: s.Log,
		Own: func(text string) bool {
			_, known := s.Tokens.Known(text)
			return known
		},
		CheckURL: func(url string) error { return outbound.CheckURL(url, false) },
		Fetch: func(ctx context.Context, url string) ([]byte, error) {
			a, err := client.Do(ctx, outbound.Request{Method: http.MethodGet, URL: url, Header: map[string]string{"Accept": "application/json"}})
			if err == nil && !a.OK() {
				err = fmt.Errorf("the issuer answered with status %d", a.Status)
			}
			return a.Body, err
		},
	}
	return nil
}

// bearerClaims returns the claims of a token that vouches for a device in an
// organisation: of a trusted outside issuer, or one of this server's own that a
// device has, which names the device as its subject.
func (s *Server) bearerClaims(ctx context.Context, org, token string) (map[string]any, error) {
	a, err := s.AuthSets.Resolve(ctx, identity.Proof{Scheme: "Bearer", Value: token, Transport: identity.HTTPS})
	if errors.Is(err, identity.ErrNotMine) {
		return s.Issuers.Claims(ctx, org, token)
	}
	if err != nil {
		return nil, err
	}
	if a.Org != org {
		return nil, fault.New(fault.Unauthenticated, "the token is of a device of another organisation")
	}
	return map[string]any{"iss": s.Tokens.Config.Issuer, "sub": a.ID, "name": a.Name}, nil
}

type issuerView struct {
	ID         string          `json:"id"`
	Name       string          `json:"name"`
	Issuer     string          `json:"issuer"`
	Audiences  []string        `json:"audiences"`
	Algorithms []string        `json:"algorithms"`
	KeysURL    string          `json:"keys_url,omitempty"`
	Keys       json.RawMessage `json:"keys,omitempty"`
	Mapping    tokens.Mapping  `json:"mapping"`
	FetchedAt  *time.Time      `json:"fetched_at"`
	CreatedAt  time.Time       `json:"created_at"`
}

func viewIssuer(i tokens.Issuer) issuerView {
	return issuerView{i.ID, i.Name, i.Issuer, i.Audiences, i.Algorithms, i.KeysURL, i.Keys, i.Mapping, orNull(i.FetchedAt), i.CreatedAt}
}

type newIssuer struct {
	Name       string          `json:"name"`
	Issuer     string          `json:"issuer"`
	Audiences  []string        `json:"audiences"`
	Algorithms []string        `json:"algorithms"`
	KeysURL    string          `json:"keys_url"`
	Keys       json.RawMessage `json:"keys"`
	Mapping    tokens.Mapping  `json:"mapping"`
}

func (s *Server) createIssuer(c echo.Context) error {
	var in newIssuer
	if err := bind(c, &in); err != nil {
		return err
	}
	i, err := s.Issuers.Create(c.Request().Context(), tokens.NewIssuer(in))
	if err != nil {
		return err
	}
	c.Response().Header().Set("Location", "/api/v1/issuers/"+i.ID)
	return c.JSON(http.StatusCreated, viewIssuer(i))
}

func (s *Server) listIssuers(c echo.Context) error {
	r, err := pageRequest(c)
	if err != nil {
		return err
	}
	p, err := s.Issuers.List(c.Request().Context(), r)
	if err != nil {
		return err
	}
	return writePage(c, p, viewIssuer)
}

func (s *Server) showIssuer(c echo.Context) error {
	i, err := s.Issuers.Get(c.Request().Context(), c.Param("id"))
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, viewIssuer(i))
}

func (s *Server) deleteIssuer(c echo.Context) error {
	if err := s.Issuers.Delete(c.Request().Context(), c.Param("id")); err != nil {
		return err
	}
	return c.NoContent(http.StatusNoContent)
}
