package cli

import (
	"errors"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"keystead/client"
)

func keyCommand(a *app) *cobra.Command {
	return group("key", "Make, list and revoke API keys", keyList(a), keyCreate(a), keyRevoke(a))
}

var keyColumns = []column[client.Key]{
	{name: "id", cell: func(k client.Key) string { return k.ID }},
	{name: "name", cell: func(k client.Key) string { return k.Name }},
	{name: "scopes", cell: func(k client.Key) string { return strings.Join(k.Scopes, "\n") }},
	{name: "organisation", cell: func(k client.Key) string { return k.Org }, wide: true},
	{name: "issued", cell: func(k client.Key) string { return when(k.IssuedAt) }},
	{name: "expires", cell: func(k client.Key) string { return whenever(k.ExpiresAt) }},
	{name: "last used", cell: func(k client.Key) string { return whenever(k.LastUsedAt) }},
	{name: "from", cell: func(k client.Key) string { return k.LastUsedIP }, wide: true},
}

func keyList(a *app) *cobra.Command {
	var user string
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the caller's API keys",
		Args:  cobra.NoArgs,
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			return printList(a, c.Keys(cmd.Context(), user), keyColumns)
		}),
	}
	cmd.Flags().StringVar(&user, "user", "", "those of another `user`, by id; for platform administrators")
	return cmd
}

func keyCreate(a *app) *cobra.Command {
	var n client.NewKey
	var lives time.Duration
	cmd := &cobra.Command{
		Use:   "create NAME",
		Short: "Make an API key; its value is shown this once",
		Long: `Make an API key for who is logged in; an API key makes no other, so log in first
with keystead login. The value is shown this once.`,
		Example: `  keystead key create backup --scope devices:read --expires 720h`,
		Args:    cobra.ExactArgs(1),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			if lives < 0 {
				return usage(cmd, errors.New("--expires must not be negative"))
			}
			n.Name, n.Duration = args[0], int64(lives.Seconds())
			k, err := c.CreateKey(cmd.Context(), n)
			if err != nil {
				return err
			}
			return printOne(a, k, append([]column[client.Key]{
				{name: "value", cell: func(k client.Key) string { return k.Value }},
			}, keyColumns...))
		}),
	}
	f := cmd.Flags()
	f.DurationVar(&lives, "expires", 0, "how long it lives; 0 for ever")
	f.StringArrayVar(&n.Scopes, "scope", nil, "a `permission` it has, such as devices:read; may be repeated; all of its user's if left out")
	f.StringVar(&n.Org, "only-org", "", "the one `organisation` it is good in")
	f.StringArrayVar(&n.CIDRs, "from", nil, "an `address or CIDR` it may be used from; may be repeated")
	return cmd
}

func keyRevoke(a *app) *cobra.Command {
	var user string
	cmd := &cobra.Command{
		Use:   "revoke KEY",
		Short: "End an API key, by id, from its next use on",
		Args:  cobra.ExactArgs(1),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			if err := c.RevokeKey(cmd.Context(), user, args[0]); err != nil {
				return err
			}
			a.done("%s: revoked", args[0])
			return nil
		}),
	}
	cmd.Flags().StringVar(&user, "user", "", "it is another `user`'s, by id; for platform administrators")
	return cmd
}
