package coapgw

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"net/netip"
	"sync"
	"time"

	"keystead/coap"
)

// dgram is the link of a session over DTLS: its records, and the message layer
// of RFC 7252, 4. It has no goroutine. An idle one is little more than its keys.
type dgram struct {
	u       *udp
	session *session
	cid     *cid   // what the peer sends us, nil if none was agreed
	peerCID []byte // what we send the peer
	cookie  cookie // of the hello that it began with

	mu      sync.Mutex
	at      netip.AddrPort // where the peer is
	keys    keys
	prot    *protection // nil while the session is idle
	window  window
	seq     uint64 // of our next record
	final   []byte // our last flight of the handshake, until the peer is known to have it
	resent  int
	mid     uint16
	seen    []exchange               // the latest messages of the peer, a ring
	next    int                      // where in seen the next one goes
	unacked map[uint16]*transmission // ours, by message id
	roaming *roaming                 // set while a new address of the peer is not confirmed
	gone    bool
}

// exchange is a message of the peer that was received, and what it was
// answered with: a duplicate is not served again (RFC 7252, 4.2).
type exchange struct {
	mid    uint16
	at     int64  // unix nanoseconds; 0 for an unused place
	con    bool   // it wants an acknowledgement
	acked  bool   // it had an empty one: the answer comes by itself
	done   bool   // it was answered
	answer []byte // the message that answered it, not yet protected; nil once one that came by itself has arrived
}

// transmission is a confirmable message of ours that waits for its
// acknowledgement (RFC 7252, 4.2).
type transmission struct {
	message []byte
	tries   int
	wait    time.Duration
	due     time.Time
	done    func(error)
}

// roaming is a new address of the peer that has not been confirmed: who relays
// a record from elsewhere must not have us flood that address. A ping whose
// answer comes from there confirms it; until then little is sent (RFC 9146, 6).
// It is one of the unacked, and another follows it as long as the peer is heard from there.
type roaming struct {
	mid    uint16 // of the latest ping
	budget int    // bytes
}

const (
	ackTimeout     = 2 * time.Second
	ackRandom      = 1.5
	maxRetransmit  = 4
	separateAfter  = time.Second // then a request that is not answered is acknowledged
	exchangeLife   = 247 * time.Second
	maxExchanges   = 32 // a session's latest messages that are remembered
	maxFinalResent = 10
	parkAfter      = 10 * time.Second // then an idle session drops its key schedules
	roamingBudget  = 3                // bytes sent to a new address for each received from it
	roamingStart   = 1280
)

const (
	alertWarning     = 1
	alertFatal       = 2
	alertCloseNotify = 0
)

var errUnacknowledged = errors.New("coapgw: the device does not acknowledge")

func randomMID() uint16 {
	var b [2]byte
	rand.Read(b[:])
	return binary.BigEndian.Uint16(b[:])
}

func (d *dgram) remote() netip.AddrPort {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.at
}

// datagram takes a datagram that came for the session.
func (d *dgram) datagram(from netip.AddrPort, b []byte) {
	for {
		r, rest, ok := nextRecord(b)
		if !ok {
			return
		}
		d.record(from, r)
		b = rest
	}
}

func (d *dgram) record(from netip.AddrPort, r record) {
	if r.epoch != 1 || (d.cid != nil) != (r.kind == typeCID) || (d.cid != nil && cid(r.cid) != *d.cid) {
		return // of the handshake, or not by the rules of this session
	}
	d.mu.Lock()
	kind, content, err := d.open(from, r)
	d.mu.Unlock()
	if err != nil {
		d.u.gw.stats.RecordsDropped.Add(1)
		return
	}
	switch kind {
	case typeData:
		d.session.heard(len(content))
		d.message(content)
	case typeHandshake: // the client's Finished again: it has not seen ours
		d.repeatFinal()
	case typeAlert:
		if len(content) == 2 && (content[0] == alertFatal || content[1] == alertCloseNotify) {
			d.session.end("closed by the device", true)
		}
	}
}

