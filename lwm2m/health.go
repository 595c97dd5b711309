package lwm2m

import (
	"context"
	"errors"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"

	"keystead/audit"
	"keystead/fault"
	"keystead/identity"
	"keystead/store"
)

// Health is how a server is watched, and what was found. One that does not answer
// three times in a row takes no new devices until it answers again.
type Health struct {
	Kind   HealthKind `cbor:"kind,omitempty"`
	URL    string     `cbor:"url,omitempty"`    // of an http check
	Detail string     `cbor:"detail,omitempty"` // why it is not healthy
	Since  time.Time  `cbor:"since,omitzero"`   // when that changed
}

// HealthKind is what asks a server for its health.
type HealthKind string

// The kinds.
const (
	HealthUnwatched HealthKind = ""
	HealthPing      HealthKind = "ping" // at the URL devices go to: does anybody answer the first message of a handshake?
	HealthHTTP      HealthKind = "http" // GET, with an answer of 2xx
)

// Bounds on the checks.
const (
	downAfter    = 3 // failures in a row
	probesAtOnce = 16
	probeTimeout = 5 * time.Second
)

func (h Health) check() error {
	switch h.Kind {
	case HealthUnwatched, HealthPing:
		if h.URL != "" {
			return errors.New("a URL is for http checks")
		}
	case HealthHTTP:
		u, err := url.Parse(h.URL)
		if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.User != nil || len(h.URL) > 2048 {
			return errors.New("an http check needs an http or https URL without a user")
		}
	default:
		return errors.New("must be ping or http, or be left out")
	}
	return nil
}

// keepHealth has a replaced record keep what was found of its server, unless
// somebody is to say it from now on.
func (v *Server) keepHealth(old Server) {
	v.Health.Detail, v.Health.Since = "", time.Time{}
	if v.Health.Kind == HealthUnwatched || v.Health.Kind != old.Health.Kind || v.Health.URL != old.Health.URL || v.URL != old.URL {
		return
	}
	v.Unhealthy, v.Health.Detail, v.Health.Since = old.Unhealthy, old.Health.Detail, old.Health.Since
}

// CheckHealth asks every server that is watched once.
func (s *Service) CheckHealth(ctx context.Context, _ time.Time) error {
	var all []Server
	err := s.DB.View(ctx, func(tx store.Tx) (err error) {
		all, err = s.serversIn(tx)
		return err
	})
	if err != nil || s.Probe == nil {
		return err
	}
	var wait sync.WaitGroup
	places := make(chan struct{}, probesAtOnce)
	faults := make([]error, len(all))
	for i, v := range all {
		if v.Health.Kind == HealthUnwatched || v.State == ServerDisabled {
			continue
		}
		places <- struct{}{}
		wait.Go(func() {
			defer func() { <-places }()
			bounded, cancel := context.WithTimeout(ctx, probeTimeout)
			defer cancel()
			if found := s.Probe(bounded, v); ctx.Err() == nil {
				faults[i] = s.judge(ctx, v, found)
			}
		})
	}
	wait.Wait()
	return errors.Join(faults...)
}

// judge notes what a check found, and changes the record if that is news.
func (s *Service) judge(ctx context.Context, v Server, found error) error {
	s.mu.Lock()
	if found == nil {
		delete(s.failures, v.ID)
	} else {
		s.failures[v.ID]++
	}
	down := s.failures[v.ID] >= downAfter
	s.mu.Unlock()
	if down == v.Unhealthy || found != nil && !down {
		return nil
	}
	ctx = identity.NewContext(ctx, identity.Actor{Kind: identity.System})
	err := s.DB.Update(ctx, func(tx store.Tx) error {
		_, err := servers.Update(tx, v.ID, func(now *Server) error {
			if now.Health.Kind != v.Health.Kind || now.Health.URL != v.Health.URL || now.URL != v.URL {
				return errChanged
			}
			now.Unhealthy, now.Health.Since, now.Health.Detail = down, s.Now().UTC(), ""
			if down {
				now.Health.Detail = short(found)
			}
			return nil
		})
		if err != nil {
			return err
		}
		e := audit.Entry{Action: "lwm2m.server.health", Target: v.ID, Detail: map[string]string{"healthy": strconv.FormatBool(!down)}}
		return s.Audit.Append(ctx, tx, e)
	})
	if errors.Is(err, errChanged) || fault.Is(err, fault.NotFound) {
		return nil // the next turn is about the server as it is now
	}
	return err
}

// errChanged is in the tree of the error for a record that is another than the
// one that was checked.
var errChanged = errors.New("the server was changed meanwhile")

// short is what is kept of a reason.
func short(err error) string {
	text := strings.ToValidUTF8(err.Error(), "")
	if len(text) > 256 {
		text = strings.ToValidUTF8(text[:256], "")
	}
	return text
}
