package est

// KeyParts is the body of an answer with a key, and its boundary.
func KeyParts(plain, encrypted, certificate []byte) (body []byte, boundary string) {
	return keyParts(plain, encrypted, certificate), keyBoundary
}

// The parts of key agreement, to be held against vectors.
var (
	WrapKey   = wrapKey
	DeriveKey = deriveKey
)
