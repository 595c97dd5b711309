package main

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/crypto/ocsp"

	"keystead/identity"
	"keystead/page"
	"keystead/pki"
	"keystead/server"
	"keystead/store"
)

// crlBench measures lists of revoked certificates, and OCSP.
func crlBench(r *run) error {
	f := &fleet{dir: filepath.Join(r.dir, "revoked"), n: r.revoked}
	if r.keep != "" {
		f.dir = filepath.Join(r.keep, "revoked-"+strconv.Itoa(r.revoked))
	}
	var one, many pki.CAID // with one shard, and with as many as come
	noted := filepath.Join(f.dir, "cas.json")
	if _, err := os.Stat(noted); err != nil {
		if err := f.revoke(r.ctx, noted); err != nil {
			return err
		}
	}
	b, err := os.ReadFile(noted)
	if err != nil {
		return err
	}
	var cas []pki.CAID
	if err := json.Unmarshal(b, &cas); err != nil || len(cas) != 2 {
		return fmt.Errorf("%s: %w", noted, err)
	}
	one, many = cas[0], cas[1]
	if err := f.readAdmin(); err != nil {
		return err
	}
	s, err := f.open(r.ctx)
	if err != nil {
		return err
	}
	defer s.Close()
	ctx := f.context(r.ctx)
	var size int
	once := func(ca pki.CAID) func() (float64, error) {
		return func() (float64, error) {
			c, err := issueAndRevoke(ctx, s, ca)
			if err != nil {
				return 0, err
			}
			before := spent()
			crl, err := s.PKI.CRL(r.ctx, ca, c.Shard)
			if ca == one {
				size = len(crl.DER)
			}
			return float64((spent() - before).Microseconds()) / 1000, err
		}
	}
	bare, err := bareCRL(r.ctx, s, one)
	if err != nil {
		return err
	}
	got, err := r.inTurns(contender{"in a shard", once(many)}, contender{"in one list", once(one)}, contender{"bare", bare})
	if err != nil {
		return err
	}
	v := ratio(got[1], got[2])
	r.table(
		[]string{"what", "CPU", "goal"},
		[]string{"the CRL that is asked for after one more revocation, of a CA with " + thousands(r.revoked) + " in its usual shards", got[0].text(" ms"), r.verdict(got[0].median(), atMost(50, " ms"))},
		[]string{fmt.Sprintf("the same of a CA with all %s in one list, of %s kB", thousands(r.revoked), thousands(size/1000)), got[1].text(" ms"), figure(v) + " times the bare cost, " + r.verdict(v, atMost(1.5, ""))},
		[]string{"bare: the standard library makes that list of entries in memory", got[2].text(" ms"), ""},
	)
	return ocspBench(ctx, r, s)
}

// issueSome issues n certificates by a CA, of no device.
func issueSome(ctx context.Context, s *server.Server, ca pki.CAID, n int) ([]pki.Certificate, error) {
	profile, err := s.PKI.Profile(ctx, pki.DeviceProfile)
	if err != nil {
		return nil, err
	}
	list := make([]*pki.Prepared, n)
	for i := range list {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, err
		}
		list[i], err = s.PKI.Prepare(ctx, pki.Request{Org: identity.OrgOf(ctx), CA: ca, Profile: profile, Public: key.Public(), Subject: &pki.Subject{CommonName: "revoked"}})
		if err != nil {
			return nil, err
		}
	}
	return s.PKI.IssueAll(ctx, list, func(context.Context, store.Tx, int, *pki.Certificate) error { return nil })
}

func issueAndRevoke(ctx context.Context, s *server.Server, ca pki.CAID) (pki.Certificate, error) {
	made, err := issueSome(ctx, s, ca, 1)
	if err != nil {
		return pki.Certificate{}, err
	}
	return s.PKI.Revoke(ctx, string(made[0].Serial), pki.Superseded)
}

