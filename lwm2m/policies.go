package lwm2m

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"path"
	"slices"
	"time"

	"keystead/coap"
	"keystead/devices"
	"keystead/fault"
	"keystead/id"
	"keystead/identity"
	"keystead/page"
	"keystead/store"
)

// Policy says which devices go to which servers, and with what credential. The
// first of an organisation's that matches a device counts, in their order; then
// those of the platform, which are of no organisation; then the default.
type Policy struct {
	ID         string `cbor:"id" json:"id"`
	Org        string `cbor:"org" json:"organisation"` // "" for every organisation's devices
	Name       string `cbor:"name" json:"name"`
	Order      int    `cbor:"order" json:"order"` // lower ones are asked first
	Match      Match  `cbor:"match" json:"match"`
	Select     Select `cbor:"select" json:"select"`
	Mode       Mode   `cbor:"mode" json:"credential"`
	GraceHours int    `cbor:"grace,omitempty" json:"grace_hours"` // how long a credential that was replaced stays good

	Deletes      []string     `cbor:"deletes" json:"deletes"`                 // what is deleted before anything is written
	Format       *coap.Format `cbor:"format,omitempty" json:"format"`         // in place of what the client prefers
	SkipDiscover bool         `cbor:"blind,omitempty" json:"skip_discover"`   // do not ask what the client has
	NeedDiscover bool         `cbor:"autoid,omitempty" json:"need_discover"`  // fail if the client does not say what it has
	Lifetime     *int64       `cbor:"lifetime,omitempty" json:"lifetime"`     // in place of the server's
	Binding      string       `cbor:"binding,omitempty" json:"binding"`       // in place of the server's
	Retry        bool         `cbor:"retry,omitempty" json:"bootstrap_again"` // a device that cannot register bootstraps again (/1/x/16)

	// Account says what becomes of the account a device bootstraps with.
	Account BootstrapAccount `cbor:"account,omitempty" json:"bootstrap_account"`
	// Resources is more of the Server instances, by the ids of resources.
	Resources map[string]string `cbor:"resources,omitempty" json:"server_resources"`
	Access    []Access          `cbor:"access,omitempty" json:"access"`

	CreatedAt time.Time `cbor:"created" json:"created_at"`
}

// BootstrapAccount is what becomes of the account a device bootstraps with.
type BootstrapAccount string

// What becomes of it.
const (
	KeepAccount   BootstrapAccount = "keep"
	RotateAccount BootstrapAccount = "rotate" // a new key is written to it
)

// Access is an instance of the Access Control object: what the servers a device
// is given may do with one of its instances.
type Access struct {
	Object   uint16           `cbor:"object" json:"object"`
	Instance uint16           `cbor:"instance" json:"instance"` // 65535 for who may create instances
	Owner    string           `cbor:"owner,omitempty" json:"owner"`
	Rights   map[string]int64 `cbor:"rights" json:"rights"` // by the ids of servers, and "default"; R 1, W 2, E 4, D 8, C 16
}

// defaultRights is who all the other servers are.
const defaultRights = "default"

// Match says which devices a policy is for: those that fit all that is given.
type Match struct {
	Devices    []string                `cbor:"devices,omitempty" json:"devices,omitempty"` // ids or aliases
	Labels     map[string]string       `cbor:"labels,omitempty" json:"labels,omitempty"`
	Endpoint   string                  `cbor:"endpoint,omitempty" json:"endpoint,omitempty"` // a pattern: "sensor-*"
	Sources    []string                `cbor:"sources,omitempty" json:"sources,omitempty"`   // networks
	Credential identity.CredentialKind `cbor:"cred,omitempty" json:"credential,omitempty"`
	Region     string                  `cbor:"region,omitempty" json:"region,omitempty"`
}

// Select says which servers come into question and how one is chosen.
type Select struct {
	Servers  []string          `cbor:"servers,omitempty" json:"servers,omitempty"` // ids, in the order of failover
	Labels   map[string]string `cbor:"labels,omitempty" json:"labels,omitempty"`
	Regions  []string          `cbor:"regions,omitempty" json:"regions,omitempty"`
	Nearby   bool              `cbor:"nearby,omitempty" json:"nearby,omitempty"` // only servers of the device's region
	Strategy Strategy          `cbor:"strategy" json:"strategy"`
	Count    int               `cbor:"count" json:"count"`           // servers for a device, 1 to 3
	Fresh    bool              `cbor:"fresh,omitempty" json:"fresh"` // choose again at each bootstrap
}

