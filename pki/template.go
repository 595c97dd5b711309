package pki

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/url"
	"strconv"
	"strings"
	"time"

	"golang.org/x/crypto/cryptobyte"
	tags "golang.org/x/crypto/cryptobyte/asn1"

	"keystead/fault"
)

// template is what a certificate says, before anybody signs it. It makes the
// bytes to be signed once: what is linted is what is signed.
type template struct {
	serial         *big.Int
	issuer         []byte // DER of the name
	subject        []byte
	notBefore      time.Time
	notAfter       time.Time
	public         any
	spki           []byte    // DER of public
	keyID          []byte    // of public
	algorithm      Algorithm // of the issuer's key
	authorityKeyID []byte
	extensions     []pkix.Extension

	tbs []byte
}

var (
	oidSubjectKeyID      = asn1.ObjectIdentifier{2, 5, 29, 14}
	oidKeyUsage          = asn1.ObjectIdentifier{2, 5, 29, 15}
	oidSubjectAltName    = asn1.ObjectIdentifier{2, 5, 29, 17}
	oidBasicConstraints  = asn1.ObjectIdentifier{2, 5, 29, 19}
	oidIssuingPoint      = asn1.ObjectIdentifier{2, 5, 29, 28}
	oidNameConstraints   = asn1.ObjectIdentifier{2, 5, 29, 30}
	oidCRLPoints         = asn1.ObjectIdentifier{2, 5, 29, 31}
	oidPolicies          = asn1.ObjectIdentifier{2, 5, 29, 32}
	oidAuthorityKeyID    = asn1.ObjectIdentifier{2, 5, 29, 35}
	oidExtKeyUsage       = asn1.ObjectIdentifier{2, 5, 29, 37}
	oidAuthorityInfo     = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 1, 1}
	oidAccessOCSP        = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1}
	oidAccessIssuers     = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 2}
	oidOCSPNoCheck       = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 5}
	oidHardwareModule    = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 8, 4}
	oidAttrCommonName    = asn1.ObjectIdentifier{2, 5, 4, 3}
	oidAttrSerialNumber  = asn1.ObjectIdentifier{2, 5, 4, 5}
	oidChallengePassword = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 7}
)

// newSerial returns a new serial: 17 bytes, of which the first makes it positive
// and never short, six are the time in milliseconds, and 80 bits nobody can guess.
// They sort by time, which keeps what is kept under them together in the store; a
// certificate says when it was made anyway.
func newSerial(now time.Time) *big.Int {
	b := make([]byte, 17)
	rand.Read(b) // never fails, never short
	binary.BigEndian.PutUint64(b, 0x40<<56|uint64(now.UnixMilli())&(1<<48-1)<<8|uint64(b[7]))
	return new(big.Int).SetBytes(b)
}

// SerialOf returns the serial number of a certificate as text.
func SerialOf(n *big.Int) Serial {
	text := hex.EncodeToString(n.Bytes())
	if text == "" {
		text = "00"
	}
	return Serial(text)
}

// ParseSerial parses a serial number as people and tools write it: in hex of any
// case, with or without colons.
func ParseSerial(text string) (Serial, error) {
	text = strings.ToLower(strings.NewReplacer(":", "", " ", "").Replace(text))
	if len(text)%2 == 1 {
		text = "0" + text
	}
	b, err := hex.DecodeString(text)
	if err != nil || len(b) == 0 || len(b) > 21 {
		return "", fault.New(fault.Invalid, "a serial number is written in hex, such as 4f:0a:33…")
	}
	return SerialOf(new(big.Int).SetBytes(b)), nil
}

func (s Serial) number() *big.Int {
	n, _ := new(big.Int).SetString(string(s), 16)
	if n == nil {
		return new(big.Int)
	}
	return n
}

// keyID is the key identifier of a public key: the first 160 bits of the SHA-256
// of its bits (RFC 7093, 2, method 1).
func keyID(public any) []byte {
	spki, err := x509.MarshalPKIXPublicKey(public)
	if err != nil {
		return nil
	}
	return keyIDOf(spki)
}

