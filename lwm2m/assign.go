package lwm2m

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"keystead/devices"
	"keystead/fault"
	"keystead/identity"
	"keystead/psk"
	"keystead/store"
)

// Assignment is where a device is sent, and what it was given for it.
type Assignment struct {
	Device    string    `cbor:"device"`
	Org       string    `cbor:"org"`
	Servers   []string  `cbor:"servers"`
	Policy    string    `cbor:"policy"`
	Pinned    bool      `cbor:"pinned,omitempty"` // an administrator chose
	Handed    []Handed  `cbor:"handed,omitempty"`
	Serial    uint32    `cbor:"serial"` // counts the credentials made for the device
	UpdatedAt time.Time `cbor:"updated"`
}

// Handed is a credential that was made for a device to prove itself to a server.
type Handed struct {
	Server  string                  `cbor:"server" json:"server"` // "" for the account it bootstraps with
	Kind    identity.CredentialKind `cbor:"kind" json:"kind"`
	ID      string                  `cbor:"id" json:"id"`
	State   devices.CredentialState `cbor:"state" json:"state"`
	Session string                  `cbor:"session" json:"session"`     // the bootstrap it was made in
	Used    bool                    `cbor:"used,omitempty" json:"used"` // to register or to bootstrap here

	// Of the bootstrap account alone: the key it had before, which is good until
	// this one is used; and whether the device may have this one already, so that
	// it has to be good whatever became of the bootstrap.
	Replaces string `cbor:"replaces,omitempty" json:"replaces,omitempty"`
	Written  bool   `cbor:"written,omitempty" json:"-"`
}

// ofBootstrap reports whether h is for the account the device bootstraps with.
func (h *Handed) ofBootstrap() bool { return h.Server == "" }

var assignments = store.NewTable("LwM2M assignment",
	store.Index[Assignment]{Name: "server", Counted: true, Terms: func(a Assignment) []store.Term {
		terms := make([]store.Term, len(a.Servers))
		for i, id := range a.Servers {
			terms[i] = store.TermOf(id)
		}
		return terms
	}},
	store.Index[Assignment]{Name: "pending", Terms: func(a Assignment) []store.Term {
		if !slices.ContainsFunc(a.Handed, func(h Handed) bool { return h.State == devices.CredentialPending }) {
			return nil
		}
		return store.Terms("")
	}},
)

// Decision is which servers a device is sent to, and why not to others.
type Decision struct {
	Policy  Policy
	Servers []Server
	Reasons []Reason
	Region  string
	Kept    bool // the servers are those of before
	Special bool // the policy is as the device's override has it
}

// Reason says what a filter made of a server.
type Reason struct {
	Server string `json:"server"`
	Chosen bool   `json:"chosen"`
	Text   string `json:"reason"`
}

// ErrNoServer is in the tree of the fault for a device that no server takes.
var ErrNoServer = fault.New(fault.Invalid, "no server takes this device")

// ClientID is the name a device has as a client, 22 characters: of its first
// random identity, or of the GUID in its certificate, or else of its own id.
func ClientID(d devices.Device) string {
	for _, a := range d.Aliases {
		if _, ok := psk.Identity(a.Value).GUID(); ok && a.Kind == devices.Endpoint {
			return a.Value
		}
		if i := psk.IdentityOf(a.Value); i != "" && a.Kind == devices.CommonName {
			return string(i)
		}
	}
	return string(psk.IdentityOf(d.ID))
}

// decide chooses the servers of a device as part of tx. It writes nothing.
func (s *Service) decide(tx store.Tx, u Subject) (d Decision, err error) {
	special, err := overrideIn(tx, u.Device.ID)
	if err != nil {
		return d, err
	}
	if special != nil && special.Region != "" {
		u.Region = special.Region
	}
	u.Region = s.region(u)
	d.Region = u.Region
	list, err := policiesIn(tx, u.Device.Org)
	if err != nil {
		return d, err
	}
	d.Policy = defaultPolicy
	if i := slices.IndexFunc(list, func(p Policy) bool { return p.Match.fits(u) }); i >= 0 {
		d.Policy = list[i]
	}
	if special != nil {
		d.Policy, d.Special = special.over(d.Policy), true
	}
	all, err := s.serversIn(tx)
	if err != nil {
		return d, err
	}
	held, err := assignments.Get(tx, u.Device.ID)
	if err != nil && !fault.Is(err, fault.NotFound) {
		return d, err
	}
	fit := all[:0:0]
	for _, v := range all {
		why, err := s.unfit(tx, v, d.Policy, u, held)
		if err != nil {
			return d, err
		}
		if why != "" {
			d.Reasons = append(d.Reasons, Reason{Server: v.ID, Text: why})
			continue
		}
		fit = append(fit, v)
	}
	if kept := keep(fit, held, d.Policy); kept != nil {
		d.Servers, d.Kept = kept, true
	} else if d.Servers, err = s.choose(tx, fit, d.Policy, u); err != nil {
		return d, err
	}
	for _, v := range fit {
		r := Reason{Server: v.ID, Text: "not chosen by " + string(d.Policy.Select.Strategy)}
		if slices.ContainsFunc(d.Servers, func(c Server) bool { return c.ID == v.ID }) {
			r.Chosen, r.Text = true, "chosen by "+string(d.Policy.Select.Strategy)
			if d.Kept {
				r.Text = "the device is assigned to it"
			}
		}
		d.Reasons = append(d.Reasons, r)
	}
	return d, nil
}

