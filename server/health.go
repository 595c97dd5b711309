package server

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/labstack/echo/v4"

	"keystead/identity"
	"keystead/store"
)

// opsRoutes is the surface of the operations listener, besides the metrics.
func (s *Server) opsRoutes() []route {
	return []route{
		{method: http.MethodGet, path: "/livez", need: identity.Public, handle: s.livez},
		{method: http.MethodGet, path: "/readyz", need: identity.Public, handle: s.readyz},
		{method: http.MethodGet, path: "/metrics", need: identity.Public, handle: echo.WrapHandler(s.metricsHandler())},
	}
}

// livez says that the process serves at all.
func (s *Server) livez(c echo.Context) error { return c.String(http.StatusOK, "ok\n") }

// finding is one thing that readiness rests on.
type finding struct {
	Name  string `json:"name"`
	State string `json:"state"` // ok; degraded: it goes on all the same; failed
	Note  string `json:"note,omitempty"`
}

const (
	fine     = "ok"
	degraded = "degraded"
	failed   = "failed"
)

// readyz says whether requests should come here. With ?verbose it says why, in
// JSON.
func (s *Server) readyz(c echo.Context) error {
	findings := s.examine(c.Request().Context())
	status, word := http.StatusOK, fine
	for _, f := range findings {
		switch {
		case f.State == failed:
			status, word = http.StatusServiceUnavailable, failed
		case f.State == degraded && word == fine:
			word = degraded
		}
	}
	if c.QueryParams().Has("verbose") {
		return c.JSON(status, map[string]any{"state": word, "checks": findings})
	}
	return c.String(status, word+"\n")
}

func (s *Server) examine(ctx context.Context) []finding {
	all := []finding{{"server", fine, ""}, {"store", fine, ""}, {"master_key", fine, ""}, {"certificate", fine, ""}, {"audit", fine, ""}}
	if !s.ready.Load() {
		all[0].State, all[0].Note = failed, "starting or stopping"
	}
	st := s.bolt.Stats()
	switch err := s.bolt.Err(); {
	case err != nil:
		all[1].State, all[1].Note = failed, "writes have stopped; the server has to be started again"
	case s.DB.View(ctx, func(store.Tx) error { return nil }) != nil:
		all[1].State, all[1].Note = failed, "cannot be read"
	case st.MaxSize > 0 && st.Size-st.FreeBytes > st.MaxSize/5*4:
		all[1].State, all[1].Note = degraded, fmt.Sprintf("%d of %d bytes are used; raise store.max_size", st.Size-st.FreeBytes, st.MaxSize)
	}
	if s.keys == nil {
		all[2].State, all[2].Note = failed, "sealed"
	} else if s.keys.Due(s.Now()) {
		all[2].State, all[2].Note = degraded, "the data key is due to be followed by a new one: keystead keys rotate"
	}
	if c := s.tls.first(); c == nil {
		all[3].State, all[3].Note = degraded, "there is none yet"
	} else {
		switch left := c.Leaf.NotAfter.Sub(s.Now()); {
		case left <= 0:
			all[3].State, all[3].Note = degraded, "has ended, on "+c.Leaf.NotAfter.Format(time.DateOnly)
		case left < 7*24*time.Hour:
			all[3].State, all[3].Note = degraded, "ends on "+c.Leaf.NotAfter.Format(time.DateOnly)
		}
	}
	if s.rolledBack.Load() {
		all[4].State, all[4].Note = degraded, "the trail does not reach its last checkpoint: keystead audit verify"
	}
	return all
}

// notify tells the service manager, if there is one, how the server does: the
// protocol of sd_notify(3), a datagram to the socket it names.
func (s *Server) notify(lines ...string) {
	path := os.Getenv("NOTIFY_SOCKET")
	if path == "" {
		return
	}
	if strings.HasPrefix(path, "@") {
		path = "\x00" + path[1:]
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		s.Log.Warn("the service manager cannot be told", "error", err)
		return
	}
	defer conn.Close()
	if _, err := conn.Write([]byte(strings.Join(lines, "\n"))); err != nil {
		s.Log.Warn("the service manager cannot be told", "error", err)
	}
}

// watchdog tells the service manager that the store still answers, as often as
// it asks for.
func (s *Server) watchdog(ctx context.Context) error {
	var micro int64
	if _, err := fmt.Sscan(os.Getenv("WATCHDOG_USEC"), &micro); err != nil || micro <= 0 {
		return nil
	}
	ticker := time.NewTicker(time.Duration(micro) * time.Microsecond / 2)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
			if s.bolt.Err() == nil && s.DB.View(ctx, func(store.Tx) error { return nil }) == nil {
				s.notify("WATCHDOG=1")
			}
		}
	}
}
