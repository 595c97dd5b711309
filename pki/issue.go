package pki

import (
	"bytes"
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/asn1"
	"errors"
	"log/slog"
	"math/big"
	"slices"
	"strings"
	"time"

	"keystead/audit"
	"keystead/fault"
	"keystead/store"
)

// Request asks for a certificate.
type Request struct {
	Org     string
	CA      CAID    // "" for the one the organisation issues from
	Profile Profile // see Service.Profile
	CSR     *x509.CertificateRequest
	Public  any      // the key, where it is not the request's
	Subject *Subject // the subject, where it is not the request's or the profile's
	SANs    []string // further alternative names, as in a profile
	Device  string   // what {device} in a profile stands for
	DMS     string
	// Named says that NoSecret was asked of the subject of CSR.
	Named bool
	// NotAfter ends the certificate early; zero leaves it to the profile.
	NotAfter time.Time
}

// Prepared is a certificate that was built, checked and linted, and may be
// issued once. Only Prepare makes one.
type Prepared struct {
	t       *template
	issuer  *authority
	request Request
	sans    sans
	shard   int
	spent   bool
}

// intent says that a serial is about to be signed by a key outside of this process.
type intent struct {
	Serial  Serial    `cbor:"serial"`
	CA      CAID      `cbor:"ca"`
	Org     string    `cbor:"org"`
	Profile string    `cbor:"profile"`
	DMS     string    `cbor:"dms,omitempty"`
	Device  string    `cbor:"device,omitempty"`
	At      time.Time `cbor:"at"`
}

var intents = store.NewTable[intent]("issuing intent")

// Prepare checks a request against its profile and builds and lints the
// certificate. It is Invalid, with what to do, if the request asks for what the
// profile does not give; Conflict if the CA does not issue.
func (s *Service) Prepare(ctx context.Context, r Request) (*Prepared, error) {
	if r.CA == "" {
		ca, err := s.defaultCA(ctx, r.Org)
		if err != nil {
			return nil, err
		}
		r.CA = ca.ID
	}
	if r.Profile.SignAsCA {
		return nil, fault.New(fault.Conflict, "the profile is for CAs; choose one for devices")
	}
	issuer, err := s.issuer(ctx, r.Org, r.CA)
	if err != nil {
		return nil, err
	}
	p := &Prepared{issuer: issuer, request: r}
	return p, p.fill(ctx, s)
}

// fill builds and lints, under a new serial.
func (p *Prepared) fill(ctx context.Context, s *Service) error {
	now := s.Now().UTC()
	r := &p.request
	public := r.Public
	if public == nil {
		public = r.CSR.PublicKey
	}
	if err := errors.Join(GoodKey(public), r.Profile.Crypto.allows(public)); err != nil {
		return firstFault(err)
	}
	if r.CSR != nil {
		if err := checkNames(r.CSR); err != nil {
			return err
		}
	}
	notAfter, err := r.Profile.notAfter(now, p.issuer.NotAfter)
	if err != nil {
		return err
	}
	if !r.NotAfter.IsZero() && r.NotAfter.Before(notAfter) {
		notAfter = r.NotAfter.Truncate(time.Second)
	}
	notBefore := now.Add(-backdate)
	if notBefore.Before(p.issuer.NotBefore) {
		notBefore = p.issuer.NotBefore
	}
	t := &template{
		serial: newSerial(now), issuer: p.issuer.cert.RawSubject, notBefore: notBefore.Truncate(time.Second), notAfter: notAfter,
		public: public, algorithm: p.issuer.Algorithm, authorityKeyID: subjectKeyID(p.issuer.cert),
	}
	if r.Public == nil && writtenAsOurs(r.CSR.RawSubjectPublicKeyInfo) {
		t.spki = r.CSR.RawSubjectPublicKeyInfo
	}
	p.t, p.shard = t, shardOf(t.serial, p.issuer.Shards)
	if err := p.subject(); err != nil {
		return err
	}
	if !r.Named || !bytes.Equal(t.subject, r.CSR.RawSubject) {
		if err := s.NoSecret(ctx, t.subject); err != nil {
			return err
		}
	}
	if err := p.extensions(s.PublicHTTP); err != nil {
		return err
	}
	if err := s.noSecretIn(ctx, p.sans); err != nil {
		return err
	}
	if err := s.notACA(ctx, t.keyID); err != nil {
		return err
	}
	if err := t.build(); err != nil {
		return err
	}
	return s.lint(t)
}

