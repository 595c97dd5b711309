package est

import (
	"context"
	"slices"

	"keystead/audit"
	"keystead/devices"
	"keystead/fault"
	"keystead/identity"
	"keystead/pki"
	"keystead/store"
)

// BindMode is what a certificate becomes to the device it is bound to, as Lamassu has it.
type BindMode string

// The modes.
const (
	Provisioned   BindMode = "PROVISIONED"    // its first
	Reprovisioned BindMode = "RE-PROVISIONED" // another
	Renewed       BindMode = "RENEWED"        // in the place of the one it has
)

// Bound is a certificate with the device it was bound to, and the DMS that device came by, nil if it
// came by none.
type Bound struct {
	Certificate pki.Certificate
	Device      devices.Device
	DMS         *DMS
}

// BindIdentity gives a device of the actor's organisation, by id or alias, a certificate that was issued
// without one. It is NotFound if either is, Conflict if they do not go together: the certificate is bound already or
// no good, is for another name, or the device has no certificate yet, or has one, against the mode.
func (s *Service) BindIdentity(ctx context.Context, mode BindMode, device, serial string) (b Bound, err error) {
	if !slices.Contains([]BindMode{Provisioned, Reprovisioned, Renewed}, mode) {
		return b, fault.InvalidFields(fault.Field{Name: "bind_mode", Message: "must be PROVISIONED, RE-PROVISIONED or RENEWED"})
	}
	err = s.DB.Update(ctx, func(tx store.Tx) error {
		b, err = s.bindIn(ctx, tx, mode, device, serial)
		return err
	})
	return b, err
}

func (s *Service) bindIn(ctx context.Context, tx store.Tx, mode BindMode, device, serial string) (b Bound, err error) {
	d, err := s.Devices.FindIn(ctx, tx, identity.OrgOf(ctx), device)
	if err != nil {
		return b, err
	}
	if d.State != devices.Active {
		return b, fault.New(fault.Conflict, "the device is %s", d.State)
	}
	cert, err := s.PKI.CertificateIn(ctx, tx, serial)
	if err != nil {
		return b, err
	}
	if !named(&d, cert.CommonName) {
		return b, fault.New(fault.Conflict, "the certificate is for %s, which is not a name of the device; give the device that alias first", quoted(cert.CommonName))
	}
	replaces, err := mode.replaces(&d)
	if err != nil {
		return b, err
	}
	if b.Certificate, err = s.PKI.BindIn(ctx, tx, serial, &d, replaces); err != nil {
		return b, err
	}
	if b.Device, err = s.Devices.GetIn(ctx, tx, d.ID); err != nil {
		return b, err
	}
	owner, err := ownerOf(tx, &d)
	if err != nil || owner == "" {
		return b, err
	}
	dms, err := dmsIn(ctx, tx, owner)
	if fault.Is(err, fault.NotFound) { // it was deleted since
		return b, nil
	}
	b.DMS = &dms
	return b, err
}

// named reports whether cn is a name of a device.
func named(d *devices.Device, cn string) bool {
	return cn != "" && (cn == d.ID || cn == d.Name || slices.ContainsFunc(d.Aliases, func(a devices.Alias) bool { return a.Value == cn }))
}

// replaces is the certificate that a new one takes the place of, "" for none.
func (m BindMode) replaces(d *devices.Device) (pki.Serial, error) {
	has := d.CredentialsOf(identity.Certificate)
	switch {
	case m == Provisioned && len(has) > 0:
		return "", fault.New(fault.Conflict, "the device has a certificate already; bind this one as RE-PROVISIONED or RENEWED")
	case m != Provisioned && len(has) == 0:
		return "", fault.New(fault.Conflict, "the device has no certificate yet; bind this one as PROVISIONED")
	case m == Renewed:
		return pki.Serial(has[len(has)-1].ID), nil
	}
	return "", nil
}

// PatchDMS changes what people note of an enrolment profile. See [pki.PatchMetadata] for its
// faults; it is NotFound if the DMS is.
func (s *Service) PatchDMS(ctx context.Context, dms string, patches []pki.Patch) (d DMS, err error) {
	err = s.DB.Update(ctx, func(tx store.Tx) error {
		if _, err := dmsIn(ctx, tx, dms); err != nil {
			return err
		}
		if d, err = dmsTable.Update(tx, dms, func(d *DMS) error {
			d.Metadata, err = pki.PatchMetadata(d.Metadata, patches)
			return err
		}); err != nil {
			return err
		}
		return s.Audit.Append(ctx, tx, audit.Entry{Action: "dms.metadata", Target: d.ID, Org: d.Org})
	})
	return d, err
}