// open decrypts a record and keeps account of it. d.mu is held.
func (d *dgram) open(from netip.AddrPort, r record) (byte, []byte, error) {
	if d.gone || !d.window.fresh(r.seq) {
		return 0, nil, errRecord
	}
	p, err := d.protection()
	if err != nil {
		return 0, nil, err
	}
	kind, content, err := p.open(r)
	if err != nil {
		return 0, nil, err
	}
	newest := d.window.mark(r.seq)
	if kind == typeData {
		d.final = nil // whoever sends data has our Finished
	}
	if d.roaming != nil && from == d.at {
		d.roaming.budget += roamingBudget * len(r.raw)
		if d.unacked[d.roaming.mid] == nil {
			d.ping()
		}
	}
	if newest && from != d.at && d.cid != nil {
		d.roam(from, len(r.raw))
	}
	return kind, content, nil
}

// protection returns the ciphers of the session. d.mu is held.
func (d *dgram) protection() (*protection, error) {
	if d.prot == nil {
		p, err := d.keys.protection()
		if err != nil {
			return nil, err
		}
		d.prot = p
		d.u.gw.stats.Wakes.Add(1)
	}
	return d.prot, nil
}

// roam follows the peer to a new address (RFC 9146, 6). d.mu is held.
func (d *dgram) roam(to netip.AddrPort, received int) {
	from := d.at
	d.at = to
	d.u.moved(d, from, to)
	d.u.gw.stats.Roams.Add(1)
	if d.roaming != nil {
		delete(d.unacked, d.roaming.mid) // a ping of the address before
	}
	d.roaming = &roaming{budget: max(roamingStart, roamingBudget*received)}
	d.ping()
}

// ping asks the peer to confirm its address, as often as any message is sent: large answers wait
// for it. d.mu is held.
func (d *dgram) ping() {
	_ = d.confirm(&coap.Message{}, nil)
	d.roaming.mid = d.mid
}

// write protects content as one record and sends it. d.mu is held.
func (d *dgram) write(kind byte, content []byte) error {
	if d.gone {
		return errEnded
	}
	p, err := d.protection()
	if err != nil {
		return err
	}
	buf := getBuffer()
	defer putBuffer(buf)
	b, err := p.seal((*buf)[:0], kind, d.seq, d.peerCID, content)
	if err != nil {
		return err
	}
	d.seq++
	*buf = b
	if d.roaming != nil {
		if d.roaming.budget < len(b) {
			return nil // as if it were lost
		}
		d.roaming.budget -= len(b)
	}
	d.session.told(len(b))
	_, err = d.u.socket.WriteToUDPAddrPort(b, d.at)
	return err
}

// repeatFinal sends our last flight of the handshake again, the very same
// records: nothing new is sealed under their numbers.
func (d *dgram) repeatFinal() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.final == nil || d.resent == maxFinalResent || d.gone {
		return
	}
	d.resent++
	_, _ = d.u.socket.WriteToUDPAddrPort(d.final, d.at)
}

// message takes a CoAP message of the peer. One that is not well-formed is
// rejected or ignored; the session goes on (RFC 7252, 4.2).
func (d *dgram) message(b []byte) {
	m, err := coap.Parse(b)
	if err != nil {
		d.u.gw.stats.MessagesMalformed.Add(1)
		if len(b) >= 4 && b[0]>>6 == 1 && m.Type == coap.Confirmable {
			d.reset(m.ID)
		}
		return
	}
	switch {
	case m.Type == coap.Acknowledgement || m.Type == coap.Reset:
		d.acknowledged(&m)
		if m.Type == coap.Acknowledgement && m.Code.IsResponse() {
			d.session.response(clone(&m))
		}
	case m.Code.IsRequest():
		d.request(&m)
	case m.Code.IsResponse():
		known := d.session.response(clone(&m))
		switch {
		case m.Type != coap.Confirmable:
		case known:
			d.send(&coap.Message{Type: coap.Acknowledgement, ID: m.ID})
		default:
			d.reset(m.ID)
		}
	case m.Type == coap.Confirmable: // a ping, or a code of a class that is not used here
		d.reset(m.ID)
	}
}

