package server

import (
	"net/http"
	"strings"
	"time"

	"github.com/labstack/echo/v4"

	"keystead/devices"
	"keystead/fault"
	"keystead/identity"
	"keystead/lwm2m"
	"keystead/pki"
	"keystead/store"
)

func (s *Server) deviceRoutes() []route {
	const one = "/api/v1/devices/:id"
	return []route{
		{method: http.MethodGet, path: "/api/v1/devices", need: identity.DevicesRead, handle: s.listDevices},
		{method: http.MethodPost, path: "/api/v1/devices", need: identity.DevicesWrite, handle: s.createDevice},
		{method: http.MethodGet, path: "/api/v1/devices/counts", need: identity.DevicesRead, handle: s.countDevices},
		{method: http.MethodGet, path: one, need: identity.DevicesRead, handle: s.showDevice},
		{method: http.MethodPatch, path: one, need: identity.DevicesWrite, handle: s.editDevice},
		{method: http.MethodDelete, path: one, need: identity.DevicesEnd, handle: s.deleteDevice},
		{method: http.MethodPost, path: one + "/suspend", need: identity.DevicesWrite, handle: s.suspendDevice},
		{method: http.MethodPost, path: one + "/resume", need: identity.DevicesWrite, handle: s.resumeDevice},
		{method: http.MethodDelete, path: one + "/credentials/:kind/:credential", need: identity.CredentialsWrite, handle: s.revokeCredential},
	}
}

type deviceView struct {
	ID           string                 `json:"id"`
	Organisation string                 `json:"organisation"`
	Name         string                 `json:"name"`
	State        devices.State          `json:"state"`
	Aliases      []devices.Alias        `json:"aliases"`
	Labels       map[string]string      `json:"labels"`
	Metadata     map[string]string      `json:"metadata"`
	Comment      string                 `json:"comment"`
	Profile      string                 `json:"profile,omitempty"`
	Renewal      string                 `json:"renewal,omitempty"` // of the certificate it has for longest
	Credentials  []deviceCredentialView `json:"credentials"`
	Registration *lwm2m.Registration    `json:"registration,omitempty"` // over LwM2M, of one device that is shown
	CreatedAt    time.Time              `json:"created_at"`
	UpdatedAt    time.Time              `json:"updated_at"`
}

type deviceCredentialView struct {
	CredentialView
	State     devices.CredentialState `json:"state"`
	Renewal   string                  `json:"renewal,omitempty"` // how near its end a certificate is
	CreatedAt time.Time               `json:"created_at"`
}

func viewDevice(d devices.Device) deviceView {
	v := deviceView{
		ID: d.ID, Organisation: d.Org, Name: d.Name, State: d.State, Comment: d.Comment, Profile: d.Profile, Renewal: d.Renewal(),
		Aliases: orEmpty(d.Aliases), Labels: orEmptyMap(d.Labels), Metadata: orEmptyMap(d.Metadata),
		Credentials: make([]deviceCredentialView, len(d.Credentials)), CreatedAt: d.CreatedAt, UpdatedAt: d.UpdatedAt,
	}
	for i, c := range d.Credentials {
		v.Credentials[i] = deviceCredentialView{CredentialView: CredentialView{Kind: c.Kind, ID: c.ID}, State: c.State, Renewal: c.Renewal, CreatedAt: c.CreatedAt}
		if !c.ExpiresAt.IsZero() {
			v.Credentials[i].ExpiresAt = &c.ExpiresAt
		}
	}
	return v
}

// listDevices answers with a page; ?state=, ?name=, ?alias=, ?renewal= and ?label=key=value narrow it.
func (s *Server) listDevices(c echo.Context) error {
	r, err := pageRequest(c)
	if err != nil {
		return err
	}
	f := devices.Filter{State: devices.State(c.QueryParam("state")), Name: c.QueryParam("name"), Alias: c.QueryParam("alias"), Renewal: c.QueryParam("renewal")}
	if f.Renewal != "" && !pki.Renewal(f.Renewal).Valid() {
		return errRenewal
	}
	switch f.State {
	case "", devices.Active, devices.Suspended, devices.Decommissioned:
	default:
		return fault.New(fault.Invalid, "state must be active, suspended or decommissioned")
	}
	if label := c.QueryParam("label"); label != "" {
		key, value, err := parseLabel(label)
		if err != nil {
			return err
		}
		f.Label = [2]string{key, value}
	}
	p, err := s.Devices.List(c.Request().Context(), f, r)
	if err != nil {
		return err
	}
	return writePage(c, p, viewDevice)
}

