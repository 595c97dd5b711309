package accounts

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"net/netip"
	"net/url"
	"time"

	"github.com/go-webauthn/webauthn/protocol"
	"github.com/go-webauthn/webauthn/webauthn"

	"keystead/fault"
	"keystead/id"
	"keystead/identity"
	"keystead/store"
	"keystead/throttle"
)

// Passkey is a key pair that an authenticator of a user holds (Web
// Authentication, Level 3). Here is its public half.
type Passkey struct {
	ID         string    `cbor:"id"`
	User       string    `cbor:"user"`
	Name       string    `cbor:"name,omitempty"`
	Credential []byte    `cbor:"cred"`            // what the authenticator calls it
	Key        []byte    `cbor:"key"`             // in COSE
	Count      uint32    `cbor:"count,omitempty"` // of signatures, as far as the authenticator counts them
	Model      []byte    `cbor:"aaguid,omitempty"`
	Transports []string  `cbor:"via,omitempty"`
	Syncs      bool      `cbor:"syncs,omitempty"`  // it may be on several devices of the user
	Synced     bool      `cbor:"synced,omitempty"` // it is
	CreatedAt  time.Time `cbor:"created"`
	LastUsedAt time.Time `cbor:"used,omitzero"`
}

var passkeyTable = store.NewTable("passkey",
	store.Index[Passkey]{Name: "user", Counted: true, Terms: func(p Passkey) []store.Term { return store.Terms(p.User) }},
	store.Index[Passkey]{Name: "credential", Unique: true, Terms: func(p Passkey) []store.Term {
		return store.Terms(base64.RawURLEncoding.EncodeToString(p.Credential))
	}},
)

// challenge is one that was answered. None is answered twice.
type challenge struct {
	ID      string    `cbor:"id"` // its hash
	Expires time.Time `cbor:"expires"`
}

var challengeTable = store.NewTable("answered challenge",
	store.Index[challenge]{Name: "expires", Terms: func(c challenge) []store.Term { return store.Terms("", c.Expires.UTC().Format(time.RFC3339)) }},
)

const (
	maxPasskeys = 20              // of a user
	ceremonyTTL = 5 * time.Minute // from the challenge to the answer
	maxAnswer   = 32 << 10        // bytes of an authenticator's answer
)

// Ceremony is what an authenticator is asked. State comes back with its answer;
// it says what the answer must be to, and nobody else can make or change one.
type Ceremony struct {
	State   string          `json:"state"`
	Options json.RawMessage `json:"options"` // for navigator.credentials; null where only a code will do
}

// purpose is what a ceremony is for; none passes for another.
type purpose string

const (
	toRegister purpose = "register"
	toLogIn    purpose = "log in"        // without a password: the authenticator verifies its user
	toConfirm  purpose = "second factor" // after a password
)

// state is what a ceremony rests on.
type state struct {
	User    string               `json:"user,omitempty"`
	Epoch   uint64               `json:"epoch,omitempty"` // of the user when it began
	Until   time.Time            `json:"until"`
	Session webauthn.SessionData `json:"session"`
}

// party returns this server as a relying party. Browsers know those by name only.
func (s *Service) party() (*webauthn.WebAuthn, error) {
	u, err := url.Parse(s.PublicURL)
	if err != nil || u.Hostname() == "" {
		return nil, fault.New(fault.Conflict, "passkeys need public_url to be set")
	}
	if _, err := netip.ParseAddr(u.Hostname()); err == nil {
		return nil, fault.New(fault.Conflict, "passkeys need public_url to have a name, not an address: browsers bind them to it")
	}
	p, err := webauthn.New(&webauthn.Config{
		RPID: u.Hostname(), RPDisplayName: "Keystead", RPOrigins: []string{u.Scheme + "://" + u.Host},
		AttestationPreference: protocol.PreferNoAttestation,
		AuthenticatorSelection: protocol.AuthenticatorSelection{
			ResidentKey: protocol.ResidentKeyRequirementPreferred, UserVerification: protocol.VerificationPreferred,
		},
	})
	if err != nil {
		return nil, fault.Wrap(fault.Conflict, err, "passkeys need public_url to have a name that browsers take")
	}
	return p, nil
}

// holder is a user with its passkeys, as the library asks for it.
type holder struct {
	User
	keys []Passkey
}

