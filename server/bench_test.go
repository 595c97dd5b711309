package server_test

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"syscall"
	"testing"
	"time"

	"keystead/authsets"
	"keystead/identity"
	"keystead/thingkeys"
)

// quiet is an answer that is not looked at but for its status.
type quiet struct {
	header http.Header
	status int
}

func (q *quiet) Header() http.Header         { return q.header }
func (q *quiet) WriteHeader(status int)      { q.status = status }
func (q *quiet) Write(b []byte) (int, error) { return len(b), nil }

// arriving is a request as the HTTP library hands it over.
func arriving(ctx context.Context, method, path string, header http.Header, body []byte) *http.Request {
	req := &http.Request{
		Method: method, URL: &url.URL{Path: path}, Header: header, Body: http.NoBody, ContentLength: int64(len(body)),
		Host: "keystead.example", RemoteAddr: "192.0.2.7:4711", ProtoMajor: 1, ProtoMinor: 1,
	}
	if body != nil {
		req.Body = io.NopCloser(bytes.NewReader(body))
	}
	return req.WithContext(ctx)
}

// spent is the CPU time of this process.
func spent(b *testing.B) time.Duration {
	b.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkRequests is what the requests of devices take that are asked most, without HTTP's own
// part and TLS.
func BenchmarkRequests(b *testing.B) {
	r := start(b)
	r.Log = slog.New(slog.DiscardHandler)
	h := r.Handler()
	ctx := identity.NewContext(b.Context(), identity.Actor{Kind: identity.User, ID: "bench", Org: r.org, Role: identity.Admin})
	const known = 50
	devices := make([]authDevice, 2*known) // the second half waits
	for i := range devices {
		devices[i] = newAuthDevice(b, fmt.Sprintf("00:%02x", i))
		if i < known {
			id, err := authsets.Canonicalise([]byte(devices[i].id))
			if err != nil {
				b.Fatal(err)
			}
			_, key, err := authsets.ParseKey(devices[i].pem())
			if err != nil {
				b.Fatal(err)
			}
			if _, err := r.AuthSets.Preauthorise(ctx, authsets.New{Identity: id, Key: key}); err != nil {
				b.Fatal(err)
			}
		}
	}
	tokens := make([]string, known)
	for i, d := range devices {
		_, body := d.ask(b, r)
		if i < known {
			tokens[i] = body
		}
	}
	each := func(b *testing.B, want int, next func(i int) *http.Request) {
		b.Helper()
		b.ReportAllocs()
		before, i := spent(b), 0
		for b.Loop() {
			q := quiet{http.Header{}, http.StatusOK}
			h.ServeHTTP(&q, next(i))
			if q.status != want {
				b.Fatalf("status %d", q.status)
			}
			i++
		}
		b.ReportMetric(float64(spent(b)-before)/float64(i), "cpu-ns/op")
	}
	made := 0
	auth := func(first, want int, again bool) func(b *testing.B) {
		return func(b *testing.B) {
			type signed struct {
				body      []byte
				signature string
			}
			requests := make([]signed, 30_000)
			if again {
				requests = requests[:known]
			}
			for i := range requests {
				d := devices[first+i%known]
				made++
				body, err := json.Marshal(map[string]string{"id_data": d.id, "pubkey": d.pem(), "tier": fmt.Sprint("standard", made)})
				if err != nil {
					b.Fatal(err)
				}
				requests[i] = signed{body, base64.StdEncoding.EncodeToString(ed25519.Sign(d.key, body))}
			}
			each(b, want, func(i int) *http.Request {
				in := requests[i%len(requests)]
				return arriving(b.Context(), http.MethodPost, authRequests,
					http.Header{"Content-Type": {"application/json"}, "X-Men-Signature": {in.signature}}, in.body)
			})
		}
	}
	b.Run("auth request, accepted", auth(0, http.StatusOK, false))
	b.Run("auth request, pending", auth(known, http.StatusUnauthorized, false))
	b.Run("auth request, pending again", auth(known, http.StatusUnauthorized, true))
	get := func(path string, want int, header func(i int) http.Header) func(b *testing.B) {
		return func(b *testing.B) {
			each(b, want, func(i int) *http.Request { return arriving(b.Context(), http.MethodGet, path, header(i), nil) })
		}
	}
	b.Run("token verified", get("/api/internal/v1/devauth/tokens/verify", http.StatusOK, func(i int) http.Header {
		return http.Header{"Authorization": {"Bearer " + tokens[i%known]}, "X-Gateway-Key": {r.admin}}
	}))
	things, err := r.Things.Create(ctx, []thingkeys.New{{Name: "one", Type: "sensor"}})
	if err != nil {
		b.Fatal(err)
	}
	b.Run("whoami, thing key", get("/api/v1/whoami", http.StatusOK, func(int) http.Header {
		return http.Header{"Authorization": {"Thing " + string(things[0].Key)}}
	}))
	b.Run("nothing done", get("/api/internal/v1/devauth/alive", http.StatusNoContent, func(int) http.Header { return http.Header{} }))
}
