package lwm2m

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"keystead/audit"
	"keystead/coap"
	"keystead/devices"
	"keystead/fault"
	"keystead/identity"
	"keystead/psk"
	"keystead/seal"
	"keystead/store"
)

// The security modes of /0/x/2.
const (
	securityPSK  = 0
	securityCert = 2
	securityEST  = 4
)

// plan is what a bootstrap will write.
type plan struct {
	device   devices.Device
	subject  Subject
	decision Decision
	accounts []planned
	rotates  bool     // the bootstrap account gets a new key
	account  *planned // which is this; nil before it is made

	settled chan struct{} // closed once it is known whether the credentials are good
}

// made returns the ids of the credentials the plan made.
func (p *plan) made() []string {
	var ids []string
	for _, account := range p.accounts {
		if account.handed != nil {
			ids = append(ids, account.handed.ID)
		}
	}
	if p.account != nil && p.account.handed != nil {
		ids = append(ids, p.account.handed.ID)
	}
	return ids
}

// planned is the account of one server.
type planned struct {
	server      Server
	mode        Mode // psk, cert or est
	handed      *Handed
	identity    []byte // /0/x/3
	secret      seal.Secret
	certificate []byte
}

// Account is one account of a plan, as it is shown: without secrets.
type Account struct {
	Server     Server
	Mode       Mode // how the device proves itself: psk, cert or est
	Credential Mode // where that comes from
}

// Plan says which accounts a device of the actor's organisation would be given,
// and changes nothing.
func (s *Service) Plan(ctx context.Context, u Subject) (d Decision, accounts []Account, err error) {
	d, err = s.Evaluate(ctx, u)
	for _, v := range d.Servers {
		accounts = append(accounts, Account{Server: v, Mode: kindOf(d.Policy.Mode, u.Credential), Credential: d.Policy.Mode})
	}
	return d, accounts, err
}

// SubjectOf returns a device of the actor's organisation as policies look at it.
func (s *Service) SubjectOf(ctx context.Context, device string) (u Subject, err error) {
	d, err := s.Devices.Find(ctx, device)
	if err != nil {
		return u, err
	}
	u = Subject{Device: d, ClientID: ClientID(d), Endpoint: d.Alias(devices.Endpoint), Credential: identity.Certificate}
	if len(d.CredentialsOf(identity.PSK)) > 0 {
		u.Credential = identity.PSK
	}
	return u, nil
}

// names returns the endpoint names that a device may go by with the credential
// it has proven.
func names(d devices.Device, a identity.Actor) []string {
	list := []string{d.ID, "urn:uuid:" + d.ID, ClientID(d)}
	if a.Credential.Kind == identity.PSK {
		list = append(list, a.Credential.ID)
	}
	for _, alias := range d.Aliases {
		list = append(list, alias.Value)
	}
	for _, name := range slices.Clone(list) {
		if guid, ok := psk.Identity(name).GUID(); ok {
			list = append(list, guid, "urn:uuid:"+guid)
		}
	}
	return list
}

// endpoint returns the name a device goes by, or the reason why it may not: the
// one it gives must be one its credential allows (LwM2M 1.2 transport, 5.2.6).
func endpoint(d devices.Device, a identity.Actor, stated string) (string, error) {
	if stated == "" {
		if name := d.Alias(devices.Endpoint); name != "" {
			return name, nil
		}
		return "urn:uuid:" + d.ID, nil
	}
	if !slices.Contains(names(d, a), stated) {
		return stated, coap.Errorf(coap.BadRequest, "the endpoint name is not this credential's; give the device an alias, or leave ep out")
	}
	return stated, nil
}