// keyIDOf is keyID of a key in DER.
func keyIDOf(spki []byte) []byte {
	var info cryptobyte.String
	var bits []byte
	rest := cryptobyte.String(spki)
	if !rest.ReadASN1(&info, tags.SEQUENCE) || !info.SkipASN1(tags.SEQUENCE) || !info.ReadASN1BitStringAsBytes(&bits) {
		return nil
	}
	sum := sha256.Sum256(bits)
	return sum[:20]
}

// headP256 is how the DER of every P-256 key begins that is written as we write it: on the
// named curve, as a point that is not compressed.
var headP256 = []byte{
	0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01,
	0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00, 0x04,
}

// writtenAsOurs reports whether a key in DER is written as we would write it, so that it
// can be taken over.
func writtenAsOurs(spki []byte) bool {
	return len(spki) == len(headP256)+64 && bytes.HasPrefix(spki, headP256)
}

// subjectKeyID is what a certificate says its key identifier is, or what we would.
func subjectKeyID(cert *x509.Certificate) []byte {
	if len(cert.SubjectKeyId) > 0 {
		return cert.SubjectKeyId
	}
	return keyID(cert.PublicKey)
}

func (s Subject) name() pkix.Name {
	n := pkix.Name{CommonName: s.CommonName, SerialNumber: s.SerialNumber}
	for value, to := range map[*string]*[]string{
		&s.Organization: &n.Organization, &s.OrganizationalUnit: &n.OrganizationalUnit, &s.Country: &n.Country,
		&s.State: &n.Province, &s.Locality: &n.Locality,
	} {
		if *value != "" {
			*to = []string{*value}
		}
	}
	return n
}

func (s Subject) der() ([]byte, error) {
	der, err := asn1.Marshal(s.name().ToRDNSequence())
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "the subject cannot be written in a certificate")
	}
	return der, nil
}

func (t *template) add(oid asn1.ObjectIdentifier, critical bool, value []byte) {
	t.extensions = append(t.extensions, pkix.Extension{Id: oid, Critical: critical, Value: value})
}

// sequence is the DER of a sequence of what f adds.
func sequence(f func(b *cryptobyte.Builder)) []byte {
	var b cryptobyte.Builder
	b.AddASN1(tags.SEQUENCE, f)
	return b.BytesOrPanic() // the values are made by this package
}

// member is the tag of what is known by its number alone; within, of what others are within.
func member(n uint8) tags.Tag { return tags.Tag(n).ContextSpecific() }
func within(n uint8) tags.Tag { return member(n).Constructed() }

func (t *template) addKeyIDs() {
	if t.spki == nil {
		t.spki, _ = x509.MarshalPKIXPublicKey(t.public) // build refuses what has none
	}
	t.keyID = keyIDOf(t.spki)
	t.add(oidSubjectKeyID, false, octets(t.keyID))
	t.add(oidAuthorityKeyID, false, sequence(func(b *cryptobyte.Builder) {
		b.AddASN1(member(0), func(b *cryptobyte.Builder) { b.AddBytes(t.authorityKeyID) })
	}))
}

func octets(value []byte) []byte {
	var b cryptobyte.Builder
	b.AddASN1OctetString(value)
	return b.BytesOrPanic()
}

func mustMarshal(v any) []byte {
	der, err := asn1.Marshal(v)
	if err != nil {
		panic("pki: " + err.Error()) // the values are made by this package
	}
	return der
}

func (t *template) addKeyUsage(bits uint) {
	var b [2]byte
	last := 0
	for i := range 9 {
		if bits&(1<<i) != 0 {
			b[i/8] |= 0x80 >> (i % 8)
			last = i
		}
	}
	used := last/8 + 1
	t.add(oidKeyUsage, true, append([]byte{asn1.TagBitString, byte(1 + used), byte(7 - last%8)}, b[:used]...))
}

func usageBits(names KeyUsages) uint {
	var bits uint
	for _, name := range names {
		if bit := keyUsageBit(name); bit >= 0 {
			bits |= 1 << bit
		}
	}
	return bits
}

const (
	bitDigitalSignature = 1 << 0
	bitKeyEncipherment  = 1 << 2
	bitDataEncipherment = 1 << 3
	bitKeyAgreement     = 1 << 4
	bitCertSign         = 1 << 5
	bitCRLSign          = 1 << 6
)

