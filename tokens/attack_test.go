package tokens_test

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/hmac"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"fmt"
	"strconv"
	"strings"
	"testing"

	"keystead/fault"
	"keystead/tokens"
)

// forge makes a token of a header and claims, with the signature that sign makes.
func forge(header, claims string, sign func(text string) []byte) string {
	enc := base64.RawURLEncoding
	text := enc.EncodeToString([]byte(header)) + "." + enc.EncodeToString([]byte(claims))
	return text + "." + enc.EncodeToString(sign(text))
}

func hs256(secret []byte) func(string) []byte {
	return func(text string) []byte {
		m := hmac.New(sha256.New, secret)
		m.Write([]byte(text))
		return m.Sum(nil)
	}
}

func nothing(string) []byte { return nil }

// attacker knows all that is public, and has the signing key too where a row is
// about what else is checked.
type attacker struct {
	w    *world
	kid  string
	key  crypto.Signer // the server's own
	good string
	pem  []byte // of the public key
	der  []byte
}

func newAttacker(t testing.TB, alg tokens.Algorithm) attacker {
	t.Helper()
	w := start(t, func(c *tokens.Config) { c.Algorithm = alg })
	a := attacker{w: w, good: w.issue(t, tokens.Device, tokens.New{})}
	for _, k := range w.Keys() {
		if k.State != tokens.Active {
			continue
		}
		a.kid = k.ID
		plain, err := w.Box.Open("signing key/"+k.ID, k.Sealed)
		if err != nil {
			t.Fatal(err)
		}
		parsed, err := x509.ParsePKCS8PrivateKey(plain)
		if err != nil {
			t.Fatal(err)
		}
		a.key, _ = parsed.(crypto.Signer)
	}
	var err error
	if a.der, err = x509.MarshalPKIXPublicKey(a.key.Public()); err != nil {
		t.Fatal(err)
	}
	a.pem = pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: a.der})
	return a
}

// sign is with the server's key, rightly.
func (a attacker) sign(text string) []byte { return signWith(a.key)(text) }

func signWith(key crypto.Signer) func(string) []byte {
	return func(text string) []byte {
		sum := sha256.Sum256([]byte(text))
		switch k := key.(type) {
		case ed25519.PrivateKey:
			return ed25519.Sign(k, []byte(text))
		case *ecdsa.PrivateKey:
			r, s, err := ecdsa.Sign(rand.Reader, k, sum[:])
			if err != nil {
				panic(err)
			}
			out := make([]byte, 64)
			r.FillBytes(out[:32])
			s.FillBytes(out[32:])
			return out
		case *rsa.PrivateKey:
			out, err := rsa.SignPKCS1v15(rand.Reader, k, crypto.SHA256, sum[:])
			if err != nil {
				panic(err)
			}
			return out
		}
		panic("no such key")
	}
}

// header is the right one, with changes to it written in.
func (a attacker) header(alg string, more string) string {
	return fmt.Sprintf(`{"typ":"device+jwt","alg":%q,"kid":%q%s}`, alg, a.kid, more)
}

// claims are the right ones; replace takes pairs of a part of them and what to
// have in its place.
func (a attacker) claims(replace ...string) string {
	now := a.w.Now().Unix()
	c := fmt.Sprintf(`{"jti":"x","iss":"https://keystead.test","sub":"d1","aud":"device","iat":%d,"nbf":%[1]d,"exp":%d}`, now, now+3600)
	r := strings.NewReplacer(replace...).Replace(c)
	if len(replace) > 0 && r == c {
		panic("nothing to replace: " + replace[0])
	}
	return r
}

func TestTokenAttacks(t *testing.T) {
	t.Parallel()
	rows := 0
	for _, alg := range []tokens.Algorithm{tokens.EdDSA, tokens.ES256, tokens.RS256} {
		a := newAttacker(t, alg)
		table := a.table(t)
		rows += len(table)
		// The tools of the attack work: with nothing wrong, the token is taken.
		if _, err := a.w.Verify(forge(a.header(string(alg), ""), a.claims(), a.sign), tokens.Device); err != nil {
			t.Fatalf("%s: the forgery that is none: %v", alg, err)
		}
		for name, token := range table {
			for range 2 { // nothing is remembered as good
				if c, err := a.w.Verify(token, tokens.Device); !fault.Is(err, fault.Unauthenticated) {
					t.Errorf("%s: %s: got %+v, %v; want Unauthenticated", alg, name, c, err)
				}
			}
		}
		if _, err := a.w.Verify(a.good, tokens.Device); err != nil {
			t.Errorf("%s: the good token after all that: %v", alg, err)
		}
	}
	if rows < 180 {
		t.Errorf("only %d rows, want 60 for each algorithm", rows)
	}
	t.Logf("figure: %d token attacks refused, %d for each of 3 algorithms", rows, rows/3)
}

