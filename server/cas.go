package server

import (
	"encoding/json"
	"encoding/pem"
	"net/http"
	"time"

	"github.com/labstack/echo/v4"

	"keystead/fault"
	"keystead/identity"
	"keystead/pki"
)

func (s *Server) caRoutes() []route {
	const all, one = "/api/v1/cas", "/api/v1/cas/:id"
	return []route{
		{method: http.MethodGet, path: all, need: identity.PKIRead, handle: s.listCAs},
		{method: http.MethodPost, path: all, need: identity.PKIWrite, handle: s.createCA},
		{method: http.MethodPost, path: all + "/import", need: identity.PKIWrite, handle: s.importCA},
		{method: http.MethodGet, path: one, need: identity.PKIRead, handle: s.showCA},
		{method: http.MethodDelete, path: one, need: identity.PKIWrite, handle: s.deleteCA},
		{method: http.MethodPost, path: one + "/default", need: identity.PKIWrite, handle: s.defaultCA},
		{method: http.MethodPost, path: one + "/roll-over", need: identity.PKIWrite, handle: s.rollOverCA},
		{method: http.MethodPost, path: one + "/retire", need: identity.PKIWrite, handle: s.retireCA},
		{method: http.MethodPost, path: one + "/activate", need: identity.PKIWrite, handle: s.activateCA},
		{method: http.MethodPost, path: one + "/revoke", need: identity.PKIWrite, handle: s.revokeCA},
		{method: http.MethodGet, path: one + "/crl", need: identity.PKIRead, handle: s.caCRL},
		{method: http.MethodPost, path: one + "/revocation-check", need: identity.PKIWrite, handle: s.setRevocationCheck},
		{method: http.MethodPatch, path: one + "/metadata", need: identity.PKIWrite, handle: s.patchCA},
		{method: http.MethodPut, path: one + "/metadata", need: identity.PKIWrite, handle: s.patchCA},
		{method: http.MethodPost, path: one + "/sign", need: identity.PKIWrite, handle: s.signByCA},
	}
}

type caView struct {
	ID           pki.CAID      `json:"id"`
	Organisation string        `json:"organisation"`
	Name         string        `json:"name"`
	Kind         pki.CAKind    `json:"kind"`
	State        pki.CAState   `json:"state"`
	Default      bool          `json:"default"`
	Parent       pki.CAID      `json:"parent,omitempty"`
	Predecessor  pki.CAID      `json:"predecessor,omitempty"`
	Successor    pki.CAID      `json:"successor,omitempty"`
	Algorithm    pki.Algorithm `json:"algorithm"`
	SubjectKeyID string        `json:"subject_key_id"`
	HasKey       bool          `json:"has_key"`
	Imported     bool          `json:"imported"`
	Certificate  string        `json:"certificate,omitempty"` // PEM
	Chain        string        `json:"chain,omitempty"`       // PEM, those above it
	Request      string        `json:"request,omitempty"`     // PEM, while pending
	NotBefore    *time.Time    `json:"not_before,omitempty"`
	NotAfter     *time.Time    `json:"not_after,omitempty"`
	CreatedAt    time.Time     `json:"created_at"`
	RevokedAt    *time.Time    `json:"revoked_at,omitempty"`
	Reason       string        `json:"reason,omitempty"`

	RevocationCheck pki.RevocationCheck `json:"revocation_check,omitempty"`
	Metadata        json.RawMessage     `json:"metadata,omitempty"`
}

func pemText(kind string, ders ...[]byte) string {
	var b []byte
	for _, der := range ders {
		if len(der) > 0 {
			b = append(b, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})...)
		}
	}
	return string(b)
}

