package server

import (
	"context"
	"fmt"

	"keystead/store/bolt"
)

// watchStore ends the server when the store takes no more writes: what failed
// may have reached the disk or not, and only a new start tells.
func watchStore(db *bolt.Engine) task {
	return task{"store", func(ctx context.Context) error {
		select {
		case <-ctx.Done():
			return nil
		case <-db.Failed():
			return fmt.Errorf("the disk failed: %w", db.Err())
		}
	}}
}