// table is every attack, against one algorithm of the server's key.
func (a attacker) table(t *testing.T) map[string]string {
	t.Helper()
	alg := string(a.w.Keys()[0].Alg)
	parts := strings.Split(a.good, ".")
	_, otherEd, _ := ed25519.GenerateKey(rand.Reader)
	otherEC, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	own, body := a.header(alg, ""), a.claims()
	flipped := []byte(parts[2])
	flipped[10] ^= 1
	now := a.w.Now().Unix()
	num := func(n int64) string { return strconv.FormatInt(n, 10) }
	table := map[string]string{
		// the algorithm
		"alg none, no signature":            forge(a.header("none", ""), body, nothing),
		"alg None":                          forge(a.header("None", ""), body, nothing),
		"alg nOnE":                          forge(a.header("nOnE", ""), body, nothing),
		"alg none, with a signature":        forge(a.header("none", ""), body, a.sign),
		"alg empty":                         forge(a.header("", ""), body, a.sign),
		"no alg":                            forge(fmt.Sprintf(`{"typ":"device+jwt","kid":%q}`, a.kid), body, a.sign),
		"alg a list":                        forge(fmt.Sprintf(`{"typ":"device+jwt","alg":[%q],"kid":%q}`, alg, a.kid), body, a.sign),
		"alg null":                          forge(fmt.Sprintf(`{"typ":"device+jwt","alg":null,"kid":%q}`, a.kid), body, a.sign),
		"alg in lower case":                 forge(a.header(strings.ToLower(alg), ""), body, a.sign),
		"HS256 with the PEM as secret":      forge(a.header("HS256", ""), body, hs256(a.pem)),
		"HS256 with the PEM, no newline":    forge(a.header("HS256", ""), body, hs256(a.pem[:len(a.pem)-1])),
		"HS256 with the DER as secret":      forge(a.header("HS256", ""), body, hs256(a.der)),
		"HS256 with an empty secret":        forge(a.header("HS256", ""), body, hs256(nil)),
		"own alg, HS256 signature":          forge(own, body, hs256(a.pem)),
		"HS512":                             forge(a.header("HS512", ""), body, hs256(a.pem)),
		"RS512 for this key":                forge(a.header("RS512", ""), body, a.sign),
		"ES384 for this key":                forge(a.header("ES384", ""), body, a.sign),
		"PS256 for this key":                forge(a.header("PS256", ""), body, a.sign),
		"another of the algorithms":         forge(a.header(map[string]string{"EdDSA": "ES256", "ES256": "RS256", "RS256": "EdDSA"}[alg], ""), body, a.sign),
		"signed with another Ed25519 key":   forge(own, body, signWith(otherEd)),
		"signed with another P-256 key":     forge(own, body, signWith(otherEC)),
		"ECDSA signature of zeros":          forge(own, body, func(string) []byte { return make([]byte, 64) }),
		"signature of zeros, RSA's length":  forge(own, body, func(string) []byte { return make([]byte, 384) }),
		"no signature":                      forge(own, body, nothing),
		"signature cut by a byte":           forge(own, body, func(s string) []byte { sig := a.sign(s); return sig[:len(sig)-1] }),
		"signature with a byte more":        forge(own, body, func(s string) []byte { return append(a.sign(s), 0) }),
		"one bit of the signature":          parts[0] + "." + parts[1] + "." + string(flipped),
		"claims of another token":           parts[0] + "." + strings.Split(forge(own, a.claims(`"sub":"d1"`, `"sub":"d2"`), nothing), ".")[1] + "." + parts[2],
		"header of another type, same rest": strings.Split(forge(strings.Replace(own, "device+jwt", "login+jwt", 1), body, nothing), ".")[0] + "." + parts[1] + "." + parts[2],
		// the key
		"no kid":                     forge(fmt.Sprintf(`{"typ":"device+jwt","alg":%q}`, alg), body, a.sign),
		"unknown kid":                forge(strings.Replace(own, a.kid, "nobody", 1), body, a.sign),
		"kid a path":                 forge(strings.Replace(own, a.kid, "../../../../dev/null", 1), body, hs256(nil)),
		"kid with NUL":               forge(strings.Replace(own, a.kid, a.kid+`\u0000`, 1), body, a.sign),
		"kid of SQL":                 forge(strings.Replace(own, a.kid, "' OR 1=1 --", 1), body, a.sign),
		"kid of 1 MB":                forge(strings.Replace(own, a.kid, strings.Repeat("A", 1<<20), 1), body, a.sign),
		"kid a number":               forge(strings.Replace(own, `"`+a.kid+`"`, "7", 1), body, a.sign),
		"kid of the next key":        forge(strings.Replace(own, a.kid, a.next(), 1), body, a.sign),
		"kid twice":                  forge(a.header(alg, `,"kid":"nobody"`), body, a.sign),
		"kid twice, in another case": forge(a.header(alg, `,"KID":"`+a.kid+`"`), body, a.sign),
		"jku":                        forge(a.header(alg, `,"jku":"https://evil.example/jwks"`), body, a.sign),
		"x5u":                        forge(a.header(alg, `,"x5u":"https://evil.example/x"`), body, a.sign),
		"jwk":                        forge(a.header(alg, `,"jwk":{"kty":"OKP","crv":"Ed25519","x":"AAAA"}`), body, signWith(otherEd)),
		"x5c":                        forge(a.header(alg, `,"x5c":["MIIB"]`), body, a.sign),
		"crit":                       forge(a.header(alg, `,"crit":["exp"]`), body, a.sign),
		"b64 false":                  forge(a.header(alg, `,"b64":false,"crit":["b64"]`), body, a.sign),
		"zip":                        forge(a.header(alg, `,"zip":"DEF"`), body, a.sign),
		// the type
		"typ of a login key":    forge(strings.Replace(own, "device+jwt", "login+jwt", 1), body, a.sign),
		"typ of a recovery key": forge(strings.Replace(own, "device+jwt", "recovery+jwt", 1), body, a.sign),
		"typ JWT":               forge(strings.Replace(own, "device+jwt", "JWT", 1), body, a.sign),
		"typ in upper case":     forge(strings.Replace(own, "device+jwt", "DEVICE+JWT", 1), body, a.sign),
		"no typ":                forge(fmt.Sprintf(`{"alg":%q,"kid":%q}`, alg, a.kid), body, a.sign),
		"typ twice":             forge(a.header(alg, `,"typ":"device+jwt"`), body, a.sign),
		// who, for whom
		"another issuer":                forge(own, a.claims("keystead.test", "evil.example"), a.sign),
		"issuer with a slash more":      forge(own, a.claims("keystead.test", "keystead.test/"), a.sign),
		"no issuer":                     forge(own, a.claims(`"iss":"https://keystead.test",`, ""), a.sign),
		"issuer a list":                 forge(own, a.claims(`"https://keystead.test"`, `["https://keystead.test"]`), a.sign),
		"another audience":              forge(own, a.claims(`"aud":"device"`, `"aud":"api"`), a.sign),
		"audiences, none the right one": forge(own, a.claims(`"aud":"device"`, `"aud":["api","devices"]`), a.sign),
		"no audience":                   forge(own, a.claims(`"aud":"device",`, ""), a.sign),
		"audience a number":             forge(own, a.claims(`"aud":"device"`, `"aud":1`), a.sign),
		"no subject":                    forge(own, a.claims(`"sub":"d1",`, ""), a.sign),
		"no id":                         forge(own, a.claims(`"jti":"x",`, ""), a.sign),
		// when
		"expired":                  forge(own, a.claims(num(now+3600), num(now-31)), a.sign),
		"expires at zero":          forge(own, a.claims(num(now+3600), "0"), a.sign),
		"expires before the epoch": forge(own, a.claims(num(now+3600), "-1"), a.sign),
		"no expiry":                forge(own, a.claims(`,"exp":`+num(now+3600), ""), a.sign),
		"expiry null":              forge(own, a.claims(num(now+3600), "null"), a.sign),
		"expiry a string":          forge(own, a.claims(num(now+3600), `"`+num(now+3600)+`"`), a.sign),
		"expiry a fraction":        forge(own, a.claims(num(now+3600), num(now+3600)+".5"), a.sign),
		"expiry 1e400":             forge(own, a.claims(num(now+3600), "1e400"), a.sign),
		"expiry beyond 64 bits":    forge(own, a.claims(num(now+3600), "99999999999999999999"), a.sign),
		"expiry true":              forge(own, a.claims(num(now+3600), "true"), a.sign),
		"expiry a list":            forge(own, a.claims(num(now+3600), "["+num(now+3600)+"]"), a.sign),
		"not before in the future": forge(own, a.claims(`"nbf":`+num(now), `"nbf":`+num(now+31)), a.sign),
		"no not before":            forge(own, a.claims(`"nbf":`+num(now)+",", ""), a.sign),
		"issued in the future":     forge(own, a.claims(`"iat":`+num(now), `"iat":`+num(now+60)), a.sign),
		// the form
		"a claim twice":                  forge(own, a.claims(`"sub":"d1"`, `"sub":"d1","sub":"d2"`), a.sign),
		"a claim twice, in another case": forge(own, a.claims(`"sub":"d1"`, `"sub":"d1","SUB":"d2"`), a.sign),
		"a claim in another case only":   forge(own, a.claims(`"exp"`, `"EXP"`), a.sign),
		"expiry twice, escaped":          forge(own, a.claims(`"jti"`, `"\u0065xp":9999999999,"jti"`), a.sign),
		"claims a list":                  forge(own, "["+body+"]", a.sign),
		"claims null":                    forge(own, "null", a.sign),
		"claims empty":                   forge(own, "", a.sign),
		"claims and something after":     forge(own, body+"{}", a.sign),
		"claims nested without end":      forge(own, a.claims(`"jti"`, `"x":`+strings.Repeat("[", 5000)+strings.Repeat("]", 5000)+`,"jti"`), a.sign),
		"header null":                    forge("null", body, a.sign),
		"header a list":                  forge("["+own+"]", body, a.sign),
		"header of 1 MB":                 forge(a.header(alg, strings.Repeat(" ", 1<<20)), body, a.sign),
		"token of 1 MB":                  a.good + strings.Repeat("A", 1<<20),
		"a million dots":                 strings.Repeat(".", 1<<20),
		"two parts":                      parts[0] + "." + parts[1],
		"four parts":                     a.good + ".AAAA",
		"five parts":                     a.good + ".AAAA.AAAA",
		"empty header":                   "." + parts[1] + "." + parts[2],
		"empty claims":                   parts[0] + ".." + parts[2],
		"padding":                        a.good + "=",
		"padding of the header":          parts[0] + "=." + parts[1] + "." + parts[2],
		"line end within":                parts[0] + "." + parts[1][:8] + "\n" + parts[1][8:] + "." + parts[2],
		"line end after":                 a.good + "\n",
		"blank before":                   " " + a.good,
		"base64 with + and /":            strings.NewReplacer("-", "+", "_", "/").Replace(forge(own, a.claims(`"jti":"x"`, `"jti":"???>>>~~~"`), a.sign)),
		"bits that base64 leaves over":   a.good[:len(a.good)-1] + bump(a.good[len(a.good)-1]),
		"JSON serialization":             fmt.Sprintf(`{"payload":%q,"protected":%q,"signature":%q}`, parts[1], parts[0], parts[2]),
		"nothing":                        "",
		"a word":                         "token",
	}
	if !strings.ContainsAny(table["base64 with + and /"], "+/") {
		delete(table, "base64 with + and /") // an unlucky signature, and no such characters in the claims
	}
	return table
}

