package est

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/x509"
	"encoding/asn1"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"keystead/devices"
	"keystead/fault"
	"keystead/identity"
	"keystead/pki"
	"keystead/seal"
	"keystead/store"
)

// Enroll serves simpleenroll and simplereenroll: der is the PKCS#10 request.
// Faults are Unauthenticated with a reason where the caller or the DMS is not
// known, Invalid for requests that cannot be certified, Forbidden for those that
// may not; a *PendingError asks the caller to come back.
func (s *Service) Enroll(ctx context.Context, call *Call, der []byte) (*Issued, error) {
	csr, err := pki.ParseCSR(der)
	if err != nil {
		return nil, err
	}
	issued, err := s.enroll(ctx, call, csr, nil)
	s.note(ctx, call, csr, issued, err)
	return issued, err
}

func (s *Service) enroll(ctx context.Context, call *Call, csr *x509.CertificateRequest, public any) (*Issued, error) {
	if call.Operation == SimpleReenroll {
		return s.reenroll(ctx, call, csr)
	}
	d, err := s.route(ctx, call, csr)
	if err != nil {
		return nil, err
	}
	c, err := s.authenticate(ctx, &d, call, csr)
	if err != nil {
		return nil, err
	}
	if public == nil { // of server key generation neither key nor signature count (RFC 7030, 4.4.1)
		if err := checkRequest(&d.Settings.Enrollment.EST, d.Settings.Enrollment.VerifyCSR, call, c, csr); err != nil {
			return nil, err
		}
	}
	return s.issue(ctx, &d, call, c, csr, public)
}

// route finds the DMS of a request: by its label; without one by the enrolment
// token it shows, by the enrolment it repeats, or else the default one.
func (s *Service) route(ctx context.Context, call *Call, csr *x509.CertificateRequest) (DMS, error) {
	label := call.Label
	if label == "" {
		found, err := s.unlabelled(ctx, call, csr)
		if err != nil {
			return DMS{}, err
		}
		label = found
	}
	d, err := s.labelled(ctx, label)
	if fault.Is(err, fault.NotFound) {
		return d, fault.New(fault.Unauthenticated, "there is no DMS %s here; check the label in the path", quoted(label))
	}
	return d, err
}

func (s *Service) unlabelled(ctx context.Context, call *Call, csr *x509.CertificateRequest) (label string, err error) {
	err = s.DB.View(ctx, func(tx store.Tx) error {
		if ticket, ok := ticketOf(call.Scheme, call.Value); ok {
			t, err := tokens.Get(tx, ticket.ID)
			if err == nil && ticket.Matches(t.Hash) {
				label = t.DMS
			}
			if fault.Is(err, fault.NotFound) {
				return nil
			}
			return err
		}
		waiting, err := pendings.GetBy(tx, "request", requestTerm(csr))
		if err == nil {
			label = waiting.DMS
		}
		if fault.Is(err, fault.NotFound) {
			return nil
		}
		return err
	})
	return label, err
}

// checkRequest is the proof that the client has the key, and that it is the one
// at the other end of the connection.
func checkRequest(a *AuthSettings, verify *bool, call *Call, c *caller, csr *x509.CertificateRequest) error {
	if verify == nil || *verify {
		if err := pki.CheckSignature(csr); err != nil {
			return err
		}
	}
	return linked(a, call, c, csr)
}

