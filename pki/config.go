package pki

import (
	"errors"
	"fmt"
	"net/url"
	"strings"

	"keystead/seal"
)

// Config is what operators set of the PKI.
type Config struct {
	// PublicHTTP is where clients reach the plain HTTP listener, as
	// http://host or http://host:port; empty derives it.
	PublicHTTP string `mapstructure:"public_http"`
	// PKCS11 keeps the keys of CAs in a token, in place of the database.
	PKCS11 PKCS11 `mapstructure:"pkcs11"`
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
	if err := c.PKCS11.Validate(); err != nil || c.PublicHTTP == "" {
		return err
	}
	u, err := url.Parse(c.PublicHTTP)
	if err != nil || u.Scheme != "http" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || strings.HasSuffix(u.Path, "/") {
		return fmt.Errorf("public_http: %q is not http://host or http://host:port", c.PublicHTTP)
	}
	return nil
}
