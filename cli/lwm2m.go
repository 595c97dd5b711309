package cli

import (
	"cmp"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"keystead/client"
)

func serverCommand(a *app) *cobra.Command {
	return group("server", "Register the LwM2M servers that devices are sent to",
		serverAdd(a), serverList(a),
		serverMove(a, "drain", "Send no more devices to a server; its own move on at their next bootstrap"),
		serverMove(a, "activate", "Send devices to a server again"),
		serverDelete(a))
}

var lwm2mServerColumns = []column[client.LwM2MServer]{
	{name: "id", cell: func(v client.LwM2MServer) string { return v.ID }},
	{name: "url", cell: func(v client.LwM2MServer) string { return v.URL }},
	{name: "short id", cell: func(v client.LwM2MServer) string { return strconv.Itoa(v.ShortID) }},
	{name: "state", cell: func(v client.LwM2MServer) string {
		if v.Healthy != nil && !*v.Healthy {
			return v.State + ", not healthy"
		}
		return v.State
	}},
	{name: "weight", cell: func(v client.LwM2MServer) string {
		if v.Weight == nil {
			return ""
		}
		return strconv.Itoa(*v.Weight)
	}},
	{name: "region", cell: func(v client.LwM2MServer) string { return v.Region }},
	{name: "name", cell: func(v client.LwM2MServer) string { return v.Name }, wide: true},
	{name: "labels", cell: func(v client.LwM2MServer) string { return pairs(v.Labels) }, wide: true},
	{name: "organisations", cell: func(v client.LwM2MServer) string { return strings.Join(v.Organisations, "\n") }, wide: true},
}

func serverAdd(a *app) *cobra.Command {
	var v client.LwM2MServer
	var weight int
	var use int64
	var labels []string
	var certificate, anchor string
	cmd := &cobra.Command{
		Use:   "add ID URL",
		Short: "Register a server",
		Example: `  keystead server add eu-1 coaps://eu1.example:5684 --short-id 101 --region eu --weight 2
  keystead server add us-1 coaps://us1.example:5684 --short-id 102 --trust-anchor ca.pem --health ping --sink-file us-1.jsonl`,
		Args: cobra.ExactArgs(2),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) (err error) {
			v.ID, v.URL, v.Weight = args[0], args[1], &weight
			v.Name = cmp.Or(v.Name, v.ID)
			if v.Labels, err = keyValues(labels); err != nil {
				return usage(cmd, err)
			}
			if v.Certificate, err = certificateIn(certificate); err != nil {
				return err
			}
			if v.TrustAnchor, err = certificateIn(anchor); err != nil {
				return err
			}
			if cmd.Flags().Changed("certificate-usage") {
				v.CertificateUsage = &use
			}
			made, err := c.AddLwM2MServer(cmd.Context(), v)
			if err != nil {
				return err
			}
			return printOne(a, made, lwm2mServerColumns)
		}),
	}
	f := cmd.Flags()
	f.IntVar(&v.ShortID, "short-id", 0, "its short server id, from 1 to 65534; no two servers have the same")
	f.StringVar(&v.Name, "name", "", "its name; its id if left out")
	f.StringVar(&v.Region, "region", "", "where it is")
	f.IntVar(&weight, "weight", 1, "its share of the devices, from 0 to 1000")
	f.IntVar(&v.Capacity, "capacity", 0, "the most devices it takes; 0 is no limit")
	f.StringSliceVar(&v.Organisations, "for", nil, "whose devices it takes: ids of `organisations`; all if left out")
	f.StringSliceVar(&v.Modes, "modes", nil, "the credentials it takes: psk, cert, est; all if left out")
	f.StringArrayVar(&labels, "label", nil, "a label, `key=value`; may be repeated")
	f.StringVar(&certificate, "certificate", "", "the `file` with its certificate in PEM, for devices to know it by")
	f.StringVar(&anchor, "trust-anchor", "", "the `file` with the certificate in PEM of the CA it has its certificate from")
	f.Int64Var(&use, "certificate-usage", 0, "what devices make of that (/0/x/15); by itself 2 with a trust anchor")
	f.StringVar(&v.SNI, "sni", "", "the `name` it goes by in its certificate, if that is not in the URL")
	f.StringVar(&v.Sink.Kind, "sink", "", "how it learns of new credentials: shared, webhook or file")
	f.StringVar(&v.Sink.URL, "sink-url", "", "where a webhook sink is")
	f.StringVar(&v.Sink.Secret, "sink-secret", "", "what posts to a webhook sink are signed with")
	f.StringVar(&v.Sink.File, "sink-file", "", "the `name` of a file sink, in the directory sinks of the server's data")
	f.StringVar(&v.Health.Kind, "health", "", "how it is watched: ping or http")
	f.StringVar(&v.Health.URL, "health-url", "", "what to GET where it is watched by http")
	must(cmd.MarkFlagRequired("short-id"))
	return cmd
}