// prepare makes the pending credentials of a plan, assigns its servers, and
// tells the servers' sinks.
func (s *Service) prepare(ctx context.Context, p *plan, v *Session) error {
	p.accounts = nil
	for _, server := range p.decision.Servers {
		p.accounts = append(p.accounts, planned{server: server, mode: kindOf(p.decision.Policy.Mode, p.subject.Credential)})
	}
	err := s.DB.Update(ctx, func(tx store.Tx) error {
		var before []string
		a, err := s.assign(tx, p.device, func(a *Assignment) {
			before = a.Servers
			a.Policy = p.decision.Policy.ID
			a.Servers = a.Servers[:0:0]
			for _, server := range p.decision.Servers {
				a.Servers = append(a.Servers, server.ID)
			}
		})
		if err != nil {
			return err
		}
		if !slices.Equal(before, a.Servers) {
			e := audit.Entry{Action: "lwm2m.assign", Target: a.Device, Device: a.Device, Org: a.Org, Detail: map[string]string{"servers": strings.Join(a.Servers, " "), "policy": a.Policy}}
			if err := s.Audit.Append(ctx, tx, e); err != nil {
				return err
			}
		}
		if p.rotates {
			if err := s.accountIn(ctx, tx, p, &a, v); err != nil {
				return err
			}
		}
		for i := range p.accounts {
			if err := s.credentialIn(ctx, tx, p, &p.accounts[i], &a, v); err != nil {
				return err
			}
		}
		if err := s.emit(ctx, tx, v.happened(BootstrapStarted)); err != nil {
			return err
		}
		return assignments.Set(tx, a.Device, a)
	})
	if err != nil {
		return err
	}
	for i := range p.accounts {
		if err := s.issueFor(ctx, p, &p.accounts[i], v); err != nil {
			return err
		}
		if err := s.push(ctx, p, &p.accounts[i]); err != nil {
			return &pushError{err}
		}
	}
	return nil
}

type pushError struct{ err error }

func (e *pushError) Error() string {
	return "the server could not be told of the credential: " + e.err.Error()
}
func (e *pushError) Unwrap() error { return e.err }

// credentialIn gives an account what of it is made in the transaction: the
// credential of the session itself, or a new pending key.
func (s *Service) credentialIn(ctx context.Context, tx store.Tx, p *plan, account *planned, a *Assignment, v *Session) error {
	var err error
	switch {
	case p.decision.Policy.Mode == ModeReuse && account.mode == kindPSK && p.account != nil:
		account.identity, account.secret = p.account.identity, slices.Clone(p.account.secret)
		return nil
	case p.decision.Policy.Mode == ModeReuse && account.mode == kindPSK:
		account.identity = []byte(v.Identity)
		account.secret, err = s.PSK.SecretIn(tx, psk.Identity(v.Identity))
		return err
	case p.decision.Policy.Mode != ModePSK:
		return nil
	}
	return s.newKeyIn(ctx, tx, p, account, a, v)
}

// newKeyIn gives an account a new pending key.
func (s *Service) newKeyIn(ctx context.Context, tx store.Tx, p *plan, account *planned, a *Assignment, v *Session) error {
	a.Serial++
	name := psk.Identity(fmt.Sprintf("%s.%d", p.subject.ClientID, a.Serial))
	k, secret, err := s.PSK.CreateIn(ctx, tx, psk.New{Identity: name, Device: p.device.ID, State: devices.CredentialPending})
	if err != nil {
		return err
	}
	account.identity, account.secret = []byte(k.Identity), secret
	account.handed = &Handed{Server: account.server.ID, Kind: identity.PSK, ID: string(k.Identity), State: devices.CredentialPending, Session: v.ID}
	a.Handed = append(a.Handed, *account.handed)
	return nil
}

// accountIn makes the key that is to take the place of the one the device
// bootstraps with.
func (s *Service) accountIn(ctx context.Context, tx store.Tx, p *plan, a *Assignment, v *Session) error {
	p.account = &planned{mode: kindPSK}
	if err := s.newKeyIn(ctx, tx, p, p.account, a, v); err != nil {
		return err
	}
	a.Handed[len(a.Handed)-1].Replaces = v.Identity
	return nil
}

// setWritten notes, before the bootstrap account is written, that the device may
// have its new key from now on; or, if it refused it, that it has not.
func (s *Service) setWritten(ctx context.Context, p *plan, written bool) error {
	return s.settle(ctx, p, func(_ store.Tx, _ *Assignment, h *Handed) error {
		if h.ofBootstrap() {
			h.Written = written
		}
		return nil
	})
}

