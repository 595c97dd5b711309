package fault_test

import (
	"errors"
	"fmt"
	"io"
	"testing"

	"keystead/fault"
)

func TestOnlyMessagesForClientsLeave(t *testing.T) {
	secretive := errors.New("dial 10.0.0.7: password hunter2")
	for _, test := range []struct {
		name string
		err  error
		kind fault.Kind
		text string
	}{
		{"unknown", secretive, fault.Internal, "internal error"},
		{"wrapped for a client", fault.Wrap(fault.Unavailable, secretive, "try again later"), fault.Unavailable, "try again later"},
		{"declared internal", fault.Wrap(fault.Internal, secretive, "store broke"), fault.Internal, "internal error"},
		{"wrapped again on the way", fmt.Errorf("psk: %w", fault.New(fault.NotFound, "no such psk")), fault.NotFound, "no such psk"},
		{"the outermost fault counts", fault.Wrap(fault.Invalid, fault.New(fault.NotFound, "no such ca"), "ca does not exist"), fault.Invalid, "ca does not exist"},
	} {
		if kind, text := fault.KindOf(test.err), fault.Message(test.err); kind != test.kind || text != test.text {
			t.Errorf("%s: got %v %q, want %v %q", test.name, kind, text, test.kind, test.text)
		}
	}
	if wrapped := fault.Wrap(fault.Invalid, io.EOF, "short"); !errors.Is(wrapped, io.EOF) {
		t.Error("the cause is lost in Wrap")
	}
	if fault.Is(nil, fault.Internal) {
		t.Error("a nil error is Internal")
	}
}

func TestInvalidFields(t *testing.T) {
	if err := fault.InvalidFields(); err != nil {
		t.Errorf("no fields: got %v, want nil", err)
	}
	err := fault.InvalidFields(fault.Field{Name: "name", Message: "must not be empty"})
	if !fault.Is(err, fault.Invalid) || fault.Message(err) != "name: must not be empty" {
		t.Errorf("got %v", err)
	}
}
