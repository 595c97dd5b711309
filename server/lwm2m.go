package server

import (
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/labstack/echo/v4"

	"keystead/devices"
	"keystead/fault"
	"keystead/identity"
	"keystead/lwm2m"
	"keystead/outbound"
	"keystead/pki"
	"keystead/seal"
)

// buildLwM2M opens the bootstrap server.
func (s *Server) buildLwM2M(context.Context) error {
	s.LwM2M = &lwm2m.Service{
		DB: s.DB, Devices: s.Devices, PSK: s.PSK, Audit: s.Audit, Box: s.keys.Box("lwm2m"), Log: s.Log, Now: s.Now, Config: s.Config.LwM2M.Config,
		Issue: s.issueForBootstrap, Push: s.pushCredential, Probe: s.probeLwM2M, Emit: s.emitLwM2M, URI: s.bootstrapURI,
	}
	s.LwM2M.Start()
	s.Devices.Observe(s.emitIdentity)
	s.tasks = append(s.tasks, task{"lwm2m", s.LwM2M.Run})
	s.every("lwm2m", time.Minute, s.LwM2M.Sweep)
	if every := s.Config.LwM2M.HealthEvery; every > 0 {
		s.every("lwm2m health", every, s.LwM2M.CheckHealth)
	}
	return nil
}

// bootstrapPort is the port devices bootstrap at: the one of its own, if there
// is one, else the gateway's.
func (s *Server) bootstrapPort() (string, error) {
	at := s.Addresses()
	_, port, err := net.SplitHostPort(cmp.Or(at["lwm2m_udp"], at["coap_udp"]))
	return port, err
}

// bootstrapURI is where devices bootstrap, as far as the configuration says.
func (s *Server) bootstrapURI() string {
	port, err := s.bootstrapPort()
	u, err2 := url.Parse(s.Config.PublicURL)
	if err != nil || err2 != nil || u.Hostname() == "" {
		return ""
	}
	return "coaps://" + net.JoinHostPort(u.Hostname(), port)
}

// issueForBootstrap makes a key and a certificate to be written to a device.
func (s *Server) issueForBootstrap(ctx context.Context, d devices.Device) (lwm2m.Issued, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return lwm2m.Issued{}, err
	}
	cert, err := s.issueFor(ctx, pki.Request{Public: key.Public()}, d.ID, devices.CredentialPending)
	if err != nil {
		return lwm2m.Issued{}, err
	}
	parsed, err := cert.Parse()
	if err != nil {
		return lwm2m.Issued{}, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	return lwm2m.Issued{ID: string(cert.Serial), Certificate: parsed, Key: der}, err
}

// pushedBody is what a webhook or a file is told of a new credential.
type pushedBody struct {
	Server      string                  `json:"server"`
	Device      string                  `json:"device"`
	Endpoint    string                  `json:"endpoint"`
	Kind        identity.CredentialKind `json:"kind"`
	ID          string                  `json:"id"`
	Secret      string                  `json:"secret,omitempty"` // hexadecimal
	Certificate []byte                  `json:"certificate,omitempty"`
}

// sinkFiles has one writer at a time.
var sinkFiles sync.Mutex

// pushCredential tells a server's sink of a new credential.
func (s *Server) pushCredential(ctx context.Context, p lwm2m.Pushed) error {
	body, err := json.Marshal(pushedBody{
		Server: p.Server.ID, Device: p.Device, Endpoint: p.Endpoint, Kind: p.Kind, ID: p.ID,
		Secret: hex.EncodeToString(p.Secret), Certificate: p.Certificate,
	})
	if err != nil {
		return err
	}
	defer clear(body)
	if p.Server.Sink.Kind == lwm2m.SinkFile {
		return s.appendSink(p.Server.Sink.File, append(body, '\n'))
	}
	client := s.lwm2mClient()
	defer client.Close()
	answer, err := client.Do(ctx, outbound.Request{
		Method: http.MethodPost, URL: p.Server.Sink.URL, Header: map[string]string{"Content-Type": "application/json"}, Body: body, Secret: p.HMACKey,
	})
	if err != nil {
		return err
	}
	if !answer.OK() {
		return fmt.Errorf("the webhook answered %d", answer.Status)
	}
	return nil
}

