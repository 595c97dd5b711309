package lwm2m

import (
	"context"
	"net/netip"
	"time"

	"keystead/coap"
	"keystead/fault"
	"keystead/id"
	"keystead/identity"
	"keystead/page"
	"keystead/store"
)

// Session is the record of one bootstrap.
type Session struct {
	ID         string                  `cbor:"id" json:"id"`
	Org        string                  `cbor:"org" json:"organisation"`
	Device     string                  `cbor:"device" json:"device"`
	Client     string                  `cbor:"client,omitempty" json:"client"` // its client id
	Credential identity.CredentialKind `cbor:"kind" json:"credential"`
	Identity   string                  `cbor:"cred" json:"identity"` // the id of the credential
	Endpoint   string                  `cbor:"ep" json:"endpoint"`
	Remote     netip.AddrPort          `cbor:"remote" json:"remote"`
	Version    string                  `cbor:"version,omitempty" json:"version,omitempty"`
	PCT        *coap.Format            `cbor:"pct,omitempty" json:"pct,omitempty"`
	Pack       bool                    `cbor:"pack,omitempty" json:"pack"`
	Policy     string                  `cbor:"policy,omitempty" json:"policy,omitempty"`
	Servers    []string                `cbor:"servers,omitempty" json:"servers"`
	Steps      []Step                  `cbor:"steps,omitempty" json:"steps"`
	Outcome    Outcome                 `cbor:"outcome" json:"outcome"`
	Detail     string                  `cbor:"detail,omitempty" json:"detail,omitempty"`
	StartedAt  time.Time               `cbor:"started" json:"started_at"`
	EndedAt    time.Time               `cbor:"ended" json:"ended_at"`
}

// Step is one exchange with the device.
type Step struct {
	At     time.Time    `cbor:"at" json:"at"`
	Method string       `cbor:"method" json:"method"`
	Path   string       `cbor:"path" json:"path"`
	Format *coap.Format `cbor:"format,omitempty" json:"format,omitempty"`
	Bytes  int          `cbor:"bytes,omitempty" json:"bytes,omitempty"`
	Code   string       `cbor:"code,omitempty" json:"code,omitempty"` // what the device answered
	Error  string       `cbor:"error,omitempty" json:"error,omitempty"`
	Millis int64        `cbor:"ms" json:"ms"`
}

// Outcome is how a bootstrap ended.
type Outcome string

// The outcomes.
const (
	Success        Outcome = "SUCCESS"
	Delivered      Outcome = "DELIVERED" // a pack was sent; the first use of it will tell
	Unauthorized   Outcome = "UNAUTHORIZED"
	NoConfig       Outcome = "NO_BOOTSTRAP_CONFIG"
	RequestFailed  Outcome = "REQUEST_FAILED"
	FinishFailed   Outcome = "FINISH_FAILED"
	PushFailed     Outcome = "CREDENTIAL_PUSH_FAILED"
	Cancelled      Outcome = "CANCELLED"
	TimedOut       Outcome = "TIMEOUT"
	ClientGone     Outcome = "CLIENT_GONE"
	InternalError  Outcome = "INTERNAL_SERVER_ERROR"
	notEnded       Outcome = ""
	maxTails               = 100
	tailBuffer             = 64
	maxStepsInTail         = 64
)

var sessions = store.NewTable("LwM2M session",
	store.Index[Session]{Name: "org", Terms: func(v Session) []store.Term { return store.Terms(v.Org) }},
	store.Index[Session]{Name: "device", Terms: func(v Session) []store.Term { return store.Terms(v.Org, v.Device) }},
)

// Event is something that happened in a bootstrap, for those who watch.
type Event struct {
	What    string  `json:"what"` // started, step, ended
	Session Session `json:"session"`
	Step    *Step   `json:"step,omitempty"`
}

// begin makes the record of a bootstrap.
func (s *Service) begin(a identity.Actor, q Query, remote netip.AddrPort, pack bool) Session {
	now := s.Now().UTC()
	v := Session{
		ID: id.New(now), Org: a.Org, Device: a.ID, Credential: a.Credential.Kind, Identity: a.Credential.ID,
		Endpoint: q.Endpoint, Remote: remote, Version: q.Version, Pack: pack, StartedAt: now,
	}
	if q.HasPCT {
		v.PCT = &q.PCT
	}
	s.tell(Event{What: "started", Session: v})
	return v
}

