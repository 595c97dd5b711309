package pki

import (
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"math/big"
	"time"

	"keystead/fault"
)

// OfflineRoot is a root whose key is on no server.
type OfflineRoot struct {
	Certificate *x509.Certificate
	Key         crypto.Signer
}

// NewOfflineRoot makes a root and its key.
func NewOfflineRoot(name string, alg Algorithm, notAfter, now time.Time) (OfflineRoot, error) {
	n := NewCA{Name: name, Algorithm: alg}
	if err := n.check(); err != nil {
		return OfflineRoot{}, err
	}
	key, err := GenerateKey(alg)
	if err != nil {
		return OfflineRoot{}, err
	}
	subject, err := n.Subject.der()
	if err != nil {
		return OfflineRoot{}, err
	}
	t := &template{
		serial: newSerial(now), subject: subject, issuer: subject, notBefore: now.Add(-backdate).Truncate(time.Second), notAfter: notAfter.Truncate(time.Second),
		algorithm: alg, authorityKeyID: keyID(key.Public()),
	}
	t.addCA(key.Public(), -1, nil)
	cert, err := t.sign(key)
	return OfflineRoot{cert, key}, err
}

// LoadOfflineRoot reads a root from PEM.
func LoadOfflineRoot(certificate, key []byte) (OfflineRoot, error) {
	certs, err := ParseCertificates(certificate)
	if err != nil {
		return OfflineRoot{}, err
	}
	signer, err := ParseKey(key)
	if err != nil {
		return OfflineRoot{}, err
	}
	if !certs[0].IsCA || !samePublic(signer.Public(), certs[0].PublicKey) {
		return OfflineRoot{}, fault.New(fault.Invalid, "the key is not that of the root's certificate")
	}
	return OfflineRoot{certs[0], signer}, nil
}

// SignCA certifies the CA of a request in PEM.
func (r *OfflineRoot) SignCA(request []byte, pathLen int, notAfter, now time.Time) (*x509.Certificate, error) {
	block, _ := pem.Decode(request)
	if block == nil {
		return nil, fault.New(fault.Invalid, "there is no certificate request in PEM")
	}
	csr, err := ParseCSR(block.Bytes)
	if err != nil {
		return nil, err
	}
	if err := CheckSignature(csr); err != nil {
		return nil, err
	}
	if err := GoodKey(csr.PublicKey); err != nil {
		return nil, err
	}
	if notAfter.After(r.Certificate.NotAfter) {
		notAfter = r.Certificate.NotAfter
	}
	t := &template{
		serial: newSerial(now), subject: csr.RawSubject, issuer: r.Certificate.RawSubject, notBefore: now.Add(-backdate).Truncate(time.Second),
		notAfter: notAfter.Truncate(time.Second), algorithm: AlgorithmOf(r.Certificate.PublicKey), authorityKeyID: subjectKeyID(r.Certificate),
	}
	t.addCA(csr.PublicKey, pathLen, nil)
	return t.sign(r.Key)
}

// CRL makes the root's revocation list in DER.
func (r *OfflineRoot) CRL(serials []string, number uint64, now, next time.Time) ([]byte, error) {
	list := &x509.RevocationList{Number: new(big.Int).SetUint64(number), ThisUpdate: now.UTC(), NextUpdate: next.UTC()}
	for _, text := range serials {
		serial, err := ParseSerial(text)
		if err != nil {
			return nil, err
		}
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries, x509.RevocationListEntry{SerialNumber: serial.number(), RevocationTime: now.UTC()})
	}
	der, err := x509.CreateRevocationList(rand.Reader, list, r.Certificate, r.Key)
	if err != nil {
		return nil, fmt.Errorf("pki: crl: %w", err)
	}
	return der, nil
}
