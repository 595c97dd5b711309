package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"keystead/client"
)

// caCommand, certCommand, profileCommand, dmsCommand and enrolmentTokenCommand
// are what an administrator of the PKI does.
func caCommand(a *app) *cobra.Command {
	return group("ca", "Look after certificate authorities",
		caList(a), caShow(a), caCreate(a), caImport(a), caCSR(a), caPEM(a),
		caChange(a, "default", "Issue from this CA where nothing else is said"),
		caChange(a, "roll-over", "Replace a CA by one with a new key; the old one retires"),
		caChange(a, "retire", "Have a CA issue no more; what it issued stays good"),
		caChange(a, "activate", "Let a retired CA issue again"),
		caCheck(a), caRevoke(a), caDelete(a), caSign(a))
}

var caColumns = []column[client.CA]{
	{name: "id", cell: func(c client.CA) string { return c.ID }},
	{name: "name", cell: func(c client.CA) string { return c.Name }},
	{name: "kind", cell: func(c client.CA) string { return c.Kind }},
	{name: "state", cell: func(c client.CA) string { return c.State }},
	{name: "default", cell: func(c client.CA) string { return yes(c.Default) }},
	{name: "algorithm", cell: func(c client.CA) string { return c.Algorithm }},
	{name: "expires", cell: func(c client.CA) string { return whenever(c.NotAfter) }},
	{name: "revocation check", wide: true, cell: func(c client.CA) string { return c.Check }},
	{name: "parent", wide: true, cell: func(c client.CA) string { return c.Parent }},
	{name: "successor", wide: true, cell: func(c client.CA) string { return c.Successor }},
}

func yes(b bool) string {
	if b {
		return "yes"
	}
	return ""
}

func noCA(err error) error {
	if codeOf(err) == exitNotFound {
		return hinted(err, "keystead ca list shows the CAs of this organisation")
	}
	return err
}

func (a *app) completeCAs() cobra.CompletionFunc {
	return a.completion(func(cmd *cobra.Command, c *client.Client) ([]cobra.Completion, error) {
		var found []cobra.Completion
		for ca, err := range c.CAs(cmd.Context()) {
			if err != nil {
				return found, err
			}
			found = append(found, cobra.CompletionWithDesc(ca.ID, ca.Name))
		}
		return found, nil
	})
}

func caList(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "List the CAs", Args: cobra.NoArgs,
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			return printList(a, c.CAs(cmd.Context()), caColumns)
		}),
	}
}

// onCA is a command about one CA, which prints what it became.
func onCA(a *app, use, short string, do func(ctx context.Context, c *client.Client, id string) (client.CA, error)) *cobra.Command {
	return &cobra.Command{
		Use: use + " ID", Short: short, Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeCAs(),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			ca, err := do(cmd.Context(), c, args[0])
			if err != nil {
				return noCA(err)
			}
			return printOne(a, ca, caColumns)
		}),
	}
}

func caShow(a *app) *cobra.Command {
	return onCA(a, "show", "Show a CA", func(ctx context.Context, c *client.Client, id string) (client.CA, error) { return c.CA(ctx, id) })
}

func caChange(a *app, what, short string) *cobra.Command {
	return onCA(a, what, short, func(ctx context.Context, c *client.Client, id string) (client.CA, error) {
		return c.ChangeCA(ctx, id, what)
	})
}

func caCheck(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "revocation-check ID off|soft|hard", Short: "Say how certificates of an outside CA are looked up in the OCSP and CRLs they name", Args: cobra.ExactArgs(2), ValidArgsFunction: a.completeCAs(),
		Long: `Say whether the certificates of a CA that were not issued here are looked up where
they say: off; soft refuses what is known to be revoked; hard refuses all but what is
known not to be. An empty check is what pki.outside.check says.`,
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			ca, err := c.SetRevocationCheck(cmd.Context(), args[0], args[1])
			if err != nil {
				return noCA(err)
			}
			return printOne(a, ca, caColumns)
		}),
	}
}

func caRevoke(a *app) *cobra.Command {
	var reason string
	cmd := onCA(a, "revoke", "Revoke a CA and everything it has issued, for good", func(ctx context.Context, c *client.Client, id string) (client.CA, error) {
		return c.RevokeCA(ctx, id, reason)
	})
	cmd.Flags().StringVar(&reason, "reason", "", "why: keyCompromise, cACompromise, superseded, …")
	return cmd
}

