package server

import (
	"crypto/x509"
	"net/http"

	"github.com/labstack/echo/v4"

	"keystead/identity"
)

// Watched returns how many addresses s keeps a bucket for.
func (s *Server) Watched() int {
	s.limits.address.mu.Lock()
	defer s.limits.address.mu.Unlock()
	return s.limits.address.order.Len()
}

// StrictJSON is how bodies are read.
var StrictJSON = strictJSON

// SwapTLS looks at the certificate's files now.
func (s *Server) SwapTLS() error { return s.swapTLS() }

// ForwardedForTest reads a certificate as a trusted proxy writes it under a name.
func ForwardedForTest(name string, h http.Header) ([]*x509.Certificate, error) {
	read, ok := certificateHeaders[name]
	if !ok {
		return nil, nil
	}
	return read(h)
}

// ReadThings returns how many things a request's body names.
func ReadThings(c echo.Context) (int, error) {
	list, err := bindOneOrMany[newThingView](c)
	return len(list), err
}

// Proof is what a request shows of its caller.
func (s *Server) Proof(r *http.Request) (identity.Proof, error) { return s.proof(r) }

// Plain reports whether a path or a value of a query is taken.
func Plain(text string) bool { return plain(text) }
