package cli

import (
	"time"

	"github.com/spf13/cobra"

	"keystead/client"
)

func thingCommand(a *app) *cobra.Command {
	return group("thing", "Make, list and end things and their keys",
		thingList(a), thingShow(a), thingCreate(a), thingRotate(a), thingReveal(a), thingExternal(a), thingDelete(a))
}

var thingColumns = []column[client.Thing]{
	{name: "id", cell: func(t client.Thing) string { return t.ID }},
	{name: "name", cell: func(t client.Thing) string { return t.Name }},
	{name: "type", cell: func(t client.Thing) string { return t.Type }},
	{name: "metadata", cell: func(t client.Thing) string { return string(t.Metadata) }, wide: true},
	{name: "created", cell: func(t client.Thing) string { return when(t.CreatedAt) }},
}

var thingKeyColumns = []column[client.Thing]{
	{name: "id", cell: func(t client.Thing) string { return t.ID }},
	{name: "key", cell: func(t client.Thing) string { return t.Key }},
	{name: "external key", cell: func(t client.Thing) string { return t.ExternalKey }},
}

func thingList(a *app) *cobra.Command {
	var name, kind string
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List things",
		Args:  cobra.NoArgs,
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			return printList(a, c.Things(cmd.Context(), name, kind), thingColumns)
		}),
	}
	cmd.Flags().StringVar(&name, "name", "", "only those with this in their name")
	cmd.Flags().StringVar(&kind, "type", "", "only those of this type")
	return cmd
}

func thingShow(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "show THING",
		Short: "Show a thing, without its keys",
		Args:  cobra.ExactArgs(1),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			t, err := c.Thing(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return printOne(a, t, thingColumns)
		}),
	}
}

func thingCreate(a *app) *cobra.Command {
	n := client.NewThing{Type: "device"}
	var external, keyFile string
	cmd := &cobra.Command{
		Use:   "create NAME",
		Short: "Make a thing, and show its key",
		Args:  cobra.ExactArgs(1),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			n.Name, n.ExternalKey = args[0], external
			if keyFile != "" {
				var err error
				if n.Key, err = a.readSecret(keyFile); err != nil {
					return err
				}
			}
			t, err := c.CreateThing(cmd.Context(), n)
			if err != nil {
				return err
			}
			return printOne(a, t, thingKeyColumns)
		}),
	}
	f := cmd.Flags()
	f.StringVar(&n.Type, "type", n.Type, "device, sensor, actuator, controller or gateway")
	f.StringVar(&external, "external-key", "", "a `key` the thing has already, such as the address of its radio")
	f.StringVar(&keyFile, "key-file", "", "its internal key is in this `file`; - for standard input; made if left out")
	return cmd
}

func thingRotate(a *app) *cobra.Command {
	var grace time.Duration
	cmd := &cobra.Command{
		Use:   "rotate THING",
		Short: "Give a thing a new key; the old one is dead at once",
		Args:  cobra.ExactArgs(1),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			t, err := c.RotateThing(cmd.Context(), args[0], grace)
			if err != nil {
				return err
			}
			return printOne(a, t, thingKeyColumns)
		}),
	}
	cmd.Flags().DurationVar(&grace, "grace", 0, "how long the old key works yet, 24h at most")
	return cmd
}

func thingReveal(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "reveal THING",
		Short: "Show the keys of a thing; leaves a record in the audit trail",
		Args:  cobra.ExactArgs(1),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			t, err := c.RevealThing(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return printOne(a, t, thingKeyColumns)
		}),
	}
}

func thingExternal(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "external-key THING [KEY]",
		Short: "Set the external key of a thing, or take it away",
		Args:  cobra.RangeArgs(1, 2),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			key, what := "", "taken away"
			if len(args) == 2 {
				key, what = args[1], "set"
			}
			if err := c.SetExternalKey(cmd.Context(), args[0], key); err != nil {
				return err
			}
			a.done("%s: external key %s", args[0], what)
			return nil
		}),
	}
}

func thingDelete(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "delete THING",
		Short: "Remove a thing and end the device it is",
		Args:  cobra.ExactArgs(1),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			if err := c.DeleteThing(cmd.Context(), args[0]); err != nil {
				return err
			}
			a.done("%s: deleted", args[0])
			return nil
		}),
	}
}
