//go:build e2e

package e2e_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	cryptorand "crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"keystead/client"
)

// ledger is what the server has acknowledged.
type ledger struct {
	mu     sync.Mutex
	keys   []key
	states map[string]string // of devices, as last acknowledged
	doubts map[string]string // of devices, asked for and not answered

	enrolled []string // devices with a certificate
}

// A server that is killed has, when it is back, all that it acknowledged.
func TestKilledUnderLoad(t *testing.T) {
	t.Parallel()
	const rounds, workers = 12, 8
	s := start(t, fast...)
	l := &ledger{states: map[string]string{}, doubts: map[string]string{}}
	for round := range rounds {
		ctx, cancel := context.WithCancel(t.Context())
		var working sync.WaitGroup
		for range workers {
			working.Go(func() { l.work(ctx, s.admin()) })
		}
		working.Go(func() { l.connect(ctx, s) })
		for range 2 {
			working.Go(func() { l.enrol(ctx, s.admin(), s.https(), "https://"+s.at.HTTPS) })
		}
		time.Sleep(time.Duration(50+rand.IntN(250)) * time.Millisecond) // when, is what is random
		s.kill()
		cancel()
		working.Wait()
		s.start()
		l.check(t, round, s)
	}
	s.cli("audit", "verify")
	figure(t, "%d times killed under load: all of %d keys, %d certificates and %d device states acknowledged are there",
		rounds, len(l.keys), len(l.enrolled), len(l.states))
}

// work makes devices with a key, and suspends and resumes them, until the server
// is gone.
func (l *ledger) work(ctx context.Context, c *client.Client) {
	for ctx.Err() == nil {
		made, err := c.CreatePSK(ctx, client.NewPSK{SecretFormat: "text"})
		if err != nil {
			return
		}
		l.mu.Lock()
		l.keys = append(l.keys, key{made.Identity, made.Secret, made.Device})
		l.states[made.Device] = "active"
		l.mu.Unlock()
		for _, step := range []struct {
			state string
			do    func(context.Context, string) (client.Device, error)
		}{{"suspended", c.SuspendDevice}, {"active", c.ResumeDevice}, {"suspended", c.SuspendDevice}} {
			if rand.IntN(2) == 0 {
				break
			}
			l.mu.Lock()
			l.doubts[made.Device] = step.state
			l.mu.Unlock()
			if _, err := step.do(ctx, made.Device); err != nil {
				return
			}
			l.mu.Lock()
			l.states[made.Device] = step.state
			delete(l.doubts, made.Device)
			l.mu.Unlock()
		}
	}
}

// enrol has devices get certificates over EST until the server is gone.
func (l *ledger) enrol(ctx context.Context, admin *client.Client, device *http.Client, url string) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), cryptorand.Reader)
	if err != nil {
		panic(err)
	}
	for ctx.Err() == nil {
		d, err := admin.CreateDevice(ctx, client.NewDevice{})
		if err != nil {
			return
		}
		l.mu.Lock()
		l.states[d.ID] = "active"
		l.mu.Unlock()
		token, err := client.Do[struct{ Token string }](ctx, admin, http.MethodPost, "/api/v1/enrolment-tokens", nil, map[string]string{"device": d.ID})
		if err != nil {
			return
		}
		csr, err := x509.CreateCertificateRequest(cryptorand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: d.ID}}, private)
		if err != nil {
			panic(err)
		}
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, url+"/.well-known/est/simpleenroll", strings.NewReader(base64.StdEncoding.EncodeToString(csr)))
		if err != nil {
			panic(err)
		}
		req.SetBasicAuth("enrol", token.Token)
		req.Header.Set("Content-Type", "application/pkcs10")
		res, err := device.Do(req)
		if err != nil {
			return
		}
		_, err = io.Copy(io.Discard, res.Body)
		res.Body.Close()
		if err != nil || res.StatusCode != http.StatusOK {
			return
		}
		l.mu.Lock()
		l.enrolled = append(l.enrolled, d.ID)
		l.mu.Unlock()
	}
}

// connect has devices say who they are over DTLS until the server is gone.
func (l *ledger) connect(ctx context.Context, s *server) {
	for ctx.Err() == nil {
		l.mu.Lock()
		var k key
		if len(l.keys) > 0 {
			k = l.keys[rand.IntN(len(l.keys))]
		}
		l.mu.Unlock()
		if k.Identity == "" {
			time.Sleep(time.Millisecond)
			continue
		}
		if c, err := s.dialWithin(ctx, withPSK(k, k.text(s.t))...); err == nil {
			_, _ = c.get("/whoami") // it may be suspended, or the server gone
			c.close()
		}
	}
}

// check compares what is there with what was acknowledged.
func (l *ledger) check(t *testing.T, round int, s *server) {
	t.Helper()
	c := s.admin()
	found, certified := map[string]string{}, map[string]bool{}
	for d, err := range c.Devices(t.Context(), client.DeviceFilter{}) {
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		found[d.ID] = d.State
		for _, c := range d.Credentials {
			if c.Kind == "certificate" && c.State == "active" {
				certified[d.ID] = true
			}
		}
	}
	for _, device := range l.enrolled {
		if !certified[device] {
			t.Errorf("round %d: the certificate of device %s is lost", round, device)
		}
	}
	keys := map[string]string{}
	for k, err := range c.PSKs(t.Context(), "") {
		if err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		keys[k.Identity] = k.Device
	}
	for _, k := range l.keys {
		if keys[k.Identity] != k.Device {
			t.Errorf("round %d: the key %s is lost", round, k.Identity)
		}
	}
	for device, state := range l.states {
		if got := found[device]; got != state && got != l.doubts[device] {
			t.Errorf("round %d: device %s: got %q, want %q, or %q if what was not answered was done", round, device, got, state, l.doubts[device])
		}
		l.states[device] = found[device]
	}
	clear(l.doubts)
	// One that is active still gets in.
	for _, k := range slices.Backward(l.keys) {
		if l.states[k.Device] != "active" {
			continue
		}
		w, err := s.mustDial(withPSK(k, k.text(t))...).whoami()
		if err != nil {
			t.Errorf("round %d: device %s: %v", round, k.Device, err)
			return
		}
		w.isDevice(s, k.Device, "psk")
		return
	}
}
