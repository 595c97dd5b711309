package est

import (
	"bytes"
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io"
	"log/slog"
	"mime"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"keystead/fault"
	"keystead/identity"
	"keystead/pki"
)

// maxBody is the most bytes of a request, in base64 with room for white space.
const maxBody = 2 * pki.MaxCSR

// mediaPEM asks for PEM in place of PKCS#7; only that very header does.
const mediaPEM = "application/x-pem-file"

// Handler serves one operation over HTTPS. Remote says where a request comes
// from, Label which DMS its path names, and Chain what certificates the client has
// proven, and whether to a trusted proxy that passes them on; without it they are
// those of the connection.
type Handler struct {
	Service *Service
	Remote  func(*http.Request) netip.Addr
	Label   func(*http.Request) string
	Chain   func(*http.Request) (chain []*x509.Certificate, proxied bool, err error)
}

// Operations are the operations EST knows, with their method.
var Operations = map[string]string{
	"cacerts": http.MethodGet, "csrattrs": http.MethodGet, "simpleenroll": http.MethodPost, "simplereenroll": http.MethodPost,
	"serverkeygen": http.MethodPost, "fullcmc": http.MethodPost,
}

// ServeOperation answers a request for the named operation.
func (h *Handler) ServeOperation(w http.ResponseWriter, r *http.Request, operation string) {
	method, ok := Operations[operation]
	switch {
	case !ok:
		h.fail(w, r, http.StatusNotFound, fault.New(fault.NotFound, "no such EST operation: %s", quoted(operation)))
		return
	case r.Method != method:
		w.Header().Set("Allow", method)
		h.fail(w, r, http.StatusMethodNotAllowed, fault.New(fault.Invalid, "%s takes %s, not %s", operation, method, line(r.Method)))
		return
	}
	var err error
	switch operation {
	case "cacerts":
		err = h.cacerts(w, r)
	case "csrattrs":
		err = h.csrattrs(w, r)
	case "fullcmc":
		h.fail(w, r, http.StatusNotImplemented, fault.New(fault.Unsupported, "full CMC is not implemented; use simpleenroll"))
		return
	default:
		err = h.issue(w, r, Operation(operation))
	}
	if err != nil {
		h.fail(w, r, 0, err)
	}
}

func (h *Handler) cacerts(w http.ResponseWriter, r *http.Request) error {
	certs, err := h.Service.CACerts(r.Context(), h.Label(r))
	if err != nil {
		return err
	}
	if wantsPEM(r) {
		var all []byte
		for _, c := range certs {
			all = append(all, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})...)
		}
		h.send(w, http.StatusOK, mediaPEM, all)
		return nil
	}
	h.sendBase64(w, r, "application/pkcs7-mime; smime-type=certs-only", pki.CertsOnly(certs...), h.form(r))
	return nil
}

func wantsPEM(r *http.Request) bool { return r.Header.Get("Accept") == mediaPEM }

func (h *Handler) csrattrs(w http.ResponseWriter, r *http.Request) error {
	attrs, err := h.Service.CSRAttrs(r.Context(), h.Label(r))
	if err != nil {
		return err
	}
	if attrs == nil {
		w.WriteHeader(http.StatusNoContent)
		return nil
	}
	h.sendBase64(w, r, "application/csrattrs", attrs, h.form(r))
	return nil
}

func (h *Handler) issue(w http.ResponseWriter, r *http.Request, op Operation) error {
	if kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || kind != "application/pkcs10" {
		return fault.New(fault.Invalid, "content-type must be application/pkcs10")
	}
	body, err := readBody(w, r)
	if err != nil {
		return err
	}
	call, err := h.call(r, op)
	if err != nil {
		return err
	}
	der, err := DecodeBody(body)
	if err != nil {
		return err
	}
	if op == ServerKeygen {
		issued, err := h.Service.Keygen(r.Context(), call, der)
		if err != nil {
			return err
		}
		defer clear(issued.Key)
		h.sendKey(w, issued)
		return nil
	}
	issued, err := h.Service.Enroll(r.Context(), call, der)
	if err != nil {
		return err
	}
	if wantsPEM(r) {
		h.send(w, http.StatusOK, mediaPEM, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: issued.Certificate.Raw}))
		return nil
	}
	h.sendBase64(w, r, "application/pkcs7-mime; smime-type=certs-only", pki.CertsOnly(issued.Certificate), issued.Base64)
	return nil
}

