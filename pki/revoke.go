package pki

import (
	"context"
	"errors"
	"strings"
	"time"

	"keystead/audit"
	"keystead/devices"
	"keystead/fault"
	"keystead/identity"
	"keystead/page"
	"keystead/store"
)

// Reason is why a certificate was revoked (RFC 5280, 5.3.1).
type Reason int

// The reasons.
const (
	Unspecified          Reason = 0
	KeyCompromise        Reason = 1
	CACompromise         Reason = 2
	AffiliationChanged   Reason = 3
	Superseded           Reason = 4
	CessationOfOperation Reason = 5
	CertificateHold      Reason = 6
	RemoveFromCRL        Reason = 8 // releases a hold
	PrivilegeWithdrawn   Reason = 9
	AACompromise         Reason = 10
)

var reasonNames = map[Reason]string{
	Unspecified: "unspecified", KeyCompromise: "keyCompromise", CACompromise: "cACompromise", AffiliationChanged: "affiliationChanged",
	Superseded: "superseded", CessationOfOperation: "cessationOfOperation", CertificateHold: "certificateHold",
	RemoveFromCRL: "removeFromCRL", PrivilegeWithdrawn: "privilegeWithdrawn", AACompromise: "aACompromise",
}

// String returns the name RFC 5280 gives the reason.
func (r Reason) String() string { return reasonNames[r] }

// ParseReason parses the name of a reason, in any case; "" is Unspecified.
func ParseReason(name string) (Reason, error) {
	if name == "" {
		return Unspecified, nil
	}
	for reason, known := range reasonNames {
		if strings.EqualFold(known, name) {
			return reason, nil
		}
	}
	return 0, fault.InvalidFields(fault.Field{Name: "reason", Message: "must be unspecified, keyCompromise, cACompromise, affiliationChanged, " +
		"superseded, cessationOfOperation, certificateHold, removeFromCRL, privilegeWithdrawn or aACompromise"})
}

// revocation is one entry of a CRL.
type revocation struct {
	CA       CAID      `cbor:"ca"`
	Serial   Serial    `cbor:"serial"`
	Shard    int       `cbor:"shard"`
	At       time.Time `cbor:"at"`
	Reason   Reason    `cbor:"reason,omitempty"`
	NotAfter time.Time `cbor:"na"`
}

var revocations = store.NewTable("revocation",
	store.Index[revocation]{Name: "shard", Counted: true, Terms: func(r revocation) []store.Term { return store.Terms(string(r.CA), shardName(r.Shard)) }})

func revocationKey(ca CAID, serial Serial) string { return string(ca) + "/" + string(serial) }

// Revoke takes a certificate of the actor's organisation back, or puts it on
// hold. It is refused from the next request on, and open connections that rest on it
// are closed. RemoveFromCRL releases a hold. Revoking what is revoked is a
// Conflict, save with the same reason, which changes nothing.
func (s *Service) Revoke(ctx context.Context, serial string, reason Reason) (c Certificate, err error) {
	err = s.DB.Update(ctx, func(tx store.Tx) error {
		c, err = s.RevokeIn(ctx, tx, serial, reason)
		return err
	})
	return c, err
}

// RevokeIn is Revoke as part of tx.
func (s *Service) RevokeIn(ctx context.Context, tx store.Tx, serial string, reason Reason) (Certificate, error) {
	c, err := s.certificateIn(ctx, tx, serial)
	if err != nil {
		return c, err
	}
	switch {
	case reason == RemoveFromCRL && c.State == CertHold:
		return s.release(ctx, tx, c)
	case reason == RemoveFromCRL:
		return c, fault.New(fault.Conflict, "the certificate is not on hold; only a hold can be released")
	case c.State == CertRevoked && c.Reason == reason, c.State == CertHold && reason == CertificateHold:
		return c, nil
	case c.State == CertRevoked:
		return c, fault.New(fault.Conflict, "the certificate is revoked already (%s); revocation is for good", c.Reason)
	}
	return s.end(ctx, tx, c, reason)
}

// end revokes or holds c as part of tx. The record changes first, so that the
// device's own news of it, which comes back as an observation, finds it done.
func (s *Service) end(ctx context.Context, tx store.Tx, c Certificate, reason Reason) (Certificate, error) {
	now := s.Now().UTC().Truncate(time.Second)
	state := CertRevoked
	if reason == CertificateHold {
		state = CertHold
	}
	c, err := certificates.Update(tx, string(c.Serial), func(c *Certificate) error {
		c.State, c.Reason, c.RevokedAt = state, reason, now
		return nil
	})
	if err != nil {
		return c, err
	}
	if err := s.tellDevice(ctx, tx, &c); err != nil {
		return c, err
	}
	return c, s.list(ctx, tx, &c, "certificate."+map[CertificateState]string{CertRevoked: "revoke", CertHold: "hold"}[state])
}

