package server

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"runtime/debug"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"keystead/store"
)

// gcPercent is how much garbage there may be beside what is in use before it is
// collected, unless GOGC says otherwise: less is in use than garbage is made, and half of
// the collections is a fifteenth of the CPU time of an enrolment.
const gcPercent = 200

// task is something that runs as long as the server does.
type task struct {
	name string
	run  func(context.Context) error
}

// listener is one bound TCP listener and what is served on it.
type listener struct {
	name    string // the key in endpoints.json
	socket  net.Listener
	handler http.Handler
	tls     *tls.Config // nil for plain HTTP
}

// Addresses says where each listener is bound, by its key in endpoints.json.
func (s *Server) Addresses() map[string]string {
	at := map[string]string{}
	for _, l := range s.listeners {
		at[l.name] = l.socket.Addr().String()
	}
	udp, tcp := s.CoAP.Addrs()
	for name, addr := range map[string]netip.AddrPort{"coap_udp": udp, "coap_tcp": tcp, "lwm2m_udp": s.CoAP.SideAddr()} {
		if addr.IsValid() {
			at[name] = addr.String()
		}
	}
	return at
}

// listen binds what is to be served. A port that is taken is an error here and
// not later.
func (s *Server) listen(ctx context.Context, name, addr string, h http.Handler, conf *tls.Config) error {
	if addr == "" {
		return nil // switched off
	}
	socket, err := (&net.ListenConfig{}).Listen(ctx, "tcp", addr)
	if err != nil {
		return fmt.Errorf("%s.listen: %w", name, err)
	}
	socket = &boundedListener{
		Listener: socket, most: s.Config.Limits.Connections, each: s.Config.Limits.ConnectionsPerAddress, exempt: s.Config.Proxies(),
		refused: func() { s.metrics.limited.WithLabelValues("connections").Inc() },
	}
	s.listeners = append(s.listeners, listener{name, socket, h, conf})
	return nil
}

// Run serves until ctx is cancelled or something that must run has failed, then
// lets requests in flight end and closes everything, the store last.
func (s *Server) Run(ctx context.Context) error {
	defer s.Close()
	endpoints := filepath.Join(s.Config.Data, "endpoints.json")
	if err := errors.Join(s.noteURL(), writeJSON(endpoints, s.Addresses(), 0o644)); err != nil {
		return err
	}
	defer os.Remove(endpoints)
	group, ctx := errgroup.WithContext(ctx)
	for _, l := range s.listeners {
		group.Go(func() error { return s.serve(ctx, l) })
	}
	for _, t := range s.tasks {
		group.Go(func() error {
			if err := t.run(ctx); err != nil && !errors.Is(err, context.Canceled) {
				return fmt.Errorf("%s: %w", t.name, err)
			}
			return nil
		})
	}
	s.ready.Store(true)
	s.Log.Info("ready", slog.Any("listen", s.Addresses()))
	s.notify("READY=1", "STATUS=serving")
	context.AfterFunc(ctx, func() { s.notify("STOPPING=1") })
	debug.FreeOSMemory() // what only the start needed is more than all that an idle server does
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	err := group.Wait()
	s.Log.Info("stopped")
	return err
}

// serve serves one listener until ctx is done, and then until what is in
// flight has ended or the drain time is over.
func (s *Server) serve(ctx context.Context, l listener) error {
	h := &http.Server{
		Handler:           l.handler,
		TLSConfig:         l.tls,
		ReadHeaderTimeout: s.Config.Timeouts.Header,
		ReadTimeout:       s.Config.Timeouts.Read,
		WriteTimeout:      s.Config.Timeouts.Write,
		IdleTimeout:       s.Config.Timeouts.Idle,
		MaxHeaderBytes:    int(s.Config.Limits.Header),
		ErrorLog:          slog.NewLogLogger(s.Log.Handler(), slog.LevelDebug),
		ConnContext:       s.conns.context,
		ConnState: func(c net.Conn, state http.ConnState) {
			if state == http.StateClosed || state == http.StateHijacked {
				s.conns.forget(c)
			}
		},
	}
	drained := make(chan error, 1)
	go func() {
		<-ctx.Done()
		s.ready.Store(false)
		bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.Config.Timeouts.Drain)
		defer cancel()
		drained <- h.Shutdown(bounded)
	}()
	var err error
	if l.tls != nil {
		err = h.ServeTLS(l.socket, "", "")
	} else {
		err = h.Serve(l.socket)
	}
	if !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("%s: %w", l.name, err)
	}
	if err := <-drained; err != nil {
		s.Log.Warn("requests in flight were cut off", slog.String("listener", l.name), slog.Any("error", err))
		return h.Close()
	}
	return nil
}

// Close releases what Build opened. It is for a server that was built and not run.
func (s *Server) Close() {
	for _, l := range s.listeners {
		l.socket.Close()
	}
	if s.CoAP != nil {
		s.CoAP.Close()
	}
	for _, closeRoom := range s.closers {
		if err := closeRoom(); err != nil {
			s.Log.Error("not closed cleanly", slog.Any("error", err))
		}
	}
	err := s.DB.Close()
	if s.DB != store.Engine(s.bolt) {
		err = errors.Join(err, s.bolt.Close())
	}
	if err != nil {
		s.Log.Error("store not closed cleanly", slog.Any("error", err))
	}
}

// writeJSON writes v to path so that a reader finds the old file or the new
// one, never a part.
func writeJSON(path string, v any, mode os.FileMode) error {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return fmt.Errorf("server: %s: %w", path, err)
	}
	return writeFile(path, append(b, '\n'), mode)
}

func writeFile(path string, b []byte, mode os.FileMode) error {
	f, err := os.CreateTemp(filepath.Dir(path), filepath.Base(path)+".*")
	if err != nil {
		return fmt.Errorf("server: %w", err)
	}
	defer os.Remove(f.Name())
	_, err = f.Write(b)
	err = errors.Join(err, f.Chmod(mode), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err == nil {
		err = syncDir(filepath.Dir(path))
	}
	if err != nil {
		return fmt.Errorf("server: %w", err)
	}
	return nil
}

// syncDir has the names of a directory outlive a power cut: the one key of the
// first administrator is in a file the server writes once.
func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil && !errors.Is(err, syscall.EINVAL) { // some file systems sync no directories
		return err
	}
	return nil
}

// sweepEvery is how often what has ended is cleared away.
const sweepEvery = 10 * time.Minute

// every has work run at intervals, with the time, as long as the server does.
// Its errors are logged: the next turn may go better.
func (s *Server) every(name string, interval time.Duration, work func(context.Context, time.Time) error) {
	s.tasks = append(s.tasks, task{name, func(ctx context.Context) error {
		ticker := time.NewTicker(interval)
		defer ticker.Stop()
		for {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-ticker.C:
			}
			if err := work(ctx, s.Now()); err != nil && ctx.Err() == nil {
				s.Log.LogAttrs(ctx, slog.LevelError, "periodic work failed", slog.String("task", name), slog.Any("error", err))
			}
		}
	}})
}
