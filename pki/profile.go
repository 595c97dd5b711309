package pki

import (
	"context"
	"encoding/asn1"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"keystead/audit"
	"keystead/fault"
	"keystead/id"
	"keystead/page"
	"keystead/store"
)

// Profile says what a certificate is made from and what it may be.
type Profile struct {
	ID          string `json:"id"`
	Org         string `json:"-" cbor:"org"`
	Name        string `json:"name"`
	Description string `json:"description,omitempty"`

	Validity Validity `json:"validity"`
	SignAsCA bool     `json:"sign_as_ca"`
	PathLen  *int     `json:"path_length,omitempty"` // of a CA; nil for the least that its level needs

	KeyUsage         KeyUsages `json:"key_usage"`
	HonorKeyUsage    bool      `json:"honor_key_usage"`
	ExtendedKeyUsage EKUs      `json:"extended_key_usages"`
	HonorEKU         bool      `json:"honor_extended_key_usages"`
	Policies         []string  `json:"policies,omitempty"` // OIDs

	// HonorSubject takes the subject from the request; else it is Subject, with
	// the request's common name where Subject has none.
	HonorSubject bool    `json:"honor_subject"`
	Subject      Subject `json:"subject"`
	// HonorExtensions takes the subject alternative names from the request.
	HonorExtensions bool `json:"honor_extensions"`
	// SANs are added: "DNS:", "URI:", "IP:" or "email:" and a value in which
	// {cn}, {device} and {serial_number} stand for what the subject says.
	SANs []string `json:"sans,omitempty"`

	Crypto CryptoEnforcement `json:"crypto_enforcement"`

	// Kind asks for what one of the norms for device identities does.
	Kind ProfileKind `json:"kind,omitempty"`
	// NoRevocation leaves out the pointers to CRL and OCSP: for certificates
	// that end before either would be looked at.
	NoRevocation bool `json:"no_revocation_data,omitempty"`
	// AllowSharedKey lets two devices have certificates for one key.
	AllowSharedKey bool `json:"allow_shared_key,omitempty"`

	CreatedAt time.Time `json:"created_at,omitzero"`
	Builtin   bool      `json:"builtin,omitempty" cbor:"-"`
}

// ProfileKind is a norm a profile follows.
type ProfileKind string

// The kinds.
const (
	Plain  ProfileKind = ""
	IDevID ProfileKind = "idevid" // IEEE 802.1AR: serialNumber in the subject, no end of validity
	LDevID ProfileKind = "ldevid"
	OCSP   ProfileKind = "ocsp"
)

// Validity is how long a certificate lasts.
type Validity struct {
	Type     string    `json:"type"` // "Duration", "Time" or "Indefinite"
	Duration Duration  `json:"duration,omitempty"`
	Time     time.Time `json:"time,omitzero"`
}

// CryptoEnforcement says which keys are certified. An empty list of sizes
// stands for every size that is not weak.
type CryptoEnforcement struct {
	Enabled      bool  `json:"enabled"`
	AllowRSA     bool  `json:"allow_rsa_keys"`
	RSASizes     []int `json:"allowed_rsa_key_sizes"`
	AllowECDSA   bool  `json:"allow_ecdsa_keys"`
	ECDSASizes   []int `json:"allowed_ecdsa_key_sizes"`
	AllowEd25519 bool  `json:"allow_ed25519_keys"`
}

// Subject is a distinguished name.
type Subject struct {
	CommonName         string `json:"common_name,omitempty"`
	Organization       string `json:"organization,omitempty"`
	OrganizationalUnit string `json:"organization_unit,omitempty"`
	Country            string `json:"country,omitempty"`
	State              string `json:"state,omitempty"`
	Locality           string `json:"locality,omitempty"`
	SerialNumber       string `json:"serial_number,omitempty"`
}

// Indefinite is the end of validity of what never expires (RFC 5280, 4.1.2.5).
var Indefinite = time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)

// backdate is how far before its issue a certificate begins, for clocks that are behind.
const backdate = time.Minute

var profiles = store.NewTable("profile",
	store.Index[Profile]{Name: "org", Terms: func(p Profile) []store.Term { return store.Terms(p.Org) }},
	store.Index[Profile]{Name: "name", Unique: true, Terms: func(p Profile) []store.Term { return store.Terms(p.Org, p.Name) }},
)

// The profiles that are always there.
const (
	DeviceProfile    = "device"
	ShortProfile     = "device-short"
	IDevIDProfile    = "idevid"
	BootstrapProfile = "bootstrap"
	ServerProfile    = "server"
	ocspProfile      = "ocsp-responder"
)

const day = Duration(24 * time.Hour)