// list puts a revocation on the CRL and in the journal.
func (s *Service) list(ctx context.Context, tx store.Tx, c *Certificate, action string) error {
	r := revocation{CA: c.CA, Serial: c.Serial, Shard: c.Shard, At: c.RevokedAt, Reason: c.Reason, NotAfter: c.NotAfter}
	if err := revocations.Set(tx, revocationKey(r.CA, r.Serial), r); err != nil {
		return err
	}
	if err := s.dirty(tx, r.CA, r.Shard); err != nil {
		return err
	}
	s.journal(tx, r)
	return s.Audit.Append(ctx, tx, audit.Entry{
		Action: action, Target: string(c.Serial), Device: c.Device, Org: c.Org,
		Detail: map[string]string{"reason": c.Reason.String(), "ca": string(c.CA)},
	})
}

// tellDevice has the device's list of credentials say what the record does.
func (s *Service) tellDevice(ctx context.Context, tx store.Tx, c *Certificate) error {
	if c.Device == "" {
		return nil
	}
	var err error
	switch c.State {
	case CertRevoked:
		err = s.Devices.Revoke(ctx, tx, c.Device, identity.Certificate, string(c.Serial))
	case CertHold:
		_, err = s.Devices.SetCredential(ctx, tx, c.Device, credential(c, devices.CredentialPending))
	default:
		_, err = s.Devices.SetCredential(ctx, tx, c.Device, credential(c, devices.CredentialActive))
	}
	if fault.Is(err, fault.NotFound) { // the device has forgotten it, or is gone
		return nil
	}
	return err
}

// Credential is the certificate as the device it is issued to lists it: for a device that is
// created with it, which needs no Attach.
func (c *Certificate) Credential() devices.Credential {
	return credential(c, devices.CredentialActive)
}

func credential(c *Certificate, state devices.CredentialState) devices.Credential {
	return devices.Credential{Kind: identity.Certificate, ID: string(c.Serial), State: state, ExpiresAt: c.NotAfter}
}

// Attach gives a device the certificate as a credential, as part of tx: what a
// binding given to Issue does once it knows the device. The trail has it in the record of
// the issuing.
func (s *Service) Attach(ctx context.Context, tx store.Tx, deviceID string, c *Certificate) error {
	c.Device = deviceID
	_, err := s.Devices.AttachTold(ctx, tx, deviceID, credential(c, devices.CredentialActive))
	return err
}

func (s *Service) release(ctx context.Context, tx store.Tx, c Certificate) (Certificate, error) {
	c, err := certificates.Update(tx, string(c.Serial), func(c *Certificate) error {
		c.State, c.Reason, c.RevokedAt = CertActive, Unspecified, time.Time{}
		return nil
	})
	if err != nil {
		return c, err
	}
	if _, err := revocations.Delete(tx, revocationKey(c.CA, c.Serial)); err != nil && !fault.Is(err, fault.NotFound) {
		return c, err
	}
	if err := errors.Join(s.dirty(tx, c.CA, c.Shard), s.tellDevice(ctx, tx, &c)); err != nil {
		return c, err
	}
	s.journal(tx, revocation{CA: c.CA, Serial: c.Serial, Shard: c.Shard, At: s.Now().UTC(), Reason: RemoveFromCRL, NotAfter: c.NotAfter})
	return c, s.Audit.Append(ctx, tx, audit.Entry{Action: "certificate.release", Target: string(c.Serial), Device: c.Device, Org: c.Org})
}

// RevokeDevice revokes every certificate of a device and returns how many.
func (s *Service) RevokeDevice(ctx context.Context, deviceID string, reason Reason) (n int, err error) {
	err = s.DB.Update(ctx, func(tx store.Tx) error {
		n = 0
		d, err := s.Devices.GetIn(ctx, tx, deviceID)
		if err != nil {
			return err
		}
		p, err := certificates.PageBy(tx, "device", store.TermOf(d.Org, d.ID), page.Request{Limit: page.MaxLimit})
		if err != nil {
			return err
		}
		for _, c := range p.Items {
			if c.State == CertRevoked {
				continue
			}
			if _, err := s.end(ctx, tx, c, reason); err != nil {
				return err
			}
			n++
		}
		return nil
	})
	return n, err
}

