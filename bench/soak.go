package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"math"
	mrand "math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// soak loads a server with everything at once for a time, and says how its
// memory, goroutines, descriptors and answers develop.
func soak(r *run, lasting time.Duration) error {
	f, err := r.fleetOf(1000)
	if err != nil {
		return err
	}
	p, err := r.serve(f.dir)
	if err != nil {
		return err
	}
	defer p.stop()
	o := order{Addr: p.at["https"], CoAP: p.at["coap_udp"], Workers: 8, Token: f.admin.APIKey}
	for _, m := range f.some {
		o.Keys = append(o.Keys, psKey{m.identity, m.secret})
	}
	r.time = lasting
	type sample struct{ memory, anonymous, goroutines, descriptors, file float64 }
	var samples []sample
	ctx, stop := context.WithCancel(r.ctx)
	var watching sync.WaitGroup
	every := max(lasting/200, 200*time.Millisecond)
	watching.Go(func() {
		for tick := time.NewTicker(every); ; {
			select {
			case <-ctx.Done():
				tick.Stop()
				return
			case <-tick.C:
			}
			var s sample
			s.memory, s.anonymous = memory(p.pid())
			s.goroutines = metric(p.at["ops"], "go_goroutines")
			names, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.pid()))
			s.descriptors = float64(len(names))
			if info, err := os.Stat(filepath.Join(f.dir, "keystead.db")); err == nil {
				s.file = float64(info.Size())
			}
			samples = append(samples, s)
		}
	})
	res, err := r.load("mix", o)
	stop()
	watching.Wait()
	if err != nil {
		return err
	}
	if len(samples) < 20 {
		return fmt.Errorf("only %d samples: soak for longer", len(samples))
	}
	fmt.Fprintf(r.out, "\n## soak\n\n%v of mixed load from %d workers: %s operations, %d failed.\n\n", lasting, o.Workers, thousands(res.Done), res.Failed)
	if res.Failed > 0 {
		fmt.Fprintf(r.out, "The last failure: %s\n\n", res.Error)
	}
	rows := [][]string{{"operation", "done", "p99 in the first tenth", "p99 in the last tenth"}}
	for _, name := range slices.Sorted(maps.Keys(res.By)) {
		b := res.By[name]
		rows = append(rows, []string{name, thousands(b.Done), b.First.String(), b.Last.String()})
	}
	r.table(rows...)
	fmt.Fprintln(r.out)
	samples = samples[len(samples)/4:] // caches and pools are full then
	hours := every.Hours()
	row := func(name, unit string, scale float64, of func(sample) float64, bounded bool) []string {
		values := make([]float64, len(samples))
		for i, s := range samples {
			values[i] = of(s) / scale
		}
		level, slope, noise := line(values)
		verdict := ""
		if bounded {
			// Over the run the line must not have risen by more than the samples vary, or a twentieth.
			rise := slope * float64(len(values))
			verdict = "within noise"
			if rise > max(2*noise, level/20) {
				verdict = "**rises**"
				r.missed++
			}
		}
		return []string{name, figure(level) + unit, fmt.Sprintf("%+.2f%s an hour", slope/hours, unit), figure(noise) + unit, verdict}
	}
	r.table(
		[]string{"of the server", "level", "slope", "deviation", ""},
		row("resident memory", " MB", 1e6, func(s sample) float64 { return s.memory }, false),
		row("of that not the file", " MB", 1e6, func(s sample) float64 { return s.anonymous }, true),
		row("goroutines", "", 1, func(s sample) float64 { return s.goroutines }, true),
		row("descriptors", "", 1, func(s sample) float64 { return s.descriptors }, true),
		row("database", " MB", 1e6, func(s sample) float64 { return s.file }, false),
	)
	fmt.Fprintln(r.out, "\nThe database grows with what is recorded: the audit trail of every change, and the devices that are made.")
	return nil
}

