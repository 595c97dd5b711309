package bolt

import (
	"fmt"
	"runtime/debug"

	"keystead/store"
)

// bbolt trusts its file: over a damaged page it panics, or reads outside of the
// map. What follows turns both into errors.

// faultsPanic has memory faults of this goroutine panic instead of end the
// process, until the function it returns is called.
func faultsPanic() func() {
	before := debug.SetPanicOnFault(true)
	return func() { debug.SetPanicOnFault(before) }
}

// guarded runs fn, which calls bbolt only, and returns its panics and memory
// faults as errors.
func guarded(fn func() error) (err error) {
	defer faultsPanic()()
	defer caught(&err)
	return fn()
}

// caught is deferred around calls of bbolt where faults panic already.
func caught(err *error) {
	if p := recover(); p != nil {
		*err = fmt.Errorf("%w: %v", store.ErrCorrupt, p)
	}
}
