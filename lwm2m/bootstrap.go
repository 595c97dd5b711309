package lwm2m

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"keystead/coap"
	"keystead/devices"
	"keystead/fault"
	"keystead/identity"
	"keystead/store"
)

// BootstrapRoutes are the resources of the bootstrap interface.
func (s *Service) BootstrapRoutes() []coap.Route {
	return []coap.Route{
		{Method: coap.POST, Path: "/bs", Need: identity.DeviceOnly, Handle: s.bootstrap, Listed: true, Link: `rt="core.bs"`},
		{Method: coap.GET, Path: "/bspack", Need: identity.DeviceOnly, Handle: s.pack, Listed: true, Link: `ct="112 110 11544"`},
	}
}

// Routes are the resources of the bootstrap and registration interfaces.
func (s *Service) Routes() []coap.Route {
	return append(s.BootstrapRoutes(), []coap.Route{
		{Method: coap.POST, Path: "/rd", Need: identity.DeviceOnly, Handle: s.register, Listed: true, Link: `rt="core.rd"`, MaxBody: maxObjects},
		{Method: coap.POST, Path: "/rd/{id}", Need: identity.DeviceOnly, Handle: s.update, MaxBody: maxObjects},
		{Method: coap.PUT, Path: "/rd/{id}", Need: identity.DeviceOnly, Handle: s.update, MaxBody: maxObjects},
		{Method: coap.DELETE, Path: "/rd/{id}", Need: identity.DeviceOnly, Handle: s.deregister},
	}...)
}

// run is a bootstrap that is going on.
type run struct {
	s       *Service
	session coap.Session
	q       Query
	plan    *plan
	record  Session
	ctx     context.Context //nolint:containedctx // the life of the bootstrap, which its request does not bound
	cancel  context.CancelCauseFunc
	once    sync.Once // of start
	done    chan struct{}
	before  *run // of the same device, which has to end first
	taken   bool // the device has taken the new key of its bootstrap account
}

// Why a bootstrap is cancelled.
var (
	errReplaced = errors.New("the client asked again")
	errStopped  = errors.New("the server is stopping")
	errGone     = errors.New("the session has ended")
)

// bootstrap answers a Bootstrap-Request. What is then written to the device
// follows on the same session, once the answer was sent.
func (s *Service) bootstrap(ctx context.Context, r *coap.Request) (coap.Response, error) {
	p, q, record, err := s.admit(ctx, r, false)
	if err != nil {
		return coap.Response{}, err
	}
	next := &run{s: s, session: r.Session, q: q, plan: p, record: record, done: make(chan struct{})}
	if err := s.enqueue(next); err != nil {
		s.end(ctx, &record, Cancelled, err.Error())
		return coap.Response{}, coap.Errorf(coap.ServiceUnavailable, "%v", err)
	}
	r.Session.OnEnd(func() {
		next.cancel(errGone)
		next.start()
	})
	return coap.Response{Code: coap.Changed, Sent: next.start}, nil
}

// admit checks a request to bootstrap and decides where the device goes.
func (s *Service) admit(ctx context.Context, r *coap.Request, pack bool) (*plan, Query, Session, error) {
	if wait, ok := s.attempts.Take(r.Actor.ID); !ok {
		return nil, Query{}, Session{}, fault.Later(fault.TooMany, wait, "the device has asked to bootstrap too often; wait")
	}
	q, err := ParseQuery(r.Options)
	if err != nil {
		return nil, q, Session{}, err
	}
	d, err := s.Devices.Get(ctx, r.Actor.ID)
	if err != nil {
		return nil, q, Session{}, err
	}
	name, err := endpoint(d, r.Actor, q.Endpoint)
	record := s.begin(r.Actor, q, r.Session.Remote(), pack)
	record.Endpoint, record.Client = name, ClientID(d)
	if err != nil {
		s.end(ctx, &record, Unauthorized, detailOf(err))
		return nil, q, record, err
	}
	if err := s.used(ctx, r.Actor); err != nil {
		s.end(ctx, &record, InternalError, fault.Message(err))
		return nil, q, record, err
	}
	if q.HasPCT && !knownFormat(q.PCT) {
		s.end(ctx, &record, RequestFailed, fmt.Sprintf("pct %d is not supported", q.PCT))
		return nil, q, record, coap.Errorf(coap.UnsupportedContentFormat, "pct is none of 11542, 112, 110 and 11544")
	}
	p := &plan{device: d, subject: Subject{
		Device: d, ClientID: ClientID(d), Endpoint: name, Credential: r.Actor.Credential.Kind, Source: r.Session.Remote().Addr(),
	}}
	if p.decision, err = s.Evaluate(ctx, p.subject); err != nil {
		s.end(ctx, &record, InternalError, fault.Message(err))
		return nil, q, record, err
	}
	p.rotates = !pack && p.decision.Policy.Account == RotateAccount && r.Actor.Credential.Kind == identity.PSK
	record.Policy = p.decision.Policy.ID
	for _, v := range p.decision.Servers {
		record.Servers = append(record.Servers, v.ID)
	}
	if len(p.decision.Servers) == 0 {
		s.end(ctx, &record, NoConfig, "no server takes the device")
		return nil, q, record, coap.Errorf(coap.BadRequest, "no server takes this device; its policies and their servers are to be looked at")
	}
	return p, q, record, nil
}

