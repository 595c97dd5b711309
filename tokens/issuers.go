package tokens

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/golang-jwt/jwt/v5"

	"keystead/audit"
	"keystead/fault"
	"keystead/id"
	"keystead/identity"
	"keystead/page"
	"keystead/store"
)

// Issuer is an outside issuer whose tokens an organisation trusts.
type Issuer struct {
	ID         string    `cbor:"id"`
	Org        string    `cbor:"org"`
	Name       string    `cbor:"name"`
	Issuer     string    `cbor:"iss"`               // the "iss" claim of its tokens
	Audiences  []string  `cbor:"aud"`               // one of them must be in "aud"
	Algorithms []string  `cbor:"algs"`              // those allowed, of outsideAlgorithms
	KeysURL    string    `cbor:"url,omitempty"`     // where its key set is; by discovery if empty, and Keys is
	Keys       []byte    `cbor:"keys,omitempty"`    // its key set, if it is given and not fetched
	Mapping    Mapping   `cbor:"mapping"`           // from claims to who it is
	Fetched    []byte    `cbor:"fetched,omitempty"` // the last key set that was fetched: it works while the issuer is away
	FetchedAt  time.Time `cbor:"at,omitzero"`
	CreatedAt  time.Time `cbor:"created"`
}

// Mapping says which claims of an outside token name who shows it. A dotted
// name leads into nested objects.
type Mapping struct {
	Device string            `cbor:"device,omitempty" json:"device,omitempty"` // names a device of the organisation, by id or alias
	Role   string            `cbor:"role,omitempty" json:"role,omitempty"`     // names what a user may do; text or a list of texts
	Roles  map[string]string `cbor:"roles,omitempty" json:"roles,omitempty"`   // from what is in that claim to viewer, editor or admin
}

// outsideAlgorithms are those an issuer may be allowed to sign with. None is
// symmetric: whoever could verify could sign.
var outsideAlgorithms = []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}

// Limits on issuers.
const (
	MaxIssuers   = 32               // of an organisation
	maxKeySet    = 64 << 10         // bytes of a key set
	keepKeys     = 10 * time.Minute // before a key set is fetched again
	retryUnknown = 30 * time.Second // between fetches because of a key that is not known
)

var issuers = store.NewTable("issuer",
	store.Index[Issuer]{Name: "org", Counted: true, Terms: func(i Issuer) []store.Term { return store.Terms(i.Org) }},
	store.Index[Issuer]{Name: "trusting", Terms: func(i Issuer) []store.Term { return store.Terms(i.Issuer) }},
	store.Index[Issuer]{Name: "iss", Unique: true, Terms: func(i Issuer) []store.Term { return store.Terms(i.Org, i.Issuer) }},
)

// Issuers keeps the outside issuers and verifies their tokens. Fill in the
// exported fields before use.
type Issuers struct {
	DB    store.Engine
	Audit *audit.Log
	Now   func() time.Time
	Log   *slog.Logger
	// Fetch gets a document over HTTPS.
	Fetch func(ctx context.Context, url string) ([]byte, error)
	// Own reports whether a token is known to be of this server itself. Nil where nobody knows.
	Own func(text string) bool
	// CheckURL says what is wrong with a URL.
	CheckURL func(url string) error

	mu      sync.Mutex
	tried   map[string]time.Time // when a key set was last asked for, by issuer id
	fetches sync.Map             // a *sync.Mutex for each issuer id: one fetch at a time
}

// NewIssuer is what an issuer is made from.
type NewIssuer struct {
	Name       string
	Issuer     string
	Audiences  []string
	Algorithms []string // RS256, ES256 and EdDSA if there are none
	KeysURL    string
	Keys       json.RawMessage
	Mapping    Mapping
}

// Create has the actor's organisation trust an issuer.
func (s *Issuers) Create(ctx context.Context, n NewIssuer) (Issuer, error) {
	if len(n.Algorithms) == 0 {
		n.Algorithms = []string{"RS256", "ES256", "EdDSA"}
	}
	if err := s.check(n); err != nil {
		return Issuer{}, err
	}
	now := s.Now().UTC()
	i := Issuer{
		ID: id.New(now), Org: identity.OrgOf(ctx), Name: n.Name, Issuer: n.Issuer, Audiences: n.Audiences, Algorithms: n.Algorithms,
		KeysURL: n.KeysURL, Keys: n.Keys, Mapping: n.Mapping, CreatedAt: now,
	}
	return i, s.DB.Update(ctx, func(tx store.Tx) error {
		has, err := issuers.Count(tx, "org", store.TermOf(i.Org))
		if err != nil {
			return err
		}
		if has >= MaxIssuers {
			return fault.New(fault.TooLarge, "the organisation trusts %d issuers; delete one first", has)
		}
		if err := issuers.Insert(tx, i.ID, i); err != nil {
			return err
		}
		return s.Audit.Append(ctx, tx, audit.Entry{Action: "issuer.create", Target: i.ID, Detail: map[string]string{"issuer": i.Issuer}})
	})
}

