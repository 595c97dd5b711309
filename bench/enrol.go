package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"math/big"
	"strconv"
	"time"
)

// enrolBench measures EST enrolments.
func enrolBench(r *run) error {
	f, err := r.fleetOf(1000)
	if err != nil {
		return err
	}
	p, err := r.serve(f.dir)
	if err != nil {
		return err
	}
	defer p.stop()
	bare, err := bareEnrol()
	if err != nil {
		return err
	}
	rows := [][]string{{"clients", "enrolments a second, all durable", "server CPU each", "bare cryptography", "of it", "p50, p99 of the last round"}}
	for _, clients := range []int{1, 16, 64} {
		var last result
		var rate series
		got, err := r.inTurns(
			contender{"keystead", func() (float64, error) {
				cost, res, err := p.cost(func() (result, error) {
					return r.load("est", order{Addr: p.at["https"], Workers: clients, Token: f.admin.APIKey})
				})
				last = res
				rate.values = append(rate.values, float64(res.Done)/r.time.Seconds())
				return cost, err
			}},
			contender{"bare", func() (float64, error) { return r.each(bare) }},
		)
		if err != nil {
			return err
		}
		rows = append(rows, []string{
			strconv.Itoa(clients), rate.text(""), got[0].text(" µs"), got[1].text(" µs"), figure(ratio(got[0], got[1])) + " times",
			fmt.Sprintf("%v, %v", last.P50, last.P99),
		})
	}
	r.table(rows...)
	return nil
}

func estLoad(o order) error {
	c := newCaller(o)
	token, err := c.enrolmentToken()
	if err != nil {
		return err
	}
	return hammer(o, func(int, int) error { return c.enrol(token) })
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
