package coapgw_test

import (
	"bytes"
	"context"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pion/dtls/v3"

	"keystead/coap"
	"keystead/coapgw"
)

// resident returns the resident memory of this process in bytes, after what can be
// given back has been.
func resident(t testing.TB) int64 {
	t.Helper()
	runtime.GC()
	debug.FreeOSMemory()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Skip("no /proc to read")
	}
	for line := range strings.Lines(string(status)) {
		if kb, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			n, err := strconv.ParseInt(strings.Fields(kb)[0], 10, 64)
			if err != nil {
				t.Fatal(err)
			}
			return n << 10
		}
	}
	t.Skip("no VmRSS")
	return 0
}

// live returns the bytes of the heap that are in use.
func live() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// network is a proxy that loses, repeats, delays and reorders datagrams between
// clients and the gateway, the same way each time.
type network struct {
	t         testing.TB
	front     *net.UDPConn
	to        netip.AddrPort
	loss, dup float64
	jitter    time.Duration

	mu     sync.Mutex
	rng    *rand.Rand
	back   map[netip.AddrPort]*net.UDPConn
	closed bool
	work   sync.WaitGroup
}

func newNetwork(t testing.TB, to netip.AddrPort, loss, dup float64, jitter time.Duration) *network {
	n := &network{
		t: t, to: to, loss: loss, dup: dup, jitter: jitter, rng: rand.New(rand.NewPCG(1, 2)), back: map[netip.AddrPort]*net.UDPConn{},
		front: must(net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})),
	}
	_ = n.front.SetReadBuffer(4 << 20)
	n.work.Go(n.forward)
	t.Cleanup(func() {
		n.mu.Lock()
		n.closed = true
		for _, s := range n.back {
			s.Close()
		}
		n.mu.Unlock()
		n.front.Close()
		n.work.Wait()
	})
	return n
}

func (n *network) addr() netip.AddrPort { return n.front.LocalAddr().(*net.UDPAddr).AddrPort() }

// carry has deliver called as often and as late as the network likes.
func (n *network) carry(b []byte, deliver func([]byte)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	copies := 1
	if n.rng.Float64() < n.loss {
		copies = 0
	}
	if n.rng.Float64() < n.dup {
		copies++
	}
	for range copies {
		late := time.Duration(n.rng.Int64N(int64(n.jitter) + 1))
		b := bytes.Clone(b)
		n.work.Add(1)
		time.AfterFunc(late, func() {
			defer n.work.Done()
			deliver(b)
		})
	}
}

func (n *network) forward() {
	buf := make([]byte, 8192)
	for {
		k, from, err := n.front.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		if s := n.behind(from); s != nil {
			n.carry(buf[:k], func(b []byte) { _, _ = s.Write(b) })
		}
	}
}

// behind returns the socket that stands for a client on the gateway's side.
func (n *network) behind(from netip.AddrPort) *net.UDPConn {
	n.mu.Lock()
	defer n.mu.Unlock()
	if s := n.back[from]; s != nil || n.closed {
		return s
	}
	s, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(n.to))
	if err != nil {
		n.t.Errorf("network: %v", err)
		return nil
	}
	n.back[from] = s
	n.work.Go(func() {
		buf := make([]byte, 8192)
		for {
			k, err := s.Read(buf)
			if err != nil {
				return
			}
			n.carry(buf[:k], func(b []byte) { _, _ = n.front.WriteToUDPAddrPort(b, from) })
		}
	})
	return s
}

// forget has a client's datagrams come from another address from now on.
func (n *network) forget(from netip.AddrPort) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if s := n.back[from]; s != nil {
		s.Close()
		delete(n.back, from)
	}
}

func TestOnABadNetwork(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a while")
	}
	f := &fixtures{}
	w := newWorld(t, f.mount)
	n := newNetwork(t, w.udp, 0.10, 0.05, 300*time.Millisecond)
	far := *w
	far.udp = n.addr()
	handshakes, atOnce := 1000, 250
	if underRace {
		handshakes, atOnce = 200, 25
	}
	var ok, slow atomic.Int64
	var wg sync.WaitGroup
	places := make(chan struct{}, atOnce)
	for range handshakes {
		wg.Go(func() {
			places <- struct{}{}
			defer func() { <-places }()
			c, err := far.dialFor(30*time.Second, psk("dev1", testKey)...)
			if err != nil {
				slow.Add(1)
				return
			}
			ok.Add(1)
			c.close()
		})
	}
	wg.Wait()
	t.Logf("10 %% loss, 5 %% repeated, up to 300 ms late each way: %d of %d handshakes within 30 s", ok.Load(), handshakes)
	if int(ok.Load()) < handshakes*99/100 {
		t.Errorf("%d of %d handshakes, want 99 %%", ok.Load(), handshakes)
	}
	c, err := far.dialFor(30*time.Second, psk("dev1", testKey)...)
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	body := bytes.Repeat([]byte("0123456789abcdef"), 1024)
	got := c.upload("/sum", body, 6, nil)
	if got.Code != coap.Changed || string(got.Payload) != string(sumOf(body)) {
		t.Errorf("16 KB in blocks: %v %s, want %s", got.Code, got.Payload, sumOf(body))
	}
}