// linked checks what links the request to the connection (RFC 7030, 3.5; RFC
// 9266): the challengePassword is the base64 of the channel's binding.
func linked(a *AuthSettings, call *Call, c *caller, csr *x509.CertificateRequest) error {
	if a.ChallengePassword == "ignore" || a.ChallengePassword == "enrolment_token" || a.ChannelBinding == "off" {
		return nil
	}
	shown, has := pki.Challenge(csr)
	required := a.ChannelBinding == "required" && (c == nil || !c.ra)
	if required && call.Binding == nil && !call.trial {
		return fault.New(fault.Forbidden, "linking identity and proof of possession to a TLS connection is required by this DMS, and CoAP has none to link to; use EST over HTTPS")
	}
	if !has {
		if required {
			return fault.New(fault.Invalid, "linking identity and proof of possession is required: put the base64 of the TLS channel binding (tls-unique, or tls-exporter with TLS 1.3) in the challengePassword of the request")
		}
		return nil
	}
	if call.Binding == nil {
		return nil // no channel to link to, as over CoAP
	}
	values, provable := call.Binding()
	for _, value := range values {
		if subtle.ConstantTimeCompare([]byte(base64.StdEncoding.EncodeToString(value)), []byte(shown)) == 1 {
			return nil
		}
	}
	if provable || required {
		return fault.New(fault.Unauthenticated, "the challengePassword of the request does not match this TLS connection (linking identity and proof of possession)")
	}
	return nil
}

// challengeTicket is the enrolment token in a challengePassword, where a DMS takes it there.
func challengeTicket(csr *x509.CertificateRequest) (t seal.Ticket, ok bool) {
	if csr == nil {
		return t, false
	}
	text, ok := pki.Challenge(csr)
	if !ok {
		return t, false
	}
	return ticketOf("Bearer", text)
}

// issue decides which device is enrolled, and issues.
func (s *Service) issue(ctx context.Context, d *DMS, call *Call, c *caller, csr *x509.CertificateRequest, public any) (*Issued, error) {
	ctx = identity.NewContext(ctx, c.actor(d))
	plan, err := s.named(ctx, d, c, csr)
	if err != nil {
		return nil, err
	}
	if again, err := s.decide(ctx, plan, public == nil); again != nil || err != nil {
		return again, err
	}
	if err := s.approved(ctx, plan, call); err != nil {
		return nil, err
	}
	profile, err := s.profile(ctx, d)
	if err != nil {
		return nil, err
	}
	ca := c.issuer
	if ca == "" {
		if ca, err = s.enrolmentCA(ctx, d); err != nil {
			return nil, err
		}
	}
	prepared, err := s.PKI.Prepare(ctx, pki.Request{Org: d.Org, CA: ca, Profile: profile, CSR: csr, Public: public, Device: plan.device, DMS: d.ID, Named: true})
	if err != nil {
		return nil, err
	}
	record, err := s.PKI.Issue(ctx, prepared, func(ctx context.Context, tx store.Tx, record *pki.Certificate) error {
		return s.bind(ctx, tx, plan, record)
	})
	if err != nil {
		return nil, err
	}
	return finished(d, record)
}

// named returns the plan of a request that may have the name it asks for.
func (s *Service) named(ctx context.Context, d *DMS, c *caller, csr *x509.CertificateRequest) (*plan, error) {
	if err := s.PKI.NoSecret(ctx, csr.RawSubject); err != nil {
		return nil, err // before the name is kept anywhere
	}
	if err := s.PKI.NoSecretNames(ctx, csr); err != nil {
		return nil, err
	}
	name := d.Settings.IdentityMapping.device(csr)
	if name == "" {
		return nil, fault.New(fault.Invalid, "no CommonName in CSR: the request must name the device (%s)", d.Settings.IdentityMapping.source())
	}
	if c.token != nil && !c.token.allowsName(name) {
		return nil, fault.New(fault.Forbidden, "the enrolment token is not for %s", quoted(name))
	}
	if err := d.Settings.Enrollment.bound(c, name); err != nil {
		return nil, err
	}
	return &plan{dms: d, caller: c, csr: csr, name: name}, nil
}

func finished(d *DMS, record pki.Certificate) (*Issued, error) {
	cert, err := record.Parse()
	if err != nil {
		return nil, fmt.Errorf("est: %w", err)
	}
	return &Issued{Certificate: cert, Record: record, Base64: d.Settings.Base64}, nil
}

