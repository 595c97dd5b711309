// Package client is the Go client of Keystead's REST API, as the command line
// uses it. Each resource has its own file; what they share is here: the
// connection, one error type, and pages as iterators.
package client

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"
)

// Config says where the server is and who asks.
type Config struct {
	URL    string // https://host:port
	CAFile string // PEM of what signed the server's certificate; "" for the system's roots
	APIKey string // sent as a Bearer credential; "" for none
	Org    string // the organisation a platform administrator acts in; "" for its default
	Dial   string // host:port to connect to in place of URL's, whose name the certificate still has to carry
}

// Client talks to one server. It is safe for concurrent use.
type Client struct {
	base   *url.URL
	apiKey string
	org    string
	http   *http.Client
}

// dialTimeout is how long a server may take to answer the call.
const dialTimeout = 10 * time.Second

// New returns a client. It reads the CA file and does not connect yet.
func New(c Config) (*Client, error) {
	base, err := url.Parse(strings.TrimSuffix(c.URL, "/"))
	if err != nil || base.Host == "" || base.Scheme != "https" {
		return nil, fmt.Errorf("client: %q is not a URL such as https://localhost:8443", c.URL)
	}
	conf := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.CAFile != "" {
		pem, err := os.ReadFile(c.CAFile)
		if err != nil {
			return nil, fmt.Errorf("client: CA file: %w", err)
		}
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("client: CA file: %s has no certificate in PEM", c.CAFile)
		}
	}
	dialer := &net.Dialer{Timeout: dialTimeout}
	transport := &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		TLSClientConfig:     conf,
		TLSHandshakeTimeout: dialTimeout,
		ForceAttemptHTTP2:   true,
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			if c.Dial != "" {
				addr = c.Dial
			}
			return dialer.DialContext(ctx, network, addr)
		},
	}
	if c.Dial != "" {
		transport.Proxy = nil
	}
	return &Client{base: base, apiKey: c.APIKey, org: c.Org, http: &http.Client{
		Transport: transport,
		// A credential goes to the server it was meant for, and nowhere else.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}}, nil
}

// Close ends the connections that are idle.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// URL is the server's address, as it was given.
func (c *Client) URL() string { return c.base.String() }

// Error is an answer that says the request failed.
type Error struct {
	Status     int           `json:"-"`
	Message    string        `json:"error"`      // what went wrong and what to do
	Code       string        `json:"code"`       // a machine word
	RequestID  string        `json:"request_id"` // finds the request in the server's log
	Fields     []Field       `json:"fields"`     // for invalid input
	RetryAfter time.Duration `json:"-"`          // 0 if the server did not say
}

// Field says what is wrong with one input.
type Field struct {
	Name    string `json:"field"`
	Message string `json:"message"`
}

// Error returns the server's message, with every faulty field.
func (e *Error) Error() string {
	if len(e.Fields) == 0 {
		return e.Message
	}
	list := make([]string, len(e.Fields))
	for i, f := range e.Fields {
		list[i] = f.Name + ": " + f.Message
	}
	return strings.Join(list, "; ")
}

// IsStatus reports whether err is an answer with this HTTP status.
func IsStatus(err error, status int) bool {
	e, ok := errors.AsType[*Error](err)
	return ok && e.Status == status
}

// Request is one request that is more than JSON in and JSON out.
type Request struct {
	Method string
	Path   string // under the server's URL; parts that come from outside go through Path
	Query  url.Values
	Type   string    // of Body
	Body   io.Reader // nil for none
	Accept string    // "" for JSON
}

// Send sends r. An answer outside 2xx is an *Error; any other answer is the
// caller's, who closes its body.
func (c *Client) Send(ctx context.Context, r Request) (*http.Response, error) {
	at := c.base.String() + r.Path
	if len(r.Query) > 0 {
		at += "?" + r.Query.Encode()
	}
	req, err := http.NewRequestWithContext(ctx, r.Method, at, r.Body)
	if err != nil {
		return nil, fmt.Errorf("client: %w", err)
	}
	req.Header.Set("Accept", "application/json")
	if r.Accept != "" {
		req.Header.Set("Accept", r.Accept)
	}
	if r.Body != nil {
		req.Header.Set("Content-Type", r.Type)
	}
	if c.apiKey != "" {
		req.Header.Set("Authorization", "Bearer "+c.apiKey)
	}
	if c.org != "" {
		req.Header.Set("X-Org-ID", c.org)
	}
	res, err := c.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("client: %w", err)
	}
	if res.StatusCode/100 != 2 {
		defer res.Body.Close()
		return nil, failure(res)
	}
	return res, nil
}

