package server

import (
	"context"
	"encoding/json"
	"errors"
	"html/template"
	"mime"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/labstack/echo/v4"
	"rsc.io/qr"

	"keystead/accounts"
	"keystead/fault"
	"keystead/identity"
)

// The pages on which people log in and look after their own account. They work
// without script but for passkeys, which browsers give to scripts only.
func (s *Server) accountPageRoutes() []route {
	return []route{
		{method: http.MethodGet, path: "/login", need: identity.Public, handle: s.logInPage},
		{method: http.MethodPost, path: "/oauth/login/second", need: identity.Public, handle: s.pageSecond, body: smallBody},
		{method: http.MethodPost, path: "/oauth/login/passkey", need: identity.Public, handle: s.pagePasskey, body: smallBody},
		{method: http.MethodGet, path: "/account", need: identity.Public, handle: s.ownPage(s.showAccount)},
		{method: http.MethodPost, path: "/account/passkeys", need: identity.Public, handle: s.ownPage(s.pageAddPasskey), body: smallBody},
		{method: http.MethodPost, path: "/account/passkeys/:id/rename", need: identity.Public, handle: s.ownPage(s.pageRenamePasskey), body: smallBody},
		{method: http.MethodPost, path: "/account/passkeys/:id/delete", need: identity.Public, handle: s.ownPage(s.pageRemovePasskey), body: smallBody},
		{method: http.MethodPost, path: "/account/totp", need: identity.Public, handle: s.ownPage(s.pageBeginTOTP), body: smallBody},
		{method: http.MethodPost, path: "/account/totp/confirm", need: identity.Public, handle: s.ownPage(s.pageConfirmTOTP), body: smallBody},
		{method: http.MethodPost, path: "/account/totp/delete", need: identity.Public, handle: s.ownPage(s.pageRemoveTOTP), body: smallBody},
		{method: http.MethodPost, path: "/account/sign-out", need: identity.Public, handle: s.ownPage(s.pageSignOut), body: smallBody},
	}
}

// logInPage is for people who come by themselves, not with an authorization request.
func (s *Server) logInPage(c echo.Context) error {
	if _, in := s.browser(c); in {
		return c.Redirect(http.StatusSeeOther, "/account")
	}
	return s.askLogIn(c, http.StatusOK, "", "")
}

// askLogIn shows the login. next is the query of the authorization request that
// goes on afterwards, "" for the page of the account.
func (s *Server) askLogIn(c echo.Context, status int, next, problem string) error {
	v := pageView{Title: "Log in", Login: true, Query: next, Problem: problem, Providers: s.providerNames()}
	if q, err := s.Accounts.BeginLogIn(c.Request().Context()); err == nil { // passkeys need a public name
		v.Ceremony = viewCeremony(q)
	}
	return showPage(c, status, v, redirectTarget(next))
}

// askSecond shows the question for a second factor.
func (s *Server) askSecond(c echo.Context, status int, user, next, problem string) error {
	q, err := s.Accounts.BeginConfirm(c.Request().Context(), user)
	if err != nil {
		return err
	}
	return showPage(c, status, pageView{Title: "Second factor", Second: true, Query: next, Problem: problem, Ceremony: viewCeremony(q)}, redirectTarget(next))
}

// ceremonyView is a question to an authenticator in a page.
type ceremonyView struct {
	State   string
	Options string // "" if there is nothing to ask of one
}

func viewCeremony(q accounts.Ceremony) *ceremonyView {
	v := &ceremonyView{State: q.State}
	if string(q.Options) != "null" {
		v.Options = string(q.Options)
	}
	return v
}

func (s *Server) pageSecond(c echo.Context) error {
	return s.pageAnswer(c, true, accounts.Second{
		State: c.FormValue("state"), Code: strings.TrimSpace(c.FormValue("code")), Answer: json.RawMessage(c.FormValue("credential")),
	})
}

func (s *Server) pagePasskey(c echo.Context) error {
	return s.pageAnswer(c, false, accounts.Second{State: c.FormValue("state"), Answer: json.RawMessage(c.FormValue("credential"))})
}

