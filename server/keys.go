package server

import (
	"net/http"
	"time"

	"github.com/labstack/echo/v4"

	"keystead/accounts"
	"keystead/fault"
	"keystead/identity"
)

// The three kinds of keys of users: login keys by password, API keys for
// scripts, recovery keys for a forgotten password.
func (s *Server) keyRoutes() []route {
	return []route{
		{method: http.MethodPost, path: "/tokens", need: identity.Public, handle: s.logIn, body: smallBody},
		{method: http.MethodPost, path: "/keys", need: identity.AccountWrite, handle: s.createKey, body: smallBody},
		{method: http.MethodGet, path: "/keys", need: identity.AccountRead, handle: s.listKeys},
		{method: http.MethodGet, path: "/keys/:id", need: identity.AccountRead, handle: s.showKey},
		{method: http.MethodDelete, path: "/keys/:id", need: identity.AccountWrite, handle: s.revokeKey},
		{method: http.MethodGet, path: "/users/:user/keys", need: identity.Platform, handle: s.listUserKeys},
		{method: http.MethodDelete, path: "/users/:user/keys/:id", need: identity.Platform, handle: s.revokeUserKey},
		{method: http.MethodPost, path: "/password/reset-request", need: identity.Public, handle: s.requestReset, body: smallBody},
		{method: http.MethodPut, path: "/password/reset", need: identity.Public, handle: s.resetPassword, body: smallBody},
		{method: http.MethodPatch, path: "/password", need: identity.AccountWrite, handle: s.changePassword, body: smallBody},
		{method: http.MethodPost, path: "/users/:user/recovery-key", need: identity.Platform, handle: s.issueRecovery},
		{method: http.MethodPost, path: "/setup", need: identity.Public, handle: s.setUp, body: smallBody},
	}
}

// smallBody is the most bytes of a body that holds a few words.
const smallBody = 64 << 10

