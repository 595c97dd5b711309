package coapgw

import (
	"errors"
	"fmt"
	"time"
)

// Config is what can be set of the gateway.
type Config struct {
	UDP string `mapstructure:"udp"` // DTLS; empty switches it off
	TCP string `mapstructure:"tcp"` // TLS; empty switches it off

	MaxSessions int `mapstructure:"max_sessions"`
	// IdleTimeout ends a session nothing was heard of. One with a connection id
	// outlives the sleep of its device and its changes of address; it has its own.
	IdleTimeout       time.Duration `mapstructure:"idle_timeout"`
	IdleTimeoutCID    time.Duration `mapstructure:"idle_timeout_cid"`
	CloseOnExpiry     bool          `mapstructure:"close_on_expiry"` // end a session when its credential expires
	Anonymous         bool          `mapstructure:"anonymous"`       // take sessions of clients that show no credential; they reach public resources
	LegacyCBC         bool          `mapstructure:"legacy_cbc"`      // offer the CBC cipher suites to old clients
	MaxBody           int           `mapstructure:"max_body"`        // bytes of a request's body, where its route sets no limit
	RequestRate       float64       `mapstructure:"request_rate"`    // requests a second and session
	RequestBurst      int           `mapstructure:"request_burst"`
	RequestTimeout    time.Duration `mapstructure:"request_timeout"`
	MaxTransferMemory int           `mapstructure:"max_transfer_memory"` // bytes of bodies that are under way in blocks, of all sessions
	HandshakeTimeout  time.Duration `mapstructure:"handshake_timeout"`
	MaxHalfOpen       int           `mapstructure:"max_half_open"` // handshakes under way
	MaxHalfOpenSource int           `mapstructure:"max_half_open_source"`
	HandshakeRate     float64       `mapstructure:"handshake_rate"` // new handshakes a second and source, a /24 or /56
	HandshakeBurst    int           `mapstructure:"handshake_burst"`
	OCF               OCFConfig     `mapstructure:"ocf"`
}

// DefaultConfig returns what is in force where nothing is set.
func DefaultConfig() Config {
	return Config{
		UDP: ":5684", TCP: ":5684",
		MaxSessions: 50_000, IdleTimeout: 10 * time.Minute, IdleTimeoutCID: 24 * time.Hour, CloseOnExpiry: true,
		MaxBody: 8 << 10, RequestRate: 50, RequestBurst: 100, RequestTimeout: time.Minute, MaxTransferMemory: 64 << 20,
		HandshakeTimeout: 30 * time.Second, MaxHalfOpen: 1000, MaxHalfOpenSource: 200, HandshakeRate: 100, HandshakeBurst: 400,
		OCF: DefaultOCFConfig(),
	}
}

// Validate reports every fault of c.
func (c Config) Validate() error {
	var faults []error
	at := func(key string, ok bool, want string) {
		if !ok {
			faults = append(faults, fmt.Errorf("%s: %s", key, want))
		}
	}
	at("max_sessions", c.MaxSessions > 0, "must be at least 1")
	at("idle_timeout", c.IdleTimeout >= time.Second, "must be at least 1s")
	at("idle_timeout_cid", c.IdleTimeoutCID >= time.Second, "must be at least 1s")
	at("max_body", c.MaxBody >= 1024 && c.MaxBody <= 1<<20, "must be from 1024 to 1048576 bytes")
	at("request_rate", c.RequestRate >= 0, "must not be negative; 0 sets no limit")
	at("request_burst", c.RequestBurst > 0 || c.RequestRate == 0, "must be at least 1")
	at("request_timeout", c.RequestTimeout >= time.Second, "must be at least 1s")
	at("max_transfer_memory", c.MaxTransferMemory >= 1<<20, "must be at least 1048576 bytes")
	at("handshake_timeout", c.HandshakeTimeout >= time.Second, "must be at least 1s")
	at("max_half_open", c.MaxHalfOpen > 0, "must be at least 1")
	at("max_half_open_source", c.MaxHalfOpenSource > 0, "must be at least 1")
	at("handshake_rate", c.HandshakeRate >= 0, "must not be negative; 0 sets no limit")
	at("handshake_burst", c.HandshakeBurst > 0 || c.HandshakeRate == 0, "must be at least 1")
	if err := c.OCF.Validate(); err != nil {
		faults = append(faults, err)
	}
	return errors.Join(faults...)
}
