// Package config holds every setting of the server.
package config

import (
	"time"
)

// Config is the whole configuration.
type Config struct {
	Data      string   `mapstructure:"data"`       // directory of everything the server keeps
	PublicURL string   `mapstructure:"public_url"` // what devices and people call the server, such as https://iot.example.org:8443
	HTTPS     Listener `mapstructure:"https"`
	HTTP      Listener `mapstructure:"http"`
	Ops       Listener `mapstructure:"ops"`
	Timeouts  Timeouts `mapstructure:"timeouts"`
	Store     Store    `mapstructure:"store"`
	TLS       TLS      `mapstructure:"tls"`
}

// Timeouts are limits on time.
type Timeouts struct {
	Drain time.Duration `mapstructure:"drain"` // how long requests in flight may take to end when the server stops
}

// Listener is where a listener is bound; an empty address switches it off.
type Listener struct {
	Listen string `mapstructure:"listen"`
}

// Store is where records are kept.
type Store struct {
	MaxSize int64 `mapstructure:"max_size"` // bytes the file may grow to; 0 for no limit
}

// TLS is what the server's own certificate says.
type TLS struct {
	Names []string `mapstructure:"names"` // DNS names and IP addresses
}

// Default is the configuration an empty file gives.
func Default() Config {
	return Config{
		Data:      "data",
		PublicURL: "https://localhost:8443",
		HTTPS:     Listener{Listen: ":8443"},
		HTTP:      Listener{Listen: ":8080"},
		Ops:       Listener{Listen: "127.0.0.1:9464"},
		Timeouts:  Timeouts{Drain: 5 * time.Second},
		TLS:       TLS{Names: []string{"localhost", "127.0.0.1", "::1"}},
	}
}
