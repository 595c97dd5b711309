package lwm2m

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"time"

	"keystead/coap"
	"keystead/devices"
	"keystead/fault"
	"keystead/identity"
	"keystead/store"
)

// Override is what holds for one device in place of its policy. What is nil or
// empty is as the policy says. Which servers it goes to is not in it: that is the
// policy's to choose, or Pin's.
type Override struct {
	Device string `cbor:"device" json:"device"`

	Region       string            `cbor:"region,omitempty" json:"region,omitempty"` // unless the device's label says another
	Mode         Mode              `cbor:"mode,omitempty" json:"credential,omitempty"`
	GraceHours   int               `cbor:"grace,omitempty" json:"grace_hours,omitempty"`
	Account      BootstrapAccount  `cbor:"account,omitempty" json:"bootstrap_account,omitempty"`
	Deletes      []string          `cbor:"deletes" json:"deletes,omitzero"` // empty and not nil deletes nothing
	Format       *coap.Format      `cbor:"format,omitempty" json:"format,omitempty"`
	SkipDiscover *bool             `cbor:"blind,omitempty" json:"skip_discover,omitempty"`
	NeedDiscover *bool             `cbor:"autoid,omitempty" json:"need_discover,omitempty"`
	Lifetime     *int64            `cbor:"lifetime,omitempty" json:"lifetime,omitempty"`
	Binding      string            `cbor:"binding,omitempty" json:"binding,omitempty"`
	Retry        *bool             `cbor:"retry,omitempty" json:"bootstrap_again,omitempty"`
	Resources    map[string]string `cbor:"resources,omitempty" json:"server_resources,omitempty"` // besides the policy's, and before them
	Access       []Access          `cbor:"access" json:"access,omitzero"`                         // in place of all of the policy's

	UpdatedAt time.Time `cbor:"updated" json:"updated_at"`
}

var overrides = store.NewTable[Override]("LwM2M override")

// over returns p as it is with the override.
func (o *Override) over(p Policy) Policy {
	set(&p.Mode, o.Mode)
	set(&p.GraceHours, o.GraceHours)
	set(&p.Account, o.Account)
	set(&p.Binding, o.Binding)
	set(&p.Format, o.Format)
	set(&p.Lifetime, o.Lifetime)
	if o.Deletes != nil {
		p.Deletes = o.Deletes
	}
	if o.SkipDiscover != nil {
		p.SkipDiscover = *o.SkipDiscover
	}
	if o.NeedDiscover != nil {
		p.NeedDiscover = *o.NeedDiscover
	}
	if o.Retry != nil {
		p.Retry = *o.Retry
	}
	if o.Access != nil {
		p.Access = o.Access
		if o.Deletes == nil && !slices.Contains(p.Deletes, "/2") {
			p.Deletes = append(slices.Clone(p.Deletes), "/2")
		}
	}
	if p.Account == RotateAccount {
		p.SkipDiscover = false // it is rotated where the device says that it is
	}
	if len(o.Resources) > 0 {
		all := maps.Clone(o.Resources)
		for id, text := range p.Resources {
			if _, ok := all[id]; !ok {
				all[id] = text
			}
		}
		p.Resources = all
	}
	return p
}

// set puts v where it says something.
func set[T comparable](at *T, v T) {
	var zero T
	if v != zero {
		*at = v
	}
}

// maxRegion is how long the name of a region may be.
const maxRegion = 64

// check reports what is wrong with the override, whatever policy it is laid over.
func (o *Override) check() error {
	p := o.over(defaultPolicy)
	if o.SkipDiscover != nil {
		p.SkipDiscover = *o.SkipDiscover
	}
	if err := p.check(); err != nil {
		return err
	}
	if len(o.Region) > maxRegion {
		return fault.InvalidFields(fault.Field{Name: "region", Message: fmt.Sprintf("at most %d bytes", maxRegion)})
	}
	return nil
}

// overrideIn returns the override of a device, nil if there is none.
func overrideIn(tx store.Tx, device string) (*Override, error) {
	if device == "" {
		return nil, nil //nolint:nilnil // a device that is only described has none
	}
	o, err := overrides.Get(tx, device)
	if fault.Is(err, fault.NotFound) {
		return nil, nil //nolint:nilnil // as above
	}
	return &o, err
}

// Override returns what holds for a device of the actor's organisation in place
// of its policy, or a NotFound fault.
func (s *Service) Override(ctx context.Context, device string) (o Override, err error) {
	err = s.DB.View(ctx, func(tx store.Tx) error {
		d, err := s.Devices.FindIn(ctx, tx, identity.OrgOf(ctx), device)
		if err != nil {
			return err
		}
		o, err = overrides.Get(tx, d.ID)
		return err
	})
	return o, err
}

// SetOverride replaces the override of a device of the actor's organisation. It
// counts from the device's next bootstrap on.
func (s *Service) SetOverride(ctx context.Context, device string, o Override) (Override, error) {
	if err := o.check(); err != nil {
		return o, err
	}
	return o, s.DB.Update(ctx, func(tx store.Tx) error {
		d, err := s.Devices.FindIn(ctx, tx, identity.OrgOf(ctx), device)
		if err != nil {
			return err
		}
		if d.State == devices.Decommissioned {
			return fault.New(fault.Conflict, "the device is decommissioned and bootstraps no more")
		}
		o.Device, o.UpdatedAt = d.ID, s.Now().UTC()
		if err := overrides.Set(tx, d.ID, o); err != nil {
			return err
		}
		return s.note(ctx, tx, "lwm2m.override.set", d.ID, o.detail())
	})
}

// detail is what the audit trail says of an override.
func (o *Override) detail() map[string]string {
	m := map[string]string{}
	for name, text := range map[string]string{
		"region": o.Region, "credential": string(o.Mode), "bootstrap_account": string(o.Account), "binding": o.Binding,
	} {
		if text != "" {
			m[name] = text
		}
	}
	return m
}

// DeleteOverride has the policy count for a device again, from its next bootstrap on.
func (s *Service) DeleteOverride(ctx context.Context, device string) error {
	return s.DB.Update(ctx, func(tx store.Tx) error {
		d, err := s.Devices.FindIn(ctx, tx, identity.OrgOf(ctx), device)
		if err != nil {
			return err
		}
		found, err := overrides.Delete(tx, d.ID)
		if err != nil {
			return err
		}
		return s.note(ctx, tx, "lwm2m.override.delete", found.Device, nil)
	})
}