// issueFor makes the certificate of an account that gets one.
func (s *Service) issueFor(ctx context.Context, p *plan, account *planned, v *Session) error {
	if p.decision.Policy.Mode != ModeCert {
		return nil
	}
	if s.Issue == nil {
		return fault.New(fault.Unavailable, "there is no CA to issue certificates")
	}
	issued, err := s.Issue(ctx, p.device)
	if err != nil {
		return err
	}
	account.certificate, account.secret = issued.Certificate.Raw, issued.Key
	account.handed = &Handed{Server: account.server.ID, Kind: identity.Certificate, ID: issued.ID, State: devices.CredentialPending, Session: v.ID}
	return s.DB.Update(ctx, func(tx store.Tx) error {
		_, err := s.assign(tx, p.device, func(a *Assignment) { a.Handed = append(a.Handed, *account.handed) })
		return err
	})
}

// push tells a server's sink of a new credential. A device is not written to
// before its server knows.
func (s *Service) push(ctx context.Context, p *plan, account *planned) error {
	if account.server.Sink.Kind == SinkShared || account.handed == nil && p.decision.Policy.Mode != ModeReuse {
		return nil
	}
	if s.Push == nil {
		return fault.New(fault.Unavailable, "this server has no way to push credentials")
	}
	what := Pushed{
		Server: account.server, Device: p.device.ID, Org: p.device.Org, Endpoint: p.subject.Endpoint, Kind: identity.PSK,
		ID: string(account.identity), Secret: account.secret,
	}
	if account.mode == kindCert {
		what.Kind, what.Secret, what.Certificate = identity.Certificate, nil, account.certificate
	}
	if sealed := account.server.Sink.Secret; sealed != nil {
		key, err := s.Box.Open("lwm2m server/"+account.server.ID, sealed)
		if err != nil {
			return err
		}
		defer key.Wipe()
		what.HMACKey = key
	}
	return s.Push(ctx, what)
}

// wipe forgets the secrets of a plan.
func (p *plan) wipe() {
	for i := range p.accounts {
		p.accounts[i].secret.Wipe()
	}
	if p.account != nil {
		p.account.secret.Wipe()
	}
}

// activate makes the credentials of a plan good, and those they replace retire.
// Without confirmed, as after a pack, the ones before stay as they are until the
// new ones are used. What a bootstrap account had does so always: it is how a
// device comes back that has lost everything else.
func (s *Service) activate(ctx context.Context, p *plan, confirmed bool) error {
	return s.settle(ctx, p, func(tx store.Tx, a *Assignment, h *Handed) error {
		h.State = devices.CredentialActive
		if err := s.move(ctx, tx, a.Device, h, time.Time{}); err != nil {
			return err
		}
		if !confirmed || h.ofBootstrap() {
			return s.thin(ctx, tx, a, h)
		}
		until := s.Now().UTC().Add(time.Duration(p.decision.Policy.GraceHours) * time.Hour)
		for i := range a.Handed {
			old := &a.Handed[i]
			if old.Server != h.Server || old.ID == h.ID || old.State == devices.CredentialPending {
				continue
			}
			if old.State == devices.CredentialRetiring { // the one before the one before
				old.State = devices.CredentialRevoked
				if err := s.Devices.Revoke(ctx, tx, a.Device, old.Kind, old.ID); err != nil {
					return err
				}
				continue
			}
			old.State = devices.CredentialRetiring
			if err := s.move(ctx, tx, a.Device, old, until); err != nil && !fault.Is(err, fault.NotFound) {
				return err
			}
		}
		return nil
	})
}

// maxUnused is how many credentials of packs a device may have that it has not
// used: more packs than that were lost on the way, or not taken.
const maxUnused = 4

// thin ends the oldest credentials for h's server that were never used.
func (s *Service) thin(ctx context.Context, tx store.Tx, a *Assignment, h *Handed) error {
	unused := 0
	for i := range slices.Backward(a.Handed) {
		old := &a.Handed[i]
		if old.Server != h.Server || old.Used || old.State != devices.CredentialActive {
			continue
		}
		if unused++; unused <= maxUnused {
			continue
		}
		old.State = devices.CredentialRevoked
		if err := s.Devices.Revoke(ctx, tx, a.Device, old.Kind, old.ID); err != nil {
			return err
		}
	}
	return nil
}

