package server

import (
	"encoding/json"
	"net/http"
	"slices"
	"strconv"
	"time"

	"github.com/labstack/echo/v4"

	"keystead/accounts"
	"keystead/fault"
	"keystead/identity"
)

func (s *Server) userRoutes() []route {
	const one = "/users/:user"
	return []route{
		{method: http.MethodPost, path: "/register", need: identity.Public, handle: s.register, body: smallBody},
		{method: http.MethodPost, path: "/register/verify", need: identity.Public, handle: s.verifyEmail},
		{method: http.MethodPost, path: invitePath + ":invite", need: identity.Public, handle: s.registerInvited, body: smallBody},
		{method: http.MethodPost, path: "/users", need: identity.Platform, handle: s.createUser, body: smallBody},
		{method: http.MethodGet, path: "/users", need: identity.Platform, handle: s.listUsers},
		{method: http.MethodPost, path: "/users/search", need: identity.Platform, handle: s.searchUsers, body: smallBody},
		{method: http.MethodPut, path: "/users", need: identity.AccountWrite, handle: s.setMetadata, body: smallBody},
		{method: http.MethodGet, path: "/users/profile", need: identity.AccountRead, handle: s.profile},
		{method: http.MethodGet, path: one, need: identity.AccountRead, handle: s.showUser},
		{method: http.MethodDelete, path: one, need: identity.Platform, handle: s.deleteUser},
		{method: http.MethodPost, path: one + "/enable", need: identity.Platform, handle: s.enableUser},
		{method: http.MethodPost, path: one + "/disable", need: identity.Platform, handle: s.disableUser},
		{method: http.MethodPut, path: one + "/platform", need: identity.Platform, handle: s.makePlatform},
		{method: http.MethodDelete, path: one + "/platform", need: identity.Platform, handle: s.endPlatform},
		{method: http.MethodPost, path: one + "/sign-out", need: identity.AccountWrite, handle: s.signOut},
		{method: http.MethodPost, path: "/users/totp", need: identity.AccountWrite, handle: s.beginTOTP},
		{method: http.MethodPost, path: "/users/totp/confirm", need: identity.AccountWrite, handle: s.confirmTOTP, body: smallBody},
		{method: http.MethodDelete, path: one + "/totp", need: identity.AccountWrite, handle: s.removeTOTP},
		{method: http.MethodPost, path: "/invites", need: identity.Platform, handle: s.inviteUser, body: smallBody},
		{method: http.MethodGet, path: "/invites", need: identity.Platform, handle: s.listInvites},
		{method: http.MethodDelete, path: "/invites/:invite", need: identity.Platform, handle: s.revokeInvite},
		{method: http.MethodPost, path: "/invites/:invite/accept", need: identity.AccountWrite, handle: s.acceptInvite},
		{method: http.MethodPost, path: "/invites/:invite/decline", need: identity.AccountWrite, handle: s.declineInvite},
	}
}

// Limits on lists that are cut by offset, as clients of the paths below expect.
const (
	listDefault = 10
	listMost    = 200
)

// listRequest reads ?offset=, ?limit=, ?order= and ?dir=.
func listRequest(c echo.Context) (accounts.List, error) {
	l := accounts.List{Limit: listDefault, Order: "id"}
	q := c.QueryParams()
	for _, values := range q {
		if len(values) > 1 {
			return l, fault.New(fault.Invalid, "invalid query parameters: one is given twice")
		}
	}
	var err error
	if text := q.Get("offset"); text != "" {
		if l.Offset, err = strconv.Atoi(text); err != nil || l.Offset < 0 {
			return l, fault.New(fault.Invalid, "invalid query parameters: offset must be a number from 0")
		}
	}
	if q.Has("limit") {
		if l.Limit, err = strconv.Atoi(q.Get("limit")); err != nil {
			return l, fault.New(fault.Invalid, "invalid query parameters: limit must be a number")
		}
	}
	if o := q.Get("order"); o != "" {
		l.Order = o
	}
	return l, checkList(&l, q.Get("dir"))
}

// listBody is the same in the body of a search; an empty body is an empty search.
type listBody struct {
	Offset int    `json:"offset"`
	Limit  int    `json:"limit"`
	Order  string `json:"order"`
	Dir    string `json:"dir"`
}

func (b listBody) request() (accounts.List, error) {
	l := accounts.List{Offset: b.Offset, Limit: b.Limit, Order: "id"}
	if b.Limit == 0 {
		l.Limit = listDefault
	}
	if b.Order != "" {
		l.Order = b.Order
	}
	if l.Offset < 0 {
		return l, fault.New(fault.Invalid, "invalid query parameters: offset must be a number from 0")
	}
	return l, checkList(&l, b.Dir)
}

func checkList(l *accounts.List, dir string) error {
	if l.Limit < 1 || l.Limit > listMost {
		return fault.New(fault.Invalid, "invalid limit size: 1 to %d", listMost)
	}
	switch dir {
	case "", "desc":
	case "asc":
		l.Ascending = true
	default:
		return fault.New(fault.Invalid, "invalid list direction provided: asc or desc")
	}
	return nil
}

