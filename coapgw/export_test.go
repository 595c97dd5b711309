package coapgw

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"time"

	"github.com/pion/dtls/v3"

	"keystead/coap"
)

// TestSession is a client's session by pre-shared key that weighs next to
// nothing: pion does the handshake, and the records are those of this package, seen from the
// other side.
type TestSession struct {
	socket *net.UDPConn
	keys   keys
	seq    uint64
	mid    uint16
}

// OfferOnly has the gateway offer one cipher suite over DTLS. It is called between Listen and Run.
func (g *Gateway) OfferOnly(suite dtls.CipherSuiteID) { g.udp.suites = []dtls.CipherSuiteID{suite} }

// lightConn tells pion of one socket, and remembers how far it numbered its records.
type lightConn struct {
	*net.UDPConn
	next uint64
	mute bool
}

// WriteTo implements net.PacketConn.
func (c *lightConn) WriteTo(b []byte, _ net.Addr) (int, error) {
	if c.mute {
		return len(b), nil
	}
	protected(b, 0, func(seq uint64) { c.next = max(c.next, seq+1) })
	return c.Write(b)
}

// Close leaves the socket open: the session goes on with it.
func (c *lightConn) Close() error { return c.SetReadDeadline(time.Now()) }

// NewTestSession opens a session.
func NewTestSession(to netip.AddrPort, name, key string) (*TestSession, error) {
	socket, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
	if err != nil {
		return nil, err
	}
	light := &lightConn{UDPConn: socket}
	conn, err := dtls.ClientWithOptions(light, net.UDPAddrFromAddrPort(to),
		dtls.WithPSK(func([]byte) ([]byte, error) { return []byte(key), nil }), dtls.WithPSKIdentityHint([]byte(name)),
		dtls.WithCipherSuites(dtls.TLS_PSK_WITH_AES_128_CCM_8), dtls.WithLoggerFactory(quiet{}))
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := conn.HandshakeContext(ctx); err != nil {
		socket.Close()
		return nil, err
	}
	e, err := export(conn)
	if err != nil {
		return nil, err
	}
	s := &TestSession{socket: socket, seq: light.next}
	light.mute = true // pion's last word must not end the session
	conn.Close()
	s.keys, err = deriveKeys(dtls.TLS_PSK_WITH_AES_128_CCM_8, e.MasterSecret, e.LocalRandom[:], e.RemoteRandom[:])
	return s, err
}

// Get makes a confirmable request and waits for its answer, asking again as often as it takes.
func (s *TestSession) Get(path string) error {
	p, err := s.keys.protection()
	if err != nil {
		return err
	}
	p.read, p.write, p.readIV, p.writeIV = p.write, p.read, p.writeIV, p.readIV // the other side
	s.mid++
	m := coap.Message{Code: coap.GET, ID: s.mid, Token: []byte{byte(s.mid >> 8), byte(s.mid)}, Options: coap.Options{}.AddPath(path)}
	buf := make([]byte, 2048)
	for range 3 {
		b, err := p.seal(nil, typeData, s.seq, nil, m.Append(nil))
		if err != nil {
			return err
		}
		s.seq++
		if _, err := s.socket.Write(b); err != nil {
			return err
		}
		_ = s.socket.SetReadDeadline(time.Now().Add(2 * time.Second))
		for {
			n, err := s.socket.Read(buf)
			if err != nil {
				break
			}
			r, _, ok := nextRecord(buf[:n])
			if !ok {
				continue
			}
			kind, content, err := p.open(r)
			if err != nil {
				continue
			}
			if kind != typeData {
				return errors.New("the session is closed")
			}
			got, err := coap.Parse(content)
			if err == nil && string(got.Token) == string(m.Token) && got.Code == coap.Content {
				return nil
			}
		}
	}
	return errors.New("no answer")
}

// Close closes the socket without a word.
func (s *TestSession) Close() { s.socket.Close() }
