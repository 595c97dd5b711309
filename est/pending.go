package est

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"time"

	"keystead/audit"
	"keystead/fault"
	"keystead/id"
	"keystead/identity"
	"keystead/page"
	"keystead/store"
)

// Waiting is an enrolment that waits for an administrator.
type Waiting struct {
	ID      string       `cbor:"id"`
	Org     string       `cbor:"org"`
	DMS     string       `cbor:"dms"`
	Caller  string       `cbor:"caller"`
	Name    string       `cbor:"name"`
	Subject string       `cbor:"subject"`
	Request []byte       `cbor:"csr"`
	Key     string       `cbor:"key"` // of subject and public key
	State   WaitingState `cbor:"state"`
	From    string       `cbor:"from"`
	At      time.Time    `cbor:"at"`
}

// WaitingState is what an administrator said.
type WaitingState string

// The states.
const (
	StateWaiting  WaitingState = "waiting"
	StateApproved WaitingState = "approved"
	StateDenied   WaitingState = "denied"
)

// pendingKept is how long an enrolment waits.
const pendingKept = 30 * 24 * time.Hour

// maxPending is how many may wait in one DMS.
const maxPending = 1000

var pendings = store.NewTable("waiting enrolment",
	store.Index[Waiting]{Name: "org", Terms: func(w Waiting) []store.Term { return store.Terms(w.Org) }},
	store.Index[Waiting]{Name: "dms", Counted: true, Terms: func(w Waiting) []store.Term { return store.Terms(w.DMS) }},
	store.Index[Waiting]{Name: "request", Unique: true, Terms: func(w Waiting) []store.Term { return store.Terms(w.Key) }},
)

// requestKey recognises a request that is repeated: by its subject and key, for the
// rest of it is made anew on every connection.
func requestKey(csr *x509.CertificateRequest) string {
	h := sha256.New()
	h.Write(csr.RawSubject)
	h.Write(csr.RawSubjectPublicKeyInfo)
	return hex.EncodeToString(h.Sum(nil))
}

func requestTerm(csr *x509.CertificateRequest) store.Term { return store.TermOf(requestKey(csr)) }

// approved lets an enrolment go on if its DMS asks nobody, or somebody has
// approved; else it waits.
func (s *Service) approved(ctx context.Context, p *plan, call *Call) error {
	if !p.dms.Settings.Enrollment.ManualApproval {
		return nil
	}
	var w Waiting
	err := s.DB.Update(ctx, func(tx store.Tx) (err error) {
		w, err = pendings.GetBy(tx, "request", requestTerm(p.csr))
		if !fault.Is(err, fault.NotFound) {
			return err
		}
		n, err := pendings.Count(tx, "dms", store.TermOf(p.dms.ID))
		if err != nil {
			return err
		}
		if n >= maxPending {
			return fault.Later(fault.Unavailable, time.Hour, "too many enrolments wait for approval; try again later")
		}
		now := s.Now().UTC()
		w = Waiting{
			ID: id.New(now), Org: p.dms.Org, DMS: p.dms.ID, Caller: p.caller.key(), Name: p.name, Subject: p.csr.Subject.String(), Request: p.csr.Raw,
			Key: requestKey(p.csr), State: StateWaiting, From: call.Remote.String(), At: now,
		}
		if err := pendings.Insert(tx, w.ID, w); err != nil {
			return err
		}
		return s.Audit.Append(ctx, tx, audit.Entry{Action: "enrolment.wait", Target: w.ID, Org: w.Org, Detail: map[string]string{"dms": w.DMS, "name": w.Name}})
	})
	switch {
	case err != nil:
		return err
	case w.DMS != p.dms.ID || w.Caller != p.caller.key():
		return fault.New(fault.Forbidden, "another client has asked for this subject and key already")
	case w.State == StateDenied:
		return fault.New(fault.Forbidden, "an administrator has denied this enrolment")
	case w.State == StateApproved:
		return nil
	}
	return &PendingError{ID: w.ID, RetryAfter: retryAfter}
}

// Waitings lists the enrolments of the actor's organisation that wait.
func (s *Service) Waitings(ctx context.Context, r page.Request) (p page.Page[Waiting], err error) {
	err = s.DB.View(ctx, func(tx store.Tx) error {
		p, err = pendings.PageBy(tx, "org", store.TermOf(identity.OrgOf(ctx)), r)
		return err
	})
	return p, err
}

// Decide approves or denies an enrolment that waits. The client learns of it
// when it asks again.
func (s *Service) Decide(ctx context.Context, waiting string, approve bool) (w Waiting, err error) {
	err = s.DB.Update(ctx, func(tx store.Tx) error {
		w, err = pendings.Get(tx, waiting)
		if err == nil && w.Org != identity.OrgOf(ctx) {
			err = fault.New(fault.NotFound, "no such waiting enrolment")
		}
		if err != nil {
			return err
		}
		state, action := StateDenied, "enrolment.deny"
		if approve {
			state, action = StateApproved, "enrolment.approve"
		}
		if w, err = pendings.Update(tx, waiting, func(w *Waiting) error { w.State = state; return nil }); err != nil {
			return err
		}
		return s.Audit.Append(ctx, tx, audit.Entry{Action: action, Target: w.ID, Org: w.Org, Detail: map[string]string{"dms": w.DMS, "name": w.Name}})
	})
	return w, err
}