func readBody(w http.ResponseWriter, r *http.Request) ([]byte, error) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if _, ok := errors.AsType[*http.MaxBytesError](err); ok {
		return nil, fault.New(fault.TooLarge, "the body is larger than the %d bytes allowed here", maxBody)
	}
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "the body could not be read")
	}
	return body, nil
}

// call is what the request shows of its caller.
func (h *Handler) call(r *http.Request, op Operation) (*Call, error) {
	c := &Call{
		Label: h.Label(r), Operation: op, Transport: identity.HTTPS, URL: r.URL.Path, Remote: h.Remote(r), Header: map[string]string{},
	}
	for name, values := range r.Header {
		c.Header[name] = values[0]
	}
	if r.TLS != nil {
		c.Chain, c.Binding = r.TLS.PeerCertificates, bindings(r.TLS)
	}
	if h.Chain != nil {
		chain, proxied, err := h.Chain(r)
		if err != nil {
			return nil, err
		}
		if c.Chain = chain; proxied {
			c.Binding = unbound
		}
	}
	scheme, value, _ := strings.Cut(strings.TrimSpace(r.Header.Get("Authorization")), " ")
	switch {
	case len(r.Header.Values("Authorization")) > 1:
		return nil, fault.New(fault.Invalid, "send one Authorization header, not several")
	case strings.EqualFold(scheme, "Basic"):
		plain, err := base64.StdEncoding.DecodeString(strings.TrimSpace(value))
		if err != nil {
			return nil, fault.New(fault.Unauthenticated, "the Basic credential is not base64 of user:password")
		}
		c.Scheme, c.Value = "Basic", string(plain)
	case strings.EqualFold(scheme, "Bearer"):
		c.Scheme, c.Value = "Bearer", strings.TrimSpace(value)
	case scheme != "":
		return nil, fault.New(fault.Unauthenticated, "the Authorization is neither Basic nor Bearer")
	}
	return c, nil
}

// bindings returns what a client may have put in its request to link it to this
// connection: tls-unique up to TLS 1.2, tls-exporter (RFC 9266) from TLS 1.3 on. Some
// clients still make a value of their own of TLS 1.3's messages, which a server
// cannot know: there a mismatch proves nothing.
func bindings(state *tls.ConnectionState) func() ([][]byte, bool) {
	return func() (values [][]byte, provable bool) {
		if len(state.TLSUnique) > 0 {
			values, provable = append(values, state.TLSUnique), true
		}
		if exported, err := state.ExportKeyingMaterial("EXPORTER-Channel-Binding", nil, 32); err == nil {
			values = append(values, exported)
		}
		return values, provable
	}
}

// unbound is the binding of a connection that ends at a proxy: what the client
// has put in its request is of a channel nobody here has seen, so a DMS that
// requires it refuses.
func unbound() ([][]byte, bool) { return nil, false }

// form is how the DMS of a path wants answers written, "" if it does not say.
func (h *Handler) form(r *http.Request) string {
	d, err := h.Service.labelled(r.Context(), h.Label(r))
	if err != nil {
		return ""
	}
	return d.Settings.Base64
}

// lines reports whether an answer is written in lines: as its DMS says, or else the
// configuration, or as the client needs it.
func (h *Handler) lines(r *http.Request, form string) bool {
	form = cmp.Or(form, h.Service.Config.Base64)
	return form == "64" || form != "none" && strings.HasPrefix(r.UserAgent(), "libest")
}

func (h *Handler) sendBase64(w http.ResponseWriter, r *http.Request, media string, der []byte, form string) {
	w.Header().Set("Content-Transfer-Encoding", "base64")
	h.send(w, http.StatusOK, media, encodeBody(der, h.lines(r, form)))
}

func (h *Handler) send(w http.ResponseWriter, status int, media string, body []byte) {
	w.Header().Set("Content-Type", media)
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(status)
	_, _ = w.Write(body) //nolint:gosec // G705: plain text or DER in base64, and said to be so //nolint:errcheck // a client that is gone needs no answer
}

