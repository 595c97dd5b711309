// Package outbound makes the requests that the server itself sends: to webhooks,
// to the key sets of outside issuers, to registries of others.
//
// Where they lead is chosen by administrators of organisations, who must not
// reach through the server what they cannot reach themselves: see [Guard]. There
// are no redirects, no proxies from the environment, a limit on time and on what
// is read, and what comes back is shown to nobody who did not ask for it.
package outbound

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"keystead/fault"
	"keystead/seal"
)

// Limits where Options set none.
const (
	DefaultTimeout = 10 * time.Second
	DefaultAnswer  = 64 << 10
)

// Options are how a Client connects.
type Options struct {
	Guard     Guard
	Timeout   time.Duration // of a whole exchange; 0 for DefaultTimeout
	MaxAnswer int64         // bytes of an answer's body; 0 for DefaultAnswer
	TLS       *tls.Config   // roots and client certificate; nil for the system's roots
	PlainHTTP bool          // http: URLs are allowed, not https: alone
	Now       func() time.Time
}

// Client makes requests. Use one per target of its own TLS settings, and keep it.
type Client struct {
	http  *http.Client
	most  int64
	plain bool
	now   func() time.Time
}

// New returns a Client.
func New(o Options) *Client {
	if o.Timeout == 0 {
		o.Timeout = DefaultTimeout
	}
	if o.MaxAnswer == 0 {
		o.MaxAnswer = DefaultAnswer
	}
	conf := &tls.Config{MinVersion: tls.VersionTLS12}
	if o.TLS != nil {
		conf = o.TLS.Clone()
		conf.MinVersion = max(conf.MinVersion, tls.VersionTLS12)
	}
	dialer := &net.Dialer{Timeout: o.Timeout, Control: o.Guard.control}
	return &Client{
		http: &http.Client{
			Timeout:       o.Timeout,
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
			Transport: &http.Transport{
				Proxy: nil, DialContext: dialer.DialContext, TLSClientConfig: conf, ForceAttemptHTTP2: true,
				TLSHandshakeTimeout: o.Timeout, ResponseHeaderTimeout: o.Timeout, MaxResponseHeaderBytes: 32 << 10,
				MaxIdleConnsPerHost: 4, IdleConnTimeout: time.Minute,
			},
		},
		most: o.MaxAnswer, plain: o.PlainHTTP, now: o.Now,
	}
}

// Close ends idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// Request is what to send.
type Request struct {
	Method string
	URL    string
	Header map[string]string
	Body   []byte

	Secret   seal.Secret // signs the body; see SignatureHeader. nil for no signature
	Delivery string      // sent as DeliveryHeader, if it is not empty
}

// Answer is what came back, whatever its status.
type Answer struct {
	Status int
	Header http.Header
	Body   []byte
}

// OK reports whether the status is one of success.
func (a Answer) OK() bool { return a.Status >= 200 && a.Status <= 299 }

// Do sends r. An error says that there was no answer, or one over the limit:
// its text is for logs and for the administrator who configured the target.
func (c *Client) Do(ctx context.Context, r Request) (Answer, error) {
	if err := CheckURL(r.URL, c.plain); err != nil {
		return Answer{}, err
	}
	req, err := http.NewRequestWithContext(ctx, r.Method, r.URL, bytes.NewReader(r.Body))
	if err != nil {
		return Answer{}, fmt.Errorf("outbound: %w", err)
	}
	for name, value := range r.Header {
		req.Header.Set(name, value)
	}
	if r.Delivery != "" {
		req.Header.Set(DeliveryHeader, r.Delivery)
	}
	if r.Secret != nil {
		req.Header.Set(SignatureHeader, Sign(r.Secret, r.Body, c.now()))
	}
	resp, err := c.http.Do(req)
	if err != nil {
		if e, ok := errors.AsType[*url.Error](err); ok {
			err = e.Err // without the URL, which may hold a secret
		}
		return Answer{}, fmt.Errorf("outbound: %w", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, c.most+1))
	if err != nil {
		return Answer{}, fmt.Errorf("outbound: read the answer: %w", err)
	}
	if int64(len(body)) > c.most {
		return Answer{}, fmt.Errorf("outbound: the answer is larger than %d bytes", c.most)
	}
	return Answer{Status: resp.StatusCode, Header: resp.Header, Body: body}, nil
}

// HTTP returns c for libraries that make their own requests: under the same
// guard and limits, to the same kinds of URL.
func (c *Client) HTTP() *http.Client {
	same := *c.http
	same.Transport = transport{c}
	return &same
}

type transport struct{ c *Client }

// RoundTrip implements [http.RoundTripper].
func (t transport) RoundTrip(r *http.Request) (*http.Response, error) {
	if err := CheckURL(r.URL.String(), t.c.plain); err != nil {
		if r.Body != nil {
			r.Body.Close()
		}
		return nil, err
	}
	resp, err := t.c.http.Transport.RoundTrip(r)
	if err != nil {
		return nil, err
	}
	resp.Body = struct {
		io.Reader
		io.Closer
	}{io.LimitReader(resp.Body, t.c.most), resp.Body}
	return resp, nil
}

// CheckURL returns an Invalid fault if text is not the URL of a target: https,
// or http where plain says so, with a host and without a user or a fragment.
func CheckURL(text string, plain bool) error {
	u, err := url.Parse(text)
	switch {
	case err != nil || u.Host == "" || u.Opaque != "":
		return fault.New(fault.Invalid, "url: must be written https://host/path")
	case u.Scheme != "https" && (u.Scheme != "http" || !plain):
		return fault.New(fault.Invalid, "url: must begin with https://")
	case u.User != nil:
		return fault.New(fault.Invalid, "url: must not hold a user or password; use the settings for credentials")
	case u.Fragment != "":
		return fault.New(fault.Invalid, "url: must not have a fragment")
	}
	return nil
}

// Headers of a signed request.
const (
	SignatureHeader = "X-Keystead-Signature" // "t=<seconds since 1970>,v1=<hex HMAC-SHA256 of "t.body">"
	DeliveryHeader  = "X-Keystead-Delivery"  // an id that is the same when a delivery is tried again
)

// Sign returns the value of SignatureHeader for body sent at now. A receiver
// computes it again from the bytes it got, compares in constant time, and
// refuses times more than five minutes away.
func Sign(secret seal.Secret, body []byte, now time.Time) string {
	t := strconv.FormatInt(now.Unix(), 10)
	m := hmac.New(sha256.New, secret)
	m.Write([]byte(t + "."))
	m.Write(body)
	return "t=" + t + ",v1=" + hex.EncodeToString(m.Sum(nil))
}
