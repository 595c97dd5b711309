package cli

import (
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"keystead/client"
)

func webhookCommand(a *app) *cobra.Command {
	return group("webhook", "Have other systems told of what happens",
		webhookCreate(a), webhookList(a), webhookPause(a, true), webhookPause(a, false), webhookDeliveries(a), webhookResend(a), webhookDelete(a))
}

var webhookColumns = []column[client.Webhook]{
	{name: "id", cell: func(w client.Webhook) string { return w.ID }},
	{name: "url", cell: func(w client.Webhook) string { return w.URL }},
	{name: "format", cell: func(w client.Webhook) string { return w.Format }},
	{name: "types", cell: func(w client.Webhook) string { return strings.Join(w.Types, " ") }},
	{name: "paused", cell: func(w client.Webhook) string { return strconv.FormatBool(w.Paused) }},
	{name: "created", cell: func(w client.Webhook) string { return when(w.CreatedAt) }, wide: true},
}

func webhookCreate(a *app) *cobra.Command {
	var n client.NewWebhook
	var secretFile string
	cmd := &cobra.Command{
		Use:   "create URL",
		Short: "Have events posted to a URL, in order, at least once, signed",
		Long: `Have events posted to a URL. The secret that deliveries are signed with is shown
this once. A receiver computes hex HMAC-SHA256 of "<t>.<body>", with t from the
header X-Keystead-Signature ("t=...,v1=..."), and compares it with v1.`,
		Example: `  keystead webhook create https://ops.example.org/keystead --type 'device.*'
  keystead webhook create https://hosted.example.org/hook --format mender`,
		Args: cobra.ExactArgs(1),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) (err error) {
			n.URL = args[0]
			if secretFile != "" {
				if n.Secret, err = a.readSecret(secretFile); err != nil {
					return err
				}
			}
			w, err := c.CreateWebhook(cmd.Context(), n)
			if err != nil {
				return err
			}
			return printOne(a, w, append([]column[client.Webhook]{
				{name: "secret", cell: func(w client.Webhook) string { return w.Secret }},
			}, webhookColumns...))
		}),
	}
	f := cmd.Flags()
	f.StringVar(&n.Format, "format", "", "how events are written: `cloudevents` or mender")
	f.StringArrayVar(&n.Types, "type", nil, "only events of this `type`; a trailing * stands for any rest; may be repeated")
	f.StringVar(&secretFile, "secret-file", "", "sign with the secret in this `file`, in hexadecimal; - for standard input")
	return cmd
}

func webhookList(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the webhooks of the organisation",
		Args:  cobra.NoArgs,
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			return printList(a, c.Webhooks(cmd.Context()), webhookColumns)
		}),
	}
}

// completeWebhooks offers the webhooks.
func (a *app) completeWebhooks() cobra.CompletionFunc {
	return a.completion(func(cmd *cobra.Command, c *client.Client) ([]cobra.Completion, error) {
		var found []cobra.Completion
		for w, err := range c.Webhooks(cmd.Context()) {
			if err != nil {
				return found, err
			}
			found = append(found, cobra.CompletionWithDesc(w.ID, w.URL))
		}
		return found, nil
	})
}

func webhookPause(a *app, paused bool) *cobra.Command {
	use, short := "resume WEBHOOK", "Go on delivering, with what waits first"
	if paused {
		use, short = "pause WEBHOOK", "Have deliveries wait"
	}
	return &cobra.Command{
		Use:               use,
		Short:             short,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeWebhooks(),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			w, err := c.PauseWebhook(cmd.Context(), args[0], paused)
			if err != nil {
				return err
			}
			return printOne(a, w, webhookColumns)
		}),
	}
}

var deliveryColumns = []column[client.Delivery]{
	{name: "id", cell: func(d client.Delivery) string { return d.ID }},
	{name: "type", cell: func(d client.Delivery) string { return d.Type }},
	{name: "subject", cell: func(d client.Delivery) string { return d.Subject }},
	{name: "time", cell: func(d client.Delivery) string { return when(d.Time) }},
	{name: "tries", cell: func(d client.Delivery) string { return strconv.Itoa(d.Tries) }},
	{name: "status", cell: func(d client.Delivery) string { return strconv.Itoa(d.LastStatus) }},
	{name: "error", cell: func(d client.Delivery) string { return d.LastError }},
}

func webhookDeliveries(a *app) *cobra.Command {
	var failed bool
	cmd := &cobra.Command{
		Use:               "deliveries WEBHOOK",
		Short:             "List what waits for a webhook, or was put aside after a day of failures",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeWebhooks(),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			return printList(a, c.Deliveries(cmd.Context(), args[0], failed), deliveryColumns)
		}),
	}
	cmd.Flags().BoolVar(&failed, "failed", false, "those that were put aside")
	return cmd
}

func webhookResend(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "resend WEBHOOK DELIVERY...",
		Short: "Try deliveries that were put aside again",
		Args:  cobra.MinimumNArgs(2),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			for _, id := range args[1:] {
				if _, err := c.ResendDelivery(cmd.Context(), args[0], id); err != nil {
					return err
				}
				a.done("delivery %s waits again", id)
			}
			return nil
		}),
	}
}

func webhookDelete(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "delete WEBHOOK...",
		Short:             "Remove webhooks and what waits for them",
		Args:              cobra.MinimumNArgs(1),
		ValidArgsFunction: a.completeWebhooks(),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			for _, id := range args {
				if err := c.DeleteWebhook(cmd.Context(), id); err != nil {
					return err
				}
				a.done("deleted %s", id)
			}
			return nil
		}),
	}
}
