package authsets_test

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"iter"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"keystead/audit"
	"keystead/authsets"
	"keystead/devices"
	"keystead/fault"
	"keystead/identity"
	"keystead/store"
	"keystead/store/bolt"
)

// clock is a time that only a test moves.
type clock struct {
	mu  sync.Mutex
	now time.Time
}

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.now
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.now = c.now.Add(d)
}

// fixture is a service whose tokens are their claims in JSON: who signs them is another
// room's.
type fixture struct {
	*authsets.Service
	devices *devices.Service
	clock   *clock
	db      store.Engine
	mu      sync.Mutex
	events  []string
	graves  []string // tokens of sets that are gone
}

const org = "acme"

func start(t testing.TB) *fixture {
	t.Helper()
	db, err := bolt.Open(filepath.Join(t.TempDir(), "db"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	f := &fixture{db: db, clock: &clock{now: time.Date(2026, 11, 24, 10, 0, 0, 0, time.UTC)}}
	trail := &audit.Log{DB: db, Key: make([]byte, 32), Now: f.clock.Now}
	f.devices = &devices.Service{DB: db, Audit: trail, Now: f.clock.Now}
	f.Service = &authsets.Service{
		DB: db, Devices: f.devices, Audit: trail, Now: f.clock.Now, Config: authsets.DefaultConfig(),
		Issue: func(t authsets.Token) (string, error) {
			t.ExpiresAt = f.clock.Now().Add(time.Hour)
			b, err := json.Marshal(t)
			return string(b), err
		},
		Verify: func(text string) (t authsets.Token, err error) {
			if json.Unmarshal([]byte(text), &t) != nil {
				return t, identity.ErrNotMine
			}
			return t, nil
		},
		Tenant: func(_ context.Context, token string) (string, error) {
			if token != "" {
				return token, nil
			}
			return org, nil
		},
		Changed: func(_ context.Context, tx store.Tx, what authsets.What, d authsets.Device) error {
			tx.OnCommit(func() {
				f.mu.Lock()
				defer f.mu.Unlock()
				f.events = append(f.events, string(what)+" "+string(d.Status))
			})
			return nil
		},
	}
	f.Start()
	return f
}

// admin is the context of an administrator of an organisation.
func admin(ctx context.Context, org string) context.Context {
	return identity.NewContext(ctx, identity.Actor{Kind: identity.User, ID: "admin", Org: org, Role: identity.Admin})
}

// key is a device's key pair.
type key struct{ crypto.Signer }

// pending yields the devices of the organisation that are.
func (f *fixture) pending(ctx context.Context) iter.Seq2[authsets.Device, error] {
	return func(yield func(authsets.Device, error) bool) {
		for at := 0; ; at += 500 {
			list, err := f.List(admin(ctx, org), authsets.Filter{Statuses: []authsets.Status{authsets.Pending}}, at, 500)
			if err != nil || len(list) == 0 {
				return
			}
			for _, d := range list {
				if !yield(d, nil) {
					return
				}
			}
		}
	}
}

func newKey(t testing.TB) key {
	t.Helper()
	_, k, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key{k}
}

func (k key) der() []byte {
	der, err := x509.MarshalPKIXPublicKey(k.Public())
	if err != nil {
		panic(err)
	}
	return der
}

func (k key) pem() string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: k.der()}))
}

func (k key) sign(body []byte) string {
	var sig []byte
	var err error
	if ed, ok := k.Signer.(ed25519.PrivateKey); ok {
		sig = ed25519.Sign(ed, body)
	} else {
		sum := sha256.Sum256(body)
		sig, err = k.Sign(rand.Reader, sum[:], crypto.SHA256)
	}
	if err != nil {
		panic(err)
	}
	return base64.StdEncoding.EncodeToString(sig)
}

// request is what a device with k sends.
func (k key) request(id string) authsets.Request {
	b, err := json.Marshal(map[string]string{"id_data": id, "pubkey": k.pem(), "tenant_token": ""})
	if err != nil {
		panic(err)
	}
	b = append(b, '\n') // as the client does
	return authsets.Request{Body: b, Signature: k.sign(b), Remote: netip.MustParseAddr("192.0.2.7")}
}