// guard keeps what the server itself connects to from where it has no business.
func (s *Server) guard() outbound.Guard {
	return outbound.Guard{Allow: s.Config.Webhook.Prefixes(), Deny: s.isOwn}
}

// lwm2mClient is what asks LwM2M servers and their webhooks.
func (s *Server) lwm2mClient() *outbound.Client {
	return outbound.New(outbound.Options{Guard: s.guard(), PlainHTTP: true, Now: s.Now})
}

// appendSink adds a line to a sink's file, in a directory of their own, and has
// it on the disk before it returns.
func (s *Server) appendSink(name string, line []byte) (err error) {
	sinkFiles.Lock()
	defer sinkFiles.Unlock()
	dir := filepath.Join(s.Config.Data, "sinks")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(dir, name), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		if closing := f.Close(); err == nil {
			err = closing
		}
	}()
	if _, err := f.Write(line); err != nil {
		return err
	}
	return f.Sync()
}

func (s *Server) lwm2mRoutes() []route {
	const servers, policies, sessions, device = "/api/v1/lwm2m/servers", "/api/v1/lwm2m/policies", "/api/v1/lwm2m/sessions", "/api/v1/lwm2m/devices/:id"
	return []route{
		{method: http.MethodGet, path: servers, need: identity.BootstrapRead, handle: s.listLwM2MServers},
		{method: http.MethodPost, path: servers, need: identity.Platform, handle: s.addLwM2MServer},
		{method: http.MethodGet, path: servers + "/:server", need: identity.BootstrapRead, handle: s.showLwM2MServer},
		{method: http.MethodPut, path: servers + "/:server", need: identity.Platform, handle: s.setLwM2MServer},
		{method: http.MethodDelete, path: servers + "/:server", need: identity.Platform, handle: s.deleteLwM2MServer},
		{method: http.MethodPost, path: servers + "/:server/drain", need: identity.Platform, handle: s.moveLwM2MServer(lwm2m.ServerDraining)},
		{method: http.MethodPost, path: servers + "/:server/activate", need: identity.Platform, handle: s.moveLwM2MServer(lwm2m.ServerActive)},
		{method: http.MethodGet, path: policies, need: identity.BootstrapRead, handle: s.listLwM2MPolicies},
		{method: http.MethodPost, path: policies, need: identity.BootstrapWrite, handle: s.addLwM2MPolicy},
		{method: http.MethodDelete, path: policies + "/:policy", need: identity.BootstrapWrite, handle: s.deleteLwM2MPolicy},
		{method: http.MethodPost, path: policies + "/evaluate", need: identity.BootstrapRead, handle: s.evaluateLwM2MPolicies},
		{method: http.MethodGet, path: device + "/plan", need: identity.BootstrapRead, handle: s.lwm2mPlan},
		{method: http.MethodGet, path: device + "/assignment", need: identity.BootstrapRead, handle: s.lwm2mAssignment},
		{method: http.MethodPut, path: device + "/assignment", need: identity.BootstrapWrite, handle: s.pinLwM2MDevice},
		{method: http.MethodDelete, path: device + "/assignment", need: identity.BootstrapWrite, handle: s.unpinLwM2MDevice},
		{method: http.MethodGet, path: device + "/bootstrap", need: identity.BootstrapRead, handle: s.lwm2mOverride},
		{method: http.MethodPut, path: device + "/bootstrap", need: identity.BootstrapWrite, handle: s.setLwM2MOverride},
		{method: http.MethodDelete, path: device + "/bootstrap", need: identity.BootstrapWrite, handle: s.deleteLwM2MOverride},
		{method: http.MethodGet, path: device + "/registration", need: identity.DevicesRead, handle: s.lwm2mRegistration},
		{method: http.MethodGet, path: sessions, need: identity.BootstrapRead, handle: s.listLwM2MSessions},
		{method: http.MethodGet, path: sessions + "/live", need: identity.BootstrapRead, handle: s.tailLwM2MSessions, stream: true},
		{method: http.MethodGet, path: sessions + "/:session", need: identity.BootstrapRead, handle: s.showLwM2MSession},
	}
}

