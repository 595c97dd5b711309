package accounts

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"time"

	"keystead/fault"
	"keystead/id"
	"keystead/identity"
	"keystead/seal"
	"keystead/store"
	"keystead/throttle"
)

// Client is an OAuth client of an organisation.
type Client struct {
	ID        string          `cbor:"id"`
	Org       string          `cbor:"org"`
	Name      string          `cbor:"name"`
	Hash      []byte          `cbor:"hash,omitempty"` // of its secret; nil for a public client
	Redirects []string        `cbor:"redirects,omitempty"`
	Scopes    []identity.Need `cbor:"scopes,omitempty"` // the most a token of it may have; nil for no limit
	Role      identity.Role   `cbor:"role,omitempty"`   // of the client itself, by client_credentials; none: not allowed
	Devices   bool            `cbor:"devices,omitempty"`
	CreatedBy string          `cbor:"by"`
	CreatedAt time.Time       `cbor:"created"`
}

// consent is what a user granted to a client: the record that the code, the
// refresh token and every access token that came of it rest on.
type consent struct {
	ID      string          `cbor:"id"`
	Client  string          `cbor:"client"`
	User    string          `cbor:"user"`
	Org     string          `cbor:"org"`
	Epoch   uint64          `cbor:"epoch"` // of the user
	Scopes  []identity.Need `cbor:"scopes,omitempty"`
	OpenID  bool            `cbor:"openid,omitempty"`
	Device  string          `cbor:"device,omitempty"`
	Nonce   string          `cbor:"nonce,omitempty"`
	Created time.Time       `cbor:"created"`
	Expires time.Time       `cbor:"expires"`

	Code        []byte    `cbor:"code,omitempty"` // hash
	CodeUsed    bool      `cbor:"used,omitempty"`
	CodeExpires time.Time `cbor:"codeexp"`
	Redirect    string    `cbor:"redirect,omitempty"`
	Challenge   string    `cbor:"challenge,omitempty"`

	Refresh []byte `cbor:"refresh,omitempty"` // hash of the one that is good
}

var (
	clientTable = store.NewTable("OAuth client",
		store.Index[Client]{Name: "org", Counted: true, Terms: func(c Client) []store.Term { return store.Terms(c.Org) }},
	)
	consentTable = store.NewTable("OAuth grant",
		store.Index[consent]{Name: "client", Terms: func(c consent) []store.Term { return store.Terms(c.Client) }},
		store.Index[consent]{Name: "user", Terms: func(c consent) []store.Term { return store.Terms(c.User) }},
		store.Index[consent]{Name: "expires", Terms: func(c consent) []store.Term { return store.Terms("", c.Expires.UTC().Format(time.RFC3339)) }},
	)
)

// Words of tickets, and lifetimes.
const (
	clientKind  = "client"
	codeKind    = "code"
	refreshKind = "grant"

	codeTTL       = time.Minute
	deviceCodeTTL = 10 * time.Minute // somebody types it into a device
	accessTTL     = time.Hour
	consentTTL    = 30 * 24 * time.Hour // since the last refresh

	maxClients   = 100 // of an organisation
	maxRedirects = 16
)

// OAuthError is an error with the word that OAuth has for it (RFC 6749, 4.1.2.1
// and 5.2).
type OAuthError struct {
	Code        string
	Description string
}

// Error returns both.
func (e *OAuthError) Error() string { return e.Code + ": " + e.Description }

func oauthFault(code, format string, args ...any) error {
	return &OAuthError{Code: code, Description: fmt.Sprintf(format, args...)}
}

var (
	errClient = oauthFault("invalid_client", "the client is not known, or did not authenticate")
	errGrant  = oauthFault("invalid_grant", "the grant is not valid, has expired, was used, or is another client's")
)

// NewClient is what a client is made from.
type NewClient struct {
	Name      string
	Public    bool // has no secret: an application in a browser or on a phone
	Redirects []string
	Scopes    []identity.Need
	Role      identity.Role
	Devices   bool // its codes are for devices to sign up at the CoAP gateway with
}

