package server

import (
	"net/http"
	"time"

	"github.com/labstack/echo/v4"

	"keystead/identity"
	"keystead/tokens"
)

func (s *Server) tokenRoutes() []route {
	return []route{
		{method: http.MethodGet, path: "/.well-known/jwks.json", need: identity.Public, handle: s.jwks},
		{method: http.MethodGet, path: "/api/v1/signing-keys", need: identity.Platform, handle: s.listSigningKeys},
		{method: http.MethodPost, path: "/api/v1/signing-keys/rotate", need: identity.Platform, handle: s.rotateSigningKeys},
	}
}

type keySet struct {
	Keys []tokens.JWK `json:"keys"`
}

// jwks answers with the key set (RFC 7517, 5), for verifiers to keep for at
// most as long as a next key is published before it signs.
func (s *Server) jwks(c echo.Context) error {
	c.Response().Header().Set("Cache-Control", "public, max-age=600")
	return c.JSON(http.StatusOK, keySet{Keys: s.Tokens.JWKS()})
}

type signingKeyView struct {
	ID        string           `json:"id"`
	Algorithm tokens.Algorithm `json:"algorithm"`
	State     tokens.KeyState  `json:"state"`
	CreatedAt time.Time        `json:"created_at"`
	ActiveAt  *time.Time       `json:"active_at"`
	RetiredAt *time.Time       `json:"retired_at"`
}

func viewSigningKey(k tokens.Key) signingKeyView {
	return signingKeyView{k.ID, k.Alg, k.State, k.CreatedAt, orNull(k.ActiveAt), orNull(k.RetiredAt)}
}

// orNull is t for JSON, where no time is null.
func orNull(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

func (s *Server) listSigningKeys(c echo.Context) error {
	out := list[signingKeyView]{Items: []signingKeyView{}}
	for _, k := range s.Tokens.Keys() {
		out.Items = append(out.Items, viewSigningKey(k))
	}
	return c.JSON(http.StatusOK, out)
}

type rotation struct {
	Algorithm tokens.Algorithm `json:"algorithm"` // of the new next key
	Now       bool             `json:"now"`
}

func (s *Server) rotateSigningKeys(c echo.Context) error {
	var in rotation
	if err := bind(c, &in); err != nil {
		return err
	}
	if err := s.Tokens.Rotate(c.Request().Context(), in.Algorithm, in.Now); err != nil {
		return err
	}
	return s.listSigningKeys(c)
}
