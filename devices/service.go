package devices

import (
	"context"
	"iter"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"keystead/audit"
	"keystead/fault"
	"keystead/id"
	"keystead/identity"
	"keystead/page"
	"keystead/store"
)

// Service keeps the device records.
type Service struct {
	DB    store.Engine
	Audit *audit.Log
	Now   func() time.Time

	epoch     atomic.Uint64
	mu        sync.Mutex // guards the two lists, which only grow
	observers []func(context.Context, store.Tx, Change) error
	listeners []func(Change)
}

// New is what a device is created from. Org is the actor's if empty, Name the
// first alias or the id.
type New struct {
	ID       string // a UUID chosen by the caller; made if empty
	Org      string
	Name     string
	Aliases  []Alias
	Labels   map[string]string
	Metadata map[string]string
	Comment  string
	Profile  string
	// Credential is the first that it has, as if attached by AttachTold; nil for none.
	Credential *Credential
}

// Create adds a device. It is Invalid if a value is over its limits, Conflict
// if an alias names another device of the organisation.
func (s *Service) Create(ctx context.Context, n New) (d Device, err error) {
	err = s.DB.Update(ctx, func(tx store.Tx) error {
		d, err = s.CreateIn(ctx, tx, n)
		return err
	})
	return d, err
}

// CreateIn is Create as part of tx.
func (s *Service) CreateIn(ctx context.Context, tx store.Tx, n New) (Device, error) {
	now := s.Now().UTC()
	d := Device{
		ID: id.New(now), Org: n.Org, Name: n.Name, State: Active, Aliases: n.Aliases, Labels: maps.Clone(n.Labels),
		Metadata: maps.Clone(n.Metadata), Comment: n.Comment, Profile: n.Profile, CreatedAt: now, UpdatedAt: now,
	}
	if n.ID != "" {
		d.ID = n.ID
	}
	if d.Org == "" {
		d.Org = identity.OrgOf(ctx)
	}
	if d.Name == "" {
		d.Name = d.ID
		if len(d.Aliases) > 0 {
			d.Name = d.Aliases[0].Value
		}
	}
	if n.Credential != nil {
		d.Credentials = []Credential{n.Credential.filled(now)}
	}
	if err := d.check(); err != nil {
		return d, err
	}
	if err := s.aliasesFree(tx, d); err != nil {
		return d, err
	}
	if n.ID != "" {
		if err := s.idFree(tx, d); err != nil {
			return d, err
		}
	}
	if err := table.Insert(tx, d.ID, d); err != nil {
		return d, err
	}
	if err := s.changed(ctx, tx, Change{What: Created, Device: d}, nil); err != nil || n.Credential == nil {
		return d, err
	}
	return d, s.tell(ctx, tx, Change{What: Attached, Device: d, Credential: &d.Credentials[0]})
}

// aliasesFree refuses an alias that is the id of a device: whoever is looked up
// by id must not be found to be another.
func (s *Service) aliasesFree(tx store.Tx, d Device) error {
	for _, a := range d.Aliases {
		if !id.Valid(a.Value) || a.Value == d.ID {
			continue
		}
		taken, err := table.Has(tx, a.Value)
		if err != nil {
			return err
		}
		if taken {
			return fault.New(fault.Conflict, "a device with this alias exists already")
		}
	}
	return nil
}

// idFree refuses a chosen id that is no UUID, or is another device's alias.
func (s *Service) idFree(tx store.Tx, d Device) error {
	if !id.Valid(d.ID) {
		return fault.InvalidFields(fault.Field{Name: "id", Message: "must be a UUID in lower case"})
	}
	switch _, err := table.GetBy(tx, "alias", store.TermOf(d.Org, d.ID)); {
	case err == nil:
		return fault.New(fault.Conflict, "a device with this id exists already")
	case fault.Is(err, fault.NotFound):
		return nil
	default:
		return err
	}
}

// Get returns the device with the given id in the actor's organisation, or a
// NotFound fault.
func (s *Service) Get(ctx context.Context, deviceID string) (d Device, err error) {
	err = s.DB.View(ctx, func(tx store.Tx) error {
		d, err = s.GetIn(ctx, tx, deviceID)
		return err
	})
	return d, err
}

// GetIn is Get as part of tx. The system actor sees every organisation's.
func (s *Service) GetIn(ctx context.Context, tx store.Tx, deviceID string) (Device, error) {
	d, err := table.Get(tx, deviceID)
	if err != nil {
		return Device{}, err
	}
	if a := identity.FromContext(ctx); a.Kind != identity.System && a.Org != d.Org {
		return Device{}, fault.New(fault.NotFound, "no such device")
	}
	return d, nil
}

// Find returns the device of the actor's organisation that name, an id or an
// alias, names, or a NotFound fault.
func (s *Service) Find(ctx context.Context, name string) (d Device, err error) {
	err = s.DB.View(ctx, func(tx store.Tx) error {
		d, err = s.FindIn(ctx, tx, identity.OrgOf(ctx), name)
		return err
	})
	return d, err
}

// FindIn is Find in the given organisation, as part of tx.
func (s *Service) FindIn(_ context.Context, tx store.Tx, org, name string) (Device, error) {
	if id.Valid(name) {
		if d, err := table.Get(tx, name); err == nil && d.Org == org {
			return d, nil
		}
	}
	return table.GetBy(tx, "alias", store.TermOf(org, name))
}

// Filter says which devices a list holds. At most one of Renewal, State and Label
// narrows by index; Alias finds one. Name is looked for in what the others leave,
// a bounded number of devices at a time: pages of it may be short, or empty, and
// have a next one all the same.
type Filter struct {
	State State
	Name  string // a part of the name or of an alias, whatever the case
	Alias string
	Label [2]string // key and value; both empty for any
	// Renewal is that of the certificate it has for longest.
	Renewal string
}

