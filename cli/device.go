package cli

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"keystead/client"
)

func whoamiCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "whoami",
		Short: "Show who the server takes this command line for",
		Args:  cobra.NoArgs,
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			who, err := c.Whoami(cmd.Context())
			if err != nil {
				return err
			}
			return printOne(a, who, []column[client.Whoami]{
				{name: "user", cell: func(w client.Whoami) string { return w.User }},
				{name: "name", cell: func(w client.Whoami) string { return w.Name }},
				{name: "role", cell: func(w client.Whoami) string { return w.Role }},
				{name: "organisation", cell: func(w client.Whoami) string { return w.Organisation }},
				{name: "credential", cell: func(w client.Whoami) string { return w.Credential.Kind + " " + w.Credential.ID }},
				{name: "expires", cell: func(w client.Whoami) string { return whenever(w.Credential.ExpiresAt) }},
			})
		}),
	}
}

func deviceCommand(a *app) *cobra.Command {
	return group("device", "List, show and change devices",
		deviceList(a), deviceShow(a), deviceCreate(a),
		deviceMove(a, "suspend", "Refuse a device everywhere until it is resumed; closes what it has open", (*client.Client).SuspendDevice),
		deviceMove(a, "resume", "End the suspension of a device", (*client.Client).ResumeDevice),
		deviceDelete(a), deviceLabel(a), deviceComment(a), deviceAlias(a), deviceRevoke(a))
}

var deviceColumns = []column[client.Device]{
	{name: "id", cell: func(d client.Device) string { return d.ID }},
	{name: "name", cell: func(d client.Device) string { return d.Name }},
	{name: "state", cell: func(d client.Device) string { return d.State }},
	{name: "aliases", cell: func(d client.Device) string {
		lines := make([]string, len(d.Aliases))
		for i, alias := range d.Aliases {
			lines[i] = alias.Kind + "=" + alias.Value
		}
		return strings.Join(lines, "\n")
	}},
	{name: "labels", cell: func(d client.Device) string { return pairs(d.Labels) }},
	{name: "credentials", cell: func(d client.Device) string {
		lines := make([]string, len(d.Credentials))
		for i, c := range d.Credentials {
			lines[i] = c.Kind + " " + c.ID + " " + c.State
			if c.ExpiresAt != nil {
				lines[i] += " until " + whenever(c.ExpiresAt)
			}
			if c.Renewal != "" {
				lines[i] += ", " + c.Renewal
			}
		}
		return strings.Join(lines, "\n")
	}, wide: true},
	{name: "profile", cell: func(d client.Device) string { return d.Profile }, wide: true},
	{name: "comment", cell: func(d client.Device) string { return d.Comment }, wide: true},
	{name: "metadata", cell: func(d client.Device) string { return pairs(d.Metadata) }, wide: true},
	{name: "organisation", cell: func(d client.Device) string { return d.Organisation }, wide: true},
	{name: "created", cell: func(d client.Device) string { return when(d.CreatedAt) }},
	{name: "updated", cell: func(d client.Device) string { return when(d.UpdatedAt) }, wide: true},
}

func deviceList(a *app) *cobra.Command {
	var f client.DeviceFilter
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List devices, in the order they were created",
		Args:  cobra.NoArgs,
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			return printList(a, c.Devices(cmd.Context(), f), deviceColumns)
		}),
	}
	cmd.Flags().StringVar(&f.State, "state", "", "only those that are active, suspended or decommissioned")
	cmd.Flags().StringVar(&f.Alias, "alias", "", "only the one with this alias")
	cmd.Flags().StringVar(&f.Label, "label", "", "only those with this label, `key=value`")
	cmd.Flags().StringVar(&f.Renewal, "renewal", "", "only those whose certificate is to be renewed (renewal_pending), or expires soon (expiring_soon)")
	must(cmd.RegisterFlagCompletionFunc("state",
		cobra.FixedCompletions([]string{"active", "suspended", "decommissioned"}, cobra.ShellCompDirectiveNoFileComp)))
	return cmd
}

