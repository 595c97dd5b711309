//go:build race

package coapgw_test

// underRace says that the race detector watches: it takes several times the
// memory and the time, so that figures of either say nothing of the gateway.
const underRace = true
