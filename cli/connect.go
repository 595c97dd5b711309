package cli

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"keystead/client"
)

// adminFile is <data>/admin.json, which the server writes at first start.
type adminFile struct {
	URL    string `json:"url"`
	CAFile string `json:"ca_file"`
	APIKey string `json:"api_key"`
	Org    string `json:"org"`
}

// connect returns a client for the server that is meant: the one whose
// admin.json is in the data directory, unless flags or the environment name
// another. A server that runs here on other ports than its public ones says so
// in endpoints.json.
func (a *app) connect() (*client.Client, error) {
	conf, err := a.target()
	if err != nil {
		return nil, err
	}
	c, err := client.New(conf)
	if err != nil {
		return nil, coded(exitUsage, err, "--url, KEYSTEAD_URL and KEYSTEAD_CA_FILE say which server is meant")
	}
	return c, nil
}

// target is how to reach that server, and as whom: by the key in the environment;
// as who has logged in, unless flags name a server or its data; or as the
// administrator of admin.json.
func (a *app) target() (client.Config, error) {
	if l, ok := a.loggedIn(); ok && a.url+a.data+a.getenv("KEYSTEAD_URL")+a.getenv("KEYSTEAD_API_KEY") == "" {
		return client.Config{
			URL: l.URL, CAFile: l.CAFile, APIKey: l.Token, Dial: l.Dial, Org: cmp.Or(a.org, a.getenv("KEYSTEAD_ORG")),
		}, nil
	}
	var admin adminFile
	named := cmp.Or(a.url, a.getenv("KEYSTEAD_URL"))
	key := a.getenv("KEYSTEAD_API_KEY")
	file := filepath.Join(a.dataDir(), "admin.json")
	b, err := os.ReadFile(file)
	switch {
	case err == nil:
		if err := json.Unmarshal(b, &admin); err != nil {
			return client.Config{}, fmt.Errorf("%s: %w", file, err)
		}
	case named != "" && key != "":
		// all that is needed is in the environment
	case errors.Is(err, fs.ErrPermission):
		return client.Config{}, coded(exitRefused, err, "only the user the server runs as may read its admin.json; run this as that user, or set KEYSTEAD_API_KEY")
	case errors.Is(err, fs.ErrNotExist):
		return client.Config{}, hinted(fmt.Errorf("there is no %s", file),
			"start a server with keystead serve, say where its data is with --data, or set KEYSTEAD_URL, KEYSTEAD_API_KEY and KEYSTEAD_CA_FILE")
	default:
		return client.Config{}, err
	}
	conf := client.Config{
		URL:    cmp.Or(named, admin.URL),
		CAFile: cmp.Or(a.getenv("KEYSTEAD_CA_FILE"), a.inData(admin.CAFile)),
		APIKey: cmp.Or(key, admin.APIKey),
		Org:    cmp.Or(a.org, a.getenv("KEYSTEAD_ORG")),
	}
	if named == "" {
		conf.Dial = a.boundAt()
	}
	return conf, nil
}

// boundAt is where the server of the data directory says it is bound, "" if it
// does not run.
func (a *app) boundAt() string {
	b, err := os.ReadFile(filepath.Join(a.dataDir(), "endpoints.json"))
	if err != nil {
		return ""
	}
	var at struct {
		HTTPS string `json:"https"`
	}
	if json.Unmarshal(b, &at) != nil || at.HTTPS == "" {
		return ""
	}
	return local(at.HTTPS)
}

// withClient is a cobra RunE of a command that asks the server.
func (a *app) withClient(run func(*cobra.Command, *client.Client, []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error {
		c, err := a.connect()
		if err != nil {
			return err
		}
		defer c.Close()
		return run(cmd, c, args)
	}
}

// completion is a cobra ValidArgsFunction that asks the server for what could be
// meant by the first argument. A server that cannot be asked completes nothing.
func (a *app) completion(list func(*cobra.Command, *client.Client) ([]cobra.Completion, error)) cobra.CompletionFunc {
	return func(cmd *cobra.Command, args []string, _ string) ([]cobra.Completion, cobra.ShellCompDirective) {
		if len(args) > 0 {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		c, err := a.connect()
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		defer c.Close()
		found, err := list(cmd, c)
		if err != nil {
			return nil, cobra.ShellCompDirectiveNoFileComp
		}
		return found, cobra.ShellCompDirectiveNoFileComp
	}
}