// certificateIn reads one certificate in PEM; none for no file.
func certificateIn(file string) ([]byte, error) {
	if file == "" {
		return nil, nil
	}
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(b)
	if block == nil || block.Type != "CERTIFICATE" {
		return nil, fmt.Errorf("%s holds no certificate in PEM", file)
	}
	return block.Bytes, nil
}

func serverList(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the servers",
		Args:  cobra.NoArgs,
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			return printList(a, c.LwM2MServers(cmd.Context()), lwm2mServerColumns)
		}),
	}
}

func serverMove(a *app, how, short string) *cobra.Command {
	return &cobra.Command{
		Use:   how + " ID",
		Short: short,
		Args:  cobra.ExactArgs(1),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			v, err := c.MoveLwM2MServer(cmd.Context(), args[0], how)
			if err != nil {
				return err
			}
			a.done("%s is %s", v.ID, v.State)
			return nil
		}),
	}
}

func serverDelete(a *app) *cobra.Command {
	var reassign bool
	cmd := &cobra.Command{
		Use:   "delete ID",
		Short: "Remove a server",
		Args:  cobra.ExactArgs(1),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			if err := c.DeleteLwM2MServer(cmd.Context(), args[0], reassign); err != nil {
				return err
			}
			a.done("deleted %s", args[0])
			return nil
		}),
	}
	cmd.Flags().BoolVar(&reassign, "reassign", false, "even one that has devices; they are assigned anew at their next bootstrap")
	return cmd
}

func policyCommand(a *app) *cobra.Command {
	return group("policy", "Say which devices go to which LwM2M servers, and with what credential",
		policyAdd(a), policyList(a), policyDelete(a), policyEvaluate(a), policyPin(a), policyUnpin(a),
		group("override", "Have one device bootstrap otherwise than its policy says", overrideSet(a), overrideShow(a), overrideDelete(a)))
}

var policyColumns = []column[client.LwM2MPolicy]{
	{name: "order", cell: func(p client.LwM2MPolicy) string { return strconv.Itoa(p.Order) }},
	{name: "id", cell: func(p client.LwM2MPolicy) string { return p.ID }},
	{name: "name", cell: func(p client.LwM2MPolicy) string { return p.Name }},
	{name: "match", cell: func(p client.LwM2MPolicy) string { return asJSON(p.Match) }},
	{name: "select", cell: func(p client.LwM2MPolicy) string { return asJSON(p.Select) }},
	{name: "credential", cell: func(p client.LwM2MPolicy) string { return p.Credential }},
	{name: "organisation", cell: func(p client.LwM2MPolicy) string { return cmp.Or(p.Organisation, "all") }, wide: true},
}

func asJSON(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		return ""
	}
	return string(b)
}