func caDelete(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "delete ID", Short: "Remove a CA nothing hangs on, and its key for ever", Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeCAs(),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			if err := c.DeleteCA(cmd.Context(), args[0]); err != nil {
				return noCA(err)
			}
			a.done("deleted %s", args[0])
			return nil
		}),
	}
}

func caCreate(a *app) *cobra.Command {
	var n client.NewCA
	cmd := &cobra.Command{
		Use: "create", Short: "Make a CA, or a request for an outside one to sign", Args: cobra.NoArgs,
		Example: `  keystead ca create --name "Acme root CA"
  keystead ca create --name "Acme issuing CA" --parent ID --algorithm ecdsa-p384
  keystead ca create --name "Acme issuing CA" --request-only`,
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			ca, err := c.CreateCA(cmd.Context(), n)
			if err != nil {
				return noCA(err)
			}
			return printOne(a, ca, caColumns)
		}),
	}
	f := cmd.Flags()
	f.StringVar(&n.Name, "name", "", "the `name` of the CA")
	f.StringVar(&n.Parent, "parent", "", "the `CA` that signs it; a root if left out")
	f.StringVar(&n.Algorithm, "algorithm", "", "ecdsa-p256, ecdsa-p384, ed25519, rsa-2048, rsa-3072 or rsa-4096")
	f.BoolVar(&n.RequestOnly, "request-only", false, "make a request for an outside or offline CA to sign; see ca csr and ca import --pending")
	return cmd
}

func caImport(a *app) *cobra.Command {
	var in client.CAImport
	var key string
	cmd := &cobra.Command{
		Use: "import FILE", Short: "Take in a CA from outside, with its key or to recognise its certificates only", Args: cobra.ExactArgs(1),
		Long: `Take in the certificate of a CA, in PEM, followed by those above it. With --key
the CA issues; without, its certificates are recognised where an enrolment profile
names it. With --pending it is the answer to a request made by ca create --request-only.`,
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			b, err := a.readFile(args[0])
			if err != nil {
				return err
			}
			in.Certificate = string(b)
			if key != "" {
				if b, err = a.readFile(key); err != nil {
					return err
				}
				in.PrivateKey = string(b)
			}
			ca, err := c.ImportCA(cmd.Context(), in)
			if err != nil {
				return noCA(err)
			}
			return printOne(a, ca, caColumns)
		}),
	}
	cmd.Flags().StringVar(&in.Name, "name", "", "the `name` here; the common name if left out")
	cmd.Flags().StringVar(&key, "key", "", "the private key, a `file` in PEM, not encrypted")
	cmd.Flags().StringVar(&in.Check, "revocation-check", "", "how its certificates are looked up: off, soft or `hard`")
	cmd.Flags().StringVar(&in.Pending, "pending", "", "the `CA` whose request was signed")
	return cmd
}

const maxInput = 1 << 20

// readFile reads a file, or standard input for "-".
func (a *app) readFile(name string) ([]byte, error) {
	if name == "-" {
		return io.ReadAll(io.LimitReader(a.stdin, maxInput))
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxInput))
}

// caText is a command that prints what a CA has in PEM.
func caText(a *app, use, short string, of func(client.CA) string, none string) *cobra.Command {
	return &cobra.Command{
		Use: use + " ID", Short: short, Args: cobra.ExactArgs(1), ValidArgsFunction: a.completeCAs(),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			ca, err := c.CA(cmd.Context(), args[0])
			if err != nil {
				return noCA(err)
			}
			text := of(ca)
			if text == "" {
				return errors.New(none)
			}
			_, err = io.WriteString(a.stdout, text)
			return err
		}),
	}
}

func caCSR(a *app) *cobra.Command {
	return caText(a, "csr", "Print the request of a CA that waits for its certificate", func(c client.CA) string { return c.Request }, "the CA waits for no certificate")
}

func caPEM(a *app) *cobra.Command {
	return caText(a, "pem", "Print the certificate of a CA, and those above it", func(c client.CA) string { return c.Certificate + c.Chain }, "the CA has no certificate yet")
}

func caSign(a *app) *cobra.Command {
	var profile, device string
	cmd := &cobra.Command{
		Use: "sign ID CSR", Short: "Issue from a certificate request, a file in PEM", Args: cobra.ExactArgs(2), ValidArgsFunction: a.completeCAs(),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			b, err := a.readFile(args[1])
			if err != nil {
				return err
			}
			cert, err := c.Sign(cmd.Context(), args[0], string(b), profile, device)
			if err != nil {
				return noCA(err)
			}
			text, err := c.CertificatePEM(cmd.Context(), cert.Serial)
			if err != nil {
				return err
			}
			_, err = io.WriteString(a.stdout, text)
			return err
		}),
	}
	cmd.Flags().StringVar(&profile, "profile", "", "the issuance `profile`; that of devices if left out")
	cmd.Flags().StringVar(&device, "device", "", "the `device` it becomes a credential of, by id or alias")
	return cmd
}

func certCommand(a *app) *cobra.Command {
	return group("cert", "Issue, list, show and revoke certificates",
		certIssue(a), certList(a), certShow(a), certPEM(a), certExpiry(a),
		certEnd(a, "revoke", "Revoke a certificate: the next use is refused, what is open is closed", ""),
		certEnd(a, "hold", "Put a certificate on hold", "certificateHold"),
		certEnd(a, "release", "Release a certificate that is on hold", "removeFromCRL"))
}

var certColumns = []column[client.Certificate]{
	{name: "serial", cell: func(c client.Certificate) string { return c.Serial }},
	{name: "common name", cell: func(c client.Certificate) string { return c.CommonName }},
	{name: "state", cell: func(c client.Certificate) string { return c.State }},
	{name: "device", cell: func(c client.Certificate) string { return c.Device }},
	{name: "expires", cell: func(c client.Certificate) string { return when(c.NotAfter) }},
	{name: "renewal", wide: true, cell: func(c client.Certificate) string { return c.Renewal }},
	{name: "subject", wide: true, cell: func(c client.Certificate) string { return c.Subject }},
	{name: "profile", wide: true, cell: func(c client.Certificate) string { return c.Profile }},
	{name: "dms", wide: true, cell: func(c client.Certificate) string { return c.DMS }},
	{name: "ca", wide: true, cell: func(c client.Certificate) string { return c.CA }},
	{name: "sha256", wide: true, cell: func(c client.Certificate) string { return c.Fingerprint }},
	{name: "issued", wide: true, cell: func(c client.Certificate) string { return when(c.IssuedAt) }},
	{name: "revoked", wide: true, cell: func(c client.Certificate) string { return whenever(c.RevokedAt) }},
	{name: "reason", wide: true, cell: func(c client.Certificate) string { return c.Reason }},
}

func noCert(err error) error {
	if codeOf(err) == exitNotFound {
		return hinted(err, "keystead cert list shows the certificates of this organisation, by serial number")
	}
	return err
}

func certList(a *app) *cobra.Command {
	narrow := map[string]*string{}
	cmd := &cobra.Command{
		Use: "list", Short: "List certificates", Args: cobra.NoArgs,
		Example: `  keystead cert list --device pump-1
  keystead cert list --expires-before 30d -o csv`,
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			q := url.Values{}
			for name, value := range narrow {
				if *value != "" {
					q.Set(name, *value)
				}
			}
			return printList(a, c.Certificates(cmd.Context(), q), certColumns)
		}),
	}
	flag := func(name, parameter, help string) { narrow[parameter] = cmd.Flags().String(name, "", help) }
	flag("device", "device", "only those of this `device`")
	flag("ca", "ca", "only those issued by this `CA`")
	flag("dms", "dms", "only those enrolled through this `DMS`")
	flag("state", "state", "only active, hold, revoked or expired ones")
	flag("renewal", "renewal", "only those that are to be renewed (renewal_pending), or expire soon (expiring_soon)")
	flag("common-name", "common_name", "only those with this common `name`")
	flag("expires-after", "expires_after", "only those that expire after a `time`, or a duration from now")
	flag("expires-before", "expires_before", "only those that expire before a `time`, or a duration from now such as 30d")
	must(cmd.RegisterFlagCompletionFunc("device", a.completeDevices()))
	return cmd
}

func certShow(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "show SERIAL", Short: "Show a certificate, by serial number or SHA-256 fingerprint", Args: cobra.ExactArgs(1),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			cert, err := c.Certificate(cmd.Context(), args[0])
			if err != nil {
				return noCert(err)
			}
			return printOne(a, cert, certColumns)
		}),
	}
}

