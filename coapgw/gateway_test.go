package coapgw_test

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"
	"github.com/pion/dtls/v3"

	"keystead/coap"
	"keystead/coapgw"
	"keystead/devices"
	"keystead/identity"
	"keystead/page"
)

func TestWhoamiIsTheSameByPSKAndByCertificate(t *testing.T) {
	w := newWorld(t)
	for name, c := range map[string]*client{
		"psk":         w.mustDial(psk("dev1", testKey)...),
		"certificate": w.mustDial(certificate(w.ca.issue("cert1"))...),
	} {
		got := c.do(coap.GET, "/whoami", coap.Options{}.AddUint(coap.Accept, uint32(coap.JSON)), nil)
		if got.Code != coap.Content || !strings.Contains(string(got.Payload), `"device":"d1"`) || !strings.Contains(string(got.Payload), `"kind":"`+name) {
			t.Errorf("by %s: %v %s, want d1 by its %s", name, got.Code, got.Payload, name)
		}
		got = c.do(coap.GET, "/whoami", nil, nil)
		var v map[string]any
		if err := cbor.Unmarshal(got.Payload, &v); err != nil || v["device"] != "d1" || v["organisation"] != "org1" {
			t.Errorf("by %s in CBOR: %v, %v, want d1 of org1", name, v, err)
		}
		if f, ok := got.Options.Uint(coap.ContentFormat); !ok || f != uint32(coap.CBOR) {
			t.Errorf("by %s: format %d, want CBOR where nothing else is asked for", name, f)
		}
	}
}

// suitesOf are the cipher suites that each of Debian's clients and this gateway have in common.
var suitesOf = map[string][]dtls.CipherSuiteID{
	"psk": {
		dtls.TLS_PSK_WITH_AES_128_CCM_8, dtls.TLS_PSK_WITH_AES_128_CCM, dtls.TLS_PSK_WITH_AES_256_CCM_8, dtls.TLS_PSK_WITH_AES_128_GCM_SHA256,
		dtls.TLS_PSK_WITH_CHACHA20_POLY1305_SHA256, dtls.TLS_PSK_WITH_AES_128_CBC_SHA256,
		dtls.TLS_ECDHE_PSK_WITH_CHACHA20_POLY1305_SHA256, dtls.TLS_ECDHE_PSK_WITH_AES_128_CBC_SHA256,
	},
	"certificate": {
		dtls.TLS_ECDHE_ECDSA_WITH_AES_128_CCM_8, dtls.TLS_ECDHE_ECDSA_WITH_AES_128_CCM, dtls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
		dtls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, dtls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
	},
}

func TestEverySuite(t *testing.T) {
	f := &fixtures{}
	w := newWorld(t, f.mount, func(g *coapgw.Gateway) { g.LegacyCBC = true })
	cert := w.ca.issue("cert1")
	for _, withCID := range []bool{false, true} {
		for kind, list := range suitesOf {
			for _, suite := range list {
				opts := psk("dev1", testKey, suite)
				if kind == "certificate" {
					opts = certificate(cert, suite)
				}
				if withCID {
					opts = append(opts, dtls.WithConnectionIDGenerator(dtls.RandomCIDGenerator(5)))
				}
				name := fmt.Sprintf("%v, connection id %v", suite, withCID)
				c, err := w.dial(opts...)
				if err != nil {
					t.Errorf("%s: %v", name, err)
					continue
				}
				for range 3 {
					if got := c.do(coap.GET, "/whoami", coap.Options{}.AddUint(coap.Accept, 50), nil); !strings.Contains(string(got.Payload), `"d1"`) {
						t.Errorf("%s: %v %s", name, got.Code, got.Payload)
					}
				}
				c.close()
			}
		}
	}
}

