//go:build pkcs11

package pki_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"keystead/pki"
)

// TestSoftHSM issues from a CA whose key is in a token, before and after the
// token was opened anew.
func TestSoftHSM(t *testing.T) {
	const module = "/usr/lib/softhsm/libsofthsm2.so"
	if _, err := os.Stat(module); err != nil {
		t.Fatalf("SoftHSM2 is needed: %v", err)
	}
	dir := t.TempDir()
	conf, pin := filepath.Join(dir, "softhsm.conf"), filepath.Join(dir, "pin")
	for name, text := range map[string]string{conf: "directories.tokendir = " + dir + "\n", pin: "1234\n"} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("SOFTHSM2_CONF", conf)
	if out, err := exec.CommandContext(t.Context(), "softhsm2-util", "--init-token", "--free", "--label", "keystead", "--pin", "1234", "--so-pin", "5678").CombinedOutput(); err != nil {
		t.Fatalf("softhsm2-util: %s", out)
	}
	settings := pki.PKCS11{Module: module, Token: "keystead", PINFile: pin}
	openToken := func(h *house) func() error {
		if err := settings.Validate(); err != nil {
			t.Fatal(err)
		}
		keys, closeToken, err := pki.OpenPKCS11(settings.WithPIN("1234"))
		if err != nil {
			t.Fatal(err)
		}
		h.Keys = keys
		return closeToken
	}
	h := open(t)
	closeToken := openToken(h)
	root, err := h.CreateCA(h.ctx, pki.NewCA{Name: "HSM root", Algorithm: pki.P384})
	if err != nil {
		t.Fatal(err)
	}
	sub, err := h.CreateCA(h.ctx, pki.NewCA{Name: "HSM issuing", Parent: root.ID, Algorithm: pki.RSA2048})
	if err != nil {
		t.Fatal(err)
	}
	if err := h.SetDefaultCA(h.ctx, sub.ID); err != nil {
		t.Fatal(err)
	}
	if err := closeToken(); err != nil {
		t.Fatal(err)
	}
	defer openToken(h)() //nolint:errcheck // the end of the test
	for _, cn := range []string{"a", "b"} {
		c, _ := h.enrol(t, newKey(t), cn)
		if _, err := h.resolve(t, c); err != nil {
			t.Error(err)
		}
	}
	if _, err := h.CRL(t.Context(), sub.ID, 0); err != nil {
		t.Error(err)
	}
	if err := h.Keys.Delete(t.Context(), sub.Key); err != nil {
		t.Error(err)
	}
	if _, err := h.Keys.Signer(t.Context(), sub.Key); err == nil {
		t.Error("a deleted key is there")
	}
}
