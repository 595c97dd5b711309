// Package events tells other systems what happened: an outbox written in the
// transaction of the change, and its delivery to webhooks, at least once and for
// each webhook in order.
//
// Whoever changes something calls [Service.Emit] in its transaction; nothing
// waits for a receiver. [Service.Run] delivers, tries again with growing pauses,
// and puts aside what a receiver has refused for a day, where an administrator
// finds it and may send it again.
package events

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"time"

	"keystead/audit"
	"keystead/fault"
	"keystead/id"
	"keystead/identity"
	"keystead/page"
	"keystead/seal"
	"keystead/store"
)

// Event is something that happened.
type Event struct {
	ID   string          `cbor:"id"`
	Org  string          `cbor:"org"`
	Type string          `cbor:"type"`           // "device.suspended"
	Subj string          `cbor:"subj,omitempty"` // what it happened to, mostly a device's id
	Time time.Time       `cbor:"time"`
	Data json.RawMessage `cbor:"data"`

	Client string `cbor:"client,omitempty"` // the client id of the device, for subscriptions
	Only   Format `cbor:"-"`                // for receivers of this format alone; "" for all
}

// Format is how a receiver wants events written.
type Format string

// The formats.
const (
	CloudEvents Format = "cloudevents" // CloudEvents 1.0, structured JSON
	Mender      Format = "mender"      // as Mender's servers send them, signed as they sign
	CreatorDev  Format = "creatordev"  // as the CreatorDev device server sends them, in JSON or XML; see Subscribe
)

// Webhook is a receiver of events.
type Webhook struct {
	ID        string    `cbor:"id"`
	Org       string    `cbor:"org"`
	URL       string    `cbor:"url"`
	Format    Format    `cbor:"format"`
	Types     []string  `cbor:"types,omitempty"`  // of events; a trailing "*" stands for any rest; none for all
	Sealed    []byte    `cbor:"sealed"`           // the secret that deliveries are signed with
	Policy    string    `cbor:"policy,omitempty"` // of a hub: whose key the secret is
	HubAuth   string    `cbor:"auth,omitempty"`   // of a hub: how devices prove themselves there
	Paused    bool      `cbor:"paused,omitempty"`
	Deleted   bool      `cbor:"deleted,omitempty"` // Run drops what waits for it, and then the record
	Client    string    `cbor:"client,omitempty"`  // of a subscription: to what happens to this client alone
	Accept    string    `cbor:"accept,omitempty"`  // of a subscription: the media type it wants; "" for JSON
	CreatedAt time.Time `cbor:"created"`
}

// Delivery is one event on its way to one webhook.
type Delivery struct {
	ID       string    `cbor:"id"`
	Webhook  string    `cbor:"webhook"`
	Event    Event     `cbor:"event"`
	Tries    int       `cbor:"tries,omitempty"`
	NextAt   time.Time `cbor:"next,omitzero"`
	Failed   bool      `cbor:"failed,omitempty"` // put aside
	LastCode int       `cbor:"code,omitempty"`   // HTTP status of the last try, 0 if there was no answer
	LastText string    `cbor:"text,omitempty"`   // why it failed, for the administrator
}

var (
	webhooks = store.NewTable("webhook",
		store.Index[Webhook]{Name: "org", Counted: true, Terms: func(w Webhook) []store.Term {
			if w.Deleted {
				return nil
			}
			return store.Terms(w.Org)
		}})
	// The queue of a webhook is in the order of ids, which is that of the events.
	deliveries = store.NewTable("delivery",
		store.Index[Delivery]{Name: "queue", Counted: true, Terms: func(d Delivery) []store.Term {
			if d.Failed {
				return nil
			}
			return store.Terms(d.Webhook)
		}},
		store.Index[Delivery]{Name: "failed", Counted: true, Terms: func(d Delivery) []store.Term {
			if !d.Failed {
				return nil
			}
			return store.Terms(d.Webhook)
		}})
)

// Message is one request of a try of a delivery.
type Message struct {
	Method   string
	URL      string
	Header   map[string]string
	Body     []byte
	Delivery string      // the same id at every try
	Secret   seal.Secret // what the sender signs with; nil if the message is signed
}

// Answer is what the receiver of a message said.
type Answer struct {
	Status int
	Body   []byte
}

// MaxWebhooks is how many webhooks an organisation has.
const MaxWebhooks = 32

