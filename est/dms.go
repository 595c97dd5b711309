package est

import (
	"context"
	"encoding/json"
	"regexp"
	"slices"
	"strings"
	"time"

	"keystead/audit"
	"keystead/devices"
	"keystead/fault"
	"keystead/id"
	"keystead/identity"
	"keystead/page"
	"keystead/pki"
	"keystead/store"
)

// DMS is an enrolment profile: what Lamassu calls a device management service,
// and EST a label.
type DMS struct {
	ID        string          `json:"id"`
	Org       string          `json:"-" cbor:"org"`
	Name      string          `json:"name"`
	Metadata  json.RawMessage `json:"metadata"`
	CreatedAt time.Time       `json:"creation_ts"`
	Settings  Settings        `json:"settings"`

	// Secrets are what the settings hold that must not be shown, sealed; the
	// settings themselves say [Kept] instead.
	Secrets []byte `json:"-" cbor:"secrets"`
}

// Kept stands in settings for a secret that is there and not shown. Sent back in
// an update it leaves the secret as it is.
const Kept = "********"

// DefaultDMS is the id of the DMS that answers where no label is given.
const DefaultDMS = "default"

// Settings are what a DMS does, in the JSON that Lamassu's clients write, with
// additions.
type Settings struct {
	ServerKeygen       KeygenSettings `json:"server_keygen_settings"`
	Enrollment         Enrollment     `json:"enrollment_settings"`
	Reenrollment       Reenrollment   `json:"reenrollment_settings"`
	CADistribution     CADistribution `json:"ca_distribution_settings"`
	IssuanceProfileID  string         `json:"issuance_profile_id"`
	IssuanceProfile    *pki.Profile   `json:"issuance_profile"`
	IdentityMapping    Mapping        `json:"identity_mapping,omitzero"`
	Base64             string         `json:"base64,omitempty"` // as in Config
	MaxBootstrapPeriod pki.Duration   `json:"max_bootstrap_validity,omitempty"`
}

// KeygenSettings say which keys the server makes for devices.
type KeygenSettings struct {
	Enabled bool    `json:"enabled"`
	Key     KeySpec `json:"key"`
}

// KeySpec is a kind and size of key.
type KeySpec struct {
	Type string `json:"type"`
	Bits int    `json:"bits"`
}

// AuthMode is how clients prove that they may enrol.
type AuthMode string

// The modes.
const (
	ClientCertificate  AuthMode = "CLIENT_CERTIFICATE"
	NoAuth             AuthMode = "NO_AUTH"
	ExternalWebhook    AuthMode = "EXTERNAL_WEBHOOK"
	CertificateAndHook AuthMode = "CLIENT_CERTIFICATE_AND_EXTERNAL_WEBHOOK"
	EnrolmentToken     AuthMode = "ENROLMENT_TOKEN"
	JWT                AuthMode = "JWT"
	PSK                AuthMode = "PSK" // on CoAP
)

var authModes = []AuthMode{ClientCertificate, NoAuth, ExternalWebhook, CertificateAndHook, EnrolmentToken, JWT, PSK}

// AuthSettings are the authentication of one of enrolment and re-enrolment.
type AuthSettings struct {
	AuthMode AuthMode `json:"auth_mode"`
	// AdditionalModes are tried too, by what the client shows.
	AdditionalModes   []AuthMode          `json:"additional_auth_modes,omitempty"`
	ClientCertificate CertificateSettings `json:"client_certificate_settings"`
	Webhook           Webhook             `json:"external_webhook_settings"`
	JWT               JWTSettings         `json:"jwt_settings,omitzero"`
	// ChallengePassword is what that attribute of requests means:
	// "channel_binding", "enrolment_token" or "ignore".
	ChallengePassword string `json:"challenge_password,omitempty"`
	// ChannelBinding is "off", "if_present" or "required".
	ChannelBinding string `json:"channel_binding,omitempty"`
}

func (a *AuthSettings) allows(mode AuthMode) bool {
	return a.AuthMode == mode || slices.Contains(a.AdditionalModes, mode)
}