func (s *Issuers) check(n NewIssuer) error {
	var bad []fault.Field
	note := func(field, format string, args ...any) {
		bad = append(bad, fault.Field{Name: field, Message: fmt.Sprintf(format, args...)})
	}
	if n.Issuer == "" || len(n.Issuer) > 1024 || len(n.Name) > 256 {
		note("issuer", "must be the iss claim of its tokens, of 1 to 1024 bytes")
	}
	if len(n.Audiences) == 0 || len(n.Audiences) > 16 || slices.Contains(n.Audiences, "") {
		note("audiences", "must name what the tokens are made for: 1 to 16 values of their aud claim")
	}
	for _, alg := range n.Algorithms {
		if !slices.Contains(outsideAlgorithms, alg) {
			note("algorithms", "%q is none of %s", alg, strings.Join(outsideAlgorithms, ", "))
		}
	}
	switch {
	case len(n.Keys) > maxKeySet:
		note("keys", "a key set has at most %d bytes", maxKeySet)
	case n.Keys != nil && n.KeysURL != "":
		note("keys", "goes without keys_url: they are given or fetched, not both")
	case n.Keys != nil:
		if _, err := keySet(n.Keys); err != nil {
			note("keys", "%v", err)
		}
	case n.KeysURL != "":
		if err := s.CheckURL(n.KeysURL); err != nil {
			note("keys_url", "%s", fault.Message(err))
		}
	default:
		if err := s.CheckURL(n.Issuer); err != nil {
			note("issuer", "%s; else give keys or keys_url", fault.Message(err))
		}
	}
	for _, role := range n.Mapping.Roles {
		if r := identity.Role(role); r != identity.Viewer && r != identity.Editor && r != identity.Admin {
			note("mapping.roles", "%q is none of viewer, editor, admin", role)
		}
	}
	if n.Mapping.Device == "" && n.Mapping.Role == "" {
		note("mapping", "must name a claim for device or for role, or the tokens prove nothing")
	}
	return fault.InvalidFields(bad...)
}

// List returns the issuers that the actor's organisation trusts.
func (s *Issuers) List(ctx context.Context, r page.Request) (p page.Page[Issuer], err error) {
	err = s.DB.View(ctx, func(tx store.Tx) error {
		p, err = issuers.PageBy(tx, "org", store.TermOf(identity.OrgOf(ctx)), r)
		return err
	})
	return p, err
}

// Get returns an issuer of the actor's organisation, or a NotFound fault.
func (s *Issuers) Get(ctx context.Context, issuerID string) (i Issuer, err error) {
	err = s.DB.View(ctx, func(tx store.Tx) error {
		i, err = s.own(ctx, tx, issuerID)
		return err
	})
	return i, err
}

func (s *Issuers) own(ctx context.Context, tx store.Tx, issuerID string) (Issuer, error) {
	i, err := issuers.Get(tx, issuerID)
	if err == nil && i.Org != identity.OrgOf(ctx) {
		return Issuer{}, fault.New(fault.NotFound, "no such issuer")
	}
	return i, err
}

// Delete ends the trust in an issuer: its tokens are refused from the next use on.
func (s *Issuers) Delete(ctx context.Context, issuerID string) error {
	return s.DB.Update(ctx, func(tx store.Tx) error {
		if _, err := s.own(ctx, tx, issuerID); err != nil {
			return err
		}
		if _, err := issuers.Delete(tx, issuerID); err != nil {
			return err
		}
		return s.Audit.Append(ctx, tx, audit.Entry{Action: "issuer.delete", Target: issuerID})
	})
}

// outsideHeader is what of an outside token's header is looked at. Keys that a
// token brings along, and what must be understood and is not, have it refused.
type outsideHeader struct {
	Alg  string          `json:"alg"`
	Kid  string          `json:"kid"`
	JWK  json.RawMessage `json:"jwk"`
	JKU  json.RawMessage `json:"jku"`
	X5U  json.RawMessage `json:"x5u"`
	X5C  json.RawMessage `json:"x5c"`
	Crit json.RawMessage `json:"crit"`
	B64  json.RawMessage `json:"b64"`
}

// Verify checks a token of an issuer that org trusts, and returns the issuer and
// the claims. found says whether the token is of such an issuer at all; if so,
// any error is Unauthenticated, or Unavailable while its keys cannot be had.
func (s *Issuers) Verify(ctx context.Context, org, text string) (i Issuer, claims map[string]any, found bool, err error) {
	h, said, err := peek(text)
	if err != nil {
		return i, nil, false, errToken(err)
	}
	iss, _ := said["iss"].(string)
	if err := s.DB.View(ctx, func(tx store.Tx) (err error) {
		i, err = issuers.GetBy(tx, "iss", store.TermOf(org, iss))
		return err
	}); fault.Is(err, fault.NotFound) {
		return i, nil, false, errToken(errors.New("no trusted issuer made it"))
	} else if err != nil {
		return i, nil, false, err
	}
	if !slices.Contains(i.Algorithms, h.Alg) {
		return i, nil, true, errToken(fmt.Errorf("%s is not allowed for its issuer", h.Alg))
	}
	key, err := s.key(ctx, &i, h)
	if err != nil {
		return i, nil, true, err
	}
	verified := jwt.MapClaims{}
	if _, err := jwt.NewParser(
		jwt.WithValidMethods([]string{h.Alg}), jwt.WithIssuer(i.Issuer), jwt.WithAudience(i.Audiences...), jwt.WithExpirationRequired(), jwt.WithStrictDecoding(),
		jwt.WithLeeway(leeway), jwt.WithTimeFunc(s.Now),
	).ParseWithClaims(text, verified, func(*jwt.Token) (any, error) { return key, nil }); err != nil {
		return i, nil, true, errToken(err)
	}
	return i, verified, true, nil
}

// Claims is Verify for those who want the claims alone.
func (s *Issuers) Claims(ctx context.Context, org, text string) (map[string]any, error) {
	_, claims, _, err := s.Verify(ctx, org, text)
	return claims, err
}

// peek reads a token without believing it.
func peek(text string) (outsideHeader, map[string]any, error) {
	var h outsideHeader
	if len(text) > 2*maxToken {
		return h, nil, errors.New("it is too long")
	}
	parts := strings.Split(text, ".")
	if len(parts) != 3 {
		return h, nil, errors.New("it has not three parts")
	}
	if err := loose(parts[0], &h); err != nil {
		return h, nil, fmt.Errorf("header: %w", err)
	}
	if h.JWK != nil || h.JKU != nil || h.X5U != nil || h.X5C != nil || h.Crit != nil || h.B64 != nil {
		return h, nil, errors.New("its header brings keys along, or asks for more than is understood")
	}
	var claims map[string]any
	if err := loose(parts[1], &claims); err != nil {
		return h, nil, fmt.Errorf("claims: %w", err)
	}
	return h, claims, nil
}

// key returns the issuer's key that a token says it is signed with. A key that
// is not known, or a key set that is old, has the set fetched; while the issuer
// is away, what was fetched last goes on.
func (s *Issuers) key(ctx context.Context, i *Issuer, h outsideHeader) (crypto.PublicKey, error) {
	if i.Keys != nil {
		return pick(i.Keys, h)
	}
	if s.Now().Sub(i.FetchedAt) >= keepKeys {
		if err := s.refresh(ctx, i); err != nil && i.Fetched == nil {
			return nil, fault.Wrap(fault.Unavailable, err, "the keys of the token's issuer cannot be had; try again later")
		}
	}
	key, err := pick(i.Fetched, h)
	if err != nil && s.refresh(ctx, i) == nil {
		return pick(i.Fetched, h)
	}
	return key, err
}

// refresh fetches the issuer's key set, unless that was tried a moment ago.
func (s *Issuers) refresh(ctx context.Context, i *Issuer) error {
	one, _ := s.fetches.LoadOrStore(i.ID, &sync.Mutex{})
	lock, ok := one.(*sync.Mutex)
	if !ok {
		return errors.New("tokens: not a lock")
	}
	lock.Lock()
	defer lock.Unlock()
	now := s.Now().UTC()
	if !s.mayTry(i.ID, now) {
		return errors.New("tokens: the key set was asked for a moment ago")
	}
	set, err := s.fetch(ctx, i)
	if err != nil {
		s.Log.WarnContext(ctx, "the key set of an issuer cannot be had; the last one goes on", slog.String("issuer", i.Issuer), slog.Any("error", err))
		return err
	}
	return s.DB.Update(ctx, func(tx store.Tx) error {
		fresh, err := issuers.Update(tx, i.ID, func(kept *Issuer) error {
			kept.Fetched, kept.FetchedAt = set, now
			return nil
		})
		if err == nil {
			*i = fresh
		}
		return err
	})
}

