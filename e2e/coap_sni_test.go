//go:build e2e

package e2e_test

import (
	"crypto/tls"
	"crypto/x509"
	"net"
	"slices"
	"strings"
	"testing"

	"github.com/pion/dtls/v3"
)

// With a certificate from elsewhere for the name that the world knows, and one of its own for
// the name that devices know, the server shows the one that fits the name a client asks for
// (RFC 6066, 3), on every transport. DTLS cannot show one with RSA.
func TestCertificateByName(t *testing.T) {
	t.Parallel()
	const world, plant = "iot.example.com", "gateway.plant"
	for _, kind := range []string{"ec", "rsa"} {
		s := prepare(t, "tls.names=localhost,127.0.0.1,"+plant)
		s.args = append(s.args, "--set", "tls.certificate="+s.path("world.pem"), "--set", "tls.key="+s.path("world.key"))
		options := []string{"req", "-x509", "-nodes", "-keyout", "world.key", "-out", "world.pem", "-subj", "/CN=" + world, "-addext", "subjectAltName=DNS:" + world, "-newkey"}
		if kind == "ec" {
			options = append(options, "ec", "-pkeyopt", "ec_paramgen_curve:P-256")
		} else {
			options = append(options, "rsa:2048")
		}
		s.must("openssl", options...)
		s.start()
		device := s.textPSK().Device
		cert := s.enrol(device, "device")
		shown := map[string]func(name string) (*x509.Certificate, error){
			"HTTPS": func(name string) (*x509.Certificate, error) { return s.showsOverTLS(s.at.HTTPS, name) },
			"TCP":   func(name string) (*x509.Certificate, error) { return s.showsOverTLS(s.at.CoAPTCP, name) },
			"DTLS": func(name string) (*x509.Certificate, error) {
				c, err := s.dial(append(withCertificate(cert), dtls.WithServerName(name), dtls.WithInsecureSkipVerify(true))...)
				if err != nil {
					return nil, err
				}
				defer c.close()
				state, _ := c.conn.ConnectionState()
				return x509.ParseCertificate(state.PeerCertificates[0])
			},
		}
		for over, show := range shown {
			for name, want := range map[string]string{world: world, plant: plant, "": world, "another.example": world} {
				if over == "DTLS" && kind == "rsa" || over == "HTTPS" && name == "" { // which was reached at 127.0.0.1
					want = plant
				}
				got, err := show(name)
				if err != nil || !slices.Contains(got.DNSNames, want) {
					t.Errorf("%s key, over %s, asked for %q: got %v, %v, want the certificate of %s", kind, over, name, got, err, want)
				}
			}
		}
		// A client that trusts the server's own CA alone is served by the name it knows.
		r := s.run("coap-client-openssl", "-B", "10", "-A", "50", "-C", s.ca(), "-c", cert.cert, "-j", cert.key, "coaps://localhost:"+port(s.at.CoAPUDP)+"/whoami")
		if !strings.Contains(r.out, device) {
			t.Errorf("%s key: a client that trusts our CA got %q", kind, r.all())
		}
		s.stop()
	}
}

// showsOverTLS is the certificate that a port shows to who asks for a name, "" for none.
func (s *server) showsOverTLS(at, name string) (*x509.Certificate, error) {
	conn, err := net.Dial("tcp", at)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	c := tls.Client(conn, &tls.Config{ServerName: name, InsecureSkipVerify: true})
	if err := c.HandshakeContext(s.t.Context()); err != nil {
		return nil, err
	}
	return c.ConnectionState().PeerCertificates[0], nil
}
