package est

import (
	"context"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"strings"

	"keystead/pki"
)

var (
	oidChallenge   = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 7}
	oidECPublicKey = asn1.ObjectIdentifier{1, 2, 840, 10045, 2, 1}
	oidRSAKey      = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 1, 1}
	oidTemplate    = asn1.ObjectIdentifier{1, 2, 840, 113549, 1, 9, 16, 2, 61}
	oidP256        = asn1.ObjectIdentifier{1, 2, 840, 10045, 3, 1, 7}
	oidP384        = asn1.ObjectIdentifier{1, 3, 132, 0, 34}
	oidP521        = asn1.ObjectIdentifier{1, 3, 132, 0, 35}
	oidCommonName  = asn1.ObjectIdentifier{2, 5, 4, 3}
	oidSerialAttr  = asn1.ObjectIdentifier{2, 5, 4, 5}
)

type attribute struct {
	Type   asn1.ObjectIdentifier
	Values []asn1.RawValue `asn1:"set"`
}

// CSRAttrs returns what a request to a DMS should have, as CsrAttrs in DER (RFC
// 7030, 4.5.2; RFC 9908), nil if there is nothing to say: what a client may have
// keys of, the challengePassword where requests must be linked to the
// connection, and a template of the whole for newer clients.
func (s *Service) CSRAttrs(ctx context.Context, label string) ([]byte, error) {
	d, err := s.labelled(ctx, label)
	if err != nil {
		return nil, err
	}
	profile, err := s.profile(ctx, &d)
	if err != nil {
		return nil, err
	}
	var list []any
	linking := d.Settings.Enrollment.EST.ChannelBinding == "required" || d.Settings.Enrollment.EST.ChallengePassword == "enrolment_token"
	if linking {
		list = append(list, oidChallenge)
	}
	key := wantedKey(&profile.Crypto)
	if key != nil {
		list = append(list, *key)
	}
	if key != nil || profile.Kind == pki.IDevID {
		t, err := template(&profile, key, linking)
		if err != nil {
			return nil, err
		}
		list = append(list, t)
	}
	if len(list) == 0 {
		return nil, nil
	}
	out, err := sequence(list...)
	if err != nil {
		return nil, fmt.Errorf("est: csrattrs: %w", err)
	}
	return out, nil
}

func sequence(parts ...any) ([]byte, error) {
	var body []byte
	for _, part := range parts {
		der, err := asn1.Marshal(part)
		if err != nil {
			return nil, err
		}
		body = append(body, der...)
	}
	return asn1.Marshal(asn1.RawValue{Class: asn1.ClassUniversal, Tag: asn1.TagSequence, IsCompound: true, Bytes: body})
}

// wantedKey is the one kind of key a profile certifies, nil if it leaves a choice
// that an attribute cannot tell.
func wantedKey(c *pki.CryptoEnforcement) *attribute {
	switch {
	case !c.Enabled || c.AllowECDSA == c.AllowRSA || c.AllowEd25519:
		return nil
	case c.AllowRSA:
		a := &attribute{Type: oidRSAKey}
		if len(c.RSASizes) == 1 {
			a.Values = []asn1.RawValue{raw(c.RSASizes[0])}
		}
		return a
	case len(c.ECDSASizes) == 1:
		if curve := curveOf(c.ECDSASizes[0]); curve != nil {
			return &attribute{Type: oidECPublicKey, Values: []asn1.RawValue{raw(curve)}}
		}
	}
	return nil
}

func curveOf(bits int) asn1.ObjectIdentifier {
	switch bits {
	case 256:
		return oidP256
	case 384:
		return oidP384
	case 521:
		return oidP521
	}
	return nil
}

func raw(v any) asn1.RawValue {
	der, err := asn1.Marshal(v)
	if err != nil {
		return asn1.NullRawValue // numbers and OIDs of this file always marshal
	}
	return asn1.RawValue{FullBytes: der}
}

// template is the id-aa-certificationRequestInfoTemplate attribute (RFC 9908,
// 3.4): the subject's parts that are needed, the kind of key, and attributes.
func template(profile *pki.Profile, key *attribute, linking bool) (attribute, error) {
	parts := []any{0}
	var names []asn1.RawValue
	for _, oid := range subjectParts(profile) {
		single, err := asn1.Marshal(struct{ Type asn1.ObjectIdentifier }{oid})
		if err != nil {
			return attribute{}, err
		}
		names = append(names, asn1.RawValue{Class: asn1.ClassUniversal, Tag: asn1.TagSet, IsCompound: true, Bytes: single})
	}
	parts = append(parts, names)
	if key != nil && len(key.Values) == 1 && key.Type.Equal(oidECPublicKey) {
		algorithm, err := asn1.Marshal(pkix.AlgorithmIdentifier{Algorithm: key.Type, Parameters: key.Values[0]})
		if err != nil {
			return attribute{}, err
		}
		parts = append(parts, asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 0, IsCompound: true, Bytes: algorithm})
	}
	var attributes []byte
	if linking {
		der, err := asn1.Marshal(attribute{Type: oidChallenge})
		if err != nil {
			return attribute{}, err
		}
		attributes = der
	}
	parts = append(parts, asn1.RawValue{Class: asn1.ClassContextSpecific, Tag: 1, IsCompound: true, Bytes: attributes})
	der, err := sequence(parts...)
	if err != nil {
		return attribute{}, err
	}
	return attribute{Type: oidTemplate, Values: []asn1.RawValue{{FullBytes: der}}}, nil
}

func subjectParts(profile *pki.Profile) []asn1.ObjectIdentifier {
	parts := []asn1.ObjectIdentifier{oidCommonName}
	if profile.Kind == pki.IDevID || strings.Contains(strings.Join(profile.SANs, " "), "{serial_number}") {
		parts = append(parts, oidSerialAttr)
	}
	return parts
}
