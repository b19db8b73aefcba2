package process

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// rootKinds are what containers have as their root directory; each script mounts it at $1.
var rootKinds = map[string]string{
	"tmpfs":   `mount -t tmpfs root "$1"`,
	"bind":    `mkdir "$1.dir" && mount --bind "$1.dir" "$1"`,
	"overlay": `mkdir "$1.up" && mount -t tmpfs up "$1.up" && mkdir "$1.up/lower" "$1.up/upper" "$1.up/work" && mount -t overlay -o "lowerdir=$1.up/lower,upperdir=$1.up/upper,workdir=$1.up/work" root "$1"`,
}

// container runs a holder as a runtime would: with its own root file system, PID namespace and mounts below.
func (r *rig) container(kind string) *holder {
	r.t.Helper()
	script := `set -e; mount --make-rprivate /; ` + rootKinds[kind] + `
cd "$1"; mkdir bin proc dev etc vol data data/sub old; cp "$2" bin/holder
echo -n below >etc/resolv.conf; echo -n 0123456789 >data/f; echo -n mapped >data/m; echo -n bound >bound
mount -t proc proc proc; mount -t tmpfs dev dev; mkdir dev/pts; mount -t tmpfs pts dev/pts; mount -t tmpfs vol vol; echo -n volume >vol/f; mkdir -p srv/vol; echo -n beside >srv/f; mount -t tmpfs vol2 srv/vol; mkdir srv/vol/d
mount --bind bound etc/resolv.conf
pivot_root . old; exec ./bin/holder`
	root := filepath.Join(r.t.TempDir(), "root")
	if err := os.Mkdir(root, 0o755); err != nil {
		r.t.Fatal(err)
	}
	h := r.launchAs(&syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID}, "sh", "-c", script, "sh", root, binaries.holder)
	h.ok("umount /old")
	return h
}

// enter runs another holder in the container, as a session that is opened later does.
func (h *holder) enter(r *rig) *holder {
	h.t.Helper()
	return r.startWith("nsenter", "--target", fmt.Sprint(h.pid()), "--mount", "/bin/holder")
}

// G23: a layer over "/" of a container. What runs and what comes later is under it; mounts below are where they were.
func TestRoot(t *testing.T) {
	for kind := range rootKinds {
		t.Run(kind, func(t *testing.T) {
			r := newRig(t)
			h := r.container(kind)
			idle := h.enter(r)    // holds nothing but the root directory
			visitor := h.enter(r) // is on another mount, from where ".." leads to the root file system
			visitor.ok("chdir /srv/vol/d")
			h.ok("open f /data/f rdwr")
			h.ok("lseek f 4")
			h.ok("open vol /vol/f rdwr")
			h.ok("open m /data/m rdwr")
			h.ok("mmap M m 6 shared")
			h.ok("open dir / rdonly,directory")
			h.ok("chdir /data/sub")
			before, idleBefore, visitorBefore := h.snapshot(), idle.snapshot(), visitor.snapshot()
			list := names(t, h)

			g := r.inject(h, "/", "io error=EIO op=fsync ttl=1m")
			for _, s := range g.Report.Stopped {
				if s.PID == idle.pid() {
					t.Error("a process that holds nothing but the root directory was stopped")
				}
			}
			during := h.enter(r)
			for _, p := range []*holder{h, idle, during} {
				p.is("ok 0123456789", "cat /data/f")
				p.is("ok volume", "cat /vol/f")
				p.is("ok bound", "cat /etc/resolv.conf")
				p.is(`ok {"EIO":1}`, "spin /data/f 1 fsync")
				p.is(`ok {"ok":1}`, "spin /vol/f 1 fsync")
				p.is("EBUSY", "unlink /etc/resolv.conf")
				p.ok("stat /proc/1/stat")
				p.ok("stat /dev/pts")
				if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", p.pid())); err != nil || exe != "/bin/holder" {
					t.Errorf("exe: %q, %v", exe, err)
				}
			}
			if l := names(t, h); l != list {
				t.Errorf("the root directory has %q, before %q", l, list)
			}
			if n := strings.Count(during.mountinfo(), "fuse.faultgraft"); n != 1 {
				t.Errorf("who enters sees the layer %d times:\n%s", n, during.mountinfo())
			}
			h.is("EIO", "fsync f")
			h.is("ok", "fsync vol")
			h.is("ok 456789", "read f 100")
			h.ok("lseek f 4")
			h.ok("poke M 0 MAPPED")
			h.is("ok /data/sub", "getcwd")
			h.is("ok 0123456789", "cat ../f")
			h.is(`ok {"EIO":1}`, "spin ../../data/f 1 fsync")
			idle.is("ok /", "getcwd")
			during.ok("open f /data/f rdwr")
			during.ok("chdir /data/sub")
			during.is("EIO", "fsync f")
			during.ok("open new /data/new rdwr,creat")

			visitor.is(`ok {"EIO":1}`, "spin ../../f 1 fsync")
			visitor.is("ok /srv/vol/d", "getcwd")
			later := h.enter(r)
			later.ok("chdir /srv/vol/d")

			u := r.recover(g)
			for _, s := range u.Report.Skipped {
				if s.Object.Path != "/bin/holder" {
					t.Errorf("left: %s: %s", &s.Object, s.Reason)
				}
			}
			same(t, before, h.snapshot())
			same(t, idleBefore, idle.snapshot())
			same(t, visitorBefore, visitor.snapshot())
			for _, p := range []*holder{visitor, later} {
				p.is("ok /srv/vol/d", "getcwd")
				p.is(`ok {"ok":1}`, "spin ../../f 1 fsync")
			}
			later.stop()
			if a, b := during.mountinfo(), before["mountinfo"]; a != b {
				t.Errorf("mounts of who entered:\n%s\nbefore:\n%s", a, b)
			}
			for _, p := range []*holder{h, during} {
				p.is("ok", "fsync f")
				p.is("ok /data/sub", "getcwd")
				p.is(`ok {"ok":1}`, "spin ../f 1 fsync")
			}
			h.is("ok MAPPED", "cat /data/m")
			during.is("ok", "fsync new")
			idle.is("ok volume", "cat vol/f") // from its working directory, the root
			during.stop()
		})
	}
}

