package client

import (
	"context"
	"encoding/json"
	"io"
	"iter"
	"net/http"
	"net/url"
	"time"
)

// CA is a certificate authority.
type CA struct {
	ID          string     `json:"id"`
	Name        string     `json:"name"`
	Kind        string     `json:"kind"`
	State       string     `json:"state"`
	Default     bool       `json:"default"`
	Parent      string     `json:"parent,omitempty"`
	Predecessor string     `json:"predecessor,omitempty"`
	Successor   string     `json:"successor,omitempty"`
	Algorithm   string     `json:"algorithm"`
	HasKey      bool       `json:"has_key"`
	Check       string     `json:"revocation_check,omitempty"`
	Certificate string     `json:"certificate,omitempty"`
	Chain       string     `json:"chain,omitempty"`
	Request     string     `json:"request,omitempty"`
	NotAfter    *time.Time `json:"not_after,omitempty"`
	CreatedAt   time.Time  `json:"created_at"`
}

// NewCA is a CA to be made.
type NewCA struct {
	Name        string `json:"name"`
	Parent      string `json:"parent,omitempty"`
	Algorithm   string `json:"algorithm,omitempty"`
	RequestOnly bool   `json:"request_only,omitempty"`
}

// CAImport is a CA from outside, in PEM.
type CAImport struct {
	Name        string `json:"name,omitempty"`
	Certificate string `json:"certificate"`
	PrivateKey  string `json:"private_key,omitempty"`
	Pending     string `json:"pending,omitempty"`
	Check       string `json:"revocation_check,omitempty"`
}

// Certificate is a certificate in the inventory.
type Certificate struct {
	Serial      string     `json:"serial"`
	CA          string     `json:"ca"`
	Device      string     `json:"device,omitempty"`
	DMS         string     `json:"dms,omitempty"`
	Profile     string     `json:"profile"`
	State       string     `json:"state"`
	Subject     string     `json:"subject"`
	CommonName  string     `json:"common_name"`
	Fingerprint string     `json:"sha256"`
	Algorithm   string     `json:"algorithm"`
	NotBefore   time.Time  `json:"not_before"`
	NotAfter    time.Time  `json:"not_after"`
	IssuedAt    time.Time  `json:"issued_at"`
	RevokedAt   *time.Time `json:"revoked_at,omitempty"`
	Reason      string     `json:"reason,omitempty"`
	Replaces    string     `json:"replaces,omitempty"`
	Renewal     string     `json:"renewal,omitempty"`
	RenewFrom   *time.Time `json:"renew_from,omitempty"`
	Flags       []string   `json:"flags"`
}

// Profile is an issuance profile; the rest of it is in Raw.
type Profile struct {
	ID          string `json:"id"`
	Name        string `json:"name"`
	Description string `json:"description,omitempty"`
	Builtin     bool   `json:"builtin,omitempty"`
}

// DMS is an enrolment profile.
type DMS struct {
	ID        string          `json:"id"`
	Name      string          `json:"name"`
	Metadata  json.RawMessage `json:"metadata"`
	CreatedAt time.Time       `json:"creation_ts"`
	Settings  json.RawMessage `json:"settings"`
}

// EnrolmentToken lets its holder enrol. Token is there when it was just made.
type EnrolmentToken struct {
	ID         string    `json:"id"`
	Token      string    `json:"token,omitempty"`
	DMS        string    `json:"dms"`
	Device     string    `json:"device,omitempty"`
	CommonName string    `json:"common_name,omitempty"`
	State      string    `json:"state"`
	Uses       int       `json:"uses"`
	MaxUses    int       `json:"max_uses"`
	Comment    string    `json:"comment,omitempty"`
	CreatedAt  time.Time `json:"created_at"`
	ExpiresAt  time.Time `json:"expires_at"`
}

// NewEnrolmentToken is a token to be made.
type NewEnrolmentToken struct {
	DMS        string `json:"dms,omitempty"`
	Device     string `json:"device,omitempty"`
	CommonName string `json:"common_name,omitempty"`
	MaxUses    *int   `json:"max_uses,omitempty"`
	ExpiresIn  string `json:"expires_in,omitempty"`
	Comment    string `json:"comment,omitempty"`
}

