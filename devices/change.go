package devices

import (
	"context"
	"maps"

	"keystead/audit"
	"keystead/store"
)

// What happened to a device.
type What string

// What can happen to a device.
const (
	Created              What = "create"
	Updated              What = "update"
	SuspendedNow         What = "suspend"
	Resumed              What = "resume"
	DecommissionedNow    What = "decommission"
	Attached             What = "credential.attach"
	CredentialChanged    What = "credential.change"
	CredentialRevokedNow What = "credential.revoke"
)

// Change is what happened to a device. Device is as it is after the change, but
// as it was before a decommission; Credential is set where the change is of one.
type Change struct {
	What       What
	Device     Device
	Credential *Credential
}

// Ends reports whether c takes something away that open connections rest on:
// those of the credential, or of the whole device if none is named.
func (c Change) Ends() bool {
	switch c.What {
	case SuspendedNow, DecommissionedNow, CredentialRevokedNow:
		return true
	case CredentialChanged: // one that is retiring still proves
		return c.Credential.State != CredentialActive && c.Credential.State != CredentialRetiring
	case Created, Updated, Resumed, Attached:
	}
	return false
}

// Epoch is a number that moves whenever something was taken away from any
// device, before the one who did it is answered. An actor resolved in the
// present epoch needs not be resolved again.
func (s *Service) Epoch() uint64 { return s.epoch.Load() }

// Listen has fn called after the commit of each change, before the one who
// made it is answered; fn must be quick. Register listeners before serving.
func (s *Service) Listen(fn func(Change)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.listeners = append(s.listeners, fn)
}

// Observe has fn called in the transaction of each change, which fails with it.
// Register observers before serving.
func (s *Service) Observe(fn func(context.Context, store.Tx, Change) error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.observers = append(s.observers, fn)
}

// MoveEpoch has every session resolve its actor again before its next request:
// for changes that are of no single device, such as of a trusted CA.
func (s *Service) MoveEpoch() { s.epoch.Add(1) }

// change applies fn to a device of the actor's organisation and tells of it.
func (s *Service) change(ctx context.Context, tx store.Tx, deviceID string, what What, detail map[string]string, fn func(*Device) error) (Device, error) {
	if _, err := s.GetIn(ctx, tx, deviceID); err != nil {
		return Device{}, err
	}
	d, err := s.edit(tx, deviceID, fn)
	if err != nil {
		return d, err
	}
	return d, s.changed(ctx, tx, Change{What: what, Device: d}, detail)
}

// changeCredential applies fn, which is about c, to a device and tells of it.
// The caller has proven its right to the device by another record.
func (s *Service) changeCredential(ctx context.Context, tx store.Tx, deviceID string, what What, c Credential, fn func(*Device) error) (Device, error) {
	d, err := s.edit(tx, deviceID, fn)
	if err != nil {
		return d, err
	}
	return d, s.changed(ctx, tx, Change{What: what, Device: d, Credential: &c}, nil)
}

func (s *Service) edit(tx store.Tx, deviceID string, fn func(*Device) error) (Device, error) {
	now := s.Now().UTC()
	return table.Update(tx, deviceID, func(d *Device) error {
		d.UpdatedAt = now
		return fn(d)
	})
}

// changed writes the audit record, and tells of the change.
func (s *Service) changed(ctx context.Context, tx store.Tx, c Change, detail map[string]string) error {
	e := audit.Entry{Action: "device." + string(c.What), Target: c.Device.ID, Device: c.Device.ID, Org: c.Device.Org, Detail: maps.Clone(detail)}
	if c.Credential != nil {
		e.Detail = map[string]string{"kind": string(c.Credential.Kind), "credential": c.Credential.ID, "state": string(c.Credential.State)}
	}
	if err := s.Audit.Append(ctx, tx, e); err != nil {
		return err
	}
	return s.tell(ctx, tx, c)
}

// tell asks the observers, and has the listeners told once the transaction is durable.
func (s *Service) tell(ctx context.Context, tx store.Tx, c Change) error {
	for _, observe := range s.observers {
		if err := observe(ctx, tx, c); err != nil {
			return err
		}
	}
	tx.OnCommit(func() {
		if c.Ends() || c.What == CredentialChanged { // its end may be nearer now
			s.epoch.Add(1)
		}
		for _, tell := range s.listeners {
			tell(c)
		}
	})
	return nil
}
