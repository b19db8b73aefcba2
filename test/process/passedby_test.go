package process

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// soon is what a target answers to a command at which nobody but the kernel is needed.
func (h *holder) soon(format string, args ...any) string {
	h.t.Helper()
	answer := h.begin(format, args...)
	select {
	case got := <-answer:
		return got
	case <-time.After(20 * time.Second):
		h.t.Fatalf("%s: it waits for a server", fmt.Sprintf(format, args...))
		return ""
	}
}

// Files that no rule can match are passed through the layer: the kernel serves them without the server. They are over the deaths of servers:
// what is open goes on while there is no server at all, what is opened afterwards is passed through again, and no file
// below has more than one of the numbers by which the kernel knows it (FUSE_DEV_IOC_BACKING_OPEN).
func TestFilesArePassedThroughOverDeaths(t *testing.T) {
	if !passthrough(t) {
		t.Skip("passthrough needs Linux 6.9")
	}
	r := newRig(t)
	h := r.start()
	g := r.inject(h, r.data, "io error=EIO op=read+write path="+r.data+"/nothing/** ttl=10m")
	h.ok("open first %s rdwr", r.write("first", "0123456789"))
	// Others open and close files all the time, so that servers die in the middle of that.
	stop := make(chan struct{})
	var load sync.WaitGroup
	end := sync.OnceFunc(func() { close(stop); load.Wait() })
	defer end()
	for i := range 4 {
		dir := filepath.Join("/proc", fmt.Sprint(h.pid()), "root", r.data)
		load.Go(func() {
			err := loop(stop, func(n int) error {
				name, text := filepath.Join(dir, fmt.Sprintf("file-%d-%d", i, n%7)), fmt.Sprint(n)
				if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
					return err
				}
				if b, err := os.ReadFile(name); err != nil || string(b) != text {
					return fmt.Errorf("%s: %q, %w", name, b, err)
				}
				return nil
			})
			if err != nil {
				t.Error(err)
			}
		})
	}
	open := []string{"first"}
	for n := 1; n <= 6 && !t.Failed(); n++ {
		time.Sleep(time.Duration(rand.IntN(100)) * time.Millisecond)
		for _, f := range open { // the first write after the file's attributes were read asks for security.capability (file_remove_privs_flags in fs/inode.c)
			h.is("ok 3", "pwrite %s 0 abc", f)
		}
		resume := suspend(t, r.oneServer())
		for _, f := range open {
			if got := h.soon("pwrite %s 0 abc", f); got != "ok 3" {
				t.Errorf("a write to %s: %q", f, got)
			}
			if got := h.soon("pread %s 0 10", f); got != "ok abc3456789" {
				t.Errorf("a read of %s: %q", f, got)
			}
		}
		if n%2 == 0 { // it dies at what it does, or as it stands
			resume()
		}
		r.replaced(syscall.SIGKILL, n)
		name := fmt.Sprint("after", n)
		h.ok("open %s %s rdwr", name, r.write(name, "0123456789"))
		open = append(open, name)
	}
	end()
	server := r.oneServer()
	for _, f := range open {
		h.ok("close %s", f)
	}
	for until := time.Now().Add(30 * time.Second); ; time.Sleep(100 * time.Millisecond) { // a release has no answer that one could wait for
		if n := openBelow(t, server, r.data); n == 0 {
			break
		} else if time.Now().After(until) {
			t.Fatalf("the server has %d files open that are closed", n)
		}
	}
	files, err := os.ReadDir(r.data)
	if err != nil {
		t.Fatal(err)
	}
	if n := backingFiles(t, server); n > len(files) { // a file may keep its number for the next who opens it
		t.Errorf("the kernel holds %d files below, of %d", n, len(files))
	}
	r.recover(g)
	for _, f := range open[:len(open)-1] { // the last was only opened
		content(t, filepath.Join(r.data, f), "abc3456789")
	}
}

// passthrough: the kernel has it.
func passthrough(t *testing.T) bool {
	t.Helper()
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	var major, minor int
	if _, err := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &major, &minor); err != nil {
		t.Fatal(err)
	}
	return major > 6 || major == 6 && minor >= 9
}

// openBelow counts the files below a directory that a process has open, but for those that it only knows (O_PATH).
func openBelow(t *testing.T, pid int, dir string) (n int) {
	t.Helper()
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		name, err := os.Readlink(fd)
		if err != nil || !strings.HasPrefix(name, dir+"/") {
			continue
		}
		var flags int
		b, err := os.ReadFile(strings.Replace(fd, "/fd/", "/fdinfo/", 1))
		if err != nil {
			continue
		}
		if _, text, ok := strings.Cut(string(b), "flags:\t"); ok {
			if _, err := fmt.Sscanf(text, "%o", &flags); err != nil {
				t.Fatal(err)
			}
		}
		if flags&unix.O_PATH == 0 {
			n++
		}
	}
	return n
}

// backingFiles counts the files that the kernel knows by numbers of a server's connection. There is no list of them:
// they are counted by taking them away.
func backingFiles(t *testing.T, server int) (n int) {
	t.Helper()
	const ( // include/uapi/linux/fuse.h
		backingOpen  = 0x4010e501
		backingClose = 0x4004e502
	)
	pidfd, err := unix.PidfdOpen(server, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(pidfd) }()
	device := -1
	fds, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", server))
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if name, _ := os.Readlink(fd); name == "/dev/fuse" && device < 0 {
			var number int
			if _, err := fmt.Sscan(filepath.Base(fd), &number); err != nil {
				t.Fatal(err)
			}
			if device, err = unix.PidfdGetfd(pidfd, number, 0); err != nil {
				t.Fatal(err)
			}
		}
	}
	if device < 0 {
		t.Fatal("the server has no /dev/fuse")
	}
	defer func() { _ = unix.Close(device) }()
	probe, err := unix.MemfdCreate("probe", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(probe) }()
	m := struct {
		fd    int32
		flags uint32
		_     uint64
	}{fd: int32(probe)}
	last, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(device), backingOpen, uintptr(unsafe.Pointer(&m)))
	if e != 0 {
		t.Fatalf("a number for a file: %v", e)
	}
	for id := uint32(1); id <= uint32(last); id++ { // they are given in turn
		if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(device), backingClose, uintptr(unsafe.Pointer(&id))); e == 0 && id != uint32(last) {
			n++
		}
	}
	return n
}
