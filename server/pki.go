package server

import (
	"context"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/labstack/echo/v4"

	"keystead/accounts"
	"keystead/fault"
	"keystead/identity"
	"keystead/outbound"
	"keystead/pki"
	"keystead/store"
)

// buildPKI opens the CAs.
func (s *Server) buildPKI(ctx context.Context) error {
	key, err := secretNamed(ctx, s.DB, s.box, journalSecret)
	if err != nil {
		return err
	}
	journal, err := pki.OpenJournal(filepath.Join(s.Config.Data, "revocations.log"), key)
	if err != nil {
		return err
	}
	s.closers = append(s.closers, journal.Close)
	s.PKI = &pki.Service{
		DB: s.DB, Audit: s.Audit, Devices: s.Devices, Log: s.Log, Now: s.Now, Journal: journal,
		Keys: &pki.SealedKeys{DB: s.DB, Box: s.keys.Box("ca")}, Outside: s.outsideStatus(), Crossed: s.emitRenewal, IsSecret: s.Things.Holds,
	}
	s.every("certificates", renewalCheck, s.PKI.Sweep)
	if err := s.openToken(); err != nil {
		return err
	}
	s.setPublicHTTP(s.Config.HTTP.Listen)
	return s.PKI.Start(ctx)
}

// outsideStatus asks outside CAs what they have revoked, as every request of the
// server's own is sent.
func (s *Server) outsideStatus() *pki.Outside {
	c := s.Config.PKI.Outside
	client := outbound.New(outbound.Options{
		Guard: outbound.Guard{Allow: s.Config.Webhook.Prefixes(), Deny: s.isOwn}, Timeout: c.Timeout, MaxAnswer: pki.MaxCRL, PlainHTTP: true, Now: s.Now,
	})
	s.closers = append(s.closers, func() error { client.Close(); return nil })
	return &pki.Outside{Now: s.Now, MaxAge: c.MaxAge, Check: c.Check, Fetch: func(ctx context.Context, url, media string, body []byte, most int64) ([]byte, error) {
		r := outbound.Request{Method: http.MethodGet, URL: url}
		if body != nil {
			r.Method, r.Body, r.Header = http.MethodPost, body, map[string]string{"Content-Type": media}
		}
		a, err := client.Do(ctx, r)
		switch {
		case err != nil:
			return nil, err
		case !a.OK():
			return nil, fmt.Errorf("status %d", a.Status)
		case int64(len(a.Body)) > most:
			return nil, fmt.Errorf("the answer is larger than %d bytes", most)
		}
		return a.Body, nil
	}}
}

// openToken has the keys of CAs kept in a PKCS#11 token, if one is set.
func (s *Server) openToken() error {
	p := s.Config.PKI.PKCS11
	if p.Module == "" {
		return nil
	}
	pin, err := os.ReadFile(s.Config.Path(p.PINFile))
	if err != nil {
		return fmt.Errorf("pki.pkcs11.pin_file: %w", err)
	}
	keys, closeToken, err := pki.OpenPKCS11(p.WithPIN(strings.TrimSpace(string(pin))))
	if err != nil {
		return err
	}
	s.PKI.Keys = keys
	s.closers = append(s.closers, closeToken)
	return nil
}

// setPublicHTTP tells the PKI where clients reach the plain HTTP listener: at the
// host of the public URL, and the port it is bound to. A port that is not known yet
// leaves the pointers to CRLs and OCSP out.
func (s *Server) setPublicHTTP(listen string) {
	s.PKI.PublicHTTP = s.Config.PKI.PublicHTTP
	_, port, err := net.SplitHostPort(listen)
	if s.PKI.PublicHTTP != "" || err != nil || port == "0" {
		return
	}
	host := "localhost"
	if u, err := url.Parse(s.Config.PublicURL); err == nil && u.Hostname() != "" {
		host = u.Hostname()
	}
	if port != "80" {
		s.PKI.PublicHTTP = "http://" + net.JoinHostPort(host, port)
	} else {
		s.PKI.PublicHTTP = "http://" + host
	}
}

// newCAs gives a new organisation its CAs. If that fails they are made when a
// certificate is first asked for, or by command.
func (s *Server) newCAs(o accounts.Organisation) {
	ctx := identity.NewContext(context.Background(), identity.Actor{Kind: identity.System, Org: o.ID})
	if _, err := s.PKI.EnsureOrg(ctx, o.ID, o.Name); err != nil {
		s.Log.Error("a new organisation has no certificate authority yet", slog.String("organisation", o.ID), slog.Any("error", err))
	}
}

// firstCAs makes a root and an issuing CA for the default organisation, and the
// server's own certificate, and writes what clients are to trust to ca.pem.
func (s *Server) firstCAs(ctx context.Context) error {
	org, err := s.Accounts.DefaultOrganisation(ctx)
	if err != nil {
		return err
	}
	issuing, err := s.PKI.EnsureOrg(ctx, org, "Keystead")
	if err != nil {
		return err
	}
	s.Accounts.OrganisationCreated = s.newCAs
	s.EST.DefaultOrg = org
	if err := s.EST.EnsureDefault(ctx, org); err != nil {
		return err
	}
	if err := s.renewCertificate(ctx, org); err != nil {
		return err
	}
	s.tasks = append(s.tasks, task{"certificate", func(ctx context.Context) error { return s.keepCertificate(ctx, org) }})
	path, err := s.PKI.Path(ctx, issuing.ID)
	if err != nil {
		return err
	}
	root := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: path[len(path)-1].Raw})
	file := filepath.Join(s.Config.Data, "ca.pem")
	if kept, err := os.ReadFile(file); err == nil && string(kept) == string(root) {
		return nil
	}
	return writeFile(file, root, 0o644)
}

