package server

import (
	"context"
	"embed"
	"errors"
	"html/template"
	"maps"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/labstack/echo/v4"

	"keystead/accounts"
	"keystead/fault"
	"keystead/identity"
)

//go:embed pages
var pageFiles embed.FS

var pageTemplate = template.Must(template.ParseFS(pageFiles, "pages/page.html"))

// The server as a provider of OAuth 2.1 and OpenID Connect.
func (s *Server) authorizeRoutes() []route {
	return []route{
		{method: http.MethodGet, path: "/.well-known/openid-configuration", need: identity.Public, handle: s.discovery},
		{method: http.MethodGet, path: "/.well-known/oauth-authorization-server", need: identity.Public, handle: s.discovery},
		{method: http.MethodGet, path: "/oauth/authorize", need: identity.Public, handle: s.authorizePage},
		{method: http.MethodPost, path: "/oauth/authorize", need: identity.Public, handle: s.authorizeDecision, body: smallBody},
		{method: http.MethodPost, path: "/oauth/login", need: identity.Public, handle: s.pageLogIn, body: smallBody},
		{method: http.MethodDelete, path: "/oauth/login", need: identity.Public, handle: s.pageLogOut},
		{method: http.MethodPost, path: "/oauth/revoke", need: identity.Public, handle: s.revokeToken, wire: oauthProblem, body: smallBody},
		{method: http.MethodPost, path: "/oauth/introspect", need: identity.Public, handle: s.introspect, wire: oauthProblem, body: smallBody},
		{method: http.MethodGet, path: "/oauth/userinfo", need: identity.AccountRead, handle: s.userInfo},
		{method: http.MethodGet, path: "/oauth/clients", need: identity.OrgAdmin, handle: s.listClients},
		{method: http.MethodPost, path: "/oauth/clients", need: identity.OrgAdmin, handle: s.createClient, body: smallBody},
		{method: http.MethodDelete, path: "/oauth/clients/:id", need: identity.OrgAdmin, handle: s.deleteClient},
		{method: http.MethodGet, path: "/oauth/page.css", need: identity.Public, handle: s.pageFile},
		{method: http.MethodGet, path: "/oauth/page.js", need: identity.Public, handle: s.pageFile},
		{method: http.MethodGet, path: "/oauth/passkey.js", need: identity.Public, handle: s.pageFile},
		{method: http.MethodGet, path: "/setup", need: identity.Public, handle: accountPage(pageView{Title: "Set up the server", Form: "setup", AskEmail: true, AskPassword: true})},
		{method: http.MethodGet, path: "/reset", need: identity.Public, handle: accountPage(pageView{Title: "Set a new password", Form: "reset", AskPassword: true})},
		{method: http.MethodGet, path: "/invite", need: identity.Public, handle: accountPage(pageView{Title: "Accept the invite", Form: "invite", AskEmail: true, AskPassword: true})},
		{method: http.MethodGet, path: "/verify", need: identity.Public, handle: accountPage(pageView{Title: "Verify your address", Form: "verify"})},
	}
}

// discovery says where everything is (OpenID Connect Discovery 1.0, 3; RFC 8414).
func (s *Server) discovery(c echo.Context) error {
	base := strings.TrimSuffix(s.Config.PublicURL, "/")
	scopes := []string{"openid", "profile", "email", "offline_access"}
	for _, need := range identity.Permissions() {
		scopes = append(scopes, string(need))
	}
	c.Response().Header().Set("Cache-Control", "public, max-age=600")
	return c.JSON(http.StatusOK, map[string]any{
		"issuer":                                         s.Tokens.Config.Issuer,
		"authorization_endpoint":                         base + "/oauth/authorize",
		"token_endpoint":                                 base + "/oauth/token",
		"revocation_endpoint":                            base + "/oauth/revoke",
		"introspection_endpoint":                         base + "/oauth/introspect",
		"userinfo_endpoint":                              base + "/oauth/userinfo",
		"jwks_uri":                                       base + "/.well-known/jwks.json",
		"response_types_supported":                       []string{"code"},
		"grant_types_supported":                          []string{"authorization_code", "refresh_token", "client_credentials"},
		"subject_types_supported":                        []string{"public"},
		"id_token_signing_alg_values_supported":          []string{string(s.Tokens.Config.Algorithm)},
		"code_challenge_methods_supported":               []string{"S256"},
		"token_endpoint_auth_methods_supported":          []string{"client_secret_basic", "client_secret_post", "none"},
		"authorization_response_iss_parameter_supported": true,
		"scopes_supported":                               scopes,
	})
}

