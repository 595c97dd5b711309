package coapgw_test

import (
	"bytes"
	"strconv"
	"strings"
	"testing"
	"time"

	"keystead/coap"
	"keystead/coapgw"
	"keystead/identity"
)

func TestTheFirstRequestIsNotLost(t *testing.T) {
	w := newWorld(t)
	for i := range 200 {
		c, err := w.dial(psk("dev1", testKey)...)
		if err != nil {
			t.Fatal(err)
		}
		c.write(c.request(coap.GET, "/whoami", nil, nil))
		if got := c.read(1500 * time.Millisecond); got == nil || got.Code != coap.Content {
			t.Fatalf("session %d: %+v to the first request, sent once", i, got)
		}
		c.close()
	}
}

func TestRequestsAreServedOnce(t *testing.T) {
	f := &fixtures{}
	w := newWorld(t, f.mount)
	c := w.mustDial(psk("dev1", testKey)...)
	m := c.request(coap.POST, "/sum", nil, []byte("once"))
	for range 5 {
		c.write(m)
		got := c.read(2 * time.Second)
		if got == nil || got.Code != coap.Changed || got.ID != m.ID || got.Type != coap.Acknowledgement {
			t.Fatalf("%+v, want the same answer each time", got)
		}
	}
	if n := f.runs.Load(); n != 1 {
		t.Errorf("the handler ran %d times, want once", n)
	}
	m = c.request(coap.POST, "/sum", nil, []byte("once"))
	m.Type = coap.NonConfirmable
	c.write(m)
	c.write(m)
	got := c.read(2 * time.Second)
	if got == nil || got.Type != coap.NonConfirmable || got.ID == m.ID || !bytes.Equal(got.Token, m.Token) {
		t.Errorf("a non-confirmable request: %+v, want a non-confirmable answer", got)
	}
	c.read(200 * time.Millisecond)
	if n := f.runs.Load(); n != 2 {
		t.Errorf("the handler ran %d times, want twice", n)
	}
}

func TestASlowAnswerComesByItself(t *testing.T) {
	f := &fixtures{}
	w := newWorld(t, f.mount)
	c := w.mustDial(psk("dev1", testKey)...)
	m := c.request(coap.GET, "/slow", nil, nil)
	c.write(m)
	if got := c.read(1450 * time.Millisecond); got == nil || got.Type != coap.Acknowledgement || got.Code != coap.Empty || got.ID != m.ID {
		t.Fatalf("first %+v, want an empty acknowledgement before the client asks again", got)
	}
	got := c.read(2 * time.Second)
	if got == nil || got.Type != coap.Confirmable || !bytes.Equal(got.Token, m.Token) || string(got.Payload) != "at last" {
		t.Fatalf("then %+v, want the answer", got)
	}
	again := c.read(4 * time.Second)
	if again == nil || again.ID != got.ID {
		t.Fatalf("without an acknowledgement %+v, want the answer again", again)
	}
	c.write(&coap.Message{Type: coap.Acknowledgement, ID: got.ID})
	if again := c.read(5 * time.Second); again != nil {
		t.Errorf("after the acknowledgement %+v, want silence", again)
	}
}