// WebAuthnID is the user handle: the id of the account, which tells nothing of the person.
func (h holder) WebAuthnID() []byte { return []byte(h.ID) }

// WebAuthnName is shown where somebody chooses among passkeys.
func (h holder) WebAuthnName() string { return h.title() }

// WebAuthnDisplayName is the same.
func (h holder) WebAuthnDisplayName() string { return h.title() }

// WebAuthnCredentials are the public halves.
func (h holder) WebAuthnCredentials() []webauthn.Credential {
	list := make([]webauthn.Credential, len(h.keys))
	for i, k := range h.keys {
		list[i] = k.credential()
	}
	return list
}

func (p Passkey) credential() webauthn.Credential {
	c := webauthn.Credential{
		ID: p.Credential, PublicKey: p.Key, Flags: webauthn.CredentialFlags{BackupEligible: p.Syncs, BackupState: p.Synced},
		Authenticator: webauthn.Authenticator{AAGUID: p.Model, SignCount: p.Count},
	}
	for _, t := range p.Transports {
		c.Transport = append(c.Transport, protocol.AuthenticatorTransport(t))
	}
	return c
}

func (s *Service) holder(ctx context.Context, userID string) (h holder, err error) {
	err = s.DB.View(ctx, func(tx store.Tx) error {
		if h.User, err = s.alive(tx, userID); err != nil {
			return err
		}
		h.keys, err = all(tx, passkeyTable, "user", store.TermOf(userID))
		return err
	})
	return h, err
}

// seal makes a ceremony of what was asked. options is nil where nothing is.
func (s *Service) seal(p purpose, x state, options any) (c Ceremony, err error) {
	x.Until = s.Now().UTC().Add(ceremonyTTL)
	b, err := json.Marshal(x)
	if err != nil {
		return c, err
	}
	c.State = base64.RawURLEncoding.EncodeToString(s.Box.Seal(ceremonyPlace(p), b))
	c.Options, err = json.Marshal(options)
	return c, err
}

func ceremonyPlace(p purpose) string { return passkeyTable.Name() + "/" + string(p) }

var errCeremony = fault.New(fault.Unauthenticated, "this was not asked here, was answered before, or took too long; begin again")

func (s *Service) open(p purpose, text string) (x state, err error) {
	if len(text) > maxAnswer {
		return x, errCeremony
	}
	sealed, err := base64.RawURLEncoding.DecodeString(text)
	if err != nil {
		return x, errCeremony
	}
	b, err := s.Box.Open(ceremonyPlace(p), sealed)
	if err != nil || json.Unmarshal(b, &x) != nil || !s.Now().Before(x.Until) {
		return x, errCeremony
	}
	return x, nil
}

// spend takes a challenge, once, as part of tx.
func (x state) spend(tx store.Tx) error {
	sum := sha256.Sum256([]byte(x.Session.Challenge))
	spent := challenge{hex.EncodeToString(sum[:]), x.Until}
	err := challengeTable.Insert(tx, spent.ID, spent)
	if fault.Is(err, fault.Conflict) {
		return errCeremony
	}
	return err
}

// BeginPasskey asks for a new passkey of the acting user, who has logged in, with
// a fresh second factor if it has one.
func (s *Service) BeginPasskey(ctx context.Context) (Ceremony, error) {
	u, err := s.selfInteractive(ctx)
	if err != nil {
		return Ceremony{}, err
	}
	party, err := s.party()
	if err != nil {
		return Ceremony{}, err
	}
	h, err := s.holder(ctx, u.ID)
	if err != nil {
		return Ceremony{}, err
	}
	if len(h.keys) >= maxPasskeys {
		return Ceremony{}, fault.New(fault.TooLarge, "the user has %d passkeys, the most allowed; delete some first", len(h.keys))
	}
	known := webauthn.Credentials(h.WebAuthnCredentials()).CredentialDescriptors()
	options, session, err := party.BeginRegistration(h, webauthn.WithExclusions(known))
	if err != nil {
		return Ceremony{}, err
	}
	return s.seal(toRegister, state{User: u.ID, Epoch: u.Epoch, Session: *session}, options)
}

