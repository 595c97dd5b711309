package lwm2m_test

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"keystead/coap"
	"keystead/devices"
	"keystead/fault"
	"keystead/identity"
	"keystead/lwm2m"
	"keystead/page"
	"keystead/psk"
	"keystead/seal"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// device is an LwM2M client at the other end of a session, in memory: it keeps
// what it is written, and misbehaves where answer says so.
type device struct {
	mu        sync.Mutex
	calls     []string
	instances map[string]lwm2m.Instance
	discover  string
	answer    func(c coap.Call) (coap.Reply, error, bool) // the third: instead of behaving
	ended     []func()
	over      bool
}

func newDevice() *device {
	return &device{instances: map[string]lwm2m.Instance{}, discover: `</>;lwm2m=1.1,</0>,</0/1>;uri="coaps://bs",</1>`}
}

func (d *device) ID() string                       { return "s" }
func (d *device) Remote() netip.AddrPort           { return netip.MustParseAddrPort("192.0.2.7:5683") }
func (d *device) Transport() identity.Transport    { return identity.CoAPUDP }
func (d *device) Proof() identity.Proof            { return identity.Proof{} }
func (d *device) Chain() []*x509.Certificate       { return nil }
func (d *device) PSK() string                      { return "" }
func (d *device) Actor() (identity.Actor, bool)    { return identity.Actor{}, false }
func (d *device) SignIn(identity.Actor, time.Time) {}
func (d *device) SignOut()                         {}
func (d *device) Notify(string)                    {}
func (d *device) Value(any) any                    { return nil }
func (d *device) SetValue(any, any)                {}

func (d *device) OnEnd(fn func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.ended = append(d.ended, fn)
}

// Close ends the session, as the peer's going away does.
func (d *device) Close(string) {
	d.mu.Lock()
	ended := d.ended
	d.ended, d.over = nil, true
	d.mu.Unlock()
	for _, fn := range ended {
		fn()
	}
}

var errOver = errors.New("the session is over")

