package server

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/labstack/echo/v4"
	"golang.org/x/oauth2"

	"keystead/accounts"
	"keystead/fault"
	"keystead/identity"
	"keystead/seal"
)

// Limits on what an outside provider may take: time, and bytes of an answer.
const (
	providerTimeout = 10 * time.Second
	providerAnswer  = 1 << 20
	loginFlow       = 10 * time.Minute // from the first redirect to the callback
)

// providerAlgorithms are how ID tokens may be signed: nothing symmetric, and
// never nothing.
var providerAlgorithms = []string{oidc.RS256, oidc.ES256, oidc.PS256, oidc.EdDSA}

// outsideLogin is a provider with what was found out about it. A provider that is
// away when the server starts is asked again by the next login.
type outsideLogin struct {
	accounts.Provider
	secret seal.Secret
	client *http.Client

	found discovery[*oidc.Provider]
}

// buildProviders reads the secrets of the outside providers; it asks none of them.
func (s *Server) buildProviders(context.Context) error {
	s.providers = map[string]*outsideLogin{}
	for _, p := range s.Config.Accounts.OIDC {
		secret, err := s.secretFile(p.ClientSecretFile)
		if err != nil {
			return fmt.Errorf("accounts.oidc: %s: %w", p.Name, err)
		}
		found := &outsideLogin{Provider: p, secret: secret, client: &http.Client{
			Timeout: providerTimeout, Transport: bounded{http.DefaultTransport},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		}}
		found.found.now, found.found.gone = func() time.Time { return s.Now() }, "the login provider cannot be reached; try again"
		s.providers[p.Name] = found
	}
	return nil
}

// bounded cuts answers off.
type bounded struct{ http.RoundTripper }

// RoundTrip implements [http.RoundTripper].
func (b bounded) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := b.RoundTripper.RoundTrip(r)
	if err == nil {
		resp.Body = struct {
			io.Reader
			io.Closer
		}{io.LimitReader(resp.Body, providerAnswer), resp.Body}
	}
	return resp, err
}

// discover returns what the provider says of itself, asked once it is needed.
func (p *outsideLogin) discover(ctx context.Context) (*oidc.Provider, error) {
	return p.found.get(ctx, func(ctx context.Context) (*oidc.Provider, error) {
		return oidc.NewProvider(oidc.ClientContext(ctx, p.client), p.Issuer)
	})
}

func (p *outsideLogin) oauth(found *oidc.Provider, public string) *oauth2.Config {
	return &oauth2.Config{
		ClientID: p.ClientID, ClientSecret: string(p.secret), Endpoint: found.Endpoint(),
		RedirectURL: strings.TrimSuffix(public, "/") + "/users/oauth/" + p.Name + "/callback",
		Scopes:      append([]string{oidc.ScopeOpenID, "profile", "email"}, p.Scopes...),
	}
}

func (s *Server) providerRoutes() []route {
	return []route{
		{method: http.MethodGet, path: "/users/oauth/:provider", need: identity.Public, handle: s.beginOutside},
		{method: http.MethodGet, path: "/users/oauth/:provider/callback", need: identity.Public, handle: s.endOutside},
	}
}

// flow is what the browser carries, sealed, from the first redirect to the callback.
type flow struct {
	Provider string
	State    string
	Nonce    string
	Verifier string
	Next     string // the query of the authorization request that goes on afterwards
	Until    time.Time
}

const flowCookie = "__Host-keystead-login"

func (s *Server) provider(c echo.Context) (*outsideLogin, error) {
	p, ok := s.providers[c.Param("provider")]
	if !ok {
		return nil, fault.New(fault.NotFound, "there is no such login provider")
	}
	return p, nil
}

// beginOutside sends the browser to the provider, with a proof key, a state and a nonce.
func (s *Server) beginOutside(c echo.Context) error {
	p, err := s.provider(c)
	if err != nil {
		return err
	}
	found, err := p.discover(c.Request().Context())
	if err != nil {
		return err
	}
	f := flow{
		Provider: p.Name, State: string(seal.Random62(32)), Nonce: string(seal.Random62(32)), Verifier: oauth2.GenerateVerifier(),
		Next: c.QueryParam("next"), Until: s.Now().Add(loginFlow),
	}
	if len(f.Next) > 2048 {
		return fault.New(fault.Invalid, "next is too long")
	}
	b, err := json.Marshal(f)
	if err != nil {
		return err
	}
	sealed := s.keys.Box("login flow").Seal(flowCookie, b)
	c.SetCookie(&http.Cookie{
		Name: flowCookie, Value: base64.RawURLEncoding.EncodeToString(sealed), Path: "/", MaxAge: int(loginFlow.Seconds()),
		Secure: true, HttpOnly: true, SameSite: http.SameSiteLaxMode,
	})
	noStore(c)
	to := p.oauth(found, s.Config.PublicURL).AuthCodeURL(f.State, oidc.Nonce(f.Nonce), oauth2.S256ChallengeOption(f.Verifier))
	return c.Redirect(http.StatusSeeOther, to)
}

