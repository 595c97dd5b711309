package cli

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/csv"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"keystead/client"
)

func authSetCommand(a *app) *cobra.Command {
	return group("authset", "Decide which devices get in by identity and public key, as with Mender",
		authSetList(a),
		authSetMove(a, "accept", "Accept a device's pending auth set: it gets tokens from now on"),
		authSetMove(a, "reject", "Reject a device's auth set: its tokens end at once"),
		authSetMove(a, "dismiss", "Remove a device's auth set: it may ask again"),
		authSetDescribe(a), authSetPreauthorize(a), authSetImport(a))
}

var authDeviceColumns = []column[client.AuthDevice]{
	{name: "device", cell: func(d client.AuthDevice) string { return d.ID }},
	{name: "status", cell: func(d client.AuthDevice) string { return d.Status }},
	{name: "identity", cell: func(d client.AuthDevice) string { return string(d.Identity) }},
	{name: "auth sets", cell: func(d client.AuthDevice) string {
		lines := make([]string, len(d.AuthSets))
		for i, s := range d.AuthSets {
			lines[i] = s.ID + " " + s.Status
			if s.Reason != "" {
				lines[i] += " (" + s.Reason + ")"
			}
		}
		return strings.Join(lines, "\n")
	}},
	{name: "keys", cell: func(d client.AuthDevice) string {
		lines := make([]string, len(d.AuthSets))
		for i, s := range d.AuthSets {
			lines[i] = s.Fingerprint
		}
		return strings.Join(lines, "\n")
	}, wide: true},
	{name: "labels", cell: func(d client.AuthDevice) string { return pairs(d.Labels) }},
	{name: "comment", cell: func(d client.AuthDevice) string { return d.Comment }, wide: true},
	{name: "last seen", cell: func(d client.AuthDevice) string { return whenever(d.CheckInTime) }},
	{name: "created", cell: func(d client.AuthDevice) string { return when(d.CreatedAt) }, wide: true},
}

var authStatuses = []string{"accepted", "preauthorized", "pending", "rejected", "noauth"}

func authSetList(a *app) *cobra.Command {
	var status string
	var labels []string
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List devices with their auth sets, sorted by status",
		Args:  cobra.NoArgs,
		Example: `  keystead authset list --status pending
  keystead authset list --label site=hall-3`,
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			return printList(a, c.AuthDevices(cmd.Context(), status, labels...), authDeviceColumns)
		}),
	}
	cmd.Flags().StringVar(&status, "status", "", "only those that are "+strings.Join(authStatuses, ", "))
	cmd.Flags().StringArrayVar(&labels, "label", nil, "only those with this label, `key=value`, waiting or let in; may be repeated")
	must(cmd.RegisterFlagCompletionFunc("status", cobra.FixedCompletions(authStatuses, cobra.ShellCompDirectiveNoFileComp)))
	return cmd
}

// authSetMove is a command that decides about one device, or with --all about all that wait.
func authSetMove(a *app, verb, short string) *cobra.Command {
	var all, dry bool
	var match, labels []string
	cmd := &cobra.Command{
		Use:   verb + " DEVICE [AUTHSET]",
		Short: short,
		Long: short + `.

Without AUTHSET, the device's only one that is pending is meant. With --all, every pending
device is, or those whose attributes match (--match, a regular expression of the whole
value) and that have a label (--label); if it was cut off, the same command again does the rest.`,
		Example: `  keystead authset ` + verb + ` 0190f3c2-…
  keystead authset ` + verb + ` --all --match 'mac=de:ad:.*' --dry-run`,
		Args: cobra.MaximumNArgs(2),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			switch {
			case all && len(args) > 0, !all && (len(args) == 0 || dry || match != nil || labels != nil):
				return usage(cmd, errors.New("name a device, or --all with what --match, --label and --dry-run make of it"))
			case all:
				attributes, err := keyValues(match)
				if err != nil {
					return usage(cmd, err)
				}
				having, err := keyValues(labels)
				if err != nil {
					return usage(cmd, err)
				}
				return a.authSetBulk(cmd.Context(), c, client.BulkChange{Action: verb, Attributes: attributes, Labels: having, DryRun: dry})
			}
			set, err := pickAuthSet(cmd.Context(), c, args, verb)
			if err != nil {
				return err
			}
			if verb == "dismiss" {
				err = c.DismissAuthSet(cmd.Context(), args[0], set)
			} else {
				err = c.SetAuthStatus(cmd.Context(), args[0], set, verb+"ed")
			}
			if err != nil {
				return err
			}
			a.done("auth set %s of device %s %sed", set, args[0], strings.TrimSuffix(verb, "e"))
			return nil
		}),
	}
	cmd.Flags().BoolVar(&all, "all", false, "every device that is pending")
	cmd.Flags().StringArrayVar(&match, "match", nil, "with --all: only where an attribute matches, `attribute=expression`; may be repeated")
	cmd.Flags().StringArrayVar(&labels, "label", nil, "with --all: only those with this label, `key=value`; may be repeated")
	cmd.Flags().BoolVar(&dry, "dry-run", false, "with --all: change nothing, say what would be")
	return cmd
}

