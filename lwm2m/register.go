package lwm2m

import (
	"context"
	"net/netip"
	"time"

	"keystead/audit"
	"keystead/coap"
	"keystead/devices"
	"keystead/fault"
	"keystead/identity"
	"keystead/psk"
	"keystead/store"
)

// maxObjects is the longest list of objects of a registration, in bytes.
const maxObjects = 16 << 10

// defaultLifetime is how long a registration lasts whose client does not say.
const defaultLifetime = 86400

// Registration is a device that has registered, until its lifetime is over.
type Registration struct {
	Device       string                  `cbor:"device" json:"device"`
	Org          string                  `cbor:"org" json:"organisation"`
	Location     string                  `cbor:"location" json:"location"` // its client id; /rd/{location}
	Endpoint     string                  `cbor:"ep" json:"endpoint"`
	Lifetime     int64                   `cbor:"lt" json:"lifetime"`
	Version      string                  `cbor:"version" json:"version"`
	Binding      string                  `cbor:"binding,omitempty" json:"binding"`
	Objects      string                  `cbor:"objects" json:"objects"` // as the client lists them, in the link format
	Remote       netip.AddrPort          `cbor:"remote" json:"remote"`
	Credential   identity.CredentialKind `cbor:"kind" json:"credential"`
	CredentialID string                  `cbor:"cred" json:"credential_id"`
	RegisteredAt time.Time               `cbor:"registered" json:"registered_at"`
	UpdatedAt    time.Time               `cbor:"updated" json:"updated_at"`
	ExpiresAt    time.Time               `cbor:"expires" json:"expires_at"`
}

var registrations = store.NewTable("client",
	store.Index[Registration]{Name: "org", Counted: true, Terms: func(r Registration) []store.Term { return store.Terms(r.Org) }},
)

// register answers a Register.
func (s *Service) register(ctx context.Context, r *coap.Request) (coap.Response, error) {
	if f, ok := r.ContentFormat(); ok && f != coap.LinkFormat {
		return coap.Response{}, coap.Errorf(coap.UnsupportedContentFormat, "register with the link format, 40")
	}
	q, err := ParseQuery(r.Options)
	if err != nil {
		return coap.Response{}, err
	}
	d, err := s.Devices.Get(ctx, r.Actor.ID)
	if err != nil {
		return coap.Response{}, err
	}
	name, err := endpoint(d, r.Actor, q.Endpoint)
	if err != nil {
		return coap.Response{}, err
	}
	if _, err := ParseDiscover(r.Body); err != nil {
		return coap.Response{}, coap.Errorf(coap.BadRequest, "the body is not in the link format")
	}
	now := s.Now().UTC()
	v := Registration{
		Device: d.ID, Org: d.Org, Location: ClientID(d), Endpoint: name, Lifetime: q.Lifetime, Version: q.Version, Binding: q.Binding,
		Objects: string(r.Body), Remote: r.Session.Remote(), Credential: r.Actor.Credential.Kind, CredentialID: r.Actor.Credential.ID,
		RegisteredAt: now, UpdatedAt: now,
	}
	if v.Lifetime == 0 {
		v.Lifetime = defaultLifetime
	}
	v.ExpiresAt = now.Add(time.Duration(v.Lifetime) * time.Second)
	err = s.DB.Update(ctx, func(tx store.Tx) error {
		if err := registrations.Set(tx, d.ID, v); err != nil {
			return err
		}
		if err := s.emit(ctx, tx, v.happened(ClientConnected)); err != nil {
			return err
		}
		return s.Audit.Append(ctx, tx, audit.Entry{Action: "lwm2m.register", Target: v.Location, Device: d.ID, Org: d.Org, Detail: map[string]string{"endpoint": v.Endpoint}})
	})
	if err != nil {
		return coap.Response{}, err
	}
	if err := s.used(ctx, r.Actor); err != nil {
		return coap.Response{}, err
	}
	options := coap.Options{}.Add(coap.LocationPath, []byte("rd")).Add(coap.LocationPath, []byte(v.Location))
	return coap.Response{Code: coap.Created, Options: options}, nil
}

// own returns the registration the path names, which must be the caller's.
func (s *Service) own(tx store.Tx, r *coap.Request) (Registration, error) {
	location := r.Var("id")
	if _, ok := psk.Identity(location).GUID(); !ok {
		return Registration{}, coap.Errorf(coap.BadRequest, "this is no registration's id")
	}
	v, err := registrations.Get(tx, r.Actor.ID)
	if err != nil {
		return v, err
	}
	if v.Location != location || !s.Now().Before(v.ExpiresAt) {
		return v, fault.New(fault.NotFound, "no such registration; register again")
	}
	return v, nil
}

// update answers an Update.
func (s *Service) update(ctx context.Context, r *coap.Request) (coap.Response, error) {
	q, err := ParseQuery(r.Options)
	if err != nil {
		return coap.Response{}, err
	}
	if _, err := ParseDiscover(r.Body); err != nil {
		return coap.Response{}, coap.Errorf(coap.BadRequest, "the body is not in the link format")
	}
	err = s.DB.Update(ctx, func(tx store.Tx) error {
		v, err := s.own(tx, r)
		if err != nil {
			return err
		}
		if v.UpdatedAt, v.Remote = s.Now().UTC(), r.Session.Remote(); q.Lifetime > 0 {
			v.Lifetime = q.Lifetime
		}
		if q.Binding != "" {
			v.Binding = q.Binding
		}
		if len(r.Body) > 0 {
			v.Objects = string(r.Body)
		}
		v.ExpiresAt = v.UpdatedAt.Add(time.Duration(v.Lifetime) * time.Second)
		if err := registrations.Set(tx, v.Device, v); err != nil {
			return err
		}
		return s.emit(ctx, tx, v.happened(ClientUpdated))
	})
	return coap.Response{Code: coap.Changed}, err
}

