package devices

import (
	"context"
	"slices"
	"time"

	"keystead/fault"
	"keystead/identity"
	"keystead/store"
)

// Suspend has a device refused everywhere until it is resumed. Suspending a
// suspended device changes nothing; a decommissioned one is a Conflict.
func (s *Service) Suspend(ctx context.Context, deviceID string) (Device, error) {
	return s.move(ctx, deviceID, SuspendedNow, Suspended)
}

// Resume ends a suspension.
func (s *Service) Resume(ctx context.Context, deviceID string) (Device, error) {
	return s.move(ctx, deviceID, Resumed, Active)
}

// Decommission ends a device for ever: every credential is revoked, its aliases
// and what people said of it are erased, the record stays as a tombstone.
func (s *Service) Decommission(ctx context.Context, deviceID string) (d Device, err error) {
	err = s.DB.Update(ctx, func(tx store.Tx) error {
		d, err = s.DecommissionIn(ctx, tx, deviceID)
		return err
	})
	return d, err
}

func (s *Service) move(ctx context.Context, deviceID string, what What, to State) (d Device, err error) {
	err = s.DB.Update(ctx, func(tx store.Tx) error {
		d, err = s.moveIn(ctx, tx, deviceID, what, to)
		return err
	})
	return d, err
}

// SuspendIn is Suspend as part of tx.
func (s *Service) SuspendIn(ctx context.Context, tx store.Tx, deviceID string) (Device, error) {
	return s.moveIn(ctx, tx, deviceID, SuspendedNow, Suspended)
}

// ResumeIn is Resume as part of tx.
func (s *Service) ResumeIn(ctx context.Context, tx store.Tx, deviceID string) (Device, error) {
	return s.moveIn(ctx, tx, deviceID, Resumed, Active)
}

func (s *Service) moveIn(ctx context.Context, tx store.Tx, deviceID string, what What, to State) (Device, error) {
	d, err := s.GetIn(ctx, tx, deviceID)
	if err != nil || d.State == to {
		return d, err
	}
	if d.State == Decommissioned {
		return d, fault.New(fault.Conflict, "the device is decommissioned; create a new one")
	}
	return s.change(ctx, tx, deviceID, what, nil, func(d *Device) error {
		d.State = to
		return nil
	})
}

// DecommissionIn is Decommission as part of tx. Observers are told of the
// device as it was, so that each kind of credential can end its own.
func (s *Service) DecommissionIn(ctx context.Context, tx store.Tx, deviceID string) (Device, error) {
	was, err := s.GetIn(ctx, tx, deviceID)
	if err != nil || was.State == Decommissioned {
		return was, err
	}
	now := s.Now().UTC()
	d, err := table.Update(tx, deviceID, func(d *Device) error {
		d.State, d.UpdatedAt = Decommissioned, now
		d.Aliases, d.Labels, d.Metadata, d.Comment = nil, nil, nil, ""
		for i := range d.Credentials {
			d.Credentials[i].State = CredentialRevoked
		}
		d.prune()
		return nil
	})
	if err != nil {
		return d, err
	}
	return d, s.changed(ctx, tx, Change{What: DecommissionedNow, Device: was}, nil)
}

// Attach adds a credential to a device's list as part of tx. It is a Conflict
// if the device is decommissioned or has it already.
func (s *Service) Attach(ctx context.Context, tx store.Tx, deviceID string, c Credential) (Device, error) {
	return s.attach(ctx, tx, deviceID, c, false)
}

// AttachTold is Attach for a credential whose making the caller puts in the trail
// itself, with its device: one change is one record.
func (s *Service) AttachTold(ctx context.Context, tx store.Tx, deviceID string, c Credential) (Device, error) {
	return s.attach(ctx, tx, deviceID, c, true)
}

