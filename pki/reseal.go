package pki

import "context"

// Reseal seals what is sealed again, under the newest data key, and returns how
// many values that were.
func (k *SealedKeys) Reseal(ctx context.Context) (int, error) {
	return sealedKeys.Revise(ctx, k.DB, func(id string, v *sealedKey) (bool, error) {
		if v.Sealed == nil {
			return false, nil
		}
		sealed, changed, err := k.Box.Reseal(keyPlace(id), v.Sealed)
		if changed {
			v.Sealed = sealed
		}
		return changed, err
	})
}
