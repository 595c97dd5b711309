package cli

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"keystead/client"
)

// The exit codes. Those from 64 up are of sysexits(3), which supervisors know.
const (
	exitOK          = 0
	exitFailed      = 1
	exitUsage       = 2
	exitUnreachable = 3
	exitRefused     = 4
	exitNotFound    = 5
	exitConflict    = 6
	exitData        = 65
	exitIO          = 74
	exitConfig      = 78
)

// failure is an error that knows how the program should end, and what the
// reader can do about it.
type failure struct {
	code int
	hint string // "" for none
	err  error
}

func (f *failure) Error() string { return f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

// hinted returns err with what to do about it.
func hinted(err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	f := &failure{code: codeOf(err), hint: fmt.Sprintf(format, args...), err: err}
	return f
}

// coded returns err with an exit code of its own and what to do about it.
func coded(code int, err error, format string, args ...any) error {
	if err == nil {
		return nil
	}
	return &failure{code: code, hint: fmt.Sprintf(format, args...), err: err}
}

// usage returns err as a mistake in the command line of cmd.
func usage(cmd *cobra.Command, err error) error {
	if err == nil {
		return nil
	}
	return coded(exitUsage, err, "%s --help says what it takes", cmd.CommandPath())
}

// report tells the reader of err and returns the exit code for it.
func (a *app) report(err error) int {
	code, hint := codeOf(err), hintOf(err)
	fmt.Fprintf(a.stderr, "keystead: %s\n", clean(strings.TrimPrefix(err.Error(), "client: ")))
	if hint != "" {
		fmt.Fprintf(a.stderr, "hint: %s\n", hint)
	}
	return code
}

func codeOf(err error) int {
	if f, ok := errors.AsType[*failure](err); ok {
		return f.code
	}
	if e, ok := errors.AsType[*client.Error](err); ok {
		switch e.Status {
		case http.StatusUnauthorized, http.StatusForbidden:
			return exitRefused
		case http.StatusNotFound:
			return exitNotFound
		case http.StatusConflict:
			return exitConflict
		case http.StatusTooManyRequests, http.StatusServiceUnavailable:
			return exitUnreachable
		}
		return exitFailed
	}
	if _, ok := errors.AsType[*url.Error](err); ok {
		return exitUnreachable
	}
	return exitFailed
}

// hintOf is what to do about err, as far as its kind tells.
func hintOf(err error) string {
	if f, ok := errors.AsType[*failure](err); ok {
		return f.hint
	}
	if e, ok := errors.AsType[*client.Error](err); ok {
		switch {
		case e.Status == http.StatusUnauthorized:
			return "the API key is not, or no longer, known to this server; is --data the directory of the server at --url?"
		case e.Status == http.StatusForbidden:
			return "ask an administrator of the organisation for a role that holds it"
		case e.RetryAfter > 0:
			return fmt.Sprintf("try again in %s", e.RetryAfter.Round(time.Second))
		case e.Status >= http.StatusInternalServerError && e.RequestID != "":
			return "the server's log says more under request_id " + e.RequestID
		}
		return ""
	}
	if _, ok := errors.AsType[*net.OpError](err); ok {
		return "is the server running? keystead serve starts it; --url or --data say which one is meant"
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return "the server did not answer in time"
	}
	return ""
}
