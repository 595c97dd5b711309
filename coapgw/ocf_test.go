package coapgw_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"io"
	"maps"
	"math/big"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"
	"github.com/pion/dtls/v3"
	godtls "github.com/plgd-dev/go-coap/v3/dtls"
	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/plgd-dev/go-coap/v3/message/pool"
	"github.com/plgd-dev/go-coap/v3/options"
	gotcp "github.com/plgd-dev/go-coap/v3/tcp"

	"keystead/coap"
	"keystead/coapgw"
	"keystead/devices"
	"keystead/fault"
	"keystead/identity"
)

const (
	ocfDevice = "b5a2a42e-b285-42f1-a36b-034c8fc8efd5"
	ocfOther  = "c1d4a7d0-0c3b-4a37-9a1e-2f0f3c1d5e11"
)

// cloud is what is behind the OCF resources in the tests: tokens are their own
// claims, and codes are good for once.
type cloud struct {
	mu      sync.Mutex
	tokens  map[string]map[string]any
	codes   map[string]coapgw.OCFTokens
	refresh map[string]coapgw.OCFTokens
	owners  map[string]string
	roots   *x509.CertPool
	down    bool
	gw      *coapgw.Gateway
}

func (c *cloud) Exchange(_ context.Context, _ coapgw.OCFProvider, code string) (coapgw.OCFTokens, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	t, ok := c.codes[code]
	if !ok {
		return t, fault.New(fault.Unauthenticated, "no such code")
	}
	delete(c.codes, code)
	return t, nil
}

func (c *cloud) Refresh(_ context.Context, p coapgw.OCFProvider, token string) (coapgw.OCFTokens, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	t, ok := c.refresh[token]
	if !ok || p.Name != "ours" {
		return t, fault.New(fault.Unauthenticated, "no such refresh token")
	}
	delete(c.refresh, token)
	return t, nil
}

func (c *cloud) Verify(_ context.Context, token string) (coapgw.OCFClaims, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.down {
		return coapgw.OCFClaims{}, fault.New(fault.Unavailable, "the provider is not reachable")
	}
	claims, ok := c.tokens[token]
	if !ok {
		return coapgw.OCFClaims{}, fault.New(fault.Unauthenticated, "not signed by anybody known")
	}
	return coapgw.OCFClaims{All: claims, Org: "org1"}, nil
}

func (c *cloud) Trusted(_ context.Context, _ string, chain []*x509.Certificate) error {
	_, err := chain[0].Verify(x509.VerifyOptions{Roots: c.roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	return err
}

func (c *cloud) actor(id string) identity.Actor {
	return identity.Actor{Kind: identity.Device, ID: "dev-" + id, Org: "org1", Name: id}
}

func (c *cloud) Register(_ context.Context, _, id, owner string, _ *identity.Actor) (identity.Actor, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if had := c.owners[id]; had != "" && had != owner {
		return identity.Actor{}, fault.New(fault.Unauthenticated, "the device is owned by another user")
	}
	c.owners[id] = owner
	return c.actor(id), nil
}

func (c *cloud) Registered(_ context.Context, _, id, owner string) (identity.Actor, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.owners[id] != owner {
		return identity.Actor{}, fault.New(fault.NotFound, "no such device")
	}
	return c.actor(id), nil
}

func (c *cloud) Unregister(_ context.Context, _, id, owner string) error {
	c.mu.Lock()
	had := c.owners[id]
	delete(c.owners, id)
	c.mu.Unlock()
	if had != owner {
		return fault.New(fault.NotFound, "no such device")
	}
	c.gw.Changed(devices.Change{What: devices.DecommissionedNow, Device: devices.Device{ID: "dev-" + id}})
	return nil
}

// ocfWorld runs a gateway with the OCF resources. By default the token and the
// certificate are both free to name a device.
func ocfWorld(t *testing.T, set func(*coapgw.OCFConfig)) (*world, *cloud) {
	c := &cloud{
		tokens: map[string]map[string]any{}, codes: map[string]coapgw.OCFTokens{}, refresh: map[string]coapgw.OCFTokens{}, owners: map[string]string{},
		roots: x509.NewCertPool(),
	}
	w := newWorld(t, func(g *coapgw.Gateway) {
		g.OCF.Enabled = true
		g.OCF.ClientCertificateRequired = false
		g.OCF.Providers = []coapgw.OCFProvider{{Name: "ours"}}
		if set != nil {
			set(&g.OCF)
		}
		g.Accounts, c.gw = c, g
	})
	c.roots.AddCert(w.ca.cert)
	return w, c
}

// grant makes a token and returns it.
func (c *cloud) grant(name string, claims map[string]any) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if claims["sub"] == nil {
		claims["sub"] = "user1"
	}
	c.tokens[name] = claims
	return name
}

// own registers a device as user1's.
func (c *cloud) own(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.owners[id] = "user1"
}

// ocfCertificate is a certificate with an OCF identity.
func (w *world) ocfCertificate(cn string, usages ...x509.ExtKeyUsage) tls.Certificate {
	key := must(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))
	template := &x509.Certificate{
		SerialNumber: must(rand.Int(rand.Reader, big.NewInt(1<<62))), Subject: pkix.Name{CommonName: cn},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: usages, UnknownExtKeyUsage: []asn1.ObjectIdentifier{{1, 3, 6, 1, 4, 1, 44924, 1, 6}},
	}
	if name, ok := strings.CutPrefix(cn, "no identity "); ok {
		template.Subject.CommonName, template.UnknownExtKeyUsage = name, nil
	}
	der := must(x509.CreateCertificate(rand.Reader, template, w.ca.cert, key.Public(), w.ca.key))
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

var both = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}