func (d *device) Do(ctx context.Context, c coap.Call) (coap.Reply, error) {
	d.mu.Lock()
	d.calls = append(d.calls, c.Method.String()+" "+c.Path)
	if d.over {
		d.mu.Unlock()
		return coap.Reply{}, errOver
	}
	answer := d.answer
	d.mu.Unlock()
	if answer != nil {
		if reply, err, instead := answer(c); instead {
			if errors.Is(err, context.DeadlineExceeded) { // silence
				<-ctx.Done()
				return coap.Reply{}, ctx.Err()
			}
			return reply, err
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	switch c.Method {
	case coap.GET:
		return coap.Reply{Code: coap.Content, Body: []byte(d.discover)}, nil
	case coap.DELETE:
		return coap.Reply{Code: coap.Deleted}, nil
	case coap.PUT:
		list, err := lwm2m.Decode(c.Format, c.Path, slices.Clone(c.Body)) // the body is wiped once it was sent
		if err != nil || len(list) != 1 {
			return coap.Reply{Code: coap.BadRequest}, nil
		}
		d.instances[c.Path] = list[0]
	default:
	}
	return coap.Reply{Code: coap.Changed}, nil
}

func (d *device) called() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Clone(d.calls)
}

// bench is a service with a server, a device with a key, and its actor.
type bench struct {
	*fixture
	actor  identity.Actor
	key    psk.Key
	secret seal.Secret
	stop   func()
}

func newBench(t *testing.T) *bench {
	t.Helper()
	b := &bench{fixture: newService(t)}
	b.server(t, "dm", 101, 1)
	var err error
	if b.key, b.secret, err = b.PSK.Create(user(t, "acme"), psk.New{Identity: "PwjWTw_TyUaVEEGHgtnzJA"}); err != nil {
		t.Fatal(err)
	}
	if b.actor, err = b.PSK.Resolve(t.Context(), identity.Proof{PSK: string(b.key.Identity)}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.WithoutCancel(t.Context()))
	done := make(chan error, 1)
	go func() { done <- b.Run(ctx) }()
	b.stop = sync.OnceFunc(func() {
		cancel()
		<-done
	})
	t.Cleanup(b.stop)
	return b
}

// request makes a request of the device, as the gateway would, and sends the answer.
func (b *bench) request(t *testing.T, d *device, method coap.Code, path, query string, as ...identity.Actor) (coap.Response, error) {
	t.Helper()
	r := b.unsent(t, d, method, path, query, as...)
	resp, err := r()
	if err == nil && resp.Sent != nil {
		resp.Sent()
	}
	return resp, err
}

func (b *bench) unsent(t *testing.T, d *device, method coap.Code, path, query string, as ...identity.Actor) func() (coap.Response, error) {
	t.Helper()
	actor := b.actor
	if len(as) > 0 {
		actor = as[0]
	}
	r := &coap.Request{Session: d, Actor: actor, Method: method, Path: path}
	for q := range strings.SplitSeq(query, "&") {
		if accept, ok := strings.CutPrefix(q, "accept="); ok {
			var n uint32
			fmt.Sscan(accept, &n)
			r.Options = r.Options.AddUint(coap.Accept, n)
		} else if q != "" {
			r.Options = r.Options.Add(coap.URIQuery, []byte(q))
		}
	}
	pattern := path
	if location, ok := strings.CutPrefix(path, "/rd/"); ok {
		pattern = "/rd/{id}"
		r = r.WithVars("id", location)
	}
	for _, route := range b.Routes() {
		if route.Method == method && route.Path == pattern {
			return func() (coap.Response, error) {
				return route.Handle(identity.NewContext(t.Context(), actor), r)
			}
		}
	}
	t.Fatalf("no route %s %s", method, path)
	return nil
}

// ended waits for the n-th bootstrap of acme to be recorded.
func (b *bench) ended(t *testing.T, n int) lwm2m.Session {
	t.Helper()
	events, stop, err := b.Tail(user(t, "acme"))
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	for {
		p, err := b.Sessions(user(t, "acme"), "", page.Request{})
		if err != nil {
			t.Fatal(err)
		}
		if len(p.Items) >= n {
			return p.Items[n-1]
		}
		select {
		case <-events:
		case <-time.After(10 * time.Second):
			t.Fatalf("bootstrap %d does not end; there are %+v", n, p.Items)
		}
	}
}

func code(err error) coap.Code { return coap.Failure(err).Code }

func TestBootstrapLeavesTheBootstrapAccountAlone(t *testing.T) {
	b := newBench(t)
	d := newDevice()
	resp, err := b.request(t, d, coap.POST, "/bs", "ep=PwjWTw_TyUaVEEGHgtnzJA&pct=112&x=unknown")
	if err != nil || resp.Code != coap.Changed {
		t.Fatalf("POST /bs = %v, %v", resp.Code, err)
	}
	v := b.ended(t, 1)
	if v.Outcome != lwm2m.Success || v.Version != "1.1" || !slices.Equal(v.Servers, []string{"dm"}) {
		t.Errorf("session = %+v, want SUCCESS with 1.1", v)
	}
	if want := []string{"GET /", "DELETE /0", "DELETE /1", "PUT /0/0", "PUT /1/0", "POST /bs"}; !slices.Equal(d.calls, want) {
		t.Errorf("the device was asked %v, want %v", d.calls, want)
	}
	security := d.instances["/0/0"]
	for id, want := range map[uint16]lwm2m.Value{0: "coaps://dm.example:5684", 1: false, 2: int64(0), 3: []byte("PwjWTw_TyUaVEEGHgtnzJA"), 5: []byte(b.secret), 10: int64(101)} {
		if got := security.Resource(id); !reflect.DeepEqual(got, want) {
			t.Errorf("/0/0/%d = %v, want %v", id, got, want)
		}
	}
	if a := d.instances["/1/0"]; a.Resource(0) != int64(101) || a.Resource(1) != int64(300) || a.Resource(7) != "U" {
		t.Errorf("/1/0 = %+v", a)
	}
	t.Run("the account being 0", func(t *testing.T) {
		d := newDevice()
		d.discover = `</>;lwm2m=1.1,</0/0>,</1>`
		if _, err := b.request(t, d, coap.POST, "/bs", ""); err != nil {
			t.Fatal(err)
		}
		b.ended(t, 2)
		if _, ok := d.instances["/0/1"]; !ok || len(d.instances) != 2 {
			t.Errorf("written: %v, want /0/1 and /1/0", d.calls)
		}
	})
}

func TestFormatsFollowTheClient(t *testing.T) {
	b := newBench(t)
	old := lwm2m.FormatOldTLV
	n := 0
	for name, c := range map[string]struct {
		query        string
		policy       *coap.Format
		object0, one coap.Format
	}{
		"no pct":                      {"", nil, coap.LwM2MTLV, coap.LwM2MTLV},
		"SenML CBOR":                  {"pct=112", nil, coap.SenMLCBOR, coap.SenMLCBOR},
		"SenML JSON, TLV for keys":    {"pct=110", nil, coap.LwM2MTLV, coap.SenMLJSON},
		"LwM2M CBOR":                  {"pct=11544", nil, coap.LwM2MCBOR, coap.LwM2MCBOR},
		"TLV":                         {"pct=11542", nil, coap.LwM2MTLV, coap.LwM2MTLV},
		"the policy's, without a pct": {"", &old, lwm2m.FormatOldTLV, lwm2m.FormatOldTLV},
	} {
		p := b.policy(t, "acme", lwm2m.Policy{Format: c.policy})
		d := newDevice()
		if _, err := b.request(t, d, coap.POST, "/bs", c.query); err != nil {
			t.Fatal(err)
		}
		n++
		v := b.ended(t, n)
		got := map[string]coap.Format{}
		for _, s := range v.Steps {
			if s.Format != nil {
				got[s.Path] = *s.Format
			}
		}
		if got["/0/0"] != c.object0 || got["/1/0"] != c.one {
			t.Errorf("%s: written in %v, want %d and %d", name, got, c.object0, c.one)
		}
		if err := b.DeletePolicy(user(t, "acme"), p.ID); err != nil {
			t.Fatal(err)
		}
	}
}

func TestMisbehavingClients(t *testing.T) {
	refuse := func(method coap.Code, path string, code coap.Code) func(coap.Call) (coap.Reply, error, bool) {
		return func(c coap.Call) (coap.Reply, error, bool) {
			return coap.Reply{Code: code, Body: []byte("no\x1b[2J")}, nil, c.Method == method && strings.HasPrefix(c.Path, path)
		}
	}
	finishes := 0
	for name, c := range map[string]struct {
		answer  func(coap.Call) (coap.Reply, error, bool)
		outcome lwm2m.Outcome
		check   func(t *testing.T, d *device, v lwm2m.Session)
	}{
		"refuses Discover": {refuse(coap.GET, "/", coap.BadRequest), lwm2m.Success, func(t *testing.T, d *device, _ lwm2m.Session) {
			if _, ok := d.instances["/0/1"]; !ok {
				t.Errorf("written: %v, want /0/1: its bootstrap account is taken to be 0", d.called())
			}
		}},
		"refuses Delete": {refuse(coap.DELETE, "/", coap.BadRequest), lwm2m.Success, nil},
		"knows TLV only": {func(c coap.Call) (coap.Reply, error, bool) {
			return coap.Reply{Code: coap.UnsupportedContentFormat}, nil, c.Method == coap.PUT && c.Format != coap.LwM2MTLV
		}, lwm2m.Success, func(t *testing.T, d *device, _ lwm2m.Session) {
			if len(d.instances) != 2 {
				t.Errorf("written: %v, want both accounts after a retry", d.called())
			}
		}},
		"refuses a write": {refuse(coap.PUT, "/1", coap.BadRequest), lwm2m.RequestFailed, func(t *testing.T, d *device, v lwm2m.Session) {
			if slices.Contains(d.called(), "POST /bs") {
				t.Error("told to finish all the same")
			}
			if !strings.Contains(v.Detail, "4.00 no[2J") {
				t.Errorf("detail %q, want what the device said, made safe", v.Detail)
			}
		}},
		"refuses to finish": {refuse(coap.POST, "/bs", coap.NotAcceptable), lwm2m.FinishFailed, func(t *testing.T, d *device, _ lwm2m.Session) {
			calls := strings.Join(d.called(), " ")
			if got := strings.Count(calls, "POST /bs"); got != 2 {
				t.Errorf("told to finish %d times, want one repair", got)
			}
		}},
		"refuses to finish once": {func(c coap.Call) (coap.Reply, error, bool) {
			if c.Path == "/bs" {
				finishes++
			}
			return coap.Reply{Code: coap.NotAcceptable}, nil, c.Path == "/bs" && finishes == 1
		}, lwm2m.Success, nil},
		"is silent": {func(coap.Call) (coap.Reply, error, bool) { return coap.Reply{}, context.DeadlineExceeded, true }, lwm2m.TimedOut, nil},
		"goes away": {func(coap.Call) (coap.Reply, error, bool) { return coap.Reply{}, errOver, true }, lwm2m.ClientGone, nil},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.policy(t, "acme", lwm2m.Policy{Mode: lwm2m.ModePSK})
			b.Config.StepTimeout = 50 * time.Millisecond
			d := newDevice()
			d.answer = c.answer
			if name == "goes away" {
				d.answer = func(call coap.Call) (coap.Reply, error, bool) {
					d.Close("")
					return c.answer(call)
				}
			}
			if _, err := b.request(t, d, coap.POST, "/bs", "pct=112"); err != nil {
				t.Fatal(err)
			}
			v := b.ended(t, 1)
			if v.Outcome != c.outcome {
				t.Errorf("outcome %s (%s), want %s; asked %v", v.Outcome, v.Detail, c.outcome, d.called())
			}
			if c.check != nil {
				c.check(t, d, v)
			}
			b.stop() // what is settled is settled by now
			keys, err := b.PSK.List(user(t, "acme"), b.key.Device, page.Request{})
			if err != nil {
				t.Fatal(err)
			}
			want := 1
			if c.outcome == lwm2m.Success {
				want = 2
			}
			if len(keys.Items) != want {
				t.Errorf("the device has %d keys, want %d: %+v", len(keys.Items), want, keys.Items)
			}
			if _, err := b.PSK.Secret(t.Context(), b.key.Identity); err != nil {
				t.Errorf("the key it had: %v, want it good still", err)
			}
		})
	}
}

