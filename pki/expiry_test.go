package pki_test

import (
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"keystead/devices"
	"keystead/identity"
	"keystead/page"
	"keystead/pki"
	"keystead/store"
)

const day = 24 * time.Hour

// reminded enrols a device whose certificate has reminders.
func (h *house) reminded(t testing.TB, cn string, preventive, critical time.Duration) (pki.Certificate, devices.Device) {
	t.Helper()
	d, err := h.Devices.Create(h.ctx, deviceNamed(cn))
	if err != nil {
		t.Fatal(err)
	}
	c, err := h.issue(pki.Request{Org: org, Profile: h.profile(t, pki.DeviceProfile), CSR: newCSR(t, newKey(t), named(cn)), Device: d.ID},
		func(ctx context.Context, tx store.Tx, c *pki.Certificate) error {
			c.Remind(preventive, critical)
			return h.Attach(ctx, tx, d.ID, c)
		})
	if err != nil {
		t.Fatal(err)
	}
	return c, d
}

func TestCertificatesAreToBeRenewedAndExpireSoon(t *testing.T) {
	h := open(t)
	var told []string
	h.Crossed = func(_ context.Context, _ store.Tx, c pki.Certificate) error {
		told = append(told, c.CommonName+" "+string(c.Renewal))
		return nil
	}
	both, bothDevice := h.reminded(t, "both", 31*day, 7*day)
	h.reminded(t, "late", 0, 3*day)
	h.reminded(t, "early", 60*day, 0)
	renewed, renewedDevice := h.reminded(t, "renewed", 90*day, 80*day)
	revoked, _ := h.reminded(t, "revoked", 40*day, 30*day)
	held, _ := h.reminded(t, "held", 40*day, 30*day)
	h.reminded(t, "never", 0, 0)
	expect := func(what string, tell []string, pending, soon []string) {
		t.Helper()
		if err := h.Sweep(t.Context(), h.now()); err != nil {
			t.Fatal(err)
		}
		slices.Sort(told)
		if !slices.Equal(told, tell) {
			t.Errorf("%s: told of %q, want %q", what, told, tell)
		}
		told = nil
		for state, want := range map[pki.Renewal][]string{pki.RenewalPending: pending, pki.ExpiringSoon: soon} {
			p, err := h.Certificates(h.ctx, pki.Filter{Renewal: state}, page.Request{})
			got := names(p.Items, func(c pki.Certificate) string { return c.CommonName })
			if err != nil || !slices.Equal(got, want) {
				t.Errorf("%s: certificates that are %s: got %q, %v, want %q", what, state, got, err, want)
			}
			of, err := h.Devices.List(h.ctx, devices.Filter{Renewal: string(state)}, page.Request{})
			got = names(of.Items, func(d devices.Device) string { return d.Name })
			if err != nil || !slices.Equal(got, want) {
				t.Errorf("%s: devices that are %s: got %q, %v, want %q", what, state, got, err, want)
			}
			if n, err := h.Renewals(t.Context(), state); err != nil || n != len(want) {
				t.Errorf("%s: got a count of %d, %v, want %d", what, n, err, len(want))
			}
		}
	}
	until := func(left time.Duration) { h.clock.Store(both.NotAfter.Add(-left).Unix()) }

	expect("at first", nil, nil, nil)
	until(70 * day)
	expect("70 days before", []string{"renewed expiring_soon", "renewed renewal_pending"}, nil, []string{"renewed"})
	if err := h.DB.Update(t.Context(), func(tx store.Tx) error { return h.RenewedIn(h.ctx, tx, renewed.Serial) }); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Revoke(h.ctx, string(revoked.Serial), pki.Superseded); err != nil {
		t.Fatal(err)
	}
	if _, err := h.Revoke(h.ctx, string(held.Serial), pki.CertificateHold); err != nil {
		t.Fatal(err)
	}
	until(31*day + time.Second)
	expect("a second too early", []string{"early renewal_pending"}, []string{"early"}, nil)
	until(31 * day)
	expect("31 days before", []string{"both renewal_pending"}, []string{"both", "early"}, nil)
	expect("again", nil, []string{"both", "early"}, nil)
	if d, err := h.Devices.Get(h.ctx, bothDevice.ID); err != nil || d.Renewal() != "renewal_pending" || !d.UpdatedAt.Equal(d.CreatedAt) && d.Credentials[0].Renewal != "renewal_pending" {
		t.Errorf("the device: got %q, %v", d.Renewal(), err)
	}
	if _, err := h.Revoke(h.ctx, string(held.Serial), pki.RemoveFromCRL); err != nil {
		t.Fatal(err)
	}
	until(30 * day)
	expect("a hold is released", []string{"held expiring_soon", "held renewal_pending"}, []string{"both", "early"}, []string{"held"})
	until(day)
	expect("a day before", []string{"both expiring_soon", "late expiring_soon"}, []string{"early"}, []string{"both", "held", "late"})
	until(-2 * day)
	expect("after the end", nil, nil, nil)
	if d, err := h.Devices.Get(h.ctx, renewedDevice.ID); err != nil || d.Renewal() != "" {
		t.Errorf("a device that has renewed: got %q, %v", d.Renewal(), err)
	}
}