// Both builds of libcoap, which take no list of suites from their user, with a server that
// has one suite: each of those that they have in common with this one.
func TestEverySuiteOfLibcoap(t *testing.T) {
	for _, suite := range []dtls.CipherSuiteID{
		dtls.TLS_PSK_WITH_AES_128_CCM_8, dtls.TLS_PSK_WITH_AES_128_CCM, dtls.TLS_PSK_WITH_AES_128_GCM_SHA256,
		dtls.TLS_ECDHE_PSK_WITH_CHACHA20_POLY1305_SHA256, dtls.TLS_ECDHE_PSK_WITH_AES_128_CBC_SHA256,
		dtls.TLS_ECDHE_ECDSA_WITH_AES_128_CCM_8, dtls.TLS_ECDHE_ECDSA_WITH_AES_128_CCM, dtls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
		dtls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
	} {
		w := listeningWorld(t)
		w.gw.OfferOnly(suite)
		w.run()
		by := w.files("cert1")
		if slices.Contains(suitesOf["psk"], suite) {
			by = []string{"-u", "dev1", "-k", testKey}
		}
		for _, flavour := range []string{"openssl", "gnutls"} {
			if out := w.libcoap(flavour, append([]string{"-B", "5", "-A", "50", "coaps://" + w.udp.String() + "/whoami"}, by...)...); !strings.Contains(out, `"device":"d1"`) {
				t.Errorf("%v, %s: %q", suite, flavour, out)
			}
		}
	}
}

func TestCBCIsOffUnlessAskedFor(t *testing.T) {
	w := newWorld(t)
	if _, err := w.dial(psk("dev1", testKey, dtls.TLS_ECDHE_PSK_WITH_AES_128_CBC_SHA256)...); err == nil {
		t.Error("a CBC suite was negotiated")
	}
}

func TestLibcoap(t *testing.T) {
	f := &fixtures{}
	w := newWorld(t, f.mount)
	dir := t.TempDir()
	url := "coaps://" + w.udp.String()
	tcp := "coaps+tcp://" + w.tcp.String()
	for _, flavour := range []string{"openssl", "gnutls"} {
		key := []string{"-u", "dev1", "-k", testKey}
		cert := w.files("cert1")
		run := func(args ...string) string { return w.libcoap(flavour, append([]string{"-B", "5"}, args...)...) }
		check := func(what, out string, wants ...string) {
			t.Helper()
			for _, want := range wants {
				if !strings.Contains(out, want) {
					t.Errorf("%s, %s: %q, want %q in it", flavour, what, out, want)
				}
			}
		}
		check("whoami by psk", run(append(key, "-A", "50", url+"/whoami")...), `"device":"d1"`, `"kind":"psk"`)
		check("whoami by certificate", run(append(cert, "-A", "50", url+"/whoami")...), `"device":"d1"`, `"kind":"certificate"`)
		check("whoami over TLS", run(append(cert, "-A", "50", tcp+"/whoami")...), `"device":"d1"`, `"kind":"certificate"`)
		check("links", run(append(key, url+"/.well-known/core")...), `</whoami>;rt="keystead.whoami"`)
		check("a path that is not there", run(append(key, url+"/nowhere")...), "4.04")
		for _, size := range []int{5000, 16000} {
			path := filepath.Join(dir, strconv.Itoa(size))
			body := bytes.Repeat([]byte("0123456789"), size/10)
			if err := os.WriteFile(path, body, 0o600); err != nil {
				t.Fatal(err)
			}
			for _, block := range []string{"64", "1024"} {
				what := fmt.Sprintf("post of %d bytes in blocks of %s", size, block)
				check(what+" over DTLS", run(append(key, "-m", "post", "-b", block, "-f", path, url+"/sum")...), string(sumOf(body)))
				check(what+" over TLS", run(append(cert, "-m", "post", "-b", block, "-f", path, tcp+"/sum")...), string(sumOf(body)))
				check(what+" and as much again", run(append(key, "-m", "post", "-b", block, "-f", path, url+"/double")...), string(body)+string(body))
			}
		}
		check("get of a large body", run(append(key, url+"/big")...), string(largeBody))
		check("get of it in small blocks", run(append(key, "-b", "64", url+"/big")...), string(largeBody))
		check("get of it over TLS", run(append(cert, tcp+"/big")...), string(largeBody))
		check("a request that takes its time", run(append(key, url+"/slow")...), "at last")
		non := ""
		for range 3 { // nobody repeats one that is lost
			if non = run(append(key, "-N", url+"/text")...); non != "" {
				break
			}
		}
		check("a non-confirmable request", non, "one")
	}
}