// CertificateSettings say which certificates let a client enrol.
type CertificateSettings struct {
	ValidationCAs []string `json:"validation_cas"`
	ChainLevel    int      `json:"chain_level_validation"`
	AllowExpired  bool     `json:"allow_expired"`
	// RevocationCheck overrules that of the CAs: "off", "soft" or "hard".
	RevocationCheck pki.RevocationCheck `json:"revocation_check,omitempty"`
}

// JWTSettings say which claims of a token matter.
type JWTSettings struct {
	Claim  string            `json:"device_claim,omitempty"` // names the device; "sub" if empty
	Claims map[string]string `json:"require,omitempty"`      // claims that must have these values
	Labels map[string]string `json:"labels,omitempty"`       // labels of the device, by claim
}

// Enrollment is how devices are enrolled for the first time.
type Enrollment struct {
	Protocol     string           `json:"protocol"`
	EST          AuthSettings     `json:"est_rfc7030_settings"`
	Provisioning Provisioning     `json:"device_provisioning_profile"`
	EnrollmentCA string           `json:"enrollment_ca"`
	Replaceable  bool             `json:"enable_replaceable_enrollment"`
	Registration RegistrationMode `json:"registration_mode"`
	VerifyCSR    *bool            `json:"verify_csr_signature"`
	// IdentityBinding ties the client certificate to the name asked for:
	// "none", "cn_equals", "cn_prefix" or "serial_number".
	IdentityBinding string `json:"identity_binding,omitempty"`
	ManualApproval  bool   `json:"manual_approval,omitempty"`
	// Usage asks for clientAuth in the certificates of clients; those of
	// manufacturers (IDevID) often lack it. "client_auth" or "any".
	Usage string `json:"client_certificate_usage,omitempty"`
}

// RegistrationMode says what becomes of a device nobody has announced.
type RegistrationMode string

// The modes.
const (
	JITP            RegistrationMode = "JITP"
	PreRegistration RegistrationMode = "PRE_REGISTRATION"
)

// Provisioning is what a device made by enrolling is given.
type Provisioning struct {
	Icon      string            `json:"icon"`
	IconColor string            `json:"icon_color"`
	Metadata  map[string]any    `json:"metadata"`
	Tags      []string          `json:"tags"`
	Labels    map[string]string `json:"labels,omitempty"`
}

// Reenrollment is how devices renew.
type Reenrollment struct {
	EST           AuthSettings `json:"est_rfc7030_settings"`
	AdditionalCAs []string     `json:"additional_validation_cas"`
	RevokeOn      bool         `json:"revoke_on_reenrollment"`
	// Revoke is when the certificate before is revoked: "never", "on_use" of the new
	// one, or "immediately".
	Revoke         string        `json:"revoke_previous,omitempty"`
	Delta          *pki.Duration `json:"reenrollment_delta,omitempty"`
	ExpiredRenewal bool          `json:"enable_expired_renewal"`
	ExpiredGrace   pki.Duration  `json:"expired_renewal_grace,omitempty"` // 0 is without end
	// How long before its end a certificate is to be renewed, and expires soon; 0 for never.
	Preventive pki.Duration `json:"preventive_delta,omitempty"`
	Critical   pki.Duration `json:"critical_delta,omitempty"`
}

// When the certificate before is revoked.
const (
	revokeNever = "never"
	revokeOnUse = "on_use"
	revokeNow   = "immediately"
)

func (r *Reenrollment) revoke() string {
	switch {
	case r.Revoke != "":
		return r.Revoke
	case r.RevokeOn:
		return revokeNow
	}
	return revokeNever
}

// remind notes in a certificate about to be recorded when it is to be renewed.
func (r *Reenrollment) remind(c *pki.Certificate) {
	c.Remind(time.Duration(r.Preventive), time.Duration(r.Critical))
}

