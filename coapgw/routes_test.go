package coapgw_test

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
	"sync/atomic"
	"time"

	"keystead/coap"
	"keystead/coapgw"
	"keystead/identity"
)

// fixtures are resources of the tests.
type fixtures struct {
	runs  atomic.Int64    // of /sum
	text  atomic.Value    // of /text, a string
	reply chan coap.Reply // what the device answered to /call
	ended chan struct{}   // sessions that called /call and have ended
	last  atomic.Pointer[coap.Request]
}

var largeBody = []byte(strings.Repeat("0123456789abcdef", 400)) // 6,400 bytes

func (f *fixtures) mount(g *coapgw.Gateway) {
	f.reply, f.ended = make(chan coap.Reply, 1), make(chan struct{}, 1)
	f.text.Store("one")
	g.Routes = append(g.Routes,
		coap.Route{Method: coap.POST, Path: "/sum", Need: identity.Proven, Handle: f.sum, MaxBody: 20000},
		coap.Route{Method: coap.POST, Path: "/double", Need: identity.Proven, Handle: double, MaxBody: 20000},
		coap.Route{Method: coap.GET, Path: "/big", Need: identity.Proven, Handle: answer(largeBody)},
		coap.Route{Method: coap.GET, Path: "/text", Need: identity.Proven, Handle: func(context.Context, *coap.Request) (coap.Response, error) {
			return coap.Response{Code: coap.Content, Body: []byte(f.text.Load().(string))}, nil
		}, Observable: true},
		coap.Route{Method: coap.GET, Path: "/slow", Need: identity.Proven, Handle: func(ctx context.Context, _ *coap.Request) (coap.Response, error) {
			select {
			case <-time.After(1500 * time.Millisecond):
			case <-ctx.Done():
				return coap.Response{}, ctx.Err()
			}
			return coap.Response{Code: coap.Content, Body: []byte("at last")}, nil
		}},
		coap.Route{Method: coap.GET, Path: "/panic", Need: identity.Proven, Handle: func(context.Context, *coap.Request) (coap.Response, error) { panic("on purpose") }},
		coap.Route{Method: coap.GET, Path: "/bye", Need: identity.Proven, Handle: func(context.Context, *coap.Request) (coap.Response, error) {
			return coap.Response{Code: coap.Content, Body: []byte("bye"), Close: true}, nil
		}},
		coap.Route{Method: coap.POST, Path: "/call", Need: identity.DeviceOnly, Handle: f.call},
		coap.Route{Method: coap.GET, Path: "/admin", Need: identity.DevicesRead, Handle: answer([]byte("secret"))},
		coap.Route{Method: coap.GET, Path: "/open/{label}/x", Need: identity.Public, Handle: func(_ context.Context, r *coap.Request) (coap.Response, error) {
			f.last.Store(r)
			return coap.Response{Code: coap.Content, Body: []byte("label " + r.Var("label") + " actor " + r.Actor.ID)}, nil
		}, Link: `rt="test.open";ct=0`},
	)
}

func answer(body []byte) coap.Handler {
	return func(context.Context, *coap.Request) (coap.Response, error) {
		return coap.Response{Code: coap.Content, Format: coap.OctetStream, Body: body}, nil
	}
}

func (f *fixtures) sum(_ context.Context, r *coap.Request) (coap.Response, error) {
	f.runs.Add(1)
	return coap.Response{Code: coap.Changed, Body: sumOf(r.Body)}, nil
}

func sumOf(b []byte) []byte {
	h := sha256.Sum256(b)
	return fmt.Appendf(nil, "%d %s", len(b), hex.EncodeToString(h[:8]))
}

// double answers with the body twice: large in both directions.
func double(_ context.Context, r *coap.Request) (coap.Response, error) {
	return coap.Response{Code: coap.Changed, Format: coap.OctetStream, Body: append(r.Body, r.Body...)}, nil
}

// call has the server call the device back, as a bootstrap server does: the body is put to the
// device at /target, and read back from there.
func (f *fixtures) call(_ context.Context, r *coap.Request) (coap.Response, error) {
	session := r.Session
	body := r.Body
	session.OnEnd(func() { f.ended <- struct{}{} })
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if _, err := session.Do(ctx, coap.Call{Method: coap.PUT, Path: "/target", Format: coap.OctetStream, Body: append(body, largeBody...)}); err != nil {
			f.reply <- coap.Reply{Body: []byte(err.Error())}
			return
		}
		reply, err := session.Do(ctx, coap.Call{Method: coap.GET, Path: "/target"})
		if err != nil {
			reply.Body = []byte(err.Error())
		}
		f.reply <- reply
	}()
	return coap.Response{Code: coap.Changed}, nil
}
