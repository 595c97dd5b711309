package server_test

import (
	"context"
	"encoding/hex"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/pion/dtls/v3"

	"keystead/coap"
	"keystead/config"
)

func TestSessions(t *testing.T) {
	s := start(t, func(c *config.Config) {
		c.HTTPS.Listen, c.HTTP.Listen, c.Ops.Listen, c.CoAP.UDP, c.CoAP.TCP = "", "", "", "127.0.0.1:0", "127.0.0.1:0"
	})
	if err := s.Listen(t.Context()); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.CoAP.Run(ctx) }()
	defer func() { cancel(); <-done }()

	var key struct{ Identity, Secret string }
	s.call(t, s.admin, "POST", "/api/v1/psk", map[string]any{}, http.StatusCreated, &key)
	secret, err := hex.DecodeString(key.Secret)
	if err != nil {
		t.Fatal(err)
	}
	udp, _ := s.CoAP.Addrs()
	conn, err := dtls.DialWithOptions("udp", net.UDPAddrFromAddrPort(udp), dtls.WithPSK(func([]byte) ([]byte, error) { return secret, nil }),
		dtls.WithPSKIdentityHint([]byte(key.Identity)), dtls.WithCipherSuites(dtls.TLS_PSK_WITH_AES_128_CCM_8))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	ask := coap.Message{Code: coap.GET, ID: 1, Token: []byte{1}, Options: coap.Options{}.AddPath("/whoami")}
	if _, err := conn.Write(ask.Append(nil)); err != nil {
		t.Fatal(err)
	}
	_ = conn.SetReadDeadline(time.Now().Add(5 * time.Second))
	if _, err := conn.Read(make([]byte, 2000)); err != nil {
		t.Fatal(err)
	}
	var page struct {
		Items []struct {
			ID, Transport, Remote, Device string
			Credential                    struct{ Kind, ID string }
			Received                      int `json:"bytes_received"`
			Sent                          int `json:"bytes_sent"`
		}
	}
	s.call(t, s.admin, "GET", "/api/v1/sessions", nil, http.StatusOK, &page)
	if len(page.Items) != 1 {
		t.Fatalf("%d sessions, want 1", len(page.Items))
	}
	one := page.Items[0]
	if one.Transport != "coap+dtls" || !strings.HasSuffix(conn.LocalAddr().String(), one.Remote[strings.LastIndex(one.Remote, ":"):]) || one.Device == "" || one.Credential.Kind != "psk" ||
		one.Credential.ID != key.Identity || one.Received == 0 || one.Sent == 0 {
		t.Errorf("session %+v, want that of %s", one, key.Identity)
	}
	s.call(t, s.admin, "GET", "/api/v1/sessions?device="+one.Device, nil, http.StatusOK, &page)
	if len(page.Items) != 1 {
		t.Errorf("%d sessions of the device, want 1", len(page.Items))
	}
	s.call(t, s.admin, "GET", "/api/v1/sessions?cursor=!!", nil, http.StatusBadRequest, nil)
	s.call(t, s.admin, "DELETE", "/api/v1/sessions/"+one.ID, nil, http.StatusNoContent, nil)
	s.call(t, s.admin, "DELETE", "/api/v1/sessions/"+one.ID, nil, http.StatusNotFound, nil)
	if _, err := conn.Read(make([]byte, 2000)); err == nil {
		t.Error("the device is not told that its session is closed")
	}
	s.call(t, s.admin, "GET", "/api/v1/sessions", nil, http.StatusOK, &page)
	if len(page.Items) != 0 {
		t.Errorf("%d sessions after it was closed, want none", len(page.Items))
	}
}