func TestASecondRequestReplacesTheFirst(t *testing.T) {
	b := newBench(t)
	b.policy(t, "acme", lwm2m.Policy{Mode: lwm2m.ModePSK})
	d := newDevice()
	asked := make(chan struct{}, 1)
	d.answer = func(coap.Call) (coap.Reply, error, bool) {
		asked <- struct{}{}
		return coap.Reply{}, context.DeadlineExceeded, true
	}
	if _, err := b.request(t, d, coap.POST, "/bs", ""); err != nil {
		t.Fatal(err)
	}
	<-asked
	second := newDevice()
	if _, err := b.request(t, second, coap.POST, "/bs", ""); err != nil {
		t.Fatal(err)
	}
	if v := b.ended(t, 1); v.Outcome != lwm2m.Cancelled || v.Detail == "" {
		t.Errorf("the first ended %s %q, want CANCELLED and why", v.Outcome, v.Detail)
	}
	if v := b.ended(t, 2); v.Outcome != lwm2m.Success {
		t.Errorf("the second ended %s %q, want SUCCESS", v.Outcome, v.Detail)
	}
}

func TestEndpointNames(t *testing.T) {
	b := newBench(t)
	n := 0
	for ep, want := range map[string]coap.Code{
		"":                                     coap.Changed,
		"PwjWTw_TyUaVEEGHgtnzJA":               coap.Changed,
		"4fd6083f-d30f-46c9-9510-418782d9f324": coap.Changed,
		"urn:uuid:4fd6083f-d30f-46c9-9510-418782d9f324": coap.Changed,
		b.key.Device:             coap.Changed,
		"oFIrQFrW8EWcZ5u7eGfrkw": coap.BadRequest,
		"ep":                     coap.BadRequest,
		strings.Repeat("x", 257): coap.BadRequest,
		"a\xff":                  coap.BadRequest,
	} {
		query := "ep=" + ep
		if ep == "" {
			query = ""
		}
		resp, err := b.request(t, newDevice(), coap.POST, "/bs", query)
		if err != nil {
			resp.Code = code(err)
		}
		if resp.Code != want {
			t.Errorf("ep=%q: %v, want %v", ep, resp.Code, want)
		}
		if len(ep) < 257 && ep != "a\xff" {
			n++
			v := b.ended(t, n)
			if want == coap.BadRequest && v.Outcome != lwm2m.Unauthorized {
				t.Errorf("ep=%q ended %s, want UNAUTHORIZED", ep, v.Outcome)
			}
		}
	}
	for query, want := range map[string]coap.Code{
		"ep=a&ep=a": coap.BadRequest, "pct=x": coap.BadRequest, "pct=99": coap.UnsupportedContentFormat, "lt=0": coap.BadRequest,
	} {
		if _, err := b.request(t, newDevice(), coap.POST, "/bs", query); code(err) != want {
			t.Errorf("%s: %v, want %v", query, code(err), want)
		}
	}
}

