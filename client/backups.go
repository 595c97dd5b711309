package client

import (
	"context"
	"iter"
	"net/http"
	"time"
)

// Backup is a copy of the database, in the directory the server keeps them in.
type Backup struct {
	Format    int       `json:"format"`
	Name      string    `json:"name"`
	CreatedAt time.Time `json:"created_at"`
	Size      int64     `json:"size"`
	SHA256    string    `json:"sha256"`
	Schema    int       `json:"schema"`
	AuditSeq  uint64    `json:"audit_seq"`
	MasterKey string    `json:"master_key"`
	DataKeys  []uint32  `json:"data_keys"`
}

// CreateBackup has the server copy its database.
func (c *Client) CreateBackup(ctx context.Context) (Backup, error) {
	return Do[Backup](ctx, c, http.MethodPost, "/api/v1/backups", nil, struct{}{})
}

// Backups lists the copies that are kept, oldest first.
func (c *Client) Backups(ctx context.Context) iter.Seq2[Backup, error] {
	return List[Backup](ctx, c, "/api/v1/backups", nil)
}