func TestWhatIsNotAsItShouldBe(t *testing.T) {
	f := &fixtures{}
	w := newWorld(t, f.mount)
	c := w.mustDial(psk("dev1", testKey)...)
	opt := func(id coap.OptionID, v string) coap.Options { return coap.Options{}.Add(id, []byte(v)) }
	for _, tc := range []struct {
		name string
		m    *coap.Message
		code coap.Code
	}{
		{"an unknown critical option", c.request(coap.GET, "/whoami", opt(9, "x"), nil), coap.BadOption},
		{"an unknown elective option", c.request(coap.GET, "/whoami", opt(65000, "x"), nil), coap.Content},
		{"OCF's two critical options", c.request(coap.GET, "/whoami", opt(2049, "\x08").Add(2053, []byte{8}), nil), coap.Content},
		{"an option that is there twice", c.request(coap.GET, "/whoami", opt(coap.Accept, "\x32").Add(coap.Accept, []byte{50}), nil), coap.BadOption},
		{"a proxy request", c.request(coap.GET, "/whoami", opt(coap.ProxyURI, "coap://x"), nil), coap.ProxyingNotSupported},
		{"another method", c.request(coap.DELETE, "/whoami", nil, nil), coap.MethodNotAllowed},
		{"a method that does not exist", c.request(5, "/whoami", nil, nil), coap.MethodNotAllowed},
		{"a path that is not there", c.request(coap.GET, "/x/y/z", nil, nil), coap.NotFound},
		{"a path segment with a slash", c.request(coap.GET, "", opt(coap.URIPath, "who/ami"), nil), coap.BadRequest},
		{"a path that is not text", c.request(coap.GET, "", opt(coap.URIPath, "\xff"), nil), coap.BadRequest},
		{"a format that is not spoken", c.request(coap.GET, "/whoami", coap.Options{}.AddUint(coap.Accept, 41), nil), coap.NotAcceptable},
		{"a body that is too large at once", c.request(coap.POST, "/call", nil, make([]byte, 8100)[:8000]), coap.Changed},
		{"a handler that panics", c.request(coap.GET, "/panic", nil, nil), coap.InternalServerError},
		{"a block that claims too much", c.request(coap.POST, "/sum", coap.Options{}.Add(coap.Block1, coap.Block{More: true, SZX: 6}.Value()).AddUint(coap.Size1, 1<<20), make([]byte, 1024)), coap.RequestEntityTooLarge},
		{"a block out of the blue", c.request(coap.POST, "/sum", coap.Options{}.Add(coap.Block1, coap.Block{Num: 3, More: true, SZX: 6}.Value()), make([]byte, 1024)), coap.RequestEntityIncomplete},
		{"a block beyond the limit", c.request(coap.POST, "/sum", coap.Options{}.Add(coap.Block1, coap.Block{Num: 30, SZX: 6}.Value()), []byte("x")), coap.RequestEntityTooLarge},
		{"a block of another size than it says", c.request(coap.POST, "/sum", coap.Options{}.Add(coap.Block1, coap.Block{More: true, SZX: 6}.Value()), make([]byte, 1000)), coap.BadRequest},
		{"BERT on datagrams", c.request(coap.POST, "/sum", coap.Options{}.Add(coap.Block1, coap.Block{More: true, SZX: 7}.Value()), make([]byte, 1024)), coap.BadRequest},
		{"a block option of four bytes", c.request(coap.POST, "/sum", opt(coap.Block1, "\x01\x02\x03\x04"), []byte("x")), coap.BadRequest},
		{"a block of an answer that has no such", c.request(coap.GET, "/big", coap.Options{}.Add(coap.Block2, coap.Block{Num: 100, SZX: 6}.Value()), nil), coap.BadRequest},
		{"the rest of an answer nobody keeps", c.request(coap.POST, "/double", coap.Options{}.Add(coap.Block2, coap.Block{Num: 2, SZX: 6}.Value()), nil), coap.RequestEntityIncomplete},
	} {
		got := c.exchange(tc.m)
		if got.Code != tc.code {
			t.Errorf("%s: %v %s, want %v", tc.name, got.Code, got.Payload, tc.code)
		}
		if got.Code.IsError() && len(got.Payload) == 0 {
			t.Errorf("%s: %v says nothing of what is wrong", tc.name, got.Code)
		}
		if _, ok := got.Options.Get(coap.ContentFormat); ok && got.Code.IsError() {
			t.Errorf("%s: a diagnostic payload has a format", tc.name)
		}
	}
	if n := w.gw.Stats().Panics.Load(); n != 1 {
		t.Errorf("%d panics are counted, want 1", n)
	}
}

