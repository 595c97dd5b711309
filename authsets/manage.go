package authsets

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strconv"
	"time"

	"keystead/audit"
	"keystead/devices"
	"keystead/fault"
	"keystead/id"
	"keystead/identity"
	"keystead/page"
	"keystead/store"
)

// Filter says which devices a list holds. The values of a field are alternatives, the
// fields have to hold together.
type Filter struct {
	Statuses []Status
	IDs      []string
	Labels   map[string]string // all of them have to hold
}

func (f Filter) matches(d Device, labels map[string]string) bool {
	return (len(f.Statuses) == 0 || slices.Contains(f.Statuses, d.Status)) &&
		(len(f.IDs) == 0 || slices.Contains(f.IDs, d.ID)) && labelled(labels, f.Labels)
}

// labelled reports whether all of want are among labels.
func labelled(labels, want map[string]string) bool {
	for key, value := range want {
		if has, ok := labels[key]; !ok || has != value {
			return false
		}
	}
	return true
}

// maxIDs is how many ids a filter names.
const maxIDs = 500

// List returns up to size devices of the actor's organisation from the start-th on, sorted
// by status and then by id; those with a label: first those that have no device record yet, then
// those that have, each in the order they came.
func (s *Service) List(ctx context.Context, f Filter, start, size int) ([]Device, error) {
	switch {
	case len(f.Labels) > 0:
		return s.listLabelled(ctx, f, start, size)
	case len(f.IDs) > 0:
		return s.listIDs(ctx, f, start, size)
	}
	org := identity.OrgOf(ctx)
	if len(f.Statuses) == 0 {
		return table.From(ctx, s.DB, "status", store.TermOf(org), start, size)
	}
	statuses := slices.Compact(slices.Sorted(slices.Values(f.Statuses)))
	list := []Device{}
	for _, status := range statuses {
		n, err := s.count(ctx, org, status)
		if err != nil {
			return nil, err
		}
		if start >= n {
			start -= n
			continue
		}
		some, err := table.From(ctx, s.DB, "status", store.TermOf(org, string(status)), start, size-len(list))
		if err != nil {
			return nil, err
		}
		if list, start = append(list, some...), 0; len(list) == size {
			break
		}
	}
	return list, nil
}

func (s *Service) listIDs(ctx context.Context, f Filter, start, size int) ([]Device, error) {
	ids := slices.Compact(slices.Sorted(slices.Values(f.IDs)))
	if len(ids) > maxIDs {
		return nil, fault.New(fault.Invalid, "a filter names at most %d ids", maxIDs)
	}
	var list []Device
	err := s.DB.View(ctx, func(tx store.Tx) error {
		list = nil
		for _, deviceID := range ids {
			switch d, err := s.own(ctx, tx, deviceID); {
			case fault.Is(err, fault.NotFound):
			case err != nil:
				return err
			case len(f.Statuses) == 0 || slices.Contains(f.Statuses, d.Status):
				list = append(list, d)
			}
		}
		return nil
	})
	slices.SortFunc(list, func(a, b Device) int {
		return cmp.Or(cmp.Compare(a.Status, b.Status), cmp.Compare(a.ID, b.ID))
	})
	return list[min(start, len(list)):min(start+size, len(list))], err
}

// listLabelled is List by labels, which are here until a device has a record, and there
// from then on.
func (s *Service) listLabelled(ctx context.Context, f Filter, start, size int) ([]Device, error) {
	if len(f.IDs) > maxIDs {
		return nil, fault.New(fault.Invalid, "a filter names at most %d ids", maxIDs)
	}
	key := slices.Min(slices.Collect(maps.Keys(f.Labels)))
	list := []Device{}
	add := func(d Device, labels map[string]string) (full bool) {
		switch {
		case !f.matches(d, labels):
		case start > 0:
			start--
		default:
			list = append(list, d)
		}
		return len(list) == size
	}
	for d, err := range table.All(ctx, s.DB, "label", store.TermOf(identity.OrgOf(ctx), key, f.Labels[key])) {
		if err != nil {
			return nil, err
		}
		if add(d, d.Labels) {
			return list, nil
		}
	}
	for record, err := range s.Devices.Labelled(ctx, key, f.Labels[key]) {
		if err != nil {
			return nil, err
		}
		d, err := s.Get(ctx, record.ID)
		switch {
		case fault.Is(err, fault.NotFound): // it is there for other credentials
			continue
		case err != nil:
			return nil, err
		}
		if add(d, record.Labels) {
			return list, nil
		}
	}
	return list, nil
}

