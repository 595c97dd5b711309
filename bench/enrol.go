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
	"io"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// factory is a manufacturer's CA, whose certificates let its stations enrol the
// devices they make.
type factory struct {
	Certificate []byte
	Key         []byte // PKCS#8
}

// factoryDMS is the enrolment profile of the factory.
const factoryDMS = "bench-factory"

// enrolBench measures EST enrolments.
func enrolBench(r *run) error {
	made, err := newFactory()
	if err != nil {
		return err
	}
	bare, err := bareEnrol()
	if err != nil {
		return err
	}
	dirs := [2]string{}
	var servers [2]*process
	for i := range servers {
		dirs[i] = filepath.Join(r.dir, "enrol-"+strconv.Itoa(i))
		if err := os.Mkdir(dirs[i], 0o700); err != nil {
			return err
		}
		if i == 0 {
			servers[i], err = r.serve(dirs[i])
		} else {
			servers[i], err = r.host(dirs[i], hosting{Memory: true})
		}
		if err != nil {
			return err
		}
		defer servers[i].stop()
		if err := made.register(servers[i], dirs[i]); err != nil {
			return err
		}
	}
	rows := [][]string{{"clients", "enrolments a second, all durable", "of the same server without a store", "server CPU each", "without a store", "bare cryptography", "of it", "p50, p99 of the last round", "goals"}}
	for _, clients := range []int{1, 16, 64} {
		var last [2]result
		var rates [2]series
		measure := func(i int) func() (float64, error) {
			return func() (float64, error) {
				cost, res, err := servers[i].cost(func() (result, error) {
					return r.load("est", order{Addr: servers[i].at["https"], Workers: clients, Factory: made, PID: servers[i].pid()})
				})
				last[i] = res
				rates[i].values = append(rates[i].values, float64(res.Done)/r.time.Seconds())
				return cost, err
			}
		}
		got, err := r.inTurns(
			contender{"keystead", measure(0)},
			contender{"without a store", measure(1)},
			contender{"bare", func() (float64, error) { return r.each(bare) }},
		)
		if err != nil {
			return err
		}
		for i := range rates {
			rates[i].values = rates[i].values[1:] // the first does not count
		}
		times, part := ratio(got[0], got[2]), ratio(rates[0], rates[1])
		var goals string
		switch clients {
		case 1:
			goals = "p50 " + r.verdict(float64(last[0].P50)/1e6, atMost(2.5, " ms"))
		case 64:
			goals = "CPU " + r.verdict(times, atMost(2.6, " times the cryptography")) + "; rate " + r.verdict(part, atLeast(0.75, " of that without a store"))
		}
		rows = append(rows, []string{
			strconv.Itoa(clients), rates[0].text(""), figure(part) + " of " + rates[1].text(""), got[0].text(" µs"), got[1].text(" µs"), got[2].text(" µs"), figure(times) + " times",
			fmt.Sprintf("%v, %v", last[0].P50, last[0].P99), goals,
		})
	}
	r.table(rows...)
	return nil
}

// newFactory makes the CA.
func newFactory() (*factory, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Factory"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().AddDate(1, 0, 0),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	f := &factory{}
	if f.Certificate, err = x509.CreateCertificate(rand.Reader, template, template, key.Public(), key); err != nil {
		return nil, err
	}
	f.Key, err = x509.MarshalPKCS8PrivateKey(key)
	return f, err
}

// register has a server take the factory's certificates for enrolling.
func (f *factory) register(p *process, dir string) error {
	in := fleet{dir: dir}
	if err := in.readAdmin(); err != nil {
		return err
	}
	c := newCaller(order{Addr: p.at["https"], Workers: 1, Token: in.admin.APIKey})
	var ca struct {
		ID string `json:"id"`
	}
	err := c.call(http.MethodPost, "/api/v1/cas/import", map[string]string{
		"name": "Factory", "certificate": string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: f.Certificate})),
	}, &ca)
	if err != nil {
		return err
	}
	return c.call(http.MethodPost, "/api/v1/dms", map[string]any{
		"id": factoryDMS, "name": "Factory", "settings": map[string]any{"enrollment_settings": map[string]any{
			"registration_mode": "JITP", "verify_csr_signature": true,
			"est_rfc7030_settings": map[string]any{"auth_mode": "CLIENT_CERTIFICATE", "client_certificate_settings": map[string]any{"validation_cas": []string{ca.ID}}},
		}},
	}, nil)
}

// station is a client with a certificate of the factory's, and a connection of
// its own.
func (f *factory) station(n int) (*http.Client, error) {
	ca, err := x509.ParseCertificate(f.Certificate)
	if err != nil {
		return nil, err
	}
	signer, err := x509.ParsePKCS8PrivateKey(f.Key)
	if err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		SerialNumber: big.NewInt(int64(n) + 2), Subject: pkix.Name{CommonName: "station " + strconv.Itoa(n)}, NotBefore: ca.NotBefore, NotAfter: ca.NotAfter,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}, ca, key.Public(), signer)
	if err != nil {
		return nil, err
	}
	return &http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{
		InsecureSkipVerify: true, // of a server this program started
		Certificates:       []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
	}}}, nil
}

// estLoad enrols new devices, over connections that stay, by the certificates of
// stations.
func estLoad(o order) error {
	stations := make([]*http.Client, o.Workers)
	for i := range stations {
		var err error
		if stations[i], err = o.Factory.station(i); err != nil {
			return err
		}
		if err := o.Factory.enrol(o.Addr, stations[i]); err != nil { // the connection is there then
			return err
		}
	}
	return hammer(o, func(w, _ int) error { return o.Factory.enrol(o.Addr, stations[w]) })
}

func (f *factory) enrol(addr string, c *http.Client) error {
	csr, err := newCSR()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+addr+"/.well-known/est/"+factoryDMS+"/simpleenroll", strings.NewReader(base64.StdEncoding.EncodeToString(csr)))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/pkcs10")
	res, err := c.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	switch {
	case err != nil:
		return err
	case res.StatusCode != http.StatusOK:
		return fmt.Errorf("%s: %.200s", res.Status, body)
	case len(body) < 500:
		return errors.New("the answer is no certificate")
	}
	return nil
}

// bareEnrol is what an enrolment cannot be done without: the request is parsed
// and its signature checked, and a certificate signed.
func bareEnrol() (func(int) error, error) {
	requests := make([][]byte, 100)
	for i := range requests {
		var err error
		if requests[i], err = newCSR(); err != nil {
			return nil, err
		}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	ca := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "CA"}, NotBefore: time.Now(), NotAfter: time.Now().AddDate(1, 0, 0), IsCA: true, BasicConstraintsValid: true}
	return func(i int) error {
		csr, err := x509.ParseCertificateRequest(requests[i%len(requests)])
		if err != nil {
			return err
		}
		if err := csr.CheckSignature(); err != nil {
			return err
		}
		_, err = x509.CreateCertificate(rand.Reader, &x509.Certificate{
			SerialNumber: big.NewInt(int64(i) + 2), Subject: csr.Subject, NotBefore: ca.NotBefore, NotAfter: ca.NotAfter,
		}, ca, csr.PublicKey, key)
		return err
	}, nil
}
