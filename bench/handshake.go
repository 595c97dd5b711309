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
	servers := []shaker{{"keystead", p, order{Addr: p.at["coap_udp"], Keys: keys}}, {"bare pion", bare, order{Addr: addr, Keys: keys}}}
	if lib, at, ok := libcoapServer("-k", benchKey); ok {
		defer lib.stop()
		servers = append(servers, shaker{"libcoap-openssl", lib, order{Addr: at, Keys: []psKey{{"bench", []byte(benchKey)}}}})
	}
	return r.shake("handshake", servers, func(i int, v float64) string {
		if i == 1 {
			return figure(v) + " of bare pion, " + r.verdict(v, atLeast(0.9, ""))
		}
		return figure(v) + " of libcoap-openssl"
	})
}

// shaker is a server whose handshakes are measured.
type shaker struct {
	name   string
	server *process
	order  order
}

// shake measures the handshakes of servers, ours first, and prints them. verdict says how
// many ours does in the time in which server i does one.
func (r *run) shake(role string, servers []shaker, verdict func(i int, v float64) string) error {
	last := make([]result, len(servers))
	var contenders []contender
	for i, s := range servers {
		s.order.Workers = 4
		contenders = append(contenders, contender{s.name, func() (float64, error) {
			cost, res, err := s.server.cost(func() (result, error) { return r.load(role, s.order) })
			last[i] = res
			return cost, err
		}})
	}
	got, err := r.inTurns(contenders...)
	if err != nil {
		return err
	}
	rows := [][]string{{"server", "CPU a handshake", "handshakes a CPU second", "p50, p99 of the last round", "keystead's handshakes a CPU second"}}
	for i, s := range servers {
		goal := ""
		if i > 0 {
			goal = verdict(i, ratio(got[i], got[0]))
		}
		rows = append(rows, []string{s.name, got[i].text(" µs"), figure(1e6 / got[i].median()), fmt.Sprintf("%v, %v", last[i].P50, last[i].P99), goal})
	}
	r.table(rows...)
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
	return acceptAll(l)
}

// acceptAll says where it listens, and does every handshake that comes.
func acceptAll(l net.Listener) error {
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
	return hammer(o, func(int, int) error {
		return tries(func() error { return handshake(o.Addr, o.Keys[rand.IntN(len(o.Keys))]) })
	})
}

// tries does something again that failed, as a device would: libcoap's server
// drops some handshakes.
func tries(do func() error) (err error) {
	for range 3 {
		if err = do(); err == nil {
			return nil
		}
	}
	return err
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
