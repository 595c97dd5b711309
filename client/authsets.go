package client

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
	"path"
	"strconv"
	"time"
)

// AuthDevice is an identity with the public keys that claim it.
type AuthDevice struct {
	ID          string            `json:"id"`
	Identity    json.RawMessage   `json:"identity_data"`
	Status      string            `json:"status"`
	CreatedAt   time.Time         `json:"created_ts"`
	UpdatedAt   time.Time         `json:"updated_ts"`
	CheckInTime *time.Time        `json:"check_in_time,omitempty"`
	AuthSets    []AuthSet         `json:"auth_sets"`
	Comment     string            `json:"comment,omitempty"`
	Labels      map[string]string `json:"labels,omitempty"`
}

// AuthSet is one public key that claims an identity.
type AuthSet struct {
	ID          string    `json:"id"`
	PubKey      string    `json:"pubkey"`
	CreatedAt   time.Time `json:"ts"`
	Status      string    `json:"status"`
	Fingerprint string    `json:"fingerprint"`
	Reason      string    `json:"reason,omitempty"`
	AcceptedBy  string    `json:"accepted_by,omitempty"`
}

const devauth = "/api/management/v2/devauth"

// AuthDevices lists the devices with a status, "" for any, sorted by status and id; with
// labels, each key=value, those that have them all.
func (c *Client) AuthDevices(ctx context.Context, status string, labels ...string) iter.Seq2[AuthDevice, error] {
	return func(yield func(AuthDevice, error) bool) {
		q := url.Values{"per_page": {strconv.Itoa(pageSize)}, "label": labels}
		if status != "" {
			q.Set("status", status)
		}
		for page := 1; ; page++ {
			q.Set("page", strconv.Itoa(page))
			list, err := Do[[]AuthDevice](ctx, c, http.MethodGet, devauth+"/devices", q, nil)
			if err != nil {
				yield(AuthDevice{}, err)
				return
			}
			for _, d := range list {
				if !yield(d, nil) {
					return
				}
			}
			if len(list) < pageSize {
				return
			}
		}
	}
}

// AuthDevice returns one device.
func (c *Client) AuthDevice(ctx context.Context, id string) (AuthDevice, error) {
	return Do[AuthDevice](ctx, c, http.MethodGet, devauth+Path("devices", id), nil, nil)
}

// SetAuthStatus accepts, rejects or resets an auth set.
func (c *Client) SetAuthStatus(ctx context.Context, device, set, status string) error {
	_, err := Do[struct{}](ctx, c, http.MethodPut, devauth+Path("devices", device, "auth", set, "status"), nil, map[string]string{"status": status})
	return err
}

// AuthDeviceEdit changes what people say of a device; what is nil stays.
type AuthDeviceEdit struct {
	Comment *string            `json:"comment,omitempty"`
	Labels  *map[string]string `json:"labels,omitempty"`
}

// DescribeAuthDevice changes the comment and labels of a device.
func (c *Client) DescribeAuthDevice(ctx context.Context, device string, e AuthDeviceEdit) (AuthDevice, error) {
	return Do[AuthDevice](ctx, c, http.MethodPatch, devauth+Path("devices", device), nil, e)
}

// DismissAuthSet removes an auth set.
func (c *Client) DismissAuthSet(ctx context.Context, device, set string) error {
	_, err := Do[struct{}](ctx, c, http.MethodDelete, devauth+Path("devices", device, "auth", set), nil, nil)
	return err
}

// DecommissionAuthDevice ends a device for ever.
func (c *Client) DecommissionAuthDevice(ctx context.Context, device string) error {
	_, err := Do[struct{}](ctx, c, http.MethodDelete, devauth+Path("devices", device), nil, nil)
	return err
}

// Preauth is a device to preauthorise.
type Preauth struct {
	Identity json.RawMessage `json:"identity_data"`
	PubKey   string          `json:"pubkey"`
	Force    bool            `json:"force,omitempty"`
	Device   string          `json:"device,omitempty"`
}

// Preauthorise adds an auth set that is accepted when the device shows up with it, and
// returns the id of the device.
func (c *Client) Preauthorise(ctx context.Context, p Preauth) (string, error) {
	b, err := json.Marshal(p)
	if err != nil {
		return "", fmt.Errorf("client: %w", err)
	}
	res, err := c.Send(ctx, Request{Method: http.MethodPost, Path: devauth + "/devices", Type: "application/json", Body: bytes.NewReader(b)})
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	return url.PathUnescape(path.Base(res.Header.Get("Location")))
}

// RevokeToken ends the tokens of the auth set that the token of this id is of.
func (c *Client) RevokeToken(ctx context.Context, jti string) error {
	_, err := Do[struct{}](ctx, c, http.MethodDelete, devauth+Path("tokens", jti), nil, nil)
	return err
}

// IssueToken returns a token of a device with an accepted auth set.
func (c *Client) IssueToken(ctx context.Context, device string) (string, error) {
	t, err := Do[struct {
		Token string `json:"token"`
	}](ctx, c, http.MethodPost, Path("api", "v1", "devices", device, "token"), nil, nil)
	return t.Token, err
}

