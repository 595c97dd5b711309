package tokens

import (
	"errors"
	"fmt"
	"time"
)

// Config is what an operator may choose.
type Config struct {
	Issuer      string        `mapstructure:"issuer"`       // the "iss" claim; the public URL if empty
	Algorithm   Algorithm     `mapstructure:"algorithm"`    // of new keys: EdDSA, ES256 or RS256
	RotateEvery time.Duration `mapstructure:"rotate_every"` // 0 for by command only
	MaxTTL      time.Duration `mapstructure:"max_ttl"`      // longest life of any token; how long old keys verify
}

// DefaultConfig is what an empty configuration gives.
func DefaultConfig() Config {
	return Config{Algorithm: EdDSA, RotateEvery: 90 * 24 * time.Hour, MaxTTL: 7 * 24 * time.Hour}
}

// Validate reports what is wrong with c.
func (c Config) Validate() error {
	var all []error
	if !c.Algorithm.Valid() {
		all = append(all, fmt.Errorf("algorithm: %q is none of EdDSA, ES256, RS256", c.Algorithm))
	}
	if c.RotateEvery != 0 && c.RotateEvery < 2*publishBefore {
		all = append(all, fmt.Errorf("rotate_every: %v is shorter than 2h; 0 is by command only", c.RotateEvery))
	}
	if c.MaxTTL < time.Minute {
		all = append(all, fmt.Errorf("max_ttl: %v is shorter than a minute", c.MaxTTL))
	}
	return errors.Join(all...)
}
