package server

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"time"

	"github.com/labstack/echo/v4"

	"keystead/authsets"
	"keystead/devices"
	"keystead/fault"
	"keystead/identity"
)

func (s *Server) devauthRoutes() []route {
	const base = "/api/management/v2/devauth"
	all := []route{
		{method: http.MethodGet, path: "/devices", need: identity.DevicesRead, handle: s.listAuthDevices},
		{method: http.MethodPost, path: "/devices/search", need: identity.DevicesRead, handle: s.searchAuthDevices},
		{method: http.MethodGet, path: "/devices/count", need: identity.DevicesRead, handle: s.countAuthDevices},
		{method: http.MethodPost, path: "/devices", need: identity.CredentialsWrite, handle: s.preauthorise},
		{method: http.MethodGet, path: "/devices/:id", need: identity.DevicesRead, handle: s.showAuthDevice},
		{method: http.MethodPatch, path: "/devices/:id", need: identity.DevicesWrite, handle: s.describeAuthDevice},
		{method: http.MethodDelete, path: "/devices/:id", need: identity.DevicesWrite, handle: s.decommission},
		{method: http.MethodDelete, path: "/devices/:id/auth/:aid", need: identity.CredentialsWrite, handle: s.dismissAuthSet},
		{method: http.MethodGet, path: "/devices/:id/auth/:aid/status", need: identity.DevicesRead, handle: s.showAuthStatus},
		{method: http.MethodPut, path: "/devices/:id/auth/:aid/status", need: identity.CredentialsWrite, handle: s.setAuthStatus},
		{method: http.MethodDelete, path: "/tokens/:jti", need: identity.CredentialsWrite, handle: s.revokeDeviceToken},
		{method: http.MethodGet, path: "/limits/:name", need: identity.DevicesRead, handle: s.showAuthLimit},
		{method: http.MethodPut, path: "/limits/:name", need: identity.OrgAdmin, handle: s.setAuthLimit},
	}
	for i := range all {
		all[i].path, all[i].handle = base+all[i].path, mender(all[i].handle)
	}
	return all
}

// menderTime is written to the millisecond.
type menderTime time.Time

// MarshalJSON implements json.Marshaler.
func (t menderTime) MarshalJSON() ([]byte, error) {
	return []byte(time.Time(t).UTC().Format(`"2006-01-02T15:04:05.000Z"`)), nil
}

type authDeviceView struct {
	ID              string            `json:"id"`
	IdentityData    json.RawMessage   `json:"identity_data"`
	Status          authsets.Status   `json:"status"`
	Decommissioning bool              `json:"decommissioning"`
	CreatedTS       menderTime        `json:"created_ts"`
	UpdatedTS       menderTime        `json:"updated_ts"`
	CheckInTime     *menderTime       `json:"check_in_time,omitempty"`
	AuthSets        []authSetView     `json:"auth_sets"`
	Comment         string            `json:"comment,omitempty"`
	Labels          map[string]string `json:"labels,omitempty"`
}

type authSetView struct {
	ID           string          `json:"id"`
	IdentityData json.RawMessage `json:"identity_data"`
	PubKey       string          `json:"pubkey"`
	TS           menderTime      `json:"ts"`
	Status       authsets.Status `json:"status"`
	Fingerprint  string          `json:"fingerprint"`
	Reason       string          `json:"reason,omitempty"`
	AcceptedBy   string          `json:"accepted_by,omitempty"`
}

// viewAuthDevice is d as it is read; seen is when devices were last heard of.
func viewAuthDevice(d authsets.Device, seen map[string]time.Time) authDeviceView {
	v := authDeviceView{
		ID: d.ID, IdentityData: json.RawMessage(d.Identity), Status: d.Status, Comment: d.Comment, Labels: d.Labels,
		CreatedTS: menderTime(d.CreatedAt), UpdatedTS: menderTime(d.UpdatedAt), AuthSets: make([]authSetView, len(d.Sets)),
	}
	if at, ok := seen[d.ID]; ok {
		v.CheckInTime = (*menderTime)(&at)
	}
	for i, set := range d.Sets {
		v.AuthSets[i] = authSetView{
			ID: set.ID, IdentityData: v.IdentityData, PubKey: set.PEM(), TS: menderTime(set.CreatedAt), Status: set.Status,
			Fingerprint: set.Fingerprint(), Reason: set.Reason, AcceptedBy: set.By,
		}
	}
	return v
}

func (s *Server) writeAuthDevices(c echo.Context, list []authsets.Device) error {
	seen, err := s.AuthSets.LastSeen(c.Request().Context(), list)
	if err != nil {
		return err
	}
	if err := s.AuthSets.Notes(c.Request().Context(), list); err != nil {
		return err
	}
	views := make([]authDeviceView, len(list))
	for i, d := range list {
		views[i] = viewAuthDevice(d, seen)
	}
	return c.JSON(http.StatusOK, views)
}

// numbered is a page that is asked for by number.
type numbered struct{ page, size int }

// maxNumbered is the most devices on a numbered page.
const maxNumbered = 500