// decide returns the answer that a request had before, if it repeats one and may; else it
// decides which device it is of, or refuses.
func (s *Service) decide(ctx context.Context, p *plan, replayed bool) (*Issued, error) {
	var again pki.Certificate
	err := s.DB.View(ctx, func(tx store.Tx) (err error) {
		if replayed {
			if again, err = s.replay(tx, p); err == nil || !fault.Is(err, fault.NotFound) {
				return err
			}
		}
		if p.caller.spent != nil {
			return p.caller.spent
		}
		return s.settle(ctx, tx, p)
	})
	if err != nil || again.Serial == "" {
		return nil, err
	}
	return finished(p.dms, again)
}

// profile is what a DMS issues by: its named profile, its own, or the usual one
// of devices.
func (s *Service) profile(ctx context.Context, d *DMS) (pki.Profile, error) {
	switch {
	case d.Settings.IssuanceProfileID != "":
		p, err := s.PKI.Profile(systemIn(ctx, d.Org), d.Settings.IssuanceProfileID)
		if fault.Is(err, fault.NotFound) {
			return p, fmt.Errorf("est: the profile %q of DMS %s is gone", d.Settings.IssuanceProfileID, d.ID)
		}
		return p, err
	case d.Settings.IssuanceProfile != nil:
		return *d.Settings.IssuanceProfile, nil
	}
	return s.PKI.Profile(systemIn(ctx, d.Org), pki.DeviceProfile)
}

// plan is what is to become of an enrolment.
type plan struct {
	dms    *DMS
	caller *caller
	csr    *x509.CertificateRequest
	name   string // of the device, from the request
	device string // its id; "" makes a new one
	ends   []pki.Serial
}

// settle decides which device a request is of. It runs before signing, to refuse
// early, and again in the transaction that records.
func (s *Service) settle(ctx context.Context, tx store.Tx, p *plan) error {
	p.device, p.ends = "", nil
	org := p.dms.Org
	if p.caller.device != "" && !p.caller.ra {
		device, err := s.Devices.FindIn(ctx, tx, org, p.caller.device)
		if fault.Is(err, fault.NotFound) && p.caller.mode == JWT {
			if p.name != p.caller.device {
				return p.otherName()
			}
			return s.settleNamed(ctx, tx, p)
		}
		if err != nil {
			return err
		}
		if other, err := s.Devices.FindIn(ctx, tx, org, p.name); err == nil && other.ID != device.ID {
			return fault.New(fault.Forbidden, "%s is the name of another device", quoted(p.name))
		} else if err != nil && !fault.Is(err, fault.NotFound) {
			return err
		} else if err != nil && p.caller.mode == JWT {
			return p.otherName()
		}
		p.device = device.ID
		return suspended(device)
	}
	return s.settleNamed(ctx, tx, p)
}

// otherName refuses a request for a name that is not what the caller's token says.
func (p *plan) otherName() error {
	return fault.New(fault.Forbidden, "the token is for the device %s, not for %s", quoted(p.caller.device), quoted(p.name))
}

// settleNamed goes by the name in the request alone: the device of that name
// must be without any credential, unless the DMS lets enrolments replace one another.
func (s *Service) settleNamed(ctx context.Context, tx store.Tx, p *plan) error {
	e := &p.dms.Settings.Enrollment
	device, err := s.Devices.FindIn(ctx, tx, p.dms.Org, p.name)
	switch {
	case fault.Is(err, fault.NotFound) && e.Registration == PreRegistration:
		return fault.New(fault.Forbidden, "device not preregistered: create %s first", quoted(p.name))
	case fault.Is(err, fault.NotFound):
		return nil
	case err != nil:
		return err
	}
	if err := suspended(device); err != nil {
		return err
	}
	owner, err := ownerOf(tx, &device)
	if err != nil {
		return err
	}
	if owner != "" && owner != p.dms.ID {
		return fault.New(fault.Forbidden, "device already registered to another DMS")
	}
	p.device = device.ID
	for _, c := range device.Credentials {
		if c.State == devices.CredentialRevoked || !c.ExpiresAt.IsZero() && !s.Now().Before(c.ExpiresAt) {
			continue
		}
		if !e.Replaceable {
			return fault.New(fault.Forbidden, "the device %s is enrolled already (forbiddenNewEnrollment): renew with its own certificate through simplereenroll, use a token bound to it, or let the DMS replace enrolments", quoted(p.name))
		}
		if c.Kind == identity.Certificate {
			p.ends = append(p.ends, pki.Serial(c.ID))
		}
	}
	return nil
}

