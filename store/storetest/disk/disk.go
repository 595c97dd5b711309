// Package disk is a disk in memory, mounted by FUSE, for tests of what a power
// cut, a full disk or a failing one leave of a database. It is one directory of
// files, and remembers for each what has reached the platter: what was written
// since the last fsync may be there after a cut, or not, or in part.
//
// Only another process may map a file of it: one that waits for a page that it
// serves itself waits for ever.
package disk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// sector is what a disk writes whole.
const sector = 512

// Disk is what is mounted at Dir.
type Disk struct {
	Dir string

	server *fuse.Server

	mu      sync.Mutex
	names   map[string]*content // as processes see them
	durable map[string]*content // as they are on the platter
	renames []nameOp            // not yet there, in order
	off     bool                // the power is cut
	limit   int64               // 0: none
	fsyncs  int
	failAt  int // the fsync that fails, counted from 1; 0: none
	steps   int // writes, truncations and fsyncs
	after   int // the step after which then is called
	then    func()
	inos    uint64
}

// content is what a file holds.
type content struct {
	ino     uint64
	now     []byte
	durable []byte
	pending []writeOp
}

// writeOp is a write, or a truncation if data is nil.
type writeOp struct {
	off  int64
	data []byte
}

// nameOp gives a name to a content, or takes it away if that is nil.
type nameOp struct {
	name string
	c    *content
}

// Mount mounts a disk that holds files. The error says what keeps it from being
// mounted, such as missing rights.
func Mount(files map[string][]byte) (*Disk, error) {
	mountpoint, err := os.MkdirTemp("", "disk-*")
	if err != nil {
		return nil, err
	}
	d := &Disk{Dir: mountpoint, names: map[string]*content{}, durable: map[string]*content{}}
	for name, b := range files {
		c := d.content()
		c.now, c.durable = bytes.Clone(b), bytes.Clone(b)
		d.names[name], d.durable[name] = c, c
	}
	zero := time.Duration(0)
	d.server, err = fs.Mount(mountpoint, &dir{d: d}, &fs.Options{
		AttrTimeout: &zero, EntryTimeout: &zero,
		MountOptions: fuse.MountOptions{DirectMountStrict: true, FsName: "disk", Name: "test"},
	})
	if err != nil {
		os.Remove(mountpoint)
		return nil, fmt.Errorf("no FUSE file system can be mounted here (it takes root and /dev/fuse): %w", err)
	}
	return d, nil
}

// Unmount ends the disk. No process may have a file on it open.
func (d *Disk) Unmount() error {
	err := d.server.Unmount()
	for try := 0; errors.Is(err, syscall.EBUSY) && try < 20; try++ { // whoever looks at all mounts holds it for a moment
		time.Sleep(50 * time.Millisecond)
		err = d.server.Unmount()
	}
	if err != nil {
		err = errors.Join(err, syscall.Unmount(d.Dir, syscall.MNT_DETACH))
	}
	return errors.Join(err, os.Remove(d.Dir))
}

// SetLimit has writes beyond n bytes of a file fail for want of space; 0 takes
// the limit away.
func (d *Disk) SetLimit(n int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.limit = n
}

// FailSync has the nth fsync from now on fail with EIO. As with Linux, what it
// should have made durable never is, though it can be read.
func (d *Disk) FailSync(n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.failAt = d.fsyncs + n
}

// After has do called when the nth write, truncation or fsync from now on is done,
// before the process that asked for it is told: where it ends a process, that
// ends between this step and the next.
func (d *Disk) After(n int, do func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.after, d.then = d.steps+n, do
}

// Steps returns how many writes, truncations and fsyncs there were.
func (d *Disk) Steps() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.steps
}

// step counts what was done.
func (d *Disk) step() {
	if d.steps++; d.steps == d.after {
		d.then()
	}
}

// Fsyncs returns how many there were.
func (d *Disk) Fsyncs() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.fsyncs
}

// Files returns the files as processes see them.
func (d *Disk) Files() map[string][]byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	files := map[string][]byte{}
	for name, c := range d.names {
		files[name] = bytes.Clone(c.now)
	}
	return files
}

// Cut is what a power cut left: many states are possible.
type Cut struct {
	names   map[string]*content
	renames []nameOp
	// Pending is how many writes and changes of names had not reached the platter.
	Pending int
}

// Cut cuts the power: from now on every operation fails.
func (d *Disk) Cut() *Cut {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.off = true
	copies := map[*content]*content{}
	frozen := func(c *content) *content {
		if c == nil {
			return nil
		}
		if copies[c] == nil {
			copies[c] = &content{durable: c.durable, pending: c.pending} // nothing changes them any more
		}
		return copies[c]
	}
	cut := &Cut{names: map[string]*content{}}
	for name, c := range d.durable {
		cut.names[name] = frozen(c)
	}
	for _, op := range d.renames {
		cut.renames = append(cut.renames, nameOp{op.name, frozen(op.c)})
	}
	cut.Pending = len(cut.renames)
	for _, c := range copies {
		cut.Pending += len(c.pending)
	}
	return cut
}

