package client

import (
	"context"
	"io"
	"iter"
	"net/http"
	"net/url"
	"time"
)

// AuditRecord is one record of the trail of what was changed.
type AuditRecord struct {
	Seq          uint64            `json:"seq"`
	At           time.Time         `json:"at"`
	Organisation string            `json:"organisation"`
	Actor        AuditActor        `json:"actor"`
	Action       string            `json:"action"`
	Target       string            `json:"target"`
	Device       string            `json:"device"`
	RequestID    string            `json:"request_id"`
	Detail       map[string]string `json:"detail"`
	MAC          string            `json:"mac"`
}

// AuditActor is who did it.
type AuditActor struct {
	Kind       string `json:"kind"`
	ID         string `json:"id,omitempty"`
	Credential string `json:"credential,omitempty"`
}

// AuditFilter says which records are asked for.
type AuditFilter struct {
	Device, Action, Actor string
	Since, Until          time.Time
	Oldest                bool // oldest first
	All                   bool // of every organisation
}

func (f AuditFilter) query() url.Values {
	q := url.Values{}
	set := func(name, value string) {
		if value != "" {
			q.Set(name, value)
		}
	}
	set("device", f.Device)
	set("action", f.Action)
	set("actor", f.Actor)
	if !f.Since.IsZero() {
		q.Set("since", f.Since.UTC().Format(time.RFC3339))
	}
	if !f.Until.IsZero() {
		q.Set("until", f.Until.UTC().Format(time.RFC3339))
	}
	if f.Oldest {
		q.Set("order", "oldest")
	}
	if f.All {
		q.Set("all", "true")
	}
	return q
}

// Audit goes through the records that f asks for.
func (c *Client) Audit(ctx context.Context, f AuditFilter) iter.Seq2[AuditRecord, error] {
	return List[AuditRecord](ctx, c, "/api/v1/audit", f.query())
}

// ExportAudit writes the records that f asks for to w, a line of JSON each.
func (c *Client) ExportAudit(ctx context.Context, f AuditFilter, w io.Writer) error {
	res, err := c.Send(ctx, Request{Method: http.MethodGet, Path: "/api/v1/audit/export", Query: f.query(), Accept: "application/jsonl"})
	if err != nil {
		return err
	}
	defer res.Body.Close()
	_, err = io.Copy(w, res.Body)
	return err
}

// AuditCheckpoint is a signed statement of how far the trail went.
type AuditCheckpoint struct {
	Seq       uint64    `json:"seq"`
	MAC       []byte    `json:"mac"`
	At        time.Time `json:"at"`
	Signature []byte    `json:"signature"`
}

// AuditReport is what a verification found.
type AuditReport struct {
	Sound       bool   `json:"sound"`
	Fault       string `json:"fault,omitempty"`
	First       uint64 `json:"first"`
	Last        uint64 `json:"last"`
	Records     uint64 `json:"records"`
	Checkpoints int    `json:"checkpoints"`
}

// VerifyAudit has the server walk the whole trail and compare it with its own
// checkpoints and the given ones, kept elsewhere.
func (c *Client) VerifyAudit(ctx context.Context, against []AuditCheckpoint) (AuditReport, error) {
	return Do[AuditReport](ctx, c, http.MethodPost, "/api/v1/audit/verify", nil, map[string]any{"checkpoints": append([]AuditCheckpoint{}, against...)})
}
