package cli

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"keystead/client"
)

func pskCommand(a *app) *cobra.Command {
	return group("psk", "Make, list and end the pre-shared keys of devices",
		pskCreate(a), pskList(a), pskReveal(a), pskDelete(a))
}

var pskColumns = []column[client.PSK]{
	{name: "identity", cell: func(k client.PSK) string { return k.Identity }},
	{name: "device", cell: func(k client.PSK) string { return k.Device }},
	{name: "created", cell: func(k client.PSK) string { return when(k.CreatedAt) }},
}

// pskSecretColumns show a key whose secret is given out: in hexadecimal, and as
// text where it can be typed.
func pskSecretColumns(text bool) []column[client.PSK] {
	columns := []column[client.PSK]{
		{name: "identity", cell: func(k client.PSK) string { return k.Identity }},
		{name: "secret", cell: func(k client.PSK) string { return k.Secret }},
	}
	if text {
		columns = append(columns, column[client.PSK]{name: "text", cell: secretText})
	}
	return append(columns, column[client.PSK]{name: "device", cell: func(k client.PSK) string { return k.Device }})
}

// secretText is a secret as it is typed, "" if it cannot be.
func secretText(k client.PSK) string {
	b, err := hex.DecodeString(k.Secret)
	if err != nil || strings.ContainsFunc(string(b), func(r rune) bool { return r < 0x20 || r > 0x7e }) {
		return ""
	}
	return string(b)
}

func pskCreate(a *app) *cobra.Command {
	var n client.NewPSK
	var count int
	var text bool
	var secretFile string
	var labels []string
	cmd := &cobra.Command{
		Use:   "create",
		Short: "Make pre-shared keys, or import one",
		Long: `Make a pre-shared key for a new device, or for one that is there (--device).
The secret is shown this once. With -n, make many, each for a new device.

To import a key made elsewhere, name it with --identity and have its secret, in
hexadecimal, in a file or on standard input (--secret-file -).`,
		Example: `  keystead psk create --text
  keystead psk create --device SN-0042
  keystead psk create -n 10000 -o csv > keys.csv`,
		Args: cobra.NoArgs,
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, _ []string) (err error) {
			if text {
				n.SecretFormat = "text"
			}
			if n.Labels, err = keyValues(labels); err != nil {
				return usage(cmd, err)
			}
			if cmd.Flags().Changed("count") {
				if count < 1 || n.Identity+n.Device+secretFile != "" {
					return usage(cmd, errors.New("-n takes a number from 1 on, and goes with --text and --label only"))
				}
				return a.pskCreateMany(cmd.Context(), c, count, n)
			}
			if secretFile != "" {
				if n.Secret, err = a.readSecret(secretFile); err != nil {
					return err
				}
			}
			k, err := c.CreatePSK(cmd.Context(), n)
			if err != nil {
				return noDevice(err)
			}
			return printOne(a, k, pskSecretColumns(text))
		}),
	}
	f := cmd.Flags()
	f.IntVarP(&count, "count", "n", 1, "make `N` keys, each for a new device")
	f.StringVar(&n.Identity, "identity", "", "the `name` the device sends; random if left out")
	f.StringVar(&secretFile, "secret-file", "", "import the secret in this `file`, in hexadecimal; - for standard input")
	f.BoolVar(&text, "text", false, "make a secret that can be typed, for clients that take no other")
	f.StringVar(&n.Device, "device", "", "the `device` the key is for, by id or alias")
	f.StringArrayVar(&labels, "label", nil, "give the new device this `key=value`; may be repeated")
	must(cmd.RegisterFlagCompletionFunc("device", a.completeDevices()))
	return cmd
}

// readSecret reads a secret from a file, or from standard input for "-". It is
// no argument, where the list of processes would show it.
func (a *app) readSecret(file string) (string, error) {
	in := a.stdin
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return "", err
		}
		defer f.Close()
		in = f
	}
	b, err := io.ReadAll(io.LimitReader(in, 4096))
	return strings.TrimSpace(string(b)), err
}

// pskCreateMany makes keys a batch at a time and prints each batch as it comes.
func (a *app) pskCreateMany(ctx context.Context, c *client.Client, count int, n client.NewPSK) error {
	bar := a.progress("keys", count)
	defer bar.end()
	keys := func(yield func(client.PSK, error) bool) {
		for made := 0; made < count; {
			batch, err := c.CreatePSKs(ctx, min(client.PSKBatch, count-made), n)
			if err != nil {
				yield(client.PSK{}, hinted(err, "%d keys were made and printed", made))
				return
			}
			for _, k := range batch {
				if !yield(k, nil) {
					return
				}
			}
			made += len(batch)
			bar.at(made)
		}
	}
	return printList(a, iter.Seq2[client.PSK, error](keys), pskSecretColumns(n.SecretFormat == "text"))
}

func pskList(a *app) *cobra.Command {
	var device string
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List pre-shared keys, without their secrets",
		Args:  cobra.NoArgs,
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			return noDevice(printList(a, c.PSKs(cmd.Context(), device), pskColumns))
		}),
	}
	cmd.Flags().StringVar(&device, "device", "", "only those of this `device`")
	must(cmd.RegisterFlagCompletionFunc("device", a.completeDevices()))
	return cmd
}

// completePSKs offers the first page of keys.
func (a *app) completePSKs() cobra.CompletionFunc {
	return a.completion(func(cmd *cobra.Command, c *client.Client) ([]cobra.Completion, error) {
		var found []cobra.Completion
		for k, err := range c.PSKs(cmd.Context(), "") {
			if err != nil || len(found) == 100 {
				return found, err
			}
			found = append(found, k.Identity)
		}
		return found, nil
	})
}

func pskReveal(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "reveal IDENTITY",
		Short:             "Show the secret of a key once more; the audit trail says who asked",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completePSKs(),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			k, err := c.RevealPSK(cmd.Context(), args[0])
			if err != nil {
				return noPSK(err)
			}
			return printOne(a, k, pskSecretColumns(secretText(k) != ""))
		}),
	}
}

func pskDelete(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "delete IDENTITY...",
		Short:             "End keys: the next handshake fails, open sessions are closed",
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: a.completePSKs(),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			for _, identity := range args {
				if err := c.DeletePSK(cmd.Context(), identity); err != nil {
					return noPSK(fmt.Errorf("%s: %w", identity, err))
				}
				a.done("deleted %s", identity)
			}
			return nil
		}),
	}
}

func noPSK(err error) error {
	if codeOf(err) == exitNotFound {
		return hinted(err, "keystead psk list shows the keys of this organisation; --org names another")
	}
	return err
}
