package server

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/labstack/echo/v4"

	"keystead/audit"
	"keystead/fault"
	"keystead/identity"
	"keystead/store"
)

// checkpointFile holds the checkpoints of the trail, a line of JSON each.
const checkpointFile = "audit-checkpoints.jsonl"

// buildAudit has the trail kept as it is configured: its checkpoints go to the
// log and to a file, and what is too old is dropped.
func (s *Server) buildAudit() error {
	c := s.Config.Audit
	s.Audit.Config = audit.Config{
		Keep: c.Keep, Every: uint64(c.CheckpointEvery), Interval: c.CheckpointInterval, PerMinute: c.FailuresPerMinute, //nolint:gosec // G115: config has validated it
	}
	s.Audit.Publish = s.publishCheckpoint
	s.tasks = append(s.tasks, task{"audit", s.keepAudit})
	return nil
}

// resumeAudit compares the trail with its last checkpoint.
func (s *Server) resumeAudit(ctx context.Context) error {
	kept, err := s.checkpoints()
	if err != nil {
		return err
	}
	var last audit.Checkpoint
	if len(kept) > 0 {
		last = kept[len(kept)-1]
	}
	err = s.Audit.Resume(ctx, last)
	if errors.Is(err, audit.ErrTampered) {
		// The server goes on: devices must not be locked out by who could do this.
		s.Log.Error("the audit trail does not reach its last checkpoint: the database was put back to an older state", slog.Any("error", err))
		s.rolledBack.Store(true)
		err = nil
	}
	return err
}

// keepAudit does what the trail has to have done, until ctx is done and then a
// last time.
func (s *Server) keepAudit(ctx context.Context) error {
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return s.Audit.Finish(context.WithoutCancel(ctx))
		case <-ticker.C:
			if err := s.Audit.Tick(ctx, s.Now()); err != nil && ctx.Err() == nil {
				s.Log.Error("audit", slog.Any("error", err))
			}
		}
	}
}

func (s *Server) publishCheckpoint(c audit.Checkpoint) error {
	s.Log.Info("audit checkpoint", slog.Uint64("seq", c.Seq), slog.String("mac", base64.StdEncoding.EncodeToString(c.MAC)),
		slog.Time("at", c.At), slog.String("signature", base64.StdEncoding.EncodeToString(c.Signature)))
	line, err := json.Marshal(c)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(filepath.Join(s.Config.Data, checkpointFile), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	// The line break is before the line too: the last one may be torn.
	_, err = f.Write(append(append([]byte("\n"), line...), '\n'))
	return errors.Join(err, f.Sync())
}

// checkpoints returns what was published here, oldest first. Lines that are not
// whole are passed over.
func (s *Server) checkpoints() ([]audit.Checkpoint, error) {
	text, err := os.ReadFile(filepath.Join(s.Config.Data, checkpointFile))
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			err = nil
		}
		return nil, err
	}
	var all []audit.Checkpoint
	for line := range bytes.Lines(text) {
		var c audit.Checkpoint
		if json.Unmarshal(line, &c) == nil && c.Seq > 0 {
			all = append(all, c)
		}
	}
	return all, nil
}

func (s *Server) auditRoutes() []route {
	return []route{
		{method: http.MethodGet, path: "/api/v1/audit", need: identity.AuditRead, handle: s.listAudit},
		{method: http.MethodGet, path: "/api/v1/audit/export", need: identity.AuditRead, handle: s.exportAudit, stream: true},
		{method: http.MethodGet, path: "/api/v1/audit/checkpoints", need: identity.Platform, handle: s.listCheckpoints},
		{method: http.MethodPost, path: "/api/v1/audit/verify", need: identity.Platform, handle: s.verifyAudit, stream: true},
	}
}

// auditView is a record as it is shown.
type auditView struct {
	Seq       uint64            `json:"seq"`
	At        time.Time         `json:"at"`
	Org       string            `json:"organisation"`
	Actor     audit.Actor       `json:"actor"`
	Action    string            `json:"action"`
	Target    string            `json:"target"`
	Device    string            `json:"device"`
	RequestID string            `json:"request_id"`
	Detail    map[string]string `json:"detail"`
	MAC       string            `json:"mac"` // in hexadecimal
}

func viewAudit(r audit.Record) auditView {
	return auditView{
		Seq: r.Seq, At: r.At, Org: r.Org, Actor: r.Actor, Action: r.Action, Target: r.Target, Device: r.Device,
		RequestID: r.RequestID, Detail: orEmptyMap(r.Detail), MAC: hex.EncodeToString(r.MAC),
	}
}