func TestLibcoapObserves(t *testing.T) {
	for _, flavour := range []string{"openssl", "gnutls"} {
		f := &fixtures{}
		w := newWorld(t, f.mount)
		go func() {
			for w.gw.Gauges().Sessions == 0 {
				time.Sleep(10 * time.Millisecond)
			}
			time.Sleep(300 * time.Millisecond)
			for _, text := range []string{"two", "three"} {
				f.text.Store(text)
				for _, s := range w.gw.Sessions() {
					s.Notify("/text")
				}
				time.Sleep(300 * time.Millisecond)
			}
		}()
		out := w.libcoap(flavour, "-s", "2", "-u", "dev1", "-k", testKey, "coaps://"+w.udp.String()+"/text")
		for _, want := range []string{"one", "two", "three"} {
			if !strings.Contains(out, want) {
				t.Errorf("%s saw %q, want %q in it", flavour, out, want)
			}
		}
	}
}

func TestADeviceThatRebootsIsServedFromTheSamePort(t *testing.T) {
	w := newWorld(t)
	socket, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	at := socket.LocalAddr().(*net.UDPAddr)
	first, err := w.dialFrom(socket, psk("dev1", testKey)...)
	if err != nil {
		t.Fatal(err)
	}
	first.do(coap.GET, "/whoami", nil, nil)
	socket.Close() // the power fails: no close_notify
	first.conn.Close()
	for boot := range 3 {
		socket, err := net.ListenUDP("udp", at)
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		again, err := w.dialFrom(socket, psk("dev1", testKey)...)
		if err != nil {
			t.Fatalf("boot %d: %v", boot, err)
		}
		if got := again.do(coap.GET, "/whoami", nil, nil); got.Code != coap.Content {
			t.Errorf("boot %d: %v", boot, got.Code)
		}
		t.Logf("boot %d: served after %v", boot, time.Since(began).Round(time.Millisecond))
		socket.Close()
		again.conn.Close()
	}
	if n := w.gw.Gauges().Sessions; n != 1 {
		t.Errorf("%d sessions of one port, want the latest alone", n)
	}
}

func TestAForgedHelloEndsNoSession(t *testing.T) {
	w := newWorld(t)
	socket, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	c, err := w.dialFrom(socket, psk("dev1", testKey)...)
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	for range 3 { // from the address of the session, as who forges it would
		if _, err := socket.WriteTo(helloOf(t), net.UDPAddrFromAddrPort(w.udp)); err != nil {
			t.Fatal(err)
		}
		if got := c.do(coap.GET, "/whoami", nil, nil); got.Code != coap.Content {
			t.Errorf("after a forged hello: %v, want the session as it was", got.Code)
		}
	}
}

// helloOf returns a ClientHello as a stranger would send it.
func helloOf(t testing.TB) []byte {
	t.Helper()
	body := append([]byte{0xfe, 0xfd}, bytes.Repeat([]byte{7}, 32)...)
	body = append(body, 0, 0, 0, 4, 0xc0, 0xa8, 0x00, 0xff, 1, 0, 0, 4, 0, 0x17, 0, 0)
	n := byte(len(body))
	hs := append([]byte{1, 0, 0, n, 0, 0, 0, 0, 0, 0, 0, n}, body...)
	return append([]byte{22, 0xfe, 0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, byte(len(hs))}, hs...)
}

