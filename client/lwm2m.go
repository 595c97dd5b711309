package client

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
	"strings"
	"time"
)

// LwM2MServer is a device management server that devices are sent to. Fields
// left out of a new one have the server's defaults.
type LwM2MServer struct {
	ID            string            `json:"id"`
	Name          string            `json:"name"`
	URL           string            `json:"url"`
	ShortID       int               `json:"short_id"`
	Region        string            `json:"region,omitempty"`
	Labels        map[string]string `json:"labels,omitempty"`
	Organisations []string          `json:"organisations,omitempty"`
	Weight        *int              `json:"weight,omitempty"`
	Capacity      int               `json:"capacity,omitempty"`
	State         string            `json:"state,omitempty"`
	Healthy       *bool             `json:"healthy,omitempty"`
	Lifetime      *int64            `json:"lifetime,omitempty"`
	Binding       string            `json:"binding,omitempty"`
	Modes         []string          `json:"modes,omitempty"`
	Certificate   []byte            `json:"certificate,omitempty"`
	TrustAnchor   []byte            `json:"trust_anchor,omitempty"`
	SNI           string            `json:"sni,omitempty"`
	Sink          LwM2MSink         `json:"sink,omitzero"`
	Health        LwM2MHealth       `json:"health,omitzero"`

	CertificateUsage *int64 `json:"certificate_usage,omitempty"`
}

// LwM2MSink is how a server learns of new credentials.
type LwM2MSink struct {
	Kind   string `json:"kind,omitempty"` // shared, webhook or file
	URL    string `json:"url,omitempty"`
	File   string `json:"file,omitempty"`
	Secret string `json:"secret,omitempty"` // never in an answer
}

// LwM2MHealth is how a server is watched, and what was found.
type LwM2MHealth struct {
	Kind   string     `json:"kind,omitempty"` // ping or http; "" for not at all
	URL    string     `json:"url,omitempty"`
	Detail string     `json:"detail,omitempty"` // why it is not healthy
	Since  *time.Time `json:"since,omitempty"`
}

// LwM2MPolicy says which devices go to which servers.
type LwM2MPolicy struct {
	ID           string         `json:"id,omitempty"`
	Organisation string         `json:"organisation,omitempty"`
	Global       bool           `json:"global,omitempty"`
	Name         string         `json:"name"`
	Order        int            `json:"order"`
	Match        map[string]any `json:"match,omitempty"`
	Select       map[string]any `json:"select,omitempty"`
	Credential   string         `json:"credential,omitempty"`

	BootstrapAccount string            `json:"bootstrap_account,omitempty"` // keep or rotate
	ServerResources  map[string]string `json:"server_resources,omitempty"`
}

// LwM2MDecision is where a device goes, and why.
type LwM2MDecision struct {
	Policy  LwM2MPolicy `json:"policy"`
	Region  string      `json:"region"`
	Servers []string    `json:"servers"`
	Kept    bool        `json:"kept"`
	Special bool        `json:"override"` // the policy is as the device's override has it
	Reasons []struct {
		Server string `json:"server"`
		Chosen bool   `json:"chosen"`
		Reason string `json:"reason"`
	} `json:"reasons"`
}

// LwM2MOverride is what holds for one device in place of its policy. What is
// left out is as the policy has it.
type LwM2MOverride struct {
	Device           string            `json:"device,omitempty"`
	Region           string            `json:"region,omitempty"`
	Credential       string            `json:"credential,omitempty"`
	GraceHours       int               `json:"grace_hours,omitempty"`
	BootstrapAccount string            `json:"bootstrap_account,omitempty"` // keep or rotate
	Deletes          []string          `json:"deletes,omitzero"`            // empty and not nil deletes nothing
	Format           *int              `json:"format,omitempty"`
	SkipDiscover     *bool             `json:"skip_discover,omitempty"`
	NeedDiscover     *bool             `json:"need_discover,omitempty"`
	Lifetime         *int64            `json:"lifetime,omitempty"`
	Binding          string            `json:"binding,omitempty"`
	BootstrapAgain   *bool             `json:"bootstrap_again,omitempty"`
	ServerResources  map[string]string `json:"server_resources,omitempty"`
	Access           json.RawMessage   `json:"access,omitempty"`
	UpdatedAt        *time.Time        `json:"updated_at,omitempty"`
}

