package authsets_test

import (
	"fmt"
	"testing"

	"keystead/authsets"
	"keystead/identity"
)

func lines(b *testing.B, from, n int) []authsets.Line {
	b.Helper()
	k := newKey(b).der()
	list := make([]authsets.Line, n)
	for i := range list {
		list[i] = authsets.Line{Number: i + 1, New: authsets.New{Identity: authsets.Canonical(fmt.Sprintf(`{"serial":"%09d"}`, from+i)), Key: k}}
	}
	return list
}

// BenchmarkImport is for one device.
func BenchmarkImport(b *testing.B) {
	f := start(b)
	ctx := admin(b.Context(), org)
	for n := 0; n < b.N; n += authsets.Batch {
		if _, err := f.Import(ctx, lines(b, n, min(authsets.Batch, b.N-n)), false); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkAuthenticate is without the signature of the token, which is another room's, and without HTTP.
func BenchmarkAuthenticate(b *testing.B) {
	for _, devices := range []int{1_000, 100_000} {
		f := start(b)
		ctx := admin(b.Context(), org)
		for n := 0; n < devices; n += authsets.Batch {
			if _, err := f.Import(ctx, lines(b, n, authsets.Batch), false); err != nil {
				b.Fatal(err)
			}
		}
		k, waits := newKey(b), newKey(b)
		if _, err := f.Preauthorise(ctx, authsets.New{Identity: one, Key: k.der()}); err != nil {
			b.Fatal(err)
		}
		token, err := f.Authenticate(b.Context(), k.request(one))
		if err != nil {
			b.Fatal(err)
		}
		b.Run(fmt.Sprintf("accepted again/%d", devices), func(b *testing.B) {
			r := k.request(one)
			for b.Loop() {
				if _, err := f.Authenticate(b.Context(), r); err != nil {
					b.Fatal(err)
				}
			}
		})
		r := waits.request(`{"serial":"waits"}`)
		b.Run(fmt.Sprintf("pending again/%d", devices), func(b *testing.B) {
			for b.Loop() {
				if _, err := f.Authenticate(b.Context(), r); err == nil {
					b.Fatal("let in")
				}
			}
		})
		b.Run(fmt.Sprintf("resolve/%d", devices), func(b *testing.B) {
			for b.Loop() {
				if _, err := f.Resolve(b.Context(), identity.Proof{Scheme: "Bearer", Value: token}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