// move puts a credential in the state its hand-over is in. It ends when it did
// before, or at until if that is sooner.
func (s *Service) move(ctx context.Context, tx store.Tx, device string, h *Handed, until time.Time) error {
	d, err := s.Devices.GetIn(ctx, tx, device)
	if err != nil {
		return err
	}
	c, ok := d.Credential(h.Kind, h.ID)
	if !ok {
		return fault.New(fault.NotFound, "no such credential")
	}
	if c.State = h.State; !until.IsZero() && (c.ExpiresAt.IsZero() || until.Before(c.ExpiresAt)) {
		c.ExpiresAt = until
	}
	_, err = s.Devices.SetCredential(ctx, tx, device, c)
	return err
}

// discard ends the pending credentials of a plan.
func (s *Service) discard(ctx context.Context, p *plan) error {
	return s.settle(ctx, p, func(tx store.Tx, a *Assignment, h *Handed) error { return s.abandon(ctx, tx, a, h) })
}

// abandon ends a pending credential whose bootstrap came to nothing. One that may
// be in the device's bootstrap account by now is good beside the one before: the
// device comes back with either.
func (s *Service) abandon(ctx context.Context, tx store.Tx, a *Assignment, h *Handed) error {
	if h.ofBootstrap() && h.Written {
		h.State = devices.CredentialActive
		if err := s.move(ctx, tx, a.Device, h, time.Time{}); err != nil {
			return err
		}
		return s.thin(ctx, tx, a, h)
	}
	h.State = devices.CredentialRevoked
	return s.Devices.Revoke(ctx, tx, a.Device, h.Kind, h.ID)
}

// settle applies fn to each credential the plan made, in one transaction.
func (s *Service) settle(ctx context.Context, p *plan, fn func(store.Tx, *Assignment, *Handed) error) error {
	made := p.made()
	if len(made) == 0 {
		return nil
	}
	return s.DB.Update(ctx, func(tx store.Tx) error {
		a, err := assignments.Get(tx, p.device.ID)
		if err != nil {
			return err
		}
		a.Handed = slices.Clone(a.Handed)
		for i := range a.Handed {
			if slices.Contains(made, a.Handed[i].ID) && a.Handed[i].State == devices.CredentialPending {
				if err := fn(tx, &a, &a.Handed[i]); err != nil {
					return err
				}
			}
		}
		a.forget()
		return assignments.Set(tx, a.Device, a)
	})
}

// forget drops the credentials that have ended.
func (a *Assignment) forget() {
	a.Handed = slices.DeleteFunc(a.Handed, func(h Handed) bool { return h.State == devices.CredentialRevoked })
}

// used notes that a device has proven itself with a credential: what it replaced
// has served its time.
func (s *Service) used(ctx context.Context, a identity.Actor) error {
	ctx = identity.NewContext(ctx, identity.Actor{Kind: identity.System})
	replaces := func(v Assignment) (server string, found bool) {
		i := slices.IndexFunc(v.Handed, func(h Handed) bool { return h.Kind == a.Credential.Kind && h.ID == a.Credential.ID })
		if i < 0 || v.Handed[i].State != devices.CredentialActive {
			return "", false
		}
		server = v.Handed[i].Server
		return server, !v.Handed[i].Used || slices.ContainsFunc(v.Handed, func(h Handed) bool {
			return h.Server == server && h.ID != a.Credential.ID && h.State != devices.CredentialPending
		})
	}
	var found bool
	err := s.DB.View(ctx, func(tx store.Tx) error {
		v, err := assignments.Get(tx, a.ID)
		if err == nil {
			_, found = replaces(v)
		}
		return err
	})
	if fault.Is(err, fault.NotFound) || err == nil && !found {
		return nil
	}
	return s.DB.Update(ctx, func(tx store.Tx) error {
		v, err := assignments.Get(tx, a.ID)
		if err != nil {
			return err
		}
		server, found := replaces(v)
		if !found {
			return nil
		}
		v.Handed = slices.Clone(v.Handed)
		for i := range v.Handed {
			h := &v.Handed[i]
			if h.Server != server || h.State == devices.CredentialPending {
				continue
			}
			if h.ID == a.Credential.ID {
				h.Used = true
				if err := s.replaced(ctx, tx, &v, h); err != nil {
					return err
				}
				continue
			}
			h.State = devices.CredentialRevoked
			if err := s.Devices.Revoke(ctx, tx, a.ID, h.Kind, h.ID); err != nil {
				return err
			}
		}
		v.forget()
		return assignments.Set(tx, v.Device, v)
	})
}

