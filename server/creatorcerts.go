package server

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"net/http"
	"strconv"
	"time"

	"github.com/labstack/echo/v4"

	"keystead/devices"
	"keystead/fault"
	"keystead/id"
	"keystead/identity"
	"keystead/pki"
	"keystead/store"
)

func (s *Server) creatorCertificateRoutes() []route {
	const all, one = "/identities/certificates", "/identities/certificates/:serial"
	return []route{
		{method: http.MethodGet, path: all, need: identity.CredentialsRead, handle: s.listCreatorCertificates, wire: creatorProblem},
		{method: http.MethodPost, path: all, need: identity.CredentialsWrite, handle: s.createCreatorCertificate, wire: creatorProblem},
		{method: http.MethodGet, path: one, need: identity.CredentialsRead, handle: s.showCreatorCertificate, wire: creatorProblem},
		{method: http.MethodDelete, path: one, need: identity.CredentialsWrite, handle: s.deleteCreatorCertificate, wire: creatorProblem},
	}
}

// creatorProfile is what a certificate of the CreatorDev API is made by: three
// years, for clients and servers.
const creatorProfile = "creatordev"

func (s *Server) profileOf(cn, organisation string) pki.Profile {
	return pki.Profile{
		ID: creatorProfile, Name: creatorProfile,
		Validity:         pki.Validity{Type: "Duration", Duration: pki.Duration(3 * 365 * 24 * time.Hour)},
		KeyUsage:         pki.KeyUsages{"DigitalSignature", "KeyEncipherment"},
		ExtendedKeyUsage: pki.EKUs{"ServerAuth", "ClientAuth"},
		Subject:          pki.Subject{CommonName: cn, Organization: organisation},
	}
}

// newCertificate is the optional body of a POST: a request for a key of the
// device's own, or the device the certificate is for.
type newCertificate struct {
	CertificateRequest string `xml:"CertificateRequest"`
	Device             string `xml:"Device"`
}

func (n newCertificate) csr() (*x509.CertificateRequest, error) {
	if n.CertificateRequest == "" {
		return nil, nil
	}
	block, _ := pem.Decode([]byte(n.CertificateRequest))
	if block == nil {
		return nil, fault.InvalidFields(fault.Field{Name: "CertificateRequest", Message: "is not a PKCS#10 request in PEM"})
	}
	return pki.ParseCSR(block.Bytes)
}

// createCreatorCertificate makes a certificate for a new device, or one that is
// there, and its key unless the device has made one.
func (s *Server) createCreatorCertificate(c echo.Context) error {
	var in newCertificate
	if _, err := bindCreator(c, &in); err != nil {
		return err
	}
	csr, err := in.csr()
	if err != nil {
		return err
	}
	ctx := c.Request().Context()
	var bundle []byte
	r := pki.Request{CSR: csr}
	if csr == nil {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return err
		}
		if bundle, err = keyBlocks(key); err != nil {
			return err
		}
		defer clear(bundle)
		r.Public = key.Public()
	}
	cert, err := s.issueFor(ctx, r, in.Device, devices.CredentialActive)
	if err != nil {
		return err
	}
	bundle = append(bundle, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.DER})...)
	c.Response().Header().Set("Location", creatorURL(c, "identities", "certificates", string(cert.Serial)))
	c.Response().Header().Set("Cache-Control", "no-store")
	return resource{root: "Certificate", media: "certificate", members: []member{
		{"CertificateFormat", "PEM"}, {"RawCertificate", string(bundle)},
	}}.write(c, http.StatusCreated)
}

func keyBlocks(key *ecdsa.PrivateKey) ([]byte, error) {
	private, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return nil, err
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, err
	}
	return append(pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: private}),
		pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public})...), nil
}