func (s *Service) attach(ctx context.Context, tx store.Tx, deviceID string, c Credential, told bool) (Device, error) {
	c = c.filled(s.Now().UTC())
	d, err := s.edit(tx, deviceID, func(d *Device) error {
		switch i := d.index(c.Kind, c.ID); {
		case d.State == Decommissioned:
			return fault.New(fault.Conflict, "the device is decommissioned; create a new one")
		case i >= 0 && d.Credentials[i].State != CredentialRevoked:
			return fault.New(fault.Conflict, "the device has this credential already")
		case i >= 0:
			d.Credentials[i] = c
		case len(d.Credentials) >= MaxCredentials:
			return fault.New(fault.TooLarge, "the device has %d credentials; revoke some first", len(d.Credentials))
		default:
			d.Credentials = append(d.Credentials, c)
		}
		return nil
	})
	if err != nil {
		return d, err
	}
	change := Change{What: Attached, Device: d, Credential: &c}
	if told {
		return d, s.tell(ctx, tx, change)
	}
	return d, s.changed(ctx, tx, change, nil)
}

// filled is c with what is left out: it is active, and was made now.
func (c Credential) filled(now time.Time) Credential {
	if c.State == "" {
		c.State = CredentialActive
	}
	if c.CreatedAt.IsZero() {
		c.CreatedAt = now
	}
	return c
}

// MaxCredentials is how many credentials a device's list holds.
const MaxCredentials = 128

// SetCredential changes the state or expiry of a credential as part of tx: to make a pending
// one active, or an active one retiring until c.ExpiresAt. To end one, use Revoke.
func (s *Service) SetCredential(ctx context.Context, tx store.Tx, deviceID string, c Credential) (Device, error) {
	return s.changeCredential(ctx, tx, deviceID, CredentialChanged, c, func(d *Device) error {
		i := d.index(c.Kind, c.ID)
		if i < 0 || d.Credentials[i].State == CredentialRevoked {
			return fault.New(fault.NotFound, "no such credential")
		}
		d.Credentials[i].State, d.Credentials[i].ExpiresAt = c.State, c.ExpiresAt
		return nil
	})
}

// SetRenewal notes as part of tx how near its end a credential is. That is no change of the
// device, and nobody is told.
func (s *Service) SetRenewal(_ context.Context, tx store.Tx, deviceID string, kind identity.CredentialKind, credentialID, renewal string) error {
	_, err := table.Update(tx, deviceID, func(d *Device) error {
		i := d.index(kind, credentialID)
		if i < 0 {
			return fault.New(fault.NotFound, "no such credential")
		}
		d.Credentials[i].Renewal = renewal
		return nil
	})
	return err
}

// Revoke ends one credential of a device as part of tx: the next use of it is
// refused, and open connections it proved are closed. Revoking what is revoked
// or not there is no error.
func (s *Service) Revoke(ctx context.Context, tx store.Tx, deviceID string, kind identity.CredentialKind, credentialID string) error {
	d, err := table.Get(tx, deviceID)
	if err != nil {
		return err
	}
	c, ok := d.Credential(kind, credentialID)
	if !ok || c.State == CredentialRevoked {
		return nil
	}
	_, err = s.changeCredential(ctx, tx, deviceID, CredentialRevokedNow, c, func(d *Device) error {
		d.Credentials[d.index(kind, credentialID)].State = CredentialRevoked
		d.prune()
		return nil
	})
	return err
}

// prune forgets all but the latest revoked credentials.
func (d *Device) prune() {
	revoked := 0
	for i, c := range slices.Backward(d.Credentials) {
		if c.State != CredentialRevoked {
			continue
		}
		if revoked++; revoked > keepRevoked {
			d.Credentials = slices.Delete(d.Credentials, i, i+1)
		}
	}
}

// RevokeCredential ends one credential of a device of the actor's organisation,
// whatever its kind; the package of the kind hears of it as an observer. It is
// NotFound if the device or the credential is.
func (s *Service) RevokeCredential(ctx context.Context, deviceID string, kind identity.CredentialKind, credentialID string) error {
	return s.DB.Update(ctx, func(tx store.Tx) error {
		d, err := s.GetIn(ctx, tx, deviceID)
		if err != nil {
			return err
		}
		if _, ok := d.Credential(kind, credentialID); !ok {
			return fault.New(fault.NotFound, "no such credential")
		}
		return s.Revoke(ctx, tx, deviceID, kind, credentialID)
	})
}