// Page returns a page of the devices of the actor's organisation with a status, in the order they
// came.
func (s *Service) Page(ctx context.Context, status Status, r page.Request) (p page.Page[Device], err error) {
	err = s.DB.View(ctx, func(tx store.Tx) error {
		p, err = table.PageBy(tx, "status", store.TermOf(identity.OrgOf(ctx), string(status)), r)
		return err
	})
	return p, err
}

// Count returns how many devices of the actor's organisation have a status, "" for all.
func (s *Service) Count(ctx context.Context, status Status) (n int, err error) {
	statuses := Statuses
	if status != "" {
		statuses = []Status{status}
	}
	for _, status := range statuses {
		some, err := s.count(ctx, identity.OrgOf(ctx), status)
		if err != nil {
			return 0, err
		}
		n += some
	}
	return n, nil
}

func (s *Service) count(ctx context.Context, org string, status Status) (n int, err error) {
	err = s.DB.View(ctx, func(tx store.Tx) error {
		n, err = table.Count(tx, "status", store.TermOf(org, string(status)))
		return err
	})
	return n, err
}

// Get returns a device of the actor's organisation and when it was last heard of, or a
// NotFound fault.
func (s *Service) Get(ctx context.Context, deviceID string) (d Device, err error) {
	err = s.DB.View(ctx, func(tx store.Tx) error {
		d, err = s.own(ctx, tx, deviceID)
		return err
	})
	return d, err
}

// LastSeen returns when each of the devices was last heard of; those never are left out.
func (s *Service) LastSeen(ctx context.Context, list []Device) (map[string]time.Time, error) {
	at := map[string]time.Time{}
	err := s.DB.View(ctx, func(tx store.Tx) error {
		for _, d := range list {
			t, err := s.checkIn(tx, d.ID)
			if err != nil {
				return err
			}
			if !t.IsZero() {
				at[d.ID] = t
			}
		}
		return nil
	})
	return at, err
}

// labels are those of a device, wherever they are.
func (s *Service) labels(ctx context.Context, tx store.Tx, d Device) (map[string]string, error) {
	if !d.Linked {
		return d.Labels, nil
	}
	record, err := s.Devices.GetIn(ctx, tx, d.ID)
	if fault.Is(err, fault.NotFound) {
		return nil, nil
	}
	return record.Labels, err
}

// Notes fills in the comments and labels of those devices that have a record, which holds them.
func (s *Service) Notes(ctx context.Context, list []Device) error {
	return s.DB.View(ctx, func(tx store.Tx) error {
		for i := range list {
			if !list[i].Linked {
				continue
			}
			record, err := s.Devices.GetIn(ctx, tx, list[i].ID)
			if fault.Is(err, fault.NotFound) {
				continue // it went since the list was read
			}
			if err != nil {
				return err
			}
			list[i].Comment, list[i].Labels = record.Comment, record.Labels
		}
		return nil
	})
}

// New is a device to preauthorise.
type New struct {
	Identity Canonical
	Key      []byte // PKIX, from ParseKey
	// Force adds the set to a device that is there already. Its sets stay as they are, but
	// for one with this very key, which becomes preauthorized from whatever it was.
	Force bool
	// Device is the id or an alias of a device that is there for other credentials, if the
	// set is to be one more of it.
	Device string
	// Again takes it for done if the identity has a preauthorized or accepted set with
	// this key.
	Again bool
}

