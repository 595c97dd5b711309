package id_test

import (
	"testing"
	"time"

	"keystead/id"
)

func TestIDsSortInTheOrderTheyAreMade(t *testing.T) {
	var g id.Generator
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	last := ""
	for i := range 100_000 {
		at := now.Add(time.Duration(i/1000) * time.Millisecond)
		if i%7 == 0 {
			at = now // the clock goes back
		}
		got := g.New(at)
		if got <= last || !id.Valid(got) {
			t.Fatalf("id %d = %q after %q; want a valid UUID that sorts after it", i, got, last)
		}
		last = got
	}
}

func TestIDTellsItsMillisecond(t *testing.T) {
	var g id.Generator
	got := g.New(time.UnixMilli(0x0123456789ab))
	if got[:15] != "01234567-89ab-7" || got[19] < '8' || got[19] > 'b' {
		t.Errorf("New = %q, want 01234567-89ab-7… with variant 8 to b (RFC 9562, 5.7)", got)
	}
}

func TestValid(t *testing.T) {
	for s, want := range map[string]bool{
		"01890a5d-ac96-774b-bcce-b302099a8057":  true,
		"01890A5D-ac96-774b-bcce-b302099a8057":  false,
		"01890a5dac96774bbcceb302099a8057":      false,
		"01890a5d-ac96-774b-bcce-b302099a805":   false,
		"01890a5d-ac96-774b-bcce-b302099a8057 ": false,
		"01890a5d-ac96-774b-bcce-b302099a805g":  false,
		"01890a5d-ac96-774b-bcce_b302099a8057":  false,
		"":                                      false,
	} {
		if got := id.Valid(s); got != want {
			t.Errorf("Valid(%q) = %v, want %v", s, got, want)
		}
	}
}