// renewCertificate takes the server's own certificate, a new one if it is time.
func (s *Server) renewCertificate(ctx context.Context, org string) error {
	if len(s.Config.TLS.Names) == 0 {
		return nil // there is one from elsewhere
	}
	c, err := s.PKI.ServerCertificate(ctx, org, s.Config.TLS.Names)
	if err != nil {
		return err
	}
	s.tls.own.Store(c)
	return nil
}

const certificateCheck = time.Hour

// renewalCheck is how often certificates are looked for that are to be renewed by now. The
// next of them is at hand.
const renewalCheck = 30 * time.Second

func (s *Server) keepCertificate(ctx context.Context, org string) error {
	tick := time.NewTicker(certificateCheck)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
			if err := s.renewCertificate(ctx, org); err != nil {
				s.Log.ErrorContext(ctx, "the server's own certificate was not renewed; trying again later", slog.Any("error", err))
			}
		}
	}
}

// publicPKIRoutes are what plain HTTP serves: it is signed, and needed before a
// client can trust anything.
func (s *Server) publicPKIRoutes() []route {
	return []route{
		{method: http.MethodGet, path: "/crl/:ca/:file", need: identity.Public, handle: s.crl},
		{method: http.MethodGet, path: "/ca/:file", need: identity.Public, handle: s.caCertificate},
		{method: http.MethodPost, path: "/ocsp", need: identity.Public, handle: s.ocspPost, body: pki.MaxOCSPRequest},
		{method: http.MethodGet, path: "/ocsp/*", need: identity.Public, handle: s.ocspGet},
	}
}

func (s *Server) crl(c echo.Context) error {
	shard, err := pki.CRLPath(strings.TrimSuffix(c.Param("file"), ".crl"))
	if err != nil {
		return err
	}
	crl, err := s.PKI.CRL(c.Request().Context(), pki.CAID(c.Param("ca")), shard)
	if err != nil {
		return err
	}
	h := c.Response().Header()
	h.Set("ETag", `"`+pki.Fingerprint(crl.DER)[:32]+`"`)
	h.Set("Last-Modified", crl.IssuedAt.Format(http.TimeFormat))
	h.Set("Expires", crl.Expires.Format(http.TimeFormat))
	h.Set("Cache-Control", "public, max-age=60")
	if c.Request().Header.Get("If-None-Match") == h.Get("ETag") {
		return c.NoContent(http.StatusNotModified)
	}
	return c.Blob(http.StatusOK, "application/pkix-crl", crl.DER)
}

func (s *Server) caCertificate(c echo.Context) error {
	path, err := s.PKI.Path(c.Request().Context(), pki.CAID(strings.TrimSuffix(c.Param("file"), ".cer")))
	if err != nil {
		return err
	}
	return c.Blob(http.StatusOK, "application/pkix-cert", path[0].Raw)
}

func (s *Server) ocspPost(c echo.Context) error {
	body, err := io.ReadAll(c.Request().Body)
	if err != nil {
		return fault.Wrap(fault.Invalid, err, "the body could not be read")
	}
	return s.ocspAnswer(c, body)
}

// ocspGet takes the request from the path, in base64 (RFC 6960, A.1), which may
// hold slashes, escaped or not.
func (s *Server) ocspGet(c echo.Context) error {
	text := strings.TrimPrefix(c.Request().URL.Path, "/ocsp/")
	der, err := base64.StdEncoding.DecodeString(strings.ReplaceAll(text, " ", "+"))
	if err != nil {
		return fault.New(fault.Invalid, "the path is not an OCSP request in base64")
	}
	return s.ocspAnswer(c, der)
}

func (s *Server) ocspAnswer(c echo.Context, der []byte) error {
	a := s.PKI.OCSP(c.Request().Context(), der)
	h := c.Response().Header()
	if a.NextUpdate.IsZero() {
		h.Set("Cache-Control", "no-store")
	} else {
		h.Set("Expires", a.NextUpdate.Format(http.TimeFormat))
		h.Set("Cache-Control", "public, no-transform, must-revalidate, max-age=60")
	}
	return c.Blob(http.StatusOK, "application/ocsp-response", a.DER)
}

// sign issues from a request in PEM, for a device if one is named.
func (s *Server) sign(ctx context.Context, ca pki.CAID, in signRequest) (pki.Certificate, error) {
	if in.Profile == "" {
		in.Profile = pki.DeviceProfile
	}
	block, _ := pem.Decode([]byte(in.CSR))
	if block == nil {
		return pki.Certificate{}, fault.InvalidFields(fault.Field{Name: "csr", Message: "must be a certificate request in PEM"})
	}
	csr, err := pki.ParseCSR(block.Bytes)
	if err == nil {
		err = pki.CheckSignature(csr)
	}
	if err != nil {
		return pki.Certificate{}, err
	}
	profile, err := s.PKI.Profile(ctx, in.Profile)
	if err != nil {
		return pki.Certificate{}, err
	}
	var device string
	if in.Device != "" {
		d, err := s.Devices.Find(ctx, in.Device)
		if err != nil {
			return pki.Certificate{}, err
		}
		device = d.ID
	}
	p, err := s.PKI.Prepare(ctx, pki.Request{Org: identity.OrgOf(ctx), CA: ca, Profile: profile, CSR: csr, Device: device})
	if err != nil {
		return pki.Certificate{}, err
	}
	return s.PKI.Issue(ctx, p, func(ctx context.Context, tx store.Tx, c *pki.Certificate) error {
		if device == "" {
			return nil
		}
		return s.PKI.Attach(ctx, tx, device, c)
	})
}