// firstFault is the first of joined errors, which is the one to tell.
func firstFault(err error) error {
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		return joined.Unwrap()[0]
	}
	return err
}

// notACA refuses the key of one of our CAs: a leaf with it could be taken for one.
func (s *Service) notACA(ctx context.Context, key []byte) error {
	return s.DB.View(ctx, func(tx store.Tx) error {
		same, err := s.byKeyID(tx, hexOf(key))
		if err == nil && len(same) > 0 {
			return fault.New(fault.Invalid, "this is the key of a CA; make one for the device")
		}
		return err
	})
}

func (p *Prepared) subject() error {
	r := &p.request
	var err error
	switch {
	case r.Subject != nil:
		p.t.subject, err = r.Subject.der()
	case r.Profile.HonorSubject && r.CSR != nil:
		p.t.subject = r.CSR.RawSubject
	default:
		subject := r.Profile.Subject
		if r.CSR != nil && subject.CommonName == "" {
			subject.CommonName = r.CSR.Subject.CommonName
		}
		if r.CSR != nil && subject.SerialNumber == "" && r.Profile.Kind == IDevID {
			subject.SerialNumber = r.CSR.Subject.SerialNumber
		}
		p.t.subject, err = subject.der()
	}
	if err != nil {
		return err
	}
	if r.Profile.Kind == IDevID && !strings.Contains(string(p.t.subject), string(mustMarshal(oidAttrSerialNumber))) {
		return fault.New(fault.Invalid, "an IDevID needs a serialNumber in its subject (IEEE 802.1AR); add it to the request")
	}
	return nil
}

// SubjectText is a subject as it may be logged: without what a device proves itself with.
func (s *Service) SubjectText(ctx context.Context, csr *x509.CertificateRequest) string {
	if s.NoSecret(ctx, csr.RawSubject) != nil {
		return "[secret]"
	}
	return ended(csr.Subject.String())
}

// NoSecret refuses a subject that has a device's secret in it, as Mainflux names
// certificates: whoever sees the certificate could be the device.
func (s *Service) NoSecret(ctx context.Context, subject []byte) error {
	if s.IsSecret == nil {
		return nil
	}
	var names pkix.RDNSequence
	if _, err := asn1.Unmarshal(subject, &names); err != nil {
		return fault.Wrap(fault.Invalid, err, "the subject is not a name")
	}
	for _, set := range names {
		for _, attribute := range set {
			name, ok := attribute.Value.(string)
			if !ok {
				continue
			}
			if err := s.noSecret(ctx, "the subject has", name); err != nil {
				return err
			}
		}
	}
	return nil
}

// NoSecretNames is NoSecret for the alternative names of a request.
func (s *Service) NoSecretNames(ctx context.Context, csr *x509.CertificateRequest) error {
	var list sans
	list.addCSR(csr)
	list.addModules(csr)
	return s.noSecretIn(ctx, list)
}

func (s *Service) noSecretIn(ctx context.Context, list sans) error {
	if s.IsSecret == nil {
		return nil
	}
	for _, name := range list {
		text := string(name.Bytes)
		for _, module := range HardwareModules(mustMarshal([]asn1.RawValue{name})) {
			text = string(module.Serial)
		}
		if err := s.noSecret(ctx, "the alternative names have", text); err != nil {
			return err
		}
		// A name has parts, such as the labels of a DNS name: one of them may be it.
		for part := range strings.FieldsFuncSeq(text, betweenParts) {
			if err := s.noSecret(ctx, "the alternative names have", part); err != nil {
				return err
			}
		}
	}
	return nil
}

func betweenParts(r rune) bool { return strings.ContainsRune(".:/?#&=;,@ ", r) }

func (s *Service) noSecret(ctx context.Context, where, name string) error {
	secret, err := s.IsSecret(ctx, name)
	if err == nil && secret {
		err = fault.New(fault.Invalid, "%s the key of a thing in it, which the certificate would make public; name the thing by its id", where)
	}
	return err
}