// issueFor issues a certificate for a device of the actor's organisation, whose
// id is the common name, or, if none is named, for a new one with a random name.
func (s *Server) issueFor(ctx context.Context, r pki.Request, device string, state devices.CredentialState) (pki.Certificate, error) {
	r.Org = identity.OrgOf(ctx)
	org, err := s.Accounts.Organisation(ctx, r.Org)
	if err != nil {
		return pki.Certificate{}, err
	}
	system := identity.NewContext(ctx, identity.Actor{Kind: identity.System, Org: r.Org})
	if _, err := s.PKI.EnsureOrg(system, r.Org, org.Name); err != nil {
		return pki.Certificate{}, err
	}
	cn := id.Random()
	if device != "" {
		d, err := s.Devices.Find(ctx, device)
		if err != nil {
			return pki.Certificate{}, err
		}
		cn, device = d.ID, d.ID
	}
	r.Device, r.Profile = device, s.profileOf(cn, strconv.FormatUint(uint64(org.Number), 10))
	p, err := s.PKI.Prepare(ctx, r)
	if err != nil {
		return pki.Certificate{}, err
	}
	return s.PKI.Issue(ctx, p, func(ctx context.Context, tx store.Tx, c *pki.Certificate) error {
		to := device
		if to == "" {
			d, err := s.Devices.CreateIn(ctx, tx, devices.New{Org: r.Org, Aliases: []devices.Alias{{Kind: devices.CommonName, Value: cn}}})
			if err != nil {
				return err
			}
			to = d.ID
		}
		if err := s.PKI.Attach(ctx, tx, to, c); err != nil || state == devices.CredentialActive {
			return err
		}
		_, err := s.Devices.SetCredential(ctx, tx, to, devices.Credential{Kind: identity.Certificate, ID: string(c.Serial), State: state, ExpiresAt: c.NotAfter})
		return err
	})
}

// viewCreatorCertificate is a certificate as it is read: without a key, for none is kept.
func viewCreatorCertificate(c echo.Context, cert pki.Certificate, state pki.CertificateState) resource {
	return resource{
		root: "Certificate", media: "certificate",
		members: []member{
			{"SerialNumber", string(cert.Serial)},
			{"CommonName", cert.CommonName},
			{"NotAfter", cert.NotAfter.UTC().Format(time.RFC3339)},
			{"State", string(state)},
			{"CertificateFormat", "PEM"},
			{"RawCertificate", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert.DER}))},
		},
		links: selfLinks(creatorURL(c, "identities", "certificates", string(cert.Serial)), false),
	}
}

// listCreatorCertificates lists the certificates this API made.
func (s *Server) listCreatorCertificates(c echo.Context) error {
	r, err := rangeOf(c)
	if err != nil {
		return err
	}
	total, items := 0, []resource{}
	for cert, err := range s.PKI.Export(c.Request().Context(), pki.Filter{}) {
		if err != nil {
			return err
		}
		if cert.Profile != creatorProfile || cert.State == pki.CertRevoked {
			continue
		}
		if total >= r.start && total < r.start+r.size {
			items = append(items, viewCreatorCertificate(c, cert, cert.StateAt(s.Now())))
		}
		total++
	}
	members := r.pageOf(c, total, items)
	if total == 0 {
		members = nil // as clients of a server that keeps none know it
	}
	return resource{
		root: "Certificates", media: "certificates", members: members,
		links: []link{{"add", creatorURL(c, "identities", "certificates"), ""}},
	}.write(c, http.StatusOK)
}

// creatorCertificate is the certificate the path names, one of this API's and
// not revoked.
func (s *Server) creatorCertificate(c echo.Context) (pki.Certificate, error) {
	cert, err := s.PKI.Certificate(c.Request().Context(), c.Param("serial"))
	if err == nil && (cert.Profile != creatorProfile || cert.State == pki.CertRevoked) {
		err = fault.New(fault.NotFound, "no such certificate")
	}
	return cert, err
}

func (s *Server) showCreatorCertificate(c echo.Context) error {
	cert, err := s.creatorCertificate(c)
	if err != nil {
		return err
	}
	return viewCreatorCertificate(c, cert, cert.StateAt(s.Now())).write(c, http.StatusOK)
}

// deleteCreatorCertificate revokes it.
func (s *Server) deleteCreatorCertificate(c echo.Context) error {
	cert, err := s.creatorCertificate(c)
	if err != nil {
		return err
	}
	if _, err := s.PKI.Revoke(c.Request().Context(), string(cert.Serial), pki.CessationOfOperation); err != nil {
		return err
	}
	return c.NoContent(http.StatusNoContent)
}
