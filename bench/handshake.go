package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"time"

	"github.com/pion/dtls/v3"
)

// handshakeBench measures DTLS handshakes with pre-shared keys.
func handshakeBench(r *run) error {
	f, err := r.fleetOf(1000)
	if err != nil {
		return err
	}
	keys := make([]psKey, len(f.some))
	for i, m := range f.some {
		keys[i] = psKey{m.identity, m.secret}
	}
	p, err := r.serve(f.dir)
	if err != nil {
		return err
	}
	defer p.stop()
	bare, addr, err := r.role("pion", order{Keys: keys})
	if err != nil {
		return err
	}
	defer bare.stop()
	var last [2]result
	measure := func(i int, p *process, addr string) func() (float64, error) {
		return func() (float64, error) {
			cost, res, err := p.cost(func() (result, error) { return r.load("handshake", order{Addr: addr, Workers: 4, Keys: keys}) })
			last[i] = res
			return cost, err
		}
	}
	got, err := r.inTurns(contender{"keystead", measure(0, p, p.at["coap_udp"])}, contender{"bare pion", measure(1, bare, addr)})
	if err != nil {
		return err
	}
	v := ratio(got[1], got[0]) // handshakes per CPU second, ours of theirs
	r.table(
		[]string{"server", "CPU a handshake", "handshakes a CPU second", "p50, p99 of the last round", "goal"},
		[]string{"keystead", got[0].text(" µs"), figure(1e6 / got[0].median()), fmt.Sprintf("%v, %v", last[0].P50, last[0].P99), figure(v) + " of bare pion, " + r.verdict(v, atLeast(0.9, ""))},
		[]string{"bare pion", got[1].text(" µs"), figure(1e6 / got[1].median()), fmt.Sprintf("%v, %v", last[1].P50, last[1].P99), ""},
	)
	return nil
}

// role starts this program as a server in another role, and returns where it
// listens.
func (r *run) role(role string, o order) (*process, string, error) {
	in, err := json.Marshal(o)
	if err != nil {
		return nil, "", err
	}
	cmd := pinned(0, os.Args[0])
	cmd.Env = append(os.Environ(), roleEnv+"="+role, "GOMAXPROCS=1")
	cmd.Stdin = bytes.NewReader(in)
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, "", err
	}
	if err := cmd.Start(); err != nil {
		return nil, "", err
	}
	addr, err := started(out)
	return &process{cmd: cmd}, addr, err
}

// pionServer is the bare yardstick: pion's own listener, with the keys in a map.
func pionServer(o order) error {
	secrets := map[string][]byte{}
	for _, k := range o.Keys {
		secrets[k.Identity] = k.Secret
	}
	l, err := dtls.ListenWithOptions("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)},
		dtls.WithPSK(func(hint []byte) ([]byte, error) {
			if s, ok := secrets[string(hint)]; ok {
				return s, nil
			}
			return nil, errors.New("unknown identity")
		}),
		dtls.WithCipherSuites(dtls.TLS_PSK_WITH_AES_128_CCM_8),
	)
	if err != nil {
		return err
	}
	fmt.Println(l.Addr())
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer c.Close()
			if d, ok := c.(*dtls.Conn); ok && d.HandshakeContext(context.Background()) != nil {
				return
			}
			_, _ = c.Read(make([]byte, 1500)) // until the client ends it
		}()
	}
}

func handshakeLoad(o order) error {
	return hammer(o, func(int, int) error { return handshake(o.Addr, o.Keys[rand.IntN(len(o.Keys))]) })
}

// handshake opens a session with a pre-shared key and ends it.
func handshake(at string, k psKey) error {
	addr, err := net.ResolveUDPAddr("udp", at)
	if err != nil {
		return err
	}
	c, err := dtls.DialWithOptions("udp", addr,
		dtls.WithPSK(func([]byte) ([]byte, error) { return k.Secret, nil }),
		dtls.WithPSKIdentityHint([]byte(k.Identity)),
		dtls.WithCipherSuites(dtls.TLS_PSK_WITH_AES_128_CCM_8),
	)
	if err != nil {
		return err
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return c.HandshakeContext(ctx)
}