// Preauthorise adds a set that is accepted when the device shows up with it. For an identity
// that is there already, and no Force, it is a Conflict, with the device that is in the way.
func (s *Service) Preauthorise(ctx context.Context, n New) (d Device, err error) {
	err = s.DB.Update(ctx, func(tx store.Tx) error {
		d, _, err = s.preauthoriseIn(ctx, tx, n)
		return err
	})
	return d, err
}

// preauthoriseIn is Preauthorise as part of tx. It reports whether there was anything to do.
func (s *Service) preauthoriseIn(ctx context.Context, tx store.Tx, n New) (Device, bool, error) {
	now, org := s.Now().UTC(), identity.OrgOf(ctx)
	d, err := table.GetBy(tx, "identity", store.TermOf(org, n.Identity.hash()))
	switch fresh := fault.Is(err, fault.NotFound); {
	case err != nil && !fresh:
		return d, false, err
	case fresh:
		d = Device{ID: id.New(now), Org: org, Identity: n.Identity, Status: NoAuth, CreatedAt: now}
		if n.Device != "" {
			if err := s.link(ctx, tx, &d, n.Device); err != nil {
				return d, false, err
			}
		}
	case n.Again && d.sure(n.Key):
		return d, false, nil
	case !n.Force:
		return d, false, ErrExists
	}
	i := d.withKey(n.Key)
	if i < 0 {
		if len(d.Sets) >= s.Config.MaxSets && !d.dropOldestPending() {
			return d, false, fault.New(fault.Invalid, "the device has %d authorization sets; dismiss one first", len(d.Sets))
		}
		d.Sets = append(d.Sets, Set{ID: id.New(now), Key: n.Key, Status: NoAuth, Epoch: 1, CreatedAt: now})
		i = len(d.Sets) - 1
	}
	if d.Sets[i].Status == Preauthorized {
		return d, false, nil
	}
	return d, true, s.move(ctx, tx, &d, i, Preauthorized)
}

// sure says that key is let in or will be.
func (d *Device) sure(key []byte) bool {
	i := d.withKey(key)
	return i >= 0 && (d.Sets[i].Status == Preauthorized || d.Sets[i].Status == Accepted)
}

// link makes d one with a device that is there for other credentials.
func (s *Service) link(ctx context.Context, tx store.Tx, d *Device, name string) error {
	found, err := s.Devices.FindIn(ctx, tx, d.Org, name)
	if err != nil {
		return err
	}
	if found.State == devices.Decommissioned {
		return fault.New(fault.Conflict, "the device is decommissioned")
	}
	switch has, err := table.Has(tx, found.ID); {
	case err != nil:
		return err
	case has:
		return fault.New(fault.Conflict, "the device has another identity already")
	}
	d.ID, d.Linked = found.ID, true
	return nil
}

// SetStatus brings a set to accepted, rejected or pending. A set that is there already stays
// as it is. It is Invalid for one that is preauthorized, ErrLimit where one accepted
// device more would be too many.
func (s *Service) SetStatus(ctx context.Context, deviceID, setID string, to Status) (d Device, err error) {
	if to != Accepted && to != Rejected && to != Pending {
		return d, fault.New(fault.Invalid, "incorrect device status")
	}
	err = s.DB.Update(ctx, func(tx store.Tx) error {
		var i int
		if d, i, err = s.ownSet(ctx, tx, deviceID, setID); err != nil {
			return err
		}
		switch d.Sets[i].Status {
		case to:
			return nil
		case Preauthorized:
			return fault.New(fault.Invalid, "dev auth: bad request")
		default:
			return s.move(ctx, tx, &d, i, to)
		}
	})
	return d, err
}

// ErrOtherDevice is Invalid, for a set of another device than the one that is named.
var ErrOtherDevice = fault.New(fault.Invalid, "dev auth: dev ID and auth ID mismatch")

// ownSet returns a device of the actor's organisation and the place of its set.
func (s *Service) ownSet(ctx context.Context, tx store.Tx, deviceID, setID string) (Device, int, error) {
	d, err := s.own(ctx, tx, deviceID)
	if err != nil {
		return d, -1, err
	}
	if i := d.set(setID); i >= 0 {
		return d, i, nil
	}
	other, err := table.GetBy(tx, "set", store.TermOf(setID))
	switch {
	case err == nil && other.Org == d.Org:
		return d, -1, ErrOtherDevice
	case err != nil && !fault.Is(err, fault.NotFound):
		return d, -1, err
	}
	return d, -1, ErrNoSet
}

