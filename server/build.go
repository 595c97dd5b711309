package server

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"time"

	"keystead/accounts"
	"keystead/audit"
	"keystead/config"
	"keystead/devices"
	"keystead/identity"
	"keystead/psk"
	"keystead/store"
	"keystead/store/bolt"
	"keystead/tokens"
)

// Build assembles a server: it opens the store, makes on first start what there
// has to be, and connects the rooms with one another. Nothing is bound or served
// yet; see Listen and Run. It is the one place that knows every room.
func Build(ctx context.Context, cfg config.Config, log *slog.Logger) (*Server, error) {
	return BuildOver(ctx, cfg, log, func(db *bolt.Engine) store.Engine { return db })
}

// BuildOver is Build with the records in the engine that over makes of the file: to
// measure what the file costs, or to have it fail.
func BuildOver(ctx context.Context, cfg config.Config, log *slog.Logger, over func(*bolt.Engine) store.Engine) (_ *Server, err error) {
	if err := os.MkdirAll(cfg.Data, 0o700); err != nil {
		return nil, fmt.Errorf("data: %w", err)
	}
	db, err := bolt.Open(filepath.Join(cfg.Data, "keystead.db"), bolt.Log(log), bolt.MaxSize(int64(cfg.Store.MaxSize)))
	if err != nil {
		return nil, err
	}
	s := &Server{Config: cfg, Log: log, Now: time.Now, DB: over(db), bolt: db} //nolint:forbidigo // this is where every service gets it from
	s.buildMetrics(db)
	s.buildLimits()
	s.tasks = append(s.tasks, watchStore(db), task{"watchdog", s.watchdog})
	defer func() {
		if err != nil {
			s.Close()
		}
	}()
	// In the order of need: a room finds those before it in s.
	for _, build := range []func(context.Context) error{
		s.buildTLS,
		s.buildSeal,
		s.buildDevices,
		s.buildEvents,
		s.buildTokens,
		s.buildIssuers,
		s.buildMessages,
		s.buildMail,
		s.buildAccounts,
		s.buildProviders,
		s.buildAccessKeys,
		s.buildPSK,
		s.buildThings,
		s.buildPKI,
		s.buildAuthSets,
		s.buildForward,
		s.buildEST,
		s.buildLwM2M,
		s.buildCoAP, // after those whose routes it mounts
		s.buildBackups,
		s.buildJournal, // last: what it does again every room hears of
	} {
		if err := build(ctx); err != nil {
			return nil, err
		}
	}
	// The first method that knows a credential names it: what the session
	// proved comes before what a request says.
	s.Resolver = identity.Resolver{
		identity.MethodFunc(s.certificate),
		s.PSK,
		s.Things,
		identity.FirstOf{ // of bearers: what users show comes first, as it is remembered
			s.Accounts,
			s.AccessKeys,
			s.AuthSets,
			s.Issuers.Method(s.Devices),
		},
	}
	if err := s.firstStart(ctx); err != nil {
		return nil, err
	}
	return s, s.firstCAs(ctx)
}

// Listen binds every listener.
func (s *Server) Listen(ctx context.Context) error {
	err := errors.Join(
		s.listen(ctx, "https", s.Config.HTTPS.Listen, s.Handler(), s.tls.config(s.Config.TLS)),
		s.listen(ctx, "http", s.Config.HTTP.Listen, s.PlainHandler(), nil),
		s.listen(ctx, "ops", s.Config.Ops.Listen, s.OpsHandler(), nil),
		s.CoAP.Listen(ctx),
	)
	if at := s.Addresses()["http"]; at != "" {
		s.setPublicHTTP(at)
	}
	return err
}

// buildDevices opens the trail and the device records everything else rests on.
func (s *Server) buildDevices(ctx context.Context) error {
	key, err := secretNamed(ctx, s.DB, s.box, auditSecret)
	if err != nil {
		return err
	}
	s.Audit = &audit.Log{DB: s.DB, Key: key, Now: s.Now}
	if err := s.buildAudit(); err != nil {
		return err
	}
	s.Devices = &devices.Service{DB: s.DB, Audit: s.Audit, Now: s.Now}
	s.Devices.Listen(s.conns.changed)
	return nil
}

// buildAccounts opens who may administer.
func (s *Server) buildAccounts(context.Context) error {
	s.Accounts = &accounts.Service{DB: s.DB, Audit: s.Audit, Now: s.Now, Log: s.Log, Box: s.keys.Box("account"), Tokens: userTokens{s.Tokens}, Config: s.Config.Accounts, PublicURL: s.Config.PublicURL}
	if s.Mail != nil {
		s.Accounts.Mail = mailer{s.Mail}
	}
	s.Accounts.Start()
	s.tasks = append(s.tasks, task{"accounts", s.Accounts.Run})
	return nil
}

// buildPSK opens the pre-shared keys.
func (s *Server) buildPSK(context.Context) error {
	s.PSK = &psk.Service{DB: s.DB, Devices: s.Devices, Audit: s.Audit, Box: s.keys.Box("psk"), Now: s.Now}
	s.PSK.Observe()
	return nil
}

// buildTokens opens the keys that tokens are signed with.
func (s *Server) buildTokens(ctx context.Context) error {
	cfg := s.Config.Tokens
	cfg.Issuer = cmp.Or(cfg.Issuer, s.Config.PublicURL, "https://keystead.local")
	s.Tokens = &tokens.Service{DB: s.DB, Audit: s.Audit, Box: s.keys.Box("signing key"), Now: s.Now, Config: cfg}
	s.every("signing keys", sweepEvery, s.Tokens.Sweep)
	return s.Tokens.Start(ctx)
}
