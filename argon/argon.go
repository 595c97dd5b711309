// Package argon computes argon2id in processes of its own, to which the kernel gives
// less of a processor than to the rest. A hash is made to be slow: within the server it
// would keep a processor for longer than hundreds of requests take, and Go's
// scheduler would have them wait for it.
package argon

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"runtime"
	"slices"
	"sync"
	"time"

	"golang.org/x/crypto/argon2"
)

// Pool starts as many processes as there are hashes at once, and ends each that
// has had nothing to do for a while. Fill in the fields before use.
type Pool struct {
	Command []string      // what runs [Serve] on its standard input and output
	Idle    time.Duration // after which a process ends
	Log     *slog.Logger

	mu     sync.Mutex
	idle   []*process
	closed bool
}

// patience is how long a hash may take before the process is taken to be stuck.
const patience = 20 * time.Second

// process is one that computes, and how to ask it.
type process struct {
	cmd   *exec.Cmd
	in    io.WriteCloser
	out   io.Reader
	leave *time.Timer // ends it; nil until it was put back for the first time
}

// IDKey is [argon2.IDKey]. Where a process cannot be had it computes here.
func (p *Pool) IDKey(password, salt []byte, passes, memory uint32, threads uint8, length uint32) []byte {
	key, err := p.elsewhere(password, salt, passes, memory, threads, length)
	if err != nil {
		p.Log.Warn("a password is hashed in the server's own process, where it slows others down", slog.Any("error", err))
		return argon2.IDKey(password, salt, passes, memory, threads, length)
	}
	return key
}

func (p *Pool) elsewhere(password, salt []byte, passes, memory uint32, threads uint8, length uint32) ([]byte, error) {
	x, err := p.take()
	if err != nil {
		return nil, err
	}
	stuck := time.AfterFunc(patience, func() { _ = x.cmd.Process.Kill() })
	q := question{passes, memory, length, threads, uint32(len(password)), uint32(len(salt))} //nolint:gosec // G115: a request has no more than a few MiB
	key, err := x.ask(q, password, salt)
	if stuck.Stop(); err != nil {
		x.end()
		return nil, fmt.Errorf("argon: %w", err)
	}
	p.put(x)
	return key, nil
}

// take returns a process that has nothing to do.
func (p *Pool) take() (*process, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n := len(p.idle); n > 0 {
		x := p.idle[n-1]
		p.idle = p.idle[:n-1]
		x.leave.Stop()
		return x, nil
	}
	return p.start()
}

func (p *Pool) start() (*process, error) {
	cmd := exec.Command(p.Command[0], p.Command[1:]...) //nolint:gosec,noctx // this program, again; it lasts longer than who needs it first
	cmd.SysProcAttr = ownGroup()
	cmd.Env = []string{"GOMAXPROCS=1", "GODEBUG=" + os.Getenv("GODEBUG")} // nothing of what may be secret in it
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("argon: %w", err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("argon: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("argon: %w", err)
	}
	return &process{cmd: cmd, in: in, out: out}, nil
}

// put keeps a process for the next hash.
func (p *Pool) put(x *process) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		x.end()
		return
	}
	x.leave = time.AfterFunc(p.Idle, func() { p.drop(x) })
	p.idle = append(p.idle, x)
}

// drop ends a process, unless somebody has just taken it.
func (p *Pool) drop(x *process) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if i := slices.Index(p.idle, x); i >= 0 {
		p.idle = slices.Delete(p.idle, i, i+1)
		x.end()
	}
}

// Close ends the processes; those that compute end when they are done.
func (p *Pool) Close() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	for _, x := range p.idle {
		x.leave.Stop()
		x.end()
	}
	p.idle = nil
	return nil
}

// end has a process end, and waits until it has.
func (x *process) end() {
	x.in.Close()
	_ = x.cmd.Process.Kill() // it has nothing to finish
	_ = x.cmd.Wait()
}

// question comes before the password and the salt.
type question struct {
	Passes, Memory, Length uint32
	Threads                uint8
	Password, Salt         uint32 // how long they are
}

func (x *process) ask(q question, password, salt []byte) ([]byte, error) {
	text := make([]byte, 0, binary.Size(q)+len(password)+len(salt))
	text, err := binary.Append(text, binary.BigEndian, q)
	if err != nil {
		return nil, err
	}
	text = append(append(text, password...), salt...)
	defer clear(text)
	if _, err := x.in.Write(text); err != nil {
		return nil, err
	}
	key := make([]byte, q.Length)
	_, err = io.ReadFull(x.out, key)
	return key, err
}

// Serve answers what a [Pool] asks, until it asks no more, at a lower priority than
// it was started with.
func Serve(in io.Reader, out io.Writer) error {
	_ = giveWay() // where it may not, it is still not in the server's way as a part of it would be
	for {
		var q question
		err := binary.Read(in, binary.BigEndian, &q)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("argon: %w", err)
		}
		text := make([]byte, uint64(q.Password)+uint64(q.Salt))
		if _, err := io.ReadFull(in, text); err != nil {
			return fmt.Errorf("argon: %w", err)
		}
		key := argon2.IDKey(text[:q.Password], text[q.Password:], q.Passes, q.Memory, q.Threads, q.Length)
		clear(text)
		if _, err := io.Copy(out, bytes.NewReader(key)); err != nil {
			return fmt.Errorf("argon: %w", err)
		}
		runtime.GC() // where what is let go of is overwritten, nothing is left of the password
	}
}
