package events_test

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"keystead/audit"
	"keystead/events"
	"keystead/fault"
	"keystead/identity"
	"keystead/page"
	"keystead/seal"
	"keystead/store"
	"keystead/store/bolt"
)

// world is a service on a store of its own, with a receiver whose answers the
// test sets.
type world struct {
	*events.Service
	mu     sync.Mutex
	now    time.Time
	status int
	broken error
	got    []events.Message
}

func start(t *testing.T) *world {
	t.Helper()
	db, err := bolt.Open(filepath.Join(t.TempDir(), "test.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	box, err := seal.NewBox(seal.NewSecret(32))
	if err != nil {
		t.Fatal(err)
	}
	w := &world{now: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC), status: 204}
	now := func() time.Time { return w.now }
	w.Service = &events.Service{
		DB: db, Now: now, Box: box, Audit: &audit.Log{DB: db, Key: seal.NewSecret(32), Now: now},
		CheckURL: func(url string) error {
			if url == "bad" {
				return fault.New(fault.Invalid, "must begin with https://")
			}
			return nil
		},
		Send: func(_ context.Context, m events.Message) (events.Answer, error) {
			w.mu.Lock()
			defer w.mu.Unlock()
			m.Secret = append(seal.Secret{}, m.Secret...) // it is wiped after
			w.got = append(w.got, m)
			return events.Answer{Status: w.status}, w.broken
		},
	}
	return w
}

func acme() context.Context {
	return identity.NewContext(context.Background(), identity.Actor{Kind: identity.User, ID: "u", Org: "acme"})
}

func (w *world) hook(t *testing.T, n events.New) events.Webhook {
	t.Helper()
	h, _, err := w.Create(acme(), n)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func (w *world) emit(t *testing.T, kinds ...string) {
	t.Helper()
	for _, kind := range kinds {
		if err := w.DB.Update(t.Context(), func(tx store.Tx) error {
			return w.Emit(t.Context(), tx, events.Event{Org: "acme", Type: kind, Subj: "d1", Data: json.RawMessage(`{"n":1}`)})
		}); err != nil {
			t.Fatal(err)
		}
	}
}

// round delivers what is due and returns the types received.
func (w *world) round(t *testing.T) (kinds []string) {
	t.Helper()
	w.got = nil
	if _, err := w.Round(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, m := range w.got {
		var e struct{ Type string }
		if err := json.Unmarshal(m.Body, &e); err != nil {
			t.Fatal(err)
		}
		kinds = append(kinds, e.Type)
	}
	return kinds
}

func equal(got []string, want ...string) bool {
	if len(got) != len(want) {
		return false
	}
	for i := range got {
		if got[i] != want[i] {
			return false
		}
	}
	return true
}

func TestDeliveredInOrderOnce(t *testing.T) {
	w := start(t)
	w.hook(t, events.New{URL: "https://hook"})
	w.emit(t, "device.created", "device.suspended", "device.resumed")
	if got := w.round(t); !equal(got, "keystead.device.created", "keystead.device.suspended", "keystead.device.resumed") {
		t.Errorf("got %v, want the three in order", got)
	}
	if got := w.round(t); len(got) != 0 {
		t.Errorf("again: got %v, want nothing", got)
	}
}

func TestFailureKeepsItsPlaceAndIsTriedLater(t *testing.T) {
	w := start(t)
	h := w.hook(t, events.New{URL: "https://hook"})
	w.emit(t, "one", "two")
	w.status = 500
	if got := w.round(t); !equal(got, "keystead.one") {
		t.Errorf("failing: got %v, want the first alone", got)
	}
	if got := w.round(t); len(got) != 0 {
		t.Errorf("at once again: got %v, want a pause", got)
	}
	w.status = 200
	w.now = w.now.Add(2 * time.Second)
	if got := w.round(t); !equal(got, "keystead.one", "keystead.two") {
		t.Errorf("later: got %v, want both", got)
	}
	if p, err := w.Deliveries(acme(), h.ID, false, page.Request{}); err != nil || len(p.Items) != 0 {
		t.Errorf("the queue holds %v, %v; want nothing", p.Items, err)
	}
}

func TestWhatIsRefusedForADayIsPutAside(t *testing.T) {
	w := start(t)
	h := w.hook(t, events.New{URL: "https://hook"})
	w.emit(t, "one")
	w.broken = errors.New("connection refused")
	for range 200 {
		w.round(t)
		w.now = w.now.Add(15 * time.Minute)
	}
	p, err := w.Deliveries(acme(), h.ID, true, page.Request{})
	if err != nil || len(p.Items) != 1 || p.Items[0].LastText != "connection refused" {
		t.Fatalf("put aside: %+v, %v; want the one, and why", p.Items, err)
	}
	w.broken = nil
	w.emit(t, "two")
	if got := w.round(t); !equal(got, "keystead.two") {
		t.Errorf("after it: got %v, want the next", got)
	}
	if _, err := w.Resend(acme(), h.ID, p.Items[0].ID); err != nil {
		t.Fatal(err)
	}
	if got := w.round(t); !equal(got, "keystead.one") {
		t.Errorf("sent again: got %v, want the one", got)
	}
}

// TestOneThatCannotBeOpenedHoldsUpNoOther: its deliveries fail and say why.
func TestOneThatCannotBeOpenedHoldsUpNoOther(t *testing.T) {
	w := start(t)
	broken := w.hook(t, events.New{URL: "https://a.example"})
	box, err := seal.NewBox(seal.NewSecret(32))
	if err != nil {
		t.Fatal(err)
	}
	w.Box = box
	w.hook(t, events.New{URL: "https://b.example"})
	w.emit(t, "device.created")
	if got := w.round(t); !equal(got, "keystead.device.created") {
		t.Errorf("delivered %v", got)
	}
	left, err := w.Deliveries(acme(), broken.ID, false, page.Request{Limit: 10})
	if err != nil || len(left.Items) != 1 || left.Items[0].Tries != 1 || !strings.Contains(left.Items[0].LastText, "cannot be opened") {
		t.Errorf("what waits: %+v, %v", left.Items, err)
	}
}

func TestOnlyWhatIsAskedFor(t *testing.T) {
	w := start(t)
	w.hook(t, events.New{URL: "https://hook", Types: []string{"device.*", "certificate.issued"}})
	w.emit(t, "device.created", "psk.created", "certificate.issued", "certificate.revoked", "devic")
	if got := w.round(t); !equal(got, "keystead.device.created", "keystead.certificate.issued") {
		t.Errorf("got %v", got)
	}
	if err := w.DB.Update(t.Context(), func(tx store.Tx) error {
		return w.Emit(t.Context(), tx, events.Event{Org: "rival", Type: "device.created", Data: json.RawMessage(`{}`)})
	}); err != nil {
		t.Fatal(err)
	}
	if got := w.round(t); len(got) != 0 {
		t.Errorf("of another organisation: got %v, want nothing", got)
	}
}

func TestDeletedAndPausedGetNothing(t *testing.T) {
	w := start(t)
	h := w.hook(t, events.New{URL: "https://hook"})
	w.emit(t, "one")
	if _, err := w.SetPaused(acme(), h.ID, true); err != nil {
		t.Fatal(err)
	}
	if got := w.round(t); len(got) != 0 {
		t.Errorf("paused: got %v", got)
	}
	if err := w.Delete(acme(), h.ID); err != nil {
		t.Fatal(err)
	}
	if got := w.round(t); len(got) != 0 {
		t.Errorf("deleted: got %v", got)
	}
	if _, err := w.Get(acme(), h.ID); !fault.Is(err, fault.NotFound) {
		t.Errorf("Get = %v, want NotFound", err)
	}
}

func TestFormats(t *testing.T) {
	w := start(t)
	secret := seal.Secret("0123456789abcdef")
	w.hook(t, events.New{URL: "https://cloud", Secret: secret})
	w.hook(t, events.New{URL: "https://mender", Format: events.Mender, Secret: secret})
	w.emit(t, "device-provisioned")
	w.round(t)
	if len(w.got) != 2 {
		t.Fatalf("got %d messages, want 2", len(w.got))
	}
	for _, m := range w.got {
		if m.URL == "https://cloud" {
			if string(m.Secret) != string(secret) || m.Header["Content-Type"] != "application/cloudevents+json" || m.Delivery == "" {
				t.Errorf("cloud event: header %v, delivery %q", m.Header, m.Delivery)
			}
			continue
		}
		mac := hmac.New(sha256.New, secret)
		mac.Write(m.Body)
		if want := hex.EncodeToString(mac.Sum(nil)); m.Header["X-Men-Signature"] != want || len(m.Secret) != 0 {
			t.Errorf("Mender's signature = %q, want %q", m.Header["X-Men-Signature"], want)
		}
		var e map[string]any
		if err := json.Unmarshal(m.Body, &e); err != nil || e["type"] != "device-provisioned" || e["data"] == nil {
			t.Errorf("Mender's body = %s, %v", m.Body, err)
		}
	}
}

func TestBadWebhooks(t *testing.T) {
	w := start(t)
	for name, n := range map[string]events.New{
		"url":    {URL: "bad"},
		"format": {URL: "https://hook", Format: "xml"},
		"secret": {URL: "https://hook", Secret: seal.Secret("short")},
		"types":  {URL: "https://hook", Types: []string{""}},
	} {
		if _, _, err := w.Create(acme(), n); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: got %v, want Invalid", name, err)
		}
	}
}

func TestRunWakesAndStops(t *testing.T) {
	w := start(t)
	w.hook(t, events.New{URL: "https://hook"})
	arrived := make(chan struct{}, 1)
	send := w.Send
	w.Send = func(ctx context.Context, m events.Message) (events.Answer, error) {
		defer func() { arrived <- struct{}{} }()
		return send(ctx, m)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- w.Run(ctx) }()
	w.emit(t, "one")
	select {
	case <-arrived:
	case <-time.After(10 * time.Second):
		t.Error("nothing was delivered")
	}
	stop()
	if err := <-ended; err != nil {
		t.Errorf("Run = %v, want nil", err)
	}
}
