package process

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// P4: what a target has open is moved off its layer whatever the target gives itself out for: faultgraft's processes are known by
// more than their arguments, which a container can have as well, with its own names for the state directory.
func TestTargetPassesForOurs(t *testing.T) {
	r := newRig(t)
	p := r.write("f", "0123456789")
	first := r.startWith("unshare", "--mount", "--propagation", "private", binaries.holder, "keeper", "--state-dir", r.state)
	g := r.inject(first, r.data, "io error=EIO op=fsync ttl=10m")
	within := []string{"nsenter", "--target", fmt.Sprint(first.pid()), "--mount"}
	passing := map[string]*holder{"the first process": first}
	for name, args := range map[string][]string{
		"another process":                        {binaries.holder, "server", "--state-dir", r.state},
		"one in a mount namespace of its own":    {"unshare", "--mount", "--pid", "--fork", "--kill-child", binaries.holder, "swap", "--server"},
		"one that has the holder's name":         {"bash", "-c", "exec -a fgraft-holder " + binaries.holder},
		"one in a user namespace (its own root)": {"unshare", "--user", "--map-root-user", "--mount", binaries.holder, "swap"},
	} {
		passing[name] = r.startWith(append(within, args...)...)
	}
	for name, h := range passing {
		h.ok("open f %s rdwr", p)
		if n := onFUSE(t, h.pid()); n != 1 {
			t.Fatalf("%s has %d files on the layer", name, n)
		}
	}
	r.recover(g)
	for name, h := range passing {
		if n := onFUSE(t, h.pid()); n != 0 {
			t.Errorf("%s has %d files on the layer, which is off", name, n)
		}
		h.is("ok 0123456789", "read f 100")
	}
}

// onFUSE counts the files that a process and its children have open on FUSE file systems.
func onFUSE(t *testing.T, pid int) (n int) {
	t.Helper()
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", pid, pid))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range append(strings.Fields(string(children)), fmt.Sprint(pid)) {
		fds, err := filepath.Glob("/proc/" + p + "/fd/*")
		if err != nil || len(fds) == 0 {
			t.Fatalf("process %s has nothing open: %v", p, err)
		}
		for _, fd := range fds {
			var s unix.Statfs_t
			if err := unix.Statfs(fd, &s); err == nil && s.Type == unix.FUSE_SUPER_MAGIC {
				n++
			}
		}
	}
	return n
}
