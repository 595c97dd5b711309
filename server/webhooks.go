package server

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"os"
	"time"

	"github.com/labstack/echo/v4"

	"keystead/devices"
	"keystead/events"
	"keystead/fault"
	"keystead/identity"
	"keystead/outbound"
	"keystead/page"
	"keystead/seal"
	"keystead/store"
)

func (s *Server) webhookRoutes() []route {
	const one = "/api/v1/webhooks/:id"
	return []route{
		{method: http.MethodGet, path: "/api/v1/webhooks", need: identity.OrgAdmin, handle: s.listWebhooks},
		{method: http.MethodPost, path: "/api/v1/webhooks", need: identity.OrgAdmin, handle: s.createWebhook},
		{method: http.MethodGet, path: one, need: identity.OrgAdmin, handle: s.showWebhook},
		{method: http.MethodDelete, path: one, need: identity.OrgAdmin, handle: s.deleteWebhook},
		{method: http.MethodPost, path: one + "/pause", need: identity.OrgAdmin, handle: s.pauseWebhook},
		{method: http.MethodPost, path: one + "/resume", need: identity.OrgAdmin, handle: s.resumeWebhook},
		{method: http.MethodPost, path: one + "/test", need: identity.OrgAdmin, handle: s.testWebhook},
		{method: http.MethodPost, path: one + "/sync", need: identity.OrgAdmin, handle: s.syncWebhook},
		{method: http.MethodGet, path: one + "/deliveries", need: identity.OrgAdmin, handle: s.listDeliveries},
		{method: http.MethodPost, path: one + "/deliveries/:delivery/resend", need: identity.OrgAdmin, handle: s.resendDelivery},
	}
}

// buildEvents opens the outbox, has changes of devices go into it, and has the
// server deliver from it.
func (s *Server) buildEvents(context.Context) error {
	client, err := s.outbound()
	if err != nil {
		return err
	}
	s.Events = &events.Service{
		DB: s.DB, Audit: s.Audit, Box: s.keys.Box("webhook"), Now: s.Now,
		CheckURL: func(url string) error { return outbound.CheckURL(url, false) },
		Standing: s.standing,
		Send: func(ctx context.Context, m events.Message) (events.Answer, error) {
			a, err := client.Do(ctx, outbound.Request{Method: m.Method, URL: m.URL, Header: m.Header, Body: m.Body, Delivery: m.Delivery, Secret: m.Secret})
			return events.Answer{Status: a.Status, Body: a.Body}, err
		},
	}
	s.Devices.Observe(s.emitDevice)
	s.tasks = append(s.tasks, task{"events", s.Events.Run})
	return nil
}

// standing is how a device stands for the registries of others: it may come in if it is
// active and has a credential that is good.
func (s *Server) standing(ctx context.Context, org, deviceID string) (standing events.Standing, err error) {
	err = s.DB.View(ctx, func(tx store.Tx) error {
		d, err := s.Devices.GetIn(ctx, tx, deviceID)
		switch {
		case fault.Is(err, fault.NotFound), err == nil && (d.Org != org || d.State == devices.Decommissioned):
			standing = events.Absent
			return nil
		case err != nil:
			return err
		}
		standing = events.Disabled
		for _, c := range d.Credentials {
			if d.State == devices.Active && (c.State == devices.CredentialActive || c.State == devices.CredentialRetiring) {
				standing = events.Enabled
			}
		}
		return nil
	})
	return standing, err
}

// outbound returns a client for the requests the server itself makes, which trusts
// the machine's roots and those of the configuration.
func (s *Server) outbound() (*outbound.Client, error) {
	roots, err := x509.SystemCertPool()
	if err != nil {
		roots = x509.NewCertPool() // a machine without any: the configured ones alone
	}
	if file := s.Config.Webhook.CAFile; file != "" {
		pem, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("webhook.ca_file: %w", err)
		}
		if !roots.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("webhook.ca_file: %s holds no PEM certificate", file)
		}
	}
	conf := &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
	guard := outbound.Guard{Allow: s.Config.Webhook.Prefixes(), Deny: s.isOwn}
	return outbound.New(outbound.Options{Guard: guard, TLS: conf, Now: s.Now}), nil
}

