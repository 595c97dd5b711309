package devices

import (
	"keystead/fault"
	"keystead/identity"
	"keystead/store"
)

// Proven is what of a device a proof rests on. Every request reads it, so it is read from
// the record without decoding the rest.
type Proven struct {
	ID    string
	Org   string
	Name  string
	State State

	credentials []byte // as in the record: only one of them is asked for
}

// proofs reads the records of table, and never writes them.
var proofs = store.NewTable[Proven](table.Name())

// UnmarshalCBOR implements [store.Unmarshaler]: it reads the record of a [Device].
func (p *Proven) UnmarshalCBOR(b []byte) error {
	r := store.Read(b)
	for n := r.Map(); n > 0; n-- {
		switch string(r.Text()) {
		case "id":
			p.ID = string(r.Text())
		case "org":
			p.Org = string(r.Text())
		case "name":
			p.Name = string(r.Text())
		case "state":
			p.State = one(r.Text(), Active, Suspended, Decommissioned)
		case "creds":
			p.credentials = r.Item()
		default:
			r.Skip()
		}
	}
	return r.Err()
}

// credential returns the entry of the given kind and id.
func (p *Proven) credential(kind identity.CredentialKind, id string) (c Credential, ok bool, err error) {
	if p.credentials == nil {
		return c, false, nil
	}
	r := store.Read(p.credentials)
	for n := r.Array(); n > 0 && !ok; n-- {
		c, ok = readCredential(&r, kind, id)
	}
	return c, ok, r.Err()
}

// readCredential reads the credential that begins here, and reports whether it is of the given
// kind and id. The rest it decodes only then.
func readCredential(r *store.Reader, kind identity.CredentialKind, id string) (Credential, bool) {
	var created, expires, state []byte // of the times, the text
	ofKind, ofID := false, false
	for n := r.Map(); n > 0; n-- {
		switch string(r.Text()) {
		case "kind":
			ofKind = string(r.Text()) == string(kind)
		case "id":
			ofID = string(r.Text()) == id
		case "state":
			state = r.Text()
		case "created":
			created = r.Text()
		case "expires":
			expires = r.Text()
		default:
			r.Skip()
		}
	}
	if !ofKind || !ofID {
		return Credential{}, false
	}
	return Credential{
		Kind: kind, ID: id, CreatedAt: r.Time(created), ExpiresAt: r.Time(expires),
		State: one(state, CredentialPending, CredentialActive, CredentialRetiring, CredentialRevoked),
	}, true
}

// one returns which of the values the text is, without keeping it a second time.
func one[T ~string](text []byte, values ...T) T {
	for _, v := range values {
		if string(text) == string(v) {
			return v
		}
	}
	return T(text)
}

// Actor returns the actor that c proves.
func (p *Proven) Actor(c Credential) identity.Actor {
	return (&Device{ID: p.ID, Org: p.Org, Name: p.Name}).Actor(c)
}

// Prove returns the device and its credential of the given kind and id, if the
// two are good now; else an Unauthenticated fault that says why.
func (s *Service) Prove(tx store.Tx, deviceID string, kind identity.CredentialKind, credentialID string) (Proven, Credential, error) {
	d, err := proofs.Get(tx, deviceID)
	if fault.Is(err, fault.NotFound) {
		return d, Credential{}, fault.New(fault.Unauthenticated, "the device is not known")
	}
	if err != nil {
		return d, Credential{}, err
	}
	c, ok, err := d.credential(kind, credentialID)
	switch {
	case err != nil:
		return d, c, err
	case d.State == Suspended:
		return d, c, fault.New(fault.Unauthenticated, "the device is suspended")
	case d.State != Active:
		return d, c, fault.New(fault.Unauthenticated, "the device is decommissioned")
	case !ok || c.State == CredentialRevoked:
		return d, c, fault.New(fault.Unauthenticated, "the credential is revoked")
	case c.State == CredentialPending:
		return d, c, fault.New(fault.Unauthenticated, "the credential is not active yet")
	case !c.usable(s.Now()):
		return d, c, fault.New(fault.Unauthenticated, "the credential has expired")
	}
	return d, c, nil
}
