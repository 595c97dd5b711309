package lwm2m_test

import (
	"context"
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"keystead/audit"
	"keystead/devices"
	"keystead/fault"
	"keystead/identity"
	"keystead/lwm2m"
	"keystead/page"
	"keystead/psk"
	"keystead/seal"
	"keystead/store/bolt"
)

type fixture struct {
	*lwm2m.Service
	now time.Time
}

func newService(t testing.TB) *fixture {
	t.Helper()
	db, err := bolt.Open(filepath.Join(t.TempDir(), "test.db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	box, err := seal.NewBox(make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	f := &fixture{now: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)}
	now := func() time.Time { return f.now }
	log := &audit.Log{DB: db, Key: make([]byte, 32), Now: now}
	dev := &devices.Service{DB: db, Audit: log, Now: now}
	keys := &psk.Service{DB: db, Devices: dev, Audit: log, Box: box, Now: now}
	keys.Observe()
	f.Service = &lwm2m.Service{DB: db, Devices: dev, PSK: keys, Audit: log, Box: box, Now: now, Config: lwm2m.DefaultConfig()}
	f.Start()
	return f
}

func admin(t testing.TB, org string) context.Context {
	return identity.NewContext(t.Context(), identity.Actor{Kind: identity.User, ID: "admin", Org: org, Role: identity.Operator})
}

func user(t testing.TB, org string) context.Context {
	return identity.NewContext(t.Context(), identity.Actor{Kind: identity.User, ID: "u", Org: org, Role: identity.Admin})
}

// server is a registry entry that differs from the usual by change.
func (f *fixture) server(t testing.TB, id string, short uint16, weight int, change ...func(*lwm2m.Server)) {
	t.Helper()
	v := lwm2m.Server{
		ID: id, Name: id, URL: "coaps://" + id + ".example:5684", Weight: weight, State: lwm2m.ServerActive,
		ShortID: short, Lifetime: 300, Binding: "U", Sink: lwm2m.Sink{Kind: lwm2m.SinkShared},
	}
	for _, c := range change {
		c(&v)
	}
	if _, err := f.AddServer(admin(t, "acme"), v, nil); err != nil {
		t.Fatal(err)
	}
}

func (f *fixture) policy(t testing.TB, org string, p lwm2m.Policy) lwm2m.Policy {
	t.Helper()
	p.Org = org
	if p.Name == "" {
		p.Name = "p"
	}
	p, err := f.AddPolicy(admin(t, org), p)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// client is a device of acme as policies look at it, that is not stored.
func client(id string, labels map[string]string) lwm2m.Subject {
	return lwm2m.Subject{
		ClientID: id, Endpoint: id, Credential: identity.PSK,
		Device: devices.Device{ID: "device of " + id, Org: "acme", Labels: labels},
	}
}

func (f *fixture) chosen(t testing.TB, u lwm2m.Subject) []string {
	t.Helper()
	d, err := f.Evaluate(user(t, "acme"), u)
	if err != nil {
		t.Fatal(err)
	}
	var ids []string
	for _, v := range d.Servers {
		ids = append(ids, v.ID)
	}
	return ids
}

func TestStickyWeightedVectors(t *testing.T) {
	f := newService(t)
	f.server(t, "eu-1", 1, 1)
	f.server(t, "eu-2", 2, 1)
	f.server(t, "us-1", 3, 2)
	f.policy(t, "acme", lwm2m.Policy{Select: lwm2m.Select{Count: 3}})
	for id, want := range map[string][]string{
		"PwjWTw_TyUaVEEGHgtnzJA": {"us-1", "eu-1", "eu-2"},
		"AAAAAAAAAAAAAAAAAAAAAA": {"us-1", "eu-1", "eu-2"},
	} {
		if got := f.chosen(t, client(id, nil)); !slices.Equal(got, want) {
			t.Errorf("%s goes to %v, want %v", id, got, want)
		}
	}
	for id, want := range map[string]map[string]float64{
		"PwjWTw_TyUaVEEGHgtnzJA": {"us-1": 31.991459, "eu-1": 1.261217, "eu-2": 1.019365},
		"AAAAAAAAAAAAAAAAAAAAAA": {"us-1": 22.403518, "eu-1": 2.387280, "eu-2": 0.859996},
	} {
		for server, score := range want {
			weight := map[string]int{"us-1": 2}[server]
			if got := lwm2m.Score(id, lwm2m.Server{ID: server, Weight: max(1, weight)}); math.Abs(got-score) > 1e-6 {
				t.Errorf("score of %s at %s = %f, want %f", id, server, got, score)
			}
		}
	}
}

func TestTenThousandDevicesOverServersByWeight(t *testing.T) {
	const n = 10000
	weights := map[string]int{"eu-1": 1, "eu-2": 1, "us-1": 2}
	f := newService(t)
	for i, id := range []string{"eu-1", "eu-2", "us-1"} {
		f.server(t, id, uint16(i+1), weights[id])
	}
	where := func() []string {
		list := make([]string, n)
		for i := range list {
			to := f.chosen(t, client(fmt.Sprintf("client-%05d", i), nil))
			if len(to) != 1 {
				t.Fatalf("client %d goes to %v", i, to)
			}
			list[i] = to[0]
		}
		return list
	}
	before, count := where(), map[string]int{}
	for _, id := range before {
		count[id]++
	}
	for id, weight := range weights {
		want := n * weight / 4
		if got := count[id]; math.Abs(float64(got-want)) > 0.03*float64(want) {
			t.Errorf("%s has %d of %d devices, want %d within 3 %%", id, got, n, want)
		}
	}
	t.Logf("10,000 devices over weights 1, 1, 2: %v", count)
	f.server(t, "ap-1", 4, 1)
	moved := 0
	for i, now := range where() {
		if now != before[i] {
			moved++
			if now != "ap-1" {
				t.Fatalf("client %d moved from %s to %s, which is not the new server", i, before[i], now)
			}
		}
	}
	if want := n / 5; math.Abs(float64(moved-want)) > 0.03*float64(want) {
		t.Errorf("a fourth server of weight 1 of 5 moves %d, want %d within 3 %%", moved, want)
	}
	t.Logf("a fourth server of weight 1 moves %d", moved)
}

func TestFiltersSayWhy(t *testing.T) {
	f := newService(t)
	f.server(t, "good", 1, 1, func(v *lwm2m.Server) { v.Region = "eu"; v.Labels = map[string]string{"tier": "gold"} })
	f.server(t, "off", 2, 1, func(v *lwm2m.Server) { v.State = lwm2m.ServerDisabled })
	f.server(t, "drain", 3, 1, func(v *lwm2m.Server) { v.State = lwm2m.ServerDraining })
	f.server(t, "sick", 4, 1, func(v *lwm2m.Server) { v.Unhealthy = true })
	f.server(t, "other", 5, 1, func(v *lwm2m.Server) { v.Organisations = []string{"umbrella"} })
	f.server(t, "certs", 6, 1, func(v *lwm2m.Server) { v.Modes = []lwm2m.Mode{"cert"} })
	f.server(t, "us", 7, 1, func(v *lwm2m.Server) { v.Region = "us"; v.Labels = map[string]string{"tier": "gold"} })
	f.server(t, "plain", 8, 1, func(v *lwm2m.Server) { v.Region = "eu" })
	f.server(t, "weightless", 9, 0, func(v *lwm2m.Server) { v.Region = "eu"; v.Labels = map[string]string{"tier": "gold"} })
	f.policy(t, "acme", lwm2m.Policy{Select: lwm2m.Select{Nearby: true, Labels: map[string]string{"tier": "gold"}}})
	d, err := f.Evaluate(user(t, "acme"), client("c", map[string]string{"region": "eu"}))
	if err != nil {
		t.Fatal(err)
	}
	why := map[string]string{}
	for _, r := range d.Reasons {
		why[r.Server] = r.Text
	}
	for server, want := range map[string]string{
		"good":       "chosen by sticky-weighted",
		"off":        "the server is disabled",
		"drain":      "the server is draining",
		"sick":       "the server is not healthy",
		"other":      "the server is not for the device's organisation",
		"certs":      "the server does not take the credential the policy gives",
		"us":         "the server is not in the device's region",
		"plain":      "the server has not the labels the policy asks for",
		"weightless": "the server has no weight",
	} {
		if why[server] != want {
			t.Errorf("%s: %q, want %q", server, why[server], want)
		}
	}
}

func TestPoliciesMatchInOrder(t *testing.T) {
	f := newService(t)
	for i, id := range []string{"a", "b", "c", "d", "e"} {
		f.server(t, id, uint16(i+1), 1)
	}
	to := func(id string) lwm2m.Select { return lwm2m.Select{Servers: []string{id}} }
	f.policy(t, "", lwm2m.Policy{Order: 0, Select: to("e")})
	f.policy(t, "acme", lwm2m.Policy{Order: 30, Match: lwm2m.Match{Labels: map[string]string{"site": "north"}}, Select: to("c")})
	f.policy(t, "acme", lwm2m.Policy{Order: 10, Match: lwm2m.Match{Endpoint: "pump-*"}, Select: to("a")})
	f.policy(t, "acme", lwm2m.Policy{Order: 20, Match: lwm2m.Match{Credential: identity.Certificate}, Select: to("b")})
	f.policy(t, "umbrella", lwm2m.Policy{Order: 0, Select: to("d")})
	cert := client("x", nil)
	cert.Credential = identity.Certificate
	for name, c := range map[string]struct {
		u    lwm2m.Subject
		want string
	}{
		"the endpoint":       {client("pump-7", map[string]string{"site": "north"}), "a"},
		"the credential":     {cert, "b"},
		"the label":          {client("x", map[string]string{"site": "north"}), "c"},
		"nothing of its own": {client("x", nil), "e"},
	} {
		if got := f.chosen(t, c.u); !slices.Equal(got, []string{c.want}) {
			t.Errorf("%s: goes to %v, want %s", name, got, c.want)
		}
	}
}

func TestStrategies(t *testing.T) {
	f := newService(t)
	at := func(lat, lon float64) func(*lwm2m.Server) {
		return func(v *lwm2m.Server) { v.Location = &lwm2m.Location{Lat: lat, Lon: lon} }
	}
	f.server(t, "london", 1, 1, at(51.5, -0.1))
	f.server(t, "tokyo", 2, 1, at(35.7, 139.7))
	f.server(t, "nowhere", 3, 1)
	for name, c := range map[string]struct {
		sel    lwm2m.Select
		labels map[string]string
		want   []string
	}{
		"nearest to Paris": {lwm2m.Select{Strategy: lwm2m.Nearest, Count: 3}, map[string]string{"lat": "48.9", "lon": "2.3"}, []string{"london", "tokyo", "nowhere"}},
		"nearest to Osaka": {lwm2m.Select{Strategy: lwm2m.Nearest, Count: 3}, map[string]string{"lat": "34.7", "lon": "135.5"}, []string{"tokyo", "london", "nowhere"}},
		"failover":         {lwm2m.Select{Strategy: lwm2m.Failover, Servers: []string{"nowhere", "tokyo"}, Count: 2}, nil, []string{"nowhere", "tokyo"}},
	} {
		p := f.policy(t, "acme", lwm2m.Policy{Select: c.sel})
		if got := f.chosen(t, client("x", c.labels)); !slices.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
		if err := f.DeletePolicy(user(t, "acme"), p.ID); err != nil {
			t.Fatal(err)
		}
	}
	f.policy(t, "acme", lwm2m.Policy{Select: lwm2m.Select{Strategy: lwm2m.RoundRobin}})
	var seen []string
	for range 4 {
		seen = append(seen, f.chosen(t, client("x", nil))...)
	}
	if want := []string{"london", "nowhere", "tokyo", "london"}; !slices.Equal(seen, want) {
		t.Errorf("round robin: %v, want %v", seen, want)
	}
}

func TestPinUnpinAndTheLifeOfAServer(t *testing.T) {
	f := newService(t)
	f.server(t, "a", 1, 1000)
	f.server(t, "b", 2, 1, func(v *lwm2m.Server) { v.Capacity = 1 })
	ctx := user(t, "acme")
	d, err := f.Devices.Create(ctx, devices.New{Name: "x"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Pin(user(t, "umbrella"), d.ID, []string{"b"}); !fault.Is(err, fault.NotFound) {
		t.Errorf("pinning another organisation's device: %v, want NotFound", err)
	}
	if _, err := f.Pin(ctx, d.ID, []string{"none"}); !fault.Is(err, fault.Invalid) {
		t.Errorf("pinning to no server: %v, want Invalid", err)
	}
	if _, err := f.Pin(ctx, d.ID, []string{"b"}); err != nil {
		t.Fatal(err)
	}
	u, err := f.SubjectOf(ctx, d.ID)
	if err != nil {
		t.Fatal(err)
	}
	if got := f.chosen(t, u); !slices.Equal(got, []string{"b"}) {
		t.Errorf("pinned to b, it goes to %v", got)
	}
	if got := f.chosen(t, client("other", nil)); !slices.Equal(got, []string{"a"}) {
		t.Errorf("another goes to %v, want a: b is full", got)
	}
	if err := f.DeleteServer(admin(t, "acme"), "b", false); !fault.Is(err, fault.Conflict) {
		t.Errorf("deleting a server with a device: %v, want Conflict", err)
	}
	if err := f.DeleteServer(admin(t, "acme"), "b", true); err != nil {
		t.Fatal(err)
	}
	if got := f.chosen(t, u); !slices.Equal(got, []string{"a"}) {
		t.Errorf("after its server has gone it goes to %v, want a", got)
	}
	if err := f.Unpin(ctx, d.ID); err != nil {
		t.Errorf("Unpin: %v", err)
	}
	if p, err := f.Servers(ctx, page.Request{}); err != nil || len(p.Items) != 1 {
		t.Errorf("servers: %v, %v; want one", p.Items, err)
	}
}

func TestBadServersAndPolicies(t *testing.T) {
	f := newService(t)
	usage := int64(4)
	for name, change := range map[string]func(*lwm2m.Server){
		"id":       func(v *lwm2m.Server) { v.ID = "Not OK" },
		"url":      func(v *lwm2m.Server) { v.URL = "http://x" },
		"weight":   func(v *lwm2m.Server) { v.Weight = 1001 },
		"short id": func(v *lwm2m.Server) { v.ShortID = 65535 },
		"binding":  func(v *lwm2m.Server) { v.Binding = "X" },
		"state":    func(v *lwm2m.Server) { v.State = "" },
		"usage":    func(v *lwm2m.Server) { v.CertificateUsage = &usage },
		"location": func(v *lwm2m.Server) { v.Location = &lwm2m.Location{Lat: 91} },
		"cert":     func(v *lwm2m.Server) { v.Certificate = []byte("x") },
		"sink":     func(v *lwm2m.Server) { v.Sink.Kind = lwm2m.SinkWebhook },
	} {
		v := lwm2m.Server{ID: "a", Name: "a", URL: "coaps://a:1", Weight: 1, State: lwm2m.ServerActive, ShortID: 1, Binding: "U", Sink: lwm2m.Sink{Kind: lwm2m.SinkShared}}
		change(&v)
		if _, err := f.AddServer(admin(t, "acme"), v, nil); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v, want Invalid", name, err)
		}
	}
	for name, p := range map[string]lwm2m.Policy{
		"no name":  {},
		"strategy": {Name: "x", Select: lwm2m.Select{Strategy: "magic"}},
		"count":    {Name: "x", Select: lwm2m.Select{Count: 4}},
		"mode":     {Name: "x", Mode: "rpk"},
		"deletes":  {Name: "x", Deletes: []string{"0"}},
		"pattern":  {Name: "x", Match: lwm2m.Match{Endpoint: "["}},
		"source":   {Name: "x", Match: lwm2m.Match{Sources: []string{"192.0.2.1"}}},
	} {
		if _, err := f.AddPolicy(user(t, "acme"), p); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v, want Invalid", name, err)
		}
	}
}
