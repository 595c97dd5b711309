package server

import (
	"encoding/json"
	"errors"
	"net/http"
	"net/netip"
	"time"

	"github.com/labstack/echo/v4"

	"keystead/accounts"
	"keystead/audit"
	"keystead/fault"
	"keystead/identity"
	"keystead/seal"
)

// The session of a browser that administers: an HttpOnly cookie, which stands for a record
// that ends with its user, or with the API key it was opened with. What comes by the cookie
// has to come from the pages of this server; docs/decisions/0090 says why.

// consoleCookie carries it. Its name binds it to this host and to TLS.
const consoleCookie = "__Host-keystead-console"

// sessionScheme is how a proof says that the credential is the session of a browser. No
// header can: sessions come as cookies only, and are held to where the request came from.
const sessionScheme = "Session"

func (s *Server) browserRoutes() []route {
	return []route{
		{method: http.MethodGet, path: "/api/v1/session", need: identity.Public, handle: s.showBrowser},
		{method: http.MethodPost, path: "/api/v1/session", need: identity.Public, handle: s.openBrowser, body: smallBody},
		{method: http.MethodDelete, path: "/api/v1/session", need: identity.Public, handle: s.closeBrowser},
	}
}

// cookieProof fills p with the session of the browser that sent r, if it has one.
func cookieProof(r *http.Request, p *identity.Proof) error {
	text := sessionOf(r)
	if text == "" {
		return nil
	}
	if err := fromHere(r); err != nil {
		return err
	}
	p.Scheme, p.Value = sessionScheme, text
	return nil
}

// sessionOf is the session that the browser which sent r shows, "" if it has none.
func sessionOf(r *http.Request) string {
	for _, c := range r.CookiesNamed(consoleCookie) {
		return c.Value
	}
	return ""
}

// fromHere refuses a request that carries a browser's session and that a page of this server
// did not send. SameSite=Strict keeps other sites out; this keeps out the other origins
// of the same site, such as what is served on another port of the same host, and asks
// those that change something to say where they come from.
func fromHere(r *http.Request) error {
	site := r.Header.Get("Sec-Fetch-Site")
	switch {
	case site != "" && site != "same-origin" && site != "none":
		return errCrossOrigin
	case r.Method == http.MethodGet, r.Method == http.MethodHead:
		return nil
	case site == "" && r.Header.Get("Origin") == "":
		return errCrossOrigin
	}
	if err := http.NewCrossOriginProtection().Check(r); err != nil {
		return errCrossOrigin
	}
	return nil
}

var errCrossOrigin = fault.New(fault.Forbidden, "a page of another origin sent this request with the session of your browser; nothing was done")

// showBrowser says who is signed in, and that nobody is where nobody is: for a page that
// begins, neither is a fault.
func (s *Server) showBrowser(c echo.Context) error {
	noStore(c)
	if sessionOf(c.Request()) == "" {
		return c.NoContent(http.StatusNoContent)
	}
	err := s.prove(c)
	if fault.Is(err, fault.Unauthenticated) {
		setSession(c, "", time.Time{})
		return c.NoContent(http.StatusNoContent)
	}
	if err != nil {
		return err
	}
	return s.whoami(c)
}

type browserLogin struct {
	Email    string `json:"email"`
	Password string `json:"password"`
	Code     string `json:"code"` // of the second factor, where one is set up
	APIKey   string `json:"api_key"`

	// The answer to what /tokens/passkey/begin asked, as /tokens/passkey takes it.
	State      string          `json:"state"`
	Credential json.RawMessage `json:"credential"`
	Second     bool            `json:"second_factor"` // the question came after a password
}

// openBrowser signs a browser in, with an account, a passkey or an API key, and answers with
// who that is. The answer has the session in a cookie, where no script can read it.
func (s *Server) openBrowser(c echo.Context) error {
	if !s.Config.Console.Enabled {
		return fault.New(fault.NotFound, "the console is switched off here (console.enabled)")
	}
	if err := http.NewCrossOriginProtection().Check(c.Request()); err != nil {
		return errCrossOrigin
	}
	var in browserLogin
	if err := bind(c, &in); err != nil {
		return err
	}
	text, expires, err := s.logInBrowser(c, in)
	if err != nil {
		return err
	}
	return s.giveSession(c, text, expires)
}

