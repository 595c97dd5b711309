package server

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"time"

	"github.com/coreos/go-oidc/v3/oidc"
	"github.com/golang-jwt/jwt/v5"
	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"

	"keystead/coapgw"
	"keystead/fault"
	"keystead/outbound"
	"keystead/seal"
)

// ocfAuthority is the outside OAuth server that gives out the tokens of OCF devices: the one
// that all providers of the configuration name.
type ocfAuthority struct {
	url       string
	org       string   // whose devices it vouches for; "" for the default organisation
	audiences []string // one of which a token must be for; none sets no condition
	claims    coapgw.OCFConfig
	secrets   map[string]seal.Secret // of the clients, by provider
	client    *http.Client
	now       func() time.Time

	found discovery[ocfFound]
}

// ocfFound is an authority that has answered.
type ocfFound struct {
	provider *oidc.Provider
	keys     oidc.KeySet
}

const ocfLeeway = 30 * time.Second // by which the clock of an authority may be ahead

// newOCFAuthority returns the authority that the providers of c name, nil if
// they are this server itself.
func (s *Server) newOCFAuthority(c coapgw.OCFConfig) (*ocfAuthority, error) {
	if len(c.Providers) == 0 || c.Providers[0].Authority == "" {
		return nil, nil //nolint:nilnil // there is none
	}
	client, err := s.outbound()
	if err != nil {
		return nil, err
	}
	a := &ocfAuthority{
		url: c.Providers[0].Authority, org: c.Providers[0].Organisation, claims: c,
		secrets: map[string]seal.Secret{}, client: client.HTTP(), now: func() time.Time { return s.Now() },
	}
	a.found.now, a.found.gone = a.now, "the authorization server cannot be reached"
	if err := outbound.CheckURL(a.url, false); err != nil {
		return nil, fmt.Errorf("coap.ocf.providers: authority: %w", err)
	}
	for _, p := range c.Providers {
		if a.secrets[p.Name], err = s.secretFile(p.ClientSecretFile); err != nil {
			return nil, fmt.Errorf("coap.ocf.providers: %s: client_secret_file: %w", p.Name, err)
		}
		a.audiences = append(a.audiences, p.Audience)
	}
	if slices.Contains(a.audiences, "") { // a provider whose tokens may be for anybody
		a.audiences = nil
	}
	return a, nil
}

// discover returns what the authority says of itself, and its keys.
func (a *ocfAuthority) discover(ctx context.Context) (*oidc.Provider, oidc.KeySet, error) {
	found, err := a.found.get(ctx, a.ask)
	return found.provider, found.keys, err
}

func (a *ocfAuthority) ask(ctx context.Context) (f ocfFound, err error) {
	ctx = oidc.ClientContext(ctx, a.client)
	if f.provider, err = oidc.NewProvider(ctx, a.url); err != nil {
		return f, err
	}
	var at struct {
		Keys string `json:"jwks_uri"`
	}
	if err := f.provider.Claims(&at); err != nil || at.Keys == "" {
		return f, errors.Join(err, errors.New("the authorization server does not say where its keys are: no jwks_uri"))
	}
	f.keys = oidc.NewRemoteKeySet(ctx, at.Keys)
	return f, nil
}

// exchange trades the code a device signs up with for tokens.
func (a *ocfAuthority) exchange(ctx context.Context, p coapgw.OCFProvider, code string) (coapgw.OCFTokens, error) {
	if p.GrantType == coapgw.ClientCredentials {
		return a.stand(ctx, p, code)
	}
	found, _, err := a.discover(ctx)
	if err != nil {
		return coapgw.OCFTokens{}, err
	}
	var params []oauth2.AuthCodeOption
	if p.Audience != "" {
		params = append(params, oauth2.SetAuthURLParam("audience", p.Audience))
	}
	t, err := a.oauth(found, p).Exchange(oidc.ClientContext(ctx, a.client), code, params...)
	return a.tokens(t, err)
}

// refresh trades a refresh token for new tokens.
func (a *ocfAuthority) refresh(ctx context.Context, p coapgw.OCFProvider, token string) (coapgw.OCFTokens, error) {
	if p.GrantType == coapgw.ClientCredentials {
		return a.stand(ctx, p, token)
	}
	found, _, err := a.discover(ctx)
	if err != nil {
		return coapgw.OCFTokens{}, err
	}
	t, err := a.oauth(found, p).TokenSource(oidc.ClientContext(ctx, a.client), &oauth2.Token{RefreshToken: token}).Token()
	return a.tokens(t, err)
}