// enqueue makes next the one bootstrap of its device. One that is going on is
// cancelled; next waits for its end.
func (s *Service) enqueue(next *run) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopping {
		return errStopped
	}
	if next.before = s.running[next.record.Device]; next.before != nil {
		next.before.cancel(errReplaced)
	}
	next.ctx, next.cancel = context.WithCancelCause(s.ctx)
	s.running[next.record.Device] = next
	return nil
}

// start begins the bootstrap, once: when the answer was sent, or when the
// session has ended before that.
func (r *run) start() {
	r.once.Do(func() {
		s := r.s
		s.mu.Lock()
		stopping := s.stopping
		if !stopping {
			s.wait.Add(1)
		}
		s.mu.Unlock()
		if stopping {
			r.cancel(errStopped)
			close(r.done)
			return
		}
		go func() {
			defer s.wait.Done()
			if r.before != nil {
				<-r.before.done
				r.before = nil
			}
			r.work(r.ctx)
			r.cancel(nil)
			s.mu.Lock()
			if s.running[r.record.Device] == r {
				delete(s.running, r.record.Device)
			}
			s.mu.Unlock()
			close(r.done)
		}()
	})
}

// work runs the bootstrap and settles what it made. What is to be written down
// is written even if the service is stopping.
func (r *run) work(ctx context.Context) {
	s := r.s
	system := identity.NewContext(context.WithoutCancel(ctx), identity.Actor{Kind: identity.System, Org: r.record.Org})
	bounded, cancel := context.WithTimeoutCause(identity.NewContext(ctx, identity.FromContext(system)), s.Config.SessionTimeout, context.DeadlineExceeded)
	defer cancel()
	defer r.plan.wipe()
	err := s.prepare(bounded, r.plan, &r.record)
	if err == nil {
		err = r.converse(bounded)
	}
	outcome := r.outcome(bounded, err)
	if outcome == Success {
		if err = s.activate(system, r.plan, true); err != nil {
			outcome = InternalError
		}
	}
	if outcome != Success {
		if failed := s.discard(system, r.plan); failed != nil {
			s.Log.ErrorContext(ctx, "pending credentials not discarded", "session", r.record.ID, "error", failed)
		}
	}
	s.settled(r.plan)
	detail := ""
	if err != nil {
		detail = detailOf(err)
	}
	s.end(system, &r.record, outcome, detail)
}

func detailOf(err error) string {
	if e, ok := errors.AsType[*coap.Error](err); ok {
		return e.Message
	}
	if _, ok := errors.AsType[*fault.Error](err); ok {
		return fault.Message(err)
	}
	return err.Error()
}

// stepError is an answer of the device that ends the bootstrap.
type stepError struct {
	outcome Outcome
	what    string
}

func (e *stepError) Error() string { return e.what }

// outcome says how a bootstrap ended.
func (r *run) outcome(ctx context.Context, err error) Outcome {
	if err == nil {
		return Success
	}
	if e, ok := errors.AsType[*stepError](err); ok {
		return e.outcome
	}
	if _, ok := errors.AsType[*pushError](err); ok {
		return PushFailed
	}
	switch cause := context.Cause(ctx); {
	case errors.Is(cause, errReplaced), errors.Is(cause, errStopped), errors.Is(cause, context.Canceled):
		return Cancelled
	case errors.Is(cause, errGone):
		return ClientGone
	case errors.Is(err, context.DeadlineExceeded):
		return TimedOut
	}
	if _, ok := errors.AsType[*fault.Error](err); ok {
		return InternalError
	}
	return RequestFailed
}