// Bounds on what of an answer is read into memory.
const (
	maxError  = 64 << 10
	maxAnswer = 64 << 20
)

func failure(res *http.Response) error {
	e := &Error{Status: res.StatusCode}
	body, _ := io.ReadAll(io.LimitReader(res.Body, maxError)) // what is there is shown
	var creator struct{ ErrorCode, ErrorMessage string }      // the CreatorDev API says it in words of its own
	if json.Unmarshal(body, &creator) == nil && creator.ErrorMessage != "" {
		e.Code, e.Message, e.RequestID = creator.ErrorCode, creator.ErrorMessage, res.Header.Get("X-Request-ID")
	} else if json.Unmarshal(body, e) != nil || e.Message == "" {
		e.Message = "the server answered " + res.Status
		if text := strings.TrimSpace(string(body)); text != "" && len(text) < 500 {
			e.Message += ": " + text
		}
	}
	if s, err := strconv.Atoi(res.Header.Get("Retry-After")); err == nil {
		e.RetryAfter = time.Duration(s) * time.Second
	}
	return e
}

// Do sends body as JSON, nil for none, and reads the answer as a T. Use
// struct{} where the answer has no body.
func Do[T any](ctx context.Context, c *Client, method, path string, query url.Values, body any) (T, error) {
	var out T
	r := Request{Method: method, Path: path, Query: query}
	if body != nil {
		b, err := json.Marshal(body)
		if err != nil {
			return out, fmt.Errorf("client: %w", err)
		}
		r.Type, r.Body = "application/json", bytes.NewReader(b)
	}
	res, err := c.Send(ctx, r)
	if err != nil {
		return out, err
	}
	defer res.Body.Close()
	if res.StatusCode == http.StatusNoContent {
		return out, nil
	}
	b, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	if err != nil {
		return out, fmt.Errorf("client: %w", err)
	}
	if len(b) == 0 {
		return out, nil
	}
	if err := json.Unmarshal(b, &out); err != nil {
		return out, fmt.Errorf("client: %s %s answered with something else than expected: %w", method, path, err)
	}
	return out, nil
}

// Page is one page of a list.
type Page[T any] struct {
	Items []T    `json:"items"`
	Next  string `json:"next"`
}

// pageSize is how many items are asked for at a time.
const pageSize = 500

// List goes through a list, page by page, and ends at the first error.
func List[T any](ctx context.Context, c *Client, path string, query url.Values) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		q := url.Values{}
		maps.Copy(q, query)
		if !q.Has("limit") {
			q.Set("limit", strconv.Itoa(pageSize))
		}
		for {
			p, err := Do[Page[T]](ctx, c, http.MethodGet, path, q, nil)
			if err != nil {
				var zero T
				yield(zero, err)
				return
			}
			for _, item := range p.Items {
				if !yield(item, nil) {
					return
				}
			}
			if p.Next == "" {
				return
			}
			q.Set("cursor", p.Next)
		}
	}
}

// Path joins the parts of a path, each escaped.
func Path(parts ...string) string {
	var b strings.Builder
	for _, p := range parts {
		b.WriteString("/" + url.PathEscape(p))
	}
	return b.String()
}
