package seal

import (
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"
)

const keySize = 32

// When a data key is due to be followed by a new one: AES-GCM with random nonces
// is good for 2^32 values under one key (NIST SP 800-38D, 8.3).
const (
	maxAge   = 365 * 24 * time.Hour
	maxSeals = 1 << 30
)

// Keyring holds the data keys. The newest seals; all of them open. It is safe
// for use by several goroutines.
type Keyring struct {
	mu     sync.Mutex // held while the ring is changed
	master *Master
	state  atomic.Pointer[state]
	seals  atomic.Uint64 // under the newest key, since it was made or the ring was opened
}

// state is the ring as it stands, oldest key first. It never changes.
type state struct{ Keys []dataKey }

type dataKey struct {
	ID      uint32    `json:"id"`
	Created time.Time `json:"created"`
	Key     []byte    `json:"key"`
}

// record is how a ring is kept: the keys as JSON, sealed whole under the master
// key, and what has to be known to find that.
type record struct {
	Format int    `json:"format"`
	Master string `json:"master"` // the fingerprint of the master key
	KDF    *kdf   `json:"kdf,omitempty"`
	Sealed []byte `json:"sealed"`
}

// place binds the sealed keys to all else in the record.
func (r record) place() string {
	r.Sealed = nil
	b, _ := json.Marshal(r) // numbers, strings and bytes
	return "keyring/" + string(b)
}

// ErrMaster says that a keyring needs another master key than the one given.
var ErrMaster = errors.New("seal: wrong master key")

// NewKeyring makes a ring with one data key. Nothing may be sealed with it
// before its Record is kept.
func NewKeyring(master *Master, now time.Time) (*Keyring, error) {
	if err := master.fresh(); err != nil {
		return nil, err
	}
	k := &Keyring{master: master}
	k.state.Store(&state{[]dataKey{newKey(1, now)}})
	return k, nil
}

func newKey(id uint32, now time.Time) dataKey {
	return dataKey{ID: id, Created: now.UTC().Truncate(time.Second), Key: NewSecret(keySize)}
}

// OpenKeyring opens a ring from its Record. For a wrong master key the error is
// ErrMaster.
func OpenKeyring(master *Master, kept []byte) (*Keyring, error) {
	var r record
	if err := json.Unmarshal(kept, &r); err != nil {
		return nil, fmt.Errorf("seal: the keyring cannot be read: %w", err)
	}
	if r.Format != format {
		return nil, fmt.Errorf("seal: the keyring has format %d, this program knows %d", r.Format, format)
	}
	if err := master.unlock(r.KDF); err != nil {
		return nil, err
	}
	if got := master.fingerprint(); got != r.Master {
		return nil, fmt.Errorf("%w: the database was sealed under the one with fingerprint %s, this one (%s) has %s", ErrMaster, r.Master, master.from, got)
	}
	box, err := master.box()
	if err != nil {
		return nil, err
	}
	plain, err := box.Open(r.place(), r.Sealed)
	if err != nil {
		return nil, errors.New("seal: the keyring was changed or is damaged; put back a backup")
	}
	defer plain.Wipe()
	var s state
	if err := json.Unmarshal(plain, &s); err != nil {
		return nil, fmt.Errorf("seal: the keyring cannot be read: %w", err)
	}
	if len(s.Keys) == 0 {
		return nil, errors.New("seal: the keyring holds no keys")
	}
	k := &Keyring{master: master}
	k.state.Store(&s)
	return k, nil
}

// Record returns the ring as it is to be kept. It tells nothing to who does not
// have the master key.
func (k *Keyring) Record() ([]byte, error) { return seal(k.master, k.state.Load()) }

func seal(master *Master, s *state) ([]byte, error) {
	plain, err := json.Marshal(s)
	if err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	defer clear(plain)
	box, err := master.box()
	if err != nil {
		return nil, err
	}
	r := record{Format: format, Master: master.fingerprint(), KDF: master.kdf}
	r.Sealed = box.Seal(r.place(), plain)
	return json.Marshal(r)
}