// CreateClient adds a client to the actor's organisation and returns it with
// its secret, nil for a public one.
func (s *Service) CreateClient(ctx context.Context, n NewClient) (c Client, secret seal.Secret, err error) {
	a := identity.FromContext(ctx)
	if err := n.check(a); err != nil {
		return c, nil, err
	}
	if err := s.fresh(ctx); err != nil {
		return c, nil, err
	}
	now := s.Now().UTC()
	t := seal.NewTicket(clientKind, id.New(now))
	c = Client{
		ID: t.ID, Org: a.Org, Name: n.Name, Redirects: n.Redirects, Scopes: n.Scopes, Role: n.Role, Devices: n.Devices,
		CreatedBy: a.ID, CreatedAt: now,
	}
	if !n.Public {
		c.Hash, secret = t.Hash(), t.Text()
	}
	err = s.DB.Update(ctx, func(tx store.Tx) error {
		if n, err := clientTable.Count(tx, "org", store.TermOf(a.Org)); err != nil {
			return err
		} else if n >= maxClients {
			return fault.New(fault.TooLarge, "the organisation has %d OAuth clients, the most allowed", n)
		}
		if err := clientTable.Insert(tx, c.ID, c); err != nil {
			return err
		}
		return s.note(ctx, tx, c.Org, "oauth_client.create", c.ID, map[string]string{"name": c.Name})
	})
	return c, secret, err
}

func (n NewClient) check(a identity.Actor) error {
	var bad []fault.Field
	note := func(field, format string, args ...any) {
		bad = append(bad, fault.Field{Name: field, Message: fmt.Sprintf(format, args...)})
	}
	if n.Name == "" || len(n.Name) > 256 || !plain(n.Name) {
		note("name", "1 to 256 bytes of text")
	}
	if len(n.Redirects) > maxRedirects {
		note("redirect_uris", "at most %d", maxRedirects)
	}
	for _, r := range n.Redirects {
		if !goodRedirect(r) {
			note("redirect_uris", "%.100q must be https, or http on loopback, or a private scheme such as com.example.app, without a fragment", r)
		}
	}
	for _, scope := range n.Scopes {
		if !slices.Contains(identity.Permissions(), scope) {
			note("scopes", "there is no permission %q", scope)
		}
	}
	switch n.Role {
	case identity.NoRole:
	case identity.Viewer, identity.Editor, identity.Admin:
		if n.Public {
			note("role", "a public client cannot act on its own")
		}
		if !a.Role.AtLeast(n.Role) {
			note("role", "nobody gives more than it has")
		}
	default:
		note("role", "must be viewer, editor or admin")
	}
	return fault.InvalidFields(bad...)
}

var privateScheme = regexp.MustCompile(`^[a-z][a-z0-9-]*(\.[a-z0-9-]+)+$`)

// goodRedirect holds redirect URIs to RFC 8252, 7 and 8.
func goodRedirect(text string) bool {
	u, err := url.Parse(text)
	if err != nil || u.Fragment != "" || strings.Contains(text, "#") || u.User != nil || len(text) > 512 || !plain(text) {
		return false
	}
	switch u.Scheme {
	case "https":
		return u.Host != ""
	case "http":
		ip := net.ParseIP(u.Hostname())
		return ip != nil && ip.IsLoopback()
	default:
		return privateScheme.MatchString(u.Scheme)
	}
}

// Clients returns the clients of the actor's organisation.
func (s *Service) Clients(ctx context.Context) (list []Client, err error) {
	err = s.DB.View(ctx, func(tx store.Tx) error {
		list, err = all(tx, clientTable, "org", store.TermOf(identity.OrgOf(ctx)))
		return err
	})
	return list, err
}