// CAs lists the CAs of the organisation.
func (c *Client) CAs(ctx context.Context) iter.Seq2[CA, error] {
	return List[CA](ctx, c, "/api/v1/cas", nil)
}

// CA returns one CA.
func (c *Client) CA(ctx context.Context, id string) (CA, error) {
	return Do[CA](ctx, c, http.MethodGet, Path("api", "v1", "cas", id), nil, nil)
}

// CreateCA makes a CA, or the request for one.
func (c *Client) CreateCA(ctx context.Context, n NewCA) (CA, error) {
	return Do[CA](ctx, c, http.MethodPost, "/api/v1/cas", nil, n)
}

// ImportCA takes in a CA from outside.
func (c *Client) ImportCA(ctx context.Context, in CAImport) (CA, error) {
	return Do[CA](ctx, c, http.MethodPost, "/api/v1/cas/import", nil, in)
}

// ChangeCA does one of "default", "roll-over", "retire" and "activate".
func (c *Client) ChangeCA(ctx context.Context, id, what string) (CA, error) {
	return Do[CA](ctx, c, http.MethodPost, Path("api", "v1", "cas", id, what), nil, nil)
}

// SetRevocationCheck says how certificates of a CA that were not issued here are looked
// up: "off", "soft", "hard", or "" for what the configuration says.
func (c *Client) SetRevocationCheck(ctx context.Context, id, check string) (CA, error) {
	return Do[CA](ctx, c, http.MethodPost, Path("api", "v1", "cas", id, "revocation-check"), nil, map[string]string{"revocation_check": check})
}

// RevokeCA revokes a CA and all it has issued.
func (c *Client) RevokeCA(ctx context.Context, id, reason string) (CA, error) {
	return Do[CA](ctx, c, http.MethodPost, Path("api", "v1", "cas", id, "revoke"), nil, map[string]string{"reason": reason})
}

// DeleteCA removes a CA and its key.
func (c *Client) DeleteCA(ctx context.Context, id string) error {
	_, err := Do[struct{}](ctx, c, http.MethodDelete, Path("api", "v1", "cas", id), nil, nil)
	return err
}

// Sign issues a certificate from a request in PEM.
func (c *Client) Sign(ctx context.Context, ca, csr, profile, device string) (Certificate, error) {
	return Do[Certificate](ctx, c, http.MethodPost, Path("api", "v1", "cas", ca, "sign"), nil, map[string]string{"csr": csr, "profile": profile, "device": device})
}

// Certificates lists certificates, narrowed by the parameters of the API.
func (c *Client) Certificates(ctx context.Context, narrow url.Values) iter.Seq2[Certificate, error] {
	return List[Certificate](ctx, c, "/api/v1/certificates", narrow)
}

// Certificate returns a certificate by serial number or fingerprint.
func (c *Client) Certificate(ctx context.Context, serial string) (Certificate, error) {
	return Do[Certificate](ctx, c, http.MethodGet, Path("api", "v1", "certificates", serial), nil, nil)
}

// CertificatePEM returns the certificate itself.
func (c *Client) CertificatePEM(ctx context.Context, serial string) (string, error) {
	res, err := c.Send(ctx, Request{Method: http.MethodGet, Path: Path("api", "v1", "certificates", serial, "pem")})
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, 1<<20))
	return string(b), err
}

// RevokeCertificate revokes, holds or releases a certificate.
func (c *Client) RevokeCertificate(ctx context.Context, serial, reason string) (Certificate, error) {
	return Do[Certificate](ctx, c, http.MethodPost, Path("api", "v1", "certificates", serial, "revoke"), nil, map[string]string{"reason": reason})
}

// CertificateExpiry returns how many certificates expire when.
func (c *Client) CertificateExpiry(ctx context.Context) (map[string]int, error) {
	return Do[map[string]int](ctx, c, http.MethodGet, "/api/v1/certificates/expiry", nil, nil)
}

// Profiles lists the issuance profiles.
func (c *Client) Profiles(ctx context.Context) iter.Seq2[Profile, error] {
	return List[Profile](ctx, c, "/api/v1/profiles", nil)
}

// Raw reads a resource as it stands.
func (c *Client) Raw(ctx context.Context, parts ...string) (json.RawMessage, error) {
	return Do[json.RawMessage](ctx, c, http.MethodGet, Path(parts...), nil, nil)
}

