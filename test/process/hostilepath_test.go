package process

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// tmpfs mounts one that ends with the test.
func tmpfs(t *testing.T, at string) {
	t.Helper()
	if err := os.MkdirAll(at, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("hostile", at, "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(at, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount %s: %v", at, err)
		}
	})
}

// exchange swaps two names without end, as fast as it can, until the function that it returns is called.
func exchange(t *testing.T, a, b string) (stop func()) {
	t.Helper()
	end := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-end:
				return
			default:
			}
			if err := unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE); err != nil {
				t.Errorf("exchange %s and %s: %v", a, b, err)
				return
			}
		}
	})
	stop = sync.OnceFunc(func() { close(end); wg.Wait() })
	t.Cleanup(stop)
	return stop
}

// outsideOf makes a directory on a file system of its own that the target cannot see, with the same
// inode number as a directory that it has.
func outsideOf(t *testing.T, inside string) string {
	t.Helper()
	var want, st unix.Stat_t
	if err := unix.Stat(inside, &want); err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(t.TempDir(), "outside")
	tmpfs(t, root)
	for i := range 1000 { // tmpfs counts its inodes
		d := fmt.Sprintf("%s/%d", root, i)
		if err := os.Mkdir(d, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := unix.Stat(d, &st); err != nil {
			t.Fatal(err)
		}
		if st.Ino == want.Ino {
			return d
		}
	}
	t.Fatalf("no directory got inode number %d", want.Ino)
	return ""
}

// A directory of the target and a symbolic link that leads out of it change places all the time, while
// the layer's files are opened by the path that the directory had: nothing outside is opened, and
// nothing of there gets into the target. The link leads to where a host's file of the same inode number is.
func TestLinkInTheWay(t *testing.T) {
	r := newRig(t)
	tmpfs(t, r.data)
	dir, link := r.data+"/a", r.data+"/b"
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	r.write("a/f", "inside")
	outside := outsideOf(t, dir)
	if err := os.WriteFile(outside+"/f", []byte("outside"), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, link); err != nil {
		t.Fatal(err)
	}
	h := r.start()
	h.inside("umount", filepath.Dir(outside))
	h.ok("chdir %s", dir)
	for i := range 16 {
		h.ok("open f%d %s/f rdwr", i, dir)
	}
	opened, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Close(opened) }()
	if _, err := unix.InotifyAddWatch(opened, outside+"/f", unix.IN_OPEN); err != nil {
		t.Fatal(err)
	}
	stop := exchange(t, dir, link)
	for range 5 {
		out, err := r.run("inject", "--pid", fmt.Sprint(h.pid()), "--path", r.data, "io error=EIO op=fsync ttl=1m")
		if err != nil {
			t.Logf("inject: %v", err) // it may give up
			continue
		}
		h.inTarget(outside)
		if _, err := r.run("recover", strings.Fields(out)[0]); err != nil {
			t.Fatalf("recover: %v%s", err, r.logs())
		}
		h.inTarget(outside)
	}
	stop()
	if n, _ := unix.Read(opened, make([]byte, 4096)); n > 0 {
		t.Error("a file outside of the target was opened")
	}
	for i := range 16 {
		h.is("ok inside", "pread f%d 0 100", i)
	}
}

// inTarget checks that the target has nothing of the file system of a directory.
func (h *holder) inTarget(outside string) {
	h.t.Helper()
	var bad, st unix.Stat_t
	if err := unix.Stat(outside, &bad); err != nil {
		h.t.Fatal(err)
	}
	places, _ := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", h.pid()))
	for _, p := range append(places, fmt.Sprintf("/proc/%d/cwd", h.pid()), fmt.Sprintf("/proc/%d/root", h.pid())) {
		if unix.Stat(p, &st) == nil && st.Dev == bad.Dev {
			to, _ := os.Readlink(p)
			h.t.Fatalf("%s of the target is %s, outside of it", p, to)
		}
	}
}

// A FIFO takes the place of a file that is open: whoever opens it waits for a writer. So would
// a device node, whose driver the open wakes with rights that the target does not have.
func TestFIFOTakesTheName(t *testing.T) {
	r := newRig(t)
	file, fifo := r.write("f", "inside"), r.data+"/fifo"
	if err := unix.Mkfifo(fifo, 0o644); err != nil {
		t.Fatal(err)
	}
	h := r.start()
	for i := range 16 {
		h.ok("open f%d %s rdonly", i, file)
	}
	stop := exchange(t, file, fifo)
	for range 3 {
		out, err := r.run("inject", "--pid", fmt.Sprint(h.pid()), "--path", r.data, "io error=EIO op=fsync ttl=1m")
		if err != nil {
			t.Fatalf("inject: %v", err)
		}
		h.is("EIO", "fsync f7")
		if _, err := r.run("recover", strings.Fields(out)[0]); err != nil {
			t.Fatalf("recover: %v%s", err, r.logs())
		}
		h.is("ok", "fsync f7")
	}
	stop()
	for i := range 16 {
		h.is("ok inside", "pread f%d 0 100", i)
	}
}

