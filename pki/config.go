package pki

import (
	"fmt"
	"net/url"
	"strings"
)

// Config is what operators set of the PKI.
type Config struct {
	// PublicHTTP is where clients reach the plain HTTP listener, as
	// http://host or http://host:port; empty derives it.
	PublicHTTP string `mapstructure:"public_http"`
}

// Validate reports what is wrong with c.
func (c Config) Validate() error {
	if c.PublicHTTP == "" {
		return nil
	}
	u, err := url.Parse(c.PublicHTTP)
	if err != nil || u.Scheme != "http" || u.Host == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || strings.HasSuffix(u.Path, "/") {
		return fmt.Errorf("public_http: %q is not http://host or http://host:port", c.PublicHTTP)
	}
	return nil
}
