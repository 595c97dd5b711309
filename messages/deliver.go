package messages

import (
	"context"
	"log/slog"
	"time"

	"golang.org/x/sync/errgroup"

	"keystead/page"
	"keystead/store"
)

// Batch is how many messages a sink gets before they leave the queue, and so how
// many may come again after a crash.
const Batch = 64

// When a sink that failed is tried again.
const (
	firstPause = 500 * time.Millisecond
	maxPause   = time.Minute
)

// bell returns that of a sink.
func (s *Service) bell(sink string) *store.Bell {
	s.once.Do(func() {
		s.bells = map[string]*store.Bell{}
		for _, sink := range s.Sinks {
			s.bells[sink.Name()] = new(store.Bell)
		}
	})
	return s.bells[sink]
}

// ring has every sink's queue looked at now.
func (s *Service) ring() {
	for _, sink := range s.Sinks {
		s.bell(sink.Name()).Ring()
	}
}

// Run delivers until ctx is done, each sink on its own, and closes them.
func (s *Service) Run(ctx context.Context, log *slog.Logger) error {
	s.ring() // for what waits since the last start
	group, ctx := errgroup.WithContext(ctx)
	for _, sink := range s.Sinks {
		group.Go(func() error {
			err := s.serve(ctx, sink, log)
			if closed := sink.Close(); err == nil {
				err = closed
			}
			return err
		})
	}
	return group.Wait()
}

// serve delivers to one sink. What it is given it gets in order; while it is
// away nothing is dropped.
func (s *Service) serve(ctx context.Context, sink Sink, log *slog.Logger) error {
	pause := firstPause
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-s.bell(sink.Name()).Rung():
		}
		for {
			failed, err := s.drain(ctx, sink)
			if ctx.Err() != nil {
				return nil //nolint:nilerr // stopping: what waits goes at the next start
			}
			if err != nil {
				return err
			}
			if failed == nil {
				pause = firstPause
				break
			}
			log.Warn("a message sink does not take messages; they wait", slog.String("sink", sink.Name()), slog.Duration("pause", pause), slog.Any("error", failed))
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(pause):
			}
			pause = min(2*pause, maxPause)
		}
	}
}

// drain delivers what waits for a sink until nothing does. failed is the sink's
// error, err the store's.
func (s *Service) drain(ctx context.Context, sink Sink) (failed, err error) {
	for {
		var p page.Page[waiting]
		if err := s.DB.View(ctx, func(tx store.Tx) (err error) {
			p, err = queue.PageBy(tx, "sink", store.TermOf(sink.Name()), page.Request{Limit: Batch})
			return err
		}); err != nil || len(p.Items) == 0 {
			return nil, err
		}
		done := 0
		for _, w := range p.Items {
			if failed = sink.Deliver(ctx, w.Message); failed != nil {
				break
			}
			done++
		}
		if err := s.DB.Update(ctx, func(tx store.Tx) error {
			for _, w := range p.Items[:done] {
				if _, err := queue.Delete(tx, w.Message.ID+"/"+w.Sink); err != nil {
					return err
				}
			}
			return nil
		}); err != nil || failed != nil {
			return failed, err
		}
	}
}
