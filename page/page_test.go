package page_test

import (
	"strings"
	"testing"

	"keystead/fault"
	"keystead/page"
)

func TestCursorLeadsBackToItsKey(t *testing.T) {
	for _, key := range []string{"a", "org\x00device", strings.Repeat("k", 600)} {
		if got, err := page.At(key).Key(); err != nil || got != key {
			t.Errorf("At(%q).Key() = %q, %v", key, got, err)
		}
	}
}

func TestForgedCursorIsInvalid(t *testing.T) {
	for _, c := range []page.Cursor{"%%%", "a", "YWI=", page.Cursor(strings.Repeat("A", 1<<20))} {
		if _, err := c.Key(); !fault.Is(err, fault.Invalid) {
			t.Errorf("Cursor(%.20q).Key() error = %v, want Invalid", c, err)
		}
	}
}

func TestSize(t *testing.T) {
	for limit, want := range map[int]int{-1: page.DefaultLimit, 0: page.DefaultLimit, 7: 7, 1 << 30: page.MaxLimit} {
		if got := (page.Request{Limit: limit}).Size(); got != want {
			t.Errorf("Request{Limit: %d}.Size() = %d, want %d", limit, got, want)
		}
	}
}

func FuzzCursor(f *testing.F) {
	f.Add("YWJj")
	f.Fuzz(func(t *testing.T, s string) {
		key, err := page.Cursor(s).Key()
		if err == nil && page.At(key) != page.Cursor(s) && !strings.ContainsAny(s, "\r\n") {
			t.Errorf("cursor %q decodes to %q, which encodes to %q", s, key, page.At(key))
		}
	})
}