// Service keeps the webhooks and the outbox.
type Service struct {
	DB    store.Engine
	Audit *audit.Log
	Box   *seal.Box
	Now   func() time.Time
	// Send makes one request. It returns an error if there was no answer.
	Send func(ctx context.Context, m Message) (Answer, error)
	// Standing says how a device of an organisation stands.
	Standing func(ctx context.Context, org, device string) (Standing, error)
	// CheckURL says what is wrong with the URL of a new webhook.
	CheckURL func(url string) error

	bell store.Bell // rung when there is something to deliver
}

// Wanted reports whether an organisation has a webhook at all: who would have to
// make an event for nobody asks first.
func (s *Service) Wanted(tx store.Tx, org string) (bool, error) {
	n, err := webhooks.Count(tx, "org", store.TermOf(org))
	return n > 0, err
}

// Emit queues an event for every webhook of its organisation that asks for its
// type, as part of tx. ID and Time are filled in where they are empty.
func (s *Service) Emit(_ context.Context, tx store.Tx, e Event) error {
	if wanted, err := s.Wanted(tx, e.Org); !wanted || err != nil {
		return err
	}
	now := s.Now().UTC()
	if e.ID == "" {
		e.ID = id.New(now)
	}
	if e.Time.IsZero() {
		e.Time = now
	}
	hooks, err := webhooks.PageBy(tx, "org", store.TermOf(e.Org), page.Request{Limit: MaxWebhooks})
	if err != nil {
		return err
	}
	for _, w := range hooks.Items {
		if !w.wants(e) {
			continue
		}
		d := Delivery{ID: id.New(now), Webhook: w.ID, Event: e}
		if err := deliveries.Insert(tx, d.ID, d); err != nil {
			return err
		}
	}
	tx.OnCommit(s.bell.Ring)
	return nil
}

func (w *Webhook) wants(e Event) bool {
	if e.Only != "" && e.Only != w.Format || w.Client != "" && w.Client != e.Client {
		return false
	}
	kind := e.Type
	for _, t := range w.Types {
		if prefix, ok := cutStar(t); t == kind || ok && len(kind) >= len(prefix) && kind[:len(prefix)] == prefix {
			return true
		}
	}
	return len(w.Types) == 0
}

func cutStar(t string) (string, bool) {
	if n := len(t); n > 0 && t[n-1] == '*' {
		return t[:n-1], true
	}
	return "", false
}

// New is what a webhook is created from.
type New struct {
	URL    string
	Format Format
	Types  []string
	Secret seal.Secret // 16 to 128 bytes; one is made if it is empty
	// Connection is the connection string of a hub, and HubAuth how devices prove
	// themselves there, HubKeys if it is empty. They stand in for all but Format.
	Connection seal.Secret
	HubAuth    string
}

// Create adds a webhook. The secret is returned this once, and that of a hub not at all.
func (s *Service) Create(ctx context.Context, n New) (Webhook, seal.Secret, error) {
	policy, err := n.fill()
	if err == nil {
		err = s.check(n)
	}
	if err != nil {
		return Webhook{}, nil, err
	}
	now := s.Now().UTC()
	w := Webhook{
		ID: id.New(now), Org: identity.OrgOf(ctx), URL: n.URL, Format: n.Format, Types: n.Types, Policy: policy, HubAuth: n.HubAuth, CreatedAt: now,
	}
	w.Sealed = s.Box.Seal(w.place(), n.Secret)
	if w.Format == AzureIoTHub {
		n.Secret = nil
	}
	return w, n.Secret, s.DB.Update(ctx, func(tx store.Tx) error {
		has, err := webhooks.Count(tx, "org", store.TermOf(w.Org))
		if err != nil {
			return err
		}
		if has >= MaxWebhooks {
			return fault.New(fault.TooLarge, "the organisation has %d webhooks; delete one first", has)
		}
		if err := webhooks.Insert(tx, w.ID, w); err != nil {
			return err
		}
		return s.Audit.Append(ctx, tx, audit.Entry{Action: "webhook.create", Target: w.ID})
	})
}