// DeleteClient removes a client and ends every token it has.
func (s *Service) DeleteClient(ctx context.Context, clientID string) error {
	return s.DB.Update(ctx, func(tx store.Tx) error {
		c, err := clientTable.Get(tx, clientID)
		if err == nil && c.Org != identity.OrgOf(ctx) {
			err = fault.New(fault.NotFound, "no such OAuth client")
		}
		if err != nil {
			return err
		}
		if _, err := clientTable.Delete(tx, clientID); err != nil {
			return err
		}
		s.moved(tx) // its grants are swept later; without the client they are worth nothing
		return s.note(ctx, tx, c.Org, "oauth_client.delete", clientID, map[string]string{"name": c.Name})
	})
}

// Authorization is a request for a code (RFC 6749, 4.1.1; RFC 7636, 4.3).
type Authorization struct {
	Client    string
	Redirect  string
	Type      string // response_type
	Scope     string
	State     string
	Challenge string
	Method    string // code_challenge_method
	Nonce     string
	Device    string // the device the code is for
}

// CheckAuthorization returns the client of a request, if both may be believed. An
// error that is no *OAuthError means that the client or the redirect URI is no good:
// nothing must be sent there.
func (s *Service) CheckAuthorization(ctx context.Context, r Authorization) (c Client, err error) {
	err = s.DB.View(ctx, func(tx store.Tx) error {
		c, err = clientTable.Get(tx, r.Client)
		return err
	})
	if fault.Is(err, fault.NotFound) {
		return c, fault.New(fault.Invalid, "client_id: there is no such client")
	}
	if err != nil {
		return c, err
	}
	if !slices.ContainsFunc(c.Redirects, func(known string) bool { return sameRedirect(known, r.Redirect) }) {
		return c, fault.New(fault.Invalid, "redirect_uri: is not one of the client's")
	}
	if r.Type != "code" {
		return c, oauthFault("unsupported_response_type", "response_type must be code")
	}
	if len(r.State)+len(r.Nonce) > 2048 || len(r.Device) > 256 || !plain(r.Device) {
		return c, oauthFault("invalid_request", "state, nonce or device_id is too long")
	}
	if _, _, err := c.scopes(r.Scope); err != nil {
		return c, err
	}
	switch {
	case r.Challenge != "" && (r.Method != "S256" || len(r.Challenge) != 43):
		return c, oauthFault("invalid_request", "code_challenge_method must be S256")
	case r.Challenge == "" && (!c.Devices || r.Device == ""):
		return c, oauthFault("invalid_request", "code_challenge is missing: use PKCE")
	case r.Device != "" && !c.Devices:
		return c, oauthFault("invalid_request", "the client's codes are not for devices")
	}
	return c, nil
}

// sameRedirect compares exactly, but for the port of a loopback address (RFC
// 8252, 7.3).
func sameRedirect(known, asked string) bool {
	if known == asked {
		return true
	}
	k, err := url.Parse(known)
	a, err2 := url.Parse(asked)
	if err != nil || err2 != nil || k.Scheme != "http" || a.Scheme != "http" || a.User != nil || a.Fragment != "" {
		return false
	}
	return k.Hostname() == a.Hostname() && k.Path == a.Path && k.RawQuery == a.RawQuery && k.RawPath == a.RawPath
}

// scopes reads a scope parameter: permissions, and the words of OpenID Connect.
// No permission at all asks for those of the client.
func (c Client) scopes(text string) (scopes []identity.Need, openID bool, err error) {
	if len(text) > 1024 {
		return nil, false, oauthFault("invalid_scope", "scope is too long")
	}
	for word := range strings.FieldsSeq(text) {
		switch word {
		case "openid":
			openID = true
			continue
		case "profile", "email", "offline_access":
			continue
		}
		need := identity.Need(word)
		if !slices.Contains(identity.Permissions(), need) || c.Scopes != nil && !slices.Contains(c.Scopes, need) {
			return nil, false, oauthFault("invalid_scope", "the client may not ask for %.60q", word)
		}
		scopes = append(scopes, need)
	}
	if scopes == nil {
		scopes = c.Scopes
	}
	if openID && scopes == nil {
		scopes = []identity.Need{identity.AccountRead} // who logs in somewhere else gives nothing away here
	}
	return scopes, openID, nil
}

