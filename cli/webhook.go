package cli

import (
	"errors"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"keystead/client"
)

func webhookCommand(a *app) *cobra.Command {
	return group("webhook", "Have other systems told of what happens",
		webhookCreate(a), webhookList(a), webhookPause(a, true), webhookPause(a, false), webhookTest(a), webhookSync(a), webhookDeliveries(a), webhookResend(a), webhookDelete(a))
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
	var secretFile, connectionFile string
	cmd := &cobra.Command{
		Use:   "create [URL]",
		Short: "Have events posted to a URL, in order, at least once, signed; or an Azure IoT Hub follow the devices",
		Long: `Have events posted to a URL. The secret that deliveries are signed with is shown
this once. A receiver computes hex HMAC-SHA256 of "<t>.<body>", with t from the
header X-Keystead-Signature ("t=...,v1=..."), and compares it with v1.

With --connection-file, an Azure IoT Hub has an identity for each device that was let in,
enabled while the device may come in and gone when it is decommissioned. The file holds
the connection string of a shared access policy that may write to the registry.`,
		Example: `  keystead webhook create https://ops.example.org/keystead --type 'device.*'
  keystead webhook create https://hosted.example.org/hook --format mender
  keystead webhook create --connection-file hub.txt`,
		Args: cobra.MaximumNArgs(1),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) (err error) {
			switch {
			case (len(args) == 1) == (connectionFile != ""):
				return usage(cmd, errors.New("give a URL, or --connection-file for a hub"))
			case len(args) == 1:
				n.URL = args[0]
			default:
				n.Format = "azure-iot-hub"
				if n.Connection, err = a.readSecret(connectionFile); err != nil {
					return err
				}
			}
			if secretFile != "" {
				if n.Secret, err = a.readSecret(secretFile); err != nil {
					return err
				}
			}
			w, err := c.CreateWebhook(cmd.Context(), n)
			if err != nil {
				return err
			}
			columns := webhookColumns
			if w.Secret != "" {
				columns = append([]column[client.Webhook]{{name: "secret", cell: func(w client.Webhook) string { return w.Secret }}}, columns...)
			}
			return printOne(a, w, columns)
		}),
	}
	f := cmd.Flags()
	f.StringVar(&n.Format, "format", "", "how events are written: `cloudevents` or mender")
	f.StringArrayVar(&n.Types, "type", nil, "only events of this `type`; a trailing * stands for any rest; may be repeated")
	f.StringVar(&connectionFile, "connection-file", "", "the `file` with a hub's connection string; - for standard input")
	f.StringVar(&n.HubAuth, "auth", "", "how devices prove themselves to the hub: `sas`, by keys it makes, or certificateAuthority")
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

func webhookTest(a *app) *cobra.Command {
	var device string
	cmd := &cobra.Command{
		Use:   "test WEBHOOK",
		Short: "Send an event of type test, now and once; of a hub, see whether it can be reached and change nothing",
		Example: `  keystead webhook test 0190f3c2-…
  keystead webhook test 0190f3c2-… --device 0190f3c5-…`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeWebhooks(),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			r, err := c.TestWebhook(cmd.Context(), args[0], device)
			if err != nil {
				return err
			}
			if !r.OK {
				return errors.New(r.Error)
			}
			a.done("it answered with status %d", r.Status)
			if device != "" {
				a.done("to do for the device: %s", r.Action)
			}
			return nil
		}),
	}
	cmd.Flags().StringVar(&device, "device", "", "of a hub: say what there would be to do for this device, by its `id`")
	return cmd
}

func webhookSync(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "sync WEBHOOK",
		Short:             "Have a hub show how the devices stand that were there before it was",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeWebhooks(),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			counts, err := c.DeviceCounts(cmd.Context())
			if err != nil {
				return err
			}
			total := 0
			for _, n := range counts {
				total += n
			}
			bar := a.progress("devices", max(total, 1))
			queued, cursor := 0, ""
			for {
				r, err := c.SyncWebhook(cmd.Context(), args[0], cursor)
				if err != nil {
					bar.end()
					return hinted(err, "%d are queued; the same command again does the rest, and for those nothing", queued)
				}
				queued += r.Queued
				bar.at(min(queued, max(total, 1)))
				if cursor = r.Next; cursor == "" {
					break
				}
			}
			bar.end()
			a.done("%d devices queued; keystead webhook deliveries %s lists what waits", queued, args[0])
			return nil
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
