package coapgw

import (
	"context"
	"crypto/x509"
	"encoding/asn1"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/fxamacker/cbor/v2"

	"keystead/coap"
	"keystead/fault"
	"keystead/id"
	"keystead/identity"
)

// The resources of an OCF cloud, as plgd's coap-gateway answers them: sign up,
// sign in, sign out, sign off and token refresh. Whatever goes wrong on them is
// answered, and then the session is closed.

// OCFAccounts is what they ask of the accounts behind them.
type OCFAccounts interface {
	// Exchange trades the authorization code of a sign-up for tokens.
	Exchange(ctx context.Context, p OCFProvider, code string) (OCFTokens, error)
	// Refresh trades a refresh token for new tokens.
	Refresh(ctx context.Context, p OCFProvider, refreshToken string) (OCFTokens, error)
	// Verify checks an access token (signature, issuer, audience, times,
	// revocation) and returns what it says. Unavailable means that it could not be checked.
	Verify(ctx context.Context, accessToken string) (OCFClaims, error)
	// Trusted verifies a chain up to a CA that may vouch for OCF devices of an
	// organisation, and that none of it is revoked.
	Trusted(ctx context.Context, org string, chain []*x509.Certificate) error
	// Register enters a device as its owner's. who is the device the session
	// is proven to be of already, nil if none is. Registering again what is the owner's is no error; what is
	// another's is Unauthenticated.
	Register(ctx context.Context, org, deviceID, owner string, who *identity.Actor) (identity.Actor, error)
	// Registered returns the device of that id of an owner, a NotFound fault if
	// there is none, Unauthenticated if it is suspended or ended.
	Registered(ctx context.Context, org, deviceID, owner string) (identity.Actor, error)
	// Unregister ends a device: its certificates are revoked with it. It is
	// NotFound if it is not the owner's.
	Unregister(ctx context.Context, org, deviceID, owner string) error
}

// OCFClaims is what a token says, and in which organisation it counts.
type OCFClaims struct {
	All map[string]any
	Org string
}

// OCFTokens is what a provider gives out.
type OCFTokens struct {
	Access  string
	Refresh string
	Expiry  time.Time // zero: never
}

// ocf serves the resources.
type ocf struct {
	g *Gateway
	c OCFConfig
}

// ocfState is what a session remembers of them.
type ocfState struct {
	mu        sync.Mutex // held while a request of the session is served: they take turns
	code      string     // the latest that was exchanged, and for what
	exchanged OCFTokens
	refresh   string // the latest that was refreshed, and to what
	refreshed OCFTokens
	org       string
	device    string // as which the session is signed in; "" if it is not
	owner     string
	token     string
}

type ocfStateKey struct{}

func stateOf(s coap.Session) *ocfState {
	if st, ok := s.Value(ocfStateKey{}).(*ocfState); ok {
		return st
	}
	st := &ocfState{}
	s.SetValue(ocfStateKey{}, st)
	return st
}

func (g *Gateway) ocfRoutes() []coap.Route {
	o := &ocf{g, g.OCF}
	// Where the certificate names the device, one that leads to a CA of the organisation and is of
	// no device here yet is what a device comes with; it is signed in by its token, too.
	outside := g.OCF.ClientCertificateRequired
	routes := []coap.Route{
		{Method: coap.GET, Path: "/x.plgd.dev/time", Need: identity.Public, Enrols: outside, Handle: o.time},
		{Method: coap.GET, Path: "/oic/rd", Need: identity.DeviceOnly, Handle: o.selection},
		{Method: coap.POST, Path: "/oic/rd", Need: identity.DeviceOnly, Handle: publish},
		{Method: coap.DELETE, Path: "/oic/rd", Need: identity.DeviceOnly, Handle: unpublish},
	}
	handlers := map[string]map[coap.Code]coap.Handler{
		"/oic/sec/account":      {coap.POST: o.turn("sign up", o.signUp), coap.DELETE: o.turn("sign off", o.signOff)},
		"/oic/sec/session":      {coap.POST: o.turn("sign in", o.session)},
		"/oic/sec/tokenrefresh": {coap.POST: o.turn("refresh token", o.tokenRefresh)},
		"/x.plgd.dev/time":      {},
	}
	for path, methods := range handlers {
		for _, method := range []coap.Code{coap.GET, coap.POST, coap.PUT, coap.DELETE} {
			if path == "/x.plgd.dev/time" && method == coap.GET {
				continue
			}
			handle := methods[method]
			if handle == nil {
				handle = unsupported(path != "/x.plgd.dev/time")
			}
			routes = append(routes, coap.Route{Method: method, Path: path, Need: identity.Public, Enrols: outside, Handle: handle, MaxBody: 16 << 10})
		}
	}
	return routes
}

