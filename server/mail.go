package server

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"

	"keystead/accounts"
	"keystead/mail"
	"keystead/seal"
	"keystead/store"
)

// buildMail opens the queue of mails, where a mail server is configured.
func (s *Server) buildMail(context.Context) error {
	c := s.Config.Mail
	if c.Server == "" {
		return nil
	}
	password, err := s.mailPassword()
	if err != nil {
		return fmt.Errorf("mail.password_file: %w", err)
	}
	s.Mail = &mail.Service{DB: s.DB, Box: s.keys.Box("mail"), Now: s.Now, Log: s.Log, Config: c, Password: password}
	if c.CAFile != "" {
		pem, err := os.ReadFile(s.Config.Path(c.CAFile))
		if err != nil {
			return fmt.Errorf("mail.ca_file: %w", err)
		}
		roots := x509.NewCertPool()
		if !roots.AppendCertsFromPEM(pem) {
			return errors.New("mail.ca_file: holds no PEM certificate")
		}
		s.Mail.TLS = &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12}
	}
	s.tasks = append(s.tasks, task{"mail", s.Mail.Run})
	return nil
}

// mailPassword is in a file, or in a variable of the environment, which a unit's
// credentials and containers give.
func (s *Server) mailPassword() (seal.Secret, error) {
	secret, err := s.secretFile(s.Config.Mail.PasswordFile)
	if err != nil || secret != nil {
		return secret, err
	}
	return seal.Secret(os.Getenv(mailPasswordVariable)), nil
}

// mailPasswordVariable holds the password of the mail server where no file does.
const mailPasswordVariable = "KEYSTEAD_MAIL_PASSWORD"

// mailer has accounts send mail.
type mailer struct{ *mail.Service }

// Queue implements [accounts.Mailer].
func (m mailer) Queue(tx store.Tx, x accounts.Mail) error { return m.Service.Queue(tx, mail.Mail(x)) }
