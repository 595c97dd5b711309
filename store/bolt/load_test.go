package bolt_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"

	"keystead/fault"
	"keystead/store"
	"keystead/store/bolt"
)

// The tests of durability run this program again as a process of its own, which
// changes a database until it is killed or its disk ends, and tells on its
// standard output what was acknowledged.

const (
	childEnv = "KEYSTEAD_STORE_TEST_CHILD" // the path of the database
	modeEnv  = "KEYSTEAD_STORE_TEST_MODE"
	writers  = 4
	keys     = 300 // of each writer
)

// child is the main function of such a process.
func child(path string) int {
	mode := os.Getenv(modeEnv)
	var opts []bolt.Option
	if strings.Contains(mode, "nosync") {
		opts = append(opts, bolt.UnsafeNoSync())
	}
	e, err := bolt.Open(path, opts...)
	if err != nil {
		fmt.Fprintln(os.Stderr, "open:", err)
		return 2
	}
	fmt.Println("pid", os.Getpid())
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() { write(e, w, strings.Contains(mode, "through")) })
	}
	wg.Wait()
	return 0
}

var errMeant = errors.New("meant to fail")

// write updates until one fails; through a full disk, on and on.
func write(e *bolt.Engine, w int, through bool) {
	r := rand.New(rand.NewPCG(uint64(os.Getpid()), uint64(w)))
	for {
		var seq uint64
		err := e.Update(context.Background(), func(tx store.Tx) (err error) {
			if seq, err = add(tx, fmt.Sprint("seq/", w)); err != nil {
				return err
			}
			if _, err = add(tx, "total"); err != nil {
				return err
			}
			return scribble(tx, w, r)
		})
		switch {
		case err == nil:
			fmt.Printf("ack %d %d\n", w, seq) // one write: whole or not at all
		case fault.Is(err, fault.Full):
			fmt.Println("full")
			if !through {
				return
			}
		case errors.Is(err, errMeant):
		case errors.Is(err, store.ErrUnknownOutcome):
			fmt.Println("unknown")
			return
		default:
			fmt.Fprintln(os.Stderr, "update:", err)
			return
		}
		if err := e.View(context.Background(), func(tx store.Tx) error {
			_, err := number(tx, "total")
			return err
		}); err != nil {
			fmt.Fprintln(os.Stderr, "view:", err)
			return
		}
	}
}

func number(tx store.Tx, key string) (uint64, error) {
	v, err := tx.Get([]byte(key))
	if v == nil {
		return 0, err
	}
	return binary.BigEndian.Uint64(v), nil
}

func add(tx store.Tx, key string) (uint64, error) {
	n, err := number(tx, key)
	if err != nil {
		return 0, err
	}
	return n + 1, tx.Put([]byte(key), binary.BigEndian.AppendUint64(nil, n+1))
}

// scribble changes some of the writer's pairs: under "b" is always the checksum
// of what is under "a". Now and then it leaves garbage and fails.
func scribble(tx store.Tx, w int, r *rand.Rand) error {
	for range 4 {
		k := fmt.Sprint(w, "/", r.IntN(keys))
		a, b := []byte("a/"+k), []byte("b/"+k)
		if r.IntN(4) == 0 {
			if err := errors.Join(tx.Delete(a), tx.Delete(b)); err != nil {
				return err
			}
			continue
		}
		v := make([]byte, 20+r.IntN(1500))
		for i := range v {
			v[i] = byte(r.Uint32())
		}
		if err := errors.Join(tx.Put(a, v), tx.Put(b, binary.BigEndian.AppendUint32(nil, crc32.ChecksumIEEE(v)))); err != nil {
			return err
		}
	}
	if r.IntN(10) == 0 {
		return errors.Join(tx.Put([]byte("garbage"), nil), errMeant)
	}
	return nil
}

// acked is the last update of each writer that is known to be durable.
type acked [writers]uint64

// process is a child that runs.
type process struct {
	cmd     *exec.Cmd
	ended   chan struct{}
	stderr  bytes.Buffer
	started chan struct{} // closed when it has opened the database
	changed chan struct{} // has a token when there is news

	mu      sync.Mutex
	acked   acked
	acks    int
	full    int
	unknown int
}

