package server

import (
	"encoding/json"
	"net/http"
	"time"

	"github.com/labstack/echo/v4"

	"keystead/accounts"
	"keystead/identity"
)

// The routes below /orgs/:org act in the organisation of their path.
func (s *Server) orgRoutes() []route {
	const one = "/orgs/:org"
	return []route{
		{method: http.MethodPost, path: "/orgs", need: identity.AccountWrite, handle: s.createOrg, body: smallBody},
		{method: http.MethodGet, path: "/orgs", need: identity.AccountRead, handle: s.listOrgs},
		{method: http.MethodPost, path: "/orgs/search", need: identity.AccountRead, handle: s.searchOrgs, body: smallBody},
		{method: http.MethodGet, path: one, need: identity.OrgRead, handle: s.showOrg, org: "org"},
		{method: http.MethodPut, path: one, need: identity.OrgAdmin, handle: s.editOrg, org: "org", body: smallBody},
		{method: http.MethodDelete, path: one, need: identity.OrgOwn, handle: s.deleteOrg, org: "org"},
		{method: http.MethodPut, path: one + "/limits", need: identity.Platform, handle: s.limitOrg, org: "org", body: smallBody},
		{method: http.MethodPost, path: one + "/memberships", need: identity.OrgAdmin, handle: s.addMembers, org: "org", body: smallBody},
		{method: http.MethodGet, path: one + "/memberships", need: identity.OrgRead, handle: s.listMembers, org: "org"},
		{method: http.MethodPut, path: one + "/memberships", need: identity.OrgAdmin, handle: s.setRoles, org: "org", body: smallBody},
		{method: http.MethodPatch, path: one + "/memberships", need: identity.OrgAdmin, handle: s.removeMembers, org: "org", body: smallBody},
		{method: http.MethodGet, path: one + "/members/:member", need: identity.OrgRead, handle: s.showMember, org: "org"},
		{method: http.MethodPost, path: one + "/invites", need: identity.OrgAdmin, handle: s.inviteMember, org: "org", body: smallBody},
		{method: http.MethodGet, path: one + "/invites", need: identity.OrgAdmin, handle: s.listOrgInvites, org: "org"},
		{method: http.MethodDelete, path: one + "/invites/:invite", need: identity.OrgAdmin, handle: s.revokeOrgInvite, org: "org"},
	}
}

type orgView struct {
	ID          string          `json:"id"`
	Number      uint32          `json:"number"`
	Name        string          `json:"name"`
	OwnerID     string          `json:"owner_id"`
	Description string          `json:"description"`
	Metadata    json.RawMessage `json:"metadata,omitempty"`
	Limits      accounts.Limits `json:"limits"`
	CreatedAt   time.Time       `json:"created_at"`
	UpdatedAt   time.Time       `json:"updated_at"`
}

func viewOrg(o accounts.Organisation) orgView {
	return orgView{
		ID: o.ID, Number: o.Number, Name: o.Name, OwnerID: o.OwnerID, Description: o.Description, Metadata: o.Metadata,
		Limits: o.Limits, CreatedAt: o.CreatedAt, UpdatedAt: o.UpdatedAt,
	}
}

type newOrgView struct {
	Name        *string          `json:"name"`
	Description *string          `json:"description"`
	Metadata    *json.RawMessage `json:"metadata"`
}

func (s *Server) createOrg(c echo.Context) error {
	var in newOrgView
	if err := bind(c, &in); err != nil {
		return err
	}
	var n accounts.NewOrganisation
	if in.Name != nil {
		n.Name = *in.Name
	}
	if in.Description != nil {
		n.Description = *in.Description
	}
	if in.Metadata != nil {
		n.Metadata = *in.Metadata
	}
	o, err := s.Accounts.CreateOrganisation(c.Request().Context(), n)
	if err != nil {
		return err
	}
	c.Response().Header().Set("Location", "/orgs/"+o.ID)
	return c.JSON(http.StatusCreated, viewOrg(o))
}

func (s *Server) listOrgs(c echo.Context) error {
	l, err := listRequest(c)
	if err != nil {
		return err
	}
	return s.writeOrgs(c, l, c.QueryParam("name"))
}

func (s *Server) searchOrgs(c echo.Context) error {
	var in struct {
		listBody
		Name string `json:"name"`
	}
	if err := bindSearch(c, &in); err != nil {
		return err
	}
	l, err := in.request()
	if err != nil {
		return err
	}
	return s.writeOrgs(c, l, in.Name)
}

