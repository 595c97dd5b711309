package server

import (
	"net/http"

	"github.com/labstack/echo/v4"

	"keystead/identity"
	"keystead/lwm2m"
)

func (s *Server) registeredRoutes() []route {
	const one = "/clients/:client"
	return []route{
		{method: http.MethodGet, path: "/clients", need: identity.DevicesRead, handle: s.listRegistered, wire: creatorProblem},
		{method: http.MethodGet, path: one, need: identity.DevicesRead, handle: s.showRegistered, wire: creatorProblem},
		{method: http.MethodDelete, path: one, need: identity.DevicesWrite, handle: s.deleteRegistered, wire: creatorProblem},
	}
}

func viewRegistered(c echo.Context, r lwm2m.Registration) resource {
	self := creatorURL(c, "clients", r.Location)
	return resource{
		root: "Client", media: "client", members: []member{{"Name", r.Endpoint}},
		links: append(selfLinks(self, false),
			link{"objecttypes", self + "/objecttypes", "objecttypes"},
			link{"subscriptions", self + "/subscriptions", "subscriptions"},
			link{"metrics", self + "/metrics", "metrics"}),
	}
}

// listRegistered lists the devices that are registered now.
func (s *Server) listRegistered(c echo.Context) error {
	r, err := rangeOf(c)
	if err != nil {
		return err
	}
	list, total, err := s.LwM2M.Clients(c.Request().Context(), r.start, r.size)
	if err != nil {
		return err
	}
	items := make([]resource, len(list))
	for i, v := range list {
		items[i] = viewRegistered(c, v)
	}
	return resource{root: "Clients", media: "clients", members: r.pageOf(c, total, items)}.write(c, http.StatusOK)
}

func (s *Server) showRegistered(c echo.Context) error {
	v, err := s.LwM2M.Client(c.Request().Context(), c.Param("client"))
	if err != nil {
		return err
	}
	return viewRegistered(c, v).write(c, http.StatusOK)
}

// deleteRegistered drops a registration and bans the device: it is suspended, until
// it is resumed as every suspended device is.
func (s *Server) deleteRegistered(c echo.Context) error {
	if err := s.LwM2M.Ban(c.Request().Context(), c.Param("client")); err != nil {
		return err
	}
	return c.NoContent(http.StatusNoContent)
}
