package seal

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Source says where the master key comes from. It is never in the database.
type Source struct {
	Kind           string `mapstructure:"source"`
	File           string `mapstructure:"file"`
	Variable       string `mapstructure:"variable"`
	Credential     string `mapstructure:"credential"`
	PassphraseFile string `mapstructure:"passphrase_file"`
}

// The kinds of sources.
const (
	FromFile       = "file"       // 32 random bytes in a file only its owner may read
	FromEnv        = "env"        // an environment variable
	FromCredential = "credential" // a systemd credential
	FromPassphrase = "passphrase" // what a passphrase gives by argon2id
)

var sources = []string{FromFile, FromEnv, FromCredential, FromPassphrase}

// DefaultSource is a file beside the database.
func DefaultSource() Source {
	return Source{Kind: FromFile, File: "master.key", Variable: "KEYSTEAD_MASTER_KEY", Credential: "keystead-master-key"}
}

// Validate reports what is wrong with s.
func (s Source) Validate() error {
	var faults []error
	if !slices.Contains(sources, s.Kind) {
		faults = append(faults, fmt.Errorf("source: %q is not one of %s", s.Kind, strings.Join(sources, ", ")))
	}
	for _, need := range []struct{ kind, key, value string }{
		{FromFile, "file", s.File},
		{FromEnv, "variable", s.Variable},
		{FromCredential, "credential", s.Credential},
	} {
		if s.Kind == need.kind && need.value == "" {
			faults = append(faults, fmt.Errorf("%s: must be set when source is %s", need.key, need.kind))
		}
	}
	return errors.Join(faults...)
}
