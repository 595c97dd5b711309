package tokens

import "context"

// Reseal seals what is sealed again, under the newest data key, and returns how
// many values that were.
func (s *Service) Reseal(ctx context.Context) (int, error) {
	return keys.Revise(ctx, s.DB, func(_ string, v *Key) (bool, error) {
		if v.Sealed == nil {
			return false, nil
		}
		sealed, changed, err := s.Box.Reseal("signing key/"+v.ID, v.Sealed)
		if changed {
			v.Sealed = sealed
		}
		return changed, err
	})
}