// Bootstrap is the record of one bootstrap.
type Bootstrap struct {
	ID        string          `json:"id"`
	Device    string          `json:"device"`
	Endpoint  string          `json:"endpoint"`
	Remote    string          `json:"remote"`
	Version   string          `json:"version,omitempty"`
	Servers   []string        `json:"servers"`
	Steps     []BootstrapStep `json:"steps"`
	Outcome   string          `json:"outcome"`
	Detail    string          `json:"detail,omitempty"`
	StartedAt time.Time       `json:"started_at"`
	EndedAt   time.Time       `json:"ended_at"`
}

// BootstrapStep is one exchange with the device.
type BootstrapStep struct {
	Method string `json:"method"`
	Path   string `json:"path"`
	Format *int   `json:"format,omitempty"`
	Bytes  int    `json:"bytes,omitempty"`
	Code   string `json:"code,omitempty"`
	Error  string `json:"error,omitempty"`
	Millis int64  `json:"ms"`
}

// BootstrapEvent is something that happened in a bootstrap.
type BootstrapEvent struct {
	What    string         `json:"what"` // started, step or ended
	Session Bootstrap      `json:"session"`
	Step    *BootstrapStep `json:"step,omitempty"`
}

// LwM2MServers lists the servers.
func (c *Client) LwM2MServers(ctx context.Context) iter.Seq2[LwM2MServer, error] {
	return List[LwM2MServer](ctx, c, "/api/v1/lwm2m/servers", nil)
}

// AddLwM2MServer adds a server.
func (c *Client) AddLwM2MServer(ctx context.Context, v LwM2MServer) (LwM2MServer, error) {
	return Do[LwM2MServer](ctx, c, http.MethodPost, "/api/v1/lwm2m/servers", nil, v)
}

// MoveLwM2MServer has a server drained, or take devices again ("drain", "activate").
func (c *Client) MoveLwM2MServer(ctx context.Context, id, how string) (LwM2MServer, error) {
	return Do[LwM2MServer](ctx, c, http.MethodPost, Path("api", "v1", "lwm2m", "servers", id, how), nil, nil)
}

// DeleteLwM2MServer removes a server; with reassign, even one that has devices.
func (c *Client) DeleteLwM2MServer(ctx context.Context, id string, reassign bool) error {
	q := url.Values{}
	if reassign {
		q.Set("reassign", "true")
	}
	_, err := Do[struct{}](ctx, c, http.MethodDelete, Path("api", "v1", "lwm2m", "servers", id), q, nil)
	return err
}

// LwM2MPolicies lists the policies that count for the organisation, in their order.
func (c *Client) LwM2MPolicies(ctx context.Context) ([]LwM2MPolicy, error) {
	p, err := Do[Page[LwM2MPolicy]](ctx, c, http.MethodGet, "/api/v1/lwm2m/policies", nil, nil)
	return p.Items, err
}

// AddLwM2MPolicy adds a policy.
func (c *Client) AddLwM2MPolicy(ctx context.Context, p LwM2MPolicy) (LwM2MPolicy, error) {
	return Do[LwM2MPolicy](ctx, c, http.MethodPost, "/api/v1/lwm2m/policies", nil, p)
}

// DeleteLwM2MPolicy removes a policy.
func (c *Client) DeleteLwM2MPolicy(ctx context.Context, id string) error {
	_, err := Do[struct{}](ctx, c, http.MethodDelete, Path("api", "v1", "lwm2m", "policies", id), nil, nil)
	return err
}