// bind makes the certificate one with its device, in the transaction that
// records it.
func (s *Service) bind(ctx context.Context, tx store.Tx, p *plan, record *pki.Certificate) error {
	if p.caller.token != nil {
		if err := s.spend(tx, p.caller.token.ID); err != nil {
			return err
		}
	}
	if err := s.settle(ctx, tx, p); err != nil {
		return err
	}
	if err := s.give(ctx, tx, p, record); err != nil {
		return err
	}
	if p.caller.mode == NoAuth {
		record.Flags = append(record.Flags, "enrolled without authentication")
	}
	p.dms.Settings.Reenrollment.remind(record)
	for _, old := range p.ends {
		if _, err := s.PKI.RevokeIn(ctx, tx, string(old), pki.Superseded); err != nil {
			return err
		}
	}
	if w, err := pendings.GetBy(tx, "request", requestTerm(p.csr)); err == nil { // it waits no more
		if _, err := pendings.Delete(tx, w.ID); err != nil {
			return err
		}
	} else if !fault.Is(err, fault.NotFound) {
		return err
	}
	if record.KeyHash == keyHash(p.csr) { // of server key generation the key is not given out twice
		record.Request = requestName(p.dms, p.caller, p.csr)
	}
	return owned.Set(tx, p.device, ownership{DMS: p.dms.ID, Device: p.device})
}

// give gives the device its certificate, and makes it if it is not there.
func (s *Service) give(ctx context.Context, tx store.Tx, p *plan, record *pki.Certificate) error {
	if p.device != "" {
		if err := s.takeNames(ctx, tx, p); err != nil {
			return err
		}
		return s.PKI.Attach(ctx, tx, p.device, record)
	}
	device, err := s.create(ctx, tx, p, record.Credential())
	p.device, record.Device = device.ID, device.ID
	return err
}

func (s *Service) create(ctx context.Context, tx store.Tx, p *plan, c devices.Credential) (devices.Device, error) {
	made := p.dms.Settings.Enrollment.Provisioning
	n := devices.New{Org: p.dms.Org, Name: p.name, Profile: p.dms.ID, Credential: &c, Labels: map[string]string{}, Metadata: map[string]string{}}
	for _, tag := range made.Tags {
		n.Labels[tag] = ""
	}
	for k, v := range made.Metadata {
		n.Metadata[k] = fmt.Sprint(v)
	}
	for k, v := range map[string]string{"icon": made.Icon, "icon_color": made.IconColor} {
		if v != "" {
			n.Metadata[k] = v
		}
	}
	maps.Copy(n.Metadata, p.caller.metadata)
	for _, labels := range []map[string]string{made.Labels, p.dms.Settings.IdentityMapping.labels(p.csr), p.caller.labels} {
		maps.Copy(n.Labels, labels)
	}
	n.Aliases = p.aliases()
	return s.Devices.CreateIn(ctx, tx, n)
}

func (p *plan) aliases() []devices.Alias {
	list := []devices.Alias{{Kind: p.dms.Settings.IdentityMapping.kind(), Value: p.name}}
	for _, a := range p.dms.Settings.IdentityMapping.aliases(p.csr) {
		if !slices.ContainsFunc(list, func(has devices.Alias) bool { return has.Value == a.Value }) {
			list = append(list, a)
		}
	}
	return list
}