// usagesFor keeps of the key usages asked for those the kind of key can do (RFC
// 5480, 3; RFC 8410, 5; RFC 3279, 2.3.1).
func usagesFor(public any, bits uint) uint {
	switch public.(type) {
	case *ecdsa.PublicKey:
		bits &^= bitKeyEncipherment | bitDataEncipherment
	case ed25519.PublicKey:
		bits &^= bitKeyEncipherment | bitDataEncipherment | bitKeyAgreement
	case *rsa.PublicKey:
		bits &^= bitKeyAgreement
	}
	if bits == 0 {
		bits = bitDigitalSignature
	}
	return bits
}

type basicConstraints struct {
	IsCA    bool `asn1:"optional"`
	PathLen int  `asn1:"optional,default:-1"`
}

func (t *template) addCA(public any, pathLen int, permitted []string) {
	t.public = public
	t.addKeyIDs()
	t.add(oidBasicConstraints, true, mustMarshal(basicConstraints{true, pathLen}))
	t.addKeyUsage(bitCertSign | bitCRLSign | bitDigitalSignature)
	if len(permitted) > 0 {
		t.addNameConstraints(permitted)
	}
}

func (t *template) addNameConstraints(permitted []string) {
	type subtree struct{ Base asn1.RawValue }
	var trees []subtree
	for _, name := range permitted {
		trees = append(trees, subtree{asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 2, Bytes: []byte(strings.TrimPrefix(name, "."))}})
	}
	t.add(oidNameConstraints, true, mustMarshal(struct {
		Permitted []subtree `asn1:"tag:0"`
	}{trees}))
}

func (t *template) addExtKeyUsage(names EKUs) {
	if len(names) == 0 {
		return
	}
	t.add(oidExtKeyUsage, false, sequence(func(b *cryptobyte.Builder) {
		for _, name := range names {
			if oid, ok := ekuOID(name); ok {
				b.AddASN1ObjectIdentifier(oid)
			}
		}
	}))
}

func (t *template) addPolicies(oids []string) {
	type policy struct{ ID asn1.ObjectIdentifier }
	var list []policy
	for _, text := range oids {
		if oid, ok := parseOID(text); ok {
			list = append(list, policy{oid})
		}
	}
	if len(list) > 0 {
		t.add(oidPolicies, false, mustMarshal(list))
	}
}

// addPointers says where to ask about the certificate: the CRL shard it would
// be in, OCSP, and its issuer's certificate.
func (t *template) addPointers(base string, issuer *CA, shard int) {
	if base == "" || issuer.Key == "" {
		return
	}
	t.add(oidCRLPoints, false, sequence(func(b *cryptobyte.Builder) {
		b.AddASN1(tags.SEQUENCE, func(b *cryptobyte.Builder) { addPointName(b, crlURL(base, issuer.ID, shard)) })
	}))
	t.add(oidAuthorityInfo, false, sequence(func(b *cryptobyte.Builder) {
		addAccess(b, oidAccessOCSP, base+"/ocsp")
		addAccess(b, oidAccessIssuers, base+"/ca/"+string(issuer.ID)+".cer")
	}))
}

// addPointName adds the name of a distribution point, the first member of what it names.
func addPointName(b *cryptobyte.Builder, uri string) {
	b.AddASN1(within(0), func(b *cryptobyte.Builder) {
		b.AddASN1(within(0), func(b *cryptobyte.Builder) { addURI(b, uri) })
	})
}

func addURI(b *cryptobyte.Builder, uri string) {
	b.AddASN1(member(6), func(b *cryptobyte.Builder) { b.AddBytes([]byte(uri)) })
}

func addAccess(b *cryptobyte.Builder, method asn1.ObjectIdentifier, uri string) {
	b.AddASN1(tags.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(method)
		addURI(b, uri)
	})
}

func crlURL(base string, ca CAID, shard int) string {
	return base + "/crl/" + string(ca) + "/" + strconv.Itoa(shard) + ".crl"
}

// sans are subject alternative names, with the tags of GeneralName.
type sans []asn1.RawValue

func (list *sans) add(tag int, value []byte) {
	for _, has := range *list {
		if has.Tag == tag && bytes.Equal(has.Bytes, value) {
			return
		}
	}
	*list = append(*list, asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: tag, Bytes: value})
}

