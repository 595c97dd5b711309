package main

import (
	"bufio"
	"context"
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
	"syscall"
	"time"

	"keystead/config"
	"keystead/identity"
	"keystead/psk"
	"keystead/server"
	"keystead/store"
)

// fleet is a data directory with devices.
type fleet struct {
	dir   string
	n     int
	took  time.Duration // to build; 0 if it was there
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
	f := &fleet{dir: filepath.Join(r.dir, "fleet-"+strconv.Itoa(n)), n: n}
	if r.keep != "" && n > 10_000 {
		f.dir = filepath.Join(r.keep, "fleet-"+strconv.Itoa(n))
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
		f.some = append(f.some, member{fields[0], fields[1], secret})
	}
	return nil
}

// build makes the devices by way of the rooms, as an import does.
func (f *fleet) build(ctx context.Context) error {
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
	started := time.Now()
	ctx = f.context(ctx)
	for made := 0; made < f.n; made += psk.Batch {
		batch, err := enrol(ctx, s, min(psk.Batch, f.n-made))
		if err != nil {
			return err
		}
		for _, m := range batch {
			if f.n <= someOf || rand.IntN(f.n) < someOf {
				fmt.Fprintf(out, "%s %s %x\n", m.device, m.identity, m.secret)
			}
		}
	}
	f.took = time.Since(started)
	if err := out.Close(); err != nil {
		return err
	}
	return os.Rename(out.Name(), f.list())
}

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
			made = append(made, member{k.Device, string(k.Identity), secret})
		}
		return nil
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
		if err := f.build(r.ctx); err != nil {
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