// Image returns the files as they may be found. Of image 0 nothing pending
// reached the platter, of 1 everything; of the others some of the writes did, in
// any order, and from 4 on in part, sector by sector. Names change in order, as
// with file systems that keep a journal.
func (c *Cut) Image(i int, r *rand.Rand) map[string][]byte {
	names := maps.Clone(c.names)
	keep := len(c.renames)
	switch i {
	case 0:
		keep = 0
	case 1:
	default:
		keep = r.IntN(keep + 1)
	}
	for _, op := range c.renames[:keep] {
		if op.c == nil {
			delete(names, op.name)
		} else {
			names[op.name] = op.c
		}
	}
	files := map[string][]byte{}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		files[name] = names[name].image(i, r)
	}
	return files
}

func (c *content) image(i int, r *rand.Rand) []byte {
	b := bytes.Clone(c.durable)
	pending := slices.Clone(c.pending)
	if i > 1 {
		r.Shuffle(len(pending), func(x, y int) { pending[x], pending[y] = pending[y], pending[x] })
	}
	for _, op := range pending {
		if i == 0 || i > 1 && r.IntN(2) == 0 {
			continue
		}
		if i < 4 || len(op.data) <= sector {
			b = op.apply(b)
			continue
		}
		for from := 0; from < len(op.data); from += sector {
			if r.IntN(3) > 0 {
				b = writeOp{op.off + int64(from), op.data[from:min(from+sector, len(op.data))]}.apply(b)
			}
		}
	}
	return b
}

func (op writeOp) apply(b []byte) []byte {
	end := op.off + int64(len(op.data))
	if missing := end - int64(len(b)); missing > 0 {
		b = append(b, make([]byte, missing)...)
	}
	if op.data == nil {
		return b[:op.off]
	}
	copy(b[op.off:], op.data)
	return b
}

