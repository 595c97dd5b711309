package est

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/ecdsa"
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
	key   any // an *rsa.PublicKey or *ecdsa.PublicKey
	keyID []byte
}

// keyRecipient returns whom to encrypt to, nil if the client did not ask for it.
// What cannot be done is refused: a key is never sent in clear to who asked for
// it to be encrypted.
func keyRecipient(csr *x509.CertificateRequest) (*recipient, error) {
	for _, oid := range pki.CSRAttributes(csr) {
		switch {
		case oid.Equal(oidDecryptKeyID):
			return nil, fault.New(fault.Invalid, "encrypted key delivery with a symmetric key (DecryptKeyIdentifier) is not supported; use AsymmetricDecryptKeyIdentifier and the key of the request, or leave it out")
		case oid.Equal(oidAsymmetricDecryptKeyID):
			switch csr.PublicKey.(type) {
			case *rsa.PublicKey, *ecdsa.PublicKey:
			default:
				return nil, fault.New(fault.Invalid, "nothing can be encrypted to a key of this kind; sign the request with the RSA or ECDSA key to encrypt to")
			}
			if err := pki.GoodKey(csr.PublicKey); err != nil {
				return nil, err
			}
			if err := pki.CheckSignature(csr); err != nil { // to encrypt to a key, its holder must be there
				return nil, err
			}
			id := sha256.Sum256(csr.RawSubjectPublicKeyInfo)
			return &recipient{key: csr.PublicKey, keyID: id[:20]}, nil
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
	Recipients []asn1.RawValue `asn1:"set"`
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

// seal returns secret as CMS EnvelopedData for r: AES-256-CBC, its key sent as
// the kind of the recipient's has it (RFC 5652, 6).
func (r *recipient) seal(secret []byte) ([]byte, error) {
	key, iv := make([]byte, 32), make([]byte, aes.BlockSize)
	rand.Read(key) // never fails, never short
	rand.Read(iv)
	defer clear(key)
	content, err := encryptCBC(key, iv, secret)
	if err != nil {
		return nil, err
	}
	info, err := r.info(key)
	if err != nil {
		return nil, err
	}
	octets, err := asn1.Marshal(iv)
	if err != nil {
		return nil, fmt.Errorf("est: %w", err)
	}
	inner, err := asn1.Marshal(envelopedData{
		Version:    2,
		Recipients: []asn1.RawValue{{FullBytes: info}},
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

// encryptCBC encrypts secret, padded as CMS has it (RFC 5652, 6.3).
func encryptCBC(key, iv, secret []byte) ([]byte, error) {
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
	return content, nil
}

// info is the RecipientInfo that takes the content's key to r.
func (r *recipient) info(key []byte) ([]byte, error) {
	if to, ok := r.key.(*ecdsa.PublicKey); ok {
		return agreeKey(to, r.keyID, key)
	}
	to, ok := r.key.(*rsa.PublicKey)
	if !ok {
		return nil, fmt.Errorf("est: nothing is encrypted to a %T", r.key)
	}
	return transportKey(to, r.keyID, key)
}

// transportKey encrypts a key by RSA-OAEP with SHA-256 (RFC 5652, 6.2.1; RFC 4056).
func transportKey(to *rsa.PublicKey, keyID, key []byte) ([]byte, error) {
	wrapped, err := rsa.EncryptOAEP(sha256.New(), rand.Reader, to, key, nil)
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
	return asn1.Marshal(keyTrans{2, keyID, pkix.AlgorithmIdentifier{Algorithm: oidRSAOAEP, Parameters: asn1.RawValue{FullBytes: params}}, wrapped})
}