// pageView is what one of the pages shows.
type pageView struct {
	Title   string
	Problem string

	Login     bool
	Providers []string // outside ones, by name
	Query     string   // of the authorization request that goes on afterwards

	Consent  bool
	Client   string
	User     string
	Device   string
	Redirect string
	Scopes   []string

	Form                  string
	AskEmail, AskPassword bool

	Second   bool
	Ceremony *ceremonyView // for an authenticator; nil if there is none to ask
	Account  *accountView
	Stale    bool // changes need a second factor first
	Secret   string
	QR       template.HTML
	Codes    []string
	Wide     bool
}

// showPage answers with a page that no other site can frame, and that runs no
// script but the server's own. Forms lead here, and to sendTo.
func showPage(c echo.Context, status int, v pageView, sendTo string) error {
	h := c.Response().Header()
	h.Set("Content-Security-Policy", "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; base-uri 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; form-action 'self' "+sendTo)
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("X-Frame-Options", "DENY")
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cache-Control", "no-store")
	var out strings.Builder
	if err := pageTemplate.Execute(&out, v); err != nil {
		return err
	}
	return c.HTML(status, out.String())
}

func accountPage(v pageView) echo.HandlerFunc {
	return func(c echo.Context) error { return showPage(c, http.StatusOK, v, "") }
}

func (s *Server) pageFile(c echo.Context) error {
	name := strings.TrimPrefix(c.Request().URL.Path, "/oauth/")
	b, err := pageFiles.ReadFile("pages/" + name)
	if err != nil {
		return err
	}
	kind := "text/css; charset=utf-8"
	if strings.HasSuffix(name, ".js") {
		kind = "text/javascript; charset=utf-8"
	}
	c.Response().Header().Set("X-Content-Type-Options", "nosniff")
	return c.Blob(http.StatusOK, kind, b)
}

func authorization(q url.Values) accounts.Authorization {
	return accounts.Authorization{
		Client: q.Get("client_id"), Redirect: q.Get("redirect_uri"), Type: q.Get("response_type"), Scope: q.Get("scope"),
		State: q.Get("state"), Challenge: q.Get("code_challenge"), Method: q.Get("code_challenge_method"),
		Nonce: q.Get("nonce"), Device: q.Get("device_id"),
	}
}

// sessionCookie carries the session of a browser. Its name binds it to this host
// and to TLS.
const sessionCookie = "__Host-keystead"

// browser returns ctx with the user who has logged in with the browser, or false. The session
// that the console opens with an API key is not one: on these pages it would do what the
// key may not.
func (s *Server) browser(c echo.Context) (context.Context, bool) {
	cookie, err := c.Cookie(sessionCookie)
	if err != nil {
		return nil, false
	}
	ctx := c.Request().Context()
	a, err := s.Accounts.Resolve(ctx, identity.Proof{Scheme: "Session", Value: cookie.Value})
	if err != nil || a.Credential.Kind != identity.Session {
		return nil, false
	}
	return identity.NewContext(ctx, a), true
}

// sameOrigin refuses a form that another site sent.
func sameOrigin(c echo.Context) error {
	if err := http.NewCrossOriginProtection().Check(c.Request()); err != nil {
		return fault.Wrap(fault.Forbidden, err, "the form was sent by another site")
	}
	return nil
}

func (s *Server) authorizePage(c echo.Context) error {
	return s.authorizeStep(c, c.QueryString(), "")
}

