package client

import (
	"context"
	"iter"
	"net/http"
	"net/url"
	"time"
)

// Webhook is told of what happens in the organisation.
type Webhook struct {
	ID        string    `json:"id"`
	URL       string    `json:"url"`
	Format    string    `json:"format"`
	Types     []string  `json:"types"`
	Paused    bool      `json:"paused"`
	Policy    string    `json:"policy,omitempty"`         // of an Azure IoT Hub
	HubAuth   string    `json:"authentication,omitempty"` // of an Azure IoT Hub
	CreatedAt time.Time `json:"created_at"`
	Secret    string    `json:"secret,omitempty"` // hexadecimal; when it was just made
}

// NewWebhook is a webhook to be made.
type NewWebhook struct {
	URL    string   `json:"url,omitempty"`
	Format string   `json:"format,omitempty"`
	Types  []string `json:"types,omitempty"`
	Secret string   `json:"secret,omitempty"` // hexadecimal; one is made if it is empty

	Connection string `json:"connection_string,omitempty"` // of an Azure IoT Hub, in place of the others
	HubAuth    string `json:"authentication,omitempty"`
}

// WebhookTest is what came of a test.
type WebhookTest struct {
	OK     bool   `json:"ok"`
	Status int    `json:"status"`
	Error  string `json:"error"`
	Action string `json:"action,omitempty"` // what there would be to do for the device
}

// WebhookSync is one step of bringing a hub up to date.
type WebhookSync struct {
	Queued int    `json:"queued"`
	Next   string `json:"next,omitempty"` // "" at the end
}

// Delivery is an event on its way to a webhook, or put aside.
type Delivery struct {
	ID         string     `json:"id"`
	Event      string     `json:"event"`
	Type       string     `json:"type"`
	Subject    string     `json:"subject"`
	Time       time.Time  `json:"time"`
	Tries      int        `json:"tries"`
	Failed     bool       `json:"failed"`
	NextAt     *time.Time `json:"next_at"`
	LastStatus int        `json:"last_status"`
	LastError  string     `json:"last_error"`
}

const webhooksPath = "/api/v1/webhooks"

// CreateWebhook makes a webhook.
func (c *Client) CreateWebhook(ctx context.Context, n NewWebhook) (Webhook, error) {
	return Do[Webhook](ctx, c, http.MethodPost, webhooksPath, nil, n)
}

// Webhooks lists the webhooks of the organisation.
func (c *Client) Webhooks(ctx context.Context) iter.Seq2[Webhook, error] {
	return List[Webhook](ctx, c, webhooksPath, nil)
}

// PauseWebhook has deliveries wait, or go on.
func (c *Client) PauseWebhook(ctx context.Context, id string, paused bool) (Webhook, error) {
	action := "resume"
	if paused {
		action = "pause"
	}
	return Do[Webhook](ctx, c, http.MethodPost, webhooksPath+Path(id, action), nil, nil)
}

// DeleteWebhook removes a webhook and what waits for it.
func (c *Client) DeleteWebhook(ctx context.Context, id string) error {
	_, err := Do[struct{}](ctx, c, http.MethodDelete, webhooksPath+Path(id), nil, nil)
	return err
}

// Deliveries lists what waits for a webhook, or what was put aside.
func (c *Client) Deliveries(ctx context.Context, id string, failed bool) iter.Seq2[Delivery, error] {
	q := url.Values{}
	if failed {
		q.Set("failed", "true")
	}
	return List[Delivery](ctx, c, webhooksPath+Path(id, "deliveries"), q)
}

// ResendDelivery tries a delivery that was put aside again.
func (c *Client) ResendDelivery(ctx context.Context, id, delivery string) (Delivery, error) {
	return Do[Delivery](ctx, c, http.MethodPost, webhooksPath+Path(id, "deliveries", delivery, "resend"), nil, nil)
}

// TestWebhook tries a receiver once; of a hub it changes nothing, and says what there is to
// do for a device if one is named.
func (c *Client) TestWebhook(ctx context.Context, id, device string) (WebhookTest, error) {
	return Do[WebhookTest](ctx, c, http.MethodPost, webhooksPath+Path(id, "test"), nil, map[string]string{"device": device})
}

// SyncWebhook queues a page of the devices for a hub.
func (c *Client) SyncWebhook(ctx context.Context, id, cursor string) (WebhookSync, error) {
	return Do[WebhookSync](ctx, c, http.MethodPost, webhooksPath+Path(id, "sync"), nil, map[string]string{"cursor": cursor})
}