func (list *sans) addCSR(csr *x509.CertificateRequest) {
	for _, name := range csr.DNSNames {
		list.add(2, []byte(name))
	}
	for _, name := range csr.EmailAddresses {
		list.add(1, []byte(name))
	}
	for _, uri := range csr.URIs {
		list.add(6, []byte(uri.String()))
	}
	for _, ip := range csr.IPAddresses {
		list.addIP(ip)
	}
}

func (list *sans) addIP(ip net.IP) {
	if four := ip.To4(); four != nil {
		ip = four
	}
	list.add(7, ip)
}

// addText adds a name written "DNS:…", "URI:…", "IP:…" or "email:…".
func (list *sans) addText(text string) error {
	kind, value, ok := splitSAN(text)
	bad := fault.New(fault.Invalid, "the alternative name %q cannot be written in a certificate", text)
	if !ok || !ascii(value) {
		return bad
	}
	switch kind {
	case "DNS":
		list.add(2, []byte(value))
	case "email":
		list.add(1, []byte(value))
	case "URI":
		if u, err := url.Parse(value); err != nil || u.Scheme == "" {
			return bad
		}
		list.add(6, []byte(value))
	case "IP":
		ip := net.ParseIP(value)
		if ip == nil {
			return bad
		}
		list.addIP(ip)
	}
	return nil
}

func ascii(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool { return r <= ' ' || r > '~' }) < 0
}

// addHardwareModule names the module that holds the key (RFC 4108, 5), as
// IEEE 802.1AR wants it of an IDevID.
func (list *sans) addHardwareModule(kind asn1.ObjectIdentifier, serial []byte) {
	value := mustMarshal(struct {
		Type   asn1.ObjectIdentifier
		Serial []byte
	}{kind, serial})
	other := mustMarshal(struct {
		ID    asn1.ObjectIdentifier
		Value asn1.RawValue
	}{oidHardwareModule, asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 0, IsCompound: true, Bytes: value}})
	var raw asn1.RawValue
	if _, err := asn1.Unmarshal(other, &raw); err == nil {
		*list = append(*list, asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 0, IsCompound: true, Bytes: raw.Bytes})
	}
}

// emptySequence is the DER of a sequence of nothing, such as a name without parts.
var emptySequence = []byte{0x30, 0x00}

func (t *template) addSANs(list sans) {
	if len(list) > 0 {
		t.add(oidSubjectAltName, bytes.Equal(t.subject, emptySequence), mustMarshal([]asn1.RawValue(list)))
	}
}

// signatureOf returns how a key of an algorithm signs.
func signatureOf(alg Algorithm) (pkix.AlgorithmIdentifier, crypto.Hash, error) {
	null := asn1.RawValue{FullBytes: []byte{5, 0}}
	switch alg { //nolint:exhaustive // RSA of any size is below
	case P256:
		return pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 2}}, crypto.SHA256, nil
	case P384:
		return pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 3}}, crypto.SHA384, nil
	case P521:
		return pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 10045, 4, 3, 4}}, crypto.SHA512, nil
	case Ed25519:
		return pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 3, 101, 112}}, 0, nil
	}
	if strings.HasPrefix(string(alg), "rsa-") {
		return pkix.AlgorithmIdentifier{Algorithm: asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 11}, Parameters: null}, crypto.SHA256, nil
	}
	return pkix.AlgorithmIdentifier{}, 0, fmt.Errorf("pki: no signature algorithm for %q", alg)
}

// build makes the bytes to be signed.
func (t *template) build() error {
	alg, _, err := signatureOf(t.algorithm)
	if err != nil {
		return err
	}
	if t.spki == nil {
		return fault.New(fault.Invalid, "the public key is of a kind that is not supported")
	}
	b := cryptobyte.NewBuilder(make([]byte, 0, 1024))
	b.AddASN1(tags.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1(within(0), func(b *cryptobyte.Builder) { b.AddASN1Int64(2) }) // version 3
		b.AddASN1BigInt(t.serial)
		addAlgorithm(b, alg)
		b.AddBytes(t.issuer)
		b.AddASN1(tags.SEQUENCE, func(b *cryptobyte.Builder) {
			addTime(b, t.notBefore)
			addTime(b, t.notAfter)
		})
		b.AddBytes(t.subject)
		b.AddBytes(t.spki)
		b.AddASN1(within(3), func(b *cryptobyte.Builder) { b.AddASN1(tags.SEQUENCE, t.addExtensions) })
	})
	if t.tbs, err = b.Bytes(); err != nil {
		return fault.Wrap(fault.Invalid, err, "the certificate asked for cannot be written")
	}
	return nil
}

