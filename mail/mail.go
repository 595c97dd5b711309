// Package mail sends the few mails there are: links to reset a password, to verify
// an address, to accept an invite.
//
// A mail is a record of the store, sealed, for it may hold a key, and written in the
// transaction of what it tells of. Sending it is separate work, so nobody who asks for a
// mail waits for a mail server, or learns from the time an answer takes
// whether there was one to send.
package mail

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	netmail "net/mail"
	"strconv"
	"time"

	gomail "github.com/wneessen/go-mail"

	"keystead/fault"
	"keystead/id"
	"keystead/page"
	"keystead/seal"
	"keystead/store"
)

// Service keeps the mails that wait, and sends them. Fill in the fields.
type Service struct {
	DB       store.Engine
	Box      *seal.Box
	Now      func() time.Time
	Log      *slog.Logger
	Config   Config
	Password seal.Secret // of Config.Username; nil for none
	TLS      *tls.Config // roots of the mail server's certificate; nil for the system's

	bell store.Bell // rung when there is a mail to send
}

// Config is what an operator may choose.
type Config struct {
	Server       string        `mapstructure:"server"` // host:port of the mail server; "" sends no mail
	From         string        `mapstructure:"from"`
	Username     string        `mapstructure:"username"`
	PasswordFile string        `mapstructure:"password_file"`
	Security     Security      `mapstructure:"security"`
	CAFile       string        `mapstructure:"ca_file"`
	Timeout      time.Duration `mapstructure:"timeout"`     // of one delivery
	MaxWaiting   int           `mapstructure:"max_waiting"` // mails that may wait for the mail server
}

// Security is how the connection to the mail server is kept from others.
type Security string

// The kinds of security.
const (
	StartTLS Security = "starttls" // required: a server without it gets no mail
	TLS      Security = "tls"      // from the first byte
	None     Security = "none"
)

// DefaultConfig is what an empty configuration gives.
func DefaultConfig() Config {
	return Config{Security: StartTLS, Timeout: 30 * time.Second, MaxWaiting: 10_000}
}

// Validate reports what is wrong with c.
func (c Config) Validate() error {
	var errs []error
	switch c.Security {
	case StartTLS, TLS, None:
	default:
		errs = append(errs, fmt.Errorf("security: %q is not starttls, tls or none", c.Security))
	}
	if c.Timeout < time.Second || c.Timeout > 10*time.Minute {
		errs = append(errs, errors.New("timeout: must be from 1s to 10m"))
	}
	if c.MaxWaiting < 1 {
		errs = append(errs, errors.New("max_waiting: must be at least 1"))
	}
	if c.Server == "" {
		return errors.Join(errs...)
	}
	if _, _, err := c.address(); err != nil {
		errs = append(errs, errors.New("server: must be host:port, such as mail.example.com:587"))
	}
	if _, err := netmail.ParseAddress(c.From); err != nil {
		errs = append(errs, errors.New("from: must be an address, such as Keystead <keystead@example.com>"))
	}
	if c.Username != "" && c.Security == None {
		errs = append(errs, errors.New("username: a password is not sent without tls; set security"))
	}
	return errors.Join(errs...)
}

func (c Config) address() (host string, port int, err error) {
	host, text, err := net.SplitHostPort(c.Server)
	if err != nil {
		return "", 0, err
	}
	port, err = strconv.Atoi(text)
	if err == nil && (port < 1 || port > 65535 || host == "") {
		err = errors.New("mail: no port")
	}
	return host, port, err
}

// Mail is one to send.
type Mail struct {
	To      string    `json:"to"`
	Subject string    `json:"subject"`
	Text    string    `json:"text"`
	Until   time.Time `json:"until"` // it is of no use after this
	Decoy   bool      `json:"decoy"` // it costs what a mail costs, and goes nowhere
}

// waiting is a mail that waits.
type waiting struct {
	ID     string    `cbor:"id"`
	Sealed []byte    `cbor:"sealed"`
	NextAt time.Time `cbor:"next"`
	Tries  int       `cbor:"tries,omitempty"`
}