func cborMap(v map[string]any) []byte { return must(cbor.Marshal(v)) }

// goClient is a client of go-coap's, over either transport.
type goClient interface {
	Post(ctx context.Context, path string, format message.MediaType, body io.ReadSeeker, opts ...message.Option) (*pool.Message, error)
	Delete(ctx context.Context, path string, opts ...message.Option) (*pool.Message, error)
	Get(ctx context.Context, path string, opts ...message.Option) (*pool.Message, error)
	Done() <-chan struct{}
	Close() error
}

func (w *world) goCoAP(t *testing.T, over string, certs ...tls.Certificate) goClient {
	t.Helper()
	pool := x509.NewCertPool()
	pool.AddCert(w.ca.cert)
	if over == "TCP" {
		c, err := gotcp.Dial(w.tcp.String(), options.WithTLS(&tls.Config{RootCAs: pool, ServerName: "localhost", Certificates: certs}))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close(); <-c.Done() })
		return c
	}
	opts := []dtls.ClientOption{}
	if len(certs) > 0 {
		opts = append(opts, dtls.WithCertificates(certs...))
	}
	conn, err := w.dial(opts...)
	if err != nil {
		t.Fatal(err)
	}
	c := godtls.Client(conn.dtls)
	t.Cleanup(func() { c.Close(); <-c.Done(); conn.close() })
	return c
}

