package authsets

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"net/netip"
	"strings"
	"sync"

	"keystead/fault"
)

// Request is what a device asks to be let in with.
type Request struct {
	Body      []byte // as it came: the signature is over these bytes
	Signature string // base64
	Remote    netip.Addr
	Chain     []*x509.Certificate // of the TLS client, unverified; nil without
}

// claim is a request whose signature is good.
type claim struct {
	identity Canonical
	key      []byte // PKIX
	tenant   string
}

// The errors of a request, in the words that clients of Mender know.
var (
	errUnauthorized = fault.New(fault.Unauthenticated, "dev auth: unauthorized")
	errSignature    = fault.New(fault.Unauthenticated, "signature verification failed")
	errNoSignature  = fault.New(fault.Invalid, "missing request signature header")
	errKeyForm      = fault.New(fault.Invalid, "invalid auth request: cannot decode public key")
	errKeyType      = fault.New(fault.Invalid, "invalid auth request: unrecognized public key type")
)

// Bounds on RSA keys: shorter ones are broken, longer ones cost too much to verify.
const (
	minRSA = 2048
	maxRSA = 8192
)

// parse reads a request and checks its signature. Nothing is looked up before that, and
// nothing is written. The order of the checks is the one that clients know.
func (s *Service) parse(r Request) (claim, error) {
	slot := slotOf(r)
	if c, ok := s.requests.get(slot); ok {
		return c, nil
	}
	var body struct {
		Identity string `json:"id_data"`
		Key      string `json:"pubkey"`
		Tenant   string `json:"tenant_token"`
	}
	if err := json.Unmarshal(r.Body, &body); err != nil {
		return claim{}, fault.New(fault.Invalid, "failed to decode auth request: %v", err)
	}
	if body.Identity == "" {
		return claim{}, fault.New(fault.Invalid, "invalid auth request: id_data must be provided")
	}
	if body.Key == "" {
		return claim{}, fault.New(fault.Invalid, "invalid auth request: pubkey must be provided")
	}
	key, der, err := ParseKey(body.Key)
	if err != nil {
		return claim{}, err
	}
	id, err := Canonicalise([]byte(body.Identity))
	if err != nil {
		return claim{}, fault.New(fault.Invalid, "invalid auth request: %v", err)
	}
	if r.Signature == "" {
		return claim{}, errNoSignature
	}
	if !signed(key, r.Body, r.Signature) {
		return claim{}, errSignature
	}
	c := claim{identity: id, key: der, tenant: body.Tenant}
	s.requests.put(slot, c)
	return c, nil
}

// ParseKey reads a public key in PEM and returns it with its one encoding, whatever line
// ends and blanks it came with.
func ParseKey(text string) (crypto.PublicKey, []byte, error) {
	block, _ := pem.Decode([]byte(text))
	if block == nil || block.Type != "PUBLIC KEY" {
		return nil, nil, errKeyForm
	}
	return parseDER(block.Bytes)
}

// edHead is what comes before the bytes of an Ed25519 key in PKIX (RFC 8410, 4 and 10.1), which is
// the only way of writing one.
var edHead = []byte("\x30\x2a\x30\x05\x06\x03\x2b\x65\x70\x03\x21\x00")

// parseDER is ParseKey for PKIX.
func parseDER(raw []byte) (crypto.PublicKey, []byte, error) {
	if key, ok := bytes.CutPrefix(raw, edHead); ok && len(key) == ed25519.PublicKeySize {
		return ed25519.PublicKey(key), raw, nil
	}
	key, err := x509.ParsePKIXPublicKey(raw)
	if err != nil {
		if strings.Contains(err.Error(), "unknown public key algorithm") {
			return nil, nil, errKeyType
		}
		return nil, nil, errKeyForm
	}
	switch k := key.(type) {
	case *rsa.PublicKey:
		if n := k.N.BitLen(); n < minRSA || n > maxRSA {
			return nil, nil, fault.New(fault.Invalid, "invalid auth request: an RSA key has %d to %d bits here", minRSA, maxRSA)
		}
	case *ecdsa.PublicKey, ed25519.PublicKey:
	default:
		return nil, nil, errKeyType
	}
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		return nil, nil, errKeyType
	}
	return key, der, nil
}

// signed reports whether signature, in base64, is of body by key.
func signed(key crypto.PublicKey, body []byte, signature string) bool {
	sig, err := base64.StdEncoding.DecodeString(signature)
	if err != nil {
		return false
	}
	switch k := key.(type) {
	case *rsa.PublicKey:
		sum := sha256.Sum256(body)
		return rsa.VerifyPKCS1v15(k, crypto.SHA256, sum[:], sig) == nil
	case *ecdsa.PublicKey:
		sum := sha256.Sum256(body)
		return ecdsa.VerifyASN1(k, sum[:], sig)
	case ed25519.PublicKey:
		return ed25519.Verify(k, body, sig)
	}
	return false
}

// slotOf names a request by all that its signature depends on.
func slotOf(r Request) [sha256.Size]byte {
	const ordinary = 1024 // bytes, which need no memory of their own
	all := append(make([]byte, 0, ordinary), r.Body...)
	return sha256.Sum256(append(append(all, 0), r.Signature...))
}

// requests remembers requests whose signature was good. A device that waits sends the
// same one again and again; what comes of it is looked up each time.
type requests struct {
	mu sync.Mutex
	by map[[sha256.Size]byte]claim
}

// maxRequests bounds the memory of a requests, to some 20 MB of ordinary ones.
const maxRequests = 20_000

func (q *requests) get(slot [sha256.Size]byte) (claim, bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	c, ok := q.by[slot]
	return c, ok
}

func (q *requests) put(slot [sha256.Size]byte, c claim) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.by == nil {
		q.by = map[[sha256.Size]byte]claim{}
	}
	for old := range q.by { // any one
		if len(q.by) < maxRequests {
			break
		}
		delete(q.by, old)
	}
	q.by[slot] = c
}
