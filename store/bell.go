package store

import (
	"context"
	"sync"
	"time"
)

// Bell wakes whoever does the work that waits in a store: it is rung when a
// transaction has left some ([Tx.OnCommit]). Ringing never waits, and what is rung
// while nobody listens is heard once. The zero Bell is ready to use.
type Bell struct {
	once sync.Once
	c    chan struct{}
}

// Ring wakes the listener, now or as soon as it listens.
func (b *Bell) Ring() {
	select {
	case b.rung() <- struct{}{}:
	default:
	}
}

// Rung is where the bell is heard, by one listener at a time.
func (b *Bell) Rung() <-chan struct{} { return b.rung() }

func (b *Bell) rung() chan struct{} {
	b.once.Do(func() { b.c = make(chan struct{}, 1) })
	return b.c
}

// Rounds calls round at once, for what waits since the last start, and then whenever
// the bell rings or the pause has passed that the last round returned. It ends
// without an error when ctx is done, or with that of a round.
func (b *Bell) Rounds(ctx context.Context, round func(context.Context) (pause time.Duration, err error)) error {
	for {
		pause, err := round(ctx)
		if ctx.Err() != nil {
			return nil //nolint:nilerr // stopping: what waits is done at the next start
		}
		if err != nil {
			return err
		}
		timer := time.NewTimer(pause)
		select {
		case <-ctx.Done():
		case <-b.Rung():
		case <-timer.C:
		}
		timer.Stop()
	}
}
