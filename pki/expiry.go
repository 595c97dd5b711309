package pki

import (
	"context"
	"errors"
	"time"

	"keystead/fault"
	"keystead/identity"
	"keystead/page"
	"keystead/store"
)

// Renewal is how near its end a certificate is, by what the enrolment profile it came by says.
type Renewal string

// The states of renewal, as Lamassu has them; none before the first and after the end.
const (
	RenewalPending Renewal = "renewal_pending" // it is to be renewed
	ExpiringSoon   Renewal = "expiring_soon"   // and that is urgent
	renewalOver    Renewal = "over"            // it ended, or another has taken its place
)

// Valid reports whether r is a state that certificates can be looked for by.
func (r Renewal) Valid() bool { return r == RenewalPending || r == ExpiringSoon }

// allDue is the first part of the terms of the index by what is due next: it has one order
// over all organisations.
const allDue = "all"

// Remind notes in a certificate that is not recorded yet from when on it is to be renewed, and
// when that becomes urgent: so long before its end, 0 for never.
func (c *Certificate) Remind(preventive, critical time.Duration) {
	if preventive > 0 {
		c.RenewFrom = c.NotAfter.Add(-preventive)
	}
	if critical > 0 {
		c.CriticalAt = c.NotAfter.Add(-critical)
	}
}

// due returns when the state of renewal changes next and what it becomes; the zero time if
// it does not.
func (c *Certificate) due() (at time.Time, next Renewal) {
	pending, critical := !c.RenewFrom.IsZero(), !c.CriticalAt.IsZero()
	switch {
	case c.State != CertActive || !pending && !critical || c.Renewal == renewalOver:
		return time.Time{}, ""
	case c.Renewal == "" && pending:
		return c.RenewFrom, RenewalPending
	case c.Renewal != ExpiringSoon && critical:
		return c.CriticalAt, ExpiringSoon
	}
	return c.NotAfter, renewalOver
}

// StandingRenewal is the state of renewal of a certificate that is good, "" of every other.
func (c *Certificate) StandingRenewal() Renewal {
	if c.State != CertActive || !c.Renewal.Valid() {
		return ""
	}
	return c.Renewal
}

// everyOrg stands for all organisations where certificates are counted.
const everyOrg = "*"

// sweepBatch is how many certificates one transaction of a sweep changes.
const sweepBatch = 200

