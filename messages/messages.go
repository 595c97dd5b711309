// Package messages is the door for what proven devices have to say: it takes a
// SenML pack (RFC 8428), stamps it with who sent it, keeps it, and hands it to
// every sink, at least once and in order. What was accepted survives a crash; a
// sink that is away gets it later.
package messages

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"sync"
	"time"

	"keystead/fault"
	"keystead/id"
	"keystead/identity"
	"keystead/store"
)

// Message is a pack with who sent it.
type Message struct {
	ID           string                  `cbor:"id" json:"id"`
	Organisation string                  `cbor:"org" json:"organisation"`
	Device       string                  `cbor:"device" json:"device"`
	Name         string                  `cbor:"name" json:"name"`
	Credential   identity.CredentialKind `cbor:"cred" json:"credential"`
	CredentialID string                  `cbor:"credid" json:"credential_id"`
	Transport    identity.Transport      `cbor:"transport" json:"transport"`
	ReceivedAt   time.Time               `cbor:"at" json:"received_at"`
	SenML        json.RawMessage         `cbor:"senml" json:"senml"`
}

// Sink is where messages go.
type Sink interface {
	// Name is what the configuration calls it. It never changes while messages wait.
	Name() string
	// Deliver hands a message over, and returns once the other side has it. The
	// same message may come again after a crash; its id tells.
	Deliver(ctx context.Context, m Message) error
	Close() error
}

// waiting is a message on its way to one sink.
type waiting struct {
	Sink    string  `cbor:"sink"`
	Message Message `cbor:"message"`
}

var queue = store.NewTable("message",
	store.Index[waiting]{Name: "sink", Counted: true, Terms: func(w waiting) []store.Term { return store.Terms(w.Sink) }})

// Service is the door. Fill in the exported fields before use.
type Service struct {
	DB    store.Engine
	Now   func() time.Time
	Sinks []Sink
	// Allow takes one from what a device may send now, or says how long to wait.
	Allow func(device string) (wait time.Duration, ok bool)
	// MaxWaiting is how many messages may wait for a sink before the door closes.
	MaxWaiting int

	once  sync.Once
	bells map[string]*store.Bell // rung when there is something for a sink
}

// Accept takes a pack from a's device. It returns once the message is durable.
// It is Invalid, TooLarge or Unsupported for what is wrong with the pack,
// Forbidden for callers that are no device, TooMany over the device's rate, and
// Unavailable if there is no sink or one is too far behind.
func (s *Service) Accept(ctx context.Context, a identity.Actor, via identity.Transport, format Format, body []byte) (Message, error) {
	if a.Kind != identity.Device {
		return Message{}, fault.New(fault.Forbidden, "only a device sends messages; use one of its credentials")
	}
	if len(s.Sinks) == 0 {
		return Message{}, fault.New(fault.Unavailable, "messages lead nowhere: no sink is configured under messages.sinks")
	}
	if wait, ok := s.Allow(a.ID); !ok {
		return Message{}, fault.Later(fault.TooMany, wait, "the device sends more than it may; wait and send again")
	}
	pack, err := Pack(format, body)
	if err != nil {
		return Message{}, err
	}
	now := s.Now().UTC()
	m := Message{
		ID: id.New(now), Organisation: a.Org, Device: a.ID, Name: a.Name, Credential: a.Credential.Kind, CredentialID: a.Credential.ID,
		Transport: via, ReceivedAt: now, SenML: pack,
	}
	return m, s.DB.Update(ctx, func(tx store.Tx) error {
		for _, sink := range s.Sinks {
			n, err := queue.Count(tx, "sink", store.TermOf(sink.Name()))
			if err != nil {
				return err
			}
			if n >= s.MaxWaiting {
				return fault.Later(fault.Unavailable, time.Minute, "%d messages wait for a receiver that does not take them; send again later", n)
			}
			if err := queue.Insert(tx, m.ID+"/"+sink.Name(), waiting{Sink: sink.Name(), Message: m}); err != nil {
				return err
			}
		}
		tx.OnCommit(s.ring)
		return nil
	})
}

// Waiting returns how many messages wait for each sink.
func (s *Service) Waiting(ctx context.Context) (map[string]int, error) {
	counts := map[string]int{}
	err := s.DB.View(ctx, func(tx store.Tx) error {
		for _, sink := range s.Sinks {
			n, err := queue.Count(tx, "sink", store.TermOf(sink.Name()))
			if err != nil {
				return err
			}
			counts[sink.Name()] = n
		}
		return nil
	})
	return counts, err
}

func base64url(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }
