package cli

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"keystead/client"
	"keystead/config"
	"keystead/seal"
)

// finding is what the doctor found about one thing.
type finding struct {
	Check string `json:"check"`
	State string `json:"state"` // ok, warning or fault
	Found string `json:"found"`
	Fix   string `json:"fix,omitempty"`
}

// How a thing is.
const (
	isFine    = "ok"
	isWarning = "warning"
	isFault   = "fault"
)

func doctorCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "doctor",
		Short: "Look for what is wrong, or soon will be, and say what to do about it",
		Long: `Look at the configuration, the data directory, the disk, the ports, the clock, the
certificate, the backups and the server, on the machine it runs on, whether it
runs or not. Ends with 1 if there is a fault; warnings are not.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			faults := 0
			err := printList(a, func(yield func(finding, error) bool) {
				for _, f := range a.examine(cmd.Context()) {
					if f.State == isFault {
						faults++
					}
					if !yield(f, nil) {
						return
					}
				}
			}, []column[finding]{
				{name: "check", cell: func(f finding) string { return f.Check }},
				{name: "state", cell: func(f finding) string { return f.State }},
				{name: "found", cell: func(f finding) string { return f.Found }},
				{name: "fix", cell: func(f finding) string { return f.Fix }},
			})
			if err == nil && faults > 0 {
				return hinted(fmt.Errorf("%d of these must be mended", faults), "the column FIX says how")
			}
			return err
		},
	}
}

// patient is one look at one server.
type patient struct {
	a     *app
	cfg   config.Config
	now   time.Time
	bound map[string]string // where the server that runs is bound; nil if none does
}

// examine makes every check, those of what does not run on what is there.
func (a *app) examine(ctx context.Context) []finding {
	cfg, err := a.config()
	if err != nil {
		return []finding{{"configuration", isFault, oneLine(err).Error(), "keystead config check lists the faults"}}
	}
	p := &patient{a: a, cfg: cfg, now: time.Now()} //nolint:forbidigo // the clock of the machine is what is looked at
	if b, err := os.ReadFile(filepath.Join(cfg.Data, "endpoints.json")); err == nil && json.Unmarshal(b, &p.bound) != nil {
		p.bound = nil
	}
	findings := []finding{{"configuration", isFine, "every key is right", ""}}
	for _, look := range []func(context.Context) []finding{
		p.directory, p.secretFiles, p.masterKey, p.disk, p.openFiles, p.clock, p.name, p.ports, p.readiness, p.certificate, p.backups,
	} {
		findings = append(findings, look(ctx)...)
	}
	return findings
}

func (p *patient) directory(context.Context) []finding {
	const check = "data directory"
	info, err := os.Stat(p.cfg.Data)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return []finding{{check, isWarning, p.cfg.Data + " is not there yet", "keystead serve makes it; --data names another"}}
	case err != nil:
		return []finding{{check, isFault, err.Error(), "run as the user the server runs as"}}
	case !info.IsDir():
		return []finding{{check, isFault, p.cfg.Data + " is not a directory", "name one with --data"}}
	case info.Mode().Perm()&0o077 != 0:
		return []finding{{check, isWarning, fmt.Sprintf("%s has mode %04o: others can look into it", p.cfg.Data, info.Mode().Perm()), "chmod 700 " + p.cfg.Data}}
	}
	return []finding{{check, isFine, p.cfg.Data, ""}}
}

// secretFiles looks whether others can read what they must not.
func (p *patient) secretFiles(context.Context) []finding {
	var found []finding
	for _, name := range []string{"keystead.db", "admin.json", "setup-link", p.cfg.MasterKey.File} {
		path := p.cfg.Path(name)
		if info, err := os.Stat(path); err == nil && info.Mode().Perm()&0o077 != 0 {
			found = append(found, finding{"file modes", isFault, fmt.Sprintf("%s has mode %04o: it holds secrets", path, info.Mode().Perm()), "chmod 600 " + path})
		}
	}
	if found == nil {
		found = []finding{{"file modes", isFine, "what holds secrets is its owner's alone", ""}}
	}
	return found
}

func (p *patient) masterKey(context.Context) []finding {
	const check = "master key"
	m := p.cfg.MasterKey
	if !exists(p.cfg.Path("keystead.db")) {
		return nil
	}
	switch m.Kind {
	case seal.FromFile:
		if path := p.cfg.Path(m.File); !exists(path) {
			return []finding{{check, isFault, path + " is missing: the secrets in the database cannot be read", "put its copy back; without it they are lost"}}
		}
		if filepath.Dir(p.cfg.Path(m.File)) == filepath.Clean(p.cfg.Data) {
			return []finding{{check, isFine, "in " + p.cfg.Path(m.File) + "; no backup has it", "keep a copy apart from the backups"}}
		}
	case seal.FromEnv:
		if p.a.getenv(m.Variable) == "" {
			return []finding{{check, isWarning, m.Variable + " is not set for this command", "set it where the server is started"}}
		}
	}
	return []finding{{check, isFine, "from " + m.Kind, ""}}
}

// The least free space that is no fault, and that is worth no warning.
const (
	littleSpace = 64 << 20
	enoughSpace = 1 << 30
)

func (p *patient) disk(context.Context) []finding {
	const check, fix = "disk", "make room; when it is full the server refuses changes (507) and goes on reading"
	var s syscall.Statfs_t
	if err := syscall.Statfs(p.cfg.Data, &s); err != nil {
		return nil // the directory was looked at already
	}
	free := s.Bavail * uint64(s.Bsize) //nolint:gosec // G115: a block size is not negative
	found := fmt.Sprintf("%.1f GB free", float64(free)/1e9)
	switch {
	case free < littleSpace:
		return []finding{{check, isFault, found, fix}}
	case free < enoughSpace:
		return []finding{{check, isWarning, found, fix}}
	}
	return []finding{{check, isFine, found, ""}}
}

// openFiles compares what the system allows with the connections that are
// configured: each takes one.
func (p *patient) openFiles(context.Context) []finding {
	const check, spare = "open files", 100
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return nil
	}
	if need := uint64(p.cfg.Limits.Connections) + spare; limit.Max < need { //nolint:gosec // G115: validated to be positive
		return []finding{{check, isWarning, fmt.Sprintf("at most %d, for %d connections", limit.Max, p.cfg.Limits.Connections), "raise LimitNOFILE of the service, or lower limits.connections"}}
	}
	return []finding{{check, isFine, fmt.Sprintf("up to %d", limit.Max), ""}}
}

// clock looks whether the machine's clock is behind what it has written.
func (p *patient) clock(context.Context) []finding {
	const check, slack = "clock", 5 * time.Minute
	if info, err := os.Stat(p.cfg.Path("keystead.db")); err == nil && info.ModTime().After(p.now.Add(slack)) {
		return []finding{{check, isFault, fmt.Sprintf("it is %s, but the database was written at %s", when(p.now), when(info.ModTime())), "set the clock, and have it kept by NTP: certificates depend on it"}}
	}
	return []finding{{check, isFine, when(p.now), ""}}
}

func (p *patient) name(ctx context.Context) []finding {
	const check = "public name"
	u, err := url.Parse(p.cfg.PublicURL)
	if err != nil || u.Host == "" {
		return []finding{{check, isWarning, "public_url is not set", "set it to what clients use, such as https://keystead.example.org"}}
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if _, err := net.DefaultResolver.LookupHost(ctx, u.Hostname()); err != nil {
		return []finding{{check, isWarning, u.Hostname() + " is not found from here", "add it to DNS, or set public_url to a name that is there"}}
	}
	return []finding{{check, isFine, p.cfg.PublicURL, ""}}
}

// ports looks, where no server runs, whether one could be bound.
func (p *patient) ports(ctx context.Context) []finding {
	if p.bound != nil {
		return nil
	}
	var found []finding
	var l net.ListenConfig
	for _, at := range []struct{ key, network, addr string }{
		{"https.listen", "tcp", p.cfg.HTTPS.Listen},
		{"http.listen", "tcp", p.cfg.HTTP.Listen},
		{"ops.listen", "tcp", p.cfg.Ops.Listen},
		{"coap.tcp", "tcp", p.cfg.CoAP.TCP},
		{"coap.udp", "udp", p.cfg.CoAP.UDP},
	} {
		if at.addr == "" {
			continue
		}
		var err error
		if at.network == "udp" {
			var c net.PacketConn
			if c, err = l.ListenPacket(ctx, at.network, at.addr); err == nil {
				c.Close()
			}
		} else {
			var c net.Listener
			if c, err = l.Listen(ctx, at.network, at.addr); err == nil {
				c.Close()
			}
		}
		if err != nil {
			found = append(found, finding{"ports", isFault, at.key + ": " + err.Error(), "stop what has the port, or set another: --set " + at.key + "=…"})
		}
	}
	if found == nil {
		found = []finding{{"ports", isFine, "all of them are free", ""}}
	}
	return found
}

func (p *patient) readiness(ctx context.Context) []finding {
	const check = "server"
	if p.bound == nil {
		return []finding{{check, isWarning, "it does not run", "keystead serve starts it"}}
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	if at := p.bound["ops"]; at != "" {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+local(at)+"/readyz", nil)
		if err != nil {
			return []finding{{check, isFault, err.Error(), ""}}
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			return []finding{{check, isFault, "it does not answer: " + err.Error(), "if it was killed, start it again; else look at its log"}}
		}
		res.Body.Close()
		if res.StatusCode != http.StatusOK {
			return []finding{{check, isFault, "it is not ready: " + res.Status, "its log says why"}}
		}
	}
	c, err := p.a.connect()
	if err != nil {
		return []finding{{check, isWarning, err.Error(), hintOf(err)}}
	}
	defer c.Close()
	if _, err := c.Whoami(ctx); err != nil {
		return []finding{{check, isFault, err.Error(), cmp.Or(hintOf(err), "look at its log")}}
	}
	return []finding{{check, isFine, "it runs, is ready, and knows this administrator", ""}}
}

// soon is how long before the end of a certificate there is reason to worry: the
// server renews its own well before that.
const soon = 7 * 24 * time.Hour

func (p *patient) certificate(ctx context.Context) []finding {
	const check = "certificate"
	at := p.bound["https"]
	if at == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	// What the server shows is looked at below, the reason for its refusal included.
	d := tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS12}} //nolint:gosec // G402: see above; nothing is sent
	raw, err := d.DialContext(ctx, "tcp", local(at))
	if err != nil {
		return []finding{{check, isFault, err.Error(), "the server's log says more"}}
	}
	defer raw.Close()
	conn, ok := raw.(*tls.Conn)
	if !ok || len(conn.ConnectionState().PeerCertificates) == 0 {
		return []finding{{check, isFault, "the server shows none", "the server's log says more"}}
	}
	chain := conn.ConnectionState().PeerCertificates
	leaf := chain[0]
	var roots *x509.CertPool // the system's, for a certificate from elsewhere
	if pem, err := os.ReadFile(p.cfg.Path("ca.pem")); err == nil && p.cfg.TLS.Certificate == "" {
		roots = x509.NewCertPool()
		roots.AppendCertsFromPEM(pem)
	}
	between := x509.NewCertPool()
	for _, c := range chain[1:] {
		between.AddCert(c)
	}
	u, err := url.Parse(p.cfg.PublicURL)
	if err != nil {
		u = &url.URL{}
	}
	_, err = leaf.Verify(x509.VerifyOptions{Roots: roots, Intermediates: between, CurrentTime: p.now, DNSName: u.Hostname()})
	switch {
	case errors.As(err, new(x509.HostnameError)):
		return []finding{{check, isFault, "it is not for " + u.Hostname() + ", the name in public_url", "add the name to tls.names and start the server again"}}
	case err != nil:
		return []finding{{check, isFault, err.Error(), "if it came from elsewhere, replace it: tls.certificate and tls.key; its CA must be known to clients"}}
	case leaf.NotAfter.Before(p.now.Add(soon)):
		return []finding{{check, isWarning, "it expires at " + when(leaf.NotAfter), "one from elsewhere has to be replaced; why the server did not renew its own is in its log"}}
	}
	return []finding{{check, isFine, "valid until " + when(leaf.NotAfter), ""}}
}

// stale is how old the last copy may be where the server makes none by itself.
const stale = 7 * 24 * time.Hour

func (p *patient) backups(ctx context.Context) []finding {
	const check, fix = "backups", "keystead backup create makes one; backup.every has the server do it"
	if p.bound == nil {
		return nil
	}
	c, err := p.a.connect()
	if err != nil {
		return nil // the server was looked at already
	}
	defer c.Close()
	var last client.Backup
	for b, err := range c.Backups(ctx) {
		if err != nil {
			return []finding{{check, isWarning, err.Error(), hintOf(err)}}
		}
		if b.CreatedAt.After(last.CreatedAt) {
			last = b
		}
	}
	switch {
	case last.Name == "":
		return []finding{{check, isWarning, "there is none", fix}}
	case p.now.Sub(last.CreatedAt) > max(stale, 2*p.cfg.Backup.Every):
		return []finding{{check, isWarning, "the last is of " + when(last.CreatedAt), fix}}
	}
	return []finding{{check, isFine, "the last is of " + when(last.CreatedAt), ""}}
}
