package main

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"

	"keystead/authsets"
	"keystead/fault"
	"keystead/identity"
	"keystead/server"
)

// keyed is how many devices of a fleet have an auth set with a key that the benchmark has: it
// follows from the device's number.
const keyed = 2000

func authKey(n int) ed25519.PrivateKey {
	seed := sha256.Sum256([]byte("keystead bench " + strconv.Itoa(n)))
	return ed25519.NewKeyFromSeed(seed[:])
}

// authIdentity is the identity of a device with a key; those that wait have the same keys.
func authIdentity(n int, waits bool) string {
	return fmt.Sprintf(`{"bench":"%d","waits":"%v"}`, n, waits)
}

func authDER(n int) []byte {
	der, err := x509.MarshalPKIXPublicKey(authKey(n).Public())
	if err != nil {
		panic(err)
	}
	return der
}

// askers makes auth requests. Each is another one, as of a device that puts the time into it,
// or the same again, as Mender's clients send them while they wait.
type askers struct {
	waits bool
	again bool
	made  atomic.Int64
	keys  [keyed]ed25519.PrivateKey
	pems  [keyed]string
}

func newAskers(waits, again bool) *askers {
	a := &askers{waits: waits, again: again}
	for n := range keyed {
		a.keys[n] = authKey(n)
		a.pems[n] = string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: authDER(n)}))
	}
	return a
}

func (a *askers) request(n int) (body []byte, signature string) {
	tier := "standard"
	if !a.again {
		tier = strconv.FormatInt(a.made.Add(1), 36) + strconv.FormatUint(rand.Uint64(), 36)
	}
	body, err := json.Marshal(map[string]string{"id_data": authIdentity(n, a.waits), "pubkey": a.pems[n], "tier": tier})
	if err != nil {
		panic(err)
	}
	return body, base64.StdEncoding.EncodeToString(ed25519.Sign(a.keys[n], body))
}

// withKeys gives a fleet its devices with keys that are known here, as far as it has none, and
// returns a token of each.
func withKeys(r *run, f *fleet) (tokens []string, err error) {
	c := configuration(f.dir)
	c.PublicURL = "" // as the server that is measured has it: it is the issuer of its tokens
	s, err := server.Build(r.ctx, c, slog.New(slog.DiscardHandler))
	if err != nil {
		return nil, err
	}
	defer s.Close()
	lines := make([]authsets.Line, 0, keyed)
	for n := range keyed {
		id, err := authsets.Canonicalise([]byte(authIdentity(n, false)))
		if err != nil {
			return nil, err
		}
		lines = append(lines, authsets.Line{Number: n + 1, New: authsets.New{Identity: id, Key: authDER(n)}})
	}
	ctx := f.context(r.ctx)
	for at := 0; at < len(lines); at += authsets.Batch {
		if _, err := s.AuthSets.Import(ctx, lines[at:at+authsets.Batch], false); err != nil {
			return nil, err
		}
	}
	for _, waits := range []bool{false, true} {
		a := newAskers(waits, true)
		for n := range keyed {
			body, signature := a.request(n)
			token, err := s.AuthSets.Authenticate(r.ctx, authsets.Request{Body: body, Signature: signature})
			if (err != nil) != waits {
				return nil, fmt.Errorf("device %d: %w", n, err)
			}
			if !waits {
				tokens = append(tokens, token)
			}
		}
	}
	return tokens, nil
}

// authLoad asks for tokens as o.What says: "accepted", "pending" or "again".
func authLoad(o order) error {
	c := newCaller(o)
	a := newAskers(o.What != "accepted", o.What == "again")
	want := http.StatusOK
	if a.waits {
		want = http.StatusUnauthorized
	}
	return hammer(o, func(int, int) error {
		body, signature := a.request(rand.IntN(keyed))
		_, err := c.ask(body, signature, want)
		return err
	})
}

// verifyLoad has tokens verified as a gateway does.
func verifyLoad(o order) error {
	c := newCaller(o)
	return hammer(o, func(int, int) error {
		req, err := http.NewRequest(http.MethodGet, "https://"+o.Addr+"/api/internal/v1/devauth/tokens/verify", nil)
		if err != nil {
			return err
		}
		req.Header.Set("Authorization", "Bearer "+o.Tokens[rand.IntN(len(o.Tokens))])
		req.Header.Set("X-Gateway-Key", o.Token)
		return c.do(req, nil)
	})
}