func TestDatagramsThatAreNoMessages(t *testing.T) {
	w := newWorld(t)
	c := w.mustDial(psk("dev1", testKey)...)
	for name, raw := range map[string]string{
		"nothing that is CoAP":   "hello, is this the web?",
		"a bad option":           "\x40\x01\x77\x77\xf0",
		"a token of 15 bytes":    "\x4f\x01\x77\x78",
		"a marker and no more":   "\x40\x01\x77\x79\xff",
		"a datagram of one byte": "\x40",
		"more than fits":         strings.Repeat("x", 3000),
	} {
		if _, err := c.conn.Write([]byte(raw)); err != nil {
			t.Fatal(err)
		}
		if got := c.read(100 * time.Millisecond); got != nil && got.Type != coap.Reset {
			t.Errorf("%s: %+v, want a reset at most", name, got)
		}
		if got := c.do(coap.GET, "/whoami", nil, nil); got.Code != coap.Content {
			t.Errorf("after %s: %v, want the session as it was", name, got.Code)
		}
	}
	c.write(&coap.Message{ID: 0x4711})
	if got := c.read(time.Second); got == nil || got.Type != coap.Reset || got.ID != 0x4711 {
		t.Errorf("a ping: %+v, want a reset", got)
	}
	c.write(&coap.Message{Code: coap.Content, ID: 0x4712, Token: []byte{1}})
	if got := c.read(time.Second); got == nil || got.Type != coap.Reset || got.ID != 0x4712 {
		t.Errorf("an answer nobody asked for: %+v, want a reset", got)
	}
}

// upload posts a body in blocks, with a new token each, and returns the last answer.
func (c *client) upload(path string, body []byte, szx uint8, extra coap.Options) *coap.Message {
	c.t.Helper()
	size := 16 << szx
	for at := 0; ; at += size {
		end := min(at+size, len(body))
		b := coap.Block{Num: uint32(at / size), More: end < len(body), SZX: szx}
		got := c.do(coap.POST, path, extra.Add(coap.Block1, b.Value()), body[at:end])
		if !b.More || got.Code != coap.Continue {
			return got
		}
	}
}

func TestUploads(t *testing.T) {
	f := &fixtures{}
	w := newWorld(t, f.mount)
	for name, open := range map[string]func() *client{
		"DTLS": func() *client { return w.mustDial(psk("dev1", testKey)...) },
		"TLS":  func() *client { return w.mustDialTCP(w.ca.issue("cert1")) },
	} {
		c := open()
		for _, szx := range []uint8{0, 2, 6} {
			body := bytes.Repeat([]byte("abc"), 1001)
			if got := c.upload("/sum", body, szx, nil); got.Code != coap.Changed || string(got.Payload) != string(sumOf(body)) {
				t.Errorf("%s, blocks of %d: %v %s, want %s", name, 16<<szx, got.Code, got.Payload, sumOf(body))
			} else if b, ok := got.Options.Get(coap.Block1); !ok || len(b) == 0 {
				t.Errorf("%s: the last answer has no Block1", name)
			}
		}
		// Two at once, told apart by their tags; a block that comes twice, and one that comes twice and is another.
		a, b := bytes.Repeat([]byte("a"), 2048), bytes.Repeat([]byte("b"), 2048)
		tag := func(x byte) coap.Options { return coap.Options{}.Add(coap.RequestTag, []byte{x}) }
		block := func(x byte, num uint32, more bool, body []byte) *coap.Message {
			return c.do(coap.POST, "/sum", tag(x).Add(coap.Block1, coap.Block{Num: num, More: more, SZX: 6}.Value()), body[num*1024:num*1024+1024])
		}
		for _, step := range []struct {
			got  *coap.Message
			code coap.Code
		}{
			{block(1, 0, true, a), coap.Continue},
			{block(2, 0, true, b), coap.Continue},
			{block(1, 0, true, a), coap.Continue},
			{block(1, 1, false, a), coap.Changed},
			{block(2, 1, true, b), coap.Continue},
			{block(2, 1, true, b), coap.Continue},
			{block(2, 1, true, a), coap.RequestEntityIncomplete},
			{block(2, 1, false, b), coap.RequestEntityIncomplete},
		} {
			if step.got.Code != step.code {
				t.Errorf("%s: %v, want %v", name, step.got.Code, step.code)
			}
			if step.code == coap.Changed && string(step.got.Payload) != string(sumOf(a)) {
				t.Errorf("%s: the bodies of two transfers are mixed up: %s", name, step.got.Payload)
			}
		}
	}
}