// completeDevices offers the first page of devices, by id.
func (a *app) completeDevices() cobra.CompletionFunc {
	return a.completion(func(cmd *cobra.Command, c *client.Client) ([]cobra.Completion, error) {
		var found []cobra.Completion
		for d, err := range c.Devices(cmd.Context(), client.DeviceFilter{}) {
			if err != nil || len(found) == 100 {
				return found, err
			}
			if d.State != "decommissioned" {
				found = append(found, cobra.CompletionWithDesc(d.ID, clean(d.Name)))
			}
		}
		return found, nil
	})
}

func deviceShow(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "show DEVICE",
		Short:             "Show a device, by id or alias",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeDevices(),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			d, err := c.Device(cmd.Context(), args[0])
			if err != nil {
				return noDevice(err)
			}
			return printOne(a, d, append(slices.Clone(deviceColumns), column[client.Device]{name: "registered", cell: registered}))
		}),
	}
}

// registered says how a device is registered over LwM2M.
func registered(d client.Device) string {
	r := d.Registration
	if r == nil {
		return ""
	}
	return fmt.Sprintf("as %s from %s, LwM2M %s, by %s %s, until %s", r.Endpoint, r.Remote, r.Version, r.Credential, r.CredentialID, when(r.ExpiresAt))
}

func noDevice(err error) error {
	if codeOf(err) == exitNotFound {
		return hinted(err, "keystead device list shows the devices of this organisation; --org names another")
	}
	return err
}

func deviceCreate(a *app) *cobra.Command {
	var d client.NewDevice
	var labels, aliases []string
	cmd := &cobra.Command{
		Use:   "create NAME",
		Short: "Add a device, before it has any credential",
		Args:  cobra.ExactArgs(1),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			d.Name = args[0]
			var err error
			if d.Labels, err = keyValues(labels); err != nil {
				return usage(cmd, err)
			}
			for _, text := range aliases {
				alias, err := parseAlias(text)
				if err != nil {
					return usage(cmd, err)
				}
				d.Aliases = append(d.Aliases, alias)
			}
			made, err := c.CreateDevice(cmd.Context(), d)
			if err != nil {
				return err
			}
			return printOne(a, made, deviceColumns)
		}),
	}
	cmd.Flags().StringArrayVar(&labels, "label", nil, "a label, `key=value`; may be repeated")
	cmd.Flags().StringArrayVar(&aliases, "alias", nil, "another name, `kind=value`; may be repeated")
	cmd.Flags().StringVar(&d.Comment, "comment", "", "what people should know of it")
	return cmd
}

func deviceMove(a *app, verb, short string, move func(*client.Client, context.Context, string) (client.Device, error)) *cobra.Command {
	return &cobra.Command{
		Use:               verb + " DEVICE...",
		Short:             short,
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: a.completeDevices(),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			return printList(a, func(yield func(client.Device, error) bool) {
				for _, name := range args {
					if d, err := move(c, cmd.Context(), name); !yield(d, noDevice(err)) || err != nil {
						return
					}
				}
			}, deviceColumns)
		}),
	}
}

func deviceDelete(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "delete DEVICE...",
		Short:             "Decommission devices for ever: every credential is revoked, aliases and metadata are erased",
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: a.completeDevices(),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			for _, name := range args {
				if err := c.DeleteDevice(cmd.Context(), name); err != nil {
					return noDevice(err)
				}
				a.done("device %s deleted", name)
			}
			return nil
		}),
	}
}

func deviceLabel(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "label DEVICE KEY=VALUE|KEY-...",
		Short: "Set labels of a device, or take them away with a dash after the key",
		Example: `  keystead device label 0190f3c2-… site=hall-3 line=2
  keystead device label 0190f3c2-… line-`,
		Args:              cobra.MinimumNArgs(2),
		ValidArgsFunction: a.completeDevices(),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			d, err := c.Device(cmd.Context(), args[0])
			if err != nil {
				return noDevice(err)
			}
			labels, err := relabelled(d.Labels, args[1:])
			if err != nil {
				return usage(cmd, err)
			}
			d, err = c.EditDevice(cmd.Context(), d.ID, client.DeviceEdit{Labels: &labels})
			if err != nil {
				return err
			}
			return printOne(a, d, deviceColumns)
		}),
	}
}

