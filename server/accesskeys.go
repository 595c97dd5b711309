package server

import (
	"context"
	"net/http"

	"github.com/labstack/echo/v4"

	"keystead/accesskeys"
	"keystead/accounts"
	"keystead/identity"
	"keystead/seal"
	"keystead/store"
)

// buildAccessKeys opens the access keys of the CreatorDev API.
func (s *Server) buildAccessKeys(context.Context) error {
	s.AccessKeys = &accesskeys.Service{
		DB: s.DB, Audit: s.Audit, Now: s.Now,
		NewOrg: func(ctx context.Context, tx store.Tx, name string) (string, error) {
			o, err := s.Accounts.CreateOrganisationIn(ctx, tx, accounts.NewOrganisation{Name: name})
			return o.ID, err
		},
		Alive: func(tx store.Tx, org string) error {
			_, err := s.Accounts.OrganisationIn(tx, org)
			return err
		},
	}
	s.every("access key sessions", sweepEvery, s.AccessKeys.Sweep)
	return nil
}

func (s *Server) accessKeyRoutes() []route {
	const one = "/accesskeys/:key"
	return []route{
		{method: http.MethodGet, path: "/accesskeys", need: identity.OrgAdmin, handle: s.listAccessKeys, wire: creatorProblem},
		{method: http.MethodPost, path: "/accesskeys", need: identity.OrgAdmin, handle: s.createAccessKey, wire: creatorProblem},
		{method: http.MethodGet, path: one, need: identity.OrgAdmin, handle: s.showAccessKey, wire: creatorProblem},
		{method: http.MethodPut, path: one, need: identity.OrgAdmin, handle: s.renameAccessKey, wire: creatorProblem},
		{method: http.MethodDelete, path: one, need: identity.OrgAdmin, handle: s.deleteAccessKey, wire: creatorProblem},
	}
}

// viewAccessKey is a key as it is read, and with its secret as it is created.
func viewAccessKey(c echo.Context, k accesskeys.Key, secret seal.Secret) resource {
	r := resource{
		root: "AccessKey", media: "accesskey",
		members: []member{{"Name", k.Name}, {"Key", k.Key}},
		links:   selfLinks(creatorURL(c, "accesskeys", k.Key), true),
	}
	if secret != nil {
		r.members = append(r.members, member{"Secret", string(secret)})
	}
	return r
}

func (s *Server) listAccessKeys(c echo.Context) error {
	r, err := rangeOf(c)
	if err != nil {
		return err
	}
	keys, total, err := s.AccessKeys.List(c.Request().Context(), r.start, r.size)
	if err != nil {
		return err
	}
	items := make([]resource, len(keys))
	for i, k := range keys {
		items[i] = viewAccessKey(c, k, nil)
	}
	return resource{
		root: "AccessKeys", media: "accesskeys", members: r.pageOf(c, total, items),
		links: []link{{"add", creatorURL(c, "accesskeys"), ""}},
	}.write(c, http.StatusOK)
}

// accessKeyBody is what a client may say of a key. What else is in the body,
// such as a key and a secret of its own choice, counts for nothing.
type accessKeyBody struct {
	Name string `xml:"Name"`
}

func (s *Server) createAccessKey(c echo.Context) error {
	var in accessKeyBody
	if err := mustBindCreator(c, &in); err != nil {
		return err
	}
	k, secret, err := s.AccessKeys.Create(c.Request().Context(), in.Name)
	if err != nil {
		return err
	}
	c.Response().Header().Set("Location", creatorURL(c, "accesskeys", k.Key))
	c.Response().Header().Set("Cache-Control", "no-store")
	return viewAccessKey(c, k, secret).write(c, http.StatusCreated)
}

func (s *Server) showAccessKey(c echo.Context) error {
	k, err := s.AccessKeys.Get(c.Request().Context(), c.Param("key"))
	if err != nil {
		return err
	}
	return viewAccessKey(c, k, nil).write(c, http.StatusOK)
}

func (s *Server) renameAccessKey(c echo.Context) error {
	var in accessKeyBody
	if err := mustBindCreator(c, &in); err != nil {
		return err
	}
	if err := s.AccessKeys.Rename(c.Request().Context(), c.Param("key"), in.Name); err != nil {
		return err
	}
	return c.NoContent(http.StatusNoContent)
}

func (s *Server) deleteAccessKey(c echo.Context) error {
	if err := s.AccessKeys.Delete(c.Request().Context(), c.Param("key")); err != nil {
		return err
	}
	return c.NoContent(http.StatusNoContent)
}