// ImportResult is what came of one line of an import.
type ImportResult struct {
	Line   int    `json:"line"`
	Status string `json:"status"`
	Device string `json:"device,omitempty"`
	Error  string `json:"error,omitempty"`
}

// ImportAuthSets sends devices to preauthorise, as CSV (text/csv) or lines of JSON
// (application/x-ndjson), and yields what came of each.
func (c *Client) ImportAuthSets(ctx context.Context, kind string, devices io.Reader, dry bool) iter.Seq2[ImportResult, error] {
	return func(yield func(ImportResult, error) bool) {
		q := url.Values{}
		if dry {
			q.Set("dry_run", "true")
		}
		res, err := c.Send(ctx, Request{Method: http.MethodPost, Path: "/api/v1/authsets/import", Query: q, Type: kind, Body: devices, Accept: "application/x-ndjson"})
		if err != nil {
			yield(ImportResult{}, err)
			return
		}
		defer res.Body.Close()
		lines := json.NewDecoder(res.Body)
		for lines.More() {
			var r ImportResult
			err := lines.Decode(&r)
			if err != nil {
				err = fmt.Errorf("client: the import ended early: %w", err)
			}
			if !yield(r, err) || err != nil {
				return
			}
		}
	}
}

// BulkChange is one step of a change of many devices.
type BulkChange struct {
	Action     string            `json:"action"`
	Status     string            `json:"status,omitempty"`
	Attributes map[string]string `json:"attributes,omitempty"`
	Labels     map[string]string `json:"labels,omitempty"`
	Cursor     string            `json:"cursor,omitempty"`
	DryRun     bool              `json:"dry_run,omitempty"`
}

// BulkResult is what came of a step.
type BulkResult struct {
	Looked  int               `json:"looked"`
	Changed []string          `json:"changed"`
	Skipped map[string]string `json:"skipped"`
	Next    string            `json:"next"`
}

// BulkAuthSets makes one step.
func (c *Client) BulkAuthSets(ctx context.Context, b BulkChange) (BulkResult, error) {
	return Do[BulkResult](ctx, c, http.MethodPost, "/api/v1/authsets/bulk", nil, b)
}

// CountAuthDevices returns how many devices have a status, "" for any.
func (c *Client) CountAuthDevices(ctx context.Context, status string) (int, error) {
	q := url.Values{}
	if status != "" {
		q.Set("status", status)
	}
	n, err := Do[struct {
		Count int `json:"count"`
	}](ctx, c, http.MethodGet, devauth+"/devices/count", q, nil)
	return n.Count, err
}

// MTLSCA is a CA whose client certificates speak for auth sets.
type MTLSCA struct {
	ID          string            `json:"id,omitempty"`
	Name        string            `json:"name"`
	Certificate string            `json:"certificate"`
	Attributes  map[string]string `json:"attributes,omitempty"`
	CreatedAt   time.Time         `json:"created_at,omitzero"`
}

// CreateMTLSCA registers a CA.
func (c *Client) CreateMTLSCA(ctx context.Context, ca MTLSCA) (MTLSCA, error) {
	return Do[MTLSCA](ctx, c, http.MethodPost, "/api/v1/mtls-cas", nil, ca)
}

// MTLSCAs lists the registered CAs.
func (c *Client) MTLSCAs(ctx context.Context) iter.Seq2[MTLSCA, error] {
	return List[MTLSCA](ctx, c, "/api/v1/mtls-cas", nil)
}

// DeleteMTLSCA removes a CA.
func (c *Client) DeleteMTLSCA(ctx context.Context, id string) error {
	_, err := Do[struct{}](ctx, c, http.MethodDelete, Path("api", "v1", "mtls-cas", id), nil, nil)
	return err
}

// SetDenied denies a certificate of a registered CA, or lets it speak again.
func (c *Client) SetDenied(ctx context.Context, ca, serial string, deny bool) error {
	method := http.MethodDelete
	if deny {
		method = http.MethodPut
	}
	_, err := Do[struct{}](ctx, c, method, Path("api", "v1", "mtls-cas", ca, "denied", serial), nil, nil)
	return err
}

// SigningKey is a key that tokens are signed with.
type SigningKey struct {
	ID        string     `json:"id"`
	Algorithm string     `json:"algorithm"`
	State     string     `json:"state"`
	CreatedAt time.Time  `json:"created_at"`
	ActiveAt  *time.Time `json:"active_at"`
	RetiredAt *time.Time `json:"retired_at"`
}

// SigningKeys lists the keys that tokens are signed with.
func (c *Client) SigningKeys(ctx context.Context) ([]SigningKey, error) {
	p, err := Do[Page[SigningKey]](ctx, c, http.MethodGet, "/api/v1/signing-keys", nil, nil)
	return p.Items, err
}

// RotateSigningKeys has the next key sign, and makes a new next one of an algorithm, "" for the
// configured one; now does not wait until it was published long enough.
func (c *Client) RotateSigningKeys(ctx context.Context, algorithm string, now bool) ([]SigningKey, error) {
	in := map[string]any{"now": now}
	if algorithm != "" {
		in["algorithm"] = algorithm
	}
	p, err := Do[Page[SigningKey]](ctx, c, http.MethodPost, "/api/v1/signing-keys/rotate", nil, in)
	return p.Items, err
}
