package cli

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"keystead/client"
)

func auditCommand(a *app) *cobra.Command {
	return group("audit", "Read and verify the trail of what was changed, by whom",
		auditList(a), auditVerify(a), auditExport(a))
}

var auditColumns = []column[client.AuditRecord]{
	{name: "seq", cell: func(r client.AuditRecord) string { return strconv.FormatUint(r.Seq, 10) }},
	{name: "at", cell: func(r client.AuditRecord) string { return when(r.At) }},
	{name: "actor", cell: func(r client.AuditRecord) string {
		if r.Actor.ID == "" {
			return r.Actor.Kind
		}
		return r.Actor.Kind + " " + r.Actor.ID
	}},
	{name: "credential", cell: func(r client.AuditRecord) string { return r.Actor.Credential }, wide: true},
	{name: "action", cell: func(r client.AuditRecord) string { return r.Action }},
	{name: "target", cell: func(r client.AuditRecord) string { return r.Target }},
	{name: "device", cell: func(r client.AuditRecord) string { return r.Device }, wide: true},
	{name: "detail", cell: func(r client.AuditRecord) string { return pairs(r.Detail) }},
	{name: "organisation", cell: func(r client.AuditRecord) string { return r.Organisation }, wide: true},
	{name: "request", cell: func(r client.AuditRecord) string { return r.RequestID }, wide: true},
	{name: "mac", cell: func(r client.AuditRecord) string { return r.MAC }, wide: true},
}

// auditFlags adds the flags that say which records are meant.
func auditFlags(cmd *cobra.Command, f *client.AuditFilter) {
	fs := cmd.Flags()
	fs.StringVar(&f.Device, "device", "", "only what concerns this device, by `id`")
	fs.StringVar(&f.Action, "action", "", "only this `action`, such as psk.create, or those that begin with it, such as psk")
	fs.StringVar(&f.Actor, "actor", "", "only what the actor of this `id` did")
	fs.Var(&moment{&f.Since}, "since", "only what was done then or later: a `time` such as 2026-11-24T12:00:00Z, or 2h for two hours ago")
	fs.Var(&moment{&f.Until}, "until", "only what was done before; written like --since")
	fs.BoolVar(&f.All, "all", false, "of every organisation, and of none; for platform administrators")
}

// moment is a flag that holds a time, written out or as how long ago.
type moment struct{ at *time.Time }

func (m *moment) String() string {
	if m.at == nil || m.at.IsZero() {
		return ""
	}
	return m.at.Format(time.RFC3339)
}

func (m *moment) Type() string { return "time" }

func (m *moment) Set(text string) error {
	if ago, err := time.ParseDuration(text); err == nil && ago >= 0 {
		*m.at = time.Now().Add(-ago) //nolint:forbidigo // a command line is of now
		return nil
	}
	for _, layout := range []string{time.RFC3339, time.DateTime, time.DateOnly} {
		if t, err := time.ParseInLocation(layout, text, time.Local); err == nil {
			*m.at = t
			return nil
		}
	}
	return errors.New("a time is written 2026-11-24T12:00:00Z, 2026-11-24, or 2h for two hours ago")
}

func auditList(a *app) *cobra.Command {
	var f client.AuditFilter
	var most int
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List what was done, newest first",
		Example: `  keystead audit list
  keystead audit list --since 24h --action device
  keystead audit list --device 01a20b81-4e8e-7000-93cd-0e3834455bcc -n 0 --oldest`,
		Args: cobra.NoArgs,
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			return printList(a, first(c.Audit(cmd.Context(), f), most), auditColumns)
		}),
	}
	auditFlags(cmd, &f)
	cmd.Flags().BoolVar(&f.Oldest, "oldest", false, "oldest first")
	cmd.Flags().IntVarP(&most, "number", "n", 50, "no more than so `many`; 0 for all")
	return cmd
}

// first ends a list after n items, if n is not 0.
func first[V any](items iter.Seq2[V, error], n int) iter.Seq2[V, error] {
	if n <= 0 {
		return items
	}
	return func(yield func(V, error) bool) {
		left := n
		for v, err := range items {
			if left--; !yield(v, err) || left == 0 {
				return
			}
		}
	}
}

func auditVerify(a *app) *cobra.Command {
	var file string
	cmd := &cobra.Command{
		Use:   "verify",
		Short: "Look whether the trail is what was written: nothing changed, removed, moved or cut off",
		Long: `Look whether the trail is what was written: nothing changed, removed, moved or
cut off. The server walks all of it, and compares it with the checkpoints it
keeps in audit-checkpoints.jsonl.

Who can write to the server's disk can put back all of that together. Against
this, give the checkpoints that were kept elsewhere (--checkpoints), in lines of
JSON as in that file, or as the server's log has them.`,
		Args: cobra.NoArgs,
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			var against []client.AuditCheckpoint
			if file != "" {
				var err error
				if against, err = a.readCheckpoints(file); err != nil {
					return err
				}
			}
			r, err := c.VerifyAudit(cmd.Context(), against)
			if err != nil {
				return err
			}
			if err := printOne(a, r, []column[client.AuditReport]{
				{name: "sound", cell: func(r client.AuditReport) string { return strconv.FormatBool(r.Sound) }},
				{name: "records", cell: func(r client.AuditReport) string { return fmt.Sprintf("%d (%d to %d)", r.Records, r.First, r.Last) }},
				{name: "checkpoints", cell: func(r client.AuditReport) string { return strconv.Itoa(r.Checkpoints) }},
			}); err != nil {
				return err
			}
			if !r.Sound {
				return coded(exitData, errors.New(r.Fault), "keep the data directory as it is, with its logs, and find out who could write to it")
			}
			return nil
		}),
	}
	cmd.Flags().StringVar(&file, "checkpoints", "", "a `file` of checkpoints that were kept elsewhere; - for standard input")
	return cmd
}

// readCheckpoints reads lines of JSON; lines that hold no checkpoint are passed
// over, so that a server's log will do.
func (a *app) readCheckpoints(file string) ([]client.AuditCheckpoint, error) {
	in := a.stdin
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		in = f
	}
	var all []client.AuditCheckpoint
	lines := bufio.NewScanner(in)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var c client.AuditCheckpoint
		if json.Unmarshal(lines.Bytes(), &c) == nil && c.Seq > 0 && len(c.Signature) > 0 {
			all = append(all, c)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("there is no checkpoint in %s", file)
	}
	return all, nil
}

func auditExport(a *app) *cobra.Command {
	f := client.AuditFilter{Oldest: true}
	var file string
	cmd := &cobra.Command{
		Use:     "export",
		Short:   "Write the trail as lines of JSON, oldest first",
		Long:    "Write the trail as lines of JSON, oldest first. That it was exported is a record of the trail too.",
		Example: "  keystead audit export --all --file audit-$(date +%F).jsonl",
		Args:    cobra.NoArgs,
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			return a.toFile(file, func(w io.Writer) error { return c.ExportAudit(cmd.Context(), f, w) })
		}),
	}
	auditFlags(cmd, &f)
	cmd.Flags().StringVar(&file, "file", "", "write to this `file`, which must not be there yet, and not to standard output")
	return cmd
}

// toFile has write write to a new file, which is not left behind half written,
// or to standard output if there is no name.
func (a *app) toFile(name string, write func(io.Writer) error) error {
	if name == "" {
		return write(a.stdout)
	}
	f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if err := errors.Join(write(f), f.Sync(), f.Close()); err != nil {
		return errors.Join(err, os.Remove(name))
	}
	return nil
}
