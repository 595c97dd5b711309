package main

import (
	"bufio"
	"cmp"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	crand "crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sync/errgroup"

	"keystead/authsets"
	"keystead/config"
	"keystead/id"
	"keystead/identity"
	"keystead/pki"
	"keystead/psk"
	"keystead/server"
	"keystead/store"
)

// fleet is a data directory with devices.
type fleet struct {
	dir   string
	n     int
	took  time.Duration // to build
	spent time.Duration // of CPU, for that
	size  int64         // of the database
	some  []member      // some of the devices, at random
	admin struct {
		APIKey string `json:"api_key"`
		Org    string `json:"org"`
	}
}

// member is a device of a fleet.
type member struct {
	device, identity string
	secret           []byte
	serial           pki.Serial
	thing            string // its thing key
}

// someOf is how many devices of a fleet are noted, to be asked for.
const someOf = 20_000

// configuration is that of the servers under measurement: as it comes, but
// without the limits that are there to keep a single client from doing what a
// benchmark does.
func configuration(dir string) config.Config {
	c := config.Default()
	c.Data = dir
	c.Limits.PerAddress.PerSecond, c.Limits.PerCredential.PerSecond = 0, 0
	c.HTTPS.Listen, c.HTTP.Listen, c.Ops.Listen, c.CoAP.UDP, c.CoAP.TCP = "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"
	return c
}

// fleetOf returns a data directory with n devices, one of its own for each run
// or one kept from another.
func (r *run) fleetOf(n int) (*fleet, error) {
	if f := r.fleets[n]; f != nil {
		return f, nil
	}
	f := &fleet{dir: filepath.Join(r.dir, "full-"+strconv.Itoa(n)), n: n}
	if r.keep != "" && n > 10_000 {
		f.dir = filepath.Join(r.keep, "full-"+strconv.Itoa(n))
	}
	if _, err := os.Stat(f.list()); errors.Is(err, os.ErrNotExist) {
		if err := f.build(r.ctx); err != nil {
			return nil, fmt.Errorf("a fleet of %d: %w", n, err)
		}
	}
	if err := f.load(); err != nil {
		return nil, err
	}
	r.fleets[n] = f
	return f, nil
}

func (f *fleet) list() string { return filepath.Join(f.dir, "some.txt") }

func (f *fleet) load() error {
	b, err := os.ReadFile(filepath.Join(f.dir, "admin.json"))
	if err != nil {
		return err
	}
	if err := json.Unmarshal(b, &f.admin); err != nil {
		return err
	}
	info, err := os.Stat(filepath.Join(f.dir, "keystead.db"))
	if err != nil {
		return err
	}
	f.size = info.Size()
	if b, err = os.ReadFile(filepath.Join(f.dir, "built.json")); err != nil {
		return err
	}
	var built building
	if err := json.Unmarshal(b, &built); err != nil {
		return err
	}
	f.took, f.spent = built.Took, built.Spent
	file, err := os.Open(f.list())
	if err != nil {
		return err
	}
	defer file.Close()
	for lines := bufio.NewScanner(file); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		secret, err := hex.DecodeString(fields[2])
		if err != nil {
			return err
		}
		f.some = append(f.some, member{fields[0], fields[1], secret, pki.Serial(fields[3]), fields[4]})
	}
	return nil
}

// build makes the devices by way of the rooms, as an import does: two batches at a
// time, so that one is signed while the other is written.
func (f *fleet) build(ctx context.Context) error {
	return f.make(ctx, func(ctx context.Context, s *server.Server, n int) ([]member, error) { return provision(ctx, s, n) })
}