func TestADeviceThatAsksTooOftenWaits(t *testing.T) {
	b := newBench(t)
	for n := range 61 {
		_, err := b.request(t, newDevice(), coap.POST, "/bs", "ep=wrong")
		if want := coap.BadRequest; n < 60 && code(err) != want {
			t.Fatalf("request %d: %v, want %v", n, err, want)
		}
		if n == 60 && (code(err) != coap.TooManyRequests || coap.Failure(err).MaxAge <= 0) {
			t.Errorf("request %d: %v, want 4.29 with the time to wait", n, err)
		}
	}
}

func TestNoServerIsNoBootstrap(t *testing.T) {
	b := newBench(t)
	if err := b.DeleteServer(admin(t, "acme"), "dm", false); err != nil {
		t.Fatal(err)
	}
	b.server(t, "foreign", 7, 1, func(v *lwm2m.Server) { v.Organisations = []string{"umbrella"} })
	if _, err := b.request(t, newDevice(), coap.POST, "/bs", ""); code(err) != coap.BadRequest {
		t.Errorf("POST /bs = %v, want 4.00", err)
	}
	if v := b.ended(t, 1); v.Outcome != lwm2m.NoConfig {
		t.Errorf("ended %s, want NO_BOOTSTRAP_CONFIG", v.Outcome)
	}
}

// states returns the state of each key of the bench's device.
func (b *bench) states(t *testing.T) map[string]devices.CredentialState {
	t.Helper()
	d, err := b.Devices.Get(user(t, "acme"), b.key.Device)
	if err != nil {
		t.Fatal(err)
	}
	states := map[string]devices.CredentialState{}
	for _, c := range d.Credentials {
		states[c.ID] = c.State
	}
	return states
}

func (b *bench) as(t *testing.T, key string) identity.Actor {
	t.Helper()
	a, err := b.PSK.Resolve(t.Context(), identity.Proof{PSK: key})
	if err != nil {
		t.Fatalf("%s: %v", key, err)
	}
	return a
}

func TestRotationInTwoPhases(t *testing.T) {
	b := newBench(t)
	b.policy(t, "acme", lwm2m.Policy{Mode: lwm2m.ModePSK, GraceHours: 2})
	const first, second = "PwjWTw_TyUaVEEGHgtnzJA.1", "PwjWTw_TyUaVEEGHgtnzJA.2"
	for n := range 2 {
		d := newDevice()
		if _, err := b.request(t, d, coap.POST, "/bs", "pct=112"); err != nil {
			t.Fatal(err)
		}
		if v := b.ended(t, n+1); v.Outcome != lwm2m.Success {
			t.Fatalf("ended %s %s", v.Outcome, v.Detail)
		}
		if got := string(d.instances["/0/0"].Resource(3).([]byte)); got != []string{first, second}[n] {
			t.Errorf("bootstrap %d hands over %s", n+1, got)
		}
	}
	if got := b.states(t); got[first] != devices.CredentialRetiring || got[second] != devices.CredentialActive || got[string(b.key.Identity)] != devices.CredentialActive {
		t.Errorf("after the second: %v, want the first retiring and the bootstrap key as it was", got)
	}
	b.as(t, first) // still good
	if _, err := b.request(t, newDevice(), coap.POST, "/rd", "lt=60&lwm2m=1.1&b=U", b.as(t, second)); err != nil {
		t.Fatal(err)
	}
	if got := b.states(t); got[first] != devices.CredentialRevoked {
		t.Errorf("after the first use of the second: %v, want the first revoked", got)
	}
	t.Run("the grace being over", func(t *testing.T) {
		if _, err := b.request(t, newDevice(), coap.POST, "/bs", "pct=112"); err != nil {
			t.Fatal(err)
		}
		b.ended(t, 3)
		b.as(t, second)
		b.now = b.now.Add(2 * time.Hour)
		if _, err := b.PSK.Resolve(t.Context(), identity.Proof{PSK: second}); !fault.Is(err, fault.Unauthenticated) {
			t.Errorf("after the grace: %v, want Unauthenticated", err)
		}
	})
}

