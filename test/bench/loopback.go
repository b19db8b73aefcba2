package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
)

// loopback serves go-fuse's own loopback over dir at mnt until it is told to
// end, with the options of its example program.
func loopback(dir, mnt string, direct bool) error {
	root, err := fs.NewLoopbackRoot(dir)
	if err != nil {
		return err
	}
	if direct {
		node, ok := root.(*fs.LoopbackNode)
		if !ok {
			return fmt.Errorf("go-fuse's loopback is a %T now", root)
		}
		root = &directNode{node}
	}
	second := time.Second // as libfuse has it: the example says so
	server, err := fs.Mount(mnt, root, &fs.Options{
		AttrTimeout: &second, EntryTimeout: &second, NullPermissions: true,
		MountOptions: fuse.MountOptions{
			AllowOther: true, DirectMountStrict: true, FsName: dir, Name: "loopback", Options: []string{"default_permissions"},
		},
	})
	if err != nil {
		return err
	}
	end := make(chan os.Signal, 1)
	signal.Notify(end, os.Interrupt, syscall.SIGTERM)
	go func() {
		<-end
		_ = server.Unmount() // the mount namespace goes with its last process
	}()
	server.Wait()
	return nil
}

// directNode is go-fuse's loopback with every file opened for direct I/O.
type directNode struct{ *fs.LoopbackNode }

func (n *directNode) WrapChild(_ context.Context, child fs.InodeEmbedder) fs.InodeEmbedder {
	if l, ok := child.(*fs.LoopbackNode); ok {
		return &directNode{l}
	}
	return child
}

func (n *directNode) Open(ctx context.Context, flags uint32) (fs.FileHandle, uint32, syscall.Errno) {
	f, flags, errno := n.LoopbackNode.Open(ctx, flags)
	return direct(f), flags | fuse.FOPEN_DIRECT_IO, errno
}

func (n *directNode) Create(ctx context.Context, name string, flags, mode uint32, out *fuse.EntryOut) (*fs.Inode, fs.FileHandle, uint32, syscall.Errno) {
	inode, f, flags, errno := n.LoopbackNode.Create(ctx, name, flags, mode, out)
	return inode, direct(f), flags | fuse.FOPEN_DIRECT_IO, errno
}

// directFile is a file that go-fuse does not pass through.
type directFile struct{ *fs.LoopbackFile }

func (*directFile) PassthroughFd() (int, bool) { return 0, false }

func direct(f fs.FileHandle) fs.FileHandle {
	if l, ok := f.(*fs.LoopbackFile); ok {
		return &directFile{l}
	}
	return f
}
