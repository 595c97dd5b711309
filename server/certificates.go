package server

import (
	"cmp"
	"context"
	"encoding/csv"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/labstack/echo/v4"

	"keystead/events"
	"keystead/fault"
	"keystead/identity"
	"keystead/pki"
	"keystead/store"
)

func (s *Server) certificateRoutes() []route {
	const all, one = "/api/v1/certificates", "/api/v1/certificates/:serial"
	return []route{
		{method: http.MethodGet, path: all, need: identity.PKIRead, handle: s.listCertificates},
		{method: http.MethodGet, path: all + "/export", need: identity.PKIRead, handle: s.exportCertificates, stream: true},
		{method: http.MethodGet, path: all + "/expiry", need: identity.PKIRead, handle: s.certificateExpiry},
		{method: http.MethodGet, path: one, need: identity.PKIRead, handle: s.showCertificate},
		{method: http.MethodGet, path: one + "/pem", need: identity.PKIRead, handle: s.certificatePEM},
		{method: http.MethodPost, path: one + "/revoke", need: identity.CredentialsWrite, handle: s.revokeCertificate},
		{method: http.MethodPatch, path: one + "/metadata", need: identity.PKIWrite, handle: s.patchCertificate},
		{method: http.MethodPut, path: one + "/metadata", need: identity.PKIWrite, handle: s.patchCertificate},
	}
}

type certificateView struct {
	Serial       pki.Serial           `json:"serial"`
	CA           pki.CAID             `json:"ca"`
	Organisation string               `json:"organisation"`
	Device       string               `json:"device,omitempty"`
	DMS          string               `json:"dms,omitempty"`
	Profile      string               `json:"profile"`
	State        pki.CertificateState `json:"state"`
	Subject      string               `json:"subject"`
	CommonName   string               `json:"common_name"`
	Fingerprint  string               `json:"sha256"`
	Algorithm    pki.Algorithm        `json:"algorithm"`
	NotBefore    time.Time            `json:"not_before"`
	NotAfter     time.Time            `json:"not_after"`
	IssuedAt     time.Time            `json:"issued_at"`
	RevokedAt    *time.Time           `json:"revoked_at,omitempty"`
	Reason       string               `json:"reason,omitempty"`
	Replaces     pki.Serial           `json:"replaces,omitempty"`
	Renewal      pki.Renewal          `json:"renewal,omitempty"`
	RenewFrom    *time.Time           `json:"renew_from,omitempty"`
	Flags        []string             `json:"flags"`
	Metadata     json.RawMessage      `json:"metadata,omitempty"`
}

func (s *Server) viewCertificate(c pki.Certificate) certificateView {
	v := certificateView{
		Serial: c.Serial, CA: c.CA, Organisation: c.Org, Device: c.Device, DMS: c.DMS, Profile: c.Profile, State: c.StateAt(s.Now()), Subject: c.Subject,
		CommonName: c.CommonName, Fingerprint: c.Fingerprint, Algorithm: c.Algorithm, NotBefore: c.NotBefore, NotAfter: c.NotAfter,
		IssuedAt: c.IssuedAt, Replaces: c.Replaces, Flags: orEmpty(c.Flags), Metadata: c.Metadata,
	}
	v.Renewal = c.StandingRenewal()
	if !c.RenewFrom.IsZero() {
		v.RenewFrom = &c.RenewFrom
	}
	if !c.RevokedAt.IsZero() {
		v.RevokedAt, v.Reason = &c.RevokedAt, c.Reason.String()
	}
	return v
}

// certificateEvent is the data of an event of a certificate.
type certificateEvent struct {
	Certificate certificateView `json:"certificate"`
}

// emitRenewal tells that a certificate is to be renewed, or expires soon.
func (s *Server) emitRenewal(ctx context.Context, tx store.Tx, c pki.Certificate) error {
	data, err := json.Marshal(certificateEvent{s.viewCertificate(c)})
	if err != nil {
		return fmt.Errorf("server: %w", err)
	}
	return s.Events.Emit(ctx, tx, events.Event{
		Org: c.Org, Type: "certificate." + string(c.Renewal), Subj: cmp.Or(c.Device, string(c.Serial)), Data: data,
	})
}

var errRenewal = fault.New(fault.Invalid, "renewal must be renewal_pending or expiring_soon")