func (s *Server) writeOrgs(c echo.Context, l accounts.List, name string) error {
	list, total, err := s.Accounts.Organisations(c.Request().Context(), name, l)
	if err != nil {
		return err
	}
	return writeList(c, "orgs", l, total, views(list, viewOrg))
}

func (s *Server) showOrg(c echo.Context) error {
	o, err := s.Accounts.Organisation(c.Request().Context(), c.Param("org"))
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, viewOrg(o))
}

func (s *Server) editOrg(c echo.Context) error {
	var in newOrgView
	if err := bind(c, &in); err != nil {
		return err
	}
	e := accounts.OrganisationEdit{Name: in.Name, Description: in.Description, Metadata: in.Metadata}
	if _, err := s.Accounts.UpdateOrganisation(c.Request().Context(), c.Param("org"), e); err != nil {
		return err
	}
	return empty(c, http.StatusOK)
}

func (s *Server) limitOrg(c echo.Context) error {
	var in accounts.Limits
	if err := bind(c, &in); err != nil {
		return err
	}
	o, err := s.Accounts.UpdateOrganisation(c.Request().Context(), c.Param("org"), accounts.OrganisationEdit{Limits: &in})
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, viewOrg(o))
}

func (s *Server) deleteOrg(c echo.Context) error {
	return done(c, s.Accounts.DeleteOrganisation(c.Request().Context(), c.Param("org")))
}

type membershipsView struct {
	Memberships []accounts.Grant `json:"org_memberships"`
}

func (s *Server) addMembers(c echo.Context) error {
	var in membershipsView
	if err := bind(c, &in); err != nil {
		return err
	}
	if err := s.Accounts.AddMembers(c.Request().Context(), c.Param("org"), in.Memberships); err != nil {
		return err
	}
	return empty(c, http.StatusOK)
}

func (s *Server) setRoles(c echo.Context) error {
	var in membershipsView
	if err := bind(c, &in); err != nil {
		return err
	}
	if err := s.Accounts.SetRoles(c.Request().Context(), c.Param("org"), in.Memberships); err != nil {
		return err
	}
	return empty(c, http.StatusOK)
}

func (s *Server) removeMembers(c echo.Context) error {
	var in struct {
		Members []string `json:"member_ids"`
	}
	if err := bind(c, &in); err != nil {
		return err
	}
	return done(c, s.Accounts.RemoveMembers(c.Request().Context(), c.Param("org"), in.Members))
}

type memberView struct {
	MemberID  string        `json:"member_id"`
	OrgID     string        `json:"org_id"`
	Email     string        `json:"email"`
	Role      identity.Role `json:"role"`
	CreatedAt time.Time     `json:"created_at"`
	UpdatedAt time.Time     `json:"updated_at"`
}

func viewMember(m accounts.MemberOf) memberView {
	return memberView{MemberID: m.User, OrgID: m.Org, Email: m.Email, Role: m.Role, CreatedAt: m.CreatedAt, UpdatedAt: m.UpdatedAt}
}

func (s *Server) listMembers(c echo.Context) error {
	l, err := listRequest(c)
	if err != nil {
		return err
	}
	list, total, err := s.Accounts.Members(c.Request().Context(), c.Param("org"), c.QueryParam("email"), l)
	if err != nil {
		return err
	}
	return writeList(c, "org_memberships", l, total, views(list, viewMember))
}

func (s *Server) showMember(c echo.Context) error {
	m, err := s.Accounts.MemberOf(c.Request().Context(), c.Param("org"), c.Param("member"))
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, viewMember(m))
}

func (s *Server) inviteMember(c echo.Context) error {
	var in struct {
		Email    string        `json:"email"`
		Role     identity.Role `json:"role"`
		Redirect string        `json:"redirect_path"`
	}
	if err := bind(c, &in); err != nil {
		return err
	}
	return s.writeInvite(c, in.Email, c.Param("org"), in.Role)
}

func (s *Server) listOrgInvites(c echo.Context) error {
	list, err := s.Accounts.Invites(c.Request().Context(), c.Param("org"))
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, map[string]any{"invites": orEmpty(list)})
}

func (s *Server) revokeOrgInvite(c echo.Context) error {
	return done(c, s.Accounts.RevokeInvite(c.Request().Context(), c.Param("org"), c.Param("invite")))
}
