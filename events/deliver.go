package events

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2" //nolint:depguard // jitter
	"time"

	"golang.org/x/sync/errgroup"

	"keystead/fault"
	"keystead/page"
	"keystead/seal"
	"keystead/store"
)

// When a delivery that fails is tried again, and when it is put aside.
const (
	firstPause = time.Second
	maxPause   = 10 * time.Minute
	maxTries   = 160 // a day, mostly at maxPause
	fewTries   = 10  // of a subscription, as its clients know it
	batchSize  = 64  // deliveries read at a time, of each webhook
	atOnce     = 8   // webhooks delivered to at the same time
	idlePause  = time.Minute
)

// Run delivers until ctx is done.
func (s *Service) Run(ctx context.Context) error { return s.bell.Rounds(ctx, s.Round) }

// Round delivers what is due now and returns how long to wait for the next.
func (s *Service) Round(ctx context.Context) (time.Duration, error) {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(atOnce)
	pauses := make(chan time.Duration, atOnce)
	least := make(chan time.Duration)
	go func() {
		shortest := idlePause
		for p := range pauses {
			shortest = min(shortest, p)
		}
		least <- shortest
	}()
	var listed error
	for w, err := range webhooks.All(ctx, s.DB, "", "") {
		if err != nil {
			listed = err
			break
		}
		if w.Paused && !w.Deleted {
			continue
		}
		group.Go(func() error {
			if w.Deleted {
				return s.purge(ctx, w)
			}
			pause, err := s.drain(ctx, w)
			pauses <- pause
			return err
		})
	}
	err := errors.Join(listed, group.Wait())
	close(pauses)
	return max(<-least, 10*time.Millisecond), err
}

// drain delivers to one webhook, in order, until nothing is left or one fails.
// It returns how long to wait before looking again.
func (s *Service) drain(ctx context.Context, w Webhook) (time.Duration, error) {
	for ctx.Err() == nil {
		var p page.Page[Delivery]
		err := s.DB.View(ctx, func(tx store.Tx) (err error) {
			p, err = deliveries.PageBy(tx, "queue", store.TermOf(w.ID), page.Request{Limit: batchSize})
			return err
		})
		if err != nil || len(p.Items) == 0 {
			return idlePause, err
		}
		for _, d := range p.Items {
			if wait := d.NextAt.Sub(s.Now()); wait > 0 {
				return wait, nil
			}
			if done, err := s.try(ctx, w, d); !done || err != nil {
				return 0, err
			}
		}
	}
	return idlePause, nil
}

// try delivers d once and notes what came of it. It reports false if the
// delivery stays at the head of its queue.
func (s *Service) try(ctx context.Context, w Webhook, d Delivery) (done bool, err error) {
	code, sendErr := s.deliver(ctx, w, d)
	if ctx.Err() != nil {
		return false, nil //nolint:nilerr // stopping: it is tried again at the next start
	}
	delivered := sendErr == nil && (code >= 200 && code <= 299 || w.Format == CreatorDev && dropped(code))
	most := maxTries
	if w.Format == CreatorDev {
		most = fewTries
	}
	err = s.DB.Update(ctx, func(tx store.Tx) error {
		done = true
		if delivered {
			_, err := deliveries.Delete(tx, d.ID)
			return missingIsFine(err)
		}
		_, err := deliveries.Update(tx, d.ID, func(d *Delivery) error {
			d.Tries++
			d.LastCode, d.LastText = code, reason(code, sendErr)
			d.Failed = d.Tries >= most || code == 410 // Gone: the receiver wants no more
			d.NextAt = s.Now().UTC().Add(pauseAfter(d.Tries))
			done = d.Failed
			return nil
		})
		return missingIsFine(err)
	})
	return done, err
}

// deliver makes one try, and returns the receiver's status. A webhook whose secret
// cannot be opened fails like one that does not answer: it holds up no other.
func (s *Service) deliver(ctx context.Context, w Webhook, d Delivery) (int, error) {
	secret, err := s.Box.Open(w.place(), w.Sealed)
	if err != nil {
		return 0, errors.New("the secret of the webhook cannot be opened: make the webhook anew")
	}
	defer secret.Wipe()
	return s.deliverWith(ctx, w, secret, d)
}

