package process

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// G23: a target in a user namespace, with a mount namespace that it owns. All the mounts that it got
// from the host are locked there (mount_namespaces(7)); the layer lies on them all the same.
func TestUserNamespaceOfRoot(t *testing.T) {
	r := newRig(t)
	volume(t, r.data) // locked in the target
	p := r.write("f", "0123456789")
	h := r.startWith("unshare", "--user", "--map-root-user", "--mount", "--propagation", "private", binaries.holder)
	if out, err := exec.Command("nsenter", "--target", fmt.Sprint(h.pid()), "--user", "--mount", "umount", r.data).CombinedOutput(); err == nil {
		t.Fatalf("the volume is not locked: %s", out)
	}
	h.ok("open f %s rdwr", p)
	h.ok("mmap M f 10 shared")
	h.ok("chdir %s", r.data)
	before := h.snapshot()
	g := r.inject(h, r.data, "io error=EIO op=fsync ttl=1m")
	if len(g.Report.Skipped) > 0 {
		t.Errorf("not moved: %+v", g.Report.Skipped)
	}
	h.is("EIO", "fsync f")
	h.is("ok 0123456789", "cat %s", p)
	h.is("ok "+r.data, "getcwd")
	r.recover(g)
	h.is("ok", "fsync f")
	same(t, before, h.snapshot())
}

// shift is what ids are on disk of those in the user namespace that these tests make.
const shift = 100000

// shifted runs a holder in a user namespace that maps several ids, and a mount
// namespace of its own, as a container with --userns-remap has them.
func (r *rig) shifted() *holder {
	r.t.Helper()
	for dir := range strings.SplitSeq("/,"+filepath.Dir(binaries.holder)+","+r.data, ",") {
		for ; strings.HasPrefix(dir, os.TempDir()+"/"); dir = filepath.Dir(dir) {
			if err := os.Chmod(dir, 0o755); err != nil {
				r.t.Fatal(err)
			}
		}
	}
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: shift, Size: 1000}, {ContainerID: 1000, HostID: 300000, Size: 1000}}
	h := r.launchAs(&syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWUSER | unix.CLONE_NEWNS, UidMappings: ids, GidMappings: ids, GidMappingsEnableSetgroups: true,
		Credential: &syscall.Credential{Uid: 0, Gid: 0},
	}, binaries.holder)
	h.ok("stat /")
	return h
}

// What a target in a user namespace sees of owners and permissions is the same with a layer and without, and what it makes
// there belongs to the ids that its own are mapped to.
func TestUserNamespaceWithSeveralIDs(t *testing.T) {
	r := newRig(t)
	for name, owner := range map[string]int{"f": shift, "fifth": shift + 5, "user": 300007, "alien": 7} {
		if err := os.Chown(r.write(name, name), owner, owner); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(filepath.Join(r.data, name), 0o640); err != nil {
			t.Fatal(err)
		}
	}
	h := r.shifted()
	if err := os.Chown(r.data, shift, shift); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(r.data, 0o777|os.ModeSticky); err != nil {
		t.Fatal(err)
	}
	// A second process of the container, with no privileges in it.
	user := r.startWith("nsenter", "--target", fmt.Sprint(h.pid()), "--user", "--mount", "--setuid", "1007", "--setgid", "1007", "env", "GODEBUG=asyncpreemptoff=1", binaries.holder)
	h.ok("open f %s/f rdwr", r.data)
	user.ok("open user %s/user rdwr", r.data)
	seen := func(when, made string) {
		t.Helper()
		for name, want := range map[string]string{"f": "0 0 640", "fifth": "5 5 640", "user": "1007 1007 640", "alien": "65534 65534 640"} {
			h.is("ok "+want, "owner %s/%s", r.data, name)
			user.is("ok "+want, "owner %s/%s", r.data, name)
		}
		h.is("ok fifth", "cat %s/fifth", r.data)
		h.is("EACCES", "cat %s/alien", r.data) // its capabilities do not reach ids that are not mapped
		h.is("EPERM", "chown %s/alien 0 0", r.data)
		user.is("EACCES", "cat %s/fifth", r.data)
		user.is("ok user", "cat %s/user", r.data)
		user.is("EPERM", "unlink %s/fifth", r.data) // the sticky bit
		for i, p := range []*holder{h, user} {
			name := fmt.Sprint(r.data, "/", made, i)
			p.ok("open new %s rdwr,creat", name)
			p.ok("close new")
			var st unix.Stat_t
			if err := unix.Stat(name, &st); err != nil || int(st.Uid) != []int{shift, 300007}[i] || st.Gid != st.Uid {
				t.Errorf("%s: a new file of process %d belongs to %d:%d on disk, %v", when, i, st.Uid, st.Gid, err)
			}
			h.ok("chown %s 5 6", name)
			if err := unix.Stat(name, &st); err != nil || st.Uid != shift+5 || st.Gid != shift+6 {
				t.Errorf("%s: chown made it %d:%d on disk, %v", when, st.Uid, st.Gid, err)
			}
		}
	}
	seen("before", "a")
	before, beforeUser := h.snapshot(), user.snapshot()
	g := r.inject(h, r.data, "io error=EIO op=fsync ttl=1m")
	if len(g.Report.Skipped) > 0 {
		t.Errorf("not moved: %+v", g.Report.Skipped)
	}
	h.is("EIO", "fsync f")
	user.is("EIO", "fsync user")
	seen("grafted", "b")
	r.recover(g)
	h.is("ok", "fsync f")
	user.is("ok", "fsync user")
	seen("recovered", "c")
	same(t, before, h.snapshot())
	same(t, beforeUser, user.snapshot())
}