func (t *template) addExtensions(b *cryptobyte.Builder) {
	for _, e := range t.extensions {
		b.AddASN1(tags.SEQUENCE, func(b *cryptobyte.Builder) {
			b.AddASN1ObjectIdentifier(e.Id)
			if e.Critical {
				b.AddASN1Boolean(true)
			}
			b.AddASN1OctetString(e.Value)
		})
	}
}

func addAlgorithm(b *cryptobyte.Builder, alg pkix.AlgorithmIdentifier) {
	b.AddASN1(tags.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddASN1ObjectIdentifier(alg.Algorithm)
		b.AddBytes(alg.Parameters.FullBytes)
	})
}

// addTime adds a time in the form that its year asks for (RFC 5280, 4.1.2.5).
func addTime(b *cryptobyte.Builder, at time.Time) {
	if at = at.UTC(); at.Year() >= 1950 && at.Year() < 2050 {
		b.AddASN1UTCTime(at)
		return
	}
	b.AddASN1GeneralizedTime(at)
}

// withSignature is the certificate as it is with the given signature.
func withSignature(tbs []byte, alg Algorithm, signature []byte) ([]byte, error) {
	id, _, err := signatureOf(alg)
	if err != nil {
		return nil, err
	}
	b := cryptobyte.NewBuilder(make([]byte, 0, len(tbs)+len(signature)+64))
	b.AddASN1(tags.SEQUENCE, func(b *cryptobyte.Builder) {
		b.AddBytes(tbs)
		addAlgorithm(b, id)
		b.AddASN1BitString(signature)
	})
	return b.Bytes()
}

func signBytes(key crypto.Signer, alg Algorithm, tbs []byte) ([]byte, error) {
	_, hash, err := signatureOf(alg)
	if err != nil {
		return nil, err
	}
	digest := tbs
	if hash != 0 {
		h := hash.New()
		h.Write(tbs)
		digest = h.Sum(nil)
	}
	signature, err := key.Sign(rand.Reader, digest, hash)
	if err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "the CA's key cannot sign at present; try again later")
	}
	return signature, nil
}

// errBadSignature says that a key store signed with another key, or wrongly.
var errBadSignature = errors.New("pki: the signature made does not verify with the CA's key")

// sign builds, lints, signs and checks a certificate that has no record of its
// own: those of CAs and of OCSP signers.
func (t *template) sign(key crypto.Signer) (*x509.Certificate, error) {
	if err := t.build(); err != nil {
		return nil, err
	}
	if err := t.lint(); err != nil {
		return nil, err
	}
	return t.signLinted(key)
}

func (t *template) signLinted(key crypto.Signer) (*x509.Certificate, error) {
	signature, err := signBytes(key, t.algorithm, t.tbs)
	if err != nil {
		return nil, err
	}
	der, err := withSignature(t.tbs, t.algorithm, signature)
	if err != nil {
		return nil, fmt.Errorf("pki: %w", err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "the certificate asked for is not well-formed")
	}
	if !bytes.Equal(cert.RawTBSCertificate, t.tbs) {
		return nil, errBadSignature
	}
	if !verifies(key.Public(), t.algorithm, t.tbs, signature) {
		return nil, errBadSignature
	}
	return cert, nil
}

func verifies(public any, alg Algorithm, tbs, signature []byte) bool {
	_, hash, err := signatureOf(alg)
	if err != nil {
		return false
	}
	digest := tbs
	if hash != 0 {
		h := hash.New()
		h.Write(tbs)
		digest = h.Sum(nil)
	}
	switch k := public.(type) {
	case *ecdsa.PublicKey:
		return ecdsa.VerifyASN1(k, digest, signature)
	case ed25519.PublicKey:
		return ed25519.Verify(k, tbs, signature)
	case *rsa.PublicKey:
		return rsa.VerifyPKCS1v15(k, hash, digest, signature) == nil
	}
	return false
}
