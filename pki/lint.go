package pki

import (
	"context"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"strings"
	"sync"

	zx509 "github.com/zmap/zcrypto/x509"
	_ "github.com/zmap/zlint/v3" // registers its lints
	"github.com/zmap/zlint/v3/lint"

	"keystead/fault"
)

// lintExceptions are findings that do not stand in the way of issuing, and why.
var lintExceptions = map[string]string{
	"w_rsa_mod_factors_smaller_than_752": "GoodKey looks for small factors in keys of devices",
}

// lints are those for a private PKI: the ones of the RFCs. The others are of the web's
// PKI and do not apply to devices.
var lints = sync.OnceValues(func() ([]*lint.CertificateLint, error) {
	rules, err := lint.GlobalRegistry().Filter(lint.FilterOptions{
		IncludeSources: lint.SourceList{lint.RFC5280, lint.RFC5480, lint.RFC5891, lint.RFC8813, lint.RFC3279},
	})
	if err != nil {
		return nil, err
	}
	return rules.CertificateLints().Lints(), nil
})

// lint refuses what the RFCs' lints find fault with. The signature is not there
// yet and is not looked at. A template of a shape that was linted, see shape, differs
// from that one in nothing that a lint can tell, and passes.
func (s *Service) lint(t *template) error {
	shape, regular := t.shape()
	if regular && s.shapes.known(shape) {
		return nil
	}
	if err := t.lint(); err != nil {
		return err
	}
	if regular {
		s.shapes.add(shape)
	}
	return nil
}

func (t *template) lint() error {
	der, err := withSignature(t.tbs, t.algorithm, make([]byte, 64))
	if err != nil {
		return err
	}
	findings, err := Lint(der)
	if err != nil {
		return err
	}
	if len(findings) > 0 {
		return fault.New(fault.Invalid, "the certificate would break the rules of its format: %s", strings.Join(findings, ", "))
	}
	return nil
}

// crlExceptions are findings that CRLs here may have, and why.
var crlExceptions = map[string]string{
	"e_cab_crl_has_valid_reason_code": "the web's PKI knows no hold, and fewer reasons than RFC 5280 has, which are all given here",
	"e_crl_next_update_invalid":       "how long the list of an offline root is good is for those to say who come together to sign it; ours are for a week",
}

// LintCRL returns the names of the lints, errors and warnings, that find fault with
// a CRL, without those that are excepted. All sources count: what the web's PKI asks of
// lists is not at odds with devices.
func LintCRL(der []byte) ([]string, error) {
	list, err := zx509.ParseRevocationList(der)
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "the CRL is not well-formed")
	}
	var findings []string
	config := lint.NewEmptyConfig()
	for _, rule := range lint.GlobalRegistry().RevocationListLints().Lints() {
		if result := rule.Execute(list, config); result.Status >= lint.Warn {
			if _, excepted := crlExceptions[rule.Name]; !excepted {
				findings = append(findings, rule.Name)
			}
		}
	}
	return findings, nil
}

// lintedEntries is how long a list is at most that is linted as it is made: entries are
// written in one way, and one list is like another.
const lintedEntries = 1000

// lintCRL has a list linted if none like it was: of the same CA, with the same extensions,
// empty or not, of the same day. Fault that is found is told and does not hold
// the list back, without which a revocation would not be known.
func (s *Service) lintCRL(ctx context.Context, a *authority, list *crlDER, der []byte) {
	sh := shape(sha256.Sum256(fmt.Appendf(nil, "crl %s %d %t %s", a.ID, len(list.extra), list.entries > 0, list.thisUpdate.Format("2006-01-02"))))
	if list.entries > lintedEntries || s.shapes.known(sh) {
		return
	}
	findings, err := LintCRL(der)
	if err != nil || len(findings) > 0 {
		s.Log.ErrorContext(ctx, "a CRL breaks the rules of its format", slog.String("ca", string(a.ID)), slog.Any("lints", findings), slog.Any("error", err))
		return
	}
	s.shapes.add(sh)
}

// Lint returns the names of the lints, errors and warnings, that find fault with
// a certificate, without those that are excepted.
func Lint(der []byte) ([]string, error) {
	rules, err := lints()
	if err != nil {
		return nil, err
	}
	cert, err := zx509.ParseCertificate(der)
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "the certificate asked for is not well-formed")
	}
	var findings []string
	config := lint.NewEmptyConfig()
	for _, rule := range rules {
		if result := rule.Execute(cert, config); result.Status >= lint.Warn {
			if _, excepted := lintExceptions[rule.Name]; !excepted {
				findings = append(findings, rule.Name)
			}
		}
	}
	return findings, nil
}