func numberedPage(q url.Values) (numbered, error) {
	n := numbered{1, 20}
	if text := q.Get("page"); text != "" {
		v, err := strconv.Atoi(text)
		if err != nil || v < 1 || v > 1<<31 {
			return n, fault.New(fault.Invalid, "invalid page query: %q", text)
		}
		n.page = v
	}
	if text := q.Get("per_page"); text != "" {
		v, err := strconv.Atoi(text)
		if err != nil || v < 1 {
			return n, fault.New(fault.Invalid, "invalid per_page query: value must be a non-zero positive integer")
		}
		if v > maxNumbered {
			return n, fault.New(fault.Invalid, `parameter "per_page" above limit (max: %d)`, maxNumbered)
		}
		n.size = v
	}
	return n, nil
}

// links says where the pages around n are, one header line each.
func (n numbered) links(c echo.Context, more bool) {
	at := func(page int, rel string) {
		q := c.QueryParams()
		q.Set("page", strconv.Itoa(page))
		q.Set("per_page", strconv.Itoa(n.size))
		c.Response().Header().Add("Link", fmt.Sprintf(`<%s?%s>; rel="%s"`, c.Request().URL.Path, q.Encode(), rel))
	}
	at(1, "first")
	if n.page > 1 {
		at(n.page-1, "prev")
	}
	if more {
		at(n.page+1, "next")
	}
}

func (s *Server) pageAuthDevices(c echo.Context, f authsets.Filter) error {
	for _, status := range f.Statuses {
		if !slices.Contains(authsets.Statuses, status) {
			return fault.New(fault.Invalid, "filter status must be one of: accepted, pending, rejected, preauthorized or noauth")
		}
	}
	n, err := numberedPage(c.QueryParams())
	if err != nil {
		return err
	}
	list, err := s.AuthSets.List(c.Request().Context(), f, (n.page-1)*n.size, n.size+1)
	if err != nil {
		return err
	}
	n.links(c, len(list) > n.size)
	return s.writeAuthDevices(c, list[:min(n.size, len(list))])
}

func (s *Server) listAuthDevices(c echo.Context) error {
	var f authsets.Filter
	for _, status := range c.QueryParams()["status"] {
		f.Statuses = append(f.Statuses, authsets.Status(status))
	}
	f.IDs = c.QueryParams()["id"]
	var err error
	if f.Labels, err = labelFilter(c.QueryParams()["label"]); err != nil {
		return err
	}
	return s.pageAuthDevices(c, f)
}

// labelFilter reads labels, each key=value, that all have to hold.
func labelFilter(texts []string) (map[string]string, error) {
	if len(texts) > devices.MaxLabels {
		return nil, fault.New(fault.Invalid, "a filter names at most %d labels", devices.MaxLabels)
	}
	labels := map[string]string{}
	for _, text := range texts {
		key, value, err := parseLabel(text)
		if err != nil {
			return nil, err
		}
		if _, twice := labels[key]; twice {
			return nil, fault.New(fault.Invalid, "the label %q is named twice", key)
		}
		labels[key] = value
	}
	return labels, nil
}

// oneOrMany is a JSON string, or a list of them.
type oneOrMany []string

// UnmarshalJSON implements json.Unmarshaler.
func (o *oneOrMany) UnmarshalJSON(b []byte) error {
	if len(b) > 0 && b[0] == '"' {
		*o = make([]string, 1)
		return json.Unmarshal(b, &(*o)[0])
	}
	return json.Unmarshal(b, (*[]string)(o))
}

func (s *Server) searchAuthDevices(c echo.Context) error {
	var in struct {
		Status oneOrMany `json:"status"`
		ID     oneOrMany `json:"id"`
		Label  oneOrMany `json:"label"`
	}
	if err := menderBody(c, "device filter", &in); err != nil {
		return err
	}
	labels, err := labelFilter(in.Label)
	if err != nil {
		return err
	}
	f := authsets.Filter{IDs: in.ID, Labels: labels}
	for _, status := range in.Status {
		f.Statuses = append(f.Statuses, authsets.Status(status))
	}
	return s.pageAuthDevices(c, f)
}

func (s *Server) countAuthDevices(c echo.Context) error {
	status := authsets.Status(c.QueryParam("status"))
	if status != "" && !slices.Contains(authsets.Statuses, status) {
		return fault.New(fault.Invalid, "status must be one of: pending, accepted, rejected, preauthorized, noauth")
	}
	n, err := s.AuthSets.Count(c.Request().Context(), status)
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, map[string]int{"count": n})
}

func (s *Server) showAuthDevice(c echo.Context) error {
	d, err := s.AuthSets.Get(c.Request().Context(), c.Param("id"))
	if err != nil {
		return err
	}
	return s.writeAuthDevice(c, http.StatusOK, d)
}

