package cli

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"keystead/client"
)

// login is what keystead login keeps, in the user's configuration directory.
type login struct {
	URL    string `json:"url"`
	CAFile string `json:"ca_file,omitempty"`
	Dial   string `json:"dial,omitempty"`
	Email  string `json:"email"`
	Token  string `json:"token"`
}

// loginFile is where the login is kept, "" if the user has no place for it.
func (a *app) loginFile() string {
	dir := a.getenv("XDG_CONFIG_HOME")
	if dir == "" && a.getenv("HOME") != "" {
		dir = filepath.Join(a.getenv("HOME"), ".config")
	}
	if dir == "" {
		return ""
	}
	return filepath.Join(dir, "keystead", "login.json")
}

// loggedIn returns the login that is kept, if there is one.
func (a *app) loggedIn() (l login, ok bool) {
	b, err := os.ReadFile(a.loginFile())
	return l, err == nil && json.Unmarshal(b, &l) == nil && l.Token != ""
}

func loginCommand(a *app) *cobra.Command {
	var code, passwordFile string
	cmd := &cobra.Command{
		Use:   "login EMAIL",
		Short: "Log in with a password; the commands after this act as its user",
		Long: `Log in to the server that --url or KEYSTEAD_URL names, or the one whose data is here,
and keep the login, which lasts an hour, in the configuration directory. Until
keystead logout, or until it ends, commands act as this user, not as the
administrator of admin.json.

The password is read from the terminal, or from a file (--password-file).`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			file := a.loginFile()
			if file == "" {
				return hinted(errors.New("there is no configuration directory"), "set HOME or XDG_CONFIG_HOME")
			}
			conf, err := a.target()
			if err != nil {
				return err
			}
			conf.APIKey = ""
			c, err := client.New(conf)
			if err != nil {
				return err
			}
			defer c.Close()
			password, err := a.password(passwordFile)
			if err != nil {
				return err
			}
			token, err := c.LogIn(cmd.Context(), args[0], password, code)
			if err != nil {
				return err
			}
			l := login{URL: conf.URL, CAFile: absolute(conf.CAFile), Dial: conf.Dial, Email: args[0], Token: token}
			if err := keep(file, l); err != nil {
				return err
			}
			a.done("logged in as %s", args[0])
			return nil
		},
	}
	cmd.Flags().StringVar(&code, "code", "", "the `code` of your authenticator app, or a recovery code")
	cmd.Flags().StringVar(&passwordFile, "password-file", "", "the password is in this `file`; - for standard input")
	return cmd
}

func absolute(path string) string {
	if path == "" {
		return ""
	}
	if abs, err := filepath.Abs(path); err == nil {
		return abs
	}
	return path
}

// keep writes the login for its owner's eyes only.
func keep(file string, l login) error {
	b, err := json.Marshal(l)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(file), "login.*")
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return os.Rename(f.Name(), file)
}

// password reads a password from a file, or from the terminal without showing it.
func (a *app) password(file string) (string, error) {
	if file != "" {
		return a.readSecret(file)
	}
	if in, ok := a.stdin.(*os.File); ok && term.IsTerminal(int(in.Fd())) {
		fmt.Fprint(a.stderr, "Password: ")
		b, err := term.ReadPassword(int(in.Fd()))
		fmt.Fprintln(a.stderr)
		return string(b), err
	}
	line, err := bufio.NewReader(a.stdin).ReadString('\n')
	if line == "" && err != nil {
		return "", hinted(errors.New("there is no password on standard input"), "name a file with --password-file")
	}
	return strings.TrimRight(line, "\r\n"), nil
}

func logoutCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:   "logout",
		Short: "Forget the login that keystead login keeps",
		Args:  cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			file := a.loginFile()
			if file == "" {
				return nil
			}
			if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			a.done("logged out")
			return nil
		},
	}
}