// keyBoundary parts the answers of serverkeygen; base64 cannot hold it.
const keyBoundary = "estServerKeysteadBoundary"

// sendKey answers with the new key and its certificate (RFC 7030, 4.4.2).
func (h *Handler) sendKey(w http.ResponseWriter, issued *Issued) {
	w.Header().Set("Cache-Control", "no-store")
	h.send(w, http.StatusOK, "multipart/mixed; boundary="+keyBoundary, keyParts(issued.Key, issued.EncryptedTo, pki.CertsOnly(issued.Certificate)))
}

// keyParts are the key, encrypted if that is there, and after it the certificate.
func keyParts(plain, encrypted, certificate []byte) []byte {
	media, key := "application/pkcs8", plain
	if encrypted != nil {
		media, key = "application/pkcs7-mime; smime-type=server-generated-key", encrypted
	}
	var b bytes.Buffer
	part := func(media string, der []byte) {
		b.WriteString("--" + keyBoundary + "\r\nContent-Type: " + media + "\r\nContent-Transfer-Encoding: base64\r\n\r\n")
		b.WriteString(base64.StdEncoding.EncodeToString(der))
		b.WriteString("\r\n")
	}
	part(media, key)
	part("application/pkcs7-mime; smime-type=certs-only", certificate)
	b.WriteString("--" + keyBoundary + "--\r\n")
	return b.Bytes()
}

// statuses is where kinds of faults become EST's statuses.
var statuses = map[fault.Kind]int{
	fault.Internal:        http.StatusInternalServerError,
	fault.Invalid:         http.StatusBadRequest,
	fault.Unauthenticated: http.StatusUnauthorized,
	fault.Forbidden:       http.StatusForbidden,
	fault.NotFound:        http.StatusNotFound,
	fault.Conflict:        http.StatusForbidden, // libest and others know no 409
	fault.TooLarge:        http.StatusRequestEntityTooLarge,
	fault.Unsupported:     http.StatusUnsupportedMediaType,
	fault.TooMany:         http.StatusTooManyRequests,
	fault.Unavailable:     http.StatusServiceUnavailable,
	fault.Full:            http.StatusServiceUnavailable,
}

// Fail answers with an error in the form of EST.
func (h *Handler) Fail(w http.ResponseWriter, r *http.Request, status int, err error) {
	h.fail(w, r, status, err)
}

// fail answers with an error: one line of text that a technician understands.
func (h *Handler) fail(w http.ResponseWriter, r *http.Request, status int, err error) {
	text := fault.Message(err)
	wait := time.Duration(0)
	if e, ok := errors.AsType[*fault.Error](err); ok {
		wait = e.RetryAfter
	}
	if status == 0 {
		status = statuses[fault.KindOf(err)]
	}
	if p, ok := errors.AsType[*PendingError](err); ok {
		status, wait, text = http.StatusAccepted, p.RetryAfter, p.Error()
	}
	if e, ok := errors.AsType[*HookError](err); ok {
		status, text = http.StatusBadGateway, "error while calling external webhook"
		if e.Timeout {
			status, text = http.StatusGatewayTimeout, e.Error()
		}
		h.Service.Log.WarnContext(r.Context(), "webhook not asked", slog.Any("error", err), slog.String("request_id", identity.RequestID(r.Context())))
	}
	if status == http.StatusInternalServerError {
		h.Service.Log.ErrorContext(r.Context(), "internal error", slog.Any("error", err), slog.String("path", r.URL.Path),
			slog.String("request_id", identity.RequestID(r.Context())))
	}
	header := w.Header()
	switch status {
	case http.StatusUnauthorized: // written as libest looks for it
		header["WWW-Authenticate"] = []string{`Basic realm="keystead"`} //nolint:canonicalheader // as said
	case http.StatusAccepted, http.StatusTooManyRequests, http.StatusServiceUnavailable:
		header.Set("Retry-After", strconv.Itoa(max(1, int(wait/time.Second))))
	}
	if strings.Contains(r.Header.Get("Accept"), "application/json") {
		body, merr := json.Marshal(map[string]string{"err": text, "request_id": identity.RequestID(r.Context())})
		if merr == nil {
			h.send(w, status, "application/json", body)
			return
		}
	}
	h.send(w, status, "text/plain; charset=utf-8", []byte(text+"\n"))
}
