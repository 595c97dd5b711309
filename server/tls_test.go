package server_test

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"keystead/config"
	"keystead/server"
)

// writePair writes a self-signed certificate with a number, and its key.
func writePair(t *testing.T, certificate, key string, number int64) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(number), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"localhost"}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	pkcs8, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	for path, block := range map[string]*pem.Block{certificate: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "PRIVATE KEY", Bytes: pkcs8}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

// The certificate changes under load: new handshakes have the new one, open
// connections go on, and files that are no good leave the old one in place.
func TestCertificateIsSwappedWithoutDroppingAConnection(t *testing.T) {
	dir := t.TempDir()
	certificate, key := filepath.Join(dir, "tls.pem"), filepath.Join(dir, "tls.key")
	writePair(t, certificate, key, 1)
	s := start(t, func(c *config.Config) {
		c.HTTPS.Listen, c.HTTP.Listen, c.Ops.Listen, c.CoAP.UDP, c.CoAP.TCP = "127.0.0.1:0", "", "", "", ""
		c.TLS.Certificate, c.TLS.Key = certificate, key
	})
	if err := s.Listen(t.Context()); err != nil {
		t.Fatal(err)
	}
	serve(t, s.Server)
	at := s.Addresses()["https"]
	dial := func() (*tls.Conn, error) {
		c, err := (&tls.Dialer{Config: &tls.Config{InsecureSkipVerify: true, ServerName: "localhost"}}).DialContext(t.Context(), "tcp", at)
		if err != nil {
			return nil, err
		}
		return c.(*tls.Conn), nil
	}
	serial := func(c *tls.Conn) int64 { return c.ConnectionState().PeerCertificates[0].SerialNumber.Int64() }
	open, err := dial()
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	answers := bufio.NewReader(open)
	ask := func() error {
		if _, err := open.Write([]byte("GET /openapi.yaml HTTP/1.1\r\nHost: localhost\r\n\r\n")); err != nil {
			return err
		}
		resp, err := http.ReadResponse(answers, nil)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != http.StatusOK {
			return fmt.Errorf("got %d, %w", resp.StatusCode, err)
		}
		return nil
	}
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	handshakes := 0
	wg.Go(func() {
		for ; ctx.Err() == nil; handshakes++ {
			c, err := dial()
			if err != nil {
				t.Errorf("handshake %d: %v", handshakes, err)
				return
			}
			c.Close()
		}
	})
	const swaps = 200
	for n := range int64(swaps) {
		writePair(t, certificate, key, n+2)
		if err := s.SwapTLS(); err != nil {
			t.Fatal(err)
		}
		if n%20 == 0 {
			if err := ask(); err != nil {
				t.Fatalf("the open connection after %d swaps: %v", n, err)
			}
		}
	}
	stop()
	wg.Wait()
	c, err := dial()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if got := serial(c); got != swaps+1 {
		t.Errorf("got certificate %d, want %d", got, swaps+1)
	}
	if got := serial(open); got != 1 {
		t.Errorf("the open connection has certificate %d, want 1", got)
	}
	if err := os.WriteFile(key, []byte("nonsense"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := s.SwapTLS(); err == nil {
		t.Error("a key that is none: no error")
	}
	again, err := dial()
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	if got := serial(again); got != swaps+1 {
		t.Errorf("after files that are no good: got certificate %d, want %d", got, swaps+1)
	}
	t.Logf("certificate swap: %d swaps, %d handshakes meanwhile, none failed", swaps, handshakes)
}

func TestOldTLSIsRefused(t *testing.T) {
	for least, refused := range map[string]uint16{"1.2": tls.VersionTLS11, "1.3": tls.VersionTLS12} {
		s := start(t, func(c *config.Config) {
			c.HTTPS.Listen, c.HTTP.Listen, c.Ops.Listen, c.CoAP.UDP, c.CoAP.TCP = "127.0.0.1:0", "", "", "", ""
			c.TLS.MinVersion = least
		})
		if err := s.Listen(t.Context()); err != nil {
			t.Fatal(err)
		}
		serve(t, s.Server)
		conf := &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS10, MaxVersion: refused}
		if c, err := (&tls.Dialer{Config: conf}).DialContext(t.Context(), "tcp", s.Addresses()["https"]); err == nil {
			c.Close()
			t.Errorf("min_version %s: a handshake with %s", least, tls.VersionName(refused))
		}
	}
}

func TestCertificateFilesMustFitAtStart(t *testing.T) {
	dir := t.TempDir()
	writePair(t, filepath.Join(dir, "a.pem"), filepath.Join(dir, "a.key"), 1)
	writePair(t, filepath.Join(dir, "b.pem"), filepath.Join(dir, "b.key"), 2)
	for _, key := range []string{"b.key", "none.key"} {
		cfg := config.Default()
		cfg.Data = t.TempDir()
		cfg.TLS.Certificate, cfg.TLS.Key = filepath.Join(dir, "a.pem"), filepath.Join(dir, key)
		if s, err := server.Build(t.Context(), cfg, slog.New(slog.DiscardHandler)); err == nil {
			s.Close()
			t.Errorf("%s: the server started", key)
		}
	}
}
