package thingkeys

import "context"

// Reseal seals what is sealed again, under the newest data key, and returns how
// many values that were.
func (s *Service) Reseal(ctx context.Context) (int, error) {
	return keyTable.Revise(ctx, s.DB, func(_ string, v *key) (bool, error) {
		if v.Sealed == nil {
			return false, nil
		}
		sealed, changed, err := s.Box.Reseal(place(v.ID), v.Sealed)
		if changed {
			v.Sealed = sealed
		}
		return changed, err
	})
}
