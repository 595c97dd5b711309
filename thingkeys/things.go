package thingkeys

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"strings"
	"time"

	"keystead/audit"
	"keystead/devices"
	"keystead/fault"
	"keystead/id"
	"keystead/identity"
	"keystead/page"
	"keystead/seal"
	"keystead/store"
)

// New is what a thing is made from. The zero values of ID and Key have them made.
type New struct {
	ID       string
	Name     string
	Type     Type
	Group    string
	Key      seal.Secret
	External seal.Secret
	Metadata json.RawMessage
}

// Created is a new thing with its keys, which are in no list.
type Created struct {
	Thing
	Key      seal.Secret
	External seal.Secret
}

// MaxBatch is how many things one call makes, changes or removes.
const MaxBatch = 500

const maxMetadata = 16 << 10

func (n New) check() error {
	bad := checkMetadata(n.Metadata)
	if n.Name == "" || len(n.Name) > devices.MaxName {
		bad = append(bad, fault.Field{Name: "name", Message: "invalid name size: 1 to 256 bytes"})
	}
	if !validType(n.Type) {
		bad = append(bad, fault.Field{Name: "type", Message: "missing or invalid thing type: device, sensor, actuator, controller or gateway"})
	}
	if n.ID != "" && !id.Valid(n.ID) {
		bad = append(bad, fault.Field{Name: "id", Message: "invalid id format provided: a UUID in lower case"})
	}
	if n.Key != nil {
		bad = append(bad, checkKey(Internal, n.Key, "key")...)
	}
	if n.External != nil {
		bad = append(bad, checkKey(External, n.External, "external_key")...)
	}
	if len(n.Group) > devices.MaxName {
		bad = append(bad, fault.Field{Name: "group_id", Message: "at most 256 bytes"})
	}
	return fault.InvalidFields(bad...)
}

func checkMetadata(m json.RawMessage) []fault.Field {
	if len(m) > maxMetadata || len(m) > 0 && (bytes.TrimSpace(m)[0] != '{' || !json.Valid(m)) {
		return []fault.Field{{Name: "metadata", Message: "must be a JSON object of at most 16 KiB"}}
	}
	return nil
}

func checkBatch(n int) error {
	if n == 0 {
		return fault.New(fault.Invalid, "empty list provided: name at least one thing")
	}
	if n > MaxBatch {
		return fault.New(fault.TooLarge, "at most %d things at once", MaxBatch)
	}
	return nil
}

