package server

import (
	"context"
	"net/http"
	"time"

	"github.com/labstack/echo/v4"

	"keystead/audit"
	"keystead/identity"
	"keystead/pki"
	"keystead/store"
)

// resealers seal again what each room keeps sealed, a line per room.
func (s *Server) resealers() map[string]func(context.Context) (int, error) {
	all := map[string]func(context.Context) (int, error){
		"server_secret": s.resealSecrets,
		"psk":           s.PSK.Reseal,
		"thing_key":     s.Things.Reseal,
		"webhook":       s.Events.Reseal,
		"signing_key":   s.Tokens.Reseal,
		"second_factor": s.Accounts.Reseal,
		"dms":           s.EST.Reseal,
		"lwm2m_server":  s.LwM2M.Reseal,
	}
	if s.Mail != nil {
		all["mail"] = s.Mail.Reseal
	}
	if kept, ok := s.PKI.Keys.(*pki.SealedKeys); ok { // those of a token are not ours to seal
		all["ca_key"] = kept.Reseal
	}
	return all
}

func (s *Server) resealSecrets(ctx context.Context) (int, error) {
	return serverSecrets.Revise(ctx, s.DB, func(name string, v *serverSecret) (bool, error) {
		sealed, changed, err := s.box.Reseal(place(name), v.Sealed)
		if changed {
			v.Sealed = sealed
		}
		return changed, err
	})
}

func (s *Server) dataKeyRoutes() []route {
	return []route{
		{method: http.MethodGet, path: "/api/v1/data-keys", need: identity.Platform, handle: s.listDataKeys},
		{method: http.MethodPost, path: "/api/v1/data-keys/rotate", need: identity.Platform, handle: s.rotateDataKey},
		{method: http.MethodPost, path: "/api/v1/data-keys/rewrap", need: identity.Platform, handle: s.rewrapDataKeys, stream: true},
	}
}

type dataKeyView struct {
	ID        uint32    `json:"id"`
	CreatedAt time.Time `json:"created_at"`
	Current   bool      `json:"current"`
}

func (s *Server) listDataKeys(c echo.Context) error {
	views := []dataKeyView{}
	all := s.keys.Keys()
	for i, k := range all {
		views = append(views, dataKeyView{k.ID, k.Created, i == len(all)-1})
	}
	return c.JSON(http.StatusOK, map[string]any{"items": views, "master_key": s.keys.Master()})
}

func (s *Server) rotateDataKey(c echo.Context) error {
	var in struct{}
	if err := bind(c, &in); err != nil {
		return err
	}
	if err := s.rotateKeyring(c.Request().Context(), s.Now()); err != nil {
		return err
	}
	return s.listDataKeys(c)
}

// rotateKeyring adds a data key, which seals from then on.
func (s *Server) rotateKeyring(ctx context.Context, now time.Time) error {
	return s.keys.Rotate(now, func(record []byte) error {
		return s.DB.Update(ctx, func(tx store.Tx) error {
			if err := keyrings.Set(tx, theKeyring, keyring{Record: record}); err != nil {
				return err
			}
			return s.Audit.Append(ctx, tx, audit.Entry{Action: "data_key.rotate"})
		})
	})
}

// rotateWhenDue is done once an hour: a data key is good for a year.
func (s *Server) rotateWhenDue(ctx context.Context, now time.Time) error {
	if !s.keys.Due(now) {
		return nil
	}
	return s.rotateKeyring(ctx, now)
}

// rewrapDataKeys seals everything again under the newest key. The old keys stay:
// whoever sealed with one a moment ago may not have written it yet.
func (s *Server) rewrapDataKeys(c echo.Context) error {
	var in struct{}
	if err := bind(c, &in); err != nil {
		return err
	}
	ctx := c.Request().Context()
	resealed := map[string]int{}
	for what, reseal := range s.resealers() {
		n, err := reseal(ctx)
		if err != nil {
			return err
		}
		resealed[what] = n
	}
	if err := s.DB.Update(ctx, func(tx store.Tx) error {
		return s.Audit.Append(ctx, tx, audit.Entry{Action: "data_key.rewrap"})
	}); err != nil {
		return err
	}
	return c.JSON(http.StatusOK, map[string]any{"resealed": resealed})
}
