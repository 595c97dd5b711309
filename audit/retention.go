package audit

import (
	"context"
	"strconv"
	"time"

	"keystead/store"
)

// pruneBatch is how many records one transaction drops.
const pruneBatch = 500

// prune drops the records from before a time, from the first on and up to the
// first that is younger. The trail says so, and then begins with the MAC of the
// last that was dropped.
func (l *Log) prune(ctx context.Context, before time.Time) error {
	for {
		var dropped uint64
		err := l.DB.Update(ctx, func(tx store.Tx) error {
			var err error
			dropped, err = l.pruneSome(ctx, tx, before)
			return err
		})
		if err != nil || dropped < pruneBatch {
			return err
		}
	}
}

func (l *Log) pruneSome(ctx context.Context, tx store.Tx, before time.Time) (uint64, error) {
	from, err := l.end(tx, tail)
	if err != nil {
		return 0, err
	}
	last, err := l.end(tx, head)
	if err != nil {
		return 0, err
	}
	seq, mac := from.Seq, from.MAC
	// The last record stays: an empty trail could not be told from one taken away.
	for seq+1 < last.Seq && seq-from.Seq < pruneBatch {
		r, err := records.Get(tx, key(seq+1))
		if err != nil {
			return 0, err
		}
		if !r.At.Before(before) {
			break
		}
		if _, err := records.Delete(tx, key(seq+1)); err != nil {
			return 0, err
		}
		seq, mac = r.Seq, r.MAC
	}
	dropped := seq - from.Seq
	if dropped == 0 {
		return 0, nil
	}
	if err := l.setEnd(tx, tail, seq, mac); err != nil {
		return 0, err
	}
	return dropped, l.Append(ctx, tx, Entry{Action: "audit.prune", Detail: map[string]string{
		"records": strconv.FormatUint(dropped, 10), "up_to": strconv.FormatUint(seq, 10), "before": before.UTC().Format(time.RFC3339),
	}})
}
