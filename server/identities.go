package server

import (
	"encoding/hex"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/labstack/echo/v4"

	"keystead/fault"
	"keystead/identity"
	"keystead/psk"
	"keystead/seal"
)

func (s *Server) identityRoutes() []route {
	const one = "/identities/psk/:identity"
	return []route{
		{method: http.MethodGet, path: "/identities", need: identity.CredentialsRead, handle: s.identities, wire: creatorProblem},
		{method: http.MethodGet, path: "/identities/psk", need: identity.CredentialsRead, handle: s.listPSKs, wire: creatorProblem},
		{method: http.MethodPost, path: "/identities/psk", need: identity.CredentialsWrite, handle: s.createPSK, wire: creatorProblem},
		{method: http.MethodGet, path: one, need: identity.CredentialsRead, handle: s.showPSK, wire: creatorProblem},
		{method: http.MethodDelete, path: one, need: identity.CredentialsWrite, handle: s.deletePSK, wire: creatorProblem},
	}
}

func (s *Server) identities(c echo.Context) error {
	return resource{root: "Identities", media: "identities", links: []link{
		{"psk", creatorURL(c, "identities", "psk"), "pskidentities"},
		{"certificate", creatorURL(c, "identities", "certificates"), "certificates"},
	}}.write(c, http.StatusOK)
}

// viewPSK is a key as it is read, and with its secret as it is created.
func viewPSK(c echo.Context, k psk.Key, secret seal.Secret) resource {
	r := resource{
		root: "PSKIdentity", media: "pskidentity",
		members: []member{{"Identity", string(k.Identity)}},
		links:   selfLinks(creatorURL(c, "identities", "psk", string(k.Identity)), false),
	}
	if secret != nil {
		r.members = append(r.members, member{"Secret", hexUpper(secret)})
	}
	return r
}

func hexUpper(secret seal.Secret) string { return strings.ToUpper(hex.EncodeToString(secret)) }

func (s *Server) listPSKs(c echo.Context) error {
	r, err := rangeOf(c)
	if err != nil {
		return err
	}
	keys, total, err := s.PSK.ListFrom(c.Request().Context(), r.start, r.size)
	if err != nil {
		return err
	}
	items := make([]resource, len(keys))
	for i, k := range keys {
		items[i] = viewPSK(c, k, nil)
	}
	return resource{
		root: "PSKIdentities", media: "pskidentities", members: r.pageOf(c, total, items),
		links: []link{{"add", creatorURL(c, "identities", "psk"), ""}},
	}.write(c, http.StatusOK)
}

// newPSK is the optional body of a POST: it imports a key made elsewhere, makes
// one that can be typed, or names the device the key is for.
type newPSK struct {
	Identity     string `xml:"Identity"`
	Secret       string `xml:"Secret"`
	SecretFormat string `xml:"SecretFormat"`
	Device       string `xml:"Device"`
}

func (n newPSK) key() (psk.New, error) {
	k := psk.New{Identity: psk.Identity(n.Identity), Device: n.Device}
	var err error
	if k.Secret, err = hex.DecodeString(n.Secret); err != nil {
		return k, fault.InvalidFields(fault.Field{Name: "Secret", Message: "must be written in hexadecimal"})
	}
	k.Text, err = isTextFormat(n.SecretFormat)
	return k, err
}

func isTextFormat(format string) (bool, error) {
	switch format {
	case "", "hex":
		return false, nil
	case "text":
		return true, nil
	}
	return false, fault.InvalidFields(fault.Field{Name: "SecretFormat", Message: "must be hex or text"})
}

func (s *Server) createPSK(c echo.Context) error {
	var in newPSK
	if _, err := bindCreator(c, &in); err != nil {
		return err
	}
	n, err := in.key()
	if err != nil {
		return err
	}
	k, secret, err := s.PSK.Create(c.Request().Context(), n)
	if err != nil {
		return err
	}
	defer secret.Wipe()
	c.Response().Header().Set("Location", creatorURL(c, "identities", "psk", string(k.Identity)))
	c.Response().Header().Set("Cache-Control", "no-store")
	return viewPSK(c, k, secret).write(c, http.StatusCreated)
}

func (s *Server) showPSK(c echo.Context) error {
	k, err := s.PSK.Get(c.Request().Context(), pskIdentity(c))
	if err != nil {
		return err
	}
	return viewPSK(c, k, nil).write(c, http.StatusOK)
}

