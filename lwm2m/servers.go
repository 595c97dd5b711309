package lwm2m

import (
	"context"
	"crypto/x509"
	"encoding/binary"
	"fmt"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"time"

	"keystead/audit"
	"keystead/fault"
	"keystead/identity"
	"keystead/page"
	"keystead/seal"
	"keystead/store"
)

// Server is a device management server that devices are sent to.
type Server struct {
	ID            string            `cbor:"id"` // chosen by the administrator; part of the assignment's hash
	Name          string            `cbor:"name"`
	URL           string            `cbor:"url"` // coaps://host:port
	Region        string            `cbor:"region,omitempty"`
	Location      *Location         `cbor:"location,omitempty"`
	Labels        map[string]string `cbor:"labels,omitempty"`
	Organisations []string          `cbor:"orgs,omitempty"` // whose devices it takes; empty for all
	Weight        int               `cbor:"weight"`         // 0 to 1000: its share; 0 takes no new devices
	Capacity      int               `cbor:"capacity,omitempty"`
	State         ServerState       `cbor:"state"`
	Unhealthy     bool              `cbor:"unhealthy,omitempty"` // as whoever watches it says, or Health found

	ShortID            uint16   `cbor:"ssid"` // 1 to 65534, unique
	Lifetime           int64    `cbor:"lifetime"`
	MinPeriod          int64    `cbor:"pmin,omitempty"`
	MaxPeriod          int64    `cbor:"pmax,omitempty"`
	Binding            string   `cbor:"binding"`
	StoreNotifications bool     `cbor:"store"`
	Modes              []Mode   `cbor:"modes"` // credentials it takes; empty for all
	Certificate        []byte   `cbor:"cert,omitempty"`
	TrustAnchor        []byte   `cbor:"anchor,omitempty"`
	CertificateUsage   *int64   `cbor:"usage,omitempty"`
	SNI                string   `cbor:"sni,omitempty"`
	CipherSuites       []uint16 `cbor:"suites,omitempty"`
	Sink               Sink     `cbor:"sink"`
	Health             Health   `cbor:"health,omitzero"`
	// Security is more of its Security instance, by the ids of resources.
	Security map[string]string `cbor:"security,omitempty"`

	CreatedAt time.Time `cbor:"created"`
	UpdatedAt time.Time `cbor:"updated"`
}

// Location is where a server or a device is, in degrees.
type Location struct {
	Lat float64 `cbor:"lat" json:"lat"`
	Lon float64 `cbor:"lon" json:"lon"`
}

// ServerState is whether a server takes devices.
type ServerState string

// The states of a server.
const (
	ServerActive   ServerState = "active"
	ServerDraining ServerState = "draining" // takes no new devices; its own move on at their next bootstrap
	ServerDisabled ServerState = "disabled" // as if it were not there
)

// Mode is how a device proves itself to its server.
type Mode string

// The credential modes of a policy.
const (
	ModeReuse  Mode = "reuse"      // with the credential it bootstraps with
	ModePSK    Mode = "rotate-psk" // with a new pre-shared key
	ModeCert   Mode = "issue-cert" // with a new certificate, its key made here
	ModeEST    Mode = "est"        // with a certificate it enrols for, its key made by itself
	kindPSK    Mode = "psk"        // what a server takes: a pre-shared key
	kindCert   Mode = "cert"       // a certificate
	kindEST    Mode = "est"
	maxShortID      = 65534
)

// Sink is how a server learns of new credentials.
type Sink struct {
	Kind   SinkKind `cbor:"kind"`
	URL    string   `cbor:"url,omitempty"`  // of a webhook
	Secret []byte   `cbor:"hmac,omitempty"` // sealed: the key of the webhook's signature
	File   string   `cbor:"file,omitempty"` // a name in the directory for sinks
}

// SinkKind says what a sink is.
type SinkKind string

// The kinds of sinks.
const (
	SinkShared  SinkKind = "shared" // the server asks the same resolver; nothing to push
	SinkWebhook SinkKind = "webhook"
	SinkFile    SinkKind = "file"
)

var servers = store.NewTable("LwM2M server",
	store.Index[Server]{Name: "short id", Unique: true, Terms: func(s Server) []store.Term {
		return store.Terms(string(binary.BigEndian.AppendUint16(nil, s.ShortID)))
	}},
	store.Index[Server]{Name: "all", Terms: func(Server) []store.Term { return store.Terms("") }},
)

// maxServers bounds the registry: all of it is looked at for each assignment.
const maxServers = 1000