// unsupported answers a method that a path does not have: with 4.04, as the reference does.
func unsupported(closes bool) coap.Handler {
	return func(_ context.Context, r *coap.Request) (coap.Response, error) {
		err := coap.Errorf(coap.NotFound, "unsupported method %v", r.Method)
		err.Close = closes
		return coap.Response{}, err
	}
}

// codeNames are the names of codes in the text of errors.
var codeNames = map[coap.Code]string{
	coap.BadRequest: "BadRequest", coap.Unauthorized: "Unauthorized", coap.BadOption: "BadOption", coap.Forbidden: "Forbidden",
	coap.NotFound: "NotFound", coap.PreconditionFailed: "PreconditionFailed", coap.InternalServerError: "InternalServerError", coap.ServiceUnavailable: "ServiceUnavailable",
}

// turn has the requests of a session come one after the other, and every error
// say what could not be done and close the session.
func (o *ocf) turn(what string, handle func(context.Context, *coap.Request, *ocfState) (coap.Response, error)) coap.Handler {
	return func(ctx context.Context, r *coap.Request) (coap.Response, error) {
		what := what
		st := stateOf(r.Session)
		st.mu.Lock()
		defer st.mu.Unlock()
		response, err := handle(ctx, r, st)
		if err == nil {
			return response, nil
		}
		if d, ok := errors.AsType[*doing](err); ok {
			what = d.what
		}
		failed := coap.Failure(err)
		text := "cannot handle " + what + ": " + string(failed.Body)
		if failed.Code == coap.ServiceUnavailable {
			text = "temporary error: " + text
		}
		e := coap.Errorf(failed.Code, "coap error: code = %s desc = %s", codeNames[failed.Code], text).Closing()
		e.Err = err
		return coap.Response{}, e
	}
}

// account is the body of every request, each of which uses some of it.
type account struct {
	Device       string `cbor:"di"`
	User         string `cbor:"uid"`
	AccessToken  string `cbor:"accesstoken"`
	AuthCode     string `cbor:"authcode"`
	AuthProvider string `cbor:"authprovider"`
	RefreshToken string `cbor:"refreshtoken"`
	Login        bool   `cbor:"login"`
}

// bodies decodes what devices send: maps of definite and indefinite length,
// with whatever other keys. Depth and size are bounded.
var bodies = sync.OnceValues(func() (cbor.DecMode, error) {
	return cbor.DecOptions{MaxNestedLevels: 8, MaxMapPairs: 64, MaxArrayElements: 64, UTF8: cbor.UTF8RejectInvalid, DupMapKey: cbor.DupMapKeyEnforcedAPF}.DecMode()
})

func decodeAccount(body []byte) (a account, err error) {
	mode, err := bodies()
	if err != nil {
		return a, err
	}
	if len(body) == 0 || mode.Unmarshal(body, &a) != nil {
		return a, coap.Errorf(coap.BadRequest, "the body must be a CBOR map of texts, and of login as a boolean")
	}
	return a, nil
}

// answer encodes the body of a response as the client accepts it. What it
// does not speak is answered with the code other.
func (o *ocf) answer(r *coap.Request, code, other coap.Code, body any) (coap.Response, error) {
	format, ok := r.Accept()
	if !ok {
		format = coap.OCFCBOR
	}
	var b []byte
	var err error
	switch format {
	case coap.OCFCBOR, coap.CBOR:
		b, err = encodeCBOR(body)
	case coap.JSON:
		b, err = json.Marshal(body)
	default:
		return coap.Response{}, coap.Errorf(other, "the format %d is not spoken here", format)
	}
	return coap.Response{Code: code, Format: format, Body: b}, err
}

func unauthorized(format string, args ...any) error {
	return coap.Errorf(coap.Unauthorized, format, args...)
}

func badRequest(format string, args ...any) error {
	return coap.Errorf(coap.BadRequest, format, args...)
}

func (o *ocf) time(_ context.Context, r *coap.Request) (coap.Response, error) {
	return o.answer(r, coap.Content, coap.BadRequest, map[string]string{"time": o.g.Now().UTC().Format(time.RFC3339Nano)})
}

func (o *ocf) selection(_ context.Context, r *coap.Request) (coap.Response, error) {
	return o.answer(r, coap.Content, coap.BadRequest, map[string]int{"sel": 0})
}

