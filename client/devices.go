package client

import (
	"context"
	"iter"
	"net/http"
	"net/url"
	"time"
)

// Device is the record of one device.
type Device struct {
	ID           string             `json:"id"`
	Organisation string             `json:"organisation"`
	Name         string             `json:"name"`
	State        string             `json:"state"`
	Aliases      []Alias            `json:"aliases"`
	Labels       map[string]string  `json:"labels"`
	Metadata     map[string]string  `json:"metadata"`
	Comment      string             `json:"comment"`
	Profile      string             `json:"profile,omitempty"`
	Renewal      string             `json:"renewal,omitempty"`
	Credentials  []DeviceCredential `json:"credentials"`
	Registration *Registration      `json:"registration,omitempty"` // where one device is shown
	CreatedAt    time.Time          `json:"created_at"`
	UpdatedAt    time.Time          `json:"updated_at"`
}

// Registration is what a device that is registered over LwM2M has said of itself.
type Registration struct {
	Endpoint     string    `json:"endpoint"`
	Lifetime     int64     `json:"lifetime"`
	Version      string    `json:"version"`
	Binding      string    `json:"binding"`
	Objects      string    `json:"objects"`
	Remote       string    `json:"remote"`
	Credential   string    `json:"credential"`
	CredentialID string    `json:"credential_id"`
	UpdatedAt    time.Time `json:"updated_at"`
	ExpiresAt    time.Time `json:"expires_at"`
}

// Alias is another name of a device.
type Alias struct {
	Kind  string `json:"kind"`
	Value string `json:"value"`
}

// Credential names a credential, without its secret.
type Credential struct {
	Kind      string     `json:"kind"`
	ID        string     `json:"id"`
	ExpiresAt *time.Time `json:"expires_at"`
}

// DeviceCredential is a credential as the device's record lists it.
type DeviceCredential struct {
	Credential
	State     string    `json:"state"`
	Renewal   string    `json:"renewal,omitempty"`
	CreatedAt time.Time `json:"created_at"`
}

// NewDevice is a device to be made.
type NewDevice struct {
	Name     string            `json:"name,omitempty"`
	Aliases  []Alias           `json:"aliases,omitempty"`
	Labels   map[string]string `json:"labels,omitempty"`
	Metadata map[string]string `json:"metadata,omitempty"`
	Comment  string            `json:"comment,omitempty"`
}

// DeviceEdit is a change of a device. What is nil stays; a map or list is
// replaced whole.
type DeviceEdit struct {
	Name     *string            `json:"name,omitempty"`
	Comment  *string            `json:"comment,omitempty"`
	Labels   *map[string]string `json:"labels,omitempty"`
	Metadata *map[string]string `json:"metadata,omitempty"`
	Aliases  *[]Alias           `json:"aliases,omitempty"`
}

// DeviceFilter narrows a list of devices; its zero value narrows nothing.
type DeviceFilter struct {
	State string
	Alias string
	Label string // key=value
	// Renewal is "renewal_pending" or "expiring_soon".
	Renewal string
}

// Whoami is who the server takes the caller for.
type Whoami struct {
	Device       string     `json:"device,omitempty"`
	User         string     `json:"user,omitempty"`
	Organisation string     `json:"organisation"`
	Name         string     `json:"name"`
	Role         string     `json:"role,omitempty"`
	Credential   Credential `json:"credential"`
}

const devicesPath = "/api/v1/devices"

// Whoami asks the server who the caller is.
func (c *Client) Whoami(ctx context.Context) (Whoami, error) {
	return Do[Whoami](ctx, c, http.MethodGet, "/api/v1/whoami", nil, nil)
}

// CreateDevice adds a device, before it has any credential.
func (c *Client) CreateDevice(ctx context.Context, d NewDevice) (Device, error) {
	return Do[Device](ctx, c, http.MethodPost, devicesPath, nil, d)
}

// Device returns one device, by id or alias.
func (c *Client) Device(ctx context.Context, name string) (Device, error) {
	return Do[Device](ctx, c, http.MethodGet, devicesPath+Path(name), nil, nil)
}

// Devices lists the devices of the organisation, in the order they were created.
func (c *Client) Devices(ctx context.Context, f DeviceFilter) iter.Seq2[Device, error] {
	q := url.Values{}
	for key, value := range map[string]string{"state": f.State, "alias": f.Alias, "label": f.Label, "renewal": f.Renewal} {
		if value != "" {
			q.Set(key, value)
		}
	}
	return List[Device](ctx, c, devicesPath, q)
}

// DeviceCounts says how many devices of the organisation are in each state.
func (c *Client) DeviceCounts(ctx context.Context) (map[string]int, error) {
	return Do[map[string]int](ctx, c, http.MethodGet, devicesPath+"/counts", nil, nil)
}

// EditDevice changes what people say of a device.
func (c *Client) EditDevice(ctx context.Context, name string, e DeviceEdit) (Device, error) {
	return Do[Device](ctx, c, http.MethodPatch, devicesPath+Path(name), nil, e)
}

// SuspendDevice has a device refused everywhere until it is resumed.
func (c *Client) SuspendDevice(ctx context.Context, name string) (Device, error) {
	return Do[Device](ctx, c, http.MethodPost, devicesPath+Path(name, "suspend"), nil, nil)
}

// ResumeDevice ends a suspension.
func (c *Client) ResumeDevice(ctx context.Context, name string) (Device, error) {
	return Do[Device](ctx, c, http.MethodPost, devicesPath+Path(name, "resume"), nil, nil)
}

// DeleteDevice decommissions a device.
func (c *Client) DeleteDevice(ctx context.Context, name string) error {
	_, err := Do[struct{}](ctx, c, http.MethodDelete, devicesPath+Path(name), nil, nil)
	return err
}

// RevokeCredential revokes one credential of a device, whatever its kind.
func (c *Client) RevokeCredential(ctx context.Context, device, kind, credential string) error {
	_, err := Do[struct{}](ctx, c, http.MethodDelete, devicesPath+Path(device, "credentials", kind, credential), nil, nil)
	return err
}
