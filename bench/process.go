package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"keystead/psk"
)

// The load comes from a process of its own, on the other CPU, so that the
// server's accounts are of the server alone. It is this program in another role.

const roleEnv = "KEYSTEAD_BENCH_ROLE"

// play runs a role and returns the exit code.
func play(role string) int {
	var order order
	err := json.NewDecoder(os.Stdin).Decode(&order)
	if err == nil {
		switch role {
		case "https":
			err = httpsLoad(order)
		case "auth":
			err = authLoad(order)
		case "verify":
			err = verifyLoad(order)
		case "handshake":
			err = handshakeLoad(order)
		case "certificates":
			err = certificateLoad(order)
		case "mix":
			err = mixLoad(order)
		case "est":
			err = estLoad(order)
		case "server":
			err = hostServer(order)
		case "coap":
			err = coapLoad(order)
		case "bootstrap":
			err = bootstrapLoad(order, false)
		case "bootstrap-rotate":
			err = bootstrapLoad(order, true)
		case "psk":
			err = pskLoad(order, "/api/v1/psk", map[string]any{})
		case "psk-bulk":
			err = pskLoad(order, "/api/v1/psk/bulk", map[string]any{"count": psk.Batch})
		case "gocoap":
			err = goCoAPServer(order)
		case "keys":
			err = keysLoad(order)
		case "echo":
			err = echoServer(order)
		case "pion":
			err = pionServer(order)
		case "pioncertificates":
			err = pionCertificateServer(order)
		default:
			err = fmt.Errorf("no such role: %s", role)
		}
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "bench %s: %v\n", role, err)
		return 1
	}
	return 0
}

// order is what a role is to do.
type order struct {
	Addr    string
	CoAP    string
	Token   string // of the administrator
	Tokens  []string
	What    string // of several things a role does
	PID     int    // of the server, whose CPU time is to be taken when all connections are there; 0 for none
	Workers int
	Time    time.Duration
	Paths   []string
	Keys    []psKey
	Certs   []certificate
	CA      []byte   // DER, of what a server believes
	Echo    bool     // ask what only sends back what it got
	Factory *factory // whose certificates let devices enrol
	Serve   hosting  // of a server in this program
}

// psKey is a pre-shared key of a device.
type psKey struct {
	Identity string
	Secret   []byte
}

// result is what a load was.
type result struct {
	Done, Failed int
	P50, P99     time.Duration
	Error        string
	CPU          time.Duration   // of the server whose PID was given
	By           map[string]part // of a mixed load
}

// part is one kind of operation of a mixed load.
type part struct {
	Done        int
	First, Last time.Duration // p99 in the first and the last tenth of the time
}

// load has a load process do what o says, and returns what came of it.
func (r *run) load(role string, o order) (res result, err error) {
	o.Time = r.time
	in, err := json.Marshal(o)
	if err != nil {
		return res, err
	}
	cmd := pinned(1, os.Args[0])
	cmd.Env = append(os.Environ(), roleEnv+"="+role)
	cmd.Stdin = bytes.NewReader(in)
	out, err := cmd.Output()
	if err != nil {
		return res, err
	}
	if err := json.Unmarshal(out, &res); err != nil {
		return res, err
	}
	if res.Failed > res.Done/1000 || res.Done == 0 {
		return res, fmt.Errorf("%d of %d failed: %s", res.Failed, res.Done+res.Failed, res.Error)
	}
	return res, nil
}

