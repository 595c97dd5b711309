package cli

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"

	"keystead/argon"
	"keystead/config"
	"keystead/server"
	"keystead/store"
)

func serveCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "serve",
		Short: "Run the server, until it is interrupted",
		Long: `Run the server, until it is interrupted.

The first start makes everything that is needed in the data directory: the
database, the master key, the CAs, the server's certificate, a first organisation
and an administrator, whose key is in admin.json. SIGINT or SIGTERM lets requests
in flight end; a second one does not wait.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			cfg, err := a.config()
			if err != nil {
				return err
			}
			s, err := server.Build(cmd.Context(), cfg, a.logger(cfg.Log))
			if err != nil {
				return serving(err)
			}
			s.Version = thisVersion().Version
			if program := ownProgram(); program != "" {
				s.HashElsewhere(program, hashWord)
			}
			if err := s.Listen(cmd.Context()); err != nil {
				s.Close()
				return serving(err)
			}
			a.welcome(cfg, s.Addresses())
			return serving(s.Run(cmd.Context()))
		},
	}
}

// hashWord is the command that hashes passwords for a server.
const hashWord = "hash"

func hashCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:    hashWord,
		Short:  "Hash passwords for a server, which starts this by itself",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE:   func(*cobra.Command, []string) error { return argon.Serve(a.stdin, a.stdout) },
	}
}

// ownProgram is the path of this program, even after another was put in its place.
// It is empty in programs that have this package in them and are not Keystead: tests.
func ownProgram() string {
	info, ok := debug.ReadBuildInfo()
	if _, err := os.Stat("/proc/self/exe"); !ok || err != nil || info.Path != "keystead" {
		return ""
	}
	return "/proc/self/exe"
}

// config reads the configuration that the flags and the environment name.
func (a *app) config() (config.Config, error) {
	set := a.set
	if a.data != "" {
		set = append(slices.Clip(set), "data="+a.data)
	}
	cfg, err := config.Load(config.Options{File: a.configFile, Getenv: a.getenv, Set: set})
	return cfg, coded(exitConfig, err, "keystead config print shows every key, its value and where it came from")
}

// serving says how the program ends for an error of the server.
func serving(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, store.ErrCorrupt), errors.Is(err, store.ErrNewer):
		return coded(exitData, oneLine(err), "")
	case errors.Is(err, store.ErrInUse):
		return coded(exitFailed, oneLine(err), "another keystead serve has this data directory; --data names one of its own")
	case errors.Is(err, store.ErrUnknownOutcome):
		return coded(exitIO, oneLine(err), "look at the disk; then start again: everything acknowledged is kept")
	case errors.Is(err, syscall.EADDRINUSE):
		return coded(exitFailed, oneLine(err), "another program has that port; --set https.listen=:9443, or port 0 for any that is free, takes another")
	case errors.Is(err, syscall.EACCES) && errors.As(err, new(*net.OpError)):
		return coded(exitFailed, oneLine(err), "ports below 1024 need a privilege (CAP_NET_BIND_SERVICE); a port above needs none")
	case errors.Is(err, fs.ErrPermission):
		return coded(exitFailed, oneLine(err), "run as the user the data directory belongs to, or name another with --data")
	}
	return oneLine(err)
}

// lineError is an error in one line, however many are joined in it.
type lineError struct{ error }

func (e lineError) Error() string {
	return strings.Join(strings.FieldsFunc(e.error.Error(), func(r rune) bool { return r == '\n' }), "; ")
}

func (e lineError) Unwrap() error { return e.error }

func oneLine(err error) error { return lineError{err} }

// logger writes to standard error, for people if that is a terminal.
func (a *app) logger(c config.Log) *slog.Logger {
	var level slog.Level
	must(level.UnmarshalText([]byte(c.Level))) // config has validated it
	o := &slog.HandlerOptions{Level: level}
	if c.Format == "text" || c.Format == "auto" && terminal(a.stderr) {
		return slog.New(slog.NewTextHandler(a.stderr, o))
	}
	return slog.New(slog.NewJSONHandler(a.stderr, o))
}

func terminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&os.ModeCharDevice != 0
}

// welcome prints where things are.
func (a *app) welcome(cfg config.Config, bound map[string]string) {
	var b strings.Builder
	b.WriteString("Keystead is running; Ctrl-C stops it.\n\n")
	for _, l := range []struct{ key, scheme, what string }{
		{"https", "https", "REST API, console, EST"},
		{"http", "http", "CRLs, OCSP, CA certificates"},
		{"coap_udp", "coaps", "CoAP over DTLS"},
		{"coap_tcp", "coaps+tcp", "CoAP over TLS"},
		{"lwm2m_udp", "coaps", "LwM2M bootstrap"},
		{"ops", "http", "metrics and health"},
	} {
		if addr := bound[l.key]; addr != "" {
			fmt.Fprintf(&b, "  %-28s %s://%s\n", l.what, l.scheme, local(addr))
		}
	}
	for _, f := range []struct{ name, what string }{
		{"admin.json", "administrator's key"},
		{"ca.pem", "CA certificates to trust"},
	} {
		if path := cfg.Path(f.name); exists(path) {
			fmt.Fprintf(&b, "  %-28s %s\n", f.what, path)
		}
	}
	b.WriteString("\nREADME.md says how to add the first device; keystead --help lists the commands.\n\n")
	fmt.Fprint(a.stdout, b.String())
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// local turns the address a listener is bound to into one to reach it at from
// this machine.
func local(bound string) string {
	host, port, err := net.SplitHostPort(bound)
	if err != nil {
		return bound
	}
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		host = "localhost"
	}
	return net.JoinHostPort(host, port)
}

// dataDir is the server's data directory. A configuration that is wrong is for
// the commands that need all of it to report.
func (a *app) dataDir() string {
	if cfg, err := a.config(); err == nil {
		return cfg.Data
	}
	return cmp.Or(a.data, a.getenv("KEYSTEAD_DATA"), config.Default().Data)
}

// inData is a path of a file of the data directory, as admin.json names it.
func (a *app) inData(name string) string {
	if name == "" || filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(a.dataDir(), name)
}
