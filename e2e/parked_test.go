//go:build e2e

package e2e_test

import (
	"context"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pion/dtls/v3"

	"keystead/coap"
)

// sleeper is a device that is mostly asleep, on a network that loses a twentieth of what goes
// either way and repeats a tenth, and gives it another address now and then.
type sleeper struct {
	roamer
	s       *server
	conn    *dtls.Conn
	bad     atomic.Bool // the network is, from now on
	mid     uint16
	answers chan coap.Message
}

func (d *sleeper) WriteTo(b []byte, to net.Addr) (int, error) {
	if n := rand.IntN(20); d.bad.Load() && n == 0 {
		return len(b), nil
	} else if d.bad.Load() && n < 3 {
		_, _ = d.roamer.WriteTo(b, to)
	}
	return d.roamer.WriteTo(b, to)
}

func (d *sleeper) ReadFrom(b []byte) (int, net.Addr, error) {
	for {
		n, from, err := d.roamer.ReadFrom(b)
		if err != nil || !d.bad.Load() || rand.IntN(20) != 0 {
			return n, from, err
		}
	}
}

// opens a session that goes on at whatever address, until the test ends.
func (d *sleeper) open(k key, secret string) error {
	d.move(d.s.t)
	d.answers = make(chan coap.Message, 16)
	ctx, cancel := context.WithTimeout(d.s.t.Context(), patience)
	defer cancel()
	c, err := d.s.dialContext(ctx, d, append(withPSK(k, secret), dtls.WithConnectionIDGenerator(dtls.OnlySendCIDGenerator()))...)
	if err != nil {
		return err
	}
	d.conn = c.conn
	go d.listen()
	return nil
}

// listen hears what comes until the session is closed: it answers pings, which confirm where it is.
func (d *sleeper) listen() {
	buf := make([]byte, 2048)
	for {
		n, err := d.conn.Read(buf)
		if err != nil {
			return
		}
		m, err := coap.Parse(append([]byte(nil), buf[:n]...))
		if err != nil {
			continue
		}
		if m.Type == coap.Confirmable {
			reply := coap.Message{Type: coap.Acknowledgement, ID: m.ID}
			if m.Code == coap.Empty {
				reply.Type = coap.Reset
			}
			_, _ = d.conn.Write(reply.Append(nil))
		}
		if m.Code != coap.Empty {
			select {
			case d.answers <- m:
			default:
			}
		}
	}
}

// whoami makes a request, and the same again for as long as nothing comes.
func (d *sleeper) whoami() bool {
	d.mid++
	m := coap.Message{Code: coap.GET, ID: d.mid, Token: []byte{byte(d.mid >> 8), byte(d.mid)}, Options: coap.Options{}.AddPath("/whoami")}
	wait := 300 * time.Millisecond
	for range 16 {
		if _, err := d.conn.Write(m.Append(nil)); err != nil {
			return false
		}
		for late := time.After(wait); late != nil; {
			select {
			case got := <-d.answers:
				if string(got.Token) == string(m.Token) {
					return got.Code == coap.Content
				}
			case <-late:
				late = nil
			}
		}
		wait = min(wait*3/2, 5*time.Second)
	}
	return false
}

// all has fn called for each of the devices, many at once, and counts for how many it is not true.
func all(devices []*sleeper, fn func(int, *sleeper) bool) int64 {
	var failed, next atomic.Int64
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < len(devices); i = int(next.Add(1)) - 1 {
				if !fn(i, devices[i]) {
					failed.Add(1)
				}
			}
		})
	}
	wg.Wait()
	return failed.Load()
}

// The server holds 5,000 sessions that sleep in a few kilobytes each, as the kernel counts them, and
// every one of them wakes: four times, on a bad network, half of them elsewhere.
func TestFiveThousandSleepingSessions(t *testing.T) {
	t.Parallel()
	const sessions, rounds = 5100, 4 // some wake before they were parked again
	s := prepare(t, append([]string{"log.level=warn"}, fast...)...)
	// A gateway that has little memory says so to the runtime, which then gives back what it does not need.
	s.launch("env", append([]string{"GOMEMLIMIT=40MiB", bin, "serve", "--data", s.data}, s.args...)...)
	s.ready()
	k := s.textPSK()
	secret := k.text(t)
	devices := make([]*sleeper, sessions)
	for i := range devices {
		devices[i] = &sleeper{s: s}
	}
	parked := func() int { return int(s.metric("keystead_coap_sessions_parked")) }
	if err := devices[0].open(k, secret); err != nil || !devices[0].whoami() { // what is made once
		t.Fatalf("the first device: %v", err)
	}
	resident, goroutines := s.rss(), s.goroutines()
	if failed := all(devices[1:], func(_ int, d *sleeper) bool { return d.open(k, secret) == nil }); failed > 0 {
		t.Fatalf("%d of %d handshakes failed", failed, sessions)
	}
	if failed := all(devices, func(_ int, d *sleeper) bool { return d.whoami() }); failed > 0 {
		t.Fatalf("%d of %d devices were not answered", failed, sessions)
	}
	each := func(what string, limit int) {
		bytes := (s.rss() - resident) / sessions
		figure(t, "%s: %d bytes resident in the server for each of %d sessions, %d of them parked; %d goroutines more", what, bytes, sessions, parked(), s.goroutines()-goroutines)
		if bytes > limit {
			t.Errorf("%s: %d bytes a session, want at most %d", what, bytes, limit)
		}
	}
	each("live", 44<<10)
	asleep := func() { s.eventually("all sessions to be parked", func() bool { return parked() >= sessions*99/100 }) }
	asleep()
	each("parked", 8<<10)
	for _, d := range devices {
		d.bad.Store(true)
	}
	woken := s.metric("keystead_coap_wakes_total")
	var failed int64
	for round := range rounds {
		failed += all(devices, func(i int, d *sleeper) bool {
			if (i+round)%2 == 0 {
				d.move(t)
			}
			return d.whoami()
		})
		if round < rounds-1 {
			asleep()
		}
	}
	woken = s.metric("keystead_coap_wakes_total") - woken
	figure(t, "%.0f wake-ups for %d requests on a network that loses 5 %% each way, half from another address: %d failed", woken, rounds*sessions, failed)
	if woken < 20_000 {
		t.Errorf("%.0f wake-ups, want 20,000", woken)
	}
	if failed > 0 {
		t.Errorf("%d requests of parked sessions were not answered", failed)
	}
	s.rest("POST", "/api/v1/devices/"+k.Device+"/suspend", "", 200)
	s.eventually("the goroutines of closed sessions to end", func() bool { return s.goroutines() <= goroutines+5 })
	each("closed", 8<<10) // what the runtime has not given back yet, and what may be resumed for a day
}
