package est_test

import (
	"crypto/x509"
	"strings"
	"testing"
	"time"

	"keystead/devices"
	"keystead/est"
	"keystead/fault"
	"keystead/identity"
	"keystead/page"
	"keystead/pki"
)

// TestDiagnosis asks what would come of a request, and then makes it: what EST answers is what
// was foretold, and asking has left nothing behind.
func TestDiagnosis(t *testing.T) {
	f := open(t)
	root, rootKey := outside(t, f.now(), "Maker")
	maker := must(f.PKI.ImportCA(f.ctx, pki.Import{Certificate: root}))
	f.dms(t, "plant", byCertificate, string(maker.ID))
	f.dms(t, "asks", `{"enrollment_settings":{"est_rfc7030_settings":{"auth_mode":"ENROLMENT_TOKEN"},"manual_approval":true}}`)
	f.dms(t, "hooked", `{"enrollment_settings":{"est_rfc7030_settings":{"auth_mode":"EXTERNAL_WEBHOOK","external_webhook_settings":{"url":"https://127.0.0.1:1/"}}}}`)
	f.dms(t, "window", `{"enrollment_settings":{"est_rfc7030_settings":{"auth_mode":"ENROLMENT_TOKEN"}},"reenrollment_settings":{"reenrollment_delta":"30d"}}`)
	boot := newKey(t)
	good := sign(t, f.now(), "boot", boot.Public(), root, rootKey)
	old := sign(t, f.now(), "boot", boot.Public(), root, rootKey, func(c *x509.Certificate) { c.NotAfter = f.now().Add(-time.Minute) })
	device, deviceKey := f.device(t, "pump")
	key := newKey(t)
	csr := request(t, key, "dev")
	token := f.token(t, est.NewToken{Unlimited: true})
	windowed := f.do(t, exchange{path: "window/simpleenroll", body: b64(request(t, newKey(t), "early")), auth: f.token(t, est.NewToken{DMS: "window"})}).issued(t)
	waits := f.token(t, est.NewToken{DMS: "asks"})
	before := count(t, f)
	for _, test := range []struct {
		name   string
		dms    string
		q      est.Question
		x      exchange // the same, asked for; none where the key is not at hand
		status int
		says   string
	}{
		{"with a token", "default", est.Question{CSR: csr, Token: token}, exchange{}, 200, ""},
		{"with nothing", "default", est.Question{CSR: csr}, exchange{path: "simpleenroll", body: b64(csr)}, 401, "enrolment token"},
		{"a token made up", "default", est.Question{CSR: csr, Token: "keystead"}, exchange{path: "simpleenroll", body: b64(csr), auth: "Bearer keystead"}, 401, "no client certificate or token"},
		{"a bootstrap certificate", "plant", est.Question{CSR: csr, Chain: chainOf(good)}, exchange{}, 200, ""},
		{"the same, without a request", "plant", est.Question{Chain: chainOf(good)}, exchange{}, 200, ""},
		{"an expired one", "plant", est.Question{CSR: csr, Chain: chainOf(old)}, exchange{path: "plant/simpleenroll", body: b64(csr), chain: chainOf(old), key: boot}, 401, "expired on"},
		{"a device that is enrolled", "default", est.Question{CSR: request(t, key, "pump"), Token: token}, exchange{path: "simpleenroll", body: b64(request(t, key, "pump")), auth: token}, 403, "enrolled already"},
		{"a key of another device", "default", est.Question{CSR: request(t, deviceKey, "dev-2"), Token: token}, exchange{path: "simpleenroll", body: b64(request(t, deviceKey, "dev-2")), auth: token}, 403, "another device"},
		{"no request at all", "default", est.Question{CSR: []byte("hello"), Token: token}, exchange{path: "simpleenroll", body: b64([]byte("hello")), auth: token}, 400, "not a PKCS#10"},
		{"approval", "asks", est.Question{CSR: csr, Token: waits}, exchange{}, 202, ""},
		{"a webhook", "hooked", est.Question{CSR: csr}, exchange{}, 200, ""},
		{"renewal", "default", est.Question{Operation: est.SimpleReenroll, CSR: request(t, deviceKey, "pump"), Chain: chainOf(device)}, exchange{}, 200, ""},
		{"renewal, too early", "window", est.Question{Operation: est.SimpleReenroll, Chain: chainOf(windowed)}, exchange{}, 403, "invalid reenroll window"},
		{"renewal for another name", "default", est.Question{Operation: est.SimpleReenroll, CSR: request(t, deviceKey, "valve"), Chain: chainOf(device)}, exchange{path: "simplereenroll", body: b64(request(t, deviceKey, "valve")), chain: chainOf(device), key: deviceKey}, 400, "subject"},
		{"renewal of what is not ours", "default", est.Question{Operation: est.SimpleReenroll, CSR: csr, Chain: chainOf(good)}, exchange{path: "simplereenroll", body: b64(csr), chain: chainOf(good), key: boot}, 401, "not a trusted CA"},
		{"a key made by the server", "plant", est.Question{Operation: est.ServerKeygen, CSR: csr, Chain: chainOf(good)}, exchange{path: "plant/serverkeygen", body: b64(csr), chain: chainOf(good), key: boot}, 403, "not enabled"},
	} {
		if test.q.Operation == "" {
			test.q.Operation = est.SimpleEnroll
		}
		test.q.Token = strings.TrimPrefix(test.q.Token, "u:")
		got, err := f.Diagnose(f.ctx, test.dms, test.q)
		if err != nil || got.Status != test.status || got.Accepted != (test.status < 300) || !strings.Contains(got.Reason, test.says) {
			t.Errorf("%s: got %+v, %v, want %d %q", test.name, got, err, test.status, test.says)
		}
		if test.x.path == "" {
			continue
		}
		if a := f.do(t, test.x); a.status != got.Status || !strings.Contains(a.body, test.says) {
			t.Errorf("%s: EST answers %d %s, the diagnosis was %d %s", test.name, a.status, a.body, got.Status, got.Reason)
		}
	}
	if after := count(t, f); after != before {
		t.Errorf("asking has made %v of %v", after, before)
	}
	for what, err := range map[string]error{
		"nothing to look at": second(f.Diagnose(f.ctx, "plant", est.Question{Operation: est.SimpleEnroll})),
		"of another organisation": second(f.Diagnose(identity.NewContext(t.Context(), identity.Actor{Kind: identity.User, ID: "them", Org: "other"}), "plant",
			est.Question{Operation: est.SimpleEnroll, CSR: csr})),
	} {
		if !fault.Is(err, fault.Invalid) && !fault.Is(err, fault.NotFound) {
			t.Errorf("%s: got %v", what, err)
		}
	}
}

