package cli

import (
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"keystead/pki"
)

// ceremonyCommand is what is done on a machine that is never on a network: it
// keeps the root's key, and signs the requests that servers bring. It reads and
// writes files, and talks to no server.
func ceremonyCommand(a *app) *cobra.Command {
	return group("ceremony", "Keep an offline root: files only, no server", ceremonyRoot(a), ceremonySign(a), ceremonyCRL(a))
}

// ceremony is what the commands of one share.
type ceremony struct {
	certificate, key, out string
	years                 int
}

func (c *ceremony) flags(cmd *cobra.Command) {
	cmd.Flags().StringVar(&c.certificate, "root", "root.pem", "the root's certificate, a `file`")
	cmd.Flags().StringVar(&c.key, "key", "root.key", "the root's private key, a `file` only its owner may read")
}

func (c *ceremony) load(a *app) (pki.OfflineRoot, error) {
	var root pki.OfflineRoot
	cert, err := a.readFile(c.certificate)
	if err != nil {
		return root, err
	}
	info, err := os.Stat(c.key)
	if err != nil {
		return root, err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return root, fmt.Errorf("%s can be read by others; chmod 600 it", c.key)
	}
	key, err := a.readFile(c.key)
	if err != nil {
		return root, err
	}
	defer clear(key)
	return pki.LoadOfflineRoot(cert, key)
}

// create writes a file that must not be there yet.
func create(name string, mode os.FileMode, b []byte) error {
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if err != nil {
		return err
	}
	defer f.Close()
	if _, err := f.Write(b); err != nil {
		return err
	}
	return f.Sync()
}

func ceremonyRoot(a *app) *cobra.Command {
	var c ceremony
	var name, algorithm string
	cmd := &cobra.Command{
		Use: "root", Short: "Make a root: its key, for its owner only, and its certificate", Args: cobra.NoArgs,
		Example: `  keystead ceremony root --name "Acme root CA"`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			root, err := pki.NewOfflineRoot(name, pki.Algorithm(algorithm), now().AddDate(c.years, 0, 0), now())
			if err != nil {
				return usage(cmd, err)
			}
			key, err := x509.MarshalPKCS8PrivateKey(root.Key)
			if err != nil {
				return err
			}
			defer clear(key)
			if err := create(c.key, 0o600, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: key})); err != nil {
				return err
			}
			if err := create(c.certificate, 0o644, certificatePEM(root.Certificate)); err != nil {
				return err
			}
			a.done("wrote %s and %s; keep the key where no network reaches it", c.certificate, c.key)
			return nil
		},
	}
	c.flags(cmd)
	cmd.Flags().StringVar(&name, "name", "", "the `name` of the root")
	cmd.Flags().StringVar(&algorithm, "algorithm", string(pki.P384), "ecdsa-p256, ecdsa-p384, ed25519, rsa-3072 or rsa-4096")
	cmd.Flags().IntVar(&c.years, "years", 20, "how long it lasts")
	return cmd
}

func certificatePEM(c *x509.Certificate) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw})
}

// now is the time of the machine; what is made offline has no server's clock.
func now() time.Time { return time.Now() } //nolint:forbidigo // as said

func ceremonySign(a *app) *cobra.Command {
	var c ceremony
	var pathLen int
	cmd := &cobra.Command{
		Use: "intermediate CSR", Short: "Sign the request of an issuing CA, made by ca create --request-only", Args: cobra.ExactArgs(1),
		Long: `Sign the request of an issuing CA. The answer has its certificate and the root's, to
be taken in by keystead ca import --pending.`,
		RunE: func(_ *cobra.Command, args []string) error {
			root, err := c.load(a)
			if err != nil {
				return err
			}
			b, err := a.readFile(args[0])
			if err != nil {
				return err
			}
			cert, err := root.SignCA(b, pathLen, now().AddDate(c.years, 0, 0), now())
			if err != nil {
				return err
			}
			out := append(certificatePEM(cert), certificatePEM(root.Certificate)...)
			if c.out == "" {
				_, err = a.stdout.Write(out)
				return err
			}
			return create(c.out, 0o644, out)
		},
	}
	c.flags(cmd)
	cmd.Flags().StringVar(&c.out, "out", "", "the `file` to write; standard output if left out")
	cmd.Flags().IntVar(&c.years, "years", 10, "how long it lasts, at most as long as the root")
	cmd.Flags().IntVar(&pathLen, "path-length", 0, "how many CAs may be below it")
	return cmd
}

func ceremonyCRL(a *app) *cobra.Command {
	var c ceremony
	var serials []string
	var months int
	var number uint64
	cmd := &cobra.Command{
		Use: "crl", Short: "Make the root's revocation list", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			root, err := c.load(a)
			if err != nil {
				return err
			}
			der, err := root.CRL(serials, number, now(), now().AddDate(0, months, 0))
			if err != nil {
				return usage(cmd, err)
			}
			out := pem.EncodeToMemory(&pem.Block{Type: "X509 CRL", Bytes: der})
			if c.out == "" {
				_, err = a.stdout.Write(out)
				return err
			}
			return create(c.out, 0o644, out)
		},
	}
	c.flags(cmd)
	cmd.Flags().StringVar(&c.out, "out", "", "the `file` to write; standard output if left out")
	cmd.Flags().StringArrayVar(&serials, "revoked", nil, "the `serial` number of a revoked CA, in hex; may be repeated")
	cmd.Flags().IntVar(&months, "months", 12, "until when the next list is due")
	cmd.Flags().Uint64Var(&number, "number", 1, "the number of this list, higher than that of the one before")
	return cmd
}
