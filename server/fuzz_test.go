package server_test

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"

	"github.com/labstack/echo/v4"

	"keystead/fault"
	"keystead/server"
)

// FuzzThings reads one thing or an array of them.
func FuzzThings(f *testing.F) {
	f.Add([]byte(`{"name":"a","type":"sensor"}`))
	f.Add([]byte(` [{"name":"a","type":"sensor","key":"x","metadata":{"a":[1]}},{}]`))
	f.Add([]byte(`[[]]`))
	f.Add([]byte(`[`))
	e := echo.New()
	f.Fuzz(func(t *testing.T, body []byte) {
		r := httptest.NewRequest(http.MethodPost, "/things", bytes.NewReader(body))
		r.Header.Set("Content-Type", "application/json")
		n, err := server.ReadThings(e.NewContext(r, httptest.NewRecorder()))
		if err != nil && !fault.Is(err, fault.Invalid) {
			t.Errorf("%q: %v, want it taken or Invalid", body, err)
		}
		if err == nil && n != 1 && !bytes.HasPrefix(bytes.TrimSpace(body), []byte("[")) {
			t.Errorf("%q is %d things", body, n)
		}
	})
}

// FuzzAuthorization reads what a request shows of its caller.
func FuzzAuthorization(f *testing.F) {
	f.Add("Thing tk_x", "")
	f.Add("thing  tk_x", "o")
	f.Add("Basic YTpi", "")
	f.Add("Basic ===", "")
	f.Add("Bearer", "")
	s := &server.Server{ClientAddr: func(*http.Request) netip.Addr { return netip.IPv6Loopback() }}
	f.Fuzz(func(t *testing.T, header, org string) {
		r := httptest.NewRequest(http.MethodGet, "/api/v1/whoami", http.NoBody)
		r.Header["Authorization"], r.Header["X-Org-Id"] = []string{header}, []string{org}
		p, err := s.Proof(r)
		if err != nil {
			if !fault.Is(err, fault.Unauthenticated) || p.Scheme != "Basic" {
				t.Errorf("%q: %v", header, err)
			}
			return
		}
		if strings.TrimSpace(p.Value) != p.Value && p.Scheme != "Basic" || p.Value != "" && p.Scheme == "" || len(p.Value) > len(header) || p.Org != org {
			t.Errorf("%q shows %q %q of %q", header, p.Scheme, p.Value, p.Org)
		}
	})
}

// A handshake in which a certificate was asked for and none came leaves an empty chain.
func TestNoCertificateIsNoChain(t *testing.T) {
	s := &server.Server{ClientAddr: func(*http.Request) netip.Addr { return netip.IPv6Loopback() }}
	r := httptest.NewRequest(http.MethodGet, "/api/v1/whoami", http.NoBody)
	r.TLS = &tls.ConnectionState{PeerCertificates: []*x509.Certificate{}}
	if p, err := s.Proof(r); err != nil || p.Chain != nil {
		t.Errorf("got the chain %v, %v; want none", p.Chain, err)
	}
}