func (s *Server) writeAuthDevice(c echo.Context, status int, d authsets.Device) error {
	list := []authsets.Device{d}
	seen, err := s.AuthSets.LastSeen(c.Request().Context(), list)
	if err != nil {
		return err
	}
	if err := s.AuthSets.Notes(c.Request().Context(), list); err != nil {
		return err
	}
	return c.JSON(status, viewAuthDevice(list[0], seen))
}

type preauth struct {
	IdentityData json.RawMessage `json:"identity_data"`
	PubKey       string          `json:"pubkey"`
	Force        bool            `json:"force"`
	Device       string          `json:"device"`
}

func (p preauth) parse() (n authsets.New, err error) {
	const failed = "failed to decode preauth request: "
	if raw := string(p.IdentityData); raw == "" || raw == "null" || raw == "{}" {
		return n, fault.New(fault.Invalid, failed+"identity_data: cannot be blank.")
	}
	if p.PubKey == "" {
		return n, fault.New(fault.Invalid, failed+"pubkey: cannot be blank.")
	}
	if n.Identity, err = authsets.Canonicalise(p.IdentityData); err != nil {
		return n, fault.New(fault.Invalid, failed+"%v", err)
	}
	if _, n.Key, err = authsets.ParseKey(p.PubKey); err != nil {
		return n, fault.New(fault.Invalid, failed+"cannot decode public key")
	}
	n.Force, n.Device = p.Force, p.Device
	return n, nil
}

func (s *Server) preauthorise(c echo.Context) error {
	var in preauth
	if err := menderBody(c, "preauth request", &in); err != nil {
		return err
	}
	n, err := in.parse()
	if err != nil {
		return err
	}
	d, err := s.AuthSets.Preauthorise(c.Request().Context(), n)
	if errors.Is(err, authsets.ErrExists) {
		return s.writeAuthDevice(c, http.StatusConflict, d) // as Mender answers: with what is in the way
	}
	if err != nil {
		return err
	}
	c.Response().Header().Set("Location", "devices/"+d.ID)
	return c.NoContent(http.StatusCreated)
}

func (s *Server) describeAuthDevice(c echo.Context) error {
	var in struct {
		Comment *string            `json:"comment"`
		Labels  *map[string]string `json:"labels"`
	}
	if err := menderBody(c, "request", &in); err != nil {
		return err
	}
	d, err := s.AuthSets.Describe(c.Request().Context(), c.Param("id"), in.Comment, in.Labels)
	if err != nil {
		return err
	}
	return s.writeAuthDevice(c, http.StatusOK, d)
}

func (s *Server) decommission(c echo.Context) error {
	return gone(c, s.AuthSets.Decommission(c.Request().Context(), c.Param("id")))
}

// gone answers a removal. What was not there is answered with no body.
func gone(c echo.Context, err error) error {
	switch {
	case fault.Is(err, fault.NotFound):
		return c.NoContent(http.StatusNotFound)
	case err != nil:
		return err
	}
	return c.NoContent(http.StatusNoContent)
}

func (s *Server) dismissAuthSet(c echo.Context) error {
	return gone(c, s.AuthSets.Dismiss(c.Request().Context(), c.Param("id"), c.Param("aid")))
}

type authStatus struct {
	Status authsets.Status `json:"status"`
}

func (s *Server) showAuthStatus(c echo.Context) error {
	status, err := s.AuthSets.Status(c.Request().Context(), c.Param("id"), c.Param("aid"))
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, authStatus{status})
}

func (s *Server) setAuthStatus(c echo.Context) error {
	var in authStatus
	if err := menderBody(c, "status", &in); err != nil {
		return err
	}
	_, err := s.AuthSets.SetStatus(c.Request().Context(), c.Param("id"), c.Param("aid"), in.Status)
	switch {
	case errors.Is(err, authsets.ErrLimit):
		return menderProblem(c, http.StatusUnprocessableEntity, problem{Error: fault.Message(err)})
	case err != nil:
		return err
	}
	return c.NoContent(http.StatusNoContent)
}

func (s *Server) revokeDeviceToken(c echo.Context) error {
	return gone(c, s.AuthSets.Revoke(c.Request().Context(), c.Param("jti")))
}

type authLimit struct {
	Limit *int `json:"limit"`
}

func limitNamed(c echo.Context) error {
	if name := c.Param("name"); name != "max_devices" {
		return fault.New(fault.Invalid, "unsupported limit %s", name)
	}
	return nil
}

func (s *Server) showAuthLimit(c echo.Context) error {
	if err := limitNamed(c); err != nil {
		return err
	}
	n, err := s.AuthSets.Limit(c.Request().Context())
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, authLimit{&n})
}

func (s *Server) setAuthLimit(c echo.Context) error {
	if err := limitNamed(c); err != nil {
		return err
	}
	var in authLimit
	if err := menderBody(c, "limit", &in); err != nil {
		return err
	}
	if in.Limit == nil {
		return fault.New(fault.Invalid, "limit must be a number of devices, or -1 for no limit")
	}
	if err := s.AuthSets.SetLimit(c.Request().Context(), *in.Limit); err != nil {
		return err
	}
	return c.NoContent(http.StatusNoContent)
}
