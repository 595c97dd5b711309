package coapgw

import (
	"time"

	"keystead/coap"
)

// OCFConfig is what can be set of the OCF cloud resources.
type OCFConfig struct {
	Enabled                   bool          `mapstructure:"enabled"`
	ClientCertificateRequired bool          `mapstructure:"client_certificate_required"`
	OwnerCacheExpiration      time.Duration `mapstructure:"owner_cache_expiration"`
}

// DefaultOCFConfig returns what is in force where nothing is set.
func DefaultOCFConfig() OCFConfig {
	return OCFConfig{ClientCertificateRequired: true, OwnerCacheExpiration: time.Minute}
}

// Validate reports every fault of c.
func (c OCFConfig) Validate() error { return nil }

// OCFAccounts is what the OCF cloud resources ask of the accounts.
type OCFAccounts any

func (g *Gateway) ocfRoutes() []coap.Route { return nil }
