package server_test

import (
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"

	"keystead/accounts"
	"keystead/coap"
	"keystead/coapgw"
	"keystead/config"
	"keystead/identity"
)

// TestAnOCFDeviceSignsUpWithACodeOfThisServer goes from the code a user gives a
// device to the device's end, over CoAP and TLS.
func TestAnOCFDeviceSignsUpWithACodeOfThisServer(t *testing.T) {
	s := start(t, func(c *config.Config) {
		c.HTTPS.Listen, c.HTTP.Listen, c.Ops.Listen, c.CoAP.UDP, c.CoAP.TCP = "", "", "", "", "127.0.0.1:0"
		c.CoAP.OCF.Enabled, c.CoAP.OCF.ClientCertificateRequired = true, false
		c.CoAP.OCF.DeviceIDClaim = "device_id"
		c.CoAP.OCF.Providers = []coapgw.OCFProvider{{Name: "keystead"}}
	})
	s.runCoAP(t)

	var me struct{ User string }
	s.call(t, s.admin, "GET", "/api/v1/whoami", nil, http.StatusOK, &me)
	in := identity.NewContext(t.Context(), identity.Actor{
		Kind: identity.User, ID: me.User, Org: s.org, Role: identity.Operator, Credential: identity.Credential{Kind: identity.Session},
	})
	const di, redirect = "b5a2a42e-b285-42f1-a36b-034c8fc8efd5", "https://app.example/back"
	client, _, err := s.Accounts.CreateClient(in, accounts.NewClient{Name: "app", Devices: true, Redirects: []string{redirect}})
	if err != nil {
		t.Fatal(err)
	}
	code, err := s.Accounts.Approve(in, accounts.Authorization{Client: client.ID, Redirect: redirect, Type: "code", Device: di})
	if err != nil {
		t.Fatal(err)
	}
	conn := s.dialOCF(t)
	up := conn.ask(t, coap.POST, "/oic/sec/account", map[string]any{"di": di, "accesstoken": string(code), "authprovider": "keystead"}, coap.Changed)
	if up["uid"] != me.User || up["refreshtoken"] == "" {
		t.Errorf("sign up: %v", up)
	}
	conn.ask(t, coap.POST, "/oic/sec/session", map[string]any{"di": di, "uid": up["uid"], "accesstoken": up["accesstoken"], "login": true}, coap.Changed)
	who := conn.ask(t, coap.GET, "/whoami", nil, coap.Content)
	var d struct {
		ID      string
		Aliases []struct{ Kind, Value string }
	}
	s.call(t, s.admin, "GET", "/api/v1/devices/"+di, nil, http.StatusOK, &d)
	if who["device"] != d.ID || who["organisation"] != s.org {
		t.Errorf("whoami: %v, want device %s", who, d.ID)
	}
	again := conn.ask(t, coap.POST, "/oic/sec/tokenrefresh", map[string]any{"di": di, "uid": up["uid"], "refreshtoken": up["refreshtoken"]}, coap.Changed)
	if again["accesstoken"] == up["accesstoken"] || again["refreshtoken"] == up["refreshtoken"] {
		t.Errorf("refresh: %v, want new tokens", again)
	}
	s.call(t, s.admin, "POST", "/api/v1/devices/"+di+"/suspend", nil, http.StatusOK, nil)
	if _, err := conn.Read(make([]byte, 1)); err == nil {
		_, err = conn.Read(make([]byte, 100)) // a goodbye, and the end
		_ = err
	}
	conn = s.dialOCF(t)
	conn.ask(t, coap.POST, "/oic/sec/session", map[string]any{"di": di, "uid": up["uid"], "accesstoken": again["accesstoken"], "login": true}, coap.Unauthorized)
	s.call(t, s.admin, "POST", "/api/v1/devices/"+di+"/resume", nil, http.StatusOK, nil)
	conn = s.dialOCF(t)
	conn.ask(t, coap.POST, "/oic/sec/session", map[string]any{"di": di, "uid": up["uid"], "accesstoken": again["accesstoken"], "login": true}, coap.Changed)
	conn.ask(t, coap.DELETE, "/oic/sec/account", nil, coap.Deleted)
	s.call(t, s.admin, "GET", "/api/v1/devices/"+d.ID, nil, http.StatusOK, &struct{}{})
	var page struct{ Items []struct{ ID string } }
	s.call(t, s.admin, "GET", "/api/v1/devices?state=decommissioned", nil, http.StatusOK, &page)
	if len(page.Items) != 1 || page.Items[0].ID != d.ID {
		t.Errorf("after the sign-off these are decommissioned: %v, want the device", page.Items)
	}
}

// ocfConn is a device's connection over TLS.
type ocfConn struct {
	*tls.Conn
	buf []byte
}

func (r *running) dialOCF(t *testing.T) *ocfConn {
	t.Helper()
	_, at := r.CoAP.Addrs()
	conn, err := tls.Dial("tcp", at.String(), &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &ocfConn{Conn: conn}
}

// ask makes a request whose answer must have a code, and returns the answer's body.
func (c *ocfConn) ask(t *testing.T, method coap.Code, path string, body map[string]any, code coap.Code) (v map[string]any) {
	t.Helper()
	m := coap.Message{Code: method, Token: []byte{1}, Options: coap.Options{}.AddPath(path)}
	if body != nil {
		var err error
		if m.Payload, err = cbor.Marshal(body); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.Write(m.AppendStream(nil)); err != nil {
		t.Fatal(err)
	}
	for {
		got, err := c.next()
		if err != nil {
			t.Fatalf("%v %s: %v", method, path, err)
		}
		if !got.Code.IsResponse() {
			continue
		}
		if got.Code != code {
			t.Fatalf("%v %s: %v %s, want %v", method, path, got.Code, got.Payload, code)
		}
		if code.Class() == 2 && len(got.Payload) > 0 {
			if err := cbor.Unmarshal(got.Payload, &v); err != nil {
				t.Fatal(err)
			}
		}
		return v
	}
}

func (c *ocfConn) next() (*coap.Message, error) {
	_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
	for {
		got, n, err := coap.ParseStream(c.buf, 1<<16)
		if err != nil {
			return nil, err
		}
		if n > 0 {
			c.buf = c.buf[n:]
			return &got, nil
		}
		more := make([]byte, 4096)
		k, err := c.Read(more)
		if k == 0 && err != nil {
			return nil, err
		}
		c.buf = append(c.buf, more[:k]...)
	}
}

// wantEnd waits for the gateway to close the connection.
func (c *ocfConn) wantEnd(t *testing.T) {
	t.Helper()
	for {
		if _, err := c.next(); err != nil {
			if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() {
				t.Error("the connection stays open")
			}
			return
		}
	}
}