func (s *Server) deletePSK(c echo.Context) error {
	if err := s.PSK.Delete(c.Request().Context(), pskIdentity(c)); err != nil {
		return err
	}
	return c.NoContent(http.StatusNoContent)
}

func pskIdentity(c echo.Context) psk.Identity { return psk.Identity(pathParam(c, "identity")) }

// pathParam returns a segment of the path as the client means it. The router
// leaves segments as they came where one of them is escaped.
func pathParam(c echo.Context, name string) string {
	raw := c.Param(name)
	if c.Request().URL.RawPath == "" {
		return raw
	}
	if plain, err := url.PathUnescape(raw); err == nil {
		return plain
	}
	return raw
}

func (s *Server) pskRoutes() []route {
	return []route{
		{method: http.MethodGet, path: "/api/v1/psk", need: identity.CredentialsRead, handle: s.pagePSKs},
		{method: http.MethodPost, path: "/api/v1/psk", need: identity.CredentialsWrite, handle: s.addPSK},
		{method: http.MethodPost, path: "/api/v1/psk/bulk", need: identity.CredentialsWrite, handle: s.addPSKs},
		{method: http.MethodPost, path: "/api/v1/psk/:identity/reveal", need: identity.CredentialsReveal, handle: s.revealPSK},
	}
}

// pskView is a key as this server's own API shows it. Secret is set where a key
// is made or revealed.
type pskView struct {
	Identity  string    `json:"identity"`
	Secret    string    `json:"secret,omitempty"`
	Device    string    `json:"device"`
	CreatedAt time.Time `json:"created_at"`
}

func viewKey(k psk.Key) pskView {
	return pskView{Identity: string(k.Identity), Device: k.Device, CreatedAt: k.CreatedAt}
}

// withSecret fills in the secret and wipes it.
func (v pskView) withSecret(secret seal.Secret) pskView {
	v.Secret = hexUpper(secret)
	secret.Wipe()
	return v
}

// pagePSKs answers with a page; ?device= narrows it to those of one.
func (s *Server) pagePSKs(c echo.Context) error {
	r, err := pageRequest(c)
	if err != nil {
		return err
	}
	device, err := s.deviceParam(c)
	if err != nil {
		return err
	}
	p, err := s.PSK.List(c.Request().Context(), device, r)
	if err != nil {
		return err
	}
	return writePage(c, p, viewKey)
}

type pskInput struct {
	Identity     string            `json:"identity"`
	Secret       string            `json:"secret"`
	SecretFormat string            `json:"secret_format"`
	Device       string            `json:"device"`
	Labels       map[string]string `json:"labels"`
}

func (s *Server) addPSK(c echo.Context) error {
	var in pskInput
	if err := bind(c, &in); err != nil {
		return err
	}
	n, err := newPSK{in.Identity, in.Secret, in.SecretFormat, in.Device}.key()
	if err != nil {
		return err
	}
	n.Labels = in.Labels
	k, secret, err := s.PSK.Create(c.Request().Context(), n)
	if err != nil {
		return err
	}
	c.Response().Header().Set("Cache-Control", "no-store")
	return c.JSON(http.StatusCreated, viewKey(k).withSecret(secret))
}

type pskBulkInput struct {
	Count        int               `json:"count"`
	SecretFormat string            `json:"secret_format"`
	Labels       map[string]string `json:"labels"`
}

// addPSKs makes many keys in one transaction, each for a new device.
func (s *Server) addPSKs(c echo.Context) error {
	var in pskBulkInput
	if err := bind(c, &in); err != nil {
		return err
	}
	text, err := isTextFormat(in.SecretFormat)
	if err != nil {
		return err
	}
	made, err := s.PSK.CreateMany(c.Request().Context(), in.Count, psk.New{Text: text, Labels: in.Labels})
	if err != nil {
		return err
	}
	out := list[pskView]{Items: make([]pskView, len(made))}
	for i, m := range made {
		out.Items[i] = viewKey(m.Key).withSecret(m.Secret)
	}
	c.Response().Header().Set("Cache-Control", "no-store")
	return c.JSON(http.StatusCreated, out)
}

// revealPSK answers with a secret once more; the trail says who asked.
func (s *Server) revealPSK(c echo.Context) error {
	k, err := s.PSK.Get(c.Request().Context(), pskIdentity(c))
	if err != nil {
		return err
	}
	secret, err := s.PSK.Reveal(c.Request().Context(), k.Identity)
	if err != nil {
		return err
	}
	c.Response().Header().Set("Cache-Control", "no-store")
	return c.JSON(http.StatusOK, viewKey(k).withSecret(secret))
}