func TestAGoCoAPClientIsServedAsByAnOCFCloud(t *testing.T) {
	for _, over := range []string{"TCP", "DTLS"} {
		w, cl := ocfWorld(t, nil)
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()
		expiry := time.Now().Add(time.Hour)
		access := cl.grant("access1", map[string]any{"exp": float64(expiry.Unix())})
		cl.codes["code1"] = coapgw.OCFTokens{Access: access, Refresh: "refresh1", Expiry: expiry}
		cl.refresh["refresh1"] = coapgw.OCFTokens{Access: cl.grant("access2", map[string]any{"exp": float64(expiry.Unix())}), Refresh: "refresh2", Expiry: expiry}
		c, other := w.goCoAP(t, over), w.goCoAP(t, over)
		post := func(c goClient, path string, body map[string]any, code codes.Code) map[string]any {
			t.Helper()
			resp, err := c.Post(ctx, path, message.AppOcfCbor, bytes.NewReader(cborMap(body)))
			if err != nil {
				t.Fatalf("%s: POST %s: %v", over, path, err)
			}
			raw, _ := resp.ReadBody()
			if resp.Code() != code {
				t.Fatalf("%s: POST %s: %v %s, want %v", over, path, resp.Code(), raw, code)
			}
			var v map[string]any
			if err := cbor.Unmarshal(raw, &v); err != nil {
				t.Fatalf("%s: POST %s: %x: %v", over, path, raw, err)
			}
			return v
		}
		signUp := map[string]any{"di": ocfDevice, "accesstoken": "code1", "authprovider": "ours", "devicetype": "device"}
		v := post(c, "/oic/sec/account", signUp, codes.Changed)
		if v["accesstoken"] != "access1" || v["refreshtoken"] != "refresh1" || v["uid"] != "user1" || v["redirecturi"] != "" || v["expiresin"].(uint64) < 3500 {
			t.Errorf("%s: sign up: %v", over, v)
		}
		if again := post(c, "/oic/sec/account", signUp, codes.Changed); again["accesstoken"] != "access1" {
			t.Errorf("%s: sign up again with the code that is used up: %v", over, again)
		}
		signIn := map[string]any{"di": ocfDevice, "uid": "user1", "accesstoken": "access1", "login": true}
		if v = post(c, "/oic/sec/session", signIn, codes.Changed); v["expiresin"].(uint64) > 3480 || v["expiresin"].(uint64) < 3400 {
			t.Errorf("%s: sign in: %v, want two minutes less than the token", over, v)
		}
		post(other, "/oic/sec/session", signIn, codes.Changed)
		if resp, err := c.Get(ctx, "/whoami"); err != nil || resp.Code() != codes.Content {
			t.Errorf("%s: whoami: %v %v", over, resp, err)
		}
		if resp, err := c.Post(ctx, "/oic/rd", message.AppOcfCbor, bytes.NewReader(cborMap(map[string]any{"di": ocfDevice}))); err != nil || resp.Code() != codes.Changed {
			t.Errorf("%s: publish: %v %v", over, resp, err)
		}
		if v = post(c, "/oic/sec/tokenrefresh", map[string]any{"di": ocfDevice, "uid": "user1", "refreshtoken": "refresh1", "granttype": "refresh_token"}, codes.Changed); v["accesstoken"] != "access2" || v["refreshtoken"] != "refresh2" {
			t.Errorf("%s: refresh: %v", over, v)
		}
		if v = post(c, "/oic/sec/session", map[string]any{"di": ocfDevice, "login": false}, codes.Changed); len(v) != 0 {
			t.Errorf("%s: sign out: %v, want an empty map", over, v)
		}
		signIn["accesstoken"] = "access2"
		post(c, "/oic/sec/session", signIn, codes.Changed)
		resp, err := c.Delete(ctx, "/oic/sec/account")
		if err != nil || resp.Code() != codes.Deleted {
			t.Fatalf("%s: sign off: %v %v", over, resp, err)
		}
		select {
		case <-other.Done():
		case <-time.After(4 * time.Second):
			t.Errorf("%s: the device's other session outlives the sign-off", over)
		}
		if resp, err = c.Get(ctx, "/whoami"); err != nil || resp.Code() != codes.Unauthorized {
			t.Errorf("%s: whoami after the sign-off: %v %v, want 4.01", over, resp, err)
		}
		select {
		case <-c.Done():
		case <-time.After(4 * time.Second):
			t.Errorf("%s: the session is not closed after 4.01", over)
		}
	}
}

