package fusefs

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// DropNames has the kernel drop all names, as it does when memory is short.
func DropNames(l *Layer) {
	l.nodes.mu.RLock()
	var all []link
	for _, n := range l.nodes.byID {
		all = append(all, n.names...)
	}
	l.nodes.mu.RUnlock()
	for _, k := range all {
		_ = l.notify.dropEntry(k.dir.id, k.name) // gone with its directory
	}
}

// A file handle is good as long as its object is there, whether or not the kernel has
// forgotten it meanwhile, and stale afterwards, though its inode number is used again.
func TestFileHandles(t *testing.T) {
	if os.Geteuid() != 0 || unix.Access("/dev/fuse", unix.W_OK) != nil || MountForTest == nil {
		t.Skip("needs root and /dev/fuse")
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	l, back, mnt := MountForTest(t)
	must(os.MkdirAll(filepath.Join(back, "d/sub"), 0o755))
	must(os.WriteFile(filepath.Join(back, "d/sub/f"), []byte("content"), 0o644))
	mount, err := unix.Open(mnt, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	must(err)
	defer func() { _ = unix.Close(mount) }()
	handles := map[string]unix.FileHandle{}
	for _, n := range []string{"d/sub/f", "d/sub", "d"} {
		h, _, err := unix.NameToHandleAt(unix.AT_FDCWD, filepath.Join(mnt, n), 0)
		must(err)
		handles[n] = h
	}
	read := func(name string) (string, error) {
		fd, err := unix.OpenByHandleAt(mount, handles[name], unix.O_RDONLY|unix.O_CLOEXEC)
		if err != nil {
			return "", err
		}
		defer func() { _ = unix.Close(fd) }()
		buf := make([]byte, 99)
		n, err := unix.Read(fd, buf)
		return string(buf[:max(n, 0)]), err
	}
	forget := func() {
		t.Helper()
		DropNames(l)
		for end := time.Now().Add(30 * time.Second); l.nodes.count() > 1; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("the kernel keeps %d nodes", l.nodes.count())
			}
		}
	}
	want := func(what string) {
		t.Helper()
		if got, err := read("d/sub/f"); err != nil || got != "content" {
			t.Errorf("%s: %q, %v", what, got, err)
		}
	}
	want("known")
	forget()
	want("forgotten")
	forget()
	if _, err := os.Stat(filepath.Join(mnt, "d/sub/f")); err != nil { // comes back by its name
		t.Error(err)
	}
	want("found again")
	must(os.Rename(filepath.Join(mnt, "d/sub/f"), filepath.Join(mnt, "g")))
	want("renamed")
	forget()
	want("renamed and forgotten")
	forget()
	// a directory is connected with the root again
	fd, err := unix.OpenByHandleAt(mount, handles["d/sub"], unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC)
	must(err)
	if to, err := os.Readlink(magic(fd)); err != nil || to != filepath.Join(mnt, "d/sub") {
		t.Errorf("the directory is %q, %v", to, err)
	}
	must(unix.Close(fd))
	must(os.Remove(filepath.Join(mnt, "g")))
	for range 20 { // one of them has the inode number, on most file systems
		f, err := os.CreateTemp(filepath.Join(mnt, "d"), "")
		must(err)
		must(f.Close())
	}
	if got, err := read("d/sub/f"); !errors.Is(err, unix.ESTALE) {
		t.Errorf("removed: %q, %v", got, err)
	}
}