// publish takes note of the resources a device publishes: it answers with them,
// and keeps none.
func publish(_ context.Context, r *coap.Request) (coap.Response, error) {
	return coap.Response{Code: coap.Changed, Format: coap.OCFCBOR, Body: r.Body}, nil
}

func unpublish(context.Context, *coap.Request) (coap.Response, error) {
	return coap.Response{Code: coap.Deleted}, nil
}

// provider returns the provider of a name.
func (o *ocf) provider(name string) (OCFProvider, error) {
	for _, p := range o.c.Providers {
		if p.Name == name && name != "" {
			return p, nil
		}
	}
	return OCFProvider{}, unauthorized("unknown authorization provider('%s')", name)
}

// verify checks an access token.
func (o *ocf) verify(ctx context.Context, token string) (OCFClaims, error) {
	claims, err := o.g.Accounts.Verify(ctx, token)
	switch {
	case fault.Is(err, fault.Unavailable):
		return claims, err
	case err != nil:
		return claims, &coap.Error{Code: coap.Unauthorized, Message: "the access token is not valid", Err: err}
	}
	return claims, nil
}

// resolve says which device a request is about, by the claim of the token, the
// certificate, or what the request states, whichever the configuration has decide.
func (o *ocf) resolve(ctx context.Context, r *coap.Request, claims OCFClaims, stated string) (string, error) {
	claim := ""
	if o.c.DeviceIDClaim != "" {
		v, there := claims.All[o.c.DeviceIDClaim]
		text, isText := v.(string)
		if there && !isText {
			return "", unauthorized("the device id claim('%s') of the access token is not a text", o.c.DeviceIDClaim)
		}
		if text == "" {
			return "", unauthorized("access token doesn't contain the required device id claim('%s')", o.c.DeviceIDClaim)
		}
		claim = text
	}
	if !o.c.ClientCertificateRequired {
		if claim != "" {
			return claim, nil
		}
		return stated, nil
	}
	certified, err := o.certified(ctx, claims.Org, r.Session.Chain())
	switch {
	case fault.Is(err, fault.Unavailable):
		return "", err
	case err != nil || certified == "":
		return "", &coap.Error{Code: coap.Unauthorized, Message: "certificate of device doesn't contain device id", Err: err}
	case claim != "" && claim != certified:
		return "", unauthorized("access token issued to the device ('%s') used by the different device ('%s')", claim, certified)
	}
	return certified, nil
}

// The extended key usage of OCF identity certificates.
var ocfIdentity = asn1.ObjectIdentifier{1, 3, 6, 1, 4, 1, 44924, 1, 6}

// certified returns the device id in an OCF identity certificate, "" if it has
// none.
func (o *ocf) certified(ctx context.Context, org string, chain []*x509.Certificate) (string, error) {
	if len(chain) == 0 {
		return "", nil
	}
	leaf := chain[0]
	if !slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageClientAuth) || !slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageServerAuth) {
		return "", unauthorized("the certificate is not for clients and servers")
	}
	if err := o.g.Accounts.Trusted(ctx, org, chain); err != nil {
		return "", err
	}
	return ocfDeviceID(leaf), nil
}

// ocfDeviceID reads the device id out of the subject of an identity certificate: CN=uuid:<id>.
func ocfDeviceID(leaf *x509.Certificate) string {
	if !slices.ContainsFunc(leaf.UnknownExtKeyUsage, ocfIdentity.Equal) {
		return ""
	}
	scheme, text, ok := strings.Cut(leaf.Subject.CommonName, ":")
	if !ok || !strings.EqualFold(scheme, "uuid") || strings.Contains(text, ":") {
		return ""
	}
	hexes := strings.ToLower(strings.NewReplacer("-", "", "{", "", "}", "").Replace(text))
	if len(hexes) != 32 || strings.Trim(hexes, "0123456789abcdef") != "" {
		return ""
	}
	return hexes[:8] + "-" + hexes[8:12] + "-" + hexes[12:16] + "-" + hexes[16:20] + "-" + hexes[20:]
}

