package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/pion/dtls/v3"

	"keystead/pki"
)

// certificate is one of a device or a server, with its key.
type certificate struct {
	Chain [][]byte // DER, leaf first
	Key   []byte   // PKCS #8
}

func (c certificate) tls() (tls.Certificate, error) {
	key, err := x509.ParsePKCS8PrivateKey(c.Key)
	return tls.Certificate{Certificate: c.Chain, PrivateKey: key}, err
}

// certificateBench measures DTLS handshakes in which both sides show certificates.
func certificateBench(r *run) error {
	f, err := r.fleetOf(1000)
	if err != nil {
		return err
	}
	p, err := r.serve(f.dir)
	if err != nil {
		return err
	}
	defer p.stop()
	known, err := enrolled(order{Addr: p.at["https"], Token: f.admin.APIKey}, 20)
	if err != nil {
		return err
	}
	ca, server, theirs, err := authorityOf(len(known))
	if err != nil {
		return err
	}
	bare, addr, err := r.role("pioncertificates", order{CA: ca, Certs: []certificate{server}})
	if err != nil {
		return err
	}
	defer bare.stop()
	servers := []shaker{{"keystead", p, order{Addr: p.at["coap_udp"], Certs: known}}, {"bare pion", bare, order{Addr: addr, Certs: theirs}}}
	args, err := pemFiles(r.dir, ca, server)
	if err != nil {
		return err
	}
	if lib, at, ok := libcoapServer(args...); ok {
		defer lib.stop()
		servers = append(servers, shaker{"libcoap-openssl", lib, order{Addr: at, Certs: theirs}})
	}
	return r.shake("certificates", servers, func(i int, v float64) string {
		if i == 1 {
			return figure(v) + " of bare pion, " + r.verdict(v, atLeast(0.9, ""))
		}
		return figure(v) + " times libcoap-openssl's, " + r.verdict(v, atLeast(2, " times"))
	})
}

// enrolled has n new devices get certificates of a server.
func enrolled(o order, n int) ([]certificate, error) {
	c := newCaller(o)
	token, err := c.enrolmentToken()
	if err != nil {
		return nil, err
	}
	all := make([]certificate, n)
	for i := range all {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, err
		}
		csr, err := csrOf(key)
		if err != nil {
			return nil, err
		}
		body, err := c.enrolWith(token, csr)
		if err != nil {
			return nil, err
		}
		der, err := base64.StdEncoding.DecodeString(strings.Join(strings.Fields(string(body)), ""))
		if err != nil {
			return nil, err
		}
		certs, err := pki.ParseCertsOnly(der)
		if err != nil {
			return nil, err
		}
		for _, cert := range certs {
			if key.PublicKey.Equal(cert.PublicKey) { // the device shows its own, as the others do
				all[i].Chain = [][]byte{cert.Raw}
			}
		}
		if all[i].Chain == nil {
			return nil, errors.New("the enrolment gave no certificate for the key")
		}
		if all[i].Key, err = x509.MarshalPKCS8PrivateKey(key); err != nil {
			return nil, err
		}
	}
	return all, nil
}

// authorityOf makes a CA with the certificate of a server and those of n devices.
func authorityOf(n int) (ca []byte, server certificate, clients []certificate, err error) {
	root := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "bench root"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	rootKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, server, nil, err
	}
	if ca, err = x509.CreateCertificate(rand.Reader, root, root, rootKey.Public(), rootKey); err != nil {
		return nil, server, nil, err
	}
	issue := func(i int, name string) (c certificate, err error) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return c, err
		}
		der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
			SerialNumber: big.NewInt(int64(i) + 2), Subject: pkix.Name{CommonName: name}, NotBefore: root.NotBefore, NotAfter: root.NotAfter,
			KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
			DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		}, root, key.Public(), rootKey)
		if err != nil {
			return c, err
		}
		c.Chain = [][]byte{der}
		c.Key, err = x509.MarshalPKCS8PrivateKey(key)
		return c, err
	}
	if server, err = issue(0, "localhost"); err != nil {
		return nil, server, nil, err
	}
	clients = make([]certificate, n)
	for i := range clients {
		if clients[i], err = issue(i+1, fmt.Sprintf("device %d", i)); err != nil {
			return nil, server, nil, err
		}
	}
	return ca, server, clients, nil
}

// pemFiles writes what libcoap's server proves itself by, and returns the arguments that say so.
func pemFiles(dir string, ca []byte, server certificate) ([]string, error) {
	var args []string
	for _, f := range []struct {
		flag, name, kind string
		der              []byte
	}{{"-c", "server.pem", "CERTIFICATE", server.Chain[0]}, {"-j", "server.key", "PRIVATE KEY", server.Key}, {"-C", "ca.pem", "CERTIFICATE", ca}} {
		path := filepath.Join(dir, f.name)
		if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: f.kind, Bytes: f.der}), 0o600); err != nil {
			return nil, err
		}
		args = append(args, f.flag, path)
	}
	return args, nil
}

// pionCertificateServer is the bare yardstick: pion's own listener, which
// verifies that its CA issued what the client shows.
func pionCertificateServer(o order) error {
	ca, err := x509.ParseCertificate(o.CA)
	if err != nil {
		return err
	}
	pool := x509.NewCertPool()
	pool.AddCert(ca)
	server, err := o.Certs[0].tls()
	if err != nil {
		return err
	}
	l, err := dtls.ListenWithOptions("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)},
		dtls.WithCertificates(server), dtls.WithClientAuth(dtls.RequireAndVerifyClientCert), dtls.WithClientCAs(pool),
		dtls.WithCipherSuites(dtls.TLS_ECDHE_ECDSA_WITH_AES_128_CCM_8),
	)
	if err != nil {
		return err
	}
	return acceptAll(l)
}

func certificateLoad(o order) error {
	certs := make([]tls.Certificate, len(o.Certs))
	for i, c := range o.Certs {
		var err error
		if certs[i], err = c.tls(); err != nil {
			return err
		}
	}
	addr, err := net.ResolveUDPAddr("udp", o.Addr)
	if err != nil {
		return err
	}
	return hammer(o, func(w, i int) error {
		return tries(func() error {
			c, err := dtls.DialWithOptions("udp", addr,
				dtls.WithCertificates(certs[(w+i)%len(certs)]), dtls.WithInsecureSkipVerify(true), // what a client does with the server's is not measured
				dtls.WithCipherSuites(dtls.TLS_ECDHE_ECDSA_WITH_AES_128_CCM_8),
			)
			if err != nil {
				return err
			}
			defer c.Close()
			ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
			defer cancel()
			return c.HandshakeContext(ctx)
		})
	})
}
