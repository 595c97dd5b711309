package cli

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"keystead/client"
)

// issuing is what keystead cert issue is asked for.
type issuing struct {
	thing     string // by id or alias; "" for a server
	server    string // its name; "" for a thing
	names     []string
	ca        string
	profile   string
	algorithm string
	dir       string
	file      string // the files' name without its ending
	force     bool
}

func certIssue(a *app) *cobra.Command {
	var in issuing
	cmd := &cobra.Command{
		Use:   "issue (--thing THING | --server NAME)",
		Short: "Make a key and get a certificate for it, into files",
		Long: `Make a key, and get a certificate for it from the server, for a thing or for a
server of another product, such as a broker. The key is made here and stays here:
only a request signed with it is sent.

Three files are written: NAME.key, the private key, which only its owner may read;
NAME.crt, the certificate, with the CAs between it and the root; and NAME-chain.crt,
the CAs above it, which whoever is to trust it needs. NAME is the thing or the server
as it was given, unless --name says otherwise. Files that are there stay as they are,
unless --force is given.

The certificate of a thing names it by its id and becomes a credential of it: it ends
with the thing, and with keystead cert revoke.`,
		Example: `  keystead cert issue --thing 0190a5d2-7c1e-7a3b-9f0e-2b6d7e1c4a55 --name meter
  keystead cert issue --server broker.example --alt 10.0.0.7 --dir /etc/mosquitto/certs`,
		Args: cobra.NoArgs,
		RunE: a.withClient(func(cmd *cobra.Command, c *client.Client, _ []string) error {
			if (in.thing == "") == (in.server == "") {
				return usage(cmd, errors.New("say who it is for: --thing or --server, one of the two"))
			}
			if in.thing != "" && len(in.names) > 0 {
				return usage(cmd, errors.New("--alt is for the names of a server"))
			}
			return in.run(a, cmd, c)
		}),
	}
	f := cmd.Flags()
	f.StringVar(&in.thing, "thing", "", "the `thing` it is for, by id or alias")
	f.StringVar(&in.server, "server", "", "the name or address of the `server` it is for")
	f.StringArrayVar(&in.names, "alt", nil, "one more `name` or address of the server; may be repeated")
	f.StringVar(&in.ca, "ca", "", "the `CA` it is issued from; the default one if left out")
	f.StringVar(&in.profile, "profile", "", "the issuance `profile`; that of devices or servers if left out")
	f.StringVar(&in.algorithm, "algorithm", "ecdsa-p256", "the `kind` of the key: ecdsa-p256, ecdsa-p384, ed25519, rsa-2048, rsa-3072 or rsa-4096")
	f.StringVar(&in.dir, "dir", ".", "the `directory` for the files; made if it is not there")
	f.StringVar(&in.file, "name", "", "the `name` of the files, without their endings")
	f.BoolVar(&in.force, "force", false, "replace files that are there")
	must(cmd.RegisterFlagCompletionFunc("thing", a.completeDevices()))
	must(cmd.RegisterFlagCompletionFunc("ca", a.completeCAs()))
	must(cmd.RegisterFlagCompletionFunc("algorithm", cobra.FixedCompletions(slices.Sorted(func(yield func(string) bool) {
		for name := range keyMakers {
			if !yield(name) {
				return
			}
		}
	}), cobra.ShellCompDirectiveNoFileComp)))
	must(cmd.MarkFlagDirname("dir"))
	return cmd
}

// run makes room for the files first, so that nothing is issued that cannot be
// kept, and lets go of what it made if anything fails.
func (in issuing) run(a *app, cmd *cobra.Command, c *client.Client) error {
	generate, ok := keyMakers[in.algorithm]
	if !ok {
		return usage(cmd, fmt.Errorf("%q is no kind of key that is made here", in.algorithm))
	}
	template, device, err := in.request(cmd, c)
	if err != nil {
		return err
	}
	files, err := in.open()
	if err != nil {
		return err
	}
	defer files.discard()
	ca, err := in.issuer(cmd, c)
	if err != nil {
		return err
	}
	chain, err := above(cmd, c, ca)
	if err != nil {
		return err
	}
	key, err := generate()
	if err != nil {
		return err
	}
	csr, err := x509.CreateCertificateRequest(rand.Reader, template, key)
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	defer clear(text)
	defer clear(der)
	if err := files.key.write(text); err != nil {
		return err
	}
	cert, err := c.Sign(cmd.Context(), ca.ID, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: csr})), in.profile, device)
	if err != nil {
		return err
	}
	leaf, err := c.CertificatePEM(cmd.Context(), cert.Serial)
	if err == nil {
		err = files.keep(leaf, chain)
	}
	if err != nil {
		return hinted(fmt.Errorf("the certificate %s was issued and could not be kept: %w", cert.Serial, err), "keystead cert revoke %s takes it back", cert.Serial)
	}
	a.done("%s: the private key; keep it secret", files.key.path)
	a.done("%s: the certificate of %s, serial %s, good until %s", files.cert.path, cert.CommonName, cert.Serial, when(cert.NotAfter))
	a.done("%s: the CAs above it, for whoever is to trust it", files.chain.path)
	return nil
}