// Approve records that the acting user grants what r asks for, and returns the
// code. Only somebody who has logged in may.
func (s *Service) Approve(ctx context.Context, r Authorization) (seal.Secret, error) {
	a, err := self(ctx)
	if err != nil {
		return nil, err
	}
	if err := interactive(a); err != nil {
		return nil, err
	}
	c, err := s.CheckAuthorization(ctx, r)
	if err != nil {
		return nil, err
	}
	scopes, openID, err := c.scopes(r.Scope)
	if err != nil {
		return nil, err
	}
	now := s.Now().UTC()
	t := seal.NewTicket(codeKind, id.New(now))
	ttl := codeTTL
	if r.Device != "" {
		ttl = deviceCodeTTL
	}
	g := consent{
		ID: t.ID, Client: c.ID, User: a.ID, Org: c.Org, Scopes: scopes, OpenID: openID, Device: r.Device, Nonce: r.Nonce,
		Created: now, Expires: now.Add(ttl), Code: t.Hash(), CodeExpires: now.Add(ttl), Redirect: r.Redirect, Challenge: r.Challenge,
	}
	err = s.DB.Update(ctx, func(tx store.Tx) error {
		u, err := s.alive(tx, a.ID)
		if err != nil {
			return err
		}
		role, err := roleIn(tx, u, c.Org)
		if err != nil {
			return err
		}
		if role == identity.NoRole {
			return oauthFault("access_denied", "you are no member of the client's organisation")
		}
		g.Epoch = u.Epoch
		if err := consentTable.Insert(tx, g.ID, g); err != nil {
			return err
		}
		return s.note(ctx, tx, g.Org, "oauth.authorize", g.ID, map[string]string{"client": c.ID, "device": g.Device})
	})
	return t.Text(), err
}

// ClientProof is how a client authenticates (RFC 6749, 2.3): its id, and its
// secret unless it is public.
type ClientProof struct {
	ID     string
	Secret string
	From   netip.Addr
}

// client authenticates a client. Failures are counted by address.
func (s *Service) client(ctx context.Context, p ClientProof) (c Client, err error) {
	from := throttle.Prefix(p.From)
	if wait := s.logins.secret.Wait(from); wait > 0 {
		return c, tooMany(wait)
	}
	err = s.DB.View(ctx, func(tx store.Tx) error {
		c, err = clientTable.Get(tx, p.ID)
		return err
	})
	if err != nil && !fault.Is(err, fault.NotFound) {
		return c, err
	}
	t, ok := seal.ParseTicket(p.Secret)
	good := err == nil && (c.Hash == nil && p.Secret == "" || c.Hash != nil && ok && t.Kind == clientKind && t.ID == c.ID && t.Matches(c.Hash))
	if !good {
		s.logins.secret.Spend(from)
		return c, errClient
	}
	return c, nil
}

// TokenSet is what a grant is exchanged for.
type TokenSet struct {
	Access    string
	Refresh   seal.Secret // nil if there is none
	ID        string      // of OpenID Connect; "" if it was not asked for
	ExpiresIn time.Duration
	Scopes    []identity.Need
	User      string
	Device    string
}

// Exchange gives tokens for a code. A code that comes a second time ends what the
// first one got: one of the two was not the client's.
func (s *Service) Exchange(ctx context.Context, p ClientProof, code, redirect, verifier string) (TokenSet, error) {
	c, err := s.client(ctx, p)
	if err != nil {
		return TokenSet{}, err
	}
	return s.exchange(ctx, code, func(g consent) bool {
		return g.Client == c.ID && g.Redirect == redirect && (g.Challenge != "" || c.Hash != nil) && g.verifies(verifier)
	})
}

// ExchangeDevice gives tokens for a code that a device was given, to the gateway
// it signs up at.
func (s *Service) ExchangeDevice(ctx context.Context, code string) (TokenSet, error) {
	return s.exchange(ctx, code, func(g consent) bool { return g.Device != "" })
}

