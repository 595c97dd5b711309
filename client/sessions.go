package client

import (
	"context"
	"iter"
	"net/http"
	"net/url"
	"time"
)

// Session is a CoAP session that is open.
type Session struct {
	ID           string      `json:"id"`
	Transport    string      `json:"transport"`
	Remote       string      `json:"remote"`
	ConnectionID string      `json:"connection_id,omitempty"`
	Device       string      `json:"device,omitempty"`
	Name         string      `json:"name,omitempty"`
	Credential   *Credential `json:"credential,omitempty"`
	SignedIn     bool        `json:"signed_in"`
	Since        time.Time   `json:"since"`
	LastSeen     time.Time   `json:"last_seen"`
	Received     uint64      `json:"bytes_received"`
	Sent         uint64      `json:"bytes_sent"`
}

const sessionsPath = "/api/v1/sessions"

// Sessions lists the sessions that are open, those of one device if device is
// not empty.
func (c *Client) Sessions(ctx context.Context, device string) iter.Seq2[Session, error] {
	q := url.Values{}
	if device != "" {
		q.Set("device", device)
	}
	return List[Session](ctx, c, sessionsPath, q)
}

// EndSession closes a session.
func (c *Client) EndSession(ctx context.Context, id string) error {
	_, err := Do[struct{}](ctx, c, http.MethodDelete, sessionsPath+Path(id), nil, nil)
	return err
}
