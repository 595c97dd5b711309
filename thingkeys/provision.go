package thingkeys

import (
	"context"

	"keystead/devices"
	"keystead/seal"
	"keystead/store"
)

// ProvisionIn makes a thing of a device that is there for other credentials, as
// part of tx, and returns its key, which is random.
func (s *Service) ProvisionIn(ctx context.Context, tx store.Tx, d devices.Device, kind Type) (seal.Secret, error) {
	n := New{Name: d.Name, Type: kind, Key: randomKey()}
	if err := n.check(); err != nil {
		return nil, err
	}
	t := Thing{ID: d.ID, Org: d.Org, Name: d.Name, Type: kind, CreatedAt: s.Now().UTC(), UpdatedAt: s.Now().UTC()}
	if err := thingTable.Insert(tx, t.ID, t); err != nil {
		return nil, err
	}
	return n.Key, s.attach(ctx, tx, s.newKey(t.ID, Internal, n.Key))
}
