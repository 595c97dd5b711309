package est

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"slices"
	"sync/atomic"

	"keystead/devices"
	"keystead/pki"
)

type extension = pkix.Extension

var (
	oidSAN   = asn1.ObjectIdentifier{2, 5, 29, 17}
	oidCMCRA = asn1.ObjectIdentifier{1, 3, 6, 1, 5, 5, 7, 3, 28}
)

// sources are what of a request a device can be named by.
var sources = []string{
	"common_name", "serial_number", "organization", "organizational_unit", "country", "locality", "province",
	"san_dns", "san_uri", "san_email", "san_ip", "hardware_module",
}

func (m *Mapping) check(note func(field, message string)) {
	known := func(field, source string) {
		if !slices.Contains(sources, source) {
			note("settings.identity_mapping."+field, "unknown source "+quoted(source))
		}
	}
	if m.Device != "" {
		known("device", m.Device)
	}
	if len(m.Aliases) > 8 || len(m.Labels) > maxDMSList {
		note("settings.identity_mapping", "has too many entries")
		return
	}
	for _, source := range m.Aliases {
		known("aliases", source)
	}
	for _, source := range m.Labels {
		known("labels", source)
	}
}

func (m *Mapping) source() string {
	if m.Device == "" {
		return "common_name"
	}
	return m.Device
}

func (m *Mapping) device(csr *x509.CertificateRequest) string { return valueOf(csr, m.source()) }

func (m *Mapping) kind() devices.AliasKind { return aliasKind(m.source()) }

func aliasKind(source string) devices.AliasKind {
	switch source {
	case "common_name":
		return devices.CommonName
	case "serial_number", "hardware_module":
		return devices.SerialNumber
	}
	return devices.External
}

func (m *Mapping) aliases(csr *x509.CertificateRequest) []devices.Alias {
	var list []devices.Alias
	for _, source := range m.Aliases {
		if value := valueOf(csr, source); value != "" {
			list = append(list, devices.Alias{Kind: aliasKind(source), Value: value})
		}
	}
	return list
}

func (m *Mapping) labels(csr *x509.CertificateRequest) map[string]string {
	labels := map[string]string{}
	for label, source := range m.Labels {
		if value := valueOf(csr, source); value != "" {
			labels[label] = value
		}
	}
	return labels
}

// valueOf is what a request says under a source, "" if nothing.
func valueOf(csr *x509.CertificateRequest, source string) string {
	n := csr.Subject
	switch source {
	case "common_name":
		return n.CommonName
	case "serial_number":
		return n.SerialNumber
	case "organization":
		return firstOf(n.Organization)
	case "organizational_unit":
		return firstOf(n.OrganizationalUnit)
	case "country":
		return firstOf(n.Country)
	case "locality":
		return firstOf(n.Locality)
	case "province":
		return firstOf(n.Province)
	case "san_dns":
		return firstOf(csr.DNSNames)
	case "san_email":
		return firstOf(csr.EmailAddresses)
	case "san_uri":
		if len(csr.URIs) > 0 {
			return csr.URIs[0].String()
		}
	case "san_ip":
		if len(csr.IPAddresses) > 0 {
			return csr.IPAddresses[0].String()
		}
	case "hardware_module":
		for _, e := range csr.Extensions {
			if e.Id.Equal(oidSAN) {
				if m := pki.HardwareModules(e.Value); len(m) > 0 {
					return m[0].Type.String() + ":" + hex.EncodeToString(m[0].Serial)
				}
			}
		}
	}
	return ""
}

func firstOf(list []string) string {
	if len(list) == 0 {
		return ""
	}
	return list[0]
}

// counters are the service's figures.
type counters struct{ issued, refused, noAuth atomic.Uint64 }

// Figures are how many enrolments there were since the start.
type Figures struct{ Issued, Refused, NoAuth uint64 }

// Figures returns them.
func (s *Service) Figures() Figures {
	return Figures{s.counters.issued.Load(), s.counters.refused.Load(), s.counters.noAuth.Load()}
}