func TestTransfersAreBounded(t *testing.T) {
	f := &fixtures{}
	w := newWorld(t, f.mount, func(g *coapgw.Gateway) { g.MaxTransferMemory = 1 << 20 })
	c := w.mustDial(psk("dev1", testKey)...)
	first := coap.Block{More: true, SZX: 6}.Value()
	for i := range 50 {
		c.do(coap.POST, "/sum", coap.Options{}.Add(coap.Block1, first).Add(coap.RequestTag, []byte{byte(i)}), make([]byte, 1024))
	}
	if n := w.gw.Gauges().Buffered; n != 4*1024 {
		t.Errorf("%d bytes of 50 transfers of one session are kept, want those of the latest 4", n)
	}
	w.gw.Sweep(time.Now().Add(2 * time.Minute))
	if n := w.gw.Gauges().Buffered; n != 0 {
		t.Errorf("%d bytes are kept of transfers that stopped two minutes ago", n)
	}
	c.do(coap.POST, "/sum", coap.Options{}.Add(coap.Block1, first), make([]byte, 1024))
	for _, s := range w.gw.Sessions() {
		s.Close("test")
	}
	if n := w.gw.Gauges().Buffered; n != 0 {
		t.Errorf("%d bytes are kept of sessions that are closed", n)
	}
	many := []*client{}
	refused := 0
	for i := range 60 {
		c := w.mustDial(psk("dev1", testKey)...)
		many = append(many, c)
		for tag := range 4 {
			body := make([]byte, 8192)
			got := c.do(coap.POST, "/sum", coap.Options{}.Add(coap.Block1, first).Add(coap.RequestTag, []byte{byte(i), byte(tag)}), body[:1024])
			for num := 1; num < 8 && got.Code == coap.Continue; num++ {
				got = c.do(coap.POST, "/sum", coap.Options{}.Add(coap.Block1, coap.Block{Num: uint32(num), More: true, SZX: 6}.Value()).Add(coap.RequestTag, []byte{byte(i), byte(tag)}), body[:1024])
			}
			if got.Code == coap.ServiceUnavailable {
				refused++
			}
		}
	}
	if n := w.gw.Gauges().Buffered; n > 1<<20 || refused == 0 {
		t.Errorf("%d bytes are kept of %d sessions, %d transfers refused, want at most a megabyte and some refused", n, len(many), refused)
	}
}

func TestDownloads(t *testing.T) {
	f := &fixtures{}
	w := newWorld(t, f.mount)
	for name, open := range map[string]func() *client{
		"DTLS": func() *client { return w.mustDial(psk("dev1", testKey)...) },
		"TLS":  func() *client { return w.mustDialTCP(w.ca.issue("cert1")) },
	} {
		c := open()
		for _, szx := range []uint8{2, 6} {
			var body, tag []byte
			for num := uint32(0); ; num++ {
				got := c.do(coap.GET, "/big", coap.Options{}.Add(coap.Block2, coap.Block{Num: num, SZX: szx}.Value()), nil)
				raw, _ := got.Options.Get(coap.Block2)
				b, ok := coap.ParseBlock(raw)
				if got.Code != coap.Content || !ok || b.Num != num || b.SZX != szx {
					t.Fatalf("%s: %v %+v, want block %d of %d bytes", name, got.Code, b, num, 16<<szx)
				}
				etag, _ := got.Options.Get(coap.ETag)
				if size, _ := got.Options.Uint(coap.Size2); num > 0 && !bytes.Equal(etag, tag) || len(etag) != 8 || int(size) != len(largeBody) {
					t.Fatalf("%s: block %d has tag %x and size %d, want %x and %d", name, num, etag, size, tag, len(largeBody))
				}
				tag = etag
				body = append(body, got.Payload...)
				if !b.More {
					break
				}
			}
			if !bytes.Equal(body, largeBody) {
				t.Errorf("%s: %d bytes, want the %d that are there", name, len(body), len(largeBody))
			}
		}
		got := c.do(coap.GET, "/big", nil, nil) // unasked
		raw, ok := got.Options.Get(coap.Block2)
		if b, _ := coap.ParseBlock(raw); !ok || !b.More || len(got.Payload) != 1024 {
			t.Errorf("%s: a large answer comes as %d bytes, %+v, want its first block", name, len(got.Payload), b)
		}
	}
	if n := w.gw.Gauges().Buffered; n > 2*int64(len(largeBody)) {
		t.Errorf("%d bytes are kept", n)
	}
}

