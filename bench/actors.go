package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	mrand "math/rand/v2"
	"net/http"
	"strings"
	"time"

	"keystead/authsets"
	"keystead/id"
)

// estDevice is a device that has enrolled.
type estDevice struct {
	name string
	key  *ecdsa.PrivateKey
	leaf *x509.Certificate
}

func (d *estDevice) serial() string { return hex.EncodeToString(d.leaf.SerialNumber.Bytes()) }

// enrolled has a new device get a certificate over EST, and keeps what it needs to renew it.
func (c *caller) enrolled(token string) (*estDevice, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	d := &estDevice{name: "soak-" + id.Random(), key: key}
	return d, d.ask(c.http, c.addr, "simpleenroll", token)
}

// renew gets d a certificate in place of the one it has, which proves it.
func (d *estDevice) renew(addr string) error {
	t := &http.Transport{TLSClientConfig: &tls.Config{
		InsecureSkipVerify: true, // of a server this program started
		Certificates:       []tls.Certificate{{Certificate: [][]byte{d.leaf.Raw}, PrivateKey: d.key}},
	}}
	defer t.CloseIdleConnections()
	return d.ask(&http.Client{Timeout: 30 * time.Second, Transport: t}, addr, "simplereenroll", "")
}

func (d *estDevice) ask(c *http.Client, addr, operation, token string) error {
	csr, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: pkix.Name{CommonName: d.name}}, d.key)
	if err != nil {
		return err
	}
	req, err := http.NewRequest(http.MethodPost, "https://"+addr+"/.well-known/est/"+operation, strings.NewReader(base64.StdEncoding.EncodeToString(csr)))
	if err != nil {
		return err
	}
	if token != "" {
		req.SetBasicAuth("enrol", token)
	}
	req.Header.Set("Content-Type", "application/pkcs10")
	req.Header.Set("Accept", "application/x-pem-file")
	res, err := c.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		return err
	}
	if res.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s: %.200s", operation, res.Status, body)
	}
	block, _ := pem.Decode(body)
	if block == nil {
		return errors.New("the answer has no certificate")
	}
	d.leaf, err = x509.ParseCertificate(block.Bytes)
	return err
}

// renewals renews devices in turn, each a few times, so that there is always one whose turn it is.
func renewals(c *caller, token string) func() error {
	places := make(chan *estDevice, 16)
	return func() error {
		var d *estDevice
		select {
		case d = <-places:
		default:
			var err error
			if d, err = c.enrolled(token); err != nil {
				return err
			}
		}
		if err := d.renew(c.addr); err != nil {
			return err
		}
		if mrand.IntN(8) > 0 {
			select {
			case places <- d:
			default:
			}
		}
		return nil
	}
}

// authDevices are devices that get in by an auth set, and are accepted.
func (c *caller) authDevices(n int) ([]authsets.Request, error) {
	var list []authsets.Request
	for range n {
		request, err := authRequest(fmt.Sprintf(`{"mac":%q}`, id.Random()))
		if err != nil {
			return nil, err
		}
		var sent struct {
			Identity json.RawMessage `json:"id_data"`
			Key      string          `json:"pubkey"`
		}
		if err := json.Unmarshal(request.Body, &sent); err != nil {
			return nil, err
		}
		var text string
		if err := json.Unmarshal(sent.Identity, &text); err != nil {
			return nil, err
		}
		err = c.call(http.MethodPost, "/api/management/v2/devauth/devices", map[string]any{"identity_data": json.RawMessage(text), "pubkey": sent.Key}, nil)
		if err != nil {
			return nil, err
		}
		list = append(list, request)
	}
	return list, nil
}

// deviceToken gets one of the devices a token by its signature.
func (c *caller) deviceToken(devices []authsets.Request) error {
	d := devices[mrand.IntN(len(devices))]
	req, err := http.NewRequest(http.MethodPost, "https://"+c.addr+"/api/devices/v1/authentication/auth_requests", strings.NewReader(string(d.Body)))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("X-MEN-Signature", d.Signature)
	return c.do(req, nil)
}
