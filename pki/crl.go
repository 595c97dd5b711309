package pki

import (
	"context"
	"crypto"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/crypto/cryptobyte"

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

// keptCRL is a list in the store, with the first bytes of its DER; More records hold
// the rest, for a CA with all in one list revokes more than a record takes.
type keptCRL struct {
	CRL

	More int `cbor:"more,omitempty"`
}

// crlPart is how many bytes of a list one record holds.
const crlPart = 1 << 20

var (
	crlTable    = store.NewTable[keptCRL]("crl")
	crlParts    = store.NewTable[[]byte]("crl part")
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
			crl, err = loadCRL(tx, shardKey(ca, shard))
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
	list := crlDER{thisUpdate: now, nextUpdate: now.Add(crlValidity)}
	var over []revocation
	for r, err := range revocations.All(ctx, s.DB, "shard", store.TermOf(string(a.ID), shardName(shard))) {
		if err != nil {
			return CRL{}, err
		}
		if now.After(r.NotAfter.Add(crlGrace)) {
			over = append(over, r)
			continue
		}
		if err := list.add(r.Serial, r.At, r.Reason); err != nil {
			return CRL{}, err
		}
	}
	number := max(last+1, uint64(now.UnixMilli()))
	list.number = number
	if a.Shards > 1 && s.PublicHTTP != "" {
		list.extra = []pkix.Extension{{Id: oidIssuingPoint, Critical: true, Value: sequence(func(b *cryptobyte.Builder) {
			addPointName(b, crlURL(s.PublicHTTP, a.ID, shard))
		})}}
	}
	key, err := s.Keys.Signer(ctx, a.Key)
	if err != nil {
		return CRL{}, err
	}
	der, err := list.sign(a, key)
	if err != nil {
		return CRL{}, fmt.Errorf("pki: crl %s/%d: %w", a.ID, shard, err)
	}
	s.lintCRL(ctx, a, &list, der)
	crl := CRL{CA: a.ID, Shard: shard, Number: number, DER: der, IssuedAt: now, Expires: list.nextUpdate, Changes: state.Changes, Entries: list.entries}
	return crl, s.DB.Update(ctx, func(tx store.Tx) error {
		for _, r := range over {
			if _, err := revocations.Delete(tx, revocationKey(r.CA, r.Serial)); err != nil && !fault.Is(err, fault.NotFound) {
				return err
			}
		}
		return keepCRL(tx, shardKey(a.ID, shard), crl)
	})
}

func crlPartKey(key string, part int) string { return fmt.Sprintf("%s/%04d", key, part) }

// keepCRL replaces the list of a shard.
func keepCRL(tx store.Tx, key string, crl CRL) error {
	old, err := crlTable.Get(tx, key)
	if err != nil && !fault.Is(err, fault.NotFound) {
		return err
	}
	parts := slices.Collect(slices.Chunk(crl.DER, crlPart))
	for i, part := range parts[1:] {
		if err := crlParts.Set(tx, crlPartKey(key, i), part); err != nil {
			return err
		}
	}
	for i := len(parts) - 1; i < old.More; i++ {
		if _, err := crlParts.Delete(tx, crlPartKey(key, i)); err != nil {
			return err
		}
	}
	crl.DER = parts[0]
	return crlTable.Set(tx, key, keptCRL{CRL: crl, More: len(parts) - 1})
}

// loadCRL returns the list of a shard.
func loadCRL(tx store.Tx, key string) (CRL, error) {
	kept, err := crlTable.Get(tx, key)
	for i := 0; i < kept.More && err == nil; i++ {
		var part []byte
		part, err = crlParts.Get(tx, crlPartKey(key, i))
		kept.DER = append(kept.DER, part...)
	}
	return kept.CRL, err
}

// crlDER is a list in the making. Its entries are encoded as they come: by reflection,
// as the standard library has it, a long list takes longer to encode than to read.
type crlDER struct {
	thisUpdate, nextUpdate time.Time
	number                 uint64
	extra                  []pkix.Extension
	revoked                []byte
	entries                int
}

type tbsCRL struct {
	Version    int // 1: of version 2
	Signature  pkix.AlgorithmIdentifier
	Issuer     asn1.RawValue
	ThisUpdate time.Time
	NextUpdate time.Time
	Revoked    asn1.RawValue    `asn1:"optional"`
	Extensions []pkix.Extension `asn1:"explicit,tag:0"`
}

var oidCRLNumber = asn1.ObjectIdentifier{2, 5, 29, 20}

// reasonHead is an extension with the reason of an entry, up to that (RFC 5280, 5.3.1).
var reasonHead = []byte{0x30, 0x0c, 0x30, 0x0a, 0x06, 0x03, 0x55, 0x1d, 0x15, 0x04, 0x03, 0x0a, 0x01}

// add adds an entry. Unspecified is said by saying nothing.
func (l *crlDER) add(serial Serial, at time.Time, reason Reason) error {
	number, err := hex.DecodeString(string(serial))
	if err != nil || len(number) == 0 || len(number) > 21 {
		return fmt.Errorf("pki: the serial number %q cannot be listed", serial)
	}
	for len(number) > 1 && number[0] == 0 && number[1] < 0x80 {
		number = number[1:]
	}
	if number[0] >= 0x80 {
		number = append([]byte{0}, number...)
	}
	tag, form := byte(asn1.TagUTCTime), "060102150405Z"
	if at = at.UTC(); at.Year() < 1950 || at.Year() >= 2050 {
		tag, form = asn1.TagGeneralizedTime, "20060102150405Z"
	}
	size := 2 + len(number) + 2 + len(form)
	if reason != Unspecified {
		size += len(reasonHead) + 1
	}
	l.revoked = append(l.revoked, 0x30, byte(size), asn1.TagInteger, byte(len(number))) //nolint:gosec // G115: at most 22 bytes of number, 15 of time and 12 of reason
	l.revoked = append(l.revoked, number...)
	l.revoked = at.AppendFormat(append(l.revoked, tag, byte(len(form))), form) //nolint:gosec // G115: 13 or 15
	if reason != Unspecified {
		l.revoked = append(append(l.revoked, reasonHead...), byte(reason)) //nolint:gosec // G115: at most 10
	}
	l.entries++
	return nil
}

// sign signs the list as the CA, and checks the signature.
func (l *crlDER) sign(a *authority, key crypto.Signer) ([]byte, error) {
	if a.cert.KeyUsage&x509.KeyUsageCRLSign == 0 {
		return nil, errors.New("the CA's certificate does not let it sign lists (key usage)")
	}
	alg, _, err := signatureOf(a.Algorithm)
	if err != nil {
		return nil, err
	}
	tbs := tbsCRL{
		Version: 1, Signature: alg, Issuer: asn1.RawValue{FullBytes: a.cert.RawSubject}, ThisUpdate: l.thisUpdate, NextUpdate: l.nextUpdate,
		Extensions: append([]pkix.Extension{
			{Id: oidAuthorityKeyID, Value: mustMarshal(struct {
				ID []byte `asn1:"tag:0"`
			}{subjectKeyID(a.cert)})},
			{Id: oidCRLNumber, Value: mustMarshal(new(big.Int).SetUint64(l.number))},
		}, l.extra...),
	}
	if l.entries > 0 { // an empty list is left out (RFC 5280, 5.1.2.6)
		tbs.Revoked = asn1.RawValue{Tag: asn1.TagSequence, IsCompound: true, Bytes: l.revoked}
	}
	der, err := asn1.Marshal(tbs)
	if err != nil {
		return nil, err
	}
	signature, err := signBytes(key, a.Algorithm, der)
	if err != nil {
		return nil, err
	}
	if !verifies(key.Public(), a.Algorithm, der, signature) {
		return nil, errBadSignature
	}
	return withSignature(der, a.Algorithm, signature)
}

// CRLPath parses "<shard>" of the path of a CRL.
func CRLPath(name string) (int, error) {
	n, err := strconv.Atoi(name)
	if err != nil || n < 0 || n >= maxShards {
		return 0, notFound("crl")
	}
	return n, nil
}