// names lists the root directory.
func names(t *testing.T, h *holder) string {
	t.Helper()
	all, err := os.ReadDir(fmt.Sprintf("/proc/%d/root", h.pid()))
	if err != nil {
		t.Fatal(err)
	}
	var s []string
	for _, e := range all {
		s = append(s, e.Name())
	}
	return strings.Join(s, " ")
}

// Mounts that come and go in the container while the layer lies over its root.
func TestMountsUnderALayerOverRoot(t *testing.T) {
	r := newRig(t)
	h := r.container("overlay")
	h.ok("mkdir /late")
	before := h.mountinfo()
	g := r.inject(h, "/", "io error=EIO op=lookup path=/** exclude=/none ttl=1m p=0")
	h.ok("mount tmpfs /late")
	h.ok("open late /late/f rdwr,creat")
	h.ok("write late x")
	h.ok("umount /vol")
	h.is("ENOENT", "stat /vol/late")
	in := h.enter(r)
	in.ok("mount tmpfs /old")
	in.ok("open old /old/f rdwr,creat")
	in.ok("write old session")
	info := h.ok("fdinfo late")
	r.recover(g)
	h.is("ok x", "cat /late/f")
	h.is("ok session", "cat /old/f")
	h.is("ok "+info, "fdinfo late")
	h.is("ok volume", "cat /vol/f") // what it took off is back
	h.ok("umount /late")
	h.ok("umount /old")
	if after := h.mountinfo(); after != before {
		t.Errorf("after:\n%s\nbefore:\n%s", after, before)
	}
}

// A rule for look-ups over all of a container's root takes none of its mounts off.
func TestFaultsTakeNoMountOffRoot(t *testing.T) {
	r := newRig(t)
	h := r.container("tmpfs")
	before := h.mountinfo()
	g := r.inject(h, "/", "io error=EIO op=lookup path=/** ttl=1m")
	h.is("EIO", "stat /none")
	h.is("ok volume", "cat /vol/f")
	h.ok("stat /proc/1/stat")
	h.is("ok bound", "cat /etc/resolv.conf")
	r.recover(g)
	if after := h.mountinfo(); after != before {
		t.Errorf("after:\n%s\nbefore:\n%s", after, before)
	}
}

// Root directories of other kinds: of a user namespace, with all mounts locked; shared with the host.
func TestRootOfOtherNamespaces(t *testing.T) {
	for name, args := range map[string][]string{
		"user namespace": {"--user", "--map-root-user", "--mount", "--propagation", "private"},
		"slave":          {"--mount", "--propagation", "slave"},
		"shared":         {"--mount", "--propagation", "shared"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRig(t)
			p := r.write("f", "0123456789")
			h := r.startWith(append(append([]string{"unshare"}, args...), binaries.holder)...)
			h.ok("open f %s rdwr", p)
			h.ok("chdir %s", r.data)
			before := h.snapshot()
			g := r.inject(h, "/", "io error=EIO op=fsync path="+r.data+"/** ttl=1m")
			h.is("EIO", "fsync f")
			h.is(`ok {"EIO":1}`, "spin %s 1 fsync", p)
			h.is("ok "+r.data, "getcwd")
			h.ok("stat /proc/self/stat")
			r.recover(g)
			h.is("ok", "fsync f")
			same(t, before, h.snapshot())
		})
	}
}

