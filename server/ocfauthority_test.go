package server_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"keystead/coap"
	"keystead/coapgw"
	"keystead/config"
	"keystead/server"
)

// authority is a small OAuth server of the tests' own, with a client "gateway".
type authority struct {
	*httptest.Server

	t      *testing.T
	mu     sync.Mutex
	key    *ecdsa.PrivateKey
	claims jwt.MapClaims // of the next token, over the usual ones
	down   bool
	away   chan struct{} // while set, what it says of itself takes until this is closed, and is an error then
	finds  int           // how often it was asked for that
	serial int
	live   map[string]bool // refresh tokens that are good for once
	asked  []string        // the grants that were asked for
}

func newOAuthServer(t *testing.T) *authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	a := &authority{t: t, key: key, live: map[string]bool{}}
	mux := http.NewServeMux()
	mux.HandleFunc("/.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		a.mu.Lock()
		a.finds++
		away := a.away
		a.mu.Unlock()
		if away != nil {
			<-away
			w.WriteHeader(http.StatusBadGateway)
			return
		}
		json.NewEncoder(w).Encode(map[string]any{
			"issuer": a.URL, "authorization_endpoint": a.URL + "/authorize", "token_endpoint": a.URL + "/token", "jwks_uri": a.URL + "/keys",
		})
	})
	mux.HandleFunc("/keys", func(w http.ResponseWriter, _ *http.Request) {
		x, y := make([]byte, 32), make([]byte, 32)
		a.key.X.FillBytes(x)
		a.key.Y.FillBytes(y)
		enc := base64.RawURLEncoding.EncodeToString
		json.NewEncoder(w).Encode(map[string]any{"keys": []map[string]string{
			{"kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "kid": "1", "x": enc(x), "y": enc(y)},
		}})
	})
	mux.HandleFunc("/token", a.token)
	a.Server = httptest.NewTLSServer(mux)
	t.Cleanup(a.Close)
	return a
}

func (a *authority) token(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	id, secret, _ := r.BasicAuth()
	refuse := func(code string) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusBadRequest)
		json.NewEncoder(w).Encode(map[string]string{"error": code})
	}
	a.asked = append(a.asked, r.FormValue("grant_type"))
	over := jwt.MapClaims{}
	switch {
	case a.down:
		w.WriteHeader(http.StatusBadGateway)
		return
	case id != "gateway" || secret != "s3cret":
		refuse("invalid_client")
		return
	case r.FormValue("grant_type") == "authorization_code" && r.FormValue("code") == "good" && r.FormValue("redirect_uri") == "https://app.example/back":
	case r.FormValue("grant_type") == "refresh_token" && a.live[r.FormValue("refresh_token")]:
		delete(a.live, r.FormValue("refresh_token"))
	case r.FormValue("grant_type") == "client_credentials":
		over["owner"], over["device"] = r.FormValue("owner"), r.FormValue("device")
	default:
		refuse("invalid_grant")
		return
	}
	a.serial++
	refresh := "refresh-" + string(rune('a'+a.serial))
	a.live[refresh] = true
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(map[string]any{"access_token": a.sign(over), "token_type": "Bearer", "refresh_token": refresh, "expires_in": 3600})
}

// sign makes an access token; a.mu is held.
func (a *authority) sign(over jwt.MapClaims) string {
	claims := jwt.MapClaims{
		"iss": a.URL, "aud": "cloud", "sub": "client", "owner": "ann", "device": ocfDevice, "jti": a.serial,
		"iat": time.Now().Unix(), "exp": time.Now().Add(time.Hour).Unix(),
	}
	maps.Copy(claims, a.claims)
	maps.Copy(claims, over)
	maps.DeleteFunc(claims, func(_ string, v any) bool { return v == nil })
	token := jwt.NewWithClaims(jwt.SigningMethodES256, claims)
	token.Header["kid"] = "1"
	text, err := token.SignedString(a.key)
	if err != nil {
		a.t.Error(err)
	}
	return text
}

func (a *authority) signed(over jwt.MapClaims) string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.sign(over)
}

func (a *authority) change(fn func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	fn()
}

const ocfDevice = "b5a2a42e-b285-42f1-a36b-034c8fc8efd5"

