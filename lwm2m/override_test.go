package lwm2m_test

import (
	"slices"
	"testing"

	"keystead/coap"
	"keystead/devices"
	"keystead/fault"
	"keystead/lwm2m"
)

// What is said for one device holds for its bootstraps and for no other's, over
// whatever policy it has, until it is taken back.
func TestADeviceOtherwiseThanItsPolicy(t *testing.T) {
	b := newBench(t)
	b.policy(t, "acme", lwm2m.Policy{Mode: lwm2m.ModePSK, SkipDiscover: true, Resources: map[string]string{"5": "60", "13": "7"}})
	if _, err := b.Override(user(t, "acme"), b.key.Device); !fault.Is(err, fault.NotFound) {
		t.Errorf("before there is one: %v, want NotFound", err)
	}
	set, err := b.SetOverride(user(t, "acme"), string(b.key.Identity), lwm2m.Override{
		Device: "another", Mode: lwm2m.ModeReuse, Deletes: []string{}, SkipDiscover: new(false), Format: new(coap.LwM2MTLV),
		Lifetime: new(int64(77)), Binding: "UQ", Retry: new(true), Resources: map[string]string{"13": "9"},
		Access: []lwm2m.Access{{Object: 3, Rights: map[string]int64{"dm": 3}}},
	})
	if err != nil || set.Device != b.key.Device {
		t.Fatalf("set %+v, %v", set, err)
	}
	d := newDevice()
	if _, err := b.request(t, d, coap.POST, "/bs", "pct=112"); err != nil {
		t.Fatal(err)
	}
	if v := b.ended(t, 1); v.Outcome != lwm2m.Success {
		t.Fatalf("ended %s %s", v.Outcome, v.Detail)
	}
	if want := []string{"GET /", "PUT /0/0", "PUT /1/0", "PUT /2/0", "POST /bs"}; !slices.Equal(d.called(), want) {
		t.Errorf("the device was asked %v, want %v", d.called(), want)
	}
	if got := string(d.instances["/0/0"].Resource(3).([]byte)); got != string(b.key.Identity) {
		t.Errorf("it is to prove itself with %s, want the key it has", got)
	}
	for id, want := range map[uint16]lwm2m.Value{1: int64(77), 5: int64(60), 7: "UQ", 13: int64(9), 16: true} {
		if got := d.instances["/1/0"].Resource(id); got != want {
			t.Errorf("/1/0/%d = %v, want %v", id, got, want)
		}
	}

	// An override of what is written has the old instances of that object deleted.
	if _, err := b.SetOverride(user(t, "acme"), b.key.Device, lwm2m.Override{Access: []lwm2m.Access{{Object: 3, Rights: map[string]int64{"dm": 3}}}}); err != nil {
		t.Fatal(err)
	}
	d = newDevice()
	if _, err := b.request(t, d, coap.POST, "/bs", ""); err != nil {
		t.Fatal(err)
	}
	b.ended(t, 2)
	if !slices.Contains(d.called(), "DELETE /2") || slices.Contains(d.called(), "GET /") {
		t.Errorf("the device was asked %v, want as its policy has it, and /2 deleted", d.called())
	}

	// The key of the bootstrap account is rotated where the device says that it is.
	if _, err := b.SetOverride(user(t, "acme"), b.key.Device, lwm2m.Override{Account: lwm2m.RotateAccount}); err != nil {
		t.Fatal(err)
	}
	d = newDevice()
	if _, err := b.request(t, d, coap.POST, "/bs", ""); err != nil {
		t.Fatal(err)
	}
	if v := b.ended(t, 3); v.Outcome != lwm2m.Success || !slices.Contains(d.called(), "GET /") || !slices.Contains(d.called(), "PUT /0/1") {
		t.Errorf("ended %s %s; the device was asked %v", v.Outcome, v.Detail, d.called())
	}

	if err := b.DeleteOverride(user(t, "acme"), b.key.Device); err != nil {
		t.Fatal(err)
	}
	if err := b.DeleteOverride(user(t, "acme"), b.key.Device); !fault.Is(err, fault.NotFound) {
		t.Errorf("deleted twice: %v, want NotFound", err)
	}
	u, err := b.SubjectOf(user(t, "acme"), b.key.Device)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := b.Evaluate(user(t, "acme"), u); err != nil || got.Special || got.Policy.Mode != lwm2m.ModePSK {
		t.Errorf("after it was deleted: %+v, %v; want the policy as it is", got, err)
	}
}