// CreateProfile adds an issuance profile, as JSON.
func (c *Client) CreateProfile(ctx context.Context, body json.RawMessage) (Profile, error) {
	return Do[Profile](ctx, c, http.MethodPost, "/api/v1/profiles", nil, body)
}

// UpdateProfile replaces an issuance profile.
func (c *Client) UpdateProfile(ctx context.Context, id string, body json.RawMessage) (Profile, error) {
	return Do[Profile](ctx, c, http.MethodPut, Path("api", "v1", "profiles", id), nil, body)
}

// DeleteProfile removes an issuance profile.
func (c *Client) DeleteProfile(ctx context.Context, id string) error {
	_, err := Do[struct{}](ctx, c, http.MethodDelete, Path("api", "v1", "profiles", id), nil, nil)
	return err
}

// DMSs lists the enrolment profiles.
func (c *Client) DMSs(ctx context.Context) iter.Seq2[DMS, error] {
	return List[DMS](ctx, c, "/api/v1/dms", nil)
}

// CreateDMS adds an enrolment profile, as JSON.
func (c *Client) CreateDMS(ctx context.Context, body json.RawMessage) (DMS, error) {
	return Do[DMS](ctx, c, http.MethodPost, "/api/v1/dms", nil, body)
}

// UpdateDMS replaces an enrolment profile.
func (c *Client) UpdateDMS(ctx context.Context, id string, body json.RawMessage) (DMS, error) {
	return Do[DMS](ctx, c, http.MethodPut, Path("api", "v1", "dms", id), nil, body)
}

// Diagnosis is what a DMS would say to a request, check by check.
type Diagnosis struct {
	Accepted bool          `json:"accepted"`
	Status   int           `json:"status"`
	Reason   string        `json:"reason,omitempty"`
	AuthMode string        `json:"auth_mode,omitempty"`
	Device   string        `json:"device,omitempty"`
	Checks   []Examination `json:"checks"`
}

// Examination is one check of a diagnosis.
type Examination struct {
	Check  string `json:"check"`
	Result string `json:"result"`
	Detail string `json:"detail"`
}

// Question is what a device would show, in PEM.
type Question struct {
	Operation   string `json:"operation,omitempty"`
	CSR         string `json:"csr,omitempty"`
	Certificate string `json:"certificate,omitempty"`
	Token       string `json:"token,omitempty"`
}

// Diagnose says what a DMS would say to a request, issuing nothing.
func (c *Client) Diagnose(ctx context.Context, dms string, q Question) (Diagnosis, error) {
	return Do[Diagnosis](ctx, c, http.MethodPost, Path("api", "v1", "dms", dms, "diagnose"), nil, q)
}

// BindIdentity gives a device a certificate that was issued without one.
func (c *Client) BindIdentity(ctx context.Context, mode, device, serial string) error {
	_, err := Do[json.RawMessage](ctx, c, http.MethodPost, "/api/v1/dms/bind-identity", nil,
		map[string]string{"bind_mode": mode, "device_id": device, "certificate_serial_number": serial})
	return err
}

// DeleteDMS removes an enrolment profile; force does so while devices came in by it.
func (c *Client) DeleteDMS(ctx context.Context, id string, force bool) error {
	q := url.Values{}
	if force {
		q.Set("force", "true")
	}
	_, err := Do[struct{}](ctx, c, http.MethodDelete, Path("api", "v1", "dms", id), q, nil)
	return err
}

// EnrolmentTokens lists the enrolment tokens.
func (c *Client) EnrolmentTokens(ctx context.Context) iter.Seq2[EnrolmentToken, error] {
	return List[EnrolmentToken](ctx, c, "/api/v1/enrolment-tokens", nil)
}

// CreateEnrolmentToken makes a token.
func (c *Client) CreateEnrolmentToken(ctx context.Context, n NewEnrolmentToken) (EnrolmentToken, error) {
	return Do[EnrolmentToken](ctx, c, http.MethodPost, "/api/v1/enrolment-tokens", nil, n)
}

// RevokeEnrolmentToken ends a token.
func (c *Client) RevokeEnrolmentToken(ctx context.Context, id string) error {
	_, err := Do[struct{}](ctx, c, http.MethodDelete, Path("api", "v1", "enrolment-tokens", id), nil, nil)
	return err
}