// hammer does something in several goroutines for a time and prints the result.
func hammer(o order, do func(worker, i int) error) error {
	var mu sync.Mutex
	var all []time.Duration
	var res result
	var wg sync.WaitGroup
	if o.PID != 0 {
		for w := range o.Workers {
			wg.Go(func() { _ = do(w, 0) }) // makes its connection
		}
		wg.Wait()
	}
	before, _ := cpu(o.PID)
	started := time.Now()
	for w := range o.Workers {
		wg.Go(func() {
			var took []time.Duration
			for i := 0; time.Since(started) < o.Time; i++ {
				t := time.Now()
				if err := do(w, i); err != nil {
					mu.Lock()
					res.Failed++
					res.Error = err.Error()
					mu.Unlock()
					continue
				}
				took = append(took, time.Since(t))
			}
			mu.Lock()
			all = append(all, took...)
			mu.Unlock()
		})
	}
	wg.Wait()
	if after, err := cpu(o.PID); err == nil {
		res.CPU = after - before
	}
	slices.Sort(all)
	res.Done, res.P50, res.P99 = len(all), quantile(all, 0.5), quantile(all, 0.99)
	return json.NewEncoder(os.Stdout).Encode(res)
}

func httpsLoad(o order) error {
	c := newCaller(o)
	return hammer(o, func(int, int) error { return c.call(http.MethodGet, o.Paths[rand.IntN(len(o.Paths))], nil, nil) })
}

// process is a server that runs.
type process struct {
	cmd   *exec.Cmd
	at    map[string]string // where it listens
	ready time.Duration     // from its start to the first 200 of /readyz
}

// serve starts the server on a data directory and waits until it is ready. For
// profiles that is the same server in this program.
func (r *run) serve(dir string) (*process, error) {
	if r.profiles != "" {
		return r.host(dir, hosting{Profile: filepath.Join(r.profiles, r.current+"-"+filepath.Base(dir))})
	}
	binary, err := filepath.Abs(r.binary)
	if err != nil {
		return nil, err
	}
	args := []string{"serve", "--data", dir}
	for _, set := range serving {
		args = append(args, "--set", set)
	}
	return r.start(pinned(0, binary, args...), dir)
}

// serving is how the servers under measurement are configured: as they come, on any
// free ports, and without the limits that keep a single client from doing what a
// benchmark does.
var serving = []string{
	"https.listen=127.0.0.1:0", "http.listen=127.0.0.1:0", "ops.listen=127.0.0.1:0", "coap.udp=127.0.0.1:0", "coap.tcp=127.0.0.1:0",
	"log.level=error", "public_url=", "limits.per_address.per_second=0", "limits.per_credential.per_second=0",
	"coap.handshake_rate=0", "coap.request_rate=0", "coap.max_half_open_source=1000",
}

// start starts a server, of whatever program, and waits until it is ready.
func (r *run) start(cmd *exec.Cmd, dir string) (*process, error) {
	endpoints := filepath.Join(dir, "endpoints.json")
	os.Remove(endpoints)
	cmd.Env = append(os.Environ(), append(cmd.Env, "GOMAXPROCS=1")...)
	p := &process{cmd: cmd}
	started := time.Now()
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	for {
		if time.Since(started) > time.Minute || r.ctx.Err() != nil {
			p.stop()
			return nil, errors.New("the server did not get ready")
		}
		if p.at == nil {
			if b, err := os.ReadFile(endpoints); err == nil {
				_ = json.Unmarshal(b, &p.at)
			}
		}
		if p.at != nil {
			res, err := http.Get("http://" + p.at["ops"] + "/readyz")
			if err == nil {
				res.Body.Close()
				if res.StatusCode == http.StatusOK {
					p.ready = time.Since(started)
					return p, nil
				}
			}
		}
		time.Sleep(time.Millisecond)
	}
}

func (p *process) pid() int { return p.cmd.Process.Pid } // taskset becomes what it starts

// stop ends the server as an operator does, and waits.
func (p *process) stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	_ = p.cmd.Wait()
}

// kill ends it at once.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
}

// cost returns the server's CPU time for each of what a load did, in
// microseconds.
func (p *process) cost(load func() (result, error)) (float64, result, error) {
	before, err := cpu(p.pid())
	if err != nil {
		return 0, result{}, err
	}
	res, err := load()
	if err != nil {
		return 0, res, err
	}
	if res.CPU > 0 { // the load's own account leaves out how it began
		return float64(res.CPU.Microseconds()) / float64(res.Done), res, nil
	}
	after, err := cpu(p.pid())
	return float64((after - before).Microseconds()) / float64(res.Done), res, err
}