const one = `{"mac":"de:ad:be:ef:00:01"}`

// only returns the one device of the organisation.
func (f *fixture) only(t testing.TB) authsets.Device {
	t.Helper()
	list, err := f.List(admin(t.Context(), org), authsets.Filter{}, 0, 10)
	if err != nil || len(list) != 1 {
		t.Fatalf("got %d devices, %v; want one", len(list), err)
	}
	return list[0]
}

// auth sends a request of k and returns the token, "" if it was refused as it should be.
func (f *fixture) auth(t testing.TB, k key, id string) string {
	t.Helper()
	token, err := f.Authenticate(t.Context(), k.request(id))
	if err != nil && (!fault.Is(err, fault.Unauthenticated) || fault.Message(err) != "dev auth: unauthorized") {
		t.Fatalf("got %v, want a token or to be refused", err)
	}
	return token
}

func (f *fixture) set(t testing.TB, k key, status authsets.Status) {
	t.Helper()
	d := f.only(t)
	for _, set := range d.Sets {
		if string(set.Key) == string(k.der()) {
			if _, err := f.SetStatus(admin(t.Context(), org), d.ID, set.ID, status); err != nil {
				t.Fatal(err)
			}
			return
		}
	}
	t.Fatal("there is no such set")
}

// good says whether a token is.
func (f *fixture) good(t testing.TB, token string) bool {
	t.Helper()
	a, err := f.Resolve(t.Context(), identity.Proof{Scheme: "Bearer", Value: token})
	if err != nil && !fault.Is(err, fault.Unauthenticated) {
		t.Fatal(err)
	}
	if err == nil && (a.Kind != identity.Device || a.Org != org || a.Credential.Kind != identity.DeviceToken) {
		t.Errorf("got actor %+v", a)
	}
	return err == nil
}

func TestPendingUntilAccepted(t *testing.T) {
	t.Parallel()
	f, k := start(t), newKey(t)
	for range 2 {
		if f.auth(t, k, one) != "" {
			t.Fatal("let in with nobody asked")
		}
	}
	d := f.only(t)
	if d.Status != authsets.Pending || len(d.Sets) != 1 || string(d.Identity) != one {
		t.Fatalf("got %+v, want one pending set", d)
	}
	if _, err := f.devices.Get(t.Context(), d.ID); !fault.Is(err, fault.NotFound) {
		t.Errorf("a device nobody has decided about has a record: %v", err)
	}
	f.set(t, k, authsets.Accepted)
	first, second := f.auth(t, k, one), f.auth(t, k, one)
	if first == "" || first == second {
		t.Error("got no token, or the same twice in a second")
	}
	if !f.good(t, first) || !f.good(t, second) {
		t.Error("a token is not good")
	}
	record, err := f.devices.Get(t.Context(), d.ID)
	if err != nil || record.Name != "mac=de:ad:be:ef:00:01" || len(record.CredentialsOf(identity.AuthSet)) != 1 {
		t.Errorf("got record %+v, %v", record, err)
	}
	if got := strings.Join(f.events, ","); got != "device-status-changed pending,device-provisioned accepted,device-status-changed accepted" {
		t.Errorf("got events %s", got)
	}
}

