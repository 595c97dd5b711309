package authsets

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/csv"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"iter"
	"regexp"
	"slices"
	"strings"

	"keystead/fault"
	"keystead/identity"
	"keystead/page"
	"keystead/store"
)

// Batch is how many lines of an import, or devices of a bulk change, one transaction takes.
const Batch = 500

// Line is one line of an import: a device to preauthorise, or what is wrong with it.
type Line struct {
	Number int // from 1, without the header
	New    New
	Err    error
}

// Result is what came of a line.
type Result struct {
	Line   int    `json:"line"`
	Status string `json:"status"` // preauthorized, exists, conflict or invalid
	Device string `json:"device,omitempty"`
	Error  string `json:"error,omitempty"`
}

// maxLine bounds one line of an import, in bytes.
const maxLine = 64 << 10

// ReadCSV reads devices from CSV with a header. The columns pubkey (PEM, or its base64
// alone), force and device are what they are called; all others are identity attributes, of
// which empty ones are left out.
func ReadCSV(r io.Reader) iter.Seq[Line] {
	return func(yield func(Line) bool) {
		limit := &lineLimit{r: r}
		rows := csv.NewReader(limit)
		rows.ReuseRecord = true
		head, err := rows.Read()
		if err != nil {
			if !errors.Is(err, io.EOF) {
				yield(Line{Number: 1, Err: fault.New(fault.Invalid, "the header is no CSV: %v", err)})
			}
			return
		}
		head = slices.Clone(head)
		head[0] = strings.TrimPrefix(head[0], "\ufeff")
		for i, name := range head {
			if name == "" || slices.Contains(head[:i], name) {
				yield(Line{Number: 1, Err: fault.New(fault.Invalid, "the header names %q twice, or nothing", name)})
				return
			}
		}
		for n := 1; ; n++ {
			row, err := rows.Read()
			if errors.Is(err, io.EOF) {
				return
			}
			limit.n = 0
			line := Line{Number: n}
			if err != nil {
				line.Err = fault.New(fault.Invalid, "no CSV: %v", err)
			} else {
				line.New, line.Err = ofRow(head, row)
			}
			if _, bad := errors.AsType[*csv.ParseError](err); !yield(line) || err != nil && !bad {
				return
			}
		}
	}
}

func ofRow(head, row []string) (n New, err error) {
	attributes := map[string]string{}
	key := ""
	for i, name := range head {
		switch v := row[i]; name {
		case "pubkey":
			key = v
		case "force":
			n.Force = v == "true" || v == "1"
		case "device":
			n.Device = v
		default:
			if v != "" {
				attributes[name] = v
			}
		}
	}
	b, err := json.Marshal(attributes)
	if err != nil {
		return n, err
	}
	return n, n.fill(b, key)
}

// ReadJSONLines reads devices from lines of JSON with identity_data, pubkey, and if wanted
// force and device. Empty lines count and are passed over.
func ReadJSONLines(r io.Reader) iter.Seq[Line] {
	return func(yield func(Line) bool) {
		lines := bufio.NewScanner(r)
		lines.Buffer(nil, maxLine)
		n := 0
		for lines.Scan() {
			n++
			text := bytes.TrimSpace(lines.Bytes())
			if len(text) == 0 {
				continue
			}
			line := Line{Number: n}
			var in struct {
				Identity json.RawMessage `json:"identity_data"`
				Key      string          `json:"pubkey"`
				Force    bool            `json:"force"`
				Device   string          `json:"device"`
			}
			if err := json.Unmarshal(text, &in); err != nil {
				line.Err = fault.New(fault.Invalid, "no JSON object of a device: %v", err)
			} else {
				line.New.Force, line.New.Device = in.Force, in.Device
				line.Err = line.New.fill(in.Identity, in.Key)
			}
			if !yield(line) {
				return
			}
		}
		if err := lines.Err(); err != nil {
			yield(Line{Number: n + 1, Err: fault.New(fault.Invalid, "the line cannot be read: %v", err)})
		}
	}
}

// fill sets identity and key from text.
func (n *New) fill(id []byte, key string) (err error) {
	if n.Identity, err = Canonicalise(id); err != nil {
		return fault.New(fault.Invalid, "identity_data: %v", err)
	}
	if key == "" {
		return fault.New(fault.Invalid, "pubkey: must be provided")
	}
	if !strings.Contains(key, "-----BEGIN") {
		der, err := base64.StdEncoding.DecodeString(key)
		if err != nil {
			return fault.New(fault.Invalid, "pubkey: neither PEM nor base64")
		}
		key = string(pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der}))
	}
	if _, n.Key, err = ParseKey(key); err != nil {
		return fault.New(fault.Invalid, "pubkey: %s", fault.Message(err))
	}
	return nil
}

// lineLimit ends a reader of which too much was read since n was last set to 0, so that a
// field that is never closed does not fill the memory.
type lineLimit struct {
	r io.Reader
	n int
}

// Read implements io.Reader.
func (l *lineLimit) Read(p []byte) (int, error) {
	n, err := l.r.Read(p)
	if l.n += n; l.n > maxLine {
		return n, fmt.Errorf("a line has more than %d bytes", maxLine)
	}
	return n, err
}

// Import preauthorises up to [Batch] devices in one transaction. What is wrong with a line
// is in its result and spoils no other. A device that is there already, preauthorized or
// accepted with this key, is left as it is: importing the same lines again goes on where it ended.
// With dry set, nothing is written and the results say what would be.
func (s *Service) Import(ctx context.Context, lines []Line, dry bool) (results []Result, err error) {
	errDry := errors.New("authsets: dry run")
	err = s.DB.Update(ctx, func(tx store.Tx) error {
		results = make([]Result, len(lines))
		for i, line := range lines {
			r, err := s.importLine(ctx, tx, line)
			if err != nil {
				return err
			}
			results[i] = r
		}
		if dry {
			return errDry
		}
		return nil
	})
	if errors.Is(err, errDry) {
		err = nil
	}
	return results, err
}

