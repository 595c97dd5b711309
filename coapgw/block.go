package coapgw

import (
	"bytes"
	"context"
	"encoding/binary"
	"slices"
	"time"

	"keystead/coap"
)

// The server's side of block-wise transfers (RFC 7959, with RFC 9175's Request-Tag). A transfer
// is found by the session and what makes two requests the same, not by the
// token, which a client may change from block to block.

const (
	maxTransfers    = 4 // of each direction and session
	transferTimeout = time.Minute
)

// upload is a body that is coming in blocks.
type upload struct {
	key  string
	body []byte
	at   time.Time // of the latest block
}

// download is an answer that is being fetched in blocks.
type download struct {
	key    string
	answer coap.Message // its options but for the block's, and the whole body
	etag   []byte
	at     time.Time
	latest int // the furthest that a block was asked for from
}

// transfers are those of one session; guarded by its mutex.
type transfers struct {
	up   []*upload
	down []*download
}

func (t *transfers) empty() bool { return len(t.up)+len(t.down) == 0 }

// expire drops the transfers that have stopped.
func (t *transfers) expire(g *Gateway, now time.Time) {
	t.up = slices.DeleteFunc(t.up, func(u *upload) bool {
		old := now.Sub(u.at) >= transferTimeout
		if old {
			g.buffered.Add(-int64(len(u.body)))
		}
		return old
	})
	t.down = slices.DeleteFunc(t.down, func(d *download) bool {
		old := now.Sub(d.at) >= transferTimeout
		if old {
			g.buffered.Add(-int64(len(d.answer.Payload)))
		}
		return old
	})
}

// drop drops all.
func (t *transfers) drop(g *Gateway) {
	for _, u := range t.up {
		g.buffered.Add(-int64(len(u.body)))
	}
	for _, d := range t.down {
		g.buffered.Add(-int64(len(d.answer.Payload)))
	}
	t.up, t.down = nil, nil
}

// takeUp removes and returns the upload with the given key, nil if there is none.
func (t *transfers) takeUp(key string) *upload {
	for i, u := range t.up {
		if u.key == key {
			t.up = slices.Delete(t.up, i, i+1)
			return u
		}
	}
	return nil
}

func (t *transfers) takeDown(key string) *download {
	for i, d := range t.down {
		if d.key == key {
			t.down = slices.Delete(t.down, i, i+1)
			return d
		}
	}
	return nil
}

// transferKey is what the requests of one transfer have in common. Those that
// fetch the rest of an answer need repeat neither the tag nor the format of the
// body the first one had.
func transferKey(m *coap.Message, fetch bool) string {
	key := []byte{byte(m.Code)}
	for _, o := range m.Options {
		switch o.ID {
		case coap.Block1, coap.Block2, coap.Size1, coap.Size2, coap.Observe, coap.ETag:
			continue
		case coap.RequestTag, coap.ContentFormat:
			if fetch {
				continue
			}
		default:
		}
		if !o.ID.CacheKey() {
			continue
		}
		key = binary.BigEndian.AppendUint16(key, uint16(o.ID))
		key = binary.BigEndian.AppendUint16(key, uint16(len(o.Value))) //nolint:gosec // G115: far below 65536 bytes
		key = append(key, o.Value...)
	}
	return string(key)
}

// blockwise makes one request of its blocks, has it answered once it is whole,
// and serves the blocks of an answer that is there already.
func (s *session) blockwise(ctx context.Context, m *coap.Message, route coap.Route, r *coap.Request) outcome {
	limit := s.gw.MaxBody
	if route.MaxBody > 0 {
		limit = route.MaxBody
	}
	if raw, ok := m.Options.Get(coap.Block1); ok {
		return s.uploadBlock(ctx, m, route, r, raw, limit)
	}
	if len(m.Payload) > limit {
		return tooLarge(limit)
	}
	if raw, ok := m.Options.Get(coap.Block2); ok {
		b, ok := s.parseBlock(raw)
		if !ok {
			return failure(coap.Errorf(coap.BadRequest, "Block2 is not valid"))
		}
		if b.Num > 0 {
			if out, ok := s.downloadBlock(m, b); ok {
				return out
			}
			if m.Code != coap.GET {
				return failure(coap.Errorf(coap.RequestEntityIncomplete, "the answer is not kept any more; make the request again"))
			}
		}
	}
	return s.observed(ctx, m, route, r)
}

