package thingkeys_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"keystead/audit"
	"keystead/devices"
	"keystead/fault"
	"keystead/identity"
	"keystead/page"
	"keystead/seal"
	"keystead/store/bolt"
	"keystead/thingkeys"
)

type world struct {
	*thingkeys.Service
	path string

	mu  sync.Mutex
	now time.Time
}

func (w *world) pass(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.now = w.now.Add(d)
}

func start(t testing.TB) *world {
	t.Helper()
	w := &world{now: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC), path: filepath.Join(t.TempDir(), "things.db")}
	db, err := bolt.Open(w.path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	now := func() time.Time {
		w.mu.Lock()
		defer w.mu.Unlock()
		return w.now
	}
	box, err := seal.NewBox(make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	log := &audit.Log{DB: db, Key: seal.NewSecret(32), Now: now}
	w.Service = &thingkeys.Service{
		DB: db, Audit: log, Box: box, Index: seal.NewSecret(32), Now: now,
		Devices: &devices.Service{DB: db, Audit: log, Now: now},
	}
	w.Start()
	return w
}

func as(org string) context.Context {
	return identity.NewContext(context.Background(), identity.Actor{Kind: identity.User, ID: "u", Org: org, Role: identity.Owner})
}

func (w *world) create(t testing.TB, n thingkeys.New) thingkeys.Created {
	t.Helper()
	if n.Name == "" {
		n.Name = "thing"
	}
	if n.Type == "" {
		n.Type = "sensor"
	}
	list, err := w.Create(as("acme"), []thingkeys.New{n})
	if err != nil {
		t.Fatal(err)
	}
	return list[0]
}

// resolve shows a key in a scheme, from an address of its own unless from is given.
func (w *world) resolve(scheme, value string, from ...string) (identity.Actor, error) {
	addr := "192.0.2.1"
	if len(from) > 0 {
		addr = from[0]
	}
	return w.Resolve(context.Background(), identity.Proof{
		Scheme: scheme, Value: value, Remote: netip.AddrPortFrom(netip.MustParseAddr(addr), 1),
	})
}

func wantKind(t testing.TB, what string, err error, want fault.Kind) {
	t.Helper()
	if !fault.Is(err, want) {
		t.Errorf("%s: error = %v, want kind %v", what, err, want)
	}
}

func TestEachSchemeFindsItsOwnKindOfKey(t *testing.T) {
	w := start(t)
	c := w.create(t, thingkeys.New{External: seal.Secret("AA:BB:CC:DD")})
	in, ex := string(c.Key), string(c.External)
	if len(in) > 64 || strings.ContainsAny(in, ",=+") {
		t.Errorf("the key %q does not fit a common name", in)
	}
	for _, test := range []struct {
		scheme, value string
		kind          identity.CredentialKind // "" means refused
	}{
		{"Thing", in, identity.ThingKey},
		{"External", ex, identity.ExternalKey},
		{"Key", in, identity.ThingKey},
		{"Key", ex, identity.ExternalKey},
		{"Basic", c.ID + ":" + in, identity.ThingKey},
		{"Thing", ex, ""},
		{"External", in, ""},
		{"Basic", c.ID + ":" + ex, ""},
		{"Basic", "01890a5d-ac96-774b-bcce-b302099a8057:" + in, ""},
		{"Thing", in + "x", ""},
		{"Thing", "", ""},
		{"Thing", strings.Repeat("k", 1<<20), ""},
	} {
		a, err := w.resolve(test.scheme, test.value)
		if test.kind == "" {
			wantKind(t, test.scheme, err, fault.Unauthenticated)
			continue
		}
		if err != nil || a.Kind != identity.Device || a.ID != c.ID || a.Org != "acme" || a.Credential.Kind != test.kind {
			t.Errorf("%s %.20s = %+v, %v; want the thing by %s", test.scheme, test.value, a, err, test.kind)
		}
	}
	for _, p := range []identity.Proof{{}, {Scheme: "Bearer", Value: in}, {Scheme: "Basic", Value: "user:" + in}} {
		if _, err := w.Resolve(t.Context(), p); !errors.Is(err, identity.ErrNotMine) {
			t.Errorf("Resolve(%s) = %v, want not mine", p.Scheme, err)
		}
	}
}

func TestRotationKillsTheOldKey(t *testing.T) {
	w := start(t)
	c := w.create(t, thingkeys.New{External: seal.Secret("external-1")})
	first := string(c.Key)
	for range 3 {
		if _, err := w.resolve("Thing", first); err != nil {
			t.Fatal(err)
		}
	}
	next, err := w.Rotate(as("acme"), c.ID, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = w.resolve("Thing", first)
	wantKind(t, "the old key after a rotation", err, fault.Unauthenticated)
	last, err := w.Rotate(as("acme"), c.ID, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []seal.Secret{next, last} {
		if _, err := w.resolve("Thing", string(key)); err != nil {
			t.Errorf("a key in the overlap: %v", err)
		}
	}
	w.pass(time.Hour)
	_, err = w.resolve("Thing", string(next))
	wantKind(t, "the old key after the overlap", err, fault.Unauthenticated)
	if _, err := w.resolve("Thing", string(last)); err != nil {
		t.Errorf("the new key: %v", err)
	}
	if _, err := w.resolve("External", "external-1"); err != nil {
		t.Errorf("the external key, which was not rotated: %v", err)
	}
	_, err = w.Rotate(as("acme"), c.ID, 25*time.Hour)
	wantKind(t, "an overlap of more than a day", err, fault.Invalid)
	_, err = w.Rotate(as("other"), c.ID, 0)
	wantKind(t, "another organisation's", err, fault.NotFound)
}

func TestExternalKeyChangesAlone(t *testing.T) {
	w := start(t)
	c := w.create(t, thingkeys.New{})
	other := w.create(t, thingkeys.New{External: seal.Secret("taken")})
	set := func(key string) error { return w.SetExternal(as("acme"), c.ID, seal.Secret(key)) }
	for _, key := range []string{"mac-1", "mac-2", "mac-2"} {
		if err := set(key); err != nil {
			t.Fatal(err)
		}
	}
	_, err := w.resolve("External", "mac-1")
	wantKind(t, "the one before", err, fault.Unauthenticated)
	if a, err := w.resolve("External", "mac-2"); err != nil || a.ID != c.ID {
		t.Errorf("the new one: %v, %v", a.ID, err)
	}
	wantKind(t, "one that another thing has", set("taken"), fault.Conflict)
	wantKind(t, "too short", set("1234"), fault.Invalid)
	wantKind(t, "too long", set(strings.Repeat("x", 1025)), fault.Invalid)
	wantKind(t, "with a space before it", set(" 12345"), fault.Invalid)
	for range 2 {
		if err := w.RemoveExternal(as("acme"), c.ID); err != nil {
			t.Errorf("removing it: %v", err)
		}
	}
	_, err = w.resolve("External", "mac-2")
	wantKind(t, "after it was removed", err, fault.Unauthenticated)
	if _, err := w.resolve("Thing", string(c.Key)); err != nil {
		t.Errorf("the internal key: %v", err)
	}
	if a, err := w.resolve("External", "taken"); err != nil || a.ID != other.ID {
		t.Errorf("the other's key: %v", err)
	}
}

func TestTheDeviceRecordEndsKeys(t *testing.T) {
	w := start(t)
	c := w.create(t, thingkeys.New{})
	d, err := w.Devices.Suspend(as("acme"), c.ID)
	if err != nil {
		t.Fatal(err)
	}
	_, err = w.resolve("Thing", string(c.Key))
	wantKind(t, "of a suspended device", err, fault.Unauthenticated)
	if _, err := w.Devices.Resume(as("acme"), c.ID); err != nil {
		t.Fatal(err)
	}
	if _, err := w.resolve("Thing", string(c.Key)); err != nil {
		t.Errorf("of a resumed device: %v", err)
	}
	if err := w.Devices.RevokeCredential(as("acme"), c.ID, identity.ThingKey, d.Credentials[0].ID); err != nil {
		t.Fatal(err)
	}
	_, err = w.resolve("Thing", string(c.Key))
	wantKind(t, "revoked through the device", err, fault.Unauthenticated)
	again, err := w.Rotate(as("acme"), c.ID, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Delete(as("acme"), c.ID); err != nil {
		t.Fatal(err)
	}
	_, err = w.resolve("Thing", string(again))
	wantKind(t, "of a deleted thing", err, fault.Unauthenticated)
	_, err = w.Get(as("acme"), c.ID)
	wantKind(t, "a deleted thing", err, fault.NotFound)
}

func TestCreateIsAllOrNothing(t *testing.T) {
	w := start(t)
	w.create(t, thingkeys.New{External: seal.Secret("taken"), Key: seal.Secret("a key of one's own")})
	good := thingkeys.New{Name: "a", Type: "sensor"}
	for name, bad := range map[string]thingkeys.New{
		"external key taken": {Name: "b", Type: "sensor", External: seal.Secret("taken")},
		"key taken":          {Name: "b", Type: "sensor", Key: seal.Secret("a key of one's own")},
		"no name":            {Type: "sensor"},
		"no type":            {Name: "b"},
		"unknown type":       {Name: "b", Type: "toaster"},
		"short key":          {Name: "b", Type: "sensor", Key: seal.Secret("short")},
		"bad id":             {Name: "b", Type: "sensor", ID: "7"},
		"bad metadata":       {Name: "b", Type: "sensor", Metadata: json.RawMessage(`[1]`)},
	} {
		before, err := w.Count(as("acme"))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := w.Create(as("acme"), []thingkeys.New{good, bad}); err == nil {
			t.Errorf("%s: no error", name)
		}
		if after, err := w.Count(as("acme")); err != nil || after != before {
			t.Errorf("%s: %d things were made, %v", name, after-before, err)
		}
	}
	_, err := w.Create(as("other"), []thingkeys.New{{Name: "x", Type: "sensor", External: seal.Secret("taken")}})
	if !fault.Is(err, fault.Conflict) || fault.Message(err) != "entity already exists" {
		t.Errorf("a key of another organisation's thing: %v, want a conflict that does not say whose", err)
	}
	_, err = w.Create(as("acme"), nil)
	wantKind(t, "none", err, fault.Invalid)
	_, err = w.Create(as("acme"), make([]thingkeys.New, 501))
	wantKind(t, "too many", err, fault.TooLarge)
	id := "3b1f8a34-41b4-4d43-9f5e-0c3a4f1f2a10"
	if c := w.create(t, thingkeys.New{ID: id}); c.ID != id {
		t.Errorf("id = %s, want the one that was asked for", c.ID)
	}
	_, err = w.Create(as("other"), []thingkeys.New{{ID: id, Name: "x", Type: "sensor"}})
	wantKind(t, "an id that is taken", err, fault.Conflict)
}

func TestWrongKeysAreThrottledByAddress(t *testing.T) {
	w := start(t)
	c := w.create(t, thingkeys.New{})
	throttled := 0
	for i := range 1000 {
		_, err := w.Identify(t.Context(), thingkeys.Internal, fmt.Sprintf("guess %d of a thousand", i), netip.MustParseAddr("203.0.113.9"))
		switch {
		case fault.Is(err, fault.TooMany):
			throttled++
		case !fault.Is(err, fault.NotFound):
			t.Fatalf("guess %d: %v", i, err)
		}
	}
	if throttled < 960 {
		t.Errorf("%d of 1000 guesses were throttled, want all after the first 30", throttled)
	}
	_, err := w.resolve("Thing", string(c.Key), "203.0.113.9")
	wantKind(t, "the right key from there", err, fault.TooMany)
	for range 100 {
		if got, err := w.Identify(t.Context(), thingkeys.Internal, string(c.Key), netip.MustParseAddr("192.0.2.1")); err != nil || got != c.ID {
			t.Fatalf("from elsewhere: %q, %v", got, err)
		}
	}
	w.pass(time.Minute)
	if _, err := w.resolve("Thing", string(c.Key), "203.0.113.9"); err != nil {
		t.Errorf("a minute later: %v", err)
	}
}

func TestRevealLeavesARecord(t *testing.T) {
	w := start(t)
	c := w.create(t, thingkeys.New{External: seal.Secret("external-1")})
	got, err := w.Reveal(as("acme"), c.ID)
	if err != nil || !bytes.Equal(got.Key, c.Key) || !bytes.Equal(got.External, c.External) {
		t.Errorf("Reveal = %d and %d bytes, %v; want both keys", len(got.Key), len(got.External), err)
	}
	trail, err := w.Audit.List(as("acme"), c.ID, page.Request{Limit: 100})
	if err != nil {
		t.Fatal(err)
	}
	if last := trail.Items[len(trail.Items)-1]; last.Action != "thing_key.reveal" || last.Actor.ID != "u" {
		t.Errorf("the last record is %s by %s, want thing_key.reveal by u", last.Action, last.Actor.ID)
	}
	_, err = w.Reveal(as("other"), c.ID)
	wantKind(t, "another organisation's", err, fault.NotFound)
	w.Forget = true
	if _, err := w.Rotate(as("acme"), c.ID, 0); err != nil {
		t.Fatal(err)
	}
	_, err = w.Reveal(as("acme"), c.ID)
	wantKind(t, "where keys are not kept", err, fault.Conflict)
}

func TestNoKeyIsInTheFile(t *testing.T) {
	w := start(t)
	c := w.create(t, thingkeys.New{External: seal.Secret("external key to look for")})
	if err := w.DB.Close(); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(w.path)
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range []seal.Secret{c.Key, c.External} {
		if bytes.Contains(b, secret) {
			t.Errorf("the database has %.6s… in clear", string(secret))
		}
	}
	if !bytes.Contains(b, []byte(c.ID)) {
		t.Error("the database does not even have the id: the search is wrong")
	}
}

func TestListAndEdit(t *testing.T) {
	w := start(t)
	var ids []string
	for i := range 25 {
		c := w.create(t, thingkeys.New{
			Name: fmt.Sprintf("thing-%02d", i), Type: thingkeys.Types[i%2], Metadata: json.RawMessage(fmt.Sprintf(`{"floor":%d,"keep":true}`, i%5)),
		})
		ids = append(ids, c.ID)
	}
	for _, test := range []struct {
		name   string
		filter thingkeys.Filter
		window thingkeys.Window
		total  int
		first  string
	}{
		{"from the start", thingkeys.Filter{}, thingkeys.Window{Limit: 10}, 25, ids[0]},
		{"newest first", thingkeys.Filter{}, thingkeys.Window{Limit: 10, Newest: true}, 25, ids[24]},
		{"from the middle", thingkeys.Filter{}, thingkeys.Window{Offset: 20, Limit: 10}, 25, ids[20]},
		{"by name", thingkeys.Filter{Name: "THING-1"}, thingkeys.Window{Limit: 10}, 10, ids[10]},
		{"by type", thingkeys.Filter{Type: "sensor"}, thingkeys.Window{Limit: 10}, 12, ids[1]},
		{"by metadata", thingkeys.Filter{Metadata: map[string]string{"floor": "3", "keep": "true"}}, thingkeys.Window{Limit: 10}, 5, ids[3]},
		{"none", thingkeys.Filter{Name: "nothing"}, thingkeys.Window{Limit: 10}, 0, ""},
	} {
		list, total, err := w.List(as("acme"), test.filter, test.window)
		if err != nil || total != test.total || len(list) != min(10, max(0, total-test.window.Offset)) || total > 0 && list[0].ID != test.first {
			t.Errorf("%s: %d of %d, %v; want %d in all", test.name, len(list), total, err, test.total)
		}
	}
	if list, total, err := w.List(as("other"), thingkeys.Filter{}, thingkeys.Window{Limit: 10}); err != nil || len(list) != 0 || total != 0 {
		t.Errorf("another organisation sees %d of %d, %v", len(list), total, err)
	}
	if err := w.UpdateAll(as("acme"), map[string]thingkeys.Edit{ids[0]: {Merge: json.RawMessage(`{"floor":null,"new":1}`)}}); err != nil {
		t.Fatal(err)
	}
	if got, err := w.Get(as("acme"), ids[0]); err != nil || string(got.Metadata) != `{"keep":true,"new":1}` {
		t.Errorf("merged metadata = %s, %v", got.Metadata, err)
	}
	name := "renamed"
	if _, err := w.Devices.Update(as("acme"), ids[1], devices.Edit{Name: &name}); err != nil {
		t.Fatal(err)
	}
	if got, err := w.Get(as("acme"), ids[1]); err != nil || got.Name != name {
		t.Errorf("renamed as a device, the thing is %q, %v", got.Name, err)
	}
	_, err := w.Update(as("other"), ids[2], thingkeys.Edit{Name: &name})
	wantKind(t, "another organisation's", err, fault.NotFound)
	wantKind(t, "deleting several of which one is not there", w.Delete(as("acme"), ids[3], "nobody"), fault.NotFound)
	if _, err := w.Get(as("acme"), ids[3]); err != nil {
		t.Errorf("the other one: %v", err)
	}
}

// What is remembered of a key never outlives what the key proves.
func TestWhatIsRememberedEndsWithTheKey(t *testing.T) {
	w := start(t)
	c := w.create(t, thingkeys.New{Name: "meter", External: seal.Secret("external-1")})
	in := string(c.Key)
	warm := func(scheme, key string) {
		t.Helper()
		for range 2 {
			if _, err := w.resolve(scheme, key); err != nil {
				t.Fatal(err)
			}
		}
	}
	refused := func(what, scheme, key string) {
		t.Helper()
		_, err := w.resolve(scheme, key, "192.0.2.77")
		wantKind(t, what, err, fault.Unauthenticated)
	}

	warm("Thing", in)
	refused("a remembered internal key as an external one", "External", in)
	refused("a remembered key with another thing's id", "Basic", "01890a5d-ac96-774b-bcce-b302099a8057:"+in)
	if _, err := w.Devices.Suspend(as("acme"), c.ID); err != nil {
		t.Fatal(err)
	}
	refused("suspended", "Thing", in)
	if _, err := w.Devices.Resume(as("acme"), c.ID); err != nil {
		t.Fatal(err)
	}
	warm("Thing", in)
	name := "renamed"
	if _, err := w.Update(as("acme"), c.ID, thingkeys.Edit{Name: &name}); err != nil {
		t.Fatal(err)
	}
	if a, err := w.resolve("Thing", in); err != nil || a.Name != name {
		t.Errorf("after the name was changed: %q, %v; want %q", a.Name, err, name)
	}
	warm("External", "external-1")
	if err := w.SetExternal(as("acme"), c.ID, seal.Secret("external-2")); err != nil {
		t.Fatal(err)
	}
	refused("the external key before", "External", "external-1")

	// One that retires after it was remembered ends when it was said to.
	if _, err := w.Rotate(as("acme"), c.ID, time.Minute); err != nil {
		t.Fatal(err)
	}
	warm("Thing", in)
	w.pass(time.Minute)
	refused("after the overlap", "Thing", in)
}

// Keys change while they are used: who has been told that a key is dead never
// sees it prove anything again.
func TestRotationBesideUse(t *testing.T) {
	w := start(t)
	c := w.create(t, thingkeys.New{})
	now := string(c.Key)
	stop := make(chan struct{})
	var using sync.WaitGroup
	var mu sync.Mutex
	dead := map[string]bool{}
	for i := range 4 {
		using.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				mu.Lock()
				key, was := now, dead[now]
				mu.Unlock()
				if _, err := w.resolve("Thing", key, fmt.Sprintf("198.51.100.%d", i)); err == nil && was {
					t.Errorf("a dead key proves")
				}
			}
		})
	}
	for range 20 {
		next, err := w.Rotate(as("acme"), c.ID, 0)
		if err != nil {
			t.Fatal(err)
		}
		mu.Lock()
		old := now
		dead[old], now = true, string(next)
		mu.Unlock()
		if _, err := w.resolve("Thing", old, "203.0.113.5"); err == nil {
			t.Fatal("the old key proves after the rotation was answered")
		}
		if _, err := w.resolve("Thing", string(next), "203.0.113.6"); err != nil {
			t.Fatalf("the new key: %v", err)
		}
	}
	close(stop)
	using.Wait()
}

func FuzzResolve(f *testing.F) {
	w := start(f)
	c := w.create(f, thingkeys.New{External: seal.Secret("external-1")})
	f.Add("Thing", "tk_")
	f.Add("Basic", c.ID+":")
	f.Add("External", "external-2")
	f.Add("Key", "\x00")
	f.Fuzz(func(t *testing.T, scheme, value string) {
		w.pass(time.Hour) // wrong keys are forgiven
		_, err := w.resolve(scheme, value)
		good := (scheme == "Thing" || scheme == "Key") && value == string(c.Key) || (scheme == "External" || scheme == "Key") && value == "external-1" ||
			scheme == "Basic" && value == c.ID+":"+string(c.Key)
		if good != (err == nil) || err != nil && !errors.Is(err, identity.ErrNotMine) && !fault.Is(err, fault.Unauthenticated) {
			t.Errorf("%q %q: %v", scheme, value, err)
		}
	})
}
