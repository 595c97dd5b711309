package tokens

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"slices"
	"strings"
	"sync"

	"github.com/golang-jwt/jwt/v5"
)

// Verify returns what a token says, if this server made it, it is of one of the
// given kinds, and now is in its time. Anything else is Unauthenticated.
func (s *Service) Verify(text string, kinds ...Kind) (Token, error) {
	slot, ring := sha256.Sum256([]byte(text)), s.ring.Load()
	t, ok := s.verified.get(slot, ring)
	if !ok {
		var err error
		if t, err = s.check(text, ring); err != nil {
			return Token{}, errToken(err)
		}
		s.verified.put(slot, ring, t)
	}
	return s.current(t, kinds...)
}

// ErrOtherKind is what VerifyAs returns for what says that it is something else.
var ErrOtherKind = errors.New("tokens: not a token of this kind")

// VerifyAs is Verify, save that what does not say that it is of the kind, whatever else it may
// be, is an ErrOtherKind and not looked at any further.
func (s *Service) VerifyAs(kind Kind, text string) (Token, error) {
	slot, ring := sha256.Sum256([]byte(text)), s.ring.Load()
	t, ok := s.verified.get(slot, ring)
	switch {
	case ok && t.Kind == kind:
		return s.current(t, kind)
	case ok, TypeOf(text) != kind.Type:
		return Token{}, ErrOtherKind
	}
	return s.Verify(text, kind)
}

// current returns t, whose signature is good, if it is of one of the kinds and now is in its time.
func (s *Service) current(t Token, kinds ...Kind) (Token, error) {
	now := s.Now()
	switch {
	case !slices.Contains(kinds, t.Kind):
		return Token{}, errToken(fmt.Errorf("a token of type %s, not of %v", t.Kind.Type, kinds))
	case !now.Before(t.ExpiresAt):
		return Token{}, errToken(fmt.Errorf("it expired at %v", t.ExpiresAt))
	case t.IssuedAt.Unix() < s.floor.Load():
		return Token{}, errToken(errors.New("it is from before the database was put back from a backup"))
	case now.Add(leeway).Before(t.IssuedAt):
		return Token{}, errToken(fmt.Errorf("it is from the future, %v", t.IssuedAt))
	}
	return t, nil
}

// Known returns the kind of a token whose signature this server has just checked, by a key
// that it still has. It is the cheap way to ask whose a token is; whether it is good is for
// Verify to say.
func (s *Service) Known(text string) (Kind, bool) {
	t, ok := s.verified.get(sha256.Sum256([]byte(text)), s.ring.Load())
	return t.Kind, ok
}

// Looks reports whether text has the form of a token, so that a method of the
// resolver can say that it is another's.
func Looks(text string) bool { return strings.Count(text, ".") == 2 && strings.HasPrefix(text, "ey") }

// TypeOf returns the typ of what looks like a token, "" for what does not. Nothing of it
// is verified: it says who to ask.
func TypeOf(text string) string {
	head, _, ok := strings.Cut(text, ".")
	if !ok || len(text) > maxToken || !Looks(text) {
		return ""
	}
	raw, err := base64.RawURLEncoding.DecodeString(head)
	if err != nil {
		return ""
	}
	var h struct {
		Type string `json:"typ"`
	}
	if json.Unmarshal(raw, &h) != nil {
		return ""
	}
	return h.Type
}

// kidForm is what the name of a key looks like; it is only ever looked up.
var kidForm = regexp.MustCompile(`^[A-Za-z0-9_-]{1,64}$`)

// header is all that a token's header may hold. Keys, and pointers to keys, that
// a token brings along (jwk, jku, x5c, x5u) are no fields of it, and so refused.
type header struct {
	Alg  Algorithm `json:"alg"`
	Type string    `json:"typ"`
	Kid  string    `json:"kid"`
}

// check does all that does not depend on the time of day.
func (s *Service) check(text string, ring *ring) (Token, error) {
	if len(text) > maxToken {
		return Token{}, errors.New("it is too long")
	}
	if strings.ContainsAny(text, "\r\n") {
		return Token{}, errors.New("it has line ends, which base64 would pass over")
	}
	head, rest, _ := strings.Cut(text, ".")
	body, _, ok := strings.Cut(rest, ".")
	if !ok {
		return Token{}, errors.New("it has not three parts")
	}
	var h header
	if err := strict(head, &h); err != nil {
		return Token{}, fmt.Errorf("header: %w", err)
	}
	var claims map[string]any
	if err := strict(body, &claims); err != nil {
		return Token{}, fmt.Errorf("claims: %w", err)
	}
	if !kidForm.MatchString(h.Kid) {
		return Token{}, errors.New("its key has no proper name")
	}
	key, ok := ring.byID[h.Kid]
	if !ok || key.Alg != h.Alg {
		return Token{}, errors.New("no such key, or not of this algorithm")
	}
	kind, err := kindOf(h.Type, claims)
	if err != nil {
		return Token{}, err
	}
	signed := text[:len(head)+1+len(body)]
	if err := key.signed(signed, text[len(signed)+1:]); err != nil {
		return Token{}, err
	}
	// The claims are those that strict read: they are not decoded once more.
	if err := jwt.NewValidator(
		jwt.WithIssuer(s.Config.Issuer), jwt.WithExpirationRequired(), jwt.WithNotBeforeRequired(), jwt.WithIssuedAt(),
		jwt.WithLeeway(leeway), jwt.WithTimeFunc(s.Now),
	).Validate(jwt.MapClaims(claims)); err != nil {
		return Token{}, err
	}
	return token(kind, claims)
}

