package kernel

import (
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/faultgraft/faultgraft/test/vm"
)

// forks makes 1,000 children, each of which creates a file.
const forks = `i=0; while [ $i -lt 1000 ]; do (: >/tmp/f$i) && rm -f /tmp/f$i; i=$((i+1)); done; echo done`

// K4: 1,000 children all see the fault; outside of the container none does.
func TestForks(t *testing.T) {
	vm.Need(t)
	a := startAgent(t)
	rule, says := fails("lsm:inode_create", unix.ENOSPC), "No space left on device"
	if vm.Kernel() == vm.Fault { // openat with O_CREAT
		rule, says = fails("syscall:openat", unix.EMFILE), "Too many open files"
		rule.Kernel.Where = "flags & 64"
	}
	faulted, other := start(t, "forks", "sleep 1000"), start(t, "forks-other", "sleep 1000")
	id := a.inject(faulted.pid(), rule)
	few := strings.Replace(forks, "1000", "50", 1)
	if out, _ := host(t, few); strings.TrimSpace(out) != "done" {
		t.Errorf("on the host:\n%s", head(out))
	}
	if out, _ := other.exec(few); strings.TrimSpace(out) != "done" {
		t.Errorf("in another container:\n%s", head(out))
	}
	out, _ := faulted.exec(forks)
	if n := count(out, says); n != 1000 || count(out, "done") != 1 {
		t.Errorf("of 1,000 children %d saw the fault:\n%s", n, head(out))
	}
	if f := a.fault(id); f.Counters.Injected != 1000 {
		t.Errorf("1,000 failures are counted as %d", f.Counters.Injected)
	}
}

// K5: what moves into a cgroup below the container's is failed too; a container
// that was started again is another one, and the first one's fault is gone.
func TestCgroups(t *testing.T) {
	vm.Need(t)
	a := startAgent(t)
	c := start(t, "nested", "sleep 1000")
	id := a.inject(c.pid(), fails("syscall:mount", unix.ENOMEM))
	const try = "mount -t tmpfs none /mnt && echo mounted && umount /mnt"
	// the container's cgroup namespace begins at its cgroup
	nested := `mkdir -p /sys/fs/cgroup/a/b && echo $$ >/sys/fs/cgroup/a/b/cgroup.procs && grep :: /proc/self/cgroup && ` + try
	if out, _ := c.exec(nested); !strings.Contains(out, "0::/a/b") || !strings.Contains(out, noMemory) {
		t.Errorf("in a cgroup below the container's: %q", out)
	}
	was := a.fault(id).Cgroup.ID
	if want := inode(t, "/sys/fs/cgroup"+c.cgroup); was != want {
		t.Errorf("the fault's cgroup is %d, the container's %d", was, want)
	}

	c.remove()
	a.recover(id)
	c.again()
	if out, ok := c.exec(try); !ok {
		t.Errorf("the container that was started again: %q", out)
	}
	id = a.inject(c.pid(), fails("syscall:mount", unix.ENOMEM))
	if now := a.fault(id).Cgroup.ID; now == was {
		t.Errorf("the container that was started again has the cgroup %d of the first", now)
	}
	if out, ok := c.exec(try); ok || !strings.Contains(out, noMemory) {
		t.Errorf("a new fault in the container that was started again: %q", out)
	}
}

func inode(t testing.TB, path string) uint64 {
	t.Helper()
	out, err := command(patience, "stat", "-c", "%i", path)
	if err != nil {
		t.Fatalf("stat %s: %v: %s", path, err, out)
	}
	n, err := strconv.ParseUint(strings.TrimSpace(out), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// head is the beginning of a long output.
func head(s string) string { return s[:min(len(s), 1000)] }