// FinishPasskey takes the authenticator's answer. With the first second factor
// of a user it returns recovery codes, and all login keys and sessions end.
func (s *Service) FinishPasskey(ctx context.Context, text, name string, answer []byte) (p Passkey, codes []string, err error) {
	u, err := s.selfInteractive(ctx)
	if err != nil {
		return p, nil, err
	}
	if err := checkPasskeyName(name); err != nil {
		return p, nil, err
	}
	x, err := s.open(toRegister, text)
	if err != nil {
		return p, nil, err
	}
	if x.User != u.ID || x.Epoch != u.Epoch {
		return p, nil, errCeremony
	}
	party, err := s.party()
	if err != nil {
		return p, nil, err
	}
	if len(answer) > maxAnswer {
		return p, nil, errAnswer
	}
	parsed, err := protocol.ParseCredentialCreationResponseBytes(answer)
	if err != nil {
		return p, nil, fault.Wrap(fault.Invalid, err, "the answer is not one of an authenticator")
	}
	c, err := party.CreateCredential(holder{User: u}, x.Session, parsed)
	if err != nil {
		return p, nil, fault.Wrap(fault.Invalid, err, "the authenticator's answer does not fit the question: it may be for another site, or another user")
	}
	now := s.Now().UTC()
	p = Passkey{
		ID: id.New(now), User: u.ID, Name: name, Credential: c.ID, Key: c.PublicKey, Count: c.Authenticator.SignCount, Model: c.Authenticator.AAGUID,
		Syncs: c.Flags.BackupEligible, Synced: c.Flags.BackupState, CreatedAt: now,
	}
	for _, t := range c.Transport {
		p.Transports = append(p.Transports, string(t))
	}
	if p.Name == "" {
		p.Name = "passkey of " + now.Format(time.DateOnly)
	}
	fresh, hashes := newCodes()
	err = s.DB.Update(ctx, func(tx store.Tx) error {
		codes, err = s.addPasskey(ctx, tx, x, p, fresh, hashes)
		return err
	})
	if err != nil {
		return Passkey{}, nil, err
	}
	return p, codes, nil
}

var errAnswer = fault.New(fault.Invalid, "the answer is not one of an authenticator")

func checkPasskeyName(name string) error {
	if len(name) > 256 || !plain(name) {
		return fault.InvalidFields(fault.Field{Name: "name", Message: "at most 256 bytes of text"})
	}
	return nil
}

// addPasskey stores a passkey, and returns the codes if they count from now on.
func (s *Service) addPasskey(ctx context.Context, tx store.Tx, x state, p Passkey, codes []string, hashes [][]byte) ([]string, error) {
	if err := x.spend(tx); err != nil {
		return nil, err
	}
	u, err := s.alive(tx, p.User)
	if err != nil {
		return nil, err
	}
	if u.Epoch != x.Epoch {
		return nil, errCeremony
	}
	n, err := passkeyTable.Count(tx, "user", store.TermOf(p.User))
	if err != nil {
		return nil, err
	}
	if n >= maxPasskeys {
		return nil, fault.New(fault.TooLarge, "the user has %d passkeys, the most allowed; delete some first", n)
	}
	if err := passkeyTable.Insert(tx, p.ID, p); err != nil {
		return nil, err
	}
	if err := s.note(ctx, tx, "", "passkey.create", p.ID, map[string]string{"user": p.User}); err != nil {
		return nil, err
	}
	if u.Factors {
		return nil, nil
	}
	f, err := factorTable.Get(tx, p.User)
	if err != nil && !fault.Is(err, fault.NotFound) {
		return nil, err
	}
	f.Codes = hashes
	if err := factorTable.Set(tx, p.User, f); err != nil {
		return nil, err
	}
	return codes, s.setFactors(ctx, tx, p.User, true)
}

// Passkeys returns the passkeys of a user, oldest first: the actor's own, or
// anybody's for a platform administrator; NotFound else.
func (s *Service) Passkeys(ctx context.Context, userID string) (list []Passkey, err error) {
	if _, err := s.User(ctx, userID); err != nil {
		return nil, err
	}
	err = s.DB.View(ctx, func(tx store.Tx) error {
		list, err = all(tx, passkeyTable, "user", store.TermOf(userID))
		return err
	})
	return list, err
}