// Links of procfs, which lead past every root directory, and other windows into the kernel are refused as a place.
func TestPlacesThatAreRefused(t *testing.T) {
	r := newRig(t)
	r.write("f", "inside")
	h := r.start()
	for name, to := range map[string]string{
		"magic": "/proc/1/root/etc", "self": "/proc/self/cwd", "descriptor": "/proc/self/fd/0", "up": "../../../../../../../../proc/1/root",
		"proc": "/proc", "sys": "/sys", "loop": "loop", "none": "none-there", "device": "/dev/null",
	} {
		if err := os.Symlink(to, filepath.Join(r.data, name)); err != nil {
			t.Fatal(err)
		}
		before := h.snapshot()
		out, err := r.run("inject", "--pid", fmt.Sprint(h.pid()), "--path", filepath.Join(r.data, name), "io error=EIO op=fsync ttl=1m")
		if err == nil {
			t.Errorf("%s: a graft over %s: %s", name, to, out)
		}
		same(t, before, h.snapshot())
	}
	for _, p := range []string{"relative", "", "/nul\x00l", "/" + strings.Repeat("x/", 3000), "/" + strings.Repeat("y", 300)} {
		if out, err := r.run("inject", "--pid", fmt.Sprint(h.pid()), "--path", p, "io error=EIO op=fsync ttl=1m"); err == nil {
			t.Errorf("a graft over %.20q: %s", p, out)
		}
	}
}

// The target mounts something over the place of the layer, or takes the layer off: it gets what it
// asked for, an ungraft takes nothing else off, and nothing hangs or is left.
func TestTargetMountsOverTheLayer(t *testing.T) {
	r := newRig(t)
	file := r.write("f", "below")
	h := r.start()
	h.ok("open f %s rdwr", file)
	before := h.snapshot()
	g := r.inject(h, r.data, "io error=EIO op=fsync ttl=1m")
	h.inside("mount", "-t", "tmpfs", "over", r.data)
	h.inside("sh", "-c", "echo -n over >"+file)
	h.is("EIO", "fsync f")
	r.recover(g)
	h.is("ok", "fsync f")
	h.is("ok over", "cat %s", file)
	h.inside("umount", r.data)
	h.is("ok below", "cat %s", file)
	same(t, before, h.snapshot())

	g = r.inject(h, r.data, "io error=EIO op=fsync ttl=1m")
	h.inside("umount", "-l", r.data)
	h.is("ok below", "cat %s", file)
	h.is("EIO", "fsync f") // it is open on the layer
	r.recover(g)
	h.is("ok", "fsync f")
	same(t, before, h.snapshot())
}

// mountsWithoutEnd puts mounts over a place in the target and takes them off again.
func (h *holder) mountsWithoutEnd(place string) (stop func()) {
	cmd := h.sh(fmt.Sprintf("while :; do mount -t tmpfs over %s; umount -l %s; done", place, place))
	return cmd
}

// sh runs a shell in the target's mount namespace until stop is called.
func (h *holder) sh(script string) (stop func()) {
	h.t.Helper()
	p, err := os.StartProcess("/usr/bin/nsenter", []string{"nsenter", "--target", fmt.Sprint(h.pid()), "--mount", "sh", "-c", script + " >/dev/null 2>&1"}, &os.ProcAttr{Files: []*os.File{nil, nil, nil}})
	if err != nil {
		h.t.Fatal(err)
	}
	stop = sync.OnceFunc(func() {
		_ = p.Kill()
		_, _ = p.Wait()
	})
	h.t.Cleanup(stop)
	return stop
}

// Mounts come and go at the place of the layer while it is put there and taken off.
func TestTargetMountsAllTheTime(t *testing.T) {
	r := newRig(t)
	file := r.write("f", "below")
	h := r.start()
	h.ok("open f %s rdwr", file)
	stop := h.mountsWithoutEnd(r.data)
	for range 6 {
		out, err := r.run("inject", "--pid", fmt.Sprint(h.pid()), "--path", r.data, "io error=EIO op=fsync ttl=1m")
		if err != nil {
			t.Logf("inject: %v", err)
			continue
		}
		recovered := false
		for end := time.Now().Add(60 * time.Second); !recovered && time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
			_, err = r.run("recover", strings.Fields(out)[0])
			recovered = err == nil
		}
		if !recovered {
			t.Fatalf("recover: %v%s", err, r.logs())
		}
		h.is("ok", "fsync f")
	}
	stop()
	h.is("ok below", "pread f 0 100")
	h.is("ok", "fsync f")
}
