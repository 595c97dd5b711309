package cli

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"keystead/client"
)

func userCommand(a *app) *cobra.Command {
	return group("user", "Make, list and end accounts of people",
		userList(a), userCreate(a), userInvite(a), userRecover(a),
		userAct(a, "enable", "Let an account be used again", (*client.Client).EnableUser),
		userAct(a, "disable", "Refuse an account and its every key, from now on", (*client.Client).DisableUser),
		userAct(a, "delete", "Remove an account with its keys and memberships", (*client.Client).DeleteUser))
}

var userColumns = []column[client.User]{
	{name: "id", cell: func(u client.User) string { return u.ID }},
	{name: "email", cell: func(u client.User) string { return u.Email }},
	{name: "name", cell: func(u client.User) string { return u.Name }},
	{name: "status", cell: func(u client.User) string { return u.Status }},
	{name: "role", cell: func(u client.User) string { return u.Role }},
	{name: "organisation", cell: func(u client.User) string { return u.Org }, wide: true},
	{name: "created", cell: func(u client.User) string { return when(u.CreatedAt) }},
}

func userList(a *app) *cobra.Command {
	status := "all"
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List accounts",
		Args:  cobra.NoArgs,
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			return printList(a, c.Users(cmd.Context(), status), userColumns)
		}),
	}
	cmd.Flags().StringVar(&status, "status", status, "only those that are enabled, disabled or unverified")
	return cmd
}

// findUser returns the user that an id or an address names.
func findUser(cmd *cobra.Command, c *client.Client, name string) (client.User, error) {
	if !strings.Contains(name, "@") {
		return c.User(cmd.Context(), name)
	}
	for u, err := range c.Users(cmd.Context(), "all") {
		if err != nil || strings.EqualFold(u.Email, name) {
			return u, err
		}
	}
	return client.User{}, coded(exitNotFound, fmt.Errorf("no such user: %s", name), "keystead user list shows them")
}

func userCreate(a *app) *cobra.Command {
	var platform bool
	var passwordFile string
	cmd := &cobra.Command{
		Use:   "create EMAIL",
		Short: "Make an account, and show the link by which its holder sets a password",
		Args:  cobra.ExactArgs(1),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			password := ""
			if passwordFile != "" {
				var err error
				if password, err = a.readSecret(passwordFile); err != nil {
					return err
				}
			}
			if err := c.CreateUser(cmd.Context(), args[0], password, platform); err != nil {
				return err
			}
			u, err := findUser(cmd, c, args[0])
			if err != nil {
				return err
			}
			if password == "" {
				return a.recoverUser(cmd, c, u)
			}
			return printOne(a, u, userColumns)
		}),
	}
	cmd.Flags().BoolVar(&platform, "platform", false, "make it a platform administrator")
	cmd.Flags().StringVar(&passwordFile, "password-file", "", "its password is in this `file`; - for standard input")
	return cmd
}

func userInvite(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "invite EMAIL",
		Short: "Invite somebody to make an account; the link is mailed where mail is sent",
		Args:  cobra.ExactArgs(1),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			i, err := c.Invite(cmd.Context(), "", args[0], "")
			if err != nil {
				return err
			}
			return printOne(a, i, inviteColumns)
		}),
	}
}

var inviteColumns = []column[client.Invite]{
	{name: "id", cell: func(i client.Invite) string { return i.ID }},
	{name: "email", cell: func(i client.Invite) string { return i.Email }},
	{name: "role", cell: func(i client.Invite) string { return i.Role }},
	{name: "link", cell: func(i client.Invite) string { return i.Link }},
	{name: "expires", cell: func(i client.Invite) string { return when(i.ExpiresAt) }},
}

func userRecover(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "recover USER",
		Short: "Show a link by which a user, by id or address, sets a new password once",
		Args:  cobra.ExactArgs(1),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			u, err := findUser(cmd, c, args[0])
			if err != nil {
				return err
			}
			return a.recoverUser(cmd, c, u)
		}),
	}
}

func (a *app) recoverUser(cmd *cobra.Command, c *client.Client, u client.User) error {
	r, err := c.RecoverUser(cmd.Context(), u.ID)
	if err != nil {
		return err
	}
	return printOne(a, r, []column[client.Recovery]{
		{name: "user", cell: func(client.Recovery) string { return u.ID }},
		{name: "link", cell: func(r client.Recovery) string { return r.Link }},
		{name: "expires", cell: func(r client.Recovery) string { return when(r.ExpiresAt) }},
	})
}

type userAction func(c *client.Client, ctx context.Context, id string) error

func userAct(a *app, use, short string, do userAction) *cobra.Command {
	return &cobra.Command{
		Use:   use + " USER",
		Short: short,
		Args:  cobra.ExactArgs(1),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			u, err := findUser(cmd, c, args[0])
			if err != nil {
				return err
			}
			if err := do(c, cmd.Context(), u.ID); err != nil {
				return err
			}
			a.done("%s: %sd", args[0], use)
			return nil
		}),
	}
}