// RenamePasskey gives a passkey of a user, who has to be the acting one, another name.
func (s *Service) RenamePasskey(ctx context.Context, userID, passkeyID, name string) (p Passkey, err error) {
	a, err := self(ctx)
	if err != nil {
		return p, err
	}
	if err := interactive(a); err != nil {
		return p, err
	}
	if a.ID != userID {
		return p, fault.New(fault.NotFound, "no such passkey")
	}
	if err := checkPasskeyName(name); err != nil {
		return p, err
	}
	err = s.DB.Update(ctx, func(tx store.Tx) error {
		if p, err = ownPasskey(tx, userID, passkeyID); err != nil {
			return err
		}
		p.Name = name
		if err := passkeyTable.Set(tx, p.ID, p); err != nil {
			return err
		}
		return s.note(ctx, tx, "", "passkey.rename", p.ID, nil)
	})
	return p, err
}

func ownPasskey(tx store.Tx, userID, passkeyID string) (Passkey, error) {
	p, err := passkeyTable.Get(tx, passkeyID)
	if err == nil && p.User != userID {
		err = fault.New(fault.NotFound, "no such passkey")
	}
	return p, err
}

// RemovePasskey ends a passkey: the actor's own with a fresh second factor,
// anybody's for a platform administrator. If it was the last second factor, the
// user has none from now on.
func (s *Service) RemovePasskey(ctx context.Context, userID, passkeyID string) error {
	if err := interactive(identity.FromContext(ctx)); err != nil {
		return err
	}
	if _, err := s.User(ctx, userID); err != nil {
		return err
	}
	if err := s.fresh(ctx); err != nil {
		return err
	}
	return s.DB.Update(ctx, func(tx store.Tx) error {
		if _, err := ownPasskey(tx, userID, passkeyID); err != nil {
			return err
		}
		if _, err := passkeyTable.Delete(tx, passkeyID); err != nil {
			return err
		}
		if err := s.note(ctx, tx, "", "passkey.delete", passkeyID, map[string]string{"user": userID}); err != nil {
			return err
		}
		f, err := factorTable.Get(tx, userID)
		if err != nil && !fault.Is(err, fault.NotFound) {
			return err
		}
		n, err := passkeyTable.Count(tx, "user", store.TermOf(userID))
		if err != nil || n > 0 || f.Active {
			return err
		}
		if _, err := factorTable.Delete(tx, userID); err != nil && !fault.Is(err, fault.NotFound) {
			return err
		}
		return s.setFactors(ctx, tx, userID, false)
	})
}

// ResetFactors takes all second factors of a user away, passkeys, authenticator app
// and recovery codes, for one who has lost them; for platform administrators, with
// a fresh second factor of their own. All login keys and sessions of the user end.
func (s *Service) ResetFactors(ctx context.Context, userID string) error {
	a := identity.FromContext(ctx)
	if err := interactive(a); err != nil {
		return err
	}
	if !a.May(identity.Platform) {
		return fault.New(fault.Forbidden, "only a platform administrator resets the second factor of others")
	}
	if err := s.fresh(ctx); err != nil {
		return err
	}
	return s.DB.Update(ctx, func(tx store.Tx) error {
		u, err := userTable.Get(tx, userID)
		if err != nil {
			return err
		}
		return s.resetFactors(ctx, tx, u, nil)
	})
}

func (s *Service) resetFactors(ctx context.Context, tx store.Tx, u User, detail map[string]string) error {
	if !u.Factors {
		return fault.New(fault.Conflict, "the user has no second factor")
	}
	if err := dropFactorsOf(tx, u.ID); err != nil {
		return err
	}
	if err := s.note(ctx, tx, "", "second_factor.reset", u.ID, detail); err != nil {
		return err
	}
	return s.setFactors(ctx, tx, u.ID, false)
}

// Factors are the second factors of a user.
type Factors struct {
	User          User
	Passkeys      []string // their names
	Authenticator bool
	Codes         int // recovery codes left
}

// ResetStopped is ResetFactors for whoever runs the machine, who needs no account: on a
// stopped server, where the last administrator has lost everything but the password. The
// user is named by id or address. A dry run says what there is and changes nothing.
func (s *Service) ResetStopped(ctx context.Context, name string, dry bool) (f Factors, err error) {
	do := s.DB.Update
	if dry {
		do = s.DB.View
	}
	err = do(ctx, func(tx store.Tx) error {
		if f, err = factorsOf(tx, name); err != nil || dry {
			return err
		}
		ctx := identity.NewContext(ctx, identity.Actor{Kind: identity.System, Org: f.User.HomeOrg}) // in whose trail it is
		return s.resetFactors(ctx, tx, f.User, map[string]string{"by": "a command on the stopped server"})
	})
	return f, err
}

