package authsets

import (
	"context"

	"keystead/store"
)

// ProvisionIn adds a set that is accepted at once, as part of tx: of a device whose key
// was made with it, so that nobody needs to wait until it shows up.
func (s *Service) ProvisionIn(ctx context.Context, tx store.Tx, n New) (Device, error) {
	d, fresh, err := s.preauthoriseIn(ctx, tx, n)
	if err != nil || !fresh {
		return d, err
	}
	return d, s.move(ctx, tx, &d, d.withKey(n.Key), Accepted)
}
