package server

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"os"
	"time"

	"github.com/labstack/echo/v4"

	"keystead/coap"
	"keystead/identity"
	"keystead/messages"
	"keystead/messages/sink"
	"keystead/seal"
	"keystead/throttle"
)

func (s *Server) messageRoutes() []route {
	return []route{
		{method: http.MethodPost, path: "/http/messages", need: identity.Proven, handle: s.postMessage, body: messages.MaxBody + 1},
	}
}

// messageResources is the same door over CoAP.
func (s *Server) messageResources() []coap.Route {
	return []coap.Route{
		{Method: coap.POST, Path: "/messages", Need: identity.Proven, Handle: s.putMessage, MaxBody: messages.MaxBody + 1, Listed: true, Link: `rt="keystead.messages";ct="110 112"`},
	}
}

// buildMessages opens the door and the sinks behind it.
func (s *Server) buildMessages(context.Context) error {
	cfg := s.Config.Messages
	buckets := &throttle.Buckets{Burst: cfg.Rate.Burst, Now: s.Now}
	allow := buckets.Take
	if cfg.Rate.PerSecond > 0 {
		buckets.Refill = time.Duration(float64(time.Second) / cfg.Rate.PerSecond)
	} else {
		allow = func(string) (time.Duration, bool) { return 0, true }
	}
	s.Messages = &messages.Service{DB: s.DB, Now: s.Now, Allow: allow, MaxWaiting: cfg.MaxWaiting}
	for _, c := range cfg.Sinks {
		to, err := s.openSink(c)
		if err != nil {
			return fmt.Errorf("messages.sinks: %s: %w", c.Name, err)
		}
		s.Messages.Sinks = append(s.Messages.Sinks, to)
	}
	s.tasks = append(s.tasks, task{"messages", func(ctx context.Context) error { return s.Messages.Run(ctx, s.Log) }})
	return nil
}

// openSink makes a sink of its configuration, with the secrets it names.
func (s *Server) openSink(c sink.Config) (messages.Sink, error) {
	switch c.Type {
	case "file":
		return sink.NewFile(c.Name, s.Config.Path(c.Path)), nil
	case "webhook":
		secret, err := s.secretFile(c.SecretFile)
		if err != nil {
			return nil, err
		}
		client, err := s.outbound()
		return sink.NewWebhook(c.Name, c.URL, secret, client), err
	default: // mqtt; Validate knows no other
		password, err := s.secretFile(c.PasswordFile)
		if err != nil {
			return nil, err
		}
		conf, err := s.brokerTLS(c)
		return sink.NewMQTT(c, password, conf), err
	}
}

// secretFile reads a secret from a file, nil where none is named.
func (s *Server) secretFile(name string) (seal.Secret, error) {
	if name == "" {
		return nil, nil
	}
	b, err := os.ReadFile(s.Config.Path(name))
	return bytes.TrimRight(b, "\r\n"), err
}

func (s *Server) brokerTLS(c sink.Config) (*tls.Config, error) {
	conf := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.CAFile != "" {
		pem, err := os.ReadFile(s.Config.Path(c.CAFile))
		if err != nil {
			return nil, err
		}
		if conf.RootCAs = x509.NewCertPool(); !conf.RootCAs.AppendCertsFromPEM(pem) {
			return nil, errors.New("ca_file holds no PEM certificate")
		}
	}
	if c.Certificate != "" {
		pair, err := tls.LoadX509KeyPair(s.Config.Path(c.Certificate), s.Config.Path(c.Key))
		if err != nil {
			return nil, err
		}
		conf.Certificates = []tls.Certificate{pair}
	}
	return conf, nil
}

type acceptedMessage struct {
	ID string `json:"id"`
}

func (s *Server) postMessage(c echo.Context) error {
	body, err := io.ReadAll(c.Request().Body)
	if err != nil {
		return err
	}
	kind, _, _ := mime.ParseMediaType(c.Request().Header.Get("Content-Type"))
	ctx := c.Request().Context()
	m, err := s.Messages.Accept(ctx, identity.FromContext(ctx), identity.HTTPS, messages.Format(kind), body)
	if err != nil {
		return err
	}
	return c.JSON(http.StatusAccepted, acceptedMessage{m.ID})
}

// Content-Formats of SenML (RFC 8428, 12.3).
const (
	senmlJSON coap.Format = 110
	senmlCBOR coap.Format = 112
)

func (s *Server) putMessage(ctx context.Context, r *coap.Request) (coap.Response, error) {
	var format messages.Format
	if f, _ := r.ContentFormat(); f == senmlJSON {
		format = messages.JSON
	} else if f == senmlCBOR {
		format = messages.CBOR
	}
	if _, err := s.Messages.Accept(ctx, r.Actor, r.Session.Transport(), format, r.Body); err != nil {
		return coap.Response{}, err
	}
	return coap.Response{Code: coap.Changed}, nil
}
