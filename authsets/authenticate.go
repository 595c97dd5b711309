package authsets

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"maps"
	"strings"
	"sync"
	"time"

	"keystead/fault"
	"keystead/id"
	"keystead/identity"
	"keystead/page"
	"keystead/store"
)

// Authenticate gives a device its token, if its set is accepted or becomes so now: it was
// preauthorized, or a rule or the device's certificate accepts it. A set that is not known
// waits for a decision. All other answers are faults in the words of Mender: Invalid
// for a request that is none, Unauthenticated for one that may not in.
func (s *Service) Authenticate(ctx context.Context, r Request) (string, error) {
	c, err := s.parse(r)
	if err != nil {
		return "", err
	}
	org, err := s.Tenant(ctx, c.tenant)
	if err != nil {
		return "", err
	}
	v, err := s.vouched(ctx, org, r, c)
	if err != nil {
		return "", err
	}
	token, decided, err := s.known(ctx, org, r, c, v)
	if err == nil && !decided {
		token, err = s.meet(ctx, org, r, c, v)
	}
	if err != nil {
		return "", err
	}
	text, err := s.Issue(token)
	if err != nil {
		return "", err
	}
	s.seen.at(token.Device, s.Now())
	return text, nil
}

// IssueFor gives out a token of a device of the actor's organisation, whose set is accepted,
// to who asks in its place, and records it. It is a Conflict for a device that is not let in.
func (s *Service) IssueFor(ctx context.Context, deviceID string) (string, error) {
	var t Token
	err := s.DB.Update(ctx, func(tx store.Tx) error {
		d, err := s.own(ctx, tx, deviceID)
		if err != nil {
			return err
		}
		i := d.accepted()
		if i < 0 {
			return fault.New(fault.Conflict, "the device has no accepted authorization set")
		}
		t, err = s.token(tx, d, i)
		if fault.Is(err, fault.Unauthenticated) {
			return fault.New(fault.Conflict, "the device is suspended")
		}
		if err != nil {
			return err
		}
		return s.note(ctx, tx, d, "auth_set.issue_token", t.ID)
	})
	if err != nil {
		return "", err
	}
	return s.Issue(t)
}

// known answers for sets that nothing has to be written for: those that are accepted,
// were rejected, or wait. It is not decided for the others.
func (s *Service) known(ctx context.Context, org string, r Request, c claim, v *voucher) (t Token, decided bool, err error) {
	err = s.DB.View(ctx, func(tx store.Tx) error {
		d, err := asks.GetBy(tx, "identity", store.TermOf(org, c.identity.hash()))
		if err != nil {
			return err
		}
		set, ok, err := d.withKey(c.key)
		if !ok || err != nil {
			return err
		}
		switch set.status {
		case Accepted:
			decided = true
			t, err = s.tokenOf(tx, d.ID, d.Org, string(set.id), set.epoch)
			return err
		case Rejected:
			return errUnauthorized
		case Pending:
			if by, err := s.speaksFor(tx, org, r, c, v); by == "" || err != nil {
				return cmp.Or(err, errUnauthorized)
			}
		default:
		}
		return nil
	})
	if fault.Is(err, fault.NotFound) {
		err = nil
	}
	return t, decided, err
}

// meet takes in a set that was not there, and accepts one where something speaks for it.
func (s *Service) meet(ctx context.Context, org string, r Request, c claim, v *voucher) (t Token, err error) {
	var answer error // one that does not undo what was written
	err = s.DB.Update(ctx, func(tx store.Tx) error {
		t, answer = Token{}, errUnauthorized
		d, i, err := s.enter(ctx, tx, org, c)
		if err != nil || i < 0 {
			return err // or there is no room for another set
		}
		by := ""
		switch d.Sets[i].Status {
		case Preauthorized:
			by = "preauthorized"
		case Pending:
			if by, err = s.speaksFor(tx, org, r, c, v); err != nil || by == "" {
				return err
			}
		case Accepted: // another request was quicker
		default:
			return nil
		}
		if by != "" {
			switch full, err := s.full(tx, d); {
			case err != nil:
				return err
			case full:
				answer = errFull // why is nobody's business
				return nil
			}
			if err := s.acceptOn(ctx, tx, &d, i, by, v); err != nil {
				return err
			}
		}
		t, err = s.token(tx, d, i)
		if fault.Is(err, fault.Unauthenticated) {
			return nil
		}
		answer = nil
		return err
	})
	return t, cmp.Or(err, answer)
}

// errFull is what a device gets that one accepted device more would be.
var errFull = fault.New(fault.Unauthenticated, "unauthorized")