// request is what is asked for, and for which device.
func (in *issuing) request(cmd *cobra.Command, c *client.Client) (*x509.CertificateRequest, string, error) {
	if in.file == "" {
		in.file = in.thing + in.server
	}
	if in.file != filepath.Base(in.file) || strings.HasPrefix(in.file, ".") {
		return nil, "", usage(cmd, fmt.Errorf("%q does not do as the name of files; give one with --name", in.file))
	}
	if in.thing != "" {
		d, err := c.Device(cmd.Context(), in.thing)
		if err != nil {
			return nil, "", noDevice(err)
		}
		return &x509.CertificateRequest{Subject: pkix.Name{CommonName: d.ID}}, d.ID, nil
	}
	if in.profile == "" {
		in.profile = "server"
	}
	r := &x509.CertificateRequest{Subject: pkix.Name{CommonName: in.server}}
	for _, name := range append([]string{in.server}, in.names...) {
		if ip, err := netip.ParseAddr(name); err == nil {
			r.IPAddresses = append(r.IPAddresses, ip.AsSlice())
		} else {
			r.DNSNames = append(r.DNSNames, name)
		}
	}
	return r, "", nil
}

func (in issuing) issuer(cmd *cobra.Command, c *client.Client) (client.CA, error) {
	if in.ca != "" {
		ca, err := c.CA(cmd.Context(), in.ca)
		return ca, noCA(err)
	}
	for ca, err := range c.CAs(cmd.Context()) {
		if err != nil || ca.Default {
			return ca, err
		}
	}
	return client.CA{}, hinted(errors.New("the organisation has no CA to issue from"), "keystead ca create makes one")
}

// above returns the certificates of a CA and of those above it, in PEM, the root last.
func above(cmd *cobra.Command, c *client.Client, ca client.CA) (string, error) {
	var chain strings.Builder
	for {
		chain.WriteString(ca.Certificate + ca.Chain)
		if ca.Parent == "" {
			return chain.String(), nil
		}
		var err error
		if ca, err = c.CA(cmd.Context(), ca.Parent); err != nil {
			return "", err
		}
	}
}

// keyMakers make the kinds of keys that issuing takes.
var keyMakers = map[string]func() (crypto.Signer, error){
	"ecdsa-p256": func() (crypto.Signer, error) { return ecdsa.GenerateKey(elliptic.P256(), rand.Reader) },
	"ecdsa-p384": func() (crypto.Signer, error) { return ecdsa.GenerateKey(elliptic.P384(), rand.Reader) },
	"ed25519":    func() (crypto.Signer, error) { _, key, err := ed25519.GenerateKey(rand.Reader); return key, err },
	"rsa-2048":   func() (crypto.Signer, error) { return rsa.GenerateKey(rand.Reader, 2048) },
	"rsa-3072":   func() (crypto.Signer, error) { return rsa.GenerateKey(rand.Reader, 3072) },
	"rsa-4096":   func() (crypto.Signer, error) { return rsa.GenerateKey(rand.Reader, 4096) },
}

// outFile is a file under a name of its own until all of it is there.
type outFile struct {
	path  string
	part  *os.File
	force bool
}

type outFiles struct{ key, cert, chain *outFile }

// open makes the files, or says which is there already.
func (in issuing) open() (*outFiles, error) {
	if err := os.MkdirAll(in.dir, 0o750); err != nil {
		return nil, err
	}
	f := &outFiles{}
	for ending, to := range map[string]**outFile{".key": &f.key, ".crt": &f.cert, "-chain.crt": &f.chain} {
		path := filepath.Join(in.dir, in.file+ending)
		if _, err := os.Lstat(path); !in.force && !errors.Is(err, fs.ErrNotExist) {
			f.discard()
			return nil, coded(exitConflict, fmt.Errorf("%s is there already", path), "--force replaces it; --dir and --name put the files elsewhere")
		}
		part, err := os.CreateTemp(in.dir, "."+in.file+ending+".*") // which only its owner may read
		if err != nil {
			f.discard()
			return nil, err
		}
		*to = &outFile{path, part, in.force}
	}
	return f, nil
}

func (o *outFile) write(text []byte) error {
	if _, err := o.part.Write(text); err != nil {
		return err
	}
	return o.part.Sync()
}

// keep writes the certificates, and gives the files their names.
func (f *outFiles) keep(leaf, chain string) error {
	between, _ := splitRoot(chain)
	err := errors.Join(f.cert.write([]byte(leaf+between)), f.chain.write([]byte(chain)), f.cert.part.Chmod(0o644), f.chain.part.Chmod(0o644))
	if err != nil {
		return err
	}
	for _, o := range []*outFile{f.key, f.cert, f.chain} {
		place := os.Link // which replaces nothing
		if o.force {
			place = os.Rename
		}
		if err := place(o.part.Name(), o.path); err != nil {
			return err
		}
	}
	return nil
}

// discard removes what did not get its name.
func (f *outFiles) discard() {
	for _, o := range []*outFile{f.key, f.cert, f.chain} {
		if o != nil {
			o.part.Close()
			os.Remove(o.part.Name())
		}
	}
}

// splitRoot takes the last certificate, the root, off a chain in PEM.
func splitRoot(chain string) (between, root string) {
	i := strings.LastIndex(chain, "-----BEGIN CERTIFICATE-----")
	if i < 0 {
		return "", ""
	}
	return chain[:i], chain[i:]
}