func (s *Server) logIn(c echo.Context) error {
	var in struct {
		Email    string `json:"email"`
		Password string `json:"password"`
		Code     string `json:"code"`
	}
	if err := bind(c, &in); err != nil {
		return err
	}
	if in.Email == "" || in.Password == "" {
		return fault.New(fault.Invalid, "missing email or missing password")
	}
	ctx := c.Request().Context()
	u, factor, err := s.Accounts.LogIn(ctx, accounts.Attempt{Email: in.Email, Password: in.Password, Code: in.Code, From: s.ClientAddr(c.Request())})
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

// noStore keeps an answer with a secret in it out of caches.
func noStore(c echo.Context) {
	c.Response().Header().Set("Cache-Control", "no-store")
}

// typeAPI is the number of API keys on the wire; login keys are 0, recovery keys 1.
const typeAPI = 2

type newAPIKeyView struct {
	Type         *int            `json:"type"`
	Duration     *int64          `json:"duration"` // seconds
	ExpiresAt    *time.Time      `json:"expires_at"`
	Name         string          `json:"name"`
	Description  string          `json:"description"`
	Scopes       []identity.Need `json:"scopes"`
	OrgID        string          `json:"org_id"`
	AllowedCIDRs []string        `json:"allowed_cidrs"`
}

// apiKey is what to make of the request, or what is wrong with it.
func (in newAPIKeyView) apiKey(now time.Time) (accounts.NewAPIKey, error) {
	n := accounts.NewAPIKey{
		Name: in.Name, Description: in.Description, Scopes: in.Scopes, Org: in.OrgID, CIDRs: in.AllowedCIDRs,
	}
	if in.Type == nil || *in.Type != typeAPI {
		return n, fault.InvalidFields(fault.Field{Name: "type", Message: "invalid api key type: only API keys, 2, are made here"})
	}
	const longest = int64(100 * 365 * 24 * time.Hour / time.Second)
	if in.Duration != nil && (*in.Duration < 0 || *in.Duration > longest) {
		return n, fault.InvalidFields(fault.Field{Name: "duration", Message: "must be seconds from 0, which is never, to a hundred years"})
	}
	if in.Duration != nil {
		n.TTL = time.Duration(*in.Duration) * time.Second
	}
	if in.ExpiresAt != nil {
		if n.TTL = in.ExpiresAt.Sub(now); n.TTL <= 0 || in.Duration != nil {
			return n, fault.InvalidFields(fault.Field{Name: "expires_at", Message: "must be in the future, and not come with a duration"})
		}
	}
	return n, nil
}

func (s *Server) createKey(c echo.Context) error {
	var in newAPIKeyView
	if err := bind(c, &in); err != nil {
		return err
	}
	n, err := in.apiKey(s.Now())
	if err != nil {
		return err
	}
	n.From = s.ClientAddr(c.Request())
	k, text, err := s.Accounts.CreateAPIKey(c.Request().Context(), n)
	if err != nil {
		return err
	}
	noStore(c)
	c.Response().Header().Set("Location", "/keys/"+k.ID)
	return c.JSON(http.StatusCreated, struct {
		apiKeyView
		Value string `json:"value"`
	}{viewAPIKey(accounts.APIKeyUse{APIKey: k}), string(text)})
}

type apiKeyView struct {
	ID           string          `json:"id"`
	IssuerID     string          `json:"issuer_id"`
	Subject      string          `json:"subject"`
	Type         int             `json:"type"`
	Name         string          `json:"name"`
	Description  string          `json:"description,omitempty"`
	Prefix       string          `json:"prefix"`
	Scopes       []identity.Need `json:"scopes,omitempty"`
	OrgID        string          `json:"org_id,omitempty"`
	AllowedCIDRs []string        `json:"allowed_cidrs,omitempty"`
	IssuedAt     time.Time       `json:"issued_at"`
	ExpiresAt    *time.Time      `json:"expires_at,omitempty"`
	LastUsedAt   *time.Time      `json:"last_used_at,omitempty"`
	LastUsedIP   string          `json:"last_used_ip,omitempty"`
}

func viewAPIKey(k accounts.APIKeyUse) apiKeyView {
	return apiKeyView{
		ID: k.ID, IssuerID: k.User, Subject: k.User, Type: typeAPI, Name: k.Name, Description: k.Description, Prefix: k.Prefix(),
		Scopes: k.Scopes, OrgID: k.Org, AllowedCIDRs: k.CIDRs, IssuedAt: k.IssuedAt, ExpiresAt: timeOrNil(k.ExpiresAt),
		LastUsedAt: timeOrNil(k.LastUsedAt), LastUsedIP: k.LastUsedFrom,
	}
}

func timeOrNil(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

func (s *Server) listKeys(c echo.Context) error {
	return s.keysOf(c, identity.FromContext(c.Request().Context()).ID)
}

func (s *Server) listUserKeys(c echo.Context) error { return s.keysOf(c, c.Param("user")) }

func (s *Server) keysOf(c echo.Context, user string) error {
	l, err := listRequest(c)
	if err != nil {
		return err
	}
	if l.Order != "id" && l.Order != "issued_at" {
		return fault.New(fault.Invalid, "invalid list order provided: id or issued_at")
	}
	keys, err := s.Accounts.APIKeys(c.Request().Context(), user)
	if err != nil {
		return err
	}
	views := make([]apiKeyView, len(keys))
	for i, k := range keys {
		at := i
		if !l.Ascending {
			at = len(keys) - 1 - i // they come oldest first, by id as by time
		}
		views[at] = viewAPIKey(k)
	}
	from := min(l.Offset, len(views))
	return writeList(c, "keys", l, len(views), views[from:min(from+l.Limit, len(views))])
}

func (s *Server) showKey(c echo.Context) error {
	ctx := c.Request().Context()
	k, err := s.Accounts.APIKey(ctx, identity.FromContext(ctx).ID, c.Param("id"))
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, viewAPIKey(k))
}

func (s *Server) revokeKey(c echo.Context) error {
	ctx := c.Request().Context()
	if err := s.Accounts.RevokeAPIKey(ctx, identity.FromContext(ctx).ID, c.Param("id")); err != nil {
		return err
	}
	return c.NoContent(http.StatusNoContent)
}

func (s *Server) revokeUserKey(c echo.Context) error {
	if err := s.Accounts.RevokeAPIKey(c.Request().Context(), c.Param("user"), c.Param("id")); err != nil {
		return err
	}
	return c.NoContent(http.StatusNoContent)
}

func (s *Server) requestReset(c echo.Context) error {
	var in struct {
		Email    string `json:"email"`
		Redirect string `json:"redirect_path"` // taken and not used: links lead to the public URL only
	}
	if err := bind(c, &in); err != nil {
		return err
	}
	if err := s.Accounts.RequestRecovery(c.Request().Context(), in.Email, s.ClientAddr(c.Request())); err != nil {
		return err
	}
	return c.JSON(http.StatusCreated, map[string]string{"msg": "Email with reset link is sent"})
}

func (s *Server) resetPassword(c echo.Context) error {
	var in struct {
		Token    string `json:"token"`
		Password string `json:"password"`
		Confirm  string `json:"confirm_password"`
	}
	if err := bind(c, &in); err != nil {
		return err
	}
	if in.Password != in.Confirm {
		return fault.InvalidFields(fault.Field{Name: "confirm_password", Message: "invalid reset password: the two differ"})
	}
	if err := s.Accounts.ResetPassword(c.Request().Context(), in.Token, in.Password, s.ClientAddr(c.Request())); err != nil {
		return err
	}
	return c.JSON(http.StatusCreated, struct{}{})
}

func (s *Server) changePassword(c echo.Context) error {
	var in struct {
		Password string `json:"password"`
		Old      string `json:"old_password"`
		Email    string `json:"email"`
	}
	if err := bind(c, &in); err != nil {
		return err
	}
	ctx := c.Request().Context()
	var err error
	switch {
	case in.Email != "" && in.Old != "":
		err = fault.New(fault.Invalid, "send old_password for your own password, or email for another user's")
	case in.Email != "":
		err = s.Accounts.SetPassword(ctx, in.Email, in.Password)
	default:
		err = s.Accounts.ChangePassword(ctx, in.Old, in.Password, s.ClientAddr(c.Request()))
	}
	if err != nil {
		return err
	}
	return c.JSON(http.StatusCreated, struct{}{})
}

func (s *Server) issueRecovery(c echo.Context) error {
	key, expires, err := s.Accounts.IssueRecovery(c.Request().Context(), c.Param("user"))
	if err != nil {
		return err
	}
	noStore(c)
	return c.JSON(http.StatusCreated, struct {
		Value     string    `json:"value"`
		Link      string    `json:"link"`
		ExpiresAt time.Time `json:"expires_at"`
	}{string(key), s.Config.PublicURL + "/reset#" + string(key), expires})
}

func (s *Server) setUp(c echo.Context) error {
	var in struct {
		Token    string `json:"token"`
		Email    string `json:"email"`
		Password string `json:"password"`
	}
	if err := bind(c, &in); err != nil {
		return err
	}
	u, err := s.Accounts.SetUp(c.Request().Context(), in.Token, in.Email, in.Password, s.ClientAddr(c.Request()))
	if err != nil {
		return err
	}
	return c.JSON(http.StatusCreated, viewUser(u))
}