// Status returns the status of a set of a device, or ErrNoSet.
func (s *Service) Status(ctx context.Context, deviceID, setID string) (Status, error) {
	d, err := s.Get(ctx, deviceID)
	if err != nil {
		return "", ErrNoSet
	}
	i := d.set(setID)
	if i < 0 {
		return "", ErrNoSet
	}
	return d.Sets[i].Status, nil
}

// Dismiss removes a set. A device whose only set was a preauthorized one, and which nobody
// has met, goes with it. It is NotFound if the device has no such set.
func (s *Service) Dismiss(ctx context.Context, deviceID, setID string) error {
	return s.DB.Update(ctx, func(tx store.Tx) error {
		d, err := s.own(ctx, tx, deviceID)
		if err != nil {
			return err
		}
		i := d.set(setID)
		if i < 0 {
			return ErrNoSet
		}
		return s.dismissIn(ctx, tx, d, i)
	})
}

func (s *Service) dismissIn(ctx context.Context, tx store.Tx, d Device, i int) error {
	was, gone := d.Status, d.Sets[i]
	if len(d.Sets) == 1 && gone.Status == Preauthorized && !d.Linked {
		return s.remove(ctx, tx, d)
	}
	d.Sets = slices.Delete(slices.Clone(d.Sets), i, i+1)
	if err := s.save(ctx, tx, &d); err != nil {
		return err
	}
	if gone.Status == Accepted {
		if err := s.Devices.Revoke(ctx, tx, d.ID, identity.AuthSet, gone.ID); err != nil {
			return err
		}
	}
	if err := s.note(ctx, tx, d, "auth_set.dismiss", gone.ID); err != nil {
		return err
	}
	return s.tell(ctx, tx, d, was)
}

// Decommission ends a device for ever, with every credential it has; its identity is
// free for a new one. It is NotFound if there is no such device.
func (s *Service) Decommission(ctx context.Context, deviceID string) error {
	return s.DB.Update(ctx, func(tx store.Tx) error {
		d, err := s.own(ctx, tx, deviceID)
		if err != nil {
			return err
		}
		if !d.Linked {
			return s.remove(ctx, tx, d)
		}
		_, err = s.Devices.DecommissionIn(ctx, tx, d.ID) // observe removes d
		return err
	})
}

// Revoke ends every token of the set that a token, by its id, is of. The set stays as it
// is: the device gets a new token by asking. It is NotFound if there is no such set.
func (s *Service) Revoke(ctx context.Context, tokenID string) error {
	return s.DB.Update(ctx, func(tx store.Tx) error {
		d, err := table.GetBy(tx, "set", store.TermOf(setOf(tokenID)))
		if err != nil {
			return err
		}
		if d, err = s.own(ctx, tx, d.ID); err != nil {
			return err
		}
		return s.revokeIn(ctx, tx, d, d.set(setOf(tokenID)))
	})
}

// RevokeDevice ends every token of a device.
func (s *Service) RevokeDevice(ctx context.Context, deviceID string) error {
	return s.DB.Update(ctx, func(tx store.Tx) error {
		d, err := s.own(ctx, tx, deviceID)
		if err != nil {
			return err
		}
		for i := range d.Sets {
			if err := s.revokeIn(ctx, tx, d, i); err != nil {
				return err
			}
		}
		return nil
	})
}

func (s *Service) revokeIn(ctx context.Context, tx store.Tx, d Device, i int) error {
	d.Sets[i].Epoch++
	if err := table.Set(tx, d.ID, d); err != nil {
		return err
	}
	tx.OnCommit(s.Devices.MoveEpoch) // what is remembered of the token is stale
	return s.note(ctx, tx, d, "auth_set.revoke_tokens", d.Sets[i].ID)
}

