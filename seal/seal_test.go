package seal_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"keystead/seal"
)

func box(t *testing.T) *seal.Box {
	t.Helper()
	b, err := seal.NewBox(bytes.Repeat([]byte{7}, 32))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestOpenOnlyInItsPlace(t *testing.T) {
	b := box(t)
	sealed := b.Seal("psk/a", []byte("hunter2"))
	got, err := b.Open("psk/a", sealed)
	if err != nil || string(got) != "hunter2" {
		t.Fatalf("got %q, %v, want hunter2", []byte(got), err)
	}
	for _, place := range []string{"psk/b", "psk/a ", "", "\x01\x00\x00\x00\x01psk/a"} {
		if _, err := b.Open(place, sealed); !errors.Is(err, seal.ErrOpen) {
			t.Errorf("place %q: got %v, want %v", place, err, seal.ErrOpen)
		}
	}
	other, err := seal.NewBox(bytes.Repeat([]byte{8}, 32))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := other.Open("psk/a", sealed); !errors.Is(err, seal.ErrOpen) {
		t.Errorf("another key: got %v, want %v", err, seal.ErrOpen)
	}
}

// Whatever bit is turned and wherever it is cut, a sealed value does not open.
func TestChangedValueDoesNotOpen(t *testing.T) {
	b := box(t)
	sealed := b.Seal("p", []byte("secret"))
	for i := range len(sealed) * 8 {
		bad := bytes.Clone(sealed)
		bad[i/8] ^= 1 << (i % 8)
		if _, err := b.Open("p", bad); !errors.Is(err, seal.ErrOpen) {
			t.Errorf("bit %d: got %v, want %v", i, err, seal.ErrOpen)
		}
	}
	for n := range sealed {
		if _, err := b.Open("p", sealed[:n]); !errors.Is(err, seal.ErrOpen) {
			t.Errorf("cut to %d bytes: got %v, want %v", n, err, seal.ErrOpen)
		}
	}
}

func TestSameSecretSealsDifferently(t *testing.T) {
	b := box(t)
	if bytes.Equal(b.Seal("p", []byte("x")), b.Seal("p", []byte("x"))) {
		t.Error("two values are equal: the nonce is not new")
	}
}

func TestSecretNeverPrints(t *testing.T) {
	s := seal.Secret("hunter2")
	holder := struct {
		Key  seal.Secret
		Keys []seal.Secret
	}{s, []seal.Secret{s}}
	var log bytes.Buffer
	slog.New(slog.NewJSONHandler(&log, nil)).Info("x", "key", s, "holder", holder)
	slog.New(slog.NewTextHandler(&log, nil)).Info("x", "key", s, "holder", holder)
	wire, err := json.Marshal(holder)
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range []string{
		fmt.Sprintf("%v %+v %#v %s %q %x %d", s, s, s, s, s, s, s),
		fmt.Sprintf("%v %+v %#v", holder, holder, &holder),
		fmt.Sprint(any(s)), fmt.Errorf("key %v", s).Error(), log.String(), string(wire),
	} {
		for _, leak := range []string{"hunter2", "68756e74657232", "aHVudGVyMg", "104 117"} {
			if strings.Contains(text, leak) {
				t.Errorf("got %q, which tells the secret", text)
			}
		}
	}
}

func FuzzOpen(f *testing.F) {
	b, err := seal.NewBox(bytes.Repeat([]byte{7}, 32))
	if err != nil {
		f.Fatal(err)
	}
	f.Add("p", b.Seal("p", []byte("x")))
	f.Add("", []byte{1, 0, 0, 0, 1})
	f.Fuzz(func(t *testing.T, place string, sealed []byte) {
		if secret, err := b.Open(place, sealed); err == nil && string(secret) != "x" {
			t.Errorf("%x opened", sealed)
		}
	})
}
