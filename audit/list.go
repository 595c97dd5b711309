package audit

import (
	"context"
	"iter"
	"strconv"
	"strings"
	"time"

	"keystead/fault"
	"keystead/identity"
	"keystead/page"
	"keystead/store"
)

// Filter says which records of the trail are asked for; its zero value is all of
// the actor's organisation, oldest first.
type Filter struct {
	Everyone bool      // of every organisation, and of none; for platform administrators
	Device   string    // only what concerns this device
	Action   string    // only this action, or those that begin with it and a dot
	Actor    string    // only what the actor of this id did
	Since    time.Time // only what was done then or later
	Until    time.Time // only what was done before
	Newest   bool      // newest first
}

func (f Filter) match(r Record, org string) bool {
	return (f.Everyone || r.Org == org) &&
		(f.Device == "" || r.Device == f.Device) &&
		(f.Action == "" || r.Action == f.Action || strings.HasPrefix(r.Action, f.Action+".")) &&
		(f.Actor == "" || r.Actor.ID == f.Actor) &&
		(f.Since.IsZero() || !r.At.Before(f.Since)) &&
		(f.Until.IsZero() || r.At.Before(f.Until))
}

// List returns a page of the trail of the actor's organisation, oldest first;
// of one device if device is not empty.
func (l *Log) List(ctx context.Context, device string, r page.Request) (page.Page[Record], error) {
	return l.Search(ctx, Filter{Device: device}, r)
}

// Search returns a page of the records that f asks for. It looks at
// [store.MaxScan] records at most: a page may be short, or empty, and still have
// a next one.
func (l *Log) Search(ctx context.Context, f Filter, r page.Request) (p page.Page[Record], err error) {
	org := identity.OrgOf(ctx)
	err = l.DB.View(ctx, func(tx store.Tx) error {
		keep := func(r Record) bool { return f.match(r, org) }
		switch {
		case f.Newest || f.Everyone:
			p, err = l.walk(tx, f, r, keep)
		case f.Device != "":
			p, err = records.PageIf(tx, "device", store.TermOf(org, f.Device), r, keep)
		default:
			p, err = records.PageIf(tx, "org", store.TermOf(org), r, keep)
		}
		return err
	})
	return p, err
}

// clockSlack is how far the clock may have been set back, for a walk towards the
// past to end in time: records are in the order they were written.
const clockSlack = 25 * time.Hour

// walk returns a page by way of the records' numbers, in either direction.
func (l *Log) walk(tx store.Tx, f Filter, r page.Request, keep func(Record) bool) (page.Page[Record], error) {
	p := page.Page[Record]{Items: []Record{}}
	first, err := l.end(tx, tail)
	if err != nil {
		return p, err
	}
	last, err := l.end(tx, head)
	if err != nil {
		return p, err
	}
	seq, step := first.Seq+1, uint64(1)
	if f.Newest {
		seq, step = last.Seq, ^uint64(0) // that is, one less
	}
	if r.After != "" {
		if seq, err = after(r.After); err != nil {
			return p, err
		}
		seq += step
	}
	for seen := 0; seq > first.Seq && seq <= last.Seq; seq += step {
		if len(p.Items) == r.Size() || seen == store.MaxScan {
			p.Next = page.At(key(seq - step))
			break
		}
		seen++
		record, err := records.Get(tx, key(seq))
		if fault.Is(err, fault.NotFound) {
			continue // for Verify to tell of
		}
		if err != nil {
			return p, err
		}
		if f.Newest && !f.Since.IsZero() && record.At.Before(f.Since.Add(-clockSlack)) {
			break
		}
		if keep(record) {
			p.Items = append(p.Items, record)
		}
	}
	return p, nil
}

// after reads a cursor of walk.
func after(c page.Cursor) (uint64, error) {
	text, err := c.Key()
	if err != nil {
		return 0, err
	}
	seq, err := strconv.ParseUint(text, 16, 64)
	if err != nil {
		return 0, fault.New(fault.Invalid, "the cursor is not one this list gave out; start again without it")
	}
	return seq, nil
}

// All yields every record that f asks for, in transactions of their own.
func (l *Log) All(ctx context.Context, f Filter) iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		r := page.Request{Limit: page.MaxLimit}
		for {
			p, err := l.Search(ctx, f, r)
			if err != nil {
				yield(Record{}, err)
				return
			}
			for _, record := range p.Items {
				if !yield(record, nil) {
					return
				}
			}
			if p.Next == "" {
				return
			}
			r.After = p.Next
		}
	}
}