// Describe sets the comment and labels of a device; nil leaves them as they are.
func (s *Service) Describe(ctx context.Context, deviceID string, comment *string, labels *map[string]string) (d Device, err error) {
	err = s.DB.Update(ctx, func(tx store.Tx) error {
		if d, err = s.own(ctx, tx, deviceID); err != nil {
			return err
		}
		if d.Linked {
			_, err := s.Devices.UpdateIn(ctx, tx, deviceID, devices.Edit{Comment: comment, Labels: labels})
			return err
		}
		if comment != nil {
			d.Comment = *comment
		}
		if labels != nil {
			d.Labels = *labels
		}
		if err := devices.CheckNotes(d.Comment, d.Labels); err != nil {
			return err
		}
		if err := s.save(ctx, tx, &d); err != nil {
			return err
		}
		return s.note(ctx, tx, d, "auth_device.describe", d.ID)
	})
	return d, err
}

// Unlimited is the limit of an organisation that has none.
const Unlimited = -1

type limit struct {
	Devices int `cbor:"devices"`
}

var limits = store.NewTable[limit]("auth limit")

// Limit returns how many accepted devices the actor's organisation may have, Unlimited if
// nobody has set a limit.
func (s *Service) Limit(ctx context.Context) (n int, err error) {
	err = s.DB.View(ctx, func(tx store.Tx) error {
		n, err = s.limit(tx, identity.OrgOf(ctx))
		return err
	})
	return n, err
}

func (s *Service) limit(tx store.Tx, org string) (int, error) {
	l, err := limits.Get(tx, org)
	if fault.Is(err, fault.NotFound) {
		return Unlimited, nil
	}
	return l.Devices, err
}

// SetLimit sets how many accepted devices the actor's organisation may have. Those that are
// accepted stay so.
func (s *Service) SetLimit(ctx context.Context, n int) error {
	if n < Unlimited {
		return fault.New(fault.Invalid, "limit must be a number of devices, or -1 for no limit")
	}
	org := identity.OrgOf(ctx)
	return s.DB.Update(ctx, func(tx store.Tx) error {
		if err := limits.Set(tx, org, limit{n}); err != nil {
			return err
		}
		return s.Audit.Append(ctx, tx, audit.Entry{Action: "auth_limit.set", Target: "max_devices", Org: org, Detail: map[string]string{"limit": strconv.Itoa(n)}})
	})
}

// full reports whether d, which is to be accepted, would be one too many.
func (s *Service) full(tx store.Tx, d Device) (bool, error) {
	if d.Status == Accepted {
		return false, nil
	}
	most, err := s.limit(tx, d.Org)
	if err != nil || most == Unlimited {
		return false, err
	}
	n, err := table.Count(tx, "status", store.TermOf(d.Org, string(Accepted)))
	return n >= most, err
}

// Sweep removes devices that nobody has decided about in time.
func (s *Service) Sweep(ctx context.Context, now time.Time) error {
	if s.Config.PendingTTL <= 0 {
		return nil
	}
	old := now.Add(-s.Config.PendingTTL)
	var batch []string
	for d, err := range table.All(ctx, s.DB, "age", store.TermOf("junk")) {
		if err != nil {
			return err
		}
		if d.CreatedAt.After(old) { // the rest is younger still
			break
		}
		if batch = append(batch, d.ID); len(batch) == sweepBatch {
			if err := s.evict(ctx, batch); err != nil {
				return err
			}
			batch = batch[:0]
		}
	}
	return s.evict(ctx, batch)
}

// sweepBatch is how many devices one transaction of Sweep removes.
const sweepBatch = 200

func (s *Service) evict(ctx context.Context, ids []string) error {
	if len(ids) == 0 {
		return nil
	}
	return s.DB.Update(ctx, func(tx store.Tx) error {
		for _, deviceID := range ids {
			d, err := table.Get(tx, deviceID)
			if fault.Is(err, fault.NotFound) || err == nil && !d.junk() {
				continue // somebody has, meanwhile
			}
			if err != nil {
				return err
			}
			if err := s.remove(ctx, tx, d); err != nil {
				return err
			}
		}
		return nil
	})
}
