//go:build e2e

package e2e_test

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/pion/dtls/v3"
)

// What devices with libcoap do, with both of Debian's builds of it: bodies of many blocks go
// up whole over DTLS and TLS, a large one comes down, and whoami is observed.
func TestLibcoapSendsFetchesAndObserves(t *testing.T) {
	t.Parallel()
	file := t.TempDir() + "/messages.jsonl"
	conf := t.TempDir() + "/keystead.yaml"
	write(t, conf, []byte("messages: {sinks: [{name: log, type: file, path: "+file+"}], rate: {per_second: 1000, burst: 1000}}\n"))
	s := prepare(t, fast...)
	s.args = append(s.args, "--config", conf)
	s.start()
	k := s.textPSK()
	cert := s.enrol(k.Device, "device")
	byPSK := []string{"-u", k.Identity, "-k", k.text(t)}
	byCert := []string{"-C", s.ca(), "-c", cert.cert, "-j", cert.key}
	tcp := "coaps+tcp://" + s.at.CoAPTCP

	sent := map[string]string{} // by name, what was sent under it
	for _, size := range []int{5000, 16_000} {
		for _, name := range coapClients {
			for _, block := range []string{"64", "1024"} {
				for over, args := range map[string][]string{"DTLS by key": append(byPSK, s.coaps("/messages")), "DTLS": append(byCert, s.coaps("/messages")), "TLS": append(byCert, tcp+"/messages")} {
					n := fmt.Sprintf("m%d", len(sent))
					value := strings.Repeat(n+".", size)[:size-len(n)-len(`[{"n":"","vs":""}]`)]
					sent[n] = value
					writeText(t, s.path("pack.json"), `[{"n":"`+n+`","vs":"`+value+`"}]`)
					if r := s.coap(name, append([]string{"-m", "post", "-t", "110", "-b", block, "-f", s.path("pack.json")}, args...)...); r.code != 0 || refusal.MatchString(r.all()) {
						t.Errorf("%s: %d bytes in blocks of %s over %s: %s", name, size, block, over, r.all())
					}
				}
			}
		}
	}
	s.eventually("the messages", func() bool {
		b, _ := os.ReadFile(file)
		return bytes.Count(b, []byte("\n")) >= len(sent)
	})
	for _, m := range read(t, readText(t, file)) {
		var pack []struct{ N, VS string }
		if err := json.Unmarshal(m.SenML, &pack); err != nil || len(pack) != 1 || m.Device != k.Device {
			t.Fatalf("a message is %.200s of %s: %v", m.SenML, m.Device, err)
		}
		if sent[pack[0].N] != pack[0].VS {
			t.Errorf("%s arrived as %d bytes, want the %d that were sent", pack[0].N, len(pack[0].VS), len(sent[pack[0].N]))
		}
		delete(sent, pack[0].N)
	}
	if len(sent) > 0 {
		t.Errorf("%d messages did not arrive", len(sent))
	}

	for _, name := range coapClients {
		for _, block := range []string{"64", "1024"} {
			for over, args := range map[string][]string{"DTLS": append(byPSK, s.coaps("/est/crts")), "TLS": append(byCert, tcp+"/est/crts")} {
				_ = os.Remove(s.path("crts.p7"))
				s.coap(name, append([]string{"-b", block, "-o", s.path("crts.p7")}, args...)...)
				if certs := s.must("openssl", "pkcs7", "-inform", "DER", "-in", "crts.p7", "-print_certs"); strings.Count(certs, "BEGIN CERTIFICATE") < 2 {
					t.Errorf("%s: the CA certificates in blocks of %s over %s: %s", name, block, over, certs)
				}
			}
		}
	}

	var wg sync.WaitGroup
	seen := make([]string, len(coapClients))
	for i, name := range coapClients {
		wg.Go(func() { seen[i] = s.coap(name, append(byPSK, "-A", "50", "-s", "6", s.coaps("/whoami"))...).all() })
	}
	s.eventually("two sessions", func() bool { return s.sessions() == len(coapClients) })
	for _, called := range []string{"renamed", "renamed-again"} {
		time.Sleep(700 * time.Millisecond) // the request may be on its way yet
		s.rest(http.MethodPatch, "/api/v1/devices/"+k.Device, `{"name":"`+called+`"}`, http.StatusOK)
	}
	wg.Wait()
	for i, name := range coapClients {
		if !strings.Contains(seen[i], `"renamed-again"`) || strings.Count(seen[i], `"organisation"`) < 2 {
			t.Errorf("%s observed %s, want what was and the new name", name, seen[i])
		}
	}
}

// sessions is how many sessions over CoAP there are.
func (s *server) sessions() int {
	s.t.Helper()
	var list struct{ Items []json.RawMessage }
	if err := json.Unmarshal([]byte(s.rest(http.MethodGet, "/api/v1/sessions", "", http.StatusOK)), &list); err != nil {
		s.t.Fatal(err)
	}
	return len(list.Items)
}