func TestTokenOnceDeadStaysDead(t *testing.T) {
	t.Parallel()
	ends := map[string]func(*fixture, *testing.T, key, key){
		"another key is accepted": func(f *fixture, t *testing.T, _, b key) { f.auth(t, b, one); f.set(t, b, authsets.Accepted) },
		"rejected":                func(f *fixture, t *testing.T, a, _ key) { f.set(t, a, authsets.Rejected) },
		"reset":                   func(f *fixture, t *testing.T, a, _ key) { f.set(t, a, authsets.Pending) },
		"revoked through the device": func(f *fixture, t *testing.T, _, _ key) {
			d := f.only(t)
			if err := f.devices.RevokeCredential(admin(t.Context(), org), d.ID, identity.AuthSet, d.Sets[0].ID); err != nil {
				t.Fatal(err)
			}
		},
		"tokens revoked": func(f *fixture, t *testing.T, _, _ key) {
			if err := f.Revoke(admin(t.Context(), org), f.only(t).Sets[0].ID+".x"); err != nil {
				t.Fatal(err)
			}
		},
		"preauthorized anew, by force": func(f *fixture, t *testing.T, a, _ key) {
			if _, err := f.Preauthorise(admin(t.Context(), org), authsets.New{Identity: f.only(t).Identity, Key: a.der(), Force: true}); err != nil {
				t.Fatal(err)
			}
		},
	}
	for name, end := range ends {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f, a, b := start(t), newKey(t), newKey(t)
			f.auth(t, a, one)
			f.set(t, a, authsets.Accepted)
			token := f.auth(t, a, one)
			if !f.good(t, token) { // and it is remembered now
				t.Fatal("the token is not good")
			}
			end(f, t, a, b)
			if f.good(t, token) {
				t.Error("the token is good afterwards")
			}
			if f.only(t).Sets[0].Status == authsets.Preauthorized {
				f.auth(t, a, one)
			} else {
				f.set(t, a, authsets.Accepted)
			}
			if f.good(t, token) {
				t.Error("accepting the key again revives the token")
			}
			if fresh := f.auth(t, a, one); !f.good(t, fresh) {
				t.Error("the device gets no new token")
			}
		})
	}
}

func TestSuspendedAndDecommissioned(t *testing.T) {
	t.Parallel()
	f, k := start(t), newKey(t)
	ctx := admin(t.Context(), org)
	f.auth(t, k, one)
	f.set(t, k, authsets.Accepted)
	token, d := f.auth(t, k, one), f.only(t)
	if _, err := f.devices.Suspend(ctx, d.ID); err != nil {
		t.Fatal(err)
	}
	if f.good(t, token) || f.auth(t, k, one) != "" {
		t.Error("a suspended device is let in")
	}
	if _, err := f.devices.Resume(ctx, d.ID); err != nil {
		t.Fatal(err)
	}
	if !f.good(t, token) {
		t.Error("a device that was resumed is not let in")
	}
	if err := f.Decommission(admin(t.Context(), "other"), d.ID); !fault.Is(err, fault.NotFound) {
		t.Errorf("another organisation: got %v, want NotFound", err)
	}
	if err := f.Decommission(ctx, d.ID); err != nil {
		t.Fatal(err)
	}
	if f.good(t, token) {
		t.Error("the token of a decommissioned device is good")
	}
	if _, err := f.Get(ctx, d.ID); !fault.Is(err, fault.NotFound) {
		t.Errorf("got %v, want NotFound at once", err)
	}
	if f.auth(t, k, one) != "" || f.only(t).ID == d.ID {
		t.Error("the same identity is not a new device")
	}
}

// TestTransitions is the table of what a status may become.
func TestTransitions(t *testing.T) {
	t.Parallel()
	for _, row := range []struct {
		from, to authsets.Status
		ok       bool
	}{
		{authsets.Pending, authsets.Accepted, true},
		{authsets.Pending, authsets.Rejected, true},
		{authsets.Pending, authsets.Pending, true},
		{authsets.Accepted, authsets.Accepted, true},
		{authsets.Accepted, authsets.Rejected, true},
		{authsets.Accepted, authsets.Pending, true},
		{authsets.Rejected, authsets.Accepted, true},
		{authsets.Rejected, authsets.Rejected, true},
		{authsets.Rejected, authsets.Pending, true},
		{authsets.Preauthorized, authsets.Accepted, false},
		{authsets.Preauthorized, authsets.Rejected, false},
		{authsets.Preauthorized, authsets.Pending, false},
		{authsets.Pending, authsets.Preauthorized, false},
		{authsets.Pending, "noauth", false},
		{authsets.Accepted, "", false},
	} {
		f, k := start(t), newKey(t)
		ctx := admin(t.Context(), org)
		if row.from == authsets.Preauthorized {
			if _, err := f.Preauthorise(ctx, authsets.New{Identity: one, Key: k.der()}); err != nil {
				t.Fatal(err)
			}
		} else {
			f.auth(t, k, one)
			f.set(t, k, row.from)
		}
		d := f.only(t)
		_, err := f.SetStatus(ctx, d.ID, d.Sets[0].ID, row.to)
		if (err == nil) != row.ok || err != nil && !fault.Is(err, fault.Invalid) {
			t.Errorf("%s to %s: got %v", row.from, row.to, err)
		}
		want := row.from
		if row.ok {
			want = row.to
		}
		if got := f.only(t); got.Sets[0].Status != want || got.Status != want {
			t.Errorf("%s to %s: it is %s, the device %s, want %s", row.from, row.to, got.Sets[0].Status, got.Status, want)
		}
	}
}