// clone returns a copy of m that does not refer to the reader's buffer.
func clone(m *coap.Message) *coap.Message {
	again, err := coap.Parse(m.Append(nil))
	if err != nil {
		return &coap.Message{}
	}
	return &again
}

func (d *dgram) reset(mid uint16) { d.send(&coap.Message{Type: coap.Reset, ID: mid}) }

func (d *dgram) send(m *coap.Message) {
	d.mu.Lock()
	defer d.mu.Unlock()
	_ = d.write(typeData, m.Append(nil))
}

// request takes a request, once.
func (d *dgram) request(m *coap.Message) {
	d.mu.Lock()
	now := d.u.gw.Now()
	if seen := d.find(m.ID, now); seen != nil {
		d.u.gw.stats.Duplicates.Add(1)
		switch {
		case seen.done && seen.answer != nil:
			_ = d.write(typeData, seen.answer)
		case seen.con && (seen.acked || !seen.done):
			seen.acked = true
			ack := coap.Message{Type: coap.Acknowledgement, ID: m.ID}
			_ = d.write(typeData, ack.Append(nil))
		}
		d.mu.Unlock()
		return
	}
	if d.session.closing() {
		d.mu.Unlock()
		return
	}
	if !d.session.begin() { // as if it were lost: the client asks again
		d.mu.Unlock()
		return
	}
	d.remember(exchange{mid: m.ID, at: now.UnixNano(), con: m.Type == coap.Confirmable})
	d.mu.Unlock()
	if m.Type == coap.Confirmable {
		d.u.gw.attend(d)
	}
	m = clone(m)
	d.u.gw.spawn("request", func() {
		defer d.session.finish()
		d.session.serve(m, func(answer *coap.Message) { d.answer(m, answer) })
	})
}

// find returns the exchange of a message id, nil if the message is new. d.mu is held.
func (d *dgram) find(mid uint16, now time.Time) *exchange {
	for i := range d.seen {
		if e := &d.seen[i]; e.mid == mid && e.at != 0 && now.UnixNano()-e.at < int64(exchangeLife) {
			return e
		}
	}
	return nil
}

// remember puts e in the ring, in the place of the oldest. d.mu is held.
func (d *dgram) remember(e exchange) {
	if len(d.seen) < maxExchanges {
		d.seen = append(d.seen, e)
		return
	}
	d.seen[d.next] = e
	d.next = (d.next + 1) % maxExchanges
}

// answer sends the answer to a request: with the acknowledgement if that was
// not sent yet, by itself if it was. A nil answer is none.
func (d *dgram) answer(request, m *coap.Message) {
	d.mu.Lock()
	defer d.mu.Unlock()
	e := d.find(request.ID, d.u.gw.Now())
	if m == nil {
		if e != nil {
			e.done = true
			if e.con {
				e.acked = true
				ack := coap.Message{Type: coap.Acknowledgement, ID: request.ID}
				_ = d.write(typeData, ack.Append(nil))
			}
		}
		return
	}
	m.Token = request.Token
	switch {
	case request.Type == coap.NonConfirmable:
		m.Type = coap.NonConfirmable
		d.mid++
		m.ID = d.mid
	case e != nil && e.acked:
		e.done = true
		_ = d.confirm(m, func(err error) {
			if !errors.Is(err, errUnacknowledged) {
				d.arrived(request.ID)
			}
		})
		e.answer = m.Append(nil) // each time it may be lost: a client that asks again has not had it
		return
	default:
		m.Type, m.ID = coap.Acknowledgement, request.ID
	}
	b := m.Append(nil)
	if e != nil {
		e.done, e.answer = true, b
	}
	_ = d.write(typeData, b)
}

// arrived takes note that the client has an answer that came by itself.
func (d *dgram) arrived(mid uint16) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if e := d.find(mid, d.u.gw.Now()); e != nil {
		e.answer = nil
	}
}

