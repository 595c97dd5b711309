package pki

import (
	"errors"
	"fmt"
	"net/url"
	"strings"
	"time"

	"keystead/seal"
)

// Config is what operators set of the PKI.
type Config struct {
	// PublicHTTP is where clients reach the plain HTTP listener, as
	// http://host or http://host:port; empty derives it.
	PublicHTTP string `mapstructure:"public_http"`
	// Outside is about certificates of CAs that are not here.
	Outside OutsideConfig `mapstructure:"outside"`
	// PKCS11 keeps the keys of CAs in a token, in place of the database.
	PKCS11 PKCS11 `mapstructure:"pkcs11"`
}

// OutsideConfig says how certificates of outside CAs are looked up.
type OutsideConfig struct {
	Check   RevocationCheck `mapstructure:"check"`
	MaxAge  time.Duration   `mapstructure:"max_age"`
	Timeout time.Duration   `mapstructure:"timeout"`
}

// Validate reports what is wrong with c.
func (c OutsideConfig) Validate() error {
	switch {
	case c.Check == "" || c.Check.Validate() != nil:
		return fmt.Errorf("outside.check: %q is not off, soft or hard", string(c.Check))
	case c.MaxAge < 0 || c.MaxAge > 24*time.Hour:
		return fmt.Errorf("outside.max_age: %s is not from 0 to 24h", c.MaxAge)
	case c.Timeout < time.Millisecond || c.Timeout > time.Minute:
		return fmt.Errorf("outside.timeout: %s is not from 1ms to 1m", c.Timeout)
	}
	return nil
}

// DefaultConfig is what an empty configuration gives.
func DefaultConfig() Config {
	return Config{Outside: OutsideConfig{Check: CheckSoft, MaxAge: 10 * time.Minute, Timeout: 5 * time.Second}}
}

// PKCS11 names a token; without a module there is none.
type PKCS11 struct {
	Module  string `mapstructure:"module"`
	Token   string `mapstructure:"token"`
	PINFile string `mapstructure:"pin_file"`

	pin seal.Secret
}

// Validate reports what is wrong with p.
func (p PKCS11) Validate() error {
	if p.Module != "" && (p.Token == "" || p.PINFile == "") {
		return errors.New("pkcs11.token: is needed with module, and so is pin_file")
	}
	return nil
}

// WithPIN returns p with the PIN that its file has.
func (p PKCS11) WithPIN(pin string) PKCS11 {
	p.pin = seal.Secret(pin)
	return p
}

// Validate reports what is wrong with c.
func (c Config) Validate() error {
	if err := errors.Join(c.PKCS11.Validate(), c.Outside.Validate()); err != nil || c.PublicHTTP == "" {
		return err
	}
	u, err := url.Parse(c.PublicHTTP)
	if err != nil || u.Scheme != "http" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || strings.HasSuffix(u.Path, "/") {
		return fmt.Errorf("public_http: %q is not http://host or http://host:port", c.PublicHTTP)
	}
	return nil
}