// Rotate adds a data key, which seals from then on. The ring is changed only
// after keep has kept its new Record.
func (k *Keyring) Rotate(now time.Time, keep func(record []byte) error) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	before := k.state.Load()
	next := &state{append(slices.Clip(before.Keys), newKey(before.newest().ID+1, now))}
	if err := k.keep(k.master, next, keep); err != nil {
		return err
	}
	k.seals.Store(0)
	return nil
}

// Forget takes out every data key older than the newest, after all that they
// sealed was sealed again. A key that is still needed is lost for good: look
// first with [KeyID].
func (k *Keyring) Forget(keep func(record []byte) error) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.keep(k.master, &state{[]dataKey{k.state.Load().newest()}}, keep)
}

// ChangeMaster wraps the ring with another master key.
func (k *Keyring) ChangeMaster(to *Master, keep func(record []byte) error) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	if err := to.fresh(); err != nil {
		return err
	}
	if err := k.keep(to, k.state.Load(), keep); err != nil {
		return err
	}
	k.master = to
	return nil
}

func (k *Keyring) keep(master *Master, next *state, keep func([]byte) error) error {
	kept, err := seal(master, next)
	if err != nil {
		return err
	}
	if err := keep(kept); err != nil {
		return fmt.Errorf("seal: the new keyring was not kept: %w", err)
	}
	k.state.Store(next)
	return nil
}

// Key is a data key as it may be shown.
type Key struct {
	ID      uint32
	Created time.Time
}

// Keys lists the data keys, oldest first; the last one seals.
func (k *Keyring) Keys() []Key {
	var all []Key
	for _, key := range k.state.Load().Keys {
		all = append(all, Key{key.ID, key.Created})
	}
	return all
}

// Due reports whether it is time to Rotate.
func (k *Keyring) Due(now time.Time) bool {
	return now.Sub(k.state.Load().newest().Created) >= maxAge || k.seals.Load() >= maxSeals
}

// Master returns the fingerprint of the master key, by which people know it.
func (k *Keyring) Master() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.master.fingerprint()
}

// Box returns the box of a class. What one class sealed no other opens.
func (k *Keyring) Box(class string) *Box { return &Box{&ringKeys{ring: k, class: class}} }

func (s *state) newest() dataKey { return s.Keys[len(s.Keys)-1] }

func (s *state) numbered(id uint32) (dataKey, bool) {
	for _, key := range s.Keys {
		if key.ID == id {
			return key, true
		}
	}
	return dataKey{}, false
}

// ringKeys derives the keys of one class from those of the ring, each once.
type ringKeys struct {
	ring    *Keyring
	class   string
	derived sync.Map // uint32 to cipher.AEAD
}

func (r *ringKeys) newest() (uint32, cipher.AEAD) {
	r.ring.seals.Add(1)
	key := r.ring.state.Load().newest()
	return key.ID, r.derive(key)
}

func (r *ringKeys) numbered(id uint32) (cipher.AEAD, bool) {
	key, ok := r.ring.state.Load().numbered(id)
	if !ok {
		return nil, false
	}
	return r.derive(key), true
}

func (r *ringKeys) derive(key dataKey) cipher.AEAD {
	if known, ok := r.derived.Load(key.ID); ok {
		return known.(cipher.AEAD) //nolint:errcheck // nothing else is in it
	}
	b, err := derive(key.Key, "class/"+r.class)
	if err != nil {
		panic(err) // 32 bytes are always to be had (RFC 5869, 2.3)
	}
	aead, err := newAEAD(b)
	if err != nil {
		panic(err) // 32 bytes are a key
	}
	known, _ := r.derived.LoadOrStore(key.ID, aead)
	return known.(cipher.AEAD) //nolint:errcheck // nothing else is in it
}

// derive returns a key of its own for each use of one.
func derive(key []byte, use string) ([]byte, error) {
	return hkdf.Key(sha256.New, key, nil, "keystead/"+use, keySize)
}
