package seal

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/crypto/argon2"
)

// Master is the master key: what wraps the data keys.
type Master struct {
	from       string // where it was found, for people
	key        Secret // nil until a passphrase is stretched
	passphrase Secret
	kdf        *kdf
}

// kdf is how a passphrase is made a key (argon2id, RFC 9106).
type kdf struct {
	Name    string `json:"name"`
	Salt    []byte `json:"salt"`
	Time    uint32 `json:"time"`
	Memory  uint32 `json:"memory"` // in KiB
	Threads uint8  `json:"threads"`
}

const (
	minPassphrase = 12
	maxMasterFile = 4 << 10

	// passphraseVariable holds the passphrase where there is no file of it.
	passphraseVariable = "KEYSTEAD_PASSPHRASE"
)

// Place is where a Source is looked up.
type Place struct {
	Dir    string              // where relative paths begin
	Getenv func(string) string // os.Getenv if nil
	Create bool                // make the file if it is not there: at first start only
}

// ErrNoMaster says that there is no master key where it should be.
var ErrNoMaster = errors.New("seal: no master key")

// Master fetches the master key.
func (s Source) Master(at Place) (*Master, error) {
	if at.Getenv == nil {
		at.Getenv = os.Getenv
	}
	switch s.Kind {
	case FromFile:
		return s.fromFile(at)
	case FromEnv:
		text := at.Getenv(s.Variable)
		if text == "" {
			return nil, fmt.Errorf("%w: the variable %s is not set", ErrNoMaster, s.Variable)
		}
		return parse("$"+s.Variable, []byte(text))
	case FromCredential:
		return s.fromCredential(at)
	case FromPassphrase:
		return s.fromPassphrase(at)
	}
	return nil, fmt.Errorf("seal: %w", s.Validate())
}

func (s Source) fromFile(at Place) (*Master, error) {
	path := at.path(s.File)
	text, err := readPrivate(path)
	if errors.Is(err, fs.ErrNotExist) {
		if !at.Create {
			return nil, fmt.Errorf("%w: %s is missing; put back the file that belongs to this database", ErrNoMaster, path)
		}
		if err := create(path); err != nil {
			return nil, fmt.Errorf("seal: make the master key: %w", err)
		}
		text, err = readPrivate(path)
	}
	if err != nil {
		return nil, err
	}
	return parse(path, text)
}

func (s Source) fromCredential(at Place) (*Master, error) {
	dir := at.Getenv("CREDENTIALS_DIRECTORY")
	if dir == "" {
		return nil, fmt.Errorf("%w: $CREDENTIALS_DIRECTORY is not set; have systemd load it (LoadCredential=%s:FILE)", ErrNoMaster, s.Credential)
	}
	if filepath.Base(s.Credential) != s.Credential {
		return nil, fmt.Errorf("seal: %q is not the name of a credential", s.Credential)
	}
	path := filepath.Join(dir, s.Credential) // systemd sees to who may read it
	text, err := readLimited(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: there is no credential %s in $CREDENTIALS_DIRECTORY", ErrNoMaster, s.Credential)
	}
	if err != nil {
		return nil, err
	}
	return parse(path, text)
}

func (s Source) fromPassphrase(at Place) (*Master, error) {
	from, text := "$"+passphraseVariable, []byte(at.Getenv(passphraseVariable))
	if s.PassphraseFile != "" {
		from = at.path(s.PassphraseFile)
		var err error
		if text, err = readPrivate(from); err != nil {
			return nil, err
		}
	}
	text = bytes.TrimRight(text, "\r\n")
	if len(text) == 0 {
		return nil, fmt.Errorf("%w: there is no passphrase in %s", ErrNoMaster, from)
	}
	if len(text) < minPassphrase {
		return nil, fmt.Errorf("seal: the passphrase in %s is shorter than %d characters", from, minPassphrase)
	}
	return &Master{from: from, passphrase: text}, nil
}

func (at Place) path(name string) string {
	if filepath.IsAbs(name) {
		return name
	}
	return filepath.Join(at.Dir, name)
}

