//go:build !pkcs11

package pki

import "errors"

// OpenPKCS11 says that this build has no PKCS#11.
func OpenPKCS11(PKCS11) (KeyStore, func() error, error) {
	return nil, nil, errors.New("pki.pkcs11: this program was built without PKCS#11; build it with CGO_ENABLED=1 go build -tags pkcs11")
}
