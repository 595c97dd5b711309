package psk_test

import (
	"bytes"
	"context"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"keystead/audit"
	"keystead/devices"
	"keystead/fault"
	"keystead/identity"
	"keystead/page"
	"keystead/psk"
	"keystead/seal"
	"keystead/store/bolt"
)

func newService(t testing.TB) *psk.Service {
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
	now := func() time.Time { return time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC) }
	log := &audit.Log{DB: db, Key: make([]byte, 32), Now: now}
	s := &psk.Service{DB: db, Audit: log, Box: box, Now: now, Devices: &devices.Service{DB: db, Audit: log, Now: now}}
	s.Observe()
	return s
}

func as(t testing.TB, org string) context.Context {
	return identity.NewContext(t.Context(), identity.Actor{Kind: identity.User, ID: "u1", Org: org, Role: identity.Editor})
}

func create(ctx context.Context, t testing.TB, s *psk.Service, n psk.New) (psk.Key, seal.Secret) {
	t.Helper()
	k, secret, err := s.Create(ctx, n)
	if err != nil {
		t.Fatalf("Create(%+v): %v", n, err)
	}
	return k, secret
}

func TestARandomKeyIsBoundToANewDevice(t *testing.T) {
	s := newService(t)
	ctx := as(t, "acme")
	k, secret := create(ctx, t, s, psk.New{Labels: map[string]string{"line": "7"}})
	guid, ok := k.Identity.GUID()
	if v4 := regexp.MustCompile(`^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`); len(k.Identity) != 22 || !ok || !v4.MatchString(guid) {
		t.Errorf("identity %q is the GUID %q, %t; want 22 characters of one of version 4", k.Identity, guid, ok)
	}
	if len(secret) != 32 {
		t.Errorf("the secret has %d bytes, want 32", len(secret))
	}
	if bytes.Contains(k.Sealed, secret) {
		t.Error("the secret is stored in the clear")
	}
	d, err := s.Devices.Find(ctx, string(k.Identity))
	if err != nil || d.ID != k.Device || d.Labels["line"] != "7" {
		t.Errorf("the device by the identity is %+v, %v; want %s with its label", d, err, k.Device)
	}
	if got, err := s.Secret(t.Context(), k.Identity); err != nil || !bytes.Equal(got, secret) {
		t.Errorf("Secret = %x, %v; want the one Create returned", []byte(got), err)
	}
	a, err := s.Resolve(t.Context(), identity.Proof{PSK: string(k.Identity)})
	if want := (identity.Credential{Kind: identity.PSK, ID: string(k.Identity)}); err != nil || a.ID != d.ID || a.Org != "acme" || a.Credential != want {
		t.Errorf("Resolve = %+v, %v; want the device by %v", a, err, want)
	}
}

func TestIdentitiesAreMixedEndianGUIDs(t *testing.T) {
	for text, guid := range map[psk.Identity]string{
		"PwjWTw_TyUaVEEGHgtnzJA": "4fd6083f-d30f-46c9-9510-418782d9f324",
		"oFIrQFrW8EWcZ5u7eGfrkw": "402b52a0-d65a-45f0-9c67-9bbb7867eb93",
	} {
		if got, ok := text.GUID(); got != guid || !ok {
			t.Errorf("%s.GUID() = %s, %t; want %s", text, got, ok, guid)
		}
		if got := psk.IdentityOf(guid); got != text {
			t.Errorf("IdentityOf(%s) = %s, want %s", guid, got, text)
		}
	}
	for _, bad := range []psk.Identity{"", "dev1", "PwjWTw_TyUaVEEGHgtnzJA==", "PwjWTw_TyUaVEEGHgtnzJB", "PwjWTw/TyUaVEEGHgtnzJA"} {
		if got, ok := bad.GUID(); ok {
			t.Errorf("%q.GUID() = %s, want none", bad, got)
		}
	}
	for _, bad := range []string{"", "4fd6083fd30f46c99510418782d9f324", "4fd6083f-d30f-46c9-9510-418782d9f32g"} {
		if got := psk.IdentityOf(bad); got != "" {
			t.Errorf("IdentityOf(%q) = %s, want none", bad, got)
		}
	}
}