func policyAdd(a *app) *cobra.Command {
	var p client.LwM2MPolicy
	var labels, serverLabels, servers, regions []string
	var endpoint, region, strategy string
	var count int
	cmd := &cobra.Command{
		Use:   "add NAME",
		Short: "Add a policy; the first that matches a device counts",
		Example: `  keystead policy add pumps --endpoint 'pump-*' --regions eu --credential rotate-psk
  keystead policy add rest --order 100`,
		Args: cobra.ExactArgs(1),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			p.Name, p.Match, p.Select = args[0], map[string]any{}, map[string]any{"count": count, "strategy": strategy}
			for field, words := range map[string][]string{"match": labels, "select": serverLabels} {
				m, err := keyValues(words)
				if err != nil {
					return usage(cmd, err)
				}
				if m != nil {
					map[string]map[string]any{"match": p.Match, "select": p.Select}[field]["labels"] = m
				}
			}
			put(p.Match, "endpoint", endpoint)
			put(p.Match, "region", region)
			if servers != nil {
				p.Select["servers"] = servers
			}
			if regions != nil {
				p.Select["regions"] = regions
			}
			made, err := c.AddLwM2MPolicy(cmd.Context(), p)
			if err != nil {
				return err
			}
			return printOne(a, made, policyColumns)
		}),
	}
	f := cmd.Flags()
	f.IntVar(&p.Order, "order", 0, "lower ones are asked first")
	f.BoolVar(&p.Global, "global", false, "for the devices of every organisation")
	f.StringArrayVar(&labels, "label", nil, "match devices with this label, `key=value`")
	f.StringVar(&endpoint, "endpoint", "", "match devices whose endpoint name fits this `pattern`")
	f.StringVar(&region, "region", "", "match devices of this region")
	f.StringSliceVar(&servers, "servers", nil, "only these servers, by `id`, in the order of failover")
	f.StringArrayVar(&serverLabels, "server-label", nil, "only servers with this label, `key=value`")
	f.StringSliceVar(&regions, "regions", nil, "only servers in these regions")
	f.StringVar(&strategy, "strategy", "sticky-weighted", "how one is chosen")
	f.IntVar(&count, "servers-each", 1, "how many servers a device gets, 1 to 3")
	f.StringVar(&p.Credential, "credential", "reuse", "what the device proves itself to the server with")
	f.StringVar(&p.BootstrapAccount, "bootstrap-account", "keep", "what becomes of the key it bootstraps with: keep or rotate")
	f.StringToStringVar(&p.ServerResources, "server-resource", nil, "more of its Server instance, `id=value`; may be repeated")
	must(cmd.RegisterFlagCompletionFunc("bootstrap-account", cobra.FixedCompletions([]string{"keep", "rotate"}, cobra.ShellCompDirectiveNoFileComp)))
	must(cmd.RegisterFlagCompletionFunc("strategy", cobra.FixedCompletions(
		[]string{"sticky-weighted", "nearest", "failover", "round-robin", "least-assigned"}, cobra.ShellCompDirectiveNoFileComp)))
	must(cmd.RegisterFlagCompletionFunc("credential", cobra.FixedCompletions(
		[]string{"reuse", "rotate-psk", "issue-cert", "est"}, cobra.ShellCompDirectiveNoFileComp)))
	return cmd
}

func put(m map[string]any, name, value string) {
	if value != "" {
		m[name] = value
	}
}

func policyList(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the policies that count for the organisation, in their order",
		Args:  cobra.NoArgs,
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			list, err := c.LwM2MPolicies(cmd.Context())
			if err != nil {
				return err
			}
			return printList(a, func(yield func(client.LwM2MPolicy, error) bool) {
				for _, p := range list {
					if !yield(p, nil) {
						return
					}
				}
			}, policyColumns)
		}),
	}
}

func policyDelete(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "delete ID",
		Short: "Remove a policy",
		Args:  cobra.ExactArgs(1),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			if err := c.DeleteLwM2MPolicy(cmd.Context(), args[0]); err != nil {
				return err
			}
			a.done("deleted %s", args[0])
			return nil
		}),
	}
}

func policyEvaluate(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "evaluate DEVICE",
		Short:             "Say where a device would be sent, and why; nothing changes",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeDevices(),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			d, err := c.EvaluateLwM2M(cmd.Context(), args[0])
			if err != nil {
				return noDevice(err)
			}
			return printOne(a, d, []column[client.LwM2MDecision]{
				{name: "policy", cell: func(d client.LwM2MDecision) string { return d.Policy.Name }},
				{name: "region", cell: func(d client.LwM2MDecision) string { return d.Region }},
				{name: "override", cell: func(d client.LwM2MDecision) string { return map[bool]string{true: "yes", false: "no"}[d.Special] }},
				{name: "servers", cell: func(d client.LwM2MDecision) string { return strings.Join(d.Servers, "\n") }},
				{name: "reasons", cell: func(d client.LwM2MDecision) string {
					lines := make([]string, len(d.Reasons))
					for i, r := range d.Reasons {
						lines[i] = r.Server + ": " + r.Reason
					}
					return strings.Join(lines, "\n")
				}},
			})
		}),
	}
}