// end stores the record of a bootstrap that is over.
func (s *Service) end(ctx context.Context, v *Session, o Outcome, detail string) {
	v.Outcome, v.Detail, v.EndedAt = o, detail, s.Now().UTC()
	err := s.DB.Update(ctx, func(tx store.Tx) error {
		if err := sessions.Insert(tx, v.ID, *v); err != nil {
			return err
		}
		what := BootstrapFailed
		switch o {
		case Success, Delivered:
			what = BootstrapFinished
		case Unauthorized:
			if err := s.emit(ctx, tx, v.happened(AuthenticationFailed)); err != nil {
				return err
			}
		default:
		}
		return s.emit(ctx, tx, v.happened(what))
	})
	if err != nil {
		s.Log.ErrorContext(ctx, "bootstrap not recorded", "session", v.ID, "error", err)
	}
	s.Log.InfoContext(ctx, "bootstrap", "session", v.ID, "device", v.Device, "endpoint", v.Endpoint, "outcome", string(o), "detail", detail, "took", v.EndedAt.Sub(v.StartedAt))
	s.tell(Event{What: "ended", Session: *v})
}

// step adds an exchange to a record.
func (s *Service) step(v *Session, st Step) {
	if len(v.Steps) < maxStepsInTail {
		v.Steps = append(v.Steps, st)
	}
	short := *v
	short.Steps = nil
	s.tell(Event{What: "step", Session: short, Step: &st})
}

// tell gives an event to those who watch. Who does not keep up misses some.
func (s *Service) tell(e Event) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c, org := range s.tails {
		if org == e.Session.Org {
			select {
			case c <- e:
			default:
			}
		}
	}
}

// Tail returns the bootstraps of the actor's organisation as they happen, until
// stop is called, or the service stops and closes the channel. It is Unavailable when too many watch already.
func (s *Service) Tail(ctx context.Context) (events <-chan Event, stop func(), err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopping || len(s.tails) >= maxTails {
		return nil, nil, fault.New(fault.Unavailable, "too many are watching already")
	}
	c := make(chan Event, tailBuffer)
	s.tails[c] = identity.OrgOf(ctx)
	return c, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.tails, c)
	}, nil
}

// Sessions returns a page of the bootstraps of the actor's organisation, oldest
// first; of one device if device is not empty.
func (s *Service) Sessions(ctx context.Context, device string, r page.Request) (p page.Page[Session], err error) {
	index, term := "org", store.TermOf(identity.OrgOf(ctx))
	if device != "" {
		index, term = "device", store.TermOf(identity.OrgOf(ctx), device)
	}
	err = s.DB.View(ctx, func(tx store.Tx) error {
		p, err = sessions.PageBy(tx, index, term, r)
		return err
	})
	return p, err
}

// Session returns one bootstrap of the actor's organisation.
func (s *Service) Session(ctx context.Context, sessionID string) (v Session, err error) {
	err = s.DB.View(ctx, func(tx store.Tx) error {
		if v, err = sessions.Get(tx, sessionID); err == nil && v.Org != identity.OrgOf(ctx) {
			err = fault.New(fault.NotFound, "no such LwM2M session")
		}
		return err
	})
	return v, err
}

// Happened is something other systems may be told of.
type Happened struct {
	What    string // one of the constants below
	Org     string
	Device  string
	Client  string // its client id
	Session *Session
}

// What can happen.
const (
	ClientConnected         = "ClientConnected"
	ClientDisconnected      = "ClientDisconnected"
	ClientUpdated           = "ClientUpdated"
	ClientConnectionExpired = "ClientConnectionExpired"
	BootstrapStarted        = "BootstrapStarted"
	BootstrapFinished       = "BootstrapFinished"
	BootstrapFailed         = "BootstrapFailed"
	AuthenticationFailed    = "AuthenticationFailed"
)

// happened is something that happened to the bootstrap.
func (v *Session) happened(what string) Happened {
	return Happened{What: what, Org: v.Org, Device: v.Device, Client: v.Client, Session: v}
}

// happened is something that happened to the registration.
func (v *Registration) happened(what string) Happened {
	return Happened{What: what, Org: v.Org, Device: v.Device, Client: v.Location}
}

func (s *Service) emit(ctx context.Context, tx store.Tx, h Happened) error {
	if s.Emit == nil {
		return nil
	}
	return s.Emit(ctx, tx, h)
}
