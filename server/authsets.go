package server

import (
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"iter"
	"mime"
	"net/http"
	"strings"
	"time"

	"github.com/labstack/echo/v4"

	"keystead/authsets"
	"keystead/fault"
	"keystead/identity"
	"keystead/page"
)

// authSetRoutes is what there is beyond Mender's API.
func (s *Server) authSetRoutes() []route {
	return []route{
		{method: http.MethodPost, path: "/api/v1/authsets/import", need: identity.CredentialsWrite, handle: s.importAuthSets, body: maxImport, stream: true},
		{method: http.MethodPost, path: "/api/v1/authsets/bulk", need: identity.CredentialsWrite, handle: s.bulkAuthSets},
		{method: http.MethodPost, path: "/api/v1/devices/:id/token", need: identity.TokensAdmin, handle: s.issueToken},
		{method: http.MethodGet, path: "/api/v1/accept-rules", need: identity.CredentialsRead, handle: s.listAcceptRules},
		{method: http.MethodPost, path: "/api/v1/accept-rules", need: identity.OrgAdmin, handle: s.createAcceptRule},
		{method: http.MethodDelete, path: "/api/v1/accept-rules/:id", need: identity.OrgAdmin, handle: s.deleteAcceptRule},
		{method: http.MethodGet, path: "/api/v1/mtls-cas", need: identity.PKIRead, handle: s.listMTLSCAs},
		{method: http.MethodPost, path: "/api/v1/mtls-cas", need: identity.PKIWrite, handle: s.createMTLSCA},
		{method: http.MethodGet, path: "/api/v1/mtls-cas/:id", need: identity.PKIRead, handle: s.showMTLSCA},
		{method: http.MethodDelete, path: "/api/v1/mtls-cas/:id", need: identity.PKIWrite, handle: s.deleteMTLSCA},
		{method: http.MethodGet, path: "/api/v1/mtls-cas/:id/denied", need: identity.PKIRead, handle: s.listDenied},
		{method: http.MethodPut, path: "/api/v1/mtls-cas/:id/denied/:serial", need: identity.PKIWrite, handle: s.denyCertificate},
		{method: http.MethodDelete, path: "/api/v1/mtls-cas/:id/denied/:serial", need: identity.PKIWrite, handle: s.allowCertificate},
	}
}

// maxImport is the most bytes of one import; a longer one is sent in parts.
const maxImport = 1 << 30

// importAuthSets preauthorises the devices of the body, CSV or lines of JSON, as they arrive,
// and answers with a line of JSON for each.
func (s *Server) importAuthSets(c echo.Context) error {
	r := c.Request()
	kind, _, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil {
		kind = ""
	}
	var lines iter.Seq[authsets.Line]
	switch kind {
	case "text/csv":
		lines = authsets.ReadCSV(r.Body)
	case "application/x-ndjson", "application/jsonl":
		lines = authsets.ReadJSONLines(r.Body)
	default:
		return fault.New(fault.Unsupported, "send the devices as Content-Type: text/csv or application/x-ndjson")
	}
	ctl := http.NewResponseController(c.Response())
	if err := ctl.EnableFullDuplex(); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return fmt.Errorf("server: %w", err)
	}
	c.Response().Header().Set("Content-Type", "application/x-ndjson")
	out := json.NewEncoder(c.Response())
	dry := c.QueryParam("dry_run") == "true"
	batch := make([]authsets.Line, 0, authsets.Batch)
	flush := func() error {
		results, err := s.AuthSets.Import(r.Context(), batch, dry)
		if err != nil {
			return err
		}
		for _, result := range results {
			if err := out.Encode(result); err != nil {
				return err
			}
		}
		batch = batch[:0]
		return ctl.Flush()
	}
	for line := range lines {
		if batch = append(batch, line); len(batch) == authsets.Batch {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	return flush()
}

type bulkChange struct {
	Action     authsets.Action   `json:"action"`
	Status     authsets.Status   `json:"status"`
	Attributes map[string]string `json:"attributes"`
	Labels     map[string]string `json:"labels"`
	Cursor     page.Cursor       `json:"cursor"`
	DryRun     bool              `json:"dry_run"`
}

type bulkResult struct {
	Looked  int               `json:"looked"`
	Changed []string          `json:"changed"`
	Skipped map[string]string `json:"skipped"`
	Next    page.Cursor       `json:"next,omitempty"`
}

func (s *Server) bulkAuthSets(c echo.Context) error {
	var in bulkChange
	if err := bind(c, &in); err != nil {
		return err
	}
	r, err := s.AuthSets.Bulk(c.Request().Context(), authsets.BulkChange{
		Action: in.Action, Status: in.Status, Attributes: in.Attributes, Labels: in.Labels, After: in.Cursor, DryRun: in.DryRun,
	})
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, bulkResult{r.Looked, orEmpty(r.Changed), orEmptyMap(r.Skipped), r.Next})
}

// issueToken gives out a token of a device to who may; the trail says who did.
func (s *Server) issueToken(c echo.Context) error {
	deviceID, err := s.deviceID(c)
	if err != nil {
		return err
	}
	token, err := s.AuthSets.IssueFor(c.Request().Context(), deviceID)
	if err != nil {
		return err
	}
	c.Response().Header().Set("Cache-Control", "no-store")
	return c.JSON(http.StatusCreated, struct {
		Token string `json:"token"`
	}{token})
}

type acceptRuleView struct {
	ID        string     `json:"id"`
	Name      string     `json:"name"`
	Attribute string     `json:"attribute,omitempty"`
	Equals    string     `json:"equals,omitempty"`
	Matches   string     `json:"matches,omitempty"`
	CIDRs     []string   `json:"cidrs"`
	PubKey    string     `json:"pubkey,omitempty"`
	Until     *time.Time `json:"until"`
	Most      int        `json:"most"`
	Used      int        `json:"used"`
	CreatedAt time.Time  `json:"created_at"`
}