// deregister answers a De-register.
func (s *Service) deregister(ctx context.Context, r *coap.Request) (coap.Response, error) {
	err := s.DB.Update(ctx, func(tx store.Tx) error {
		v, err := s.own(tx, r)
		if err != nil {
			return err
		}
		if _, err = registrations.Delete(tx, v.Device); err != nil {
			return err
		}
		if err := s.emit(ctx, tx, v.happened(ClientDisconnected)); err != nil {
			return err
		}
		return s.Audit.Append(ctx, tx, audit.Entry{Action: "lwm2m.deregister", Target: v.Location, Device: v.Device, Org: v.Org})
	})
	return coap.Response{Code: coap.Deleted}, err
}

// Clients returns up to size registrations of the actor's organisation from the
// start-th on, and how many there are in all.
func (s *Service) Clients(ctx context.Context, start, size int) (list []Registration, total int, err error) {
	org := store.TermOf(identity.OrgOf(ctx))
	err = s.DB.View(ctx, func(tx store.Tx) error {
		total, err = registrations.Count(tx, "org", org)
		return err
	})
	if err != nil || start >= total {
		return nil, total, err
	}
	list, err = registrations.From(ctx, s.DB, "org", org, start, size)
	return list, total, err
}

// Client returns the registration of the client with an id, which is of the
// actor's organisation, or a NotFound fault.
func (s *Service) Client(ctx context.Context, clientID string) (v Registration, err error) {
	return v, s.DB.View(ctx, func(tx store.Tx) error {
		d, err := s.clientIn(ctx, tx, clientID)
		if err != nil {
			return err
		}
		v, err = s.RegistrationIn(tx, d)
		return err
	})
}

// Known returns a NotFound fault unless a device of the actor's organisation has
// this client id, registered or not.
func (s *Service) Known(ctx context.Context, clientID string) error {
	return s.DB.View(ctx, func(tx store.Tx) error {
		_, err := s.clientIn(ctx, tx, clientID)
		return err
	})
}

// clientIn finds the device with a client id.
func (s *Service) clientIn(ctx context.Context, tx store.Tx, clientID string) (devices.Device, error) {
	guid, ok := psk.Identity(clientID).GUID()
	if !ok {
		return devices.Device{}, fault.New(fault.NotFound, "no such client")
	}
	org := identity.OrgOf(ctx)
	d, err := s.Devices.FindIn(ctx, tx, org, clientID)
	if fault.Is(err, fault.NotFound) {
		d, err = s.Devices.FindIn(ctx, tx, org, guid)
	}
	if fault.Is(err, fault.NotFound) {
		err = fault.New(fault.NotFound, "no such client")
	}
	return d, err
}

// Registration returns the registration of a device of the actor's organisation,
// or a NotFound fault.
func (s *Service) Registration(ctx context.Context, device string) (v Registration, err error) {
	return v, s.DB.View(ctx, func(tx store.Tx) error {
		d, err := s.Devices.FindIn(ctx, tx, identity.OrgOf(ctx), device)
		if err != nil {
			return err
		}
		v, err = s.RegistrationIn(tx, d)
		return err
	})
}

// RegistrationIn is Registration of a device that was read in tx.
func (s *Service) RegistrationIn(tx store.Tx, d devices.Device) (Registration, error) {
	v, err := registrations.Get(tx, d.ID)
	if err == nil && !s.Now().Before(v.ExpiresAt) {
		err = fault.New(fault.NotFound, "no such client")
	}
	return v, err
}

// Ban drops the registration of a client and suspends its device: it is refused
// everywhere until the device is resumed.
func (s *Service) Ban(ctx context.Context, clientID string) error {
	v, err := s.Client(ctx, clientID)
	if err != nil {
		return err
	}
	return s.DB.Update(ctx, func(tx store.Tx) error {
		if _, err := registrations.Delete(tx, v.Device); err != nil {
			return err
		}
		if err := s.emit(ctx, tx, v.happened(ClientDisconnected)); err != nil {
			return err
		}
		_, err := s.Devices.SuspendIn(ctx, tx, v.Device)
		return err
	})
}

func (s *Service) sweepRegistrations(ctx context.Context, now time.Time) error {
	var over []string
	for v, err := range registrations.All(ctx, s.DB, "", "") {
		if err != nil {
			return err
		}
		if !now.Before(v.ExpiresAt) && len(over) < store.MaxScan {
			over = append(over, v.Device)
		}
	}
	if len(over) == 0 {
		return nil
	}
	return s.DB.Update(ctx, func(tx store.Tx) error {
		for _, device := range over {
			v, err := registrations.Get(tx, device)
			if err != nil || now.Before(v.ExpiresAt) {
				continue // gone, or renewed meanwhile
			}
			if _, err := registrations.Delete(tx, device); err != nil {
				return err
			}
			if err := s.emit(ctx, tx, v.happened(ClientConnectionExpired)); err != nil {
				return err
			}
		}
		return nil
	})
}
