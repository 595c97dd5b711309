package est

import (
	"context"
	"crypto/x509"
	"fmt"
	"slices"
	"strings"
	"time"

	"keystead/devices"
	"keystead/fault"
	"keystead/identity"
	"keystead/pki"
	"keystead/store"
)

// caller is who an enrolment is made by, once that is proven.
type caller struct {
	mode     AuthMode
	token    *Token            // that it showed
	spent    error             // says that the token lets nothing new in
	device   string            // that its credential names
	leaf     *x509.Certificate // that it proved
	labels   map[string]string // that its token says
	metadata map[string]string // that the webhook says
	issuer   pki.CAID          // the CA its DMS issues from, if that was looked up
	ra       bool              // it enrols on behalf of others (RFC 7030, 3.7)
}

// key tells callers apart, where a repeated request must come from the same one.
func (c *caller) key() string {
	switch {
	case c.token != nil:
		return "token:" + c.token.ID
	case c.leaf != nil:
		return "certificate:" + pki.Fingerprint(c.leaf.Raw)
	case c.device != "":
		return "device:" + c.device
	}
	return string(c.mode)
}

// actor is what the trail says of who enrolled.
func (c *caller) actor(d *DMS) identity.Actor {
	a := identity.Actor{Kind: identity.System, ID: "est:" + d.ID, Org: d.Org}
	switch {
	case c.token != nil:
		a.Credential = identity.Credential{Kind: identity.EnrolmentToken, ID: c.token.ID}
	case c.leaf != nil:
		a.Credential = identity.Credential{Kind: identity.Certificate, ID: string(pki.SerialOf(c.leaf.SerialNumber))}
	case c.mode == PSK:
		a.Credential = identity.Credential{Kind: identity.PSK}
	}
	return a
}

// authenticate proves who enrols, by the modes of the DMS, chosen by what the
// request shows: a token, a session's key, a certificate. Whatever is shown
// must be good; there is no falling back from a bad credential to another.
func (s *Service) authenticate(ctx context.Context, d *DMS, call *Call, csr *x509.CertificateRequest) (*caller, error) {
	a := &d.Settings.Enrollment.EST
	c := &caller{mode: s.choose(a, call, csr)}
	var err error
	switch c.mode {
	case EnrolmentToken:
		err = s.byToken(ctx, d, call, csr, c)
	case JWT:
		err = s.byJWT(ctx, d, a, call, c)
	case PSK:
		c.device = call.Device
	case ClientCertificate:
		err = s.byCertificate(ctx, d, a, call, c)
	case CertificateAndHook:
		if err = s.byCertificate(ctx, d, a, call, c); err == nil {
			err = s.askHook(ctx, d, a, call, csr, c)
		}
	case ExternalWebhook:
		err = s.askHook(ctx, d, a, call, csr, c)
	case NoAuth:
		err = s.byNobody(ctx, d, call)
	default:
		err = s.unproven(a, call)
	}
	if err != nil {
		return nil, err
	}
	return c, nil
}

// choose picks the mode that fits what the request shows; "" if none does.
func (s *Service) choose(a *AuthSettings, call *Call, csr *x509.CertificateRequest) AuthMode {
	_, hasTicket := ticketOf(call.Scheme, call.Value)
	if !hasTicket && a.ChallengePassword == "enrolment_token" {
		_, hasTicket = challengeTicket(csr)
	}
	switch {
	case hasTicket && a.allows(EnrolmentToken):
		return EnrolmentToken
	case call.Scheme == "Bearer" && a.allows(JWT):
		return JWT
	case call.Device != "" && a.allows(PSK):
		return PSK
	case len(call.Chain) > 0 && a.allows(CertificateAndHook):
		return CertificateAndHook
	case len(call.Chain) > 0 && a.allows(ClientCertificate):
		return ClientCertificate
	case a.allows(ExternalWebhook):
		return ExternalWebhook
	case a.allows(NoAuth):
		return NoAuth
	}
	return ""
}

// unproven says what a request should have shown.
func (s *Service) unproven(a *AuthSettings, call *Call) error {
	var want []string
	for _, mode := range append([]AuthMode{a.AuthMode}, a.AdditionalModes...) {
		switch mode {
		case ClientCertificate, CertificateAndHook:
			want = append(want, "a client certificate")
		case EnrolmentToken:
			want = append(want, "an enrolment token (HTTP Basic password, or Bearer)")
		case JWT:
			want = append(want, "a bearer token")
		case PSK:
			want = append(want, "a session by pre-shared key")
		case ExternalWebhook, NoAuth:
		}
	}
	if len(want) == 0 {
		return fault.New(fault.Unauthenticated, "DMS auth mode not supported")
	}
	shown := "nothing"
	switch {
	case call.Scheme != "":
		shown = "a credential that is none of them"
	case len(call.Chain) > 0:
		shown = "a certificate"
	case call.Device != "":
		shown = "a pre-shared key"
	}
	return fault.New(fault.Unauthenticated, "no client certificate or token that this DMS takes: show %s; the request showed %s", strings.Join(want, " or "), shown)
}

func (s *Service) byToken(ctx context.Context, d *DMS, call *Call, csr *x509.CertificateRequest, c *caller) error {
	ticket, ok := ticketOf(call.Scheme, call.Value)
	if !ok {
		ticket, _ = challengeTicket(csr)
	}
	return s.DB.View(ctx, func(tx store.Tx) error {
		t, err := s.admitToken(tx, ticket)
		if err != nil && (t.ID == "" || t.StateAt(s.Now()) != TokenUsedUp) {
			return err
		}
		c.spent = err // the last request it let in may still be repeated
		if t.DMS != d.ID {
			return fault.New(fault.Unauthenticated, "the enrolment token is for another DMS")
		}
		c.token, c.device = &t, t.Device
		return nil
	})
}

