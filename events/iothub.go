package events

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/url"
	"strconv"
	"strings"
	"time"

	"keystead/fault"
	"keystead/seal"
)

// AzureIoTHub is the format of a receiver that is no webhook but the registry of an
// Azure IoT Hub: it has an identity for each device that was let in, enabled for as long
// as the device may come in, and gone when the device is.
const AzureIoTHub Format = "azure-iot-hub"

// Standing is how a device stands, which a hub is to show.
type Standing string

// The standings.
const (
	Absent   Standing = "absent"   // there is no such device, or it is decommissioned
	Enabled  Standing = "enabled"  // it may come in
	Disabled Standing = "disabled" // it is suspended, or has no credential that is good
)

// How the devices of a hub prove themselves to it.
const (
	HubKeys         = "sas"                  // by keys that the hub makes
	HubCertificates = "certificateAuthority" // by certificates of a CA that is registered there
)

// hubVersion is the version of the service API that is spoken.
const hubVersion = "api-version=2021-04-12"

// hubTokenLife is how long a token for a hub is good: for one request, and clocks that
// are apart.
const hubTokenLife = 15 * time.Minute

// hubTypes are the events after which a device may stand differently.
var hubTypes = []string{"device.suspend", "device.resume", "device.decommission", "device.credential.*"}

// connection is what a hub's connection string says.
type connection struct {
	host, policy string
	key          seal.Secret
}

// parseConnection reads a connection string of a hub's shared access policy, as Azure's
// portal shows it. Errors do not repeat it.
func parseConnection(text seal.Secret) (c connection, err error) {
	bad := fault.InvalidFields(fault.Field{Name: "connection_string", Message: "is written HostName=…;SharedAccessKeyName=…;SharedAccessKey=…"})
	if len(text) > 1024 {
		return c, bad
	}
	for part := range strings.SplitSeq(strings.TrimSpace(string(text)), ";") {
		name, value, _ := strings.Cut(part, "=")
		switch strings.ToLower(strings.TrimSpace(name)) {
		case "hostname":
			c.host = strings.ToLower(value)
		case "sharedaccesskeyname":
			c.policy = value
		case "sharedaccesskey":
			if c.key, err = base64.StdEncoding.DecodeString(value); err != nil {
				return c, bad
			}
		}
	}
	if c.host == "" || strings.ContainsAny(c.host, "/?#@") || c.policy == "" || len(c.policy) > 128 || len(c.key) < 16 {
		return c, bad
	}
	return c, nil
}

// hub is a hub that is spoken to.
type hub struct {
	*Service
	at  Webhook
	key seal.Secret
}

// sas is a shared access signature for the whole hub: of its URL-encoded name, a line
// end and the time it ends at, by the policy's key.
func (h hub) sas() string {
	name := url.QueryEscape(strings.TrimPrefix(h.at.URL, "https://"))
	end := strconv.FormatInt(h.Now().Add(hubTokenLife).Unix(), 10)
	m := hmac.New(sha256.New, h.key)
	m.Write([]byte(name + "\n" + end))
	sig := url.QueryEscape(base64.StdEncoding.EncodeToString(m.Sum(nil)))
	return "SharedAccessSignature sr=" + name + "&sig=" + sig + "&se=" + end + "&skn=" + url.QueryEscape(h.at.Policy)
}

// ask sends one request; match is its If-Match, "" for none.
func (h hub) ask(ctx context.Context, method, path, match string, body []byte) (Answer, error) {
	m := Message{Method: method, URL: h.at.URL + path + "?" + hubVersion, Body: body, Header: map[string]string{"Authorization": h.sas()}}
	if match != "" {
		m.Header["If-Match"] = match
	}
	if body != nil {
		m.Header["Content-Type"] = "application/json"
	}
	return h.Send(ctx, m)
}

// settled is what it takes that a hub shows how a device stands.
type settled struct {
	Action string // create, enable, disable, delete or nothing
	Status int    // of the hub's last answer
}

// done reports whether the status is one of success.
func (a Answer) done() bool { return a.Status >= 200 && a.Status <= 299 }

// settle has the hub show how a device stands now, whatever has happened since it was
// asked to: deliveries may come twice, late, or again after they were put aside. With dry
// set it only finds out what there is to do.
func (h hub) settle(ctx context.Context, device string, dry bool) (settled, error) {
	var s settled
	for range 3 { // what is found out of date is looked at again
		standing, err := h.Standing(ctx, h.at.Org, device)
		if err != nil {
			return s, err
		}
		path := "/devices/" + url.PathEscape(device)
		found, err := h.ask(ctx, "GET", path, "", nil)
		if err != nil || !found.done() && found.Status != 404 {
			return settled{"nothing", found.Status}, err
		}
		todo, err := h.plan(device, standing, found)
		s = settled{todo.action, 200}
		if err != nil || dry || todo.method == "" {
			return s, err
		}
		a, err := h.ask(ctx, todo.method, path, todo.match, todo.body)
		if err != nil {
			return s, err
		}
		s.Status = a.Status
		switch {
		case a.Status == 404 && todo.method == "DELETE": // somebody was quicker
			s.Status = 204
			return s, nil
		case a.Status != 404 && a.Status != 409 && a.Status != 412:
			return s, nil
		}
	}
	return s, nil
}

// step is a request that brings an identity to a standing; there is nothing to do if method
// is empty.
type step struct {
	action, method, match string
	body                  []byte
}

// plan says what brings an identity, as it was found, to a standing.
func (h hub) plan(device string, to Standing, found Answer) (step, error) {
	has := found.Status != 404
	switch {
	case to == Absent && has:
		return step{"delete", "DELETE", "*", nil}, nil
	case to == Absent, to == Disabled && !has:
		return step{action: "nothing"}, nil
	case !has:
		body, err := json.Marshal(map[string]any{"deviceId": device, "status": to, "authentication": map[string]string{"type": h.at.HubAuth}})
		return step{"create", "PUT", "", body}, err
	}
	// All that is not ours to change goes back as it came: keys, tags of others.
	var twin map[string]json.RawMessage
	var is struct {
		Status Standing `json:"status"`
		ETag   string   `json:"etag"`
	}
	if json.Unmarshal(found.Body, &twin) != nil || json.Unmarshal(found.Body, &is) != nil {
		return step{action: "nothing"}, errors.New("the hub's answer is no device identity")
	}
	if is.Status == to {
		return step{action: "nothing"}, nil
	}
	match := "*"
	if is.ETag != "" {
		match = strconv.Quote(strings.Trim(is.ETag, `"`))
	}
	twin["status"] = json.RawMessage(strconv.Quote(string(to)))
	body, err := json.Marshal(twin)
	return step{strings.TrimSuffix(string(to), "d"), "PUT", match, body}, err
}
