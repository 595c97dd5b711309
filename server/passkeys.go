package server

import (
	"encoding/json"
	"net/http"
	"time"

	"github.com/labstack/echo/v4"

	"keystead/accounts"
	"keystead/identity"
)

// Passkeys (WebAuthn): each ceremony is two requests, the question and the answer
// of the authenticator, as navigator.credentials takes the one and gives the other.
func (s *Server) passkeyRoutes() []route {
	const one = "/users/:user/passkeys/:id"
	return []route{
		{method: http.MethodPost, path: "/users/passkeys/begin", need: identity.AccountWrite, handle: s.beginPasskey},
		{method: http.MethodPost, path: "/users/passkeys", need: identity.AccountWrite, handle: s.finishPasskey, body: smallBody},
		{method: http.MethodGet, path: "/users/:user/passkeys", need: identity.AccountRead, handle: s.listPasskeys},
		{method: http.MethodPut, path: one, need: identity.AccountWrite, handle: s.renamePasskey, body: smallBody},
		{method: http.MethodDelete, path: one, need: identity.AccountWrite, handle: s.removePasskey},
		{method: http.MethodDelete, path: "/users/:user/second-factor", need: identity.Platform, handle: s.resetFactors},
		{method: http.MethodPost, path: "/tokens/passkey/begin", need: identity.Public, handle: s.beginPasskeyLogIn, body: smallBody},
		{method: http.MethodPost, path: "/tokens/passkey", need: identity.Public, handle: s.passkeyLogIn, body: smallBody},
	}
}

type passkeyView struct {
	ID         string     `json:"id"`
	Name       string     `json:"name"`
	Synced     bool       `json:"synced"`
	CreatedAt  time.Time  `json:"created_at"`
	LastUsedAt *time.Time `json:"last_used_at,omitempty"`
}

func viewPasskey(p accounts.Passkey) passkeyView {
	return passkeyView{ID: p.ID, Name: p.Name, Synced: p.Synced, CreatedAt: p.CreatedAt, LastUsedAt: timeOrNil(p.LastUsedAt)}
}

func (s *Server) beginPasskey(c echo.Context) error {
	q, err := s.Accounts.BeginPasskey(c.Request().Context())
	return writeCeremony(c, q, err)
}

func writeCeremony(c echo.Context, q accounts.Ceremony, err error) error {
	if err != nil {
		return err
	}
	noStore(c)
	return c.JSON(http.StatusCreated, q)
}

func (s *Server) finishPasskey(c echo.Context) error {
	var in struct {
		State      string          `json:"state"`
		Name       string          `json:"name"`
		Credential json.RawMessage `json:"credential"`
	}
	if err := bind(c, &in); err != nil {
		return err
	}
	p, codes, err := s.Accounts.FinishPasskey(c.Request().Context(), in.State, in.Name, in.Credential)
	if err != nil {
		return err
	}
	noStore(c)
	return c.JSON(http.StatusCreated, struct {
		passkeyView
		Codes []string `json:"recovery_codes,omitempty"`
	}{viewPasskey(p), codes})
}

func (s *Server) listPasskeys(c echo.Context) error {
	list, err := s.Accounts.Passkeys(c.Request().Context(), c.Param("user"))
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, map[string]any{"passkeys": views(list, viewPasskey)})
}

func (s *Server) renamePasskey(c echo.Context) error {
	var in struct {
		Name string `json:"name"`
	}
	if err := bind(c, &in); err != nil {
		return err
	}
	p, err := s.Accounts.RenamePasskey(c.Request().Context(), c.Param("user"), c.Param("id"), in.Name)
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, viewPasskey(p))
}

func (s *Server) removePasskey(c echo.Context) error {
	return done(c, s.Accounts.RemovePasskey(c.Request().Context(), c.Param("user"), c.Param("id")))
}

// resetFactors takes all second factors away from a user who has lost them.
func (s *Server) resetFactors(c echo.Context) error {
	return done(c, s.Accounts.ResetFactors(c.Request().Context(), c.Param("user")))
}

// beginPasskeyLogIn asks for a passkey alone, or, given a password, for a passkey
// as the second factor.
func (s *Server) beginPasskeyLogIn(c echo.Context) error {
	var in struct {
		Email    string `json:"email"`
		Password string `json:"password"`
	}
	if err := bindSearch(c, &in); err != nil {
		return err
	}
	ctx := c.Request().Context()
	if in.Email == "" && in.Password == "" {
		q, err := s.Accounts.BeginLogIn(ctx)
		return writeCeremony(c, q, err)
	}
	q, err := s.Accounts.BeginSecond(ctx, accounts.Attempt{Email: in.Email, Password: in.Password, From: s.ClientAddr(c.Request())})
	return writeCeremony(c, q, err)
}

// passkeyLogIn gives a login key for the answer.
func (s *Server) passkeyLogIn(c echo.Context) error {
	var in struct {
		State      string          `json:"state"`
		Credential json.RawMessage `json:"credential"`
		Second     bool            `json:"second_factor"` // the question came after a password
		Code       string          `json:"code"`
	}
	if err := bind(c, &in); err != nil {
		return err
	}
	u, factor, err := s.answer(c, in.Second, accounts.Second{State: in.State, Code: in.Code, Answer: in.Credential})
	if err != nil {
		return err
	}
	token, _, err := s.Accounts.LoginKey(u, factor)
	if err != nil {
		return err
	}
	noStore(c)
	return c.JSON(http.StatusCreated, map[string]string{"token": token})
}

// answer logs in who answers a question for a passkey, or for a second factor.
func (s *Server) answer(c echo.Context, second bool, f accounts.Second) (accounts.User, time.Time, error) {
	f.From = s.ClientAddr(c.Request())
	if second {
		return s.Accounts.LogInSecond(c.Request().Context(), f)
	}
	return s.Accounts.LogInPasskey(c.Request().Context(), f.State, f.Answer, f.From)
}
