//go:build e2e

package e2e_test

import (
	"encoding/base64"
	"encoding/json"
	"maps"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"

	"keystead/client"
	"keystead/internal/iothubtest"
)

// waits has a new device ask to be let in, which it is not, and returns it with its id.
func (s *server) waits(mac string) (*asker, string) {
	s.t.Helper()
	d := s.asker(`{"mac":"` + mac + `"}`)
	if status, body := d.ask(); status != http.StatusUnauthorized {
		s.t.Fatalf("%s: got %d %s, want it to wait", mac, status, body)
	}
	for found, err := range s.admin().AuthDevices(s.t.Context(), "pending") {
		if err != nil {
			s.t.Fatal(err)
		}
		if strings.Contains(string(found.Identity), `"`+mac+`"`) {
			return d, found.ID
		}
	}
	s.t.Fatalf("%s is not pending", mac)
	return nil, ""
}

// authDevices are the devices that keystead authset list shows, by their id.
func (s *server) authDevices(args ...string) map[string]client.AuthDevice {
	s.t.Helper()
	var list []client.AuthDevice
	s.decode(s.cli(append([]string{"authset", "list", "-o", "json"}, args...)...), &list)
	found := map[string]client.AuthDevice{}
	for _, d := range list {
		found[d.ID] = d
	}
	return found
}

// change sends a change in JSON over REST, and reads the answer.
func (s *server) change(method, path string, body, out any) {
	s.t.Helper()
	b, err := json.Marshal(body)
	if err != nil {
		s.t.Fatal(err)
	}
	s.decode(s.rest(method, path, string(b), http.StatusOK), out)
}

// TestPendingDevicesExpire: once the configuration says so, devices that nobody has decided about
// go; those that were let in, or of which anybody has said anything, do not.
func TestPendingDevicesExpire(t *testing.T) {
	t.Parallel()
	s := start(t)
	in, accepted := s.waits("in")
	_, noted := s.waits("noted")
	out, pending := s.waits("out")
	s.cli("authset", "accept", accepted)
	s.cli("authset", "describe", noted, "--comment", "ask the plumber")
	token := in.token()
	want := []string{accepted, noted, pending}
	slices.Sort(want)
	if got := slices.Sorted(maps.Keys(s.authDevices())); !slices.Equal(got, want) {
		t.Fatalf("kept for ever: got %v, want %v", got, want)
	}

	s.stop()
	if r := s.cliFails(78, "config", "check", "--set", "authsets.pending_ttl=1ms"); !strings.Contains(r.all(), "pending_ttl") {
		t.Errorf("a millisecond: got %s", r.all())
	}
	s.args = append(s.args, "--set", "authsets.pending_ttl=1s")
	s.start()
	gone := func(id string) func() bool {
		return func() bool { _, there := s.authDevices()[id]; return !there }
	}
	s.eventually("the device that waited to be gone", gone(pending))
	if body, code := s.curl("-H", "Authorization: Bearer "+s.key, s.url("/api/management/v2/devauth/devices/"+pending)); code != http.StatusNotFound {
		t.Errorf("the one that waited: got %d %s", code, body)
	}
	left := s.authDevices()
	if len(left) != 2 || left[accepted].Status != "accepted" || left[noted].Status != "pending" {
		t.Errorf("got %+v, want the one that was accepted and the one with a comment", left)
	}
	if got := in.uses(token); got != http.StatusOK {
		t.Errorf("the token of the one that was accepted: got %d", got)
	}
	in.token()

	// It may ask again: it is a new one then, and goes again.
	if status, body := out.ask(); status != http.StatusUnauthorized {
		t.Errorf("asked again: got %d %s", status, body)
	}
	s.eventually("the device that asked again to be gone", func() bool { return len(s.authDevices("--status", "pending")) == 1 })
	if len(s.authDevices()) != 2 {
		t.Errorf("got %+v", s.authDevices())
	}
}