// do makes one request to the device and records it.
func (r *run) do(ctx context.Context, c coap.Call) (coap.Reply, error) {
	bounded, cancel := context.WithTimeout(ctx, r.s.Config.StepTimeout)
	defer cancel()
	start := r.s.Now()
	reply, err := r.session.Do(bounded, c)
	st := Step{At: start.UTC(), Method: c.Method.String(), Path: c.Path, Bytes: len(c.Body), Millis: r.s.Now().Sub(start).Milliseconds()}
	if len(c.Body) > 0 {
		st.Format = &c.Format
	}
	if err != nil {
		st.Error = err.Error()
		if bounded.Err() != nil && ctx.Err() == nil {
			err = fmt.Errorf("%s %s: %w", c.Method, c.Path, context.DeadlineExceeded)
		}
	} else {
		st.Code = reply.Code.String()
	}
	r.s.step(&r.record, st)
	return reply, err
}

// converse is the bootstrap with the device: ask what it has, delete what is to
// go, write the accounts, finish.
func (r *run) converse(ctx context.Context) error {
	found, err := r.discover(ctx)
	if err != nil {
		return err
	}
	tlv := false
	for attempt := 0; ; attempt++ {
		if err := r.deletes(ctx); err != nil {
			return err
		}
		if err := r.write(ctx, found, tlv); err != nil {
			return err
		}
		if r.plan.account != nil {
			if err := r.rotate(ctx, found, tlv); err != nil {
				return err
			}
		}
		r.s.finishing(r.plan)
		reply, err := r.do(ctx, coap.Call{Method: coap.POST, Path: "/bs"})
		if err != nil {
			return err
		}
		switch {
		case reply.Code == coap.Changed:
			return nil
		case reply.Code == coap.NotAcceptable && attempt == 0:
			tlv = true // the one attempt at repair: everything again, in the plainest form
		default:
			return &stepError{FinishFailed, "the device refused to finish: " + reply.Code.String() + " " + printable(reply.Body)}
		}
	}
}

// discovered is what is known of a client before it is written to.
type discovered struct {
	Discovered
	account uint16 // the Security instance of the bootstrap server, not to be touched
	said    bool   // by the client; else it is a guess
}

// discover asks what the client has. One that refuses, as 1.0 lets it, is taken
// to have its bootstrap account where all but one implementation has it.
func (r *run) discover(ctx context.Context) (discovered, error) {
	known := discovered{}
	policy := r.plan.decision.Policy
	if policy.SkipDiscover && !policy.NeedDiscover {
		return known, nil
	}
	reply, err := r.do(ctx, coap.Call{Method: coap.GET, Path: "/", Options: coap.Options{}.AddUint(coap.Accept, uint32(coap.LinkFormat))})
	if err != nil {
		return known, err
	}
	if reply.Code == coap.Content {
		if known.Discovered, err = ParseDiscover(reply.Body); err == nil {
			r.record.Version = known.Version
			known.account, known.said = known.BootstrapAccount(func(uri string) bool { return sameURI(uri, r.s.URI()) })
			return known, nil
		}
	}
	if policy.NeedDiscover {
		return known, &stepError{RequestFailed, "the device does not say what it has, and the policy needs it to"}
	}
	return known, nil
}

// deletes clears what the policy wants gone. That a client refuses is no reason
// to stop: some know less than "/".
func (r *run) deletes(ctx context.Context) error {
	for _, path := range r.plan.decision.Policy.Deletes {
		if _, err := r.do(ctx, coap.Call{Method: coap.DELETE, Path: path}); err != nil {
			return err
		}
	}
	return nil
}

// write writes every account, each refused write once more as TLV. A device
// that does not take one is left as it is, without finishing: told to, it would
// be content with what it has not got.
func (r *run) write(ctx context.Context, known discovered, tlv bool) error {
	for _, i := range r.plan.instances(r.plan.free(known), minorOf(r.q, known.Version)) {
		if err := r.writeOne(ctx, i, tlv); err != nil {
			return err
		}
	}
	return nil
}

// writeOne writes one instance.
func (r *run) writeOne(ctx context.Context, i Instance, tlv bool) error {
	format := formatFor(r.plan.decision.Policy, r.q, i.Object)
	if tlv {
		format = coap.LwM2MTLV
	}
	reply, err := r.put(ctx, i, format)
	if err != nil {
		return err
	}
	if refused := reply.Code == coap.BadRequest || reply.Code == coap.UnsupportedContentFormat || reply.Code == coap.InternalServerError; refused && format != coap.LwM2MTLV {
		if reply, err = r.put(ctx, i, coap.LwM2MTLV); err != nil {
			return err
		}
	}
	if reply.Code != coap.Changed {
		return &stepError{RequestFailed, "the device refused " + i.Path() + ": " + reply.Code.String() + " " + printable(reply.Body)}
	}
	return nil
}

