package pki

import (
	"time"

	"keystead/store"
)

// RevokedForTest lists a serial number as revoked without a certificate.
func (s *Service) RevokedForTest(tx store.Tx, ca CAID, serial string, notAfter time.Time) error {
	number := Serial(serial).number()
	r := revocation{CA: ca, Serial: SerialOf(number), Shard: shardOf(number, defaultShards), At: s.Now(), NotAfter: notAfter}
	return revocations.Set(tx, revocationKey(r.CA, r.Serial), r)
}
