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
		{method: http.MethodGet, path: one + "/deliveries", need: identity.OrgAdmin, handle: s.listDeliveries},
		{method: http.MethodPost, path: one + "/deliveries/:delivery/resend", need: identity.OrgAdmin, handle: s.resendDelivery},
	}
}

// buildEvents opens the outbox, has changes of devices go into it, and has the
// server deliver from it.
func (s *Server) buildEvents(context.Context) error {
	client, err := s.outbound(nil)
	if err != nil {
		return err
	}
	s.Events = &events.Service{
		DB: s.DB, Audit: s.Audit, Box: s.keys.Box("webhook"), Now: s.Now,
		CheckURL: func(url string) error { return outbound.CheckURL(url, false) },
		Send: func(ctx context.Context, m events.Message) (int, error) {
			a, err := client.Do(ctx, outbound.Request{Method: http.MethodPost, URL: m.URL, Header: m.Header, Body: m.Body, Delivery: m.Delivery, Secret: m.Secret})
			return a.Status, err
		},
	}
	s.Devices.Observe(s.emitDevice)
	s.tasks = append(s.tasks, task{"events", s.Events.Run})
	return nil
}

// outbound returns a client for the requests the server itself makes, with conf
// as its TLS settings, nil for those of the configuration.
func (s *Server) outbound(conf *tls.Config) (*outbound.Client, error) {
	if conf == nil {
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
		conf = &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
	}
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
	CreatedAt time.Time     `json:"created_at"`
	Secret    string        `json:"secret,omitempty"` // in the answer to its creation and in no other
}

func viewWebhook(w events.Webhook) webhookView {
	return webhookView{ID: w.ID, URL: w.URL, Format: w.Format, Types: orEmpty(w.Types), Paused: w.Paused, CreatedAt: w.CreatedAt}
}

type newWebhook struct {
	URL    string        `json:"url"`
	Format events.Format `json:"format"`
	Types  []string      `json:"types"`
	Secret string        `json:"secret"` // hex
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
	w, made, err := s.Events.Create(c.Request().Context(), events.New{URL: in.URL, Format: in.Format, Types: in.Types, Secret: secret})
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
