package accounts

import "context"

func (s *Service) sweep(ctx context.Context) error { return s.flushUses(ctx) }