func (p *Prepared) extensions(base string) error {
	r, t := &p.request, p.t
	t.addKeyIDs()
	t.add(oidBasicConstraints, true, emptySequence) // no CA
	names, usages := p.usages()
	t.addKeyUsage(usages)
	t.addExtKeyUsage(names)
	t.addPolicies(r.Profile.Policies)
	list, err := p.names()
	if err != nil {
		return err
	}
	if len(list) == 0 && string(t.subject) == string(emptySequence) {
		return fault.New(fault.Invalid, "the request has neither a subject nor an alternative name; give it a common name")
	}
	t.addSANs(list)
	p.sans = list
	if r.Profile.Kind == OCSP {
		t.add(oidOCSPNoCheck, false, []byte{5, 0})
	}
	if !r.Profile.NoRevocation {
		t.addPointers(base, &p.issuer.CA, p.shard)
	}
	return nil
}

// usages are those of the profile, and of the request where the profile says so:
// never the ones of CAs.
func (p *Prepared) usages() (EKUs, uint) {
	r := &p.request
	bits, names := usageBits(r.Profile.KeyUsage), r.Profile.ExtendedKeyUsage
	if r.CSR != nil {
		for _, e := range r.CSR.Extensions {
			switch {
			case e.Id.Equal(oidKeyUsage) && r.Profile.HonorKeyUsage:
				bits |= requestedUsage(e.Value)
			case e.Id.Equal(oidExtKeyUsage) && r.Profile.HonorEKU:
				names = append(slices.Clip(names), requestedEKUs(e.Value)...)
			}
		}
	}
	return names, usagesFor(p.t.public, bits)
}

func (p *Prepared) names() (sans, error) {
	r := &p.request
	var list sans
	if r.CSR != nil && r.Profile.HonorExtensions {
		list.addCSR(r.CSR)
		list.addModules(r.CSR)
	}
	if err := p.profileNames(&list); err != nil {
		return nil, err
	}
	for _, text := range r.SANs {
		if err := list.addText(text); err != nil {
			return nil, err
		}
	}
	return list, nil
}

// profileNames adds the names that the profile gives.
func (p *Prepared) profileNames(list *sans) error {
	r := &p.request
	if len(r.Profile.SANs) == 0 {
		return nil
	}
	fill := strings.NewReplacer("{device}", r.Device)
	if r.CSR != nil {
		fill = strings.NewReplacer("{device}", r.Device, "{cn}", r.CSR.Subject.CommonName, "{serial_number}", r.CSR.Subject.SerialNumber)
	}
	for _, text := range r.Profile.SANs {
		if err := list.addText(fill.Replace(text)); err != nil {
			return err
		}
	}
	return nil
}

// Issue signs what was prepared and records it. In the transaction that records
// it bind is called, with the certificate as it will be kept: it sets which device it
// is of, attaches it there, and does whatever else is one with the issuing. If
// bind fails, nothing is recorded and the certificate is not handed out.
//
// It takes one commit: what is signed is in this process alone until it is durably
// recorded, and ends with it. A key that signs elsewhere takes one more, see outside.
func (s *Service) Issue(ctx context.Context, p *Prepared, bind func(ctx context.Context, tx store.Tx, c *Certificate) error) (Certificate, error) {
	if p.spent {
		return Certificate{}, errSpent
	}
	p.spent = true
	key, err := s.Keys.Signer(ctx, p.issuer.Key)
	if err != nil {
		return Certificate{}, err
	}
	for range 3 {
		record, err := s.issue(ctx, p, key, bind)
		if err == nil {
			s.issued.Add(1)
			return record, nil
		}
		if !errors.Is(err, errSerialTaken) {
			return Certificate{}, err
		}
		if err := p.fill(ctx, s); err != nil {
			return Certificate{}, err
		}
	}
	return Certificate{}, errors.New("pki: three serial numbers in a row were taken: the random source is broken")
}

var (
	errSpent = errors.New("pki: a prepared certificate is issued once")
	// errSerialTaken says that a serial was used before, or is being used: another is to be drawn.
	errSerialTaken = errors.New("pki: the serial number is taken")
)

// issue is Issue under the serial that was drawn.
func (s *Service) issue(ctx context.Context, p *Prepared, key crypto.Signer, bind func(context.Context, store.Tx, *Certificate) error) (record Certificate, err error) {
	if outside(key) {
		if err := s.DB.Update(ctx, func(tx store.Tx) error { return s.intendIn(tx, p) }); err != nil {
			return record, err
		}
		defer func() {
			if err != nil {
				err = errors.Join(err, s.abandon(ctx, p))
			}
		}()
	}
	signed, err := s.sign(p, key)
	if err != nil {
		return record, err
	}
	err = s.DB.Update(ctx, func(tx store.Tx) error {
		record = signed
		return s.recordIn(ctx, tx, &record, key, bind)
	})
	return record, err
}

