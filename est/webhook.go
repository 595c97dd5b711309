package est

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"keystead/fault"
	"keystead/identity"
	"keystead/outbound"
	"keystead/pki"
	"keystead/seal"
)

// Webhook asks a service of the operator's whether a client may enrol.
type Webhook struct {
	Name   string     `json:"name"`
	URL    string     `json:"url"`
	Method string     `json:"method"`
	Config HookConfig `json:"config"`
}

// HookConfig is how the webhook is called.
type HookConfig struct {
	ValidateServerCert bool         `json:"validate_server_cert"`
	LogLevel           string       `json:"log_level"`
	AuthMode           string       `json:"auth_mode"`
	CallTimeout        pki.Duration `json:"call_timeout"`
	OIDC               HookOIDC     `json:"oidc"`
	APIKey             HookAPIKey   `json:"apikey"`
	MTLS               HookMTLS     `json:"mtls"`
	// Secret signs the body of each call; see outbound.SignatureHeader.
	Secret string `json:"hmac_secret,omitempty"`
	// CA is what the hook's certificate leads to, in PEM; the system's roots if empty.
	CA string `json:"ca,omitempty"`
	// ForwardCredentials passes the headers Authorization and Cookie on.
	ForwardCredentials bool `json:"forward_credentials,omitempty"`
}

// HookOIDC gets a token by client credentials.
type HookOIDC struct {
	ClientID     string `json:"client_id"`
	ClientSecret string `json:"client_secret"`
	WellKnown    string `json:"well_known"`
}

// HookAPIKey is sent in a header.
type HookAPIKey struct {
	Key    string `json:"key"`
	Header string `json:"header"`
}

// HookMTLS is a certificate and key, in PEM.
type HookMTLS struct {
	Cert string `json:"cert"`
	Key  string `json:"key"`
}

// Limits on webhooks.
const (
	hookTimeout    = 10 * time.Second
	maxHookTimeout = 25 * time.Second // shorter than the time a client is given
	maxHookAnswer  = 64 << 10
)

func (w *Webhook) check(at string, note func(field, message string)) {
	if err := outbound.CheckURL(w.URL, true); err != nil {
		note(at+".url", fault.Message(err))
	}
	if w.Method == "" {
		w.Method = http.MethodPost
	}
	oneOf(note, at+".method", w.Method, http.MethodPost, http.MethodPut)
	oneOf(note, at+".config.auth_mode", w.Config.AuthMode, "", "noauth", "apikey", "mtls", "jwt")
	if d := time.Duration(w.Config.CallTimeout); d < 0 || d > maxHookTimeout {
		note(at+".config.call_timeout", "must be at most 25s")
	}
	if w.Config.AuthMode == "apikey" && (w.Config.APIKey.Header == "" || strings.ContainsAny(w.Config.APIKey.Header, " :\r\n")) {
		note(at+".config.apikey.header", "must be the name of a header")
	}
	if w.Config.AuthMode == "jwt" {
		if err := outbound.CheckURL(w.Config.OIDC.WellKnown, true); err != nil {
			note(at+".config.oidc.well_known", fault.Message(err))
		}
	}
	if w.Config.AuthMode == "mtls" && w.Config.MTLS.Key != Kept {
		if _, err := tls.X509KeyPair([]byte(w.Config.MTLS.Cert), []byte(w.Config.MTLS.Key)); err != nil {
			note(at+".config.mtls", "must be a certificate and its key in PEM")
		}
	}
	if w.Config.CA != "" && !x509.NewCertPool().AppendCertsFromPEM([]byte(w.Config.CA)) {
		note(at+".config.ca", "must be certificates in PEM")
	}
}

// HookError says that a webhook could not be asked.
type HookError struct {
	Timeout bool
	Err     error
}

// Error returns what a client may read; the cause is for the log.
func (e *HookError) Error() string {
	if e.Timeout {
		return "external webhook authorization timed out or was canceled"
	}
	return "error while calling external webhook: " + e.Err.Error()
}

