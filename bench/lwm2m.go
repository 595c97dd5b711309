package main

import (
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"keystead/coap"
	"keystead/psk"
)

// bootstrapBench measures whole LwM2M bootstraps: the handshake, what is written to the
// device, and the record of it.
func bootstrapBench(r *run) error {
	f, err := r.fleetOf(1000)
	if err != nil {
		return err
	}
	p, err := r.serve(f.dir)
	if err != nil {
		return err
	}
	defer p.stop()
	admin := newCaller(order{Addr: p.at["https"], Token: f.admin.APIKey, Workers: 1})
	// The fleet may be one of a run before: that its server is there is no error.
	_ = admin.call(http.MethodPost, "/api/v1/lwm2m/servers", map[string]any{"id": "bench", "url": "coaps://" + p.at["coap_udp"], "short_id": 101}, nil)
	rotate := map[string]any{"name": "bench", "match": map[string]any{"endpoint": "urn:uuid:*"}, "credential": "rotate-psk"}
	if err := admin.call(http.MethodPost, "/api/v1/lwm2m/policies", rotate, nil); err != nil {
		return err
	}
	keys := make([]psKey, len(f.some))
	for i, m := range f.some {
		keys[i] = psKey{m.identity, m.secret}
	}
	const clients = 64
	ways := []struct{ name, role string }{
		{"the key it has, written again", "bootstrap"},
		{"a new key, handed over in two phases", "bootstrap-rotate"},
		{"of it, the handshake alone", "handshake"},
	}
	last := make([]result, len(ways))
	var contenders []contender
	for i, way := range ways {
		contenders = append(contenders, contender{way.name, func() (float64, error) {
			cost, res, err := p.cost(func() (result, error) {
				return r.load(way.role, order{Addr: p.at["coap_udp"], Keys: keys, Workers: clients})
			})
			last[i] = res
			return cost, err
		}})
	}
	got, err := r.inTurns(contenders...)
	if err != nil {
		return err
	}
	rows := [][]string{{"64 clients; a device gets", "server CPU", "a CPU second", "p50, p99 of the last round"}}
	for i, s := range got {
		rows = append(rows, []string{s.name, s.text(" µs"), figure(1e6 / s.median()), fmt.Sprintf("%v, %v", last[i].P50, last[i].P99)})
	}
	r.table(rows...)
	return nil
}

// bootstrapLoad has devices bootstrap, each on a session of its own.
func bootstrapLoad(o order, rotate bool) error {
	return hammer(o, func(worker, i int) error {
		k := o.Keys[(worker+i*o.Workers)%len(o.Keys)]
		c, err := session(o.Addr, k)
		if err != nil {
			return err
		}
		defer c.Close()
		name := k.Identity
		if guid, ok := psk.Identity(name).GUID(); ok && rotate {
			name = "urn:uuid:" + guid
		}
		m := coap.Message{Code: coap.POST, ID: 1, Token: []byte{1}, Options: coap.Options{}.AddPath("/bs").Add(coap.URIQuery, []byte("ep="+name)).Add(coap.URIQuery, []byte("pct=112"))}
		if _, err := c.Write(m.Append(nil)); err != nil {
			return err
		}
		_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
		buf := make([]byte, 2048)
		for {
			n, err := c.Read(buf)
			if err != nil {
				return err
			}
			got, err := coap.Parse(buf[:n])
			if err != nil {
				return err
			}
			if got.Code.IsError() {
				return errors.New(got.Code.String())
			}
			if !got.Code.IsRequest() {
				continue
			}
			answer := coap.Message{Type: coap.Acknowledgement, ID: got.ID, Token: got.Token, Code: coap.Changed}
			switch got.Code {
			case coap.GET:
				answer.Code, answer.Payload = coap.Content, []byte(`</>;lwm2m=1.1,</0>,</0/1>;uri="coaps://bench",</1>`)
				answer.Options = answer.Options.AddUint(coap.ContentFormat, uint32(coap.LinkFormat))
			case coap.DELETE:
				answer.Code = coap.Deleted
			default:
			}
			if _, err := c.Write(answer.Append(nil)); err != nil {
				return err
			}
			if got.Code == coap.POST && strings.HasPrefix(got.Options.Path(), "/bs") {
				return nil
			}
		}
	})
}

// pskBench measures the making of pre-shared keys over the REST API, each for a new device.
func pskBench(r *run) error {
	f, err := r.fleetOf(1000)
	if err != nil {
		return err
	}
	p, err := r.serve(f.dir)
	if err != nil {
		return err
	}
	defer p.stop()
	rows := [][]string{{"requests for", "clients", "keys a second, all durable", "server CPU a key", "p50, p99 of a request"}}
	for _, way := range []struct {
		role          string
		clients, each int
	}{{"psk", 1, 1}, {"psk", 64, 1}, {"psk-bulk", 1, psk.Batch}} {
		var rate series
		var last result
		got, err := r.inTurns(contender{way.role, func() (float64, error) {
			started := time.Now()
			cost, res, err := p.cost(func() (result, error) {
				return r.load(way.role, order{Addr: p.at["https"], Workers: way.clients, Token: f.admin.APIKey})
			})
			last = res
			rate.values = append(rate.values, float64(res.Done*way.each)/max(r.time, time.Since(started)).Seconds())
			return cost / float64(way.each), err
		}})
		if err != nil {
			return err
		}
		rows = append(rows, []string{strconv.Itoa(way.each), strconv.Itoa(way.clients), rate.text(""), got[0].text(" µs"), fmt.Sprintf("%v, %v", last.P50, last.P99)})
	}
	r.table(rows...)
	return nil
}

func pskLoad(o order, path string, body map[string]any) error {
	c := newCaller(o)
	return hammer(o, func(int, int) error { return c.call(http.MethodPost, path, body, nil) })
}
