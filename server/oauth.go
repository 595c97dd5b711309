package server

import (
	"errors"
	"mime"
	"net/http"
	"net/url"
	"strings"

	"github.com/labstack/echo/v4"

	"keystead/accesskeys"
	"keystead/accounts"
	"keystead/fault"
	"keystead/identity"
)

func (s *Server) oauthRoutes() []route {
	return []route{
		{method: http.MethodPost, path: "/oauth/token", need: identity.Public, handle: s.token, wire: oauthProblem},
	}
}

// grants are the ways to a token, by grant_type. Each answers the request itself.
var grants = map[string]func(*Server, echo.Context, url.Values) error{
	"password":           (*Server).grantAccessKey,
	"refresh_token":      (*Server).grantRefresh,
	"authorization_code": (*Server).grantCode,
	"client_credentials": (*Server).grantClient,
}

// token exchanges a grant for tokens (RFC 6749, 3.2).
func (s *Server) token(c echo.Context) error {
	form, err := tokenForm(c)
	if err != nil {
		return err
	}
	c.Response().Header().Set("Cache-Control", "no-store")
	c.Response().Header().Set("Pragma", "no-cache")
	grant, ok := grants[strings.ToLower(form.Get("grant_type"))]
	if !ok {
		return &oauthError{http.StatusBadRequest, "unsupported_grant_type", "grant_type is missing or not one this server has"}
	}
	return grant(s, c, form)
}

// tokenForm reads the form of a token request, in which nothing stands twice.
func tokenForm(c echo.Context) (url.Values, error) {
	kind, _, err := mime.ParseMediaType(c.Request().Header.Get("Content-Type"))
	if err != nil || kind != echo.MIMEApplicationForm {
		return nil, &oauthError{http.StatusBadRequest, "invalid_request", "send the parameters as " + echo.MIMEApplicationForm}
	}
	if err := c.Request().ParseForm(); err != nil {
		if e, ok := errors.AsType[*http.MaxBytesError](err); ok {
			return nil, tooLarge(e.Limit)
		}
		return nil, &oauthError{http.StatusBadRequest, "invalid_request", "the body is not a form"}
	}
	form := c.Request().PostForm
	for name, values := range form {
		if len(values) > 1 {
			return nil, &oauthError{http.StatusBadRequest, "invalid_request", "the parameter " + name + " is there twice"}
		}
	}
	return form, nil
}

// grantAccessKey is CreatorDev's login: an access key and its secret.
func (s *Server) grantAccessKey(c echo.Context, form url.Values) error {
	t, err := s.AccessKeys.Exchange(c.Request().Context(), form.Get("username"), form.Get("password"))
	if fault.Is(err, fault.Unauthenticated) {
		return &oauthError{http.StatusUnauthorized, "invalid_grant", fault.Message(err)}
	}
	if err != nil {
		return err
	}
	return viewTokens(t).write(c, http.StatusCreated)
}

// grantRefresh takes the refresh tokens of every kind; which it is shows in the
// token.
func (s *Server) grantRefresh(c echo.Context, form url.Values) error {
	if accounts.OwnsRefresh(form.Get("refresh_token")) {
		return s.grantUserRefresh(c, form)
	}
	t, err := s.AccessKeys.Refresh(c.Request().Context(), form.Get("refresh_token"))
	if fault.Is(err, fault.Invalid) {
		return &oauthError{http.StatusBadRequest, "invalid_grant", fault.Message(err)}
	}
	if err != nil {
		return err
	}
	return viewTokens(t).write(c, http.StatusCreated)
}

func viewTokens(t accesskeys.Tokens) resource {
	return resource{root: "OAuthToken", media: "oauthtoken", members: []member{
		{"access_token", string(t.Access)},
		{"token_type", "Bearer"},
		{"expires_in", int(t.ExpiresIn.Seconds())},
		{"refresh_token", string(t.Refresh)},
	}}
}

// oauthError is an error of the token endpoint (RFC 6749, 5.2).
type oauthError struct {
	status      int
	code        string
	description string
}

func (e *oauthError) Error() string { return e.code + ": " + e.description }

// oauthProblem writes an error as RFC 6749 has it. It is the wire of the OAuth
// endpoints.
func oauthProblem(c echo.Context, status int, p problem) error {
	return c.JSON(status, map[string]string{"error": p.Code, "error_description": p.Error})
}
