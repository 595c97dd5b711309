package server_test

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"testing"

	"keystead/config"
	"keystead/server"
)

// get asks for a path with headers, "Name: value" each, and returns the answer's
// status and headers.
func (r *running) get(t *testing.T, path string, headers ...string) (int, http.Header) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, r.url+path, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, h := range headers {
		name, value, _ := strings.Cut(h, ": ")
		req.Header.Add(name, value)
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	return resp.StatusCode, resp.Header
}

// slowly is a rate that lets burst through and then nothing for hours.
func slowly(burst int) config.Rate { return config.Rate{PerSecond: 0.0001, Burst: burst} }

func TestRateLimitIsOnByDefault(t *testing.T) {
	l := config.Default().Limits
	for name, r := range map[string]config.Rate{"address": l.PerAddress, "credential": l.PerCredential, "failures": l.Failures} {
		if r.PerSecond <= 0 || r.Burst <= 0 {
			t.Errorf("%s: got %+v, want a limit", name, r)
		}
	}
}

func TestTooManyRequestsOfOneAddress(t *testing.T) {
	s := start(t, func(c *config.Config) {
		c.Limits.PerAddress = slowly(5)
		c.TrustedProxies = []string{"127.0.0.0/8"}
	})
	for i := range 7 {
		status, header := s.get(t, "/openapi.yaml", "X-Forwarded-For: 192.0.2.1")
		want := http.StatusOK
		if i >= 5 {
			want = http.StatusTooManyRequests
		}
		if status != want {
			t.Errorf("request %d: got %d, want %d", i, status, want)
		}
		if wait, err := strconv.Atoi(header.Get("Retry-After")); want != http.StatusOK && (err != nil || wait < 1) {
			t.Errorf("got Retry-After %q, want seconds", header.Get("Retry-After"))
		}
	}
	// Another address has a bucket of its own, and so has another network of IPv6,
	// but not another address of the same.
	if status, _ := s.get(t, "/openapi.yaml", "X-Forwarded-For: 192.0.2.2"); status != http.StatusOK {
		t.Errorf("another address: got %d, want 200", status)
	}
	for i := range 6 {
		status, _ := s.get(t, "/openapi.yaml", fmt.Sprintf("X-Forwarded-For: 2001:db8::%d", i+1))
		if want := map[bool]int{true: http.StatusOK, false: http.StatusTooManyRequests}[i < 5]; status != want {
			t.Errorf("IPv6 address %d of a network: got %d, want %d", i, status, want)
		}
	}
	if status, _ := s.get(t, "/openapi.yaml", "X-Forwarded-For: 2001:db8:0:1::1"); status != http.StatusOK {
		t.Errorf("another network: got %d, want 200", status)
	}
}

func TestForwardedAddressCountsFromTrustedProxiesOnly(t *testing.T) {
	for _, test := range []struct {
		name    string
		trusted []string
		header  []string
		own     bool // each of two requests has a bucket of its own
	}{
		{"nobody is trusted", nil, []string{"X-Forwarded-For: 192.0.2.%d"}, false},
		{"another is trusted", []string{"10.0.0.1"}, []string{"X-Forwarded-For: 192.0.2.%d"}, false},
		{"trusted", []string{"127.0.0.1"}, []string{"X-Forwarded-For: 192.0.2.%d"}, true},
		{"what the client made up, before what the proxy saw", []string{"127.0.0.1"}, []string{"X-Forwarded-For: 198.51.100.%d, 192.0.2.1"}, false},
		{"two headers", []string{"127.0.0.1"}, []string{"X-Forwarded-For: 198.51.100.%d", "X-Forwarded-For: 192.0.2.1"}, false},
		{"behind two proxies", []string{"127.0.0.1", "10.0.0.0/8"}, []string{"X-Forwarded-For: 192.0.2.%d, 10.1.1.1"}, true},
		{"another header", []string{"127.0.0.1"}, []string{"X-Real-IP: 192.0.2.%d"}, false},
		{"no address", []string{"127.0.0.1"}, []string{"X-Forwarded-For: client-%d"}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := start(t, func(c *config.Config) {
				c.Limits.PerAddress = slowly(1)
				c.TrustedProxies = test.trusted
			})
			var got []int
			for i := range 2 {
				var headers []string
				for _, h := range test.header {
					if strings.Contains(h, "%d") {
						h = fmt.Sprintf(h, i)
					}
					headers = append(headers, h)
				}
				status, _ := s.get(t, "/openapi.yaml", headers...)
				got = append(got, status)
			}
			want := http.StatusTooManyRequests
			if test.own {
				want = http.StatusOK
			}
			if got[0] != http.StatusOK || got[1] != want {
				t.Errorf("got %v, want [200 %d]", got, want)
			}
		})
	}
}