// unfit says why a server does not come into question for a device, "" if it does.
func (s *Service) unfit(tx store.Tx, v Server, p Policy, u Subject, held Assignment) (string, error) {
	assigned := slices.Contains(held.Servers, v.ID)
	switch {
	case v.State == ServerDisabled, v.State == ServerDraining:
		return "the server is " + string(v.State), nil
	case v.Unhealthy && (!assigned || p.Select.Strategy == Failover):
		return "the server is not healthy", nil
	case !v.takesOrg(u.Device.Org):
		return "the server is not for the device's organisation", nil
	case !v.takes(kindOf(p.Mode, u.Credential)):
		return "the server does not take the credential the policy gives", nil
	case p.Mode == ModeEST && len(v.known()) == 0:
		return "devices that enrol need the server's certificate or a trust anchor, and there is none", nil
	case held.Pinned:
		if !assigned {
			return "the device is pinned to another", nil
		}
		return "", nil
	case len(p.Select.Servers) > 0 && !slices.Contains(p.Select.Servers, v.ID):
		return "the policy does not name the server", nil
	case !hasLabels(v.Labels, p.Select.Labels):
		return "the server has not the labels the policy asks for", nil
	case len(p.Select.Regions) > 0 && !slices.Contains(p.Select.Regions, v.Region):
		return "the server is in none of the policy's regions", nil
	case p.Select.Nearby && v.Region != u.Region:
		return "the server is not in the device's region", nil
	case v.Weight == 0 && !assigned:
		return "the server has no weight", nil
	}
	if v.Capacity > 0 && !assigned {
		n, err := assignments.Count(tx, "server", store.TermOf(v.ID))
		if err != nil {
			return "", err
		}
		if n >= v.Capacity {
			return fmt.Sprintf("the server has the %d devices it may have", n), nil
		}
	}
	return "", nil
}

// kindOf is what a device will prove itself to its server with.
func kindOf(m Mode, by identity.CredentialKind) Mode {
	switch {
	case m == ModeEST:
		return kindEST
	case m == ModePSK, m == ModeReuse && by == identity.PSK:
		return kindPSK
	}
	return kindCert
}

// keep returns the servers a device has, if it is to stay with all of them.
func keep(fit []Server, held Assignment, p Policy) []Server {
	if len(held.Servers) == 0 || p.Select.Fresh && !held.Pinned || p.Select.Strategy == Failover && !held.Pinned {
		return nil
	}
	var kept []Server
	for _, id := range held.Servers {
		i := slices.IndexFunc(fit, func(v Server) bool { return v.ID == id })
		if i < 0 {
			return nil
		}
		kept = append(kept, fit[i])
	}
	return kept
}

// choose orders the servers by the policy's strategy and returns the first.
func (s *Service) choose(tx store.Tx, fit []Server, p Policy, u Subject) ([]Server, error) {
	fit = slices.Clone(fit)
	byWeight := func(a, b Server) int { return compare(Score(u.ClientID, b), Score(u.ClientID, a)) }
	switch p.Select.Strategy {
	case StickyWeighted:
		slices.SortFunc(fit, byWeight)
	case Failover:
		slices.SortStableFunc(fit, func(a, b Server) int {
			return slices.Index(p.Select.Servers, a.ID) - slices.Index(p.Select.Servers, b.ID)
		})
	case Nearest:
		at, known := locate(u.Device)
		slices.SortFunc(fit, func(a, b Server) int {
			if known {
				if c := compare(distance(at, a.Location), distance(at, b.Location)); c != 0 {
					return c
				}
			}
			return byWeight(a, b)
		})
	case RoundRobin:
		if n := len(fit); n > 0 {
			first := int(s.turn.Add(1)-1) % n //nolint:gosec // G115: of a counter that does not reach 2^63
			fit = append(fit[first:], fit[:first]...)
		}
	case LeastAssigned:
		load := map[string]int{}
		for _, v := range fit {
			n, err := assignments.Count(tx, "server", store.TermOf(v.ID))
			if err != nil {
				return nil, err
			}
			load[v.ID] = n
		}
		slices.SortFunc(fit, func(a, b Server) int {
			if c := load[a.ID] - load[b.ID]; c != 0 {
				return c
			}
			return byWeight(a, b)
		})
	}
	return fit[:min(len(fit), p.Select.Count)], nil
}

func compare(a, b float64) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// Score is the weighted rendezvous hash: the server with the highest takes the
// client, and another server changes only what it wins.
func Score(clientID string, v Server) float64 {
	h := sha256.Sum256([]byte(clientID + "\x00" + v.ID))
	u := (float64(binary.BigEndian.Uint64(h[:])>>11) + 0.5) / (1 << 53)
	return -float64(v.Weight) / math.Log(u)
}