// CADistribution says which certificates /cacerts hands out.
type CADistribution struct {
	IncludeSystemCA     bool     `json:"include_system_ca"`
	IncludeEnrollmentCA bool     `json:"include_enrollment_ca"`
	ManagedCAs          []string `json:"managed_cas"`
}

// Mapping says what of a request names the device: each a source such as
// "common_name", "serial_number", "san_uri", "san_dns", "hardware_module",
// "organization", "organizational_unit", "certificate_serial" or "issuer".
type Mapping struct {
	Device  string            `json:"device,omitempty"`  // "common_name" if empty
	Aliases []string          `json:"aliases,omitempty"` // further names
	Labels  map[string]string `json:"labels,omitempty"`  // labels, by source
}

var dmsTable = store.NewTable("DMS",
	store.Index[DMS]{Name: "org", Counted: true, Terms: func(d DMS) []store.Term { return store.Terms(d.Org) }}).Watched()

// Limits on a DMS.
const (
	maxDMSMetadata = 16 << 10
	maxDMSList     = 32
)

var (
	dmsID = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._~-]{0,63}$`)
	// reserved are no ids of DMSs: they are operations (RFC 7030, 3.2.2; RFC 9148, 5.1).
	reserved = []string{"cacerts", "simpleenroll", "simplereenroll", "fullcmc", "serverkeygen", "csrattrs", "crts", "sen", "sren", "skg", "skc", "att", "est"}
)

// check says everything that is wrong with a DMS, by the path of the field.
func (s *Service) check(ctx context.Context, d *DMS) error {
	var bad []fault.Field
	note := func(field, message string) { bad = append(bad, fault.Field{Name: field, Message: message}) }
	switch {
	case !dmsID.MatchString(d.ID):
		note("id", "must have 1 to 64 letters, digits, dots, dashes and underscores")
	case slices.Contains(reserved, strings.ToLower(d.ID)):
		note("id", "is the name of an EST operation")
	}
	if d.Name == "" || len(d.Name) > 256 {
		note("name", "must have 1 to 256 bytes")
	}
	if len(d.Metadata) > maxDMSMetadata {
		note("metadata", "is too long")
	}
	e := &d.Settings.Enrollment
	switch e.Protocol {
	case "":
		e.Protocol = "EST_RFC7030"
	case "EST_RFC7030":
	default:
		note("settings.enrollment_settings.protocol", "DMS uses EST protocol: must be EST_RFC7030")
	}
	switch e.Registration {
	case "":
		e.Registration = JITP
	case JITP, PreRegistration:
	default:
		note("settings.enrollment_settings.registration_mode", "must be JITP or PRE_REGISTRATION")
	}
	oneOf(note, "settings.enrollment_settings.identity_binding", e.IdentityBinding, "", "none", "cn_equals", "cn_prefix", "serial_number")
	oneOf(note, "settings.enrollment_settings.client_certificate_usage", e.Usage, "", "client_auth", "any")
	r := &d.Settings.Reenrollment
	oneOf(note, "settings.reenrollment_settings.revoke_previous", r.Revoke, "", revokeNever, revokeOnUse, revokeNow)
	if r.Preventive < 0 || r.Critical < 0 {
		note("settings.reenrollment_settings.preventive_delta", "must not be negative, nor critical_delta")
	}
	if r.Preventive > 0 && r.Critical > r.Preventive {
		note("settings.reenrollment_settings.critical_delta", "must not be longer than preventive_delta: it is the later of the two")
	}
	if r.EST.AuthMode == "" && e.EST.AuthMode != "" {
		r.EST.AuthMode = ClientCertificate
	}
	s.checkAuth(ctx, d.Org, &e.EST, "settings.enrollment_settings.est_rfc7030_settings", note)
	s.checkAuth(ctx, d.Org, &r.EST, "settings.reenrollment_settings.est_rfc7030_settings", note)
	s.checkCAs(ctx, d, note)
	s.checkProfile(ctx, d, note)
	oneOf(note, "settings.base64", d.Settings.Base64, "", "auto", "none", "64")
	if _, err := d.Settings.ServerKeygen.algorithm(); d.Settings.ServerKeygen.Enabled && err != nil {
		note("settings.server_keygen_settings.key", fault.Message(err))
	}
	d.Settings.IdentityMapping.check(note)
	if len(e.Provisioning.Tags) > maxDMSList || len(e.Provisioning.Labels) > maxDMSList || len(e.Provisioning.Metadata) > maxDMSList {
		note("settings.enrollment_settings.device_provisioning_profile", "has too many entries")
	}
	return fault.InvalidFields(bad...)
}

func oneOf(note func(field, message string), field, value string, words ...string) {
	if !slices.Contains(words, value) {
		note(field, "must be "+strings.Join(slices.DeleteFunc(slices.Clone(words), func(w string) bool { return w == "" }), ", "))
	}
}

func (s *Service) checkAuth(ctx context.Context, org string, a *AuthSettings, at string, note func(field, message string)) {
	for i, mode := range append([]AuthMode{a.AuthMode}, a.AdditionalModes...) {
		field := at + ".auth_mode"
		if i > 0 {
			field = at + ".additional_auth_modes"
		}
		switch {
		case !slices.Contains(authModes, mode):
			note(field, "DMS auth mode not supported: must be CLIENT_CERTIFICATE, EXTERNAL_WEBHOOK, CLIENT_CERTIFICATE_AND_EXTERNAL_WEBHOOK, ENROLMENT_TOKEN, JWT, PSK or NO_AUTH")
		case mode == NoAuth && !s.Config.AllowInsecureNoAuth:
			note(field, "NO_AUTH enrols whoever asks; set est.allow_insecure_noauth in the configuration if that is meant")
		case mode == ExternalWebhook || mode == CertificateAndHook:
			a.Webhook.check(at+".external_webhook_settings", note)
		}
	}
	if len(a.ClientCertificate.ValidationCAs) > maxDMSList {
		note(at+".client_certificate_settings.validation_cas", "has too many entries")
		return
	}
	for _, ca := range a.ClientCertificate.ValidationCAs {
		if _, err := s.PKI.CA(systemIn(ctx, org), pki.CAID(ca)); err != nil {
			note(at+".client_certificate_settings.validation_cas", "no such CA: "+quoted(ca))
		}
	}
	if a.ClientCertificate.RevocationCheck.Validate() != nil {
		note(at+".client_certificate_settings.revocation_check", "must be off, soft, hard")
	}
	oneOf(note, at+".challenge_password", a.ChallengePassword, "", "channel_binding", "enrolment_token", "ignore")
	oneOf(note, at+".channel_binding", a.ChannelBinding, "", "off", "if_present", "required")
	if a.ChannelBinding == "required" && (a.ChallengePassword == "enrolment_token" || a.ChallengePassword == "ignore") {
		note(at+".channel_binding", "cannot be required where challenge_password is "+a.ChallengePassword+": the challengePassword of a request is where it stands")
	}
}

func quoted(s string) string {
	if len(s) > 80 {
		s = s[:80]
	}
	b, err := json.Marshal(s)
	if err != nil {
		return "?"
	}
	return string(b)
}

func (s *Service) checkCAs(ctx context.Context, d *DMS, note func(field, message string)) {
	known := func(field, ca string, issues bool) {
		record, err := s.PKI.CA(systemIn(ctx, d.Org), pki.CAID(ca))
		switch {
		case err != nil:
			note(field, "no such CA: "+quoted(ca))
		case issues && record.Key == "":
			note(field, "the CA only validates; its key is not here")
		}
	}
	if ca := d.Settings.Enrollment.EnrollmentCA; ca != "" {
		known("settings.enrollment_settings.enrollment_ca", ca, true)
	}
	if len(d.Settings.Reenrollment.AdditionalCAs)+len(d.Settings.CADistribution.ManagedCAs) > 2*maxDMSList {
		note("settings", "has too many CAs")
		return
	}
	for _, ca := range d.Settings.Reenrollment.AdditionalCAs {
		known("settings.reenrollment_settings.additional_validation_cas", ca, false)
	}
	for _, ca := range d.Settings.CADistribution.ManagedCAs {
		known("settings.ca_distribution_settings.managed_cas", ca, false)
	}
}

func (s *Service) checkProfile(ctx context.Context, d *DMS, note func(field, message string)) {
	if name := d.Settings.IssuanceProfileID; name != "" {
		if p, err := s.PKI.Profile(systemIn(ctx, d.Org), name); err != nil {
			note("settings.issuance_profile_id", "no such profile: "+quoted(name))
		} else if p.SignAsCA {
			note("settings.issuance_profile_id", "is a profile for CAs")
		}
	}
	if p := d.Settings.IssuanceProfile; p != nil {
		if p.Name == "" {
			p.Name = d.ID
		}
		p.Builtin = false
		if err := p.Check(); err != nil {
			note("settings.issuance_profile", fault.Message(err))
		}
	}
}

// CreateDMS adds an enrolment profile to the actor's organisation. It is
// Invalid, with each fault, if the settings cannot work; Conflict if the id is taken.
func (s *Service) CreateDMS(ctx context.Context, d DMS) (DMS, error) {
	now := s.Now().UTC()
	d.Org, d.CreatedAt = identity.OrgOf(ctx), now
	if d.ID == "" {
		d.ID = id.New(now)
	}
	return s.insertDMS(ctx, d)
}

func (s *Service) insertDMS(ctx context.Context, d DMS) (DMS, error) {
	if err := s.check(ctx, &d); err != nil {
		return d, err
	}
	if err := s.sealSecrets(&d, DMS{}); err != nil {
		return d, err
	}
	return d, s.DB.Update(ctx, func(tx store.Tx) error {
		if err := dmsTable.Insert(tx, d.ID, d); err != nil {
			return err
		}
		return s.Audit.Append(ctx, tx, audit.Entry{Action: "dms.create", Target: d.ID, Org: d.Org, Detail: s.detail(&d)})
	})
}

func (s *Service) detail(d *DMS) map[string]string {
	return map[string]string{
		"name": d.Name, "auth_mode": string(d.Settings.Enrollment.EST.AuthMode), "reenrollment_auth_mode": string(d.Settings.Reenrollment.EST.AuthMode),
	}
}

// EnsureDefault makes the DMS that answers where no label is given, if it is not
// there: by enrolment token or pre-shared key, and the device's own certificate
// from then on.
func (s *Service) EnsureDefault(ctx context.Context, org string) error {
	_, err := s.labelled(ctx, "")
	if !fault.Is(err, fault.NotFound) {
		return err
	}
	yes := true
	_, err = s.insertDMS(systemIn(ctx, org), DMS{
		ID: DefaultDMS, Org: org, Name: "Default", CreatedAt: s.Now().UTC(),
		Settings: Settings{
			ServerKeygen: KeygenSettings{Enabled: true, Key: KeySpec{"ECDSA", 256}},
			Enrollment: Enrollment{
				EST:       AuthSettings{AuthMode: EnrolmentToken, AdditionalModes: []AuthMode{PSK}, ChannelBinding: "if_present"},
				VerifyCSR: &yes, Registration: JITP,
			},
			Reenrollment:   Reenrollment{EST: AuthSettings{AuthMode: ClientCertificate, ChannelBinding: "if_present"}, Revoke: revokeOnUse},
			CADistribution: CADistribution{IncludeEnrollmentCA: true, IncludeSystemCA: true},
		},
	})
	return err
}

// DMS returns an enrolment profile of the actor's organisation, or a NotFound fault.
func (s *Service) DMS(ctx context.Context, dms string) (d DMS, err error) {
	err = s.DB.View(ctx, func(tx store.Tx) error {
		d, err = dmsIn(ctx, tx, dms)
		return err
	})
	return d, err
}

func dmsIn(ctx context.Context, tx store.Tx, dms string) (DMS, error) {
	d, err := dmsTable.Get(tx, dms)
	if err == nil && d.Org != identity.OrgOf(ctx) {
		return DMS{}, fault.New(fault.NotFound, "no such DMS")
	}
	return d, err
}

// labelled returns the DMS a path names, of whatever organisation.
func (s *Service) labelled(ctx context.Context, label string) (d DMS, err error) {
	if label == "" {
		label = DefaultDMS
	}
	d, err = s.profiles.Latest(ctx, s.DB, dmsTable, label)
	if fault.Is(err, fault.NotFound) {
		return d, fault.New(fault.NotFound, "no such DMS: %s", quoted(label))
	}
	return d, err
}

// DMSs lists the enrolment profiles of the actor's organisation.
func (s *Service) DMSs(ctx context.Context, r page.Request) (p page.Page[DMS], err error) {
	err = s.DB.View(ctx, func(tx store.Tx) error {
		p, err = dmsTable.PageBy(tx, "org", store.TermOf(identity.OrgOf(ctx)), r)
		return err
	})
	return p, err
}

// CountDMSs returns how many the actor's organisation has.
func (s *Service) CountDMSs(ctx context.Context) (n int, err error) {
	err = s.DB.View(ctx, func(tx store.Tx) error {
		n, err = dmsTable.Count(tx, "org", store.TermOf(identity.OrgOf(ctx)))
		return err
	})
	return n, err
}

// UpdateDMS replaces the name, metadata and settings of an enrolment profile. It
// holds from the next request on.
func (s *Service) UpdateDMS(ctx context.Context, d DMS) (DMS, error) {
	old, err := s.DMS(ctx, d.ID)
	if err != nil {
		return d, err
	}
	d.Org, d.CreatedAt = old.Org, old.CreatedAt
	if err := s.check(ctx, &d); err != nil {
		return d, err
	}
	if err := s.sealSecrets(&d, old); err != nil {
		return d, err
	}
	return d, s.DB.Update(ctx, func(tx store.Tx) error {
		if _, err := dmsIn(ctx, tx, d.ID); err != nil {
			return err
		}
		if err := dmsTable.Set(tx, d.ID, d); err != nil {
			return err
		}
		return s.Audit.Append(ctx, tx, audit.Entry{Action: "dms.update", Target: d.ID, Org: d.Org, Detail: s.detail(&d)})
	})
}

// DeleteDMS removes an enrolment profile. Devices that came in by it stay, and
// can enrol and renew through another only once it is named on them; it is a
// Conflict while there are tokens for it that can still be used.
func (s *Service) DeleteDMS(ctx context.Context, dms string, force bool) error {
	if dms == DefaultDMS {
		return fault.New(fault.Conflict, "the default DMS answers where no label is given and stays; change its settings")
	}
	return s.DB.Update(ctx, func(tx store.Tx) error {
		d, err := dmsIn(ctx, tx, dms)
		if err != nil {
			return err
		}
		n, err := owned.Count(tx, "dms", store.TermOf(d.ID))
		if err != nil {
			return err
		}
		if n > 0 && !force {
			return fault.New(fault.Conflict, "%d devices were enrolled through this DMS; add force=true to delete it all the same", n)
		}
		if _, err := dmsTable.Delete(tx, d.ID); err != nil {
			return err
		}
		return s.Audit.Append(ctx, tx, audit.Entry{Action: "dms.delete", Target: d.ID, Org: d.Org, Detail: map[string]string{"name": d.Name}})
	})
}

// ownership says that a device came in by a DMS.
type ownership struct {
	DMS    string `cbor:"dms"`
	Device string `cbor:"device"`
}

// ownerOf is the DMS that last enrolled a device, "" if none has.
func ownerOf(tx store.Tx, d *devices.Device) (string, error) {
	o, err := owned.Get(tx, d.ID)
	if fault.Is(err, fault.NotFound) {
		return d.Profile, nil
	}
	return o.DMS, err
}

var owned = store.NewTable("enrolled device",
	store.Index[ownership]{Name: "dms", Counted: true, Only: true, Terms: func(o ownership) []store.Term { return store.Terms(o.DMS) }})