// behind configures a server whose OCF devices have tokens of a.
func (a *authority) behind(t *testing.T, change ...func(*config.Config)) func(*config.Config) {
	t.Helper()
	dir := t.TempDir()
	ca, secret := filepath.Join(dir, "ca.pem"), filepath.Join(dir, "secret")
	for path, content := range map[string][]byte{ca: pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.Certificate().Raw}), secret: []byte("s3cret\n")} {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return func(c *config.Config) {
		c.HTTPS.Listen, c.HTTP.Listen, c.Ops.Listen, c.CoAP.UDP, c.CoAP.TCP = "", "", "", "", "127.0.0.1:0"
		c.Webhook.CAFile, c.Webhook.AllowCIDRs = ca, []string{"127.0.0.0/8"}
		o := &c.CoAP.OCF
		o.Enabled, o.ClientCertificateRequired, o.DeviceIDClaim, o.OwnerClaim = true, false, "device", "owner"
		o.Providers = []coapgw.OCFProvider{
			{Name: "cloud", Authority: a.URL, ClientID: "gateway", ClientSecretFile: secret, RedirectURL: "https://app.example/back", Audience: "cloud"},
			{Name: "machines", Authority: a.URL, ClientID: "gateway", ClientSecretFile: secret, Audience: "cloud", GrantType: coapgw.ClientCredentials},
		}
		for _, fn := range change {
			fn(c)
		}
	}
}

