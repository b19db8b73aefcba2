package process

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// disk mounts a small ext4 of its own at dir, in the namespace that plays the host.
func disk(t *testing.T, dir string, mib int) {
	t.Helper()
	image := filepath.Join(t.TempDir(), "image")
	for _, c := range [][]string{
		{"truncate", "-s", fmt.Sprint(mib, "M"), image},
		{"mkfs.ext4", "-q", "-F", "-m", "0", image},
		{"mount", "-o", "loop", image, dir},
	} {
		out, err := exec.Command(c[0], c[1:]...).CombinedOutput()
		if err != nil && (c[0] == "mkfs.ext4" || strings.Contains(string(out), "loop device")) {
			t.Skipf("no ext4 on a loop device here: %v: %s", err, out)
		}
		if err != nil {
			t.Fatalf("%q: %v: %s", c, err, out)
		}
	}
	t.Cleanup(func() {
		if out, err := exec.Command("umount", "-l", dir).CombinedOutput(); err != nil {
			t.Errorf("umount: %v: %s", err, out)
		}
	})
}

// The file system under the layer is full, for real: the target sees what it would see without the layer, a graft and an
// ungraft need no space, and what it frees it has again.
func TestBackingIsFull(t *testing.T) {
	for name, mount := range map[string]func(*testing.T, string){
		"tmpfs": func(t *testing.T, dir string) {
			volume(t, dir)
			if err := unix.Mount("", dir, "", unix.MS_REMOUNT, "size=1m"); err != nil {
				t.Fatal(err)
			}
		},
		"ext4": func(t *testing.T, dir string) { disk(t, dir, 4) },
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			mount(t, r.data)
			h := r.start()
			h.ok("open f %s rdwr", r.write("f", "0123456789"))
			h.ok("open gone %s rdwr", r.write("gone", "unlinked"))
			h.ok("unlink %s/gone", r.data)
			h.ok("open log %s rdwr,creat,append", filepath.Join(r.data, "log"))
			h.ok("mmap M f 10 shared")
			h.ok("chdir %s", r.data)
			h.is("ENOSPC", "fill %s/ballast", r.data)
			before := h.snapshot()

			g := r.inject(h, r.data, "io error=EIO op=fdatasync ttl=5m")
			h.is("EIO", "fdatasync f")
			h.is("ENOSPC", "append log 65536") // not a byte of it goes
			h.is("ok 0", "stat %s/log", r.data)
			h.is("ok 0", "free %s", r.data)
			h.is("ok unlinked", "pread gone 0 100")
			h.is("ok 3", "pwrite f 0 ABC") // in place it can be written
			h.is("ok ABC3", "peek M 0 4")
			r.recover(g)
			h.is("ENOSPC", "append log 65536")
			h.is("ok unlinked", "pread gone 0 100")
			same(t, before, h.snapshot())

			g = r.inject(h, r.data, "io error=EIO op=fdatasync ttl=5m")
			h.ok("unlink %s/ballast", r.data)
			// The layer holds nothing back: the space of a file that nobody has open is free at once, or as soon as it was below.
			for end := time.Now().Add(30 * time.Second); h.do("append log 65536") != "ok 65536"; time.Sleep(20 * time.Millisecond) {
				if time.Now().After(end) {
					t.Fatal("the space does not come back")
				}
			}
			h.is("ENOSPC", "fill %s/again", r.data)
			h.ok("unlink %s/again", r.data)
			r.recover(g)
			if s, err := os.Stat(filepath.Join(r.data, "log")); err != nil || s.Size() != 65536 {
				t.Errorf("what was appended: %+v, %v", s, err)
			}
			h.stop() // the disk is unmounted next
		})
	}
}

// The file system under the layer becomes read-only, and is written to again: the target sees that, and the layer comes off in either state.
func TestBackingBecomesReadOnly(t *testing.T) {
	r := newRig(t)
	disk(t, r.data, 8)
	h := r.start()
	h.ok("open f %s rdonly", r.write("f", "0123456789"))
	remount := func(how string) {
		t.Helper()
		// EBUSY as long as a file is open for writing; the layer closes what the target has closed a moment later.
		for end := time.Now().Add(30 * time.Second); ; time.Sleep(20 * time.Millisecond) {
			out, err := exec.Command("mount", "-o", "remount,"+how, r.data).CombinedOutput()
			if err == nil {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("remount %s: %v: %s", how, err, out)
			}
		}
	}
	before := h.snapshot()
	// Its rule reaches all data: nothing bypasses the layer.
	g := r.inject(h, r.data, "io error=EIO op=read path=/**/never ttl=5m", "io error=EIO op=fdatasync ttl=5m")
	h.ok("open w %s/w rdwr,creat", r.data)
	h.is("ok 3", "write w abc")
	if out, err := exec.Command("mount", "-o", "remount,ro", r.data).CombinedOutput(); err == nil {
		t.Errorf("the file system went read-only under a file that is open for writing: %s", out)
	}
	h.ok("close w")
	remount("ro")
	h.is("EROFS", "open w %s/w rdwr", r.data)
	h.is("EROFS", "mkdir %s/d", r.data)
	h.is("EROFS", "unlink %s/w", r.data)
	h.is("ok abc", "cat %s/w", r.data)
	h.is("ok 0123456789", "pread f 0 10")
	remount("rw")
	h.ok("mkdir %s/d", r.data)
	remount("ro")
	r.recover(g)
	h.is("EROFS", "mkdir %s/e", r.data)
	h.is("ok 0123456789", "pread f 0 10")
	g = r.inject(h, r.data, "io error=EIO op=fdatasync ttl=5m") // over one that is read-only
	h.is("EROFS", "mkdir %s/e", r.data)
	remount("rw")
	r.recover(g) // as long as that is there, the target has it as it was when it was grafted
	h.ok("mkdir %s/e", r.data)
	same(t, before, h.snapshot())
	h.stop()
}