// TestDeviceIDRules goes through the table by which a cloud tells which device
// a session is of.
func TestDeviceIDRules(t *testing.T) {
	type claims = map[string]any
	claimed := func(c *coapgw.OCFConfig) { c.DeviceIDClaim = "https://example.com/deviceId" }
	certified := func(c *coapgw.OCFConfig) { c.ClientCertificateRequired = true }
	bothSet := func(c *coapgw.OCFConfig) { claimed(c); certified(c) }
	named := func(v any) claims { return claims{"https://example.com/deviceId": v} }
	for _, tc := range []struct {
		name   string
		set    func(*coapgw.OCFConfig)
		claims claims
		cn     string // of the certificate; "" for none
		usages []x509.ExtKeyUsage
		stated string
		device string // that is signed in; "" for 4.01 and the end
		says   string
	}{
		{"neither: what is stated", nil, claims{}, "", nil, ocfDevice, ocfDevice, ""},
		{"a claim that is no text", claimed, named(7), "", nil, ocfDevice, "", "is not a text"},
		{"a claim that is missing", claimed, claims{}, "", nil, ocfDevice, "", "doesn't contain the required device id claim('https://example.com/deviceId')"},
		{"a claim that is empty", claimed, named(""), "", nil, ocfDevice, "", "doesn't contain the required device id claim"},
		{"a claim decides, not what is stated", claimed, named(ocfDevice), "", nil, ocfOther, ocfDevice, ""},
		{"a claim is not read as a path", func(c *coapgw.OCFConfig) { c.DeviceIDClaim = "a.b" }, claims{"a": claims{"b": ocfDevice}}, "", nil, ocfDevice, "", "required device id claim"},
		{"a certificate decides, not what is stated", certified, claims{}, "uuid:" + ocfDevice, both, ocfOther, ocfDevice, ""},
		{"a certificate in capitals and braces", certified, claims{}, "UUID:{" + strings.ToUpper(ocfDevice) + "}", both, ocfOther, ocfDevice, ""},
		{"a certificate without an identity", certified, claims{}, "no identity uuid:" + ocfDevice, both, ocfDevice, "", "certificate of device doesn't contain device id"},
		{"a certificate with another subject", certified, claims{}, "pump 1", both, ocfDevice, "", "certificate of device doesn't contain device id"},
		{"a certificate with half an id", certified, claims{}, "uuid:b5a2a42e", both, ocfDevice, "", "certificate of device doesn't contain device id"},
		{"a certificate that is for clients only", certified, claims{}, "uuid:" + ocfDevice, both[:1], ocfDevice, "", "certificate of device doesn't contain device id"},
		{"both, and they agree", bothSet, named(ocfDevice), "uuid:" + ocfDevice, both, ocfOther, ocfDevice, ""},
		{"both, and they differ", bothSet, named(ocfOther), "uuid:" + ocfDevice, both, ocfDevice, "", fmt.Sprintf("access token issued to the device ('%s') used by the different device ('%s')", ocfOther, ocfDevice)},
		{"both, and the claim is in capitals", bothSet, named(strings.ToUpper(ocfDevice)), "uuid:" + ocfDevice, both, ocfDevice, "", "used by the different device"},
	} {
		w, cl := ocfWorld(t, tc.set)
		cl.own(ocfDevice)
		cl.own(ocfOther)
		cl.grant("access", tc.claims)
		cl.codes["code"] = coapgw.OCFTokens{Access: "access", Refresh: "r"}
		cl.refresh["r0"] = coapgw.OCFTokens{Access: "access", Refresh: "r"}
		for what, request := range map[string]func(*client) *coap.Message{
			"sign up": func(c *client) *coap.Message {
				return c.request(coap.POST, "/oic/sec/account", nil, cborMap(claims{"di": tc.stated, "accesstoken": "code", "authprovider": "ours"}))
			},
			"sign in": func(c *client) *coap.Message {
				return c.request(coap.POST, "/oic/sec/session", nil, cborMap(claims{"di": tc.stated, "uid": "user1", "accesstoken": "access", "login": true}))
			},
			"sign out": func(c *client) *coap.Message {
				return c.request(coap.POST, "/oic/sec/session", nil, cborMap(claims{"di": tc.stated, "uid": "user1", "accesstoken": "access"}))
			},
			"refresh token": func(c *client) *coap.Message {
				return c.request(coap.POST, "/oic/sec/tokenrefresh", nil, cborMap(claims{"di": tc.stated, "uid": "user1", "refreshtoken": "r0"}))
			},
			"sign off": func(c *client) *coap.Message {
				return c.request(coap.DELETE, "/oic/sec/account", coap.Options{}.Add(coap.URIQuery, []byte("di="+tc.stated)).Add(coap.URIQuery, []byte("uid=user1&accesstoken=access")), nil)
			},
		} {
			var certs []tls.Certificate
			if tc.cn != "" {
				certs = append(certs, w.ocfCertificate(tc.cn, tc.usages...))
			} else if w.gw.OCF.ClientCertificateRequired {
				certs = append(certs, w.ocfCertificate("x", both...))
			}
			c := w.mustDialTCP(certs...)
			got := c.exchange(request(c))
			if tc.device == "" {
				want := "cannot handle " + what + ": "
				if got.Code != coap.Unauthorized || !strings.Contains(string(got.Payload), tc.says) || !strings.Contains(string(got.Payload), want) {
					t.Errorf("%s, %s: %v %s, want 4.01 with %q", tc.name, what, got.Code, got.Payload, tc.says)
				}
				if !c.isClosed() {
					t.Errorf("%s, %s: the session is not closed", tc.name, what)
				}
				continue
			}
			if got.Code.Class() != 2 {
				t.Errorf("%s, %s: %v %s, want success", tc.name, what, got.Code, got.Payload)
			}
			if what == "sign in" {
				who := c.do(coap.GET, "/whoami", coap.Options{}.AddUint(coap.Accept, 50), nil)
				if !strings.Contains(string(who.Payload), `"dev-`+tc.device+`"`) {
					t.Errorf("%s: signed in as %s, want %s", tc.name, who.Payload, tc.device)
				}
			}
			cl.mu.Lock() // put back what was used up
			cl.owners[ocfDevice], cl.owners[ocfOther] = "user1", "user1"
			cl.codes["code"] = coapgw.OCFTokens{Access: "access", Refresh: "r"}
			cl.refresh["r0"] = coapgw.OCFTokens{Access: "access", Refresh: "r"}
			cl.mu.Unlock()
			c.close()
		}
	}
}

