package pki

import (
	"context"

	"keystead/audit"
	"keystead/devices"
	"keystead/fault"
	"keystead/store"
)

// BindIn gives a device a certificate that was issued here for no device, as part of tx, in the
// place of another if one is named. It is NotFound if the certificate is, Conflict if it is bound already, not good any
// more, or of a key that another device has.
func (s *Service) BindIn(ctx context.Context, tx store.Tx, serial string, d *devices.Device, replaces Serial) (Certificate, error) {
	c, err := s.certificateIn(ctx, tx, serial)
	switch {
	case err != nil:
		return c, err
	case c.Device != "":
		return c, fault.New(fault.Conflict, "the certificate is bound to a device already")
	case c.StateAt(s.Now()) != CertActive:
		return c, fault.New(fault.Conflict, "the certificate is %s", c.StateAt(s.Now()))
	case c.Org != d.Org:
		return c, notFound("certificate")
	}
	c.Device = d.ID
	if err := c.keyFree(tx); err != nil {
		return c, err
	}
	if replaces != "" {
		if err := s.RenewedIn(ctx, tx, replaces); err != nil {
			return c, err
		}
	}
	flags := c.Flags
	c, err = certificates.Update(tx, string(c.Serial), func(c *Certificate) error {
		c.Device, c.Flags, c.Replaces = d.ID, flags, replaces
		return nil
	})
	if err != nil {
		return c, err
	}
	if err := s.Attach(ctx, tx, d.ID, &c); err != nil {
		return c, err
	}
	return c, s.Audit.Append(ctx, tx, audit.Entry{
		Action: "certificate.bind", Target: string(c.Serial), Device: c.Device, Org: c.Org,
	})
}

// KeyFree says whether what was prepared could be recorded for its device: a Conflict if another
// device has its key, Invalid if that is known to be compromised.
func (s *Service) KeyFree(ctx context.Context, p *Prepared) error {
	r := &p.request
	return s.DB.View(ctx, func(tx store.Tx) error {
		c := Certificate{Org: r.Org, Device: r.Device, KeyHash: keyHash(p.t.spki), Shared: r.Profile.AllowSharedKey}
		return c.keyFree(tx)
	})
}