// authorizeStep shows what comes next for an authorization request: the login, or
// the question whether to allow it.
func (s *Server) authorizeStep(c echo.Context, query, problem string) error {
	q, err := url.ParseQuery(query)
	if err != nil {
		return fault.New(fault.Invalid, "the request is not a query")
	}
	for name, values := range q {
		if len(values) > 1 {
			return fault.New(fault.Invalid, "the parameter %.40q is there twice", name)
		}
	}
	r := authorization(q)
	client, err := s.Accounts.CheckAuthorization(c.Request().Context(), r)
	if e, ok := errors.AsType[*accounts.OAuthError](err); ok {
		return s.sendBack(c, r, url.Values{"error": {e.Code}, "error_description": {e.Description}})
	}
	if err != nil {
		return err
	}
	ctx, in := s.browser(c)
	if !in {
		status := http.StatusOK
		if problem != "" {
			status = http.StatusUnauthorized
		}
		return s.askLogIn(c, status, query, problem)
	}
	v := pageView{
		Title: "Allow access?", Consent: true, Query: query, Client: client.Name, User: identity.FromContext(ctx).Name,
		Device: r.Device, Redirect: r.Redirect, Scopes: s.explain(client, r.Scope),
	}
	return showPage(c, http.StatusOK, v, formTarget(r.Redirect))
}

// explain lists what a request asks for, in words.
func (s *Server) explain(client accounts.Client, scope string) []string {
	words := []string{}
	for word := range strings.FieldsSeq(scope) {
		words = append(words, word)
	}
	if len(words) == 0 {
		for _, need := range client.Scopes {
			words = append(words, string(need))
		}
	}
	if len(words) == 0 {
		words = append(words, "everything that you may do in this organisation, except what needs you to be logged in")
	}
	return words
}

// formTarget is the source of a redirect URI as a content security policy names
// it: some browsers hold where a form's answer redirects to against it.
func formTarget(redirect string) string {
	u, err := url.Parse(redirect)
	if err != nil || strings.ContainsAny(u.Host, " ;,") {
		return ""
	}
	if u.Scheme == "https" || u.Scheme == "http" {
		return u.Scheme + "://" + u.Host
	}
	return u.Scheme + ":"
}

// redirectTarget is formTarget of an authorization request that was checked, "" for none.
func redirectTarget(query string) string {
	q, err := url.ParseQuery(query)
	if err != nil || query == "" {
		return ""
	}
	return formTarget(q.Get("redirect_uri"))
}

// sendBack answers the client through the browser (RFC 6749, 4.1.2; RFC 9207).
func (s *Server) sendBack(c echo.Context, r accounts.Authorization, v url.Values) error {
	u, err := url.Parse(r.Redirect)
	if err != nil {
		return err
	}
	q := u.Query()
	maps.Copy(q, v)
	if r.State != "" {
		q.Set("state", r.State)
	}
	q.Set("iss", s.Tokens.Config.Issuer)
	u.RawQuery = q.Encode()
	c.Response().Header().Set("Referrer-Policy", "no-referrer")
	c.Response().Header().Set("Cache-Control", "no-store")
	return c.Redirect(http.StatusSeeOther, u.String())
}

func (s *Server) authorizeDecision(c echo.Context) error {
	if err := sameOrigin(c); err != nil {
		return err
	}
	query := c.FormValue("query")
	q, err := url.ParseQuery(query)
	if err != nil {
		return fault.New(fault.Invalid, "the request is not a query")
	}
	ctx, in := s.browser(c)
	if !in {
		return s.authorizeStep(c, query, "Your session has ended; log in again.")
	}
	r := authorization(q)
	if _, err := s.Accounts.CheckAuthorization(ctx, r); err != nil {
		return s.authorizeStep(c, query, "")
	}
	if c.FormValue("decision") != "allow" {
		return s.sendBack(c, r, url.Values{"error": {"access_denied"}})
	}
	code, err := s.Accounts.Approve(ctx, r)
	if e, ok := errors.AsType[*accounts.OAuthError](err); ok {
		return s.sendBack(c, r, url.Values{"error": {e.Code}, "error_description": {e.Description}})
	}
	if err != nil {
		return err
	}
	return s.sendBack(c, r, url.Values{"code": {string(code)}})
}