// httpsBench measures requests over HTTPS.
func httpsBench(r *run) error {
	var contenders []contender
	var results []result
	for i, n := range []int{1000, r.devices} {
		f, err := r.fleetOf(n)
		if err != nil {
			return err
		}
		p, err := r.serve(f.dir)
		if err != nil {
			return err
		}
		defer p.stop()
		o := order{Addr: p.at["https"], Workers: 16, Token: f.admin.APIKey}
		for _, m := range f.some {
			o.Paths = append(o.Paths, "/api/v1/devices/"+m.device)
		}
		results = append(results, result{})
		contenders = append(contenders, contender{thousands(n), func() (float64, error) {
			cost, res, err := p.cost(func() (result, error) { return r.load("https", o) })
			results[i] = res
			return cost, err
		}})
	}
	got, err := r.inTurns(contenders...)
	if err != nil {
		return err
	}
	rows := [][]string{{"devices", "server CPU", "requests a second of it", "p50, p99 of the last round", "goal"}}
	for i, s := range got {
		goals := ""
		if i == 1 {
			v := ratio(got[1], got[0])
			goals = figure(v) + " times that at 1,000, " + r.verdict(v, atMost(1.3, " times"))
		}
		rows = append(rows, []string{s.name, s.text(" µs"), figure(1e6 / s.median()), fmt.Sprintf("%v, %v", results[i].P50, results[i].P99), goals})
	}
	r.table(rows...)
	return nil
}

// startBench measures start-up and idle memory.
func startBench(r *run) error {
	rows := [][]string{{"store", "ready after", "goal", "resident", "of that not the file", "goal"}}
	empty := func() (string, error) { return os.MkdirTemp(r.dir, "empty-*") }
	for _, c := range []struct {
		name  string
		dir   func() (string, error)
		crash bool
		limit float64
		mem   goal
		anon  bool
	}{
		{"first start, in an empty directory", empty, false, 0.3, atMost(40, " MB"), false},
		{"thousand devices", func() (string, error) { f, err := r.fleetOf(1000); return dirOf(f), err }, false, 0.3, atMost(40, " MB"), false},
		{thousands(r.devices) + " devices", func() (string, error) { f, err := r.fleetOf(r.devices); return dirOf(f), err }, false, 3, atMost(150, " MB"), true},
		{thousands(r.devices) + " devices, after kill -9", func() (string, error) { f, err := r.fleetOf(r.devices); return dirOf(f), err }, true, 5, atMost(150, " MB"), true},
	} {
		var all, anonymous series
		got, err := r.inTurns(contender{c.name, func() (float64, error) {
			dir, err := c.dir()
			if err != nil {
				return 0, err
			}
			if c.crash {
				p, err := r.serve(dir)
				if err != nil {
					return 0, err
				}
				p.kill()
			}
			p, err := r.serve(dir)
			if err != nil {
				return 0, err
			}
			defer p.stop()
			time.Sleep(time.Second) // what starts lazily has started
			a, b := memory(p.pid())
			all.values = append(all.values, a/1e6)
			anonymous.values = append(anonymous.values, b/1e6)
			return p.ready.Seconds(), nil
		}})
		if err != nil {
			return err
		}
		judged := all
		if c.anon {
			judged = anonymous
		}
		rows = append(rows, []string{
			c.name, got[0].text(" s"), r.verdict(got[0].median(), atMost(c.limit, " s")),
			all.text(" MB"), anonymous.text(" MB"), r.verdict(judged.median(), c.mem),
		})
	}
	r.table(rows...)
	return nil
}

func dirOf(f *fleet) string {
	if f == nil {
		return ""
	}
	return f.dir
}

// started waits for a helper process to say where it listens.
func started(out io.Reader) (string, error) {
	line, err := bufio.NewReader(out).ReadString('\n')
	return strings.TrimSpace(line), err
}
