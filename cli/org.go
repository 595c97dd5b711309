package cli

import (
	"errors"
	"strconv"

	"github.com/spf13/cobra"

	"keystead/client"
)

func orgCommand(a *app) *cobra.Command {
	member := group("member", "List, add, invite, change and remove members",
		memberList(a), memberSet(a, "add", "Make the user with an address a member", true),
		memberSet(a, "set", "Change the role of a member", false), memberInvite(a), memberRemove(a))
	return group("org", "Make, list and end organisations", orgList(a), orgCreate(a), orgDelete(a), member)
}

var orgColumns = []column[client.Organisation]{
	{name: "id", cell: func(o client.Organisation) string { return o.ID }},
	{name: "number", cell: func(o client.Organisation) string { return strconv.FormatUint(uint64(o.Number), 10) }},
	{name: "name", cell: func(o client.Organisation) string { return o.Name }},
	{name: "description", cell: func(o client.Organisation) string { return o.Description }, wide: true},
	{name: "created", cell: func(o client.Organisation) string { return when(o.CreatedAt) }},
}

func orgList(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List organisations",
		Args:  cobra.NoArgs,
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			return printList(a, c.Organisations(cmd.Context()), orgColumns)
		}),
	}
}

func orgCreate(a *app) *cobra.Command {
	var description string
	cmd := &cobra.Command{
		Use:   "create NAME",
		Short: "Make an organisation; the caller owns it",
		Args:  cobra.ExactArgs(1),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			o, err := c.CreateOrganisation(cmd.Context(), args[0], description)
			if err != nil {
				return err
			}
			return printOne(a, o, orgColumns)
		}),
	}
	cmd.Flags().StringVar(&description, "description", "", "what it is")
	return cmd
}

func orgDelete(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "delete ORG",
		Short: "Remove an organisation that has no devices",
		Args:  cobra.ExactArgs(1),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			if err := c.DeleteOrganisation(cmd.Context(), args[0]); err != nil {
				return err
			}
			a.done("%s: deleted", args[0])
			return nil
		}),
	}
}

var memberColumns = []column[client.Member]{
	{name: "id", cell: func(m client.Member) string { return m.ID }},
	{name: "email", cell: func(m client.Member) string { return m.Email }},
	{name: "role", cell: func(m client.Member) string { return m.Role }},
	{name: "since", cell: func(m client.Member) string { return when(m.CreatedAt) }},
}

// actingOrg is the organisation commands act in: that of --org, or the caller's own.
func (a *app) actingOrg(cmd *cobra.Command, c *client.Client) (string, error) {
	who, err := c.Whoami(cmd.Context())
	if err == nil && who.Organisation == "" {
		err = hinted(errors.New("the caller is in no organisation"), "name one with --org")
	}
	return who.Organisation, err
}

func memberList(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the members of the organisation",
		Args:  cobra.NoArgs,
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			org, err := a.actingOrg(cmd, c)
			if err != nil {
				return err
			}
			return printList(a, c.Members(cmd.Context(), org), memberColumns)
		}),
	}
}

func memberSet(a *app, use, short string, add bool) *cobra.Command {
	return &cobra.Command{
		Use:   use + " EMAIL ROLE",
		Short: short,
		Long:  short + ". The roles are viewer, editor, admin and owner.",
		Args:  cobra.ExactArgs(2),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			org, err := a.actingOrg(cmd, c)
			if err != nil {
				return err
			}
			if err := c.SetMember(cmd.Context(), org, args[0], args[1], add); err != nil {
				return err
			}
			a.done("%s: %s", args[0], args[1])
			return nil
		}),
	}
}

func memberInvite(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "invite EMAIL ROLE",
		Short: "Invite somebody to the organisation; the link is mailed where mail is sent",
		Args:  cobra.ExactArgs(2),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			org, err := a.actingOrg(cmd, c)
			if err != nil {
				return err
			}
			i, err := c.Invite(cmd.Context(), org, args[0], args[1])
			if err != nil {
				return err
			}
			return printOne(a, i, inviteColumns)
		}),
	}
}

func memberRemove(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "remove USER",
		Short: "End the membership of a user, by id",
		Args:  cobra.ExactArgs(1),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			org, err := a.actingOrg(cmd, c)
			if err != nil {
				return err
			}
			if err := c.RemoveMember(cmd.Context(), org, args[0]); err != nil {
				return err
			}
			a.done("%s: removed", args[0])
			return nil
		}),
	}
}