func builtin(name, description string, validity Duration, change func(*Profile)) Profile {
	p := Profile{
		ID: name, Name: name, Description: description, Builtin: true, HonorSubject: true, HonorExtensions: true,
		Validity: Validity{Type: "Duration", Duration: validity},
		KeyUsage: KeyUsages{"DigitalSignature"}, ExtendedKeyUsage: EKUs{"ClientAuth"},
	}
	if change != nil {
		change(&p)
	}
	return p
}

var builtins = []Profile{
	builtin(DeviceProfile, "LDevID of a device, one year", 365*day, func(p *Profile) { p.Kind = LDevID }),
	builtin(ShortProfile, "a device for one day, without revocation data", day, func(p *Profile) { p.Kind, p.NoRevocation = LDevID, true }),
	builtin(IDevIDProfile, "IDevID of IEEE 802.1AR: serialNumber in the subject, without end", 0, func(p *Profile) {
		p.Kind, p.Validity, p.ExtendedKeyUsage = IDevID, Validity{Type: "Indefinite"}, nil
	}),
	builtin(BootstrapProfile, "for a device's first enrolment only, 30 days", 30*day, func(p *Profile) {
		p.AllowSharedKey = true
	}),
	builtin(ServerProfile, "this server's own, 90 days", 90*day, func(p *Profile) {
		p.NoRevocation, p.ExtendedKeyUsage = true, EKUs{"ServerAuth", "CMCRA"}
	}),
	builtin(ocspProfile, "signs OCSP answers, 30 days", 30*day, func(p *Profile) {
		p.Kind, p.NoRevocation, p.ExtendedKeyUsage = OCSP, true, EKUs{"OCSPSigning"}
	}),
}

// BuiltinProfiles returns the profiles every organisation has.
func BuiltinProfiles() []Profile { return slices.Clone(builtins) }

func builtinNamed(name string) (Profile, bool) {
	for _, p := range builtins {
		if p.ID == name {
			return p, true
		}
	}
	return Profile{}, false
}

// KeyUsages is a list of names of key usages; JSON may have one as a string.
type KeyUsages []string

var keyUsageNames = []string{ // in the order of their bits (RFC 5280, 4.2.1.3)
	"DigitalSignature", "ContentCommitment", "KeyEncipherment", "DataEncipherment", "KeyAgreement",
	"CertSign", "CRLSign", "EncipherOnly", "DecipherOnly",
}

// EKUs is a list of extended key usages, by name or OID.
type EKUs []string

var ekuOIDs = map[string]asn1.ObjectIdentifier{
	"ServerAuth":      {1, 3, 6, 1, 5, 5, 7, 3, 1},
	"ClientAuth":      {1, 3, 6, 1, 5, 5, 7, 3, 2},
	"CodeSigning":     {1, 3, 6, 1, 5, 5, 7, 3, 3},
	"EmailProtection": {1, 3, 6, 1, 5, 5, 7, 3, 4},
	"IPSECEndSystem":  {1, 3, 6, 1, 5, 5, 7, 3, 5},
	"IPSECTunnel":     {1, 3, 6, 1, 5, 5, 7, 3, 6},
	"IPSECUser":       {1, 3, 6, 1, 5, 5, 7, 3, 7},
	"TimeStamping":    {1, 3, 6, 1, 5, 5, 7, 3, 8},
	"OCSPSigning":     {1, 3, 6, 1, 5, 5, 7, 3, 9},
	"CMCRA":           {1, 3, 6, 1, 5, 5, 7, 3, 28},
	"OCFIdentity":     {1, 3, 6, 1, 4, 1, 44924, 1, 6},
}

// ekuOID returns the OID of an extended key usage given by name, in any case, or OID.
func ekuOID(name string) (asn1.ObjectIdentifier, bool) {
	for known, oid := range ekuOIDs {
		if strings.EqualFold(known, name) {
			return oid, true
		}
	}
	return parseOID(name)
}

func parseOID(text string) (asn1.ObjectIdentifier, bool) {
	parts := strings.Split(text, ".")
	if len(parts) < 2 || len(parts) > 32 {
		return nil, false
	}
	oid := make(asn1.ObjectIdentifier, len(parts))
	for i, part := range parts {
		n, err := strconv.ParseUint(part, 10, 31)
		if err != nil {
			return nil, false
		}
		oid[i] = int(n)
	}
	if oid[0] > 2 || oid[0] < 2 && oid[1] > 39 {
		return nil, false
	}
	return oid, true
}

// maxProfileText is the longest text of a profile, in bytes.
const maxProfileText = 256

