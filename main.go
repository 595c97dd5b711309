// Keystead gives every device one identity, whatever protocol it speaks.
package main

import (
	"context"
	"os"

	"keystead/cli"
)

func main() {
	os.Exit(cli.Main(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr, os.Getenv))
}
