// Package audit keeps the trail of what was changed, by whom: records written in
// the transaction of the change they tell of, chained by a keyed MAC so that a
// record that was changed, removed, moved or cut off is found.
package audit

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"time"

	"keystead/identity"
	"keystead/page"
	"keystead/seal"
	"keystead/store"
)

// Entry is what a change says of itself. Nothing in it is secret.
type Entry struct {
	Action string            // "psk.create": what was done to what kind of thing
	Target string            // the id of that thing
	Device string            // the device it concerns, if one
	Org    string            // whose trail it is in; the actor's if empty
	Detail map[string]string // what changed, in short values
}

// Record is one entry of the trail as it is kept.
type Record struct {
	Seq       uint64            `cbor:"seq" json:"seq"`
	At        time.Time         `cbor:"at" json:"at"`
	Org       string            `cbor:"org" json:"organisation"`
	Actor     Actor             `cbor:"actor" json:"actor"`
	Action    string            `cbor:"action" json:"action"`
	Target    string            `cbor:"target,omitempty" json:"target,omitempty"`
	Device    string            `cbor:"device,omitempty" json:"device,omitempty"`
	RequestID string            `cbor:"request,omitempty" json:"request_id,omitempty"`
	Detail    map[string]string `cbor:"detail,omitempty" json:"detail,omitempty"`
	MAC       []byte            `cbor:"mac" json:"mac"`
}

// Actor is who did it.
type Actor struct {
	Kind       identity.Kind           `cbor:"kind" json:"kind"`
	ID         string                  `cbor:"id,omitempty" json:"id,omitempty"`
	Credential identity.CredentialKind `cbor:"cred,omitempty" json:"credential,omitempty"`
}

// head is where the chain stands.
type head struct {
	Seq uint64 `cbor:"seq"`
	MAC []byte `cbor:"mac"`
}

var (
	records = store.NewTable("audit record",
		store.Index[Record]{Name: "org", Terms: func(r Record) []store.Term { return store.Terms(r.Org) }},
		store.Index[Record]{Name: "device", Terms: func(r Record) []store.Term {
			if r.Device == "" {
				return nil
			}
			return store.Terms(r.Org, r.Device)
		}})
	heads = store.NewTable[head]("audit head")
)

// Log is the trail.
type Log struct {
	DB  store.Engine
	Key seal.Secret // of the chain's MAC, 32 bytes
	Now func() time.Time
}

// Append adds e to the trail in the transaction of the change it tells of, so
// that neither is ever there without the other. Actor, organisation and request
// id come from ctx.
func (l *Log) Append(ctx context.Context, tx store.Tx, e Entry) error {
	h, err := l.head(tx)
	if err != nil {
		return err
	}
	a := identity.FromContext(ctx)
	r := Record{
		Seq: h.Seq + 1, At: l.Now().UTC(), Org: e.Org, Action: e.Action, Target: e.Target, Device: e.Device,
		Actor:     Actor{Kind: a.Kind, ID: a.ID, Credential: a.Credential.Kind},
		RequestID: identity.RequestID(ctx), Detail: e.Detail,
	}
	if r.Org == "" {
		r.Org = a.Org
	}
	if r.MAC, err = l.mac(r, h.MAC); err != nil {
		return err
	}
	if err := records.Insert(tx, key(r.Seq), r); err != nil {
		return err
	}
	return heads.Set(tx, "head", head{Seq: r.Seq, MAC: r.MAC})
}

// List returns a page of the trail of the actor's organisation, oldest first;
// of one device if device is not empty.
func (l *Log) List(ctx context.Context, device string, r page.Request) (p page.Page[Record], err error) {
	index, term := "org", store.TermOf(identity.OrgOf(ctx))
	if device != "" {
		index, term = "device", store.TermOf(identity.OrgOf(ctx), device)
	}
	err = l.DB.View(ctx, func(tx store.Tx) error {
		p, err = records.PageBy(tx, index, term, r)
		return err
	})
	return p, err
}

func (l *Log) head(tx store.Tx) (head, error) {
	h, err := heads.Get(tx, "head")
	if isMissing(err) {
		return head{}, nil
	}
	return h, err
}

// mac is over the record without its MAC, and the MAC of the record before.
func (l *Log) mac(r Record, before []byte) ([]byte, error) {
	r.MAC = nil
	b, err := json.Marshal(r) // the same bytes for the same record: struct order, sorted maps
	if err != nil {
		return nil, fmt.Errorf("audit: %w", err)
	}
	m := hmac.New(sha256.New, l.Key)
	m.Write(b)
	m.Write(before)
	return m.Sum(nil), nil
}

// key sorts records by number.
func key(seq uint64) string { return fmt.Sprintf("%016x", seq) }
