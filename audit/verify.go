package audit

import (
	"context"
	"crypto/hmac"
	"errors"
	"fmt"
	"time"

	"keystead/fault"
	"keystead/store"
)

// Restored is the action of the record that a restore writes: the one reason why
// a trail may be shorter than a checkpoint says.
const Restored = "store.restore"

// Report is what Verify found right.
type Report struct {
	First       uint64 `json:"first"` // the number of the first record; those before were dropped for their age
	Last        uint64 `json:"last"`
	Records     uint64 `json:"records"`
	Checkpoints int    `json:"checkpoints"` // that the trail was compared with
}

// Verify walks the whole trail, and compares it with the given checkpoints. Its
// error names the first record that was changed, removed, moved or cut off, or
// the checkpoint the trail falls short of, with ErrTampered in its tree.
func (l *Log) Verify(ctx context.Context, against ...Checkpoint) (Report, error) {
	l.mu.Lock() // nothing is dropped meanwhile
	defer l.mu.Unlock()
	first, last, err := l.ends(ctx)
	if err != nil {
		return Report{}, err
	}
	key, err := l.PublicKey()
	if err != nil {
		return Report{}, err
	}
	w := walker{log: l, seq: first.Seq, mac: first.MAC, checks: map[uint64][]Checkpoint{}, indexed: map[string]uint64{}}
	for _, c := range against {
		if !c.Valid(key) {
			return Report{}, fmt.Errorf("%w: the checkpoint of record %d is not of this trail", ErrTampered, c.Seq)
		}
		w.checks[c.Seq] = append(w.checks[c.Seq], c)
	}
	w.compare(first)
	report := Report{First: first.Seq + 1, Last: last.Seq, Checkpoints: len(against)}
	for r, err := range records.All(ctx, l.DB, "", "") {
		if err != nil {
			if errors.Is(err, store.ErrCorrupt) {
				err = fmt.Errorf("%w: the record after %d cannot be read: %w", ErrTampered, w.seq, err)
			}
			return report, err
		}
		if w.seq == last.Seq {
			break // appended since the end was read
		}
		if err := w.next(r); err != nil {
			return report, err
		}
		report.Records++
	}
	if w.seq != last.Seq || !hmac.Equal(w.mac, last.MAC) {
		return report, fmt.Errorf("%w: it ends at record %d, but %d were written: its end was cut off", ErrTampered, w.seq, last.Seq)
	}
	if err := w.settle(first.Seq); err != nil {
		return report, err
	}
	return report, w.verifyIndexes(ctx)
}

// verifyFrom is Verify of the end of the trail alone, from a checkpoint on.
func (l *Log) verifyFrom(ctx context.Context, c Checkpoint) error {
	_, last, err := l.ends(ctx)
	if err != nil {
		return err
	}
	w := walker{log: l, checks: map[uint64][]Checkpoint{c.Seq: {c}}, indexed: map[string]uint64{}}
	return l.DB.View(ctx, func(tx store.Tx) error {
		r, err := records.Get(tx, key(c.Seq))
		switch {
		case fault.Is(err, fault.NotFound) && c.Seq <= last.Seq:
			return nil // dropped for its age, or for Verify to tell of
		case err == nil && hmac.Equal(r.MAC, c.MAC):
			return nil
		case err != nil && !fault.Is(err, fault.NotFound):
			return err
		}
		// Look for the record of a restore, from the end back.
		for seq, n := last.Seq, 0; seq > 0 && n < store.MaxScan; seq, n = seq-1, n+1 {
			r, err := records.Get(tx, key(seq))
			if err != nil {
				break
			}
			if r.Action == Restored {
				w.restores = append(w.restores, r)
			}
		}
		return w.settle(0)
	})
}

func (l *Log) ends(ctx context.Context) (first, last end, err error) {
	err = l.DB.View(ctx, func(tx store.Tx) error {
		if first, err = l.end(tx, tail); err != nil {
			return err
		}
		if last, err = l.end(tx, head); err != nil {
			return err
		}
		beyond, err := records.Has(tx, key(last.Seq+1))
		if err == nil && beyond {
			err = fmt.Errorf("%w: there are records after its end, which is %d", ErrTampered, last.Seq)
		}
		return err
	})
	return first, last, err
}

// walker goes along the chain.
type walker struct {
	log      *Log
	seq      uint64 // of the last record
	mac      []byte
	checks   map[uint64][]Checkpoint // that were not met yet, by number
	restores []Record
	indexed  map[string]uint64 // how many records the indexes have to name, by organisation
}

func (w *walker) next(r Record) error {
	if w.seq++; r.Seq != w.seq {
		return fmt.Errorf("%w: record %d is missing; the one in its place has number %d", ErrTampered, w.seq, r.Seq)
	}
	if !hmac.Equal(r.MAC, w.log.mac(&r, w.mac)) {
		return fmt.Errorf("%w: record %d (%s at %s) was changed, or the one before it", ErrTampered, r.Seq, r.Action, r.At.Format(time.DateTime))
	}
	w.mac = r.MAC
	w.indexed[r.Org]++
	if r.Action == Restored {
		w.restores = append(w.restores, r)
	}
	w.compare(end{Seq: r.Seq, MAC: r.MAC})
	return nil
}

// compare takes away the checkpoints that are met at a place of the chain.
func (w *walker) compare(at end) {
	var left []Checkpoint
	for _, c := range w.checks[at.Seq] {
		if !hmac.Equal(c.MAC, at.MAC) {
			left = append(left, c)
		}
	}
	if left == nil {
		delete(w.checks, at.Seq)
		return
	}
	w.checks[at.Seq] = left
}

// settle looks for the reason why a checkpoint was not met: it is older than the
// first record, or a backup was put back after it.
func (w *walker) settle(first uint64) error {
	for seq, checks := range w.checks {
		for _, c := range checks {
			if seq >= first && !w.restored(c) {
				return fmt.Errorf("%w: it was put back to an older state: the checkpoint of %s has record %d with another MAC, or the trail ends before it",
					ErrTampered, c.At.Format(time.DateTime), seq)
			}
		}
	}
	return nil
}

// restored reports whether a backup from before c was put back after c.
func (w *walker) restored(c Checkpoint) bool {
	for _, r := range w.restores {
		if r.Seq <= c.Seq && !r.At.Before(c.At) {
			return true
		}
	}
	return false
}

// verifyIndexes finds records that are in the chain and that lists do not show.
func (w *walker) verifyIndexes(ctx context.Context) error {
	for org, want := range w.indexed {
		var got uint64
		for r, err := range records.All(ctx, w.log.DB, "org", store.TermOf(org)) {
			if err != nil {
				return fmt.Errorf("%w: the list of organisation %q names a record that is not there: %w", ErrTampered, org, err)
			}
			if r.Seq <= w.seq && r.Org == org {
				got++
			}
		}
		if got != want {
			return fmt.Errorf("%w: organisation %q has %d records, its list shows %d", ErrTampered, org, want, got)
		}
	}
	return nil
}