func TestPreauthorize(t *testing.T) {
	t.Parallel()
	f, a, b := start(t), newKey(t), newKey(t)
	ctx := admin(t.Context(), org)
	d, err := f.Preauthorise(ctx, authsets.New{Identity: one, Key: a.der()})
	if err != nil || d.Status != authsets.Preauthorized {
		t.Fatalf("got %+v, %v", d, err)
	}
	if in, err := f.Preauthorise(ctx, authsets.New{Identity: one, Key: a.der()}); !errors.Is(err, authsets.ErrExists) || in.ID != d.ID || len(in.Sets) != 1 {
		t.Errorf("the second time: got %+v, %v; want the device that is in the way", in, err)
	}
	if f.auth(t, b, one) != "" {
		t.Error("another key is let in")
	}
	if got := f.only(t); got.Sets[1].Reason != "preauthorized_key_mismatch" || got.Status != authsets.Preauthorized {
		t.Errorf("got %+v, want the reason of the mismatch", got)
	}
	token := f.auth(t, a, one)
	if token == "" {
		t.Fatal("a preauthorized device is not let in")
	}
	// The key is changed with nobody but the administrator who forces it.
	if forced, err := f.Preauthorise(ctx, authsets.New{Identity: one, Key: b.der(), Force: true}); err != nil || forced.ID != d.ID || forced.Status != authsets.Accepted {
		t.Fatalf("got %+v, %v; want the device that is there, accepted", forced, err)
	}
	if !f.good(t, token) {
		t.Error("the old token ended before the new key showed up")
	}
	if fresh := f.auth(t, b, one); !f.good(t, fresh) || f.good(t, token) {
		t.Error("the new key is not let in, or the old one's token lives")
	}
	if f.auth(t, a, one) != "" {
		t.Error("the old key is let in")
	}
}

func TestDismiss(t *testing.T) {
	t.Parallel()
	f, a, b := start(t), newKey(t), newKey(t)
	ctx := admin(t.Context(), org)
	f.auth(t, a, one)
	f.auth(t, b, one)
	f.set(t, a, authsets.Accepted)
	token, d := f.auth(t, a, one), f.only(t)
	if err := f.Dismiss(ctx, "00000000-0000-7000-8000-000000000000", d.Sets[0].ID); !fault.Is(err, fault.NotFound) {
		t.Errorf("of another device: got %v, want NotFound", err)
	}
	if !f.good(t, token) {
		t.Fatal("a set was dismissed through another device")
	}
	if err := f.Dismiss(ctx, d.ID, d.Sets[0].ID); err != nil {
		t.Fatal(err)
	}
	if f.good(t, token) || f.only(t).Status != authsets.Pending {
		t.Error("the token of a dismissed set lives, or the device is not pending")
	}
	if err := f.Dismiss(ctx, d.ID, d.Sets[1].ID); err != nil {
		t.Fatal(err)
	}
	if got := f.only(t); got.Status != authsets.NoAuth || got.ID != d.ID {
		t.Errorf("got %+v, want the same device without sets", got)
	}
	if f.auth(t, a, one) != "" || f.only(t).ID != d.ID || f.only(t).Status != authsets.Pending {
		t.Error("the device is not the same when it comes again")
	}
	two, err := f.Preauthorise(ctx, authsets.New{Identity: `{"mac":"2"}`, Key: a.der()})
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Dismiss(ctx, two.ID, two.Sets[0].ID); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Get(ctx, two.ID); !fault.Is(err, fault.NotFound) {
		t.Errorf("a device with only a preauthorized set: got %v, want it gone with it", err)
	}
}