func factorsOf(tx store.Tx, name string) (f Factors, err error) {
	if f.User, err = userTable.Get(tx, name); fault.Is(err, fault.NotFound) {
		f.User, err = userTable.GetBy(tx, "email", store.TermOf(canonical(name)))
	}
	if err != nil {
		return f, err
	}
	keys, err := all(tx, passkeyTable, "user", store.TermOf(f.User.ID))
	if err != nil {
		return f, err
	}
	for _, p := range keys {
		f.Passkeys = append(f.Passkeys, p.Name)
	}
	kept, err := factorTable.Get(tx, f.User.ID)
	if fault.Is(err, fault.NotFound) {
		return f, nil
	}
	f.Authenticator, f.Codes = kept.Active, len(kept.Codes)
	return f, err
}

// BeginLogIn asks whoever it is for a passkey that verifies its user, who then
// needs no password. The question is the same for everybody.
func (s *Service) BeginLogIn(context.Context) (Ceremony, error) {
	party, err := s.party()
	if err != nil {
		return Ceremony{}, err
	}
	options, session, err := party.BeginDiscoverableLogin(webauthn.WithUserVerification(protocol.VerificationRequired))
	if err != nil {
		return Ceremony{}, err
	}
	return s.seal(toLogIn, state{Session: *session}, options)
}

// BeginConfirm asks a user whose password was right, or who has logged in
// before, for its second factor: one of its passkeys, or a code.
func (s *Service) BeginConfirm(ctx context.Context, userID string) (Ceremony, error) {
	h, err := s.holder(ctx, userID)
	if err != nil {
		return Ceremony{}, err
	}
	x := state{User: h.ID, Epoch: h.Epoch}
	party, err := s.party()
	if err != nil || len(h.keys) == 0 {
		return s.seal(toConfirm, x, nil) // a code will do
	}
	options, session, err := party.BeginLogin(h)
	if err != nil {
		return Ceremony{}, err
	}
	x.Session = *session
	return s.seal(toConfirm, x, options)
}

// BeginSecond is BeginConfirm for whoever offers a password. It says whether the
// password is right as [Service.LogIn] does, and no sooner.
func (s *Service) BeginSecond(ctx context.Context, a Attempt) (Ceremony, error) {
	u, _, err := s.checkPasswordOf(ctx, a)
	if err != nil {
		return Ceremony{}, err
	}
	if !u.Factors {
		return Ceremony{}, fault.New(fault.Conflict, "no second factor is set up; log in with the password alone")
	}
	return s.BeginConfirm(ctx, u.ID)
}

// Second is a second factor: a code of an authenticator app, or a recovery
// code, or the answer of an authenticator to a ceremony.
type Second struct {
	State  string
	Code   string
	Answer []byte
	From   netip.Addr
}

// LogInSecond logs in who answers what BeginConfirm or BeginSecond asked.
func (s *Service) LogInSecond(ctx context.Context, f Second) (User, time.Time, error) {
	from := throttle.Prefix(f.From)
	if wait := s.logins.secret.Wait(from); wait > 0 {
		return User{}, time.Time{}, tooMany(wait)
	}
	x, err := s.open(toConfirm, f.State)
	if err != nil {
		s.logins.secret.Spend(from)
		return User{}, time.Time{}, err
	}
	h, err := s.holder(ctx, x.User)
	if err != nil {
		return User{}, time.Time{}, err
	}
	if h.Epoch != x.Epoch {
		return User{}, time.Time{}, errCeremony
	}
	if len(f.Answer) == 0 {
		err = s.checkCode(ctx, h.User, f.Code)
	} else {
		err = s.checkPasskey(ctx, h, x, f.Answer)
	}
	if err != nil {
		if !fault.Is(err, fault.TooMany) {
			s.logins.secret.Spend(from)
		}
		return User{}, time.Time{}, err
	}
	s.logins.pair.Forget(canonical(h.Email) + "\x00" + from)
	return h.User, s.Now(), s.loggedIn(ctx, h.User, from)
}

