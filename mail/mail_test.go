package mail_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net"
	netmail "net/mail"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/emersion/go-sasl"
	"github.com/emersion/go-smtp"

	"keystead/mail"
	"keystead/seal"
	"keystead/store"
	"keystead/store/bolt"
)

// postOffice is a mail server of the tests.
type postOffice struct {
	addr  string
	roots *x509.CertPool

	mu       sync.Mutex
	taken    []taken
	tries    int
	refuse   *smtp.SMTPError // what each mail is answered with
	password string          // "" asks for none
	hang     chan struct{}   // closed: mails are taken
}

type taken struct {
	from, to string
	raw      []byte
	tls      bool
}

func (p *postOffice) NewSession(c *smtp.Conn) (smtp.Session, error) {
	_, secured := c.TLSConnectionState()
	return &visit{office: p, secured: secured}, nil
}

type visit struct {
	office  *postOffice
	secured bool
	known   bool
	mail    taken
}

func (v *visit) AuthMechanisms() []string { return []string{sasl.Plain} }

func (v *visit) Auth(string) (sasl.Server, error) {
	return sasl.NewPlainServer(func(_, user, password string) error {
		if user != "keystead" || password != v.office.password {
			return errors.New("wrong password")
		}
		v.known = true
		return nil
	}), nil
}

func (v *visit) Mail(from string, _ *smtp.MailOptions) error {
	v.office.mu.Lock()
	defer v.office.mu.Unlock()
	v.office.tries++
	if v.office.password != "" && !v.known {
		return smtp.ErrAuthRequired
	}
	v.mail = taken{from: from, tls: v.secured}
	return nil
}

func (v *visit) Rcpt(to string, _ *smtp.RcptOptions) error {
	v.office.mu.Lock()
	defer v.office.mu.Unlock()
	if v.office.refuse != nil {
		return v.office.refuse
	}
	if v.mail.to != "" {
		return errors.New("one at a time")
	}
	v.mail.to = to
	return nil
}

func (v *visit) Data(r io.Reader) error {
	b, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	if v.office.hang != nil {
		<-v.office.hang
	}
	v.office.mu.Lock()
	defer v.office.mu.Unlock()
	v.mail.raw = b
	v.office.taken = append(v.office.taken, v.mail)
	return nil
}

func (v *visit) Reset()        { v.mail = taken{} }
func (v *visit) Logout() error { return nil }

// certificate is one for localhost, and the pool that trusts it.
func certificate(t *testing.T) (tls.Certificate, *x509.CertPool) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "localhost"}, DNSNames: []string{"localhost"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(leaf)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, roots
}

// openOffice starts a mail server, with STARTTLS or without.
func openOffice(t *testing.T, startTLS bool, change ...func(*postOffice)) *postOffice {
	t.Helper()
	p := &postOffice{}
	for _, c := range change {
		c(p)
	}
	pair, roots := certificate(t)
	p.roots = roots
	s := smtp.NewServer(p)
	s.Domain = "localhost"
	s.ReadTimeout, s.WriteTimeout = time.Minute, time.Minute
	if startTLS {
		s.TLSConfig = &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}
	} else {
		s.AllowInsecureAuth = true
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(l.Addr().String())
	p.addr = net.JoinHostPort("localhost", port)
	go s.Serve(l) // it ends with Close
	t.Cleanup(func() { s.Close() })
	return p
}

func (p *postOffice) mails() []taken {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]taken(nil), p.taken...)
}

// world is a service over a fresh store, with a clock of its own.
type world struct {
	*mail.Service

	now  time.Time
	logs bytes.Buffer
	file string
}

func newWorld(t *testing.T, p *postOffice, change ...func(*mail.Service)) *world {
	t.Helper()
	file := filepath.Join(t.TempDir(), "mail.db")
	db, err := bolt.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { db.Close() })
	box, err := seal.NewBox(make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	w := &world{now: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC), file: file}
	conf := mail.DefaultConfig()
	conf.Server, conf.From, conf.Timeout = p.addr, "Keystead <keystead@example.com>", 20*time.Second
	w.Service = &mail.Service{
		DB: db, Box: box, Now: func() time.Time { return w.now }, Log: slog.New(slog.NewTextHandler(&w.logs, nil)),
		Config: conf, TLS: &tls.Config{RootCAs: p.roots, MinVersion: tls.VersionTLS12},
	}
	for _, c := range change {
		c(w.Service)
	}
	if err := w.Config.Validate(); err != nil {
		t.Fatal(err)
	}
	return w
}

