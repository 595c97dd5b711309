package est

import "fmt"

// Config is what operators set of EST.
type Config struct {
	// Base64 is how answers are written: "auto" on one line, but in lines of 64
	// for clients known to need that, "none" or "64".
	Base64 string `mapstructure:"base64"`
	// AllowInsecureNoAuth lets DMSs enrol whoever asks.
	AllowInsecureNoAuth bool `mapstructure:"allow_insecure_noauth"`
}

// DefaultConfig is what an empty configuration gives.
func DefaultConfig() Config { return Config{Base64: "auto"} }

// Validate reports what is wrong with c.
func (c Config) Validate() error {
	switch c.Base64 {
	case "auto", "none", "64":
		return nil
	}
	return fmt.Errorf("base64: %q is not auto, none or 64", c.Base64)
}