// minorOf is the minor version of LwM2M 1 that a client knows. One that names a
// format knows 1.1.
func minorOf(q Query, discovered string) int {
	version := max(discovered, q.Version)
	switch {
	case version >= "1.2", q.HasPCT && q.PCT == coap.LwM2MCBOR:
		return 2
	case version >= "1.1", q.HasPCT:
		return 1
	}
	return 0
}

// rotate writes a new key to the account the device bootstraps with, the last
// thing before Finish. It is one write of the whole instance, so that the device
// has the old key or the new one and never half of each; and it is made only
// where the device has said which instance that is.
func (r *run) rotate(ctx context.Context, known discovered, tlv bool) error {
	uri := known.URI(known.account)
	if uri == "" {
		uri = r.s.URI()
	}
	if !known.said || uri == "" {
		return &stepError{RequestFailed, "the key of the bootstrap account cannot be replaced: the device does not say where it is, or this server does not know by what URL it is reached (public_url)"}
	}
	system := identity.NewContext(context.WithoutCancel(ctx), identity.Actor{Kind: identity.System, Org: r.record.Org})
	if err := r.s.setWritten(system, r.plan, true); err != nil {
		return err
	}
	err := r.writeOne(ctx, r.plan.bootstrapAccount(known.account, uri), tlv)
	if _, refused := errors.AsType[*stepError](err); refused && !r.taken {
		return errors.Join(err, r.s.setWritten(system, r.plan, false))
	}
	r.taken = r.taken || err == nil
	return err
}

func (r *run) put(ctx context.Context, i Instance, f coap.Format) (coap.Reply, error) {
	body, err := Encode(f, i)
	if err != nil {
		return coap.Reply{}, fault.Wrap(fault.Internal, err, "encoding")
	}
	defer clear(body)
	return r.do(ctx, coap.Call{Method: coap.PUT, Path: i.Path(), Format: f, Body: body})
}

// free returns a function that gives out instance ids nobody has: neither the
// bootstrap account nor what stays on the device.
func (p *plan) free(known discovered) func(uint16) uint16 {
	taken := map[[2]uint16]bool{{objectSecurity, known.account}: true}
	for _, f := range known.Found {
		gone := slices.Contains(p.decision.Policy.Deletes, "/") || slices.Contains(p.decision.Policy.Deletes, fmt.Sprintf("/%d", f.Object))
		if !f.IsObject && !gone {
			taken[[2]uint16{f.Object, f.Instance}] = true
		}
	}
	return func(object uint16) uint16 {
		for n := uint16(0); ; n++ {
			if at := [2]uint16{object, n}; !taken[at] {
				taken[at] = true
				return n
			}
		}
	}
}

// printable is what a device said of an error, made safe to show.
func printable(b []byte) string {
	out := make([]rune, 0, min(len(b), 128))
	for _, c := range string(b[:min(len(b), 128)]) {
		if c >= 0x20 && c != 0x7f && c != '\uFFFD' {
			out = append(out, c)
		}
	}
	return string(out)
}

// pack answers a Bootstrap-Pack-Request: the same accounts, in one answer. The
// credentials in it are good from then on; those they replace go when the first
// of them is used.
func (s *Service) pack(ctx context.Context, r *coap.Request) (coap.Response, error) {
	format, ok := r.Accept()
	if !ok {
		format = coap.SenMLCBOR
	}
	if format != coap.SenMLCBOR && format != coap.SenMLJSON && format != coap.LwM2MCBOR {
		return coap.Response{}, coap.Errorf(coap.NotAcceptable, "a pack comes in 112, 110 or 11544")
	}
	p, _, record, err := s.admit(ctx, r, true)
	if err != nil {
		return coap.Response{}, err
	}
	defer p.wipe()
	defer s.packing(p.device.ID)()
	system := identity.NewContext(context.WithoutCancel(ctx), identity.Actor{Kind: identity.System, Org: record.Org})
	var body []byte
	err = s.prepare(identity.NewContext(ctx, identity.FromContext(system)), p, &record)
	if err == nil {
		// The bootstrap account is where nearly all have it; a client that has it
		// elsewhere keeps it all the same, for a pack leaves it out.
		body, err = EncodePack(format, p.instances(p.free(discovered{}), 2))
	}
	if err == nil {
		err = s.activate(system, p, false)
	}
	if err != nil {
		outcome := InternalError
		if _, pushed := errors.AsType[*pushError](err); pushed {
			outcome = PushFailed
		}
		if failed := s.discard(system, p); failed != nil {
			s.Log.ErrorContext(ctx, "pending credentials not discarded", "session", record.ID, "error", failed)
		}
		s.end(system, &record, outcome, detailOf(err))
		return coap.Response{}, err
	}
	s.step(&record, Step{At: s.Now().UTC(), Method: "GET", Path: "/bspack", Format: &format, Bytes: len(body), Code: coap.Content.String()})
	s.end(system, &record, Delivered, "")
	return coap.Response{Code: coap.Content, Format: format, Body: body}, nil
}