func TestLimit(t *testing.T) {
	t.Parallel()
	f, a, b := start(t), newKey(t), newKey(t)
	ctx := admin(t.Context(), org)
	if n, err := f.Limit(ctx); n != authsets.Unlimited || err != nil {
		t.Errorf("got %d, %v, want no limit", n, err)
	}
	if err := f.SetLimit(ctx, -5); !fault.Is(err, fault.Invalid) {
		t.Errorf("got %v, want Invalid", err)
	}
	if err := f.SetLimit(ctx, 1); err != nil {
		t.Fatal(err)
	}
	f.auth(t, a, one)
	f.set(t, a, authsets.Accepted)
	d, err := f.Preauthorise(ctx, authsets.New{Identity: `{"mac":"2"}`, Key: b.der()})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.Authenticate(t.Context(), b.request(`{"mac":"2"}`)); fault.Message(err) != "unauthorized" || !fault.Is(err, fault.Unauthenticated) {
		t.Errorf("over the limit: got %v", err)
	}
	if got, _ := f.Get(ctx, d.ID); got.Status != authsets.Preauthorized {
		t.Errorf("over the limit: it is %s, want it to wait", got.Status)
	}
	c := newKey(t)
	f.auth(t, c, `{"mac":"3"}`)
	third, err := f.List(ctx, authsets.Filter{Statuses: []authsets.Status{authsets.Pending}}, 0, 10)
	if err != nil || len(third) != 1 {
		t.Fatalf("got %v, %v", third, err)
	}
	if _, err := f.SetStatus(ctx, third[0].ID, third[0].Sets[0].ID, authsets.Accepted); !errors.Is(err, authsets.ErrLimit) {
		t.Errorf("got %v, want ErrLimit", err)
	}
	// A new key for a device that counts already passes.
	if f.auth(t, b, one) != "" {
		t.Fatal("let in")
	}
	list, err := f.List(ctx, authsets.Filter{Statuses: []authsets.Status{authsets.Accepted}}, 0, 10)
	if err != nil || len(list) != 1 {
		t.Fatalf("got %v, %v", list, err)
	}
	if _, err := f.SetStatus(ctx, list[0].ID, list[0].Sets[1].ID, authsets.Accepted); err != nil {
		t.Errorf("a new key at the limit: %v", err)
	}
	if err := f.SetLimit(ctx, 2); err != nil {
		t.Fatal(err)
	}
	if token, err := f.Authenticate(t.Context(), b.request(`{"mac":"2"}`)); err != nil || token == "" {
		t.Errorf("under the new limit: %v", err)
	}
}

func TestEviction(t *testing.T) {
	t.Parallel()
	f := start(t)
	f.Config.MaxPending, f.Config.MaxSets = 3, 4
	ctx := admin(t.Context(), org)
	kept, rejected := newKey(t), newKey(t)
	f.auth(t, kept, one)
	f.set(t, kept, authsets.Accepted)
	f.auth(t, rejected, `{"mac":"bad"}`)
	list, _ := f.List(ctx, authsets.Filter{Statuses: []authsets.Status{authsets.Pending}}, 0, 10)
	if _, err := f.SetStatus(ctx, list[0].ID, list[0].Sets[0].ID, authsets.Rejected); err != nil {
		t.Fatal(err)
	}
	for i := range 10 {
		f.auth(t, newKey(t), fmt.Sprintf(`{"mac":"junk-%d"}`, i))
	}
	junk, err := f.List(ctx, authsets.Filter{Statuses: []authsets.Status{authsets.Pending}}, 0, 100)
	if err != nil || len(junk) != 3 {
		t.Fatalf("got %d pending devices, %v; want 3", len(junk), err)
	}
	for i, d := range junk {
		if want := fmt.Sprintf(`{"mac":"junk-%d"}`, 7+i); string(d.Identity) != want {
			t.Errorf("got %s, want %s: the oldest go", d.Identity, want)
		}
	}
	if f.auth(t, kept, one) == "" {
		t.Error("an accepted device was evicted")
	}
	if f.auth(t, rejected, `{"mac":"bad"}`) != "" {
		t.Error("a rejected device is let in")
	}
	if n, _ := f.Count(ctx, authsets.Rejected); n != 1 {
		t.Errorf("got %d rejected devices, want 1: the decision is kept", n)
	}
	for range 10 { // keys that claim the identity of the accepted device
		f.auth(t, newKey(t), one)
	}
	accepted, err := f.List(ctx, authsets.Filter{Statuses: []authsets.Status{authsets.Accepted}}, 0, 10)
	if err != nil || len(accepted) != 1 || len(accepted[0].Sets) != 4 || accepted[0].Sets[0].Status != authsets.Accepted {
		t.Errorf("got %+v, %v; want 4 sets, the accepted one among them", accepted, err)
	}
}

