package identity_test

import (
	"context"
	"errors"
	"testing"

	"keystead/fault"
	"keystead/identity"
)

// method resolves the credential of one scheme to the device it names.
type method string

func (m method) Resolve(_ context.Context, p identity.Proof) (identity.Actor, error) {
	switch {
	case m == "psk" && p.PSK != "":
		return device(p.PSK, identity.PSK), nil
	case m == "bearer" && p.Scheme == "Bearer" && p.Value == "expired":
		return identity.Actor{}, fault.New(fault.Unauthenticated, "token expired")
	case m == "bearer" && p.Scheme == "Bearer":
		return device(p.Value, identity.DeviceToken), nil
	}
	return identity.Actor{}, identity.ErrNotMine
}

func device(id string, by identity.CredentialKind) identity.Actor {
	return identity.Actor{Kind: identity.Device, ID: id, Org: "acme", Credential: identity.Credential{Kind: by}}
}

func TestResolve(t *testing.T) {
	r := identity.Resolver{method("psk"), method("bearer")}
	for _, test := range []struct {
		name  string
		proof identity.Proof
		want  string // "" means refused
		by    identity.CredentialKind
	}{
		{"session only", identity.Proof{PSK: "d1"}, "d1", identity.PSK},
		{"token only", identity.Proof{Scheme: "Bearer", Value: "d1"}, "d1", identity.DeviceToken},
		{"both agree: the session proved it first", identity.Proof{PSK: "d1", Scheme: "Bearer", Value: "d1"}, "d1", identity.PSK},
		{"both, of different devices", identity.Proof{PSK: "d1", Scheme: "Bearer", Value: "d2"}, "", ""},
		{"good session, bad token", identity.Proof{PSK: "d1", Scheme: "Bearer", Value: "expired"}, "", ""},
		{"a scheme nobody knows", identity.Proof{Scheme: "Digest", Value: "d1"}, "", ""},
		{"nothing", identity.Proof{}, "", ""},
		{"a stated id proves nothing", identity.Proof{Stated: "d1"}, "", ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := r.Resolve(t.Context(), test.proof)
			if test.want == "" {
				if !fault.Is(err, fault.Unauthenticated) {
					t.Errorf("got %v, %v; want Unauthenticated", got, err)
				}
				return
			}
			if err != nil || got.ID != test.want || got.Credential.Kind != test.by {
				t.Errorf("got %v, %v; want %s by %s", got, err, test.want, test.by)
			}
		})
	}
}

func TestMay(t *testing.T) {
	editor := identity.Actor{Kind: identity.User, Role: identity.Editor}
	scoped := editor
	scoped.Scopes = []identity.Need{identity.DevicesRead, identity.OrgAdmin}
	for _, test := range []struct {
		name string
		a    identity.Actor
		need identity.Need
		want bool
	}{
		{"a role may what is granted from it on", editor, identity.DevicesWrite, true},
		{"a role may what is granted from below", editor, identity.DevicesRead, true},
		{"not what is granted from above", editor, identity.OrgAdmin, false},
		{"scopes limit", scoped, identity.DevicesWrite, false},
		{"scopes leave what they name", scoped, identity.DevicesRead, true},
		{"scopes never add", scoped, identity.OrgAdmin, false},
		{"an unknown permission is held by nobody", identity.Actor{Kind: identity.User, Role: identity.Operator}, "devices:fly", false},
		{"no role, no permission", identity.Actor{Kind: identity.User}, identity.DevicesRead, false},
		{"a device has no permissions", identity.Actor{Kind: identity.Device, Role: identity.Operator}, identity.DevicesRead, false},
		{"the system may all", identity.Actor{Kind: identity.System}, identity.Platform, true},
	} {
		if got := test.a.May(test.need); got != test.want {
			t.Errorf("%s: May(%s) = %v, want %v", test.name, test.need, got, test.want)
		}
	}
}

func TestFirstOfStopsAtTheOneThatKnows(t *testing.T) {
	never := identity.MethodFunc(func(context.Context, identity.Proof) (identity.Actor, error) {
		t.Error("a method is asked after one that knows the credential")
		return identity.Actor{}, identity.ErrNotMine
	})
	f := identity.FirstOf{method("psk"), method("bearer"), never}
	if a, err := f.Resolve(t.Context(), identity.Proof{Scheme: "Bearer", Value: "d1"}); err != nil || a.ID != "d1" {
		t.Errorf("a good token: %v, %v", a, err)
	}
	if _, err := f.Resolve(t.Context(), identity.Proof{Scheme: "Bearer", Value: "expired"}); !fault.Is(err, fault.Unauthenticated) {
		t.Errorf("a bad token: %v, want Unauthenticated", err)
	}
	if _, err := f[:2].Resolve(t.Context(), identity.Proof{}); !errors.Is(err, identity.ErrNotMine) {
		t.Errorf("no token: %v, want not mine", err)
	}
}
