package server

import (
	"encoding/json"
	"net/http"
	"time"

	"github.com/labstack/echo/v4"

	"keystead/identity"
)

func (s *Server) whoamiRoutes() []route {
	return []route{
		{method: http.MethodGet, path: "/api/v1/whoami", need: identity.Proven, handle: s.whoami},
	}
}

// WhoamiView is who the server takes the caller for, the same on every transport.
type WhoamiView struct {
	Device       string         `json:"device,omitempty"`
	User         string         `json:"user,omitempty"`
	Organisation string         `json:"organisation"`
	Name         string         `json:"name"`
	Role         string         `json:"role,omitempty"`
	Permissions  []string       `json:"permissions,omitempty"` // of a user, with this credential
	Credential   CredentialView `json:"credential"`
}

// CredentialView names a credential, without its secret.
type CredentialView struct {
	Kind      identity.CredentialKind `json:"kind"`
	ID        string                  `json:"id"`
	ExpiresAt *time.Time              `json:"expires_at"`
}

func (s *Server) whoami(c echo.Context) error {
	b, err := json.Marshal(viewWhoami(identity.FromContext(c.Request().Context())))
	if err != nil {
		return err
	}
	return c.JSONBlob(http.StatusOK, append(b, '\n'))
}

func viewWhoami(a identity.Actor) WhoamiView {
	v := WhoamiView{Organisation: a.Org, Name: a.Name, Credential: CredentialView{Kind: a.Credential.Kind, ID: a.Credential.ID}}
	if end := a.Credential.ExpiresAt; !end.IsZero() {
		v.Credential.ExpiresAt = &end
	}
	if a.Kind == identity.Device {
		v.Device = a.ID
	} else {
		v.User, v.Role = a.ID, string(a.Role)
		for _, need := range identity.Permissions() {
			if a.May(need) {
				v.Permissions = append(v.Permissions, string(need))
			}
		}
	}
	return v
}