func TestObserve(t *testing.T) {
	f := &fixtures{}
	w := newWorld(t, f.mount)
	for name, c := range map[string]*client{"DTLS": w.mustDial(psk("dev1", testKey)...), "TLS": w.mustDialTCP(w.ca.issue("cert1"))} {
		f.text.Store("one")
		m := c.request(coap.GET, "/text", coap.Options{}.AddUint(coap.Observe, 0), nil)
		got := c.exchange(m)
		last, ok := got.Options.Uint(coap.Observe)
		if !ok || string(got.Payload) != "one" {
			t.Fatalf("%s: %v %s, observe %v, want it observed", name, got.Code, got.Payload, ok)
		}
		notify := func() {
			for _, s := range w.gw.Sessions() {
				s.Notify("/text")
			}
		}
		for _, text := range []string{"two", "three"} {
			f.text.Store(text)
			notify()
			got := c.read(3 * time.Second)
			if got == nil || !bytes.Equal(got.Token, m.Token) || string(got.Payload) != text {
				t.Fatalf("%s: %+v, want a notification of %s", name, got, text)
			}
			seq, ok := got.Options.Uint(coap.Observe)
			if !ok || seq <= last {
				t.Errorf("%s: number %d after %d", name, seq, last)
			}
			last = seq
			if got.Type == coap.Confirmable {
				c.write(&coap.Message{Type: coap.Acknowledgement, ID: got.ID})
			}
			time.Sleep(20 * time.Millisecond) // for the acknowledgement to arrive
		}
		notify()
		if got := c.read(150 * time.Millisecond); got != nil {
			t.Errorf("%s: %+v where nothing has changed", name, got)
		}
		m.ID += 100
		c.mid += 100
		m.Options = coap.Options{}.AddUint(coap.Observe, 1).AddPath("/text")
		if got := c.exchange(m); got.Code != coap.Content {
			t.Errorf("%s: cancel: %v", name, got.Code)
		}
		f.text.Store("four")
		notify()
		if got := c.read(150 * time.Millisecond); got != nil {
			t.Errorf("%s: %+v after the observation was cancelled", name, got)
		}
	}
}

func TestAResetEndsAnObservation(t *testing.T) {
	f := &fixtures{}
	w := newWorld(t, f.mount)
	c := w.mustDial(psk("dev1", testKey)...)
	c.do(coap.GET, "/text", coap.Options{}.AddUint(coap.Observe, 0), nil)
	for i, want := range []bool{true, false} {
		f.text.Store(strconv.Itoa(i))
		for _, s := range w.gw.Sessions() {
			s.Notify("/text")
		}
		got := c.read(500 * time.Millisecond)
		if (got != nil) != want {
			t.Fatalf("notification %d: %+v, want %v", i, got, want)
		}
		if got != nil {
			c.write(&coap.Message{Type: coap.Reset, ID: got.ID})
			time.Sleep(50 * time.Millisecond)
		}
	}
}