// locate reads the labels lat and lon of a device.
func locate(d devices.Device) (Location, bool) {
	lat, err := strconv.ParseFloat(d.Labels["lat"], 64)
	lon, err2 := strconv.ParseFloat(d.Labels["lon"], 64)
	return Location{lat, lon}, err == nil && err2 == nil
}

// distance is the great-circle distance in kilometres. A server that is nowhere
// is further than any other.
func distance(a Location, b *Location) float64 {
	if b == nil {
		return math.Inf(1)
	}
	const radius, degree = 6371, math.Pi / 180
	dLat, dLon := (b.Lat-a.Lat)*degree, (b.Lon-a.Lon)*degree
	h := math.Pow(math.Sin(dLat/2), 2) + math.Cos(a.Lat*degree)*math.Cos(b.Lat*degree)*math.Pow(math.Sin(dLon/2), 2)
	return 2 * radius * math.Asin(min(1, math.Sqrt(h)))
}

// region is where a device is: its label says, or the network it comes from, or
// its name, or the default.
func (s *Service) region(u Subject) string {
	if r := u.Device.Labels["region"]; r != "" {
		return r
	}
	if u.Region != "" {
		return u.Region
	}
	for _, r := range s.Config.Regions {
		if n, err := netip.ParsePrefix(r.Network); err == nil && n.Contains(u.Source.Unmap()) {
			return r.Region
		}
	}
	for _, r := range s.Config.Regions {
		if r.Prefix != "" && strings.HasPrefix(u.Endpoint, r.Prefix) {
			return r.Region
		}
	}
	return s.Config.DefaultRegion
}

// Evaluate says where a device would be sent, and why, and changes nothing.
func (s *Service) Evaluate(ctx context.Context, u Subject) (d Decision, err error) {
	err = s.DB.View(ctx, func(tx store.Tx) error {
		d, err = s.decide(tx, u)
		return err
	})
	return d, err
}

// Assignment returns where a device of the actor's organisation is sent, or a
// NotFound fault.
func (s *Service) Assignment(ctx context.Context, device string) (a Assignment, err error) {
	err = s.DB.View(ctx, func(tx store.Tx) error {
		d, err := s.Devices.FindIn(ctx, tx, identity.OrgOf(ctx), device)
		if err != nil {
			return err
		}
		a, err = assignments.Get(tx, d.ID)
		return err
	})
	return a, err
}

// Pin assigns a device of the actor's organisation to the named servers until it
// is unpinned: it moves there at its next bootstrap.
func (s *Service) Pin(ctx context.Context, device string, to []string) (a Assignment, err error) {
	if len(to) < 1 || len(to) > 3 {
		return a, fault.New(fault.Invalid, "pin a device to 1 to 3 servers")
	}
	return a, s.DB.Update(ctx, func(tx store.Tx) error {
		d, err := s.Devices.FindIn(ctx, tx, identity.OrgOf(ctx), device)
		if err != nil {
			return err
		}
		for i, serverID := range to {
			v, err := servers.Get(tx, serverID)
			if fault.Is(err, fault.NotFound) || err == nil && !mayKnow(ctx, v) {
				return fault.New(fault.Invalid, "there is no server %s", serverID)
			}
			if err != nil {
				return err
			}
			if slices.Contains(to[:i], serverID) {
				return fault.New(fault.Invalid, "server %s is there twice", serverID)
			}
		}
		a, err = s.assign(tx, d, func(a *Assignment) { a.Servers, a.Pinned = slices.Clone(to), true })
		if err != nil {
			return err
		}
		return s.note(ctx, tx, "lwm2m.pin", d.ID, map[string]string{"servers": strings.Join(to, " ")})
	})
}

// Unpin has a device assigned by policy again, from its next bootstrap on.
func (s *Service) Unpin(ctx context.Context, device string) error {
	return s.DB.Update(ctx, func(tx store.Tx) error {
		d, err := s.Devices.FindIn(ctx, tx, identity.OrgOf(ctx), device)
		if err != nil {
			return err
		}
		if _, err := assignments.Get(tx, d.ID); err != nil {
			return err
		}
		if _, err := s.assign(tx, d, func(a *Assignment) { a.Servers, a.Pinned = nil, false }); err != nil {
			return err
		}
		return s.note(ctx, tx, "lwm2m.unpin", d.ID, nil)
	})
}

// assign changes the assignment of a device, making it if there is none.
func (s *Service) assign(tx store.Tx, d devices.Device, change func(*Assignment)) (Assignment, error) {
	a, err := assignments.Get(tx, d.ID)
	if fault.Is(err, fault.NotFound) {
		a, err = Assignment{Device: d.ID, Org: d.Org}, nil
	}
	if err != nil {
		return a, err
	}
	a.Handed = slices.Clone(a.Handed)
	change(&a)
	a.UpdatedAt = s.Now().UTC()
	return a, assignments.Set(tx, d.ID, a)
}