// verifies checks the proof key (RFC 7636, 4.6).
func (g consent) verifies(verifier string) bool {
	if g.Challenge == "" {
		return verifier == ""
	}
	sum := sha256.Sum256([]byte(verifier))
	got := base64.RawURLEncoding.EncodeToString(sum[:])
	return len(verifier) >= 43 && len(verifier) <= 128 && subtle.ConstantTimeCompare([]byte(got), []byte(g.Challenge)) == 1
}

func (s *Service) exchange(ctx context.Context, code string, good func(consent) bool) (set TokenSet, err error) {
	t, ok := seal.ParseTicket(code)
	if !ok || t.Kind != codeKind {
		return set, errGrant
	}
	refused := false
	refresh := seal.NewTicket(refreshKind, t.ID)
	var g consent
	var u User
	err = s.DB.Update(ctx, func(tx store.Tx) error {
		refused = false
		g, u, err = s.consentOf(tx, t.ID)
		if err != nil {
			return err
		}
		switch {
		case !t.Matches(g.Code):
			return errGrant
		case g.CodeUsed:
			refused = true
			return s.endConsent(ctx, tx, g, "oauth.code_reused")
		case !s.Now().Before(g.CodeExpires) || !good(g):
			return errGrant
		}
		g.CodeUsed, g.Refresh, g.Expires = true, refresh.Hash(), s.Now().UTC().Add(consentTTL)
		return consentTable.Set(tx, g.ID, g)
	})
	if err == nil && refused {
		err = errGrant
	}
	if err != nil {
		return set, err
	}
	return s.issue(g, u, refresh.Text())
}

// consentOf returns a grant and its user, if both are good.
func (s *Service) consentOf(tx store.Tx, grantID string) (consent, User, error) {
	g, err := consentTable.Get(tx, grantID)
	if fault.Is(err, fault.NotFound) || err == nil && !s.Now().Before(g.Expires) {
		return g, User{}, errGrant
	}
	if err != nil {
		return g, User{}, err
	}
	if known, err := clientTable.Has(tx, g.Client); err != nil || !known {
		return g, User{}, cmpErr(err, errGrant)
	}
	u, err := s.alive(tx, g.User)
	if err == nil && u.Epoch != g.Epoch || fault.Is(err, fault.Unauthenticated) {
		return g, u, errGrant
	}
	return g, u, err
}

// cmpErr returns the first that is one.
func cmpErr(err, other error) error {
	if err != nil {
		return err
	}
	return other
}

func (s *Service) endConsent(ctx context.Context, tx store.Tx, g consent, action string) error {
	if _, err := consentTable.Delete(tx, g.ID); err != nil {
		return err
	}
	s.moved(tx)
	return s.note(ctx, tx, g.Org, action, g.ID, map[string]string{"client": g.Client, "user": g.User})
}

func (s *Service) issue(g consent, u User, refresh seal.Secret) (TokenSet, error) {
	set := TokenSet{Refresh: refresh, Scopes: g.Scopes, User: u.ID, Device: g.Device}
	t := Token{
		Kind: AccessToken, Subject: u.ID, Org: g.Org, Epoch: g.Epoch, TTL: accessTTL,
		Extra: map[string]any{clientClaim: g.Client, grantClaim: g.ID, scopeClaim: scopeText(g.Scopes)},
	}
	if g.Device != "" {
		t.Extra[deviceClaim] = g.Device
	}
	var err error
	if set.Access, t, err = s.Tokens.Issue(t); err != nil {
		return set, err
	}
	set.ExpiresIn = t.ExpiresAt.Sub(s.Now()).Round(time.Second)
	if !g.OpenID {
		return set, nil
	}
	idToken := Token{
		Kind: IDToken, Subject: u.ID, Audience: g.Client, TTL: accessTTL,
		Extra: map[string]any{"name": u.title(), "auth_time": g.Created.Unix()},
	}
	if u.Email != "" {
		idToken.Extra["email"], idToken.Extra["email_verified"] = u.Email, u.Verified
	}
	if g.Nonce != "" {
		idToken.Extra["nonce"] = g.Nonce
	}
	set.ID, _, err = s.Tokens.Issue(idToken)
	return set, err
}

