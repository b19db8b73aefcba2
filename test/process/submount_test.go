package process

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// inside runs a command in the target's mount namespace, as somebody with privileges in the container would.
func (h *holder) inside(args ...string) {
	h.t.Helper()
	args = append([]string{"--target", fmt.Sprint(h.pid()), "--mount"}, args...)
	if out, err := exec.Command("nsenter", args...).CombinedOutput(); err != nil {
		h.t.Fatalf("nsenter %q: %v: %s", args, err, out)
	}
}

// G23: what is mounted below the path shows through the layer, and what is open there is under it.
func TestSubMounts(t *testing.T) {
	r := newRig(t)
	for _, d := range []string{"vol", "vol2", "d"} {
		if err := os.Mkdir(filepath.Join(r.data, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	single := r.write("single", "below")
	h := r.start()
	h.inside("mount", "-t", "tmpfs", "vol", r.data+"/vol")
	h.inside("sh", "-c", fmt.Sprintf("echo -n 0123456789 >%s/vol/f && mkdir %s/vol/deep && mount -t tmpfs deep %s/vol/deep && echo -n deep >%s/vol/deep/g", r.data, r.data, r.data, r.data))
	h.inside("mount", "--bind", r.data+"/vol/f", single) // as resolv.conf is in a container
	h.ok("open f %s/vol/f rdwr", r.data)
	h.ok("lseek f 4")
	h.ok("open g %s/vol/deep/g rdwr", r.data)
	h.ok("open single %s rdwr", single)
	h.ok("mmap M f 10 shared")
	h.ok("chdir %s/vol/deep", r.data)
	before := h.snapshot()
	g := r.inject(h, r.data, "io error=EIO op=fsync ttl=1m")
	if len(g.Report.Skipped) > 0 {
		t.Errorf("not moved: %+v", g.Report.Skipped)
	}
	for _, n := range []string{"f", "g", "single"} {
		h.is("EIO", "fsync %s", n)
	}
	h.is("ok 456789", "read f 100")
	h.ok("lseek f 4")
	h.is("ok "+r.data+"/vol/deep", "getcwd")
	h.is("ok deep", "cat %s/vol/deep/g", r.data)
	h.is("ok 0123456789", "cat %s", single)
	h.is("EBUSY", "unlink %s", single)
	h.is(`ok {"EIO":1}`, "spin %s/vol/f 1 fsync", r.data)
	r.recover(g)
	for _, n := range []string{"f", "g", "single"} {
		h.is("ok", "fsync %s", n)
	}
	h.is("ok "+r.data+"/vol/deep", "getcwd")
	same(t, before, h.snapshot())
}

// What the target mounts on the layer stays mounted when the layer goes, and what is open on it is never touched.
func TestMountsMadeOnTheLayer(t *testing.T) {
	r := newRig(t)
	for _, d := range []string{"vol/deep", "d/late"} {
		if err := os.MkdirAll(filepath.Join(r.data, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	r.write("resolv", "below")
	h := r.start()
	h.inside("mount", "-t", "tmpfs", "vol", r.data+"/vol")
	if err := os.MkdirAll("/proc/"+fmt.Sprint(h.pid())+"/root"+r.data+"/vol/deep", 0o755); err != nil {
		t.Fatal(err)
	}
	g := r.inject(h, r.data, "io error=EIO op=fsync+lookup path="+r.data+"/** ttl=1m p=0")
	h.inside("mount", "-t", "tmpfs", "late", r.data+"/d/late")
	h.inside("sh", "-c", fmt.Sprintf("echo -n late >%s/d/late/f; mount -t tmpfs over %s/d/late; echo -n over >%s/d/late/f; mount -t tmpfs deep %s/vol/deep; echo -n deep >%s/vol/deep/f; mount --bind %s/vol/deep/f %s/resolv",
		r.data, r.data, r.data, r.data, r.data, r.data, r.data))
	h.ok("open f %s/d/late/f rdwr", r.data)
	h.ok("chdir %s/d/late", r.data)
	info := h.ok("fdinfo f")
	r.recover(g)
	h.is("ok over", "cat %s/d/late/f", r.data)
	h.is("ok deep", "cat %s/vol/deep/f", r.data)
	h.is("ok deep", "cat %s/resolv", r.data)
	h.is("ok "+r.data+"/d/late", "getcwd")
	h.is("ok "+info, "fdinfo f")
	if left := onLayer(t, h.pid(), r.data); left != "" {
		t.Errorf("on a mount that is gone: %s", left)
	}
	h.inside("umount", "-l", r.data+"/d/late")
	h.is("ok late", "cat %s/d/late/f", r.data)
}

// A look-up that fails makes the kernel take off what is mounted on the name (d_invalidate in fs/dcache.c): a rule must not do that to a target.
func TestFaultsTakeNoMountOff(t *testing.T) {
	r := newRig(t)
	if err := os.MkdirAll(filepath.Join(r.data, "d/late"), 0o755); err != nil {
		t.Fatal(err)
	}
	h := r.start()
	g := r.inject(h, r.data, "io error=EIO op=fsync ttl=1m")
	h.inside("mount", "-t", "tmpfs", "late", r.data+"/d/late")
	h.inside("sh", "-c", "echo -n late >"+r.data+"/d/late/f")
	if _, err := r.run("update", g.ID, "--keep", "io error=EIO op=lookup path="+r.data+"/** ttl=1m"); err != nil {
		t.Fatal(err)
	}
	h.is("EIO", "stat %s/none", r.data)
	h.is("ok late", "cat %s/d/late/f", r.data)
	if !strings.Contains(h.mountinfo(), r.data+"/d/late ") {
		t.Error("the mount was taken off")
	}
	r.recover(g)
	h.is("ok late", "cat %s/d/late/f", r.data)
}

// G23: a volume that gets mounts from the host and gives none to it, as with rslave. The layer is in the target only, and the volume stays a slave.
func TestSlaveVolume(t *testing.T) {
	for _, below := range []string{"", "sub"} {
		t.Run("at "+below, func(t *testing.T) {
			r := newRig(t)
			volume(t, r.data)
			propagate(t, r.data, unix.MS_SHARED)
			for _, d := range []string{"sub/m", "n"} {
				if err := os.MkdirAll(filepath.Join(r.data, d), 0o755); err != nil {
					t.Fatal(err)
				}
			}
			p := r.write("sub/f", "0123456789")
			h := r.startWith("unshare", "--mount", "--propagation", "slave", binaries.holder)
			if !strings.Contains(h.mountinfo(), "master:") {
				t.Fatal("the target's volume is no slave")
			}
			h.ok("open f %s rdwr", p)
			before := h.snapshot()
			g := r.inject(h, filepath.Join(r.data, below), "io error=EIO op=fsync ttl=1m")
			h.is("EIO", "fsync f")
			for _, l := range r.leftovers() {
				if strings.Contains(l, "fuse.faultgraft") {
					t.Errorf("the layer is on the host too: %s", l)
				}
			}
			// What the host mounts meanwhile comes to the volume, under the layer, and shows through it.
			volume(t, r.data+"/sub/m")
			if err := os.WriteFile(r.data+"/sub/m/f", []byte("late"), 0o644); err != nil {
				t.Fatal(err)
			}
			h.is("ok late", "cat %s/sub/m/f", r.data)
			r.recover(g)
			h.is("ok", "fsync f")
			h.is("ok late", "cat %s/sub/m/f", r.data)
			after := h.snapshot()
			for _, l := range strings.Split(after["mountinfo"], "\n") {
				if strings.Contains(l, r.data+"/sub/m ") {
					after["mountinfo"] = strings.Replace(after["mountinfo"], l+"\n", "", 1)
				}
			}
			same(t, before, after)
		})
	}
}
