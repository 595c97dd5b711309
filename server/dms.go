package server

import (
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