// pickAuthSet is the auth set that args name, or the only one that verb can mean.
func pickAuthSet(ctx context.Context, c *client.Client, args []string, verb string) (string, error) {
	if len(args) == 2 {
		return args[1], nil
	}
	d, err := c.AuthDevice(ctx, args[0])
	if err != nil {
		return "", noAuthDevice(err)
	}
	var fit []string
	for _, s := range d.AuthSets {
		if s.Status == "pending" || len(d.AuthSets) == 1 || verb == "reject" && s.Status == "accepted" {
			fit = append(fit, s.ID)
		}
	}
	if len(fit) != 1 {
		return "", hinted(fmt.Errorf("the device has %d auth sets that could be meant", len(fit)), "name one of those that keystead authset list shows")
	}
	return fit[0], nil
}

// authSetBulk changes all devices that b means, step by step.
func (a *app) authSetBulk(ctx context.Context, c *client.Client, b client.BulkChange) error {
	total, err := c.CountAuthDevices(ctx, "pending")
	if err != nil || total == 0 {
		a.done("no device is pending")
		return err
	}
	bar := a.progress("devices", total)
	looked, changed, skipped := 0, 0, map[string]string{}
	for {
		r, err := c.BulkAuthSets(ctx, b)
		if err != nil {
			bar.end()
			return hinted(err, "%d are done; the same command again does the rest", changed)
		}
		looked, changed = looked+r.Looked, changed+len(r.Changed)
		maps.Copy(skipped, r.Skipped)
		bar.at(min(looked, total))
		if b.Cursor = r.Next; r.Next == "" {
			break
		}
	}
	bar.end()
	for _, id := range slices.Sorted(maps.Keys(skipped)) {
		a.done("device %s left: %s", id, skipped[id])
	}
	would := ""
	if b.DryRun {
		would = "would be "
	}
	a.done("%d devices %s%sed, %d left", changed, would, strings.TrimSuffix(b.Action, "e"), len(skipped))
	return nil
}

func authSetDescribe(a *app) *cobra.Command {
	var comment string
	var changes []string
	cmd := &cobra.Command{
		Use:   "describe DEVICE",
		Short: "Set the comment and labels of a device, whether it waits or was let in",
		Long: `Set the comment and labels of a device, whether it waits or was let in.

What is not named stays. A device that has a comment or a label is not taken for junk: it
waits for a decision however long that takes. keystead authset list --label finds it.`,
		Example: `  keystead authset describe 0190f3c2-… --comment "behind the ladder" --label site=hall-3 --label line-`,
		Args:    cobra.ExactArgs(1),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			var edit client.AuthDeviceEdit
			if cmd.Flags().Changed("comment") {
				edit.Comment = &comment
			}
			if len(changes) > 0 {
				d, err := c.AuthDevice(cmd.Context(), args[0])
				if err != nil {
					return noAuthDevice(err)
				}
				labels, err := relabelled(d.Labels, changes)
				if err != nil {
					return usage(cmd, err)
				}
				edit.Labels = &labels
			}
			if edit == (client.AuthDeviceEdit{}) {
				return usage(cmd, errors.New("say what to set: --comment, --label"))
			}
			d, err := c.DescribeAuthDevice(cmd.Context(), args[0], edit)
			if err != nil {
				return noAuthDevice(err)
			}
			return printOne(a, d, authDeviceColumns)
		}),
	}
	cmd.Flags().StringVar(&comment, "comment", "", "what people should know of it; an empty one takes it away")
	cmd.Flags().StringArrayVar(&changes, "label", nil, "a label, `key=value`, or key- to take it away; may be repeated")
	return cmd
}

func noAuthDevice(err error) error {
	if codeOf(err) == exitNotFound {
		return hinted(err, "keystead authset list shows the devices of this organisation; --org names another")
	}
	return err
}

func authSetPreauthorize(a *app) *cobra.Command {
	var attributes []string
	var p client.Preauth
	var keyFile string
	cmd := &cobra.Command{
		Use:     "preauthorize",
		Short:   "Accept a device before it shows up",
		Example: `  keystead authset preauthorize --attribute mac=de:ad:be:ef:00:01 --key device.pub.pem`,
		Args:    cobra.NoArgs,
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			id, err := keyValues(attributes)
			if err != nil || len(id) == 0 {
				return usage(cmd, cmp.Or(err, errors.New("give at least one --attribute")))
			}
			key, err := a.readFile(keyFile)
			if err != nil {
				return err
			}
			if p.Identity, err = json.Marshal(id); err != nil {
				return err
			}
			p.PubKey = string(key)
			device, err := c.Preauthorise(cmd.Context(), p)
			if client.IsStatus(err, http.StatusConflict) {
				return coded(exitConflict, errors.New("there is a device of this identity already"), "--force adds the key to it, in place of the one it has")
			}
			if err != nil {
				return err
			}
			d, err := c.AuthDevice(cmd.Context(), device)
			if err != nil {
				return err
			}
			return printOne(a, d, authDeviceColumns)
		}),
	}
	cmd.Flags().StringArrayVar(&attributes, "attribute", nil, "an identity attribute, `name=value`; may be repeated")
	cmd.Flags().StringVar(&keyFile, "key", "", "the `file` with the public key in PEM; - for standard input")
	cmd.Flags().BoolVar(&p.Force, "force", false, "for a device that is there: accept this key in place of the one it has")
	cmd.Flags().StringVar(&p.Device, "device", "", "the `id` or an alias of a device that is there for other credentials")
	must(cmd.MarkFlagRequired("key"))
	return cmd
}