var serverID = regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,63}$`)

func (v *Server) check() error {
	var bad []fault.Field
	note := func(field, format string, args ...any) {
		bad = append(bad, fault.Field{Name: field, Message: fmt.Sprintf(format, args...)})
	}
	if !serverID.MatchString(v.ID) {
		note("id", "1 to 64 of a-z, 0-9, dot, dash and underscore, the first a letter or digit")
	}
	if len(v.Name) > 256 || len(v.Region) > 256 || len(v.Labels) > 64 || len(v.Organisations) > 1000 {
		note("name", "the name, the region, the labels or the organisations are too many or too long")
	}
	u, err := url.Parse(v.URL)
	if err != nil || u.Scheme != "coaps" && u.Scheme != "coaps+tcp" || u.Hostname() == "" || len(v.URL) > 255 {
		note("url", "must be coaps://host:port, of at most 255 bytes")
	}
	if v.Weight < 0 || v.Weight > 1000 {
		note("weight", "from 0 to 1000")
	}
	if v.Capacity < 0 {
		note("capacity", "must not be negative; 0 is no limit")
	}
	if v.ShortID == 0 || v.ShortID > maxShortID {
		note("short_id", "from 1 to %d", maxShortID)
	}
	switch v.State {
	case ServerActive, ServerDraining, ServerDisabled:
	default:
		note("state", "must be active, draining or disabled")
	}
	if v.Lifetime < 0 || v.MinPeriod < 0 || v.MaxPeriod < 0 {
		note("lifetime", "must not be negative; 0 is for ever")
	}
	if !bindings.MatchString(v.Binding) {
		note("binding", "letters of U, T, S, N, Q, M and H")
	}
	for _, m := range v.Modes {
		if m != kindPSK && m != kindCert && m != kindEST {
			note("modes", "psk, cert and est")
		}
	}
	if v.Location != nil && (v.Location.Lat < -90 || v.Location.Lat > 90 || v.Location.Lon < -180 || v.Location.Lon > 180) {
		note("location", "in degrees: lat from -90 to 90, lon from -180 to 180")
	}
	for field, der := range map[string][]byte{"certificate": v.Certificate, "trust_anchor": v.TrustAnchor} {
		if _, err := x509.ParseCertificate(der); len(der) > 0 && err != nil {
			note(field, "is not a certificate")
		}
	}
	if v.CertificateUsage != nil && (*v.CertificateUsage < 0 || *v.CertificateUsage > 3) {
		note("certificate_usage", "from 0 to 3")
	}
	if u != nil && v.takes(kindCert) && len(v.Certificate)+len(v.TrustAnchor) > 0 && v.SNI == "" {
		if _, err := netip.ParseAddr(u.Hostname()); err == nil {
			note("sni", "devices cannot match a certificate with an address; set sni, or a host name in url")
		}
	}
	if err := v.Health.check(); err != nil {
		note("health", "%v", err)
	}
	if _, err := typedResources(objectSecurity, v.Security, settableSecurity); err != nil {
		note("security_resources", "%v", err)
	}
	switch v.Sink.Kind {
	case SinkShared:
	case SinkWebhook:
		if w, err := url.Parse(v.Sink.URL); err != nil || w.Scheme != "https" && w.Scheme != "http" || w.Host == "" {
			note("sink", "a webhook needs an http or https url")
		}
	case SinkFile:
		if !serverID.MatchString(v.Sink.File) {
			note("sink", "a file sink needs a plain file name")
		}
	default:
		note("sink", "must be shared, webhook or file")
	}
	return fault.InvalidFields(bad...)
}

var bindings = regexp.MustCompile(`^[UTSNQMH]{1,6}$`)

// takes reports whether devices may prove themselves to v by kind.
func (v *Server) takes(kind Mode) bool { return len(v.Modes) == 0 || slices.Contains(v.Modes, kind) }

// known is what devices know v by: its certificate, or that of its CA.
func (v *Server) known() []byte {
	if len(v.Certificate) > 0 {
		return v.Certificate
	}
	return v.TrustAnchor
}

// takesOrg reports whether v is for devices of org.
func (v *Server) takesOrg(org string) bool {
	return len(v.Organisations) == 0 || slices.Contains(v.Organisations, org)
}

// AddServer adds a server. It is Conflict for an id or a short id in use.
// secret signs what a webhook sink is sent; nil for none.
func (s *Service) AddServer(ctx context.Context, v Server, secret seal.Secret) (Server, error) {
	v.CreatedAt = s.Now().UTC()
	v.UpdatedAt = v.CreatedAt
	if err := v.check(); err != nil {
		return v, err
	}
	s.sealSink(&v, secret)
	return v, s.DB.Update(ctx, func(tx store.Tx) error {
		all, err := s.serversIn(tx)
		if err != nil {
			return err
		}
		if len(all) >= maxServers {
			return fault.New(fault.TooLarge, "there are %d servers already", len(all))
		}
		if err := servers.Insert(tx, v.ID, v); err != nil {
			return err
		}
		return s.note(ctx, tx, "lwm2m.server.create", v.ID, nil)
	})
}

func (s *Service) sealSink(v *Server, secret seal.Secret) {
	if secret != nil {
		v.Sink.Secret = s.Box.Seal("lwm2m server/"+v.ID, secret)
	}
}

func (s *Service) note(ctx context.Context, tx store.Tx, action, target string, detail map[string]string) error {
	return s.Audit.Append(ctx, tx, audit.Entry{Action: action, Target: target, Detail: detail})
}

// SetServer replaces a server's record. A nil secret keeps the sink's.
func (s *Service) SetServer(ctx context.Context, v Server, secret seal.Secret) (Server, error) {
	if err := v.check(); err != nil {
		return v, err
	}
	s.sealSink(&v, secret)
	err := s.DB.Update(ctx, func(tx store.Tx) error {
		_, err := servers.Update(tx, v.ID, func(old *Server) error {
			if v.CreatedAt, v.UpdatedAt = old.CreatedAt, s.Now().UTC(); v.Sink.Secret == nil {
				v.Sink.Secret = old.Sink.Secret
			}
			v.keepHealth(*old)
			*old = v
			return nil
		})
		if err != nil {
			return err
		}
		return s.note(ctx, tx, "lwm2m.server.update", v.ID, map[string]string{"state": string(v.State)})
	})
	return v, err
}

// Server returns a server the actor may know of: any for a platform
// administrator, else one that takes devices of its organisation.
func (s *Service) Server(ctx context.Context, serverID string) (v Server, err error) {
	err = s.DB.View(ctx, func(tx store.Tx) error {
		if v, err = servers.Get(tx, serverID); err != nil {
			return err
		}
		if !mayKnow(ctx, v) {
			return fault.New(fault.NotFound, "no such LwM2M server")
		}
		return nil
	})
	return v, err
}

func mayKnow(ctx context.Context, v Server) bool {
	a := identity.FromContext(ctx)
	return a.May(identity.Platform) || v.takesOrg(a.Org)
}

// Servers returns a page of the servers the actor may know of.
func (s *Service) Servers(ctx context.Context, r page.Request) (p page.Page[Server], err error) {
	err = s.DB.View(ctx, func(tx store.Tx) error {
		p, err = servers.PageIf(tx, "all", store.TermOf(""), r, func(v Server) bool { return mayKnow(ctx, v) })
		return err
	})
	return p, err
}

// serversIn returns the whole registry.
func (s *Service) serversIn(tx store.Tx) ([]Server, error) {
	var all []Server
	for r := (page.Request{Limit: page.MaxLimit}); ; {
		p, err := servers.PageBy(tx, "all", store.TermOf(""), r)
		if err != nil {
			return nil, err
		}
		all = append(all, p.Items...)
		if p.Next == "" {
			return all, nil
		}
		r.After = p.Next
	}
}

// DeleteServer removes a server. It is a Conflict while devices are assigned to
// it, unless they are to be assigned anew at their next bootstrap.
func (s *Service) DeleteServer(ctx context.Context, serverID string, reassign bool) error {
	if reassign {
		if err := s.unassign(ctx, serverID); err != nil {
			return err
		}
	}
	return s.DB.Update(ctx, func(tx store.Tx) error {
		n, err := assignments.Count(tx, "server", store.TermOf(serverID))
		if err != nil {
			return err
		}
		if n > 0 {
			return fault.New(fault.Conflict, "%d devices are assigned to the server; drain it first, or delete it with reassign", n)
		}
		if _, err := servers.Delete(tx, serverID); err != nil {
			return err
		}
		return s.note(ctx, tx, "lwm2m.server.delete", serverID, nil)
	})
}

// unassign forgets the assignments to a server.
func (s *Service) unassign(ctx context.Context, serverID string) error {
	for a, err := range assignments.All(ctx, s.DB, "server", store.TermOf(serverID)) {
		if err != nil {
			return err
		}
		err := s.DB.Update(ctx, func(tx store.Tx) error {
			_, err := assignments.Update(tx, a.Device, func(a *Assignment) error {
				a.Servers = slices.DeleteFunc(slices.Clone(a.Servers), func(id string) bool { return id == serverID })
				a.Pinned = false
				return nil
			})
			return err
		})
		if err != nil && !fault.Is(err, fault.NotFound) {
			return err
		}
	}
	return nil
}