// Create makes things in the actor's organisation, all or none. It is Conflict
// for an id or key that is taken, in any organisation.
func (s *Service) Create(ctx context.Context, list []New) ([]Created, error) {
	if err := checkBatch(len(list)); err != nil {
		return nil, err
	}
	for i, n := range list {
		if err := n.check(); err != nil {
			return nil, fault.Wrap(fault.Invalid, err, "thing %d: %s", i+1, fault.Message(err))
		}
		if n.Key == nil {
			list[i].Key = randomKey()
		}
	}
	var made []Created
	err := s.DB.Update(ctx, func(tx store.Tx) error {
		made = make([]Created, 0, len(list))
		for _, n := range list {
			c, err := s.create(ctx, tx, n)
			if err != nil {
				return err
			}
			made = append(made, c)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return made, nil
}

func (s *Service) create(ctx context.Context, tx store.Tx, n New) (Created, error) {
	d, err := s.Devices.CreateIn(ctx, tx, devices.New{ID: n.ID, Name: n.Name})
	if fault.Is(err, fault.Conflict) {
		return Created{}, errTaken
	}
	if err != nil {
		return Created{}, err
	}
	t := Thing{ID: d.ID, Org: d.Org, Name: d.Name, Type: n.Type, Group: n.Group, Metadata: n.Metadata, CreatedAt: d.CreatedAt, UpdatedAt: d.UpdatedAt}
	if err := thingTable.Insert(tx, t.ID, t); err != nil {
		return Created{}, err
	}
	if err := s.attach(ctx, tx, s.newKey(t.ID, Internal, n.Key)); err != nil {
		return Created{}, err
	}
	if n.External != nil {
		if err := s.attach(ctx, tx, s.newKey(t.ID, External, n.External)); err != nil {
			return Created{}, err
		}
	}
	return Created{Thing: t, Key: n.Key, External: n.External}, nil
}

// Get returns a thing of the actor's organisation, or a NotFound fault.
func (s *Service) Get(ctx context.Context, thingID string) (t Thing, err error) {
	err = s.DB.View(ctx, func(tx store.Tx) error {
		t, err = get(ctx, tx, thingID)
		return err
	})
	return t, err
}

func get(ctx context.Context, tx store.Tx, thingID string) (Thing, error) {
	t, err := thingTable.Get(tx, thingID)
	if err != nil {
		return Thing{}, err
	}
	if a := identity.FromContext(ctx); a.Kind != identity.System && a.Org != t.Org {
		return Thing{}, fault.New(fault.NotFound, "no such thing")
	}
	return t, nil
}

// Filter narrows a list.
type Filter struct {
	Name     string            // part of the name
	Type     Type              // "" for any
	Metadata map[string]string // each value, as text, that the metadata must have
}

func (f Filter) keeps(t Thing) bool {
	if f.Type != "" && t.Type != f.Type || !strings.Contains(strings.ToLower(t.Name), strings.ToLower(f.Name)) {
		return false
	}
	if len(f.Metadata) == 0 {
		return true
	}
	var has map[string]any
	if json.Unmarshal(t.Metadata, &has) != nil {
		return false
	}
	for name, want := range f.Metadata {
		if fmt.Sprint(has[name]) != want {
			return false
		}
	}
	return true
}

// none reports whether f keeps everything.
func (f Filter) none() bool { return f.Name == "" && f.Type == "" && len(f.Metadata) == 0 }

// Window is the part of a list that is wanted. Newest first reads the list to its
// end, and is for lists of MaxWindow things at most.
type Window struct {
	Offset, Limit int
	Newest        bool
}

// MaxWindow is how far into a list a Window reaches; beyond it there is Page.
const MaxWindow = 10_000

// List returns the part of the things of the actor's organisation that w says,
// and how many match in all.
func (s *Service) List(ctx context.Context, f Filter, w Window) ([]Thing, int, error) {
	org := store.TermOf(identity.OrgOf(ctx))
	if f.none() && !w.Newest {
		return s.listAll(ctx, org, w)
	}
	var list []Thing
	for t, err := range thingTable.All(ctx, s.DB, "org", org) {
		if err != nil {
			return nil, 0, err
		}
		if !f.keeps(t) {
			continue
		}
		if list = append(list, t); len(list) > MaxWindow {
			return nil, 0, fault.New(fault.TooLarge, "more than %d things match; narrow the search, or read the list in ascending order", MaxWindow)
		}
	}
	total := len(list)
	if w.Newest {
		for i, j := 0, total-1; i < j; i, j = i+1, j-1 {
			list[i], list[j] = list[j], list[i]
		}
	}
	from := min(w.Offset, total)
	return list[from:min(from+w.Limit, total)], total, nil
}

// listAll reads no further than it has to.
func (s *Service) listAll(ctx context.Context, org store.Term, w Window) ([]Thing, int, error) {
	total := 0
	err := s.DB.View(ctx, func(tx store.Tx) (err error) {
		total, err = thingTable.Count(tx, "org", org)
		return err
	})
	list := []Thing{}
	skip := w.Offset
	for t, err2 := range thingTable.All(ctx, s.DB, "org", org) {
		if err2 != nil {
			return nil, 0, err2
		}
		if skip--; skip >= 0 {
			continue
		}
		if len(list) == w.Limit {
			break
		}
		list = append(list, t)
	}
	return list, total, err
}

// Page returns a page of the things of the actor's organisation, oldest first.
func (s *Service) Page(ctx context.Context, f Filter, r page.Request) (p page.Page[Thing], err error) {
	err = s.DB.View(ctx, func(tx store.Tx) error {
		p, err = thingTable.PageIf(tx, "org", store.TermOf(identity.OrgOf(ctx)), r, f.keeps)
		return err
	})
	return p, err
}

// Edit is a change of a thing; nil leaves a value as it is.
type Edit struct {
	Name     *string
	Type     *Type
	Group    *string
	Metadata *json.RawMessage
	Merge    json.RawMessage // members to set in the metadata, or to remove where null
	Key      seal.Secret     // a new internal key; the old one is dead
}

// Update changes a thing. It is Conflict for a key that is taken.
func (s *Service) Update(ctx context.Context, thingID string, e Edit) (t Thing, err error) {
	if err := e.check(); err != nil {
		return t, err
	}
	err = s.DB.Update(ctx, func(tx store.Tx) error {
		t, err = s.update(ctx, tx, thingID, e)
		return err
	})
	return t, err
}

// UpdateAll changes several things, all or none.
func (s *Service) UpdateAll(ctx context.Context, edits map[string]Edit) error {
	if err := checkBatch(len(edits)); err != nil {
		return err
	}
	for _, e := range edits {
		if err := e.check(); err != nil {
			return err
		}
	}
	return s.DB.Update(ctx, func(tx store.Tx) error {
		for thingID, e := range edits {
			if _, err := s.update(ctx, tx, thingID, e); err != nil {
				return err
			}
		}
		return nil
	})
}

func (e Edit) check() error {
	var bad []fault.Field
	if e.Type != nil && !validType(*e.Type) {
		bad = append(bad, fault.Field{Name: "type", Message: "missing or invalid thing type: device, sensor, actuator, controller or gateway"})
	}
	if e.Name != nil && *e.Name == "" {
		bad = append(bad, fault.Field{Name: "name", Message: "invalid name size: 1 to 256 bytes"})
	}
	if e.Metadata != nil {
		bad = append(bad, checkMetadata(*e.Metadata)...)
	}
	if e.Merge != nil {
		bad = append(bad, checkMetadata(e.Merge)...)
	}
	if e.Key != nil {
		bad = append(bad, checkKey(Internal, e.Key, "key")...)
	}
	return fault.InvalidFields(bad...)
}

func (s *Service) update(ctx context.Context, tx store.Tx, thingID string, e Edit) (Thing, error) {
	if _, err := get(ctx, tx, thingID); err != nil {
		return Thing{}, err
	}
	if e.Key != nil {
		if err := s.replace(ctx, tx, thingID, Internal, e.Key, 0); err != nil {
			return Thing{}, err
		}
	}
	if e.Name != nil {
		if _, err := s.Devices.UpdateIn(ctx, tx, thingID, devices.Edit{Name: e.Name}); err != nil {
			return Thing{}, err
		}
	}
	t, err := thingTable.Update(tx, thingID, func(t *Thing) error {
		if e.Type != nil {
			t.Type = *e.Type
		}
		if e.Group != nil {
			t.Group = *e.Group
		}
		if e.Metadata != nil {
			t.Metadata = *e.Metadata
		}
		t.UpdatedAt = s.Now().UTC()
		return t.merge(e.Merge)
	})
	if err != nil {
		return t, err
	}
	return t, s.note(ctx, tx, "thing.update", t)
}

// merge sets members of the metadata (RFC 7396, one level deep).
func (t *Thing) merge(patch json.RawMessage) error {
	if patch == nil {
		return nil
	}
	has, set := map[string]json.RawMessage{}, map[string]json.RawMessage{}
	if len(t.Metadata) > 0 {
		if err := json.Unmarshal(t.Metadata, &has); err != nil {
			return fmt.Errorf("thingkeys: metadata of %s: %w", t.ID, err)
		}
	}
	if err := json.Unmarshal(patch, &set); err != nil {
		return fault.New(fault.Invalid, "metadata must be a JSON object")
	}
	maps.Copy(has, set)
	maps.DeleteFunc(has, func(_ string, v json.RawMessage) bool { return string(v) == "null" })
	b, err := json.Marshal(has)
	if err != nil {
		return fmt.Errorf("thingkeys: metadata of %s: %w", t.ID, err)
	}
	t.Metadata = b
	return fault.InvalidFields(checkMetadata(b)...)
}

func (s *Service) note(ctx context.Context, tx store.Tx, action string, t Thing) error {
	return s.Audit.Append(ctx, tx, audit.Entry{Action: action, Target: t.ID, Device: t.ID, Org: t.Org})
}

// Delete ends things and the devices they are, all or none.
func (s *Service) Delete(ctx context.Context, things ...string) error {
	if err := checkBatch(len(things)); err != nil {
		return err
	}
	return s.DB.Update(ctx, func(tx store.Tx) error {
		for _, thingID := range things {
			if _, err := get(ctx, tx, thingID); err != nil {
				return err
			}
			if _, err := s.Devices.DecommissionIn(ctx, tx, thingID); err != nil {
				return err
			}
		}
		return nil
	})
}

// MaxGrace is how long an old key may work beside its successor.
const MaxGrace = 24 * time.Hour

// Rotate gives a thing a new internal key and returns it. The old one is dead at
// once, or after grace, in which both work. A key that was still in such a
// grace is dead.
func (s *Service) Rotate(ctx context.Context, thingID string, grace time.Duration) (seal.Secret, error) {
	if grace < 0 || grace > MaxGrace {
		return nil, fault.InvalidFields(fault.Field{Name: "grace_seconds", Message: "must be from 0 to 86400"})
	}
	text := randomKey()
	err := s.DB.Update(ctx, func(tx store.Tx) error {
		if _, err := get(ctx, tx, thingID); err != nil {
			return err
		}
		return s.replace(ctx, tx, thingID, Internal, text, grace)
	})
	if err != nil {
		return nil, err
	}
	return text, nil
}

// SetExternal gives a thing an external key in place of the one it has, if any.
// Its internal key stays.
func (s *Service) SetExternal(ctx context.Context, thingID string, text seal.Secret) error {
	if err := fault.InvalidFields(checkKey(External, text, "key")...); err != nil {
		return err
	}
	return s.DB.Update(ctx, func(tx store.Tx) error {
		if _, err := get(ctx, tx, thingID); err != nil {
			return err
		}
		return s.replace(ctx, tx, thingID, External, text, 0)
	})
}

// RemoveExternal takes a thing's external key away. Removing none is no error.
func (s *Service) RemoveExternal(ctx context.Context, thingID string) error {
	return s.DB.Update(ctx, func(tx store.Tx) error {
		if _, err := get(ctx, tx, thingID); err != nil {
			return err
		}
		return s.retire(ctx, tx, thingID, External, 0)
	})
}

// replace gives a thing the key text, and ends the one it has. Setting the key
// it has changes nothing.
func (s *Service) replace(ctx context.Context, tx store.Tx, thingID string, kind Kind, text seal.Secret, grace time.Duration) error {
	k := s.newKey(thingID, kind, text)
	switch same, err := keyTable.GetBy(tx, "mac", store.TermOf(string(k.MAC))); {
	case err == nil && same.Thing != thingID:
		return errTaken
	case err == nil:
		if d, err := s.Devices.GetIn(ctx, tx, thingID); err != nil {
			return err
		} else if c, ok := d.Credential(kind.credential(), same.ID); ok && c.State == devices.CredentialActive {
			return nil
		}
	case !fault.Is(err, fault.NotFound):
		return err
	}
	if err := s.retire(ctx, tx, thingID, kind, grace); err != nil {
		return err
	}
	return s.attach(ctx, tx, k)
}

// retire ends the keys of a kind: those already retiring now, the active one after grace.
func (s *Service) retire(ctx context.Context, tx store.Tx, thingID string, kind Kind, grace time.Duration) error {
	d, err := s.Devices.GetIn(ctx, tx, thingID)
	if err != nil {
		return err
	}
	for _, c := range d.CredentialsOf(kind.credential()) {
		if grace > 0 && c.State == devices.CredentialActive {
			c.State, c.ExpiresAt = devices.CredentialRetiring, s.Now().UTC().Add(grace)
			_, err = s.Devices.SetCredential(ctx, tx, thingID, c)
		} else {
			err = s.Devices.Revoke(ctx, tx, thingID, c.Kind, c.ID)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Reveal returns the keys of a thing in clear, and leaves a record that it did.
// It is Conflict where keys are not kept to be shown.
func (s *Service) Reveal(ctx context.Context, thingID string) (c Created, err error) {
	err = s.DB.Update(ctx, func(tx store.Tx) error {
		if c.Thing, err = get(ctx, tx, thingID); err != nil {
			return err
		}
		keys, err := keyTable.PageBy(tx, "thing", store.TermOf(thingID), page.Request{Limit: page.MaxLimit})
		if err != nil {
			return err
		}
		d, err := s.Devices.GetIn(ctx, tx, thingID)
		if err != nil {
			return err
		}
		for _, k := range keys.Items {
			if cred, ok := d.Credential(k.Kind.credential(), k.ID); !ok || cred.State != devices.CredentialActive {
				continue
			}
			if k.Sealed == nil {
				return fault.New(fault.Conflict, "keys are not kept in a form that can be shown; rotate it to get a new one")
			}
			text, err := s.Box.Open(place(k.ID), k.Sealed)
			if err != nil {
				return err
			}
			if k.Kind == Internal {
				c.Key = text
			} else {
				c.External = text
			}
		}
		return s.note(ctx, tx, "thing_key.reveal", c.Thing)
	})
	return c, err
}

// Self returns the thing that the acting device is, or a NotFound fault.
func (s *Service) Self(ctx context.Context) (Thing, error) {
	return s.Get(ctx, identity.FromContext(ctx).ID)
}