func names[T any](items []T, name func(T) string) []string {
	var list []string
	for _, item := range items {
		list = append(list, name(item))
	}
	slices.Sort(list)
	return list
}

// TestDeviceGoesByItsLatestCertificate: one that is expiring says nothing of a device that
// has another for longer.
func TestDeviceGoesByItsLatestCertificate(t *testing.T) {
	h := open(t)
	c, d := h.reminded(t, "pump", 400*day, 0)
	if err := h.Sweep(t.Context(), h.now()); err != nil {
		t.Fatal(err)
	}
	if got, err := h.Devices.Get(h.ctx, d.ID); err != nil || got.Renewal() != "renewal_pending" {
		t.Fatalf("got %q, %v", got.Renewal(), err)
	}
	h.advance(day)
	if _, err := h.issue(pki.Request{Org: org, Profile: h.profile(t, pki.DeviceProfile), CSR: newCSR(t, newKey(t), named("pump")), Device: d.ID},
		func(ctx context.Context, tx store.Tx, c *pki.Certificate) error { return h.Attach(ctx, tx, d.ID, c) }); err != nil {
		t.Fatal(err)
	}
	if got, err := h.Devices.Get(h.ctx, d.ID); err != nil || got.Renewal() != "" {
		t.Errorf("with another certificate: got %q, %v", got.Renewal(), err)
	}
	if got, err := h.Certificate(h.ctx, string(c.Serial)); err != nil || got.StandingRenewal() != pki.RenewalPending {
		t.Errorf("its first certificate: got %q, %v", got.StandingRenewal(), err)
	}
}

// TestExpiryCountsWhatIsThere holds the overview, which adds up counts, against a walk over
// all certificates.
func TestExpiryCountsWhatIsThere(t *testing.T) {
	h := open(t)
	profile := h.profile(t, pki.DeviceProfile)
	var all []pki.Certificate
	for i, left := range []time.Duration{
		time.Minute, 20 * time.Minute, 59 * time.Minute, 2 * time.Hour, day - time.Second, day, day + time.Minute, 7*day - time.Minute, 7 * day, 8 * day, 30*day - 1*time.Second, 30 * day,
		89 * day, 90*day - time.Minute, 90*day + time.Minute, 300 * day, 300 * day,
	} {
		c, err := h.issue(pki.Request{Org: org, Profile: profile, CSR: newCSR(t, newKey(t), named(fmt.Sprintf("dev-%d", i))), NotAfter: h.now().Add(left)}, nil)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, c)
	}
	for i, reason := range map[int]pki.Reason{3: pki.Superseded, 16: pki.KeyCompromise, 9: pki.CertificateHold} {
		if _, err := h.Revoke(h.ctx, string(all[i].Serial), reason); err != nil {
			t.Fatal(err)
		}
	}
	walked := func() (o pki.ExpiryOverview) {
		for c, err := range h.Export(h.ctx, pki.Filter{}) {
			left := c.NotAfter.Sub(h.now())
			switch {
			case err != nil:
				t.Fatal(err)
			case c.State == pki.CertRevoked:
			case left < 0:
				o.Expired++
			case left < day:
				o.Day++
			case left < 7*day:
				o.Week++
			case left < 30*day:
				o.Month++
			case left < 90*day:
				o.Quarter++
			default:
				o.Later++
			}
		}
		return o
	}
	for _, by := range []time.Duration{0, 61 * time.Second, 30 * time.Minute, 3 * time.Hour, day, 40 * day, 400 * day} {
		h.advance(by)
		if got, err := h.Expiry(h.ctx); err != nil || got != walked() {
			t.Errorf("%v later: got %+v, %v, want %+v", by, got, err, walked())
		}
	}
	other := identity.NewContext(t.Context(), identity.Actor{Kind: identity.User, ID: "them", Org: "other", Role: identity.Admin})
	if got, err := h.Expiry(other); err != nil || got != (pki.ExpiryOverview{}) {
		t.Errorf("another organisation: got %+v, %v", got, err)
	}
}