func TestWatchedAddressesAreBounded(t *testing.T) {
	s := start(t, func(c *config.Config) {
		c.Limits.PerAddress, c.Limits.Tracked = slowly(1), 1000
		c.TrustedProxies = []string{"127.0.0.1"}
	})
	for i := range 3000 {
		s.get(t, "/openapi.yaml", fmt.Sprintf("X-Forwarded-For: 10.0.%d.%d", i/256, i%256))
	}
	if got := s.Watched(); got != 1000 {
		t.Errorf("got %d addresses watched, want 1000", got)
	}
}

func TestFailedProofsAreLimitedAndRecorded(t *testing.T) {
	s := start(t, func(c *config.Config) { c.Limits.Failures = slowly(3) })
	for i, want := range []int{401, 401, 401, 429, 429} {
		if status, _ := s.get(t, "/api/v1/whoami", "Authorization: Bearer wrong"); status != want {
			t.Errorf("attempt %d: got %d, want %d", i, status, want)
		}
	}
	// Another way to prove it is not shut, and one without any proof is no attempt.
	if status, _ := s.get(t, "/api/v1/whoami", "Authorization: Basic eDp5"); status != http.StatusUnauthorized {
		t.Errorf("another scheme: got %d, want 401", status)
	}
	for range 5 {
		if status, _ := s.get(t, "/api/v1/whoami"); status != http.StatusUnauthorized {
			t.Errorf("without a credential: got %d, want 401", status)
		}
	}
	if err := s.Audit.Finish(t.Context()); err != nil {
		t.Fatal(err)
	}
	p, err := s.Audit.Verify(t.Context())
	if err != nil || p.Records == 0 {
		t.Errorf("got %+v, %v", p, err)
	}
}

func TestRequestsOfOneCredentialAreLimited(t *testing.T) {
	s := start(t, func(c *config.Config) {
		c.Limits.PerCredential = slowly(3)
		c.TrustedProxies = []string{"127.0.0.1"}
	})
	for i, want := range []int{200, 200, 200, 429} {
		status, _ := s.get(t, "/api/v1/whoami", "Authorization: Bearer "+s.admin, fmt.Sprintf("X-Forwarded-For: 192.0.2.%d", i))
		if status != want {
			t.Errorf("request %d: got %d, want %d", i, status, want)
		}
	}
}

// answers reports whether a connection is served, rather than closed.
func answers(t *testing.T, c net.Conn) bool {
	t.Helper()
	if _, err := c.Write([]byte("GET / HTTP/1.1\r\nHost: x\r\n\r\n")); err != nil {
		return false
	}
	_, err := bufio.NewReader(c).ReadByte()
	return err == nil
}

// serve runs a server that listens until the test ends.
func serve(t *testing.T, s *server.Server) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-ended; err != nil {
			t.Errorf("Run = %v", err)
		}
	})
}

func TestConnectionsAreBounded(t *testing.T) {
	s := start(t, func(c *config.Config) {
		c.HTTP.Listen, c.HTTPS.Listen, c.Ops.Listen, c.CoAP.UDP, c.CoAP.TCP = "127.0.0.1:0", "", "", "", ""
		c.Limits.ConnectionsPerAddress = 3
	})
	if err := s.Listen(t.Context()); err != nil {
		t.Fatal(err)
	}
	serve(t, s.Server)
	var open []net.Conn
	for i := range 4 {
		c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", s.Addresses()["http"])
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if got := answers(t, c); got != (i < 3) {
			t.Errorf("connection %d: served %t", i, got)
		}
		open = append(open, c)
	}
	// One that ends makes room.
	open[0].Close()
	for range 100 {
		c, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", s.Addresses()["http"])
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		if answers(t, c) {
			return
		}
	}
	t.Error("no room after one was closed")
}

func TestPlainText(t *testing.T) {
	long := strings.Repeat("x", 2048)
	for text, want := range map[string]bool{
		"": true, "/": true, "//": true, "/api/v1/devices": true, "/näme/☃": true, "~ ": true, "\u0085": true,
		long: true, long + "x": false, long + "/" + long + "/": true, "/" + long + "/" + long + "x/": false, strings.Repeat("ä", 1024): true, strings.Repeat("ä", 1025): false,
		"a\x00": false, "\x1f": false, "a\x7fb": false, "\xff": false, "/ä\xc3": false, "\n": false, "\xed\xa0\x80": false,
	} {
		if server.Plain(text) != want {
			t.Errorf("%.40q of %d bytes: taken %v, want %v", text, len(text), !want, want)
		}
	}
}