// takeNames gives a device that is there the names of the request.
func (s *Service) takeNames(ctx context.Context, tx store.Tx, p *plan) error {
	for _, a := range p.aliases() {
		if a.Value == p.device {
			continue
		}
		if _, err := s.Devices.AddAliasIn(ctx, tx, p.device, a); err != nil {
			return err
		}
	}
	return nil
}

// reenroll renews: the caller proves itself by the certificate that is renewed,
// and the request is for the same names (RFC 7030, 4.2.2).
func (s *Service) reenroll(ctx context.Context, call *Call, csr *x509.CertificateRequest) (*Issued, error) {
	if len(call.Chain) == 0 {
		return s.reenrollOtherwise(ctx, call, csr)
	}
	leaf := call.Chain[0]
	old, err := s.PKI.Certificate(systemIn(ctx, ""), pki.Fingerprint(leaf.Raw))
	if fault.Is(err, fault.NotFound) {
		return nil, s.notOurs(ctx, call)
	}
	if err != nil {
		return nil, err
	}
	d, err := s.dmsOf(ctx, call.Label, &old)
	if err != nil {
		return nil, err
	}
	r := &d.Settings.Reenrollment
	c := &caller{mode: ClientCertificate, leaf: leaf, device: old.Device}
	if err := s.mayRenew(ctx, &d, call, csr, &old, c); err != nil {
		return nil, err
	}
	ctx = identity.NewContext(ctx, c.actor(&d))
	if err := checkRequest(&r.EST, d.Settings.Enrollment.VerifyCSR, call, c, csr); err != nil {
		return nil, err
	}
	if err := sameNames(csr, leaf); err != nil {
		return nil, err
	}
	if err := s.window(r, leaf); err != nil {
		return nil, err
	}
	return s.renew(ctx, &d, csr, old)
}

// notOurs says why a certificate that is not in the inventory cannot renew.
func (s *Service) notOurs(ctx context.Context, call *Call) error {
	d, err := s.labelled(ctx, call.Label)
	if fault.Is(err, fault.NotFound) {
		return fault.New(fault.Unauthenticated, "there is no DMS %s here; check the label in the path", quoted(call.Label))
	}
	if err != nil {
		return err
	}
	v := pki.Validation{AllowExpired: true, Check: d.Settings.Reenrollment.EST.ClientCertificate.RevocationCheck}
	if ca, err := s.enrolmentCA(ctx, &d); err == nil {
		v.CAs = append(v.CAs, ca)
	}
	for _, ca := range d.Settings.Reenrollment.AdditionalCAs {
		v.CAs = append(v.CAs, pki.CAID(ca))
	}
	if _, err := s.PKI.Validate(ctx, d.Org, call.Chain, v); err != nil {
		return err
	}
	return fault.New(fault.Unauthenticated, "the certificate is not one this server has issued; enrol with it first (simpleenroll)")
}

// dmsOf is the DMS a renewal goes by: the one named, else the one the certificate
// came by.
func (s *Service) dmsOf(ctx context.Context, label string, old *pki.Certificate) (DMS, error) {
	if label == "" && old.DMS != "" {
		label = old.DMS
	}
	d, err := s.labelled(ctx, label)
	if fault.Is(err, fault.NotFound) || err == nil && d.Org != old.Org {
		return d, fault.New(fault.Unauthenticated, "there is no DMS %s for this device here; check the label in the path", quoted(label))
	}
	return d, err
}