// scopeText is scopes as a claim; "*" is all that the user may do.
func scopeText(scopes []identity.Need) string {
	if scopes == nil {
		return "*"
	}
	words := make([]string, len(scopes))
	for i, scope := range scopes {
		words[i] = string(scope)
	}
	return strings.Join(words, " ")
}

// OwnsRefresh reports whether a refresh token is one of this package.
func OwnsRefresh(text string) bool {
	t, ok := seal.ParseTicket(text)
	return ok && t.Kind == refreshKind
}

// Refresh gives new tokens for a refresh token, which is used up. One that comes a
// second time ends the grant.
func (s *Service) Refresh(ctx context.Context, p ClientProof, refresh string) (TokenSet, error) {
	c, err := s.client(ctx, p)
	if err != nil {
		return TokenSet{}, err
	}
	return s.refresh(ctx, refresh, func(g consent) bool { return g.Client == c.ID })
}

// RefreshDevice is Refresh for a device at the gateway it signed up at.
func (s *Service) RefreshDevice(ctx context.Context, refresh string) (TokenSet, error) {
	return s.refresh(ctx, refresh, func(g consent) bool { return g.Device != "" })
}

func (s *Service) refresh(ctx context.Context, text string, good func(consent) bool) (set TokenSet, err error) {
	t, ok := seal.ParseTicket(text)
	if !ok || t.Kind != refreshKind {
		return set, errGrant
	}
	next := seal.NewTicket(refreshKind, t.ID)
	reused := false
	var g consent
	var u User
	err = s.DB.Update(ctx, func(tx store.Tx) error {
		reused = false
		g, u, err = s.consentOf(tx, t.ID)
		if err != nil {
			return err
		}
		if !good(g) {
			return errGrant
		}
		if !t.Matches(g.Refresh) {
			reused = true
			return s.endConsent(ctx, tx, g, "oauth.refresh_reused")
		}
		g.Refresh, g.Expires = next.Hash(), s.Now().UTC().Add(consentTTL)
		return consentTable.Set(tx, g.ID, g)
	})
	if err == nil && reused {
		err = errGrant
	}
	if err != nil {
		return set, err
	}
	return s.issue(g, u, next.Text())
}

// ClientCredentials gives a client a token of its own.
func (s *Service) ClientCredentials(ctx context.Context, p ClientProof, scope string) (TokenSet, error) {
	c, err := s.client(ctx, p)
	if err != nil {
		return TokenSet{}, err
	}
	if c.Hash == nil || c.Role == identity.NoRole {
		return TokenSet{}, oauthFault("unauthorized_client", "the client has no role of its own")
	}
	scopes, _, err := c.scopes(scope)
	if err != nil {
		return TokenSet{}, err
	}
	text, t, err := s.Tokens.Issue(Token{
		Kind: AccessToken, Subject: c.ID, Org: c.Org, TTL: accessTTL,
		Extra: map[string]any{clientClaim: c.ID, scopeClaim: scopeText(scopes)},
	})
	return TokenSet{Access: text, ExpiresIn: t.ExpiresAt.Sub(s.Now()).Round(time.Second), Scopes: scopes}, err
}