// line fits a straight line to values at equal distances: their mean, the rise
// from one to the next, and how far they deviate from it.
func line(values []float64) (mean, slope, deviation float64) {
	n := float64(len(values))
	var sx, sy, sxx, sxy float64
	for i, y := range values {
		x := float64(i)
		sx, sy, sxx, sxy = sx+x, sy+y, sxx+x*x, sxy+x*y
	}
	slope = (n*sxy - sx*sy) / (n*sxx - sx*sx)
	mean = sy / n
	for i, y := range values {
		d := y - (mean + slope*(float64(i)-sx/n))
		deviation += d * d
	}
	return mean, slope, math.Sqrt(deviation / n)
}

// metric reads a value of /metrics.
func metric(ops, name string) float64 {
	res, err := http.Get("http://" + ops + "/metrics")
	if err != nil {
		return math.NaN()
	}
	defer res.Body.Close()
	b, _ := io.ReadAll(res.Body)
	for l := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(l, name+" "); ok {
			v, _ := strconv.ParseFloat(strings.TrimSpace(rest), 64)
			return v
		}
	}
	return math.NaN()
}

// caller asks a server over HTTPS, as its administrator.
type caller struct {
	http  *http.Client
	addr  string
	token string
}

func newCaller(o order) *caller {
	return &caller{
		http: &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{
			MaxIdleConnsPerHost: o.Workers,
			TLSClientConfig:     &tls.Config{InsecureSkipVerify: true}, // of a server this program started
		}},
		addr: o.Addr, token: o.Token,
	}
}

// call sends in, as JSON, and reads the answer into out, if those are not nil.
func (c *caller) call(method, path string, in, out any) error {
	var body io.Reader
	if in != nil {
		b, err := json.Marshal(in)
		if err != nil {
			return err
		}
		body = bytes.NewReader(b)
	}
	req, err := http.NewRequest(method, "https://"+c.addr+path, body)
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+c.token)
	if in != nil {
		req.Header.Set("Content-Type", "application/json")
	}
	return c.do(req, out)
}

func (c *caller) do(req *http.Request, out any) error {
	b, err := c.read(req)
	if err != nil || out == nil {
		return err
	}
	return json.Unmarshal(b, out)
}

// read returns the body of an answer that says yes.
func (c *caller) read(req *http.Request) ([]byte, error) {
	res, err := c.http.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode/100 != 2 {
		err = fmt.Errorf("%s %s: %s: %.200s", req.Method, req.URL.Path, res.Status, b)
	}
	return b, err
}

// enrolmentToken makes a token without a limit on its uses.
func (c *caller) enrolmentToken() (string, error) {
	var made struct{ Token string }
	err := c.call(http.MethodPost, "/api/v1/enrolment-tokens", map[string]any{"max_uses": 0, "expires_in": "24h"}, &made)
	return made.Token, err
}

// newCSR is a request of a new device, with a key of its own.
func newCSR() ([]byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	return csrOf(key)
}

func csrOf(key *ecdsa.PrivateKey) ([]byte, error) {
	name := make([]byte, 8)
	rand.Read(name)
	return x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "bench-" + hex.EncodeToString(name)}}, key)
}

// enrol has a new device get a certificate over EST.
func (c *caller) enrol(token string) error {
	csr, err := newCSR()
	if err != nil {
		return err
	}
	_, err = c.enrolWith(token, csr)
	return err
}

// enrolWith returns the answer to an enrolment with a request.
func (c *caller) enrolWith(token string, csr []byte) (body []byte, err error) {
	req, err := http.NewRequest(http.MethodPost, "https://"+c.addr+"/.well-known/est/simpleenroll", strings.NewReader(base64.StdEncoding.EncodeToString(csr)))
	if err != nil {
		return nil, err
	}
	req.SetBasicAuth("enrol", token)
	req.Header.Set("Content-Type", "application/pkcs10")
	return c.read(req)
}