// mayRenew proves the caller by the certificate to be renewed.
func (s *Service) mayRenew(ctx context.Context, d *DMS, call *Call, csr *x509.CertificateRequest, old *pki.Certificate, c *caller) error {
	r := &d.Settings.Reenrollment
	if !r.EST.allows(ClientCertificate) && !r.EST.allows(CertificateAndHook) {
		return fault.New(fault.Unauthenticated, "this DMS does not renew by client certificate (re-enrolment auth mode %s)", r.EST.AuthMode)
	}
	v := pki.Validation{CAs: []pki.CAID{old.CA}, AllowExpired: r.ExpiredRenewal, Check: r.EST.ClientCertificate.RevocationCheck}
	for _, ca := range r.AdditionalCAs {
		v.CAs = append(v.CAs, pki.CAID(ca))
	}
	if _, err := s.PKI.Validate(ctx, d.Org, call.Chain, v); err != nil {
		return err
	}
	if grace := time.Duration(r.ExpiredGrace); grace > 0 && s.Now().After(c.leaf.NotAfter.Add(grace)) {
		return fault.New(fault.Unauthenticated, "the certificate expired on %s, and the grace of %s for renewing it is over; enrol anew", c.leaf.NotAfter.Format(time.RFC3339), r.ExpiredGrace)
	}
	if err := s.DB.View(ctx, func(tx store.Tx) error { return s.renewable(ctx, tx, d, old) }); err != nil {
		return err
	}
	if r.EST.allows(CertificateAndHook) {
		return s.askHook(ctx, d, &r.EST, call, csr, c)
	}
	return nil
}

// renewable refuses to renew for a device that is not in service, that belongs to
// another DMS, or whose certificate was ended.
func (s *Service) renewable(ctx context.Context, tx store.Tx, d *DMS, old *pki.Certificate) error {
	if old.Device == "" {
		return fault.New(fault.Unauthenticated, "the certificate is of no device")
	}
	device, err := s.Devices.GetIn(systemIn(ctx, d.Org), tx, old.Device)
	if err != nil {
		return err
	}
	if device.State != devices.Active {
		return fault.New(fault.Unauthenticated, "the device is %s", device.State)
	}
	credential, ok := device.Credential(identity.Certificate, string(old.Serial))
	if !ok || credential.State == devices.CredentialRevoked || credential.State == devices.CredentialPending {
		return fault.New(fault.Unauthenticated, "the certificate is revoked")
	}
	owner, err := ownerOf(tx, &device)
	if err != nil {
		return err
	}
	if owner != "" && owner != d.ID && old.DMS != d.ID {
		return fault.New(fault.Forbidden, "device already registered to another DMS")
	}
	return nil
}

// reenrollOtherwise renews for callers without a client certificate, where the
// DMS allows that: by webhook, by token, or for anybody.
func (s *Service) reenrollOtherwise(ctx context.Context, call *Call, csr *x509.CertificateRequest) (*Issued, error) {
	d, err := s.route(ctx, call, csr)
	if err != nil {
		return nil, err
	}
	r := &d.Settings.Reenrollment
	mode := s.choose(&r.EST, call, csr)
	c := &caller{mode: mode}
	switch mode {
	case EnrolmentToken:
		err = s.byToken(ctx, &d, call, csr, c)
	case JWT:
		err = s.byJWT(ctx, &d, &r.EST, call, c)
	case PSK:
		c.device = call.Device
	case ExternalWebhook:
		err = s.askHook(ctx, &d, &r.EST, call, csr, c)
	case NoAuth:
		err = s.byNobody(ctx, &d, call)
	default:
		err = fault.New(fault.Unauthenticated, "no client certificate was presented; renew with the device's current certificate")
	}
	if err != nil {
		return nil, err
	}
	ctx = identity.NewContext(ctx, c.actor(&d))
	if err := checkRequest(&r.EST, d.Settings.Enrollment.VerifyCSR, call, c, csr); err != nil {
		return nil, err
	}
	old, err := s.current(ctx, &d, c, d.Settings.IdentityMapping.device(csr))
	if err != nil {
		return nil, err
	}
	leaf, err := old.Parse()
	if err != nil {
		return nil, fmt.Errorf("est: %w", err)
	}
	if err := errors.Join(sameNames(csr, leaf), s.window(r, leaf)); err != nil {
		return nil, first(err)
	}
	return s.renew(ctx, &d, csr, old)
}

func first(err error) error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		return joined.Unwrap()[0]
	}
	return err
}

