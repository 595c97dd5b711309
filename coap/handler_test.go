package coap_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"keystead/coap"
	"keystead/fault"
)

func TestErrorsBecomeResponses(t *testing.T) {
	for _, c := range []struct {
		err    error
		code   coap.Code
		body   string
		maxAge time.Duration
		close  bool
	}{
		{fault.New(fault.NotFound, "no such psk"), coap.NotFound, "no such psk", 0, false},
		{fmt.Errorf("psk: %w", fault.New(fault.Unauthenticated, "the device is suspended")), coap.Unauthorized, "the device is suspended", 0, false},
		{fault.Later(fault.TooMany, 5*time.Second, "slow down"), coap.TooManyRequests, "slow down", 5 * time.Second, false},
		{fault.Wrap(fault.Unavailable, errors.New("dial 10.0.0.1"), "try again"), coap.ServiceUnavailable, "try again", 0, false},
		{errors.New("bolt: page 7"), coap.InternalServerError, "internal error", 0, false},
		{coap.Errorf(coap.NotAcceptable, "formats are %d", 60), coap.NotAcceptable, "formats are 60", 0, false},
		{fmt.Errorf("sign in: %w", coap.Errorf(coap.Unauthorized, "no").Closing()), coap.Unauthorized, "no", 0, true},
	} {
		got := coap.Failure(c.err)
		if got.Code != c.code || string(got.Body) != c.body || got.MaxAge != c.maxAge || got.Close != c.close {
			t.Errorf("%v: %v %q, max-age %v, close %v; want %v %q, %v, %v", c.err, got.Code, got.Body, got.MaxAge, got.Close, c.code, c.body, c.maxAge, c.close)
		}
	}
}

func TestEveryFaultHasACode(t *testing.T) {
	for kind := fault.Internal; kind <= fault.Full; kind++ {
		if got := coap.Failure(fault.New(kind, "x")).Code; !got.IsError() {
			t.Errorf("%v is answered with %v", kind, got)
		}
	}
}

func TestQueries(t *testing.T) {
	r := &coap.Request{Options: coap.Options{
		{coap.URIQuery, []byte("ep=a b")}, {coap.URIQuery, []byte("di=x+y&uid=%41")}, {coap.URIQuery, []byte("flag")},
	}}
	if v, ok := r.Query("ep"); v != "a b" || !ok {
		t.Errorf("ep %q, %v, want it as it stands", v, ok)
	}
	if v, ok := r.Query("flag"); v != "" || !ok {
		t.Errorf("flag %q, %v, want it there and empty", v, ok)
	}
	if _, ok := r.Query("uid"); ok {
		t.Error("Query looked inside of an option for a second parameter")
	}
	form, err := r.FormQuery()
	if err != nil || form.Get("di") != "x y" || form.Get("uid") != "A" {
		t.Errorf("form %v, %v, want di and uid decoded", form, err)
	}
	bad := &coap.Request{Options: coap.Options{{coap.URIQuery, []byte("di=%zz")}}}
	if _, err := bad.FormQuery(); err == nil {
		t.Error("a bad escape was taken")
	}
	if v := r.WithVars("label", "factory").Var("label"); v != "factory" {
		t.Errorf("var %q, want factory", v)
	}
}
