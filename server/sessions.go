package server

import (
	"net/http"
	"time"

	"github.com/labstack/echo/v4"

	"keystead/audit"
	"keystead/coapgw"
	"keystead/identity"
	"keystead/store"
)

func (s *Server) sessionRoutes() []route {
	return []route{
		{method: http.MethodGet, path: "/api/v1/sessions", need: identity.SessionsRead, handle: s.listSessions},
		{method: http.MethodDelete, path: "/api/v1/sessions/:id", need: identity.SessionsWrite, handle: s.endSession},
	}
}

type sessionView struct {
	ID           string             `json:"id"`
	Transport    identity.Transport `json:"transport"`
	Remote       string             `json:"remote"`
	ConnectionID string             `json:"connection_id,omitempty"`
	Device       string             `json:"device,omitempty"`
	Name         string             `json:"name,omitempty"`
	Credential   *CredentialView    `json:"credential,omitempty"`
	SignedIn     bool               `json:"signed_in"`
	Since        time.Time          `json:"since"`
	LastSeen     time.Time          `json:"last_seen"`
	Received     uint64             `json:"bytes_received"`
	Sent         uint64             `json:"bytes_sent"`
}

func viewSession(v coapgw.Session) sessionView {
	out := sessionView{
		ID: v.ID, Transport: v.Transport, Remote: v.Remote.String(), ConnectionID: v.ConnectionID, SignedIn: v.SignedIn,
		Since: v.Since, LastSeen: v.Seen, Received: v.Received, Sent: v.Sent,
	}
	if v.Known {
		who := viewWhoami(v.Actor)
		out.Device, out.Name, out.Credential = who.Device, who.Name, &who.Credential
	}
	return out
}

// listSessions answers with the CoAP sessions that are open; ?device= narrows it.
func (s *Server) listSessions(c echo.Context) error {
	r, err := pageRequest(c)
	if err != nil {
		return err
	}
	p, err := s.CoAP.List(c.Request().Context(), c.QueryParam("device"), r)
	if err != nil {
		return err
	}
	return writePage(c, p, viewSession)
}

// endSession closes one session. The device may come back with the same
// credential; to keep it out, revoke that or suspend the device.
func (s *Server) endSession(c echo.Context) error {
	ctx := c.Request().Context()
	if err := s.CoAP.End(ctx, c.Param("id")); err != nil {
		return err
	}
	err := s.DB.Update(ctx, func(tx store.Tx) error {
		return s.Audit.Append(ctx, tx, audit.Entry{Action: "session.end", Target: c.Param("id")})
	})
	if err != nil {
		return err
	}
	return c.NoContent(http.StatusNoContent)
}
