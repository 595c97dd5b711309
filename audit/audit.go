// Package audit keeps the trail of what was changed, by whom: records written in
// the transaction of the change they tell of, chained by a keyed MAC so that a
// record that was changed, removed, moved or cut off is found.
//
// Who has the key, or can put back an older copy of the whole database, can make
// a trail that looks right. Checkpoints are against that: signed statements of
// how far the trail went, which are worth what the place they are kept in is
// worth. One on the same disk shows an accident; one in a log that was shipped
// elsewhere shows an attack.
package audit

import (
	"bytes"
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"keystead/fault"
	"keystead/identity"
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

// end is one end of the chain: the number and the MAC of the last record, or of
// the last that was dropped before the first. Auth is over both, so that nobody
// without the key can say that the trail ends elsewhere.
type end struct {
	Seq  uint64 `cbor:"seq"`
	MAC  []byte `cbor:"mac"`
	Auth []byte `cbor:"auth"`
}

// The ends, by their keys, which are also what Auth begins with.
const (
	head = "head"
	tail = "tail"
)

var (
	records = store.NewTable("audit record",
		store.Index[Record]{Name: "org", Terms: func(r Record) []store.Term { return store.Terms(r.Org) }},
		store.Index[Record]{Name: "device", Terms: func(r Record) []store.Term {
			if r.Device == "" {
				return nil
			}
			return store.Terms(r.Org, r.Device)
		}})
	ends = store.NewTable[end]("audit end")
)

// Limits on what an entry may hold: much of it comes from devices. What is
// longer is cut.
const (
	maxText   = 512
	maxDetail = 32
)

// Log is the trail. Its zero settings are good; see Config.
type Log struct {
	DB     store.Engine
	Key    seal.Secret // of the chain's MAC, 32 bytes
	Now    func() time.Time
	Config Config

	// Publish takes checkpoints to where they are kept.
	Publish func(Checkpoint) error

	written  atomic.Uint64 // the number of the last record, as far as this process knows
	failures failures
	macs     sync.Pool           // of hash.Hash, keyed
	known    atomic.Pointer[end] // the head that was verified or written last
	heads    store.Memo[end]

	mu        sync.Mutex // held by what walks the trail or changes its ends
	published Checkpoint // the last one
	swept     time.Time
}

// Config is how the trail is kept.
type Config struct {
	Keep      time.Duration // how long records are kept; 0 for ever
	Every     uint64        // a checkpoint after so many records; 0 for 1000
	Interval  time.Duration // and at least so often, if there was any; 0 for an hour
	PerMinute int           // failed proofs recorded one by one, a minute; 0 for 20
}

func (c Config) every() uint64 {
	if c.Every == 0 {
		return 1000
	}
	return c.Every
}

func (c Config) interval() time.Duration {
	if c.Interval == 0 {
		return time.Hour
	}
	return c.Interval
}

// Append adds e to the trail in the transaction of the change it tells of, so
// that neither is ever there without the other. Actor, organisation and request
// id come from ctx.
func (l *Log) Append(ctx context.Context, tx store.Tx, e Entry) error {
	last, err := l.end(tx, head)
	if err != nil {
		return err
	}
	a := identity.FromContext(ctx)
	r := Record{
		Seq: last.Seq + 1, At: l.Now().UTC(), Org: clean(e.Org), Action: clean(e.Action), Target: clean(e.Target), Device: clean(e.Device),
		Actor:     Actor{Kind: a.Kind, ID: clean(a.ID), Credential: a.Credential.Kind},
		RequestID: clean(identity.RequestID(ctx)), Detail: cleanAll(e.Detail),
	}
	if r.Org == "" {
		r.Org = a.Org
	}
	r.MAC = l.mac(&r, last.MAC)
	if err := records.Insert(tx, key(r.Seq), r); err != nil {
		return err
	}
	tx.OnCommit(func() { raise(&l.written, r.Seq) })
	return l.setEnd(tx, head, r.Seq, r.MAC)
}

// clean is text as a record may hold it: short, and text.
func clean(s string) string {
	if len(s) > maxText {
		s = s[:maxText] + "…"
	}
	return strings.ToValidUTF8(s, "\uFFFD")
}

func cleanAll(m map[string]string) map[string]string {
	if len(m) == 0 {
		return nil
	}
	out := make(map[string]string, len(m))
	for k, v := range m {
		if len(out) == maxDetail {
			break
		}
		out[clean(k)] = clean(v)
	}
	return out
}

// raise brings n up to v; commits may be told of in any order.
func raise(n *atomic.Uint64, v uint64) {
	for {
		old := n.Load()
		if old >= v || n.CompareAndSwap(old, v) {
			return
		}
	}
}

// end returns an end of the chain, the zero one if nothing was ever there.
func (l *Log) end(tx store.Tx, which string) (end, error) {
	e, err := l.heads.Get(tx, ends, which)
	if fault.Is(err, fault.NotFound) {
		return end{}, nil
	}
	if err != nil {
		return end{}, err
	}
	if known := l.known.Load(); known != nil && which == head && known.Seq == e.Seq && bytes.Equal(known.MAC, e.MAC) && bytes.Equal(known.Auth, e.Auth) {
		return e, nil // as it was when it was verified
	}
	if !hmac.Equal(e.Auth, l.auth(which, e)) {
		return end{}, fmt.Errorf("%w: where its %s is was changed", ErrTampered, which)
	}
	return e, nil
}

func (l *Log) setEnd(tx store.Tx, which string, seq uint64, mac []byte) error {
	e := end{Seq: seq, MAC: mac}
	e.Auth = l.auth(which, e)
	if which == head {
		l.known.Store(&e)
	}
	return l.heads.Put(tx, ends, which, e)
}

// keyed returns a MAC under the trail's key; done gives it back.
func (l *Log) keyed() (m hash.Hash, done func()) {
	m, ok := l.macs.Get().(hash.Hash)
	if !ok {
		m = hmac.New(sha256.New, l.Key)
	}
	m.Reset()
	return m, func() { l.macs.Put(m) }
}

func (l *Log) auth(which string, e end) []byte {
	m, done := l.keyed()
	defer done()
	m.Write(binary.BigEndian.AppendUint64([]byte(which+"\x00"), e.Seq))
	m.Write(e.MAC)
	return m.Sum(nil)
}

// mac is over the record without its MAC, and the MAC of the record before.
func (l *Log) mac(r *Record, before []byte) []byte {
	m, done := l.keyed()
	defer done()
	m.Write([]byte("record\x00"))
	// The same bytes for the same record: fields in the order of the struct,
	// sorted maps. A field added later must have omitempty, or old records no
	// longer verify.
	m.Write(r.text())
	m.Write(before)
	return m.Sum(nil)
}

// key sorts records by number.
func key(seq uint64) string { return hex.EncodeToString(binary.BigEndian.AppendUint64(nil, seq)) }

// ErrTampered is in the tree of an error about a trail that is not what was written.
var ErrTampered = errors.New("audit: the trail is not what was written")