// Unwrap returns the cause.
func (e *HookError) Unwrap() error { return e.Err }

// hookRequest is what a webhook is sent: Lamassu's members first, then ours.
type hookRequest struct {
	CSR         string    `json:"csr"`
	APS         string    `json:"aps"`
	DeviceCN    string    `json:"device_cn"`
	HTTPRequest hookHTTP  `json:"http_request"`
	Operation   Operation `json:"operation"`
	Certificate *hookCert `json:"client_certificate,omitempty"`
	RemoteAddr  string    `json:"remote_addr"`
	RequestID   string    `json:"request_id"`
	Timestamp   time.Time `json:"timestamp"`
}

type hookHTTP struct {
	Headers map[string]string `json:"headers"`
	URL     string            `json:"url"`
}

type hookCert struct {
	PEM          string    `json:"pem_b64"`
	Subject      string    `json:"subject"`
	Issuer       string    `json:"issuer"`
	SerialNumber string    `json:"serial_number"`
	SHA256       string    `json:"sha256"`
	NotBefore    time.Time `json:"not_before"`
	NotAfter     time.Time `json:"not_after"`
}

// HookAnswer is what a webhook answers.
type HookAnswer struct {
	Authorized     bool              `json:"authorized"`
	Reason         string            `json:"reason,omitempty"`
	DeviceMetadata map[string]string `json:"device_metadata,omitempty"`
}

// maxReason is how much of a webhook's reason a client is told.
const maxReason = 200

func timedOut(ctx context.Context, err error) bool {
	e, ok := errors.AsType[net.Error](err)
	return ctx.Err() != nil || ok && e.Timeout()
}

// ParseHookAnswer reads the answer of a webhook: a JSON object that says whether
// the client is authorised. Anything else is no answer.
func ParseHookAnswer(body []byte) (HookAnswer, error) {
	var a struct {
		Authorized     *bool          `json:"authorized"`
		Reason         string         `json:"reason"`
		DeviceMetadata map[string]any `json:"device_metadata"`
	}
	if len(body) == 0 {
		return HookAnswer{}, errors.New("external webhook didn't return a response")
	}
	if err := json.Unmarshal(body, &a); err != nil || a.Authorized == nil {
		return HookAnswer{}, errors.New(`the answer is not JSON with "authorized": true or false`)
	}
	out := HookAnswer{Authorized: *a.Authorized, Reason: line(a.Reason)}
	for k, v := range a.DeviceMetadata {
		if len(out.DeviceMetadata) == maxDMSList {
			break
		}
		if out.DeviceMetadata == nil {
			out.DeviceMetadata = map[string]string{}
		}
		out.DeviceMetadata[k] = fmt.Sprint(v)
	}
	return out, nil
}

// line makes one printable line of text from outside.
func line(text string) string {
	text = strings.ToValidUTF8(text, "?")
	text = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f {
			return ' '
		}
		return r
	}, text)
	if r := []rune(text); len(r) > maxReason {
		text = string(r[:maxReason])
	}
	return strings.TrimSpace(text)
}

// askHook asks the webhook of a DMS. Whatever goes wrong, nobody is let in.
func (s *Service) askHook(ctx context.Context, d *DMS, a *AuthSettings, call *Call, csr *x509.CertificateRequest, c *caller) error {
	if call.trial {
		return nil
	}
	body, err := s.hookBody(ctx, d, a, call, csr)
	if err != nil {
		return err
	}
	answer, _, err := s.callHook(ctx, d, a, body)
	if err != nil {
		return err
	}
	if !answer.Authorized {
		word := "enrollment"
		if call.Operation == SimpleReenroll {
			word = "reenrollment"
		}
		text := "external webhook denied " + word
		if answer.Reason != "" {
			text += ": " + answer.Reason
		}
		return fault.New(fault.Forbidden, "%s", text)
	}
	c.metadata = answer.DeviceMetadata
	return nil
}

