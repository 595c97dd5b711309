package pki

import (
	"crypto/x509"
	"time"

	"keystead/store"
)

// RevokedForTest lists a serial number as revoked without a certificate.
func (s *Service) RevokedForTest(tx store.Tx, ca CA, serial string, notAfter time.Time) error {
	number := Serial(serial).number()
	r := revocation{CA: ca.ID, Serial: SerialOf(number), Shard: shardOf(number, ca.Shards), At: s.Now(), NotAfter: notAfter}
	return revocations.Set(tx, revocationKey(r.CA, r.Serial), r)
}

// KeepForTest keeps an answer of some bytes.
func (o *Outside) KeepForTest(key string, size int) {
	_, _ = o.answer(key, func(a *outsideAnswer) error { a.size, a.until = size, o.Now().Add(time.Hour); return nil })
}

// KeptForTest is how many answers there are, and of how many bytes.
func (o *Outside) KeptForTest() (answers, bytes int) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.kept), o.bytes
}

// ReadForTest reads what an outside CA could have answered.
func (o *Outside) ReadForTest(der []byte, cert, issuer *x509.Certificate) (until time.Time, err error) {
	if list, until, err := readOutsideCRL(der, issuer, o.Now()); err == nil {
		return until, list.covers(cert)
	}
	_, until, err = o.readOCSP(der, cert, issuer)
	return until, err
}

// NewSerialForTest draws a serial number.
func NewSerialForTest() string { return string(newSerial(time.Now()).Bytes()) }

// SetSerialForTest has p be issued under a serial number.
func (p *Prepared) SetSerialForTest(serial Serial) error {
	p.t.serial = serial.number()
	return p.t.build()
}