func (s *Issuers) mayTry(issuerID string, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.tried == nil {
		s.tried = map[string]time.Time{}
	}
	if last, ok := s.tried[issuerID]; ok && now.Sub(last) < retryUnknown {
		return false
	}
	s.tried[issuerID] = now
	return true
}

// fetch gets the key set: from its URL, or from where discovery says (OpenID
// Connect Discovery 1.0, 4).
func (s *Issuers) fetch(ctx context.Context, i *Issuer) ([]byte, error) {
	url := i.KeysURL
	if url == "" {
		doc, err := s.Fetch(ctx, strings.TrimSuffix(i.Issuer, "/")+"/.well-known/openid-configuration")
		if err != nil {
			return nil, err
		}
		var found struct {
			Issuer  string `json:"issuer"`
			JWKSURI string `json:"jwks_uri"`
		}
		if err := json.Unmarshal(doc, &found); err != nil {
			return nil, fmt.Errorf("tokens: discovery: %w", err)
		}
		if found.Issuer != i.Issuer {
			return nil, fmt.Errorf("tokens: discovery: the document is of issuer %q", found.Issuer)
		}
		if err := s.CheckURL(found.JWKSURI); err != nil {
			return nil, fmt.Errorf("tokens: discovery: %w", err)
		}
		url = found.JWKSURI
	}
	set, err := s.Fetch(ctx, url)
	if err != nil {
		return nil, err
	}
	if len(set) > maxKeySet {
		return nil, fmt.Errorf("tokens: a key set of %d bytes", len(set))
	}
	_, err = keySet(set)
	return set, err
}

func keySet(b []byte) (set jose.JSONWebKeySet, err error) {
	if err := json.Unmarshal(b, &set); err != nil {
		return set, fmt.Errorf("not a key set: %w", err)
	}
	if len(set.Keys) == 0 {
		return set, errors.New("the key set has no keys")
	}
	return set, nil
}

// pick returns the one key of a set that a token may be signed with: of its
// name, or the only one if it names none, and of the kind its algorithm needs.
func pick(b []byte, h outsideHeader) (crypto.PublicKey, error) {
	set, err := keySet(b)
	if err != nil {
		return nil, errToken(err)
	}
	keys := set.Keys
	if h.Kid != "" {
		keys = set.Key(h.Kid)
	}
	var fit []crypto.PublicKey
	for _, k := range keys {
		if (k.Use == "" || k.Use == "sig") && (k.Algorithm == "" || k.Algorithm == h.Alg) && k.IsPublic() && fits(k.Key, h.Alg) {
			fit = append(fit, k.Key)
		}
	}
	if len(fit) != 1 {
		return nil, errToken(fmt.Errorf("%d of the issuer's keys fit", len(fit)))
	}
	return fit[0], nil
}

// fits reports whether a key is of the kind, and strength, an algorithm needs.
func fits(key crypto.PublicKey, alg string) bool {
	switch k := key.(type) {
	case *rsa.PublicKey:
		return (strings.HasPrefix(alg, "RS") || strings.HasPrefix(alg, "PS")) && k.N.BitLen() >= 2048 && k.N.BitLen() <= 8192
	case *ecdsa.PublicKey:
		return map[string]int{"ES256": 256, "ES384": 384, "ES512": 521}[alg] == k.Curve.Params().BitSize
	case ed25519.PublicKey:
		return alg == "EdDSA"
	}
	return false
}

// Text returns the claim of a dotted name, if it is text.
func Text(claims map[string]any, name string) string {
	v, _ := claim(claims, name).(string)
	return v
}

// texts returns the claim of a dotted name, one text or a list of them.
func texts(claims map[string]any, name string) (all []string) {
	switch v := claim(claims, name).(type) {
	case string:
		return []string{v}
	case []any:
		for _, e := range v {
			if text, ok := e.(string); ok {
				all = append(all, text)
			}
		}
	}
	return all
}

func claim(claims map[string]any, name string) any {
	if v, ok := claims[name]; ok {
		return v
	}
	var v any = claims
	for part := range strings.SplitSeq(name, ".") {
		m, ok := v.(map[string]any)
		if !ok {
			return nil
		}
		v = m[part]
	}
	return v
}

// RoleOf returns the highest role that the claims map to, NoRole if none does.
func (m Mapping) RoleOf(claims map[string]any) identity.Role {
	best := identity.NoRole
	for _, text := range texts(claims, m.Role) {
		if r := identity.Role(m.Roles[text]); r.AtLeast(best) {
			best = r
		}
	}
	return best
}

// unix is a NumericDate (RFC 7519, 2).
func unix(seconds float64) time.Time { return time.UnixMilli(int64(seconds * 1000)).UTC() }
