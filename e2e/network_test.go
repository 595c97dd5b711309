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
)

// lossy is a socket on a bad network: of the datagrams in each direction a fifth
// are lost and a tenth come twice, and those that are sent take up to 100 ms, so
// that they overtake each other.
type lossy struct {
	net.PacketConn
	lost *atomic.Int64
}

func (l lossy) WriteTo(b []byte, to net.Addr) (int, error) {
	copies := 1
	switch n := rand.IntN(10); {
	case n < 2:
		l.lost.Add(1)
		copies = 0
	case n == 2:
		copies = 2
	}
	datagram := append([]byte(nil), b...)
	for range copies {
		time.AfterFunc(time.Duration(rand.IntN(100))*time.Millisecond, func() { _, _ = l.PacketConn.WriteTo(datagram, to) })
	}
	return len(b), nil
}

func (l lossy) ReadFrom(b []byte) (int, net.Addr, error) {
	for {
		n, from, err := l.PacketConn.ReadFrom(b)
		if err == nil && rand.IntN(10) < 2 {
			l.lost.Add(1)
			continue
		}
		return n, from, err
	}
}

// Devices on a network that loses a fifth of everything open sessions and are
// answered all the same.
func TestBadNetwork(t *testing.T) {
	t.Parallel()
	const sessions, atOnce = 100, 20
	s := start(t, fast...)
	k := s.textPSK()
	var opened, answered, lost atomic.Int64
	slots := make(chan struct{}, atOnce)
	var wg sync.WaitGroup
	for range sessions {
		wg.Go(func() {
			slots <- struct{}{}
			defer func() { <-slots }()
			socket, err := net.ListenPacket("udp", "127.0.0.1:0")
			if err != nil {
				t.Error(err)
				return
			}
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			c, err := s.dialContext(ctx, lossy{socket, &lost}, withPSK(k, k.text(t))...)
			if err != nil {
				t.Logf("handshake: %v", err)
				return
			}
			opened.Add(1)
			if m, err := c.get("whoami"); err == nil && s.whoami(string(m.Payload)).Device == k.Device {
				answered.Add(1)
			}
			c.close()
		})
	}
	wg.Wait()
	figure(t, "bad network, %d datagrams lost: %d of %d handshakes ended within 30 s, %d of those were answered", lost.Load(), opened.Load(), sessions, answered.Load())
	if opened.Load() < sessions*99/100 || answered.Load() < opened.Load()*95/100 {
		t.Errorf("got %d handshakes of %d and %d answers, want 99 %% and, of them, 95 %%", opened.Load(), sessions, answered.Load())
	}
}