// continues reports whether m is the next block of a body, or of an answer, that is under way. The
// rate of requests takes no account of it: the first block was a request, and there are no more
// of them than the body has bytes for. A block that comes again is not the next.
func (s *session) continues(m *coap.Message) bool {
	raw, up := m.Options.Get(coap.Block1)
	if !up {
		var down bool
		if raw, down = m.Options.Get(coap.Block2); !down {
			return false
		}
	}
	b, ok := s.parseBlock(raw)
	if !ok || b.Num == 0 {
		return false
	}
	key := transferKey(m, !up)
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.more == nil:
		return false
	case up:
		return slices.ContainsFunc(s.more.transfers.up, func(u *upload) bool { return u.key == key && b.Offset() == len(u.body) })
	}
	return slices.ContainsFunc(s.more.transfers.down, func(d *download) bool { return d.key == key && b.Offset() > d.latest })
}

// parseBlock parses a block option of the peer. BERT is for streams.
func (s *session) parseBlock(raw []byte) (coap.Block, bool) {
	b, ok := coap.ParseBlock(raw)
	if _, stream := s.link.(*stream); b.SZX == coap.BERT && !stream {
		return b, false
	}
	return b, ok
}

func tooLarge(limit int) outcome {
	out := failure(coap.Errorf(coap.RequestEntityTooLarge, "the body is larger than %d bytes", limit))
	out.Options = out.Options.AddUint(coap.Size1, uint32(limit)) //nolint:gosec // G115: limits are far below 4 GB
	return out
}

// uploadBlock takes one block of a body.
func (s *session) uploadBlock(ctx context.Context, m *coap.Message, route coap.Route, r *coap.Request, raw []byte, limit int) outcome {
	b, ok := s.parseBlock(raw)
	switch size, announced := m.Options.Uint(coap.Size1); {
	case !ok:
		return failure(coap.Errorf(coap.BadRequest, "Block1 is not valid"))
	case announced && int(size) > limit, b.Offset()+len(m.Payload) > limit:
		s.abandon(m)
		out := tooLarge(limit)
		out.block1 = b.Value()
		return out
	case b.SZX != coap.BERT && len(m.Payload) > b.Size(),
		b.More && (len(m.Payload) == 0 || len(m.Payload)%b.Size() != 0):
		s.abandon(m)
		return failure(coap.Errorf(coap.BadRequest, "the block has not the size it says"))
	}
	echo := coap.Block{Num: b.Num, More: b.More, SZX: b.SZX}.Value()
	if b.Num == 0 && !b.More { // all of it
		out := s.observed(ctx, m, route, r)
		out.block1 = echo
		return out
	}
	body, whole, err := s.append(m, b)
	if err != nil {
		return failure(err)
	}
	if !whole {
		return outcome{Response: coap.Response{Code: coap.Continue}, block1: echo}
	}
	r.Body = body
	out := s.observed(ctx, m, route, r)
	out.block1 = echo
	return out
}

// append adds a block to its body and returns that once it is whole.
func (s *session) append(m *coap.Message, b coap.Block) (body []byte, whole bool, err error) {
	key := transferKey(m, false)
	now := s.gw.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over.Load() {
		return nil, false, errEnded
	}
	t := &s.extra().transfers
	t.expire(s.gw, now)
	u := t.takeUp(key)
	if u != nil {
		s.gw.buffered.Add(-int64(len(u.body)))
	}
	switch {
	case b.Num == 0 && u != nil && bytes.Equal(u.body, m.Payload): // again
	case b.Num == 0:
		u = &upload{key: key, body: bytes.Clone(m.Payload)}
	case u == nil || b.Offset() > len(u.body):
		return nil, false, coap.Errorf(coap.RequestEntityIncomplete, "a block before this one is missing")
	case b.Offset() < len(u.body): // again, which must be no other
		if end := b.Offset() + len(m.Payload); end > len(u.body) || !bytes.Equal(u.body[b.Offset():end], m.Payload) {
			return nil, false, coap.Errorf(coap.RequestEntityIncomplete, "the blocks do not fit together")
		}
	default:
		u.body = append(u.body, m.Payload...)
	}
	if !b.More {
		return u.body, true, nil
	}
	if s.gw.buffered.Load()+int64(len(u.body)) > int64(s.gw.MaxTransferMemory) {
		return nil, false, &coap.Error{Code: coap.ServiceUnavailable, Message: "too many transfers are under way", MaxAge: transferTimeout / 4}
	}
	if len(t.up) == maxTransfers {
		s.gw.buffered.Add(-int64(len(t.up[0].body)))
		t.up = slices.Delete(t.up, 0, 1)
	}
	u.at = now
	t.up = append(t.up, u)
	s.gw.buffered.Add(int64(len(u.body)))
	return nil, false, nil
}

// abandon drops the body that m is a block of.
func (s *session) abandon(m *coap.Message) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.more == nil {
		return
	}
	if u := s.more.transfers.takeUp(transferKey(m, false)); u != nil {
		s.gw.buffered.Add(-int64(len(u.body)))
	}
}