// RevokeCA revokes a CA: nothing it or a CA below it has issued is good any
// more. Its own certificate is listed in its parent's CRL; what it issued is
// listed in its own, in batches, so that whoever looks only there learns of it.
func (s *Service) RevokeCA(ctx context.Context, ca CAID, reason Reason) (CA, error) {
	if reason == CertificateHold || reason == RemoveFromCRL {
		return CA{}, fault.New(fault.Invalid, "a CA is not put on hold; retire it, or revoke it for good")
	}
	var record CA
	err := s.DB.Update(ctx, func(tx store.Tx) (err error) {
		record, err = s.revokeCAIn(ctx, tx, ca, reason)
		return err
	})
	if err != nil {
		return record, err
	}
	return record, s.revokeBelow(ctx, record)
}

func (s *Service) revokeCAIn(ctx context.Context, tx store.Tx, ca CAID, reason Reason) (CA, error) {
	record, err := s.caIn(ctx, tx, ca)
	if err != nil {
		return record, err
	}
	if record.State == CARevoked {
		return record, nil
	}
	record, err = cas.Update(tx, string(ca), func(c *CA) error {
		c.State, c.Reason, c.RevokedAt = CARevoked, reason, s.Now().UTC().Truncate(time.Second)
		return nil
	})
	if err != nil {
		return record, err
	}
	s.changedCA(tx, ca)
	if record.Parent != "" && record.Certificate != nil {
		if err := s.listCA(ctx, tx, &record); err != nil {
			return record, err
		}
	}
	return record, s.Audit.Append(ctx, tx, audit.Entry{
		Action: "ca.revoke", Target: string(ca), Org: record.Org, Detail: map[string]string{"reason": reason.String()},
	})
}

// listCA puts a CA's own certificate on its parent's CRL.
func (s *Service) listCA(ctx context.Context, tx store.Tx, ca *CA) error {
	a, err := parseAuthority(*ca)
	if err != nil {
		return err
	}
	c := Certificate{CA: ca.Parent, Org: ca.Org, Serial: SerialOf(a.cert.SerialNumber), RevokedAt: ca.RevokedAt, Reason: ca.Reason, NotAfter: ca.NotAfter}
	return s.list(ctx, tx, &c, "certificate.revoke")
}

const revokeBatch = 200

// revokeBelow revokes what a revoked CA has issued, and the CAs below it.
func (s *Service) revokeBelow(ctx context.Context, ca CA) error {
	for child, err := range cas.All(ctx, s.DB, "parent", store.TermOf(string(ca.ID))) {
		if err != nil {
			return err
		}
		if child.State != CARevoked {
			if _, err := s.RevokeCA(ctx, child.ID, CessationOfOperation); err != nil {
				return err
			}
		}
	}
	var batch []Serial
	flush := func() error {
		err := s.DB.Update(ctx, func(tx store.Tx) error {
			for _, serial := range batch {
				c, err := certificates.Get(tx, string(serial))
				if err != nil || c.State == CertRevoked {
					continue
				}
				if _, err := s.end(ctx, tx, c, CessationOfOperation); err != nil {
					return err
				}
			}
			return nil
		})
		batch = batch[:0]
		return err
	}
	for c, err := range certificates.All(ctx, s.DB, "ca", store.TermOf(string(ca.ID))) {
		if err != nil {
			return err
		}
		if c.State == CertRevoked {
			continue
		}
		if batch = append(batch, c.Serial); len(batch) == revokeBatch {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	return flush()
}

// observe keeps the inventory in step with what ends a device, or one of its
// certificates, elsewhere.
func (s *Service) observe(ctx context.Context, tx store.Tx, change devices.Change) error {
	switch {
	case change.What == devices.CredentialRevokedNow && change.Credential.Kind == identity.Certificate:
		return s.endOf(ctx, tx, change.Credential.ID, Unspecified)
	case change.What == devices.DecommissionedNow:
		for _, c := range change.Device.CredentialsOf(identity.Certificate) {
			if err := s.endOf(ctx, tx, c.ID, CessationOfOperation); err != nil {
				return err
			}
		}
	}
	return nil
}

func (s *Service) endOf(ctx context.Context, tx store.Tx, serial string, reason Reason) error {
	c, err := certificates.Get(tx, serial)
	switch {
	case fault.Is(err, fault.NotFound):
		return nil
	case err != nil:
		return err
	case c.State == CertRevoked:
		return nil
	}
	_, err = s.end(ctx, tx, c, reason)
	return err
}
