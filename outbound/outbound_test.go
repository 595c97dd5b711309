package outbound_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"keystead/fault"
	"keystead/outbound"
	"keystead/seal"
)

func TestGuard(t *testing.T) {
	lan := []netip.Prefix{netip.MustParsePrefix("192.168.7.0/24"), netip.MustParsePrefix("::1/128"), netip.MustParsePrefix("0.0.0.0/0")}
	self := func(a netip.AddrPort) bool { return a == netip.MustParseAddrPort("93.184.216.34:8443") }
	for _, test := range []struct {
		to         string
		zero, open bool // let through by the zero Guard; by one with lan and self
	}{
		{"93.184.216.34:443", true, true},
		{"[2606:2800:220:1::1]:443", true, true},
		{"93.184.216.34:8443", true, false}, // the server itself
		{"10.1.2.3:443", false, true},
		{"172.31.255.255:443", false, true},
		{"192.168.7.9:443", false, true},
		{"127.0.0.1:443", false, true},
		{"[::1]:443", false, true},
		{"[::ffff:10.1.2.3]:443", false, true},
		{"[::ffff:127.0.0.1]:443", false, true},
		{"[::10.1.2.3]:443", false, false},
		{"[64:ff9b::a01:203]:443", false, false},
		{"[2002:a01:203::1]:443", false, false},
		{"[fe80::1%eth0]:443", false, false},
		{"[fec0::1]:443", false, false},
		{"[fd12::1]:443", false, false},
		{"[2001::1]:443", false, false},
		{"100.64.0.1:443", false, true},
		{"198.18.0.1:443", false, true},
		{"169.254.1.1:443", false, true},
		{"169.254.169.254:80", false, false}, // whatever is allowed
		{"168.63.129.16:80", false, false},
		{"[fd00:ec2::254]:80", false, false},
		{"[::ffff:169.254.169.254]:80", false, false},
		{"0.0.0.0:443", false, false},
		{"[::]:443", false, false},
		{"224.0.0.1:443", false, false},
		{"[ff02::1]:443", false, false},
		{"255.255.255.255:443", false, false},
		{"240.0.0.1:443", false, false},
	} {
		to := netip.MustParseAddrPort(test.to)
		if got := (outbound.Guard{}).Check(to) == nil; got != test.zero {
			t.Errorf("%s through the zero guard: %v, want %v", test.to, got, test.zero)
		}
		if got := (outbound.Guard{Allow: lan, Deny: self}).Check(to) == nil; got != test.open {
			t.Errorf("%s through the opened guard: %v, want %v", test.to, got, test.open)
		}
	}
}

// receiver is a real HTTPS server, and options that trust and reach it.
func receiver(t *testing.T, h http.HandlerFunc) (string, outbound.Options) {
	t.Helper()
	s := httptest.NewTLSServer(h)
	t.Cleanup(s.Close)
	roots := x509.NewCertPool()
	roots.AddCert(s.Certificate())
	return s.URL, outbound.Options{
		Guard: outbound.Guard{Allow: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}},
		TLS:   &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13},
		Now:   time.Now,
	}
}

func TestNamesAreCheckedWhenTheyAreDialled(t *testing.T) {
	url, o := receiver(t, func(http.ResponseWriter, *http.Request) { t.Error("the request arrived") })
	o.Guard.Allow = nil
	_, port, err := net.SplitHostPort(strings.TrimPrefix(url, "https://"))
	if err != nil {
		t.Fatal(err)
	}
	c := outbound.New(o)
	defer c.Close()
	for _, host := range []string{"localhost", "127.0.0.1", "0x7f000001", "2130706433", "[::ffff:127.0.0.1]"} {
		if _, err := c.Do(t.Context(), outbound.Request{Method: "GET", URL: "https://" + host + ":" + port}); err == nil {
			t.Errorf("a request to %s was let through", host)
		}
	}
}

func TestRedirectsAreAnswersNotFollowed(t *testing.T) {
	url, o := receiver(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/inside" {
			t.Error("the redirect was followed")
		}
		http.Redirect(w, r, "/inside", http.StatusFound)
	})
	c := outbound.New(o)
	defer c.Close()
	a, err := c.Do(t.Context(), outbound.Request{Method: "POST", URL: url, Body: []byte("{}")})
	if err != nil || a.Status != http.StatusFound || a.OK() {
		t.Errorf("got %d, %v; want the 302 itself", a.Status, err)
	}
}

func TestAnswersAndTimeAreBounded(t *testing.T) {
	hang := make(chan struct{})
	defer close(hang)
	url, o := receiver(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/hang" {
			select {
			case <-hang:
			case <-r.Context().Done():
			}
			return
		}
		w.Write(make([]byte, 1<<20))
	})
	o.Timeout = 200 * time.Millisecond
	c := outbound.New(o)
	defer c.Close()
	if _, err := c.Do(t.Context(), outbound.Request{Method: "GET", URL: url + "/large"}); err == nil || !strings.Contains(err.Error(), "larger than") {
		t.Errorf("a large answer: %v, want it refused", err)
	}
	if _, err := c.Do(t.Context(), outbound.Request{Method: "GET", URL: url + "/hang?token=hunter2"}); err == nil || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("a hanging receiver: %v, want an error without the URL", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Do(ctx, outbound.Request{Method: "GET", URL: url}); err == nil {
		t.Error("a cancelled request was sent")
	}
}

func TestCheckURL(t *testing.T) {
	for url, want := range map[string]bool{
		"https://hook.example.org/x?y=1": true,
		"http://hook.example.org/":       false,
		"https://u:p@hook.example.org/":  false,
		"https://":                       false,
		"https:hook.example.org":         false,
		"ftp://hook.example.org/":        false,
		"file:///etc/passwd":             false,
		"https://hook.example.org/#frag": false,
		"":                               false,
		"https://[::1":                   false,
	} {
		if err := outbound.CheckURL(url, false); (err == nil) != want || err != nil && !fault.Is(err, fault.Invalid) {
			t.Errorf("CheckURL(%q) = %v, want it allowed: %v", url, err, want)
		}
	}
	if err := outbound.CheckURL("http://hook.example.org/", true); err != nil {
		t.Errorf("plain http where it is allowed: %v", err)
	}
}

func TestSign(t *testing.T) {
	// printf '1700000000.{"a":1}' | openssl dgst -sha256 -hmac key
	const want = "t=1700000000,v1=a438e398bfafc57e4396bb7fc2304422f0f768e965d073ca313cb52e22e6ad03"
	got := outbound.Sign(seal.Secret("key"), []byte(`{"a":1}`), time.Unix(1700000000, 0))
	if got != want {
		t.Errorf("Sign = %s, want %s", got, want)
	}
}