func (w *world) queue(t *testing.T, mails ...mail.Mail) {
	t.Helper()
	for _, m := range mails {
		if err := w.DB.Update(t.Context(), func(tx store.Tx) error { return w.Queue(tx, m) }); err != nil {
			t.Fatal(err)
		}
	}
}

func (w *world) round(t *testing.T) time.Duration {
	t.Helper()
	pause, err := w.Round(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return pause
}

const secret = "keystead_recovery_canary"

var letter = mail.Mail{To: "ann@example.com", Subject: "Reset your password", Text: "Open this:\n\nhttps://id.example.com/reset#" + secret + "\n"}

func TestAMailIsSentOverSTARTTLS(t *testing.T) {
	p := openOffice(t, true, func(p *postOffice) { p.password = "hush" })
	w := newWorld(t, p, func(s *mail.Service) { s.Config.Username, s.Password = "keystead", seal.Secret("hush") })
	w.queue(t, letter, mail.Mail{To: "nobody@example.com", Decoy: true}, mail.Mail{To: "late@example.com", Until: w.now})
	w.round(t)
	got := p.mails()
	if len(got) != 1 || !got[0].tls || got[0].from != "keystead@example.com" || got[0].to != "ann@example.com" {
		t.Fatalf("the mail server took %+v; want one mail to ann, over TLS", got)
	}
	m, err := netmail.ReadMessage(bytes.NewReader(got[0].raw))
	if err != nil {
		t.Fatal(err)
	}
	body, err := io.ReadAll(m.Body)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(strings.ReplaceAll(string(body), "=\r\n", ""), "/reset#"+secret) {
		t.Errorf("the text is %q, want the link in it whole", body)
	}
	for name, want := range map[string]string{
		"From": `"Keystead" <keystead@example.com>`, "To": "<ann@example.com>", "Subject": "Reset your password",
		"Auto-Submitted": "auto-generated", "Date": "Sun, 01 Mar 2026 12:00:00 +0000",
	} {
		if m.Header.Get(name) != want {
			t.Errorf("%s: %q, want %q", name, m.Header.Get(name), want)
		}
	}
	if !strings.HasSuffix(m.Header.Get("Message-ID"), "@example.com>") {
		t.Errorf("Message-ID: %q; want one of the sender's domain, not of this machine", m.Header.Get("Message-ID"))
	}
	w.round(t)
	if n := len(p.mails()); n != 1 {
		t.Errorf("after another round %d mails were sent, want still one", n)
	}
}

// A mail server that will not have the mail, or that is not who it should be, gets
// nothing that somebody else could use.
func TestMailServersThatDoNotGoAlong(t *testing.T) {
	for name, test := range map[string]struct {
		startTLS bool
		office   func(*postOffice)
		service  func(*mail.Service)
		again    bool // it is tried again
		reason   string
	}{
		"no STARTTLS":                  {false, nil, nil, true, ""},
		"a certificate nobody trusts":  {true, nil, func(s *mail.Service) { s.TLS = nil }, true, ""},
		"a wrong password":             {true, func(p *postOffice) { p.password = "hush" }, func(s *mail.Service) { s.Config.Username, s.Password = "keystead", seal.Secret("no") }, true, ""},
		"nobody there":                 {true, nil, func(s *mail.Service) { s.Config.Server = "localhost:1" }, true, "cannot be reached"},
		"refused for the moment (451)": {true, func(p *postOffice) { p.refuse = &smtp.SMTPError{Code: 451, Message: "not now ann"} }, nil, true, "tried again"},
		"refused for good (550)":       {true, func(p *postOffice) { p.refuse = &smtp.SMTPError{Code: 550, Message: "no such ann"} }, nil, false, "for good"},
	} {
		t.Run(name, func(t *testing.T) {
			p := openOffice(t, test.startTLS, func(p *postOffice) {
				if test.office != nil {
					test.office(p)
				}
			})
			w := newWorld(t, p, func(s *mail.Service) {
				if test.service != nil {
					test.service(s)
				}
			})
			w.queue(t, letter)
			pause := w.round(t)
			if test.again && (pause < time.Second || pause > 6*time.Second) {
				t.Errorf("the next try is in %v, want soon", pause)
			}
			if n := len(p.mails()); n != 0 {
				t.Fatalf("%d mails were taken, want none", n)
			}
			logs := w.logs.String()
			if !strings.Contains(logs, test.reason) {
				t.Errorf("the log has no %q:\n%s", test.reason, logs)
			}
			for _, canary := range []string{secret, "ann@", "such ann", "now ann", "hush"} {
				if strings.Contains(logs, canary) {
					t.Errorf("the log tells %q:\n%s", canary, logs)
				}
			}
			// It comes through once the mail server goes along, unless it was refused for good.
			open := openOffice(t, true)
			w.Config.Server, w.Config.Username, w.TLS = open.addr, "", &tls.Config{RootCAs: open.roots, MinVersion: tls.VersionTLS12}
			w.now = w.now.Add(time.Minute)
			w.round(t)
			if n := len(open.mails()); (n == 1) != test.again {
				t.Errorf("later %d mails came, want it: %v", n, test.again)
			}
		})
	}
}

func TestASlowMailServerHoldsUpNobody(t *testing.T) {
	hang := make(chan struct{})
	p := openOffice(t, true, func(p *postOffice) { p.hang = hang })
	w := newWorld(t, p)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- w.Run(ctx) }()
	for range 20 { // while the first of them hangs
		w.queue(t, letter)
	}
	close(hang)
	for deadline := time.Now().Add(time.Minute); len(p.mails()) < 20; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d of 20 mails came", len(p.mails()))
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestMailsWaitSealedAndBounded(t *testing.T) {
	p := openOffice(t, true)
	w := newWorld(t, p, func(s *mail.Service) { s.Config.MaxWaiting = 3 })
	for range 5 {
		w.queue(t, letter)
	}
	if n, err := w.Reseal(t.Context()); err != nil || n != 0 {
		t.Errorf("Reseal = %d, %v; want nothing to do", n, err)
	}
	w.round(t)
	if n := len(p.mails()); n != 3 || !strings.Contains(w.logs.String(), "too many wait") {
		t.Errorf("%d mails came of 5 where 3 may wait; the log says %s", n, w.logs.String())
	}
}

// TestOneThatCannotBeOpenedHoldsUpNoOther: it waits, and the log says so.
func TestOneThatCannotBeOpenedHoldsUpNoOther(t *testing.T) {
	p := openOffice(t, true)
	w := newWorld(t, p)
	w.queue(t, letter)
	box, err := seal.NewBox(seal.NewSecret(32))
	if err != nil {
		t.Fatal(err)
	}
	w.Box = box
	w.queue(t, letter)
	w.round(t)
	if n := len(p.mails()); n != 1 || !strings.Contains(w.logs.String(), "cannot open one") {
		t.Errorf("%d mails came, want the one that can be opened; the log says %s", n, w.logs.String())
	}
}

// An address that would write lines of its own into the mail, or into the
// conversation with the mail server, gets no mail.
func TestHeadersAreNotInjected(t *testing.T) {
	p := openOffice(t, true)
	w := newWorld(t, p)
	for _, to := range []string{
		"ann@example.com\r\nBcc: eve@example.com", "ann@example.com\nSubject: x", "ann@example.com>\r\nRCPT TO:<eve@example.com",
		"ann@example.com, eve@example.com", "\"a\r\nb\"@example.com", "<ann@example.com> SIZE=1", "", "\x00@example.com",
	} {
		w.queue(t, mail.Mail{To: to, Subject: "x", Text: "y"})
	}
	w.queue(t, mail.Mail{To: "ann@example.com", Subject: "x\r\nBcc: eve@example.com", Text: ".\r\nRCPT TO:<eve@example.com>\r\n.\r\n"})
	w.round(t)
	for _, m := range p.mails() {
		read, err := netmail.ReadMessage(bytes.NewReader(m.raw))
		if err != nil {
			t.Fatal(err)
		}
		if m.to != "ann@example.com" || read.Header.Get("Bcc") != "" {
			t.Errorf("a mail to %q with Bcc %q came", m.to, read.Header.Get("Bcc"))
		}
	}
}

func TestConfig(t *testing.T) {
	good := mail.DefaultConfig()
	good.Server, good.From = "mail.example.com:587", "keystead@example.com"
	for want, change := range map[string]func(*mail.Config){
		"":          func(*mail.Config) {},
		"server:":   func(c *mail.Config) { c.Server = "mail.example.com" },
		"from:":     func(c *mail.Config) { c.From = "nobody" },
		"security:": func(c *mail.Config) { c.Security = "maybe" },
		"timeout:":  func(c *mail.Config) { c.Timeout = 0 },
		"username:": func(c *mail.Config) { c.Security, c.Username = mail.None, "x" },
	} {
		c := good
		change(&c)
		if err := c.Validate(); (err == nil) != (want == "") || err != nil && !strings.HasPrefix(err.Error(), want) {
			t.Errorf("Validate = %v, want %q", err, want)
		}
	}
}