// own returns whom the session's own credential proves, nil if it is nobody.
func own(r *coap.Request) *identity.Actor {
	s, ok := r.Session.(*session)
	if !ok {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.known {
		return nil
	}
	a := s.actor
	return &a
}

// same refuses a device that is not the one the session's own credential proves.
func same(r *coap.Request, a identity.Actor) error {
	if who := own(r); who != nil && !who.Is(a) {
		return identity.ErrMismatch
	}
	return nil
}

// seconds returns how long until t, -1 if t is never.
func (o *ocf) seconds(t time.Time) int64 {
	if t.IsZero() {
		return -1
	}
	return int64(t.Sub(o.g.Now()).Seconds())
}

// expiryOf returns when a token expires, zero if it does not.
func expiryOf(claims map[string]any) time.Time {
	switch exp := claims["exp"].(type) {
	case float64:
		return time.Unix(int64(exp), 0)
	case int64:
		return time.Unix(exp, 0)
	case json.Number:
		n, err := exp.Int64()
		if err != nil {
			return time.Unix(0, 0)
		}
		return time.Unix(n, 0)
	}
	return time.Time{}
}

func (o *ocf) signUp(ctx context.Context, r *coap.Request, st *ocfState) (coap.Response, error) {
	in, err := decodeAccount(r.Body)
	if err != nil {
		return coap.Response{}, err
	}
	code := in.AccessToken
	if code == "" {
		code = in.AuthCode
	}
	switch {
	case in.Device == "":
		return coap.Response{}, badRequest("invalid device id")
	case code == "":
		return coap.Response{}, badRequest("invalid authorization code")
	}
	p, err := o.provider(in.AuthProvider)
	if err != nil {
		return coap.Response{}, err
	}
	tokens := st.exchanged
	if st.code != code { // a device repeats itself; a code is good for once
		if tokens, err = o.g.Accounts.Exchange(ctx, p, code); err != nil {
			return coap.Response{}, unavailable("the code was not accepted by the provider", err)
		}
	}
	org, owner, device, err := o.examine(ctx, r, tokens, in)
	if err != nil {
		return coap.Response{}, err
	}
	a, err := o.g.Accounts.Register(ctx, org, device, owner, own(r))
	if err == nil {
		err = same(r, a)
	}
	if err != nil {
		return coap.Response{}, err
	}
	st.code, st.exchanged = code, tokens
	return o.answer(r, coap.Changed, coap.BadRequest, struct {
		AccessToken  string `json:"accesstoken"`
		RefreshToken string `json:"refreshtoken"`
		User         string `json:"uid"`
		ExpiresIn    int64  `json:"expiresin"`
		RedirectURI  string `json:"redirecturi"`
	}{tokens.Access, tokens.Refresh, owner, o.seconds(tokens.Expiry), ""})
}

func unavailable(message string, err error) error {
	return &coap.Error{Code: coap.ServiceUnavailable, Message: message, Err: err}
}

// examine checks what a provider has given out, and says for whose device it is.
func (o *ocf) examine(ctx context.Context, r *coap.Request, t OCFTokens, in account) (org, owner, device string, err error) {
	switch {
	case t.Refresh == "":
		return "", "", "", unauthorized("the provider gave no refresh token")
	case !t.Expiry.IsZero() && !o.g.Now().Before(t.Expiry):
		return "", "", "", unauthorized("the access token has expired")
	}
	claims, err := o.verify(ctx, t.Access)
	if err != nil {
		return "", "", "", err
	}
	owner, ok := claims.All[o.c.OwnerClaim].(string)
	if !ok || owner == "" {
		if in.RefreshToken == "" {
			return "", "", "", unauthorized("cannot determine owner")
		}
		owner = in.User // of a refresh, where the device states it
	}
	device, err = o.resolve(ctx, r, claims, in.Device)
	return claims.Org, owner, device, err
}

// session signs in or out.
func (o *ocf) session(ctx context.Context, r *coap.Request, st *ocfState) (coap.Response, error) {
	in, err := decodeAccount(r.Body)
	if err != nil {
		return coap.Response{}, err
	}
	if in.Login {
		return o.signIn(ctx, r, st, in)
	}
	response, err := o.signOut(ctx, r, st, in)
	if err != nil {
		err = &doing{"sign out", err}
	}
	return response, err
}

// doing is an error of doing something else than the resource is named for.
type doing struct {
	what string
	error
}

// Unwrap returns the error itself.
func (d *doing) Unwrap() error { return d.error }

// owned checks that a token is of the stated owner and for which device.
func (o *ocf) owned(ctx context.Context, r *coap.Request, in account) (device string, claims OCFClaims, err error) {
	if claims, err = o.verify(ctx, in.AccessToken); err != nil {
		return "", claims, err
	}
	if owner, ok := claims.All[o.c.OwnerClaim].(string); !ok || owner != in.User {
		return "", claims, unauthorized("owner identifier from the token '%v' doesn't match userID '%s' from the device", claims.All[o.c.OwnerClaim], in.User)
	}
	device, err = o.resolve(ctx, r, claims, in.Device)
	return device, claims, err
}

func (o *ocf) signIn(ctx context.Context, r *coap.Request, st *ocfState, in account) (coap.Response, error) {
	switch {
	case in.Device == "":
		return coap.Response{}, badRequest("invalid device id")
	case in.User == "":
		return coap.Response{}, badRequest("invalid user id")
	case in.AccessToken == "":
		return coap.Response{}, badRequest("invalid access token")
	}
	if f, ok := r.Accept(); ok && f != coap.OCFCBOR && f != coap.CBOR && f != coap.JSON {
		return coap.Response{}, coap.Errorf(coap.ServiceUnavailable, "the format %d is not spoken here", f)
	}
	device, claims, err := o.owned(ctx, r, in)
	if err != nil {
		return coap.Response{}, err
	}
	until := expiryOf(claims.All)
	if !until.IsZero() {
		if margin := 2 * o.c.OwnerCacheExpiration; until.Sub(o.g.Now()) < margin {
			return coap.Response{}, unauthorized("access token will expire at %v in less time than %v", until.UTC().Format(time.RFC3339), margin)
		}
		until = until.Add(-2 * o.c.OwnerCacheExpiration)
	}
	a, err := o.registered(ctx, r, claims.Org, device, in.User)
	if err != nil {
		return coap.Response{}, err
	}
	response, err := o.answer(r, coap.Changed, coap.ServiceUnavailable, map[string]int64{"expiresin": o.seconds(until)})
	if err != nil {
		return coap.Response{}, err
	}
	st.org, st.device, st.owner, st.token = claims.Org, device, in.User, in.AccessToken
	st.code, st.exchanged, st.refresh, st.refreshed = "", OCFTokens{}, "", OCFTokens{}
	o.enter(r, st, a, until)
	return response, nil
}

// registered returns the actor of a device that is registered to an owner and
// is not another than the session's.
func (o *ocf) registered(ctx context.Context, r *coap.Request, org, device, owner string) (identity.Actor, error) {
	a, err := o.g.Accounts.Registered(ctx, org, device, owner)
	if fault.Is(err, fault.NotFound) {
		return a, unauthorized("access to device('%s') denied", device)
	}
	if err != nil {
		return a, err
	}
	return a, same(r, a)
}

// enter has the session act as a device.
func (o *ocf) enter(r *coap.Request, st *ocfState, a identity.Actor, until time.Time) {
	s, ok := r.Session.(*session)
	if !ok {
		return
	}
	if chain := s.Chain(); o.c.DisconnectOnExpiredCertificate && len(chain) > 0 {
		if end := chain[0].NotAfter; until.IsZero() || end.Before(until) {
			until = end
		}
	}
	if a.Credential.Kind == "" {
		a.Credential = identity.Credential{Kind: identity.DeviceToken, ID: id.New(o.g.Now())}
	}
	a.Credential.ExpiresAt = until
	org, device, owner, token := st.org, st.device, st.owner, st.token
	s.signInAs(&signIn{actor: a, until: until, check: func(ctx context.Context) error {
		if _, err := o.verify(ctx, token); err != nil {
			return fault.Wrap(fault.Unauthenticated, err, "the access token is good no more")
		}
		again, err := o.g.Accounts.Registered(ctx, org, device, owner)
		if err == nil && !again.Is(a) {
			err = errors.New("another device")
		}
		if err != nil {
			return fault.Wrap(fault.Unauthenticated, err, "the device is not registered any more")
		}
		return nil
	}})
}

// fill takes what a request leaves out from the session.
func (in *account) fill(st *ocfState) {
	for _, f := range []struct {
		value *string
		known string
	}{{&in.Device, st.device}, {&in.User, st.owner}, {&in.AccessToken, st.token}} {
		if *f.value == "" {
			*f.value = f.known
		}
	}
}

func (o *ocf) signOut(ctx context.Context, r *coap.Request, st *ocfState, in account) (coap.Response, error) {
	if in.fill(st); in.Device == "" || in.User == "" || in.AccessToken == "" {
		return coap.Response{}, badRequest("invalid authorization context")
	}
	if _, _, err := o.owned(ctx, r, in); err != nil {
		return coap.Response{}, err
	}
	o.leave(r, st)
	return coap.Response{Code: coap.Changed, Format: coap.OCFCBOR, Body: []byte{0xa0}}, nil
}

// leave signs the session out; it stays open.
func (o *ocf) leave(r *coap.Request, st *ocfState) {
	st.device, st.owner, st.token = "", "", ""
	if s, ok := r.Session.(*session); ok {
		s.signInAs(nil)
	}
}

func (o *ocf) tokenRefresh(ctx context.Context, r *coap.Request, st *ocfState) (coap.Response, error) {
	in, err := decodeAccount(r.Body)
	if err != nil {
		return coap.Response{}, err
	}
	switch {
	case in.Device == "":
		return coap.Response{}, badRequest("invalid deviceID")
	case in.RefreshToken == "":
		return coap.Response{}, badRequest("invalid refreshToken")
	case in.User == "":
		return coap.Response{}, badRequest("invalid userId")
	}
	tokens := st.refreshed
	if st.refresh != in.RefreshToken {
		if tokens, err = o.refresh(ctx, in); err != nil {
			return coap.Response{}, err
		}
	}
	org, owner, device, err := o.examine(ctx, r, tokens, in)
	if err != nil {
		return coap.Response{}, err
	}
	a, err := o.g.Accounts.Registered(ctx, org, device, owner)
	if fault.Is(err, fault.NotFound) {
		err = unauthorized("device is not registered")
	}
	if err == nil {
		err = same(r, a)
	}
	if err != nil {
		return coap.Response{}, err
	}
	response, err := o.answer(r, coap.Changed, coap.ServiceUnavailable, struct {
		AccessToken  string `json:"accesstoken"`
		RefreshToken string `json:"refreshtoken"`
		ExpiresIn    int64  `json:"expiresin"`
	}{tokens.Access, tokens.Refresh, o.seconds(tokens.Expiry)})
	if err != nil {
		return coap.Response{}, err
	}
	st.refresh, st.refreshed = in.RefreshToken, tokens
	if st.device == device && st.owner == owner {
		st.token = tokens.Access
		until := tokens.Expiry
		if !until.IsZero() {
			until = until.Add(-2 * o.c.OwnerCacheExpiration)
		}
		o.enter(r, st, a, until)
	}
	return response, nil
}

// refresh asks the provider that the device names, or else each.
func (o *ocf) refresh(ctx context.Context, in account) (OCFTokens, error) {
	providers := o.c.Providers
	if in.AuthProvider != "" {
		p, err := o.provider(in.AuthProvider)
		if err != nil {
			return OCFTokens{}, err
		}
		providers = []OCFProvider{p}
	}
	var all error
	for _, p := range providers {
		tokens, err := o.g.Accounts.Refresh(ctx, p, in.RefreshToken)
		if err == nil {
			return tokens, nil
		}
		all = errors.Join(all, err)
	}
	return OCFTokens{}, unavailable("the refresh token was not accepted by the provider", all)
}

func (o *ocf) signOff(ctx context.Context, r *coap.Request, st *ocfState) (coap.Response, error) {
	q, err := r.FormQuery()
	if err != nil {
		return coap.Response{}, coap.Errorf(coap.BadOption, "invalid URL escape: %v", err)
	}
	in := account{Device: q.Get("di"), User: q.Get("uid"), AccessToken: q.Get("accesstoken")}
	in.fill(st)
	switch {
	case in.Device == "":
		return coap.Response{}, badRequest("invalid device id")
	case in.User == "":
		return coap.Response{}, badRequest("invalid user id")
	case in.AccessToken == "":
		return coap.Response{}, badRequest("invalid access token")
	}
	device, claims, err := o.owned(ctx, r, in)
	if err != nil {
		return coap.Response{}, err
	}
	a, err := o.registered(ctx, r, claims.Org, device, in.User)
	if err != nil {
		return coap.Response{}, err
	}
	s, isSession := r.Session.(*session)
	if isSession { // it stays open for the answer; what it rested on is gone
		s.leaving.Store(true)
		defer s.leaving.Store(false)
	}
	err = o.g.Accounts.Unregister(ctx, claims.Org, device, in.User)
	if fault.Is(err, fault.NotFound) {
		err = badRequest("cannot remove device %s from user", device)
	}
	if err != nil {
		return coap.Response{}, err
	}
	o.leave(r, st)
	for _, other := range o.g.sessions.of(a.ID) {
		if other != s {
			other.end("the device has signed off", true)
		}
	}
	if isSession {
		s.disown()
	}
	return coap.Response{Code: coap.Deleted}, nil
}
