package coapgw_test

import (
	"strings"
	"testing"

	"keystead/coap"
)

func TestWhoamiIsTheSameByPSKAndByCertificate(t *testing.T) {
	w := newWorld(t)
	for name, c := range map[string]*client{
		"psk":         w.mustDial(psk("dev1", testKey)...),
		"certificate": w.mustDial(certificate(w.ca.issue("cert1"))...),
	} {
		got := c.do(coap.GET, "/whoami", coap.Options{}.AddUint(coap.Accept, uint32(coap.JSON)), nil)
		if got.Code != coap.Content || !strings.Contains(string(got.Payload), `"device":"d1"`) || !strings.Contains(string(got.Payload), `"kind":"`+name) {
			t.Errorf("by %s: %v %s, want d1 by its %s", name, got.Code, got.Payload, name)
		}
	}
}

func TestLibcoapClients(t *testing.T) {
	w := newWorld(t)
	url := "coaps://" + w.udp.String() + "/whoami"
	for _, flavour := range []string{"openssl", "gnutls"} {
		out := w.libcoap(flavour, "-B", "5", "-A", "50", "-u", "dev1", "-k", testKey, url)
		if !strings.Contains(out, `"device":"d1"`) || !strings.Contains(out, `"kind":"psk"`) {
			t.Errorf("%s by psk: %s", flavour, out)
		}
		out = w.libcoap(flavour, append(w.files("cert1"), "-B", "5", "-A", "50", url)...)
		if !strings.Contains(out, `"device":"d1"`) || !strings.Contains(out, `"kind":"certificate"`) {
			t.Errorf("%s by certificate: %s", flavour, out)
		}
	}
}