// certificateFilter reads what narrows a list of certificates.
func (s *Server) certificateFilter(c echo.Context) (f pki.Filter, err error) {
	f = pki.Filter{
		CA: pki.CAID(c.QueryParam("ca")), State: pki.CertificateState(c.QueryParam("state")), DMS: c.QueryParam("dms"), CommonName: c.QueryParam("common_name"),
		Renewal: pki.Renewal(c.QueryParam("renewal")),
	}
	if f.Renewal != "" && !f.Renewal.Valid() {
		return f, errRenewal
	}
	switch f.State {
	case "", pki.CertActive, pki.CertHold, pki.CertRevoked, pki.CertExpired:
	default:
		return f, fault.New(fault.Invalid, "state must be active, hold, revoked or expired")
	}
	if f.Device, err = s.deviceParam(c); err != nil {
		return f, err
	}
	for name, to := range map[string]*time.Time{"expires_after": &f.ExpiresAfter, "expires_before": &f.ExpiresBefore} {
		text := c.QueryParam(name)
		if text == "" {
			continue
		}
		if d, err := pki.ParseDuration(text); err == nil { // from now on: "30d"
			*to = s.Now().Add(time.Duration(d))
		} else if *to, err = time.Parse(time.RFC3339, text); err != nil {
			return f, fault.New(fault.Invalid, "%s must be a time (RFC 3339) or a duration from now, such as 30d", name)
		}
	}
	return f, nil
}

func (s *Server) listCertificates(c echo.Context) error {
	r, err := pageRequest(c)
	if err != nil {
		return err
	}
	f, err := s.certificateFilter(c)
	if err != nil {
		return err
	}
	p, err := s.PKI.Certificates(c.Request().Context(), f, r)
	if err != nil {
		return err
	}
	return writePage(c, p, s.viewCertificate)
}

var exportColumns = []string{"serial", "ca", "device", "dms", "profile", "state", "subject", "sha256", "algorithm", "not_before", "not_after", "issued_at", "revoked_at", "reason"}

func (v *certificateView) row() []string {
	revoked := ""
	if v.RevokedAt != nil {
		revoked = v.RevokedAt.Format(time.RFC3339)
	}
	return []string{
		string(v.Serial), string(v.CA), v.Device, v.DMS, v.Profile, string(v.State), v.Subject, v.Fingerprint, string(v.Algorithm),
		v.NotBefore.Format(time.RFC3339), v.NotAfter.Format(time.RFC3339), v.IssuedAt.Format(time.RFC3339), revoked, v.Reason,
	}
}

// exportCertificates streams the inventory, as CSV or a JSON object a line.
func (s *Server) exportCertificates(c echo.Context) error {
	f, err := s.certificateFilter(c)
	if err != nil {
		return err
	}
	form := c.QueryParam("format")
	if form != "" && form != "csv" && form != "json" {
		return fault.New(fault.Invalid, "format must be csv or json")
	}
	w := c.Response()
	write := json.NewEncoder(w).Encode
	if form == "json" {
		w.Header().Set("Content-Type", "application/x-ndjson")
	} else {
		w.Header().Set("Content-Type", "text/csv; charset=utf-8")
		w.Header().Set("Content-Disposition", `attachment; filename="certificates.csv"`)
		table := csv.NewWriter(w)
		defer table.Flush()
		if err := table.Write(exportColumns); err != nil {
			return err
		}
		write = func(v any) error { view, _ := v.(certificateView); return table.Write(view.row()) }
	}
	for cert, err := range s.PKI.Export(c.Request().Context(), f) {
		if err != nil {
			return err
		}
		if err := write(s.viewCertificate(cert)); err != nil {
			return err
		}
	}
	return nil
}

func (s *Server) certificateExpiry(c echo.Context) error {
	o, err := s.PKI.Expiry(c.Request().Context())
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, o)
}

func (s *Server) showCertificate(c echo.Context) error {
	cert, err := s.PKI.Certificate(c.Request().Context(), c.Param("serial"))
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, s.viewCertificate(cert))
}

func (s *Server) certificatePEM(c echo.Context) error {
	cert, err := s.PKI.Certificate(c.Request().Context(), c.Param("serial"))
	if err != nil {
		return err
	}
	b := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.DER})
	c.Response().Header().Set("Content-Length", strconv.Itoa(len(b)))
	return c.Blob(http.StatusOK, "application/x-pem-file", b)
}

// metadataPatch changes the metadata of a DMS, CA or certificate, by PATCH, or by PUT as
// Lamassu's clients do.
type metadataPatch struct {
	Patches []pki.Patch `json:"patches"`
}

func (s *Server) patchCertificate(c echo.Context) error {
	var in metadataPatch
	if err := bind(c, &in); err != nil {
		return err
	}
	cert, err := s.PKI.PatchCertificate(c.Request().Context(), c.Param("serial"), in.Patches)
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, s.viewCertificate(cert))
}

type revocationRequest struct {
	Reason string `json:"reason"`
}

// revokeCertificate revokes, or holds or releases by the reasons for that.
func (s *Server) revokeCertificate(c echo.Context) error {
	var in revocationRequest
	if err := bind(c, &in); err != nil {
		return err
	}
	reason, err := pki.ParseReason(in.Reason)
	if err != nil {
		return err
	}
	cert, err := s.PKI.Revoke(c.Request().Context(), c.Param("serial"), reason)
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, s.viewCertificate(cert))
}