// readPrivate reads a file that only its owner may read.
func readPrivate(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	if mode := info.Mode(); !mode.IsRegular() {
		return nil, fmt.Errorf("seal: %s is not a file", path)
	} else if mode.Perm()&0o077 != 0 && runtime.GOOS != "windows" {
		return nil, fmt.Errorf("seal: others than its owner may read or write %s (mode %04o): chmod 600 %[1]s, and think about who has read it", path, mode.Perm())
	}
	return limited(f)
}

func readLimited(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	defer f.Close()
	return limited(f)
}

func limited(f *os.File) ([]byte, error) {
	text, err := io.ReadAll(io.LimitReader(f, maxMasterFile+1))
	if err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	if len(text) > maxMasterFile {
		return nil, fmt.Errorf("seal: %s is too large to be a key or a passphrase", f.Name())
	}
	return text, nil
}

// create writes a new key to path, whole and on the disk before it has its name:
// a database must never be sealed under a key that a power failure takes away.
func create(path string) error {
	dir := filepath.Dir(path)
	f, err := os.CreateTemp(dir, filepath.Base(path)+".new-*") // mode 0600
	if err != nil {
		return err
	}
	defer os.Remove(f.Name()) // gone already if all went well
	key := NewSecret(keySize)
	defer key.Wipe()
	_, err = f.WriteString(hex.EncodeToString(key) + "\n")
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	switch err := os.Link(f.Name(), path); { // unlike a rename, never replaces a key
	case errors.Is(err, fs.ErrExist):
		return err
	case err != nil: // a file system without links
		if err := os.Rename(f.Name(), path); err != nil {
			return err
		}
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return d.Sync()
}

// parse reads 32 bytes as they are, in hex, or in base64 of either alphabet.
func parse(from string, text []byte) (*Master, error) {
	if len(text) == keySize {
		return &Master{from: from, key: text}, nil
	}
	word := string(bytes.TrimSpace(text))
	for _, decode := range []func(string) ([]byte, error){
		hex.DecodeString,
		base64.StdEncoding.Strict().DecodeString,
		base64.RawStdEncoding.Strict().DecodeString,
		base64.URLEncoding.Strict().DecodeString,
		base64.RawURLEncoding.Strict().DecodeString,
	} {
		if key, err := decode(word); err == nil && len(key) == keySize {
			return &Master{from: from, key: key}, nil
		}
	}
	return nil, fmt.Errorf("seal: what is in %s is not a key: 32 bytes, in hex or base64 (openssl rand -hex 32 makes one)", from)
}

// fresh makes m ready to wrap a ring that it has not wrapped before.
func (m *Master) fresh() error {
	if m.passphrase == nil {
		return nil
	}
	return m.unlock(&kdf{Name: "argon2id", Salt: NewSecret(16), Time: 3, Memory: 64 << 10, Threads: 4})
}

// unlock makes the key from the passphrase, if m is one.
func (m *Master) unlock(k *kdf) error {
	switch {
	case m.passphrase == nil && k == nil:
		return nil
	case m.passphrase == nil:
		return fmt.Errorf("%w: the database was sealed under a passphrase; set master_key.source to passphrase", ErrMaster)
	case k == nil:
		return fmt.Errorf("%w: the database was sealed under a key, not a passphrase; set master_key.source to where that is", ErrMaster)
	// The record is not authenticated yet: its numbers must not cost any more
	// memory and time than ours ever will.
	case k.Name != "argon2id", len(k.Salt) < 8, len(k.Salt) > 64, k.Time < 1, k.Time > 32,
		k.Memory < 8<<10, k.Memory > 1<<20, k.Threads < 1, k.Threads > 64:
		return errors.New("seal: the keyring asks for a passphrase in a way this program does not know")
	}
	m.kdf = k
	m.key = argon2.IDKey(m.passphrase, k.Salt, k.Time, k.Memory, k.Threads, keySize)
	return nil
}

// fingerprint tells master keys apart, and tells nothing of them.
func (m *Master) fingerprint() string {
	b, err := derive(m.key, "master fingerprint")
	if err != nil {
		panic(err) // 32 bytes are always to be had (RFC 5869, 2.3)
	}
	return hex.EncodeToString(b[:8])
}

func (m *Master) box() (*Box, error) {
	key, err := derive(m.key, "keyring")
	if err != nil {
		return nil, fmt.Errorf("seal: %w", err)
	}
	return NewBox(key)
}