// What cannot be is refused in words.
func TestRootThatIsRefused(t *testing.T) {
	r := newRig(t)
	tree := r.startWith(binaries.holder)
	dir := filepath.Join(r.t.TempDir(), "jail")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("cp", binaries.holder, dir+"/holder").CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	jail := r.startWith("unshare", "--mount", "--propagation", "private", "chroot", dir, "/holder")
	whole := r.container("tmpfs")
	r.inject(whole, "/", "io error=EIO op=fsync ttl=1m")
	for _, c := range []struct {
		h          *holder
		path, want string
	}{
		{tree, "/", "shares its mount namespace"}, {jail, "/", "chroot"}, {whole, "/vol", "lies over /"}, {whole, "/data", "graft"},
	} {
		out, err := r.run("inject", "--pid", fmt.Sprint(c.h.pid()), "--path", c.path, "io error=EIO op=read ttl=1m")
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %q, %v; want %q", c.path, out, err, c.want)
		}
	}
}

// G22 over "/": a failure at any step leaves root directories and mounts as they were.
func TestRootRollsBack(t *testing.T) {
	for _, step := range []string{"stopped", "mount", "inject", "check", "hand over", "kill:mount", "kill:inject", "kill:check", "kill:hand over"} {
		t.Run(step, func(t *testing.T) {
			r := newRig(t)
			h, before := r.rooted()
			cmd := r.command("inject", "--pid", fmt.Sprint(h.pid()), "--path", "/", "io error=EIO op=fsync ttl=1m")
			cmd.Env = append(cmd.Env, failing("swapper graft", step))
			if out, err := cmd.CombinedOutput(); err == nil {
				t.Fatalf("no error: %s", out)
			}
			r.unrooted(h, before)
		})
	}
}

// The way back: a failure leaves the target with a root directory that works, and the next try succeeds.
func TestRootRecoverRollsBack(t *testing.T) {
	for _, step := range []string{"stopped", "unmount", "check", "kill:unmount", "kill:release"} {
		t.Run(step, func(t *testing.T) {
			r := newRig(t)
			r.env = append(r.env, failing("swapper ungraft", step))
			h, before := r.rooted()
			g := r.inject(h, "/", "io error=EIO op=fsync ttl=1m")
			if out, err := r.run("recover", g.ID); err == nil {
				t.Fatalf("no error: %s", out)
			}
			h.is("ok 0123456789", "cat /data/f")
			h.is("ok volume", "cat /vol/f")
			r.recover(g)
			r.unrooted(h, before)
		})
	}
}

// When a process that stands by dies, the layer comes off the root, and nothing hangs.
func TestRootServerAndKeeperDie(t *testing.T) {
	for _, role := range []string{"server", "keeper"} {
		t.Run(role, func(t *testing.T) {
			r := newRig(t)
			r.env = noTakeover
			h, before := r.rooted()
			r.inject(h, "/", "io error=EIO op=fsync ttl=1m")
			in := h.enter(r)
			in.ok("open f /data/f rdwr")
			in.is("EIO", "fsync f")
			// What the kernel knows of the root directory gets old.
			time.Sleep(time.Second)
			r.signal(role, syscall.SIGKILL)
			if role == "server" {
				in.is("ok", "fsync f") // it waits, and sees no error
			}
			r.unrooted(h, before)
			in.is("ok", "fsync f")
			in.is("ok 0123456789", "cat /data/f")
			in.ok("stat /proc/1/stat")
		})
	}
}

// rooted is a container with something open of each kind that matters here.
func (r *rig) rooted() (*holder, map[string]string) {
	h := r.container("overlay")
	h.ok("open f /data/f rdwr")
	h.ok("lseek f 4")
	h.ok("mmap M f 10 shared")
	h.ok("chdir /data")
	return h, h.snapshot()
}

// unrooted waits until no layer is left, and compares.
func (r *rig) unrooted(h *holder, before map[string]string) {
	r.t.Helper()
	for end := time.Now().Add(40 * time.Second); strings.Contains(h.mountinfo(), "fuse.faultgraft"); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			r.t.Fatalf("still mounted:\n%s%s", h.mountinfo(), r.logs())
		}
	}
	h.ok("stat /") // not in the middle of a stop
	same(r.t, before, h.snapshot())
	h.is("ok", "fsync f")
	h.is("ok 456789", "read f 100")
	h.ok("lseek f 4")
	h.is("ok /data", "getcwd")
	h.is("ok volume", "cat /vol/f")
	h.is(`ok {"ok":1}`, "spin /data/f 1 fsync")
	in := h.enter(r)
	in.is(`ok {"ok":1}`, "spin /data/f 1 fsync")
	in.stop()
}
