package server

import (
	"bytes"
	"context"
	"encoding/json"
	"io"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/labstack/echo/v4"

	"keystead/devices"
	"keystead/fault"
	"keystead/identity"
	"keystead/seal"
	"keystead/store"
	"keystead/thingkeys"
)

// buildThings opens the keys of things.
func (s *Server) buildThings(ctx context.Context) error {
	index, err := secretNamed(ctx, s.DB, s.box, thingSecret)
	if err != nil {
		return err
	}
	s.Things = &thingkeys.Service{DB: s.DB, Devices: s.Devices, Audit: s.Audit, Box: s.keys.Box("thing key"), Index: index, Now: s.Now}
	s.Things.Start()
	s.Devices.Observe(s.limitDevices)
	s.Accounts.InUse = func(tx store.Tx, org string) (string, error) {
		n, err := s.Devices.CountIn(tx, org)
		if err != nil || n == 0 {
			return "", err
		}
		return strconv.Itoa(n) + " devices", nil
	}
	return nil
}

// limitDevices refuses a device more than its organisation may have.
func (s *Server) limitDevices(_ context.Context, tx store.Tx, c devices.Change) error {
	if c.What != devices.Created {
		return nil
	}
	o, err := s.Accounts.OrganisationIn(tx, c.Device.Org)
	if fault.Is(err, fault.NotFound) || err == nil && o.Limits.Devices == 0 {
		return nil
	}
	if err != nil {
		return err
	}
	n, err := s.Devices.CountIn(tx, o.ID)
	if err == nil && n > o.Limits.Devices {
		err = fault.New(fault.TooLarge, "the organisation has the %d devices it may have", o.Limits.Devices)
	}
	return err
}

func (s *Server) thingRoutes() []route {
	const one = "/things/:id"
	return []route{
		{method: http.MethodPost, path: "/things", need: identity.CredentialsWrite, handle: s.createThings},
		{method: http.MethodGet, path: "/things", need: identity.DevicesRead, handle: s.listThings},
		{method: http.MethodGet, path: "/orgs/:org/things", need: identity.DevicesRead, handle: s.listThings, org: "org"},
		{method: http.MethodPost, path: "/things/search", need: identity.DevicesRead, handle: s.searchThings, body: smallBody},
		{method: http.MethodPut, path: "/things", need: identity.DevicesWrite, handle: s.editThings},
		{method: http.MethodPatch, path: "/things", need: identity.DevicesEnd, handle: s.deleteThings},
		{method: http.MethodGet, path: one, need: identity.DevicesRead, handle: s.showThing},
		{method: http.MethodPut, path: one, need: identity.CredentialsWrite, handle: s.editThing, body: smallBody},
		{method: http.MethodPatch, path: one, need: identity.DevicesWrite, handle: s.groupThing, body: smallBody},
		{method: http.MethodDelete, path: one, need: identity.DevicesEnd, handle: s.deleteThing},
		{method: http.MethodGet, path: one + "/key", need: identity.CredentialsReveal, handle: s.revealThing},
		{method: http.MethodPost, path: one + "/key/rotate", need: identity.CredentialsWrite, handle: s.rotateThing, body: smallBody},
		{method: http.MethodPatch, path: one + "/external-key", need: identity.CredentialsWrite, handle: s.setExternalKey, body: smallBody},
		{method: http.MethodPut, path: one + "/external-key", need: identity.CredentialsWrite, handle: s.setExternalKey, body: smallBody},
		{method: http.MethodDelete, path: one + "/external-key", need: identity.CredentialsWrite, handle: s.removeExternalKey},
		{method: http.MethodPost, path: "/identify", need: identity.Public, handle: s.identify, body: smallBody},
		{method: http.MethodGet, path: "/metadata", need: identity.DeviceOnly, handle: s.ownMetadata},
	}
}

type thingView struct {
	ID          string          `json:"id"`
	OrgID       string          `json:"org_id"`
	GroupID     string          `json:"group_id,omitempty"`
	Name        string          `json:"name"`
	Type        thingkeys.Type  `json:"type"`
	Key         string          `json:"key,omitempty"`
	ExternalKey string          `json:"external_key,omitempty"`
	Metadata    json.RawMessage `json:"metadata,omitempty"`
	CreatedAt   time.Time       `json:"created_at"`
	UpdatedAt   time.Time       `json:"updated_at"`
}

func viewThing(t thingkeys.Thing) thingView {
	return thingView{
		ID: t.ID, OrgID: t.Org, GroupID: t.Group, Name: t.Name, Type: t.Type, Metadata: t.Metadata,
		CreatedAt: t.CreatedAt, UpdatedAt: t.UpdatedAt,
	}
}

