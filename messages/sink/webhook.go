package sink

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"

	"keystead/messages"
	"keystead/outbound"
	"keystead/seal"
)

// Webhook posts messages, one a request, signed.
type Webhook struct {
	name   string
	url    string
	secret seal.Secret
	client *outbound.Client
}

// NewWebhook returns a sink that posts to url; a nil secret leaves the signature out.
func NewWebhook(name, url string, secret seal.Secret, client *outbound.Client) *Webhook {
	return &Webhook{name, url, secret, client}
}

// Name returns the sink's name.
func (w *Webhook) Name() string { return w.name }

// Deliver posts m. Any status but one of success is a failure.
func (w *Webhook) Deliver(ctx context.Context, m messages.Message) error {
	body, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("sink %s: %w", w.name, err)
	}
	a, err := w.client.Do(ctx, outbound.Request{
		Method: http.MethodPost, URL: w.url, Header: map[string]string{"Content-Type": "application/json"}, Body: body, Delivery: m.ID, Secret: w.secret,
	})
	if err != nil {
		return fmt.Errorf("sink %s: %w", w.name, err)
	}
	if !a.OK() {
		return fmt.Errorf("sink %s: the receiver answered with status %d", w.name, a.Status)
	}
	return nil
}

// Close ends idle connections.
func (w *Webhook) Close() error {
	w.client.Close()
	return nil
}