// verifyAccess returns the principal of an access token: the user who granted
// it, or the client itself.
func (s *Service) verifyAccess(tx store.Tx, t Token, org string) (principal, error) {
	c, err := clientTable.Get(tx, t.text(clientClaim))
	if fault.Is(err, fault.NotFound) {
		return principal{}, ErrUnauthenticated
	}
	if err != nil {
		return principal{}, err
	}
	if org != "" && org != t.Org {
		return principal{}, errNoOrg
	}
	a := identity.Actor{Kind: identity.User, ID: c.ID, Org: c.Org, Name: c.Name, Role: c.Role}
	if grantID := t.text(grantClaim); grantID != "" {
		g, u, err := s.consentOf(tx, grantID)
		if err != nil || g.User != t.Subject || g.Client != c.ID {
			return principal{}, ErrUnauthenticated
		}
		if a, err = s.actor(tx, u, g.Org, ""); err != nil {
			return principal{}, ErrUnauthenticated
		}
		// A platform administrator lends what an owner may, not the platform.
		if a.Role == identity.Operator {
			a.Role = identity.Owner
		}
	} else if t.Subject != c.ID || c.Role == identity.NoRole {
		return principal{}, ErrUnauthenticated
	}
	if scope := t.text(scopeClaim); scope != "*" {
		a.Scopes = []identity.Need{}
		for word := range strings.FieldsSeq(scope) {
			a.Scopes = append(a.Scopes, identity.Need(word))
		}
	}
	a.Credential = identity.Credential{Kind: identity.OAuthToken, ID: t.ID, ExpiresAt: t.ExpiresAt}
	return principal{actor: a}, nil
}

// DeviceToken is what an access token that a device was given says.
type DeviceToken struct {
	User      string
	Org       string
	Device    string
	ExpiresAt time.Time
}

// VerifyDevice returns what the access token of a device says, if the grant it
// rests on is still good.
func (s *Service) VerifyDevice(ctx context.Context, text string) (DeviceToken, error) {
	t, err := s.Tokens.Verify(text)
	if err != nil {
		return DeviceToken{}, ErrUnauthenticated
	}
	if t.Kind != AccessToken || t.text(deviceClaim) == "" {
		return DeviceToken{}, ErrUnauthenticated
	}
	err = s.DB.View(ctx, func(tx store.Tx) error {
		_, err := s.verifyAccess(tx, t, "")
		return err
	})
	return DeviceToken{User: t.Subject, Org: t.Org, Device: t.text(deviceClaim), ExpiresAt: t.ExpiresAt}, err
}

// RevokeToken ends the grant that a client's refresh or access token rests on (RFC
// 7009). One that is no token, or another client's, is no error.
func (s *Service) RevokeToken(ctx context.Context, p ClientProof, text string) error {
	c, err := s.client(ctx, p)
	if err != nil {
		return err
	}
	var grantID string
	if ticket, ok := seal.ParseTicket(text); ok && ticket.Kind == refreshKind {
		grantID = ticket.ID
	} else if t, err := s.Tokens.Verify(text); err == nil && t.Kind == AccessToken {
		grantID = t.text(grantClaim)
	}
	return s.DB.Update(ctx, func(tx store.Tx) error {
		g, err := consentTable.Get(tx, grantID)
		if fault.Is(err, fault.NotFound) || err == nil && g.Client != c.ID {
			return nil
		}
		if err != nil {
			return err
		}
		return s.endConsent(ctx, tx, g, "oauth.revoke")
	})
}

// Introspection is what is known of a token (RFC 7662, 2.2).
type Introspection struct {
	Active    bool
	Subject   string
	Client    string
	Scope     string
	Org       string
	Device    string
	Type      string
	ExpiresAt time.Time
}

// Introspect tells a client with a secret what a token of its organisation says.
// Any other token is inactive.
func (s *Service) Introspect(ctx context.Context, p ClientProof, text string) (Introspection, error) {
	c, err := s.client(ctx, p)
	if err != nil {
		return Introspection{}, err
	}
	if c.Hash == nil {
		return Introspection{}, errClient
	}
	a, err := s.Resolve(ctx, identity.Proof{Scheme: "Bearer", Value: text, Remote: netip.AddrPortFrom(p.From, 0)})
	if err != nil || a.Org != c.Org {
		return Introspection{}, nil //nolint:nilerr // an inactive token is an answer, whatever is wrong with it
	}
	i := Introspection{
		Active: true, Subject: a.ID, Scope: scopeText(a.Scopes), Org: a.Org, Type: string(a.Credential.Kind), ExpiresAt: a.Credential.ExpiresAt,
	}
	if t, err := s.Tokens.Verify(text); err == nil {
		i.Client, i.Device = t.text(clientClaim), t.text(deviceClaim)
	}
	return i, nil
}