func (s *Service) importLine(ctx context.Context, tx store.Tx, line Line) (Result, error) {
	r := Result{Line: line.Number}
	line.New.Again = true
	d, fresh, err := Device{}, false, line.Err
	if err == nil {
		d, fresh, err = s.preauthoriseIn(ctx, tx, line.New)
	}
	switch kind := fault.KindOf(err); {
	case err == nil && fresh:
		r.Status, r.Device = string(Preauthorized), d.ID
	case err == nil:
		r.Status, r.Device = "exists", d.ID
	case kind == fault.Conflict:
		r.Status, r.Error = "conflict", fault.Message(err)
	case kind == fault.Invalid || kind == fault.NotFound:
		r.Status, r.Error = "invalid", fault.Message(err)
	default:
		return r, err
	}
	return r, nil
}

// Action is what a bulk change does with the pending sets of devices.
type Action string

// The actions.
const (
	Accept  Action = "accept" // of devices with one pending set; with several it is a person's to choose
	Reject  Action = "reject"
	Dismiss Action = "dismiss"
)

// BulkChange is one step of a change of many devices.
type BulkChange struct {
	Action     Action
	Status     Status            // of the devices it looks at: pending, or any that can have a pending set
	Attributes map[string]string // expressions that attributes have to match as a whole
	Labels     map[string]string // all of them have to hold
	After      page.Cursor
	DryRun     bool
}

// BulkResult is what came of a step.
type BulkResult struct {
	Looked  int
	Changed []string          // ids of devices
	Skipped map[string]string // ids of devices that match and were not changed, and why
	Next    page.Cursor       // "" when all is done
}

// Bulk makes one step of a change: it looks at up to [Batch] devices of the actor's
// organisation, in one transaction. The next step starts at Next, also after a crash.
func (s *Service) Bulk(ctx context.Context, b BulkChange) (r BulkResult, err error) {
	match, err := b.compile()
	if err != nil {
		return r, err
	}
	errDry := errors.New("authsets: dry run")
	err = s.DB.Update(ctx, func(tx store.Tx) error {
		r = BulkResult{Skipped: map[string]string{}}
		p, err := table.PageBy(tx, "status", store.TermOf(identity.OrgOf(ctx), string(b.Status)), page.Request{Limit: Batch, After: b.After})
		if err != nil {
			return err
		}
		r.Looked, r.Next = len(p.Items), p.Next
		for _, d := range p.Items {
			if !match(d) {
				continue
			}
			if len(b.Labels) > 0 {
				labels, err := s.labels(ctx, tx, d)
				if err != nil {
					return err
				}
				if !labelled(labels, b.Labels) {
					continue
				}
			}
			why, err := s.bulkOne(ctx, tx, d, b.Action)
			switch {
			case err != nil:
				return err
			case why != "":
				r.Skipped[d.ID] = why
			default:
				r.Changed = append(r.Changed, d.ID)
			}
		}
		if b.DryRun {
			return errDry
		}
		return nil
	})
	if errors.Is(err, errDry) {
		err = nil
	}
	return r, err
}

func (b *BulkChange) compile() (func(Device) bool, error) {
	if !slices.Contains([]Action{Accept, Reject, Dismiss}, b.Action) {
		return nil, fault.New(fault.Invalid, "action must be accept, reject or dismiss")
	}
	if b.Status == "" {
		b.Status = Pending
	}
	if !slices.Contains(Statuses, b.Status) {
		return nil, fault.New(fault.Invalid, "status must be one of: pending, accepted, rejected, preauthorized, noauth")
	}
	if len(b.Attributes) > maxAttributes {
		return nil, fault.New(fault.Invalid, "a filter has at most %d attributes", maxAttributes)
	}
	all := map[string]*regexp.Regexp{}
	for name, expr := range b.Attributes {
		re, err := regexp.Compile(whole(expr))
		if err != nil || len(expr) > 1024 {
			return nil, fault.InvalidFields(fault.Field{Name: "attributes", Message: name + " is no regular expression"})
		}
		all[name] = re
	}
	return func(d Device) bool {
		if len(all) == 0 {
			return true
		}
		has := d.Identity.Attributes()
		for name, re := range all {
			if v, ok := has[name]; !ok || !re.MatchString(v) {
				return false
			}
		}
		return true
	}, nil
}

// bulkOne changes the pending sets of one device, or says why not.
func (s *Service) bulkOne(ctx context.Context, tx store.Tx, d Device, do Action) (string, error) {
	var pending []string
	for _, set := range d.Sets {
		if set.Status == Pending {
			pending = append(pending, set.ID)
		}
	}
	switch {
	case len(pending) == 0:
		return "no pending authorization set", nil
	case do == Accept && len(pending) > 1:
		return "several pending authorization sets; accept one by its id", nil
	}
	for _, id := range pending {
		var err error
		switch i := d.set(id); do {
		case Accept:
			if full, fullErr := s.full(tx, d); full || fullErr != nil {
				return "maximum number of accepted devices reached", fullErr
			}
			err = s.move(ctx, tx, &d, i, Accepted)
		case Reject:
			err = s.move(ctx, tx, &d, i, Rejected)
		case Dismiss:
			if err = s.dismissIn(ctx, tx, d, i); err == nil {
				d, err = table.Get(tx, d.ID)
			}
		}
		if err != nil {
			return "", err
		}
	}
	return "", nil
}