// start runs a child on the database at path; before names a program, and its
// arguments, that runs it, such as strace.
func start(t *testing.T, path, mode string, from acked, before ...string) *process {
	t.Helper()
	args := append(before, os.Args[0])
	p := &process{cmd: exec.Command(args[0], args[1:]...), acked: from, ended: make(chan struct{}), started: make(chan struct{}), changed: make(chan struct{}, 1)}
	p.cmd.Env = append(os.Environ(), childEnv+"="+path, modeEnv+"="+mode)
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	p.cmd.Stderr = &p.stderr
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go p.read(out)
	return p
}

func (p *process) read(out io.Reader) {
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		var w, seq uint64
		p.mu.Lock()
		switch line := lines.Text(); {
		case line == "full":
			p.full++
		case line == "unknown":
			p.unknown++
		case strings.HasPrefix(line, "pid "):
			close(p.started)
		default:
			if n, _ := fmt.Sscanf(line, "ack %d %d", &w, &seq); n == 2 {
				p.acked[w] = seq
				p.acks++
			}
		}
		p.mu.Unlock()
		select {
		case p.changed <- struct{}{}:
		default:
		}
	}
	_ = p.cmd.Wait()
	close(p.ended)
}

// kill ends the child, and what runs it, as kill -9 does, and waits for it.
func (p *process) kill() {
	_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
	<-p.ended
}

// until waits until what holds, or the child has ended.
func (p *process) until(what func() bool) bool {
	for {
		p.mu.Lock()
		holds := what()
		p.mu.Unlock()
		if holds {
			return true
		}
		select {
		case <-p.changed:
		case <-p.ended:
			p.mu.Lock()
			defer p.mu.Unlock()
			return what()
		}
	}
}

// verify opens a database that a child changed, looks whether it is whole and
// holds every update that was acknowledged, and returns what it holds. An update
// that was not acknowledged may be there: one for each writer.
func verify(ctx context.Context, path string, want acked) (got acked, err error) {
	e, err := bolt.Open(path)
	if err != nil {
		return got, err
	}
	err = e.View(ctx, func(tx store.Tx) error {
		var sum uint64
		for w := range got {
			if got[w], err = number(tx, fmt.Sprint("seq/", w)); err != nil {
				return err
			}
			sum += got[w]
			if got[w] < want[w] {
				return fmt.Errorf("lost: writer %d was told of update %d, the last found is %d", w, want[w], got[w])
			}
			if got[w] > want[w]+1 {
				return fmt.Errorf("writer %d was told of update %d, found is %d", w, want[w], got[w])
			}
		}
		if total, err := number(tx, "total"); err != nil || total != sum {
			return fmt.Errorf("torn: the updates are %d together, counted were %d: %w", sum, total, err)
		}
		return pairs(tx)
	})
	if err := errors.Join(err, e.Close()); err != nil {
		return got, err
	}
	report, err := bolt.CheckFile(ctx, path)
	if err != nil {
		return got, err
	}
	return got, report.Err()
}

func pairs(tx store.Tx) error {
	sums := map[string]uint32{}
	for e, err := range tx.Scan([]byte("b/"), nil) {
		if err != nil {
			return err
		}
		sums[string(e.Key[2:])] = binary.BigEndian.Uint32(e.Value)
	}
	for e, err := range tx.Scan([]byte("a/"), nil) {
		if err != nil {
			return err
		}
		k := string(e.Key[2:])
		if sum, ok := sums[k]; !ok || sum != crc32.ChecksumIEEE(e.Value) {
			return fmt.Errorf("torn: the pair %q does not match", k)
		}
		delete(sums, k)
	}
	if len(sums) > 0 {
		return fmt.Errorf("torn: %d halves of pairs", len(sums))
	}
	if v, err := tx.Get([]byte("garbage")); v != nil || err != nil {
		return fmt.Errorf("what a failed update wrote is there: %w", err)
	}
	return nil
}

// rounds returns how often to try, fewer with -short; the environment may ask
// for more.
func rounds(t *testing.T, n int) int {
	t.Helper()
	if s := os.Getenv("KEYSTEAD_FAULT_ROUNDS"); s != "" {
		times, err := strconv.ParseFloat(s, 64)
		if err != nil {
			t.Fatalf("KEYSTEAD_FAULT_ROUNDS: %v", err)
		}
		return int(float64(n) * times)
	}
	if testing.Short() {
		return n / 10
	}
	return n
}
