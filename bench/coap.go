package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/pion/dtls/v3"
	godtls "github.com/plgd-dev/go-coap/v3/dtls"
	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/plgd-dev/go-coap/v3/mux"
	gonet "github.com/plgd-dev/go-coap/v3/net"
	"github.com/plgd-dev/go-coap/v3/options"

	"keystead/coap"
)

// benchKey is the one key of the servers beside which ours is measured.
const benchKey = "a-key-for-benches"

// coapBench measures CoAP requests on DTLS sessions that are open.
func coapBench(r *run) error {
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
	theirs := []psKey{{"bench", []byte(benchKey)}}
	names := []string{"keystead", "go-coap"}
	servers := []*process{p}
	orders := []order{{Addr: p.at["coap_udp"], Keys: keys, Paths: []string{"/whoami"}, Workers: 50}}
	other, addr, err := r.role("gocoap", order{Keys: theirs})
	if err != nil {
		return err
	}
	defer other.stop()
	servers = append(servers, other)
	orders = append(orders, order{Addr: addr, Keys: theirs, Paths: []string{"/"}, Workers: 50})
	if lib, at, ok := libcoapServer("-k", benchKey); ok {
		defer lib.stop()
		names, servers = append(names, "libcoap-openssl"), append(servers, lib)
		orders = append(orders, order{Addr: at, Keys: theirs, Paths: []string{"/"}, Workers: 50})
	}
	last := make([]result, len(servers))
	var contenders []contender
	for i, server := range servers {
		contenders = append(contenders, contender{names[i], func() (float64, error) {
			cost, res, err := server.cost(func() (result, error) { return r.load("coap", orders[i]) })
			last[i] = res
			return cost, err
		}})
	}
	got, err := r.inTurns(contenders...)
	if err != nil {
		return err
	}
	rows := [][]string{{"server", "CPU a request", "requests a CPU second", "p50, p99 of the last round", "goal"}}
	for i, name := range names {
		goal := ""
		switch i {
		case 1:
			v := ratio(got[0], got[1])
			goal = "keystead takes " + figure(v) + " of its CPU, " + r.verdict(v, atMost(0.7, ""))
		case 2:
			goal = "keystead takes " + figure(ratio(got[0], got[2])) + " of its CPU"
		}
		rows = append(rows, []string{name, got[i].text(" µs"), figure(1e6 / got[i].median()), fmt.Sprintf("%v, %v", last[i].P50, last[i].P99), goal})
	}
	r.table(rows...)
	return nil
}

// libcoapServer starts Debian's CoAP server, with what it proves itself by, if
// it is there.
func libcoapServer(proof ...string) (*process, string, bool) {
	bin, err := exec.LookPath("coap-server-openssl")
	if err != nil {
		return nil, "", false
	}
	socket, err := net.ListenPacket("udp", "127.0.0.1:0") // a port that is free, at once
	if err != nil {
		return nil, "", false
	}
	_, text, _ := net.SplitHostPort(socket.LocalAddr().String())
	port, _ := strconv.Atoi(text)
	socket.Close()
	cmd := pinned(0, bin, append([]string{"-A", "127.0.0.1", "-p", strconv.Itoa(port), "-v", "0"}, proof...)...)
	cmd.Stderr = nil
	if cmd.Start() != nil {
		return nil, "", false
	}
	time.Sleep(500 * time.Millisecond)
	return &process{cmd: cmd}, "127.0.0.1:" + strconv.Itoa(port+1), true // DTLS is on the port after that of CoAP
}

// goCoAPServer is go-coap's own server, with a body about as large as that of whoami.
func goCoAPServer(order) error {
	body := bytes.Repeat([]byte("0123456789"), 20)
	m := mux.NewRouter()
	err := m.Handle("/", mux.HandlerFunc(func(w mux.ResponseWriter, _ *mux.Message) {
		_ = w.SetResponse(codes.Content, message.TextPlain, bytes.NewReader(body))
	}))
	if err != nil {
		return err
	}
	l, err := gonet.NewDTLSListener("udp", "127.0.0.1:0", gonet.NewDTLSServerOptions(
		dtls.WithPSK(func([]byte) ([]byte, error) { return []byte(benchKey), nil }), dtls.WithCipherSuites(dtls.TLS_PSK_WITH_AES_128_CCM_8),
	))
	if err != nil {
		return err
	}
	fmt.Println(l.Addr())
	return godtls.NewServer(options.WithMux(m), options.WithErrors(func(error) {})).Serve(l)
}

// coapLoad makes confirmable GETs, each worker on a session of its own.
func coapLoad(o order) error {
	sessions := make([]*dtls.Conn, o.Workers)
	var wg sync.WaitGroup
	fails := make([]error, o.Workers)
	places := make(chan struct{}, 4)
	for i := range sessions {
		places <- struct{}{}
		wg.Go(func() {
			for range 3 { // libcoap's server drops some
				if sessions[i], fails[i] = session(o.Addr, o.Keys[i%len(o.Keys)]); fails[i] == nil {
					break
				}
			}
			<-places
		})
	}
	wg.Wait()
	if err := errors.Join(fails...); err != nil {
		return err
	}
	defer func() {
		for _, c := range sessions {
			c.Close()
		}
	}()
	path := coap.Options{}.AddPath(o.Paths[0])
	return hammer(o, func(w, i int) error {
		c := sessions[w]
		m := coap.Message{Code: coap.GET, ID: uint16(i), Token: []byte{byte(i >> 8), byte(i)}, Options: path}
		if _, err := c.Write(m.Append(nil)); err != nil {
			return err
		}
		_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
		buf := make([]byte, 2048)
		for {
			n, err := c.Read(buf)
			if err != nil {
				return err
			}
			got, err := coap.Parse(buf[:n])
			switch {
			case err != nil:
				return err
			case !slices.Equal(got.Token, m.Token):
				continue
			case got.Code != coap.Content:
				return errors.New(got.Code.String())
			}
			return nil
		}
	})
}

// session opens a session with a pre-shared key.
func session(at string, k psKey) (*dtls.Conn, error) {
	addr, err := net.ResolveUDPAddr("udp", at)
	if err != nil {
		return nil, err
	}
	c, err := dtls.DialWithOptions("udp", addr,
		dtls.WithPSK(func([]byte) ([]byte, error) { return k.Secret, nil }),
		dtls.WithPSKIdentityHint([]byte(k.Identity)),
		dtls.WithCipherSuites(dtls.TLS_PSK_WITH_AES_128_CCM_8),
	)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 4*time.Second)
	defer cancel()
	return c, c.HandshakeContext(ctx)
}
