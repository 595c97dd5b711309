package server_test

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"keystead/config"
)

func TestRunSaysWhereItIsAndStopsCleanly(t *testing.T) {
	s := start(t, func(c *config.Config) {
		c.HTTPS.Listen, c.HTTP.Listen, c.Ops.Listen = "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"
	})
	if err := s.Listen(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- s.Run(ctx) }()

	path := filepath.Join(s.Config.Data, "endpoints.json")
	var endpoints map[string]string
	for endpoints == nil {
		if b, err := os.ReadFile(path); err == nil {
			if err := json.Unmarshal(b, &endpoints); err != nil {
				t.Fatal(err)
			}
		}
		select {
		case err := <-ended:
			t.Fatalf("Run ended: %v", err)
		case <-time.After(5 * time.Millisecond):
		}
	}
	for _, name := range []string{"https", "http", "ops"} {
		if endpoints[name] == "" {
			t.Errorf("endpoints.json has no %s: %v", name, endpoints)
		}
	}
	stop()
	if err := <-ended; err != nil {
		t.Errorf("Run = %v, want nil after a stop", err)
	}
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("endpoints.json after the stop: %v, want it gone", err)
	}
}