// ask sends an auth request and returns the token.
func (c *caller) ask(body []byte, signature string, want int) (string, error) {
	req, err := http.NewRequest(http.MethodPost, "https://"+c.addr+"/api/devices/v1/authentication/auth_requests", bytes.NewReader(body))
	if err != nil {
		return "", err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("X-MEN-Signature", signature)
	res, err := c.http.Do(req)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != want {
		err = fmt.Errorf("auth request: %s: %.200s", res.Status, b)
	}
	return string(b), err
}

// authSetsBench measures auth requests and verifications of tokens.
func authSetsBench(r *run) error {
	sizes := []int{1000, r.devices}
	over := []struct {
		name, role, what string
		goal             goal
	}{
		{"an accepted device asks for a token, Ed25519", "auth", "accepted", atMost(250, " µs")},
		{"a pending device asks", "auth", "pending", atMost(150, " µs")},
		{"a pending device asks with the same bytes again", "auth", "again", goal{}},
		{"a token is verified for a gateway", "verify", "", atMost(60, " µs")},
	}
	bare, echo, err := r.role("echo", order{})
	if err != nil {
		return err
	}
	defer bare.stop()
	contenders := []contender{
		{"bare echo on the same TLS", func() (float64, error) {
			o := order{Addr: echo, Workers: 64, Echo: true, Paths: []string{"Bearer of nobody"}, PID: bare.pid()}
			cost, _, err := bare.cost(func() (result, error) { return r.load("keys", o) })
			return cost, err
		}},
		{"bare check of an Ed25519 signature, in the process", r.bareCheck},
	}
	limits := len(contenders)
	var servers []*process
	defer func() {
		for _, p := range servers {
			p.stop()
		}
	}()
	for _, n := range sizes {
		f, err := r.fleetOf(n)
		if err != nil {
			return err
		}
		tokens, err := withKeys(r, f)
		if err != nil {
			return err
		}
		p, err := r.serve(f.dir)
		if err != nil {
			return err
		}
		servers = append(servers, p)
		for _, op := range over {
			o := order{Addr: p.at["https"], Workers: 64, Token: f.admin.APIKey, Tokens: tokens, What: op.what, PID: p.pid()}
			contenders = append(contenders, contender{op.name, func() (float64, error) {
				res, err := r.load(op.role, o)
				return float64(res.CPU.Microseconds()) / float64(max(res.Done, 1)), err
			}})
		}
	}
	got, err := r.inTurns(contenders...)
	if err != nil {
		return err
	}
	rows := [][]string{{"over HTTPS on 64 kept connections", "server CPU at 1,000 devices", "at " + thousands(r.devices), "a second of it", "of the bare echo", "goals"}}
	for _, s := range got[:limits] {
		rows = append(rows, []string{s.name, s.text(" µs"), "", figure(1e6 / s.median()), figure(ratio(s, got[0])), ""})
	}
	for i, op := range over {
		small, large := got[limits+i], got[limits+len(over)+i]
		v := ratio(large, small)
		goals := figure(v) + " times that at 1,000, " + r.verdict(v, atMost(1.3, " times"))
		if op.goal.limit > 0 {
			goals += "; " + r.verdict(large.median(), op.goal)
		}
		rows = append(rows, []string{op.name, small.text(" µs"), large.text(" µs"), figure(1e6 / large.median()), figure(ratio(large, got[0])), goals})
	}
	r.table(rows...)
	fmt.Fprintln(r.out)
	for _, p := range servers {
		p.stop()
	}
	servers = nil
	return authSetsInProcess(r, sizes[1])
}

// bareCheck is what checking a signature takes, of a text as long as an auth request.
func (r *run) bareCheck() (float64, error) {
	key, text := authKey(0), []byte(strings.Repeat("x", 400))
	sig := ed25519.Sign(key, text)
	public, ok := key.Public().(ed25519.PublicKey)
	return r.each(func(int) error {
		if !ok || !ed25519.Verify(public, text, sig) {
			return errors.New("not verified")
		}
		return nil
	})
}

// authSetsInProcess measures the same without HTTP, beside a check of the signature alone.
func authSetsInProcess(r *run, devices int) error {
	f, err := r.fleetOf(devices)
	if err != nil {
		return err
	}
	s, err := server.Build(r.ctx, configuration(f.dir), slog.New(slog.DiscardHandler))
	if err != nil {
		return err
	}
	defer s.Close()
	const pool = 8192 // requests that are signed before it counts, and used once
	var tokens []string
	ask := func(waits bool) func() (float64, error) {
		a := newAskers(waits, false)
		return func() (float64, error) {
			requests := make([]authsets.Request, pool)
			for i := range requests {
				requests[i].Body, requests[i].Signature = a.request(rand.IntN(keyed))
			}
			tokens = tokens[:0]
			before := spent()
			for _, q := range requests {
				token, err := s.AuthSets.Authenticate(r.ctx, q)
				switch {
				case waits && fault.Is(err, fault.Unauthenticated):
				case waits:
					return 0, fmt.Errorf("let in: %w", err)
				case err != nil:
					return 0, err
				default:
					tokens = append(tokens, token)
				}
			}
			return float64((spent() - before).Nanoseconds()) / 1000 / pool, nil
		}
	}
	resolve := func() (float64, error) {
		before := spent()
		for _, token := range tokens {
			if _, err := s.Resolver.Resolve(r.ctx, identity.Proof{Scheme: "Bearer", Value: token, Transport: identity.HTTPS}); err != nil {
				return 0, err
			}
		}
		return float64((spent() - before).Nanoseconds()) / 1000 / float64(len(tokens)), nil
	}
	got, err := r.inTurns(
		contender{"a pending device asks", ask(true)},
		contender{"an accepted device asks for a token", ask(false)},
		contender{"the token is verified for the first time", resolve},
		contender{"and again", resolve},
		contender{"bare check of an Ed25519 signature", r.bareCheck},
	)
	if err != nil {
		return err
	}
	rows := [][]string{{"in the process, " + thousands(devices) + " devices", "CPU", "a second of it", "goal"}}
	for i, series := range got {
		goals := ""
		if i == 3 {
			v := ratio(got[3], got[4])
			goals = figure(v) + " of a check of the signature, " + r.verdict(v, atMost(1, " of it"))
		}
		rows = append(rows, []string{series.name, series.text(" µs"), figure(1e6 / series.median()), goals})
	}
	r.table(rows...)
	return nil
}