var mailTable = store.NewTable("mail",
	store.Index[waiting]{Name: "queue", Terms: func(w waiting) []store.Term { return store.Terms("", w.NextAt.UTC().Format(order)) }},
	store.Index[waiting]{Name: "all", Counted: true, Terms: func(waiting) []store.Term { return store.Terms("") }},
)

// order is a form of times that sorts as they do.
const order = "2006-01-02T15:04:05.000000000Z"

func place(id string) string { return mailTable.Name() + "/" + id }

// Queue has m sent once tx is durable. Where too many wait already it is
// dropped, and the log says so: whoever asked for it may ask again.
func (s *Service) Queue(tx store.Tx, m Mail) error {
	n, err := mailTable.Count(tx, "all", store.TermOf(""))
	if err != nil {
		return err
	}
	if n >= s.Config.MaxWaiting {
		s.Log.Error("mail: too many wait for the mail server; one was dropped", "waiting", n)
		return nil
	}
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	now := s.Now().UTC()
	w := waiting{ID: id.New(now), NextAt: now}
	w.Sealed = s.Box.Seal(place(w.ID), b)
	if err := mailTable.Insert(tx, w.ID, w); err != nil {
		return err
	}
	tx.OnCommit(s.bell.Ring)
	return nil
}

// When a mail that was not taken is tried again.
const (
	firstPause = 5 * time.Second
	maxPause   = 15 * time.Minute
	idlePause  = time.Minute
)

// Run sends until ctx is done. What cannot be read now is read later.
func (s *Service) Run(ctx context.Context) error {
	return s.bell.Rounds(ctx, func(ctx context.Context) (time.Duration, error) {
		pause, err := s.Round(ctx)
		if err != nil && ctx.Err() == nil {
			s.Log.ErrorContext(ctx, "mail: cannot read what waits", "error", err)
		}
		return pause, nil
	})
}

// Round sends what is due, and returns how long to wait for the next.
func (s *Service) Round(ctx context.Context) (time.Duration, error) {
	for ctx.Err() == nil {
		var p page.Page[waiting]
		err := s.DB.View(ctx, func(tx store.Tx) (err error) {
			p, err = mailTable.PageBy(tx, "queue", store.TermOf(""), page.Request{Limit: 16})
			return err
		})
		if err != nil || len(p.Items) == 0 {
			return idlePause, err
		}
		for _, w := range p.Items {
			if wait := w.NextAt.Sub(s.Now()); wait > 0 {
				return min(wait, idlePause), nil
			}
			if err := s.try(ctx, w); err != nil {
				return idlePause, err
			}
		}
	}
	return idlePause, nil
}

// try sends one mail and notes what came of it. The log has neither the address
// nor what the mail server said of it.
func (s *Service) try(ctx context.Context, w waiting) error {
	m, unreadable := s.open(w)
	if unreadable != nil {
		s.Log.ErrorContext(ctx, "mail: cannot open one; it is tried again", "mail", w.ID, "tries", w.Tries+1, "error", unreadable)
		return s.later(ctx, w)
	}
	late := !m.Until.IsZero() && !s.Now().Before(m.Until)
	if m.Decoy || late {
		return s.drop(ctx, w)
	}
	failed := s.send(ctx, w.ID, m)
	switch {
	case ctx.Err() != nil:
		return nil //nolint:nilerr // stopping: it is tried again at the next start
	case failed == nil:
		return s.drop(ctx, w)
	case failed.permanent:
		s.Log.WarnContext(ctx, "mail: the mail server refused one for good", "mail", w.ID, "code", failed.code, "reason", failed.reason)
		return s.drop(ctx, w)
	}
	s.Log.WarnContext(ctx, "mail: not taken; it is tried again", "mail", w.ID, "tries", w.Tries+1, "code", failed.code, "reason", failed.reason)
	return s.later(ctx, w)
}

func (s *Service) open(w waiting) (m Mail, err error) {
	b, err := s.Box.Open(place(w.ID), w.Sealed)
	if err != nil {
		return m, err
	}
	defer b.Wipe()
	return m, json.Unmarshal(b, &m)
}