// stand has the client of a provider ask for a token of its own that stands for the owner
// and the device of one the device has, which is how the reference uses the grant. That
// token is its own refresh token.
func (a *ocfAuthority) stand(ctx context.Context, p coapgw.OCFProvider, token string) (coapgw.OCFTokens, error) {
	claims, err := a.verify(ctx, token)
	if err != nil {
		return coapgw.OCFTokens{}, err
	}
	found, _, err := a.discover(ctx)
	if err != nil {
		return coapgw.OCFTokens{}, err
	}
	params := map[string][]string{}
	for _, name := range []string{a.claims.OwnerClaim, a.claims.DeviceIDClaim} {
		if name == "" {
			continue
		}
		text, _ := claims[name].(string)
		if text == "" {
			return coapgw.OCFTokens{}, fault.New(fault.Unauthenticated, "the token lacks the claim %q", name)
		}
		params[name] = []string{text}
	}
	if p.Audience != "" {
		params["audience"] = []string{p.Audience}
	}
	conf := clientcredentials.Config{
		ClientID: p.ClientID, ClientSecret: string(a.secrets[p.Name]), TokenURL: found.Endpoint().TokenURL, Scopes: p.Scopes, EndpointParams: params,
	}
	t, err := conf.Token(oidc.ClientContext(ctx, a.client))
	if err == nil {
		t.RefreshToken = t.AccessToken
	}
	return a.tokens(t, err)
}

func (a *ocfAuthority) oauth(found *oidc.Provider, p coapgw.OCFProvider) *oauth2.Config {
	return &oauth2.Config{
		ClientID: p.ClientID, ClientSecret: string(a.secrets[p.Name]), Endpoint: found.Endpoint(), RedirectURL: p.RedirectURL, Scopes: p.Scopes,
	}
}

// refusalCode is what an error code of OAuth looks like (RFC 6749, 5.2).
var refusalCode = regexp.MustCompile(`^[a-z_]{1,64}$`)

// tokens returns what the authority gave. Of a refusal only its code goes on: the
// rest may repeat what it was sent.
func (a *ocfAuthority) tokens(t *oauth2.Token, err error) (coapgw.OCFTokens, error) {
	if refused, ok := errors.AsType[*oauth2.RetrieveError](err); ok {
		code := refused.ErrorCode
		if !refusalCode.MatchString(code) {
			code = "no error code"
		}
		return coapgw.OCFTokens{}, fault.New(fault.Unauthenticated, "the authorization server refuses: %s", code)
	}
	if err != nil {
		return coapgw.OCFTokens{}, fault.Wrap(fault.Unavailable, err, "the authorization server cannot be reached")
	}
	return coapgw.OCFTokens{Access: t.AccessToken, Refresh: t.RefreshToken, Expiry: t.Expiry}, nil
}

// verify returns the claims of an access token: a JWT signed by a key of the
// authority, in its time, and for one of the audiences.
func (a *ocfAuthority) verify(ctx context.Context, token string) (map[string]any, error) {
	_, keys, err := a.discover(ctx)
	if err != nil {
		return nil, err
	}
	watched := &watchedKeys{KeySet: keys}
	conf := &oidc.Config{SkipClientIDCheck: true, SkipExpiryCheck: true, SupportedSigningAlgs: providerAlgorithms, Now: a.now} // both are checked below
	verified, err := oidc.NewVerifier(a.url, watched, conf).Verify(ctx, token)
	switch {
	case watched.away:
		return nil, fault.Wrap(fault.Unavailable, err, "the keys of the authorization server cannot be fetched")
	case err != nil:
		return nil, fault.Wrap(fault.Unauthenticated, err, "the token is not valid")
	}
	claims := jwt.MapClaims{}
	if err := verified.Claims(&claims); err != nil {
		return nil, fault.Wrap(fault.Unauthenticated, err, "the token is not valid")
	}
	err = jwt.NewValidator(jwt.WithIssuer(a.url), jwt.WithIssuedAt(), jwt.WithLeeway(ocfLeeway), jwt.WithTimeFunc(a.now)).Validate(claims)
	if err != nil {
		return nil, fault.Wrap(fault.Unauthenticated, err, "the token is not valid")
	}
	switch exp, err := claims.GetExpirationTime(); {
	case err != nil || exp != nil && !a.now().Before(exp.Time): // no leeway for what is over
		return nil, fault.New(fault.Unauthenticated, "the token has expired")
	case exp == nil && !a.claims.TokensWithoutExpiry: // nobody here can end it
		return nil, fault.New(fault.Unauthenticated, "the token does not say when it expires")
	}
	aud, err := claims.GetAudience()
	if err != nil || a.audiences != nil && !slices.ContainsFunc(a.audiences, func(want string) bool { return slices.Contains(aud, want) }) {
		return nil, fault.New(fault.Unauthenticated, "the token is for somebody else")
	}
	return claims, nil
}

// watchedKeys notes whether a signature was not verified because the keys could
// not be fetched.
type watchedKeys struct {
	oidc.KeySet
	away bool
}

// VerifySignature implements [oidc.KeySet].
func (w *watchedKeys) VerifySignature(ctx context.Context, token string) ([]byte, error) {
	payload, err := w.KeySet.VerifySignature(ctx, token)
	_, w.away = errors.AsType[*url.Error](err)
	return payload, err
}
