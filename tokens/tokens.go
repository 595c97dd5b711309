// Package tokens owns the signing keys and makes and checks the tokens (JWT, RFC
// 7519) they sign: for devices, for people who are logged in, for OAuth clients.
//
// Each kind of token has a type and an audience of its own, so that none passes
// for another (RFC 8725, 3.11 and 3.12). A token that verifies was made here and
// has not expired; whether what it speaks of still holds is for the room that
// made it to say, from its record: by the token's id, or its epoch.
package tokens

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"maps"
	"sync/atomic"
	"time"

	"github.com/golang-jwt/jwt/v5"

	"keystead/audit"
	"keystead/fault"
	"keystead/id"
	"keystead/seal"
	"keystead/store"
)

// Kind is a kind of token.
type Kind struct {
	Type     string // the "typ" header (RFC 8725, 3.11)
	Audience string // the "aud" claim
}

// The kinds.
var (
	Device   = Kind{"device+jwt", "device"}     // of a device whose auth set is accepted
	Login    = Kind{"login+jwt", "api"}         // of a user for a while
	Recovery = Kind{"recovery+jwt", "recovery"} // of a user, to set a new password once
	Access   = Kind{"at+jwt", "api"}            // of an OAuth client (RFC 9068)
	Identity = Kind{"id+jwt", ""}               // OpenID Connect ID token; the audience is the client
)

// Limits on tokens.
const (
	maxToken = 8 << 10          // bytes of a token that is looked at
	leeway   = 30 * time.Second // how far clocks may be apart
)

// Service makes and checks tokens. Fill in the exported fields, then call Start.
type Service struct {
	DB     store.Engine
	Audit  *audit.Log
	Box    *seal.Box
	Now    func() time.Time
	Config Config

	ring     atomic.Pointer[ring]
	verified cache
	floor    atomic.Int64 // in seconds since 1970; what was issued before is no good
}

// Start loads the signing keys, and makes the first ones if there are none.
func (s *Service) Start(ctx context.Context) error {
	if err := s.ensure(ctx); err != nil {
		return err
	}
	return s.reload(ctx)
}

// RejectBefore ends every token that was issued before t: after a backup was put
// back, nobody knows which of them were revoked since it was made.
func (s *Service) RejectBefore(t time.Time) {
	if !t.IsZero() {
		s.floor.Store(t.Unix())
	}
}

// Token is a token that was verified.
type Token struct {
	Kind      Kind
	ID        string // "jti"
	Subject   string
	Org       string // "org": the organisation it was made in
	Epoch     uint64 // "ep": of what its record counts
	IssuedAt  time.Time
	ExpiresAt time.Time

	claims jwt.MapClaims
}

// String returns a claim that is a text, "" if it is not there or something else.
func (t Token) String(claim string) string {
	v, _ := t.claims[claim].(string)
	return v
}

// Claim returns a claim as JSON decodes it, nil if it is not there.
func (t Token) Claim(name string) any { return t.claims[name] }

// New is what a token is made from.
type New struct {
	Subject string
	Org     string
	Epoch   uint64
	TTL     time.Duration  // at most Config.MaxTTL
	ID      string         // made if it is empty
	Extra   map[string]any // further claims, none of those above
	// Audience stands in for the kind's where that is empty.
	Audience string
}

// Issue makes a token of the given kind, signed by the active key, and returns
// it with what it says, save for further claims.
func (s *Service) Issue(k Kind, n New) (string, Token, error) {
	now := s.Now().UTC().Truncate(time.Second)
	t := Token{
		Kind: k, ID: n.ID, Subject: n.Subject, Org: n.Org, Epoch: n.Epoch,
		IssuedAt: now, ExpiresAt: now.Add(min(n.TTL, s.Config.MaxTTL)),
	}
	if t.ID == "" {
		t.ID = id.New(s.Now())
	}
	says, err := json.Marshal(claims{
		Issuer: s.Config.Issuer, Audience: cmp.Or(k.Audience, n.Audience), Subject: t.Subject, ID: t.ID, Org: t.Org, Epoch: t.Epoch,
		IssuedAt: t.IssuedAt.Unix(), NotBefore: t.IssuedAt.Unix(), ExpiresAt: t.ExpiresAt.Unix(),
	})
	if err == nil && len(n.Extra) > 0 {
		says, err = further(says, n.Extra)
	}
	if err != nil {
		return "", t, fault.Wrap(fault.Internal, err, "sign a token")
	}
	text, err := s.ring.Load().active.sign(k.Type, says)
	if err != nil {
		return "", t, fault.Wrap(fault.Internal, err, "sign a token")
	}
	return text, t, nil
}

// claims are what every token of this server says (RFC 7519, 4.1), as they are written.
type claims struct {
	Issuer    string `json:"iss"`
	Audience  string `json:"aud"`
	Subject   string `json:"sub"`
	ID        string `json:"jti"`
	IssuedAt  int64  `json:"iat"`
	NotBefore int64  `json:"nbf"`
	ExpiresAt int64  `json:"exp"`
	Org       string `json:"org,omitempty"`
	Epoch     uint64 `json:"ep,omitempty"`
}

// ownClaims are the names of claims.
var ownClaims = []string{"iss", "aud", "sub", "jti", "iat", "nbf", "exp", "org", "ep"}

// further appends claims to an object of them, save those that stand in every token.
func further(object []byte, extra map[string]any) ([]byte, error) {
	extra = maps.Clone(extra)
	for _, name := range ownClaims {
		delete(extra, name)
	}
	if len(extra) == 0 {
		return object, nil
	}
	b, err := json.Marshal(extra)
	if err != nil {
		return nil, err
	}
	return append(append(object[:len(object)-1], ','), b[1:]...), nil
}

// sign returns a token of a type that says what claims, a JSON object, say, in the compact form (RFC
// 7515, 3.1). The header is of words that need no escape.
func (k *Key) sign(kind string, claims []byte) (string, error) {
	const head = len(`{"alg":"","kid":"","typ":""}`)
	header := make([]byte, 0, head+len(k.Alg)+len(k.ID)+len(kind))
	header = append(append(append(header, `{"alg":"`...), k.Alg...), `","kid":"`...)
	header = append(append(append(append(header, k.ID...), `","typ":"`...), kind...), `"}`...)
	b64 := base64.RawURLEncoding
	text := make([]byte, 0, b64.EncodedLen(len(header))+b64.EncodedLen(len(claims))+b64.EncodedLen(ed25519.SignatureSize)+2)
	text = b64.AppendEncode(text, header)
	text = b64.AppendEncode(append(text, '.'), claims)
	signature, err := k.Alg.method().Sign(string(text), k.private)
	if err != nil {
		return "", err
	}
	return string(b64.AppendEncode(append(text, '.'), signature)), nil
}

// errToken is the one answer to a token that does not verify. Which of the many
// reasons it was helps only who made it up; Verify wraps it for the log.
func errToken(why error) error {
	return fault.Wrap(fault.Unauthenticated, why, "the token is not valid, or has expired; get a new one")
}