// TestTheBootstrapAccountIsNeverHalfReplaced has the write of the new key end in each
// way it can: the device can always come back.
func TestTheBootstrapAccountIsNeverHalfReplaced(t *testing.T) {
	const old, next = "PwjWTw_TyUaVEEGHgtnzJA", "PwjWTw_TyUaVEEGHgtnzJA.1"
	at := func(c coap.Call) bool { return c.Method == coap.PUT && c.Path == "/0/1" }
	for name, c := range map[string]struct {
		discover string
		answer   func(coap.Call) (coap.Reply, error, bool)
		outcome  lwm2m.Outcome
		next     devices.CredentialState
	}{
		"it is taken":   {"", nil, lwm2m.Success, devices.CredentialActive},
		"it is refused": {"", func(c coap.Call) (coap.Reply, error, bool) { return coap.Reply{Code: coap.BadRequest}, nil, at(c) }, lwm2m.RequestFailed, devices.CredentialRevoked},
		"nobody knows":  {"", func(c coap.Call) (coap.Reply, error, bool) { return coap.Reply{}, context.DeadlineExceeded, at(c) }, lwm2m.TimedOut, devices.CredentialActive},
		"the device refuses to finish": {"", func(c coap.Call) (coap.Reply, error, bool) {
			return coap.Reply{Code: coap.NotAcceptable}, nil, c.Path == "/bs"
		}, lwm2m.FinishFailed, devices.CredentialActive},
		"a write before it is refused": {"", func(c coap.Call) (coap.Reply, error, bool) {
			return coap.Reply{Code: coap.BadRequest}, nil, c.Path == "/1/0"
		}, lwm2m.RequestFailed, devices.CredentialRevoked},
		"the device names no account": {`</>;lwm2m=1.1,</0>,</1>`, nil, lwm2m.RequestFailed, devices.CredentialRevoked},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.Config.StepTimeout = 50 * time.Millisecond
			b.policy(t, "acme", lwm2m.Policy{Account: lwm2m.RotateAccount})
			d := newDevice()
			d.answer = c.answer
			if c.discover != "" {
				d.discover = c.discover
			}
			if _, err := b.request(t, d, coap.POST, "/bs", "pct=112"); err != nil {
				t.Fatal(err)
			}
			if v := b.ended(t, 1); v.Outcome != c.outcome {
				t.Fatalf("ended %s %s, want %s; asked %v", v.Outcome, v.Detail, c.outcome, d.called())
			}
			if got := b.states(t); got[next] != c.next || got[old] != devices.CredentialActive {
				t.Fatalf("the keys are %v, want the new one %s and the old one active", got, c.next)
			}
			if c.next != devices.CredentialActive {
				return
			}
			if _, err := b.request(t, newDevice(), coap.POST, "/rd", "", b.as(t, next)); err != nil {
				t.Fatal(err)
			}
			if got := b.states(t); got[next] != devices.CredentialActive || got[old] != devices.CredentialRevoked {
				t.Errorf("after the first use of the new key: %v, want it alone", got)
			}
		})
	}
}

func TestWhatIsWrittenFollowsPolicyServerAndVersion(t *testing.T) {
	b := newBench(t)
	b.server(t, "second", 102, 1, func(v *lwm2m.Server) { v.Security = map[string]string{"13": "3", "25": "coaps://a coaps://b"} })
	b.policy(t, "acme", lwm2m.Policy{
		Select: lwm2m.Select{Count: 2}, Resources: map[string]string{"13": "7", "16": "true", "5": "60", "26": "1"},
		Access: []lwm2m.Access{{Object: 3, Owner: "dm", Rights: map[string]int64{"default": 1, "second": 3, "elsewhere": 31}}},
	})
	for n, c := range []struct {
		version, query string
		server         map[uint16]lwm2m.Value // of /1/0; nil for none
		uris           int                    // of /0/x/25
	}{
		{"1.0", "", map[uint16]lwm2m.Value{5: int64(60), 13: nil, 16: nil, 26: nil}, 0},
		{"1.1", "pct=112", map[uint16]lwm2m.Value{5: int64(60), 13: int64(7), 16: true, 26: nil}, 0},
		{"1.2", "pct=11544", map[uint16]lwm2m.Value{5: int64(60), 13: int64(7), 16: true, 26: int64(1)}, 2},
	} {
		d := newDevice()
		d.discover = `</>;lwm2m=` + c.version + `,</0/1>;uri="coaps://bs"`
		if _, err := b.request(t, d, coap.POST, "/bs", c.query); err != nil {
			t.Fatal(err)
		}
		if v := b.ended(t, n+1); v.Outcome != lwm2m.Success {
			t.Fatalf("%s: ended %s %s", c.version, v.Outcome, v.Detail)
		}
		for id, want := range c.server {
			if got := d.instances["/1/0"].Resource(id); got != want {
				t.Errorf("%s: /1/0/%d = %v, want %v", c.version, id, got, want)
			}
		}
		uris := 0
		for _, at := range []string{"/0/0", "/0/2"} {
			for _, r := range d.instances[at].Resources {
				if r.ID == 25 {
					uris = len(r.Values)
				}
			}
		}
		if uris != c.uris {
			t.Errorf("%s: %d secondary URIs, want %d", c.version, uris, c.uris)
		}
		acl := d.instances["/2/0"]
		want := lwm2m.Resource{ID: 2, Values: []lwm2m.Element{{ID: 0, Value: int64(1)}, {ID: 102, Value: int64(3)}}}
		if acl.Resource(0) != int64(3) || acl.Resource(3) != int64(101) || len(acl.Resources) != 4 || !reflect.DeepEqual(acl.Resources[2], want) {
			t.Errorf("%s: /2/0 = %+v, want the rights of those the device has", c.version, acl)
		}
	}
	for name, p := range map[string]lwm2m.Policy{
		"a resource that is not to be set": {Resources: map[string]string{"0": "1"}},
		"no number":                        {Resources: map[string]string{"13": "x"}},
		"rights":                           {Access: []lwm2m.Access{{Rights: map[string]int64{"a": 32}}}},
		"blind rotation":                   {Account: lwm2m.RotateAccount, SkipDiscover: true},
	} {
		p.Name = name
		if _, err := b.AddPolicy(user(t, "acme"), p); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v, want Invalid", name, err)
		}
	}
}