// outside reports whether a key signs in another place than this process, such as
// a PKCS#11 token. What is signed there outlives a crash of this process, if only in
// that place's own account: its serial is recorded before, as an intent, so that
// whatever was signed can be accounted for.
func outside(key crypto.Signer) bool {
	switch key.(type) {
	case *ecdsa.PrivateKey, ed25519.PrivateKey, *rsa.PrivateKey:
		return false
	}
	return true
}

// Batch is how many certificates one call of IssueAll issues at most: as many as
// one transaction should write.
const Batch = 1000

// IssueAll is Issue for many at once, in one commit for all of them: all are
// recorded or none. bind is called for each, with its place in list.
func (s *Service) IssueAll(ctx context.Context, list []*Prepared, bind func(ctx context.Context, tx store.Tx, i int, c *Certificate) error) ([]Certificate, error) {
	if len(list) > Batch {
		return nil, fault.New(fault.TooLarge, "at most %d certificates at a time", Batch)
	}
	keys := make([]crypto.Signer, len(list))
	var announced []*Prepared
	for i, p := range list {
		if p.spent {
			return nil, errSpent
		}
		p.spent = true
		var err error
		if keys[i], err = s.Keys.Signer(ctx, p.issuer.Key); err != nil {
			return nil, err
		}
		if outside(keys[i]) {
			announced = append(announced, p)
		}
	}
	if err := s.intendAll(ctx, announced); err != nil {
		return nil, err
	}
	records, err := s.signAndRecordAll(ctx, list, keys, bind)
	if err != nil {
		for _, p := range announced {
			err = errors.Join(err, s.abandon(ctx, p))
		}
		return nil, err
	}
	s.issued.Add(uint64(len(list)))
	return records, nil
}

func (s *Service) intendAll(ctx context.Context, list []*Prepared) error {
	if len(list) == 0 {
		return nil
	}
	return s.DB.Update(ctx, func(tx store.Tx) error {
		for _, p := range list {
			if err := s.intendIn(tx, p); err != nil {
				return err
			}
		}
		return nil
	})
}

func (s *Service) signAndRecordAll(ctx context.Context, list []*Prepared, keys []crypto.Signer, bind func(context.Context, store.Tx, int, *Certificate) error) ([]Certificate, error) {
	signed := make([]Certificate, len(list))
	for i, p := range list {
		var err error
		if signed[i], err = s.sign(p, keys[i]); err != nil {
			return nil, err
		}
	}
	records := make([]Certificate, len(list))
	err := s.DB.Update(ctx, func(tx store.Tx) error {
		for i := range list {
			records[i] = signed[i]
			err := s.recordIn(ctx, tx, &records[i], keys[i], func(ctx context.Context, tx store.Tx, c *Certificate) error { return bind(ctx, tx, i, c) })
			if err != nil {
				return err
			}
		}
		return nil
	})
	return records, err
}

// intendIn records, as part of tx, that a serial is about to be signed. It is
// errSerialTaken if it was, or is about to be.
func (s *Service) intendIn(tx store.Tx, p *Prepared) error {
	serial := SerialOf(p.t.serial)
	used, err := certificates.Has(tx, string(serial))
	if err != nil {
		return err
	}
	if used {
		return errSerialTaken
	}
	r := &p.request
	err = intents.Insert(tx, string(serial), intent{
		Serial: serial, CA: r.CA, Org: r.Org, Profile: r.Profile.ID, DMS: r.DMS, Device: r.Device, At: s.Now().UTC(),
	})
	if fault.Is(err, fault.Conflict) {
		return errSerialTaken
	}
	return err
}

// sign signs and checks what was signed, and returns its record, which is in no
// store yet.
func (s *Service) sign(p *Prepared, key crypto.Signer) (Certificate, error) {
	cert, err := p.t.signLinted(key)
	if err != nil {
		return Certificate{}, err
	}
	if err := p.check(cert); err != nil {
		return Certificate{}, err
	}
	r := &p.request
	c := describe(cert)
	c.CA, c.Org, c.Profile, c.DMS, c.Shard, c.IssuedAt = r.CA, r.Org, r.Profile.ID, r.DMS, p.shard, s.Now().UTC()
	c.Shared = r.Profile.AllowSharedKey
	return c, nil
}