// mixLoad does everything a fleet and its administrators do, at random.
func mixLoad(o order) error {
	c := newCaller(o)
	token, err := c.enrolmentToken()
	if err != nil {
		return err
	}
	var mu sync.Mutex
	made := []string{} // devices that may be ended again
	create := func() error {
		var k struct{ Device string }
		if err := c.call(http.MethodPost, "/api/v1/psk", map[string]any{}, &k); err != nil {
			return err
		}
		mu.Lock()
		made = append(made, k.Device)
		mu.Unlock()
		return nil
	}
	take := func() string {
		mu.Lock()
		defer mu.Unlock()
		if len(made) < 50 {
			return ""
		}
		i := mrand.IntN(len(made))
		d := made[i]
		made[i] = made[len(made)-1]
		made = made[:len(made)-1]
		return d
	}
	device := func(act string) func() error {
		return func() error {
			d := take()
			if d == "" {
				return create()
			}
			if act == "delete" {
				return c.call(http.MethodDelete, "/api/v1/devices/"+d, nil, nil)
			}
			for _, step := range []string{"suspend", "resume"} {
				if err := c.call(http.MethodPost, "/api/v1/devices/"+d+"/"+step, nil, nil); err != nil {
					return err
				}
			}
			mu.Lock()
			made = append(made, d)
			mu.Unlock()
			return nil
		}
	}
	authDevices, err := c.authDevices(50)
	if err != nil {
		return err
	}
	backups := time.Now()
	operations := []operation{
		{"backup", 1, func() error {
			mu.Lock()
			due := time.Since(backups) > max(o.Time/10, 5*time.Second)
			if due {
				backups = time.Now()
			}
			mu.Unlock()
			if !due {
				return c.call(http.MethodGet, "/api/v1/backups", nil, nil)
			}
			return c.call(http.MethodPost, "/api/v1/backups", map[string]any{}, nil)
		}},
		{"psk create", 4, create},
		{"device delete", 4, device("delete")},
		{"suspend and resume", 2, device("suspend")},
		{"device list", 3, func() error { return c.call(http.MethodGet, "/api/v1/devices?limit=50", nil, nil) }},
		{"whoami", 6, func() error { return c.call(http.MethodGet, "/api/v1/whoami", nil, nil) }},
		{"audit list", 1, func() error { return c.call(http.MethodGet, "/api/v1/audit?limit=20", nil, nil) }},
		{"est enrol", 2, func() error { return c.enrol(token) }},
		{"est renew", 2, renewals(c, token)},
		{"certificate revoke", 1, func() error {
			d, err := c.enrolled(token)
			if err != nil {
				return err
			}
			return c.call(http.MethodPost, "/api/v1/certificates/"+d.serial()+"/revoke", map[string]string{"reason": "superseded"}, nil)
		}},
		{"device token", 3, func() error { return c.deviceToken(authDevices) }},
		{"dtls handshake", 6, func() error { return handshake(o.CoAP, o.Keys[mrand.IntN(len(o.Keys))]) }},
	}
	return mix(o, operations)
}

// operation is one kind of what a mixed load does, as often as its weight says.
type operation struct {
	name   string
	weight int
	do     func() error
}

// mix does operations at random in several goroutines, and prints the result.
func mix(o order, operations []operation) error {
	var wheel []operation
	for _, op := range operations {
		for range op.weight {
			wheel = append(wheel, op)
		}
	}
	res := result{By: map[string]part{}}
	first, last, done := map[string][]time.Duration{}, map[string][]time.Duration{}, map[string]int{}
	var mu sync.Mutex
	var wg sync.WaitGroup
	started := time.Now()
	for range o.Workers {
		wg.Go(func() {
			for {
				at := time.Since(started)
				if at >= o.Time {
					return
				}
				op := wheel[mrand.IntN(len(wheel))]
				err := op.do()
				took := time.Since(started) - at
				mu.Lock()
				if err != nil {
					res.Failed++
					res.Error = op.name + ": " + err.Error()
				} else {
					done[op.name]++
					res.Done++
				}
				switch {
				case at < o.Time/10:
					first[op.name] = append(first[op.name], took)
				case at >= o.Time*9/10:
					last[op.name] = append(last[op.name], took)
				}
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	for name, n := range done {
		slices.Sort(first[name])
		slices.Sort(last[name])
		res.By[name] = part{n, quantile(first[name], 0.99), quantile(last[name], 0.99)}
	}
	return json.NewEncoder(os.Stdout).Encode(res)
}
