package cli

import (
	"maps"
	"slices"
	"strconv"

	"github.com/spf13/cobra"

	"keystead/client"
)

func keysCommand(a *app) *cobra.Command {
	return group("keys", "Look after the keys that secrets in the database are sealed under",
		keysList(a), keysRotate(a), keysRewrap(a))
}

var dataKeyColumns = []column[client.DataKey]{
	{name: "id", cell: func(k client.DataKey) string { return strconv.FormatUint(uint64(k.ID), 10) }},
	{name: "created", cell: func(k client.DataKey) string { return when(k.CreatedAt) }},
	{name: "current", cell: func(k client.DataKey) string { return strconv.FormatBool(k.Current) }},
}

func (a *app) printDataKeys(keys []client.DataKey, master string, err error) error {
	if err != nil {
		return err
	}
	a.done("the master key has the fingerprint %s", master)
	return printList(a, func(yield func(client.DataKey, error) bool) {
		for _, k := range keys {
			if !yield(k, nil) {
				return
			}
		}
	}, dataKeyColumns)
}

func keysList(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the data keys; the last one seals, all of them open",
		Args:  cobra.NoArgs,
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			return a.printDataKeys(c.DataKeys(cmd.Context()))
		}),
	}
}

func keysRotate(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "rotate",
		Short: "Add a data key, which seals from now on",
		Long: `Add a data key, which seals from now on. What the older ones sealed still opens;
keystead keys rewrap moves it to the new one. The server does this by itself once
a year.`,
		Args: cobra.NoArgs,
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			return a.printDataKeys(c.RotateDataKey(cmd.Context()))
		}),
	}
}

type resealed struct {
	Kind   string `json:"kind"`
	Values int    `json:"values"`
}

func keysRewrap(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "rewrap",
		Short: "Seal everything again under the newest data key",
		Args:  cobra.NoArgs,
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			out, err := c.RewrapDataKeys(cmd.Context())
			if err != nil {
				return err
			}
			return printList(a, func(yield func(resealed, error) bool) {
				for _, kind := range slices.Sorted(maps.Keys(out)) {
					if !yield(resealed{kind, out[kind]}, nil) {
						return
					}
				}
			}, []column[resealed]{
				{name: "kind", cell: func(r resealed) string { return r.Kind }},
				{name: "values", cell: func(r resealed) string { return strconv.Itoa(r.Values) }},
			})
		}),
	}
}
