package pki

import (
	"context"
	"crypto/x509"
	"fmt"

	"keystead/fault"
)

// Latest follows a CA to the one that has replaced it, if it issues no more.
func (s *Service) Latest(ctx context.Context, ca CAID) (CAID, error) {
	for range 64 {
		a, err := s.authority(ctx, ca)
		if err != nil {
			return "", err
		}
		if a.Successor == "" || a.State == CAActive {
			return ca, nil
		}
		ca = a.Successor
	}
	return "", fmt.Errorf("pki: the successors of %s make a circle", ca)
}

// Distribution returns what clients of a CA are to know: it and those above it
// up to the root, and the certificates that link the root with the one before it.
func (s *Service) Distribution(ctx context.Context, ca CAID) ([]*x509.Certificate, error) {
	path, err := s.Path(ctx, ca)
	if err != nil {
		return nil, err
	}
	for range maxChain + 1 {
		a, err := s.authority(ctx, ca)
		if err != nil {
			return nil, err
		}
		if a.Parent != "" {
			ca = a.Parent
			continue
		}
		for _, der := range a.Cross {
			cross, err := x509.ParseCertificate(der)
			if err != nil {
				return nil, fmt.Errorf("pki: links of CA %s: %w", ca, err)
			}
			path = append(path, cross)
		}
		if a.Predecessor != "" {
			old, err := s.authority(ctx, a.Predecessor)
			if err != nil && !fault.Is(err, fault.NotFound) {
				return nil, err
			}
			if err == nil && old.cert != nil && old.State != CARevoked {
				path = append(path, old.cert)
			}
		}
		return path, nil
	}
	return path, nil
}
