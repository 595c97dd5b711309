package pki_test

import (
	"bytes"
	"crypto/x509"
	"fmt"
	"testing"
	"time"

	"keystead/pki"
	"keystead/store"
)

// The list is encoded here, and read by the standard library and openssl.
func TestCRLSaysWhatWasRevoked(t *testing.T) {
	h := open(t)
	ca, err := h.DefaultCA(h.ctx)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]pki.Reason{}
	for i, reason := range []pki.Reason{pki.Unspecified, pki.KeyCompromise, pki.Superseded, pki.CertificateHold, pki.AACompromise} {
		c, _ := h.enrol(t, newKey(t), fmt.Sprintf("pump-%d", i))
		if _, err := h.Revoke(h.ctx, string(c.Serial), reason); err != nil {
			t.Fatal(err)
		}
		want[string(c.Serial)] = reason
	}
	// Numbers as others make them: short, and with the first bit set.
	for _, serial := range []string{"01", "80", "ff00", "0080"} {
		if err := h.DB.Update(h.ctx, func(tx store.Tx) error {
			return h.RevokedForTest(tx, ca, serial, time.Date(2060, 1, 1, 0, 0, 0, 0, time.UTC))
		}); err != nil {
			t.Fatal(err)
		}
		parsed, err := pki.ParseSerial(serial)
		if err != nil {
			t.Fatal(err)
		}
		want[string(parsed)] = pki.Unspecified
	}
	path, err := h.Path(h.ctx, ca.ID)
	if err != nil {
		t.Fatal(err)
	}
	for shard := range max(ca.Shards, 1) {
		crl, err := h.CRL(t.Context(), ca.ID, shard)
		if err != nil {
			t.Fatal(err)
		}
		list, err := x509.ParseRevocationList(crl.DER)
		if err != nil {
			t.Fatal(err)
		}
		if err := list.CheckSignatureFrom(path[0]); err != nil {
			t.Errorf("shard %d: %v", shard, err)
		}
		if string(list.AuthorityKeyId) != string(path[0].SubjectKeyId) || list.Number.Uint64() != crl.Number {
			t.Errorf("shard %d: got key id %x and number %v, want %x and %d", shard, list.AuthorityKeyId, list.Number, path[0].SubjectKeyId, crl.Number)
		}
		for _, e := range list.RevokedCertificateEntries {
			serial := string(pki.SerialOf(e.SerialNumber))
			reason, listed := want[serial]
			if !listed || int(reason) != e.ReasonCode || e.RevocationTime.IsZero() {
				t.Errorf("%s is listed with reason %d, want %v, %v", serial, e.ReasonCode, listed, reason)
			}
			delete(want, serial)
		}
	}
	if len(want) > 0 {
		t.Errorf("not listed: %v", want)
	}
}

// One list that takes several records comes out of the store as it went in, and
// leaves nothing behind when it has become short.
func TestALongCRLIsKeptInParts(t *testing.T) {
	h := open(t)
	ca, err := h.CreateCA(h.ctx, pki.NewCA{
		Name: "one list", Subject: pki.Subject{CommonName: "one list"}, Algorithm: pki.P256, Shards: 1,
		Validity: pki.Validity{Type: "Duration", Duration: pki.Duration(5 * 365 * 24 * time.Hour)},
	})
	if err != nil {
		t.Fatal(err)
	}
	const revoked, batch = 60_000, 10_000 // of 36 bytes each: more than two records
	for done := 0; done < revoked; done += batch {
		if err := h.DB.Update(h.ctx, func(tx store.Tx) error {
			for i := range batch {
				if err := h.RevokedForTest(tx, ca, fmt.Sprintf("40%032x", done+i), h.now().Add(24*time.Hour)); err != nil {
					return err
				}
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	parts := func() (n int) {
		t.Helper()
		if err := h.DB.View(h.ctx, func(tx store.Tx) error {
			for _, err := range tx.Scan([]byte("crl part\x00"), nil) {
				if err != nil {
					return err
				}
				n++
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		return n
	}
	made, err := h.CRL(t.Context(), ca.ID, 0)
	if err != nil || made.Entries != revoked || parts() != len(made.DER)>>20 || parts() < 2 {
		t.Fatalf("a list of %d, of %d bytes, in %d further parts: %v", made.Entries, len(made.DER), parts(), err)
	}
	h.reopen(t)
	kept, err := h.CRL(t.Context(), ca.ID, 0)
	if err != nil || kept.Number != made.Number || !bytes.Equal(kept.DER, made.DER) {
		t.Fatalf("after a restart: number %d, want %d, and the same bytes: %v", kept.Number, made.Number, err)
	}
	h.advance(30 * 24 * time.Hour) // all of them have expired
	if short, err := h.CRL(t.Context(), ca.ID, 0); err != nil || short.Entries != 0 || parts() != 0 {
		t.Errorf("a list of %d, in %d further parts: %v", short.Entries, parts(), err)
	}
}
