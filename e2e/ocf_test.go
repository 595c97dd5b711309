//go:build e2e

package e2e_test

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
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"io"
	"math/big"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"
	"github.com/golang-jwt/jwt/v5"
	"github.com/pion/dtls/v3"
	godtls "github.com/plgd-dev/go-coap/v3/dtls"
	gomessage "github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/plgd-dev/go-coap/v3/message/pool"
	"github.com/plgd-dev/go-coap/v3/options"
	gotcp "github.com/plgd-dev/go-coap/v3/tcp"
)

// goClient is a client of go-coap's, over either transport.
type goClient interface {
	Post(ctx context.Context, path string, format gomessage.MediaType, body io.ReadSeeker, opts ...gomessage.Option) (*pool.Message, error)
	Delete(ctx context.Context, path string, opts ...gomessage.Option) (*pool.Message, error)
	Get(ctx context.Context, path string, opts ...gomessage.Option) (*pool.Message, error)
	Done() <-chan struct{}
	Close() error
}

// oauth is an OAuth server of the test's own: a code or refresh token is the id of the device
// that its access tokens name.
func oauth(t *testing.T) *httptest.Server {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	point, err := key.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	var at string
	answer := func(w http.ResponseWriter, v any) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(v)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, map[string]any{"issuer": at, "authorization_endpoint": at + "/authorize", "token_endpoint": at + "/token", "jwks_uri": at + "/keys"})
	})
	mux.HandleFunc("/keys", func(w http.ResponseWriter, _ *http.Request) {
		enc := base64.RawURLEncoding.EncodeToString
		answer(w, map[string]any{"keys": []map[string]string{{"kty": "EC", "crv": "P-256", "alg": "ES256", "kid": "1", "x": enc(point[1:33]), "y": enc(point[33:])}}})
	})
	mux.HandleFunc("/token", func(w http.ResponseWriter, r *http.Request) {
		device := r.FormValue("code") + r.FormValue("refresh_token")
		token := jwt.NewWithClaims(jwt.SigningMethodES256, jwt.MapClaims{
			"iss": at, "aud": "cloud", "sub": "ann", "device": device, "iat": time.Now().Unix(), "exp": time.Now().Add(time.Hour).Unix(), "jti": rand.Text(),
		})
		token.Header["kid"] = "1"
		access, err := token.SignedString(key)
		if err != nil {
			t.Error(err)
		}
		answer(w, map[string]any{"access_token": access, "token_type": "Bearer", "refresh_token": device, "expires_in": 3600})
	})
	web := httptest.NewTLSServer(mux)
	t.Cleanup(web.Close)
	at = web.URL
	return web
}

// A client of go-coap's with an OCF identity certificate of a CA that was imported, and a token of
// an outside OAuth server, is served as by an OCF cloud; where the two name different devices
// it is refused, and its session ends.
func TestOCFCloud(t *testing.T) {
	t.Parallel()
	const di, another = "b5a2a42e-b285-42f1-a36b-034c8fc8efd5", "c5a2a42e-b285-42f1-a36b-034c8fc8efd5"
	web := oauth(t)
	dir := t.TempDir()
	write(t, dir+"/oauth.pem", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: web.Certificate().Raw}))
	write(t, dir+"/secret", []byte("s3cret"))
	write(t, dir+"/keystead.yaml", []byte(`
webhook: {ca_file: `+dir+`/oauth.pem, allow_cidrs: [127.0.0.0/8]}
coap:
  ocf:
    enabled: true
    device_id_claim: device
    providers: [{name: cloud, authority: "`+web.URL+`", client_id: gateway, client_secret_file: `+dir+`/secret, audience: cloud}]
`))
	s := prepare(t)
	s.args = append(s.args, "--config", dir+"/keystead.yaml")
	s.start()

	root := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "OCF maker"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(48 * time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, root, root, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	if root, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	write(t, s.path("maker.pem"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}))
	s.cli("ca", "import", s.path("maker.pem"))
	leaf := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "uuid:" + di}, NotBefore: root.NotBefore, NotAfter: root.NotBefore.Add(24 * time.Hour),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		UnknownExtKeyUsage: []asn1.ObjectIdentifier{{1, 3, 6, 1, 4, 1, 44924, 1, 6}},
	}
	own, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if der, err = x509.CreateCertificate(rand.Reader, leaf, root, own.Public(), key); err != nil {
		t.Fatal(err)
	}
	pair := tls.Certificate{Certificate: [][]byte{der}, PrivateKey: own}

	for over, dial := range map[string]func() goClient{
		"TCP": func() goClient {
			conf := s.tls()
			conf.ServerName, conf.Certificates = "localhost", []tls.Certificate{pair}
			c, err := gotcp.Dial(s.at.CoAPTCP, options.WithTLS(conf))
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { c.Close() })
			return c
		},
		"DTLS": func() goClient {
			c := godtls.Client(s.mustDial(dtls.WithCertificates(pair)).conn)
			t.Cleanup(func() { c.Close() })
			return c
		},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		c := dial()
		post := func(c goClient, path string, body map[string]any, want codes.Code) (v map[string]any) {
			t.Helper()
			b, err := cbor.Marshal(body)
			if err != nil {
				t.Fatal(err)
			}
			resp, err := c.Post(ctx, path, gomessage.AppOcfCbor, bytes.NewReader(b))
			if err != nil {
				t.Fatalf("%s: POST %s: %v", over, path, err)
			}
			raw, _ := resp.ReadBody()
			if resp.Code() != want {
				t.Fatalf("%s: POST %s: %v %s, want %v", over, path, resp.Code(), raw, want)
			}
			_ = cbor.Unmarshal(raw, &v)
			return v
		}
		up := post(c, "/oic/sec/account", map[string]any{"di": "x", "accesstoken": di, "authprovider": "cloud"}, codes.Changed)
		in := map[string]any{"di": "x", "uid": "ann", "accesstoken": up["accesstoken"], "login": true}
		post(c, "/oic/sec/session", in, codes.Changed)
		if resp, err := c.Get(ctx, "/whoami"); err != nil || resp.Code() != codes.Content {
			t.Errorf("%s: whoami: %v, %v", over, resp, err)
		}
		refreshed := post(c, "/oic/sec/tokenrefresh", map[string]any{"di": "x", "uid": "ann", "refreshtoken": up["refreshtoken"]}, codes.Changed)
		post(c, "/oic/sec/session", map[string]any{"login": false}, codes.Changed)
		in["accesstoken"] = refreshed["accesstoken"]
		post(c, "/oic/sec/session", in, codes.Changed)

		wrong := dial()
		if got := post(wrong, "/oic/sec/account", map[string]any{"di": di, "accesstoken": another, "authprovider": "cloud"}, codes.Unauthorized); got != nil {
			t.Errorf("%s: %v", over, got)
		}
		select {
		case <-wrong.Done():
		case <-time.After(patience):
			t.Errorf("%s: the session outlives a token of another device", over)
		}
		if resp, err := c.Delete(ctx, "/oic/sec/account"); err != nil || resp.Code() != codes.Deleted {
			t.Errorf("%s: sign off: %v, %v", over, resp, err)
		}
	}
	if list := s.rest(http.MethodGet, "/api/v1/devices?state=decommissioned", "", http.StatusOK); strings.Count(list, `"decommissioned"`) < 2 {
		t.Errorf("the devices that signed off: %s", list)
	}
}