// replaced ends the key that the bootstrap account had before h, unless that is
// one of a server, which has a hand-over of its own.
func (s *Service) replaced(ctx context.Context, tx store.Tx, a *Assignment, h *Handed) error {
	before := h.Replaces
	h.Replaces, h.Written = "", false
	if before == "" || slices.ContainsFunc(a.Handed, func(o Handed) bool { return o.ID == before && !o.ofBootstrap() }) {
		return nil
	}
	return s.Devices.Revoke(ctx, tx, a.Device, h.Kind, before)
}

// instances returns what a plan writes: a Security and a Server instance for
// each account, then who may do what, under ids that are free.
func (p *plan) instances(free func(object uint16) uint16, minor int) []Instance {
	var security, server []Instance
	for _, a := range p.accounts {
		security = append(security, Instance{Object: objectSecurity, ID: free(objectSecurity), Resources: a.security(minor)})
		server = append(server, Instance{Object: objectServer, ID: free(objectServer), Resources: a.account(p.decision.Policy, minor)})
	}
	return append(append(security, server...), p.access(free)...)
}

// access is an Access Control instance for each entry of the policy, with the
// servers the device has.
func (p *plan) access(free func(object uint16) uint16) []Instance {
	const bootstrapServer = 0xffff // as an owner: nobody but the bootstrap server
	var list []Instance
	for _, a := range p.decision.Policy.Access {
		owner, rights := int64(bootstrapServer), Resource{ID: 2, Values: []Element{}}
		if n, ok := a.Rights[defaultRights]; ok {
			rights.Values = append(rights.Values, Element{0, n})
		}
		for _, account := range p.accounts {
			if account.server.ID == a.Owner {
				owner = int64(account.server.ShortID)
			}
			if n, ok := a.Rights[account.server.ID]; ok {
				rights.Values = append(rights.Values, Element{account.server.ShortID, n})
			}
		}
		slices.SortFunc(rights.Values, func(a, b Element) int { return int(a.ID) - int(b.ID) })
		list = append(list, Instance{Object: objectACL, ID: free(objectACL), Resources: []Resource{
			{ID: 0, Value: int64(a.Object)}, {ID: 1, Value: int64(a.Instance)}, rights, {ID: 3, Value: owner},
		}})
	}
	return list
}

// security is the Security instance of an account. Clients older than 1.1 know
// no resources beyond 12.
func (a *planned) security(minor int) []Resource {
	r := []Resource{{ID: 0, Value: a.server.URL}, {ID: 1, Value: false}}
	add := func(id uint16, v Value) { r = append(r, Resource{ID: id, Value: v}) }
	serverKey := a.server.known()
	switch a.mode {
	case kindPSK:
		add(2, int64(securityPSK))
		add(3, a.identity)
		add(5, []byte(a.secret))
	case kindEST:
		add(2, int64(securityEST))
		add(4, serverKey)
	default:
		add(2, int64(securityCert))
		if a.certificate != nil {
			add(3, a.certificate)
		}
		if len(serverKey) > 0 {
			add(4, serverKey)
		}
		if a.certificate != nil {
			add(5, []byte(a.secret))
		}
	}
	add(10, int64(a.server.ShortID))
	more, _ := typedResources(objectSecurity, a.server.Security, settableSecurity) // checked when they were set
	if minor == 0 {
		return override(r, more, minor)
	}
	if a.server.SNI != "" {
		add(14, a.server.SNI)
	}
	switch {
	case a.mode == kindPSK:
	case a.server.CertificateUsage != nil:
		add(15, *a.server.CertificateUsage)
	case len(a.server.Certificate) == 0 && len(a.server.TrustAnchor) > 0:
		add(15, int64(usageTrustAnchor)) // by itself a client takes the certificate for the server's own
	}
	if len(a.server.CipherSuites) > 0 {
		suites := Resource{ID: 16}
		for i, suite := range a.server.CipherSuites {
			suites.Values = append(suites.Values, Element{uint16(i), int64(suite)})
		}
		r = append(r, suites)
	}
	return override(r, more, minor)
}

