package store_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"keystead/store"
)

// TestBell: a round at once, one for any number of rings while it works, one when
// the pause is over, and none after the end.
func TestBell(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var bell store.Bell
		ctx, stop := context.WithCancel(t.Context())
		var rounds atomic.Int32
		busy, done := make(chan struct{}), make(chan error)
		go func() {
			done <- bell.Rounds(ctx, func(context.Context) (time.Duration, error) {
				rounds.Add(1)
				<-busy
				return time.Minute, nil
			})
		}()
		expect := func(want int32, why string) {
			t.Helper()
			synctest.Wait()
			if got := rounds.Load(); got != want {
				t.Fatalf("%d rounds, want %d: %s", got, want, why)
			}
		}
		expect(1, "one at the start")
		for range 5 {
			bell.Ring()
		}
		busy <- struct{}{}
		expect(2, "rings while it worked are heard")
		busy <- struct{}{}
		expect(2, "and heard once")
		time.Sleep(time.Minute)
		expect(3, "the pause is over")
		stop()
		busy <- struct{}{}
		if err := <-done; err != nil {
			t.Error(err)
		}
		bell.Ring() // does not wait, though nobody listens
		bell.Ring()
	})
}

func TestBellEndsWithTheErrorOfARound(t *testing.T) {
	var bell store.Bell
	failed := errors.New("no store")
	if err := bell.Rounds(t.Context(), func(context.Context) (time.Duration, error) { return 0, failed }); !errors.Is(err, failed) {
		t.Errorf("Rounds: %v", err)
	}
}
