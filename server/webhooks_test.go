package server_test

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"keystead/config"
)

func TestWebhookHearsOfDevicesSigned(t *testing.T) {
	type message struct {
		header http.Header
		body   []byte
	}
	got := make(chan message, 16)
	hook := httptest.NewTLSServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		got <- message{r.Header, body}
	}))
	t.Cleanup(hook.Close)
	ca := filepath.Join(t.TempDir(), "hook.pem")
	if err := os.WriteFile(ca, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: hook.Certificate().Raw}), 0o600); err != nil {
		t.Fatal(err)
	}
	s := start(t, func(c *config.Config) {
		c.Webhook.CAFile, c.Webhook.AllowCIDRs = ca, []string{"127.0.0.0/8"}
	})

	var made struct{ ID, Secret string }
	s.call(t, s.admin, "POST", "/api/v1/webhooks", map[string]any{"url": hook.URL, "types": []string{"device.*"}}, http.StatusCreated, &made)
	var shown map[string]any
	s.call(t, s.admin, "GET", "/api/v1/webhooks/"+made.ID, nil, http.StatusOK, &shown)
	if _, there := shown["secret"]; there {
		t.Error("the secret is shown again")
	}
	var d device
	s.call(t, s.admin, "POST", "/api/v1/devices", map[string]any{"name": "pump"}, http.StatusCreated, &d)
	if _, err := s.Events.Round(t.Context()); err != nil {
		t.Fatal(err)
	}
	select {
	case m := <-got:
		var e struct {
			Type, Subject string
			Data          struct{ Device device }
		}
		if err := json.Unmarshal(m.body, &e); err != nil || e.Type != "keystead.device.create" || e.Subject != d.ID || e.Data.Device.Name != "pump" {
			t.Errorf("event = %s, %v", m.body, err)
		}
		when, sig, _ := strings.Cut(strings.TrimPrefix(m.header.Get("X-Keystead-Signature"), "t="), ",v1=")
		secret, err := hex.DecodeString(made.Secret)
		if err != nil {
			t.Fatal(err)
		}
		mac := hmac.New(sha256.New, secret)
		mac.Write([]byte(when + "."))
		mac.Write(m.body)
		if want := hex.EncodeToString(mac.Sum(nil)); sig != want {
			t.Errorf("signature %s, want %s", sig, want)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("nothing arrived")
	}
}

func TestWebhookToAPrivateAddressWaitsAndSaysWhy(t *testing.T) {
	s := start(t)
	var made struct{ ID string }
	s.call(t, s.admin, "POST", "/api/v1/webhooks", map[string]any{"url": "https://127.0.0.1:1/"}, http.StatusCreated, &made)
	s.call(t, s.admin, "POST", "/api/v1/devices", map[string]any{}, http.StatusCreated, nil)
	if _, err := s.Events.Round(t.Context()); err != nil {
		t.Fatal(err)
	}
	var page struct {
		Items []struct {
			Tries     int
			LastError string `json:"last_error"`
		}
	}
	s.call(t, s.admin, "GET", "/api/v1/webhooks/"+made.ID+"/deliveries", nil, http.StatusOK, &page)
	if len(page.Items) != 1 || page.Items[0].Tries != 1 || !strings.Contains(page.Items[0].LastError, "webhook.allow_cidrs") {
		t.Errorf("deliveries = %+v, want one that names the setting", page.Items)
	}
	s.call(t, s.admin, "DELETE", "/api/v1/webhooks/"+made.ID, nil, http.StatusNoContent, nil)
}