func viewCreated(c thingkeys.Created) thingView {
	v := viewThing(c.Thing)
	v.Key, v.ExternalKey = string(c.Key), string(c.External)
	return v
}

type newThingView struct {
	ID          string          `json:"id"`
	Name        string          `json:"name"`
	Type        thingkeys.Type  `json:"type"`
	GroupID     string          `json:"group_id"`
	ProfileID   string          `json:"profile_id"` // taken and not used: it says how messages are handled
	Key         string          `json:"key"`
	ExternalKey string          `json:"external_key"`
	Metadata    json.RawMessage `json:"metadata"`
}

func (in newThingView) thing() thingkeys.New {
	n := thingkeys.New{ID: in.ID, Name: in.Name, Type: in.Type, Group: in.GroupID, Metadata: in.Metadata}
	if in.Key != "" {
		n.Key = seal.Secret(in.Key)
	}
	if in.ExternalKey != "" {
		n.External = seal.Secret(in.ExternalKey)
	}
	return n
}

// createThings takes one thing or an array of them.
func (s *Server) createThings(c echo.Context) error {
	in, err := bindOneOrMany[newThingView](c)
	if err != nil {
		return err
	}
	list, err := s.Things.Create(c.Request().Context(), views(in, newThingView.thing))
	if err != nil {
		return err
	}
	noStore(c)
	return c.JSON(http.StatusCreated, map[string][]thingView{"things": views(list, viewCreated)})
}

// bindOneOrMany is bind for a body that is one value or an array of them.
func bindOneOrMany[T any](c echo.Context) ([]T, error) {
	body, err := io.ReadAll(c.Request().Body)
	if err != nil {
		return nil, badJSON(err)
	}
	c.Request().Body = io.NopCloser(bytes.NewReader(body))
	if bytes.HasPrefix(bytes.TrimSpace(body), []byte("[")) {
		var many []T
		err := bind(c, &many)
		return many, err
	}
	var one T
	err = bind(c, &one)
	return []T{one}, err
}

func (s *Server) listThings(c echo.Context) error {
	l, err := listRequest(c)
	if err != nil {
		return err
	}
	f := thingkeys.Filter{Name: c.QueryParam("name"), Type: thingkeys.Type(c.QueryParam("type"))}
	if text := c.QueryParam("metadata"); text != "" {
		if f.Metadata, err = metadataFilter(json.RawMessage(text)); err != nil {
			return err
		}
	}
	return s.writeThings(c, f, l.Order, thingkeys.Window{Offset: l.Offset, Limit: l.Limit, Newest: !l.Ascending})
}

func metadataFilter(raw json.RawMessage) (map[string]string, error) {
	var any map[string]any
	if err := json.Unmarshal(raw, &any); err != nil || len(any) > 16 {
		return nil, fault.New(fault.Invalid, "invalid query parameters: metadata is a JSON object of at most 16 members")
	}
	f := map[string]string{}
	for name, v := range any {
		b, err := json.Marshal(v)
		if err != nil {
			return nil, fault.Wrap(fault.Invalid, err, "metadata is a JSON object")
		}
		f[name] = string(b)
		if text, ok := v.(string); ok {
			f[name] = text
		}
	}
	return f, nil
}

func (s *Server) searchThings(c echo.Context) error {
	var in struct {
		listBody
		Name     string          `json:"name"`
		Type     thingkeys.Type  `json:"type"`
		Metadata json.RawMessage `json:"metadata"`
	}
	if err := bindSearch(c, &in); err != nil {
		return err
	}
	l, err := in.request()
	if err != nil {
		return err
	}
	f := thingkeys.Filter{Name: in.Name, Type: in.Type}
	if in.Metadata != nil {
		if f.Metadata, err = metadataFilter(in.Metadata); err != nil {
			return err
		}
	}
	return s.writeThings(c, f, l.Order, thingkeys.Window{Offset: l.Offset, Limit: l.Limit, Newest: !l.Ascending})
}

func (s *Server) writeThings(c echo.Context, f thingkeys.Filter, order string, w thingkeys.Window) error {
	if order != "id" && order != "created_at" {
		return fault.New(fault.Invalid, "invalid list order provided: id or created_at")
	}
	if f.Type != "" && !slices.Contains(thingkeys.Types, f.Type) {
		return fault.New(fault.Invalid, "missing or invalid thing type")
	}
	list, total, err := s.Things.List(c.Request().Context(), f, w)
	if err != nil {
		return err
	}
	dir := "asc"
	if w.Newest {
		dir = "desc"
	}
	return c.JSON(http.StatusOK, map[string]any{
		"things": views(list, viewThing), "total": total, "offset": w.Offset, "limit": w.Limit, "order": order, "dir": dir,
	})
}

