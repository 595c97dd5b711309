package audit

import (
	"context"
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"time"

	"keystead/store"
)

// Checkpoint states that the trail had so many records, the last of them with
// this MAC. It is signed, so that who keeps one needs no secret to show it is ours.
type Checkpoint struct {
	Seq       uint64    `json:"seq"`
	MAC       []byte    `json:"mac"`
	At        time.Time `json:"at"`
	Signature []byte    `json:"signature"` // Ed25519
}

// signed is what a checkpoint's signature is over.
func (c Checkpoint) signed() []byte {
	return fmt.Appendf(nil, "keystead audit checkpoint 1\n%d\n%s\n%s\n", c.Seq, hex.EncodeToString(c.MAC), c.At.UTC().Format(time.RFC3339))
}

// Valid reports whether c was signed by the owner of key.
func (c Checkpoint) Valid(key ed25519.PublicKey) bool {
	return len(key) == ed25519.PublicKeySize && ed25519.Verify(key, c.signed(), c.Signature)
}

// PublicKey is what checkpoints of this trail are verified with.
func (l *Log) PublicKey() (ed25519.PublicKey, error) {
	private, err := l.signer()
	if err != nil {
		return nil, err
	}
	return private.Public().(ed25519.PublicKey), nil //nolint:errcheck // it is one, by the documentation
}

func (l *Log) signer() (ed25519.PrivateKey, error) {
	seed, err := hkdf.Key(sha256.New, l.Key, nil, "keystead/audit checkpoint", ed25519.SeedSize)
	if err != nil {
		return nil, fmt.Errorf("audit: %w", err)
	}
	return ed25519.NewKeyFromSeed(seed), nil
}

// Checkpoint signs where the trail stands. It is false if there is no record yet.
func (l *Log) Checkpoint(ctx context.Context) (Checkpoint, bool, error) {
	var last end
	if err := l.DB.View(ctx, func(tx store.Tx) (err error) {
		last, err = l.end(tx, head)
		return err
	}); err != nil || last.Seq == 0 {
		return Checkpoint{}, false, err
	}
	private, err := l.signer()
	if err != nil {
		return Checkpoint{}, false, err
	}
	c := Checkpoint{Seq: last.Seq, MAC: last.MAC, At: l.Now().UTC().Truncate(time.Second)}
	c.Signature = ed25519.Sign(private, c.signed())
	return c, true, nil
}

// Resume tells l of the last checkpoint that was published before the process
// started. Its error, ErrTampered, says that the trail does not go that far any
// more, and nothing in it says why.
func (l *Log) Resume(ctx context.Context, last Checkpoint) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var h end
	if err := l.DB.View(ctx, func(tx store.Tx) (err error) {
		h, err = l.end(tx, head)
		return err
	}); err != nil {
		return err
	}
	raise(&l.written, h.Seq)
	if last.Seq == 0 {
		return nil
	}
	key, err := l.PublicKey()
	if err != nil {
		return err
	}
	if !last.Valid(key) {
		return fmt.Errorf("%w: the last checkpoint is not of this trail", ErrTampered)
	}
	l.published = last
	return l.verifyFrom(ctx, last)
}

// Tick does what is due at now: it records the proofs that failed, publishes a
// checkpoint, and drops what is older than is kept. It is to be called every
// second or so, and by [Log.Finish] at the end.
func (l *Log) Tick(ctx context.Context, now time.Time) error {
	if err := l.flushFailures(ctx, now); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	written := l.written.Load()
	due := written >= l.published.Seq+l.Config.every() ||
		written > l.published.Seq && now.Sub(l.published.At) >= l.Config.interval()
	if due {
		if err := l.publish(ctx); err != nil {
			return err
		}
	}
	if l.Config.Keep > 0 && now.Sub(l.swept) >= min(time.Hour, l.Config.Keep) {
		l.swept = now
		return l.prune(ctx, now.Add(-l.Config.Keep))
	}
	return nil
}

// Finish records what is left and publishes a last checkpoint.
func (l *Log) Finish(ctx context.Context) error {
	if err := l.flushFailures(ctx, l.Now().Add(time.Hour)); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.written.Load() <= l.published.Seq {
		return nil
	}
	return l.publish(ctx)
}

func (l *Log) publish(ctx context.Context) error {
	c, ok, err := l.Checkpoint(ctx)
	if err != nil || !ok {
		return err
	}
	if l.Publish != nil {
		if err := l.Publish(c); err != nil {
			return fmt.Errorf("audit: publish the checkpoint: %w", err)
		}
	}
	l.published = c
	return nil
}

// Published returns the last checkpoint, the zero one if there was none yet.
func (l *Log) Published() Checkpoint {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.published
}

// Written returns how many records were ever written, as far as this process knows.
func (l *Log) Written() uint64 { return l.written.Load() }
