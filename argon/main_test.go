package argon_test

import (
	"fmt"
	"os"
	"testing"

	"go.uber.org/goleak"

	"keystead/argon"
)

// The test program is also what a Pool of the tests starts.
func TestMain(m *testing.M) {
	if len(os.Args) == 2 && os.Args[1] == "serve" {
		if err := argon.Serve(os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	goleak.VerifyTestMain(m)
}
