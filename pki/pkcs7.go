package pki

import (
	"crypto/x509"
	"encoding/asn1"

	"golang.org/x/crypto/cryptobyte"
	tags "golang.org/x/crypto/cryptobyte/asn1"

	"keystead/fault"
)

var (
	oidSignedData = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 2}
	oidData       = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 7, 1}
)

type contentInfo struct {
	Type    asn1.ObjectIdentifier
	Content asn1.RawValue `asn1:"explicit,optional,tag:0"`
}

type signedData struct {
	Version          int
	DigestAlgorithms asn1.RawValue
	ContentInfo      contentInfo
	Certificates     asn1.RawValue `asn1:"optional,tag:0"`
	CRLs             asn1.RawValue `asn1:"optional,tag:1"`
	SignerInfos      asn1.RawValue
}

// emptySet is the DER of a SET without members.
var emptySet = []byte{0x31, 0x00}

// CertsOnly returns certificates as a certs-only CMS message in DER: SignedData
// that nobody signed (RFC 5652, 5.2; RFC 7030, 4.1.3).
func CertsOnly(certs ...*x509.Certificate) []byte {
	return sequence(func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(oidSignedData)
		b.AddASN1(within(0), func(b *cryptobyte.Builder) {
			b.AddASN1(tags.SEQUENCE, func(b *cryptobyte.Builder) {
				b.AddASN1Int64(1) // the version
				b.AddBytes(emptySet)
				b.AddASN1(tags.SEQUENCE, func(b *cryptobyte.Builder) { b.AddASN1ObjectIdentifier(oidData) })
				b.AddASN1(within(0), func(b *cryptobyte.Builder) {
					for _, c := range certs {
						b.AddBytes(c.Raw)
					}
				})
				b.AddBytes(emptySet) // of signers
			})
		})
	})
}

// maxBundle is how many certificates a certs-only message may hold.
const maxBundle = 64

// ParseCertsOnly returns the certificates of a CMS message, as other CAs hand
// out their chains. No signature of it is looked at.
func ParseCertsOnly(der []byte) ([]*x509.Certificate, error) {
	bad := fault.New(fault.Invalid, "this is not a PKCS#7 message with certificates")
	var outer contentInfo
	if rest, err := asn1.Unmarshal(der, &outer); err != nil || len(rest) > 0 || !outer.Type.Equal(oidSignedData) {
		return nil, bad
	}
	var inner signedData
	if rest, err := asn1.Unmarshal(outer.Content.Bytes, &inner); err != nil || len(rest) > 0 {
		return nil, bad
	}
	var certs []*x509.Certificate
	for rest := inner.Certificates.Bytes; len(rest) > 0; {
		var raw asn1.RawValue
		var err error
		if rest, err = asn1.Unmarshal(rest, &raw); err != nil {
			return nil, bad
		}
		cert, err := x509.ParseCertificate(raw.FullBytes)
		if err != nil || len(certs) == maxBundle {
			return nil, bad
		}
		certs = append(certs, cert)
	}
	if len(certs) == 0 {
		return nil, bad
	}
	return certs, nil
}
