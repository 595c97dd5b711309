package server_test

import (
	"context"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"keystead/identity"
)

// A gateway without a battery for its clock starts in 1970 and jumps when it hears of
// the time: what was acknowledged stays good, in order, and provable.
func TestClockJumps(t *testing.T) {
	s := start(t)
	var jumped atomic.Int64
	clock := func() time.Time { return time.Now().Add(time.Duration(jumped.Load())) }
	s.Devices.Now, s.PSK.Now, s.Audit.Now, s.PKI.Now, s.EST.Now = clock, clock, clock, clock, clock
	type key struct{ Identity, Device string }
	var made []key
	jumps := []time.Duration{0, -48 * time.Hour, 40 * 24 * time.Hour, -20 * 365 * 24 * time.Hour, 24 * time.Hour, 0}
	for _, by := range jumps {
		jumped.Store(int64(by))
		for range 5 {
			var k key
			s.call(t, s.admin, http.MethodPost, "/api/v1/psk", map[string]any{}, http.StatusCreated, &k)
			made = append(made, k)
		}
		for _, k := range made {
			a, err := s.Resolver.Resolve(t.Context(), identity.Proof{PSK: k.Identity, Transport: identity.CoAPUDP})
			if err != nil || a.ID != k.Device {
				t.Errorf("with the clock at %v, %s is %v, %v; want the device %s", by, k.Identity, a, err, k.Device)
			}
		}
	}
	var page struct {
		Items []struct {
			ID string `json:"id"`
		} `json:"items"`
	}
	s.call(t, s.admin, http.MethodGet, "/api/v1/devices?limit=100", nil, http.StatusOK, &page)
	if len(page.Items) != len(made) {
		t.Fatalf("got %d devices, want %d", len(page.Items), len(made))
	}
	for i, k := range made { // ids never go back with the clock
		if page.Items[i].ID != k.Device {
			t.Errorf("device %d of the list is %s, want %s", i, page.Items[i].ID, k.Device)
		}
	}
	report, err := s.Audit.Verify(context.Background())
	if err != nil {
		t.Errorf("the trail: %v", err)
	}
	t.Logf("figure: the clock jumped %d times, by up to 20 years either way: %d keys resolve, listed in the order they were made, %d audit records verify", len(jumps)-1, len(made), report.Records)
}