// ext4IocShutdown is EXT4_IOC_SHUTDOWN, fs/ext4/ext4.h: what happens to a file system whose device has gone.
const ext4IocShutdown = 0x8004587d

// The disk goes: all that reaches it fails, as it does without the layer, and the layer comes off.
func TestBackingFails(t *testing.T) {
	r := newRig(t)
	disk(t, r.data, 8)
	h := r.start()
	h.ok("open f %s rdwr", r.write("f", "0123456789"))
	h.ok("lseek f 4")
	g := r.inject(h, r.data, "io error=EDQUOT op=mkdir ttl=5m")
	root, err := unix.Open(r.data, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	const withoutFlush = 2 // EXT4_GOING_FLAGS_NOLOGFLUSH
	err = unix.IoctlSetPointerInt(root, ext4IocShutdown, withoutFlush)
	if cerr := unix.Close(root); err != nil || cerr != nil {
		t.Skipf("the file system cannot be shut down: %v, %v", err, cerr)
	}
	h.is("EDQUOT", "mkdir %s/d", r.data) // the rule comes first
	h.is("EIO", "fsync f")
	h.is("EIO", "open new %s/new rdwr,creat", r.data)
	r.recover(g)
	h.is("EIO", "mkdir %s/d", r.data)
	h.is("EIO", "fsync f")
	if strings.Contains(h.mountinfo(), "fuse.faultgraft") {
		t.Error("still mounted")
	}
	h.stop()
}

// The volume is removed under the layer, by the host: its files and directory, or the mount. Files that are open go on,
// new ones fail as they would, and the graft ends without a trace.
func TestVolumeIsRemoved(t *testing.T) {
	for name, remove := range map[string]func(dir string) error{
		"files": func(dir string) error { return os.RemoveAll(dir) },
		"mount": func(dir string) error { return unix.Unmount(dir, unix.MNT_DETACH) },
	} {
		for _, propagation := range []string{"private", "slave"} {
			t.Run(name+" "+propagation, func(t *testing.T) {
				r := newRig(t)
				dir := filepath.Join(r.data, "volume")
				if err := os.Mkdir(dir, 0o755); err != nil {
					t.Fatal(err)
				}
				volume(t, r.data)
				if err := os.Mkdir(dir, 0o755); err != nil {
					t.Fatal(err)
				}
				point := dir
				if name == "mount" {
					if err := unix.Mount("disk", dir, "tmpfs", 0, "mode=755"); err != nil {
						t.Fatal(err)
					}
				} else {
					point = filepath.Join(dir, "db")
					if err := os.Mkdir(point, 0o755); err != nil {
						t.Fatal(err)
					}
				}
				if propagation == "slave" {
					propagate(t, r.data, unix.MS_SHARED)
					if name == "mount" {
						propagate(t, dir, unix.MS_SHARED)
					}
				}
				file := filepath.Join(point, "f")
				if err := os.WriteFile(file, []byte("0123456789"), 0o644); err != nil {
					t.Fatal(err)
				}
				h := r.startWith("unshare", "--mount", "--propagation", propagation, binaries.holder)
				h.ok("open f %s rdwr", file)
				h.ok("lseek f 4")
				h.ok("mmap M f 10 shared")
				h.ok("chdir %s", point)
				r.inject(h, point, "io error=EIO op=fsync ttl=5m")
				h.is("EIO", "fsync f")
				if err := remove(dir); err != nil {
					t.Fatal(err)
				}
				h.is("ok 456789", "read f 100")
				h.ok("lseek f 4")
				h.is("ok 2", "pwrite f 0 AB")
				h.is("ok AB23", "peek M 0 4")
				if out, err := r.run("recover", "--all"); err != nil {
					t.Errorf("recover: %v: %s%s", err, out, r.logs())
				}
				h.is("ok", "fsync f")
				h.is("ok 456789", "read f 100")
				h.is("ok AB23", "peek M 0 4")
				r.awaitNone()
				if strings.Contains(h.mountinfo(), "fuse.faultgraft") {
					t.Error("still mounted")
				}
				h.stop()
			})
		}
	}
}