// bindSearch is bind for a body that may be empty.
func bindSearch(c echo.Context, v any) error {
	if c.Request().ContentLength == 0 {
		return nil
	}
	return bind(c, v)
}

// writeList answers with a part of a list under its name.
func writeList(c echo.Context, name string, l accounts.List, total int, items any) error {
	dir := "desc"
	if l.Ascending {
		dir = "asc"
	}
	return c.JSON(http.StatusOK, map[string]any{
		name: items, "total": total, "offset": l.Offset, "limit": l.Limit, "order": l.Order, "dir": dir,
	})
}

func views[T, V any](list []T, view func(T) V) []V {
	out := make([]V, len(list))
	for i, v := range list {
		out[i] = view(v)
	}
	return out
}

// empty answers without a body, as clients of these paths expect it typed.
func empty(c echo.Context, status int) error {
	c.Response().Header().Set("Content-Type", "application/json")
	return c.NoContent(status)
}

type userView struct {
	ID        string          `json:"id"`
	Email     string          `json:"email"`
	Name      string          `json:"name,omitempty"`
	Metadata  json.RawMessage `json:"metadata,omitempty"`
	Role      string          `json:"role,omitempty"` // "root" for a platform administrator
	Status    accounts.Status `json:"status"`
	Factors   bool            `json:"second_factor"`
	HomeOrg   string          `json:"org_id,omitempty"`
	CreatedAt time.Time       `json:"created_at"`
}

func viewUser(u accounts.User) userView {
	v := userView{
		ID: u.ID, Email: u.Email, Name: u.Name, Metadata: u.Metadata, Status: u.Status, Factors: u.Factors,
		HomeOrg: u.HomeOrg, CreatedAt: u.CreatedAt,
	}
	if u.Platform {
		v.Role = "root"
	}
	return v
}

// newUserView is what an account is made from. A path to redirect to is taken
// and not used: links lead to the public URL only.
type newUserView struct {
	User struct {
		Email    string          `json:"email"`
		Password string          `json:"password"`
		Name     string          `json:"name"`
		Metadata json.RawMessage `json:"metadata"`
	} `json:"user"`
	Redirect string `json:"redirect_path"`
}

func (in newUserView) account() accounts.NewUser {
	return accounts.NewUser{Email: in.User.Email, Password: in.User.Password, Name: in.User.Name, Metadata: in.User.Metadata}
}

func (s *Server) register(c echo.Context) error {
	var in newUserView
	if err := bind(c, &in); err != nil {
		return err
	}
	if err := s.Accounts.Register(c.Request().Context(), in.account(), s.ClientAddr(c.Request())); err != nil {
		return err
	}
	return empty(c, http.StatusCreated)
}

func (s *Server) verifyEmail(c echo.Context) error {
	u, err := s.Accounts.VerifyEmail(c.Request().Context(), c.QueryParam("token"), s.ClientAddr(c.Request()))
	if err != nil {
		return err
	}
	c.Response().Header().Set("Location", "/users/"+u.ID)
	return empty(c, http.StatusCreated)
}

func (s *Server) registerInvited(c echo.Context) error {
	var in newUserView
	if err := bind(c, &in); err != nil {
		return err
	}
	u, err := s.Accounts.RegisterInvited(c.Request().Context(), c.Param("invite"), in.account(), s.ClientAddr(c.Request()))
	if err != nil {
		return err
	}
	c.Response().Header().Set("Location", "/users/"+u.ID)
	return empty(c, http.StatusCreated)
}

func (s *Server) createUser(c echo.Context) error {
	var in struct {
		Email    string          `json:"email"`
		Password string          `json:"password"`
		Name     string          `json:"name"`
		Metadata json.RawMessage `json:"metadata"`
		Status   accounts.Status `json:"status"`
		Platform bool            `json:"platform_admin"`
	}
	if err := bind(c, &in); err != nil {
		return err
	}
	u, err := s.Accounts.CreateUser(c.Request().Context(), accounts.NewUser{
		Email: in.Email, Password: in.Password, Name: in.Name, Metadata: in.Metadata, Status: in.Status, Platform: in.Platform,
	})
	if err != nil {
		return err
	}
	c.Response().Header().Set("Location", "/users/"+u.ID)
	return empty(c, http.StatusCreated)
}

func (s *Server) listUsers(c echo.Context) error {
	l, err := listRequest(c)
	if err != nil {
		return err
	}
	return s.writeUsers(c, l, c.QueryParam("email"), c.QueryParam("status"))
}

func (s *Server) searchUsers(c echo.Context) error {
	var in struct {
		listBody
		Email  string `json:"email"`
		Status string `json:"status"`
	}
	if err := bindSearch(c, &in); err != nil {
		return err
	}
	l, err := in.request()
	if err != nil {
		return err
	}
	return s.writeUsers(c, l, in.Email, in.Status)
}

