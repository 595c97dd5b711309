//go:build e2e

package e2e_test

import (
	"testing"
	"time"
)

// A gateway has little memory: a server that serves nobody takes little, and
// gives back what devices took when they are gone.
func TestIdle(t *testing.T) { // by itself: it counts what the process has
	s := prepare(t, fast...)
	began := time.Now()
	s.start()
	ready := time.Since(began)
	// What only the start needed is given back when the server is ready, which is not at once.
	s.eventually("an idle and empty server to have at most 40 MiB resident", func() bool { return s.rss() <= 40<<20 })
	resident, goroutines := s.rss(), s.goroutines()
	k := s.textPSK()
	const devices = 200
	for range devices {
		if _, err := s.mustDial(withPSK(k, k.text(t))...).whoami(); err != nil {
			t.Fatal(err)
		}
	}
	open, busy := s.goroutines(), s.rss()
	if _, err := s.admin().SuspendDevice(t.Context(), k.Device); err != nil {
		t.Fatal(err)
	}
	s.admin().Close()
	s.eventually("the goroutines of closed sessions to end", func() bool { return s.goroutines() <= goroutines+5 })
	figure(t, "idle and empty: ready after %v, %.1f MB resident, %d goroutines; with %d sessions %.1f MB and %d; when they are gone %d",
		ready.Round(time.Millisecond), float64(resident)/1e6, goroutines, devices, float64(busy)/1e6, open, s.goroutines())
}