// fill puts in what was left to be chosen, and for a hub what its connection string says.
// It returns the name of the hub's policy.
func (n *New) fill() (policy string, err error) {
	if n.Format == "" {
		n.Format = CloudEvents
	}
	if n.Format == AzureIoTHub {
		if n.URL != "" || n.Types != nil || n.Secret != nil {
			return "", fault.InvalidFields(fault.Field{Name: "connection_string", Message: "says where a hub is and what signs; leave out url, types and secret"})
		}
		c, err := parseConnection(n.Connection)
		n.URL, n.Types, n.Secret, n.HubAuth = "https://"+c.host, hubTypes, c.key, cmp.Or(n.HubAuth, HubKeys)
		return c.policy, err
	}
	if n.Connection != nil || n.HubAuth != "" {
		return "", fault.InvalidFields(fault.Field{Name: "connection_string", Message: "goes, like authentication, with the format azure-iot-hub"})
	}
	if len(n.Secret) == 0 {
		n.Secret = seal.NewSecret(32)
	}
	return "", nil
}

func (s *Service) check(n New) error {
	var bad []fault.Field
	if err := s.CheckURL(n.URL); err != nil {
		bad = append(bad, fault.Field{Name: "url", Message: fault.Message(err)})
	}
	if n.Format != CloudEvents && n.Format != Mender && n.Format != AzureIoTHub {
		bad = append(bad, fault.Field{Name: "format", Message: "must be cloudevents, mender or azure-iot-hub"})
	}
	if n.HubAuth != "" && n.HubAuth != HubKeys && n.HubAuth != HubCertificates {
		bad = append(bad, fault.Field{Name: "authentication", Message: "must be sas or certificateAuthority"})
	}
	if len(n.Secret) < 16 || len(n.Secret) > 128 {
		bad = append(bad, fault.Field{Name: "secret", Message: "must have 16 to 128 bytes"})
	}
	if len(n.URL) > 2048 || len(n.Types) > 64 {
		bad = append(bad, fault.Field{Name: "types", Message: "at most 64 types, and 2048 bytes of url"})
	}
	for _, t := range n.Types {
		if len(t) == 0 || len(t) > 128 {
			bad = append(bad, fault.Field{Name: "types", Message: "a type has 1 to 128 bytes"})
		}
	}
	return fault.InvalidFields(bad...)
}

func (w *Webhook) place() string { return "webhook/" + w.ID }

// List returns the webhooks of the actor's organisation.
func (s *Service) List(ctx context.Context, r page.Request) (p page.Page[Webhook], err error) {
	err = s.DB.View(ctx, func(tx store.Tx) error {
		p, err = webhooks.PageBy(tx, "org", store.TermOf(identity.OrgOf(ctx)), r)
		return err
	})
	return p, err
}

// Get returns a webhook of the actor's organisation, or a NotFound fault.
func (s *Service) Get(ctx context.Context, webhookID string) (w Webhook, err error) {
	err = s.DB.View(ctx, func(tx store.Tx) error {
		w, err = s.own(ctx, tx, webhookID)
		return err
	})
	return w, err
}

func (s *Service) own(ctx context.Context, tx store.Tx, webhookID string) (Webhook, error) {
	w, err := webhooks.Get(tx, webhookID)
	if err == nil && (w.Deleted || w.Org != identity.OrgOf(ctx)) {
		return Webhook{}, fault.New(fault.NotFound, "no such webhook")
	}
	return w, err
}

// SetPaused stops or resumes deliveries to a webhook; they wait meanwhile.
func (s *Service) SetPaused(ctx context.Context, webhookID string, paused bool) (w Webhook, err error) {
	err = s.DB.Update(ctx, func(tx store.Tx) error {
		if _, err := s.own(ctx, tx, webhookID); err != nil {
			return err
		}
		w, err = webhooks.Update(tx, webhookID, func(w *Webhook) error {
			w.Paused = paused
			return nil
		})
		if err != nil {
			return err
		}
		tx.OnCommit(s.bell.Ring)
		action := "webhook.resume"
		if paused {
			action = "webhook.pause"
		}
		return s.Audit.Append(ctx, tx, audit.Entry{Action: action, Target: webhookID})
	})
	return w, err
}

// Delete removes a webhook and what waits for it.
func (s *Service) Delete(ctx context.Context, webhookID string) error {
	return s.DB.Update(ctx, func(tx store.Tx) error {
		if _, err := s.own(ctx, tx, webhookID); err != nil {
			return err
		}
		if _, err := webhooks.Update(tx, webhookID, func(w *Webhook) error {
			w.Deleted = true
			return nil
		}); err != nil {
			return err
		}
		tx.OnCommit(s.bell.Ring)
		return s.Audit.Append(ctx, tx, audit.Entry{Action: "webhook.delete", Target: webhookID})
	})
}