func TestARegionOfOneDevice(t *testing.T) {
	b := newBench(t)
	b.Config.DefaultRegion = "us"
	region := func(want string) {
		t.Helper()
		u, err := b.SubjectOf(user(t, "acme"), b.key.Device)
		if err != nil {
			t.Fatal(err)
		}
		if d, err := b.Evaluate(user(t, "acme"), u); err != nil || d.Region != want {
			t.Errorf("the device is in %q, %v; want %q", d.Region, err, want)
		}
	}
	region("us")
	if _, err := b.SetOverride(user(t, "acme"), b.key.Device, lwm2m.Override{Region: "eu"}); err != nil {
		t.Fatal(err)
	}
	region("eu")
	if _, err := b.Devices.Update(user(t, "acme"), b.key.Device, devices.Edit{Labels: &map[string]string{"region": "ap"}}); err != nil {
		t.Fatal(err)
	}
	region("ap")
}

func TestOverridesThatAreRefused(t *testing.T) {
	b := newBench(t)
	for name, o := range map[string]lwm2m.Override{
		"a credential nobody knows":        {Mode: "key"},
		"a grace beyond a year":            {GraceHours: 9000},
		"a bootstrap account":              {Account: "drop"},
		"a path":                           {Deletes: []string{"/0/1/2"}},
		"a format":                         {Format: new(coap.JSON)},
		"a lifetime":                       {Lifetime: new(int64(-1))},
		"a binding":                        {Binding: "X"},
		"a resource that is not to be set": {Resources: map[string]string{"0": "1"}},
		"rights":                           {Access: []lwm2m.Access{{Rights: map[string]int64{"a": 32}}}},
		"blind rotation":                   {Account: lwm2m.RotateAccount, SkipDiscover: new(true)},
		"a region":                         {Region: string(make([]byte, 65))},
	} {
		if _, err := b.SetOverride(user(t, "acme"), b.key.Device, o); !fault.Is(err, fault.Invalid) {
			t.Errorf("%s: %v, want Invalid", name, err)
		}
	}
	if _, err := b.Override(user(t, "acme"), b.key.Device); !fault.Is(err, fault.NotFound) {
		t.Errorf("after refused ones there is one: %v", err)
	}
	for _, who := range []string{"umbrella", ""} {
		if _, err := b.SetOverride(user(t, who), b.key.Device, lwm2m.Override{Region: "eu"}); !fault.Is(err, fault.NotFound) {
			t.Errorf("of organisation %q: %v, want NotFound", who, err)
		}
	}
	if _, err := b.SetOverride(user(t, "acme"), b.key.Device, lwm2m.Override{Region: "eu"}); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Override(user(t, "umbrella"), b.key.Device); !fault.Is(err, fault.NotFound) {
		t.Errorf("read by another organisation: %v, want NotFound", err)
	}
	if err := b.DeleteOverride(user(t, "umbrella"), b.key.Device); !fault.Is(err, fault.NotFound) {
		t.Errorf("deleted by another organisation: %v, want NotFound", err)
	}
	if _, err := b.Devices.Decommission(user(t, "acme"), b.key.Device); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Override(user(t, "acme"), b.key.Device); !fault.Is(err, fault.NotFound) {
		t.Errorf("of a device that is no more: %v, want NotFound", err)
	}
	if _, err := b.SetOverride(user(t, "acme"), b.key.Device, lwm2m.Override{Region: "eu"}); !fault.Is(err, fault.Conflict) {
		t.Errorf("for a device that is no more: %v, want Conflict", err)
	}
}
