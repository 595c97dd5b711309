package server

import (
	"net/http"

	"github.com/labstack/echo/v4"

	"keystead/identity"
	"keystead/pki"
)

func (s *Server) profileRoutes() []route {
	const all, one = "/api/v1/profiles", "/api/v1/profiles/:id"
	return []route{
		{method: http.MethodGet, path: all, need: identity.PKIRead, handle: s.listProfiles},
		{method: http.MethodPost, path: all, need: identity.PKIWrite, handle: s.createProfile},
		{method: http.MethodGet, path: one, need: identity.PKIRead, handle: s.showProfile},
		{method: http.MethodPut, path: one, need: identity.PKIWrite, handle: s.updateProfile},
		{method: http.MethodDelete, path: one, need: identity.PKIWrite, handle: s.deleteProfile},
	}
}

func viewProfile(p pki.Profile) pki.Profile {
	p.KeyUsage, p.ExtendedKeyUsage = orEmpty(p.KeyUsage), orEmpty(p.ExtendedKeyUsage)
	p.Crypto.RSASizes, p.Crypto.ECDSASizes = orEmpty(p.Crypto.RSASizes), orEmpty(p.Crypto.ECDSASizes)
	return p
}

func (s *Server) listProfiles(c echo.Context) error {
	r, err := pageRequest(c)
	if err != nil {
		return err
	}
	p, err := s.PKI.Profiles(c.Request().Context(), r)
	if err != nil {
		return err
	}
	return writePage(c, p, viewProfile)
}

func (s *Server) createProfile(c echo.Context) error {
	var in pki.Profile
	if err := bind(c, &in); err != nil {
		return err
	}
	p, err := s.PKI.CreateProfile(c.Request().Context(), in)
	if err != nil {
		return err
	}
	c.Response().Header().Set("Location", "/api/v1/profiles/"+p.ID)
	return c.JSON(http.StatusCreated, viewProfile(p))
}

func (s *Server) showProfile(c echo.Context) error {
	p, err := s.PKI.Profile(c.Request().Context(), c.Param("id"))
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, viewProfile(p))
}

func (s *Server) updateProfile(c echo.Context) error {
	var in pki.Profile
	if err := bind(c, &in); err != nil {
		return err
	}
	p, err := s.PKI.UpdateProfile(c.Request().Context(), c.Param("id"), in)
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, viewProfile(p))
}

func (s *Server) deleteProfile(c echo.Context) error {
	if err := s.PKI.DeleteProfile(c.Request().Context(), c.Param("id")); err != nil {
		return err
	}
	return c.NoContent(http.StatusNoContent)
}
