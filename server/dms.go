package server

import (
	"cmp"
	"encoding/json"
	"encoding/pem"
	"net/http"
	"time"

	"github.com/labstack/echo/v4"

	"keystead/est"
	"keystead/fault"
	"keystead/identity"
	"keystead/pki"
)

func (s *Server) dmsRoutes() []route {
	const all, one = "/api/v1/dms", "/api/v1/dms/:id"
	return []route{
		{method: http.MethodGet, path: all, need: identity.PKIRead, handle: s.listDMSs},
		{method: http.MethodPost, path: all, need: identity.PKIWrite, handle: s.createDMS},
		{method: http.MethodGet, path: all + "/stats", need: identity.PKIRead, handle: s.dmsStats},
		{method: http.MethodGet, path: one, need: identity.PKIRead, handle: s.showDMS},
		{method: http.MethodPut, path: one, need: identity.PKIWrite, handle: s.updateDMS},
		{method: http.MethodDelete, path: one, need: identity.PKIWrite, handle: s.deleteDMS},
		{method: http.MethodPatch, path: one + "/metadata", need: identity.PKIWrite, handle: s.patchDMS},
		{method: http.MethodPut, path: one + "/metadata", need: identity.PKIWrite, handle: s.patchDMS},
		{method: http.MethodPost, path: one + "/diagnose", need: identity.PKIRead, handle: s.diagnose},
		{method: http.MethodPost, path: all + "/bind-identity", need: identity.CredentialsWrite, handle: s.bindIdentity},
		{method: http.MethodPost, path: one + "/webhook-test", need: identity.PKIWrite, handle: s.testDMSWebhook},
		{method: http.MethodGet, path: "/api/v1/enrolments", need: identity.PKIRead, handle: s.listWaiting},
		{method: http.MethodPost, path: "/api/v1/enrolments/:id/approve", need: identity.CredentialsWrite, handle: s.decide(true)},
		{method: http.MethodPost, path: "/api/v1/enrolments/:id/deny", need: identity.CredentialsWrite, handle: s.decide(false)},
	}
}

// dmsIn is a DMS as it is written to us; who reads one gets est.DMS itself, which
// shows no secret.
type dmsIn struct {
	ID        string          `json:"id"`
	Name      string          `json:"name"`
	Metadata  json.RawMessage `json:"metadata"`
	CreatedAt *time.Time      `json:"creation_ts"` // read back by clients that edit what they got; not taken
	Settings  est.Settings    `json:"settings"`
}

func (in *dmsIn) dms() est.DMS {
	return est.DMS{ID: in.ID, Name: in.Name, Metadata: in.Metadata, Settings: in.Settings}
}

func viewDMS(d est.DMS) est.DMS {
	if len(d.Metadata) == 0 {
		d.Metadata = json.RawMessage("{}")
	}
	return d
}

func (s *Server) listDMSs(c echo.Context) error {
	r, err := pageRequest(c)
	if err != nil {
		return err
	}
	p, err := s.EST.DMSs(c.Request().Context(), r)
	if err != nil {
		return err
	}
	return writePage(c, p, viewDMS)
}

func (s *Server) createDMS(c echo.Context) error {
	var in dmsIn
	if err := bind(c, &in); err != nil {
		return err
	}
	d, err := s.EST.CreateDMS(c.Request().Context(), in.dms())
	if err != nil {
		return err
	}
	c.Response().Header().Set("Location", "/api/v1/dms/"+d.ID)
	return c.JSON(http.StatusCreated, viewDMS(d))
}

func (s *Server) dmsStats(c echo.Context) error {
	n, err := s.EST.CountDMSs(c.Request().Context())
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, map[string]int{"total": n})
}

func (s *Server) showDMS(c echo.Context) error {
	d, err := s.EST.DMS(c.Request().Context(), c.Param("id"))
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, viewDMS(d))
}

func (s *Server) updateDMS(c echo.Context) error {
	var in dmsIn
	if err := bind(c, &in); err != nil {
		return err
	}
	if in.ID == "" {
		in.ID = c.Param("id")
	}
	if in.ID != c.Param("id") {
		return fault.InvalidFields(fault.Field{Name: "id", Message: "must be that of the path; an id does not change"})
	}
	d, err := s.EST.UpdateDMS(c.Request().Context(), in.dms())
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, viewDMS(d))
}

func (s *Server) deleteDMS(c echo.Context) error {
	if err := s.EST.DeleteDMS(c.Request().Context(), c.Param("id"), c.QueryParam("force") == "true"); err != nil {
		return err
	}
	return c.NoContent(http.StatusNoContent)
}