// acceptOn accepts the set at i on the word of by: no person did.
func (s *Service) acceptOn(ctx context.Context, tx store.Tx, d *Device, i int, by string, v *voucher) error {
	ctx = identity.NewContext(ctx, identity.Actor{Kind: identity.System, Org: d.Org, ID: by})
	d.Sets[i].Cert = v.name()
	if err := s.countRule(tx, by); err != nil {
		return err
	}
	if err := s.move(ctx, tx, d, i, Accepted); err != nil {
		return err
	}
	d.Sets[i].By = by
	return table.Set(tx, d.ID, *d)
}

// token returns what the next token of the set at i, an accepted one, says, if its device
// is good now.
func (s *Service) token(tx store.Tx, d Device, i int) (Token, error) {
	return s.tokenOf(tx, d.ID, d.Org, d.Sets[i].ID, d.Sets[i].Epoch)
}

func (s *Service) tokenOf(tx store.Tx, device, org, set string, epoch uint64) (Token, error) {
	if _, _, err := s.Devices.Prove(tx, device, identity.AuthSet, set); err != nil {
		if fault.Is(err, fault.Unauthenticated) {
			return Token{}, errUnauthorized
		}
		return Token{}, err
	}
	return Token{ID: set + "." + rand.Text(), Device: device, Org: org, Epoch: epoch}, nil
}

// enter returns the device and the place of its set for c, both made if they are not
// there. The place is -1 if there is no room for another set.
func (s *Service) enter(ctx context.Context, tx store.Tx, org string, c claim) (Device, int, error) {
	now := s.Now().UTC()
	d, err := table.GetBy(tx, "identity", store.TermOf(org, c.identity.hash()))
	fresh := fault.Is(err, fault.NotFound)
	switch {
	case fresh:
		d = Device{ID: id.New(now), Org: org, Identity: c.identity, CreatedAt: now, Status: NoAuth}
		if err := s.makeRoom(ctx, tx, org); err != nil {
			return d, -1, err
		}
	case err != nil:
		return d, -1, err
	}
	if i := d.withKey(c.key); i >= 0 {
		return d, i, nil
	}
	if len(d.Sets) >= s.Config.MaxSets && !d.dropOldestPending() {
		return d, -1, nil
	}
	was := d.Status
	set := Set{ID: id.New(now), Key: c.key, Status: Pending, Epoch: 1, CreatedAt: now}
	switch was {
	case Preauthorized:
		set.Reason = "preauthorized_key_mismatch" // somebody expects this device with another key
	case Accepted:
		set.Reason = "new_key"
	default:
	}
	d.Sets = append(d.Sets, set)
	if err := s.save(ctx, tx, &d); err != nil {
		return d, -1, err
	}
	if err := s.note(ctx, tx, d, "auth_set.pending", set.ID); err != nil {
		return d, -1, err
	}
	if fresh {
		was = ""
	}
	return d, len(d.Sets) - 1, s.tell(ctx, tx, d, was)
}

// dropOldestPending makes room among d's sets; only sets that nobody has decided about go.
func (d *Device) dropOldestPending() bool {
	for i, set := range d.Sets { // in the order they came
		if set.Status == Pending {
			d.Sets = append(d.Sets[:i:i], d.Sets[i+1:]...)
			return true
		}
	}
	return false
}

// makeRoom evicts the oldest device that nobody has decided about, if there are as many of
// them as there may be.
func (s *Service) makeRoom(ctx context.Context, tx store.Tx, org string) error {
	n, err := table.Count(tx, "junk", store.TermOf(org))
	if err != nil || n < s.Config.MaxPending {
		return err
	}
	p, err := table.PageBy(tx, "junk", store.TermOf(org), page.Request{Limit: 1})
	if err != nil {
		return err
	}
	for _, d := range p.Items {
		if _, err := table.Delete(tx, d.ID); err != nil {
			return err
		}
		if err := s.note(ctx, tx, d, "auth_device.evict", d.ID); err != nil {
			return err
		}
	}
	return nil
}

// setOf is the id of the set that a token with this id is of.
func setOf(tokenID string) string {
	set, _, _ := strings.Cut(tokenID, ".")
	return set
}

// Resolve is the [identity.Method] of device tokens (Bearer).
func (s *Service) Resolve(ctx context.Context, p identity.Proof) (identity.Actor, error) {
	if p.Scheme != "Bearer" {
		return identity.Actor{}, identity.ErrNotMine
	}
	t, err := s.Verify(p.Value)
	if err != nil {
		return identity.Actor{}, err
	}
	// The epoch from before the look at the records: what is revoked while we look
	// makes what we remember stale.
	epoch := s.Devices.Epoch()
	a, ok := s.proven.get(t.ID, epoch)
	if !ok {
		if a, err = s.prove(ctx, t); err != nil {
			return identity.Actor{}, err
		}
		a.Credential = identity.Credential{Kind: identity.DeviceToken, ID: t.ID, ExpiresAt: t.ExpiresAt}
		s.proven.put(t.ID, epoch, a)
	}
	s.seen.at(a.ID, s.Now())
	return a, nil
}