func (f *fleet) make(ctx context.Context, some func(context.Context, *server.Server, int) ([]member, error)) error {
	if err := os.MkdirAll(f.dir, 0o700); err != nil {
		return err
	}
	s, err := server.Build(ctx, configuration(f.dir), slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	defer s.Close()
	if err := f.readAdmin(); err != nil {
		return err
	}
	out, err := os.Create(f.list() + ".part")
	if err != nil {
		return err
	}
	defer out.Close()
	started, before := time.Now(), spent()
	var mu sync.Mutex
	made := 0
	group, ctx := errgroup.WithContext(f.context(ctx))
	for range 2 {
		group.Go(func() error {
			for {
				mu.Lock()
				n := min(psk.Batch, f.n-made)
				made += n
				mu.Unlock()
				if n == 0 {
					return nil
				}
				batch, err := some(ctx, s, n)
				if err != nil {
					return err
				}
				mu.Lock()
				for _, m := range batch {
					if f.n <= someOf || rand.IntN(f.n) < someOf {
						fmt.Fprintf(out, "%s %s %x %s %s\n", m.device, m.identity, m.secret, cmp.Or(m.serial, "-"), cmp.Or(m.thing, "-"))
					}
				}
				mu.Unlock()
			}
		})
	}
	if err := group.Wait(); err != nil {
		return err
	}
	f.took, f.spent = time.Since(started), spent()-before
	if err := out.Close(); err != nil {
		return err
	}
	b, err := json.Marshal(building{f.took, f.spent})
	if err != nil {
		return err
	}
	return errors.Join(os.WriteFile(filepath.Join(f.dir, "built.json"), b, 0o600), os.Rename(out.Name(), f.list()))
}

// building is how long it took to make a fleet.
type building struct{ Took, Spent time.Duration }

func (f *fleet) readAdmin() error {
	b, err := os.ReadFile(filepath.Join(f.dir, "admin.json"))
	if err != nil {
		return err
	}
	return json.Unmarshal(b, &f.admin)
}

// context is that of an administrator of the fleet's organisation.
func (f *fleet) context(ctx context.Context) context.Context {
	return identity.NewContext(ctx, identity.Actor{Kind: identity.User, ID: "bench", Org: f.admin.Org})
}

// enrol makes n devices with two labels and a pre-shared key each.
func enrol(ctx context.Context, s *server.Server, n int) (made []member, err error) {
	err = s.DB.Update(ctx, func(tx store.Tx) error {
		made = made[:0]
		for range n {
			k, secret, err := s.PSK.CreateIn(ctx, tx, newKey())
			if err != nil {
				return err
			}
			made = append(made, member{device: k.Device, identity: string(k.Identity), secret: secret})
		}
		return nil
	})
	return made, err
}

// provision makes n devices with two labels and one of each credential: a
// pre-shared key, a certificate, an accepted auth set and a thing key.
func provision(ctx context.Context, s *server.Server, n int) (made []member, err error) {
	profile, err := s.PKI.Profile(ctx, pki.DeviceProfile)
	if err != nil {
		return nil, err
	}
	made = make([]member, n)
	keys, prepared := make([]crypto.PublicKey, n), make([]*pki.Prepared, n)
	for i := range made {
		key, err := ecdsa.GenerateKey(elliptic.P256(), crand.Reader)
		if err != nil {
			return nil, err
		}
		made[i].identity, keys[i] = id.Random(), key.Public()
		prepared[i], err = s.PKI.Prepare(ctx, pki.Request{
			Org: identity.OrgOf(ctx), Profile: profile, Public: keys[i], Subject: &pki.Subject{CommonName: made[i].identity},
		})
		if err != nil {
			return nil, err
		}
	}
	_, err = s.PKI.IssueAll(ctx, prepared, func(ctx context.Context, tx store.Tx, i int, c *pki.Certificate) error {
		m := &made[i]
		n := newKey()
		n.Identity = psk.Identity(m.identity)
		k, secret, err := s.PSK.CreateIn(ctx, tx, n)
		if err != nil {
			return err
		}
		m.device, m.secret, m.serial = k.Device, secret, c.Serial
		if err := s.PKI.Attach(ctx, tx, m.device, c); err != nil {
			return err
		}
		d, err := s.Devices.GetIn(ctx, tx, m.device)
		if err != nil {
			return err
		}
		thing, err := s.Things.ProvisionIn(ctx, tx, d, "device")
		if err != nil {
			return err
		}
		m.thing = string(thing)
		attributes, err := authsets.Canonicalise(fmt.Appendf(nil, `{"mac":%q}`, m.identity))
		if err != nil {
			return err
		}
		der, err := x509.MarshalPKIXPublicKey(keys[i])
		if err != nil {
			return err
		}
		_, err = s.AuthSets.ProvisionIn(ctx, tx, authsets.New{Identity: attributes, Key: der, Device: m.device})
		return err
	})
	return made, err
}

// newKey is a key for a new device with two labels.
func newKey() psk.New {
	return psk.New{Labels: map[string]string{"site": "site " + strconv.Itoa(rand.IntN(100)), "model": "m1"}}
}

// resolveBench measures a resolve in the process.
func resolveBench(r *run) error {
	rows := [][]string{{"devices", "CPU a resolve", "and its memory", "store's own share", "goal"}}
	for _, n := range []int{1000, r.devices} {
		f, err := r.fleetOf(n)
		if err != nil {
			return err
		}
		s, err := server.Build(r.ctx, configuration(f.dir), slog.New(slog.DiscardHandler))
		if err != nil {
			return err
		}
		resolve := func(i int) error {
			_, err := s.Resolver.Resolve(r.ctx, identity.Proof{PSK: f.some[i%len(f.some)].identity, Transport: identity.CoAPUDP})
			return err
		}
		record := func(i int) error {
			return s.DB.View(r.ctx, func(tx store.Tx) error {
				m := f.some[i%len(f.some)]
				for _, key := range []string{"psk\x00r\x00" + m.identity, "device\x00r\x00" + m.device} {
					if v, err := tx.Get([]byte(key)); v == nil || err != nil {
						return fmt.Errorf("no record %q: %w", key, err)
					}
				}
				return nil
			})
		}
		for i := range f.some { // what a server that runs has in memory
			if err := resolve(i); err != nil {
				return err
			}
		}
		got, err := r.inTurns(
			contender{"resolve", func() (float64, error) { return r.each(resolve) }},
			contender{"record", func() (float64, error) { return r.each(record) }},
		)
		if err != nil {
			return err
		}
		goals := ""
		if n == r.devices {
			goals = r.verdict(got[0].median(), atMost(10, " µs"))
		}
		allocs, bytes := allocations(1000, resolve)
		rows = append(rows, []string{thousands(n), got[0].text(" µs"), fmt.Sprintf("%d B in %d allocations", bytes, allocs), got[1].text(" µs"), goals})
		s.Close()
	}
	r.table(rows...)
	return nil
}

// each returns how many microseconds of CPU time do takes, what the garbage
// collector does for it included: other programs that run do not count.
func (r *run) each(do func(i int) error) (float64, error) {
	started, before := time.Now(), spent()
	n := 0
	at := rand.IntN(someOf)
	for ; n%64 != 0 || time.Since(started) < r.time/2; n++ {
		if err := do(at + n); err != nil {
			return 0, err
		}
	}
	return float64((spent() - before).Nanoseconds()) / 1000 / float64(n), nil
}

// spent is the CPU time of this process.
func spent() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func thousands(n int) string {
	s := strconv.Itoa(n)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

// importBench measures making many devices.
func importBench(r *run) error {
	const n = 20_000
	var size int
	ours := func() (float64, error) {
		dir, err := os.MkdirTemp(r.dir, "import-*")
		if err != nil {
			return 0, err
		}
		defer os.RemoveAll(dir)
		f := &fleet{dir: dir, n: n}
		if err := f.make(r.ctx, enrol); err != nil { // a key each
			return 0, err
		}
		size, err = content(f.dir)
		return n / f.took.Seconds(), err
	}
	bare := func() (float64, error) { return bareImport(r, n) }
	got, err := r.inTurns(contender{"import", ours}, contender{"bare", bare})
	if err != nil {
		return err
	}
	slower := ratio(got[1], got[0])
	r.table(
		[]string{"what", "devices a second", "goals"},
		[]string{"import", got[0].text(""), fmt.Sprintf("100,000 take %.1f s, ", 100_000/got[0].median()) + r.verdict(100_000/got[0].median(), atMost(9, " s"))},
		[]string{fmt.Sprintf("bare bbolt, %d bytes a device in entries of the same size and number", size/n), got[1].text(""), figure(slower) + " times as fast, " + r.verdict(slower, atMost(5, " times"))},
	)
	return nil
}

// open assembles a server on the fleet, in this process.
func (f *fleet) open(ctx context.Context) (*server.Server, error) {
	return server.Build(ctx, configuration(f.dir), slog.New(slog.DiscardHandler))
}

// credentialKinds are what a device of a fleet proves itself with.
var credentialKinds = []struct {
	name  string
	proof func(context.Context, *server.Server, member) (identity.Proof, error)
}{
	{"pre-shared key", func(_ context.Context, _ *server.Server, m member) (identity.Proof, error) {
		return identity.Proof{PSK: m.identity, Transport: identity.CoAPUDP}, nil
	}},
	{"certificate", func(ctx context.Context, s *server.Server, m member) (identity.Proof, error) {
		c, err := s.PKI.Certificate(ctx, string(m.serial))
		if err != nil {
			return identity.Proof{}, err
		}
		leaf, err := c.Parse()
		return identity.Proof{Chain: []*x509.Certificate{leaf}, Transport: identity.HTTPS}, err
	}},
	{"token of an auth set", func(ctx context.Context, s *server.Server, m member) (identity.Proof, error) {
		token, err := s.AuthSets.IssueFor(ctx, m.device)
		return identity.Proof{Scheme: "Bearer", Value: token, Transport: identity.HTTPS}, err
	}},
	{"thing key", func(_ context.Context, _ *server.Server, m member) (identity.Proof, error) {
		return identity.Proof{Scheme: "Thing", Value: m.thing, Transport: identity.HTTPS}, nil
	}},
}