func TestPendingExpires(t *testing.T) {
	t.Parallel()
	f, k := start(t), newKey(t)
	f.Config.PendingTTL = time.Hour
	f.auth(t, k, one)
	f.clock.add(30 * time.Minute)
	f.auth(t, k, `{"mac":"2"}`)
	f.clock.add(31 * time.Minute)
	if err := f.Sweep(t.Context(), f.clock.Now()); err != nil {
		t.Fatal(err)
	}
	if d := f.only(t); string(d.Identity) != `{"mac":"2"}` {
		t.Errorf("got %s, want the younger one", d.Identity)
	}
}

func TestKeyKinds(t *testing.T) {
	t.Parallel()
	rsaKey := func(bits int) key {
		k, err := rsa.GenerateKey(rand.Reader, bits)
		if err != nil {
			t.Fatal(err)
		}
		return key{k}
	}
	ec := func(c elliptic.Curve) key {
		k, err := ecdsa.GenerateKey(c, rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		return key{k}
	}
	for name, k := range map[string]key{
		"RSA": rsaKey(2048), "P-224": ec(elliptic.P224()), "P-256": ec(elliptic.P256()), "P-384": ec(elliptic.P384()), "P-521": ec(elliptic.P521()), "Ed25519": newKey(t),
	} {
		f := start(t)
		f.auth(t, k, one)
		f.set(t, k, authsets.Accepted)
		if f.auth(t, k, one) == "" {
			t.Errorf("%s: no token", name)
		}
		r := k.request(one)
		r.Signature = newKey(t).sign(r.Body)
		if _, err := f.Authenticate(t.Context(), r); fault.Message(err) != "signature verification failed" {
			t.Errorf("%s: signed by another key: got %v", name, err)
		}
	}
}

// TestRefusals is the table of what is no request, in the order it is looked at.
func TestRefusals(t *testing.T) {
	t.Parallel()
	f, k := start(t), newKey(t)
	body := func(id, pubkey any) []byte {
		b, _ := json.Marshal(map[string]any{"id_data": id, "pubkey": pubkey})
		return b
	}
	der := base64.StdEncoding.EncodeToString(k.der())
	weak, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		name, want string
		kind       fault.Kind
		body       []byte
		signature  string
	}{
		{"no body", "failed to decode auth request: unexpected end of JSON input", fault.Invalid, nil, ""},
		{"not JSON", "failed to decode auth request: invalid character 'x' looking for beginning of value", fault.Invalid, []byte("x"), ""},
		{"no identity", "invalid auth request: id_data must be provided", fault.Invalid, body("", k.pem()), ""},
		{"no key", "invalid auth request: pubkey must be provided", fault.Invalid, body(one, ""), ""},
		{"no PEM", "invalid auth request: cannot decode public key", fault.Invalid, body(one, der), ""},
		{"PKCS #1", "invalid auth request: cannot decode public key", fault.Invalid, body(one, "-----BEGIN RSA PUBLIC KEY-----\n"+der+"\n-----END RSA PUBLIC KEY-----\n"), ""},
		{"a certificate", "invalid auth request: cannot decode public key", fault.Invalid, body(one, "-----BEGIN CERTIFICATE-----\n"+der+"\n-----END CERTIFICATE-----\n"), ""},
		{"a short RSA key", "invalid auth request: an RSA key has 2048 to 8192 bits here", fault.Invalid, body(one, key{weak}.pem()), ""},
		{"identity no object", "invalid auth request: the identity is not a JSON object", fault.Invalid, body("[1]", k.pem()), ""},
		{"identity null", "invalid auth request: the identity is not a JSON object", fault.Invalid, body("null", k.pem()), ""},
		{"identity empty", "invalid auth request: the identity has no attributes", fault.Invalid, body("{}", k.pem()), ""},
		{"no signature", "missing request signature header", fault.Invalid, body(one, k.pem()), ""},
		{"signature no base64", "signature verification failed", fault.Unauthenticated, body(one, k.pem()), "%%%"},
		{"signature url-safe", "signature verification failed", fault.Unauthenticated, body(one, k.pem()), strings.TrimRight(base64.URLEncoding.EncodeToString(make([]byte, 64)), "=")},
		{"signature of something else", "signature verification failed", fault.Unauthenticated, body(one, k.pem()), k.sign([]byte("x"))},
		{"signature of the body without its line end", "signature verification failed", fault.Unauthenticated, append(body(one, k.pem()), '\n'), k.sign(body(one, k.pem()))},
	} {
		_, err := f.Authenticate(t.Context(), authsets.Request{Body: row.body, Signature: row.signature})
		if !fault.Is(err, row.kind) || fault.Message(err) != row.want {
			t.Errorf("%s: got %v, want %q", row.name, err, row.want)
		}
	}
	if n, err := f.Count(admin(t.Context(), org), ""); n != 0 || err != nil {
		t.Errorf("got %d devices, %v; want none of them to be recorded", n, err)
	}
}

