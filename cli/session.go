package cli

import (
	"strconv"

	"github.com/spf13/cobra"

	"keystead/client"
)

func sessionCommand(a *app) *cobra.Command {
	return group("session", "List and close the CoAP sessions that are open", sessionList(a), sessionClose(a))
}

var sessionColumns = []column[client.Session]{
	{name: "id", cell: func(s client.Session) string { return s.ID }},
	{name: "device", cell: func(s client.Session) string { return s.Device }},
	{name: "name", cell: func(s client.Session) string { return s.Name }, wide: true},
	{name: "credential", cell: func(s client.Session) string {
		if s.Credential == nil {
			return ""
		}
		return s.Credential.Kind + " " + s.Credential.ID
	}},
	{name: "transport", cell: func(s client.Session) string { return s.Transport }},
	{name: "remote", cell: func(s client.Session) string { return s.Remote }},
	{name: "since", cell: func(s client.Session) string { return when(s.Since) }},
	{name: "seen", cell: func(s client.Session) string { return when(s.LastSeen) }},
	{name: "received", cell: func(s client.Session) string { return strconv.FormatUint(s.Received, 10) }, wide: true},
	{name: "sent", cell: func(s client.Session) string { return strconv.FormatUint(s.Sent, 10) }, wide: true},
}

func sessionList(a *app) *cobra.Command {
	var device string
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the sessions that are open, in the order they began",
		Args:  cobra.NoArgs,
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			return printList(a, c.Sessions(cmd.Context(), device), sessionColumns)
		}),
	}
	cmd.Flags().StringVar(&device, "device", "", "only those of the device with this id")
	return cmd
}

func sessionClose(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "close SESSION...",
		Short: "Close sessions; their devices may open others",
		Args:  cobra.MinimumNArgs(1),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			for _, id := range args {
				if err := c.EndSession(cmd.Context(), id); err != nil {
					return err
				}
				a.done("session %s closed", id)
			}
			return nil
		}),
	}
}
