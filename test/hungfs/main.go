// Command hungfs is a FUSE file system that can hang as a network file system
// does whose server has gone: it shows a folder somewhere else, and answers no
// read of the files in it while it hangs, whatever interrupts come.
//
//	hungfs FOLDER MOUNTPOINT    prints "ready", then obeys lines of its standard input:
//	  hang                      reads wait from now on
//	  hang closes               closes of files do
//	  hang attributes           questions for attributes do
//	  slow lookups              each look-up of a name takes half a second
//	  slow closes               each close of a file takes a tenth
//	  go                        they go on
//
// Each line is answered by "ok". With the end of its input it goes on with what hangs, and unmounts.
package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

func main() {
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: hungfs FOLDER MOUNTPOINT")
		os.Exit(2)
	}
	if err := run(os.Args[1], os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "hungfs:", err)
		os.Exit(1)
	}
}

func run(folder, point string) error {
	var st syscall.Stat_t
	if err := syscall.Stat(folder, &st); err != nil {
		return fmt.Errorf("stat %s: %w", folder, err)
	}
	g, closes, attributes, lookups, slow := &gate{}, &gate{}, &gate{}, new(atomic.Bool), new(atomic.Bool)
	data := &fs.LoopbackRoot{Path: folder, Dev: uint64(st.Dev)}
	root := &node{LoopbackNode: &fs.LoopbackNode{RootData: data}, gate: g, closes: closes, attributes: attributes, slowLookups: lookups, slowCloses: slow}
	data.RootNode = root
	o := fuse.MountOptions{AllowOther: true, DirectMount: true, FsName: "hungfs", Name: "hungfs"}
	if _, err := fs.Mount(point, root, &fs.Options{MountOptions: o}); err != nil {
		return fmt.Errorf("mount %s: %w", point, err)
	}
	fmt.Println("ready")
	in := bufio.NewScanner(os.Stdin)
	for in.Scan() {
		g.set(in.Text() == "hang")
		closes.set(in.Text() == "hang closes")
		attributes.set(in.Text() == "hang attributes")
		lookups.Store(in.Text() == "slow lookups")
		slow.Store(in.Text() == "slow closes")
		fmt.Println("ok")
	}
	g.set(false)
	closes.set(false)
	attributes.set(false)
	// Not until the last user has gone, as server.Unmount does: programs of other tests may have copied the mount with their namespace.
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if err := syscall.Unmount(point, 0); !errors.Is(err, syscall.EBUSY) || time.Now().After(end) {
			return err
		}
	}
}

// gate holds reads back.
type gate struct {
	mu     sync.Mutex
	opened chan struct{} // closed when it opens; nil while it is open
}

func (g *gate) set(shut bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case shut && g.opened == nil:
		g.opened = make(chan struct{})
	case !shut && g.opened != nil:
		close(g.opened)
		g.opened = nil
	}
}

func (g *gate) pass() {
	g.mu.Lock()
	c := g.opened
	g.mu.Unlock()
	if c != nil {
		<-c
	}
}

type node struct {
	*fs.LoopbackNode
	gate, closes, attributes *gate
	slowLookups, slowCloses  *atomic.Bool
}

var (
	_ fs.NodeOpener      = (*node)(nil)
	_ fs.NodeGetattrer   = (*node)(nil)
	_ fs.NodeLookuper    = (*node)(nil)
	_ fs.NodeWrapChilder = (*node)(nil)
)

func (n *node) WrapChild(_ context.Context, ops fs.InodeEmbedder) fs.InodeEmbedder {
	return &node{LoopbackNode: ops.(*fs.LoopbackNode), gate: n.gate, closes: n.closes, attributes: n.attributes, slowLookups: n.slowLookups, slowCloses: n.slowCloses}
}

func (n *node) Lookup(ctx context.Context, name string, out *fuse.EntryOut) (*fs.Inode, syscall.Errno) {
	if n.slowLookups.Load() {
		time.Sleep(500 * time.Millisecond)
	}
	return n.LoopbackNode.Lookup(ctx, name, out)
}

func (n *node) Getattr(ctx context.Context, f fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	n.attributes.pass()
	return n.LoopbackNode.Getattr(ctx, f, out)
}

func (n *node) Open(ctx context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	f, how, e := n.LoopbackNode.Open(ctx, flags)
	if e != 0 {
		return nil, 0, e
	}
	// Nothing may come from the kernel's cache.
	return &file{FileHandle: f, gate: n.gate, closes: n.closes, slowCloses: n.slowCloses}, how&^uint32(fuse.FOPEN_PASSTHROUGH) | fuse.FOPEN_DIRECT_IO, 0
}

type file struct {
	fs.FileHandle
	gate, closes *gate
	slowCloses   *atomic.Bool
}

var (
	_ fs.FileReader   = (*file)(nil)
	_ fs.FileWriter   = (*file)(nil)
	_ fs.FileReleaser = (*file)(nil)
	_ fs.FileFsyncer  = (*file)(nil)
	_ fs.FileFlusher  = (*file)(nil)
)

func (f *file) Read(ctx context.Context, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	f.gate.pass()
	return f.FileHandle.(fs.FileReader).Read(ctx, dest, off)
}

func (f *file) Write(ctx context.Context, data []byte, off int64) (uint32, syscall.Errno) {
	return f.FileHandle.(fs.FileWriter).Write(ctx, data, off)
}

func (f *file) Flush(ctx context.Context) syscall.Errno {
	f.closes.pass()
	if f.slowCloses.Load() {
		time.Sleep(100 * time.Millisecond)
	}
	return f.FileHandle.(fs.FileFlusher).Flush(ctx)
}

func (f *file) Fsync(ctx context.Context, flags uint32) syscall.Errno {
	return f.FileHandle.(fs.FileFsyncer).Fsync(ctx, flags)
}

func (f *file) Release(ctx context.Context) syscall.Errno {
	return f.FileHandle.(fs.FileReleaser).Release(ctx)
}
