package cli

import (
	"fmt"

	"github.com/spf13/cobra"

	"keystead/config"
)

func configCommand(a *app) *cobra.Command {
	return group("config", "Check the configuration, and show what it comes to",
		configCheck(a), configPrint(a))
}

func configCheck(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "check",
		Short: "Look whether the configuration is right; every fault is shown at once",
		Example: `  keystead config check --config /etc/keystead/config.yaml
  KEYSTEAD_HTTPS_LISTEN=:443 keystead config check`,
		Args: cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			c, err := a.config()
			if err != nil {
				return err
			}
			set := 0
			for _, s := range c.Settings() {
				if s.Origin != config.FromDefault {
					set++
				}
			}
			_, err = fmt.Fprintf(a.stdout, "the configuration is right: %d of %d keys are set\n", set, len(c.Settings()))
			return err
		},
	}
}

func configPrint(a *app) *cobra.Command {
	var changed bool
	cmd := &cobra.Command{
		Use:   "print",
		Short: "Show every key, its value and where that came from; secrets are masked",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			c, err := a.config()
			if err != nil {
				return err
			}
			return printList(a, func(yield func(config.Setting, error) bool) {
				for _, s := range c.Settings() {
					if (!changed || s.Origin != config.FromDefault) && !yield(s, nil) {
						return
					}
				}
			}, []column[config.Setting]{
				{name: "key", cell: func(s config.Setting) string { return s.Key }},
				{name: "value", cell: func(s config.Setting) string { return s.Value }},
				{name: "origin", cell: func(s config.Setting) string { return string(s.Origin) }},
			})
		},
	}
	cmd.Flags().BoolVar(&changed, "changed", false, "only what is not the default")
	return cmd
}