// errToken is what a token gets whose set is accepted no more.
var errToken = fault.New(fault.Unauthenticated, "the token is revoked; ask for a new one")

func (s *Service) prove(ctx context.Context, t Token) (a identity.Actor, err error) {
	err = s.DB.View(ctx, func(tx store.Tx) error {
		d, err := asks.Get(tx, t.Device)
		if fault.Is(err, fault.NotFound) {
			return errToken
		}
		if err != nil {
			return err
		}
		set, ok, err := d.named(setOf(t.ID))
		if err != nil {
			return err
		}
		if !ok || set.status != Accepted || set.epoch != t.Epoch || d.Org != t.Org {
			return errToken
		}
		device, credential, err := s.Devices.Prove(tx, d.ID, identity.AuthSet, string(set.id))
		if err != nil {
			return err
		}
		a = device.Actor(credential)
		return nil
	})
	return a, err
}

// proven remembers the actors of tokens by the tokens' ids, for as long as nothing is
// revoked anywhere.
type proven struct {
	mu    sync.RWMutex
	epoch uint64
	by    map[string]identity.Actor
}

const maxProven = 50_000

func (p *proven) get(id string, epoch uint64) (identity.Actor, bool) {
	p.mu.RLock()
	defer p.mu.RUnlock()
	a, ok := p.by[id]
	return a, ok && p.epoch == epoch
}

func (p *proven) put(id string, epoch uint64, a identity.Actor) {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case epoch < p.epoch:
		return
	case epoch > p.epoch || p.by == nil || len(p.by) >= maxProven:
		p.epoch, p.by = epoch, map[string]identity.Actor{}
	}
	p.by[id] = a
}

// seen keeps when devices were last heard of, in memory until Flush.
type seen struct {
	mu sync.Mutex
	by map[string]time.Time
}

func (s *seen) at(device string, now time.Time) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.by == nil {
		s.by = map[string]time.Time{}
	}
	s.by[device] = now.UTC()
}

func (s *seen) forget(device string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.by, device)
}

func (s *seen) last(device string) (time.Time, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t, ok := s.by[device]
	return t, ok
}

// checkIn is when a device was last heard of.
type checkIn struct {
	At time.Time `cbor:"at"`
}

var checkIns = store.NewTable[checkIn]("auth check-in")

// housekeeping is how often Run writes down check-ins and removes what waited too long; sooner,
// if less is too long.
const housekeeping = 10 * time.Second

// Run does what has to be done from time to time, until ctx is done.
func (s *Service) Run(ctx context.Context) error {
	pause := housekeeping
	if ttl := s.Config.PendingTTL; ttl > 0 {
		pause = min(pause, ttl)
	}
	tick := time.NewTicker(pause)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return s.Flush(context.WithoutCancel(ctx))
		case <-tick.C:
			if err := errors.Join(s.Flush(ctx), s.Sweep(ctx, s.Now())); err != nil && ctx.Err() == nil {
				s.Log.ErrorContext(ctx, "auth sets: housekeeping", slog.Any("error", err))
			}
		}
	}
}

// flushBatch is how many check-ins one transaction writes.
const flushBatch = 1000

// Flush writes down when devices were last heard of.
func (s *Service) Flush(ctx context.Context) error {
	s.seen.mu.Lock()
	due := s.seen.by
	s.seen.by = nil
	s.seen.mu.Unlock()
	batch := map[string]time.Time{}
	write := func() error {
		return s.DB.Update(ctx, func(tx store.Tx) error {
			for device, at := range batch {
				if has, err := table.Has(tx, device); err != nil || !has {
					if err != nil {
						return err
					}
					continue
				}
				if err := checkIns.Set(tx, device, checkIn{at}); err != nil {
					return err
				}
			}
			return nil
		})
	}
	for device, at := range maps.All(due) {
		if batch[device] = at; len(batch) == flushBatch {
			if err := write(); err != nil {
				return err
			}
			clear(batch)
		}
	}
	if len(batch) == 0 {
		return nil
	}
	return write()
}

// checkIn returns when a device was last heard of, zero for never.
func (s *Service) checkIn(tx store.Tx, device string) (time.Time, error) {
	if at, ok := s.seen.last(device); ok {
		return at, nil
	}
	c, err := checkIns.Get(tx, device)
	if fault.Is(err, fault.NotFound) {
		return time.Time{}, nil
	}
	return c.At, err
}