type lwm2mServerView struct {
	ID                 string            `json:"id"`
	Name               string            `json:"name"`
	URL                string            `json:"url"`
	Region             string            `json:"region"`
	Location           *lwm2m.Location   `json:"location"`
	Labels             map[string]string `json:"labels"`
	Organisations      []string          `json:"organisations"`
	Weight             *int              `json:"weight"`
	Capacity           int               `json:"capacity"`
	State              lwm2m.ServerState `json:"state"`
	Healthy            *bool             `json:"healthy"`
	ShortID            uint16            `json:"short_id"`
	Lifetime           *int64            `json:"lifetime"`
	MinPeriod          int64             `json:"min_period"`
	MaxPeriod          int64             `json:"max_period"`
	Binding            string            `json:"binding"`
	StoreNotifications bool              `json:"store_notifications"`
	Modes              []lwm2m.Mode      `json:"modes"`
	Certificate        []byte            `json:"certificate"`
	TrustAnchor        []byte            `json:"trust_anchor"`
	CertificateUsage   *int64            `json:"certificate_usage"`
	SNI                string            `json:"sni"`
	CipherSuites       []uint16          `json:"cipher_suites"`
	Sink               lwm2mSinkView     `json:"sink"`
	Health             lwm2mHealthView   `json:"health"`
	Security           map[string]string `json:"security_resources"`
}

// lwm2mHealthView has what was found on the way out only.
type lwm2mHealthView struct {
	Kind   lwm2m.HealthKind `json:"kind"`
	URL    string           `json:"url,omitempty"`
	Detail string           `json:"detail,omitempty"`
	Since  *time.Time       `json:"since,omitempty"`
}

func viewHealth(h lwm2m.Health) lwm2mHealthView {
	v := lwm2mHealthView{Kind: h.Kind, URL: h.URL, Detail: h.Detail}
	if !h.Since.IsZero() {
		v.Since = &h.Since
	}
	return v
}

// lwm2mSinkView has the webhook's secret on the way in only.
type lwm2mSinkView struct {
	Kind   lwm2m.SinkKind `json:"kind"`
	URL    string         `json:"url,omitempty"`
	File   string         `json:"file,omitempty"`
	Secret string         `json:"secret,omitempty"`
}

func viewLwM2MServer(v lwm2m.Server) lwm2mServerView {
	healthy := !v.Unhealthy
	return lwm2mServerView{
		ID: v.ID, Name: v.Name, URL: v.URL, Region: v.Region, Location: v.Location, Labels: orEmptyMap(v.Labels), Organisations: orEmpty(v.Organisations),
		Weight: &v.Weight, Capacity: v.Capacity, State: v.State, Healthy: &healthy, ShortID: v.ShortID, Lifetime: &v.Lifetime, MinPeriod: v.MinPeriod,
		MaxPeriod: v.MaxPeriod, Binding: v.Binding, StoreNotifications: v.StoreNotifications, Modes: orEmpty(v.Modes), Certificate: v.Certificate,
		TrustAnchor: v.TrustAnchor, CertificateUsage: v.CertificateUsage, SNI: v.SNI, CipherSuites: orEmpty(v.CipherSuites),
		Sink:   lwm2mSinkView{Kind: v.Sink.Kind, URL: v.Sink.URL, File: v.Sink.File},
		Health: viewHealth(v.Health), Security: orEmptyMap(v.Security),
	}
}

