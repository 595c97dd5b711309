package outbound

import (
	"fmt"
	"net"
	"net/netip"
	"syscall"
)

// Guard decides which addresses the server itself may connect to. It is asked
// with the address that is dialled, after every name was resolved, so a name
// that points inside, now or on the next look-up, gains nothing.
//
// The zero Guard lets through public addresses only.
type Guard struct {
	// Allow opens private addresses: on a gateway the receiver is usually next door.
	Allow []netip.Prefix
	// Deny closes addresses whatever Allow says: the server's own listeners.
	Deny func(netip.AddrPort) bool
}

// never is what no configuration opens: where clouds keep the secrets of their
// machines, and what is no single host.
var never = prefixes(
	"169.254.169.254/32", "fd00:ec2::254/128", "168.63.129.16/32", "100.100.100.200/32", // metadata services
	"0.0.0.0/8", "::/128", "224.0.0.0/4", "ff00::/8", "240.0.0.0/4",
)

// private is what only Allow opens (RFC 6890 and its registry, and the forms of
// IPv6 that carry an IPv4 address to somebody who may unwrap it).
var private = prefixes(
	"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "127.0.0.0/8", "169.254.0.0/16", "100.64.0.0/10",
	"192.0.0.0/24", "192.0.2.0/24", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "192.88.99.0/24",
	"::1/128", "fc00::/7", "fe80::/10", "fec0::/10", "64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/23", "2001:db8::/32", "100::/64", "::/96",
)

func prefixes(texts ...string) []netip.Prefix {
	all := make([]netip.Prefix, len(texts))
	for i, text := range texts {
		all[i] = netip.MustParsePrefix(text)
	}
	return all
}

// Check returns an error that says why the server does not connect to to.
func (g Guard) Check(to netip.AddrPort) error {
	addr := to.Addr().Unmap().WithZone("")
	switch {
	case !addr.IsValid():
		return fmt.Errorf("outbound: %v is not an address", to)
	case within(addr, never):
		return fmt.Errorf("outbound: %v is never connected to", addr)
	case g.Deny != nil && g.Deny(netip.AddrPortFrom(addr, to.Port())):
		return fmt.Errorf("outbound: %v is this server itself", to)
	case within(addr, private) && !within(addr, g.Allow):
		return fmt.Errorf("outbound: %v is a private address; list it in webhook.allow_cidrs if it is meant", addr)
	}
	return nil
}

// control is a net.Dialer's Control.
func (g Guard) control(_, address string, _ syscall.RawConn) error {
	to, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("outbound: %w", err)
	}
	return g.Check(to)
}

func within(addr netip.Addr, all []netip.Prefix) bool {
	for _, p := range all {
		if p.Contains(addr) {
			return true
		}
	}
	return false
}

// Dialer returns a dialer of raw connections that asks the guard.
func (g Guard) Dialer() *net.Dialer {
	return &net.Dialer{Timeout: DefaultTimeout, Control: g.control}
}