// dialFor is dial with as much time as is given.
func (w *world) dialFor(limit time.Duration, opts ...dtls.ClientOption) (*client, error) {
	socket, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		return nil, err
	}
	conn, err := dtls.ClientWithOptions(socket, net.UDPAddrFromAddrPort(w.udp), opts...)
	if err == nil {
		ctx, cancel := context.WithTimeout(context.Background(), limit)
		defer cancel()
		err = conn.HandshakeContext(ctx)
	}
	if err != nil {
		socket.Close()
		return nil, err
	}
	return &client{t: w.t, conn: conn, dtls: conn, socket: socket}, nil
}

// flood sends hellos from many sources, none of which ever answers.
func flood(t testing.TB, to netip.AddrPort, count int) {
	hello := helloOf(t)
	for i := range count {
		s, err := net.DialUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 2, byte(i>>8), byte(i))}, net.UDPAddrFromAddrPort(to))
		if err != nil {
			t.Fatalf("no sources to flood from: %v", err)
		}
		_, _ = s.Write(hello)
		s.Close()
		if i%80 == 79 {
			time.Sleep(10 * time.Millisecond)
		}
	}
}

func TestAFloodOfForgedHellos(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a while")
	}
	w := newWorld(t)
	before, goroutines := resident(t), runtime.NumGoroutine()
	stop := make(chan struct{})
	var ok, failed, peak atomic.Int64
	var most atomic.Int64
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				case <-time.After(20 * time.Millisecond):
				}
				if c, err := w.dial(psk("dev1", testKey)...); err != nil {
					failed.Add(1)
				} else {
					ok.Add(1)
					c.close()
				}
			}
		})
	}
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(200 * time.Millisecond):
			}
			var m runtime.MemStats
			runtime.ReadMemStats(&m)
			peak.Store(max(peak.Load(), int64(m.HeapInuse+m.StackInuse)))
			most.Store(max(most.Load(), int64(w.gw.Gauges().HalfOpen)))
		}
	})
	hellos := 40_000
	if underRace {
		hellos = 4000
	}
	flood(t, w.udp, hellos)
	close(stop)
	wg.Wait()
	grown := resident(t) - before
	t.Logf("%d hellos: resident memory %+d MB, heap and stacks at most %d MB, at most %d handshakes under way, %d handshakes of devices, %d failed, %d evicted, %d shed",
		hellos, grown>>20, peak.Load()>>20, most.Load(), ok.Load(), failed.Load(), w.gw.Stats().HandshakesEvicted.Load(), w.gw.Stats().HandshakesShed.Load())
	if !underRace && (peak.Load() > 100<<20 || grown > 100<<20) {
		t.Error("memory grew by more than 100 MB")
	}
	if !underRace && failed.Load() > 0 || ok.Load() == 0 {
		t.Errorf("%d handshakes of devices failed, %d succeeded", failed.Load(), ok.Load())
	}
	if n := most.Load(); n > 8 {
		t.Errorf("%d handshakes under way, want those of the devices alone", n)
	}
	w.gw.Sweep(time.Now().Add(time.Minute))
	for deadline := time.Now().Add(5 * time.Second); runtime.NumGoroutine() > goroutines+10; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d goroutines are left of %d", runtime.NumGoroutine(), goroutines)
		}
	}
}

func TestCertificateHandshakesStarveNobody(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a while")
	}
	w := newWorld(t)
	cert := w.ca.issue("cert1")
	stop := make(chan struct{})
	var wg sync.WaitGroup
	var certs, ok, failed atomic.Int64
	for range 32 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if c, err := w.dial(certificate(cert)...); err == nil {
					certs.Add(1)
					c.close()
				}
			}
		})
	}
	var devices sync.WaitGroup
	for range 8 {
		devices.Go(func() {
			for range 25 {
				if c, err := w.dial(psk("dev1", testKey)...); err != nil {
					failed.Add(1)
				} else {
					ok.Add(1)
					c.close()
				}
			}
		})
	}
	devices.Wait()
	close(stop)
	wg.Wait()
	t.Logf("beside %d handshakes with certificates %d by pre-shared key, %d failed", certs.Load(), ok.Load(), failed.Load())
	if ok.Load() < 198 {
		t.Errorf("%d of 200 handshakes by pre-shared key, want 99 %%", ok.Load())
	}
}