// OpenSSL's own client agrees with the server on each cipher suite there is, and on no other.
func TestOpenSSLSpeaksEverySuite(t *testing.T) {
	t.Parallel()
	s := start(t, append([]string{"coap.legacy_cbc=true"}, fast...)...)
	k := s.textPSK()
	cert := s.enrol(k.Device, "device")
	agreed := func(suite string) bool {
		args := []string{"s_client", "-dtls1_2", "-connect", s.at.CoAPUDP, "-cipher", suite + ":@SECLEVEL=0"}
		if strings.Contains(suite, "PSK") {
			args = append(args, "-psk_identity", k.Identity, "-psk", k.Secret)
		} else {
			args = append(args, "-cert", cert.cert, "-key", cert.key, "-CAfile", s.ca(), "-verify_return_error")
		}
		r := s.runWith(bytes.NewReader(nil), "openssl", args...)
		return strings.Contains(r.out, "Cipher is "+suite+"\n")
	}
	for _, suite := range []string{
		"PSK-AES128-CCM8", "PSK-AES128-CCM", "PSK-AES256-CCM8", "PSK-AES128-GCM-SHA256", "PSK-CHACHA20-POLY1305", "PSK-AES128-CBC-SHA256",
		"ECDHE-PSK-CHACHA20-POLY1305", "ECDHE-PSK-AES128-CBC-SHA256",
		"ECDHE-ECDSA-AES128-CCM8", "ECDHE-ECDSA-AES128-CCM", "ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-ECDSA-AES256-GCM-SHA384", "ECDHE-ECDSA-CHACHA20-POLY1305",
	} {
		if !agreed(suite) {
			t.Errorf("%s: no session", suite)
		}
	}
	for _, suite := range []string{"PSK-AES256-CBC-SHA", "PSK-NULL-SHA256", "DHE-PSK-AES128-GCM-SHA256", "ECDHE-ECDSA-AES128-SHA256"} {
		if agreed(suite) {
			t.Errorf("%s: a session", suite)
		}
	}
}

// roamer is a socket whose address changes.
type roamer struct {
	now atomic.Pointer[net.PacketConn]
}

func (r *roamer) socket() net.PacketConn { return *r.now.Load() }

// move has r send and receive at another port from now on.
func (r *roamer) move(t *testing.T) {
	t.Helper()
	next, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if old := r.now.Swap(&next); old != nil {
		(*old).Close()
	}
}

func (r *roamer) ReadFrom(b []byte) (int, net.Addr, error) {
	for {
		at := r.now.Load()
		n, from, err := (*at).ReadFrom(b)
		if err == nil || r.now.Load() == at {
			return n, from, err
		}
	}
}

func (r *roamer) WriteTo(b []byte, to net.Addr) (int, error) { return r.socket().WriteTo(b, to) }
func (r *roamer) Close() error                               { return r.socket().Close() }
func (r *roamer) LocalAddr() net.Addr                        { return r.socket().LocalAddr() }
func (r *roamer) SetDeadline(at time.Time) error             { return r.socket().SetDeadline(at) }
func (r *roamer) SetReadDeadline(at time.Time) error         { return r.socket().SetReadDeadline(at) }

func (r *roamer) SetWriteDeadline(at time.Time) error { return r.socket().SetWriteDeadline(at) }

// A session with a connection id goes on from whatever port its device has, by either kind of credential.
func TestASessionRoamsAcrossPorts(t *testing.T) {
	t.Parallel()
	s := start(t)
	k := s.textPSK()
	for kind, opts := range map[string][]dtls.ClientOption{"psk": withPSK(k, k.text(t)), "certificate": withCertificate(s.enrol(k.Device, "device"))} {
		socket := &roamer{}
		socket.move(t)
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		defer cancel()
		c, err := s.dialContext(ctx, socket, append(opts, dtls.WithConnectionIDGenerator(dtls.OnlySendCIDGenerator()))...)
		if err != nil {
			t.Fatal(err)
		}
		for range 4 {
			w, err := c.whoami()
			if err != nil {
				t.Fatalf("%s, at %v: %v", kind, socket.LocalAddr(), err)
			}
			w.isDevice(s, k.Device, kind)
			if list := s.rest(http.MethodGet, "/api/v1/sessions", "", http.StatusOK); s.sessions() != 1 || !strings.Contains(list, socket.LocalAddr().String()) {
				t.Errorf("%s: the sessions are %s, want one, at %v", kind, list, socket.LocalAddr())
			}
			socket.move(t)
		}
		c.close()
		s.rest(http.MethodPost, "/api/v1/devices/"+k.Device+"/suspend", "", http.StatusOK) // it cannot say that it is over from where it is now
		s.rest(http.MethodPost, "/api/v1/devices/"+k.Device+"/resume", "", http.StatusOK)
	}
}
