package client

import (
	"context"
	"iter"
	"net/http"
	"net/url"
	"time"
)

// PSK is a pre-shared key. Its secret, in hexadecimal, is there when it was just made.
type PSK struct {
	Identity  string    `json:"identity"`
	Secret    string    `json:"secret,omitempty"`
	Device    string    `json:"device"`
	CreatedAt time.Time `json:"created_at"`
}

// NewPSK is a key to be made or, with Secret, imported.
type NewPSK struct {
	Identity     string            `json:"identity,omitempty"`
	Secret       string            `json:"secret,omitempty"` // hexadecimal
	SecretFormat string            `json:"secret_format,omitempty"`
	Device       string            `json:"device,omitempty"` // id or alias
	Labels       map[string]string `json:"labels,omitempty"` // of a new device
}

// PSKBatch is how many keys CreatePSKs makes at most at a time.
const PSKBatch = 1000

// CreatePSK makes or imports a key.
func (c *Client) CreatePSK(ctx context.Context, n NewPSK) (PSK, error) {
	return Do[PSK](ctx, c, http.MethodPost, "/api/v1/psk", nil, n)
}

// CreatePSKs makes count random keys like n, each for a new device.
func (c *Client) CreatePSKs(ctx context.Context, count int, n NewPSK) ([]PSK, error) {
	made, err := Do[Page[PSK]](ctx, c, http.MethodPost, "/api/v1/psk/bulk", nil, map[string]any{
		"count": count, "secret_format": n.SecretFormat, "labels": n.Labels,
	})
	return made.Items, err
}

// PSKs lists the keys of the organisation, of one device if device, an id or an
// alias, is not empty.
func (c *Client) PSKs(ctx context.Context, device string) iter.Seq2[PSK, error] {
	q := url.Values{}
	if device != "" {
		q.Set("device", device)
	}
	return List[PSK](ctx, c, "/api/v1/psk", q)
}

// RevealPSK returns a key with its secret. The audit trail says who asked.
func (c *Client) RevealPSK(ctx context.Context, identity string) (PSK, error) {
	return Do[PSK](ctx, c, http.MethodPost, Path("api", "v1", "psk", identity, "reveal"), nil, nil)
}

// DeletePSK ends a key.
func (c *Client) DeletePSK(ctx context.Context, identity string) error {
	_, err := Do[struct{}](ctx, c, http.MethodDelete, Path("identities", "psk", identity), nil, nil)
	return err
}
