package main

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	mrand "math/rand/v2"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"keystead/server"
	"keystead/thingkeys"
)

// keyClients is how many connections ask at once.
const keyClients = 64

// things is a data directory with things, each of which has a key.
type things struct {
	fleet
	keys  []string // of some of them, at random
	email string   // of a user
	pass  string
}

// thingsOf returns a data directory with n things.
func (r *run) thingsOf(n int) (*things, error) {
	t := &things{fleet: fleet{dir: filepath.Join(r.dir, "things-"+strconv.Itoa(n)), n: n}, email: "bench@example.com", pass: "seventeen quiet otters"}
	if r.keep != "" && n > 10_000 {
		t.dir = filepath.Join(r.keep, "things-"+strconv.Itoa(n))
	}
	if _, err := os.Stat(t.list()); errors.Is(err, os.ErrNotExist) {
		if err := t.build(r.ctx); err != nil {
			return nil, fmt.Errorf("%d things: %w", n, err)
		}
	}
	file, err := os.Open(t.list())
	if err != nil {
		return nil, err
	}
	defer file.Close()
	for lines := bufio.NewScanner(file); lines.Scan(); {
		t.keys = append(t.keys, lines.Text())
	}
	if err := t.warm(); err != nil {
		return nil, err
	}
	return t, t.readAdmin()
}

// warm reads the database once: what its first pages cost to fetch from the disk is not
// what the benchmark is about.
func (t *things) warm() error {
	file, err := os.Open(filepath.Join(t.dir, "keystead.db"))
	if err != nil {
		return err
	}
	defer file.Close()
	_, err = io.Copy(io.Discard, file)
	return err
}

func (t *things) build(ctx context.Context) error {
	if err := os.MkdirAll(t.dir, 0o700); err != nil {
		return err
	}
	s, err := server.Build(ctx, configuration(t.dir), slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	defer s.Close()
	if err := t.readAdmin(); err != nil {
		return err
	}
	var list strings.Builder
	ctx = t.context(ctx)
	for made := 0; made < t.n; {
		batch := make([]thingkeys.New, min(thingkeys.MaxBatch, t.n-made))
		for i := range batch {
			batch[i] = thingkeys.New{Name: "thing " + strconv.Itoa(made+i), Type: "sensor"}
		}
		created, err := s.Things.Create(ctx, batch)
		if err != nil {
			return err
		}
		for _, c := range created {
			if t.n <= someOf || mrand.IntN(t.n) < someOf {
				fmt.Fprintln(&list, string(c.Key))
			}
		}
		made += len(batch)
	}
	return os.WriteFile(t.list(), []byte(list.String()), 0o600)
}

// keysBench measures how requests are resolved by the keys of things and users.
func keysBench(r *run) error {
	bare, echo, err := r.role("echo", order{})
	if err != nil {
		return err
	}
	defer bare.stop()
	for _, n := range []int{1000, r.devices} {
		t, err := r.thingsOf(n)
		if err != nil {
			return err
		}
		if err := r.keysAt(t, bare, echo); err != nil {
			return err
		}
	}
	return nil
}

func (r *run) keysAt(t *things, bare *process, echo string) error {
	p, err := r.serve(t.dir)
	if err != nil {
		return err
	}
	defer p.stop()
	admin := newCaller(order{Addr: p.at["https"], Workers: 1, Token: t.admin.APIKey})
	_ = admin.call(http.MethodPost, "/users", map[string]string{"email": t.email, "password": t.pass}, nil) // it may be there
	var login struct{ Token string }
	if err := admin.call(http.MethodPost, "/tokens", map[string]string{"email": t.email, "password": t.pass}, &login); err != nil {
		return err
	}
	var last [4]result
	measure := func(i int, p *process, o order) contender {
		names := []string{"bare echo", "thing key", "API key", "login key"}
		o.Workers = keyClients
		return contender{names[i], func() (float64, error) {
			cost, res, err := p.cost(func() (result, error) { return r.load("keys", o) })
			last[i] = res
			return cost, err
		}}
	}
	ask := func(scheme string, keys ...string) order {
		o := order{Addr: p.at["https"]}
		for _, k := range keys {
			o.Paths = append(o.Paths, scheme+" "+k)
		}
		return o
	}
	got, err := r.inTurns(
		measure(0, bare, order{Addr: echo, Echo: true, Paths: []string{"Thing " + t.keys[0]}}),
		measure(1, p, ask("Thing", t.keys...)),
		measure(2, p, ask("Bearer", t.admin.APIKey)),
		measure(3, p, ask("Bearer", login.Token)),
	)
	if err != nil {
		return err
	}
	rows := [][]string{{thousands(t.n) + " things", "server CPU", "a second of it", "p50, p99 of the last round", "of the bare echo"}}
	for i, s := range got {
		goals := ""
		if i > 0 {
			limit := 2.0
			if i == 1 {
				limit = 1.5
			}
			v := ratio(s, got[0])
			goals = figure(v) + " times, " + r.verdict(v, atMost(limit, " times"))
		}
		rows = append(rows, []string{s.name, s.text(" µs"), figure(1e6 / s.median()), fmt.Sprintf("%v, %v", last[i].P50, last[i].P99), goals})
	}
	r.table(rows...)
	fmt.Fprintln(r.out)
	return r.besideLogins(t, p, ask("Thing", t.keys...))
}

// besideLogins compares how long resolves take while logins are tried.
func (r *run) besideLogins(t *things, p *process, o order) error {
	o.Workers = 16
	quiet := contender{"alone", func() (float64, error) {
		res, err := r.load("keys", o)
		return float64(res.P99.Microseconds()), err
	}}
	var tried, answered int
	loud := contender{"beside logins", func() (float64, error) {
		ctx, stop := context.WithCancel(r.ctx)
		var trying sync.WaitGroup
		trying.Go(func() { tried, answered = tryLogins(ctx, p.at["https"], t.email) })
		res, err := r.load("keys", o)
		stop()
		trying.Wait()
		return float64(res.P99.Microseconds()), err
	}}
	got, err := r.inTurns(quiet, loud)
	if err != nil {
		return err
	}
	v := ratio(got[1], got[0])
	r.table(
		[]string{"16 clients by thing key, " + thousands(t.n) + " things", "p99", "goal"},
		[]string{"alone", got[0].text(" µs"), ""},
		[]string{fmt.Sprintf("while 100 logins a second are tried (%d in the last round, %d of them looked at)", tried, answered), got[1].text(" µs"), figure(v) + " times, " + r.verdict(v, atMost(3, " times"))},
	)
	fmt.Fprintln(r.out)
	return nil
}

// tryLogins tries a hundred logins a second from as many addresses, and returns
// how many it tried and how many had their password looked at.
func tryLogins(ctx context.Context, addr, email string) (tried, looked int) {
	var mu sync.Mutex
	var all sync.WaitGroup
	defer all.Wait()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return tried, looked
		case <-tick.C:
		}
		tried++
		n := tried
		all.Go(func() {
			from := net.IPv4(127, byte(1+mrand.IntN(200)), byte(n>>8), byte(n))
			c := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
				DisableKeepAlives: true,
				DialContext:       (&net.Dialer{LocalAddr: &net.TCPAddr{IP: from}}).DialContext,
				TLSClientConfig:   &tls.Config{InsecureSkipVerify: true}, // of a server this program started
			}}
			res, err := c.Post("https://"+addr+"/tokens", "application/json", strings.NewReader(fmt.Sprintf(`{"email":"%d%s","password":"wrong otters %d"}`, n, email, n)))
			if err != nil {
				return
			}
			res.Body.Close()
			if res.StatusCode == http.StatusUnauthorized {
				mu.Lock()
				looked++
				mu.Unlock()
			}
		})
	}
}

