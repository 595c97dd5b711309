package coapgw

import (
	"bytes"
	"context"

	"keystead/coap"
)

// observation is a resource that the peer observes on its session (RFC 7641).
type observation struct {
	token   []byte
	path    string
	request *coap.Message // without the Observe option
	seq     uint32
	pending bool // a notification is not acknowledged yet
	again   bool // and there is more to tell since
	last    []byte
}

const (
	maxObservations = 8
	observeRegister = 0
	observeCancel   = 1
	observeMask     = 1<<24 - 1
)

// observed has a whole request answered, and its resource observed if that is
// what it asks for and the route allows it.
func (s *session) observed(ctx context.Context, m *coap.Message, route coap.Route, r *coap.Request) outcome {
	v, asked := m.Options.Uint(coap.Observe)
	asked = asked && m.Code == coap.GET && route.Observable
	if asked && v == observeCancel {
		s.unobserve(m.Token)
	}
	r.Options = m.Options.Without(coap.Observe, coap.Block1, coap.Block2)
	out := s.call(ctx, route, r)
	if asked && v == observeRegister && out.Code.Class() == 2 && !out.Close && !out.End && s.observe(m, r, out.Body) {
		out.Options = append(coap.Options(nil), out.Options...).AddUint(coap.Observe, 1)
	}
	return out
}

// observe enters an observation; it is not entered if there are too many.
func (s *session) observe(m *coap.Message, r *coap.Request, body []byte) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over.Load() {
		return false
	}
	x := s.extra()
	if x.observations == nil {
		x.observations = map[string]*observation{}
	}
	key := string(m.Token)
	if x.observations[key] == nil && len(x.observations) >= maxObservations {
		return false
	}
	again := *m
	again.Options = m.Options.Without(coap.Observe)
	x.observations[key] = &observation{token: m.Token, path: r.Path, request: &again, seq: 1, last: body}
	return true
}

func (s *session) unobserve(token []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.more != nil {
		delete(s.more.observations, string(token))
	}
}

// Notify implements coap.Session. The peer is told of the state as it is when the
// message is sent; what changes while one is under way is told in the next.
func (s *session) Notify(path string) {
	s.mu.Lock()
	var due []*observation
	if s.more != nil {
		for _, o := range s.more.observations {
			switch {
			case o.path != path:
			case o.pending:
				o.again = true
			default:
				o.pending = true
				due = append(due, o)
			}
		}
	}
	s.mu.Unlock()
	for _, o := range due {
		s.gw.spawn("notification", func() { s.tell(o) })
	}
}

// tell runs the observed request again and sends what it is answered, if that is new.
func (s *session) tell(o *observation) {
	ctx, cancel := context.WithTimeout(s.context(), s.gw.RequestTimeout)
	defer cancel()
	request := *o.request
	out := s.handle(ctx, &request)
	failed := out.message == nil && out.Code.Class() != 2
	if !failed && out.message == nil && bytes.Equal(out.Body, o.last) {
		s.notified(o, nil)
		return
	}
	if failed {
		s.unobserve(o.token)
	} else {
		s.mu.Lock()
		o.last = out.Body
		o.seq = (o.seq + 1) & observeMask
		out.Options = append(coap.Options(nil), out.Options...).AddUint(coap.Observe, o.seq)
		s.mu.Unlock()
	}
	message := s.encode(&request, &out)
	message.Token = o.token
	if err := s.link.notify(message, func(err error) { s.notified(o, err) }); err != nil {
		s.unobserve(o.token)
	}
}

// notified takes note that a notification has arrived, or that the peer does not want any.
func (s *session) notified(o *observation, err error) {
	if err != nil {
		s.unobserve(o.token)
		return
	}
	s.mu.Lock()
	again := o.again
	o.again, o.pending = false, again
	s.mu.Unlock()
	if again {
		s.gw.spawn("notification", func() { s.tell(o) })
	}
}
