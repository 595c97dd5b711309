package pki

import (
	"bytes"
	"context"
	"crypto"
	"crypto/sha1" //nolint:gosec // G505: RFC 6960 names CAs by it; it protects nothing
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"hash"
	"math/big"
	"time"

	"keystead/fault"
	"keystead/id"
	"keystead/page"
	"keystead/store"
)

// Limits on OCSP.
const (
	MaxOCSPRequest = 4 << 10
	maxOCSPCerts   = 32 // asked about at once
	maxNonce       = 128
	ocspValidity   = 24 * time.Hour
)

type certID struct {
	Hash   pkix.AlgorithmIdentifier
	Name   []byte
	Key    []byte
	Serial *big.Int
}

type ocspRequest struct {
	TBS       tbsOCSPRequest
	Signature asn1.RawValue `asn1:"explicit,optional,tag:0"`
}

type tbsOCSPRequest struct {
	Version    int           `asn1:"explicit,optional,default:0,tag:0"`
	Requestor  asn1.RawValue `asn1:"explicit,optional,tag:1"`
	List       []singleRequest
	Extensions []pkix.Extension `asn1:"explicit,optional,tag:2"`
}

type singleRequest struct {
	ID         certID
	Extensions []pkix.Extension `asn1:"explicit,optional,tag:0"`
}

type singleResponse struct {
	ID         certID
	Status     asn1.RawValue
	ThisUpdate time.Time `asn1:"generalized"`
	NextUpdate time.Time `asn1:"generalized,explicit,tag:0"`
}

type revokedInfo struct {
	At     time.Time       `asn1:"generalized"`
	Reason asn1.Enumerated `asn1:"explicit,optional,tag:0"`
}

type responseData struct {
	Responder  asn1.RawValue
	ProducedAt time.Time `asn1:"generalized"`
	Responses  []singleResponse
	Extensions []pkix.Extension `asn1:"explicit,optional,tag:1"`
}

type basicResponse struct {
	Data      asn1.RawValue
	Algorithm pkix.AlgorithmIdentifier
	Signature asn1.BitString
	Certs     []asn1.RawValue `asn1:"explicit,optional,tag:0"`
}

var (
	oidOCSPBasic = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 1}
	oidOCSPNonce = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 48, 1, 2}
	oidSHA1      = asn1.ObjectIdentifier{1, 3, 14, 3, 2, 26}
	oidSHA256    = asn1.ObjectIdentifier{2, 16, 840, 1, 101, 3, 4, 2, 1}
)

// Answers of OCSP that say no more than why there is none (RFC 6960, 4.2.1).
var (
	ocspMalformed    = []byte{0x30, 3, 0x0a, 1, 1}
	ocspTryLater     = []byte{0x30, 3, 0x0a, 1, 3}
	ocspUnauthorized = []byte{0x30, 3, 0x0a, 1, 6}
)

// OCSPAnswer is the answer to an OCSP request.
type OCSPAnswer struct {
	DER        []byte
	NextUpdate time.Time // until when it may be kept; zero for not at all
}

// OCSP answers a request in DER, whoever asks: what is good, revoked or on hold;
// unknown what the CA did not issue; and that it is not for us, where no CA here is
// meant. It always has an answer.
func (s *Service) OCSP(ctx context.Context, der []byte) OCSPAnswer {
	request, nonce, err := parseOCSP(der)
	if err != nil {
		return OCSPAnswer{DER: ocspMalformed}
	}
	answer, err := s.answerOCSP(ctx, request, nonce)
	switch {
	case fault.Is(err, fault.NotFound):
		return OCSPAnswer{DER: ocspUnauthorized}
	case err != nil:
		s.Log.ErrorContext(ctx, "an OCSP request was not answered", "error", err)
		return OCSPAnswer{DER: ocspTryLater}
	}
	return answer
}

// parseOCSP reads a request and its nonce, nil if it has none.
func parseOCSP(der []byte) (*ocspRequest, []byte, error) {
	bad := fault.New(fault.Invalid, "not an OCSP request")
	if len(der) > MaxOCSPRequest {
		return nil, nil, bad
	}
	var r ocspRequest
	if rest, err := asn1.Unmarshal(der, &r); err != nil || len(rest) > 0 || r.TBS.Version != 0 || len(r.TBS.List) == 0 || len(r.TBS.List) > maxOCSPCerts {
		return nil, nil, bad
	}
	for _, single := range r.TBS.List {
		if single.ID.Serial == nil {
			return nil, nil, bad
		}
	}
	for _, e := range r.TBS.Extensions {
		switch {
		case e.Id.Equal(oidOCSPNonce):
			var nonce []byte
			if rest, err := asn1.Unmarshal(e.Value, &nonce); err != nil || len(rest) > 0 || len(nonce) == 0 || len(nonce) > maxNonce {
				return nil, nil, bad
			}
			return &r, nonce, nil
		case e.Critical:
			return nil, nil, bad
		}
	}
	return &r, nil, nil
}