// TestWhatPeopleSayOfADevice: comments and labels, set over REST and by command, before a device is
// let in and after, are what both show, and labels find it.
func TestWhatPeopleSayOfADevice(t *testing.T) {
	t.Parallel()
	s := start(t)
	_, one := s.waits("1")
	_, two := s.waits("2")
	const management = "/api/management/v2/devauth/devices/"
	shown := func(when, id, comment string, labels map[string]string) {
		t.Helper()
		var over client.AuthDevice
		s.decode(s.rest(http.MethodGet, management+id, "", http.StatusOK), &over)
		for by, d := range map[string]client.AuthDevice{"REST": over, "command": s.authDevices()[id]} {
			if d.Comment != comment || !maps.Equal(d.Labels, labels) {
				t.Errorf("%s, by %s: got %q %v, want %q %v", when, by, d.Comment, d.Labels, comment, labels)
			}
		}
	}
	found := func(when, label string, want ...string) {
		t.Helper()
		slices.Sort(want)
		var over, searched, listed []client.AuthDevice
		s.decode(s.rest(http.MethodGet, strings.TrimSuffix(management, "/")+"?label="+label, "", http.StatusOK), &over)
		s.decode(s.rest(http.MethodPost, management+"search", `{"label":"`+label+`"}`, http.StatusOK), &searched)
		s.decode(s.cli("authset", "list", "--label", label, "-o", "json"), &listed)
		for by, list := range map[string][]client.AuthDevice{"list": over, "search": searched, "command": listed} {
			var ids []string
			for _, d := range list {
				ids = append(ids, d.ID)
			}
			if slices.Sort(ids); !slices.Equal(ids, want) {
				t.Errorf("%s, %s by %s: got %v, want %v", when, label, by, ids, want)
			}
		}
	}
	var answer client.AuthDevice
	s.change(http.MethodPatch, management+one, map[string]any{"comment": "over REST", "labels": map[string]string{"site": "north", "line": "1"}}, &answer)
	if answer.Comment != "over REST" || answer.Labels["site"] != "north" {
		t.Errorf("got %+v", answer)
	}
	shown("waiting", one, "over REST", map[string]string{"site": "north", "line": "1"})
	s.cli("authset", "describe", two, "--comment", "by command", "--label", "site=south")
	shown("waiting", two, "by command", map[string]string{"site": "south"})
	s.cli("authset", "describe", one, "--label", "line-")
	shown("waiting", one, "over REST", map[string]string{"site": "north"})

	// They are the record's from now on, and are set by either of its names.
	found("waiting", "site=north", one)
	found("waiting", "line=1")
	s.cli("authset", "accept", "--all", "--label", "site=south")
	found("one let in", "site=south", two)
	found("one let in", "site=north", one)
	s.cli("authset", "accept", "--all")
	shown("let in", one, "over REST", map[string]string{"site": "north"})
	s.cli("device", "label", one, "line=2")
	s.cli("device", "comment", one, "of the record")
	shown("of the record", one, "of the record", map[string]string{"site": "north", "line": "2"})
	s.change(http.MethodPatch, management+two, map[string]any{"labels": map[string]string{"site": "north", "line": "3"}}, &answer)
	if answer.Comment != "by command" || answer.Labels["line"] != "3" {
		t.Errorf("let in, described: got %+v", answer)
	}
	s.cli("authset", "describe", two, "--comment", "over there")
	shown("described", two, "over there", map[string]string{"site": "north", "line": "3"})
	var record client.Device
	s.decode(s.rest(http.MethodGet, "/api/v1/devices/"+two, "", http.StatusOK), &record)
	if record.Comment != "over there" || record.Labels["line"] != "3" {
		t.Errorf("the record: got %+v", record)
	}
	s.rest(http.MethodPatch, "/api/v1/devices/"+one, `{"comment":"of the record, over REST"}`, http.StatusOK)
	s.decode(s.cli("device", "show", one, "-o", "json"), &record)
	if record.Comment != "of the record, over REST" || record.Labels["line"] != "2" {
		t.Errorf("shown by command: got %+v", record)
	}

	for label, want := range map[string][]string{"site=north": {one, two}, "line=2": {one}, "line=3": {two}, "site=south": nil, "line=1": nil} {
		var over struct{ Items []client.Device }
		s.decode(s.rest(http.MethodGet, "/api/v1/devices?label="+label, "", http.StatusOK), &over)
		var listed []client.Device
		s.decode(s.cli("device", "list", "--label", label, "-o", "json"), &listed)
		for by, found := range map[string][]client.Device{"REST": over.Items, "command": listed} {
			var ids []string
			for _, d := range found {
				ids = append(ids, d.ID)
			}
			slices.Sort(ids)
			slices.Sort(want)
			if !slices.Equal(ids, want) {
				t.Errorf("%s, by %s: got %v, want %v", label, by, ids, want)
			}
		}
	}

	found("let in", "site=north", one, two)
	found("let in", "line=2", one)
	found("let in", "site=south")

	// What is too long is refused, and changes nothing.
	body, code := s.curl("-X", http.MethodPatch, "-H", "Authorization: Bearer "+s.key, "-H", "Content-Type: application/json",
		"-d", `{"comment":"`+strings.Repeat("x", 1025)+`"}`, s.url(management+two))
	if code != http.StatusBadRequest || !strings.Contains(body, "comment") {
		t.Errorf("a long comment: got %d %s", code, body)
	}
	shown("refused", two, "over there", map[string]string{"site": "north", "line": "3"})
}