// Write writes files into a directory of the real file system, with holes where
// they hold zeros.
func Write(into string, files map[string][]byte) error {
	for name, b := range files {
		f, err := os.OpenFile(filepath.Join(into, name), os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
		if err != nil {
			return err
		}
		zeros := make([]byte, 1<<16)
		for off := 0; off < len(b) && err == nil; off += len(zeros) {
			part := b[off:min(off+len(zeros), len(b))]
			if !bytes.Equal(part, zeros[:len(part)]) {
				_, err = f.WriteAt(part, int64(off))
			}
		}
		if err := errors.Join(err, f.Truncate(int64(len(b))), f.Close()); err != nil {
			return err
		}
	}
	return nil
}

func (d *Disk) content() *content {
	d.inos++
	return &content{ino: d.inos + 1} // 1 is the directory
}

// set changes a name, for processes at once and on the platter in time.
func (d *Disk) set(name string, c *content) {
	if c == nil {
		delete(d.names, name)
	} else {
		d.names[name] = c
	}
	d.renames = append(d.renames, nameOp{name, c})
}

// sync counts an fsync, and says whether it fails.
func (d *Disk) sync() syscall.Errno {
	if d.off {
		return syscall.EIO
	}
	if d.fsyncs++; d.fsyncs == d.failAt {
		return syscall.EIO
	}
	return 0
}

// dir is the one directory.
type dir struct {
	fs.Inode
	d *Disk
}

var (
	_ fs.NodeLookuper  = (*dir)(nil)
	_ fs.NodeReaddirer = (*dir)(nil)
	_ fs.NodeCreater   = (*dir)(nil)
	_ fs.NodeUnlinker  = (*dir)(nil)
	_ fs.NodeRenamer   = (*dir)(nil)
	_ fs.NodeLinker    = (*dir)(nil)
	_ fs.NodeFsyncer   = (*dir)(nil)
	_ fs.NodeOpener    = (*file)(nil)
	_ fs.NodeReader    = (*file)(nil)
	_ fs.NodeWriter    = (*file)(nil)
	_ fs.NodeFsyncer   = (*file)(nil)
	_ fs.NodeGetattrer = (*file)(nil)
	_ fs.NodeSetattrer = (*file)(nil)
)

func (n *dir) node(ctx context.Context, c *content, out *fuse.EntryOut) *fs.Inode {
	c.attributes(&out.Attr)
	return n.NewInode(ctx, &file{d: n.d, c: c}, fs.StableAttr{Ino: c.ino})
}

func (n *dir) Lookup(ctx context.Context, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	n.d.mu.Lock()
	defer n.d.mu.Unlock()
	c := n.d.names[name]
	if c == nil {
		return nil, syscall.ENOENT
	}
	return n.node(ctx, c, out), 0
}

func (n *dir) Readdir(context.Context) (fs.DirStream, syscall.Errno) {
	n.d.mu.Lock()
	defer n.d.mu.Unlock()
	var list []fuse.DirEntry
	for name, c := range n.d.names {
		list = append(list, fuse.DirEntry{Name: name, Ino: c.ino, Mode: syscall.S_IFREG})
	}
	return fs.NewListDirStream(list), 0
}

func (n *dir) Create(ctx context.Context, name string, _, _ uint32, out *fuse.EntryOut) (*fs.Inode, fs.FileHandle, uint32, syscall.Errno) {
	n.d.mu.Lock()
	defer n.d.mu.Unlock()
	if n.d.off {
		return nil, nil, 0, syscall.EIO
	}
	c := n.d.content()
	n.d.set(name, c)
	return n.node(ctx, c, out), nil, fuse.FOPEN_KEEP_CACHE, 0
}

func (n *dir) Unlink(_ context.Context, name string) syscall.Errno {
	n.d.mu.Lock()
	defer n.d.mu.Unlock()
	if n.d.off {
		return syscall.EIO
	}
	n.d.set(name, nil)
	return 0
}

func (n *dir) Rename(_ context.Context, name string, _ fs.InodeEmbedder, to string, _ uint32) syscall.Errno {
	n.d.mu.Lock()
	defer n.d.mu.Unlock()
	if n.d.off {
		return syscall.EIO
	}
	c := n.d.names[name]
	n.d.set(to, c)
	n.d.set(name, nil)
	return 0
}

func (n *dir) Link(ctx context.Context, target fs.InodeEmbedder, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	n.d.mu.Lock()
	defer n.d.mu.Unlock()
	f, ok := target.(*file)
	switch {
	case n.d.off:
		return nil, syscall.EIO
	case !ok:
		return nil, syscall.EPERM
	case n.d.names[name] != nil:
		return nil, syscall.EEXIST
	}
	n.d.set(name, f.c)
	return n.node(ctx, f.c, out), 0
}

// Fsync makes the names durable.
func (n *dir) Fsync(context.Context, fs.FileHandle, uint32) syscall.Errno {
	n.d.mu.Lock()
	defer n.d.mu.Unlock()
	if errno := n.d.sync(); errno != 0 {
		return errno
	}
	for _, op := range n.d.renames {
		if op.c == nil {
			delete(n.d.durable, op.name)
		} else {
			n.d.durable[op.name] = op.c
		}
	}
	n.d.renames = nil
	return 0
}

// file is a file of the directory.
type file struct {
	fs.Inode
	d *Disk
	c *content
}

func (c *content) attributes(out *fuse.Attr) {
	out.Mode = syscall.S_IFREG | 0o600
	out.Size = uint64(len(c.now))
	out.Nlink = 1
}

func (f *file) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	f.c.attributes(&out.Attr)
	return 0
}

func (f *file) Setattr(_ context.Context, _ fs.FileHandle, in *fuse.SetAttrIn, out *fuse.AttrOut) syscall.Errno {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if size, ok := in.GetSize(); ok {
		if f.d.off {
			return syscall.EIO
		}
		f.do(writeOp{off: int64(size)}) //nolint:gosec // G115: the kernel's sizes are signed
	}
	f.c.attributes(&out.Attr)
	return 0
}

func (f *file) Open(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return nil, fuse.FOPEN_KEEP_CACHE, 0
}

func (f *file) Read(_ context.Context, _ fs.FileHandle, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if off >= int64(len(f.c.now)) {
		return fuse.ReadResultData(nil), 0
	}
	return fuse.ReadResultData(dest[:copy(dest, f.c.now[off:])]), 0
}

func (f *file) Write(_ context.Context, _ fs.FileHandle, data []byte, off int64) (uint32, syscall.Errno) {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	switch {
	case f.d.off:
		return 0, syscall.EIO
	case f.d.limit > 0 && off+int64(len(data)) > f.d.limit:
		return 0, syscall.ENOSPC
	}
	f.do(writeOp{off, bytes.Clone(data)})
	return uint32(len(data)), 0 //nolint:gosec // G115: at most 128 KiB
}

func (f *file) do(op writeOp) {
	f.c.now = op.apply(f.c.now)
	f.c.pending = append(f.c.pending, op)
	f.d.step()
}

func (f *file) Fsync(context.Context, fs.FileHandle, uint32) syscall.Errno {
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if f.d.off {
		return syscall.EIO
	}
	errno := f.d.sync()
	if errno == 0 {
		for _, op := range f.c.pending {
			f.c.durable = op.apply(f.c.durable)
		}
	}
	f.c.pending = nil
	f.d.step()
	return errno
}