// count is how many devices, certificates and enrolments that wait there are.
func count(t *testing.T, f *field) [3]int {
	t.Helper()
	d := must(f.Devices.List(f.ctx, devices.Filter{}, page.Request{Limit: page.MaxLimit}))
	c := must(f.PKI.Certificates(f.ctx, pki.Filter{}, page.Request{Limit: page.MaxLimit}))
	w := must(f.Waitings(f.ctx, page.Request{}))
	return [3]int{len(d.Items), len(c.Items), len(w.Items)}
}

// TestBindIdentity gives devices certificates that were issued without one.
func TestBindIdentity(t *testing.T) {
	f := open(t)
	issue := func(cn string) pki.Certificate {
		t.Helper()
		csr := must(x509.ParseCertificateRequest(request(t, newKey(t), cn)))
		p := must(f.PKI.Prepare(f.ctx, pki.Request{Org: org, Profile: must(f.PKI.Profile(f.ctx, pki.DeviceProfile)), CSR: csr}))
		return must(f.PKI.Issue(f.ctx, p, nil))
	}
	pump := must(f.Devices.Create(f.ctx, devices.New{Org: org, Name: "pump"}))
	must(f.Devices.Create(f.ctx, devices.New{Org: org, Name: "valve", Aliases: []devices.Alias{{Kind: devices.External, Value: "v-1"}}}))
	first, next, another, wrong, ended := issue("pump"), issue("pump"), issue("v-1"), issue("else"), issue("pump")
	must(f.PKI.Revoke(f.ctx, string(ended.Serial), pki.Superseded))
	for _, test := range []struct {
		name         string
		mode         est.BindMode
		device, cert string
		want         fault.Kind
		ok           bool
	}{
		{"no such mode", "BOUND", pump.ID, string(first.Serial), fault.Invalid, false},
		{"no such device", est.Provisioned, "nobody", string(first.Serial), fault.NotFound, false},
		{"no such certificate", est.Provisioned, pump.ID, "0a0b", fault.NotFound, false},
		{"another name", est.Provisioned, pump.ID, string(wrong.Serial), fault.Conflict, false},
		{"a revoked one", est.Provisioned, pump.ID, string(ended.Serial), fault.Conflict, false},
		{"a renewal of nothing", est.Renewed, pump.ID, string(first.Serial), fault.Conflict, false},
		{"its first", est.Provisioned, pump.ID, string(first.Serial), 0, true},
		{"again", est.Provisioned, pump.ID, string(first.Serial), fault.Conflict, false},
		{"a first one more", est.Provisioned, pump.ID, string(next.Serial), fault.Conflict, false},
		{"in the place of the first", est.Renewed, pump.ID, string(next.Serial), 0, true},
		{"by an alias", est.Provisioned, "v-1", string(another.Serial), 0, true},
	} {
		b, err := f.BindIdentity(f.ctx, test.mode, test.device, test.cert)
		if (err == nil) != test.ok || !test.ok && fault.KindOf(err) != test.want {
			t.Errorf("%s: got %v, want %v", test.name, err, test.want)
		}
		if test.ok && (b.Certificate.Device != b.Device.ID || len(b.Device.CredentialsOf(identity.Certificate)) == 0) {
			t.Errorf("%s: got %+v", test.name, b)
		}
	}
	actor, err := f.PKI.Resolve(t.Context(), identity.Proof{Chain: chainOf(must(next.Parse()))})
	if err != nil || actor.ID != pump.ID {
		t.Errorf("the certificate proves %q, %v, want the pump", actor.ID, err)
	}
	if c := must(f.PKI.Certificate(f.ctx, string(next.Serial))); c.Replaces != first.Serial {
		t.Errorf("it replaces %q, want %q", c.Replaces, first.Serial)
	}
}
