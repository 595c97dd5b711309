package server

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"github.com/labstack/echo/v4"

	"keystead/config"
	"keystead/fault"
)

// certificateHeaders are where proxies that end TLS put the certificate of their
// client, with how each writes it. They are looked at only where
// forwarded_certificates names one, and only from trusted_proxies.
var certificateHeaders = map[string]func(http.Header) ([]*x509.Certificate, error){
	config.EnvoyCertificate:      xfccCertificates,
	config.NginxCertificate:      escapedPEM(config.NginxCertificate),
	config.NginxOtherCertificate: escapedPEM(config.NginxOtherCertificate),
	config.AmazonCertificate:     escapedPEM(config.AmazonCertificate),
	config.StandardCertificate:   rfc9440Certificates,
}

// standardChain goes with config.StandardCertificate.
const standardChain = "Client-Cert-Chain"

// Limits on what a proxy passes on. The size of headers has a limit already.
const (
	maxForwarded      = 8
	maxForwardedBytes = 32 << 10
)

// clientCertificate is what a request came with: of its TLS connection, or the
// one a trusted proxy says its own client has proven.
type clientCertificate struct {
	chain   []*x509.Certificate // the client's first; empty for none
	proxied bool                // the connection is the proxy's, not the client's
	err     error               // of what the proxy passes on
}

type clientCertificateKey struct{}

// clientChain says which certificate the client of a request has proven, and
// whether it did so to a proxy. Whoever looks at certificates of HTTPS clients
// asks here, and verifies what it gets as that of a handshake.
func clientChain(r *http.Request) (chain []*x509.Certificate, proxied bool, err error) {
	if c, ok := r.Context().Value(clientCertificateKey{}).(clientCertificate); ok {
		return c.chain, c.proxied, c.err
	}
	if r.TLS == nil || len(r.TLS.PeerCertificates) == 0 { // none, but no nil either, of a client that was asked
		return nil, false, nil
	}
	return r.TLS.PeerCertificates, false, nil
}

// passedOn takes the client's certificate from the header that trusted proxies
// write, and the headers of that kind out of every request: nobody further in,
// and no webhook that is shown headers, can take for proven what a client wrote.
//
// A trusted proxy that writes none says that its client has none: its own
// certificate, if it shows one, is not the client's.
func (s *Server) passedOn(next echo.HandlerFunc) echo.HandlerFunc {
	trusted, name := s.Config.Proxies(), s.Config.ForwardedCertificates
	hidden := []string{standardChain}
	for header := range certificateHeaders {
		hidden = append(hidden, http.CanonicalHeaderKey(header))
	}
	return func(c echo.Context) error {
		r := c.Request()
		if name != "" && within(trusted, directAddr(r)) {
			chain, err := certificateHeaders[name](r.Header)
			if err != nil {
				err = fault.Wrap(fault.Invalid, err, "the client certificate in the header %s cannot be read: %s", name, err.Error())
			}
			r = r.WithContext(context.WithValue(r.Context(), clientCertificateKey{}, clientCertificate{chain, true, err}))
			c.SetRequest(r)
		}
		for _, header := range hidden {
			delete(r.Header, header)
		}
		return next(c)
	}
}

func within(networks []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(networks, func(p netip.Prefix) bool { return p.Contains(a) })
}

// single is the one value of a header, "" for none.
func single(h http.Header, name string) (string, error) {
	switch values := h.Values(name); len(values) {
	case 0:
		return "", nil
	case 1:
		return strings.TrimSpace(values[0]), nil
	default:
		return "", errors.New("it is there several times; have the proxy replace what clients send")
	}
}

// escapedPEM reads PEM in percent-encoding, in which + stands for itself: what
// nginx has in $ssl_client_escaped_cert, and Amazon's load balancer sends.
func escapedPEM(name string) func(http.Header) ([]*x509.Certificate, error) {
	return func(h http.Header) ([]*x509.Certificate, error) {
		text, err := single(h, name)
		if err != nil || text == "" {
			return nil, err
		}
		return unescapedPEM(text)
	}
}

