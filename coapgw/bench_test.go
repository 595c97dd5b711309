package coapgw_test

import (
	"testing"

	"keystead/coapgw"
)

// Both count the client too; "make bench" measures the server alone.

func BenchmarkHandshakeByPSK(b *testing.B) {
	w := newWorld(b, func(g *coapgw.Gateway) { g.MaxHalfOpenSource = 10_000 })
	b.ReportAllocs()
	for b.Loop() {
		c, err := w.bare()
		if err != nil {
			b.Fatal(err)
		}
		c.Close()
	}
}

func BenchmarkWhoami(b *testing.B) {
	w := newWorld(b)
	c, err := w.bare()
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	b.ReportAllocs()
	for b.Loop() {
		if err := c.Get("/whoami"); err != nil {
			b.Fatal(err)
		}
	}
}
