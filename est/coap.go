package est

import (
	"context"
	"errors"
	"fmt"

	"github.com/fxamacker/cbor/v2"

	"keystead/coap"
	"keystead/fault"
	"keystead/identity"
	"keystead/pki"
)

// maxCoAPBody is the largest request over CoAP, in DER.
const maxCoAPBody = 16 << 10

// CoAPRoutes are the resources of EST over secure CoAP (RFC 9148, 5.1), by their
// short and their long paths, with and without the label of a DMS. Who may use them is
// for the DMS to say, so sessions need not be known.
func (s *Service) CoAPRoutes() []coap.Route {
	resources := []struct {
		short, long string
		method      coap.Code
		handle      coap.Handler
		link        string
	}{
		{"crts", "cacerts", coap.GET, s.coapCACerts, `rt="ace.est.crts";ct="281 287"`},
		{"sen", "simpleenroll", coap.POST, s.coapIssue(SimpleEnroll), `rt="ace.est.sen";ct="281 287"`},
		{"sren", "simplereenroll", coap.POST, s.coapIssue(SimpleReenroll), `rt="ace.est.sren";ct="281 287"`},
		{"skg", "serverkeygen", coap.POST, s.coapKeygen(coap.PKCS7Certs), `rt="ace.est.skg";ct=62`},
		{"skc", "", coap.POST, s.coapKeygen(coap.PKIXCert), `rt="ace.est.skc";ct=62`},
		{"att", "csrattrs", coap.GET, s.coapAttrs, `rt="ace.est.att";ct=285`},
	}
	var routes []coap.Route
	for _, r := range resources {
		add := func(path string, listed bool) {
			routes = append(routes, coap.Route{Method: r.method, Path: path, Need: identity.Public, Enrols: true, Handle: r.handle, MaxBody: maxCoAPBody, Link: r.link, Listed: listed})
		}
		for i, base := range []string{"/est/", "/.well-known/est/"} {
			for _, label := range []string{"", "{label}/"} {
				add(base+label+r.short, i == 0 && label == "")
				if r.long != "" {
					add(base+label+r.long, false)
				}
			}
		}
	}
	return routes
}

func (s *Service) coapCACerts(ctx context.Context, r *coap.Request) (coap.Response, error) {
	format, err := accepted(r, coap.PKCS7Certs, coap.PKIXCert)
	if err != nil {
		return coap.Response{}, err
	}
	certs, err := s.CACerts(ctx, r.Var("label"))
	if err != nil {
		return coap.Response{}, err
	}
	if format == coap.PKIXCert && len(certs) > 1 {
		return coap.Response{}, coap.Errorf(coap.NotAcceptable, "there are %d certificates, which is more than format 287 holds; accept 281", len(certs))
	}
	if format == coap.PKIXCert {
		return coap.Response{Code: coap.Content, Format: format, Body: certs[0].Raw}, nil
	}
	return coap.Response{Code: coap.Content, Format: format, Body: pki.CertsOnly(certs...)}, nil
}

// accepted is the format to answer in: the first of those there are where the
// client asks for none.
func accepted(r *coap.Request, formats ...coap.Format) (coap.Format, error) {
	asked, ok := r.Accept()
	if !ok {
		return formats[0], nil
	}
	for _, f := range formats {
		if f == asked {
			return f, nil
		}
	}
	return 0, coap.Errorf(coap.NotAcceptable, "format %d is not answered here; accept %v", asked, formats)
}

// coapCall is what the session shows of a caller.
func coapCall(r *coap.Request, op Operation) (*Call, error) {
	if format, ok := r.ContentFormat(); ok && format != coap.PKCS10 {
		return nil, coap.Errorf(coap.UnsupportedContentFormat, "send the request as format 286 (application/pkcs10), not %d", format)
	}
	c := &Call{
		Label: r.Var("label"), Operation: op, Transport: r.Session.Transport(), Chain: r.Session.Chain(), URL: r.Path, Remote: r.Session.Remote().Addr(),
	}
	if r.Session.PSK() != "" && r.Actor.Kind == identity.Device {
		c.Device = r.Actor.ID
	}
	return c, nil
}

func (s *Service) coapIssue(op Operation) coap.Handler {
	return func(ctx context.Context, r *coap.Request) (coap.Response, error) {
		format, err := accepted(r, coap.PKCS7Certs, coap.PKIXCert)
		if err != nil {
			return coap.Response{}, err
		}
		call, err := coapCall(r, op)
		if err != nil {
			return coap.Response{}, err
		}
		issued, err := s.Enroll(ctx, call, r.Body)
		if err != nil {
			return coap.Response{}, coapFault(err)
		}
		body := issued.Certificate.Raw
		if format == coap.PKCS7Certs {
			body = pki.CertsOnly(issued.Certificate)
		}
		return coap.Response{Code: coap.Changed, Format: format, Body: body}, nil
	}
}

// coapKeygen answers with a key and its certificate, each with its format (RFC
// 8710; RFC 9148, 5.8).
func (s *Service) coapKeygen(certificate coap.Format) coap.Handler {
	return func(ctx context.Context, r *coap.Request) (coap.Response, error) {
		if _, err := accepted(r, coap.Multipart); err != nil {
			return coap.Response{}, err
		}
		call, err := coapCall(r, ServerKeygen)
		if err != nil {
			return coap.Response{}, err
		}
		issued, err := s.Keygen(ctx, call, r.Body)
		if err != nil {
			return coap.Response{}, coapFault(err)
		}
		defer clear(issued.Key)
		format, key := coap.PKCS8, issued.Key
		if issued.EncryptedTo != nil {
			format, key = coap.PKCS7ServerKey, issued.EncryptedTo
		}
		body := issued.Certificate.Raw
		if certificate == coap.PKCS7Certs {
			body = pki.CertsOnly(issued.Certificate)
		}
		parts, err := cbor.Marshal([]any{uint16(format), key, uint16(certificate), body})
		if err != nil {
			return coap.Response{}, fmt.Errorf("est: %w", err)
		}
		return coap.Response{Code: coap.Changed, Format: coap.Multipart, Body: parts}, nil
	}
}

// noAttrs is a CsrAttrs that asks for nothing: an empty sequence.
var noAttrs = []byte{0x30, 0x00}

func (s *Service) coapAttrs(ctx context.Context, r *coap.Request) (coap.Response, error) {
	if _, err := accepted(r, coap.CSRAttrs); err != nil {
		return coap.Response{}, err
	}
	attrs, err := s.CSRAttrs(ctx, r.Var("label"))
	if err != nil {
		return coap.Response{}, err
	}
	if len(attrs) == 0 {
		attrs = noAttrs // CoAP has no 204 for what is there and empty
	}
	return coap.Response{Code: coap.Content, Format: coap.CSRAttrs, Body: attrs}, nil
}

// coapFault gives what EST says in its own words the codes of CoAP: who has to
// wait is told so by 5.03 and Max-Age (RFC 9148, 5.7).
func coapFault(err error) error {
	if p, ok := errors.AsType[*PendingError](err); ok {
		return &coap.Error{Code: coap.ServiceUnavailable, Message: p.Error(), MaxAge: p.RetryAfter}
	}
	if e, ok := errors.AsType[*HookError](err); ok {
		code := coap.BadGateway
		if e.Timeout {
			code = coap.GatewayTimeout
		}
		return &coap.Error{Code: code, Message: "the external webhook could not be asked", Err: err}
	}
	if fault.Is(err, fault.Conflict) {
		return &coap.Error{Code: coap.Forbidden, Message: fault.Message(err), Err: err}
	}
	return err
}
