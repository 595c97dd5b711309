package server_test

import (
	"encoding/json"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"keystead/config"
)

type auditRecord struct {
	Seq    uint64 `json:"seq"`
	Action string `json:"action"`
	Device string `json:"device"`
	Actor  struct {
		Kind string `json:"kind"`
		ID   string `json:"id"`
	} `json:"actor"`
	RequestID string `json:"request_id"`
	MAC       string `json:"mac"`
}

type auditPage struct {
	Items []auditRecord `json:"items"`
	Next  string        `json:"next"`
}

func TestAuditTellsWhatWasDone(t *testing.T) {
	s := start(t)
	var d struct {
		ID string `json:"id"`
	}
	s.call(t, s.admin, http.MethodPost, "/api/v1/devices", map[string]string{"name": "pump"}, http.StatusCreated, &d)
	s.call(t, s.admin, http.MethodPost, "/api/v1/devices/"+d.ID+"/suspend", nil, http.StatusOK, nil)

	var p auditPage
	s.call(t, s.admin, http.MethodGet, "/api/v1/audit?device="+d.ID, nil, http.StatusOK, &p)
	if len(p.Items) != 2 || p.Items[0].Action != "device.suspend" || p.Items[1].Action != "device.create" {
		t.Fatalf("got %+v, want the suspension and, before it, the creation", p.Items)
	}
	for _, r := range p.Items {
		if r.Actor.Kind != "user" || r.Actor.ID == "" || r.RequestID == "" || r.Device != d.ID {
			t.Errorf("got %+v, want who did it, in which request, to what", r)
		}
	}
	s.call(t, s.admin, http.MethodGet, "/api/v1/audit?order=oldest&action=device&limit=1", nil, http.StatusOK, &p)
	if len(p.Items) != 1 || p.Items[0].Action != "device.create" || p.Next == "" {
		t.Fatalf("got %+v, want the creation and a next page", p)
	}
	s.call(t, s.admin, http.MethodGet, "/api/v1/audit?since="+time.Now().Add(time.Hour).UTC().Format(time.RFC3339), nil, http.StatusOK, &p)
	if len(p.Items) != 0 {
		t.Errorf("got %+v of the future", p.Items)
	}
	for _, query := range []string{"?order=upwards", "?since=yesterday", "?all=perhaps", "?limit=0", "?cursor=!"} {
		s.call(t, s.admin, http.MethodGet, "/api/v1/audit"+query, nil, http.StatusBadRequest, nil)
	}
}

func TestAuditExportIsLinesOfJSON(t *testing.T) {
	s := start(t)
	for range 3 {
		s.call(t, s.admin, http.MethodPost, "/api/v1/devices", map[string]string{"name": "pump"}, http.StatusCreated, nil)
	}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, s.url+"/api/v1/audit/export?order=oldest&all=true", nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+s.admin)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(string(body)), "\n")
	for i, line := range lines {
		var r auditRecord
		if err := json.Unmarshal([]byte(line), &r); err != nil || r.Seq != uint64(i+1) {
			t.Errorf("line %d: got %q, %v", i, line, err)
		}
	}
	if last := lines[len(lines)-1]; !strings.Contains(last, `"audit.export"`) {
		t.Errorf("got %s, want that the export tells of itself", last)
	}
}

func TestAuditVerifyFindsWhatCheckpointsTell(t *testing.T) {
	data := t.TempDir()
	s := start(t, func(c *config.Config) { c.Data = data })
	s.call(t, s.admin, http.MethodPost, "/api/v1/devices", map[string]string{"name": "pump"}, http.StatusCreated, nil)
	if err := s.Audit.Finish(t.Context()); err != nil {
		t.Fatal(err)
	}
	var kept struct {
		PublicKey string           `json:"public_key"`
		Items     []map[string]any `json:"items"`
	}
	s.call(t, s.admin, http.MethodGet, "/api/v1/audit/checkpoints", nil, http.StatusOK, &kept)
	if len(kept.Items) != 1 || kept.PublicKey == "" {
		t.Fatalf("got %+v, want a checkpoint", kept)
	}
	var out struct {
		Sound       bool   `json:"sound"`
		Fault       string `json:"fault"`
		Records     int    `json:"records"`
		Checkpoints int    `json:"checkpoints"`
	}
	s.call(t, s.admin, http.MethodPost, "/api/v1/audit/verify", map[string]any{"checkpoints": kept.Items}, http.StatusOK, &out)
	if !out.Sound || out.Checkpoints != 2 || out.Records == 0 {
		t.Errorf("got %+v, want a sound trail, compared with both", out)
	}
	kept.Items[0]["seq"] = 4711
	s.call(t, s.admin, http.MethodPost, "/api/v1/audit/verify", map[string]any{"checkpoints": kept.Items}, http.StatusOK, &out)
	if out.Sound || out.Fault == "" {
		t.Errorf("got %+v, want that the checkpoint is not of this trail", out)
	}
	// A torn last line is passed over, and the next one is whole.
	f, err := os.OpenFile(filepath.Join(data, "audit-checkpoints.jsonl"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(`{"seq":9,"ma`); err != nil {
		t.Fatal(err)
	}
	f.Close()
	s.call(t, s.admin, http.MethodPost, "/api/v1/devices", map[string]string{"name": "pump"}, http.StatusCreated, nil)
	if err := s.Audit.Finish(t.Context()); err != nil {
		t.Fatal(err)
	}
	s.call(t, s.admin, http.MethodGet, "/api/v1/audit/checkpoints", nil, http.StatusOK, &kept)
	if len(kept.Items) != 2 {
		t.Errorf("got %d checkpoints, want 2", len(kept.Items))
	}
}