// usageTrustAnchor is the value of /0/x/15 for the certificate of a CA.
const usageTrustAnchor = 2

// account is the Server instance of an account.
func (a *planned) account(p Policy, minor int) []Resource {
	v := a.server
	lifetime, binding := v.Lifetime, v.Binding
	if p.Lifetime != nil {
		lifetime = *p.Lifetime
	}
	if p.Binding != "" {
		binding = p.Binding
	}
	r := []Resource{{ID: 0, Value: int64(v.ShortID)}, {ID: 1, Value: lifetime}}
	if v.MinPeriod > 0 {
		r = append(r, Resource{ID: 2, Value: v.MinPeriod})
	}
	if v.MaxPeriod > 0 {
		r = append(r, Resource{ID: 3, Value: v.MaxPeriod})
	}
	r = append(r, Resource{ID: 6, Value: v.StoreNotifications}, Resource{ID: 7, Value: binding})
	if minor > 0 && p.Retry {
		r = append(r, Resource{ID: 16, Value: true})
	}
	more, _ := typedResources(objectServer, p.Resources, settableServer) // as above
	return override(r, more, minor)
}

// bootstrapAccount is the Security instance that a device bootstraps with, with
// its new key.
func (p *plan) bootstrapAccount(at uint16, uri string) Instance {
	return Instance{Object: objectSecurity, ID: at, Resources: []Resource{
		{ID: 0, Value: uri}, {ID: 1, Value: true}, {ID: 2, Value: int64(securityPSK)}, {ID: 3, Value: p.account.identity}, {ID: 5, Value: []byte(p.account.secret)},
	}}
}

// observe ends what rests on a device that is no more.
func (s *Service) observe(ctx context.Context, tx store.Tx, c devices.Change) error {
	if c.What != devices.DecommissionedNow {
		return nil
	}
	if _, err := assignments.Delete(tx, c.Device.ID); err != nil && !fault.Is(err, fault.NotFound) {
		return err
	}
	if _, err := overrides.Delete(tx, c.Device.ID); err != nil && !fault.Is(err, fault.NotFound) {
		return err
	}
	v, err := registrations.Delete(tx, c.Device.ID)
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return s.emit(ctx, tx, v.happened(ClientDisconnected))
}

// isTLV reports whether f is one of the two TLVs.
func isTLV(f coap.Format) bool { return f == coap.LwM2MTLV || f == FormatOldTLV }

// formatFor returns the format to write an object in. A client that names none
// knows TLV and may end on anything else; one that asks for SenML JSON may read
// the keys of object 0 wrongly.
func formatFor(p Policy, q Query, object uint16) coap.Format {
	f := coap.LwM2MTLV
	switch {
	case p.Format != nil && (isTLV(*p.Format) || q.HasPCT):
		f = *p.Format
	case q.HasPCT:
		f = q.PCT
	}
	if f == coap.SenMLJSON && object == objectSecurity {
		return coap.LwM2MTLV
	}
	return f
}

// knownFormat reports whether clients can be written to in f.
func knownFormat(f coap.Format) bool {
	switch f {
	case coap.LwM2MTLV, FormatOldTLV, coap.SenMLJSON, coap.SenMLCBOR, coap.LwM2MCBOR:
		return true
	default:
		return false
	}
}

// sameURI reports whether two server URIs name the same host and port.
func sameURI(a, b string) bool {
	return strings.TrimSuffix(strings.ToLower(a), "/") == strings.TrimSuffix(strings.ToLower(b), "/")
}
