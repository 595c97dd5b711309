package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"os/signal"
	"runtime"
	"runtime/pprof"
	"syscall"

	"keystead/config"
	"keystead/server"
	"keystead/store"
	"keystead/store/bolt"
)

// hosting is how a server runs in this program, and not in its own.
type hosting struct {
	Dir     string
	Memory  bool   // its records are in memory only
	Profile string // where the names of its profiles begin; "" for none
}

// host starts the server on a data directory, in a process of this program, and
// waits until it is ready.
func (r *run) host(dir string, h hosting) (*process, error) {
	h.Dir = dir
	in, err := json.Marshal(order{Serve: h})
	if err != nil {
		return nil, err
	}
	cmd := pinned(0, os.Args[0])
	cmd.Env = []string{roleEnv + "=server"}
	cmd.Stdin = bytes.NewReader(in)
	return r.start(cmd, dir)
}

// hostServer is that server.
func hostServer(o order) (err error) {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	c, err := config.Load(config.Options{Set: append([]string{"data=" + o.Serve.Dir}, serving...)})
	if err != nil {
		return err
	}
	var failed error
	s, err := server.BuildOver(ctx, c, slog.New(slog.DiscardHandler), func(db *bolt.Engine) store.Engine {
		if !o.Serve.Memory {
			return db
		}
		var e *memoryEngine
		e, failed = clone(ctx, db)
		return e
	})
	if err := errors.Join(err, failed); err != nil {
		return err
	}
	if err := s.Listen(ctx); err != nil {
		return err
	}
	if o.Serve.Profile == "" {
		return s.Run(ctx)
	}
	end, err := profiled(o.Serve.Profile)
	if err != nil {
		return err
	}
	return errors.Join(s.Run(ctx), end())
}

// profiled begins profiles of CPU time and allocations; what it returns ends them.
func profiled(name string) (func() error, error) {
	f, err := os.Create(name + ".cpu.pprof")
	if err != nil {
		return nil, err
	}
	if err := pprof.StartCPUProfile(f); err != nil {
		return nil, err
	}
	return func() error {
		pprof.StopCPUProfile()
		runtime.GC()
		allocs, err := os.Create(name + ".allocs.pprof")
		if err != nil {
			return err
		}
		return errors.Join(f.Close(), pprof.Lookup("allocs").WriteTo(allocs, 0), allocs.Close())
	}, nil
}
