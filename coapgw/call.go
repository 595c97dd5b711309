package coapgw

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"

	"keystead/coap"
)

// The client's side: requests the server makes to the device, on the session
// the device opened.

// maxReply is the most bytes of a body that a device may answer with.
const maxReply = 64 << 10

// ErrReply is in the tree of the error of a call whose answer makes no sense.
var ErrReply = errors.New("coapgw: the device's answer is not valid")

// Do implements coap.Session.
func (s *session) Do(ctx context.Context, c coap.Call) (coap.Reply, error) {
	m := &coap.Message{Code: c.Method, Options: append(coap.Options(nil), c.Options...).AddPath(c.Path)}
	if len(c.Body) > 0 {
		m.Options = m.Options.AddUint(coap.ContentFormat, uint32(c.Format))
	}
	reply, err := s.sendBody(ctx, m, c.Body)
	if err != nil {
		return coap.Reply{}, err
	}
	body, err := s.fetchBody(ctx, m, reply)
	if err != nil {
		return coap.Reply{}, err
	}
	return coap.Reply{Code: reply.Code, Options: reply.Options, Body: body}, nil
}

// sendBody makes a request with a body of any size and returns the answer to
// the last block.
func (s *session) sendBody(ctx context.Context, m *coap.Message, body []byte) (*coap.Message, error) {
	if len(body) <= s.maxPayload() {
		one := *m
		one.Payload = body
		reply, err := s.roundTrip(ctx, &one)
		if err != nil || reply.Code != coap.RequestEntityTooLarge {
			return reply, err
		}
		b, ok := blockOf(reply, coap.Block1)
		if !ok || b.SZX >= coap.MaxSZX && len(body) <= 1024 {
			return reply, nil
		}
		return s.sendBlocks(ctx, m, body, b.SZX)
	}
	return s.sendBlocks(ctx, m, body, szxFor(s.maxPayload()))
}

func (s *session) sendBlocks(ctx context.Context, m *coap.Message, body []byte, szx uint8) (*coap.Message, error) {
	szx = min(szx, coap.MaxSZX)
	for at := 0; ; {
		size := 16 << szx
		end := min(at+size, len(body))
		b := coap.Block{Num: uint32(at / size), More: end < len(body), SZX: szx} //nolint:gosec // G115: bodies are far below 4 GB
		one := *m
		one.Payload = body[at:end]
		one.Options = append(coap.Options(nil), m.Options...).Add(coap.Block1, b.Value())
		if at == 0 {
			one.Options = one.Options.AddUint(coap.Size1, uint32(len(body))) //nolint:gosec // G115: bodies are far below 4 GB
		}
		reply, err := s.roundTrip(ctx, &one)
		if err != nil {
			return nil, err
		}
		wants, said := blockOf(reply, coap.Block1)
		switch {
		case reply.Code == coap.RequestEntityTooLarge && at == 0 && said && wants.SZX < szx: // it takes smaller blocks only
			szx = wants.SZX
			continue
		case !b.More || reply.Code != coap.Continue:
			return reply, nil
		}
		at = end
		if said && wants.SZX < szx {
			szx = wants.SZX
		}
	}
}

// fetchBody returns the body of an answer, fetching its further blocks.
func (s *session) fetchBody(ctx context.Context, m, reply *coap.Message) ([]byte, error) {
	body := bytes.Clone(reply.Payload)
	b, ok := blockOf(reply, coap.Block2)
	if !ok || !b.More {
		return body, nil
	}
	tag, _ := reply.Options.Get(coap.ETag)
	for b.More {
		next := coap.Block{Num: uint32(len(body) / b.Size()), SZX: min(b.SZX, coap.MaxSZX)} //nolint:gosec // G115: bodies are far below 4 GB
		one := *m
		one.Options = append(coap.Options(nil), m.Options...).Add(coap.Block2, next.Value())
		again, err := s.roundTrip(ctx, &one)
		if err != nil {
			return nil, err
		}
		got, ok := blockOf(again, coap.Block2)
		againTag, _ := again.Options.Get(coap.ETag)
		switch {
		case again.Code != reply.Code:
			return nil, fmt.Errorf("%w: a block is answered with %v", ErrReply, again.Code)
		case !ok || got.Offset() != len(body) || (got.More && len(again.Payload) != got.Size()):
			return nil, fmt.Errorf("%w: the blocks do not fit together", ErrReply)
		case !bytes.Equal(tag, againTag):
			return nil, fmt.Errorf("%w: the resource changed while it was read", ErrReply)
		case len(body)+len(again.Payload) > maxReply:
			return nil, fmt.Errorf("%w: it is larger than %d bytes", ErrReply, maxReply)
		}
		body = append(body, again.Payload...)
		b = got
	}
	return body, nil
}

func blockOf(m *coap.Message, id coap.OptionID) (coap.Block, bool) {
	raw, ok := m.Options.Get(id)
	if !ok {
		return coap.Block{}, false
	}
	return coap.ParseBlock(raw)
}

// maxCalls is how many requests of the server a session has under way.
const maxCalls = 4

// roundTrip sends one request and waits for its answer.
func (s *session) roundTrip(ctx context.Context, m *coap.Message) (*coap.Message, error) {
	m.Token = make([]byte, coap.MaxToken)
	rand.Read(m.Token)
	answer := make(chan *coap.Message, 1)
	failed := make(chan error, 1)
	s.mu.Lock()
	if s.over.Load() {
		s.mu.Unlock()
		return nil, errEnded
	}
	x := s.extra()
	if len(x.calls) >= maxCalls {
		s.mu.Unlock()
		return nil, errors.New("coapgw: too many requests to the device are under way")
	}
	if x.calls == nil {
		x.calls = map[string]chan *coap.Message{}
	}
	x.calls[string(m.Token)] = answer
	over := x.ctx.Done()
	s.mu.Unlock()
	defer s.forgetCall(m.Token)
	if err := s.link.notify(m, func(err error) {
		if err != nil {
			failed <- err
		}
	}); err != nil {
		return nil, err
	}
	select {
	case reply := <-answer:
		return reply, nil
	case err := <-failed:
		return nil, err
	case <-over:
		return nil, errEnded
	case <-ctx.Done():
		return nil, fmt.Errorf("coapgw: no answer from the device: %w", ctx.Err())
	}
}

func (s *session) forgetCall(token []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.more != nil {
		delete(s.more.calls, string(token))
	}
}

// response takes an answer of the peer, and reports whether it was asked for.
func (s *session) response(m *coap.Message) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.more == nil {
		return false
	}
	answer, ok := s.more.calls[string(m.Token)]
	if !ok {
		return false
	}
	delete(s.more.calls, string(m.Token))
	answer <- m // it has room for the one
	return true
}