// viewCA says how a CA looks, with standard the one the organisation issues from.
func (s *Server) viewCA(standard pki.CAID) func(pki.CA) caView {
	return func(c pki.CA) caView {
		v := caView{
			ID: c.ID, Organisation: c.Org, Name: c.Name, Kind: c.Kind, State: c.StateAt(s.Now()), Default: c.ID == standard, Parent: c.Parent,
			Predecessor: c.Predecessor, Successor: c.Successor, Algorithm: c.Algorithm, SubjectKeyID: c.SubjectKeyID, HasKey: c.Key != "", Imported: c.Imported,
			Certificate: pemText("CERTIFICATE", c.Certificate), Chain: pemText("CERTIFICATE", c.Chain...), Request: pemText("CERTIFICATE REQUEST", c.Request),
			CreatedAt: c.CreatedAt, RevocationCheck: c.Check, Metadata: c.Metadata,
		}
		if !c.NotAfter.IsZero() {
			v.NotBefore, v.NotAfter = &c.NotBefore, &c.NotAfter
		}
		if !c.RevokedAt.IsZero() {
			v.RevokedAt, v.Reason = &c.RevokedAt, c.Reason.String()
		}
		return v
	}
}

func (s *Server) standardCA(c echo.Context) pki.CAID {
	ca, err := s.PKI.DefaultCA(c.Request().Context())
	if err != nil {
		return "" // none is marked
	}
	return ca.ID
}

func (s *Server) answerCA(c echo.Context, status int, ca pki.CA, err error) error {
	if err != nil {
		return err
	}
	if status == http.StatusCreated {
		c.Response().Header().Set("Location", "/api/v1/cas/"+string(ca.ID))
	}
	return c.JSON(status, s.viewCA(s.standardCA(c))(ca))
}

func caParam(c echo.Context) pki.CAID { return pki.CAID(c.Param("id")) }

func (s *Server) listCAs(c echo.Context) error {
	r, err := pageRequest(c)
	if err != nil {
		return err
	}
	p, err := s.PKI.CAs(c.Request().Context(), r)
	if err != nil {
		return err
	}
	return writePage(c, p, s.viewCA(s.standardCA(c)))
}

// caCRL is the CRL that plain HTTP serves, for who looks at the CA anyway.
func (s *Server) caCRL(c echo.Context) error {
	ca, err := s.PKI.CA(c.Request().Context(), caParam(c))
	if err != nil {
		return err
	}
	shard := 0
	if text := c.QueryParam("shard"); text != "" {
		if shard, err = pki.CRLPath(text); err != nil {
			return err
		}
	}
	crl, err := s.PKI.CRL(c.Request().Context(), ca.ID, shard)
	if err != nil {
		return err
	}
	return c.Blob(http.StatusOK, "application/pkix-crl", crl.DER)
}

type newCA struct {
	Name       string        `json:"name"`
	Subject    pki.Subject   `json:"subject"`
	Parent     pki.CAID      `json:"parent"`
	Algorithm  pki.Algorithm `json:"algorithm"`
	Validity   pki.Validity  `json:"validity"`
	Shards     int           `json:"shards"`
	PathLength int           `json:"path_length"`
	Permitted  []string      `json:"permitted_dns_names"`
	Outside    bool          `json:"request_only"`
}

func (s *Server) createCA(c echo.Context) error {
	var in newCA
	if err := bind(c, &in); err != nil {
		return err
	}
	ca, err := s.PKI.CreateCA(c.Request().Context(), pki.NewCA{
		Name: in.Name, Subject: in.Subject, Parent: in.Parent, Algorithm: in.Algorithm, Validity: in.Validity, Shards: in.Shards,
		PathLen: in.PathLength, Permitted: in.Permitted, Outside: in.Outside,
	})
	return s.answerCA(c, http.StatusCreated, ca, err)
}

type caImport struct {
	Name        string   `json:"name"`
	Certificate string   `json:"certificate"` // PEM, the CA's first, then those above it
	PrivateKey  string   `json:"private_key"` // PEM
	Pending     pki.CAID `json:"pending"`

	RevocationCheck pki.RevocationCheck `json:"revocation_check"`
}

