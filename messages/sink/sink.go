// Package sink has the places messages can go: a file, a webhook, an MQTT broker.
package sink

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"

	"keystead/messages"
)

// Config is one sink of the configuration.
type Config struct {
	Name         string `mapstructure:"name"`
	Type         string `mapstructure:"type"`          // file, webhook or mqtt
	Path         string `mapstructure:"path"`          // file: JSON lines are appended to it
	URL          string `mapstructure:"url"`           // webhook: https://…; mqtt: mqtts://host:8883 or mqtt://host:1883
	SecretFile   string `mapstructure:"secret_file"`   // webhook: what deliveries are signed with
	Topic        string `mapstructure:"topic"`         // mqtt: {organisation}, {device} and {name} stand for the sender's
	ClientID     string `mapstructure:"client_id"`     // mqtt
	Username     string `mapstructure:"username"`      // mqtt
	PasswordFile string `mapstructure:"password_file"` // mqtt
	CAFile       string `mapstructure:"ca_file"`       // mqtt: PEM certificates trusted besides the system's
	Certificate  string `mapstructure:"certificate"`   // mqtt: client certificate, PEM
	Key          string `mapstructure:"key"`           // mqtt: its key, PEM
}

var nameForm = regexp.MustCompile(`^[a-z0-9-]{1,32}$`)

// Validate reports what is wrong with c.
func (c Config) Validate() error {
	var all []error
	need := func(ok bool, format string, args ...any) {
		if !ok {
			all = append(all, fmt.Errorf(format, args...))
		}
	}
	need(nameForm.MatchString(c.Name), "name: %q must be of a to z, 0 to 9 and -", c.Name)
	switch c.Type {
	case "file":
		need(c.Path != "", "path: must name a file")
	case "webhook":
		need(strings.HasPrefix(c.URL, "https://"), "url: must begin with https://")
	case "mqtt":
		need(strings.HasPrefix(c.URL, "mqtts://") || strings.HasPrefix(c.URL, "mqtt://"), "url: must begin with mqtts:// or mqtt://")
		need(c.Topic != "" && !strings.ContainsAny(c.Topic, "+#\x00"), "topic: must be one topic, without + and #")
		need((c.Certificate == "") == (c.Key == ""), "certificate: is set together with key, or neither is")
	default:
		need(false, "type: %q is none of file, webhook, mqtt", c.Type)
	}
	return errors.Join(all...)
}

// File appends messages to a file, a JSON object a line, and has each on the
// disk before the next.
type File struct {
	name, path string

	mu     sync.Mutex
	file   *os.File
	recent map[string]bool // ids of the messages at its end when it was opened
}

// NewFile returns a sink that appends to the file at path, which is made if
// there is none, and made again if somebody moves it away.
func NewFile(name, path string) *File { return &File{name: name, path: path} }

// Name returns the sink's name.
func (f *File) Name() string { return f.name }

// Deliver appends m, unless it is there: then a crash came between that and its
// removal from the queue.
func (f *File) Deliver(_ context.Context, m messages.Message) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := f.open(); err != nil {
		return err
	}
	if f.recent[m.ID] {
		return nil
	}
	line, err := json.Marshal(m)
	if err != nil {
		return fmt.Errorf("sink %s: %w", f.name, err)
	}
	if _, err := f.file.Write(append(line, '\n')); err != nil {
		return errors.Join(fmt.Errorf("sink %s: %w", f.name, err), f.reset())
	}
	if err := f.file.Sync(); err != nil {
		return errors.Join(fmt.Errorf("sink %s: %w", f.name, err), f.reset())
	}
	return nil
}

// open opens the file if it is not open, or is another one than is at its path.
func (f *File) open() error {
	if f.file != nil {
		here, err1 := os.Stat(f.path)
		open, err2 := f.file.Stat()
		if err1 == nil && err2 == nil && os.SameFile(here, open) {
			return nil
		}
		if err := f.reset(); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(filepath.Dir(f.path), 0o750); err != nil {
		return fmt.Errorf("sink %s: %w", f.name, err)
	}
	file, err := os.OpenFile(f.path, os.O_RDWR|os.O_CREATE|os.O_APPEND, 0o640) //nolint:gosec // G302: whoever collects the messages is in the file's group
	if err != nil {
		return fmt.Errorf("sink %s: %w", f.name, err)
	}
	f.file = file
	return f.mend()
}

// mend cuts off a line that a crash left unfinished, and remembers which
// messages may be waiting in the queue though they are here.
func (f *File) mend() error {
	const tail = messages.Batch * 2 * messages.MaxBody
	size, err := f.file.Seek(0, io.SeekEnd)
	if err != nil {
		return fmt.Errorf("sink %s: %w", f.name, err)
	}
	from := max(0, size-tail)
	b := make([]byte, size-from)
	if _, err := f.file.ReadAt(b, from); err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("sink %s: %w", f.name, err)
	}
	whole := b[:bytes.LastIndexByte(b, '\n')+1]
	if len(whole) < len(b) {
		if err := f.file.Truncate(from + int64(len(whole))); err != nil {
			return fmt.Errorf("sink %s: %w", f.name, err)
		}
	}
	f.recent = map[string]bool{}
	for line := range bytes.Lines(whole) {
		var m struct {
			ID string `json:"id"`
		}
		if json.Unmarshal(line, &m) == nil { // the first may be cut
			f.recent[m.ID] = true
		}
	}
	return nil
}

func (f *File) reset() error {
	if f.file == nil {
		return nil
	}
	err := f.file.Close()
	f.file, f.recent = nil, nil
	return err
}

// Close closes the file.
func (f *File) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.reset()
}
