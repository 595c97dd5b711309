package server

import (
	"net/http"
	"time"

	"github.com/labstack/echo/v4"

	"keystead/est"
	"keystead/fault"
	"keystead/identity"
	"keystead/pki"
)

func (s *Server) enrolmentTokenRoutes() []route {
	const all, one = "/api/v1/enrolment-tokens", "/api/v1/enrolment-tokens/:id"
	return []route{
		{method: http.MethodGet, path: all, need: identity.CredentialsRead, handle: s.listEnrolmentTokens},
		{method: http.MethodPost, path: all, need: identity.CredentialsWrite, handle: s.createEnrolmentToken},
		{method: http.MethodGet, path: one, need: identity.CredentialsRead, handle: s.showEnrolmentToken},
		{method: http.MethodDelete, path: one, need: identity.CredentialsWrite, handle: s.revokeEnrolmentToken},
	}
}

type enrolmentTokenView struct {
	ID         string         `json:"id"`
	Token      string         `json:"token,omitempty"` // when it is made, and never again
	DMS        string         `json:"dms"`
	Device     string         `json:"device,omitempty"`
	CommonName string         `json:"common_name,omitempty"`
	State      est.TokenState `json:"state"`
	Uses       int            `json:"uses"`
	MaxUses    int            `json:"max_uses"`
	Comment    string         `json:"comment,omitempty"`
	CreatedAt  time.Time      `json:"created_at"`
	ExpiresAt  time.Time      `json:"expires_at"`
	LastUsedAt *time.Time     `json:"last_used_at,omitempty"`
}

func (s *Server) viewEnrolmentToken(t est.Token) enrolmentTokenView {
	v := enrolmentTokenView{
		ID: t.ID, DMS: t.DMS, Device: t.Device, CommonName: t.CommonName, State: t.StateAt(s.Now()), Uses: t.Uses, MaxUses: t.MaxUses,
		Comment: t.Comment, CreatedAt: t.CreatedAt, ExpiresAt: t.ExpiresAt,
	}
	if !t.LastUsedAt.IsZero() {
		v.LastUsedAt = &t.LastUsedAt
	}
	return v
}

func (s *Server) listEnrolmentTokens(c echo.Context) error {
	r, err := pageRequest(c)
	if err != nil {
		return err
	}
	p, err := s.EST.Tokens(c.Request().Context(), r)
	if err != nil {
		return err
	}
	return writePage(c, p, s.viewEnrolmentToken)
}

type newEnrolmentToken struct {
	DMS        string `json:"dms"`
	Device     string `json:"device"`
	CommonName string `json:"common_name"`
	MaxUses    *int   `json:"max_uses"`
	ExpiresIn  string `json:"expires_in"`
	Comment    string `json:"comment"`
}

func (s *Server) createEnrolmentToken(c echo.Context) error {
	var in newEnrolmentToken
	if err := bind(c, &in); err != nil {
		return err
	}
	n := est.NewToken{DMS: in.DMS, Device: in.Device, CommonName: in.CommonName, Comment: in.Comment}
	if in.MaxUses != nil {
		n.MaxUses, n.Unlimited = *in.MaxUses, *in.MaxUses == 0
	}
	if in.ExpiresIn != "" {
		d, err := pki.ParseDuration(in.ExpiresIn)
		if err != nil {
			return fault.InvalidFields(fault.Field{Name: "expires_in", Message: err.Error()})
		}
		n.TTL = time.Duration(d)
	}
	t, text, err := s.EST.CreateToken(c.Request().Context(), n)
	if err != nil {
		return err
	}
	v := s.viewEnrolmentToken(t)
	v.Token = string(text)
	c.Response().Header().Set("Cache-Control", "no-store")
	c.Response().Header().Set("Location", "/api/v1/enrolment-tokens/"+t.ID)
	return c.JSON(http.StatusCreated, v)
}

func (s *Server) showEnrolmentToken(c echo.Context) error {
	t, err := s.EST.Token(c.Request().Context(), c.Param("id"))
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, s.viewEnrolmentToken(t))
}

func (s *Server) revokeEnrolmentToken(c echo.Context) error {
	if err := s.EST.RevokeToken(c.Request().Context(), c.Param("id")); err != nil {
		return err
	}
	return c.NoContent(http.StatusNoContent)
}