func (s *Service) deliverWith(ctx context.Context, w Webhook, secret seal.Secret, d Delivery) (int, error) {
	if w.Format == AzureIoTHub {
		done, err := hub{s, w, secret}.settle(ctx, d.Event.Subj, false)
		return done.Status, err
	}
	m, err := w.encode(d, secret)
	if err != nil {
		return 0, err
	}
	a, err := s.Send(ctx, m)
	return a.Status, err
}

// dropped reports whether a receiver of the CreatorDev kind has no use for what
// it was sent: it is not sent again.
func dropped(code int) bool { return code == 400 || code == 401 || code == 404 || code == 405 }

func missingIsFine(err error) error {
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	return err
}

func reason(code int, err error) string {
	if err != nil {
		return err.Error()
	}
	return fmt.Sprintf("the receiver answered with status %d", code)
}

// pauseAfter doubles with each try, with up to a fifth of jitter so that
// receivers that come back are not met by all at once.
func pauseAfter(tries int) time.Duration {
	p := min(firstPause<<min(tries-1, 20), maxPause)
	return p + rand.N(p/5+1) //nolint:gosec // G404: jitter
}

// purge drops what waits for a deleted webhook, or was put aside, and the webhook.
func (s *Service) purge(ctx context.Context, w Webhook) error {
	for _, index := range []string{"queue", "failed"} {
		for more := true; more; {
			err := s.DB.Update(ctx, func(tx store.Tx) error {
				p, err := deliveries.PageBy(tx, index, store.TermOf(w.ID), page.Request{Limit: page.MaxLimit})
				if err != nil {
					return err
				}
				more = p.Next != ""
				for _, d := range p.Items {
					if _, err := deliveries.Delete(tx, d.ID); err != nil {
						return err
					}
				}
				return nil
			})
			if err != nil {
				return err
			}
		}
	}
	return s.DB.Update(ctx, func(tx store.Tx) error {
		_, err := webhooks.Delete(tx, w.ID)
		return missingIsFine(err)
	})
}

// encode writes a delivery as its receiver wants it.
func (w *Webhook) encode(d Delivery, secret seal.Secret) (Message, error) {
	m := Message{Method: "POST", URL: w.URL, Delivery: d.ID}
	var err error
	switch w.Format {
	case CreatorDev:
		m.Body, m.Header, err = w.notification(d)
	case Mender:
		m.Body, err = json.Marshal(menderEvent{d.Event.ID, d.Event.Type, d.Event.Data, d.Event.Time.UTC()})
		mac := hmac.New(sha256.New, secret)
		mac.Write(m.Body)
		m.Header = map[string]string{
			"Content-Type":    "application/json",
			"X-Men-Algorithm": "MEN-HMAC-SHA256-Payload",
			"X-Men-Signature": hex.EncodeToString(mac.Sum(nil)),
		}
	default:
		m.Secret = secret
		m.Header = map[string]string{"Content-Type": "application/cloudevents+json"}
		m.Body, err = json.Marshal(cloudEvent{
			"1.0", d.Event.ID, "/organisations/" + d.Event.Org, "keystead." + d.Event.Type, d.Event.Subj, d.Event.Time.UTC(), "application/json", d.Event.Data,
		})
	}
	if err != nil {
		return m, fmt.Errorf("events: %w", err)
	}
	return m, nil
}

// menderEvent is an event as Mender's iot-manager sends it.
type menderEvent struct {
	ID   string          `json:"id"`
	Type string          `json:"type"`
	Data json.RawMessage `json:"data"`
	Time time.Time       `json:"time"`
}

// cloudEvent is an event by CloudEvents 1.0, section 2, in structured JSON.
type cloudEvent struct {
	SpecVersion     string          `json:"specversion"`
	ID              string          `json:"id"`
	Source          string          `json:"source"`
	Type            string          `json:"type"`
	Subject         string          `json:"subject,omitempty"`
	Time            time.Time       `json:"time"`
	DataContentType string          `json:"datacontenttype"`
	Data            json.RawMessage `json:"data"`
}