// downloadBlock answers with a block of an answer that is kept. It is not ok if
// there is none.
func (s *session) downloadBlock(m *coap.Message, b coap.Block) (outcome, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.more == nil {
		return outcome{}, false
	}
	t := &s.more.transfers
	t.expire(s.gw, s.gw.Now())
	d := t.takeDown(transferKey(m, true))
	if d == nil {
		return outcome{}, false
	}
	body := d.answer.Payload
	part, ok := slice(body, b, s.maxPayload())
	if !ok || part.last {
		s.gw.buffered.Add(-int64(len(body)))
	} else {
		d.at, d.latest = s.gw.Now(), max(d.latest, b.Offset())
		t.down = append(t.down, d)
	}
	if !ok {
		return failure(coap.Errorf(coap.BadRequest, "the answer has no block %d", b.Num)), true
	}
	return outcome{message: &coap.Message{Code: d.answer.Code, Options: part.options(d), Payload: part.body}}, true
}

// part is one block of a body.
type part struct {
	body  []byte
	block coap.Block
	last  bool
}

// slice cuts block b out of body: of BERT as many blocks as fit limit.
func slice(body []byte, b coap.Block, limit int) (part, bool) {
	at, size := b.Offset(), b.Size()
	if at >= len(body) && at > 0 {
		return part{}, false
	}
	if b.SZX == coap.BERT {
		size = max(1, limit/size) * size
	}
	end := min(at+size, len(body))
	b.More = end < len(body)
	return part{body[at:end], b, !b.More}, true
}

func (p part) options(d *download) coap.Options {
	o := append(coap.Options(nil), d.answer.Options...)
	if _, ok := o.Get(coap.ETag); !ok {
		o = o.Add(coap.ETag, d.etag)
	}
	o = o.Add(coap.Block2, p.block.Value())
	return o.AddUint(coap.Size2, uint32(len(d.answer.Payload))) //nolint:gosec // G115: bodies are far below 4 GB
}

// maxPayload is how many bytes of a body go in one message.
func (s *session) maxPayload() int {
	if st, ok := s.link.(*stream); ok {
		return st.maxPayload()
	}
	return 1024
}

// firstBlock cuts an answer that is too large for one message, or for what the
// client asks for, and keeps the rest.
func (s *session) firstBlock(m, answer *coap.Message) *coap.Message {
	limit := s.maxPayload()
	b := coap.Block{SZX: szxFor(limit)}
	raw, asked := m.Options.Get(coap.Block2)
	if asked {
		asked, _ := s.parseBlock(raw) // checked when the request came
		b = coap.Block{Num: asked.Num, SZX: min(asked.SZX, b.SZX)}
	}
	if len(answer.Payload) <= limit && (!asked || (b.Num == 0 && len(answer.Payload) <= b.Size())) || answer.Code.IsError() {
		return answer
	}
	p, ok := slice(answer.Payload, b, limit)
	if !ok {
		return &coap.Message{Code: coap.BadRequest, Token: answer.Token, Payload: []byte("the answer has no such block")}
	}
	d := &download{key: transferKey(m, true), answer: *answer, etag: etagOf(answer.Payload), at: s.gw.Now()}
	d.answer.Options = answer.Options.Without(coap.Block1, coap.Observe)
	out := &coap.Message{Code: answer.Code, Token: answer.Token, Payload: p.body, Options: p.options(d)}
	for _, o := range answer.Options {
		if o.ID == coap.Block1 || o.ID == coap.Observe {
			out.Options = out.Options.Add(o.ID, o.Value)
		}
	}
	if !p.last {
		s.keep(d)
	}
	return out
}

// szxFor returns the exponent of the largest block in a message of limit bytes of body.
func szxFor(limit int) uint8 {
	if limit > 1024 {
		return coap.BERT
	}
	szx := uint8(0)
	for szx < coap.MaxSZX && 32<<szx <= limit {
		szx++
	}
	return szx
}

// keep keeps an answer for the blocks that will be asked for. Where there is no
// room, a GET is simply answered anew.
func (s *session) keep(d *download) {
	s.mu.Lock()
	defer s.mu.Unlock()
	size := int64(len(d.answer.Payload))
	if s.over.Load() || s.gw.buffered.Load()+size > int64(s.gw.MaxTransferMemory) {
		return
	}
	t := &s.extra().transfers
	if old := t.takeDown(d.key); old != nil {
		s.gw.buffered.Add(-int64(len(old.answer.Payload)))
	}
	if len(t.down) == maxTransfers {
		s.gw.buffered.Add(-int64(len(t.down[0].answer.Payload)))
		t.down = slices.Delete(t.down, 0, 1)
	}
	t.down = append(t.down, d)
	s.gw.buffered.Add(size)
}