// Check says what is wrong with a profile, nil if nothing is.
func (p *Profile) Check() error {
	var bad []fault.Field
	note := func(field, message string) { bad = append(bad, fault.Field{Name: field, Message: message}) }
	if p.Name == "" || len(p.Name) > maxProfileText {
		note("name", "must have 1 to 256 characters")
	}
	if len(p.Description) > 1024 {
		note("description", "is too long")
	}
	p.checkValidity(note)
	for _, u := range p.KeyUsage {
		if keyUsageBit(u) < 0 {
			note("key_usage", "unknown key usage "+strconv.Quote(u))
		} else if !p.SignAsCA && (strings.EqualFold(u, "CertSign") || strings.EqualFold(u, "CRLSign")) {
			note("key_usage", u+" is for CAs; set sign_as_ca")
		}
	}
	for _, u := range p.ExtendedKeyUsage {
		if _, ok := ekuOID(u); !ok {
			note("extended_key_usages", "unknown usage "+strconv.Quote(u)+"; give its OID")
		}
	}
	for _, policy := range p.Policies {
		if _, ok := parseOID(policy); !ok {
			note("policies", strconv.Quote(policy)+" is not an OID")
		}
	}
	if len(p.KeyUsage) > len(keyUsageNames) || len(p.ExtendedKeyUsage) > 16 || len(p.Policies) > 16 || len(p.SANs) > 16 {
		note("profile", "a list has too many entries")
	}
	for _, san := range p.SANs {
		if _, _, ok := splitSAN(san); !ok || len(san) > maxProfileText {
			note("sans", strconv.Quote(san)+` must begin with "DNS:", "URI:", "IP:" or "email:"`)
		}
	}
	for _, text := range []string{p.Subject.CommonName, p.Subject.Organization, p.Subject.OrganizationalUnit, p.Subject.State, p.Subject.Locality, p.Subject.SerialNumber} {
		if len(text) > 64 {
			note("subject", "each value has at most 64 characters")
		}
	}
	switch p.Kind {
	case Plain, IDevID, LDevID:
	case OCSP:
		if !p.Builtin {
			note("kind", "ocsp is the server's own")
		}
	default:
		note("kind", `must be "", "idevid" or "ldevid"`)
	}
	if c := p.Crypto; c.Enabled && !c.AllowRSA && !c.AllowECDSA && !c.AllowEd25519 {
		note("crypto_enforcement", "allows no key at all")
	}
	return fault.InvalidFields(bad...)
}

func (p *Profile) checkValidity(note func(field, message string)) {
	switch strings.ToLower(p.Validity.Type) {
	case "duration":
		if p.Validity.Duration < Duration(5*time.Minute) {
			note("validity.duration", "must be at least 5m")
		}
	case "time":
		if p.Validity.Time.IsZero() {
			note("validity.time", "must be given")
		}
	case "indefinite":
	default:
		note("validity.type", "must be Duration, Time or Indefinite")
	}
}

func keyUsageBit(name string) int {
	return slices.IndexFunc(keyUsageNames, func(known string) bool { return strings.EqualFold(known, name) })
}

// splitSAN splits "DNS:value" into its kind and value.
func splitSAN(san string) (kind, value string, ok bool) {
	kind, value, ok = strings.Cut(san, ":")
	if !ok || value == "" {
		return "", "", false
	}
	switch kind {
	case "DNS", "IP", "email":
		return kind, value, true
	case "URI":
		_, err := url.Parse(strings.NewReplacer("{", "", "}", "").Replace(value))
		return kind, value, err == nil
	}
	return "", "", false
}

// notAfter is when a certificate issued now ends, at the latest when its issuer does.
func (p *Profile) notAfter(now, issuer time.Time) (time.Time, error) {
	var end time.Time
	switch strings.ToLower(p.Validity.Type) {
	case "time":
		end = p.Validity.Time.UTC()
	case "indefinite":
		end = Indefinite
	default:
		end = now.Add(time.Duration(p.Validity.Duration))
	}
	if end.Equal(Indefinite) && p.Kind == IDevID {
		return end, nil // an IDevID outlives its CA on purpose (IEEE 802.1AR, 8.7)
	}
	if end.After(issuer) {
		end = issuer
	}
	if !end.After(now) {
		return end, fault.New(fault.Conflict, "the certificate would have ended already: the profile's or the CA's time is over")
	}
	return end.Truncate(time.Second), nil
}

// allows refuses keys the profile does not certify.
func (c *CryptoEnforcement) allows(public any) error {
	if !c.Enabled {
		return nil
	}
	alg := string(AlgorithmOf(public))
	family, bits, _ := strings.Cut(alg, "-")
	size, _ := strconv.Atoi(strings.TrimPrefix(bits, "p"))
	ok := false
	switch family {
	case "rsa":
		ok = c.AllowRSA && (len(c.RSASizes) == 0 || slices.Contains(c.RSASizes, size))
	case "ecdsa":
		ok = c.AllowECDSA && (len(c.ECDSASizes) == 0 || slices.Contains(c.ECDSASizes, size))
	case "ed25519":
		ok = c.AllowEd25519
	}
	if !ok {
		return fault.New(fault.Invalid, "the profile does not certify %s keys; it takes %s", alg, c)
	}
	return nil
}