func (s *Server) patchDMS(c echo.Context) error {
	var in metadataPatch
	if err := bind(c, &in); err != nil {
		return err
	}
	d, err := s.EST.PatchDMS(c.Request().Context(), c.Param("id"), in.Patches)
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, viewDMS(d))
}

type diagnosis struct {
	Operation   est.Operation `json:"operation"`
	CSR         string        `json:"csr"`         // PEM
	Certificate string        `json:"certificate"` // PEM, the client's first, then what it sends with it
	Token       string        `json:"token"`
}

// diagnose says what a DMS would say to a request, and why.
func (s *Server) diagnose(c echo.Context) error {
	var in diagnosis
	if err := bind(c, &in); err != nil {
		return err
	}
	q := est.Question{Operation: cmp.Or(in.Operation, est.SimpleEnroll), Token: in.Token}
	switch q.Operation {
	case est.SimpleEnroll, est.SimpleReenroll, est.ServerKeygen:
	default:
		return fault.InvalidFields(fault.Field{Name: "operation", Message: "must be simpleenroll, simplereenroll or serverkeygen"})
	}
	if in.CSR != "" {
		block, _ := pem.Decode([]byte(in.CSR))
		if block == nil {
			return fault.InvalidFields(fault.Field{Name: "csr", Message: "must be a certificate request in PEM"})
		}
		q.CSR = block.Bytes
	}
	if in.Certificate != "" {
		certs, err := pki.ParseCertificates([]byte(in.Certificate))
		if err != nil {
			return fault.InvalidFields(fault.Field{Name: "certificate", Message: fault.Message(err)})
		}
		q.Chain = certs
	}
	out, err := s.EST.Diagnose(c.Request().Context(), c.Param("id"), q)
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, out)
}

type bindIdentity struct {
	Mode   est.BindMode `json:"bind_mode"`
	Device string       `json:"device_id"` // id or alias
	Serial string       `json:"certificate_serial_number"`
}

type boundView struct {
	Certificate certificateView `json:"certificate"`
	DMS         *est.DMS        `json:"dms"`
	Device      deviceView      `json:"device"`
}

// bindIdentity gives a device a certificate that was issued without one.
func (s *Server) bindIdentity(c echo.Context) error {
	var in bindIdentity
	if err := bind(c, &in); err != nil {
		return err
	}
	b, err := s.EST.BindIdentity(c.Request().Context(), in.Mode, in.Device, in.Serial)
	if err != nil {
		return err
	}
	v := boundView{Certificate: s.viewCertificate(b.Certificate), Device: viewDevice(b.Device)}
	if b.DMS != nil {
		dms := viewDMS(*b.DMS)
		v.DMS = &dms
	}
	return c.JSON(http.StatusOK, v)
}

type webhookTest struct {
	Operation string `json:"operation"`
	CSR       string `json:"csr"` // PEM
}

func (s *Server) testDMSWebhook(c echo.Context) error {
	var in webhookTest
	if err := bind(c, &in); err != nil {
		return err
	}
	if in.Operation == "" {
		in.Operation = string(est.SimpleEnroll)
	}
	block, _ := pem.Decode([]byte(in.CSR))
	if block == nil {
		return fault.InvalidFields(fault.Field{Name: "csr", Message: "must be a certificate request in PEM"})
	}
	csr, err := pki.ParseCSR(block.Bytes)
	if err != nil {
		return err
	}
	out, err := s.EST.TestWebhook(c.Request().Context(), c.Param("id"), est.Operation(in.Operation), csr)
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, out)
}

type waitingView struct {
	ID        string           `json:"id"`
	DMS       string           `json:"dms"`
	Name      string           `json:"name"`
	Subject   string           `json:"subject"`
	State     est.WaitingState `json:"state"`
	From      string           `json:"from"`
	CreatedAt time.Time        `json:"created_at"`
}

func viewWaiting(w est.Waiting) waitingView {
	return waitingView{ID: w.ID, DMS: w.DMS, Name: w.Name, Subject: w.Subject, State: w.State, From: w.From, CreatedAt: w.At}
}

func (s *Server) listWaiting(c echo.Context) error {
	r, err := pageRequest(c)
	if err != nil {
		return err
	}
	p, err := s.EST.Waitings(c.Request().Context(), r)
	if err != nil {
		return err
	}
	return writePage(c, p, viewWaiting)
}

func (s *Server) decide(approve bool) echo.HandlerFunc {
	return func(c echo.Context) error {
		w, err := s.EST.Decide(c.Request().Context(), c.Param("id"), approve)
		if err != nil {
			return err
		}
		return c.JSON(http.StatusOK, viewWaiting(w))
	}
}
