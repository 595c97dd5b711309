package server

import (
	_ "embed"
	"net/http"

	"github.com/labstack/echo/v4"

	"keystead/identity"
)

//go:embed openapi.yaml
var openapi []byte

func (s *Server) docRoutes() []route {
	return []route{
		{method: http.MethodGet, path: "/openapi.yaml", need: identity.Public, handle: s.openapi},
	}
}

func (s *Server) openapi(c echo.Context) error {
	return c.Blob(http.StatusOK, "application/yaml", openapi)
}