// String says what is allowed.
func (c *CryptoEnforcement) String() string {
	var kinds []string
	family := func(ok bool, name string, sizes []int) {
		switch {
		case ok && len(sizes) == 0:
			kinds = append(kinds, name)
		case ok:
			for _, size := range sizes {
				kinds = append(kinds, name+"-"+strconv.Itoa(size))
			}
		}
	}
	family(c.AllowECDSA, "ecdsa", c.ECDSASizes)
	family(c.AllowRSA, "rsa", c.RSASizes)
	family(c.AllowEd25519, "ed25519", nil)
	return strings.Join(kinds, ", ")
}

// CreateProfile adds a profile to the actor's organisation. It is Invalid if it
// says something that cannot be, Conflict if the name is taken.
func (s *Service) CreateProfile(ctx context.Context, p Profile) (Profile, error) {
	p.Org, p.Builtin, p.CreatedAt = orgOf(ctx), false, s.Now().UTC()
	if err := p.Check(); err != nil {
		return p, err
	}
	if _, taken := builtinNamed(p.Name); taken {
		return p, fault.New(fault.Conflict, "there is a built-in profile of this name")
	}
	p.ID = id.New(p.CreatedAt)
	return p, s.DB.Update(ctx, func(tx store.Tx) error {
		if err := profiles.Insert(tx, p.ID, p); err != nil {
			return err
		}
		return s.Audit.Append(ctx, tx, audit.Entry{Action: "profile.create", Target: p.ID, Org: p.Org, Detail: map[string]string{"name": p.Name}})
	})
}

// Profile returns a profile of the actor's organisation by id or name, or a
// NotFound fault.
func (s *Service) Profile(ctx context.Context, name string) (p Profile, err error) {
	if p, ok := builtinNamed(name); ok {
		return p, nil
	}
	err = s.DB.View(ctx, func(tx store.Tx) error {
		p, err = profileIn(tx, orgOf(ctx), name)
		return err
	})
	return p, err
}

func profileIn(tx store.Tx, org, name string) (Profile, error) {
	if p, ok := builtinNamed(name); ok {
		return p, nil
	}
	if id.Valid(name) {
		p, err := profiles.Get(tx, name)
		if err == nil && p.Org != org {
			return Profile{}, notFound("profile")
		}
		return p, err
	}
	return profiles.GetBy(tx, "name", store.TermOf(org, name))
}

// Profiles lists the built-in profiles and those of the actor's organisation.
func (s *Service) Profiles(ctx context.Context, r page.Request) (p page.Page[Profile], err error) {
	err = s.DB.View(ctx, func(tx store.Tx) error {
		p, err = profiles.PageBy(tx, "org", store.TermOf(orgOf(ctx)), r)
		return err
	})
	if r.After == "" && err == nil {
		p.Items = append(BuiltinProfiles(), p.Items...)
	}
	return p, err
}

// UpdateProfile replaces a profile whole; what was issued by it stays as it is.
func (s *Service) UpdateProfile(ctx context.Context, name string, p Profile) (Profile, error) {
	if _, ok := builtinNamed(name); ok {
		return p, fault.New(fault.Forbidden, "a built-in profile does not change; make one of your own")
	}
	if err := p.Check(); err != nil {
		return p, err
	}
	var saved Profile
	err := s.DB.Update(ctx, func(tx store.Tx) error {
		old, err := profileIn(tx, orgOf(ctx), name)
		if err != nil {
			return err
		}
		saved = p
		saved.ID, saved.Org, saved.CreatedAt, saved.Builtin = old.ID, old.Org, old.CreatedAt, false
		if err := profiles.Set(tx, saved.ID, saved); err != nil {
			return err
		}
		return s.Audit.Append(ctx, tx, audit.Entry{Action: "profile.update", Target: saved.ID, Org: saved.Org, Detail: map[string]string{"name": saved.Name}})
	})
	return saved, err
}

// DeleteProfile removes a profile. What names it falls back on no other: issuing
// by it fails from then on.
func (s *Service) DeleteProfile(ctx context.Context, name string) error {
	if _, ok := builtinNamed(name); ok {
		return fault.New(fault.Forbidden, "a built-in profile cannot be deleted")
	}
	return s.DB.Update(ctx, func(tx store.Tx) error {
		p, err := profileIn(tx, orgOf(ctx), name)
		if err != nil {
			return err
		}
		if _, err := profiles.Delete(tx, p.ID); err != nil {
			return err
		}
		return s.Audit.Append(ctx, tx, audit.Entry{Action: "profile.delete", Target: p.ID, Org: p.Org, Detail: map[string]string{"name": p.Name}})
	})
}