func (s *Server) pageLogIn(c echo.Context) error {
	if err := sameOrigin(c); err != nil {
		return err
	}
	ctx := c.Request().Context()
	next := c.FormValue("next")
	u, factor, err := s.Accounts.LogIn(ctx, accounts.Attempt{
		Email: c.FormValue("email"), Password: c.FormValue("password"), Code: c.FormValue("code"), From: s.ClientAddr(c.Request()),
	})
	switch {
	case errors.Is(err, accounts.ErrSecondFactor):
		return s.askSecond(c, http.StatusOK, u.ID, next, "")
	case fault.Is(err, fault.Unauthenticated):
		return s.logInAgain(c, next, "The address, the password or the code is not right.")
	case fault.Is(err, fault.TooMany):
		return s.logInAgain(c, next, "There were too many failed attempts; wait a while.")
	case err != nil:
		return err
	}
	return s.openSession(c, u, factor, next)
}

// logInAgain shows the login with what was wrong, for an authorization request that
// is checked again, or for none.
func (s *Server) logInAgain(c echo.Context, next, problem string) error {
	if next == "" {
		return s.askLogIn(c, http.StatusUnauthorized, "", problem)
	}
	return s.authorizeStep(c, next, problem)
}

func (s *Server) pageLogOut(c echo.Context) error {
	if err := sameOrigin(c); err != nil {
		return err
	}
	if ctx, in := s.browser(c); in {
		if err := s.Accounts.CloseSession(ctx); err != nil {
			return err
		}
	}
	c.SetCookie(&http.Cookie{Name: sessionCookie, Path: "/", MaxAge: -1, Secure: true, HttpOnly: true, SameSite: http.SameSiteLaxMode})
	return c.NoContent(http.StatusNoContent)
}

// clientProof reads how the client authenticates: by Basic, or in the form.
func (s *Server) clientProof(c echo.Context, form url.Values) (accounts.ClientProof, error) {
	p := accounts.ClientProof{ID: form.Get("client_id"), Secret: form.Get("client_secret"), From: s.ClientAddr(c.Request())}
	user, password, ok := c.Request().BasicAuth()
	if !ok {
		return p, nil
	}
	if p.Secret != "" {
		return p, &oauthError{http.StatusBadRequest, "invalid_request", "authenticate in one way, not in two"}
	}
	id, err := url.QueryUnescape(user)
	secret, err2 := url.QueryUnescape(password)
	if err != nil || err2 != nil || p.ID != "" && p.ID != id {
		return p, &oauthError{http.StatusBadRequest, "invalid_request", "the client named is not the one that authenticates"}
	}
	p.ID, p.Secret = id, secret
	return p, nil
}

// oauthWire turns the errors of grants into those of the endpoints.
func oauthWire(c echo.Context, err error) error {
	e, ok := errors.AsType[*accounts.OAuthError](err)
	if !ok {
		return err
	}
	status := http.StatusBadRequest
	if e.Code == "invalid_client" {
		status = http.StatusUnauthorized
		c.Response().Header().Set("WWW-Authenticate", `Basic realm="keystead"`)
	}
	return &oauthError{status, e.Code, e.Description}
}

func (s *Server) grantCode(c echo.Context, form url.Values) error {
	p, err := s.clientProof(c, form)
	if err != nil {
		return err
	}
	set, err := s.Accounts.Exchange(c.Request().Context(), p, form.Get("code"), form.Get("redirect_uri"), form.Get("code_verifier"))
	return writeTokens(c, set, err)
}

func (s *Server) grantClient(c echo.Context, form url.Values) error {
	p, err := s.clientProof(c, form)
	if err != nil {
		return err
	}
	set, err := s.Accounts.ClientCredentials(c.Request().Context(), p, form.Get("scope"))
	return writeTokens(c, set, err)
}

// grantUserRefresh is for the refresh tokens of OAuth clients.
func (s *Server) grantUserRefresh(c echo.Context, form url.Values) error {
	p, err := s.clientProof(c, form)
	if err != nil {
		return err
	}
	set, err := s.Accounts.Refresh(c.Request().Context(), p, form.Get("refresh_token"))
	return writeTokens(c, set, err)
}

func writeTokens(c echo.Context, set accounts.TokenSet, err error) error {
	if err != nil {
		return oauthWire(c, err)
	}
	return c.JSON(http.StatusOK, struct {
		AccessToken  string `json:"access_token"`
		TokenType    string `json:"token_type"`
		ExpiresIn    int    `json:"expires_in"`
		RefreshToken string `json:"refresh_token,omitempty"`
		IDToken      string `json:"id_token,omitempty"`
		Scope        string `json:"scope,omitempty"`
	}{set.Access, "Bearer", int(set.ExpiresIn.Seconds()), string(set.Refresh), set.ID, joinNeeds(set.Scopes)})
}