// finishing notes that the device is being told to finish: from then on it may
// come with what it was given, before its answer was written down here.
func (s *Service) finishing(p *plan) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if p.settled == nil {
		p.settled = make(chan struct{})
	}
	for _, credential := range p.made() {
		s.awaited[credential] = p.settled
	}
}

// settled notes that it is known whether the credentials of a plan are good.
func (s *Service) settled(p *plan) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, credential := range p.made() {
		delete(s.awaited, credential)
	}
	if p.settled != nil {
		close(p.settled)
		p.settled = nil
	}
}

// awaitAtMost is how long a handshake waits for a bootstrap to be written down.
const awaitAtMost = 5 * time.Second

// Await reports whether a credential, by its id, is one that a device was just
// told to use, and waits until it is known whether it is good. Others are not
// waited for. It is for those who would refuse it now.
func (s *Service) Await(ctx context.Context, credential string) bool {
	s.mu.Lock()
	settled := s.awaited[credential]
	s.mu.Unlock()
	if settled == nil {
		return false
	}
	bounded, cancel := context.WithTimeout(ctx, awaitAtMost)
	defer cancel()
	select {
	case <-settled:
		return true
	case <-bounded.Done():
		return false
	}
}

// packing keeps the sweep from the pending credentials of a device until the
// function it returns is called.
func (s *Service) packing(device string) func() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.packs[device]++
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.packs[device]--; s.packs[device] == 0 {
			delete(s.packs, device)
		}
	}
}

// Sweep ends what was left behind: credentials of bootstraps that were cut off,
// registrations whose lifetime is over, records that are old.
func (s *Service) Sweep(ctx context.Context, now time.Time) error {
	return errors.Join(s.sweepPending(ctx), s.sweepRegistrations(ctx, now), s.sweepSessions(ctx, now))
}

func (s *Service) sweepPending(ctx context.Context) error {
	for a, err := range assignments.All(ctx, s.DB, "pending", store.TermOf("")) {
		if err != nil {
			return err
		}
		s.mu.Lock()
		_, running := s.running[a.Device]
		packs := s.packs[a.Device]
		s.mu.Unlock()
		if running || packs > 0 {
			continue
		}
		err := s.DB.Update(ctx, func(tx store.Tx) error {
			now, err := assignments.Get(tx, a.Device)
			if err != nil {
				return err
			}
			now.Handed = slices.Clone(now.Handed)
			for i := range now.Handed {
				h := &now.Handed[i]
				if h.State != devices.CredentialPending || !slices.Contains(a.Handed, *h) {
					continue
				}
				if err := s.abandon(ctx, tx, &now, h); err != nil && !fault.Is(err, fault.NotFound) {
					return err
				}
			}
			now.forget()
			return assignments.Set(tx, now.Device, now)
		})
		if err != nil && !fault.Is(err, fault.NotFound) {
			return err
		}
	}
	return nil
}

func (s *Service) sweepSessions(ctx context.Context, now time.Time) error {
	if s.Config.KeepSessions == 0 {
		return nil
	}
	var old []string
	for v, err := range sessions.All(ctx, s.DB, "", "") { // ids sort by when they were made
		if err != nil {
			return err
		}
		if now.Sub(v.EndedAt) < s.Config.KeepSessions || len(old) == store.MaxScan {
			break
		}
		old = append(old, v.ID)
	}
	if len(old) == 0 {
		return nil
	}
	return s.DB.Update(ctx, func(tx store.Tx) error {
		for _, sessionID := range old {
			if _, err := sessions.Delete(tx, sessionID); err != nil && !fault.Is(err, fault.NotFound) {
				return err
			}
		}
		return nil
	})
}
