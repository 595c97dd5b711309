//go:build e2e

package e2e_test

import (
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestAPSKDeviceIsRecognisedByLibcoap(t *testing.T) {
	t.Parallel()
	s := start(t)
	k := s.textPSK()
	for _, client := range coapClients {
		r := s.coap(client, "-A", "50", "-u", k.Identity, "-k", k.text(t), s.coaps("/whoami"))
		s.whoami(r.out).isDevice(s, k.Device, "psk")
		r = s.coap(client, "-u", k.Identity, "-k", k.text(t), s.coaps("/whoami")) // CBOR is the default
		if !strings.Contains(r.out, k.Device) {
			t.Errorf("%s: got %q, want CBOR with the device's id", client, r.all())
		}
	}
}

// What a client sees of an unknown identity must not differ from what it sees
// of a wrong key (RFC 4279, 2): else identities could be guessed.
func TestUnknownIdentityAndWrongKeyLookTheSame(t *testing.T) {
	t.Parallel()
	s := start(t, fast...)
	k := s.textPSK()
	const wrongKey = "wrong-key-wrong-key-wrong-key-32"
	identities := [...]string{k.Identity, "nobody-of-that-name-xx"} // the second as long as the first
	var pion [2]string
	var libcoap [2][2]string
	var done sync.WaitGroup
	for i, identity := range identities {
		done.Go(func() {
			socket, err := net.ListenPacket("udp", "127.0.0.1:0")
			if err != nil {
				t.Error(err)
				return
			}
			if _, err = s.dialFrom(socket, 8*time.Second, withPSK(key{Identity: identity}, wrongKey)...); err == nil {
				t.Errorf("%s: the handshake succeeded", identity)
				return
			}
			pion[i] = err.Error()
		})
		for j, client := range coapClients {
			done.Go(func() {
				r := s.coap(client, "-v", "6", "-u", identity, "-k", wrongKey, s.coaps("/whoami"))
				refusedOverCoAP(s, r)
				libcoap[i][j] = essence(r)
			})
		}
	}
	done.Wait()
	if pion[0] != pion[1] {
		t.Errorf("got %q for a wrong key and %q for an unknown identity", pion[0], pion[1])
	}
	if libcoap[0] != libcoap[1] {
		t.Errorf("got %q for a wrong key and %q for an unknown identity", libcoap[0], libcoap[1])
	}
}

// essence is what a client printed, without times and ports, each line once and
// in order of the alphabet: what times out first is the scheduler's choice.
func essence(r result) string {
	seen := map[string]bool{}
	var lines []string
	for line := range strings.Lines(r.all()) {
		var words []string
		for w := range strings.FieldsSeq(line) {
			if !strings.ContainsAny(w, "0123456789") && !strings.HasPrefix(w, "i:") { // i: is a random id in hexadecimal
				words = append(words, w)
			}
		}
		if line = strings.Join(words, " "); !seen[line] {
			seen[line] = true
			lines = append(lines, line)
		}
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// A device that loses its power and comes back from the same port has a new
// handshake where the server still has a session.
func TestRebootFromTheSamePort(t *testing.T) {
	t.Parallel()
	s := start(t)
	k := s.textPSK()
	socket, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := socket.LocalAddr().String()
	for boot := range 5 {
		if boot > 0 {
			if socket, err = net.ListenPacket("udp", addr); err != nil {
				t.Fatal(err)
			}
		}
		c, err := s.dialFrom(silent{socket}, 20*time.Second, withPSK(k, k.text(t))...)
		if err != nil {
			t.Fatalf("boot %d: %v", boot, err)
		}
		w, err := c.whoami()
		if err != nil {
			t.Fatalf("boot %d: %v", boot, err)
		}
		w.isDevice(s, k.Device, "psk")
		socket.Close() // no close_notify leaves it
	}
}

// silent is a socket whose Close says nothing to the other side: the test closes
// the real one.
type silent struct{ net.PacketConn }

func (silent) Close() error { return nil }