func (s *Server) logInBrowser(c echo.Context, in browserLogin) (seal.Secret, time.Time, error) {
	if in.APIKey != "" {
		return s.logInBrowserByKey(c, in.APIKey)
	}
	u, factor, err := s.logInPerson(c, in)
	if err != nil {
		return nil, time.Time{}, err
	}
	return s.Accounts.OpenSession(c.Request().Context(), u, factor)
}

func (s *Server) logInBrowserByKey(c echo.Context, key string) (seal.Secret, time.Time, error) {
	ctx := c.Request().Context()
	p := identity.Proof{Transport: identity.HTTPS, Scheme: "Bearer", Remote: netip.AddrPortFrom(s.ClientAddr(c.Request()), 0)}
	if err := s.mayProve(p); err != nil {
		return nil, time.Time{}, err
	}
	text, expires, err := s.Accounts.OpenKeySession(ctx, key, p.Remote)
	if errors.Is(err, identity.ErrNotMine) {
		err = accounts.ErrUnauthenticated
	}
	if fault.Is(err, fault.Unauthenticated) {
		s.noteFailure(p, "api_key", identity.RequestID(ctx))
		err = fault.Wrap(fault.Unauthenticated, err, "this is not an API key that is good here")
	}
	return text, expires, err
}

// logInPerson logs in who shows a passkey, or a password, and says when a second factor was
// shown, if one was.
func (s *Server) logInPerson(c echo.Context, in browserLogin) (accounts.User, time.Time, error) {
	if in.State != "" {
		u, factor, err := s.answer(c, in.Second, accounts.Second{State: in.State, Code: in.Code, Answer: in.Credential})
		if errors.Is(err, accounts.ErrUnauthenticated) {
			err = fault.Wrap(fault.Unauthenticated, err, "the passkey is not one of an account here")
		}
		return u, factor, err
	}
	u, factor, err := s.Accounts.LogIn(c.Request().Context(), accounts.Attempt{Email: in.Email, Password: in.Password, Code: in.Code, From: s.ClientAddr(c.Request())})
	switch {
	case errors.Is(err, accounts.ErrSecondFactor):
		err = &oauthError{http.StatusUnauthorized, "second_factor", fault.Message(err)}
	case fault.Is(err, fault.Unauthenticated):
		err = fault.Wrap(fault.Unauthenticated, err, "the address, the password or the code is not right")
	}
	return u, factor, err
}

// giveSession answers with a session in a cookie, in place of the one the browser had, and
// with who it stands for. It is where every way to sign in to the console ends.
func (s *Server) giveSession(c echo.Context, text seal.Secret, expires time.Time) error {
	ctx := c.Request().Context()
	if err := s.Accounts.EndSession(ctx, sessionOf(c.Request())); err != nil {
		return err
	}
	a, err := s.Accounts.Resolve(ctx, identity.Proof{Scheme: sessionScheme, Value: string(text), Remote: netip.AddrPortFrom(s.ClientAddr(c.Request()), 0)})
	if err != nil {
		return err
	}
	setSession(c, string(text), expires)
	noStore(c)
	return c.JSON(http.StatusCreated, viewWhoami(a))
}

// closeBrowser signs a browser out.
func (s *Server) closeBrowser(c echo.Context) error {
	if text := sessionOf(c.Request()); text != "" {
		if err := fromHere(c.Request()); err != nil {
			return err
		}
		if err := s.Accounts.EndSession(c.Request().Context(), text); err != nil {
			return err
		}
	}
	setSession(c, "", time.Time{})
	return c.NoContent(http.StatusNoContent)
}

// setSession sets the cookie; with no text, and a time that is over, it is taken away.
func setSession(c echo.Context, text string, expires time.Time) {
	if text == "" {
		expires = time.Unix(1, 0)
	}
	c.SetCookie(&http.Cookie{Name: consoleCookie, Value: text, Path: "/", Expires: expires, Secure: true, HttpOnly: true, SameSite: http.SameSiteStrictMode})
}

// noteFailure counts a proof that was no good, as those of other routes are.
func (s *Server) noteFailure(p identity.Proof, how, requestID string) {
	s.limits.failures.take(attempt{source(p.Remote.Addr()), scheme(p)}, s.Now())
	s.metrics.failures.WithLabelValues("https", how).Inc()
	s.Audit.Fail(audit.Failure{Surface: "https", Reason: how, Remote: p.Remote.Addr().String(), Request: requestID})
}