// relabelled is labels with changes, each key=value or key-.
func relabelled(labels map[string]string, changes []string) (map[string]string, error) {
	changed := map[string]string{}
	maps.Copy(changed, labels)
	for _, change := range changes {
		if key, value, ok := strings.Cut(change, "="); ok && key != "" {
			changed[key] = value
		} else if key, ok := strings.CutSuffix(change, "-"); ok && key != "" {
			delete(changed, key)
		} else {
			return nil, fmt.Errorf("%q is neither key=value nor key-", change)
		}
	}
	return changed, nil
}

func deviceComment(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "comment DEVICE TEXT",
		Short:             "Say what people should know of a device; an empty text takes it away",
		Example:           `  keystead device comment 0190f3c2-… "behind the ladder"`,
		Args:              cobra.ExactArgs(2),
		ValidArgsFunction: a.completeDevices(),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			d, err := c.EditDevice(cmd.Context(), args[0], client.DeviceEdit{Comment: &args[1]})
			if err != nil {
				return noDevice(err)
			}
			return printOne(a, d, deviceColumns)
		}),
	}
}

// aliasKinds are the kinds of aliases a person may give.
var aliasKinds = []string{"endpoint", "ocf_uuid", "common_name", "serial_number", "external"}

func parseAlias(text string) (client.Alias, error) {
	kind, value, ok := strings.Cut(text, "=")
	if !ok || value == "" || !slices.Contains(aliasKinds, kind) {
		return client.Alias{}, fmt.Errorf("alias %q is not kind=value, with kind one of %s", text, strings.Join(aliasKinds, ", "))
	}
	return client.Alias{Kind: kind, Value: value}, nil
}

func deviceAlias(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "alias DEVICE KIND=VALUE|VALUE-...",
		Short: "Give a device other names, or take them away with a dash after the value",
		Long: `Give a device other names, or take them away with a dash after the value.

The kinds are ` + strings.Join(aliasKinds, ", ") + `.
An alias is unique in its organisation, whatever its kind.`,
		Args:              cobra.MinimumNArgs(2),
		ValidArgsFunction: a.completeDevices(),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			d, err := c.Device(cmd.Context(), args[0])
			if err != nil {
				return noDevice(err)
			}
			aliases := slices.Clone(d.Aliases)
			for _, change := range args[1:] {
				if strings.Contains(change, "=") {
					alias, err := parseAlias(change)
					if err != nil {
						return usage(cmd, err)
					}
					aliases = append(aliases, alias)
					continue
				}
				value, ok := strings.CutSuffix(change, "-")
				was := len(aliases)
				aliases = slices.DeleteFunc(aliases, func(x client.Alias) bool { return x.Value == value })
				if !ok || len(aliases) == was {
					return usage(cmd, fmt.Errorf("%q is neither kind=value nor an alias of the device with a dash after it", change))
				}
			}
			d, err = c.EditDevice(cmd.Context(), d.ID, client.DeviceEdit{Aliases: &aliases})
			if err != nil {
				return err
			}
			return printOne(a, d, deviceColumns)
		}),
	}
}

func deviceRevoke(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "revoke DEVICE KIND CREDENTIAL",
		Short:             "Revoke one credential of a device, whatever its kind",
		Args:              cobra.ExactArgs(3),
		ValidArgsFunction: a.completeDevices(),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			if err := c.RevokeCredential(cmd.Context(), args[0], args[1], args[2]); err != nil {
				return hinted(err, "keystead device show %s lists its credentials", args[0])
			}
			a.done("%s %s revoked", args[1], args[2])
			return nil
		}),
	}
}

// keyValues reads key=value words.
func keyValues(words []string) (map[string]string, error) {
	if len(words) == 0 {
		return nil, nil
	}
	m := map[string]string{}
	for _, word := range words {
		key, value, ok := strings.Cut(word, "=")
		if !ok || key == "" {
			return nil, fmt.Errorf("%q is not key=value", word)
		}
		if _, twice := m[key]; twice {
			return nil, errors.New("the label " + key + " is given twice")
		}
		m[key] = value
	}
	return m, nil
}