func certPEM(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "pem SERIAL", Short: "Print a certificate in PEM", Args: cobra.ExactArgs(1),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			text, err := c.CertificatePEM(cmd.Context(), args[0])
			if err != nil {
				return noCert(err)
			}
			_, err = io.WriteString(a.stdout, text)
			return err
		}),
	}
}

func certExpiry(a *app) *cobra.Command {
	type row struct {
		When  string `json:"when"`
		Count int    `json:"count"`
	}
	return &cobra.Command{
		Use: "expiry", Short: "Count certificates by when they expire", Args: cobra.NoArgs,
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			counts, err := c.CertificateExpiry(cmd.Context())
			if err != nil {
				return err
			}
			return printList(a, func(yield func(row, error) bool) {
				for _, name := range []string{"expired", "within_1d", "within_7d", "within_30d", "within_90d", "later", "renewal_pending", "expiring_soon"} {
					if !yield(row{name, counts[name]}, nil) {
						return
					}
				}
			}, []column[row]{
				{name: "when", cell: func(r row) string { return r.When }},
				{name: "count", cell: func(r row) string { return strconv.Itoa(r.Count) }},
			})
		}),
	}
}

// certEnd is a command that revokes, with the given reason or one the user gives.
func certEnd(a *app, use, short, reason string) *cobra.Command {
	cmd := &cobra.Command{
		Use: use + " SERIAL...", Short: short, Args: cobra.MinimumNArgs(1),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			for _, serial := range args {
				cert, err := c.RevokeCertificate(cmd.Context(), serial, reason)
				if err != nil {
					return noCert(fmt.Errorf("%s: %w", serial, err))
				}
				a.done("%s is %s", serial, cert.State)
			}
			return nil
		}),
	}
	if reason == "" {
		cmd.Flags().StringVar(&reason, "reason", "", "why: keyCompromise, superseded, cessationOfOperation, affiliationChanged, privilegeWithdrawn")
	}
	return cmd
}

// document is a resource that people write as JSON in a file.
type document struct {
	noun  string
	parts []string
}

func (d document) path(id string) []string { return append(append([]string{}, d.parts...), id) }

// showDocument is a command that prints one as JSON, to be edited and sent back.
func showDocument(a *app, d document) *cobra.Command {
	return &cobra.Command{
		Use: "show ID", Short: "Print " + d.noun + " as JSON, to edit and send back", Args: cobra.ExactArgs(1),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			raw, err := c.Raw(cmd.Context(), d.path(args[0])...)
			if err != nil {
				return err
			}
			e := json.NewEncoder(a.stdout)
			e.SetIndent("", "  ")
			return e.Encode(raw)
		}),
	}
}

// sendDocument is a command that reads JSON from a file and sends it.
func sendDocument(a *app, use, short string, args int, send func(ctx context.Context, c *client.Client, args []string, body json.RawMessage) (string, error)) *cobra.Command {
	return &cobra.Command{
		Use: use, Short: short, Args: cobra.ExactArgs(args),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, given []string) error {
			body, err := a.readFile(given[len(given)-1])
			if err != nil {
				return err
			}
			if !json.Valid(body) {
				return usage(cmd, fmt.Errorf("%s is not JSON", given[len(given)-1]))
			}
			id, err := send(cmd.Context(), c, given, body)
			if err != nil {
				return err
			}
			a.done("%s", id)
			return nil
		}),
	}
}

func profileCommand(a *app) *cobra.Command {
	list := &cobra.Command{
		Use: "list", Short: "List the issuance profiles", Args: cobra.NoArgs,
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			return printList(a, c.Profiles(cmd.Context()), []column[client.Profile]{
				{name: "id", cell: func(p client.Profile) string { return p.ID }},
				{name: "name", cell: func(p client.Profile) string { return p.Name }},
				{name: "built in", cell: func(p client.Profile) string { return yes(p.Builtin) }},
				{name: "description", cell: func(p client.Profile) string { return p.Description }},
			})
		}),
	}
	remove := &cobra.Command{
		Use: "delete ID", Short: "Remove a profile", Args: cobra.ExactArgs(1),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			if err := c.DeleteProfile(cmd.Context(), args[0]); err != nil {
				return err
			}
			a.done("deleted %s", args[0])
			return nil
		}),
	}
	return group("profile", "Say what certificates are made from", list,
		showDocument(a, document{"a profile", []string{"api", "v1", "profiles"}}),
		sendDocument(a, "create FILE", "Add a profile, from JSON", 1, func(ctx context.Context, c *client.Client, _ []string, body json.RawMessage) (string, error) {
			p, err := c.CreateProfile(ctx, body)
			return p.ID, err
		}),
		sendDocument(a, "update ID FILE", "Replace a profile, from JSON", 2, func(ctx context.Context, c *client.Client, args []string, body json.RawMessage) (string, error) {
			p, err := c.UpdateProfile(ctx, args[0], body)
			return p.ID, err
		}), remove)
}

