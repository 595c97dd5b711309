//go:build !race

package coapgw_test

// underRace says that the race detector watches.
const underRace = false