// isOwn reports whether a is one of this server's own listeners.
func (s *Server) isOwn(a netip.AddrPort) bool {
	for _, text := range s.Addresses() {
		own, err := netip.ParseAddrPort(text)
		if err == nil && own.Port() == a.Port() && (own.Addr().IsUnspecified() || own.Addr().Unmap() == a.Addr()) {
			return true
		}
	}
	return false
}

// emitDevice puts a change of a device into the outbox, as device.<what>.
func (s *Server) emitDevice(ctx context.Context, tx store.Tx, c devices.Change) error {
	if wanted, err := s.Events.Wanted(tx, c.Device.Org); !wanted || err != nil {
		return err
	}
	data, err := json.Marshal(deviceEvent{Device: viewDevice(c.Device), Credential: c.Credential})
	if err != nil {
		return fmt.Errorf("server: %w", err)
	}
	return s.Events.Emit(ctx, tx, events.Event{Org: c.Device.Org, Type: "device." + string(c.What), Subj: c.Device.ID, Data: data})
}

// deviceEvent is the data of an event of a device.
type deviceEvent struct {
	Device     deviceView          `json:"device"`
	Credential *devices.Credential `json:"credential,omitempty"`
}

type webhookView struct {
	ID        string        `json:"id"`
	URL       string        `json:"url"`
	Format    events.Format `json:"format"`
	Types     []string      `json:"types"`
	Paused    bool          `json:"paused"`
	Policy    string        `json:"policy,omitempty"`
	HubAuth   string        `json:"authentication,omitempty"`
	CreatedAt time.Time     `json:"created_at"`
	Secret    string        `json:"secret,omitempty"` // in the answer to its creation and in no other
}

func viewWebhook(w events.Webhook) webhookView {
	return webhookView{ID: w.ID, URL: w.URL, Format: w.Format, Types: orEmpty(w.Types), Paused: w.Paused, Policy: w.Policy, HubAuth: w.HubAuth, CreatedAt: w.CreatedAt}
}

type newWebhook struct {
	URL    string        `json:"url"`
	Format events.Format `json:"format"`
	Types  []string      `json:"types"`
	Secret string        `json:"secret"` // hex

	// Of a hub, in place of the others.
	Connection string `json:"connection_string"`
	HubAuth    string `json:"authentication"`
}

func (s *Server) createWebhook(c echo.Context) error {
	var in newWebhook
	if err := bind(c, &in); err != nil {
		return err
	}
	secret, err := hex.DecodeString(in.Secret)
	if err != nil {
		return fault.InvalidFields(fault.Field{Name: "secret", Message: "must be written in hexadecimal"})
	}
	n := events.New{URL: in.URL, Format: in.Format, Types: in.Types, HubAuth: in.HubAuth}
	if in.Secret != "" {
		n.Secret = secret
	}
	if in.Connection != "" {
		n.Connection = seal.Secret(in.Connection)
	}
	w, made, err := s.Events.Create(c.Request().Context(), n)
	if err != nil {
		return err
	}
	v := viewWebhook(w)
	v.Secret = hex.EncodeToString(made)
	c.Response().Header().Set("Location", "/api/v1/webhooks/"+w.ID)
	return c.JSON(http.StatusCreated, v)
}

func (s *Server) listWebhooks(c echo.Context) error {
	r, err := pageRequest(c)
	if err != nil {
		return err
	}
	p, err := s.Events.List(c.Request().Context(), r)
	if err != nil {
		return err
	}
	return writePage(c, p, viewWebhook)
}

