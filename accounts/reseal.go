package accounts

import "context"

// Reseal seals what is sealed again, under the newest data key, and returns how
// many values that were.
func (s *Service) Reseal(ctx context.Context) (int, error) {
	return factorTable.Revise(ctx, s.DB, func(userID string, v *factor) (bool, error) {
		if v.Sealed == nil {
			return false, nil
		}
		sealed, changed, err := s.Box.Reseal(totpPlace(userID), v.Sealed)
		if changed {
			v.Sealed = sealed
		}
		return changed, err
	})
}