func TestImport(t *testing.T) {
	s := newService(t)
	ctx := as(t, "acme")
	k, secret := create(ctx, t, s, psk.New{Identity: "dev1-dm", Secret: seal.Secret("0123456789abcdef"), Text: true})
	if k.Identity != "dev1-dm" || string(secret) != "0123456789abcdef" {
		t.Errorf("imported as %s with %q", k.Identity, []byte(secret))
	}
	_, typed := create(ctx, t, s, psk.New{Text: true})
	if ok := regexp.MustCompile(`^[a-km-np-z2-9]{32}$`).Match(typed); !ok {
		t.Errorf("a secret to be typed is %q", []byte(typed))
	}
	for name, n := range map[string]psk.New{
		"an identity too long":      {Identity: psk.Identity(strings.Repeat("x", 129))},
		"an identity not UTF-8":     {Identity: "a\xff"},
		"an identity with a NUL":    {Identity: "a\x00b"},
		"a secret too short":        {Secret: seal.Secret("15 bytes of it.")},
		"a secret too long":         {Secret: bytes.Repeat([]byte{1}, 65)},
		"text that cannot be typed": {Secret: bytes.Repeat([]byte{1}, 32), Text: true},
	} {
		if _, _, err := s.Create(ctx, n); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: Create = %v, want Invalid", name, err)
		}
	}
	if _, _, err := s.Create(as(t, "other"), psk.New{Identity: "dev1-dm"}); !fault.Is(err, fault.Conflict) {
		t.Errorf("an identity in use: Create = %v, want Conflict", err)
	}
	if _, _, err := s.Create(as(t, ""), psk.New{}); !fault.Is(err, fault.Forbidden) {
		t.Errorf("without an organisation: Create = %v, want Forbidden", err)
	}
}

func TestAKeyForADeviceThatIsThere(t *testing.T) {
	s := newService(t)
	ctx := as(t, "acme")
	d, err := s.Devices.Create(ctx, devices.New{Aliases: []devices.Alias{{Kind: devices.SerialNumber, Value: "SN-1"}}})
	if err != nil {
		t.Fatal(err)
	}
	for name, n := range map[string]psk.New{
		"by id":                     {Device: d.ID},
		"by alias":                  {Device: "SN-1"},
		"by the identity being one": {Identity: "SN-1"},
	} {
		if k, _ := create(ctx, t, s, n); k.Device != d.ID {
			t.Errorf("%s: the key is of device %s, want %s", name, k.Device, d.ID)
		}
	}
	if p, err := s.List(ctx, d.ID, page.Request{}); err != nil || len(p.Items) != 3 {
		t.Errorf("the device's keys are %v, %v; want 3", p.Items, err)
	}
	if _, _, err := s.Create(as(t, "other"), psk.New{Device: d.ID}); !fault.Is(err, fault.NotFound) {
		t.Errorf("for a device of another organisation: Create = %v, want NotFound", err)
	}
}

func TestADeletedKeyIsGoneAtOnce(t *testing.T) {
	s := newService(t)
	ctx := as(t, "acme")
	k, _ := create(ctx, t, s, psk.New{})
	epoch := s.Devices.Epoch()
	if err := s.Delete(as(t, "other"), k.Identity); !fault.Is(err, fault.NotFound) {
		t.Errorf("Delete by another organisation = %v, want NotFound", err)
	}
	if err := s.Delete(ctx, k.Identity); err != nil {
		t.Fatal(err)
	}
	checkGone(ctx, t, s, k)
	if s.Devices.Epoch() == epoch {
		t.Error("the epoch did not move: open sessions would go on")
	}
	if err := s.Delete(ctx, k.Identity); !fault.Is(err, fault.NotFound) {
		t.Errorf("Delete again = %v, want NotFound", err)
	}
	if again, _ := create(ctx, t, s, psk.New{Identity: k.Identity}); again.Device != k.Device {
		t.Errorf("made again, the key is of device %s, want %s", again.Device, k.Device)
	}
}

// checkGone fails t unless nothing is left of k.
func checkGone(ctx context.Context, t *testing.T, s *psk.Service, k psk.Key) {
	t.Helper()
	if _, err := s.Secret(t.Context(), k.Identity); !fault.Is(err, fault.NotFound) {
		t.Errorf("Secret = %v, want NotFound", err)
	}
	if _, err := s.Resolve(t.Context(), identity.Proof{PSK: string(k.Identity)}); !fault.Is(err, fault.Unauthenticated) {
		t.Errorf("Resolve = %v, want Unauthenticated", err)
	}
	if _, err := s.Get(ctx, k.Identity); !fault.Is(err, fault.NotFound) {
		t.Errorf("Get = %v, want NotFound", err)
	}
	if keys, total, err := s.ListFrom(ctx, 0, 20); err != nil || len(keys) != 0 || total != 0 {
		t.Errorf("ListFrom = %v of %d, %v; want none", keys, total, err)
	}
}

func TestTheDeviceEndsItsKeys(t *testing.T) {
	s := newService(t)
	ctx := as(t, "acme")
	k, secret := create(ctx, t, s, psk.New{})
	if _, err := s.Devices.Suspend(ctx, k.Device); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Secret(t.Context(), k.Identity); !fault.Is(err, fault.NotFound) {
		t.Errorf("suspended: Secret = %v, want NotFound", err)
	}
	if _, err := s.Devices.Resume(ctx, k.Device); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Secret(t.Context(), k.Identity); err != nil || !bytes.Equal(got, secret) {
		t.Errorf("resumed: Secret = %x, %v; want it back", []byte(got), err)
	}
	t.Run("revoked through the device", func(t *testing.T) {
		k, _ := create(as(t, "o2"), t, s, psk.New{})
		if err := s.Devices.RevokeCredential(as(t, "o2"), k.Device, identity.PSK, string(k.Identity)); err != nil {
			t.Fatal(err)
		}
		checkGone(as(t, "o2"), t, s, k)
	})
	t.Run("decommissioned", func(t *testing.T) {
		if _, err := s.Devices.Decommission(ctx, k.Device); err != nil {
			t.Fatal(err)
		}
		checkGone(ctx, t, s, k)
	})
}

