package est

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"

	"keystead/fault"
	"keystead/pki"
)

// recipient is the key that a client wants its new key encrypted to: the one of
// its request (RFC 7030, 4.4.1.2).
type recipient struct {
	key   *rsa.PublicKey
	keyID []byte
}

// keyRecipient returns whom to encrypt to, nil if the client did not ask for it.
// What cannot be done is refused: a key is never sent in clear to who asked for
// it to be encrypted.
func keyRecipient(csr *x509.CertificateRequest) (*recipient, error) {
	for _, oid := range pki.CSRAttributes(csr) {
		switch {
		case oid.Equal(oidDecryptKeyID):
			return nil, fault.New(fault.Invalid, "encrypted key delivery with a symmetric key (DecryptKeyIdentifier) is not supported; use an RSA key and AsymmetricDecryptKeyIdentifier, or leave it out")
		case oid.Equal(oidAsymmetricDecryptKeyID):
			key, ok := csr.PublicKey.(*rsa.PublicKey)
			if !ok {
				return nil, fault.New(fault.Invalid, "encrypted key delivery is for RSA keys only; sign the request with the RSA key to encrypt to")
			}
			if err := pki.GoodKey(key); err != nil {
				return nil, err
			}
			if err := pki.CheckSignature(csr); err != nil { // to encrypt to a key, its holder must be there
				return nil, err
			}
			id := sha256.Sum256(csr.RawSubjectPublicKeyInfo)
			return &recipient{key: key, keyID: id[:20]}, nil
		}
	}
	return nil, nil
}

var (
	oidEnvelopedData = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 3}
	oidPKCS7Data     = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 1}
	oidRSAOAEP       = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 7}
	oidMGF1          = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 8}
	oidSHA256        = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 1}
	oidAES256CBC     = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 1, 42}
)

type envelopedData struct {
	Version    int
	Recipients []keyTrans `asn1:"set"`
	Content    encryptedContent
}

type keyTrans struct {
	Version   int
	KeyID     []byte `asn1:"tag:0"`
	Algorithm pkix.AlgorithmIdentifier
	Encrypted []byte
}

type encryptedContent struct {
	Type      asn1.ObjectIdentifier
	Algorithm pkix.AlgorithmIdentifier
	Content   []byte `asn1:"tag:0"`
}

type oaepParams struct {
	Hash pkix.AlgorithmIdentifier `asn1:"explicit,tag:0"`
	MGF  pkix.AlgorithmIdentifier `asn1:"explicit,tag:1"`
}

// seal returns secret as CMS EnvelopedData for r: AES-256-CBC, its key by
// RSA-OAEP with SHA-256 (RFC 5652, 6; RFC 4056).
func (r *recipient) seal(secret []byte) ([]byte, error) {
	key, iv := make([]byte, 32), make([]byte, aes.BlockSize)
	rand.Read(key) // never fails, never short
	rand.Read(iv)
	defer clear(key)
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("est: %w", err)
	}
	pad := aes.BlockSize - len(secret)%aes.BlockSize
	content := make([]byte, len(secret), len(secret)+pad)
	copy(content, secret)
	for range pad {
		content = append(content, byte(pad))
	}
	cipher.NewCBCEncrypter(block, iv).CryptBlocks(content, content)
	wrapped, err := rsa.EncryptOAEP(sha256.New(), rand.Reader, r.key, key, nil)
	if err != nil {
		return nil, fmt.Errorf("est: %w", err)
	}
	hash := pkix.AlgorithmIdentifier{Algorithm: oidSHA256}
	mgf, err := asn1.Marshal(hash)
	if err != nil {
		return nil, fmt.Errorf("est: %w", err)
	}
	params, err := asn1.Marshal(oaepParams{hash, pkix.AlgorithmIdentifier{Algorithm: oidMGF1, Parameters: asn1.RawValue{FullBytes: mgf}}})
	if err != nil {
		return nil, fmt.Errorf("est: %w", err)
	}
	octets, err := asn1.Marshal(iv)
	if err != nil {
		return nil, fmt.Errorf("est: %w", err)
	}
	inner, err := asn1.Marshal(envelopedData{
		Version:    2,
		Recipients: []keyTrans{{2, r.keyID, pkix.AlgorithmIdentifier{Algorithm: oidRSAOAEP, Parameters: asn1.RawValue{FullBytes: params}}, wrapped}},
		Content:    encryptedContent{oidPKCS7Data, pkix.AlgorithmIdentifier{Algorithm: oidAES256CBC, Parameters: asn1.RawValue{FullBytes: octets}}, content},
	})
	if err != nil {
		return nil, fmt.Errorf("est: %w", err)
	}
	out, err := asn1.Marshal(struct {
		Type    asn1.ObjectIdentifier
		Content asn1.RawValue
	}{oidEnvelopedData, asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 0, IsCompound: true, Bytes: inner}})
	if err != nil {
		return nil, fmt.Errorf("est: %w", err)
	}
	return out, nil
}