// bare is a client session without goroutines or buffers, so that what is
// measured is the gateway: pion does the handshake and gives it up.
func (w *world) bare() (*coapgw.TestSession, error) {
	return coapgw.NewTestSession(w.udp, "dev1", testKey)
}

func TestFootprint(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a while")
	}
	const sessions = 5000
	w := newWorld(t, func(g *coapgw.Gateway) { g.MaxHalfOpenSource = 5000 })
	w.mustDial(psk("dev1", testKey)...).do(coap.GET, "/whoami", nil, nil) // what is made once
	start, goroutines := resident(t), runtime.NumGoroutine()
	heap := live()
	clients := make([]*coapgw.TestSession, sessions)
	for i := range clients {
		var err error
		if clients[i], err = w.bare(); err != nil {
			t.Fatalf("session %d: %v", i, err)
		}
		if err := clients[i].Get("/whoami"); err != nil {
			t.Fatalf("session %d: %v", i, err)
		}
	}
	settle := func(what string) int64 {
		for deadline := time.Now().Add(5 * time.Second); runtime.NumGoroutine() > goroutines+5 && time.Now().Before(deadline); {
			time.Sleep(50 * time.Millisecond)
		}
		now := resident(t)
		t.Logf("%s: %d bytes resident a session, of the gateway and the client of the test together; %d goroutines more", what, (now-start)/sessions, runtime.NumGoroutine()-goroutines)
		return (now - start) / sessions
	}
	if each := settle("live"); each > 44<<10 && !underRace {
		t.Errorf("%d bytes a live session, want at most 44 KB", each)
	}
	w.gw.Sweep(time.Now().Add(time.Minute))
	if n := w.gw.Gauges().Parked; n < sessions {
		t.Errorf("%d of %d sessions are parked", n, sessions)
	}
	if each := settle("parked"); each > 8<<10 && !underRace {
		t.Errorf("%d bytes a parked session, want at most 8 KB", each)
	}
	if extra := runtime.NumGoroutine() - goroutines; extra > 5 {
		t.Errorf("%d goroutines for %d idle sessions, want none", extra, sessions)
	}
	wakes := w.gw.Stats().Wakes.Load()
	for round := range 4 { // 20,000 wake-ups
		for i, c := range clients {
			if err := c.Get("/whoami"); err != nil {
				t.Fatalf("round %d, session %d does not wake: %v", round, i, err)
			}
		}
		w.gw.Sweep(time.Now().Add(time.Minute))
	}
	t.Logf("%d wake-ups", w.gw.Stats().Wakes.Load()-wakes)
	if got := w.gw.Stats().Wakes.Load() - wakes; got < 4*sessions {
		t.Errorf("%d wake-ups, want %d", got, 4*sessions)
	}
	for _, s := range w.gw.Sessions() {
		s.Close("test")
	}
	for _, c := range clients {
		c.Close()
	}
	clear(clients)
	w.gw.Sweep(time.Now().Add(25 * time.Hour)) // what may be resumed for a day is forgotten too
	g := w.gw.Gauges()
	settle("closed")
	left := (live() - heap) / sessions
	t.Logf("closed: %d bytes of live heap a session are left, which are the maps, as large as they once had to be", left)
	if left > 512 || g.Sessions != 0 || g.Buffered != 0 {
		t.Errorf("%d bytes of live heap a session are left, %d sessions, %d bytes of bodies", left, g.Sessions, g.Buffered)
	}
}

func TestManyRequestsOnOneSessionTakeNoMemory(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a while")
	}
	w := newWorld(t)
	c, err := w.bare()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	get := func(n int) {
		for range n {
			if err := c.Get("/whoami"); err != nil {
				t.Fatal(err)
			}
		}
	}
	requests := 200_000
	if underRace {
		requests = 20_000
	}
	get(requests / 10)
	before := resident(t)
	get(requests)
	grown := resident(t) - before
	t.Logf("%d requests: resident memory %+d KB", requests, grown>>10)
	if grown > 2<<20 && !underRace {
		t.Errorf("memory grew by %d KB", grown>>10)
	}
}