func (s *Service) hookBody(ctx context.Context, d *DMS, a *AuthSettings, call *Call, csr *x509.CertificateRequest) ([]byte, error) {
	r := hookRequest{
		CSR: base64.StdEncoding.EncodeToString(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr.Raw})),
		APS: d.ID, DeviceCN: csr.Subject.CommonName, HTTPRequest: hookHTTP{Headers: map[string]string{}, URL: call.URL},
		Operation: call.Operation, RemoteAddr: call.Remote.String(), RequestID: identity.RequestID(ctx), Timestamp: s.Now().UTC(),
	}
	maps.Copy(r.HTTPRequest.Headers, call.Header)
	if !a.Webhook.Config.ForwardCredentials {
		for name := range r.HTTPRequest.Headers {
			switch http.CanonicalHeaderKey(name) {
			case "Authorization", "Cookie", "Proxy-Authorization":
				delete(r.HTTPRequest.Headers, name)
			}
		}
	}
	if len(call.Chain) > 0 {
		leaf := call.Chain[0]
		r.Certificate = &hookCert{
			PEM:     base64.StdEncoding.EncodeToString(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: leaf.Raw})),
			Subject: leaf.Subject.String(), Issuer: leaf.Issuer.String(), SerialNumber: string(pki.SerialOf(leaf.SerialNumber)),
			SHA256: pki.Fingerprint(leaf.Raw), NotBefore: leaf.NotBefore, NotAfter: leaf.NotAfter,
		}
	}
	body, err := json.Marshal(r)
	if err != nil {
		return nil, fmt.Errorf("est: %w", err)
	}
	return body, nil
}

