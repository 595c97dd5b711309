package pki_test

import (
	"bytes"
	"cmp"
	"crypto"
	"crypto/x509"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/zmap/zlint/v3/lint"
	"golang.org/x/crypto/ocsp"

	"keystead/pki"
)

var everyReason = []pki.Reason{
	pki.Unspecified, pki.KeyCompromise, pki.CACompromise, pki.AffiliationChanged, pki.Superseded,
	pki.CessationOfOperation, pki.CertificateHold, pki.PrivilegeWithdrawn, pki.AACompromise,
}

// signers are the kinds of CA keys; RSA keys of every size sign in the same way, and take long to make.
var signers = []pki.Algorithm{pki.P256, pki.P384, pki.Ed25519, pki.RSA2048}

// checkCRL has zlint and openssl look at a list.
func checkCRL(t *testing.T, what string, der []byte, issuer *x509.Certificate) {
	t.Helper()
	if found, err := pki.LintCRL(der); err != nil || len(found) > 0 {
		t.Errorf("%s: zlint found %v, %v", what, found, err)
	}
	dir := t.TempDir()
	list := filepath.Join(dir, "list.crl")
	if err := os.WriteFile(list, der, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := openssl(t, "crl", "-inform", "DER", "-in", list, "-noout", "-CAfile", files(t, issuer)[0]); err != nil || !strings.Contains(out, "verify OK") {
		t.Errorf("%s: openssl crl: %v %s", what, err, out)
	}
}

// TestEveryKindOfCRLIsWithoutFault makes the lists there are: of CAs with each kind of key, in
// shards and in one, empty and with every reason, of CAs that are retired or revoked, and of
// an offline root.
func TestEveryKindOfCRLIsWithoutFault(t *testing.T) {
	for _, alg := range signers {
		for _, shards := range []int{1, 2} {
			t.Run(fmt.Sprintf("%s/%d", alg, shards), func(t *testing.T) {
				h := open(t)
				h.PublicHTTP = "http://pki.example"
				var log bytes.Buffer
				h.Log = slog.New(slog.NewTextHandler(&log, nil))
				ca, err := h.CreateCA(h.ctx, pki.NewCA{Name: "lists", Algorithm: alg, Shards: shards})
				if err != nil {
					t.Fatal(err)
				}
				path, err := h.Path(h.ctx, ca.ID)
				if err != nil {
					t.Fatal(err)
				}
				check := func(what string, entries int) {
					t.Helper()
					for shard := range shards {
						crl, err := h.CRL(t.Context(), ca.ID, shard)
						if err != nil {
							t.Fatal(err)
						}
						entries -= crl.Entries
						checkCRL(t, what+" "+strconv.Itoa(shard), crl.DER, path[0])
					}
					if entries != 0 {
						t.Errorf("%s: %d entries more or less than there should be", what, entries)
					}
				}
				check("empty", 0)
				for i, reason := range everyReason {
					c, err := h.issue(pki.Request{Org: org, CA: ca.ID, Profile: h.profile(t, pki.DeviceProfile), CSR: newCSR(t, newKey(t), named(fmt.Sprintf("dev-%d", i)))}, nil)
					if err == nil {
						_, err = h.Revoke(h.ctx, string(c.Serial), reason)
					}
					if err != nil {
						t.Fatal(err)
					}
				}
				check("every reason", len(everyReason))
				if _, err := h.RollOver(h.ctx, ca.ID); err != nil {
					t.Fatal(err)
				}
				h.advance(7 * 24 * time.Hour)
				check("of a CA that was rolled over", len(everyReason))
				if _, err := h.RevokeCA(h.ctx, ca.ID, pki.KeyCompromise); err != nil {
					t.Fatal(err)
				}
				h.advance(7 * 24 * time.Hour)
				check("of a revoked CA", len(everyReason))
				if strings.Contains(log.String(), "breaks the rules") {
					t.Errorf("said while lists were made: %s", log.String())
				}
			})
		}
		t.Run("offline/"+string(alg), func(t *testing.T) {
			now := time.Date(2026, 11, 24, 12, 0, 0, 0, time.UTC)
			root, err := pki.NewOfflineRoot("Offline", alg, now.AddDate(20, 0, 0), now)
			if err != nil {
				t.Fatal(err)
			}
			for _, serials := range [][]string{nil, {"0102", "80", "7f00ff"}} {
				der, err := root.CRL(serials, 7, now, now.AddDate(0, 6, 0))
				if err != nil {
					t.Fatal(err)
				}
				checkCRL(t, strconv.Itoa(len(serials)), der, root.Certificate)
			}
		})
	}
}

// TestLintOfCRLsFindsFault shows that the lints see what they are to see.
func TestLintOfCRLsFindsFault(t *testing.T) {
	h := open(t)
	now := h.now()
	issuer, key := outsideCA(t, h, "Careless")
	der := signedCRL(t, now, issuer, key, func(list *x509.RevocationList) {
		list.RevokedCertificateEntries = []x509.RevocationListEntry{{SerialNumber: issuer.SerialNumber, RevocationTime: now.Add(time.Hour)}}
	})
	if found, err := pki.LintCRL(der); err != nil || len(found) == 0 {
		t.Errorf("of a list from before its entry: got %v, %v", found, err)
	}
}

// TestEveryKindOfOCSPAnswerIsWithoutFault has zlint look at answers of each status, by the
// delegate and by CAs that issue no more, with each kind of key.
func TestEveryKindOfOCSPAnswerIsWithoutFault(t *testing.T) {
	for _, alg := range signers {
		t.Run(string(alg), func(t *testing.T) {
			h := open(t)
			ca, err := h.CreateCA(h.ctx, pki.NewCA{Name: "answers", Algorithm: alg})
			if err != nil {
				t.Fatal(err)
			}
			path, err := h.Path(h.ctx, ca.ID)
			if err != nil {
				t.Fatal(err)
			}
			var leaves []*x509.Certificate
			for i, reason := range append([]pki.Reason{pki.RemoveFromCRL}, everyReason...) {
				c, err := h.issue(pki.Request{Org: org, CA: ca.ID, Profile: h.profile(t, pki.DeviceProfile), CSR: newCSR(t, newKey(t), named(fmt.Sprintf("dev-%d", i)))}, nil)
				if err == nil && reason != pki.RemoveFromCRL { // the first stays good
					_, err = h.Revoke(h.ctx, string(c.Serial), reason)
				}
				if err != nil {
					t.Fatal(err)
				}
				leaf, err := c.Parse()
				if err != nil {
					t.Fatal(err)
				}
				leaves = append(leaves, leaf)
			}
			unknown := *leaves[0]
			unknown.SerialNumber = path[0].SerialNumber
			leaves = append(leaves, &unknown)
			look := func(what string) {
				t.Helper()
				for i, leaf := range leaves {
					status := checkOCSP(t, h, leaf, path[0])
					if want := map[int]string{0: "good", len(leaves) - 1: "unknown"}[i]; status != cmp.Or(want, "revoked") {
						t.Errorf("%s, %d: openssl reads %q", what, i, status)
					}
					if alg == pki.Ed25519 {
						continue // the reader that zlint goes by knows no signature of this kind
					}
					for _, rule := range lint.GlobalRegistry().OcspResponseLints().Lints() {
						if result := rule.Execute(h.ask(t, leaf, path[0], crypto.SHA256), lint.NewEmptyConfig()); result.Status >= lint.Warn {
							t.Errorf("%s, %d: zlint found %s: %s", what, i, rule.Name, result.Details)
						}
					}
				}
			}
			look("by the delegate")
			if _, err := h.RollOver(h.ctx, ca.ID); err != nil {
				t.Fatal(err)
			}
			look("by a CA that was rolled over")
		})
	}
}

// checkOCSP has openssl verify the answer about a certificate, and returns what it says.
func checkOCSP(t *testing.T, h *house, leaf, issuer *x509.Certificate) string {
	t.Helper()
	request, err := ocsp.CreateRequest(leaf, issuer, nil)
	if err != nil {
		t.Fatal(err)
	}
	answer := filepath.Join(t.TempDir(), "resp")
	if err := os.WriteFile(answer, h.OCSP(t.Context(), request).DER, 0o600); err != nil {
		t.Fatal(err)
	}
	ca := files(t, issuer)[0]
	serial := "0x" + leaf.SerialNumber.Text(16)
	out, err := openssl(t, "ocsp", "-issuer", ca, "-serial", serial, "-no_nonce", "-respin", answer, "-CAfile", ca,
		"-attime", strconv.FormatInt(h.now().Unix(), 10), "-validity_period", "999999999")
	if err != nil || !strings.Contains(out, "Response verify OK") {
		t.Errorf("openssl ocsp: %v %s", err, out)
	}
	_, status, _ := strings.Cut(out, serial+": ")
	status, _, _ = strings.Cut(status, "\n")
	return status
}
