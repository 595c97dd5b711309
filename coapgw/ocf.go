package coapgw

import (
	"errors"
	"fmt"
	"time"
)

// OCFConfig is what can be set of the resources of an OCF cloud.
type OCFConfig struct {
	Enabled bool `mapstructure:"enabled"`
	// DeviceIDClaim is the claim of an access token that names the device it
	// was issued to, taken literally and never as a path; "" if tokens name none.
	DeviceIDClaim string `mapstructure:"device_id_claim"`
	// ClientCertificateRequired has the device named by its certificate.
	ClientCertificateRequired bool `mapstructure:"client_certificate_required"`
	// IdentityPropertiesRequired has a certificate without an OCF identity refused as soon as it is shown.
	IdentityPropertiesRequired     bool          `mapstructure:"identity_properties_required"`
	OwnerClaim                     string        `mapstructure:"owner_claim"` // names whom the device belongs to
	DisconnectOnExpiredCertificate bool          `mapstructure:"disconnect_on_expired_certificate"`
	OwnerCacheExpiration           time.Duration `mapstructure:"owner_cache_expiration"`
	// TokensWithoutExpiry takes access tokens of an authority that say no time at which they end.
	TokensWithoutExpiry bool          `mapstructure:"tokens_without_expiry"`
	Providers           []OCFProvider `mapstructure:"providers"`
}

// OCFProvider is where the tokens of devices come from. One without an
// authority is this server itself.
type OCFProvider struct {
	Name             string   `mapstructure:"name"`      // as devices state it in "authprovider"
	Authority        string   `mapstructure:"authority"` // the URL of an OAuth server, which its tokens have as issuer
	ClientID         string   `mapstructure:"client_id"`
	ClientSecretFile string   `mapstructure:"client_secret_file"`
	RedirectURL      string   `mapstructure:"redirect_url"`
	Scopes           []string `mapstructure:"scopes"`
	Audience         string   `mapstructure:"audience"`
	GrantType        string   `mapstructure:"grant_type"`   // authorizationCode or clientCredentials
	Organisation     string   `mapstructure:"organisation"` // whose devices an authority vouches for; the default one if empty
}

// The grants of a provider.
const (
	AuthorizationCode = "authorizationCode"
	ClientCredentials = "clientCredentials"
)

// DefaultOCFConfig returns what is in force where nothing is set.
func DefaultOCFConfig() OCFConfig {
	return OCFConfig{
		ClientCertificateRequired: true, IdentityPropertiesRequired: true, OwnerClaim: "sub", OwnerCacheExpiration: time.Minute,
		Providers: []OCFProvider{},
	}
}

// Validate reports every fault of c, and what contradicts what.
func (c OCFConfig) Validate() error {
	if !c.Enabled {
		return nil
	}
	var faults []error
	at := func(ok bool, format string, args ...any) {
		if !ok {
			faults = append(faults, fmt.Errorf("ocf."+format, args...))
		}
	}
	at(c.OwnerClaim != "", "owner_claim: must name a claim")
	at(c.OwnerCacheExpiration > 0, "owner_cache_expiration: must be longer than nothing")
	at(c.IdentityPropertiesRequired || c.DeviceIDClaim == "",
		"identity_properties_required: false contradicts ocf.device_id_claim: without an OCF identity in the certificate the claim has nothing to agree with")
	at(c.IdentityPropertiesRequired || c.ClientCertificateRequired,
		"identity_properties_required: false means nothing while ocf.client_certificate_required is false; leave it true")
	at(c.ClientCertificateRequired || !c.DisconnectOnExpiredCertificate,
		"disconnect_on_expired_certificate: contradicts ocf.client_certificate_required, which is false: there is no certificate to expire")
	at(len(c.Providers) > 0, "providers: at least one is needed")
	names := map[string]bool{}
	for i, p := range c.Providers {
		at(p.Name != "", "providers[%d].name: must not be empty", i)
		at(!names[p.Name], "providers[%d].name: %q is there twice", i, p.Name)
		names[p.Name] = true
		at(p.GrantType == "" || p.GrantType == AuthorizationCode || p.GrantType == ClientCredentials,
			"providers[%d].grant_type: must be %s or %s", i, AuthorizationCode, ClientCredentials)
		at(p.GrantType != ClientCredentials || c.OwnerClaim != "sub",
			"providers[%d].grant_type: %s contradicts ocf.owner_claim, which is sub: such a token has the client as its subject, not an owner", i, ClientCredentials)
		at(p.Authority == c.Providers[0].Authority, "providers[%d].authority: must be the same for all, %q", i, c.Providers[0].Authority)
		if p.Authority == "" {
			at(p.GrantType != ClientCredentials, "providers[%d].grant_type: %s needs an authority; this server gives codes", i, ClientCredentials)
			at(p.Organisation == "", "providers[%d].organisation: is for an authority; the codes of this server are of the organisation of the user", i)
			continue
		}
		at(p.Organisation == c.Providers[0].Organisation, "providers[%d].organisation: must be the same for all, %q", i, c.Providers[0].Organisation)
		at(p.ClientID != "", "providers[%d].client_id: must not be empty", i)
		at(p.ClientSecretFile != "", "providers[%d].client_secret_file: must not be empty", i)
	}
	return errors.Join(faults...)
}