func viewAcceptRule(r authsets.Rule) acceptRuleView {
	v := acceptRuleView{
		ID: r.ID, Name: r.Name, Attribute: r.Attribute, Equals: r.Equals, Matches: r.Matches, CIDRs: orEmpty(r.CIDRs),
		Until: orNull(r.Until), Most: r.Most, Used: r.Used, CreatedAt: r.CreatedAt,
	}
	if r.Key != nil {
		v.PubKey = string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: r.Key}))
	}
	return v
}

func (s *Server) listAcceptRules(c echo.Context) error {
	r, err := pageRequest(c)
	if err != nil {
		return err
	}
	p, err := s.AuthSets.Rules(c.Request().Context(), r)
	if err != nil {
		return err
	}
	return writePage(c, p, viewAcceptRule)
}

type newAcceptRule struct {
	Name      string     `json:"name"`
	Attribute string     `json:"attribute"`
	Equals    string     `json:"equals"`
	Matches   string     `json:"matches"`
	CIDRs     []string   `json:"cidrs"`
	PubKey    string     `json:"pubkey"`
	Until     *time.Time `json:"until"`
	Most      int        `json:"most"`
}

func (s *Server) createAcceptRule(c echo.Context) error {
	var in newAcceptRule
	if err := bind(c, &in); err != nil {
		return err
	}
	rule := authsets.Rule{Name: in.Name, Attribute: in.Attribute, Equals: in.Equals, Matches: in.Matches, CIDRs: in.CIDRs, Most: in.Most}
	if in.Until != nil {
		rule.Until = *in.Until
	}
	if in.PubKey != "" {
		var err error
		if _, rule.Key, err = authsets.ParseKey(in.PubKey); err != nil {
			return fault.InvalidFields(fault.Field{Name: "pubkey", Message: "is no public key in PEM"})
		}
	}
	rule, err := s.AuthSets.AddRule(c.Request().Context(), rule)
	if err != nil {
		return err
	}
	return c.JSON(http.StatusCreated, viewAcceptRule(rule))
}

func (s *Server) deleteAcceptRule(c echo.Context) error {
	if err := s.AuthSets.RemoveRule(c.Request().Context(), c.Param("id")); err != nil {
		return err
	}
	return c.NoContent(http.StatusNoContent)
}

type mtlsCAView struct {
	ID          string            `json:"id"`
	Name        string            `json:"name"`
	Certificate string            `json:"certificate"`
	Attributes  map[string]string `json:"attributes"`
	CreatedAt   time.Time         `json:"created_at"`
}

func viewMTLSCA(ca authsets.ClientCA) mtlsCAView {
	return mtlsCAView{
		ca.ID, ca.Name, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.Cert})), orEmptyMap(ca.Attributes), ca.CreatedAt,
	}
}

func (s *Server) listMTLSCAs(c echo.Context) error {
	r, err := pageRequest(c)
	if err != nil {
		return err
	}
	p, err := s.AuthSets.ClientCAs(c.Request().Context(), r)
	if err != nil {
		return err
	}
	return writePage(c, p, viewMTLSCA)
}

type newMTLSCA struct {
	Name        string            `json:"name"`
	Certificate string            `json:"certificate"`
	Attributes  map[string]string `json:"attributes"`
}

func (s *Server) createMTLSCA(c echo.Context) error {
	var in newMTLSCA
	if err := bind(c, &in); err != nil {
		return err
	}
	block, _ := pem.Decode([]byte(in.Certificate))
	if block == nil || block.Type != "CERTIFICATE" {
		return fault.InvalidFields(fault.Field{Name: "certificate", Message: "is no certificate in PEM"})
	}
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return fault.InvalidFields(fault.Field{Name: "certificate", Message: "cannot be read"})
	}
	ca, err := s.AuthSets.AddClientCA(c.Request().Context(), in.Name, cert, in.Attributes)
	if err != nil {
		return err
	}
	c.Response().Header().Set("Location", "/api/v1/mtls-cas/"+ca.ID)
	return c.JSON(http.StatusCreated, viewMTLSCA(ca))
}

func (s *Server) showMTLSCA(c echo.Context) error {
	ca, err := s.AuthSets.ClientCA(c.Request().Context(), c.Param("id"))
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, viewMTLSCA(ca))
}

func (s *Server) deleteMTLSCA(c echo.Context) error {
	if err := s.AuthSets.RemoveClientCA(c.Request().Context(), c.Param("id")); err != nil {
		return err
	}
	return c.NoContent(http.StatusNoContent)
}

type deniedView struct {
	Serial string    `json:"serial"`
	At     time.Time `json:"at"`
}

func (s *Server) listDenied(c echo.Context) error {
	r, err := pageRequest(c)
	if err != nil {
		return err
	}
	p, err := s.AuthSets.Denials(c.Request().Context(), c.Param("id"), r)
	if err != nil {
		return err
	}
	return writePage(c, p, func(d authsets.Denied) deniedView { return deniedView{d.Serial, d.At} })
}

func (s *Server) denyCertificate(c echo.Context) error { return s.setDenied(c, true) }

func (s *Server) allowCertificate(c echo.Context) error { return s.setDenied(c, false) }

func (s *Server) setDenied(c echo.Context, deny bool) error {
	serial := strings.ToLower(strings.ReplaceAll(c.Param("serial"), ":", ""))
	if err := s.AuthSets.Deny(c.Request().Context(), c.Param("id"), serial, deny); err != nil {
		return err
	}
	return c.NoContent(http.StatusNoContent)
}