// current is the certificate a device has at present.
func (s *Service) current(ctx context.Context, d *DMS, c *caller, name string) (old pki.Certificate, err error) {
	err = s.DB.View(ctx, func(tx store.Tx) error {
		if c.device == "" {
			c.device = name
		}
		device, err := s.Devices.FindIn(ctx, tx, d.Org, c.device)
		if fault.Is(err, fault.NotFound) {
			return fault.New(fault.Unauthenticated, "no such device: %s", quoted(name))
		}
		if err != nil {
			return err
		}
		list := device.CredentialsOf(identity.Certificate)
		if len(list) == 0 {
			return fault.New(fault.Unauthenticated, "the device has no certificate to renew; enrol it first (simpleenroll)")
		}
		if old, err = s.PKI.CertificateIn(systemIn(ctx, d.Org), tx, list[len(list)-1].ID); err != nil {
			return err
		}
		return s.renewable(ctx, tx, d, &old)
	})
	return old, err
}

// window refuses to renew too early, and what has expired where that is not allowed.
func (s *Service) window(r *Reenrollment, leaf *x509.Certificate) error {
	now := s.Now()
	if now.After(leaf.NotAfter) && !r.ExpiredRenewal {
		return fault.New(fault.Unauthenticated, "expired certificate: it ended on %s, and this DMS does not renew expired ones", leaf.NotAfter.Format(time.RFC3339))
	}
	if r.Delta == nil {
		return nil
	}
	if opens := leaf.NotAfter.Add(-time.Duration(*r.Delta)); now.Before(opens) {
		return fault.New(fault.Forbidden, "invalid reenroll window: this certificate can be renewed from %s on", opens.UTC().Format(time.RFC3339))
	}
	return nil
}

// renew issues in place of old.
func (s *Service) renew(ctx context.Context, d *DMS, csr *x509.CertificateRequest, old pki.Certificate) (*Issued, error) {
	profile, err := s.profile(ctx, d)
	if err != nil {
		return nil, err
	}
	ca, err := s.enrolmentCA(ctx, d)
	if err != nil {
		return nil, err
	}
	prepared, err := s.PKI.Prepare(ctx, pki.Request{Org: d.Org, CA: ca, Profile: profile, CSR: csr, Device: old.Device, DMS: d.ID})
	if err != nil {
		return nil, err
	}
	record, err := s.PKI.Issue(ctx, prepared, func(ctx context.Context, tx store.Tx, record *pki.Certificate) error {
		if err := s.renewable(ctx, tx, d, &old); err != nil {
			return err
		}
		record.Replaces = old.Serial
		d.Settings.Reenrollment.remind(record)
		if err := s.PKI.RenewedIn(ctx, tx, old.Serial); err != nil {
			return err
		}
		if d.Settings.Reenrollment.revoke() == revokeOnUse {
			record.Supersedes = []pki.Serial{old.Serial}
		}
		if err := s.PKI.Attach(ctx, tx, old.Device, record); err != nil {
			return err
		}
		if d.Settings.Reenrollment.revoke() != revokeNow {
			return nil
		}
		_, err := s.PKI.RevokeIn(ctx, tx, string(old.Serial), pki.Superseded)
		return err
	})
	if err != nil {
		return nil, err
	}
	return finished(d, record)
}

// sameNames refuses a renewal for other names than those of the certificate (RFC
// 7030, 4.2.2). The same text in another kind of string is the same; what else a
// request copies from the certificate is not looked at.
func sameNames(csr *x509.CertificateRequest, leaf *x509.Certificate) error {
	if !bytes.Equal(csr.RawSubject, leaf.RawSubject) && csr.Subject.ToRDNSequence().String() != leaf.Subject.ToRDNSequence().String() {
		return fault.New(fault.Invalid, "the request's subject is not the certificate's: renew for %s", quoted(leaf.Subject.String()))
	}
	asked, has := sanSet(csr.Extensions), sanSet(leaf.Extensions)
	if len(asked) == 0 && len(has) == 0 || slices.Equal(asked, has) {
		return nil
	}
	return fault.New(fault.Invalid, "the request's subject alternative names are not the certificate's: renew for the same")
}

