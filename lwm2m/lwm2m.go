// Package lwm2m gives devices their server: it keeps the registry of servers and
// the policies that assign devices to them, and speaks the bootstrap interface of
// LwM2M 1.0 to 1.2 with the devices, over whatever session they opened.
//
// A new credential is handed over in two phases. It is made pending, pushed to
// the server that is to know it, written to the device, and becomes active when
// the device has confirmed; only then does the one before begin to retire. What
// fails on the way leaves the device with what it had.
package lwm2m

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"keystead/audit"
	"keystead/devices"
	"keystead/identity"
	"keystead/psk"
	"keystead/seal"
	"keystead/store"
	"keystead/throttle"
)

// Service is the bootstrap server, the registry and the registrations.
type Service struct {
	DB      store.Engine
	Devices *devices.Service
	PSK     *psk.Service
	Audit   *audit.Log
	Box     *seal.Box
	Log     *slog.Logger
	Now     func() time.Time
	Config  Config

	// Issue makes a key and a certificate for a device, for the policies that
	// hand out certificates; nil where there is no CA. The credential is attached
	// to the device as pending.
	Issue func(ctx context.Context, d devices.Device) (Issued, error)
	// Push hands a new credential to a server's webhook or file, and returns once
	// that has it; nil refuses servers with such sinks.
	Push func(ctx context.Context, p Pushed) error
	// Probe asks a server whether it is well, as its Health says; nil where
	// servers are not watched.
	Probe func(ctx context.Context, v Server) error
	// Emit tells other systems what happened, as part of tx; nil for nobody.
	Emit func(ctx context.Context, tx store.Tx, h Happened) error
	// URI is where devices reach this server's own CoAP listener, to tell its
	// account from others; "" if that is not known.
	URI func() string

	turn     atomic.Uint64    // of the round robin
	attempts throttle.Buckets // of each device; one that is refused makes three

	mu       sync.Mutex
	ctx      context.Context //nolint:containedctx // the life of the service, which sessions outlive their request in
	stopping bool
	running  map[string]*run          // by device
	packs    map[string]int           // that are being made, by device
	failures map[string]int           // of checks in a row, by server
	awaited  map[string]chan struct{} // by the ids of credentials; see Await
	wait     sync.WaitGroup
	tails    map[chan Event]string // of live tails, the organisation each is for
}

// Config is what an operator may choose.
type Config struct {
	UDP            string        `mapstructure:"udp"`             // a port for bootstrap alone; empty for none
	StepTimeout    time.Duration `mapstructure:"step_timeout"`    // for one request to a device
	SessionTimeout time.Duration `mapstructure:"session_timeout"` // for a whole bootstrap
	KeepSessions   time.Duration `mapstructure:"keep_sessions"`   // how long the log is kept
	HealthEvery    time.Duration `mapstructure:"health_every"`    // how often servers that are watched are asked; 0 for never
	Regions        []RegionOfNet `mapstructure:"regions"`
	DefaultRegion  string        `mapstructure:"default_region"`
}

// RegionOfNet says which region a device is in, by the network it comes from or
// by how its endpoint name begins.
type RegionOfNet struct {
	Network string `mapstructure:"network"`
	Prefix  string `mapstructure:"prefix"`
	Region  string `mapstructure:"region"`
}

// DefaultConfig is what holds where nothing else is said.
func DefaultConfig() Config {
	return Config{StepTimeout: 30 * time.Second, SessionTimeout: 2 * time.Minute, KeepSessions: 30 * 24 * time.Hour, HealthEvery: 30 * time.Second, Regions: []RegionOfNet{}}
}

// Validate reports what is wrong with c.
func (c Config) Validate() error {
	var bad []error
	if c.StepTimeout < time.Second {
		bad = append(bad, fmt.Errorf("step_timeout: %v is shorter than 1s", c.StepTimeout))
	}
	if c.SessionTimeout < c.StepTimeout {
		bad = append(bad, fmt.Errorf("session_timeout: %v is shorter than step_timeout, %v", c.SessionTimeout, c.StepTimeout))
	}
	if c.KeepSessions < 0 {
		bad = append(bad, fmt.Errorf("keep_sessions: %v is negative", c.KeepSessions))
	}
	if c.HealthEvery != 0 && c.HealthEvery < time.Second {
		bad = append(bad, fmt.Errorf("health_every: %v is shorter than 1s; 0 is never", c.HealthEvery))
	}
	for _, r := range c.Regions {
		if _, err := netip.ParsePrefix(r.Network); r.Network != "" && err != nil || r.Region == "" || (r.Network == "") == (r.Prefix == "") {
			bad = append(bad, fmt.Errorf("regions: %+v needs a region, and either a network such as 192.0.2.0/24 or a prefix", r))
		}
	}
	return errors.Join(bad...)
}

// Issued is a certificate made for a device.
type Issued struct {
	ID          string // of the credential
	Certificate *x509.Certificate
	Key         seal.Secret // PKCS#8
}

// Pushed is what a server is told of a new credential.
type Pushed struct {
	Server      Server
	HMACKey     seal.Secret
	Device      string
	Org         string
	Endpoint    string
	Kind        identity.CredentialKind
	ID          string      // the PSK identity, or the serial number
	Secret      seal.Secret // of a PSK
	Certificate []byte      // DER
}

// Start readies the service. Call it once, before routes are served.
func (s *Service) Start() {
	s.attempts.Burst, s.attempts.Refill, s.attempts.Now = 60, time.Second, s.Now
	s.running = map[string]*run{}
	s.packs, s.failures, s.awaited = map[string]int{}, map[string]int{}, map[string]chan struct{}{}
	s.tails = map[chan Event]string{}
	s.ctx = context.Background()
	if s.Log == nil {
		s.Log = slog.New(slog.DiscardHandler)
	}
	if s.URI == nil {
		s.URI = func() string { return "" }
	}
	s.Devices.Observe(s.observe)
}

// Run keeps the bootstraps that are going on until ctx is done, and then until
// they have ended.
func (s *Service) Run(ctx context.Context) error {
	s.mu.Lock()
	s.ctx = ctx
	s.mu.Unlock()
	if err := s.sweepPending(ctx); err != nil && ctx.Err() == nil { // of a run that was cut off
		s.Log.ErrorContext(ctx, "pending credentials not looked through", "error", err)
	}
	<-ctx.Done()
	s.mu.Lock()
	s.stopping = true
	for _, r := range s.running {
		r.cancel(errStopped)
	}
	for c := range s.tails {
		close(c)
	}
	s.tails = nil
	s.mu.Unlock()
	s.wait.Wait()
	return ctx.Err()
}