func dmsCommand(a *app) *cobra.Command {
	list := &cobra.Command{
		Use: "list", Short: "List the enrolment profiles", Args: cobra.NoArgs,
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			return printList(a, c.DMSs(cmd.Context()), []column[client.DMS]{
				{name: "id", cell: func(d client.DMS) string { return d.ID }},
				{name: "name", cell: func(d client.DMS) string { return d.Name }},
				{name: "created", cell: func(d client.DMS) string { return when(d.CreatedAt) }},
			})
		}),
	}
	var force bool
	remove := &cobra.Command{
		Use: "delete ID", Short: "Remove an enrolment profile", Args: cobra.ExactArgs(1),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			if err := c.DeleteDMS(cmd.Context(), args[0], force); err != nil {
				return err
			}
			a.done("deleted %s", args[0])
			return nil
		}),
	}
	remove.Flags().BoolVar(&force, "force", false, "also if devices came in by it")
	return group("dms", "Say who may enrol, how, and what they get", list,
		showDocument(a, document{"an enrolment profile", []string{"api", "v1", "dms"}}),
		sendDocument(a, "create FILE", "Add an enrolment profile, from JSON", 1, func(ctx context.Context, c *client.Client, _ []string, body json.RawMessage) (string, error) {
			d, err := c.CreateDMS(ctx, body)
			return d.ID, err
		}),
		sendDocument(a, "update ID FILE", "Replace an enrolment profile, from JSON", 2, func(ctx context.Context, c *client.Client, args []string, body json.RawMessage) (string, error) {
			d, err := c.UpdateDMS(ctx, args[0], body)
			return d.ID, err
		}), dmsDiagnose(a), dmsBind(a), remove)
}

func dmsDiagnose(a *app) *cobra.Command {
	var q client.Question
	from := map[*string]*string{&q.CSR: new(string), &q.Certificate: new(string), &q.Token: new(string)}
	cmd := &cobra.Command{
		Use: "diagnose ID", Short: "Say why a request or a client certificate would be taken or refused, issuing nothing", Args: cobra.ExactArgs(1),
		Long: `Have an enrolment profile look at what a device would send, check by check. Nothing is
issued, spent or recorded, and no webhook is asked. It ends with 1 if the device would be refused.`,
		Example: `  keystead dms diagnose default --csr pump.csr --token-file token
  keystead dms diagnose plant --certificate bootstrap.pem --csr pump.csr
  keystead dms diagnose plant --operation simplereenroll --certificate pump.pem --csr pump.csr`,
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			for to, name := range from {
				if *name == "" {
					continue
				}
				b, err := a.readFile(*name)
				if err != nil {
					return err
				}
				*to = string(b)
			}
			q.Token = strings.TrimSpace(q.Token)
			d, err := c.Diagnose(cmd.Context(), args[0], q)
			if err != nil {
				return err
			}
			if err := printList(a, func(yield func(client.Examination, error) bool) {
				for _, x := range d.Checks {
					if !yield(x, nil) {
						return
					}
				}
			}, []column[client.Examination]{
				{name: "check", cell: func(x client.Examination) string { return x.Check }},
				{name: "result", cell: func(x client.Examination) string { return x.Result }},
				{name: "detail", cell: func(x client.Examination) string { return x.Detail }},
			}); err != nil {
				return err
			}
			if !d.Accepted {
				return fmt.Errorf("it would be refused with %d: %s", d.Status, d.Reason)
			}
			a.done("it would be answered %d", d.Status)
			return nil
		}),
	}
	f := cmd.Flags()
	f.StringVar(&q.Operation, "operation", "", "simpleenroll, simplereenroll or serverkeygen")
	f.StringVar(from[&q.CSR], "csr", "", "the request, a `file` in PEM")
	f.StringVar(from[&q.Certificate], "certificate", "", "the client's certificate, and what it sends with it: a `file` in PEM")
	f.StringVar(from[&q.Token], "token-file", "", "a `file` with the enrolment token or bearer token")
	return cmd
}

