// Command bench measures the server beside its limits: each figure in the same
// run as that of the bare library, or of the server without what is measured, in
// rounds that take turns, since a machine's speed drifts by more than most
// differences. It prints what it finds and, with -out, writes it as Markdown.
//
//	make bench              all
//	make bench NAME=store   those whose name matches
//	make bench-scale        what must not grow, with DEVICES=1000000
//	make soak T=10m         everything at once for a time
package main

import (
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"regexp"
	"syscall"
	"time"
)

// bench is one of the benchmarks.
type bench struct {
	name  string
	about string // what is measured, and against what
	run   func(*run) error
}

var benches = []bench{
	{"store", "Durable updates a second: the store, bare bbolt `Update` and bbolt `Batch` as it comes. An update writes a record of 600 bytes under a time-ordered key, a unique index entry of 32 random bytes, and an index entry by state.", storeBench},
	{"resolve", "A resolve in the process: a pre-shared key is found, its device read and its state looked at, by random identities.", resolveBench},
	{"https", "Requests over HTTPS on kept connections, by the server's own CPU time: reading random devices from a store of a thousand and of the large number.", httpsBench},
	{"keys", "Who the caller is, asked over HTTPS on 64 kept connections with the key of a thing, an API key and a login key, by the server's own CPU time; the bare one is net/http over the same TLS, which sends a POST of that length back.", keysBench},
	{"authsets", "Auth requests, and verifications of device tokens as a gateway asks for them, by the server's own CPU time. Requests are signed with Ed25519 over bytes that were not seen before, unless it says that they come again; tokens are those of two thousand devices.", authSetsBench},
	{"start", "From the start of the process to the first 200 of /readyz, and memory then.", startBench},
	{"handshake", "Full DTLS handshakes with a pre-shared key (PSK_AES_128_CCM_8), and their ends, by the server's own CPU time; the bare one is pion's listener with a key that is at hand.", handshakeBench},
	{"certificates", "Full DTLS handshakes in which both sides show ECDSA certificates (P-256, AES_128_CCM_8), and their ends, by the server's own CPU time. Each server verifies the chain of its client; ours also looks up whose it is and that it is not revoked.", certificateBench},
	{"coap", "Confirmable CoAP GETs on fifty open DTLS sessions, by the server's own CPU time, beside go-coap's own server and libcoap's, which send a constant of about the size of what ours looks up: who the caller is.", coapBench},
	{"enrol", "EST enrolments, each recorded before it is answered, by the server's own CPU time; the bare one parses and checks the request and signs the certificate, and does nothing else.", enrolBench},
	{"bootstrap", "LwM2M bootstraps of 64 clients over DTLS, handshake included, by the server's own CPU time.", bootstrapBench},
	{"psk", "Pre-shared keys made over the REST API, each for a new device and recorded before it is answered, one a request and a thousand.", pskBench},
	{"import", "Making devices with a pre-shared key each, a thousand a transaction, against bare bbolt taking the same bytes.", importBench},
	{"crl", "Lists of revoked certificates after one revocation more, by CPU time in the process; the bare one is made of entries in memory, and kept nowhere.", crlBench},
	{"scale", "What should not grow with the fleet, in the process.", scaleBench},
}

// settings are the flags.
type settings struct {
	rounds  int
	time    time.Duration // of one measurement
	binary  string
	keep    string // where large stores are kept from run to run; "" for nowhere
	devices int    // in the large store

	revoked  int    // certificates of a CA
	profiles string // the directory profiles are written to; "" for none
}

// run is what a benchmark works with.
type run struct {
	settings

	ctx    context.Context
	dir    string // that ends with the run
	fleets map[int]*fleet
	out    io.Writer
	missed int

	current string // the benchmark that runs
}

func main() {
	if role := os.Getenv(roleEnv); role != "" {
		os.Exit(play(role))
	}
	var s settings
	name := flag.String("name", "", "only benchmarks whose name matches this `regexp`")
	out := flag.String("out", "", "write the results to this `file`, too, in Markdown")
	flag.IntVar(&s.rounds, "rounds", 5, "how often each measurement is taken")
	flag.DurationVar(&s.time, "time", 2*time.Second, "how long one takes")
	flag.StringVar(&s.binary, "keystead", "bin/keystead", "the server's `binary`")
	flag.StringVar(&s.keep, "keep", "", "keep the stores that were built in this `directory`, and use them if they are there")
	flag.IntVar(&s.devices, "devices", 1_000_000, "how many devices the large store has")
	flag.IntVar(&s.revoked, "revoked", 100_000, "how many certificates of a CA are revoked")
	flag.StringVar(&s.profiles, "profiles", "", "write profiles of the server's CPU and allocations to this `directory`")
	lasting := flag.Duration("soak", 0, "instead, load a server with everything at once for so `long`, and look how it develops")
	flag.Parse()
	if err := measure(s, *name, *out, *lasting); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func measure(s settings, name, out string, lasting time.Duration) (err error) {
	match, err := regexp.Compile(name)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	dir, err := os.MkdirTemp(".", ".bench-*") // on the disk of the project, not in memory
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if dir, err = filepath.Abs(dir); err != nil {
		return err
	}
	r := &run{settings: s, ctx: ctx, dir: dir, fleets: map[int]*fleet{}, out: os.Stdout}
	if out != "" {
		f, err := os.Create(out + ".part")
		if err != nil {
			return err
		}
		defer os.Remove(f.Name())
		defer f.Close()
		r.out = io.MultiWriter(os.Stdout, f)
		defer func() {
			if err == nil {
				err = os.Rename(f.Name(), out)
			}
		}()
	}
	if s.profiles != "" {
		if r.profiles, err = filepath.Abs(s.profiles); err == nil {
			err = os.MkdirAll(r.profiles, 0o700)
		}
		if err != nil {
			return err
		}
	}
	r.head()
	if lasting > 0 {
		if err := soak(r, lasting); err != nil {
			return fmt.Errorf("soak: %w", err)
		}
		fmt.Fprintf(r.out, "\nGoals missed: %d.\n", r.missed)
		return nil
	}
	for _, b := range benches {
		if !match.MatchString(b.name) {
			continue
		}
		fmt.Fprintf(r.out, "\n## %s\n\n%s\n\n", b.name, b.about)
		started := time.Now()
		r.current = b.name
		if err = b.run(r); err != nil {
			return fmt.Errorf("%s: %w", b.name, err)
		}
		fmt.Fprintf(os.Stderr, "(%s took %v)\n", b.name, time.Since(started).Round(time.Second))
	}
	fmt.Fprintf(r.out, "\nGoals missed: %d.\n", r.missed)
	return err
}
