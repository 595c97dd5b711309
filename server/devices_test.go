package server_test

import (
	"net/http"
	"strings"
	"testing"
)

type device struct {
	ID, Name, State string
	Aliases         []struct{ Kind, Value string }
	Labels          map[string]string
}

func TestDeviceLife(t *testing.T) {
	s := start(t)
	var d device
	s.call(t, s.admin, "POST", "/api/v1/devices", map[string]any{
		"name": "pump 1", "aliases": []map[string]string{{"kind": "serial_number", "value": "SN-1"}}, "labels": map[string]string{"site": "north"},
	}, http.StatusCreated, &d)
	if d.Name != "pump 1" || d.State != "active" {
		t.Errorf("created %+v", d)
	}
	self := "/api/v1/devices/" + d.ID

	s.call(t, s.admin, "GET", "/api/v1/devices/SN-1", nil, http.StatusOK, &d)
	s.call(t, s.admin, "PATCH", self, map[string]any{"labels": map[string]string{"site": "south"}}, http.StatusOK, &d)
	if d.Labels["site"] != "south" || d.Name != "pump 1" {
		t.Errorf("after the edit %+v, want only the label changed", d)
	}
	var page struct{ Items []device }
	s.call(t, s.admin, "GET", "/api/v1/devices?label=site%3Dsouth", nil, http.StatusOK, &page)
	if len(page.Items) != 1 || page.Items[0].ID != d.ID {
		t.Errorf("by label: %+v, want the one device", page.Items)
	}
	s.call(t, s.admin, "POST", self+"/suspend", nil, http.StatusOK, &d)
	if d.State != "suspended" {
		t.Errorf("state = %s, want suspended", d.State)
	}
	s.call(t, s.admin, "POST", self+"/resume", nil, http.StatusOK, &d)
	s.call(t, s.admin, "DELETE", self, nil, http.StatusNoContent, nil)
	s.call(t, s.admin, "GET", self, nil, http.StatusOK, &d)
	if d.State != "decommissioned" || len(d.Aliases) != 0 {
		t.Errorf("tombstone = %+v, want it decommissioned and nameless", d)
	}
	var counts map[string]int
	s.call(t, s.admin, "GET", "/api/v1/devices/counts", nil, http.StatusOK, &counts)
	if counts["decommissioned"] != 1 || counts["active"] != 0 {
		t.Errorf("counts = %v, want one decommissioned", counts)
	}
}

func TestDevicePages(t *testing.T) {
	s := start(t)
	for range 7 {
		s.call(t, s.admin, "POST", "/api/v1/devices", map[string]any{}, http.StatusCreated, nil)
	}
	seen := map[string]bool{}
	path := "/api/v1/devices?limit=3"
	for path != "" {
		var page struct {
			Items []device
			Next  string
		}
		s.call(t, s.admin, "GET", path, nil, http.StatusOK, &page)
		for _, d := range page.Items {
			if seen[d.ID] {
				t.Errorf("%s is on two pages", d.ID)
			}
			seen[d.ID] = true
		}
		path = ""
		if page.Next != "" {
			path = "/api/v1/devices?limit=3&cursor=" + page.Next
		}
	}
	if len(seen) != 7 {
		t.Errorf("walked %d devices, want 7", len(seen))
	}
}

func TestBadDeviceRequestsSayWhatToDo(t *testing.T) {
	s := start(t)
	for _, test := range []struct {
		name, method, path string
		in                 any
		status             int
		says               string
	}{
		{"wrong type", "POST", "/api/v1/devices", map[string]any{"name": 7}, 400, "must be a string"},
		{"unknown field", "POST", "/api/v1/devices", map[string]any{"height": "x"}, 400, `"height"`},
		{"long name", "POST", "/api/v1/devices", map[string]any{"name": strings.Repeat("x", 300)}, 400, "too long"},
		{"no such device", "GET", "/api/v1/devices/nobody", nil, 404, "no such device"},
		{"no such state", "GET", "/api/v1/devices?state=asleep", nil, 400, "active, suspended or decommissioned"},
		{"no such limit", "GET", "/api/v1/devices?limit=0", nil, 400, "from 1 to 500"},
		{"forged cursor", "GET", "/api/v1/devices?cursor=%25%25", nil, 400, "start again without it"},
		{"label without value", "GET", "/api/v1/devices?label=site", nil, 400, "key=value"},
		{"too large", "POST", "/api/v1/devices", map[string]any{"name": strings.Repeat("x", 2<<20)}, 413, "send less"},
		{"no such credential", "DELETE", "/api/v1/devices/nobody/credentials/psk/x", nil, 404, "no such device"},
		{"no such path", "GET", "/api/v1/device", nil, 404, "/openapi.yaml"},
		{"no such method", "PUT", "/api/v1/devices", nil, 405, "Allow"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var problem struct{ Error, Code string }
			s.call(t, s.admin, test.method, test.path, test.in, test.status, &problem)
			if !strings.Contains(problem.Error, test.says) {
				t.Errorf("error = %q, want it to say %q", problem.Error, test.says)
			}
		})
	}
}