func TestAnUnknownIdentityAndAWrongKeyAreTheSameSilence(t *testing.T) {
	w := newWorld(t)
	for name, opts := range map[string][]dtls.ClientOption{
		"unknown identity":   psk("nobody", testKey),
		"wrong key":          psk("dev1", "not-the-key-it-has"),
		"identity too long":  psk(strings.Repeat("x", 200), testKey),
		"identity not UTF-8": psk("\xff\xfe", testKey),
	} {
		got := w.alertOf(opts)
		if got != "" {
			t.Errorf("%s: the gateway says %q, want silence", name, got)
		}
	}
}

func TestASuspendedDeviceIsRefusedEverywhere(t *testing.T) {
	f := &fixtures{}
	w := newWorld(t, f.mount)
	cert := w.ca.issue("cert1")
	sessions := map[string]*client{
		"by psk":         w.mustDial(psk("dev1", testKey)...),
		"by certificate": w.mustDial(certificate(cert)...),
		"over TLS":       w.mustDialTCP(cert),
	}
	for _, c := range sessions {
		c.do(coap.GET, "/whoami", nil, nil)
	}
	other := w.mustDial(psk("dev2", "another-key-of-2")...)
	other.do(coap.GET, "/whoami", nil, nil)
	if n := w.gw.Gauges().Sessions; n != 4 {
		t.Fatalf("%d sessions, want 4", n)
	}
	began := time.Now()
	w.ledger.refuse("dev1")
	w.ledger.refuse("cert1")
	w.gw.Changed(devices.Change{What: devices.SuspendedNow, Device: devices.Device{ID: "d1"}})
	t.Logf("3 sessions closed in %v", time.Since(began))
	if n := w.gw.Gauges().Sessions; n != 1 {
		t.Errorf("%d sessions are open when the one who suspends is answered, want the other device's alone", n)
	}
	for name, c := range sessions {
		if !c.isClosed() {
			t.Errorf("the session %s is not closed for the device", name)
		}
	}
	if _, err := w.dial(psk("dev1", testKey)...); err == nil {
		t.Error("a new handshake by psk succeeds")
	}
	if _, err := w.dial(certificate(cert)...); err == nil {
		t.Error("a new handshake by certificate succeeds")
	}
	if got := other.do(coap.GET, "/whoami", nil, nil); got.Code != coap.Content {
		t.Errorf("the other device: %v, want 2.05", got.Code)
	}
}

func TestARequestAfterTheEpochMovedIsResolvedAgain(t *testing.T) {
	w := newWorld(t)
	c := w.mustDial(psk("dev1", testKey)...)
	c.do(coap.GET, "/whoami", nil, nil)
	w.ledger.refuse("dev1") // and nobody tells the gateway
	if got := c.do(coap.GET, "/whoami", nil, nil); got.Code != coap.Unauthorized {
		t.Errorf("%v, want 4.01", got.Code)
	}
	if !c.isClosed() {
		t.Error("the session is not closed")
	}
	if n := w.gw.Gauges().Sessions; n != 0 {
		t.Errorf("%d sessions, want none", n)
	}
}

func TestCredentialsOfDifferentDevicesCloseTheSession(t *testing.T) {
	w := newWorld(t)
	w.ledger.add("Thing thing2", device("d2", identity.ThingKey, "t2"))
	query := func(q ...string) (o coap.Options) {
		for _, v := range q {
			o = o.Add(coap.URIQuery, []byte(v))
		}
		return o
	}
	for _, tr := range []struct {
		name string
		open func() *client
	}{
		{"a session by psk", func() *client { return w.mustDial(psk("dev1", testKey)...) }},
		{"a session by certificate", func() *client { return w.mustDial(certificate(w.ca.issue("cert1"))...) }},
		{"a session over TLS", func() *client { return w.mustDialTCP(w.ca.issue("cert1")) }},
	} {
		c := tr.open()
		if got := c.do(coap.GET, "/whoami", query("auth=thing1", "type=internal"), nil); got.Code != coap.Content {
			t.Errorf("%s with its own key: %v %s, want 2.05", tr.name, got.Code, got.Payload)
		}
		if got := c.do(coap.GET, "/whoami", query("auth=thing1"), nil); got.Code != coap.Content {
			t.Errorf("%s with its own key and no type: %v %s, want 2.05", tr.name, got.Code, got.Payload)
		}
		if got := c.do(coap.GET, "/whoami", query("auth=nonsense"), nil); got.Code != coap.Unauthorized {
			t.Errorf("%s with a key of nobody's: %v %s, want 4.01", tr.name, got.Code, got.Payload)
		}
		if got := c.do(coap.GET, "/whoami", query("auth=thing2", "type=internal"), nil); got.Code != coap.Unauthorized {
			t.Errorf("%s with another's key: %v %s, want 4.01", tr.name, got.Code, got.Payload)
		}
		if !c.isClosed() {
			t.Errorf("%s with another's key is not closed", tr.name)
		}
	}
}

