package cli

import (
	"cmp"
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"
)

// Version is set when a release is built, with
// -ldflags "-X keystead/cli.Version=…".
var Version string

type version struct {
	Version  string `json:"version"`
	Revision string `json:"revision,omitempty"`
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

func thisVersion() version {
	v := version{Version: cmp.Or(Version, "dev"), Go: runtime.Version(), Platform: runtime.GOOS + "/" + runtime.GOARCH}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				v.Revision = s.Value
			}
		}
	}
	return v
}

func versionCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Show the version of this program",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			return printOne(a, thisVersion(), []column[version]{
				{name: "version", cell: func(v version) string { return v.Version }},
				{name: "revision", cell: func(v version) string { return v.Revision }},
				{name: "go", cell: func(v version) string { return v.Go }},
				{name: "platform", cell: func(v version) string { return v.Platform }},
			})
		},
	}
}
