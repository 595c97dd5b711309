package pki

import (
	"context"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"fmt"
	"math/big"
	"strconv"
	"sync"
	"time"

	"keystead/fault"
	"keystead/store"
)

// How long a CRL is good, and how long before its end it is made anew.
const (
	crlValidity = 7 * 24 * time.Hour
	crlRefresh  = 24 * time.Hour
	// crlGrace is how long a revoked certificate stays listed after its end: it is
	// on at least one CRL made after it expired (RFC 5280, 3.3).
	crlGrace = crlValidity + time.Hour
)

// CRL is one signed list of one shard of a CA.
type CRL struct {
	CA       CAID      `cbor:"ca"`
	Shard    int       `cbor:"shard"`
	Number   uint64    `cbor:"number"`
	DER      []byte    `cbor:"der"`
	IssuedAt time.Time `cbor:"at"`
	Expires  time.Time `cbor:"until"`
	Changes  uint64    `cbor:"changes"` // the shard's count of changes it holds
	Entries  int       `cbor:"entries"`
}

// shardState counts the changes of a shard; a CRL with fewer is out of date.
type shardState struct {
	Changes uint64 `cbor:"changes"`
}

var (
	crlTable    = store.NewTable[CRL]("crl")
	shardStates = store.NewTable[shardState]("crl shard")
)

func shardName(shard int) string         { return fmt.Sprintf("%04d", shard) }
func shardKey(ca CAID, shard int) string { return string(ca) + "/" + shardName(shard) }
func (c *CRL) fresh(now time.Time) bool  { return now.Before(c.Expires.Add(-crlRefresh)) }

// crlCache has one rebuild of a shard at a time, and the last one at hand.
type crlCache struct{ shards sync.Map }

func (c *crlCache) of(key string) *crlShard {
	v, _ := c.shards.LoadOrStore(key, &crlShard{})
	shard, _ := v.(*crlShard)
	return shard
}

type crlShard struct {
	mu   sync.Mutex
	last CRL
}

// dirty has the CRL of a shard made anew before it is next given out.
func (s *Service) dirty(tx store.Tx, ca CAID, shard int) error {
	state, err := shardStates.Get(tx, shardKey(ca, shard))
	if err != nil && !fault.Is(err, fault.NotFound) {
		return err
	}
	state.Changes++
	return shardStates.Set(tx, shardKey(ca, shard), state)
}

// CRL returns the list of one shard of a CA of any organisation, made anew if
// something changed since it was made or it nears its end. It is NotFound if the
// CA or the shard is.
func (s *Service) CRL(ctx context.Context, ca CAID, shard int) (CRL, error) {
	a, err := s.authority(ctx, ca)
	if err != nil {
		return CRL{}, err
	}
	if a.cert == nil || a.Key == "" || shard < 0 || shard >= max(a.Shards, 1) {
		return CRL{}, notFound("crl")
	}
	cache := s.crls.of(shardKey(ca, shard))
	cache.mu.Lock()
	defer cache.mu.Unlock()
	state, stored, err := s.shard(ctx, ca, shard, cache.last.Number == 0)
	if err != nil {
		return CRL{}, err
	}
	if cache.last.Number == 0 {
		cache.last = stored
	}
	if cache.last.Number > 0 && cache.last.Changes == state.Changes && cache.last.fresh(s.Now()) {
		return cache.last, nil
	}
	fresh, err := s.makeCRL(ctx, a, shard, cache.last.Number)
	if err != nil {
		return CRL{}, err
	}
	cache.last = fresh
	return fresh, nil
}

func (s *Service) shard(ctx context.Context, ca CAID, shard int, withCRL bool) (state shardState, crl CRL, err error) {
	err = s.DB.View(ctx, func(tx store.Tx) error {
		state, err = shardStates.Get(tx, shardKey(ca, shard))
		if err != nil && !fault.Is(err, fault.NotFound) {
			return err
		}
		err = nil
		if withCRL {
			crl, err = crlTable.Get(tx, shardKey(ca, shard))
		}
		if fault.Is(err, fault.NotFound) {
			err = nil
		}
		return err
	})
	return state, crl, err
}

// makeCRL reads a shard, signs its list and keeps it. Its number grows with
// every list, and with time, so that not even a restored backup makes it fall.
func (s *Service) makeCRL(ctx context.Context, a *authority, shard int, last uint64) (CRL, error) {
	now := s.Now().UTC().Truncate(time.Second)
	state, _, err := s.shard(ctx, a.ID, shard, false) // before the entries: what comes meanwhile is listed next time again
	if err != nil {
		return CRL{}, err
	}
	list := &x509.RevocationList{ThisUpdate: now, NextUpdate: now.Add(crlValidity)}
	var over []revocation
	for r, err := range revocations.All(ctx, s.DB, "shard", store.TermOf(string(a.ID), shardName(shard))) {
		if err != nil {
			return CRL{}, err
		}
		if now.After(r.NotAfter.Add(crlGrace)) {
			over = append(over, r)
			continue
		}
		list.RevokedCertificateEntries = append(list.RevokedCertificateEntries, x509.RevocationListEntry{
			SerialNumber: r.Serial.number(), RevocationTime: r.At, ReasonCode: int(r.Reason),
		})
	}
	number := max(last+1, uint64(now.UnixMilli()))
	list.Number = new(big.Int).SetUint64(number)
	if a.Shards > 1 && s.PublicHTTP != "" {
		list.ExtraExtensions = []pkix.Extension{{Id: oidIssuingPoint, Critical: true, Value: mustMarshal(crlPoint{
			pointName{FullName: []asn1.RawValue{uriName(crlURL(s.PublicHTTP, a.ID, shard))}},
		})}}
	}
	key, err := s.Keys.Signer(ctx, a.Key)
	if err != nil {
		return CRL{}, err
	}
	der, err := x509.CreateRevocationList(rand.Reader, list, signingCert(a), key)
	if err != nil {
		return CRL{}, fmt.Errorf("pki: crl %s/%d: %w", a.ID, shard, err)
	}
	crl := CRL{CA: a.ID, Shard: shard, Number: number, DER: der, IssuedAt: now, Expires: list.NextUpdate, Changes: state.Changes, Entries: len(list.RevokedCertificateEntries)}
	return crl, s.DB.Update(ctx, func(tx store.Tx) error {
		for _, r := range over {
			if _, err := revocations.Delete(tx, revocationKey(r.CA, r.Serial)); err != nil && !fault.Is(err, fault.NotFound) {
				return err
			}
		}
		return crlTable.Set(tx, shardKey(a.ID, shard), crl)
	})
}

// signingCert is the CA's certificate as the standard library wants it: with a
// key identifier.
func signingCert(a *authority) *x509.Certificate {
	if len(a.cert.SubjectKeyId) > 0 {
		return a.cert
	}
	cert := *a.cert
	cert.SubjectKeyId = keyID(cert.PublicKey)
	return &cert
}

// CRLPath parses "<shard>" of the path of a CRL.
func CRLPath(name string) (int, error) {
	n, err := strconv.Atoi(name)
	if err != nil || n < 0 || n >= maxShards {
		return 0, notFound("crl")
	}
	return n, nil
}
