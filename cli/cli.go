// Package cli is the command line of Keystead: the server and the commands that
// administer one. Each resource's commands live in their own file and are listed
// in commands; what they share is here and in print.go.
package cli

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"os/signal"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
)

// commands is every command, a line per file.
var commands = []func(*app) *cobra.Command{
	serveCommand,
	hashCommand,
	whoamiCommand,
	loginCommand,
	logoutCommand,
	userCommand,
	orgCommand,
	keyCommand,
	thingCommand,
	deviceCommand,
	sessionCommand,
	pskCommand,
	caCommand,
	certCommand,
	profileCommand,
	dmsCommand,
	enrolmentTokenCommand,
	ceremonyCommand,
	authSetCommand,
	tokenCommand,
	mtlsCACommand,
	serverCommand,
	policyCommand,
	bootstrapCommand,
	configCommand,
	auditCommand,
	webhookCommand,
	backupCommand,
	keysCommand,
	restoreCommand,
	compactCommand,
	doctorCommand,
	versionCommand,
}

// app is one run of the program: what it reads, where it writes, and the flags
// that every command takes.
type app struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	getenv         func(string) string

	configFile string
	data       string
	set        []string
	url        string
	org        string
	output     string
}

// Main runs one command and returns the program's exit code. It touches nothing
// of the process but signals, so tests run it as it is.
func Main(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer, getenv func(string) string) int {
	ctx, stop := signal.NotifyContext(ctx, syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // the second signal is not ours: it ends the process at once
	a := &app{stdin: stdin, stdout: stdout, stderr: stderr, getenv: getenv}
	root := a.root()
	root.SetArgs(args)
	if err := root.ExecuteContext(ctx); err != nil {
		return a.report(err)
	}
	return exitOK
}

const long = `Keystead gives every device one identity, whatever protocol it speaks.

"keystead serve" runs the server. Every other command asks a running server over
its REST API, as the administrator whose key is in <data>/admin.json, save those
that say they work on a stopped one.

Exit codes:
  0   done
  1   failed
  2   the command line is wrong
  3   the server cannot be reached, or asks to come back later
  4   the server does not know the caller, or does not allow it
  5   there is no such thing
  6   clashes with how things are
  65  the database is damaged, or is not one
  74  writing to the disk failed; start again
  78  the configuration is wrong

Environment: KEYSTEAD_URL, KEYSTEAD_API_KEY, KEYSTEAD_CA_FILE and KEYSTEAD_ORG
stand in for what is in admin.json, to administer a server on another machine.`

func (a *app) root() *cobra.Command {
	root := &cobra.Command{
		Use:           "keystead",
		Short:         "One identity for every device, whatever protocol it speaks",
		Long:          long,
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.SetIn(a.stdin)
	root.SetOut(a.stdout)
	root.SetErr(a.stderr)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error { return usage(cmd, err) })

	f := root.PersistentFlags()
	f.StringVar(&a.configFile, "config", "", "configuration `file`; none is needed")
	f.StringVar(&a.data, "data", "", "data `directory` of the server (default \"data\")")
	f.StringArrayVar(&a.set, "set", nil, "set one `key=value` of the configuration; may be repeated")
	f.StringVar(&a.url, "url", "", "`address` of the server, when not the one in <data>/admin.json")
	f.StringVar(&a.org, "org", "", "`organisation` to act in, when not the default one")
	f.StringVarP(&a.output, "output", "o", "table", "output `format`: table, json, yaml or csv")
	must(root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions(formats, cobra.ShellCompDirectiveNoFileComp)))
	must(root.MarkPersistentFlagDirname("data"))
	root.PersistentPreRunE = func(cmd *cobra.Command, _ []string) error {
		// cobra looks at the required flags and groups after this, and has no way to say that it is a matter of usage.
		return usage(cmd, cmp.Or(a.checkFormat(), cmd.ValidateRequiredFlags(), cmd.ValidateFlagGroups()))
	}

	for _, add := range commands {
		root.AddCommand(add(a))
	}
	strict(root)
	return root
}

// strict has every command refuse arguments it does not expect as a mistake in
// the command line, and every group a word that is none of its commands.
func strict(cmd *cobra.Command) {
	if cmd.HasSubCommands() {
		cmd.Args = cobra.ArbitraryArgs
		cmd.RunE = func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usage(cmd, fmt.Errorf("%s has no command %q%s", cmd.CommandPath(), args[0], suggest(cmd, args[0])))
			}
			return cmd.Help()
		}
	} else if check := cmd.Args; check != nil {
		cmd.Args = func(cmd *cobra.Command, args []string) error { return usage(cmd, check(cmd, args)) }
	}
	for _, sub := range cmd.Commands() {
		strict(sub)
	}
}

func suggest(cmd *cobra.Command, word string) string {
	cmd.SuggestionsMinimumDistance = 2
	if near := cmd.SuggestionsFor(word); len(near) > 0 {
		return "; did you mean " + strings.Join(near, " or ") + "?"
	}
	return ""
}

// group is a command that only holds others.
func group(use, short string, subs ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{Use: use, Short: short}
	cmd.AddCommand(subs...)
	return cmd
}

// must is for what can only fail by a mistake in the tables of commands.
func must(err error) {
	if err != nil {
		panic(err)
	}
}