// TestOneKeyHoweverWritten: line ends, blanks and what is around do not make another key.
func TestOneKeyHoweverWritten(t *testing.T) {
	t.Parallel()
	f, k := start(t), newKey(t)
	for _, text := range []string{k.pem(), strings.ReplaceAll(k.pem(), "\n", "\r\n"), strings.TrimSpace(k.pem()), "junk before\n" + k.pem() + "junk after"} {
		b, _ := json.Marshal(map[string]any{"id_data": one, "pubkey": text, "tier": "standard"})
		if _, err := f.Authenticate(t.Context(), authsets.Request{Body: b, Signature: k.sign(b)}); fault.Message(err) != "dev auth: unauthorized" {
			t.Errorf("got %v", err)
		}
	}
	if got := len(f.only(t).Sets); got != 1 {
		t.Errorf("got %d sets, want one", got)
	}
}

func TestOrganisationsDoNotMix(t *testing.T) {
	t.Parallel()
	f, k := start(t), newKey(t)
	f.auth(t, k, one)
	d := f.only(t)
	ctx := admin(t.Context(), "other")
	if _, err := f.SetStatus(ctx, d.ID, d.Sets[0].ID, authsets.Accepted); !fault.Is(err, fault.NotFound) {
		t.Errorf("SetStatus: got %v, want NotFound", err)
	}
	if err := f.Dismiss(ctx, d.ID, d.Sets[0].ID); !fault.Is(err, fault.NotFound) {
		t.Errorf("Dismiss: got %v, want NotFound", err)
	}
	if err := f.Revoke(ctx, d.Sets[0].ID); !fault.Is(err, fault.NotFound) {
		t.Errorf("Revoke: got %v, want NotFound", err)
	}
	if list, err := f.List(ctx, authsets.Filter{IDs: []string{d.ID}}, 0, 10); len(list) != 0 || err != nil {
		t.Errorf("List: got %v, %v, want none", list, err)
	}
	if _, err := f.Preauthorise(ctx, authsets.New{Identity: one, Key: k.der()}); err != nil {
		t.Errorf("the same identity in another organisation: %v", err)
	}
}