// later has w tried again, after those that wait meanwhile.
func (s *Service) later(ctx context.Context, w waiting) error {
	return s.DB.Update(ctx, func(tx store.Tx) error {
		_, err := mailTable.Update(tx, w.ID, func(w *waiting) error {
			w.Tries++
			w.NextAt = s.Now().UTC().Add(min(firstPause<<min(w.Tries-1, 10), maxPause))
			return nil
		})
		return missingIsFine(err)
	})
}

func (s *Service) drop(ctx context.Context, w waiting) error {
	return s.DB.Update(ctx, func(tx store.Tx) error {
		_, err := mailTable.Delete(tx, w.ID)
		return missingIsFine(err)
	})
}

func missingIsFine(err error) error {
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	return err
}

// failure is why a mail was not taken.
type failure struct {
	permanent bool
	code      int
	reason    string
}

// send gives one mail to the mail server.
func (s *Service) send(ctx context.Context, mailID string, m Mail) *failure {
	msg := gomail.NewMsg(gomail.WithNoDefaultUserAgent())
	if err := errors.Join(msg.From(s.Config.From), msg.To(m.To)); err != nil {
		return &failure{permanent: true, reason: "an address is not one"}
	}
	from, err := netmail.ParseAddress(s.Config.From)
	if err != nil {
		return &failure{permanent: true, reason: "an address is not one"}
	}
	msg.Subject(m.Subject)
	msg.SetDateWithValue(s.Now())
	msg.SetMessageIDWithValue(mailID + from.Address[len(localPart(from.Address)):])
	msg.SetGenHeader("Auto-Submitted", "auto-generated") // RFC 3834: nobody's holiday answers
	msg.SetBodyString(gomail.TypeTextPlain, m.Text)
	c, err := s.client()
	if err != nil {
		return &failure{reason: "the configuration is not good"}
	}
	ctx, cancel := context.WithTimeout(ctx, s.Config.Timeout)
	defer cancel()
	err = c.DialAndSendWithContext(ctx, msg)
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[*gomail.SendError](err); ok {
		return &failure{permanent: !e.IsTemp() && e.ErrorCode() >= 500, code: e.ErrorCode(), reason: e.Reason.String()}
	}
	return &failure{reason: plainReason(err)}
}

func localPart(address string) string {
	for i := len(address) - 1; i >= 0; i-- {
		if address[i] == '@' {
			return address[:i]
		}
	}
	return address
}

// plainReason is why there was no conversation, in words of our own.
func plainReason(err error) string {
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		return "the mail server took too long"
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return "the mail server's certificate is not trusted"
	}
	if e, ok := errors.AsType[*net.OpError](err); ok {
		return "the mail server cannot be reached: " + e.Op
	}
	return "the mail server did not go along"
}

func (s *Service) client() (*gomail.Client, error) {
	host, port, err := s.Config.address()
	if err != nil {
		return nil, err
	}
	conf := &tls.Config{MinVersion: tls.VersionTLS12}
	if s.TLS != nil {
		conf = s.TLS.Clone()
	}
	conf.ServerName = host
	options := []gomail.Option{gomail.WithPort(port), gomail.WithTimeout(s.Config.Timeout), gomail.WithTLSConfig(conf), gomail.WithHELO("keystead")}
	switch s.Config.Security {
	case TLS:
		options = append(options, gomail.WithSSL())
	case None:
		options = append(options, gomail.WithTLSPolicy(gomail.NoTLS))
	default:
		options = append(options, gomail.WithTLSPolicy(gomail.TLSMandatory))
	}
	if s.Config.Username != "" {
		options = append(options, gomail.WithSMTPAuth(gomail.SMTPAuthAutoDiscover), gomail.WithUsername(s.Config.Username), gomail.WithPassword(string(s.Password)))
	}
	return gomail.NewClient(host, options...)
}

// Reseal seals what waits again, under the newest data key, and returns how many
// mails that were.
func (s *Service) Reseal(ctx context.Context) (int, error) {
	return mailTable.Revise(ctx, s.DB, func(mailID string, w *waiting) (bool, error) {
		sealed, changed, err := s.Box.Reseal(place(mailID), w.Sealed)
		if changed {
			w.Sealed = sealed
		}
		return changed, err
	})
}