func TestAPendingKeyProvesNothing(t *testing.T) {
	s := newService(t)
	k, _ := create(as(t, "acme"), t, s, psk.New{State: devices.CredentialPending})
	if _, err := s.Secret(t.Context(), k.Identity); !fault.Is(err, fault.NotFound) {
		t.Errorf("Secret = %v, want NotFound", err)
	}
}

func TestRevealIsRecorded(t *testing.T) {
	s := newService(t)
	ctx := as(t, "acme")
	k, secret := create(ctx, t, s, psk.New{})
	if got, err := s.Reveal(ctx, k.Identity); err != nil || !bytes.Equal(got, secret) {
		t.Errorf("Reveal = %x, %v", []byte(got), err)
	}
	if _, err := s.Reveal(as(t, "other"), k.Identity); !fault.Is(err, fault.NotFound) {
		t.Errorf("Reveal by another organisation = %v, want NotFound", err)
	}
	p, err := s.Audit.List(ctx, k.Device, page.Request{})
	if err != nil {
		t.Fatal(err)
	}
	if last := p.Items[len(p.Items)-1]; last.Action != "psk.reveal" || last.Target != string(k.Identity) {
		t.Errorf("the last audit record is %s of %s, want psk.reveal of %s", last.Action, last.Target, k.Identity)
	}
}

func TestManyAtOnce(t *testing.T) {
	s := newService(t)
	ctx := as(t, "acme")
	const n = 2500 // more than a transaction steps over
	var made []psk.Made
	for len(made) < n {
		batch, err := s.CreateMany(ctx, min(psk.Batch, n-len(made)), psk.New{})
		if err != nil {
			t.Fatal(err)
		}
		made = append(made, batch...)
	}
	for _, start := range []int{0, 999, 1000, 1001, 2400, 2499} {
		keys, total, err := s.ListFrom(ctx, start, 200)
		if err != nil || total != n || len(keys) != min(200, n-start) {
			t.Fatalf("ListFrom(%d) = %d of %d, %v", start, len(keys), total, err)
		}
		for i, k := range keys {
			if k.Identity != made[start+i].Key.Identity {
				t.Fatalf("ListFrom(%d)[%d] = %s, want %s: in the order they were made", start, i, k.Identity, made[start+i].Key.Identity)
			}
		}
	}
	if keys, total, err := s.ListFrom(ctx, n, 20); err != nil || len(keys) != 0 || total != n {
		t.Errorf("ListFrom past the end = %v of %d, %v", keys, total, err)
	}
	for _, count := range []int{-1, 0, psk.Batch + 1} {
		if _, err := s.CreateMany(ctx, count, psk.New{}); !fault.Is(err, fault.Invalid) {
			t.Errorf("CreateMany(%d) = %v, want Invalid", count, err)
		}
	}
}

func TestSecretsNeverPrint(t *testing.T) {
	s := newService(t)
	made, err := s.CreateMany(as(t, "acme"), 1, psk.New{Text: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x"} {
		if text := fmt.Sprintf(verb, made[0]); strings.Contains(text, string(made[0].Secret)) || strings.Contains(text, hex.EncodeToString(made[0].Secret)) {
			t.Errorf("%s prints the secret", verb)
		}
	}
}

func BenchmarkCreate(b *testing.B) {
	s := newService(b)
	ctx := as(b, "acme")
	b.Run("one by one", func(b *testing.B) {
		for b.Loop() {
			create(ctx, b, s, psk.New{})
		}
	})
	b.Run("in thousands", func(b *testing.B) {
		for b.Loop() {
			if _, err := s.CreateMany(ctx, psk.Batch, psk.New{}); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(psk.Batch*b.N)/b.Elapsed().Seconds(), "keys/s")
	})
}

// BenchmarkResolve recognises random devices of fifty thousand by their keys.
func BenchmarkResolve(b *testing.B) {
	s := newService(b)
	var made []psk.Made
	for range 50 {
		some, err := s.CreateMany(as(b, "acme"), psk.Batch, psk.New{})
		if err != nil {
			b.Fatal(err)
		}
		made = append(made, some...)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.Resolve(b.Context(), identity.Proof{PSK: string(made[rand.IntN(len(made))].Key.Identity)}); err != nil {
			b.Fatal(err)
		}
	}
}