func (s *Server) showWebhook(c echo.Context) error {
	w, err := s.Events.Get(c.Request().Context(), c.Param("id"))
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, viewWebhook(w))
}

func (s *Server) deleteWebhook(c echo.Context) error {
	if err := s.Events.Delete(c.Request().Context(), c.Param("id")); err != nil {
		return err
	}
	return c.NoContent(http.StatusNoContent)
}

func (s *Server) pauseWebhook(c echo.Context) error { return s.setPaused(c, true) }

func (s *Server) resumeWebhook(c echo.Context) error { return s.setPaused(c, false) }

func (s *Server) setPaused(c echo.Context, paused bool) error {
	w, err := s.Events.SetPaused(c.Request().Context(), c.Param("id"), paused)
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, viewWebhook(w))
}

type receiverTest struct {
	Device string `json:"device"`
}

type receiverTestView struct {
	OK     bool   `json:"ok"`
	Status int    `json:"status"`
	Error  string `json:"error"`
	Action string `json:"action,omitempty"`
}

// testWebhook tries a receiver once. That it fails is no error of the request.
func (s *Server) testWebhook(c echo.Context) error {
	var in receiverTest
	if err := bind(c, &in); err != nil {
		return err
	}
	r, err := s.Events.Test(c.Request().Context(), c.Param("id"), in.Device)
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, receiverTestView{r.Error == "", r.Status, r.Error, r.Action})
}

type webhookSync struct {
	Cursor page.Cursor `json:"cursor"`
}

type webhookSyncView struct {
	Queued int         `json:"queued"`
	Next   page.Cursor `json:"next,omitempty"`
}

// syncWebhook queues a page of the organisation's devices for a hub.
func (s *Server) syncWebhook(c echo.Context) error {
	var in webhookSync
	if err := bind(c, &in); err != nil {
		return err
	}
	ctx := c.Request().Context()
	p, err := s.Devices.List(ctx, devices.Filter{}, page.Request{Limit: events.MaxSync, After: in.Cursor})
	if err != nil {
		return err
	}
	ids := make([]string, len(p.Items))
	for i, d := range p.Items {
		ids[i] = d.ID
	}
	if err := s.Events.Sync(ctx, c.Param("id"), ids); err != nil {
		return err
	}
	return c.JSON(http.StatusOK, webhookSyncView{len(ids), p.Next})
}

type deliveryView struct {
	ID         string     `json:"id"`
	Event      string     `json:"event"`
	Type       string     `json:"type"`
	Subject    string     `json:"subject"`
	Time       time.Time  `json:"time"`
	Tries      int        `json:"tries"`
	Failed     bool       `json:"failed"`
	NextAt     *time.Time `json:"next_at"`
	LastStatus int        `json:"last_status"`
	LastError  string     `json:"last_error"`
}

func viewDelivery(d events.Delivery) deliveryView {
	v := deliveryView{
		ID: d.ID, Event: d.Event.ID, Type: d.Event.Type, Subject: d.Event.Subj, Time: d.Event.Time,
		Tries: d.Tries, Failed: d.Failed, LastStatus: d.LastCode, LastError: d.LastText,
	}
	if !d.NextAt.IsZero() {
		v.NextAt = &d.NextAt
	}
	return v
}

// listDeliveries answers with what waits for a webhook, or with ?failed=true
// with what was put aside.
func (s *Server) listDeliveries(c echo.Context) error {
	r, err := pageRequest(c)
	if err != nil {
		return err
	}
	p, err := s.Events.Deliveries(c.Request().Context(), c.Param("id"), c.QueryParam("failed") == "true", r)
	if err != nil {
		return err
	}
	return writePage(c, p, viewDelivery)
}

func (s *Server) resendDelivery(c echo.Context) error {
	d, err := s.Events.Resend(c.Request().Context(), c.Param("id"), c.Param("delivery"))
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, viewDelivery(d))
}