// callHook calls the webhook with a body and returns what it says, and what it
// answered as it stands.
func (s *Service) callHook(ctx context.Context, d *DMS, a *AuthSettings, body []byte) (HookAnswer, outbound.Answer, error) {
	hook, err := s.openHook(d, a)
	if err != nil {
		return HookAnswer{}, outbound.Answer{}, err
	}
	timeout := time.Duration(hook.Config.CallTimeout)
	if timeout <= 0 {
		timeout = hookTimeout
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	client, err := s.hookClient(hook, timeout)
	if err != nil {
		return HookAnswer{}, outbound.Answer{}, err
	}
	defer client.Close()
	request := outbound.Request{Method: hook.Method, URL: hook.URL, Body: body, Header: map[string]string{"Content-Type": "application/json"}}
	if hook.Config.Secret != "" {
		request.Secret = seal.Secret(hook.Config.Secret)
	}
	switch hook.Config.AuthMode {
	case "apikey":
		request.Header[hook.Config.APIKey.Header] = hook.Config.APIKey.Key
	case "jwt":
		token, err := hookToken(ctx, client, hook.Config.OIDC)
		if err != nil {
			return HookAnswer{}, outbound.Answer{}, &HookError{Timeout: timedOut(ctx, err), Err: err}
		}
		request.Header["Authorization"] = "Bearer " + token
	}
	answer, err := client.Do(ctx, request)
	switch {
	case err != nil:
		return HookAnswer{}, answer, &HookError{Timeout: timedOut(ctx, err), Err: err}
	case !answer.OK():
		return HookAnswer{}, answer, &HookError{Err: fmt.Errorf("unexpected status code: %d", answer.Status)}
	}
	said, err := ParseHookAnswer(answer.Body)
	if err != nil {
		return said, answer, &HookError{Err: err}
	}
	return said, answer, nil
}

func (s *Service) hookClient(hook *Webhook, timeout time.Duration) (*outbound.Client, error) {
	conf := &tls.Config{MinVersion: tls.VersionTLS12, Time: s.Now}
	if !hook.Config.ValidateServerCert && strings.HasPrefix(hook.URL, "https:") && hook.Config.CA == "" {
		conf.InsecureSkipVerify = true
	}
	if hook.Config.CA != "" {
		conf.RootCAs = x509.NewCertPool()
		conf.RootCAs.AppendCertsFromPEM([]byte(hook.Config.CA))
	}
	if hook.Config.AuthMode == "mtls" {
		pair, err := tls.X509KeyPair([]byte(hook.Config.MTLS.Cert), []byte(hook.Config.MTLS.Key))
		if err != nil {
			return nil, fmt.Errorf("est: certificate for the webhook: %w", err)
		}
		conf.Certificates = []tls.Certificate{pair}
	}
	return outbound.New(outbound.Options{Guard: s.Guard, Timeout: timeout, MaxAnswer: maxHookAnswer, TLS: conf, PlainHTTP: true, Now: s.Now}), nil
}

// hookToken gets a token by OAuth 2.0 client credentials from the issuer that the
// discovery document names.
func hookToken(ctx context.Context, client *outbound.Client, o HookOIDC) (string, error) {
	found, err := client.Do(ctx, outbound.Request{Method: http.MethodGet, URL: o.WellKnown})
	if err != nil {
		return "", err
	}
	var document struct {
		TokenEndpoint string `json:"token_endpoint"`
	}
	if !found.OK() || json.Unmarshal(found.Body, &document) != nil || document.TokenEndpoint == "" {
		return "", errors.New("the OIDC discovery document has no token_endpoint")
	}
	form := url.Values{"grant_type": {"client_credentials"}}
	answer, err := client.Do(ctx, outbound.Request{
		Method: http.MethodPost, URL: document.TokenEndpoint, Body: []byte(form.Encode()),
		Header: map[string]string{
			"Content-Type":  "application/x-www-form-urlencoded",
			"Authorization": "Basic " + base64.StdEncoding.EncodeToString([]byte(url.QueryEscape(o.ClientID)+":"+url.QueryEscape(o.ClientSecret))),
		},
	})
	if err != nil {
		return "", err
	}
	var token struct {
		AccessToken string `json:"access_token"`
	}
	if !answer.OK() || json.Unmarshal(answer.Body, &token) != nil || token.AccessToken == "" {
		return "", fmt.Errorf("the OIDC issuer gave no token (status %d)", answer.Status)
	}
	return token.AccessToken, nil
}

// HookTest is what a trial of a webhook sent, and what came back.
type HookTest struct {
	Sent       json.RawMessage `json:"sent"`
	Status     int             `json:"status,omitempty"`
	Answer     string          `json:"answer,omitempty"`
	Authorized bool            `json:"authorized"`
	Reason     string          `json:"reason,omitempty"`
	Error      string          `json:"error,omitempty"`
}

// TestWebhook calls the webhook of a DMS with an example, or a request that is
// given, and tells what came of it. Nothing is enrolled.
func (s *Service) TestWebhook(ctx context.Context, dms string, op Operation, csr *x509.CertificateRequest) (HookTest, error) {
	d, err := s.DMS(ctx, dms)
	if err != nil {
		return HookTest{}, err
	}
	a := &d.Settings.Enrollment.EST
	if op == SimpleReenroll {
		a = &d.Settings.Reenrollment.EST
	}
	if a.Webhook.URL == "" {
		return HookTest{}, fault.New(fault.Conflict, "the DMS has no webhook for this operation")
	}
	call := &Call{Label: d.ID, Operation: op, URL: "/.well-known/est/" + d.ID + "/" + string(op), Header: map[string]string{"Content-Type": "application/pkcs10"}}
	body, err := s.hookBody(ctx, &d, a, call, csr)
	if err != nil {
		return HookTest{}, err
	}
	said, answer, err := s.callHook(ctx, &d, a, body)
	out := HookTest{Sent: body, Status: answer.Status, Answer: line(string(answer.Body)), Authorized: said.Authorized && err == nil, Reason: said.Reason}
	if err != nil {
		out.Error = err.Error()
	}
	return out, nil
}