func TestTheServerCallsTheDeviceBack(t *testing.T) {
	for _, over := range []string{"DTLS", "TLS"} {
		f := &fixtures{}
		w := newWorld(t, f.mount)
		var c *client
		if over == "DTLS" {
			c = w.mustDial(psk("dev1", testKey)...)
		} else {
			c = w.mustDialTCP(w.ca.issue("cert1"))
		}
		c.write(c.request(coap.POST, "/call", nil, []byte("hello")))
		var stored []byte
		deadline := time.Now().Add(5 * time.Second)
		for len(f.reply) == 0 && time.Now().Before(deadline) { // the device, as a server
			m := c.read(500 * time.Millisecond)
			if m == nil || !m.Code.IsRequest() {
				continue
			}
			answer := &coap.Message{Type: coap.Acknowledgement, ID: m.ID, Token: m.Token, Code: coap.Changed}
			switch m.Code {
			case coap.PUT:
				raw, _ := m.Options.Get(coap.Block1)
				b, _ := coap.ParseBlock(raw)
				stored = append(stored[:min(len(stored), b.Offset())], m.Payload...)
				answer.Options = answer.Options.Add(coap.Block1, raw)
				if b.More {
					answer.Code = coap.Continue
				}
			case coap.GET:
				raw, _ := m.Options.Get(coap.Block2)
				b, _ := coap.ParseBlock(raw)
				b.SZX = 4 // 256 bytes
				end := min(b.Offset()+b.Size(), len(stored))
				b.More = end < len(stored)
				answer.Code, answer.Payload = coap.Content, stored[b.Offset():end]
				answer.Options = answer.Options.Add(coap.Block2, b.Value())
			default:
			}
			c.write(answer)
		}
		select {
		case reply := <-f.reply:
			if want := "hello" + string(largeBody); string(reply.Body) != want {
				t.Errorf("%s: the device answers %d bytes %.40q, want the %d that were put", over, len(reply.Body), reply.Body, len(want))
			}
		case <-time.After(time.Second):
			t.Errorf("%s: the call has not come to an end", over)
		}
		c.close()
		select {
		case <-f.ended:
		case <-time.After(2 * time.Second):
			t.Errorf("%s: nobody is told that the session has ended", over)
		}
	}
}

func TestAnAnswerThatClosesIsAnsweredAgain(t *testing.T) {
	f := &fixtures{}
	w := newWorld(t, f.mount)
	c := w.mustDial(psk("dev1", testKey)...)
	m := c.request(coap.GET, "/bye", nil, nil)
	for range 2 { // the first answer is lost
		c.write(m)
		if got := c.read(time.Second); got == nil || string(got.Payload) != "bye" {
			t.Fatalf("%+v, want bye", got)
		}
	}
	c.write(c.request(coap.GET, "/whoami", nil, nil))
	if got := c.read(300 * time.Millisecond); got != nil {
		t.Errorf("a session that is closing answers another request: %+v", got)
	}
	if !c.isClosed() {
		t.Error("the session is not closed")
	}
}

func TestRequestRate(t *testing.T) {
	w := newWorld(t, func(g *coapgw.Gateway) { g.RequestRate, g.RequestBurst = 1, 5 })
	c := w.mustDial(psk("dev1", testKey)...)
	for i := range 8 {
		got := c.do(coap.GET, "/whoami", nil, nil)
		want := coap.Content
		if i >= 5 {
			want = coap.TooManyRequests
		}
		if got.Code != want {
			t.Errorf("request %d: %v, want %v", i, got.Code, want)
		}
		if age, ok := got.Options.Uint(coap.MaxAge); want == coap.TooManyRequests && (!ok || age == 0) {
			t.Errorf("request %d: no time to wait is given", i)
		}
	}
}

// A body in small blocks is one request, however many blocks it has; blocks that are asked for
// again and again are not.
func TestBlocksAreNoRequestsOfTheirOwn(t *testing.T) {
	f := &fixtures{}
	w := newWorld(t, f.mount, func(g *coapgw.Gateway) { g.RequestRate, g.RequestBurst = 0.01, 4 })
	c := w.mustDial(psk("dev1", testKey)...)
	body := bytes.Repeat([]byte("abc"), 1001)
	if got := c.upload("/sum", body, 0, nil); got.Code != coap.Changed || string(got.Payload) != string(sumOf(body)) {
		t.Errorf("a body in 188 blocks: %v %s", got.Code, got.Payload)
	}
	block := func(num uint32) *coap.Message {
		return c.do(coap.GET, "/big", coap.Options{}.Add(coap.Block2, coap.Block{Num: num, SZX: 0}.Value()), nil)
	}
	for num := range uint32(150) {
		if got := block(num); got.Code != coap.Content || len(got.Payload) != 16 {
			t.Fatalf("block %d of an answer: %v %q", num, got.Code, got.Payload)
		}
	}
	for i := range 4 {
		want := coap.Content
		if i >= 2 { // the two transfers were one each
			want = coap.TooManyRequests
		}
		if got := block(7); got.Code != want {
			t.Errorf("a block again, for the %d. time: %v, want %v", i+1, got.Code, want)
		}
	}
	if got := block(150); got.Code != coap.Content {
		t.Errorf("the next block: %v", got.Code)
	}
}