// server returns the record and the sink's secret a body stands for, with what
// it leaves open filled in.
func (v lwm2mServerView) server() (lwm2m.Server, seal.Secret) {
	out := lwm2m.Server{
		ID: v.ID, Name: v.Name, URL: v.URL, Region: v.Region, Location: v.Location, Labels: v.Labels, Organisations: v.Organisations,
		Weight: 1, Capacity: v.Capacity, State: v.State, ShortID: v.ShortID, Lifetime: 86400, MinPeriod: v.MinPeriod, MaxPeriod: v.MaxPeriod,
		Binding: v.Binding, StoreNotifications: v.StoreNotifications, Modes: v.Modes, Certificate: v.Certificate, TrustAnchor: v.TrustAnchor,
		CertificateUsage: v.CertificateUsage, SNI: v.SNI, CipherSuites: v.CipherSuites,
		Sink:   lwm2m.Sink{Kind: v.Sink.Kind, URL: v.Sink.URL, File: v.Sink.File},
		Health: lwm2m.Health{Kind: v.Health.Kind, URL: v.Health.URL}, Security: v.Security,
	}
	if v.Weight != nil {
		out.Weight = *v.Weight
	}
	if v.Lifetime != nil {
		out.Lifetime = *v.Lifetime
	}
	if v.Healthy != nil {
		out.Unhealthy = !*v.Healthy
	}
	if out.State == "" {
		out.State = lwm2m.ServerActive
	}
	if out.Binding == "" {
		out.Binding = "U"
	}
	if out.Sink.Kind == "" {
		out.Sink.Kind = lwm2m.SinkShared
	}
	if v.Sink.Secret == "" {
		return out, nil
	}
	return out, seal.Secret(v.Sink.Secret)
}

func (s *Server) listLwM2MServers(c echo.Context) error {
	r, err := pageRequest(c)
	if err != nil {
		return err
	}
	p, err := s.LwM2M.Servers(c.Request().Context(), r)
	if err != nil {
		return err
	}
	return writePage(c, p, viewLwM2MServer)
}

func (s *Server) addLwM2MServer(c echo.Context) error {
	var in lwm2mServerView
	if err := bind(c, &in); err != nil {
		return err
	}
	v, secret := in.server()
	v, err := s.LwM2M.AddServer(c.Request().Context(), v, secret)
	if err != nil {
		return err
	}
	return c.JSON(http.StatusCreated, viewLwM2MServer(v))
}

func (s *Server) showLwM2MServer(c echo.Context) error {
	v, err := s.LwM2M.Server(c.Request().Context(), c.Param("server"))
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, viewLwM2MServer(v))
}

func (s *Server) setLwM2MServer(c echo.Context) error {
	var in lwm2mServerView
	if err := bind(c, &in); err != nil {
		return err
	}
	in.ID = c.Param("server")
	v, secret := in.server()
	v, err := s.LwM2M.SetServer(c.Request().Context(), v, secret)
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, viewLwM2MServer(v))
}

// moveLwM2MServer puts a server in a state and leaves the rest as it is.
func (s *Server) moveLwM2MServer(to lwm2m.ServerState) echo.HandlerFunc {
	return func(c echo.Context) error {
		v, err := s.LwM2M.Server(c.Request().Context(), c.Param("server"))
		if err != nil {
			return err
		}
		v.State = to
		if v, err = s.LwM2M.SetServer(c.Request().Context(), v, nil); err != nil {
			return err
		}
		return c.JSON(http.StatusOK, viewLwM2MServer(v))
	}
}

// deleteLwM2MServer removes a server; with ?reassign=true, one that has devices too.
func (s *Server) deleteLwM2MServer(c echo.Context) error {
	if err := s.LwM2M.DeleteServer(c.Request().Context(), c.Param("server"), c.QueryParam("reassign") == "true"); err != nil {
		return err
	}
	return c.NoContent(http.StatusNoContent)
}

func (s *Server) listLwM2MPolicies(c echo.Context) error {
	list, err := s.LwM2M.Policies(c.Request().Context())
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, map[string]any{"items": orEmpty(list)})
}

// lwm2mPolicyInput is a policy as it is made. Global ones are the platform's to make.
type lwm2mPolicyInput struct {
	lwm2m.Policy
	Global bool `json:"global"`
}

func (s *Server) addLwM2MPolicy(c echo.Context) error {
	var in lwm2mPolicyInput
	if err := bind(c, &in); err != nil {
		return err
	}
	a := identity.FromContext(c.Request().Context())
	if in.Org = a.Org; in.Global {
		if !a.May(identity.Platform) {
			return fault.New(fault.Forbidden, "only a platform administrator makes policies for every organisation")
		}
		in.Org = ""
	}
	p, err := s.LwM2M.AddPolicy(c.Request().Context(), in.Policy)
	if err != nil {
		return err
	}
	return c.JSON(http.StatusCreated, p)
}

