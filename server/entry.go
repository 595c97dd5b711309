package server

import (
	"cmp"
	"net"
	"net/http"
	"runtime"
	"runtime/debug"
	"strings"

	"github.com/labstack/echo/v4"

	"keystead/fault"
	"keystead/identity"
)

func (s *Server) entryRoutes() []route {
	return []route{
		{method: http.MethodGet, path: "/", need: identity.Public, handle: s.entryPoint, wire: creatorProblem},
		{method: http.MethodGet, path: "/configuration", need: identity.BootstrapRead, handle: s.configuration, wire: creatorProblem},
		{method: http.MethodGet, path: "/configuration/bootstrap", need: identity.BootstrapRead, handle: s.bootstrapURL, wire: creatorProblem},
		{method: http.MethodGet, path: "/versions", need: identity.Public, handle: s.versions, wire: creatorProblem},
		{method: http.MethodGet, path: "/objecttypes/definitions", need: identity.DevicesRead, handle: emptyList("ObjectDefinitions"), wire: creatorProblem},
		{method: http.MethodGet, path: "/metrics", need: identity.DevicesRead, handle: emptyList("Metrics"), wire: creatorProblem},
	}
}

// entryPoint is where clients of the CreatorDev API find everything else. It
// says more to those who have logged in. Browsers are sent to the console.
func (s *Server) entryPoint(c echo.Context) error {
	if s.Config.Console.Enabled && wantsPage(c.Request()) {
		c.Response().Header().Set("Vary", "Accept")
		return c.Redirect(http.StatusSeeOther, consolePath)
	}
	authenticate := link{"authenticate", creatorURL(c, "oauth", "token"), "oauthtoken"}
	versions := link{"versions", creatorURL(c, "versions"), "versions"}
	r := resource{root: "APIEntryPoint", media: "apientrypoint", links: []link{authenticate, versions}}
	if c.Request().Header.Get("Authorization") == "" {
		return r.write(c, http.StatusOK)
	}
	if err := s.prove(c); err != nil {
		return err
	}
	r.links = []link{
		authenticate,
		{"accesskeys", creatorURL(c, "accesskeys"), "accesskeys"},
		{"configuration", creatorURL(c, "configuration"), "configuration"},
		{"clients", creatorURL(c, "clients"), "clients"},
		{"identities", creatorURL(c, "identities"), "identities"},
		{"objectdefinitions", creatorURL(c, "objecttypes", "definitions"), "objectdefinitions"},
		{"subscriptions", creatorURL(c, "subscriptions"), "subscriptions"},
		{"metrics", creatorURL(c, "metrics"), "metrics"},
		versions,
	}
	return r.write(c, http.StatusOK)
}

func (s *Server) configuration(c echo.Context) error {
	return resource{root: "Configuration", media: "configuration", links: []link{
		{"bootstrap", creatorURL(c, "configuration", "bootstrap"), "bootstrap"},
	}}.write(c, http.StatusOK)
}

// bootstrapURL says where devices bootstrap: at the gateway, under the name the
// client called this server by.
func (s *Server) bootstrapURL(c echo.Context) error {
	port, err := s.bootstrapPort()
	if err != nil {
		return fault.New(fault.NotFound, "no bootstrap server runs here; switch on coap.udp or lwm2m.udp")
	}
	host := c.Request().Host
	if name, _, err := net.SplitHostPort(host); err == nil {
		host = name
	}
	return resource{root: "Bootstrap", media: "bootstrap", members: []member{
		{"Url", "coaps://" + net.JoinHostPort(strings.Trim(host, "[]"), port) + "/"},
	}}.write(c, http.StatusOK)
}

func (s *Server) versions(c echo.Context) error {
	var components []resource
	add := func(name, version string) {
		components = append(components, resource{root: "VersionComponent", members: []member{{"Name", name}, {"Version", version}}})
	}
	build := cmp.Or(s.Version, "dev")
	add("keystead", build)
	add("go", runtime.Version())
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, m := range info.Deps {
			switch m.Path {
			case "github.com/labstack/echo/v4", "github.com/pion/dtls/v3", "go.etcd.io/bbolt":
				add(m.Path, m.Version)
			}
		}
	}
	return resource{root: "Versions", media: "versions", members: []member{{"BuildNumber", build}, {"Components", components}}}.write(c, http.StatusOK)
}

// emptyList answers for the lists of the CreatorDev API that are about the data
// of devices, which this server holds none of: clients that follow the links of
// the entry point find them, with nothing in them.
func emptyList(root string) echo.HandlerFunc {
	media := map[string]string{"ObjectDefinitions": "objectdefinitions", "Metrics": "metrics"}[root]
	return func(c echo.Context) error {
		r, err := rangeOf(c)
		if err != nil {
			return err
		}
		return resource{root: root, media: media, members: r.pageOf(c, 0, nil)}.write(c, http.StatusOK)
	}
}