func joinNeeds(list []identity.Need) string {
	words := make([]string, len(list))
	for i, need := range list {
		words[i] = string(need)
	}
	return strings.Join(words, " ")
}

func (s *Server) revokeToken(c echo.Context) error {
	form, err := tokenForm(c)
	if err != nil {
		return err
	}
	p, err := s.clientProof(c, form)
	if err != nil {
		return err
	}
	if err := s.Accounts.RevokeToken(c.Request().Context(), p, form.Get("token")); err != nil {
		return oauthWire(c, err)
	}
	return c.NoContent(http.StatusOK)
}

func (s *Server) introspect(c echo.Context) error {
	form, err := tokenForm(c)
	if err != nil {
		return err
	}
	if scheme, _, _ := strings.Cut(c.Request().Header.Get("Authorization"), " "); strings.EqualFold(scheme, "Bearer") {
		return s.introspectBy(c, form.Get("token"))
	}
	p, err := s.clientProof(c, form)
	if err != nil {
		return err
	}
	i, err := s.Accounts.Introspect(c.Request().Context(), p, form.Get("token"))
	if err != nil {
		return oauthWire(c, err)
	}
	noStore(c)
	if !i.Active {
		return c.JSON(http.StatusOK, map[string]bool{"active": false})
	}
	v := map[string]any{"active": true, "sub": i.Subject, "scope": i.Scope, "org_id": i.Org, "token_type": i.Type, "iss": s.Tokens.Config.Issuer}
	for name, value := range map[string]string{"client_id": i.Client, "device_id": i.Device} {
		if value != "" {
			v[name] = value
		}
	}
	if !i.ExpiresAt.IsZero() {
		v["exp"] = i.ExpiresAt.Unix()
	}
	return c.JSON(http.StatusOK, v)
}

func (s *Server) userInfo(c echo.Context) error {
	ctx := c.Request().Context()
	u, err := s.Accounts.User(ctx, identity.FromContext(ctx).ID)
	if err != nil {
		return err
	}
	v := map[string]any{"sub": u.ID, "name": identity.FromContext(ctx).Name}
	if u.Email != "" {
		v["email"], v["email_verified"] = u.Email, u.Verified
	}
	return c.JSON(http.StatusOK, v)
}

type clientView struct {
	ID        string          `json:"id"`
	Name      string          `json:"name"`
	Public    bool            `json:"public"`
	Secret    string          `json:"secret,omitempty"`
	Redirects []string        `json:"redirect_uris"`
	Scopes    []identity.Need `json:"scopes,omitempty"`
	Role      identity.Role   `json:"role,omitempty"`
	Devices   bool            `json:"devices"`
	CreatedAt time.Time       `json:"created_at"`
}

func viewClient(c accounts.Client) clientView {
	return clientView{
		ID: c.ID, Name: c.Name, Public: c.Hash == nil, Redirects: orEmpty(c.Redirects), Scopes: c.Scopes, Role: c.Role,
		Devices: c.Devices, CreatedAt: c.CreatedAt,
	}
}

func (s *Server) listClients(c echo.Context) error {
	list, err := s.Accounts.Clients(c.Request().Context())
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, map[string]any{"clients": views(list, viewClient)})
}

func (s *Server) createClient(c echo.Context) error {
	var in struct {
		Name      string          `json:"name"`
		Public    bool            `json:"public"`
		Redirects []string        `json:"redirect_uris"`
		Scopes    []identity.Need `json:"scopes"`
		Role      identity.Role   `json:"role"`
		Devices   bool            `json:"devices"`
	}
	if err := bind(c, &in); err != nil {
		return err
	}
	client, secret, err := s.Accounts.CreateClient(c.Request().Context(), accounts.NewClient(in))
	if err != nil {
		return err
	}
	v := viewClient(client)
	v.Secret = string(secret)
	noStore(c)
	return c.JSON(http.StatusCreated, v)
}

func (s *Server) deleteClient(c echo.Context) error {
	return done(c, s.Accounts.DeleteClient(c.Request().Context(), c.Param("id")))
}