func policyPin(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "pin DEVICE SERVER...",
		Short:             "Send a device to these servers, whatever the policies say, from its next bootstrap on",
		Args:              cobra.RangeArgs(2, 4),
		ValidArgsFunction: a.completeDevices(),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			if err := c.PinLwM2M(cmd.Context(), args[0], args[1:]); err != nil {
				return noDevice(err)
			}
			a.done("%s goes to %s at its next bootstrap", args[0], strings.Join(args[1:], " and "))
			return nil
		}),
	}
}

func policyUnpin(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "unpin DEVICE",
		Short:             "Assign a device by policy again",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeDevices(),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			if err := c.PinLwM2M(cmd.Context(), args[0], nil); err != nil {
				return noDevice(err)
			}
			a.done("%s is assigned by policy again", args[0])
			return nil
		}),
	}
}

var overrideColumns = []column[client.LwM2MOverride]{
	{name: "device", cell: func(o client.LwM2MOverride) string { return o.Device }},
	{name: "in place of the policy's", cell: func(o client.LwM2MOverride) string {
		o.Device, o.UpdatedAt = "", nil
		return asJSON(o)
	}},
}

func overrideSet(a *app) *cobra.Command {
	var o client.LwM2MOverride
	var format int
	var lifetime int64
	var skip, need, again, keepAll bool
	cmd := &cobra.Command{
		Use:   "set DEVICE",
		Short: "Say what holds for a device in place of its policy, from its next bootstrap on; replaces what was said before",
		Example: `  keystead policy override set pump-7 --credential rotate-psk --lifetime 600
  keystead policy override set old-meter --skip-discover --format 1542 --delete-nothing`,
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeDevices(),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			given(cmd, "format", &o.Format, &format)
			given(cmd, "lifetime", &o.Lifetime, &lifetime)
			given(cmd, "skip-discover", &o.SkipDiscover, &skip)
			given(cmd, "need-discover", &o.NeedDiscover, &need)
			given(cmd, "bootstrap-again", &o.BootstrapAgain, &again)
			if keepAll {
				o.Deletes = []string{}
			}
			set, err := c.SetLwM2MOverride(cmd.Context(), args[0], o)
			if err != nil {
				return noDevice(err)
			}
			return printOne(a, set, overrideColumns)
		}),
	}
	f := cmd.Flags()
	f.StringVar(&o.Region, "region", "", "where it is, unless its label says another")
	f.StringVar(&o.Credential, "credential", "", "what it proves itself to its server with")
	f.IntVar(&o.GraceHours, "grace-hours", 0, "how long a credential that was replaced stays good")
	f.StringVar(&o.BootstrapAccount, "bootstrap-account", "", "what becomes of the key it bootstraps with: keep or rotate")
	f.StringSliceVar(&o.Deletes, "delete", nil, "what is deleted before anything is written, `path`s such as /0,/1")
	f.BoolVar(&keepAll, "delete-nothing", false, "delete nothing before anything is written")
	f.IntVar(&format, "format", 0, "the format it is written in: 11542, 1542, 110, 112 or 11544")
	f.BoolVar(&skip, "skip-discover", false, "do not ask what it has")
	f.BoolVar(&need, "need-discover", false, "fail if it does not say what it has")
	f.Int64Var(&lifetime, "lifetime", 0, "of its registrations, in seconds")
	f.StringVar(&o.Binding, "binding", "", "its binding, such as U or UQ")
	f.BoolVar(&again, "bootstrap-again", false, "it bootstraps again if it cannot register")
	f.StringToStringVar(&o.ServerResources, "server-resource", nil, "more of its Server instance, `id=value`; may be repeated")
	var names []string
	f.VisitAll(func(flag *pflag.Flag) { names = append(names, flag.Name) })
	cmd.MarkFlagsOneRequired(names...)
	cmd.MarkFlagsMutuallyExclusive("delete", "delete-nothing")
	must(cmd.RegisterFlagCompletionFunc("bootstrap-account", cobra.FixedCompletions([]string{"keep", "rotate"}, cobra.ShellCompDirectiveNoFileComp)))
	must(cmd.RegisterFlagCompletionFunc("credential", cobra.FixedCompletions(
		[]string{"reuse", "rotate-psk", "issue-cert", "est"}, cobra.ShellCompDirectiveNoFileComp)))
	return cmd
}