// A device goes to its server the moment it has answered Finish, which is before
// that answer was written down: its new key was unknown then, and the handshake
// lost.
func TestAHandshakeWaitsForTheBootstrapToBeSettled(t *testing.T) {
	b := newBench(t)
	b.policy(t, "acme", lwm2m.Policy{Mode: lwm2m.ModePSK})
	const key = "PwjWTw_TyUaVEEGHgtnzJA.1"
	if b.Await(t.Context(), key) {
		t.Error("a key that nobody was given is waited for")
	}
	d := newDevice()
	waited := make(chan error, 1)
	d.answer = func(c coap.Call) (coap.Reply, error, bool) {
		if c.Path == "/bs" {
			if _, err := b.PSK.Secret(t.Context(), key); !fault.Is(err, fault.NotFound) {
				t.Errorf("before Finish was answered: %v, want the key not good", err)
			}
			began := make(chan struct{})
			go func() {
				close(began)
				b.Await(t.Context(), key)
				_, err := b.PSK.Secret(t.Context(), key)
				waited <- err
			}()
			<-began
		}
		return coap.Reply{}, nil, false
	}
	if _, err := b.request(t, d, coap.POST, "/bs", ""); err != nil {
		t.Fatal(err)
	}
	if err := <-waited; err != nil {
		t.Errorf("after the wait: %v, want the key", err)
	}
	b.ended(t, 1)
	if b.Await(t.Context(), key) {
		t.Error("a key of a bootstrap that is over is waited for")
	}
}

func TestPackIsConfirmedByItsFirstUse(t *testing.T) {
	b := newBench(t)
	b.policy(t, "acme", lwm2m.Policy{Mode: lwm2m.ModePSK})
	for _, format := range []coap.Format{coap.SenMLCBOR, coap.SenMLJSON, coap.LwM2MCBOR} {
		resp, err := b.request(t, newDevice(), coap.GET, "/bspack", fmt.Sprintf("ep=PwjWTw_TyUaVEEGHgtnzJA&accept=%d", format))
		if err != nil || resp.Code != coap.Content || resp.Format != format {
			t.Fatalf("GET /bspack in %d = %v %v, %v", format, resp.Code, resp.Format, err)
		}
		list, err := lwm2m.Decode(format, "/0", resp.Body)
		if err != nil || len(list) != 2 || list[0].Path() != "/0/1" || list[1].Path() != "/1/0" {
			t.Errorf("the pack in %d has %+v, %v", format, list, err)
		}
	}
	got := b.states(t)
	for _, key := range []string{".1", ".2", ".3"} {
		if got["PwjWTw_TyUaVEEGHgtnzJA"+key] != devices.CredentialActive {
			t.Errorf("after the packs: %v, want each good until one is used", got)
		}
	}
	if _, err := b.request(t, newDevice(), coap.POST, "/rd", "", b.as(t, "PwjWTw_TyUaVEEGHgtnzJA.3")); err != nil {
		t.Fatal(err)
	}
	if got := b.states(t); got["PwjWTw_TyUaVEEGHgtnzJA.1"] != devices.CredentialRevoked || got["PwjWTw_TyUaVEEGHgtnzJA.3"] != devices.CredentialActive {
		t.Errorf("after the use of the third: %v, want the others revoked", got)
	}
	if _, err := b.request(t, newDevice(), coap.GET, "/bspack", "accept=40"); code(err) != coap.NotAcceptable {
		t.Errorf("in the link format: %v, want 4.06", err)
	}
}

