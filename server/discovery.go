package server

import (
	"context"
	"sync"
	"time"

	"keystead/fault"
)

// discovery is what an outside server says of itself: asked for when it is first needed, and
// again until there is an answer. One asks; others wait for what it hears, as long
// as they can, and hold up nobody.
type discovery[T any] struct {
	now  func() time.Time
	gone string // what is said of one that does not answer

	mu     sync.Mutex
	found  *T
	asking chan struct{} // closed when the one who asks has an answer; nil if nobody does
	failed error         // of the last time
	again  time.Time     // when it may be asked next
}

// askAgain is how long a server that gave no answer is left alone: who needs it is told so
// at once meanwhile.
const askAgain = 5 * time.Second

// get returns what was found out, by ask if it has to be.
func (d *discovery[T]) get(ctx context.Context, ask func(context.Context) (T, error)) (T, error) {
	for {
		d.mu.Lock()
		found, failed, asking := d.found, d.failed, d.asking
		mine := found == nil && asking == nil && !d.now().Before(d.again)
		if mine {
			asking = make(chan struct{})
			d.asking = asking
			// Who asked first may leave; the others go on waiting for the answer, and what it
			// finds is used after them: its end must not end later fetches.
			go d.learn(context.WithoutCancel(ctx), ask)
		}
		d.mu.Unlock()
		var none T
		switch {
		case found != nil:
			return *found, nil
		case asking == nil:
			return none, failed
		}
		select {
		case <-asking:
		case <-ctx.Done():
			return none, fault.Wrap(fault.Unavailable, context.Cause(ctx), "%s", d.gone)
		}
	}
}

// learn asks and keeps the answer, or that there was none.
func (d *discovery[T]) learn(ctx context.Context, ask func(context.Context) (T, error)) {
	found, err := ask(ctx)
	d.mu.Lock()
	defer d.mu.Unlock()
	if err == nil {
		d.found = &found
	} else {
		d.failed, d.again = fault.Wrap(fault.Unavailable, err, "%s", d.gone), d.now().Add(askAgain)
	}
	close(d.asking)
	d.asking = nil
}