func (s *Server) deleteLwM2MPolicy(c echo.Context) error {
	if err := s.LwM2M.DeletePolicy(c.Request().Context(), c.Param("policy")); err != nil {
		return err
	}
	return c.NoContent(http.StatusNoContent)
}

type lwm2mDecisionView struct {
	Policy   lwm2m.Policy       `json:"policy"`
	Region   string             `json:"region"`
	Servers  []string           `json:"servers"`
	Kept     bool               `json:"kept"`
	Override bool               `json:"override"`
	Reasons  []lwm2m.Reason     `json:"reasons"`
	Accounts []lwm2mAccountView `json:"accounts,omitempty"`
}

// lwm2mAccountView is one account of a plan. Secrets are made in the bootstrap
// itself: there is none to show.
type lwm2mAccountView struct {
	Server     string     `json:"server"`
	URL        string     `json:"url"`
	ShortID    uint16     `json:"short_id"`
	Mode       lwm2m.Mode `json:"mode"`
	Credential lwm2m.Mode `json:"credential"`
	Secret     string     `json:"secret"`
}

func viewDecision(d lwm2m.Decision) lwm2mDecisionView {
	v := lwm2mDecisionView{Policy: d.Policy, Region: d.Region, Kept: d.Kept, Override: d.Special, Reasons: orEmpty(d.Reasons), Servers: make([]string, len(d.Servers))}
	for i, server := range d.Servers {
		v.Servers[i] = server.ID
	}
	return v
}

type lwm2mSubjectInput struct {
	Device     string                  `json:"device"`
	Labels     map[string]string       `json:"labels"`
	Endpoint   string                  `json:"endpoint"`
	Source     string                  `json:"source"`
	Credential identity.CredentialKind `json:"credential"`
}

// evaluateLwM2MPolicies says where a device would go, one that is there or one
// that is only described.
func (s *Server) evaluateLwM2MPolicies(c echo.Context) error {
	var in lwm2mSubjectInput
	if err := bind(c, &in); err != nil {
		return err
	}
	ctx := c.Request().Context()
	u := lwm2m.Subject{Device: devices.Device{Org: identity.OrgOf(ctx), Labels: in.Labels}, ClientID: in.Endpoint, Endpoint: in.Endpoint, Credential: identity.PSK}
	if in.Device != "" {
		var err error
		if u, err = s.LwM2M.SubjectOf(ctx, in.Device); err != nil {
			return err
		}
	}
	if in.Credential != "" {
		u.Credential = in.Credential
	}
	if in.Source != "" {
		addr, err := netip.ParseAddr(in.Source)
		if err != nil {
			return fault.InvalidFields(fault.Field{Name: "source", Message: "is not an address"})
		}
		u.Source = addr
	}
	d, err := s.LwM2M.Evaluate(ctx, u)
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, viewDecision(d))
}

func (s *Server) lwm2mPlan(c echo.Context) error {
	ctx := c.Request().Context()
	u, err := s.LwM2M.SubjectOf(ctx, c.Param("id"))
	if err != nil {
		return err
	}
	d, accounts, err := s.LwM2M.Plan(ctx, u)
	if err != nil {
		return err
	}
	v := viewDecision(d)
	for _, a := range accounts {
		v.Accounts = append(v.Accounts, lwm2mAccountView{Server: a.Server.ID, URL: a.Server.URL, ShortID: a.Server.ShortID, Mode: a.Mode, Credential: a.Credential, Secret: "[secret]"})
	}
	return c.JSON(http.StatusOK, v)
}

type lwm2mAssignmentView struct {
	Device    string         `json:"device"`
	Servers   []string       `json:"servers"`
	Policy    string         `json:"policy"`
	Pinned    bool           `json:"pinned"`
	Handed    []lwm2m.Handed `json:"credentials"`
	UpdatedAt time.Time      `json:"updated_at"`
}