// Strategy is how one of several servers is chosen.
type Strategy string

// The strategies.
const (
	StickyWeighted Strategy = "sticky-weighted"
	Nearest        Strategy = "nearest"
	Failover       Strategy = "failover"
	RoundRobin     Strategy = "round-robin"
	LeastAssigned  Strategy = "least-assigned"
)

// defaultPolicy is what counts where no policy matches.
var defaultPolicy = Policy{
	ID: "default", Name: "default", Mode: ModeReuse, GraceHours: 24, Deletes: []string{"/0", "/1"}, Account: KeepAccount,
	Select: Select{Strategy: StickyWeighted, Count: 1},
}

var policies = store.NewTable("LwM2M policy",
	store.Index[Policy]{Name: "order", Terms: func(p Policy) []store.Term {
		return store.Terms(p.Org, fmt.Sprintf("%08d", p.Order), p.ID)
	}},
)

// maxPolicies bounds an organisation's list: it is walked for each bootstrap.
const maxPolicies = 100

// Defaults fills in what a policy leaves open.
func (p *Policy) Defaults() {
	if p.Select.Strategy == "" {
		p.Select.Strategy = StickyWeighted
	}
	if p.Select.Count == 0 {
		p.Select.Count = 1
	}
	if p.Mode == "" {
		p.Mode = ModeReuse
	}
	if p.GraceHours == 0 {
		p.GraceHours = 24
	}
	if p.Account == "" {
		p.Account = KeepAccount
	}
	if p.Deletes == nil {
		p.Deletes = []string{"/0", "/1"}
		if len(p.Access) > 0 {
			p.Deletes = append(p.Deletes, "/2")
		}
	}
}

func (p *Policy) check() error {
	var bad []fault.Field
	note := func(field, message string) { bad = append(bad, fault.Field{Name: field, Message: message}) }
	if p.Name == "" || len(p.Name) > 256 {
		note("name", "1 to 256 bytes")
	}
	if p.Order < 0 || p.Order > 99999999 {
		note("order", "from 0 to 99999999")
	}
	if _, err := path.Match(p.Match.Endpoint, ""); err != nil {
		note("match.endpoint", "is not a pattern")
	}
	if len(p.Match.Devices) > 1000 || len(p.Match.Labels) > 64 || len(p.Match.Sources) > 100 || len(p.Select.Servers) > 100 || len(p.Deletes) > 20 {
		note("match", "too many entries")
	}
	for _, s := range p.Match.Sources {
		if _, err := netip.ParsePrefix(s); err != nil {
			note("match.sources", "networks, such as 192.0.2.0/24")
		}
	}
	switch p.Select.Strategy {
	case StickyWeighted, Nearest, Failover, RoundRobin, LeastAssigned:
	default:
		note("select.strategy", "must be sticky-weighted, nearest, failover, round-robin or least-assigned")
	}
	if p.Select.Count < 1 || p.Select.Count > 3 {
		note("select.count", "from 1 to 3")
	}
	switch p.Mode {
	case ModeReuse, ModePSK, ModeCert, ModeEST:
	default:
		note("credential", "must be reuse, rotate-psk, issue-cert or est")
	}
	if p.GraceHours < 1 || p.GraceHours > 24*365 {
		note("grace_hours", "from 1 to 8760")
	}
	for _, d := range p.Deletes {
		if ids, err := splitPath(d); d != "/" && (err != nil || len(ids) > 2) {
			note("deletes", `paths of objects or instances, such as "/0" or "/1/0", or "/"`)
		}
	}
	if p.Format != nil && !slices.Contains([]coap.Format{coap.LwM2MTLV, FormatOldTLV, coap.SenMLJSON, coap.SenMLCBOR, coap.LwM2MCBOR}, *p.Format) {
		note("format", "must be 11542, 1542, 110, 112 or 11544")
	}
	if p.Binding != "" && !bindings.MatchString(p.Binding) {
		note("binding", "letters of U, T, S, N, Q, M and H")
	}
	if p.Account != KeepAccount && p.Account != RotateAccount {
		note("bootstrap_account", "must be keep or rotate")
	}
	if p.Account == RotateAccount && p.SkipDiscover {
		note("bootstrap_account", "cannot be rotated without asking the device where it is; leave skip_discover out")
	}
	if _, err := typedResources(objectServer, p.Resources, settableServer); err != nil {
		note("server_resources", err.Error())
	}
	if len(p.Access) > 64 {
		note("access", "at most 64 entries")
	}
	for _, a := range p.Access {
		if err := a.check(); err != nil {
			note("access", err.Error())
		}
	}
	if p.Lifetime != nil && *p.Lifetime < 0 {
		note("lifetime", "must not be negative")
	}
	return fault.InvalidFields(bad...)
}

