package audit

import (
	"cmp"
	"context"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"keystead/store"
)

// Failure is an attempt to prove an identity that failed.
type Failure struct {
	Surface string // where: "https", "dtls", "est"
	Reason  string // a word of a small set
	Remote  string // who tried
	Claimed string // the identity it gave, not proven
	Request string // the id of the request
}

// failures holds what was not written yet. However many there are, it is bounded,
// and so is what becomes of them on the disk: so many a minute one by one, and
// once a minute how many more there were of each kind.
type failures struct {
	mu      sync.Mutex
	waiting []timedFailure
	more    map[kind]uint64
	since   time.Time // of the present minute
	written int       // of those one by one, in the present minute
}

type timedFailure struct {
	Failure
	at time.Time
}

type kind struct{ surface, reason string }

// maxKinds is how many kinds of failures are counted apart.
const maxKinds = 64

func (c Config) perMinute() int {
	if c.PerMinute == 0 {
		return 20
	}
	return c.PerMinute
}

// Fail notes a failed attempt. It does not wait for the disk; Tick writes it.
func (l *Log) Fail(f Failure) {
	now := l.Now()
	fs := &l.failures
	fs.mu.Lock()
	defer fs.mu.Unlock()
	if fs.since.IsZero() {
		fs.since = now
	}
	if fs.written < l.Config.perMinute() {
		fs.written++
		f.Remote, f.Claimed = strings.Clone(clean(f.Remote)), strings.Clone(clean(f.Claimed)) // and not the whole of what came
		fs.waiting = append(fs.waiting, timedFailure{f, now})
		return
	}
	if fs.more == nil {
		fs.more = map[kind]uint64{}
	}
	k := kind{clean(f.Surface), clean(f.Reason)}
	if _, known := fs.more[k]; !known && len(fs.more) >= maxKinds {
		k = kind{"other", "other"}
	}
	fs.more[k]++
}

// take returns what is to be written at now.
func (fs *failures) take(now time.Time) (waiting []timedFailure, more map[kind]uint64, since time.Time) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	waiting, fs.waiting = fs.waiting, nil
	if fs.since.IsZero() || now.Sub(fs.since) < time.Minute {
		return waiting, nil, time.Time{}
	}
	more, since = fs.more, fs.since
	fs.more, fs.since, fs.written = nil, time.Time{}, 0
	return waiting, more, since
}

func (l *Log) flushFailures(ctx context.Context, now time.Time) error {
	waiting, more, since := l.failures.take(now)
	if len(waiting) == 0 && len(more) == 0 {
		return nil
	}
	return l.DB.Update(ctx, func(tx store.Tx) error {
		for _, f := range waiting {
			if err := l.Append(ctx, tx, f.entry()); err != nil {
				return err
			}
		}
		for _, k := range slices.SortedFunc(maps.Keys(more), compareKinds) {
			if err := l.Append(ctx, tx, Entry{Action: "auth.failures", Detail: map[string]string{
				"surface": k.surface, "reason": k.reason, "suppressed": strconv.FormatUint(more[k], 10), "since": since.UTC().Format(time.RFC3339),
			}}); err != nil {
				return err
			}
		}
		return nil
	})
}

func (f timedFailure) entry() Entry {
	detail := map[string]string{"at": f.at.UTC().Format(time.RFC3339)}
	for name, value := range map[string]string{
		"surface": f.Surface, "reason": f.Reason, "remote": f.Remote, "claimed": f.Claimed, "request": f.Request,
	} {
		if value != "" {
			detail[name] = value
		}
	}
	return Entry{Action: "auth.failure", Detail: detail}
}

func compareKinds(a, b kind) int {
	return cmp.Or(cmp.Compare(a.surface, b.surface), cmp.Compare(a.reason, b.reason))
}