// signed checks a signature, in base64url, over the parts of a token before it.
func (k *Key) signed(text, signature string) error {
	raw, err := base64.RawURLEncoding.Strict().DecodeString(signature)
	if err != nil {
		return err
	}
	return k.Alg.method().Verify(text, raw, k.public)
}

// kindOf finds the kind of a token by its type, and holds its audience to it.
func kindOf(kind string, claims map[string]any) (Kind, error) {
	audience, ok := claims["aud"].(string)
	if !ok || audience == "" {
		return Kind{}, errors.New("its audience is not one text")
	}
	for _, k := range []Kind{Device, Login, Recovery, Access, Identity} {
		if k.Type == kind && (k.Audience == audience || k.Audience == "") {
			return k, nil
		}
	}
	return Kind{}, fmt.Errorf("type %q with audience %q is no kind of token", kind, audience)
}

func token(k Kind, claims jwt.MapClaims) (Token, error) {
	t := Token{Kind: k, claims: claims}
	var err error
	if t.Subject, err = claims.GetSubject(); err != nil || t.Subject == "" {
		return t, errors.New("it has no subject")
	}
	if t.ID = t.String("jti"); t.ID == "" {
		return t, errors.New("it has no id")
	}
	t.Org = t.String("org")
	if epoch, ok := claims["ep"].(float64); ok && epoch > 0 {
		t.Epoch = uint64(epoch)
	}
	expires, err := claims.GetExpirationTime()
	if err != nil {
		return t, err
	}
	issued, err := claims.GetIssuedAt()
	if err != nil || issued == nil {
		return t, errors.New("it does not say when it was made")
	}
	t.ExpiresAt, t.IssuedAt = expires.Time, issued.Time
	return t, nil
}

// strict decodes a part of a token into v: base64url without padding of one JSON
// object that names nothing twice, at any depth, and whose times are integers.
func strict(part string, v any) error {
	b, err := object(part)
	if err != nil {
		return err
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return err
	}
	if claims, ok := v.(*map[string]any); ok {
		for _, name := range []string{"exp", "nbf", "iat"} {
			if at, ok := (*claims)[name].(float64); !ok || at != float64(int64(at)) || at < 0 || at > 1<<40 {
				return fmt.Errorf("%s is not a time in whole seconds", name)
			}
		}
	}
	return nil
}

// loose is strict for tokens of others, who may say more, and give times in
// fractions.
func loose(part string, v any) error {
	b, err := object(part)
	if err != nil {
		return err
	}
	return json.Unmarshal(b, v)
}

func object(part string) ([]byte, error) {
	b, err := base64.RawURLEncoding.Strict().DecodeString(part)
	if err != nil {
		return nil, err
	}
	return b, once(b)
}

// maxDepth is how deep the claims of a token may be nested.
const maxDepth = 8

// once refuses JSON that is not one object, is nested deeper than maxDepth, or
// in which an object names something twice: two readers would see two things.
func once(b []byte) error {
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return errors.New("it is not a JSON object")
	}
	type level struct {
		names map[string]bool // nil in an array
		value bool            // a value comes next, not a name
	}
	levels := []level{{names: map[string]bool{}}}
	for len(levels) > 0 {
		t, err := d.Token()
		if err != nil {
			return err
		}
		in := &levels[len(levels)-1]
		switch t := t.(type) {
		case json.Delim:
			switch t {
			case '{', '[':
				in.value = false
				if len(levels) == maxDepth {
					return errors.New("it is nested too deep")
				}
				next := level{}
				if t == '{' {
					next.names = map[string]bool{}
				}
				levels = append(levels, next)
			default:
				levels = levels[:len(levels)-1]
			}
			continue
		case string:
			if in.names != nil && !in.value {
				if t = strings.ToLower(t); in.names[t] { // readers differ in what they take for the same
					return fmt.Errorf("%q is there twice", t)
				}
				in.names[t], in.value = true, true
				continue
			}
		}
		in.value = false
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return errors.New("something follows the object")
	}
	return nil
}

// cache remembers tokens whose signature was checked, by their hash: a check of
// a signature costs a hundred times a look-up. What may change is checked again
// at every use.
type cache struct {
	mu    sync.RWMutex
	ring  *ring // that did the checks; those of another are void
	known map[[sha256.Size]byte]Token
}

const maxVerified = 50_000

func (c *cache) get(slot [sha256.Size]byte, by *ring) (Token, bool) {
	c.mu.RLock()
	defer c.mu.RUnlock()
	t, ok := c.known[slot]
	return t, ok && c.ring == by
}

func (c *cache) put(slot [sha256.Size]byte, by *ring, t Token) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.ring != by {
		c.ring, c.known = by, map[[sha256.Size]byte]Token{}
	}
	for old := range c.known { // any one; the order of a map is as good as another
		if len(c.known) < maxVerified {
			break
		}
		delete(c.known, old)
	}
	c.known[slot] = t
}

func sortKeys(list []Key) {
	slices.SortFunc(list, func(a, b Key) int {
		return cmp.Or(a.CreatedAt.Compare(b.CreatedAt), strings.Compare(string(b.State), string(a.State)), strings.Compare(a.ID, b.ID))
	})
}