func TestSessionsEndWhenTheyAreIdleOrExpired(t *testing.T) {
	w := newWorld(t)
	soon := device("d3", identity.PSK, "dev3")
	soon.Credential.ExpiresAt = time.Now().Add(30 * time.Second)
	w.ledger.addPSK("dev3", testKey, "d3")
	w.ledger.add("dev3", soon)
	w.mustDial(psk("dev1", testKey)...).do(coap.GET, "/whoami", nil, nil)
	w.mustDial(psk("dev3", testKey)...).do(coap.GET, "/whoami", nil, nil)
	w.mustDial(withCID(psk("dev2", "another-key-of-2"))...).do(coap.GET, "/whoami", nil, nil)
	for _, step := range []struct {
		after time.Duration
		want  int
		why   string
	}{
		{20 * time.Second, 3, "all are good"},
		{40 * time.Second, 2, "one credential has expired"},
		{11 * time.Minute, 1, "one was idle too long, and one has a connection id"},
		{25 * time.Hour, 0, "it was idle too long too"},
	} {
		w.gw.Sweep(time.Now().Add(step.after))
		if n := w.gw.Gauges().Sessions; n != step.want {
			t.Errorf("after %v: %d sessions, want %d: %s", step.after, n, step.want, step.why)
		}
	}
}

func TestSignalling(t *testing.T) {
	w := newWorld(t)
	cert := w.ca.issue("cert1")
	c := w.mustDialTCP(cert)
	csm := c.read(time.Second)
	if csm == nil || csm.Code != coap.CSM {
		t.Fatalf("first %+v, want a CSM", csm)
	}
	if size, ok := csm.Options.Uint(2); !ok || size < 1152 {
		t.Errorf("the CSM gives a largest message of %d", size)
	}
	c.write(&coap.Message{Code: coap.CSM, Options: coap.Options{}.AddUint(2, 4096).Add(4, nil)})
	c.write(&coap.Message{Code: coap.Ping, Token: []byte{7}, Options: coap.Options{}.Add(2, nil)})
	pong := c.read(time.Second)
	if pong == nil || pong.Code != coap.Pong || !bytes.Equal(pong.Token, []byte{7}) {
		t.Errorf("a ping: %+v, want its pong", pong)
	}
	if got := c.do(coap.GET, "/whoami", nil, nil); got.Code != coap.Content {
		t.Errorf("whoami: %v", got.Code)
	}
	c.write(&coap.Message{Code: coap.Release})
	if !c.isClosed() {
		t.Error("a release does not end the connection")
	}
	for name, m := range map[string]*coap.Message{
		"a CSM with a critical option":  {Code: coap.CSM, Options: coap.Options{}.AddUint(1, 1)},
		"a Ping with a critical option": {Code: coap.Ping, Options: coap.Options{}.AddUint(1, 1)},
		"more than may be sent":         {Code: coap.POST, Payload: make([]byte, 65537)},
	} {
		c := w.mustDialTCP(cert)
		c.read(time.Second)
		c.write(m)
		if got := c.read(time.Second); got == nil || got.Code != coap.Abort {
			t.Errorf("%s: %+v, want an abort", name, got)
		}
		if !c.isClosed() {
			t.Errorf("%s: the connection is not closed", name)
		}
	}
	for deadline := time.Now().Add(2 * time.Second); w.gw.Gauges().Sessions > 0; {
		if time.Now().After(deadline) {
			t.Fatalf("%d sessions are left", w.gw.Gauges().Sessions)
		}
		time.Sleep(10 * time.Millisecond)
	}
}