func dmsBind(a *app) *cobra.Command {
	var mode string
	cmd := &cobra.Command{
		Use: "bind DEVICE SERIAL", Short: "Give a device a certificate that was issued without one", Args: cobra.ExactArgs(2),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			if err := c.BindIdentity(cmd.Context(), mode, args[0], args[1]); err != nil {
				return err
			}
			a.done("%s is a certificate of %s", args[1], args[0])
			return nil
		}),
	}
	cmd.Flags().StringVar(&mode, "mode", "PROVISIONED", "PROVISIONED for its first, RE-PROVISIONED for another, RENEWED for one in the place of that it has")
	return cmd
}

var tokenColumns = []column[client.EnrolmentToken]{
	{name: "id", cell: func(t client.EnrolmentToken) string { return t.ID }},
	{name: "dms", cell: func(t client.EnrolmentToken) string { return t.DMS }},
	{name: "device", cell: func(t client.EnrolmentToken) string { return t.Device }},
	{name: "state", cell: func(t client.EnrolmentToken) string { return t.State }},
	{name: "uses", cell: func(t client.EnrolmentToken) string {
		if t.MaxUses == 0 {
			return strconv.Itoa(t.Uses)
		}
		return fmt.Sprintf("%d of %d", t.Uses, t.MaxUses)
	}},
	{name: "expires", cell: func(t client.EnrolmentToken) string { return when(t.ExpiresAt) }},
	{name: "common name", wide: true, cell: func(t client.EnrolmentToken) string { return t.CommonName }},
	{name: "comment", wide: true, cell: func(t client.EnrolmentToken) string { return t.Comment }},
}

func enrolmentTokenCommand(a *app) *cobra.Command {
	list := &cobra.Command{
		Use: "list", Short: "List enrolment tokens", Args: cobra.NoArgs,
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			return printList(a, c.EnrolmentTokens(cmd.Context()), tokenColumns)
		}),
	}
	revoke := &cobra.Command{
		Use: "revoke ID...", Short: "End enrolment tokens; what was enrolled with them stays", Args: cobra.MinimumNArgs(1),
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, args []string) error {
			for _, id := range args {
				if err := c.RevokeEnrolmentToken(cmd.Context(), id); err != nil {
					return fmt.Errorf("%s: %w", id, err)
				}
				a.done("revoked %s", id)
			}
			return nil
		}),
	}
	return group("enrolment-token", "Make, list and end the tokens devices enrol with", enrolmentTokenCreate(a), list, revoke)
}

func enrolmentTokenCreate(a *app) *cobra.Command {
	var n client.NewEnrolmentToken
	var uses int
	cmd := &cobra.Command{
		Use: "create", Short: "Make an enrolment token, which is shown this once", Args: cobra.NoArgs,
		Example: `  keystead enrolment-token create --device pump-1
  keystead enrolment-token create --uses 100 --expires-in 7d --common-name 'pump-*'`,
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			if cmd.Flags().Changed("uses") {
				n.MaxUses = &uses
			}
			t, err := c.CreateEnrolmentToken(cmd.Context(), n)
			if err != nil {
				return noDevice(err)
			}
			shown := append([]column[client.EnrolmentToken]{{name: "token", cell: func(t client.EnrolmentToken) string { return t.Token }}}, tokenColumns...)
			return printOne(a, t, shown)
		}),
	}
	f := cmd.Flags()
	f.StringVar(&n.DMS, "dms", "", "the enrolment `profile`; the default one if left out")
	f.StringVar(&n.Device, "device", "", "the only `device` it enrols, by id or alias")
	f.StringVar(&n.CommonName, "common-name", "", "the only common `name` it enrols; a * at its end stands for anything")
	f.IntVar(&uses, "uses", 1, "how often it may be used; 0 is without limit")
	f.StringVar(&n.ExpiresIn, "expires-in", "", "how long it lasts, such as 90m or 7d; a day if left out")
	f.StringVar(&n.Comment, "comment", "", "what it is for")
	must(cmd.RegisterFlagCompletionFunc("device", a.completeDevices()))
	return cmd
}