// keysLoad asks who the caller is, with one of the Authorization headers in
// o.Paths each time.
func keysLoad(o order) error {
	c := newCaller(o)
	c.http.Transport.(*http.Transport).MaxConnsPerHost = o.Workers
	url := "https://" + o.Addr + "/api/v1/whoami"
	return hammer(o, func(int, int) error {
		req, err := http.NewRequest(http.MethodGet, url, http.NoBody)
		if err != nil {
			return err
		}
		if o.Echo {
			req, err = http.NewRequest(http.MethodPost, url, strings.NewReader(echoed))
			if err != nil {
				return err
			}
		}
		req.Header.Set("Authorization", o.Paths[mrand.IntN(len(o.Paths))])
		res, err := c.http.Do(req)
		if err != nil {
			return err
		}
		defer res.Body.Close()
		if _, err := io.Copy(io.Discard, res.Body); err != nil {
			return err
		}
		if res.StatusCode != http.StatusOK {
			return fmt.Errorf("status %d", res.StatusCode)
		}
		return nil
	})
}

// echoed is about as long as what whoami answers.
const echoed = `{"device":"01a22d6b-c862-7000-8ecb-8023ff559124","organisation":"01a22d6b-c862-7000-8ecb-8023ff559124","name":"thing 1","credential":{"kind":"thing_key","id":"01a22d6b-c862-7000-8ecb-8023ff559124","expires_at":null}}`

// echoServer is the bare yardstick: what net/http and crypto/tls take to read a
// request and answer with its body.
func echoServer(order) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "echo"}, NotBefore: time.Now(), NotAfter: time.Now().AddDate(1, 0, 0)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return err
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	fmt.Println(l.Addr())
	h := &http.Server{
		ReadHeaderTimeout: 5 * time.Second, ReadTimeout: 15 * time.Second, WriteTimeout: 30 * time.Second, IdleTimeout: time.Minute,
		TLSConfig: &tls.Config{
			MinVersion: tls.VersionTLS12, ClientAuth: tls.RequestClientCert, DynamicRecordSizingDisabled: true,
			Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
		},
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body, err := io.ReadAll(r.Body)
			if err != nil {
				http.Error(w, "unread", http.StatusBadRequest)
				return
			}
			w.Header().Set("Content-Type", "application/json")
			_, _ = w.Write(body)
		}),
	}
	return h.ServeTLS(l, "", "")
}