func unescapedPEM(text string) ([]*x509.Certificate, error) {
	plain, err := url.PathUnescape(text)
	if err != nil {
		return nil, errors.New("it is not in percent-encoding")
	}
	var chain []*x509.Certificate
	rest := []byte(plain)
	for len(bytes.TrimSpace(rest)) > 0 {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil || block.Type != "CERTIFICATE" {
			return nil, errors.New("it is not certificates in PEM")
		}
		if chain, err = appendCertificate(chain, block.Bytes); err != nil {
			return nil, err
		}
	}
	return chain, nil
}

func appendCertificate(chain []*x509.Certificate, der []byte) ([]*x509.Certificate, error) {
	if len(chain) == maxForwarded || len(der) > maxForwardedBytes {
		return nil, errors.New("it has too many certificates, or too large ones")
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, errors.New("it has something that is no certificate")
	}
	return append(chain, cert), nil
}

// xfccCertificates reads Envoy's header: elements, one for each proxy, of
// key=value pairs. Only what the nearest proxy wrote could be believed, so there
// has to be one alone, as with SANITIZE_SET.
func xfccCertificates(h http.Header) ([]*x509.Certificate, error) {
	text, err := single(h, config.EnvoyCertificate)
	if err != nil || text == "" {
		return nil, err
	}
	pairs, err := xfccPairs(text)
	if err != nil {
		return nil, err
	}
	for _, key := range []string{"chain", "cert"} { // the chain has the certificate too
		if value, ok := pairs[key]; ok && value != "" {
			return unescapedPEM(value)
		}
	}
	return nil, errors.New("it has neither Cert nor Chain; have the proxy set them")
}

// xfccPairs splits one element at its semicolons, outside of quotes.
func xfccPairs(text string) (map[string]string, error) {
	pairs := map[string]string{}
	for text != "" {
		key, rest, ok := strings.Cut(text, "=")
		if !ok {
			return nil, errors.New("it is not pairs of key=value")
		}
		var value string
		if quoted, is := strings.CutPrefix(rest, `"`); is {
			end := closingQuote(quoted)
			if end < 0 {
				return nil, errors.New("a quote in it does not end")
			}
			value, rest = quoted[:end], quoted[end+1:]
		} else {
			end := strings.IndexAny(rest, ";,")
			if end < 0 {
				end = len(rest)
			}
			value, rest = rest[:end], rest[end:]
		}
		switch rest = strings.TrimSpace(rest); {
		case rest == "":
		case rest[0] == ',':
			return nil, errors.New("it has several elements; have the proxy replace what clients send (SANITIZE_SET)")
		case rest[0] != ';':
			return nil, errors.New("it is not pairs of key=value")
		}
		key = strings.ToLower(strings.TrimSpace(key))
		if _, twice := pairs[key]; twice && (key == "cert" || key == "chain") {
			return nil, errors.New("it has two certificates; have the proxy replace what clients send (SANITIZE_SET)")
		}
		pairs[key] = value
		text = strings.TrimPrefix(rest, ";")
	}
	return pairs, nil
}

// closingQuote is where a quoted value ends, whose own quotes are after a backslash.
func closingQuote(text string) int {
	for i := 0; i < len(text); i++ {
		switch text[i] {
		case '\\':
			i++
		case '"':
			return i
		}
	}
	return -1
}

// rfc9440Certificates reads the certificate and the chain of RFC 9440: byte
// sequences (RFC 8941, 3.3.5), DER in base64 between colons.
func rfc9440Certificates(h http.Header) ([]*x509.Certificate, error) {
	text, err := single(h, config.StandardCertificate)
	if err != nil || text == "" {
		return nil, err
	}
	chain, err := appendSequence(nil, text)
	if err != nil {
		return nil, err
	}
	above := strings.Join(h.Values(standardChain), ",")
	if strings.TrimSpace(above) == "" {
		return chain, nil
	}
	for text := range strings.SplitSeq(above, ",") {
		if chain, err = appendSequence(chain, text); err != nil {
			return nil, err
		}
	}
	return chain, nil
}

func appendSequence(chain []*x509.Certificate, text string) ([]*x509.Certificate, error) {
	text = strings.TrimSpace(text)
	if len(text) < 2 || text[0] != ':' || text[len(text)-1] != ':' {
		return nil, errors.New("it is not base64 between colons (RFC 9440)")
	}
	der, err := base64.StdEncoding.DecodeString(text[1 : len(text)-1])
	if err != nil {
		return nil, errors.New("it is not base64 between colons (RFC 9440)")
	}
	return appendCertificate(chain, der)
}
