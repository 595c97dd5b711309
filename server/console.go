package server

import (
	"net/http"
	"strings"

	"github.com/labstack/echo/v4"

	"keystead/console"
	"keystead/fault"
	"keystead/identity"
)

// consolePath is where the web console is. Everything it shows it asks the REST API for,
// with the session of the browser.
const consolePath = "/console/"

func (s *Server) consoleRoutes() []route {
	return []route{
		{method: http.MethodGet, path: "/console", need: identity.Public, handle: s.consoleDoor},
		{method: http.MethodGet, path: consolePath, need: identity.Public, handle: s.consoleFile},
		{method: http.MethodGet, path: consolePath + ":version/:file", need: identity.Public, handle: s.consoleFile},
	}
}

func (s *Server) consoleDoor(c echo.Context) error {
	return c.Redirect(http.StatusMovedPermanently, consolePath)
}

func (s *Server) consoleFile(c echo.Context) error {
	if !s.Config.Console.Enabled {
		return fault.New(fault.NotFound, "the console is switched off here (console.enabled)")
	}
	if !console.Serve(c.Response(), c.Request(), strings.TrimPrefix(c.Request().URL.Path, consolePath)) {
		return fault.New(fault.NotFound, "the console has no such file; reload the page")
	}
	return nil
}

// wantsPage says whether r is a person's browser that opens a page.
func wantsPage(r *http.Request) bool {
	return strings.Contains(r.Header.Get("Accept"), "text/html") && r.Header.Get("Authorization") == ""
}