var errFlow = fault.New(fault.Invalid, "the login was not begun in this browser, or took too long; begin again")

// flow returns what the browser carries, once.
func (s *Server) flow(c echo.Context) (f flow, err error) {
	cookie, err := c.Cookie(flowCookie)
	if err != nil {
		return f, errFlow
	}
	c.SetCookie(&http.Cookie{Name: flowCookie, Path: "/", MaxAge: -1, Secure: true, HttpOnly: true, SameSite: http.SameSiteLaxMode})
	sealed, err := base64.RawURLEncoding.DecodeString(cookie.Value)
	if err != nil {
		return f, errFlow
	}
	b, err := s.keys.Box("login flow").Open(flowCookie, sealed)
	if err != nil || json.Unmarshal(b, &f) != nil || !s.Now().Before(f.Until) {
		return f, errFlow
	}
	return f, nil
}

// endOutside takes the provider's answer, and opens a session.
func (s *Server) endOutside(c echo.Context) error {
	p, err := s.provider(c)
	if err != nil {
		return err
	}
	f, err := s.flow(c)
	if err != nil {
		return err
	}
	if f.Provider != p.Name || f.State == "" || c.QueryParam("state") != f.State {
		return errFlow
	}
	ctx := c.Request().Context()
	e, err := p.exchange(ctx, s.Config.PublicURL, c.QueryParam("code"), f, s.Now)
	if err != nil {
		return err
	}
	e.From = s.ClientAddr(c.Request())
	u, err := s.Accounts.LogInExternal(ctx, p.Provider, e)
	if err != nil {
		return err
	}
	// A second factor here is given here, whatever the provider asked for.
	return s.openSession(c, u, time.Time{}, f.Next)
}

// exchange gives the code for an ID token and returns who that says it is.
func (p *outsideLogin) exchange(ctx context.Context, public, code string, f flow, now func() time.Time) (e accounts.External, err error) {
	found, err := p.discover(ctx)
	if err != nil {
		return e, err
	}
	refused := func(err error) error {
		return fault.Wrap(fault.Unauthenticated, err, "the login provider did not confirm who you are")
	}
	ctx = oidc.ClientContext(ctx, p.client)
	token, err := p.oauth(found, public).Exchange(ctx, code, oauth2.VerifierOption(f.Verifier))
	if err != nil {
		if _, ok := errors.AsType[*oauth2.RetrieveError](err); ok {
			return e, refused(err)
		}
		return e, fault.Wrap(fault.Unavailable, err, "the login provider cannot be reached; try again")
	}
	raw, ok := token.Extra("id_token").(string)
	if !ok {
		return e, refused(errors.New("its answer has no ID token"))
	}
	idToken, err := found.VerifierContext(ctx, &oidc.Config{ClientID: p.ClientID, SupportedSigningAlgs: providerAlgorithms, Now: now}).Verify(ctx, raw)
	if err != nil {
		return e, refused(err)
	}
	if idToken.Nonce != f.Nonce {
		return e, refused(errors.New("its ID token is of another login"))
	}
	var claims map[string]any
	if err := idToken.Claims(&claims); err != nil {
		return e, refused(err)
	}
	return p.external(idToken, claims), nil
}

func (p *outsideLogin) external(t *oidc.IDToken, claims map[string]any) accounts.External {
	e := accounts.External{Issuer: t.Issuer, Subject: t.Subject}
	e.Email, _ = claims["email"].(string)
	e.EmailVerified, _ = claims["email_verified"].(bool)
	e.Name, _ = claims["name"].(string)
	name := p.GroupsClaim
	if name == "" {
		name = "groups"
	}
	list, _ := claims[name].([]any)
	for _, v := range list {
		if group, ok := v.(string); ok {
			e.Groups = append(e.Groups, group)
		}
	}
	return e
}

// providerNames lists the outside providers, for the login page.
func (s *Server) providerNames() []string {
	var names []string
	for name := range s.providers {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}