func (s *Server) writeUsers(c echo.Context, l accounts.List, email, status string) error {
	f := accounts.UserFilter{Email: email, Status: accounts.Status(status)}
	switch status {
	case "":
		f.Status = accounts.Enabled
	case "all":
		f.Status = ""
	default:
		if !slices.Contains([]accounts.Status{accounts.Enabled, accounts.Disabled, accounts.Unverified}, f.Status) {
			return fault.New(fault.Invalid, "status must be enabled, disabled, unverified or all")
		}
	}
	list, total, err := s.Accounts.Users(c.Request().Context(), f, l)
	if err != nil {
		return err
	}
	return writeList(c, "users", l, total, views(list, viewUser))
}

func (s *Server) setMetadata(c echo.Context) error {
	var in struct {
		Metadata json.RawMessage `json:"metadata"`
	}
	if err := bind(c, &in); err != nil {
		return err
	}
	if err := s.Accounts.SetMetadata(c.Request().Context(), in.Metadata); err != nil {
		return err
	}
	return empty(c, http.StatusOK)
}

func (s *Server) profile(c echo.Context) error {
	return s.writeUser(c, identity.FromContext(c.Request().Context()).ID)
}

func (s *Server) showUser(c echo.Context) error { return s.writeUser(c, c.Param("user")) }

func (s *Server) writeUser(c echo.Context, user string) error {
	u, err := s.Accounts.User(c.Request().Context(), user)
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, viewUser(u))
}

// done answers 204, or with what went wrong.
func done(c echo.Context, err error) error {
	if err != nil {
		return err
	}
	return c.NoContent(http.StatusNoContent)
}

func (s *Server) deleteUser(c echo.Context) error {
	return done(c, s.Accounts.DeleteUser(c.Request().Context(), c.Param("user")))
}

func (s *Server) enableUser(c echo.Context) error {
	return done(c, s.Accounts.SetStatus(c.Request().Context(), c.Param("user"), accounts.Enabled))
}

func (s *Server) disableUser(c echo.Context) error {
	return done(c, s.Accounts.SetStatus(c.Request().Context(), c.Param("user"), accounts.Disabled))
}

func (s *Server) makePlatform(c echo.Context) error {
	return done(c, s.Accounts.SetPlatform(c.Request().Context(), c.Param("user"), true))
}

func (s *Server) endPlatform(c echo.Context) error {
	return done(c, s.Accounts.SetPlatform(c.Request().Context(), c.Param("user"), false))
}

func (s *Server) signOut(c echo.Context) error {
	return done(c, s.Accounts.EndSessions(c.Request().Context(), c.Param("user")))
}

func (s *Server) beginTOTP(c echo.Context) error {
	t, err := s.Accounts.BeginTOTP(c.Request().Context())
	if err != nil {
		return err
	}
	noStore(c)
	return c.JSON(http.StatusCreated, map[string]string{"secret": string(t.Secret), "uri": string(t.URI)})
}

func (s *Server) confirmTOTP(c echo.Context) error {
	var in struct {
		Code string `json:"code"`
	}
	if err := bind(c, &in); err != nil {
		return err
	}
	codes, err := s.Accounts.ConfirmTOTP(c.Request().Context(), in.Code)
	if err != nil {
		return err
	}
	noStore(c)
	return c.JSON(http.StatusOK, map[string][]string{"recovery_codes": codes})
}

func (s *Server) removeTOTP(c echo.Context) error {
	return done(c, s.Accounts.RemoveTOTP(c.Request().Context(), c.Param("user")))
}

// inviteView is an invite with what its holder needs, shown once.
type inviteView struct {
	accounts.Invite
	Link string `json:"link"`
}

func (s *Server) inviteUser(c echo.Context) error {
	var in struct {
		Email    string        `json:"email"`
		Org      string        `json:"org_id"`
		Role     identity.Role `json:"role"`
		Redirect string        `json:"redirect_path"`
	}
	if err := bind(c, &in); err != nil {
		return err
	}
	return s.writeInvite(c, in.Email, in.Org, in.Role)
}

func (s *Server) writeInvite(c echo.Context, email, org string, role identity.Role) error {
	i, key, err := s.Accounts.CreateInvite(c.Request().Context(), email, org, role)
	if err != nil {
		return err
	}
	noStore(c)
	c.Response().Header().Set("Location", "/invites/"+i.ID)
	return c.JSON(http.StatusCreated, inviteView{i, s.Config.PublicURL + "/invite#" + string(key)})
}

func (s *Server) listInvites(c echo.Context) error {
	list, err := s.Accounts.Invites(c.Request().Context(), "")
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, map[string]any{"invites": orEmpty(list)})
}

func (s *Server) revokeInvite(c echo.Context) error {
	return done(c, s.Accounts.RevokeInvite(c.Request().Context(), "", c.Param("invite")))
}

func (s *Server) acceptInvite(c echo.Context) error {
	if err := s.Accounts.AnswerInvite(c.Request().Context(), c.Param("invite"), accounts.InviteAccepted); err != nil {
		return err
	}
	return empty(c, http.StatusCreated)
}

func (s *Server) declineInvite(c echo.Context) error {
	if err := s.Accounts.AnswerInvite(c.Request().Context(), c.Param("invite"), accounts.InviteDeclined); err != nil {
		return err
	}
	return empty(c, http.StatusCreated)
}