func (a Access) check() error {
	if len(a.Rights) == 0 || len(a.Rights) > 16 {
		return errors.New("an entry has the rights of 1 to 16 servers")
	}
	for server, rights := range a.Rights {
		if server != defaultRights && !serverID.MatchString(server) {
			return fmt.Errorf("%q is no server's id", server)
		}
		if rights < 0 || rights > 31 {
			return errors.New("rights are the sum of R 1, W 2, E 4, D 8 and C 16")
		}
	}
	return nil
}

// AddPolicy adds a policy for the actor's organisation, or, with an empty Org,
// which is a platform administrator's to give, for all.
func (s *Service) AddPolicy(ctx context.Context, p Policy) (Policy, error) {
	p.Defaults()
	p.ID, p.CreatedAt = id.New(s.Now()), s.Now().UTC()
	if err := p.check(); err != nil {
		return p, err
	}
	return p, s.DB.Update(ctx, func(tx store.Tx) error {
		list, err := policies.PageBy(tx, "order", store.TermOf(p.Org), page.Request{Limit: maxPolicies})
		if err != nil {
			return err
		}
		if len(list.Items) >= maxPolicies {
			return fault.New(fault.TooLarge, "there are %d policies already", len(list.Items))
		}
		if err := policies.Insert(tx, p.ID, p); err != nil {
			return err
		}
		return s.note(ctx, tx, "lwm2m.policy.create", p.ID, map[string]string{"name": p.Name})
	})
}

// Policies returns the policies of the actor's organisation in their order, then
// the platform's.
func (s *Service) Policies(ctx context.Context) (list []Policy, err error) {
	err = s.DB.View(ctx, func(tx store.Tx) error {
		list, err = policiesIn(tx, identity.OrgOf(ctx))
		return err
	})
	return list, err
}

func policiesIn(tx store.Tx, org string) ([]Policy, error) {
	own, err := policies.PageBy(tx, "order", store.TermOf(org), page.Request{Limit: maxPolicies})
	if err != nil || org == "" {
		return own.Items, err
	}
	all, err := policies.PageBy(tx, "order", store.TermOf(""), page.Request{Limit: maxPolicies})
	return append(own.Items, all.Items...), err
}

// DeletePolicy removes a policy of the actor's organisation, or, by a platform
// administrator, of the platform. Another's is NotFound.
func (s *Service) DeletePolicy(ctx context.Context, policyID string) error {
	a := identity.FromContext(ctx)
	return s.DB.Update(ctx, func(tx store.Tx) error {
		p, err := policies.Delete(tx, policyID)
		if err != nil {
			return err
		}
		if p.Org != a.Org && (p.Org != "" || !a.May(identity.Platform)) {
			return fault.New(fault.NotFound, "no such LwM2M policy")
		}
		return s.note(ctx, tx, "lwm2m.policy.delete", policyID, nil)
	})
}

// Subject is a device as policies look at it.
type Subject struct {
	Device     devices.Device
	ClientID   string
	Endpoint   string
	Credential identity.CredentialKind
	Source     netip.Addr
	Region     string
}

// fits reports whether m is for the subject.
func (m Match) fits(u Subject) bool {
	if len(m.Devices) > 0 && !slices.ContainsFunc(m.Devices, func(name string) bool {
		return name == u.Device.ID || slices.ContainsFunc(u.Device.Aliases, func(a devices.Alias) bool { return a.Value == name })
	}) {
		return false
	}
	if !hasLabels(u.Device.Labels, m.Labels) {
		return false
	}
	if m.Endpoint != "" {
		if ok, err := path.Match(m.Endpoint, u.Endpoint); err != nil || !ok {
			return false
		}
	}
	if len(m.Sources) > 0 && !slices.ContainsFunc(m.Sources, func(s string) bool {
		n, err := netip.ParsePrefix(s)
		return err == nil && n.Contains(u.Source.Unmap())
	}) {
		return false
	}
	return (m.Credential == "" || m.Credential == u.Credential) && (m.Region == "" || m.Region == u.Region)
}

func hasLabels(labels, wanted map[string]string) bool {
	for k, v := range wanted {
		if labels[k] != v {
			return false
		}
	}
	return true
}
