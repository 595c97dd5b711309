//go:build e2e

package e2e_test

import (
	"context"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/pion/dtls/v3"
)

// clientHello is the first datagram of a handshake.
func clientHello(t *testing.T) []byte {
	t.Helper()
	ear, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ear.Close()
	mouth, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer mouth.Close()
	conn, err := dtls.ClientWithOptions(mouth, ear.LocalAddr(), withPSK(key{Identity: "nobody"}, "nothing")...)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = conn.HandshakeContext(ctx) // nobody answers
	}()
	buf := make([]byte, 2048)
	n, _, err := ear.ReadFrom(buf)
	cancel()
	<-done
	if err != nil {
		t.Fatal(err)
	}
	return buf[:n]
}

// Whoever can send datagrams with any source address must not be able to fill
// the memory of the server, or to keep devices away.
//
// It runs by itself: tests beside it would have the machine count for the network.
func TestSpoofedClientHellos(t *testing.T) {
	const hellos = 40_000
	s := start(t, fast...)
	k := s.textPSK()
	hello := clientHello(t)
	server, err := net.ResolveUDPAddr("udp", s.at.CoAPUDP)
	if err != nil {
		t.Fatal(err)
	}
	before := s.rss()
	over := make(chan struct{})
	go func() {
		defer close(over)
		for i := range hellos {
			// All of 127.0.0.0/8 is ours to send from.
			from := &net.UDPAddr{IP: net.IPv4(127, byte(rand.IntN(256)), byte(rand.IntN(256)), byte(1+rand.IntN(254)))}
			c, err := net.DialUDP("udp", from, server)
			if err != nil {
				t.Errorf("spoof: %v", err)
				return
			}
			_, _ = c.Write(hello)
			c.Close()
			if i%100 == 0 { // 5,000 a second: more, and the kernel drops most of them before the server sees them
				time.Sleep(20 * time.Millisecond)
			}
		}
	}()
	var (
		mu       sync.Mutex
		made     int
		slowest  time.Duration
		peak     int
		devices  sync.WaitGroup
		finished = func() bool {
			select {
			case <-over:
				return true
			default:
				return false
			}
		}
	)
	for range 4 {
		devices.Go(func() {
			for !finished() {
				began := time.Now()
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				c, err := s.dialWithin(ctx, withPSK(k, k.text(t))...)
				cancel()
				if err != nil {
					t.Errorf("a handshake during the flood: %v", err)
					return
				}
				w, err := c.whoami()
				c.close()
				if err != nil {
					t.Errorf("a request during the flood: %v", err)
					return
				}
				w.isDevice(s, k.Device, "psk")
				mu.Lock()
				made++
				slowest = max(slowest, time.Since(began))
				peak = max(peak, s.rss())
				mu.Unlock()
			}
		})
	}
	devices.Wait()
	<-over
	figure(t, "%d spoofed ClientHellos: all %d handshakes meanwhile succeeded, the slowest in %v; memory grew by %.1f MB",
		hellos, made, slowest.Round(time.Millisecond), float64(peak-before)/1e6)
	if grown := peak - before; grown > 100e6 {
		t.Errorf("memory grew by %d bytes, want less than 100 MB", grown)
	}
}
