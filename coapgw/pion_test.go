package coapgw //nolint:testpackage // it looks at what is written into pion's connection

import (
	"bytes"
	"net"
	"reflect"
	"testing"

	"github.com/pion/dtls/v3"
	"github.com/pion/dtls/v3/pkg/crypto/prf"
)

// TestPionExpectsOurCookie is the first to fail when an upgrade of pion moves
// its cookie; docs/decisions/0023 says what to do then.
func TestPionExpectsOurCookie(t *testing.T) {
	c, err := newCookies()
	if err != nil {
		t.Fatal(err)
	}
	socket, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	conn, err := dtls.ServerWithOptions(socket, socket.LocalAddr(), dtls.WithPSK(func([]byte) ([]byte, error) { return nil, nil }), dtls.WithCipherSuites(dtls.TLS_PSK_WITH_AES_128_CCM_8))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	k := cookie{1, 2, 3, 19: 20}
	c.expect(conn, k)
	if got := reflect.ValueOf(conn).Elem().FieldByName("state").FieldByName("cookie").Bytes(); !bytes.Equal(got, k[:]) {
		t.Errorf("pion expects %x, want %x", got, k)
	}
}

// TestKeysAreThoseOfPion derives keys of every length there is, of a suite of every hash.
func TestKeysAreThoseOfPion(t *testing.T) {
	master, client, server := bytes.Repeat([]byte{1}, 48), bytes.Repeat([]byte{2}, 32), bytes.Repeat([]byte{3}, 32)
	for id, s := range suites {
		got, err := deriveKeys(id, master, client, server)
		if err != nil {
			t.Fatal(err)
		}
		want, err := prf.PHash(master, append(append([]byte("key expansion"), server...), client...), 2*(s.mac+s.key+s.iv), s.hash)
		if err != nil || !bytes.Equal(got.block, want) {
			t.Errorf("%v: got %x, %v, want %x", id, got.block, err, want)
		}
	}
}