// recordIn records what key has signed, in the place of its intent if there is one,
// with what bind does. It is errSerialTaken if there is a certificate under the serial.
func (s *Service) recordIn(ctx context.Context, tx store.Tx, c *Certificate, key crypto.Signer, bind func(context.Context, store.Tx, *Certificate) error) error {
	if bind != nil {
		if err := bind(ctx, tx, c); err != nil {
			return err
		}
	}
	if err := s.stillIssues(tx, c.CA); err != nil {
		return err
	}
	if err := c.keyFree(tx); err != nil {
		return err
	}
	if outside(key) {
		if _, err := intents.Delete(tx, string(c.Serial)); err != nil {
			return err
		}
	}
	if err := certificates.Insert(tx, string(c.Serial), *c); fault.Is(err, fault.Conflict) {
		return errSerialTaken
	} else if err != nil {
		return err
	}
	return s.Audit.Append(ctx, tx, audit.Entry{
		Action: "certificate.issue", Target: string(c.Serial), Device: c.Device, Org: c.Org,
		Detail: map[string]string{"ca": string(c.CA), "profile": c.Profile, "subject": c.Subject},
	})
}

// stillIssues refuses to record what a CA signed that was revoked meanwhile.
func (s *Service) stillIssues(tx store.Tx, ca CAID) error {
	record, err := s.records.Get(tx, cas, string(ca))
	if err == nil && record.State != CAActive {
		return fault.New(fault.Conflict, "the CA is %s and issues nothing", record.State)
	}
	return err
}

// check holds what was signed against what the profile allows, seen from the
// outside: a mistake in building it does not leave the house.
func (p *Prepared) check(cert *x509.Certificate) error {
	r := &p.request
	switch {
	case cert.IsCA || !cert.BasicConstraintsValid:
		return errors.New("pki: signed a CA by mistake")
	case cert.KeyUsage&(x509.KeyUsageCertSign|x509.KeyUsageCRLSign) != 0:
		return errors.New("pki: signed a key usage of CAs by mistake")
	case cert.SerialNumber.Cmp(p.t.serial) != 0 || cert.SerialNumber.Sign() <= 0:
		return errors.New("pki: signed another serial number")
	case r.Profile.Kind != IDevID && cert.NotAfter.After(p.issuer.NotAfter):
		return errors.New("pki: signed beyond the issuer's end")
	case string(cert.AuthorityKeyId) != string(subjectKeyID(p.issuer.cert)):
		return errors.New("pki: signed for another issuer")
	}
	return nil
}

// abandon removes the intent of what was not issued after all.
func (s *Service) abandon(ctx context.Context, p *Prepared) error {
	err := s.DB.Update(context.WithoutCancel(ctx), func(tx store.Tx) error {
		_, err := intents.Delete(tx, string(SerialOf(p.t.serial)))
		return err
	})
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	return err
}

// SweepIntents ends the intents that a crash left: nothing was handed out under
// their serials, which are not used again. Each is logged and audited.
func (s *Service) SweepIntents(ctx context.Context) error {
	for i, err := range intents.All(ctx, s.DB, "", "") {
		if err != nil {
			return err
		}
		s.Log.WarnContext(ctx, "a certificate was not finished before the server stopped; it was never handed out",
			slog.String("serial", string(i.Serial)), slog.String("ca", string(i.CA)), slog.Time("at", i.At))
		err := s.DB.Update(ctx, func(tx store.Tx) error {
			if _, err := intents.Delete(tx, string(i.Serial)); err != nil {
				return err
			}
			return s.Audit.Append(ctx, tx, audit.Entry{Action: "certificate.abandon", Target: string(i.Serial), Org: i.Org, Detail: map[string]string{"ca": string(i.CA)}})
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// shardOf is which CRL of its CA a serial is in.
func shardOf(serial *big.Int, shards int) int {
	if shards <= 1 {
		return 0
	}
	b := serial.Bytes()
	low := int(b[len(b)-1])
	if len(b) > 1 {
		low |= int(b[len(b)-2]) << 8
	}
	return low % shards
}
