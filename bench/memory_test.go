package main

import (
	"testing"

	"keystead/store"
	"keystead/store/storetest"
)

// The yardstick is only one if it does all that a store does.
func TestMemoryEngine(t *testing.T) {
	storetest.Run(t, func(*testing.T) store.Engine { return newMemory() })
}