func viewAssignment(a lwm2m.Assignment) lwm2mAssignmentView {
	return lwm2mAssignmentView{Device: a.Device, Servers: orEmpty(a.Servers), Policy: a.Policy, Pinned: a.Pinned, Handed: orEmpty(a.Handed), UpdatedAt: a.UpdatedAt}
}

func (s *Server) lwm2mAssignment(c echo.Context) error {
	a, err := s.LwM2M.Assignment(c.Request().Context(), c.Param("id"))
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, viewAssignment(a))
}

func (s *Server) pinLwM2MDevice(c echo.Context) error {
	var in struct {
		Servers []string `json:"servers"`
	}
	if err := bind(c, &in); err != nil {
		return err
	}
	a, err := s.LwM2M.Pin(c.Request().Context(), c.Param("id"), in.Servers)
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, viewAssignment(a))
}

func (s *Server) unpinLwM2MDevice(c echo.Context) error {
	if err := s.LwM2M.Unpin(c.Request().Context(), c.Param("id")); err != nil {
		return err
	}
	return c.NoContent(http.StatusNoContent)
}

func (s *Server) lwm2mOverride(c echo.Context) error {
	o, err := s.LwM2M.Override(c.Request().Context(), c.Param("id"))
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, o)
}

// setLwM2MOverride replaces what holds for one device in place of its policy.
func (s *Server) setLwM2MOverride(c echo.Context) error {
	var in lwm2m.Override
	if err := bind(c, &in); err != nil {
		return err
	}
	o, err := s.LwM2M.SetOverride(c.Request().Context(), c.Param("id"), in)
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, o)
}

func (s *Server) deleteLwM2MOverride(c echo.Context) error {
	if err := s.LwM2M.DeleteOverride(c.Request().Context(), c.Param("id")); err != nil {
		return err
	}
	return c.NoContent(http.StatusNoContent)
}

func (s *Server) lwm2mRegistration(c echo.Context) error {
	v, err := s.LwM2M.Registration(c.Request().Context(), c.Param("id"))
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, v)
}

func viewBootstrap(v lwm2m.Session) lwm2m.Session {
	v.Servers, v.Steps = orEmpty(v.Servers), orEmpty(v.Steps)
	return v
}

func (s *Server) listLwM2MSessions(c echo.Context) error {
	r, err := pageRequest(c)
	if err != nil {
		return err
	}
	device, err := s.deviceParam(c)
	if err != nil {
		return err
	}
	p, err := s.LwM2M.Sessions(c.Request().Context(), device, r)
	if err != nil {
		return err
	}
	return writePage(c, p, viewBootstrap)
}

func (s *Server) showLwM2MSession(c echo.Context) error {
	v, err := s.LwM2M.Session(c.Request().Context(), c.Param("session"))
	if err != nil {
		return err
	}
	return c.JSON(http.StatusOK, viewBootstrap(v))
}

// tailLwM2MSessions sends what happens in bootstraps, as it happens, as
// server-sent events.
func (s *Server) tailLwM2MSessions(c echo.Context) error {
	ctx := c.Request().Context()
	events, stop, err := s.LwM2M.Tail(ctx)
	if err != nil {
		return err
	}
	defer stop()
	w := c.Response()
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(http.StatusOK)
	revoked := func() bool {
		return s.prove(c) != nil || allow(identity.FromContext(c.Request().Context()), identity.BootstrapRead) != nil
	}
	beat := time.NewTicker(5 * time.Second)
	defer beat.Stop()
	for {
		w.Flush()
		select {
		case <-ctx.Done():
			return nil
		case <-beat.C:
			if revoked() {
				return nil // what it was opened with is revoked
			}
			if _, err := fmt.Fprint(w, ":\n\n"); err != nil {
				return nil // the one who watched has gone
			}
		case e, open := <-events:
			if !open {
				return nil // the server stops
			}
			if revoked() {
				return nil // as above
			}
			e.Session = viewBootstrap(e.Session)
			body, err := json.Marshal(e)
			if err != nil {
				return err
			}
			if _, err := fmt.Fprintf(w, "event: %s\ndata: %s\n\n", e.What, body); err != nil {
				return nil // as above
			}
		}
	}
}
