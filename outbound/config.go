package outbound

import (
	"errors"
	"fmt"
	"net/netip"
)

// Config is what an operator may choose about the server's own requests.
type Config struct {
	AllowCIDRs []string `mapstructure:"allow_cidrs"` // private addresses that may be connected to
	CAFile     string   `mapstructure:"ca_file"`     // PEM certificates trusted besides the system's
}

// Validate reports what is wrong with c.
func (c Config) Validate() error {
	var all []error
	for _, text := range c.AllowCIDRs {
		if _, err := netip.ParsePrefix(text); err != nil {
			all = append(all, fmt.Errorf("allow_cidrs: %q is not a prefix such as 192.168.7.0/24", text))
		}
	}
	return errors.Join(all...)
}

// Prefixes returns AllowCIDRs; those Validate complains of are left out.
func (c Config) Prefixes() []netip.Prefix {
	var all []netip.Prefix
	for _, text := range c.AllowCIDRs {
		if p, err := netip.ParsePrefix(text); err == nil {
			all = append(all, p.Masked())
		}
	}
	return all
}