// EvaluateLwM2M says where a device, by id or alias, would be sent.
func (c *Client) EvaluateLwM2M(ctx context.Context, device string) (LwM2MDecision, error) {
	return Do[LwM2MDecision](ctx, c, http.MethodPost, "/api/v1/lwm2m/policies/evaluate", nil, map[string]string{"device": device})
}

// PinLwM2M sends a device to these servers; none has it assigned by policy again.
func (c *Client) PinLwM2M(ctx context.Context, device string, servers []string) error {
	path := Path("api", "v1", "lwm2m", "devices", device, "assignment")
	if len(servers) == 0 {
		_, err := Do[struct{}](ctx, c, http.MethodDelete, path, nil, nil)
		return err
	}
	_, err := Do[struct{}](ctx, c, http.MethodPut, path, nil, map[string][]string{"servers": servers})
	return err
}

// LwM2MOverride returns what holds for a device, by id or alias, in place of its policy.
func (c *Client) LwM2MOverride(ctx context.Context, device string) (LwM2MOverride, error) {
	return Do[LwM2MOverride](ctx, c, http.MethodGet, Path("api", "v1", "lwm2m", "devices", device, "bootstrap"), nil, nil)
}

// SetLwM2MOverride replaces what holds for a device in place of its policy.
func (c *Client) SetLwM2MOverride(ctx context.Context, device string, o LwM2MOverride) (LwM2MOverride, error) {
	return Do[LwM2MOverride](ctx, c, http.MethodPut, Path("api", "v1", "lwm2m", "devices", device, "bootstrap"), nil, o)
}

// DeleteLwM2MOverride has the policy count for a device again.
func (c *Client) DeleteLwM2MOverride(ctx context.Context, device string) error {
	_, err := Do[struct{}](ctx, c, http.MethodDelete, Path("api", "v1", "lwm2m", "devices", device, "bootstrap"), nil, nil)
	return err
}

// Bootstraps lists the bootstraps of the organisation, oldest first; of one
// device if device is not empty.
func (c *Client) Bootstraps(ctx context.Context, device string) iter.Seq2[Bootstrap, error] {
	q := url.Values{}
	if device != "" {
		q.Set("device", device)
	}
	return List[Bootstrap](ctx, c, "/api/v1/lwm2m/sessions", q)
}

// Bootstrap returns one bootstrap with its steps.
func (c *Client) Bootstrap(ctx context.Context, id string) (Bootstrap, error) {
	return Do[Bootstrap](ctx, c, http.MethodGet, Path("api", "v1", "lwm2m", "sessions", id), nil, nil)
}

// TailBootstraps goes through what happens in bootstraps, as it happens, until
// ctx is done or the server stops.
func (c *Client) TailBootstraps(ctx context.Context) iter.Seq2[BootstrapEvent, error] {
	return func(yield func(BootstrapEvent, error) bool) {
		res, err := c.Send(ctx, Request{Method: http.MethodGet, Path: "/api/v1/lwm2m/sessions/live", Accept: "text/event-stream"})
		if err != nil {
			yield(BootstrapEvent{}, err)
			return
		}
		defer res.Body.Close()
		lines := bufio.NewScanner(io.LimitReader(res.Body, 1<<40))
		lines.Buffer(nil, 1<<20)
		for lines.Scan() {
			data, ok := strings.CutPrefix(lines.Text(), "data: ")
			if !ok {
				continue
			}
			var e BootstrapEvent
			if err := json.Unmarshal([]byte(data), &e); err != nil {
				yield(e, fmt.Errorf("client: event: %w", err))
				return
			}
			if !yield(e, nil) {
				return
			}
		}
		if err := lines.Err(); err != nil && ctx.Err() == nil {
			yield(BootstrapEvent{}, fmt.Errorf("client: %w", err))
		}
	}
}