func TestWhoMayCall(t *testing.T) {
	f := &fixtures{}
	w := newWorld(t, f.mount)
	known := w.mustDial(psk("dev1", testKey)...)
	stranger := w.mustDial(certificate(newAuthority(t).issue("of a factory"))...) // a certificate nobody here knows
	for _, c := range []struct {
		name string
		c    *client
		path string
		code coap.Code
	}{
		{"a device, what needs a permission", known, "/admin", coap.Forbidden},
		{"a device, what is public", known, "/open/a/x", coap.Content},
		{"a stranger, what is public", stranger, "/open/a/x", coap.Content},
		{"a stranger, what needs a device", stranger, "/whoami", coap.Unauthorized},
		{"a stranger again: the session is still there", stranger, "/open/b/x", coap.Content},
	} {
		if got := c.c.do(coap.GET, c.path, nil, nil); got.Code != c.code {
			t.Errorf("%s: %v %s, want %v", c.name, got.Code, got.Payload, c.code)
		}
	}
	if r := f.last.Load(); r == nil || len(r.Session.Chain()) != 1 || r.Session.Chain()[0].Subject.CommonName != "of a factory" {
		t.Error("the handler of a public route does not see the stranger's certificate")
	}
}

func TestAnonymousSessions(t *testing.T) {
	f := &fixtures{}
	w := newWorld(t, f.mount)
	if c, err := w.dial(); err == nil {
		c.close()
		t.Error("a DTLS session without any credential came to be")
	}
	if c, err := w.dialTCP(); err == nil && !c.isClosed() {
		c.close()
		t.Error("a TLS session without any credential came to be")
	}
	w = newWorld(t, f.mount, func(g *coapgw.Gateway) { g.Anonymous = true })
	for _, open := range []func() *client{func() *client { return w.mustDial() }, func() *client { return w.mustDialTCP() }} {
		c := open()
		if got := c.do(coap.GET, "/open/a/x", nil, nil); got.Code != coap.Content {
			t.Errorf("public: %v, want 2.05", got.Code)
		}
		if got := c.do(coap.GET, "/whoami", coap.Options{}.Add(coap.URIQuery, []byte("auth=thing1")), nil); got.Code != coap.Content {
			t.Errorf("with a thing's key: %v %s, want 2.05", got.Code, got.Payload)
		}
		if got := c.do(coap.GET, "/nowhere", nil, nil); got.Code != coap.Unauthorized {
			t.Errorf("a path that is not there: %v, want 4.01, which tells nothing", got.Code)
		}
		if !c.isClosed() {
			t.Error("an anonymous session that asked for more is not closed")
		}
	}
}