func TestADeviceInALoopDoesNotGatherKeys(t *testing.T) {
	b := newBench(t)
	b.policy(t, "acme", lwm2m.Policy{Mode: lwm2m.ModePSK})
	for n := range 12 {
		if n%2 == 0 {
			if _, err := b.request(t, newDevice(), coap.POST, "/bs", "pct=112"); err != nil {
				t.Fatal(err)
			}
		} else if _, err := b.request(t, newDevice(), coap.GET, "/bspack", "accept=112"); err != nil {
			t.Fatal(err)
		}
		b.ended(t, n+1)
	}
	for range 8 {
		if _, err := b.request(t, newDevice(), coap.GET, "/bspack", "accept=112"); err != nil {
			t.Fatal(err)
		}
	}
	good := 0
	for _, state := range b.states(t) {
		if state != devices.CredentialRevoked {
			good++
		}
	}
	if good < 2 || good > 8 {
		t.Errorf("after 20 bootstraps %d keys are good, want a few: %v", good, b.states(t))
	}
	b.as(t, "PwjWTw_TyUaVEEGHgtnzJA.20")
}

func TestAPushThatFailsStopsTheBootstrap(t *testing.T) {
	b := newBench(t)
	if err := b.DeleteServer(admin(t, "acme"), "dm", false); err != nil {
		t.Fatal(err)
	}
	v := lwm2m.Server{ID: "dm", URL: "coaps://x:1", Weight: 1, State: lwm2m.ServerActive, ShortID: 5, Binding: "U", Sink: lwm2m.Sink{Kind: lwm2m.SinkWebhook, URL: "https://sink"}}
	if _, err := b.AddServer(admin(t, "acme"), v, seal.Secret("the webhook's key")); err != nil {
		t.Fatal(err)
	}
	b.policy(t, "acme", lwm2m.Policy{Mode: lwm2m.ModePSK})
	var pushed lwm2m.Pushed
	b.Push = func(_ context.Context, p lwm2m.Pushed) error {
		pushed = p
		pushed.HMACKey = slices.Clone(p.HMACKey)
		return errors.New("connection refused")
	}
	d := newDevice()
	if _, err := b.request(t, d, coap.POST, "/bs", ""); err != nil {
		t.Fatal(err)
	}
	if s := b.ended(t, 1); s.Outcome != lwm2m.PushFailed {
		t.Errorf("ended %s, want CREDENTIAL_PUSH_FAILED", s.Outcome)
	}
	if len(d.called()) != 0 {
		t.Errorf("the device was asked %v, want nothing before its server knows", d.called())
	}
	if string(pushed.HMACKey) != "the webhook's key" || pushed.ID != "PwjWTw_TyUaVEEGHgtnzJA.1" || pushed.Endpoint != "PwjWTw_TyUaVEEGHgtnzJA" {
		t.Errorf("pushed %+v", pushed)
	}
	b.stop()
	if got := b.states(t)["PwjWTw_TyUaVEEGHgtnzJA.1"]; got != devices.CredentialRevoked {
		t.Errorf("the new key is %q, want it revoked", got)
	}
}

func TestRegistration(t *testing.T) {
	b := newBench(t)
	d := newDevice()
	resp, err := b.request(t, d, coap.POST, "/rd", "ep=PwjWTw_TyUaVEEGHgtnzJA&lt=60&lwm2m=1.1&b=U")
	if err != nil || resp.Code != coap.Created {
		t.Fatalf("register = %v, %v", resp.Code, err)
	}
	if got := resp.Options.Strings(coap.LocationPath); !slices.Equal(got, []string{"rd", "PwjWTw_TyUaVEEGHgtnzJA"}) {
		t.Errorf("location %v", got)
	}
	const at = "/rd/PwjWTw_TyUaVEEGHgtnzJA"
	stranger, _, err := b.PSK.Create(user(t, "acme"), psk.New{})
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		method coap.Code
		path   string
		as     identity.Actor
		want   coap.Code
	}{
		"update":                   {coap.POST, at, b.actor, coap.Changed},
		"update by PUT":            {coap.PUT, at, b.actor, coap.Changed},
		"another's":                {coap.POST, at, b.as(t, string(stranger.Identity)), coap.NotFound},
		"an id that is none":       {coap.POST, "/rd/x", b.actor, coap.BadRequest},
		"another id":               {coap.POST, "/rd/oFIrQFrW8EWcZ5u7eGfrkw", b.actor, coap.NotFound},
		"deregister by a stranger": {coap.DELETE, at, b.as(t, string(stranger.Identity)), coap.NotFound},
	} {
		resp, err := b.request(t, d, c.method, c.path, "lt=100", c.as)
		if err != nil {
			resp.Code = code(err)
		}
		if resp.Code != c.want {
			t.Errorf("%s: %v, want %v", name, resp.Code, c.want)
		}
	}
	ctx := user(t, "acme")
	if v, err := b.Client(ctx, "PwjWTw_TyUaVEEGHgtnzJA"); err != nil || v.Lifetime != 100 || v.Endpoint != "PwjWTw_TyUaVEEGHgtnzJA" || v.Device != b.key.Device {
		t.Errorf("client = %+v, %v", v, err)
	}
	if _, err := b.Client(user(t, "umbrella"), "PwjWTw_TyUaVEEGHgtnzJA"); !fault.Is(err, fault.NotFound) {
		t.Errorf("client for another organisation: %v, want NotFound", err)
	}
	b.now = b.now.Add(100 * time.Second)
	if _, err := b.Client(ctx, "PwjWTw_TyUaVEEGHgtnzJA"); !fault.Is(err, fault.NotFound) {
		t.Errorf("after its lifetime: %v, want NotFound", err)
	}
	if err := b.Sweep(t.Context(), b.now); err != nil {
		t.Fatal(err)
	}
	if _, total, err := b.Clients(ctx, 0, 20); err != nil || total != 0 {
		t.Errorf("after the sweep %d clients, %v; want none", total, err)
	}
	if _, err := b.request(t, d, coap.POST, "/rd", "ep=somebody"); code(err) != coap.BadRequest {
		t.Errorf("register under another name: %v, want 4.00", err)
	}
	if _, err := b.request(t, d, coap.POST, "/rd", ""); err != nil {
		t.Fatal(err)
	}
	if err := b.Ban(ctx, "PwjWTw_TyUaVEEGHgtnzJA"); err != nil {
		t.Fatal(err)
	}
	if _, err := b.PSK.Secret(t.Context(), b.key.Identity); !fault.Is(err, fault.NotFound) {
		t.Errorf("a handshake of a banned client: %v, want NotFound", err)
	}
}