// Deliveries returns what waits for a webhook, or what was put aside.
func (s *Service) Deliveries(ctx context.Context, webhookID string, failed bool, r page.Request) (p page.Page[Delivery], err error) {
	index := "queue"
	if failed {
		index = "failed"
	}
	err = s.DB.View(ctx, func(tx store.Tx) error {
		if _, err := s.own(ctx, tx, webhookID); err != nil {
			return err
		}
		p, err = deliveries.PageBy(tx, index, store.TermOf(webhookID), r)
		return err
	})
	return p, err
}

// Resend queues a delivery that was put aside again.
func (s *Service) Resend(ctx context.Context, webhookID, deliveryID string) (d Delivery, err error) {
	err = s.DB.Update(ctx, func(tx store.Tx) error {
		if _, err := s.own(ctx, tx, webhookID); err != nil {
			return err
		}
		d, err = deliveries.Update(tx, deliveryID, func(d *Delivery) error {
			if d.Webhook != webhookID {
				return fault.New(fault.NotFound, "no such delivery")
			}
			d.Failed, d.Tries, d.NextAt = false, 0, time.Time{}
			return nil
		})
		tx.OnCommit(s.bell.Ring)
		return err
	})
	return d, err
}

// TestReport is what came of a test.
type TestReport struct {
	Action string // of a hub: what there is to do for the device
	Status int    // HTTP status of the answer, 0 if there was none
	Error  string // why it did not go well, "" if it did
}

// Test sends a webhook an event of type "test", now and once; it is not queued. Of a hub it
// changes nothing: it is asked for its statistics, or what there would be to do for a device
// if one is named.
func (s *Service) Test(ctx context.Context, webhookID, device string) (r TestReport, err error) {
	w, err := s.Get(ctx, webhookID)
	if err != nil {
		return r, err
	}
	if device != "" && w.Format != AzureIoTHub {
		return r, fault.InvalidFields(fault.Field{Name: "device", Message: "goes with an azure-iot-hub"})
	}
	secret, err := s.Box.Open(w.place(), w.Sealed)
	if err != nil {
		return r, fmt.Errorf("events: webhook %s: %w", w.ID, err)
	}
	defer secret.Wipe()
	var sendErr error
	switch h := (hub{s, w, secret}); {
	case device != "":
		var done settled
		done, sendErr = h.settle(ctx, device, true)
		r.Action, r.Status = done.Action, done.Status
	case w.Format == AzureIoTHub:
		var a Answer
		a, sendErr = h.ask(ctx, "GET", "/statistics/devices", "", nil)
		r.Status = a.Status
	default:
		now := s.Now().UTC()
		e := Event{ID: id.New(now), Org: w.Org, Type: "test", Time: now, Data: json.RawMessage(`{}`)}
		r.Status, sendErr = s.deliverWith(ctx, w, secret, Delivery{ID: id.New(now), Webhook: w.ID, Event: e})
	}
	if sendErr != nil || r.Status < 200 || r.Status > 299 {
		r.Error = reason(r.Status, sendErr)
	}
	return r, nil
}

// MaxSync is how many devices Sync takes.
const MaxSync = 500

// Sync queues for a hub that it shows how devices stand that were there before it was.
func (s *Service) Sync(ctx context.Context, webhookID string, deviceIDs []string) error {
	if len(deviceIDs) > MaxSync {
		return fault.New(fault.TooLarge, "at most %d devices at a time", MaxSync)
	}
	return s.DB.Update(ctx, func(tx store.Tx) error {
		w, err := s.own(ctx, tx, webhookID)
		if err != nil {
			return err
		}
		if w.Format != AzureIoTHub {
			return fault.New(fault.Conflict, "only an azure-iot-hub is brought up to date; a webhook hears of what happens")
		}
		now := s.Now().UTC()
		for _, device := range deviceIDs {
			e := Event{ID: id.New(now), Org: w.Org, Type: "device.sync", Subj: device, Time: now, Data: json.RawMessage(`{}`)}
			d := Delivery{ID: id.New(now), Webhook: w.ID, Event: e}
			if err := deliveries.Insert(tx, d.ID, d); err != nil {
				return err
			}
		}
		tx.OnCommit(s.bell.Ring)
		return nil
	})
}
