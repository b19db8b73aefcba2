package process

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// A descriptor whose path is longer than the kernel shows, in whatever process of
// the machine, keeps no graft from coming off.
func TestPathsThatTheKernelDoesNotShow(t *testing.T) {
	r := newRig(t)
	p := r.write("f", "0123456789")
	h := r.start()
	h.ok("open f %s rdwr", p)
	before := h.snapshot()
	long := deepFile(t, t.TempDir()) // this process is not the target
	defer func() { _ = unix.Close(long) }()
	if _, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", long)); err == nil {
		t.Fatal("the kernel shows the path: this test tests nothing")
	}
	g := r.inject(h, r.data, "io error=EIO op=fsync ttl=1m")
	h.is("EIO", "fsync f")
	r.recover(g)
	h.is("ok", "fsync f")
	same(t, before, h.snapshot())
}

// deepFile makes a file below a directory whose path has more than 4096 bytes.
func deepFile(t *testing.T, dir string) int {
	t.Helper()
	at, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY, 0)
	if err != nil {
		t.Fatal(err)
	}
	name := strings.Repeat("d", 250)
	for range 20 {
		if err := unix.Mkdirat(at, name, 0o755); err != nil {
			t.Fatal(err)
		}
		next, err := unix.Openat(at, name, unix.O_PATH|unix.O_DIRECTORY, 0)
		_ = unix.Close(at)
		if err != nil {
			t.Fatal(err)
		}
		at = next
	}
	fd, err := unix.Openat(at, "f", unix.O_CREAT|unix.O_RDWR|unix.O_CLOEXEC, 0o644)
	_ = unix.Close(at)
	if err != nil {
		t.Fatal(err)
	}
	return fd
}