func (s *Server) importCA(c echo.Context) error {
	var in caImport
	if err := bind(c, &in); err != nil {
		return err
	}
	certs, err := pki.ParseCertificates([]byte(in.Certificate))
	if err != nil {
		return fault.InvalidFields(fault.Field{Name: "certificate", Message: fault.Message(err)})
	}
	taken := pki.Import{Name: in.Name, Certificate: certs[0], Chain: certs[1:], Pending: in.Pending, Check: in.RevocationCheck}
	if in.PrivateKey != "" {
		if taken.Key, err = pki.ParseKey([]byte(in.PrivateKey)); err != nil {
			return fault.InvalidFields(fault.Field{Name: "private_key", Message: fault.Message(err)})
		}
	}
	ca, err := s.PKI.ImportCA(c.Request().Context(), taken)
	return s.answerCA(c, http.StatusCreated, ca, err)
}

func (s *Server) showCA(c echo.Context) error {
	ca, err := s.PKI.CA(c.Request().Context(), caParam(c))
	return s.answerCA(c, http.StatusOK, ca, err)
}

func (s *Server) deleteCA(c echo.Context) error {
	if err := s.PKI.DeleteCA(c.Request().Context(), caParam(c)); err != nil {
		return err
	}
	return c.NoContent(http.StatusNoContent)
}

func (s *Server) defaultCA(c echo.Context) error {
	if err := s.PKI.SetDefaultCA(c.Request().Context(), caParam(c)); err != nil {
		return err
	}
	return s.showCA(c)
}

func (s *Server) rollOverCA(c echo.Context) error {
	ca, err := s.PKI.RollOver(c.Request().Context(), caParam(c))
	return s.answerCA(c, http.StatusCreated, ca, err)
}

func (s *Server) retireCA(c echo.Context) error {
	ca, err := s.PKI.Retire(c.Request().Context(), caParam(c))
	return s.answerCA(c, http.StatusOK, ca, err)
}

func (s *Server) activateCA(c echo.Context) error {
	ca, err := s.PKI.Reactivate(c.Request().Context(), caParam(c))
	return s.answerCA(c, http.StatusOK, ca, err)
}

func (s *Server) revokeCA(c echo.Context) error {
	var in revocationRequest
	if err := bind(c, &in); err != nil {
		return err
	}
	reason, err := pki.ParseReason(in.Reason)
	if err != nil {
		return err
	}
	ca, err := s.PKI.RevokeCA(c.Request().Context(), caParam(c), reason)
	return s.answerCA(c, http.StatusOK, ca, err)
}

type revocationCheck struct {
	Check pki.RevocationCheck `json:"revocation_check"`
}

// setRevocationCheck says how certificates of a CA are looked up that were not issued here.
func (s *Server) setRevocationCheck(c echo.Context) error {
	var in revocationCheck
	if err := bind(c, &in); err != nil {
		return err
	}
	ca, err := s.PKI.SetRevocationCheck(c.Request().Context(), caParam(c), in.Check)
	return s.answerCA(c, http.StatusOK, ca, err)
}

func (s *Server) patchCA(c echo.Context) error {
	var in metadataPatch
	if err := bind(c, &in); err != nil {
		return err
	}
	ca, err := s.PKI.PatchCA(c.Request().Context(), caParam(c), in.Patches)
	return s.answerCA(c, http.StatusOK, ca, err)
}

type signRequest struct {
	CSR     string `json:"csr"` // PEM
	Profile string `json:"profile"`
	Device  string `json:"device"` // id or alias; none for a certificate that stands for no device
}

// signByCA issues from a request that an administrator brings.
func (s *Server) signByCA(c echo.Context) error {
	var in signRequest
	if err := bind(c, &in); err != nil {
		return err
	}
	cert, err := s.sign(c.Request().Context(), caParam(c), in)
	if err != nil {
		return err
	}
	c.Response().Header().Set("Location", "/api/v1/certificates/"+string(cert.Serial))
	return c.JSON(http.StatusCreated, s.viewCertificate(cert))
}