// List returns a page of the devices of the actor's organisation, in the order
// they were created.
func (s *Service) List(ctx context.Context, f Filter, r page.Request) (p page.Page[Device], err error) {
	org := identity.OrgOf(ctx)
	err = s.DB.View(ctx, func(tx store.Tx) error {
		switch {
		case f.Alias != "":
			p, err = s.one(ctx, tx, org, f)
		case f.Renewal != "":
			p, err = table.PageIf(tx, "renewal", store.TermOf(org, f.Renewal), r, f.matches)
		case f.Label[0] != "":
			p, err = table.PageIf(tx, "label", store.TermOf(org, f.Label[0], f.Label[1]), r, f.matches)
		case f.State != "" && f.Name != "":
			p, err = table.PageIf(tx, "state", store.TermOf(org, string(f.State)), r, f.matches)
		case f.State != "":
			p, err = table.PageBy(tx, "state", store.TermOf(org, string(f.State)), r)
		case f.Name != "":
			p, err = table.PageIf(tx, "org", store.TermOf(org), r, f.matches)
		default:
			p, err = table.PageBy(tx, "org", store.TermOf(org), r)
		}
		return err
	})
	return p, err
}

// Labelled yields the devices of the actor's organisation with a label, in the order
// they were created.
func (s *Service) Labelled(ctx context.Context, key, value string) iter.Seq2[Device, error] {
	return table.All(ctx, s.DB, "label", store.TermOf(identity.OrgOf(ctx), key, value))
}

func (s *Service) one(ctx context.Context, tx store.Tx, org string, f Filter) (page.Page[Device], error) {
	p := page.Page[Device]{Items: []Device{}}
	switch d, err := s.FindIn(ctx, tx, org, f.Alias); {
	case fault.Is(err, fault.NotFound):
	case err != nil:
		return p, err
	case f.matches(d):
		p.Items = append(p.Items, d)
	}
	return p, nil
}

func (f Filter) matches(d Device) bool {
	if f.State != "" && d.State != f.State || f.Renewal != "" && d.Renewal() != f.Renewal {
		return false
	}
	if value, has := d.Labels[f.Label[0]]; f.Label[0] != "" && (!has || value != f.Label[1]) {
		return false
	}
	part := strings.ToLower(f.Name)
	return strings.Contains(strings.ToLower(d.Name), part) ||
		slices.ContainsFunc(d.Aliases, func(a Alias) bool { return strings.Contains(strings.ToLower(a.Value), part) })
}

// Counts returns how many devices of the actor's organisation are in each state.
func (s *Service) Counts(ctx context.Context) (map[State]int, error) {
	counts := map[State]int{}
	err := s.DB.View(ctx, func(tx store.Tx) error {
		for _, state := range []State{Active, Suspended, Decommissioned} {
			n, err := table.Count(tx, "state", store.TermOf(identity.OrgOf(ctx), string(state)))
			if err != nil {
				return err
			}
			counts[state] = n
		}
		return nil
	})
	return counts, err
}

// CountIn returns how many devices an organisation has that are not decommissioned.
func (s *Service) CountIn(tx store.Tx, org string) (int, error) {
	active, err := table.Count(tx, "state", store.TermOf(org, string(Active)))
	if err != nil {
		return 0, err
	}
	suspended, err := table.Count(tx, "state", store.TermOf(org, string(Suspended)))
	return active + suspended, err
}

// Edit is a change of what people say of a device; nil leaves a value as it is.
type Edit struct {
	Name     *string
	Comment  *string
	Labels   *map[string]string
	Metadata *map[string]string
	Aliases  *[]Alias
}

// Update changes what people say of a device. It is NotFound for a device of
// another organisation, Invalid for values over their limits, Conflict for an
// alias that is taken.
func (s *Service) Update(ctx context.Context, deviceID string, e Edit) (d Device, err error) {
	err = s.DB.Update(ctx, func(tx store.Tx) error {
		d, err = s.UpdateIn(ctx, tx, deviceID, e)
		return err
	})
	return d, err
}

// UpdateIn is Update as part of tx.
func (s *Service) UpdateIn(ctx context.Context, tx store.Tx, deviceID string, e Edit) (Device, error) {
	detail := map[string]string{}
	return s.change(ctx, tx, deviceID, Updated, detail, func(d *Device) error {
		set(&d.Name, e.Name, "name", detail)
		set(&d.Comment, e.Comment, "comment", detail)
		if e.Labels != nil {
			d.Labels, detail["labels"] = maps.Clone(*e.Labels), "changed"
		}
		if e.Metadata != nil {
			d.Metadata, detail["metadata"] = maps.Clone(*e.Metadata), "changed"
		}
		if e.Aliases != nil {
			d.Aliases, detail["aliases"] = *e.Aliases, "changed"
		}
		if err := d.check(); err != nil {
			return err
		}
		return s.aliasesFree(tx, *d)
	})
}

func set(value, to *string, name string, detail map[string]string) {
	if to != nil && *to != *value {
		*value, detail[name] = *to, *to
	}
}

// AddAliasIn gives a device another name as part of tx, if it has it not yet.
// It is a Conflict if the name is another device's.
func (s *Service) AddAliasIn(ctx context.Context, tx store.Tx, deviceID string, a Alias) (Device, error) {
	d, err := s.GetIn(ctx, tx, deviceID)
	if err != nil {
		return d, err
	}
	for _, has := range d.Aliases {
		if has.Value == a.Value {
			return d, nil
		}
	}
	aliases := append(append([]Alias{}, d.Aliases...), a)
	return s.UpdateIn(ctx, tx, deviceID, Edit{Aliases: &aliases})
}