// given has a field point at the value of a flag, if that was given.
func given[T any](cmd *cobra.Command, name string, field **T, value *T) {
	if cmd.Flags().Changed(name) {
		*field = value
	}
}

func overrideShow(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "show DEVICE",
		Short:             "Show what holds for a device in place of its policy",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeDevices(),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			o, err := c.LwM2MOverride(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return printOne(a, o, overrideColumns)
		}),
	}
}

func overrideDelete(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "delete DEVICE",
		Short:             "Bootstrap a device by its policy again",
		Args:              cobra.ExactArgs(1),
		ValidArgsFunction: a.completeDevices(),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			if err := c.DeleteLwM2MOverride(cmd.Context(), args[0]); err != nil {
				return err
			}
			a.done("%s bootstraps by its policy again", args[0])
			return nil
		}),
	}
}

func bootstrapCommand(a *app) *cobra.Command {
	return group("bootstrap", "Watch devices bootstrap",
		group("sessions", "The bootstraps there were, and those going on", bootstrapList(a), bootstrapShow(a), bootstrapTail(a)))
}

var bootstrapColumns = []column[client.Bootstrap]{
	{name: "id", cell: func(v client.Bootstrap) string { return v.ID }},
	{name: "started", cell: func(v client.Bootstrap) string { return when(v.StartedAt) }},
	{name: "endpoint", cell: func(v client.Bootstrap) string { return v.Endpoint }},
	{name: "servers", cell: func(v client.Bootstrap) string { return strings.Join(v.Servers, "\n") }},
	{name: "outcome", cell: func(v client.Bootstrap) string { return v.Outcome }},
	{name: "took", cell: func(v client.Bootstrap) string { return v.EndedAt.Sub(v.StartedAt).String() }},
	{name: "detail", cell: func(v client.Bootstrap) string { return v.Detail }},
	{name: "device", cell: func(v client.Bootstrap) string { return v.Device }, wide: true},
	{name: "remote", cell: func(v client.Bootstrap) string { return v.Remote }, wide: true},
	{name: "version", cell: func(v client.Bootstrap) string { return v.Version }, wide: true},
	{name: "steps", cell: func(v client.Bootstrap) string {
		lines := make([]string, len(v.Steps))
		for i, s := range v.Steps {
			lines[i] = stepLine(s)
		}
		return strings.Join(lines, "\n")
	}, wide: true},
}

func stepLine(s client.BootstrapStep) string {
	line := s.Method + " " + s.Path
	if s.Format != nil {
		line += fmt.Sprintf(" (%d bytes of format %d)", s.Bytes, *s.Format)
	}
	return fmt.Sprintf("%s: %s in %d ms", line, cmp.Or(s.Code, s.Error), s.Millis)
}

func bootstrapList(a *app) *cobra.Command {
	var device string
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the bootstraps, oldest first",
		Args:  cobra.NoArgs,
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			return noDevice(printList(a, c.Bootstraps(cmd.Context(), device), bootstrapColumns))
		}),
	}
	cmd.Flags().StringVar(&device, "device", "", "only those of this `device`")
	must(cmd.RegisterFlagCompletionFunc("device", a.completeDevices()))
	return cmd
}

func bootstrapShow(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "show ID",
		Short: "Show one bootstrap with its steps",
		Args:  cobra.ExactArgs(1),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			v, err := c.Bootstrap(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			return printOne(a, v, bootstrapColumns)
		}),
	}
}

func bootstrapTail(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "tail",
		Short: "Show what happens in bootstraps, as it happens; end with Ctrl-C",
		Args:  cobra.NoArgs,
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			for e, err := range c.TailBootstraps(cmd.Context()) {
				if err != nil {
					return err
				}
				line := e.Session.Endpoint + " " + e.What
				switch {
				case e.Step != nil:
					line = e.Session.Endpoint + " " + stepLine(*e.Step)
				case e.What == "ended":
					line += " " + strings.TrimSpace(e.Session.Outcome+" "+e.Session.Detail)
				}
				if _, err := fmt.Fprintln(a.stdout, clean(line)); err != nil {
					return err
				}
			}
			return nil
		}),
	}
}