func TestOCFErrors(t *testing.T) {
	type m = map[string]any
	w, cl := ocfWorld(t, nil)
	cl.grant("good", m{})
	cl.grant("other", m{"sub": "user2"})
	cl.grant("soon", m{"exp": float64(time.Now().Add(time.Minute).Unix())})
	cl.grant("nobody", m{"sub": 7})
	cl.own(ocfDevice)
	in := func(change m) []byte {
		v := m{"di": ocfDevice, "uid": "user1", "accesstoken": "good", "login": true}
		maps.Copy(v, change)
		return cborMap(v)
	}
	up := func(change m) []byte {
		v := m{"di": ocfDevice, "accesstoken": "code", "authprovider": "ours"}
		maps.Copy(v, change)
		return cborMap(v)
	}
	tokens := map[string]coapgw.OCFTokens{
		"no-refresh": {Access: "good"}, "expired": {Access: "good", Refresh: "r", Expiry: time.Now().Add(-time.Second)},
		"unsigned": {Access: "?", Refresh: "r"}, "ownerless": {Access: "nobody", Refresh: "r"}, "another's": {Access: "other", Refresh: "r"},
	}
	maps.Copy(cl.codes, tokens)
	opt := func(id coap.OptionID, v uint32) coap.Options { return coap.Options{}.AddUint(id, v) }
	q := func(v string) coap.Options { return coap.Options{}.Add(coap.URIQuery, []byte(v)) }
	for _, tc := range []struct {
		name    string
		method  coap.Code
		path    string
		options coap.Options
		body    []byte
		code    coap.Code
		says    string
	}{
		{"no body", coap.POST, "/oic/sec/account", nil, nil, coap.BadRequest, "CBOR map"},
		{"no CBOR", coap.POST, "/oic/sec/session", nil, []byte("{}"), coap.BadRequest, "CBOR map"},
		{"another type", coap.POST, "/oic/sec/session", nil, in(m{"login": "yes"}), coap.BadRequest, "CBOR map"},
		{"sign up without di", coap.POST, "/oic/sec/account", nil, up(m{"di": ""}), coap.BadRequest, "invalid device id"},
		{"sign up without a code", coap.POST, "/oic/sec/account", nil, up(m{"accesstoken": ""}), coap.BadRequest, "invalid authorization code"},
		{"sign up at nobody's", coap.POST, "/oic/sec/account", nil, up(m{"authprovider": "x"}), coap.Unauthorized, "unknown authorization provider('x')"},
		{"sign up at no provider", coap.POST, "/oic/sec/account", nil, up(m{"authprovider": ""}), coap.Unauthorized, "unknown authorization provider('')"},
		{"sign up with a bad code", coap.POST, "/oic/sec/account", nil, up(m{"accesstoken": "bad"}), coap.ServiceUnavailable, "temporary error: "},
		{"sign up, no refresh token", coap.POST, "/oic/sec/account", nil, up(m{"accesstoken": "no-refresh"}), coap.Unauthorized, "refresh token"},
		{"sign up, expired", coap.POST, "/oic/sec/account", nil, up(m{"accesstoken": "expired"}), coap.Unauthorized, "expired"},
		{"sign up, unsigned", coap.POST, "/oic/sec/account", nil, up(m{"accesstoken": "unsigned"}), coap.Unauthorized, "not valid"},
		{"sign up, no owner", coap.POST, "/oic/sec/account", nil, up(m{"authcode": "ownerless", "accesstoken": ""}), coap.Unauthorized, "cannot determine owner"},
		{"sign up of another's device", coap.POST, "/oic/sec/account", nil, up(m{"accesstoken": "another's"}), coap.Unauthorized, "owned by another user"},
		{"sign in without di", coap.POST, "/oic/sec/session", nil, in(m{"di": ""}), coap.BadRequest, "invalid device id"},
		{"sign in without uid", coap.POST, "/oic/sec/session", nil, in(m{"uid": ""}), coap.BadRequest, "invalid user id"},
		{"sign in without a token", coap.POST, "/oic/sec/session", nil, in(m{"accesstoken": ""}), coap.BadRequest, "invalid access token"},
		{"sign in, unsigned", coap.POST, "/oic/sec/session", nil, in(m{"accesstoken": "?"}), coap.Unauthorized, "not valid"},
		{"sign in as another", coap.POST, "/oic/sec/session", nil, in(m{"accesstoken": "other"}), coap.Unauthorized, "owner identifier from the token 'user2' doesn't match userID 'user1' from the device"},
		{"sign in, expiring", coap.POST, "/oic/sec/session", nil, in(m{"accesstoken": "soon"}), coap.Unauthorized, "in less time than 2m0s"},
		{"sign in of a device that is not registered", coap.POST, "/oic/sec/session", nil, in(m{"di": ocfOther}), coap.Unauthorized, "access to device('" + ocfOther + "') denied"},
		{"sign in, another format", coap.POST, "/oic/sec/session", opt(coap.Accept, 0), in(nil), coap.ServiceUnavailable, "format 0"},
		{"sign out of nothing", coap.POST, "/oic/sec/session", nil, cborMap(m{"di": ocfDevice}), coap.BadRequest, "invalid authorization context"},
		{"refresh without di", coap.POST, "/oic/sec/tokenrefresh", nil, cborMap(m{"uid": "u", "refreshtoken": "r"}), coap.BadRequest, "invalid deviceID"},
		{"refresh without a token", coap.POST, "/oic/sec/tokenrefresh", nil, cborMap(m{"di": "d", "uid": "u"}), coap.BadRequest, "invalid refreshToken"},
		{"refresh without uid", coap.POST, "/oic/sec/tokenrefresh", nil, cborMap(m{"di": "d", "refreshtoken": "r"}), coap.BadRequest, "invalid userId"},
		{"refresh, refused", coap.POST, "/oic/sec/tokenrefresh", nil, cborMap(m{"di": "d", "uid": "u", "refreshtoken": "r"}), coap.ServiceUnavailable, "temporary error: "},
		{"refresh at nobody's", coap.POST, "/oic/sec/tokenrefresh", nil, cborMap(m{"di": "d", "uid": "u", "refreshtoken": "r", "authprovider": "x"}), coap.Unauthorized, "unknown authorization provider"},
		{"sign off with a bad escape", coap.DELETE, "/oic/sec/account", q("di=%zz"), nil, coap.BadOption, "invalid URL escape"},
		{"sign off without di", coap.DELETE, "/oic/sec/account", q("uid=u"), nil, coap.BadRequest, "invalid device id"},
		{"sign off without uid", coap.DELETE, "/oic/sec/account", q("di=d"), nil, coap.BadRequest, "invalid user id"},
		{"sign off without a token", coap.DELETE, "/oic/sec/account", q("di=d&uid=u"), nil, coap.BadRequest, "invalid access token"},
		{"another method", coap.PUT, "/oic/sec/session", nil, nil, coap.NotFound, "unsupported method PUT"},
		{"another path", coap.GET, "/oic/res", nil, nil, coap.Unauthorized, ""},
		{"publish, not signed in", coap.POST, "/oic/rd", nil, nil, coap.Unauthorized, ""},
	} {
		c := w.mustDialTCP()
		got := c.do(tc.method, tc.path, tc.options, tc.body)
		if got.Code != tc.code || !strings.Contains(string(got.Payload), tc.says) {
			t.Errorf("%s: %v %s, want %v with %q", tc.name, got.Code, got.Payload, tc.code, tc.says)
		}
		if _, ok := got.Options.Get(coap.ContentFormat); ok {
			t.Errorf("%s: a diagnostic payload has a format", tc.name)
		}
		if !c.isClosed() {
			t.Errorf("%s: the session is not closed", tc.name)
		}
	}
	c := w.mustDialTCP()
	for _, tc := range []struct {
		name   string
		accept coap.Options
		method coap.Code
		path   string
		body   []byte
		code   coap.Code
		format coap.Format
	}{
		{"the time", nil, coap.GET, "/x.plgd.dev/time", nil, coap.Content, coap.OCFCBOR},
		{"the time in JSON", opt(coap.Accept, 50), coap.GET, "/x.plgd.dev/time", nil, coap.Content, coap.JSON},
		{"the time, by POST", nil, coap.POST, "/x.plgd.dev/time", nil, coap.NotFound, 0},
		{"sign in, a map of indefinite length", opt(coap.Accept, 60), coap.POST, "/oic/sec/session", append(append([]byte{0xbf}, in(nil)[1:]...), 0xff), coap.Changed, coap.CBOR},
		{"links of the device's resources", nil, coap.GET, "/oic/rd", nil, coap.Content, coap.OCFCBOR},
		{"a path that is not there", nil, coap.GET, "/oic/res", nil, coap.NotFound, 0},
		{"again", nil, coap.GET, "/whoami", nil, coap.Content, coap.CBOR},
	} {
		got := c.do(tc.method, tc.path, tc.accept, tc.body)
		format, _ := got.Options.Uint(coap.ContentFormat)
		if got.Code != tc.code || coap.Format(format) != tc.format {
			t.Errorf("%s: %v %s in format %d, want %v in %d", tc.name, got.Code, got.Payload, format, tc.code, tc.format)
		}
	}
}