// TestAzureIoTHubFollows: a hub, which checks the signature of every request, has a device created,
// disabled, enabled and deleted, in this order, as it is accepted, suspended, resumed and
// decommissioned here.
func TestAzureIoTHubFollows(t *testing.T) {
	t.Parallel()
	hub := iothubtest.New(t)
	s := start(t, "webhook.ca_file="+hub.CA, "webhook.allow_cidrs=127.0.0.0/8")
	_, key, _ := strings.Cut(hub.Connection(), "SharedAccessKey=")
	s.secret(key)
	follow := func(connection string) string {
		if err := os.WriteFile(s.path("hub.txt"), []byte(connection), 0o600); err != nil {
			t.Fatal(err)
		}
		printed := s.cli("webhook", "create", "--connection-file", s.path("hub.txt"), "-o", "json")
		if strings.Contains(printed, key) {
			t.Error("the key of the hub is shown")
		}
		var made client.Webhook
		s.decode(printed, &made)
		return made.ID
	}
	other := base64.StdEncoding.EncodeToString([]byte("another key than that of the hub"))
	wrong := follow(strings.Replace(hub.Connection(), key, other, 1))
	if r := s.cliFails(1, "webhook", "test", wrong); !strings.Contains(r.err, "401") {
		t.Errorf("a key that is not the hub's: got %s", r.all())
	}
	s.cli("webhook", "delete", wrong)
	right := follow(hub.Connection())
	s.cli("webhook", "test", right)

	d, id := s.waits("hub")
	if got := hub.Changes(id); got != nil {
		t.Errorf("pending: the hub has %v", got)
	}
	becomes := func(want string) {
		t.Helper()
		s.eventually("the hub to have the device "+want, func() bool { return hub.Status(id) == want })
	}
	s.cli("authset", "accept", id)
	becomes("enabled")
	token := d.token()
	s.cli("device", "suspend", id)
	becomes("disabled")
	if got := d.uses(token); got == http.StatusOK {
		t.Error("suspended: its token is taken")
	}
	s.rest(http.MethodPost, "/api/v1/devices/"+id+"/resume", "", http.StatusOK)
	becomes("enabled")
	s.rest(http.MethodDelete, "/api/management/v2/devauth/devices/"+id, "", http.StatusNoContent)
	becomes("")
	if got, want := hub.Changes(id), []string{"create", "disabled", "enabled", "delete"}; !slices.Equal(got, want) {
		t.Errorf("the hub was asked for %v, want %v", got, want)
	}
	s.eventually("nothing to wait for the hub", func() bool {
		return strings.TrimSpace(s.cli("webhook", "deliveries", right, "-o", "json")) == "[]"
	})
	if got := d.uses(token); got == http.StatusOK {
		t.Error("decommissioned: its token is taken")
	}
}
