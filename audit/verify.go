package audit

import (
	"context"
	"crypto/hmac"
	"fmt"

	"keystead/fault"
	"keystead/store"
)

func isMissing(err error) bool { return fault.Is(err, fault.NotFound) }

// Verify walks the whole trail and returns how many records it holds, and an
// error that names the first one that was changed, removed, moved or cut off.
func (l *Log) Verify(ctx context.Context) (uint64, error) {
	var h head
	if err := l.DB.View(ctx, func(tx store.Tx) (err error) {
		h, err = l.head(tx)
		return err
	}); err != nil {
		return 0, err
	}
	var seq uint64
	var mac []byte
	for r, err := range records.All(ctx, l.DB, "", "") {
		if err != nil {
			return seq, err
		}
		if seq == h.Seq {
			break // appended since the head was read
		}
		if seq++; r.Seq != seq {
			return seq - 1, fmt.Errorf("audit: record %d is missing: the one in its place has number %d", seq, r.Seq)
		}
		want, err := l.mac(r, mac)
		if err != nil {
			return seq - 1, err
		}
		if !hmac.Equal(r.MAC, want) {
			return seq - 1, fmt.Errorf("audit: record %d (%s at %s) was changed, or the one before it", seq, r.Action, r.At.Format("2006-01-02 15:04:05"))
		}
		mac = r.MAC
	}
	if seq != h.Seq || !hmac.Equal(mac, h.MAC) {
		return seq, fmt.Errorf("audit: the trail ends at record %d, but %d were written: its end was cut off", seq, h.Seq)
	}
	return seq, nil
}