func (s *Service) answerOCSP(ctx context.Context, r *ocspRequest, nonce []byte) (OCSPAnswer, error) {
	a, err := s.namedByOCSP(ctx, r.TBS.List[0].ID)
	if err != nil {
		return OCSPAnswer{}, err
	}
	now := s.Now().UTC().Truncate(time.Second)
	data := responseData{ProducedAt: now}
	for _, single := range r.TBS.List {
		if !sameIssuer(single.ID, a.cert) { // one CA an answer: one signer
			return OCSPAnswer{}, notFound("CA")
		}
		status, err := s.ocspStatus(ctx, a, single.ID)
		if err != nil {
			return OCSPAnswer{}, err
		}
		data.Responses = append(data.Responses, singleResponse{single.ID, status, now, now.Add(ocspValidity)})
	}
	if nonce != nil {
		data.Extensions = []pkix.Extension{{Id: oidOCSPNonce, Value: mustMarshal(nonce)}}
	}
	cert, key, err := s.ocspSigner(ctx, a)
	if err != nil {
		return OCSPAnswer{}, err
	}
	der, err := signOCSP(&data, cert, key)
	answer := OCSPAnswer{DER: der, NextUpdate: now.Add(ocspValidity)}
	if nonce != nil {
		answer.NextUpdate = time.Time{}
	}
	return answer, err
}

// namedByOCSP finds the CA a request is about: by the hash of its key, which
// is found by looking at each.
func (s *Service) namedByOCSP(ctx context.Context, c certID) (*authority, error) {
	if ca, ok := s.ocspNames.Load(string(c.Key)); ok {
		a, err := s.authority(ctx, ca.(CAID)) //nolint:errcheck,forcetypeassert // only ids are stored
		if err == nil && a.cert != nil && sameIssuer(c, a.cert) {
			return a, nil
		}
	}
	for record, err := range cas.All(ctx, s.DB, "", "") {
		if err != nil {
			return nil, err
		}
		if record.Key == "" || record.Certificate == nil {
			continue
		}
		a, err := s.authority(ctx, record.ID)
		if err != nil {
			return nil, err
		}
		if sameIssuer(c, a.cert) {
			s.ocspNames.Store(string(c.Key), record.ID)
			return a, nil
		}
	}
	return nil, notFound("CA")
}

func sameIssuer(c certID, issuer *x509.Certificate) bool {
	var h hash.Hash
	switch {
	case c.Hash.Algorithm.Equal(oidSHA1):
		h = sha1.New() //nolint:gosec // G401: as above
	case c.Hash.Algorithm.Equal(oidSHA256):
		h = sha256.New()
	default:
		return false
	}
	h.Write(issuer.RawSubject)
	if !bytes.Equal(h.Sum(nil), c.Name) {
		return false
	}
	var info struct {
		Algorithm pkix.AlgorithmIdentifier
		Key       asn1.BitString
	}
	if _, err := asn1.Unmarshal(issuer.RawSubjectPublicKeyInfo, &info); err != nil {
		return false
	}
	h.Reset()
	h.Write(info.Key.RightAlign())
	return bytes.Equal(h.Sum(nil), c.Key)
}

// ocspStatus is what there is to say of one serial number.
func (s *Service) ocspStatus(ctx context.Context, a *authority, c certID) (status asn1.RawValue, err error) {
	serial := SerialOf(c.Serial)
	err = s.DB.View(ctx, func(tx store.Tx) error {
		r, err := revocations.Get(tx, revocationKey(a.ID, serial))
		if err == nil {
			status = revokedStatus(r)
			return nil
		}
		if !fault.Is(err, fault.NotFound) {
			return err
		}
		issued, err := s.issuedBy(tx, a, serial)
		if err != nil {
			return err
		}
		tag := 2 // unknown
		if issued {
			tag = 0 // good
		}
		status = asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: tag, FullBytes: []byte{0x80 | byte(tag), 0}}
		return nil
	})
	return status, err
}

// issuedBy reports whether a CA has issued a serial, to a leaf or to a CA below it.
func (s *Service) issuedBy(tx store.Tx, a *authority, serial Serial) (bool, error) {
	c, err := certificates.Get(tx, string(serial))
	if err == nil || !fault.Is(err, fault.NotFound) {
		return err == nil && c.CA == a.ID, err
	}
	below, err := cas.PageBy(tx, "parent", store.TermOf(string(a.ID)), page.Request{Limit: page.MaxLimit})
	if err != nil {
		return false, err
	}
	for _, child := range below.Items {
		if cert, err := x509.ParseCertificate(child.Certificate); err == nil && SerialOf(cert.SerialNumber) == serial {
			return true, nil
		}
	}
	return false, nil
}

