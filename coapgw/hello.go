package coapgw

import "encoding/binary"

// isHello reports whether a datagram begins with the first ClientHello of a
// handshake. One that answers a cookie request has another message number, and is of
// no use to who did not make the request.
func isHello(b []byte) bool {
	const (
		clientHello = 1
		message     = recordHeader // type(1) length(3) message_seq(2) fragment_offset(3) fragment_length(3)
	)
	return len(b) >= message+12 && b[0] == typeHandshake && b[3] == 0 && b[4] == 0 &&
		b[message] == clientHello && b[message+4] == 0 && b[message+5] == 0 &&
		b[message+6] == 0 && b[message+7] == 0 && b[message+8] == 0
}

// isServerHello reports whether a datagram begins with a ServerHello: the
// sender has seen its cookie come back.
func isServerHello(b []byte) bool {
	const serverHello = 2
	return len(b) > recordHeader && b[0] == typeHandshake && b[recordHeader] == serverHello
}

// protected calls fn with the sequence number of each record of epoch 1 in a datagram of pion's making or
// meant for it.
func protected(b []byte, cidLen int, fn func(seq uint64)) {
	for len(b) >= recordHeader {
		head := recordHeader
		if b[0] == typeCID {
			if head += cidLen; len(b) < head {
				return
			}
		}
		if binary.BigEndian.Uint16(b[3:]) == 1 {
			fn(binary.BigEndian.Uint64(b[3:]) & maxSequence)
		}
		n := head + int(binary.BigEndian.Uint16(b[head-2:]))
		if len(b) < n {
			return
		}
		b = b[n:]
	}
}