func (s *Server) listAudit(c echo.Context) error {
	f, err := auditFilter(c)
	if err != nil {
		return err
	}
	r, err := pageRequest(c)
	if err != nil {
		return err
	}
	p, err := s.Audit.Search(c.Request().Context(), f, r)
	if err != nil {
		return err
	}
	return writePage(c, p, viewAudit)
}

// exportAudit writes every record that is asked for, a line of JSON each. That
// it was done is a record itself.
func (s *Server) exportAudit(c echo.Context) error {
	f, err := auditFilter(c)
	if err != nil {
		return err
	}
	ctx := c.Request().Context()
	if err := s.DB.Update(ctx, func(tx store.Tx) error {
		return s.Audit.Append(ctx, tx, audit.Entry{Action: "audit.export", Detail: map[string]string{"query": c.QueryString()}})
	}); err != nil {
		return err
	}
	w := c.Response()
	w.Header().Set(echo.HeaderContentType, "application/jsonl")
	w.Header().Set(echo.HeaderContentDisposition, `attachment; filename="audit.jsonl"`)
	out := bufio.NewWriterSize(w, 64<<10)
	lines := json.NewEncoder(out)
	slow := http.NewResponseController(w)
	for r, err := range s.Audit.All(ctx, f) {
		if err != nil {
			return abort(c, err)
		}
		if err := errors.Join(slow.SetWriteDeadline(s.Now().Add(s.Config.Timeouts.Write)), lines.Encode(viewAudit(r))); err != nil {
			return abort(c, err)
		}
	}
	return abort(c, out.Flush())
}

// abort ends an answer that was begun so that the client sees that it is not
// whole.
func abort(c echo.Context, err error) error {
	if err != nil && c.Response().Committed {
		panic(http.ErrAbortHandler)
	}
	return err
}

type checkpointView struct {
	Seq       uint64    `json:"seq"`
	MAC       []byte    `json:"mac"`
	At        time.Time `json:"at"`
	Signature []byte    `json:"signature"`
}

func (s *Server) listCheckpoints(c echo.Context) error {
	all, err := s.checkpoints()
	if err != nil {
		return err
	}
	key, err := s.Audit.PublicKey()
	if err != nil {
		return err
	}
	views := []checkpointView{}
	for _, p := range all {
		views = append(views, checkpointView(p))
	}
	return c.JSON(http.StatusOK, map[string]any{"public_key": []byte(key), "items": views})
}

// verifyAudit walks the trail and compares it with the checkpoints kept here and
// those the caller kept elsewhere.
func (s *Server) verifyAudit(c echo.Context) error {
	var in struct {
		Checkpoints []checkpointView `json:"checkpoints"`
	}
	if err := bind(c, &in); err != nil {
		return err
	}
	against, err := s.checkpoints()
	if err != nil {
		return err
	}
	for _, p := range in.Checkpoints {
		against = append(against, audit.Checkpoint(p))
	}
	report, err := s.Audit.Verify(c.Request().Context(), against...)
	out := struct {
		audit.Report
		Sound bool   `json:"sound"`
		Fault string `json:"fault,omitempty"`
	}{Report: report, Sound: err == nil}
	if err != nil {
		if !errors.Is(err, audit.ErrTampered) {
			return err
		}
		s.Log.Error("audit verify", slog.Any("error", err))
		out.Fault = err.Error()
	}
	return c.JSON(http.StatusOK, out)
}

func auditFilter(c echo.Context) (audit.Filter, error) {
	f := audit.Filter{Device: c.QueryParam("device"), Action: c.QueryParam("action"), Actor: c.QueryParam("actor"), Newest: true}
	switch c.QueryParam("order") {
	case "", "newest":
	case "oldest":
		f.Newest = false
	default:
		return f, fault.New(fault.Invalid, "order must be newest or oldest")
	}
	switch c.QueryParam("all") {
	case "", "false":
	case "true":
		if err := allow(identity.FromContext(c.Request().Context()), identity.Platform); err != nil {
			return f, err
		}
		f.Everyone = true
	default:
		return f, fault.New(fault.Invalid, "all must be true or false")
	}
	for name, at := range map[string]*time.Time{"since": &f.Since, "until": &f.Until} {
		if text := c.QueryParam(name); text != "" {
			t, err := time.Parse(time.RFC3339, text)
			if err != nil {
				return f, fault.New(fault.Invalid, "%s must be a time such as 2026-11-24T12:00:00Z", name)
			}
			*at = t
		}
	}
	return f, nil
}