// LogInPasskey logs in who answers what BeginLogIn asked: the authenticator has
// the key and has verified its user, which are two factors.
func (s *Service) LogInPasskey(ctx context.Context, text string, answer []byte, at netip.Addr) (User, time.Time, error) {
	from := throttle.Prefix(at)
	if wait := s.logins.secret.Wait(from); wait > 0 {
		return User{}, time.Time{}, tooMany(wait)
	}
	u, err := s.answered(ctx, text, answer)
	if err != nil {
		s.logins.secret.Spend(from)
		return User{}, time.Time{}, err
	}
	return u, s.Now(), s.loggedIn(ctx, u, from)
}

// answered returns the user whose passkey answered.
func (s *Service) answered(ctx context.Context, text string, answer []byte) (User, error) {
	x, err := s.open(toLogIn, text)
	if err != nil {
		return User{}, err
	}
	parsed, err := parseAssertion(answer)
	if err != nil {
		return User{}, err
	}
	handle := string(parsed.Response.UserHandle)
	if len(handle) != len(nobody) {
		return User{}, ErrUnauthenticated
	}
	h, err := s.holder(ctx, handle)
	if err != nil {
		return User{}, err
	}
	return h.User, s.checkPasskey(ctx, h, x, answer)
}

func parseAssertion(answer []byte) (*protocol.ParsedCredentialAssertionData, error) {
	if len(answer) > maxAnswer {
		return nil, errAnswer
	}
	parsed, err := protocol.ParseCredentialRequestResponseBytes(answer)
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "the answer is not one of an authenticator")
	}
	return parsed, nil
}

var errPasskey = fault.New(fault.Unauthenticated, "the passkey is not one of the account, or its answer does not fit the question")

// checkPasskey takes the answer of one of h's passkeys, once. A counter that does not
// grow is refused: the key may have been copied (Web Authentication, 7.2, step 22).
func (s *Service) checkPasskey(ctx context.Context, h holder, x state, answer []byte) error {
	party, err := s.party()
	if err != nil {
		return err
	}
	parsed, err := parseAssertion(answer)
	if err != nil {
		return err
	}
	var c *webauthn.Credential
	if x.User == "" {
		handler := func(_, _ []byte) (webauthn.User, error) { return h, nil }
		_, c, err = party.ValidatePasskeyLogin(handler, x.Session, parsed)
	} else {
		c, err = party.ValidateLogin(h, x.Session, parsed)
	}
	if err != nil {
		return errPasskey // what is wrong with it is for nobody who is not logged in
	}
	copied := false
	err = s.DB.Update(ctx, func(tx store.Tx) error {
		copied = false
		if err := x.spend(tx); err != nil {
			return err
		}
		p, err := passkeyTable.GetBy(tx, "credential", store.TermOf(base64.RawURLEncoding.EncodeToString(c.ID)))
		if fault.Is(err, fault.NotFound) || err == nil && p.User != h.ID {
			return errPasskey // removed meanwhile
		}
		if err != nil {
			return err
		}
		count := parsed.Response.AuthenticatorData.Counter
		if (count > 0 || p.Count > 0) && count <= p.Count {
			copied = true
			return s.note(ctx, tx, "", "passkey.copied", p.ID, map[string]string{"user": p.User})
		}
		p.Count, p.Synced, p.LastUsedAt = count, c.Flags.BackupState, s.Now().UTC()
		return passkeyTable.Set(tx, p.ID, p)
	})
	if err == nil && copied {
		err = fault.New(fault.Unauthenticated, "the passkey's counter has not grown: it may have been copied; log in another way and delete it")
	}
	return err
}

// dropFactorsOf removes the second factors of a user who is being deleted.
func dropFactorsOf(tx store.Tx, userID string) error {
	keys, err := all(tx, passkeyTable, "user", store.TermOf(userID))
	if err != nil {
		return err
	}
	for _, p := range keys {
		if _, err := passkeyTable.Delete(tx, p.ID); err != nil {
			return err
		}
	}
	if _, err := factorTable.Delete(tx, userID); err != nil && !fault.Is(err, fault.NotFound) {
		return err
	}
	return nil
}