func TestParkedSessionsWakeOnABadNetworkAndElsewhere(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a while")
	}
	w := newWorld(t)
	n := newNetwork(t, w.udp, 0.05, 0.10, 20*time.Millisecond)
	far := *w
	far.udp = n.addr()
	sessions, wakes := 500, uint64(20_000)
	if underRace {
		sessions, wakes = 50, 500
	}
	var failed, again atomic.Int64
	var wg sync.WaitGroup
	clients := make([]*client, sessions)
	places := make(chan struct{}, sessions/2)
	for i := range clients {
		wg.Go(func() {
			places <- struct{}{}
			defer func() { <-places }()
			var err error
			for range 3 { // as a device does, when the network had a handshake fail
				if clients[i], err = far.dialFor(30*time.Second, withCID(psk("dev1", testKey))...); err == nil {
					return
				}
				again.Add(1) // the server may have a session that the client knows nothing of
			}
			t.Error(err)
		})
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	defer func() {
		for _, c := range clients {
			c.close()
		}
	}()
	before := w.gw.Stats().Wakes.Load()
	done := func() bool { return w.gw.Stats().Wakes.Load()-before >= wakes }
	wg.Go(func() {
		for !done() && failed.Load() == 0 {
			w.gw.Sweep(time.Now().Add(time.Minute)) // all are parked
			time.Sleep(20 * time.Millisecond)
		}
	})
	var requests atomic.Int64
	for i, c := range clients {
		wg.Go(func() {
			for round := 0; !done() && failed.Load() == 0; round++ {
				c.listen(nil, 30*time.Millisecond) // until it is parked
				if (i+round)%2 == 0 {
					n.forget(c.socket.LocalAddr().(*net.UDPAddr).AddrPort()) // and half come back elsewhere
				}
				requests.Add(1)
				began := time.Now()
				if got := c.insist(c.request(coap.GET, "/whoami", nil, nil)); got == nil || got.Code != coap.Content {
					failed.Add(1)
					t.Logf("client %d, round %d: %+v after %v", i, round, got, time.Since(began))
				}
			}
		})
	}
	wg.Wait()
	t.Logf("%d wake-ups for %d requests with 5 %% loss, 10 %% repeated, half of them from another address: %d failed, %d roams",
		w.gw.Stats().Wakes.Load()-before, requests.Load(), failed.Load(), w.gw.Stats().Roams.Load())
	if failed.Load() > 0 {
		t.Errorf("%d requests of parked sessions failed", failed.Load())
	}
	if left := w.gw.Gauges().Sessions; left < sessions || left > sessions+int(again.Load()) {
		t.Errorf("%d sessions, want the %d there were", w.gw.Gauges().Sessions, sessions)
	}
}

// insist makes a request and asks again, at first sooner than a device does, and then less and
// less often: hundreds that go on at that rate keep a busy machine from ever answering. It
// returns nil if there is no answer at all.
func (c *client) insist(m *coap.Message) *coap.Message {
	const soonest, latest = 250 * time.Millisecond, 8 * time.Second
	for wait := soonest; wait < 60*latest; wait = wait * 3 / 2 {
		c.write(m)
		if got := c.listen(m.Token, min(wait, latest)); got != nil {
			return got
		}
	}
	return nil
}

// listen reads for a time as a device does: what is confirmable is acknowledged, and a ping answered. It
// returns the answer to the request with a token.
func (c *client) listen(token []byte, within time.Duration) *coap.Message {
	for until := time.Now().Add(within); time.Now().Before(until); {
		got := c.read(time.Until(until))
		switch {
		case got == nil:
			return nil
		case got.Code == coap.Empty && got.Type == coap.Confirmable:
			c.write(&coap.Message{Type: coap.Reset, ID: got.ID})
			continue
		case got.Type == coap.Confirmable:
			c.write(&coap.Message{Type: coap.Acknowledgement, ID: got.ID})
		}
		if got.Code != coap.Empty && bytes.Equal(got.Token, token) {
			return got
		}
	}
	return nil
}

func TestRevocationClosesParkedSessions(t *testing.T) {
	w := newWorld(t)
	const sessions = 500
	var clients []*coapgw.TestSession
	for range sessions {
		c, err := w.bare()
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		clients = append(clients, c)
	}
	w.gw.Sweep(time.Now().Add(time.Minute))
	began := time.Now()
	w.suspend("d1", "dev1")
	took := time.Since(began)
	t.Logf("%d parked sessions of one device closed in %v", sessions, took)
	if n := w.gw.Gauges().Sessions; n != 0 {
		t.Errorf("%d sessions are open", n)
	}
	if err := clients[0].Get("/whoami"); err == nil {
		t.Error("a parked session of a suspended device answers")
	}
}
