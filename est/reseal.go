package est

import "context"

// Reseal seals what is sealed again, under the newest data key, and returns how
// many values that were.
func (s *Service) Reseal(ctx context.Context) (int, error) {
	return dmsTable.Revise(ctx, s.DB, func(_ string, v *DMS) (bool, error) {
		if v.Secrets == nil {
			return false, nil
		}
		sealed, changed, err := s.Box.Reseal(secretPlace(v), v.Secrets)
		if changed {
			v.Secrets = sealed
		}
		return changed, err
	})
}
