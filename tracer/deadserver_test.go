package tracer_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"github.com/faultgraft/faultgraft/tracer"
	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
)

// hungFile is a file whose reads never end.
type hungFile struct {
	fs.Inode
	asked   sync.Once
	reading chan struct{}
	end     chan struct{}
}

func (h *hungFile) Open(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return nil, fuse.FOPEN_DIRECT_IO, 0
}

func (h *hungFile) Read(context.Context, fs.FileHandle, []byte, int64) (fuse.ReadResult, syscall.Errno) {
	h.asked.Do(func() { close(h.reading) })
	<-h.end
	return nil, syscall.EIO
}

// A server that hangs: the connection is aborted when the target is seized, the
// read that it was in is made again on the new file. The target sees no error.
func TestDeadServer(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	for _, d := range []string{"mnt", "ctl"} {
		if err := os.Mkdir(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	mnt, ctl := dir+"/mnt", dir+"/ctl"
	plain := inheritedFile(t, dir+"/file")
	defer func() { _ = plain.Close() }()
	if err := unix.Mount("none", ctl, "fusectl", 0, ""); err != nil {
		t.Skipf("no fusectl: %v", err)
	}
	defer func() {
		if err := unix.Unmount(ctl, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	}()
	hung := &hungFile{reading: make(chan struct{}), end: make(chan struct{})}
	root := &fs.Inode{}
	server, err := fs.Mount(mnt, root, &fs.Options{MountOptions: fuse.MountOptions{DirectMountStrict: true},
		OnAdd: func(ctx context.Context) {
			root.AddChild("file", root.NewPersistentInode(ctx, hung, fs.StableAttr{Mode: unix.S_IFREG}), false)
		}})
	if err != nil {
		t.Skipf("no FUSE: %v", err)
	}
	var st unix.Stat_t
	if err := unix.Stat(mnt, &st); err != nil {
		t.Fatal(err)
	}
	mount := mountID(t, mnt)
	abort := func() error {
		return os.WriteFile(fmt.Sprintf("%s/%d/abort", ctl, unix.Minor(st.Dev)), []byte("1"), 0)
	}
	defer func() {
		_ = abort() // it may have been
		close(hung.end)
		if err := unix.Unmount(mnt, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
		server.Wait()
	}()
	f, err := os.OpenFile(mnt+"/file", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	p := startWith(t, &syscall.SysProcAttr{}, []*os.File{f}, "target", "inherit", dir)
	_ = f.Close() // the server may know no flush
	p.say("check")
	<-hung.reading
	seized := false
	r := swap(t, tracer.Options{
		Processes:     func() ([]int, error) { return []int{p.pid()}, nil },
		Match:         func(o *tracer.Object) bool { return o.MountID == mount },
		Replace:       func(*tracer.Description) (int, error) { return unix.Open(dir+"/file", unix.O_RDWR|unix.O_CLOEXEC, 0) },
		Seized:        func() error { seized = true; return abort() },
		RestartErrnos: []syscall.Errno{syscall.ECONNABORTED, syscall.ENOTCONN},
		RequireAll:    true,
	})
	if !seized || len(r.Swapped) != 1 {
		t.Errorf("seized %v, report %+v", seized, r)
	}
	p.want("ok") // the read that hung
	p.check()
	p.quit()
}