// parseLabel reads a label as queries have it.
func parseLabel(text string) (key, value string, err error) {
	key, value, ok := strings.Cut(text, "=")
	if !ok || key == "" {
		return "", "", fault.New(fault.Invalid, "label must be written key=value")
	}
	return key, value, nil
}

type newDevice struct {
	Name     string            `json:"name"`
	Aliases  []devices.Alias   `json:"aliases"`
	Labels   map[string]string `json:"labels"`
	Metadata map[string]string `json:"metadata"`
	Comment  string            `json:"comment"`
}

func (s *Server) createDevice(c echo.Context) error {
	var in newDevice
	if err := bind(c, &in); err != nil {
		return err
	}
	d, err := s.Devices.Create(c.Request().Context(), devices.New{
		Name: in.Name, Aliases: in.Aliases, Labels: in.Labels, Metadata: in.Metadata, Comment: in.Comment,
	})
	if err != nil {
		return err
	}
	c.Response().Header().Set("Location", "/api/v1/devices/"+d.ID)
	return c.JSON(http.StatusCreated, viewDevice(d))
}

func (s *Server) countDevices(c echo.Context) error {
	counts, err := s.Devices.Counts(c.Request().Context())
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, counts)
}

// deviceID is the id of the device the path names by id or alias.
func (s *Server) deviceID(c echo.Context) (string, error) {
	d, err := s.Devices.Find(c.Request().Context(), c.Param("id"))
	return d.ID, err
}

func (s *Server) showDevice(c echo.Context) error {
	ctx := c.Request().Context()
	var v deviceView
	err := s.DB.View(ctx, func(tx store.Tx) error {
		d, err := s.Devices.FindIn(ctx, tx, identity.OrgOf(ctx), c.Param("id"))
		if err != nil {
			return err
		}
		v = viewDevice(d)
		r, err := s.LwM2M.RegistrationIn(tx, d)
		switch {
		case err == nil:
			v.Registration = &r
		case !fault.Is(err, fault.NotFound):
			return err
		}
		return nil
	})
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, v)
}

type deviceEdit struct {
	Name     *string            `json:"name"`
	Comment  *string            `json:"comment"`
	Labels   *map[string]string `json:"labels"`
	Metadata *map[string]string `json:"metadata"`
	Aliases  *[]devices.Alias   `json:"aliases"`
}

func (s *Server) editDevice(c echo.Context) error {
	var in deviceEdit
	if err := bind(c, &in); err != nil {
		return err
	}
	deviceID, err := s.deviceID(c)
	if err != nil {
		return err
	}
	d, err := s.Devices.Update(c.Request().Context(), deviceID, devices.Edit(in))
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, viewDevice(d))
}

func (s *Server) deleteDevice(c echo.Context) error {
	deviceID, err := s.deviceID(c)
	if err != nil {
		return err
	}
	if _, err := s.Devices.Decommission(c.Request().Context(), deviceID); err != nil {
		return err
	}
	return c.NoContent(http.StatusNoContent)
}

func (s *Server) suspendDevice(c echo.Context) error {
	deviceID, err := s.deviceID(c)
	if err != nil {
		return err
	}
	d, err := s.Devices.Suspend(c.Request().Context(), deviceID)
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, viewDevice(d))
}

func (s *Server) resumeDevice(c echo.Context) error {
	deviceID, err := s.deviceID(c)
	if err != nil {
		return err
	}
	d, err := s.Devices.Resume(c.Request().Context(), deviceID)
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, viewDevice(d))
}

func (s *Server) revokeCredential(c echo.Context) error {
	deviceID, err := s.deviceID(c)
	if err != nil {
		return err
	}
	kind := identity.CredentialKind(c.Param("kind"))
	if err := s.Devices.RevokeCredential(c.Request().Context(), deviceID, kind, c.Param("credential")); err != nil {
		return err
	}
	return c.NoContent(http.StatusNoContent)
}
