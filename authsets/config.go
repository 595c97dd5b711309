package authsets

import (
	"errors"
	"fmt"
	"time"
)

// Config is what an operator may choose.
type Config struct {
	TokenTTL   time.Duration `mapstructure:"token_ttl"`   // how long a device's token lives
	MaxSets    int           `mapstructure:"max_sets"`    // sets of one device
	MaxPending int           `mapstructure:"max_pending"` // devices of an organisation that nobody has decided about
	PendingTTL time.Duration `mapstructure:"pending_ttl"` // how long those are kept; 0 for ever
}

// DefaultConfig is what an empty configuration gives.
func DefaultConfig() Config {
	return Config{TokenTTL: 7 * 24 * time.Hour, MaxSets: 16, MaxPending: 50_000}
}

// Validate reports what is wrong with c.
func (c Config) Validate() error {
	var all []error
	if c.TokenTTL < time.Minute {
		all = append(all, fmt.Errorf("token_ttl: %v is shorter than a minute", c.TokenTTL))
	}
	if c.MaxSets < 2 || c.MaxSets > 64 {
		all = append(all, fmt.Errorf("max_sets: %d is not 2 to 64; a device that changes its key needs 2", c.MaxSets))
	}
	if c.MaxPending < 1 {
		all = append(all, fmt.Errorf("max_pending: %d lets no new device in; the least is 1", c.MaxPending))
	}
	if c.PendingTTL != 0 && c.PendingTTL < time.Second {
		all = append(all, fmt.Errorf("pending_ttl: %v is shorter than a second; 0 is for ever", c.PendingTTL))
	}
	return errors.Join(all...)
}
