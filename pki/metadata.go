package pki

import (
	"context"
	"encoding/json"
	"strings"

	jsonpatch "github.com/evanphx/json-patch/v5"

	"keystead/audit"
	"keystead/fault"
	"keystead/store"
)

// Patch is one change of metadata: an operation of RFC 6902 at a path of RFC 6901.
type Patch struct {
	Op    string          `json:"op"`
	Path  string          `json:"path"`
	From  string          `json:"from,omitempty"` // of move and copy
	Value json.RawMessage `json:"value,omitempty"`
}

// Limits on metadata and changes of it.
const (
	maxMetadata  = 16 << 10 // bytes
	maxPatches   = 64
	maxPatchPath = 1024 // bytes
)

var patchOps = map[string]bool{"add": true, "remove": true, "replace": true, "move": true, "copy": true, "test": true}

// PatchMetadata applies patches to a JSON object, all or none, as Lamassu's services do: add
// makes the parents that are missing, and to remove what is not there changes nothing. It is Invalid if
// one cannot be applied, or if what comes of them is no object or too long.
func PatchMetadata(doc json.RawMessage, patches []Patch) (json.RawMessage, error) {
	if err := checkPatches(patches); err != nil {
		return nil, err
	}
	if len(doc) == 0 {
		doc = json.RawMessage("{}")
	}
	b, err := json.Marshal(patches)
	if err != nil {
		return nil, fault.InvalidFields(fault.Field{Name: "patches", Message: "must be a list of patches in JSON"})
	}
	changes, err := jsonpatch.DecodePatch(b)
	if err != nil {
		return nil, fault.InvalidFields(fault.Field{Name: "patches", Message: "must be a list of patches in JSON"})
	}
	options := jsonpatch.NewApplyOptions()
	options.EnsurePathExistsOnAdd, options.AllowMissingPathOnRemove, options.SupportNegativeIndices = true, true, false
	options.AccumulatedCopySizeLimit = maxMetadata
	out, err := changes.ApplyWithOptions(doc, options)
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "patches: they cannot be applied to the metadata as it is: a path is not there, an index is out of range, or a test fails; nothing was changed")
	}
	var object map[string]json.RawMessage
	switch err := json.Unmarshal(out, &object); {
	case err != nil || object == nil:
		return nil, fault.InvalidFields(fault.Field{Name: "patches", Message: "must leave the metadata an object"})
	case len(out) > maxMetadata:
		return nil, fault.InvalidFields(fault.Field{Name: "patches", Message: "make the metadata longer than 16 KiB"})
	}
	return out, nil
}

func checkPatches(patches []Patch) error {
	note := func(message string) error {
		return fault.InvalidFields(fault.Field{Name: "patches", Message: message})
	}
	if len(patches) == 0 || len(patches) > maxPatches {
		return note("must be 1 to 64 patches")
	}
	for _, p := range patches {
		valued := p.Op == "add" || p.Op == "replace"
		switch {
		case !patchOps[p.Op]:
			return note("op must be add, remove, replace, move, copy or test")
		case !strings.HasPrefix(p.Path, "/") || len(p.Path) > maxPatchPath || len(p.From) > maxPatchPath:
			return note("path must begin with a slash and have at most 1024 bytes")
		case (p.Op == "move" || p.Op == "copy") && !strings.HasPrefix(p.From, "/"):
			return note("move and copy must say from where")
		case valued && (len(p.Value) == 0 || string(p.Value) == "null"):
			return note("add and replace must have a value that is not null; use remove")
		case p.Op == "test" && len(p.Value) == 0:
			return note("test must have a value")
		case strings.Count(p.Path, "/") > maxPatchDepth || strings.Count(p.From, "/") > maxPatchDepth:
			return note("a path must have at most 16 parts")
		case arrayIndexTooLarge(p.Path):
			return note("an index of a list must be below 1000")
		}
	}
	return nil
}

// maxPatchDepth is how many parts a path has.
const maxPatchDepth = 16

// arrayIndexTooLarge reports a path with a long number in it: add makes lists as long as an
// index asks for.
func arrayIndexTooLarge(path string) bool {
	for part := range strings.SplitSeq(path, "/") {
		if len(part) > 3 && strings.Trim(part, "0123456789") == "" {
			return true
		}
	}
	return false
}

// PatchCertificate changes what people note of a certificate of the actor's organisation. See
// [PatchMetadata] for its faults; it is NotFound if the certificate is.
func (s *Service) PatchCertificate(ctx context.Context, name string, patches []Patch) (c Certificate, err error) {
	err = s.DB.Update(ctx, func(tx store.Tx) error {
		if c, err = s.certificateIn(ctx, tx, name); err != nil {
			return err
		}
		if c, err = certificates.Update(tx, string(c.Serial), func(c *Certificate) error {
			c.Metadata, err = PatchMetadata(c.Metadata, patches)
			return err
		}); err != nil {
			return err
		}
		return s.Audit.Append(ctx, tx, audit.Entry{Action: "certificate.metadata", Target: string(c.Serial), Device: c.Device, Org: c.Org})
	})
	return c, err
}

// PatchCA changes what people note of a CA of the actor's organisation. See [PatchMetadata]
// for its faults; it is NotFound if the CA is.
func (s *Service) PatchCA(ctx context.Context, ca CAID, patches []Patch) (record CA, err error) {
	err = s.DB.Update(ctx, func(tx store.Tx) error {
		if _, err := s.caIn(ctx, tx, ca); err != nil {
			return err
		}
		if record, err = cas.Update(tx, string(ca), func(c *CA) error {
			c.Metadata, err = PatchMetadata(c.Metadata, patches)
			return err
		}); err != nil {
			return err
		}
		return s.Audit.Append(ctx, tx, audit.Entry{Action: "ca.metadata", Target: string(ca), Org: record.Org})
	})
	return record, err
}
