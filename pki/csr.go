package pki

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/crypto/cryptobyte"
	tags "golang.org/x/crypto/cryptobyte/asn1"

	"keystead/fault"
)

// Limits on certificate requests.
const (
	MaxCSR      = 64 << 10 // bytes
	maxSANs     = 100
	maxRDNs     = 16
	maxAttrs    = 256 // bytes of one value of a subject
	maxCommonNa = 64  // characters (RFC 5280, upper bound ub-common-name)
)

// ParseCSR parses a request in DER. It looks at the form only; the signature is
// checked by CheckSignature, what it asks for when it is issued from.
func ParseCSR(der []byte) (*x509.CertificateRequest, error) {
	switch {
	case len(der) == 0:
		return nil, fault.New(fault.Invalid, "the certificate request is empty")
	case len(der) > MaxCSR:
		return nil, fault.New(fault.TooLarge, "the certificate request is larger than %d bytes", MaxCSR)
	}
	csr, err := x509.ParseCertificateRequest(der)
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "the body is not a PKCS#10 certificate request: %s", notACSR(der))
	}
	if csr.PublicKey == nil {
		return nil, fault.New(fault.Invalid, "the request's key is of a kind that is not supported; use ECDSA P-256, RSA 2048 or Ed25519")
	}
	return csr, nil
}

// notACSR says what is wrong with what cannot be read as a request, in words of who made it.
func notACSR(der []byte) string {
	var outer asn1.RawValue
	rest, err := asn1.Unmarshal(der, &outer)
	switch _, cut := errors.AsType[asn1.SyntaxError](err); {
	case cut && der[0] == 0x30:
		return "it is cut off, or damaged on its way; send it whole"
	case err != nil || outer.Tag != asn1.TagSequence || !outer.IsCompound:
		return "it is not DER at all; make one with: openssl req -new -outform DER"
	case len(rest) > 0:
		return fmt.Sprintf("%d bytes come after its end; send the request alone", len(rest))
	}
	if _, err := x509.ParseCertificate(der); err == nil {
		return "it is a certificate; send the request that one is made from (openssl req -new)"
	}
	if _, err := parseKey(der); err == nil {
		return "it is a private key, which is to stay where it is and is not safe any more; make another, and send the request alone (openssl req -new)"
	}
	if _, err := x509.ParsePKIXPublicKey(der); err == nil {
		return "it is a public key alone; send a request that is signed with the key (openssl req -new)"
	}
	return "its parts are not those of a request, or its key is of a kind or curve that is not known here; use ECDSA P-256, RSA 2048 or Ed25519"
}

// cause is an error of the standard library's parsers without its prefix.
func cause(err error) string {
	text := strings.TrimPrefix(err.Error(), "x509: ")
	if len(text) > 120 {
		text = text[:120]
	}
	return strings.ToValidUTF8(text, "?")
}

// CheckSignature refuses a request that is not signed by its own key, or by an
// algorithm that proves nothing any more.
func CheckSignature(csr *x509.CertificateRequest) error {
	switch csr.SignatureAlgorithm {
	case x509.SHA1WithRSA, x509.ECDSAWithSHA1, x509.MD5WithRSA, x509.DSAWithSHA1, x509.MD2WithRSA, x509.DSAWithSHA256:
		return fault.New(fault.Invalid, "the request is signed with %s, which proves nothing any more; use SHA-256", csr.SignatureAlgorithm)
	default:
	}
	if err := csr.CheckSignature(); err != nil {
		return fault.New(fault.Invalid, "the request's signature does not verify with its own public key")
	}
	return nil
}

// checkNames refuses subjects and alternative names that are too many, too long
// or not text.
func checkNames(csr *x509.CertificateRequest) error {
	var rdns pkix.RDNSequence
	if rest, err := asn1.Unmarshal(csr.RawSubject, &rdns); err != nil || len(rest) > 0 {
		return fault.New(fault.Invalid, "the request's subject is not well-formed")
	}
	if len(rdns) > maxRDNs {
		return fault.New(fault.Invalid, "the request's subject has more than %d parts", maxRDNs)
	}
	for _, rdn := range rdns {
		for _, attribute := range rdn {
			text, ok := attribute.Value.(string)
			switch {
			case !ok || !utf8.ValidString(text) || strings.ContainsFunc(text, unicode.IsControl):
				return fault.New(fault.Invalid, "a value of the request's subject is not plain text")
			case len(text) > maxAttrs:
				return fault.New(fault.Invalid, "a value of the request's subject is longer than %d bytes", maxAttrs)
			case attribute.Type.Equal(oidAttrCommonName) && utf8.RuneCountInString(text) > maxCommonNa:
				return fault.New(fault.Invalid, "the common name is longer than %d characters", maxCommonNa)
			}
		}
	}
	if len(csr.DNSNames)+len(csr.EmailAddresses)+len(csr.IPAddresses)+len(csr.URIs) > maxSANs {
		return fault.New(fault.Invalid, "the request has more than %d alternative names", maxSANs)
	}
	for _, name := range csr.DNSNames {
		if !ascii(name) || len(name) > 253 {
			return fault.New(fault.Invalid, "the DNS name %q cannot be written in a certificate", name)
		}
	}
	for _, name := range csr.EmailAddresses {
		if !ascii(name) {
			return fault.New(fault.Invalid, "an e-mail address of the request is not plain text")
		}
	}
	return nil
}

