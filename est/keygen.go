package est

import (
	"context"
	"crypto/x509"
	"encoding/asn1"
	"fmt"
	"strings"

	"keystead/fault"
	"keystead/pki"
)

// algorithm is the kind of key a DMS has made for devices.
func (k *KeygenSettings) algorithm() (pki.Algorithm, error) {
	switch strings.ToUpper(k.Key.Type) {
	case "", "ECDSA", "EC":
		switch k.Key.Bits {
		case 0, 256:
			return pki.P256, nil
		case 384:
			return pki.P384, nil
		case 521:
			return pki.P521, nil
		}
		return "", fault.New(fault.Invalid, "an ECDSA key has 256, 384 or 521 bits")
	case "RSA":
		switch k.Key.Bits {
		case 0, 2048:
			return pki.RSA2048, nil
		case 3072:
			return pki.RSA3072, nil
		case 4096:
			return pki.RSA4096, nil
		}
		return "", fault.New(fault.Invalid, "an RSA key has 2048, 3072 or 4096 bits")
	case "ED25519":
		return pki.Ed25519, nil
	}
	return "", fault.New(fault.Invalid, "type must be ECDSA, RSA or Ed25519")
}

// Attributes by which a client asks for its key to be encrypted (RFC 7030,
// 4.4.1; RFC 4108, 2.2.5).
var (
	oidDecryptKeyID           = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 16, 2, 37}
	oidAsymmetricDecryptKeyID = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 16, 2, 54}
)

// Keygen serves serverkeygen: it makes a key for the device and certifies it.
// Neither the key in the request nor its signature is looked at.
func (s *Service) Keygen(ctx context.Context, call *Call, der []byte) (*Issued, error) {
	csr, err := pki.ParseCSR(der)
	if err != nil {
		return nil, err
	}
	issued, err := s.keygen(ctx, call, csr)
	s.note(ctx, call, csr, issued, err)
	return issued, err
}

func (s *Service) keygen(ctx context.Context, call *Call, csr *x509.CertificateRequest) (*Issued, error) {
	d, err := s.route(ctx, call, csr)
	if err != nil {
		return nil, err
	}
	settings := &d.Settings.ServerKeygen
	if !settings.Enabled {
		return nil, fault.New(fault.Forbidden, "server key generation not enabled for this DMS")
	}
	recipient, err := keyRecipient(csr)
	if err != nil {
		return nil, err
	}
	alg, err := settings.algorithm()
	if err != nil {
		return nil, fmt.Errorf("est: DMS %s: %w", d.ID, err)
	}
	key, err := pki.GenerateKey(alg)
	if err != nil {
		return nil, err
	}
	plain, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, fmt.Errorf("est: %w", err)
	}
	issued, err := s.enroll(ctx, call, csr, key.Public())
	if err != nil {
		clear(plain)
		return nil, err
	}
	if recipient == nil {
		issued.Key = plain
		return issued, nil
	}
	defer clear(plain)
	issued.EncryptedTo, err = recipient.seal(plain)
	return issued, err
}
