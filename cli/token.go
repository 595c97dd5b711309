package cli

import (
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"keystead/client"
)

func tokenCommand(a *app) *cobra.Command {
	return group("token", "Look after the tokens of devices, and the keys that sign them",
		tokenIssue(a), tokenRevoke(a), tokenKeys(a), tokenRotate(a))
}

func tokenIssue(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "issue DEVICE",
		Short:             "Print a token of a device with an accepted auth set; the audit trail says who asked",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeDevices(),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			token, err := c.IssueToken(cmd.Context(), args[0])
			if err != nil {
				return noDevice(err)
			}
			_, err = fmt.Fprintln(a.stdout, token)
			return err
		}),
	}
}

func tokenRevoke(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "revoke ID",
		Short: "Revoke the tokens of an auth set, by a token's id (jti) or the set's; its device may ask for a new one",
		Args:  cobra.ExactArgs(1),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			if err := c.RevokeToken(cmd.Context(), args[0]); err != nil {
				return err
			}
			a.done("tokens revoked")
			return nil
		}),
	}
}

var signingKeyColumns = []column[client.SigningKey]{
	{name: "id", cell: func(k client.SigningKey) string { return k.ID }},
	{name: "algorithm", cell: func(k client.SigningKey) string { return k.Algorithm }},
	{name: "state", cell: func(k client.SigningKey) string { return k.State }},
	{name: "created", cell: func(k client.SigningKey) string { return when(k.CreatedAt) }},
	{name: "signs since", cell: func(k client.SigningKey) string { return whenever(k.ActiveAt) }},
	{name: "verifies until", cell: func(k client.SigningKey) string { return whenever(k.RetiredAt) }},
}

func (a *app) printKeys(list []client.SigningKey, err error) error {
	return printList(a, func(yield func(client.SigningKey, error) bool) {
		if err != nil {
			yield(client.SigningKey{}, err)
			return
		}
		for _, k := range list {
			if !yield(k, nil) {
				return
			}
		}
	}, signingKeyColumns)
}

func tokenKeys(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "keys",
		Short: "List the keys that tokens are signed with",
		Args:  cobra.NoArgs,
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			return a.printKeys(c.SigningKeys(cmd.Context()))
		}),
	}
}

func tokenRotate(a *app) *cobra.Command {
	var algorithm string
	var now bool
	cmd := &cobra.Command{
		Use:   "rotate",
		Short: "Have the next key sign; tokens of the one before are good until they expire",
		Args:  cobra.NoArgs,
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			return a.printKeys(c.RotateSigningKeys(cmd.Context(), algorithm, now))
		}),
	}
	cmd.Flags().StringVar(&algorithm, "algorithm", "", "of the new next key: EdDSA, ES256 or RS256")
	cmd.Flags().BoolVar(&now, "now", false, "even if the next key was published less than an hour ago")
	return cmd
}

func mtlsCACommand(a *app) *cobra.Command {
	return group("mtls-ca", "Register CAs whose client certificates accept auth sets with their key",
		mtlsCAAdd(a), mtlsCAList(a), mtlsCADelete(a), mtlsCADeny(a, "deny", true), mtlsCADeny(a, "allow", false))
}

var mtlsCAColumns = []column[client.MTLSCA]{
	{name: "id", cell: func(ca client.MTLSCA) string { return ca.ID }},
	{name: "name", cell: func(ca client.MTLSCA) string { return ca.Name }},
	{name: "attributes", cell: func(ca client.MTLSCA) string { return pairs(ca.Attributes) }},
	{name: "created", cell: func(ca client.MTLSCA) string { return when(ca.CreatedAt) }},
}

func mtlsCAAdd(a *app) *cobra.Command {
	var attributes []string
	cmd := &cobra.Command{
		Use:   "register NAME FILE",
		Short: "Register a CA by its certificate in PEM",
		Example: `  keystead mtls-ca register factory factory-ca.pem
  keystead mtls-ca register factory factory-ca.pem --attribute serial=common_name`,
		Args: cobra.ExactArgs(2),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			text, err := os.ReadFile(args[1])
			if err != nil {
				return err
			}
			must, err := keyValues(attributes)
			if err != nil {
				return usage(cmd, err)
			}
			ca, err := c.CreateMTLSCA(cmd.Context(), client.MTLSCA{Name: args[0], Certificate: string(text), Attributes: must})
			if err != nil {
				return err
			}
			return printOne(a, ca, mtlsCAColumns)
		}),
	}
	cmd.Flags().StringArrayVar(&attributes, "attribute", nil, "an identity attribute and what of the certificate it must equal, `name=part`: common_name, serial_number, dns or uri")
	return cmd
}

func mtlsCAList(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the CAs that are registered",
		Args:  cobra.NoArgs,
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			return printList(a, c.MTLSCAs(cmd.Context()), mtlsCAColumns)
		}),
	}
}

func mtlsCADelete(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "remove CA",
		Short: "Remove a CA; what its certificates accepted stays accepted",
		Args:  cobra.ExactArgs(1),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			if err := c.DeleteMTLSCA(cmd.Context(), args[0]); err != nil {
				return err
			}
			a.done("mtls-ca %s removed", args[0])
			return nil
		}),
	}
}

func mtlsCADeny(a *app, verb string, deny bool) *cobra.Command {
	short := "Let a certificate of a CA accept auth sets again"
	if deny {
		short = "Have a certificate of a CA, by its serial number in hexadecimal, accept nothing any more"
	}
	return &cobra.Command{
		Use:   verb + " CA SERIAL",
		Short: short,
		Args:  cobra.ExactArgs(2),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			if err := c.SetDenied(cmd.Context(), args[0], strings.ReplaceAll(args[1], ":", ""), deny); err != nil {
				return err
			}
			a.done("%s", fmt.Sprintf("certificate %s: %s", args[1], verb))
			return nil
		}),
	}
}
