package lwm2m

import "context"

// Reseal seals what is sealed again, under the newest data key, and returns how
// many values that were.
func (s *Service) Reseal(ctx context.Context) (int, error) {
	return servers.Revise(ctx, s.DB, func(_ string, v *Server) (bool, error) {
		if v.Sink.Secret == nil {
			return false, nil
		}
		sealed, changed, err := s.Box.Reseal("lwm2m server/"+v.ID, v.Sink.Secret)
		if changed {
			v.Sink.Secret = sealed
		}
		return changed, err
	})
}