func (s *Service) byJWT(ctx context.Context, d *DMS, a *AuthSettings, call *Call, c *caller) error {
	if s.JWT == nil {
		return fault.New(fault.Unauthenticated, "no issuer of tokens is set up here")
	}
	claims, err := s.JWT(ctx, d.Org, call.Value)
	if err != nil {
		return err
	}
	for claim, want := range a.JWT.Claims {
		if got := claimText(claims, claim); got != want {
			return fault.New(fault.Forbidden, "the token's claim %s is not what this DMS asks for", quoted(claim))
		}
	}
	name := a.JWT.Claim
	if name == "" {
		name = "sub"
	}
	if c.device = claimText(claims, name); c.device == "" {
		return fault.New(fault.Unauthenticated, "the token has no claim %s to name the device", quoted(name))
	}
	for claim, label := range a.JWT.Labels {
		if text := claimText(claims, claim); text != "" {
			if c.labels == nil {
				c.labels = map[string]string{}
			}
			c.labels[label] = text
		}
	}
	return nil
}

// claimText is a claim by dotted path, if it is text or a number.
func claimText(claims map[string]any, path string) string {
	var v any = claims
	for part := range strings.SplitSeq(path, ".") {
		m, ok := v.(map[string]any)
		if !ok {
			return ""
		}
		v = m[part]
	}
	switch v := v.(type) {
	case string:
		return v
	case float64, bool:
		return fmt.Sprint(v)
	}
	return ""
}

func (s *Service) byCertificate(ctx context.Context, d *DMS, a *AuthSettings, call *Call, c *caller) error {
	if len(call.Chain) == 0 {
		return fault.New(fault.Unauthenticated, "no client certificate was presented; this DMS asks for one")
	}
	v := pki.Validation{
		Level: a.ClientCertificate.ChainLevel, AllowExpired: a.ClientCertificate.AllowExpired, AnyUsage: d.Settings.Enrollment.Usage == "any",
		Check: a.ClientCertificate.RevocationCheck,
	}
	for _, ca := range a.ClientCertificate.ValidationCAs {
		v.CAs = append(v.CAs, pki.CAID(ca))
	}
	own, ownErr := s.enrolmentCA(ctx, d)
	if ownErr == nil { // its own certificates, for another one or on behalf of others
		c.issuer = own
		v.CAs = append(v.CAs, own)
	}
	ca, err := s.PKI.Validate(ctx, d.Org, call.Chain, v)
	if err != nil {
		return err
	}
	c.leaf = call.Chain[0]
	if most := time.Duration(d.Settings.MaxBootstrapPeriod); most > 0 && c.leaf.NotAfter.Sub(c.leaf.NotBefore) > most {
		return fault.New(fault.Forbidden, "the certificate lives longer than this DMS lets bootstrap certificates (%s)", d.Settings.MaxBootstrapPeriod)
	}
	c.ra = ownErr == nil && ca == own && slices.ContainsFunc(c.leaf.UnknownExtKeyUsage, oidCMCRA.Equal)
	if c.ra {
		return nil
	}
	return s.ownDevice(ctx, c)
}

// ownDevice refuses the certificate of a device that is not in service, and
// keeps which device it is of.
func (s *Service) ownDevice(ctx context.Context, c *caller) error {
	return s.DB.View(ctx, func(tx store.Tx) error {
		record, err := s.PKI.CertificateIn(systemIn(ctx, ""), tx, pki.Fingerprint(c.leaf.Raw))
		if fault.Is(err, fault.NotFound) || err == nil && record.Device == "" {
			return nil // of a manufacturer, or for bootstrapping
		}
		if err != nil {
			return err
		}
		if _, _, err := s.Devices.Prove(tx, record.Device, identity.Certificate, string(record.Serial)); err != nil {
			return err
		}
		c.device = record.Device
		return nil
	})
}

func (s *Service) byNobody(ctx context.Context, d *DMS, call *Call) error {
	if !s.Config.AllowInsecureNoAuth {
		return fault.New(fault.Unauthenticated, "this DMS enrols whoever asks, which the configuration does not allow")
	}
	if call.trial {
		return nil
	}
	s.counters.noAuth.Add(1)
	s.Log.WarnContext(ctx, "enrolling without any authentication", "dms", d.ID, "remote", call.Remote.String())
	return nil
}

// bound refuses a name the client certificate does not stand for.
func (e *Enrollment) bound(c *caller, name string) error {
	if c.leaf == nil || c.ra {
		return nil
	}
	cn := c.leaf.Subject.CommonName
	ok := true
	switch e.IdentityBinding {
	case "cn_equals":
		ok = cn == name
	case "cn_prefix":
		ok = cn != "" && strings.HasPrefix(name, cn)
	case "serial_number":
		ok = c.leaf.Subject.SerialNumber != "" && c.leaf.Subject.SerialNumber == name
	}
	if !ok {
		return fault.New(fault.Forbidden, "the client certificate is of %s and may not enrol %s", quoted(cn), quoted(name))
	}
	return nil
}

// suspended refuses to enrol a device that is to be refused everywhere.
func suspended(d devices.Device) error {
	switch d.State {
	case devices.Active:
		return nil
	case devices.Suspended:
		return fault.New(fault.Forbidden, "the device is suspended")
	default:
		return fault.New(fault.Forbidden, "the device is decommissioned")
	}
}
