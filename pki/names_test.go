package pki_test

import (
	"bytes"
	"context"
	"crypto/x509"
	"crypto/x509/pkix"
	"log/slog"
	"net/url"
	"strings"
	"testing"
	"time"
	"unicode"

	"keystead/fault"
	"keystead/pki"
)

// A certificate nobody here has made may be named anything: what is said of it back is
// short, and nothing that a terminal or a log would obey.
func TestNamesOfStrangersAreSaidBackShortAndPlain(t *testing.T) {
	h := open(t)
	for what, cn := range map[string]string{
		"long":          strings.Repeat("x", 50_000),
		"long in runes": strings.Repeat("ä", 50_000),
		"escapes":       "a\x1b[2Jb\nc\u202ed\x00",
	} {
		root, key := outsideCA(t, h, cn)
		leaf := sign(t, h, pkix.Name{CommonName: cn}, newKey(t).Public(), root, key, false)
		for _, chain := range [][]*x509.Certificate{{leaf}, {leaf, root}} {
			_, err := h.Validate(t.Context(), org, chain, pki.Validation{})
			text := fault.Message(err)
			if !fault.Is(err, fault.Unauthenticated) || len(text) > 1000 || strings.ContainsFunc(text, func(r rune) bool { return !unicode.IsPrint(r) }) {
				t.Errorf("%s: got %v with %d bytes: %.1000q", what, fault.KindOf(err), len(text), text)
			}
		}
	}
}

// The key of a thing is no more public in an alternative name than in the subject.
func TestAlternativeNamesHoldNoSecret(t *testing.T) {
	h := open(t)
	const secret = "tk_0123456789abcdefghijklmnopqrstuvwxyz"
	h.IsSecret = func(_ context.Context, name string) (bool, error) { return name == secret, nil }
	profile := h.profile(t, pki.DeviceProfile)
	profile.HonorExtensions = true
	uri := func(text string) []*url.URL {
		u, err := url.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		return []*url.URL{u}
	}
	for what, test := range map[string]struct {
		csr  x509.CertificateRequest
		more []string
		bad  bool
	}{
		"DNS name":            {csr: x509.CertificateRequest{DNSNames: []string{secret}}, bad: true},
		"label of a DNS name": {csr: x509.CertificateRequest{DNSNames: []string{"www." + secret + ".example"}}, bad: true},
		"address":             {csr: x509.CertificateRequest{EmailAddresses: []string{secret + "@example.org"}}, bad: true},
		"URN":                 {csr: x509.CertificateRequest{URIs: uri("urn:thing:" + secret)}, bad: true},
		"query of a URI":      {csr: x509.CertificateRequest{URIs: uri("https://example.org/a?key=" + secret)}, bad: true},
		"beside the request":  {more: []string{"URI:urn:thing:" + secret}, bad: true},
		"another name":        {csr: x509.CertificateRequest{DNSNames: []string{"other.example"}, URIs: uri("urn:thing:x")}},
	} {
		test.csr.Subject = pkix.Name{CommonName: "pump"}
		_, err := h.Prepare(h.ctx, pki.Request{Org: org, Profile: profile, CSR: newCSR(t, newKey(t), test.csr), SANs: test.more})
		if test.bad != (fault.Is(err, fault.Invalid) && strings.Contains(fault.Message(err), "by its id")) || !test.bad && err != nil {
			t.Errorf("%s: got %v, want it refused: %v", what, err, test.bad)
		}
		if err != nil && strings.Contains(err.Error(), secret) {
			t.Errorf("%s: the error says the secret", what)
		}
	}
}

// Nor in the subject of a CA.
func TestNoCAIsNamedForASecret(t *testing.T) {
	h := open(t)
	h.IsSecret = func(_ context.Context, name string) (bool, error) { return name == "the key of a thing", nil }
	for _, n := range []pki.NewCA{{Name: "the key of a thing"}, {Name: "x", Subject: pki.Subject{CommonName: "the key of a thing"}}, {Name: "the key of a thing", Outside: true}} {
		if ca, err := h.CreateCA(h.ctx, n); !fault.Is(err, fault.Invalid) {
			t.Errorf("%+v: got %v %v, want Invalid", n, ca.ID, err)
		}
	}
	if _, err := h.CreateCA(h.ctx, pki.NewCA{Name: "another"}); err != nil {
		t.Error(err)
	}
}

// A fleet whose certificates name nobody to ask fills no log.
func TestWarningsOfAnOutsideCAComeOnceAnHour(t *testing.T) {
	h := open(t)
	root, key := outsideCA(t, h, "mute")
	ca, err := h.ImportCA(h.ctx, pki.Import{Certificate: root, Check: pki.CheckSoft})
	if err != nil {
		t.Fatal(err)
	}
	withAbroad(t, h, pki.CheckSoft)
	var log bytes.Buffer
	h.Log = slog.New(slog.NewTextHandler(&log, nil))
	for range 2 {
		log.Reset()
		for range 5 {
			leaf := sign(t, h, pkix.Name{CommonName: "pump"}, newKey(t).Public(), root, key, false)
			if _, err := h.Validate(t.Context(), org, []*x509.Certificate{leaf}, pki.Validation{CAs: []pki.CAID{ca.ID}}); err != nil {
				t.Fatal(err)
			}
		}
		if n := strings.Count(log.String(), "could not be found out"); n != 1 {
			t.Errorf("got %d warnings of five devices, want one:\n%s", n, &log)
		}
		h.advance(time.Hour)
	}
}
