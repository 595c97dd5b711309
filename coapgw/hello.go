package coapgw

import "encoding/binary"

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