func revokedStatus(r revocation) asn1.RawValue {
	info := mustMarshal(revokedInfo{r.At.UTC(), asn1.Enumerated(r.Reason)})
	var inner asn1.RawValue
	if _, err := asn1.Unmarshal(info, &inner); err != nil {
		return asn1.RawValue{FullBytes: []byte{0x82, 0}}
	}
	return asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 1, IsCompound: true, Bytes: inner.Bytes}
}

func signOCSP(data *responseData, cert *x509.Certificate, key crypto.Signer) ([]byte, error) {
	data.Responder = asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 1, IsCompound: true, Bytes: cert.RawSubject}
	tbs, err := asn1.Marshal(*data)
	if err != nil {
		return nil, fmt.Errorf("pki: ocsp: %w", err)
	}
	alg := AlgorithmOf(key.Public())
	signature, err := signBytes(key, alg, tbs)
	if err != nil {
		return nil, err
	}
	name, _, err := signatureOf(alg)
	if err != nil {
		return nil, err
	}
	basic, err := asn1.Marshal(basicResponse{
		asn1.RawValue{FullBytes: tbs},
		name,
		asn1.BitString{Bytes: signature, BitLength: len(signature) * 8},
		[]asn1.RawValue{{FullBytes: cert.Raw}},
	})
	if err != nil {
		return nil, fmt.Errorf("pki: ocsp: %w", err)
	}
	type responseBytes struct {
		Type asn1.ObjectIdentifier
		Body []byte
	}
	return asn1.Marshal(struct {
		Status asn1.Enumerated
		Bytes  responseBytes `asn1:"explicit,tag:0"`
	}{0, responseBytes{oidOCSPBasic, basic}})
}

// ocspDelegate is the certificate that signs a CA's OCSP answers, so that the
// CA's own key is not used for every question.
type ocspDelegate struct {
	Serial Serial `cbor:"serial"`
	Key    string `cbor:"key"`
}

var ocspDelegates = store.NewTable[ocspDelegate]("ocsp signer")

type ocspSigning struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// ocspSigner returns the signer of a CA's answers: a delegate while the CA
// issues, renewed when a third of its time is left; the CA itself after that.
func (s *Service) ocspSigner(ctx context.Context, a *authority) (*x509.Certificate, crypto.Signer, error) {
	if a.StateAt(s.Now()) != CAActive {
		key, err := s.Keys.Signer(ctx, a.Key)
		return a.cert, key, err
	}
	s.ocspMu.Lock()
	defer s.ocspMu.Unlock()
	if v, ok := s.ocspSigners[a.ID]; ok && s.Now().Before(RenewAt(v.cert)) {
		return v.cert, v.key, nil
	}
	v, err := s.loadDelegate(ctx, a)
	if fault.Is(err, fault.NotFound) {
		v, err = s.newDelegate(ctx, a)
	}
	if err != nil {
		return nil, nil, err
	}
	if s.ocspSigners == nil {
		s.ocspSigners = map[CAID]ocspSigning{}
	}
	s.ocspSigners[a.ID] = v
	return v.cert, v.key, nil
}

func (s *Service) loadDelegate(ctx context.Context, a *authority) (v ocspSigning, err error) {
	var d ocspDelegate
	var c Certificate
	err = s.DB.View(ctx, func(tx store.Tx) error {
		if d, err = ocspDelegates.Get(tx, string(a.ID)); err != nil {
			return err
		}
		c, err = certificates.Get(tx, string(d.Serial))
		return err
	})
	if err != nil {
		return v, err
	}
	if v.cert, err = c.Parse(); err != nil {
		return v, err
	}
	if c.State != CertActive || !s.Now().Before(RenewAt(v.cert)) {
		return v, notFound("ocsp signer")
	}
	v.key, err = s.Keys.Signer(ctx, d.Key)
	return v, err
}

func (s *Service) newDelegate(ctx context.Context, a *authority) (v ocspSigning, err error) {
	profile, _ := builtinNamed(ocspProfile)
	name := id.New(s.Now())
	alg := P256
	if v.key, err = s.Keys.Create(ctx, name, alg); err != nil {
		return v, err
	}
	subject := Subject{CommonName: cut(a.Name, 50) + " OCSP"}
	p, err := s.Prepare(ctx, Request{Org: a.Org, CA: a.ID, Profile: profile, Public: v.key.Public(), Subject: &subject})
	if err != nil {
		return v, err
	}
	c, err := s.Issue(ctx, p, func(_ context.Context, tx store.Tx, c *Certificate) error {
		return ocspDelegates.Set(tx, string(a.ID), ocspDelegate{Serial: c.Serial, Key: name})
	})
	if err != nil {
		return v, err
	}
	v.cert, err = c.Parse()
	return v, err
}

func cut(s string, most int) string {
	if r := []rune(s); len(r) > most {
		return string(r[:most])
	}
	return s
}