// Sweep has the certificates whose time has come be known as to be renewed, as expiring
// soon, and as over, one after the other. It looks at those alone.
func (s *Service) Sweep(ctx context.Context, now time.Time) error {
	for {
		var list []Certificate
		err := s.DB.View(ctx, func(tx store.Tx) error {
			p, err := certificates.PageBy(tx, "due", store.TermOf(allDue), page.Request{Limit: sweepBatch})
			for _, c := range p.Items {
				if at, _ := c.due(); !now.Before(at) {
					list = append(list, c)
				}
			}
			return err
		})
		if err != nil || len(list) == 0 {
			return err
		}
		if err := s.DB.Update(ctx, func(tx store.Tx) error {
			for _, c := range list {
				if err := s.remind(ctx, tx, c.Serial, now); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			return err
		}
	}
}

// remind takes a certificate through the states whose time has come.
func (s *Service) remind(ctx context.Context, tx store.Tx, serial Serial, now time.Time) error {
	for {
		var passed Renewal
		c, err := certificates.Update(tx, string(serial), func(c *Certificate) error {
			passed = ""
			if at, next := c.due(); !at.IsZero() && !now.Before(at) {
				c.Renewal, passed = next, next
			}
			return nil
		})
		if err != nil || passed == "" {
			return err
		}
		if err := s.tellRenewal(ctx, tx, &c); err != nil {
			return err
		}
		if s.Crossed != nil && passed.Valid() {
			if err := s.Crossed(ctx, tx, c); err != nil {
				return err
			}
		}
	}
}

// tellRenewal has the device's list of credentials say what the record does.
func (s *Service) tellRenewal(ctx context.Context, tx store.Tx, c *Certificate) error {
	if c.Device == "" {
		return nil
	}
	err := s.Devices.SetRenewal(ctx, tx, c.Device, identity.Certificate, string(c.Serial), string(c.StandingRenewal()))
	if fault.Is(err, fault.NotFound) { // the device has forgotten it, or is gone
		return nil
	}
	return err
}

// RenewedIn notes as part of tx that another certificate has taken the place of one, which is not
// to be renewed any more.
func (s *Service) RenewedIn(ctx context.Context, tx store.Tx, serial Serial) error {
	c, err := certificates.Get(tx, string(serial))
	if at, _ := c.due(); err != nil || at.IsZero() {
		return err
	}
	c, err = certificates.Update(tx, string(serial), func(c *Certificate) error {
		c.Renewal = renewalOver
		return nil
	})
	return errors.Join(err, s.tellRenewal(ctx, tx, &c))
}

// Renewals returns how many certificates of all organisations are in a state of renewal.
func (s *Service) Renewals(ctx context.Context, r Renewal) (int, error) {
	return s.renewals(ctx, everyOrg, r)
}

func (s *Service) renewals(ctx context.Context, org string, r Renewal) (n int, err error) {
	err = s.DB.View(ctx, func(tx store.Tx) error {
		n, err = certificates.Count(tx, "renewal", store.TermOf(org, string(r)))
		return err
	})
	return n, err
}

// ExpiryOverview counts the certificates of the actor's organisation that are not
// revoked, by when they expire.
type ExpiryOverview struct {
	Expired int `json:"expired"`
	Day     int `json:"within_1d"`
	Week    int `json:"within_7d"`
	Month   int `json:"within_30d"`
	Quarter int `json:"within_90d"`
	Later   int `json:"later"`

	RenewalPending int `json:"renewal_pending"`
	ExpiringSoon   int `json:"expiring_soon"`
}

// hourKey is the hour of a time, in the order of time.
func hourKey(t time.Time) string { return expiryKey(t)[:len("2006-01-02T15")] }

// Expiry returns the overview. It adds up counts by the hour, and looks at certificates
// themselves only in the hours where one number ends and the next begins; if one of those
// has more than [store.MaxScan], they count as ending with it.
func (s *Service) Expiry(ctx context.Context) (o ExpiryOverview, err error) {
	now, org := s.Now(), orgOf(ctx)
	const day = 24 * time.Hour
	ends := []time.Time{now, now.Add(day), now.Add(7 * day), now.Add(30 * day), now.Add(90 * day)}
	before := make([]int, len(ends)) // how many end before each
	total := 0
	err = certificates.Tally(ctx, s.DB, "hour", store.TermOf(org), func(hour store.Term, n int) {
		total += n
		for i, end := range ends {
			if string(hour) < hourKey(end) {
				before[i] += n
			}
		}
	})
	if err != nil {
		return o, err
	}
	for i, end := range ends {
		n, err := s.endingInHour(ctx, org, end)
		if err != nil {
			return o, err
		}
		before[i] += n
	}
	o = ExpiryOverview{
		Expired: before[0], Day: before[1] - before[0], Week: before[2] - before[1], Month: before[3] - before[2], Quarter: before[4] - before[3],
		Later: total - before[4],
	}
	o.RenewalPending, err = s.renewals(ctx, org, RenewalPending)
	if err == nil {
		o.ExpiringSoon, err = s.renewals(ctx, org, ExpiringSoon)
	}
	return o, err
}

// endingInHour returns how many certificates end before end in its hour, 0 if there are too
// many in that hour to look at each.
func (s *Service) endingInHour(ctx context.Context, org string, end time.Time) (n int, err error) {
	err = s.DB.View(ctx, func(tx store.Tx) error {
		n = 0
		all, err := certificates.Count(tx, "hour", store.TermOf(org, hourKey(end)))
		if err != nil || all == 0 || all > store.MaxScan {
			return err
		}
		after := page.At(hourKey(end))
		for {
			p, err := certificates.PageBy(tx, "expiry", store.TermOf(org), page.Request{Limit: page.MaxLimit, After: after})
			if err != nil {
				return err
			}
			for _, c := range p.Items {
				if !c.NotAfter.Before(end) {
					return nil
				}
				if c.State != CertRevoked {
					n++
				}
			}
			if after = p.Next; after == "" {
				return nil
			}
		}
	})
	return n, err
}