func (s *Server) showThing(c echo.Context) error {
	t, err := s.Things.Get(c.Request().Context(), c.Param("id"))
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, viewThing(t))
}

// editThing replaces what is said of a thing; a key that differs rotates it.
func (s *Server) editThing(c echo.Context) error {
	var in newThingView
	if err := bind(c, &in); err != nil {
		return err
	}
	e := thingkeys.Edit{Name: &in.Name, Type: &in.Type, Metadata: &in.Metadata}
	if in.Key != "" {
		e.Key = seal.Secret(in.Key)
	}
	t, err := s.Things.Update(c.Request().Context(), c.Param("id"), e)
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, viewThing(t))
}

func (s *Server) groupThing(c echo.Context) error {
	var in struct {
		GroupID   *string `json:"group_id"`
		ProfileID string  `json:"profile_id"`
	}
	if err := bind(c, &in); err != nil {
		return err
	}
	t, err := s.Things.Update(c.Request().Context(), c.Param("id"), thingkeys.Edit{Group: in.GroupID})
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, viewThing(t))
}

// editThings merges metadata into several things.
func (s *Server) editThings(c echo.Context) error {
	var in []struct {
		ID       string          `json:"id"`
		Metadata json.RawMessage `json:"metadata"`
	}
	if err := bind(c, &in); err != nil {
		return err
	}
	edits := map[string]thingkeys.Edit{}
	for _, t := range in {
		if _, twice := edits[t.ID]; twice {
			return fault.New(fault.Invalid, "malformed entity specification: a thing is named twice")
		}
		edits[t.ID] = thingkeys.Edit{Merge: t.Metadata}
	}
	if err := s.Things.UpdateAll(c.Request().Context(), edits); err != nil {
		return err
	}
	return empty(c, http.StatusOK)
}

func (s *Server) deleteThing(c echo.Context) error {
	return done(c, s.Things.Delete(c.Request().Context(), c.Param("id")))
}

func (s *Server) deleteThings(c echo.Context) error {
	var in struct {
		Things []string `json:"thing_ids"`
	}
	if err := bind(c, &in); err != nil {
		return err
	}
	return done(c, s.Things.Delete(c.Request().Context(), in.Things...))
}

func (s *Server) revealThing(c echo.Context) error {
	t, err := s.Things.Reveal(c.Request().Context(), c.Param("id"))
	if err != nil {
		return err
	}
	noStore(c)
	return c.JSON(http.StatusOK, viewCreated(t))
}

func (s *Server) rotateThing(c echo.Context) error {
	var in struct {
		Grace int64 `json:"grace_seconds"`
	}
	if err := bindSearch(c, &in); err != nil {
		return err
	}
	grace := min(max(in.Grace, -1), 1<<31) // so that it is no other number of nanoseconds
	text, err := s.Things.Rotate(c.Request().Context(), c.Param("id"), time.Duration(grace)*time.Second)
	if err != nil {
		return err
	}
	v := struct {
		ID                string     `json:"id"`
		Key               string     `json:"key"`
		PreviousExpiresAt *time.Time `json:"previous_key_expires_at,omitempty"`
	}{ID: c.Param("id"), Key: string(text)}
	if grace > 0 {
		v.PreviousExpiresAt = timeOrNil(s.Now().UTC().Add(time.Duration(grace) * time.Second))
	}
	noStore(c)
	return c.JSON(http.StatusOK, v)
}

func (s *Server) setExternalKey(c echo.Context) error {
	var in struct {
		Key string `json:"key"`
	}
	if err := bind(c, &in); err != nil {
		return err
	}
	if err := s.Things.SetExternal(c.Request().Context(), c.Param("id"), seal.Secret(in.Key)); err != nil {
		return err
	}
	return empty(c, http.StatusCreated)
}

func (s *Server) removeExternalKey(c echo.Context) error {
	return done(c, s.Things.RemoveExternal(c.Request().Context(), c.Param("id")))
}

func (s *Server) identify(c echo.Context) error {
	var in struct {
		Key  string         `json:"key"`
		Type thingkeys.Kind `json:"type"`
	}
	if err := bind(c, &in); err != nil {
		return err
	}
	if in.Type != thingkeys.Internal && in.Type != thingkeys.External {
		return fault.New(fault.Unauthenticated, "invalid thing key type")
	}
	if in.Key == "" {
		return fault.New(fault.Unauthenticated, "missing or invalid bearer entity key")
	}
	thing, err := s.Things.Identify(c.Request().Context(), in.Type, in.Key, s.ClientAddr(c.Request()))
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, map[string]string{"id": thing})
}

func (s *Server) ownMetadata(c echo.Context) error {
	t, err := s.Things.Self(c.Request().Context())
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, struct {
		Metadata json.RawMessage `json:"metadata,omitempty"`
	}{t.Metadata})
}