// A certificate that may enrol a device, and is of none yet, opens a session that reaches what
// is for enrolment, over DTLS and TLS, and nothing else: what is public to
// others neither, and no key in a request helps.
func TestASessionThatMayEnrolReachesNothingElse(t *testing.T) {
	ok := func(context.Context, *coap.Request) (coap.Response, error) {
		return coap.Response{Code: coap.Content, Body: []byte("reached")}, nil
	}
	var clock atomic.Int64
	w := newWorld(t, func(gw *coapgw.Gateway) {
		gw.OCF.Enabled, gw.OCF.ClientCertificateRequired = true, false
		gw.OCF.Providers = []coapgw.OCFProvider{{Name: "ours"}}
		gw.Accounts = &cloud{}
		gw.Now = func() time.Time { return time.Now().Add(time.Duration(clock.Load())) }
		gw.Routes = append(gw.Routes,
			coap.Route{Method: coap.POST, Path: "/est/{label}/sen", Need: identity.Public, Enrols: true, Handle: ok},
			coap.Route{Method: coap.POST, Path: "/open", Need: identity.Public, Handle: ok},
			coap.Route{Method: coap.POST, Path: "/proven", Need: identity.Proven, Handle: ok})
	})
	w.ledger.mu.Lock()
	w.ledger.refused["maker's"] = identity.ErrMayEnrol
	w.ledger.mu.Unlock()
	cert := w.ca.issue("maker's")
	key := coap.Options{}.Add(coap.URIQuery, []byte("auth=thing1"))
	for transport, open := range map[string]func() *client{
		"DTLS": func() *client { return w.mustDial(certificate(cert)...) }, "TLS": func() *client { return w.mustDialTCP(cert) },
	} {
		c := open()
		for _, r := range []struct {
			method  coap.Code
			path    string
			options coap.Options
		}{
			{coap.GET, "/whoami", nil},
			{coap.GET, "/whoami", key},
			{coap.POST, "/proven", nil},
			{coap.POST, "/proven", key},
			{coap.POST, "/open", nil},
			{coap.POST, "/open", key},
			{coap.POST, "/oic/sec/account", nil},
			{coap.POST, "/oic/sec/session", nil},
			{coap.GET, "/x.plgd.dev/time", nil},
			{coap.GET, "/oic/res", nil},
			{coap.GET, "/nothing", nil},
		} {
			if got := c.do(r.method, r.path, r.options, nil); got.Code != coap.Unauthorized || bytes.Contains(got.Payload, []byte("reached")) {
				t.Errorf("%s: %v %s: got %v %s, want 4.01", transport, r.method, r.path, got.Code, got.Payload)
			}
		}
		if got := c.do(coap.POST, "/est/plant/sen", nil, nil); got.Code != coap.Content {
			t.Errorf("%s: enrolment: got %v %s", transport, got.Code, got.Payload)
		}
		if got := c.do(coap.GET, "/.well-known/core", nil, nil); got.Code != coap.Content {
			t.Errorf("%s: discovery: got %v %s", transport, got.Code, got.Payload)
		}
	}
	if v := must(w.gw.List(identity.NewContext(t.Context(), identity.Actor{Kind: identity.User, Org: "org1", Role: identity.Owner}), "", page.Request{})); len(v.Items) != 0 {
		t.Errorf("an organisation sees %d sessions that are of nobody", len(v.Items))
	}
	// It ends when it was there for an hour, however much it says; and with what its certificate
	// is good for, on its next request.
	// A request each before that: a client's handshake ends before the gateway has the session.
	late := w.mustDial(certificate(cert)...)
	late.do(coap.POST, "/est/plant/sen", nil, nil)
	clock.Store(int64(59 * time.Minute))
	late.do(coap.POST, "/est/plant/sen", nil, nil)
	w.gw.Sweep(time.Now().Add(61 * time.Minute))
	if !late.isClosed() {
		t.Error("the session outlives its hour")
	}
	last := w.mustDial(certificate(cert)...)
	last.do(coap.POST, "/est/plant/sen", nil, nil)
	w.ledger.refuse("maker's")
	if got := last.do(coap.POST, "/open", nil, nil); got.Code != coap.Unauthorized {
		t.Errorf("after the certificate was revoked: got %v", got.Code)
	}
	if !last.isClosed() {
		t.Error("the session outlives its certificate")
	}
}