// next is the name of the key that does not sign yet.
func (a attacker) next() string {
	for _, k := range a.w.Keys() {
		if k.State == tokens.Next {
			return k.ID
		}
	}
	return ""
}

// bump changes the bits of a last base64 digit that stand for nothing.
func bump(c byte) string {
	const digits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	return string(digits[strings.IndexByte(digits, c)^1])
}

func FuzzVerify(f *testing.F) {
	a := newAttacker(f, tokens.EdDSA)
	f.Add(a.good)
	f.Add(forge(a.header("none", ""), a.claims(), nothing))
	f.Add(forge(a.header("EdDSA", `,"jku":"x"`), a.claims(), a.sign))
	f.Add("..")
	f.Fuzz(func(t *testing.T, token string) {
		if c, err := a.w.Verify(token, tokens.Device); err == nil && token != a.good {
			t.Errorf("took %q as %+v", token, c)
		}
		_ = tokens.TypeOf(token)
	})
}

// FuzzClaims signs whatever it is given: what is then taken has to hold.
func FuzzClaims(f *testing.F) {
	a := newAttacker(f, tokens.EdDSA)
	f.Add([]byte(a.claims()))
	f.Add([]byte(a.claims(`"sub"`, `"SUB"`)))
	f.Add([]byte(`{"exp":1e3}`))
	f.Fuzz(func(t *testing.T, claims []byte) {
		token, err := a.w.Verify(forge(a.header("EdDSA", ""), string(claims), a.sign), tokens.Device)
		if err != nil {
			return
		}
		if now := a.w.Now(); token.Subject == "" || token.ID == "" || !now.Before(token.ExpiresAt) || token.Kind != tokens.Device {
			t.Errorf("took %s", claims)
		}
	})
}

func BenchmarkVerify(b *testing.B) {
	for _, alg := range []tokens.Algorithm{tokens.EdDSA, tokens.ES256, tokens.RS256} {
		w := start(b, func(c *tokens.Config) { c.Algorithm = alg })
		text := w.issue(b, tokens.Device, tokens.New{})
		b.Run(string(alg)+"/repeated", func(b *testing.B) {
			for b.Loop() {
				if _, err := w.Verify(text, tokens.Device); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(string(alg)+"/issue and first", func(b *testing.B) {
			for b.Loop() {
				if _, err := w.Verify(w.issue(b, tokens.Device, tokens.New{}), tokens.Device); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