// importChunk is how many lines of an import one request sends.
const importChunk = 1000

func authSetImport(a *app) *cobra.Command {
	var dry bool
	cmd := &cobra.Command{
		Use:   "import FILE",
		Short: "Preauthorise many devices from CSV, or lines of JSON",
		Long: `Preauthorise many devices from CSV (.csv), or lines of JSON (.jsonl).

CSV has a header: the columns pubkey (PEM, or its base64 alone), force and device are what they
are called, all others are identity attributes. Lines of JSON have identity_data and
pubkey, and if wanted force and device.

What was imported is left as it is when the same file is imported again: if an import was
cut off, the same command goes on where it ended. Lines that fail are printed and spoil no
other; the exit code is then 1.`,
		Example: `  keystead authset import factory.csv --dry-run
  keystead authset import factory.csv`,
		Args: cobra.ExactArgs(1),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			return a.importFile(cmd, c, args[0], dry)
		}),
	}
	cmd.Flags().BoolVar(&dry, "dry-run", false, "change nothing, say what would be")
	return cmd
}

func (a *app) importFile(cmd *cobra.Command, c *client.Client, name string, dry bool) error {
	kind := map[string]string{".csv": "text/csv", ".jsonl": "application/x-ndjson", ".ndjson": "application/x-ndjson"}[filepath.Ext(name)]
	if kind == "" {
		return usage(cmd, fmt.Errorf("%s ends in neither .csv nor .jsonl", name))
	}
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	total := 0
	if err := chunks(f, kind, func(_ []byte, n int) error { total += n; return nil }); err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if total == 0 {
		a.done("%s holds no devices", name)
		return nil
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return err
	}
	bar := a.progress("devices", total)
	done, counts := 0, map[string]int{}
	err = chunks(f, kind, func(chunk []byte, n int) error {
		answered := 0
		for r, err := range c.ImportAuthSets(cmd.Context(), kind, bytes.NewReader(chunk), dry) {
			if err != nil {
				return err
			}
			answered++
			counts[r.Status]++
			if r.Error != "" {
				fmt.Fprintln(a.stdout, clean(fmt.Sprintf("line %d: %s: %s", done+r.Line, r.Status, r.Error)))
			}
		}
		if answered != n {
			return fmt.Errorf("the server answered for %d of %d lines", answered, n)
		}
		done += n
		bar.at(done)
		return nil
	})
	bar.end()
	if err != nil {
		return hinted(err, "%d of %d lines are done; the same command again does the rest", done, total)
	}
	a.done("%d preauthorized, %d there already, %d in conflict, %d invalid", counts["preauthorized"], counts["exists"], counts["conflict"], counts["invalid"])
	if counts["conflict"]+counts["invalid"] > 0 {
		return errors.New("some lines were not imported")
	}
	return nil
}

// chunks cuts an import into parts of importChunk lines that can be sent each alone.
func chunks(r io.Reader, kind string, do func(chunk []byte, lines int) error) error {
	if kind != "text/csv" {
		return lineChunks(r, do)
	}
	in := csv.NewReader(bufio.NewReader(r))
	head, err := in.Read()
	if errors.Is(err, io.EOF) {
		return nil
	}
	if err != nil {
		return err
	}
	head[0] = strings.TrimPrefix(head[0], "\ufeff")
	var b bytes.Buffer
	out := csv.NewWriter(&b)
	n := 0
	flush := func() error {
		if n == 0 {
			return nil
		}
		out.Flush()
		err := do(b.Bytes(), n)
		b.Reset()
		n = 0
		return err
	}
	for {
		row, err := in.Read()
		if errors.Is(err, io.EOF) {
			return flush()
		}
		if err != nil {
			return err
		}
		if n == 0 {
			if err := out.Write(head); err != nil {
				return err
			}
		}
		if err := out.Write(row); err != nil {
			return err
		}
		if n++; n == importChunk {
			if err := flush(); err != nil {
				return err
			}
		}
	}
}

func lineChunks(r io.Reader, do func(chunk []byte, lines int) error) error {
	const longest = 64 << 10
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, longest)
	var b bytes.Buffer
	n := 0
	for lines.Scan() {
		text := bytes.TrimSpace(lines.Bytes())
		if len(text) == 0 {
			text = []byte("null") // keeps the count of lines: it is invalid
		}
		b.Write(text)
		b.WriteByte('\n')
		if n++; n == importChunk {
			if err := do(b.Bytes(), n); err != nil {
				return err
			}
			b.Reset()
			n = 0
		}
	}
	if err := lines.Err(); err != nil || n == 0 {
		return err
	}
	return do(b.Bytes(), n)
}