// challenge is the challengePassword of a request, which the standard library
// does not give.
func challenge(csr *x509.CertificateRequest) (string, bool) {
	tbs := cryptobyte.String(csr.RawTBSCertificateRequest)
	var attributes cryptobyte.String
	if !tbs.ReadASN1(&tbs, tags.SEQUENCE) || !tbs.SkipASN1(tags.INTEGER) || !tbs.SkipASN1(tags.SEQUENCE) || !tbs.SkipASN1(tags.SEQUENCE) || !tbs.ReadASN1(&attributes, within(0)) {
		return "", false
	}
	for !attributes.Empty() {
		var attribute, values, value cryptobyte.String
		var kind asn1.ObjectIdentifier
		if !attributes.ReadASN1(&attribute, tags.SEQUENCE) {
			return "", false
		}
		if attribute.ReadASN1ObjectIdentifier(&kind) && kind.Equal(oidChallengePassword) && attribute.ReadASN1(&values, tags.SET) && values.ReadAnyASN1(&value, nil) {
			return string(value), true
		}
	}
	return "", false
}

// Challenge returns the challengePassword attribute of a request (RFC 2985,
// 5.4.1), and whether it has one.
func Challenge(csr *x509.CertificateRequest) (string, bool) { return challenge(csr) }

// CSRAttributes returns the types of the request's attributes.
func CSRAttributes(csr *x509.CertificateRequest) []asn1.ObjectIdentifier {
	var tbs struct {
		Raw        asn1.RawContent
		Version    int
		Subject    asn1.RawValue
		PublicKey  asn1.RawValue
		Attributes []asn1.RawValue `asn1:"tag:0,set"`
	}
	if _, err := asn1.Unmarshal(csr.RawTBSCertificateRequest, &tbs); err != nil {
		return nil
	}
	var types []asn1.ObjectIdentifier
	for _, raw := range tbs.Attributes {
		var attribute struct {
			Type   asn1.ObjectIdentifier
			Values asn1.RawValue
		}
		if _, err := asn1.Unmarshal(raw.FullBytes, &attribute); err == nil {
			types = append(types, attribute.Type)
		}
	}
	return types
}

// requestedUsage reads a key usage extension, without the bits of CAs.
func requestedUsage(der []byte) uint {
	var asked asn1.BitString
	if _, err := asn1.Unmarshal(der, &asked); err != nil {
		return 0
	}
	var bits uint
	for i := range 9 {
		if asked.At(i) == 1 {
			bits |= 1 << i
		}
	}
	return bits &^ (bitCertSign | bitCRLSign)
}

// requestedEKUs reads an extended key usage extension, without "any" and what is for
// servers of the infrastructure.
func requestedEKUs(der []byte) EKUs {
	var oids []asn1.ObjectIdentifier
	if _, err := asn1.Unmarshal(der, &oids); err != nil || len(oids) > 16 {
		return nil
	}
	var names EKUs
	for _, oid := range oids {
		switch oid.String() {
		case "2.5.29.37.0", "1.3.6.1.5.5.7.3.9", "1.3.6.1.5.5.7.3.28":
		default:
			names = append(names, oid.String())
		}
	}
	return names
}

// addModules adds the hardware module names a request asks for.
func (list *sans) addModules(csr *x509.CertificateRequest) {
	for _, e := range csr.Extensions {
		if !e.Id.Equal(oidSubjectAltName) {
			continue
		}
		for _, m := range HardwareModules(e.Value) {
			list.addHardwareModule(m.Type, m.Serial)
		}
	}
}

// HardwareModule names the module a key lives in (RFC 4108, 5).
type HardwareModule struct {
	Type   asn1.ObjectIdentifier
	Serial []byte
}

// HardwareModules reads the hardware module names of a subject alternative name
// extension.
func HardwareModules(san []byte) []HardwareModule {
	var names []asn1.RawValue
	if rest, err := asn1.Unmarshal(san, &names); err != nil || len(rest) > 0 {
		return nil
	}
	var found []HardwareModule
	for _, name := range names {
		if name.Class != asn1.ClassContextSpecific || name.Tag != 0 {
			continue
		}
		var oid asn1.ObjectIdentifier
		rest, err := asn1.Unmarshal(name.Bytes, &oid)
		if err != nil || !oid.Equal(oidHardwareModule) {
			continue
		}
		var explicit asn1.RawValue
		var m HardwareModule
		if _, err := asn1.Unmarshal(rest, &explicit); err != nil {
			continue
		}
		if rest, err := asn1.Unmarshal(explicit.Bytes, &m); err == nil && len(rest) == 0 && len(m.Serial) <= maxAttrs {
			found = append(found, m)
		}
	}
	return found
}

func hexOf(b []byte) string { return hex.EncodeToString(b) }
