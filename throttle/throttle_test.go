package throttle_test

import (
	"net/netip"
	"strconv"
	"testing"
	"time"

	"keystead/throttle"
)

func TestBucketsLimitEachKeyAndRefill(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	b := &throttle.Buckets{Burst: 3, Refill: time.Minute, Now: func() time.Time { return now }}
	for i := range 3 {
		if wait, ok := b.Take("a"); !ok {
			t.Fatalf("take %d refused for %v", i, wait)
		}
	}
	if wait, ok := b.Take("a"); ok || wait != time.Minute {
		t.Errorf("fourth take = %v, %v; want a minute's wait", wait, ok)
	}
	if wait, ok := b.Take("b"); !ok {
		t.Errorf("another key is refused for %v", wait)
	}
	now = now.Add(time.Minute)
	if _, ok := b.Take("a"); !ok {
		t.Error("no token came back after Refill")
	}
	if wait := b.Wait("a"); wait != time.Minute {
		t.Errorf("Wait = %v, want a minute", wait)
	}
	b.Forget("a")
	if wait := b.Wait("a"); wait != 0 {
		t.Errorf("Wait after Forget = %v, want 0", wait)
	}
}

func TestSpendNeverRunsUpADebt(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	b := &throttle.Buckets{Burst: 2, Refill: time.Minute, Now: func() time.Time { return now }}
	for range 1000 {
		b.Spend("a")
	}
	if wait := b.Wait("a"); wait != time.Minute {
		t.Errorf("Wait after 1000 spent = %v, want one Refill", wait)
	}
}

func TestMemoryIsBounded(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	b := &throttle.Buckets{Burst: 1, Refill: time.Hour, Now: func() time.Time { return now }}
	refused := 0
	for i := range 250_000 {
		b.Spend(strconv.Itoa(i))
	}
	for i := range 250_000 {
		if b.Wait(strconv.Itoa(i)) > 0 {
			refused++
		}
	}
	if refused == 0 || refused > 100_000 {
		t.Errorf("%d keys are remembered, want at most 100000 and not none", refused)
	}
}

func TestPrefix(t *testing.T) {
	for addr, want := range map[string]string{
		"192.0.2.7":            "192.0.2.7",
		"::ffff:192.0.2.7":     "192.0.2.7",
		"2001:db8:1:2:3:4:5:6": "2001:db8:1:2::/64",
		"2001:db8:1:2:ffff::":  "2001:db8:1:2::/64",
		"fe80::1%eth0":         "fe80::/64",
	} {
		if got := throttle.Prefix(netip.MustParseAddr(addr)); got != want {
			t.Errorf("Prefix(%s) = %s, want %s", addr, got, want)
		}
	}
	if got := throttle.Prefix(netip.Addr{}); got != "invalid IP" {
		t.Errorf("Prefix of no address = %q", got)
	}
}
