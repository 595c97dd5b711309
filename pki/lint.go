package pki

import (
	"strings"
	"sync"

	zx509 "github.com/zmap/zcrypto/x509"
	"github.com/zmap/zlint/v3"
	"github.com/zmap/zlint/v3/lint"

	"keystead/fault"
)

// lintExceptions are findings that do not stand in the way of issuing, and why.
var lintExceptions = map[string]string{
	"w_rsa_mod_factors_smaller_than_752": "GoodKey looks for small factors in keys of devices",
}

// registry is the set of lints for a private PKI: those of the RFCs. The others are
// of the web's PKI and do not apply to devices.
var registry = sync.OnceValues(func() (lint.Registry, error) {
	return lint.GlobalRegistry().Filter(lint.FilterOptions{
		IncludeSources: lint.SourceList{lint.RFC5280, lint.RFC5480, lint.RFC5891, lint.RFC8813, lint.RFC3279},
	})
})

// lint refuses what the RFCs' lints find fault with. The signature is not there
// yet and is not looked at.
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

// Lint returns the names of the lints, errors and warnings, that find fault with
// a certificate, without those that are excepted.
func Lint(der []byte) ([]string, error) {
	rules, err := registry()
	if err != nil {
		return nil, err
	}
	cert, err := zx509.ParseCertificate(der)
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "the certificate asked for is not well-formed")
	}
	var findings []string
	results := zlint.LintCertificateEx(cert, rules)
	if !results.ErrorsPresent && !results.WarningsPresent && !results.FatalsPresent {
		return nil, nil
	}
	for name, result := range results.Results {
		if result.Status < lint.Warn {
			continue
		}
		if _, excepted := lintExceptions[name]; !excepted {
			findings = append(findings, name)
		}
	}
	return findings, nil
}