func TestSweepEndsWhatACrashLeft(t *testing.T) {
	b := newBench(t)
	b.policy(t, "acme", lwm2m.Policy{Mode: lwm2m.ModePSK})
	d := newDevice()
	asked := make(chan struct{})
	d.answer = func(coap.Call) (coap.Reply, error, bool) {
		close(asked)
		return coap.Reply{}, context.DeadlineExceeded, true
	}
	if _, err := b.request(t, d, coap.POST, "/bs", ""); err != nil {
		t.Fatal(err)
	}
	<-asked
	// Another process over the same file, as after a kill.
	after := &lwm2m.Service{DB: b.DB, Devices: b.Devices, PSK: b.PSK, Audit: b.Audit, Box: b.Box, Now: b.Now, Config: b.Config}
	after.Start()
	if err := after.Sweep(t.Context(), b.now); err != nil {
		t.Fatal(err)
	}
	if got := b.states(t)["PwjWTw_TyUaVEEGHgtnzJA.1"]; got != devices.CredentialRevoked {
		t.Errorf("the pending key is %q, want it revoked", got)
	}
}

func FuzzParseQuery(f *testing.F) {
	f.Add("ep=dev1", "pct=112")
	f.Add("lt=60", "b=UQ")
	f.Fuzz(func(t *testing.T, a, b string) {
		q, err := lwm2m.ParseQuery(coap.Options{}.Add(coap.URIQuery, []byte(a)).Add(coap.URIQuery, []byte(b)))
		if err == nil && len(q.Endpoint) > 256 {
			t.Errorf("an endpoint name of %d bytes", len(q.Endpoint))
		}
	})
}

// BenchmarkBootstrap runs bootstraps of 64 devices at a time, without the
// transport: what the service itself takes, records and new keys included.
func BenchmarkBootstrap(b *testing.B) {
	for _, mode := range []lwm2m.Mode{lwm2m.ModeReuse, lwm2m.ModePSK} {
		b.Run(string(mode), func(b *testing.B) {
			f := newService(b)
			f.server(b, "dm", 101, 1)
			f.policy(b, "acme", lwm2m.Policy{Mode: mode})
			ctx, cancel := context.WithCancel(context.WithoutCancel(b.Context()))
			done := make(chan error, 1)
			go func() { done <- f.Run(ctx) }()
			const clients = 64
			var actors [clients]identity.Actor
			for i := range actors {
				k, _, err := f.PSK.Create(user(b, "acme"), psk.New{})
				if err != nil {
					b.Fatal(err)
				}
				if actors[i], err = f.PSK.Resolve(b.Context(), identity.Proof{PSK: string(k.Identity)}); err != nil {
					b.Fatal(err)
				}
			}
			var handle coap.Handler
			for _, r := range f.Routes() {
				if r.Method == coap.POST && r.Path == "/bs" {
					handle = r.Handle
				}
			}
			var next atomic.Int64
			var wait sync.WaitGroup
			started := processorTime(b)
			b.ResetTimer()
			for _, actor := range actors {
				wait.Go(func() {
					for next.Add(1) <= int64(b.N) {
						d := newDevice()
						finished := make(chan struct{})
						d.answer = func(c coap.Call) (coap.Reply, error, bool) {
							if c.Path == "/bs" {
								close(finished)
							}
							return coap.Reply{}, nil, false
						}
						r := &coap.Request{Session: d, Actor: actor, Method: coap.POST, Path: "/bs", Options: coap.Options{}.Add(coap.URIQuery, []byte("pct=112"))}
						resp, err := handle(identity.NewContext(ctx, actor), r)
						if err != nil {
							b.Error(err)
							return
						}
						resp.Sent()
						<-finished
					}
				})
			}
			wait.Wait()
			b.StopTimer()
			b.ReportMetric(float64(b.N)/(processorTime(b)-started).Seconds(), "bootstraps/cpu-s")
			cancel()
			<-done
		})
	}
}

// processorTime is what the process has used of the processors.
func processorTime(b *testing.B) time.Duration {
	var use syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &use); err != nil {
		b.Fatal(err)
	}
	return time.Duration(use.Utime.Nano() + use.Stime.Nano())
}
