package cli

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"keystead/client"
	"keystead/fault"
	"keystead/server"
	"keystead/store"
)

func userCommand(a *app) *cobra.Command {
	return group("user", "Make, list and end accounts of people",
		userList(a), userCreate(a), userInvite(a), userRecover(a),
		userAct(a, "enable", "Let an account be used again", (*client.Client).EnableUser),
		userAct(a, "disable", "Refuse an account and its every key, from now on", (*client.Client).DisableUser),
		userAct(a, "delete", "Remove an account with its keys and memberships", (*client.Client).DeleteUser),
		group("passkey", "The passkeys of a user; ending one takes a login", passkeyList(a), passkeyDelete(a)),
		userResetFactor(a))
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

var passkeyColumns = []column[client.Passkey]{
	{name: "id", cell: func(p client.Passkey) string { return p.ID }},
	{name: "name", cell: func(p client.Passkey) string { return p.Name }},
	{name: "created", cell: func(p client.Passkey) string { return when(p.CreatedAt) }},
	{name: "last used", cell: func(p client.Passkey) string {
		if p.LastUsedAt == nil {
			return "never"
		}
		return when(*p.LastUsedAt)
	}},
}

func passkeyList(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "list USER",
		Short: "List the passkeys of a user, by id or address",
		Args:  cobra.ExactArgs(1),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			u, err := findUser(cmd, c, args[0])
			if err != nil {
				return err
			}
			list, err := c.Passkeys(cmd.Context(), u.ID)
			if err != nil {
				return err
			}
			return printList(a, func(yield func(client.Passkey, error) bool) {
				for _, p := range list {
					if !yield(p, nil) {
						return
					}
				}
			}, passkeyColumns)
		}),
	}
}

func passkeyDelete(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "delete USER ID",
		Short: "End a passkey of a user; log in for it, with a second factor if you have one",
		Args:  cobra.ExactArgs(2),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			u, err := findUser(cmd, c, args[0])
			if err != nil {
				return err
			}
			if err := c.DeletePasskey(cmd.Context(), u.ID, args[1]); err != nil {
				return err
			}
			a.done("the passkey is ended")
			return nil
		}),
	}
}

func userResetFactor(a *app) *cobra.Command {
	var stopped, yes bool
	online := a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
		u, err := findUser(cmd, c, args[0])
		if err != nil {
			return err
		}
		if err := c.ResetSecondFactor(cmd.Context(), u.ID); err != nil {
			return err
		}
		a.done("%s has no second factor any more", args[0])
		return nil
	})
	cmd := &cobra.Command{
		Use:   "reset-second-factor USER",
		Short: "Take passkeys, authenticator app and recovery codes from a user who has lost them",
		Long: `Take all second factors from a user who has lost them: passkeys, authenticator app and
recovery codes. Its logins end, and it logs in with its password alone until it sets one
up again. Be sure who asks. It is for a platform administrator who has logged in
(keystead login), with a second factor if it has one; the audit trail has it.

Where no administrator can log in any more, stop the server and use --stopped: it works
on the files of the server, for whoever may read them, and only says what it would do
unless there is --yes as well. The audit trail has that too.`,
		Example: `  keystead user reset-second-factor ann@example.org
  keystead user reset-second-factor root@example.org --stopped --yes`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case yes && !stopped:
				return usage(cmd, errors.New("--yes goes with --stopped"))
			case stopped:
				return a.resetStopped(cmd.Context(), args[0], yes)
			}
			return online(cmd, args)
		},
	}
	cmd.Flags().BoolVar(&stopped, "stopped", false, "on the files of a stopped server; needs no account")
	cmd.Flags().BoolVar(&yes, "yes", false, "with --stopped: do it, do not only say what would be done")
	return cmd
}

// resetStopped is reset-second-factor without a server.
func (a *app) resetStopped(ctx context.Context, user string, yes bool) error {
	cfg, err := a.config()
	if err != nil {
		return err
	}
	f, err := server.ResetSecondFactor(ctx, cfg, user, !yes)
	switch {
	case errors.Is(err, store.ErrInUse):
		return coded(exitFailed, oneLine(err), "stop the server of this data directory first, or leave --stopped out")
	case fault.Is(err, fault.NotFound):
		return coded(exitNotFound, fmt.Errorf("no such user: %s", user), "name the user by address or id")
	case fault.Is(err, fault.Conflict):
		return coded(exitConflict, oneLine(err), "the user logs in with the password alone")
	case err != nil:
		return offline(err)
	}
	what := fmt.Sprintf("%d passkeys, an authenticator app: %t, %d recovery codes", len(f.Passkeys), f.Authenticator, f.Codes)
	if !yes {
		a.done("%s has %s; --yes takes them away", user, what)
		return nil
	}
	a.done("%s has no second factor any more; it had %s", user, what)
	return nil
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
