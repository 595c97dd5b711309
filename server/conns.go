package server

import (
	"context"
	"net"
	"sync"

	"keystead/devices"
)

// conns knows which TLS connections rest on which device's certificate, to
// close them when the device or the certificate is ended. The zero conns is
// ready to use.
type conns struct {
	mu       sync.Mutex
	byDevice map[string]map[net.Conn]struct{}
	device   map[net.Conn]string
}

type connKey struct{}

// context puts a connection in the context of its requests; it is an
// http.Server's ConnContext.
func (cs *conns) context(ctx context.Context, c net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, c)
}

// bind notes that the connection of a request rests on a device.
func (cs *conns) bind(ctx context.Context, device string) {
	c, ok := ctx.Value(connKey{}).(net.Conn)
	if !ok {
		return
	}
	cs.mu.Lock()
	defer cs.mu.Unlock()
	if cs.device[c] == device {
		return
	}
	if cs.device == nil {
		cs.device, cs.byDevice = map[net.Conn]string{}, map[string]map[net.Conn]struct{}{}
	}
	cs.forgetLocked(c)
	cs.device[c] = device
	if cs.byDevice[device] == nil {
		cs.byDevice[device] = map[net.Conn]struct{}{}
	}
	cs.byDevice[device][c] = struct{}{}
}

// forget is told of a connection that is closed.
func (cs *conns) forget(c net.Conn) {
	cs.mu.Lock()
	defer cs.mu.Unlock()
	cs.forgetLocked(c)
}

func (cs *conns) forgetLocked(c net.Conn) {
	device, ok := cs.device[c]
	if !ok {
		return
	}
	delete(cs.device, c)
	delete(cs.byDevice[device], c)
	if len(cs.byDevice[device]) == 0 {
		delete(cs.byDevice, device)
	}
}

// changed closes what rests on a device that was ended, or on one of its
// credentials: whichever it was, the client connects again with what it has left.
func (cs *conns) changed(c devices.Change) {
	if !c.Ends() {
		return
	}
	cs.mu.Lock()
	var open []net.Conn
	for conn := range cs.byDevice[c.Device.ID] {
		open = append(open, conn)
	}
	cs.mu.Unlock()
	for _, conn := range open {
		conn.Close() // its ConnState hook forgets it
	}
}