// revoke fills the store: two CAs, each with as many certificates, revoked.
func (f *fleet) revoke(ctx context.Context, noted string) error {
	if err := os.RemoveAll(f.dir); err != nil {
		return err
	}
	if err := os.MkdirAll(f.dir, 0o700); err != nil {
		return err
	}
	s, err := f.open(ctx)
	if err != nil {
		return err
	}
	defer s.Close()
	if err := f.readAdmin(); err != nil {
		return err
	}
	ctx = f.context(ctx)
	var cas []pki.CAID
	for _, shards := range []int{1, 0} {
		ca, err := s.PKI.CreateCA(ctx, pki.NewCA{
			Name: "revoked", Subject: pki.Subject{CommonName: "revoked"}, Algorithm: pki.P256, Shards: shards,
			Validity: pki.Validity{Type: "Duration", Duration: pki.Duration(5 * 365 * 24 * time.Hour)},
		})
		if err != nil {
			return err
		}
		cas = append(cas, ca.ID)
		for done := 0; done < f.n; done += pki.Batch {
			made, err := issueSome(ctx, s, ca.ID, min(pki.Batch, f.n-done))
			if err != nil {
				return err
			}
			if err := s.DB.Update(ctx, func(tx store.Tx) error {
				for _, c := range made {
					if _, err := s.PKI.RevokeIn(ctx, tx, string(c.Serial), pki.Superseded); err != nil {
						return err
					}
				}
				return nil
			}); err != nil {
				return err
			}
		}
	}
	b, err := json.Marshal(cas)
	if err != nil {
		return err
	}
	return os.WriteFile(noted, b, 0o600)
}

// bareCRL is the standard library making the list of a CA anew, from memory.
func bareCRL(ctx context.Context, s *server.Server, ca pki.CAID) (func() (float64, error), error) {
	crl, err := s.PKI.CRL(ctx, ca, 0)
	if err != nil {
		return nil, err
	}
	list, err := x509.ParseRevocationList(crl.DER)
	if err != nil {
		return nil, err
	}
	path, err := s.PKI.Path(ctx, ca)
	if err != nil {
		return nil, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	issuer := *path[0]
	issuer.PublicKey = key.Public() // ours is sealed
	return func() (float64, error) {
		before := spent()
		der, err := x509.CreateRevocationList(rand.Reader, &x509.RevocationList{
			Number: list.Number, ThisUpdate: list.ThisUpdate, NextUpdate: list.NextUpdate, RevokedCertificateEntries: list.RevokedCertificateEntries,
		}, &issuer, key)
		if err == nil && len(der) < len(crl.DER)/2 {
			err = errors.New("the bare list is shorter")
		}
		return float64((spent() - before).Microseconds()) / 1000, err
	}, nil
}

// ocspBench measures answers, which are signed for each request.
func ocspBench(ctx context.Context, r *run, s *server.Server) error {
	p, err := s.PKI.Certificates(ctx, pki.Filter{}, page.Request{Limit: 100})
	if err != nil {
		return err
	}
	var requests, nonced [][]byte
	for _, c := range p.Items {
		leaf, err := c.Parse()
		if err != nil {
			return err
		}
		path, err := s.PKI.Path(ctx, c.CA)
		if err != nil {
			return err
		}
		der, err := ocsp.CreateRequest(leaf, path[0], nil)
		if err != nil {
			return err
		}
		requests = append(requests, der)
		nonced = append(nonced, withNonce(der))
	}
	ask := func(list [][]byte) func() (float64, error) {
		return func() (float64, error) {
			return r.each(func(i int) error {
				if a := s.PKI.OCSP(r.ctx, list[i%len(list)]); len(a.DER) < 100 {
					return fmt.Errorf("no answer: %x", a.DER)
				}
				return nil
			})
		}
	}
	got, err := r.inTurns(contender{"plain", ask(requests)}, contender{"with a nonce", ask(nonced)})
	if err != nil {
		return err
	}
	fmt.Fprintln(r.out)
	r.table(
		[]string{"OCSP, in the process", "CPU an answer", "answers a CPU second"},
		[]string{"without a nonce", got[0].text(" µs"), figure(1e6 / got[0].median())},
		[]string{"with a nonce", got[1].text(" µs"), figure(1e6 / got[1].median())},
	)
	return nil
}

// withNonce adds the extension to a request of one certificate (RFC 9654).
func withNonce(der []byte) []byte {
	nonce := make([]byte, 16)
	rand.Read(nonce)
	value := append([]byte{0x04, 16}, nonce...)
	oid := []byte{0x06, 9, 0x2b, 6, 1, 5, 5, 7, 0x30, 1, 2}
	wrap := func(tag byte, parts ...[]byte) []byte {
		body := bytes.Join(parts, nil)
		if len(body) < 128 {
			return append([]byte{tag, byte(len(body))}, body...)
		}
		return append([]byte{tag, 0x81, byte(len(body))}, body...)
	}
	extensions := wrap(0xa2, wrap(0x30, wrap(0x30, oid, wrap(0x04, value))))
	// OCSPRequest is a sequence of the request to be signed, which is one of the list:
	// its heads are of one length byte each.
	list := der[4:]
	return wrap(0x30, wrap(0x30, list, extensions))
}
