package bolt

import (
	"log/slog"
	"os"
	"sync"
	"time"
)

// longView is from when on a read is told of: while it lasts, no page that was
// replaced since can be used again, and the file grows.
const longView = time.Second

// views knows the reads that go on, oldest first.
type views struct {
	log *slog.Logger

	mu      sync.Mutex
	first   *view
	last    *view
	count   uint64
	longest time.Duration
	timer   *time.Timer // runs while there are reads
	stopped bool
}

type view struct {
	started    time.Time
	told       bool
	prev, next *view
}

func (l *views) start(v *view) {
	v.started = time.Now() //nolint:forbidigo // a duration, for the watchdog
	l.mu.Lock()
	defer l.mu.Unlock()
	l.count++
	if v.prev = l.last; v.prev != nil {
		v.prev.next = v
	} else {
		l.first = v
	}
	l.last = v
	if l.timer == nil && !l.stopped {
		l.timer = time.AfterFunc(longView, l.watch)
	}
}

func (l *views) end(v *view) {
	took := time.Since(v.started)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.longest = max(l.longest, took)
	if v.prev != nil {
		v.prev.next = v.next
	} else {
		l.first = v.next
	}
	if v.next != nil {
		v.next.prev = v.prev
	} else {
		l.last = v.prev
	}
	if v.told {
		l.log.Warn("a long read of the store has ended", "took", took)
	}
}

// watch tells of reads that take too long, each once. It comes again while there
// are reads.
func (l *views) watch() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for v := l.first; v != nil && time.Since(v.started) >= longView; v = v.next {
		if !v.told {
			v.told = true
			l.log.Warn("a read of the store takes long; the file grows meanwhile", "since", v.started.UTC())
		}
	}
	if l.first == nil || l.stopped {
		l.timer = nil
		return
	}
	l.timer.Reset(longView)
}

func (l *views) stop() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.stopped = true
	if l.timer != nil {
		l.timer.Stop()
	}
}

// oldest returns how long the oldest read that goes on has.
func (l *views) oldest() time.Duration {
	if l.first == nil {
		return 0
	}
	return time.Since(l.first.started)
}

// counters count commits.
type counters struct {
	mu    sync.Mutex
	stats Stats
}

func (c *counters) commit(took time.Duration, updates int, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		c.stats.FailedCommits++
		return
	}
	c.stats.Commits++
	c.stats.Updates += uint64(updates) //nolint:gosec // G115: a length
	c.stats.CommitTime += took
	c.stats.LongestCommit = max(c.stats.LongestCommit, took)
}

// Stats says how the engine does since it was opened.
type Stats struct {
	Size      int64 // of the file, in bytes
	MaxSize   int64 // what it may grow to; 0: as the disk has it
	FreeBytes int64 // in the file, to be used again

	Commits       uint64 // transactions of the file, each with its fsyncs
	Updates       uint64 // that were in them
	FailedCommits uint64
	CommitTime    time.Duration // of all commits together
	LongestCommit time.Duration

	Views       uint64 // that were begun
	OpenViews   int
	OldestView  time.Duration // of those that go on
	LongestView time.Duration // of those that ended
}

// Stats returns how the engine does.
func (e *Engine) Stats() Stats {
	e.stats.mu.Lock()
	s := e.stats.stats
	e.stats.mu.Unlock()
	if info, err := os.Stat(e.path); err == nil {
		s.Size = info.Size()
	}
	file := e.db.Stats()
	s.FreeBytes = int64(file.FreeAlloc)
	s.OpenViews = max(0, file.OpenTxN-e.reads.kept())
	s.MaxSize = int64(e.db.MaxSize)
	e.views.mu.Lock()
	defer e.views.mu.Unlock()
	s.Views, s.OldestView, s.LongestView = e.views.count, e.views.oldest(), e.views.longest
	return s
}