func TestOneDeviceOnOneSession(t *testing.T) {
	w, cl := ocfWorld(t, nil)
	cl.grant("good", map[string]any{})
	cl.own(ocfDevice)
	in := cborMap(map[string]any{"di": ocfDevice, "uid": "user1", "accesstoken": "good", "login": true})
	c := w.mustDial(psk("dev1", testKey)...) // a device of ours, and not that one
	got := c.do(coap.POST, "/oic/sec/session", nil, in)
	if got.Code != coap.Unauthorized || !c.isClosed() {
		t.Errorf("the PSK of one device and the token of another: %v %s, want 4.01 and the end", got.Code, got.Payload)
	}
	w.ledger.add("dev1", cl.actor(ocfDevice))
	c = w.mustDial(psk("dev1", testKey)...)
	if got = c.do(coap.POST, "/oic/sec/session", nil, in); got.Code != coap.Changed {
		t.Errorf("the PSK and the token of one device: %v %s, want 2.04", got.Code, got.Payload)
	}
}

func TestASignInEndsWithItsTokenAndItsDevice(t *testing.T) {
	w, cl := ocfWorld(t, func(c *coapgw.OCFConfig) { c.OwnerCacheExpiration = 500 * time.Millisecond })
	cl.own(ocfDevice)
	cl.grant("brief", map[string]any{"exp": float64(time.Now().Add(4 * time.Second).Unix())})
	cl.grant("long", map[string]any{})
	in := func(token string) []byte {
		return cborMap(map[string]any{"di": ocfDevice, "uid": "user1", "accesstoken": token, "login": true})
	}
	c := w.mustDialTCP()
	if got := c.do(coap.POST, "/oic/sec/session", nil, in("brief")); got.Code != coap.Changed {
		t.Fatalf("sign in: %v %s", got.Code, got.Payload)
	}
	time.Sleep(3500 * time.Millisecond)
	if got := c.do(coap.GET, "/whoami", nil, nil); got.Code != coap.Unauthorized || !c.isClosed() {
		t.Errorf("after the token's time: %v %s, want 4.01 and the end", got.Code, got.Payload)
	}
	c = w.mustDialTCP()
	c.do(coap.POST, "/oic/sec/session", nil, in("long"))
	cl.mu.Lock()
	delete(cl.tokens, "long") // revoked, and the epoch moves
	cl.mu.Unlock()
	w.ledger.epoch.Add(1)
	if got := c.do(coap.GET, "/x.plgd.dev/time", nil, nil); got.Code.Class() == 2 && !c.isClosed() {
		t.Errorf("after the token was revoked: %v, want the session ended", got.Code)
	}
	c = w.mustDialTCP()
	cl.grant("long", map[string]any{})
	c.do(coap.POST, "/oic/sec/session", nil, in("long"))
	w.gw.Changed(devices.Change{What: devices.SuspendedNow, Device: devices.Device{ID: "dev-" + ocfDevice}})
	if !c.isClosed() {
		t.Error("the session outlives the suspension of the device it is signed in as")
	}
}