// sanSet is the sorted members of the subject alternative name extension.
func sanSet(list []extension) []string {
	var set []string
	for _, e := range list {
		if !e.Id.Equal(oidSAN) {
			continue
		}
		var names []asn1.RawValue
		if _, err := asn1.Unmarshal(e.Value, &names); err != nil {
			return []string{"?"}
		}
		for _, n := range names {
			set = append(set, string(n.FullBytes))
		}
	}
	slices.Sort(set)
	return slices.Compact(set)
}

// replayWindow is how long a client that lost the answer and asks again gets the
// same one.
const replayWindow = 10 * time.Minute

// requestName recognises a request that is repeated, by the same caller.
func requestName(d *DMS, c *caller, csr *x509.CertificateRequest) []byte {
	h := sha256.New()
	for _, part := range [][]byte{[]byte(d.ID), []byte(c.key()), csr.RawSubject, csr.RawSubjectPublicKeyInfo} {
		fmt.Fprintf(h, "%d:", len(part))
		h.Write(part)
	}
	return h.Sum(nil)[:16]
}

func keyHash(csr *x509.CertificateRequest) string {
	sum := sha256.Sum256(csr.RawSubjectPublicKeyInfo)
	return hex.EncodeToString(sum[:])
}

// replay is the certificate that answers a request already, or a NotFound fault.
func (s *Service) replay(tx store.Tx, p *plan) (none pki.Certificate, err error) {
	record, err := s.PKI.Answering(tx, p.dms.Org, keyHash(p.csr), requestName(p.dms, p.caller, p.csr))
	if err != nil {
		return none, err
	}
	if s.Now().Sub(record.IssuedAt) > replayWindow {
		return none, fault.New(fault.NotFound, "too long ago")
	}
	if _, _, err := s.Devices.Prove(tx, record.Device, identity.Certificate, string(record.Serial)); err != nil {
		return none, fault.New(fault.NotFound, "ended since")
	}
	return record, nil
}

// Sweep forgets what is too long ago to be repeated.
func (s *Service) Sweep(ctx context.Context, now time.Time) error {
	for p, err := range pendings.All(ctx, s.DB, "", "") {
		if err != nil {
			return err
		}
		if now.Sub(p.At) < pendingKept {
			continue
		}
		if err := s.DB.Update(ctx, func(tx store.Tx) error { return ignoreMissing(pendings.Delete(tx, p.ID)) }); err != nil {
			return err
		}
	}
	return nil
}

func ignoreMissing[T any](_ T, err error) error {
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	return err
}

// note tells the log what came of an enrolment.
func (s *Service) note(ctx context.Context, call *Call, csr *x509.CertificateRequest, issued *Issued, err error) {
	counter := &s.counters.issued
	if err != nil {
		counter = &s.counters.refused
	}
	counter.Add(1)
	if !s.Log.Enabled(ctx, slog.LevelInfo) {
		return
	}
	attrs := []slog.Attr{
		slog.String("operation", string(call.Operation)), slog.String("label", call.Label), slog.String("transport", string(call.Transport)),
		slog.String("remote", call.Remote.String()), slog.String("request_id", identity.RequestID(ctx)),
	}
	if csr != nil {
		attrs = append(attrs, slog.String("subject", s.PKI.SubjectText(ctx, csr)))
	}
	if err == nil {
		s.Log.LogAttrs(ctx, slog.LevelInfo, "enrolled", append(attrs, slog.String("device", issued.Record.Device), slog.String("serial", string(issued.Record.Serial)))...)
		return
	}
	s.Log.LogAttrs(ctx, slog.LevelInfo, "enrolment refused", append(attrs, slog.String("kind", fault.KindOf(err).String()), slog.String("reason", strings.ToValidUTF8(err.Error(), "?")))...)
}