// pageAnswer opens a session for who answers. Whatever is wrong leads back to the login,
// where a fresh question is asked.
func (s *Server) pageAnswer(c echo.Context, second bool, f accounts.Second) error {
	if err := sameOrigin(c); err != nil {
		return err
	}
	next := c.FormValue("next")
	u, factor, err := s.answer(c, second, f)
	switch {
	case fault.Is(err, fault.TooMany):
		return s.askLogIn(c, http.StatusTooManyRequests, next, "There were too many failed attempts; wait a while.")
	case fault.Is(err, fault.Unauthenticated), fault.Is(err, fault.Invalid):
		return s.askLogIn(c, http.StatusUnauthorized, next, "That did not work: "+fault.Message(err)+".")
	case err != nil:
		return err
	}
	return s.openSession(c, u, factor, next)
}

// openSession gives the browser a session, in place of the one it may have had,
// and sends it on.
func (s *Server) openSession(c echo.Context, u accounts.User, factor time.Time, next string) error {
	if ctx, in := s.browser(c); in {
		if err := s.Accounts.CloseSession(ctx); err != nil {
			return err
		}
	}
	text, expires, err := s.Accounts.OpenSession(c.Request().Context(), u, factor)
	if err != nil {
		return err
	}
	c.SetCookie(&http.Cookie{
		Name: sessionCookie, Value: string(text), Path: "/", Expires: expires, Secure: true, HttpOnly: true, SameSite: http.SameSiteLaxMode,
	})
	if next == "" {
		return c.Redirect(http.StatusSeeOther, "/account")
	}
	return c.Redirect(http.StatusSeeOther, "/oauth/authorize?"+next)
}

// ownPage is a handler for who has a session in this browser, with its actor in
// ctx. Who has none logs in, and who needs a fresh second factor gives one, and
// both come back to the page of the account.
func (s *Server) ownPage(handle func(ctx context.Context, c echo.Context) error) echo.HandlerFunc {
	return func(c echo.Context) error {
		if c.Request().Method != http.MethodGet {
			if err := sameOrigin(c); err != nil {
				return err
			}
			if err := readForm(c); err != nil {
				return err
			}
		}
		ctx, in := s.browser(c)
		if !in {
			return c.Redirect(http.StatusSeeOther, "/login")
		}
		err := handle(ctx, c)
		switch {
		case errors.Is(err, accounts.ErrStale):
			return s.askSecond(c, http.StatusForbidden, identity.FromContext(ctx).ID, "", "Give a second factor first, then do it again.")
		case fault.Is(err, fault.Invalid), fault.Is(err, fault.Unauthenticated), fault.Is(err, fault.Conflict), fault.Is(err, fault.TooLarge), fault.Is(err, fault.TooMany):
			return s.accountPage(ctx, c, http.StatusBadRequest, fault.Message(err))
		}
		return err
	}
}

// readForm reads the body as what the forms of the pages send, and refuses every other.
func readForm(c echo.Context) error {
	if kind, _, err := mime.ParseMediaType(c.Request().Header.Get("Content-Type")); err != nil || kind != echo.MIMEApplicationForm {
		return fault.New(fault.Unsupported, "send the form as Content-Type: %s", echo.MIMEApplicationForm)
	}
	err := c.Request().ParseForm()
	if e, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return tooLarge(e.Limit)
	}
	if err != nil {
		return fault.Wrap(fault.Invalid, err, "the body is no form")
	}
	return nil
}

// accountView is what the page of an account shows.
type accountView struct {
	User     string
	Email    string
	Factors  bool
	TOTP     bool
	Passkeys []passkeyRow
}

type passkeyRow struct{ ID, Name, Added, Used string }

func (s *Server) showAccount(ctx context.Context, c echo.Context) error {
	return s.accountPage(ctx, c, http.StatusOK, "")
}

func (s *Server) accountPage(ctx context.Context, c echo.Context, status int, problem string) error {
	me := identity.FromContext(ctx).ID
	u, err := s.Accounts.User(ctx, me)
	if err != nil {
		return err
	}
	keys, err := s.Accounts.Passkeys(ctx, me)
	if err != nil {
		return err
	}
	v := accountView{User: identity.FromContext(ctx).Name, Email: u.Email, Factors: u.Factors}
	if v.TOTP, err = s.Accounts.HasTOTP(ctx, me); err != nil {
		return err
	}
	for _, k := range keys {
		row := passkeyRow{ID: k.ID, Name: k.Name, Added: k.CreatedAt.Format(time.DateOnly)}
		if !k.LastUsedAt.IsZero() {
			row.Used = k.LastUsedAt.Format(time.DateOnly)
		}
		v.Passkeys = append(v.Passkeys, row)
	}
	page := pageView{Title: "Your account", Wide: true, Account: &v, Problem: problem}
	switch q, err := s.Accounts.BeginPasskey(ctx); {
	case err == nil:
		page.Ceremony = viewCeremony(q)
	case !errors.Is(err, accounts.ErrStale) && !fault.Is(err, fault.Conflict) && !fault.Is(err, fault.TooLarge):
		return err
	default:
		page.Stale = errors.Is(err, accounts.ErrStale)
	}
	return showPage(c, status, page, "")
}