func TestContradictoryOCFSettingsAreRefused(t *testing.T) {
	for want, set := range map[string]func(*coapgw.OCFConfig){
		"ocf.providers: at least one":                             func(c *coapgw.OCFConfig) { c.Providers = nil },
		`ocf.providers[1].name: "a" is there twice`:               func(c *coapgw.OCFConfig) { c.Providers = []coapgw.OCFProvider{{Name: "a"}, {Name: "a"}} },
		"contradicts ocf.owner_claim, which is sub":               func(c *coapgw.OCFConfig) { c.Providers[0].GrantType = coapgw.ClientCredentials },
		"ocf.owner_claim: must name a claim":                      func(c *coapgw.OCFConfig) { c.OwnerClaim = "" },
		"contradicts ocf.device_id_claim":                         func(c *coapgw.OCFConfig) { c.IdentityPropertiesRequired, c.DeviceIDClaim = false, "x" },
		"contradicts ocf.client_certificate_required":             func(c *coapgw.OCFConfig) { c.ClientCertificateRequired, c.DisconnectOnExpiredCertificate = false, true },
		"ocf.owner_cache_expiration: must be longer than nothing": func(c *coapgw.OCFConfig) { c.OwnerCacheExpiration = 0 },
		"must be the same for all": func(c *coapgw.OCFConfig) {
			c.Providers = []coapgw.OCFProvider{{Name: "a", Authority: "https://a", ClientID: "x", ClientSecretFile: "y"}, {Name: "b", Authority: "https://b", ClientID: "x", ClientSecretFile: "y"}}
		},
	} {
		c := coapgw.DefaultConfig()
		c.OCF.Enabled = true
		c.OCF.Providers = []coapgw.OCFProvider{{Name: "ours"}}
		if err := c.Validate(); err != nil {
			t.Fatalf("the settings as they should be: %v", err)
		}
		set(&c.OCF)
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %q in it", err, want)
		}
	}
}
