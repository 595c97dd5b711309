package client

import (
	"context"
	"net/http"
	"time"
)

// DataKey is a key that secrets in the database are sealed under.
type DataKey struct {
	ID        uint32    `json:"id"`
	CreatedAt time.Time `json:"created_at"`
	Current   bool      `json:"current"`
}

// DataKeys lists the data keys, and names the master key that wraps them.
func (c *Client) DataKeys(ctx context.Context) (keys []DataKey, master string, err error) {
	return dataKeys(ctx, c, http.MethodGet, "/api/v1/data-keys", nil)
}

// RotateDataKey has the server seal under a new key from now on.
func (c *Client) RotateDataKey(ctx context.Context) (keys []DataKey, master string, err error) {
	return dataKeys(ctx, c, http.MethodPost, "/api/v1/data-keys/rotate", struct{}{})
}

func dataKeys(ctx context.Context, c *Client, method, path string, body any) ([]DataKey, string, error) {
	out, err := Do[struct {
		Items     []DataKey `json:"items"`
		MasterKey string    `json:"master_key"`
	}](ctx, c, method, path, nil, body)
	return out.Items, out.MasterKey, err
}

// RewrapDataKeys has the server seal everything again under the newest key, and
// returns how many values of each kind that were.
func (c *Client) RewrapDataKeys(ctx context.Context) (map[string]int, error) {
	out, err := Do[struct {
		Resealed map[string]int `json:"resealed"`
	}](ctx, c, http.MethodPost, "/api/v1/data-keys/rewrap", nil, struct{}{})
	return out.Resealed, err
}