// notify sends a message that nobody asked for just now, and calls done with
// what became of it.
func (d *dgram) notify(m *coap.Message, done func(error)) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.confirm(m, done)
}

// confirm sends a confirmable message until it is acknowledged. d.mu is held.
func (d *dgram) confirm(m *coap.Message, done func(error)) error {
	d.mid++
	m.Type, m.ID = coap.Confirmable, d.mid
	if done == nil {
		done = func(error) {}
	}
	wait := time.Duration(float64(ackTimeout) * (1 + (ackRandom-1)*jitter()))
	t := &transmission{message: m.Append(nil), wait: wait, due: d.u.gw.Now().Add(wait), done: done}
	if err := d.write(typeData, t.message); err != nil {
		return err
	}
	if d.unacked == nil {
		d.unacked = map[uint16]*transmission{}
	}
	d.unacked[m.ID] = t
	d.u.gw.attend(d)
	return nil
}

// acknowledged takes an acknowledgement or a reset of a message of ours.
func (d *dgram) acknowledged(m *coap.Message) {
	d.mu.Lock()
	if d.roaming != nil && d.roaming.mid == m.ID {
		d.roaming = nil
	}
	t := d.unacked[m.ID]
	delete(d.unacked, m.ID)
	d.mu.Unlock()
	switch {
	case t == nil:
	case m.Type == coap.Reset:
		t.done(errReset)
	default:
		t.done(nil)
	}
}

var errReset = errors.New("coapgw: the device rejects the message")

// tend does what is due: acknowledge requests that take long, send again what
// is not acknowledged. It reports whether there is more to come.
func (d *dgram) tend(now time.Time) (more bool) {
	var failed []*transmission
	d.mu.Lock()
	for i := range d.seen {
		e := &d.seen[i]
		if e.at == 0 || !e.con || e.done || e.acked {
			continue
		}
		if now.UnixNano()-e.at < int64(separateAfter) {
			more = true
			continue
		}
		e.acked = true
		ack := coap.Message{Type: coap.Acknowledgement, ID: e.mid}
		_ = d.write(typeData, ack.Append(nil))
	}
	for mid, t := range d.unacked {
		switch {
		case now.Before(t.due):
			more = true
		case t.tries == maxRetransmit:
			delete(d.unacked, mid)
			failed = append(failed, t)
		default:
			t.tries++
			t.wait *= 2
			t.due = now.Add(t.wait)
			more = true
			_ = d.write(typeData, t.message)
		}
	}
	d.mu.Unlock()
	for _, t := range failed {
		t.done(errUnacknowledged)
	}
	return more
}

// park drops what an idle session needs not: the key schedules, and the
// messages of exchanges that are over.
func (d *dgram) park(now time.Time, idle time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	waiting := len(d.unacked)
	if d.roaming != nil && d.unacked[d.roaming.mid] != nil {
		waiting-- // a ping can be sent again by one that is woken for it
	}
	if idle < parkAfter || waiting > 0 {
		return
	}
	if d.prot != nil {
		d.prot = nil
		d.u.gw.stats.Parks.Add(1)
	}
	over := true
	for i := range d.seen {
		over = over && now.UnixNano()-d.seen[i].at >= int64(exchangeLife)
	}
	if over {
		d.seen, d.next = nil, 0
	}
}

func (d *dgram) parked() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.prot == nil
}

// close ends the link: the keys are wiped, the peer is told if tell says so.
func (d *dgram) close(tell bool) {
	d.mu.Lock()
	if d.gone {
		d.mu.Unlock()
		return
	}
	if tell {
		_ = d.write(typeAlert, []byte{alertWarning, alertCloseNotify})
	}
	d.gone = true
	at, unacked := d.at, d.unacked
	d.prot, d.seen, d.unacked, d.final = nil, nil, nil, nil
	d.keys.wipe()
	d.mu.Unlock()
	d.u.remove(d, at)
	for _, t := range unacked {
		t.done(errEnded)
	}
}