// runCoAP serves CoAP until the test ends.
func (r *running) runCoAP(t *testing.T) {
	t.Helper()
	if err := r.Listen(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- r.CoAP.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
}

func TestAnOCFDeviceSignsUpWithACodeOfAnOutsideServer(t *testing.T) {
	a := newOAuthServer(t)
	s := start(t, a.behind(t))
	s.runCoAP(t)
	conn := s.dialOCF(t)
	up := conn.ask(t, coap.POST, "/oic/sec/account", map[string]any{"di": "whatever", "accesstoken": "good", "authprovider": "cloud"}, coap.Changed)
	if up["uid"] != "ann" || up["refreshtoken"] == "" || up["redirecturi"] != "" {
		t.Errorf("sign up: %v, want a device of ann's", up)
	}
	in := map[string]any{"di": "whatever", "uid": "ann", "accesstoken": up["accesstoken"], "login": true}
	conn.ask(t, coap.POST, "/oic/sec/session", in, coap.Changed)
	who := conn.ask(t, coap.GET, "/whoami", nil, coap.Content)
	var d struct{ ID string }
	s.call(t, s.admin, "GET", "/api/v1/devices/"+ocfDevice, nil, http.StatusOK, &d) // the claim says which it is
	if who["device"] != d.ID || who["organisation"] != s.org {
		t.Errorf("whoami: %v, want device %s", who, d.ID)
	}
	again := conn.ask(t, coap.POST, "/oic/sec/tokenrefresh", map[string]any{"di": "whatever", "uid": "ann", "refreshtoken": up["refreshtoken"]}, coap.Changed)
	if again["accesstoken"] == up["accesstoken"] || again["refreshtoken"] == up["refreshtoken"] || again["refreshtoken"] == "" {
		t.Errorf("refresh: %v, want new tokens", again)
	}
	s.call(t, s.admin, "POST", "/api/v1/devices/"+ocfDevice+"/suspend", nil, http.StatusOK, nil)
	in["accesstoken"] = again["accesstoken"]
	s.dialOCF(t).ask(t, coap.POST, "/oic/sec/session", in, coap.Unauthorized)
	s.call(t, s.admin, "POST", "/api/v1/devices/"+ocfDevice+"/resume", nil, http.StatusOK, nil)
	conn = s.dialOCF(t)
	conn.ask(t, coap.POST, "/oic/sec/session", in, coap.Changed)
	conn.ask(t, coap.POST, "/oic/sec/session", map[string]any{"login": false}, coap.Changed)
	conn = s.dialOCF(t)
	conn.ask(t, coap.POST, "/oic/sec/session", in, coap.Changed)
	conn.ask(t, coap.DELETE, "/oic/sec/account", nil, coap.Deleted)
	s.dialOCF(t).ask(t, coap.POST, "/oic/sec/session", in, coap.Unauthorized)
}

func TestAnOCFDeviceSignsUpWithATokenThatStandsForItsOwner(t *testing.T) {
	a := newOAuthServer(t)
	s := start(t, a.behind(t))
	s.runCoAP(t)
	conn := s.dialOCF(t)
	up := conn.ask(t, coap.POST, "/oic/sec/account", map[string]any{"di": ocfDevice, "accesstoken": a.signed(jwt.MapClaims{"owner": "bob"}), "authprovider": "machines"}, coap.Changed)
	if up["uid"] != "bob" || up["refreshtoken"] != up["accesstoken"] {
		t.Errorf("sign up: %v, want a device of bob's with one token for both", up)
	}
	again := conn.ask(t, coap.POST, "/oic/sec/tokenrefresh", map[string]any{"di": ocfDevice, "uid": "bob", "refreshtoken": up["refreshtoken"], "authprovider": "machines"}, coap.Changed)
	if again["accesstoken"] == up["accesstoken"] {
		t.Errorf("refresh: %v, want a new token", again)
	}
	s.dialOCF(t).ask(t, coap.POST, "/oic/sec/account", map[string]any{"di": ocfDevice, "accesstoken": a.signed(jwt.MapClaims{"owner": nil}), "authprovider": "machines"}, coap.ServiceUnavailable)
}

func TestWhatAnOutsideServerGivesIsNotBelievedBlindly(t *testing.T) {
	a := newOAuthServer(t)
	s := start(t, a.behind(t))
	s.runCoAP(t)
	signUp := func(code, provider string) map[string]any {
		return map[string]any{"di": ocfDevice, "accesstoken": code, "authprovider": provider}
	}
	s.dialOCF(t).ask(t, coap.POST, "/oic/sec/account", signUp("good", "cloud"), coap.Changed) // it is registered
	other := newOAuthServer(t)
	hour := time.Hour
	for name, token := range map[string]string{
		"another's signature": other.signed(jwt.MapClaims{"iss": a.URL}),
		"another issuer":      a.signed(jwt.MapClaims{"iss": other.URL}),
		"another audience":    a.signed(jwt.MapClaims{"aud": "somebody"}),
		"no audience":         a.signed(jwt.MapClaims{"aud": nil}),
		"expired":             a.signed(jwt.MapClaims{"exp": time.Now().Add(-time.Second).Unix()}),
		"not yet valid":       a.signed(jwt.MapClaims{"nbf": time.Now().Add(hour).Unix()}),
		"from the future":     a.signed(jwt.MapClaims{"iat": time.Now().Add(hour).Unix()}),
		"without an end":      a.signed(jwt.MapClaims{"exp": nil}),
		"times of no number":  a.signed(jwt.MapClaims{"exp": "soon"}),
		"of another owner":    a.signed(jwt.MapClaims{"owner": "bob"}),
		"of no owner":         a.signed(jwt.MapClaims{"owner": nil}),
		"of another device":   a.signed(jwt.MapClaims{"device": "00000000-0000-4000-8000-000000000000"}),
		"of no device":        a.signed(jwt.MapClaims{"device": nil}),
		"a device of no text": a.signed(jwt.MapClaims{"device": 7}),
		"no token":            "nonsense",
	} {
		t.Run(name, func(t *testing.T) {
			conn := s.dialOCF(t)
			conn.ask(t, coap.POST, "/oic/sec/session", map[string]any{"di": ocfDevice, "uid": "ann", "accesstoken": token, "login": true}, coap.Unauthorized)
			conn.wantEnd(t)
		})
	}
	s.dialOCF(t).ask(t, coap.POST, "/oic/sec/account", signUp("bad", "cloud"), coap.ServiceUnavailable)
	s.dialOCF(t).ask(t, coap.POST, "/oic/sec/account", signUp("good", "nobody"), coap.Unauthorized)
	a.change(func() { a.claims = jwt.MapClaims{"owner": "bob"} })
	s.dialOCF(t).ask(t, coap.POST, "/oic/sec/account", signUp("good", "cloud"), coap.Unauthorized) // it is ann's
	a.change(func() { a.down = true })
	s.dialOCF(t).ask(t, coap.POST, "/oic/sec/account", signUp("good", "cloud"), coap.ServiceUnavailable)
}

// Tokens that never expire are taken where the configuration says so.
func TestTokensWithoutExpiry(t *testing.T) {
	a := newOAuthServer(t)
	s := start(t, a.behind(t, func(c *config.Config) { c.CoAP.OCF.TokensWithoutExpiry = true }))
	s.runCoAP(t)
	s.dialOCF(t).ask(t, coap.POST, "/oic/sec/account", map[string]any{"di": ocfDevice, "accesstoken": "good", "authprovider": "cloud"}, coap.Changed)
	never := a.signed(jwt.MapClaims{"exp": nil})
	in := s.dialOCF(t).ask(t, coap.POST, "/oic/sec/session", map[string]any{"di": ocfDevice, "uid": "ann", "accesstoken": never, "login": true}, coap.Changed)
	if n, ok := in["expiresin"].(int64); !ok || n != -1 {
		t.Errorf("got %v, want -1", in)
	}
}

// While the authority is away, one device asks it and the others wait for what that one
// hears; then all are told at once, until it is worth asking again.
func TestAnAuthorityThatIsAwayIsAskedNowAndThen(t *testing.T) {
	a := newOAuthServer(t)
	s := start(t, a.behind(t))
	var later atomic.Int64
	s.Now = func() time.Time { return time.Now().Add(time.Duration(later.Load())) }
	s.runCoAP(t)
	up := map[string]any{"di": ocfDevice, "accesstoken": "good", "authprovider": "cloud"}
	away := make(chan struct{})
	a.change(func() { a.away = away })
	asked := func() (n int) {
		a.change(func() { n = a.finds })
		return n
	}
	var wg sync.WaitGroup
	const devices = 10
	for range devices {
		conn := s.dialOCF(t)
		wg.Go(func() { conn.ask(t, coap.POST, "/oic/sec/account", up, coap.ServiceUnavailable) })
	}
	for asked() == 0 {
		time.Sleep(time.Millisecond)
	}
	time.Sleep(100 * time.Millisecond) // the others come meanwhile
	close(away)
	wg.Wait()
	s.dialOCF(t).ask(t, coap.POST, "/oic/sec/account", up, coap.ServiceUnavailable)
	if n := asked(); n != 1 {
		t.Errorf("the authority was asked %d times, want once", n)
	}
	a.change(func() { a.away = nil })
	later.Store(int64(6 * time.Second))
	s.dialOCF(t).ask(t, coap.POST, "/oic/sec/account", up, coap.Changed)
}

func TestAnOutsideServerIsReachedUnderTheGuard(t *testing.T) {
	a := newOAuthServer(t)
	s := start(t, a.behind(t, func(c *config.Config) { c.Webhook.AllowCIDRs = nil }))
	s.runCoAP(t)
	got := s.dialOCF(t)
	got.ask(t, coap.POST, "/oic/sec/account", map[string]any{"di": ocfDevice, "accesstoken": "good", "authprovider": "cloud"}, coap.ServiceUnavailable)
	a.change(func() {
		if len(a.asked) != 0 {
			t.Errorf("the server at a private address was asked: %v", a.asked)
		}
	})
}

func TestOCFProvidersThatContradict(t *testing.T) {
	a := newOAuthServer(t)
	for name, tc := range map[string]struct {
		change func(*coapgw.OCFConfig)
		want   string
	}{
		"another authority":  {func(o *coapgw.OCFConfig) { o.Providers[1].Authority = "https://other.example" }, "providers[1].authority"},
		"this server beside": {func(o *coapgw.OCFConfig) { o.Providers[1] = coapgw.OCFProvider{Name: "own"} }, "providers[1].authority"},
		"another organisation": {func(o *coapgw.OCFConfig) {
			o.Providers[1].Organisation = "x"
		}, "providers[1].organisation"},
		"no secret":             {func(o *coapgw.OCFConfig) { o.Providers[0].ClientSecretFile = "" }, "providers[0].client_secret_file"},
		"a secret that is away": {func(o *coapgw.OCFConfig) { o.Providers[0].ClientSecretFile = "/nowhere" }, "client_secret_file"},
		"an authority in clear": {func(o *coapgw.OCFConfig) {
			o.Providers[0].Authority, o.Providers[1].Authority = "http://a.example", "http://a.example"
		}, "https"},
		"no such organisation":   {func(o *coapgw.OCFConfig) { o.Providers[0].Organisation, o.Providers[1].Organisation = "x", "x" }, "organisation"},
		"a grant for the client": {func(o *coapgw.OCFConfig) { o.OwnerClaim = "sub" }, "grant_type"},
	} {
		conf := config.Default()
		a.behind(t)(&conf)
		conf.Data = t.TempDir()
		tc.change(&conf.CoAP.OCF)
		err := conf.Validate()
		if err == nil {
			var s *server.Server
			if s, err = server.Build(t.Context(), conf, slog.New(slog.DiscardHandler)); err == nil {
				s.Close()
			}
		}
		if err == nil || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %s named", name, err, tc.want)
		}
	}
}