func (s *Server) pageAddPasskey(ctx context.Context, c echo.Context) error {
	if c.FormValue("credential") == "" {
		return accounts.ErrStale // the form of who is to confirm first
	}
	_, codes, err := s.Accounts.FinishPasskey(ctx, c.FormValue("state"), strings.TrimSpace(c.FormValue("name")), json.RawMessage(c.FormValue("credential")))
	return s.codesOr(c, codes, err)
}

// codesOr shows recovery codes, if there are any, and the page of the account else.
func (s *Server) codesOr(c echo.Context, codes []string, err error) error {
	if err != nil {
		return err
	}
	if codes == nil {
		return c.Redirect(http.StatusSeeOther, "/account")
	}
	return showPage(c, http.StatusOK, pageView{Title: "Keep these recovery codes", Codes: codes}, "")
}

func (s *Server) pageRenamePasskey(ctx context.Context, c echo.Context) error {
	_, err := s.Accounts.RenamePasskey(ctx, identity.FromContext(ctx).ID, c.Param("id"), strings.TrimSpace(c.FormValue("name")))
	return s.codesOr(c, nil, err)
}

func (s *Server) pageRemovePasskey(ctx context.Context, c echo.Context) error {
	return s.codesOr(c, nil, s.Accounts.RemovePasskey(ctx, identity.FromContext(ctx).ID, c.Param("id")))
}

func (s *Server) pageBeginTOTP(ctx context.Context, c echo.Context) error {
	t, err := s.Accounts.BeginTOTP(ctx)
	if err != nil {
		return err
	}
	code, err := qrSVG(string(t.URI))
	if err != nil {
		return err
	}
	return showPage(c, http.StatusOK, pageView{Title: "Set up an authenticator app", Secret: spaced(string(t.Secret)), QR: code}, "")
}

// spaced groups a secret for people who type it.
func spaced(text string) string {
	var out strings.Builder
	for i, r := range text {
		if i > 0 && i%4 == 0 {
			out.WriteByte(' ')
		}
		out.WriteRune(r)
	}
	return out.String()
}

// qrSVG draws text as a QR code, dark on light whatever the colours of the page.
func qrSVG(text string) (template.HTML, error) {
	code, err := qr.Encode(text, qr.M)
	if err != nil {
		return "", err
	}
	const quiet = 4 // modules around it
	n := strconv.Itoa(code.Size + 2*quiet)
	var out strings.Builder
	out.WriteString(`<svg class="qr" role="img" aria-label="QR code of the secret" viewBox="0 0 ` + n + " " + n + `"><rect width="` + n + `" height="` + n + `" fill="#fff"/><path d="`)
	for y := range code.Size {
		for x := range code.Size {
			if code.Black(x, y) {
				out.WriteString("M" + strconv.Itoa(x+quiet) + " " + strconv.Itoa(y+quiet) + "h1v1h-1z")
			}
		}
	}
	out.WriteString(`" fill="#000"/></svg>`)
	return template.HTML(out.String()), nil //nolint:gosec // G203: made of numbers only
}

func (s *Server) pageConfirmTOTP(ctx context.Context, c echo.Context) error {
	codes, err := s.Accounts.ConfirmTOTP(ctx, strings.ReplaceAll(c.FormValue("code"), " ", ""))
	return s.codesOr(c, codes, err)
}

func (s *Server) pageRemoveTOTP(ctx context.Context, c echo.Context) error {
	return s.codesOr(c, nil, s.Accounts.RemoveTOTP(ctx, identity.FromContext(ctx).ID))
}

func (s *Server) pageSignOut(ctx context.Context, c echo.Context) error {
	var err error
	if c.FormValue("everywhere") != "" {
		err = s.Accounts.EndSessions(ctx, identity.FromContext(ctx).ID)
	} else {
		err = s.Accounts.CloseSession(ctx)
	}
	if err != nil {
		return err
	}
	c.SetCookie(&http.Cookie{Name: sessionCookie, Path: "/", MaxAge: -1, Secure: true, HttpOnly: true, SameSite: http.SameSiteLaxMode})
	return c.Redirect(http.StatusSeeOther, "/login")
}
